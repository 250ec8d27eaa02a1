"""The training loop: MONAI's trainer and the handlers hung on its events."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from medseg.errors import ConfigError, FormatError
from medseg.events import Cancelled, Listener
from medseg.training.batch import Batch
from medseg.training.batches import StepBatches
from medseg.training.checkpoint import BestWeights, Checkpoint, save_best, save_checkpoint
from medseg.training.heap import freed_memory_kept
from medseg.training.logs import RunLog
from medseg.training.schedule import Pace, poly_rate
from medseg.training.settings import TrainingSettings
from medseg.training.step import Stepper, StepResult
from medseg.training.validation import Validator
from medseg.training.watch import Watch

__all__ = ["STAGE_TRAINING", "Outcome", "TrainingRun"]

STAGE_TRAINING = "training"
_CHECKPOINT_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training went.

    Args:
        steps: Steps done.
        epochs: Epochs begun.
        seconds: Wall-clock seconds of training with the validations in between, earlier parts of a
            continued run included.
        validation_s: Share of it that the validations took, in this part of the run.
        losses: Loss of every step of this part of the run.
        skipped: Steps left out, in the whole run.
        finished: Whether the schedule came to its end, or validation to none that is better.
        early: Whether it was validation that ended it.
    """

    steps: int
    epochs: int
    seconds: float
    validation_s: float
    losses: tuple[float, ...]
    skipped: int
    finished: bool
    early: bool


