"""Separable linear interpolation between lattices over the same box of space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["interpolation_matrix", "resize_labels", "resize_linear"]


def interpolation_matrix(old: int, new: int, *, smooth: bool) -> Tensor:
    """Weights that carry ``old`` samples of an axis to ``new`` samples over the same length.

    Convention:
        Outer faces are aligned (``align_corners=False``): new sample ``i`` lies at
        ``(i + 0.5) * old / new - 0.5`` of the old axis. Beyond the first and last sample the edge
        value goes on.

    Args:
        old: Number of samples there are.
        new: Number of samples wanted.
        smooth: Whether the triangle is widened by the ratio when samples become fewer, so that fine
            structure is averaged instead of aliased. Without it, and whenever samples become more,
            this is plain linear interpolation.

    Returns:
        ``(new, old)`` float32; every row sums to 1.
    """
    ratio = old / new
    reach = max(1.0, ratio) if smooth else 1.0
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * ratio - 0.5
    centres = centres.clamp(0, old - 1) if reach == 1.0 else centres
    distance = (torch.arange(old, dtype=torch.float64)[None, :] - centres[:, None]).abs()
    weights = (1.0 - distance / reach).clamp_min(0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


def resize_linear(x_cs: Tensor, shape: Sequence[int], *, smooth: bool = True) -> Tensor:
    """Interpolate all spatial axes, one after the other.

    Args:
        x_cs: ``(c, *spatial)`` floating tensor.
        shape: Wanted spatial extents, as many as ``x_cs`` has.
        smooth: See :func:`interpolation_matrix`.

    Returns:
        ``(c, *shape)``; ``x_cs`` itself where nothing changes.
    """
    for axis, new in enumerate(shape, start=1):
        old = x_cs.shape[axis]
        if old != new:
            matrix = interpolation_matrix(old, new, smooth=smooth).to(x_cs)
            x_cs = torch.tensordot(x_cs, matrix, dims=([axis], [1])).movedim(-1, axis)
    return x_cs


def resize_labels(labels_s: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate a label map: each value's membership linearly, the largest one wins.

    Smoother than nearest neighbour, and one value at a time, so that memory stays at two maps.

    Args:
        labels_s: ``(*spatial)`` integer tensor.
        shape: Wanted spatial extents.

    Returns:
        ``(*shape)`` of the same type; on a tie the smaller value wins.
    """
    if tuple(labels_s.shape) == tuple(shape):
        return labels_s
    best: Tensor | None = None
    winner = torch.zeros(tuple(shape), dtype=labels_s.dtype, device=labels_s.device)
    for value in torch.unique(labels_s):
        member = resize_linear((labels_s == value).to(torch.float32)[None], shape)[0]
        if best is None:
            best, winner = member, torch.full_like(winner, int(value))
        else:
            # the margin keeps float32 rounding from deciding a tie
            closer = member > best + 1e-6
            best = torch.where(closer, member, best)
            winner = torch.where(closer, value, winner)
    return winner
