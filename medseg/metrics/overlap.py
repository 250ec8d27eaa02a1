"""Overlap of two label maps on one grid."""

from __future__ import annotations

import math

from medseg.core import LabelMap
from medseg.errors import GeometryError

__all__ = ["dice_by_label"]


def dice_by_label(result: LabelMap, reference: LabelMap) -> dict[str, float]:
    """Dice similarity of every structure of the reference's scheme.

    ``2 |A and B| / (|A| + |B|)``, counted in voxels. A structure absent from both maps has no Dice:
    its value is NaN, and it must be left out of means.

    Args:
        result: What is judged.
        reference: The truth; same grid within 0.01 mm.

    Returns:
        Name of the structure to Dice, 0 to 1 or NaN.

    Raises:
        GeometryError: If the grids differ.
    """
    gap = result.grid.distance_mm(reference.grid)
    if gap > 0.01:
        raise GeometryError(
            "Dice",
            expected="both label maps on one grid, corners within 0.01 mm",
            found=f"corners up to {gap:.3f} mm apart",
            remedy="resample one map to the other's grid first",
            code="grids-differ",
        )
    scores: dict[str, float] = {}
    for label in reference.scheme.labels:
        ours = result.data_ijk == label.value
        theirs = reference.data_ijk == label.value
        total = int(ours.sum()) + int(theirs.sum())
        scores[label.name] = 2.0 * int((ours & theirs).sum()) / total if total else math.nan
    return scores
