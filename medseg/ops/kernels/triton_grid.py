"""Which numbers of a tensor a program of a Triton kernel works on."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803 - the arguments are numbers and constants of kernels

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["lanes", "places"]


@triton.jit
def lanes(WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers of the points of this program, in 64 bits if ``WIDE``."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def places(point, extent1, extent2, extent3, extent4):
    """Indices along five axes, the last one fastest; the first one is not bounded."""
    n4 = point % extent4
    rest = point // extent4
    n3 = rest % extent3
    rest = rest // extent3
    n2 = rest % extent2
    rest = rest // extent2
    return rest // extent1, rest % extent1, n2, n3, n4
