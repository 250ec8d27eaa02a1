"""The right mouse button as a knob for centre and width of the brightness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from napari.layers import Labels

from medseg_napari._display import Window
from medseg_napari._four_views import camera_of
from medseg_napari.viewing.windows import dragged

__all__ = ["MouseWindow", "window_shown"]


def window_shown(image: Any) -> Window:  # noqa: ANN401 - napari's
    """The window that an image layer is drawn with."""
    low, high = (float(limit) for limit in image.contrast_limits)
    return Window((low + high) / 2, high - low)


class MouseWindow:
    """Changes the brightness of an image while the right button is held.

    Args:
        image: Which image; asked when the button is pressed.
    """

    def __init__(self, image: Callable[[], Any]) -> None:
        self._image = image
        self.is_on = False
        self._models: list[Any] = []

    def attach(self, model: Any) -> None:  # noqa: ANN401 - napari's
        """Listen to the mouse on a viewer's canvas."""
        model.mouse_drag_callbacks.append(self._on_drag)
        self._models.append(model)

    def detach(self, model: Any = None) -> None:  # noqa: ANN401 - napari's
        """Listen no more to a viewer, or to all."""
        for one in [one for one in self._models if model is None or one is model]:
            with suppress(ValueError):
                one.mouse_drag_callbacks.remove(self._on_drag)
            self._models.remove(one)

    def _on_drag(self, model: Any, event: Any) -> Iterator[None]:  # noqa: ANN401 - napari's
        active = model.layers.selection.active
        draws = isinstance(active, Labels) and str(active.mode) != "pan_zoom"
        image = self._image()
        if not self.is_on or event.button != 2 or image is None or draws:
            return  # napari's own brush has a use for this button
        camera = camera_of(model)
        could_pan, camera.mouse_pan = camera.mouse_pan, False  # which zooms with this button
        before, (x, y) = window_shown(image), event.pos[:2]
        try:
            yield
            while event.type == "mouse_move":
                image.contrast_limits = dragged(before, event.pos[0] - x, y - event.pos[1]).limits
                yield
        finally:
            camera.mouse_pan = could_pan
