"""From voxels of any stored type to a label map."""

from __future__ import annotations

import numpy as np

from medseg.core import LabelMap, LabelScheme, Volume
from medseg.errors import FormatError, MedsegError
from medseg.io.checks import relocated

__all__ = ["labels_from_voxels"]


def labels_from_voxels(volume: Volume, scheme: LabelScheme, where: str) -> LabelMap:
    """Turn a single-channel volume into labels; floats are accepted if they are whole.

    Args:
        volume: One channel of finite voxels.
        scheme: What the integers mean.
        where: Named in errors.

    Raises:
        FormatError: ``labels-not-integer`` or ``labels-range``.
        ShapeError: ``labelmap-values`` if a value is not in the scheme.
    """
    data = volume.data_cijk[0]
    if data.dtype.kind == "f":
        odd = int(np.count_nonzero(data != np.rint(data)))
        if odd:
            raise FormatError(
                where,
                expected="labels, that is whole numbers",
                found=f"{odd} of {data.size} voxels in between",
                remedy="resample label maps by nearest neighbour, and give no image as labels",
                code="labels-not-integer",
            )
    low, high = data.min(), data.max()
    if low < 0 or high > 65535:
        raise FormatError(
            where,
            expected="labels from 0 to 65535",
            found=f"values from {low:g} to {high:g}",
            remedy="renumber the labels",
            code="labels-range",
        )
    try:
        return LabelMap(data.astype(np.uint8 if high <= 255 else np.uint16), volume.grid, scheme)
    except MedsegError as error:
        raise relocated(error, where) from error
