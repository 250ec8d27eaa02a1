"""Forms in which scanners and archives hand on the same slices, for tests."""

from __future__ import annotations

import gc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import generate_uid

from medseg.io.dicom_quiet import quiet_dicom
from tests.series import small_series, spoil, spoil_all


def setting(**tags: object) -> Callable[[Dataset], None]:
    """A change that sets elements."""

    def change(dataset: Dataset) -> None:
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)

    return change


def shifted(k_to_mm: Callable[[int], Sequence[float]]) -> Callable[[Dataset], None]:
    """A change that moves a slice, by its number from 0, in the patient system."""

    def change(dataset: Dataset) -> None:
        moved = np.array(dataset.ImagePositionPatient, float) + k_to_mm(
            int(dataset.InstanceNumber) - 1
        )
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in moved]

    return change


def tilted_series(folder: Path, grid: object, per_slice_mm: Sequence[float], **options) -> Path:
    """A series whose slices are shifted by so much from one to the next."""
    small_series(folder, grid, **options)
    spoil_all(folder, shifted(lambda k: k * np.asarray(per_slice_mm)))
    return folder


def several_volumes(folder: Path, changes: Sequence[Callable[[Dataset], None]], **options) -> Path:
    """The same slices once for every change, in one series, each time with voxels 1000 higher."""
    small_series(folder, **options)
    first = sorted(folder.iterdir())
    for number, change in enumerate(changes):
        for path in first:

            def both(dataset: Dataset, number: int = number, change=change) -> None:
                pixels = np.frombuffer(dataset.PixelData, "<i2") + np.int16(1000 * number)
                dataset.PixelData = pixels.astype("<i2").tobytes()
                dataset.SOPInstanceUID = generate_uid()
                dataset.InstanceNumber = int(dataset.InstanceNumber) + 100 * number
                change(dataset)

            spoil(path, both, folder / f"v{number}_{path.name}")
    for path in first:
        path.unlink()
    return folder


def zipped(folder: Path, path: Path) -> Path:
    """A zip of a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def on_a_disc(folder: Path, disc: Path) -> Path:
    """The DICOMDIR of a copy, written by pydicom."""
    with quiet_dicom():
        files = FileSet()
        for path in sorted(folder.iterdir()):
            dataset = dcmread(path)
            dataset.StudyID = "1"  # a DICOMDIR names it
            files.add(dataset)
        files.write(disc)
        # it leaves its temporary folder to the garbage collector, with a warning
        del files
        gc.collect()
    return disc / "DICOMDIR"


def enhanced(
    folder: Path,
    path: Path,
    series_uid: str | None = None,
    class_uid: str = "1.2.840.10008.5.1.4.1.1.4.1",
) -> Dataset:
    """One enhanced object, of MR, of the slices of a folder, in reverse order of place."""
    slices = [dcmread(file) for file in sorted(folder.iterdir(), reverse=True)]
    first = slices[0]
    whole = Dataset()
    whole.update(first)
    whole.file_meta = first.file_meta
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = class_uid
    whole.NumberOfFrames = len(slices)
    whole.SeriesInstanceUID = series_uid or generate_uid()
    whole.PixelData = b"".join(one.PixelData for one in slices)
    shared = Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    frames = []
    for number, one in enumerate(slices):
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = number + 1, -number
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    whole.SharedFunctionalGroupsSequence = [shared]
    whole.PerFrameFunctionalGroupsSequence = frames
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, keyword)
    whole.save_as(path)
    return whole
