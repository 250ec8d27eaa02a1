"""What the C library does with memory that a step gave back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["freed_memory_kept"]

# of mallopt(3); glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# what glibc comes to by itself once a block of this size was freed: larger ones are mapped and
# unmapped one by one, and twice as much free memory is kept at the end of the heap
_MAPPED = 32 << 20
_KEPT = 1 << 30


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep up to 1 GiB at the end of the heap while a network trains on a CPU.

    The maps of a step are freed in its backward pass and wanted again in the next step. glibc gives
    the end of the heap back to the system in between, and each page of it costs a fault when it
    comes again, which a small network feels. Larger blocks than 32 MiB are not
    concerned, so that the peak of what is in use stays what it is. Elsewhere nothing happens.

    Args:
        device: Of the network.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _MAPPED)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _MAPPED)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
