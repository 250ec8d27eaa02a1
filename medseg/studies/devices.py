"""Many cases on several devices: one process for each, and a free one takes the next case.

A process per device keeps a crash, a leak or a full GPU to itself. The parent holds the list of
cases and talks to each worker through a pipe of its own: no lock is shared, so a worker that is
killed at any moment cannot block the others.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.events import Cancelled, Listener
from medseg.studies.runner import Outcome, run_cases

__all__ = ["Place", "Process", "run_on_devices"]

CaseT = TypeVar("CaseT")
CaseT_contra = TypeVar("CaseT_contra", contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

_ASK_EVERY_S = 0.1
_CANCEL_GRACE_S = 30.0
_END_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker works.

    Args:
        device: Name of its device, as it was given.
        threads: CPU threads it may use; the factory sets them, since this layer knows no torch.
        number: Which worker it is, from 0.
        name: For people: the device, with a number where several workers share its name.
    """

    device: str
    threads: int
    number: int
    name: str


class Process(Protocol[CaseT_contra, ResultT_co]):
    """What a worker does with one case, telling of it and asking whether to stop."""

    def __call__(self, case: CaseT_contra, listener: Listener, /) -> ResultT_co:
        """Do one case.

        Raises:
            Cancelled: If the listener asked to stop.
        """
        ...


def run_on_devices(
    cases: Iterable[CaseT],
    devices: Sequence[str],
    build: Callable[[Place], Process[CaseT, ResultT]],
    *,
    threads: int,
    listener: Listener,
) -> Iterator[Outcome[CaseT, ResultT]]:
    """Process cases in one new process per device; a failure is an outcome, not the end.

    A worker calls ``build`` once, then does case after case, so that a model is loaded once per
    device. No more workers are started than there are cases. What a case raises is reported as
    :func:`medseg.studies.runner.run_cases` reports it. A worker that dies (killed, crashed) ends
    the case it had, with the code ``worker-died``. It is replaced once, if work is left. Cases that
    no worker is left for end with the same code.

    Events of the workers reach ``listener`` in this process; where there are several devices, names
    of stages and figures and lines carry that of the worker. They arrive, and free workers get
    their next case, while the iterator is asked for its next outcome: long work on an outcome
    belongs into ``process``. An iterator that is left before its end should be closed
    (``contextlib.closing``), which ends the workers.

    As always with new processes, a script that calls this must do so under
    ``if __name__ == "__main__":``.

    Args:
        cases: What is to be done; picklable. Taken one by one, as workers become free.
        devices: One name per worker; the same name may stand there more than once.
        build: Makes what does one case; a picklable function, called in the worker. Workers are
            daemons: they may start threads and commands, but no processes of ``multiprocessing``.
        threads: CPU threads for all workers together; each gets an equal share, at least 1.
        listener: Hears everything, and is asked ten times a second whether to stop.

    Yields:
        One outcome per case, in the order in which they end.

    Raises:
        ConfigError: If no device is named or ``threads`` is below 1.
        MedsegError: What ``build`` raised in a worker; all others are ended.
        ResourceError: If ``build`` raised anything else. A worker that replaces another and cannot
            be built is noted instead.
        Cancelled: If the listener asked to stop. Workers are told at once and may end what they
            finish within 30 s; those outcomes come first.
    """
    if not devices:
        raise ConfigError(
            "devices",
            expected="at least one",
            found="none",
            remedy="name one, such as cpu",
            code="device-unknown",
        )
    if threads < 1:
        raise ConfigError(
            "threads",
            expected="at least 1",
            found=str(threads),
            remedy="leave it out to use the cores there are",
            code="config-value",
        )
    return _Pool(cases, devices, build, threads, listener).outcomes()


# What crosses the pipes. To a worker: ("case", case), ("cancel",), ("end",). To the parent:
# ("ready",), ("unbuilt", error), ("event", method, arguments), ("cancelled",) and
# ("outcome", result, code, message, seconds).
_Message = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class _Worker(Generic[CaseT]):
    """The parent's side of a worker."""

    place: Place
    process: SpawnProcess
    connection: Connection
    replaces: bool
    gone: bool = False
    ending: bool = False
    case: list[CaseT] = field(default_factory=list)  # one, or none: a case itself may be None
    began_s: float = 0.0


