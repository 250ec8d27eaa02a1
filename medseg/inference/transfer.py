"""Windows on their way to a CUDA device, while it computes on those before.

Two page-locked buffers on the host and two on the device take turns. The copy of one batch runs on
a stream of its own beside the computation of the batch before, and no more than two batches are
ever under way, so that the memory of both sides is fixed however far the host runs ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SLOTS", "DoubleBuffer"]

SLOTS = 2
"""Batches that are under way at once."""


@dataclass(slots=True, eq=False)
class _Slot:
    """One pair of buffers.

    Args:
        host: Page-locked.
        device: Of the same shape.
        copied: The device has what the host buffer holds, which may be written again.
        used: The device's buffer has been read, and may be written again.
    """

    host: Tensor
    device: Tensor
    copied: torch.cuda.Event
    used: torch.cuda.Event


class DoubleBuffer:
    """Brings batches of windows to a CUDA device.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots: list[_Slot | None] = [None] * SLOTS
        self._turn = 0

    def bring(self, x_bcijk: Tensor) -> Tensor:
        """Start the copy of a batch, and let the device's later work wait for it.

        Args:
            x_bcijk: On the host; may be changed once this returns.

        Returns:
            The batch on the device; good until :meth:`bring` was called :data:`SLOTS` times more.

        Raises:
            torch.OutOfMemoryError: If there is no room for the buffers.
        """
        slot = self._slot(x_bcijk)
        count = x_bcijk.shape[0]
        slot.copied.synchronize()  # of two batches before: as a rule long since done
        slot.host[:count].copy_(x_bcijk)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.used)
            slot.device[:count].copy_(slot.host[:count], non_blocking=True)
            slot.copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(slot.copied)
        return slot.device[:count]

    def done(self) -> None:
        """Everything that reads the last batch brought has been queued."""
        slot = self._slots[self._turn]
        if slot is not None:
            slot.used.record(torch.cuda.current_stream(self._device))
        self._turn = (self._turn + 1) % SLOTS

    def _slot(self, x_bcijk: Tensor) -> _Slot:
        slot = self._slots[self._turn]
        if slot is not None:
            fits = (
                slot.host.shape[1:] == x_bcijk.shape[1:] and len(slot.host) >= x_bcijk.shape[0]
            ) and slot.host.dtype == x_bcijk.dtype
            if fits:
                return slot
            slot.copied.synchronize()
            slot.used.synchronize()
            self._slots[self._turn] = slot = None  # its memory may be what the new one needs
        slot = _Slot(
            host=torch.empty(x_bcijk.shape, dtype=x_bcijk.dtype, pin_memory=True),
            device=torch.empty(x_bcijk.shape, dtype=x_bcijk.dtype, device=self._device),
            copied=torch.cuda.Event(),  # type: ignore[no-untyped-call]
            used=torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )
        # freed while a copy is under way, its memory must not be handed out before the copy ends
        slot.device.record_stream(self._stream)
        # what the allocator hands out may still be read by work queued before
        slot.used.record(torch.cuda.current_stream(self._device))
        self._slots[self._turn] = slot
        return slot
