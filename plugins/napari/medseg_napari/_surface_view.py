"""A canvas with the surface of labels, built in the background and kept up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels
from napari.qt import QtViewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from medseg.core.labelmap import present_values
from medseg_napari._origin import origin_of
from medseg_napari._worker import start_worker
from medseg_napari.editing.boxes import Box
from medseg_napari.viewing.edits import LabelEdits
from medseg_napari.viewing.surfaces import LabelSurface, Mesh, joined, label_surface

__all__ = ["SurfaceView"]

_ALL = "all labels"
_AFTER_MS = 1500
_QUICK_S = 3.0
"""A surface that took longer is made anew on request alone, not after every edit."""


class SurfaceView(QWidget):  # type: ignore[misc] # Qt is untyped here
    """The surface of one label, or of all, of the labels that are looked at.

    Args:
        viewer: napari's viewer.
        labels: Which labels layer; None for the topmost visible one.
    """

    def __init__(self, viewer: Any, labels: Callable[[], Any] | None = None) -> None:  # noqa: ANN401
        super().__init__()
        self._viewer = viewer
        self._find = labels
        self.model = ViewerModel(title="surface", ndisplay=3)
        self.widget = QtViewer(self.model)
        self.widget.setAcceptDrops(False)
        self.widget.dims.hide()
        self.box = QComboBox()
        self.box.currentIndexChanged.connect(self.refresh)
        self.button = QPushButton("Update")
        self.button.setToolTip("The surface follows edits where it takes less than 3 s to make")
        self.button.clicked.connect(self.refresh)
        self.message = QLabel()
        bar = QHBoxLayout()
        bar.setContentsMargins(4, 2, 4, 0)
        bar.addWidget(QLabel("surface of"))
        bar.addWidget(self.box, 1)
        bar.addWidget(self.button)
        bar.addWidget(self.message)
        layout = QVBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(bar)
        layout.addWidget(self.widget, 1)
        self.setLayout(layout)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_AFTER_MS)
        self._timer.timeout.connect(self.refresh)
        self._edits: LabelEdits | None = None
        self._layer: Any = None
        self._surface: Any = None
        self._task = 0
        self._is_busy = False
        self._is_due = False
        self._took_s = 0.0
        self._is_closed = False
        self._worker: Any = None
        self._was_turned = False

    # ---- which labels

    def _labels_layer(self) -> Any:  # noqa: ANN401 - napari's
        layer = None if self._find is None else self._find()
        if layer is not None and layer in self._viewer.layers:
            return layer
        found = [one for one in self._viewer.layers if isinstance(one, Labels) and one.visible]
        return found[-1] if found else None

    def _watch(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        if layer is self._layer:
            return
        if self._edits is not None:
            self._edits.close()
            self._edits = None
        self._layer = layer
        if layer is not None:
            self._edits = LabelEdits(layer, self._edited)

    def _edited(self, box: Box | None) -> None:  # noqa: ARG002 - any change counts
        if self._took_s <= _QUICK_S:
            self._timer.start()
        else:
            self.message.setText("older than the labels")

    # ---- making it

    def refresh(self, *ignored: Any) -> None:  # noqa: ANN401, ARG002 - Qt's
        """Make the surface anew, in the background; once more where one is being made."""
        if self._is_closed:
            return
        try:
            layer = self._labels_layer()
        except RuntimeError:  # the window is being closed
            return
        self._watch(layer)
        if layer is None or layer.data.ndim != 3:
            self._show(None)
            self.message.setText("no labels")
            return
        if self._is_busy:
            self._is_due = True
            return
        self._is_busy = True
        self._task += 1
        self.message.setText("...")
        data, scale = np.asarray(layer.data), [float(step) for step in layer.scale]
        chosen, task = self.box.currentData(), self._task
        began = time.perf_counter()

        def steps() -> Iterator[tuple[int, str, Any]]:
            values = [value for value in present_values(data) if value]
            yield task, "values", values
            surfaces = []
            for value in values if chosen is None or chosen not in values else [chosen]:
                surface = label_surface(data, value, scale)
                if surface is not None:
                    surfaces.append(surface)
                yield task, "part", None
            yield task, "done", (surfaces, time.perf_counter() - began)

        self._worker = start_worker(steps, yielded=self._yielded, finished=self._finished)

    def _yielded(self, given: tuple[int, str, Any]) -> None:
        task, kind, content = given
        if self._is_closed or task != self._task:
            return
        if kind == "values":
            self._list(content)
        elif kind == "done":
            surfaces, self._took_s = content
            self._show(self._mesh(surfaces))
            self.message.setText("" if surfaces else "no labels")

    def _finished(self) -> None:
        self._is_busy = False
        if self._is_due:
            self._is_due = False
            self.refresh()

    def _list(self, values: list[int]) -> None:
        """Offer the labels that there are, by name."""
        origin = None if self._layer is None else origin_of({"metadata": self._layer.metadata})
        scheme = None if origin is None else origin.scheme
        names = {} if scheme is None else {one.value: one.name for one in scheme.labels}
        wanted = self.box.currentData()
        self.box.blockSignals(True)
        self.box.clear()
        self.box.addItem(_ALL, None)
        for value in values:
            self.box.addItem(names.get(value, f"label {value}"), value)
        self.box.setCurrentIndex(max(0, self.box.findData(wanted)) if wanted else 0)
        self.box.blockSignals(False)

    def _mesh(self, surfaces: list[LabelSurface]) -> Mesh | None:
        if self._layer is None:
            return None
        return joined(surfaces, [self._layer.get_color(one.value) for one in surfaces])

    def _show(self, mesh: Mesh | None) -> None:
        if mesh is None or self._layer is None:
            if self._surface is not None:
                self._surface.visible = False
            return
        vertices = mesh.vertices_mm + np.asarray(self._layer.translate, dtype=np.float32)
        data = (vertices, mesh.faces, np.ones(len(vertices), np.float32))
        if self._surface is None:
            self._surface = self.model.add_surface(
                data, vertex_colors=mesh.colours, shading="smooth", name="surface"
            )
        else:  # a layer less costs napari half a second; colours must be as many as vertices
            self._surface.vertex_colors = None
            self._surface.data = data
            self._surface.vertex_colors = mesh.colours
            self._surface.visible = True
        if not self._was_turned:
            self._was_turned = True
            self.look_from_the_front()

    def look_from_the_front(self) -> None:
        """Head up, the patient's right on the left."""
        scene = getattr(self.model, "scene", None)
        camera = self.model.camera if scene is None else scene.camera
        camera.set_view_direction((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
        self.model.reset_view(reset_camera_angle=False)

    def close_view(self) -> None:
        """Let go of the labels and of the canvas."""
        self._is_closed = True
        self._watch(None)
        if self._is_busy and self._worker is not None:
            self._worker.quit()
        with suppress(RuntimeError):  # where the window goes too
            self._timer.stop()
            self.widget.close()
