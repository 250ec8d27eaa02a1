"""What an edit changed, in a form small enough to keep a hundred of them.

A :class:`Change` is a list of pieces. A piece is a box, the voxels in it that change as packed
bits, and their labels before and after: one number each where they are all the same, as they are
for most edits. Bits and lists of labels are compressed with Zstandard. A brush stroke takes some
hundred bytes; labels of a whole organ some ten thousand.

Doing and undoing write exactly the voxels that the edit changed, with the values they had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import zstd

from medseg.core import LabelScheme
from medseg_napari.editing import boxes
from medseg_napari.editing.boxes import (
    Box,
    Index,
    LabelArray,
    Mask,
    box_of,
    mask_box,
    slabs,
)
from medseg_napari.editing.rules import FREE, Rules

__all__ = ["Change", "ChangeBuilder", "Piece"]

_PACKING = 64  # shorter byte strings are kept as they are
_OVERHEAD_BYTES = 400  # of a piece beside its bits and labels

Values = int | bytes


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The change of some voxels of one box.

    Args:
        start: First voxel of the box.
        shape: Extents of the box.
        voxels: How many change.
        mask: Which, as packed bits, perhaps compressed; None for all.
        old: Their labels before, one for all or a compressed list in the array's order.
        new: Their labels after.
        dtype: Type of the labels.
        moved: ``(label before, label after, voxels)`` of each kind of change.
    """

    start: Index
    shape: Index
    voxels: int
    mask: bytes | None
    old: Values
    new: Values
    dtype: np.dtype[Any]
    moved: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, box: Box, mask: Mask, old: LabelArray, new: int | LabelArray) -> Piece | None:
        """The piece that changes the voxels of a mask.

        Args:
            box: Where the mask lies.
            mask: Which voxels change; each of them does.
            old: Labels before, either those of the box or those under the mask.
            new: One label for all, or an array like ``old``.

        Returns:
            The piece, in the smallest box; None if the mask is empty.
        """
        inner = mask_box(mask)
        if inner is None:
            return None
        old_list = old[mask] if old.shape == mask.shape else old
        new_list = new if isinstance(new, int) else new[mask] if new.shape == mask.shape else new
        tight = mask[inner]
        voxels = int(np.count_nonzero(tight))
        start = tuple(int(a.start + b.start) for a, b in zip(box, inner, strict=True))
        return cls(
            start=(start[0], start[1], start[2]),
            shape=(tight.shape[0], tight.shape[1], tight.shape[2]),
            voxels=voxels,
            mask=None if voxels == tight.size else _packed(np.packbits(tight)),
            old=_stored(old_list),
            new=new_list if isinstance(new_list, int) else _stored(new_list),
            dtype=old_list.dtype,
            moved=_moved(old_list, new_list),
        )

    @property
    def box(self) -> Box:
        """Where the voxels are."""
        return box_of(self.start, [a + b for a, b in zip(self.start, self.shape, strict=True)])

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory it takes."""
        stored = (self.mask, self.old, self.new)
        return _OVERHEAD_BYTES + sum(len(part) for part in stored if isinstance(part, bytes))

    def mask_array(self) -> Mask:
        """Which voxels of the box change, as a boolean array of its shape."""
        if self.mask is None:
            return np.ones(self.shape, dtype=bool)
        size = int(np.prod(self.shape))
        bits = np.frombuffer(_unpacked(self.mask), dtype=np.uint8)
        return np.unpackbits(bits, count=size).view(bool).reshape(self.shape)

    def values(self, *, new: bool) -> int | LabelArray:
        """The labels of the changed voxels, after or before: one for all, or a list."""
        stored = self.new if new else self.old
        if isinstance(stored, int):
            return stored
        return np.frombuffer(_unpacked(stored), dtype=self.dtype)

    def write(self, part: LabelArray, *, new: bool) -> None:
        """Write the labels after, or before, into the array of the box."""
        values = self.values(new=new)
        if self.mask is None:
            part[...] = values if isinstance(values, int) else values.reshape(self.shape)
        else:
            part[self.mask_array()] = values


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One edit: what it changed, and how to do and undo it.

    Args:
        pieces: In the order in which they were made.
        name: For people, such as ``brush``.
        schemes: Label table before and after, where the edit changed it.
    """

    pieces: tuple[Piece, ...] = ()
    name: str = ""
    schemes: tuple[LabelScheme, LabelScheme] | None = None

    def __bool__(self) -> bool:
        return bool(self.pieces) or self.schemes is not None

    @property
    def voxels(self) -> int:
        """How many voxels change, counted again for each time that one does."""
        return sum(piece.voxels for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory it takes."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def box(self) -> Box | None:
        """The box around all that changes."""
        if not self.pieces:
            return None
        spans = [piece.box for piece in self.pieces]
        return box_of(
            [min(span[axis].start for span in spans) for axis in range(3)],
            [max(span[axis].stop for span in spans) for axis in range(3)],
        )

    @property
    def moved(self) -> Mapping[tuple[int, int], int]:
        """Voxels that went from one label to another: ``(before, after)`` to their number."""
        totals: dict[tuple[int, int], int] = {}
        for piece in self.pieces:
            for before, after, voxels in piece.moved:
                totals[before, after] = totals.get((before, after), 0) + voxels
        return totals

    def apply(self, labels: LabelArray) -> None:
        """Do it: ``labels`` must be as the edit was made for."""
        for piece in self.pieces:
            piece.write(labels[piece.box], new=True)

    def revert(self, labels: LabelArray) -> None:
        """Undo it: ``labels`` become what they were before, exactly."""
        for piece in reversed(self.pieces):
            piece.write(labels[piece.box], new=False)

    def named(self, name: str) -> Change:
        """The same under another name."""
        return Change(self.pieces, name, self.schemes)

    def with_schemes(self, before: LabelScheme, after: LabelScheme) -> Change:
        """The same together with a change of the label table."""
        return Change(self.pieces, self.name, (before, after))

    def merged(self) -> Change:
        """The same with neighbouring pieces put together, as far as their boxes stay small."""
        groups: list[list[Piece]] = []
        reach: Box | None = None
        for piece in self.pieces:
            joined = piece.box if reach is None else _around(reach, piece.box)
            if groups and _size(joined) <= boxes.PART_VOXELS:
                groups[-1].append(piece)
                reach = joined
            else:
                groups.append([piece])
                reach = piece.box
        merged = [group[0] if len(group) == 1 else _merge(group) for group in groups]
        return Change(
            tuple(piece for piece in merged if piece is not None), self.name, self.schemes
        )

    def split(self, refused: Mask) -> tuple[Change, Change]:
        """Part what concerns some labels from the rest.

        Args:
            refused: For every label value whether a voxel that has it before or after belongs to
                the second part.

        Returns:
            What concerns none of them, and what does.
        """
        kept: list[Piece | None] = []
        parted: list[Piece | None] = []
        for piece in self.pieces:
            concerned = [refused[before] or refused[after] for before, after, _ in piece.moved]
            if not any(concerned):
                kept.append(piece)
            elif all(concerned):
                parted.append(piece)
            else:
                mask = piece.mask_array()
                old = np.broadcast_to(np.asarray(piece.values(new=False)), piece.voxels)
                new = np.broadcast_to(np.asarray(piece.values(new=True)), piece.voxels)
                hit = refused[old] | refused[new]
                for target, some in ((kept, ~hit), (parted, hit)):
                    chosen = mask.copy()
                    chosen[mask] = some
                    target.append(
                        Piece.of(
                            piece.box,
                            chosen,
                            old[some].astype(piece.dtype),
                            new[some].astype(piece.dtype),
                        )
                    )
        return (
            Change(tuple(p for p in kept if p is not None), self.name, self.schemes),
            Change(tuple(p for p in parted if p is not None), self.name),
        )

    @staticmethod
    def joined(changes: Iterable[Change], name: str = "") -> Change:
        """Changes made one after the other, as one."""
        return Change(tuple(piece for change in changes for piece in change.pieces), name)


@dataclass(slots=True, eq=False)
class ChangeBuilder:
    """Collects what an edit wants to change, and lets through what the rules allow.

    Nothing is written to ``labels``. No voxel may be proposed twice: an edit goes over the array
    once.

    Args:
        labels: ``(i, p, l)`` of type uint8 or uint16, as they are before the edit.
        rules: What may be changed.

    Raises:
        ShapeError: ``edit-image`` if the rules' image lies on another grid.
    """

    labels: LabelArray
    rules: Rules = FREE
    _pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rules.check_fits(self.labels)

    def put(self, box: Box, mask: Mask | None, new: int | LabelArray) -> None:
        """Propose labels for the voxels of a mask.

        Args:
            box: Where.
            mask: Of the box's shape; None for all of it. It is not changed.
            new: One label, or labels of the box's shape.

        Raises:
            ConfigError: ``label-locked`` if the one label is.
        """
        if isinstance(new, int):
            self.rules.check_target(new)
        for part in slabs(box):
            planes = slice(part[0].start - box[0].start, part[0].stop - box[0].start)
            here = self.labels[part]
            fresh = new if isinstance(new, int) else new[planes]
            wanted: Mask = here != fresh
            if mask is not None:
                wanted &= mask[planes]
            if not wanted.any():
                continue
            self.rules.restrict(wanted, here, part)
            if not isinstance(fresh, int) and self.rules.locked:
                wanted &= ~np.isin(fresh, list(self.rules.locked))
            piece = Piece.of(part, wanted, here, fresh)
            if piece is not None:
                self._pieces.append(piece)

    def done(self, name: str) -> Change:
        """The change, under a name for people."""
        return Change(tuple(self._pieces), name)


def _merge(group: Sequence[Piece]) -> Piece | None:
    """Pieces made one after the other, as one: the first label before and the last one after."""
    box = group[0].box
    for piece in group[1:]:
        box = _around(box, piece.box)
    shape = tuple(part.stop - part.start for part in box)
    touched = np.zeros(shape, dtype=bool)
    old, new = (np.zeros(shape, dtype=group[0].dtype) for _ in range(2))
    for piece in group:
        inner = tuple(
            slice(a.start - b.start, a.stop - b.start) for a, b in zip(piece.box, box, strict=True)
        )
        mask = piece.mask_array()
        first = mask & ~touched[inner]
        before = np.broadcast_to(np.asarray(piece.values(new=False)), piece.voxels)
        old[inner][first] = before[first[mask]]
        new[inner][mask] = piece.values(new=True)
        touched[inner] |= mask
    return Piece.of(box, touched & (old != new), old, new)


def _around(one: Box, other: Box) -> Box:
    return box_of(
        [min(a.start, b.start) for a, b in zip(one, other, strict=True)],
        [max(a.stop, b.stop) for a, b in zip(one, other, strict=True)],
    )


def _size(box: Box) -> int:
    size = 1
    for part in box:
        size *= part.stop - part.start
    return size


def _moved(old: LabelArray, new: int | LabelArray) -> tuple[tuple[int, int, int], ...]:
    pairs = old.astype(np.uint32) << 16
    pairs |= np.uint32(new) if isinstance(new, int) else new.astype(np.uint32)
    if (pairs == pairs[0]).all():
        kinds, counts = pairs[:1], np.array([pairs.size])
    else:
        kinds, counts = np.unique(pairs, return_counts=True)
    return tuple(
        (int(kind) >> 16, int(kind) & 0xFFFF, int(count))
        for kind, count in zip(kinds, counts, strict=True)
    )


def _stored(values: LabelArray) -> Values:
    if (values == values[0]).all():
        return int(values[0])
    return _packed(np.ascontiguousarray(values))


def _packed(array: npt.NDArray[Any]) -> bytes:
    """A mark, then the bytes: as they are if they are few, else compressed."""
    plain = array.tobytes()
    if len(plain) <= _PACKING:
        return b"\0" + plain
    return b"\1" + bytes(zstd.compress(plain, 1))


def _unpacked(content: bytes) -> bytes:
    return content[1:] if content[:1] == b"\0" else bytes(zstd.decompress(content[1:]))
