"""What an edit may touch: locked labels, labels to paint over, a range of intensities."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ConfigError, ShapeError
from medseg_napari.editing.boxes import Box, LabelArray, Mask

__all__ = ["FREE", "ONLY_BACKGROUND", "IntensityRange", "Rules", "check_image"]


@dataclass(frozen=True, slots=True, eq=False)
class IntensityRange:
    """Voxels of an image with intensities from ``low`` to ``high``, both included.

    Args:
        image: ``(i, p, l)``, on the grid of the labels.
        low: In the units of the image.
        high: In the units of the image.

    Raises:
        ConfigError: ``edit-range`` if ``low`` is above ``high`` or one of them is not a number.
    """

    image: npt.NDArray[Any]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ConfigError(
                "intensity range",
                expected="a lower end that is not above the upper end",
                found=f"{self.low:g} to {self.high:g}",
                remedy="swap or correct the ends",
                code="edit-range",
            )

    def holds(self, box: Box) -> Mask:
        """Which voxels of a box are in the range."""
        part = self.image[box]
        inside: Mask = (part >= self.low) & (part <= self.high)
        return inside


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """What an edit may change. Every edit obeys all of them.

    Args:
        locked: Labels whose voxels neither lose nor gain anything; 0 locks the background.
        over: Labels that may be overwritten, 0 for background; None for all that are not locked.
        within: Only voxels in this range of intensities are changed.
    """

    locked: frozenset[int] = frozenset()
    over: frozenset[int] | None = None
    within: IntensityRange | None = None

    def check_target(self, value: int, name: str = "") -> None:
        """Refuse to draw with a label that is locked.

        Raises:
            ConfigError: ``label-locked``.
        """
        if value in self.locked:
            raise ConfigError(
                f"label {name or value!r}" if value else "background",
                expected="a label that is not locked",
                found="a locked label",
                remedy="unlock it in the label table or choose another label",
                code="label-locked",
            )

    def also_over(self, *values: int) -> Rules:
        """The same rules for an edit that is about these labels, which it may overwrite."""
        if self.over is None:
            return self
        return Rules(self.locked, self.over | {*values}, self.within)

    def restrict(self, mask: Mask, here: LabelArray, box: Box) -> None:
        """Take out of ``mask`` what may not be changed.

        Args:
            mask: Changed in place.
            here: The labels of the box.
            box: Where the mask lies.
        """
        if self.locked:
            mask &= _open_to_change(self.locked, None, here.dtype)[here]
        if self.over is not None:
            mask &= _open_to_change(frozenset(), self.over, here.dtype)[here]
        if self.within is not None:
            mask &= self.within.holds(box)

    def check_fits(self, labels: LabelArray) -> None:
        """Refuse an image on another grid.

        Raises:
            ShapeError: ``edit-image``.
        """
        if self.within is not None:
            check_image(self.within.image, labels)


def check_image(image: npt.NDArray[Any], labels: LabelArray) -> None:
    """Refuse an image on another grid than the labels.

    Raises:
        ShapeError: ``edit-image``.
    """
    if image.shape != labels.shape:
        raise ShapeError(
            "image of the edit",
            expected=f"an image of shape {labels.shape}, that of the labels",
            found=f"an image of shape {image.shape}",
            remedy="choose the image that the labels were made on",
            code="edit-image",
        )


@functools.lru_cache(maxsize=64)
def _open_to_change(
    locked: frozenset[int], over: frozenset[int] | None, dtype: np.dtype[Any]
) -> Mask:
    """For every value of a type whether voxels of it may change."""
    size = int(np.iinfo(dtype).max) + 1
    table: Mask = np.full(size, over is None)
    if over is not None:
        table[[value for value in over if 0 <= value < size]] = True
    table[[value for value in locked if 0 <= value < size]] = False
    return table


FREE = Rules()
"""Everything may be changed."""

ONLY_BACKGROUND = Rules(over=frozenset({0}))
"""Only background may be overwritten: other labels are respected."""
