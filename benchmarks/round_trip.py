"""Where labels lie after their way through DICOM SEG and RTSTRUCT, on random oriented series.

Series of a few small slices are made: oblique, along the axes, feet first, with rows or columns
flipped, with a tilted gantry, with pixels and slices of any size, files in any order. Labels are
put on each, written as DICOM SEG and as RTSTRUCT, and read back by medseg. The truth is the affine
that the series was made from, in double precision; no function of medseg takes part in it.

    python -m benchmarks.round_trip [--series 200] [--seed 0]

prints the worst distance in mm between where a labelled voxel was put and where one is found:

* `SEG` and `RTSTRUCT`: as medseg reads them back;
* `SEG, by pydicom`: each pixel placed by the frame's own position, as other software does it;
* `RTSTRUCT, by pydicom`: how far points of contours are from the plane of a slice.

It ends with an error if one is above 0.01 mm, or if one labelled voxel is lost or added.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.io.scan import DicomSource, Scan

Floats = npt.NDArray[np.float64]

MOST_MM = 0.01
SCHEME = LabelScheme.plain("round trip", {1: "ball", 2: "box"})
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_TILT_DEG = 30.0


@dataclass(frozen=True)
class Truth:
    """How a series was made.

    Args:
        affine_lps: ``(4, 4)``, voxel (column, row, slice) to the patient system.
        shape_ijk: Columns, rows, slices.
        kind: What is special about it, for people.
    """

    affine_lps: Floats
    shape_ijk: tuple[int, int, int]
    kind: str

    def places(self, voxels: npt.NDArray[np.integer]) -> Floats:
        """``(n, 3)`` places of ``(n, 3)`` voxels."""
        return voxels @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]


@dataclass(frozen=True)
class Errors:
    """Worst distances of one series in mm; infinite where voxels were lost or added."""

    seg: float
    rtstruct: float
    seg_by_pydicom: float
    rtstruct_by_pydicom: float


def random_truth(rng: np.random.Generator) -> Truth:
    """A series that a scanner might make, and some that none would."""
    words = []
    turn = np.eye(3)
    if rng.random() < 0.6:
        turn = _rotation(rng.normal(size=4))
        words.append("oblique")
    else:
        axes = rng.permutation(3)
        turn = np.eye(3)[:, axes] * rng.choice([-1.0, 1.0], size=3)
        words.append("along the axes")
    if rng.random() < 0.3:
        turn = np.diag([-1.0, 1.0, -1.0]) @ turn
        words.append("feet first")
    if rng.random() < 0.3:
        turn = turn * rng.choice([[-1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])
        words.append("flipped")
    across, down = turn[:, 0], turn[:, 1]
    normal = np.cross(across, down)  # DICOM's order of slices
    column_mm, row_mm = rng.uniform(0.3, 2.0, size=2)
    slice_mm = rng.uniform(0.6, 6.0)
    step = normal * slice_mm
    if rng.random() < 0.5:
        tilt = np.tan(np.radians(rng.uniform(1.0, _MOST_TILT_DEG)))
        way = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else np.pi / 2
        step = step + tilt * slice_mm * (np.cos(way) * across + np.sin(way) * down)
        words.append("tilted")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * column_mm, down * row_mm, step], axis=1)
    affine[:3, 3] = rng.uniform(-400.0, 400.0, size=3)
    shape = tuple(int(extent) for extent in rng.integers([7, 7, 3], [13, 13, 7]))
    return Truth(affine, (shape[0], shape[1], shape[2]), ", ".join(words))


def _rotation(quaternion: Floats) -> Floats:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def write_series(truth: Truth, folder: Path, rng: np.random.Generator) -> None:
    """Write noise where the truth says, in files whose names are in any order."""
    from pydicom import dcmread  # noqa: PLC0415

    from medseg.io.dicom_export import write_dicom_series  # noqa: PLC0415
    from medseg.io.dicom_quiet import quiet_dicom  # noqa: PLC0415

    # the exporter writes upright series; every element that places a slice is then set anew
    data = rng.integers(0, 1000, size=(1, *truth.shape_ijk)).astype(np.int16)
    plain = Grid(truth.shape_ijk, np.diag([-1.0, -1.0, 1.0, 1.0]))
    write_dicom_series(Volume(data, plain), folder, modality="CT")
    across, down, step = truth.affine_lps[:3, :3].T
    cosines = [*(across / np.linalg.norm(across)), *(down / np.linalg.norm(down))]
    names = rng.permutation(truth.shape_ijk[2])
    with quiet_dicom():
        for k, path in enumerate(sorted(folder.iterdir())):
            dataset = dcmread(path)
            place = truth.affine_lps[:3, 3] + k * step
            dataset.ImagePositionPatient = [_decimal(value) for value in place]
            dataset.ImageOrientationPatient = [_decimal(value) for value in cosines]
            spacing = [float(np.linalg.norm(down)), float(np.linalg.norm(across))]
            dataset.PixelSpacing = [_decimal(value) for value in spacing]
            dataset.InstanceNumber = int(names[k]) + 1
            dataset.save_as(folder / f"slice{names[k]}")
            path.unlink()


def _decimal(value: float) -> str:
    """As many digits as the 16 characters of a decimal string hold."""
    return f"{value:.10f}"[:16]


def labels_for(truth: Truth, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """``(i, j, k)`` voxels of a ball and a box, on the axes of the truth."""
    shape = np.array(truth.shape_ijk)
    places = np.indices(truth.shape_ijk).reshape(3, -1).T
    centre = (shape - 1) * rng.uniform(0.3, 0.7, size=3)
    radius = np.maximum(shape * rng.uniform(0.2, 0.45, size=3), 1.0)
    ball = (np.square((places - centre) / radius).sum(axis=1) <= 1.0).reshape(truth.shape_ijk)
    data: npt.NDArray[np.uint8] = ball.astype(np.uint8)
    first = rng.integers(0, shape - 2)
    data[tuple(slice(at, at + 2) for at in first)] = 2
    return data


def round_trip(truth: Truth, folder: Path, rng: np.random.Generator) -> Errors:
    """Write and read back the labels of one series.

    Raises:
        MedsegError: If medseg refuses any of it.
    """
    from medseg.io.dicom_seg import (  # noqa: PLC0415
        Algorithm,
        read_seg,
        write_seg,
    )
    from medseg.io.dicom_series import read_dicom_series  # noqa: PLC0415
    from medseg.io.rtstruct import write_rtstruct  # noqa: PLC0415
    from medseg.io.rtstruct_labels import read_rtstruct  # noqa: PLC0415
    from medseg.io.segment_names import LabelReading  # noqa: PLC0415

    write_series(truth, folder / "series", rng)
    wanted = labels_for(truth, rng)
    scan = read_dicom_series(folder / "series", threads=1)
    labels = LabelMap(wanted, scan.volume.grid, SCHEME)
    source = _source(scan)
    made = Algorithm("benchmarks.round_trip", "1")
    write_seg(labels, folder / "seg.dcm", source, algorithm=made)
    write_rtstruct(labels, folder / "rt.dcm", source, algorithm=made)
    seg = read_seg(folder / "seg.dcm", SCHEME, scan.volume.grid)
    contours, _ = read_rtstruct(
        folder / "rt.dcm", SCHEME, scan.volume.grid, LabelReading(allow_gaps=True)
    )
    return Errors(
        seg=max(_apart_mm(truth, wanted, value, _places_of(seg, value)) for value in (1, 2)),
        rtstruct=max(
            _apart_mm(truth, wanted, value, _places_of(contours, value)) for value in (1, 2)
        ),
        seg_by_pydicom=_seg_by_pydicom(truth, wanted, folder / "seg.dcm"),
        rtstruct_by_pydicom=_contours_off_planes(truth, folder / "rt.dcm"),
    )


def _source(scan: Scan) -> DicomSource:
    if not isinstance(scan.source, DicomSource):
        raise TypeError(scan.source)
    return scan.source


def _places_of(labels: LabelMap, value: int) -> Floats:
    """Places of a label's voxels in the patient system, by the grid they were read on."""
    voxels = np.argwhere(labels.data_ijk == value)
    affine_lps = _RAS @ labels.grid.affine_ras
    return voxels @ affine_lps[:3, :3].T + affine_lps[:3, 3]


