"""How much work a correction was: what changed in each structure since the labels came."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from medseg import NOTICE, __version__
from medseg.core.labelmap import label_counts
from medseg.core.scheme import LabelScheme
from medseg_napari._provenance import Change, changes, segment_types

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType
    from medseg_napari._origin import LayerOrigin

__all__ = ["EffortReport", "LabelEffort", "effort_report"]

_DECIMALS = 9  # of which a single voxel of any scanner shows


@dataclass(frozen=True, slots=True)
class LabelEffort:
    """What became of one structure.

    Args:
        value: Its label.
        name: Its name.
        kind: How it came about; empty where it is gone.
        before_ml: Its volume as it came.
        after_ml: Its volume now.
        added_ml: What it has and did not have.
        removed_ml: What it had and has no more.
        dice: As it came against now; None where it is absent in both.
    """

    value: int
    name: str
    kind: AlgorithmType | Literal[""]
    before_ml: float
    after_ml: float
    added_ml: float
    removed_ml: float
    dice: float | None


@dataclass(frozen=True, slots=True)
class EffortReport:
    """What became of all structures, and how long it took.

    Args:
        labels: In the order of values.
        made_by: Name and version of what made the labels in the beginning; None if nothing did, or
            it is not recorded.
        weights_sha256: Of that model; empty if it is not recorded.
        seconds: Time of work.
        seconds_mean: Whether that is time of editing, or simply the time since the labels came.
    """

    labels: tuple[LabelEffort, ...]
    made_by: tuple[str, str] | None
    weights_sha256: str
    seconds: float | None
    seconds_mean: Literal["editing", "since the labels came", "not known"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "notice": NOTICE,
            "medseg": __version__,
            "model": None
            if self.made_by is None
            else {
                "name": self.made_by[0],
                "version": self.made_by[1],
                "weights_sha256": self.weights_sha256 or None,
            },
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "seconds_mean": self.seconds_mean,
            "labels": [
                {
                    key: round(value, _DECIMALS) if isinstance(value, float) else value
                    for key, value in asdict(label).items()
                }
                for label in self.labels
            ],
        }

    def to_json(self) -> str:
        """The report as a text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per structure."""
        stream = io.StringIO()
        rows = self.to_dict()["labels"]
        fields = ["value", "name", "kind", "before_ml", "after_ml", "added_ml", "removed_ml"]
        writer = csv.DictWriter(stream, [*fields, "dice"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()


def effort_report(
    labels_shown: npt.NDArray[Any],
    origin: LayerOrigin,
    scheme: LabelScheme,
    *,
    edited: Mapping[int, AlgorithmType] | None = None,
    seconds: float | None = None,
) -> EffortReport:
    """Compare labels with what they were when they came.

    Args:
        labels_shown: uint8 or uint16 along I, P, L.
        origin: Of the labels.
        scheme: Names, for every value that is present.
        edited: As for :func:`~medseg_napari._provenance.segment_types`.
        seconds: Time of editing, if an editor has measured it.
    """
    labels = origin.original_array(labels_shown)
    beginning = origin.beginning
    types = segment_types(labels, beginning, edited)
    if beginning is None:
        counts = label_counts(labels)
        found = {
            value: Change(0, int(counts[value]), 0) for value in scheme.values if counts[value]
        }
    else:
        found = changes(beginning.labels.labels(), labels)
    voxel_ml = origin.grid.voxel_volume_mm3 / 1000
    names = {label.value: label.name for label in scheme.labels}
    lines = tuple(
        LabelEffort(
            value,
            names.get(value, f"label {value}"),
            types.get(value, ""),
            change.model_voxels * voxel_ml,
            change.voxels * voxel_ml,
            change.added * voxel_ml,
            change.removed * voxel_ml,
            change.dice,
        )
        for value, change in sorted(found.items())
    )
    if seconds is not None:
        return EffortReport(lines, *_maker(origin), seconds, "editing")
    if beginning is not None:
        since = max(0.0, time.time() - beginning.began_s)
        return EffortReport(lines, *_maker(origin), since, "since the labels came")
    return EffortReport(lines, *_maker(origin), None, "not known")


def _maker(origin: LayerOrigin) -> tuple[tuple[str, str] | None, str]:
    beginning = origin.beginning
    return (None, "") if beginning is None else (beginning.algorithm, beginning.weights_sha256)
