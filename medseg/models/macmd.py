"""MACMD: a pretrained hierarchical encoder, gated context of four levels, channel mixing on skips.

Maurya, Liu and Zwiggelaar, arXiv 2511.05803 (2025), after the authors' public code. Every map of
the encoder passes a gate of dilated convolutions (MCAG); the coarsest goes on through a second such
block (MEAB) into a decoder of large depthwise kernels; the four gated maps are pooled by attention
into one (APM), and the raw maps of the three finer levels are mixed across channels (MSCCM) before
they join the decoder.

The released code makes new random weights for the upsampling inside APM at every call; here they
are parameters, as its empty list of placeholders suggests. It also returns sigmoids where this
network returns logits. The page of this network in the documentation lists all differences. No
result of the paper is claimed for this code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.models.network import SegmentationNetwork
from medseg.models.state_file import weight_path
from medseg.models.timm_encoder import TIMM_STRIDES, TimmEncoder, load_timm_weights

__all__ = ["MACMD", "MACMD_PRESETS", "MACMDSettings"]

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

_DILATIONS = (1, 2, 3, 5)
_GROUPS = 4
_ENCODER_CHANNELS = 3
_UP_EPS = 1e-6


class MACMDSettings(BaseModel):
    """Settings of :class:`MACMD`.

    Attributes:
        in_channels: Channels of the image. Other than 3 they pass a 1 x 1 convolution to 3,
            normalisation and ReLU before the encoder.
        out_channels: Channels of the logits.
        encoder: Name in timm of an encoder with maps at strides 4, 8, 16 and 32, whose channels
            are multiples of 4. Its weights are random until
            :meth:`MACMD.load_encoder_weights` fills in trained ones.
        encoder_image_size: Extent for which an encoder with fixed windows is built, such as 256 for
            ``maxvit_tiny_tf_224``; legal extents are then its multiples. None leaves it to timm;
            encoders without such an option refuse a number.
        drop_path: Greatest rate of stochastic depth in the encoder; 0.1 as published. Encoders
            without stochastic depth refuse anything but 0.
        mix_drop_path: Rate of stochastic depth of the channel mixing; 0.05 in the code.
        final_channels: Channels of the last decoder map, at half the resolution; 32 in the code.
        deep_supervision: Whether training mode gives the logits of the last three decoder maps, as
            published. Without it the two coarser heads do not exist.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Positive = 1
    out_channels: Positive = 9
    encoder: Annotated[str, Field(min_length=1)] = "pvt_v2_b2"
    encoder_image_size: Annotated[int, Field(ge=32, multiple_of=32)] | None = None
    drop_path: Rate = 0.1
    mix_drop_path: Rate = 0.05
    final_channels: Positive = 32
    deep_supervision: bool = True


MACMD_PRESETS = {
    "base": MACMDSettings(),
    "maxvit": MACMDSettings(encoder="maxvit_tiny_tf_224"),
    "small": MACMDSettings(encoder="pvt_v2_b0", out_channels=2),
    "tiny": MACMDSettings(
        encoder="test_convnext", out_channels=2, drop_path=0.0, mix_drop_path=0.0, final_channels=16
    ),
}
"""``base`` is the released configuration for Synapse, PVTv2-B2 with 34,614,504 weights. ``maxvit``
follows the paper's other encoder by name; which variant it used is not known. ``small`` (PVTv2-B0)
and ``tiny`` (the ConvNeXt that timm has for its own tests) are ours, for machines without
accelerator."""


