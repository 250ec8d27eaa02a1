"""Evaluation: predicted label maps against references, in parallel, into one folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medseg.atomic import write_text
from medseg.core import LabelMap, LabelScheme, Volume
from medseg.core.labelmap import present_values
from medseg.cores import usable_cores
from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError
from medseg.events import Cancelled, Listener, Silent
from medseg.io.checks import relocated
from medseg.io.reading import read_image, read_labels
from medseg.metrics.case import StructureScores, measure_case
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import Structure
from medseg.metrics.summary import Bootstrap
from medseg.studies.runner import Outcome, run_cases
from pipelines.evaluation_files import (
    CASES,
    PAGE,
    SUMMARY,
    Evaluation,
    Failure,
    columns_without_values,
    policy_in_words,
)
from pipelines.label_sources import (
    LabelSource,
    chosen_structures,
    find_labels,
    ignored_value,
    plain_labels,
    with_ignored,
)
from pipelines.output import prepare_output
from pipelines.pairing import Pairing, image_stem, pair_cases
from pipelines.tables import counted

__all__ = ["EvaluationOrder", "evaluate", "write_evaluation"]

STAGE = "evaluating"
_PICTURES = 12
_WORTH_PROCESSES_S = 10.0
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ImageOf = Callable[[str], Volume | None]


@dataclass(frozen=True, slots=True)
class EvaluationOrder:
    """What is evaluated and how.

    Args:
        predictions: Folder or file.
        references: The same kind.
        settings: The rules; ``ignore_value`` is filled in from ``ignore_label`` or the labels.
        labels: File that names the labels, or a known scheme; None looks beside the references.
        model: Model that names them.
        regions: See :func:`pipelines.label_sources.chosen_structures`.
        ignore_label: Name or value of the label that counts in nothing.
        only: Cases to keep; None keeps all.
        bootstrap: How intervals are found.
        jobs: Processes; None takes as many as there are cores where that is worth their start.
    """

    predictions: Path
    references: Path
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    labels: Path | str | None = None
    model: str | None = None
    regions: tuple[str, ...] = ()
    ignore_label: str | None = None
    only: tuple[str, ...] | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    jobs: int | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    case: str
    prediction: Path | None
    reference: Path


def evaluate(
    order: EvaluationOrder, listener: Listener | None = None
) -> tuple[Evaluation, Pairing, LabelScheme]:
    """Score every case.

    Returns:
        What was found, which file belonged to which, and the labels both were read with.

    Raises:
        ConfigError: If files, labels or regions cannot be used.
        FormatError: The first failure, if every case failed.
        ResourceError: If a process was killed.
        Cancelled: If the listener asks to stop.
    """
    listener = listener or Silent()
    pairing = pair_cases(order.predictions, order.references, order.only)
    jobs = [
        _Job(case, pairing.predictions.get(case), path) for case, path in pairing.references.items()
    ]
    source = find_labels(order.labels, order.model, order.predictions, order.references)
    present: set[int] = set()
    if source is None or list(order.regions) == ["brats"]:
        listener.started("reading labels", len(jobs))
        for number, values in enumerate(_spread(_values, jobs, order.jobs)):
            present |= set(values)
            listener.advanced("reading labels", number + 1)
    if source is None:
        source = _without_ignored(plain_labels(present), order.ignore_label)
    ignored = ignored_value(source, order.ignore_label)
    scheme = with_ignored(source.scheme, ignored)
    chosen_by, structures = chosen_structures(
        source, order.regions, ignored, present, list(pairing.references.values())
    )
    settings = order.settings.model_copy(update={"ignore_value": ignored})
    _check_tolerances(settings, structures)
    measure = partial(_measured, scheme=scheme, structures=structures, settings=settings)
    scores: dict[str, tuple[StructureScores, ...]] = {}
    failed: list[Failure] = []
    listener.started(STAGE, len(jobs))
    for number, (outcome, figures) in enumerate(_spread(measure, jobs, order.jobs)):
        if listener.cancelled():
            raise Cancelled
        if not outcome.done:
            code, message = outcome.code or "unexpected", outcome.message or ""
            if code in ("unexpected", "out-of-memory"):
                message = f"{outcome.case.case}: {message}"
            failed.append(Failure(outcome.case.case, code, message))
        if figures is not None:
            scores[outcome.case.case] = figures
        listener.advanced(STAGE, number + 1)
    if len(failed) == len(jobs):
        raise FormatError(
            "evaluation",
            expected="at least one case that can be scored",
            found=f"{counted(len(failed), 'failure')}, the first: {failed[0].message}",
            remedy="correct the files",
            code=failed[0].code,
        )
    return (
        Evaluation(
            scores,
            tuple(case for case in pairing.missing if case in scores),
            pairing.foreign,
            tuple(failed),
            structures,
            chosen_by,
            source.origin,
            settings,
            order.bootstrap,
        ),
        pairing,
        scheme,
    )


def write_evaluation(
    evaluation: Evaluation,
    pairing: Pairing,
    scheme: LabelScheme,
    out: Path,
    *,
    images: Path | ImageOf | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write the table of cases, the page and, last, the summary.

    Args:
        evaluation: What was found.
        pairing: The files, read again for the pictures.
        scheme: What they are read with.
        out: Folder, made if need be.
        images: Folder of the cases' images, drawn behind, or what finds that of a case; None
            leaves that black.
        overwrite: Whether an earlier evaluation may be replaced.

    Returns:
        Kind of file to its path.

    Raises:
        ConfigError: ``output-exists``.
        ResourceError: If the folder cannot be written.
    """
    check_free(out, overwrite)
    page = _page(evaluation, pairing, scheme, images)
    prepare_output(out)
    (out / SUMMARY).unlink(missing_ok=True)
    files = {"cases": out / CASES, "page": out / PAGE, "summary": out / SUMMARY}
    write_text(files["cases"], evaluation.cases_csv())
    write_text(files["page"], page)
    write_text(files["summary"], _json(evaluation.summary()))
    return files


