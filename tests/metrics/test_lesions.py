"""Lesions: cases on paper, and laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medseg.metrics.lesions import LesionCounts, match_lesions

masks = arrays(np.bool_, (4, 4, 4))


def line(*values):
    return np.array(values, dtype=bool).reshape(-1, 1, 1)


def counted(prediction, reference, **options):
    counts = match_lesions(prediction, reference, **options)
    return counts.reference, counts.prediction, counts.matched


def test_one_prediction_over_two_lesions_finds_one():
    assert counted(line(1, 1, 1, 1, 1), line(1, 1, 0, 1, 1)) == (2, 1, 1)


def test_of_two_predictions_in_one_lesion_one_is_false():
    assert counted(line(1, 1, 0, 1, 1), line(1, 1, 1, 1, 1)) == (1, 2, 1)


def test_the_most_pairs_are_matched_not_the_first():
    """The first prediction touches both lesions, the second only the first one."""
    prediction, reference = np.zeros((2, 3, 6), dtype=bool), np.zeros((2, 3, 6), dtype=bool)
    reference[0, 0, 0:3] = reference[0, 2, 0:3] = True
    prediction[0, 0:3, 0] = True
    prediction[0, 0, 2] = True
    assert counted(prediction, reference, connectivity=6) == (2, 2, 2)


def test_a_pair_needs_its_least_overlap():
    prediction, reference = line(1, 1, 1, 1, 0), line(0, 0, 0, 1, 1)
    assert counted(prediction, reference, least_iou=0.2) == (1, 1, 1)
    assert counted(prediction, reference, least_iou=0.21) == (1, 1, 0)
    assert counted(line(1, 0), line(0, 1), least_iou=0.0) == (1, 1, 0)


@pytest.mark.parametrize(("connectivity", "pieces"), [(6, 3), (18, 2), (26, 1)])
def test_neighbours_over_faces_edges_and_corners(connectivity, pieces):
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True
    assert counted(mask, mask, connectivity=connectivity) == (pieces,) * 3


@settings(max_examples=40, deadline=None)
@given(masks, masks, st.sampled_from([6, 18, 26]), st.floats(0.0, 1.0))
def test_matches_are_no_more_than_lesions_and_the_same_both_ways(one, other, connectivity, iou):
    options = {"connectivity": connectivity, "least_iou": iou}
    there, back = match_lesions(one, other, **options), match_lesions(other, one, **options)
    assert (there.matched, there.reference) == (back.matched, back.prediction)
    assert there.matched <= min(there.reference, there.prediction)
    assert there.precision == pytest.approx(back.recall, nan_ok=True)
    assert there.f1 == pytest.approx(back.f1, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(masks)
def test_every_lesion_of_a_mask_matches_itself(mask):
    pieces = ndimage.label(mask, np.ones((3, 3, 3)))[1]
    assert counted(mask, mask, least_iou=1.0) == (pieces, pieces, pieces)


def test_what_is_not_there_has_no_share():
    none = LesionCounts(0, 0, 0)
    assert all(math.isnan(share) for share in (none.precision, none.recall, none.f1))
    false_alarm = LesionCounts(0, 2, 0)
    assert (false_alarm.precision, false_alarm.f1) == (0.0, 0.0)
    assert math.isnan(false_alarm.recall)
