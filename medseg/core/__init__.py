"""Geometry and labels, on numpy alone."""

from medseg.core.extent import crop, crop_grid, pad, pad_grid
from medseg.core.grid import Grid
from medseg.core.labelmap import LabelMap
from medseg.core.lean import Lean
from medseg.core.orientation import SLICES_LAST, AxisTurn, axis_turn, reorient, turn
from medseg.core.scheme import Code, Label, LabelScheme
from medseg.core.spacing import respace_grid, respace_shape
from medseg.core.volume import Volume

__all__ = [
    "SLICES_LAST",
    "AxisTurn",
    "Code",
    "Grid",
    "Label",
    "LabelMap",
    "LabelScheme",
    "Lean",
    "Volume",
    "axis_turn",
    "crop",
    "crop_grid",
    "pad",
    "pad_grid",
    "reorient",
    "respace_grid",
    "respace_shape",
    "turn",
]
