"""What a DICOM study holds, as a list to choose from; free of Qt."""

# ruff: noqa: PLC0415 - pydicom takes half a second to import: not before the first study

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medseg.core import LabelScheme
from medseg.errors import FormatError, MedsegError
from medseg.io.scan import DicomSource, Scan
from medseg_napari._layers import LayerData, image_layers, labels_layer, layer_of_labels
from medseg_napari._origin import LayerOrigin, open_images
from medseg_napari._provenance import Beginning

if TYPE_CHECKING:
    from medseg.io.dicom_study import Stack, Study
    from medseg.io.label_object import LabelObject

__all__ = [
    "LabelEntry",
    "SeriesEntry",
    "StudyContents",
    "default_choice",
    "look_into",
    "open_entries",
    "open_label_file",
    "open_series_of",
    "thumbnail_of",
]

_MOST_FILES_NEARBY = 20_000
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True, eq=False)
class SeriesEntry:
    """One series, or one volume of a series.

    Args:
        stack: Its slices.
        title: Number, modality and description, without words that name the patient.
        details: Extents, spacing and orientation, or why it cannot be read.
    """

    stack: Stack
    title: str
    details: str

    @property
    def is_readable(self) -> bool:
        """Whether it can be opened."""
        return self.stack.problem is None


@dataclass(frozen=True, slots=True, eq=False)
class LabelEntry:
    """A SEG or RT structure set of the study.

    Args:
        found: What it says of itself.
        on: The series that it was drawn on, if it is in the study.
    """

    found: LabelObject
    on: SeriesEntry | None

    @property
    def title(self) -> str:
        """Kind and file."""
        return f"{self.found.kind} {self.found.path.name}"

    @property
    def details(self) -> str:
        """What it was drawn on, and the names in it."""
        names = list(self.found.names[:_MOST_NAMES])
        if len(self.found.names) > _MOST_NAMES:
            names.append(f"{len(self.found.names) - _MOST_NAMES} more")
        where = "drawn on a series that is not here" if self.on is None else f"on {self.on.title}"
        return f"{where}: {', '.join(names)}" if names else where

    @property
    def is_readable(self) -> bool:
        """Whether it can be opened."""
        return self.on is not None


@dataclass(frozen=True, slots=True, eq=False)
class StudyContents:
    """A study, listed.

    Args:
        study: As read.
        series: Its series, in order of their numbers.
        labels: Its segmentations and structure sets.
    """

    study: Study
    series: tuple[SeriesEntry, ...]
    labels: tuple[LabelEntry, ...] = ()


def look_into(path: Path) -> StudyContents:
    """List a folder, a zip or a DICOMDIR.

    Segmentations and structure sets are listed for folders.

    Raises:
        MedsegError: As :func:`medseg.io.dicom_study.read_study`.
    """
    from medseg.io.dicom_study import read_study
    from medseg.io.label_object import read_label_object

    study = read_study(path)
    series = tuple(_entry(stack) for stack in study.stacks)
    labels: list[LabelEntry] = []
    if study.others and path.is_dir():
        by_uid = {entry.stack.series_uid: entry for entry in reversed(series)}
        slices = {frame.header.file.path for stack in study.stacks for frame in stack.frames}
        for file in sorted(path.rglob("*")):
            if file in slices or not file.is_file():
                continue
            found = read_label_object(file)
            if found is not None:
                on = next((by_uid[uid] for uid in found.series_uids if uid in by_uid), None)
                labels.append(LabelEntry(found, on))
    return StudyContents(study, series, tuple(labels))


def _entry(stack: Stack) -> SeriesEntry:
    number = stack.series_number
    words = [stack.modality, stack.description or stack.protocol, *stack.split.words]
    title = f"{stack.number if number is None else number}: " + " ".join(filter(None, words))
    if stack.problem is not None:
        return SeriesEntry(stack, title, f"cannot be read: {stack.problem.found}")
    grid, spacing = stack.grid, stack.spacing_mm
    parts = [stack.orientation]
    if grid is not None and spacing is not None:
        parts.append(" x ".join(map(str, grid.shape_ijk)) + " voxels")
        parts.append(" x ".join(f"{step:.3g}" for step in spacing) + " mm")
    if stack.contrast:
        parts.append("contrast")
    if stack.is_localizer:
        parts.append("localizer")
    return SeriesEntry(stack, title, ", ".join(filter(None, parts)))


def thumbnail_of(entry: SeriesEntry, contents: StudyContents) -> npt.NDArray[np.uint8]:
    """The middle slice as a small picture; one grey pixel where it cannot be read."""
    from medseg.io.dicom_thumbnail import thumbnail

    try:
        return thumbnail(entry.stack, contents.study)
    except MedsegError:
        return np.full((1, 1), 60, dtype=np.uint8)


def default_choice(contents: StudyContents) -> tuple[SeriesEntry, ...]:
    """Everything that can be read and is no localizer, for where nobody can be asked."""
    able = [entry for entry in contents.series if entry.is_readable]
    return tuple(entry for entry in able if not entry.stack.is_localizer) or tuple(able)


