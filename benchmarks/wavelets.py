"""Haar transform of a 128^3 volume beside ptwt, PyWavelets, pytorch_wavelets and plain copies.

All sides get the same float32 numbers in the same number of threads (PyWavelets has one), and must
agree before anything is timed. Printed are medians of two series: ``in turns``, every side once,
then all again, so that each finds the caches full of the others' numbers; and ``alone``, one side
after the other with its own numbers still there.

``warm copy`` writes to memory that exists, ``fresh copy`` to newly mapped pages. Results of 32 MiB
and more, which the C library maps afresh each time, medseg asks to have on large pages.

    python -m benchmarks.wavelets [--repeats N] [--threads N] [--extent N]

Exits with 1 if the sides disagree.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.resources
import importlib.util
import itertools
import json
import mmap
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import ptwt
import pywt
import torch
from torch import Tensor

from medseg.ops.haar import haar_forward, haar_inverse
from medseg.ops.kernels.dispatch import forced
from pipelines.tables import print_table

AXES = (2, 3, 4)
BANDS = ["".join(letters) for letters in itertools.product("ad", repeat=3)]
TOLERANCE = 1e-5
OURS = "medseg"

Work = Callable[[], object]


@dataclass(frozen=True)
class Side:
    """One implementation of a case.

    Attributes:
        name: Whose it is.
        work: What is timed.
        result: The same numbers in the order of medseg's; None for a copy, which computes nothing.
    """

    name: str
    work: Work
    result: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Case:
    """One transform and all who can do it; medseg is the first side."""

    name: str
    channels: int
    sides: tuple[Side, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, ratios to medseg's time."""

    case: str
    channels: int
    side: str
    in_turns_ms: float
    in_turns_ratio: float
    alone_ms: float
    alone_ratio: float
    difference: float | None


def volume_cases(channels: int, extent: int) -> Iterator[Case]:
    """Transforms along three axes of ``(1, channels, extent, extent, extent)``."""
    x = torch.randn(1, channels, extent, extent, extent, generator=torch.Generator().manual_seed(0))
    bands = haar_forward(x, AXES)
    apart = torch.unflatten(bands[0], 0, (len(BANDS), channels))
    theirs = (apart[0], dict(zip(BANDS[1:], apart[1:], strict=True)))
    of_pywt = {band: part.numpy() for band, part in zip(BANDS, apart, strict=True)}
    array = x[0].numpy()

    def analysed() -> tuple[Tensor, dict[str, Tensor]]:
        smooth, details = ptwt.wavedec3(x[0], "haar", mode="zero", level=1)
        return smooth, details

    def stacked(smooth: Tensor, details: dict[str, Tensor]) -> Tensor:
        return torch.cat([smooth, *(details[band] for band in BANDS[1:])])[None]

    def of_pywavelets() -> Tensor:
        found = pywt.dwtn(array, "haar", mode="zero", axes=(1, 2, 3))
        return torch.from_numpy(np.concatenate([found[band] for band in BANDS]))[None]

    yield Case(
        "DWT",
        channels,
        (
            Side(OURS, *twice(lambda: haar_forward(x, AXES))),
            Side("medseg, plain torch", *twice(on_torch(lambda: haar_forward(x, AXES)))),
            Side("ptwt", analysed, lambda: stacked(*analysed())),
            Side(
                "PyWavelets",
                lambda: pywt.dwtn(array, "haar", mode="zero", axes=(1, 2, 3)),
                of_pywavelets,
            ),
            *copies(x),
        ),
    )
    yield Case(
        "IDWT",
        channels,
        (
            Side(OURS, *twice(lambda: haar_inverse(bands, AXES))),
            Side("medseg, plain torch", *twice(on_torch(lambda: haar_inverse(bands, AXES)))),
            Side("ptwt", *twice(lambda: ptwt.waverec3(theirs, "haar")[None])),
            Side(
                "PyWavelets",
                lambda: pywt.idwtn(of_pywt, "haar", mode="zero", axes=(1, 2, 3)),
                lambda: torch.from_numpy(pywt.idwtn(of_pywt, "haar", mode="zero", axes=(1, 2, 3)))[
                    None
                ],
            ),
            *copies(bands),
        ),
    )
    leaf = x.clone().requires_grad_()
    parts = [theirs[0], *theirs[1].values()]

    def ptwt_gradient() -> Tensor:
        smooth, details = ptwt.wavedec3(leaf[0], "haar", mode="zero", level=1)
        found = [smooth, *(details[band] for band in BANDS[1:])]
        (dx,) = torch.autograd.grad(found, leaf, parts)
        return dx

    ours = gradient(lambda t: haar_forward(t, AXES), leaf, bands)
    yield Case(
        "DWT and its backward",
        channels,
        (
            Side(OURS, *twice(ours)),
            Side("medseg, plain torch", *twice(on_torch(ours))),
            Side("ptwt", *twice(ptwt_gradient)),
        ),
    )
    leaves = bands.clone().requires_grad_()

    def ptwt_inverse(t: Tensor) -> Tensor:
        pieces = torch.unflatten(t[0], 0, (len(BANDS), channels))
        rebuilt = ptwt.waverec3((pieces[0], dict(zip(BANDS[1:], pieces[1:], strict=True))), "haar")
        return cast(Tensor, rebuilt[None])

    ours = gradient(lambda t: haar_inverse(t, AXES), leaves, x)
    yield Case(
        "IDWT and its backward",
        channels,
        (
            Side(OURS, *twice(ours)),
            Side("medseg, plain torch", *twice(on_torch(ours))),
            Side("ptwt", *twice(gradient(ptwt_inverse, leaves, x))),
        ),
    )


