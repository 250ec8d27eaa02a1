"""Overlap of two label maps on one grid."""

from __future__ import annotations

import math

from medseg.core import Label, LabelMap
from medseg.errors import GeometryError

__all__ = ["dice_by_label", "dice_of_label"]


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
    _check_grids(result, reference)
    return {label.name: _dice(result, reference, label) for label in reference.scheme.labels}


def dice_of_label(result: LabelMap, reference: LabelMap, name: str) -> float:
    """Dice similarity of one structure, as :func:`dice_by_label` computes it.

    Raises:
        GeometryError: If the grids differ.
        KeyError: If the reference's scheme has no label of that name.
    """
    _check_grids(result, reference)
    labels = {label.name: label for label in reference.scheme.labels}
    return _dice(result, reference, labels[name])


def _dice(result: LabelMap, reference: LabelMap, label: Label) -> float:
    ours = result.data_ijk == label.value
    theirs = reference.data_ijk == label.value
    total = int(ours.sum()) + int(theirs.sum())
    return 2.0 * int((ours & theirs).sum()) / total if total else math.nan


def _check_grids(result: LabelMap, reference: LabelMap) -> None:
    gap = result.grid.distance_mm(reference.grid)
    if gap > 0.01:
        raise GeometryError(
            "Dice",
            expected="both label maps on one grid, corners within 0.01 mm",
            found=f"corners up to {gap:.3f} mm apart",
            remedy="resample one map to the other's grid first",
            code="grids-differ",
        )
