"""Where a segmentation is in doubt: entropy per structure, and the slices to look at first.

Predictive entropy comes as one byte per voxel: ``round(255 * H / log n)`` for ``n`` classes, so
that 255 is the doubt of a network that finds every class equally likely, and 0 is none. Everything
here goes block by block along the slice axis; no copy of the volume is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid, closest_axes
from medseg.core.labelmap import LabelMap
from medseg.core.orientation import SLICES_LAST, axis_turn
from medseg.errors import ConfigError, ShapeError

__all__ = [
    "DoubtfulSlice",
    "UncertaintySummary",
    "distinct_peaks",
    "mean_entropy_per_label",
    "rank_doubtful_slices",
    "slice_axis",
    "summarise_uncertainty",
]

Bytes = npt.NDArray[np.uint8]

BACKGROUND = "background"
"""Name given to a doubtful slice in a segmentation without a single labelled voxel."""

_LEAST_SHARE = 0.05
_RIM_MM = 3.0
_APART_MM = 5.0
_BLOCK_SLICES = 16


@dataclass(frozen=True, slots=True)
class DoubtfulSlice:
    """One slice worth a second look.

    Args:
        axis_name: Voxel axis across which the slice lies: ``i``, ``j`` or ``k``.
        index: Its index on that axis, counted from 0, on the grid of the label map.
        position_mm: Millimetres of the slice's centre along the world axis (R, A or S) nearest to
            that voxel axis.
        mean_entropy: Mean entropy over the segmented region of the slice and its rim, 0 to 1.
        label: Name of the structure that gathers most of the slice's entropy.
    """

    axis_name: str
    index: int
    position_mm: float
    mean_entropy: float
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class UncertaintySummary:
    """How much a segmentation is in doubt, and where; valid once built.

    Args:
        per_label: Mean entropy (0 to 1) over the voxels of every structure that has any, by name.
        slices: Doubtful slices, the most doubtful first.
        entropy_ijk: ``(i, j, k)`` uint8 on the label map's grid, 255 the largest possible entropy;
            None where it was not kept.

    Raises:
        ShapeError: If ``entropy_ijk`` is not three-dimensional uint8.
    """

    per_label: Mapping[str, float]
    slices: tuple[DoubtfulSlice, ...]
    entropy_ijk: Bytes | None = None

    def __post_init__(self) -> None:
        if self.entropy_ijk is not None:
            _check_bytes(self.entropy_ijk, 3)


def slice_axis(grid: Grid) -> int:
    """The voxel axis across which slices lie: that of the largest spacing, else head-foot.

    Spacings within 1 % of each other count as equal.
    """
    return axis_turn(grid, SLICES_LAST).source_axes[2]


def summarise_uncertainty(
    entropy_ijk: Bytes, labels: LabelMap, *, axis: int | None = None, count: int = 6
) -> UncertaintySummary:
    """Mean entropy per structure and the ranked list of doubtful slices.

    Args:
        entropy_ijk: ``(i, j, k)`` uint8 on the grid of ``labels``; kept, not copied.
        labels: The segmentation.
        axis: Voxel axis across which slices are taken, 0 to 2; None takes :func:`slice_axis`.
        count: Largest number of slices in the list.

    Raises:
        ConfigError: If ``axis`` is not 0, 1 or 2, or ``count`` is negative.
        ShapeError: If the entropy is not uint8 of the label map's extents.
    """
    return UncertaintySummary(
        mean_entropy_per_label(entropy_ijk, labels),
        rank_doubtful_slices(entropy_ijk, labels, axis=axis, count=count),
        entropy_ijk,
    )


def mean_entropy_per_label(entropy_ijk: Bytes, labels: LabelMap) -> dict[str, float]:
    """Mean entropy (0 to 1) over the voxels of every structure; those without voxels are left out.

    Args:
        entropy_ijk: ``(i, j, k)`` uint8 on the grid of ``labels``.
        labels: The segmentation.

    Raises:
        ShapeError: If the entropy is not uint8 of the label map's extents.
    """
    _check_bytes(entropy_ijk, labels.data_ijk.shape)
    bins = max(labels.scheme.values) + 1
    voxels = np.zeros(bins, dtype=np.int64)
    totals = np.zeros(bins)
    outer = int(np.argmax(np.abs(labels.data_ijk.strides)))
    for _, label_sij, entropy_sij in _blocks(labels.data_ijk, entropy_ijk, outer):
        for label_ij, slice_ij in zip(label_sij, entropy_sij, strict=True):
            inside = label_ij != 0  # counting widens to 8 bytes a voxel: slice by slice
            values = label_ij[inside]
            voxels += np.bincount(values, minlength=bins)
            totals += np.bincount(values, weights=slice_ij[inside], minlength=bins)
    return {
        label.name: float(totals[label.value] / voxels[label.value] / 255.0)
        for label in labels.scheme.labels
        if voxels[label.value]
    }


def rank_doubtful_slices(
    entropy_ijk: Bytes, labels: LabelMap, *, axis: int | None = None, count: int = 6
) -> tuple[DoubtfulSlice, ...]:
    """The slices that gather most entropy in and round the segmentation, most doubtful first.

    A slice's score is the sum of the entropy over its region: the voxels that are labelled there or
    in one of the two neighbouring slices, and a rim of 3 mm (at least one voxel) round them within
    the slice. The rim holds what may have been missed, the neighbours the slice after the end of a
    structure. Each voxel of the region counts to the structure nearest to it. Slices
    within 5 mm of one already listed, and its neighbours in any case, are passed over, so that the
    list names distinct places; slices with less than a twentieth of the first one's score are not
    listed. If nothing at all is
    labelled, every voxel belongs to the region.

    Args:
        entropy_ijk: ``(i, j, k)`` uint8 on the grid of ``labels``.
        labels: The segmentation.
        axis: Voxel axis across which slices are taken, 0 to 2; None takes :func:`slice_axis`.
        count: Largest number of slices in the list.

    Raises:
        ConfigError: If ``axis`` is not 0, 1 or 2, or ``count`` is negative.
        ShapeError: If the entropy is not uint8 of the label map's extents.
    """
    _check_bytes(entropy_ijk, labels.data_ijk.shape)
    grid = labels.grid
    along = slice_axis(grid) if axis is None else axis
    if along not in (0, 1, 2) or count < 0:
        raise ConfigError(
            "doubtful slices",
            expected="an axis of 0, 1 or 2 and a count of at least 0",
            found=f"axis {axis}, count {count}",
            remedy="leave the axis out to take the slice axis of the image",
            code="doubtful-slices",
        )
    rim_vox = [
        max(1, round(_RIM_MM / step))
        for other, step in enumerate(grid.spacing_mm)
        if other != along
    ]
    values = np.array([0, *labels.scheme.values])
    scores = np.zeros(grid.shape_ijk[along])
    sizes = np.zeros(grid.shape_ijk[along])
    owners = np.zeros(grid.shape_ijk[along], dtype=np.int64)
    empty = not labels.data_ijk.any()
    for first, label_sij, entropy_sij in _blocks(labels.data_ijk, entropy_ijk, along, margin=1):
        for offset in range(label_sij.shape[0] - 2):
            region, box = _region(label_sij[offset : offset + 3], rim_vox, whole=empty)
            if region is None:
                continue
            entropy = entropy_sij[(offset + 1, *box)]
            if empty:
                shares, voxels = np.array([float(entropy.sum())]), entropy.size
            else:
                inside = region != 0
                shares = np.bincount(
                    region[inside], weights=entropy[inside], minlength=int(values[-1]) + 1
                )
                voxels = int(inside.sum())
            index = first + offset
            scores[index], sizes[index] = shares.sum(), voxels
            owners[index] = shares.argmax()
    apart = max(1, round(_APART_MM / grid.spacing_mm[along]))
    return tuple(
        DoubtfulSlice(
            "ijk"[along],
            index,
            _position_mm(grid, along, index),
            float(scores[index] / sizes[index] / 255.0),
            labels.scheme.by_value(int(owners[index])).name if owners[index] else BACKGROUND,
        )
        for index in distinct_peaks(scores, apart, count)
    )


def _blocks(
    label_ijk: npt.NDArray[Any], entropy_ijk: Bytes, axis: int, margin: int = 0
) -> Iterator[tuple[int, npt.NDArray[Any], Bytes]]:
    """Runs of slices as ``(s, i, j)``, with ``margin`` slices of zeros or neighbours at both ends.

    Copying a run at a time reads each cache line once where the slice axis is the fastest one.
    """
    label_sij, entropy_sij = np.moveaxis(label_ijk, axis, 0), np.moveaxis(entropy_ijk, axis, 0)
    extent = label_sij.shape[0]
    for first in range(0, extent, _BLOCK_SLICES):
        last = min(extent, first + _BLOCK_SLICES)
        low, high = max(0, first - margin), min(extent, last + margin)
        ends = ((margin - (first - low), margin - (high - last)), (0, 0), (0, 0))
        yield first, np.pad(label_sij[low:high], ends), np.pad(entropy_sij[low:high], ends)


def _region(
    label_3ij: npt.NDArray[Any], rim_vox: list[int], *, whole: bool
) -> tuple[npt.NDArray[Any] | None, tuple[slice, slice]]:
    """The nearest label of every voxel in and round the segmentation of one slice.

    Args:
        label_3ij: The slice between its two neighbours.
        rim_vox: Width of the rim on both axes.
        whole: Take the whole slice, whatever is labelled.

    Returns:
        Labels within a box, 0 outside the region (None if the slice has no region), and the box.
    """
    before, here, after = label_3ij
    everything = (slice(0, here.shape[0]), slice(0, here.shape[1]))
    if whole:
        return here, everything
    inside = (here != 0) | (before != 0) | (after != 0)
    box = []
    for axis, rim in enumerate(rim_vox):
        filled = np.flatnonzero(inside.any(axis=1 - axis))
        if not filled.size:
            return None, everything
        box.append(slice(max(0, int(filled[0]) - rim), int(filled[-1]) + rim + 1))
    cut = (box[0], box[1])
    grown = here[cut].copy()
    for neighbour in (before[cut], after[cut]):
        np.copyto(grown, neighbour, where=grown == 0)
    for step in range(max(rim_vox)):
        for axis, rim in enumerate(rim_vox):
            if step < rim:
                _spread(np.moveaxis(grown, axis, 0))
    return grown, cut


def _spread(label_ab: npt.NDArray[Any]) -> None:
    """Let labels grow by one voxel into zeros, both ways along the first axis, in place."""
    old = label_ab.copy()
    np.copyto(label_ab[1:], old[:-1], where=old[1:] == 0)
    np.copyto(label_ab[:-1], old[1:], where=label_ab[:-1] == 0)


def distinct_peaks(
    scores: npt.NDArray[np.float64], apart: int, count: int, *, least_share: float = _LEAST_SHARE
) -> list[int]:
    """Indices of the largest scores above 0, each more than ``apart`` from those before it.

    Args:
        scores: ``(n,)``, none below 0.
        apart: In indices.
        count: Largest number of them.
        least_share: Scores up to this share of the largest are left out.
    """
    left = scores.copy()
    chosen: list[int] = []
    least = least_share * left.max()
    while len(chosen) < count and left.max() > least:
        index = int(left.argmax())
        chosen.append(index)
        left[max(0, index - apart) : index + apart + 1] = 0
    return chosen


def _position_mm(grid: Grid, axis: int, index: int) -> float:
    centre = [(extent - 1) / 2 for extent in grid.shape_ijk]
    centre[axis] = index
    return float(grid.world_from_voxel(centre)[closest_axes(grid)[axis][0]])


def _check_bytes(entropy_ijk: npt.NDArray[Any], shape: int | tuple[int, ...]) -> None:
    fits = entropy_ijk.ndim == shape if isinstance(shape, int) else entropy_ijk.shape == shape
    if not fits or entropy_ijk.dtype != np.uint8:
        wanted = f"{shape} dimensions" if isinstance(shape, int) else f"shape {shape}"
        raise ShapeError(
            "entropy",
            expected=f"an array of uint8 with {wanted}",
            found=f"{entropy_ijk.dtype} of shape {entropy_ijk.shape}",
            remedy="scale entropy to 0..255 on the grid of the label map",
            code="entropy-shape",
        )
