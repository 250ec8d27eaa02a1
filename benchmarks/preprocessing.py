"""Seconds and memory to prepare a CT for training: medseg and nnU-Net, one file, one core each.

A made CT with twelve structures is written as NIfTI and prepared at another spacing: read,
normalise, resample image and labels, list voxels of each structure, write what training reads.
nnU-Net does it with its own ``DefaultPreprocessor.run_case_save`` (cubic splines), told by a plan;
medseg with linear interpolation and with cubic convolution, both of which average where voxels get
larger. Every figure is that of a process of its own with one thread, as both prepare several cases
at a time in several processes. Reading is part of it, importing is not.

The results of the two cannot be equal where one averages and the other does not; how far they agree
is printed: the mean distance of the normalised intensities, in standard deviations, their
correlation, and the mean Dice of the labels.

Where ``nnunetv2`` is not installed its side is left out.

    python -m benchmarks.preprocessing [--quick] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from benchmarks.memory import MIB, peak_bytes
from pipelines.tables import print_table

if TYPE_CHECKING:
    from medseg.data.prepared import Preparation

Side = Literal["medseg linear", "medseg cubic", "nnU-Net"]

FULL, QUICK = (512, 512, 200), (96, 96, 40)
SPACING_MM, WANTED_MM = (0.8, 0.8, 1.5), (1.5, 1.5, 1.5)
STRUCTURES = 12
LOWER, UPPER, MEAN, STD = -1000.0, 1000.0, 0.0, 300.0
"""Of the normalisation, in HU."""

MISSING = 3
"""Exit status of a side that is not installed."""


@dataclass(frozen=True)
class Found:
    """What the process of one side tells.

    ``own_bytes`` is the peak beyond what the process held before it began.
    """

    seconds: float
    peak_bytes: int
    own_bytes: int
    file_bytes: int
    shape_ijk: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One side, and how far it agrees with the first; the least seconds count."""

    side: str
    found: Found
    distance: float
    correlation: float
    dice: float


def made_ct(shape: tuple[int, int, int], folder: Path) -> tuple[Path, Path]:
    """Write a made CT of a body with structures, and its label map.

    Returns:
        Files of the image and the labels.
    """
    from medseg.core import Grid, Volume  # noqa: PLC0415 - not in nnU-Net's process
    from medseg.io.nifti import write_nifti_volume  # noqa: PLC0415 - as above

    rng = np.random.default_rng(0)
    i, j, k = (np.linspace(-1, 1, extent, dtype=np.float32) for extent in shape)
    plane = (i[:, None] / 0.9) ** 2 + (j[None] / 0.7) ** 2
    centres = rng.uniform(-0.55, 0.55, (STRUCTURES, 3))
    radii = rng.uniform(0.08, 0.25, (STRUCTURES, 3))
    levels = rng.uniform(-150, 300, STRUCTURES)
    noise = rng.normal(0, 15, shape[:2]).astype(np.float32)
    image = np.empty(shape, dtype=np.int16, order="F")
    labels = np.zeros(shape, dtype=np.uint8, order="F")
    for number in range(shape[2]):
        values = np.where(plane < 1, np.float32(40), np.float32(-1000))
        for value in range(STRUCTURES):
            place = [
                (axis - centre) / radius
                for axis, centre, radius in zip((i, j), centres[value], radii[value], strict=False)
            ]
            height = (k[number] - centres[value, 2]) / radii[value, 2]
            inside = place[0][:, None] ** 2 + place[1][None] ** 2 + height**2 < 1
            labels[:, :, number][inside] = value + 1
            values[inside] = levels[value]
        shifted = np.roll(noise, (7 * number, 11 * number), (0, 1))
        image[:, :, number] = np.clip(values + shifted, -1024, 3071).round()
    grid = Grid(shape, np.diag([*SPACING_MM, 1.0]))
    files = folder / "made_0000.nii.gz", folder / "made.nii.gz"
    write_nifti_volume(Volume(image[None], grid), files[0])
    write_nifti_volume(Volume(labels[None], grid), files[1])
    return files


