"""Many cases, one after the other, none of which can spoil another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from medseg.errors import MedsegError
from medseg.events import Cancelled

__all__ = ["Outcome", "run_cases"]

CaseT = TypeVar("CaseT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[CaseT, ResultT]):
    """How one case ended.

    Args:
        case: What was to be done.
        result: What came of it; None if it failed.
        code: Short stable name of the failure; None if it succeeded.
        message: One sentence about the failure; None if it succeeded.
        seconds: Wall-clock time spent on it.
    """

    case: CaseT
    result: ResultT | None
    code: str | None
    message: str | None
    seconds: float

    @property
    def done(self) -> bool:
        """Whether the case succeeded."""
        return self.code is None


def run_cases(
    cases: Iterable[CaseT], process: Callable[[CaseT], ResultT]
) -> Iterator[Outcome[CaseT, ResultT]]:
    """Process every case; a failure is an outcome, not the end.

    An error that medseg did not raise on purpose is reported by its type alone: its text could hold
    what a file holds. KeyboardInterrupt and cancelling pass through.

    Args:
        cases: What is to be done.
        process: Does one case.

    Yields:
        One outcome per case, in order, as soon as it is known.
    """
    for case in cases:
        clock = time.perf_counter()
        try:
            result = process(case)
        except Cancelled:
            raise
        except MedsegError as error:
            yield Outcome(case, None, error.code, str(error), time.perf_counter() - clock)
        except MemoryError:
            yield Outcome(
                case, None, "out-of-memory", "memory ran out", time.perf_counter() - clock
            )
        except Exception as error:
            yield Outcome(
                case,
                None,
                "unexpected",
                f"unexpected {type(error).__name__} in {_place(error)}; please report it",
                time.perf_counter() - clock,
            )
        else:
            yield Outcome(case, result, None, None, time.perf_counter() - clock)


def _place(error: BaseException) -> str:
    frame = error.__traceback__
    place = "an unknown place"
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "?")
        if module.split(".")[0] in ("medseg", "pipelines"):
            place = f"{module}, line {frame.tb_lineno}"
        frame = frame.tb_next
    return place