class MACMD(SegmentationNetwork):
    """The network; ``(b, in_channels, h, w)`` to logits ``(b, out_channels, h, w)``.

    Training mode with deep supervision gives three outputs, all resized to the image's extents: of
    the last decoder map (stride 2), which is what eval mode gives, and of those at strides 4 and 8.
    They weigh the same, as published.

    Legal extents are multiples of what the encoder takes: 32 for most, 224 for
    ``maxvit_tiny_tf_224``. In training mode a batch of one image of 32 x 32 is refused: batch
    normalisation at stride 32 has nothing to normalise over.

    Args:
        settings: See :class:`MACMDSettings`.

    Raises:
        ConfigError: If timm has no such encoder or the decoder cannot be built on its maps.
    """

    def __init__(self, settings: MACMDSettings) -> None:
        encoder = TimmEncoder(
            settings.encoder, drop_path=settings.drop_path, image_size=settings.encoder_image_size
        )
        _check_channels(encoder)
        heads = 3 if settings.deep_supervision else 1
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            size_multiple=(encoder.size_multiple, encoder.size_multiple),
            head_strides=((1, 1),) * heads,
        )
        self.settings = settings
        c1, c2, c3, c4 = encoder.channels
        self.stem = _stem(settings.in_channels)
        self.encoder = encoder
        self.gates = nn.ModuleList(ContextGate(channels) for channels in encoder.channels)
        self.bottleneck = EnhancedAttention(c4)
        self.pooling = PoolingModulation(encoder.channels)
        self.mixing = CrossChannelMix((c1, c2, c3), settings.mix_drop_path)
        self.ups = nn.ModuleList(
            UpStep(channels_in, channels_out)
            for channels_in, channels_out in (
                (c4, c3),
                (2 * c3, c2),
                (2 * c2, c1),
                (2 * c1, settings.final_channels),
            )
        )
        self.fusion = Fusion(c1)
        self.segment = nn.ModuleList(
            nn.Conv2d(channels, settings.out_channels, 1)
            for channels in (settings.final_channels, c1, c2)[:heads]
        )

    @property
    def deep_supervision_weights(self) -> tuple[float, ...]:
        """The same for every output (1 : 1 : 1 in the code); they sum to 1."""
        heads = len(self.head_strides)
        return (1.0 / heads,) * heads

    def load_encoder_weights(self, source: Path | Literal["timm"]) -> None:
        """Fill the encoder with trained weights, of a file or those that timm lists for it.

        Files, names and errors: see :func:`~medseg.models.timm_encoder.load_timm_weights`.
        """
        load_timm_weights(self.encoder, "timm" if source == "timm" else weight_path(source))

    def forward(self, x_bchw: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits on the lattice of the image, or of all heads (see the class).

        Raises:
            ShapeError: If channels or extents do not fit, or the batch is too small to train on.
        """
        if self.training and self.settings.deep_supervision:
            return self.heads(x_bchw)
        self.check_input(x_bchw)
        return _resized(self.segment[0](self._decoded(x_bchw)[0]), x_bchw)

    def heads(self, x_bchw: Tensor) -> tuple[Tensor, ...]:
        """Logits of every head in any mode, fine to coarse, on the lattice of the image.

        Raises:
            ShapeError: As :meth:`forward`.
        """
        self.check_input(x_bchw)
        # without deep supervision there is one head for the three maps
        return tuple(
            _resized(head(map_bchw), x_bchw)
            for head, map_bchw in zip(self.segment, self._decoded(x_bchw), strict=False)
        )

    def check_input(self, x_bchw: Tensor) -> None:
        """Refuse what the network cannot take; see the base class.

        Raises:
            ShapeError: As the base class, or if the maps at stride 32 of a batch to train on have
                one pixel in all.
        """
        super().check_input(x_bchw)
        coarsest = TIMM_STRIDES[-1]
        if self.training and x_bchw.shape[0] == 1 and x_bchw.shape[2:] == (coarsest, coarsest):
            raise ShapeError(
                f"{type(self).__name__} input",
                expected=f"more than one pixel at stride {coarsest} to normalise over in training",
                found=f"one image of {coarsest} x {coarsest}",
                remedy="train with a batch of at least 2 or with larger images",
                code="network-batch",
            )

    def _decoded(self, x_bchw: Tensor) -> tuple[Tensor, ...]:
        x1, x2, x3, x4 = self.encoder(self.stem(x_bchw))
        g1, g2, g3, g4 = (
            gate(map_bchw) for gate, map_bchw in zip(self.gates, (x1, x2, x3, x4), strict=True)
        )
        bottom = self.bottleneck(g4)
        pooled = self.pooling((g1, g2, g3, bottom))
        # the skips are mixed from the raw maps; the gated ones serve the pooling alone
        e1, e2, e3 = self.mixing((x1, x2, x3))
        d3 = self.ups[0](bottom)
        d2 = self.ups[1](torch.cat((d3, e3), dim=1))
        d1 = self.ups[2](torch.cat((d2, e2), dim=1))
        d0 = self.ups[3](self.fusion(torch.cat((d1, e1, pooled), dim=1)))
        return d0, d1, d2


class DilatedSum(nn.Module):
    """Four grouped 3 x 3 convolutions of dilation 1, 2, 3 and 5, summed along cyclic diagonals.

    Every branch has four groups and its output four chunks of channels; chunk ``k`` of the result
    is the sum over the branches ``j`` of chunk ``(k + j) mod 4`` of branch ``j``. Every chunk of
    the output so sees another chunk of the input at every dilation. ``9c^2 + 4c`` weights.

    Args:
        channels: In and out; a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=_GROUPS)
            for dilation in _DILATIONS
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels, h, w)`` to the same."""
        chunks = [branch(x_bchw).chunk(_GROUPS, dim=1) for branch in self.branches]
        return torch.cat(
            [
                chunks[0][k]
                + chunks[1][(k + 1) % _GROUPS]
                + chunks[2][(k + 2) % _GROUPS]
                + chunks[3][(k + 3) % _GROUPS]
                for k in range(_GROUPS)
            ],
            dim=1,
        )


class ContextGate(nn.Module):
    """Multi-dilated contextual attention gate (MCAG): dilated context times its own gate.

    ``g = ReLU(BN(dilated(x)))`` times ``sigmoid(BN(conv(g)))``, one gate for all channels of a
    pixel. ``9c^2 + 7c + 3`` weights.

    Args:
        channels: In and out; a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.context = nn.Sequential(
            DilatedSum(channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.gate = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels, h, w)`` to the same, not negative."""
        context: Tensor = self.context(x_bchw)
        gated: Tensor = context * self.gate(context)
        return gated


class ChannelAttention(nn.Module):
    """Scale every channel by a sigmoid of two linear layers on the channels' means.

    ``2c * max(1, c // 16)`` weights.

    Args:
        channels: In and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels, h, w)`` to the same."""
        scale_bc = self.excite(F.relu(self.squeeze(x_bchw.mean(dim=(2, 3))))).sigmoid()
        scaled: Tensor = x_bchw * scale_bc[:, :, None, None]
        return scaled


class SpatialAttention(nn.Module):
    """Scale every pixel by a sigmoid of a 7 x 7 convolution of mean and maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, c, h, w)`` to the same."""
        summary = torch.cat(
            (x_bchw.mean(dim=1, keepdim=True), x_bchw.amax(dim=1, keepdim=True)), dim=1
        )
        scaled: Tensor = x_bchw * self.conv(summary).sigmoid()
        return scaled


class EnhancedAttention(nn.Sequential):
    """Multi-dilated enhanced attention block (MEAB), without residual.

    Twice dilated context, normalisation and ReLU, then channel and spatial attention.
    ``18c^2 + 12c + c^2/8 + 98`` weights.

    Args:
        channels: In and out; a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            DilatedSum(channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            DilatedSum(channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            ChannelAttention(channels),
            SpatialAttention(),
        )


class GrowTo(nn.Module):
    """Nearest-neighbour growth, then 3 x 3 depthwise convolution, normalisation, ReLU, 1 x 1.

    ``c^2 + 13c`` weights. The released code creates these anew, at random, in every call.

    Args:
        channels: In and out.
        factor: By how much both extents grow.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = float(factor)
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels, h, w)`` to ``(b, channels, factor * h, factor * w)``."""
        grown: Tensor = self.smooth(F.interpolate(x_bchw, scale_factor=self.factor))
        return grown


class PoolingModulation(nn.Module):
    """Attention pooling modulation (APM): four levels to one map at stride 4.

    Every level is projected to ``channels[0]`` channels and grown to the finest lattice. A shared
    score, softmax over the levels at each pixel, pools them into ``p``; every level ``z`` is then
    scaled by a sigmoid of a shared, normalised convolution of ``[sigmoid(z) p][sigmoid(p) z]``,
    and the four are averaged. That product is computed as ``silu(z) silu(p)``, the same by
    commutation. In training the shared normalisation sees one level after the other.

    Args:
        channels: Of the four levels, fine to coarse.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = channels[0]
        hidden = max(1, width // 8)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(level, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for level in channels
        )
        self.growth = nn.ModuleList(
            [nn.Identity(), *(GrowTo(width, 2**n) for n in range(1, len(channels)))]
        )
        self.score = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1)
        )
        self.modulation = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.Sigmoid()
        )

    def forward(self, levels_bchw: tuple[Tensor, ...]) -> Tensor:
        """Four ``(b, channels[n], h / 2**n, w / 2**n)`` to ``(b, channels[0], h, w)``."""
        grown = [
            grow(project(level))
            for grow, project, level in zip(self.growth, self.projections, levels_bchw, strict=True)
        ]
        scores_bnhw = torch.cat([self.score(z) for z in grown], dim=1)
        # in the levels' own type: under autocast softmax gives float32, which would widen the sum
        weights_bnhw = scores_bnhw.softmax(dim=1).to(grown[0].dtype)
        pooled = weights_bnhw[:, :1] * grown[0]
        for n, z in enumerate(grown[1:], start=1):
            pooled = pooled + weights_bnhw[:, n : n + 1] * z
        pooled_silu = F.silu(pooled)
        total: Tensor = self.modulation(F.silu(grown[0]) * pooled_silu) * grown[0]
        for z in grown[1:]:
            total = total + self.modulation(F.silu(z) * pooled_silu) * z
        return total / len(grown)


class ChannelMix(nn.Module):
    """Channel mixing of Vision-RWKV: a gated MLP whose input is blended with shifted neighbours.

    With ``s`` the input shifted by one pixel (:func:`shifted_quarters`) and learned ``mu`` per
    channel: ``k = LN(relu(W_k (mu z + (1 - mu) s))^2)``, and the result is
    ``sigmoid(W_r (mu' z + (1 - mu') s)) * W_v k``. ``5c^2 + 6c`` weights. The square and its
    normalisation are computed in float32 at least: a square leaves the range of float16 at 256.

    Args:
        channels: In and out; a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mu_key = nn.Parameter(torch.full((1, 1, channels), 0.5))
        self.mu_receptance = nn.Parameter(torch.full((1, 1, channels), 0.5))
        self.key = nn.Linear(channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)
        self.value = nn.Linear(2 * channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)

    def forward(self, z_bhwc: Tensor) -> Tensor:
        """``(b, h, w, channels)`` to the same."""
        shifted = shifted_quarters(z_bhwc)
        difference = z_bhwc - shifted
        key = self.key(shifted + difference * self.mu_key.to(z_bhwc.dtype))
        wide = F.relu(key).to(torch.promote_types(key.dtype, torch.float32)).square()
        norm = self.norm
        normed = F.layer_norm(
            wide,
            norm.normalized_shape,
            norm.weight.to(wide.dtype),
            norm.bias.to(wide.dtype),
            norm.eps,
        )
        receptance = self.receptance(shifted + difference * self.mu_receptance.to(z_bhwc.dtype))
        gated: Tensor = receptance.sigmoid() * self.value(normed.to(key.dtype))
        return gated


