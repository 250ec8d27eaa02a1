"""Fine-tuning in a process of its own, watched from the viewer. Free of Qt.

The process is ``medseg finetune --events``: it writes a JSON object on each line of its standard
output. Threads read what it writes, so that the viewer never waits for it. Closing its standard
input stops it as Ctrl-C does, after the step in hand; the system closes it where the viewer dies,
so the training never outlives the viewer for long.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import medseg
from medseg.data.layouts import list_cases
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.models.card import model_folder
from medseg_napari._models import FoundModel

__all__ = [
    "FineTuneController",
    "FineTuneRequest",
    "FineTuneState",
    "TrainingSet",
    "check_request",
    "free_name",
    "look_into_set",
]

Phase = Literal["idle", "starting", "running", "stopping", "done", "stopped", "failed"]

_STAGES = {
    "reading training cases": "reading cases",
    "reading validation cases": "reading cases",
}
_THREADS = (*("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),)


@dataclass(frozen=True, slots=True)
class FineTuneRequest:
    """What to do.

    Args:
        model: The model to begin with.
        data: Folder of the training set.
        out: Run folder of the new model; its name is the model's.
        minutes: Time to train.
        threads: Of the CPU.
        device: Where it takes place.
        steps: Steps in place of the time; for tests.
    """

    model: FoundModel
    data: Path
    out: Path
    minutes: float
    threads: int
    device: str = "auto"
    steps: int | None = None

    def command(self) -> list[str]:
        """The process to start."""
        length = ["--budget", f"{round(60 * self.minutes)}s"]
        if self.steps is not None:
            length = ["--steps", str(self.steps)]
        return [
            *(sys.executable, "-m", "pipelines.cli", "finetune", str(self.model.folders[0])),
            *("--data", str(self.data), "--out", str(self.out), "--name", self.out.name),
            *("--threads", str(self.threads), "--device", self.device, *length, "--events"),
        ]

    def environment(self) -> dict[str, str]:
        """That of the viewer, with fewer threads and this medseg."""
        here = str(Path(medseg.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
        return {**os.environ, **dict.fromkeys(_THREADS, str(self.threads)), "PYTHONPATH": path}


@dataclass(frozen=True, slots=True)
class DiceRow:
    """Mean Dice of a structure on the cases held out.

    Args:
        structure: Its name; ``mean`` for that of all.
        before: Of the old model; None where no case shows it.
        after: Of the new one.
    """

    structure: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class FineTuneState:
    """What is going on.

    Args:
        phase: How far it is.
        stage: What is being counted.
        done: Steps of the stage that are done.
        total: Steps there are; 0 while that is not known.
        seconds_left: Of the stage; None while that is not known.
        loss: The last one; None before the first step.
        message: What is to be said; empty for nothing.
        dice: Old against new model; empty where they were not compared.
        held_out: Cases they were compared on.
        run_folder: Of the new model, once there is one.
    """

    phase: Phase = "idle"
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    loss: float | None = None
    message: str = ""
    dice: tuple[DiceRow, ...] = ()
    held_out: tuple[str, ...] = ()
    run_folder: Path | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a process is at work."""
        return self.phase in ("starting", "running", "stopping")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a folder holds.

    Args:
        cases: How many.
        labels: Their structures.
        channels: Their images.
    """

    cases: int
    labels: tuple[str, ...]
    channels: tuple[str, ...]

    def in_words(self, model: FoundModel | None) -> str:
        """What is to be known before a start."""
        if self.cases == 1:
            held = "One case: it is learnt from, so whether the new model is better cannot be told."
        else:
            held = f"{self.cases} cases, of which a fifth (at least one) is held out to compare on."
        if model is not None:
            names = [label.name for label in model.card.scheme().labels]
            if set(names) != set(self.labels):
                held += f" Its labels ({', '.join(self.labels)}) are not those of the model."
        return held


def look_into_set(folder: Path) -> TrainingSet:
    """What a training set holds, from its index and the names of its files.

    Raises:
        MedsegError: As :func:`medseg.data.layouts.list_cases`.
    """
    listing = list_cases(folder)
    listing.check_complete()
    names = tuple(label.name for label in listing.scheme.labels)
    return TrainingSet(len(listing.cases), names, listing.channels)


def check_request(request: FineTuneRequest) -> None:
    """Refuse what cannot be begun, before a process is started.

    Raises:
        ConfigError: ``finetune-ensemble``, ``finetune-labels``, ``run-folder-exists``.
        FormatError: ``weights-hash`` if the model is damaged.
        MedsegError: As :func:`look_into_set`.
    """
    if len(request.model.folders) > 1:
        raise ConfigError(
            request.model.name,
            expected="a model of one network",
            found=f"an ensemble of {len(request.model.folders)}",
            remedy="choose one of its members",
            code="finetune-ensemble",
        )
    _check_weights(request.model)
    found = look_into_set(request.data)
    names = [label.name for label in request.model.card.scheme().labels]
    if set(names) != set(found.labels):
        raise ConfigError(
            request.data.name,
            expected=f"the labels of the model {request.model.name}: {', '.join(names)}",
            found=", ".join(found.labels),
            remedy="choose the model that the cases were corrected with",
            code="finetune-labels",
        )
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ConfigError(
            request.out.name,
            expected="a name that is free in the folder",
            found="one that is taken",
            remedy="choose another name for the new model",
            code="run-folder-exists",
        )


def _check_weights(model: FoundModel) -> None:
    """Tell of a damaged model now, rather than after what takes seconds to load."""
    path = model_folder(model.folders[0]) / "weights.safetensors"
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        found = "none"
    if found != model.card.weights_sha256:
        raise FormatError(
            str(path),
            expected=f"the sha256 on the card, {model.card.weights_sha256[:12]}...",
            found=f"{found[:12]}..." if found != "none" else "no file that can be read",
            remedy="copy the model folder again; it was damaged or changed",
            code="weights-hash",
        )


def free_name(model: FoundModel, folder: Path) -> str:
    """A name for the new model: that of the old one with ``-tuned``, numbered where it is taken."""
    stem = f"{model.card.name.removesuffix('-tuned')[:55]}-tuned"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (folder / name).exists())


class FineTuneController:
    """One fine-tuning at a time.

    Args:
        on_change: Called with the new state, from whoever calls :meth:`look`.
    """

    def __init__(self, on_change: Callable[[FineTuneState], None] | None = None) -> None:
        self.state = FineTuneState()
        self._on_change = on_change
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=20)
        self._reader: threading.Thread | None = None
        self._began: dict[str, float] = {}
        self._final: FineTuneState | None = None

    def begin(self, request: FineTuneRequest) -> bool:
        """Start the process; whether it was. What is wrong is in the state."""
        if self.state.is_busy:
            return False
        try:
            check_request(request)
            process = subprocess.Popen(  # noqa: S603 - this interpreter
                request.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=request.environment(),
            )
        except MedsegError as error:
            self._set(FineTuneState("failed", message=f"{error} [{error.code}]"))
            return False
        except OSError as error:
            words = f"The process cannot be started: {error.strerror or type(error).__name__}"
            self._set(FineTuneState("failed", message=words))
            return False
        self._process, self._final, self._began = process, None, {}
        self._events, self._errors = queue.SimpleQueue(), deque(maxlen=20)
        self._reader = _in_thread(_read_events, process.stdout, self._events)
        _in_thread(_read_errors, process.stderr, self._errors)
        self._set(FineTuneState("starting", message="Starting..."))
        return True

    def stop(self) -> None:
        """End it after the step in hand; asked a second time, at once."""
        process = self._process
        if process is None or not self.state.is_busy:
            return
        if self.state.phase == "stopping":
            process.kill()
            return
        _close(process)
        words = "Stopping after the step in hand... (Stop again ends it at once)"
        self._set(replace(self.state, phase="stopping", seconds_left=None, message=words))

    def close(self) -> None:
        """The viewer or the dock is closed: the training ends after the step in hand."""
        self._on_change = None
        process, self._process = self._process, None
        if process is not None:
            _close(process)
            threading.Thread(target=_reap, args=(process,), daemon=True).start()

    @property
    def process(self) -> int | None:
        """The number of the process at work; None if there is none."""
        return None if self._process is None else self._process.pid

    def look(self) -> None:
        """Take over what the process told since; never waits."""
        process = self._process
        if process is None or not self.state.is_busy:
            return
        over = process.poll() is not None and not (self._reader and self._reader.is_alive())
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            self._take(event)
        if over:  # whatever it had to say is said, and its files are whole
            self._process = None
            _reap(process)
            self._set(self._final or self._died(process.returncode))

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, state = event.get("event"), self.state
        running: Phase = "stopping" if state.phase == "stopping" else "running"
        if kind == "started":
            stage = str(event["stage"])
            self._began[stage] = time.monotonic()
            self._set(
                replace(
                    state,
                    phase=running,
                    stage=_STAGES.get(stage, stage),
                    done=0,
                    total=int(event["total"]),
                    seconds_left=None,
                )
            )
        elif kind == "advanced":
            done = int(event["done"])
            elapsed = time.monotonic() - self._began.get(str(event["stage"]), time.monotonic())
            left = elapsed / done * (state.total - done) if done and running == "running" else None
            self._set(replace(state, phase=running, done=done, seconds_left=left))
        elif kind == "measured" and event.get("name") == "loss":
            self._set(replace(state, loss=event["value"]))
        elif kind == "failed":
            self._final = FineTuneState("failed", message=f"{event['message']} [{event['code']}]")
        elif kind == "stopped":
            self._final = FineTuneState("stopped", message="Stopped; nothing was kept")
        elif kind == "finished":
            self._final = _result(event)

    def _died(self, code: int | None) -> FineTuneState:
        """The process ended without a word."""
        if self.state.phase == "stopping":
            return FineTuneState("stopped", message="Ended at once; see the folder of the run")
        last = next((line for line in reversed(self._errors) if line.strip()), "")
        words = f"The training ended unexpectedly (exit code {code})"
        if code in (-9, 137):
            words += ", perhaps because memory ran out"
        return FineTuneState("failed", message=f"{words}. {last}".strip())

    def _set(self, state: FineTuneState) -> None:
        self.state = state
        if self._on_change is not None:
            self._on_change(state)


def _result(event: Mapping[str, Any]) -> FineTuneState:
    rows = tuple(
        DiceRow(str(row["structure"]), row["before"], row["after"]) for row in event["dice"] or ()
    )
    steps, name = event["steps"], event["model"]
    note = str(event["note"])
    words = f"{name}: {steps} step{'' if steps == 1 else 's'} in {event['training_s']:.0f} s. "
    if event["finished"]:
        words += "It is in the list of models; the old model is what it was."
    else:
        words += "Stopped; the model so far is kept and in the list."
    if note:
        words += f"\n{note[:1].upper()}{note[1:]}."
    return FineTuneState(
        "done" if event["finished"] else "stopped",
        message=words,
        dice=rows,
        held_out=tuple(event["held_out"]),
        run_folder=Path(event["run_folder"]),
    )


def _read_events(stream: IO[str], events: queue.SimpleQueue[dict[str, Any]]) -> None:
    with suppress(OSError, ValueError):  # closed while it was read
        for line in stream:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.put(event)


def _read_errors(stream: IO[str], errors: deque[str]) -> None:
    with suppress(OSError, ValueError):
        for line in stream:
            errors.append(line.rstrip())


def _in_thread(read: Callable[..., None], stream: IO[str] | None, into: Any) -> threading.Thread:  # noqa: ANN401
    thread = threading.Thread(target=read, args=(stream, into), daemon=True)
    thread.start()
    return thread


def _reap(process: subprocess.Popen[str]) -> None:
    """Wait for its end and let go of its pipes."""
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()


def _close(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
