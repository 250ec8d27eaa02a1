"""Channels to space and back, with a factor of its own for every axis.

The shuffles are registered operators, ``torch.ops.medseg.depth_to_space``, ``space_to_depth`` and
``activate_and_shuffle``. They make one pass over memory: by Triton on a GPU and, with factors of 1
and 2, by numba on a CPU. Elsewhere they are plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError, one_of
from medseg.ops.autocast import autocasts
from medseg.ops.checks import check_tensor
from medseg.ops.kernels.blocks import Direction
from medseg.ops.kernels.dispatch import Kernel, run, wants_plain
from medseg.ops.kernels.layout import advise_huge_pages, memory_format_of
from medseg.ops.kernels.shuffle import ACTIVATIONS, Activation, shuffle_output

__all__ = [
    "DepthToSpace",
    "SpaceToDepth",
    "SubPixelConv",
    "activate_and_shuffle",
    "depth_to_space",
    "icnr_",
    "space_to_depth",
]

_TRITON = "medseg.ops.kernels.triton_subpixel"
_ON_GPU = Kernel("sub-pixel shuffle (Triton)", _TRITON, "shuffle", device="cuda")
_IN_TWOS = (
    _ON_GPU,
    Kernel(
        "sub-pixel shuffle (numba)",
        "medseg.ops.kernels.numba_blocks",
        "shuffle",
        device="cpu",
        dtypes=frozenset({torch.float32, torch.float64}),
    ),
)
_FUSED = (
    Kernel("activation and shuffle (Triton)", _TRITON, "activate_and_shuffle", device="cuda"),
)
_FUSED_BACKWARD = (
    Kernel(
        "activation and shuffle, backward (Triton)",
        _TRITON,
        "activate_and_shuffle_backward",
        device="cuda",
    ),
)


def depth_to_space(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    """Sub-pixel shuffle (Shi et al., CVPR 2016, section 3.2) for any rank and any factors.

    Convention:
        Channel ``c * prod(factors) + offset`` becomes channel ``c`` at ``position * factor +
        sub-position``, where ``offset`` counts the sub-positions in row-major order, last axis
        fastest. With equal factors in 2D this is ``torch.nn.functional.pixel_shuffle``.

    Args:
        x_bcs: ``(b, c * prod(factors), *spatial)`` of any type.
        factors: One positive integer per spatial axis.

    Returns:
        ``(b, c, *spatial * factors)``; channels-last goes in, channels-last comes out.

    Raises:
        ShapeError: If the factors do not fit the rank or the channels, or ``x_bcs`` is no tensor,
            lacks axes or is an empty batch.
    """
    _check_channels(x_bcs, factors, "depth_to_space")
    if math.prod(factors) == 1:
        return x_bcs
    if wants_plain(x_bcs):
        return _grown(x_bcs, factors)
    y_bcs: Tensor = torch.ops.medseg.depth_to_space(x_bcs, factors)
    return y_bcs


def space_to_depth(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    """Undo :func:`depth_to_space` with the same ``factors``.

    Args:
        x_bcs: ``(b, c, *spatial)`` of any type; every extent a multiple of its factor.
        factors: One positive integer per spatial axis.

    Returns:
        ``(b, c * prod(factors), *spatial / factors)``; channels-last goes in, channels-last comes
        out.

    Raises:
        ShapeError: If the factors do not fit the rank or the extents, or ``x_bcs`` is no tensor,
            lacks axes or is an empty batch.
    """
    block = _block(x_bcs, factors, "space_to_depth")
    spatial = list(x_bcs.shape[2:])
    if any(extent % factor for extent, factor in zip(spatial, factors, strict=True)):
        raise ShapeError(
            "space_to_depth",
            expected=f"extents that are multiples of {tuple(factors)}",
            found=str(tuple(spatial)),
            remedy="pad the axes that are not",
            code="subpixel-extents",
        )
    if block == 1:
        return x_bcs
    if wants_plain(x_bcs):
        return _deepened(x_bcs, factors)
    y_bcs: Tensor = torch.ops.medseg.space_to_depth(x_bcs, factors)
    return y_bcs


def activate_and_shuffle(
    x_bcs: Tensor,
    factors: Sequence[int],
    activation: Activation = "tanh",
    negative_slope: float = 0.01,
) -> Tensor:
    """``depth_to_space(activation(x_bcs), factors)`` without the tensor in between.

    The derivative is taken from the result, so the backward pass needs the result alone.

    Args:
        x_bcs: ``(b, c * prod(factors), *spatial)``, floating.
        factors: One positive integer per spatial axis.
        activation: ``tanh``, ``relu``, ``leaky_relu`` or ``identity``.
        negative_slope: Of leaky ReLU; not negative, or the result would not tell the sign.

    Returns:
        ``(b, c, *spatial * factors)``; channels-last goes in, channels-last comes out.

    Raises:
        ConfigError: If the activation is unknown or the slope negative.
        ShapeError: If the factors do not fit the rank or the channels, or ``x_bcs`` is no tensor,
            lacks axes, holds integers or is an empty batch.
    """
    _check_activation(activation, negative_slope)
    _check_channels(x_bcs, factors, "activate_and_shuffle")
    if not x_bcs.is_floating_point():
        raise ShapeError(
            "activate_and_shuffle: x_bcs",
            expected="a floating tensor",
            found=str(x_bcs.dtype),
            remedy="call float() on it first",
            code="subpixel-type",
        )
    slope = negative_slope if activation == "leaky_relu" else 0.0
    if activation == "identity":
        return depth_to_space(x_bcs, factors)
    if math.prod(factors) == 1:
        return _activated(x_bcs, activation, slope)
    if wants_plain(x_bcs):
        return _grown(_activated(x_bcs, activation, slope), factors)
    y_bcs: Tensor = torch.ops.medseg.activate_and_shuffle(x_bcs, factors, activation, slope)
    return y_bcs


class DepthToSpace(nn.Module):
    """:func:`depth_to_space` as a module.

    Args:
        factors: One positive integer per spatial axis.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, c * prod(factors), *spatial)`` to ``(b, c, *spatial * factors)``."""
        return depth_to_space(x_bcs, self.factors)

    def extra_repr(self) -> str:
        """The factors."""
        return f"factors={self.factors}"


class SpaceToDepth(nn.Module):
    """:func:`space_to_depth` as a module.

    Args:
        factors: One positive integer per spatial axis.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, c, *spatial)`` to ``(b, c * prod(factors), *spatial / factors)``."""
        return space_to_depth(x_bcs, self.factors)

    def extra_repr(self) -> str:
        """The factors."""
        return f"factors={self.factors}"


class SubPixelConv(nn.Module):
    """Convolution, activation, sub-pixel shuffle: upsampling by ``factors``.

    Args:
        channels_in: Of the input.
        channels_out: Of the result.
        factors: By how much each axis grows; two of them make a 2D block, three a 3D block.
        kernel: Odd extent of the convolution, the same on all axes; padding keeps the lattice.
        activation: Between convolution and shuffle: ``identity`` as in the original, ``tanh`` as in
            neU-Net, ``relu`` or ``leaky_relu``.
        negative_slope: Of leaky ReLU.
        icnr: Whether the weights start as in :func:`icnr_`, which avoids a checkerboard.

    Raises:
        ConfigError: If there are no channels, the rank is not 2 or 3, a factor not positive, the
            kernel even or not positive, or the activation unknown.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        factors: Sequence[int],
        *,
        kernel: int = 3,
        activation: Activation = "identity",
        negative_slope: float = 0.01,
        icnr: bool = False,
    ) -> None:
        super().__init__()
        convolutions: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
        if channels_in < 1 or channels_out < 1:
            raise ConfigError(
                "SubPixelConv channels",
                expected="one or more in and out",
                found=f"{channels_in} and {channels_out}",
                remedy="give both",
                code="subpixel-channels",
            )
        if len(factors) not in convolutions or any(factor < 1 for factor in factors):
            raise ConfigError(
                "SubPixelConv factors",
                expected="two or three positive integers, one per spatial axis",
                found=str(tuple(factors)),
                remedy="use 1 for an axis that keeps its extent",
                code="subpixel-factors",
            )
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(
                "SubPixelConv kernel",
                expected="an odd extent, so that the convolution keeps the lattice",
                found=str(kernel),
                remedy="use 3",
                code="subpixel-kernel",
            )
        _check_activation(activation, negative_slope)
        self.factors = tuple(factors)
        self.activation: Activation = activation
        self.negative_slope = negative_slope
        self.project = convolutions[len(factors)](
            channels_in, channels_out * math.prod(factors), kernel, padding=kernel // 2
        )
        if icnr:
            icnr_(self.project, math.prod(factors))

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, channels_in, *spatial)`` to ``(b, channels_out, *spatial * factors)``.

        Raises:
            ShapeError: If ``x_bcs`` is no tensor, is an empty batch, has another rank or number of
                channels, holds integers, or is on another device or (without autocast) of another
                type than the weights.
        """
        check_tensor("SubPixelConv: x_bcs", x_bcs)
        rank, channels = len(self.factors), self.project.in_channels
        if x_bcs.ndim != rank + 2 or x_bcs.shape[1] != channels:
            raise ShapeError(
                "SubPixelConv: x_bcs",
                expected=f"{channels} channels on {rank} spatial axes",
                found=f"shape {tuple(x_bcs.shape)}",
                remedy="hand in (batch, channel, *spatial) as the layer was built for",
                code="subpixel-channels",
            )
        if not x_bcs.is_floating_point():
            raise ShapeError(
                "SubPixelConv: x_bcs",
                expected="a floating tensor",
                found=str(x_bcs.dtype),
                remedy="call float() on it first",
                code="subpixel-type",
            )
        if x_bcs.device != self.project.weight.device:
            raise ShapeError(
                "SubPixelConv: x_bcs",
                expected=f"a tensor on {self.project.weight.device}, where the weights are",
                found=str(x_bcs.device),
                remedy="move one of them with to()",
                code="subpixel-device",
            )
        if x_bcs.dtype != self.project.weight.dtype and not autocasts(x_bcs.device.type):
            raise ShapeError(
                "SubPixelConv: x_bcs",
                expected=f"a tensor of {self.project.weight.dtype}, as the weights are",
                found=str(x_bcs.dtype),
                remedy="convert one of them with to(), or use torch.autocast",
                code="subpixel-type",
            )
        return activate_and_shuffle(
            self.project(x_bcs), self.factors, self.activation, self.negative_slope
        )

    def extra_repr(self) -> str:
        """Factors and activation."""
        return f"factors={self.factors}, activation={self.activation!r}"


@torch.no_grad()
def icnr_(conv: nn.Conv2d | nn.Conv3d, block: int) -> None:
    """Give all sub-positions of an output channel the same weights, in place.

    Convolution and shuffle are then the convolution followed by nearest-neighbour upsampling, so
    that training starts without a checkerboard (Aitken et al., arXiv 1707.02937, section 3.2).
    The first sub-position's weights and bias are kept for all; how they were drawn is left to the
    caller, where the paper draws them anew.

    Args:
        conv: The convolution before the shuffle; its outputs are a multiple of ``block``.
        block: Product of the factors.

    Raises:
        ShapeError: If the outputs are no multiple of ``block``.
    """
    if block < 1 or conv.out_channels % block:
        raise ShapeError(
            "icnr_",
            expected=f"a multiple of {block} output channels",
            found=str(conv.out_channels),
            remedy="hand in the product of the factors",
            code="subpixel-channels",
        )
    for weights in (conv.weight, conv.bias):
        if weights is not None:
            weights.copy_(weights[::block].repeat_interleave(block, dim=0))


# torch.library.custom_op would import the compiler at the first call: a second for nothing
torch.library.define(
    "medseg::depth_to_space",
    "(Tensor x_bcs, SymInt[] factors) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::space_to_depth",
    "(Tensor x_bcs, SymInt[] factors) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::activate_and_shuffle",
    "(Tensor x_bcs, SymInt[] factors, str activation, float slope) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::activate_and_shuffle_backward",
    "(Tensor dy_bcs, Tensor y_bcs, SymInt[] factors, str activation, float slope) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("medseg::depth_to_space", "default")
def _depth_to_space(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    return run(_kernels(factors), _shuffled, x_bcs, factors, "inverse")


@torch.library.impl("medseg::space_to_depth", "default")
def _space_to_depth(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    return run(_kernels(factors), _shuffled, x_bcs, factors, "forward")


@torch.library.impl("medseg::activate_and_shuffle", "default")
def _fused(x_bcs: Tensor, factors: Sequence[int], activation: str, slope: float) -> Tensor:
    return run(_FUSED, _shuffled_then_activated, x_bcs, factors, activation, slope)


@torch.library.impl("medseg::activate_and_shuffle_backward", "default")
def _fused_backward(
    dy_bcs: Tensor, y_bcs: Tensor, factors: Sequence[int], activation: str, slope: float
) -> Tensor:
    return run(_FUSED_BACKWARD, _plain_backward, dy_bcs, y_bcs, factors, activation, slope)


@torch.library.register_fake("medseg::depth_to_space")  # type: ignore[untyped-decorator]
def _(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    return shuffle_output(x_bcs, factors, "inverse")


@torch.library.register_fake("medseg::space_to_depth")  # type: ignore[untyped-decorator]
def _(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    return shuffle_output(x_bcs, factors, "forward")


@torch.library.register_fake("medseg::activate_and_shuffle")  # type: ignore[untyped-decorator]
def _(x_bcs: Tensor, factors: Sequence[int], activation: str, slope: float) -> Tensor:  # noqa: ARG001
    return shuffle_output(x_bcs, factors, "inverse")


@torch.library.register_fake("medseg::activate_and_shuffle_backward")  # type: ignore[untyped-decorator]
def _(
    dy_bcs: Tensor,  # noqa: ARG001
    y_bcs: Tensor,
    factors: Sequence[int],
    activation: str,  # noqa: ARG001
    slope: float,  # noqa: ARG001
) -> Tensor:
    # the output's layout is known; a gradient may come in any
    return shuffle_output(y_bcs, factors, "forward")


def _keep_factors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.factors = inputs[1]


def _depth_to_space_backward(ctx: Any, dy_bcs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return torch.ops.medseg.space_to_depth(dy_bcs, ctx.factors), None


def _space_to_depth_backward(ctx: Any, dy_bcs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return torch.ops.medseg.depth_to_space(dy_bcs, ctx.factors), None


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.save_for_backward(output)
    ctx.rest = inputs[1:]


def _fused_derivative(ctx: Any, dy_bcs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    (y_bcs,) = ctx.saved_tensors
    dx_bcs = torch.ops.medseg.activate_and_shuffle_backward(dy_bcs, y_bcs, *ctx.rest)
    return dx_bcs, None, None, None


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.save_for_backward(*inputs[:2])
    ctx.rest = inputs[2:]


def _second_derivative(ctx: Any, ddx_bcs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    dy_bcs, y_bcs = ctx.saved_tensors
    factors, activation, slope = ctx.rest
    direction = torch.ops.medseg.depth_to_space(ddx_bcs, factors)
    of_y = -2 * y_bcs * dy_bcs * direction if activation == "tanh" else None
    return direction * _slope_of(y_bcs, activation, slope), of_y, None, None, None


torch.library.register_autograd(
    "medseg::depth_to_space", _depth_to_space_backward, setup_context=_keep_factors
)
torch.library.register_autograd(
    "medseg::space_to_depth", _space_to_depth_backward, setup_context=_keep_factors
)
torch.library.register_autograd(
    "medseg::activate_and_shuffle", _fused_derivative, setup_context=_keep_output
)
torch.library.register_autograd(
    "medseg::activate_and_shuffle_backward", _second_derivative, setup_context=_keep_inputs
)


def _kernels(factors: Sequence[int]) -> tuple[Kernel, ...]:
    return _IN_TWOS if max(factors) == 2 else (_ON_GPU,)


def _shuffled(x_bcs: Tensor, factors: Sequence[int], direction: Direction) -> Tensor:
    """Plain torch: one strided copy."""
    y_bcs = advise_huge_pages(shuffle_output(x_bcs, factors, direction))
    dense, deep = (x_bcs, y_bcs) if direction == "forward" else (y_bcs, x_bcs)
    rank = len(factors)
    apart = dense
    for n in reversed(range(rank)):
        extents = (apart.shape[2 + n] // factors[n], factors[n])
        apart = torch.unflatten(apart, 2 + n, extents)
    # both as (b, c, *factors, *spatial)
    apart = apart.permute(0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2))
    stacked = torch.unflatten(deep, 1, (dense.shape[1], *factors))
    source, target = (apart, stacked) if direction == "forward" else (stacked, apart)
    target.copy_(source)
    return y_bcs


def _shuffled_then_activated(
    x_bcs: Tensor, factors: Sequence[int], activation: str, slope: float
) -> Tensor:
    # the activation works in place, so that there is no second large tensor
    y_bcs = run(_kernels(factors), _shuffled, x_bcs, factors, "inverse")
    if activation == "tanh":
        return y_bcs.tanh_()
    return y_bcs.relu_() if activation == "relu" else F.leaky_relu_(y_bcs, slope)


def _plain_backward(
    dy_bcs: Tensor, y_bcs: Tensor, factors: Sequence[int], activation: str, slope: float
) -> Tensor:
    if activation == "tanh":
        gradient = torch.ops.aten.tanh_backward(dy_bcs, y_bcs)
    elif activation == "relu":
        gradient = torch.ops.aten.threshold_backward(dy_bcs, y_bcs, 0)
    else:
        gradient = torch.ops.aten.leaky_relu_backward(dy_bcs, y_bcs, slope, self_is_result=True)
    gradient = gradient.contiguous(memory_format=memory_format_of(y_bcs))
    return run(_kernels(factors), _shuffled, gradient, factors, "forward")


def _slope_of(y_bcs: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "tanh":
        return 1 - y_bcs * y_bcs
    return torch.where(y_bcs > 0, 1.0, slope).to(y_bcs.dtype)


def _activated(x_bcs: Tensor, activation: Activation, slope: float) -> Tensor:
    if activation == "tanh":
        return x_bcs.tanh()
    return x_bcs.relu() if activation == "relu" else F.leaky_relu(x_bcs, slope)


def _grown(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    """Depth to space of operations with derivatives of their own, all known to ONNX."""
    spatial, rank = list(x_bcs.shape[2:]), len(factors)
    channels = x_bcs.shape[1] // math.prod(factors)
    parts = x_bcs.reshape(x_bcs.shape[0], channels, *factors, *spatial)
    interleaved = [axis for n in range(rank) for axis in (2 + rank + n, 2 + n)]
    grown = [extent * factor for extent, factor in zip(spatial, factors, strict=True)]
    return parts.permute(0, 1, *interleaved).reshape(x_bcs.shape[0], channels, *grown)


def _deepened(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    rank, channels = len(factors), x_bcs.shape[1] * math.prod(factors)
    small = [extent // factor for extent, factor in zip(x_bcs.shape[2:], factors, strict=True)]
    split = [part for pair in zip(small, factors, strict=True) for part in pair]
    parts = x_bcs.reshape(*x_bcs.shape[:2], *split)
    order = (0, 1, *range(3, 2 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2))
    return parts.permute(order).reshape(x_bcs.shape[0], channels, *small)


def _check_channels(x_bcs: Tensor, factors: Sequence[int], where: str) -> None:
    block = _block(x_bcs, factors, where)
    if x_bcs.shape[1] % block:
        raise ShapeError(
            where,
            expected=f"a multiple of {block} channels for factors {tuple(factors)}",
            found=f"{x_bcs.shape[1]} channels",
            remedy="give the convolution before it that many output channels",
            code="subpixel-channels",
        )


def _check_activation(activation: str, negative_slope: float) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigError(
            "activation",
            expected=one_of(activation, ACTIVATIONS),
            found=repr(activation),
            remedy="apply any other one before depth_to_space",
            code="subpixel-activation",
        )
    if not negative_slope >= 0:
        raise ConfigError(
            "negative_slope",
            expected="zero or more",
            found=str(negative_slope),
            remedy="apply any other activation before depth_to_space",
            code="subpixel-slope",
        )


def _block(x_bcs: Tensor, factors: Sequence[int], where: str) -> int:
    check_tensor(f"{where}: x_bcs", x_bcs)
    whole = isinstance(factors, Sequence) and all(isinstance(factor, int) for factor in factors)
    if not whole or len(factors) != x_bcs.ndim - 2 or any(factor < 1 for factor in factors):
        raise ShapeError(
            f"{where}: factors",
            expected=f"{x_bcs.ndim - 2} positive integers, one per spatial axis",
            found=str(factors),
            remedy="use 1 for an axis that keeps its extent",
            code="subpixel-factors",
        )
    return math.prod(factors)
