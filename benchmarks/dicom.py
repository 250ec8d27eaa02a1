"""Seconds from a folder of DICOM to a volume: medseg beside SimpleITK's and MONAI's readers.

A series of 300 slices is made from a real one of fewer: its slices there and back again, each
turned by a few pixels so that no two are equal, with the real headers and new positions and
identifiers. It is written uncompressed, as RLE, JPEG-LS and JPEG 2000 (all lossless). All readers
see the same folders, take turns in one process, and each reads a short series first so that imports
are not counted. What they make of a series must agree: shape, place of every corner and every
voxel. medseg reads a second time with one thread alone: other readers have no more. The start of
the processes in which it decodes JPEG-LS and JPEG 2000 is in its seconds.

    python -m benchmarks.dicom SERIES [--slices 300] [--repeats 5] [--json FILE]

SERIES is a folder with one CT or MR series, such as the `ct_dicom_j2k` of TotalSegmentator's tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.errors import MedsegError

SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AGREE_MM = 0.01

Read = tuple[npt.NDArray[Any], npt.NDArray[np.float64]]
"""``(i, j, k)`` voxels and the ``(4, 4)`` affine to RAS."""


@dataclass(frozen=True)
class Figure:
    """What one reader took for one series; no seconds where it could not read it."""

    reader: str
    syntax: str
    seconds: tuple[float, ...]
    why_not: str = ""

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def make_series(source: Path, folder: Path, slices: int, syntax: str) -> None:
    """Write a longer series made from a real one.

    Args:
        source: Folder of the real series.
        folder: To be made.
        slices: How many the series shall have.
        syntax: Transfer syntax UID.
    """
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid  # noqa: PLC0415

    from medseg.io.dicom_quiet import quiet_dicom  # noqa: PLC0415
    from medseg.io.dicom_study import read_study  # noqa: PLC0415

    study = read_study(source)
    stack = study.stacks[0]
    if stack.lattice is None:
        raise SystemExit(f"{source}: no series that can be read")
    affine, order = stack.lattice.affine_lps, stack.lattice.order
    folder.mkdir(parents=True)
    there_and_back = [*range(len(order)), *range(len(order) - 2, 0, -1)]
    uid = generate_uid()
    with quiet_dicom():
        originals = [dcmread(stack.frames[index].header.file.path) for index in order]
        pixels = [one.pixel_array for one in originals]
        for k in range(slices):
            which = there_and_back[k % len(there_and_back)]
            one = originals[which]
            turned = np.ascontiguousarray(np.roll(pixels[which], k % 16, axis=0))
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one["PixelData"].is_undefined_length = False
            one.PixelData = turned.astype(turned.dtype.newbyteorder("<")).tobytes()
            one.SeriesInstanceUID, one.SOPInstanceUID = uid, generate_uid()
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            one.InstanceNumber = k + 1
            place = affine[:3, 3] + k * affine[:3, 2]
            one.ImagePositionPatient = [f"{value:.6f}" for value in place]
            one.SliceLocation = f"{place[2]:.6f}"
            if syntax != SYNTAXES["uncompressed"]:
                one.compress(syntax, arr=turned, generate_instance_uid=False)
            one.save_as(folder / f"{k:05d}.dcm", enforce_file_format=True)


def read_medseg(folder: Path) -> Read:
    """The reader of medseg itself."""
    return _medseg(folder, None)


def read_medseg_alone(folder: Path) -> Read:
    """The same in one thread."""
    return _medseg(folder, 1)


def _medseg(folder: Path, threads: int | None) -> Read:
    from medseg.io.dicom_series import read_dicom_series  # noqa: PLC0415

    volume = read_dicom_series(folder, threads=threads).volume
    return volume.data_cijk[0], np.asarray(volume.grid.affine_ras)


def read_simpleitk(folder: Path) -> Read:
    """SimpleITK's series reader, files ordered by GDCM."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayViewFromImage(image).transpose(2, 1, 0).copy(order="K"), _LPS @ affine


def read_monai_pydicom(folder: Path) -> Read:
    """MONAI's LoadImage with its PydicomReader."""
    return _monai(folder, "PydicomReader")


def read_monai_itk(folder: Path) -> Read:
    """MONAI's LoadImage with its ITKReader."""
    return _monai(folder, "ITKReader")


def _monai(folder: Path, reader: str) -> Read:
    from monai.transforms import LoadImage  # noqa: PLC0415

    image = LoadImage(reader=reader, image_only=True)(str(folder))
    return image.numpy(), np.asarray(image.affine, dtype=np.float64)


