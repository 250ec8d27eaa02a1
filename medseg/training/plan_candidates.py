"""Windows and batches of a network, from the least to the largest that make sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medseg.models.card import NetworkChoice, SliceSettings
from medseg.models.table import NETWORKS, build_network
from medseg.training.plan_geometry import (
    LEAST_MAP,
    Geometry,
    Triple,
    pooling_stages,
    shared_levels,
)

__all__ = ["DATA_SHARE", "LEAST_BATCH", "Candidate", "Place", "Sizes", "candidates", "sizes_of"]

Place = Literal["cpu", "cuda"]

DATA_SHARE = 0.05
"""Largest share of the training cases' voxels that one batch sees (nnU-Net's figure)."""

LEAST_BATCH = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large networks and windows may get where they train; ours but for what is said.

    Args:
        window_voxels: Of a window of a 3D network; on a GPU 256 cubed, where nnU-Net begins.
        batch_voxels: Of a batch of a 3D network.
        features: Channels of neU-Net's first stage; they double; 32 as published.
        most_features: Their limit; 320 as published.
        poolings: Of neU-Net; 5 as published.
        hidden_width: Of neU-Net's sub-pixel blocks; ``2c`` as published.
        widths: Of the reversible network's levels.
        preset: Of the 2D networks.
        slice_extent: Longest side of a slice that a 2D network works on.
        slices: Most slices of a batch.
    """

    window_voxels: int
    batch_voxels: int
    features: int
    most_features: int
    poolings: int
    hidden_width: str
    widths: tuple[int, ...]
    preset: str
    slice_extent: int
    slices: int


_SIZES: dict[Place, Sizes] = {
    "cpu": Sizes(2**17, 2**18, 16, 96, 3, "c", (16, 48, 96, 160), "small", 128, 16),
    "cuda": Sizes(2**24, 2**26, 32, 320, 5, "2c", (32, 64, 128, 256, 320), "base", 224, 64),
}


