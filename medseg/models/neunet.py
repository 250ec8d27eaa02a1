"""neU-Net: a U-Net whose encoder sees a wavelet pyramid of the image and whose decoder shuffles.

Yang et al., "More complex encoder is not all you need", arXiv 2309.11139, after the authors' public
code rather than the paper's figure, where the two differ. Two changes to a plain U-Net of strided
convolutions: the Haar sub-bands of the *image* join the encoder at every scale but the last, and
upsampling is convolution, tanh, convolution, tanh, sub-pixel shuffle.

The wavelet pyramid is computed inside ``forward``, so that any flip or crop of the image gets the
coefficients that belong to it. No result of the paper is claimed for this code.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medseg.models.network import Extents, SegmentationNetwork
from medseg.models.setting_rules import broken_rule
from medseg.ops.haar import haar_forward
from medseg.ops.norm import InstanceNorm
from medseg.ops.small_map import convolve
from medseg.ops.subpixel import activate_and_shuffle

__all__ = ["NEUNET_PRESETS", "NeUNet", "NeUNetSettings"]

Positive = Annotated[int, Field(ge=1)]
Triple = tuple[Positive, Positive, Positive]

_NEGATIVE_SLOPE = 0.01


class NeUNetSettings(BaseModel):
    """Settings of :class:`NeUNet`; one entry per encoder stage, finest first.

    Attributes:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        features: Channels of each stage; the last stage is the bottleneck.
        kernels: Convolution kernel of each stage; odd.
        strides: Stride of the first convolution of each stage; (1, 1, 1) for the first.
        wavelets: Whether the wavelet pyramid joins the encoder (strides are then 1 or 2).
        hidden_width: Channels between the two convolutions of a sub-pixel block that takes ``c``
            channels and multiplies the voxels by ``r``: ``2c`` as released, ``c`` or ``c*r/2``.
        deep_supervision: Whether training mode gives the logits of every decoder step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: Positive = 1
    out_channels: Positive = 14
    features: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=9)]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    wavelets: bool = True
    hidden_width: Literal["2c", "c", "c*r/2"] = "2c"
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = len(self.features)
        for name, entries in (("kernels", self.kernels), ("strides", self.strides)):
            if len(entries) != stages:
                raise broken_rule(
                    name,
                    expected=f"one entry per stage, {stages} as in features",
                    found=entries,
                )
        if any(extent % 2 == 0 for kernel in self.kernels for extent in kernel):
            raise broken_rule(
                "kernels",
                expected="odd extents, so that a convolution keeps the lattice",
                found=self.kernels,
            )
        if self.strides[0] != (1, 1, 1):
            raise broken_rule(
                "strides",
                expected="(1, 1, 1) first, as stage 0 keeps the resolution",
                found=self.strides,
            )
        if self.wavelets and any(step > 2 for stride in self.strides for step in stride):
            raise broken_rule(
                "strides",
                expected="1 and 2 only, as with wavelets one Haar level halves an axis",
                found=self.strides,
            )
        return self


def _published(
    in_channels: int, out_channels: int, kernels: str, strides: tuple[Triple, ...]
) -> NeUNetSettings:
    kinds: dict[str, Triple] = {"f": (1, 3, 3), "c": (3, 3, 3)}
    return NeUNetSettings(
        in_channels=in_channels,
        out_channels=out_channels,
        features=(32, 64, 128, 256, 320, 320),
        kernels=tuple(kinds[kind] for kind in kernels),
        strides=strides,
    )


def _isotropic(features: tuple[int, ...]) -> NeUNetSettings:
    deeper: list[Triple] = [(2, 2, 2)] * (len(features) - 1)
    kernels: list[Triple] = [(3, 3, 3)] * len(features)
    return NeUNetSettings(
        out_channels=2,
        features=features,
        kernels=tuple(kernels),
        strides=((1, 1, 1), *deeper),
        hidden_width="c",
    )


