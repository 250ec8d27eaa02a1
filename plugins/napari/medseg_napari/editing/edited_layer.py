"""What an editor needs of a layer of labels."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medseg.errors import FormatError
from medseg_napari.editing.boxes import LabelArray
from medseg_napari.editing.change import Change
from medseg_napari.editing.table import LabelTable

__all__ = ["EditedLayer", "check_editable"]


class EditedLayer(Protocol):
    """What a controller needs of a layer."""

    @property
    def data(self) -> LabelArray:
        """``(i, p, l)`` of type uint8 or uint16; written to in place."""
        ...

    def record(self, change: Change) -> None:
        """Keep a change that was made as one undo step."""

    def undo(self) -> Change | None:
        """Undo the last step.

        Returns:
            Its change, an empty one if it is not known, or None if there is no step.
        """
        ...

    def redo(self) -> Change | None:
        """Make the step that was last undone again; returns as :meth:`undo`."""
        ...

    def redraw(self, change: Change) -> None:
        """Show what a change made."""

    def recolour(self, labels: LabelTable) -> None:
        """Show the colours and the visibility of a label table."""


def check_editable(labels: npt.NDArray[Any]) -> None:
    """Refuse what cannot be edited.

    Raises:
        FormatError: ``edit-array`` unless the labels are a three-dimensional array in memory, of
            type uint8 or uint16, that can be written to.
    """
    if not isinstance(labels, np.ndarray):
        found = f"data of type {type(labels).__name__}"
    elif labels.ndim != 3:
        found = f"{labels.ndim} axes"
    elif labels.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        found = f"type {labels.dtype}"
    elif not labels.flags.writeable:
        found = "an array that is read only"
    else:
        return
    raise FormatError(
        "labels layer",
        expected="labels of type uint8 or uint16 in an array of three axes that can be written to",
        found=found,
        remedy="open the labels with medseg, or make new ones on an image opened with medseg",
        code="edit-array",
    )
