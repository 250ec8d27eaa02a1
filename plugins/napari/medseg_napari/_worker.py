"""Work in another thread, and its progress in napari's activity dock."""

# ruff: noqa: PLC0415 - imported with the first dock

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from napari.utils import cancelable_progress

from medseg_napari._words import time_in_words

__all__ = ["Activity", "Listening", "start_worker"]


class Activity(cancelable_progress):  # type: ignore[misc] # napari is untyped here
    """One line of the activity dock: a bar, the time left, and a button that stops.

    Args:
        title: What is going on.
        stop: Called when its button is pressed.
    """

    total: int
    n: int

    def __init__(self, title: str, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._is_closed = False
        super().__init__(total=0, desc=title, cancel_callback=stop)

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


class Listening:
    """What a dock hears of the viewer, for as long as the dock is there.

    Qt's part of a dock that the user closed is gone while Python's may live on; napari would go on
    calling it.

    Args:
        dock: A Qt object.
        at_end: Called when it is gone.
    """

    def __init__(self, dock: Any, at_end: Callable[[], None] | None = None) -> None:  # noqa: ANN401
        connections: list[tuple[Any, Callable[..., None]]] = []
        self._connections = connections

        def let_go(*ignored: Any) -> None:  # noqa: ANN401, ARG001 - Qt's
            for emitter, callback in connections:
                with suppress(ValueError, KeyError):
                    emitter.disconnect(callback)
            connections.clear()
            if at_end is not None:
                at_end()

        dock.destroyed.connect(let_go)

    def to(self, emitter: Any, callback: Callable[..., None]) -> None:  # noqa: ANN401 - napari's
        """Call back whenever something happens."""
        emitter.connect(callback)
        self._connections.append((emitter, callback))


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
