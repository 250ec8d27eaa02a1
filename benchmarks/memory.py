"""How much memory a prediction takes, what was foretold, and what MONAI's inferer takes.

Classes, slices and planes are varied with a network so small that memory is all that matters. Every
figure is that of a process of its own: the largest resident memory that the kernel saw in it, from
the import of torch to the labels. The volume is made, int16, and held whole by both sides; MONAI's
inferer gets it as float32 and its answer goes through argmax, where by estimate that fits.

The script fails if a measured peak lies outside of 0.7 to 1.1 times the predicted one, grows with
depth, passes a limit that was set, or if labels of the two sides differ.

    python -m benchmarks.memory [--quick] [--max-depth SLICES] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipelines.tables import print_table

if TYPE_CHECKING:
    from torch import nn

    from medseg.models.card import InputSettings, ModelCard

PICTURE = Path("docs/images/inference_memory.png")
MIB, GIB = 2**20, 2**30
PREDICTED = (0.7, 1.1)
"""Where measured over predicted must lie."""

MAY_GROW = 1.05
"""Largest ratio of the peaks, input and output left out, of two depths swept alike."""

EQUAL_VOXELS = 0.9999
"""Share of voxels that must get the same label from both sides; sums are rounded differently."""

LIMIT_BYTES = 5 * GIB // 2
"""What the large volume must stay under: 14 classes, 512x512x800, int16."""

MONAI_BYTES = 6 * GIB
"""MONAI's side is run where its estimate is below this."""

PROGRAM_BYTES = 600 * MIB
"""What a process with torch and MONAI holds without a volume, for the estimate."""

COLOURS = ("#1b9e77", "#2166ac", "#b2182b")
CLIP, SCALE = 1000.0, 500.0

Side = Literal["medseg", "MONAI"]


@dataclass(frozen=True)
class Job:
    """One volume and one number of classes.

    ``limit_bytes`` of 0 sets no limit.
    """

    classes: int
    edge: int
    depth: int
    window: int = 64
    overlap: float = 0.125
    limit_bytes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extents."""
        return self.edge, self.edge, self.depth

    @property
    def voxels(self) -> int:
        """Their number."""
        return math.prod(self.shape)

    @property
    def held_bytes(self) -> int:
        """Input, int16, and output, uint8."""
        return 3 * self.voxels

    @property
    def sums_bytes(self) -> int:
        """A float32 number per class and voxel."""
        return 4 * self.classes * self.voxels

    @property
    def monai_bytes(self) -> int:
        """Least that MONAI's inferer needs: input twice, sums, their weights, labels in int64."""
        return PROGRAM_BYTES + self.sums_bytes + (2 + 4 + 4 + 8) * self.voxels


@dataclass(frozen=True)
class Found:
    """What a process tells."""

    peak_bytes: int
    seconds: float
    predicted_bytes: int = 0
    own_peak_bytes: int = 0
    sweep_axis: str = ""
    sums: str = ""
    strips: int = 0
    windows: int = 0


@dataclass(frozen=True)
class Row:
    """One job; MONAI's side if it was run, and the share of voxels with equal labels."""

    job: Job
    ours: Found
    monai: Found | None
    equal_voxels: float | None

    @property
    def ratio(self) -> float:
        """Measured over predicted peak."""
        return self.ours.peak_bytes / self.ours.predicted_bytes

    @property
    def beside_bytes(self) -> int:
        """Peak without input and output."""
        return self.ours.peak_bytes - self.job.held_bytes


def made_volume(job: Job) -> npt.NDArray[np.int16]:
    """One noisy plane, shifted from slice to slice; as NIfTI has it, the first axis is fastest."""
    noise = np.random.default_rng(0).normal(0, 400, (job.edge, job.edge))
    smooth = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))
    plane = np.asfortranarray(np.clip(smooth / 2, -1200, 1200).astype(np.int16))
    volume = np.empty(job.shape, dtype=np.int16, order="F")
    for k in range(job.depth):
        volume[:, :, k] = np.roll(plane, (3 * k, 5 * k), (0, 1))
    return volume


def build_network(classes: int) -> nn.Module:
    """Two convolutions of single voxels; equal weights for equal numbers of classes.

    What it answers does not depend on where a window begins, which MONAI decides otherwise.
    """
    import torch  # noqa: PLC0415 - only the measured processes load torch
    from torch import nn  # noqa: PLC0415 - as above

    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 1), nn.Tanh(), nn.Conv3d(4, classes, 1)).eval()


