"""One CT, MR or PET series as a volume: chosen, read in parallel, or refused.

What cannot be read rightly is refused with its own code, never read half rightly.

Padding voxels (PixelPaddingValue) keep the value that is stored, rescaled like any other, as
dcm2niix leaves them too; on CT they lie far below air. A note says that the series declares one.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Volume
from medseg.errors import GeometryError
from medseg.io.dicom_decoding import Decoders, decoders_for
from medseg.io.dicom_frames import Frame, flat_header
from medseg.io.dicom_geometry import Lattice, lattice_of
from medseg.io.dicom_identity import empty_identity, missing_references
from medseg.io.dicom_pixels import holds_the_lock, read_pixels, rescale_of, rescaled
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_study import RAS_FROM_LPS, Stack, Study, read_study
from medseg.io.dicom_suv import real_world_rescales, suv_factor
from medseg.io.notes import Note
from medseg.io.scan import DicomSource, Scan
from medseg.io.series_choice import chosen_stack
from medseg.io.waiting import map_files

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["RAS_FROM_LPS", "check_stack", "read_dicom_series", "read_stack"]

_FRAMES_PER_THREAD = 4
_MOST_HELD_BYTES = 1 << 30
"""What the copies of one file may take that several processes read at once."""


def read_dicom_series(
    path: Path, *, series: str | None = None, allow_gaps: bool = False, threads: int | None = None
) -> Scan:
    """Read one series of a folder with everything below it, of a zip, or of a DICOMDIR.

    Convention:
        Voxel axes are I = column index, J = row index, K = slice along the normal row x column
        (right-handed). Slices are ordered by position alone; names and instance numbers do not
        matter. The affine is turned from LPS to RAS here. See
        :func:`medseg.io.dicom_geometry.lattice_of` for tolerances.

    Args:
        path: Files of any name and order; files that are not DICOM are passed over, DICOM objects
            without an image (reports, segmentations, structure sets, directories) are noted.
        series: What to read where there are several: the number in the listing of
            :func:`~medseg.io.dicom_study.read_study`, a SeriesInstanceUID, or a regular expression
            on the description. None where there is one.
        allow_gaps: Resample slices that are not evenly apart instead of refusing them.
        threads: Most files that are read at a time; None for as many as are useful.

    Returns:
        One channel ``image``: int16 or int32 where rescaling keeps integers, else float32. PET is
        in SUV by body weight.

    Raises:
        FormatError: If there is no image, none or several that were meant, an unsupported kind of
            image, a missing tag, or damaged files.
        GeometryError: If the slices do not make one regular stack.
        ResourceError: If a file cannot be opened.
    """
    where = str(path)
    study = read_study(path, allow_gaps=allow_gaps, threads=threads)
    if study.unreadable:
        raise study.unreadable[0]
    if series is None:
        _check_one_stack(study, where)
    stack = study.stacks[0] if series is None else chosen_stack(study, series)
    return read_stack(stack, study, threads=threads)


def _check_one_stack(study: Study, where: str) -> None:
    """Refuse a study of several stacks, by what sets them apart where they are of one series."""
    if len(study.stacks) == 1:
        return
    if len(study.series) == 1:
        for stack in study.stacks:
            if stack.problem is not None:
                raise stack.problem
        references = {stack.frame_of_reference_uid for stack in study.stacks}
        if len(references) > 1:
            raise GeometryError(
                where,
                expected="one frame of reference for all slices",
                found=f"{len(references)} of them, whose positions cannot be compared",
                remedy="choose one with --series; `medseg studies list` shows them",
                code="slice-frame",
            )
        frames = [frame for stack in study.stacks for frame in stack.frames]
        planes = [frame.plane for frame in frames if frame.plane is not None]
        lattice_of(planes, where, lone_step=study.stacks[0].flat)
    chosen_stack(study, None)


def read_stack(stack: Stack, study: Study, *, threads: int | None = None) -> Scan:
    """Read the pixels of one stack.

    Args:
        stack: Of the study.
        study: Where it was found.
        threads: Most files that are read at a time; None for as many as are useful.

    Returns:
        As :func:`read_dicom_series`.

    Raises:
        MedsegError: As :func:`read_dicom_series`; first of all the stack's own problem.
    """
    where = str(study.path)
    with quiet_dicom():
        headed = _headed(stack, study)
        lattice, ordered, headers = headed.lattice, headed.frames, list(headed.headers)
        slices = _pixels_of(ordered, where, threads)
        data_kji = rescaled(slices, headed.rescales)
        if headed.suv is not None:
            data_kji = (data_kji * headed.suv).astype(np.float32)
        numbers = tuple(frame.index + 1 for frame in ordered)
        made_up: frozenset[int] = frozenset()
        if lattice.has_gaps:
            filled = _fill(data_kji, lattice)
            data_kji, made_up = filled.data_kji, filled.made_up
            headers = [
                _moved(headers[nearest], lattice, k) if k in made_up else headers[nearest]
                for k, nearest in enumerate(filled.nearest)
            ]
            numbers = tuple(numbers[nearest] for nearest in filled.nearest)
    data_ijk = data_kji.transpose(2, 1, 0)
    grid = Grid(data_ijk.shape, RAS_FROM_LPS @ lattice.affine_lps)
    several = any("PerFrameFunctionalGroupsSequence" in f.header.dataset for f in ordered)
    source = DicomSource(
        study.path,
        tuple(headers),
        lattice.affine_lps,
        frame_numbers=numbers if several else None,
        made_up_k=made_up,
    )
    return Scan(Volume(data_ijk[None], grid), source, headed.notes)


def check_stack(stack: Stack, study: Study) -> tuple[str, ...]:
    """Refuse a stack for whatever its headers say; pixels are not looked at.

    Args:
        stack: Of the study.
        study: Where it was found.

    Returns:
        The notes that its scan will have.

    Raises:
        MedsegError: As :func:`read_stack`, except for pixels that are damaged.
    """
    with quiet_dicom():
        return _headed(stack, study).notes


@dataclass(frozen=True, slots=True, eq=False)
class _Headed:
    """What the headers of a stack tell, its slices in the order of the K axis."""

    lattice: Lattice
    frames: tuple[Frame, ...]
    headers: tuple[Dataset, ...]
    rescales: tuple[tuple[float, float], ...]
    suv: float | None
    notes: tuple[str, ...]


def _headed(stack: Stack, study: Study) -> _Headed:
    where, lattice = str(study.path), stack.lattice
    if stack.problem is not None:
        raise stack.problem
    if lattice is None:  # cannot be: without a problem there is a lattice
        raise ValueError(stack)
    ordered = tuple(stack.frames[index] for index in lattice.order)
    headers = tuple(flat_header(frame) for frame in ordered)
    rescales = tuple(
        rescale_of(header, where, frame.name)
        for header, frame in zip(headers, ordered, strict=True)
    )
    notes = [*_others_note(study), *lattice.notes, *_image_notes(headers)]
    suv = None
    if stack.modality == "PT":
        rescales = real_world_rescales(headers, where) or rescales
        suv, told = suv_factor(headers, where)
        remedy = "nothing needs to be done if the model was trained on SUV"
        notes.append(Note(told, code="pet-suv-units", remedy=remedy))
    if stack.split.words:
        told = f"one of {stack.siblings} volumes of its series was read"
        remedy = "see with `medseg studies list` whether it is the one that was meant"
        notes.append(Note(told, code="series-part", remedy=remedy))
    return _Headed(lattice, ordered, headers, rescales, suv, tuple(notes))


def _pixels_of(frames: Sequence[Frame], where: str, threads: int | None) -> list[npt.NDArray[Any]]:
    """``(rows, columns)`` stored integers of each frame, read from several files at a time."""
    by_file: dict[int, list[int]] = {}
    for number, frame in enumerate(frames):
        by_file.setdefault(frame.header.file.place, []).append(number)
    found: list[npt.NDArray[Any]] = [np.empty(0)] * len(frames)

    held = [frame for frame in frames if holds_the_lock(frame.header) and frame.tile is None]
    pixels = sum(frame.plane.rows * frame.plane.columns for frame in held if frame.plane)
    with decoders_for(pixels, len(held), threads) as decoders:

        def read(numbers: Sequence[int]) -> None:
            wanted = [frames[number] for number in numbers]
            header = wanted[0].header
            if wanted[0].tile is not None:
                picture = read_pixels(header, [0], where, [header.file.name], decoders)[0]
                for number, frame in zip(numbers, wanted, strict=True):
                    tile = frame.tile
                    if tile is not None:
                        found[number] = picture[
                            tile.row : tile.row + tile.rows,
                            tile.column : tile.column + tile.columns,
                        ]
                return
            indices, names = [f.index for f in wanted], [f.name for f in wanted]
            pixels = read_pixels(header, indices, where, names, decoders)
            for number, one in zip(numbers, pixels, strict=True):
                found[number] = one

        tasks = [part for numbers in by_file.values() for part in _parts(numbers, frames, decoders)]
        if decoders is None:
            map_files(read, tasks, threads=threads, least=_FRAMES_PER_THREAD)
        else:  # a thread for each process, and some more that read what comes next
            with ThreadPoolExecutor(2 * decoders.count) as pool:
                list(pool.map(read, tasks))
    return found


def _parts(
    numbers: Sequence[int], frames: Sequence[Frame], decoders: Decoders | None
) -> list[Sequence[int]]:
    """Frames of one file for one process each, as far as memory may hold the file that often."""
    first = frames[numbers[0]]
    if decoders is None or first.tile is not None or not holds_the_lock(first.header):
        return [numbers]
    often = max(1, min(decoders.count, _MOST_HELD_BYTES // max(1, first.header.file.size)))
    step = -(-len(numbers) // often)
    return [numbers[start : start + step] for start in range(0, len(numbers), step)]


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """Slices at every place of a lattice: voxels, those that were made up, nearest real slices."""

    data_kji: npt.NDArray[Any]
    made_up: frozenset[int]
    nearest: tuple[int, ...]


def _fill(data_kji: npt.NDArray[Any], lattice: Lattice) -> _Filled:
    """Interpolate linearly between neighbouring slices where none lies on the lattice."""
    places = lattice.k
    count = int(np.floor(places[-1] + 0.5)) + 1
    filled = np.empty((count, *data_kji.shape[1:]), dtype=data_kji.dtype)
    made_up, nearest = set(), []
    for k in range(count):
        above = min(int(np.searchsorted(places, k)), len(places) - 1)
        below = max(above - 1, 0)
        near = above if abs(places[above] - k) <= abs(places[below] - k) else below
        nearest.append(near)
        if places[near] == k:
            filled[k] = data_kji[near]
            continue
        made_up.add(k)
        share = (k - places[below]) / (places[above] - places[below])
        mixed = (1 - share) * data_kji[below].astype(np.float64) + share * data_kji[above]
        filled[k] = np.rint(mixed) if data_kji.dtype.kind in "iu" else mixed
    return _Filled(filled, frozenset(made_up), tuple(nearest))


def _moved(header: Dataset, lattice: Lattice, k: int) -> Dataset:
    """A copy of a slice's header at another place of the lattice."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - loaded where DICOM is read
    from pydicom.valuerep import DSfloat  # noqa: PLC0415

    moved = Dataset()
    moved.file_meta = header.file_meta
    for tag in header.keys():  # noqa: SIM118 - a dataset yields its elements
        moved[tag] = header.get_item(tag)
    place = lattice.affine_lps[:3, 3] + k * lattice.affine_lps[:3, 2]
    # a new element: that of the file is shared with its header
    position = [DSfloat(value, auto_format=True) for value in place]
    moved.add_new("ImagePositionPatient", "DS", position)
    return moved


