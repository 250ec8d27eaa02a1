"""Cross-validation: folds trained one after another, and predictions for cases held out.

A folder of folds holds ``folds.json`` (the one division that all folds share), ``fold_N/`` (a run
folder each, with ``validation/`` beside the rest: the predictions of that fold's network for the
cases that it never saw, on the grid of their images) and ``cv.json``, the summary.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.atomic import write_text
from medseg.core import LabelMap, Volume
from medseg.data.case import read_labelled
from medseg.data.datalist import Case, DataList
from medseg.errors import ConfigError, FormatError
from medseg.events import Cancelled, Listener, Silent
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.io.reading import read_labels
from medseg.io.writing import write_volume
from medseg.metrics.overlap import dice_by_label
from medseg.training.ranks import Ranks
from medseg.training.schedule import parse_duration
from medseg.training.settings import RunSettings
from pipelines.interrupt import until_interrupted
from pipelines.progress import console_listener
from pipelines.run_folder import RECORD_NAME, SPLIT_KEYS, SPLIT_NAME, load_written
from pipelines.torchrun import processes_together
from pipelines.train import TrainResult, read_data, settings_from_command, train
from pipelines.training_report import write_training_report

__all__ = [
    "FOLDS_NAME",
    "SUMMARY_NAME",
    "FoldScores",
    "Folds",
    "cross_validate_from_command",
    "draw_folds",
    "fold_runs",
    "held_out_pair",
    "judged_pair",
    "load_scores",
    "mean_of_finite",
    "parse_folds",
    "predict_held_out",
    "summarised",
    "train_folds",
    "write_prediction",
]

FOLDS_NAME = "folds.json"
SUMMARY_NAME = "cv.json"
HELD_OUT = "validation"
_SCORES_NAME = "dice.json"


@dataclass(frozen=True, slots=True)
class Folds:
    """One division of all cases: each is held out in exactly one fold.

    Args:
        held_out: Case ids of each fold.
    """

    held_out: tuple[tuple[str, ...], ...]

    def data(self, fold: int, whole: DataList) -> DataList:
        """The dataset as a fold sees it."""
        cases = {case.id: case for case in (*whole.train, *whole.validation)}
        held = set(self.held_out[fold])
        return dataclasses.replace(
            whole,
            train=tuple(cases[name] for name in sorted(cases) if name not in held),
            validation=tuple(cases[name] for name in self.held_out[fold]),
            split_source=f"fold {fold} of {len(self.held_out)}",
        )

    def to_json(self) -> str:
        """As the shared file holds it."""
        return json.dumps({"folds": [list(names) for names in self.held_out]}, indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> Folds:
        """Read the shared file.

        Raises:
            ConfigError: If there is none.
            FormatError: If it is damaged.
        """
        path = folder / FOLDS_NAME
        if not path.is_file():
            raise ConfigError(
                str(folder),
                expected=f"a folder of folds with {FOLDS_NAME}",
                found="none",
                remedy="train one with medseg train CONFIG --cv",
                code="folds-missing",
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))["folds"]
            folds = tuple(tuple(str(name) for name in names) for names in content)
            names = [name for fold in folds for name in fold]
            if len(folds) < 2 or len(set(names)) < len(names) or not all(folds):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                str(path),
                expected='{"folds": [[case ids], ...]}, every case in one fold',
                found="something else",
                remedy="put the file back, or train the folds again",
                code="folds-format",
            ) from error
        return cls(folds)


@dataclass(frozen=True, slots=True)
class FoldScores:
    """What a fold came to on the cases it held out.

    Args:
        fold: Its number.
        dice: Case to structure to Dice on the image's grid; NaN where neither map holds it.
    """

    fold: int
    dice: dict[str, dict[str, float]]


def draw_folds(patients: Mapping[str, str], count: int, seed: int) -> Folds:
    """Deal the patients out to folds whose numbers of patients differ by at most one.

    Args:
        patients: Case id to the patient that it is of: all cases of one come into one fold.
        count: Number of folds.
        seed: Of the draw.

    Raises:
        ConfigError: If there are fewer than two folds, or fewer patients than folds.
    """
    shuffled = sorted(set(patients.values()))
    if not 2 <= count <= len(shuffled):
        raise ConfigError(
            "folds",
            expected=f"from 2 folds to {len(shuffled)}, the number of patients",
            found=str(count),
            remedy="choose fewer folds, or add cases",
            code="folds",
        )
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - not for secrets
    dealt = [set(shuffled[fold::count]) for fold in range(count)]
    return Folds(
        tuple(tuple(sorted(case for case in patients if patients[case] in own)) for own in dealt)
    )


def parse_folds(text: str, count: int) -> tuple[int, ...]:
    """Fold numbers such as ``0-4``, ``2`` or ``0,3-4``.

    >>> parse_folds("0,3-4", 5)
    (0, 3, 4)

    Raises:
        ConfigError: If it is written otherwise or a number is too large.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        span = range(0) if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)
        if not span or span[-1] >= count:
            raise ConfigError(
                "folds",
                expected=f"numbers from 0 to {count - 1}, such as 0-{count - 1} or 0,2",
                found=repr(text),
                remedy="count folds from 0; --fold-count says how many there are",
                code="folds",
            )
        numbers += span
    return tuple(sorted(set(numbers)))


