"""A badge on the canvas for images whose axes are not the patient's."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

from medseg_napari._origin import origin_of

__all__ = ["badge_of", "show_badges", "show_badges_of_current_viewer", "text_of"]

_MARK = "oblique"
_watched: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def badge_of(layers: Iterable[Any]) -> str:
    """What a viewer should say of layers: nothing, or by how much they are oblique."""
    origins = [origin_of({"metadata": layer.metadata}) for layer in layers]
    angles = [one.oblique_deg for one in origins if one is not None and one.is_oblique]
    if not angles:
        return ""
    # three short lines, so that the letter of the patient's side beside them can be read
    return f"{_MARK} by {max(angles):.1f} degrees:\ndrawn along its own axes,\nsaved where it lies"


def text_of(viewer: Any) -> Any:  # noqa: ANN401 - napari's
    """The text on the canvas of a viewer, as napari 0.9 keeps it and as earlier ones do."""
    canvas = getattr(viewer, "canvas", None)
    return viewer.text_overlay if canvas is None else canvas.overlays.text


def show_badges(viewer: Any) -> None:  # noqa: ANN401 - napari's, which need not be loaded here
    """Keep the badge of a viewer up to date with the layers that are visible.

    A text that somebody else wrote on the canvas stays.
    """
    viewer = getattr(viewer, "__wrapped__", viewer)
    layers = viewer.layers
    if _watched.get(id(layers)) is layers:
        return
    _watched[id(layers)] = layers

    def refresh(event: Any = None) -> None:  # noqa: ANN401, ARG001 - napari's
        overlay = text_of(viewer)
        if overlay.text and not overlay.text.startswith(_MARK):
            return
        text = badge_of(layer for layer in layers if layer.visible)
        overlay.text = text
        overlay.visible = bool(text)

    def watch(event: Any) -> None:  # noqa: ANN401 - napari's
        event.value.events.visible.connect(refresh)
        refresh()

    for layer in layers:
        layer.events.visible.connect(refresh)
    layers.events.inserted.connect(watch)
    layers.events.removed.connect(refresh)
    refresh()


def show_badges_of_current_viewer() -> None:
    """As :func:`show_badges`, if napari is running."""
    napari = sys.modules.get("napari")
    viewer = napari.current_viewer() if napari is not None else None
    if viewer is not None:
        show_badges(viewer)