def _others_note(study: Study) -> tuple[str, ...]:
    if not study.others:
        return ()
    listed = ", ".join(f"{count} {kind}" for kind, count in study.others.items())
    return (
        Note(
            f"passed over DICOM objects that are not images: {listed}",
            code="objects-passed-over",
            remedy="nothing needs to be done",
        ),
    )


def _image_notes(headers: Sequence[Dataset]) -> tuple[str, ...]:
    notes = []
    first = headers[0]
    if any("PixelPaddingValue" in header for header in headers):
        padding = "the series declares a padding value; padding voxels keep it"
        remedy = "nothing needs to be done"
        notes.append(Note(padding, code="padding-declared", remedy=remedy))
    if first.get("Modality") == "CT" and any("RescaleSlope" not in item for item in headers):
        notes.append(
            Note(
                "CT without rescale tags: stored values are taken as Hounsfield units",
                code="rescale-missing",
                remedy="check that air is near -1000 and water near 0, or export the series again",
            )
        )
    if str(first.get("PhotometricInterpretation")) == "MONOCHROME1":
        inverted = "MONOCHROME1 concerns display only; values are as stored"
        remedy = "nothing needs to be done"
        notes.append(Note(inverted, code="display-inverted", remedy=remedy))
    if str(first.get("LossyImageCompression")) == "01":
        lossy = "the series was compressed with losses before"
        remedy = "use the original series if there is one"
        notes.append(Note(lossy, code="compressed-lossy", remedy=remedy))
    missing = missing_references(headers)
    if missing:
        lacking = f"no DICOM SEG can refer to this series: it lacks {', '.join(missing)}"
        remedy = "export the series with these elements if a DICOM SEG is wanted"
        notes.append(Note(lacking, code="dicom-references-missing", remedy=remedy))
        return tuple(notes)
    empty = empty_identity(first)
    if empty:
        told = f"the images lack these, so a DICOM SEG has them empty: {', '.join(empty)}"
        remedy = "nothing needs to be done, unless an archive wants them"
        notes.append(Note(told, code="identity-empty", remedy=remedy))
    return tuple(notes)
