"""Corrected cases as a dataset to train on: nnU-Net's layout, or that of the MSD.

One case after the other is added to a folder. ``dataset.json`` says which channels and structures
the dataset has; what is added later must fit. How each case came about lies in
``provenance/CASE.json``: the model, what was corrected, and a hash of the image, by which a case
that is added again takes its former place. Neither names nor paths of the source are written.
"""

# ruff: noqa: PLC0415 - the libraries of a format take long to import: not before its first file

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.atomic import write_text
from medseg.core import LabelMap, LabelScheme, Volume
from medseg.core.labelmap import present_values
from medseg.errors import ConfigError, FormatError, GeometryError, ResourceError
from medseg.io.scan import Source

__all__ = ["Added", "Layout", "TrainingCase", "add_case"]

Layout = Literal["nnunet", "msd"]

_INDEX = "dataset.json"
_ENDING = ".nii.gz"
_PARTS = ("imagesTr", "labelsTr", "provenance")
_SAME_GRID_MM = 0.01
_UNNAMED = "image"
_OTHERS = {"CT", "PT", "NM", "US", "CR", "DX", "MG", "XA"}
"""DICOM's modalities whose images are no MR."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingCase:
    """One corrected case.

    Args:
        images: Channel name to a volume of one channel, in the order of the channels.
        labels: On the same grid.
        source: Of the first image.
        provenance: Plain JSON types; how it came about.
    """

    images: Mapping[str, Volume]
    labels: LabelMap
    source: Source
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Added:
    """What was written.

    Args:
        name: Of the case.
        cases: How many there are in the dataset now.
        replaced: Whether the case was there before.
    """

    name: str
    cases: int
    replaced: bool


def add_case(folder: Path, case: TrainingCase, *, layout: Layout = "nnunet") -> Added:
    """Add a case to a dataset, which is begun if the folder holds none.

    Images come last and the index after them: what an interruption leaves is no case yet.

    Args:
        folder: Of the dataset; made if it is missing.
        case: What to add.
        layout: For a new dataset; one that is there keeps its own.

    Raises:
        ConfigError: ``training-set-channels``, ``training-set-labels`` if the case does not fit the
            dataset; ``training-set-folder`` if the folder holds something else.
        GeometryError: ``channels-grids-differ`` if an image has another grid than the labels.
        MedsegError: As the writers.
    """
    _check_one_grid(case)
    index = _index_of(folder, case, layout)
    is_msd = "training" in index
    channels = list(index["channel_names" if not is_msd else "modality"].values())
    _check_channels(folder, channels, list(case.images), is_msd)
    values = _values_of(index, is_msd)
    labels = _recoded(case.labels, values, folder)
    digest = _hash(case)
    try:
        for part in _PARTS:
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            str(folder),
            expected="a folder that can be written to",
            found=error.strerror or type(error).__name__,
            remedy="choose another folder",
            code="output-unwritable",
        ) from error
    former = _case_of_image(folder, digest)
    name = former or _free_name(folder)
    _write_case(folder, name, case, labels, digest, is_msd=is_msd, images_there=former is not None)
    return Added(name, _write_index(folder, index, name, is_msd), former is not None)


def _index_of(folder: Path, case: TrainingCase, layout: Layout) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.exists():
        if folder.exists() and not _is_free(folder):
            raise _other_folder(folder, "other files")
        return _new_index(case, layout)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        is_msd = "training" in index
        names, labels = index["modality" if is_msd else "channel_names"], index["labels"]
        fits = isinstance(names, dict) and isinstance(labels, dict)
        if is_msd:
            fits = fits and isinstance(index["training"], list)
        else:
            fits = fits and index["file_ending"] == _ENDING
            fits = fits and all(isinstance(value, int) for value in labels.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _other_folder(folder, "an index that cannot be understood") from error
    if not fits:
        raise _other_folder(folder, "a dataset of regions, or of other files than .nii.gz")
    return dict(index)


def _is_free(folder: Path) -> bool:
    """Whether nothing is in a folder but what a case that could not be written left empty."""
    return folder.is_dir() and all(
        one.name in _PARTS and one.is_dir() and not any(one.iterdir()) for one in folder.iterdir()
    )


def _new_index(case: TrainingCase, layout: Layout) -> dict[str, Any]:
    channels = {str(number): name for number, name in enumerate(case.images)}
    structures = case.labels.scheme.labels
    common = {"name": "corrected with medseg", "licence": "not stated"}
    if layout == "msd":
        return {
            **common,
            "tensorImageSize": "3D",
            "modality": channels,
            "labels": {"0": "background", **{str(one.value): one.name for one in structures}},
            "numTraining": 0,
            "numTest": 0,
            "training": [],
            "test": [],
        }
    numbered = {one.name: number for number, one in enumerate(structures, start=1)}
    return {
        **common,
        "channel_names": channels,
        "labels": {"background": 0, **numbered},
        "numTraining": 0,
        "file_ending": _ENDING,
    }


def _values_of(index: Mapping[str, Any], is_msd: bool) -> dict[str, int]:
    labels = index["labels"]
    pairs = (
        ((str(name), int(value)) for value, name in labels.items())
        if is_msd
        else ((str(name), int(value)) for name, value in labels.items())
    )
    return {name: value for name, value in pairs if value}


def _check_channels(folder: Path, known: list[str], given: list[str], is_msd: bool) -> None:
    if known != given and not (len(known) == len(given) == 1 and _may_be(known[0], given[0])):
        raise ConfigError(
            str(folder),
            expected=f"the channels of the dataset, {', '.join(map(str, known))}",
            found=", ".join(given),
            remedy="choose another folder, or the images of these channels",
            code="training-set-channels",
        )
    if is_msd and len(given) > 1:
        raise ConfigError(
            str(folder),
            expected="one channel in the layout of the Medical Segmentation Decathlon",
            found=f"{len(given)} channels",
            remedy="choose nnU-Net's layout, which has a file for each",
            code="training-set-channels",
        )


def _may_be(known: str, given: str) -> bool:
    """Whether the only channel of a dataset and the only image of a case can be the same.

    What no model has named is called by its modality, if that is known. MR has many names.
    """
    if _UNNAMED in (known, given):
        return True
    return "MR" in (known, given) and not {known, given} & _OTHERS


def _check_one_grid(case: TrainingCase) -> None:
    grid = case.labels.grid
    for name, volume in case.images.items():
        same_shape = volume.grid.shape_ijk == grid.shape_ijk
        if not same_shape or volume.grid.distance_mm(grid) > _SAME_GRID_MM:
            raise GeometryError(
                f"image {name}",
                expected="the grid of the labels",
                found="another one",
                remedy="resample the images onto one grid first",
                code="channels-grids-differ",
            )


def _recoded(labels: LabelMap, values: Mapping[str, int], folder: Path) -> LabelMap:
    """The labels in the dataset's numbers."""
    table = np.zeros(max(labels.scheme.values) + 1, dtype=np.uint16)
    for value in present_values(labels.data_ijk):
        if not value:
            continue
        name = labels.scheme.by_value(value).name
        if name not in values:
            raise ConfigError(
                str(folder),
                expected=f"structures of the dataset: {', '.join(values)}",
                found=repr(name),
                remedy="rename or remove the structure, or begin another dataset",
                code="training-set-labels",
            )
        table[value] = values[name]
    narrow = table.astype(np.uint8 if max(values.values()) <= 255 else np.uint16)
    scheme = LabelScheme.plain("dataset", {value: name for name, value in values.items()})
    return LabelMap(narrow[labels.data_ijk], labels.grid, scheme)


