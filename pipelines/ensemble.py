"""Which models, and what post-processing: chosen on cross-validation alone.

Every case is judged by networks that never saw it: by those of the fold that held it out. Nothing
here looks at a test set. The choice follows nnU-Net's recipe (Isensee et al., Nature Methods 2021,
"empirical configuration"): the best single configuration or the best average of several by mean
Dice, then post-processing that is kept where it helps; we add a least volume per structure.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.atomic import scratch_folder, write_text
from medseg.core import LabelMap
from medseg.data.datalist import Case, DataList
from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener, Silent
from medseg.inference.post_processing import clean_labels
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.metrics.overlap import dice_by_label, dice_of_label
from medseg.models.card import CARD_NAME, LabelCleaning, load_card, model_folder
from medseg.models.zoo import ENSEMBLE_NAME
from medseg.training.settings import RunSettings, load_settings
from pipelines.folds import (
    HELD_OUT,
    Folds,
    fold_runs,
    held_out_pair,
    mean_of_finite,
    summarised,
    write_prediction,
)
from pipelines.run_folder import CONFIG_NAME
from pipelines.train import read_data

__all__ = ["ENSEMBLE_NAME", "Choice", "Trial", "choose_ensemble"]

_LEAST_MM3 = (10.0, 50.0, 200.0, 1000.0)
_MARGIN = 1e-6
_HARDLY = 0.3

Dice = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration, or an average of several, judged on all held-out cases.

    Args:
        members: Names of the run folders.
        dice: Mean Dice of every structure over the cases, and ``mean`` of these.
    """

    members: tuple[str, ...]
    dice: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Args:
        members: Run folders, each with folds.
        models: Model folders of all their folds: the ensemble.
        post_processing: Steps that raised the mean Dice.
        dice: Mean Dice with post-processing.
        trials: Everything that was compared, without post-processing.
        steps: Each post-processing step tried, the structure's Dice before and with it, and whether
            it was adopted.
        cases: Number of held-out cases.
    """

    members: tuple[Path, ...]
    models: tuple[Path, ...]
    post_processing: tuple[LabelCleaning, ...]
    dice: dict[str, float]
    trials: tuple[Trial, ...]
    steps: tuple[tuple[LabelCleaning, float, float, bool], ...]
    cases: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each structure that was hardly found: the best of little is no model."""
        return tuple(
            f"{name!r} has a Dice of {value:.3f} on the held-out cases: nothing that was compared "
            "finds it; look at the predictions and train for longer before you use this"
            for name, value in self.dice.items()
            if name != "mean" and value < _HARDLY
        )