def made_card(inputs: InputSettings, classes: int) -> ModelCard:
    """The card of a network that was made for a benchmark."""
    import torch  # noqa: PLC0415 - see build_network

    from medseg.core import Label, LabelScheme  # noqa: PLC0415
    from medseg.models.card import ModelCard, NetworkChoice, Training  # noqa: PLC0415

    labels = tuple(Label(n, f"class {n}", (n, n, n)) for n in range(1, classes))
    return ModelCard(
        name="made",
        version="1",
        description="Made for a benchmark.",
        network=NetworkChoice(name="made"),
        inputs=inputs,
        labels=LabelScheme("made", labels).to_dict(),
        training=Training(
            dataset="none",
            dataset_licence="none",
            training_cases=0,
            validation_cases=0,
            steps=0,
            epochs=0,
            seconds=0,
            seed=0,
            config_sha256="",
            medseg_version="",
            torch_version=torch.__version__,
            monai_version="",
            finished=True,
        ),
        licence="none",
        weights_sha256="0" * 64,
    )


def predict_ours(job: Job, labels: Path) -> Found:
    """Plan and predict with medseg, as the command line does after reading."""
    from medseg.core import Grid, Volume  # noqa: PLC0415
    from medseg.inference.numerics import InferenceNumerics  # noqa: PLC0415
    from medseg.inference.predictor import Member, Predictor  # noqa: PLC0415
    from medseg.inference.settings import PredictionSettings  # noqa: PLC0415
    from medseg.models.card import Channel, ClipZScore, InputSettings  # noqa: PLC0415
    from medseg.models.inference_form import to_inference_form  # noqa: PLC0415

    scaling = ClipZScore(lower=-CLIP, upper=CLIP, mean=0, std=SCALE)
    inputs = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=scaling),),
        spacing_mm=None,
        window_ijk=(job.window,) * 3,
        overlap=job.overlap,
    )
    card = made_card(inputs, job.classes)
    network = to_inference_form(build_network(job.classes))
    member = Member(network, card, InferenceNumerics("fp32", True, {}, ()))
    settings = PredictionSettings(max_ram_bytes=job.limit_bytes or None)
    volume = Volume(made_volume(job)[None], Grid(job.shape, np.eye(4)))
    began = time.perf_counter()
    prediction = Predictor([member], settings).predict(volume)
    seconds = time.perf_counter() - began
    # the kernel's mark may have been set back between the prediction's stages
    peak = max(peak_bytes(), prediction.peak_ram_bytes)
    if "monai" in sys.modules:
        raise RuntimeError("MONAI was imported, its memory would be counted as ours")
    if prediction.steps_down:
        raise RuntimeError(f"memory ran out: {', '.join(prediction.steps_down)}")
    np.save(labels, prediction.labels.data_ijk)
    plan = prediction.plan
    return Found(
        peak_bytes=peak,
        seconds=seconds,
        predicted_bytes=plan.ram_bytes,
        own_peak_bytes=prediction.peak_ram_bytes,
        sweep_axis="ijk"[plan.sweep.axis],
        sums="float16" if plan.sweep.half else "float32",
        strips=plan.sweep.strips,
        windows=prediction.windows,
    )


