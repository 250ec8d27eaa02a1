"""How many cases, and how many bytes of them, may be in memory at once.

Where reading, working and writing overlap, several cases are in memory. A case is let in when the
number of cases and the bytes that all are expected to hold allow it; a single one always is. While
one is worked on, the others keep to what was promised to its memory plan.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

__all__ = ["Flight"]

Stage = Literal["reading", "ready", "working", "writing"]

_READING = 2
"""A reader holds decoded and undecoded voxels at once."""


@dataclass(slots=True)
class _Case:
    bytes: int
    stage: Stage
    alone: bool


class Flight:
    """The cases in memory. All methods may be called from any thread.

    Args:
        most_cases: How many at once.
        most_bytes: What all together may be expected to hold, unless it is one alone.
    """

    def __init__(self, most_cases: int, most_bytes: int) -> None:
        self.most_cases = most_cases
        self.most_bytes = most_bytes
        self._cases: dict[Hashable, _Case] = {}
        self._change = threading.Condition()
        self._promised: int | None = None
        self._largest = 0
        self._closed = False
        self._last = False
        self._held = False

    def enter(self, case: Hashable, expected_bytes: int, *, alone: bool = False) -> bool:
        """Wait until a case may be read.

        Args:
            case: Which.
            expected_bytes: What its image will hold.
            alone: Whether no other case may be in memory meanwhile.

        Returns:
            Whether it may; False once :meth:`close` was called.
        """
        wanted = _READING * expected_bytes
        with self._change:
            self._change.wait_for(lambda: self._closed or self._may_enter(wanted, alone))
            if self._closed:
                return False
            self._largest = max(self._largest, wanted)
            self._cases[case] = _Case(wanted, "reading", alone)
            return True

    def _may_enter(self, wanted: int, alone: bool) -> bool:
        if not self._cases:
            return True
        if alone or self._held or any(case.alone for case in self._cases.values()):
            return False
        if len(self._cases) >= self.most_cases:
            return False
        if self._promised is None:
            return self._sum() + wanted <= self.most_bytes
        others = sum(case.bytes for case in self._cases.values() if case.stage != "working")
        return others + wanted <= self._promised

    def move(self, case: Hashable, stage: Stage, held_bytes: int) -> None:
        """A case goes on to a stage, and holds so many bytes there."""
        with self._change:
            self._cases[case].stage = stage
            self._cases[case].bytes = held_bytes
            self._largest = max(self._largest, held_bytes)
            self._change.notify_all()

    def leave(self, case: Hashable) -> None:
        """A case is out of memory."""
        with self._change:
            self._cases.pop(case, None)
            if not any(one.stage == "working" for one in self._cases.values()):
                self._promised = None
            self._change.notify_all()

    def close(self) -> None:
        """Let nothing in any more, and end all waiting to be let in."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def last(self) -> None:
        """Say that the case that came in last is the last one: no memory is kept for another."""
        with self._change:
            self._last = True

    def promise(self, case: Hashable) -> tuple[int, int]:
        """What the other cases hold now, and at most will hold while this one is worked on.

        Returns:
            Both in bytes; the second is at least the first.
        """
        with self._change:
            now = self._sum() - self._cases[case].bytes
            room = min(self.most_bytes, (self.most_cases - 1) * self._largest)
            self._promised = max(now, 0 if self._held or self._closed or self._last else room)
            return now, self._promised

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let nothing in meanwhile, and wait until nothing is being read or written."""
        with self._change:
            self._held = True
            self._change.wait_for(
                lambda: all(one.stage in ("ready", "working") for one in self._cases.values())
            )
        try:
            yield
        finally:
            with self._change:
                self._held = False
                self._change.notify_all()

    def _sum(self) -> int:
        return sum(case.bytes for case in self._cases.values())
