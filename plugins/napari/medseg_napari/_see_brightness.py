"""The part of *See it* that sets how bright an image is and how labels are drawn over it."""

from __future__ import annotations

from typing import Any

from napari.layers import Image, Labels
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from medseg_napari._display import Window
from medseg_napari._layer_boxes import fill, is_ours, narrow_box
from medseg_napari._mouse_window import MouseWindow, window_shown
from medseg_napari._origin import origin_of
from medseg_napari._worker import Listening
from medseg_napari.viewing.windows import unit_of, window_choices

__all__ = ["BrightnessSection", "OverlaySection"]

_OTHER = "other"
_FAR = 1e9
_LEAST_WIDTH = 1e-6


class BrightnessSection(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Presets, centre and width of an image, and the mouse as a knob for both.

    Args:
        viewer: napari's viewer.
    """

    def __init__(self, viewer: Any) -> None:  # noqa: ANN401 - napari's
        super().__init__()
        self._viewer = viewer
        self._choices: dict[str, Window] = {}
        self._watched: Any = None
        self._is_setting = False
        self.mouse = MouseWindow(lambda: self.image)
        self.mouse.attach(viewer)
        self.image_box = narrow_box()
        self.preset_box = narrow_box()
        self.centre = _number(-_FAR)
        self.width_box = _number(_LEAST_WIDTH)
        self.unit = QLabel()
        self.mouse_check = QCheckBox("right mouse button sets it (W)")
        self.mouse_check.setToolTip(
            "Hold the right button: to the right widens, upwards raises the centre.\n"
            "Switched off, it zooms as elsewhere in napari."
        )
        numbers = QHBoxLayout()
        for text, box in (("centre", self.centre), ("width", self.width_box)):
            numbers.addWidget(QLabel(text))
            numbers.addWidget(box, 1)
        numbers.addWidget(self.unit)
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("image", self.image_box)
        form.addRow("window", self.preset_box)
        form.addRow(numbers)
        form.addRow(self.mouse_check)
        self.setLayout(form)
        self.image_box.currentIndexChanged.connect(self._image_changed)
        self.preset_box.activated.connect(self._preset_chosen)
        self.centre.valueChanged.connect(self._number_changed)
        self.width_box.valueChanged.connect(self._number_changed)
        self.mouse_check.toggled.connect(self._mouse_toggled)
        self._listening = Listening(self, self.close_section)
        self._listening.to(viewer.layers.events.inserted, self._layers_changed)
        self._listening.to(viewer.layers.events.removed, self._layers_changed)
        self._listening.to(viewer.layers.selection.events.active, self._active_changed)
        self._layers_changed()

    @property
    def image(self) -> Any:  # noqa: ANN401 - napari's
        """The image whose brightness is set; None without one."""
        image = self.image_box.currentData()
        return image if image is not None and image in self._viewer.layers else None

    def _layers_changed(self, event: Any = None) -> None:  # noqa: ANN401 - napari's
        if event is not None and event.type == "inserted":
            self._listening.to(event.value.events.name, self._layers_changed)
        images = [layer for layer in self._viewer.layers if is_ours(layer)]
        wanted = self.image_box.currentData()
        if not any(layer is wanted for layer in images):
            seen = [layer for layer in images if layer.visible]
            wanted = (seen or images or [None])[-1]
        fill(self.image_box, [(layer.name, layer) for layer in images], wanted)
        self._image_changed()

    def _active_changed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        if isinstance(event.value, Image) and is_ours(event.value):
            for place in range(self.image_box.count()):
                if self.image_box.itemData(place) is event.value:
                    self.image_box.setCurrentIndex(place)

    def _image_changed(self, index: int = 0) -> None:  # noqa: ARG002 - Qt's
        image = self.image
        if image is not None and image is self._watched:
            return
        self._unwatch()
        self._watched = image
        self._choices = {}
        self.preset_box.clear()
        for widget in (self.preset_box, self.centre, self.width_box, self.mouse_check):
            widget.setEnabled(image is not None)
        if image is None:
            return
        origin = origin_of({"metadata": image.metadata})
        assert origin is not None  # noqa: S101 - no other layers are listed
        self._choices = dict(window_choices(image.data, origin.source))
        self.unit.setText(unit_of(image.data, origin.source))
        self.preset_box.addItems([*self._choices, _OTHER])
        image.events.contrast_limits.connect(self._show)
        self._show()

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._watched.events.contrast_limits.disconnect(self._show)
            self._watched = None

    def _show(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        image = self.image
        if image is None:
            return
        window = window_shown(image)
        self._is_setting = True
        for box, value in ((self.centre, window.centre), (self.width_box, window.width)):
            decimals = 0 if window.width >= 100 else 1 if window.width >= 10 else 3
            box.setDecimals(decimals)
            box.setSingleStep(max(10.0**-decimals, window.width / 20))
            box.setValue(value)
        near = 1e-3 * window.width
        same = [
            name
            for name, one in self._choices.items()
            if abs(one.centre - window.centre) < near and abs(one.width - window.width) < near
        ]
        # a preset has the better name where the image opened with it
        self.preset_box.setCurrentText(same[-1] if same else _OTHER)
        self._is_setting = False

    # ---- what the user does

    def choose(self, preset: str) -> None:
        """Look at the image with a preset, by its name."""
        image = self.image
        if image is not None and preset in self._choices:
            image.contrast_limits = self._choices[preset].limits

    @property
    def presets(self) -> tuple[str, ...]:
        """Names of the presets of the image."""
        return tuple(self._choices)

    def _preset_chosen(self, index: int) -> None:
        self.choose(self.preset_box.itemText(index))

    def _number_changed(self, value: float = 0.0) -> None:  # noqa: ARG002 - Qt's
        image = self.image
        if image is not None and not self._is_setting and self.width_box.value() > 0:
            image.contrast_limits = Window(self.centre.value(), self.width_box.value()).limits

    def _mouse_toggled(self, on: bool) -> None:
        self.mouse.is_on = on

    def close_section(self) -> None:
        """Let go of the image and of the mouse."""
        self._unwatch()
        self.mouse.detach()


class OverlaySection(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Outlines or filled, and how opaque: for all labels layers.

    Args:
        viewer: napari's viewer.
    """

    def __init__(self, viewer: Any) -> None:  # noqa: ANN401 - napari's
        super().__init__()
        self._viewer = viewer
        self.outline_check = QCheckBox("outlines (U)")
        self.thickness = QSpinBox()
        self.thickness.setRange(1, 9)
        self.thickness.setSuffix(" voxel")
        self.opacity = QSlider(Qt.Orientation.Horizontal)
        self.opacity.setRange(0, 100)
        self.opacity.setValue(70)
        line = QHBoxLayout()
        line.addWidget(self.outline_check)
        line.addWidget(self.thickness)
        line.addStretch(1)
        form = QFormLayout()
        form.addRow("opacity", self.opacity)
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(line)
        layout.addLayout(form)
        self.setLayout(layout)
        self.outline_check.toggled.connect(self._outline_changed)
        self.thickness.valueChanged.connect(self._outline_changed)
        self.opacity.valueChanged.connect(self._opacity_changed)
        self._listening = Listening(self)
        self._listening.to(viewer.layers.events.inserted, self._inserted)

    def _labels(self) -> list[Any]:
        return [layer for layer in self._viewer.layers if isinstance(layer, Labels)]

    def _inserted(self, event: Any) -> None:  # noqa: ANN401 - napari's
        if isinstance(event.value, Labels) and self.outline_check.isChecked():
            event.value.contour = self.thickness.value()

    def _outline_changed(self, value: int = 0) -> None:  # noqa: ARG002 - Qt's
        width = self.thickness.value() if self.outline_check.isChecked() else 0
        for layer in self._labels():
            layer.contour = width

    def _opacity_changed(self, percent: int) -> None:
        for layer in self._labels():
            layer.opacity = percent / 100


def _number(least: float) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(least, _FAR)
    box.setKeyboardTracking(False)
    return box
