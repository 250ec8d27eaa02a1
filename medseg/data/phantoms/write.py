"""Phantoms on disk, named and numbered exactly as the datasets that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.atomic import atomic_folder
from medseg.core import Grid, Volume
from medseg.data.phantoms.abdomen import abdomen
from medseg.data.phantoms.brain import hippocampus, tumour
from medseg.data.phantoms.heart import heart
from medseg.data.schemes import SCHEMES, recode_by_name
from medseg.data.splits import PUBLISHED
from medseg.errors import ConfigError, one_of
from medseg.events import Cancelled, Listener, Silent
from medseg.io.stacks import write_slice, write_stack
from medseg.io.writing import write_volume

__all__ = ["KINDS", "PHANTOM_SIZES", "Kind", "write_phantom"]

Rng = np.random.Generator

PHANTOM_SIZES = ("small", "standard")
"""Extents of a phantom: a few thousand voxels for tests, or near to what scanners give."""

_WINDOW_HU = (-125.0, 275.0)  # TransUNet's
_BRATS_ENDINGS: Mapping[str, tuple[str, ...]] = {
    "brats": ("-t1n", "-t1c", "-t2w", "-t2f", "-seg"),
    "brats2021": ("_t1", "_t1ce", "_t2", "_flair", "_seg"),
    "brats2024": ("-t1n", "-t1c", "-t2w", "-t2f", "-seg"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One layout that phantoms are written in.

    Args:
        about: What it shows.
        most: How many patients the layout numbers.
        case: Writes patient ``index`` into a folder and returns its entry in the index, if any.
        end: Writes what the dataset has beside its cases.
    """

    about: str
    most: int
    case: Callable[[Path, int, Rng, str], str]
    end: Callable[[Path, Sequence[str]], None]


def write_phantom(
    kind: str,
    out: Path,
    *,
    cases: int,
    seed: int = 0,
    size: str = "standard",
    listener: Listener | None = None,
) -> None:
    """Write a made dataset; equal arguments make equal files.

    Args:
        kind: A member of :data:`KINDS`.
        out: The dataset's folder; must not exist.
        cases: How many patients.
        seed: Another seed draws other patients.
        size: A member of :data:`PHANTOM_SIZES`.
        listener: Progress; cancelling leaves nothing behind.

    Raises:
        ConfigError: ``phantom`` for an unknown kind or size, or a number of cases that the layout
            cannot hold.
        ResourceError: If ``out`` exists or cannot be written.
    """
    _check(kind, size, cases)
    hearer = listener or Silent()
    hearer.started("phantom", cases)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        names = []
        for index in range(cases):
            if hearer.cancelled():
                raise Cancelled
            # a case is the same however many there are
            rng = np.random.default_rng([seed, index])
            names.append(KINDS[kind].case(folder, index, rng, size))
            hearer.advanced("phantom", index + 1)
        KINDS[kind].end(folder, names)


def _check(kind: str, size: str, cases: int) -> None:
    for name, value, choices in (("kind", kind, KINDS), ("size", size, PHANTOM_SIZES)):
        if value not in choices:
            raise ConfigError(
                f"phantom {name}",
                expected=one_of(value, choices),
                found=repr(value),
                remedy="choose one of them",
                code="phantom",
            )
    if not 1 <= cases <= KINDS[kind].most:
        raise ConfigError(
            "phantom cases",
            expected=f"1 to {KINDS[kind].most} cases, as many as {kind} numbers",
            found=str(cases),
            remedy="ask for fewer, or write a second phantom with another seed",
            code="phantom",
        )


def _turns(name: str) -> tuple[int, ...]:
    """Numbers of a published split in an order in which every few cases have all of its parts."""
    published = PUBLISHED[name]
    train = published.all - published.validation - published.test
    parts = [sorted(part) for part in (train, published.validation, published.test) if part]
    numbers: list[int] = []
    while any(parts):
        numbers += [part.pop(0) for part in parts if part]
    return tuple(numbers)


_SCANS = _turns("transunet")
_PATIENTS = _turns("acdc-70-10-20")


def _write(path: Path, array_ijk: npt.NDArray[Any], grid: Grid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(array_ijk[None], grid), path)


def _synapse(folder: Path, index: int, rng: Rng, size: str) -> str:
    image, labels, grid = abdomen(rng, size)
    number = _SCANS[index]
    _write(folder / "img" / f"img{number:04d}.nii.gz", image, grid)
    _write(folder / "label" / f"label{number:04d}.nii.gz", labels, grid)
    return f"case{number:04d}"


def _transunet(folder: Path, index: int, rng: Rng, size: str) -> str:
    image, labels, _ = abdomen(rng, size)
    low, high = _WINDOW_HU
    shown = ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)
    table = np.zeros(14, np.uint8)
    for stored, wanted in recode_by_name(SCHEMES["btcv-13"], SCHEMES["transunet-8"]):
        table[stored] = wanted
    # rows run to the back, slices first
    image_src, label_src = (
        np.ascontiguousarray(array[:, ::-1].transpose(2, 1, 0)) for array in (shown, table[labels])
    )
    number = _SCANS[index]
    name = f"case{number:04d}"
    if number in PUBLISHED["transunet"].validation:
        (folder / "test_vol_h5").mkdir(exist_ok=True)
        write_stack(folder / "test_vol_h5" / f"{name}.npy.h5", image_src, label_src)
    else:
        (folder / "train_npz").mkdir(exist_ok=True)
        for place, (image_rc, label_rc) in enumerate(zip(image_src, label_src, strict=True)):
            write_slice(folder / "train_npz" / f"{name}_slice{place:03d}.npz", image_rc, label_rc)
    return name