def train_folds(
    settings: RunSettings,
    folds: Sequence[int] | None,
    *,
    count: int,
    folder: Path,
    data_root: Path | None = None,
    budget_s: float | None = None,
    listener: Listener | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_fold: Callable[[int, TrainResult], None] | None = None,
    device: torch.device | None = None,
) -> list[FoldScores]:
    """Train folds one after another and predict the cases that each held out.

    The division is drawn with ``settings.data.seed`` and shared by all folds; one that lies in the
    folder already is kept, so that folds may be trained by several commands.

    Args:
        settings: Of every fold.
        folds: Their numbers; None for all.
        count: Number of folds of the division.
        folder: Gets ``fold_N`` and the summary.
        data_root: Dataset folder instead of ``settings.data.root``.
        budget_s: Wall-clock budget of each fold.
        listener: Progress and the wish to stop.
        overwrite: Whether earlier runs of these folds are replaced.
        resume: Whether folds that were begun go on, and those that are done are left alone.
        on_fold: Called with the fold's number and its :class:`TrainResult` after each training.
        device: Where to train; that of the settings if None.

    Raises:
        MedsegError: As :func:`~pipelines.train.train`.
        Cancelled: If the listener asked to stop; folds that are done stay.
    """
    hearer = listener or Silent()
    root = data_root or Path(settings.data.root)
    whole = read_data(settings, root)
    ranks = Ranks()
    folder.mkdir(parents=True, exist_ok=True)
    division = ranks.told(
        _division(folder, whole, count, settings.data.seed) if ranks.first else None
    )
    assert division is not None  # noqa: S101 - the first rank has one
    chosen = range(len(division.held_out)) if folds is None else folds
    done = []
    for fold in chosen:
        place = folder / f"fold_{fold}"
        data = division.data(fold, whole)
        if not (resume and _is_done(place, data)):
            hearer.noted(f"fold {fold}: {len(data.train)} cases to learn from")
            result = train(
                settings,
                run_folder=place,
                data_root=data_root,
                data=data,
                budget_s=budget_s,
                listener=listener,
                overwrite=overwrite,
                resume=resume,
                device=device,
            )
            if on_fold is not None:
                on_fold(fold, result)
            if not result.finished:
                raise Cancelled
        if ranks.first:
            done.append(FoldScores(fold, predict_held_out(place, data, settings, hearer)))
        ranks.told(None)  # the others wait
    if ranks.first:
        _write_summary(folder)
    return done


