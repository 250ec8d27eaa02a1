"""How far a run is, and the learning rate that follows from it.

The rate is a function of progress alone, 0 at the start and 1 at the end. Progress is counted in
steps, or in seconds of a wall-clock budget: then the schedule is stretched to the time that there
is, and ends with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from medseg.errors import ConfigError

__all__ = ["BudgetPace", "Pace", "StepPace", "parse_duration", "poly_rate"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``10m``, ``1.5h`` or ``1h30m``.

    >>> parse_duration("10m")
    600.0

    Raises:
        ConfigError: If it is written otherwise or is not positive.
    """
    compact = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", compact)
    seconds = sum(float(amount) * _UNITS_S[unit] for amount, unit in parts)
    if "".join(amount + unit for amount, unit in parts) != compact or seconds <= 0:
        raise ConfigError(
            "budget",
            expected="a duration such as 90s, 10m or 1h30m",
            found=repr(text),
            remedy="give a number with its unit s, m or h",
            code="budget",
        )
    return seconds


def poly_rate(progress: float, *, base: float, exponent: float, warmup: float) -> float:
    """Learning rate at a point of the run.

    Args:
        progress: Share of the run that is over; below 0 counts as 0, above 1 as 1.
        base: Largest rate.
        exponent: Of the polynomial decay, ``base * (1 - progress) ** exponent`` (Liu, Rabinovich
            and Berg, ParseNet, 2015; the choice of nnU-Net is 0.9).
        warmup: Share of the run over which a factor rises linearly from 0 to 1; ours.

    Returns:
        A rate from 0 to ``base``; exactly 0 at progress 1.
    """
    share = min(1.0, max(0.0, progress))
    if share == 1.0:
        return 0.0
    rise = 1.0 if share >= warmup else share / warmup
    return base * rise * float((1.0 - share) ** exponent)


class Pace(Protocol):
    """How far the run is."""

    def progress(self, steps_done: int) -> float:
        """Share of the run that is over."""
        ...

    def room_for(self, steps_done: int, seconds: float) -> bool:
        """Whether another step of about ``seconds`` still fits."""
        ...

    def ticks(self, steps_done: int) -> tuple[int, int]:
        """Done and total in the pace's own unit, for a progress bar."""
        ...


@dataclass(frozen=True, slots=True)
class StepPace:
    """A run of a fixed number of steps."""

    total_steps: int

    def progress(self, steps_done: int) -> float:
        """Share of the steps that is over."""
        return steps_done / self.total_steps

    def room_for(self, steps_done: int, seconds: float) -> bool:  # noqa: ARG002 - steps decide
        """Whether steps are left."""
        return steps_done < self.total_steps

    def ticks(self, steps_done: int) -> tuple[int, int]:
        """Steps done and in all."""
        return min(steps_done, self.total_steps), self.total_steps


@dataclass(frozen=True, slots=True)
class BudgetPace:
    """A run of a fixed wall-clock time, counted from when this is built.

    Args:
        budget_s: Seconds there are.
        spent_s: Seconds that an earlier part of the run took of them.
        clock: Monotonic seconds.
    """

    budget_s: float
    spent_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    started_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "started_s", self.clock() - self.spent_s)

    def progress(self, steps_done: int) -> float:  # noqa: ARG002 - time decides
        """Share of the time that is over."""
        return (self.clock() - self.started_s) / self.budget_s

    def room_for(self, steps_done: int, seconds: float) -> bool:  # noqa: ARG002 - time decides
        """Whether the step would end within the budget."""
        return self.clock() - self.started_s + seconds <= self.budget_s

    def ticks(self, steps_done: int) -> tuple[int, int]:  # noqa: ARG002 - time decides
        """Whole seconds over and in all."""
        total = max(1, round(self.budget_s))
        return min(total, int(self.clock() - self.started_s)), total
