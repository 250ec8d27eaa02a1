"""The dock for corrections in a real napari window: each tool once by its button, and undone."""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

import threading

import numpy as np
import pytest
from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QApplication

from medseg.errors import ConfigError
from medseg_napari._edit_keys import KEYS
from medseg_napari._edit_session import correction_of, unsaved
from medseg_napari._origin import origin_of
from medseg_napari._send import SECONDS_KEY
from medseg_napari._writer import EDITED_KEY
from medseg_napari.editing.autosave import Autosave
from medseg_napari.editing.change import Change
from tests.plugin.sources import oblique_grid, write_nifti_image

pytestmark = pytest.mark.gui

SHAPE = (12, 20, 24)
WAIT_MS = 60_000  # also where other work leaves little of the machine


def blobs():
    """A liver with a hole, a speck of it, and a spleen."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[3:9, 4:14, 4:14] = 1
    labels[5, 8, 8] = 0
    labels[10, 17, 20] = 1
    labels[4:8, 4:10, 16:20] = 2
    return labels


def picture():
    image = np.random.default_rng(1).normal(0, 5, SHAPE).astype(np.float32)
    image[3:9, 4:14, 4:14] += 100
    return image


@pytest.fixture
def dock(viewer):
    viewer.add_image(picture(), scale=(2.0, 1.0, 1.0), name="picture")
    viewer.add_labels(blobs(), scale=(2.0, 1.0, 1.0), name="organs")
    viewer.dims.set_current_step(0, 6)
    _, dock = viewer.window.add_plugin_dock_widget("medseg", "Correct it")
    yield dock
    dock.bench.drop()


@pytest.fixture
def started(dock):
    assert dock.start(), dock.message.text()
    return dock


def at_rest(qtbot, dock):
    qtbot.waitUntil(lambda: not dock.bench.busy, timeout=WAIT_MS)
    return dock.message.text()


def press(dock, at_vox):
    """A press and a release of the mouse at a voxel."""
    correction = dock.bench.correction
    correction.controller.press(at_vox, 0)
    correction.controller.end_stroke()


def button(part, title):
    from qtpy.QtWidgets import QAbstractButton

    [found] = [one for one in part.findChildren(QAbstractButton) if one.text() == title]
    return found


def test_every_edit_is_made_by_its_button_and_undone_to_the_exact_array(qtbot, viewer, started):
    dock, layer = started, viewer.layers["organs"]
    dock.pieces.least_box.setValue(0.1)
    dock.surface.by_box.setValue(2.0)
    layer.data[6, :, :][layer.data[6] == 1] = 0  # something to fill between
    dock.bench.correction.controller.recount()
    before = layer.data.copy()
    dock.combine.label_box.setCurrentIndex(1)
    for section, title in (
        (dock.pieces, "Keep largest"),
        (dock.pieces, "Fill holes"),
        (dock.pieces, "Remove below"),
        (dock.pieces, "Split into"),
        (dock.surface, "Grow"),
        (dock.surface, "Shrink"),
        (dock.surface, "Close"),
        (dock.surface, "Smooth"),
        (dock.slices, "Fill between drawn slices"),
        (dock.slices, "Copy to next"),
        (dock.combine, "Apply"),
        (dock.range, "Label it in this slice"),
        (dock.range, "In the whole image"),
    ):
        viewer.dims.set_current_step(0, 5)
        steps = len(layer._undo_history)
        button(section, title).click()
        said = at_rest(qtbot, dock)
        if title == "Fill holes":  # the hole is open now that a slice is gone
            assert "nothing to change" in said
            continue
        assert len(layer._undo_history) == steps + 1, f"{title}: {said}"
        assert "ml" in said
        assert not np.array_equal(layer.data, before), title
        dock.undo_button.click()
        np.testing.assert_array_equal(layer.data, before, err_msg=title)


def test_edits_of_whole_labels_keep_the_steps_before_them(qtbot, viewer, started):
    dock, layer = started, viewer.layers["organs"]
    seen = [layer.data.copy()]
    dock.draw.size_box.setValue(4.0)
    for title in ("Grow", "brush", "Shrink", "Keep largest"):
        if title == "brush":
            dock.bench.correction.controller.tool = "brush"
            press(dock, (1, 15, 3))
        else:
            button(dock.pieces if "Keep" in title else dock.surface, title).click()
            at_rest(qtbot, dock)
        assert not np.array_equal(layer.data, seen[-1]), title
        seen.append(layer.data.copy())
    for then in seen[-2::-1]:
        dock.undo_button.click()
        np.testing.assert_array_equal(layer.data, then)
    for then in seen[1:]:
        layer.redo()
        np.testing.assert_array_equal(layer.data, then)


def test_nothing_is_undone_while_an_edit_is_computed(qtbot, viewer, started):
    dock, layer = started, viewer.layers["organs"]
    button(dock.surface, "Grow").click()
    at_rest(qtbot, dock)
    grown, steps = layer.data.copy(), list(layer._undo_history)
    go_on = threading.Event()

    def wait(labels):
        go_on.wait(WAIT_MS / 1000)
        return Change()

    dock.bench.run("slow", wait)
    layer.undo()
    np.testing.assert_array_equal(layer.data, grown)
    dock.stop_button.click()
    assert list(layer._undo_history) == steps
    go_on.set()
    at_rest(qtbot, dock)
    layer.undo()
    np.testing.assert_array_equal(layer.data, blobs())


def test_tools_of_the_mouse_are_chosen_by_buttons_and_undone(qtbot, viewer, started):
    dock, layer = started, viewer.layers["organs"]
    controller, before = dock.bench.correction.controller, layer.data.copy()
    dock.draw.size_box.setValue(4)
    dock.draw.three_d_check.setChecked(True)
    for tool, at_vox in (
        ("brush", (6, 16, 5)),
        ("eraser", (6, 8, 8)),
        ("fill", (6, 6, 18)),
    ):
        dock.draw.tools.buttons[tool].click()
        assert controller.tool == tool
        assert dock.draw.tools.buttons[tool].isChecked()
        press(dock, at_vox)
        assert not np.array_equal(layer.data, before)
        dock.undo_button.click()
        np.testing.assert_array_equal(layer.data, before)
        dock.redo_button.click()
        assert not np.array_equal(layer.data, before)
        dock.undo_button.click()
    assert controller.brush_mm == 4
    assert controller.in_3d
    dock.draw.tools.buttons["fill"].click()
    assert controller.tool == "none"
    dock.draw.tools.buttons["brush"].click()
    dock.draw.tools.buttons["pick"].click()
    press(dock, (6, 6, 18))
    assert controller.active == 2
    assert controller.tool == "brush"
    assert viewer.layers["organs"].selected_label == 2


def test_a_range_from_a_click_limits_the_brush(viewer, started):
    dock, layer = started, viewer.layers["organs"]
    dock.range.point_button.click()
    assert dock.range.point_button.isChecked()
    press(dock, (6, 16, 20))
    assert not dock.range.point_button.isChecked()
    low, high = dock.range.low_box.value(), dock.range.high_box.value()
    assert -30 < low < 0 < high < 30
    dock.range.limit_check.setChecked(True)
    before = layer.data.copy()
    dock.table.table.selectRow(dock.table.row_of(2))
    dock.draw.size_box.setValue(12)
    dock.draw.tools.buttons["brush"].click()
    press(dock, (6, 15, 10))
    changed = layer.data != before
    assert changed.any()
    assert (np.abs(picture()[changed]) < 60).all()
    dock.range.low_box.setValue(high + 1)
    assert "lower end" in dock.message.text()
    assert dock.bench.correction.controller.within is None


def test_scribbles_are_drawn_in_a_layer_and_fill_by_edges_and_by_a_random_walk(
    qtbot, viewer, started
):
    dock, layer = started, viewer.layers["organs"]
    layer.units = ("mm", "mm", "mm")
    dock.table.add()
    before = layer.data.copy()
    button(dock.repair, "Fill by edges").click()
    assert "at least one stroke inside" in at_rest(qtbot, dock)
    dock.draw.size_box.setValue(2)
    dock.repair.margin_box.setValue(6)
    dock.repair.keep_check.setChecked(True)
    controller = dock.bench.correction.controller
    dock.repair.tools.buttons["scribble inside"].click()
    controller.press((6, 6, 6), 0)
    controller.drag((6, 12, 12))
    controller.end_stroke()
    dock.repair.tools.buttons["scribble outside"].click()
    press(dock, (6, 16, 9))
    marks = viewer.layers["organs scribbles"]
    assert set(np.unique(marks.data)) == {0, 1, 2}
    assert marks.units == layer.units  # else napari warns of every layer that comes
    assert viewer.layers.selection.active is layer
    assert dock.layer_box.findText(marks.name) < 0
    for title in ("Fill by edges", "Random walker"):
        button(dock.repair, title).click()
        assert "+" in at_rest(qtbot, dock)
        assert (layer.data[marks.data == 1] == 3).all()
        assert not (layer.data[marks.data == 2] == 3).any()
        assert (layer.data == 3).sum() > (marks.data == 1).sum()
        assert not (layer.data[:, 16:] == 3).any()
        dock.undo_button.click()
        np.testing.assert_array_equal(layer.data, before)
    dock.repair.clear_button.click()
    assert not marks.data.any()
    dock.repair.grow_button.click()
    press(dock, (6, 9, 9))
    assert "grow region" in at_rest(qtbot, dock)
    assert (layer.data == 3).sum() > 100
    dock.undo_button.click()
    np.testing.assert_array_equal(layer.data, before)


def test_the_table_names_colours_shows_locks_adds_merges_and_removes(qtbot, viewer, started):
    dock, layer = started, viewer.layers["organs"]
    view, controller = dock.table, dock.bench.correction.controller
    before = layer.data.copy()
    row = view.row_of(1)
    assert view.table.item(row, 4).text() == f"{(before == 1).sum() * 2 / 1000:.2f}"
    view.table.item(row, 1).setText("liver")
    assert controller.scheme.by_value(1).name == "liver"
    view.table.item(view.row_of(2), 1).setText("liver")
    assert "liver" in dock.message.text()
    assert view.table.item(view.row_of(2), 1).text() != "liver"
    view.table.item(row, 2).setCheckState(Qt.CheckState.Unchecked)
    assert controller.labels_table.hidden == {1}
    view.table.item(row, 3).setCheckState(Qt.CheckState.Checked)
    assert controller.labels_table.locked == {1}
    button(dock.surface, "Grow").click()
    assert "not locked" in at_rest(qtbot, dock)
    view.remove()
    assert "not locked" in dock.message.text()
    np.testing.assert_array_equal(layer.data, before)
    view.table.item(row, 3).setCheckState(Qt.CheckState.Unchecked)
    view.ask_colour(1)
    view.colour_dialog.colorSelected.emit(QColor(1, 2, 3))
    view.colour_dialog.close()
    assert controller.scheme.by_value(1).rgb == (1, 2, 3)
    view.add_button.click()
    assert controller.active == 3
    view.table.selectRow(view.row_of(2))
    assert controller.active == 2
    assert layer.selected_label == 2
    layer.selected_label = 1
    assert view.table.currentRow() == view.row_of(1)
    view.merge_menu.aboutToShow.emit()
    assert len(view.merge_menu.actions()) == 2
    view.merge_menu.actions()[0].trigger()
    assert not (layer.data == 1).any()
    assert controller.active == 2
    view.remove_button.click()
    assert not layer.data.any()
    dock.undo_button.click()
    dock.undo_button.click()
    np.testing.assert_array_equal(layer.data, before)
    assert {label.name for label in controller.scheme.labels} >= {"liver"}


def test_pieces_are_named_after_the_label_that_is_split(qtbot, started):
    started.table.rename(1, "liver")
    button(started.pieces, "Split into").click()
    at_rest(qtbot, started)
    names = [label.name for label in started.bench.correction.controller.scheme.labels]
    assert "liver 2" in names, started.message.text()


def test_a_label_of_one_piece_is_not_split_and_adds_no_step(qtbot, viewer, started):
    started.bench.correction.controller.active = 2
    button(started.pieces, "Split into").click()
    assert at_rest(qtbot, started) == "split: there was nothing to change"
    assert not viewer.layers["organs"]._undo_history
    assert started.state_text.text().startswith("no changes")


class Held:
    """An edit that is computed until it is let go."""

    def __init__(self):
        self.go_on = threading.Event()
        self.made = 0

    def __call__(self, labels):
        self.made += 1
        assert self.go_on.wait(WAIT_MS / 1000)
        return Change()


def test_one_edit_at_a_time_and_nothing_is_drawn_meanwhile(qtbot, viewer, started):
    dock, held = started, Held()
    dock.draw.tools.buttons["brush"].click()
    assert dock.bench.run("slow", held)
    assert dock.bar.isVisibleTo(dock)
    assert not dock.surface.inside.isEnabled()
    assert not viewer.layers["organs"].editable
    dock.surface.change("grow")
    assert "slow is still computed" in dock.message.text()
    dock._tool("brush")
    assert dock.bench.correction.controller.tool == "none"
    held.go_on.set()
    assert "nothing to change" in at_rest(qtbot, dock)
    assert held.made == 1
    assert dock.bench.correction.controller.tool == "brush"
    assert viewer.layers["organs"].editable


def test_an_edit_that_is_stopped_changes_nothing(qtbot, viewer, started):
    dock, held, layer = started, Held(), viewer.layers["organs"]
    before = layer.data.copy()

    def clear(labels):
        from medseg_napari.editing import logic

        held(labels)
        return logic.erase_label(labels, 1)

    dock.bench.run("slow", clear)
    dock.stop_button.click()
    assert "stopped" in dock.message.text()
    assert layer.editable
    held.go_on.set()
    at_rest(qtbot, dock)
    np.testing.assert_array_equal(layer.data, before)
    assert dock.surface.inside.isEnabled()


@pytest.mark.parametrize("what", ["labels", "everything"])
def test_closing_the_layer_during_an_edit_leaves_a_live_viewer(qtbot, viewer, started, what):
    dock, held, layer = started, Held(), viewer.layers["organs"]
    dock.bench.run("slow", held)
    if what == "labels":
        viewer.layers.remove(layer)
    else:
        viewer.layers.clear()
    held.go_on.set()
    assert "the labels were closed" in at_rest(qtbot, dock)
    assert correction_of(layer) is None
    assert not dock.surface.inside.isEnabled()
    again = viewer.add_labels(blobs(), name="again")
    dock.layer_box.setCurrentIndex(dock.layer_box.findText("again"))
    assert dock.start()
    button(dock.surface, "Smooth").click()
    at_rest(qtbot, dock)
    assert len(again._undo_history) == 1


def test_an_edit_that_breaks_is_one_sentence(qtbot, started):
    def broken(labels):
        raise ZeroDivisionError

    started.bench.run("broken", broken)
    assert at_rest(qtbot, started) == "Unexpected ZeroDivisionError; please report it"

    def hungry(labels):
        raise MemoryError

    started.bench.run("hungry", hungry)
    assert "memory ran out" in at_rest(qtbot, started)


def test_what_cannot_be_done_is_one_sentence(qtbot, viewer, started):
    dock = started
    dock.combine.label_box.setCurrentIndex(0)
    dock.combine.combine()
    assert "two different labels" in dock.message.text()
    viewer.dims.ndisplay = 3
    dock.slices.copy(1)
    assert "one slice of the labels" in dock.message.text()
    viewer.dims.ndisplay = 2
    viewer.layers.remove("picture")
    dock.range.threshold(in_slice=True)
    assert "an image on the voxels of the labels" in dock.message.text()
    viewer.layers.remove("organs")
    dock.pieces.keep_largest()
    assert "press Correct first" in dock.message.text()
    assert not dock.start()
    assert "Open or make labels first" in dock.message.text()
    held = viewer.add_labels(blobs())
    held.editable = False
    assert not dock.start()
    assert "a model still writes" in dock.message.text()


def test_the_layer_carries_what_send_it_back_reads(viewer, tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid((24, 22, 20)))
    [image] = viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")
    viewer.layers.selection.active = image
    viewer._new_labels()
    layer = viewer.layers[-1]
    _, send = viewer.window.add_plugin_dock_widget("medseg", "Send it back")
    _, dock = viewer.window.add_plugin_dock_widget("medseg", "Correct it")
    assert dock.start()
    controller = dock.bench.correction.controller
    clock = iter(range(0, 1000, 7))
    controller.effort.clock = lambda: float(next(clock))
    controller.effort._last = 0.0
    controller.tool = "brush"
    press(dock, (10, 10, 10))
    press(dock, (10, 12, 12))
    assert layer.metadata[EDITED_KEY] == {1: "MANUAL"}
    assert layer.metadata[SECONDS_KEY] == controller.effort.seconds > 0
    assert unsaved(viewer)
    assert "not saved" in dock.state_text.text()
    send.refresh()
    assert "of editing" in send.summary.text()
    assert send.save(tmp_path / "out.nii.gz"), send.message.text()
    assert not unsaved(viewer)
    assert dock.state_text.text().startswith("saved")
    press(dock, (10, 5, 5))
    viewer.layers.selection = {layer}
    viewer.layers.save(str(tmp_path / "again.nii.gz"), selected=True, plugin="medseg")
    assert not unsaved(viewer)


def test_what_was_not_saved_is_offered_and_restored_or_deleted(qtbot, viewer, dock, monkeypatch):
    layer, before = viewer.layers["organs"], blobs()
    dock.start()
    correction = dock.bench.correction
    correction.controller.tool = "brush"
    press(dock, (6, 16, 5))
    edited = layer.data.copy()
    assert correction.autosave.flush()
    viewer.layers.remove(layer)  # the files stay: nothing was saved
    monkeypatch.setattr("medseg_napari.editing.autosave._runs", lambda header: False)  # it crashed
    again = viewer.add_labels(before.copy(), scale=(2.0, 1.0, 1.0), name="organs")
    assert dock.start()
    assert dock.recovery.isVisibleTo(dock)
    assert "were not saved" in dock.recovery_text.text()
    dock.restore_button.click()
    np.testing.assert_array_equal(again.data, edited)
    assert not dock.recovery.isVisibleTo(dock)
    dock.undo_button.click()
    np.testing.assert_array_equal(again.data, before)
    dock.redo_button.click()
    assert dock.bench.correction.autosave.flush()
    viewer.layers.remove(again)
    viewer.add_labels(before.copy(), scale=(2.0, 1.0, 1.0), name="organs")
    assert dock.start()
    asked = []
    dock.ask = lambda question: bool(asked.append(question))
    dock.forget_button.click()
    assert "cannot be brought back" in asked[0]
    assert dock.recovery.isVisibleTo(dock)  # the user thought better of it
    dock.ask = lambda question: True
    dock.forget_button.click()
    assert not dock.recovery.isVisibleTo(dock)
    assert dock.bench.correction.recoverable == []


def test_names_given_to_labels_of_a_new_layer_are_saved_with_them(viewer, dock, tmp_path):
    viewer.layers.clear()
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid(SHAPE))
    viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")
    viewer._new_labels()
    assert dock.start()
    controller = dock.bench.correction.controller
    controller.rename_label(controller.active, "amygdala")
    controller.tool = "brush"
    press(dock, (8, 10, 6))
    _, send = viewer.window.add_plugin_dock_widget("medseg", "Send it back")
    assert [send.table.item(0, column).text() for column in (0, 1)] == ["amygdala", "by hand"]
    assert send.save(tmp_path / "out.nii.gz"), send.message.text()
    [again] = viewer.open(str(tmp_path / "out.nii.gz"), plugin="medseg")
    assert [label.name for label in origin_of({"metadata": again.metadata}).scheme.labels] == [
        "amygdala"
    ]


def test_labels_that_were_lost_are_offered_with_their_image_alone(qtbot, viewer, dock, tmp_path):
    viewer.layers.clear()
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid(SHAPE))
    [image] = viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")
    viewer._new_labels()
    layer = viewer.layers[-1]
    layer.data = layer.data.astype(np.uint8)
    layer.data[1:4, 1:4, 1:4] = 2  # of a model, say: before anything was drawn
    assert dock.start()
    controller = dock.bench.correction.controller
    controller.tool = "brush"
    controller.add_label("cyst")
    press(dock, (8, 10, 10))
    controller.active = 2
    press(dock, (6, 12, 5))
    edited = layer.data.copy()
    viewer.layers.remove(layer)  # by mistake, or with the process
    qtbot.waitUntil(lambda: dock.recovery.isVisibleTo(dock), timeout=WAIT_MS)
    assert "on image were not saved. Restore them?" in dock.recovery_text.text()
    dock.restore_button.click()
    again = viewer.layers[-1]
    assert (again.name, dock.message.text()) == ("image restored", "Restored; undo takes it back")
    np.testing.assert_array_equal(again.data, edited)
    assert dock.bench.correction.layer is again
    assert unsaved(viewer)
    assert not dock.recovery.isVisibleTo(dock)
    _, send = viewer.window.add_plugin_dock_widget("medseg", "Send it back")
    send.refresh()
    made = {send.table.item(row, 0).text(): send.table.item(row, 1).text() for row in range(2)}
    assert made == {"label 2": "corrected", "cyst": "by hand"}
    dock.undo_button.click()
    assert not again.data.any()
    assert image in viewer.layers


def test_the_window_asks_before_it_closes_over_unsaved_corrections(viewer, started):
    dock, window = started, viewer.window._qt_window
    asked = []
    answers = iter(["cancel", "keep", "discard"])

    def ask(corrections):
        asked.append([one.layer.name for one in corrections])
        return next(answers)

    dock.guard.ask = ask
    assert dock.guard.may_close()
    assert asked == []
    dock.bench.correction.controller.tool = "brush"
    press(dock, (6, 16, 5))
    window.close(False, True)  # what File > Close Window calls
    assert window.isVisible()
    assert asked == [["organs"]]
    assert dock.guard.may_close()
    assert unsaved(viewer)
    assert dock.guard.may_close()
    assert not unsaved(viewer)
    assert len(asked) == 3


def test_a_close_event_of_the_window_system_is_held_back(viewer, started):
    class Spontaneous(QEvent):
        def spontaneous(self):
            return True

    started.guard.ask = lambda corrections: "cancel"
    event = Spontaneous(QEvent.Type.Close)
    assert not started.guard.eventFilter(viewer.window._qt_window, event)
    started.bench.correction.controller.tool = "brush"
    press(started, (6, 16, 5))
    assert started.guard.eventFilter(viewer.window._qt_window, event)
    assert not event.isAccepted()


def test_without_a_folder_for_autosaves_the_labels_can_be_corrected(
    viewer, dock, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert dock.start()
    assert "nothing is saved automatically" in dock.message.text()
    assert dock.bench.correction.autosave is None


def test_trouble_of_the_autosave_is_told_in_the_dock(qtbot, started):
    saver = started.bench.correction.autosave
    assert isinstance(saver, Autosave)
    threading.Thread(target=lambda: saver.trouble.emit("the disk is full")).start()
    qtbot.waitUntil(lambda: started.message.text() == "the disk is full", timeout=WAIT_MS)


def test_keys_of_the_layer_choose_tools_and_clash_with_none_of_naparis(viewer, started):
    from napari._app_model import get_app_model
    from napari.layers import Labels
    from napari.utils.key_bindings import coerce_keybinding
    from napari.utils.shortcuts import default_shortcuts

    layer = viewer.layers["organs"]
    ours = {coerce_keybinding(key) for key, _ in KEYS.values()}
    assert len(ours) == len(KEYS)
    others = ("points", "shape", "polyline", "lasso", "select_append")
    naparis = {
        binding
        for name, bindings in default_shortcuts.items()
        for binding in bindings
        if not any(part in name for part in others)
    }
    naparis |= {*Labels.class_keymap, *type(viewer).class_keymap, *viewer.keymap}
    naparis |= {one.keybinding for one in get_app_model().keybindings}
    assert not ours & naparis
    controller = started.bench.correction.controller
    for name in ("brush", "eraser", "fill", "pick", "inside", "outside"):
        layer.keymap[coerce_keybinding(KEYS[name][0])](layer)
        assert controller.tool in (name, f"scribble {name}")
    layer.keymap[coerce_keybinding(KEYS["lay down"][0])](layer)
    assert controller.tool == "none"
    size = controller.brush_mm
    layer.keymap[coerce_keybinding(KEYS["larger"][0])](layer)
    assert controller.brush_mm > size
    layer.keymap[coerce_keybinding(KEYS["lock"][0])](layer)
    assert controller.labels_table.locked == {1}
    layer.keymap[coerce_keybinding(KEYS["show"][0])](layer)
    assert controller.labels_table.hidden == {1}
    viewer.cursor.position = tuple(layer.data_to_world((6, 6, 18)))
    layer.keymap[coerce_keybinding(KEYS["label under pointer"][0])](layer)
    assert controller.active == 2
    viewer.cursor.position = (-50.0, 0.0, 0.0)
    layer.keymap[coerce_keybinding(KEYS["range"][0])](layer)
    assert "inside the image" in started.message.text()
    viewer.layers.remove(layer)
    assert not ours & {*layer.keymap}


def test_another_layer_is_corrected_meanwhile_and_both_keep_their_state(viewer, started):
    first = started.bench.correction
    second = viewer.add_labels(blobs(), scale=(2.0, 1.0, 1.0), name="other")
    started.layer_box.setCurrentIndex(started.layer_box.findText("other"))
    assert started.bench.correction is None
    assert started.start()
    assert started.bench.correction.layer is second
    viewer.layers.selection.active = first.layer
    assert started.bench.correction is first
    started.combine.layer_box.setCurrentIndex(started.combine.layer_box.findText("other"))
    assert started.combine.label_box.count() == 2


def test_a_dock_that_was_closed_hears_no_more_and_a_new_one_goes_on(qtbot, viewer, started):
    correction = started.bench.correction
    viewer.window.remove_dock_widget(started)
    started.deleteLater()
    qtbot.wait(50)
    QApplication.processEvents()
    correction.controller.tool = "brush"
    press_at = correction.controller.press
    press_at((6, 16, 5), 0)
    correction.controller.end_stroke()
    _, again = viewer.window.add_plugin_dock_widget("medseg", "Correct it")
    assert again.bench.correction is correction


def test_the_dock_fits_a_small_screen(viewer, started):
    assert started.minimumSizeHint().height() < 600
    assert started.scroll.widget().minimumSizeHint().width() <= 400
    assert [section.isExpanded() for section in started.sections] == [True, *[False] * 7]


def test_a_section_is_made_by_what_inherits_from_it(started):
    from medseg_napari._edit_section import Section

    with pytest.raises(NotImplementedError):
        Section("nothing", started.bench)


def test_the_image_of_an_edit_must_be_there(viewer, started):
    viewer.layers.remove("picture")
    with pytest.raises(ConfigError, match="an image on the voxels of the labels"):
        started.range.pixels()
