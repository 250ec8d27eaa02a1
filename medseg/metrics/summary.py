"""Means over cases with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Bootstrap", "Interval", "MetricSummary", "summarise"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are found: cases are drawn with replacement, as often as there are cases.

    Args:
        draws: Number of drawn sets.
        seed: Of the drawing.
        level: Share of drawn means that the interval holds.
    """

    draws: int = 2000
    seed: int = 0
    level: float = 0.95

    def weights(self, cases: int) -> Floats:
        """``(draws, cases)``: how often each case is in each drawn set."""
        generator = np.random.default_rng(self.seed)
        even = np.full(cases, 1.0 / cases)
        return generator.multinomial(cases, even, size=self.draws).astype(np.float64)

    def interval(self, means: Floats) -> Interval | None:
        """The middle of drawn means, drawn sets without a figure left out."""
        finite = means[np.isfinite(means)]
        if not finite.size:
            return None
        outside = 50.0 * (1.0 - self.level)
        low, high = np.percentile(finite, [outside, 100.0 - outside])
        return Interval(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Interval:
    """Ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """One figure over the cases.

    Args:
        structure: Name, or None for the mean over structures.
        metric: Name of the figure.
        cases: Cases that have a value; for the mean over structures, structures that have one.
        mean: Their mean; NaN where there is none.
        median: Their median; of the structures' means for the mean over structures.
        std: Standard deviation between them (n - 1); NaN for fewer than two.
        worst: Case with the worst value; None for the mean over structures.
        interval: Bootstrap interval of the mean; None for fewer than two cases.
    """

    structure: str | None
    metric: str
    cases: int
    mean: float
    median: float
    std: float
    worst: str | None
    interval: Interval | None


def summarise(
    values_csm: Floats,
    cases: Sequence[str],
    structures: Sequence[str],
    metrics: Sequence[tuple[str, str]],
    bootstrap: Bootstrap,
) -> list[MetricSummary]:
    """Means over cases by structure, then the mean over structures, for every metric.

    The last is the mean of the structures' means; its interval draws whole cases too.

    Args:
        values_csm: ``(cases, structures, metrics)``; NaN is left out.
        cases: Names along the first axis.
        structures: Names along the second.
        metrics: Name, and ``higher``, ``lower`` or ``zero`` for what is better, along the third.
        bootstrap: How intervals are found.

    Returns:
        For every metric one entry per structure, then one of all.
    """
    count = len(cases)
    there = np.isfinite(values_csm)
    filled = np.where(there, values_csm, 0.0)
    weights = bootstrap.weights(count) if count > 1 else np.empty((0, count))
    found: list[MetricSummary] = []
    for m, (metric, better) in enumerate(metrics):
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn_bs = (weights @ filled[:, :, m]) / (weights @ there[:, :, m].astype(np.float64))
            means = filled[:, :, m].sum(axis=0) / there[:, :, m].sum(axis=0)
        for s, structure in enumerate(structures):
            here = np.flatnonzero(there[:, s, m])
            values = values_csm[here, s, m]
            found.append(
                MetricSummary(
                    structure,
                    metric,
                    here.size,
                    float(means[s]),
                    float(np.median(values)) if here.size else math.nan,
                    float(values.std(ddof=1)) if here.size > 1 else math.nan,
                    cases[int(here[_worst(values, better)])] if here.size else None,
                    bootstrap.interval(drawn_bs[:, s]) if here.size > 1 else None,
                )
            )
        found.append(_overall(metric, means, drawn_bs, bootstrap))
    return found


def _worst(values: Floats, better: str) -> int:
    if better == "higher":
        return int(values.argmin())
    return int((values if better == "lower" else np.abs(values)).argmax())


def _overall(metric: str, means: Floats, drawn_bs: Floats, bootstrap: Bootstrap) -> MetricSummary:
    there = np.isfinite(means)
    number = int(there.sum())
    values = means[there]
    interval = None
    if number and drawn_bs.size:
        # a drawn set counts where every structure that has a mean has one in it
        interval = bootstrap.interval(drawn_bs[:, there].mean(axis=1))
    return MetricSummary(
        None,
        metric,
        number,
        float(values.mean()) if number else math.nan,
        float(np.median(values)) if number else math.nan,
        float(values.std(ddof=1)) if number > 1 else math.nan,
        None,
        interval,
    )
