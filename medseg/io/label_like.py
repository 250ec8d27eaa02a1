"""Telling a label map that was handed in as an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Volume
from medseg.errors import FormatError

__all__ = ["check_is_image", "looks_like_labels"]

_MOST_VALUES = 256
_LEAST_BACKGROUND = 0.5
_LEAST_EQUAL_NEIGHBOURS = 0.6
_SAMPLE_VOXELS = 200_000
_PART_VOXELS = 1 << 20  # what is worked on at a time stays in the processor's cache
_MOST_COUNTED = 65535
_MOST_EXACT = 2**53  # larger whole numbers are not told apart by floats


def check_is_image(volume: Volume, where: str) -> None:
    """Check that no channel of a volume is evidently a label map.

    Raises:
        FormatError: ``label-as-image``.
    """
    for channel in volume.data_cijk:
        if looks_like_labels(channel):
            count = len(_whole_values(_flat(channel)) or ())
            raise FormatError(
                where,
                expected="an image (MR or CT intensities)",
                found=f"what looks like a label map: {count} whole values in uniform regions",
                remedy="give the image that the labels were drawn on",
                code="label-as-image",
            )


def looks_like_labels(data_ijk: npt.NDArray[Any]) -> bool:
    """Whether an array is a label map rather than an image, beyond reasonable doubt.

    All must hold:

    * every voxel is a whole number and none is negative;
    * there are 2 to 256 distinct values, and one of them fills at least half of the voxels;
    * away from that background, at least 60 % of neighbouring voxels along the axes are equal (with
      two values in all they always are).

    The last is what tells masked 8-bit images from labels: noise makes neighbours differ. Over the
    scans and label maps this was tried on, at most 35 % of neighbours were equal in images and at
    least 80 % in label maps. A label map with more regions than that is not found, nor one whose
    background was filled; a false alarm would be worse.

    Args:
        data_ijk: ``(i, j, k)`` integers or finite floats.
    """
    flat = _flat(data_ijk)
    if _whole_values(flat[:: max(1, flat.size // _SAMPLE_VOXELS)]) is None:
        return False  # an image shows itself in a sample, so large ones cost nothing
    counts = _whole_values(flat)
    if counts is None or len(counts) < 2:
        return False
    most = max(counts.values())
    background = min(value for value, number in counts.items() if number == most)
    if most < _LEAST_BACKGROUND * flat.size:
        return False
    if len(counts) == 2:
        return True
    pairs = equal = 0
    for here, there in _neighbours(data_ijk):
        inside = (here != background) & (there != background)
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (here == there)))
    return pairs > 0 and equal >= _LEAST_EQUAL_NEIGHBOURS * pairs


def _flat(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In any order; without a copy where the array is in one piece."""
    return data.reshape(-1, order="A") if data.flags.forc else data.ravel()


def _whole_values(flat: npt.NDArray[Any]) -> Counter[int] | None:
    """Value to number of voxels; None if one is negative or no whole number, or they are many."""
    found: Counter[int] = Counter()
    for start in range(0, flat.size, _PART_VOXELS):
        part = flat[start : start + _PART_VOXELS]
        low, high = part.min(), part.max()
        if low < 0 or high > _MOST_EXACT:
            return None
        whole = part.astype(np.int64)
        if part.dtype.kind == "f" and not np.array_equal(part, whole):
            return None
        if high <= _MOST_COUNTED:
            of_value = np.bincount(whole)
            values = np.flatnonzero(of_value)
            found.update(dict(zip(values.tolist(), of_value[values].tolist(), strict=True)))
        else:
            values, numbers = np.unique(whole, return_counts=True)
            found.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        if len(found) > _MOST_VALUES:
            return None
    return found


def _neighbours(data: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Voxels and the next ones along every axis, a few planes of the slowest axis at a time."""
    slowest = int(np.argmax(np.abs(data.strides)))
    planes = np.moveaxis(data, slowest, 0)
    step = max(1, _PART_VOXELS // max(1, planes[0].size))
    for start in range(0, len(planes), step):
        part = planes[start : start + step]
        after = planes[start + 1 : start + step + 1]
        yield part[: len(after)], after
        for axis in range(1, part.ndim):
            along = np.moveaxis(part, axis, 0)
            yield along[:-1], along[1:]
