"""What every layout hands on: the cases of a dataset with what is known about all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.errors import ConfigError, FormatError, MedsegError, kind_of
from medseg.models.card import Region

__all__ = [
    "Listing",
    "Problem",
    "case_problem",
    "damaged",
    "file_stem",
    "inside",
    "parsed_json",
    "patient_of",
    "read_json",
    "refuse",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """A case that cannot be used, and why.

    Args:
        case: Its id.
        error: What training on the dataset is refused with.
    """

    case: str
    error: MedsegError


@dataclass(frozen=True, slots=True)
class Listing:
    """The labelled cases of a dataset, in rising order of id.

    Args:
        layout: Which layout it was read as.
        name: As the dataset calls itself, or its folder.
        channels: Channel names in order.
        scheme: What label values mean once a case has been read.
        cases: Those that are complete.
        problems: Those that are not: a missing modality, an image without label.
        licence: As the dataset states it, ``unknown`` if it does not.
        regions: Overlapping regions to train in place of the labels; empty for none.
        is_named: Whether ``scheme`` is one of :data:`~medseg.data.schemes.SCHEMES`, so that names
            must be equal as well as values.
        parts: A division that the dataset itself brings: part to case ids.
        notes: Harmless peculiarities worth a line.
    """

    layout: str
    name: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    licence: str = "unknown"
    regions: tuple[Region, ...] = ()
    is_named: bool = False
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def check_complete(self) -> None:
        """Refuse a dataset with a case that cannot be used, or without any case.

        Raises:
            MedsegError: What is wrong with the first of them.
        """
        if self.problems:
            raise self.problems[0].error
        if not self.cases:
            refuse(
                self.name,
                expected=f"at least one labelled case in the layout {self.layout!r}",
                found="none",
                remedy="check the folder, or name another layout",
                code="dataset-empty",
            )


def case_problem(case: str, *, expected: str, found: str, remedy: str, code: str) -> Problem:
    """A problem whose sentence names the case rather than a path."""
    return Problem(
        case,
        ConfigError(f"case {case}", expected=expected, found=found, remedy=remedy, code=code),
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        FormatError: ``dataset-index``.
    """
    content = parsed_json(path)
    if not isinstance(content, Mapping):
        damaged(path, expected="a JSON object", found=type(content).__name__)
    return content


def parsed_json(path: Path) -> Any:  # noqa: ANN401 - parsed JSON
    """Whatever a JSON file holds.

    Raises:
        FormatError: ``dataset-index`` if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(
            str(path),
            expected="a JSON file",
            found="text that is not JSON",
            remedy="repair or replace the file",
            code="dataset-index",
        ) from error


def inside(index_path: Path, root: Path, listed: object) -> Path:
    """A listed path, refused if it is absolute, climbs out of the folder or is missing.

    Symbolic links are followed: whoever keeps the dataset put them there.

    Raises:
        FormatError: ``dataset-index`` if it is no text.
        ConfigError: ``dataset-path`` or ``dataset-file-missing``.
    """
    if not isinstance(listed, str):
        damaged(index_path, expected="paths as text", found=kind_of(listed))
    relative = PurePosixPath(listed)
    if relative.is_absolute() or ".." in relative.parts or "\\" in listed:
        refuse(
            index_path,
            expected="paths inside the dataset's folder",
            found="one that leads out of it",
            remedy=f"keep images and labels under the folder of {index_path.name}",
            code="dataset-path",
        )
    path = root / relative
    if not path.is_file():
        refuse(
            path,
            expected=f"the file {relative}, listed in {index_path.name}",
            found="no such file",
            remedy=f"complete the dataset or take the case out of {index_path.name}",
            code="dataset-file-missing",
        )
    return path


def file_stem(path: Path, suffixes: Iterable[str] = (".nii.gz",)) -> str:
    """The file's name without its ending, ``.nii.gz`` being one ending."""
    for suffix in suffixes:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


# the frame of a heart, or the time point of a tumour, at the end of a name:
# patient001_frame01, BraTS-GLI-00005-101, Brats18_CBICA_AAB_1
_OF_PATIENT = re.compile(r"(patient\d{3})_frame\d+|(BraTS-[A-Za-z]+-\d+)-\d+|(Brats1[789]_.+)_\d+")


def patient_of(case: str) -> str:
    """Whom a case shows, where its name is built as that of ACDC or BraTS; else its own name."""
    match = _OF_PATIENT.fullmatch(case)
    return case if match is None else next(part for part in match.groups() if part)


def damaged(path: Path, *, expected: str, found: str) -> NoReturn:
    """Refuse the content of an index file."""
    raise FormatError(
        str(path), expected=expected, found=found, remedy="repair the file", code="dataset-index"
    )


def refuse(where: Path | str, *, expected: str, found: str, remedy: str, code: str) -> NoReturn:
    """Refuse a dataset or what was asked of it."""
    raise ConfigError(str(where), expected=expected, found=found, remedy=remedy, code=code)
