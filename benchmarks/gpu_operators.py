"""The operators' Triton kernels on a GPU beside plain torch, ptwt and MONAI.

Haar on ``(1, 16, 128, 128, 128)``, another wavelet, and sub-pixel shuffles of 256 channels on a
32^3 lattice, forward and forward with backward. All sides get the same float32 numbers on the same
device and must agree before anything is timed; a kernel that could not be built is an error here
(elsewhere it is given up with a warning). Printed are medians of the device's own clock; a copy of
the input is timed beside them, since memory is the limit.

    python -m benchmarks.gpu_operators [--device cuda] [--milliseconds N]

Exits with 1 if the sides disagree, with 2 where there is no such device.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import ptwt
import torch
from monai.networks.utils import pixelshuffle
from torch import Tensor

from medseg.errors import MedsegError
from medseg.ops.device import choose_device
from medseg.ops.haar import haar_forward, haar_inverse
from medseg.ops.kernels.dispatch import forced
from medseg.ops.subpixel import activate_and_shuffle, depth_to_space
from medseg.ops.wavelet import dwt
from pipelines.tables import print_table

AXES = (2, 3, 4)
BANDS = ["".join(letters) for letters in itertools.product("ad", repeat=3)]
TOLERANCE = 5e-5  # of the largest number; ptwt's float32 strays most where filters are long

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One operator, its input, and who else can do it; medseg's kernels are the first side."""

    name: str
    x: Tensor
    sides: dict[str, Operator]


def on_torch(operator: Operator) -> Operator:
    """The same without kernels."""

    def run(x: Tensor) -> Tensor:
        with forced("torch"):
            return operator(x)

    return run


def by_kernel(operator: Operator) -> Operator:
    """The same, and nothing else will do."""

    def run(x: Tensor) -> Tensor:
        with forced("fast"):
            return operator(x)

    return run


def ptwt_forward(x: Tensor, wavelet: str) -> Tensor:
    """The transform of ptwt in medseg's order: smooth first, bands before channels."""
    smooth, details = ptwt.wavedec3(x[0], wavelet, mode="symmetric", level=1)
    return torch.cat([smooth, *(details[band] for band in BANDS[1:])])[None]


def cases(device: torch.device) -> Iterator[Case]:
    """What is measured."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 128, 128, 128, generator=generator).to(device)

    def sides(operator: Operator, **others: Operator) -> dict[str, Operator]:
        return {"medseg": by_kernel(operator), "plain torch": on_torch(operator), **others}

    yield Case(
        "Haar",
        x,
        sides(lambda t: haar_forward(t, AXES), ptwt=lambda t: ptwt_forward(t, "haar")),
    )
    yield Case("Haar back", haar_forward(x, AXES), sides(lambda t: haar_inverse(t, AXES)))
    yield Case(
        "db4",
        x,
        sides(
            lambda t: dwt(t, "db4", "symmetric", AXES),
            ptwt=lambda t: ptwt_forward(t, "db4"),
        ),
    )
    y = torch.randn(1, 256, 32, 32, 32, generator=generator).to(device)
    for words, form in (
        ("contiguous", torch.contiguous_format),
        ("channels last", torch.channels_last_3d),
    ):
        laid = y.contiguous(memory_format=form)
        yield Case(
            f"shuffle, {words}",
            laid,
            sides(lambda t: depth_to_space(t, (2, 2, 2)), MONAI=lambda t: pixelshuffle(t, 3, 2)),
        )
        yield Case(
            f"tanh and shuffle, {words}",
            laid,
            sides(
                lambda t: activate_and_shuffle(t, (2, 2, 2), "tanh"),
                MONAI=lambda t: pixelshuffle(t.tanh(), 3, 2),
            ),
        )


def gradient(operator: Operator, x: Tensor, dy: Tensor) -> Callable[[], Tensor]:
    """Forward and backward pass; gives the gradient."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(operator(leaf), leaf, dy)
        return dx

    return run


def median_ms(work: Callable[[], object], milliseconds: float) -> float:
    """The device's time for one call: the median over so many milliseconds of calls."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 10 or sum(times) < milliseconds:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def rows(case: Case, milliseconds: float) -> Iterator[list[str]]:
    """Check that the sides agree, then time them.

    Raises:
        ArithmeticError: If a side disagrees by more than the tolerance.
    """
    dy = torch.randn_like(case.sides["plain torch"](case.x))
    passes: dict[str, dict[str, Callable[[], Tensor]]] = {
        "forward": {name: partial(run, case.x) for name, run in case.sides.items()},
        "and backward": {name: gradient(run, case.x, dy) for name, run in case.sides.items()},
    }
    for words, sides in passes.items():
        expected = sides["medseg"]()
        first = 0.0
        for name, work in sides.items():
            apart = float((work() - expected).abs().max() / expected.abs().max())
            if not apart <= TOLERANCE:
                raise ArithmeticError(f"{case.name}, {words}: {name} differs by {apart:.1e}")
            took = median_ms(work, milliseconds)
            first = first or took
            yield [case.name, words, name, f"{took:.3f}", f"{took / first:.2f}", f"{apart:.0e}"]
    took = median_ms(case.x.clone, milliseconds)
    yield [case.name, "", "copy of the input", f"{took:.3f}", "", ""]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--milliseconds", type=float, default=50.0, help="of calls per side")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
        if device.type != "cuda":
            parser.error(f"--device: expected a CUDA device, found {device}")
    except MedsegError as problem:
        print(problem, file=sys.stderr)
        return 2
    torch.cuda.set_device(device.index or 0)
    # ptwt convolves; its numbers are to be float32's
    torch.backends.cudnn.allow_tf32 = False
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    table: list[list[str]] = []
    try:
        for case in cases(device):
            table += rows(case, options.milliseconds)
    except ArithmeticError as problem:
        print(problem, file=sys.stderr)
        return 1
    print_table(["operator", "pass", "side", "ms", "times medseg's", "apart"], table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
