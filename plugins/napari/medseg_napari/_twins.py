"""A second layer on the same voxels, for a second canvas: what is done to one is done to both.

A layer of napari belongs to one canvas, since it holds the slice that is in view. A twin holds the
same array, no copy, and for labels the same undo history, so that painting and undo may go on in
either. Nothing here knows Qt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

from napari.layers import Image, Labels, Layer

from medseg_napari.editing.boxes import Box
from medseg_napari.editing.redraw import redraw_box
from medseg_napari.viewing.edits import LabelEdits

__all__ = ["Twin", "can_have_twin"]

_SHARED = ("name", "opacity", "visible", "blending", "scale", "translate", "rotate", "shear")
_SHARED_BY_IMAGES = (*_SHARED, "contrast_limits", "gamma", "colormap", "interpolation2d")
_SHARED_BY_LABELS = (
    *_SHARED,
    *("colormap", "contour", "show_selected_label", "selected_label"),
    *("editable", "mode", "mouse_pan", "cursor", "cursor_size"),
    *("brush_size", "n_edit_dimensions", "contiguous", "preserve_labels"),
)
_TOOLS = ("paint", "fill", "paint_polygon", "data_setitem")


def can_have_twin(layer: Layer) -> bool:
    """Whether a layer is shown in other views: images and labels are."""
    return isinstance(layer, Image | Labels)


class Twin:
    """A layer for another canvas.

    Args:
        main: The layer of the window's canvas.
    """

    def __init__(self, main: Layer) -> None:
        self.main: Any = getattr(main, "__wrapped__", main)
        self.layer: Any = Layer.create(*self.main.as_layer_data_tuple())
        self._is_busy = False
        self._callbacks: list[tuple[Any, Any]] = []
        labels = isinstance(self.main, Labels)
        for name in _SHARED_BY_LABELS if labels else _SHARED_BY_IMAGES:
            self._share(name)
        self._listen(self.main.events.data, self._on_data)
        self._edits: LabelEdits | None = None
        if labels:
            self._share_history()
            self._listen(self.main.events.editable, self._on_editable)
            for name in _TOOLS:
                setattr(self.layer, name, self._grouped(getattr(self.layer, name)))
            self._edits = LabelEdits(self.main, self._on_edit)
            self._listen(self.main.events.labels_update, self._on_main_stroke)
            self._listen(self.layer.events.labels_update, self._on_twin_stroke)
            self._listen(self.layer.events.paint, self._on_twin_paint)
            self.layer.mouse_drag_callbacks.append(self._on_drag)
            if hasattr(self.main, "_keymap"):
                self.layer._keymap = self.main._keymap  # what is bound to the layer, now or later
        else:
            self._listen(self.main.events.set_data, self._on_redraw)
        self._slice_of_main = getattr(self.main, "_slice_input", None)

    def close(self) -> None:
        """Let go of the main layer."""
        if self._edits is not None:
            self._edits.close()
        for emitter, callback in self._callbacks:
            with suppress(ValueError, KeyError):
                emitter.disconnect(callback)
        self._callbacks.clear()

    def _listen(self, emitter: Any, callback: Any) -> None:  # noqa: ANN401 - napari's
        emitter.connect(callback)
        self._callbacks.append((emitter, callback))

    # ---- how it is shown

    def _share(self, name: str) -> None:
        if not (hasattr(self.main.events, name) and hasattr(self.main, name)):
            return  # of another version of napari

        def give(source: Any, target: Any) -> Any:  # noqa: ANN401
            def changed(event: Any = None) -> None:  # noqa: ANN401, ARG001
                if self._is_busy:
                    return
                self._is_busy = True
                try:
                    setattr(target, name, getattr(source, name))
                finally:
                    self._is_busy = False

            return changed

        self._is_busy = True
        try:
            with suppress(AttributeError, ValueError):
                setattr(self.layer, name, getattr(self.main, name))
        finally:
            self._is_busy = False
        self._listen(getattr(self.main.events, name), give(self.main, self.layer))
        self._listen(getattr(self.layer.events, name), give(self.layer, self.main))

    # ---- voxels

    def _share_history(self) -> None:
        self.layer._undo_history = self.main._undo_history
        self.layer._redo_history = self.main._redo_history
        self.layer.undo, self.layer.redo = self._undo, self._redo

    def _on_editable(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        if self.main.editable:  # napari empties the history of a layer that is not
            self._share_history()

    def _undo(self) -> None:
        self.main.undo()  # looked up when called: an editor may have put its own on the layer

    def _redo(self) -> None:
        self.main.redo()

    def _on_data(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        if self.layer.data is not self.main.data:
            self.layer.data = self.main.data
            if isinstance(self.main, Labels):
                self._share_history()

    def _on_redraw(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        """An image was drawn again though it was not scrolled: its voxels may be others."""
        before, now = self._slice_of_main, getattr(self.main, "_slice_input", None)
        self._slice_of_main = now
        if before == now and not self._is_busy:
            self.layer.refresh(thumbnail=False, highlight=False, extent=False)

    def _on_edit(self, box: Box | None) -> None:
        self._redraw(self.layer, box)

    def _on_main_stroke(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        self._redraw(self.layer, getattr(self.main, "_updated_slice", None))

    def _on_twin_stroke(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        self._redraw(self.main, getattr(self.layer, "_updated_slice", None))

    def _redraw(self, layer: Any, box: Box | None) -> None:  # noqa: ANN401 - napari's
        if self._is_busy:
            return
        self._is_busy = True
        try:
            redraw_box(layer, box)
        finally:
            self._is_busy = False

    def _grouped(self, tool: Callable[..., None]) -> Callable[..., None]:
        """A tool of napari that reports its step when the voxels are written, not just before."""

        def call(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - napari's
            with nullcontext() if self.layer._block_history else self.layer.block_history():
                tool(*args, **kwargs)

        return call

    def _on_twin_paint(self, event: Any) -> None:  # noqa: ANN401 - napari's
        """A step was made in the common history: the main layer's listeners hear of it."""
        if not self._is_busy:
            self.main.events.paint(value=event.value)

    def _on_drag(self, twin: Any, event: Any) -> Iterator[None]:  # noqa: ANN401 - napari's
        """Our tools listen to the main layer; hand them what the mouse does on this one."""
        steps = []
        for callback in self.main.mouse_drag_callbacks:
            if getattr(callback, "__module__", "").startswith("medseg_napari"):
                step = callback(self.main, event)
                if isinstance(step, Iterator):
                    steps.append(step)
        while steps:
            steps = [step for step in steps if next(step, self) is not self]
            twin.refresh(thumbnail=False, highlight=False, extent=False)
            if steps:
                yield
