"""Writing a volume as a classic CT or MR series, for demonstrations and for tests of the reader.

The series is complete for its purpose and anonymous by default. Source: DICOM PS3.3 A.3 and A.4
(CT and MR Image IOD).
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.atomic import atomic_folder
from medseg.core import AxisTurn, Volume, turn
from medseg.core.grid import FloatArray
from medseg.errors import ConfigError, FormatError, GeometryError, ShapeError, one_of
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_series import RAS_FROM_LPS, read_dicom_series

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["check_dicom_series", "write_dicom_series"]

_TOLERANCE_MM = 0.01
_SHEAR_TOLERANCE_DEG = 0.01
_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


def write_dicom_series(
    volume: Volume,
    folder: Path,
    *,
    modality: Literal["CT", "MR"],
    patient_id: str = "ANONYMOUS",
    series_number: int = 1,
    random_names: bool = False,
) -> None:
    """Write a volume as one DICOM series, one file per slice along K, and read it back.

    Integers that fit 16 bits are stored as they are; other values are spread over 16 unsigned bits
    by a rescale slope and intercept, exact to half a slope. All identifiers are fresh.

    Convention:
        A row of the images runs along I and a column along J. A left-handed grid is written with
        its slices in reverse, since readers take the normal row x column for the way up; every
        voxel keeps its place in the world.

    Args:
        volume: One channel, finite values.
        folder: To be made; its parent must exist.
        modality: ``CT`` or ``MR``.
        patient_id: Patient identifier and name to be written.
        series_number: Number of the series.
        random_names: Name the files by random digits without a suffix, as archives do.

    Raises:
        ConfigError: If the modality is another.
        ShapeError: If there are several channels.
        FormatError: If a value is not finite, or the series read back holds other values.
        GeometryError: If the grid is sheared, or the series read back lies elsewhere.
        ResourceError: If the folder exists or cannot be written.
    """
    if modality not in _CLASSES:
        raise ConfigError(
            "modality",
            expected=one_of(str(modality), _CLASSES),
            found=repr(modality),
            remedy="choose one of them",
            code="dicom-modality",
        )
    if len(volume.channels) != 1:
        raise ShapeError(
            str(folder),
            expected="a volume of one channel for one series",
            found=f"{len(volume.channels)} channels",
            remedy="write one series per channel",
            code="dicom-channels",
        )
    if not np.isfinite(volume.data_cijk).all():
        raise FormatError(
            str(folder),
            expected="finite values",
            found="NaN or infinity",
            remedy="replace them first",
            code="voxels-not-finite",
        )
    if volume.grid.shear_deg > _SHEAR_TOLERANCE_DEG:
        raise GeometryError(
            str(folder),
            expected="voxel axes at right angles",
            found=f"a shear of {volume.grid.shear_deg:.3f} degrees",
            remedy="resample the volume first",
            code="affine-sheared",
        )
    if np.linalg.det(volume.grid.affine_ras[:3, :3]) < 0:
        volume = turn(volume, AxisTurn((0, 1, 2), (False, False, True)))
    stored, slope, intercept = _stored(volume.data_cijk[0])
    with atomic_folder(folder) as temporary:
        with quiet_dicom():
            series = _series_header(modality, patient_id, series_number)
            _write_slices(
                temporary, series, stored, (slope, intercept), volume, random_names=random_names
            )
        check_dicom_series(temporary, volume, slope, str(folder))


def _stored(data_ijk: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float, float]:
    """16-bit integers with the slope and intercept that lead back to the values."""
    low, high = float(data_ijk.min()), float(data_ijk.max())
    if data_ijk.dtype.kind in "iu" or (data_ijk == np.rint(data_ijk)).all():
        for candidate in (np.int16, np.uint16):
            limits = np.iinfo(candidate)
            if limits.min <= low and high <= limits.max:
                return data_ijk.astype(candidate), 1.0, 0.0
    # A decimal string holds 16 characters, so that the slope is rounded before it is used.
    slope = float(f"{(high - low) / 65535.0 or 1.0:.9e}") * (1.0 + 1e-9)
    slope, intercept = float(f"{slope:.9e}"), float(f"{low:.8e}")
    steps = np.rint((data_ijk.astype(np.float64) - intercept) / slope)
    return np.clip(steps, 0, 65535).astype(np.uint16), slope, intercept


def _series_header(modality: str, patient_id: str, series_number: int) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset  # noqa: PLC0415 - only when DICOM is used
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: PLC0415

    now = datetime.now(tz=UTC)
    series = Dataset()
    series.file_meta = FileMetaDataset()
    series.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    series.SpecificCharacterSet = "ISO_IR 192"
    series.SOPClassUID = _CLASSES[modality]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(series, name, generate_uid(prefix=None))
    series.PatientID = patient_id
    series.PatientName = patient_id
    series.PatientIdentityRemoved = "YES"
    series.DeidentificationMethod = "never identified: written by medseg from a volume"
    series.PatientBirthDate = series.PatientSex = ""
    series.StudyID = series.AccessionNumber = series.ReferringPhysicianName = ""
    series.StudyDate = series.SeriesDate = series.ContentDate = now.strftime("%Y%m%d")
    series.StudyTime = series.SeriesTime = series.ContentTime = now.strftime("%H%M%S")
    series.Modality = modality
    series.Manufacturer = "medseg"
    series.SeriesNumber = series_number
    series.PatientPosition = "HFS"
    series.PositionReferenceIndicator = ""
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME2"
    if modality == "CT":
        series.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        series.KVP = series.AcquisitionNumber = None
    else:
        series.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        series.ScanningSequence = "RM"
        series.SequenceVariant = "NONE"
        series.ScanOptions = series.MRAcquisitionType = ""
        series.EchoTime = series.EchoTrainLength = None
    return series


def _write_slices(
    folder: Path,
    series: Dataset,
    stored_ijk: npt.NDArray[Any],
    rescale: tuple[float, float],
    volume: Volume,
    *,
    random_names: bool,
) -> None:
    from pydicom.uid import generate_uid  # noqa: PLC0415

    affine_lps = RAS_FROM_LPS @ volume.grid.affine_ras
    spacing = volume.grid.spacing_mm
    planes_kji = np.ascontiguousarray(stored_ijk.transpose(2, 1, 0))
    planes_kji = planes_kji.astype(stored_ijk.dtype.newbyteorder("<"), copy=False)
    slices, rows, columns = planes_kji.shape
    series.Rows, series.Columns = rows, columns
    series.PixelSpacing = _decimals(np.array([spacing[1], spacing[0]]))
    series.SliceThickness = series.SpacingBetweenSlices = _decimals(np.array([spacing[2]]))[0]
    directions = affine_lps[:3, :2] / np.asarray(spacing[:2])
    series.ImageOrientationPatient = _decimals(directions.T.reshape(-1))
    series.BitsAllocated = series.BitsStored = 16
    series.HighBit = 15
    series.PixelRepresentation = int(stored_ijk.dtype.kind == "i")
    if series.Modality == "CT" or rescale != (1.0, 0.0):
        series.RescaleSlope, series.RescaleIntercept = _decimals(np.array(rescale))
        series.RescaleType = "HU" if series.Modality == "CT" else "US"
    for index in range(slices):
        series.SOPInstanceUID = generate_uid(prefix=None)
        series.file_meta.MediaStorageSOPClassUID = series.SOPClassUID
        series.file_meta.MediaStorageSOPInstanceUID = series.SOPInstanceUID
        series.InstanceNumber = index + 1
        series.ImagePositionPatient = _decimals(affine_lps[:3, 3] + index * affine_lps[:3, 2])
        plane = planes_kji[index]
        series.PixelData = plane.tobytes() + (b"\0" if plane.nbytes % 2 else b"")
        name = secrets.token_hex(8) if random_names else f"{index + 1:05d}.dcm"
        series.save_as(folder / name, enforce_file_format=True)


def _decimals(values: FloatArray) -> list[str]:
    """Decimal strings of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds  # noqa: PLC0415

    return [format_number_as_ds(float(value)) for value in values]


def check_dicom_series(folder: Path, volume: Volume, slope: float, where: str) -> None:
    """Read a series back and compare it with the (right-handed) volume it should hold.

    Raises:
        GeometryError: If it lies elsewhere (``verify-geometry``).
        FormatError: If its values differ by more than half a slope (``verify-values``).
    """
    found = read_dicom_series(folder).volume
    if found.grid.distance_mm(volume.grid) > _TOLERANCE_MM:
        raise GeometryError(
            where,
            expected=f"the place of the volume within {_TOLERANCE_MM} mm",
            found="another one on reading back",
            remedy="report this; nothing was written",
            code="verify-geometry",
        )
    allowed = 0.0 if slope == 1.0 else 0.51 * slope + 1e-6 * float(np.abs(volume.data_cijk).max())
    gap = max(
        float(np.abs(found.data_cijk[..., k].astype(np.float64) - volume.data_cijk[..., k]).max())
        for k in range(volume.grid.shape_ijk[2])
    )
    if gap > allowed:
        raise FormatError(
            where,
            expected=f"the values of the volume within {allowed:g}",
            found=f"a difference of {gap:g} on reading back",
            remedy="report this; nothing was written",
            code="verify-values",
        )
