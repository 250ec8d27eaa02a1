"""What is done with one case of a run, step by step. Nothing here knows the ledger.

Whoever has the ledger asks for one step after the other and notes what came of it: in threads of
its own (:mod:`pipelines.share`), or from another machine (:mod:`pipelines.cluster`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.io.fingerprint import fingerprint, stamp
from medseg.studies.doubt import DOUBT_DETAIL, Doubt, read_doubt
from medseg.studies.flight import Flight
from medseg.studies.ledger_rows import CaseRow, Ending, Output
from medseg.studies.reviews import Review, result_sha256
from medseg.studies.runner import Outcome
from pipelines.batch import Job, vanished
from pipelines.discovery import expected_bytes
from pipelines.earlier import file_sha256, proven_ending
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
from pipelines.redaction import message_of
from pipelines.result_names import RESULTS, earlier_results, mask_names, results_exist

__all__ = ["SET_ASIDE", "Checked", "Earlier", "Task", "Workbench", "check_deaths", "texts"]

SET_ASIDE = "set-aside"
"""Folder for results that somebody changed and that a new run would replace."""

MOST_DEATHS = 3
_SHARE_OF_MEMORY = 0.25
_INPUT_CODES = frozenset({"file-missing", "input-unreadable", "not-a-folder"})
_THUMBNAIL_PX = 128


@dataclass(slots=True, eq=False)
class Task:
    """A case while this process has it.

    Attributes:
        row: What the ledger had of it when it was handed out.
        case: Its name and paths.
        outputs: The files that the ledger had of it.
        stamp: Sizes and times of its files.
        fingerprint: Of its images.
        loaded: What was read, until it is let go.
        notes: What a careful reader should know, besides what the results tell.
        begun: Whether the ledger was told that work on it began.
        settled: Whether nothing has to be entered in the ledger.
        written: The files that were made.
        thumbnail: A small picture.
        review: What was said last of the result that is there.
        doubt: How doubtful the new result is, where that was asked for.
    """

    row: CaseRow
    case: Case
    outputs: Sequence[Output] = ()
    stamp: str | None = None
    fingerprint: str | None = None
    loaded: Loaded | None = None
    notes: list[str] = field(default_factory=list)
    begun: bool = False
    settled: bool = False
    written: Sequence[Output] = ()
    thumbnail: bytes | None = None
    review: Review | None = None
    doubt: Doubt | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """Results of an earlier run that the ledger does not know, and that are proven.

    Args:
        name: Their stem.
        ending: How the case ended.
    """

    name: str
    ending: Ending


@dataclass(frozen=True, slots=True)
class Checked:
    """What has to be done with a case.

    Args:
        complete: Whether nothing has: image, settings and results are those of the ledger.
        earlier: Results that may be taken over instead of doing it.
        note: What is to be said of a case that is left as it is; empty for nothing.
    """

    complete: bool = False
    earlier: tuple[Earlier, ...] = ()
    note: str = ""


class Workbench:
    """The steps of a case; each may be called from another thread.

    Args:
        job: The run.
        predictor: The loaded models.
        listener: Told of progress, asked whether to stop.
    """

    def __init__(self, job: Job, predictor: Predictor, listener: Listener) -> None:
        self._job = job
        self._order = job.order
        self._predictor = predictor
        self._listener = listener
        self._out = job.order.out
        self._place = _place(self._out)
        limit = job.order.settings.max_ram_bytes or psutil.virtual_memory().available
        self.flight = Flight(1 + 2 * job.order.jobs, int(_SHARE_OF_MEMORY * limit))

    def admit(self, task: Task) -> bool:
        """Wait for room; a case at which a process died is alone, so that it spoils no other."""
        return self.flight.enter(
            task.row.number, expected_bytes(task.case), alone=task.row.deaths > 0
        )

    def check(self, task: Task) -> Checked:
        """Find out whether a case has to be done; nothing is changed.

        Raises:
            MedsegError: If its files cannot be read.
        """
        check_deaths(task)
        task.stamp = stamp(task.case.channels)
        if self._order.overwrite:
            return Checked()
        if self._is_complete(task):
            return Checked(complete=True)
        if self._is_kept(task):
            return Checked(complete=True, note=_kept(task))
        if task.fingerprint is None:
            task.fingerprint = fingerprint(task.case.channels)
        found = [
            Earlier(name, ending)
            for name in self._earlier_names(task)
            if isinstance(ending := self._proven(name, task), Ending)
        ]
        return Checked(earlier=tuple(found))

    def make_way(self, task: Task) -> None:
        """See that nobody's work is replaced: neither what is not ours, nor what was changed.

        Raises:
            ConfigError: ``output-exists`` if results are there that the ledger does not know.
        """
        if task.fingerprint is None:
            task.fingerprint = fingerprint(task.case.channels)
        there = self._earlier(task)
        self._put_reviewed_aside(task)
        if self._order.overwrite or not there:
            return
        row = task.row
        known = {output.name: output for output in task.outputs}
        foreign = [path for path in there if path.name not in known]
        if foreign:
            why = self._proven(task.case.name, task)
            raise _unknown(foreign[0], "cannot be taken over" if isinstance(why, Ending) else why)
        moved = row.channels != texts(task.case)
        if moved and row.fingerprint not in (None, task.fingerprint):
            raise results_exist(there[0])
        for path in there:
            output = known[path.name]
            if output.sha256 and path.is_file() and file_sha256(path) != output.sha256:
                task.notes.append(_put_aside(path, "was changed after it was made"))

    def _put_reviewed_aside(self, task: Task) -> None:
        """Keep the label file that somebody accepted or corrected."""
        review = task.review
        name = next((one.name for one in task.outputs if one.kind == "nifti"), None)
        if review is None or not review.is_kept or name is None:
            return
        path = self._out / name
        if path.is_file() and file_sha256(path) == review.result_sha256:
            task.notes.append(_put_aside(path, f"was {review.state} in review"))

    def read(self, task: Task) -> Loaded:
        """Read it.

        Raises:
            MedsegError: Whatever was found wrong.
        """
        case = task.case
        if len(case.channels) == 1:
            (path,) = case.channels.values()
            case = replace(case, beside=self._job.together.beside(path))
        loaded = task.loaded = read_case(case, self._predictor.card, self._order.picking)
        if stamp(case.channels) != task.stamp:
            raise FormatError(
                str(next(iter(case.channels.values()))),
                expected="an image that stays as it is while it is read",
                found="one that changed",
                remedy="wait until it is there as a whole and run the same command again",
                code="input-changed",
            )
        self.flight.move(task.row.number, "ready", loaded.bytes)
        return loaded

    def work(self, task: Task, loaded: Loaded) -> Segmented:
        """Segment it.

        Raises:
            MedsegError: Whatever was found wrong.
            Cancelled: If the listener asked to stop.
        """
        number = task.row.number
        self.flight.move(number, "working", loaded.bytes)
        self._predictor.elsewhere = lambda: self.flight.promise(number)
        self._check_place()
        try:
            return self._segmented(loaded)
        except ResourceError as error:
            if error.code != "memory-limit":
                raise
            with self.flight.quiet():  # perhaps it fits once the others are out of the way
                return self._segmented(loaded)

    def _segmented(self, loaded: Loaded) -> Segmented:
        return predict_case(
            loaded,
            self._predictor,
            self._out,
            listener=self._listener,
            wishes=self._order.wishes,
            roi=self._order.roi,
        )

    def write(self, task: Task, segmented: Segmented) -> CaseResult:
        """Write it.

        Raises:
            MedsegError: Whatever was found wrong.
        """
        self.flight.move(task.row.number, "writing", segmented.bytes)
        self._check_place()
        result = write_case(
            segmented,
            self._predictor,
            self._out,
            wishes=self._order.wishes,
            proof={
                "input_sha256": task.fingerprint or "",
                "settings_sha256": self._job.settings,
            },
        )
        try:
            task.written = [
                Output(kind, path.name, path.stat().st_size, file_sha256(path))
                for kind, path in result.files.items()
            ]
        except OSError as error:
            raise ResourceError(
                str(self._out),
                expected="results that stay where they were written",
                found=error.strerror or type(error).__name__,
                remedy="see that nothing else works on the folder and, on a share, that it is "
                "still mounted",
                code="output-unwritable",
            ) from error
        task.thumbnail = _thumbnail(segmented)
        task.doubt = read_doubt(result.files["report"])
        return result

    def let_go(self, task: Task) -> None:
        """Hold nothing of it any longer."""
        if task.loaded is not None:
            task.loaded.close()
            task.loaded = None
        self.flight.leave(task.row.number)

    def close(self) -> None:
        """No more cases come."""
        self._predictor.elsewhere = None

    def reason_to_stop(self, code: str | None) -> MedsegError | None:
        """Why every further case would fail as well, if one failed with a code."""
        if code == "disk-full":
            return ResourceError(
                str(self._out),
                expected="free space",
                found="a full disk",
                remedy="free some and run the same command again: it goes on where it stopped",
                code="disk-full",
            )
        if code in ("output-unwritable", "output-vanished"):
            try:
                self._check_place()
                prepare_output(self._out)
            except MedsegError as error:
                return error
        if code in _INPUT_CODES:
            return vanished(self._job.roots)
        return None

    def ending(self, outcome: Outcome[Task, Any]) -> Ending:
        """What the ledger is told of how a case ended."""
        task = outcome.case
        # what was refused before it began says nothing about the results that are there
        was = task.stamp if task.begun else None
        image = task.fingerprint if task.begun else None
        result: CaseResult | None = outcome.result
        if result is None:
            return Ending(
                "failed",
                outcome.seconds,
                outcome.code,
                self._shown(outcome.message or "", task.case),
                stamp=was,
                fingerprint=image,
                details={"notes": task.notes},
            )
        code, told = result.refused if result.refused is not None else (None, None)
        return Ending(
            "done" if code is None else "incomplete",
            outcome.seconds,
            code,
            None if told is None else self._shown(told, task.case),
            stamp=was,
            fingerprint=image,
            outputs=task.written,
            volumes_ml=result.volumes_ml,
            details={
                "notes": [*task.notes, *(self._shown(note, task.case) for note in result.notes)],
                "stages": {stage: round(value, 4) for stage, value in result.seconds.items()},
                "predicted_ram_bytes": result.predicted_ram_bytes,
                "measured_ram_bytes": result.peak_ram_bytes,
                **({} if task.doubt is None else {DOUBT_DETAIL: task.doubt.to_dict()}),
            },
            thumbnail=task.thumbnail,
        )

    def _shown(self, text: str, case: Case) -> str:
        """A message as a table shows it: without paths, and without the name of its own case."""
        log_paths = self._order.wishes.log_paths
        if not log_paths:
            text = text.replace(f"{self._out}{os.sep}", "")
        return message_of(text, case.name, case.channels, log_paths=log_paths)

    def _is_complete(self, task: Task) -> bool:
        """Whether image, settings and results are proven to be those of a finished case."""
        row = task.row
        if row.state != "done" or row.settings != self._job.settings:
            return False
        return self._is_whole(task)

    def _is_kept(self, task: Task) -> bool:
        """Whether somebody accepted or corrected the result that is there, of the same image."""
        row, review = task.row, task.review
        if review is None or not review.is_kept or row.settings is None:
            return False
        if row.state not in ("done", "incomplete"):
            return False
        if review.result_sha256 != result_sha256(task.outputs):
            return False
        return self._is_whole(task)

    def _is_whole(self, task: Task) -> bool:
        """Whether image and results are those that the ledger has of a case."""
        row, out = task.row, self._out
        for output in task.outputs:
            path = out / output.name
            if not path.is_file() or path.stat().st_size != output.bytes:
                return False
        if not (self._order.trust_times and row.stamp == task.stamp):
            task.fingerprint = fingerprint(task.case.channels)
            if task.fingerprint != row.fingerprint:
                return False
        return bool(task.outputs) and all(
            file_sha256(out / one.name) == one.sha256 for one in task.outputs
        )

    def result_names(self, task: Task) -> dict[str, str]:
        """Kind and name of every file that writing may leave: so it is known whose they are."""
        names = {kind: f"{task.case.name}{end}" for kind, end in RESULTS.items()}
        if self._order.wishes.masks:
            names |= mask_names(task.case.name, self._predictor.card.scheme())
        return names

    def _earlier(self, task: Task) -> list[Path]:
        masks = mask_files(task.case, self._predictor, self._order.wishes)
        return earlier_results(task.case.name, self._out, masks)

    def _earlier_names(self, task: Task) -> list[str]:
        """Names under which results of this image may be that the ledger does not know."""
        name, known = task.case.name, {output.name for output in task.outputs}
        unknown = any(path.name not in known for path in self._earlier(task))
        if name != f"case-{task.row.id}":
            return [name] if unknown else []
        return [*([name] if unknown else []), *self._job.reports.get(task.fingerprint or "", ())]

    def _proven(self, name: str, task: Task) -> Ending | str:
        return proven_ending(
            name,
            self._out,
            fingerprint=task.fingerprint or "",
            settings=self._job.settings,
            stamp=task.stamp or "",
        )

    def _check_place(self) -> None:
        """Refuse to write where the folder was: a share that is gone may leave an empty one."""
        if _place(self._out) != self._place:
            raise ResourceError(
                str(self._out),
                expected="the folder for the results to stay where it was",
                found="none, or another one in its place",
                remedy="mount the share again and run the same command: it goes on where it "
                "stopped",
                code="output-vanished",
            )


def check_deaths(task: Task) -> None:
    """Refuse a case at which processes died again and again.

    Raises:
        ResourceError: ``worker-died``.
    """
    deaths = task.row.deaths
    if deaths >= MOST_DEATHS:
        raise ResourceError(
            task.case.name,
            expected="a case that can be worked on",
            found=f"one at which the process was killed {deaths} times, perhaps as memory ran out",
            remedy="give more memory, or --max-memory, and send it back with `medseg studies "
            "retry`",
            code="worker-died",
        )


def texts(case: Case) -> dict[str, str]:
    """The channels of a case as the ledger keeps them."""
    return {name: os.fspath(path) for name, path in case.channels.items()}


def _place(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of its name, for as long as it stays mounted."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unknown(path: Path, why: str) -> ConfigError:
    return ConfigError(
        str(path),
        expected="no result of this name that the ledger does not know",
        found=f"one that {why}",
        remedy="move it away, choose another output folder, or add --overwrite to replace it",
        code="output-exists",
    )


def _kept(task: Task) -> str:
    assert task.review is not None  # noqa: S101 - asked before
    return (
        f"{task.row.name}: was {task.review.state} in review and is kept as it is, although models "
        "or options are others now or a result is lacking; `medseg studies retry --case` has it "
        "done again"
    )


def _put_aside(path: Path, why: str) -> str:
    """Keep a result that somebody changed or judged, beside those of the run."""
    folder = path.parent / SET_ASIDE
    folder.mkdir(exist_ok=True)
    kept = folder / f"{file_sha256(path)[:8]}_{path.name}"
    path.replace(kept)
    return f"{path.name} {why}; it is kept as {SET_ASIDE}/{kept.name}"


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
