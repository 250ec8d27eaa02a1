"""Training: settings in, run folder out.

The run folder holds ``config.yaml`` (the settings in full), ``split.json``, ``probe.json`` (what
was measured to choose the precision), ``run.json`` (versions, hashes, machine, timings),
``log.csv``, ``tensorboard/``, ``checkpoints/`` and ``model/``, the model folder. It names cases by
their ids and the dataset by its folder's name; no path of the machine and no image is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

import medseg
from medseg.atomic import write_text
from medseg.data.datalist import DataList, read_datalist
from medseg.data.preparing import CachePlan
from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener, Silent
from medseg.models.card import ModelCard, ModelDescription, NetworkChoice, SliceSettings, Training
from medseg.models.folder import save_model
from medseg.models.network import SegmentationNetwork
from medseg.models.table import NETWORKS, build_settings, build_volume_network
from medseg.ops.device import choose_device
from medseg.training.cases import cache_cases, training_loader
from medseg.training.engine import Outcome, TrainingRun, build_optimizer
from medseg.training.logs import RunLog
from medseg.training.losses import build_loss
from medseg.training.precision import (
    Measurement,
    Numerics,
    choose_numerics,
)
from medseg.training.schedule import BudgetPace, Pace, StepPace, parse_duration
from medseg.training.settings import RunSettings, load_settings, parse_settings
from medseg.training.transforms import (
    ReadCase,
    plain_tensors,
    training_transforms,
    validation_transforms,
)
from medseg.training.validation import Scores, Validator
from pipelines.infer import prepare_output
from pipelines.interrupt import until_interrupted
from pipelines.progress import console_listener
from pipelines.shipped import find_config

__all__ = ["TrainResult", "complete_settings", "train", "train_from_command"]

_ENTRIES = (
    "config.yaml",
    "split.json",
    "probe.json",
    "run.json",
    "log.csv",
    "tensorboard",
    "checkpoints",
    "model",
)
_PROBE_SHARE = 0.05
_PROBE_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to.

    Args:
        run_folder: Where everything is.
        card: The model's card.
        losses: Loss of every step.
        steps: Steps done.
        epochs: Epochs begun.
        reading_s: Seconds to read and prepare the cases, outside any budget.
        training_s: Seconds from the start of the schedule to its end: the choice of precision, the
            steps and the validations in between.
        validation_s: Seconds of the validation after the end, outside any budget.
        numerics: Precision and layout.
        dice: Structure to Dice over all validation cases; empty if the run was stopped.
        mean_dice: Mean of them; NaN if the run was stopped.
        weights: Number of trained parameters.
        finished: Whether the schedule came to its end.
    """

    run_folder: Path
    card: ModelCard
    losses: tuple[float, ...]
    steps: int
    epochs: int
    reading_s: float
    training_s: float
    validation_s: float
    numerics: Numerics
    dice: dict[str, float]
    mean_dice: float
    weights: int
    finished: bool


def train_from_command(
    config: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    budget: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> TrainResult:
    """Train as the command line asks, with bars on stderr; Ctrl-C stops after the current step.

    Args:
        config: A YAML file or the name of a shipped configuration.
        data: Dataset folder instead of the configuration's.
        out: Run folder; ``runs/<name of the configuration>`` if None.
        budget: Wall-clock budget such as ``10m``.
        seed: Replaces ``training.seed``.
        device: Replaces ``training.device``.
        overwrite: Whether an earlier run in the folder may be replaced.

    Raises:
        MedsegError: As :func:`train`.
        Cancelled: If it was interrupted before the first step.
    """
    path = find_config(config)
    settings = _overridden(load_settings(path), where=str(path), seed=seed, device=device)
    budget_s = None if budget is None else parse_duration(budget)
    with console_listener() as bars, until_interrupted(bars) as listener:
        return train(
            settings,
            run_folder=out or Path("runs") / path.stem,
            data_root=data,
            budget_s=budget_s,
            listener=listener,
            overwrite=overwrite,
        )


def train(
    settings: RunSettings,
    *,
    run_folder: Path,
    data_root: Path | None = None,
    budget_s: float | None = None,
    listener: Listener | None = None,
    overwrite: bool = False,
) -> TrainResult:
    """Train a network and write the run folder.

    Args:
        settings: The run.
        run_folder: Must be absent or empty, unless ``overwrite``.
        data_root: Dataset folder instead of ``settings.data.root``.
        budget_s: Wall-clock seconds that choosing the precision, training and the validations in
            between may take; the schedule is stretched to it and it replaces epochs and steps.
            Reading the cases before and the validation after the end come on top.
        listener: Progress; its wish to stop ends the training after the current step, with a model
            marked as unfinished.
        overwrite: Whether an earlier run in the folder is removed.

    Raises:
        ConfigError: If settings, dataset and folder do not fit together, or the loss is no longer
            finite.
        FormatError: If a case cannot be read.
        ResourceError: If the folder cannot be written.
        Cancelled: If the listener asked to stop before the first step.
    """
    hearer = listener or Silent()
    settings = complete_settings(settings)
    device = choose_device(settings.training.device)
    _check_run_folder(run_folder, overwrite=overwrite)
    _check_writable(run_folder)
    root = data_root or Path(settings.data.root)
    rng_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=rng_devices), plain_tensors():
        torch.manual_seed(settings.training.seed)
        network = build_volume_network(settings.network, settings.inputs)
        _check_extents(settings, network)
        # what is wrong with the network is told before the dataset is opened
        data = read_datalist(
            root,
            split=settings.data.split,
            validation_fraction=settings.data.validation_fraction,
            seed=settings.data.seed,
        )
        _check_data(settings, data)
        _load_encoder(settings, network, hearer)
        return _Session(settings, data, root, run_folder, device, network, hearer).run(
            budget_s, overwrite=overwrite
        )


