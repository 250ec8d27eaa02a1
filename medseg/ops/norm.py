"""Group and instance normalisation, with the activation after it, for any rank and layout.

``torch.nn.functional.instance_norm`` lays a channels-last tensor out anew before and after it works
(torch 2.14), which costs more than the operation; ``group_norm``, which computes the same with one
group per channel (Wu and He, Group Normalization, ECCV 2018), keeps the layout on a CPU, but its
backward pass is slow there. Here a channels-last tensor on a CPU, in float32 and bfloat16, is
normalised by one kernel that takes the statistics in a first pass and normalises, scales and
activates in a second; with gradient it is the registered operator
``torch.ops.medseg.group_norm``, whose backward pass takes two passes as well. Everywhere else
torch's ``group_norm`` does it, under compilers and functional transforms too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import ShapeError
from medseg.ops.autocast import without_autocast
from medseg.ops.kernels.dispatch import Kernel, is_taken, run, wants_plain
from medseg.ops.kernels.layout import memory_format_of

__all__ = ["GroupNorm", "InstanceNorm", "group_norm", "instance_norm"]

_TYPES = frozenset({torch.float32, torch.bfloat16})
_FORWARD = "medseg.ops.kernels.numba_norm"
_BACKWARD = "medseg.ops.kernels.numba_norm_backward"
_WITHOUT_GRADIENT = (
    Kernel("group norm (numba)", _FORWARD, "group_norm", device="cpu", dtypes=_TYPES),
)
_WITH_GRADIENT = (
    Kernel(
        "group norm for training (numba)",
        _FORWARD,
        "group_norm_with_moments",
        device="cpu",
        dtypes=_TYPES,
    ),
)
_GRADIENT = (
    Kernel(
        "group norm, backward (numba)",
        _BACKWARD,
        "group_norm_backward",
        device="cpu",
        dtypes=_TYPES,
    ),
)
# below this, calling the kernel costs more than it saves
_LEAST_NUMBERS = 1 << 13


def group_norm(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None = None,
    bias_c: Tensor | None = None,
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """``act((x - mean) / sqrt(var + eps) * weight + bias)``, mean and variance of each group.

    A group is some neighbouring channels of one image; the variance is the biased one. Statistics
    are float32 or better whatever the number type (Wu and He, Group Normalization, ECCV 2018).

    Args:
        x_bcs: ``(b, c, *spatial)``; a group of a single number gives the bias.
        groups: Their number; divides ``c``.
        weight_c: ``(c,)``, or None for ones. May be float32 where ``x_bcs`` is narrower.
        bias_c: ``(c,)``, or None for zeros.
        eps: Added to the variance.
        negative_slope: Factor of negative results: 1 for no activation, 0 for ReLU.
        inplace: Whether the result may be written over ``x_bcs``. It then is where the kernel
            runs and no gradient is needed.

    Returns:
        Of the shape, number type and memory format of ``x_bcs``, also under autocast.

    Raises:
        ShapeError: If the groups do not divide the channels.
    """
    if groups < 1 or x_bcs.shape[1] % groups:
        raise ShapeError(
            "group norm",
            expected=f"a number of groups that divides {x_bcs.shape[1]} channels",
            found=str(groups),
            remedy="take another number of groups",
            code="norm-groups",
        )
    tensors = [values for values in (x_bcs, weight_c, bias_c) if values is not None]
    rest = (groups, weight_c, bias_c, eps, negative_slope)
    if not _kernel_fits(tensors):
        return _plain(x_bcs, *rest, inplace)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        if not is_taken(_WITH_GRADIENT, x_bcs):
            return _plain(x_bcs, *rest, inplace)
        y_bcs: Tensor
        y_bcs, _ = torch.ops.medseg.group_norm(x_bcs, *rest)
        return y_bcs
    return run(_WITHOUT_GRADIENT, _plain, x_bcs, *rest, inplace)


def instance_norm(
    x_bcs: Tensor,
    weight_c: Tensor | None = None,
    bias_c: Tensor | None = None,
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """:func:`group_norm` with a group for each channel of each image.

    Source: Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016. The arguments are those of
    :func:`group_norm`; a map of a single voxel gives the bias.
    """
    return group_norm(
        x_bcs,
        x_bcs.shape[1],
        weight_c,
        bias_c,
        eps=eps,
        negative_slope=negative_slope,
        inplace=inplace,
    )


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` with the activation after it, by :func:`group_norm`.

    Args:
        groups: Number of groups.
        channels: Channels of the input.
        eps: Added to the variance.
        negative_slope: See :func:`group_norm`.
        inplace: Also there; only for a caller who knows that no one else reads the input.
    """

    def __init__(
        self,
        groups: int,
        channels: int,
        *,
        eps: float = 1e-5,
        negative_slope: float = 1.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(groups, channels, eps)
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is nn.GroupNorm's
        """``(b, channels, *spatial)`` to the same."""
        return group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            eps=self.eps,
            negative_slope=self.negative_slope,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows in the brackets."""
        more = f"negative_slope={self.negative_slope}, inplace={self.inplace}"
        return f"{super().extra_repr()}, {more}"


class InstanceNorm(nn.Module):
    """:func:`instance_norm` as a module; weights have the names that torch gives them.

    Args:
        channels: Channels of the input.
        eps: Added to the variance.
        affine: Whether there are weight and bias.
        negative_slope: See :func:`instance_norm`.
        inplace: Also there; only for a caller who knows that no one else reads the input.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        negative_slope: float = 1.0,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = channels
        self.eps = eps
        self.negative_slope = negative_slope
        self.inplace = inplace
        if affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, channels, *spatial)`` to the same."""
        return instance_norm(
            x_bcs,
            self.weight,
            self.bias,
            eps=self.eps,
            negative_slope=self.negative_slope,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        """What ``print`` shows in the brackets."""
        return (
            f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}, "
            f"negative_slope={self.negative_slope}, inplace={self.inplace}"
        )


# torch.library.custom_op would import the compiler at the first call: a second for nothing
torch.library.define(
    "medseg::group_norm",
    "(Tensor x_bcs, int groups, Tensor? weight_c, Tensor? bias_c, float eps, float negative_slope)"
    " -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::group_norm_backward",
    "(Tensor x_bcs, Tensor dy_bcs, Tensor moments_b2c, int groups, Tensor? weight_c,"
    " Tensor? bias_c, float negative_slope) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("medseg::group_norm", "default")
def _forward(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """The result, and mean and inverse deviation of each channel's group ``(b, 2, c)``."""
    rest = (groups, weight_c, bias_c, eps, negative_slope)
    return run(_WITH_GRADIENT, _plain_with_moments, x_bcs, *rest)


