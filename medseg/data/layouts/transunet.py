"""Synapse as TransUNet preprocessed it: 2D training slices and test volumes, windowed to 0..1.

``train_npz/caseNNNN_sliceSSS.npz`` hold one axial slice each, ``test_vol_h5/caseNNNN.npy.h5`` one
volume. Every slice of a training scan is kept, so the slices of a case are read as its volume. The
lists ``train.txt`` and ``test_vol.txt`` (in ``lists_Synapse``) say which are used; without them all
are. The files do not say how large a voxel is or which way the patient lies
(:mod:`medseg.io.stacks`).

TransUNet's own release numbers the organs as ``transunet-8``. Other groups gave out files of the
same names with other numbers (``cascade-8``, ``emcad-8``): say so by name, they cannot be told
apart by the files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from medseg.data.case import Case
from medseg.data.layouts.listing import Listing, Problem, case_problem, refuse
from medseg.data.schemes import find_scheme

__all__ = ["SCALED_HU", "is_transunet", "list_transunet"]

SCALED_HU = (-125.0, 275.0)
"""Hounsfield units that TransUNet's preprocessing made 0 and 1 of."""

_SLICE = re.compile(r"(case\d{4})_slice(\d+)\.npz")
_VOLUME = re.compile(r"(case\d{4})\.npy\.h5")
_ORGANS = 8
_LISTS = ("", "lists", "lists_Synapse", "lists/lists_Synapse", "../lists/lists_Synapse")


def is_transunet(root: Path) -> bool:
    """Whether the folder holds TransUNet's slices or volumes."""
    slices, volumes = root / "train_npz", root / "test_vol_h5"
    return any(
        folder.is_dir() and any(pattern.fullmatch(path.name) for path in folder.iterdir())
        for folder, pattern in ((slices, _SLICE), (volumes, _VOLUME))
    )


def list_transunet(root: Path, scheme: str | None = None) -> Listing:
    """List training scans (as stacks of slices) and test volumes.

    Args:
        root: The folder that holds ``train_npz`` and ``test_vol_h5``.
        scheme: How the organs are numbered in the files; None takes ``transunet-8``.

    Raises:
        ConfigError: ``scheme-unknown``; ``scheme-differs`` if the scheme has values beyond 8.
    """
    wanted = find_scheme(scheme or "transunet-8")
    if max(wanted.values) > _ORGANS:
        refuse(
            "label scheme",
            expected=f"label values from 1 to {_ORGANS}, since the preprocessed files hold eight "
            "organs",
            found=f"{wanted.name!r} with values to {max(wanted.values)}",
            remedy="leave it out for transunet-8, or name another group's numbering of the eight",
            code="scheme-differs",
        )
    train, problems = _stacks(root)
    test = {
        match[1]: path
        for path in sorted((root / "test_vol_h5").glob("*.npy.h5"))
        if (match := _VOLUME.fullmatch(path.name))
    }
    listed = _listed(root, "test_vol.txt")
    if listed is not None:
        problems += [
            _absent(name, f"test_vol_h5/{name}.npy.h5") for name in sorted(listed - set(test))
        ]
        test = {name: path for name, path in test.items() if name in listed}
    both = sorted(set(train) & set(test))
    problems += [
        case_problem(
            name,
            expected="a scan either among the training slices or among the test volumes",
            found="it in both",
            remedy="remove one: a leak makes the test worthless",
            code="split-leak",
        )
        for name in both
    ]
    cases = {name: Case(name, paths, paths[0]) for name, paths in train.items()}
    cases |= {name: Case(name, (path,), path) for name, path in test.items() if name not in cases}
    return Listing(
        layout="transunet",
        name="Synapse (TransUNet)",
        channels=("CT",),
        scheme=wanted,
        is_named=True,
        cases=tuple(cases[name] for name in sorted(cases)),
        problems=tuple(problems),
        parts={"train": tuple(sorted(train)), "validation": tuple(sorted(test))}
        if train and test
        else {},
    )


def _stacks(root: Path) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted((root / "train_npz").glob("*.npz")):
        match = _SLICE.fullmatch(path.name)
        if match:
            found[match[1]][int(match[2])] = path
    listed = _listed(root, "train.txt")
    problems: list[Problem] = []
    if listed is not None:
        wanted: dict[str, set[int]] = defaultdict(set)
        for line in listed:
            match = _SLICE.fullmatch(f"{line}.npz")
            if match:
                wanted[match[1]].add(int(match[2]))
        for name, listed_numbers in sorted(wanted.items()):
            absent = sorted(listed_numbers - set(found.get(name, {})))
            if absent:
                problems.append(_absent(name, f"train_npz/{name}_slice{absent[0]:03d}.npz"))
        found = defaultdict(
            dict,
            {
                name: {number: path for number, path in slices.items() if number in wanted[name]}
                for name, slices in found.items()
                if name in wanted
            },
        )
    broken = {problem.case for problem in problems}
    stacks = {}
    for name, slices in sorted(found.items()):
        numbers = sorted(slices)
        gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
        if name in broken:
            continue
        if gaps:
            problems.append(_absent(name, f"train_npz/{name}_slice{gaps[0]:03d}.npz"))
        else:
            stacks[name] = tuple(slices[number] for number in numbers)
    return stacks, problems


def _listed(root: Path, name: str) -> set[str] | None:
    for folder in _LISTS:
        path = root / folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return {line.strip().removesuffix(".npz") for line in lines if line.strip()}
    return None


def _absent(case: str, file: str) -> Problem:
    return case_problem(
        case,
        expected=f"the file {file}",
        found="no such file",
        remedy="complete the dataset: a scan with a gap is no volume",
        code="slice-missing",
    )
