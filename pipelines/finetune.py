"""Fine-tuning: a model and corrected cases in, a new model beside the old one out, both compared.

The run folder is that of a training (see :mod:`pipelines.run_folder`) with ``finetune.json`` and
``comparison.csv``: the Dice of the old and of the new model on corrected cases that were held out.
Nothing is decided by these cases: the weights of the last step are the model, and the old model
stays what and where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from medseg import NOTICE, __version__
from medseg.atomic import write_text
from medseg.data.case import Case, read_labelled
from medseg.data.datalist import DataList
from medseg.data.layouts import list_cases
from medseg.data.layouts.listing import Listing
from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.io.fingerprint import fingerprint
from medseg.metrics.overlap import dice_by_label
from medseg.models.card import CARD_NAME, ModelCard, load_card, model_folder
from medseg.models.zoo import find_model
from medseg.training.augmentation import PRESETS
from medseg.training.settings import RunSettings, parse_settings
from pipelines.folds import judged_pair
from pipelines.train import train
from pipelines.train_result import TrainResult

__all__ = [
    "COMPARISON_NAME",
    "FINETUNE_NAME",
    "Comparison",
    "FineTuned",
    "Plan",
    "corrected_cases",
    "finetune",
    "tuned_settings",
]

FINETUNE_NAME = "finetune.json"
COMPARISON_NAME = "comparison.csv"
STAGE = "comparing with the old model"
_HELD_OUT_SHARE = 0.2
_STEPS = 500
_FORMAT = "medseg-finetune/1"
_MOST_NAME = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cases are learnt from and which are held out.

    Args:
        data: The cases, in the label values of the model.
        prints: Case to the fingerprint of its images.
        learnt_before: Fingerprints of what the model, itself fine-tuned, has learnt from already.
        note: Why nothing is held out; empty if something is.
    """

    data: DataList
    prints: Mapping[str, str]
    learnt_before: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Dice of both models on the cases held out.

    Args:
        before: Case to structure to the Dice of the old model; NaN where neither map holds it.
        after: The same of the new one.
    """

    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, float, float]]:
        """Structure, mean Dice of the old and of the new model; the mean of all comes last."""
        names = list(dict.fromkeys(name for scores in self.before.values() for name in scores))
        rows = [(name, _mean(self.before, name), _mean(self.after, name)) for name in names]
        finite = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
        if finite:
            rows.append(("mean", fmean(row[1] for row in finite), fmean(row[2] for row in finite)))
        return rows

    def to_csv(self) -> str:
        """A line for every case and structure."""
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["case", "structure", "dice_before", "dice_after"])
        for case, scores in self.before.items():
            for name, before in scores.items():
                after = self.after[case][name]
                table.writerow([case, name, *(_shown(value) for value in (before, after))])
        return stream.getvalue()


@dataclass(frozen=True, slots=True)
class FineTuned:
    """What came of it.

    Args:
        result: Of the training.
        card: Of the new model.
        comparison: None if nothing was held out, or the training was interrupted.
        held_out: Cases held out.
        note: Why there is no comparison; empty if there is.
    """

    result: TrainResult
    card: ModelCard
    comparison: Comparison | None
    held_out: tuple[str, ...]
    note: str = ""


def finetune(
    model: str,
    root: Path,
    run_folder: Path,
    listener: Listener,
    *,
    name: str | None = None,
    budget_s: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> FineTuned:
    """Train on from the weights of a model, on corrected cases.

    Args:
        model: A model folder, a run folder, or the name of a packaged model.
        root: Folder of the training set.
        run_folder: Must be absent or empty, unless ``overwrite``.
        listener: Told of progress; its wish to stop ends the training after the current step, with
            a model marked as unfinished and no comparison.
        name: Of the new model; that of the old one with ``-tuned`` if None.
        budget_s: Wall-clock seconds for the training.
        steps: Steps, where there is no budget.
        seed: Of the training.
        device: Where it takes place.
        threads: Of the CPU; None for all.
        overwrite: Whether an earlier run in the folder is removed.

    Raises:
        ConfigError: ``finetune-labels``, ``finetune-channels`` if the cases are not those of the
            model; and as :func:`pipelines.train.train`.
        MedsegError: As reading the model and the cases.
        Cancelled: If the listener asked to stop before the first step.
    """
    old = find_model(model)
    card = load_card(old)
    plan = corrected_cases(root, card, _learnt_by(old))
    if plan.note:
        listener.noted(plan.note)
    settings = tuned_settings(
        card,
        plan.data,
        old,
        root,
        run_folder,
        name=name,
        steps=steps,
        seed=seed,
        device=device,
        threads=threads,
    )
    cache = Path(settings.training.cache_folder or "")
    try:
        result = train(
            settings,
            run_folder=run_folder,
            data=plan.data,
            budget_s=budget_s,
            listener=listener,
            overwrite=overwrite,
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        with suppress(OSError):
            run_folder.rmdir()  # empty where nothing was begun
    new = _with_post_processing(run_folder, card)
    held_out = tuple(case.id for case in plan.data.validation)
    comparison, note = None, plan.note
    if not result.finished:
        note = "the training was interrupted: the models were not compared"
    elif not result.steps:
        note = "not one step fitted into the time, so the new model is the old one: give it more"
    elif plan.data.validation:
        try:
            comparison = _compare(
                old, run_folder, plan.data.validation, settings, listener, device, threads
            )
        except Cancelled:
            note = "the comparison was interrupted"
    tuned = FineTuned(result, new, comparison, held_out, note)
    _write_record(run_folder, tuned, card, plan)
    return tuned


def corrected_cases(root: Path, card: ModelCard, learnt: frozenset[str] = frozenset()) -> Plan:
    """The cases of a training set as a model sees them, divided.

    A fifth of the patients is held out, at least one, never all. Which ones follows from the hashes
    of their images alone, so that adding cases moves few of the others; what the model has learnt
    from before is not held out.

    Args:
        root: Folder of the training set, in a layout of :mod:`medseg.data.layouts`.
        card: Of the model.
        learnt: Fingerprints of images that it learnt from when it was fine-tuned.

    Raises:
        ConfigError: ``finetune-labels``, ``finetune-channels``, and as
            :func:`medseg.data.layouts.list_cases`.
    """
    listing = list_cases(root)
    listing.check_complete()
    recode = _recoding(listing, card)
    _check_channels(listing, card)
    cases = [_recoded(case, recode) for case in listing.cases]
    prints = {
        case.id: fingerprint({str(number): path for number, path in enumerate(case.images)})
        for case in cases
    }
    held, note = _held_out(cases, prints, learnt)
    train_cases = tuple(case for case in cases if case.patient not in held)
    validation = tuple(case for case in cases if case.patient in held)
    digest = hashlib.sha256("\n".join(sorted(prints.values())).encode()).hexdigest()
    data = DataList(
        name=listing.name,
        licence=listing.licence,
        channels=tuple(channel.name for channel in card.inputs.channels),
        scheme=card.scheme(),
        train=train_cases,
        validation=validation,
        split_source="a fifth of the patients, by the hashes of their images",
        sha256=digest,
        layout=listing.layout,
    )
    return Plan(data, prints, learnt, note)


def _held_out(
    cases: Sequence[Case], prints: Mapping[str, str], learnt: frozenset[str]
) -> tuple[set[str], str]:
    patients = {case.patient for case in cases}
    if len(patients) < 2:
        return set(), (
            "there is one case alone, which is learnt from: whether the new model is better cannot "
            "be told"
            if len(cases) == 1
            else "all cases are of one patient: whether the new model is better cannot be told"
        )
    known = {case.patient for case in cases if prints[case.id] in learnt}
    order = sorted(
        patients - known,
        key=lambda patient: min(prints[case.id] for case in cases if case.patient == patient),
    )
    count = min(max(1, round(_HELD_OUT_SHARE * len(patients))), len(patients) - 1)
    if not order:
        return set(), (
            "the model has learnt from all of these cases before: whether the new one is better "
            "cannot be told"
        )
    return set(order[:count]), ""


def _recoding(listing: Listing, card: ModelCard) -> dict[int, int]:
    """Label value of the training set to that of the model, by their names."""
    ours = {label.name: label.value for label in card.scheme().labels}
    theirs = {label.name: label.value for label in listing.scheme.labels}
    if set(ours) != set(theirs):
        strange = sorted(set(theirs) - set(ours)) or sorted(set(ours) - set(theirs))
        raise ConfigError(
            f"dataset {listing.name!r}",
            expected=f"the labels of the model {card.name}: {', '.join(ours)}",
            found=f"{', '.join(theirs)} ({strange[0]!r} is "
            f"{'not known to it' if set(theirs) - set(ours) else 'lacking'})",
            remedy="choose the model that the cases were corrected with, or train one anew",
            code="finetune-labels",
        )
    return {0: 0, **{value: ours[label] for label, value in theirs.items()}}


def _check_channels(listing: Listing, card: ModelCard) -> None:
    names = [channel.name for channel in card.inputs.channels]
    if len(listing.channels) != len(names):
        raise ConfigError(
            f"dataset {listing.name!r}",
            expected=f"the channels of the model {card.name}: {', '.join(names)}",
            found=", ".join(listing.channels),
            remedy="choose the model that the cases were corrected with, or train one anew",
            code="finetune-channels",
        )


def _recoded(case: Case, recode: Mapping[int, int]) -> Case:
    ignored = case.ignore_value
    before = dict(case.recode) or {value: value for value in recode}
    table = {stored: recode.get(value, value) for stored, value in before.items()}
    if ignored is not None:
        table[ignored] = ignored
    if all(stored == value for stored, value in table.items()):
        return case
    return dataclasses.replace(case, recode=tuple(sorted(table.items())))


def tuned_settings(
    card: ModelCard,
    data: DataList,
    old: Path,
    root: Path,
    run_folder: Path,
    *,
    name: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> RunSettings:
    """A run that goes on from a model: all that the images meet is as on its card.

    Spacing, orientation, window, normalisation, labels and network are the model's; the rate is a
    tenth of that of our trainings from random weights, and images are mirrored along the axes that
    the model may be mirrored along.

    Args:
        card: Of the model.
        data: What is learnt from.
        old: Folder of the model.
        root: Folder of the training set.
        run_folder: Where prepared cases are kept if memory does not hold them, until the end.
        name: Of the new model.
        steps: Steps, where there is no budget.
        seed: Of the training.
        device: Where it takes place.
        threads: Of the CPU.

    Raises:
        ConfigError: If the name is none that a model can have.
    """
    ignored = data.ignore_value
    flips = tuple("ijk".index(axis) for axis in card.inputs.mirror_axes)
    light = PRESETS["light"].model_dump(mode="json")
    cases = len(data.train)
    content = {
        "name": name or f"{card.name[: _MOST_NAME - len('-tuned')]}-tuned",
        "description": f"{card.description} Fine-tuned from {card.name} {card.version} on {cases} "
        f"corrected case{'' if cases == 1 else 's'}.",
        "licence": card.licence,
        "intended_use": card.intended_use,
        "data": {"root": str(root)},
        "labels": card.labels,
        "regions": None
        if card.regions is None
        else [region.model_dump(mode="json") for region in card.regions],
        "ignore_value": ignored,
        "inputs": card.inputs.model_dump(mode="json"),
        "network": card.network.model_dump(mode="json"),
        "training": {
            "steps": steps or _STEPS,
            "batch_size": min(2, cases),
            "samples_per_case": 1 if cases > 1 else 2,
            "optimizer": "adamw",
            "learning_rate": 3e-4,
            "weight_decay": 0.01,
            "warmup": 0.05,
            "foreground_share": 0.5,
            "gradient_clip": 12.0,
            "device": device,
            "seed": seed,
            "cache_folder": str(run_folder / "prepared"),
            "preparation_processes": 1 if threads is not None else None,
            "start_model": str(old),
            "augmentation": light
            | {
                "flip_axes": list(flips),
                "flip_probability": 0.5 if flips else 0.0,
                "flip_laterality": "allow",
            },
        },
    }
    return parse_settings(content, where="the new model")


def _learnt_by(folder: Path) -> frozenset[str]:
    """Fingerprints of the images that a fine-tuned model has learnt from; none for others."""
    for place in (folder, folder.parent):
        try:
            content = json.loads((place / FINETUNE_NAME).read_bytes())
            own = [case["fingerprint"] for case in content["learnt"]]
            return frozenset(map(str, (*own, *content["learnt_before"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return frozenset()


def _with_post_processing(run_folder: Path, old: ModelCard) -> ModelCard:
    """What cleaned the old model's results cleans those of the new one."""
    folder = model_folder(run_folder)
    card = load_card(folder)
    if not old.post_processing:
        return card
    changed = card.model_copy(update={"post_processing": old.post_processing})
    write_text(folder / CARD_NAME, changed.model_dump_json(indent=2) + "\n")
    return changed


