"""The patient's sides at the edges of a canvas, as on a light box: A, P, R, L, H, F."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg_napari._origin import origin_of
from medseg_napari._worker import Listening

__all__ = ["Letters", "WindowLetters", "has_sides", "sides_of"]

_SIDES = {0: ("H", "F"), 1: ("A", "P"), 2: ("R", "L")}
"""Where the axes I, P, L begin and end, in DICOM's letters (PS3.3 C.7.6.1.1.1)."""

_COLOUR = (1.0, 0.85, 0.35, 1.0)
_MARGIN_PX = 14
_SIZE_PT = 10


def sides_of(displayed: Sequence[int]) -> tuple[str, str, str, str]:
    """Letters for the top, the bottom, the left and the right of a plane.

    Args:
        displayed: The axis that runs down and the one to the right, of I, P, L.
    """
    down, right = displayed
    return (*_SIDES[down], *_SIDES[right])


def has_sides(layers: Any) -> bool:  # noqa: ANN401 - napari's
    """Whether the axes are the patient's: where a layer was opened with medseg."""
    return any(origin_of({"metadata": layer.metadata}) is not None for layer in layers)


class Letters:
    """The letters on one canvas.

    Args:
        canvas: napari's canvas of vispy.
    """

    def __init__(self, canvas: Any) -> None:  # noqa: ANN401 - napari's
        from vispy.scene.visuals import Text  # type: ignore[import-untyped] # noqa: PLC0415

        self._canvas = canvas
        font = getattr(canvas, "_font_info", None)  # napari's, so that no glyph is made twice
        own = {} if font is None else {"font_manager": font.font_manager, "face": font.face}
        self._letters: tuple[str, ...] = ()
        self._text = Text(
            list("    "), color=_COLOUR, font_size=_SIZE_PT, bold=True, parent=canvas.view, **own
        )
        self._text.visible = False
        self._resized = canvas._scene_canvas.events.resize
        self._resized.connect(self._place)

    def show(self, displayed: Sequence[int], *, visible: bool) -> None:
        """Write the letters of a plane; none in a view of the whole."""
        letters = sides_of(displayed) if visible and len(displayed) == 2 else ()
        if letters != self._letters:
            self._letters = letters
            self._text.visible = bool(letters)
            if letters:
                self._text.text = list(letters)
                self._place()

    @property
    def shown(self) -> tuple[str, ...]:
        """What can be read: top, bottom, left and right."""
        return self._letters

    def _place(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - vispy's
        width, height = self._canvas._scene_canvas.size
        self._text.pos = [
            (width / 2, _MARGIN_PX),
            (width / 2, height - _MARGIN_PX),
            (_MARGIN_PX, height / 2),
            (width - _MARGIN_PX, height / 2),
        ]

    def close(self) -> None:
        """Take them off the canvas."""
        self._resized.disconnect(self._place)
        self._text.parent = None


class WindowLetters:
    """The letters on the window's own canvas, kept up to date with what it shows.

    Args:
        viewer: The viewer.
        camera: Its camera.
        listening: Of the dock that they are there with.
    """

    def __init__(self, viewer: Any, camera: Any, listening: Listening) -> None:  # noqa: ANN401
        self._viewer = viewer
        self._camera = camera
        self._are_wanted = True
        self._letters = Letters(viewer.window._qt_viewer.canvas)
        dims, layers = viewer.dims.events, viewer.layers.events
        for event in (dims.order, dims.ndisplay, dims.ndim, layers.inserted, layers.removed):
            listening.to(event, self._refresh)
        if hasattr(camera.events, "orientation"):
            listening.to(camera.events.orientation, self._refresh)
        self._refresh()

    @property
    def shown(self) -> tuple[str, ...]:
        """What can be read: top, bottom, left and right."""
        return self._letters.shown

    def want(self, wanted: bool) -> None:
        """Write them, or leave the canvas to somebody else's letters."""
        self._are_wanted = wanted
        self._refresh()

    def _refresh(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        viewer = self._viewer
        ours = viewer.dims.ndim == len(_SIDES) and has_sides(viewer.layers)
        visible = self._are_wanted and ours and _is_upright(self._camera)
        self._letters.show(viewer.dims.displayed, visible=visible)

    def close(self) -> None:
        """Take them off the canvas."""
        self._letters.close()


def _is_upright(camera: Any) -> bool:  # noqa: ANN401 - napari's
    """Whether axes run down and to the right, as napari has them unless told otherwise."""
    directions = getattr(camera, "orientation2d", ("down", "right"))
    return [str(getattr(one, "value", one)) for one in directions] == ["down", "right"]
