"""The running mean of validation Dice."""

import math

from hypothesis import given
from hypothesis import strategies as st

from medseg.training.watch import Watch

DICE = st.one_of(st.floats(0, 1), st.just(math.nan))


def test_the_mean_worked_on_paper():
    watch = Watch()
    assert watch.judge(1, 0.5)
    assert watch.judge(2, 0.7)
    assert math.isclose(watch.mean, 0.9 * 0.5 + 0.1 * 0.7)
    assert not watch.judge(3, 0.1)
    assert (watch.best_step, watch.since) == (2, 1)
    assert watch.tired(1)
    assert not watch.tired(2)
    assert not watch.tired(None)


@given(st.lists(DICE, max_size=20))
def test_the_best_is_never_below_the_mean_and_a_copy_goes_on_alike(dice):
    watch = Watch()
    for step, value in enumerate(dice):
        copy = Watch.from_dict(watch.to_dict())
        assert watch.judge(step, value) == copy.judge(step, value)
        assert repr(copy) == repr(watch)
        assert math.isnan(watch.mean) or watch.mean <= watch.best
        assert watch.since == 0 or not (watch.best_step == step and math.isfinite(value))


def test_cases_without_any_structure_are_no_improvement():
    watch = Watch()
    assert not watch.judge(1, math.nan)
    assert watch.since == 1
    assert watch.judge(2, 0.0), "the first figure there is, is the best"
