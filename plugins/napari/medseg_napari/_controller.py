"""Running a model on what is open, without any window.

A :class:`RunController` holds what is going on as a frozen :class:`RunState` and tells whoever
listens of every change. The work itself is a generator, :meth:`RunController.steps`, that a worker
thread runs and whose updates the viewer's own thread hands to :meth:`RunController.take`. The
engine is that of ``medseg predict``, with the settings that it has by default, so that the voxels
are the same.
"""

# ruff: noqa: PLC0415 - torch takes seconds to import: not before the first run

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError
from medseg.events import Cancelled
from medseg.io.scan import Scan
from medseg_napari._origin import LayerOrigin
from medseg_napari._provenance import Beginning
from medseg_napari._request import Request, scan_of
from medseg_napari._words import ml_in_words

if TYPE_CHECKING:
    from medseg.inference.memory import MemoryPlan
    from medseg.inference.predictor import Prediction, Predictor

__all__ = [
    "Failed",
    "Part",
    "Planned",
    "Result",
    "RunController",
    "RunState",
    "Stopped",
    "Task",
    "Update",
]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """What a run will take."""

    plan: MemoryPlan


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of the result that is finished.

    Args:
        origin: Of the result.
        labels_shown: The whole result along I, P, L as far as it is there: a view of the array that
            the engine writes to.
    """

    origin: LayerOrigin
    labels_shown: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished run.

    Args:
        origin: With the labels' scheme, what a careful reader should know, and the model.
        labels_shown: Along I, P, L.
        doubt_shown: uint8 along I, P, L, 255 being the largest entropy there can be, or None.
        volumes_ml: Name of each structure to its volume.
        seconds: What the run took.
    """

    origin: LayerOrigin
    labels_shown: npt.NDArray[Any]
    doubt_shown: npt.NDArray[np.uint8] | None
    volumes_ml: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that came to nothing, and why."""

    message: str
    code: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that the user, or a closed layer, ended."""


Update = Planned | Part | Result | Failed | Stopped

