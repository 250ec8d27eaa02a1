"""The editor of one labels layer, with its mouse and its label table, without any window.

A controller holds what the user has chosen (label, tool, size, locks, range of intensities) and
makes edits of it. :mod:`medseg_napari.editing.binding` gives it a layer of napari's,
:class:`~medseg_napari.editing.history.ArrayLayer` a plain array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from psygnal import Signal

from medseg.core import Label, LabelScheme
from medseg.errors import MedsegError
from medseg_napari.editing import brush, fill, logic, table
from medseg_napari.editing.change import Change
from medseg_napari.editing.editor import LayerEditor, Planned
from medseg_napari.editing.rules import Rules

__all__ = ["EditController"]


class EditController(LayerEditor):
    """Edits the labels of one layer by tools of the mouse, functions, and its label table."""

    pointed = Signal(tuple)
    """The ``point`` tool was used: the voxel ``(i, p, l)``, which lies inside the image."""

    # ---- the mouse

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
        elif self._tool == "point":
            at = self._inside(at_vox)
            if at is not None:
                self.pointed.emit(at)
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

    def pick(self, at_vox: Sequence[float]) -> int | None:
        """Make the label at a place the active one; None if there is none."""
        at = self._inside(at_vox)
        if at is None:
            return None
        value = int(self.labels[at])
        if value not in self.scheme.values:
            return None
        self.active = value
        return value

    def _inside(self, at_vox: Sequence[float]) -> tuple[int, ...] | None:
        """The voxel at a place; None beside the image."""
        at = _nearest(at_vox)
        inside = all(
            0 <= place < extent for place, extent in zip(at, self.labels.shape, strict=True)
        )
        return at if inside else None

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
