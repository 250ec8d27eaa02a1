"""Cases in a line: while one is worked on, the next is read and the one before is written.

Reading and writing have threads; the work is done in the thread that asks for outcomes, since
networks do not like to be moved. What is in memory is bounded by a :class:`~.flight.Flight`.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from medseg.events import Cancelled, Listener
from medseg.studies.flight import Flight
from medseg.studies.runner import Outcome, run_cases

__all__ = ["Steps", "run_overlapped"]

CaseT = TypeVar("CaseT")
ReadT = TypeVar("ReadT")
WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

_ASK_EVERY_S = 0.1


class Steps(Protocol[CaseT, ReadT, WorkT, ResultT_co]):
    """What is done with every case. An error in a step is that case's outcome."""

    def claim(self) -> CaseT | None:
        """The next case, or None if there is none; may wait. Called by readers, one at a time."""

    def admit(self, case: CaseT) -> bool:
        """Wait until it may be read; False if the run is to stop."""

    def read(self, case: CaseT) -> ReadT | None:
        """Read it; None if nothing has to be done with it."""

    def work(self, case: CaseT, read: ReadT) -> WorkT:
        """Work on it."""

    def write(self, case: CaseT, work: WorkT) -> ResultT_co:
        """Write it."""

    def ended(self, outcome: Outcome[CaseT, Any]) -> None:
        """It ended, well or not; called in the thread that did its last step."""

    def give_back(self, case: CaseT, read: ReadT | None) -> None:
        """It will not be done, since the run is to stop."""


@dataclass(slots=True)
class _Item(Generic[CaseT]):
    case: CaseT
    content: Any
    seconds: float


def run_overlapped(
    steps: Steps[CaseT, ReadT, WorkT, ResultT],
    flight: Flight,
    *,
    readers: int,
    writers: int,
    listener: Listener,
) -> Iterator[Outcome[CaseT, ResultT]]:
    """Take cases through all steps, overlapping; a failure is an outcome, not the end.

    Args:
        steps: What is done.
        flight: What may be in memory; closed when this ends.
        readers: Threads that read.
        writers: Threads that write.
        listener: Asked between cases whether to stop.

    Yields:
        One outcome per case, in the order in which they end; its seconds are those of its steps.

    Raises:
        Cancelled: If the listener, or a step, asked to stop. What was being written is finished;
            those outcomes come first.
        BaseException: What ``claim``, ``ended`` or ``give_back`` raise, or Ctrl-C anywhere.
    """
    yield from _Line(steps, flight, readers, writers, listener).outcomes()


