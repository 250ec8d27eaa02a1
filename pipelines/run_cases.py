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
from pipelines.folds import FOLDS_NAME, Folds, fold_runs
from pipelines.output import prepare_output
from pipelines.run_folder import CONFIG_NAME, SPLIT_NAME
from pipelines.tables import counted
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
        part: Part of the dataset, in words.
        model: Run whose card names labels and regions.
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
    model: Path
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

    Of a folder of folds every case is segmented by the fold that held it out.

    Args:
        run: Folder of a run, of a fold, or of folds.
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
    part, shares, settings = _shares(run, part, data, only, listener)
    cases = [case for share in shares.values() for case in share]
    folders = out / _PREDICTIONS, out / _REFERENCES
    if not overwrite and any(folder.exists() for folder in folders):
        raise ConfigError(
            str(out),
            expected=f"a folder without {_PREDICTIONS} and {_REFERENCES}",
            found="those of an earlier evaluation",
            remedy="add --overwrite, or choose another output folder",
            code="output-exists",
        )
    predictors = (Predictor.load(one, device=device) for one in shares)
    predictor = next(predictors)  # what cannot be loaded is told before anything is written
    for folder in folders:
        prepare_output(folder)

    referenced: set[str] = set()
    first_of_share = {share[0].id for share in [*shares.values()][1:]}

    def write(labels: LabelMap, folder: Path, case: str) -> None:
        write_volume(Volume(labels.data_ijk[None], labels.grid), folder / f"{case}{_ENDING}")

    def segmented(case: Case) -> None:
        nonlocal predictor
        if case.id in first_of_share:
            predictor = next(predictors)
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
        next(iter(shares)),
        *folders,
        tuple(case.id for case in cases if case.id in referenced),
        tuple(failed),
        ignored.pop() if ignored else settings.ignore_value,
        {case.id: case for case in cases},
        settings,
    )


def _shares(
    run: Path,
    part: str | None,
    data: Path | None,
    only: tuple[str, ...] | None,
    listener: Listener,
) -> tuple[str, dict[Path, list[Case]], RunSettings]:
    """The part in words, which run segments which cases, and the settings of all of them."""
    folds = dict(fold_runs(run)) if (run / FOLDS_NAME).is_file() else {}
    if (run / FOLDS_NAME).is_file():
        _check_folds(run, folds, part, listener)
    runs = [*folds.values()] or [run]
    settings = load_settings(runs[0] / CONFIG_NAME)
    whole = read_data(settings, data or Path(settings.data.root))
    shares: dict[Path, list[Case]] = {}
    for one in runs:
        part, shares[one] = _chosen(one, whole, "validation" if folds else part)
    named = {case.id for cases in shares.values() for case in cases}
    strangers = sorted(set(only or ()) - named)
    if strangers:
        raise ConfigError(
            "--cases",
            expected=f"names of cases under {part!r}",
            found=f"also {', '.join(strangers[:10])}",
            remedy="correct the list, or choose another --part",
            code="cases",
        )
    if only is not None:
        kept = {one: [case for case in cases if case.id in only] for one, cases in shares.items()}
        shares = {one: cases for one, cases in kept.items() if cases}
    assert part is not None  # noqa: S101 - there is at least one run
    return (
        f"{part} of {counted(len(folds), 'fold')}" if folds else part,
        shares,
        settings,
    )


def _check_folds(
    run: Path, folds: Mapping[int, Path], part: str | None, listener: Listener
) -> None:
    """Refuse folds of which none is trained, and parts that they have each for itself."""
    count = len(Folds.load(run).held_out)
    if part not in (None, "validation"):
        raise ConfigError(
            "--part",
            expected="validation: the cases that each fold held out",
            found=repr(part),
            remedy=f"leave it out, or evaluate one of the folds, such as {run.name}/fold_0",
            code="evaluation-part",
        )
    if not folds:
        raise ConfigError(
            str(run),
            expected="a fold that has been trained",
            found="none",
            remedy="train them with medseg train CONFIG --cv",
            code="folds-missing",
        )
    untrained = [str(number) for number in range(count) if number not in folds]
    if untrained:
        listener.noted(f"not trained, their cases are not judged: fold {', '.join(untrained)}")


def _chosen(run: Path, whole: DataList, part: str | None) -> tuple[str, list[Case]]:
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
    return part, [there[name] for name in named[part]]


def _read(case: Case, settings: RunSettings) -> tuple[Volume, LabelMap]:
    names = [channel.name for channel in settings.inputs.channels]
    return read_labelled(case, names, settings.scheme(), settings.ignore_value)