READERS: dict[str, Callable[[Path], Read]] = {
    "medseg": read_medseg,
    "medseg, one thread": read_medseg_alone,
    "SimpleITK": read_simpleitk,
    "MONAI PydicomReader": read_monai_pydicom,
    "MONAI ITKReader": read_monai_itk,
}


def disagreement(ours: Read, theirs: Read) -> str:
    """How another reader's volume differs from ours; nothing if it does not.

    Axes may be in another order and run the other way: voxels are compared where they lie.
    """
    grid, other = Grid(_extents(ours[0]), ours[1]), Grid(_extents(theirs[0]), theirs[1])
    step = np.linalg.inv(grid.affine_ras) @ other.affine_ras
    turns = np.rint(step[:3, :3])
    corners = other.corners_ras()
    places = grid.voxel_from_world(corners)
    apart_mm = np.linalg.norm(grid.world_from_voxel(np.rint(places)) - corners, axis=1).max()
    if apart_mm > _AGREE_MM or abs(abs(np.linalg.det(turns)) - 1) > 1e-6:
        return f"corners up to {apart_mm:.3f} mm from a voxel"
    if sorted(grid.shape_ijk) != sorted(other.shape_ijk):
        return f"shape {other.shape_ijk} for {grid.shape_ijk}"
    axes = [int(np.flatnonzero(turns[axis])[0]) for axis in range(3)]
    turned = theirs[0].transpose(axes)
    for axis in range(3):
        if turns[axis, axes[axis]] < 0:
            turned = np.flip(turned, axis=axis)
    if not np.allclose(places.min(axis=0), 0, atol=0.01):
        return "another corner"
    if not np.array_equal(turned, ours[0]):
        return f"{int(np.count_nonzero(turned != ours[0]))} voxels that differ"
    return ""


def _extents(data: npt.NDArray[Any]) -> tuple[int, int, int]:
    i, j, k = data.shape
    return i, j, k


def measure(folder: Path, warm: Path, syntax: str, repeats: int) -> list[Figure]:
    """Let every reader read a series so many times, in turns.

    Raises:
        SystemExit: If what another reader makes of the series is not what medseg makes of it.
    """
    ours = read_medseg(folder)
    seconds: dict[str, list[float]] = {name: [] for name in READERS}
    failed: dict[str, str] = {}
    for name, read in READERS.items():
        try:
            read(warm)
            if difference := disagreement(ours, read(folder)):
                raise SystemExit(f"{name}, {syntax}: {difference}")
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, MedsegError):
                raise
            failed[name] = type(error).__name__
    for _ in range(repeats):
        for name, read in READERS.items():
            if name not in failed:
                clock = time.perf_counter()
                read(folder)
                seconds[name].append(time.perf_counter() - clock)
    return [
        Figure(name, syntax, tuple(taken), failed.get(name, "")) for name, taken in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, check and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("series", type=Path)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures: list[Figure] = []
    logging.disable(logging.CRITICAL)  # MONAI tells of a decoder for GPUs with every file
    with tempfile.TemporaryDirectory() as temporary:
        for syntax, uid in SYNTAXES.items():
            folder, warm = Path(temporary) / syntax, Path(temporary) / f"{syntax} short"
            make_series(options.series, folder, options.slices, uid)
            make_series(options.series, warm, 4, uid)
            figures += measure(folder, warm, syntax, options.repeats)
            extents = read_medseg(warm)[0].shape[:2]
    print_figures(figures, (*extents, options.slices), options.repeats)
    if options.json:
        content = [
            {"reader": f.reader, "syntax": f.syntax, "seconds": f.seconds, "failed": f.why_not}
            for f in figures
        ]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_figures(figures: Sequence[Figure], shape_ijk: Sequence[int], repeats: int) -> None:
    """One line per reader and syntax, with the ratio to medseg."""
    across, down, slices = shape_ijk
    print(
        f"{slices} slices of {across} x {down}, {os.cpu_count()} cores, median of {repeats}; "
        "every reader's volume is the same voxel for voxel"
    )
    for syntax in dict.fromkeys(figure.syntax for figure in figures):
        rows = [figure for figure in figures if figure.syntax == syntax]
        ours = next(figure for figure in rows if figure.reader == "medseg")
        for figure in rows:
            if figure.why_not:
                print(f"{syntax:13} {figure.reader:20} cannot read it ({figure.why_not})")
            else:
                ratio = figure.median / ours.median
                print(f"{syntax:13} {figure.reader:20} {figure.median:7.2f} s   {ratio:5.2f}")


if __name__ == "__main__":
    main()
