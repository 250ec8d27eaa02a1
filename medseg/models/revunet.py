"""A partially reversible 3D U-Net of mobile inverted bottlenecks, for little activation memory.

This is a **reconstruction**. The idea is that of Pendse, Thangarasa et al., "Memory Efficient 3D
U-Net with Reversible Mobile Inverted Bottlenecks for Brain Tumor Segmentation" (BrainLes 2020,
arXiv 2104.09648), of which only the abstract was at hand: a 3D U-Net, reversible blocks, and in
them a pointwise expansion, a depthwise convolution and a linear pointwise projection. The skeleton,
with reversible sequences between ordinary down- and upsampling, follows Brügger et al., "A
Partially Reversible U-Net" (MICCAI 2019). No result of either paper is claimed for this code.

What was decided where the sources are silent:

===================  =================================================================
question             decision
===================  =================================================================
channels per level   16, 32, 64, 128; a setting
blocks, expansion    1 per sequence, 4; settings (MobileNetV2 usually has 6)
normalisation        GroupNorm, as batches are small and F and G run twice per step
activation           ReLU, which keeps one map for its gradient where ReLU6 keeps two
squeeze-excitation   off (MobileNetV2 has none, EfficientNet has it); a setting
coupling             additive, halves of the channel axis, F and G alike
inside F and G       no residual of their own: the coupling is the residual
downsampling         max-pool 2, then 1x1x1 convolution
upsampling           1x1x1 convolution, then trilinear times 2
skip                 added
===================  =================================================================

Memory: a stored twin of the *same* network (``memory="stored"``) needs more than three times the
peak activation memory at ``blocks=1`` and more than five times at ``blocks=2`` (expansion 4, ReLU).
A stored U-Net of dense 3x3x3 convolutions of equal widths can need less than this network at
``blocks=1``, because the expansion makes activations wide: the comparison depends on what is
compared. ``benchmarks/reversible.py`` measures all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medseg.models.network import SegmentationNetwork
from medseg.models.setting_rules import broken_rule
from medseg.ops.depthwise import DepthwiseConv3d
from medseg.ops.norm import GroupNorm
from medseg.ops.reversible import (
    AdditiveCoupling,
    Memory,
    ReversibleSequence,
    check_reconstruction,
    reconstruction_error,
)
from medseg.ops.small_map import convolve

__all__ = ["REVUNET_PRESETS", "MobileBottleneck", "RevUNet", "RevUNetSettings"]

Activation = Literal["relu", "relu6", "silu", "leaky_relu"]
# factors of negative numbers, of what the normalisation does as well
_SLOPES = {"relu": 0.0, "leaky_relu": 0.01}
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.Identity,
    "leaky_relu": nn.Identity,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
}
Positive = Annotated[int, Field(ge=1)]


class RevUNetSettings(BaseModel):
    """Settings of :class:`RevUNet`.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        widths: Channels per level, finest first; all even. Their number is the depth.
        blocks: Reversible blocks per sequence; more than four lets rounding errors grow.
        expansion: Factor from the outer to the inner channels of a bottleneck.
        activation: ``relu`` and ``leaky_relu`` need less memory than ``relu6`` and ``silu``.
        squeeze_excitation: Whether a channel gate follows the depthwise convolution.
        squeeze_ratio: Width of the gate over the inner channels.
        norm_groups: Groups of each GroupNorm; must divide half of every width.
        memory: ``reversible`` recomputes activations from outputs, ``stored`` keeps them,
            ``checkpointed`` recomputes them from the kept input of every block. Same weights, same
            forward values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Positive = 4
    out_channels: Positive = 3
    widths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] = (16, 32, 64, 128)
    blocks: Positive = 1
    expansion: Positive = 4
    activation: Activation = "relu"
    squeeze_excitation: bool = False
    squeeze_ratio: Annotated[float, Field(gt=0, le=1)] = 0.25
    norm_groups: Positive = 4
    memory: Memory = "reversible"

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for width in self.widths:
            if width % 2 or (width // 2) % self.norm_groups:
                raise broken_rule(
                    "widths",
                    expected=f"multiples of 2 * norm_groups = {2 * self.norm_groups}",
                    found=self.widths,
                )
        return self


REVUNET_PRESETS = {
    "base": RevUNetSettings(),
    "deep": RevUNetSettings(widths=(16, 32, 64, 128, 256), blocks=2),
    "small": RevUNetSettings(expansion=2),
    "tiny": RevUNetSettings(widths=(8, 16, 32), expansion=2),
}
"""Named sizes. For 4 image and 3 output channels: tiny 14,787, small 141,379, base 258,179 and deep
1,736,259 weights."""


class RevUNet(SegmentationNetwork):
    """The network; ``(b, in_channels, i, j, k)`` to logits ``(b, out_channels, i, j, k)``.

    Args:
        settings: See :class:`RevUNetSettings`.
    """

    def __init__(self, settings: RevUNetSettings) -> None:
        widths = settings.widths
        step = 2 ** (len(widths) - 1)
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            size_multiple=(step, step, step),
            head_strides=((1, 1, 1),),
        )
        self.settings = settings
        self.stem = nn.Conv3d(settings.in_channels, widths[0], 3, padding=1, bias=False)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 1) for fine, coarse in pairs)
        self.encoder = nn.ModuleList(_sequence(width, settings) for width in widths)
        self.decoder = nn.ModuleList(_sequence(width, settings) for width in widths)
        self.up = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairs)
        self.head = nn.Conv3d(widths[0], settings.out_channels, 1)

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """Logits on the lattice of the image.

        Raises:
            ShapeError: If channels or extents do not fit.
        """
        self.check_input(x_bcijk)
        stream = self.encoder[0](convolve(self.stem, x_bcijk))
        skips: list[Tensor] = []
        for sequence, widen in zip(self.encoder[1:], self.down, strict=True):
            skips.append(stream)
            stream = sequence(_convolved(widen, F.max_pool3d(stream, 2)))
        stream = self.decoder[-1](stream)
        for level in range(len(skips) - 1, -1, -1):
            finer = F.interpolate(
                _convolved(self.up[level], stream),
                scale_factor=2,
                mode="trilinear",
                align_corners=False,
            )
            # not in place: the skip is the only record that its sequence keeps
            stream = self.decoder[level](skips.pop() + finer)
        return _convolved(self.head, stream)

    def reconstruction_errors(self, x_bcijk: Tensor) -> dict[str, float]:
        """How far each sequence's inverse misses the input that it has for ``x_bcijk``.

        Args:
            x_bcijk: As for :meth:`forward`; may be any size that it takes.

        Returns:
            By the sequence's name (``encoder.0`` is the finest level's), in the order in which they
            are applied: largest deviation over largest magnitude.

        Raises:
            ShapeError: If channels or extents do not fit.
        """
        errors: dict[str, float] = {}

        def measure(name: str, sequence: ReversibleSequence, stream: Tensor) -> None:
            errors[name] = reconstruction_error(sequence, stream)

        self._visit(x_bcijk, measure)
        return errors

    def check_reconstruction(self, x_bcijk: Tensor, tolerance: float = 1e-3) -> None:
        """Debug check: whether recomputed activations are those of the forward pass.

        Works for every kind of memory, in the present mode and under the caller's autocast; costs
        two forward passes and changes nothing. Call it now and then during training, or when a
        reversible run diverges where a stored one does not.

        Args:
            x_bcijk: As for :meth:`forward`.
            tolerance: Largest relative error that is let pass.

        Raises:
            ConfigError: If a sequence's error is larger or not a number; the message names it.
            ShapeError: If channels or extents do not fit.
        """

        def check(name: str, sequence: ReversibleSequence, stream: Tensor) -> None:
            check_reconstruction(sequence, stream, tolerance, where=f"RevUNet {name}")

        self._visit(x_bcijk, check)

    def _visit(
        self, x_bcijk: Tensor, visit: Callable[[str, ReversibleSequence, Tensor], None]
    ) -> None:
        # the sequences' inputs exist only on the way through the network
        hooks = [
            module.register_forward_pre_hook(
                lambda sequence, inputs, name=name: visit(name, sequence, inputs[0])
            )
            for name, module in self.named_modules()
            if isinstance(module, ReversibleSequence)
        ]
        try:
            with torch.no_grad():
                self(x_bcijk)
        finally:
            for hook in hooks:
                hook.remove()


