"""How much work a correction was: voxels added and removed per label, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Effort", "LabelEffort"]

IDLE_S = 30.0
"""Longer pauses between two actions count as this much work."""


@dataclass(frozen=True, slots=True)
class LabelEffort:
    """The work on one label.

    Args:
        value: The label.
        added_voxels: That edits gave to it, those that were undone left out.
        removed_voxels: That edits took from it, those that were undone left out.
        seconds: Time in which it was the active label.
    """

    value: int
    added_voxels: int
    removed_voxels: int
    seconds: float


@dataclass(slots=True, eq=False)
class Effort:
    """Counts the edits that stand, and the time that all of them took.

    Args:
        clock: Seconds that only rise.
    """

    clock: Callable[[], float] = time.monotonic
    edits: int = 0
    _added: dict[int, int] = field(default_factory=dict)
    _removed: dict[int, int] = field(default_factory=dict)
    _seconds: dict[int, float] = field(default_factory=dict)
    _last: float | None = None

    def acted(self, active: int) -> None:
        """The user did something while a label was active."""
        now = self.clock()
        if self._last is not None:
            passed = min(now - self._last, IDLE_S)
            self._seconds[active] = self._seconds.get(active, 0.0) + passed
        self._last = now

    def count(self, moved: Mapping[tuple[int, int], int], *, forward: bool) -> None:
        """An edit was made, or undone."""
        sign = 1 if forward else -1
        self.edits += sign
        for (before, after), voxels in moved.items():
            self._removed[before] = self._removed.get(before, 0) + sign * voxels
            self._added[after] = self._added.get(after, 0) + sign * voxels

    def of(self, value: int) -> LabelEffort:
        """The work on one label."""
        return LabelEffort(
            value,
            self._added.get(value, 0),
            self._removed.get(value, 0),
            self._seconds.get(value, 0.0),
        )

    @property
    def seconds(self) -> float:
        """Time worked in all."""
        return sum(self._seconds.values())

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types; :meth:`restore` reads them back."""
        return {
            "edits": self.edits,
            "added": {str(value): count for value, count in self._added.items()},
            "removed": {str(value): count for value, count in self._removed.items()},
            "seconds": {str(value): count for value, count in self._seconds.items()},
        }

    def restore(self, content: Mapping[str, object]) -> None:
        """Go on from what :meth:`to_dict` gave."""

        def numbers(key: str) -> dict[int, float]:
            found = content.get(key)
            return {int(k): float(v) for k, v in found.items()} if isinstance(found, dict) else {}

        edits = content.get("edits")
        self.edits = edits if isinstance(edits, int) else 0
        self._added = {value: int(count) for value, count in numbers("added").items()}
        self._removed = {value: int(count) for value, count in numbers("removed").items()}
        self._seconds = numbers("seconds")
