"""What a reader hands on: the image, and what a writer must know of the file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.core import Volume
from medseg.core.grid import FloatArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DicomSource", "ItkSource", "NiftiSource", "Scan", "Source"]


@dataclass(frozen=True, slots=True, eq=False)
class NiftiSource:
    """Geometry fields of a NIfTI header, kept so that a result can carry them bit for bit.

    Args:
        path: The file read.
        version: 1 or 2.
        sform_code: As stored; 0 means that the sform is not set.
        qform_code: As stored; 0 means that the qform is not set.
        header_bytes: The header as stored, both byte orders possible.
    """

    path: Path
    version: int
    sform_code: int
    qform_code: int
    header_bytes: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ItkSource:
    """An NRRD or MetaImage file; its geometry is all in the grid.

    Args:
        path: The file read.
    """

    path: Path


@dataclass(frozen=True, slots=True, eq=False)
class DicomSource:
    """The instances of one DICOM series in the order of the K axis.

    Args:
        folder: The folder, zip or DICOMDIR read.
        datasets: One header (no pixel data) per slice; index = K. A frame of a multi-frame object
            has a header as a classic image would, with the object's identifiers.
        affine_lps: ``(4, 4)``, voxel (column, row, slice) to the DICOM patient system; sheared
            where the gantry was tilted.
        frame_numbers: For a multi-frame object the frame of each slice, from 1; else None.
        made_up_k: Slices that no instance holds: interpolated where there was a gap. Their header
            is that of the nearest instance, moved.
    """

    folder: Path
    datasets: tuple[Dataset, ...]
    affine_lps: FloatArray
    frame_numbers: tuple[int, ...] | None = None
    made_up_k: frozenset[int] = frozenset()


Source = NiftiSource | ItkSource | DicomSource


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One image as read.

    Args:
        volume: Rescaled intensities on their grid.
        source: Where it came from.
        notes: Harmless peculiarities worth a log line, such as which of two forms was used.
    """

    volume: Volume
    source: Source
    notes: tuple[str, ...] = ()
