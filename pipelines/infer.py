"""Prediction of cases: read, segment, write, verify, report."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError
from medseg.events import Listener
from medseg.io.checks import relocated
from medseg.io.reading import IMAGE_SUFFIXES, read_channels
from medseg.io.scan import Scan
from medseg.models.card import ModelCard
from medseg.studies.inputs import modality_notes, read_case_image
from pipelines.output import prepare_output
from pipelines.result_names import RESULTS, earlier_results, mask_names, results_exist
from pipelines.results import Wishes, missing_notes, opened_probabilities, write_results

if TYPE_CHECKING:  # what looks at images alone does not wait for torch
    from medseg.inference.memory import MemoryPlan, PeakMeter
    from medseg.inference.predictor import Prediction, Predictor
    from medseg.inference.sweep import Box
    from medseg.io.dicom_study import Study

__all__ = [
    "Case",
    "CaseResult",
    "Loaded",
    "Picking",
    "Region",
    "Segmented",
    "case_name",
    "check_channel_names",
    "check_contrast",
    "make_cases",
    "mask_files",
    "plan_case",
    "predict_case",
    "prepare_output",
    "read_case",
    "read_scan",
    "segment_case",
    "write_case",
]

Region = tuple[
    tuple[int | None, int | None], tuple[int | None, int | None], tuple[int | None, int | None]
]
"""First and, exclusive, last voxel on each axis; None for the image's end."""

_NOT_OF_THE_IMAGE = {"memory-limit", "network-not-finite"}
_UNNAMED = ""  # the channel of a case that was given as one path; no --channel can be called so


@dataclass(frozen=True, slots=True)
class Case:
    """One image to segment.

    Args:
        name: Stem of every file made for it.
        channels: One path per input channel; a single empty name for a case given as one path.
        beside: Other cases of the same DICOM study, by name: slices of a series may lie there.
    """

    name: str
    channels: Mapping[str, Path]
    beside: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Picking:
    """What is taken of a DICOM study.

    Args:
        series: Channel of the model and what the user says of its series, in pairs.
        allow_gaps: Whether slices that are not evenly apart are resampled instead of refused.
    """

    series: tuple[tuple[str, str], ...] = ()
    allow_gaps: bool = False


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What was made for one case.

    Args:
        name: The case.
        files: Kind of file to its path, in the order of writing.
        volumes_ml: Volume of every structure.
        seconds: Wall-clock time per stage.
        notes: What a careful reader should know.
        predicted_ram_bytes: Peak of memory that was foretold.
        peak_ram_bytes: Peak that was measured.
        refused: Code and sentence of a result that could not be made, such as the DICOM SEG; all
            others are there.
    """

    name: str
    files: dict[str, Path]
    volumes_ml: dict[str, float]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    predicted_ram_bytes: int
    peak_ram_bytes: int
    refused: tuple[str, str] | None = None


def case_name(path: Path) -> str:
    """Stem for result files: the file's or folder's own name without image suffixes.

    >>> case_name(Path("in/hippocampus_033.nii.gz"))
    'hippocampus_033'
    """
    name = Path(os.path.abspath(path)).name  # noqa: PTH100 - a link keeps its own name
    for suffix in (*IMAGE_SUFFIXES, ".zip"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "case"


def make_cases(paths: Sequence[Path], channels: Sequence[str]) -> list[Case]:
    """Cases from the command line: one per path, or a single one from ``NAME=PATH`` channels.

    Raises:
        ConfigError: If nothing is given, both forms are mixed, a channel is not ``NAME=PATH`` or
            given twice, or two cases would write the same files.
    """
    if bool(paths) == bool(channels):
        raise ConfigError(
            "medseg predict",
            expected="either CASE arguments or --channel NAME=PATH options",
            found="both" if paths else "neither",
            remedy="give a file or folder per case, or the channels of one case",
            code="cases",
        )
    if channels:
        return [_channel_case(channels)]
    cases = [Case(case_name(path), {_UNNAMED: path}) for path in paths]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            "medseg predict",
            expected="cases with names that differ",
            found=f"{', '.join(twice)} more than once",
            remedy="predict them into separate output folders",
            code="cases",
        )
    return cases


def _channel_case(channels: Sequence[str]) -> Case:
    found: dict[str, Path] = {}
    for text in channels:
        name, _, path = text.partition("=")
        if not name or not path or name in found:
            raise ConfigError(
                "--channel",
                expected="NAME=PATH, every name once",
                found=repr(text),
                remedy="write for example --channel T1=t1.nii.gz --channel FLAIR=flair.nii.gz",
                code="cases",
            )
        found[name] = Path(path)
    return Case(case_name(next(iter(found.values()))), found)


def check_channel_names(cases: Sequence[Case], card: ModelCard) -> None:
    """Refuse channels that are named otherwise than the model's.

    Raises:
        ConfigError: If a case names other channels than the model has.
    """
    names = [channel.name for channel in card.inputs.channels]
    for case in cases:
        if set(case.channels) not in ({_UNNAMED}, set(names)):
            raise ConfigError(
                "--channel",
                expected=f"the model's channels {', '.join(names)}",
                found=", ".join(case.channels),
                remedy="name every channel of the model once",
                code="channel-names",
            )


@dataclass(slots=True, eq=False)
class Loaded:
    """A case that was read; a context manager that ends the measuring of its memory.

    Args:
        case: Which.
        scan: What was read.
        seconds: How long that took.
        meter: Of the memory since it was begun.
    """

    case: Case
    scan: Scan
    seconds: float
    meter: PeakMeter

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Measure no longer."""
        self.meter.__exit__(None, None, None)

    @property
    def bytes(self) -> int:
        """What its voxels hold."""
        return self.scan.volume.data_cijk.nbytes


