"""The label table: names, colours, locks, visibility and volumes kept up to date."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Label, LabelScheme
from medseg.core.labelmap import label_counts
from medseg.errors import ConfigError
from medseg_napari.editing.boxes import LabelArray

__all__ = [
    "LabelTable",
    "TableRow",
    "free_values",
    "with_colour",
    "with_label",
    "with_name",
    "with_pieces",
    "without_label",
]


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the label table.

    Args:
        label: Value, name, colour and codes.
        locked: Whether its voxels may not change.
        visible: Whether it is drawn.
        voxels: How many it has.
        volume_ml: Their volume.
    """

    label: Label
    locked: bool
    visible: bool
    voxels: int
    volume_ml: float


def with_label(
    scheme: LabelScheme,
    *,
    highest: int,
    name: str | None = None,
    rgb: tuple[int, int, int] | None = None,
    value: int | None = None,
) -> tuple[LabelScheme, Label]:
    """A scheme with one more label.

    Args:
        scheme: The scheme so far.
        highest: The highest value that the type of the labels holds.
        name: Its name; None for ``label N``, or another name that is free.
        rgb: Its colour; None for one that differs well from its neighbours'.
        value: Its value; None for the lowest that is free.

    Raises:
        ConfigError: ``label-scheme`` if value or name are taken or wrong; ``labels-full`` if no
            value is free, or the one asked for is higher than the type of the labels holds.
    """
    taken = set(scheme.values)
    if value is None:
        value = next((v for v in range(1, highest + 1) if v not in taken), highest + 1)
    if value > highest:
        raise ConfigError(
            "label table",
            expected=f"a value from 1 to {highest}, the highest that these labels hold",
            found=f"{len(taken)} labels" if len(taken) >= highest else str(value),
            remedy="choose a lower value or remove a label that is not used",
            code="labels-full",
        )
    names = {label.name for label in scheme.labels}
    if name is None:
        name = f"label {value}"
        number = 2
        while name in names:
            name = f"label {value} ({number})"
            number += 1
    if rgb is None:
        spread = LabelScheme.plain("", {v: str(v) for v in range(1, len(scheme.labels) + 2)})
        used = {label.rgb for label in scheme.labels}
        free = [label.rgb for label in spread.labels if label.rgb not in used]
        rgb = free[0]
    label = Label(value, name, rgb)
    return LabelScheme(scheme.name, (*scheme.labels, label)), label


def free_values(scheme: LabelScheme, highest: int, number: int) -> list[int]:
    """The lowest values that a scheme does not use.

    Args:
        scheme: What is used.
        highest: The highest value that the type of the labels holds.
        number: How many.

    Raises:
        ConfigError: ``labels-full`` if there are not as many.
    """
    values: list[int] = []
    for _ in range(number):
        scheme, label = with_label(scheme, highest=highest)
        values.append(label.value)
    return values


def with_pieces(scheme: LabelScheme, value: int, new_values: Sequence[int]) -> LabelScheme:
    """A scheme with labels for pieces of a label, named after it: ``kidney 2``, ``kidney 3``.

    Args:
        scheme: The scheme so far.
        value: The label that was split.
        new_values: Of its pieces, from the second on.
    """
    name = scheme.by_value(value).name
    for new in sorted(new_values):
        names = {label.name for label in scheme.labels}
        number = 2
        while f"{name} {number}" in names:
            number += 1
        scheme, _ = with_label(scheme, highest=new, name=f"{name} {number}", value=new)
    return scheme


def without_label(scheme: LabelScheme, value: int) -> LabelScheme:
    """A scheme without one of its labels.

    Raises:
        ConfigError: ``label-unknown``; ``label-last`` if it is the only one.
    """
    gone = scheme.by_value(value)
    if len(scheme.labels) == 1:
        raise ConfigError(
            f"label {gone.name!r}",
            expected="a table that keeps at least one label",
            found="the only one",
            remedy="add another label first, or erase its voxels",
            code="label-last",
        )
    return LabelScheme(scheme.name, tuple(label for label in scheme.labels if label.value != value))


