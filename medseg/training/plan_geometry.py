"""Axes, spacing and depth of a network that a dataset's geometry asks for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from medseg.core import SLICES_LAST
from medseg.data.fingerprint import Fingerprint
from medseg.data.preparation import THICK_RATIO

__all__ = ["Geometry", "Stage", "Triple", "choose_geometry", "pooling_stages", "shared_levels"]

Triple = tuple[int, int, int]

LEAST_MAP = 4
"""Fewest voxels of the coarsest map along a pooled axis (nnU-Net's figure)."""

_ALIKE = 2.0
_FINE_SHARE = 10


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where a model of a dataset works.

    Args:
        orientation: ``RAS``, or ``slices_last`` where slices lie across different axes.
        spacing_mm: Target spacing on its axes.
        median_ijk: Middle extents of the training cases at that spacing.
        least_ijk: Smallest extents of any.
        thick_axis: The axis across thick slices; None if none is more than three times as thick as
            the finest is wide.
        spacing_reason: Why this spacing, in words.
        orientation_reason: Why this orientation, in words.
        voxels: Voxels of all training cases at that spacing.
    """

    orientation: str
    spacing_mm: tuple[float, float, float]
    median_ijk: Triple
    least_ijk: Triple
    thick_axis: int | None
    spacing_reason: str
    orientation_reason: str
    voxels: int

    @property
    def most_ijk(self) -> Triple:
        """Largest window: the median case, but at most one and a half times the smallest one.

        An image below half of the window is refused, see
        :func:`~medseg.data.preparation.check_extent`, and cases to come may be smaller.
        """
        i, j, k = (
            min(median, 3 * least // 2)
            for median, least in zip(self.median_ijk, self.least_ijk, strict=True)
        )
        return i, j, k


def choose_geometry(
    fingerprint: Fingerprint, spacing_mm: tuple[float, float, float] | None = None
) -> Geometry:
    """Orientation and target spacing.

    The spacing is the median on each axis. Where that of the worst axis is more than three times
    that of the others, and the extent across it less than a third, it is the 10th percentile there,
    but not finer than the next one: nnU-Net's rule (Isensee et al., Nature Methods 2021), which
    keeps thin slices from being thrown away.

    Args:
        fingerprint: Of the training cases.
        spacing_mm: To be used instead, on the axes of the orientation.
    """
    orientation, orientation_reason = _orientation(fingerprint)
    spacings_mm = fingerprint.spacings_mm(orientation)
    shapes = fingerprint.shapes(orientation)
    if spacing_mm is None:
        spacing_mm, spacing_reason = _spacing(spacings_mm, shapes)
    else:
        spacing_reason = "as asked for"
    resampled = np.maximum(1, np.rint(shapes * spacings_mm / np.array(spacing_mm))).astype(int)
    i, j, k = (max(1, round(float(extent))) for extent in np.median(resampled, axis=0))
    least = resampled.min(axis=0).tolist()
    thickest = max(range(3), key=lambda axis: spacing_mm[axis])
    is_thick = max(spacing_mm) > THICK_RATIO * min(spacing_mm)
    return Geometry(
        orientation=orientation,
        spacing_mm=spacing_mm,
        median_ijk=(i, j, k),
        least_ijk=(least[0], least[1], least[2]),
        thick_axis=thickest if is_thick else None,
        spacing_reason=spacing_reason,
        orientation_reason=orientation_reason,
        voxels=int(np.prod(resampled, axis=1).sum()),
    )


def _orientation(fingerprint: Fingerprint) -> tuple[str, str]:
    spacings_mm = fingerprint.spacings_mm("RAS")
    thick = spacings_mm.max(axis=1) > THICK_RATIO * spacings_mm.min(axis=1)
    across = Counter(spacings_mm[thick].argmax(axis=1).tolist())
    if 2 * int(thick.sum()) <= len(thick):
        return "RAS", "most cases have no thick slices"
    if len(across) == 1:
        return "RAS", f"the slices of all cases lie across axis {'ijk'[next(iter(across))]}"
    return SLICES_LAST, "slices are thick and lie across different axes from case to case"


def _spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> tuple[tuple[float, float, float], str]:
    target = np.median(spacings_mm, axis=0)
    extents = np.median(shapes * spacings_mm / target, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    reason = "median of the training cases"
    if (
        target[worst] > THICK_RATIO * target[others].max()
        and THICK_RATIO * extents[worst] < extents[others].min()
    ):
        fine = float(np.percentile(spacings_mm[:, worst], _FINE_SHARE))
        target[worst] = max(fine, float(target[others].max()))
        reason += f"; {_FINE_SHARE}th percentile across the thick slices, as nnU-Net"
    i_mm, j_mm, k_mm = (round(float(step), 4) for step in target)
    return (i_mm, j_mm, k_mm), reason


@dataclass(frozen=True, slots=True)
class Stage:
    """Kernel and stride of one stage of a U-Net's encoder, finest first."""

    kernel: Triple
    stride: Triple


def pooling_stages(
    window_ijk: Triple, spacing_mm: tuple[float, float, float], most_poolings: int
) -> tuple[Stage, ...]:
    """Stages of a U-Net whose axes are pooled when their spacings are alike, as nnU-Net does.

    An axis is halved while at least :data:`LEAST_MAP` voxels are left and its spacing is below
    twice the finest one; its kernel is 3 voxels wide from the stage on where its spacing is, and 1
    before.

    >>> [stage.stride for stage in pooling_stages((192, 192, 48), (0.76, 0.76, 3.0), 5)]
    [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 1)]
    """
    extents, spacing = [float(extent) for extent in window_ijk], list(spacing_mm)
    wide = [False, False, False]
    stages: list[Stage] = []
    stride = [1, 1, 1]
    while True:
        finest = min(spacing)
        wide = [was or spacing[axis] < _ALIKE * finest for axis, was in enumerate(wide)]
        i, j, k = (3 if is_wide else 1 for is_wide in wide)
        stages.append(Stage((i, j, k), (stride[0], stride[1], stride[2])))
        able = [axis for axis in range(3) if extents[axis] >= 2 * LEAST_MAP]
        if not able or len(stages) > most_poolings:
            break
        finest = min(spacing[axis] for axis in able)
        pooled = [axis for axis in able if spacing[axis] < _ALIKE * finest]
        stride = [2 if axis in pooled else 1 for axis in range(3)]
        for axis in pooled:
            extents[axis] /= 2
            spacing[axis] *= 2
    return tuple(stages)


def shared_levels(window_ijk: Triple, thick_axis: int | None, most_levels: int) -> int:
    """Levels of a U-Net that halves all axes alike.

    The coarsest map keeps :data:`LEAST_MAP` voxels along each axis, half as many across thick
    slices.
    """
    levels = 1
    while levels < most_levels and all(
        extent >= 2**levels * (LEAST_MAP // 2 if axis == thick_axis else LEAST_MAP)
        for axis, extent in enumerate(window_ijk)
    ):
        levels += 1
    return levels
