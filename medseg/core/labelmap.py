"""A segmentation: one integer per voxel, with the scheme that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid
from medseg.core.scheme import LabelScheme
from medseg.errors import ShapeError

__all__ = ["LabelMap"]


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """One integer per voxel on a grid; valid once built.

    Args:
        data_ijk: ``(i, j, k)`` of type uint8 or uint16; 0 is background.
        grid: Where the voxels are.
        scheme: What the integers mean.

    Raises:
        ShapeError: If array and grid do not fit, the type is neither uint8 nor uint16, or a voxel
            holds a value that the scheme does not list.
    """

    data_ijk: npt.NDArray[Any]
    grid: Grid
    scheme: LabelScheme

    def __post_init__(self) -> None:
        data = self.data_ijk
        if data.ndim != 3 or data.shape != self.grid.shape_ijk:
            raise ShapeError(
                "label map",
                expected=f"an array of shape {self.grid.shape_ijk}",
                found=f"shape {data.shape}",
                remedy="use the grid the labels lie on",
                code="labelmap-shape",
            )
        if data.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ShapeError(
                "label map",
                expected="type uint8 or uint16",
                found=f"type {data.dtype}",
                remedy="round and convert the labels first",
                code="labelmap-type",
            )
        strangers = sorted(set(present_values(data)) - {0, *self.scheme.values})
        if strangers:
            raise ShapeError(
                "label map",
                expected=f"only 0 and the values {list(self.scheme.values)}",
                found=f"also {strangers[:10]}",
                remedy="use the label scheme that the map was made with",
                code="labelmap-values",
            )

    @property
    def array(self) -> npt.NDArray[Any]:
        """The data; its last three axes are I, J, K."""
        return self.data_ijk

    def on_grid(self, data_ijk: npt.NDArray[Any], grid: Grid) -> LabelMap:
        """The same scheme with other data on another grid."""
        return LabelMap(data_ijk, grid, self.scheme)

    def volumes_ml(self) -> dict[str, float]:
        """Volume of every structure of the scheme in millilitres, 0.0 where it is absent."""
        counts = label_counts(self.data_ijk)
        voxel_ml = self.grid.voxel_volume_mm3 / 1000.0
        return {label.name: float(counts[label.value]) * voxel_ml for label in self.scheme.labels}


def label_counts(data: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of voxels of every value that an unsigned integer type can hold.

    Returns:
        ``(256,)`` or ``(65536,)`` int64.
    """
    # any contiguous order will do; a view without copy where there is one
    flat = data.ravel(order="K")
    counts = np.zeros(int(np.iinfo(data.dtype).max) + 1, dtype=np.int64)
    for start in range(0, flat.size, 1 << 20):  # counting widens to 8 bytes a voxel: in parts
        counts += np.bincount(flat[start : start + (1 << 20)], minlength=counts.size)
    return counts


def present_values(data: npt.NDArray[Any]) -> list[int]:
    """The distinct values of an unsigned integer array, in rising order."""
    flat = data.ravel(order="K")
    seen = np.zeros(int(np.iinfo(data.dtype).max) + 1, dtype=np.bool_)
    seen[flat[:1]] = True
    for start in range(0, flat.size, 1 << 20):
        # labels lie in runs: only where one ends can there be a value that was not seen before
        part = flat[start : start + (1 << 20) + 1]
        seen[part[1:][part[1:] != part[:-1]]] = True
    return [int(value) for value in np.flatnonzero(seen)]
