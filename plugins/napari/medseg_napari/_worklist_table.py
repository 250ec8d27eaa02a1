"""The cases of a work list as a table of Qt, however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt
from qtpy.QtGui import QBrush, QColor

from medseg_napari._worklist import Column

if TYPE_CHECKING:
    from medseg_napari._worklist import WorkCase

__all__ = ["COLUMNS", "CaseTable"]

COLUMNS: tuple[Column, ...] = get_args(Column)
_COLOURS = {
    "accepted": QColor(86, 170, 110),
    "corrected": QColor(86, 150, 215),
    "rejected": QColor(215, 110, 80),
}
_NOWHERE = QModelIndex()


class CaseTable(QAbstractTableModel):  # type: ignore[misc] # Qt is untyped here
    """Shows a list of cases; who is told by :attr:`sorted_by` puts it in order."""

    def __init__(self, parent: Any) -> None:  # noqa: ANN401 - a Qt object
        super().__init__(parent)
        self.cases: list[WorkCase] = []
        self.current: int | None = None
        self.sorted_by: Any = None

    def show(self, cases: list[WorkCase], current: int | None) -> None:
        """Show other cases.

        Args:
            cases: In their order.
            current: Number of the one that is open; None for none.
        """
        self.beginResetModel()
        self.cases, self.current = cases, current
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = _NOWHERE) -> int:  # noqa: N802 - Qt's
        """As many as there are cases."""
        return 0 if parent.isValid() else len(self.cases)

    def columnCount(self, parent: QModelIndex = _NOWHERE) -> int:  # noqa: N802 - Qt's
        """Name, state, doubt, review."""
        return 0 if parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Any, role: int = 0) -> Any:  # noqa: ANN401, N802
        """The words above the columns."""
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return COLUMNS[section]
        return None

    def data(self, index: QModelIndex, role: int = 0) -> Any:  # noqa: ANN401 - what Qt asks for
        """A cell."""
        if not index.isValid() or index.row() >= len(self.cases):
            return None
        case, column = self.cases[index.row()], COLUMNS[index.column()]
        if role == Qt.ItemDataRole.DisplayRole:
            return _text(case, column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return _tip(case)
        if role == Qt.ItemDataRole.ForegroundRole and column == "review" and case.review:
            colour = _COLOURS.get(case.review.state)
            return None if colour is None or not case.is_reviewed else QBrush(colour)
        if role == Qt.ItemDataRole.FontRole and case.number == self.current:
            font = self.parent().font()
            font.setBold(True)
            return font
        return None

    def sort(self, column: int, order: Any = Qt.SortOrder.AscendingOrder) -> None:  # noqa: ANN401
        """A heading was pressed."""
        if self.sorted_by is not None:
            self.sorted_by(COLUMNS[column], order == Qt.SortOrder.DescendingOrder)


def _text(case: WorkCase, column: Column) -> str:
    if column == "case":
        return case.row.name
    if column == "state":
        return f"{case.row.state}: {case.row.code}" if case.row.code else case.row.state
    if column == "doubt":
        return "" if case.doubt is None else f"{case.doubt.entropy:.3f}  {case.doubt.structure}"
    return case.review_text


def _tip(case: WorkCase) -> str:
    lines = [case.row.name]
    if case.reason:
        lines.append(case.reason)
    if case.doubt is not None:
        lines.append(f"mean entropy {case.doubt.entropy:.3f} in {case.doubt.structure}")
    if case.review is not None and case.review.note:
        lines.append(case.review.note)
    return "\n".join(lines)
