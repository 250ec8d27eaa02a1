"""In which precision and memory layout a network trains: chosen by measuring it.

Neither reduced precision nor the channels-last layout is always faster. Dense convolutions gain
from bfloat16 on processors that multiply it, depthwise ones lose; so a few real steps of the real
network decide.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg.models.network import arrange_weights
from medseg.ops.precision import LOWER_PRECISIONS, Precision, autocast_to, has_bf16
from medseg.ops.small_conv import SmallConv3d

__all__ = ["Measurement", "Numerics", "check_precision", "choose_numerics", "has_bf16"]


@dataclass(frozen=True, slots=True)
class Numerics:
    """Precision of the network's operations and layout of its maps; weights stay float32."""

    precision: Precision
    channels_last: bool

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The lower precision, or None for float32."""
        return LOWER_PRECISIONS.get(self.precision)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context to run the network in."""
        return autocast_to(self.precision, device)

    def arrange(self, x: Tensor) -> Tensor:
        """A five-dimensional tensor in the chosen layout."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        # not contiguous(): it leaves an image of one channel with the strides that it has, from
        # which the first convolution, and all after it, would go on in the other layout
        return x.to(memory_format=layout)

    def arrange_network(self, network: nn.Module) -> nn.Module:
        """The network with its weights in the chosen layout; the same object.

        Its convolutions become :class:`~medseg.ops.small_conv.SmallConv3d`.
        """
        SmallConv3d.take_over(network)
        arrange_weights(network, channels_last=self.channels_last)
        return network

    def in_words(self) -> str:
        """Such as ``bf16, channels last``."""
        return f"{self.precision}, {'channels last' if self.channels_last else 'contiguous'}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Time of one training step, the fastest of those timed."""

    precision: Precision
    channels_last: bool
    seconds_per_step: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse fp16 on a CPU, whose operations do not take it.

    Raises:
        ConfigError: ``config-value``.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "training.precision",
            expected="one of auto, bf16, fp32 on a CPU",
            found="'fp16'",
            remedy="fp16 training needs a GPU; auto picks what is fastest here",
            code="config-value",
        )


def choose_numerics(
    network: nn.Module,
    loss: nn.Module,
    *,
    input_shape: Sequence[int],
    device: torch.device,
    precision: Literal["auto"] | Precision,
    channels_last: Literal["auto"] | bool,
    limit_s: float = 30.0,
) -> tuple[Numerics, tuple[Measurement, ...]]:
    """The fastest of the combinations that settings and device allow.

    Each is timed on a copy of the network with random input: one step to warm up, then the faster
    of two. The caller's network and random numbers stay as they are. Where one combination is left,
    nothing is timed. Channels-last comes first; once ``limit_s`` is over, no further combination is
    begun.

    Args:
        network: On ``device``, in train mode or not.
        loss: Of the network's output and class indices.
        input_shape: ``(b, c, i, j, k)`` of one training step.
        device: Where the network is.
        precision: One precision or "auto": fp32 and bf16, or fp16 on a GPU without bf16.
        channels_last: One layout or "auto" for both.
        limit_s: Seconds after which the fastest so far is taken.

    Returns:
        The choice, and what was measured, in the order of measuring.

    Raises:
        ConfigError: If fp16 is wanted on a CPU, whose operations do not take it.
    """
    check_precision(precision, device)
    layouts = [True, False] if channels_last == "auto" else [channels_last]
    candidates = [
        Numerics(kind, layout) for layout in layouts for kind in _precisions(precision, device)
    ]
    if len(candidates) == 1:
        return candidates[0], ()
    measured: list[Measurement] = []
    began = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for candidate in candidates:
            if measured and time.monotonic() - began > limit_s:
                break
            measured.append(
                Measurement(
                    candidate.precision,
                    candidate.channels_last,
                    _seconds_per_step(network, loss, input_shape, device, candidate),
                )
            )
    best = min(measured, key=lambda one: one.seconds_per_step)
    return Numerics(best.precision, best.channels_last), tuple(measured)


def _precisions(wanted: Literal["auto"] | Precision, device: torch.device) -> list[Precision]:
    if wanted != "auto":
        return [wanted]
    if has_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device.type == "cuda" else ["fp32"]


def _seconds_per_step(
    network: nn.Module,
    loss: nn.Module,
    input_shape: Sequence[int],
    device: torch.device,
    numerics: Numerics,
) -> float:
    trial = numerics.arrange_network(copy.deepcopy(network)).train()
    x_bcijk = numerics.arrange(torch.randn(tuple(input_shape), device=device))
    target_b1ijk = torch.zeros(
        (input_shape[0], 1, *input_shape[2:]), dtype=torch.uint8, device=device
    )
    times_s = []
    for _ in range(3):
        began = time.perf_counter()
        with numerics.autocast(device):
            logits = trial(x_bcijk)
        loss(logits, target_b1ijk).backward()
        trial.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - began)
    return min(times_s[1:])
