"""The work of one process on a run: cases out of the ledger, through the model, back into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from medseg.errors import FormatError, MedsegError, ResourceError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.fingerprint import fingerprint, stamp
from medseg.studies.flight import Flight
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import CaseRow, Ending, Output
from medseg.studies.liveness import BEAT_EVERY_S, Watch
from medseg.studies.overlap import run_overlapped
from medseg.studies.runner import Outcome
from pipelines.batch import Job, vanished
from pipelines.discovery import expected_bytes
from pipelines.infer import (
    Case,
    CaseResult,
    Loaded,
    Segmented,
    mask_files,
    predict_case,
    read_case,
    write_case,
)
from pipelines.output import prepare_output
from pipelines.redaction import without_paths
from pipelines.result_names import RESULTS, earlier_results, mask_names, results_exist

__all__ = ["SET_ASIDE", "work_on_share"]

SET_ASIDE = "set-aside"
"""Folder for results that somebody changed and that a new run would replace."""

MOST_DEATHS = 3
_SHARE_OF_MEMORY = 0.25
_POLL_S = 0.5
_INPUT_CODES = frozenset({"file-missing", "input-unreadable", "not-a-folder"})
_THUMBNAIL_PX = 72


@dataclass(slots=True, eq=False)
class _Task:
    """A case while this process has it."""

    row: CaseRow
    case: Case
    stamp: str | None = None
    fingerprint: str | None = None
    loaded: Loaded | None = None
    notes: list[str] = field(default_factory=list)
    begun: bool = False
    settled: bool = False
    thumbnail: bytes | None = None


def work_on_share(job: Job, ledger: Ledger, predictor: Predictor, listener: Listener) -> None:
    """Take cases of a run until none is left.

    Raises:
        MedsegError: If the whole run has to stop.
        Cancelled: If the listener asked to stop.
    """
    jobs = job.order.jobs
    limit = job.order.settings.max_ram_bytes or psutil.virtual_memory().available
    flight = Flight(1 + 2 * jobs, int(_SHARE_OF_MEMORY * limit))
    token = ledger.enlist(job.run)
    try:
        # in threads that read and write at once, what one library says could quote a patient
        with _beating(ledger, token), quiet_dicom():
            steps = _Steps(job, ledger, token, predictor, flight, listener)
            outcomes = run_overlapped(steps, flight, readers=jobs, writers=jobs, listener=listener)
            with contextlib.closing(outcomes):  # type: ignore[type-var]
                for number, _ in enumerate(outcomes, 1):
                    listener.advanced("cases", number)
    finally:
        predictor.elsewhere = None
        with suppress(MedsegError):  # whatever ended the work is told, not this
            ledger.dismiss(token)


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
        self,
        job: Job,
        ledger: Ledger,
        token: str,
        predictor: Predictor,
        flight: Flight,
        listener: Listener,
    ) -> None:
        self._job = job
        self._order = job.order
        self._ledger = ledger
        self._token = token
        self._predictor = predictor
        self._flight = flight
        self._listener = listener
        self._watch = Watch()

    def claim(self) -> _Task | None:
        """The next case; waits for those that other runs hold."""
        while not self._listener.cancelled():
            found = self._ledger.claim(self._job.run, self._token)
            if found is not None:
                row, channels = found
                if not self._ledger.has_left(self._job.run):
                    self._flight.last()
                paths = {name: Path(path) for name, path in channels.items()}
                return _Task(row, Case(row.name, paths))
            if not self._ledger.has_left(self._job.run):
                return None
            if not self._ledger.recover(self._watch):
                time.sleep(_POLL_S)
        return None

    def admit(self, task: _Task) -> bool:
        """Wait for room; a case at which a process died is alone, so that it spoils no other."""
        return self._flight.enter(
            task.row.number, expected_bytes(task.case), alone=task.row.deaths > 0
        )

    def read(self, task: _Task) -> Loaded | None:
        """Prove that it is complete, or read it."""
        row, case = task.row, task.case
        if self._settled_by_another(row):
            task.settled = True
            return None
        if row.deaths >= MOST_DEATHS:
            raise _too_deadly(case.name, row.deaths)
        task.stamp = stamp(case.channels)
        if not self._order.overwrite and self._is_complete(task):
            self._ledger.confirm(row.number, self._token, task.stamp, _texts(case))
            task.settled = True
            return None
        if task.fingerprint is None:
            task.fingerprint = fingerprint(case.channels)
        self._make_way(task)
        self._ledger.begin(row.number, self._token, _texts(case))
        task.begun = True
        loaded = task.loaded = read_case(case, self._predictor.card, self._order.picking)
        if stamp(case.channels) != task.stamp:
            raise FormatError(
                str(next(iter(case.channels.values()))),
                expected="an image that stays as it is while it is read",
                found="one that changed",
                remedy="wait until it is there as a whole and run the same command again",
                code="input-changed",
            )
        self._flight.move(row.number, "ready", loaded.bytes)
        return loaded

    def work(self, task: _Task, loaded: Loaded) -> Segmented:
        """Segment it."""
        number = task.row.number
        self._flight.move(number, "working", loaded.bytes)
        self._predictor.elsewhere = lambda: self._flight.promise(number)
        if self._order.wishes.probabilities:
            kind = "probabilities"
            self._ledger.announce(number, {kind: f"{task.case.name}{RESULTS[kind]}"})
        try:
            return self._segmented(loaded)
        except ResourceError as error:
            if error.code != "memory-limit":
                raise
            with self._flight.quiet():  # perhaps it fits once the others are out of the way
                return self._segmented(loaded)

    def _segmented(self, loaded: Loaded) -> Segmented:
        return predict_case(
            loaded,
            self._predictor,
            self._order.out,
            listener=self._listener,
            wishes=self._order.wishes,
            roi=self._order.roi,
        )

    def write(self, task: _Task, segmented: Segmented) -> CaseResult:
        """Write it."""
        self._flight.move(task.row.number, "writing", segmented.bytes)
        names = {kind: f"{task.case.name}{end}" for kind, end in RESULTS.items()}
        if self._order.wishes.masks:
            names |= mask_names(task.case.name, self._predictor.card.scheme())
        self._ledger.announce(task.row.number, names)
        result = write_case(segmented, self._predictor, self._order.out, wishes=self._order.wishes)
        task.thumbnail = _thumbnail(segmented)
        return result

    def ended(self, outcome: Outcome[_Task, Any]) -> None:
        """Enter it in the ledger; stop the run if no case can go on."""
        task = outcome.case
        if task.settled:
            if task.stamp is None:
                self._ledger.release(task.row.number, self._token)
            self._let_go(task)
            return
        reason = self._reason_to_stop(outcome)
        if reason is not None:
            self.give_back(task, None)
            raise reason
        ending = self._ending(outcome)
        self._ledger.finish(task.row.number, self._token, self._job.settings, ending)
        self._let_go(task)
        for note in ending.details.get("notes", ()):
            self._listener.noted(f"{task.case.name}: {note}")
        if ending.code is not None:
            self._listener.noted(f"{task.case.name}: {ending.message} [{ending.code}]")

    def give_back(self, task: _Task, _content: object) -> None:
        """Leave it to the next run."""
        self._ledger.release(task.row.number, self._token)
        self._let_go(task)

    def _let_go(self, task: _Task) -> None:
        if task.loaded is not None:
            task.loaded.close()
            task.loaded = None
        self._flight.leave(task.row.number)

    def _settled_by_another(self, row: CaseRow) -> bool:
        """Whether another process did it, with the same settings, since this run began."""
        return row.turn > self._job.since and row.settings == self._job.settings

    def _is_complete(self, task: _Task) -> bool:
        """Whether image, settings and results are proven to be those of a finished case."""
        row, out = task.row, self._order.out
        if row.state != "done" or row.settings != self._job.settings:
            return False
        outputs = self._ledger.outputs(row.number)
        for output in outputs:
            path = out / output.name
            if not path.is_file() or path.stat().st_size != output.bytes:
                return False
        if not (self._order.trust_times and row.stamp == task.stamp):
            task.fingerprint = fingerprint(task.case.channels)
            if task.fingerprint != row.fingerprint:
                return False
        return bool(outputs) and all(_sha256(out / one.name) == one.sha256 for one in outputs)

    def _make_way(self, task: _Task) -> None:
        """See that nobody's work is replaced: neither what is not ours, nor what was changed."""
        masks = mask_files(task.case, self._predictor, self._order.wishes)
        there = earlier_results(task.case.name, self._order.out, masks)
        if self._order.overwrite or not there:
            return
        row = task.row
        known = {output.name: output for output in self._ledger.outputs(row.number)}
        foreign = [path for path in there if path.name not in known]
        if foreign:
            raise results_exist(foreign[0])
        moved = row.channels != _texts(task.case)
        if moved and row.fingerprint not in (None, task.fingerprint):
            raise results_exist(there[0])
        for path in there:
            output = known[path.name]
            if output.sha256 and _sha256(path) != output.sha256:
                task.notes.append(_put_aside(path))

    def _reason_to_stop(self, outcome: Outcome[_Task, Any]) -> MedsegError | None:
        """Why every further case would fail as well."""
        if outcome.code == "disk-full":
            return ResourceError(
                str(self._order.out),
                expected="free space",
                found="a full disk",
                remedy="free some and run the same command again: it goes on where it stopped",
                code="disk-full",
            )
        if outcome.code == "output-unwritable":
            try:
                prepare_output(self._order.out)
            except MedsegError as error:
                return error
        if outcome.code in _INPUT_CODES:
            return vanished(self._job.roots)
        return None

    def _ending(self, outcome: Outcome[_Task, Any]) -> Ending:
        task = outcome.case
        # what was refused before it began says nothing about the results that are there
        was = task.stamp if task.begun else None
        image = task.fingerprint if task.begun else None
        result: CaseResult | None = outcome.result
        if result is None:
            message = self._shown(outcome.message or "", task.case)
            details = {"notes": task.notes}
            return Ending(
                "failed",
                outcome.seconds,
                outcome.code,
                message,
                stamp=was,
                fingerprint=image,
                details=details,
            )
        code, told = result.refused if result.refused is not None else (None, None)
        return Ending(
            "done" if code is None else "incomplete",
            outcome.seconds,
            code,
            None if told is None else self._shown(told, task.case),
            stamp=was,
            fingerprint=image,
            outputs=[
                Output(kind, path.name, path.stat().st_size, _sha256(path))
                for kind, path in result.files.items()
            ],
            volumes_ml=result.volumes_ml,
            details={
                "notes": [*task.notes, *(self._shown(note, task.case) for note in result.notes)],
                "stages": {stage: round(value, 4) for stage, value in result.seconds.items()},
                "predicted_ram_bytes": result.predicted_ram_bytes,
                "measured_ram_bytes": result.peak_ram_bytes,
            },
            thumbnail=task.thumbnail,
        )

    def _shown(self, text: str, case: Case) -> str:
        if self._order.wishes.log_paths:
            return text
        text = text.replace(f"{self._order.out}{os.sep}", "")
        return without_paths(text, case.name, case.channels)