def _transunet_lists(folder: Path, names: Sequence[str]) -> None:
    del names
    lists = folder / "lists_Synapse"
    lists.mkdir()
    for file, within, ending in (
        ("train.txt", "train_npz", ".npz"),
        ("test_vol.txt", "test_vol_h5", ".npy.h5"),
    ):
        found = sorted(path.name.removesuffix(ending) for path in folder.glob(f"{within}/*"))
        (lists / file).write_text("".join(f"{name}\n" for name in found), encoding="utf-8")


def _acdc(folder: Path, index: int, rng: Rng, size: str) -> str:
    beat = heart(rng, size)
    name = f"patient{_PATIENTS[index]:03d}"
    place = folder / "training" / name
    for number, (image, labels) in beat.frames.items():
        _write(place / f"{name}_frame{number:02d}.nii.gz", image, beat.grid)
        _write(place / f"{name}_frame{number:02d}_gt.nii.gz", labels, beat.grid)
    height_cm, weight_kg = rng.uniform(155, 190), rng.uniform(55, 95)
    (place / "Info.cfg").write_text(
        f"ED: {beat.diastole}\nES: {beat.systole}\nGroup: NOR\nHeight: {height_cm:.1f}\n"
        f"NbFrame: {beat.count}\nWeight: {weight_kg:.1f}\n",
        encoding="utf-8",
    )
    return name


def _brats(kind: str, folder: Path, index: int, rng: Rng, size: str) -> str:
    images, lesion, grid = tumour(rng, size, cavity=kind == "brats2024")
    labels = np.zeros(grid.shape_ijk, np.uint8)
    enhancing = 4 if kind == "brats2021" else 3
    for name, value in (("necrosis", 1), ("oedema", 2), ("enhancing", enhancing), ("cavity", 4)):
        labels[lesion[name]] = value
    case = {
        "brats": f"BraTS-GLI-{index:05d}-000",
        "brats2021": f"BraTS2021_{index:05d}",
        "brats2024": f"BraTS-GLI-{index:05d}-100",
    }[kind]
    arrays: list[npt.NDArray[Any]] = [*images, labels]
    for ending, array in zip(_BRATS_ENDINGS[kind], arrays, strict=True):
        _write(folder / case / f"{case}{ending}.nii.gz", array, grid)
    return case


def _hippocampus(pattern: tuple[str, str], folder: Path, index: int, rng: Rng, size: str) -> str:
    image, labels, grid = hippocampus(rng, size)
    name = f"hippocampus_{index + 1:03d}"
    images, label_maps = pattern
    _write(folder / images.format(name), image, grid)
    _write(folder / label_maps.format(name), labels, grid)
    return name


def _msd_index(folder: Path, names: Sequence[str]) -> None:
    _write_json(
        folder / "dataset.json",
        {
            "name": "Hippocampus phantom",
            "description": "Made volumes, no patients",
            "licence": "CC0-1.0",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
            "numTraining": len(names),
            "numTest": 0,
            "training": [
                {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
                for name in names
            ],
            "test": [],
        },
    )


def _nnunet_index(folder: Path, names: Sequence[str]) -> None:
    _write_json(
        folder / "dataset.json",
        {
            "name": "Hippocampus phantom",
            "licence": "CC0-1.0",
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        },
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _nothing(folder: Path, names: Sequence[str]) -> None:
    del folder, names


_MSD_FILES = ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz")
_NNUNET_FILES = ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz")

KINDS: Mapping[str, Kind] = {
    "synapse": Kind("abdominal CT, 13 organs, NIfTI", len(_SCANS), _synapse, _nothing),
    "transunet": Kind(
        "the same as 2D slices and test volumes, 8 organs",
        len(_SCANS),
        _transunet,
        _transunet_lists,
    ),
    "acdc": Kind("cine MR of the heart, two phases", len(_PATIENTS), _acdc, _nothing),
    "brats": Kind("glioma in four modalities, 2023", 10_000, partial(_brats, "brats"), _nothing),
    "brats2021": Kind("the same, 2021", 10_000, partial(_brats, "brats2021"), _nothing),
    "brats2024": Kind(
        "the same after surgery, 2024", 10_000, partial(_brats, "brats2024"), _nothing
    ),
    "msd": Kind("hippocampus in MR", 999, partial(_hippocampus, _MSD_FILES), _msd_index),
    "nnunet": Kind(
        "the same for nnU-Net", 999, partial(_hippocampus, _NNUNET_FILES), _nnunet_index
    ),
}
"""Kind of phantom to what writes it."""
