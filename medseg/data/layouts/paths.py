"""A CSV or YAML file that lists the paths of images and labels: for data in no common layout.

A CSV has a line per case and the columns ``label``, ``image`` (or ``image:T1``, ``image:T2``, ...
for several channels), and if wanted ``id``, ``patient`` and ``split`` (train, validation or test),
separated by commas, semicolons or tabs. What the labels mean stands in ``labels.yaml`` beside it,
or is named with the dataset. A YAML file holds ``labels`` and ``cases`` (each with ``images``,
``label``, and if wanted ``id``, ``patient``, ``split``), and if wanted ``channels`` (one called
``image`` if left out), ``name`` and ``licence``.

Paths are relative to the file; unlike in datasets that others made, they may also be absolute.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.layouts.listing import (
    Listing,
    Problem,
    case_problem,
    damaged,
    file_stem,
    refuse,
)
from medseg.data.schemes import REGIONS, SCHEMES, find_scheme, scheme_of_content
from medseg.errors import FormatError, kind_of, one_of

__all__ = ["find_lists", "is_list", "list_paths"]

_SUFFIXES = (".csv", ".yaml", ".yml")
_LOOKED_AT = 10_000
_NAMES = ("cases.csv", "cases.yaml", "cases.yml")
_SEPARATORS = (",", ";", "\t")  # spreadsheets write the second where a comma marks decimals
_PARTS = ("train", "validation", "test")
_LABELS_NAME = "labels.yaml"
_KEYS = ("id", "patient", "images", "label", "split")


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    patient: str
    images: tuple[str, ...]
    label: str
    split: str
    place: str


@dataclass(frozen=True, slots=True)
class _Content:
    name: str
    licence: str
    channels: tuple[str, ...]
    scheme: LabelScheme | None
    rows: tuple[_Row, ...]


def is_list(root: Path) -> bool:
    """Whether it is a CSV or YAML file, or a folder with ``cases.csv`` or ``cases.yaml``."""
    return _list_file(root) is not None


def find_lists(folder: Path) -> tuple[str, ...]:
    """Names of the files in a folder that look like lists of paths, by whatever name."""
    return tuple(path.name for path in sorted(folder.iterdir()) if _looks_like_list(path))


def list_paths(root: Path, scheme: str | None = None) -> Listing:
    """List the cases of the file.

    Args:
        root: The file, or a folder with ``cases.csv`` or ``cases.yaml``.
        scheme: Name of a label scheme in place of the one in the file.

    Raises:
        FormatError: ``dataset-index`` if the file is damaged or lacks what it must hold.
        ConfigError: ``dataset-missing``, ``scheme-missing``, ``scheme-unknown``.
    """
    path = _list_file(root)
    if path is None:
        refuse(
            root,
            expected=f"a CSV or YAML file, or a folder with {one_of('', _NAMES)}",
            found="neither",
            remedy="give the file that lists the cases",
            code="dataset-missing",
        )
    content = _read_csv(path) if path.suffix.lower() == ".csv" else _read_yaml(path)
    wanted = content.scheme if scheme is None else find_scheme(scheme)
    if wanted is None:
        refuse(
            path,
            expected=f"{_LABELS_NAME} beside it, with the meaning of the label values",
            found="no such file",
            remedy="write one (see `medseg data schemes`), or name a scheme with --scheme or as "
            "data.scheme",
            code="scheme-missing",
        )
    cases, problems, parts = _cases(path, content)
    return Listing(
        layout="list",
        name=content.name,
        licence=content.licence,
        channels=content.channels,
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        regions=REGIONS.get(wanted.name, ()),
        cases=cases,
        problems=problems,
        parts=parts,
    )


def _looks_like_list(path: Path) -> bool:
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in _SUFFIXES or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            beginning = stream.read(_LOOKED_AT).splitlines()
    except OSError:
        return False
    if suffix == ".csv":
        names = _columns(beginning[0], _separator(beginning)) if beginning else []
        return "label" in names and any(name.split(":")[0] == "image" for name in names)
    return any(line.startswith("cases:") for line in beginning)


def _list_file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in _SUFFIXES else None
    return next((root / name for name in _NAMES if (root / name).is_file()), None)


def _read_csv(path: Path) -> _Content:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines_of_text = text.splitlines()
        reader = csv.DictReader(lines_of_text, delimiter=_separator(lines_of_text), strict=True)
        numbers, lines = [], []
        for line in reader:
            numbers.append(reader.line_num)
            lines.append(line)
    except (UnicodeDecodeError, csv.Error):
        damaged(path, expected="a CSV file with a heading", found="text that cannot be parsed")
    heading = [name for name in (lines[0] if lines else {}) if name is not None]
    columns = [name for name in heading if name == "image" or name.startswith("image:")]
    if not columns or "label" not in heading:
        damaged(
            path,
            expected='the columns "image" (or "image:NAME" for each channel) and "label"',
            found=", ".join(heading) or "no line beside the heading",
        )
    strangers = sorted(set(heading) - set(columns) - {"id", "patient", "label", "split"})
    if strangers:
        damaged(
            path,
            expected=f"columns {one_of(strangers[0], ('id', 'patient', 'label', 'split'))}",
            found=repr(strangers[0]),
        )
    rows = tuple(
        _Row(
            id=(line.get("id") or "").strip(),
            patient=(line.get("patient") or "").strip(),
            images=tuple((line[name] or "").strip() for name in columns),
            label=(line["label"] or "").strip(),
            split=(line.get("split") or "").strip(),
            place=f"of line {number}",
        )
        for number, line in zip(numbers, lines, strict=True)
    )
    labels = path.parent / _LABELS_NAME
    return _Content(
        name=path.stem,
        licence="unknown",
        channels=tuple(name.removeprefix("image:") for name in columns),
        scheme=find_scheme(str(labels)) if labels.is_file() else None,
        rows=rows,
    )


def _separator(lines: Sequence[str]) -> str:
    """What separates the columns of the heading; a comma if nothing tells."""
    heading = lines[0] if lines else ""
    return next((mark for mark in _SEPARATORS if "label" in _columns(heading, mark)), ",")


def _columns(heading: str, mark: str) -> list[str]:
    return [name.strip().strip('"') for name in heading.split(mark)]


def _read_yaml(path: Path) -> _Content:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(
            str(path),
            expected="plain YAML",
            found="text that cannot be parsed",
            remedy="repair the file",
            code="dataset-index",
        ) from error
    if not isinstance(content, Mapping):
        damaged(path, expected="a mapping with channels, labels and cases", found=kind_of(content))
    known = ("name", "licence", "channels", "labels", "cases")
    strangers = sorted(str(key) for key in set(content) - set(known))
    if strangers:
        damaged(path, expected=one_of(strangers[0], known), found=f"the key {strangers[0]!r}")
    channels, cases = content.get("channels", ["image"]), content.get("cases")
    if not isinstance(channels, list) or not channels:
        damaged(path, expected='"channels" as a list of names', found=kind_of(channels))
    if not isinstance(cases, list) or not cases:
        damaged(path, expected='"cases" as a list', found=kind_of(cases))
    name = str(content.get("name", path.stem))
    return _Content(
        name=name,
        licence=str(content.get("licence", "unknown")),
        channels=tuple(str(channel) for channel in channels),
        scheme=_scheme(path, name, content.get("labels")),
        rows=tuple(_yaml_row(path, case, number) for number, case in enumerate(cases, start=1)),
    )


def _scheme(path: Path, name: str, labels: Any) -> LabelScheme | None:  # noqa: ANN401 - parsed YAML
    if labels is None:
        return None
    if isinstance(labels, str):
        return find_scheme(labels)
    if isinstance(labels, Mapping) and "labels" in labels:
        return scheme_of_content(labels, str(path), name)
    if not isinstance(labels, Mapping) or not all(isinstance(value, int) for value in labels):
        damaged(
            path,
            expected='"labels" as {value: name}, a scheme or the name of one',
            found=kind_of(labels),
        )
    return scheme_of_content(labels, str(path), name)


def _yaml_row(path: Path, case: Any, number: int) -> _Row:  # noqa: ANN401 - parsed YAML
    if not isinstance(case, Mapping) or not {"images", "label"} <= set(case):
        damaged(path, expected="cases with images and label", found=kind_of(case))
    strangers = sorted(str(key) for key in set(case) - set(_KEYS))
    if strangers:
        damaged(path, expected=one_of(strangers[0], _KEYS), found=f"the key {strangers[0]!r}")
    images = case["images"] if isinstance(case["images"], list) else [case["images"]]
    return _Row(
        id=_told(case.get("id")),
        patient=_told(case.get("patient")),
        images=tuple(_told(image) for image in images),
        label=_told(case["label"]),
        split=_told(case.get("split")),
        place=f"of entry {number}",
    )


def _told(value: object) -> str:
    return "" if value is None else str(value)


def _cases(
    path: Path, content: _Content
) -> tuple[tuple[Case, ...], tuple[Problem, ...], dict[str, tuple[str, ...]]]:
    cases: dict[str, Case] = {}
    problems: list[Problem] = []
    parts: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in content.rows:
        name = row.id or (file_stem(Path(row.label)) if row.label else row.place)
        if name in seen:
            damaged(path, expected="every case once", found=f"{name!r} again")
        seen.add(name)
        images = tuple(path.parent / image for image in row.images)
        label = path.parent / row.label
        problem = _missing(name, row, images, label, content.channels)
        if problem:
            problems.append(problem)
            continue
        if row.split:
            if row.split not in _PARTS:
                damaged(path, expected=f"split {one_of(row.split, _PARTS)}", found=repr(row.split))
            parts.setdefault(row.split, []).append(name)
        cases[name] = Case(name, images, label, patient=row.patient)
    return (
        tuple(cases[name] for name in sorted(cases)),
        tuple(problems),
        {part: tuple(names) for part, names in parts.items()},
    )


def _missing(
    name: str, row: _Row, images: Sequence[Path], label: Path, channels: Sequence[str]
) -> Problem | None:
    if len(images) not in (1, len(channels)) or not all(row.images):
        given = sum(bool(image) for image in row.images)
        expected, found = f"an image for each of the {len(channels)} channels", f"{given}"
        code = "modality-missing"
    elif not row.label or not label.exists():
        found = "no such file" if row.label else "no path of one"
        expected, code = "an existing label map", "label-missing"
    elif not all(image.exists() for image in images):
        expected, found, code = "existing images", "no such file", "dataset-file-missing"
    else:
        return None
    return case_problem(
        name,
        expected=expected,
        found=found,
        remedy="correct the list or complete the dataset",
        code=code,
    )
