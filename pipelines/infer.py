"""Prediction of cases: read, segment, write, verify, report."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg import NOTICE, __version__
from medseg.atomic import write_bytes, write_text
from medseg.core import LabelMap
from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.io.checks import relocated
from medseg.io.reading import IMAGE_SUFFIXES, read_channels, read_image
from medseg.io.scan import DicomSource, Scan
from medseg.models.card import ModelCard

__all__ = [
    "Case",
    "CaseResult",
    "case_name",
    "check_channel_names",
    "make_cases",
    "prepare_output",
    "segment_case",
]

_UNNAMED = ""  # the channel of a case that was given as one path; no --channel can be called so
_RESULTS = ("_report.json", "_dseg.nii.gz", "_dseg.tsv", "_dseg.dcm", "_preview.png")


@dataclass(frozen=True, slots=True)
class Case:
    """One image to segment.

    Args:
        name: Stem of every file made for it.
        channels: One path per input channel; a single empty name for a case given as one path.
    """

    name: str
    channels: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What was made for one case.

    Args:
        name: The case.
        files: Kind of file to its path, in the order of writing.
        volumes_ml: Volume of every structure.
        seconds: Wall-clock time per stage.
        notes: What a careful reader should know.
        labels: The segmentation itself.
        scan: The image it was made from.
    """

    name: str
    files: dict[str, Path]
    volumes_ml: dict[str, float]
    seconds: dict[str, float]
    notes: tuple[str, ...]
    labels: LabelMap
    scan: Scan


def case_name(path: Path) -> str:
    """Stem for result files: the file's or folder's own name without image suffixes.

    >>> case_name(Path("in/hippocampus_033.nii.gz"))
    'hippocampus_033'
    """
    name = Path(os.path.abspath(path)).name  # noqa: PTH100 - a link keeps its own name
    for suffix in IMAGE_SUFFIXES:
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


