"""A made abdominal CT: thirteen organs with their Hounsfield units in a body with spine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.data.phantoms.shapes import Mask, Space, Values, smooth_noise, textured

__all__ = ["abdomen"]

_SIZES = {"small": ((48, 48, 20), (7.5, 7.5, 12.0)), "standard": ((192, 192, 60), (1.9, 1.9, 4.0))}
_AIR, _FAT, _MUSCLE, _LUNG, _BONE = -1000.0, -100.0, 55.0, -800.0, 350.0
# Hounsfield units in the portal venous phase, by BTCV's numbers
_HU = {
    1: 120.0,
    2: 190.0,
    3: 190.0,
    4: 12.0,
    5: 45.0,
    6: 105.0,
    7: 35.0,
    8: 165.0,
    9: 140.0,
    10: 155.0,
    11: 90.0,
    12: 70.0,
    13: 70.0,
}
_MILLIMETRES_ABOVE_KIDNEYS = 62.0


def abdomen(
    rng: np.random.Generator, size: str
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], Grid]:
    """Image in Hounsfield units and the thirteen organs of BTCV, in portal venous phase.

    Args:
        rng: Draws the patient.
        size: ``small`` or ``standard``.

    Returns:
        ``(i, j, k)`` int16 and uint8, and their grid, stored LAS.
    """
    shape, spacing = _SIZES[size]
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [
        (shape[0] - 1) / 2 * spacing[0],
        -(shape[1] - 1) / 2 * spacing[1],
        -(shape[2] - 1) / 2 * spacing[2],
    ]
    grid = Grid(shape, affine)
    space = Space(grid, rng, bend_mm=7.0, cells=4)
    girth = rng.uniform(0.93, 1.05)
    shift = rng.uniform(-8.0, 8.0, 3) * (0.5, 0.5, 1.0)
    tissue, labels = _body(space, girth, rng), np.zeros(shape, np.uint8)
    for value, inside in _organs(space, shift, rng.uniform(0.93, 1.07)):
        labels[inside] = value
    for value, hu in _HU.items():
        tissue[labels == value] = hu + rng.normal(0.0, 4.0)
    for value in (2, 3):  # cortex and pelvis of the kidneys differ
        side = 1.0 if value == 2 else -1.0
        pelvis = space.ellipsoid(_kidney(side, shift), (9.0, 9.0, 26.0)) & (labels == value)
        tissue[pelvis] = 120.0
    gas = (labels == 7) & (space.y_mm > 52.0 + shift[1])
    tissue[gas] = -700.0
    tissue += np.where(labels > 0, 6.0, 3.0) * smooth_noise(shape, rng, cells=8)
    blur = [min(0.6, 1.2 / step) for step in spacing]
    image = textured(tissue, rng, blur_vox=blur, noise=14.0)
    return np.rint(np.clip(image, -1024, 2000)).astype(np.int16), labels, grid


def _body(space: Space, girth: float, rng: np.random.Generator) -> Values:
    x, y, z = space.x_mm, space.y_mm, space.z_mm
    full = np.zeros(space.grid.shape_ijk, np.float32)
    radius = np.square(x / (160 * girth)) + np.square(y / (108 * girth)) + 0 * z
    inner = np.square(x / (145 * girth)) + np.square((y + 1) / (92 * girth)) + 0 * z
    cavity = np.square(x / (133 * girth)) + np.square((y - 2) / (80 * girth)) + 0 * z
    full[:] = _AIR
    full[radius <= 1] = _FAT
    full[inner <= 1] = _MUSCLE
    full[cavity <= 1] = _FAT + 25.0
    loops = smooth_noise(space.grid.shape_ijk, rng, cells=9)
    bowel = (cavity < 0.9) & (y > -25) & (z < 0) & (loops > 0.12)
    full[bowel] = 32.0
    full[bowel & (loops > 0.62) & (y > 10)] = -500.0
    back = space.tube([(-45, -68, -200), (-45, -68, 200)], 24.0)
    back |= space.tube([(45, -68, -200), (45, -68, 200)], 24.0)
    full[back & (inner <= 1)] = _MUSCLE
    ribs = (np.abs(np.sqrt(cavity) - 1.04) < 0.035) & (np.mod(z - 0.35 * y, 26.0) < 10.0)
    full[ribs & (z > -30) & (y < 60)] = _BONE
    for side in (-1.0, 1.0):
        lung = space.ellipsoid((side * 70, -8, 150), (58, 72, 85))
        full[lung] = _LUNG
    spine = space.tube([(0, -62, -200), (0, -62, 200)], 20.0)
    full[spine] = np.where(np.broadcast_to(np.mod(z, 32.0) < 25.0, spine.shape)[spine], 230.0, 90.0)
    full[space.tube([(0, -62, -200), (0, -62, 200)], 8.0) & (np.mod(z, 32.0) < 25.0)] = 180.0
    full[space.tube([(0, -90, -200), (0, -90, 200)], 8.0)] = 30.0
    return full


def _kidney(side: float, shift: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return (side * 62.0 + shift[0], -38.0 + shift[1], -28.0 + 8.0 * (side < 0) + shift[2])


def _organs(space: Space, shift: npt.NDArray[np.float64], scale: float) -> list[tuple[int, Mask]]:
    """Organs in the order of painting: what comes later lies over what comes before."""

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return (x + shift[0], y + shift[1], z + shift[2])

    def around(*radii: float) -> tuple[float, ...]:
        return tuple(radius * scale for radius in radii)

    liver = space.ellipsoid(at(64, 10, 42), around(62, 62, 58))
    liver |= space.ellipsoid(at(5, 36, 52), around(55, 30, 32))
    liver &= ~space.ellipsoid(at(18, -42, 20), (40, 44, 90))
    stomach = space.tube(
        [at(-52, 0, 74), at(-60, 30, 48), at(-38, 48, 18), at(4, 44, 0)], 22 * scale
    )
    top = _MILLIMETRES_ABOVE_KIDNEYS
    return [
        (6, liver),
        (1, space.ellipsoid(at(-96, -26, 48), around(25, 32, 42))),
        (7, stomach),
        (2, space.ellipsoid(_kidney(1.0, shift), around(25, 25, 48))),
        (3, space.ellipsoid(_kidney(-1.0, shift), around(25, 25, 48))),
        (4, space.ellipsoid(at(52, 52, -8), around(14, 15, 28))),
        (11, space.tube([at(34, 20, -12), at(8, 26, 8), at(-32, 6, 20), at(-68, -8, 32)], 12)),
        (10, space.tube([at(46, 14, 36), at(12, 8, 12), at(-30, -8, 24), at(-78, -18, 40)], 7)),
        (5, space.tube([at(-10, -26, top), at(-16, -20, 110), at(-12, -24, 200)], 10)),
        (12, space.tube([at(42, -32, 22), at(36, -26, 38)], 7)),
        (13, space.tube([at(-42, -28, 26), at(-36, -22, 42)], 7)),
        (9, space.tube([at(20, -26, -200), at(22, -22, 40), at(24, -10, 200)], 12)),
        (8, space.tube([at(-14, -32, -200), at(-14, -32, 200)], 11)),
    ]
