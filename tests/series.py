"""Small DICOM series for tests, and a way to spoil single files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseg.core import Grid, Volume
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_quiet import quiet_dicom

# RAS axes of an axial series: columns run to the left, rows to the back, slices to the head.
AXIAL = Grid((6, 5, 4), np.diag([-1.5, -1.25, 2.0, 1.0]))


def ramp(grid: Grid = AXIAL, dtype: type = np.int16) -> Volume:
    """A volume whose voxels all differ, below and above zero."""
    values = np.arange(np.prod(grid.shape_ijk)).reshape(grid.shape_ijk) - 20
    return Volume(values[None].astype(dtype), grid)


def small_series(folder: Path, grid: Grid = AXIAL, **options: object) -> Path:
    """Write the ramp as a series of files 00001.dcm, 00002.dcm, ... in the order of K."""
    write_dicom_series(ramp(grid), folder, **{"modality": "MR", **options})
    return folder


def spoil(path: Path, change: Callable[[Dataset], object], target: Path | None = None) -> None:
    """Change one file, whatever the standard says to the result."""
    with quiet_dicom():
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(target or path)


def spoil_all(folder: Path, change: Callable[[Dataset], object]) -> None:
    """Change every file of a series."""
    for path in sorted(folder.iterdir()):
        spoil(path, change)
