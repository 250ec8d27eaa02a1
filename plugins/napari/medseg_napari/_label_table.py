"""The table of the labels that are corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QHBoxLayout,
    QHeaderView,
    QMenu,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from medseg_napari._words import ml_in_words

if TYPE_CHECKING:
    from medseg_napari._edit_bench import Bench
    from medseg_napari._edit_session import Correction
    from medseg_napari.editing.table import TableRow

__all__ = ["LabelTableView"]

COLOUR, NAME, SHOWN, LOCKED, VOLUME = range(5)
_TITLES = ("", "label", "show", "lock", "ml")
_CHECKED = {True: Qt.CheckState.Checked, False: Qt.CheckState.Unchecked}
_VALUE = Qt.ItemDataRole.UserRole
_FLAGS = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
_ROWS_SEEN = 7


class LabelTableView(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Colours, names, visibility, locks and volumes; the chosen row is the label to draw with.

    Args:
        bench: Whose correction is shown.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench
        self._shown: Correction | None = None
        self._filling = False
        self.table = QTableWidget(0, len(_TITLES))
        self.table.setHorizontalHeaderLabels(list(_TITLES))
        self.table.verticalHeader().setVisible(False)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.table.setToolTip(
            "Click a colour to change it, double-click a name to change it.\n"
            "The background can be locked too: then no label grows into it."
        )
        self.table.setStyleSheet("QTableWidget::indicator:unchecked { border: 1px solid #8a8d93; }")
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.table.cellClicked.connect(self._clicked)
        self.table.itemChanged.connect(self._changed)
        self.table.itemSelectionChanged.connect(self._selected)
        self.add_button = QPushButton("Add")
        self.add_button.clicked.connect(self.add)
        self.remove_button = QPushButton("Remove")
        self.remove_button.setToolTip("Take the label and its voxels away")
        self.remove_button.clicked.connect(self.remove)
        self.rename_button = QPushButton("Rename")
        self.rename_button.clicked.connect(self._edit_name)
        self.merge_button = QPushButton("Merge into")
        self.merge_menu = QMenu(self)
        self.merge_menu.aboutToShow.connect(self._fill_merge_menu)
        self.merge_button.setMenu(self.merge_menu)
        self.colour_dialog: QColorDialog | None = None
        self._arrange()
        bench.correction_changed.connect(self._other_correction)
        bench.busy_changed.connect(self._enable)
        self._other_correction()

    def _arrange(self) -> None:
        buttons = QHBoxLayout()
        for button in (self.add_button, self.remove_button, self.rename_button, self.merge_button):
            buttons.addWidget(button)
        buttons.addStretch(1)
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.table)
        layout.addLayout(buttons)
        self.setLayout(layout)

    # ---- following the controller

    def _other_correction(self) -> None:
        self.let_go()
        self._shown = self._bench.correction
        if self._shown is not None:
            self._shown.controller.table_changed.connect(self.refresh)
            self._shown.controller.chosen.connect(self._chosen)
        self.refresh()
        self._enable()

    def let_go(self) -> None:
        """Hear no more of the correction that is shown."""
        if self._shown is not None:
            self._shown.controller.table_changed.disconnect(self.refresh)
            self._shown.controller.chosen.disconnect(self._chosen)
            self._shown = None

    def _enable(self) -> None:
        self.setEnabled(self._bench.is_ready)

    def refresh(self) -> None:
        """Show the label table as it is."""
        rows = [] if self._shown is None else self._shown.controller.labels_table.rows()
        self._filling = True
        try:
            count = len(rows) + 1 if rows else 0
            if self.table.rowCount() != count:
                self.table.setRowCount(count)
            if self._shown is not None:
                locked = self._shown.controller.labels_table.locked
                self._fill_background(0 in locked)
            for number, row in enumerate(rows, start=1):
                self._fill_row(number, row)
        finally:
            self._filling = False
        self._fit_height(len(rows) + 1)
        self._select_active()

    def _fit_height(self, count: int) -> None:
        """As many rows as there are, but not so many that the tools go out of sight."""
        row = self.table.verticalHeader().defaultSectionSize()
        shown = min(max(count, 3), _ROWS_SEEN)
        height = self.table.horizontalHeader().sizeHint().height() + shown * row + 4
        self.table.setFixedHeight(height)

    def _fill_background(self, locked: bool) -> None:
        texts = {NAME: "background"}
        for column in range(len(_TITLES)):
            item = self._item(0, column, 0)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled)
            _set_text(item, texts.get(column, ""))
        self._check(0, LOCKED, locked)

    def _fill_row(self, number: int, row: TableRow) -> None:
        value = row.label.value
        for column in range(len(_TITLES)):
            self._item(number, column, value).setFlags(_FLAGS)
        self._item(number, COLOUR, value).setData(
            Qt.ItemDataRole.DecorationRole, QColor(*row.label.rgb)
        )
        name = self._item(number, NAME, value)
        name.setFlags(_FLAGS | Qt.ItemFlag.ItemIsEditable)
        _set_text(name, row.label.name)
        name.setToolTip(f"value {value}, {row.voxels} voxels")
        self._check(number, SHOWN, row.visible)
        self._check(number, LOCKED, row.locked)
        volume = self._item(number, VOLUME, value)
        _set_text(volume, ml_in_words(row.volume_ml))
        volume.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def _item(self, row: int, column: int, value: int) -> QTableWidgetItem:
        item = self.table.item(row, column)
        if item is None:
            item = QTableWidgetItem()
            self.table.setItem(row, column, item)
        item.setData(_VALUE, value)
        return item

    def _check(self, row: int, column: int, checked: bool) -> None:
        item = self.table.item(row, column)
        item.setFlags(item.flags() | Qt.ItemFlag.ItemIsUserCheckable)
        item.setCheckState(_CHECKED[checked])

    def _chosen(self, name: str) -> None:
        if name == "active":
            self._select_active()

    def _select_active(self) -> None:
        if self._shown is None:
            return
        row = self.row_of(self._shown.controller.active)
        if row is not None and self.table.currentRow() != row:
            self._filling = True
            self.table.selectRow(row)
            self._filling = False

    def row_of(self, value: int) -> int | None:
        """The row of a label; that of the background for 0."""
        for row in range(self.table.rowCount()):
            if self.table.item(row, NAME).data(_VALUE) == value:
                return row
        return None

    # ---- what the user does

    def _selected(self) -> None:
        if self._filling or self._shown is None:
            return
        chosen = self.table.selectedItems()
        value = chosen[0].data(_VALUE) if chosen else 0
        if value:
            self._shown.controller.active = value

    def _changed(self, item: QTableWidgetItem) -> None:
        if self._filling or self._shown is None:
            return
        value, column = item.data(_VALUE), item.column()
        controller = self._shown.controller
        checked = item.checkState() == Qt.CheckState.Checked
        if column == SHOWN:
            controller.show(value, checked)
        elif column == LOCKED:
            controller.lock(value, checked)
        elif column == NAME:
            self.rename(value, item.text())

    def rename(self, value: int, name: str) -> bool:
        """Give a label another name; whether it has it."""
        done = self._bench.attempt(lambda one: one.controller.rename_label(value, name.strip()))
        if not done:
            self.refresh()
        return done

    def _edit_name(self) -> None:
        row = self.table.currentRow()
        if row > 0:
            self.table.editItem(self.table.item(row, NAME))

    def _clicked(self, row: int, column: int) -> None:
        value = self.table.item(row, NAME).data(_VALUE)
        if column == COLOUR and value:
            self.ask_colour(value)

    def ask_colour(self, value: int) -> None:
        """Open the dialog for the colour of a label; it blocks nothing."""
        if self._shown is None:
            return
        rgb = self._shown.controller.scheme.by_value(value).rgb
        dialog = QColorDialog(QColor(*rgb), self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setOption(QColorDialog.ColorDialogOption.DontUseNativeDialog)
        dialog.colorSelected.connect(lambda colour: self._recolour(value, colour))
        self.colour_dialog = dialog
        dialog.open()

    def _recolour(self, value: int, colour: QColor) -> None:
        rgb = (colour.red(), colour.green(), colour.blue())
        self._bench.attempt(lambda one: one.controller.recolour_label(value, rgb))

    def add(self) -> None:
        """Add a label and choose it."""
        self._bench.attempt(lambda one: f"Added {one.controller.add_label().name}")

    def remove(self) -> None:
        """Take the chosen label and its voxels away."""

        def action(one: Correction) -> str:
            label = one.controller.scheme.by_value(one.controller.active)
            one.controller.remove_label(label.value)
            return f"Removed {label.name}; undo brings it back"

        self._bench.attempt(action)

    def merge_into(self, into: int) -> None:
        """Give the voxels of the chosen label to another one."""

        def action(one: Correction) -> str:
            label = one.controller.scheme.by_value(one.controller.active)
            one.controller.merge_labels(label.value, into)
            one.controller.active = into
            return f"Merged {label.name} into {one.controller.scheme.by_value(into).name}"

        self._bench.attempt(action)

    def _fill_merge_menu(self) -> None:
        self.merge_menu.clear()
        if self._shown is None:
            return
        controller = self._shown.controller
        for label in controller.scheme.labels:
            if label.value != controller.active:
                action = self.merge_menu.addAction(label.name)
                action.triggered.connect(lambda *_, value=label.value: self.merge_into(value))


def _set_text(item: QTableWidgetItem, text: str) -> None:
    if item.text() != text:
        item.setText(text)
