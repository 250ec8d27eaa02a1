"""Entropy per structure and the list of doubtful slices."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme, axis_turn
from medseg.core.uncertainty import (
    UncertaintySummary,
    mean_entropy_per_label,
    rank_doubtful_slices,
    slice_axis,
    summarise_uncertainty,
)
from medseg.errors import ConfigError, ShapeError

SCHEME = LabelScheme.plain("test", {1: "one", 2: "two", 7: "seven"})
ORIENTATIONS = ("RAS", "LPI", "PSL", "SRA", "IRP")


def label_map(data, spacing=(1.0, 1.0, 1.0)):
    return LabelMap(data, Grid(data.shape, np.diag([*spacing, 1.0])), SCHEME)


def tube(shape=(24, 24, 60)):
    """A bar along K: structure 1 in its lower half, 2 in its upper half."""
    data = np.zeros(shape, dtype=np.uint8)
    data[8:16, 8:16, 5:30] = 1
    data[8:16, 8:16, 30:55] = 2
    return data


def rim_of(data, level):
    """Entropy on both sides of every border between labels, as a good network gives it."""
    edge = np.zeros(data.shape, dtype=bool)
    for axis in range(3):
        for step in (-1, 1):
            edge |= np.roll(data, step, axis=axis) != data
    return (edge * level).astype(np.uint8)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("place", [9, 22, 41])
def test_a_planted_error_is_found_first_whatever_the_orientation(orientation, place):
    data = tube()
    entropy = rim_of(data, 60)
    entropy[9:15, 9:15, place - 1 : place + 2] = 200
    entropy[9:15, 9:15, place] = 230
    upright = label_map(data, (1.0, 1.0, 2.0))
    turn = axis_turn(upright.grid, orientation)
    turned = upright.on_grid(turn.turn_array(data), turn.turn_grid(upright.grid))
    summary = summarise_uncertainty(turn.turn_array(entropy), turned)
    first = summary.slices[0]
    along = turn.source_axes.index(2)
    assert first.axis_name == "ijk"[along]
    assert first.index == (59 - place if turn.flipped[along] else place)
    assert first.position_mm == pytest.approx(2.0 * place)
    assert first.label == ("one" if place < 30 else "two")


def test_what_was_missed_beside_the_segmentation_counts_and_what_is_far_away_does_not():
    data = tube()
    entropy = np.zeros(data.shape, dtype=np.uint8)
    entropy[16:19, 8:16, 40] = 250  # within 3 mm of structure two
    entropy[0:4, 0:4, 20] = 255  # 4 mm away from anything
    found = rank_doubtful_slices(entropy, label_map(data))
    assert [(place.index, place.label) for place in found] == [(40, "two")]


def test_the_slice_after_the_end_of_a_structure_counts_to_it():
    data = tube()
    entropy = np.zeros(data.shape, dtype=np.uint8)
    entropy[8:16, 8:16, 55] = 200
    found = rank_doubtful_slices(entropy, label_map(data))
    assert [(place.index, place.label) for place in found] == [(55, "two")]


def test_one_voxel_worked_on_paper():
    data = np.zeros((9, 9, 3), dtype=np.uint8)
    data[4, 4, 1] = 7
    entropy = np.zeros(data.shape, dtype=np.uint8)
    entropy[5, 5, 1] = 255
    # 3 mm are one voxel: the region is 3 x 3 voxels, one of them full of doubt
    (found,) = rank_doubtful_slices(entropy, label_map(data, (3.0, 3.0, 4.0)))
    assert (found.axis_name, found.index, found.label) == ("k", 1, "seven")
    assert found.mean_entropy == pytest.approx(1 / 9)
    assert found.position_mm == pytest.approx(4.0)


def test_each_voxel_of_the_rim_counts_to_the_nearest_structure():
    data = np.zeros((20, 9, 3), dtype=np.uint8)
    data[3, 4, 1], data[10, 4, 1] = 1, 2
    entropy = np.zeros(data.shape, dtype=np.uint8)
    entropy[5, 4, 1] = 255
    assert rank_doubtful_slices(entropy, label_map(data), axis=2)[0].label == "one"
    entropy[8, 4, 1] = entropy[9, 4, 1] = 255
    assert rank_doubtful_slices(entropy, label_map(data), axis=2)[0].label == "two"


def test_the_list_names_distinct_places():
    data = tube()
    entropy = rim_of(data, 40)
    entropy[8:16, 8:16, 10:14] = 240
    entropy[8:16, 8:16, 45:48] = 200
    found = rank_doubtful_slices(entropy, label_map(data), count=4)
    assert 10 <= found[0].index < 14
    assert 45 <= found[1].index < 48
    indices = sorted(place.index for place in found)
    assert len(indices) == 4
    assert min(np.diff(indices)) > 5


def test_neighbours_of_thick_slices_are_passed_over_too():
    data = tube()
    entropy = np.full(data.shape, 100, dtype=np.uint8)
    found = rank_doubtful_slices(entropy, label_map(data, (1.0, 1.0, 12.0)), count=60)
    assert min(np.diff(sorted(place.index for place in found))) == 2


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_scores_fall_and_agree_with_numpy(seed, axis):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 22, size=3))
    labels = label_map(rng.choice([0, 1, 2, 7], size=shape).astype(np.uint8), (9.0, 9.0, 9.0))
    entropy = rng.integers(0, 256, size=shape, dtype=np.uint8)
    means = mean_entropy_per_label(entropy, labels)
    for value, name in ((1, "one"), (2, "two"), (7, "seven")):
        inside = labels.data_ijk == value
        assert (name in means) == inside.any()
        if inside.any():
            assert means[name] == pytest.approx(entropy[inside].mean() / 255)
    # a full map: its region is everything, so that scores are plain sums of slices
    full = label_map(np.where(labels.data_ijk == 0, 1, labels.data_ijk).astype(np.uint8), (9,) * 3)
    found = rank_doubtful_slices(entropy, full, axis=axis, count=100)
    others = tuple(other for other in range(3) if other != axis)
    sums = entropy.sum(axis=others, dtype=np.int64)
    if sums.any():
        assert sums[found[0].index] == sums.max()
    scores = [sums[place.index] for place in found]
    assert scores == sorted(scores, reverse=True)
    for place in found:
        plane = np.take(entropy, place.index, axis=axis)
        assert place.mean_entropy == pytest.approx(plane.mean() / 255)


def test_an_empty_segmentation_is_doubted_as_a_whole():
    labels = label_map(np.zeros((6, 7, 8), dtype=np.uint8))
    entropy = np.zeros((6, 7, 8), dtype=np.uint8)
    entropy[0, 0, 6] = 255
    summary = summarise_uncertainty(entropy, labels)
    assert summary.per_label == {}
    assert [(place.index, place.label) for place in summary.slices] == [(6, "background")]
    assert summary.slices[0].mean_entropy == pytest.approx(1 / 42)


def test_nothing_is_listed_where_nothing_is_in_doubt():
    labels = label_map(tube())
    entropy = np.zeros(labels.data_ijk.shape, dtype=np.uint8)
    assert rank_doubtful_slices(entropy, labels) == ()
    assert rank_doubtful_slices(entropy + np.uint8(9), labels, count=0) == ()


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((5.0, 1.0, 1.0), 0), ((1.0, 5.0, 1.0), 1), ((1.0, 1.0, 1.0), 2), ((3.0, 3.0, 1.0), 2)],
)
def test_slices_lie_across_the_thickest_axis_else_across_head_foot(spacing, axis):
    grid = Grid((4, 5, 6), np.diag([*spacing, 1.0]))
    assert slice_axis(grid) == axis


def test_head_foot_is_found_on_a_turned_grid():
    grid = Grid((4, 5, 6), np.eye(4))
    assert slice_axis(axis_turn(grid, "SRA").turn_grid(grid)) == 0


def test_values_above_255_are_counted():
    scheme = LabelScheme.plain("wide", {300: "high"})
    data = np.zeros((5, 5, 5), dtype=np.uint16)
    data[2, 2, 2] = 300
    labels = LabelMap(data, Grid(data.shape, np.eye(4)), scheme)
    summary = summarise_uncertainty(np.full((5, 5, 5), 51, dtype=np.uint8), labels)
    assert summary.per_label == {"high": pytest.approx(0.2)}
    assert summary.slices[0].label == "high"


def test_memory_stays_far_below_a_copy_of_the_volume():
    data = np.zeros((160, 160, 300), dtype=np.uint8)
    data[20:140, 20:140, 10:290] = 1
    labels = label_map(data)
    entropy = np.full(data.shape, 30, dtype=np.uint8)
    tracemalloc.start()
    summarise_uncertainty(entropy, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.nbytes / 2


def test_entropy_of_another_type_or_shape_is_refused():
    labels = label_map(tube())
    for entropy in (np.zeros((3, 3, 3), np.uint8), np.zeros(labels.data_ijk.shape, np.float32)):
        with pytest.raises(ShapeError, match="expected an array of uint8 with shape"):
            rank_doubtful_slices(entropy, labels)
        with pytest.raises(ShapeError, match="scale entropy to 0"):
            mean_entropy_per_label(entropy, labels)
    with pytest.raises(ShapeError, match="uint8 with 3 dimensions"):
        UncertaintySummary({}, (), np.zeros((3, 3), np.uint8))


@pytest.mark.parametrize("wrong", [{"axis": 3}, {"axis": -1}, {"count": -1}])
def test_an_axis_or_count_that_does_not_exist_is_refused(wrong):
    labels = label_map(tube())
    with pytest.raises(ConfigError, match="an axis of 0, 1 or 2 and a count of at least 0"):
        rank_doubtful_slices(np.zeros(labels.data_ijk.shape, np.uint8), labels, **wrong)
