"""Training steps per second, data loading included: medseg and nnU-Net's own trainer, one network.

nnU-Net plans and prepares the cases; batch, patch and network in its plan are then replaced by
those that it plans for the hippocampus cases of the Decathlon, and its trainer makes steps with its
own data loading and augmentation. medseg trains the same network (``PlainConvUNet``) with its own
loading, loss and step, in the precision and layout that it measures to be fastest. Both use all
cores. Normalisation and activation of medseg's side are its own operator, of the same weights and
values. The least and the middle duration of a step are printed, after steps to warm up that are not
counted, and the ratio of the middle ones. The augmentations are alike in kind, not equal.

Beside that stands what the arithmetic alone would take: multiplications and additions of a step's
convolutions, forward and back, over the fastest rate in float32 that this machine shows, of a
product of large matrices and of a convolution of 64 channels. Where bfloat16 is no faster, nothing
that trains this network is.

nnU-Net runs in an environment of its own, named by its Python:

    python -m venv nnunet && nnunet/bin/pip install nnunetv2
    python -m benchmarks.training --nnunet-python nnunet/bin/python

Without it medseg is measured alone. The cases are made, a little larger than the patch, unless
``--data`` names others. ``--quick`` takes a small network and few steps.

    python -m benchmarks.training [--quick] [--data FOLDER] [--nnunet-python PYTHON] [--steps N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.nnunet import run_nnunet
from medseg.core import Grid, Volume
from medseg.data.datalist import read_datalist
from medseg.events import Silent
from medseg.io.writing import write_volume
from medseg.models.card import Channel, InputSettings
from medseg.models.network import SegmentationNetwork, halving_weights
from medseg.ops.norm import InstanceNorm
from medseg.training.augmentation import PRESETS
from medseg.training.batches import StepBatches
from medseg.training.cases import cache_cases, training_loader
from medseg.training.heap import freed_memory_kept
from medseg.training.losses import LossOptions, build_loss
from medseg.training.precision import choose_numerics
from medseg.training.settings import TrainingSettings
from medseg.training.step import Stepper, build_optimizer
from medseg.training.transforms import ReadCase, plain_tensors, training_transforms
from pipelines.tables import print_table
from pipelines.training_cases import steps_ahead

_WARM_STEPS = 2

# nnU-Net's side: its plan gets the network and patch of the job, and steps are timed
_PARTS = """
def before_preparing(plan, base, job):
    stages = len(job["widths"])
    plan["patch_size"], plan["batch_size"] = job["patch_ijk"], job["batch_size"]
    plan["architecture"]["arch_kwargs"].update(
        n_stages=stages, features_per_stage=job["widths"], strides=job["strides"],
        kernel_sizes=job["kernels"], n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1))

def train(trainer, job):
    times = []
    for _ in range(job["all_steps"]):
        began = time.perf_counter()
        trainer.train_step(next(trainer.dataloader_train))
        times.append(time.perf_counter() - began)
    return {"seconds": times}
"""


@dataclass(frozen=True)
class Job:
    """What is trained, by both alike.

    Args:
        patch_ijk: Extents of a patch.
        batch_size: Patches of a step.
        widths: Channels of each stage.
        strides: Strides of each stage.
        kernels: Kernel extents of each stage.
        steps: Steps that count.
    """

    patch_ijk: tuple[int, int, int]
    batch_size: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    steps: int


# nnU-Net's plan for the hippocampus cases
HIPPOCAMPUS = Job(
    patch_ijk=(40, 56, 40),
    batch_size=7,
    widths=(32, 64, 128, 256),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    kernels=((3, 3, 3),) * 4,
    steps=12,
)
QUICK = Job(
    patch_ijk=(16, 16, 16),
    batch_size=2,
    widths=(8, 16),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3),) * 2,
    steps=3,
)


class PlainConv(SegmentationNetwork):
    """nnU-Net's network as one of medseg's, with medseg's operators.

    Args:
        job: Of the network.
        out_channels: Classes.
    """

    def __init__(self, job: Job, out_channels: int) -> None:
        from dynamic_network_architectures.architectures.unet import (  # noqa: PLC0415 - optional
            PlainConvUNet,
        )

        totals = np.cumprod(np.array(job.strides), axis=0)
        heads = tuple(tuple(int(step) for step in total) for total in totals[:-1])
        super().__init__(
            in_channels=1,
            out_channels=out_channels,
            size_multiple=tuple(int(step) for step in totals[-1]),
            head_strides=heads,
        )
        self.network = PlainConvUNet(
            input_channels=1,
            n_stages=len(job.widths),
            features_per_stage=job.widths,
            conv_op=nn.Conv3d,
            kernel_sizes=job.kernels,
            strides=job.strides,
            n_conv_per_stage=(2,) * len(job.widths),
            num_classes=out_channels,
            n_conv_per_stage_decoder=(2,) * (len(job.widths) - 1),
            conv_bias=True,
            norm_op=InstanceNorm,
            norm_op_kwargs={"eps": 1e-5, "affine": True, "negative_slope": 0.01},
            nonlin=nn.Identity,
            deep_supervision=True,
        )

    @property
    def deep_supervision_weights(self) -> tuple[float, ...]:
        """As nnU-Net weighs them."""
        return halving_weights(len(self.head_strides))

    def forward(self, x_bcijk: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits, of all heads in training mode."""
        self.check_input(x_bcijk)
        answer = self.network(x_bcijk)
        heads = tuple(answer) if isinstance(answer, list | tuple) else (answer,)
        return heads if self.training and len(heads) > 1 else heads[0]