def check_free(out: Path, overwrite: bool) -> None:
    """Check that there is no earlier evaluation, or that it may be replaced.

    Raises:
        ConfigError: If there is one.
    """
    if not overwrite and any((out / name).exists() for name in (CASES, SUMMARY, PAGE)):
        raise ConfigError(
            str(out),
            expected="a folder without an evaluation",
            found="one from an earlier run",
            remedy="add --overwrite, or choose another output folder",
            code="output-exists",
        )


def check_images(images: Path | None) -> None:
    """Check that the folder of images is one.

    Raises:
        ConfigError: ``folder-missing``.
    """
    if images is not None and not images.is_dir():
        raise ConfigError(
            "--images",
            expected="a folder of images",
            found="no such folder",
            remedy="leave it out to draw the labels alone",
            code="folder-missing",
        )


def problems(evaluation: Evaluation, *, failures: bool = True) -> list[str]:
    """Missing, failed and foreign cases, a sentence each; failed ones only if wished."""
    found = []
    policy = {"worst": "scored as the worst", "leave-out": "left out"}[evaluation.settings.missing]
    if evaluation.missing:
        names = ", ".join(evaluation.missing)
        found.append(f"{len(evaluation.missing)} without prediction, {policy}: {names}")
    faulty = [each.case for each in evaluation.failed if each.case in evaluation.scores]
    if faulty:
        found.append(f"{len(faulty)} with a failed prediction, {policy}: {', '.join(faulty)}")
    if failures:
        found += [f"failed: {each.message} [{each.code}]" for each in evaluation.failed]
    if evaluation.foreign:
        names = ", ".join(evaluation.foreign)
        foreign = counted(len(evaluation.foreign), "prediction")
        found.append(f"{foreign} without a reference, unused: {names}")
    return found


def _without_ignored(source: LabelSource, ignore_label: str | None) -> LabelSource:
    if ignore_label is None or not ignore_label.isdecimal():
        return source
    return plain_labels(set(source.scheme.values) - {int(ignore_label)})


