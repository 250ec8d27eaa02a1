"""Means with intervals, and paired comparisons: scipy as oracle, laws, cases on paper."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medseg.metrics.comparison import compare_paired
from medseg.metrics.summary import Bootstrap, summarise

DICE, HD = ("dice", "higher"), ("hd95_mm", "lower")


def values(*columns):
    """``(cases, structures, 1)`` from one list per structure."""
    return np.array(columns, dtype=np.float64).T[:, :, None]


def summary(values_csm, metric=DICE, **bootstrap):
    cases = [f"case {n}" for n in range(values_csm.shape[0])]
    structures = [f"s{n}" for n in range(values_csm.shape[1])]
    return summarise(values_csm, cases, structures, [metric], Bootstrap(**bootstrap))


def test_means_leave_out_what_is_not_there_on_paper():
    one, two, overall = summary(values([0.5, math.nan, 1.0], [0.2, 0.4, 0.9]))
    assert (one.mean, one.cases, one.median, one.worst) == (0.75, 2, 0.75, "case 0")
    assert two.mean == pytest.approx(0.5)
    assert two.std == pytest.approx(stats.tstd([0.2, 0.4, 0.9]))
    assert (overall.structure, overall.mean, overall.cases) == (None, pytest.approx(0.625), 2)


def test_intervals_are_those_of_scipys_percentile_bootstrap():
    data = np.random.default_rng(0).normal(0.8, 0.1, 40)
    (ours, overall) = summary(values(data), draws=20000)
    theirs = stats.bootstrap(
        (data,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.interval.low == pytest.approx(theirs.low, abs=0.001)
    assert ours.interval.high == pytest.approx(theirs.high, abs=0.001)
    assert overall.interval == ours.interval


def test_the_same_seed_gives_the_same_interval_and_another_another():
    data = values(np.random.default_rng(0).random(30))
    assert summary(data, seed=3)[0].interval == summary(data, seed=3)[0].interval
    assert summary(data, seed=3)[0].interval != summary(data, seed=4)[0].interval


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_interval_lies_between_the_least_and_the_largest_value(data):
    entry = summary(values(data), draws=200)[0]
    assert min(data) - 1e-12 <= entry.interval.low <= entry.interval.high <= max(data) + 1e-12


def test_one_case_has_no_interval_and_none_no_mean():
    one, overall = summary(values([0.7]))
    assert one.interval is None
    assert overall.interval is None
    none, overall = summary(values([math.nan, math.nan]))
    assert math.isnan(none.mean)
    assert (none.cases, none.worst, overall.cases) == (0, None, 0)


def test_the_worst_case_depends_on_what_is_better():
    data = values([3.0, -5.0, 4.0])
    assert summary(data, DICE)[0].worst == "case 1"
    assert summary(data, HD)[0].worst == "case 2"
    assert summary(data, ("volume_error_ml", "zero"))[0].worst == "case 1"


def compared(first, second, metric=DICE, draws=500):
    structures = [f"s{n}" for n in range(first.shape[1])]
    return compare_paired(first, second, structures, [metric], Bootstrap(draws=draws))


def test_a_paired_comparison_is_scipys_wilcoxon_test():
    generator = np.random.default_rng(2)
    first = generator.normal(0.8, 0.05, (15, 1, 1))
    second = first + generator.normal(0.02, 0.03, (15, 1, 1))
    (found,) = compared(first, second)
    assert found.p_value == stats.wilcoxon(second.ravel(), first.ravel()).pvalue
    assert found.difference == pytest.approx(float((second - first).mean()))
    assert found.interval.low < found.difference < found.interval.high
    assert found.second_better + found.second_worse == 15


def test_an_evaluation_does_not_differ_from_itself():
    data = values([0.4, 0.5, 0.6])
    (found,) = compared(data, data)
    assert (found.difference, found.p_value, found.p_holm) == (0.0, 1.0, 1.0)
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)


def test_only_cases_that_both_have_are_compared():
    (found,) = compared(values([0.1, math.nan, 0.5]), values([0.3, 0.9, 0.4]))
    assert found.cases == 2
    assert (found.mean_first, found.mean_second) == pytest.approx((0.3, 0.35))
    (none,) = compared(values([math.nan]), values([0.5]))
    assert none.cases == 0
    assert math.isnan(none.p_holm)


def test_smaller_distances_are_better_and_volume_errors_are_compared_by_size():
    (distance,) = compared(values([5.0, 5.0]), values([4.0, 6.0]), HD)
    assert (distance.second_better, distance.second_worse) == (1, 1)
    (volume,) = compared(values([-3.0, 2.0]), values([1.0, -1.0]), ("volume_error_ml", "zero"))
    assert (volume.second_better, volume.difference) == (2, pytest.approx(-1.5))


def test_holms_correction_on_paper():
    """Of n tests the smallest p is multiplied by n, the next by n - 1, and none falls below."""
    generator = np.random.default_rng(3)
    first = generator.normal(0, 1, (12, 3, 1))
    second = first + np.array([1.0, 0.4, 0.0])[None, :, None] + generator.normal(0, 0.6, (12, 3, 1))
    found = compared(first, second)
    order = sorted(found, key=lambda each: each.p_value)
    expected, least = [], 0.0
    for factor, each in zip((3, 2, 1), order, strict=True):
        least = max(least, min(1.0, factor * each.p_value))
        expected.append(least)
    assert [each.p_holm for each in order] == pytest.approx(expected)
    assert order[0].p_value < order[1].p_value < order[2].p_value
