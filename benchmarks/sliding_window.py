"""How long a volume takes from intensities to labels: MONAI, nnU-Net and medseg, one network.

The network is MONAI's DynUNet, trained here for a few minutes on made volumes, so that its labels
are those of a network that knows what it does. Every side gets the same weights, the same windows
(the same extents, overlap and positions) and a Gaussian importance map of the same width. The sides
take turns; the least time of each counts. MONAI's labels in float32 are what the others are held
against. nnU-Net takes part with its own predictor where ``nnunetv2`` is installed.

    python -m benchmarks.sliding_window [--quick] [--weights FILE]
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.core import Grid, Volume
from medseg.data.preparation import ModelImage
from medseg.events import Silent
from medseg.inference.engine import Outputs, StreamingEngine, Sweep, smallest_axis
from medseg.inference.sweep import Group
from medseg.models.card import Channel, InputSettings
from medseg.models.inference_form import to_inference_form
from medseg.models.network import arrange_weights
from medseg.ops.precision import has_bf16
from medseg.ops.winners import Decision
from pipelines.tables import print_table

LEAST_DICE = 0.999
"""Dice against MONAI's float32 labels that every class of every side should reach."""

CPU = torch.device("cpu")
Triple = tuple[int, int, int]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """What is measured, and the training before it."""

    extents: Triple = (96, 192, 192)
    window: Triple = (64, 96, 96)
    overlap: float = 0.5
    classes: int = 9
    filters: tuple[int, ...] = (32, 64, 128, 256)
    training_steps: int = 200
    training_crop: Triple = (32, 48, 48)
    training_dtype: torch.dtype = torch.bfloat16


QUICK = Job(
    extents=(16, 24, 40),
    window=(16, 16, 16),
    classes=3,
    filters=(8, 16, 16, 16),
    training_steps=30,
    training_crop=(16, 16, 16),
    # a processor without arithmetic for bfloat16 takes a minute in it, and on maps smaller than a
    # kernel oneDNN's gradients in it may be NaN
    training_dtype=torch.float32,
)
"""Seconds in all; says nothing of speed."""


@dataclass(frozen=True)
class Row:
    """One side: seconds of every run, and how its labels agree with the first side's."""

    side: str
    seconds: tuple[float, ...]
    equal_voxels: float
    dice: tuple[float, ...]