@torch.library.impl("medseg::group_norm_backward", "default")
def _backward(
    x_bcs: Tensor,
    dy_bcs: Tensor,
    moments_b2c: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; the last two in the type of the moments."""
    rest = (groups, weight_c, bias_c, negative_slope)
    return run(_GRADIENT, _gradients, x_bcs, dy_bcs, moments_b2c, *rest)


@torch.library.register_fake("medseg::group_norm")  # type: ignore[untyped-decorator]
def _(
    x_bcs: Tensor,
    groups: int,  # noqa: ARG001
    weight_c: Tensor | None,  # noqa: ARG001
    bias_c: Tensor | None,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    negative_slope: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    shape = (x_bcs.shape[0], 2, x_bcs.shape[1])
    return torch.empty_like(x_bcs), x_bcs.new_empty(shape, dtype=_wide(x_bcs))


@torch.library.register_fake("medseg::group_norm_backward")  # type: ignore[untyped-decorator]
def _(
    x_bcs: Tensor,
    dy_bcs: Tensor,  # noqa: ARG001
    moments_b2c: Tensor,
    groups: int,  # noqa: ARG001
    weight_c: Tensor | None,  # noqa: ARG001
    bias_c: Tensor | None,  # noqa: ARG001
    negative_slope: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = (moments_b2c.new_empty(x_bcs.shape[1]) for _ in range(2))
    return torch.empty_like(x_bcs), weight, bias


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    x_bcs, ctx.groups, weight_c, bias_c, ctx.eps, ctx.negative_slope = inputs
    moments_b2c = output[1]
    ctx.mark_non_differentiable(moments_b2c)
    ctx.save_for_backward(x_bcs, moments_b2c, weight_c, bias_c)


def _derivative(ctx: Any, dy_bcs: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    x_bcs, moments_b2c, weight_c, bias_c = ctx.saved_tensors
    rest = (ctx.groups, weight_c, bias_c, ctx.negative_slope)
    if torch.is_grad_enabled():
        # the derivative is to be differentiated in its turn
        moments_b2c = _moments(x_bcs, ctx.groups, ctx.eps)
        found = _gradients(x_bcs, dy_bcs, moments_b2c, *rest)
    else:
        found = torch.ops.medseg.group_norm_backward(x_bcs, dy_bcs, moments_b2c, *rest)
    dx_bcs, d_weight, d_bias = found
    return (
        dx_bcs,
        None,
        None if weight_c is None else d_weight.to(weight_c.dtype),
        None if bias_c is None else d_bias.to(bias_c.dtype),
        None,
        None,
    )


torch.library.register_autograd("medseg::group_norm", _derivative, setup_context=_keep_input)


def _kernel_fits(tensors: list[Tensor]) -> bool:
    # a compiler or a trace would miss what the kernel does
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    x_bcs = tensors[0]
    return (
        all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and x_bcs.numel() >= _LEAST_NUMBERS
        # before questions about memory, which have no answer under vmap
        and not any(wants_plain(tensor) for tensor in tensors)
        and memory_format_of(x_bcs) != torch.contiguous_format
    )


def _wide(x_bcs: Tensor) -> torch.dtype:
    return torch.float64 if x_bcs.dtype == torch.float64 else torch.float32


def _moments(x_bcs: Tensor, groups: int, eps: float) -> Tensor:
    """Mean and inverse deviation of each channel's group ``(b, 2, c)``, float32 or better."""
    members = x_bcs.shape[1] // groups
    groups_bgn = x_bcs.to(_wide(x_bcs)).reshape(len(x_bcs), groups, -1)
    variance, mean = torch.var_mean(groups_bgn, dim=2, correction=0)
    moments_b2g = torch.stack((mean, (variance + eps).rsqrt()), dim=1)
    return moments_b2g.repeat_interleave(members, dim=2)


def _plain_with_moments(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    y_bcs = _plain(x_bcs, groups, weight_c, bias_c, eps, negative_slope, inplace=False)
    return y_bcs, _moments(x_bcs, groups, eps)


def _gradients(
    x_bcs: Tensor,
    dy_bcs: Tensor,
    moments_b2c: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch: gradients of input, weight and bias, of operations that have derivatives.

    The gradient of an activation depends on the sign of what went into it, which is computed again.
    """
    over_maps = (len(x_bcs), -1, *[1] * (x_bcs.ndim - 2))
    over_channels = (1, *over_maps[1:])
    wide = moments_b2c.dtype
    mean, inverse = (values.reshape(over_maps) for values in moments_b2c.unbind(1))
    normed = (x_bcs.to(wide) - mean) * inverse
    weight = 1.0 if weight_c is None else weight_c.to(wide).reshape(over_channels)
    bias = 0.0 if bias_c is None else bias_c.to(wide).reshape(over_channels)
    passed = dy_bcs.to(wide)
    if negative_slope != 1:
        passed = torch.where(normed * weight + bias > 0, passed, passed * negative_slope)
    products = passed * normed

    def shared(values_bcs: Tensor) -> Tensor:
        means_bg = values_bcs.reshape(len(x_bcs), groups, -1).mean(dim=2)
        return means_bg.repeat_interleave(x_bcs.shape[1] // groups, dim=1).reshape(over_maps)

    d_normed = weight * passed - shared(weight * passed)
    dx_bcs = inverse * (d_normed - normed * shared(weight * products))
    others = [0, *range(2, x_bcs.ndim)]
    return dx_bcs.to(x_bcs.dtype), products.sum(others), passed.sum(others)


def _plain(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
    inplace: bool,  # noqa: ARG001 - the same arguments as the kernel's
) -> Tensor:
    device = x_bcs.device.type
    if device != "cpu":
        # elsewhere the types must be one
        weight_c = None if weight_c is None else weight_c.to(x_bcs.dtype)
        bias_c = None if bias_c is None else bias_c.to(x_bcs.dtype)
    # autocast of some devices would give float32, a copy that nothing after it needs
    with without_autocast(device):
        # not the functional form: it refuses a single voxel
        y_bcs = torch.group_norm(x_bcs, groups, weight_c, bias_c, eps)
    if negative_slope == 1:
        return y_bcs
    return F.leaky_relu(y_bcs, negative_slope, inplace=True)
