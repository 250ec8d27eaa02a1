"""Separable interpolation between lattices over the same box of space.

Everything here works on parts of an axis too, and gives a part the same bits that it has in the
whole: each new sample is a sum of its sources in a fixed order, whatever else is worked out beside
it. So an image can be resampled slab by slab without seams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "AxisTaps",
    "Interpolation",
    "apply_taps",
    "axis_taps",
    "resize",
    "resize_labels",
]

Interpolation = Literal["nearest", "linear", "cubic"]

_CUBIC_A = -0.5


@dataclass(frozen=True, slots=True, eq=False)
class AxisTaps:
    """Which samples of an axis make each sample of another one, and with what weight.

    Args:
        old: Number of samples there are.
        firsts: ``(new,)`` int64, the first source of each new sample.
        weights: ``(new, width)`` float32; new sample ``i`` is the sum over ``t`` of
            ``weights[i, t]`` times source ``firsts[i] + t``. Sources beyond the end weigh 0.
    """

    old: int
    firsts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    @property
    def new(self) -> int:
        """Number of samples made."""
        return len(self.firsts)

    @property
    def is_identity(self) -> bool:
        """Whether every new sample is the old one of its place."""
        return (
            self.new == self.old
            and self.weights.shape[1] == 1
            and bool((self.firsts == np.arange(self.old)).all())
        )

    def sources(self, start: int, stop: int) -> tuple[int, int]:
        """The source samples that new samples ``start`` to ``stop`` (exclusive) are made of.

        Returns:
            First and, exclusive, last of them.
        """
        first = int(self.firsts[start:stop].min())
        last = int(self.firsts[start:stop].max()) + self.weights.shape[1]
        return first, min(last, self.old)

    def ready(self, start: int, filled: int) -> int:
        """How far one gets with the source samples before ``filled``.

        Returns:
            The largest ``stop`` such that new samples ``start`` to ``stop`` need no others.
        """
        ends = np.minimum(self.firsts[start:] + self.weights.shape[1], self.old)
        late = np.flatnonzero(ends > filled)
        return self.new if late.size == 0 else start + int(late[0])

    def part(self, start: int, stop: int) -> AxisTaps:
        """Taps of new samples ``start`` to ``stop`` over the samples that :meth:`sources` names."""
        first, last = self.sources(start, stop)
        return AxisTaps(last - first, self.firsts[start:stop] - first, self.weights[start:stop])


def axis_taps(
    old: int, new: int, kind: Interpolation = "linear", *, smooth: bool = True
) -> AxisTaps:
    """Taps that carry ``old`` samples of an axis to ``new`` samples over the same length.

    Convention:
        Outer faces are aligned (``align_corners=False``): new sample ``i`` lies at
        ``(i + 0.5) * old / new - 0.5`` of the old axis. Beyond the first and last sample the edge
        value goes on; a widened kernel leaves out what is beyond and is scaled to sum 1.

    Args:
        old: Number of samples there are.
        new: Number of samples wanted.
        kind: ``nearest``; ``linear``; ``cubic``: cubic convolution with a = -1/2 (Keys, IEEE Trans.
            ASSP 29(6), 1981).
        smooth: Whether the kernel is widened by the ratio when samples become fewer, so that fine
            structure is averaged instead of aliased. Nearest is never widened.
    """
    if old == new:
        return AxisTaps(old, np.arange(old), np.ones((old, 1), dtype=np.float32))
    ratio = old / new
    centres = (np.arange(new) + 0.5) * ratio - 0.5
    if kind == "nearest":
        firsts = np.clip(np.floor(centres + 0.5).astype(np.int64), 0, old - 1)
        return AxisTaps(old, firsts, np.ones((new, 1), dtype=np.float32))
    stretch = max(1.0, ratio) if smooth else 1.0
    radius = stretch * (1.0 if kind == "linear" else 2.0)
    width = 2 * math.ceil(radius)
    lowest = np.floor(centres).astype(np.int64) + 1 - width // 2
    places = lowest[:, None] + np.arange(width)
    distance = np.abs(places - centres[:, None]) / stretch
    weights = np.maximum(0.0, 1.0 - distance) if kind == "linear" else _cubic(distance)
    inside = (places >= 0) & (places < old)
    if stretch == 1.0:  # the edge value goes on: what lies beyond is added to the edge
        below = np.where(places < 0, weights, 0.0).sum(axis=1)
        above = np.where(places >= old, weights, 0.0).sum(axis=1)
        weights = np.where(inside, weights, 0.0)
        weights += np.where(places == 0, below[:, None], 0.0)
        weights += np.where(places == old - 1, above[:, None], 0.0)
    else:
        weights = np.where(inside, weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return _shifted_inside(old, lowest, weights)


def apply_taps(x_cs: Tensor, axis: int, taps: AxisTaps) -> Tensor:
    """Resample one axis.

    Products and sums are separate operations in the order of the taps: every new sample has the
    same bits whether it is worked out alone or with others.

    Args:
        x_cs: Floating tensor whose ``axis`` has ``taps.old`` samples.
        axis: Which one.
        taps: What the new samples are made of.

    Returns:
        ``x_cs`` with ``taps.new`` samples on ``axis``; itself where nothing changes.
    """
    if taps.is_identity:
        return x_cs
    firsts = torch.from_numpy(taps.firsts).to(x_cs.device)
    weights = torch.from_numpy(taps.weights).to(x_cs)
    column = [-1 if other == axis else 1 for other in range(x_cs.ndim)]
    result: Tensor | None = None
    for tap in range(weights.shape[1]):
        if tap and not taps.weights[:, tap].any():
            continue
        part = x_cs.index_select(axis, (firsts + tap).clamp_(max=taps.old - 1))
        if weights.shape[1] > 1:
            part.mul_(weights[:, tap].reshape(column))
        result = part if result is None else result.add_(part)
    assert result is not None  # noqa: S101 - there is always at least one tap
    return result


def resize(x_cs: Tensor, taps: Sequence[AxisTaps]) -> Tensor:
    """Resample all spatial axes, one after the other.

    Args:
        x_cs: ``(c, *spatial)`` floating tensor.
        taps: One per spatial axis.

    Returns:
        ``(c, *new)``; ``x_cs`` itself where nothing changes.
    """
    for axis, axis_taps_ in enumerate(taps, start=1):
        x_cs = apply_taps(x_cs, axis, axis_taps_)
    return x_cs


def resize_labels(labels_s: Tensor, taps: Sequence[AxisTaps]) -> Tensor:
    """Interpolate a label map: each value's membership, the largest one wins.

    Smoother than nearest neighbour. Volumes on the CPU are done in one pass over the new voxels
    (:mod:`medseg.ops.kernels.numba_labels`); others one value at a time, so that memory stays at
    two maps.

    Args:
        labels_s: ``(*spatial)`` integer tensor.
        taps: One per axis; of linear or nearest kind, whose weights are not negative.

    Returns:
        ``(*new)`` of the same type; on a tie the smaller value wins.
    """
    if all(axis_taps_.is_identity for axis_taps_ in taps):
        return labels_s
    if labels_s.ndim == 3 and labels_s.device.type == "cpu" and labels_s.dtype == torch.int32:
        return _resize_volume(labels_s, taps)
    shape = tuple(axis_taps_.new for axis_taps_ in taps)
    best: Tensor | None = None
    winner = torch.zeros(shape, dtype=labels_s.dtype, device=labels_s.device)
    for value in torch.unique(labels_s):
        member = resize((labels_s == value).to(torch.float32)[None], taps)[0]
        if best is None:
            best, winner = member, torch.full_like(winner, int(value))
        else:
            # the margin keeps float32 rounding from deciding a tie
            closer = member > best + 1e-6
            best = torch.where(closer, member, best)
            winner = torch.where(closer, value, winner)
    return winner


def _resize_volume(labels_ijk: Tensor, taps: Sequence[AxisTaps]) -> Tensor:
    # loaded late: numba takes a while
    from medseg.ops.kernels.numba_labels import resample_labels  # noqa: PLC0415

    # label maps from NIfTI have their first axis fastest: taken as they lie, with axes turned round
    turned = not labels_ijk.is_contiguous() and labels_ijk.permute(2, 1, 0).is_contiguous()
    order = taps[::-1] if turned else taps
    source = labels_ijk.permute(2, 1, 0) if turned else labels_ijk.contiguous()
    found = torch.from_numpy(
        resample_labels(
            source.numpy(), [one.firsts for one in order], [one.weights for one in order]
        )
    )
    return found.permute(2, 1, 0) if turned else found


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a = _CUBIC_A
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _shifted_inside(
    old: int, lowest: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
) -> AxisTaps:
    """Taps that begin inside the axis: what lay before its start weighs nothing and is dropped."""
    firsts = np.clip(lowest, 0, old - 1)
    width = weights.shape[1]
    moved = np.zeros_like(weights)
    for row, shift in enumerate(firsts - lowest):
        moved[row, : width - shift] = weights[row, shift:]
    used = int(np.flatnonzero(moved.any(axis=0)).max()) + 1
    return AxisTaps(old, firsts, moved[:, :used].astype(np.float32))
