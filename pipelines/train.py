"""Training: settings in, run folder out (see :mod:`pipelines.run_folder`)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from medseg.data.datalist import DataList, read_datalist
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled, Listener, Silent
from medseg.models.card import load_card
from medseg.models.table import build_volume_network
from medseg.ops.device import choose_device
from medseg.training.logs import check_mlflow
from medseg.training.precision import check_precision
from medseg.training.ranks import Ranks
from medseg.training.schedule import parse_duration
from medseg.training.settings import RunSettings, load_settings, parse_settings
from medseg.training.transforms import plain_tensors
from pipelines.interrupt import until_interrupted
from pipelines.progress import console_listener
from pipelines.run_folder import (
    CONFIG_NAME,
    RunFolder,
    check_run_folder,
    check_writable,
    earlier_run,
    record_of_finished,
    remove_leftovers,
)
from pipelines.shipped import find_config, shipped_configs
from pipelines.torchrun import processes_together
from pipelines.train_result import TrainResult
from pipelines.training_checks import (
    check_data,
    check_extents,
    complete_settings,
    load_encoder,
    load_start,
)
from pipelines.training_report import write_training_report
from pipelines.training_session import TrainingSession

__all__ = [
    "TrainResult",
    "complete_settings",
    "read_data",
    "settings_from_command",
    "train",
    "train_from_command",
]


def train_from_command(
    config: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    budget: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    start: str | None = None,
) -> TrainResult:
    """Train as the command line asks, with bars on stderr, and write the report of the training.

    Ctrl-C stops after the current step; the report then says that the run was interrupted.

    Args:
        config: A YAML file or the name of a shipped configuration; with ``resume`` also the folder
            of a run.
        data: Dataset folder instead of the configuration's.
        out: Run folder; ``runs/<name of the configuration>`` if None.
        budget: Wall-clock budget such as ``10m``.
        seed: Replaces ``training.seed``.
        device: Replaces ``training.device``.
        overwrite: Whether an earlier run in the folder may be replaced.
        resume: Whether to go on with the run in the folder.
        start: Model whose weights training begins with; replaces ``training.start_model``.

    Raises:
        MedsegError: As :func:`train`.
        Cancelled: If it was interrupted before the first step.
    """
    settings, folder = settings_from_command(
        config, out=out, seed=seed, device=device, resume=resume, start=start
    )
    budget_s = None if budget is None else parse_duration(budget)
    with (
        processes_together(settings.training.device) as place,
        console_listener() as bars,
        until_interrupted(bars if Ranks().first else Silent()) as listener,
    ):
        result = train(
            settings,
            run_folder=folder,
            data_root=data,
            budget_s=budget_s,
            listener=listener,
            overwrite=overwrite,
            resume=resume,
            device=place,
        )
        if result.steps and not result.finished_before and Ranks().first:
            cases = read_data(settings, data or Path(settings.data.root))
            with suppress(Cancelled):  # the model is there
                write_training_report(result, settings, cases, listener)
    return result


def settings_from_command(
    config: str,
    *,
    out: Path | None,
    seed: int | None,
    device: str | None,
    resume: bool,
    start: str | None = None,
) -> tuple[RunSettings, Path]:
    """The settings and the run folder that a command line means.

    Raises:
        ConfigError: If there is no such configuration, or it is wrong.
    """
    if resume and (Path(config) / CONFIG_NAME).is_file():
        path, folder = Path(config) / CONFIG_NAME, out or Path(config)
    else:
        if resume:
            _check_is_run(config)
        path = find_config(config)
        folder = out or Path("runs") / path.stem
    content = load_settings(path).model_dump(mode="json")
    if seed is not None:
        content["training"]["seed"] = seed
    if device is not None:
        content["training"]["device"] = device
    if start is not None:
        content["training"]["start_model"] = start
    return parse_settings(content, where=str(path)), folder


def _check_is_run(config: str) -> None:
    """Say of what looks like a folder that it is none of a run."""
    place = Path(config)
    if config in shipped_configs() or place.is_file():
        return
    if place.is_dir() or (place.name != config and not place.suffix):
        folds = (place / "folds.json").is_file()
        if folds:
            found = "a folder of folds"
        else:
            found = f"one without {CONFIG_NAME}" if place.is_dir() else "no such folder"
        raise ConfigError(
            config,
            expected=f"the folder of a run, with {CONFIG_NAME}, or a configuration",
            found=found,
            remedy="go on with the folds by medseg train CONFIG --cv --resume --out FOLDER"
            if folds
            else "correct the path, or give the configuration and the folder with --out",
            code="resume-folder",
        )


def train(
    settings: RunSettings,
    *,
    run_folder: Path,
    data_root: Path | None = None,
    data: DataList | None = None,
    budget_s: float | None = None,
    listener: Listener | None = None,
    overwrite: bool = False,
    resume: bool = False,
    device: torch.device | None = None,
) -> TrainResult:
    """Train a network and write the run folder.

    Args:
        settings: The run.
        run_folder: Must be absent or empty, unless ``overwrite`` or ``resume``.
        data_root: Dataset folder instead of ``settings.data.root``.
        data: Cases already read and divided, instead of those that the settings name.
        budget_s: Wall-clock seconds that choosing the precision, training and the validations in
            between may take; the schedule is stretched to it and it replaces epochs and steps. A
            continued run may be given more than it was begun with.
            Reading the cases before and the validation after the end come on top.
        listener: Progress; its wish to stop ends the training after the current step, with a model
            marked as unfinished.
        overwrite: Whether an earlier run in the folder is removed.
        resume: Whether to go on with the run in the folder, from its last checkpoint and with its
            settings and what is left of its budget. Where none was begun, a new one is; one with
            nothing left to do is left as it is.
        device: Where to train; that of the settings if None.

    Raises:
        ConfigError: If settings, dataset and folder do not fit together, or the loss is no longer
            finite.
        FormatError: If a case cannot be read, or the checkpoints of a run to continue.
        ResourceError: If the folder cannot be written, or another process was lost.
        Cancelled: If the listener asked to stop before the first step.
    """
    hearer = listener or Silent()
    settings = complete_settings(settings)
    place = device or choose_device(settings.training.device)
    check_precision(settings.training.precision, place)
    if settings.training.mlflow:
        check_mlflow()
    ranks = Ranks()

    def check_folder() -> None:
        check_run_folder(run_folder, overwrite=overwrite or resume)
        check_writable(run_folder)
        if resume:
            remove_leftovers(run_folder)

    ranks.by_first(check_folder)
    earlier = earlier_run(run_folder, settings, hearer) if resume else None
    record = None
    if earlier is not None:
        record = record_of_finished(run_folder, earlier, settings, budget_s)
    ranks.told(None)  # nobody writes before everybody has read
    if record is not None:
        return TrainResult.of_record(run_folder, record)
    root = data_root or Path(settings.data.root)
    rng_devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=rng_devices), plain_tensors():
        torch.manual_seed(settings.training.seed)
        network = build_volume_network(settings.network, settings.inputs)
        check_extents(settings, network)
        started = None
        if earlier is None or earlier.checkpoint is None:
            started = load_start(settings, network, hearer)
        else:
            with suppress(MedsegError):  # it was written with the checkpoint
                started = load_card(run_folder).training.started_from
        # what is wrong with the network is told before the dataset is opened
        if data is None and data_root is None and earlier is not None:
            _check_place(run_folder, settings, earlier.settings)
        data = data or read_data(settings, root)
        check_data(settings, data)
        for note in data.notes:
            hearer.noted(f"{data.name}: {note}")
        if earlier is None or earlier.checkpoint is None:
            load_encoder(settings, network, hearer)
        elif earlier.checkpoint is not None:
            hearer.noted(f"going on after step {earlier.checkpoint.step}")
            for change in earlier.changes:
                hearer.noted(change)
        folder = RunFolder.of(run_folder, settings, root)
        if earlier is not None:
            folder = RunFolder(run_folder, earlier.config_yaml)
        session = TrainingSession(
            settings, data, folder, place, network, hearer, ranks, earlier, started
        )
        return session.run(budget_s, overwrite=overwrite)


def _check_place(run_folder: Path, settings: RunSettings, begun: RunSettings) -> None:
    """Say what a run knows of its dataset's place, where its own settings go on with it."""
    root = settings.data.root
    if root == begun.data.root and not Path(root).exists():
        raise ConfigError(
            str(run_folder),
            expected="the dataset that the run was begun with",
            found=f"no folder {root!r} here",
            remedy="a run keeps the name of the dataset's folder and no path to it: name it with "
            "--data FOLDER",
            code="dataset-missing",
        )


def read_data(settings: RunSettings, root: Path) -> DataList:
    """The dataset's cases, divided as the settings say.

    Raises:
        ConfigError: If the folder or its split cannot be used.
        FormatError: If its index is damaged.
    """
    return read_datalist(
        root,
        layout=settings.data.layout,
        scheme=settings.data.scheme,
        split=settings.data.split,
        fold=settings.data.fold,
        validation_fraction=settings.data.validation_fraction,
        seed=settings.data.seed,
    )