@dataclass(slots=True, eq=False)
class Segmented:
    """A case that was segmented and is to be written.

    Args:
        loaded: What was read.
        prediction: What came of it.
        box: Voxels that were looked at; None for all.
        files: What is written already.
    """

    loaded: Loaded
    prediction: Prediction
    box: Box | None
    files: dict[str, Path]

    @property
    def bytes(self) -> int:
        """What its voxels and labels hold."""
        entropy = self.prediction.entropy_ijk
        labels = self.prediction.labels.data_ijk.nbytes
        return self.loaded.bytes + labels + (0 if entropy is None else entropy.nbytes)


def segment_case(
    case: Case,
    predictor: Predictor,
    out: Path,
    *,
    listener: Listener,
    overwrite: bool = False,
    wishes: Wishes | None = None,
    roi: Region | None = None,
) -> CaseResult:
    """Read one case, segment it, write every result and the report.

    Writers re-read what they wrote and compare labels and world coordinates before the file gets
    its name; the report comes last, so a case that has one is complete. If DICOM SEG cannot be
    written, all else is, and the result says what was refused and why. A series without the
    identifiers that a SEG must repeat gives the NIfTI result alone and a note that says so.

    Args:
        case: What to read.
        predictor: The model.
        out: An existing folder.
        listener: Told of progress.
        overwrite: Whether results of an earlier run may be replaced.
        wishes: What is made beside the segmentation.
        roi: Box of voxels to look at, or None for the whole image.

    Raises:
        MedsegError: Whatever reading, segmenting or writing found wrong.
    """
    wishes = wishes or Wishes()
    there = earlier_results(case.name, out, mask_files(case, predictor, wishes))
    if there and not overwrite:
        raise results_exist(there[0])
    with read_case(case, predictor.card) as loaded:
        segmented = predict_case(loaded, predictor, out, listener=listener, wishes=wishes, roi=roi)
        return write_case(segmented, predictor, out, wishes=wishes)


def read_case(case: Case, card: ModelCard, picking: Picking | None = None) -> Loaded:
    """Read one case.

    Args:
        case: Which.
        card: What the model expects.
        picking: What is taken of a DICOM study.

    Raises:
        MedsegError: Whatever was found wrong.
    """
    from medseg.inference.memory import PeakMeter  # noqa: PLC0415 - loads torch

    meter = PeakMeter()
    meter.__enter__()
    try:
        clock = time.perf_counter()
        scan = read_scan(case, card, picking or Picking())
        return Loaded(case, scan, time.perf_counter() - clock, meter)
    except BaseException:
        meter.__exit__(None, None, None)
        raise


def predict_case(
    loaded: Loaded,
    predictor: Predictor,
    out: Path,
    *,
    listener: Listener,
    wishes: Wishes,
    roi: Region | None,
) -> Segmented:
    """Segment a case that was read; only probabilities, if they are wanted, are written.

    Raises:
        MedsegError: Whatever was found wrong.
        Cancelled: If the listener asked to stop.
    """
    case, scan = loaded.case, loaded.scan
    box = _box(roi, scan)
    files: dict[str, Path] = {}
    with ExitStack() as stack:
        sink = None
        if wishes.probabilities:
            path = out / f"{case.name}{RESULTS['probabilities']}"
            sink = opened_probabilities(stack, path, scan, predictor)
        try:
            prediction = predictor.predict(scan.volume, listener, roi=box, on_probabilities=sink)
        except MedsegError as error:
            if isinstance(error, ConfigError) or error.code in _NOT_OF_THE_IMAGE:
                raise
            raise relocated(error, str(next(iter(case.channels.values())))) from error
    if wishes.probabilities:
        files["probabilities"] = path
    return Segmented(loaded, prediction, box, files)


