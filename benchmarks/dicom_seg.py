"""Seconds, bytes and memory of a DICOM SEG of many segments: medseg beside highdicom used plainly.

A series and a label map are made: ellipsoids of many sizes, of which smaller ones cover parts of
larger ones. Both sides are given the headers that were read and the labels, write a SEG, read it
back and compare every voxel with the labels. medseg does both in ``write_seg``, and compares places
and references of all frames too. highdicom is used as its guide says: ``Segmentation`` and
``save_as``, then ``segread`` and ``get_volume``. Each run is a process of its own, the sides take
turns. Then each side reads what the other wrote, and must find the same voxels in the same places.

    python -m benchmarks.dicom_seg [--slices 300] [--segments 60] [--size 512] [--repeats 3]
        [--types BINARY LABELMAP] [--omit-empty-frames] [--json FILE]

"peak" is what the process held at most beyond what it held with series and labels read.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import psutil

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.io.scan import Scan

__all__ = ["Figure", "disagreement", "main", "make_case", "measure", "print_figures"]

SIDES = ("medseg", "highdicom")
_LABELS, _SERIES = "labels.npy", "series"
_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Figure:
    """What one side took for one type of segmentation, run by run."""

    side: str
    kind: str
    write_s: tuple[float, ...]
    verify_s: tuple[float, ...]
    file_bytes: int
    peak_bytes: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """The middle of writing and verifying."""
        return statistics.median(
            write + verify for write, verify in zip(self.write_s, self.verify_s, strict=True)
        )


def make_case(folder: Path, slices: int, segments: int, size: int) -> None:
    """Make a CT series and labels of so many structures, the same whenever it is called."""
    from medseg.io.dicom_export import write_dicom_series  # noqa: PLC0415

    chance = np.random.default_rng(0)
    shape = (size, size, slices)
    labels = np.zeros(shape, dtype=np.uint8 if segments < 256 else np.uint16)
    extents = np.array(shape, dtype=float)
    sizes = np.maximum(extents * chance.uniform(0.02, 0.15, (segments, 3)), 1.5)
    largest_first = np.argsort(-sizes.prod(axis=1))  # so that none is covered by others
    for value, radii in enumerate(sizes[largest_first], 1):
        centre = chance.uniform(0, 1, 3) * (extents - 1)
        low = np.maximum(np.ceil(centre - radii), 0).astype(int)
        high = np.minimum(np.floor(centre + radii) + 1, extents).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        steps = np.ogrid[box]
        inside = sum(((step - c) / r) ** 2 for step, c, r in zip(steps, centre, radii, strict=True))
        labels[box][np.asarray(inside) <= 1] = value
    np.save(folder / _LABELS, labels)
    image = (np.indices((size, size)).sum(axis=0) % 400)[:, :, None] + np.arange(slices)
    grid = Grid(shape, np.diag([-0.7, -0.7, 1.5, 1.0]))
    write_dicom_series(Volume(image[None].astype(np.int16), grid), folder / _SERIES, modality="CT")


def _read_case(folder: Path) -> tuple[Scan, LabelMap]:
    from medseg.io.dicom_series import read_dicom_series  # noqa: PLC0415

    scan = read_dicom_series(folder / _SERIES)
    data = np.load(folder / _LABELS)
    names = {int(value): f"structure {value}" for value in range(1, int(data.max()) + 1)}
    return scan, LabelMap(data, scan.volume.grid, LabelScheme.plain("benchmark", names))


def _by_medseg(path: Path, scan: Scan, labels: LabelMap, kind: str, omit: bool) -> None:
    from medseg.io.dicom_seg import Algorithm, write_seg  # noqa: PLC0415

    write_seg(
        labels,
        path,
        cast(Any, scan.source),
        algorithm=Algorithm("benchmark", "1"),
        seg_type=cast(Literal["BINARY", "LABELMAP"], kind),
        omit_empty_frames=omit,
    )


def _by_highdicom(path: Path, scan: Scan, labels: LabelMap, kind: str, omit: bool) -> None:
    import highdicom as hd  # noqa: PLC0415

    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="benchmark",
        family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version="1",
    )
    seg = hd.seg.Segmentation(
        source_images=list(cast(Any, scan.source).datasets),
        pixel_array=np.ascontiguousarray(labels.data_ijk.transpose(2, 1, 0)),
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=label.value,
                segment_label=label.name,
                segmented_property_category=tissue,
                segmented_property_type=tissue,
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
            )
            for label in labels.scheme.labels
        ],
        series_instance_uid=hd.UID(),
        series_number=100,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="benchmark",
        manufacturer_model_name="benchmark",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit,
    )
    seg.save_as(path)


def disagreement(path: Path, labels: LabelMap) -> str:
    """How a SEG differs from labels in highdicom's eyes; nothing if it does not."""
    import highdicom as hd  # noqa: PLC0415

    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    shape = volume.array.shape
    corners = np.array([[0, 0, 0], [n - 1 for n in shape]])
    places = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    voxels = np.rint(labels.grid.voxel_from_world(places * _RAS)).astype(int)
    apart = labels.grid.world_from_voxel(voxels) - places * _RAS
    if np.abs(apart).max() > 0.01:
        return f"a corner {np.abs(apart).max():.3f} mm from a voxel"
    first, last = voxels
    if tuple(np.abs(last - first) + 1) != shape[::-1]:
        return "other axes"
    found = volume.array.transpose(2, 1, 0)
    spans = []
    for axis in range(3):
        low, high = sorted((int(first[axis]), int(last[axis])))
        spans.append(slice(low, high + 1))
        if first[axis] > last[axis]:
            found = np.flip(found, axis=axis)
    wanted = labels.data_ijk[tuple(spans)]
    inside, everywhere = np.count_nonzero(wanted), np.count_nonzero(labels.data_ijk)
    if inside != everywhere:  # slices without foreground may be missing, and no others
        return f"{everywhere - inside} voxels of foreground too few"
    differing = int(np.count_nonzero(found != wanted))
    return f"{differing} voxels that differ" if differing else ""