def predict_held_out(
    run: Path, data: DataList, settings: RunSettings, listener: Listener
) -> dict[str, dict[str, float]]:
    """Predict a fold's held-out cases into ``validation/`` of its run folder, and judge them.

    Cases whose prediction is there already are not predicted again.

    Returns:
        Case to structure to Dice, on the grid of the images.

    Raises:
        MedsegError: If a case cannot be read, predicted or written.
        Cancelled: If the listener asked to stop.
    """
    place = run / HELD_OUT
    place.mkdir(exist_ok=True)
    predictor: Predictor | None = None
    dice: dict[str, dict[str, float]] = {}
    listener.started("held-out cases", len(data.validation))
    for done, case in enumerate(data.validation, start=1):
        if listener.cancelled():
            raise Cancelled
        path = place / f"{case.id}.nii.gz"
        if not path.is_file():
            predictor = predictor or Predictor.load(
                run, PredictionSettings(), device=settings.training.device
            )
            write_prediction(run, case, predictor, settings)
        dice[case.id] = dice_by_label(*held_out_pair(run, case, settings))
        listener.advanced("held-out cases", done)
    content = {case: _plain(scores) for case, scores in dice.items()}
    write_text(place / _SCORES_NAME, json.dumps(content, indent=2) + "\n")
    return dice


def write_prediction(run: Path, case: Case, predictor: Predictor, settings: RunSettings) -> None:
    """Predict a case into ``validation/`` of a folder, where :func:`held_out_pair` finds it."""
    names = [channel.name for channel in predictor.card.inputs.channels]
    volume, _ = read_labelled(case, names, predictor.card.scheme(), settings.ignore_value)
    labels = predictor.predict(volume, Silent()).labels
    (run / HELD_OUT).mkdir(parents=True, exist_ok=True)
    path = run / HELD_OUT / f"{case.id}.nii.gz"
    write_volume(Volume(labels.data_ijk[None], labels.grid), path)


def held_out_pair(run: Path, case: Case, settings: RunSettings) -> tuple[LabelMap, LabelMap]:
    """A prediction of a held-out case and the truth; what nobody judged is background in both."""
    result = read_labels(run / HELD_OUT / f"{case.id}.nii.gz", settings.scheme())
    return judged_pair(result, case, settings)


def judged_pair(result: LabelMap, case: Case, settings: RunSettings) -> tuple[LabelMap, LabelMap]:
    """A prediction and the truth of a case; what nobody judged is background in both."""
    scheme = settings.scheme()
    names = [channel.name for channel in settings.inputs.channels]
    _, truth = read_labelled(case, names, scheme, settings.ignore_value)
    ignored = settings.ignore_value if case.ignore_value is None else case.ignore_value
    if ignored is None:
        return result, truth
    unjudged = truth.data_ijk == ignored
    cleared = [LabelMap(_cleared(one, unjudged), one.grid, scheme) for one in (result, truth)]
    return cleared[0], cleared[1]


def _cleared(labels: LabelMap, unjudged: Any) -> Any:  # noqa: ANN401 - arrays
    data = labels.data_ijk.copy()
    data[unjudged] = 0
    return data


def _division(folder: Path, whole: DataList, count: int, seed: int) -> Folds:
    names = [case.id for case in (*whole.train, *whole.validation)]
    if (folder / FOLDS_NAME).is_file():
        division = Folds.load(folder)
        listed = {name for fold in division.held_out for name in fold}
        if listed != set(names) or len(division.held_out) != count:
            raise ConfigError(
                str(folder / FOLDS_NAME),
                expected=f"{count} folds of the dataset's {len(names)} cases",
                found=f"{len(division.held_out)} folds of {len(listed)} cases",
                remedy="give the dataset and the number of folds that these folds were drawn "
                "from, or another --out"
                + (
                    ""
                    if any(folder.glob("fold_*"))
                    else f"; or delete {FOLDS_NAME}: no fold of it has been trained"
                ),
                code="folds-differ",
            )
        return division
    patients = {case.id: case.patient for case in (*whole.train, *whole.validation)}
    division = draw_folds(patients, count, seed)
    write_text(folder / FOLDS_NAME, division.to_json())
    return division


def _is_done(place: Path, data: DataList) -> bool:
    record = place / RECORD_NAME
    if not record.is_file():
        return False
    content = load_written(record, ("finished",))
    split = load_written(place / SPLIT_NAME, SPLIT_KEYS)
    return bool(content["finished"]) and split == data.split()