class MobileBottleneck(nn.Module):
    """F or G of a coupling: expand 1x1x1, depthwise 3x3x3, project 1x1x1 linearly; c to c.

    Convolutions have no bias and GroupNorm after each; the activation follows the first two. With
    ``t`` the expansion and no gate there are ``2tc^2 + 27tc + (4t + 2)c`` weights (block of Sandler
    et al., "MobileNetV2", CVPR 2018, in 3D and without its residual).

    Args:
        channels: Outer channels ``c``.
        settings: Expansion, activation, groups and gate.
    """

    def __init__(self, channels: int, settings: RevUNetSettings) -> None:
        super().__init__()
        inner = settings.expansion * channels
        groups = settings.norm_groups
        self.expand = nn.Conv3d(channels, inner, 1, bias=False)
        # the normalisation does the activation in the same pass where it can
        slope = _SLOPES.get(settings.activation, 1.0)
        self.expand_norm = GroupNorm(groups, inner, negative_slope=slope)
        self.depthwise = DepthwiseConv3d(inner)
        self.depthwise_norm = GroupNorm(groups, inner, negative_slope=slope)
        self.gate = (
            ChannelGate(inner, settings.squeeze_ratio) if settings.squeeze_excitation else None
        )
        self.project = nn.Conv3d(inner, channels, 1, bias=False)
        self.project_norm = GroupNorm(groups, channels)
        self.activation = _ACTIVATIONS[settings.activation]()

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """``(b, channels, i, j, k)`` to the same."""
        inner = self.activation(self.expand_norm(self.expand(x_bcijk)))
        inner = self.activation(self.depthwise_norm(self.depthwise(inner)))
        if self.gate is not None:
            inner = self.gate(inner)
        out: Tensor = self.project_norm(self.project(inner))
        return out


class ChannelGate(nn.Module):
    """Squeeze and excitation: a factor in (0, 1) per channel from the channel means.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, section 3.

    Args:
        channels: Channels of the map.
        ratio: Width of the hidden layer over ``channels``; at least one unit.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(channels * ratio))
        self.squeeze = nn.Conv3d(channels, hidden, 1)
        self.excite = nn.Conv3d(hidden, channels, 1)

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """``(b, channels, i, j, k)`` to the same."""
        means = x_bcijk.mean(dim=(2, 3, 4), keepdim=True)
        gate: Tensor = self.excite(self.squeeze(means).relu()).sigmoid()
        return x_bcijk * gate


def _sequence(width: int, settings: RevUNetSettings) -> ReversibleSequence:
    half = width // 2
    return ReversibleSequence(
        [
            AdditiveCoupling(MobileBottleneck(half, settings), MobileBottleneck(half, settings))
            for _ in range(settings.blocks)
        ],
        memory=settings.memory,
    )


def _convolved(conv: nn.Module, stream: Tensor) -> Tensor:
    # the stream is float32 at least; the weights may be half
    weight: Any = conv.weight
    y_bcijk: Tensor = conv(stream.to(weight.dtype))
    return y_bcijk
