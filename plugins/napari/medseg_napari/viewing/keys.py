"""The keyboard shortcuts of *See it*, in one table: what the dock lists is what is bound."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEYS", "MOUSE", "Key", "keys_in_words"]


@dataclass(frozen=True, slots=True)
class Key:
    """One shortcut.

    Args:
        press: As napari writes it.
        action: Name of the dock's method that is called.
        words: What it does.
    """

    press: str
    action: str
    words: str


KEYS: tuple[Key, ...] = (
    Key("N", "next_doubtful", "next doubtful slice"),
    Key("Shift-N", "previous_doubtful", "the doubtful slice before"),
    Key("F5", "show_axial", "axial slices"),
    Key("F6", "show_coronal", "coronal slices"),
    Key("F7", "show_sagittal", "sagittal slices"),
    Key("F8", "toggle_views", "four linked views, or one"),
    Key("W", "toggle_mouse_window", "right button for brightness, or for zoom"),
    Key("U", "toggle_contour", "labels as outlines, or filled"),
    Key("D", "toggle_difference", "show or hide the difference"),
)
"""Chosen among those that napari and its labels leave free."""

MOUSE: tuple[tuple[str, str], ...] = (
    ("click", "four views: move the cursor there (while nothing is painted with)"),
    ("Shift + move", "four views: the cursor follows the mouse, with any tool"),
    ("right drag", "brightness, when switched on: right widens, up raises the centre"),
)


def keys_in_words() -> tuple[tuple[str, str], ...]:
    """Every shortcut and what it does, for a list."""
    return (*((key.press, key.words) for key in KEYS), *MOUSE)
