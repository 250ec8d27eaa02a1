"""Axial, coronal and sagittal slices and a surface, side by side, with one cursor.

The window's own canvas becomes one of four; the others have a model each, with twins of the
window's layers. Closed, the window is as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from napari.components import ViewerModel
from napari.layers import Labels
from napari.qt import QtViewer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QSplitter

from medseg_napari._cross import Cross
from medseg_napari._letters import Letters, has_sides
from medseg_napari._surface_view import SurfaceView
from medseg_napari._twins import Twin, can_have_twin

__all__ = ["ORDERS", "FourViews", "camera_of", "show_plane"]

ORDERS = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Which axis a plane is across, which runs down and which to the right, of I, P, L."""

_CLICK_PX = 3.0
_FIT_AFTER_MS = 50  # when the canvases have their sizes
_NDIM = 3


def camera_of(model: Any) -> Any:  # noqa: ANN401 - napari's
    """The camera of a viewer, as napari 0.9 keeps it and as earlier ones do."""
    scene = getattr(model, "scene", None)
    return model.camera if scene is None else scene.camera


def show_plane(model: Any, plane: str) -> None:  # noqa: ANN401 - napari's
    """Turn a viewer to one of :data:`ORDERS`."""
    dims = model.dims
    before = dims.ndim - _NDIM
    if before < 0:
        return
    dims.ndisplay = 2
    dims.order = (*range(before), *(axis + before for axis in ORDERS[plane]))
    model.reset_view()


class _Pane:
    """One canvas: the window's, or one of ours with its twins."""

    def __init__(self, model: Any, canvas: Any) -> None:  # noqa: ANN401 - napari's
        self.model = model
        self.cross = Cross(canvas)
        self.letters = Letters(canvas)
        self.seen: tuple[float, ...] = tuple(model.dims.point)
        self.twins: dict[int, Twin] = {}

    def axes_in_doubt(self) -> list[int]:
        """Axes whose position changed since it was last looked at."""
        point = tuple(self.model.dims.point)
        moved = [axis for axis, (a, b) in enumerate(zip(point, self.seen, strict=False)) if a != b]
        self.seen = point
        return moved


