"""Edits of one layer, their history, and the state of saving; without any window and any mouse.

An editor makes edits by the functions of this package and keeps the label table, the effort and the
state of saving up to date. It knows the layer by a small protocol,
:class:`~medseg_napari.editing.edited_layer.EditedLayer`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Concatenate, Literal, ParamSpec

from psygnal import Signal

from medseg.core import LabelScheme
from medseg.errors import ConfigError, MedsegError
from medseg_napari.editing import logic
from medseg_napari.editing.boxes import LabelArray, Spacing
from medseg_napari.editing.change import Change
from medseg_napari.editing.choices import Choices, PaintOver
from medseg_napari.editing.edited_layer import EditedLayer, check_editable
from medseg_napari.editing.effort import Effort
from medseg_napari.editing.rules import Rules
from medseg_napari.editing.scribbles import Scribbles
from medseg_napari.editing.table import LabelTable

__all__ = ["LayerEditor", "Planned"]

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """An edit that was computed but not made.

    Args:
        change: What it would change.
        revision: The state of the labels that it was computed on.
    """

    change: Change
    revision: int


class LayerEditor(Choices):
    """Edits the labels of one layer; every edit is one undo step of the layer's own history.

    Args:
        layer: The layer.
        scheme: Names and colours of its labels; those missing get plain ones.
        spacing_mm: Of its voxels along I, P, L.
        made: How the labels came about before any edit: ``AUTOMATIC`` by a model, ``SEMIAUTOMATIC``
            by both, ``MANUAL`` by a person.
        voxel_volume_mm3: Where it is not the product of the spacings, as on a tilted grid.
        clock: Seconds that only rise.

    Raises:
        FormatError: ``edit-array`` if the layer's data cannot be edited.
    """

    changed = Signal(Change, bool)
    """An edit was made (True) or undone (False); data, table and effort have followed."""

    written = Signal(Change, bool)
    """Voxels were written, as before (False) or after (True) a change. Other than :attr:`changed`
    it comes for every step of a stroke, and for a stroke that is taken back."""

    replaced = Signal()
    """The layer has another array."""

    table_changed = Signal()
    """Names, colours, locks, visibility or volumes are others."""

    refused = Signal(str)
    """An edit was refused; the sentence says why."""

    def __init__(
        self,
        layer: EditedLayer,
        scheme: LabelScheme,
        spacing_mm: Sequence[float],
        *,
        made: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] = "MANUAL",
        voxel_volume_mm3: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        check_editable(layer.data)
        self._layer = layer
        self.spacing_mm: Spacing = (
            float(spacing_mm[0]),
            float(spacing_mm[1]),
            float(spacing_mm[2]),
        )
        voxel_mm3 = voxel_volume_mm3 or math.prod(self.spacing_mm)
        self.labels_table = LabelTable.of(layer.data, scheme, voxel_mm3 / 1000.0)
        self.effort = Effort(clock)
        i, p, l = layer.data.shape  # noqa: E741 - the axes' names
        self.scribbles = Scribbles((i, p, l), self.spacing_mm)
        self._made = made
        self._counts_at_start = self.labels_table.counts.copy()
        self._active = self.scheme.values[0]
        self._stroke: list[Change] = []
        self._last_vox: tuple[float, ...] | None = None
        self._stroke_axis: int | None = None
        self._states = [0]
        self._saved_state = 0
        self._last_state = 0
        self._undone_states: list[int] = []

    # ---- what is chosen

    @property
    def labels(self) -> LabelArray:
        """The labels as they are."""
        return self._layer.data

    @property
    def scheme(self) -> LabelScheme:
        """Names and colours."""
        return self.labels_table.scheme

    @property
    def active(self) -> int:
        """The label that tools draw with."""
        return self._active

    @active.setter
    def active(self, value: int) -> None:
        self.scheme.by_value(value)
        self.effort.acted(self._active)
        self._choose("active", value)

    def _choose(self, name: str, value: object) -> None:
        if name == "tool":
            self.end_stroke()
        super()._choose(name, value)

    def rules(self, *, over: PaintOver | None = None) -> Rules:
        """What edits may change now.

        Args:
            over: What may be overwritten; None for what is chosen.
        """
        background_only = (over or self._paint_over) == "background"
        return Rules(
            self.labels_table.locked,
            frozenset({0}) if background_only else None,
            self._within,
        )

    # ---- strokes

    @property
    def in_stroke(self) -> bool:
        """Whether a stroke has begun and not ended."""
        return self._last_vox is not None

    def end_stroke(self) -> None:
        """The button was released: the stroke becomes one undo step."""
        self._last_vox = None
        stroke, self._stroke = self._stroke, []
        if stroke:
            self._record(Change.joined(stroke, stroke[0].name).merged())

    def cancel_stroke(self) -> None:
        """Take back what was drawn since the button was pressed."""
        self._last_vox = None
        stroke, self._stroke = self._stroke, []
        for change in reversed(stroke):
            self._write(change, forward=False)

    # ---- edits

    def plan(
        self,
        edit: Callable[Concatenate[LabelArray, P], Change],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Planned:
        """Compute an edit without making it; may be called in another thread.

        Args:
            edit: A function of this package whose first argument is the labels.
            args: Its other arguments.
            kwargs: Its other arguments by name.

        Raises:
            MedsegError: As the edit does.
        """
        revision = self._states[-1]
        return Planned(edit(self.labels, *args, **kwargs), revision)

    def commit(self, planned: Planned) -> Change:
        """Make an edit that was planned, as one undo step.

        Returns:
            What it changed; nothing where there was nothing to change.

        Raises:
            ConfigError: ``edit-stale`` if the labels were edited since it was planned.
        """
        if planned.revision != self._states[-1] or self._stroke:
            raise ConfigError(
                planned.change.name or "edit",
                expected="labels as they were when it was computed",
                found="labels that were edited since",
                remedy="run it again",
                code="edit-stale",
            )
        change = planned.change
        if change:
            self._write(change, forward=True)
            self._record(change)
        return change

    def run(
        self,
        edit: Callable[Concatenate[LabelArray, P], Change],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Change | None:
        """Compute and make an edit; a refusal is told by :attr:`refused`.

        Returns:
            What it changed; None if it was refused.
        """
        self.end_stroke()
        try:
            return self.commit(self.plan(edit, *args, **kwargs))
        except MedsegError as error:
            self.refused.emit(str(error))
            return None

    def _write(self, change: Change, *, forward: bool) -> None:
        if forward:
            change.apply(self.labels)
        else:
            change.revert(self.labels)
        self._layer.redraw(change)
        self.written.emit(change, forward)

    def _record(self, change: Change) -> None:
        change = self.with_new_labels(change)
        self._layer.record(change)
        self._made_now(change)

    def undo(self) -> Change | None:
        """Undo the last step of the layer's history; None if there is none."""
        self.end_stroke()
        change = self._layer.undo()
        if change is not None:
            self._undone_states.append(self._states.pop())
            if not self._states:  # a step from before this controller
                self._states.append(self._new_state())
            self._after_replay(change, forward=False)
        return change

    def redo(self) -> Change | None:
        """Make the step that was last undone again; None if there is none."""
        self.end_stroke()
        change = self._layer.redo()
        if change is not None:
            known = self._undone_states
            self._states.append(known.pop() if known else self._new_state())
            self._after_replay(change, forward=True)
        return change

    # ---- what the layer reports

    def with_new_labels(self, change: Change) -> Change:
        """The change together with entries of the table for labels that it brings in."""
        if change.schemes:
            named = {0, *(label.value for label in change.schemes[1].labels)}
            if named.issuperset(after for _, after in change.moved):
                return change
        scheme = self.labels_table.with_strangers(change.moved)
        if scheme is self.scheme:
            return change
        return change.with_schemes(change.schemes[0] if change.schemes else self.scheme, scheme)

    def followed(self, change: Change) -> None:
        """Another tool has made a change and recorded it in the layer's history."""
        self.written.emit(change, True)
        self._made_now(change)

    def recount(self) -> None:
        """The labels were changed in a way that is not known, or have another array."""
        check_editable(self.labels)
        self.labels_table.recount(self.labels)
        self._states.append(self._new_state())
        self.replaced.emit()
        self.table_changed.emit()
        self.chosen.emit("modified")

    def _made_now(self, change: Change) -> None:
        self._undone_states.clear()
        self._states.append(self._new_state())
        self._follow(change, forward=True)

    def _new_state(self) -> int:
        self._last_state += 1
        return self._last_state

    def _after_replay(self, change: Change, *, forward: bool) -> None:
        if change:
            self.written.emit(change, forward)
            self._follow(change, forward=forward)
        else:  # of another tool, in a form that is not known
            self.recount()

    def _follow(self, change: Change, *, forward: bool) -> None:
        moved = change.moved
        self.effort.acted(self._active)
        self.effort.count(moved, forward=forward)
        self.labels_table.count(moved, forward=forward)
        if change.schemes is not None:
            self._set_scheme(change.schemes[1 if forward else 0])
        self.changed.emit(change, forward)
        self.table_changed.emit()
        self.chosen.emit("modified")

    def _set_scheme(self, scheme: LabelScheme) -> None:
        self.labels_table.scheme = scheme
        if self._active not in scheme.values:
            self._choose("active", scheme.values[0])
        self._layer.recolour(self.labels_table)

    # ---- saving

    @property
    def modified(self) -> bool:
        """Whether there are edits that were not saved."""
        return self._states[-1] != self._saved_state or bool(self._stroke)

    @property
    def was_saved(self) -> bool:
        """Whether edits of this session were saved at some time."""
        return self._saved_state != 0

    def saved(self) -> None:
        """The labels were saved as they are."""
        self.end_stroke()
        self._saved_state = self._states[-1]
        self.chosen.emit("modified")

    def replace_labels(
        self, labels: LabelArray, scheme: LabelScheme | None = None, *, name: str = "replace"
    ) -> Change:
        """Take over other labels, such as a model's or a recovered state, in one undo step.

        Args:
            labels: On the same grid.
            scheme: Their names and colours; None for those of now.
            name: For people.

        Raises:
            ShapeError: ``edit-labels`` if they have another shape.
            ConfigError: ``edit-labels-range`` if they hold values that the layer's type does not.
        """
        self.end_stroke()
        change = logic.replace(self.labels, labels).named(name)
        if scheme is not None and scheme != self.scheme:
            change = change.with_schemes(self.scheme, scheme)
        return self.commit(Planned(change, self._states[-1]))

    def provenance(self, value: int) -> Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]:
        """How a label came about: as DICOM names it for a segment (0062,0008)."""
        work = self.effort.of(value)
        if not (work.added_voxels or work.removed_voxels):
            return self._made
        if self._made == "MANUAL" or not self._counts_at_start[value]:
            return "MANUAL"
        return "SEMIAUTOMATIC"
