"""napari's labels layer under an :class:`~medseg_napari.editing.controller.EditController`.

The layer keeps its own history, keys and tools. What our tools do becomes steps of that history;
what napari's tools do is taken into ours: counted, autosaved, and taken back where it touched a
locked label. The mouse draws with our tools while one is chosen; choosing one of napari's modes
lays ours down.

Where napari has the means (0.9 and newer) only the part of the canvas that changed is drawn anew.
Nothing here knows Qt.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medseg.core import LabelScheme
from medseg.core.labelmap import present_values
from medseg.io.scan import DicomSource
from medseg_napari._layers import plain_scheme
from medseg_napari._origin import METADATA_KEY, LayerOrigin, origin_of
from medseg_napari.editing.autosave import Autosave, Recoverable, source_key
from medseg_napari.editing.boxes import LabelArray
from medseg_napari.editing.change import Change
from medseg_napari.editing.choices import Tool
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.edited_layer import check_editable
from medseg_napari.editing.history import atoms_of, change_in, change_of_atoms
from medseg_napari.editing.redraw import redraw_box
from medseg_napari.editing.table import LabelTable

__all__ = ["LayerEditing", "NapariLabels", "identity_of", "start_editing"]

_CURSORS: dict[Tool, str] = {
    "brush": "circle",
    "eraser": "circle",
    "scribble inside": "circle",
    "scribble outside": "circle",
    "fill": "cross",
    "pick": "cross",
    "point": "cross",
}

_TOOLS = ("paint", "fill", "paint_polygon", "data_setitem")
"""Methods of napari's layer that write voxels and a step of its history."""


def unwrapped(layer: Any) -> Any:  # noqa: ANN401 - napari's
    """A layer without the proxy that napari hands to plugins, which hides what is private."""
    return getattr(layer, "__wrapped__", layer)


def identity_of(origin: LayerOrigin) -> str:
    """What tells the source of a layer from all others; only ever used under a keyed hash."""
    source = origin.source
    if isinstance(source, DicomSource):
        return "\n".join(sorted(str(header.SOPInstanceUID) for header in source.datasets))
    try:
        status = source.path.stat()
        return f"{source.path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    except OSError:
        return str(source.path)


class NapariLabels:
    """A labels layer of napari as :class:`~medseg_napari.editing.edited_layer.EditedLayer`."""

    def __init__(self, layer: Any) -> None:  # noqa: ANN401 - napari's
        self.layer = unwrapped(layer)

    @property
    def data(self) -> LabelArray:
        """The layer's array."""
        labels: LabelArray = self.layer.data
        return labels

    def atoms(self, change: Change) -> list[Any]:
        """A change as a step of the layer's history."""
        layer = weakref.ref(self.layer)
        return list(atoms_of(change, lambda: layer().data))  # type: ignore[union-attr]

    def record(self, change: Change) -> None:
        """Make a change one step of the layer's history."""
        with self.layer.block_history():
            for atom in self.atoms(change):
                self.layer._save_history(atom)

    def undo(self) -> Change | None:
        """Undo by the layer's own means."""
        return self._replay(self.layer._undo_history, type(self.layer).undo)

    def redo(self) -> Change | None:
        """Redo by the layer's own means."""
        return self._replay(self.layer._redo_history, type(self.layer).redo)

    def _replay(self, history: Sequence[Any], replay: Callable[[Any], None]) -> Change | None:
        if not history:
            return None
        change = change_in(history[-1])
        replay(self.layer)
        return Change() if change is None else change

    def redraw(self, change: Change) -> None:
        """Draw what a change touched, if it is in view."""
        box = change.box
        if box is None:
            return
        redraw_box(self.layer, box)

    def recolour(self, labels: LabelTable) -> None:
        """Colour the layer as the table says, and keep the table with the layer for saving."""
        self.layer.colormap = labels.colours()
        origin = origin_of({"metadata": self.layer.metadata})
        if origin is not None:
            self.layer.metadata[METADATA_KEY] = dataclasses.replace(origin, scheme=labels.scheme)


