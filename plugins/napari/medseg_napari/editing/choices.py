"""What the user has chosen: tool, size, what to paint over, a range of intensities."""

from __future__ import annotations

from typing import Literal

from psygnal import Signal

from medseg_napari.editing import brush
from medseg_napari.editing.rules import IntensityRange

__all__ = ["Choices", "PaintOver", "Tool"]

Tool = Literal[
    "none", "brush", "eraser", "fill", "scribble inside", "scribble outside", "pick", "point"
]
PaintOver = Literal["everything", "background"]


class Choices:
    """The choices that edits are made by."""

    chosen = Signal(str)
    """A choice is another: ``active``, ``tool``, ``brush_mm``, ``in_3d``, ``paint_over``,
    ``erase_all``, ``within``, ``modified`` or ``scribbles``."""

    def __init__(self) -> None:
        self._tool: Tool = "none"
        self._brush_mm = 10.0
        self._in_3d = False
        self._paint_over: PaintOver = "everything"
        self._erase_all = False
        self._within: IntensityRange | None = None

    @property
    def tool(self) -> Tool:
        """What the mouse does."""
        return self._tool

    @tool.setter
    def tool(self, tool: Tool) -> None:
        self._choose("tool", tool)

    @property
    def brush_mm(self) -> float:
        """Diameter of brush and eraser."""
        return self._brush_mm

    @brush_mm.setter
    def brush_mm(self, size_mm: float) -> None:
        brush.check_length("brush size", size_mm)
        self._choose("brush_mm", float(size_mm))

    @property
    def in_3d(self) -> bool:
        """Whether brush, eraser and fill work in three dimensions or in the slice."""
        return self._in_3d

    @in_3d.setter
    def in_3d(self, in_3d: bool) -> None:
        self._choose("in_3d", bool(in_3d))

    @property
    def paint_over(self) -> PaintOver:
        """What brush and fill may overwrite: ``everything`` not locked, or ``background``."""
        return self._paint_over

    @paint_over.setter
    def paint_over(self, what: PaintOver) -> None:
        self._choose("paint_over", what)

    @property
    def erase_all(self) -> bool:
        """Whether the eraser takes all labels away or the active one alone."""
        return self._erase_all

    @erase_all.setter
    def erase_all(self, erase_all: bool) -> None:
        self._choose("erase_all", bool(erase_all))

    @property
    def within(self) -> IntensityRange | None:
        """The range of intensities that edits are limited to; None for no limit."""
        return self._within

    @within.setter
    def within(self, within: IntensityRange | None) -> None:
        self._choose("within", within)

    def _choose(self, name: str, value: object) -> None:
        if getattr(self, f"_{name}") is not value:
            setattr(self, f"_{name}", value)
            self.chosen.emit(name)
