"""Work in another thread, and its progress in napari's activity dock."""

# ruff: noqa: PLC0415 - imported with the first dock

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from napari.utils import cancelable_progress

from medseg_napari._words import time_in_words

__all__ = ["Activity", "start_worker"]


class Activity(cancelable_progress):  # type: ignore[misc] # napari is untyped here
    """One line of the activity dock: a bar, the time left, and a button that stops.

    Args:
        title: What is going on.
        stop: Called when its button is pressed.
    """

    total: int
    n: int

    def __init__(self, title: str, stop: Callable[[], None]) -> None:
        super().__init__(total=0, desc=title, cancel_callback=stop)
        self._stop = stop
        self._is_closed = False

    def cancel(self) -> None:
        """The button was pressed."""
        super().cancel()
        self._stop()

    def show(self, done: int, total: int, seconds_left: float | None) -> None:
        """Move the bar.

        Args:
            done: Steps that are done.
            total: Steps there are; 0 while that is not known.
            seconds_left: Until the end, where known.
        """
        if self._is_closed:
            return
        if total != self.total:
            self.total = total
        if done > self.n:
            self.update(done - self.n)
        elif done < self.n:
            self.n = done
            self.events.value(value=done)
        if seconds_left is not None:
            self.events.eta(value=f" about {time_in_words(seconds_left)} left")

    def close(self) -> None:
        """Take the line away; a second time does nothing."""
        if not self._is_closed:
            self._is_closed = True
            super().close()


def start_worker(
    steps: Callable[[], Iterator[Any]],
    *,
    yielded: Callable[[Any], None],
    finished: Callable[[], None] | None = None,
) -> Any:  # noqa: ANN401 - napari's worker
    """Run a generator in another thread.

    Args:
        steps: Begins the generator, in that thread.
        yielded: Gets what it yields, in this thread; a method of a Qt object, so that it is let go
            with it.
        finished: Called when the thread is done, likewise.

    Returns:
        The worker, at work.
    """
    from napari.qt.threading import create_worker

    def generate() -> Iterator[Any]:
        yield from steps()

    worker = create_worker(generate, _start_thread=False)
    worker.yielded.connect(yielded)
    if finished is not None:
        worker.finished.connect(finished)
    worker.start()
    return worker
