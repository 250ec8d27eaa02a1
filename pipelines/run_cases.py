"""The cases of a training run's dataset, segmented by its model and laid out for evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.core import LabelMap, Volume
from medseg.data.case import Case, read_labelled
from medseg.data.datalist import DataList
from medseg.errors import ConfigError, FormatError, MedsegError, one_of, why_unreadable
from medseg.events import Cancelled, Listener
from medseg.inference.predictor import Predictor
from medseg.io.checks import relocated
from medseg.io.writing import write_volume
from medseg.studies.runner import run_cases
from medseg.training.settings import RunSettings, load_settings
from pipelines.evaluation_files import Failure
from pipelines.output import prepare_output
from pipelines.run_folder import CONFIG_NAME, SPLIT_NAME
from pipelines.train import read_data

__all__ = ["PARTS", "RunCases", "segment_part"]

PARTS = ("train", "validation", "test")
"""Parts of a dataset that may be asked for."""

STAGE = "segmenting"
_PREDICTIONS = "predictions"
_REFERENCES = "references"
_ENDING = "_dseg.nii.gz"


@dataclass(frozen=True, slots=True)
class RunCases:
    """What lies ready to be scored.

    Args:
        part: Part of the dataset.
        predictions: Folder with ``CASE_dseg.nii.gz`` of every case that could be segmented.
        references: Folder with the experts' labels of every case that could be read, under the same
            names.
        cases: Names of those with a reference.
        failed: Cases that could not be read or segmented.
        ignored: Value of voxels that nobody judged, None where there is none.
        source: Case to where it lies.
        settings: Of the run.
    """

    part: str
    predictions: Path
    references: Path
    cases: tuple[str, ...]
    failed: tuple[Failure, ...]
    ignored: int | None
    source: Mapping[str, Case]
    settings: RunSettings

    def image(self, case: str) -> Volume | None:
        """The image of a case, read again; None if it cannot be read any more."""
        try:
            return _read(self.source[case], self.settings)[0]
        except MedsegError:
            return None


def segment_part(
    run: Path,
    out: Path,
    listener: Listener,
    *,
    part: str | None = None,
    data: Path | None = None,
    device: str = "auto",
    only: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> RunCases:
    """Segment one part of the dataset that a run was trained on, as ``medseg predict`` would.

    Which cases were learnt from and held out is what the run's own ``split.json`` says. The
    reference of a case is what the dataset's layout makes of it: labels recoded to the model's,
    RTSTRUCT filled, slices stacked, on the grid of the image.

    Args:
        run: Folder of a run, or of a fold.
        out: Folder for ``predictions`` and ``references``.
        listener: Told of every case; may ask to stop.
        part: Of :data:`PARTS`; None takes ``test`` if the dataset has such cases, else
            ``validation``.
        data: Folder of the dataset; None takes where the run says that it lies.
        device: Where the model runs.
        only: Names of cases to keep; None keeps all.
        overwrite: Whether results of an earlier call may be replaced.

    Raises:
        ConfigError: ``evaluation-part``, ``cases``, ``resume-split``, ``split-damaged``,
            ``output-exists``, and as reading the dataset and the model.
        FormatError: The first failure, if no case could be segmented.
        Cancelled: If the listener asks to stop.
    """
    settings = load_settings(run / CONFIG_NAME)
    whole = read_data(settings, data or Path(settings.data.root))
    part, cases = _chosen(run, whole, part, only)
    folders = out / _PREDICTIONS, out / _REFERENCES
    if not overwrite and any(folder.exists() for folder in folders):
        raise ConfigError(
            str(out),
            expected=f"a folder without {_PREDICTIONS} and {_REFERENCES}",
            found="those of an earlier evaluation",
            remedy="add --overwrite, or choose another output folder",
            code="output-exists",
        )
    predictor = Predictor.load(run, device=device)
    for folder in folders:
        prepare_output(folder)

    referenced: set[str] = set()

    def write(labels: LabelMap, folder: Path, case: str) -> None:
        write_volume(Volume(labels.data_ijk[None], labels.grid), folder / f"{case}{_ENDING}")

    def segmented(case: Case) -> None:
        # that of an earlier call would be scored where this one fails
        (folders[0] / f"{case.id}{_ENDING}").unlink(missing_ok=True)
        try:
            volume, truth = _read(case, settings)
            # first, so that a case whose segmentation fails is scored as one without prediction
            write(truth, folders[1], case.id)
            referenced.add(case.id)
            write(predictor.predict(volume).labels, folders[0], case.id)
        except MedsegError as error:
            # cases are named, not the folders they lie in
            raise relocated(error, case.id) from error

    failed: list[Failure] = []
    listener.started(STAGE, len(cases))
    for done, (case, outcome) in enumerate(zip(cases, run_cases(cases, segmented), strict=True)):
        if outcome.code is not None:
            message = outcome.message or ""
            if outcome.code in ("unexpected", "out-of-memory"):
                message = f"{case.id}: {message}"
            failed.append(Failure(case.id, outcome.code, message))
        listener.advanced(STAGE, done + 1)
        if listener.cancelled():
            raise Cancelled
    if len(failed) == len(cases):
        raise FormatError(
            f"part {part!r}",
            expected="at least one case that can be segmented",
            found=f"{len(failed)} that failed, the first: {failed[0].message}",
            remedy="correct the dataset; see `medseg data check`",
            code=failed[0].code,
        )
    ignored = {case.ignore_value for case in cases} - {None}
    return RunCases(
        part,
        *folders,
        tuple(case.id for case in cases if case.id in referenced),
        tuple(failed),
        ignored.pop() if ignored else settings.ignore_value,
        {case.id: case for case in cases},
        settings,
    )


def _chosen(
    run: Path, whole: DataList, part: str | None, only: tuple[str, ...] | None
) -> tuple[str, list[Case]]:
    """The part and its cases, by the run's own word where it has one."""
    if part is not None and part not in PARTS:
        raise ConfigError(
            "--part",
            expected=one_of(part, PARTS),
            found=repr(part),
            remedy="name the part of the dataset whose cases are to be scored",
            code="evaluation-part",
        )
    path = run / SPLIT_NAME
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        named = {name: tuple(begun.get(name, ())) for name in PARTS}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            str(path),
            expected="the lists of cases that the training wrote",
            found=why_unreadable(error),
            remedy="give the run folder as the training left it",
            code="split-damaged",
        ) from error
    there = {case.id: case for case in (*whole.train, *whole.validation, *whole.test)}
    learnt = {*named["train"], *named["validation"]}
    tests = named["test"] or tuple(case.id for case in whole.test if case.id not in learnt)
    named["test"] = tests
    part = part or ("test" if tests else "validation")
    if not named[part]:
        raise ConfigError(
            f"run {run.name}",
            expected=f"cases under {part!r} in its split",
            found="none",
            remedy="choose one of " + ", ".join(name for name in PARTS if named[name]),
            code="evaluation-part",
        )
    absent = [name for name in named[part] if name not in there]
    if absent:
        raise ConfigError(
            f"dataset {whole.name!r}",
            expected=f"the cases that the run's split names under {part!r}",
            found=f"{len(absent)} that are not there, such as {absent[0]!r}",
            remedy="give the dataset that the run was trained on, with --data",
            code="resume-split",
        )
    strangers = sorted(set(only or ()) - set(named[part]))
    if strangers:
        raise ConfigError(
            "--cases",
            expected=f"names of cases under {part!r}",
            found=f"also {', '.join(strangers[:10])}",
            remedy="correct the list, or choose another --part",
            code="cases",
        )
    return part, [there[name] for name in named[part] if only is None or name in only]


def _read(case: Case, settings: RunSettings) -> tuple[Volume, LabelMap]:
    names = [channel.name for channel in settings.inputs.channels]
    return read_labelled(case, names, settings.scheme(), settings.ignore_value)
