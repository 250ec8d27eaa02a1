"""DICOM as an archive hands it out: one folder a case, with an image series and its segmentation.

The segmentation is a DICOM SEG. Its segments give the label scheme: structures of one name are one
label across cases. Names of folders and identifiers often name a person, so cases and patients are
called by hashes of their identifiers; messages tell a folder by its place in the order of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.core import Label, LabelScheme
from medseg.data.case import Case
from medseg.data.layouts.listing import Listing, Problem, case_problem
from medseg.data.schemes import SCHEMES, find_scheme
from medseg.errors import MedsegError
from medseg.io.dicom_folders import (
    DicomObject,
    has_dicom,
    is_dicom_file,
    read_objects,
    read_segment_scheme,
)

__all__ = ["is_dicom", "list_dicom"]


def is_dicom(root: Path) -> bool:
    """Whether DICOM files lie in the folder or below it."""
    return root.is_dir() and has_dicom(root)


def list_dicom(root: Path, scheme: str | None = None) -> Listing:
    """List the folders that hold a series and the SEG drawn on it.

    Every file's header is read. Where a folder holds several series, the one that the SEG refers to
    is taken; it must have a folder of its own.

    Args:
        root: The folder above the cases, or a single case's.
        scheme: Name of a label scheme; its structures are matched with segments by name, then by
            code. None makes one of the segments.

    Raises:
        ConfigError: ``scheme-unknown``.
        FormatError: ``seg-unreadable``.
    """
    cases: list[Case] = []
    problems: list[Problem] = []
    for number, folder in enumerate(_case_folders(root), start=1):
        objects = read_objects(folder)
        if not objects:
            continue
        found = _case(f"folder {number}", objects)
        if isinstance(found, Case):
            cases.append(found)
        else:
            problems.append(found)
    cases.sort(key=lambda case: case.id)
    wanted = find_scheme(scheme) if scheme else _scheme(cases, problems)
    return Listing(
        layout="dicom",
        name="DICOM",
        channels=("image",),
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        cases=tuple(cases),
        problems=tuple(problems),
    )


def _case_folders(root: Path) -> Iterator[Path]:
    """The folder itself if files of it are DICOM, else the folders in it."""
    if any(path.is_file() and is_dicom_file(path) for path in root.iterdir()):
        yield root
        return
    yield from (path for path in sorted(root.iterdir()) if path.is_dir())


def _case(name: str, objects: Sequence[DicomObject]) -> Case | Problem:
    segs = [one for one in objects if one.kind == "SEG"]
    images = [one for one in objects if one.kind == "image"]
    if len(segs) != 1:
        return _without_seg(name, objects, len(segs))
    seg = segs[0]
    series = {one.series for one in images}
    wanted = seg.refers_to if seg.refers_to in series else next(iter(series), "")
    own = [one.path for one in images if one.series == wanted]
    folder = _common_folder(own) if own else seg.path.parent
    others = [one for one in images if one.series != wanted and folder in one.path.parents]
    if not own or others or (len(series) > 1 and wanted != seg.refers_to):
        return case_problem(
            name,
            expected="the series that the SEG was drawn on, in a folder of its own",
            found=f"{len(series)} series",
            remedy="keep each series in its own folder and leave one SEG",
            code="series-ambiguous" if series else "no-images",
        )
    return Case(f"series_{wanted}", (folder,), seg.path, patient=seg.patient)


def _without_seg(name: str, objects: Sequence[DicomObject], count: int) -> Problem:
    if count == 0 and any(one.kind == "RTSTRUCT" for one in objects):
        return case_problem(
            name,
            expected="a DICOM SEG beside the series",
            found="an RTSTRUCT, whose contours are not read as labels",
            remedy="convert the structure set to a DICOM SEG or a label map first",
            code="rtstruct-unread",
        )
    return case_problem(
        name,
        expected="one DICOM SEG beside the series",
        found="none" if count == 0 else f"{count}",
        remedy="add it or take the folder out" if count == 0 else "leave the one to learn from",
        code="label-missing" if count == 0 else "seg-ambiguous",
    )


def _common_folder(paths: Sequence[Path]) -> Path:
    folder = paths[0].parent
    while not all(folder in path.parents for path in paths):
        folder = folder.parent
    return folder


def _scheme(cases: list[Case], problems: list[Problem]) -> LabelScheme:
    """One label for each name of a segment, in order of names; damaged cases become problems."""
    labels: dict[str, Label] = {}
    for case in tuple(cases):
        try:
            for label in read_segment_scheme(case.label).labels:
                labels.setdefault(label.name, label)
        except MedsegError as error:
            cases.remove(case)
            problems.append(Problem(case.id, error))
    if not labels:
        return LabelScheme.plain("dicom", {1: "segment"})
    colours = LabelScheme.plain("dicom", dict(enumerate(sorted(labels), start=1)))
    return LabelScheme(
        "dicom",
        tuple(
            replace(labels[label.name], value=label.value, rgb=label.rgb)
            for label in colours.labels
        ),
    )