@dataclass(slots=True)
class TrainingRun:
    """A network, its data and everything that watches over them; :meth:`run` trains.

    Of several processes the first judges, decides and writes; the others have neither log nor
    validator and follow.

    Args:
        stepper: The network, its loss and optimiser.
        batches: Of every step.
        validator: For the validations in between; None on all ranks but the first.
        pace: How far the run is; a wall-clock pace has started already.
        log: Gets every step; None on all ranks but the first.
        folder: The run folder; checkpoints go into ``checkpoints``.
        listener: Progress, figures and the wish to stop.
        keep_model: Called with steps, epochs and seconds after every checkpoint, to write the model
            folder.
        config_sha256: Hash of the run's settings but for its length, for the checkpoints.
        budget_s: Wall-clock time of the whole run, for the checkpoints.
        resume: State to go on from; None for a new run.
    """

    stepper: Stepper
    batches: StepBatches
    validator: Validator | None
    pace: Pace
    log: RunLog | None
    folder: Path
    listener: Listener
    keep_model: Callable[[int, int, float], None]
    config_sha256: str = ""
    budget_s: float | None = None
    resume: Checkpoint | None = None
    _began_s: float = field(init=False, default=0.0)
    _step_times_s: deque[float] = field(init=False)
    _step_end_s: float = field(init=False, default=0.0)
    _losses: list[float] = field(init=False, default_factory=list)
    _validation_s: float = field(init=False, default=0.0)
    _longest_validation_s: float = field(init=False, default=0.0)
    _saved_s: float = field(init=False, default=0.0)
    _saving_s: float = field(init=False, default=0.0)
    _progress: float = field(init=False, default=0.0)
    _watch: Watch = field(init=False)
    _stopped: Literal["", "cancelled", "not-finite", "early"] = field(init=False, default="")

    def __post_init__(self) -> None:
        self._step_times_s = deque(maxlen=9)
        self._watch = Watch()

    @property
    def _settings(self) -> TrainingSettings:
        return self.stepper.settings

    def run(self) -> Outcome:
        """Train until the pace's end or until the listener asks to stop.

        Both ends leave a checkpoint. The first one is written before the first step, so that there
        always is a good one. A continued run makes the steps, draws the patches and random numbers
        that it would have made without the break.

        Raises:
            FormatError: If the state to go on from is of another network.
            ConfigError: If so many losses or gradients are not finite that the limits of the
                settings are passed; the checkpoint before that stays.
            ResourceError: If another process was lost.
            Cancelled: If the listener asked to stop before the first step.
        """
        trainer = SupervisedTrainer(
            device=self.stepper.device,
            max_epochs=2**31,
            train_data_loader=self.batches,
            epoch_length=len(self.batches),
            network=self.stepper.network,
            optimizer=self.stepper.optimizer,
            loss_function=self.stepper.loss,
            iteration_update=self._update,
            decollate=False,
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        self._began_s = time.monotonic()
        if self.resume is not None:
            self._go_on(trainer, self.resume)
        step = trainer.state.iteration or 0
        self._agree(step)
        self.listener.started(STAGE_TRAINING, self.pace.ticks(0)[1])
        if self.resume is None:
            self._save(trainer)
        self._saved_s = self._step_end_s = time.monotonic()
        try:
            tired = self._watch.tired(self._settings.patience)
            # of a continued run it is known about how long a step takes
            step_s = self.resume.seconds / self.resume.step if self.resume and step else 0.0
            if self._told(self.pace.room_for(step, step_s) and not tired):
                with freed_memory_kept(self.stepper.device):
                    trainer.run()
        finally:
            self.batches.close()
        if self._stopped == "not-finite":
            self._refuse_not_finite(trainer)
        step = trainer.state.iteration or 0
        self._agree(step)
        for group in self.stepper.optimizer.param_groups:
            group["lr"] = self._rate()
        self._save(trainer)
        return Outcome(
            steps=step,
            epochs=trainer.state.epoch,
            seconds=self._seconds(),
            validation_s=self._validation_s,
            losses=tuple(self._losses),
            skipped=self.stepper.skipped,
            finished=self._stopped in {"", "early"},
            early=self._stopped == "early",
        )

    def _go_on(self, trainer: Engine, state: Checkpoint) -> None:
        try:
            self.stepper.load_state(
                {
                    "network": state.network,
                    "averaged": state.averaged,
                    "optimizer": state.optimizer,
                    "scaler": state.scaler,
                    "skipped": state.skipped,
                }
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise FormatError(
                "checkpoint",
                expected="the weights and optimiser of the run's network",
                found="those of another",
                remedy="go on with the version of medseg that began the run, or start it again "
                "with --overwrite",
                code="checkpoint-network",
            ) from error
        self._watch = Watch.from_dict(state.watch)
        self.batches.start_at(state.step)
        trainer.load_state_dict(
            {
                "iteration": state.step,
                "max_epochs": 2**31,
                "epoch_length": len(self.batches),
            }
        )
        ranks, device = self.stepper.ranks, self.stepper.device
        ending = "" if ranks.first else f"_{ranks.rank}"
        if f"cpu{ending}" in state.rng:
            torch.set_rng_state(state.rng[f"cpu{ending}"])
        if device.type == "cuda" and f"cuda{ending}" in state.rng:
            torch.cuda.set_rng_state(state.rng[f"cuda{ending}"], device)

    def _seconds(self) -> float:
        earlier = 0.0 if self.resume is None else self.resume.seconds
        return earlier + time.monotonic() - self._began_s

    def _rate(self) -> float:
        settings = self._settings
        return poly_rate(
            self._progress,
            base=settings.learning_rate,
            exponent=settings.poly_exponent,
            warmup=settings.warmup,
        )

    def _told(self, decision: bool) -> bool:
        """What the first process decides."""
        return bool(self.stepper.ranks.numbers([float(decision)])[0])

    def _agree(self, step: int) -> None:
        """How far the run is, as the first process sees it."""
        progress = self.pace.progress(step)
        self._progress = self.stepper.ranks.numbers([progress])[0]

    def _update(self, engine: Engine, batches: tuple[Batch, ...]) -> StepResult:  # noqa: ARG002
        return self.stepper.make(batches, self._rate())

    def _after_step(self, engine: Engine) -> None:
        step, result = engine.state.iteration, engine.state.output
        self._losses.append(result.loss)
        now = time.monotonic()
        self._step_times_s.append(now - self._step_end_s)
        if self.log is not None:
            self.log.trained(
                step=step,
                epoch=engine.state.epoch,
                seconds=self._seconds(),
                learning_rate=float(self.stepper.optimizer.param_groups[0]["lr"]),
                loss=result.loss,
            )
        self.listener.measured("loss", result.loss)
        self.listener.advanced(STAGE_TRAINING, self.pace.ticks(step)[0])
        if not result.made:
            self.listener.noted(f"step {step} was left out: its loss or gradient is not finite")
            if self.stepper.too_many_skipped(step):
                self._stop(engine, "not-finite")
                return
        cancelled, room, save, progress = self.stepper.ranks.numbers(
            [
                self.listener.cancelled(),
                self.pace.room_for(step, self._step_s()),
                self._time_to_save(),
                self.pace.progress(step),
            ]
        )
        self._progress = progress
        if cancelled:
            self._stop(engine, "cancelled")
        elif not room:
            engine.terminate()
        elif save:
            self._save(engine)
        self._step_end_s = time.monotonic()

    def _step_s(self) -> float:
        """Middle duration of the last steps, data loading included."""
        return statistics.median(self._step_times_s)

    def _time_to_save(self) -> bool:
        """Never after a step that was left out: what came before it may be what spoilt it."""
        every_s = max(self._settings.checkpoint_every_s, self._saving_s / _CHECKPOINT_SHARE)
        return not self.stepper.skipped_in_a_row and time.monotonic() - self._saved_s >= every_s

    def _after_epoch(self, engine: Engine) -> None:
        if self._stopped:
            return
        cancelled = False
        if engine.state.epoch % self._settings.validate_every == 0 and self._may_validate(engine):
            cancelled = not self._validate(engine)
        if self.log is not None:
            self.log.epoch_ended()
        tired, room, stop, self._progress = self.stepper.ranks.numbers(
            [
                self._watch.tired(self._settings.patience),
                self.pace.room_for(engine.state.iteration, self._step_s()),
                cancelled,
                self.pace.progress(engine.state.iteration),
            ]
        )
        if stop:
            self._stop(engine, "cancelled")
        elif tired:
            self.listener.noted(
                f"no better validation in {self._settings.patience}: ending early; the best was "
                f"after step {self._watch.best_step}"
            )
            self._stop(engine, "early")
        elif not room:
            engine.terminate()
        self._step_end_s = time.monotonic()

    def _may_validate(self, engine: Engine) -> bool:
        planned_s = self._validation_s + self._longest_validation_s
        spent_s = time.monotonic() - self._began_s
        return (
            self.validator is not None
            and planned_s <= self._settings.validation_share * spent_s
            and self.pace.room_for(engine.state.iteration, self._longest_validation_s)
        )

    def _validate(self, engine: Engine) -> bool:
        """Judge the network; whether it was judged to the end."""
        assert self.validator is not None  # noqa: S101 - asked by the only caller
        try:
            scores = self.validator.score(
                self.stepper.judged, self.listener, limit=self._settings.validation_cases
            )
        except Cancelled:
            return False
        self._validation_s += scores.seconds
        self._longest_validation_s = max(self._longest_validation_s, scores.seconds)
        step = engine.state.iteration
        if self.log is not None:
            self.log.validated(
                step=step,
                epoch=engine.state.epoch,
                seconds=self._seconds(),
                dice=scores.dice,
                mean=scores.mean,
            )
        self.listener.measured("dice", scores.mean)
        if self._watch.judge(step, scores.mean):
            weights = self.stepper.judged.state_dict()
            save_best(
                self.folder / "checkpoints",
                BestWeights(
                    config_sha256=self.config_sha256,
                    network={name: w.detach().cpu() for name, w in weights.items()},
                    step=step,
                    dice=scores.mean,
                ),
            )
        return True

    def _stop(self, engine: Engine, reason: Literal["cancelled", "not-finite", "early"]) -> None:
        self._stopped = reason
        engine.terminate()

    def _save(self, engine: Engine) -> None:
        began = time.monotonic()
        ranks, device = self.stepper.ranks, self.stepper.device
        network = self.stepper.network
        if not all(bool(torch.isfinite(weight).all()) for weight in network.state_dict().values()):
            self._stop(engine, "not-finite")
            self._refuse_not_finite(engine)
        own = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(device)
        rng = {
            name if rank == 0 else f"{name}_{rank}": state
            for rank, states in enumerate(ranks.gathered(own))
            for name, state in states.items()
        }
        if ranks.first:
            self._write(engine, rng)
        self._saved_s = time.monotonic()
        self._saving_s = self._saved_s - began

    def _write(self, engine: Engine, rng: dict[str, torch.Tensor]) -> None:
        epoch = engine.state.epoch or 0
        step = engine.state.iteration or 0
        save_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(
                config_sha256=self.config_sha256,
                **self.stepper.state(),
                rng=rng,
                seed=self._settings.seed,
                epoch=epoch,
                step=step,
                step_of_epoch=step - max(0, epoch - 1) * len(self.batches),
                seconds=self._seconds(),
                budget_s=self.budget_s,
                progress=min(1.0, self._progress),
                watch=self._watch.to_dict(),
                history=[] if self.log is None else list(self.log.validations),
            ),
        )
        self.keep_model(step, epoch, self._seconds())

    def _refuse_not_finite(self, engine: Engine) -> None:
        raise ConfigError(
            "training",
            expected="a finite loss, gradient and weights",
            found=f"{self.stepper.skipped} steps of {engine.state.iteration} with one that is not, "
            f"{self.stepper.skipped_in_a_row} of them in a row",
            remedy="lower training.learning_rate, set training.gradient_clip or take "
            "training.precision fp32, in the configuration or in the run folder's config.yaml, and "
            "go on from the last good checkpoint with --resume; without a change it would meet the "
            "same",
            code="loss-not-finite",
        )
