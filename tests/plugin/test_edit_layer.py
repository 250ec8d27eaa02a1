"""Edits on napari's own labels layer, without a window: its history, its tools, its events."""

# ruff: noqa: PLC0415 - napari takes seconds to import

from types import SimpleNamespace

import numpy as np
import pytest

from medseg.core import LabelScheme
from medseg.errors import FormatError
from medseg_napari.editing import brush, morphology
from medseg_napari.editing.binding import identity_of, start_editing
from tests.plugin.sources import oblique_grid, write_nifti_image

SCHEME = LabelScheme.plain("organs", {1: "liver", 2: "spleen", 3: "kidney"})


def editing_on(data, scale=(2.0, 1.0, 0.5), autosave=False, **given):
    from napari.layers import Labels

    layer = Labels(data, scale=scale, **given)
    return layer, start_editing(layer, scheme=SCHEME, autosave=autosave)


def blank(dtype=np.uint8):
    return np.zeros((12, 20, 24), dtype=dtype)


def mouse(layer, points, shown=(1, 2), button=1):
    """Press, moves and release at voxels, as napari's canvas sends them."""
    event = SimpleNamespace(
        type="mouse_press",
        button=button,
        position=tuple(layer.data_to_world(points[0])),
        dims_displayed=list(shown),
        view_direction=None,
    )
    running = [callback(layer, event) for callback in layer.mouse_drag_callbacks]
    running = [one for one in running if one is not None]

    def advance():
        for one in list(running):
            if next(one, "end") == "end":
                running.remove(one)

    advance()
    event.type = "mouse_move"
    for point in points[1:]:
        event.position = tuple(layer.data_to_world(point))
        advance()
    event.type = "mouse_release"
    advance()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_drag_of_the_mouse_paints_in_millimetres_and_is_one_undo_of_the_layer(dtype, axis):
    layer, editing = editing_on(blank(dtype))
    editing.controller.tool, editing.controller.brush_mm = "brush", 5
    assert not layer.mouse_pan
    shown = [other for other in range(3) if other != axis]
    mouse(layer, [(6, 5, 5), (6, 8, 9), (6, 12, 15)] if axis == 0 else [(6, 10, 12)], shown)
    plain = blank(dtype)
    for start, stop in (
        [((6, 5, 5), (6, 8, 9)), ((6, 8, 9), (6, 12, 15))]
        if axis == 0
        else [((6, 10, 12), (6, 10, 12))]
    ):
        brush.paint(plain, 1, start, stop, size_mm=5, spacing_mm=(2, 1, 0.5), axis=axis).apply(
            plain
        )
    np.testing.assert_array_equal(layer.data, plain)
    assert len(layer._undo_history) == 1
    layer.undo()
    assert not layer.data.any()
    layer.redo()
    np.testing.assert_array_equal(layer.data, plain)


def test_edits_and_naparis_own_tools_share_one_history():
    layer, editing = editing_on(blank())
    controller = editing.controller
    states = [layer.data.copy()]

    def step():
        states.append(layer.data.copy())
        np.testing.assert_array_equal(
            controller.labels_table.counts[:4],
            [int((layer.data == value).sum()) for value in range(4)],
        )

    layer.brush_size = 6
    layer.paint((6, 5, 5), 1)
    step()
    controller.run(morphology.grow, 1, by_mm=2, spacing_mm=controller.spacing_mm)
    step()
    layer.n_edit_dimensions = 3
    layer.fill((0, 0, 0), 2)
    step()
    layer.data_setitem((np.array([1, 2, 2]), np.array([0, 3, 3]), np.array([4, 4, 4])), 3)
    step()
    controller.merge_labels(2, 1)
    step()
    with layer.block_history():
        for place in range(3, 15):
            layer.paint((4, place, place), 3)
    step()
    assert len(layer._undo_history) == 6
    for expected in states[-2::-1]:
        layer.undo()
        np.testing.assert_array_equal(layer.data, expected)
    assert controller.scheme == SCHEME
    assert not controller.modified
    for expected in states[1:]:
        layer.redo()
        np.testing.assert_array_equal(layer.data, expected)
    assert controller.modified


