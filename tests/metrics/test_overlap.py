"""Dice, on paper and against MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.errors import GeometryError
from medseg.metrics.overlap import dice_by_label

SCHEME = LabelScheme.plain("test", {1: "one", 2: "two"})


def labels(values, affine=None):
    array = np.asarray(values, dtype=np.uint8).reshape(-1, 1, 1)
    return LabelMap(array, Grid(array.shape, np.eye(4) if affine is None else affine), SCHEME)


def test_a_case_worked_on_paper():
    # label 1: 2 voxels against 3, 2 shared: 2*2/5; label 2: 1 against 1, none shared
    scores = dice_by_label(labels([1, 1, 0, 2, 0]), labels([1, 1, 1, 0, 2]))
    assert scores == {"one": 0.8, "two": 0.0}


def test_a_structure_absent_from_both_has_no_dice():
    assert math.isnan(dice_by_label(labels([1, 0]), labels([1, 0]))["two"])


def test_agrees_with_monai():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 3, (2, 500))
    ours = dice_by_label(labels(first), labels(second))
    one_hot = [
        torch.from_numpy(np.stack([values == n for n in range(3)])[None].astype(np.float32))
        for values in (first, second)
    ]
    theirs = compute_dice(*one_hot, include_background=False)[0]
    np.testing.assert_allclose(list(ours.values()), theirs, atol=1e-6)


def test_other_grids_are_refused():
    moved = np.eye(4)
    moved[0, 3] = 0.5
    with pytest.raises(GeometryError, match=r"corners up to 0.500 mm apart"):
        dice_by_label(labels([1, 0]), labels([1, 0], moved))
