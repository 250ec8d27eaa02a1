"""All figures of one case: every structure in one pass over the label maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, LabelMap
from medseg.errors import GeometryError
from medseg.metrics.kernels import count_pairs
from medseg.metrics.lesions import match_lesions
from medseg.metrics.settings import EvaluationSettings, metrics_of
from medseg.metrics.structures import Structure
from medseg.metrics.surface import SurfaceDistances, surface_distances

__all__ = ["State", "StructureScores", "check_one_grid", "image_diagonal_mm", "measure_case"]

State = Literal["both", "neither", "only reference", "only prediction", "no prediction"]
Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StructureScores:
    """The figures of one structure in one case.

    Args:
        structure: Its name.
        state: Which of the two maps has it; "no prediction" where the case has no second map.
        values: Name of a metric to its value; NaN is left out of means.
        reference_ml: Volume in the reference.
        prediction_ml: Volume in the prediction, NaN where there is none.
        lesions: Connected pieces of the reference, of the prediction, and matched ones; None where
            they were not counted.
    """

    structure: str
    state: State
    values: dict[str, float]
    reference_ml: float
    prediction_ml: float
    lesions: tuple[int, int, int] | None


def measure_case(
    prediction: LabelMap | None,
    reference: LabelMap,
    structures: Sequence[Structure],
    settings: EvaluationSettings,
    *,
    threads: int = 1,
) -> tuple[StructureScores, ...]:
    """Score a prediction against the truth.

    Args:
        prediction: On the reference's grid; None where the case was not predicted.
        reference: The truth.
        structures: What is scored; members may overlap.
        settings: By which rules.
        threads: Run on so many threads.

    Returns:
        One entry per structure, in their order.

    Raises:
        GeometryError: If the grids differ by more than ``settings.grid_tolerance_mm``.
    """
    diagonal_mm = image_diagonal_mm(reference.grid)
    if prediction is None:
        return tuple(_not_predicted(reference, each, settings, diagonal_mm) for each in structures)
    check_one_grid(prediction.grid, reference.grid, settings.grid_tolerance_mm)
    pair = _Pair.of(prediction.data_ijk, reference.data_ijk, settings.ignore_value)
    voxel_ml = reference.grid.voxel_volume_mm3 / 1000.0
    axes_mm = reference.grid.affine_ras[:3, :3]
    if settings.protocol is not None:
        axes_mm = np.eye(3)
    return tuple(
        _scores(pair, each, settings, axes_mm[:, pair.order], voxel_ml, diagonal_mm, threads)
        for each in structures
    )


def check_one_grid(prediction: Grid, reference: Grid, tolerance_mm: float = 0.01) -> None:
    """Check that two maps lie on one grid.

    Raises:
        GeometryError: If shapes differ, or a corner voxel is further from its twin than
            ``tolerance_mm``; the distance is named.
    """
    gap = prediction.distance_mm(reference)
    if gap > tolerance_mm:
        raise GeometryError(
            "evaluation",
            expected=f"prediction and reference on one grid, corners within {tolerance_mm:g} mm",
            found=f"corners up to {gap:.3f} mm apart",
            remedy="resample one map to the other's grid first",
            code="grids-differ",
        )


def image_diagonal_mm(grid: Grid) -> float:
    """The longest way through an image, from the outer corner of a voxel to that of another."""
    ends = np.array(list(itertools.product((-1.0, 1.0), repeat=3))) * np.array(grid.shape_ijk)
    return float(np.linalg.norm(ends @ grid.affine_ras[:3, :3].T, axis=1).max())


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Both maps with axes in the order of memory, and what one pass over them finds.

    Args:
        prediction: C-contiguous.
        reference: C-contiguous.
        order: Which axis of the maps as handed in each axis is.
        ignored: Left-out value of the reference.
        rows: Label value to its row of counts and boxes.
        counts: See :func:`medseg.metrics.kernels.count_pairs`.
        boxes: Likewise.
    """

    prediction: Labels
    reference: Labels
    order: list[int]
    ignored: int | None
    rows: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, prediction: Labels, reference: Labels, ignored: int | None) -> _Pair:
        order = [
            int(axis) for axis in np.argsort([-abs(s) for s in reference.strides], kind="stable")
        ]
        # one type for both, so that fewer kernels are compiled
        dtype = np.result_type(prediction.dtype, reference.dtype)
        prediction = np.ascontiguousarray(prediction.transpose(order), dtype=dtype)
        reference = np.ascontiguousarray(reference.transpose(order), dtype=dtype)
        highest = max(int(prediction.max()), int(reference.max()), ignored or 0)
        rows = np.arange(highest + 1, dtype=np.int32)
        if ignored is not None:
            rows[ignored] = -1
        counts, boxes = count_pairs(prediction, reference, rows, highest + 1)
        return cls(prediction, reference, order, ignored, rows, counts, boxes)

    def known(self, structure: Structure) -> list[int]:
        """The members that occur."""
        return [value for value in structure.members if value < len(self.rows)]

    def crop(self, structure: Structure) -> tuple[Mask, Mask]:
        """Both masks within the box that holds them."""
        members = self.known(structure)
        ends = self.boxes[:, members].reshape(-1, 3, 2)
        firsts, lasts = ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True))
        member = np.zeros(len(self.rows), dtype=np.bool_)
        member[members] = True
        if self.ignored is not None:
            member[self.ignored] = False
        ours, theirs = member[self.prediction[box]], member[self.reference[box]]
        if self.ignored is not None:
            ours &= self.reference[box] != self.ignored
        return ours, theirs


