"""QTSeg: a 2D network in which one query token per class reads an image pyramid.

"QTSeg: A Query Token-Based Dual-Mix Attention Framework with Multi-Level Feature Distribution for
Medical Image Segmentation", arXiv 2412.17241, after the authors' public code at version 0.3.1. Its
numbers of weights and operations are those of the paper's Table I. Where the paper's figure and the
code differ, this follows the code.

A YOLOv8-nano backbone and neck give maps at strides 8, 16 and 32. The bridge (MLFD) gives every
scale a share of all three. Three decoder stages (DMAD), coarse to fine, let the tokens and the
pixels attend to each other. The logits are the products of tokens and pixels at stride 2, doubled
bilinearly.

Changed against the authors' code, with the same values: the row maximum before the softmax of the
channel attention is left out, as a softmax does not see it; the products of that attention are in
float32 under autocast; the position maps are sums of a row and a column part. The pixel embedding
is not returned beside the logits. No result of the paper is claimed for this code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.models.network import SegmentationNetwork
from medseg.models.setting_rules import broken_rule
from medseg.models.state_file import weight_path
from medseg.models.yolo_encoder import ConvUnit, YoloEncoder, load_yolo_weights
from medseg.ops.autocast import without_autocast

__all__ = ["QTSEG_PRESETS", "QTSeg", "QTSegSettings"]

Positive = Annotated[int, Field(ge=1)]

_COARSEST = 32


class QTSegSettings(BaseModel):
    """Settings of :class:`QTSeg`; the defaults are the published network for two classes.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Channels of the logits: classes with background, one query token each.
        base_width: ``n``, the channels after the first convolution. All widths of encoder and
            decoder follow: ``4n``, ``8n`` and ``16n`` at strides 8, 16 and 32.
        depths: Bottlenecks in the encoder's layers 2, 4, 6 and 8.
        neck_depth: Bottlenecks in each of the encoder's layers 12, 15, 18 and 21.
        mask_depths: Dual-mix blocks of the decoder stages at strides 8, 16 and 32.
        heads: Of every attention; divides ``2 * base_width``.
        token_hidden: Hidden width of the token MLP in every dual-mix block.
        norm_eps: Eps of every batch normalisation. QTSeg has 1e-5. Ultralytics trains YOLOv8 with
            1e-3, which a state dict does not carry: set it when such weights are to compute what
            they computed there.
        norm_momentum: Momentum of the running statistics: 0.1 in QTSeg, 0.03 in Ultralytics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Positive = 3
    out_channels: Positive = 2
    base_width: Positive = 16
    depths: tuple[Positive, Positive, Positive, Positive] = (1, 2, 2, 1)
    neck_depth: Positive = 1
    mask_depths: tuple[Positive, Positive, Positive] = (1, 2, 3)
    heads: Positive = 8
    token_hidden: Positive = 2048
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if 2 * self.base_width % self.heads:
            raise broken_rule(
                "heads",
                expected=f"a number that divides 2 * base_width = {2 * self.base_width}, the inner "
                "width of the finest attention",
                found=self.heads,
            )
        return self


QTSEG_PRESETS = {
    "base": QTSegSettings(),
    "small": QTSegSettings(in_channels=1, base_width=8, token_hidden=512),
    "tiny": QTSegSettings(
        in_channels=1, base_width=4, mask_depths=(1, 1, 1), heads=4, token_hidden=128
    ),
}
"""``base`` is the published configuration, 9,214,850 weights for RGB images of 512 x 512 and two
classes. ``small`` and ``tiny`` are ours, for grey images and machines without accelerator:
1,754,330 and 274,109 weights."""


