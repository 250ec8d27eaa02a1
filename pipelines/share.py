"""The work of one process on a run: cases out of the ledger, through the model, back into it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.io.dicom_quiet import quiet_dicom
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import CaseRow, Ending
from medseg.studies.liveness import BEAT_EVERY_S, Watch
from medseg.studies.overlap import run_overlapped
from medseg.studies.reviews import latest_review
from medseg.studies.runner import Outcome
from pipelines.batch import Job
from pipelines.infer import Case, CaseResult, Loaded, Segmented
from pipelines.result_names import RESULTS
from pipelines.workbench import Task, Workbench, texts

__all__ = ["settled_by_another", "tell_ending", "work_on_share"]

_POLL_S = 0.5


def work_on_share(job: Job, ledger: Ledger, predictor: Predictor, listener: Listener) -> None:
    """Take cases of a run until none is left.

    Raises:
        MedsegError: If the whole run has to stop.
        Cancelled: If the listener asked to stop.
    """
    jobs = job.order.jobs
    bench = Workbench(job, predictor, listener)
    token = ledger.enlist(job.run)
    try:
        # in threads that read and write at once, what one library says could quote a patient
        with _beating(ledger, token), quiet_dicom():
            steps = _Steps(job, ledger, token, bench, listener)
            outcomes = run_overlapped(
                steps, bench.flight, readers=jobs, writers=jobs, listener=listener
            )
            with contextlib.closing(outcomes):  # type: ignore[type-var]
                for number, _ in enumerate(outcomes, 1):
                    listener.advanced("cases", number)
    finally:
        bench.close()
        with suppress(MedsegError):  # whatever ended the work is told, not this
            ledger.dismiss(token)


def settled_by_another(job: Job, row: CaseRow) -> bool:
    """Whether another process did a case, with the same settings, since this run began."""
    return row.turn > job.since and row.settings == job.settings


def tell_ending(listener: Listener, name: str, ending: Ending) -> None:
    """Say what is to be said of a case that ended."""
    for note in ending.details.get("notes", ()):
        listener.noted(f"{name}: {note}")
    if ending.code is not None:
        listener.noted(f"{name}: {ending.message} [{ending.code}]")


@contextmanager
def _beating(ledger: Ledger, token: str) -> Iterator[None]:
    """Say now and then that this process lives, and look whether others do."""
    ends = threading.Event()

    def beat() -> None:
        watch = Watch()
        while not ends.wait(BEAT_EVERY_S):
            with suppress(MedsegError):  # the next step of a case tells
                ledger.beat(token)
                ledger.recover(watch)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


class _Steps:
    """See :class:`medseg.studies.overlap.Steps`."""

    def __init__(
        self, job: Job, ledger: Ledger, token: str, bench: Workbench, listener: Listener
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._token = token
        self._bench = bench
        self._listener = listener
        self._watch = Watch()

    def claim(self) -> Task | None:
        """The next case; waits for those that other runs hold."""
        while not self._listener.cancelled():
            found = self._ledger.claim(self._job.run, self._token)
            if found is not None:
                row, channels = found
                if not self._ledger.has_left(self._job.run):
                    self._bench.flight.last()
                paths = {name: Path(path) for name, path in channels.items()}
                return Task(
                    row,
                    Case(row.name, paths),
                    self._ledger.outputs(row.number),
                    review=latest_review(self._ledger, row.number),
                )
            if not self._ledger.has_left(self._job.run):
                return None
            if not self._ledger.recover(self._watch):
                time.sleep(_POLL_S)
        return None

    def admit(self, task: Task) -> bool:
        """Wait for room."""
        return self._bench.admit(task)

    def read(self, task: Task) -> Loaded | None:
        """Prove that it is complete, or read it."""
        number, channels = task.row.number, texts(task.case)
        if settled_by_another(self._job, task.row):
            task.settled = True
            return None
        checked = self._bench.check(task)
        if checked.complete:
            self._ledger.confirm(number, self._token, task.stamp or "", channels)
            task.settled = True
            if checked.note:
                self._listener.noted(checked.note)
            return None
        for one in checked.earlier:
            if self._ledger.adopt(
                number, self._token, one.name, self._job.settings, one.ending, channels
            ):
                task.settled = True
                return None
        self._bench.make_way(task)
        self._ledger.begin(number, self._token, channels)
        task.begun = True
        return self._bench.read(task)

    def work(self, task: Task, loaded: Loaded) -> Segmented:
        """Segment it."""
        if self._job.order.wishes.probabilities:
            kind = "probabilities"
            self._ledger.announce(task.row.number, {kind: f"{task.case.name}{RESULTS[kind]}"})
        return self._bench.work(task, loaded)

    def write(self, task: Task, segmented: Segmented) -> CaseResult:
        """Write it."""
        self._ledger.announce(task.row.number, self._bench.result_names(task))
        return self._bench.write(task, segmented)

    def ended(self, outcome: Outcome[Task, Any]) -> None:
        """Enter it in the ledger; stop the run if no case can go on."""
        task = outcome.case
        if task.settled:
            if task.stamp is None:
                self._ledger.release(task.row.number, self._token)
            self._bench.let_go(task)
            return
        reason = self._bench.reason_to_stop(outcome.code)
        if reason is not None:
            self.give_back(task, None)
            raise reason
        ending = self._bench.ending(outcome)
        self._ledger.finish(task.row.number, self._token, self._job.settings, ending)
        self._bench.let_go(task)
        tell_ending(self._listener, task.case.name, ending)

    def give_back(self, task: Task, _content: object) -> None:
        """Leave it to the next run."""
        self._ledger.release(task.row.number, self._token)
        self._bench.let_go(task)
