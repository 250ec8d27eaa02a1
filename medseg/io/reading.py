"""One door for images of every supported kind: file or folder in, :class:`Scan` out."""

# ruff: noqa: PLC0415 - each format's library takes long to import: it is loaded with its first file

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.core import LabelMap, LabelScheme, Volume
from medseg.errors import ConfigError, FormatError, GeometryError
from medseg.io.checks import check_file, check_finite
from medseg.io.dicom_files import is_study_file
from medseg.io.label_like import check_is_image
from medseg.io.notes import of_channel
from medseg.io.scan import Scan

__all__ = ["IMAGE_SUFFIXES", "read_channels", "read_image", "read_image_or_labels", "read_labels"]

_NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")

IMAGE_SUFFIXES = _NIFTI + _ITK
"""Endings of the image files that can be read; a DICOM series is given as its folder."""

_GRIDS_DIFFER_MM = 0.01


def read_image(path: Path, *, series: str | None = None, allow_gaps: bool = False) -> Scan:
    """Read one image: a NIfTI, NRRD or MetaImage file, or a DICOM series.

    Args:
        path: A file; or a folder, zip or DICOMDIR with the series.
        series: Which one to read of a study with several, as for
            :func:`~medseg.io.series_choice.chosen_stack`.
        allow_gaps: Resample the slices of a series that are not evenly apart instead of refusing
            them.

    Raises:
        MedsegError: As the readers of the formats (:func:`~medseg.io.nifti.read_nifti`,
            :func:`~medseg.io.itk_formats.read_itk`,
            ``medseg.io.dicom_series.read_dicom_series``); and ``label-as-image`` for a label map,
            ``dicom-single-file`` for one file of a series, ``format-unknown`` for other endings.
    """
    scan = read_image_or_labels(path, series=series, allow_gaps=allow_gaps)
    check_is_image(scan.volume, str(path))
    return scan


def read_image_or_labels(
    path: Path, *, series: str | None = None, allow_gaps: bool = False
) -> Scan:
    """Read a file without asking whether it is an image or a label map.

    Arguments and errors are those of :func:`read_image`, but for ``label-as-image``.
    """
    name = path.name.lower()
    if path.is_dir() or is_study_file(path):
        from medseg.io.dicom_series import read_dicom_series

        scan = read_dicom_series(path, series=series, allow_gaps=allow_gaps)
        check_finite(scan.volume.data_cijk, str(path))
    else:
        check_file(path)
        if name.endswith(_NIFTI):
            from medseg.io.nifti import read_nifti

            scan = read_nifti(path)
        elif name.endswith(_ITK):
            from medseg.io.itk_formats import read_itk

            scan = read_itk(path)
        else:
            raise _refusal(path)
    return scan


def read_labels(path: Path, scheme: LabelScheme) -> LabelMap:
    """Read a label map from a NIfTI, NRRD or MetaImage file; whole floats are accepted.

    Raises:
        MedsegError: As the readers of the formats; and ``labels-not-integer``, ``labels-range``,
            ``labelmap-values``.
    """
    name = path.name.lower()
    check_file(path)
    if name.endswith(_NIFTI):
        from medseg.io.nifti import read_nifti_labels

        return read_nifti_labels(path, scheme)
    if name.endswith(_ITK):
        from medseg.io.itk_formats import read_itk_labels

        return read_itk_labels(path, scheme)
    raise _refusal(path)


def read_channels(paths: Mapping[str, Path]) -> Scan:
    """Read several single-channel images of one grid as the channels of one.

    Args:
        paths: Channel name to file or folder, in the order of the channels.

    Returns:
        A scan with those channel names in the smallest type that holds all; its source is the
        first, notes carry the name of their channel.

    Raises:
        ConfigError: ``channels-none``.
        GeometryError: ``channels-grids-differ`` if shapes differ, or a corner voxel lies more than
            0.01 mm from that of the first.
        MedsegError: As :func:`read_image`.
    """
    if not paths:
        raise ConfigError(
            "channels",
            expected="at least one channel with its file",
            found="none",
            remedy="give NAME=FILE for every channel of the model",
            code="channels-none",
        )
    scans = {name: read_image(path) for name, path in paths.items()}
    first_name, first = next(iter(scans.items()))
    for name, scan in scans.items():
        _check_same_grid(first_name, first.volume, name, scan.volume, str(paths[name]))
    dtype = np.result_type(*(scan.volume.data_cijk.dtype for scan in scans.values()))
    if dtype == np.float64 or dtype.itemsize > 4:  # mixed integers and floats would double
        dtype = np.dtype(np.float32)
    data = np.empty((len(scans), *first.volume.grid.shape_ijk), dtype=dtype)
    for index, scan in enumerate(scans.values()):
        data[index] = scan.volume.data_cijk[0]
    notes = tuple(of_channel(name, note) for name, scan in scans.items() for note in scan.notes)
    return Scan(Volume(data, first.volume.grid, tuple(scans)), first.source, notes)


def _check_same_grid(first_name: str, first: Volume, name: str, other: Volume, where: str) -> None:
    if first.grid.shape_ijk != other.grid.shape_ijk:
        found = f"shape {other.grid.shape_ijk}"
    elif (apart_mm := first.grid.distance_mm(other.grid)) > _GRIDS_DIFFER_MM:
        found = f"channel {name} up to {apart_mm:.3f} mm away"
    else:
        return
    raise GeometryError(
        where,
        expected=f"the grid of channel {first_name} (shape {first.grid.shape_ijk}, "
        f"within {_GRIDS_DIFFER_MM:g} mm)",
        found=found,
        remedy="resample the channels onto one grid",
        code="channels-grids-differ",
    )


def _refusal(path: Path) -> FormatError:
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return FormatError(
            str(path),
            expected="the folder of a DICOM series",
            found="a single DICOM file",
            remedy="give the folder or zip that holds all files of the series",
            code="dicom-single-file",
        )
    return FormatError(
        str(path),
        expected=f"a file ending in {', '.join(IMAGE_SUFFIXES)}, or a folder with a DICOM series",
        found=f"the ending {path.suffix or 'none'}",
        remedy="convert the image, or give the folder of its DICOM series",
        code="format-unknown",
    )
