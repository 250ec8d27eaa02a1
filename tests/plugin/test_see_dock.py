"""*See it* in a real napari window: four views, brightness, comparison, doubt, keys."""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from medseg.core import LabelMap, LabelScheme
from medseg.core.grid import Grid
from medseg.metrics.case import measure_case
from medseg.metrics.overlap import dice_by_label
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import label_structures
from medseg_napari._four_views import camera_of
from medseg_napari._layers import doubt_layer, image_layers, layer_of_labels
from medseg_napari._origin import METADATA_KEY, LayerOrigin
from medseg_napari._provenance import Beginning

pytestmark = pytest.mark.gui

LONG_MS = 120_000
SHAPE = (20, 22, 24)  # along I, P, L, as shown
GRID = Grid(SHAPE[::-1], np.diag([-1.0, -1.5, 2.0, 1.0]))
SCHEME = LabelScheme.plain("two", {1: "liver", 2: "spleen"})


def made_labels(shift=0):
    data = np.zeros(SHAPE, np.uint8)
    data[4:14, 5:15, 6:16] = 1
    data[4:14, 15:19, 6 + shift : 16 + shift] = 2
    return data


def made_ct():
    """A CT in HU, as the reader gives it."""
    from pathlib import Path

    from medseg.core import Volume
    from medseg.io.scan import ItkSource, Scan

    hu = np.random.default_rng(0).integers(-1024, 1500, (1, *SHAPE[::-1])).astype(np.int16)
    hu[0, 0, 0, 0] = -1024
    scan = Scan(Volume(hu, GRID), ItkSource(Path("made")))
    [layer] = image_layers(scan, "CT")
    return layer


@pytest.fixture
def ct(viewer):
    """A CT in HU, opened as the reader does."""
    data, settings, _ = made_ct()
    return viewer.add_image(data, **settings)


@pytest.fixture
def add_labels(viewer, ct):
    def add(data_shown, name):
        source = ct.metadata[METADATA_KEY].source
        data_ijk = LayerOrigin.of(GRID, source).original_array(data_shown).copy()
        origin = LayerOrigin.of(
            GRID, source, scheme=SCHEME, beginning=Beginning.opened(data_ijk.copy())
        )
        data, settings, _ = layer_of_labels(data_ijk, origin, name)
        return viewer.add_labels(data, **settings)

    return add


@pytest.fixture
def dock(viewer):
    viewer.window._qt_window.resize(800, 600)  # which a processor draws four canvases in
    return viewer.window.add_plugin_dock_widget("medseg", "See it")[1]


def settled(qtbot, dock):
    """When the comparison is up to date."""
    qtbot.waitUntil(
        lambda: (
            not (
                dock.compare._is_busy
                or dock.compare._timer.isActive()
                or dock.compare.controller.is_due
                or dock.doubt._is_busy
            )
        ),
        timeout=LONG_MS,
    )


def press(viewer, key, *, in_model=None):
    """A key on a canvas, by way of napari's own key map."""
    from napari.utils.key_bindings import KeymapHandler

    handler = KeymapHandler()
    model = in_model or viewer
    active = model.layers.selection.active
    handler.keymap_providers = [*([] if active is None else [active]), model]
    handler.press_key(key)
    handler.release_key(key)


