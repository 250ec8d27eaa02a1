"""Which validation was the best so far, and whether it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

__all__ = ["Watch"]

_KEEP = 0.9


@dataclass(slots=True)
class Watch:
    """The running mean of validation Dice that early stopping and the best weights go by.

    A single validation on a few cases is noisy; nnU-Net's trainer likewise judges by
    ``0.9 * mean + 0.1 * Dice`` (its pseudo Dice).

    Args:
        mean: The running mean; NaN before the first validation.
        best: Its largest value so far; NaN before the first.
        best_step: Steps done then.
        since: Validations since then.
    """

    mean: float = math.nan
    best: float = math.nan
    best_step: int = 0
    since: int = 0

    def judge(self, step: int, dice: float) -> bool:
        """Take in a validation; whether the running mean is better than ever.

        A Dice of NaN, of cases without any structure, counts as no improvement.
        """
        if math.isfinite(dice):
            before = dice if math.isnan(self.mean) else self.mean
            self.mean = _KEEP * before + (1 - _KEEP) * dice
            if not self.mean <= self.best:
                self.best, self.best_step, self.since = self.mean, step, 0
                return True
        self.since += 1
        return False

    def tired(self, patience: int | None) -> bool:
        """Whether the last ``patience`` validations brought nothing."""
        return patience is not None and self.since >= patience

    @classmethod
    def from_dict(cls, values: Mapping[str, float | int]) -> Watch:
        """The watch that :meth:`to_dict` described."""
        return cls(
            float(values["mean"]),
            float(values["best"]),
            int(values["best_step"]),
            int(values["since"]),
        )

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for the checkpoint."""
        return asdict(self)
