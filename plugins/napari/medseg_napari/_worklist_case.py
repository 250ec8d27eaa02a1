"""One case of a batch run, opened: its image where that still is what it was, and its result."""

# ruff: noqa: PLC0415 - the libraries of a format take long to import: not before its first file

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import LabelMap, LabelScheme
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError
from medseg.io.dicom_files import is_study_file
from medseg.io.fingerprint import fingerprint
from medseg.io.label_table import read_label_table
from medseg.io.reading import read_image, read_labels
from medseg.io.scan import Scan
from medseg_napari._layers import LayerData, doubt_layer, image_layers, layer_of_labels
from medseg_napari._models import FoundModels
from medseg_napari._origin import LayerOrigin
from medseg_napari._provenance import Beginning, StoredLabels
from medseg_napari._send import CHANNELS_KEY
from medseg_napari._worklist import WorkCase, WorkList

__all__ = ["OpenedCase", "open_case"]

_SAME_GRID_MM = 0.01


@dataclass(slots=True, eq=False)
class OpenedCase:
    """A case in the viewer.

    Attributes:
        case: As the list had it when it was opened.
        layers: Its images, then its labels, then its doubt if there is a map of it.
        origin: Of the labels; their beginning is the result of the model.
        labels_at: Which of the layers is the labels.
        notes: What the reviewer should know.
    """

    case: WorkCase
    layers: list[LayerData]
    origin: LayerOrigin
    labels_at: int
    notes: tuple[str, ...] = ()
    _saved: StoredLabels | None = None
    _began_s: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Since it was opened."""
        return time.monotonic() - self._began_s

    def differs_from_model(self, labels_shown: npt.NDArray[Any]) -> bool:
        """Whether labels, along I, P, L, are others than the model's."""
        beginning = self.origin.beginning
        assert beginning is not None  # noqa: S101 - of every opened case
        return _differs(self.origin.original_array(labels_shown), beginning.labels)

    def is_unsaved(self, labels_shown: npt.NDArray[Any]) -> bool:
        """Whether labels, along I, P, L, were changed since they were opened or saved."""
        assert self._saved is not None  # noqa: S101 - of every opened case
        return _differs(self.origin.original_array(labels_shown), self._saved)

    def saved_as(self, labels_shown: npt.NDArray[Any]) -> None:
        """These labels were saved."""
        self._saved = StoredLabels.of(self.origin.original_array(labels_shown))


def open_case(work: WorkList, case: WorkCase, models: FoundModels | None = None) -> OpenedCase:
    """Read a case: meant for a thread of its own.

    Args:
        work: The list.
        case: One of its cases.
        models: Models that are known; one of the same weights tells what its channels are called.

    Raises:
        FormatError: ``worklist-no-result``, ``worklist-result-changed``,
            ``worklist-image-changed``.
        ResourceError: ``worklist-image-missing``.
        GeometryError: ``worklist-grid`` if no image of the case lies on the grid of the result.
        MedsegError: As the readers.
    """
    if not case.has_result:
        raise FormatError(
            f"case {case.row.name}",
            expected="a case with a result",
            found=f"one that is {case.row.state}" + (f": {case.reason}" if case.reason else ""),
            remedy="correct the cause and run the same command again",
            code="worklist-no-result",
        )
    name, out = case.row.name, work.out
    path = out / f"{name}_dseg.nii.gz"
    _check_result(path, case)
    report = _report(out / f"{name}_report.json")
    scheme = _scheme(out, name)
    model = read_labels(path, scheme)
    scans = _scans(case, model)
    image = next(iter(scans.values()))
    beginning = _beginning(model, report)
    origin = LayerOrigin.of(
        image.volume.grid, image.source, scheme=model.scheme, beginning=beginning
    )
    layers: list[LayerData] = []
    for channel, scan in scans.items():
        layers += image_layers(scan, f"{name} {channel}".strip())
    notes = [*image.notes]
    labels, kept = _corrected(out, case, model, notes)
    layer = layer_of_labels(labels.data_ijk, origin, f"{name} {kept}")
    channels = _channels(scans, layers, report, models)
    if channels:
        layer[1]["metadata"] = {**layer[1]["metadata"], CHANNELS_KEY: channels}
    layers.append(layer)
    at = len(layers) - 1
    doubt = _doubt(out / f"{name}_uncertainty.nii.gz", model)
    if doubt is not None:
        layers.append(doubt_layer(origin.shown_array(doubt), origin, f"{name} doubt"))
    return OpenedCase(case, layers, origin, at, tuple(notes), StoredLabels.of(labels.data_ijk))


def _check_result(path: Path, case: WorkCase) -> None:
    found = "no such file"
    if path.is_file():
        if _sha256(path) == case.result:
            return
        found = "one that was changed since"
    raise FormatError(
        str(path),
        expected="the label file as the run wrote it",
        found=found,
        remedy="run the same `medseg predict` again: it is made anew, what was changed is kept",
        code="worklist-result-changed",
    )


def _scans(case: WorkCase, labels: LabelMap) -> dict[str, Scan]:
    """Channel name, empty for the only one, to its image."""
    paths = {name: Path(path) for name, path in case.row.channels.items()}
    for path in paths.values():
        if not path.exists():
            raise ResourceError(
                str(path),
                expected="the image where it was when it was segmented",
                found="nothing of that name",
                remedy="mount the share, or give `medseg predict` the folder where it is now: the "
                "result is taken over",
                code="worklist-image-missing",
            )
    if case.row.fingerprint is not None and fingerprint(paths) != case.row.fingerprint:
        raise FormatError(
            f"case {case.row.name}",
            expected="the image that was segmented",
            found="another one in its place: its content has changed",
            remedy="run the same `medseg predict` again, which segments it anew",
            code="worklist-image-changed",
        )
    scans: dict[str, Scan] = {}
    for name, path in paths.items():
        if path.is_dir() or is_study_file(path):
            scans |= _series_of(path, labels, name)
        else:
            scans[name] = read_image(path)
    fitting = {name: scan for name, scan in scans.items() if _fits(scan, labels)}
    if not fitting:
        raise GeometryError(
            f"case {case.row.name}",
            expected="an image on whose grid the result lies",
            found=f"{len(scans)} image{'' if len(scans) == 1 else 's'} on other grids",
            remedy="open the image and the result by themselves",
            code="worklist-grid",
        )
    return fitting


