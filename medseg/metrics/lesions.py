"""Counting lesions: which connected pieces of the truth were found, and which finds are false."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse import csgraph

__all__ = ["Connectivity", "LesionCounts", "match_lesions"]

Mask = npt.NDArray[np.bool_]
Connectivity = Literal[6, 18, 26]

_STEPS = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True, slots=True)
class LesionCounts:
    """How many lesions there are and how many were matched.

    Args:
        reference: Connected pieces of the reference.
        prediction: Connected pieces of the prediction.
        matched: Pairs of them, see :func:`match_lesions`.
    """

    reference: int
    prediction: int
    matched: int

    @property
    def precision(self) -> float:
        """Share of predicted lesions that are real; NaN where none was predicted."""
        return self.matched / self.prediction if self.prediction else math.nan

    @property
    def recall(self) -> float:
        """Share of real lesions that were found; NaN where there is none."""
        return self.matched / self.reference if self.reference else math.nan

    @property
    def f1(self) -> float:
        """Twice the matched over all; NaN where there is no lesion in either."""
        total = self.reference + self.prediction
        return 2 * self.matched / total if total else math.nan


def match_lesions(
    prediction: Mask, reference: Mask, *, connectivity: Connectivity = 26, least_iou: float = 0.1
) -> LesionCounts:
    """Match the connected pieces of two masks one to one.

    A predicted and a real piece may be matched if they share a voxel and their intersection over
    union is at least ``least_iou``; each takes part in one match at most. Of all ways to match, one
    with the most pairs is taken. So one prediction that covers two lesions finds one of them, and
    of two predictions inside one lesion one is false.

    Args:
        prediction: ``(i, j, k)`` bool.
        reference: The same for the truth.
        connectivity: Neighbours that make voxels one piece: over faces (6), edges too (18), or
            corners too (26).
        least_iou: 0 to 1; 0 lets any shared voxel do, above 0.5 no two matches can compete.
    """
    cube = ndimage.generate_binary_structure(3, _STEPS[connectivity])
    ours, our_number = ndimage.label(prediction, cube)
    theirs, their_number = ndimage.label(reference, cube)
    if not (our_number and their_number):
        return LesionCounts(their_number, our_number, 0)
    pairs, shared = _overlaps(ours, theirs, their_number)
    our_sizes, their_sizes = _sizes(ours), _sizes(theirs)
    one, other = np.divmod(pairs, their_number + 1)
    ious = shared / (our_sizes[one] + their_sizes[other] - shared)
    able = ious >= least_iou
    return LesionCounts(their_number, our_number, _most_pairs(one[able], other[able]))


def _overlaps(
    ours: npt.NDArray[Any], theirs: npt.NDArray[Any], their_number: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    both = (ours != 0) & (theirs != 0)
    codes = ours[both].astype(np.int64) * (their_number + 1) + theirs[both]
    pairs, shared = np.unique(codes, return_counts=True)
    return pairs, shared


def _sizes(pieces: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.bincount(pieces.ravel(order="K"))


def _most_pairs(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    if not one.size:
        return 0
    able = sparse.csr_array((np.ones(one.size), (one, other)))
    return int(np.count_nonzero(csgraph.maximum_bipartite_matching(able) >= 0))
