"""The dock that goes through the cases of a batch run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QMessageBox,
    QPushButton,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg.errors import MedsegError
from medseg_napari._badge import show_badges
from medseg_napari._close_guard import guard
from medseg_napari._edit_session import correction_of, labels_were_saved
from medseg_napari._models import find_all_models, user_models
from medseg_napari._send import SECONDS_KEY
from medseg_napari._words import dice_in_words
from medseg_napari._worker import Listening, start_worker
from medseg_napari._worklist import FILTERS, Column, Judgement, WorkCase, WorkList
from medseg_napari._worklist_case import OpenedCase, open_case
from medseg_napari._worklist_table import COLUMNS, CaseTable
from medseg_napari._writer import EDITED_KEY

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from medseg.studies.reviews import ReviewState

__all__ = ["WorkListDock"]

_LOOK_EVERY_MS = 2000
_PAUSE = 20
_LEAST_WIDTH = 400
_TO_BEGIN = "Open the output folder of a batch run to begin"
_CLOSED = "The labels of {} were closed: open the case again to accept or correct it"
_NO_DOUBT = "The doubt of these cases is not known: `medseg predict --uncertainty` measures it. "


class WorkListDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Open a batch output folder, go through its cases, say what is right.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.work: WorkList | None = None
        self.opened: OpenedCase | None = None
        self.is_opening = False
        self._layers: list[Layer] = []
        self._labels: Labels | None = None
        self.models: Path | None = user_models()
        """Where models are looked for, to know what their channels are called."""
        self._sort: tuple[Column, bool] = ("doubt", True)
        self.ask: Callable[[str], bool] = self._ask
        """Asks the user whether changes may be lost; for tests another one."""
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_EVERY_MS)
        self._timer.timeout.connect(self._look)
        self._listening = Listening(self, self._gone)
        self._listening.to(self._viewer.layers.events.removed, self._layer_removed)
        self.guard = guard(self._viewer)
        self.guard.others.append(self._may_close)
        show_badges(self._viewer)
        self._refresh_buttons()

    # ---- what the user sees

    def _build(self) -> None:
        self.folder_button = _button("Open folder...", "Output folder of `medseg predict`")
        self.folder_button.clicked.connect(self._choose_folder)
        self.folder_text = _text()
        self.filter_box = QComboBox()
        self.filter_box.addItems(list(FILTERS))
        self.filter_box.currentIndexChanged.connect(self._show)
        self.search_line = QLineEdit()
        self.search_line.setPlaceholderText("name, reason or review")
        self.search_line.setClearButtonEnabled(True)
        self.search_line.textChanged.connect(self._show)
        self.model = CaseTable(self)
        self.model.sorted_by = self._sorted_by
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setSortingEnabled(True)
        self.table.setWordWrap(False)
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        header.setStretchLastSection(True)
        self.table.doubleClicked.connect(lambda index: self._open_row(index.row()))
        self.progress_text = _text()
        self.open_button = _button("Open", "Open the selected case (or double-click it)")
        self.open_button.clicked.connect(self.open_selected)
        self.back_button = _button("Previous", "The next more doubtful case")
        self.back_button.clicked.connect(lambda: self.go(-1))
        self.next_button = _button("Next doubtful", "The most doubtful case that nobody judged yet")
        self.next_button.clicked.connect(lambda: self.go(1))
        self.note_line = QLineEdit()
        self.note_line.setPlaceholderText("note (stays in the ledger)")
        self.accept_button = _button("Accept", "The result is right as the model gave it")
        self.correct_button = _button(
            "Save correction", "Save the edited labels under corrected/ and mark the case so"
        )
        self.reject_button = _button("Reject", "The result cannot be used")
        self.clear_button = _button("Take back", "Nothing is said of the case any more")
        for button, state in self._verdicts():
            button.clicked.connect(lambda _=False, state=state: self.judge(state))
        self.next_check = QCheckBox("then open the next doubtful case")
        self.message = _text()
        self.message.setText(_TO_BEGIN)
        self._arrange()

    def _verdicts(self) -> tuple[tuple[QPushButton, ReviewState], ...]:
        return (
            (self.accept_button, "accepted"),
            (self.correct_button, "corrected"),
            (self.reject_button, "rejected"),
            (self.clear_button, "open"),
        )

    def _arrange(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.folder_button)
        top.addWidget(self.folder_text, 1)
        filters = QHBoxLayout()
        filters.addWidget(self.filter_box)
        filters.addWidget(self.search_line, 1)
        walking = QHBoxLayout()
        for button in (self.open_button, self.back_button, self.next_button):
            walking.addWidget(button)
        verdicts = QHBoxLayout()
        for button, _ in self._verdicts():
            verdicts.addWidget(button)
        layout = QVBoxLayout()
        layout.addLayout(top)
        layout.addLayout(filters)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.progress_text)
        layout.addLayout(walking)
        layout.addWidget(self.note_line)
        layout.addLayout(verdicts)
        layout.addWidget(self.next_check)
        layout.addWidget(self.message)
        notice = _text()
        notice.setText(NOTICE)
        layout.addWidget(notice)
        self.setLayout(layout)
        self.setMinimumWidth(_LEAST_WIDTH)

    # ---- the list

    def open_folder(self, folder: Path, ledger: Path | None = None) -> bool:
        """List the cases of a batch output folder; whether that could be done."""
        if not self._may_leave():
            return False
        try:
            work = WorkList(folder, ledger)
        except MedsegError as error:
            self._say(str(error), trouble=True)
            return False
        if self.work is not None:
            self.work.close()
        self._leave()
        self.work = work
        self.folder_text.setText(folder.name)
        self.folder_text.setToolTip(str(folder))
        self.table.sortByColumn(COLUMNS.index("doubt"), Qt.SortOrder.DescendingOrder)
        self._show()
        self.table.resizeColumnsToContents()
        self._timer.start()
        words = "" if any(case.doubt for case in work.cases) else _NO_DOUBT
        if work.is_read_only:
            words += "The folder cannot be written to: nothing can be marked."
        self._say(words.strip(), trouble=work.is_read_only)
        return True

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Output folder of medseg predict")
        if folder:
            self.open_folder(Path(folder))

    def _sorted_by(self, column: Column, descending: bool) -> None:
        self._sort = column, descending
        self._show()

    def _show(self, *_: object) -> None:
        """Show the list as it is now; what was selected stays selected."""
        if self.work is None:
            return
        selected = self.selected
        column, descending = self._sort
        cases = self.work.shown(
            column,
            descending=descending,
            only=FILTERS[self.filter_box.currentIndex()],
            text=self.search_line.text(),
        )
        self.model.show(cases, None if self.opened is None else self.opened.case.number)
        if selected is not None:
            self.select(selected.number)
        judged, able = self.work.progress()
        self.progress_text.setText(
            f"{judged} of {able} results judged; {len(cases)} of {len(self.work.cases)} cases shown"
        )
        self._refresh_buttons()

    @property
    def selected(self) -> WorkCase | None:
        """The case whose row is selected."""
        rows = self.table.selectionModel().selectedRows()
        return self.model.cases[rows[0].row()] if rows else None

    def select(self, number: int) -> None:
        """Select the row of a case, if it is shown."""
        for place, case in enumerate(self.model.cases):
            if case.number == number:
                self.table.selectRow(place)
                return

    def _look(self) -> None:
        """Show what another process wrote, such as a second viewer or the run itself."""
        if self.work is None or self.is_opening:
            return
        try:
            if self.work.has_changed():
                began = time.perf_counter()
                self.work.refresh()
                self._show()
                # a run at work writes all the time: a long list is not read all the time
                took_ms = 1000 * (time.perf_counter() - began)
                self._timer.setInterval(max(_LOOK_EVERY_MS, int(_PAUSE * took_ms)))
        except MedsegError as error:
            self._timer.stop()
            self._say(str(error), trouble=True)

    # ---- opening

    def go(self, step: int) -> None:
        """Open the next case to be judged, or the one before."""
        if self.work is None:
            return
        current = None if self.opened is None else self.opened.case.number
        case = self.work.next_case(current, step)
        if case is not None:
            self.open(case)
        elif step > 0:
            self._say("Every result was judged")

    def open_selected(self) -> None:
        """Open the case whose row is selected."""
        if self.selected is not None:
            self.open(self.selected)

    def _open_row(self, row: int) -> None:
        if 0 <= row < len(self.model.cases):
            self.open(self.model.cases[row])

    def open(self, case: WorkCase) -> None:
        """Open a case in place of the one that is open; it is read in the background."""
        work = self.work
        if work is None or self.is_opening or not self._may_leave():
            return
        self.is_opening = True
        self._say(f"Opening {case.row.name}...")
        self._refresh_buttons()
        models = find_all_models(self.models)

        def steps() -> Iterator[tuple[WorkList, OpenedCase | str]]:
            try:
                yield work, open_case(work, case, models)
            except MedsegError as error:
                yield work, str(error)
            except MemoryError:
                yield work, "Memory ran out; close other images first"
            except Exception as error:
                yield work, f"Unexpected {type(error).__name__}; please report it"

        start_worker(steps, yielded=self._arrived)

    def _arrived(self, given: tuple[WorkList, OpenedCase | str]) -> None:
        self.is_opening = False
        work, found = given
        if work is not self.work:
            return
        if isinstance(found, str):
            self._say(found, trouble=True)
            self._refresh_buttons()
            return
        self._leave()
        self.opened = found
        for number, (data, settings, kind) in enumerate(found.layers):
            layer = (Labels if kind == "labels" else Image)(data, **settings)
            self._viewer.add_layer(layer)
            self._layers.append(layer)
            if number == found.labels_at:
                self._labels = layer
            elif number > found.labels_at:
                layer.visible = False  # the doubt, which would hide what is to be judged
        if self._labels is not None:
            self._viewer.layers.selection = {self._labels}
        self._viewer.reset_view()
        review = found.case.review
        self.note_line.setText("" if review is None else review.note)
        self._show()
        self.select(found.case.number)
        words = [f"{found.case.row.name}: {found.case.review_text or 'not judged yet'}"]
        self._say("\n".join([*words, *found.notes]))

    def _may_leave(self) -> bool:
        """Whether the open case may be closed; the user is asked where changes would be lost."""
        opened, layer = self.opened, self._labels
        if opened is None or layer is None or not opened.is_unsaved(layer.data):
            return True
        return self.ask(
            f"The labels of {opened.case.row.name} were changed and not saved. Close them all the "
            "same?"
        )

    def _may_close(self) -> bool:
        """Whether the window may; an edit that is kept safe is asked for by the guard itself."""
        correction = None if self._labels is None else correction_of(self._labels)
        if correction is not None and correction.autosave is not None:
            return True
        return self._may_leave()

    def _ask(self, question: str) -> bool:
        yes, no = QMessageBox.StandardButton.Discard, QMessageBox.StandardButton.Cancel
        return bool(QMessageBox.question(self, "Work list", question, yes | no, no) == yes)

    def _leave(self) -> None:
        """Take the layers of the open case away."""
        layers, self._layers, self._labels, self.opened = self._layers, [], None, None
        for layer in layers:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def _layer_removed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        if event.value is self._labels and self.opened is not None:
            self._labels = None
            self._say(_CLOSED.format(self.opened.case.row.name), trouble=True)
            self._refresh_buttons()

    # ---- judging

    def judge(self, state: ReviewState) -> bool:
        """Enter a word on the open case; whether it was."""
        work, opened, layer = self.work, self.opened, self._labels
        if work is None or opened is None:
            return False
        metadata = {} if layer is None else layer.metadata
        judgement = Judgement(
            state,
            None if layer is None else layer.data,
            self.note_line.text(),
            metadata.get(SECONDS_KEY),
            metadata.get(EDITED_KEY),
        )
        try:
            case = work.judge(opened, judgement)
        except MedsegError as error:
            self._refused(error)
            return False
        except Exception as error:
            self._say(f"Unexpected {type(error).__name__}; please report it", trouble=True)
            return False
        if state == "corrected" and layer is not None:
            labels_were_saved(layer.data)
        self._show()
        self._say(_entered(case))
        if self.next_check.isChecked() and state != "open":
            self.go(1)
        return True

    def _refused(self, error: MedsegError) -> None:
        """Say why; where somebody else was quicker, show what they said."""
        assert self.work is not None  # noqa: S101 - asked before
        words = str(error)
        if error.code in ("review-conflict", "review-result-changed") and self.opened is not None:
            with suppress(MedsegError):
                self.work.refresh()
                self._show()
                now = self.work.case(self.opened.case.number)
                if error.code == "review-conflict":
                    # it was seen now: marking it again is meant
                    self.opened.case = now
                    words += f"\nIt is now: {now.review_text or 'taken back'}"
        self._say(words, trouble=True)

    def _refresh_buttons(self) -> None:
        ready = self.work is not None and not self.is_opening
        writable = ready and self.work is not None and not self.work.is_read_only
        for button in (self.open_button, self.back_button, self.next_button):
            button.setEnabled(ready)
        there = writable and self.opened is not None
        for button, _ in self._verdicts():
            button.setEnabled(there)
        for button in (self.accept_button, self.correct_button):  # what nobody sees is not judged
            button.setEnabled(there and self._labels is not None)
        self.note_line.setEnabled(there)

    def _gone(self) -> None:
        """The dock was closed."""
        with suppress(ValueError):
            self.guard.others.remove(self._may_close)
        if self.work is not None:
            self.work.close()
            self.work = None

    def _say(self, message: str, *, trouble: bool = False) -> None:
        self.message.setStyleSheet("color: #d08a2c;" if trouble else "")
        self.message.setText(message)


def _entered(case: WorkCase) -> str:
    review = case.review
    assert review is not None  # noqa: S101 - it was just entered
    if review.state == "open":
        return f"{case.row.name}: taken back"
    words = f"{case.row.name}: {review.state}"
    if review.file:
        dice = review.mean_dice
        words += f"; saved and verified: {review.file}"
        words += "" if dice is None else f", mean Dice of the model {dice_in_words(dice)}"
    return words


def _button(words: str, tip: str) -> QPushButton:
    button = QPushButton(words)
    button.setToolTip(tip)
    return button


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    return label