def preparation(interpolation: Literal["linear", "cubic"]) -> Preparation:
    """What medseg is told."""
    from medseg.core import LabelScheme  # noqa: PLC0415 - not in nnU-Net's process
    from medseg.data.prepared import Preparation  # noqa: PLC0415 - as above
    from medseg.models.card import Channel, ClipZScore, InputSettings  # noqa: PLC0415 - as above

    scaling = ClipZScore(lower=LOWER, upper=UPPER, mean=MEAN, std=STD)
    inputs = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=scaling),),
        spacing_mm=WANTED_MM,
        window_ijk=(128, 128, 128),
        interpolation=interpolation,
    )
    names = {value: f"structure {value}" for value in range(1, STRUCTURES + 1)}
    return Preparation(inputs, LabelScheme.plain("made", names))


def prepare_ours(
    image: Path, label: Path, out: Path, interpolation: Literal["linear", "cubic"]
) -> tuple[Found, npt.NDArray[Any], npt.NDArray[Any]]:
    """Medseg's preparation and its file."""
    import torch  # noqa: PLC0415 - only the measured processes load torch

    from medseg.data.datalist import Case  # noqa: PLC0415 - as above
    from medseg.data.prepared import save_prepared  # noqa: PLC0415 - as above

    torch.set_num_threads(1)
    prepare = preparation(interpolation)
    before = peak_bytes()
    began = time.perf_counter()
    case = prepare(Case("made", (image,), label))
    path = out / "made.prepared"
    save_prepared(case, path, "made")
    seconds = time.perf_counter() - began
    peak = peak_bytes()
    found = Found(seconds, peak, peak - before, path.stat().st_size, case.shape_ijk)
    return found, case.image_cijk[0], case.labels_ijk


def prepare_nnunet(
    image: Path, label: Path, out: Path
) -> tuple[Found, npt.NDArray[Any], npt.NDArray[Any]]:
    """nnU-Net's preprocessor and its files.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    import torch  # noqa: PLC0415 - see prepare_ours

    torch.set_num_threads(1)
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of paths that are not set
        preparing: Any = importlib.import_module(
            "nnunetv2.preprocessing.preprocessors.default_preprocessor"
        )
        handling: Any = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
        datasets: Any = importlib.import_module("nnunetv2.training.dataloading.nnunet_dataset")
    resampling = "resample_data_or_seg_to_shape"
    separate = {"order_z": 0, "force_separate_z": None}
    plans = handling.PlansManager(
        {
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {
                "0": {
                    "mean": MEAN,
                    "std": STD,
                    "percentile_00_5": LOWER,
                    "percentile_99_5": UPPER,
                }
            },
            "configurations": {
                "3d": {
                    "preprocessor_name": "DefaultPreprocessor",
                    "patch_size": [128, 128, 128],
                    "spacing": list(reversed(WANTED_MM)),
                    "normalization_schemes": ["CTNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": resampling,
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **separate},
                    "resampling_fn_seg": resampling,
                    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **separate},
                    "architecture": {},
                }
            },
        }
    )
    names = {"background": 0, **{f"structure {n}": n for n in range(1, STRUCTURES + 1)}}
    dataset = {"labels": names, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    preparer = preparing.DefaultPreprocessor(verbose=False)
    before = peak_bytes()
    began = time.perf_counter()
    preparer.run_case_save(
        str(out / "made"), [str(image)], str(label), plans, plans.get_configuration("3d"), dataset
    )
    seconds = time.perf_counter() - began
    peak = peak_bytes()
    size = sum(path.stat().st_size for path in out.iterdir())
    data, seg, *_ = datasets.nnUNetDatasetBlosc2(str(out)).load_case("made")
    # files are read as k, j, i
    x_ijk = np.ascontiguousarray(np.asarray(data[:])[0].transpose())
    labels_ijk = np.asarray(seg[:])[0].transpose().clip(0).astype(np.uint8)
    return Found(seconds, peak, peak - before, size, x_ijk.shape), x_ijk, labels_ijk


def run_side(side: Side, image: Path, label: Path, keep: Path) -> Found:
    """One side, in this process; its arrays are kept in a file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if side == "nnU-Net":
            found, x_ijk, labels_ijk = prepare_nnunet(image, label, out)
        else:
            kind: Literal["linear", "cubic"] = "cubic" if side.endswith("cubic") else "linear"
            found, x_ijk, labels_ijk = prepare_ours(image, label, out, kind)
    np.savez(keep, x_ijk=x_ijk, labels_ijk=labels_ijk)
    return found


