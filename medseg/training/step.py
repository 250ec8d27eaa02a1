"""One training step: forward, backward, clip, update, and what happens if it goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.training.batch import IMAGE, LABEL, Batch
from medseg.training.ema import AveragedWeights
from medseg.training.precision import Numerics
from medseg.training.ranks import Ranks
from medseg.training.settings import TrainingSettings

__all__ = ["StepResult", "Stepper", "build_optimizer"]


def build_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser; vectors (biases, norm scales) are not decayed."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # one pass over each weight instead of a dozen, which a small network feels
    fused = all(weight.device.type in ("cpu", "cuda") for weight in network.parameters())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            fused=fused,
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step.

    Args:
        loss: Mean over its batches and over all processes; NaN or infinite if one is.
        made: Whether the weights were changed.
    """

    loss: float
    made: bool


@dataclass(slots=True)
class Stepper:
    """A network and what changes its weights.

    A step whose loss or gradient is not finite is left out: weights, running mean, moments and
    batch statistics stay as they were before it. With fp16 the gradient scaler then lowers its
    scale.

    Args:
        network: On ``device``, in the layout of ``numerics``.
        loss: Of the network's output and class indices; a mean over the images.
        optimizer: Over the network's weights.
        settings: Clipping, averaging, limits.
        numerics: Precision and layout.
        device: Where the network is.
        ranks: The processes that share each batch.
        every_weight_used: Whether each loss depends on every weight.
    """

    network: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    settings: TrainingSettings
    numerics: Numerics
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)
    every_weight_used: bool = True
    averaged: AveragedWeights | None = field(init=False)
    skipped: int = field(init=False, default=0)
    skipped_in_a_row: int = field(init=False, default=0)
    _scaler: torch.amp.GradScaler = field(init=False)
    _parallel: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.numerics.precision == "fp16"
        )
        decay = self.settings.ema_decay
        self.averaged = None if decay is None else AveragedWeights(self.network, decay)
        self._parallel = self.ranks.parallel(self.network, every_weight_used=self.every_weight_used)

    @property
    def judged(self) -> nn.Module:
        """The network to validate and export: the running mean where there is one."""
        return self.network if self.averaged is None else self.averaged.network

    def make(self, batches: Sequence[Batch], rate: float) -> StepResult:
        """Make one step on the mean gradient of the batches.

        Args:
            batches: Each with images ``(b, c, i, j, k)`` and class indices ``(b, 1, i, j, k)``.
            rate: Learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [buffer.clone() for buffer in self.network.buffers()]
        with self.ranks.guarded():
            value, finite = self._gradients(batches)
        if finite:
            self._scaler.unscale_(self.optimizer)
            finite = bool(torch.isfinite(self._clipped_norm()))
            # with a gradient that is not finite the scaler itself makes no step
            if finite or self._scaler.is_enabled():
                self._scaler.step(self.optimizer)
                self._scaler.update()
        if not finite:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.skipped += 1
            self.skipped_in_a_row += 1
            return StepResult(value, made=False)
        self.skipped_in_a_row = 0
        if self.averaged is not None:
            self.averaged.update(self.network)
        return StepResult(value, made=True)

    def _clipped_norm(self) -> Tensor:
        """Norm of the whole gradient, before it was clipped."""
        limit = self.settings.gradient_clip
        if limit is not None:
            return nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        return nn.utils.get_total_norm(
            [w.grad for w in self.network.parameters() if w.grad is not None]
        )

    def _gradients(self, batches: Sequence[Batch]) -> tuple[float, bool]:
        """Mean loss over batches and processes, with its gradient, and whether it is finite.

        All processes see the same loss, so that all of them leave out a step or none does.
        """
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            waiting = number < len(batches)
            if waiting and isinstance(self._parallel, DistributedDataParallel):
                with self._parallel.no_sync():
                    loss = self._backward(batch, len(batches))
            else:
                loss = self._backward(batch, len(batches))
            total += loss / len(batches)
            if not math.isfinite(loss):
                return total, False
        return total, True

    def _backward(self, batch: Batch, parts: int) -> float:
        x_bcijk = self.numerics.arrange(batch[IMAGE].to(self.device, non_blocking=True))
        target_b1ijk: Tensor = batch[LABEL].to(self.device, non_blocking=True)
        with self.numerics.autocast(self.device):
            logits = self._parallel(x_bcijk)
        loss = self.loss(logits, target_b1ijk)
        value = float(self.ranks.mean(loss.detach()))
        if math.isfinite(value):
            self._scaler.scale(loss if parts == 1 else loss / parts).backward()
        return value

    def too_many_skipped(self, steps: int) -> bool:
        """Whether so many steps were left out that going on makes no sense."""
        run, share = self.settings.bad_steps_in_a_row, self.settings.bad_step_share
        return self.skipped_in_a_row >= run or self.skipped > max(run, share * steps)

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` goes on from; tensors of the network are not copied."""
        return {
            "network": {name: w.detach().cpu() for name, w in self.network.state_dict().items()},
            "averaged": {}
            if self.averaged is None
            else {name: w.detach().cpu() for name, w in self.averaged.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "skipped": self.skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            RuntimeError, KeyError, ValueError: If it is of another network or optimiser.
        """
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
