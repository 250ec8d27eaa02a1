"""BraTS brain tumours, 2018 to 2024: four modalities and ``seg`` a case, under two ways of naming.

Until 2021 files end in ``_t1``, ``_t1ce``, ``_t2``, ``_flair``, ``_seg``; since 2023 in ``-t1n``,
``-t1c``, ``-t2w``, ``-t2f``, ``-seg``. The numbers changed too: 4 is enhancing tumour until 2021,
3 since 2023, and in the gliomas of 2024 a 4 is the cavity that surgery left. The label maps are
looked into to tell which; where they do not say, the dataset is refused until the scheme is named.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.layouts.listing import (
    Listing,
    Problem,
    case_problem,
    patient_of,
    refuse,
)
from medseg.data.schemes import BRATS_SCHEMES, REGIONS, SCHEMES, find_scheme
from medseg.errors import MedsegError
from medseg.io.nifti import read_nifti

__all__ = ["brats_scheme_of", "is_brats", "list_brats"]

_CHANNELS = ("T1", "T1c", "T2", "FLAIR")
_ENDINGS = {
    "t1": "T1",
    "t1n": "T1",
    "t1ce": "T1c",
    "t1c": "T1c",
    "t2": "T2",
    "t2w": "T2",
    "flair": "FLAIR",
    "t2f": "FLAIR",
    "seg": "seg",
}
_FILE = re.compile(r"(.+)([_-])(t1n|t1ce|t1c|t1|t2w|t2f|t2|flair|seg)\.nii(?:\.gz)?", re.I)
_DEPTH = 3
_LOOKED_INTO = 16
_USED = {value for name in BRATS_SCHEMES for value in SCHEMES[name].values}


def is_brats(root: Path) -> bool:
    """Whether two modalities of one case are found in the folder or not far below it."""
    if not root.is_dir():
        return False
    seen: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for path, name, _, kind in _files(root):
        seen[path.parent, name].add(kind)
        if len(seen[path.parent, name] - {"seg"}) >= 2:
            return True
    return False


def list_brats(root: Path, scheme: str | None = None) -> Listing:
    """List the cases that have all four modalities and a label map.

    Args:
        root: The folder above the cases; parts such as ``HGG`` and ``LGG`` may lie between.
        scheme: How the label maps are numbered; None looks into up to 16 of them, more if those do
            not tell.

    Raises:
        ConfigError: ``scheme-ambiguous`` if the label maps do not tell, ``scheme-differs`` if their
            values are those of another year than the one named, ``scheme-unknown``.
    """
    found: dict[tuple[str, Path], dict[str, Path]] = defaultdict(dict)
    marks = set()
    for path, name, mark, kind in _files(root):
        found[name, path.parent].setdefault(kind, path)
        marks.add(mark)
    cases, problems = [], []
    seen: set[str] = set()
    for (name, _), files in sorted(found.items()):
        if name in seen:
            problems.append(_twice(name))
            continue
        seen.add(name)
        missing = [kind for kind in (*_CHANNELS, "seg") if kind not in files]
        if missing:
            problems.append(_incomplete(name, missing[0]))
        else:
            images = tuple(files[channel] for channel in _CHANNELS)
            cases.append(Case(name, images, files["seg"], patient=patient_of(name)))
    chosen = scheme or (_told_by_data(root, cases, marks) if cases else "brats-2023")
    wanted = find_scheme(chosen)
    notes: tuple[str, ...] = ()
    if scheme in BRATS_SCHEMES:
        notes = _checked_by_data(cases, wanted, hyphenated=marks == {"-"})
    return Listing(
        layout="brats",
        name=root.resolve().name,
        licence="for research; see the challenge's terms",
        channels=_CHANNELS,
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        regions=REGIONS.get(wanted.name, ()),
        cases=tuple(cases),
        problems=tuple(problems),
        notes=notes,
    )


def brats_scheme_of(values: set[int], *, hyphenated: bool) -> str | None:
    """The scheme that the label values of several cases tell, given how the files are named.

    Args:
        values: Every value found, background left out.
        hyphenated: Whether files are named as since 2023 (``-t1n``).

    Returns:
        The name, or None where two schemes fit and one of them would be wrong.
    """
    three, four = 3 in values, 4 in values
    if hyphenated and three:
        return "brats-2024-gli" if four else "brats-2023"
    if not hyphenated and four:
        return "brats-2012-2015" if three else "brats-2018-2021"
    return None


def _told_by_data(root: Path, cases: Sequence[Case], marks: set[str]) -> str:
    values: set[int] = set()
    step = max(1, len(cases) // _LOOKED_INTO)
    spread = [*cases[::step], *(case for number, case in enumerate(cases) if number % step)]
    name = None
    for number, case in enumerate(spread):
        if number >= _LOOKED_INTO and name is not None:
            break
        values |= _values(case.label)
        name = brats_scheme_of(values, hyphenated="-" in marks) if len(marks) == 1 else None
        if len(marks) > 1 and number >= _LOOKED_INTO:
            break
    if name is None:
        kinds = "names of both kinds" if len(marks) > 1 else f"the label values {sorted(values)}"
        refuse(
            root,
            expected="label values that tell enhancing tumour from a resection cavity",
            found=kinds,
            remedy=f"name the scheme, with --scheme or as data.scheme: {', '.join(BRATS_SCHEMES)}"
            + ("; a 4 without a 3 is mostly brats-2018-2021" if {3, 4} & values == {4} else ""),
            code="scheme-ambiguous",
        )
    return name


def _checked_by_data(
    cases: Sequence[Case], wanted: LabelScheme, *, hyphenated: bool
) -> tuple[str, ...]:
    """Refuse a scheme that some label map contradicts as a whole; note what only speaks against it.

    Up to 16 label maps are looked into. A value that no year has is a fault of its case, told when
    that is read.
    """
    every: set[int] = set()
    first: tuple[str, list[int]] | None = None
    looked = cases[:: max(1, len(cases) // _LOOKED_INTO)][:_LOOKED_INTO]
    for case in looked:
        values = _values(case.label) & _USED
        every |= values
        if first is None and (strange := sorted(values - set(wanted.values))):
            first = case.id, strange
    if first is not None:
        fits = [name for name in BRATS_SCHEMES if every <= set(SCHEMES[name].values)]
        told = brats_scheme_of(every, hyphenated=hyphenated)
        if fits:
            refuse(
                f"label scheme {wanted.name!r}",
                expected=f"label maps with the values {list(wanted.values)} alone",
                found=f"{', '.join(map(str, first[1]))} in case {first[0]}, as in "
                f"{told if told in fits else ' or '.join(fits)}",
                remedy="name the numbering that the dataset has, with --scheme or as data.scheme, "
                "and give the configuration its labels and regions (`medseg data schemes`)",
                code="scheme-differs",
            )
    if {3, 4} <= set(wanted.values) and 4 in every and 3 not in every:
        four = wanted.by_value(4).name
        return (
            f"none of the {len(looked)} label maps looked into has a 3, some have a 4, here "
            f"{four!r}: so it is where 4 is enhancing tumour, as in brats-2018-2021",
        )
    return ()


def _values(path: Path) -> set[int]:
    try:
        voxels = read_nifti(path).volume.data_cijk
    except MedsegError:  # told when the case is read
        return set()
    return {int(value) for value in np.unique(voxels)} - {0}


def _incomplete(name: str, kind: str) -> Problem:
    is_label = kind == "seg"
    endings = [ending for ending, meant in _ENDINGS.items() if meant == kind]
    return case_problem(
        name,
        expected="a label map ending in seg"
        if is_label
        else f"the modality {kind} (a file ending in {' or '.join(endings)})",
        found="no such file",
        remedy="complete the case or take it out of the dataset",
        code="label-missing" if is_label else "modality-missing",
    )


def _twice(name: str) -> Problem:
    return case_problem(
        name,
        expected="one folder with a case of that name",
        found="two",
        remedy="remove the copy, or give the folder of one part of the dataset",
        code="case-twice",
    )


def _files(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Path, case, mark before the ending and what the file is, of every file named as BraTS."""
    for folder, below, names in os.walk(root, followlinks=True):
        place = Path(folder)
        if len(place.relative_to(root).parts) >= _DEPTH:
            below.clear()
        below[:] = sorted(one for one in below if not one.startswith("."))
        for name in sorted(names):
            match = _FILE.fullmatch(name)
            # macOS leaves ._NAME beside every file that it copies
            if match and not name.startswith("."):
                yield place / name, match[1], match[2], _ENDINGS[match[3].lower()]
