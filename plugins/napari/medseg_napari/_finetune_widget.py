"""The dock that trains a model on with corrected cases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Labels
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg.cores import usable_cores
from medseg.errors import MedsegError
from medseg_napari._device_box import DeviceBox
from medseg_napari._finetune import (
    FineTuneController,
    FineTuneRequest,
    FineTuneState,
    free_name,
    look_into_set,
)
from medseg_napari._models import (
    FoundModel,
    find_all_models,
    model_events,
    remember_model,
    user_models,
)
from medseg_napari._origin import origin_of
from medseg_napari._words import model_in_words, time_in_words
from medseg_napari._worker import Activity, Listening

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["FineTuneDock"]

_LOOK_MS = 200
_MINUTES = 30.0
_COLUMNS = ("structure", "old model", "new model", "change")
_LEAST_WIDTH = 400
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class FineTuneDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Choose a model and a training set, train on in another process, see whether it got better.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.controller = FineTuneController(self._state_changed)
        self.steps: int | None = None
        """Steps in place of the minutes; for tests."""
        self.data: Path | None = None
        self._models: tuple[FoundModel, ...] = ()
        self._folder: Path | None = user_models()
        self.target = user_models()
        self._activity: Activity | None = None
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self.controller.look)
        self._listening = Listening(self, self._gone)
        self._listening.to(self._viewer.layers.selection.events.active, self._active_changed)
        self._listening.to(model_events.added, self._model_added)
        QApplication.instance().aboutToQuit.connect(self.controller.close)
        self.look_for_models(self._folder)
        self._state_changed(self.controller.state)

    # ---- what the user sees

    def _build(self) -> None:
        self.model_box = QComboBox()
        self.model_box.currentIndexChanged.connect(self._model_changed)
        self.about_model = _text()
        self.data_button = QPushButton("Training set...")
        self.data_button.setToolTip("The folder that corrected cases were added to (Send it back)")
        self.data_button.clicked.connect(self._choose_data)
        self.about_data = _text()
        self.target_button = QPushButton("Save in...")
        self.target_button.setToolTip("Where the new model gets a folder of its own")
        self.target_button.clicked.connect(self._choose_target)
        self.target_text = _text()
        self.name_line = QLineEdit()
        self.minutes_box = QDoubleSpinBox()
        self.minutes_box.setRange(0.1, 7 * 24 * 60)
        self.minutes_box.setDecimals(1)
        self.minutes_box.setValue(_MINUTES)
        self.minutes_box.setToolTip("Training takes this long; reading and comparing come on top")
        self.device_box = DeviceBox()
        cores = usable_cores()
        self.threads_box = QSpinBox()
        self.threads_box.setRange(1, cores)
        self.threads_box.setValue(max(1, cores - 1))
        self.threads_box.setToolTip("Cores that the training uses; leave some to the viewer")
        self.start_button = QPushButton("Start")
        self.start_button.clicked.connect(self.start)
        self.stop_button = QPushButton("Stop")
        self.stop_button.setToolTip("As Ctrl-C: ends after the step in hand, the model is kept")
        self.stop_button.clicked.connect(self.controller.stop)
        self.bar = QProgressBar()
        self.message = _text()
        self.compared = _text()
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(list(_COLUMNS))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self._arrange()

    def _arrange(self) -> None:
        form = QFormLayout()
        form.addRow("begin with", self.model_box)
        form.addRow(self.about_model)
        form.addRow(self.data_button, self.about_data)
        form.addRow(self.target_button, self.target_text)
        form.addRow("name", self.name_line)
        form.addRow("minutes", self.minutes_box)
        form.addRow("device", self.device_box)
        form.addRow("threads", self.threads_box)
        buttons = QHBoxLayout()
        buttons.addWidget(self.start_button)
        buttons.addWidget(self.stop_button)
        closing = _text()
        closing.setText("The training is a process of its own and ends when napari is closed.")
        notice = _text()
        notice.setText(NOTICE)
        layout = QVBoxLayout()
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addWidget(self.compared)
        layout.addWidget(self.table, 1)
        layout.addWidget(closing)
        layout.addWidget(notice)
        self.setLayout(layout)
        self.setMinimumWidth(_LEAST_WIDTH)

    # ---- choices

    def look_for_models(self, folder: Path | None) -> None:
        """List the packaged models and those of a folder; ensembles are left out."""
        self._folder = folder
        found = find_all_models(folder).models
        chosen = self.model_box.currentText()
        self._models = tuple(model for model in found if len(model.folders) == 1)
        self.model_box.blockSignals(True)
        self.model_box.clear()
        self.model_box.addItems([model.title for model in self._models])
        self.model_box.setCurrentIndex(max(0, self.model_box.findText(chosen)))
        self.model_box.blockSignals(False)
        self._model_changed()

    @property
    def model(self) -> FoundModel | None:
        """The model that is chosen."""
        index = self.model_box.currentIndex()
        return self._models[index] if 0 <= index < len(self._models) else None

    def choose_model(self, name: str) -> None:
        """Choose a model by its name."""
        for number, model in enumerate(self._models):
            if model.name == name:
                self.model_box.setCurrentIndex(number)

    def choose_data(self, folder: Path) -> None:
        """Choose the training set."""
        self.data = folder
        self.data_button.setToolTip(str(folder))
        self._look_at_data()

    def choose_target(self, folder: Path) -> None:
        """Choose where the new model is saved."""
        self.target = folder
        self._model_changed()

    def _choose_data(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the training set")
        if folder:
            self.choose_data(Path(folder))

    def _choose_target(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the new model")
        if folder:
            self.choose_target(Path(folder))

    def _model_changed(self) -> None:
        model = self.model
        self.about_model.setText("" if model is None else model_in_words(model))
        self.target_text.setText(str(self.target))
        if model is not None and not self.controller.state.is_busy:
            self.name_line.setText(free_name(model, self.target))
        self._look_at_data()

    def _look_at_data(self) -> None:
        if self.data is None:
            self.about_data.setText("none chosen")
            return
        try:
            words = look_into_set(self.data).in_words(self.model)
        except MedsegError as error:
            words = str(error)
        self.about_data.setText(f"{self.data.name}: {words}")

    def _model_added(self, _folder: Path) -> None:
        self.look_for_models(self._folder)

    def _active_changed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        """The model that made the labels that are selected is the one to begin with."""
        layer = event.value
        origin = origin_of({"metadata": layer.metadata}) if isinstance(layer, Labels) else None
        beginning = None if origin is None else origin.beginning
        if beginning is None or not beginning.weights_sha256 or self.controller.state.is_busy:
            return
        for number, model in enumerate(self._models):
            if model.card.weights_sha256 == beginning.weights_sha256:
                self.model_box.setCurrentIndex(number)

    # ---- start, stop

    def request(self) -> FineTuneRequest | None:
        """What is chosen; None, and a word about it, where something is missing."""
        name = self.name_line.text().strip()
        if self.model is None:
            self._say("There is no model to begin with", trouble=True)
        elif self.data is None:
            self._say("Choose the training set first: the folder of corrected cases", trouble=True)
        elif not _NAME.fullmatch(name):
            words = "The name may have small letters, digits, dots, dashes and underscores"
            self._say(f"{words}, and begins with a letter or digit", trouble=True)
        else:
            return FineTuneRequest(
                self.model,
                self.data,
                self.target / name,
                self.minutes_box.value(),
                self.threads_box.value(),
                self.device_box.currentText(),
                self.steps,
            )
        return None

    def start(self) -> None:
        """Start the training; it goes on beside the viewer."""
        request = self.request()
        if request is None or self.controller.state.is_busy:
            return
        if self.controller.begin(request):
            self._activity = Activity(f"fine-tuning {request.model.name}", self.controller.stop)
            self._timer.start()

    def _state_changed(self, state: FineTuneState) -> None:
        self.start_button.setEnabled(not state.is_busy)
        self.stop_button.setEnabled(state.is_busy)
        self.bar.setVisible(state.is_busy)
        if state.is_busy:
            self.bar.setRange(0, state.total)
            self.bar.setValue(state.done)
            self._say(_going_on(state))
            if self._activity is not None:
                self._activity.show(state.done, state.total, state.seconds_left)
            return
        self._timer.stop()
        if self._activity is not None:
            self._activity.close()
            self._activity = None
        if state.phase == "idle":
            return
        self._say(state.message, trouble=state.phase == "failed")
        self._show_dice(state)
        if state.run_folder is not None:
            remember_model(state.run_folder)

    def _show_dice(self, state: FineTuneState) -> None:
        cases = ", ".join(state.held_out)
        self.compared.setText(f"Dice on cases held out: {cases}" if state.dice else "")
        self.table.setRowCount(len(state.dice))
        for number, row in enumerate(state.dice):
            known = row.before is not None and row.after is not None
            change = f"{row.after - row.before:+.4f}" if known else ""  # type: ignore[operator]
            cells = (row.structure, _figure(row.before), _figure(row.after), change)
            for column, text in enumerate(cells):
                self.table.setItem(number, column, QTableWidgetItem(text))

    def _gone(self) -> None:
        """The dock was closed, and the training with it."""
        self.controller.close()
        if self._activity is not None:
            self._activity.close()

    def _say(self, message: str, *, trouble: bool = False) -> None:
        self.message.setStyleSheet("color: #d08a2c;" if trouble else "")
        self.message.setText(message)


def _going_on(state: FineTuneState) -> str:
    if state.phase in ("starting", "stopping"):
        return state.message
    left = state.seconds_left
    rest = "" if left is None else f", about {time_in_words(left)} left"
    loss = "" if state.loss is None else f"; loss {state.loss:.3f}"
    share = f" {100 * state.done // state.total} %" if state.total else ""
    return f"{state.stage}:{share}{rest}{loss}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    return label