def open_entries(
    entries: Sequence[SeriesEntry | LabelEntry], contents: StudyContents, name: str
) -> list[LayerData]:
    """Read what was chosen; labels bring the series that they were drawn on.

    Args:
        entries: In any order.
        contents: Where they were listed.
        name: Of the layers, where the series has no description and there is only one.

    Raises:
        MedsegError: What is wrong with the first that cannot be read.
    """
    from medseg.io.checks import check_finite
    from medseg.io.dicom_series import read_stack
    from medseg.io.label_like import looks_like_labels

    labels = [entry for entry in entries if isinstance(entry, LabelEntry)]
    wanted = [entry for entry in entries if isinstance(entry, SeriesEntry)]
    wanted += [one.on for one in labels if one.on is not None and one.on not in wanted]
    layers: list[LayerData] = []
    scans: dict[str, Scan] = {}
    for entry in dict.fromkeys(wanted):
        scan = read_stack(entry.stack, contents.study)
        check_finite(scan.volume.data_cijk, str(contents.study.path))
        scans[entry.stack.series_uid] = scan
        title = name if len(contents.series) == 1 else entry.title
        if looks_like_labels(scan.volume.data_cijk[0]):
            layers.append(labels_layer(scan, title, name))
        else:
            layers += image_layers(scan, title)
    for one in labels:
        if one.on is None:
            raise _no_source(one.found)
        layers.append(_labels_of(one.found, scans[one.on.stack.series_uid]))
    return layers


def open_label_file(path: Path) -> list[LayerData]:
    """Read a SEG or an RT structure set, on the grid of the series that it was drawn on.

    The series is looked for among the open images, then in the file's folder and the one above; if
    it is found there it is opened too.

    Raises:
        FormatError: ``label-series-missing``, ``label-object``.
        MedsegError: As :func:`medseg.io.dicom_labels.read_dicom_labels`.
    """
    from medseg.io.label_object import read_label_object

    found = read_label_object(path)
    if found is None:
        raise FormatError(
            str(path),
            expected="a DICOM image, a SEG or an RT structure set",
            found="another or a damaged file",
            remedy="give the folder of a series to open the images in it",
            code="label-object",
        )
    for origin in open_images():
        if isinstance(origin.source, DicomSource) and _uid_of(origin.source) in found.series_uids:
            return [_labels_on(found, origin)]
    for folder in dict.fromkeys((path.parent, path.parent.parent)):
        scan = _series_in(folder, found.series_uids)
        if scan is not None:
            return [*image_layers(scan, folder.name), _labels_of(found, scan)]
    raise _no_source(found)


def open_series_of(path: Path) -> list[LayerData] | None:
    """Read the series that one file belongs to, of the files beside it.

    Returns:
        Layers; none where the series is open, so that several slices given at once open it once.
        None instead if the file is no image.

    Raises:
        MedsegError: As :func:`medseg.io.dicom_series.read_stack`.
    """
    from medseg.io.checks import check_finite
    from medseg.io.dicom_files import StudyFile
    from medseg.io.dicom_series import read_stack
    from medseg.io.dicom_study import read_study

    alone = _uids_of_file(path)
    if alone is None:
        return None
    series_uid, instance_uid = alone
    for origin in open_images():
        if isinstance(origin.source, DicomSource) and _uid_of(origin.source) == series_uid:
            headers = origin.source.datasets
            if any(str(header.get("SOPInstanceUID") or "") == instance_uid for header in headers):
                return []
    beside = sorted(one for one in path.parent.iterdir() if one.is_file())
    files = [StudyFile(one, place) for place, one in enumerate(beside)]
    study = read_study(path.parent, files=files)
    stack = next(
        one for one in study.stacks if any(frame.header.file.path == path for frame in one.frames)
    )
    scan = read_stack(stack, study)
    check_finite(scan.volume.data_cijk, str(path))
    return image_layers(scan, path.parent.name)


def _uids_of_file(path: Path) -> tuple[str, str] | None:
    """SeriesInstanceUID and SOPInstanceUID of an image; None if it is none, or damaged."""
    from medseg.io.dicom_files import StudyFile
    from medseg.io.dicom_study import read_study

    try:
        study = read_study(path.parent, files=[StudyFile(path, 0)])
    except MedsegError:
        return None
    header = study.stacks[0].header
    return study.stacks[0].series_uid, str(header.get("SOPInstanceUID") or "")


def _labels_of(found: LabelObject, scan: Scan) -> LayerData:
    return _labels_on(found, LayerOrigin.of(scan.volume.grid, scan.source))


def _labels_on(found: LabelObject, image: LayerOrigin) -> LayerData:
    from medseg.io.dicom_labels import read_dicom_labels, read_label_scheme

    scheme = read_label_scheme(found.path)
    labels = read_dicom_labels(found.path, scheme, image.grid, image.source)
    types = {
        label.value: found.types[label.name] for label in scheme.labels if label.name in found.types
    }
    beginning = Beginning.opened(labels.data_ijk, algorithm=found.algorithm, types=types)
    origin = LayerOrigin.of(
        image.grid, image.source, scheme=_named(scheme, found), beginning=beginning
    )
    return layer_of_labels(labels.data_ijk, origin, f"{found.kind} {found.path.stem}")


def _named(scheme: LabelScheme, found: LabelObject) -> LabelScheme:
    return LabelScheme(found.description or scheme.name, scheme.labels)


def _series_in(folder: Path, uids: Iterable[str]) -> Scan | None:
    from medseg.io.dicom_series import read_stack
    from medseg.io.dicom_study import read_study

    wanted = set(uids)
    if not wanted or not _is_small(folder):
        return None
    try:
        study = read_study(folder)
    except MedsegError:  # no images there
        return None
    stack = next((one for one in study.stacks if one.series_uid in wanted), None)
    return None if stack is None else read_stack(stack, study)


def _is_small(folder: Path) -> bool:
    """Whether everything below a folder can be looked at in reasonable time."""
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if count > _MOST_FILES_NEARBY:
            return False
    return True


def _uid_of(source: DicomSource) -> str:
    return str(source.datasets[0].get("SeriesInstanceUID") or "")


def _no_source(found: LabelObject) -> FormatError:
    return FormatError(
        str(found.path),
        expected="the series that the labels were drawn on, open or beside the file",
        found="none of it",
        remedy="open the folder of that series first, then this file",
        code="label-series-missing",
    )