class QTSeg(SegmentationNetwork):
    """The network; ``(b, in_channels, h, w)`` to logits ``(b, out_channels, h, w)``.

    Extents are multiples of 32. There is one output in both modes. The matrices of the position
    maps are drawn, not learned: two fresh networks differ in them, and they are stored with the
    weights.

    Args:
        settings: See :class:`QTSegSettings`.
    """

    def __init__(self, settings: QTSegSettings) -> None:
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            size_multiple=(_COARSEST, _COARSEST),
            head_strides=((1, 1),),
        )
        self.settings = settings
        self.encoder = YoloEncoder(
            settings.in_channels,
            settings.base_width,
            settings.depths,
            settings.neck_depth,
            eps=settings.norm_eps,
            momentum=settings.norm_momentum,
        )
        self.bridge = LevelDistribution(settings)
        self.decoder = TokenDecoder(settings)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Logits on the lattice of the image, before any softmax.

        Raises:
            ShapeError: If channels or extents do not fit, or if a batch in training mode is so
                small that a batch normalisation at stride 32 would see one value per channel.
        """
        self.check_input(x_bchw)
        b, _, h, w = x_bchw.shape
        if self.training and b * h * w <= _COARSEST**2:
            raise ShapeError(
                f"{type(self).__name__} input",
                expected="two pixels or more at stride 32 for the batch statistics of training",
                found=f"one image of {h} x {w}",
                remedy="train on more or larger images, or call eval() first",
                code="network-batch",
            )
        half_bkhw = self.decoder(self.bridge(self.encoder(x_bchw)))
        return F.interpolate(half_bkhw, scale_factor=2.0, mode="bilinear", align_corners=False)

    def load_encoder_weights(self, source: Path | Literal["timm"]) -> None:
        """Fill the encoder from a local YOLOv8-nano or fpn-nano state dict.

        Keys and errors: see :func:`~medseg.models.yolo_encoder.load_yolo_weights`; files: see
        :func:`~medseg.models.state_file.read_state`. On the eps that the weights were trained with:
        see ``norm_eps`` of :class:`QTSegSettings`.

        Args:
            source: A file for the network's width, depths and image channels (16 and 3 for those
                two).

        Raises:
            ConfigError: If timm's weights are asked for, as timm has no such network, or
                ``source`` is no path.
            FormatError: If the file is missing, is no state dict, or does not fit; the network is
                unchanged then.
        """
        if source == "timm":
            raise ConfigError(
                "encoder weights",
                expected="a file of YOLOv8-nano or fpn-nano weights",
                found="timm, which has no such network",
                remedy="give the path of a file, or begin with random weights",
                code="weights-unlisted",
            )
        load_yolo_weights(self.encoder, weight_path(source))

    def freeze_encoder(self) -> None:
        """Take the encoder's weights out of training, as the published recipe does at first.

        There a pretrained encoder rests in epochs 1 to 49. In training mode its batch normalisation
        still follows the data, as there. A network already wrapped for distributed training must
        be wrapped again.
        """
        self.encoder.requires_grad_(False)

    def unfreeze_encoder(self) -> None:
        """Take the encoder's weights back into training."""
        self.encoder.requires_grad_(True)


class LevelDistribution(nn.Module):
    """The bridge (multi-level feature distribution): every scale gets a share of all three.

    Each output is the concatenation of three units, one per input, fine to coarse: convolutions
    where the input is as fine or finer, transposed convolutions where it is coarser. For base
    width ``n`` the shares are ``2n, n, n``; ``2n, 4n, 2n``; and ``4n, 4n, 8n`` channels.

    Args:
        settings: Of the network.
    """

    def __init__(self, settings: QTSegSettings) -> None:
        super().__init__()
        n = settings.base_width
        eps, momentum = settings.norm_eps, settings.norm_momentum

        def keep(channels_in: int, channels_out: int) -> ConvUnit:
            return ConvUnit(channels_in, channels_out, 1, eps=eps, momentum=momentum)

        def down(channels_in: int, channels_out: int, stride: int) -> ConvUnit:
            return ConvUnit(channels_in, channels_out, 3, stride, eps=eps, momentum=momentum)

        def grow(channels_in: int, channels_out: int, factor: int) -> GrowUnit:
            return GrowUnit(channels_in, channels_out, factor, eps=eps, momentum=momentum)

        s0, s1, s2 = 4 * n, 8 * n, 16 * n
        self.fine = nn.ModuleList((keep(s0, 2 * n), grow(s1, n, 2), grow(s2, n, 4)))
        self.middle = nn.ModuleList((down(s0, 2 * n, 2), keep(s1, 4 * n), grow(s2, 2 * n, 2)))
        self.coarse = nn.ModuleList((down(s0, 4 * n, 4), down(s1, 4 * n, 2), keep(s2, 8 * n)))

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Maps at strides 8, 16 and 32 to maps of the same shapes."""
        return tuple(
            torch.cat([unit(x) for unit, x in zip(units, maps, strict=True)], dim=1)
            for units in (self.fine, self.middle, self.coarse)
        )


class GrowUnit(nn.Module):
    """Transposed convolution without bias and overlap, batch normalisation, SiLU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        factor: Kernel and stride; both axes grow by it.
        eps: Of the batch normalisation.
        momentum: Of its running statistics.
    """

    def __init__(
        self, channels_in: int, channels_out: int, factor: int, *, eps: float, momentum: float
    ) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, factor, factor, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=eps, momentum=momentum)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels_in, h, w)`` to ``(b, channels_out, factor*h, factor*w)``."""
        return F.silu(self.bn(self.conv(x_bchw)))


