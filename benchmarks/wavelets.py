"""Haar and other wavelets on a 128^3 volume beside ptwt, PyWavelets, pytorch_wavelets and copies.

All sides get the same float32 numbers in the same number of threads (PyWavelets has one), and must
agree before anything is timed. Printed are medians of two series: ``alone``, one side repeated back
to back, and ``in turns``, every side once, then all again, so that each finds the caches full of
the others' numbers. Targets are for ``alone``. In turns, a copy is the limit.

``warm copy`` writes to memory that exists, ``fresh copy`` to newly mapped pages. Results of 32 MiB
and more, which the C library maps afresh each time, medseg asks to have on large pages.

    python -m benchmarks.wavelets [--repeats N] [--threads N] [--extent N]

Exits with 1 if the sides disagree, not if a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.resources
import importlib.util
import itertools
import json
import mmap
import os
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
from medseg.ops.wavelet import dwt
from pipelines.tables import print_table

AXES = (2, 3, 4)
BANDS = ["".join(letters) for letters in itertools.product("ad", repeat=3)]
TOLERANCE = 1e-5
# ptwt's float32 strays from float64 by 2e-5 where the filters are long; the others' by a tenth
LONG_TOLERANCE = 5e-5
OURS = "medseg"
WAVELETS = ("db2", "db4", "sym8")
# a median of a few sub-millisecond calls would be chance
LEAST_SECONDS = 0.2
# how often as fast as the peer medseg must be, alone
TIMES_FASTER = {"ptwt": 8.0, "PyWavelets": 20.0, "fresh copy": 1.0}
# forward and backward together, in times of forward
BOTH_WAYS = 2.2

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
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, ratios to medseg's time."""

    case: str
    channels: int
    side: str
    alone_ms: float
    alone_ratio: float
    in_turns_ms: float
    in_turns_ratio: float
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