class _Pool(Generic[CaseT, ResultT]):
    """Workers, the cases that wait for them, and the outcomes that wait to be asked for."""

    def __init__(
        self,
        cases: Iterable[CaseT],
        devices: Sequence[str],
        build: Callable[[Place], Process[CaseT, ResultT]],
        threads: int,
        listener: Listener,
    ) -> None:
        self._source = iter(cases)
        self._waiting: deque[CaseT] = deque()
        self._build = build
        self._listener = listener
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker[CaseT]] = []
        self._ended: deque[Outcome[CaseT, ResultT]] = deque()
        self._cancelling_s: float | None = None
        self._unbuilt: MedsegError | None = None
        self._devices = list(devices)
        self._threads = threads

    def outcomes(self) -> Iterator[Outcome[CaseT, ResultT]]:
        """See :func:`run_on_devices`."""
        try:
            self._start_workers()
            while self._workers:
                self._listen()
                while self._ended:
                    yield self._ended.popleft()
                if self._unbuilt is not None:
                    raise self._unbuilt
                self._ask()
            while self._cancelling_s is None and self._work_is_left():
                yield _died(self._waiting.popleft(), "no worker was left for this case", 0.0)
            if self._cancelling_s is not None:
                raise Cancelled
        finally:
            self._end_all()

    def _start_workers(self) -> None:
        # no worker without work: draw as many cases as there are devices
        while len(self._waiting) < len(self._devices) and self._draw():
            pass
        devices = self._devices = self._devices[: len(self._waiting)]
        share = max(1, self._threads // max(1, len(devices)))
        for number, device in enumerate(devices):
            twin = devices.count(device) > 1
            name = f"{device} #{devices[:number].count(device) + 1}" if twin else device
            self._start(Place(device, share, number, name), replaces=False)

    def _draw(self) -> bool:
        for case in self._source:
            self._waiting.append(case)
            return True
        return False

    def _work_is_left(self) -> bool:
        return bool(self._waiting) or self._draw()

    def _start(self, place: Place, *, replaces: bool) -> None:
        ours, theirs = self._context.Pipe()
        # a daemon, so that none outlives a parent that ends without asking for more outcomes
        process = self._context.Process(
            target=_serve,
            args=(self._build, place, theirs),
            name=f"medseg {place.name}",
            daemon=True,
        )
        worker = _Worker[CaseT](place, process, ours, replaces)
        try:
            with theirs, _interrupts_held():
                process.start()
                self._workers.append(worker)
        except BaseException:
            ours.close()
            raise

    def _listen(self) -> None:
        """Take what workers sent within a tenth of a second, and note who died."""
        sources = [worker.connection for worker in self._workers]
        sentinels = [worker.process.sentinel for worker in self._workers]
        heard = set(wait([*sources, *sentinels], timeout=_ASK_EVERY_S))
        for worker in list(self._workers):
            if worker.connection in heard or worker.process.sentinel in heard:
                self._take_messages(worker)
            if worker.gone:
                self._bury(worker)

    def _take_messages(self, worker: _Worker[CaseT]) -> None:
        """Read one message, so that no worker keeps the others waiting; of a dead one, all."""
        worker.gone = not worker.process.is_alive()
        try:
            while worker.connection.poll():
                self._take(worker, worker.connection.recv())
                if not worker.gone:
                    return
        except (EOFError, OSError):
            worker.gone = True

    def _take(self, worker: _Worker[CaseT], message: _Message) -> None:
        kind, *content = message
        if kind == "event":
            self._tell(worker, *content)
            return
        if kind == "unbuilt":
            worker.ending = True
            if worker.replaces:
                self._listener.noted(f"the worker could not be replaced: {content[0]}")
            else:
                self._unbuilt = content[0]
            return
        if kind == "outcome":
            pickled, code, text, seconds = content
            result = None if pickled is None else ForkingPickler.loads(pickled)
            self._ended.append(Outcome(worker.case.pop(), result, code, text, seconds))
        if kind == "cancelled":
            worker.case.clear()
        if not worker.gone:
            self._hand_out(worker)

    def _hand_out(self, worker: _Worker[CaseT]) -> None:
        if self._cancelling_s is not None or not self._work_is_left():
            worker.ending = True
            with suppress(OSError):
                worker.connection.send(("end",))
            return
        # pickled before the worker counts as busy: what cannot be pickled is the caller's mistake
        message = ForkingPickler.dumps(("case", self._waiting[0]))
        worker.began_s = time.perf_counter()
        try:
            worker.connection.send_bytes(message)
        except OSError:
            # dead before it heard of the case, which stays for another
            worker.gone = True
            return
        worker.case.append(self._waiting.popleft())

    def _bury(self, worker: _Worker[CaseT]) -> None:
        self._workers.remove(worker)
        worker.process.join(_END_GRACE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        if worker.ending:
            return
        cause = _cause_of_death(worker.process.exitcode)
        if worker.case:
            took_s = time.perf_counter() - worker.began_s
            where = f"the worker on {worker.place.name}"
            self._ended.append(_died(worker.case[0], f"{where} {cause}", took_s))
        if self._cancelling_s is None and not worker.replaces and self._work_is_left():
            self._listener.noted(f"the worker on {worker.place.name} {cause}; it is replaced")
            self._start(worker.place, replaces=True)
        else:
            self._listener.noted(f"the worker on {worker.place.name} {cause}")

    def _tell(self, worker: _Worker[CaseT], method: str, arguments: tuple[Any, ...]) -> None:
        first, *rest = arguments
        if len(self._devices) > 1:
            first = f"{worker.place.name}: {first}"
        getattr(self._listener, method)(first, *rest)

    def _ask(self) -> None:
        """Pass on the wish to stop; who does not follow in time is left to be ended."""
        if self._cancelling_s is None and self._listener.cancelled():
            self._cancelling_s = time.monotonic()
            for worker in self._workers:
                if worker.case:
                    with suppress(OSError):
                        worker.connection.send(("cancel",))
                else:
                    worker.ending = True
                    worker.process.terminate()
        if (
            self._cancelling_s is not None
            and time.monotonic() - self._cancelling_s > _CANCEL_GRACE_S
        ):
            raise Cancelled

    def _end_all(self) -> None:
        """Leave no process behind: asked to clean up and go, then killed."""
        for worker in self._workers:
            worker.process.terminate()
        ends_s = time.monotonic() + _END_GRACE_S
        for worker in self._workers:
            worker.process.join(max(0.0, ends_s - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers.clear()


def _died(case: CaseT, message: str, seconds: float) -> Outcome[CaseT, Any]:
    return Outcome(case, None, "worker-died", message, seconds)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode == 128 + signal.SIGTERM:
        return "was ended by SIGTERM"
    if exitcode is not None and exitcode < 0:
        with suppress(ValueError):
            name = signal.Signals(-exitcode).name
            hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            return f"was ended by {name}{hint}"
    return f"ended with exit code {exitcode}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C waiting while a process is born: the child inherits that it does not hear it.

    Ctrl-C reaches all processes of a terminal; only the parent shall act on it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # started by the first process otherwise, and it would let Ctrl-C through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Reporting:
    """The listener in a worker: tells the parent, and hears from it whether to stop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stops = False
        # an engine may tell of its progress from another thread
        self._lock = threading.Lock()

    def started(self, stage: str, total: int) -> None:
        self._tell("started", stage, total)

    def advanced(self, stage: str, done: int) -> None:
        self._tell("advanced", stage, done)

    def measured(self, name: str, value: float) -> None:
        self._tell("measured", name, value)

    def noted(self, message: str) -> None:
        self._tell("noted", message)

    def cancelled(self) -> bool:
        """Whether the parent wants to stop, or is gone."""
        with self._lock:
            try:
                while not self._stops and self._connection.poll():
                    # between a case and its outcome the parent says nothing else
                    self._connection.recv()
                    self._stops = True
            except (EOFError, OSError):
                self._stops = True
            return self._stops

    def _tell(self, method: str, *arguments: object) -> None:
        self.send(("event", method, arguments))

    def send(self, message: _Message) -> None:
        content = ForkingPickler.dumps(message)
        with self._lock:
            try:
                self._connection.send_bytes(content)
            except OSError:
                # the parent is gone; nobody would hear of the rest
                raise SystemExit(1) from None


def _serve(
    build: Callable[[Place], Process[CaseT, ResultT]], place: Place, connection: Connection
) -> None:
    """The worker: build once, then case after case until told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # an exception, so that half-written files are removed on the way out
    signal.signal(signal.SIGTERM, _leave)
    parent = _Reporting(connection)
    try:
        process = build(place)
    except MedsegError as error:
        parent.send(("unbuilt", error))
        return
    except Exception as error:
        parent.send(("unbuilt", _unbuilt(place, error)))
        return
    parent.send(("ready",))
    while True:
        try:
            kind, *content = connection.recv()
        except (EOFError, OSError):
            return
        if kind != "case":
            return
        parent.send(_attempt(process, content[0], parent))


def _attempt(process: Process[CaseT, ResultT], case: CaseT, listener: Listener) -> _Message:
    """Do one case and say how it ended, in a form that is sure to be pickled."""
    stopped = False

    def once(case: CaseT) -> bytes | None:
        nonlocal stopped
        try:
            # pickled here, where what cannot be becomes this case's failure
            return bytes(ForkingPickler.dumps(process(case, listener)))
        except Cancelled:
            stopped = True
            return None

    (outcome,) = run_cases([case], once)
    if stopped:
        return ("cancelled",)
    return ("outcome", outcome.result, outcome.code, outcome.message, outcome.seconds)


def _unbuilt(place: Place, error: Exception) -> MedsegError:
    return ResourceError(
        f"worker on {place.name}",
        expected="one that starts",
        found=f"an unexpected {type(error).__name__}",
        remedy="please report it",
        code="worker-start",
    )


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)
