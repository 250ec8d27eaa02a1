"""How the result of an operator lies in memory."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["advise_huge_pages", "memory_format_of"]

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

# blocks of this size the C library maps afresh each time; smaller ones it keeps and hands out again
_MAPPED_BYTES = 32 << 20
_MADV_HUGEPAGE = 14


def memory_format_of(x_bcs: Tensor) -> torch.memory_format:
    """Channels-last for a tensor that is laid out so and no other way, else contiguous."""
    layout = _CHANNELS_LAST.get(x_bcs.ndim)
    if layout is None or x_bcs.is_contiguous():
        return torch.contiguous_format
    return layout if x_bcs.is_contiguous(memory_format=layout) else torch.contiguous_format


def advise_huge_pages(y: Tensor) -> Tensor:
    """Ask the kernel of the system to back a large new CPU tensor with large pages.

    The first touch of fresh memory costs a fault per page, for large results more than the operator
    itself. This is advice: where it is not taken, nothing changes.

    Args:
        y: Newly made, dense, not yet written.

    Returns:
        ``y``.
    """
    size = y.numel() * y.element_size()
    if y.device.type == "cpu" and size >= _MAPPED_BYTES and sys.platform == "linux":
        first = -(-y.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (y.data_ptr() + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
        _system_library().madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(_MADV_HUGEPAGE)
        )
    return y


@cache
def _system_library() -> Any:  # noqa: ANN401 - ctypes makes functions up as they are named
    return ctypes.CDLL(None)