def write_case(
    segmented: Segmented,
    predictor: Predictor,
    out: Path,
    *,
    wishes: Wishes,
    proof: Mapping[str, str] | None = None,
) -> CaseResult:
    """Write every result of a case, the report last; results of an earlier run make way.

    Args:
        segmented: What was segmented.
        predictor: The model.
        out: An existing folder.
        wishes: What is made beside the segmentation.
        proof: Hashes of image and settings, by which a run knows these results again.

    Raises:
        MedsegError: Whatever was found wrong. Parts of a case are no result: unless an output was
            refused for what it is, none stays.
    """
    loaded, prediction, files = segmented.loaded, segmented.prediction, segmented.files
    case, scan = loaded.case, loaded.scan
    masks = mask_files(case, predictor, wishes)
    for old in earlier_results(
        case.name, out, masks
    ):  # those of two runs must never stand side by side
        if old not in files.values():
            old.unlink(missing_ok=True)
    seconds = {"read": loaded.seconds, **prediction.seconds}
    notes = (*scan.notes, *prediction.notes, *modality_notes(scan, predictor.card))
    notes += missing_notes(scan, wishes)
    try:
        refused = write_results(
            case.name,
            out,
            scan,
            prediction,
            predictor,
            wishes,
            files=files,
            seconds=seconds,
            notes=notes,
            channels=case.channels,
            roi=segmented.box,
            meter=loaded.meter,
            proof=proof,
        )
    except BaseException as error:
        # be it a full disk or Ctrl-C; but where an output was refused for what it is, the
        # segmentation itself is whole
        if isinstance(error, ResourceError) or not isinstance(error, MedsegError):
            for path in files.values():
                path.unlink(missing_ok=True)
        raise
    return CaseResult(
        case.name,
        files,
        prediction.labels.volumes_ml(),
        seconds,
        notes,
        prediction.plan.ram_bytes,
        loaded.meter.look(),
        refused,
    )


def mask_files(case: Case, predictor: Predictor, wishes: Wishes) -> list[str]:
    """Names of the files of single structures, where they are wished for."""
    return list(mask_names(case.name, predictor.card.scheme()).values()) if wishes.masks else []


def plan_case(
    case: Case,
    predictor: Predictor,
    *,
    roi: Region | None = None,
    probabilities: bool = False,
    picking: Picking | None = None,
) -> MemoryPlan:
    """Read one case and tell what segmenting it would hold in memory, without doing it.

    Raises:
        MedsegError: Whatever reading or planning found wrong.
    """
    scan = read_scan(case, predictor.card, picking or Picking())
    try:
        return predictor.plan(scan.volume, roi=_box(roi, scan), probabilities=probabilities)
    except MedsegError as error:
        if isinstance(error, ConfigError) or error.code in _NOT_OF_THE_IMAGE:
            raise
        raise relocated(error, str(next(iter(case.channels.values())))) from error


def _box(roi: Region | None, scan: Scan) -> Box | None:
    """The region with the image's ends filled in."""
    if roi is None:
        return None
    spans = [
        (first or 0, extent if last is None else last)
        for (first, last), extent in zip(roi, scan.volume.grid.shape_ijk, strict=True)
    ]
    return spans[0], spans[1], spans[2]


def read_scan(
    case: Case,
    card: ModelCard,
    picking: Picking,
    *,
    study: Study | None = None,
    threads: int | None = None,
) -> Scan:
    """The image of one case as the model is to see it.

    Args:
        case: Which.
        card: What the model expects.
        picking: What is taken of a DICOM study.
        study: What lies at the case's path, if it was looked at before.
        threads: Files that are read at a time; None for as many as are useful.

    Raises:
        MedsegError: Whatever reading found wrong.
    """
    channels = card.inputs.channels
    if set(case.channels) == {_UNNAMED}:
        scan = read_case_image(
            case.channels[_UNNAMED],
            card,
            series=dict(picking.series),
            allow_gaps=picking.allow_gaps,
            threads=threads,
            study=study,
            beside=case.beside,
        )
    else:
        scan = read_channels({channel.name: case.channels[channel.name] for channel in channels})
    check_contrast(case, scan)
    return scan


def check_contrast(case: Case, scan: Scan) -> None:
    """Refuse an image of one value.

    Raises:
        FormatError: ``image-constant``.
    """
    for path, data_ijk in zip(case.channels.values(), scan.volume.data_cijk, strict=False):
        if data_ijk.min() == data_ijk.max():
            raise FormatError(
                str(path),
                expected="an image with some contrast",
                found="the same value in every voxel",
                remedy="check how it was exported",
                code="image-constant",
            )