def made_volume(job: Job, extents: Triple, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ellipsoids in noise, each class striped in its own direction and width.

    (Not told by their intensity, which a network with InstanceNorm sees only beside what else is in
    the window.)

    Returns:
        ``(1, i, j, k)`` float32 with mean 0 and deviation 1, and ``(i, j, k)`` int64 labels.
    """
    axes = [torch.arange(extent, dtype=torch.float32) for extent in extents]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    labels = torch.zeros(extents, dtype=torch.int64)
    lengths = torch.tensor(extents, dtype=torch.float32)
    copies = max(1, round(math.prod(extents) / math.prod(job.training_crop) / 4))
    for _ in range(copies):
        for value in range(1, job.classes):
            centre = torch.rand(3, generator=generator) * lengths
            radii = (0.15 + 0.2 * torch.rand(3, generator=generator)) * min(job.training_crop)
            away = (places - centre.view(3, 1, 1, 1)) / radii.view(3, 1, 1, 1)
            labels[away.square().sum(dim=0) < 1] = value
    x_ijk = 0.5 * torch.randn(extents, generator=generator)
    for value in range(1, job.classes):
        axis, width = (value - 1) % 3, 4 + 3 * ((value - 1) // 3)
        stripes = torch.sin(2 * math.pi / width * places[axis])
        x_ijk = torch.where(labels == value, x_ijk + 1 + 2 * stripes, x_ijk)
    return ((x_ijk - x_ijk.mean()) / x_ijk.std())[None], labels


def build_dynunet(job: Job) -> nn.Module:
    """MONAI's DynUNet as its documentation shows it, of these widths."""
    from monai.networks.nets import DynUNet  # noqa: PLC0415

    stages = len(job.filters)
    network: nn.Module = DynUNet(
        3,
        1,
        job.classes,
        kernel_size=[3] * stages,
        strides=[1] + [2] * (stages - 1),
        upsample_kernel_size=[2] * (stages - 1),
        filters=list(job.filters),
        norm_name=("INSTANCE", {"affine": True}),
    )
    return network


def train(network: nn.Module, job: Job) -> float:
    """Teach the network the made volumes.

    Returns:
        The mean cross-entropy of the last ten steps.
    """
    generator = torch.Generator().manual_seed(0)
    network.train()
    arrange_weights(network, channels_last=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=2e-3, total_steps=job.training_steps
    )
    losses: list[float] = []
    for step in range(job.training_steps):
        x_cijk, labels_ijk = made_volume(job, job.training_crop, generator)
        x_bcijk = x_cijk[None].contiguous(memory_format=torch.channels_last_3d)
        narrow = job.training_dtype != torch.float32 and has_bf16(CPU)
        with torch.autocast("cpu", dtype=job.training_dtype, enabled=narrow):
            logits_bnijk = network(x_bcijk)
        loss = F.cross_entropy(logits_bnijk.float(), labels_ijk[None])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 19:
            print(f"  training, step {step + 1}: {losses[-1]:.3f}", file=sys.stderr)
    arrange_weights(network, channels_last=False)
    network.eval()
    return math.fsum(losses[-10:]) / len(losses[-10:])


def monai_side(
    network: nn.Module, x_cijk: Tensor, job: Job, *, narrow: bool
) -> Callable[[], Labels]:
    """MONAI's SlidingWindowInferer: as it comes, or with channels-last windows in bfloat16."""
    from monai.inferers import SlidingWindowInferer  # noqa: PLC0415

    network = copy.deepcopy(network)
    arrange_weights(network, channels_last=narrow)
    inferer = SlidingWindowInferer(job.window, overlap=job.overlap, mode="gaussian")
    layout = torch.channels_last_3d if narrow else torch.contiguous_format

    def predict(x_bcijk: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            answer: Tensor = network(x_bcijk.contiguous(memory_format=layout))
        return answer.float()

    def labels() -> Labels:
        with torch.inference_mode():
            logits_nijk: Tensor = inferer(x_cijk[None], predict)[0]
            return logits_nijk.argmax(dim=0).to(torch.uint8).numpy()

    return labels


def nnunet_side(network: nn.Module, x_cijk: Tensor, job: Job) -> Callable[[], Labels] | None:
    """nnU-Net's own predictor with this network, or None if it is not installed."""
    try:
        inference = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
        handling = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
    except ModuleNotFoundError as error:
        print(f"nnU-Net is left out: {error}; pip install nnunetv2", file=sys.stderr)
        return None
    plans: Any = handling.PlansManager(
        # the network is handed over, so its description may be empty
        {"configurations": {"3d": {"patch_size": list(job.window), "architecture": {}}}}
    )
    names = {"background": 0, **{f"class {n}": n for n in range(1, job.classes)}}
    predictor: Any = inference.nnUNetPredictor(
        tile_step_size=1 - job.overlap,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        copy.deepcopy(network),
        plans,
        plans.get_configuration("3d"),
        None,
        {"labels": names, "file_ending": ".nii.gz", "channel_names": {"0": "made"}},
        "none",
        None,
    )

    def labels() -> Labels:
        logits_nijk: Tensor = predictor.predict_sliding_window_return_logits(x_cijk)
        found: Labels = logits_nijk.argmax(dim=0).to(torch.uint8).numpy()
        return found

    return labels


def our_side(
    network: nn.Module, volume: Volume, inputs: InputSettings, job: Job, dtype: torch.dtype | None
) -> Callable[[], Labels]:
    """The streaming engine of medseg and the inference form of the network.

    The time includes what the other sides are given: normalisation of the stored intensities.
    """
    form = to_inference_form(network, dtype)

    def labels() -> Labels:
        group = Group((form,), ModelImage(volume, inputs), job.window, overlap=job.overlap)
        engine = StreamingEngine(
            [group], Decision(values=tuple(range(job.classes))), Sweep(smallest_axis([group]))
        )
        found = np.zeros(job.extents, dtype=np.uint8)
        for _ in engine.run(Outputs(found), Silent()):
            pass
        return found

    return labels


def dice(found: Labels, wanted: Labels, classes: int) -> tuple[float, ...]:
    """Dice of every class but the background; NaN where neither has it."""
    scores: list[float] = []
    for value in range(1, classes):
        one, other = found == value, wanted == value
        total = int(one.sum()) + int(other.sum())
        scores.append(2 * int((one & other).sum()) / total if total else math.nan)
    return tuple(scores)


def measure(network: nn.Module, job: Job, repeats: int) -> tuple[list[Row], float]:
    """Run all sides in turn.

    Returns:
        A row per side, and the mean Dice of the first side's labels against the made ones.
    """
    x_cijk, truth_ijk = made_volume(job, job.extents, torch.Generator().manual_seed(1))
    stored = (x_cijk * 1000).round().to(torch.int16).numpy()
    volume = Volume(stored, Grid(job.extents, np.eye(4)))
    inputs = InputSettings(
        channels=(Channel(name="made"),),
        spacing_mm=None,
        window_ijk=job.window,
        overlap=job.overlap,
    )
    # what our side works out for itself, given to the others
    x_cijk = ModelImage(volume, inputs).whole()
    sides: dict[str, Callable[[], Labels] | None] = {
        "MONAI fp32": monai_side(network, x_cijk, job, narrow=False),
        "nnU-Net": nnunet_side(network, x_cijk, job),
        "medseg fp32": our_side(network, volume, inputs, job, None),
    }
    if has_bf16(CPU):
        sides["MONAI bf16 channels last"] = monai_side(network, x_cijk, job, narrow=True)
        sides["medseg bf16"] = our_side(network, volume, inputs, job, torch.bfloat16)
    else:
        print("bf16 is left out: this processor does not multiply it", file=sys.stderr)
    present = {name: side for name, side in sides.items() if side is not None}
    seconds: dict[str, list[float]] = {name: [] for name in present}
    labels: dict[str, Labels] = {}
    for turn in range(repeats):
        for name, side in present.items():
            began = time.perf_counter()
            labels[name] = side()
            seconds[name].append(time.perf_counter() - began)
            print(f"  {name}, run {turn + 1}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    wanted = labels["MONAI fp32"]
    rows = [
        Row(
            name,
            tuple(seconds[name]),
            float((found == wanted).mean()),
            dice(found, wanted, job.classes),
        )
        for name, found in labels.items()
    ]
    truth = dice(wanted, truth_ijk.numpy().astype(np.uint8), job.classes)
    return rows, float(np.nanmean(truth))


def trained(job: Job, weights: Path | None) -> nn.Module:
    """The network of a job: its weights from a file that is there, else trained and kept."""
    torch.manual_seed(0)
    network = build_dynunet(job)
    if weights is not None and weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.eval()
    loss = train(network, job)
    print(f"trained {job.training_steps} steps, cross-entropy {loss:.3f}")
    if weights is not None:
        torch.save(network.state_dict(), weights)
    return network


def main() -> None:
    """Parse the arguments, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny volume and network")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--extents", help="of the volume, instead of 96x192x192")
    parser.add_argument("--weights", type=Path, help="read the trained weights here, or keep them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    job = QUICK if arguments.quick else Job()
    if arguments.extents:
        i, j, k = (int(part) for part in arguments.extents.split("x"))
        job = Job(**{**vars(job), "extents": (i, j, k)})
    network = trained(job, arguments.weights)
    rows, truth = measure(network, job, arguments.repeats)
    least = {row.side: min(row.seconds) for row in rows}
    print_table(
        ["side", "seconds", "MONAI fp32 takes", "equal voxels", "least Dice", "mean Dice"],
        [
            [
                row.side,
                f"{least[row.side]:.2f}",
                f"{least['MONAI fp32'] / least[row.side]:.2f} times as long",
                f"{100 * row.equal_voxels:.3f} %",
                f"{np.nanmin(row.dice):.5f}",
                f"{np.nanmean(row.dice):.5f}",
            ]
            for row in rows
        ],
    )
    print_table(
        ["Dice against MONAI fp32", *(f"class {n}" for n in range(1, job.classes))],
        [[row.side, *(f"{score:.5f}" for score in row.dice)] for row in rows],
    )
    ours = min((row.side for row in rows if row.side.startswith("medseg")), key=least.__getitem__)
    if "nnU-Net" in least:
        print(f"nnU-Net takes {least['nnU-Net'] / least[ours]:.2f} times as long as {ours}")
    for row in rows:
        if not np.nanmin(row.dice) >= LEAST_DICE:
            print(f"{row.side}: a class has a Dice below {LEAST_DICE}")
    print(
        f"{torch.get_num_threads()} threads, {'x'.join(map(str, job.extents))}; the network's mean "
        f"Dice against the made labels is {truth:.3f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
