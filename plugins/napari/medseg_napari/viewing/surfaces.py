"""Labels as triangles in millimetres, of bounded size however large the image is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_napari.editing.boxes import Box, label_box

__all__ = ["LabelSurface", "Mesh", "joined", "label_surface", "label_surfaces"]

Floats = npt.NDArray[np.float32]

MOST_CELLS = 1 << 21
"""Cells that a label is put into before its surface is found: 8 MiB of float32."""

_HALF = 0.5
_SIGMA_CELLS = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class LabelSurface:
    """The surface of one label.

    Args:
        value: Of the label.
        vertices_mm: ``(n, 3)`` along the axes of the labels, the first voxel's centre at 0.
        faces: ``(m, 3)`` indices of vertices.
        cell_vox: Voxels along each axis that were averaged into one cell.
    """

    value: int
    vertices_mm: Floats
    faces: npt.NDArray[np.int32]
    cell_vox: tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Several surfaces in one, each in its colour.

    Args:
        vertices_mm: ``(n, 3)``.
        faces: ``(m, 3)``.
        colours: ``(n, 4)`` RGBA, 0 to 1.
    """

    vertices_mm: Floats
    faces: npt.NDArray[np.int32]
    colours: Floats


def label_surfaces(
    labels: npt.NDArray[Any],
    values: Sequence[int],
    spacing_mm: Sequence[float],
    most_cells: int = MOST_CELLS,
) -> Iterator[LabelSurface]:
    """The surfaces of some labels, one after the other; those without voxels are left out.

    Args:
        labels: ``(i, p, l)`` uint8 or uint16.
        values: Which.
        spacing_mm: Of the axes.
        most_cells: For one label at the most.
    """
    for value in values:
        surface = label_surface(labels, value, spacing_mm, most_cells)
        if surface is not None:
            yield surface


def label_surface(
    labels: npt.NDArray[Any],
    value: int,
    spacing_mm: Sequence[float],
    most_cells: int = MOST_CELLS,
) -> LabelSurface | None:
    """The surface of one label; None where it has no voxel.

    Where the box of the label has more voxels than ``most_cells`` it is averaged into cells of
    whole voxels, else it is smoothed by 0.7 voxels against steps. It is cut at one half by marching
    cubes (Lewiner et al. 2003, by scikit-image). What would vanish when smoothed is cut as it is,
    with the level at half of its largest share.

    Args:
        labels: ``(i, p, l)`` uint8 or uint16.
        value: Of the label.
        spacing_mm: Of the axes.
        most_cells: As above.
    """
    from scipy import ndimage  # noqa: PLC0415 - with the first surface
    from skimage.measure import marching_cubes  # noqa: PLC0415

    box = label_box(labels, value)
    if box is None:
        return None
    cell_vox = _cell_vox(box, spacing_mm, most_cells)
    shares = _shares(labels, value, box, cell_vox)
    sigma = [_SIGMA_CELLS if step == 1 else 0.0 for step in cell_vox]  # a mean has no steps
    smooth = ndimage.gaussian_filter(shares, sigma, mode="constant")
    level = _HALF
    # a thin part of a large label may go, but not a label: what is small is cut as it is
    if np.count_nonzero(smooth > _HALF) < _HALF * float(shares.sum()):
        smooth, level = shares, min(_HALF, float(shares.max()) / 2)
    vertices, faces, _, _ = marching_cubes(smooth, level, allow_degenerate=False)
    cells = np.asarray(cell_vox)
    first = np.array([span.start for span in box])
    # cell 1 is the first in the box; its centre is that of its voxels
    vertices_vox = first + (vertices - 1.0) * cells + (cells - 1) / 2
    return LabelSurface(
        value,
        (vertices_vox * np.asarray(spacing_mm)).astype(np.float32),
        faces.astype(np.int32),
        cell_vox,
    )


def joined(surfaces: Sequence[LabelSurface], colours: Sequence[Sequence[float]]) -> Mesh | None:
    """Surfaces in one mesh; None without any.

    Args:
        surfaces: Of labels.
        colours: RGB or RGBA, 0 to 1, one for each.
    """
    if not surfaces:
        return None
    starts = np.cumsum([0, *(len(one.vertices_mm) for one in surfaces[:-1])])
    return Mesh(
        np.concatenate([one.vertices_mm for one in surfaces]),
        np.concatenate(
            [one.faces + np.int32(start) for one, start in zip(surfaces, starts, strict=True)]
        ),
        np.concatenate(
            [
                np.tile(np.array([*colour[:3], 1.0], np.float32), (len(one.vertices_mm), 1))
                for one, colour in zip(surfaces, colours, strict=True)
            ]
        ),
    )


def _cell_vox(box: Box, spacing_mm: Sequence[float], most_cells: int) -> tuple[int, int, int]:
    """Voxels to a cell, growing where a cell is thinnest, until there are few enough."""
    extents = [span.stop - span.start for span in box]
    cell = [1, 1, 1]
    while math.prod(-(-extent // step) for extent, step in zip(extents, cell, strict=True)) > (
        most_cells
    ):
        sizes_mm = [step * mm for step, mm in zip(cell, spacing_mm, strict=True)]
        cell[sizes_mm.index(min(sizes_mm))] += 1
    return cell[0], cell[1], cell[2]


def _shares(
    labels: npt.NDArray[Any], value: int, box: Box, cell_vox: tuple[int, int, int]
) -> Floats:
    """Share of each cell that has the label, with a rim of empty cells."""
    a, b, c = cell_vox
    counts = [
        -(-(span.stop - span.start) // step) for span, step in zip(box, cell_vox, strict=True)
    ]
    shares = np.zeros([count + 2 for count in counts], dtype=np.float32)
    for number in range(counts[0]):
        start = box[0].start + number * a
        part = labels[start : min(start + a, box[0].stop), box[1], box[2]] == value
        whole = np.zeros((a, counts[1] * b, counts[2] * c), dtype=bool)
        whole[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        cells = whole.reshape(a, counts[1], b, counts[2], c)
        shares[number + 1, 1:-1, 1:-1] = cells.mean(axis=(0, 2, 4), dtype=np.float32)
    return shares
