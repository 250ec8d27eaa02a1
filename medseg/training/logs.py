"""What a run tells on disk: a CSV table and TensorBoard curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunLog"]


class RunLog:
    """One row per training step and per validation, in ``log.csv`` and under ``tensorboard/``.

    The table grows row by row and each row is flushed as a whole line: unlike the run's other files
    it is not replaced atomically, so that a crash leaves all rows up to it.

    Columns: ``step, epoch, seconds, learning_rate, loss, dice_mean, dice_<label>...``; a training
    row leaves the Dice columns empty, a validation row rate and loss.

    Args:
        folder: The run folder; must exist.
        labels: Names of the structures.
    """

    def __init__(self, folder: Path, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.validations: list[dict[str, float | int]] = []
        self._columns = [
            *("step", "epoch", "seconds", "learning_rate", "loss", "dice_mean"),
            *(f"dice_{name}" for name in self.labels),
        ]
        self._file = (folder / "log.csv").open("w", newline="", encoding="utf-8")
        self._table = csv.DictWriter(self._file, self._columns)
        self._table.writeheader()
        self._curves = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._curves.close()

    def trained(
        self, *, step: int, epoch: int, seconds: float, learning_rate: float, loss: float
    ) -> None:
        """Add the row of one step."""
        self._add(
            {
                "step": step,
                "epoch": epoch,
                "seconds": round(seconds, 3),
                "learning_rate": learning_rate,
                "loss": loss,
            }
        )
        self._curves.add_scalar("train/loss", loss, step)
        self._curves.add_scalar("train/learning_rate", learning_rate, step)

    def validated(
        self, *, step: int, epoch: int, seconds: float, dice: Mapping[str, float], mean: float
    ) -> None:
        """Add the row of one validation."""
        row: dict[str, float | int] = {
            "step": step,
            "epoch": epoch,
            "seconds": round(seconds, 3),
            "dice_mean": mean,
            **{f"dice_{name}": dice[name] for name in self.labels},
        }
        self.validations.append(row)
        self._add(row)
        self._curves.add_scalar("validation/dice_mean", mean, step)
        for name in self.labels:
            self._curves.add_scalar(f"validation/dice_{name}", dice[name], step)

    def _add(self, row: dict[str, float | int]) -> None:
        self._table.writerow(row)
        self._file.flush()
