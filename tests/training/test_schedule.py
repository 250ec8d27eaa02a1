"""The learning rate follows progress, and progress follows steps or the clock."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import ConfigError
from medseg.training.schedule import BudgetPace, StepPace, parse_duration, poly_rate

shares = st.floats(0.0, 1.0)
exponents = st.floats(0.0, 3.0)
warmups = st.floats(0.0, 0.9)


@given(shares, shares, exponents, warmups)
def test_the_rate_rises_in_the_warmup_and_never_after(one, other, exponent, warmup):
    early, late = sorted((one, other))
    rates = [
        poly_rate(share, base=0.5, exponent=exponent, warmup=warmup) for share in (early, late)
    ]
    assert all(0.0 <= rate <= 0.5 for rate in rates)
    if early >= warmup:
        assert rates[1] <= rates[0]


@given(st.floats(1.0, 10.0), exponents, warmups)
def test_the_rate_is_exactly_zero_at_the_end_and_after(progress, exponent, warmup):
    assert poly_rate(progress, base=0.1, exponent=exponent, warmup=warmup) == 0.0


def test_the_rate_is_that_of_torchs_polynomial_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    oracle = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=0.9)
    for step in range(50):
        ours = poly_rate(StepPace(50).progress(step), base=0.2, exponent=0.9, warmup=0.0)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        oracle.step()


def test_a_warmup_worked_by_hand():
    assert poly_rate(0.05, base=1.0, exponent=1.0, warmup=0.1) == pytest.approx(0.5 * 0.95)
    assert poly_rate(0.6, base=1.0, exponent=1.0, warmup=0.1) == pytest.approx(0.4)


@given(st.floats(0.5, 1000.0), st.floats(0.0, 2.0))
def test_a_budget_is_progress_of_the_clock_alone(budget_s, share):
    now = [100.0]
    pace = BudgetPace(budget_s, clock=lambda: now[0])
    now[0] += share * budget_s
    assert pace.progress(0) == pace.progress(10**6) == pytest.approx(share, abs=1e-9)


def test_a_step_that_would_end_after_the_budget_is_not_begun():
    now = [0.0]
    pace = BudgetPace(10.0, clock=lambda: now[0])
    now[0] = 9.0
    assert pace.room_for(3, 0.9)
    assert not pace.room_for(3, 1.1)
    assert pace.ticks(3) == (9, 10)


def test_a_run_of_steps_ends_with_the_last_one():
    pace = StepPace(4)
    assert [pace.room_for(step, 100.0) for step in (0, 3, 4)] == [True, True, False]
    assert pace.ticks(9) == (4, 4)
    assert pace.progress(2) == 0.5


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), (" 2M ", 120)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m10", "10 minutes", "-5m", "0s", "1h 30"])
def test_other_durations_are_refused(text):
    with pytest.raises(ConfigError, match="a duration such as 90s, 10m"):
        parse_duration(text)
