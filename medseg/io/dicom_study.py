"""What lies in a study: its series and their stacks, from headers alone.

Nothing here names the patient. A series description is free text into which names are sometimes
written; :attr:`Stack.description` leaves out every word that is also in the patient's attributes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.core import Grid
from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError, MedsegError
from medseg.io.checks import relocated
from medseg.io.dicom_files import StudyFile, list_study
from medseg.io.dicom_frames import Frame, flat_header, frames_of
from medseg.io.dicom_geometry import Lattice, lattice_of, number_or
from medseg.io.dicom_headers import Header, read_headers
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_stacks import Split, split_frames

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["RAS_FROM_LPS", "Stack", "Study", "read_study", "stacks_of"]

# DICOM counts x to the patient's left and y to the back; its inverse is itself.
RAS_FROM_LPS: FloatArray = np.diag([-1.0, -1.0, 1.0, 1.0])

_MOST_OBLIQUE_DEG = 30.0
_PATIENT = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "PatientBirthDate",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "StudyID",
)
_LEAST_LETTERS = 3
_HIDDEN = "..."


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices that may become one volume: a series, or a part of one.

    Args:
        number: Place in the listing, from 1; what users choose by.
        frames: The slices in the order of files.
        split: What sets it apart from the other stacks of its series.
        siblings: Number of stacks of the series, itself included.
        lattice: Order and affine; None where there is a problem.
        problem: Why it cannot be read as it is.
    """

    number: int
    frames: tuple[Frame, ...]
    split: Split
    siblings: int
    lattice: Lattice | None
    problem: MedsegError | None

    @property
    def header(self) -> Dataset:
        """The header of the first slice's file."""
        return self.frames[0].header.dataset

    @cached_property
    def flat(self) -> Dataset:
        """The header of the first slice as a classic image has it."""
        with quiet_dicom():
            return flat_header(self.frames[0])

    def _text(self, keyword: str) -> str:
        try:
            return str(self.header.get(keyword) or "").strip()
        except Exception:  # an element that cannot be decoded
            return ""

    def _number(self, keyword: str) -> float | None:
        try:
            value = number_or(float("nan"), self.flat, keyword, "")
        except MedsegError:
            return None
        return None if np.isnan(value) else value

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID; an identifier, not to be printed."""
        return self._text("SeriesInstanceUID")

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID; an identifier, not to be printed."""
        return self._text("StudyInstanceUID")

    @property
    def frame_of_reference_uid(self) -> str:
        """FrameOfReferenceUID; empty where the series has none."""
        return self._text("FrameOfReferenceUID")

    @property
    def modality(self) -> str:
        """DICOM's modality, such as CT."""
        return self._text("Modality") or "none"

    @property
    def series_number(self) -> int | None:
        """SeriesNumber, None where it is absent or no number."""
        try:
            return int(self.header.SeriesNumber)
        except Exception:  # absent or not a number
            return None

    @cached_property
    def description(self) -> str:
        """SeriesDescription without the words that are also in attributes of persons."""
        return _without_names(self._text("SeriesDescription"), self.header)

    @cached_property
    def protocol(self) -> str:
        """ProtocolName, with the same words left out."""
        return _without_names(self._text("ProtocolName"), self.header)

    @property
    def body_part(self) -> str:
        """BodyPartExamined, or the anatomic region's meaning."""
        part = self._text("BodyPartExamined")
        if not part:
            try:
                regions = self.flat.get("AnatomicRegionSequence") or []
                part = str(regions[0].CodeMeaning) if regions else ""
            except Exception:  # absent or damaged
                part = ""
        return _without_names(part, self.header)

    @property
    def images(self) -> int:
        """Number of slices."""
        return len(self.frames)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """Columns and rows."""
        plane = self.frames[0].plane
        return None if plane is None else (plane.columns, plane.rows)

    @property
    def thickness_mm(self) -> float | None:
        """SliceThickness."""
        return self._number("SliceThickness")

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of voxels along I, J and K; None where there is a problem."""
        if self.lattice is None:
            return None
        lengths = np.linalg.norm(self.lattice.affine_lps[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def orientation(self) -> str:
        """``axial``, ``coronal`` or ``sagittal`` within 30 degrees, else ``oblique``."""
        plane = self.frames[0].plane
        if plane is None:
            return ""
        along = np.abs(plane.normal)
        axis = int(np.argmax(along))
        if np.degrees(np.arccos(min(1.0, float(along[axis])))) > _MOST_OBLIQUE_DEG:
            return "oblique"
        return ("sagittal", "coronal", "axial")[axis]

    @property
    def contrast(self) -> bool:
        """Whether a contrast agent is recorded."""
        agent = self._text("ContrastBolusAgent").lower()
        try:
            coded = bool(self.header.get("ContrastBolusAgentSequence"))
        except Exception:  # damaged
            coded = False
        return coded or agent not in ("", "none", "no", "n")

    @property
    def is_localizer(self) -> bool:
        """Whether the image type says LOCALIZER."""
        kind = str(self.frames[0].marks.get("kind") or "") + "\\" + self._text("ImageType")
        return "LOCALIZER" in kind.upper()

    @property
    def b_value(self) -> float | None:
        """Diffusion b-value in s/mm2."""
        value = self.frames[0].marks.get("b_value")
        return value if isinstance(value, float) else None

    @property
    def echo_ms(self) -> float | None:
        """Echo time."""
        value = self.frames[0].marks.get("echo_ms")
        return value if isinstance(value, float) else None

    @property
    def grid(self) -> Grid | None:
        """The grid it will have; None where there is a problem."""
        if self.lattice is None or self.matrix is None:
            return None
        shape = (*self.matrix, int(np.floor(self.lattice.k[-1] + 0.5)) + 1)
        return Grid(shape, RAS_FROM_LPS @ self.lattice.affine_lps)

    def words(self) -> str:
        """How messages name it: no free text, since operators write names and findings into it."""
        number = self.series_number
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        series = "without number" if number is None else str(number)
        split = f", {', '.join(self.split.words)}" if self.split.words else ""
        return f"{self.number}: {self.modality} of {images} (series {series}{split})"


@dataclass(frozen=True, eq=False)
class Study:
    """Everything under one folder, or in one zip.

    Args:
        path: What was looked at.
        stacks: In the order of series numbers, then of identifiers, then of what sets them apart.
        others: Kind of DICOM object without an image to how many there are.
        unreadable: Errors of files that say they are DICOM but cannot be read.
        files: How many files there are in all.
    """

    path: Path
    stacks: tuple[Stack, ...]
    others: dict[str, int]
    unreadable: tuple[MedsegError, ...]
    files: int

    @property
    def series(self) -> dict[str, tuple[Stack, ...]]:
        """SeriesInstanceUID to the stacks of the series, in the order of numbers."""
        found: dict[str, list[Stack]] = {}
        for stack in self.stacks:
            found.setdefault(stack.series_uid, []).append(stack)
        return {uid: tuple(stacks) for uid, stacks in found.items()}


def read_study(
    path: Path,
    *,
    allow_gaps: bool = False,
    threads: int | None = None,
    files: Sequence[StudyFile] | None = None,
) -> Study:
    """Look at the headers of a study and tell which stacks of slices it holds.

    No pixel data are read. A stack that cannot be read says so in its ``problem``; one damaged
    slice is a problem of every stack of its series, since it might belong to any.

    Args:
        path: A folder with everything below it, a zip, or a DICOMDIR.
        allow_gaps: Whether slices that are not evenly apart are to be resampled.
        threads: Most files that are read at a time; None for as many as are useful.
        files: Those of the folder to look at; None for all.

    Raises:
        FormatError: As :func:`~medseg.io.dicom_files.list_study`, and ``no-images``.
        ResourceError: ``input-unreadable``.
    """
    where = str(path)
    headers = read_headers(list_study(path) if files is None else files, where, threads=threads)
    if not headers.images:
        if headers.unreadable:
            raise headers.unreadable[0]
        others = ", ".join(f"{count} {kind}" for kind, count in headers.others.items())
        raise FormatError(
            where,
            expected="a folder with the slices of one CT, MR or PET series",
            found=f"no DICOM image among {headers.files} file{'' if headers.files == 1 else 's'}"
            + (f" (but {others})" if others else ""),
            remedy="give the folder that holds the slices",
            code="no-images",
        )
    by_series: dict[tuple[int, str], list[Header]] = {}
    for header in headers.images:
        by_series.setdefault((_number_of(header), header.series_uid), []).append(header)
    # slices of one series whose numbers differ stay together
    merged: dict[str, list[Header]] = {}
    for (_, uid), group in sorted(by_series.items()):
        merged.setdefault(uid, []).extend(group)
    stacks: list[Stack] = []
    with quiet_dicom():
        for group in merged.values():
            group.sort(key=lambda header: header.file.place)
            stacks += stacks_of(group, where, len(stacks), allow_gaps)
    return Study(path, tuple(stacks), headers.others, headers.unreadable, headers.files)


def _number_of(header: Header) -> int:
    try:
        return int(header.dataset.SeriesNumber)
    except Exception:  # absent or not a number: behind the others
        return 1 << 40


def stacks_of(headers: Sequence[Header], where: str, before: int, allow_gaps: bool) -> list[Stack]:
    """The stacks of one series.

    Args:
        headers: Of its files.
        where: The study, for messages.
        before: How many stacks were found before.
        allow_gaps: Whether slices that are not evenly apart are to be resampled.
    """
    frames = [frame for header in headers for frame in frames_of(header, where)]
    broken = next((frame.problem for frame in frames if frame.problem is not None), None)
    whole = [frame for frame in frames if frame.problem is None]
    if not whole:
        return [Stack(before + 1, tuple(frames), Split(), 1, None, broken)]
    parts = split_frames(whole)
    stacks = []
    for number, (part, split) in enumerate(parts, before + 1):
        lattice, problem = None, broken
        if problem is None:
            try:
                lattice = lattice_of(
                    [frame.plane for frame in part if frame.plane is not None],
                    where,
                    lone_step=flat_header(part[0]),
                    allow_gaps=allow_gaps,
                )
                Grid((1, 1, 1), RAS_FROM_LPS @ lattice.affine_lps)
            except (GeometryError, FormatError) as error:
                lattice, problem = None, relocated(error, where)
        stacks.append(Stack(number, part, split, len(parts), lattice, problem))
    return stacks


def _without_names(text: str, header: Dataset) -> str:
    """A text without the words that also stand in attributes of persons or their identifiers."""
    words = set()
    for keyword in _PATIENT:
        try:
            value = str(header.get(keyword) or "")
        except Exception:  # damaged
            value = ""
        words |= {word.lower() for word in re.split(r"[\W_]+", value)}
    return re.sub(
        r"[^\W_]+",
        lambda match: (
            _HIDDEN if len(match[0]) >= _LEAST_LETTERS and match[0].lower() in words else match[0]
        ),
        text,
    )
