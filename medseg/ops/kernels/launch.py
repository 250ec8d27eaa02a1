"""What launching a Triton kernel needs beside the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["on_device", "padded", "span"]


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensor."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def padded(values: Sequence[int], count: int, filler: int) -> tuple[int, ...]:
    """``count`` values, ``filler`` before those there are."""
    return (*([filler] * (count - len(values))), *values)


def span(x: Tensor) -> int:
    """Offset of the last element from the first, in elements; above 2**31 it needs 64 bits."""
    return sum((extent - 1) * step for extent, step in zip(x.shape, x.stride(), strict=True))
