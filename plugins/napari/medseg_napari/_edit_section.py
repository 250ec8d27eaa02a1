"""A section of the dock for corrections: folds away, and can be used while a layer is corrected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QWidget,
)
from superqt import QCollapsible

if TYPE_CHECKING:
    from collections.abc import Callable

    from medseg_napari._edit_bench import Bench

__all__ = ["Section", "button", "length_box", "row", "switch", "text"]


class Section(QCollapsible):
    """A titled part of the dock.

    Args:
        title: Of the section.
        bench: Whose correction it works on.
        is_open: Whether it is unfolded at first.
    """

    def __init__(self, title: str, bench: Bench, *, is_open: bool = False) -> None:
        super().__init__(title, expandedIcon="▾", collapsedIcon="▸")
        self.setDuration(0)
        self.bench = bench
        inside = QWidget()
        self.form = QFormLayout(inside)
        self.form.setContentsMargins(10, 0, 2, 4)
        self.form.setVerticalSpacing(4)
        self.form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self.inside = inside
        self.build()
        for box in inside.findChildren(QComboBox):
            box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setContent(inside)
        self.layout().setContentsMargins(0, 0, 0, 0)
        self.layout().setSpacing(0)
        self.collapse(animate=False)
        if is_open:
            self.expand(animate=False)
        bench.correction_changed.connect(self._follow)
        bench.busy_changed.connect(self._follow)
        self._follow()

    def build(self) -> None:
        """Put the widgets into :attr:`form`."""
        raise NotImplementedError

    def follow(self) -> None:
        """Another layer is corrected, or the bench became free or busy."""

    def _follow(self) -> None:
        self.inside.setEnabled(self.bench.is_ready)
        self.follow()


def button(title: str, clicked: Callable[[], Any], tip: str = "") -> QPushButton:
    """A button that does something."""
    made = QPushButton(title)
    made.setToolTip(tip)
    made.clicked.connect(lambda *_: clicked())
    return made


def switch(title: str, clicked: Callable[[bool], Any], tip: str = "") -> QPushButton:
    """A button that stays down."""
    made = QPushButton(title)
    made.setToolTip(tip)
    made.setCheckable(True)
    made.clicked.connect(clicked)
    return made


def length_box(value: float, *, most: float = 100.0, unit: str = " mm") -> QDoubleSpinBox:
    """A box for a length or a volume above 0."""
    box = QDoubleSpinBox()
    box.setDecimals(2)
    box.setRange(0.01, most)
    box.setSingleStep(0.5)
    box.setSuffix(unit)
    box.setValue(value)
    return box


def row(widgets: Sequence[QWidget], *, stretch: bool = True) -> QHBoxLayout:
    """Widgets side by side."""
    layout = QHBoxLayout()
    layout.setSpacing(4)
    for widget in widgets:
        layout.addWidget(widget)
    if stretch:
        layout.addStretch(1)
    return layout


def text(content: str = "") -> QLabel:
    """A text that wraps."""
    label = QLabel(content)
    label.setWordWrap(True)
    label.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label
