"""The state of a run on disk: everything that a later continuation needs, and no code."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.atomic import atomic_path
from medseg.errors import ConfigError, FormatError

__all__ = ["LAST_NAME", "PREVIOUS_NAME", "Checkpoint", "load_checkpoint", "save_checkpoint"]

LAST_NAME = "last.pt"
PREVIOUS_NAME = "previous.pt"
_FORMAT = "medseg-checkpoint/1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors and plain values alone, so that it loads with ``weights_only=True``.

    Patches are drawn from seed, epoch and place in the epoch; these and ``rng`` are all the
    randomness there is.

    Args:
        network: State dict of the network.
        optimizer: State dict of the optimiser.
        scaler: State dict of the gradient scaler, empty without fp16.
        rng: State of torch's generator on the CPU, and of the CUDA device where there is one.
        seed: Seed of the run.
        epoch: Epochs begun.
        step: Steps done.
        step_of_epoch: Steps done in the last epoch begun.
        seconds: Training time spent.
        progress: Share of the schedule that is over.
        history: Validation rows of the log; the whole of it is in ``log.csv``.
    """

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    rng: dict[str, Tensor]
    seed: int
    epoch: int
    step: int
    step_of_epoch: int
    seconds: float
    progress: float
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


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read ``last.pt``, or ``previous.pt`` if the last was lost while it was replaced.

    Raises:
        ConfigError: If there is neither.
        FormatError: If the file is damaged, holds code, or is of another format.
    """
    path = next((folder / n for n in (LAST_NAME, PREVIOUS_NAME) if (folder / n).is_file()), None)
    if path is None:
        raise ConfigError(
            str(folder),
            expected=f"a folder with {LAST_NAME}",
            found="none",
            remedy="give the checkpoints folder of a run",
            code="checkpoint-missing",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != _FORMAT:
            raise KeyError("format")
        return Checkpoint(**content)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise FormatError(
            str(path),
            expected=f"a checkpoint of format {_FORMAT}",
            found="a file that is damaged or holds something else",
            remedy=f"use {PREVIOUS_NAME} beside it, or start the run again",
            code="checkpoint-damaged",
        ) from error