class TokenDecoder(nn.Module):
    """Three stages, coarse to fine, then the product of tokens and pixels at stride 2.

    Lists of modules are in the order of the stages: strides 32, 16 and 8.

    Args:
        settings: Of the network.
    """

    def __init__(self, settings: QTSegSettings) -> None:
        super().__init__()
        n, tokens = settings.base_width, settings.out_channels
        widths = (16 * n, 8 * n, 4 * n)
        self.tokens = nn.Parameter(torch.randn(tokens, widths[0]))
        self.positions = nn.ModuleList(PositionMap(width) for width in widths)
        self.stages = nn.ModuleList(
            DualMixStage(width, depth, settings.heads, settings.token_hidden)
            for width, depth in zip(widths, reversed(settings.mask_depths), strict=True)
        )
        self.token_mlps = nn.ModuleList(
            TokenMLPs(tokens, width, following)
            for width, following in zip(widths, (8 * n, 4 * n, 4 * n), strict=True)
        )
        self.growth = nn.ModuleList(
            (
                GrowPixels(16 * n, 8 * n),
                GrowPixels(8 * n, 4 * n),
                nn.Sequential(GrowPixels(4 * n, 2 * n), GrowPixels(2 * n, 4 * n)),
            )
        )

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Maps at strides 8, 16 and 32 to logits ``(b, tokens, h, w)`` at stride 2."""
        at_8_bdhw, at_16_bdhw, at_32_bdhw = maps
        tokens_bkd = self.tokens.expand(at_32_bdhw.shape[0], -1, -1)
        map_bdhw = at_32_bdhw
        for position, stage, token_mlps, grow, finer_bdhw in zip(
            self.positions,
            self.stages,
            self.token_mlps,
            self.growth,
            (at_16_bdhw, at_8_bdhw, None),
            strict=True,
        ):
            b, d, h, w = map_bdhw.shape
            tokens_bkd, pixels_bnd = stage(
                tokens_bkd,
                map_bdhw.flatten(2).transpose(1, 2).contiguous(),
                position(h, w),
                (h, w),
            )
            tokens_bkd = token_mlps(tokens_bkd)
            grown_bdhw = grow(pixels_bnd.transpose(1, 2).reshape(b, d, h, w))
            map_bdhw = grown_bdhw if finer_bdhw is None else finer_bdhw + grown_bdhw
        b, _, h, w = map_bdhw.shape
        return (tokens_bkd @ map_bdhw.flatten(2)).reshape(b, -1, h, w)


class PositionMap(nn.Module):
    """Random Fourier features of the pixel centres (Tancik et al., NeurIPS 2020).

    With centres ``x`` and ``y`` in [-1, 1] and a fixed matrix ``G`` of two rows, drawn from N(0, 1)
    at construction and stored with the weights, a pixel gets ``sin(2 pi (x, y) G)`` and then the
    cosine. The map is computed in float32 at least.

    Args:
        width: Channels of the map; even.
    """

    gaussian: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("gaussian", torch.randn(2, width // 2))

    def forward(self, h: int, w: int) -> Tensor:
        """The map ``(h*w, width)``, row by row, in the type of the stored matrix."""
        dtype, device = self.gaussian.dtype, self.gaussian.device
        fine = torch.promote_types(dtype, torch.float32)
        matrix = 2 * math.pi * self.gaussian.to(fine)
        x_w = (2 * torch.arange(w, dtype=fine, device=device) + 1) / w - 1
        y_h = (2 * torch.arange(h, dtype=fine, device=device) + 1) / h - 1
        # products of single numbers, not a matrix product, which autocast would make coarse
        phase_hwd = y_h[:, None, None] * matrix[1] + x_w[:, None] * matrix[0]
        return torch.cat((phase_hwd.sin(), phase_hwd.cos()), dim=-1).flatten(0, 1).to(dtype)


class DualMixStage(nn.Module):
    """Dual-mix blocks at one scale, then a last attention of the tokens to the pixels (DMAD).

    Args:
        width: ``d``, channels of tokens and pixels.
        depth: Number of blocks.
        heads: Of every attention.
        hidden: Hidden width of the token MLPs.
    """

    def __init__(self, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DualMixBlock(width, heads, hidden) for _ in range(depth))
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens_bkd: Tensor,
        pixels_bnd: Tensor,
        position_nd: Tensor,
        extents: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``(b, k, d)`` and pixels ``(b, h*w, d)``, changed by each other.

        Args:
            tokens_bkd: Also added to the query of the last attention as they come in.
            pixels_bnd: Row by row.
            position_nd: ``(h*w, d)``.
            extents: ``(h, w)``.
        """
        incoming_bkd = tokens_bkd
        for block in self.blocks:
            tokens_bkd, pixels_bnd = block(tokens_bkd, pixels_bnd, position_nd, extents)
        read_bkd = self.attention(tokens_bkd + incoming_bkd, pixels_bnd + position_nd, pixels_bnd)
        return self.norm(tokens_bkd + read_bkd), pixels_bnd


