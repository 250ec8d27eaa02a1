"""Surface metrics beside MONAI, medpy and surface-distance: HD95 and surface Dice of two masks.

The masks are rough ellipsoids that fill two thirds of 160 x 192 x 160 along each axis; cut into
five slabs of quarters they are a map of 20 labels. Before anything is timed the figures must agree:
with surface-distance to 1e-9, with MONAI and medpy by their own definitions of a surface to 1e-4.
The repetitions go round: every side once, then all again; printed is the least time of each.

    python -m benchmarks.metrics [--repeats N] [--threads N] [--json FILE]

Exits with 1 if figures disagree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import surface_distance as deepmind
import torch
from medpy.metric import binary as medpy
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.metrics.case import measure_case
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import label_structures
from medseg.metrics.surface import Convention, surface_distances
from pipelines.tables import print_table

SHAPE = (160, 192, 160)
SPACING_MM = (1.0, 1.0, 1.0)
TOLERANCE_MM = 2.0
LABELS = 20

Mask = npt.NDArray[np.bool_]
Figures = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One line of the table; ``ratio`` is this side's time over that of medseg's first."""

    work: str
    side: str
    seconds: float
    ratio: float


def rough_ellipsoid(
    shape: Sequence[int], centre: Sequence[float], radii: Sequence[float], seed: int
) -> Mask:
    """An ellipsoid whose surface goes in and out by about a tenth."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    rough = ndimage.gaussian_filter(noise, 4.0)
    axes = np.ogrid[tuple(slice(0, extent) for extent in shape)]
    level = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True))
    return np.asarray(level + 0.15 * rough / rough.std() <= 1.0)


def two_masks(shape: Sequence[int] = SHAPE) -> tuple[Mask, Mask]:
    """A prediction and a reference."""
    middle = [extent / 2 for extent in shape]
    radii = [extent / 3 for extent in shape]
    other = [centre + 1.5 for centre in middle]
    return rough_ellipsoid(shape, middle, radii, 1), rough_ellipsoid(shape, other, radii, 2)


def label_maps(shape: Sequence[int] = SHAPE) -> tuple[LabelMap, LabelMap]:
    """The same cut into 20 labels by blocks."""
    blocks = np.zeros(shape, dtype=np.uint8)
    middle_j, middle_k = shape[1] // 2, shape[2] // 2
    # five slabs of the part that the ellipsoids fill, in quarters
    edges = np.linspace(shape[0] / 6, 5 * shape[0] / 6, 6).astype(int)
    edges[0], edges[-1] = 0, shape[0]
    for slab, (first, stop) in enumerate(itertools.pairwise(edges)):
        quarters = blocks[first:stop]
        quarters[:, :middle_j, :middle_k] = 4 * slab + 1
        quarters[:, :middle_j, middle_k:] = 4 * slab + 2
        quarters[:, middle_j:, :middle_k] = 4 * slab + 3
        quarters[:, middle_j:, middle_k:] = 4 * slab + 4
    grid = Grid((shape[0], shape[1], shape[2]), np.diag([*SPACING_MM, 1.0]))
    scheme = LabelScheme.plain("blocks", {n + 1: f"block {n + 1}" for n in range(LABELS)})
    one, other = (np.where(mask, blocks, 0).astype(np.uint8) for mask in two_masks(shape))
    return LabelMap(one, grid, scheme), LabelMap(other, grid, scheme)


def by_medseg(prediction: Mask, reference: Mask, convention: Convention, threads: int) -> Figures:
    """HD95 and surface Dice."""
    found = surface_distances(
        prediction, reference, SPACING_MM, convention=convention, threads=threads
    )
    return found.hausdorff_mm(95), found.surface_dice(TOLERANCE_MM)


def by_surface_distance(prediction: Mask, reference: Mask) -> Figures:
    """The definition of surface elements."""
    found = deepmind.compute_surface_distances(reference, prediction, SPACING_MM)
    return (
        float(deepmind.compute_robust_hausdorff(found, 95)),
        float(deepmind.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)),
    )


def by_monai(prediction: Mask, reference: Mask) -> Figures:
    """Edge voxels; MONAI computes distances once for each figure."""
    one, other = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    hausdorff = compute_hausdorff_distance(
        one, other, include_background=True, percentile=95, spacing=SPACING_MM
    )
    dice = compute_surface_dice(
        one, other, [TOLERANCE_MM], include_background=True, spacing=SPACING_MM
    )
    return float(hausdorff), float(dice)


def by_medpy(prediction: Mask, reference: Mask) -> float:
    """Edge voxels; medpy has no surface Dice."""
    return float(medpy.hd95(prediction, reference, SPACING_MM))


def check(name: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> list[str]:
    """A line of the table of agreement.

    Raises:
        ArithmeticError: If figures differ by more than ``tolerance``, relative.
    """
    apart = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))
    if not apart <= tolerance:
        raise ArithmeticError(f"{name} disagrees: {theirs} against {ours}")
    return [name, ", ".join(f"{value:.6f}" for value in theirs), f"{apart:.1e}"]


def agreement(masks: tuple[Mask, Mask], threads: int) -> list[list[str]]:
    """Compare all sides.

    Raises:
        ArithmeticError: If one disagrees.
    """
    elements = by_medseg(*masks, "elements", threads)
    edges = by_medseg(*masks, "monai", threads)
    pooled = by_medseg(*masks, "medpy", threads)[:1]
    return [
        check("surface-distance", elements, by_surface_distance(*masks), 1e-9),
        check("MONAI", edges, by_monai(*masks), 1e-4),
        check("medpy (HD95)", pooled, (by_medpy(*masks),), 1e-4),
    ]


def timed(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of every side, taken in turns after one round to warm up."""
    least = dict.fromkeys(work, np.inf)
    for turn in range(repeats + 1):
        for name, run in work.items():
            begun = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begun
            if turn:
                least[name] = min(least[name], elapsed)
    return least


