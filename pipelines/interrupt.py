"""Ctrl-C as a wish that is asked about between steps, instead of an exception anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medseg.events import Listener

__all__ = ["Interruptible", "until_interrupted"]


class Interruptible:
    """A listener that passes everything on and also cancels once :meth:`interrupt` was called.

    Args:
        inner: Hears everything.
    """

    def __init__(self, inner: Listener) -> None:
        self._inner = inner
        self._interrupted = False

    def interrupt(self) -> None:
        """Cancel at the next question."""
        self._interrupted = True

    def started(self, stage: str, total: int) -> None:
        """Pass it on."""
        self._inner.started(stage, total)

    def advanced(self, stage: str, done: int) -> None:
        """Pass it on."""
        self._inner.advanced(stage, done)

    def measured(self, name: str, value: float) -> None:
        """Pass it on."""
        self._inner.measured(name, value)

    def noted(self, message: str) -> None:
        """Pass it on."""
        self._inner.noted(message)

    def cancelled(self) -> bool:
        """Whether it was interrupted here or cancelled there."""
        return self._interrupted or self._inner.cancelled()


@contextmanager
def until_interrupted(inner: Listener, *, or_terminated: bool = False) -> Iterator[Interruptible]:
    """A listener that the first Ctrl-C cancels; the second one interrupts as it always does.

    Outside the main thread, where no signal arrives, nothing is installed.

    Args:
        inner: Hears everything.
        or_terminated: Whether SIGTERM, by which schedulers of clusters ask a process to end, counts
            as Ctrl-C.
    """
    listener = Interruptible(inner)
    if threading.current_thread() is not threading.main_thread():
        yield listener
        return

    def first(_signal: int, _frame: FrameType | None) -> None:
        listener.interrupt()
        for number in numbers:
            signal.signal(number, signal.default_int_handler)

    numbers = (signal.SIGINT, signal.SIGTERM) if or_terminated else (signal.SIGINT,)
    before = [signal.signal(number, first) for number in numbers]
    try:
        yield listener
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