class DualMixBlock(nn.Module):
    """Tokens read two views of the pixels; the pixels read the tokens.

    The views are spatial and channel attention of pixels plus positions. They change the pixels
    only by way of the attentions: the pixels stay a residual stream. The residual of the token MLP
    starts from the incoming tokens, and its normalisation is on the branch alone. The pixels read
    the tokens as they are before that MLP.

    Args:
        width: ``d``, channels of tokens and pixels.
        heads: Of every attention.
        hidden: Hidden width of the token MLP.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.spatial = SpatialGate()
        self.channel = ChannelAttention()
        self.read_spatial = Attention(width, heads)
        self.read_channel = Attention(width, heads)
        self.norm_read = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm_mlp = nn.LayerNorm(width)
        self.write = Attention(width, heads)

    def forward(
        self,
        tokens_bkd: Tensor,
        pixels_bnd: Tensor,
        position_nd: Tensor,
        extents: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`DualMixStage.forward`."""
        placed_bnd = pixels_bnd + position_nd
        spatial_bnd = self.spatial(placed_bnd, extents)
        channel_bnd = self.channel(placed_bnd)
        read_bkd = self.norm_read(
            tokens_bkd
            + self.read_spatial(tokens_bkd, spatial_bnd, spatial_bnd)
            + self.read_channel(tokens_bkd, channel_bnd, channel_bnd)
        )
        query_bnd = spatial_bnd + channel_bnd + position_nd
        return (
            tokens_bkd + self.norm_mlp(self.mlp(read_bkd)),
            pixels_bnd + self.write(query_bnd, read_bkd, read_bkd),
        )


