"""The folder of a training run: what is in it, who may write there, and what a continuation needs.

It holds ``config.yaml`` (the settings in full), ``split.json``, ``probe.json`` (what was measured
to choose the precision), ``run.json`` (versions, hashes, machine, timings), ``log.csv``,
``progress.png``, ``tensorboard/``, ``checkpoints/``, ``report.html`` and ``model/``, the model
folder. It names cases by their ids and the dataset by its folder's name; no path of the machine and
no image is in it, apart from the overlays of the report.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import yaml

import medseg
from medseg.atomic import write_text
from medseg.data.datalist import DataList
from medseg.errors import ConfigError, FormatError, why_unreadable
from medseg.events import Listener
from medseg.training.checkpoint import LAST_NAME, PREVIOUS_NAME, Checkpoint, load_checkpoint
from medseg.training.precision import Measurement, Numerics
from medseg.training.settings import RunSettings, load_settings
from pipelines.infer import prepare_output

__all__ = [
    "CONFIG_NAME",
    "RECORD_NAME",
    "SPLIT_NAME",
    "Earlier",
    "RunFolder",
    "check_run_folder",
    "check_writable",
    "earlier_run",
    "hardware",
    "load_written",
    "record_of_finished",
    "remove_leftovers",
    "versions",
]

CONFIG_NAME = "config.yaml"
RECORD_NAME = "run.json"
SPLIT_NAME = "split.json"
SPLIT_KEYS = ("train", "validation")
_PROBE_NAME = "probe.json"
_ENTRIES = (
    CONFIG_NAME,
    SPLIT_NAME,
    _PROBE_NAME,
    RECORD_NAME,
    "log.csv",
    "progress.png",
    "report.html",
    "tensorboard",
    "mlruns",
    "checkpoints",
    "validation",
    "model",
    "finetune.json",
    "comparison.csv",
)
# what may differ in a continued run: where it runs and where the data lie
_FREE_KEYS = {"data.root", "training.device", "training.workers", "training.prefetch"} | {
    "training.cache",
    "training.cache_folder",
    "training.preparation_processes",
}
# what may grow
_LENGTH_KEYS = {"training.steps", "training.epochs"}
# what may be changed where a run has left the rails
_COURSE_KEYS = {
    "training.learning_rate",
    "training.gradient_clip",
    "training.precision",
    "training.bad_steps_in_a_row",
    "training.bad_step_share",
}
_CHANGEABLE = tuple(key.removeprefix("training.") for key in sorted(_LENGTH_KEYS | _COURSE_KEYS))


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run that is to be continued.

    Args:
        settings: As it was begun with.
        config_yaml: Its ``config.yaml``, with the length and rate that it shall have now.
        checkpoint: Its last state; None if it ended before its first step.
        numerics: Precision and layout it was begun in, or the precision that it shall have now;
            None if it had not chosen yet.
        changes: What is no longer as it was begun with, in words.
    """

    settings: RunSettings
    config_yaml: str
    checkpoint: Checkpoint | None
    numerics: Numerics | None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder that may be written.

    Args:
        path: Of the folder.
        config_yaml: Its settings, without any path of this machine.
    """

    path: Path
    config_yaml: str

    @classmethod
    def of(cls, path: Path, settings: RunSettings, root: Path) -> RunFolder:
        """The folder of a run on a dataset folder."""
        weights, start = settings.training.encoder_weights, settings.training.start_model
        named = settings.training.model_copy(
            update={
                "encoder_weights": None if weights is None else Path(weights).name,
                "cache_folder": None,
                "start_model": None if start is None else _name_of_model(start),
            }
        )
        # what is written down names no place on this machine
        placeless = settings.model_copy(
            update={
                "data": settings.data.model_copy(update={"root": root.resolve().name}),
                "training": named,
            }
        )
        return cls(path, placeless.to_yaml())

    @property
    def config_sha256(self) -> str:
        """Hash of ``config.yaml``."""
        return hashlib.sha256(self.config_yaml.encode("utf-8")).hexdigest()

    @property
    def course_sha256(self) -> str:
        """Hash of the settings but for those that a continued run may have otherwise."""
        return _course_sha256(self.config_yaml)

    def begin(self, data: DataList, *, overwrite: bool) -> None:
        """Write settings and split into an empty folder; an earlier run is removed if wished."""
        if overwrite:
            _remove_run(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / SPLIT_NAME, _json(data.split()))
        write_text(self.path / CONFIG_NAME, self.config_yaml)

    def go_on(self, data: DataList) -> None:
        """Write down the length and rate of the run, if they are others now.

        Raises:
            ConfigError: ``resume-split``.
        """
        self.check_split(data)
        path = self.path / CONFIG_NAME
        if path.read_text(encoding="utf-8") != self.config_yaml:
            write_text(path, self.config_yaml)

    def check_split(self, data: DataList) -> None:
        """Refuse to go on with other cases than the run was begun with.

        Raises:
            ConfigError: ``resume-split``.
        """
        begun = load_written(self.path / SPLIT_NAME, SPLIT_KEYS)
        now = data.split()
        for part in ("train", "validation"):
            if begun[part] != now[part]:
                strange = sorted(set(begun[part]) ^ set(now[part]))
                raise ConfigError(
                    str(self.path / SPLIT_NAME),
                    expected=f"the cases that the run was begun with under {part!r}",
                    found=f"{len(strange)} that differ, such as {strange[0]!r}"
                    if strange
                    else "the same in another order",
                    remedy="give the same dataset and split, or start a new run",
                    code="resume-split",
                )

    def write_probe(self, numerics: Numerics, measured: tuple[Measurement, ...]) -> None:
        """Write what was measured to choose the precision."""
        content = {
            "chosen": {"precision": numerics.precision, "channels_last": numerics.channels_last},
            "measured": [one.to_dict() for one in measured],
        }
        write_text(self.path / _PROBE_NAME, _json(content))

    def write_record(self, content: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        write_text(self.path / RECORD_NAME, _json(content))


def load_written(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file that the training wrote into its folder.

    Args:
        path: The file.
        keys: What it must hold.

    Raises:
        FormatError: ``run-file``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        absent = [key for key in keys if not isinstance(content, dict) or key not in content]
        if absent:
            raise KeyError(absent[0])
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(
            str(path),
            expected="the file as the training wrote it",
            found=why_unreadable(error),
            remedy="put it back from a copy, or train anew with --overwrite",
            code="run-file",
        ) from error
    return dict(content)


def check_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds files, unless they may be replaced.

    Raises:
        ConfigError: ``run-folder-exists``.
    """
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise ConfigError(
            str(folder),
            expected="an absent or empty run folder",
            found="one that holds files",
            remedy="go on with the run in it with --resume, replace it with --overwrite, or choose "
            "another with --out",
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


def check_writable(folder: Path) -> None:
    """Told before the cases are read; a folder made for the test is taken away again."""
    absent = not folder.exists()
    prepare_output(folder)
    if absent:
        folder.rmdir()


def earlier_run(folder: Path, settings: RunSettings, listener: Listener) -> Earlier | None:
    """The run to be continued; None if none was begun in the folder.

    Args:
        folder: A run folder, or one that is absent or empty.
        settings: Complete; they must be those of the run.
        listener: Told if only an earlier checkpoint can be used.

    Raises:
        ConfigError: If the folder holds something else, its settings differ (the first key that
            does is named), or its checkpoint is of another run.
        FormatError: If its checkpoints are damaged.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    path = folder / CONFIG_NAME
    if not path.is_file():
        if {entry.name for entry in folder.iterdir()} <= {SPLIT_NAME}:
            return None  # killed while it was begun
        raise ConfigError(
            str(folder),
            expected=f"a run folder with {CONFIG_NAME}",
            found="a folder without it",
            remedy="name the folder of the run to continue with --out",
            code="resume-folder",
        )
    begun = load_settings(path)
    changes = _check_same(begun, settings, folder)
    text = _with_changes(path.read_text(encoding="utf-8"), settings)
    digest = _course_sha256(text)
    checkpoints = folder / "checkpoints"
    checkpoint = None
    if any((checkpoints / name).is_file() for name in (LAST_NAME, PREVIOUS_NAME)):
        checkpoint = load_checkpoint(checkpoints, listener)
        if checkpoint.config_sha256 != digest:
            raise ConfigError(
                str(checkpoints),
                expected=f"a checkpoint of the run, the settings in whose {CONFIG_NAME} have the "
                f"sha256 {digest[:12]}...",
                found=f"one of {checkpoint.config_sha256[:12]}...",
                remedy=f"put the {CONFIG_NAME} and checkpoints of one run together",
                code="checkpoint-other-run",
            )
    numerics = _chosen(folder / _PROBE_NAME)
    if numerics is not None and settings.training.precision != "auto":
        numerics = Numerics(settings.training.precision, numerics.channels_last)
    return Earlier(begun, text, checkpoint, numerics, changes)


def record_of_finished(
    folder: Path, earlier: Earlier, settings: RunSettings, budget_s: float | None
) -> dict[str, Any] | None:
    """The ``run.json`` of a run with nothing left to do; None if there is.

    A run has something left if it was interrupted, before its end or while its validation cases
    were judged at the end, or if it shall now go on for longer. One that ended early since
    validation no longer got better has nothing left.

    Args:
        folder: The run folder.
        earlier: The run in it.
        settings: As the run shall go on.
        budget_s: The wall-clock budget that is wished now.
    """
    path = folder / RECORD_NAME
    if earlier.checkpoint is None or earlier.numerics is None or not path.is_file():
        return None
    record = load_written(path, ("finished",))
    judged = record["finished"] and record["validation_dice_per_case"] is not None
    if not judged or record["steps"] != earlier.checkpoint.step:
        return None
    kept_s, training = earlier.checkpoint.budget_s, settings.training
    if kept_s is not None:
        longer = (budget_s or 0.0) > kept_s
    elif training.steps is not None:
        longer = training.steps > record["steps"]
    else:
        longer = (training.epochs or 0) > record["epochs"]
    return None if longer and not record["ended_early"] else record


def versions() -> dict[str, str]:
    """Of what made the weights."""
    return {
        "medseg": medseg.__version__,
        "torch": str(torch.__version__),
        "monai": str(monai.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def hardware(device: torch.device) -> str:
    """The machine in words."""
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    words = f"{cpu}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {words}" if device.type == "cuda" else words


def _check_same(begun: RunSettings, given: RunSettings, folder: Path) -> tuple[str, ...]:
    """Refuse other settings; returned are those of the course that are others now, in words."""
    before, now = _flat(begun.model_dump(mode="json")), _flat(given.model_dump(mode="json"))
    for key, name_of in (
        ("training.encoder_weights", lambda weights: Path(weights).name),
        ("training.start_model", _name_of_model),
    ):
        if isinstance(now.get(key), str):
            now[key] = name_of(str(now[key]))
    changes = []
    for key in sorted(before.keys() | now.keys()):
        if key in _COURSE_KEYS:
            if before.get(key) != now.get(key):
                changes.append(f"{key} is {now.get(key)!r} from here on, was {before.get(key)!r}")
            continue
        if key in _LENGTH_KEYS and _is_longer(before.get(key), now.get(key)):
            continue
        if key not in _FREE_KEYS and before.get(key) != now.get(key):
            raise ConfigError(
                f"{folder}: {key}",
                expected=f"{before.get(key)!r}, as the run was begun with",
                found=f"{now.get(key)!r}",
                remedy="a continued run keeps its settings: name the run folder instead of the "
                "configuration, or start a new run",
                code="resume-settings",
            )
    return tuple(changes)


def _name_of_model(folder: str) -> str:
    """The last part of the path; of the folder ``model`` in a run that of the run."""
    path = Path(folder)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _is_longer(before: object, now: object) -> bool:
    return isinstance(before, int) and isinstance(now, int) and now > before


def _with_changes(config_yaml: str, settings: RunSettings) -> str:
    """The same settings with what others have in place of what a continued run may change."""
    content = yaml.safe_load(config_yaml)
    wanted = settings.training.model_dump(mode="json", include=set(_CHANGEABLE))
    if wanted == {key: content["training"].get(key) for key in wanted}:
        return config_yaml
    content["training"] |= wanted
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _course_sha256(config_yaml: str) -> str:
    content = yaml.safe_load(config_yaml)
    for key in _CHANGEABLE:
        content["training"].pop(key, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _flat(content: object, path: str = "") -> dict[str, object]:
    """Nested mappings as one, with keys such as ``training.batch_size``; lists are values."""
    if not isinstance(content, Mapping) or not content:
        return {path: content}
    return {
        key: value
        for name, inner in content.items()
        for key, value in _flat(inner, f"{path}.{name}" if path else str(name)).items()
    }


def _chosen(path: Path) -> Numerics | None:
    if not path.is_file():
        return None
    chosen = load_written(path, ("chosen",))["chosen"]
    return Numerics(chosen["precision"], chosen["channels_last"])


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind."""
    for leftover in _leftovers(folder):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _leftovers(folder: Path) -> Iterator[Path]:
    for place in (folder, *(folder / name for name in ("checkpoints", "model", "validation"))):
        yield from place.glob(".*.tmp*")


def _remove_run(folder: Path) -> None:
    """Remove what a run writes and nothing else that may lie there."""
    for name in _ENTRIES:
        entry = folder / name
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.is_dir():
            shutil.rmtree(entry)


def _json(content: Any) -> str:  # noqa: ANN401 - plain JSON types
    return json.dumps(content, indent=2) + "\n"
