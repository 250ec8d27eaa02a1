"""Synapse / BTCV abdominal CT as it is downloaded: ``img/imgNNNN``, ``label/labelNNNN``, NIfTI.

The thirteen organs of the challenge are read as ``btcv-13``. With the name of another scheme of
abdominal organs (``transunet-8``, ``cascade-8``, ``emcad-8``) the values become those of that
scheme and the other organs background.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medseg.data.case import Case
from medseg.data.layouts.listing import Listing, case_problem
from medseg.data.schemes import SCHEMES, find_scheme, recode_by_name

__all__ = ["is_synapse", "list_synapse"]

_IMAGE = re.compile(r"(?:img|avg_?|image)?(\d{4})(?:_avg)?\.nii(?:\.gz)?")
_LABEL = re.compile(r"(?:label|avg_?)?(\d{4})(?:_avg_seg|_avg)?\.nii(?:\.gz)?")
_FOLDERS = (
    ("img", "label"),
    ("averaged-training-images", "averaged-training-labels"),
    ("imagesTr", "labelsTr"),
)
_WITHIN = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")


def is_synapse(root: Path) -> bool:
    """Whether the folder, or the challenge's ``RawData/Training`` in it, holds numbered scans."""
    if (root / "dataset.json").is_file():
        return False
    return next(_folders(root), None) is not None


def list_synapse(root: Path, scheme: str | None = None) -> Listing:
    """List the scans that have labels.

    Args:
        root: The folder that holds ``img`` and ``label``, or one above it as the challenge packs
            it.
        scheme: ``btcv-13`` or a scheme made of its organs; None takes ``btcv-13``.

    Raises:
        ConfigError: ``scheme-unknown``, ``scheme-differs``.
    """
    stored = SCHEMES["btcv-13"]
    wanted = stored if scheme is None else find_scheme(scheme)
    recode = recode_by_name(stored, wanted)
    cases, problems = [], []
    for images, labels in list(_folders(root))[:1]:
        by_number = dict(_numbered(labels, _LABEL))
        scans = dict(_numbered(images, _IMAGE))
        for number in sorted(scans.keys() | by_number.keys()):
            name = f"case{number}"
            if number not in scans:
                problems.append(
                    case_problem(
                        name,
                        expected=f"a scan of that number in {images.name}",
                        found="no such file",
                        remedy="add the scan or take its label map out of the folder",
                        code="modality-missing",
                    )
                )
            elif number not in by_number:
                problems.append(
                    case_problem(
                        name,
                        expected=f"a label map of that number in {labels.name}",
                        found="no such file",
                        remedy="add the label map or take the scan out of the folder",
                        code="label-missing",
                    )
                )
            else:
                cases.append(Case(name, (scans[number],), by_number[number], recode=recode))
    return Listing(
        layout="synapse",
        name="Synapse",
        channels=("CT",),
        scheme=wanted,
        is_named=True,
        cases=tuple(cases),
        problems=tuple(problems),
    )


def _folders(root: Path) -> Iterator[tuple[Path, Path]]:
    for within in _WITHIN:
        for images, labels in _FOLDERS:
            pair = (root / within / images, root / within / labels)
            if all(folder.is_dir() for folder in pair) and next(_numbered(pair[0], _IMAGE), None):
                yield pair


def _numbered(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match:
            yield match[1], path
