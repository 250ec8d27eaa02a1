"""What is measured and by which rules; written into every evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medseg.metrics.lesions import Connectivity
from medseg.metrics.surface import Convention

__all__ = ["EvaluationSettings", "Metric", "Protocol", "metrics_of"]

Protocol = Literal["transunet", "neunet"]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a structure in a case.

    Args:
        name: With its unit, as the tables call it.
        better: Whether larger or smaller is better, or nearer to zero.
        perfect: Its value where nothing is wrong.
        worst: Its value where everything is; infinity stands for the image's diagonal, NaN for
            none.
    """

    name: str
    better: Literal["higher", "lower", "zero"]
    perfect: float
    worst: float


_OVERLAP = (Metric("dice", "higher", 1.0, 0.0), Metric("iou", "higher", 1.0, 0.0))
_SURFACE = (
    Metric("nsd", "higher", 1.0, 0.0),
    Metric("hd95_mm", "lower", 0.0, math.inf),
    Metric("hd_mm", "lower", 0.0, math.inf),
    Metric("assd_mm", "lower", 0.0, math.inf),
)
_VOLUME = (
    Metric("volume_error_ml", "zero", 0.0, math.nan),
    Metric("volume_error_percent", "zero", 0.0, math.nan),
)
_LESIONS = (
    Metric("lesion_precision", "higher", 1.0, 0.0),
    Metric("lesion_recall", "higher", 1.0, 0.0),
    Metric("lesion_f1", "higher", 1.0, 0.0),
)
_VOXEL_UNITS = (Metric("dice", "higher", 1.0, 0.0), Metric("hd95_voxels", "lower", 0.0, math.inf))


_PROTOCOL_RULES: dict[Protocol, dict[str, str]] = {
    "transunet": {
        "unit": "voxels",
        "surface": "medpy",
        "both_empty": "dice 0, distance 0",
        "only_reference": "dice 0, distance 0",
        "only_prediction": "dice 1, distance 0",
    },
    "neunet": {
        "unit": "voxels",
        "surface": "monai",
        "both_empty": "leave-out",
        "only_reference": "dice 0, distance left out",
        "only_prediction": "leave-out",
    },
}


class EvaluationSettings(BaseModel):
    """The rules of an evaluation.

    ``tolerance_mm`` is that of the normalised surface Dice, ``tolerances_mm`` has others by
    structure. ``surface`` is a convention of :mod:`medseg.metrics.surface`.

    ``both_empty``: a structure that neither prediction nor reference has is left out of means, or
    scored as perfect. ``one_empty``: where just one of them has it, overlap and lesion figures are
    0 in any case; distances are the image's diagonal ("worst") or left out. ``missing``: a case
    without prediction gets the worst value of every figure in every structure, or is left out.

    ``ignore_value``: voxels that have it in the reference count in nothing. ``lesions``: whether
    connected pieces are counted, with ``lesion_connectivity`` and ``lesion_iou`` as in
    :func:`~medseg.metrics.lesions.match_lesions`. ``grid_tolerance_mm``: how far corners of a
    prediction's grid may lie from the reference's.

    ``protocol`` replaces all of these rules but ``missing`` and ``ignore_value`` by a published
    evaluation's, see ``docs/evaluation.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance_mm: NotNegative = 2.0
    tolerances_mm: dict[str, NotNegative] = Field(default_factory=dict)
    surface: Convention = "elements"
    both_empty: Literal["leave-out", "perfect"] = "leave-out"
    one_empty: Literal["worst", "leave-out"] = "worst"
    missing: Literal["worst", "leave-out"] = "worst"
    ignore_value: Annotated[int, Field(ge=1, le=65535)] | None = None
    lesions: bool = True
    lesion_connectivity: Connectivity = 26
    lesion_iou: Annotated[float, Field(ge=0, le=1)] = 0.1
    grid_tolerance_mm: NotNegative = 0.01
    protocol: Protocol | None = None

    def in_force(self) -> dict[str, Any]:
        """The rules that hold, in plain JSON types: a protocol's own for those that it replaces."""
        content = self.model_dump(mode="json")
        if self.protocol is None:
            return content
        kept = ("missing", "ignore_value", "grid_tolerance_mm", "protocol")
        return {**{key: content[key] for key in kept}, **_PROTOCOL_RULES[self.protocol]}

    def tolerance_of(self, structure: str) -> float:
        """The tolerance of the surface Dice of a structure."""
        return self.tolerances_mm.get(structure, self.tolerance_mm)


def metrics_of(settings: EvaluationSettings) -> tuple[Metric, ...]:
    """The figures that these rules give, in the order of the tables."""
    if settings.protocol is not None:
        return _VOXEL_UNITS
    return (*_OVERLAP, *_SURFACE, *_VOLUME, *(_LESIONS if settings.lesions else ()))