def prepare_output(folder: Path) -> None:
    """Make the output folder and prove that it can be written.

    Raises:
        ResourceError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            str(folder),
            expected="a folder that can be made and written",
            found=error.strerror or type(error).__name__,
            remedy="choose another output folder",
            code="output-unwritable",
        ) from error
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)


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


def segment_case(
    case: Case,
    predictor: Predictor,
    out: Path,
    *,
    listener: Listener,
    overwrite: bool = False,
    preview: bool = False,
) -> CaseResult:
    """Read one case, segment it, write every result and the report.

    Writers re-read what they wrote and compare labels and world coordinates before the file gets
    its name; the report comes last, so a case that has one is complete. If writing DICOM SEG fails,
    the NIfTI result stays and the error goes on. A series without the identifiers that a SEG must
    repeat gives the NIfTI result alone and a note that says so.

    Args:
        case: What to read.
        predictor: The model.
        out: An existing folder.
        listener: Told of progress.
        overwrite: Whether results of an earlier run may be replaced.
        preview: Whether to draw a picture too.

    Raises:
        MedsegError: Whatever reading, segmenting or writing found wrong.
    """
    results = [out / f"{case.name}{ending}" for ending in _RESULTS]
    report_path, nifti_path = results[:2]
    there = [path for path in results if path.exists()]
    if there and not overwrite:
        raise ConfigError(
            str(there[0]),
            expected="no result of this name yet",
            found="one from an earlier run",
            remedy="add --overwrite, or choose another output folder",
            code="output-exists",
        )
    clock = time.perf_counter()
    scan = _read(case, predictor)
    read_at = time.perf_counter()
    try:
        prediction = predictor.predict(scan.volume, listener)
    except MedsegError as error:
        raise relocated(error, str(next(iter(case.channels.values())))) from error
    predicted_at = time.perf_counter()
    for path in there:  # results of two runs must never stand side by side
        path.unlink(missing_ok=True)
    files = {"nifti": nifti_path}
    _write_nifti(prediction.labels, nifti_path, scan)
    files["table"] = out / f"{case.name}_dseg.tsv"
    write_text(files["table"], _label_table(prediction.labels))
    if isinstance(scan.source, DicomSource) and _seg_can_refer(scan.source):
        files["dicom_seg"] = out / f"{case.name}_dseg.dcm"
        _write_seg(prediction.labels, files["dicom_seg"], scan.source, predictor)
    volumes = prediction.labels.volumes_ml()
    if preview:
        files["preview"] = out / f"{case.name}_preview.png"
        _write_preview(scan, prediction.labels, files["preview"], predictor)
    seconds = {
        "read": read_at - clock,
        **prediction.seconds,
        "write_and_verify": time.perf_counter() - predicted_at,
    }
    notes = (*scan.notes, *prediction.notes, *_modality_notes(scan, predictor))
    report = _report(case, predictor, scan, files, volumes, seconds, notes)
    write_text(report_path, json.dumps(report, indent=2) + "\n")
    files["report"] = report_path
    return CaseResult(case.name, files, volumes, seconds, notes, prediction.labels, scan)


def _read(case: Case, predictor: Predictor) -> Scan:
    channels = predictor.card.inputs.channels
    if set(case.channels) == {_UNNAMED}:
        scan = read_image(case.channels[_UNNAMED])
    else:
        scan = read_channels({channel.name: case.channels[channel.name] for channel in channels})
    for path, data_ijk in zip(case.channels.values(), scan.volume.data_cijk, strict=False):
        if data_ijk.min() == data_ijk.max():
            raise FormatError(
                str(path),
                expected="an image with some contrast",
                found="the same value in every voxel",
                remedy="check how it was exported",
                code="image-constant",
            )
    return scan


def _modality_notes(scan: Scan, predictor: Predictor) -> tuple[str, ...]:
    """What a DICOM series says of itself against what the model was trained on."""
    if not isinstance(scan.source, DicomSource):
        return ()
    series = str(scan.source.datasets[0].get("Modality") or "")
    model = {channel.modality for channel in predictor.card.inputs.channels}
    if series in model:
        return ()
    return (
        f"the series is {series}, the model was trained on {', '.join(sorted(model))}: "
        "the result cannot be trusted",
    )


def _write_nifti(labels: LabelMap, path: Path, scan: Scan) -> None:
    from medseg.io.nifti import write_nifti_labels  # noqa: PLC0415 - pulls in nibabel

    write_nifti_labels(labels, path, scan.source)


def _write_seg(labels: LabelMap, path: Path, source: DicomSource, predictor: Predictor) -> None:
    from medseg.io.dicom_seg import Algorithm, write_seg  # noqa: PLC0415 - pulls in highdicom

    card = predictor.card
    write_seg(labels, path, source, algorithm=Algorithm(f"medseg {card.name}", card.version))


def _seg_can_refer(source: DicomSource) -> bool:
    """Whether the series has what a DICOM SEG must repeat; reading it notes what it lacks."""
    from medseg.io.dicom_identity import missing_references  # noqa: PLC0415 - pulls in pydicom

    return not missing_references(source.datasets)


def _write_preview(scan: Scan, labels: LabelMap, path: Path, predictor: Predictor) -> None:
    from medseg.studies.preview import three_plane_png  # noqa: PLC0415 - pulls in Pillow

    caption = f"medseg {__version__}, model {predictor.card.name}. {NOTICE}"
    write_bytes(path, three_plane_png(scan.volume, labels, caption=caption))


def _label_table(labels: LabelMap) -> str:
    """BIDS derivatives' ``dseg.tsv``: index, name and colour of every label."""
    rows = ["index\tname\tcolor"]
    for label in labels.scheme.labels:
        rows.append(f"{label.value}\t{label.name}\t#{bytes(label.rgb).hex().upper()}")
    return "\n".join(rows) + "\n"


def _report(
    case: Case,
    predictor: Predictor,
    scan: Scan,
    files: Mapping[str, Path],
    volumes: Mapping[str, float],
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> dict[str, Any]:
    grid = scan.volume.grid
    card = predictor.card
    return {
        "case": case.name,
        "notice": NOTICE,
        "medseg": __version__,
        "model": {
            "name": card.name,
            "version": card.version,
            "weights_sha256": card.weights_sha256,
            "licence": card.licence,
        },
        "versions": {
            name: version(name) for name in ("torch", "numpy", "nibabel", "pydicom", "highdicom")
        },
        "python": platform.python_version(),
        "input": {
            "kind": type(scan.source).__name__.removesuffix("Source").lower(),
            "shape_ijk": list(grid.shape_ijk),
            "spacing_mm": [round(step, 6) for step in grid.spacing_mm],
            "orientation": grid.orientation,
        },
        "volumes_ml": {name: round(ml, 4) for name, ml in volumes.items()},
        "files": {
            kind: {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for kind, path in files.items()
        },
        "verified": "every label file was re-read; labels and world coordinates were compared",
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "notes": list(notes),
    }