def _texts(case: Case) -> Mapping[str, str]:
    return {name: os.fspath(path) for name, path in case.channels.items()}


def _too_deadly(name: str, deaths: int) -> ResourceError:
    return ResourceError(
        name,
        expected="a case that can be worked on",
        found=f"one at which the process was killed {deaths} times, perhaps as memory ran out",
        remedy="give more memory, or --max-memory, and send it back with `medseg studies retry`",
        code="worker-died",
    )


def _put_aside(path: Path) -> str:
    """Keep a result that somebody changed, beside those of the run."""
    folder = path.parent / SET_ASIDE
    folder.mkdir(exist_ok=True)
    kept = folder / f"{_sha256(path)[:8]}_{path.name}"
    path.replace(kept)
    return f"{path.name} was changed after it was made; it is kept as {SET_ASIDE}/{kept.name}"


def _thumbnail(segmented: Segmented) -> bytes | None:
    from medseg.studies.preview import Scene  # noqa: PLC0415 - pulls in Pillow

    labels = segmented.prediction.labels
    try:
        scene = Scene.of(segmented.loaded.scan.volume, labels)
        values = [label.value for label in scene.labels if scene.counts[label.value][0].any()]
        if values:
            return scene.planes_round(values, panel_px=_THUMBNAIL_PX)
        axis = scene.to_ras.source_axes[2]
        middle = labels.grid.shape_ijk[axis] // 2
        return scene.heat_slice(None, axis, middle, panel_px=_THUMBNAIL_PX)
    except Exception:  # a picture for the index is not worth a case
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