def _apart_mm(truth: Truth, wanted: npt.NDArray[np.uint8], value: int, found: Floats) -> float:
    """Worst distance between where voxels were put and where they are found."""
    from scipy.spatial import cKDTree  # noqa: PLC0415

    put = truth.places(np.argwhere(wanted == value))
    if len(put) != len(found):
        return np.inf
    if not len(put):
        return 0.0
    away, other = cKDTree(found).query(put)
    return float(away.max()) if len(set(other.tolist())) == len(put) else np.inf


def _seg_by_pydicom(truth: Truth, wanted: npt.NDArray[np.uint8], path: Path) -> float:
    """Every pixel of every frame by the frame's own functional groups."""
    from pydicom import dcmread  # noqa: PLC0415

    seg = dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    numbers = {str(one.SegmentLabel): int(one.SegmentNumber) for one in seg.SegmentSequence}
    places: dict[int, list[Floats]] = {number: [] for number in numbers.values()}
    for frame, own in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position, cosines, spacing = (
            np.array(getattr(_group(own, shared, name), keyword), dtype=np.float64)
            for name, keyword in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PixelMeasuresSequence", "PixelSpacing"),
            )
        )
        rows, columns = np.nonzero(frame)
        number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        places[number].append(
            position
            + columns[:, None] * spacing[1] * cosines[:3]
            + rows[:, None] * spacing[0] * cosines[3:]
        )
    worst = 0.0
    for label in SCHEME.labels:
        found = places.get(numbers.get(label.name, 0)) or [np.empty((0, 3))]
        worst = max(worst, _apart_mm(truth, wanted, label.value, np.concatenate(found)))
    return worst


