"""Which cases a dataset has and which of them train: the Medical Segmentation Decathlon layout.

A dataset folder holds ``dataset.json`` with ``labels``, ``modality`` (or ``channel_names``) and
``training``, a list of image and label paths relative to the folder. A split file holds
``{"train": [case ids], "validation": [case ids]}``; a case id is the name of its label file
without the suffix.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from medseg.core import LabelScheme
from medseg.errors import ConfigError, FormatError, one_of

__all__ = ["SPLIT_NAME", "Case", "DataList", "read_datalist"]

SPLIT_NAME = "split.json"
_INDEX_NAME = "dataset.json"


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled case.

    Args:
        id: Name of the label file without suffix.
        images: One file per channel, in the order of the dataset's channels.
        label: The expert's label map.
    """

    id: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True, slots=True)
class DataList:
    """The cases of a dataset, divided; no case is in both parts.

    Args:
        name: As the dataset calls itself.
        licence: As the dataset states it, ``unknown`` if it does not.
        channels: Channel names.
        labels: Label value to name, background left out.
        train: Cases to learn from.
        validation: Cases to judge by.
        split_source: Which rule divided them, in words.
        sha256: Hash over path and size of every file of both parts.
    """

    name: str
    licence: str
    channels: tuple[str, ...]
    labels: dict[int, str]
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    split_source: str
    sha256: str

    def split(self) -> dict[str, list[str]]:
        """The division as a split file holds it."""
        return {
            "train": [case.id for case in self.train],
            "validation": [case.id for case in self.validation],
        }

    def check_scheme(self, scheme: LabelScheme) -> None:
        """Refuse a label scheme that does not list exactly the dataset's label values.

        Raises:
            ConfigError: If the values differ.
        """
        if set(scheme.values) != set(self.labels):
            raise ConfigError(
                f"label scheme {scheme.name!r}",
                expected=f"the values {sorted(self.labels)} of the dataset {self.name!r}",
                found=f"{list(scheme.values)}",
                remedy="list every structure of dataset.json once under labels, without background",
                code="dataset-labels",
            )


