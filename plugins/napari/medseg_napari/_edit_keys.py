"""The keys of the dock for corrections, on the layer that is corrected. No Qt.

They are bound to the layer itself and work while it is selected and the canvas has the keyboard.
None is a key that napari uses for labels, the viewer or its menus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["KEYS", "bind", "keys_in_words", "unbind"]

KEYS: dict[str, tuple[str, str]] = {
    "brush": ("Shift-B", "brush"),
    "eraser": ("Shift-E", "eraser"),
    "fill": ("Shift-F", "fill"),
    "pick": ("Shift-P", "pick the label that is clicked"),
    "lay down": ("Shift-Q", "lay the tool down: drag moves the image"),
    "larger": ("Shift-W", "larger brush"),
    "smaller": ("Shift-S", "smaller brush"),
    "3D": ("Shift-D", "brush in the slice, or through the slices"),
    "range": ("Shift-I", "range of intensities from under the pointer"),
    "limit": ("Shift-R", "limit drawing to the range, or not"),
    "grow": ("Shift-G", "grow a region from under the pointer"),
    "inside": ("Shift-J", "scribble inside"),
    "outside": ("Shift-K", "scribble outside"),
    "copy to next": ("Shift-X", "copy the label to the next slice"),
    "lock": ("Shift-L", "lock the chosen label, or unlock it"),
    "show": ("Shift-H", "hide the chosen label, or show it"),
    "label under pointer": ("Shift-C", "choose the label under the pointer"),
}
"""Action to its key, as napari writes it, and what it does."""


def bind(layer: Any, actions: Mapping[str, Callable[[], Any]]) -> None:  # noqa: ANN401 - napari's
    """Put the keys on a layer.

    Args:
        layer: napari's.
        actions: For each entry of :data:`KEYS` what to do.
    """
    for name, (key, _) in KEYS.items():
        layer.bind_key(key, _call(actions[name]), overwrite=True)


def unbind(layer: Any) -> None:  # noqa: ANN401 - napari's
    """Take the keys off a layer."""
    for key, _ in KEYS.values():
        layer.bind_key(key, None)


def _call(action: Callable[[], Any]) -> Callable[[Any], None]:
    def pressed(_: Any) -> None:  # noqa: ANN401 - napari's layer
        action()

    return pressed


def keys_in_words() -> str:
    """The keys and what they do, as rich text."""
    lines = [
        f"<tr><td><b>{key.replace('-', '+')}</b>&nbsp;&nbsp;</td><td>{what}</td></tr>"
        for key, what in KEYS.values()
    ]
    undo = "<tr><td><b>Ctrl+Z</b></td><td>undo; Ctrl+Shift+Z does it again</td></tr>"
    return f"<table>{''.join(lines)}{undo}</table>"
