"""TransDAE: a 2D transformer U-Net with a spatial and a channel attention in every block.

This is a **reconstruction**. The idea is that of Azad, Adibfar and Fu, "TransDAE: Dual Attention
Mechanism in a Hierarchical Transformer for Efficient Medical Image Segmentation" (arXiv
2409.02018). Of it only the abstract and two third-party summaries were at hand, and there is no
public code. What they leave open follows the parent network, DAE-Former (Azad et al., "DAE-Former:
Dual Attention-Guided Efficient Transformer for Medical Image Segmentation", arXiv 2212.13504,
after its public code), or was decided here. No result of either paper is claimed for this code.

What was decided, and how sure it is:

=================  =====================================  ==========================================
question           default                                why; alternate; certainty
=================  =====================================  ==========================================
stages             3: 128, 320, 512 channels at strides   DAE-Former's code; ``dims``; medium
                   4, 8, 16
depth              2 dual blocks per encoder stage and    DAE-Former's code; ``depths``,
                   per decoder level                      ``decoder_depths``; medium
spatial attention  spatial-reduction attention, heads of  a summary names spatial reduction,
                   64 channels, reductions 8, 4, 2        SegFormer these ratios; ``block="v1"``,
                                                          ``heads``, ``reductions``; medium to low
channel attention  Efficient Attention, one head          both summaries; ``efficient_heads``; type
                                                          high, heads medium
order in a block   spatial, FFN, channel, FFN; pre-norm   DAE-Former's order; ``order``; medium to
                   residuals                              low
FFN                Mix-FFN with inner skip, ratio 4       DAE-Former's default; ``ffn``,
                                                          ``ffn_ratio``; medium
skip               inter-scale interaction module (ISIM)  abstract; ``skip="scca"`` (DAE-Former's);
                                                          that it replaces it: high
inside the ISIM    1x1 fusion of encoder and decoder, a   a summary: "decomposes large-kernel
                   large-kernel gate, residuals           operations"; ``isim_fusion``,
                                                          ``isim_output``, ``isim_scales``,
                                                          ``isim_kernel``, ``isim_dilation``; low
head               x4 patch expanding, 1x1 convolution    DAE-Former's code; medium
input              one channel is repeated to three       DAE-Former's code; medium
=================  =====================================  ==========================================

DAE-Former itself, as a baseline, is ``block="v1"`` with ``skip="scca"``. As released it also holds
18,382,864 weights that never get a gradient (the attention and blocks of the decoder's first step,
and two LayerNorms per FFN); they are left out here, and nothing that the network computes changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medseg.models.network import SegmentationNetwork
from medseg.models.setting_rules import broken_rule
from medseg.ops.autocast import without_autocast

__all__ = ["TRANSDAE_PRESETS", "TransDAE", "TransDAESettings", "efficient_attention"]

Positive = Annotated[int, Field(ge=1)]


class TransDAESettings(BaseModel):
    """Settings of :class:`TransDAE`; per stage or level means finest first.

    Attributes:
        in_channels: Channels of the image. One channel is repeated to the three that DAE-Former
            embeds; any other number gets a patch embedding of its own width.
        out_channels: Channels of the logits.
        dims: Channels of each encoder stage; all but the first even. Strides are 4, 8, 16, ...
        depths: Dual blocks of each encoder stage.
        decoder_depths: Dual blocks of each decoder level; one fewer than the stages.
        block: ``r`` has spatial-reduction attention and Efficient Attention, ``v1`` (DAE-Former's
            block) Efficient Attention and transposed channel attention.
        heads: Heads of the spatial-reduction attention of each stage; read by block ``r``.
        reductions: By how much that attention shrinks each axis of its keys and values, stage by
            stage; read by block ``r``. Legal extents follow from it.
        efficient_heads: Heads of Efficient Attention; they divide every entry of ``dims``.
        transposed_heads: Heads of the transposed attention; read by block ``v1``; they divide every
            entry of ``dims``.
        order: ``spatial_first`` is spatial attention, FFN, channel attention, FFN;
            ``channel_first`` swaps the halves; ``parallel`` adds both attentions of the same tokens
            and then both FFNs. The weights are the same in all three.
        ffn: ``mix_skip`` is GELU(LN(DW(h) + h)), ``mix`` is GELU(DW(h)), between two linear layers.
        ffn_ratio: Inner channels of an FFN over its outer channels.
        skip: ``isim``, or ``scca``: DAE-Former's skip connection cross attention.
        isim_fusion: ``concat`` mixes the stacked, ``add`` the added maps of encoder and decoder.
        isim_output: ``full`` gives P3(z * gate) + encoder + decoder, ``gate`` gives
            decoder + encoder * gate.
        isim_scales: ``level`` sees the encoder map of its own level, ``all`` adds the maps of every
            other encoder stage, projected and resampled, to it.
        isim_kernel: Extent ``K`` of the large kernel that the gate decomposes.
        isim_dilation: Dilation ``d`` of the decomposition: a depthwise kernel of ``2d - 1``, then
            one of ``ceil(K / d)``, which must be odd, with dilation ``d``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Positive = 1
    out_channels: Positive = 9
    dims: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=5)] = (128, 320, 512)
    depths: tuple[Positive, ...] = (2, 2, 2)
    decoder_depths: tuple[Positive, ...] = (2, 2)
    block: Literal["r", "v1"] = "r"
    heads: tuple[Positive, ...] = (2, 5, 8)
    reductions: tuple[Positive, ...] = (8, 4, 2)
    efficient_heads: Positive = 1
    transposed_heads: Positive = 8
    order: Literal["spatial_first", "channel_first", "parallel"] = "spatial_first"
    ffn: Literal["mix_skip", "mix"] = "mix_skip"
    ffn_ratio: Positive = 4
    skip: Literal["isim", "scca"] = "isim"
    isim_fusion: Literal["concat", "add"] = "concat"
    isim_output: Literal["full", "gate"] = "full"
    isim_scales: Literal["level", "all"] = "level"
    isim_kernel: Positive = 21
    isim_dilation: Positive = 3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = len(self.dims)
        per_stage = {"depths": self.depths}
        if self.block == "r":
            per_stage |= {"heads": self.heads, "reductions": self.reductions}
        for name, values in per_stage.items():
            if len(values) != stages:
                raise broken_rule(
                    name, expected=f"one entry per stage, {stages} as in dims", found=values
                )
        if len(self.decoder_depths) != stages - 1:
            raise broken_rule(
                "decoder_depths",
                expected=f"one entry per decoder level, {stages - 1}: one fewer than dims",
                found=self.decoder_depths,
            )
        if any(dim % 2 for dim in self.dims[1:]):
            raise broken_rule(
                "dims",
                expected="even numbers after the first, as expanding halves them",
                found=self.dims,
            )
        self._check_heads()
        if -(-self.isim_kernel // self.isim_dilation) % 2 == 0:
            raise broken_rule(
                "isim_kernel",
                expected=f"an odd number once divided by isim_dilation = {self.isim_dilation} and "
                "rounded up, as the gate keeps the lattice",
                found=self.isim_kernel,
            )
        return self

    def _check_heads(self) -> None:
        stages = len(self.dims)
        counts = {"efficient_heads": (self.efficient_heads,) * stages}
        if self.block == "r":
            counts["heads"] = self.heads
        else:
            counts["transposed_heads"] = (self.transposed_heads,) * stages
        for name, heads in counts.items():
            for dim, count in zip(self.dims, heads, strict=True):
                if dim % count:
                    raise broken_rule(
                        name,
                        expected=f"numbers of heads that divide dims ({count} heads do not divide "
                        f"{dim} channels)",
                        found=getattr(self, name),
                    )

    @property
    def strides(self) -> tuple[int, ...]:
        """Extents of the image over those of each encoder stage."""
        return tuple(4 * 2**stage for stage in range(len(self.dims)))


_SMALL = TransDAESettings(out_channels=2, dims=(32, 64, 160), heads=(1, 2, 5))

TRANSDAE_PRESETS = {
    "base": TransDAESettings(),
    "v1": TransDAESettings(block="v1"),
    "daeformer": TransDAESettings(block="v1", skip="scca"),
    "small": _SMALL,
    "tiny": TransDAESettings(
        out_channels=2,
        dims=(16, 32, 64),
        heads=(1, 2, 4),
        depths=(1, 1, 1),
        decoder_depths=(1, 1),
    ),
}
"""``base`` is the default reading with 40,656,905 weights, ``v1`` has DAE-Former's block
(27,795,033) and ``daeformer`` is DAE-Former without its idle weights (29,690,201), all for 9
classes. ``small`` and ``tiny`` are ours, for machines without accelerator."""


class TransDAE(SegmentationNetwork):
    """The network; ``(b, in_channels, h, w)`` to logits ``(b, out_channels, h, w)``.

    Legal extents are multiples of 16 times what the reductions ask for: every stage's map must fall
    into whole reduction windows, else the border would be no key and no value. With the default
    reductions that is 32; without spatial reduction (block ``v1``) it is 16.

    The decoder starts from Xavier-uniform weights and zero biases, the encoder from PyTorch's
    defaults, as in DAE-Former's code.

    Args:
        settings: See :class:`TransDAESettings`.
    """

    def __init__(self, settings: TransDAESettings) -> None:
        dims, strides = settings.dims, settings.strides
        reductions = settings.reductions if settings.block == "r" else (1,) * len(dims)
        windows = (stride * ratio for stride, ratio in zip(strides, reductions, strict=True))
        step = math.lcm(strides[-1], *windows)
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            size_multiple=(step, step),
            head_strides=((1, 1),),
        )
        self.settings = settings
        self.embedded_channels = 3 if settings.in_channels == 1 else settings.in_channels
        widths_in = (self.embedded_channels, *dims[:-1])
        self.encoder = nn.ModuleList(
            EncoderStage(widths_in[stage], stage, settings) for stage in range(len(dims))
        )
        self.decoder = nn.ModuleList(
            DecoderLevel(level, settings) for level in range(len(dims) - 2, -1, -1)
        )
        self.expand = PatchExpand(dims[0], dims[0], 4)
        self.head = nn.Conv2d(dims[0], settings.out_channels, 1)
        for part in (self.decoder, self.expand, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Logits on the lattice of the image.

        Raises:
            ShapeError: If channels or extents do not fit.
        """
        self.check_input(x_bchw)
        y_bhwc = x_bchw.expand(-1, self.embedded_channels, -1, -1).permute(0, 2, 3, 1)
        scales_bhwc: list[Tensor] = []
        for stage in self.encoder:
            y_bhwc = stage(y_bhwc)
            scales_bhwc.append(y_bhwc)
        for level in self.decoder:
            y_bhwc = level(y_bhwc, scales_bhwc)
        logits: Tensor = self.head(self.expand(y_bhwc).permute(0, 3, 1, 2))
        return logits


class MapConv2d(nn.Conv2d):
    """``nn.Conv2d`` for maps ``(b, h, w, c)``, as LayerNorm, linear layers and tokens want them."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is nn.Conv2d's
        """``(b, h, w, in_channels)`` to ``(b, *strided, out_channels)``."""
        # the permuted view is a channels-last tensor: nothing is copied
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class EncoderStage(nn.Module):
    """Overlapping patch embedding, dual blocks, LayerNorm.

    There is no positional embedding: the depthwise convolution of the FFNs sees the position.

    Args:
        channels_in: Channels of the input.
        stage: Which stage, 0 for the finest: it embeds with a 7x7 convolution of stride 4, later
            ones with 3x3 and stride 2.
        settings: Of the network.
    """

    def __init__(self, channels_in: int, stage: int, settings: TransDAESettings) -> None:
        super().__init__()
        channels = settings.dims[stage]
        kernel, stride = (3, 2) if stage else (7, 4)
        self.embed = MapConv2d(channels_in, channels, kernel, stride, padding=kernel // 2)
        self.embed_norm = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(
            *(DualBlock(stage, settings) for _ in range(settings.depths[stage]))
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, channels_in)`` to ``(b, h / stride, w / stride, dims[stage])``."""
        y_bhwc: Tensor = self.norm(self.blocks(self.embed_norm(self.embed(x_bhwc))))
        return y_bhwc


class DecoderLevel(nn.Module):
    """Twofold patch expanding, projection, skip connection, dual blocks.

    Args:
        level: The encoder stage whose extents and channels the level has.
        settings: Of the network.
    """

    def __init__(self, level: int, settings: TransDAESettings) -> None:
        super().__init__()
        coarse, channels = settings.dims[level + 1], settings.dims[level]
        self.level = level
        self.expand = PatchExpand(coarse, coarse // 2, 2)
        self.project = nn.Linear(coarse // 2, channels)
        self.gather = (
            ScaleGathering(settings.dims, level)
            if settings.skip == "isim" and settings.isim_scales == "all"
            else None
        )
        self.skip = (
            InterScaleInteraction(channels, settings)
            if settings.skip == "isim"
            else CrossAttentionSkip(channels, settings)
        )
        self.blocks = nn.Sequential(
            *(DualBlock(level, settings) for _ in range(settings.decoder_depths[level]))
        )

    def forward(self, x_bhwc: Tensor, scales_bhwc: Sequence[Tensor]) -> Tensor:
        """One decoder step.

        Args:
            x_bhwc: ``(b, h, w, dims[level + 1])``.
            scales_bhwc: The maps of all encoder stages, finest first.

        Returns:
            ``(b, 2h, 2w, dims[level])``.
        """
        decoder_bhwc = self.project(self.expand(x_bhwc))
        encoder_bhwc = scales_bhwc[self.level] if self.gather is None else self.gather(scales_bhwc)
        y_bhwc: Tensor = self.blocks(self.skip(encoder_bhwc, decoder_bhwc))
        return y_bhwc


class DualBlock(nn.Module):
    """Spatial attention, FFN, channel attention, FFN, each a pre-norm residual; c to c.

    See :class:`TransDAESettings` for the two kinds of block and the three orders.

    Args:
        stage: The encoder stage whose channels, heads and reduction the block has.
        settings: Of the network.
    """

    def __init__(self, stage: int, settings: TransDAESettings) -> None:
        super().__init__()
        channels = settings.dims[stage]
        efficient = EfficientAttention(channels, settings.efficient_heads)
        if settings.block == "r":
            spatial: nn.Module = SpatialReductionAttention(
                channels, settings.heads[stage], settings.reductions[stage]
            )
            channel: nn.Module = efficient
        else:
            spatial = efficient
            channel = TransposedAttention(channels, settings.transposed_heads)
        inner = settings.ffn_ratio * channels
        self.order = settings.order
        self.spatial = _prenorm(channels, spatial)
        self.spatial_ffn = _prenorm(channels, MixFFN(channels, inner, settings.ffn))
        self.channel = _prenorm(channels, channel)
        self.channel_ffn = _prenorm(channels, MixFFN(channels, inner, settings.ffn))

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, c)`` to the same."""
        if self.order == "parallel":
            x_bhwc = x_bhwc + self.spatial(x_bhwc) + self.channel(x_bhwc)
            y_bhwc: Tensor = x_bhwc + self.spatial_ffn(x_bhwc) + self.channel_ffn(x_bhwc)
            return y_bhwc
        halves = [(self.spatial, self.spatial_ffn), (self.channel, self.channel_ffn)]
        if self.order == "channel_first":
            halves.reverse()
        for attention, ffn in halves:
            x_bhwc = x_bhwc + attention(x_bhwc)
            x_bhwc = x_bhwc + ffn(x_bhwc)
        return x_bhwc


def efficient_attention(q_bhnd: Tensor, k_bhnd: Tensor, v_bhne: Tensor) -> Tensor:
    """Attention at a cost linear in the tokens: softmax(q over d) (softmax(k over n)^T v).

    The n x n map that is never formed, softmax(q) softmax(k)^T, has rows that sum to 1. The sum
    over the tokens is taken in at least float32, because its weights are about 1/n each. There is
    no factor 1/sqrt(d). Source: Shen et al., "Efficient Attention: Attention with Linear
    Complexities", WACV 2021, section 3.2, softmax normalisation.

    Args:
        q_bhnd: Queries ``(b, heads, n, d)``.
        k_bhnd: Keys ``(b, heads, n, d)``.
        v_bhne: Values ``(b, heads, n, e)``.

    Returns:
        ``(b, heads, n, e)``.
    """
    query_bhnd = q_bhnd.softmax(dim=-1)
    with without_autocast(k_bhnd.device.type):
        context_bhde = _context(k_bhnd, v_bhne)
    return query_bhnd @ context_bhde.to(query_bhnd.dtype)


def _context(k_bhnd: Tensor, v_bhne: Tensor) -> Tensor:
    return _wide(k_bhnd).softmax(dim=-2).transpose(-2, -1) @ _wide(v_bhne)


def _wide(x_bhnd: Tensor) -> Tensor:
    return x_bhnd.to(torch.promote_types(x_bhnd.dtype, torch.float32))


class EfficientAttention(nn.Module):
    """Linear queries, keys and values, :func:`efficient_attention`, linear output.

    There are ``4c^2 + 4c`` weights.

    Args:
        channels: ``c``, in and out.
        heads: Must divide ``c``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, c)`` to the same."""
        mixed_bhnd = efficient_attention(
            _split_heads(self.query(x_bhwc), self.heads),
            _split_heads(self.key(x_bhwc), self.heads),
            _split_heads(self.value(x_bhwc), self.heads),
        )
        y_bhwc: Tensor = self.project(mixed_bhnd.transpose(1, 2).reshape(x_bhwc.shape))
        return y_bhwc


class SpatialReductionAttention(nn.Module):
    """Scaled dot-product attention whose keys and values come from a map shrunk by a convolution.

    With ``r`` the reduction there are ``4c^2 + 4c + r^2 c^2 + 3c`` weights, and ``4c^2 + 4c`` if it
    is 1. Source: Wang et al., "Pyramid Vision Transformer", ICCV 2021, section 3.3, with the biases
    and the LayerNorm of Xie et al., "SegFormer", NeurIPS 2021.

    Args:
        channels: ``c``, in and out.
        heads: Must divide ``c``.
        reduction: Kernel and stride of the convolution.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.reduce = (
            nn.Sequential(
                MapConv2d(channels, channels, reduction, reduction), nn.LayerNorm(channels)
            )
            if reduction > 1
            else nn.Identity()
        )
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, c)`` to the same; h and w multiples of the reduction."""
        key_bhwc, value_bhwc = self.key_value(self.reduce(x_bhwc)).chunk(2, dim=-1)
        mixed_bhnd = F.scaled_dot_product_attention(
            _split_heads(self.query(x_bhwc), self.heads),
            _split_heads(key_bhwc, self.heads),
            _split_heads(value_bhwc, self.heads),
        )
        y_bhwc: Tensor = self.project(mixed_bhnd.transpose(1, 2).reshape(x_bhwc.shape))
        return y_bhwc


class TransposedAttention(nn.Module):
    """Attention between channels: softmax(t * q k^T) v with q, k, v of shape channels x tokens.

    Each channel of q and k is scaled to L2 norm 1 over the tokens; ``t`` is a learnt factor per
    head, 1 at first. Norms, products and softmax are taken in at least float32. There are
    ``4c^2 + c + heads`` weights. Source: El-Nouby et al., "XCiT: Cross-Covariance Image
    Transformers", NeurIPS 2021, section 3.2, as in DAE-Former's code; the norms are divided out
    after the product, which is the same and keeps fewer tensors for the backward pass.

    Args:
        channels: ``c``, in and out.
        heads: Must divide ``c``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, c)`` to the same."""
        q_bhnd, k_bhnd, v_bhnd = (
            _split_heads(part_bhwc, self.heads)
            for part_bhwc in self.query_key_value(x_bhwc).chunk(3, dim=-1)
        )
        with without_autocast(q_bhnd.device.type):
            weights_bhdd = self._weights(_wide(q_bhnd), _wide(k_bhnd))
        mixed_bhnd = v_bhnd @ weights_bhdd.transpose(-2, -1).to(v_bhnd.dtype)
        y_bhwc: Tensor = self.project(mixed_bhnd.transpose(1, 2).reshape(x_bhwc.shape))
        return y_bhwc

    def _weights(self, q_bhnd: Tensor, k_bhnd: Tensor) -> Tensor:
        norms_bhdd = _norms(q_bhnd).transpose(-2, -1) * _norms(k_bhnd)
        gram_bhdd = q_bhnd.transpose(-2, -1) @ k_bhnd
        weights_bhdd: Tensor = (self.temperature * (gram_bhdd / norms_bhdd)).softmax(dim=-1)
        return weights_bhdd


def _norms(x_bhnd: Tensor) -> Tensor:
    # as in F.normalize, so that a channel of zeros is divided by no zero
    norms_bh1d: Tensor = torch.linalg.vector_norm(x_bhnd, dim=-2, keepdim=True)
    return norms_bh1d.clamp_min(1e-12)


class MixFFN(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear; position enters through the convolution.

    ``mix_skip`` is GELU(LN(DW(h) + h)) between the linear layers, after DAE-Former's code and
    without the two LayerNorms that it owns but never uses; ``mix`` is GELU(DW(h)), after Xie et
    al., "SegFormer", NeurIPS 2021, section 3.1. With ``inner = 4c`` there are ``8c^2 + 53c`` and
    ``8c^2 + 45c`` weights.

    Args:
        channels: ``c``, in and out.
        inner: Channels between the linear layers.
        kind: See :class:`TransDAESettings`.
    """

    def __init__(self, channels: int, inner: int, kind: Literal["mix_skip", "mix"]) -> None:
        super().__init__()
        self.widen = nn.Linear(channels, inner)
        self.depthwise = MapConv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = nn.LayerNorm(inner) if kind == "mix_skip" else None
        self.narrow = nn.Linear(inner, channels)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, c)`` to the same."""
        inner_bhwc = self.widen(x_bhwc)
        mixed_bhwc = self.depthwise(inner_bhwc)
        if self.norm is not None:
            mixed_bhwc = self.norm(mixed_bhwc + inner_bhwc)
        y_bhwc: Tensor = self.narrow(F.gelu(mixed_bhwc))
        return y_bhwc


class PatchExpand(nn.Module):
    """Linear layer without bias, its channels laid out in space, LayerNorm.

    Convention:
        Channel ``(row * factor + column) * channels_out + c`` of the linear layer becomes channel
        ``c`` at that sub-position: sub-positions before channels, not after them as in
        ``torch.nn.PixelShuffle``.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        factor: By how much both axes grow.
    """

    def __init__(self, channels_in: int, channels_out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.channels_out = channels_out
        self.widen = nn.Linear(channels_in, factor**2 * channels_out, bias=False)
        self.norm = nn.LayerNorm(channels_out)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        """``(b, h, w, channels_in)`` to ``(b, h * factor, w * factor, channels_out)``."""
        b, h, w, _ = x_bhwc.shape
        p, c = self.factor, self.channels_out
        parts = self.widen(x_bhwc).reshape(b, h, w, p, p, c)
        y_bhwc: Tensor = self.norm(parts.transpose(2, 3).reshape(b, h * p, w * p, c))
        return y_bhwc


class InterScaleInteraction(nn.Module):
    """Skip connection with a large-kernel gate; encoder map e and decoder map d of c channels.

    z = GELU(P1[e; d]); a = P2(DW2(DW1(z))); the result is P3(z * a) + e + d. P1, P2, P3 are 1x1
    convolutions; DW1 and DW2 are depthwise, the second dilated, and together see a large square
    without gaps. All have biases; with kernels 5 and 7 there are ``4c^2 + 79c`` weights.
    Alternates: P1(e + d), and the result d + e * a, for which there is no P3.

    The inner workings are ours: only the summaries' "fuses encoder and decoder features and
    decomposes large-kernel operations" is known. The decomposition is that of Guo et al., "Visual
    Attention Network" (2023), section 3.1.

    Args:
        channels: ``c``.
        settings: Of the network.
    """

    def __init__(self, channels: int, settings: TransDAESettings) -> None:
        super().__init__()
        self.stacked = settings.isim_fusion == "concat"
        dilation = settings.isim_dilation
        local = 2 * dilation - 1
        distant = math.ceil(settings.isim_kernel / dilation)
        self.fuse = nn.Linear((1 + self.stacked) * channels, channels)
        self.local = MapConv2d(channels, channels, local, padding=local // 2, groups=channels)
        self.distant = MapConv2d(
            channels,
            channels,
            distant,
            padding=dilation * (distant // 2),
            dilation=dilation,
            groups=channels,
        )
        self.gate = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels) if settings.isim_output == "full" else None

    def forward(self, encoder_bhwc: Tensor, decoder_bhwc: Tensor) -> Tensor:
        """Two maps ``(b, h, w, c)`` to one."""
        both_bhwc = (
            torch.cat((encoder_bhwc, decoder_bhwc), dim=-1)
            if self.stacked
            else encoder_bhwc + decoder_bhwc
        )
        fused_bhwc = F.gelu(self.fuse(both_bhwc))
        gate_bhwc = self.gate(self.distant(self.local(fused_bhwc)))
        y_bhwc: Tensor = (
            decoder_bhwc + encoder_bhwc * gate_bhwc
            if self.output is None
            else self.output(fused_bhwc * gate_bhwc) + encoder_bhwc + decoder_bhwc
        )
        return y_bhwc


class ScaleGathering(nn.Module):
    """Adds the maps of all other encoder stages, projected and resampled, to that of one level.

    Finer maps are averaged over windows and then projected, coarser ones projected and then
    resampled bilinearly; each projection is a 1x1 convolution with bias. Our reading of
    "inter-scale"; see ``isim_scales``.

    Args:
        dims: Channels of each encoder stage.
        level: The stage whose extents and channels the result has.
    """

    def __init__(self, dims: tuple[int, ...], level: int) -> None:
        super().__init__()
        self.level = level
        self.project = nn.ModuleDict(
            {
                str(stage): nn.Linear(dim, dims[level])
                for stage, dim in enumerate(dims)
                if stage != level
            }
        )

    def forward(self, scales_bhwc: Sequence[Tensor]) -> Tensor:
        """All encoder maps ``(b, h_s, w_s, dims[s])`` to ``(b, h, w, dims[level])``."""
        gathered_bhwc = scales_bhwc[self.level]
        extents = gathered_bhwc.shape[1:3]
        for stage, project in self.project.items():
            finer = self.level - int(stage)
            x_bchw = scales_bhwc[int(stage)].permute(0, 3, 1, 2)
            if finer > 0:
                x_bchw = F.avg_pool2d(x_bchw, 2**finer)
                gathered_bhwc = gathered_bhwc + project(x_bchw.permute(0, 2, 3, 1))
            else:
                y_bchw = project(x_bchw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                y_bchw = F.interpolate(y_bchw, size=extents, mode="bilinear", align_corners=False)
                gathered_bhwc = gathered_bhwc + y_bchw.permute(0, 2, 3, 1)
        return gathered_bhwc


class CrossAttentionSkip(nn.Module):
    """DAE-Former's skip connection cross attention (SCCA); encoder map e and decoder map d.

    One LayerNorm for both maps; Efficient Attention with the encoder's map as keys and queries, not
    projected, and the decoder's map as values; linear layer to 2c, LayerNorm; residual from [d; e];
    pre-norm Mix-FFN with its residual; linear layer back to c. Roles follow DAE-Former's code, not
    its figure.

    Args:
        channels: ``c``.
        settings: Of the network.
    """

    def __init__(self, channels: int, settings: TransDAESettings) -> None:
        super().__init__()
        double = 2 * channels
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, double)
        self.widen_norm = nn.LayerNorm(double)
        self.ffn = _prenorm(double, MixFFN(double, settings.ffn_ratio * channels, settings.ffn))
        self.narrow = nn.Linear(double, channels)

    def forward(self, encoder_bhwc: Tensor, decoder_bhwc: Tensor) -> Tensor:
        """Two maps ``(b, h, w, c)`` to one."""
        key_bhnd = _split_heads(self.norm(encoder_bhwc), 1)
        value_bhnd = _split_heads(self.norm(decoder_bhwc), 1)
        mixed_bhnd = efficient_attention(key_bhnd, key_bhnd, value_bhnd)
        mixed_bhwc = self.widen_norm(self.widen(mixed_bhnd.reshape(encoder_bhwc.shape)))
        both_bhwc = torch.cat((decoder_bhwc, encoder_bhwc), dim=-1) + mixed_bhwc
        y_bhwc: Tensor = self.narrow(both_bhwc + self.ffn(both_bhwc))
        return y_bhwc


def _prenorm(channels: int, module: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(channels), module)


def _split_heads(x_bhwc: Tensor, heads: int) -> Tensor:
    """``(b, h, w, c)`` to ``(b, heads, h * w, c / heads)``."""
    b, h, w, c = x_bhwc.shape
    return x_bhwc.reshape(b, h * w, heads, c // heads).transpose(1, 2)
