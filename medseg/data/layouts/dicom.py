"""DICOM as an archive hands it out: one folder a case, with an image series and its segmentation.

The segmentation is a DICOM SEG or, where there is none, an RT structure set. Its segments or ROIs
give the label scheme: structures of one name are one label across cases; for ROIs capitals, spaces
and underscores do not count. Names of folders and identifiers often name a person, so cases and
patients are called by hashes of their identifiers; messages tell a folder by its place in the order
of names. The channel is called after the modality of the series, where all have the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
)
from medseg.io.dicom_labels import is_rtstruct, read_label_scheme
from medseg.io.modality import modality_of_file
from medseg.io.segment_names import plain_name

__all__ = ["case_folders", "is_dicom", "list_dicom"]


def is_dicom(root: Path) -> bool:
    """Whether DICOM files lie in the folder or below it."""
    return root.is_dir() and has_dicom(root)


def list_dicom(root: Path, scheme: str | None = None) -> Listing:
    """List the folders that hold a series and the SEG or RTSTRUCT drawn on it.

    Every file's header is read. Where a folder holds several series, the one that the segmentation
    refers to is taken; it must have a folder of its own. Where it holds both, the SEG is taken.

    Args:
        root: The folder above the cases, or a single case's.
        scheme: Name of a label scheme; its structures are matched with segments by name, then by
            code, and with ROIs by name. None makes one of the segments and ROIs.

    Raises:
        ConfigError: ``scheme-unknown``.
        FormatError: ``seg-unreadable``.
    """
    cases: list[Case] = []
    problems: list[Problem] = []
    modalities: set[str] = set()
    for name, folder in case_folders(root).items():
        objects = read_objects(folder)
        if not objects:
            continue
        found = _case(name, objects)
        if isinstance(found, Case):
            cases.append(found)
            images = (one.path for one in objects if one.kind == "image")
            first = next(path for path in images if found.images[0] in path.parents)
            modalities.add(modality_of_file(first))
        else:
            problems.append(found)
    cases.sort(key=lambda case: case.id)
    wanted = find_scheme(scheme) if scheme else _scheme(cases, problems)
    return Listing(
        layout="dicom",
        name="DICOM",
        channels=(_channel(modalities),),
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        cases=tuple(cases),
        problems=tuple(problems),
        notes=_notes(cases),
    )


def _channel(modalities: Collection[str]) -> str:
    """The modality that all series have, which tells how intensities are normalised."""
    return next(iter(modalities)) if len(modalities) == 1 and "" not in modalities else "image"


def _notes(cases: Sequence[Case]) -> tuple[str, ...]:
    count = sum(is_rtstruct(case.label) for case in cases)
    if not count:
        return ()
    return (
        f"labels of {count} of {len(cases)} cases are contours (RTSTRUCT): a voxel in several ROIs "
        "is given to the smallest",
    )


def case_folders(root: Path) -> dict[str, Path]:
    """What messages call the folders that may be cases, such as ``folder 2 of 9``, and the folders.

    They are the folder itself if files of it are DICOM, else the folders in it, in the order of
    their names.
    """
    if any(path.is_file() and is_dicom_file(path) for path in root.iterdir()):
        return {"the folder": root}
    folders = [
        path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")
    ]
    return {f"folder {n} of {len(folders)}": path for n, path in enumerate(folders, start=1)}


def _case(name: str, objects: Sequence[DicomObject]) -> Case | Problem:
    images = [one for one in objects if one.kind == "image"]
    series = {one.series for one in images}
    drawn = _drawn(name, objects, series)
    if isinstance(drawn, Problem):
        return drawn
    wanted = drawn.refers_to if drawn.refers_to in series else next(iter(series), "")
    own = [one.path for one in images if one.series == wanted]
    folder = _common_folder(own) if own else drawn.path.parent
    others = [one for one in images if one.series != wanted and folder in one.path.parents]
    if not own and not series:
        return case_problem(
            name,
            expected=f"the image series that the {drawn.kind} was drawn on",
            found="none",
            remedy="add the series to the folder, or take the folder out",
            code="no-images",
        )
    if not own or others or (len(series) > 1 and wanted != drawn.refers_to):
        return case_problem(
            name,
            expected=f"the series that the {drawn.kind} was drawn on, in a folder of its own",
            found=f"{len(series)} series",
            remedy=f"keep each series in its own folder and leave one {drawn.kind}",
            code="series-ambiguous",
        )
    return Case(f"series_{wanted}", (folder,), drawn.path, patient=drawn.patient)


def _drawn(
    name: str, objects: Sequence[DicomObject], series: Collection[str]
) -> DicomObject | Problem:
    """The SEG; without one the RTSTRUCT, of several the one drawn on a series of the folder."""
    segs = [one for one in objects if one.kind == "SEG"]
    if len(segs) == 1:
        return segs[0]
    if segs:
        return case_problem(
            name,
            expected="one DICOM SEG beside the series",
            found=f"{len(segs)}",
            remedy="leave the one to learn from",
            code="seg-ambiguous",
        )
    sets = [one for one in objects if one.kind == "RTSTRUCT"]
    if len(sets) > 1:
        sets = [one for one in sets if one.refers_to in series] or sets
    if len(sets) == 1:
        return sets[0]
    if sets:
        return case_problem(
            name,
            expected="one RTSTRUCT that refers to a series of the folder",
            found=f"{len(sets)}",
            remedy="leave the one to learn from",
            code="rtstruct-ambiguous",
        )
    return case_problem(
        name,
        expected="a DICOM SEG or RTSTRUCT beside the series",
        found="none",
        remedy="add it or take the folder out",
        code="label-missing",
    )


def _common_folder(paths: Sequence[Path]) -> Path:
    folder = paths[0].parent
    while not all(folder in path.parents for path in paths):
        folder = folder.parent
    return folder


def _scheme(cases: list[Case], problems: list[Problem]) -> LabelScheme:
    """One label for each name of a segment, in order of names; damaged cases become problems."""
    labels: dict[str, Label] = {}
    spelt: dict[str, str] = {}
    # segments first: they are matched by their name as it stands
    for case in sorted(cases, key=lambda case: is_rtstruct(case.label)):
        try:
            of_rois = is_rtstruct(case.label)
            for label in read_label_scheme(case.label).labels:
                name = spelt.setdefault(plain_name(label.name), label.name)
                name = name if of_rois else label.name
                labels.setdefault(name, replace(label, name=name))
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