def drag(model, button, path_px, *, modifiers=(), position=(0.0, 0.0, 0.0)):
    """What napari's canvas does with a mouse event, without the operating system."""
    from napari.utils.interactions import (
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

    event = SimpleNamespace(
        button=button,
        modifiers=modifiers,
        type="mouse_press",
        pos=np.array(path_px[0], float),
        position=position,
        is_dragging=False,
        dims_displayed=list(model.dims.displayed),
        handled=False,
    )
    active = model.layers.selection.active
    for target in [model] if active is None else [model, active]:
        event.type, event.is_dragging = "mouse_press", False
        event.pos = np.array(path_px[0], float)
        mouse_press_callbacks(target, event)
        event.is_dragging = True
        for at in path_px[1:]:
            event.type, event.pos = "mouse_move", np.array(at, float)
            mouse_move_callbacks(target, event)
        event.type = "mouse_release"
        mouse_release_callbacks(target, event)


def positions(views):
    """Where each plane lies, by axis."""
    found = {}
    for plane, axis in (("axial", 0), ("coronal", 1), ("sagittal", 2)):
        dims = views.panes[plane].model.dims
        assert dims.not_displayed == (axis,)
        found[axis] = dims.point[axis]
    return [found[axis] for axis in range(3)]


def test_the_cursor_is_common_to_all_views_however_it_is_moved(qtbot, viewer, ct, dock):
    viewer.dims.set_point(0, ct.data_to_world((3, 0, 0))[0])
    press(viewer, "F8")
    views = dock.views
    assert dock.views_button.isChecked()
    axial, coronal, sagittal = (views.panes[p].model for p in ("axial", "coronal", "sagittal"))
    # the slider of one view
    at = ct.data_to_world((5, 8, 11))
    axial.dims.set_point(0, at[0])
    coronal.dims.set_point(1, at[1])
    sagittal.dims.set_point(2, at[2])
    np.testing.assert_allclose(positions(views), at)
    np.testing.assert_allclose(views.point, at)
    # a click moves it, a drag does not, nor does a click while something is painted with
    at = ct.data_to_world((9, 2, 20))
    drag(coronal, 1, [(50, 50)], position=at)
    np.testing.assert_allclose(positions(views), at)
    elsewhere = ct.data_to_world((1, 1, 1))
    drag(coronal, 1, [(50, 50), (80, 90)], position=elsewhere)
    np.testing.assert_allclose(positions(views), at)
    # shift moves it with the mouse, and it stays within the image
    event = SimpleNamespace(modifiers=("Shift",), position=(1e6, at[1], at[2]))
    for callback in sagittal.mouse_move_callbacks:
        callback(sagittal, event)
    assert positions(views)[0] == viewer.dims.range[0].stop
    assert viewer.cursor.position[1:] == event.position[1:]  # for what is done under the pointer
    # the window's canvas turned to another plane keeps the cursor
    views.move_to(at)
    press(viewer, "F6")
    assert viewer.dims.order == (1, 0, 2)
    assert viewer.dims.point[1] == pytest.approx(at[1])
    assert views.panes["axial"].letters.shown == ("H", "F", "R", "L")
    assert views.panes["sagittal"].letters.shown == ("H", "F", "A", "P")
    press(viewer, "F5")
    # the right button sets the brightness in every view
    dock.toggle_mouse_window()
    before = ct.contrast_limits
    drag(coronal, 2, [(10, 10), (60, 10)])
    assert ct.contrast_limits[1] > before[1]
    twin = views.panes["sagittal"].twins[id(ct)].layer
    np.testing.assert_allclose(twin.contrast_limits, ct.contrast_limits)
    press(viewer, "F8", in_model=coronal)
    assert dock.views is None


def test_the_one_canvas_has_the_letters_of_the_patients_sides_too(qtbot, viewer, dock):
    viewer.add_image(np.zeros((4, 5, 6)))
    assert dock.letters.shown == ()  # nobody knows its sides
    viewer.layers.clear()
    scan_data, settings, _ = made_ct()
    viewer.add_image(scan_data, **settings)
    assert dock.letters.shown == ("A", "P", "R", "L")
    press(viewer, "F6")
    assert dock.letters.shown == ("H", "F", "R", "L")
    press(viewer, "F7")
    assert dock.letters.shown == ("H", "F", "A", "P")
    viewer.dims.order = (0, 2, 1)
    assert dock.letters.shown == ("R", "L", "A", "P")
    viewer.dims.ndisplay = 3
    assert dock.letters.shown == ()
    viewer.dims.ndisplay = 2
    before = dock.letters.shown
    camera_of(viewer).orientation2d = ("up", "right")  # letters would be wrong
    assert dock.letters.shown == ()
    camera_of(viewer).orientation2d = ("down", "right")
    dock.toggle_views()
    assert dock.letters.shown == ()
    assert dock.views.panes["axial"].letters.shown == ("A", "P", "R", "L")
    dock.toggle_views()
    assert dock.letters.shown == before


def test_painting_and_undo_in_one_view_are_seen_in_all(qtbot, viewer, ct, dock, add_labels):
    from medseg_napari.editing.binding import start_editing

    labels = add_labels(made_labels(), "labels")
    before = labels.data.copy()
    dock.toggle_views()
    views = dock.views
    twins = {plane: views.panes[plane].twins[id(labels)].layer for plane in ("coronal", "sagittal")}
    for twin in twins.values():
        assert np.shares_memory(twin.data, labels.data)
    views.move_to(labels.data_to_world((10, 11, 12)))
    labels.paint((10, 2, 12), 2)
    assert (labels.data != before).any()

    def drawn(layer):
        """What is on a canvas, as labels: the slice that is uploaded."""
        return np.asarray(layer._slice.image.raw)

    np.testing.assert_array_equal(drawn(twins["sagittal"]), labels.data[:, :, 12])
    np.testing.assert_array_equal(drawn(twins["coronal"]), labels.data[:, 11])
    # in a twin, with its undo step in the layer's own history
    heard = []
    labels.events.paint.connect(heard.append)
    twins["coronal"].paint((3, 11, 20), 1)
    assert labels.data[3, 11, 20] == 1
    assert len(heard) == 1
    np.testing.assert_array_equal(drawn(labels), labels.data[10])
    assert len(labels._undo_history) == 2
    twins["sagittal"].undo()
    labels.undo()
    np.testing.assert_array_equal(labels.data, before)
    np.testing.assert_array_equal(drawn(twins["coronal"]), before[:, 11])
    twins["coronal"].redo()
    assert (labels.data != before).any()
    # how they are drawn is common too, and other voxels are taken over
    twins["coronal"].contour = 2
    assert labels.contour == twins["sagittal"].contour == 2
    labels.data = made_labels(2)
    assert all(twin.data is labels.data for twin in twins.values())
    labels.contour = 0
    # our brush draws in the new views, too, and leaves locked labels alone
    editing = start_editing(labels, autosave=False)
    before = labels.data.copy()
    views.move_to(labels.data_to_world((9, 14, 10)))
    editing.controller.tool = "brush"
    editing.controller.brush_mm = 6.0
    editing.controller.active = 1
    editing.controller.lock(2)
    model = views.panes["sagittal"].model
    pressed = []
    labels.bind_key("Shift-J", pressed.append)
    press(viewer, "Shift-J", in_model=model)
    assert len(pressed) == 1
    twin = views.panes["sagittal"].twins[id(labels)].layer
    assert model.layers.selection.active is twin
    assert not twin.mouse_pan  # a click draws and does not move the cursor
    drag(model, 1, [(5, 5)], position=labels.data_to_world((3, 14, 10)))
    assert labels.data[3, 14, 10] == 1
    assert before[3, 14, 10] == 0
    np.testing.assert_array_equal(labels.data[before == 2], 2)
    np.testing.assert_array_equal(drawn(twin), labels.data[:, :, 10])
    np.testing.assert_allclose(positions(views), labels.data_to_world((9, 14, 10)))
    # while an edit is computed nothing is drawn, and afterwards the history is one again
    steps = list(labels._undo_history)
    assert steps
    editing.hold()
    assert not twin.editable
    assert not labels._undo_history
    editing.let_go()
    assert twin.editable
    assert list(twin._undo_history) == steps
    assert twin._undo_history is labels._undo_history
    assert twin._redo_history is labels._redo_history
    editing.close()


def test_layers_come_and_go_in_all_views_and_closing_leaves_nothing(
    qtbot, viewer, ct, dock, add_labels
):
    from napari.qt import QtViewer

    def listeners():
        layers = [one for one in viewer.layers if one in (ct, first)]
        emitters = [e for one in layers for e in one.events.emitters.values()]
        emitters += [viewer.dims.events.point, viewer.dims.events.order]
        emitters += [viewer.layers.events.inserted, viewer.layers.events.removed]
        return sum(len(emitter.callbacks) for emitter in emitters)

    first = add_labels(made_labels(), "first")
    dock.compare._layers_changed()
    show = (viewer.dims.order, viewer.dims.ndisplay, viewer.window._qt_viewer.parentWidget())
    gc.collect()
    before, canvases = listeners(), len(QtViewer._instances)
    dock.toggle_views()
    views = dock.views
    assert len(QtViewer._instances) == canvases + 3
    second = add_labels(made_labels(1), "second")
    names = ["CT", "first", "second"]
    for model in views.models:
        assert [one.name for one in model.layers] == names
    viewer.layers.move(2, 0)
    first.name = "renamed"
    for model in views.models:
        assert [one.name for one in model.layers] == ["second", "CT", "renamed"]
    viewer.layers.remove(second)
    qtbot.waitUntil(lambda: views.surface._surface is not None, timeout=LONG_MS)
    surface = views.surface._surface
    ends = first.data_to_world((3.5, 4.5, 5.5)), first.data_to_world((13.5, 18.5, 15.5))
    assert (surface.data[0] > np.array(ends[0]) - 1).all()
    assert (surface.data[0] < np.array(ends[1]) + 1).all()
    colours = {tuple(one) for one in np.round(surface.vertex_colors, 3)}
    assert colours == {tuple(np.round(first.get_color(value), 3)) for value in (1, 2)}
    viewer.dims.set_point(0, first.data_to_world((7, 0, 0))[0])
    dock.toggle_views()
    qtbot.waitUntil(lambda: not views.surface._is_busy, timeout=LONG_MS)
    qtbot.wait(100)
    views = None
    del surface, model
    gc.collect()
    assert len(QtViewer._instances) == canvases
    assert listeners() == before
    now = (viewer.dims.order, viewer.dims.ndisplay, viewer.window._qt_viewer.parentWidget())
    assert now == show
    assert viewer.window._qt_viewer.isVisible()
    assert viewer.screenshot(flash=False).any()
    # and a second time, until the window itself is closed
    dock.toggle_views()


def test_presets_numbers_and_the_mouse_set_the_window_in_hu(viewer, ct, dock):
    brightness = dock.brightness
    brightness.choose("lung")
    assert tuple(ct.contrast_limits) == (-1350.0, 150.0)
    assert brightness.preset_box.currentText() == "lung"
    assert (brightness.centre.value(), brightness.width_box.value()) == (-600, 1500)
    assert brightness.unit.text() == "HU"
    brightness.centre.setValue(40)
    brightness.width_box.setValue(80)
    assert tuple(ct.contrast_limits) == (0.0, 80.0)
    assert brightness.preset_box.currentText() == "brain"
    drag(viewer, 2, [(100, 100), (150, 100)])
    assert tuple(ct.contrast_limits) == (0.0, 80.0)  # it zooms until it is switched on
    press(viewer, "W")
    assert brightness.mouse_check.isChecked()
    drag(viewer, 2, [(100, 100), (150, 60), (100, 100)])
    np.testing.assert_allclose(ct.contrast_limits, (0.0, 80.0))
    drag(viewer, 2, [(100, 100), (160, 100)])
    low, high = ct.contrast_limits
    assert high - low > 80
    assert (low + high) / 2 == pytest.approx(40)
    drag(viewer, 2, [(100, 100), (100, 60)])
    assert sum(ct.contrast_limits) / 2 > 40
    viewer.layers.remove(ct)
    assert brightness.image is None
    assert not brightness.preset_box.isEnabled()


def test_suv_presets_are_those_of_pet(viewer, dock, tmp_path):
    from pydicom import Dataset

    from medseg.io.scan import DicomSource

    headers = tuple(Dataset() for _ in range(GRID.shape_ijk[2]))
    for header in headers:
        header.Modality = "PT"
    source = DicomSource(tmp_path, headers, np.diag([1.0, 1.5, 2.0, 1.0]))
    origin = LayerOrigin.of(GRID, source)
    suv = np.random.default_rng(0).random(origin.shown_grid.shape_ijk).astype(np.float32) * 20
    layer = viewer.add_image(suv, **origin.layer_settings("PET"))
    dock.brightness.choose("SUV 0 to 15")
    assert tuple(layer.contrast_limits) == (0.0, 15.0)
    assert dock.brightness.unit.text() == "SUV"


def test_dice_follows_the_brush_and_the_difference_shows_it(
    qtbot, viewer, ct, dock, add_labels, monkeypatch
):
    reference = add_labels(made_labels(), "reference")
    edited = add_labels(made_labels(1), "edited")
    compare = dock.compare
    assert compare.layer is edited
    assert compare.boxes["reference"].currentText() == "reference"
    box = compare.boxes["model"]
    box.setCurrentIndex(box.findText("edited as it came"))
    settled(qtbot, dock)

    def maps(*layers):
        grid = reference.metadata[METADATA_KEY].shown_grid
        return [LabelMap(np.asarray(one.data), grid, SCHEME) for one in layers]

    def table():
        heads = [
            compare.table.horizontalHeaderItem(n).text() for n in range(compare.table.columnCount())
        ]
        return {
            compare.table.item(row, 0).text(): {
                head: compare.table.item(row, n).text() for n, head in enumerate(heads)
            }
            for row in range(compare.table.rowCount())
        }

    def check():
        expected = dice_by_label(*maps(edited, reference))
        for name, dice in expected.items():
            assert table()[name]["Dice\ncorr./ref."] == f"{dice:.3f}"

    check()
    assert {row["Dice\ncorr./model"] for row in table().values()} == {"1.000"}
    press(viewer, "D")
    difference = compare.difference_layer
    assert difference in viewer.layers
    assert viewer.layers.selection.active is edited
    expected = np.zeros(reference.data.shape, int)
    ours, theirs = edited.data.astype(int), reference.data.astype(int)
    expected[(ours != 0) & (theirs == 0)] = 1
    expected[(ours == 0) & (theirs != 0)] = 2
    expected[(ours != 0) & (theirs != 0) & (ours != theirs)] = 3
    np.testing.assert_array_equal(difference.data, expected)
    edited.paint(tuple(np.argwhere(edited.data == 1)[0]), 2)
    settled(qtbot, dock)
    check()
    assert table()["liver"]["Dice\ncorr./model"] != "1.000"
    edited.undo()
    settled(qtbot, dock)
    check()
    np.testing.assert_array_equal(difference.data, expected)
    compare.measure_hd95()
    settled(qtbot, dock)
    structures = label_structures(SCHEME)
    scores = measure_case(*maps(edited, reference), structures, EvaluationSettings())
    for score in scores:
        assert table()[score.structure]["HD95\nmm"] == f"{score.values['hd95_mm']:.1f}"
        assert table()[score.structure]["ml\nmore"] == f"{score.values['volume_error_ml']:+.2f}"
    press(viewer, "D")
    assert not difference.visible
    press(viewer, "D")
    assert difference.visible
    # on another grid: one sentence, and nothing is compared
    other = viewer.add_labels(np.zeros((3, 4, 5), np.uint8), name="other")
    box = compare.boxes["reference"]
    box.setCurrentIndex(box.findText("other"))
    assert "compare images that lie on one grid" in compare.message.text()
    assert compare.table.rowCount() == 0
    assert difference not in viewer.layers
    viewer.layers.remove(other)
    viewer.layers.remove(edited)
    assert compare.boxes["reference"].currentText() == "-"


def test_key_n_goes_to_the_most_doubtful_slice_and_on(qtbot, viewer, ct, dock, add_labels):
    labels = add_labels(made_labels(), "labels")
    origin = labels.metadata[METADATA_KEY]
    entropy = np.zeros(labels.data.shape, np.uint8)
    inside = np.argwhere(labels.data)
    low, high = inside.min(axis=0), inside.max(axis=0)
    worst, second = low[0] + 1, high[0] - 1
    entropy[worst, low[1] : low[1] + 5, low[2] : low[2] + 5] = 250
    entropy[second, low[1] : low[1] + 3, low[2] : low[2] + 3] = 200
    data, settings, _ = doubt_layer(entropy, origin, "doubt")
    doubt = viewer.add_image(data, **settings)
    viewer.layers.selection = {labels}

    def shown():
        return int(viewer.dims.current_step[0])

    press(viewer, "N")
    settled(qtbot, dock)
    assert shown() == worst
    press(viewer, "N")
    assert shown() == second
    press(viewer, "Shift-N")
    assert shown() == worst
    assert dock.doubt.list.currentRow() == 0
    dock.doubt.list.setCurrentRow(1)
    dock.doubt._clicked(dock.doubt.list.item(1))
    assert shown() == second
    # with four views the cursor goes to the spot itself
    dock.toggle_views()
    press(viewer, "Shift-N", in_model=dock.views.models[0])
    settled(qtbot, dock)
    voxel = np.round(doubt.world_to_data(dock.views.point)).astype(int)
    assert entropy[tuple(voxel)] == 250
    # across another axis it is another slice
    dock.toggle_views()
    dock.show_sagittal()
    press(viewer, "N")
    settled(qtbot, dock)
    assert {one.axis for one in dock.doubt.walk.slices} == {2}
    assert entropy[:, :, viewer.dims.current_step[2]].any()


def test_without_doubt_key_n_goes_where_two_maps_differ_most(qtbot, viewer, dock, add_labels):
    press(viewer, "N")
    assert "compare two labels layers" in dock.doubt.about.text()
    reference = add_labels(made_labels(), "reference")
    edited = add_labels(made_labels(), "edited")
    edited.data_setitem(
        tuple(index.ravel() for index in np.mgrid[9:10, 0:6, 0:6]), 1 - edited.data[9, 0, 0]
    )
    edited.data_setitem(tuple(index.ravel() for index in np.mgrid[15:16, 0:3, 0:3]), 1)
    settled(qtbot, dock)
    dock.compare.refresh()
    settled(qtbot, dock)
    press(viewer, "N")
    assert viewer.dims.current_step[0] == 9
    press(viewer, "N")
    assert viewer.dims.current_step[0] == 15
    edited.data[...] = reference.data
    dock.compare.count_again()
    settled(qtbot, dock)
    press(viewer, "N")
    assert "do not differ" in dock.doubt.about.text()


def test_every_listed_key_is_bound_and_goes_with_the_dock(qtbot, viewer, ct, dock, add_labels):
    from medseg_napari.viewing.keys import KEYS, keys_in_words

    labels = add_labels(made_labels(), "labels")
    text = dock.keys.text()
    assert all(press in text and words in text for press, words in keys_in_words())
    assert len({key.press for key in KEYS}) == len(KEYS)
    # none of them is taken by what is selected
    for layer in (ct, labels):
        taken = {str(binding).lower() for binding in (*layer.keymap, *layer.class_keymap)}
        assert not taken & {key.press.lower().replace("-", "+") for key in KEYS}
    press(viewer, "U")
    assert labels.contour == 1
    assert add_labels(made_labels(1), "another").contour == 1
    dock.overlay.thickness.setValue(3)
    dock.overlay.opacity.setValue(40)
    assert (labels.contour, labels.opacity) == (3, 0.4)
    press(viewer, "U")
    assert labels.contour == 0
    dock.toggle_views()
    views, before = dock.views, len(viewer.keymap)
    settled(qtbot, dock)
    dock.setParent(None)
    dock.deleteLater()
    qtbot.waitUntil(lambda: not views.is_open, timeout=LONG_MS)
    assert len(viewer.keymap) == before - len(KEYS)
    assert not any(one.__module__.startswith("medseg") for one in viewer.mouse_drag_callbacks)
    labels.paint((5, 5, 5), 1)
    viewer.layers.remove(labels)


def test_the_names_of_the_sliders_can_be_read_whole_in_four_views(qtbot, viewer, ct, dock):
    viewer.window._qt_window.resize(1400, 900)
    dock.toggle_views()
    sliders = {
        plane: dock.views.widgets[plane].dims.slider_widgets[axis]
        for plane, axis in (("coronal", 1), ("sagittal", 2))
    }

    def whole():
        labels = [slider.axis_label for slider in sliders.values()]
        return all(one.fontMetrics().horizontalAdvance(one.text()) < one.width() for one in labels)

    qtbot.waitUntil(whole, timeout=20_000)
    assert {plane: slider.axis_label.text() for plane, slider in sliders.items()} == {
        plane: plane for plane in sliders
    }
    dock.toggle_views()