@dataclass(frozen=True, slots=True)
class _Configuration:
    folder: Path
    settings: RunSettings
    runs: dict[int, Path]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A trial, and where its predictions of the held-out cases lie.

    Args:
        trial: What it came to.
        members: The configurations.
        average: A run folder of which there are only these predictions; None for a single
            configuration, whose folds hold theirs.
    """

    trial: Trial
    members: tuple[_Configuration, ...]
    average: Path | None

    def pair(self, fold: int, case: Case) -> tuple[LabelMap, LabelMap]:
        """Prediction and truth of a case, read from disk: all of them may not fit the memory."""
        first = self.members[0]
        return held_out_pair(self.average or first.runs[fold], case, first.settings)


def choose_ensemble(
    runs: Sequence[Path],
    *,
    data_root: Path | None = None,
    out: Path,
    listener: Listener | None = None,
    device: str = "auto",
) -> Choice:
    """Choose configurations and post-processing, and write the choice.

    ``ensemble.json`` in ``out`` names the models, relative to it; the cards of these models get the
    post-processing.

    Args:
        runs: Folders of folds; all of the same division, with every fold trained.
        data_root: Dataset folder instead of the configurations' ``data.root``.
        out: Folder for ``ensemble.json``; made if absent.
        listener: Progress and the wish to stop.
        device: Where averages are predicted.

    Raises:
        ConfigError: If a folder holds no complete folds, or they differ in division or labels.
        MedsegError: If a case cannot be read or predicted.
        Cancelled: If the listener asked to stop.
    """
    hearer = listener or Silent()
    configurations = [_configuration(run) for run in runs]
    division = _common(configurations)
    for one in configurations:
        _check_predicted(one, division)
    settings = configurations[0].settings
    data = read_data(settings, data_root or Path(settings.data.root))
    cases = dict(_held_out(division, data))
    with scratch_folder(runs[0]) as averages:
        trials: list[Trial] = []
        best: _Judged | None = None
        for judged in _judge_all(configurations, cases, averages, device, hearer):
            trials.append(judged.trial)
            # among equals the one with fewer members, which comes first
            better = best is None or _score(judged.trial.dice) > _score(best.trial.dice)
            worse, best = (best, judged) if better else (judged, best)
            if worse is not None and worse.average is not None:
                shutil.rmtree(worse.average, ignore_errors=True)
        assert best is not None  # noqa: S101 - there is at least one run
        cleanings, dice, steps = _choose_cleaning(best, cases, hearer)
    choice = Choice(
        members=tuple(one.folder for one in best.members),
        models=tuple(model_folder(run) for one in best.members for run in one.runs.values()),
        post_processing=cleanings,
        dice=dice,
        trials=tuple(trials),
        steps=steps,
        cases=len(cases),
    )
    _write(choice, out)
    return choice


def _configuration(folder: Path) -> _Configuration:
    division = Folds.load(folder)
    runs = dict(fold_runs(folder))
    _check_finished(
        folder, division, [fold for fold in range(len(division.held_out)) if fold not in runs]
    )
    return _Configuration(folder, load_settings(runs[0] / CONFIG_NAME), runs)


def _check_finished(folder: Path, division: Folds, missing: Sequence[int]) -> None:
    if missing:
        raise ConfigError(
            str(folder),
            expected=f"all {len(division.held_out)} folds with predictions of the cases that they "
            "held out",
            found=f"no finished fold {missing[0]}",
            remedy="train the rest with medseg train CONFIG --cv --resume",
            code="folds-missing",
        )


def _check_predicted(configuration: _Configuration, division: Folds) -> None:
    """Refuse folds that have not written all predictions, as each does at its end."""
    places = {fold: run / HELD_OUT for fold, run in configuration.runs.items()}
    missing = [
        fold
        for fold, names in enumerate(division.held_out)
        if not all((places[fold] / f"{name}.nii.gz").is_file() for name in names)
    ]
    _check_finished(configuration.folder, division, missing)


def _common(configurations: Sequence[_Configuration]) -> Folds:
    first = configurations[0]
    division = Folds.load(first.folder)
    for other in configurations[1:]:
        same_folds = Folds.load(other.folder) == division
        if not same_folds or other.settings.scheme() != first.settings.scheme():
            raise ConfigError(
                str(other.folder),
                expected=f"the folds and labels of {first.folder}",
                found="other folds" if not same_folds else "other labels",
                remedy=f"train it with the folds.json of {first.folder} in its folder",
                code="folds-differ",
            )
    return division


def _held_out(division: Folds, data: DataList) -> Iterator[tuple[str, tuple[int, Case]]]:
    cases = {case.id: case for case in (*data.train, *data.validation)}
    for fold, names in enumerate(division.held_out):
        for name in names:
            if name not in cases:
                raise ConfigError(
                    f"dataset {data.name!r}",
                    expected="all cases of the folds",
                    found=f"none called {name!r}",
                    remedy="give the dataset that the folds were drawn from, with --data",
                    code="folds-differ",
                )
            yield name, (fold, cases[name])


def _judge_all(
    configurations: Sequence[_Configuration],
    cases: Mapping[str, tuple[int, Case]],
    averages: Path,
    device: str,
    listener: Listener,
) -> Iterator[_Judged]:
    """Every configuration as its folds predicted, and every average of several, predicted anew."""
    combinations = itertools.chain.from_iterable(
        itertools.combinations(configurations, size) for size in range(1, len(configurations) + 1)
    )
    for number, members in enumerate(combinations):
        names = tuple(one.folder.name for one in members)
        place = None if len(members) == 1 else averages / str(number)
        judged = _Judged(Trial(names, {}), members, place)
        stage = f"held-out cases of {' + '.join(names)}"
        listener.started(stage, len(cases))
        dice = {}
        average: tuple[int, Predictor] | None = None
        for done, (name, (fold, case)) in enumerate(cases.items(), start=1):
            if listener.cancelled():
                raise Cancelled
            if place is not None:
                if average is None or average[0] != fold:
                    average = (fold, _average(members, fold, device))
                write_prediction(place, case, average[1], members[0].settings)
            dice[name] = dice_by_label(*judged.pair(fold, case))
            listener.advanced(stage, done)
        yield replace(judged, trial=Trial(names, summarised(dice)))


def _average(members: Sequence[_Configuration], fold: int, device: str) -> Predictor:
    models = [one.runs[fold] for one in members]
    return Predictor.load(models, PredictionSettings(post_processing=()), device=device)


def _choose_cleaning(
    best: _Judged, cases: Mapping[str, tuple[int, Case]], listener: Listener
) -> tuple[
    tuple[LabelCleaning, ...],
    dict[str, float],
    tuple[tuple[LabelCleaning, float, float, bool], ...],
]:
    """For each structure the step that raises its mean Dice most, if one does.

    Structures do not touch one another in these steps, so each is chosen by itself.
    """
    labels = best.members[0].settings.scheme().labels
    scores: dict[str, dict[LabelCleaning, list[float]]] = {
        label.name: {
            LabelCleaning(label=label.name, keep_largest=True): [],
            **{LabelCleaning(label=label.name, min_mm3=volume): [] for volume in _LEAST_MM3},
        }
        for label in labels
    }
    listener.started("post-processing", len(cases))
    for done, (fold, case) in enumerate(cases.values(), start=1):
        result, truth = best.pair(fold, case)
        for label in labels:
            if listener.cancelled():
                raise Cancelled
            for step, dice_of_cases in scores[label.name].items():
                cleaned, _ = clean_labels(result, [step])
                dice_of_cases.append(dice_of_label(cleaned, truth, label.name))
        listener.advanced("post-processing", done)

    adopted: list[LabelCleaning] = []
    tried: list[tuple[LabelCleaning, float, float, bool]] = []
    dice = dict(best.trial.dice)
    for name, steps in scores.items():
        before = dice[name]
        means = {step: mean_of_finite(values) for step, values in steps.items()}
        chosen = max(means, key=lambda step: -math.inf if math.isnan(means[step]) else means[step])
        helps = means[chosen] > before + _MARGIN
        tried += [(step, before, mean, helps and step == chosen) for step, mean in means.items()]
        if helps:
            adopted.append(chosen)
            dice[name] = means[chosen]
    dice["mean"] = mean_of_finite(dice[name] for name in scores)
    return tuple(adopted), dice, tuple(tried)


def _score(dice: Mapping[str, float]) -> float:
    return dice["mean"] if math.isfinite(dice["mean"]) else -math.inf


def _write(choice: Choice, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for folder in choice.models:
        card = load_card(folder)
        changed = card.model_copy(update={"post_processing": choice.post_processing})
        write_text(folder / CARD_NAME, changed.model_dump_json(indent=2) + "\n")
    content = {
        "format": "medseg-ensemble/1",
        "models": [_relative(model, out) for model in choice.models],
        "post_processing": [step.model_dump(mode="json") for step in choice.post_processing],
        "held_out_cases": choice.cases,
        "dice": _plain(choice.dice),
        "compared": [
            {"runs": list(trial.members), "dice": _plain(trial.dice)} for trial in choice.trials
        ],
        "post_processing_tried": [
            {
                "step": step.model_dump(mode="json", exclude_defaults=True),
                "dice_before": _number(before),
                "dice_with": _number(after),
                "adopted": taken,
            }
            for step, before, after, taken in choice.steps
        ],
    }
    write_text(out / ENSEMBLE_NAME, json.dumps(content, indent=2) + "\n")


def _relative(model: Path, out: Path) -> str:
    return Path(os.path.relpath(model.resolve(), out.resolve())).as_posix()


def _plain(dice: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in dice.items()}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
