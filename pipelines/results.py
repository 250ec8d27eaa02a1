"""What is written for one case, and in which order."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medseg import NOTICE, __version__
from medseg.atomic import write_bytes, write_text
from medseg.core import LabelMap, LabelScheme
from medseg.core.uncertainty import UncertaintySummary, summarise_uncertainty
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.io.label_table import label_table
from medseg.io.scan import DicomSource, Scan
from medseg.metrics.statistics import label_statistics, statistics_to_csv, statistics_to_json
from medseg.models.card import InputSettings
from pipelines.redaction import without_paths
from pipelines.result_names import RESULTS, mask_names, structure_names

if TYPE_CHECKING:  # what looks at images alone does not wait for torch
    from medseg.inference.memory import PeakMeter
    from medseg.inference.predictor import Prediction, Predictor, ProbabilitySink
    from medseg.inference.sweep import Box

__all__ = ["Wishes", "missing_notes", "opened_probabilities", "write_results"]

_PACKAGES = ("torch", "numpy", "numba", "scipy", "nibabel", "SimpleITK", "pydicom", "highdicom")


SegKind = Literal["binary", "labelmap", "fractional"]
"""Type of the DICOM SEG, as the command line says it."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is made beside the segmentation, its label table and statistics.

    Args:
        preview: A three-plane PNG.
        page: A self-contained HTML report.
        probabilities: An HDF5 file of the probabilities.
        log_paths: Whether the manifest names the files that were read.
        rtstruct: An RT structure set, where the image is a DICOM series.
        seg_type: Type of the DICOM SEG, where it is one.
        omit_empty_frames: Whether the SEG lacks the frames without foreground.
        masks: A NIfTI file for every structure.

    Raises:
        ConfigError: ``seg-probabilities`` if a fractional SEG is to be made without probabilities.
    """

    preview: bool = False
    page: bool = False
    probabilities: bool = False
    log_paths: bool = False
    rtstruct: bool = False
    seg_type: SegKind = "binary"
    omit_empty_frames: bool = False
    masks: bool = False

    def __post_init__(self) -> None:
        if self.seg_type == "fractional" and not self.probabilities:
            raise ConfigError(
                "--seg-type fractional",
                expected="probabilities, from which its fractions are taken",
                found="none asked for",
                remedy="add --probabilities, or choose binary or labelmap",
                code="seg-probabilities",
            )


def opened_probabilities(
    stack: ExitStack, path: Path, scan: Scan, predictor: Predictor
) -> ProbabilitySink:
    """Begin the file of probabilities; it is whole or gone once ``stack`` is left."""
    from medseg.io.probabilities import (  # noqa: PLC0415 - pulls in h5py
        ProbabilityClass,
        ProbabilityWriter,
        scheme_classes,
    )

    card = predictor.card
    scheme = card.scheme()
    classes = scheme_classes(scheme)
    if card.regions is not None:
        colours = {label.value: label.rgb for label in scheme.labels}
        classes = tuple(
            ProbabilityClass(region.writes, region.name, colours[region.writes])
            for region in card.regions
        )
    writer = ProbabilityWriter(
        path,
        scan.volume.grid,
        classes,
        model_name=card.name,
        model_sha256=card.weights_sha256,
    )
    return stack.enter_context(writer).write_box


def write_results(  # noqa: PLR0915 - one file after the other
    name: str,
    out: Path,
    scan: Scan,
    prediction: Prediction,
    predictor: Predictor,
    wishes: Wishes,
    *,
    files: dict[str, Path],
    seconds: dict[str, float],
    notes: Sequence[str],
    channels: Mapping[str, Path],
    roi: Box | None,
    meter: PeakMeter,
    proof: Mapping[str, str] | None = None,
) -> tuple[str, str] | None:
    """Write everything but the probabilities, the manifest last.

    Label files are re-read and compared, in voxels and in world coordinates, before they get their
    names. If DICOM SEG cannot be made all else is, and the manifest says what is missing and why.

    Args:
        name: Stem of the files.
        out: An existing folder.
        scan: What was segmented.
        prediction: What came of it.
        predictor: The model.
        wishes: What is made beside the segmentation.
        files: Kind of result to its path; filled in the order of writing.
        seconds: Wall-clock time of the stages so far; the writing is added.
        notes: What a careful reader should know.
        channels: What was read, by channel.
        roi: Voxels that were looked at; None for all.
        meter: Of the memory since the case was begun.
        proof: Hashes of image and settings, for the manifest.

    Returns:
        Code and sentence of the first DICOM object that was refused; None if all was written.

    Raises:
        MedsegError: Whatever else writing or comparing found wrong.
    """
    clock = time.perf_counter()
    labels = prediction.labels

    from medseg.inference.predictor import in_slices  # noqa: PLC0415 - loads torch

    def target(kind: str) -> Path:
        return out / f"{name}{RESULTS[kind]}"

    def shown(text: str) -> str:
        return text if wishes.log_paths else without_paths(text, name, channels)

    notes = tuple(map(shown, notes))
    _write_nifti(labels, target("nifti"), scan)
    files["nifti"] = target("nifti")
    # files of single structures have the abbreviations in their names
    abbreviations = structure_names(labels.scheme) if wishes.masks else None
    write_text(target("table"), label_table(labels.scheme, abbreviations))
    files["table"] = target("table")
    if wishes.masks:
        masked_at = time.perf_counter()
        _write_masks(name, labels, out, scan, files)
        seconds["masks"] = time.perf_counter() - masked_at
    refused: dict[str, tuple[str, str]] = {}

    def write_object(kind: str, called: str, write: Callable[[Path], None]) -> None:
        place = target(kind)
        why = _refusal(called, lambda: write(place), shown)
        if why is None:
            files[kind] = place
        else:
            refused[kind] = why

    source = scan.source
    if isinstance(source, DicomSource):
        fractional = wishes.seg_type == "fractional"
        probabilities = files["probabilities"] if fractional else None
        write_object(
            "dicom_probseg" if fractional else "dicom_seg",
            "DICOM SEG",
            partial(
                _write_seg,
                labels=labels,
                probabilities=probabilities,
                source=source,
                predictor=predictor,
                wishes=wishes,
            ),
        )
    written_at = time.perf_counter()
    seconds["write_and_verify"] = written_at - clock - seconds.get("masks", 0.0)
    if wishes.rtstruct and isinstance(source, DicomSource):
        write_object(
            "rtstruct",
            "RT structure set",
            partial(_write_rtstruct, labels=labels, source=source, predictor=predictor),
        )
        seconds["rtstruct"] = time.perf_counter() - written_at
        written_at = time.perf_counter()
    statistics = label_statistics(labels, scan.volume)
    write_text(target("statistics_table"), statistics_to_csv(statistics))
    entries = statistics_to_json(statistics)
    doubt = None
    if prediction.entropy_ijk is not None:
        doubt = summarise_uncertainty(prediction.entropy_ijk, labels)
        _write_entropy(prediction, target("uncertainty"), scan)
        files["uncertainty"] = target("uncertainty")
    content = {"notice": NOTICE, "case": name, "labels": entries}
    write_text(target("statistics"), json.dumps(content, indent=2, allow_nan=False) + "\n")
    files["statistics"] = target("statistics")
    files["statistics_table"] = target("statistics_table")
    seconds["statistics"] = time.perf_counter() - written_at
    if wishes.preview:
        drawn_at = time.perf_counter()
        _write_preview(scan, labels, target("preview"), predictor)
        files["preview"] = target("preview")
        seconds["preview"] = time.perf_counter() - drawn_at
    manifest = _manifest(name, predictor, scan, prediction, seconds, notes)
    manifest["settings"] |= {
        "roi": None if roi is None else in_slices(roi),
        "probabilities": "probabilities" in files,
        "preview": wishes.preview,
        "report": wishes.page,
        "rtstruct": "rtstruct" in files,
        "seg_type": wishes.seg_type,
        "omit_empty_frames": wishes.omit_empty_frames,
        "one_file_per_class": wishes.masks,
    }
    manifest["memory"]["measured_ram_bytes"] = meter.look()
    if refused:
        manifest["refused"] = {
            kind: {"code": code, "message": words} for kind, (code, words) in refused.items()
        }
    if doubt is not None:
        manifest["uncertainty"] = _doubt_json(doubt)
    if wishes.log_paths:
        manifest["input"]["paths"] = [str(path) for path in channels.values()]
    if wishes.page:
        paged_at = time.perf_counter()
        page = manifest | {"memory": _memory_for_people(prediction, meter)}
        _write_page(name, scan, labels, entries, page, doubt, target("page"))
        files["page"] = target("page")
        seconds["page"] = time.perf_counter() - paged_at
        manifest["seconds"] = _rounded(seconds)
    manifest["memory"]["measured_ram_bytes"] = meter.look()
    if proof is not None:
        manifest["proof"] = dict(proof)
    manifest["files"] = {
        kind: {"name": path.name, "sha256": _sha256(path)} for kind, path in files.items()
    }
    write_text(target("report"), json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    files["report"] = target("report")
    return next(iter(refused.values()), None)


def _write_nifti(labels: LabelMap, path: Path, scan: Scan) -> None:
    from medseg.io.nifti import write_nifti_labels  # noqa: PLC0415 - pulls in nibabel

    write_nifti_labels(labels, path, scan.source)


def _write_entropy(prediction: Prediction, path: Path, scan: Scan) -> None:
    from medseg.io.nifti import write_nifti_scaled  # noqa: PLC0415 - pulls in nibabel

    assert prediction.entropy_ijk is not None  # noqa: S101 - asked before
    write_nifti_scaled(prediction.entropy_ijk, scan.volume.grid, path, 1 / 255, scan.source)


def _write_masks(
    name: str, labels: LabelMap, out: Path, scan: Scan, files: dict[str, Path]
) -> None:
    """One file of 0 and 1 for every label, also for those that were not found."""
    for label, (kind, file) in zip(
        labels.scheme.labels, mask_names(name, labels.scheme).items(), strict=True
    ):
        mask_ijk = (labels.data_ijk == label.value).astype(np.uint8)
        alone = LabelScheme(label.name, (replace(label, value=1),))
        _write_nifti(LabelMap(mask_ijk, labels.grid, alone), out / file, scan)
        files[kind] = out / file


def _write_seg(
    path: Path,
    *,
    labels: LabelMap,
    probabilities: Path | None,
    source: DicomSource,
    predictor: Predictor,
    wishes: Wishes,
) -> None:
    from medseg.io.dicom_seg import (  # noqa: PLC0415 - pulls in highdicom
        Algorithm,
        write_fractional_seg,
        write_seg,
    )

    card = predictor.card
    algorithm = Algorithm(f"medseg {card.name}", card.version)
    if probabilities is not None:
        from medseg.io.probabilities import read_probabilities  # noqa: PLC0415 - pulls in h5py

        write_fractional_seg(
            read_probabilities(probabilities),
            card.scheme(),
            path,
            source,
            algorithm=algorithm,
            omit_empty_frames=wishes.omit_empty_frames,
        )
        return
    write_seg(
        labels,
        path,
        source,
        algorithm=algorithm,
        seg_type="LABELMAP" if wishes.seg_type == "labelmap" else "BINARY",
        omit_empty_frames=wishes.omit_empty_frames,
    )


def _write_rtstruct(
    path: Path, *, labels: LabelMap, source: DicomSource, predictor: Predictor
) -> None:
    from medseg.io.provenance import Algorithm  # noqa: PLC0415 - pulls in pydicom
    from medseg.io.rtstruct import write_rtstruct  # noqa: PLC0415

    card = predictor.card
    write_rtstruct(labels, path, source, algorithm=Algorithm(f"medseg {card.name}", card.version))


def _refusal(
    kind: str, write: Callable[[], None], shown: Callable[[str], str]
) -> tuple[str, str] | None:
    """Write a DICOM object; why it could not be made, unless it is for the disk."""
    try:
        write()
    except ResourceError:
        raise
    except MedsegError as error:
        return error.code, shown(str(error))
    except Exception as error:
        # its text could hold what the source holds
        found = f"unexpected {type(error).__name__} at writing the {kind}; please report it"
        return "unexpected", found
    return None


def missing_notes(scan: Scan, wishes: Wishes) -> tuple[str, ...]:
    """Why there are no DICOM objects although they are wished for."""
    wanted = ["no RT structure set"] if wishes.rtstruct else []
    if wishes.seg_type != "binary":
        wanted.append(f"no DICOM SEG of type {wishes.seg_type}")
    if isinstance(scan.source, DicomSource):
        return ()  # what cannot be written is refused
    return tuple(f"{one}: the image is no DICOM series" for one in wanted)


def _write_preview(scan: Scan, labels: LabelMap, path: Path, predictor: Predictor) -> None:
    from medseg.studies.preview import three_plane_png  # noqa: PLC0415 - pulls in Pillow

    caption = f"medseg {__version__}, model {predictor.card.name}. {NOTICE}"
    write_bytes(path, three_plane_png(scan.volume, labels, caption=caption))


def _write_page(
    name: str,
    scan: Scan,
    labels: LabelMap,
    statistics: Sequence[Mapping[str, object]],
    manifest: Mapping[str, object],
    doubt: UncertaintySummary | None,
    path: Path,
) -> None:
    from medseg.studies.report import case_report_html  # noqa: PLC0415 - pulls in Pillow

    page = case_report_html(
        scan.volume, labels, case=name, statistics=statistics, manifest=manifest, uncertainty=doubt
    )
    write_text(path, page)


def _doubt_json(doubt: UncertaintySummary) -> dict[str, Any]:
    return {
        "mean_entropy": {name: round(value, 4) for name, value in doubt.per_label.items()},
        "doubtful_slices": [
            {
                "axis": place.axis_name,
                "index": place.index,
                "position_mm": round(place.position_mm, 2),
                "mean_entropy": round(place.mean_entropy, 4),
                "label": place.label,
            }
            for place in doubt.slices
        ],
    }


def _manifest(
    name: str,
    predictor: Predictor,
    scan: Scan,
    prediction: Prediction,
    seconds: Mapping[str, float],
    notes: Sequence[str],
) -> dict[str, Any]:
    grid = scan.volume.grid
    models = [
        {
            "name": member.card.name,
            "version": member.card.version,
            "network": member.card.network.name,
            "weights_sha256": member.card.weights_sha256,
            "licence": member.card.licence,
            "precision": member.numerics.in_words(),
            "window_ijk": list(member.card.inputs.window_ijk),
            "spacing_mm": _spacing(member.card.inputs, predictor.settings.coarser),
            "orientation": member.card.inputs.orientation,
            "interpolation": member.card.inputs.interpolation,
            "thick_slices": member.card.inputs.thick_slices,
        }
        for member in predictor.members
    ]
    settings = predictor.settings.model_dump(mode="json")
    settings["threads"] = predictor.threads
    inputs = predictor.card.inputs
    if settings["overlap"] is None:
        settings["overlap"] = inputs.overlap
    if settings["post_processing"] is None:
        settings["post_processing"] = [
            cleaning.model_dump(mode="json") for cleaning in predictor.card.post_processing
        ]
    return {
        "case": name,
        "notice": NOTICE,
        "medseg": __version__,
        "model": models[0],
        **({"ensemble": models} if len(models) > 1 else {}),
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device_name(predictor),
        "settings": settings,
        "input": {
            "kind": type(scan.source).__name__.removesuffix("Source").lower(),
            "shape_ijk": list(grid.shape_ijk),
            "spacing_mm": [round(step, 6) for step in grid.spacing_mm],
            "orientation": grid.orientation,
        },
        "windows": {
            "all": prediction.windows,
            "computed": prediction.windows_computed,
            "forward_calls": prediction.forward_calls,
        },
        "memory": {
            "predicted": prediction.plan.to_dict(),
            "measured_ram_bytes": prediction.peak_ram_bytes,
            "measured_vram_bytes": prediction.peak_vram_bytes,
        },
        "step_downs": list(prediction.steps_down),
        "volumes_ml": {label: round(ml, 4) for label, ml in prediction.labels.volumes_ml().items()},
        "verified": "every label file was re-read; labels and world coordinates were compared",
        "seconds": _rounded(seconds),
        "notes": list(notes),
    }


def _spacing(inputs: InputSettings, coarser: float) -> list[float] | str:
    """The spacing that a member worked at."""
    if inputs.spacing_mm is None:
        return "the image's" if coarser == 1 else f"{coarser:g} times the image's"
    return [step * coarser for step in inputs.spacing_mm]


def _memory_for_people(prediction: Prediction, meter: PeakMeter) -> dict[str, int]:
    """Figures of memory by name, for the HTML page."""
    figures = {
        f"{item.name}{' on the GPU' if item.place == 'vram' else ''}, predicted_bytes": item.bytes
        for item in prediction.plan.items
    }
    figures["peak predicted_bytes"] = prediction.plan.ram_bytes
    figures["peak measured_bytes"] = meter.look()
    if prediction.peak_vram_bytes is not None:
        figures["GPU peak predicted_bytes"] = prediction.plan.vram_bytes
        figures["GPU peak measured_bytes"] = prediction.peak_vram_bytes
    return figures


def _device_name(predictor: Predictor) -> str:
    import torch  # noqa: PLC0415 - loaded already where a predictor is

    if predictor.device.type == "cuda":
        return f"{predictor.device}: {torch.cuda.get_device_name(predictor.device)}"
    return str(predictor.device)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