def wavelet_cases(extent: int) -> Iterator[Case]:
    """Longer filters along three axes of one channel, continued by symmetry."""
    x = torch.randn(1, 1, extent, extent, extent, generator=torch.Generator().manual_seed(0))
    array = x[0].numpy()
    for name in WAVELETS:

        def ours(name: str = name) -> Tensor:
            return dwt(x, name, mode="symmetric", axes=AXES)

        def of_ptwt(name: str = name) -> tuple[Tensor, dict[str, Tensor]]:
            smooth, details = ptwt.wavedec3(x[0], name, mode="symmetric", level=1)
            return smooth, details

        def of_pywt(name: str = name) -> dict[str, Any]:
            found: dict[str, Any] = pywt.dwtn(array, name, mode="symmetric", axes=(1, 2, 3))
            return found

        def ptwt_result(work: Callable[[], tuple[Tensor, dict[str, Tensor]]] = of_ptwt) -> Tensor:
            smooth, details = work()
            return torch.cat([smooth, *(details[band] for band in BANDS[1:])])[None]

        def pywt_result(work: Callable[[], dict[str, Any]] = of_pywt) -> Tensor:
            found = work()
            return torch.from_numpy(np.concatenate([found[band] for band in BANDS]))[None]

        yield Case(
            f"{name}, symmetric",
            1,
            (
                Side(OURS, *twice(ours)),
                Side("ptwt", of_ptwt, ptwt_result),
                Side("PyWavelets", of_pywt, pywt_result),
            ),
            tolerance=LONG_TOLERANCE,
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


def in_turns(sides: Sequence[Side], repeats: int) -> dict[str, float]:
    """Median milliseconds of each side, the sides taking turns; the first turn only warms up."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(repeats + 1):
        for side in sides:
            elapsed = seconds(side.work)
            if turn:
                times[side.name].append(elapsed)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def alone(side: Side, repeats: int) -> float:
    """Median milliseconds of one side back to back, after one call that only warms up."""
    side.work()
    times: list[float] = []
    while len(times) < repeats or sum(times) < LEAST_SECONDS:
        times.append(seconds(side.work))
    return 1000 * statistics.median(times)


def seconds(work: Work) -> float:
    """How long one call takes; its result is let go of afterwards."""
    begun = time.perf_counter()
    found = work()
    elapsed = time.perf_counter() - begun
    del found
    return elapsed


def measure(case: Case, repeats: int) -> list[Row]:
    """Check that the sides agree, then time them.

    Raises:
        ArithmeticError: If a side disagrees by more than the tolerance.
    """
    apart = differences(case)
    for name, difference in apart.items():
        if not difference <= case.tolerance:
            raise ArithmeticError(f"{case.name}: {name} differs from medseg by {difference:.1e}")
    turns = in_turns(case.sides, repeats)
    by_itself = {side.name: alone(side, repeats) for side in case.sides}
    return [
        Row(
            case=case.name,
            channels=case.channels,
            side=name,
            alone_ms=by_itself[name],
            alone_ratio=by_itself[name] / by_itself[OURS],
            in_turns_ms=turns[name],
            in_turns_ratio=turns[name] / turns[OURS],
            difference=apart.get(name),
        )
        for name in turns
    ]


def targets(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Transform, channels, target, what was measured, and whether it is met; Haar on volumes."""
    times = {(row.case, row.channels, row.side): row.alone_ms for row in rows}
    for (case, channels, side), ms in times.items():
        if side == OURS or case not in {"DWT", "IDWT"}:
            continue
        wanted = TIMES_FASTER.get(side)
        if wanted is not None:
            found = ms / times[case, channels, OURS]
            line = f"faster than {side}" if wanted == 1 else f"{wanted:g} times as fast as {side}"
            yield [
                case,
                str(channels),
                line,
                f"{found:.2f}",
                "met" if found >= wanted else "not met",
            ]
    for (case, channels, side), ms in times.items():
        there = times.get((case.removesuffix(" and its backward"), channels, OURS), ms)
        if side == OURS and case.endswith("backward"):
            found = ms / there
            line = f"at most {BOTH_WAYS:g} times the forward pass"
            verdict = "met" if found <= BOTH_WAYS else "not met"
            yield [case, str(channels), line, f"{found:.2f}", verdict]


def settle_allocator() -> None:
    """Free one large block, after which the C library keeps the memory of smaller ones at hand.

    So it is in a process that has run a network. Before, every new tensor costs its page faults,
    which would slow down most the side that makes most tensors.
    """
    torch.empty(31 << 20, dtype=torch.uint8).fill_(1)


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--extent", type=int, default=128, help="of the cube; even")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settle_allocator()
    load = os.getloadavg()[0]
    rows: list[Row] = []
    try:
        for channels in (1, 8):
            for case in volume_cases(channels, arguments.extent):
                rows += measure(case, arguments.repeats)
        for case in slice_cases(1, arguments.extent):
            rows += measure(case, arguments.repeats)
        for case in wavelet_cases(arguments.extent):
            rows += measure(case, arguments.repeats)
    except ArithmeticError as error:
        sys.exit(str(error))
    print_table(
        [
            "transform",
            "channels",
            "side",
            "alone ms",
            "ratio",
            "in turns ms",
            "ratio",
            "largest difference",
        ],
        [
            [
                row.case if row.side == OURS else "",
                str(row.channels) if row.side == OURS else "",
                row.side,
                f"{row.alone_ms:.3f}",
                f"{row.alone_ratio:.2f}",
                f"{row.in_turns_ms:.3f}",
                f"{row.in_turns_ratio:.2f}",
                "" if row.difference is None else f"{row.difference:.1e}",
            ]
            for row in rows
        ],
    )
    print(
        f"{arguments.extent}^3 float32, {arguments.threads} threads, "
        f"medians of {arguments.repeats}, alone of at least {LEAST_SECONDS:g} s; "
        f"load of the machine before: {load:.1f}"
    )
    print_table(["transform", "channels", "target, alone", "measured", ""], list(targets(rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
