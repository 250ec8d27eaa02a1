"""Where the windows of a sliding-window pass lie, and how much each voxel of one counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medseg.errors import ShapeError

__all__ = ["Blending", "blending_weights", "gaussian_weights", "window_starts"]

Blending = Literal["gaussian", "constant"]


def window_starts(
    shape: Sequence[int], window: Sequence[int], overlap: float | Sequence[float]
) -> list[tuple[int, ...]]:
    """Corner positions of windows that cover a lattice, evenly spread on each axis.

    Args:
        shape: Extents to cover, each at least the window's.
        window: Extents of one window.
        overlap: Least share of a window's extent that neighbours have in common, 0 to below 1; one
            for all axes, or one for each.

    Returns:
        Corners in row-major order, the last axis fastest. The first window of an axis starts at 0
        and the last one ends at the end.

    Raises:
        ShapeError: If the lattice is smaller than the window.
    """
    per_axis: list[list[int]] = []
    shares = [overlap] * len(window) if isinstance(overlap, float | int) else list(overlap)
    for extent, length, share in zip(shape, window, shares, strict=True):
        if extent < length:
            raise ShapeError(
                "sliding window",
                expected=f"extents of at least the window's {tuple(window)}",
                found=f"{tuple(shape)}",
                remedy="pad the image to the window first",
                code="window-larger",
            )
        room = extent - length
        step = max(1.0, length * (1.0 - share))
        count = math.ceil(room / step) + 1
        per_axis.append(
            [0] if count == 1 else [round(room * n / (count - 1)) for n in range(count)]
        )
    return list(itertools.product(*per_axis))


def gaussian_weights(window: Sequence[int], sigma_share: float = 0.125) -> Tensor:
    """Weight of each voxel of a window: a Gaussian round the centre.

    Width and floor are MONAI's (``compute_importance_map``); nnU-Net has the same width.

    Args:
        window: Extents of one window.
        sigma_share: Standard deviation as a share of the extent.

    Returns:
        ``(*window)`` float32, at most 1 and at least 1e-3, so that a voxel which only a corner
        reaches still gets that corner's answer.
    """
    weights = torch.ones(())
    for length in window:
        distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        bell = torch.exp(-0.5 * (distance / (length * sigma_share)) ** 2)
        weights = weights[..., None] * bell
    return weights.to(torch.float32).clamp_min(1e-3)


def blending_weights(window: Sequence[int], blending: Blending) -> Tensor:
    """Weight of each voxel of a window: :func:`gaussian_weights`, or 1 everywhere.

    Returns:
        ``(*window)`` float32.
    """
    return gaussian_weights(window) if blending == "gaussian" else torch.ones(tuple(window))