def with_name(scheme: LabelScheme, value: int, name: str) -> LabelScheme:
    """A scheme in which a label has another name; its codes, which meant the old one, are left out.

    Raises:
        ConfigError: ``label-unknown``; ``label-scheme`` if the name is taken, empty or too long.
    """
    old = scheme.by_value(value)
    if old.name == name:
        return scheme
    return _replaced(scheme, Label(value, name, old.rgb))


def with_colour(scheme: LabelScheme, value: int, rgb: tuple[int, int, int]) -> LabelScheme:
    """A scheme in which a label has another colour.

    Raises:
        ConfigError: ``label-unknown``; ``label-scheme`` if a level is not from 0 to 255.
    """
    return _replaced(scheme, dataclasses.replace(scheme.by_value(value), rgb=rgb))


def _replaced(scheme: LabelScheme, new: Label) -> LabelScheme:
    return LabelScheme(
        scheme.name,
        tuple(new if label.value == new.value else label for label in scheme.labels),
    )


@dataclass(slots=True, eq=False)
class LabelTable:
    """What is known about the labels of one array.

    Volumes are counted once and then follow the edits.

    Args:
        scheme: Names and colours.
        counts: Voxels of every value that the type of the labels holds.
        voxel_ml: Volume of a voxel.
        locked: Labels that may not change.
        hidden: Labels that are not drawn.
    """

    scheme: LabelScheme
    counts: npt.NDArray[np.int64]
    voxel_ml: float
    locked: frozenset[int] = frozenset()
    hidden: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, labels: LabelArray, scheme: LabelScheme, voxel_ml: float) -> LabelTable:
        """The table of an array; values that the scheme lacks get plain names.

        Args:
            labels: ``(i, p, l)`` of type uint8 or uint16.
            scheme: What is known.
            voxel_ml: Volume of a voxel.
        """
        counts = label_counts(labels)
        present = np.flatnonzero(counts)
        for value in present[present > 0].tolist():
            if value not in scheme.values:
                scheme, _ = with_label(scheme, highest=counts.size - 1, value=int(value))
        return cls(scheme, counts, voxel_ml)

    def recount(self, labels: LabelArray) -> None:
        """Count anew, after changes that are not known."""
        counted = LabelTable.of(labels, self.scheme, self.voxel_ml)
        self.scheme, self.counts = counted.scheme, counted.counts

    @property
    def highest(self) -> int:
        """The highest value that the type of the labels holds."""
        return self.counts.size - 1

    def volume_ml(self, value: int) -> float:
        """Volume of a label."""
        return float(self.counts[value]) * self.voxel_ml

    def rows(self) -> list[TableRow]:
        """The lines of the table in rising order of value."""
        return [
            TableRow(
                label,
                label.value in self.locked,
                label.value not in self.hidden,
                int(self.counts[label.value]),
                self.volume_ml(label.value),
            )
            for label in self.scheme.labels
        ]

    def count(self, moved: Mapping[tuple[int, int], int], *, forward: bool) -> None:
        """Follow an edit, or its undoing."""
        sign = 1 if forward else -1
        for (before, after), voxels in moved.items():
            self.counts[before] -= sign * voxels
            self.counts[after] += sign * voxels

    def with_strangers(self, moved: Mapping[tuple[int, int], int]) -> LabelScheme:
        """The scheme with plain entries for labels that an edit brought in."""
        scheme = self.scheme
        for _, after in moved:
            if after and after not in scheme.values:
                scheme, _ = with_label(scheme, highest=self.highest, value=after)
        return scheme

    def colours(self) -> dict[int | None, Any]:
        """Colours with opacity by value, as napari takes them; hidden labels are clear."""
        colours: dict[int | None, Any] = {None: (1.0, 1.0, 1.0, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
        for label in self.scheme.labels:
            red, green, blue = (level / 255 for level in label.rgb)
            colours[label.value] = (red, green, blue, float(label.value not in self.hidden))
        return colours
