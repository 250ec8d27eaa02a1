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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.atomic import write_text
from medseg.core import LabelMap, LabelScheme
from medseg.data.datalist import Case, DataList
from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener, Silent
from medseg.inference.post_processing import clean_labels
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.metrics.overlap import dice_by_label
from medseg.models.card import CARD_NAME, LabelCleaning, load_card, model_folder
from medseg.models.zoo import ENSEMBLE_NAME
from medseg.training.settings import RunSettings, load_settings
from pipelines.folds import (
    HELD_OUT,
    Folds,
    fold_runs,
    held_out_pair,
    judged_pair,
    read_case,
    summarised,
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
    trials: list[Trial] = []
    # the maps of the best alone are kept: those of all would not fit the memory
    pairs: dict[str, tuple[LabelMap, LabelMap]] = {}
    numbers: tuple[int, ...] = ()
    best: Trial | None = None
    for size in range(1, len(configurations) + 1):
        for tried in itertools.combinations(range(len(configurations)), size):
            chosen = [configurations[number] for number in tried]
            name = " + ".join(one.folder.name for one in chosen)
            made = dict(_results(chosen, cases, name, device, hearer))
            dice = summarised({case: dice_by_label(*two) for case, two in made.items()})
            trials.append(Trial(tuple(one.folder.name for one in chosen), dice))
            # among equals the one with fewer members, which comes first
            if best is None or _score(dice) > _score(best.dice):
                pairs, numbers, best = made, tried, trials[-1]
    assert best is not None  # noqa: S101 - there is at least one run
    cleanings, dice, steps = _choose_cleaning(pairs, settings.scheme(), best.dice, hearer)
    members = tuple(configurations[number] for number in numbers)
    choice = Choice(
        members=tuple(one.folder for one in members),
        models=tuple(model_folder(run) for one in members for run in one.runs.values()),
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


def _results(
    members: Sequence[_Configuration],
    cases: Mapping[str, tuple[int, Case]],
    name: str,
    device: str,
    listener: Listener,
) -> Iterator[tuple[str, tuple[LabelMap, LabelMap]]]:
    """Prediction and truth of every held-out case: as the folds wrote them, or averaged anew."""
    listener.started(f"held-out cases of {name}", len(cases))
    loaded: tuple[int, Predictor] | None = None
    for done, (case_id, (fold, case)) in enumerate(cases.items(), start=1):
        if listener.cancelled():
            raise Cancelled
        if len(members) == 1:
            pair = held_out_pair(members[0].runs[fold], case, members[0].settings)
        else:
            if loaded is None or loaded[0] != fold:
                models = [one.runs[fold] for one in members]
                settings = PredictionSettings(post_processing=())
                loaded = (fold, Predictor.load(models, settings, device=device))
            labels = loaded[1].predict(read_case(case, loaded[1].card, members[0].settings)).labels
            pair = judged_pair(labels, case, members[0].settings)
        yield case_id, pair
        listener.advanced(f"held-out cases of {name}", done)


def _choose_cleaning(
    pairs: Mapping[str, tuple[LabelMap, LabelMap]],
    scheme: LabelScheme,
    before: dict[str, float],
    listener: Listener,
) -> tuple[
    tuple[LabelCleaning, ...],
    dict[str, float],
    tuple[tuple[LabelCleaning, float, float, bool], ...],
]:
    """For each structure the step that raises its mean Dice most, if one does.

    Structures do not touch one another in these steps, so each is chosen by itself.
    """
    adopted: list[LabelCleaning] = []
    steps: list[tuple[LabelCleaning, float, float, bool]] = []
    dice = dict(before)
    listener.started("post-processing", len(scheme.labels))
    for done, label in enumerate(scheme.labels, start=1):
        candidates = [
            LabelCleaning(label=label.name, keep_largest=True),
            *(LabelCleaning(label=label.name, min_mm3=volume) for volume in _LEAST_MM3),
        ]
        scored = [(_mean_with(pairs, label.name, one), one) for one in candidates]
        best, step = max(scored, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])
        for value, one in scored:
            taken = one == step and value > before[label.name] + _MARGIN
            steps.append((one, before[label.name], value, taken))
        if best > before[label.name] + _MARGIN:
            adopted.append(step)
            dice[label.name] = best
        listener.advanced("post-processing", done)
        if listener.cancelled():
            raise Cancelled
    finite = [dice[label.name] for label in scheme.labels if math.isfinite(dice[label.name])]
    dice["mean"] = sum(finite) / len(finite) if finite else math.nan
    return tuple(adopted), dice, tuple(steps)


def _mean_with(
    pairs: Mapping[str, tuple[LabelMap, LabelMap]], name: str, step: LabelCleaning
) -> float:
    scores = [dice_by_label(clean_labels(one, [step])[0], two)[name] for one, two in pairs.values()]
    finite = [value for value in scores if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


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