def read_datalist(
    root: Path, *, split: str | None = None, validation_fraction: float = 0.2, seed: int = 0
) -> DataList:
    """Read ``dataset.json`` and divide the cases.

    The first of these that applies divides them: the file that ``split`` names (looked for in the
    dataset's folder, then from the current directory), ``split.json`` in the dataset's folder, or
    a draw of ``validation_fraction`` of the cases with ``seed``.

    Args:
        root: The dataset's folder.
        split: A split file, or None.
        validation_fraction: Share of the cases drawn for validation where no split file is.
        seed: Seed of that draw.

    Raises:
        ConfigError: If the folder or a file is missing, a path leads out of the folder, or the
            split names unknown cases or one case in both parts.
        FormatError: If a JSON file is damaged or lacks what it must hold.
    """
    if not root.is_dir():
        _refuse(
            root,
            expected="a dataset folder",
            found="a file" if root.exists() else "no such folder",
            remedy="give the folder that holds dataset.json, with --data or as data.root",
            code="dataset-missing",
        )
    index_path = root / _INDEX_NAME
    if not index_path.is_file():
        _refuse(
            index_path,
            expected="the dataset's index",
            found="no such file",
            remedy="give the folder of a dataset in the Decathlon layout",
            code="dataset-missing",
        )
    index = _read_json(index_path)
    channels = _channels(index_path, index)
    cases = _cases(index_path, index, root, channels)
    train, validation, source = _divide(root, cases, split, validation_fraction, seed)
    return DataList(
        name=str(index.get("name", root.name)),
        licence=str(index.get("licence", index.get("license", "unknown"))),
        channels=channels,
        labels=_labels(index_path, index),
        train=train,
        validation=validation,
        split_source=source,
        sha256=_fingerprint(root, (*train, *validation)),
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(
            str(path),
            expected="a JSON file",
            found="text that is not JSON",
            remedy="repair or replace the file",
            code="dataset-index",
        ) from error
    if not isinstance(content, Mapping):
        _damaged(path, expected="a JSON object", found=type(content).__name__)
    return content


def _channels(path: Path, index: Mapping[str, Any]) -> tuple[str, ...]:
    named = index.get("channel_names", index.get("modality"))
    if not isinstance(named, Mapping) or not named or not all(str(key).isdigit() for key in named):
        _damaged(path, expected='"modality" as {"0": name, ...}', found=_kind(named))
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _labels(path: Path, index: Mapping[str, Any]) -> dict[int, str]:
    named = index.get("labels")
    if not isinstance(named, Mapping) or not named:
        _damaged(
            path, expected='"labels" as {"0": "background", "1": name, ...}', found=_kind(named)
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
        _damaged(path, expected="integer label values", found="labels that are not integers")
    labels.pop(0, None)
    if not labels:
        _damaged(path, expected="at least one label beside background", found="none")
    return labels


def _cases(
    path: Path, index: Mapping[str, Any], root: Path, channels: Sequence[str]
) -> dict[str, Case]:
    listed = index.get("training")
    if not isinstance(listed, list) or not listed:
        _damaged(path, expected='"training" as a list of cases', found=_kind(listed))
    cases: dict[str, Case] = {}
    owners: dict[Path, str] = {}
    for entry in listed:
        if not isinstance(entry, Mapping) or not {"image", "label"} <= set(entry):
            _damaged(path, expected='cases as {"image": path, "label": path}', found=_kind(entry))
        listed_images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        if len(listed_images) != len(channels):
            _damaged(
                path,
                expected=f"one image file for each of the {len(channels)} channels of a case",
                found=f"{len(listed_images)} (4-D files are not read)",
            )
        label = _inside(path, root, entry["label"])
        case = Case(_stem(label), tuple(_inside(path, root, name) for name in listed_images), label)
        files = (*case.images, case.label)
        if case.id in cases or any(file in owners for file in files):
            _damaged(path, expected="every case and file once", found=f"{case.id!r} again")
        cases[case.id] = case
        owners.update(dict.fromkeys(files, case.id))
    return cases


def _inside(index_path: Path, root: Path, listed: object) -> Path:
    """A listed path, refused if it is absolute, climbs out of the folder or is missing.

    Symbolic links are followed: whoever keeps the dataset put them there.
    """
    if not isinstance(listed, str):
        _damaged(index_path, expected="paths as text", found=_kind(listed))
    relative = PurePosixPath(listed)
    if relative.is_absolute() or ".." in relative.parts or "\\" in listed:
        _refuse(
            index_path,
            expected="paths inside the dataset's folder",
            found="one that leads out of it",
            remedy="keep images and labels under the folder of dataset.json",
            code="dataset-path",
        )
    path = root / relative
    if not path.is_file():
        _refuse(
            path,
            expected="a file listed in dataset.json",
            found="no such file",
            remedy="complete the dataset or take the case out of dataset.json",
            code="dataset-file-missing",
        )
    return path


def _divide(
    root: Path,
    cases: Mapping[str, Case],
    split: str | None,
    validation_fraction: float,
    seed: int,
) -> tuple[tuple[Case, ...], tuple[Case, ...], str]:
    path = _split_path(root, split)
    if path is None:
        ids = sorted(cases)
        held = max(1, round(validation_fraction * len(ids)))
        if held >= len(ids):
            _refuse(
                root,
                expected="at least one case to train and one to validate",
                found=f"{len(ids)} in all, {held} of them held out",
                remedy="add cases, lower data.validation_fraction or give a split file",
                code="split-empty",
            )
        drawn = set(random.Random(seed).sample(ids, held))  # noqa: S311 - not for secrets
        parts = {
            "train": [name for name in ids if name not in drawn],
            "validation": [name for name in ids if name in drawn],
        }
        source = f"{held} of {len(ids)} cases drawn with seed {seed}"
    else:
        parts = _read_split(path, cases)
        source = f"the file {path.name}"
    return (
        tuple(cases[name] for name in parts["train"]),
        tuple(cases[name] for name in parts["validation"]),
        source,
    )


def _split_path(root: Path, split: str | None) -> Path | None:
    if split is None:
        return root / SPLIT_NAME if (root / SPLIT_NAME).is_file() else None
    found = next((path for path in (root / split, Path(split)) if path.is_file()), None)
    if found is None:
        _refuse(
            split,
            expected="a split file in the dataset's folder or from the current directory",
            found="no such file",
            remedy="correct data.split, or leave it out to draw a split",
            code="split-missing",
        )
    return found


def _read_split(path: Path, cases: Mapping[str, Case]) -> dict[str, list[str]]:
    content = _read_json(path)
    parts: dict[str, list[str]] = {}
    for part in ("train", "validation"):
        ids = content.get(part)
        if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
            _damaged(path, expected=f'"{part}" as a list of case ids', found=_kind(ids))
        for name in ids:
            if name not in cases:
                _refuse(
                    path,
                    expected="case ids of dataset.json" if len(cases) > 12 else one_of(name, cases),
                    found=f"{name!r} under {part!r}",
                    remedy="correct the id; it is the label file's name without suffix",
                    code="split-unknown-case",
                )
        if len(set(ids)) < len(ids):
            _damaged(path, expected=f'every case once under "{part}"', found="a case twice")
        parts[part] = list(ids)
    shared = sorted(set(parts["train"]) & set(parts["validation"]))
    if shared:
        _refuse(
            path,
            expected="no case in both train and validation",
            found=f"{len(shared)} in both, such as {shared[0]!r}",
            remedy="take them out of one part: a leak makes the validation worthless",
            code="split-leak",
        )
    return parts


def _fingerprint(root: Path, cases: Sequence[Case]) -> str:
    lines = sorted(
        f"{file.relative_to(root).as_posix()} {file.stat().st_size}"
        for case in cases
        for file in (*case.images, case.label)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stem(path: Path) -> str:
    name = path.name
    return name[: -len(".nii.gz")] if name.endswith(".nii.gz") else path.stem


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "an empty one" if value in ({}, []) else f"a {type(value).__name__}"


def _damaged(path: Path, *, expected: str, found: str) -> NoReturn:
    raise FormatError(
        str(path),
        expected=expected,
        found=found,
        remedy="repair the file",
        code="dataset-index",
    )


def _refuse(where: Path | str, *, expected: str, found: str, remedy: str, code: str) -> NoReturn:
    raise ConfigError(str(where), expected=expected, found=found, remedy=remedy, code=code)