def _check_tolerances(settings: EvaluationSettings, structures: Sequence[Structure]) -> None:
    strangers = set(settings.tolerances_mm) - {structure.name for structure in structures}
    if strangers:
        raise ConfigError(
            "--tolerance-mm",
            expected="structures of " + ", ".join(structure.name for structure in structures),
            found=", ".join(sorted(strangers)),
            remedy="correct the name",
            code="structure",
        )


def _spread(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], jobs: int | None
) -> Iterator[ResultT]:
    """Results in the order of the items, from other processes once that is worth their start.

    The first is done here, so that what numba compiles is on disk before others need it. Without
    ``jobs`` further ones are, until those measured let expect more than a few seconds.
    """
    processes = min(jobs or usable_cores(), max(1, len(items) - 1))
    begun = 0.0
    for done, item in enumerate(items):
        if done == 1:
            begun = time.perf_counter()
        yield function(item)
        left = len(items) - done - 1
        spent_s = time.perf_counter() - begun
        wanted = bool(jobs) or (done > 0 and spent_s / done * left > _WORTH_PROCESSES_S)
        if processes > 1 and left > 1 and wanted:
            yield from _by_processes(function, items[done + 1 :], min(processes, left))
            return


def _by_processes(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int
) -> Iterator[ResultT]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise ResourceError(
                "evaluation",
                expected="processes that live until they are done",
                found="one that was killed, mostly for memory",
                remedy="use fewer processes with --jobs",
                code="worker-died",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _values(job: _Job) -> list[int]:
    """Values of the reference; none where it cannot be read, which scoring will tell."""
    try:
        return present_values(read_labels(job.reference, _any_value()).data_ijk)
    except MedsegError:
        return []


@cache
def _any_value() -> LabelScheme:
    return LabelScheme.plain("any", {value: str(value) for value in range(1, 65536)})


def _measured(
    job: _Job,
    *,
    scheme: LabelScheme,
    structures: Sequence[Structure],
    settings: EvaluationSettings,
) -> tuple[Outcome[_Job, tuple[StructureScores, ...]], tuple[StructureScores, ...] | None]:
    """How scoring a case ended, and its figures.

    Where the prediction is at fault, the figures are those of a case without one. The reference is
    where it cannot be read by itself, and then there are none; memory that ran out is no fault of
    either.
    """

    def process(job: _Job) -> tuple[StructureScores, ...]:
        try:
            prediction, reference = _read_pair(job, scheme)
            return measure_case(prediction, reference, structures, settings)
        except MedsegError as error:
            # cases are named, not the folders they lie in
            raise relocated(error, _where(error, job)) from error

    (outcome,) = run_cases([job], process)
    if outcome.done or job.prediction is None or outcome.code == "out-of-memory":
        return outcome, outcome.result
    (alone,) = run_cases([replace(job, prediction=None)], process)
    return outcome, alone.result


def _where(error: MedsegError, job: _Job) -> str:
    if error.where == str(job.reference):
        return f"{job.case}, reference"
    return f"{job.case}, prediction" if error.where == str(job.prediction) else job.case


def _read_pair(job: _Job, scheme: LabelScheme) -> tuple[LabelMap | None, LabelMap]:
    if job.prediction is None:
        return None, read_labels(job.reference, scheme)
    if _is_seg(job.reference):
        if _is_seg(job.prediction):
            raise FormatError(
                str(job.reference),
                expected="at least one of both in a format that has the image's grid",
                found="two DICOM SEG or RTSTRUCT objects",
                remedy="give the NIfTI file of one of them",
                code="seg-alone",
            )
        prediction = read_labels(job.prediction, scheme)
        return prediction, _read_seg(job.reference, scheme, prediction)
    reference = read_labels(job.reference, scheme)
    if _is_seg(job.prediction):
        return _read_seg(job.prediction, scheme, reference), reference
    return read_labels(job.prediction, scheme), reference


def _is_seg(path: Path) -> bool:
    return path.name.lower().endswith(".dcm")


def _read_seg(path: Path, scheme: LabelScheme, other: LabelMap) -> LabelMap:
    from medseg.io.dicom_labels import read_dicom_labels  # noqa: PLC0415 - pulls in pydicom

    return read_dicom_labels(path, scheme, other.grid)


def _page(
    evaluation: Evaluation, pairing: Pairing, scheme: LabelScheme, images: Path | ImageOf | None
) -> str:
    from medseg.studies.evaluation_page import evaluation_page_html  # noqa: PLC0415 - Pillow

    summaries = {(entry.structure, entry.metric): entry for entry in evaluation.summaries()}
    summary: list[dict[str, object]] = []
    for name in (*(structure.name for structure in evaluation.structures), None):
        row: dict[str, object] = {"structure": name or "mean of structures"}
        for metric in evaluation.metrics:
            entry = summaries[name, metric.name]
            row[metric.name] = entry.mean if np.isfinite(entry.mean) else None
            if metric is evaluation.metrics[0]:
                ends = entry.interval
                row["95 %"] = "" if ends is None else f"{ends.low:.3f} to {ends.high:.3f}"
        summary.append(row)
    rows = list(evaluation.rows())
    empty = columns_without_values(rows)
    facts: dict[str, object] = {
        "cases": len(evaluation.scores),
        "labels": evaluation.labels_from,
        "structures": evaluation.structures_from,
        **policy_in_words(evaluation.settings),
        **evaluation.settings.in_force(),
        "intervals": f"{evaluation.bootstrap.draws} bootstrap draws of cases, "
        f"seed {evaluation.bootstrap.seed}",
    }
    return evaluation_page_html(
        name="Evaluation",
        facts=facts,
        problems=problems(evaluation),
        summary=summary,
        worst=_worst(evaluation, pairing, scheme, images),
        cases=[{k: v for k, v in row.items() if k not in empty} for row in rows],
        undrawn=_undrawn(evaluation),
    )


def _undrawn(evaluation: Evaluation) -> list[str]:
    """Cases without a prediction that could be drawn, in words."""
    sentences = []
    if evaluation.missing:
        sentences.append(f"{', '.join(evaluation.missing)}: no prediction")
    for each in evaluation.failed:
        what = "prediction failed" if each.case in evaluation.scores else "failed, in no mean"
        sentences.append(f"{each.case}: {what} [{each.code}]")
    return sentences


def _worst(
    evaluation: Evaluation, pairing: Pairing, scheme: LabelScheme, images: Path | ImageOf | None
) -> list[Any]:
    """Pictures of the lowest Dice; perfect structures and missing predictions are left out."""
    from medseg.studies.evaluation_page import WorstCase, difference_jpeg  # noqa: PLC0415 - Pillow

    unseen = {*evaluation.missing, *(each.case for each in evaluation.failed)}
    found = [
        (each.values["dice"], case, structure)
        for case, scores in evaluation.scores.items()
        for each, structure in zip(scores, evaluation.structures, strict=True)
        if each.values["dice"] < 1 and case not in unseen  # NaN is not
    ]
    found.sort(key=lambda entry: entry[0])
    pictures = []
    image_of = images if callable(images) else partial(_image_in, _image_files(images))
    for dice, case, structure in found[:_PICTURES]:
        job = _Job(case, pairing.predictions[case], pairing.references[case])
        prediction, reference = _read_pair(job, scheme)
        behind = image_of(case)
        if behind is not None and behind.grid.shape_ijk != reference.grid.shape_ijk:
            behind = None
        jpeg = difference_jpeg(prediction, reference, structure.members, behind)
        each = evaluation.scores[case][evaluation.structures.index(structure)]
        figures = ", ".join(
            f"{name} {value:.3g}" for name, value in each.values.items() if np.isfinite(value)
        )
        pictures.append(WorstCase(f"{case}, {structure.name}: Dice {dice:.3f}", figures, jpeg))
    return pictures


def _image_files(images: Path | None) -> dict[str, Path]:
    if images is None:
        return {}
    files: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        stem = image_stem(path)
        if stem is not None:
            files.setdefault(stem.removesuffix("_0000"), path)
    return files


def _image_in(files: dict[str, Path], case: str) -> Volume | None:
    if case not in files:
        return None
    try:
        return read_image(files[case]).volume
    except MedsegError:
        return None


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
