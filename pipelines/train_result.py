"""What a training run came to, from the run itself or from its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.models.card import ModelCard, load_card
from medseg.training.precision import Numerics

__all__ = ["TrainResult"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to.

    Args:
        run_folder: Where everything is.
        card: The model's card.
        losses: Loss of every step; of a continued run those of the part made now.
        steps: Steps done.
        epochs: Epochs begun.
        reading_s: Seconds to read and prepare the cases, outside any budget.
        training_s: Seconds from the start of the schedule to its end: the choice of precision, the
            steps and the validations in between.
        validation_s: Seconds of the validation after the end, outside any budget.
        numerics: Precision and layout.
        dice: Structure or region to Dice over all validation cases; empty if the run was stopped.
        mean_dice: Mean of them; NaN if the run was stopped.
        per_case: Case to structure to Dice.
        weights: Number of trained parameters.
        skipped: Steps left out since loss or gradient was not finite.
        finished: Whether the schedule came to its end.
        finished_before: Whether it had when the run was to be continued: nothing was done.
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
    per_case: dict[str, dict[str, float]]
    weights: int
    skipped: int
    finished: bool
    finished_before: bool = False

    @classmethod
    def of_record(cls, run_folder: Path, record: Mapping[str, Any]) -> TrainResult:
        """What a finished run came to, as its ``run.json`` tells."""
        seconds, per_case = record["seconds"], record["validation_dice_per_case"]
        dice = {name: _float(value) for name, value in record["validation_dice"].items()}
        mean_dice = dice.pop("mean")
        return cls(
            run_folder=run_folder,
            card=load_card(run_folder),
            losses=(),
            steps=record["steps"],
            epochs=record["epochs"],
            reading_s=0.0,
            training_s=seconds["training"],
            validation_s=seconds["final_validation"],
            numerics=Numerics(**record["numerics"]),
            dice=dice,
            mean_dice=mean_dice,
            per_case={
                case: {name: _float(value) for name, value in scores.items()}
                for case, scores in per_case.items()
            },
            weights=record["weights"],
            skipped=record["steps_left_out"],
            finished=True,
            finished_before=True,
        )


def _float(value: float | None) -> float:
    return math.nan if value is None else value