def fold_runs(folder: Path) -> Iterator[tuple[int, Path]]:
    """Numbers and run folders of the folds that a folder holds."""
    for path in sorted(folder.glob("fold_*"), key=lambda path: (len(path.name), path.name)):
        number = path.name.removeprefix("fold_")
        if number.isdigit() and (path / RECORD_NAME).is_file():
            yield int(number), path


def summarised(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean Dice of every structure over the cases that have one, and of these means.

    >>> summarised({"a": {"x": 1.0, "y": float("nan")}, "b": {"x": 0.5, "y": 0.25}})
    {'x': 0.75, 'y': 0.25, 'mean': 0.5}
    """
    names = list(next(iter(scores.values()), {}))
    means = {name: mean_of_finite(dice[name] for dice in scores.values()) for name in names}
    return {**means, "mean": mean_of_finite(means.values())}


def mean_of_finite(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def load_scores(run: Path) -> dict[str, dict[str, float]] | None:
    """Dice of the held-out cases of a fold; None if they were not predicted yet."""
    path = run / HELD_OUT / _SCORES_NAME
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        case: {name: math.nan if value is None else value for name, value in dice.items()}
        for case, dice in content.items()
    }


def _write_summary(folder: Path) -> None:
    per_fold, every = {}, {}
    for number, run in fold_runs(folder):
        scores = load_scores(run)
        if scores is not None:
            per_fold[number] = summarised(scores)
            every.update(scores)
    content = {
        "cases": len(every),
        "dice": _plain(summarised(every)),
        "folds": {str(number): _plain(scores) for number, scores in per_fold.items()},
    }
    write_text(folder / SUMMARY_NAME, json.dumps(content, indent=2) + "\n")


def _plain(dice: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(v, 6) if math.isfinite(v) else None for name, v in dice.items()}


def cross_validate_from_command(
    config: str,
    wanted: str | None,
    *,
    count: int,
    data: Path | None,
    out: Path | None,
    budget: str | None,
    seed: int | None,
    device: str | None,
    resume: bool,
    overwrite: bool,
) -> tuple[Path, list[FoldScores]]:
    """Train folds as the command line asks, with bars on stderr.

    Args:
        config: A YAML file or the name of a shipped configuration.
        wanted: Fold numbers such as ``0-4``; None for all.
        count: Number of folds of the division.
        data: Dataset folder instead of the configuration's.
        out: Folder of the folds; ``runs/<name of the configuration>`` if None.
        budget: Wall-clock budget of each fold, such as ``10m``.
        seed: Replaces ``training.seed``.
        device: Replaces ``training.device``.
        resume: Whether folds that were begun go on, and those that are done are left alone.
        overwrite: Whether earlier runs of these folds are replaced.

    Returns:
        The folder, and what each fold came to.

    Raises:
        MedsegError: As :func:`train_folds`.
        Cancelled: If it was interrupted.
    """
    settings, folder = settings_from_command(
        config, out=out, seed=seed, device=device, resume=False
    )
    budget_s = None if budget is None else parse_duration(budget)
    chosen = None if wanted is None else parse_folds(wanted, count)
    with (
        processes_together(settings.training.device) as place,
        console_listener() as bars,
        until_interrupted(bars if Ranks().first else Silent()) as listener,
    ):
        return folder, train_folds(
            settings,
            chosen,
            count=count,
            folder=folder,
            data_root=data,
            budget_s=budget_s,
            listener=listener,
            overwrite=overwrite,
            resume=resume,
            device=place,
            on_fold=lambda fold, result: _report(folder, fold, result, settings, data, listener),
        )


def _report(
    folder: Path,
    fold: int,
    result: TrainResult,
    settings: RunSettings,
    root: Path | None,
    listener: Listener,
) -> None:
    if result.steps and not result.finished_before and Ranks().first:
        whole = read_data(settings, root or Path(settings.data.root))
        write_training_report(result, settings, Folds.load(folder).data(fold, whole), listener)
