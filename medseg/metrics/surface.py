"""Distances between the surfaces of two masks, in the patient's millimetres.

Three conventions of what a surface is and how a percentile is taken are in use, and their figures
differ; all three are here:

=========  ================================  =================================  ==================
name       surface                           percentile                         of both directions
=========  ================================  =================================  ==================
elements   pieces with areas between voxels  least distance within which so     the larger one
                                             much of the area lies
monai      voxels with a face neighbour      linear between ranks               the larger one
           outside, each counting alike
medpy      as monai                          linear between ranks               taken together
=========  ================================  =================================  ==================

``elements`` is the definition of Nikolov et al. 2018 (arXiv:1809.04430), see
:mod:`medseg.metrics.surfels`; its figures do not depend on how finely a flat surface is sampled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import spatial

from medseg.errors import ShapeError
from medseg.metrics.kernels import edge_voxels, squared_distances, surface_cells
from medseg.metrics.surfels import surfel_areas

__all__ = ["Convention", "SurfaceDistances", "surface_distances"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int32]
Convention = Literal["elements", "monai", "medpy"]

_SLAB_CELLS = 1 << 22
_UPRIGHT_DEG = 0.05  # below it axes count as perpendicular: headers round to about 1e-6
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceDistances:
    """From every piece of either surface the way to the nearest piece of the other.

    Where one mask is empty, the other's distances are infinite; where both are, there are none.

    Args:
        to_reference_mm: ``(n,)`` for the pieces of the predicted surface.
        to_prediction_mm: ``(m,)`` for those of the reference's.
        prediction_weights: ``(n,)`` areas in square millimetres, or ones for edge voxels.
        reference_weights: ``(m,)`` likewise.
        convention: How the figures are taken from them.
    """

    to_reference_mm: Floats
    to_prediction_mm: Floats
    prediction_weights: Floats
    reference_weights: Floats
    convention: Convention = "elements"

    def hausdorff_mm(self, percentile: float = 100.0) -> float:
        """Hausdorff distance, or a percentile of it such as 95.

        Returns:
            Infinity where one mask is empty, NaN where both are.
        """
        one, other = self.to_reference_mm, self.to_prediction_mm
        if not (one.size and other.size):
            return math.inf if one.size or other.size else math.nan
        if self.convention == "medpy":
            return float(np.percentile(np.concatenate([one, other]), percentile))
        if self.convention == "monai":
            return float(max(np.percentile(one, percentile), np.percentile(other, percentile)))
        return max(
            _weighted_percentile(one, self.prediction_weights, percentile),
            _weighted_percentile(other, self.reference_weights, percentile),
        )

    def mean_mm(self) -> float:
        """Average symmetric surface distance: the mean over the pieces of both surfaces together.

        Returns:
            Infinity where one mask is empty, NaN where both are.
        """
        one, other = self.to_reference_mm, self.to_prediction_mm
        if not (one.size and other.size):
            return math.inf if one.size or other.size else math.nan
        total = self.prediction_weights.sum() + self.reference_weights.sum()
        along = one @ self.prediction_weights + other @ self.reference_weights
        return float(along / total)

    def directed_means_mm(self) -> tuple[float, float]:
        """Mean distance from the predicted surface to the reference's, and back.

        Returns:
            NaN for a surface that does not exist, infinity for the other one then.
        """
        return (
            _mean(self.to_reference_mm, self.prediction_weights),
            _mean(self.to_prediction_mm, self.reference_weights),
        )

    def surface_dice(self, tolerance_mm: float) -> float:
        """Normalised surface Dice: the share of both surfaces that is near the other one.

        Args:
            tolerance_mm: A piece at exactly this distance is near.

        Returns:
            0 to 1; 0 where one mask is empty, NaN where both are.
        """
        total = float(self.prediction_weights.sum() + self.reference_weights.sum())
        if total == 0:
            return math.nan
        # 7 steps of 0.1 mm are 0.7 mm, whatever binary fractions make of it
        limit = tolerance_mm * (1.0 + _ROUNDING)
        near = self.prediction_weights[self.to_reference_mm <= limit].sum()
        near += self.reference_weights[self.to_prediction_mm <= limit].sum()
        return float(near / total)


def surface_distances(
    prediction: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    axes_mm: npt.ArrayLike,
    *,
    convention: Convention = "elements",
    threads: int = 1,
) -> SurfaceDistances:
    """Distances between the surfaces of two masks on one grid; exact.

    What lies beyond the image's edge is outside, so that a structure cut off there has a surface
    there.

    Args:
        prediction: ``(i, j, k)`` bool, or integers of which all but 0 are inside.
        reference: The same for the truth.
        axes_mm: ``(3, 3)``, a grid's ``affine_ras[:3, :3]`` (oblique and sheared grids are right),
            or ``(3,)`` spacing. Ones measure in voxels.
        convention: What a surface is, see the table in the module.
        threads: Run on so many threads.

    Raises:
        ShapeError: If the masks differ in shape or are not three-dimensional.
    """
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise ShapeError(
            "surface distances",
            expected="two masks of one three-dimensional shape",
            found=f"shapes {prediction.shape} and {reference.shape}",
            remedy="bring them to one grid; give a slice a third axis of one voxel",
            code="masks-differ",
        )
    steps = np.asarray(axes_mm, dtype=np.float64)
    steps = np.diag(steps) if steps.ndim == 1 else steps
    order = np.argsort([-abs(stride) for stride in prediction.strides], kind="stable")
    steps = steps[:, order]
    surfaces = [
        _Surface.of(mask.transpose(order), steps, convention) for mask in (prediction, reference)
    ]
    one, other = surfaces
    if not (len(one.points) and len(other.points)):
        distances = [np.full(len(surface.points), np.inf) for surface in surfaces]
    elif _sheared(steps):
        distances = [_by_tree(one, other, steps, threads), _by_tree(other, one, steps, threads)]
    else:
        distances = _by_transform(one, other, steps, threads)
    return SurfaceDistances(distances[0], distances[1], one.weights, other.weights, convention)


@dataclass(frozen=True, slots=True, eq=False)
class _Surface:
    """Lattice points with weights, last axis fastest."""

    points: Points
    weights: Floats

    @classmethod
    def of(cls, mask: npt.NDArray[Any], steps: Floats, convention: Convention) -> _Surface:
        box = _box(mask)
        if box is None:
            return cls(np.empty((0, 3), dtype=np.int32), np.empty(0))
        inside = mask[box]
        padded = np.zeros([extent + 2 for extent in inside.shape], dtype=np.uint8)
        np.not_equal(inside, 0, out=padded[1:-1, 1:-1, 1:-1].view(np.bool_))
        corner = np.array([part.start for part in box], dtype=np.int32)
        if convention == "elements":
            points, codes = surface_cells(padded)
            return cls(points + corner, surfel_areas(steps)[codes])
        points = edge_voxels(padded)
        return cls(points + corner, np.ones(len(points)))


def _box(mask: npt.NDArray[Any]) -> tuple[slice, ...] | None:
    """The bounding box, narrowed axis by axis."""
    box: list[slice] = []
    for axis in range(3):
        part = mask[tuple(box)]
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(part.any(axis=others))
        if not filled.size:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _sheared(steps: Floats) -> bool:
    units = steps / np.linalg.norm(steps, axis=0)
    cosines = np.abs(units.T @ units)[~np.eye(3, dtype=bool)]
    return bool(cosines.max() > math.sin(math.radians(_UPRIGHT_DEG)))


def _by_tree(queries: _Surface, sites: _Surface, steps: Floats, threads: int) -> Floats:
    tree = spatial.cKDTree(sites.points @ steps.T)
    distances, _ = tree.query(queries.points @ steps.T, workers=threads)
    return np.asarray(distances, dtype=np.float64)


def _by_transform(one: _Surface, other: _Surface, steps: Floats, threads: int) -> list[Floats]:
    lowest = np.minimum(one.points.min(axis=0), other.points.min(axis=0))
    shifted = [surface.points - lowest for surface in (one, other)]
    extents = np.maximum(shifted[0].max(axis=0), shifted[1].max(axis=0)) + 1
    spacing = np.linalg.norm(steps, axis=0)
    cells = int(np.prod(extents, dtype=np.int64))
    slabs = min(int(extents[2]), max(math.ceil(cells / _SLAB_CELLS), threads))
    edges = [int(extents[2]) * n // slabs for n in range(slabs + 1)]
    squares = [np.empty(len(points)) for points in shifted]

    def work(direction: int, first: int, stop: int) -> None:
        queries, sites = shifted[direction], shifted[1 - direction]
        if slabs == 1:
            squares[direction] = squared_distances(
                queries, sites, int(extents[1]), first, stop, spacing
            )
            return
        here = np.flatnonzero((queries[:, 2] >= first) & (queries[:, 2] < stop))
        squares[direction][here] = squared_distances(
            queries[here], sites, int(extents[1]), first, stop, spacing
        )

    parts = [(d, first, stop) for d in (0, 1) for first, stop in itertools.pairwise(edges)]
    _run(work, parts, threads)
    return [np.sqrt(square) for square in squares]


def _run(work: Any, parts: Sequence[tuple[int, int, int]], threads: int) -> None:  # noqa: ANN401
    if threads == 1:
        for part in parts:
            work(*part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *part) for part in parts]:
            done.result()


def _weighted_percentile(distances: Floats, weights: Floats, percentile: float) -> float:
    """The least distance within which at least that share of the weight lies."""
    if percentile >= 100:
        return float(distances.max())
    order = np.argsort(distances)
    shares = np.cumsum(weights[order]) / weights.sum()
    rank = int(np.searchsorted(shares, percentile / 100.0))
    return float(distances[order[min(rank, len(order) - 1)]])


def _mean(distances: Floats, weights: Floats) -> float:
    return float(distances @ weights / weights.sum()) if distances.size else math.nan