def shifted_quarters(z_bhwc: Tensor) -> Tensor:
    """Every quarter of the channels moved by one pixel in its own direction, zeros moving in.

    The first quarter takes the value of the left neighbour, then right, above, below.

    Args:
        z_bhwc: ``(b, h, w, c)``; ``c`` a multiple of 4.

    Returns:
        The same shape.
    """
    from_left, from_right, from_above, from_below = z_bhwc.chunk(4, dim=3)
    return torch.cat(
        (
            F.pad(from_left[:, :, :-1], (0, 0, 1, 0)),
            F.pad(from_right[:, :, 1:], (0, 0, 0, 1)),
            F.pad(from_above[:, :-1], (0, 0, 0, 0, 1, 0)),
            F.pad(from_below[:, 1:], (0, 0, 0, 0, 0, 1)),
        ),
        dim=3,
    )


class CrossChannelMix(nn.Module):
    """Multi-scale cross-channel mix (MSCCM) of the three finer maps of the encoder.

    All are brought to the finest lattice and to ``channels[0]`` channels and stacked, coarse to
    fine; ``z + LN(mix(z))`` is split again and every part taken back to its channels and lattice.

    The released code resizes before the projections on the way in and after them on the way out.
    Bilinear weights sum to 1, so a 1 x 1 convolution and a resizing commute; both are done here in
    the order that keeps the convolution on the smaller lattice. The values are the same up to
    rounding.

    Args:
        channels: Of the three maps, fine to coarse; the first a multiple of 4.
        drop_path: Rate of stochastic depth of the mixing.
    """

    def __init__(self, channels: tuple[int, int, int], drop_path: float) -> None:
        from timm.layers import DropPath  # noqa: PLC0415 - its import takes seconds

        super().__init__()
        width = channels[0]
        coarse_to_fine = tuple(reversed(channels))
        self.lead_in = nn.ModuleList(nn.Conv2d(level, width, 1) for level in coarse_to_fine)
        self.mix = ChannelMix(3 * width)
        self.norm = nn.LayerNorm(3 * width)
        self.drop_path = DropPath(drop_path)
        self.lead_out = nn.ModuleList(nn.Conv2d(width, level, 1) for level in coarse_to_fine)

    def forward(self, levels_bchw: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Three maps of strides 4, 8 and 16, fine to coarse, to three of the same shapes."""
        finest = levels_bchw[0]
        coarse_to_fine = levels_bchw[::-1]
        z_bchw = torch.cat(
            [
                _resized(lead(level), finest)
                for lead, level in zip(self.lead_in, coarse_to_fine, strict=True)
            ],
            dim=1,
        )
        z_bhwc = z_bchw.permute(0, 2, 3, 1).contiguous()
        mixed_bhwc = z_bhwc + self.drop_path(self.norm(self.mix(z_bhwc)))
        parts = mixed_bhwc.permute(0, 3, 1, 2).chunk(3, dim=1)
        led_out = [
            lead(_resized(part, level))
            for lead, part, level in zip(self.lead_out, parts, coarse_to_fine, strict=True)
        ]
        return tuple(led_out[::-1])


class UpStep(nn.Sequential):
    """Decoder step: 1 x 1, depthwise 9 x 9, 1 x 1, each normalised, then twice the extents.

    The activations are ReLU, SiLU and ReLU, the growth bilinear. ``i^2 + 85i + io + 2o`` weights
    for ``i`` channels in and ``o`` out.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_in, 1, bias=False),
            nn.BatchNorm2d(channels_in, eps=_UP_EPS),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_in, channels_in, 9, padding=4, groups=channels_in, bias=False),
            nn.BatchNorm2d(channels_in, eps=_UP_EPS),
            nn.SiLU(),
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out, eps=_UP_EPS),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )


