"""A made brain with a glioma in four MR modalities, and a made hippocampus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.data.phantoms.shapes import Mask, Point, Space, smooth_noise, textured

__all__ = ["hippocampus", "tumour"]

_SIZES = {"small": ((44, 48, 36), 4.0), "standard": ((144, 160, 120), 1.25)}
# T1, T1 with contrast, T2, FLAIR
_TISSUES: Mapping[str, tuple[float, float, float, float]] = {
    "fluid": (240.0, 250.0, 1000.0, 120.0),
    "grey": (480.0, 520.0, 560.0, 480.0),
    "white": (640.0, 680.0, 420.0, 380.0),
    "oedema": (430.0, 460.0, 800.0, 860.0),
    "necrosis": (330.0, 340.0, 780.0, 520.0),
    "enhancing": (520.0, 1080.0, 620.0, 700.0),
    "cavity": (250.0, 260.0, 1020.0, 150.0),
}


def tumour(
    rng: np.random.Generator, size: str, *, cavity: bool
) -> tuple[npt.NDArray[np.int16], dict[str, Mask], Grid]:
    """A brain without skull and with a ring-enhancing tumour in oedema.

    Args:
        rng: Draws the patient.
        size: ``small`` or ``standard``.
        cavity: Whether an operation left a hole beside it.

    Returns:
        ``(4, i, j, k)`` int16 of T1, T1 with contrast, T2 and FLAIR, 0 outside the brain; masks
        ``necrosis``, ``oedema``, ``enhancing`` and ``cavity`` that do not overlap; the grid, LPS.
    """
    shape, step = _SIZES[size]
    affine = np.diag([-step, -step, step, 1.0])
    affine[:3, 3] = [
        sign * (extent - 1) / 2 * step for sign, extent in zip((1, 1, -1), shape, strict=True)
    ]
    grid = Grid(shape, affine)
    space = Space(grid, rng, bend_mm=5.0, cells=4)
    brain = space.ellipsoid((0, 0, 0), (68, 84, 62)) & (space.z_mm > -55)
    parts = _anatomy(space, brain, rng)
    lesion = _lesion(space, rng, cavity=cavity)
    lesion = {name: mask & brain for name, mask in lesion.items()}
    field = 1.0 + 0.08 * smooth_noise(shape, rng, cells=2)
    grain = smooth_noise(shape, rng, cells=14)
    image = np.zeros((4, *shape), np.int16)
    for channel in range(4):
        tissue = np.zeros(shape, np.float32)
        for name, mask in (*parts.items(), *lesion.items()):
            tissue[mask] = _TISSUES[name][channel]
        tissue *= field * (1.0 + 0.04 * grain) * rng.uniform(0.92, 1.08)
        shown = textured(tissue, rng, blur_vox=[0.6 / step] * 3, noise=18.0)
        image[channel] = np.where(brain, np.rint(np.clip(shown, 1, 4000)), 0)
    return image, lesion, grid


def _anatomy(space: Space, brain: Mask, rng: np.random.Generator) -> dict[str, Mask]:
    folds = smooth_noise(space.grid.shape_ijk, rng, cells=18)
    level = np.sqrt(space.level((0, 0, 0), (68, 84, 62)))
    rim = level + 0.07 * folds
    fluid = brain & (rim > 0.985)
    white = brain & (rim < 0.82) & ~fluid
    cleft = (np.abs(space.x_mm) < 2.0) & (level > 0.55)
    ventricles = space.ellipsoid((12, -4, 10), (7, 30, 12))
    ventricles |= space.ellipsoid((-12, -4, 10), (7, 30, 12))
    nuclei = space.ellipsoid((20, 2, -4), (10, 18, 10)) | space.ellipsoid(
        (-20, 2, -4), (10, 18, 10)
    )
    white &= ~nuclei
    fluid |= brain & (ventricles | cleft)
    return {"grey": brain & ~white & ~fluid, "white": white & ~fluid, "fluid": fluid}


def _lesion(space: Space, rng: np.random.Generator, *, cavity: bool) -> dict[str, Mask]:
    side = rng.choice([-1.0, 1.0])
    centre = np.array([side * rng.uniform(24, 36), rng.uniform(-34, 34), rng.uniform(2, 24)])
    radius = rng.uniform(15.0, 21.0)
    wobble = 0.22 * smooth_noise(space.grid.shape_ijk, rng, cells=7)
    distance = np.sqrt(space.level(centre, (1.0, 1.15, 0.95))) / radius + wobble
    spread = np.sqrt(space.level(centre + rng.uniform(-6, 6, 3), (1.0, 1.4, 1.0))) / radius
    core, ring = distance < 0.62, (distance >= 0.62) & (distance < 1.0)
    hole = np.zeros(core.shape, dtype=bool)
    if cavity:
        beside = centre + radius * np.array([0.2 * side, 1.0, 0.5])
        hole = space.ellipsoid(beside, np.array([0.75, 0.8, 0.7]) * radius)
    oedema = (spread + 1.3 * wobble < 1.85) & (distance >= 1.0)
    return {
        "oedema": oedema & ~hole,
        "enhancing": ring & ~hole,
        "necrosis": core & ~hole,
        "cavity": hole,
    }


def hippocampus(
    rng: np.random.Generator, size: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], Grid]:
    """A T1-weighted crop of 1 mm voxels round one hippocampus, as in MSD Task04.

    Args:
        rng: Draws the patient.
        size: ``small`` or ``standard``.

    Returns:
        ``(i, j, k)`` float32, and labels 1 anterior, 2 posterior; the grid, RAS.
    """
    least, most = ((20, 26, 20), (25, 33, 25)) if size == "small" else ((32, 44, 30), (40, 56, 42))
    shape = tuple(int(rng.integers(low, high)) for low, high in zip(least, most, strict=True))
    grid = Grid((shape[0], shape[1], shape[2]), np.diag([1.0, 1.0, 1.0, 1.0]))
    scale = 0.6 if size == "small" else 1.0
    space = Space(grid, rng, bend_mm=1.5 * scale, cells=3)
    middle = (np.array(shape) - 1) / 2 + rng.uniform(-1.5, 1.5, 3) * scale

    def along(*points: tuple[float, float, float]) -> list[Point]:
        return [middle + scale * np.array(point) for point in points]

    head = space.ellipsoid(along((-1, 12, -3))[0], np.array([7.5, 8.0, 6.0]) * scale)
    tail = space.tube(along((-1, 8, -3), (1, -2, 0), (4, -12, 5), (3, -18, 9)), 4.6 * scale)
    labels = np.zeros(grid.shape_ijk, np.uint8)
    border = middle[1] + scale * 5.0
    whole = head | tail
    labels[whole & (space.y_mm >= border)] = 1
    labels[whole & (space.y_mm < border)] = 2
    tissue = np.full(grid.shape_ijk, 120.0, np.float32)
    texture = smooth_noise(grid.shape_ijk, rng, cells=5)
    tissue[texture > 0.1] = 95.0
    horn = space.tube(along((7, 14, 2), (8, 0, 5), (9, -16, 12)), 3.2 * scale)
    tissue[horn] = 35.0
    tissue[whole] = 82.0
    tissue[whole & (labels == 1)] = 86.0
    gain = np.exp(rng.uniform(np.log(0.5), np.log(20.0)))  # MR has no fixed units
    image = gain * textured(tissue, rng, blur_vox=[0.6] * 3, noise=4.0)
    return np.asarray(np.clip(image, 0, None), dtype=np.float32), labels, grid
