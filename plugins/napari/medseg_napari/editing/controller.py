"""The editor of one labels layer, without any window.

A controller holds what the user has chosen (label, tool, size, locks, range of intensities), makes
edits of it, and keeps the label table, the effort and the state of saving up to date. It knows the
layer by a small protocol, :class:`EditedLayer`; :mod:`medseg_napari.editing.binding` gives it one
of napari's, :class:`~medseg_napari.editing.history.ArrayLayer` a plain array.

Every edit is one undo step of the layer's own history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, Protocol

import numpy as np
import numpy.typing as npt
from psygnal import Signal

from medseg.core import Label, LabelScheme
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg_napari.editing import brush, fill, logic, table
from medseg_napari.editing.boxes import LabelArray, Spacing
from medseg_napari.editing.change import Change
from medseg_napari.editing.choices import Choices, PaintOver
from medseg_napari.editing.effort import Effort
from medseg_napari.editing.rules import Rules
from medseg_napari.editing.scribbles import Scribbles
from medseg_napari.editing.table import LabelTable

__all__ = ["EditController", "EditedLayer", "Planned", "check_editable"]

P = ParamSpec("P")


class EditedLayer(Protocol):
    """What a controller needs of a layer."""

    @property
    def data(self) -> LabelArray:
        """``(i, p, l)`` of type uint8 or uint16; written to in place."""
        ...

    def record(self, change: Change) -> None:
        """Keep a change that was made as one undo step."""

    def undo(self) -> Change | None:
        """Undo the last step.

        Returns:
            Its change, an empty one if it is not known, or None if there is no step.
        """
        ...

    def redo(self) -> Change | None:
        """Make the step that was last undone again; returns as :meth:`undo`."""
        ...

    def redraw(self, change: Change) -> None:
        """Show what a change made."""

    def recolour(self, labels: LabelTable) -> None:
        """Show the colours and the visibility of a label table."""


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """An edit that was computed but not made.

    Args:
        change: What it would change.
        revision: The state of the labels that it was computed on.
    """

    change: Change
    revision: int


def check_editable(labels: npt.NDArray[Any]) -> None:
    """Refuse what cannot be edited.

    Raises:
        FormatError: ``edit-array`` unless the labels are a three-dimensional array in memory, of
            type uint8 or uint16, that can be written to.
    """
    if not isinstance(labels, np.ndarray):
        found = f"data of type {type(labels).__name__}"
    elif labels.ndim != 3:
        found = f"{labels.ndim} axes"
    elif labels.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        found = f"type {labels.dtype}"
    elif not labels.flags.writeable:
        found = "an array that is read only"
    else:
        return
    raise FormatError(
        "labels layer",
        expected="labels of type uint8 or uint16 in an array of three axes that can be written to",
        found=found,
        remedy="open the labels with medseg, or make new ones on an image opened with medseg",
        code="edit-array",
    )


class EditController(Choices):
    """Edits the labels of one layer.

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

    # ---- the mouse

    @property
    def in_stroke(self) -> bool:
        """Whether a stroke has begun and not ended."""
        return self._last_vox is not None

    def press(self, at_vox: Sequence[float], axis: int | None) -> None:
        """The mouse was pressed: start a stroke, fill, or pick, as the tool is.

        Args:
            at_vox: Where, in voxels.
            axis: The axis across the slice that is shown; None where the view is in three
                dimensions.
        """
        self.end_stroke()
        in_slice = None if self._in_3d or axis is None else axis
        if self._tool == "pick":
            self.pick(at_vox)
        elif self._tool == "fill":
            self.run(fill.fill, self._active, _nearest(at_vox), axis=in_slice, rules=self.rules())
        elif self._tool != "none":
            self._stroke_axis = in_slice
            self._last_vox = tuple(float(place) for place in at_vox)
            self._draw(self._last_vox, self._last_vox)

    def drag(self, at_vox: Sequence[float]) -> None:
        """The mouse was moved with the button down."""
        if self._last_vox is not None:
            before, self._last_vox = self._last_vox, tuple(float(place) for place in at_vox)
            self._draw(before, self._last_vox)

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

    def pick(self, at_vox: Sequence[float]) -> int | None:
        """Make the label at a place the active one; None if there is none."""
        at = _nearest(at_vox)
        if not all(
            0 <= place < extent for place, extent in zip(at, self.labels.shape, strict=True)
        ):
            return None
        value = int(self.labels[at])
        if value not in self.scheme.values:
            return None
        self.active = value
        return value

    def _draw(self, before: Sequence[float], now: Sequence[float]) -> None:
        if self._tool in ("scribble inside", "scribble outside"):
            self.scribbles.add(
                1 if self._tool == "scribble inside" else 2,
                before,
                now,
                size_mm=self._brush_mm,
                axis=self._stroke_axis,
            )
            self.chosen.emit("scribbles")
            return
        try:
            change = self._dab(before, now)
        except MedsegError as error:
            self._last_vox = None
            self.end_stroke()
            self.refused.emit(str(error))
            return
        if change:
            self._write(change, forward=True)
            self._stroke.append(change)

    def _dab(self, before: Sequence[float], now: Sequence[float]) -> Change:
        if self._tool == "eraser":
            return brush.erase(
                self.labels,
                before,
                now,
                size_mm=self._brush_mm,
                spacing_mm=self.spacing_mm,
                axis=self._stroke_axis,
                of=None if self._erase_all else self._active,
                rules=self.rules(),
            )
        return brush.paint(
            self.labels,
            self._active,
            before,
            now,
            size_mm=self._brush_mm,
            spacing_mm=self.spacing_mm,
            axis=self._stroke_axis,
            rules=self.rules(),
        )

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

    # ---- the label table

    def add_label(
        self,
        name: str | None = None,
        rgb: tuple[int, int, int] | None = None,
        value: int | None = None,
    ) -> Label:
        """Add a label and make it the active one.

        Raises:
            ConfigError: ``label-scheme``, ``labels-full``.
        """
        scheme, label = table.with_label(
            self.scheme, highest=self.labels_table.highest, name=name, rgb=rgb, value=value
        )
        self._change_scheme("add label", scheme)
        self.active = label.value
        return label

    def rename_label(self, value: int, name: str) -> None:
        """Give a label another name.

        Raises:
            ConfigError: ``label-unknown``, ``label-scheme``.
        """
        self._change_scheme("rename label", table.with_name(self.scheme, value, name))

    def recolour_label(self, value: int, rgb: tuple[int, int, int]) -> None:
        """Give a label another colour.

        Raises:
            ConfigError: ``label-unknown``, ``label-scheme``.
        """
        self._change_scheme("recolour label", table.with_colour(self.scheme, value, rgb))

    def remove_label(self, value: int) -> Change:
        """Take a label out of the table and its voxels away, in one undo step.

        Raises:
            ConfigError: ``label-unknown``, ``label-last``, ``label-locked``.
        """
        after = table.without_label(self.scheme, value)
        planned = self.plan(logic.erase_label, value, rules=Rules(self.labels_table.locked))
        return self._with_scheme(planned, "remove label", after)

    def merge_labels(self, value: int, into: int) -> Change:
        """Give the voxels of a label to another one and take it out of the table.

        Raises:
            ConfigError: ``label-unknown``, ``label-locked``.
        """
        self.scheme.by_value(into)
        after = table.without_label(self.scheme, value)
        planned = self.plan(logic.merge, value, into, rules=Rules(self.labels_table.locked))
        return self._with_scheme(planned, "merge labels", after)

    def _change_scheme(self, name: str, scheme: LabelScheme) -> None:
        if scheme != self.scheme:
            self._with_scheme(Planned(Change(), self._states[-1]), name, scheme)

    def _with_scheme(self, planned: Planned, name: str, scheme: LabelScheme) -> Change:
        self.end_stroke()
        change = planned.change.named(name).with_schemes(self.scheme, scheme)
        return self.commit(Planned(change, self._states[-1]))

    def lock(self, value: int, locked: bool = True) -> None:
        """Lock a label, or 0 for the background, against all changes; or unlock it."""
        self.end_stroke()
        held = self.labels_table.locked
        self.labels_table.locked = held | {value} if locked else held - {value}
        self.table_changed.emit()

    def show(self, value: int, visible: bool = True) -> None:
        """Show or hide a label."""
        hidden = self.labels_table.hidden
        self.labels_table.hidden = hidden - {value} if visible else hidden | {value}
        self._layer.recolour(self.labels_table)
        self.table_changed.emit()


def _nearest(at_vox: Sequence[float]) -> tuple[int, ...]:
    return tuple(math.floor(place + 0.5) for place in at_vox)
