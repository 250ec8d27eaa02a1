"""Instance normalisation with the activation after it, for tensors of any rank and layout.

``torch.nn.functional.instance_norm`` lays a channels-last tensor out anew before and after it works
(torch 2.14), which costs more than the operation. Here a channels-last tensor stays as it is. On a
CPU, in float32 and bfloat16 and without gradient, one kernel takes the statistics in a first pass
and normalises, scales and activates in a second; everywhere else ``group_norm`` with one group per
channel does it, which computes the same (Wu and He, Group Normalization, ECCV 2018) and keeps the
layout on a CPU. Its backward pass is slow there for channels-last tensors (torch 2.14), so that
training on a CPU gains no time from this module.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.ops.autocast import without_autocast
from medseg.ops.kernels.dispatch import Kernel, run, wants_plain
from medseg.ops.kernels.layout import memory_format_of

__all__ = ["InstanceNorm", "instance_norm"]

_KERNELS = (
    Kernel(
        "instance norm (numba)",
        "medseg.ops.kernels.numba_norm",
        "instance_norm",
        device="cpu",
        dtypes=frozenset({torch.float32, torch.bfloat16}),
    ),
)
# below this, calling the kernel costs more than it saves
_LEAST_NUMBERS = 1 << 13


def instance_norm(
    x_bcs: Tensor,
    weight_c: Tensor | None = None,
    bias_c: Tensor | None = None,
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """``act((x - mean) / sqrt(var + eps) * weight + bias)``, mean and variance of each map.

    Each channel of each image is one map; the variance is the biased one. Statistics are float32 or
    better whatever the number type (Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016).

    Args:
        x_bcs: ``(b, c, *spatial)``; a map of a single voxel gives the bias.
        weight_c: ``(c,)``, or None for ones. May be float32 where ``x_bcs`` is narrower.
        bias_c: ``(c,)``, or None for zeros.
        eps: Added to the variance.
        negative_slope: Factor of negative results: 1 for no activation, 0 for ReLU.
        inplace: Whether the result may be written over ``x_bcs``. It then is where the kernel
            runs, which is never the case where a gradient is needed.

    Returns:
        Of the shape, number type and memory format of ``x_bcs``, also under autocast.
    """
    if _kernel_fits(x_bcs, weight_c, bias_c):
        return run(_KERNELS, _plain, x_bcs, weight_c, bias_c, eps, negative_slope, inplace)
    return _plain(x_bcs, weight_c, bias_c, eps, negative_slope, inplace)


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


def _kernel_fits(x_bcs: Tensor, weight_c: Tensor | None, bias_c: Tensor | None) -> bool:
    # a compiler or a trace would miss what the kernel does
    if torch.compiler.is_compiling() or torch._C._is_tracing() or wants_plain(x_bcs):
        return False
    tensors = [x_bcs, *(values for values in (weight_c, bias_c) if values is not None)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return (
        all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
        and x_bcs.numel() >= _LEAST_NUMBERS
        and memory_format_of(x_bcs) != torch.contiguous_format
    )


def _plain(
    x_bcs: Tensor,
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
        y_bcs = torch.group_norm(x_bcs, x_bcs.shape[1], weight_c, bias_c, eps)
    if negative_slope == 1:
        return y_bcs
    return F.leaky_relu(y_bcs, negative_slope, inplace=True)
