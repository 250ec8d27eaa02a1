"""Normalisation and depthwise convolution in training beside PyTorch's, and what networks gain.

First the operations on channels-last maps: instance norm with leaky ReLU and group norm with ReLU,
forward and forward with backward, beside PyTorch's with the activation after them; and depthwise
convolutions and such of one small image, forward with backward, beside ``nn.Conv3d``. Then one
training step of the networks of two configurations on a batch of their patches, in float32 with the
optimiser, beside the same networks with PyTorch's modules, in either layout. All sides get the same
numbers in the same number of threads and must agree before anything is timed. The repetitions go
round: every side once, then all again; printed is the median.

    python -m benchmarks.training_operators [--repeats N] [--threads N] [--only operations|networks]

Exits with 1 if the sides disagree.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.network import arrange_weights
from medseg.models.table import build_volume_network
from medseg.ops.depthwise import DepthwiseConv3d
from medseg.ops.norm import GroupNorm, InstanceNorm, group_norm, instance_norm
from medseg.ops.small_conv import SmallConv3d
from medseg.training.losses import LossOptions, build_loss
from medseg.training.precision import Numerics
from medseg.training.settings import RunSettings, load_settings
from medseg.training.step import build_optimizer
from pipelines.shipped import find_config
from pipelines.tables import print_table

CONFIGS = ("neunet_hippocampus", "reversible_hippocampus")
SHAPES = [(1, 32, 64, 96, 96), (1, 128, 16, 24, 24)]
DEPTHWISE_SHAPES = [(2, 16, 40, 56, 40), (2, 48, 20, 28, 20), (2, 160, 5, 7, 5)]
# where torch leaves oneDNN: see small_conv.py
SINGLE = [
    (3, (1, 32, 20, 28, 20)),
    (5, (1, 32, 20, 28, 20)),
    (3, (1, 64, 10, 14, 10)),
    (1, (1, 24, 20, 28, 20)),
]
SLOPE = 0.01
GROUPS = 4
# largest difference over the largest number; the weights' gradients are sums over all positions
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
# of a network's gradients in float32: PyTorch's group_norm, channels-last, is that far from float64
NETWORK_TOLERANCE = 5e-3
# results so near zero get no gradient
NEAR_ZERO = {torch.float32: 1e-4, torch.bfloat16: 1e-2}

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
# one repetition, giving what must agree
Work = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ratio`` is this side's time over that of the first."""

    case: str
    number_type: str
    work: str
    side: str
    milliseconds: float
    ratio: float
    difference: float


def by_group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One group per channel."""
    return F.leaky_relu(F.group_norm(x, x.shape[1], weight, bias), SLOPE, inplace=True)


def by_instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own."""
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), SLOPE, inplace=True)


