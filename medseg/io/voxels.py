"""From stored numbers to intensities in the smallest type that holds them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["rescale_voxels"]

_SLAB_VOXELS = 4_000_000  # bounds the float64 working copy to 32 MB


def rescale_voxels(
    stored: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0
) -> npt.NDArray[Any]:
    """``slope * stored + intercept`` in native byte order.

    Integers stay integers where that is exact: without scaling in their own type (types wider than
    int32 in int32 where the values fit), with a whole slope and intercept in int16, or else int32,
    where the results fit. All else becomes float32, worked out in float64.

    Args:
        stored: Integers or floats of any shape, any byte order.
        slope: Not zero.
        intercept: Added after scaling.

    Returns:
        An array of the same shape; ``stored`` itself where nothing was to be done.
    """
    is_integer = stored.dtype.kind in "iu"
    if slope == 1.0 and intercept == 0.0:
        if is_integer and (
            stored.dtype.itemsize <= 2 or stored.dtype.newbyteorder("=") == np.int32
        ):
            return stored.astype(stored.dtype.newbyteorder("="), copy=False)
        if not is_integer and stored.dtype.itemsize <= 4:
            return stored.astype(np.float32, copy=False)
    if is_integer and float(slope).is_integer() and float(intercept).is_integer():
        ends = [int(slope) * int(end) + int(intercept) for end in (stored.min(), stored.max())]
        for bits in (32,) if slope == 1.0 and intercept == 0.0 else (16, 32):
            if -(1 << bits - 1) <= min(ends) and max(ends) < 1 << bits - 1:
                wanted = np.dtype(f"int{bits}")
                return _by_slabs(stored, np.int64, int(slope), int(intercept), wanted)
    return _by_slabs(stored, np.float64, slope, intercept, np.dtype(np.float32))


def _by_slabs(
    stored: npt.NDArray[Any],
    working: type[np.int64] | type[np.float64],
    slope: float,
    intercept: float,
    wanted: np.dtype[Any],
) -> npt.NDArray[Any]:
    result = np.empty(stored.shape, dtype=wanted, order="F" if stored.flags.f_contiguous else "C")
    extent = stored.shape[-1]
    step = max(1, _SLAB_VOXELS * extent // max(1, stored.size))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 is refused later
        for start in range(0, extent, step):
            slab = stored[..., start : start + step].astype(working)
            result[..., start : start + step] = slab * slope + intercept
    return result