def _compare(
    old: Path,
    new: Path,
    cases: Sequence[Case],
    settings: RunSettings,
    listener: Listener,
    device: str,
    threads: int | None,
) -> Comparison:
    """Both models on the cases held out, on the grids of their images, as prediction has them."""
    comparison = Comparison()
    names = [channel.name for channel in settings.inputs.channels]
    listener.started(STAGE, 2 * len(cases))
    done = 0
    for folder, scores in ((old, comparison.before), (new, comparison.after)):
        predictor = Predictor.load(folder, PredictionSettings(threads=threads), device=device)
        for case in cases:
            if listener.cancelled():
                raise Cancelled
            volume, _ = read_labelled(case, names, settings.scheme(), settings.ignore_value)
            result = predictor.predict(volume).labels
            scores[case.id] = dice_by_label(*judged_pair(result, case, settings))
            done += 1
            listener.advanced(STAGE, done)
    return comparison


def _write_record(run_folder: Path, tuned: FineTuned, old: ModelCard, plan: Plan) -> None:
    def named(card: ModelCard) -> dict[str, str]:
        return {
            "name": card.name,
            "version": card.version,
            "weights_sha256": card.weights_sha256,
        }

    def listed(cases: Sequence[Case]) -> list[dict[str, str]]:
        return [{"case": case.id, "fingerprint": plan.prints[case.id]} for case in cases]

    comparison = tuned.comparison
    content: dict[str, Any] = {
        "format": _FORMAT,
        "notice": NOTICE,
        "medseg": __version__,
        "from": named(old),
        "to": named(tuned.card),
        "dataset": plan.data.name,
        "learnt": listed(plan.data.train),
        "learnt_before": sorted(plan.learnt_before),
        "held_out": listed(plan.data.validation),
        "note": tuned.note,
        "dice": None
        if comparison is None
        else {
            name: {"before": _finite(before), "after": _finite(after)}
            for name, before, after in comparison.rows()
        },
    }
    if comparison is not None:
        write_text(run_folder / COMPARISON_NAME, comparison.to_csv())
    write_text(run_folder / FINETUNE_NAME, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _mean(scores: Mapping[str, Mapping[str, float]], name: str) -> float:
    finite = [case[name] for case in scores.values() if math.isfinite(case.get(name, math.nan))]
    return fmean(finite) if finite else math.nan


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""