class _Session:
    """One run with all that was checked before it began."""

    def __init__(
        self,
        settings: RunSettings,
        data: DataList,
        root: Path,
        run_folder: Path,
        device: torch.device,
        network: SegmentationNetwork,
        listener: Listener,
    ) -> None:
        self.settings = settings
        self.data = data
        self.folder = run_folder
        self.device = device
        self.network = network
        self.listener = listener
        weights = settings.training.encoder_weights
        named = settings.training.model_copy(
            update={
                "encoder_weights": None if weights is None else Path(weights).name,
                "cache_folder": None,
            }
        )
        # what is written down names no place on this machine
        content = settings.model_copy(
            update={
                "data": settings.data.model_copy(update={"root": root.resolve().name}),
                "training": named,
            }
        ).to_yaml()
        self.config_yaml = content
        self.config_sha256 = hashlib.sha256(content.encode("utf-8")).hexdigest()

    def run(self, budget_s: float | None, *, overwrite: bool) -> TrainResult:
        settings, training = self.settings, self.settings.training
        scheme = settings.scheme()
        names = [label.name for label in scheme.labels]
        began = time.monotonic()
        read = ReadCase(settings.inputs, scheme)
        plan = CachePlan(
            training.cache,
            Path(training.cache_folder or self.folder.absolute().parent / "prepared"),
            training.preparation_processes,
        )
        cached_train = cache_cases(
            self.data.train,
            read,
            training_transforms(
                read,
                settings.patch_ijk,
                samples_per_case=training.samples_per_case,
                foreground_share=training.foreground_share,
                augmentation=training.augmentation,
            ),
            self.listener,
            stage="reading training cases",
            plan=plan,
        )
        cached_validation = cache_cases(
            self.data.validation,
            read,
            validation_transforms(read),
            self.listener,
            stage="reading validation cases",
            plan=plan,
        )
        reading_s = time.monotonic() - began
        self._start_folder(overwrite=overwrite)
        loader = training_loader(
            cached_train,
            batch_size=training.batch_size,
            seed=training.seed,
            workers=training.workers,
            device=self.device,
        )
        self.network.to(self.device)
        loss = build_loss(
            self.network.head_strides,
            self.network.deep_supervision_weights,
            dice_weight=training.dice_weight,
            cross_entropy_weight=training.cross_entropy_weight,
        )
        pace: Pace = (
            StepPace(training.steps or (training.epochs or 1) * len(loader))
            if budget_s is None
            else BudgetPace(budget_s)
        )
        chosen_began = time.monotonic()
        numerics = self._choose_numerics(loss, budget_s)
        numerics.arrange_network(self.network)
        probe_s = time.monotonic() - chosen_began
        validator = Validator(cached_validation, settings.inputs, names, self.device, numerics)
        with RunLog(self.folder, names) as log:
            outcome = TrainingRun(
                network=self.network,
                loss=loss,
                optimizer=build_optimizer(self.network, training),
                loader=loader,
                validator=validator,
                settings=training,
                numerics=numerics,
                device=self.device,
                pace=pace,
                log=log,
                folder=self.folder,
                listener=self.listener,
                keep_model=self._keep_unfinished,
            ).run()
            scores = self._final_scores(validator, outcome)
            if scores is not None:
                log.validated(
                    step=outcome.steps,
                    epoch=outcome.epochs,
                    seconds=outcome.seconds,
                    dice=scores.dice,
                    mean=scores.mean,
                )
        card = self._keep_model(
            outcome.steps, outcome.epochs, probe_s + outcome.seconds, scores, outcome.finished
        )
        self._write_record(outcome, numerics, scores, reading_s, probe_s, budget_s)
        return TrainResult(
            run_folder=self.folder,
            card=card,
            losses=outcome.losses,
            steps=outcome.steps,
            epochs=outcome.epochs,
            reading_s=reading_s,
            training_s=probe_s + outcome.seconds,
            validation_s=0.0 if scores is None else scores.seconds,
            numerics=numerics,
            dice={} if scores is None else scores.dice,
            mean_dice=math.nan if scores is None else scores.mean,
            weights=_count_weights(self.network),
            finished=outcome.finished,
        )

    def _start_folder(self, *, overwrite: bool) -> None:
        if overwrite:
            _remove_run(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.yaml", self.config_yaml)
        write_text(self.folder / "split.json", _json(self.data.split()))

    def _choose_numerics(self, loss: torch.nn.Module, budget_s: float | None) -> Numerics:
        training = self.settings.training
        limit_s = _PROBE_LIMIT_S if budget_s is None else _PROBE_SHARE * budget_s
        numerics, measured = choose_numerics(
            self.network,
            loss,
            input_shape=(
                training.batch_size * training.samples_per_case,
                self.network.in_channels,
                *self.settings.patch_ijk,
            ),
            device=self.device,
            precision=training.precision,
            channels_last=training.channels_last,
            limit_s=limit_s,
        )
        write_text(self.folder / "probe.json", _json(_probe_record(numerics, measured)))
        for one in measured:
            self.listener.noted(
                f"{Numerics(one.precision, one.channels_last).in_words()}: "
                f"{1000 * one.seconds_per_step:.0f} ms per step"
            )
        self.listener.noted(f"training in {numerics.in_words()}")
        return numerics

    def _final_scores(self, validator: Validator, outcome: Outcome) -> Scores | None:
        if not outcome.finished:
            return None
        try:
            scores = validator.score(self.network, self.listener)
        except Cancelled:
            return None
        self.listener.measured("dice", scores.mean)
        return scores

    def _keep_unfinished(self, steps: int, epochs: int, seconds: float) -> None:
        self._keep_model(steps, epochs, seconds, None, finished=False)

    def _keep_model(
        self, steps: int, epochs: int, seconds: float, scores: Scores | None, finished: bool
    ) -> ModelCard:
        settings = self.settings
        dice = {} if scores is None else scores.dice
        description = ModelDescription(
            name=settings.name,
            version=settings.version,
            description=settings.description,
            network=settings.network,
            inputs=settings.inputs,
            labels=settings.labels,
            training=Training(
                dataset=self.data.name,
                dataset_licence=self.data.licence,
                training_cases=len(self.data.train),
                validation_cases=len(self.data.validation),
                steps=steps,
                epochs=epochs,
                seconds=round(seconds, 1),
                seed=settings.training.seed,
                # a structure that no validation case holds has no Dice
                validation_dice={
                    name: round(value, 4) for name, value in dice.items() if math.isfinite(value)
                },
                config_sha256=self.config_sha256,
                medseg_version=medseg.__version__,
                torch_version=str(torch.__version__),
                monai_version=str(monai.__version__),
                finished=finished,
            ),
            licence=settings.licence,
            intended_use=settings.intended_use,
        )
        return save_model(self.folder / "model", self.network, description)

    def _write_record(
        self,
        outcome: Outcome,
        numerics: Numerics,
        scores: Scores | None,
        reading_s: float,
        probe_s: float,
        budget_s: float | None,
    ) -> None:
        record = {
            "notice": medseg.NOTICE,
            "finished": outcome.finished,
            "versions": {
                "medseg": medseg.__version__,
                "torch": str(torch.__version__),
                "monai": str(monai.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "config_sha256": self.config_sha256,
            "dataset": {
                "name": self.data.name,
                "licence": self.data.licence,
                "sha256": self.data.sha256,
                "training_cases": len(self.data.train),
                "validation_cases": len(self.data.validation),
                "split": self.data.split_source,
            },
            "seed": self.settings.training.seed,
            "hardware": _hardware(self.device),
            "numerics": {
                "precision": numerics.precision,
                "channels_last": numerics.channels_last,
            },
            "weights": _count_weights(self.network),
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "seconds": {
                "budget": budget_s,
                "reading": round(reading_s, 2),
                "choosing_precision": round(probe_s, 2),
                "training": round(outcome.seconds, 2),
                "validation_in_between": round(outcome.validation_s, 2),
                "final_validation": None if scores is None else round(scores.seconds, 2),
            },
            "validation_dice": None
            if scores is None
            else {
                name: round(value, 4) if math.isfinite(value) else None
                for name, value in {**scores.dice, "mean": scores.mean}.items()
            },
        }
        write_text(self.folder / "run.json", _json(record))


def _overridden(
    settings: RunSettings, *, where: str, seed: int | None, device: str | None
) -> RunSettings:
    content = settings.model_dump(mode="json")
    if seed is not None:
        content["training"]["seed"] = seed
    if device is not None:
        content["training"]["device"] = device
    return parse_settings(content, where=where)


def complete_settings(settings: RunSettings) -> RunSettings:
    """The same with every setting of the network spelled out.

    Channels in and out follow from the inputs and labels; given as well, they must agree.
    """
    name, given = settings.network.name, dict(settings.network.settings)
    slices = settings.network.slices
    if slices is None and name in NETWORKS and NETWORKS[name].rank == 2:
        slices = SliceSettings()
    seen = 1 if slices is None else 2 * slices.neighbours + 1
    derived = {
        "in_channels": seen * len(settings.inputs.channels),
        "out_channels": 1 + len(settings.scheme().values),
    }
    for key, value in derived.items():
        if given.get(key, value) != value:
            raise ConfigError(
                f"network.settings.{key}",
                expected=f"{value}, after the inputs and labels",
                found=str(given[key]),
                remedy="take it out: it follows from them",
                code="network-channels",
            )
    complete = build_settings(name, {**given, **derived})
    choice = NetworkChoice(name=name, settings=complete.model_dump(mode="json"), slices=slices)
    return settings.model_copy(update={"network": choice})


def _check_run_folder(folder: Path, *, overwrite: bool) -> None:
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise ConfigError(
            str(folder),
            expected="an absent or empty run folder",
            found="one that holds files",
            remedy="choose another with --out, or replace the run in it with --overwrite",
            code="run-folder-exists",
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            str(folder),
            expected="a run folder",
            found="a file of that name",
            remedy="choose another with --out",
            code="run-folder-exists",
        )


def _check_writable(folder: Path) -> None:
    """Told before the cases are read; a folder made for the test is taken away again."""
    absent = not folder.exists()
    prepare_output(folder)
    if absent:
        folder.rmdir()


def _remove_run(folder: Path) -> None:
    """Remove what a run writes and nothing else that may lie there."""
    for name in _ENTRIES:
        entry = folder / name
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry)


def _check_data(settings: RunSettings, data: DataList) -> None:
    data.check_scheme(settings.scheme())
    if len(data.channels) != len(settings.inputs.channels):
        raise ConfigError(
            "inputs.channels",
            expected=f"the {len(data.channels)} channels of the dataset {data.name!r}",
            found=str(len(settings.inputs.channels)),
            remedy="list the dataset's channels in its order",
            code="dataset-channels",
        )


def _check_extents(settings: RunSettings, network: SegmentationNetwork) -> None:
    places: Sequence[tuple[str, tuple[int, int, int]]] = (
        ("inputs.window_ijk", settings.inputs.window_ijk),
        ("training.patch_ijk", settings.patch_ijk),
    )
    for place, extents in places:
        nearest = network.nearest_legal_extents(extents)
        if extents != nearest:
            raise ConfigError(
                place,
                expected=f"multiples of {network.size_multiple} for the network "
                f"{settings.network.name}",
                found=str(extents),
                remedy=f"the nearest is {nearest}",
                code="window-extents",
            )


def _load_encoder(settings: RunSettings, network: SegmentationNetwork, listener: Listener) -> None:
    source = settings.training.encoder_weights
    if source is None:
        return
    if source == "timm":
        network.load_encoder_weights("timm")
        listener.noted("the encoder begins with the weights that timm lists")
        return
    network.load_encoder_weights(Path(source))
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    listener.noted(f"the encoder begins with {Path(source).name}, sha256 {digest[:12]}")


def _probe_record(numerics: Numerics, measured: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "chosen": {"precision": numerics.precision, "channels_last": numerics.channels_last},
        "measured": [one.to_dict() for one in measured],
    }


def _count_weights(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _hardware(device: torch.device) -> str:
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    words = f"{cpu}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {words}" if device.type == "cuda" else words


def _json(content: Any) -> str:  # noqa: ANN401 - plain JSON types
    return json.dumps(content, indent=2) + "\n"