class Fusion(nn.Sequential):
    """Feature fusion block (FFB): 1 x 1, normalisation, channel and spatial attention, 1 x 1.

    Args:
        width: A third of the channels in and half of those out.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3 * width, 2 * width, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            ChannelAttention(2 * width),
            SpatialAttention(),
            nn.Conv2d(2 * width, 2 * width, 1, bias=False),
        )


def _stem(in_channels: int) -> nn.Module:
    if in_channels == _ENCODER_CHANNELS:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, _ENCODER_CHANNELS, 1),
        nn.BatchNorm2d(_ENCODER_CHANNELS),
        nn.ReLU(inplace=True),
    )


def _resized(map_bchw: Tensor, like_bchw: Tensor) -> Tensor:
    if map_bchw.shape[2:] == like_bchw.shape[2:]:
        return map_bchw
    return F.interpolate(map_bchw, like_bchw.shape[2:], mode="bilinear", align_corners=False)


def _check_channels(encoder: TimmEncoder) -> None:
    if any(channels % _GROUPS for channels in encoder.channels):
        raise ConfigError(
            f"encoder {encoder.name}",
            expected=f"channels that are multiples of {_GROUPS} in all four maps, for the grouped "
            "convolutions of the decoder",
            found=str(encoder.channels),
            remedy="choose another encoder, such as pvt_v2_b2, resnet50 or convnext_tiny",
            code="encoder-channels",
        )
