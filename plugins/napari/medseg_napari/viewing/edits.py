"""Which part of a labels layer was changed: by a tool, by undo or from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medseg_napari.editing.boxes import Box

__all__ = ["LabelEdits", "box_of_step"]

_LOOKS = ("contour", "visible", "show_selected_label", "selected_label")
"""What a labels layer is redrawn for, besides its colours."""


class LabelEdits:
    """Listens to a labels layer of napari.

    Undo and redo only redraw the layer, as scrolling does; they are told apart by the layer's
    history, which they move, and by the slice in view, which they do not. A redraw that neither
    these nor the layer's looks are a reason for may follow a change from elsewhere: then everything
    counts as changed.

    Args:
        layer: napari's labels layer.
        changed: Called with the box along the layer's axes that holds all changes of a step, or
            with None where that may be anything.
    """

    def __init__(self, layer: Any, changed: Callable[[Box | None], None]) -> None:  # noqa: ANN401
        self.layer = getattr(layer, "__wrapped__", layer)
        self._changed = changed
        self._seen = self._state()
        self._events = {
            "paint": self._on_paint,
            "data": self._on_data,
            "set_data": self._on_redraw,
        }
        for name, callback in self._events.items():
            getattr(self.layer.events, name).connect(callback)

    def close(self) -> None:
        """Listen no more."""
        for name, callback in self._events.items():
            getattr(self.layer.events, name).disconnect(callback)

    def _state(self) -> tuple[Any, ...]:
        done, undone = self.layer._undo_history, self.layer._redo_history
        # the newest step may be a long list: its identity is enough
        newest = id(done[-1]) if done else None, id(undone[-1]) if undone else None
        looks = tuple(getattr(self.layer, name, None) for name in _LOOKS)
        view = (getattr(self.layer, "_slice_input", None), id(self.layer.colormap), *looks)
        return (len(done), len(undone), *newest), view

    def _on_paint(self, event: Any) -> None:  # noqa: ANN401 - napari's
        self._seen = self._state()
        self._changed(box_of_step(event.value))

    def _on_data(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        self._seen = self._state()
        self._changed(None)

    def _on_redraw(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        before, self._seen = self._seen, self._state()
        if before[0] == self._seen[0]:
            if before[1][0] is not None and before[1] == self._seen[1]:
                self._changed(None)
            return
        # undone or done again: the step went from the one history to the other
        undone = self._seen[0][1] > before[0][1]
        history = self.layer._redo_history if undone else self.layer._undo_history
        self._changed(box_of_step(history[-1]) if history else None)


def box_of_step(step: Sequence[Any]) -> Box | None:
    """The smallest box round the atoms of an undo step; None where their form is not known."""
    low: list[int] | None = None
    high: list[int] | None = None
    for atom in step:
        ends = _ends(atom)
        if ends is None:
            return None
        if not ends:
            continue
        first, last = [one for one, _ in ends], [other for _, other in ends]
        low = first if low is None else [min(pair) for pair in zip(low, first, strict=True)]
        high = last if high is None else [max(pair) for pair in zip(high, last, strict=True)]
    if low is None or high is None:
        return (slice(0, 0),) * 3
    i, p, l = (slice(a, b) for a, b in zip(low, high, strict=True))  # noqa: E741 - the axes' names
    return i, p, l


def _ends(atom: Any) -> list[tuple[int, int]] | None:  # noqa: ANN401 - napari's
    """First and exclusive last index by axis; empty for an atom of nothing."""
    indices = getattr(atom, "slice_key", None)
    if indices is None and isinstance(atom, tuple) and len(atom) == 3:
        indices = atom[0]
    if not isinstance(indices, tuple) or len(indices) != 3:
        return None
    ends = []
    for index in indices:
        if isinstance(index, slice):
            if index.start is None or index.stop is None or index.start < 0:
                return None
            ends.append((index.start, index.stop))
            continue
        places = np.asarray(index)
        if places.dtype.kind not in "iu" or (places.size and int(places.min()) < 0):
            return None
        ends.append((int(places.min()), int(places.max()) + 1) if places.size else (0, 0))
    return [] if any(first == last for first, last in ends) else ends
