"""One bad case does not spoil the others."""

import pytest

from medseg.errors import FormatError
from medseg.events import Cancelled
from medseg.studies.runner import run_cases


def test_a_failure_is_an_outcome_and_the_rest_goes_on():
    def process(case):
        if case == "bad":
            raise FormatError("bad.nii", expected="an image", found="text", remedy="x", code="no")
        return case.upper()

    outcomes = list(run_cases(["a", "bad", "b"], process))
    assert [outcome.result for outcome in outcomes] == ["A", None, "B"]
    assert [outcome.done for outcome in outcomes] == [True, False, True]
    assert (outcomes[1].code, outcomes[1].message) == (
        "no",
        "bad.nii: expected an image, found text; x",
    )


def test_an_unexpected_error_is_told_without_its_text():
    def process(case):
        raise ZeroDivisionError("Jane Doe")

    (outcome,) = run_cases(["a"], process)
    assert outcome.code == "unexpected"
    assert "ZeroDivisionError" in outcome.message
    assert "Jane" not in outcome.message


def test_lack_of_memory_has_its_own_code():
    def process(case):
        raise MemoryError

    (outcome,) = run_cases(["a"], process)
    assert outcome.code == "out-of-memory"


def test_interrupting_passes_through():
    def process(case):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_cases(["a"], process))


def test_cancelling_passes_through():
    def process(case):
        raise Cancelled

    with pytest.raises(Cancelled):
        list(run_cases(["a"], process))
