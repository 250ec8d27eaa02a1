"""Sub-pixel shuffle in Triton, alone or with the activation before it, and its backward pass.

Every element is read once and written once, whatever the strides. With ``TRITON_INTERPRET=1`` set
before the import it runs on CPU tensors, for tests.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202 - the arguments of a kernel are pointers and numbers

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseg.ops.kernels.blocks import Direction, merged
from medseg.ops.kernels.launch import on_device, padded, span
from medseg.ops.kernels.shuffle import ACTIVATIONS, Activation, shuffle_grid, shuffle_output
from medseg.ops.kernels.triton_grid import lanes, places

__all__ = ["activate_and_shuffle", "activate_and_shuffle_backward", "shuffle", "shuffle_kernel"]

_BLOCK = 512
_GRID_AXES = 8


def shuffle(x_bcs: Tensor, factors: Sequence[int], direction: Direction) -> Tensor:
    """Space to depth (forward) or depth to space (inverse) of ``x_bcs``.

    Args:
        x_bcs: Of any numbers, at most five axes, any strides.
        factors: One per spatial axis.
        direction: ``forward`` makes the spatial axes shorter.
    """
    y_bcs = shuffle_output(x_bcs, factors, direction)
    _launch(x_bcs, x_bcs, y_bcs, factors, direction, "identity", 0.0, derives=False)
    return y_bcs


def activate_and_shuffle(
    x_bcs: Tensor, factors: Sequence[int], activation: Activation, slope: float
) -> Tensor:
    """Depth to space of the activated ``x_bcs``; half precision is activated in float32.

    Args:
        x_bcs: Floating, at most five axes, any strides.
        factors: One per spatial axis.
        activation: What comes first.
        slope: Of leaky ReLU below zero.
    """
    y_bcs = shuffle_output(x_bcs, factors, "inverse")
    _launch(x_bcs, x_bcs, y_bcs, factors, "inverse", activation, slope, derives=False)
    return y_bcs


def activate_and_shuffle_backward(
    dy_bcs: Tensor, y_bcs: Tensor, factors: Sequence[int], activation: Activation, slope: float
) -> Tensor:
    """Gradient of the input of :func:`activate_and_shuffle`, from output and its gradient.

    Args:
        dy_bcs: Gradient, any strides.
        y_bcs: Output, any strides.
        factors: As in the forward pass.
        activation: As in the forward pass.
        slope: As in the forward pass.
    """
    dx_bcs = shuffle_output(y_bcs, factors, "forward")
    _launch(dy_bcs, y_bcs, dx_bcs, factors, "forward", activation, slope, derives=True)
    return dx_bcs


def _launch(
    source: Tensor,
    beside: Tensor,
    target: Tensor,
    factors: Sequence[int],
    direction: Direction,
    activation: Activation,
    slope: float,
    *,
    derives: bool,
) -> None:
    dense, deep = (source, target) if direction == "forward" else (target, source)
    extents, dense_steps, deep_steps = shuffle_grid(dense, deep, factors)
    other_steps = shuffle_grid(beside, deep, factors)[1] if derives else deep_steps
    steps = (dense_steps, deep_steps) if direction == "forward" else (deep_steps, dense_steps)
    # the tensor written decides the order: its steps count twice
    counts, steps_out, steps_in, steps_beside, _ = merged(
        extents, steps[1], steps[0], other_steps, steps[1]
    )
    points = math.prod(counts)
    with on_device(source):
        shuffle_kernel[(triton.cdiv(points, _BLOCK),)](
            source,
            beside,
            target,
            points,
            *padded(counts, _GRID_AXES, 1)[1:],
            *padded(steps_in, _GRID_AXES, 0),
            *padded(steps_out, _GRID_AXES, 0),
            *padded(steps_beside, _GRID_AXES, 0),
            ACTIVATION=ACTIVATIONS.index(activation),
            SLOPE=slope,
            DERIVES=derives,
            NUMBER=tl.float64 if source.dtype == torch.float64 else tl.float32,
            WIDE=max(span(source), span(beside), span(target)) >= 1 << 30,
            BLOCK=_BLOCK,
        )


@triton.jit
def _tanh(x, NUMBER: tl.constexpr):  # noqa: N803
    # near zero the quotient cancels; there the series is exact to rounding
    small: tl.constexpr = 0.02 if NUMBER == tl.float64 else 0.15  # noqa: SIM300 - no constant
    square = x * x
    inner = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    decay = tl.exp(-2 * tl.abs(x))
    outer = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(x) < small, inner, tl.where(x < 0, -outer, outer))


@triton.jit
def shuffle_kernel(
    source,
    beside,
    target,
    points,
    extent1,
    extent2,
    extent3,
    extent4,
    extent5,
    extent6,
    extent7,
    in0,
    in1,
    in2,
    in3,
    in4,
    in5,
    in6,
    in7,
    out0,
    out1,
    out2,
    out3,
    out4,
    out5,
    out6,
    out7,
    beside0,
    beside1,
    beside2,
    beside3,
    beside4,
    beside5,
    beside6,
    beside7,
    ACTIVATION: tl.constexpr,  # noqa: N803 - Triton's own way to tell constants
    SLOPE: tl.constexpr,  # noqa: N803
    DERIVES: tl.constexpr,  # noqa: N803
    NUMBER: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Copy a grid of numbers from steps to other steps, activated or differentiated on the way."""
    point = lanes(WIDE, BLOCK)
    mask = point < points
    # eight axes: the last four, then the first four of what is left
    rest, n4, n5, n6, n7 = places(point, extent4, extent5, extent6, extent7)
    n0, n1, n2, n3, _ = places(rest, extent1, extent2, extent3, 1)
    at_in = n0 * in0 + n1 * in1 + n2 * in2 + n3 * in3
    at_in += n4 * in4 + n5 * in5 + n6 * in6 + n7 * in7
    at_out = n0 * out0 + n1 * out1 + n2 * out2 + n3 * out3
    at_out += n4 * out4 + n5 * out5 + n6 * out6 + n7 * out7
    value = tl.load(source + at_in, mask)
    if ACTIVATION > 0:
        slope = tl.full((), SLOPE, NUMBER)
        value = value.to(NUMBER)
        if DERIVES:
            at = n0 * beside0 + n1 * beside1 + n2 * beside2 + n3 * beside3
            at += n4 * beside4 + n5 * beside5 + n6 * beside6 + n7 * beside7
            y = tl.load(beside + at, mask).to(NUMBER)
            if ACTIVATION == 1:
                value = value * (1 - y * y)
            elif ACTIVATION == 2:
                value = tl.where(y > 0, value, 0)
            else:
                value = tl.where(y > 0, value, value * slope)
        elif ACTIVATION == 1:
            value = _tanh(value, NUMBER)
        elif ACTIVATION == 2:
            value = tl.where(value < 0, 0, value)
        else:
            value = tl.where(value < 0, value * slope, value)
    tl.store(target + at_out, value, mask)
