"""Connected pieces of a mask, found in slabs.

A mask may be an array or anything that gives planes of one when it is sliced along its first axis,
such as a comparison that is made on demand: beside the result only some slabs are held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from medseg.core import Grid

__all__ = [
    "CORNERS",
    "FACES",
    "Mask",
    "MaskLike",
    "Pieces",
    "Scattered",
    "find_pieces",
    "find_scattered",
    "holes",
    "largest_piece",
    "planes_of_holes",
]

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.integer[Any]]
Places = tuple[Indices, Indices, Indices]

SLAB_VOXELS = 1 << 23
"""About how many voxels are looked at together."""

FACES = ndimage.generate_binary_structure(3, 1)
CORNERS = ndimage.generate_binary_structure(3, 3)
_NINE = tuple(itertools.product((-1, 0, 1), repeat=2))


class MaskLike(Protocol):
    """A mask, or what makes its planes on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents along the three axes."""
        ...

    def __getitem__(self, planes: Any, /) -> Any:  # noqa: ANN401 - as arrays have it
        """Planes, given as a slice or a number, as a boolean array."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The connected pieces of a mask, numbered from 1 across slabs along its first axis.

    ``numbers[s][n]`` is the piece that number n of slab s belongs to; ``sizes`` are in voxels, that
    of the background (number 0) being 0. Slabs are numbered anew whenever they are needed.
    """

    mask: MaskLike
    structure: Mask
    numbers: tuple[npt.NDArray[np.int32], ...]
    sizes: npt.NDArray[np.int64]

    def planes(self) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
        """The planes of each slab, and for each of their voxels the piece it belongs to."""
        slabs = _numbered(self.mask, self.structure)
        for (planes, numbers, _), piece_of in zip(slabs, self.numbers, strict=True):
            yield planes, piece_of[numbers[1:] if planes.start else numbers]

    def chosen(self, kept: Mask) -> Mask:
        """The voxels of the pieces that are ``kept``."""
        chosen = np.empty(self.mask.shape, dtype=bool)
        for planes, piece in self.planes():
            chosen[planes] = kept[piece]
        return chosen

    def places(self, kept: Mask) -> Iterator[tuple[Indices, Places]]:
        """Pieces and coordinates of those voxels, part by part."""
        for planes, piece in self.planes():
            i, j, k = np.nonzero(kept[piece])
            yield piece[i, j, k], (i + planes.start, j, k)


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """The pieces of a mask of few voxels in a large box, kept as a list of its voxels."""

    shape: tuple[int, ...]
    voxels: Places
    piece: Indices
    sizes: npt.NDArray[np.int64]

    def chosen(self, kept: Mask) -> Mask:
        """The voxels of the pieces that are ``kept``."""
        chosen = np.zeros(self.shape, dtype=bool)
        stays = kept[self.piece]
        i, j, k = self.voxels
        chosen[i[stays], j[stays], k[stays]] = True
        return chosen

    def places(self, kept: Mask) -> Iterator[tuple[Indices, Places]]:
        """Pieces and coordinates of those voxels."""
        stays = kept[self.piece]
        i, j, k = self.voxels
        yield self.piece[stays], (i[stays], j[stays], k[stays])


def find_scattered(mask: Mask) -> Scattered:
    """Pieces with respect to 26 neighbours."""
    i, j, k = np.nonzero(mask)
    # one voxel of room beside each row and plane, so that no step leads round an edge
    row = mask.shape[2] + 2
    plane = (mask.shape[1] + 2) * row
    keys = i * plane + j * row + k
    graph = sparse.csr_array((len(keys), len(keys)), dtype=bool)
    for step in (1, *(row + n for n in (-1, 0, 1)), *(plane + m * row + n for m, n in _NINE)):
        found = np.minimum(np.searchsorted(keys, keys + step), len(keys) - 1)
        here = np.flatnonzero(keys[found] == keys + step)
        edges = (np.ones(len(here), dtype=bool), (here, found[here]))
        graph = graph + sparse.coo_array(edges, shape=graph.shape).tocsr()
    _, piece = csgraph.connected_components(graph, directed=False)
    return Scattered(mask.shape, (i, j, k), piece + 1, np.bincount(piece + 1))


def _numbered(
    mask: MaskLike, structure: npt.NDArray[np.bool_]
) -> Iterator[tuple[slice, npt.NDArray[np.int32], int]]:
    """Number the pieces slab by slab along the first axis.

    Yields:
        The new planes; numbers of the slab, which begins, from the second slab on, with the last
        plane of the one before; and the highest number.
    """
    thickness = max(1, SLAB_VOXELS // (mask.shape[1] * mask.shape[2]))
    for first in range(0, mask.shape[0], thickness):
        stop = min(first + thickness, mask.shape[0])
        numbers, found = ndimage.label(mask[max(first - 1, 0) : stop], structure, output=np.int32)
        yield slice(first, stop), numbers, found


def find_pieces(mask: MaskLike, structure: npt.NDArray[np.bool_]) -> Pieces:
    """The connected pieces of a mask.

    Args:
        mask: The voxels, sliced slab by slab; a few times each.
        structure: Which neighbours touch: :data:`FACES` or :data:`CORNERS`.
    """
    joins: list[npt.NDArray[np.int64]] = []
    counts: list[npt.NDArray[np.int64]] = []
    last_plane: npt.NDArray[np.int64] | None = None
    total = 0
    for planes, numbers, found in _numbered(mask, structure):
        new = numbers[1:] if planes.start else numbers
        counts.append(np.bincount(new.ravel(), minlength=found + 1)[1:])
        if last_plane is not None:
            shared = mask[planes.start - 1]
            pairs = np.stack([last_plane[shared], numbers[0][shared] + (total - 1)])
            joins.append(np.unique(pairs, axis=1))
        last_plane = numbers[-1].astype(np.int64) + (total - 1)
        total += found
    one, other = np.concatenate(joins, axis=1) if joins else np.empty((2, 0), dtype=np.int64)
    graph = sparse.coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(total, total))
    pieces, piece_of = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(piece_of, weights=np.concatenate(counts), minlength=pieces)
    ends = np.cumsum([len(count) for count in counts])[:-1]
    return Pieces(
        mask,
        structure,
        tuple(np.append(0, part + 1).astype(np.int32) for part in np.split(piece_of, ends)),
        np.concatenate([[0], sizes]).astype(np.int64),
    )


def largest_piece(pieces: Pieces | Scattered, grid: Grid) -> Mask:
    """Which piece is the largest; among equals the lowest centre, so that voxel order is idle."""
    first: Mask = pieces.sizes == pieces.sizes.max()
    if np.count_nonzero(first) == 1:
        return first
    sums = np.zeros((3, len(first)))
    for members, voxels in pieces.places(first):
        for axis, at in enumerate(voxels):
            sums[axis] += np.bincount(members, weights=at, minlength=len(first))
    equals = np.flatnonzero(first)
    # the box's own offset moves all centres alike
    centres = sums[:, equals].T / pieces.sizes.max() @ grid.affine_ras[:3, :3].T
    centres = np.round(centres - centres.min(axis=0), 4)
    winner = min(range(len(equals)), key=lambda number: tuple(centres[number]))
    largest: Mask = np.arange(len(first)) == equals[winner]
    return largest


def planes_of_holes(mask: MaskLike) -> Iterator[tuple[slice, Mask]]:
    """What a mask encloses: its complement's pieces that do not reach the box's faces.

    Yields:
        Planes along the first axis, and which of their voxels are enclosed; planes without any may
        be left out.
    """
    outside = find_pieces(_Complement(mask), FACES)
    enclosed = np.arange(len(outside.sizes)) > 0
    for planes, piece in outside.planes():
        sides = [piece[:, 0], piece[:, -1], piece[:, :, 0], piece[:, :, -1]]
        if planes.start == 0:
            sides.append(piece[0])
        if planes.stop == mask.shape[0]:
            sides.append(piece[-1])
        for side in sides:
            enclosed[side] = False
    if enclosed.any():
        for planes, piece in outside.planes():
            yield planes, enclosed[piece]


def holes(mask: Mask) -> Mask:
    """What a mask encloses, as :func:`planes_of_holes`, in one array."""
    found = np.zeros_like(mask)
    for planes, enclosed in planes_of_holes(mask):
        found[planes] = enclosed
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Complement:
    mask: MaskLike

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask.shape

    def __getitem__(self, planes: Any, /) -> Any:  # noqa: ANN401 - as arrays have it
        return ~self.mask[planes]
