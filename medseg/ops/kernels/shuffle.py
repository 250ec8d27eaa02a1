"""The sub-pixel shuffle as a grid that is walked in the steps of two tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medseg.ops.kernels.blocks import Direction
from medseg.ops.kernels.layout import memory_format_of

__all__ = ["ACTIVATIONS", "Activation", "shuffle_grid", "shuffle_output"]

Activation = Literal["identity", "tanh", "relu", "leaky_relu"]
ACTIVATIONS: tuple[Activation, ...] = ("identity", "tanh", "relu", "leaky_relu")


def shuffle_output(x_bcs: Tensor, factors: Sequence[int], direction: Direction) -> Tensor:
    """An empty tensor for the result; channels-last if ``x_bcs`` is (see layout.py).

    Args:
        x_bcs: ``(b, c, *spatial)``.
        factors: One per spatial axis.
        direction: ``forward`` for space to depth, ``inverse`` for depth to space.
    """
    block = math.prod(factors)
    batch, channels, *spatial = x_bcs.shape
    if direction == "forward":
        channels *= block
        spatial = [extent // factor for extent, factor in zip(spatial, factors, strict=True)]
    else:
        channels //= block
        spatial = [extent * factor for extent, factor in zip(spatial, factors, strict=True)]
    return torch.empty(
        (batch, channels, *spatial),
        dtype=x_bcs.dtype,
        device=x_bcs.device,
        memory_format=memory_format_of(x_bcs),
    )


def shuffle_grid(
    dense_bcs: Tensor, deep_bcs: Tensor, factors: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Axes ``(b, c, *spatial of deep, *factors)`` and their steps in either tensor, in elements.

    Args:
        dense_bcs: ``(b, c, *spatial * factors)``.
        deep_bcs: ``(b, c * prod(factors), *spatial)``.
        factors: One per spatial axis.

    Returns:
        Extents, steps in ``dense_bcs``, steps in ``deep_bcs``.
    """
    batch_step, channel_step, *steps = deep_bcs.stride()
    # offsets count the sub-positions in row-major order
    offsets = [math.prod(factors[n + 1 :]) * channel_step for n in range(len(factors))]
    own_batch, own_channel, *own = dense_bcs.stride()
    grown = [step * factor for step, factor in zip(own, factors, strict=True)]
    return (
        [*dense_bcs.shape[:2], *deep_bcs.shape[2:], *factors],
        [own_batch, own_channel, *grown, *own],
        [batch_step, channel_step * math.prod(factors), *steps, *offsets],
    )
