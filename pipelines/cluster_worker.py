"""One device of a cluster: the models on it, and the cases that it has in hand.

An object of this class lives in a process of its own on some node; whoever has the ledger calls its
methods from another machine. It never opens the ledger. Nothing is raised here and nothing printed:
a cluster keeps in its logs what its processes raise and print.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.dicom_quiet import quiet_dicom
from medseg.studies.devices import Place
from medseg.studies.ledger_rows import CaseRow, Ending, Output
from medseg.studies.reviews import Review
from medseg.studies.runner import Outcome, run_cases
from pipelines.batch import Job, settings_of
from pipelines.infer import Case
from pipelines.output import prepare_output
from pipelines.predict import load_predictor
from pipelines.workbench import Earlier, Task, Workbench

__all__ = ["DeviceWorker", "Probe", "Reply"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A file in the output folder, by which a node shows that it sees the same folder.

    Args:
        name: Of the file.
        content: What it holds.
    """

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a step of a case.

    Args:
        kind: ``complete``: nothing has to be done; ``earlier``: results may be taken over;
            ``due``, ``read``, ``worked``: the next step may be asked for; ``ended``: see
            ``ending``; ``cancelled``: it was let go undone.
        stamp: Sizes and times of the files of a complete case.
        earlier: The results that may be taken over.
        ending: How it ended.
        reason: Why no further case can be done here; then this one is to be given back.
        names: Kind and name of every file that writing may leave.
        note: What is to be said of a case that is left as it is.
    """

    kind: Literal["complete", "earlier", "due", "read", "worked", "ended", "cancelled"]
    stamp: str = ""
    earlier: tuple[Earlier, ...] = ()
    ending: Ending | None = None
    reason: MedsegError | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class _Stoppable(Silent):
    """A listener that asks the caller of :meth:`DeviceWorker.stop`."""

    def __init__(self) -> None:
        self.stops = threading.Event()

    def cancelled(self) -> bool:
        """Whether to stop."""
        return self.stops.is_set()


@dataclass(slots=True, eq=False)
class _Held:
    task: Task
    content: Any = None
    seconds: float = 0.0


class DeviceWorker:
    """Does cases on one device, one step per call; see :class:`Reply`.

    Steps of several cases may be asked for at once, each kind in threads of its own; ``work`` in a
    single one.

    Args:
        job: The run, with absolute paths.
        place: The device.
        probe: What has to lie in the output folder.
    """

    def __init__(self, job: Job, place: Place, probe: Probe) -> None:
        self._listener = _Stoppable()
        self._held: dict[int, _Held] = {}
        self._admitting = threading.Lock()
        self._refused: MedsegError | None = None
        self._stack = ExitStack()
        self._stack.enter_context(_silence())
        try:
            self._bench = _bench(job, place, probe, self._listener)
            self._stack.callback(self._bench.close)
        except MedsegError as error:
            self._refused = error
        except Exception as error:
            self._refused = ResourceError(
                place.name,
                expected="a node that can load the models",
                found=f"an unexpected {type(error).__name__}",
                remedy="please report it",
                code="worker-start",
            )

    def refused(self) -> MedsegError | None:
        """Why this device cannot be used; None if it is ready."""
        return self._refused

    def stop(self) -> None:
        """Begin nothing more; end the case in hand after its window."""
        self._listener.stops.set()
        self._bench.flight.close()

    def close(self) -> None:
        """Let the models go."""
        self._stack.close()

    def check(
        self,
        row: CaseRow,
        channels: Mapping[str, str],
        outputs: Sequence[Output],
        take_over: bool,
        review: Review | None,
    ) -> Reply:
        """Take a case in hand and find out whether it has to be done.

        Args:
            row: The case as the ledger has it.
            channels: Channel name to absolute path.
            outputs: Its files as the ledger has them.
            take_over: Whether results that the ledger does not know may be taken over.
            review: What was said last of its result.
        """
        paths = {name: Path(path) for name, path in channels.items()}
        held = self._held[row.number] = _Held(
            Task(row, Case(row.name, paths), outputs, review=review)
        )

        def check(task: Task) -> Reply:
            checked = self._bench.check(task)
            if checked.complete:
                return Reply("complete", stamp=task.stamp or "", note=checked.note)
            if checked.earlier and take_over:
                return Reply("earlier", earlier=checked.earlier)
            self._bench.make_way(task)
            return Reply("due")

        reply = self._step(held, check)
        if reply.kind in ("complete", "earlier"):
            self.forget(row.number)
        return reply

    def read(self, number: int, last: bool) -> Reply:
        """Read a case, once there is room for it.

        Args:
            number: The case.
            last: Whether no other case is expected after it.
        """
        held = self._held[number]
        held.task.begun = True
        if last:
            self._bench.flight.last()
        with self._admitting:  # one that must be alone keeps the next from coming in before it
            may = self._bench.admit(held.task)
        if not may:
            self.forget(number)
            return Reply("cancelled")

        def read(task: Task) -> Reply:
            held.content = self._bench.read(task)
            return Reply("read")

        return self._step(held, read)

    def work(self, number: int) -> Reply:
        """Segment a case that was read."""
        held = self._held[number]

        def work(task: Task) -> Reply:
            if self._listener.cancelled():
                raise Cancelled
            held.content = self._bench.work(task, held.content)
            return Reply("worked", names=self._bench.result_names(task))

        return self._step(held, work)

    def write(self, number: int) -> Reply:
        """Write a case that was segmented."""
        held = self._held[number]

        def write(task: Task) -> Reply:
            result = self._bench.write(task, held.content)
            return self._ended(Outcome(task, result, None, None, 0.0))

        reply = self._step(held, write)
        ending = reply.ending
        if ending is not None and ending.state != "failed":
            reply = replace(reply, ending=replace(ending, seconds=held.seconds))
            self.forget(number)
        return reply

    def forget(self, number: int) -> None:
        """Let a case go."""
        held = self._held.pop(number, None)
        if held is not None:
            self._bench.let_go(held.task)

    def _step(self, held: _Held, step: Callable[[Task], Reply]) -> Reply:
        number = held.task.row.number
        try:
            (outcome,) = run_cases([held.task], step)
        except Cancelled:
            self.forget(number)
            return Reply("cancelled")
        held.seconds += outcome.seconds
        if outcome.result is not None:
            return outcome.result
        reply = self._ended(replace(outcome, seconds=held.seconds))
        self.forget(number)
        return reply

    def _ended(self, outcome: Outcome[Task, Any]) -> Reply:
        reason = self._bench.reason_to_stop(outcome.code)
        if reason is not None:
            return Reply("ended", reason=reason)
        return Reply("ended", ending=self._bench.ending(outcome))


def _bench(job: Job, place: Place, probe: Probe, listener: _Stoppable) -> Workbench:
    """Prove that this node has what it needs, and load the models.

    Raises:
        MedsegError: If it has not.
    """
    out = job.order.out
    try:
        seen = (out / probe.name).read_text(encoding="ascii")
    except (OSError, ValueError):
        seen = None
    if seen != probe.content:
        raise ResourceError(
            str(out),
            expected=f"the output folder to be the same on {place.name}",
            found="none, or another one",
            remedy="put it on a file system that every node has mounted under that path",
            code="cluster-out-unseen",
        )
    prepare_output(out)
    settings, _ = settings_of(job.order)
    if settings != job.settings:
        raise ConfigError(
            place.name,
            expected="the release of medseg and the models of the command",
            found="others",
            remedy="install the same on every node, and keep models where all nodes see them",
            code="cluster-node-differs",
        )
    return Workbench(job, load_predictor(job.order, place), listener)


@contextmanager
def _silence() -> Iterator[None]:
    """Let no library write what a log would keep."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with quiet_dicom():
            yield
    finally:
        logging.disable(before)
