"""The files of an evaluation: a table of cases, a summary, and reading both back."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg import NOTICE, __version__
from medseg.errors import ConfigError, why_unreadable
from medseg.metrics.case import StructureScores
from medseg.metrics.settings import EvaluationSettings, Metric, metrics_of
from medseg.metrics.structures import Structure
from medseg.metrics.summary import Bootstrap, Interval, MetricSummary, summarise

__all__ = [
    "CASES",
    "PAGE",
    "SUMMARY",
    "Evaluation",
    "Failure",
    "SavedEvaluation",
    "read_evaluation",
]

CASES = "cases.csv"
SUMMARY = "summary.json"
PAGE = "report.html"

_FORMAT = "medseg-evaluation/1"
_PACKAGES = ("numpy", "scipy", "numba")
_PROTOCOLS = {
    "transunet": "distances in voxels, edge voxels, 95th percentile of both directions together; "
    "absent from the reference but predicted: Dice 1, distance 0; not predicted: Dice 0, distance "
    "0, so that a miss lowers the mean distance; in neither map: Dice 0, distance 0",
    "neunet": "distances in voxels, edge voxels, larger of both directions' 95th percentiles; "
    "absent from the reference, predicted or in neither map: left out; not predicted: Dice 0, "
    "distance left out",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A case whose prediction or reference could not be used."""

    case: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that an evaluation found.

    Args:
        scores: Case to the figures of its structures.
        missing: Cases without a prediction; they are among ``scores``, and not among ``failed``.
        foreign: Predictions without a reference.
        failed: Cases whose prediction or reference could not be used. Those whose prediction is at
            fault are among ``scores``, as the rule for missing predictions has it; the others are
            in no mean.
        structures: What was scored.
        structures_from: How that was chosen.
        labels_from: Where the labels were read.
        settings: The rules.
        bootstrap: How intervals were found.
    """

    scores: dict[str, tuple[StructureScores, ...]]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    failed: tuple[Failure, ...]
    structures: tuple[Structure, ...]
    structures_from: str
    labels_from: str
    settings: EvaluationSettings
    bootstrap: Bootstrap

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The figures, in the order of the tables."""
        return metrics_of(self.settings)

    def values_csm(self) -> npt.NDArray[np.float64]:
        """``(cases, structures, metrics)``; NaN where there is no value."""
        shape = (len(self.scores), len(self.structures), len(self.metrics))
        rows = [list(each.values.values()) for scores in self.scores.values() for each in scores]
        return np.array(rows, dtype=np.float64).reshape(shape)

    def summaries(self) -> list[MetricSummary]:
        """Means over cases, for every metric by structure and over all."""
        return summarise(
            self.values_csm(),
            list(self.scores),
            [structure.name for structure in self.structures],
            [(metric.name, metric.better) for metric in self.metrics],
            self.bootstrap,
        )

    def rows(self) -> Iterator[dict[str, object]]:
        """One row per case and structure; None where there is no value."""
        for case, scores in self.scores.items():
            for each in scores:
                lesions = each.lesions or (None, None, None)
                yield {
                    "case": case,
                    "structure": each.structure,
                    "found_in": each.state,
                    **{name: _plain(value) for name, value in each.values.items()},
                    "reference_ml": _plain(each.reference_ml),
                    "prediction_ml": _plain(each.prediction_ml),
                    "lesions_reference": lesions[0],
                    "lesions_prediction": lesions[1],
                    "lesions_matched": lesions[2],
                }

    def cases_csv(self) -> str:
        """The rows as a table: floats in their shortest exact form, nothing for no value."""
        text = io.StringIO()
        rows = list(self.rows())
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, in plain JSON types."""
        by_structure: dict[str, dict[str, Any]] = {each.name: {} for each in self.structures}
        mean: dict[str, Any] = {}
        for entry in self.summaries():
            place = mean if entry.structure is None else by_structure[entry.structure]
            place[entry.metric] = _entry(entry)
        lost = [each for each in self.failed if each.case not in self.scores]
        return {
            "format": _FORMAT,
            "notice": NOTICE,
            "medseg": __version__,
            "versions": {package: version(package) for package in _PACKAGES},
            "python": platform.python_version(),
            "settings": self.settings.in_force(),
            "policy": policy_in_words(self.settings),
            "bootstrap": {
                "level": self.bootstrap.level,
                "draws": self.bootstrap.draws,
                "seed": self.bootstrap.seed,
                "of": "means over cases drawn with replacement, percentile interval",
            },
            "labels_from": self.labels_from,
            "structures_from": self.structures_from,
            "structures": {each.name: list(each.members) for each in self.structures},
            "metrics": {metric.name: metric.better for metric in self.metrics},
            "cases": {
                "references": len(self.scores) + len(lost),
                "scored": len(self.scores) + len(lost) - len(self.missing) - len(self.failed),
                "missing": list(self.missing),
                "failed": [
                    {
                        "case": each.case,
                        "code": each.code,
                        "message": each.message,
                        "scored_as": self.settings.missing if each.case in self.scores else None,
                    }
                    for each in self.failed
                ],
                "foreign_predictions": list(self.foreign),
            },
            "results": by_structure,
            "mean": mean,
        }


@dataclass(frozen=True, slots=True, eq=False)
class SavedEvaluation:
    """An evaluation as read back.

    Args:
        cases: Names along the first axis of ``values_csm``.
        structures: Names along the second.
        metrics: Name and what is better along the third.
        values_csm: ``(cases, structures, metrics)``; NaN where there is no value.
        rules: Settings and structures; two evaluations can be compared if these are equal.
    """

    cases: tuple[str, ...]
    structures: tuple[str, ...]
    metrics: tuple[tuple[str, str], ...]
    values_csm: npt.NDArray[np.float64]
    rules: dict[str, Any]


def read_evaluation(folder: Path) -> SavedEvaluation:
    """Read what ``medseg evaluate`` wrote.

    Raises:
        ConfigError: If the folder holds no such files, or they do not fit each other.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        if summary["format"] != _FORMAT:
            raise ValueError(f"the format {summary['format']}")
        structures = tuple(summary["structures"])
        metrics = tuple((str(name), str(better)) for name, better in summary["metrics"].items())
        rows = list(csv.DictReader((folder / CASES).read_text(encoding="utf-8").splitlines()))
        cases = tuple(dict.fromkeys(row["case"] for row in rows))
        values = np.full((len(cases), len(structures), len(metrics)), np.nan)
        for row in rows:
            place = cases.index(row["case"]), structures.index(row["structure"])
            values[place] = [float(row[name]) if row[name] else math.nan for name, _ in metrics]
        rules = {"settings": summary["settings"], "structures": summary["structures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            str(folder),
            expected=f"a folder that `medseg evaluate` wrote, with {SUMMARY} and {CASES}",
            found=why_unreadable(error),
            remedy="evaluate again, or give the folder after -o",
            code="evaluation-unreadable",
        ) from error
    return SavedEvaluation(cases, structures, metrics, values, rules)


def policy_in_words(settings: EvaluationSettings) -> dict[str, str]:
    """What is done where something is missing, in sentences."""
    missing = {
        "worst": "the worst value of every figure in every structure, the image's diagonal for "
        "distances",
        "leave-out": "left out of means",
    }[settings.missing]
    at_fault = {
        "prediction missing": missing,
        "prediction failed": f"as a missing one: {missing}; named under cases",
        "reference failed": "in no mean; named under cases",
    }
    if settings.protocol is not None:
        return {"protocol": _PROTOCOLS[settings.protocol], **at_fault}
    distances = {"worst": "the image's diagonal", "leave-out": "left out"}[settings.one_empty]
    return {
        "structure in neither": {
            "leave-out": "left out of means",
            "perfect": "scored as perfect",
        }[settings.both_empty],
        "structure in one of both": f"Dice, IoU, NSD and lesion F1 are 0, distances: {distances}",
        **at_fault,
    }


def _entry(entry: MetricSummary) -> dict[str, Any]:
    content: dict[str, Any] = {
        "mean": _plain(entry.mean),
        "interval": _ends(entry.interval),
        "median": _plain(entry.median),
        "std": _plain(entry.std),
    }
    if entry.structure is None:
        return content | {"structures": entry.cases}
    return content | {"cases": entry.cases, "worst_case": entry.worst}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def columns_without_values(rows: Sequence[dict[str, object]]) -> set[str]:
    """Columns of which no row has a value."""
    return {column for column in rows[0] if all(row[column] is None for row in rows)}
