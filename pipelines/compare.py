"""Comparison of two evaluations of the same cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError, one_of
from medseg.metrics.comparison import Difference, compare_paired
from medseg.metrics.summary import Bootstrap
from pipelines.evaluation_files import read_evaluation

__all__ = ["Comparison", "compare_evaluations"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Args:
        differences: One entry per metric and structure.
        shared: Cases that both evaluations have.
        only_first: Cases of the first alone; they count in nothing.
        only_second: Cases of the second alone.
        bootstrap: How intervals were found.
    """

    differences: list[Difference]
    shared: list[str]
    only_first: list[str]
    only_second: list[str]
    bootstrap: Bootstrap

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not a number is None."""
        return {
            "cases": len(self.shared),
            "only_in_first": self.only_first,
            "only_in_second": self.only_second,
            "bootstrap": asdict(self.bootstrap),
            "test": "Wilcoxon signed-rank, two-sided; Holm over all rows",
            "differences": [
                {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in asdict(each).items()
                }
                for each in self.differences
            ],
        }


def compare_evaluations(
    first: Path, second: Path, bootstrap: Bootstrap, wanted: Sequence[str] | None = None
) -> Comparison:
    """Compare two folders of ``medseg evaluate``, case by case.

    Args:
        first: Folder of one evaluation.
        second: Folder of the other.
        bootstrap: How intervals are found.
        wanted: Figures to compare; None compares all. Holm's correction is for these.

    Raises:
        ConfigError: If one cannot be read, their rules or structures differ, or they share no
            case.
    """
    one, other = read_evaluation(first), read_evaluation(second)
    rules, others = one.rules["settings"], other.rules["settings"]
    differing = [key for key in {**rules, **others} if rules.get(key) != others.get(key)]
    if one.rules["structures"] != other.rules["structures"]:
        differing.append("structures")
    if differing:
        raise ConfigError(
            str(second),
            expected="the rules of the first evaluation",
            found=f"others: {', '.join(differing)}",
            remedy="evaluate both with the same options",
            code="evaluations-differ",
        )
    shared = [case for case in one.cases if case in set(other.cases)]
    if not shared:
        raise ConfigError(
            str(second),
            expected="cases of the first evaluation",
            found="none of them",
            remedy="evaluate both runs on the same references",
            code="evaluations-differ",
        )
    names = [name for name, _ in one.metrics]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ConfigError(
            "--metrics",
            expected=one_of(unknown[0], names),
            found=repr(unknown[0]),
            remedy="name figures of the evaluations",
            code="metric-unknown",
        )
    kept = [index for index, name in enumerate(names) if wanted is None or name in wanted]
    differences = compare_paired(
        one.values_csm[[one.cases.index(case) for case in shared]][:, :, kept],
        other.values_csm[[other.cases.index(case) for case in shared]][:, :, kept],
        one.structures,
        [one.metrics[index] for index in kept],
        bootstrap,
    )
    return Comparison(
        differences,
        shared,
        [case for case in one.cases if case not in shared],
        [case for case in other.cases if case not in shared],
        bootstrap,
    )
