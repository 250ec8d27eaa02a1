"""One level of the orthonormal Haar wavelet along any set of axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.errors import ShapeError

__all__ = ["haar_forward", "haar_inverse"]


def haar_forward(x_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    """One orthonormal Haar level along ``axes``.

    Convention:
        Sub-bands are stacked before the channels, last axis of ``axes`` fastest: for two axes
        aa, ad, da, dd; for three aaa, aad, ada, add, daa, dad, dda, ddd. Per axis
        a = (even + odd)/sqrt(2) and d = (even - odd)/sqrt(2), which is PyWavelets' ``haar``.

    Args:
        x_bcs: ``(b, c, *spatial)``; every extent in ``axes`` even.
        axes: Spatial axes of ``x_bcs`` (2 is the first; negative ones count from the end). None at
            all is the identity.

    Returns:
        ``(b, 2**len(axes) * c, *spatial)`` with the transformed extents halved; the sum of squares
        is that of ``x_bcs``.

    Raises:
        ShapeError: If an axis is not spatial or named twice, or an extent in ``axes`` is odd.
    """
    dims = _spatial_axes(x_bcs, axes)
    odd = [dim for dim in dims if x_bcs.shape[dim] % 2]
    if odd:
        raise ShapeError(
            "haar_forward",
            expected=f"even extents on axes {tuple(dims)}",
            found=f"shape {tuple(x_bcs.shape)}",
            remedy=f"pad axis {odd[0]} to {x_bcs.shape[odd[0]] + 1}",
            code="haar-odd",
        )
    if not dims:
        return x_bcs
    # one scaling for all axes: for two axes the factor is exactly 1/2
    bands: Tensor = x_bcs * 0.5 ** (len(dims) / 2)
    for dim in reversed(dims):
        even, odd_half = torch.unflatten(bands, dim, (-1, 2)).unbind(dim + 1)
        bands = torch.cat((even + odd_half, even - odd_half), dim=1)
    return bands


def haar_inverse(bands_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    """Undo :func:`haar_forward` with the same ``axes``.

    Args:
        bands_bcs: ``(b, 2**len(axes) * c, *spatial)`` in the sub-band order of the forward
            transform.
        axes: As given to :func:`haar_forward`.

    Returns:
        ``(b, c, *spatial)`` with the extents in ``axes`` doubled.

    Raises:
        ShapeError: If an axis is not spatial or named twice, or the channels are no multiple of
            ``2**len(axes)``.
    """
    dims = _spatial_axes(bands_bcs, axes)
    if bands_bcs.shape[1] % 2 ** len(dims):
        raise ShapeError(
            "haar_inverse",
            expected=f"a multiple of {2 ** len(dims)} channels, one set per sub-band",
            found=f"{bands_bcs.shape[1]} channels",
            remedy="hand in all sub-bands, in the order of haar_forward",
            code="haar-bands",
        )
    if not dims:
        return bands_bcs
    x_bcs: Tensor = bands_bcs * 0.5 ** (len(dims) / 2)
    for dim in dims:
        smooth, detail = x_bcs.chunk(2, dim=1)
        x_bcs = torch.stack((smooth + detail, smooth - detail), dim=dim + 1).flatten(dim, dim + 1)
    return x_bcs


def _spatial_axes(x_bcs: Tensor, axes: Sequence[int]) -> list[int]:
    dims = [axis + x_bcs.ndim if axis < 0 else axis for axis in axes]
    if any(not 2 <= dim < x_bcs.ndim for dim in dims) or len(set(dims)) != len(dims):
        raise ShapeError(
            "haar axes",
            expected=f"different spatial axes, 2 to {x_bcs.ndim - 1}",
            found=str(tuple(axes)),
            remedy="axes 0 and 1 are batch and channel",
            code="haar-axes",
        )
    return dims