def _run(folder: Path, side: str, kind: str, omit: bool, path: Path) -> dict[str, float]:
    """Write and verify once, in this process."""
    import highdicom  # noqa: F401, PLC0415 - imported before the clock starts, for both sides

    import medseg.io.dicom_seg as seg_of_medseg  # noqa: PLC0415

    scan, labels = _read_case(folder)
    verify = [0.0]
    if side == "medseg":  # which verifies what it writes: the clock of that is read inside
        check: Callable[..., None] = seg_of_medseg.check_seg

        def timed(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as it is called
            clock = time.perf_counter()
            check(*arguments, **options)
            verify[0] += time.perf_counter() - clock

        seg_of_medseg.check_seg = timed
    warnings.simplefilter("ignore")  # highdicom warns of names of patients
    before = psutil.Process().memory_info().rss
    clock = time.perf_counter()
    (_by_medseg if side == "medseg" else _by_highdicom)(path, scan, labels, kind, omit)
    write = time.perf_counter() - clock - verify[0]
    if side == "highdicom":
        clock = time.perf_counter()
        if difference := disagreement(path, labels):
            raise SystemExit(f"highdicom, {kind}: {difference}")
        verify[0] = time.perf_counter() - clock
    unit = 1024 if sys.platform != "darwin" else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "write_s": write,
        "verify_s": verify[0],
        "bytes": path.stat().st_size,
        "peak_bytes": max(0, peak - before),
    }


def _check_agreement(folder: Path, paths: dict[str, Path], kind: str) -> None:
    """Let each side read what the other wrote.

    Raises:
        SystemExit: If a voxel, or its place, differs.
    """
    from medseg.io.dicom_seg import read_seg  # noqa: PLC0415

    _, labels = _read_case(folder)
    if difference := disagreement(paths["medseg"], labels):
        raise SystemExit(f"medseg's file as highdicom reads it, {kind}: {difference}")
    found: npt.NDArray[Any] = read_seg(paths["highdicom"], labels.scheme, labels.grid).data_ijk
    if differing := int(np.count_nonzero(found != labels.data_ijk)):
        raise SystemExit(f"highdicom's file as medseg reads it, {kind}: {differing} voxels differ")


def measure(folder: Path, kinds: Sequence[str], omit: bool, repeats: int) -> list[Figure]:
    """Let both sides write and verify, in turns.

    Raises:
        SystemExit: If what they wrote differs.
    """
    figures = []
    for kind in kinds:
        paths = {side: folder / f"{side}.dcm" for side in SIDES}
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(repeats):
            for side, path in paths.items():
                path.unlink(missing_ok=True)
                words = ["--run", side, kind, str(folder), str(path)]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.dicom_seg", *words]
                    + ["--omit-empty-frames"] * omit,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        _check_agreement(folder, paths, kind)
        for side, results in runs.items():
            figures.append(
                Figure(
                    side,
                    kind,
                    tuple(run["write_s"] for run in results),
                    tuple(run["verify_s"] for run in results),
                    int(results[-1]["bytes"]),
                    tuple(int(run["peak_bytes"]) for run in results),
                )
            )
    return figures


def print_figures(figures: Sequence[Figure], what: str) -> None:
    """One line per side and type, with the ratio to medseg."""
    print(f"{what}; medians; each side reads the other's voxels as they were written")
    for kind in dict.fromkeys(figure.kind for figure in figures):
        rows = [figure for figure in figures if figure.kind == kind]
        ours = next(figure for figure in rows if figure.side == "medseg")
        for figure in rows:
            write, verify = statistics.median(figure.write_s), statistics.median(figure.verify_s)
            peak = statistics.median(figure.peak_bytes)
            print(
                f"{kind:10} {figure.side:10} write {write:7.2f} s  verify {verify:7.2f} s  "
                f"file {figure.file_bytes / 1e6:7.1f} MB  peak {peak / 1e6:7.0f} MB  "
                f"{figure.seconds / ours.seconds:6.2f}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, check and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--segments", type=int, default=60)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--types", nargs="+", default=["BINARY", "LABELMAP"])
    parser.add_argument("--omit-empty-frames", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        side, kind, folder, path = options.run
        print(json.dumps(_run(Path(folder), side, kind, options.omit_empty_frames, Path(path))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_case(folder, options.slices, options.segments, options.size)
        figures = measure(folder, options.types, options.omit_empty_frames, options.repeats)
    frames = "without empty frames" if options.omit_empty_frames else "all frames"
    print_figures(
        figures,
        f"{options.segments} segments, {options.slices} slices of {options.size} x {options.size}, "
        f"{frames}",
    )
    if options.json:
        content = [asdict(figure) for figure in figures]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
