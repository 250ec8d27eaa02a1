"""Edits of a whole label: its pieces, its surface, its slices, and operations between labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from napari.layers import Labels
from qtpy.QtWidgets import QCheckBox, QComboBox, QSpinBox

from medseg.core import LabelScheme
from medseg.core.labelmap import present_values
from medseg.errors import ConfigError
from medseg_napari import _layer_boxes
from medseg_napari._edit_draw_widget import slice_of
from medseg_napari._edit_section import Section, button, length_box, row
from medseg_napari._edit_session import correction_of, is_scribbles
from medseg_napari._layers import plain_scheme
from medseg_napari._origin import origin_of
from medseg_napari.editing import between, islands, logic, morphology
from medseg_napari.editing.rules import Rules
from medseg_napari.editing.table import free_values, with_pieces

if TYPE_CHECKING:
    from collections.abc import Callable

    from medseg_napari._edit_session import Correction
    from medseg_napari.editing.boxes import LabelArray
    from medseg_napari.editing.change import Change

__all__ = ["CombineSection", "PiecesSection", "SlicesSection", "SurfaceSection"]


class PiecesSection(Section):
    """Islands: keep the largest, remove small ones, split, fill holes."""

    def build(self) -> None:
        """See :class:`Section`."""
        self.least_box = length_box(0.1, most=1000.0, unit="")
        self.unit_box = QComboBox()
        self.unit_box.addItem("ml", "ml")
        self.unit_box.addItem("mm across", "mm")
        self.unit_box.setToolTip("Volume, or diameter of a ball of that volume")
        self.most_box = QSpinBox()
        self.most_box.setRange(2, 50)
        self.most_box.setValue(2)
        self.most_box.setToolTip("The largest keeps its label; further ones stay with it")
        self.form.addRow(
            row(
                [
                    button("Keep largest", self.keep_largest, "Take all other pieces away"),
                    button("Fill holes", self.fill_holes, "Fill what the label encloses"),
                ]
            )
        )
        self.form.addRow(
            row([button("Remove below", self.remove_small), self.least_box, self.unit_box])
        )
        self.form.addRow(row([button("Split into", self.split), self.most_box]))

    def keep_largest(self) -> None:
        """Keep the largest piece of the chosen label."""

        def action(one: Correction) -> None:
            controller = one.controller
            self.bench.run(
                "keep largest",
                islands.keep_largest,
                controller.active,
                spacing_mm=controller.spacing_mm,
                rules=_locks(one),
            )

        self.bench.attempt(action)

    def least_ml(self) -> float:
        """The volume below which pieces are removed."""
        least = float(self.least_box.value())
        if self.unit_box.currentData() == "ml":
            return least
        return math.pi / 6 * least**3 / 1000

    def remove_small(self) -> None:
        """Remove the small pieces of the chosen label."""

        def action(one: Correction) -> None:
            controller = one.controller
            self.bench.run(
                "remove small pieces",
                islands.remove_small,
                controller.active,
                min_ml=self.least_ml(),
                spacing_mm=controller.spacing_mm,
                rules=_locks(one),
            )

        self.bench.attempt(action)

    def split(self) -> None:
        """Give the pieces of the chosen label labels of their own."""

        def action(one: Correction) -> None:
            controller = one.controller
            scheme, value = controller.scheme, controller.active
            number = self.most_box.value()
            new = free_values(scheme, controller.labels_table.highest, number - 1)
            rules = _locks(one)

            def edit(labels: LabelArray) -> Change:
                change = islands.split(labels, value, new, rules=rules)
                made = [after for _, after in change.moved]
                if not made:
                    return change
                return change.with_schemes(scheme, with_pieces(scheme, value, made))

            self.bench.run("split", edit)

        self.bench.attempt(action)

    def fill_holes(self) -> None:
        """Fill what the chosen label encloses in three dimensions."""

        def action(one: Correction) -> None:
            controller = one.controller
            rules = _locks(one, over=frozenset({0}))
            self.bench.run("fill holes", islands.fill_holes, controller.active, rules=rules)

        self.bench.attempt(action)


class SurfaceSection(Section):
    """Grow, shrink, close and smooth by millimetres."""

    def build(self) -> None:
        """See :class:`Section`."""
        self.by_box = length_box(2.0)
        self.by_box.setToolTip("How far; for Smooth the standard deviation of the Gaussian")
        self.slices_check = QCheckBox("slice by slice")
        self.slices_check.setToolTip("In the slices as shown, none of which knows of the others")
        self.form.addRow("by", row([self.by_box, self.slices_check]))
        self.form.addRow(
            row(
                [
                    button("Grow", lambda: self.change("grow"), "Into the background alone"),
                    button("Shrink", lambda: self.change("shrink")),
                    button("Close", lambda: self.change("close"), "Gaps and dents"),
                    button("Smooth", lambda: self.change("smooth")),
                ]
            )
        )

    def change(self, name: str) -> None:
        """Do one of the four to the chosen label."""
        edits: dict[str, Callable[..., Change]] = {
            "grow": morphology.grow,
            "shrink": morphology.shrink,
            "close": morphology.close,
            "smooth": morphology.smooth,
        }

        def action(one: Correction) -> None:
            controller = one.controller
            length = {"sigma_mm" if name == "smooth" else "by_mm": self.by_box.value()}
            self.bench.run(
                name,
                edits[name],
                controller.active,
                spacing_mm=controller.spacing_mm,
                axis=slice_of(one)[0] if self.slices_check.isChecked() else None,
                rules=controller.rules(over="background"),
                **length,
            )

        self.bench.attempt(action)


class SlicesSection(Section):
    """Fill between drawn slices; copy what is drawn to the next one."""

    def build(self) -> None:
        """See :class:`Section`."""
        self.all_check = QCheckBox("all labels")
        self.all_check.setToolTip("Copy all labels, not the chosen one alone")
        self.form.addRow(
            row(
                [
                    button(
                        "Fill between drawn slices",
                        self.fill_between,
                        "The slices that are shown: draw the label in some, such as every fifth",
                    )
                ]
            )
        )
        self.form.addRow(
            row(
                [
                    button("Copy to next", lambda: self.copy(1), "And show that slice"),
                    button("to previous", lambda: self.copy(-1), "And show that slice"),
                    self.all_check,
                ]
            )
        )

    def fill_between(self) -> None:
        """Fill between the slices in which the chosen label is drawn."""

        def action(one: Correction) -> None:
            controller = one.controller
            self.bench.run(
                "fill between slices",
                between.fill_between,
                controller.active,
                axis=slice_of(one)[0],
                spacing_mm=controller.spacing_mm,
                rules=_locks(one, over=frozenset({0})),
            )

        self.bench.attempt(action)

    def copy(self, step: int) -> None:
        """Copy what is drawn in the slice shown to a neighbour, and show that one."""

        def action(one: Correction) -> None:
            controller = one.controller
            axis, index = slice_of(one)
            self.bench.run(
                "copy slice",
                logic.copy_slice,
                axis,
                index,
                index + step,
                value=None if self.all_check.isChecked() else controller.active,
                rules=_locks(one),
                then=lambda _: one.show_slice(axis, index + step),
            )

        self.bench.attempt(action)


class CombineSection(Section):
    """Operations between the chosen label and another one, of this layer or of a second one."""

    def build(self) -> None:
        """See :class:`Section`."""
        self._shown: Correction | None = None
        self.operation_box = QComboBox()
        for operation, words in (
            ("union", "add"),
            ("subtract", "take away"),
            ("intersect", "keep only what lies in"),
            ("copy", "become"),
        ):
            self.operation_box.addItem(words, operation)
        self.layer_box = QComboBox()
        self.layer_box.currentIndexChanged.connect(lambda _: self.list_labels())
        self.label_box = QComboBox()
        self.form.addRow("chosen label:", self.operation_box)
        self.form.addRow("of layer", self.layer_box)
        self.form.addRow("label", self.label_box)
        self.form.addRow(row([button("Apply", self.combine)]))

    def follow(self) -> None:
        """See :class:`Section`."""
        if self._shown is not self.bench.correction:
            self.let_go()
            self._shown = self.bench.correction
            if self._shown is not None:
                self._shown.controller.table_changed.connect(self.list_labels)
            self.list_layers()

    def let_go(self) -> None:
        """Hear no more of the correction."""
        if self._shown is not None:
            self._shown.controller.table_changed.disconnect(self.list_labels)
            self._shown = None

    def list_layers(self) -> None:
        """List the layers of labels on the same voxels; the one that is corrected comes first."""
        correction = self.bench.correction
        choices: list[tuple[str, Any]] = []
        if correction is not None:
            own = correction.layer
            choices = [("this one", own)]
            choices += [
                (one.name, one)
                for one in correction.viewer.layers
                if isinstance(one, Labels)
                and one is not own
                and not is_scribbles(one)
                and one.data.shape == own.data.shape
            ]
        _layer_boxes.fill(self.layer_box, choices, self.layer_box.currentData())
        self.list_labels()

    def list_labels(self) -> None:
        """List the labels of the layer that is chosen."""
        correction, layer = self.bench.correction, self.layer_box.currentData()
        choices: list[tuple[str, int]] = []
        if correction is not None and layer is not None:
            scheme = _scheme_of(correction, layer)
            choices = [(label.name, label.value) for label in scheme.labels]
        wanted = self.label_box.currentText()
        self.label_box.blockSignals(True)
        self.label_box.clear()
        for name, value in choices:
            self.label_box.addItem(name, value)
        self.label_box.setCurrentIndex(max(0, self.label_box.findText(wanted)))
        self.label_box.blockSignals(False)

    def combine(self) -> None:
        """Change the chosen label by the other one."""

        def action(one: Correction) -> None:
            controller = one.controller
            layer, other = self.layer_box.currentData(), self.label_box.currentData()
            own = layer is one.layer
            if other is None or (own and other == controller.active):
                raise ConfigError(
                    "operation between labels",
                    expected="two different labels",
                    found="one" if other is not None else "no second one",
                    remedy="choose another label, or another layer",
                    code="edit-same-label",
                )
            self.bench.run(
                self.operation_box.currentText(),
                logic.combine,
                controller.active,
                self.operation_box.currentData(),
                other,
                other_labels=None if own else layer.data,
                rules=_locks(one),
            )

        self.bench.attempt(action)


def _locks(correction: Correction, *, over: frozenset[int] | None = None) -> Rules:
    """What edits of whole labels may change: all but locked labels, at any intensity."""
    return Rules(correction.controller.labels_table.locked, over)


def _scheme_of(correction: Correction, layer: Any) -> LabelScheme:  # noqa: ANN401 - napari's
    """Names of the labels of a layer."""
    if layer is correction.layer:
        return correction.controller.scheme
    other = correction_of(layer)
    if other is not None:
        return other.controller.scheme
    origin = origin_of({"metadata": layer.metadata})
    known = None if origin is None else origin.scheme
    return known or plain_scheme(present_values(layer.data))
