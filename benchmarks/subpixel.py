"""Sub-pixel shuffle of a 3D tensor beside MONAI's and einops', and with tanh beside tanh apart.

Depth to space by 2 along three axes of 256 channels on a 32^3 lattice: forward, and forward with
backward, in either memory layout. All sides get the same float32 numbers in the same number of
threads and must agree before anything is timed. The repetitions go round: every side once, then all
again; printed is the median.

    python -m benchmarks.subpixel [--repeats N] [--threads N]

Exits with 1 if the sides disagree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import einops
import torch
from monai.networks.utils import pixelshuffle
from torch import Tensor

from medseg.ops.kernels.dispatch import forced
from medseg.ops.subpixel import activate_and_shuffle, depth_to_space
from pipelines.tables import print_table

FACTORS = (2, 2, 2)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
TOLERANCE = 1e-6

Shuffle = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ratio`` is this side's time over that of the first."""

    case: str
    layout: str
    side: str
    milliseconds: float
    ratio: float
    difference: float


def by_einops(x: Tensor) -> Tensor:
    """The shuffle as one pattern."""
    pattern = "b (c fi fj fk) i j k -> b c (i fi) (j fj) (k fk)"
    result: Tensor = einops.rearrange(x, pattern, fi=2, fj=2, fk=2)
    return result


def by_monai(x: Tensor) -> Tensor:
    """MONAI's shuffle; it has one factor for all axes."""
    result: Tensor = pixelshuffle(x, 3, 2)
    return result


def on_torch(shuffle: Shuffle) -> Shuffle:
    """The same without kernels."""

    def run(x: Tensor) -> Tensor:
        with forced("torch"):
            return shuffle(x)

    return run


SIDES: dict[str, dict[str, Shuffle]] = {
    "shuffle": {
        "medseg": lambda x: depth_to_space(x, FACTORS),
        "medseg, plain torch": on_torch(lambda x: depth_to_space(x, FACTORS)),
        "MONAI": by_monai,
        "einops": by_einops,
    },
    "tanh and shuffle": {
        "medseg, fused": lambda x: activate_and_shuffle(x, FACTORS, "tanh"),
        "medseg, apart": lambda x: depth_to_space(x.tanh(), FACTORS),
        "MONAI, apart": lambda x: by_monai(x.tanh()),
    },
}


def gradient(shuffle: Shuffle, x: Tensor, dy: Tensor, *, plain: bool) -> Callable[[], Tensor]:
    """Forward and backward pass; gives the gradient."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(shuffle(leaf), leaf, dy)
        return dx

    def without_kernels() -> Tensor:
        with forced("torch"):
            return run()

    return without_kernels if plain else run


def measure(
    case: str, layout: str, work: Mapping[str, Callable[[], Tensor]], repeats: int
) -> list[Row]:
    """Check that the sides agree, then time them in turns.

    Raises:
        ArithmeticError: If a side disagrees by more than the tolerance.
    """
    first, *_ = work
    expected = work[first]()
    apart = {name: float((run() - expected).abs().max()) for name, run in work.items()}
    for name, difference in apart.items():
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"{case}, {layout}: {name} differs by {difference:.1e}")
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, run in work.items():
            begun = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begun
            if turn:
                # the first turn warms up
                times[name].append(elapsed)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return [
        Row(case, layout, name, value, value / medians[first], apart[name])
        for name, value in medians.items()
    ]


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    try:
        for layout, form in LAYOUTS.items():
            x = torch.randn(1, 256, 32, 32, 32, generator=generator).to(memory_format=form)
            dy = torch.randn(1, 32, 64, 64, 64, generator=generator).to(memory_format=form)
            for case, sides in SIDES.items():
                forward = {name: partial(f, x) for name, f in sides.items()}
                rows += measure(case, layout, forward, arguments.repeats)
                both = {
                    name: gradient(f, x, dy, plain="plain torch" in name)
                    for name, f in sides.items()
                }
                rows += measure(f"{case}, and backward", layout, both, arguments.repeats)
    except ArithmeticError as error:
        sys.exit(str(error))
    print_table(
        ["operation", "layout", "side", "ms", "ratio to first", "largest difference"],
        [
            [
                row.case if row.ratio == 1 else "",
                row.layout if row.ratio == 1 else "",
                row.side,
                f"{row.milliseconds:.2f}",
                f"{row.ratio:.2f}",
                f"{row.difference:.1e}",
            ]
            for row in rows
        ],
    )
    print(
        f"256 channels, 32^3, float32, {arguments.threads} threads, median of {arguments.repeats}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
