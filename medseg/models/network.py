"""What every segmentation network of medseg has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from medseg.errors import ShapeError

__all__ = ["Extents", "SegmentationNetwork", "halving_weights"]

Extents = tuple[int, int, int]


class SegmentationNetwork(nn.Module, ABC):
    """A 3D network from an image to logits on the same lattice.

    In eval mode ``forward`` gives one tensor ``(b, out_channels, i, j, k)`` of logits; softmax or
    sigmoid belong to the loss and to the predictor. In training mode a network with deep
    supervision gives a tuple of logits instead, fine to coarse, one per entry of ``head_strides``.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the logits.
        size_multiple: Legal extents are positive multiples of this, axis by axis.
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
    def forward(self, x_bcijk: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of ``x_bcijk``: one tensor, or one per head (see the class)."""

    def nearest_legal_extents(self, extents: tuple[int, ...]) -> tuple[int, ...]:
        """The multiples of ``size_multiple`` nearest to ``extents``; halfway goes up."""
        return tuple(
            max(step, (2 * extent + step) // (2 * step) * step)
            for extent, step in zip(extents, self._size_multiple, strict=True)
        )

    def check_input(self, x_bcijk: Tensor) -> None:
        """Refuse what the network cannot take.

        Raises:
            ShapeError: If rank, channels or extents are wrong; the message names the nearest legal
                extents.
        """
        where = f"{type(self).__name__} input"
        if x_bcijk.ndim != 5:
            raise ShapeError(
                where,
                expected="5 axes: batch, channel, i, j, k",
                found=f"{x_bcijk.ndim} axes",
                remedy="add the batch and channel axes",
                code="network-rank",
            )
        if x_bcijk.shape[1] != self._in_channels:
            raise ShapeError(
                where,
                expected=f"{self._in_channels} channels",
                found=str(x_bcijk.shape[1]),
                remedy="give the image channels that the network was built for",
                code="network-channels",
            )
        extents = tuple(x_bcijk.shape[2:])
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
