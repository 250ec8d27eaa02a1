"""The state of a run on disk: everything that a later continuation needs, and no code."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.atomic import atomic_path
from medseg.errors import ConfigError, FormatError
from medseg.events import Listener

__all__ = [
    "BEST_NAME",
    "LAST_NAME",
    "PREVIOUS_NAME",
    "BestWeights",
    "Checkpoint",
    "load_best",
    "load_checkpoint",
    "save_best",
    "save_checkpoint",
]

LAST_NAME = "last.pt"
PREVIOUS_NAME = "previous.pt"
BEST_NAME = "best.pt"
_FORMAT = "medseg-checkpoint/2"
_BEST_FORMAT = "medseg-best-weights/1"
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors and plain values alone, so that it loads with ``weights_only=True``.

    Patches are drawn from seed, epoch and place in the epoch; these and ``rng`` are all the
    randomness there is.

    Args:
        config_sha256: Hash of the run's settings but for its length.
        network: State dict of the network.
        averaged: State of the running mean of the weights, empty without one.
        optimizer: State dict of the optimiser.
        scaler: State dict of the gradient scaler, empty without fp16.
        rng: State of torch's generator on the CPU, and of the CUDA device where there is one; with
            several processes those of the others under ``cpu_1``, ``cuda_1`` and so on.
        seed: Seed of the run.
        epoch: Epochs begun.
        step: Steps done.
        step_of_epoch: Steps done in the last epoch begun.
        seconds: Training time spent.
        budget_s: Wall-clock time of the whole run; None if steps end it.
        progress: Share of the schedule that is over.
        skipped: Steps left out since something was not finite.
        watch: Best validation so far and how long ago it was.
        history: Validation rows of the log; the whole of it is in ``log.csv``.
    """

    config_sha256: str
    network: dict[str, Tensor]
    averaged: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Tensor]
    seed: int
    epoch: int
    step: int
    step_of_epoch: int
    seconds: float
    budget_s: float | None
    progress: float
    skipped: int
    watch: dict[str, float | int]
    history: list[dict[str, float | int]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``last.pt`` and keep the one before as ``previous.pt``.

    Args:
        folder: Made if absent.
        checkpoint: The state.

    Returns:
        The file written.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST_NAME
    content = {one.name: getattr(checkpoint, one.name) for one in fields(checkpoint)}
    with atomic_path(last) as temporary:
        torch.save({"format": _FORMAT, **content}, temporary)
        if last.exists():
            last.replace(folder / PREVIOUS_NAME)
    return last


def load_checkpoint(folder: Path, listener: Listener | None = None) -> Checkpoint:
    """Read ``last.pt``, or ``previous.pt`` if the last is damaged or was lost while replaced.

    Args:
        folder: The checkpoints folder of a run.
        listener: Told if the last one could not be used.

    Raises:
        ConfigError: If there is neither.
        FormatError: If no file is left that is whole, without code and of this format.
    """
    paths = [folder / name for name in (LAST_NAME, PREVIOUS_NAME) if (folder / name).is_file()]
    if not paths:
        raise ConfigError(
            str(folder),
            expected=f"a folder with {LAST_NAME}",
            found="none",
            remedy="give the checkpoints folder of a run",
            code="checkpoint-missing",
        )
    for path in paths:
        try:
            checkpoint = Checkpoint(**_loaded(path, _FORMAT))
        except FormatError:
            if path == paths[-1]:
                raise
        except TypeError as error:
            if path == paths[-1]:
                raise _damaged(path, _FORMAT) from error
        else:
            if path.name == PREVIOUS_NAME and listener is not None:
                listener.noted(f"{LAST_NAME} cannot be used; going on from {PREVIOUS_NAME}")
            return checkpoint
    raise AssertionError  # pragma: no cover - the last path returned or raised


@dataclass(frozen=True, slots=True)
class BestWeights:
    """The weights that validated best.

    Args:
        config_sha256: Hash of the run's settings but for its length.
        network: State dict, of the running mean where there is one.
        step: Steps done when they were judged.
        dice: Mean Dice of that validation.
    """

    config_sha256: str
    network: dict[str, Tensor]
    step: int
    dice: float


def save_best(folder: Path, best: BestWeights) -> None:
    """Write ``best.pt``.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {one.name: getattr(best, one.name) for one in fields(best)}
    with atomic_path(folder / BEST_NAME) as temporary:
        torch.save({"format": _BEST_FORMAT, **content}, temporary)


def load_best(folder: Path) -> BestWeights | None:
    """Read ``best.pt``; None if there is none, since no validation took place.

    Raises:
        FormatError: If the file is damaged, holds code, or is of another format.
    """
    path = folder / BEST_NAME
    if not path.is_file():
        return None
    try:
        return BestWeights(**_loaded(path, _BEST_FORMAT))
    except TypeError as error:
        raise _damaged(path, _BEST_FORMAT) from error


def _loaded(path: Path, form: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                raise zipfile.BadZipFile
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != form:
            raise KeyError("format")
    except _DAMAGED as error:
        raise _damaged(path, form) from error
    return content


def _damaged(path: Path, form: str) -> FormatError:
    return FormatError(
        str(path),
        expected=f"a checkpoint of format {form}",
        found="a file that is damaged or holds something else",
        remedy="put a copy of it back, or start the run again with --overwrite",
        code="checkpoint-damaged",
    )
