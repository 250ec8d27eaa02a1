"""The training loop: MONAI's trainer, the step it makes, and the handlers hung on its events."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener
from medseg.training.checkpoint import Checkpoint, save_checkpoint
from medseg.training.logs import RunLog
from medseg.training.precision import Numerics
from medseg.training.schedule import Pace, poly_rate
from medseg.training.settings import TrainingSettings
from medseg.training.transforms import IMAGE, LABEL
from medseg.training.validation import Validator

__all__ = ["STAGE_TRAINING", "Outcome", "TrainingRun", "build_optimizer"]

STAGE_TRAINING = "training"
_CHECKPOINT_EVERY_S = 20.0


def build_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser; vectors (biases, norm scales) are not decayed."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training went.

    Args:
        steps: Steps done.
        epochs: Epochs begun.
        seconds: Wall-clock seconds of training with the validations in between.
        validation_s: Share of it that the validations took.
        losses: Loss of every step.
        finished: Whether the schedule came to its end.
    """

    steps: int
    epochs: int
    seconds: float
    validation_s: float
    losses: tuple[float, ...]
    finished: bool


@dataclass(slots=True)
class TrainingRun:
    """A network, its data and everything that watches over them; :meth:`run` trains.

    Args:
        network: On ``device``, in the layout of ``numerics``.
        loss: Of the network's output and class indices.
        optimizer: Over the network's weights.
        loader: Training batches.
        validator: For the validations in between.
        settings: Rate, clipping, validation.
        numerics: Precision and layout.
        device: Where the network is.
        pace: How far the run is; a wall-clock pace has started already.
        log: Gets every step.
        folder: The run folder; checkpoints go into ``checkpoints``.
        listener: Progress, figures and the wish to stop.
        keep_model: Called with steps, epochs and seconds after every checkpoint, to write the model
            folder.
    """

    network: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    validator: Validator
    settings: TrainingSettings
    numerics: Numerics
    device: torch.device
    pace: Pace
    log: RunLog
    folder: Path
    listener: Listener
    keep_model: Callable[[int, int, float], None]
    _scaler: torch.amp.GradScaler = field(init=False)
    _began_s: float = field(init=False, default=0.0)
    _step_times_s: deque[float] = field(init=False)
    _step_end_s: float = field(init=False, default=0.0)
    _losses: list[float] = field(init=False, default_factory=list)
    _validation_s: float = field(init=False, default=0.0)
    _longest_validation_s: float = field(init=False, default=0.0)
    _saved_s: float = field(init=False, default=0.0)
    _stopped: Literal["", "cancelled", "not-finite"] = field(init=False, default="")

    def __post_init__(self) -> None:
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.numerics.precision == "fp16"
        )
        self._step_times_s = deque(maxlen=9)

    def run(self) -> Outcome:
        """Train until the pace's end or until the listener asks to stop.

        Both ends leave a checkpoint. The first one is written before the first step, so that there
        always is a good one.

        Raises:
            ConfigError: If the loss or a gradient is no longer finite; the checkpoint before that
                stays.
        """
        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=2**31,
            train_data_loader=self.loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=self.loss,
            iteration_update=self._update,
            decollate=False,
        )
        trainer.add_event_handler(Events.ITERATION_STARTED, self._set_rate)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        self._began_s = time.monotonic()
        self.listener.started(STAGE_TRAINING, self.pace.ticks(0)[1])
        self._save(trainer)
        self._step_end_s = time.monotonic()
        trainer.run()
        if self._stopped == "not-finite":
            self._refuse_not_finite(trainer)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(trainer.state.iteration)
        self._save(trainer)
        return Outcome(
            steps=trainer.state.iteration,
            epochs=trainer.state.epoch,
            seconds=self._seconds(),
            validation_s=self._validation_s,
            losses=tuple(self._losses),
            finished=not self._stopped,
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._began_s

    def _rate(self, steps_done: int) -> float:
        return poly_rate(
            self.pace.progress(steps_done),
            base=self.settings.learning_rate,
            exponent=self.settings.poly_exponent,
            warmup=self.settings.warmup,
        )

    def _set_rate(self, engine: Engine) -> None:
        rate = self._rate(engine.state.iteration - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _update(self, engine: Engine, batch: Mapping[str, Tensor]) -> dict[str, float]:
        x_bcijk = self.numerics.arrange(batch[IMAGE].to(self.device, non_blocking=True))
        target_b1ijk = batch[LABEL].to(self.device, non_blocking=True)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.numerics.autocast(self.device):
            logits = self.network(x_bcijk)
        loss = self.loss(logits, target_b1ijk)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._stop(engine, "not-finite")
            return {"loss": value}
        self._scaler.scale(loss).backward()
        if self.settings.gradient_clip is not None:
            self._scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
            # with fp16 the scaler itself skips such a step and lowers its scale
            if not self._scaler.is_enabled() and not bool(torch.isfinite(norm)):
                self._stop(engine, "not-finite")
                return {"loss": value}
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return {"loss": value}

    def _after_step(self, engine: Engine) -> None:
        if self._stopped == "not-finite":
            return
        step, loss = engine.state.iteration, float(engine.state.output["loss"])
        self._losses.append(loss)
        now = time.monotonic()
        self._step_times_s.append(now - self._step_end_s)
        self._step_end_s = now
        self.log.trained(
            step=step,
            epoch=engine.state.epoch,
            seconds=self._seconds(),
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            loss=loss,
        )
        self.listener.measured("loss", loss)
        self.listener.advanced(STAGE_TRAINING, self.pace.ticks(step)[0])
        if self.listener.cancelled():
            self._stop(engine, "cancelled")
        elif not self.pace.room_for(step, self._step_s()):
            engine.terminate()

    def _step_s(self) -> float:
        """Middle duration of the last steps, data loading included."""
        return statistics.median(self._step_times_s)

    def _after_epoch(self, engine: Engine) -> None:
        if self._stopped:
            return
        if time.monotonic() - self._saved_s >= _CHECKPOINT_EVERY_S:
            self._save(engine)
        if engine.state.epoch % self.settings.validate_every == 0 and self._may_validate(engine):
            self._validate(engine)
        self._step_end_s = time.monotonic()
        if not self.pace.room_for(engine.state.iteration, self._step_s()):
            engine.terminate()

    def _may_validate(self, engine: Engine) -> bool:
        planned_s = self._validation_s + self._longest_validation_s
        return planned_s <= self.settings.validation_share * self._seconds() and (
            self.pace.room_for(engine.state.iteration, self._longest_validation_s)
        )

    def _validate(self, engine: Engine) -> None:
        try:
            scores = self.validator.score(
                self.network, self.listener, limit=self.settings.validation_cases
            )
        except Cancelled:
            self._stop(engine, "cancelled")
            return
        self._validation_s += scores.seconds
        self._longest_validation_s = max(self._longest_validation_s, scores.seconds)
        self.log.validated(
            step=engine.state.iteration,
            epoch=engine.state.epoch,
            seconds=self._seconds(),
            dice=scores.dice,
            mean=scores.mean,
        )
        self.listener.measured("dice", scores.mean)

    def _stop(self, engine: Engine, reason: Literal["cancelled", "not-finite"]) -> None:
        self._stopped = reason
        engine.terminate()

    def _save(self, engine: Engine) -> None:
        weights = dict(self.network.state_dict())
        if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            self._stop(engine, "not-finite")
            self._refuse_not_finite(engine)
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        length = max(1, len(self.loader))
        epoch = engine.state.epoch or 0
        step = engine.state.iteration or 0
        save_checkpoint(
            self.folder / "checkpoints",
            Checkpoint(
                network={name: weight.detach().cpu() for name, weight in weights.items()},
                optimizer=self.optimizer.state_dict(),
                scaler=self._scaler.state_dict(),
                rng=rng,
                seed=self.settings.seed,
                epoch=epoch,
                step=step,
                step_of_epoch=step - max(0, epoch - 1) * length,
                seconds=self._seconds(),
                progress=min(1.0, self.pace.progress(step)),
                history=list(self.log.validations),
            ),
        )
        self.keep_model(step, epoch, self._seconds())
        self._saved_s = time.monotonic()

    def _refuse_not_finite(self, engine: Engine) -> None:
        raise ConfigError(
            "training",
            expected="a finite loss, gradient and weights",
            found=f"one that is not, at step {engine.state.iteration}",
            remedy="lower training.learning_rate, set training.gradient_clip or use precision "
            "fp32; the last good state is in the run's checkpoints",
            code="loss-not-finite",
        )
