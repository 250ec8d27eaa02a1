"""Progress for the program that started this one: a JSON object on each line of stdout.

The other way round, standard input that is closed is a wish to stop, as Ctrl-C is: so a program
that has died, or was closed, takes what it started with it, on every system.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["EventLines", "call_when_closed"]

_EVERY_S = 0.2


class EventLines:
    """A listener that writes what it hears; never cancels."""

    def __init__(self) -> None:
        self._told_s = 0.0
        self._totals: dict[str, int] = {}

    def started(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._totals[stage] = total
        self.write("started", stage=stage, total=total)

    def advanced(self, stage: str, done: int) -> None:
        """Steps are done; told five times a second, and the last one always."""
        now = time.monotonic()
        if done < self._totals.get(stage, 0) and now - self._told_s < _EVERY_S:
            return
        self._told_s = now
        self.write("advanced", stage=stage, done=done)

    def measured(self, name: str, value: float) -> None:
        """A figure; told with the steps that are."""
        if name != "loss" or time.monotonic() - self._told_s >= _EVERY_S:
            self.write("measured", name=name, value=value if math.isfinite(value) else None)

    def noted(self, message: str) -> None:
        """A line for people."""
        self.write("noted", message=message)

    def cancelled(self) -> bool:
        """Go on."""
        return False

    def write(self, event: str, **content: Any) -> None:  # noqa: ANN401 - plain JSON types
        """One line, at once; where nobody listens any more it is dropped."""
        try:
            sys.stdout.write(json.dumps({"event": event, **content}, allow_nan=False) + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            return


def call_when_closed(wish: Callable[[], None]) -> None:
    """Call back, from another thread, once standard input is closed."""

    def wait() -> None:
        # not by the file object: its lock would be held when the interpreter ends
        while True:
            try:
                if not os.read(0, 1024):
                    break
            except OSError:
                break
        wish()

    threading.Thread(target=wait, daemon=True, name="stdin").start()