def in_process(side: Side, image: Path, label: Path, keep: Path) -> Found | None:
    """One side in a process of its own; None if it is not installed.

    Raises:
        RuntimeError: With the process's last words, if it fails.
    """
    words = [sys.executable, "-m", "benchmarks.preprocessing", "--side", side]
    words += ["--files", str(image), str(label), str(keep)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS"), "1")
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **threads}
    )
    if done.returncode == MISSING:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr.strip()[-2000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def agreement(one: Path, other: Path) -> tuple[float, float, float]:
    """Mean distance and correlation of intensities, mean Dice of the labels."""
    first, second = np.load(one), np.load(other)
    x, y = first["x_ijk"].ravel(), second["x_ijk"].ravel()
    if x.size != y.size:
        return math.nan, math.nan, math.nan
    distance = float(np.abs(x - y).mean(dtype=np.float64))
    correlation = float(np.corrcoef(x, y)[0, 1])
    a, b = first["labels_ijk"], second["labels_ijk"]
    scores = []
    for value in range(1, STRUCTURES + 1):
        here, there = a == value, b == value
        both = int(here.sum()) + int(there.sum())
        if both:
            scores.append(2 * int((here & there).sum()) / both)
    return distance, correlation, float(np.mean(scores))


def measure(shape: tuple[int, int, int], repeats: int) -> list[Row]:
    """All sides in turns on one made CT."""
    runs: dict[Side, list[Found]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, label = made_ct(shape, folder)
        sides = list(get_args(Side))
        for _ in range(repeats):
            for side in sides[:]:
                found = in_process(side, image, label, folder / f"{side}.npz")
                if found is None:
                    sides.remove(side)
                    continue
                runs.setdefault(side, []).append(found)
                print(f"  {side}: {found.seconds:.1f} s", file=sys.stderr)
        # against the side that averages nothing, if it is there
        against = folder / f"{'nnU-Net' if 'nnU-Net' in runs else 'medseg cubic'}.npz"
        return [
            Row(
                side,
                min(found, key=lambda one: one.seconds),
                *agreement(folder / f"{side}.npz", against),
            )
            for side, found in runs.items()
        ]


def print_rows(rows: list[Row], shape: tuple[int, int, int]) -> None:
    """The table, and what it is of."""
    peer = next((row for row in rows if row.side == "nnU-Net"), rows[0])
    print_table(
        [
            "side",
            "s",
            f"{peer.side} takes",
            "peak [MiB]",
            "without imports",
            "file [MiB]",
            "mean distance [SD]",
            "correlation",
            "Dice",
        ],
        [
            [
                row.side,
                f"{row.found.seconds:.2f}",
                f"{peer.found.seconds / row.found.seconds:.1f} times as long",
                f"{row.found.peak_bytes / MIB:.0f}",
                f"{row.found.own_bytes / MIB:.0f}",
                f"{row.found.file_bytes / MIB:.0f}",
                f"{row.distance:.4f}",
                f"{row.correlation:.4f}",
                f"{row.dice:.4f}",
            ]
            for row in rows
        ],
    )
    print(
        f"{'x'.join(map(str, shape))} at {SPACING_MM} mm to "
        f"{'x'.join(map(str, rows[0].found.shape_ijk))} at {WANTED_MM} mm, one thread; "
        f"agreement is with {'nnU-Net' if peer.side == 'nnU-Net' else 'medseg cubic'}"
    )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small CT")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--side", choices=get_args(Side), help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:  # the measured process
        try:
            print(json.dumps(asdict(run_side(arguments.side, *arguments.files))))
        except ModuleNotFoundError as error:
            print(f"nnU-Net is left out: {error}; pip install nnunetv2", file=sys.stderr)
            sys.exit(MISSING)
        return
    shape = QUICK if arguments.quick else FULL
    rows = measure(shape, arguments.repeats)
    print_rows(rows, shape)
    if all(row.side != "nnU-Net" for row in rows):
        print("nnU-Net was left out: it is not installed (pip install nnunetv2)")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    wrong = [row.side for row in rows if not (row.correlation > 0.98 and row.dice > 0.95)]
    if wrong:
        sys.exit(f"the results of {', '.join(wrong)} differ by more than interpolation")


if __name__ == "__main__":
    main()
