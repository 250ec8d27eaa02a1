"""What every segmentation network of medseg has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.ops.autocast import autocasts

__all__ = ["Extents", "SegmentationNetwork", "arrange_weights", "halving_weights"]

Extents = tuple[int, ...]

_AXIS_NAMES = {2: "batch, channel, row, column", 3: "batch, channel, i, j, k"}


class SegmentationNetwork(nn.Module, ABC):
    """A 2D or 3D network from an image to logits on the same lattice.

    In eval mode ``forward`` gives one tensor ``(b, out_channels, *spatial)`` of logits; softmax or
    sigmoid belong to the loss and to the predictor. In training mode a network with deep
    supervision gives a tuple of logits instead, one per entry of ``head_strides``; the first is
    what eval mode gives.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        size_multiple: Legal extents are positive multiples of this, axis by axis; two entries for a
            2D network, three for a 3D one.
        head_strides: Extents of the input over those of each head, fine to coarse.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        size_multiple: Extents,
        head_strides: tuple[Extents, ...],
    ) -> None:
        super().__init__()
        self._in_channels = in_channels
        self._out_channels = out_channels
        self._size_multiple = size_multiple
        self._head_strides = head_strides

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        return self._in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the logits."""
        return self._out_channels

    @property
    def rank(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return len(self._size_multiple)

    @property
    def size_multiple(self) -> Extents:
        """Legal extents are positive multiples of this, axis by axis."""
        return self._size_multiple

    @property
    def head_strides(self) -> tuple[Extents, ...]:
        """Extents of the input over those of each training output, fine to coarse."""
        return self._head_strides

    @property
    def deep_supervision_weights(self) -> tuple[float, ...]:
        """Loss weight of each training output, fine to coarse; they sum to 1."""
        return halving_weights(len(self._head_strides))

    @abstractmethod
    def forward(self, x_bcs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of ``x_bcs``: one tensor, or one per head (see the class)."""

    def load_encoder_weights(self, source: Path | Literal["timm"]) -> None:  # noqa: ARG002
        """Fill a pretrained encoder, for networks that have one; all of it or, on errors, nothing.

        Not a setting: a model folder holds every weight, and is read without this file.

        Args:
            source: A file, or ``timm`` for the weights that timm lists, which come over the network
                or from the cache of an earlier download.

        Raises:
            ConfigError: If the network has no such encoder.
            FormatError: If the file is missing, damaged or of another network.
            ResourceError: If the weights cannot be fetched.
        """
        raise ConfigError(
            "encoder weights",
            expected="none, since this network has no encoder that others have trained",
            found="some",
            remedy="leave them out, or choose a network with such an encoder",
            code="weights-unlisted",
        )

    def nearest_legal_extents(self, extents: tuple[int, ...]) -> tuple[int, ...]:
        """The multiples of ``size_multiple`` nearest to ``extents``; halfway goes up."""
        return tuple(
            max(step, (2 * extent + step) // (2 * step) * step)
            for extent, step in zip(extents, self._size_multiple, strict=True)
        )

    def check_input(self, x_bcs: Tensor) -> None:
        """Refuse what the network cannot take.

        Raises:
            ShapeError: If rank, channels, extents or number type are wrong, the batch is empty, or
                image and weights are on different devices; for extents the message names the
                nearest legal ones.
        """
        where = f"{type(self).__name__} input"
        if not isinstance(x_bcs, Tensor):
            raise ShapeError(
                where,
                expected="a torch tensor",
                found=f"an object of type {type(x_bcs).__name__}",
                remedy="convert it, an array for instance with torch.from_numpy",
                code="tensor-type",
            )
        if x_bcs.ndim != self.rank + 2:
            raise ShapeError(
                where,
                expected=f"{self.rank + 2} axes: {_AXIS_NAMES[self.rank]}",
                found=f"{x_bcs.ndim} axes",
                remedy="add the batch and channel axes"
                if x_bcs.ndim == self.rank
                else "hand in one axis each for batch and channel, then the spatial ones",
                code="network-rank",
            )
        if x_bcs.shape[0] < 1:
            raise ShapeError(
                where,
                expected="at least one image in the batch",
                found="an empty batch",
                remedy="leave the call out when there is nothing to segment",
                code="network-batch",
            )
        if x_bcs.shape[1] != self._in_channels:
            raise ShapeError(
                where,
                expected=f"{self._in_channels} channels",
                found=str(x_bcs.shape[1]),
                remedy="give the image channels that the network was built for",
                code="network-channels",
            )
        if not x_bcs.is_floating_point():
            raise ShapeError(
                where,
                expected="a floating-point tensor",
                found=str(x_bcs.dtype),
                remedy="convert the image with float()",
                code="network-dtype",
            )
        extents = tuple(x_bcs.shape[2:])
        if any(
            extent < 1 or extent % step
            for extent, step in zip(extents, self._size_multiple, strict=True)
        ):
            raise ShapeError(
                where,
                expected=f"extents that are multiples of {self._size_multiple}",
                found=str(extents),
                remedy="pad or crop to the nearest legal extents, "
                f"{self.nearest_legal_extents(extents)}",
                code="network-extents",
            )
        for weight in self.parameters():
            if weight.device != x_bcs.device:
                raise ShapeError(
                    where,
                    expected=f"an image on {weight.device}, where the weights are",
                    found=f"one on {x_bcs.device}",
                    remedy="move the image or the network with to()",
                    code="network-device",
                )
            if weight.dtype != x_bcs.dtype and not autocasts(x_bcs.device.type):
                raise ShapeError(
                    where,
                    expected=f"an image of {weight.dtype}, as the weights are",
                    found=str(x_bcs.dtype),
                    remedy="convert one of them with to(), or use torch.autocast",
                    code="network-dtype",
                )
            break


def arrange_weights(network: nn.Module, *, channels_last: bool) -> None:
    """Lay a network's convolution weights out channels-last, or contiguously, in place.

    Unlike ``Module.to(memory_format=...)`` this takes 2D and 3D convolutions in one network.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in layouts:
            layout = layouts[weight.ndim] if channels_last else torch.contiguous_format
            weight.data = weight.data.to(memory_format=layout)


def halving_weights(heads: int) -> tuple[float, ...]:
    """Deep-supervision weights: halved from head to head, none for the last, sum 1.

    One head alone has weight 1. This is nnU-Net's rule (Isensee et al., Nature Methods 2021).

    >>> [round(15 * weight) for weight in halving_weights(5)]
    [8, 4, 2, 1, 0]
    """
    if heads == 1:
        return (1.0,)
    raw = [0.5**n for n in range(heads - 1)] + [0.0]
    return tuple(weight / math.fsum(raw) for weight in raw)
