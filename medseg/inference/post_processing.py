"""Cleaning of label maps: close gaps, fill holes, keep the largest piece, drop small ones.

Everything happens inside the bounding box of one label at a time: neither closing nor filling can
leave it, and removal only makes it smaller. Boxes are worked through in slabs, so that beside the
result and the masks of one box only some hundred megabytes are needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from medseg.core import Grid, LabelMap
from medseg.errors import ConfigError, one_of
from medseg.events import Cancelled, Listener, Silent
from medseg.models.card import LabelCleaning

__all__ = ["clean_labels", "parse_cleaning"]

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Reach = tuple[int, int, int]
Indices = npt.NDArray[np.integer[Any]]
Places = tuple[Indices, Indices, Indices]

STAGE = "post-processing"
_SLAB_VOXELS = 1 << 23
_MOST_COLUMNS = 1500  # from about there on distances are quicker than shifts
_UPRIGHT_DEG = 0.05  # below it axes count as perpendicular: headers round to about 1e-6
_ROUNDING = 1e-6
_SCATTERED = 256  # a box of this many voxels for each of the mask: list the voxels
_NINE = tuple(itertools.product((-1, 0, 1), repeat=2))
_FACES = ndimage.generate_binary_structure(3, 1)
_CORNERS = ndimage.generate_binary_structure(3, 3)


def clean_labels(
    labels: LabelMap, steps: Sequence[LabelCleaning], listener: Listener | None = None
) -> tuple[LabelMap, tuple[str, ...]]:
    """Clean a label map, step by step; within a step label by label in rising order of value.

    For each label the fields of :class:`~medseg.models.card.LabelCleaning` act in their order:

    - ``closing_mm``: dilation, then erosion, by the ball of that radius: every voxel whose centre
      is at most that far away, measured through the affine. The image is taken to go on as
      background beyond its edge, so that nothing is lost there.
    - ``fill_holes``: background that no path over voxel faces leads out of the label from. What
      touches the edge of the image is not enclosed.
    - ``keep_largest``: the piece of the most voxels, connected by faces, edges or corners; among
      equals the one whose centre has the lowest world coordinates.
    - ``min_mm3``: pieces of less than that volume are removed, one of just that volume stays.

    Only background becomes the label; what is removed becomes background. Other labels lose no
    voxel; where two labels could close over the same background, the one of lower value gets it.

    Closing a gap and filling holes twice changes nothing more, and so do the other two. The whole
    is not idempotent in general: filling a hole can make another gap closable.

    Args:
        labels: Left as it is.
        steps: What to do, in order.
        listener: Hears of the labels done; asked between two of them whether to go on.

    Returns:
        The cleaned map (``labels`` itself where nothing changed), and a sentence for each change:
        name of the label, voxels added or removed, and by what.

    Raises:
        ConfigError: If a step names a label that the scheme does not have.
        Cancelled: If the listener asks to stop.
    """
    listener = listener or Silent()
    names = [label.name for label in labels.scheme.labels]
    for number, step in enumerate(steps):
        if step.label != "*" and step.label not in names:
            raise _unknown_label(f"post-processing step {number + 1}", step.label, names)
    tasks = [
        (step, label)
        for step in steps
        for label in labels.scheme.labels
        if step.label in ("*", label.name)
    ]
    boxes = ndimage.find_objects(labels.data_ijk, max_label=max(labels.scheme.values))
    data = labels.data_ijk
    notes: list[str] = []
    listener.started(STAGE, len(tasks))
    for done, (step, label) in enumerate(tasks):
        if listener.cancelled():
            raise Cancelled
        box = boxes[label.value - 1]
        mask = data[box] == label.value if box is not None else np.zeros((1, 1, 1), dtype=bool)
        if mask.any():
            cleaned, said = _cleaned(mask, data[box], step, labels.grid)
            if said:
                if data is labels.data_ijk:
                    data = data.copy()
                part = data[box]
                part[mask & ~cleaned] = 0
                part[cleaned] = label.value
                notes += [f"{label.name}: {sentence}" for sentence in said]
        listener.advanced(STAGE, done + 1)
    if data is labels.data_ijk:
        return labels, ()
    return labels.on_grid(data, labels.grid), tuple(notes)


def parse_cleaning(text: str, names: Sequence[str]) -> LabelCleaning:
    """Read one cleaning step as the command line writes it.

    The form is ``NAME:OPTION,OPTION,...``, where NAME is a label or ``*`` for every one, and an
    OPTION is one of ``closing_mm=NUMBER``, ``fill_holes``, ``keep_largest``, ``min_mm3=NUMBER``.
    Options act in this order, however they are written. The last colon ends the name.

    Args:
        text: Such as ``liver:keep_largest,min_mm3=50``.
        names: The labels that exist.

    Raises:
        ConfigError: If the form, the name, an option or a number is wrong.

    >>> parse_cleaning("liver:keep_largest,min_mm3=50", ["liver"]).min_mm3
    50.0
    """
    where = f"post-processing {text!r}"
    name, colon, options = (part.strip() for part in text.rpartition(":"))
    if not (name and colon and options):
        raise ConfigError(
            where,
            expected="NAME:OPTION,OPTION,...",
            found="no name" if colon and not name else "no option" if colon else "no colon",
            remedy="write for example liver:keep_largest,min_mm3=50 or *:fill_holes",
            code="cleaning-form",
        )
    if name != "*" and name not in names:
        raise _unknown_label(where, name, names)
    content: dict[str, Any] = {"label": name}
    for option in options.split(","):
        key, equals, figure = (part.strip() for part in option.partition("="))
        if key in content:
            raise ConfigError(
                where,
                expected="every option once",
                found=f"{key} again",
                remedy="give it once; for another radius or volume add a second step",
                code="cleaning-option",
            )
        if key in ("keep_largest", "fill_holes"):
            if equals:
                raise ConfigError(
                    where,
                    expected=f"{key} without a value",
                    found=option.strip(),
                    remedy=f"write {key} alone, or leave it out",
                    code="cleaning-option",
                )
            content[key] = True
        elif key in ("closing_mm", "min_mm3"):
            content[key] = _number(where, key, figure)
        else:
            raise ConfigError(
                where,
                expected=one_of(key, ("closing_mm", "fill_holes", "keep_largest", "min_mm3")),
                found=repr(key),
                remedy="correct the option",
                code="cleaning-option",
            )
    return _checked(where, content)


def _number(where: str, key: str, figure: str) -> float:
    try:
        number = float(figure)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(
            where,
            expected=f"{key}=NUMBER",
            found=f"{key}={figure}" if figure else f"{key} without a number",
            remedy="write for example closing_mm=2 or min_mm3=50",
            code="cleaning-number",
        )
    return number


def _checked(where: str, content: dict[str, Any]) -> LabelCleaning:
    try:
        return LabelCleaning.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            where,
            expected="closing_mm from 0 to 100 and min_mm3 of at least 0",
            found=f"{key}={first['input']:g}",
            remedy="give millimetres and cubic millimetres of the patient",
            code="cleaning-number",
        ) from error


def _unknown_label(where: str, name: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        where,
        expected=one_of(name, [*names, "*"]),
        found=repr(name),
        remedy="use a name of the label scheme, or * for every label",
        code="cleaning-label",
    )


def _cleaned(
    mask: Mask, data: npt.NDArray[Any], step: LabelCleaning, grid: Grid
) -> tuple[Mask, list[str]]:
    """The mask of one label after one step, and what was changed.

    ``data`` holds the labels in the same box; only its zeros may be added.
    """
    said: list[str] = []
    voxel_mm3 = grid.voxel_volume_mm3
    if step.closing_mm > 0:
        closed = _closed(mask, grid, step.closing_mm)
        closed &= data == 0
        if added := int(np.count_nonzero(closed & ~mask)):
            mask = mask | closed
            said.append(f"{_voxels(added)} added by closing of {step.closing_mm:g} mm")
    if step.fill_holes:
        holes = _holes(mask)
        holes &= data == 0
        if added := int(np.count_nonzero(holes)):
            mask = mask | holes
            said.append(f"{_voxels(added)} added by filling holes")
    if step.keep_largest or step.min_mm3 > 0:
        scattered = np.count_nonzero(mask) * _SCATTERED < mask.size
        pieces = _find_scattered(mask) if scattered else _find_pieces(mask, _CORNERS)
        kept = np.arange(len(pieces.sizes)) > 0
        if step.keep_largest and pieces.sizes.size > 2:
            kept = _largest(pieces, grid)
            gone = pieces.sizes.sum() - pieces.sizes[kept].sum()
            said.append(
                f"{_voxels(gone)} removed in {_pieces(len(kept) - 2)} by keeping the largest piece"
            )
        small = kept & (pieces.sizes * voxel_mm3 < step.min_mm3 * (1.0 - _ROUNDING))
        if small.any():
            kept &= ~small
            said.append(
                f"{_voxels(pieces.sizes[small].sum())} removed in "
                f"{_pieces(int(np.count_nonzero(small)))} of less than {step.min_mm3:g} mm3"
            )
        if not kept[1:].all():
            mask = pieces.chosen(kept)
    return mask, said


def _voxels(number: int) -> str:
    return "1 voxel" if number == 1 else f"{number} voxels"


def _pieces(number: int) -> str:
    return "1 piece" if number == 1 else f"{number} pieces"


@dataclass(frozen=True, slots=True, eq=False)
class _Pieces:
    """The connected pieces of a mask, numbered from 1 across slabs along its first axis.

    ``numbers[s][n]`` is the piece that number n of slab s belongs to; ``sizes`` are in voxels, that
    of the background (number 0) being 0. Slabs are numbered anew whenever they are needed.
    """

    mask: Mask
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
        chosen: Mask = np.empty_like(self.mask)
        for planes, piece in self.planes():
            chosen[planes] = kept[piece]
        return chosen

    def places(self, kept: Mask) -> Iterator[tuple[Indices, Places]]:
        """Pieces and coordinates of those voxels, part by part."""
        for planes, piece in self.planes():
            i, j, k = np.nonzero(kept[piece])
            yield piece[i, j, k], (i + planes.start, j, k)


@dataclass(frozen=True, slots=True, eq=False)
class _Scattered:
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


def _find_scattered(mask: Mask) -> _Scattered:
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
    return _Scattered(mask.shape, (i, j, k), piece + 1, np.bincount(piece + 1))


def _numbered(
    mask: Mask, structure: npt.NDArray[np.bool_]
) -> Iterator[tuple[slice, npt.NDArray[np.int32], int]]:
    """Number the pieces slab by slab along the first axis.

    Yields:
        The new planes; numbers of the slab, which begins, from the second slab on, with the last
        plane of the one before; and the highest number.
    """
    thickness = max(1, _SLAB_VOXELS // (mask.shape[1] * mask.shape[2]))
    for first in range(0, mask.shape[0], thickness):
        stop = min(first + thickness, mask.shape[0])
        numbers, found = ndimage.label(mask[max(first - 1, 0) : stop], structure, output=np.int32)
        yield slice(first, stop), numbers, found


def _find_pieces(mask: Mask, structure: npt.NDArray[np.bool_]) -> _Pieces:
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
    return _Pieces(
        mask,
        structure,
        tuple(np.append(0, part + 1).astype(np.int32) for part in np.split(piece_of, ends)),
        np.concatenate([[0], sizes]).astype(np.int64),
    )


def _largest(pieces: _Pieces | _Scattered, grid: Grid) -> Mask:
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


def _holes(mask: Mask) -> Mask:
    """What a mask encloses: its complement's pieces that do not reach the box's faces."""
    outside = ~mask
    if not outside.any():
        return outside
    pieces = _find_pieces(outside, _FACES)
    enclosed = np.arange(len(pieces.sizes)) > 0
    for planes, piece in pieces.planes():
        sides = [piece[:, 0], piece[:, -1], piece[:, :, 0], piece[:, :, -1]]
        if planes.start == 0:
            sides.append(piece[0])
        if planes.stop == mask.shape[0]:
            sides.append(piece[-1])
        for side in sides:
            enclosed[side] = False
    if not enclosed.any():
        return np.zeros_like(mask)
    return pieces.chosen(enclosed)


def _closed(mask: Mask, grid: Grid, radius_mm: float) -> Mask:
    """Closing by a ball, in slabs; the mask goes on as background beyond its box."""
    ball = _Ball.of(grid, radius_mm)
    if not any(ball.reach):
        return mask.copy()
    closed = np.empty_like(mask)
    wide = [extent + 4 * reach for extent, reach in zip(mask.shape, ball.reach, strict=True)]
    halo = 2 * ball.reach[0]
    thickness = max(1, halo, _SLAB_VOXELS // (wide[1] * wide[2]) - 2 * halo)
    inner = tuple(
        slice(2 * reach, 2 * reach + extent)
        for reach, extent in zip(ball.reach[1:], mask.shape[1:], strict=True)
    )
    for first in range(0, mask.shape[0], thickness):
        stop = min(first + thickness, mask.shape[0])
        source = slice(max(first - halo, 0), min(stop + halo, mask.shape[0]))
        if not mask[source].any() or mask[first:stop].all():
            closed[first:stop] = mask[first:stop]
            continue
        padded = np.zeros((stop - first + 2 * halo, wide[1], wide[2]), dtype=bool)
        offset = source.start - (first - halo)
        padded[(slice(offset, offset + source.stop - source.start), *inner)] = mask[source]
        gaps = ball.grown(padded)
        np.logical_not(gaps, out=gaps)
        np.logical_not(ball.grown(gaps), out=closed[first:stop])
    return closed


@dataclass(frozen=True, slots=True, eq=False)
class _Ball:
    """All voxel steps of at most a length in millimetres.

    Args:
        metric_mm2: ``(3, 3)``; a step ``v`` has the squared length ``v @ metric_mm2 @ v``.
        radius_mm2: The squared radius, with room for rounding.
        reach: The longest step along each voxel axis.
    """

    metric_mm2: Floats
    radius_mm2: float
    reach: Reach

    @classmethod
    def of(cls, grid: Grid, radius_mm: float) -> _Ball:
        axes = grid.affine_ras[:3, :3]
        metric = axes.T @ axes
        if grid.shear_deg < _UPRIGHT_DEG:
            metric = np.diag(np.diag(metric))
        radius_mm2 = radius_mm**2 * (1.0 + _ROUNDING)
        i, j, k = (
            math.floor(step) for step in np.sqrt(radius_mm2 * np.diag(np.linalg.inv(metric)))
        )
        return cls(metric, radius_mm2, (i, j, k))

    def grown(self, mask: Mask) -> Mask:
        """Dilation, of the part of ``mask`` that lies at least ``reach`` from its ends."""
        upright = not (self.metric_mm2 - np.diag(np.diag(self.metric_mm2))).any()
        # the ball's cross-section, in columns along its longest axis
        i, j, k = sorted(self.reach)
        if upright and math.pi * i * j > _MOST_COLUMNS and k > 1:
            return self.grown_by_distance(mask)
        return self.grown_by_columns(mask)

    def grown_by_distance(self, mask: Mask) -> Mask:
        """By the distance to the nearest voxel of the mask; for perpendicular axes only."""
        inner = self._inner(mask.shape)
        if not mask.any():
            return np.zeros([part.stop - part.start for part in inner], dtype=bool)
        spacing_mm2 = np.diag(self.metric_mm2)
        nearest = ndimage.distance_transform_edt(
            ~mask, sampling=np.sqrt(spacing_mm2), return_distances=False, return_indices=True
        )
        grown = np.empty([part.stop - part.start for part in inner], dtype=bool)
        here = np.ogrid[inner[1:]]
        for plane in range(len(grown)):
            at = plane + inner[0].start
            i, j, k = nearest[(slice(None), at, *inner[1:])]
            length_mm2 = (
                spacing_mm2[0] * np.square(i - at)
                + spacing_mm2[1] * np.square(j - here[0])
                + spacing_mm2[2] * np.square(k - here[1])
            )
            grown[plane] = length_mm2 <= self.radius_mm2
        return grown

    def grown_by_columns(self, mask: Mask) -> Mask:
        """By shifting: the ball is a bundle of columns, and a column a union of two windows."""
        inner = self._inner(mask.shape)
        grown = np.zeros([part.stop - part.start for part in inner], dtype=bool)
        along = int(np.argmax(self.reach))
        window, length = mask, 1
        for extent, start in self._columns(along):
            while 2 * length <= extent:
                window = _either(window, length, along)
                length *= 2
            for skipped in {0, extent - length}:
                part = [
                    slice(place.start + step, place.stop + step)
                    for place, step in zip(inner, start, strict=True)
                ]
                place = part[along]
                part[along] = slice(place.start + skipped, place.stop + skipped)
                np.logical_or(grown, window[tuple(part)], out=grown)
        return grown

    def _columns(self, along: int) -> list[tuple[int, Reach]]:
        """Number of voxels and first step of each column along an axis, short ones first."""
        one, other = (axis for axis in range(3) if axis != along)
        grid = np.zeros((2 * self.reach[one] + 1, 2 * self.reach[other] + 1, 3))
        grid[:, :, one] = np.arange(-self.reach[one], self.reach[one] + 1)[:, None]
        grid[:, :, other] = np.arange(-self.reach[other], self.reach[other] + 1)
        feet = grid.reshape(-1, 3)
        # |foot + t * axis|^2 = length^2 + 2 t lean + t^2 square is at most radius^2 between roots
        square = self.metric_mm2[along, along]
        lean = feet @ self.metric_mm2[:, along]
        length_mm2 = np.einsum("na,ab,nb->n", feet, self.metric_mm2, feet)
        under_root = np.square(lean) + square * (self.radius_mm2 - length_mm2)
        root = np.sqrt(np.maximum(under_root, 0.0))
        first, last = np.ceil((-lean - root) / square), np.floor((-lean + root) / square)
        inside = (under_root >= 0) & (first <= last)
        feet[:, along] = first
        return sorted(
            (int(extent), (int(i), int(j), int(k)))
            for extent, (i, j, k) in zip((last - first + 1)[inside], feet[inside], strict=True)
        )

    def _inner(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(
            slice(reach, extent - reach) for reach, extent in zip(self.reach, shape, strict=True)
        )


def _either(window: Mask, step: int, axis: int) -> Mask:
    """Each voxel or the one ``step`` further along an axis."""
    near, far = [slice(None)] * 3, [slice(None)] * 3
    near[axis], far[axis] = slice(None, -step), slice(step, None)
    either: Mask = window[tuple(near)] | window[tuple(far)]
    return either
