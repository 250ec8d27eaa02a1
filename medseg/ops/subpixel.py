"""Channels to space and back, with a factor of its own for every axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.errors import ShapeError

__all__ = ["depth_to_space", "space_to_depth"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def depth_to_space(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    """Sub-pixel shuffle (Shi et al., CVPR 2016, section 3.2) for any rank and any factors.

    Convention:
        Channel ``c * prod(factors) + offset`` becomes channel ``c`` at ``position * factor +
        sub-position``, where ``offset`` counts the sub-positions in row-major order, last axis
        fastest. With equal factors in 2D this is ``torch.nn.functional.pixel_shuffle``.

    Args:
        x_bcs: ``(b, c * prod(factors), *spatial)``.
        factors: One positive integer per spatial axis.

    Returns:
        ``(b, c, *spatial * factors)``; channels-last goes in, channels-last comes out.

    Raises:
        ShapeError: If the factors do not fit the rank or the channels.
    """
    spatial = list(x_bcs.shape[2:])
    block = _block(x_bcs, factors, "depth_to_space")
    if x_bcs.shape[1] % block:
        raise ShapeError(
            "depth_to_space",
            expected=f"a multiple of {block} channels for factors {tuple(factors)}",
            found=f"{x_bcs.shape[1]} channels",
            remedy="give the convolution before it that many output channels",
            code="subpixel-channels",
        )
    rank, channels = len(spatial), x_bcs.shape[1] // block
    parts = x_bcs.reshape(x_bcs.shape[0], channels, *factors, *spatial)
    interleaved = [axis for n in range(rank) for axis in (2 + rank + n, 2 + n)]
    grown = [extent * factor for extent, factor in zip(spatial, factors, strict=True)]
    if _is_channels_last(x_bcs):
        # laying the copy out channels-last at once saves a second one
        packed = parts.permute(0, *interleaved, 1).reshape(x_bcs.shape[0], *grown, channels)
        return packed.movedim(-1, 1)
    return parts.permute(0, 1, *interleaved).reshape(x_bcs.shape[0], channels, *grown)


def space_to_depth(x_bcs: Tensor, factors: Sequence[int]) -> Tensor:
    """Undo :func:`depth_to_space` with the same ``factors``.

    Args:
        x_bcs: ``(b, c, *spatial)``; every extent a multiple of its factor.
        factors: One positive integer per spatial axis.

    Returns:
        ``(b, c * prod(factors), *spatial / factors)``.

    Raises:
        ShapeError: If the factors do not fit the rank or the extents.
    """
    spatial = list(x_bcs.shape[2:])
    block = _block(x_bcs, factors, "space_to_depth")
    if any(extent % factor for extent, factor in zip(spatial, factors, strict=True)):
        raise ShapeError(
            "space_to_depth",
            expected=f"extents that are multiples of {tuple(factors)}",
            found=str(tuple(spatial)),
            remedy="pad the axes that are not",
            code="subpixel-extents",
        )
    rank = len(spatial)
    split = [
        part
        for extent, factor in zip(spatial, factors, strict=True)
        for part in (extent // factor, factor)
    ]
    parts = x_bcs.reshape(*x_bcs.shape[:2], *split)
    order = (0, 1, *range(3, 2 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2))
    return parts.permute(order).reshape(x_bcs.shape[0], x_bcs.shape[1] * block, *split[::2])


def _block(x_bcs: Tensor, factors: Sequence[int], where: str) -> int:
    if len(factors) != x_bcs.ndim - 2 or any(factor < 1 for factor in factors):
        raise ShapeError(
            where,
            expected=f"{x_bcs.ndim - 2} positive factors, one per spatial axis",
            found=str(tuple(factors)),
            remedy="use 1 for an axis that keeps its extent",
            code="subpixel-factors",
        )
    return math.prod(factors)


def _is_channels_last(x_bcs: Tensor) -> bool:
    layout = _CHANNELS_LAST.get(x_bcs.ndim)
    return (
        layout is not None
        and x_bcs.is_contiguous(memory_format=layout)
        and not x_bcs.is_contiguous()
    )
