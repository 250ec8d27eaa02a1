"""The Medical Segmentation Decathlon: ``dataset.json`` lists images and labels.

The file holds ``labels``, ``modality`` (or ``channel_names``) and ``training``, a list of image and
label paths relative to the folder. Several modalities of a case are either several files or one
four-dimensional file, as in Task01.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.layouts.listing import (
    Listing,
    Problem,
    damaged,
    file_stem,
    inside,
    patient_of,
    read_json,
    refuse,
)
from medseg.data.schemes import REGIONS, SCHEMES, find_scheme, recode_by_name
from medseg.errors import ConfigError, kind_of

__all__ = ["INDEX_NAME", "channel_names", "index_of", "is_msd", "list_msd"]

INDEX_NAME = "dataset.json"


def is_msd(root: Path) -> bool:
    """Whether the folder has an index that lists its training cases."""
    path = root / INDEX_NAME
    return path.is_file() and "training" in read_json(path)


def list_msd(root: Path, scheme: str | None = None) -> Listing:
    """List the cases of ``dataset.json``.

    Args:
        root: The dataset's folder.
        scheme: Name of a label scheme to use in place of the names in the index; its values are
            taken to be those on disk unless its structures are all named in the index.

    Raises:
        FormatError: ``dataset-index`` if the file is damaged or lacks what it must hold.
        ConfigError: ``dataset-missing``, ``dataset-path``, ``scheme-unknown``.
    """
    path = index_of(root)
    index = read_json(path)
    channels = channel_names(path, index)
    stored = LabelScheme.plain(str(index.get("name", root.name)), _labels(path, index))
    wanted, recode = (stored, ()) if scheme is None else _named(stored, scheme)
    cases, problems = _cases(path, index, root, channels, recode)
    return Listing(
        layout="msd",
        name=str(index.get("name", root.name)),
        licence=str(index.get("licence", index.get("license", "unknown"))),
        channels=channels,
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        regions=REGIONS.get(wanted.name, ()),
        cases=cases,
        problems=problems,
    )


def index_of(root: Path) -> Path:
    """The ``dataset.json`` of a folder.

    Raises:
        ConfigError: ``dataset-missing``.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        refuse(
            path,
            expected="the dataset's index",
            found="no such file",
            remedy="give the folder that holds dataset.json, or name another layout",
            code="dataset-missing",
        )
    return path


def channel_names(path: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The channels that an index names, in their order.

    Raises:
        FormatError: ``dataset-index``.
    """
    named = index.get("channel_names", index.get("modality"))
    if not isinstance(named, Mapping) or not named or not all(str(key).isdigit() for key in named):
        damaged(path, expected='"modality" as {"0": name, ...}', found=kind_of(named))
    names = tuple(str(named[key]) for key in sorted(named, key=int))
    if len(set(names)) < len(names):  # some indexes call every channel "MRI"
        names = tuple(f"{name} {number}" for number, name in enumerate(names))
    return names


def _named(stored: LabelScheme, name: str) -> tuple[LabelScheme, tuple[tuple[int, int], ...]]:
    wanted = find_scheme(name)
    names = {label.name for label in stored.labels}
    if all(label.name in names for label in wanted.labels):
        return wanted, recode_by_name(stored, wanted)
    return wanted, ()


def _labels(path: Path, index: Mapping[str, Any]) -> dict[int, str]:
    named = index.get("labels")
    if not isinstance(named, Mapping) or not named:
        damaged(
            path, expected='"labels" as {"0": "background", "1": name, ...}', found=kind_of(named)
        )
    try:
        # the Decathlon writes {"1": name}, nnU-Net {name: 1}
        labels = {
            int(key) if str(key).isdigit() else int(value): str(value)
            if str(key).isdigit()
            else str(key)
            for key, value in named.items()
        }
    except (TypeError, ValueError):
        damaged(path, expected="integer label values", found="labels that are not integers")
    labels.pop(0, None)
    if not labels:
        damaged(path, expected="at least one label beside background", found="none")
    return labels


def _cases(
    path: Path,
    index: Mapping[str, Any],
    root: Path,
    channels: Sequence[str],
    recode: tuple[tuple[int, int], ...],
) -> tuple[tuple[Case, ...], tuple[Problem, ...]]:
    listed = index.get("training")
    if not isinstance(listed, list) or not listed:
        damaged(path, expected='"training" as a list of cases', found=kind_of(listed))
    cases: dict[str, Case] = {}
    owners: dict[Path, str] = {}
    problems: list[Problem] = []
    for entry in listed:
        if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
            damaged(path, expected='cases as {"image": path, "label": path}', found=kind_of(entry))
        listed_images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        if len(listed_images) not in (1, len(channels)):
            damaged(
                path,
                expected=f"one image file for each of the {len(channels)} channels of a case, or "
                "one for all",
                found=f"{len(listed_images)}",
            )
        try:
            label = inside(path, root, entry["label"])
            images = tuple(inside(path, root, name) for name in listed_images)
        except ConfigError as error:
            if error.code != "dataset-file-missing":
                raise
            problems.append(Problem(file_stem(Path(entry["label"])), error))
            continue
        name = file_stem(label)
        case = Case(name, images, label, patient=patient_of(name), recode=recode)
        if case.id in cases or any(file in owners for file in (*images, label)):
            damaged(path, expected="every case and file once", found=f"{case.id!r} again")
        cases[case.id] = case
        owners.update(dict.fromkeys((*images, label), case.id))
    return tuple(cases[name] for name in sorted(cases)), tuple(problems)
