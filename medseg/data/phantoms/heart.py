"""A made short-axis cine MR: both ventricles at end-diastole and end-systole, in thick slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.data.phantoms.shapes import Space, smooth_noise, textured

__all__ = ["Beat", "heart"]

_SIZES = {"small": ((48, 52, 8), (3.6, 3.6, 10.0)), "standard": ((160, 176, 10), (1.5, 1.5, 10.0))}
_BLOOD, _MUSCLE, _FAT, _LUNG, _LIVER, _SKELETAL = 230.0, 85.0, 260.0, 18.0, 110.0, 70.0


@dataclass(frozen=True, slots=True, eq=False)
class Beat:
    """One heart in two phases.

    Args:
        frames: Frame number to image and label map, ``(i, j, k)`` int16 and uint8: 1 right
            ventricle, 2 myocardium, 3 left ventricle.
        diastole: Number of the end-diastolic frame.
        systole: Number of the end-systolic frame.
        count: How many frames the cine would have.
        grid: Where the voxels are, stored LPS.
    """

    frames: dict[int, tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]]
    diastole: int
    systole: int
    count: int
    grid: Grid


def heart(rng: np.random.Generator, size: str) -> Beat:
    """A patient's heart; walls thicken and cavities shrink between the phases.

    Args:
        rng: Draws the patient.
        size: ``small`` or ``standard``.
    """
    shape, spacing = _SIZES[size]
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [
        sign * (extent - 1) / 2 * step
        for sign, extent, step in zip((1, 1, -1), shape, spacing, strict=True)
    ]
    grid = Grid(shape, affine)
    space = Space(grid, rng, bend_mm=4.0, cells=4)
    centre = rng.uniform(-7.0, 7.0, 2) + np.array([-12.0, 2.0])
    cavity_mm, wall_mm = rng.uniform(23.0, 29.0), rng.uniform(8.0, 10.5)
    ejected = rng.uniform(0.28, 0.4)  # how much shorter the radius gets
    count = int(rng.integers(20, 31))
    systole = int(rng.integers(8, 12))
    field = 1.0 + 0.18 * smooth_noise(shape, rng, cells=2)
    frames = {}
    for number, contraction in ((1, 0.0), (systole, ejected)):
        labels = _ventricles(space, centre, cavity_mm, wall_mm, contraction)
        tissue = _chest(space, centre)
        for value, signal in ((1, _BLOOD * 0.95), (2, _MUSCLE), (3, _BLOOD)):
            tissue[labels == value] = signal
        papillary = (labels == 3) & (smooth_noise(shape, rng, cells=12) > 0.62)
        tissue[papillary] = 0.6 * _BLOOD
        blur = [min(0.7, 1.5 / step) for step in spacing]
        image = textured(tissue * field, rng, blur_vox=blur, noise=7.0)
        frames[number] = (np.rint(np.clip(image, 0, 4000)).astype(np.int16), labels)
    return Beat(frames, 1, systole, count, grid)


def _ventricles(
    space: Space, centre: npt.NDArray[np.float64], cavity_mm: float, wall_mm: float, shorter: float
) -> npt.NDArray[np.uint8]:
    x, y = space.x_mm - centre[0], space.y_mm - centre[1]
    # from the apex (0) to the base (1); the base comes down in systole
    depth = (space.grid.shape_ijk[2] - 1) * space.grid.spacing_mm[2]
    height = np.clip((space.z_mm + depth / 2) / (depth * (1.0 - 0.35 * shorter)) * 1.05, 0, 1.3)
    taper = np.sqrt(np.clip(height * (1.9 - 0.9 * height), 0.0, None))
    inner = cavity_mm * (1.0 - shorter) * taper
    outer = inner + wall_mm * (1.0 + 0.7 * shorter) * np.sqrt(np.clip(height, 0.0, 1.0) + 0.05)
    radius = np.hypot(x, y)
    below_base = height <= 1.0
    # the right ventricle lies to the patient's right and wraps round the septum
    right = np.hypot((x - cavity_mm * 1.45) / 1.0, (y + 2.0) / 1.35)
    reach = cavity_mm * 1.15 * (1.0 - 0.75 * shorter) * taper * np.clip(height + 0.25, 0.0, 1.0)
    labels = np.zeros(space.grid.shape_ijk, np.uint8)
    labels[np.broadcast_to((right <= reach) & below_base, labels.shape)] = 1
    labels[np.broadcast_to((radius <= outer) & below_base, labels.shape)] = 2
    labels[np.broadcast_to((radius <= inner) & below_base, labels.shape)] = 3
    return labels


def _chest(space: Space, centre: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    x, y = space.x_mm, space.y_mm
    tissue = np.full(space.grid.shape_ijk, _LUNG, np.float32)
    wall = np.square(x / 150.0) + np.square((y + 10.0) / 112.0)
    tissue[np.broadcast_to(wall > 0.66, tissue.shape)] = _SKELETAL
    tissue[np.broadcast_to(wall > 0.85, tissue.shape)] = _FAT
    tissue[np.broadcast_to(wall > 1.0, tissue.shape)] = 4.0
    sac = np.square((x - centre[0] - 18.0) / 78.0) + np.square((y - centre[1]) / 56.0)
    tissue[np.broadcast_to(sac <= 1.0, tissue.shape)] = 0.55 * _FAT
    liver = space.ellipsoid((70.0, -45.0, -60.0), (75.0, 45.0, 60.0))
    tissue[liver] = _LIVER
    aorta = np.hypot(x + 22.0, y + 62.0) <= 11.0
    tissue[np.broadcast_to(aorta, tissue.shape)] = _BLOOD
    spine = np.hypot(x - 2.0, y + 84.0) <= 17.0
    tissue[np.broadcast_to(spine, tissue.shape)] = 95.0
    return tissue
