"""The sliding-window engine: a network and a prepared image in, labels on the image's grid out.

:class:`PlainEngine` holds all logits of the image at once, on the model's grid and on the image's.
It stands behind :class:`Engine`, so that an engine with bounded memory can take its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.data.preparation import Prepared
from medseg.errors import ResourceError
from medseg.events import Cancelled, Listener
from medseg.inference.windows import gaussian_weights, window_starts
from medseg.ops.resample import resize_linear

__all__ = ["Engine", "PlainEngine", "sliding_window_logits"]

STAGE = "windows"


class Engine(Protocol):
    """What turns a prepared image into class indices."""

    def classes(
        self, network: nn.Module, prepared: Prepared, listener: Listener
    ) -> npt.NDArray[Any]:
        """Index of the winning output channel of every voxel.

        Returns:
            ``(i, j, k)`` uint8 or uint16 on ``prepared.turned_grid``.

        Raises:
            Cancelled: If the listener asked to stop; asked after every batch of windows.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """All windows are summed, then resampled, then the largest logit wins.

    Args:
        window_ijk: Extents of one window in voxels of the model's grid.
        overlap: Least share of the window that neighbours have in common.
        batch: Windows per forward call.
        device: Where the network is.
        autocast: Lower precision inside the network, or None for float32.
    """

    window_ijk: tuple[int, int, int]
    overlap: float = 0.5
    batch: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is an immutable value
    autocast: torch.dtype | None = None

    def classes(
        self, network: nn.Module, prepared: Prepared, listener: Listener
    ) -> npt.NDArray[Any]:
        """See :meth:`Engine.classes`.

        Raises:
            Cancelled: If the listener asked to stop.
            ResourceError: If memory does not suffice.
        """
        try:
            with torch.inference_mode():
                logits_nijk = sliding_window_logits(
                    network,
                    prepared.x_cijk,
                    self.window_ijk,
                    overlap=self.overlap,
                    batch=self.batch,
                    device=self.device,
                    autocast=self.autocast,
                    listener=listener,
                )
                return _winners(logits_nijk, prepared.turned_grid.shape_ijk)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceError(
                "segmentation",
                expected="enough memory for all logits of the image",
                found=f"none left on {self.device}",
                remedy="use another device or a model with a coarser spacing",
                code="out-of-memory",
            ) from error


def sliding_window_logits(
    network: nn.Module,
    x_cijk: Tensor,
    window_ijk: tuple[int, int, int],
    *,
    overlap: float,
    batch: int,
    device: torch.device,
    autocast: torch.dtype | None,
    listener: Listener,
) -> Tensor:
    """Gaussian-weighted mean of a network's logits over all windows of an image.

    An image smaller than the window is padded with zeros (the mean of a normalised image), half on
    each side, and the answer is cut back.

    Args:
        network: In eval mode, on ``device``; ``(b, c, i, j, k)`` to ``(b, n, i, j, k)`` logits.
        x_cijk: ``(c, i, j, k)`` float32 on the CPU.
        window_ijk: Extents of one window.
        overlap: Least share of the window that neighbours have in common.
        batch: Windows per forward call.
        device: Where the network is.
        autocast: Lower precision inside the network, or None for float32.
        listener: Told of every batch of windows under the stage ``windows``.

    Returns:
        ``(n, i, j, k)`` float32 on the CPU, of the image's extents.

    Raises:
        Cancelled: If the listener asked to stop.
    """
    extents = x_cijk.shape[1:]
    missing = [max(0, w - s) for w, s in zip(window_ijk, extents, strict=True)]
    before = [gap // 2 for gap in missing]
    widths = [n for gap, low in zip(missing, before, strict=True) for n in (low, gap - low)]
    padded = F.pad(x_cijk, [n for pair in _pairs(widths)[::-1] for n in pair])
    starts = window_starts(padded.shape[1:], window_ijk, overlap)
    weights = gaussian_weights(window_ijk)
    total = torch.zeros(padded.shape[1:])
    logits: Tensor | None = None
    listener.started(STAGE, len(starts))
    for first in range(0, len(starts), batch):
        if listener.cancelled():
            raise Cancelled
        boxes = [
            tuple(slice(a, a + w) for a, w in zip(start, window_ijk, strict=True))
            for start in starts[first : first + batch]
        ]
        x_bcijk = torch.stack([padded[(slice(None), *box)] for box in boxes])
        x_bcijk = x_bcijk.to(device).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            answer_bnijk = network(x_bcijk)
        answer_bnijk = answer_bnijk.to("cpu", torch.float32)
        if logits is None:
            logits = torch.zeros((answer_bnijk.shape[1], *padded.shape[1:]))
        for box, answer_nijk in zip(boxes, answer_bnijk, strict=True):
            logits[(slice(None), *box)] += answer_nijk * weights
            total[box] += weights
        listener.advanced(STAGE, min(first + batch, len(starts)))
    assert logits is not None  # noqa: S101 - there is always at least one window
    logits /= total
    inner = tuple(slice(low, low + s) for low, s in zip(before, extents, strict=True))
    return logits[(slice(None), *inner)]


def _winners(logits_nijk: Tensor, shape_ijk: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Resample the logits one class at a time and keep the largest; ties go to the lower index."""
    kind = torch.uint8 if logits_nijk.shape[0] <= 256 else torch.int32
    winner = torch.zeros(shape_ijk, dtype=kind)
    best = resize_linear(logits_nijk[:1], shape_ijk)[0]
    for index in range(1, logits_nijk.shape[0]):
        rival = resize_linear(logits_nijk[index : index + 1], shape_ijk)[0]
        larger = rival > best
        winner.masked_fill_(larger, index)
        best = torch.where(larger, rival, best)
    result = winner.numpy()
    return result if kind == torch.uint8 else result.astype(np.uint16)


def _pairs(values: list[int]) -> list[tuple[int, int]]:
    return [(values[n], values[n + 1]) for n in range(0, len(values), 2)]