@dataclass(frozen=True)
class Figures:
    """Durations of the steps of one side, in seconds, and the network's weights."""

    side: str
    seconds: tuple[float, ...]
    weights: int
    numerics: str = "fp32"

    @property
    def middle_s(self) -> float:
        """Middle duration of a step."""
        return statistics.median(self.seconds)


def our_side(job: Job, data: Path) -> Figures:
    """Steps of medseg, drawn, augmented and made as in a training."""
    torch.manual_seed(0)
    cases = read_datalist(data)
    inputs = InputSettings(
        channels=(Channel(name="image"),), spacing_mm=(1.0, 1.0, 1.0), window_ijk=job.patch_ijk
    )
    settings = TrainingSettings(
        steps=job.steps,
        batch_size=job.batch_size,
        learning_rate=0.01,
        optimizer="sgd",
        momentum=0.99,
        weight_decay=3e-5,
        gradient_clip=12.0,
        batch_dice=True,
        dice_background=False,
    )
    from medseg.core import LabelScheme  # noqa: PLC0415

    scheme = LabelScheme.plain("benchmark", cases.labels)
    augmentation = PRESETS["nnunet"]
    network = PlainConv(job, 1 + len(cases.labels))
    loss = build_loss(
        network.head_strides,
        network.deep_supervision_weights,
        LossOptions(batch_dice=True, background=False),
    )
    device = torch.device("cpu")
    with plain_tensors():
        read = ReadCase(inputs, scheme)
        transforms = training_transforms(
            read,
            job.patch_ijk,
            samples_per_case=1,
            foreground_share=0.33,
            augmentation=augmentation,
        )
        cached = cache_cases(cases.train, read, transforms, Silent(), stage="reading")
        loader = training_loader(
            cached, batch_size=job.batch_size, seed=0, workers=0, device=device
        )
        numerics, _ = choose_numerics(
            network,
            loss,
            input_shape=(job.batch_size, 1, *job.patch_ijk),
            device=device,
            precision="auto",
            channels_last="auto",
        )
        print(f"medseg trains in {numerics.in_words()}", file=sys.stderr)
        stepper = Stepper(
            network=numerics.arrange_network(network),
            loss=loss,
            optimizer=build_optimizer(network, settings),
            settings=settings,
            numerics=numerics,
            device=device,
            every_weight_used=False,
        )
        batches = StepBatches(loader, ahead=steps_ahead(device))
        times: list[float] = []
        began = time.perf_counter()
        with freed_memory_kept(device):
            while len(times) < _WARM_STEPS + job.steps:
                for step in batches:
                    made = stepper.make(step, 0.01)
                    if not made.made:
                        raise SystemExit("a step was not finite: the figures mean nothing")
                    times.append(time.perf_counter() - began)
                    began = time.perf_counter()
                    if len(times) == _WARM_STEPS + job.steps:
                        break
        batches.close()
    weights = sum(weight.numel() for weight in network.parameters())
    return Figures("medseg", tuple(times[_WARM_STEPS:]), weights, numerics.precision)


def step_operations(job: Job) -> float:
    """Multiplications and additions of the convolutions of a step, forward and back."""
    # counted on tensors that have shapes and no numbers
    with torch.device("meta"):
        network = PlainConv(job, 2).train()
        image = torch.empty(job.batch_size, 1, *job.patch_ijk)
    with FlopCounterMode(display=False) as counted:
        answer = network(image)
        sum(head.sum() for head in answer).backward()
    return float(counted.get_total_flops())