def _hash(case: TrainingCase) -> str:
    """What tells an image from all others: its voxels, in the order of their axes."""
    digest = hashlib.sha256()
    for volume in case.images.values():
        data = volume.data_cijk[0]
        digest.update(f"{data.shape} {data.dtype}".encode())
        for plane in data:
            digest.update(np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()


def _case_of_image(folder: Path, digest: str) -> str | None:
    for path in sorted((folder / "provenance").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(path.read_text(encoding="utf-8"))["image_sha256"] == digest:
                return path.stem
    return None


def _free_name(folder: Path) -> str:
    taken = {
        int(match[1])
        for part in _PARTS
        for path in (folder / part).iterdir()
        if (match := re.match(r"case_(\d{4,})", path.name))
    }
    return f"case_{max(taken, default=0) + 1:04d}"


def _write_case(
    folder: Path,
    name: str,
    case: TrainingCase,
    labels: LabelMap,
    digest: str,
    *,
    is_msd: bool,
    images_there: bool,
) -> None:
    from medseg.io.nifti import write_nifti_labels
    from medseg.io.writing import write_volume

    label_path = folder / "labelsTr" / f"{name}{_ENDING}"
    record_path = folder / "provenance" / f"{name}.json"
    images = [
        folder / "imagesTr" / (f"{name}{_ENDING}" if is_msd else f"{name}_{n:04d}{_ENDING}")
        for n in range(len(case.images))
    ]
    record = {**case.provenance, "image_sha256": digest}
    try:
        write_nifti_labels(labels, label_path, case.source)
        write_text(record_path, json.dumps(record, indent=2, allow_nan=False) + "\n")
        for path, volume in zip(images, case.images.values(), strict=True):
            if not (images_there and path.exists()):
                write_volume(volume, path)
    except BaseException:
        if not images_there:  # a new case is there as a whole or not at all
            for path in (label_path, record_path, *images):
                with suppress(OSError):
                    path.unlink()
        raise


def _write_index(folder: Path, index: dict[str, Any], name: str, is_msd: bool) -> int:
    if is_msd:
        entry = {"image": f"./imagesTr/{name}{_ENDING}", "label": f"./labelsTr/{name}{_ENDING}"}
        if entry not in index["training"]:
            index["training"] = [*index["training"], entry]
        count = len(index["training"])
    else:
        count = sum(1 for _ in (folder / "imagesTr").glob(f"*_0000{_ENDING}"))
    index["numTraining"] = count
    write_text(folder / _INDEX, json.dumps(index, indent=2) + "\n")
    return count


def _other_folder(folder: Path, found: str) -> FormatError:
    return FormatError(
        str(folder),
        expected="an empty folder, or a dataset that cases were added to before",
        found=found,
        remedy="choose another folder",
        code="training-set-folder",
    )
