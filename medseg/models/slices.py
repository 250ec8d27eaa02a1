"""2D networks on volumes: slice by slice along one axis, logits back on the volume's lattice."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import ConfigError
from medseg.models.card import SliceSettings
from medseg.models.network import SegmentationNetwork

__all__ = ["SlicedNetwork"]


class SlicedNetwork(SegmentationNetwork):
    """A 2D network as a 3D one: ``(b, c, i, j, k)`` to logits ``(b, n, i, j, k)``.

    The volume is cut into slices across ``axis``. With neighbours, the channels of the slices
    before and after join those of the slice itself (2.5D); beyond the ends the last slice is
    repeated. Each slice is brought to ``settings.extents`` if given, then its edge voxels are
    repeated until the extents are legal for the network. Of the answer the padding is cut off and
    the *logits* are interpolated back, so that the largest one wins on the volume's own lattice.

    Any extents are legal. In eval mode ``settings.batch`` slices go through the network at a time,
    so that memory does not grow with the number of slices; in training mode all of them do, for
    batch statistics and gradients that belong to one step.

    Args:
        network: Two spatial axes; its channels are the volume's times the slices seen at once.
        settings: Of the slicing; its ``axis`` is not looked at.
        axis: Spatial axis across which the slices lie: 0, 1 or 2.

    Raises:
        ConfigError: If the network is not 2D or its channels are no multiple of the slices seen at
            once.
    """

    def __init__(self, network: SegmentationNetwork, settings: SliceSettings, axis: int) -> None:
        seen = 2 * settings.neighbours + 1
        if network.rank != 2 or network.in_channels % seen:
            raise ConfigError(
                "sliced network",
                expected=f"a 2D network whose channels are a multiple of {seen}, the slices that "
                "it sees at once",
                found=f"{network.rank}D with {network.in_channels} channels",
                remedy=f"set in_channels to {seen} times the channels of the image",
                code="slices-channels",
            )
        if axis not in (0, 1, 2):
            raise ConfigError(
                "sliced network",
                expected="axis 0, 1 or 2",
                found=str(axis),
                remedy="count the spatial axes from 0",
                code="slices-axis",
            )
        super().__init__(
            in_channels=network.in_channels // seen,
            out_channels=network.out_channels,
            size_multiple=(1, 1, 1),
            head_strides=((1, 1, 1),) * len(network.head_strides),
        )
        self.network = network
        self.slice_settings = settings
        self.axis = axis

    @property
    def deep_supervision_weights(self) -> tuple[float, ...]:
        """Those of the 2D network."""
        return self.network.deep_supervision_weights

    def load_encoder_weights(self, source: Path | Literal["timm"]) -> None:
        """Fill the encoder of the 2D network."""
        self.network.load_encoder_weights(source)

    def forward(self, x_bcijk: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits on the lattice of the volume; in training mode all heads of the 2D network.

        Raises:
            ShapeError: If channels or number type do not fit.
        """
        self.check_input(x_bcijk)
        x_bschw = x_bcijk.movedim(2 + self.axis, 1)
        batch, slices = x_bschw.shape[:2]
        x_nchw = self._with_neighbours(x_bschw).flatten(0, 1)
        step = len(x_nchw) if self.training else self.slice_settings.batch
        parts = [self._answer(x_nchw[n : n + step]) for n in range(0, len(x_nchw), step)]
        heads = [
            torch.unflatten(torch.cat(pieces), 0, (batch, slices)).movedim(1, 2 + self.axis)
            for pieces in zip(*parts, strict=True)
        ]
        return heads[0] if len(heads) == 1 else tuple(heads)

    def _with_neighbours(self, x_bschw: Tensor) -> Tensor:
        """``(b, s, c, h, w)`` to ``(b, s, (2n+1) * c, h, w)``, the slice before first."""
        reach = self.slice_settings.neighbours
        if not reach:
            return x_bschw
        own = torch.arange(x_bschw.shape[1], device=x_bschw.device)
        shifted = [
            x_bschw[:, (own + shift).clamp(0, x_bschw.shape[1] - 1)]
            for shift in range(-reach, reach + 1)
        ]
        return torch.cat(shifted, dim=2)

    def _answer(self, x_nchw: Tensor) -> tuple[Tensor, ...]:
        height, width = x_nchw.shape[2:]
        worked = self.slice_settings.extents or (height, width)
        if worked != (height, width):
            x_nchw = F.interpolate(
                x_nchw, worked, mode="bilinear", align_corners=False, antialias=True
            )
        multiple = self.network.size_multiple
        gaps = [-extent % step for extent, step in zip(worked, multiple, strict=True)]
        top, left = gaps[0] // 2, gaps[1] // 2
        if any(gaps):
            padding = (left, gaps[1] - left, top, gaps[0] - top)
            x_nchw = F.pad(x_nchw, padding, mode="replicate")
        answer = self.network(x_nchw)
        heads = answer if isinstance(answer, tuple) else (answer,)
        return tuple(
            self._back(head, x_nchw.shape[2:], (top, left), worked, (height, width))
            for head in heads
        )

    def _back(
        self,
        logits_nkhw: Tensor,
        padded: tuple[int, ...],
        corner: tuple[int, int],
        worked: tuple[int, int],
        extents: tuple[int, int],
    ) -> Tensor:
        if logits_nkhw.shape[2:] != padded:
            logits_nkhw = F.interpolate(logits_nkhw, padded, mode="bilinear", align_corners=False)
        (top, left), (height, width) = corner, worked
        logits_nkhw = logits_nkhw[:, :, top : top + height, left : left + width]
        if worked != extents:
            logits_nkhw = F.interpolate(logits_nkhw, extents, mode="bilinear", align_corners=False)
        return logits_nkhw