class LayerEditing:
    """Our tools on one labels layer of a viewer.

    Args:
        layer: napari's labels layer.
        controller: Made on :class:`NapariLabels` of that layer.
        autosave: Kept along; closed together with this.
    """

    def __init__(
        self,
        layer: Any,  # noqa: ANN401 - napari's
        controller: EditController,
        autosave: Autosave | None = None,
    ) -> None:
        self.layer = unwrapped(layer)
        self.controller = controller
        self.autosave = autosave
        self._native = NapariLabels(self.layer)
        self._array = self.layer.data
        self._setting = False
        self._held: tuple[Any, Any] | None = None
        self._take_in_history()
        self.layer.undo, self.layer.redo = controller.undo, controller.redo
        for name in _TOOLS:
            if hasattr(self.layer, name):
                setattr(self.layer, name, self._grouped(getattr(self.layer, name)))
        self.layer.mouse_drag_callbacks.append(self._on_drag)
        self.layer.events.paint.connect(self._on_paint)
        self.layer.events.mode.connect(self._on_mode)
        self.layer.events.selected_label.connect(self._on_selected)
        self.layer.events.data.connect(self._on_data)
        controller.chosen.connect(self._on_chosen)
        self._native.recolour(controller.labels_table)
        self._on_chosen("active")

    def close(self) -> None:
        """Give the layer back as it was, with its history; the autosave stays if not saved."""
        self.let_go()
        self.controller.end_stroke()
        self.controller.tool = "none"
        self.controller.chosen.disconnect(self._on_chosen)
        for name in ("undo", "redo", *_TOOLS):
            self.layer.__dict__.pop(name, None)
        self.layer.mouse_drag_callbacks.remove(self._on_drag)
        self.layer.events.paint.disconnect(self._on_paint)
        self.layer.events.mode.disconnect(self._on_mode)
        self.layer.events.selected_label.disconnect(self._on_selected)
        self.layer.events.data.disconnect(self._on_data)
        if self.autosave is not None:
            self.autosave.close()

    def saved(self) -> None:
        """The labels were saved: nothing is unsaved, and the autosave is deleted."""
        self.controller.saved()
        if self.autosave is not None:
            self.autosave.saved()

    def recover(self, autosaved: Recoverable) -> None:
        """Put back what an earlier process had not saved, as one undo step, and discard it there.

        Raises:
            FormatError: ``recovery-damaged``.
            ShapeError: ``edit-labels`` if it is of another shape.
            ConfigError: ``edit-labels-range`` if it holds higher values than this layer can.
        """
        content = autosaved.load()
        self.controller.replace_labels(content.labels, content.scheme, name="recover")
        if content.effort is not None:
            self.controller.effort.restore(content.effort)
        if self.autosave is not None and self.autosave.flush():
            autosaved.discard()

    def hold(self) -> None:
        """Let nothing be drawn or undone until :meth:`let_go`; the history is kept.

        napari empties the history of a layer that is not editable.
        """
        if self._held is None:
            self._held = (self.layer._undo_history, self.layer._redo_history)
            self.layer.editable = False

    def let_go(self) -> None:
        """Let the layer be drawn on again, with the history it had."""
        if self._held is not None:
            self.layer._undo_history, self.layer._redo_history = self._held
            self._held = None
            self.layer.editable = True

    # ---- the mouse

    def _on_drag(self, layer: Any, event: Any) -> Iterator[None]:  # noqa: ANN401, ARG002 - napari's
        controller = self.controller
        if controller.tool == "none" or event.button != 1:
            return
        at_vox, axis = self._place(event)
        if at_vox is None:
            return
        controller.press(at_vox, axis)
        yield
        while event.type == "mouse_move":
            at_vox, _ = self._place(event)
            if at_vox is not None:
                controller.drag(at_vox)
            yield
        controller.end_stroke()

    def _place(self, event: Any) -> tuple[list[float] | None, int | None]:  # noqa: ANN401
        """Where the mouse is, in voxels, and the axis across the slice that is shown."""
        shown = [axis - (len(event.position) - 3) for axis in event.dims_displayed]
        if len(shown) == 2:
            (axis,) = {0, 1, 2} - {*shown}
            at = [float(place) for place in self.layer.world_to_data(event.position)][-3:]
            at[axis] = float(np.round(at[axis]))
            return at, axis
        start, end = self.layer.get_ray_intersections(
            event.position, event.view_direction, event.dims_displayed, world=True
        )
        if start is None or end is None:
            return None, None
        return self._first_label(np.asarray(start), np.asarray(end)), None

    def _first_label(self, start: Any, end: Any) -> list[float] | None:  # noqa: ANN401
        """The first voxel with a visible label on a ray through the layer."""
        labels = self.controller.labels
        steps = math.ceil(2 * float(np.abs(end - start).max())) + 1
        points = np.floor(np.linspace(start, end, steps) + 0.5).astype(int)
        points = points[((points >= 0) & (points < labels.shape)).all(axis=1)]
        values = labels[tuple(points.T)]
        visible = np.flatnonzero(~np.isin(values, [0, *self.controller.labels_table.hidden]))
        return points[visible[0]].astype(float).tolist() if visible.size else None

    # ---- what napari reports

    def _grouped(self, tool: Callable[..., None]) -> Callable[..., None]:
        """A tool of napari that reports its step when the voxels are written, not just before."""

        def call(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - napari's
            if self.layer._block_history:
                tool(*args, **kwargs)
                return
            with self.layer.block_history():
                tool(*args, **kwargs)

        return call

    def _take_in_history(self) -> None:
        """Read the steps that were made before; their order within a redo step is turned round."""
        for history, order in (
            (self.layer._undo_history, 1),
            (self.layer._redo_history, -1),
        ):
            for step in history:
                change = change_of_atoms(step[::order], self.controller.labels)
                if change is not None and change_in(step) is None:
                    step[:] = self._native.atoms(change)[::order]

    def _on_paint(self, event: Any) -> None:  # noqa: ANN401 - napari's
        """A step was made in the layer's history, by us or by one of napari's tools."""
        step = event.value
        if change_in(step) is not None:
            return
        change = change_of_atoms(step, self.controller.labels)
        if change is None:
            self.controller.recount()
            return
        locked = np.zeros(self.controller.labels_table.counts.size, dtype=bool)
        locked[list(self.controller.labels_table.locked)] = True
        kept, refused = change.split(locked)
        if refused:
            refused.revert(self.controller.labels)
            self._native.redraw(refused)
        kept = self.controller.with_new_labels(kept)
        history = self.layer._undo_history
        if kept:
            step[:] = self._native.atoms(kept)
            self.controller.followed(kept)
        elif history and history[-1] is step:
            history.pop()

    def _on_mode(self, event: Any = None) -> None:  # noqa: ANN401, ARG002
        if str(self.layer.mode) != "pan_zoom" and not self._setting:
            self.controller.tool = "none"

    def _on_selected(self, event: Any = None) -> None:  # noqa: ANN401, ARG002
        value = int(self.layer.selected_label)
        if value in self.controller.scheme.values and value != self.controller.active:
            self.controller.active = value

    def _on_data(self, event: Any = None) -> None:  # noqa: ANN401, ARG002
        if self.layer.data is not self._array:
            self._array = self.layer.data
            self.controller.recount()

    # ---- what the controller reports

    def _on_chosen(self, name: str) -> None:
        controller, layer = self.controller, self.layer
        if name == "active" and layer.selected_label != controller.active:
            layer.selected_label = controller.active
        if name == "tool":
            self._setting = True
            drawing = controller.tool != "none"
            if drawing:
                layer.mode = "pan_zoom"
            layer.mouse_pan = not drawing and str(layer.mode) == "pan_zoom"
            if drawing or str(layer.mode) == "pan_zoom":
                layer.cursor = _CURSORS.get(controller.tool, "standard")
            self._setting = False
        if name in ("tool", "brush_mm") and layer.cursor == "circle":
            layer.cursor_size = controller.brush_mm


def start_editing(
    layer: Any,  # noqa: ANN401 - napari's
    *,
    scheme: LabelScheme | None = None,
    made: Any = "MANUAL",  # noqa: ANN401 - see EditController
    autosave: bool = True,
    image_origin: LayerOrigin | None = None,
) -> LayerEditing:
    """Put our tools on a labels layer.

    A layer of a wider type than uint16, as New Labels may make it, is turned into uint8 or uint16
    if its values allow.

    Args:
        layer: The layer; three axes, in memory.
        scheme: Names and colours; None for those that medseg read with the layer, or plain ones.
        made: How the labels came about, see :class:`EditController`.
        autosave: Whether to save in the background.
        image_origin: Of the image under the labels, for a layer that medseg did not read.

    Raises:
        FormatError: ``edit-array`` if the layer cannot be edited.
        ResourceError: ``output-unwritable`` if the recovery folder cannot be made.
    """
    layer = unwrapped(layer)
    _narrow(layer)
    check_editable(layer.data)
    origin = origin_of({"metadata": layer.metadata}) or image_origin
    if scheme is None:
        known = origin.scheme if origin is not None else None
        scheme = known or plain_scheme(present_values(layer.data))
    volume_mm3 = origin.grid.voxel_volume_mm3 if origin is not None else None
    spacing_mm = [abs(float(step)) for step in layer.scale[-3:]]
    controller = EditController(
        NapariLabels(layer), scheme, spacing_mm, made=made, voxel_volume_mm3=volume_mm3
    )
    saver = None
    if autosave:
        identity = identity_of(origin) if origin is not None else f"labels {layer.data.shape}"
        saver = Autosave(controller, source_key(identity))
    return LayerEditing(layer, controller, saver)


def _narrow(layer: Any) -> None:  # noqa: ANN401 - napari's
    data = layer.data
    if not isinstance(data, np.ndarray) or data.ndim != 3 or data.dtype.kind not in "iu":
        return
    if data.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)) or not data.size:
        return
    low, high = int(data.min()), int(data.max())
    if low >= 0 and high <= 65535:
        layer.data = data.astype(np.uint8 if high <= 255 else np.uint16)