def fastest_rate(repeats: int = 7) -> float:
    """Operations a second in float32: the best of a matrix product and a convolution."""
    square = torch.randn(3072, 3072)
    image = torch.randn(4, 64, 24, 24, 24).to(memory_format=torch.channels_last_3d)
    kernel = torch.randn(64, 64, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    works: tuple[Callable[[], Tensor], ...] = (
        lambda: square @ square,
        lambda: F.conv3d(image, kernel, padding=1),
    )
    rate = 0.0
    with torch.no_grad():
        for work in works:
            with FlopCounterMode(display=False) as counted:
                work()
            for _ in range(repeats):
                began = time.perf_counter()
                work()
                rate = max(rate, counted.get_total_flops() / (time.perf_counter() - began))
    return rate


def their_side(python: Path, job: Job, data: Path, place: Path, workers: int) -> Figures:
    """Steps of nnU-Net's trainer in its own environment."""
    content = {**asdict(job), "all_steps": _WARM_STEPS + job.steps}
    made = run_nnunet(python, data, place, parts=_PARTS, job=content, workers=workers)
    return Figures("nnU-Net", tuple(made["seconds"][_WARM_STEPS:]), made["weights"])


def made_cases(folder: Path, shape: tuple[int, int, int], cases: int = 12) -> Path:
    """A dataset of noise with a bright box per case, in the Decathlon layout."""
    source = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    names = [f"case_{number:02d}" for number in range(cases)]
    for name in names:
        labels = np.zeros(shape, np.uint8)
        first = source.integers(2, min(shape) // 2, 3)
        labels[tuple(slice(start, start + min(shape) // 3) for start in first)] = 1
        image = source.normal(100, 10, shape).astype(np.float32) + 50 * labels
        grid = Grid(shape, np.eye(4))
        write_volume(Volume(image[None], grid), folder / "imagesTr" / f"{name}.nii.gz")
        write_volume(Volume(labels[None], grid), folder / "labelsTr" / f"{name}.nii.gz")
    index = {
        "name": "Made",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "box"},
        "training": [
            {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
            for name in names
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="made cases and few steps")
    parser.add_argument("--data", type=Path, help="a dataset of one channel, Decathlon layout")
    parser.add_argument("--nnunet-python", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--nnunet-workers", type=int, default=2, help="its processes for loading")
    parser.add_argument("--steps", type=int, help="steps that count")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    job = QUICK if arguments.quick else HIPPOCAMPUS
    if arguments.steps:
        job = replace(job, steps=arguments.steps)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        shape = tuple(extent + 4 for extent in job.patch_ijk)
        data = arguments.data or made_cases(place / "made", (shape[0], shape[1], shape[2]))
        sides = []
        if arguments.nnunet_python:
            sides.append(
                their_side(arguments.nnunet_python, job, data, place, arguments.nnunet_workers)
            )
        with contextlib.redirect_stdout(io.StringIO()):
            ours = our_side(job, data)
        sides.append(ours)
    print(
        f"batch {job.batch_size}, patch {job.patch_ijk}, widths {job.widths}, "
        f"{torch.get_num_threads()} threads"
    )
    print_table(
        ["side", "weights", "steps", "least s", "middle s", "steps per s"],
        [
            [
                side.side,
                f"{side.weights / 1e6:.2f} M",
                str(len(side.seconds)),
                f"{min(side.seconds):.3f}",
                f"{side.middle_s:.3f}",
                f"{1 / side.middle_s:.3f}",
            ]
            for side in sides
        ],
    )
    if len(sides) > 1:
        if sides[0].weights != sides[1].weights:
            raise SystemExit("the networks differ: the ratio would mean nothing")
        print(
            f"medseg makes {sides[0].middle_s / sides[1].middle_s:.2f} steps while nnU-Net makes 1"
        )
    else:
        print("nnU-Net was not measured: name an environment with nnunetv2 by --nnunet-python")
    operations, rate = step_operations(job), fastest_rate()
    least_s = operations / rate
    print(
        f"a step's convolutions are {operations / 1e9:.0f} G operations; at {rate / 1e9:.0f} G a "
        f"second, the most seen here in fp32, they alone take {least_s:.2f} s"
    )
    if len(sides) > 1 and ours.numerics == "fp32":
        print(
            f"so no more than {sides[0].middle_s / least_s:.2f} steps could be made while nnU-Net "
            "makes 1"
        )
    if arguments.json:
        content = {side.side: {"seconds": side.seconds, "weights": side.weights} for side in sides}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
