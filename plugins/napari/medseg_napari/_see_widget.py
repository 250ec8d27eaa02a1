"""The dock to look with: planes, brightness, comparison, doubt, keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg_napari._four_views import ORDERS, FourViews, camera_of, show_plane
from medseg_napari._letters import WindowLetters
from medseg_napari._see_brightness import BrightnessSection, OverlaySection
from medseg_napari._see_compare import CompareSection
from medseg_napari._see_doubt import DoubtSection
from medseg_napari._worker import Listening
from medseg_napari.viewing.doubt import RankedSlice
from medseg_napari.viewing.keys import KEYS, keys_in_words

__all__ = ["SeeDock"]


class SeeDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Look at images and labels; compare them; find what needs a second look.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Any) -> None:  # noqa: ANN401 - napari's
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.views: FourViews | None = None
        self.brightness = BrightnessSection(self._viewer)
        self.overlay = OverlaySection(self._viewer)
        self.compare = CompareSection(self._viewer)
        self.doubt = DoubtSection(
            self._viewer, lambda: self.compare.layer, lambda: self.compare.comparison, self._go
        )
        self.compare.changed.connect(self.doubt.compared)
        self._build()
        self._bound: list[tuple[str, Callable[[Any], None]]] = []
        self._bind_keys()
        self._listening = Listening(self, self._gone)
        self.letters = WindowLetters(self._viewer, camera_of(self._viewer), self._listening)

    def _build(self) -> None:
        planes = QHBoxLayout()
        for plane in ORDERS:
            button = QPushButton(plane)
            button.clicked.connect(lambda *_, plane=plane: self.show_plane(plane))
            planes.addWidget(button)
        self.views_button = QPushButton("four (F8)")
        self.views_button.setCheckable(True)
        self.views_button.clicked.connect(self._views_clicked)
        planes.addWidget(self.views_button)
        inside = QVBoxLayout()
        inside.addWidget(_group("Planes", planes))
        inside.addWidget(_group("Brightness", self.brightness))
        inside.addWidget(_group("Labels", self.overlay))
        inside.addWidget(_group("Compare", self.compare))
        inside.addWidget(_group("Doubtful slices", self.doubt))
        self.keys = QLabel(_table_of_keys())
        self.keys.setTextFormat(Qt.TextFormat.RichText)
        self.keys.setWordWrap(True)
        inside.addWidget(_group("Keys and mouse", self.keys))
        inside.addStretch(1)
        notice = QLabel(NOTICE)
        notice.setWordWrap(True)
        inside.addWidget(notice)
        content = QWidget()
        content.setLayout(inside)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        scroll.setMinimumWidth(content.minimumSizeHint().width() + 24)
        outside = QVBoxLayout()
        outside.setContentsMargins(0, 0, 0, 0)
        outside.addWidget(scroll)
        self.setLayout(outside)

    # ---- keys

    def _calls(self) -> list[tuple[str, Callable[[], None]]]:
        return [(key.press, getattr(self, key.action)) for key in KEYS]

    def _bind_keys(self) -> None:
        for press, call in self._calls():

            def pressed(viewer: Any, call: Callable[[], None] = call) -> None:  # noqa: ANN401, ARG001
                call()

            self._viewer.bind_key(press, pressed, overwrite=True)
            self._bound.append((press, pressed))

    def _unbind_keys(self) -> None:
        bound = {id(call) for _, call in self._bound}
        keymap = self._viewer.keymap
        for press in [press for press, call in keymap.items() if id(call) in bound]:
            del keymap[press]
        self._bound.clear()

    # ---- planes and views

    def show_plane(self, plane: str) -> None:
        """Turn the window's canvas to a plane."""
        show_plane(self._viewer, plane)

    def show_axial(self) -> None:
        """Axial slices."""
        self.show_plane("axial")

    def show_coronal(self) -> None:
        """Coronal slices."""
        self.show_plane("coronal")

    def show_sagittal(self) -> None:
        """Sagittal slices."""
        self.show_plane("sagittal")

    def _views_clicked(self, shown: bool) -> None:
        if shown != (self.views is not None):
            self.toggle_views()

    def toggle_views(self) -> None:
        """Four linked views, or the one canvas."""
        if self.views is None:
            self.letters.want(False)  # each of the four has its own
            self.views = FourViews(self._viewer, self._calls(), lambda: self.compare.layer)
            for model in self.views.models:
                self.brightness.mouse.attach(model)
        else:
            for model in self.views.models:
                self.brightness.mouse.detach(model)
            self.views.close()
            self.views = None
            self.letters.want(True)
        self.views_button.setChecked(self.views is not None)

    # ---- brightness and labels

    def toggle_mouse_window(self) -> None:
        """The right button for brightness, or for zoom."""
        self.brightness.mouse_check.toggle()

    def toggle_contour(self) -> None:
        """Labels as outlines, or filled."""
        self.overlay.outline_check.toggle()

    def toggle_difference(self) -> None:
        """Show the difference, or take it away."""
        if self.compare.difference_check.isEnabled():
            self.compare.difference_check.toggle()

    # ---- doubt

    def next_doubtful(self) -> None:
        """Go to the next doubtful slice."""
        self.doubt.step(1)

    def previous_doubtful(self) -> None:
        """Go back to the doubtful slice before."""
        self.doubt.step(-1)

    def _go(self, one: RankedSlice, voxel: tuple[int, int, int] | None, layer: Any) -> None:  # noqa: ANN401
        """Show a slice; with four views the cursor goes to where the doubt is."""
        before = self._viewer.dims.ndim - 3
        at = [0.0, 0.0, 0.0] if voxel is None else [float(place) for place in voxel]
        at[one.axis] = float(one.index)
        place = [float(mm) for mm in layer.data_to_world(at)]
        if self.views is not None and voxel is not None and not before:
            self.views.move_to(place)
        else:
            self._viewer.dims.set_point(one.axis + before, place[one.axis])

    # ---- the end

    def _gone(self) -> None:
        """The dock was closed: the window is as it was."""
        with suppress(RuntimeError, ValueError):
            self._unbind_keys()
            self.letters.close()
            if self.views is not None:
                self.views.close()
                self.views = None


def _group(title: str, content: Any) -> QGroupBox:  # noqa: ANN401 - a layout or a widget of Qt
    box = QGroupBox(title)
    if isinstance(content, QWidget):
        layout = QVBoxLayout()
        layout.addWidget(content)
    else:
        layout = content
    layout.setContentsMargins(6, 4, 6, 4)
    box.setLayout(layout)
    return box


def _table_of_keys() -> str:
    rows = "".join(
        f'<tr><td style="padding-right: 10px"><b>{press}</b></td><td>{words}</td></tr>'
        for press, words in keys_in_words()
    )
    return f"<table>{rows}</table>"
