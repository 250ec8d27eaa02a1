"""Asks which series of a study to open, with a picture of each."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QDialog,
    QDialogButtonBox,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from medseg_napari._series import (
    LabelEntry,
    SeriesEntry,
    StudyContents,
    default_choice,
    thumbnail_of,
)

__all__ = ["SeriesChooser", "ask"]

_SIDE = 96


class SeriesChooser(QDialog):  # type: ignore[misc] # Qt is untyped here
    """A list of series; one or several can be chosen.

    Args:
        contents: What to choose from.
        parent: The window that it belongs to.
    """

    def __init__(self, contents: StudyContents, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._contents = contents
        self._entries: list[SeriesEntry | LabelEntry] = [*contents.series, *contents.labels]
        self.setWindowTitle("medseg: which series?")
        self.resize(560, 520)
        self.list = QListWidget()
        self.list.setIconSize(QSize(_SIDE, _SIDE))
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.list.setSpacing(3)
        blank = QPixmap(_SIDE, _SIDE)
        blank.fill(Qt.GlobalColor.black)
        for entry in self._entries:
            item = QListWidgetItem(QIcon(blank), f"{entry.title}\n{entry.details}")
            if not entry.is_readable:
                item.setFlags(Qt.ItemFlag.NoItemFlags)
            self.list.addItem(item)
        first = default_choice(contents)[:1]
        for entry in first:
            self.list.item(self._entries.index(entry)).setSelected(True)
        buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Open | QDialogButtonBox.StandardButton.Cancel
        )
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        self.list.itemDoubleClicked.connect(lambda _: self.accept())
        layout = QVBoxLayout()
        layout.addWidget(QLabel("Choose one, or several with Ctrl or Shift:"))
        layout.addWidget(self.list)
        layout.addWidget(buttons)
        self.setLayout(layout)
        self._next = 0
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._draw_next)
        self._timer.start(0)

    def chosen(self) -> Sequence[SeriesEntry | LabelEntry]:
        """What is selected, in order."""
        return [entry for n, entry in enumerate(self._entries) if self.list.item(n).isSelected()]

    def _draw_next(self) -> None:
        """One picture at a time, so that the list answers meanwhile."""
        if self._next >= len(self._entries):
            self._timer.stop()
            return
        entry = self._entries[self._next]
        if isinstance(entry, SeriesEntry) and entry.is_readable:
            self.list.item(self._next).setIcon(QIcon(_pixmap(thumbnail_of(entry, self._contents))))
        self._next += 1


def ask(contents: StudyContents) -> Sequence[SeriesEntry | LabelEntry]:
    """Show the chooser; nothing is returned if the user closes it."""
    napari = sys.modules.get("napari")
    viewer = napari.current_viewer() if napari is not None else None
    parent = viewer.window._qt_window if viewer is not None else QApplication.activeWindow()
    dialog = SeriesChooser(contents, parent)
    accepted = dialog.exec() == QDialog.DialogCode.Accepted
    chosen = dialog.chosen() if accepted else []
    dialog.deleteLater()
    return chosen


def _pixmap(greys: np.ndarray) -> QPixmap:
    square = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    rows, columns = greys.shape
    top, left = (_SIDE - rows) // 2, (_SIDE - columns) // 2
    square[top : top + rows, left : left + columns] = greys
    image = QImage(square.tobytes(), _SIDE, _SIDE, _SIDE, QImage.Format.Format_Grayscale8)
    return QPixmap.fromImage(image)