def _series_of(path: Path, labels: LabelMap, channel: str) -> dict[str, Scan]:
    """The series of a study that the result may have been made of: those on its grid."""
    from medseg.io.dicom_series import read_stack
    from medseg.io.dicom_study import read_study

    found: dict[str, Scan] = {}
    for allow_gaps in (False, True):
        study = read_study(path, allow_gaps=allow_gaps)
        if study.unreadable:
            raise study.unreadable[0]
        able = [stack for stack in study.stacks if stack.problem is None]
        for stack in able:
            if stack.grid is not None and stack.grid.shape_ijk != labels.grid.shape_ijk:
                continue
            scan = read_stack(stack, study)
            if _fits(scan, labels):
                words = [f"{stack.series_number or stack.number}:", stack.description]
                alone = len(able) == 1
                found[channel if alone else " ".join([channel, *words]).strip()] = scan
        if found:
            return found
    return found


def _fits(scan: Scan, labels: LabelMap) -> bool:
    grid = scan.volume.grid
    return (
        grid.shape_ijk == labels.grid.shape_ijk and grid.distance_mm(labels.grid) <= _SAME_GRID_MM
    )


def _corrected(
    out: Path, case: WorkCase, model: LabelMap, notes: list[str]
) -> tuple[LabelMap, str]:
    """The labels to go on with: the correction where there is one, else the model's."""
    review = case.review
    if review is None or not review.file or review.result_sha256 != case.result:
        return model, "result"
    path = out / review.file
    if not path.is_file() or _sha256(path) != review.sha256:
        notes.append(
            f"The correction {review.file} is not there as it was saved: the result is shown"
        )
        return model, "result"
    table = path.with_name(f"{case.row.name}_dseg.tsv")
    try:
        labels = read_labels(path, read_label_table(table, model.scheme.name))
    except MedsegError as error:
        notes.append(f"The correction cannot be read: {error}")
        return model, "result"
    return labels, "corrected"


def _beginning(labels: LabelMap, report: Mapping[str, Any]) -> Beginning:
    model = report.get("model")
    members = report.get("ensemble") or ([model] if isinstance(model, Mapping) else [])
    if not isinstance(model, Mapping) or not all(isinstance(one, Mapping) for one in members):
        return Beginning.opened(labels.data_ijk)
    seconds = report.get("seconds")
    return Beginning.by_model(
        labels.data_ijk,
        str(model.get("name")),
        str(model.get("version")),
        weights_sha256=" ".join(str(one.get("weights_sha256")) for one in members),
        seconds=sum(seconds.values()) if isinstance(seconds, Mapping) else 0.0,
    )


def _channels(
    scans: Mapping[str, Scan],
    layers: list[LayerData],
    report: Mapping[str, Any],
    models: FoundModels | None,
) -> dict[str, str]:
    """Channel name to the name of its layer, where both are known."""
    titles = [str(settings["name"]) for _, settings, _ in layers]
    if all(scans):  # given by name
        return dict(zip(scans, titles, strict=True)) if len(titles) == len(scans) else {}
    model = report.get("model")
    weights = model.get("weights_sha256") if isinstance(model, Mapping) else None
    for known in () if models is None else models.models:
        if known.card.weights_sha256 == weights and len(known.channels) == len(titles) == 1:
            return {known.channels[0]: titles[0]}
    return {}


def _doubt(path: Path, labels: LabelMap) -> npt.NDArray[np.uint8] | None:
    """The map of the doubt in bytes; None if there is none that can be read."""
    if not path.is_file():
        return None
    from medseg.io.nifti import read_nifti

    try:
        volume = read_nifti(path).volume
    except MedsegError:
        return None
    if volume.grid.shape_ijk != labels.grid.shape_ijk:
        return None
    doubt: npt.NDArray[np.uint8] = np.rint(255 * np.clip(volume.data_cijk[0], 0, 1)).astype(
        np.uint8
    )
    return doubt


def _scheme(out: Path, name: str) -> LabelScheme:
    """Names and colours from the label table, coded concepts from the SEG where there is one."""
    table = out / f"{name}_dseg.tsv"
    try:
        scheme = read_label_table(table, "result")
    except FormatError as error:
        raise FormatError(
            str(table),
            expected="the table of labels beside the result",
            found=error.found,
            remedy="run the same `medseg predict` again, which makes it anew",
            code="worklist-result-changed",
        ) from error
    seg = out / f"{name}_dseg.dcm"
    if not seg.is_file():
        return scheme
    from medseg.io.dicom_labels import read_label_scheme

    try:
        coded = {label.name: label for label in read_label_scheme(seg).labels}
    except MedsegError:
        return scheme
    labels = tuple(
        replace(coded[label.name], value=label.value, rgb=label.rgb)
        if label.name in coded
        else label
        for label in scheme.labels
    )
    return LabelScheme(scheme.name, labels)


def _report(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _differs(labels_ijk: npt.NDArray[Any], stored: StoredLabels) -> bool:
    before = stored.labels()
    return before.shape != labels_ijk.shape or any(
        not np.array_equal(first, second) for first, second in zip(before, labels_ijk, strict=True)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