def test_naparis_tools_leave_locked_labels_as_they_are():
    data = blank()
    data[6, :, :12] = 2
    layer, editing = editing_on(data.copy())
    editing.controller.lock(2)
    layer.brush_size = 12
    layer.paint((6, 10, 12), 1)
    np.testing.assert_array_equal(layer.data == 2, data == 2)
    assert (layer.data == 1).any()
    layer.undo()
    np.testing.assert_array_equal(layer.data, data)
    layer.paint((6, 10, 3), 1)
    np.testing.assert_array_equal(layer.data, data)
    assert len(layer._undo_history) == 0
    layer.paint_polygon([[6, 2, 2], [6, 2, 20], [6, 18, 20], [6, 18, 2]], 3)
    np.testing.assert_array_equal(layer.data == 2, data == 2)
    assert (layer.data == 3).any()


def test_steps_from_before_are_taken_in_and_take_little_memory():
    from napari.layers import Labels

    layer = Labels(np.zeros((30, 200, 200), dtype=np.uint8))
    layer.n_edit_dimensions = 3
    layer.fill((0, 0, 0), 1)
    layer.brush_size = 50
    layer.paint((15, 100, 100), 2)
    layer.paint((15, 50, 100), 3)
    layer.undo()
    editing = start_editing(layer, autosave=False)
    controller = editing.controller
    held = sum(
        atom[1].piece.nbytes
        for history in (layer._undo_history, layer._redo_history)
        for step in history
        for atom in step
    )
    assert held < 50_000
    layer.redo()
    assert controller.labels_table.counts[3] == (layer.data == 3).sum() > 0
    for _ in range(3):
        layer.undo()
    assert not layer.data.any()
    assert controller.modified


def test_a_step_of_unknown_form_makes_the_labels_be_counted_anew():
    layer, editing = editing_on(blank())
    layer.data[0, 0, 0] = 3
    layer._save_history(("what", 0, 1, "more"))
    assert editing.controller.labels_table.counts[3] == 1


def test_the_last_hundred_steps_are_kept():
    layer, editing = editing_on(blank())
    for step in range(105):
        at = (step % 12, step % 20, step % 24)
        editing.controller.run(
            brush.paint, 1 + step % 3, at, size_mm=1, spacing_mm=editing.controller.spacing_mm
        )
    for _ in range(100):
        layer.undo()
    assert len(layer._redo_history) == 100
    assert layer.data.any()


def test_label_colour_selection_and_mode_follow_each_other():
    layer, editing = editing_on(blank())
    controller = editing.controller
    layer.selected_label = 3
    assert controller.active == 3
    controller.active = 2
    assert layer.selected_label == 2
    controller.recolour_label(2, (255, 0, 51))
    np.testing.assert_allclose(layer.get_color(2), (1, 0, 0.2, 1), atol=1e-3)
    controller.show(2, False)
    assert layer.get_color(2)[3] == 0
    controller.tool, controller.brush_mm = "eraser", 12
    assert (layer.cursor, layer.cursor_size, layer.mouse_pan) == ("circle", 12, False)
    layer.mode = "paint"
    assert controller.tool == "none"
    controller.tool = "brush"
    assert str(layer.mode) == "pan_zoom"
    controller.tool = "none"
    assert (layer.cursor, layer.mouse_pan) == ("standard", True)


def test_other_buttons_and_no_tool_draw_nothing():
    layer, editing = editing_on(blank())
    mouse(layer, [(6, 5, 5), (6, 9, 9)])
    editing.controller.tool = "brush"
    mouse(layer, [(6, 5, 5), (6, 9, 9)], button=2)
    assert not layer.data.any()