class FourViews:
    """Three linked planes and a surface.

    Args:
        viewer: napari's viewer with a window.
        keys: What is pressed to what is called, for the new canvases.
        labels: Which labels the surface is of; asked when it is made.
    """

    def __init__(
        self,
        viewer: Any,  # noqa: ANN401 - napari's
        keys: Sequence[tuple[str, Callable[[], None]]] = (),
        labels: Callable[[], Any] | None = None,
    ) -> None:
        self.viewer = getattr(viewer, "__wrapped__", viewer)
        self._main: QtViewer = self.viewer.window._qt_viewer
        self._before = (self.viewer.dims.order, self.viewer.dims.ndisplay)
        self._is_moving = False
        self._is_open = True
        self._callbacks: list[tuple[Any, Any]] = []
        self.widgets: dict[str, QtViewer] = {}
        self.panes: dict[str, _Pane] = {}
        for plane in ("coronal", "sagittal"):
            model = ViewerModel(title=plane)
            widget = QtViewer(model)
            widget.setAcceptDrops(False)
            self.widgets[plane] = widget
            self.panes[plane] = _Pane(model, widget.canvas)
        self.surface = SurfaceView(self.viewer, labels)
        self.panes["axial"] = _Pane(self.viewer, self._main.canvas)
        self._cross_in_surface = Cross(self.surface.widget.canvas)
        self._arrange()
        self.point = tuple(self.viewer.dims.point)
        for layer in self.viewer.layers:
            self._add(layer)
        self._listen_to_layers()
        show_plane(self.viewer, "axial")
        for plane, pane in self.panes.items():
            self._begin(plane, pane, keys)
        self._active_changed()
        self.move_to(self.point)
        QTimer.singleShot(0, self.surface.refresh)
        QTimer.singleShot(_FIT_AFTER_MS, self.fit)

    @property
    def models(self) -> list[Any]:
        """The models of the canvases that are new: coronal, sagittal."""
        return [pane.model for pane in self._ours()]

    # ---- layout

    def _arrange(self) -> None:
        """The window's canvas goes into a grid within the same window, so that it is not reborn."""
        centre = self._main.parentWidget()
        self.grid = QSplitter(Qt.Orientation.Vertical, centre)
        self._rows = [QSplitter(Qt.Orientation.Horizontal, self.grid) for _ in range(2)]
        centre.layout().addWidget(self.grid)
        self._rows[0].addWidget(self._main)
        self._rows[0].addWidget(self.surface)
        self._rows[1].addWidget(self.widgets["coronal"])
        self._rows[1].addWidget(self.widgets["sagittal"])
        self._level()
        for row, other in (self._rows, self._rows[::-1]):
            row.splitterMoved.connect(lambda *_, row=row, other=other: other.setSizes(row.sizes()))

    def _level(self) -> None:
        for splitter in (self.grid, *self._rows):
            splitter.setSizes([1_000_000, 1_000_000])
            for number in range(2):
                splitter.setStretchFactor(number, 1)
                splitter.setCollapsible(number, False)

    def _begin(
        self, plane: str, pane: _Pane, keys: Sequence[tuple[str, Callable[[], None]]]
    ) -> None:
        model = pane.model
        if plane != "axial":
            show_plane(model, plane)
            for press, call in keys:
                model.bind_key(press, _ignoring(call), overwrite=True)
        self._listen(model.dims.events.point, lambda _: self._scrolled(pane))
        self._listen(model.dims.events.order, lambda _: self.move_to(self.point))
        self._listen(model.dims.events.ndisplay, lambda _: self.move_to(self.point))
        model.mouse_drag_callbacks.append(self._clicked)
        model.mouse_move_callbacks.append(self._moved)

    def _listen(self, emitter: Any, callback: Any) -> None:  # noqa: ANN401 - napari's
        emitter.connect(callback)
        self._callbacks.append((emitter, callback))

    # ---- layers

    def _listen_to_layers(self) -> None:
        events = self.viewer.layers.events
        self._listen(events.inserted, lambda event: self._inserted(event.value))
        self._listen(events.removed, lambda event: self._removed(event.value))
        self._listen(events.reordered, lambda _: self._sort())
        self._listen(self.viewer.layers.selection.events.active, self._active_changed)

    def _ours(self) -> Iterator[_Pane]:
        return (pane for plane, pane in self.panes.items() if plane != "axial")

    def _add(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        if not can_have_twin(layer):
            return
        for pane in self._ours():
            twin = Twin(layer)
            pane.twins[id(layer)] = twin
            pane.model.layers.append(twin.layer)

    def _inserted(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        was_empty = not any(pane.twins for pane in self._ours())
        self._add(layer)
        self._sort()
        if was_empty:  # only now there are planes
            for plane, pane in self.panes.items():
                show_plane(pane.model, plane)
        self._active_changed()
        self.move_to(self.viewer.dims.point if was_empty else self.point)
        self._make_surface(layer)

    def _make_surface(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        """Labels came or went: the surface may be of others."""
        if isinstance(layer, Labels):
            QTimer.singleShot(0, self.surface.refresh)

    def _removed(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        for pane in self._ours():
            twin = pane.twins.pop(id(layer), None)
            if twin is not None:
                twin.close()
                with suppress(ValueError):
                    pane.model.layers.remove(twin.layer)
        self._make_surface(layer)

    def _sort(self) -> None:
        for pane in self._ours():
            wanted = [
                pane.twins[id(layer)].layer
                for layer in self.viewer.layers
                if id(layer) in pane.twins
            ]
            for place, layer in enumerate(wanted):
                now = pane.model.layers.index(layer)
                if now != place:
                    pane.model.layers.move(now, place)

    def _active_changed(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        active = self.viewer.layers.selection.active
        for pane in self._ours():
            twin = pane.twins.get(id(active))
            pane.model.layers.selection = set() if twin is None else {twin.layer}

    # ---- the cursor

    def move_to(self, point: Sequence[float]) -> None:
        """Put the common cursor somewhere, in world coordinates along the viewer's axes."""
        if self._is_moving or not self._is_open:
            return
        self._is_moving = True
        try:
            self.point = tuple(float(place) for place in point)
            ranges = [(one[0], one[1]) for one in self.viewer.dims.range]
            for pane in self.panes.values():
                dims = pane.model.dims
                if dims.ndim != len(self.point):
                    continue
                for axis in dims.not_displayed:
                    dims.set_point(axis, self.point[axis])
                pane.seen = tuple(dims.point)
                pane.cross.move(self.point, ranges, dims.displayed)
                self._write_letters(pane)
            if len(self.point) == _NDIM:
                self._cross_in_surface.move(self.point, ranges, (0, 1, 2))
        finally:
            self._is_moving = False

    def _write_letters(self, pane: _Pane) -> None:
        displayed = pane.model.dims.displayed
        ours = pane.model.dims.ndim == _NDIM and has_sides(self.viewer.layers)
        pane.letters.show(displayed, visible=ours)

    def _scrolled(self, pane: _Pane) -> None:
        if self._is_moving:
            return
        moved = pane.axes_in_doubt()
        place = list(self.point)
        point = pane.model.dims.point
        if len(place) != len(point):
            place = list(point)
        for axis in moved:
            place[axis] = point[axis]
        if moved:
            self.move_to(place)

    def _clicked(self, model: Any, event: Any) -> Iterator[None]:  # noqa: ANN401 - napari's
        """A click moves the cursor, a drag goes on moving the image."""
        active = model.layers.selection.active
        if event.button != 1 or event.modifiers or model.dims.ndisplay != 2:
            return
        if active is not None and not active.mouse_pan:
            return  # something is painted with
        start = event.pos
        yield
        while event.type == "mouse_move":
            yield
        if sum(abs(a - b) for a, b in zip(event.pos, start, strict=True)) <= _CLICK_PX:
            self._to_event(event)

    def _moved(self, model: Any, event: Any) -> None:  # noqa: ANN401 - napari's
        if model is not self.viewer and len(event.position) == self.viewer.dims.ndim:
            # what is done under the pointer asks the window's viewer where that is
            self.viewer.cursor.position = tuple(event.position)
        if "Shift" in event.modifiers and model.dims.ndisplay == 2:
            self._to_event(event)

    def _to_event(self, event: Any) -> None:  # noqa: ANN401 - napari's
        ranges = self.viewer.dims.range
        if len(event.position) == len(ranges):
            self.move_to(
                [
                    min(max(at, one[0]), one[1])
                    for at, one in zip(event.position, ranges, strict=True)
                ]
            )

    # ---- the end

    @property
    def is_open(self) -> bool:
        """Whether the views are there."""
        return self._is_open

    def close(self) -> None:
        """Take the views away; the window is as it was. A second time does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        for emitter, callback in self._callbacks:
            with suppress(ValueError, KeyError):
                emitter.disconnect(callback)
        self._callbacks.clear()
        for pane in self.panes.values():
            pane.model.mouse_drag_callbacks.remove(self._clicked)
            pane.model.mouse_move_callbacks.remove(self._moved)
            for twin in pane.twins.values():
                twin.close()
            pane.twins.clear()
        with suppress(RuntimeError):  # where the window goes too
            self._restore()

    def _restore(self) -> None:
        self.panes["axial"].cross.close()
        self.panes["axial"].letters.close()
        self.surface.close_view()
        self.grid.parentWidget().layout().addWidget(self._main)
        for widget in self.widgets.values():
            widget.close()
        self.grid.hide()
        self.grid.setParent(None)
        self.grid.deleteLater()
        order, ndisplay = self._before
        if len(order) == self.viewer.dims.ndim:
            self.viewer.dims.order = order
        self.viewer.dims.ndisplay = ndisplay
        QTimer.singleShot(_FIT_AFTER_MS, self.fit)

    def fit(self) -> None:
        """Show the whole image in every view."""
        with suppress(RuntimeError, KeyError):  # where the window is gone
            for pane in self.panes.values():
                if self._is_open or pane.model is self.viewer:
                    pane.model.reset_view()
            for widget in self.widgets.values():
                _uncut_names(widget.dims)


def _uncut_names(dims: Any) -> None:  # noqa: ANN401 - napari's
    """Let the names of the axes be read whole.

    napari allows them a fifth of the first slider's width, which is that of a hidden one here.
    """
    first = next(iter(getattr(dims, "slider_widgets", ())), None)
    if first is not None and not first.isVisibleTo(dims):
        first.resize(dims.width(), first.height())
        dims._resize_axis_labels()


def _ignoring(call: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _: call()
