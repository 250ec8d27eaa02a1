"""From logits on a coarse lattice to labels on a fine one, one row at a time.

The classes of a whole volume are never in memory together: a row of the wanted lattice is
interpolated from the few rows of logits that it lies between, decided, and done with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.ops.resample import AxisTaps, apply_taps

__all__ = ["Decision", "Row", "decide_probabilities", "decide_row"]


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """How logits become labels, and what else is wanted.

    Args:
        values: Label value of each class, background included; of each region if ``overlapping``.
        overlapping: Whether channels are regions with a sigmoid each (see
            :class:`~medseg.models.card.Region`) instead of classes with one softmax.
        entropy: Whether the entropy of the probabilities is wanted.
        probabilities: Whether they are wanted themselves.
    """

    values: tuple[int, ...]
    overlapping: bool = False
    entropy: bool = False
    probabilities: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of the wanted lattice, across the axis of sweeping.

    Args:
        labels: ``(b, c)`` uint16 label values.
        entropy: ``(b, c)`` uint8, if wanted: 255 is the largest entropy there can be, log n for n
            classes; for regions the mean of their binary entropies.
        probabilities: ``(n, b, c)`` float32, if wanted: softmax over classes or sigmoid of regions.
    """

    labels: npt.NDArray[np.uint16]
    entropy: npt.NDArray[np.uint8] | None
    probabilities: npt.NDArray[np.float32] | None


def decide_row(logits_bcn: Tensor, taps_b: AxisTaps, taps_c: AxisTaps, decision: Decision) -> Row:
    """Interpolate a row of logits along its two axes and turn it into labels.

    Products and sums are in the order of the taps, axis b before c, so that a voxel has the same
    bits whatever is worked out beside it. On a tie of classes the first one wins; a region counts
    where its logit is above 0, and later regions overwrite earlier ones.

    Args:
        logits_bcn: ``(b, c, n)`` float32, contiguous; already interpolated along the third axis.
        taps_b: From the ``b`` samples there are to the wanted ones.
        taps_c: The same for ``c``.
        decision: What becomes of the logits.
    """
    if logits_bcn.device.type != "cpu":
        return _decide_with_torch(logits_bcn, taps_b, taps_c, decision)
    from medseg.ops.kernels.numba_winners import decide  # noqa: PLC0415 - imports numba

    shape = (taps_b.new, taps_c.new)
    classes = logits_bcn.shape[-1]
    labels = np.empty(shape, dtype=np.uint16)
    entropy = np.empty(shape if decision.entropy else (0, 0), dtype=np.uint8)
    probabilities = np.empty(
        (classes, *shape) if decision.probabilities else (0, 0, 0), dtype=np.float32
    )
    decide(
        logits_bcn.numpy(),
        (taps_b.firsts, taps_c.firsts),
        (np.ascontiguousarray(taps_b.weights), np.ascontiguousarray(taps_c.weights)),
        np.asarray(decision.values, dtype=np.uint16),
        overlapping=decision.overlapping,
        labels=labels,
        entropy=entropy,
        probabilities=probabilities,
    )
    return Row(
        labels,
        entropy if decision.entropy else None,
        probabilities if decision.probabilities else None,
    )


def decide_probabilities(probabilities_nbc: Tensor, decision: Decision) -> Row:
    """The same from probabilities, such as the mean of several networks'.

    Args:
        probabilities_nbc: ``(n, b, c)`` float32 on any device, on the wanted lattice.
        decision: What becomes of them.
    """
    classes = probabilities_nbc.shape[0]
    values = torch.tensor(decision.values, device=probabilities_nbc.device)
    if decision.overlapping:
        labels = torch.zeros(probabilities_nbc.shape[1:], dtype=values.dtype, device=values.device)
        for member, value in zip(probabilities_nbc, values, strict=True):
            labels = torch.where(member > 0.5, value, labels)
    else:
        labels = values[probabilities_nbc.argmax(dim=0)]
    entropy = None
    if decision.entropy:
        if decision.overlapping:
            other = 1 - probabilities_nbc
            doubt = -(torch.xlogy(probabilities_nbc, probabilities_nbc) + torch.xlogy(other, other))
            doubt = doubt.mean(dim=0) / np.log(2)
        else:
            doubt = -torch.xlogy(probabilities_nbc, probabilities_nbc).sum(dim=0)
            doubt = doubt / np.log(max(classes, 2))
        entropy = _to_numpy((doubt.clamp(0, 1) * 255 + 0.5).to(torch.uint8))
    return Row(
        _to_numpy(labels).astype(np.uint16),
        entropy,
        _to_numpy(probabilities_nbc) if decision.probabilities else None,
    )


def _decide_with_torch(
    logits_bcn: Tensor, taps_b: AxisTaps, taps_c: AxisTaps, decision: Decision
) -> Row:
    logits_bcn = apply_taps(apply_taps(logits_bcn, 0, taps_b), 1, taps_c)
    values = torch.tensor(decision.values, device=logits_bcn.device)
    if decision.entropy or decision.probabilities:
        shares = logits_bcn.sigmoid() if decision.overlapping else logits_bcn.softmax(dim=-1)
        row = decide_probabilities(shares.movedim(-1, 0).contiguous(), decision)
    else:
        row = None
    # decided from the logits: rounding in the softmax must not move a label
    if decision.overlapping:
        labels = torch.zeros(logits_bcn.shape[:2], dtype=values.dtype, device=values.device)
        for n, value in enumerate(values):
            labels = torch.where(logits_bcn[..., n] > 0, value, labels)
    else:
        labels = values[logits_bcn.argmax(dim=-1)]
    return Row(
        _to_numpy(labels).astype(np.uint16),
        row.entropy if row else None,
        row.probabilities if row else None,
    )


def _to_numpy(x: Tensor) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = x.cpu().numpy()
    return result