def our_groups(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Group norm with ReLU in one pass."""
    return group_norm(x, GROUPS, weight, bias, negative_slope=0.0)


def their_groups(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own."""
    return F.relu(F.group_norm(x, GROUPS, weight, bias), inplace=True)


SIDES: dict[str, dict[str, Norm]] = {
    "instance": {
        "medseg": partial(instance_norm, negative_slope=SLOPE),
        "group_norm + leaky_relu": by_group_norm,
        "instance_norm + leaky_relu": by_instance_norm,
    },
    f"{GROUPS} groups": {"medseg": our_groups, "group_norm + relu": their_groups},
}


def forward(norm: Norm, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """The result, without gradient."""
    with torch.no_grad():
        return [norm(x, weight, bias)]


def both(norm: Norm, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    """Gradients of input, weight and bias."""
    leaves = [values.detach().requires_grad_() for values in (x, weight, bias)]
    return list(torch.autograd.grad(norm(*leaves), leaves, dy))


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over the largest number, of the worst pair of tensors."""
    return max(
        float((one.double() - other.double()).abs().max() / other.double().abs().max())
        for one, other in zip(found, expected, strict=True)
    )


def measure(
    case: str,
    dtype: torch.dtype,
    work: str,
    sides: Mapping[str, Work],
    repeats: int,
    agreement: Mapping[str, Work] | None = None,
    tolerance: float | None = None,
) -> list[Row]:
    """Check that the sides agree, then time them in turns.

    Args:
        case: For the table.
        dtype: Number type of the maps.
        work: For the table.
        sides: One repetition of each.
        repeats: Repetitions timed; one more warms up.
        agreement: What must agree if that is not what is timed.
        tolerance: Largest difference; that of the number type if None.

    Raises:
        ArithmeticError: If a side disagrees by more than the tolerance.
    """
    kind = str(dtype).removeprefix("torch.")
    answers = {name: run() for name, run in (agreement or sides).items()}
    first, *_ = answers
    differences = {name: apart(found, answers[first]) for name, found in answers.items()}
    del answers
    for name, difference in differences.items():
        if not difference <= (tolerance or TOLERANCES[dtype]):
            raise ArithmeticError(f"{case}, {kind}, {work}: {name} differs by {difference:.1e}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            begun = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begun
            if turn:
                times[name].append(elapsed)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return [
        Row(case, kind, work, name, value, value / medians[first], differences[name])
        for name, value in medians.items()
    ]


def normalisation(kind: str, shape: tuple[int, ...], dtype: torch.dtype, repeats: int) -> list[Row]:
    """Both works of one norm, shape and number type; weights are float32, as autocast leaves them.

    Raises:
        ArithmeticError: If a side disagrees.
    """
    noise = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(shape, generator=noise).to(dtype).to(memory_format=torch.channels_last_3d)
        for _ in range(2)
    )
    weight, bias = 1 + 0.2 * torch.randn(2, shape[1], generator=noise)
    # where the activation bends, a last digit decides which of its slopes counts
    groups = shape[1] if kind == "instance" else GROUPS
    normed = F.group_norm(x.double(), groups, weight.double(), bias.double())
    dy[normed.abs() < NEAR_ZERO[dtype]] = 0
    del normed
    case = f"{kind}, {in_words(shape)}"
    sides = SIDES[kind]
    forwards: dict[str, Work] = {
        name: partial(forward, norm, x, weight, bias) for name, norm in sides.items()
    }
    backwards: dict[str, Work] = {
        name: partial(both, norm, x, weight, bias, dy) for name, norm in sides.items()
    }
    return [
        *measure(case, dtype, "forward", forwards, repeats),
        *measure(case, dtype, "forward and backward", backwards, repeats),
    ]


def depthwise(shape: tuple[int, ...], repeats: int) -> list[Row]:
    """Forward with backward of a depthwise convolution in float32.

    Raises:
        ArithmeticError: If the sides disagree.
    """
    theirs = nn.Conv3d(shape[1], shape[1], 3, padding=1, groups=shape[1], bias=False)
    case = f"depthwise, {shape[0]} of {in_words(shape)}"
    return convolution(case, DepthwiseConv3d(shape[1]), theirs, shape, repeats)


def single(kernel: int, shape: tuple[int, ...], repeats: int) -> list[Row]:
    """Forward with backward of a convolution of one small image in float32.

    Raises:
        ArithmeticError: If the sides disagree.
    """
    theirs = nn.Conv3d(shape[1], shape[1], kernel, padding=kernel // 2, bias=False)
    ours = SmallConv3d.of(copy.deepcopy(theirs))
    case = f"{'x'.join([str(kernel)] * 3)}, {shape[0]} of {in_words(shape)}"
    return convolution(case, ours, theirs, shape, repeats)


def convolution(
    case: str, ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], repeats: int
) -> list[Row]:
    """Forward with backward of two modules of the same weights on channels-last maps.

    Raises:
        ArithmeticError: If they disagree.
    """
    noise = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(shape, generator=noise).to(memory_format=torch.channels_last_3d)
        for _ in range(2)
    )
    x.requires_grad_()
    theirs.load_state_dict(ours.state_dict())

    def gradients(conv: nn.Module) -> Sequence[Tensor]:
        arranged = conv.to(memory_format=torch.channels_last_3d)
        return torch.autograd.grad(arranged(x), [x, *arranged.parameters()], dy)

    sides: dict[str, Work] = {
        "medseg": partial(gradients, ours),
        "nn.Conv3d": partial(gradients, theirs),
    }
    return measure(case, torch.float32, "forward and backward", sides, repeats)


def in_words(shape: tuple[int, ...]) -> str:
    """Such as ``32 channels, 64x96x96``."""
    return f"{shape[1]} channels, {'x'.join(str(extent) for extent in shape[2:])}"


def with_modules(network: nn.Module, kind: str) -> nn.Module:
    """A copy with PyTorch's modules for ours; weights in the same order.

    Args:
        network: Of ours.
        kind: What stands in for instance norm, ``GroupNorm`` or ``InstanceNorm3d``.
    """
    changed = copy.deepcopy(network)
    for parent in list(changed.modules()):
        for name, own in list(parent.named_children()):
            theirs = _theirs(own, kind)
            if theirs is not None:
                theirs.load_state_dict(own.state_dict())
                slope = getattr(own, "negative_slope", 1.0)
                if slope != 1:
                    theirs = nn.Sequential(theirs, nn.LeakyReLU(slope, inplace=True))
                setattr(parent, name, theirs)
    return changed


def _theirs(own: nn.Module, kind: str) -> nn.Module | None:
    if isinstance(own, GroupNorm):
        return nn.GroupNorm(own.num_groups, own.num_channels, own.eps)
    if isinstance(own, DepthwiseConv3d):
        channels, kernel = own.in_channels, own.kernel_size[0]
        return nn.Conv3d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
    if isinstance(own, InstanceNorm):
        channels = own.num_features
        if kind == "GroupNorm":
            return nn.GroupNorm(channels, channels, own.eps)
        return nn.InstanceNorm3d(channels, own.eps, affine=True)
    return None


def training_step(
    network: nn.Module, settings: RunSettings, numerics: Numerics, *, ours: bool
) -> tuple[Work, Work]:
    """Forward and backward pass giving the gradients, and a whole step; ``ours`` as we train."""
    training = settings.training
    if ours:
        numerics.arrange_network(network.train())
    else:
        arrange_weights(network.train(), channels_last=numerics.channels_last)
    loss = build_loss(
        network.head_strides,  # type: ignore[arg-type]
        network.deep_supervision_weights,  # type: ignore[arg-type]
        LossOptions(training.dice_weight, training.cross_entropy_weight),
    )
    optimizer = build_optimizer(network, training)
    noise = torch.Generator().manual_seed(1)
    channels = len(settings.inputs.channels)
    shape = (training.batch_size, channels, *settings.patch_ijk)
    x = numerics.arrange(torch.randn(shape, generator=noise))
    classes = 1 + len(settings.scheme().values)
    target = torch.randint(classes, (shape[0], 1, *shape[2:]), generator=noise)

    def gradients() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss(network(x), target).backward()
        return [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]

    def joined() -> list[Tensor]:
        # all in one: a bias before a normalisation has a gradient of mere rounding
        return [torch.cat(gradients())]

    def step() -> list[Tensor]:
        found = gradients()
        optimizer.step()
        return found

    return joined, step


def training_steps(config: str, repeats: int) -> list[Row]:
    """The network of a configuration, of our modules and of PyTorch's.

    Raises:
        ArithmeticError: If gradients disagree.
    """
    settings = load_settings(find_config(config))
    torch.manual_seed(0)
    classes = 1 + len(settings.scheme().values)
    channels = {"in_channels": len(settings.inputs.channels), "out_channels": classes}
    choice = settings.network.model_copy(
        update={"settings": {**settings.network.settings, **channels}}
    )
    network = build_volume_network(choice, settings.inputs)
    has_instance_norm = any(isinstance(module, InstanceNorm) for module in network.modules())
    sides = {
        f"{name}, {'channels last' if channels_last else 'contiguous'}": training_step(
            copy.deepcopy(network) if kind is None else with_modules(network, kind),
            settings,
            Numerics("fp32", channels_last),
            ours=kind is None,
        )
        for name, kind in (
            ("medseg", None),
            ("PyTorch, GroupNorm", "GroupNorm"),
            ("PyTorch, InstanceNorm3d", "InstanceNorm3d"),
        )
        if kind != "InstanceNorm3d" or has_instance_norm
        for channels_last in (True, False)
    }
    batch, patch = settings.training.batch_size, settings.patch_ijk
    return measure(
        f"{config}, {batch} of {'x'.join(str(extent) for extent in patch)}",
        torch.float32,
        "training step",
        {name: step for name, (_, step) in sides.items()},
        repeats,
        agreement={name: gradients for name, (gradients, _) in sides.items()},
        tolerance=NETWORK_TOLERANCE,
    )


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("operations", "networks"), help="one part")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    try:
        if arguments.only != "networks":
            for kind in SIDES:
                for shape in SHAPES:
                    for dtype in TOLERANCES:
                        rows += normalisation(kind, shape, dtype, arguments.repeats)
            for shape in DEPTHWISE_SHAPES:
                rows += depthwise(shape, arguments.repeats)
            for kernel, shape in SINGLE:
                rows += single(kernel, shape, arguments.repeats)
        if arguments.only != "operations":
            for config in CONFIGS:
                rows += training_steps(config, arguments.repeats)
    except ArithmeticError as error:
        sys.exit(str(error))
    print_table(
        ["case", "type", "work", "side", "ms", "ratio to first", "largest difference"],
        [
            [
                row.case if row.ratio == 1 else "",
                row.number_type if row.ratio == 1 else "",
                row.work if row.ratio == 1 else "",
                row.side,
                f"{row.milliseconds:.2f}",
                f"{row.ratio:.2f}",
                f"{row.difference:.1e}",
            ]
            for row in rows
        ],
    )
    print(f"maps channels last, {arguments.threads} threads, median of {arguments.repeats}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
