"""Two evaluations of the same cases against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from medseg.metrics.summary import Bootstrap, Interval

__all__ = ["Difference", "compare_paired"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """How one figure of one structure differs between two evaluations, case by case.

    Args:
        structure: Its name.
        metric: Name of the figure.
        cases: Cases in which both have a value; nothing else counts here.
        mean_first: Mean of the first evaluation over those cases.
        mean_second: Mean of the second.
        difference: Mean of second minus first.
        interval: Bootstrap interval of that mean; None for fewer than two cases.
        second_better: Cases in which the second is better.
        second_worse: Cases in which it is worse.
        p_value: Two-sided Wilcoxon signed-rank test: exact up to 50 cases without ties or zero
            differences, else the normal approximation; zero differences are left out, and where
            all are zero it is 1. NaN without cases.
        p_holm: The same after Holm's correction for all the tests of the comparison.
    """

    structure: str
    metric: str
    cases: int
    mean_first: float
    mean_second: float
    difference: float
    interval: Interval | None
    second_better: int
    second_worse: int
    p_value: float
    p_holm: float


def compare_paired(
    first_csm: Floats,
    second_csm: Floats,
    structures: Sequence[str],
    metrics: Sequence[tuple[str, str]],
    bootstrap: Bootstrap,
) -> list[Difference]:
    """Compare two evaluations of the same cases.

    Args:
        first_csm: ``(cases, structures, metrics)``; NaN where there is no value.
        second_csm: The same cases, structures and metrics of the second evaluation.
        structures: Names along the second axis.
        metrics: Name, and ``higher``, ``lower`` or ``zero`` for what is better, along the third.
        bootstrap: How intervals are found; whole cases are drawn.

    Returns:
        One entry per metric and structure, metrics outermost.
    """
    found: list[Difference] = []
    for m, (metric, better) in enumerate(metrics):
        for s, structure in enumerate(structures):
            first, second = first_csm[:, s, m], second_csm[:, s, m]
            there = np.isfinite(first) & np.isfinite(second)
            found.append(
                _difference(structure, metric, better, first[there], second[there], bootstrap)
            )
    corrected = _holm([each.p_value for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def _difference(
    structure: str, metric: str, better: str, first: Floats, second: Floats, bootstrap: Bootstrap
) -> Difference:
    number = first.size
    if not number:
        nan = math.nan
        return Difference(structure, metric, 0, nan, nan, nan, None, 0, 0, nan, nan)
    if better == "zero":
        # a volume error gains by coming nearer to nothing, whichever side it is on
        first, second = np.abs(first), np.abs(second)
    apart = second - first
    gains = apart if better == "higher" else -apart
    interval = None
    if number > 1:
        interval = bootstrap.interval(bootstrap.weights(number) @ apart / number)
    return Difference(
        structure,
        metric,
        number,
        float(first.mean()),
        float(second.mean()),
        float(apart.mean()),
        interval,
        int((gains > 0).sum()),
        int((gains < 0).sum()),
        _wilcoxon(apart),
        math.nan,
    )


def _wilcoxon(apart: Floats) -> float:
    apart = apart[apart != 0]
    return float(stats.wilcoxon(apart).pvalue) if apart.size else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN takes no part."""
    p = np.array(p_values)
    corrected = np.full(p.shape, math.nan)
    order = [int(n) for n in np.argsort(p, kind="stable") if math.isfinite(p[n])]
    least = 0.0
    for rank, n in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * float(p[n])))
        corrected[n] = least
    return [float(value) for value in corrected]