_SYNAPSE = _published(
    1, 14, "fccccc", ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
)

NEUNET_PRESETS = {
    "base": _SYNAPSE,
    "synapse": _SYNAPSE,
    "acdc": _published(
        1, 4, "ffcccc", ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    ),
    "brats": _published(
        4, 3, "cccccc", ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    ),
    "small": _isotropic((16, 32, 64, 96)),
    "tiny": _isotropic((8, 16, 32)),
}
"""``base`` is ``synapse``. ``synapse``, ``acdc`` and ``brats`` are the released configurations with
181,132,838, 161,276,852 and 204,062,863 weights. Their first axis runs across the slices, so the
images need an orientation such as SAR. ``tiny`` and ``small`` are ours, for small isotropic images
and machines without accelerator."""


class NeUNet(SegmentationNetwork):
    """The network; ``(b, in_channels, i, j, k)`` to logits ``(b, out_channels, i, j, k)``.

    With ``n`` stages there are ``n - 1`` heads. Training mode gives all of them, fine to coarse, if
    the settings ask for deep supervision.

    Args:
        settings: See :class:`NeUNetSettings`.
    """

    def __init__(self, settings: NeUNetSettings) -> None:
        features, strides, kernels = settings.features, settings.strides, settings.kernels
        cumulative = _cumulative(strides)
        super().__init__(
            in_channels=settings.in_channels,
            out_channels=settings.out_channels,
            size_multiple=cumulative[-1],
            head_strides=cumulative[:-1],
        )
        self.settings = settings
        stages = len(features)
        joined = range(1, stages - 1) if settings.wavelets else range(0)
        self.wavelets = nn.ModuleList(
            ConvUnit(
                # the first one joins the image itself, later ones its sub-bands
                settings.in_channels * (1 if n == 1 else math.prod(strides[n - 1])),
                features[n - 1],
                (3, 3, 3),
            )
            for n in joined
        )
        widths_in = [settings.in_channels, *features[:-1]]
        self.encoder = nn.ModuleList(
            Stage(widths_in[n] * (2 if n in joined else 1), features[n], kernels[n], strides[n])
            for n in range(stages)
        )
        steps = range(stages - 2, -1, -1)
        self.decoder = nn.ModuleList(
            Stage(2 * features[n], features[n], kernels[n], (1, 1, 1)) for n in steps
        )
        self.upsampling = nn.ModuleList(
            SubPixel(features[n + 1], features[n], strides[n + 1], settings.hidden_width)
            for n in steps
        )
        self.segment = nn.ModuleList(
            nn.Conv3d(features[n], settings.out_channels, 1) for n in steps
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, a=_NEGATIVE_SLOPE)
                nn.init.zeros_(module.bias)

    def forward(self, x_bcijk: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits on the lattice of the image, or of all heads (see the class).

        Raises:
            ShapeError: If channels or extents do not fit.
        """
        if self.training and self.settings.deep_supervision:
            return self.heads(x_bcijk)
        finest: Tensor = self.segment[-1](self._decoded(x_bcijk)[-1])
        return finest

    def heads(self, x_bcijk: Tensor) -> tuple[Tensor, ...]:
        """Logits of every decoder step in any mode, fine to coarse.

        Raises:
            ShapeError: If channels or extents do not fit.
        """
        decoded = self._decoded(x_bcijk)
        coarse_to_fine = [head(y) for head, y in zip(self.segment, decoded, strict=True)]
        return tuple(reversed(coarse_to_fine))

    def wavelet_pyramid(self, x_bcijk: Tensor) -> tuple[Tensor, ...]:
        """What joins the encoder: the image, then the Haar sub-bands of each further scale.

        Every level transforms the approximation of the level before along the axes that the encoder
        halves there; all sub-bands are kept, nothing is renormalised. Band order: see
        :func:`~medseg.ops.haar.haar_forward`.

        Returns:
            One tensor per wavelet branch; the image's resolution, then that of each stage's output.
        """
        levels: list[Tensor] = []
        smooth = x_bcijk
        for n in range(1, len(self.wavelets) + 1):
            stride = self.settings.strides[n - 1]
            bands = haar_forward(smooth, [axis + 2 for axis in range(3) if stride[axis] == 2])
            levels.append(bands)
            smooth = bands[:, : self._in_channels]
        return tuple(levels)

    def _decoded(self, x_bcijk: Tensor) -> list[Tensor]:
        self.check_input(x_bcijk)
        skips = [self.encoder[0](x_bcijk)]
        branches = list(zip(self.wavelets, self.wavelet_pyramid(x_bcijk), strict=True))
        for n, stage in enumerate(self.encoder[1:]):
            feature = skips[-1]
            if n < len(branches):
                unit, bands = branches[n]
                feature = torch.cat((feature, unit(bands)), dim=1)
            skips.append(stage(feature))
        y = skips.pop()
        decoded: list[Tensor] = []
        for grow, stage in zip(self.upsampling, self.decoder, strict=True):
            y = stage(torch.cat((grow(y), skips.pop()), dim=1))
            decoded.append(y)
        return decoded


class ConvUnit(nn.Module):
    """Convolution with bias, normalisation per channel and image, leaky ReLU.

    Normalisation, with weight and bias, and activation are one operation, which takes channels-last
    tensors as they are; see :mod:`medseg.ops.norm`.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel: Odd extents; padding keeps the lattice.
        stride: Of the convolution.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Triple, stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__()
        i, j, k = kernel
        self.conv = nn.Conv3d(
            channels_in, channels_out, kernel, stride, padding=(i // 2, j // 2, k // 2)
        )
        # nothing else reads what the convolution gives
        self.norm = InstanceNorm(channels_out, negative_slope=_NEGATIVE_SLOPE, inplace=True)

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """``(b, channels_in, i, j, k)`` to ``(b, channels_out, *strided)``."""
        y_bcijk: Tensor = self.norm(convolve(self.conv, x_bcijk))
        return y_bcijk


class Stage(nn.Sequential):
    """Two convolution units, the first with the stride.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels after each unit.
        kernel: Of both units.
        stride: Of the first unit.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: Triple, stride: Triple) -> None:
        super().__init__(
            ConvUnit(channels_in, channels_out, kernel, stride),
            ConvUnit(channels_out, channels_out, kernel),
        )


class SubPixel(nn.Module):
    """Upsampling: 5x5x5 convolution, tanh, 3x3x3 convolution, tanh, depth to space.

    With ``r`` the product of the factors, ``c`` in and ``f`` out and hidden width ``2c`` there are
    ``250c^2 + 2c + 54cfr + fr`` weights. The output lies in [-1, 1].

    Args:
        channels_in: ``c``.
        channels_out: ``f``.
        factors: By how much each axis grows.
        hidden_width: See :class:`NeUNetSettings`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        factors: Triple,
        hidden_width: Literal["2c", "c", "c*r/2"],
    ) -> None:
        super().__init__()
        block = math.prod(factors)
        hidden = {
            "2c": 2 * channels_in,
            "c": channels_in,
            "c*r/2": max(1, channels_in * block // 2),
        }[hidden_width]
        self.factors = factors
        self.widen = nn.Conv3d(channels_in, hidden, 5, padding=2)
        self.project = nn.Conv3d(hidden, channels_out * block, 3, padding=1)

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """``(b, channels_in, i, j, k)`` to ``(b, channels_out, *grown)``."""
        hidden = convolve(self.widen, x_bcijk).tanh()
        return activate_and_shuffle(convolve(self.project, hidden), self.factors, "tanh")


def _cumulative(strides: tuple[Triple, ...]) -> tuple[Extents, ...]:
    total: Extents = (1, 1, 1)
    products: list[Extents] = []
    for i, j, k in strides:
        total = (total[0] * i, total[1] * j, total[2] * k)
        products.append(total)
    return tuple(products)