Phase = Literal["idle", "loading", "running", "stopping", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class RunState:
    """What is going on.

    Args:
        phase: ``loading`` is reading the model and planning.
        kind: Whether a run or only its plan was asked for.
        stage: What is being counted, such as ``windows``.
        done: Steps of the stage that are done.
        total: Steps there are; 0 while that is not known.
        seconds_left: Until the end of the stage; None while that is not known.
        plan: The last plan, if it is that of what is chosen.
        message: One sentence for the user; empty for none.
    """

    phase: Phase = "idle"
    kind: Literal["plan", "run"] = "plan"
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    plan: MemoryPlan | None = None
    message: str = ""

    @property
    def is_busy(self) -> bool:
        """Whether something is at work."""
        return self.phase in ("loading", "running", "stopping")


@dataclass(slots=True, eq=False)
class Task:
    """One run or one plan, as the viewer's thread and the worker's share it.

    It is the listener of the engine: told of progress in the worker's thread, asked whether to
    stop.

    Args:
        request: What to do.
        plan_only: Whether only the plan is wanted.
    """

    request: Request
    plan_only: bool = False
    reason: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _progress: tuple[str, int, int, float] = ("", 0, 0, 0.0)

    def stop(self, reason: str = "") -> None:
        """Ask for the end, from any thread."""
        self.reason = self.reason or reason
        self._stop.set()

    def progress(self) -> tuple[str, int, int, float | None]:
        """Stage, steps done, steps there are, seconds left."""
        stage, done, total, began = self._progress
        left = (time.monotonic() - began) / done * (total - done) if done else None
        return stage, done, total, left

    def started(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._progress = stage, 0, total, time.monotonic()

    def advanced(self, stage: str, done: int) -> None:
        """Steps are done."""
        current, _, total, began = self._progress
        if current == stage:
            self._progress = stage, done, total, began

    def measured(self, name: str, value: float) -> None:
        """Nothing is shown of figures."""

    def noted(self, message: str) -> None:
        """Nothing is shown of lines."""

    def cancelled(self) -> bool:
        """Whether to stop."""
        return self._stop.is_set()


class RunController:
    """One run at a time.

    Args:
        on_change: Called with the new state, always from the viewer's own thread.
        store: File that keeps measured choices of precision; that of the command line, so that both
            compute alike. None keeps nothing.
    """

    def __init__(
        self, on_change: Callable[[RunState], None] | None = None, *, store: Path | None = None
    ) -> None:
        self.state = RunState()
        self._on_change = on_change
        self._store = store
        self._task: Task | None = None
        self._working = threading.Lock()
        self._loaded: tuple[tuple[Any, ...], Predictor] | None = None

    # ---- in the viewer's thread

    def begin(self, request: Request, *, plan_only: bool = False) -> Task:
        """Announce a run, or a plan; its :meth:`steps` are then for a worker.

        A plan that is being made is given up for it; its steps wait until that has stopped.
        """
        if self._task is not None:
            self._task.stop()
        self._task = Task(request, plan_only)
        kept = None if plan_only else self.state.plan
        self._set(RunState("loading", "plan" if plan_only else "run", plan=kept))
        return self._task

    def stop(self, reason: str = "") -> None:
        """End what is going on; within two seconds as a rule, in the middle of a window too."""
        if self._task is not None:
            self._task.stop(reason)
            self._set(replace(self.state, phase="stopping", seconds_left=None))

    def close(self) -> None:
        """End what is going on and tell nobody: the window is gone."""
        self._on_change = None
        self.stop()

    def forget_plan(self) -> None:
        """What is chosen has changed: the plan holds no more."""
        if not self.state.is_busy and self.state.plan is not None:
            self._set(replace(self.state, plan=None))

    def look(self) -> None:
        """Take over how far the worker is."""
        task = self._task
        if task is None or self.state.phase not in ("loading", "running"):
            return
        stage, done, total, left = task.progress()
        if not total:
            return
        if left is None and self.state.plan is not None:
            left = self.state.plan.seconds
        self._set(replace(self.state, stage=stage, done=done, total=total, seconds_left=left))

    def take(self, task: Task, update: Update) -> bool:
        """Take over what the worker of a task gave; whether it is still the one going on."""
        if task is not self._task:
            return False
        state = self.state
        if isinstance(update, Planned):
            if task.plan_only:
                self._task = None
                self._set(RunState("idle", plan=update.plan, message=_worries(update.plan)))
            else:
                self._set(replace(state, phase="running", plan=update.plan))
        elif isinstance(update, Part):
            self._set(replace(state, phase=state.phase if state.phase == "stopping" else "running"))
        else:
            self._task = None
            self._set(self._ended(task, update))
        return True

    def _ended(self, task: Task, update: Result | Failed | Stopped) -> RunState:
        kind: Literal["plan", "run"] = "plan" if task.plan_only else "run"
        plan = self.state.plan
        if isinstance(update, Result):
            found = ", ".join(
                f"{name} {ml_in_words(ml)} ml" for name, ml in update.volumes_ml.items()
            )
            notes = "".join(f"\n{note}" for note in update.origin.notes)
            return RunState(
                "done", kind, plan=plan, message=f"{update.seconds:.1f} s. {found}{notes}"
            )
        if isinstance(update, Failed):
            return RunState("failed", kind, plan=plan, message=f"{update.message} [{update.code}]")
        if task.plan_only:
            return RunState("idle", kind)
        reason = task.reason or "Stopped"
        return RunState("stopped", kind, plan=plan, message=f"{reason}; nothing was kept")

    def _set(self, state: RunState) -> None:
        self.state = state
        if self._on_change is not None:
            self._on_change(state)

    # ---- in the worker's thread

    def steps(self, task: Task) -> Iterator[Update]:
        """Load, plan, and run; every way in which that can end is an update, never an error."""
        try:
            with self._working:  # one at a time: a predictor serves one image
                yield from self._steps(task)
        except Cancelled:
            yield Stopped()
        except MedsegError as error:
            yield Failed(str(error), error.code)
        except MemoryError:
            yield Failed(
                "The run was ended because memory ran out; close other images or choose the fast "
                "option",
                "out-of-memory",
            )
        except Exception as error:
            yield Failed(
                f"Unexpected {type(error).__name__}: {error}; please report it", "unexpected"
            )

    def _steps(self, task: Task) -> Iterator[Update]:
        from medseg.inference.stopping import stopping_between_layers

        began = time.perf_counter()
        request = task.request
        scan = scan_of(request)
        with stopping_between_layers(task.cancelled):
            _check_going_on(task)
            predictor = self._predictor(request)
            _check_going_on(task)
            roi = None
            if request.region_shown is not None:
                roi = request.origin.original_box(request.region_shown)
            plan = predictor.plan(scan.volume, roi=roi)
            yield Planned(plan)
            if task.plan_only:
                return
            origin = LayerOrigin.of(
                scan.volume.grid, scan.source, scheme=request.model.card.scheme()
            )
            slabs = predictor.slabs(scan.volume, task, roi=roi)
            while True:
                try:
                    part = next(slabs)
                except StopIteration as finished:
                    prediction: Prediction = finished.value
                    break
                yield Part(origin, origin.shown_array(part.labels_ijk))
        _check_going_on(task)
        yield _result(predictor, scan, prediction, time.perf_counter() - began)

    def _predictor(self, request: Request) -> Predictor:
        """The model, loaded anew where anything about it has changed."""
        from medseg.inference.predictor import Predictor
        from medseg.models.card import model_folder
        from medseg.models.folder import WEIGHTS_NAME

        settings = request.options.settings()
        weights = [model_folder(folder) / WEIGHTS_NAME for folder in request.model.folders]
        stamps = [_stamp(path) for path in weights]
        key = (tuple(weights), tuple(stamps), settings, request.options.device)
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self._loaded = None  # before the next one is loaded: two need not fit into memory
        predictor = Predictor.load(
            request.model.folders, settings, device=request.options.device, store=self._store
        )
        self._loaded = key, predictor
        return predictor


def _result(predictor: Predictor, scan: Scan, prediction: Prediction, seconds: float) -> Result:
    cards = [member.card for member in predictor.members]
    labels = prediction.labels
    beginning = Beginning.by_model(
        labels.data_ijk,
        cards[0].name,
        cards[0].version,
        weights_sha256=" ".join(card.weights_sha256 for card in cards),
        seconds=seconds,
    )
    origin = LayerOrigin.of(
        labels.grid,
        scan.source,
        scheme=labels.scheme,
        notes=(*scan.notes, *prediction.notes),
        beginning=beginning,
    )
    doubt = prediction.entropy_ijk
    return Result(
        origin,
        origin.shown_array(labels.data_ijk),
        None if doubt is None else origin.shown_array(doubt),
        labels.volumes_ml(),
        seconds,
    )


def _check_going_on(task: Task) -> None:
    if task.cancelled():
        raise Cancelled


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _worries(plan: MemoryPlan) -> str:
    """What the user should know of a plan before the run."""
    if plan.sweep.strips > 1:
        return "Memory is short: the image is cut into strips, which takes longer."
    return ""
