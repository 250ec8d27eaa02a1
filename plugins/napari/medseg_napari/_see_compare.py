"""The part of *See it* that compares labels while they are edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from napari.layers import Labels
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from medseg_napari._difference_layer import COLOURS, difference_settings
from medseg_napari._layer_boxes import fill, narrow_box
from medseg_napari._words import dice_in_words, ml_in_words
from medseg_napari._worker import Listening, start_worker
from medseg_napari.viewing.comparing import (
    PAIRS,
    ROLES,
    CompareController,
    Pair,
    Update,
    steps,
)
from medseg_napari.viewing.comparison import Comparison
from medseg_napari.viewing.edits import LabelEdits
from medseg_napari.viewing.sides import Chosen

__all__ = ["CompareSection"]

_AFTER_MS = 250
_NOBODY = "-"
_REFERENCE_WORDS = ("reference", "expert", "truth", "manual", "ground")
_SHORT = {"corrected": "corr.", "model": "model", "reference": "ref."}


class CompareSection(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Choose labels, see how they agree and where they differ.

    Args:
        viewer: napari's viewer.
    """

    changed = Signal()
    """There are new figures, or none any more."""

    def __init__(self, viewer: Any) -> None:  # noqa: ANN401 - napari's
        super().__init__()
        self._viewer = viewer
        self.controller = CompareController()
        self._edits: list[LabelEdits] = []
        self._difference: Any = None
        self._is_busy = False
        self._is_closed = False
        self._hd95: dict[str, float] = {}
        self._worker: Any = None
        self._build()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_AFTER_MS)
        self._timer.timeout.connect(self.refresh)
        self._listening = Listening(self, self.close_section)
        events = viewer.layers.events
        self._listening.to(events.inserted, self._layers_changed)
        self._listening.to(events.removed, self._layers_changed)
        self._layers_changed()

    def _build(self) -> None:
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        self.boxes = {role: narrow_box() for role in ROLES}
        for role, box in self.boxes.items():
            box.currentIndexChanged.connect(self._chosen)
            form.addRow(role, box)
        self.boxes["model"].setToolTip(
            "What the model gave: a layer, or the corrected labels as they came"
        )
        self.pair_box = narrow_box()
        self.pair_box.currentIndexChanged.connect(self._pair_changed)
        form.addRow("shown", self.pair_box)
        self.difference_check = QCheckBox("difference")
        self.difference_check.toggled.connect(self._show_difference)
        self.hd95_button = QPushButton("HD95")
        self.hd95_button.setToolTip(
            "95th percentile of the Hausdorff distance, in mm; takes longer"
        )
        self.hd95_button.clicked.connect(self.measure_hd95)
        self.again_button = QPushButton("Count again")
        self.again_button.setToolTip("Needed only where a script wrote to the labels")
        self.again_button.clicked.connect(self.count_again)
        buttons = QHBoxLayout()
        buttons.addWidget(self.difference_check)
        buttons.addStretch(1)
        buttons.addWidget(self.hd95_button)
        buttons.addWidget(self.again_button)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.table = QTableWidget(0, 0)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.verticalHeader().setVisible(False)
        self.message = QLabel()
        self.message.setWordWrap(True)
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.legend)
        layout.addWidget(self.table)
        layout.addWidget(self.message)
        self.setLayout(layout)

    # ---- layers

    def _layers_changed(self, event: Any = None) -> None:  # noqa: ANN401 - napari's
        if self._is_closed:
            return
        if event is not None and event.type == "inserted":
            self._listening.to(event.value.events.name, self._layers_changed)
            if not isinstance(event.value, Labels):
                return
        if self._difference is not None and self._difference not in self._viewer.layers:
            self._difference = None
            self.difference_check.setChecked(False)
        layers = [layer for layer in self._viewer.layers if isinstance(layer, Labels)]
        before = {role: box.currentData() for role, box in self.boxes.items()}
        begins = all(one is None for one in before.values())
        for role, box in self.boxes.items():
            choices: list[tuple[str, Chosen | None]] = [(_NOBODY, None)]
            choices += [(layer.name, Chosen(layer)) for layer in layers]
            if role == "model":
                choices += [
                    (one.name, one)
                    for one in (Chosen(layer, as_it_came=True) for layer in layers)
                    if one.origin is not None and one.origin.beginning is not None
                ]
            wanted = next((one for _, one in choices if _is_same(one, before[role])), None)
            if begins and len(layers) > 1 and role != "model":
                wanted = _likely(role, [one for _, one in choices if one is not None])
            fill(box, [*choices], wanted)
        after = {role: box.currentData() for role, box in self.boxes.items()}
        if any(not _is_same(after[role], before[role]) for role in ROLES):
            self._chosen()

    def _chosen(self, index: int = 0) -> None:  # noqa: ARG002 - Qt's
        """Other layers are to be compared."""
        self._unwatch()
        chosen = {role: box.currentData() for role, box in self.boxes.items()}
        self._hd95 = {}
        self.controller.choose(chosen)
        if not self.controller.pairs:
            self._drop_difference()
        for role, one in self.controller.chosen.items():
            if not one.as_it_came:
                self._edits.append(LabelEdits(one.layer, self._marker(role)))
        pairs = self.controller.pairs
        wanted = self.pair_box.currentData()
        names = [(f"{first} against {second}", (first, second)) for first, second in pairs]
        same = next((pair for pair in pairs if pair == wanted), None)
        fill(self.pair_box, names, same)
        self._show()
        self.changed.emit()
        self.refresh()

    def _marker(self, role: str) -> Callable[[Any], None]:
        def mark(box: Any) -> None:  # noqa: ANN401 - a box or None
            self.controller.mark(role, box)
            self._timer.start()

        return mark

    def _unwatch(self) -> None:
        for edits in self._edits:
            edits.close()
        self._edits = []

    @property
    def layer(self) -> Any:  # noqa: ANN401 - napari's
        """The corrected labels, else whichever are chosen, selected or on top; None without any."""
        for role in ROLES:
            one = self.boxes[role].currentData()
            if one is not None and one.layer in self._viewer.layers:
                return one.layer
        active = self._viewer.layers.selection.active
        if isinstance(active, Labels):
            return active
        seen = [one for one in self._viewer.layers if isinstance(one, Labels) and one.visible]
        return seen[-1] if seen else None

    # ---- figures

    @property
    def pair(self) -> Pair | None:
        """What is shown."""
        data = self.pair_box.currentData()
        return None if data is None else tuple(data)

    @property
    def comparison(self) -> Comparison | None:
        """Of what is shown, once it is there."""
        return None if self.pair is None else self.controller.comparisons.get(self.pair)

    def count_again(self) -> None:
        """Read all labels again."""
        self.controller.choose(self.controller.chosen)
        self.refresh()

    def refresh(self) -> None:
        """Bring the figures up to date, in the background."""
        if self._is_busy or self._is_closed:
            return
        if not self.controller.is_due:
            self._show()
            return
        self._is_busy = True
        task = self.controller.begin()

        def work() -> Iterator[Update]:
            yield from steps(task)

        self._worker = start_worker(work, yielded=self._yielded, finished=self._finished)

    def _yielded(self, update: Update) -> None:
        if self._is_closed:
            return
        if self.controller.take(update):
            self._hd95 = {}
            self._draw_difference()
            self._show()
            self.changed.emit()
        elif update.message:
            self._show()

    def _finished(self) -> None:
        self._is_busy = False
        if self.controller.is_due:
            self.refresh()

    def measure_hd95(self) -> None:
        """Measure the distances of the pair that is shown, in the background."""
        comparison = self.comparison
        if comparison is None or self._is_busy:
            return
        self._is_busy = True
        self.hd95_button.setEnabled(False)
        self.message.setText("Measuring distances...")

        def work() -> Iterator[tuple[Comparison, dict[str, float]]]:
            yield comparison, {one.name: mm for one, mm in comparison.hd95_mm().items()}

        start_worker(work, yielded=self._measured, finished=self._measuring_done)

    def _measured(self, given: tuple[Comparison, dict[str, float]]) -> None:
        comparison, distances = given
        if comparison is self.comparison and not self._is_closed:
            self._hd95 = distances
            self._show()

    def _measuring_done(self) -> None:
        self.message.setText(self.controller.message)
        self.hd95_button.setEnabled(self.comparison is not None)
        self._finished()

    def _show(self) -> None:
        """Write the table."""
        pairs, shown = self.controller.pairs, self.pair
        rows = self.controller.rows()
        heads = ["structure", *(f"Dice\n{_SHORT[a]}/{_SHORT[b]}" for a, b in pairs)]
        heads += ["ml\nmore"] + (["HD95\nmm"] if self._hd95 else [])
        self.table.setVisible(bool(rows))
        self.table.setColumnCount(len(heads))
        self.table.setHorizontalHeaderLabels(heads)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.setRowCount(len(rows))
        for place, row in enumerate(rows):
            name = QTableWidgetItem(row.name)
            name.setData(Qt.ItemDataRole.DecorationRole, QColor(*row.rgb))
            name.setToolTip(row.name)
            cells = [name]
            for pair in pairs:
                one = row.agreements.get(pair)
                dice = math.nan if one is None else one.dice
                cells.append(QTableWidgetItem("" if math.isnan(dice) else dice_in_words(dice)))
            of_shown = None if shown is None else row.agreements.get(shown)
            more = "" if of_shown is None else ml_in_words(of_shown.difference_ml, signed=True)
            cells.append(QTableWidgetItem(more))
            if self._hd95:
                mm = self._hd95.get(row.name)
                cells.append(QTableWidgetItem("" if mm is None else f"{mm:.1f}"))
            for column, cell in enumerate(cells):
                self.table.setItem(place, column, cell)
        height = self.table.horizontalHeader().height() + 4
        height += sum(self.table.rowHeight(row) for row in range(min(len(rows), 8)))
        self.table.setFixedHeight(height)
        there = self.comparison is not None
        for widget in (self.hd95_button, self.again_button, self.difference_check):
            widget.setEnabled(there)
        self.legend.setText(_legend(shown) if there else "")
        self.legend.setVisible(there)
        self._tell()

    def _tell(self) -> None:
        message = self.controller.message
        if not message and len(self.controller.chosen) < 2:
            message = "Choose two or three labels layers on one grid."
        self.message.setText(message)
        self.message.setStyleSheet("color: #d08a2c;" if self.controller.message else "")

    # ---- the difference

    def _pair_changed(self, index: int = 0) -> None:  # noqa: ARG002 - Qt's
        self._hd95 = {}
        self._draw_difference()
        self._show()
        self.changed.emit()

    def _show_difference(self, shown: bool) -> None:
        if shown:
            self._draw_difference()
        elif self._difference is not None:
            self._difference.visible = False  # to take a layer away costs napari half a second

    def _draw_difference(self) -> None:
        comparison = self.comparison
        if not self.difference_check.isChecked() or comparison is None or self.layer is None:
            return
        name = f"{comparison.first.name} against {comparison.second.name}"
        if self._difference is None:
            active = self._viewer.layers.selection.active
            self._difference = self._viewer.add_image(
                comparison.difference, **difference_settings(name, self.layer)
            )
            if active is not None:
                self._viewer.layers.selection = {active}
            return
        if self._difference.data is comparison.difference:
            self._difference.refresh(thumbnail=False, highlight=False, extent=False)
        else:
            self._difference.data = comparison.difference
            self._difference.name = name
        self._difference.visible = True

    def _drop_difference(self) -> None:
        layer, self._difference = self._difference, None
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    @property
    def difference_layer(self) -> Any:  # noqa: ANN401 - napari's
        """The layer that shows where they differ, if it is there."""
        return self._difference

    def close_section(self) -> None:
        """Let go of the layers."""
        self._is_closed = True
        self._unwatch()
        if self._is_busy and self._worker is not None:
            self._worker.quit()


def _is_same(one: Chosen | None, other: Chosen | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.layer is other.layer and one.as_it_came == other.as_it_came


def _likely(role: str, choices: list[Chosen]) -> Chosen | None:
    """The reference is known by its name; the corrected labels are the topmost others."""
    named = [one for one in choices if any(w in one.name.lower() for w in _REFERENCE_WORDS)]
    if role == "reference":
        return named[0] if len(named) == 1 else None
    others = [one for one in choices if one not in named] if len(named) == 1 else choices
    return others[-1] if others else None


def _legend(pair: Pair | None) -> str:
    if pair not in PAIRS:
        return ""
    first, second = pair
    words = {1: f"only {first}", 2: f"only {second}", 3: "different labels"}
    return "&nbsp; ".join(
        f'<span style="color: rgb{tuple(round(255 * c) for c in COLOURS[code])}">&#9632;</span>'
        f"&nbsp;{text}"
        for code, text in words.items()
    )