class _Line(Generic[CaseT, ReadT, WorkT, ResultT]):
    """The threads, and what lies between them."""

    def __init__(
        self,
        steps: Steps[CaseT, ReadT, WorkT, ResultT],
        flight: Flight,
        readers: int,
        writers: int,
        listener: Listener,
    ) -> None:
        self._steps = steps
        self._flight = flight
        self._listener = listener
        self._claiming = threading.Lock()
        self._stop = threading.Event()
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[_Item[CaseT] | None] = queue.SimpleQueue()
        self._ready: deque[_Item[CaseT]] = deque()
        self._ended: deque[Outcome[CaseT, ResultT]] = deque()
        self._reading, self._writing, self._writers = readers, 0, writers
        self._fatal: BaseException | None = None
        self._threads = [
            *(threading.Thread(target=self._read_all, daemon=True) for _ in range(readers)),
            *(threading.Thread(target=self._write_all, daemon=True) for _ in range(writers)),
        ]

    def outcomes(self) -> Iterator[Outcome[CaseT, ResultT]]:
        """See :func:`run_overlapped`."""
        for thread in self._threads:
            thread.start()
        cancelled = False
        try:
            while self._reading or self._ready or self._writing:
                self._take_events(wait=not self._ready)
                while self._ended:
                    yield self._ended.popleft()
                if self._listener.cancelled():
                    cancelled = True
                    self._stop_reading()
                if self._ready and not self._stop.is_set():
                    try:
                        self._work(self._ready.popleft())
                    except Cancelled:
                        cancelled = True
                        self._stop_reading()
            while self._ended:
                yield self._ended.popleft()
        except BaseException:  # Ctrl-C too: another one cuts the winding up short
            self._wind_up()
            raise
        self._wind_up()
        if self._fatal is not None:
            raise self._fatal
        if cancelled:
            raise Cancelled

    def _wind_up(self) -> None:
        """Read no more, finish what is being written, end the threads."""
        self._stop_reading()
        while self._reading or self._writing:
            self._take_events(wait=True)
            self._drop_ready()
        for _ in range(self._writers):
            self._to_write.put(None)
        for thread in self._threads:
            thread.join()

    def _stop_reading(self) -> None:
        self._stop.set()
        self._flight.close()
        self._drop_ready()

    def _drop_ready(self) -> None:
        while self._ready:
            item = self._ready.popleft()
            self._steps.give_back(item.case, item.content)

    def _take_events(self, *, wait: bool) -> None:
        try:
            kind, content = self._events.get(timeout=_ASK_EVERY_S if wait else 0)
        except queue.Empty:
            return
        while True:
            if kind == "read":
                self._ready.append(content)
            elif kind == "ended":
                self._ended.append(content)
            elif kind == "written":
                self._writing -= 1
                if content is not None:
                    self._ended.append(content)
            elif kind == "fatal":
                self._fatal = self._fatal or content
            elif kind == "reader left":
                self._reading -= 1
            try:
                kind, content = self._events.get_nowait()
            except queue.Empty:
                break
        if self._stop.is_set():
            self._drop_ready()
        if self._fatal is not None:
            self._stop_reading()

    def _read_all(self) -> None:
        try:
            while not self._stop.is_set():
                with self._claiming:  # a case that must be alone keeps the next from being taken
                    case = None if self._stop.is_set() else self._steps.claim()
                    if case is None:
                        return
                    if not self._steps.admit(case):
                        self._steps.give_back(case, None)
                        return
                self._read(case)
        except BaseException as error:
            self._events.put(("fatal", error))
        finally:
            self._events.put(("reader left", None))

    def _read(self, case: CaseT) -> None:
        try:
            (outcome,) = run_cases([case], self._steps.read)
        except BaseException:
            self._steps.give_back(case, None)
            raise
        if outcome.result is not None:
            self._events.put(("read", _Item(case, outcome.result, outcome.seconds)))
            return
        self._steps.ended(outcome)
        self._events.put(("ended", outcome))

    def _work(self, item: _Item[CaseT]) -> None:
        try:
            (outcome,) = run_cases([item.case], lambda case: self._steps.work(case, item.content))
        except BaseException:
            self._steps.give_back(item.case, item.content)
            raise
        seconds = item.seconds + outcome.seconds
        if outcome.result is None:
            failed: Outcome[CaseT, ResultT] = Outcome(
                item.case, None, outcome.code, outcome.message, seconds
            )
            self._steps.ended(failed)
            self._ended.append(failed)
            return
        self._writing += 1
        self._to_write.put(_Item(item.case, outcome.result, seconds))

    def _write_all(self) -> None:
        while (item := self._to_write.get()) is not None:
            outcome: Outcome[CaseT, ResultT] | None = None
            try:
                outcome = self._write(item)
            except BaseException as error:
                self._events.put(("fatal", error))
            finally:
                self._events.put(("written", outcome))
                del item

    def _write(self, item: _Item[CaseT]) -> Outcome[CaseT, ResultT]:
        (outcome,) = run_cases([item.case], lambda case: self._steps.write(case, item.content))
        outcome = replace(outcome, seconds=item.seconds + outcome.seconds)
        self._steps.ended(outcome)
        return outcome