def rows_of(work: str, seconds: Mapping[str, float]) -> list[Row]:
    """Lines of the table, ratios to the first side."""
    first = next(iter(seconds.values()))
    return [Row(work, name, value, value / first) for name, value in seconds.items()]


def twenty_labels(repeats: int, shape: Sequence[int] = SHAPE) -> dict[str, float]:
    """All labels in one pass against a pass for each.

    Raises:
        ArithmeticError: If figures differ.
    """
    prediction, reference = label_maps(shape)
    structures = label_structures(reference.scheme)
    rules = EvaluationSettings(lesions=False)

    def together() -> list[dict[str, float]]:
        return [each.values for each in measure_case(prediction, reference, structures, rules)]

    def apart() -> list[dict[str, float]]:
        return [
            measure_case(prediction, reference, [structure], rules)[0].values
            for structure in structures
        ]

    def whole_masks() -> list[float]:
        found = []
        for structure in structures:
            ours, theirs = (
                np.isin(each.data_ijk, structure.members) for each in (prediction, reference)
            )
            found.append(surface_distances(ours, theirs, SPACING_MM).hausdorff_mm(95))
        return found

    if not np.array_equal(
        [list(values.values()) for values in together()],
        [list(values.values()) for values in apart()],
        equal_nan=True,
    ):
        raise ArithmeticError("20 labels in one pass and in 20 passes differ")
    work = {
        "medseg, one pass": together,
        "medseg, 20 passes": apart,
        "medseg, 20 masks, HD95 alone": whole_masks,
    }
    return timed(work, repeats)


def main() -> None:
    """Parse the arguments, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    masks = two_masks()
    try:
        print_table(
            ["side", "HD95 mm, surface Dice", "relative difference"],
            agreement(masks, arguments.threads),
        )
        sides: dict[str, Callable[[], object]] = {
            "medseg, elements": lambda: by_medseg(*masks, "elements", arguments.threads),
            "medseg, edge voxels": lambda: by_medseg(*masks, "monai", arguments.threads),
            "MONAI": lambda: by_monai(*masks),
            "MONAI, HD95 alone": lambda: compute_hausdorff_distance(
                *(torch.from_numpy(mask)[None, None] for mask in masks),
                include_background=True,
                percentile=95,
            ),
            "surface-distance": lambda: by_surface_distance(*masks),
            "medpy, HD95 alone": lambda: by_medpy(*masks),
        }
        rows = rows_of("two masks", timed(sides, arguments.repeats))
        rows += rows_of(f"{LABELS} labels", twenty_labels(arguments.repeats))
    except ArithmeticError as error:
        sys.exit(str(error))
    print_table(
        ["work", "side", "seconds", "ratio to first"],
        [[row.work, row.side, f"{row.seconds:.3f}", f"{row.ratio:.2f}"] for row in rows],
    )
    print(f"{SHAPE}, {arguments.threads} threads, least of {arguments.repeats}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
