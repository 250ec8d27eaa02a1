"""What the files of a case are called, and which of them an earlier run has left."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.core import LabelScheme
from medseg.errors import ConfigError
from medseg.io.bids_names import bids_names

__all__ = [
    "RESULTS",
    "earlier_results",
    "is_result_name",
    "mask_names",
    "result_name",
    "results_exist",
    "structure_names",
]

RESULTS = {
    "report": "_report.json",
    "nifti": "_dseg.nii.gz",
    "table": "_dseg.tsv",
    "dicom_seg": "_dseg.dcm",
    "dicom_probseg": "_probseg.dcm",
    "rtstruct": "_rtstruct.dcm",
    "statistics": "_statistics.json",
    "statistics_table": "_statistics.csv",
    "uncertainty": "_uncertainty.nii.gz",
    "probabilities": "_probseg.h5",
    "preview": "_preview.png",
    "page": "_report.html",
}
"""Kind of result to the ending of its file; the report comes last and tells that all are there."""

_MASK = re.compile(r".*_label-[0-9a-z]+_mask\.nii\.gz", re.IGNORECASE | re.DOTALL)


def structure_names(scheme: LabelScheme) -> dict[int, str]:
    """Label value to the name of its structure as file names have it, such as ``LeftKidney``."""
    names = bids_names([label.name for label in scheme.labels])
    return {label.value: name for label, name in zip(scheme.labels, names, strict=True)}


def mask_names(case: str, scheme: LabelScheme) -> dict[str, str]:
    """Kind and name of the file of every structure, in the order of the labels."""
    return {
        f"mask_{name}": f"{case}_label-{name}_mask.nii.gz"
        for name in structure_names(scheme).values()
    }


def result_name(case: str, kind: str) -> str | None:
    """The name of a file by its kind, of :data:`RESULTS` or :func:`mask_names`; None for others."""
    if kind in RESULTS:
        return f"{case}{RESULTS[kind]}"
    name = f"{case}_label-{kind.removeprefix('mask_')}_mask.nii.gz"
    return name if kind.startswith("mask_") and _MASK.fullmatch(name) else None


def is_result_name(name: str) -> bool:
    """Whether a file is called as results are."""
    return name.lower().endswith(tuple(RESULTS.values())) or _MASK.fullmatch(name) is not None


def earlier_results(case: str, out: Path, masks: Sequence[str] = ()) -> list[Path]:
    """The result files of a case that are there.

    Args:
        case: Its name.
        out: The folder.
        masks: Names of the files of single structures that are to be written; those that an
            earlier run wrote are in its report.
    """
    names = [f"{case}{end}" for end in RESULTS.values()]
    names += [*masks, *_reported_masks(case, out)]
    return [path for name in dict.fromkeys(names) if (path := out / name).exists()]


def _reported_masks(case: str, out: Path) -> list[str]:
    try:
        report = json.loads((out / f"{case}{RESULTS['report']}").read_text(encoding="utf-8"))
        names = [str(file["name"]) for file in report["files"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # no report, or none of ours
    return [
        name
        for name in names
        if name.startswith(f"{case}_label-") and _MASK.fullmatch(name) and Path(name).name == name
    ]


def results_exist(path: Path) -> ConfigError:
    """The refusal to replace a file."""
    return ConfigError(
        str(path),
        expected="no result of this name yet",
        found="one from an earlier run",
        remedy="add --overwrite, or choose another output folder",
        code="output-exists",
    )