def _scores(
    pair: _Pair,
    structure: Structure,
    settings: EvaluationSettings,
    axes_mm: npt.NDArray[np.float64],
    voxel_ml: float,
    diagonal_mm: float,
    threads: int,
) -> StructureScores:
    members = pair.known(structure)
    ours = int(pair.counts[members].sum())
    theirs = int(pair.counts[:, members].sum())
    shared = int(pair.counts[np.ix_(members, members)].sum())
    state: State = "both" if ours and theirs else "neither"
    if bool(ours) != bool(theirs):
        state = "only prediction" if ours else "only reference"
    values = {"dice": _share(2 * shared, ours + theirs)}
    lesions = None
    surfaces = None
    if state == "both":
        crops = pair.crop(structure)
        convention = {"transunet": "medpy", "neunet": "monai"}.get(settings.protocol or "")
        surfaces = surface_distances(
            *crops,
            axes_mm,
            convention=convention or settings.surface,  # type: ignore[arg-type]
            threads=threads,
        )
    if settings.protocol is not None:
        values["hd95_voxels"] = surfaces.hausdorff_mm(95.0) if surfaces else math.nan
        _by_protocol(values, state, settings)
    else:
        values["iou"] = _share(shared, ours + theirs - shared)
        values |= _surface_values(surfaces, settings.tolerance_of(structure.name))
        values["volume_error_ml"] = (ours - theirs) * voxel_ml
        values["volume_error_percent"] = 100.0 * (ours - theirs) / theirs if theirs else math.nan
        if settings.lesions:
            lesions = _lesion_counts(pair, structure, settings, state)
            values |= _lesion_values(lesions)
        _by_policy(values, state, settings, diagonal_mm)
    ordered = {metric.name: values[metric.name] for metric in metrics_of(settings)}
    return StructureScores(
        structure.name, state, ordered, theirs * voxel_ml, ours * voxel_ml, lesions
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _surface_values(surfaces: SurfaceDistances | None, tolerance_mm: float) -> dict[str, float]:
    if surfaces is None:
        return dict.fromkeys(("nsd", "hd95_mm", "hd_mm", "assd_mm"), math.nan)
    return {
        "nsd": surfaces.surface_dice(tolerance_mm),
        "hd95_mm": surfaces.hausdorff_mm(95.0),
        "hd_mm": surfaces.hausdorff_mm(),
        "assd_mm": surfaces.mean_mm(),
    }


def _lesion_counts(
    pair: _Pair, structure: Structure, settings: EvaluationSettings, state: State
) -> tuple[int, int, int]:
    if state == "neither":
        return 0, 0, 0
    counts = match_lesions(
        *pair.crop(structure),
        connectivity=settings.lesion_connectivity,
        least_iou=settings.lesion_iou,
    )
    return counts.reference, counts.prediction, counts.matched


def _lesion_values(lesions: tuple[int, int, int]) -> dict[str, float]:
    reference, prediction, matched = lesions
    return {
        "lesion_precision": _share(matched, prediction),
        "lesion_recall": _share(matched, reference),
        "lesion_f1": _share(2 * matched, reference + prediction),
    }


def _by_policy(
    values: dict[str, float], state: State, settings: EvaluationSettings, diagonal_mm: float
) -> None:
    """Fill in what an empty mask leaves open."""
    if state == "neither" and settings.both_empty == "perfect":
        for metric in metrics_of(settings):
            values[metric.name] = metric.perfect
    if state == "neither" and settings.both_empty == "leave-out":
        for metric in metrics_of(settings):
            values[metric.name] = math.nan
    if state in ("only reference", "only prediction"):
        values["nsd"] = 0.0
        if settings.one_empty == "worst":
            values |= dict.fromkeys(("hd95_mm", "hd_mm", "assd_mm"), diagonal_mm)


def _by_protocol(values: dict[str, float], state: State, settings: EvaluationSettings) -> None:
    """What the published scripts give where a mask is empty."""
    if state == "both":
        return
    if settings.protocol == "transunet":
        values["dice"] = 1.0 if state == "only prediction" else 0.0
        values["hd95_voxels"] = 0.0
    elif state != "only reference":
        # without reference voxels the case is left out
        values |= {"dice": math.nan, "hd95_voxels": math.nan}


def _not_predicted(
    reference: LabelMap, structure: Structure, settings: EvaluationSettings, diagonal_mm: float
) -> StructureScores:
    voxels = int(np.isin(reference.data_ijk, structure.members).sum())
    volume_ml = voxels * reference.grid.voxel_volume_mm3 / 1000.0
    values = {}
    for metric in metrics_of(settings):
        worst = diagonal_mm if math.isinf(metric.worst) else metric.worst
        values[metric.name] = worst if settings.missing == "worst" else math.nan
    if settings.missing == "worst" and "hd95_voxels" in values:
        values["hd95_voxels"] = float(np.linalg.norm(reference.grid.shape_ijk))
    if settings.missing == "worst" and "volume_error_ml" in values:
        values["volume_error_ml"] = -volume_ml
        values["volume_error_percent"] = -100.0 if voxels else math.nan
    return StructureScores(structure.name, "no prediction", values, volume_ml, math.nan, None)
