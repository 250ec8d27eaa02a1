"""The plain form of a sliding-window prediction, which the streaming engine must equal.

All windows are summed, the logits of the whole volume are interpolated, the largest one wins. Its
memory grows with classes times voxels; it is what tests and benchmarks compare the engine with.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.events import Cancelled, Listener, Silent
from medseg.inference.sweep import STAGE, Group, Progress, other_axes
from medseg.inference.windows import blending_weights, window_starts
from medseg.ops.resample import apply_taps

__all__ = ["plain_labels", "sliding_window_logits"]


def plain_labels(
    group: Group, values: tuple[int, ...], *, axis: int = 0, batch: int = 1
) -> npt.NDArray[Any]:
    """Labels of a whole image at once.

    Args:
        group: Networks, image and windows; nothing is skipped.
        values: Label value of each class or region.
        axis: Windows are summed in rising order along this axis first, and logits are interpolated
            along it first, as the engine does: sums of floats depend on their order.
        batch: Windows per forward call.

    Returns:
        ``(i, j, k)`` int64 label values on the image's turned grid.
    """
    with torch.inference_mode():
        logits_nijk = sliding_window_logits(group, group.image.whole(), batch=batch, axis=axis)
        for a in (axis, *other_axes(axis)):
            logits_nijk = apply_taps(logits_nijk, 1 + a, group.image.to_image[a])
        if group.overlapping:
            labels = torch.zeros(logits_nijk.shape[1:], dtype=torch.int64)
            for logits_ijk, value in zip(logits_nijk, values, strict=True):
                labels = torch.where(logits_ijk > 0, value, labels)
        else:
            labels = torch.tensor(values)[logits_nijk.argmax(dim=0)]
    result: npt.NDArray[Any] = labels.numpy()
    return result


def sliding_window_logits(
    group: Group,
    x_cijk: Tensor,
    *,
    batch: int = 1,
    axis: int = 0,
    listener: Listener | None = None,
) -> Tensor:
    """Weighted mean of the networks' logits over all windows of an image.

    An image smaller than the window is padded with zeros (the mean of a normalised image), half on
    each side, and the answer is cut back.

    Args:
        group: Networks and windows.
        x_cijk: ``(c, i, j, k)`` float32 on the CPU, on the model's lattice.
        batch: Windows per forward call; windows that begin at different rows are not joined.
        axis: Windows are summed in rising order along this axis first.
        listener: Told of every batch of windows under the stage ``windows``.

    Returns:
        ``(n, i, j, k)`` float32 on the CPU, of the image's extents.

    Raises:
        Cancelled: If the listener asked to stop.
    """
    listener = listener or Silent()
    window = group.window_ijk
    extents = x_cijk.shape[1:]
    missing = [max(0, length - have) for length, have in zip(window, extents, strict=True)]
    before = [gap // 2 for gap in missing]
    i, j, k = ((low, gap - low) for gap, low in zip(missing, before, strict=True))
    padded = F.pad(x_cijk, (*k, *j, *i))
    starts = window_starts(padded.shape[1:], window, group.overlap)
    layers = [
        [start for start in starts if start[axis] == first]
        for first in sorted({start[axis] for start in starts})
    ]
    weights = blending_weights(window, group.blending)
    total = torch.zeros(padded.shape[1:])
    logits: Tensor | None = None
    progress = Progress(listener, len(starts))
    listener.started(STAGE, len(starts))
    for layer in layers:
        for first in range(0, len(layer), batch):
            if listener.cancelled():
                raise Cancelled
            boxes = [
                tuple(slice(a, a + length) for a, length in zip(start, window, strict=True))
                for start in layer[first : first + batch]
            ]
            x_bcijk = torch.stack([padded[(slice(None), *box)] for box in boxes])
            x_bcijk = group.arranged(x_bcijk.to(group.device))
            answer_bnijk = group.answer(x_bcijk, progress).to("cpu", torch.float32)
            if logits is None:
                logits = torch.zeros((answer_bnijk.shape[1], *padded.shape[1:]))
            for box, answer_nijk in zip(boxes, answer_bnijk, strict=True):
                logits[(slice(None), *box)] += answer_nijk * weights
                total[box] += weights
            progress.advance(len(boxes))
    assert logits is not None  # noqa: S101 - there is always at least one window
    logits /= total
    inner = tuple(slice(low, low + have) for low, have in zip(before, extents, strict=True))
    return logits[(slice(None), *inner)]