class SpatialGate(nn.Module):
    """Pixels times a gate plus themselves; the gate sees mean and maximum over the channels.

    The gate is that of CBAM (Woo et al., ECCV 2018): a 7x7 convolution of the two maps, sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, pixels_bnd: Tensor, extents: tuple[int, int]) -> Tensor:
        """``(b, h*w, d)`` in and out; ``extents`` is ``(h, w)``."""
        summary_b2n = torch.stack((pixels_bnd.mean(dim=-1), pixels_bnd.amax(dim=-1)), dim=1)
        b, _, n = summary_b2n.shape
        gate_b1hw = self.conv(summary_b2n.reshape(b, 2, *extents)).sigmoid()
        return torch.addcmul(pixels_bnd, pixels_bnd, gate_b1hw.reshape(b, n, 1))


class ChannelAttention(nn.Module):
    """Channels mixed after their Gram matrix, times gamma, plus the pixels.

    After the channel attention of DANet (Fu et al., CVPR 2019): no projections, and the *least*
    alike channels weigh most, as the softmax is of the negated products. They are sums over all
    pixels without scale, so the softmax is nearly a choice at real sizes. Under autocast they are
    computed in float32; float16 would overflow.

    Gamma starts at 0, so a fresh block is the identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, pixels_bnd: Tensor) -> Tensor:
        """``(b, n, d)`` in and out."""
        with without_autocast(pixels_bnd.device.type):
            fine_bnd = pixels_bnd.to(torch.promote_types(pixels_bnd.dtype, torch.float32))
            weights_bdd = (-(fine_bnd.mT @ fine_bnd)).softmax(dim=-1)
            mixed_bnd = fine_bnd @ weights_bdd.mT
            return (self.gamma * mixed_bnd + fine_bnd).to(pixels_bnd.dtype)


class Attention(nn.Module):
    """Multi-head attention in half of the outer width (as in Segment Anything), with biases.

    Args:
        width: ``d``, outer channels.
        heads: Divides ``d / 2``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = width // 2
        self.heads = heads
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, query_bqd: Tensor, key_bnd: Tensor, value_bnd: Tensor) -> Tensor:
        """``(b, q, d)``, each query's mean of the ``n`` values, projected."""
        attended_bhqe = F.scaled_dot_product_attention(
            self._heads(self.query(query_bqd)),
            self._heads(self.key(key_bnd)),
            self._heads(self.value(value_bnd)),
        )
        y_bqd: Tensor = self.out(attended_bhqe.transpose(1, 2).flatten(2))
        return y_bqd

    def _heads(self, x_bnd: Tensor) -> Tensor:
        b, n, _ = x_bnd.shape
        return x_bnd.reshape(b, n, self.heads, -1).transpose(1, 2)


class TokenMLPs(nn.Module):
    """One MLP of three layers per token, with ReLU between them; all computed at once.

    Args:
        tokens: ``k``.
        width_in: Channels of a token, and both hidden widths.
        width_out: Channels of a token afterwards.
    """

    def __init__(self, tokens: int, width_in: int, width_out: int) -> None:
        super().__init__()
        widths = (width_in, width_in, width_out)
        self.weights = nn.ParameterList(torch.empty(tokens, out, width_in) for out in widths)
        self.biases = nn.ParameterList(torch.empty(tokens, out) for out in widths)
        bound = 1 / math.sqrt(width_in)  # as nn.Linear
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, tokens_bki: Tensor) -> Tensor:
        """``(b, k, width_in)`` to ``(b, k, width_out)``."""
        y_kbo = tokens_bki.transpose(0, 1)
        for layer, (weight_koi, bias_ko) in enumerate(zip(self.weights, self.biases, strict=True)):
            y_kbo = y_kbo @ weight_koi.mT + bias_ko.unsqueeze(1)
            if layer < len(self.weights) - 1:
                y_kbo = y_kbo.relu()
        return y_kbo.transpose(0, 1)


class GrowPixels(nn.Module):
    """Transposed 2x2 convolution with stride 2, layer norm over the channels, GELU.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 2, 2)
        self.norm = nn.LayerNorm(channels_out, eps=1e-6)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels_in, h, w)`` to ``(b, channels_out, 2h, 2w)``."""
        normed_bhwc = self.norm(self.conv(x_bchw).permute(0, 2, 3, 1))
        return F.gelu(normed_bhwc).permute(0, 3, 1, 2)
