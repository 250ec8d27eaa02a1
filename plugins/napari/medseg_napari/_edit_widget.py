"""The dock in which labels are corrected."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg.errors import MedsegError
from medseg_napari import _edit_keys
from medseg_napari._close_guard import guard
from medseg_napari._edit_bench import Bench
from medseg_napari._edit_draw_widget import DrawSection, RangeSection
from medseg_napari._edit_repair_widget import RepairSection
from medseg_napari._edit_section import Section, button, row, text
from medseg_napari._edit_session import (
    Correction,
    Lost,
    correct,
    correct_lost,
    correction_of,
    is_scribbles,
    lost,
)
from medseg_napari._edit_shape_widgets import (
    CombineSection,
    PiecesSection,
    SlicesSection,
    SurfaceSection,
)
from medseg_napari._label_table import LabelTableView
from medseg_napari._layer_boxes import fill, index_of
from medseg_napari._words import time_in_words
from medseg_napari._worker import Listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

__all__ = ["EditDock"]

_LEAST_WIDTH = 400  # as the other docks
_BRUSH_STEP = 1.25
_TO_DELETE = "Delete these corrections? They are in no file, and cannot be brought back."
_TO_BEGIN = "Choose labels above and press Correct to begin"


class EditDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Correct labels: a label table, tools, edits, undo, and recovery of what was not saved.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self._watched: Correction | None = None
        self._told: set[Path] = set()
        self.ask: Callable[[str], bool] = self._ask
        """Asks the user whether something may be deleted; for tests another one."""
        self.bench = Bench(self)
        self.bench.told.connect(self._say)
        self._build()
        self._arrange()
        self.bench.busy_changed.connect(self._busy_changed)
        self._offer_soon = QTimer(self)  # when whoever else hears of layers has heard
        self._offer_soon.setSingleShot(True)
        self._offer_soon.timeout.connect(self._show_recovery)
        self._listening = Listening(self, self._gone)
        events = self._viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered):
            self._listening.to(event, self._layers_changed)
        self._listening.to(self._viewer.layers.selection.events.active, self._active_changed)
        self.guard = guard(self._viewer)
        self._layers_changed()

    # ---- what the user sees

    def _build(self) -> None:
        self.layer_box = QComboBox()
        self.layer_box.currentIndexChanged.connect(self._layer_changed)
        self.start_button = QPushButton("Correct")
        self.start_button.setToolTip("Put the tools on these labels, in place")
        self.start_button.clicked.connect(self.start)
        self.recovery_text = text()
        self.restore_button = QPushButton("Restore")
        self.restore_button.clicked.connect(self.restore)
        self.forget_button = QPushButton("Delete")
        self.forget_button.clicked.connect(self.forget)
        self.table = LabelTableView(self.bench)
        self.draw = DrawSection("Draw", self.bench, is_open=True)
        self.range = RangeSection("Range of intensities", self.bench)
        self.pieces = PiecesSection("Pieces and holes", self.bench)
        self.surface = SurfaceSection("Grow, shrink, close, smooth", self.bench)
        self.slices = SlicesSection("Slices", self.bench)
        self.combine = CombineSection("Combine labels", self.bench)
        self.repair = RepairSection("Fast repair", self.bench, self.range.pixels)
        self.keys = KeysSection("Keys", self.bench)
        self.undo_button = button("Undo", partial(self.replay, "undo"), "Ctrl+Z")
        self.redo_button = button("Redo", partial(self.replay, "redo"), "Ctrl+Shift+Z")
        self.state_text = QLabel()
        self.bar = QProgressBar()
        self.bar.setRange(0, 0)
        self.stop_button = button("Stop", self.bench.drop, "Leave the labels as they are")
        self.message = text(_TO_BEGIN)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The parts that fold away."""
        return (
            *(self.draw, self.range, self.repair, self.pieces),
            *(self.surface, self.slices, self.combine, self.keys),
        )

    def _arrange(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.layer_box, 1)
        top.addWidget(self.start_button)
        self.recovery = QFrame()
        recovery = QVBoxLayout(self.recovery)
        recovery.setContentsMargins(0, 0, 0, 0)
        recovery.addWidget(self.recovery_text)
        recovery.addLayout(row([self.restore_button, self.forget_button]))
        self.recovery.setVisible(False)
        content = QWidget()
        inside = QVBoxLayout(content)
        inside.setSpacing(4)
        inside.addWidget(self.table)
        for section in self.sections:
            inside.addWidget(section)
        inside.addStretch(1)
        self.scroll = QScrollArea()
        self.scroll.setWidgetResizable(True)
        self.scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.scroll.setFrameShape(QFrame.Shape.NoFrame)
        self.scroll.setWidget(content)
        working = QHBoxLayout()
        working.addWidget(self.bar, 1)
        working.addWidget(self.stop_button)
        steps = QHBoxLayout()
        for widget in (self.undo_button, self.redo_button):
            steps.addWidget(widget)
        steps.addWidget(self.state_text, 1)
        layout = QVBoxLayout()
        layout.addLayout(top)
        layout.addWidget(self.recovery)
        layout.addWidget(self.scroll, 1)
        layout.addLayout(working)
        layout.addWidget(self.message)
        layout.addLayout(steps)
        layout.addWidget(text(NOTICE))
        self.setLayout(layout)
        self.setMinimumWidth(_LEAST_WIDTH)

    def _say(self, message: str, trouble: bool = False) -> None:
        self.message.setStyleSheet("color: #d08a2c;" if trouble else "")
        self.message.setText(message)

    # ---- layers

    def _layers_changed(self, event: Any = None) -> None:  # noqa: ANN401 - napari's
        if event is not None and getattr(event, "type", "") == "inserted":
            self._listening.to(event.value.events.name, self._layers_changed)
        layers = [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Labels) and not is_scribbles(layer)
        ]
        wanted = self.layer_box.currentData()
        if not any(layer is wanted for layer in layers):
            wanted = layers[-1] if layers else None
        fill(self.layer_box, [(layer.name, layer) for layer in layers], wanted)
        self._layer_changed()
        self._offer_soon.start(0)
        self.range.list_images()
        self.combine.list_layers()

    def _active_changed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        found = index_of(self.layer_box, event.value)
        if found >= 0 and not self.bench.busy:
            self.layer_box.setCurrentIndex(found)

    @property
    def layer(self) -> Labels | None:
        """The labels that are chosen."""
        layer = self.layer_box.currentData()
        return layer if layer is not None and layer in self._viewer.layers else None

    def _layer_changed(self) -> None:
        layer = self.layer
        self._take(None if layer is None else correction_of(layer))

    def start(self) -> bool:
        """Begin to correct the labels that are chosen; whether it has begun."""
        layer = self.layer
        if layer is None:
            self._say("Open or make labels first", True)
            return False
        try:
            correction = correct(self._viewer, layer)
        except MedsegError as error:
            self._say(str(error), True)
            return False
        self._viewer.layers.selection.active = layer
        self._take(correction)
        self._say(correction.trouble, bool(correction.trouble))
        return True

    def _take(self, correction: Correction | None) -> None:
        if correction is not self._watched:
            self._let_go()
            self._watched = correction
            self.bench.correction = correction
            if correction is not None:
                correction.closed.connect(self._closed)
                correction.controller.chosen.connect(self._chosen)
                if correction.autosave is not None:
                    correction.autosave.trouble.connect(self._autosave_trouble)
                _edit_keys.bind(correction.layer, self.actions())
        self.start_button.setEnabled(self.layer is not None and correction is None)
        self.start_button.setText("Correct" if correction is None else "Correcting")
        self._show_recovery()
        self._show_state()
        self._busy_changed()

    def _let_go(self) -> None:
        """Hear no more of the correction, which goes on."""
        correction, self._watched = self._watched, None
        if correction is not None:
            correction.closed.disconnect(self._closed)
            correction.controller.chosen.disconnect(self._chosen)
            if correction.autosave is not None:
                correction.autosave.trouble.disconnect(self._autosave_trouble)
            _edit_keys.unbind(correction.layer)

    def _closed(self) -> None:
        self._take(None)

    def _gone(self) -> None:
        """The dock was closed; corrections go on, by napari's own tools."""
        for part in (self.table, self.draw, self.combine, self.repair):
            part.let_go()
        self._let_go()
        self.bench.let_go()

    def _autosave_trouble(self, sentence: str) -> None:
        self.bench.tell(sentence, trouble=True)  # from another thread: through Qt's signal

    # ---- state

    def _chosen(self, name: str) -> None:
        if name == "modified":
            self._show_state()

    def _show_state(self) -> None:
        correction = self._watched
        if correction is None:
            self.state_text.setText("")
            return
        worked = time_in_words(correction.controller.effort.seconds)
        controller = correction.controller
        saved = "saved" if controller.was_saved else "no changes"
        if controller.modified:
            saved = "not saved"
        self.state_text.setText(f"{saved}; {worked} of work")

    def _busy_changed(self) -> None:
        busy = self.bench.busy
        self.bar.setVisible(bool(busy))
        self.stop_button.setVisible(bool(busy))
        self.stop_button.setEnabled(not self.bench.is_dropping)
        self.layer_box.setEnabled(not busy)
        for one in (self.undo_button, self.redo_button):
            one.setEnabled(self.bench.is_ready)
        if busy and not self.bench.is_dropping:
            self._say(f"{busy}...")

    def replay(self, way: str) -> None:
        """Undo or redo a step of napari's history."""

        def action(one: Correction) -> str:
            change = one.layer.undo() if way == "undo" else one.layer.redo()
            return f"{way}: {change.name or 'edit'}" if change is not None else f"Nothing to {way}"

        self.bench.attempt(action)

    # ---- recovery

    def _offered(self) -> Lost | None:
        """What can be restored: of the labels that are corrected, else of anything open."""
        watched = self._watched
        if watched is not None and watched.recoverable:
            return Lost(watched.layer, watched.recoverable[0])
        try:
            found = lost(self._viewer)
        except (MedsegError, OSError):  # a folder that cannot be read has nothing to offer
            return None
        return found[0] if found else None

    def _show_recovery(self) -> None:
        offered = self._offered()
        self.recovery.setVisible(offered is not None)
        if offered is None:
            return
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(offered.autosaved.changed_s))
        words = f"Corrections of {when} on {offered.layer.name} were not saved."
        self.recovery_text.setText(f"{words} Restore them?")
        if offered.autosaved.folder not in self._told and correction_of(offered.layer) is None:
            self._told.add(offered.autosaved.folder)  # the dock may lie under others
            show_info(f"{words} *Correct it* can restore them.".replace("*", ""))

    def restore(self) -> bool:
        """Put back what was not saved, as one undo step; whether it was."""
        offered, watched = self._offered(), self._watched
        if offered is None or self.bench.busy:
            return False
        try:
            if watched is not None and offered.autosaved in watched.recoverable:
                watched.recover(offered.autosaved)
            else:
                correction = correct_lost(self._viewer, offered)
                self._viewer.layers.selection.active = correction.layer
                self._take(correction)
        except MedsegError as error:
            self._say(str(error), True)
            return False
        finally:
            self._show_recovery()
        self._say("Restored; undo takes it back")
        return True

    def forget(self) -> None:
        """Delete what was not saved."""
        offered, watched = self._offered(), self._watched
        if offered is None or self.bench.busy or not self.ask(_TO_DELETE):
            return
        if watched is not None and offered.autosaved in watched.recoverable:
            watched.discard(offered.autosaved)
        else:
            offered.autosaved.discard()
        self._say("Deleted")
        self._show_recovery()

    def _ask(self, question: str) -> bool:
        yes, no = QMessageBox.StandardButton.Yes, QMessageBox.StandardButton.Cancel
        return bool(QMessageBox.question(self, "Correct it", question, yes | no, no) == yes)

    # ---- keys

    def actions(self) -> dict[str, Callable[[], Any]]:
        """What the keys do."""
        return {
            "brush": partial(self._tool, "brush"),
            "eraser": partial(self._tool, "eraser"),
            "fill": partial(self._tool, "fill"),
            "pick": partial(self._tool, "pick"),
            "lay down": partial(self._tool, "none"),
            "larger": partial(self._scale_brush, _BRUSH_STEP),
            "smaller": partial(self._scale_brush, 1 / _BRUSH_STEP),
            "3D": self.draw.three_d_check.toggle,
            "range": partial(self._at_pointer, self.range.take_from),
            "limit": self.range.limit_check.toggle,
            "grow": partial(self._at_pointer, self.repair.grow_from),
            "inside": partial(self._tool, "scribble inside"),
            "outside": partial(self._tool, "scribble outside"),
            "copy to next": partial(self.slices.copy, 1),
            "lock": self._toggle_lock,
            "show": self._toggle_visible,
            "label under pointer": partial(self._at_pointer, self._pick),
        }

    def _tool(self, tool: Any) -> None:  # noqa: ANN401 - a Tool

        def action(one: Correction) -> None:
            one.controller.tool = tool

        self.bench.attempt(action)

    def _scale_brush(self, factor: float) -> None:
        self.draw.size_box.setValue(self.draw.size_box.value() * factor)

    def _at_pointer(self, do: Callable[[tuple[int, ...]], Any]) -> None:
        correction = self._watched
        at_vox = None if correction is None else correction.pointer_vox()
        if at_vox is None:
            self._say("Point at a place inside the image first", True)
        else:
            do(at_vox)

    def _pick(self, at_vox: tuple[int, ...]) -> None:
        self.bench.attempt(lambda one: None if one.controller.pick(at_vox) else "No label there")

    def _toggle_lock(self) -> None:

        def action(one: Correction) -> None:
            controller = one.controller
            locked = controller.active in controller.labels_table.locked
            controller.lock(controller.active, not locked)

        self.bench.attempt(action)

    def _toggle_visible(self) -> None:

        def action(one: Correction) -> None:
            controller = one.controller
            controller.show(controller.active, controller.active in controller.labels_table.hidden)

        self.bench.attempt(action)


class KeysSection(Section):
    """The keys."""

    def build(self) -> None:
        """See :class:`Section`."""
        self.form.addRow(text(_edit_keys.keys_in_words()))