def test_in_three_dimensions_the_eraser_works_on_the_first_label_that_is_seen():
    data = blank()
    data[4:8, 5:15, 6:18] = 1
    layer, editing = editing_on(data, scale=(1.0, 1.0, 1.0))
    layer._slice_dims(__import__("napari").components.Dims(ndim=3, ndisplay=3))
    editing.controller.tool, editing.controller.brush_mm = "eraser", 3
    event = SimpleNamespace(
        type="mouse_press",
        button=1,
        position=(-50.0, 10.0, 12.0),
        dims_displayed=[0, 1, 2],
        view_direction=np.array([1.0, 0.0, 0.0]),
    )
    at, axis = editing._place(event)
    assert axis is None
    assert at == [4, 10, 12]
    event.position = (-50.0, 1.0, 1.0)
    assert editing._place(event) == (None, None)


def test_an_array_that_is_put_into_the_layer_is_counted():
    layer, editing = editing_on(blank())
    layer.data = np.full((12, 20, 24), 3, dtype=np.uint8)
    assert editing.controller.labels_table.counts[3] == 12 * 20 * 24


def test_wide_layers_are_narrowed_and_others_refused():
    from napari.layers import Labels

    layer = Labels(blank(np.int64))
    start_editing(layer, autosave=False)
    assert layer.data.dtype == np.uint8
    with pytest.raises(
        FormatError, match=r"expected labels of type uint8 or uint16 .* found 2 axes"
    ):
        start_editing(Labels(np.zeros((4, 4), dtype=int)), autosave=False)
    wide = blank(np.int32)
    wide[0, 0, 0] = 70000
    with pytest.raises(FormatError, match="found type int32"):
        start_editing(Labels(wide), autosave=False)


def test_closing_gives_the_layer_back_with_its_history():
    layer, editing = editing_on(blank())
    editing.controller.run(
        brush.paint, 1, (6, 5, 5), size_mm=3, spacing_mm=editing.controller.spacing_mm
    )
    editing.close()
    layer.undo()
    assert not layer.data.any()
    layer.redo()
    assert layer.data.any()
    assert layer.undo.__func__ is type(layer).undo


def test_a_layer_read_by_medseg_keeps_its_table_and_is_autosaved(tmp_path, monkeypatch):
    from napari.layers import Labels

    from medseg.io.reading import read_image_or_labels
    from medseg_napari._layers import labels_layer
    from medseg_napari._origin import origin_of
    from medseg_napari.editing import autosave

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(autosave, "_runs", lambda header: False)
    path = tmp_path / "labels.nii.gz"
    write_nifti_image(path, oblique_grid())
    data, settings, _ = labels_layer(read_image_or_labels(path), "labels", str(path), scheme=None)
    layer = Labels(data, **settings)
    editing = start_editing(layer)
    controller = editing.controller
    grid = origin_of({"metadata": layer.metadata}).grid
    assert controller.labels_table.voxel_ml == pytest.approx(grid.voxel_volume_mm3 / 1000)
    controller.rename_label(controller.active, "renamed")
    kept = origin_of({"metadata": layer.metadata}).scheme
    assert kept.by_value(controller.active).name == "renamed"
    controller.remove_label(controller.active)
    editing.autosave.flush()
    edited = layer.data.copy()
    editing.close()  # not saved
    [left] = autosave.recoverable()
    read_again = Labels(data.copy(), **settings)
    read_again.data[:] = labels_layer(read_image_or_labels(path), "labels", str(path))[0]
    again = start_editing(read_again)
    assert left.header.key == autosave.source_key(
        identity_of(origin_of({"metadata": read_again.metadata}))
    )
    again.recover(left)
    np.testing.assert_array_equal(read_again.data, edited)
    assert again.controller.modified
    assert again.controller.effort.to_dict() == controller.effort.to_dict()
    [now] = autosave.recoverable()
    assert now.folder != left.folder
    again.controller.undo()
    assert (read_again.data != edited).any()
    again.saved()
    assert not again.controller.modified
    assert autosave.recoverable() == []
    again.close()
