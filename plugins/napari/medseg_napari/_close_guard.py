"""Asks before a window closes over corrections that are in no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QMessageBox

from medseg_napari._edit_session import Correction, unsaved

__all__ = ["Answer", "CloseGuard", "guard"]

Answer = Literal["keep", "discard", "cancel"]
"""Close, and offer the edits again next time; close and throw them away; do not close."""


class CloseGuard(QObject):  # type: ignore[misc] # Qt is untyped here
    """Asks when the user closes the window of a viewer.

    A program that closes it (``viewer.close()``) is not asked; its autosaves stay.

    Args:
        viewer: napari's.
        window: Its window.
    """

    def __init__(self, viewer: Any, window: Any) -> None:  # noqa: ANN401 - napari's and Qt's
        super().__init__(window)
        self._viewer = viewer
        self.ask: Callable[[list[Correction]], Answer] = ask_user
        self.others: list[Callable[[], bool]] = []
        """Asked first; each says whether the window may close, and asks the user itself."""
        close = window.close

        def guarded(quit_app: bool = False, confirm_need: bool = False) -> Any:  # noqa: ANN401
            if confirm_need and not self.may_close():  # the menu and its key
                return None
            return close(quit_app, confirm_need)

        window.close = guarded
        window.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 - Qt's
        """Hold a close event back if the user wants to stay."""
        by_user = event.type() == QEvent.Type.Close and event.spontaneous()
        if by_user and not self.may_close():
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))

    def may_close(self) -> bool:
        """Whether the window may close; asks if there is something to lose."""
        if not all(may_close() for may_close in self.others):
            return False
        corrections = unsaved(self._viewer)
        if not corrections:
            return True
        answer = self.ask(corrections)
        if answer == "discard":
            for one in corrections:
                one.editing.saved()
        return answer != "cancel"


def guard(viewer: Any) -> CloseGuard:  # noqa: ANN401 - napari's
    """The guard of a viewer's window; made the first time."""
    window = viewer.window._qt_window
    known = window.findChild(CloseGuard)
    return known if known is not None else CloseGuard(viewer, window)


def ask_user(corrections: list[Correction]) -> Answer:
    """Ask in a dialog."""
    box = QMessageBox()
    box.setIcon(QMessageBox.Icon.Warning)
    box.setWindowTitle("Unsaved corrections")
    names = ", ".join(one.layer.name for one in corrections)
    box.setText(f"Corrections of {names} are in no file yet.")
    kept = all(one.autosave is not None for one in corrections)
    if kept:
        box.setInformativeText("Kept corrections are offered when the image is opened again.")
    keep = box.addButton("Close and keep", QMessageBox.ButtonRole.AcceptRole) if kept else None
    discard = box.addButton("Close and discard", QMessageBox.ButtonRole.DestructiveRole)
    stay = box.addButton("Do not close", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay)
    box.setEscapeButton(stay)
    box.exec()
    if box.clickedButton() is discard:
        return "discard"
    return "keep" if keep is not None and box.clickedButton() is keep else "cancel"
