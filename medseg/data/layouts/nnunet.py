"""nnU-Net raw datasets: ``imagesTr/CASE_0000``, ``labelsTr/CASE``, ``dataset.json``.

``dataset.json`` holds ``channel_names``, ``labels`` (name to value, or name to a list of values for
regions that overlap, with ``regions_class_order``), ``file_ending``, and maybe a label ``ignore``
for voxels that nobody annotated. nnU-Net's ``splits_final.json`` is read as a split file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.layouts.listing import (
    Listing,
    Problem,
    case_problem,
    damaged,
    patient_of,
    read_json,
)
from medseg.data.layouts.msd import INDEX_NAME, channel_names, index_of
from medseg.data.schemes import REGIONS, SCHEMES, find_scheme
from medseg.errors import kind_of
from medseg.io.reading import IMAGE_SUFFIXES
from medseg.models.card import Region

__all__ = ["is_nnunet", "list_nnunet"]

_BACKGROUND, _IGNORE = "background", "ignore"


def is_nnunet(root: Path) -> bool:
    """Whether the folder has ``imagesTr`` and an index without a list of cases."""
    path = root / INDEX_NAME
    return path.is_file() and (root / "imagesTr").is_dir() and "training" not in read_json(path)


def list_nnunet(root: Path, scheme: str | None = None) -> Listing:
    """List the training cases by their file names.

    Args:
        root: The folder ``DatasetNNN_Name``.
        scheme: Name of a label scheme for the values on disk, in place of the names in the index.

    Raises:
        FormatError: ``dataset-index``.
        ConfigError: ``dataset-missing``, ``dataset-labels``, ``scheme-unknown``.
    """
    path = index_of(root)
    index = read_json(path)
    channels = channel_names(path, index)
    ending = index.get("file_ending")
    if ending not in IMAGE_SUFFIXES:
        damaged(
            path,
            expected=f'"file_ending" among {", ".join(IMAGE_SUFFIXES)}',
            found=kind_of(ending) if not isinstance(ending, str) else repr(ending),
        )
    own, regions, ignored = _labels(path, index, str(index.get("name", root.name)))
    wanted = own if scheme is None else find_scheme(scheme)
    cases, problems = _cases(root, str(ending), len(channels), ignored)
    return Listing(
        layout="nnunet",
        name=str(index.get("name", root.name)),
        licence=str(index.get("licence", index.get("license", "unknown"))),
        channels=channels,
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        regions=REGIONS.get(wanted.name, regions),
        cases=cases,
        problems=problems,
    )


def _labels(
    path: Path, index: Mapping[str, Any], name: str
) -> tuple[LabelScheme, tuple[Region, ...], int | None]:
    named = index.get("labels")
    if not isinstance(named, Mapping) or not named:
        damaged(path, expected='"labels" as {name: value, ...}', found=kind_of(named))
    members = {str(key): _values(path, value) for key, value in named.items()}
    members = {key: values for key, values in members.items() if key != _BACKGROUND}
    ignored = members.pop(_IGNORE, (None,))[0]
    if not members:
        damaged(path, expected="at least one label beside background", found="none")
    if all(len(values) == 1 for values in members.values()):
        return (
            LabelScheme.plain(name, {values[0]: key for key, values in members.items()}),
            (),
            ignored,
        )
    order = index.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(members):
        damaged(
            path,
            expected=f'"regions_class_order" with a value for each of {len(members)} regions',
            found=kind_of(order) if not isinstance(order, list) else f"{len(order)} values",
        )
    regions = []
    for (key, values), writes in zip(members.items(), order, strict=True):
        if writes not in values:
            damaged(path, expected=f"a value of {values} for the region {key!r}", found=f"{writes}")
        regions.append(Region(name=key, members=values, writes=writes))
    return LabelScheme.plain(name, _parts_of(members)), tuple(regions), ignored


def _values(path: Path, value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, int) and one >= 0 for one in values):
        damaged(path, expected="integer label values", found=kind_of(value))
    return tuple(values)


def _parts_of(members: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """A name for each value that regions are made of: the smallest region that holds it.

    A value that has a region to itself carries its name; others say what they are a part of.
    """
    names = {}
    for value in sorted({value for values in members.values() for value in values}):
        region = min(
            (key for key, values in members.items() if value in values),
            key=lambda key: len(members[key]),
        )
        alone = members[region] == (value,)
        names[value] = region if alone else f"{region}, part {value}"
    return names


def _cases(
    root: Path, ending: str, channels: int, ignored: int | None
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    images: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _files(root / "imagesTr"):
        if match := pattern.fullmatch(path.name):
            images[match[1]][int(match[2])] = path
    # a label map whose images are all missing is a case too
    for path in _files(root / "labelsTr"):
        if path.name.endswith(ending):
            images.setdefault(path.name.removesuffix(ending), {})
    cases, problems = [], []
    for name, found in sorted(images.items()):
        label = root / "labelsTr" / f"{name}{ending}"
        missing = sorted(set(range(channels)) - set(found))
        if missing:
            problems.append(
                case_problem(
                    name,
                    expected=f"an image for each of the {channels} channels",
                    found=f"none ending in _{missing[0]:04d}{ending}",
                    remedy="complete the case or take its files out of imagesTr and labelsTr",
                    code="modality-missing",
                )
            )
        elif not label.is_file():
            problems.append(
                case_problem(
                    name,
                    expected=f"a label map labelsTr/CASE{ending}",
                    found="no such file",
                    remedy="add the label map or move the images to imagesTs",
                    code="label-missing",
                )
            )
        else:
            files = tuple(found[number] for number in range(channels))
            cases.append(Case(name, files, label, patient_of(name), ignore_value=ignored))
    return tuple(cases), tuple(problems)


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, in order of name; nothing where there is none."""
    if not folder.is_dir():
        return []
    # macOS leaves ._NAME beside every file that it copies
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