def sizes_of(place: Place) -> Sizes:
    """The limits on a kind of device."""
    return _SIZES[place]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to train: a window, a patch, a batch, and the network that they allow.

    Args:
        network: Without its channels, which follow from the dataset.
        window_ijk: Of prediction.
        patch_ijk: Of training.
        batch: Patches of a step.
        worked_voxels: Voxels of a step on the lattice that the network works on.
    """

    network: NetworkChoice
    window_ijk: Triple
    patch_ijk: Triple
    batch: int
    worked_voxels: int


def candidates(
    geometry: Geometry,
    name: str,
    place: Place,
    *,
    channels: int = 1,
    cases: int = 10**6,
    batch: int | None = None,
) -> tuple[Candidate, ...]:
    """All candidates in rising order of the voxels of a step; neither window nor patch ever falls.

    Since memory only decides how far one goes along them, more memory never gives less.

    Windows begin as large as the middle case and are shortened, always along the axis that is
    longest in millimetres, so that they come to be as long in all directions; extents are legal for
    the network, whose depth follows the window. A batch has at least two patches; it has more where
    that is less than the next window, and beyond the largest window as long as it sees no more than
    :data:`DATA_SHARE` of the data.

    Args:
        geometry: Of the dataset.
        name: Of the network.
        place: Where it trains.
        channels: Of the images.
        cases: Number of training cases: a batch has at most as many.
        batch: To be used for all.
    """
    if NETWORKS[name].rank == 2:
        return _sliced(geometry, name, place, channels=channels, cases=cases, batch=batch)
    sizes = _SIZES[place]
    windows = _windows(geometry, _DEPTHS[name], sizes)
    most = max(
        LEAST_BATCH,
        min(
            cases,
            int(DATA_SHARE * geometry.voxels / math.prod(windows[-1])),
            sizes.batch_voxels // math.prod(windows[-1]),
        ),
    )
    found = []
    for number, window in enumerate(windows):
        voxels = math.prod(window)
        last = number == len(windows) - 1
        limit = LEAST_BATCH * math.prod(windows[number + 1]) if not last else math.inf
        for count in (batch,) if batch else range(LEAST_BATCH, most + 1):
            if batch is None and count > LEAST_BATCH and count * voxels >= limit:
                break
            choice = NetworkChoice(name=name, settings=_settings(name, window, geometry, sizes))
            found.append(Candidate(choice, window, window, count, count * voxels))
    return tuple(found)


Depth = Callable[[Triple, Geometry, Sizes], Triple]


def _neunet_multiple(window: Triple, geometry: Geometry, sizes: Sizes) -> Triple:
    stages = pooling_stages(window, geometry.spacing_mm, sizes.poolings)
    i, j, k = (math.prod(stage.stride[axis] for stage in stages) for axis in range(3))
    return i, j, k


def _revunet_multiple(window: Triple, geometry: Geometry, sizes: Sizes) -> Triple:
    step = 2 ** (shared_levels(window, geometry.thick_axis, len(sizes.widths)) - 1)
    return step, step, step


_DEPTHS: dict[str, Depth] = {"neunet": _neunet_multiple, "revunet": _revunet_multiple}


def _settings(name: str, window: Triple, geometry: Geometry, sizes: Sizes) -> dict[str, Any]:
    if name == "revunet":
        levels = shared_levels(window, geometry.thick_axis, len(sizes.widths))
        large = sizes.preset == "base"
        return {
            "widths": list(sizes.widths[:levels]),
            "blocks": 2 if large else 1,
            "expansion": 4 if large else 2,
            "activation": "relu",
            "squeeze_excitation": False,
            "squeeze_ratio": 0.25,
            "norm_groups": 4,
            "memory": "reversible" if large else "stored",
        }
    stages = pooling_stages(window, geometry.spacing_mm, sizes.poolings)
    if len(stages) == 1:  # a window too small to pool: two stages on one lattice
        stages = (stages[0], stages[0])
    return {
        "features": [
            min(sizes.features * 2**number, sizes.most_features) for number in range(len(stages))
        ],
        "kernels": [list(stage.kernel) for stage in stages],
        "strides": [list(stage.stride) for stage in stages],
        "wavelets": True,
        "hidden_width": sizes.hidden_width,
        "deep_supervision": True,
    }


def _windows(geometry: Geometry, depth: Depth, sizes: Sizes) -> list[Triple]:
    """Legal windows, each within the next."""
    window: Triple | None = _legal(geometry.most_ijk, geometry, depth, sizes)
    found: list[Triple] = []
    while window is not None:
        smaller = _shorter(window, geometry, depth, sizes)
        if smaller is None or math.prod(window) <= sizes.window_voxels:
            found.append(window)
        window = smaller
    return found[::-1]


def _shorter(window: Triple, geometry: Geometry, depth: Depth, sizes: Sizes) -> Triple | None:
    multiple = depth(window, geometry, sizes)
    by_length = sorted(range(3), key=lambda axis: -window[axis] * geometry.spacing_mm[axis])
    for axis in by_length:
        shorter = list(window)
        shorter[axis] -= multiple[axis]
        if shorter[axis] < min(2 * LEAST_MAP, geometry.most_ijk[axis]):
            continue
        legal = _legal((shorter[0], shorter[1], shorter[2]), geometry, depth, sizes)
        falls = all(new <= old for new, old in zip(legal, window, strict=True))
        if falls and math.prod(legal) < math.prod(window):
            return legal
    return None


def _legal(window: Triple, geometry: Geometry, depth: Depth, sizes: Sizes) -> Triple:
    """The nearest window that a network of the depth which it asks for takes.

    Rounded up to hold the whole of a middle case, but not above one and a half times the smallest:
    prediction refuses images below half of the window, and cases to come may be smaller still.
    """
    for _ in range(8):
        multiple = depth(window, geometry, sizes)
        rounded = [
            up
            if 2 * (up := -(-extent // step) * step) <= max(3 * least, 2 * step)
            else extent // step * step
            for extent, step, least in zip(window, multiple, geometry.least_ijk, strict=True)
        ]
        after = (rounded[0], rounded[1], rounded[2])
        if after == window:
            break
        window = after
    return window


def _sliced(
    geometry: Geometry,
    name: str,
    place: Place,
    *,
    channels: int,
    cases: int,
    batch: int | None,
) -> tuple[Candidate, ...]:
    sizes = _SIZES[place]
    entry = NETWORKS[name]
    settings = entry.presets[sizes.preset].model_dump(
        mode="json", exclude={"in_channels", "out_channels"}
    )
    with torch.device("meta"):
        multiple = build_network(name, entry.presets[sizes.preset]).size_multiple
    axis = geometry.thick_axis if geometry.thick_axis is not None else 2
    plane = [n for n in range(3) if n != axis]
    extents = [geometry.most_ijk[n] for n in plane]
    # the slice before and after tell something where they are near, and come cheap for one channel
    neighbours = 1 if geometry.thick_axis is None and channels == 1 else 0
    sides = _sides(extents, multiple, sizes.slice_extent)
    depth = min(geometry.most_ijk[axis], 32)
    steps: list[tuple[tuple[int, int], int, int]] = [
        (side, min(2, depth), batch or LEAST_BATCH) for side in sides
    ]
    top, most = sides[-1], min(depth, 8)
    for slices in range(3, most + 1):
        if slices * (batch or LEAST_BATCH) <= sizes.slices:
            steps.append((top, slices, batch or LEAST_BATCH))
    last = steps[-1][1]
    voxels = math.prod(extents) * last
    limit = min(cases, int(DATA_SHARE * geometry.voxels / voxels), sizes.slices // last)
    steps += [(top, last, count) for count in range(LEAST_BATCH + 1, limit + 1) if batch is None]

    def spanned(along: int) -> Triple:
        i, j, k = (along if n == axis else extents[plane.index(n)] for n in range(3))
        return i, j, k

    return tuple(
        Candidate(
            NetworkChoice(
                name=name,
                settings=settings,
                slices=SliceSettings(
                    axis="ijk"[axis],  # type: ignore[arg-type]
                    batch=16,
                    neighbours=neighbours,
                    extents=side,
                ),
            ),
            spanned(depth),
            spanned(slices),
            count,
            math.prod(side) * slices * count,
        )
        for side, slices, count in steps
    )


def _sides(extents: Sequence[int], multiple: Sequence[int], longest: int) -> list[tuple[int, int]]:
    """Legal extents in the proportions of a slice, rising, up to ``longest``."""
    step = max(multiple)
    found: list[tuple[int, int]] = []
    for side in range(min(2 * step, longest), longest + 1, step):
        scale = side / max(extents)
        legal = [
            max(unit, round(extent * scale / unit) * unit)
            for extent, unit in zip(extents, multiple, strict=True)
        ]
        if not found or (legal[0], legal[1]) != found[-1]:
            found.append((legal[0], legal[1]))
        # more than two and a half times as fine as the image shows nothing new
        if side >= 2.5 * max(extents):
            break
    return found
