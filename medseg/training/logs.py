"""What a run tells on disk: a CSV table, TensorBoard curves, a picture, MLflow if wanted."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from medseg.atomic import atomic_path, write_bytes
from medseg.errors import ConfigError
from medseg.training.curves import Curves, progress_png

__all__ = ["LOG_NAME", "PICTURE_NAME", "RunLog", "check_mlflow", "read_log"]

LOG_NAME = "log.csv"
PICTURE_NAME = "progress.png"
_DRAWING_SHARE = 0.05
_SHARED = ("step", "epoch", "seconds", "learning_rate", "loss", "dice_mean")


class RunLog:
    """One row per training step and per validation, in ``log.csv`` and under ``tensorboard/``.

    The table grows row by row and each row is flushed as a whole line: unlike the run's other files
    it is not replaced atomically, so that a crash leaves all rows up to it. ``progress.png``, the
    picture of the table, is drawn anew after every epoch, less often where epochs are so short that
    it would take more than a twentieth of the time.

    Columns: ``step, epoch, seconds, learning_rate, loss, dice_mean, dice_<label>...``; a training
    row leaves the Dice columns empty, a validation row rate and loss.

    Args:
        folder: The run folder; must exist.
        labels: Names of the structures or regions.
        resume_step: Steps that a run to be continued has done: later rows, which a crash left
            behind its last checkpoint, are dropped. None for a new run.
        mlflow: Name of the run in a local MLflow store under ``mlruns/``; None for no MLflow.

    Raises:
        ConfigError: ``mlflow-missing``.
        FormatError: If the table of a run to be continued cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        labels: Sequence[str],
        *,
        resume_step: int | None = None,
        mlflow: str | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.curves = Curves(self.labels)
        self._folder = folder
        self._draw_again_s = 0.0
        self._columns = [*_SHARED, *(f"dice_{name}" for name in self.labels)]
        self._mlflow = None if mlflow is None else _MlflowRun(folder, mlflow)
        path = folder / LOG_NAME
        kept = [] if resume_step is None else _rows_to(path, resume_step)
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, self._columns)
            table.writeheader()
            table.writerows(kept)
        self.curves.add_rows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._table = csv.DictWriter(self._file, self._columns)
        self._boards = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    @property
    def validations(self) -> list[dict[str, float | int]]:
        """The validation rows so far."""
        return self.curves.validations

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
        """Flush and close all."""
        self._file.close()
        self._boards.close()
        if self._mlflow is not None:
            self._mlflow.close()

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
        self._plot(step, {"train/loss": loss, "train/learning_rate": learning_rate})

    def validated(
        self, *, step: int, epoch: int, seconds: float, dice: Mapping[str, float], mean: float
    ) -> None:
        """Add the row of one validation."""
        self._add(
            {
                "step": step,
                "epoch": epoch,
                "seconds": round(seconds, 3),
                "dice_mean": mean,
                **{f"dice_{name}": dice[name] for name in self.labels},
            }
        )
        self._plot(
            step,
            {
                "validation/dice_mean": mean,
                **{f"validation/dice_{name}": dice[name] for name in self.labels},
            },
        )

    def epoch_ended(self, *, last: bool = False) -> None:
        """Draw the picture of the run so far; not where that would take much of the time.

        Args:
            last: Draw it in any case.

        Raises:
            ResourceError: If the folder cannot be written.
        """
        began = time.monotonic()
        if last or began >= self._draw_again_s:
            write_bytes(self._folder / PICTURE_NAME, progress_png(self.curves))
            ended = time.monotonic()
            self._draw_again_s = ended + (ended - began) / _DRAWING_SHARE

    def _add(self, row: Mapping[str, float | int]) -> None:
        self._table.writerow(row)
        self._file.flush()
        self.curves.add_rows([row])

    def _plot(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._boards.add_scalar(name, value, step)
        if self._mlflow is not None:
            self._mlflow.plot(step, figures)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a ``log.csv``; a line cut short by a crash ends them."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                break
            rows.append(row)
        return rows


def _rows_to(path: Path, step: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    return [row for row in read_log(path) if row["step"].isdigit() and int(row["step"]) <= step]


def check_mlflow() -> None:
    """Refuse to log to MLflow where it is not installed.

    Raises:
        ConfigError: ``mlflow-missing``.
    """
    try:
        import mlflow.tracking  # noqa: F401, PLC0415 - optional
    except ImportError as error:
        raise ConfigError(
            "training.mlflow",
            expected="the package mlflow",
            found="none",
            remedy="install it with: pip install 'medseg[mlflow]', or set it to false",
            code="mlflow-missing",
        ) from error


class _MlflowRun:
    """One run of a file store inside the run folder; no server is asked."""

    def __init__(self, folder: Path, name: str) -> None:
        check_mlflow()
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - optional

        # since 3.7 MLflow asks for this before it writes plain files instead of a database
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        store = folder / "mlruns"
        self._client: Any = MlflowClient(tracking_uri=store.resolve().as_uri())
        experiment = self._client.get_experiment_by_name(name)
        number = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        earlier = self._client.search_runs([number], max_results=1)
        self._run = (
            earlier[0] if earlier else self._client.create_run(number, run_name=name)
        ).info.run_id
        self._client.update_run(self._run, status="RUNNING")

    def plot(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                self._client.log_metric(self._run, _plain(name), value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _plain(name: str) -> str:
    """MLflow's names of figures hold letters, digits, ``_-./ :`` and nothing else."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ :") else "_" for c in name)
