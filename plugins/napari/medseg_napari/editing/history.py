"""Undo in a layer's own history, without its index arrays.

napari keeps a list of atoms for every undo step, and undoes one by
``data[indices] = values before``. An atom of ours has the box of a :class:`Piece` for indices and
for values an object that becomes an array when numpy asks for one: the box as it is, with the
changed voxels as they were. Undo and redo of napari thus work as they are, in every version, and a
step takes the bytes of a compressed change instead of 25 or more a voxel.

Steps of napari's own tools (brush, eraser, bucket, polygon) are taken in: read into a change and
replaced by its atoms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_napari.editing.boxes import Box, LabelArray, box_of, slabs
from medseg_napari.editing.change import Change, Piece
from medseg_napari.editing.table import LabelTable

__all__ = ["LIMIT", "ArrayLayer", "BoxValues", "atoms_of", "change_in", "change_of_atoms"]

LIMIT = 100
"""Undo steps that are kept, as in napari."""

Atom = tuple[Any, Any, Any]
"""Indices, values before, values after."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxValues:
    """The labels of a piece's box before or after a change, made when an array is asked for.

    Args:
        change: What the piece is of.
        piece: The piece; None for a change of the label table alone.
        new: Whether after or before.
        labels: Gives the labels as they are.
    """

    change: Change
    piece: Piece | None
    new: bool
    labels: Callable[[], LabelArray]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """The box as it is, with the changed voxels as they are to be."""
        labels = self.labels()
        if self.piece is None:
            part = np.zeros((0, 0, 0), dtype=labels.dtype)
        else:
            part = labels[self.piece.box].copy()
            self.piece.write(part, new=self.new)
        return part if dtype is None else part.astype(dtype, copy=False)


def atoms_of(change: Change, labels: Callable[[], LabelArray]) -> list[Atom]:
    """A change as an undo step of napari's history.

    Args:
        change: The change.
        labels: Gives the labels as they are.
    """
    if not change.pieces:
        nowhere = box_of((0, 0, 0), (0, 0, 0))
        return [
            (nowhere, BoxValues(change, None, False, labels), BoxValues(change, None, True, labels))
        ]
    return [
        (piece.box, BoxValues(change, piece, False, labels), BoxValues(change, piece, True, labels))
        for piece in change.pieces
    ]


def change_in(step: Sequence[Any]) -> Change | None:
    """The change that an undo step holds; None if it is not one of ours."""
    for atom in step:
        if isinstance(atom, tuple) and len(atom) == 3 and isinstance(atom[1], BoxValues):
            return atom[1].change
    return None


def change_of_atoms(step: Sequence[Any], labels: LabelArray) -> Change | None:
    """Read an undo step of napari's own tools.

    Args:
        step: Its atoms, in the order in which they were made.
        labels: As they are after it.

    Returns:
        The change, or None if an atom has a form that is not known.
    """
    pieces: list[Piece] = []
    for atom in step:
        if hasattr(atom, "slice_key") and hasattr(atom, "new_value"):
            found = _of_masked(atom, labels)
        elif isinstance(atom, tuple) and len(atom) == 3:
            found = _of_indexed(atom, labels)
        else:
            return None
        if found is None:
            return None
        pieces += found
    return Change(tuple(pieces), "paint").merged()


def _of_masked(atom: Any, labels: LabelArray) -> list[Piece] | None:  # noqa: ANN401 - napari's
    start = [part.start for part in atom.slice_key]
    stop = [part.stop for part in atom.slice_key]
    if len(start) != 3 or None in start or None in stop:
        return None
    box = box_of(start, stop)
    shape = tuple(part.stop - part.start for part in box)
    mask = np.ones(shape, dtype=bool) if atom.mask is None else np.asarray(atom.mask)
    old = np.asarray(atom.old_values, dtype=labels.dtype)
    return _by_slabs(box, mask, old if old.shape == shape else old.ravel(), int(atom.new_value))


def _by_slabs(box: Box, mask: Any, old: LabelArray, new: int) -> list[Piece]:  # noqa: ANN401
    pieces: list[Piece] = []
    taken = 0
    for part in slabs(box):
        planes = slice(part[0].start - box[0].start, part[0].stop - box[0].start)
        some = mask[planes]
        here = int(np.count_nonzero(some))
        before = old[planes] if old.ndim == 3 else old[taken : taken + here]
        taken += here
        piece = Piece.of(part, some, before, new)
        if piece is not None:
            pieces.append(piece)
    return pieces


def _of_indexed(atom: Atom, labels: LabelArray) -> list[Piece] | None:
    indices, old, new = atom
    if not isinstance(indices, tuple) or len(indices) != 3:
        return None
    arrays = [np.asarray(index) for index in indices]
    if any(array.dtype.kind not in "iu" for array in arrays):
        return None
    i, p, l = np.broadcast_arrays(*arrays)  # noqa: E741 - the axes' names
    if not i.size:
        return []
    old = np.broadcast_to(np.asarray(old, dtype=labels.dtype), i.shape).ravel()
    new = np.broadcast_to(np.asarray(new, dtype=labels.dtype), i.shape).ravel()
    places = [
        np.where(at < 0, at + extent, at).ravel()
        for at, extent in zip((i, p, l), labels.shape, strict=True)
    ]
    box = box_of([at.min() for at in places], [at.max() + 1 for at in places])
    pieces: list[Piece] = []
    for part in slabs(box):
        here = (places[0] >= part[0].start) & (places[0] < part[0].stop)
        if not here.any():
            continue
        shape = [span.stop - span.start for span in part]
        at = tuple(place[here] - span.start for place, span in zip(places, part, strict=True))
        before, after = (np.zeros(shape, dtype=labels.dtype) for _ in range(2))
        # of an index that is given twice the first label before and the last one after count
        before[tuple(place[::-1] for place in at)] = old[here][::-1]
        after[at] = new[here]
        piece = Piece.of(part, before != after, before, after)
        if piece is not None:
            pieces.append(piece)
    return pieces


@dataclass(slots=True, eq=False)
class ArrayLayer:
    """Labels without a viewer, with a history of their own: for scripts and tests.

    Args:
        data: ``(i, p, l)``; written to in place.
        limit: Undo steps that are kept.
    """

    data: LabelArray
    limit: int = LIMIT
    _done: deque[Change] = field(default_factory=deque)
    _undone: list[Change] = field(default_factory=list)

    def record(self, change: Change) -> None:
        """Keep a change as one undo step."""
        self._undone.clear()
        self._done.append(change)
        while len(self._done) > self.limit:
            self._done.popleft()

    def redraw(self, change: Change) -> None:
        """There is nothing to draw on."""

    def recolour(self, labels: LabelTable) -> None:
        """There is nothing to draw on."""

    def undo(self) -> Change | None:
        """Undo the last change; None if there is none."""
        if not self._done:
            return None
        change = self._done.pop()
        change.revert(self.data)
        self._undone.append(change)
        return change

    def redo(self) -> Change | None:
        """Make the change that was last undone again; None if there is none."""
        if not self._undone:
            return None
        change = self._undone.pop()
        change.apply(self.data)
        self._done.append(change)
        return change

    @property
    def nbytes(self) -> int:
        """About how many bytes the history takes."""
        return sum(change.nbytes for change in (*self._done, *self._undone))