def _group(own: object, shared: object, name: str) -> object:
    items = getattr(own, name, None) or getattr(shared, name)
    return items[0]


def _contours_off_planes(truth: Truth, path: Path) -> float:
    """How far points are from the plane of the nearest slice, at most."""
    from pydicom import dcmread  # noqa: PLC0415

    across, down = truth.affine_lps[:3, 0], truth.affine_lps[:3, 1]
    normal = np.cross(across, down)
    normal = normal / np.linalg.norm(normal)
    step_mm = float(truth.affine_lps[:3, 2] @ normal)
    worst = 0.0
    for roi in dcmread(path).ROIContourSequence:
        for contour in roi.get("ContourSequence") or []:
            points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            k = (points - truth.affine_lps[:3, 3]) @ normal / step_mm
            nearest = np.clip(np.rint(k), 0, truth.shape_ijk[2] - 1)
            worst = max(worst, float(np.abs(k - nearest).max()) * step_mm)
    return worst


def worst_of(count: int, seed: int) -> tuple[Errors, list[tuple[Truth, Errors]]]:
    """Round trips of so many series: the worst of each kind of error, and all of them."""
    each: list[tuple[Truth, Errors]] = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        truth = random_truth(rng)
        with tempfile.TemporaryDirectory() as temporary:
            each.append((truth, round_trip(truth, Path(temporary), rng)))
    worst = Errors(
        *(
            max(getattr(errors, name) for _, errors in each)
            for name in ("seg", "rtstruct", "seg_by_pydicom", "rtstruct_by_pydicom")
        )
    )
    return worst, each


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, check and print.

    Raises:
        SystemExit: If an error is above 0.01 mm.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    worst, each = worst_of(options.series, options.seed)
    kinds = ("oblique", "along the axes", "feet first", "flipped", "tilted")
    counts = {kind: sum(kind in truth.kind for truth, _ in each) for kind in kinds}
    print(f"{len(each)} series: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    rows = {
        "SEG": worst.seg,
        "SEG, by pydicom": worst.seg_by_pydicom,
        "RTSTRUCT": worst.rtstruct,
        "RTSTRUCT, by pydicom": worst.rtstruct_by_pydicom,
    }
    for name, value in rows.items():
        print(f"{name:22} worst error {value:.2e} mm")
    if max(rows.values()) > MOST_MM:
        raise SystemExit(f"an error above {MOST_MM} mm")


if __name__ == "__main__":
    main()
