"""Edits in a real napari window: what is drawn is on the canvas, Ctrl+Z takes it back."""

import numpy as np
import pytest

from medseg_napari.editing import morphology
from medseg_napari.editing.binding import start_editing

pytestmark = pytest.mark.gui


def opened(viewer, labels):
    layer = viewer.add_labels(labels, scale=(2.0, 1.0, 1.0), opacity=1.0)
    viewer.reset_view()
    return layer, start_editing(layer)


def shown(viewer):
    """Which pixels of the canvas are coloured."""
    shot = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    return int((shot.max(axis=-1) - shot.min(axis=-1) > 40).sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_strokes_show_on_the_canvas_and_go_with_the_undo_key(viewer, qtbot, axis):
    labels = np.zeros((20, 40, 40), dtype=np.uint8)
    layer, editing = opened(viewer, labels)
    viewer.dims.order = [axis, *(other for other in range(3) if other != axis)]
    viewer.dims.set_current_step(axis, 10)
    viewer.reset_view()
    editing.controller.tool, editing.controller.brush_mm = "brush", 12
    assert shown(viewer) == 0
    at = [12.0, 12.0, 12.0]
    at[axis] = 10.0  # the slice that is shown
    editing.controller.press(at, axis)
    editing.controller.drag([10, 28, 28] if axis == 0 else at)
    in_stroke = shown(viewer)
    assert in_stroke > 100
    editing.controller.end_stroke()
    before = layer.data.copy()
    editing.controller.run(morphology.grow, 1, by_mm=4, spacing_mm=editing.controller.spacing_mm)
    assert shown(viewer) > in_stroke
    viewer.layers.selection.active = layer
    for key in layer.class_keymap:
        if str(key) in ("Ctrl+Z", "Meta+Z"):
            layer.class_keymap[key](layer)
    np.testing.assert_array_equal(layer.data, before)
    layer.undo()
    assert shown(viewer) == 0
    assert not layer.data.any()
    editing.close()


def test_the_mouse_paints_where_it_is(viewer, qtbot):
    from napari.utils._test_utils import read_only_mouse_event  # noqa: PLC0415
    from napari.utils.interactions import (  # noqa: PLC0415
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

    layer, editing = opened(viewer, np.zeros((20, 40, 40), dtype=np.uint8))
    editing.controller.tool, editing.controller.brush_mm = "brush", 6
    for kind, send, position in (
        ("mouse_press", mouse_press_callbacks, (20.0, 10.0, 10.0)),
        ("mouse_move", mouse_move_callbacks, (20.0, 30.0, 10.0)),
        ("mouse_release", mouse_release_callbacks, (20.0, 30.0, 10.0)),
    ):
        send(
            layer,
            read_only_mouse_event(
                type=kind,
                is_dragging=True,
                position=position,
                view_direction=None,
                dims_displayed=[1, 2],
                button=1,
            ),
        )
    assert (layer.data[10, 10:31, 10] == 1).all()
    assert not layer.data[[9, 11]].any()
    assert not layer.mouse_pan
    editing.close()


def test_through_the_proxy_that_plugins_get(viewer):
    from napari.utils._proxies import PublicOnlyProxy  # noqa: PLC0415

    labels = np.zeros((20, 40, 40), dtype=np.uint16)
    viewer.add_labels(labels)
    layer = PublicOnlyProxy(viewer).layers[0]
    editing = start_editing(layer)
    editing.controller.tool = "brush"
    editing.controller.press((10, 12, 12), 0)
    editing.controller.end_stroke()
    layer.undo()
    assert not labels.any()
    editing.close()