def slice_cases(channels: int, extent: int) -> Iterator[Case]:
    """Transforms of slices: what pytorch_wavelets, which has two axes, can do."""
    x = torch.randn(extent, channels, extent, extent, generator=torch.Generator().manual_seed(0))
    axes = (2, 3)
    bands = haar_forward(x, axes)
    peer = import_pytorch_wavelets()
    forward = peer.DWTForward(J=1, wave="haar", mode="zero")
    inverse = peer.DWTInverse(wave="haar", mode="zero")
    apart = torch.unflatten(bands, 1, (4, channels))
    # its order of details is da, ad, dd, after the channels
    details = apart[:, [2, 1, 3]].transpose(1, 2).contiguous()
    smooth = apart[:, 0].contiguous()

    def stacked() -> Tensor:
        low, (high,) = forward(x)
        return torch.cat([low, high[:, :, 1], high[:, :, 0], high[:, :, 2]], dim=1)

    yield Case(
        "DWT of slices",
        channels,
        (
            Side(OURS, *twice(lambda: haar_forward(x, axes))),
            Side("pytorch_wavelets", lambda: forward(x), stacked),
        ),
    )
    yield Case(
        "IDWT of slices",
        channels,
        (
            Side(OURS, *twice(lambda: haar_inverse(bands, axes))),
            Side("pytorch_wavelets", *twice(lambda: inverse((smooth, [details])))),
        ),
    )


def import_pytorch_wavelets() -> Any:  # noqa: ANN401 - it has no types
    """The peer, which reads its tables by a module that setuptools has dropped."""
    if importlib.util.find_spec("pkg_resources") is None:
        stand_in = ModuleType("pkg_resources")
        stand_in.__dict__["resource_stream"] = lambda package, name: (
            importlib.resources.files(package).joinpath(name).open("rb")
        )
        sys.modules["pkg_resources"] = stand_in
    return importlib.import_module("pytorch_wavelets")


def twice(work: Callable[[], Tensor]) -> tuple[Work, Callable[[], Tensor]]:
    """Work whose result needs no reordering."""
    return work, work


def on_torch(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same without kernels."""

    def run() -> Tensor:
        with forced("torch"):
            return work()

    return run


def gradient(
    function: Callable[[Tensor], Tensor], leaf: Tensor, dy: Tensor
) -> Callable[[], Tensor]:
    """Forward and backward pass; gives the gradient."""

    def run() -> Tensor:
        (found,) = torch.autograd.grad(function(leaf), leaf, dy)
        return found

    return run


def copies(x: Tensor) -> tuple[Side, Side]:
    """The least that any transform must do: read all, write as much."""
    there = torch.empty_like(x)

    def fresh() -> None:
        with mmap.mmap(-1, x.numel() * x.element_size()) as pages:
            target = torch.frombuffer(pages, dtype=x.dtype)
            target.copy_(x.view(-1))
            # the pages cannot be given back while a tensor looks at them
            del target

    return Side("warm copy", lambda: there.copy_(x)), Side("fresh copy", fresh)


def differences(case: Case) -> dict[str, float]:
    """Largest absolute difference of every side from medseg, outside the timing."""
    first, *others = case.sides
    expected = first.result() if first.result else None
    return {
        side.name: float((side.result() - expected).abs().max())
        for side in others
        if side.result is not None and expected is not None
    }


def medians(sides: Sequence[Side], repeats: int) -> dict[str, float]:
    """Median milliseconds of each side, the sides taking turns; the first turn only warms up."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(repeats + 1):
        for side in sides:
            begun = time.perf_counter()
            side.work()
            elapsed = time.perf_counter() - begun
            if turn:
                times[side.name].append(elapsed)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def measure(case: Case, repeats: int) -> list[Row]:
    """Check that the sides agree, then time them.

    Raises:
        ArithmeticError: If a side disagrees by more than the tolerance.
    """
    apart = differences(case)
    for name, difference in apart.items():
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"{case.name}: {name} differs from medseg by {difference:.1e}")
    turns = medians(case.sides, repeats)
    alone = {name: ms for side in case.sides for name, ms in medians([side], repeats).items()}
    return [
        Row(
            case=case.name,
            channels=case.channels,
            side=name,
            in_turns_ms=turns[name],
            in_turns_ratio=turns[name] / turns[OURS],
            alone_ms=alone[name],
            alone_ratio=alone[name] / alone[OURS],
            difference=apart.get(name),
        )
        for name in turns
    ]


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--extent", type=int, default=128, help="of the cube; even")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    try:
        for channels in (1, 8):
            for case in volume_cases(channels, arguments.extent):
                rows += measure(case, arguments.repeats)
        for case in slice_cases(1, arguments.extent):
            rows += measure(case, arguments.repeats)
    except ArithmeticError as error:
        sys.exit(str(error))
    print_table(
        [
            "transform",
            "channels",
            "side",
            "in turns ms",
            "ratio",
            "alone ms",
            "ratio",
            "largest difference",
        ],
        [
            [
                row.case if row.side == OURS else "",
                str(row.channels) if row.side == OURS else "",
                row.side,
                f"{row.in_turns_ms:.3f}",
                f"{row.in_turns_ratio:.2f}",
                f"{row.alone_ms:.3f}",
                f"{row.alone_ratio:.2f}",
                "" if row.difference is None else f"{row.difference:.1e}",
            ]
            for row in rows
        ],
    )
    print(
        f"Haar, {arguments.extent}^3 float32, {arguments.threads} threads, "
        f"medians of {arguments.repeats}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
