"""One pass over memory in blocks of ``2**n`` numbers: what to read, what to write, in which steps.

Halving ``n`` axes gathers the ``2**n`` samples of every block into as many channels. A Haar level
does so and mixes them; the sub-pixel shuffle with factors of two only moves them. The Haar matrix
is symmetric and its own inverse, so for both operators the two directions differ in their steps
through memory alone. A plan holds those steps; the kernels follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from medseg.ops.kernels.layout import memory_format_of

__all__ = ["BlockPlan", "Direction", "block_output", "block_plan", "merged"]

Direction = Literal["forward", "inverse"]


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Steps through memory, in elements; grid axes of extent 1 are left out, coarse to fine.

    Attributes:
        extents: Of the grid of blocks; at least one.
        steps_in: Step in the tensor read, per grid axis.
        steps_out: Step in the tensor written, per grid axis.
        bits_in: Step from the first to the second of each pair in the tensor read, per halved axis.
        bits_out: The same in the tensor written.
    """

    extents: tuple[int, ...]
    steps_in: tuple[int, ...]
    steps_out: tuple[int, ...]
    bits_in: tuple[int, ...]
    bits_out: tuple[int, ...]


def block_output(x_bcs: Tensor, axes: Sequence[int], direction: Direction) -> Tensor:
    """An empty tensor for the result; channels-last if ``x_bcs`` is (see layout.py)."""
    bands, shape = 1 << len(axes), list(x_bcs.shape)
    for axis in axes:
        shape[axis] = shape[axis] // 2 if direction == "forward" else shape[axis] * 2
    shape[1] = shape[1] * bands if direction == "forward" else shape[1] // bands
    return torch.empty(
        shape, dtype=x_bcs.dtype, device=x_bcs.device, memory_format=memory_format_of(x_bcs)
    )


def block_plan(
    x_bcs: Tensor,
    y_bcs: Tensor,
    axes: Sequence[int],
    direction: Direction,
    *,
    bands_first: bool,
) -> BlockPlan:
    """Steps from ``x_bcs`` to ``y_bcs``, whatever their strides.

    Args:
        x_bcs: Read. Samples ``(b, c, *spatial)`` forward, sub-bands inverse.
        y_bcs: Written. Sub-bands ``(b, 2**n * c, *halved)`` forward, samples inverse.
        axes: The ``n`` halved axes, positive; the last is the fastest in the order of sub-bands.
        direction: Which of the two tensors has the sub-bands.
        bands_first: Whether sub-bands are stacked before the channels, as by the wavelet, or
            channels before the sub-bands, as by the shuffle.
    """
    samples, bands = (x_bcs, y_bcs) if direction == "forward" else (y_bcs, x_bcs)
    return _planned(
        (samples.shape[0], samples.shape[1], *bands.shape[2:]),
        samples.stride(),
        bands.stride(),
        tuple(axes),
        direction,
        bands_first,
    )


# a network asks for the same few plans over and over
@lru_cache(maxsize=1024)
def _planned(
    extents: tuple[int, ...],
    sample_strides: tuple[int, ...],
    band_strides: tuple[int, ...],
    axes: tuple[int, ...],
    direction: Direction,
    bands_first: bool,
) -> BlockPlan:
    n, channels, step = len(axes), extents[1], band_strides[1]
    of_samples = [stride * (1 + (axis in axes)) for axis, stride in enumerate(sample_strides)]
    of_bands = [band_strides[0], step if bands_first else step << n, *band_strides[2:]]
    unit = step * channels if bands_first else step
    sample_bits = tuple(sample_strides[axis] for axis in axes)
    band_bits = tuple(unit << (n - 1 - place) for place in range(n))
    counts, sample_steps, band_steps = merged(extents, of_samples, of_bands)
    if direction == "forward":
        return BlockPlan(counts, sample_steps, band_steps, sample_bits, band_bits)
    return BlockPlan(counts, band_steps, sample_steps, band_bits, sample_bits)


def merged(extents: Sequence[int], *steps: Sequence[int]) -> list[tuple[int, ...]]:
    """A grid in fewer axes: none of extent 1, and neighbours that run through as one.

    Args:
        extents: Of the grid.
        *steps: Steps in one tensor each, per grid axis.

    Returns:
        The extents, then the steps of each tensor; the longest steps first, at least one axis.

    >>> merged([2, 1, 3, 4], [12, 12, 4, 1], [24, 24, 8, 2])
    [(24,), (1,), (2,)]
    """
    rows = [row for row in zip(extents, *steps, strict=True) if row[0] > 1]
    rows.sort(key=lambda row: sum(row[1:]), reverse=True)
    kept: list[tuple[int, ...]] = []
    for extent, *own in rows:
        if kept and all(
            above == extent * step for above, step in zip(kept[-1][1:], own, strict=True)
        ):
            kept[-1] = (kept[-1][0] * extent, *own)
        else:
            kept.append((extent, *own))
    return list(zip(*(kept or [(1,) * (1 + len(steps))]), strict=True))
