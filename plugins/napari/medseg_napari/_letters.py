"""The patient's sides at the edges of a canvas, as on a light box: A, P, R, L, H, F."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg_napari._origin import origin_of

__all__ = ["Letters", "has_sides", "sides_of"]

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
