"""The part of *Run a model* that says which part of the image is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.layers import Shapes
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QWidget

from medseg_napari._layer_boxes import fill, index_of, narrow_box

__all__ = ["RegionBox"]

_WHOLE = "whole image"


class RegionBox(QWidget):  # type: ignore[misc] # Qt is untyped here
    """The whole image or a shapes layer, and a button that makes one to draw a rectangle in.

    Args:
        viewer: napari's viewer.
        image: The image that a region is of; None where there is none.
    """

    changed = Signal()
    """Another layer was chosen, or the shapes in it are others."""

    def __init__(self, viewer: Any, image: Callable[[], Any]) -> None:  # noqa: ANN401 - napari's
        super().__init__()
        self._viewer = viewer
        self._image = image
        self._watched: Any = None
        self.box = narrow_box()
        self.box.setToolTip(
            "The part to look at: rectangles of a shapes layer.\n"
            "A rectangle on one slice reaches through all slices;\n"
            "two on different slices reach from the one to the other."
        )
        self.button = QPushButton("Draw...")
        self.button.setToolTip("Then draw a rectangle in the image with the mouse")
        self.button.clicked.connect(self.draw)
        layout = QHBoxLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.box, 1)
        layout.addWidget(self.button)
        self.setLayout(layout)
        self.box.currentIndexChanged.connect(self._chosen)

    def list_layers(self) -> None:
        """List the shapes layers that there are."""
        shapes = [layer for layer in self._viewer.layers if isinstance(layer, Shapes)]
        choices = [(_WHOLE, None), *((one.name, one) for one in shapes)]
        fill(self.box, choices, self.box.currentData())
        self._watch()

    @property
    def shapes(self) -> Any:  # noqa: ANN401 - napari's
        """The layer that is chosen; None for the whole image."""
        return self.box.currentData()

    def mark(self) -> tuple[Any, ...]:
        """What is equal as long as the region is the same."""
        shapes = self.shapes
        if shapes is None:
            return ()
        return (id(shapes), *(points.tobytes() for points in shapes.data))

    def draw(self) -> None:
        """Make a layer to draw in, in the image's units, with the rectangle tool in hand."""
        image = self._image()
        if image is None:
            return
        layer = Shapes(
            ndim=image.ndim,
            name="region",
            units=image.units,
            axis_labels=image.axis_labels,
            face_color="transparent",
            edge_color="yellow",
            edge_width=float(min(image.scale)),
        )
        self._viewer.add_layer(layer)
        self._viewer.layers.selection = {layer}
        layer.mode = "add_rectangle"
        self.box.setCurrentIndex(index_of(self.box, layer))

    def _chosen(self, index: int = 0) -> None:  # noqa: ARG002 - Qt's
        self._watch()
        self.changed.emit()

    def _watch(self) -> None:
        shapes = self.shapes
        if shapes is self._watched:
            return
        self.let_go()
        self._watched = shapes
        if shapes is not None:
            shapes.events.data.connect(self._drawn)

    def _drawn(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        self.changed.emit()

    def let_go(self) -> None:
        """Hear no more of the shapes."""
        if self._watched is not None:
            self._watched.events.data.disconnect(self._drawn)
            self._watched = None
