"""Voxel data together with the grid it lies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from medseg.core.grid import Grid
from medseg.errors import ShapeError

__all__ = ["Volume"]


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """An image of one or more channels on one grid; valid once built.

    The array is kept as given (no copy) and may be of any integer or real floating type, so that a
    16-bit CT stays 16-bit in memory.

    Args:
        data_cijk: ``(c, i, j, k)`` intensities (Hounsfield units for CT, arbitrary for MR).
        grid: Where the voxels are.
        channels: One name per channel, such as ``("T1", "FLAIR")``.

    Raises:
        ShapeError: If array, grid and channel names do not fit, or the type is not a real number.
    """

    data_cijk: npt.NDArray[Any]
    grid: Grid
    channels: tuple[str, ...] = ("image",)

    def __post_init__(self) -> None:
        data = self.data_cijk
        if data.ndim != 4 or data.shape[1:] != self.grid.shape_ijk:
            extents = ", ".join(map(str, self.grid.shape_ijk))
            raise ShapeError(
                "volume",
                expected=f"an array of shape (channels, {extents})",
                found=f"shape {data.shape}",
                remedy="put the channel axis first and use the grid the array lies on",
                code="volume-shape",
            )
        if data.shape[0] != len(self.channels):
            raise ShapeError(
                "volume",
                expected=f"one name for each of {data.shape[0]} channels",
                found=f"{len(self.channels)} names",
                remedy="name every channel",
                code="volume-channels",
            )
        if data.dtype.kind not in "iuf":
            raise ShapeError(
                "volume",
                expected="integer or floating voxels",
                found=f"type {data.dtype}",
                remedy="convert colour or complex images to one number per voxel",
                code="volume-type",
            )

    @property
    def array(self) -> npt.NDArray[Any]:
        """The data; its last three axes are I, J, K."""
        return self.data_cijk

    def on_grid(self, data_cijk: npt.NDArray[Any], grid: Grid) -> Volume:
        """The same channels with other data on another grid."""
        return Volume(data_cijk, grid, self.channels)
