"""One slice of a series as a small picture, to choose by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.io.dicom_frames import flat_header
from medseg.io.dicom_pixels import read_pixels, rescale_of
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_study import Stack, Study

__all__ = ["thumbnail"]


def thumbnail(stack: Stack, study: Study, side: int = 96) -> npt.NDArray[np.uint8]:
    """The middle slice in greys, as it is stored: columns to the right, rows downwards.

    Args:
        stack: Of the study; only one of its files is read.
        study: Where it was found.
        side: Largest extent of the picture in pixels.

    Returns:
        ``(rows, columns)``; pixels keep their form in millimetres. From the 1st to the 99th
        percentile of the slice.

    Raises:
        MedsegError: If the slice cannot be read.
    """
    where = str(study.path)
    order = stack.lattice.order if stack.lattice is not None else range(len(stack.frames))
    frame = stack.frames[order[len(order) // 2]]
    with quiet_dicom():
        slope, intercept = rescale_of(flat_header(frame), where, frame.name)
        stored = read_pixels(frame.header, [frame.index], where, [frame.name])[0]
    if frame.tile is not None:
        tile = frame.tile
        stored = stored[tile.row : tile.row + tile.rows, tile.column : tile.column + tile.columns]
    spacing = stack.spacing_mm or (1.0, 1.0, 1.0)
    extents = np.array([stored.shape[0] * spacing[1], stored.shape[1] * spacing[0]])
    rows, columns = np.maximum(1, np.rint(extents * side / extents.max())).astype(int)
    small = stored[
        np.ix_(
            (np.arange(rows) + 0.5).astype(int) * stored.shape[0] // rows,
            (np.arange(columns) + 0.5).astype(int) * stored.shape[1] // columns,
        )
    ]
    values = small.astype(np.float32) * slope + intercept
    low, high = np.percentile(values, (1, 99))
    greys = (values - low) / max(float(high - low), 1e-6) * 255
    shown: npt.NDArray[np.uint8] = np.clip(greys, 0, 255).astype(np.uint8)
    return shown
