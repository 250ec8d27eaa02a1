"""The docks in a real napari window: open, run, stop, run again, correct, save, reopen, compare."""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

import time

import numpy as np
import pydicom
import pytest
import torch

from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_series import read_dicom_series
from medseg_napari._badge import text_of
from medseg_napari._origin import origin_of
from tests.plugin.sources import noise_volume, oblique_grid, write_nifti_image
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.gui

SHAPE = (24, 22, 20)
LONG_MS = 180_000  # also where other work leaves little of the machine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny").parent


@pytest.fixture
def dock(viewer, models, monkeypatch, tmp_path):
    """The dock that runs models, with the tiny one chosen; plans are made on request alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("medseg_napari._widget._PLAN_AFTER_MS", 1_000_000_000)
    _, widget = viewer.window.add_plugin_dock_widget("medseg", "Run a model")
    widget.look_for_models(models)
    widget.choose_model("tiny")
    yield widget
    widget.controller.close()


@pytest.fixture
def send(viewer):
    return viewer.window.add_plugin_dock_widget("medseg", "Send it back")[1]


@pytest.fixture
def image(viewer, tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid(SHAPE))
    return viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")[0]


@pytest.fixture
def series(viewer, tmp_path):
    volume = noise_volume(oblique_grid(SHAPE))
    write_dicom_series(volume, tmp_path / "series", modality="MR", random_names=True)
    return viewer.open(str(tmp_path / "series"), plugin="medseg")[0]


def finish(qtbot, dock):
    qtbot.waitUntil(lambda: not dock.controller.state.is_busy, timeout=LONG_MS)
    return dock.controller.state


def labels_of(viewer):
    from napari.layers import Labels

    return [layer for layer in viewer.layers if isinstance(layer, Labels)]


class Slow:
    """Each layer of a network takes a while: room to act. Not while it is planned."""

    def __init__(self, dock):
        self._dock = dock

    def __enter__(self):
        def wait(module, arguments):
            if self._dock.controller.state.phase == "running":
                time.sleep(0.15)

        self._hook = torch.nn.modules.module.register_module_forward_pre_hook(wait)

    def __exit__(self, *error):
        self._hook.remove()


def begin_slowly(qtbot, dock):
    dock.run()
    qtbot.waitUntil(lambda: dock.controller.state.phase == "running", timeout=LONG_MS)


def test_a_model_runs_is_corrected_sent_back_and_opened_again(
    qtbot, viewer, dock, send, series, tmp_path
):
    dock.run()
    assert finish(qtbot, dock).phase == "done"
    [result] = labels_of(viewer)
    assert result.editable
    assert result.data.shape == series.data.shape
    assert set(np.unique(result.data)) <= {0, 1, 5}
    value = int(np.unique(result.data)[-1])
    place = tuple(np.argwhere(result.data == value)[0])
    send.refresh()
    kinds = {send.table.item(row, 1).text() for row in range(send.table.rowCount())}
    assert kinds == {"model"}
    result.data_setitem(tuple(np.array([index]) for index in place), 0)
    assert send.save(tmp_path / "out.dcm"), send.message.text()
    assert "Saved and verified: out.dcm" in send.message.text()
    types = {
        one.SegmentLabel: one.SegmentAlgorithmType
        for one in pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence
    }
    edited = "near" if value == 1 else "far"
    assert types.pop(edited) == "SEMIAUTOMATIC"
    assert set(types.values()) <= {"AUTOMATIC"}
    expected = origin_of({"metadata": result.metadata}).original_array(result.data)
    viewer.layers.remove(result)
    again = viewer.open(str(tmp_path / "out.dcm"), plugin="medseg")[-1]
    found = origin_of({"metadata": again.metadata})
    # the segments of a SEG are numbered anew
    names = {label.value: label.name for label in found.scheme.labels}
    data = found.original_array(again.data)
    for number, name in names.items():
        np.testing.assert_array_equal(data == number, expected == {"near": 1, "far": 5}[name])
    grid = read_dicom_series(tmp_path / "series").volume.grid
    assert found.grid.distance_mm(grid) < 0.01


def test_a_run_is_stopped_leaves_nothing_and_can_be_run_again(qtbot, viewer, dock, image):
    with Slow(dock):
        begin_slowly(qtbot, dock)
        assert not dock.run_button.isEnabled()
        assert dock.stop_button.isEnabled()
        began = time.perf_counter()
        dock.stop_button.click()
        assert dock.controller.state.phase == "stopping"
        state = finish(qtbot, dock)
    assert time.perf_counter() - began < 2
    assert state.phase == "stopped"
    assert labels_of(viewer) == []
    assert "nothing was kept" in dock.message.text()
    for count in (1, 2):
        dock.run_button.click()
        assert finish(qtbot, dock).phase == "done"
        assert len(labels_of(viewer)) == count
    first, second = labels_of(viewer)
    np.testing.assert_array_equal(first.data, second.data)
    assert first.name != second.name


def test_the_activity_dock_shows_the_run_and_its_button_stops_it(qtbot, viewer, dock, image):
    from napari.utils import cancelable_progress

    with Slow(dock):
        begin_slowly(qtbot, dock)
        shown = [one for one in cancelable_progress._all_instances if "tiny on" in str(one.desc)]
        assert len(shown) == 1
        shown[0].cancel()
        assert finish(qtbot, dock).phase == "stopped"
    assert not [one for one in cancelable_progress._all_instances if "tiny on" in str(one.desc)]


def test_closing_the_image_ends_the_run_and_the_viewer_lives_on(qtbot, viewer, dock, image):
    with Slow(dock):
        begin_slowly(qtbot, dock)
        viewer.layers.remove(image)
        assert finish(qtbot, dock).phase == "stopped"
    assert "The image was closed" in dock.message.text()
    assert list(viewer.layers) == []
    assert not dock.run_button.isEnabled()


def test_closing_the_result_ends_the_run(qtbot, viewer, dock, image):
    dock.run()
    seen = []

    def close_it(event):
        if not seen and event.value is not image:
            seen.append(event.value)
            from qtpy.QtCore import QTimer

            QTimer.singleShot(0, lambda: viewer.layers.remove(seen[0]))

    viewer.layers.events.inserted.connect(close_it)
    finish(qtbot, dock)
    qtbot.wait(200)
    assert seen
    assert list(viewer.layers) == [image]


def test_a_dead_model_gives_a_message_and_a_living_viewer(qtbot, viewer, dock, image, tmp_path):
    folder = write_tiny_model(tmp_path / "models" / "dead")
    (folder / "weights.safetensors").write_bytes(b"nothing")
    dock.look_for_models(folder.parent)
    dock.choose_model("dead")
    dock.run()
    assert finish(qtbot, dock).phase == "failed"
    assert "copy the model folder again" in dock.message.text()
    assert list(viewer.layers) == [image]
    assert dock.run_button.isEnabled()


def test_the_plan_is_told_before_a_run(qtbot, dock, image):
    dock.plan()
    assert finish(qtbot, dock).plan is not None
    assert "of memory at the peak" in dock.plan_text.text()
    assert "window" in dock.plan_text.text()
    dock.fast_check.setChecked(True)
    assert dock.plan_text.text() == ""


def test_a_region_from_a_shapes_box_limits_the_result(qtbot, viewer, dock, image):
    boxes = [
        np.array([image.data_to_world((axial, *corner)) for corner in corners])
        for axial in (2, 12)
        for corners in [((3, 4), (3, 16), (15, 16), (15, 4))]
    ]
    shapes = viewer.add_shapes(boxes, shape_type="rectangle", name="box")
    dock.region_box.setCurrentIndex(dock.region_box.findText("box"))
    assert dock.request().region_shown == ((2, 13), (3, 16), (4, 17))
    dock.run()
    assert finish(qtbot, dock).phase == "done"
    [result] = labels_of(viewer)
    outside = np.ones(result.data.shape, dtype=bool)
    outside[2:13, 3:16, 4:17] = False
    assert not result.data[outside].any()
    viewer.layers.remove(shapes)
    assert dock.region_box.currentText() == "whole image"


def test_a_region_is_drawn_with_the_button_and_planned_anew(qtbot, viewer, dock, image):
    dock.plan()
    assert finish(qtbot, dock).plan is not None
    dock.region.button.click()
    [shapes] = [layer for layer in viewer.layers if layer.name == "region"]
    assert (dock.region_box.currentText(), str(shapes.mode)) == ("region", "add_rectangle")
    assert shapes.units == image.units  # or napari warns of every layer that comes
    assert dock.request().region_shown is None  # as long as nothing is drawn
    corners = [(5, 3, 4), (5, 3, 16), (5, 15, 16), (5, 15, 4)]
    dock._plan_timer.stop()
    shapes.add_rectangles(np.array([image.data_to_world(corner) for corner in corners]))
    assert dock._plan_timer.isActive()
    assert dock.request().region_shown[1:] == ((3, 16), (4, 17))


def test_doubt_becomes_a_layer_that_is_no_image_to_run_on(qtbot, viewer, dock, image):
    dock.doubt_check.setChecked(True)
    dock.run()
    assert finish(qtbot, dock).phase == "done"
    doubt = viewer.layers[-1]
    assert doubt.name.endswith("doubt")
    assert dock._channel_boxes[0].count() == 1


def test_the_device_that_is_chosen_stays_when_the_devices_are_known(qtbot, viewer, dock):
    from medseg_napari._device_box import DeviceBox, device_names

    tune = viewer.window.add_plugin_dock_widget("medseg", "Fine-tune")[1]
    [names] = device_names()
    assert names[:2] == ["auto", "cpu"]
    for box in (dock.device_box, tune.device_box):
        assert isinstance(box, DeviceBox)
        box.setCurrentText("cpu")
        box.list_devices([*names, "cuda:7"])
        assert box.currentText() == "cpu"
        box.setCurrentText("cuda:7")
        box.list_devices(names)
        assert box.currentText() == "auto"


def test_without_an_image_the_dock_says_what_is_missing(dock):
    assert not dock.run_button.isEnabled()
    dock.run()
    assert "Open an image with medseg first" in dock.message.text()


def test_an_oblique_image_has_a_badge_as_long_as_it_is_visible(viewer, dock, image):
    assert "oblique by" in dock.about_image.text()
    assert text_of(viewer).visible
    assert text_of(viewer).text.startswith("oblique by")
    assert max(map(len, text_of(viewer).text.splitlines())) < 48  # readable on a narrow canvas
    image.visible = False
    assert not text_of(viewer).visible
    image.visible = True
    viewer.layers.remove(image)
    assert text_of(viewer).text == ""


def test_labels_drawn_on_an_image_are_sent_as_drawn_by_hand(viewer, send, series, tmp_path):
    viewer.layers.selection.active = series
    viewer._new_labels()
    labels = viewer.layers[-1]
    labels.data[3:6, 4:8, 5:9] = 2
    send.refresh()
    assert send.table.item(0, 1).text() == "by hand"
    assert send.save(tmp_path / "rt.dcm", rtstruct=True), send.message.text()
    [roi] = pydicom.dcmread(tmp_path / "rt.dcm").StructureSetROISequence
    assert roi.ROIGenerationAlgorithm == "MANUAL"
    assert send.save_report(tmp_path / "effort.json")
    assert send.add_to_training_set(tmp_path / "set"), send.message.text()
    assert "holds 1 case" in send.message.text()


def test_what_cannot_be_saved_is_told_in_the_dock(viewer, send, image, tmp_path):
    viewer.layers.selection.active = image
    viewer._new_labels()
    assert not send.save(tmp_path / "gone" / "out.nii.gz")
    assert "expected an existing folder" in send.message.text()
    assert not send.save(tmp_path / "out.dcm")
    assert "labels on a DICOM series" in send.message.text()


def test_a_name_without_its_ending_replaces_no_file_unasked(
    viewer, send, image, tmp_path, monkeypatch
):
    from qtpy.QtWidgets import QFileDialog

    viewer.layers.selection.active = image
    viewer._new_labels()
    viewer.layers[-1].data[:] = 1
    send.refresh()
    for button, name, kind in (
        (send.save_button, "theirs.nii.gz", "NIfTI (*.nii.gz *.nii)"),
        (send.report_button, "theirs.csv", "CSV (*.csv)"),
    ):
        there = tmp_path / name
        there.write_text("of somebody")
        typed = str(tmp_path / "theirs"), kind
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, typed=typed: typed)
        button.click()
        assert f"{name} is there already" in send.message.text()
        assert there.read_text() == "of somebody"
        typed = str(tmp_path / "ours"), kind
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, typed=typed: typed)
        button.click()
        assert (tmp_path / name.replace("theirs", "ours")).is_file()


def test_labels_on_nothing_of_ours_cannot_be_sent(viewer, send, tmp_path):
    viewer.add_labels(np.zeros((4, 5, 6), dtype=np.uint8))
    assert "no image opened with medseg" in send.summary.text()
    assert not send.save_button.isEnabled()
    assert not send.save(tmp_path / "out.nii.gz")


def test_of_several_series_the_user_chooses(qtbot, viewer, tmp_path):
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    from medseg_napari._chooser import SeriesChooser

    (tmp_path / "study").mkdir()
    for number, shape in enumerate([(8, 9, 10), (9, 9, 6)], start=1):
        volume = noise_volume(oblique_grid(shape))
        folder = tmp_path / "study" / str(number)
        write_dicom_series(volume, folder, modality="MR", series_number=number)
    seen = []

    def choose(dialog):
        qtbot.waitUntil(lambda: not dialog._timer.isActive(), timeout=LONG_MS)
        seen.append([dialog.list.item(n).text() for n in range(dialog.list.count())])
        dialog.list.clearSelection()
        dialog.list.item(1).setSelected(True)
        dialog.accept()

    timer = QTimer()

    def look():  # again and again: on a busy machine the dialog takes its time
        there = [one for one in QApplication.topLevelWidgets() if isinstance(one, SeriesChooser)]
        open_now = [one for one in there if one.isVisible()]
        if open_now and answers:
            answers.pop(0)(open_now[0])

    answers = [choose]
    timer.timeout.connect(look)
    timer.start(50)
    [layer] = viewer.open(str(tmp_path / "study"), plugin="medseg")
    assert layer.name == "2: MR"
    assert "8 x 9 x 10 voxels" in seen[0][0]
    answers.append(lambda dialog: dialog.reject())
    assert viewer.open(str(tmp_path / "study"), plugin="medseg") == []
    timer.stop()
    assert len(viewer.layers) == 1


def test_a_dock_that_was_closed_hears_no_more(qtbot, viewer, dock, send, image):
    with Slow(dock):
        begin_slowly(qtbot, dock)
        for widget in (dock, send):
            widget.setParent(None)
            widget.deleteLater()
        qtbot.wait(100)
        qtbot.waitUntil(lambda: not dock.controller._working.locked(), timeout=LONG_MS)
    viewer.add_labels(np.zeros((4, 5, 6), dtype=np.uint8))
    image.name = "another"
    viewer.layers.clear()


def test_the_start_opens_a_sample_and_all_docks(monkeypatch, tmp_path, qtbot):
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "settings.yaml"))
    from medseg_napari._start import open_viewer

    (tmp_path / "broken.nii.gz").write_bytes(b"")
    viewer = open_viewer([tmp_path / "broken.nii.gz"], sample="hippocampus", models=tmp_path)
    try:
        assert [layer.name for layer in viewer.layers] == ["hippocampus T1", "hippocampus expert"]
        titles = " ".join(viewer.window.dock_widgets)
        for title in ("Run a model", "Correct it", "Send it back"):
            assert title in titles
        tabs = [dock.windowTitle() for dock in viewer.window._wrapped_dock_widgets.values()]
        assert {"Run a model", "Correct it", "See it", "Send it back"} <= {*tabs}  # short, as tabs
    finally:
        viewer.close()
