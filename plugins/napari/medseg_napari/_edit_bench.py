"""What the parts of the dock for corrections share: the layer, the edit going on, messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, Signal

from medseg.errors import MedsegError
from medseg_napari._edit_session import Correction
from medseg_napari._words import ml_in_words
from medseg_napari._worker import start_worker
from medseg_napari.editing.choices import Tool

if TYPE_CHECKING:
    from medseg_napari.editing.change import Change
    from medseg_napari.editing.editor import Planned

__all__ = ["Bench"]

_NONE_CHOSEN = "Choose labels above and press Correct first"


class Bench(QObject):  # type: ignore[misc] # Qt is untyped here
    """The layer that is corrected, and one edit at a time on it.

    Edits are computed in another thread and made in this one. While one is computed nothing can be
    drawn, since it would be made on labels that are others.
    """

    correction_changed = Signal()
    """Another layer is corrected, or none."""

    busy_changed = Signal()
    """An edit has begun to be computed, or ended."""

    pointing_changed = Signal()
    """The next click in the image is waited for, or no more."""

    told = Signal(str, bool)
    """A sentence for the user, and whether it tells of trouble."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._correction: Correction | None = None
        self._busy = ""
        self._working_on: Correction | None = None
        self._outcome: Planned | str | None = None
        self._then: Callable[[Change], None] | None = None
        self._before: Tool = "none"
        self._awaiting: Callable[[tuple[int, ...]], bool] | None = None
        self._before_point: Tool = "none"

    @property
    def correction(self) -> Correction | None:
        """What is corrected."""
        return self._correction

    @correction.setter
    def correction(self, correction: Correction | None) -> None:
        if correction is self._correction:
            return
        self.let_go()
        self._correction = correction
        if correction is not None:
            correction.controller.pointed.connect(self._pointed)
            correction.controller.chosen.connect(self._chosen)
            correction.controller.refused.connect(self._refused)
        self.correction_changed.emit()

    def let_go(self) -> None:
        """Correct nothing and hear no more of what was corrected."""
        if self._correction is not None:
            controller, self._correction = self._correction.controller, None
            controller.pointed.disconnect(self._pointed)
            controller.chosen.disconnect(self._chosen)
            controller.refused.disconnect(self._refused)
            controller.tool = "none"

    def _refused(self, sentence: str) -> None:
        self.tell(sentence, trouble=True)

    @property
    def busy(self) -> str:
        """Name of the edit that is computed; empty if there is none."""
        return self._busy

    @property
    def is_ready(self) -> bool:
        """Whether an edit can begin."""
        return self._correction is not None and not self._busy

    def tell(self, message: str, *, trouble: bool = False) -> None:
        """Say something in the dock."""
        self.told.emit(message, trouble)

    def attempt(self, action: Callable[[Correction], str | None]) -> bool:
        """Do something at once, and say what came of it or why it was refused.

        Returns:
            Whether it was done.
        """
        correction = self._ready()
        if correction is None:
            return False
        try:
            message = action(correction)
        except MedsegError as error:
            self.tell(str(error), trouble=True)
            return False
        except Exception as error:
            self.tell(_unexpected(error), trouble=True)
            return False
        if message is not None:
            self.tell(message)
        return True

    # ---- clicks

    @property
    def awaiting(self) -> Callable[[tuple[int, ...]], bool] | None:
        """What the next click in the image is for; None if none is waited for."""
        return self._awaiting

    def await_point(self, then: Callable[[tuple[int, ...]], bool]) -> None:
        """Do something with the voxel that is clicked next; then go back to the tool of before."""
        correction = self._ready()
        if correction is not None:
            controller = correction.controller
            if controller.tool != "point":
                self._before_point = controller.tool
            correction.viewer.layers.selection.active = correction.layer
            controller.tool = "point"
            self._awaiting = then
            self.tell("Click in the image")
        self.pointing_changed.emit()

    def stop_pointing(self) -> None:
        """Wait for no click, and go back to the tool of before."""
        if self._correction is not None and self._awaiting is not None:
            self._correction.controller.tool = self._before_point

    def _pointed(self, at_vox: tuple[int, ...]) -> None:
        then = self._awaiting
        self.stop_pointing()
        if then is not None:
            then(at_vox)

    def _chosen(self, name: str) -> None:
        correction = self._correction
        if name == "tool" and correction is not None and correction.controller.tool != "point":
            self._awaiting = None
            self.pointing_changed.emit()

    # ---- edits in another thread

    def run(
        self,
        name: str,
        edit: Callable[..., Change],
        *args: Any,  # noqa: ANN401 - of the edit
        then: Callable[[Change], None] | None = None,
        **kwargs: Any,  # noqa: ANN401 - of the edit
    ) -> bool:
        """Compute an edit in another thread, then make it.

        Args:
            name: Of the edit, for people.
            edit: A function of :mod:`medseg_napari.editing` whose first argument is the labels.
            args: Its other arguments.
            then: Called in this thread once it was made.
            kwargs: Its other arguments by name.

        Returns:
            Whether it has begun.
        """
        correction = self._ready()
        if correction is None:
            return False
        controller = correction.controller
        controller.end_stroke()
        self._working_on, self._then, self._outcome = correction, then, None
        self._before = controller.tool
        self._busy = name
        controller.tool = "none"
        correction.editing.hold()
        self.busy_changed.emit()

        def steps() -> Iterator[Planned | str]:
            try:
                yield controller.plan(edit, *args, **kwargs)
            except MedsegError as error:
                yield str(error)
            except MemoryError:
                yield f"{name}: memory ran out; close other programs or edit a smaller part"
            except Exception as error:
                yield _unexpected(error)

        start_worker(steps, yielded=self._yielded, finished=self._finished)
        return True

    def drop(self) -> None:
        """Do not make the edit that is computed; it is still computed to its end."""
        if self._busy and self._working_on is not None:
            self._give_back()
            self._working_on = None
            self.tell(f"{self._busy}: stopped, nothing was changed")
            self.busy_changed.emit()

    @property
    def is_dropping(self) -> bool:
        """Whether an edit that was stopped is still computed."""
        return bool(self._busy) and self._working_on is None

    def _ready(self) -> Correction | None:
        if self._correction is None:
            self.tell(_NONE_CHOSEN, trouble=True)
            return None
        if self._busy:
            self.tell(f"{self._busy} is still computed: wait for its end", trouble=True)
            return None
        return self._correction

    def _yielded(self, outcome: Planned | str) -> None:
        self._outcome = outcome

    def _finished(self) -> None:
        name, correction, outcome = self._busy, self._working_on, self._outcome
        then = self._then
        if correction is not None:
            self._give_back()
        self._busy, self._working_on, self._outcome, self._then = "", None, None, None
        self.busy_changed.emit()
        if correction is None:
            return
        if not correction.is_open:
            self.tell(f"{name}: the labels were closed, and nothing was changed", trouble=True)
        elif isinstance(outcome, str):
            self.tell(outcome, trouble=True)
        elif outcome is not None:
            try:
                change = correction.controller.commit(outcome)
            except MedsegError as error:
                self.tell(str(error), trouble=True)
                return
            self.tell(in_words(name, change, correction.controller.labels_table.voxel_ml))
            if then is not None:
                then(change)

    def _give_back(self) -> None:
        """Let the layer be drawn on again."""
        correction = self._working_on
        if correction is not None and correction.is_open:
            correction.editing.let_go()
            correction.controller.tool = self._before


def in_words(name: str, change: Change, voxel_ml: float) -> str:
    """What an edit changed, for people."""
    if not change:
        return f"{name}: there was nothing to change"
    plus = sum(voxels for (_, after), voxels in change.moved.items() if after) * voxel_ml
    minus = sum(voxels for (before, _), voxels in change.moved.items() if before) * voxel_ml
    return f"{name}: +{ml_in_words(plus)} ml, -{ml_in_words(minus)} ml"


def _unexpected(error: Exception) -> str:
    return f"Unexpected {type(error).__name__}; please report it"