def predict_monai(job: Job, labels: Path) -> Found:
    """MONAI's SlidingWindowInferer, as its documentation shows it, and argmax."""
    import torch  # noqa: PLC0415 - see build_network
    from monai.inferers import SlidingWindowInferer  # noqa: PLC0415 - as above

    network = build_network(job.classes)
    inferer = SlidingWindowInferer((job.window,) * 3, overlap=job.overlap, mode="gaussian")
    stored = made_volume(job)
    began = time.perf_counter()
    with torch.inference_mode():
        x_bcijk = torch.from_numpy(stored).to(torch.float32)[None, None]
        x_bcijk = x_bcijk.clamp_(-CLIP, CLIP).div_(SCALE)
        logits_bnijk = inferer(x_bcijk, network)
        found = logits_bnijk.argmax(dim=1)
    seconds = time.perf_counter() - began
    peak = peak_bytes()
    np.save(labels, found[0].to(torch.uint8).numpy())
    return Found(peak_bytes=peak, seconds=seconds)


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    (Not ``getrusage`` where there is something better: what it tells begins with the memory of the
    process that started this one.)
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource  # noqa: PLC0415 - not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def in_process(side: Side, job: Job, labels: Path) -> Found:
    """Run one side of one job in a process of its own.

    Raises:
        RuntimeError: With the process's last words, if it fails.
    """
    words = [sys.executable, "-m", "benchmarks.memory", "--side", side]
    words += ["--job", json.dumps(asdict(job)), "--labels", str(labels)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}, {job}: {done.stderr.strip()[-2000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def equal_share(one: Path, other: Path) -> float:
    """Share of voxels of equal value, read slice by slice."""
    first, second = np.load(one, mmap_mode="r"), np.load(other, mmap_mode="r")
    equal = sum(
        int(np.count_nonzero(first[..., k] == second[..., k])) for k in range(first.shape[-1])
    )
    return equal / int(first.size)


def measure(job: Job, *, peer: bool = True) -> Row:
    """Both sides, MONAI's where it fits and is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        ours = in_process("medseg", job, here / "ours.npy")
        monai = equal = None
        if peer and job.monai_bytes < MONAI_BYTES:
            monai = in_process("MONAI", job, here / "monai.npy")
            equal = equal_share(here / "ours.npy", here / "monai.npy")
    row = Row(job, ours, monai, equal)
    text = (
        f"{job.classes} classes, {'x'.join(map(str, job.shape))}: {ours.seconds:.1f} s, "
        f"{ours.peak_bytes / MIB:.0f} MiB, {row.ratio:.2f} of what was predicted"
    )
    print(f"  {text}{f', MONAI {monai.seconds:.1f} s' if monai else ''}", file=sys.stderr)
    return row


def failures(rows: Sequence[Row]) -> list[str]:
    """What does not hold, in sentences."""
    found: list[str] = []
    low, high = PREDICTED
    for row in rows:
        name = f"{row.job.classes} classes, {'x'.join(map(str, row.job.shape))}"
        if not low <= row.ratio <= high:
            found.append(f"{name}: measured {row.ratio:.2f} times the predicted peak")
        if row.job.limit_bytes and row.ours.peak_bytes > row.job.limit_bytes:
            found.append(
                f"{name}: {row.ours.peak_bytes / GIB:.2f} GiB, "
                f"limited to {row.job.limit_bytes / GIB:.2f}"
            )
        if row.equal_voxels is not None and row.equal_voxels < EQUAL_VOXELS:
            found.append(f"{name}: {row.equal_voxels:.2%} of the voxels as MONAI labels them")
        if (row.job.classes, row.job.edge, row.job.depth) == (14, 512, 800) and (
            row.ours.peak_bytes >= LIMIT_BYTES
        ):
            found.append(f"{name}: {row.ours.peak_bytes / GIB:.2f} GiB, to be below 2.50")
    return found + growth(rows)


def growth(rows: Sequence[Row]) -> list[str]:
    """Where the peak without input and output grows with depth.

    Volumes flatter than their plane is wide are swept along an axis of the plane, which needs less
    than a sweep along the depth and more with every slice. So depths from the plane's edge on are
    held against each other, and flatter ones must need no more than these.
    """
    found: list[str] = []
    free = [row for row in rows if not row.job.limit_bytes]
    for kind in sorted({(row.job.classes, row.job.edge) for row in free}):
        series = [row for row in free if (row.job.classes, row.job.edge) == kind]
        deep = [row for row in series if row.job.depth >= row.job.edge]
        if not deep:
            continue
        first = min(deep, key=lambda row: row.job.depth)
        for row in series:
            if row.beside_bytes > MAY_GROW * first.beside_bytes:
                found.append(
                    f"{kind[0]} classes, plane {kind[1]}: {row.beside_bytes / MIB:.0f} MiB beside "
                    f"input and output at {row.job.depth} slices, "
                    f"{first.beside_bytes / MIB:.0f} at {first.job.depth}"
                )
    return found


def print_rows(rows: Sequence[Row]) -> None:
    """Predicted and measured peaks beside MONAI's."""
    print_table(
        [
            "classes",
            "volume",
            "limit MiB",
            "predicted",
            "measured",
            "ratio",
            "in + out",
            "beside",
            "swept",
            "s",
            "fp32 sums",
            "MONAI MiB",
            "MONAI s",
            "equal voxels",
        ],
        [
            [
                str(row.job.classes),
                "x".join(map(str, row.job.shape)),
                f"{row.job.limit_bytes / MIB:.0f}" if row.job.limit_bytes else "-",
                f"{row.ours.predicted_bytes / MIB:.0f}",
                f"{row.ours.peak_bytes / MIB:.0f}",
                f"{row.ratio:.2f}",
                f"{row.job.held_bytes / MIB:.0f}",
                f"{row.beside_bytes / MIB:.0f}",
                row.ours.sweep_axis
                + (", float16" if row.ours.sums == "float16" else "")
                + (f", {row.ours.strips} strips" if row.ours.strips > 1 else ""),
                f"{row.ours.seconds:.1f}",
                f"{row.job.sums_bytes / MIB:.0f}",
                f"{row.monai.peak_bytes / MIB:.0f}"
                if row.monai
                else "-"
                if row.job.monai_bytes < MONAI_BYTES
                else f"not run (>= {row.job.monai_bytes / MIB:.0f})",
                f"{row.monai.seconds:.1f}" if row.monai else "-",
                f"{row.equal_voxels:.4%}" if row.equal_voxels is not None else "-",
            ]
            for row in rows
        ],
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Peaks against depth, a panel per plane; what was not run is drawn as estimated."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and only for the picture

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - as above

    free = [row for row in rows if not row.job.limit_bytes]
    edges = sorted({row.job.edge for row in free})
    numbers = sorted({row.job.classes for row in free})
    colours = {classes: COLOURS[place % 3] for place, classes in enumerate(numbers)}
    figure, axes = plt.subplots(
        1, len(edges), figsize=(5 * len(edges), 4.2), dpi=130, layout="constrained", squeeze=False
    )
    for axis, edge in zip(axes[0], edges, strict=True):
        for classes, colour in colours.items():
            series = sorted(
                (row for row in free if (row.job.edge, row.job.classes) == (edge, classes)),
                key=lambda row: row.job.depth,
            )
            look: dict[str, Any] = {"color": colour, "markersize": 4}
            depths = [row.job.depth for row in series]
            axis.plot(
                depths,
                [row.ours.peak_bytes / GIB for row in series],
                "o-",
                label=f"medseg, {classes} classes",
                **look,
            )
            peers = [(row.monai.peak_bytes if row.monai else row.job.monai_bytes) for row in series]
            axis.plot(depths, [peak / GIB for peak in peers], ":", color=colour, linewidth=1)
            axis.plot(
                [row.job.depth for row in series if row.monai],
                [row.monai.peak_bytes / GIB for row in series if row.monai],
                "s",
                label=f"MONAI, {classes} classes",
                mfc="white",
                **look,
            )
        depths = sorted({row.job.depth for row in free if row.job.edge == edge})
        axis.plot(
            depths, [3 * edge**2 * depth / GIB for depth in depths], "k--", label="input and output"
        )
        axis.set_title(f"{edge} x {edge} voxels a slice")
        axis.set_xlabel("slices")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("peak memory of the process [GiB]")
    figure.supxlabel("dotted line without squares: MONAI's estimate, not run", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def jobs(classes: Sequence[int], edges: Sequence[int], depths: Sequence[int]) -> list[Job]:
    """All combinations."""
    return [Job(n, edge, depth) for n in classes for edge in edges for depth in depths]


def limited(row: Row) -> list[Job]:
    """The same job with less memory than it took: sums in float16, then narrow strips as well."""
    slab = 4 * row.job.classes * row.job.window * min(row.job.shape) * sorted(row.job.shape)[1]
    least = row.ours.predicted_bytes
    return [
        replace(row.job, limit_bytes=least - slab // 4),
        replace(row.job, limit_bytes=least - 9 * slab // 16),
    ]


def main() -> None:
    """Parse the arguments, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small volumes")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 14, 117])
    parser.add_argument("--edges", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--max-depth", type=int, default=1200, help="no volume of more slices")
    parser.add_argument("--no-peer", action="store_true", help="leave MONAI out")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="draw the curves here")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--side", choices=["medseg", "MONAI"], help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:  # the measured process
        job = Job(**json.loads(arguments.job))
        run = predict_ours if arguments.side == "medseg" else predict_monai
        print(json.dumps(asdict(run(job, arguments.labels))))
        return
    if arguments.quick:
        wanted = [Job(14, 128, depth) for depth in (128, 192)]
        large = wanted[-1]
    else:
        wanted = jobs(arguments.classes, arguments.edges, (100, 200, 400, 800))
        # two depths beyond the wider plane's edge, to see whether anything grows between them
        wanted.append(Job(14, 512, 1200))
        large = Job(14, 512, 800)
    wanted = [job for job in wanted if job.depth <= arguments.max_depth]
    rows = [measure(job, peer=not arguments.no_peer) for job in wanted]
    for row in rows[:]:
        if row.job == large:
            rows += [measure(job, peer=False) for job in limited(row)]
    print_rows(rows)
    if not arguments.no_picture:
        draw(rows, arguments.picture)
        print(f"drawn in {arguments.picture}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    wrong = failures(rows)
    if wrong:
        sys.exit("\n".join(wrong))
    print(
        f"measured/predicted {min(row.ratio for row in rows):.2f} to "
        f"{max(row.ratio for row in rows):.2f}; nothing grows with depth"
    )


if __name__ == "__main__":
    main()
