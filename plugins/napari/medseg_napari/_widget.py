"""The dock that runs a model on what is open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_warning
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg.errors import MedsegError
from medseg.inference.store import choices_path
from medseg_napari._badge import badge_of, show_badges
from medseg_napari._controller import (
    Failed,
    Part,
    Planned,
    Result,
    RunController,
    RunState,
    Task,
    Update,
)
from medseg_napari._device_box import DeviceBox
from medseg_napari._layer_boxes import fill, index_of, is_ours, likely, narrow_box
from medseg_napari._layers import doubt_layer, label_colours
from medseg_napari._models import (
    FoundModel,
    FoundModels,
    find_all_models,
    model_events,
    user_models,
)
from medseg_napari._origin import METADATA_KEY, origin_of
from medseg_napari._region_box import RegionBox
from medseg_napari._request import ImageInput, Request, RunOptions, region_of_shapes
from medseg_napari._send import CHANNELS_KEY
from medseg_napari._words import going_on, model_in_words, plan_in_words
from medseg_napari._worker import Activity, Listening, start_worker

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Shapes
    from napari.viewer import Viewer

__all__ = ["RunDock"]

_LOOK_MS = 100
_PLAN_AFTER_MS = 500
_LEAST_WIDTH = 320


class RunDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Choose a model and an image, see what it takes, run it, stop it.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.controller = RunController(self._state_changed, store=choices_path(os.environ))
        self._models = FoundModels((), ())
        self._folder: Path | None = None
        self._layers: dict[Task, Labels] = {}
        self._activity: Activity | None = None
        self._channel_boxes: list[QComboBox] = []
        self._run_on: tuple[Image, ...] = ()
        self._chosen: tuple[Any, ...] = ()
        self._is_looking = False
        self._is_dropping = False
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._look)
        self._plan_timer = QTimer(self)
        self._plan_timer.setSingleShot(True)
        self._plan_timer.setInterval(_PLAN_AFTER_MS)
        self._plan_timer.timeout.connect(self.plan)
        show_badges(self._viewer)
        self._listening = Listening(self, self._gone)
        layers = self._viewer.layers.events
        self._listening.to(layers.inserted, self._layers_changed)
        self._listening.to(layers.removed, self._layer_removed)
        self._listening.to(layers.reordered, self._layers_changed)
        self._listening.to(self._viewer.layers.selection.events.active, self._active_changed)
        self._listening.to(model_events.added, self._model_added)
        QApplication.instance().aboutToQuit.connect(self.stop)
        self.look_for_models(user_models())

    # ---- what the user sees

    def _build(self) -> None:
        self.model_box = narrow_box()
        self.model_box.currentIndexChanged.connect(self._model_changed)
        self.folder_button = QPushButton("Folder...")
        self.folder_button.setToolTip("Look for models in a folder of yours")
        self.folder_button.clicked.connect(self._choose_folder)
        self.about_model = _text()
        self.about_image = _text()
        self._channel_form = QFormLayout()
        self.device_box = DeviceBox()
        self.region = RegionBox(self._viewer, lambda: self._image(0))
        self.region_box = self.region.box
        self.fast_check = QCheckBox("fast (coarser)")
        self.fast_check.setToolTip("As `medseg predict --coarser 1.5`: less exact")
        self.find_check = QCheckBox("find the region first")
        self.find_check.setToolTip("As `medseg predict --find-region`")
        self.mirror_check = QCheckBox("test-time augmentation")
        self.mirror_check.setToolTip("As `medseg predict --tta model`: slower, a little more exact")
        self.doubt_check = QCheckBox("show doubt")
        self.doubt_check.setToolTip("As `medseg predict --uncertainty`: adds a layer")
        self.plan_text = _text()
        self.run_button = QPushButton("Run")
        self.run_button.clicked.connect(self.run)
        self.stop_button = QPushButton("Stop")
        self.stop_button.clicked.connect(self.stop)
        self.bar = QProgressBar()
        self.message = _text()
        self._arrange()
        for check in (self.fast_check, self.find_check, self.mirror_check, self.doubt_check):
            check.toggled.connect(self._choice_changed)
        self.device_box.currentIndexChanged.connect(self._choice_changed)
        self.region.changed.connect(self._choice_changed)

    def _arrange(self) -> None:
        models = QHBoxLayout()
        models.addWidget(self.model_box, 1)
        models.addWidget(self.folder_button)
        form = QFormLayout()
        form.addRow("model", models)
        form.addRow(self.about_model)
        form.addRow(self._channel_form)
        form.addRow(self.about_image)
        form.addRow("region", self.region)
        form.addRow("device", self.device_box)
        for check in (self.fast_check, self.find_check, self.mirror_check, self.doubt_check):
            form.addRow("", check)
        form.addRow(self.plan_text)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.stop_button)
        inside = QVBoxLayout()
        inside.addLayout(form)
        inside.addLayout(buttons)
        inside.addWidget(self.bar)
        inside.addWidget(self.message)
        inside.addStretch(1)
        notice = _text()
        notice.setText(NOTICE)
        inside.addWidget(notice)
        content = QWidget()
        content.setLayout(inside)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(content)
        # lines fold, so that nothing lies beyond the edge of a narrow dock
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarAlwaysOff)
        self.setMinimumWidth(_LEAST_WIDTH)
        outside = QVBoxLayout()
        outside.setContentsMargins(0, 0, 0, 0)
        outside.addWidget(scroll)
        self.setLayout(outside)

    # ---- models and devices

    def look_for_models(self, folder: Path | None) -> None:
        """List the packaged models and those of a folder."""
        self._folder = folder
        self._models = find_all_models(folder)
        chosen = self.model_box.currentText()
        self.model_box.blockSignals(True)
        self.model_box.clear()
        self.model_box.addItems([model.title for model in self._models.models])
        self.model_box.setCurrentIndex(max(0, self.model_box.findText(chosen)))
        self.model_box.blockSignals(False)
        self._model_changed()
        if self._models.problems:
            self._say("\n".join(self._models.problems), trouble=True)

    def _model_added(self, _folder: Path) -> None:
        self.look_for_models(self._folder)

    @property
    def model(self) -> FoundModel | None:
        """The model that is chosen."""
        index = self.model_box.currentIndex()
        return self._models.models[index] if 0 <= index < len(self._models.models) else None

    def choose_model(self, name: str) -> None:
        """Choose a model by its name."""
        model = self._models.named(name)
        if model is not None:
            self.model_box.setCurrentIndex(self._models.models.index(model))

    def _choose_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder with models")
        if folder:
            self.look_for_models(Path(folder))

    def _model_changed(self) -> None:
        model = self.model
        self.about_model.setText("" if model is None else model_in_words(model))
        while self._channel_form.rowCount():
            self._channel_form.removeRow(0)
        self._channel_boxes = []
        channels = () if model is None else model.channels
        for channel in channels:
            box = narrow_box()
            box.currentIndexChanged.connect(self._image_changed)
            self._channel_boxes.append(box)
            self._channel_form.addRow("image" if len(channels) == 1 else channel, box)
        self._layers_changed()

    # ---- layers

    def _layers_changed(self, event: Any = None) -> None:  # noqa: ANN401 - napari's
        if event is not None and getattr(event, "type", "") == "inserted":
            self._listening.to(event.value.events.name, self._layers_changed)
        images = [layer for layer in self._viewer.layers if is_ours(layer)]
        model = self.model
        for number, box in enumerate(self._channel_boxes):
            wanted = box.currentData()
            if wanted not in images:
                wanted = likely(images, model, number, self._viewer.layers.selection.active)
            fill(box, [(layer.name, layer) for layer in images], wanted)
        self.region.list_layers()
        self._image_changed()

    def _active_changed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        """With one channel, the image that is selected is the one to run on."""
        box = self._channel_boxes[0] if len(self._channel_boxes) == 1 else None
        if box is not None and is_ours(event.value) and not self.controller.state.is_busy:
            box.setCurrentIndex(index_of(box, event.value))

    def _image_changed(self) -> None:
        image = self._image(0)
        self.about_image.setText("" if image is None else badge_of([image]))
        self._choice_changed()

    def _choice_changed(self) -> None:
        checks = (self.fast_check, self.find_check, self.mirror_check, self.doubt_check)
        chosen = (
            self.model,
            *(id(self._image(number)) for number in range(len(self._channel_boxes))),
            self.region.mark(),
            self.device_box.currentText(),
            *(check.isChecked() for check in checks),
        )
        self._state_changed(self.controller.state)
        if chosen == self._chosen:
            return
        self._chosen = chosen
        self.controller.forget_plan()
        if not self.controller.state.is_busy or self.controller.state.kind == "plan":
            self._plan_timer.start()

    def _image(self, number: int) -> Image | None:
        if number >= len(self._channel_boxes):
            return None
        layer = self._channel_boxes[number].currentData()
        return layer if layer is not None and layer in self._viewer.layers else None

    def _layer_removed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        layer = event.value
        state = self.controller.state
        if not self._is_dropping and state.is_busy and state.kind == "run":
            if any(layer is one for one in self._layers.values()):
                self.controller.stop("The result was closed, and the run with it")
            elif any(layer is one for one in self._run_on):
                self.controller.stop("The image was closed, and the run with it")
        self._layers = {task: one for task, one in self._layers.items() if one is not layer}
        self._layers_changed()

    # ---- plan, run, stop

    def request(self) -> Request | None:
        """What is chosen, or None where an image is missing.

        Raises:
            MedsegError: If the region lies beside the image.
        """
        model = self.model
        chosen = [self._image(number) for number in range(len(self._channel_boxes))]
        layers = [layer for layer in chosen if layer is not None]
        if model is None or not layers or len(layers) < len(chosen):
            return None
        images = []
        for layer in layers:
            origin = origin_of({"metadata": layer.metadata})
            assert origin is not None  # noqa: S101 - no other layers are listed
            images.append(ImageInput(layer.name, layer.data, origin))
        region = None
        shapes = self.region.shapes
        if shapes is not None:
            corners = [_corners_mm(shapes, points) for points in shapes.data]
            region = region_of_shapes(corners, images[0].origin)
        options = RunOptions(
            device=self.device_box.currentText(),
            fast=self.fast_check.isChecked(),
            mirrored=self.mirror_check.isChecked(),
            find_region=self.find_check.isChecked(),
            uncertainty=self.doubt_check.isChecked(),
        )
        return Request(model, tuple(images), options, region)

    def plan(self) -> None:
        """Find out, in the background, what the run would take."""
        state = self.controller.state
        if state.is_busy and state.kind == "run":
            return
        self._begin(plan_only=True)

    def run(self) -> None:
        """Run the model, in the background."""
        state = self.controller.state
        if state.is_busy and state.kind == "run":
            return
        self._plan_timer.stop()
        self._begin(plan_only=False)

    def stop(self) -> None:
        """Stop the run."""
        self.controller.stop()

    def _begin(self, *, plan_only: bool) -> None:
        try:
            request = self.request()
        except MedsegError as error:
            self._say(str(error), trouble=True)
            return
        if request is None:
            if not plan_only:
                self._say("Open an image with medseg first, one for each channel", trouble=True)
            return
        task = self.controller.begin(request, plan_only=plan_only)
        if not plan_only:
            images = (self._image(number) for number in range(len(self._channel_boxes)))
            self._run_on = tuple(image for image in images if image is not None)
            self._activity = Activity(
                f"{request.model.name} on {request.images[0].name}", self.controller.stop
            )
        self._timer.start()

        def steps() -> Iterator[tuple[Task, Update]]:
            for update in self.controller.steps(task):
                yield task, update

        start_worker(steps, yielded=self._yielded)

    def _yielded(self, given: tuple[Task, Update]) -> None:
        task, update = given
        if not self.controller.take(task, update):
            self._drop(task)
            return
        if isinstance(update, Part):
            self._show_part(task, update)
        elif isinstance(update, Result):
            self._show_result(task, update)
        elif not isinstance(update, Planned):
            self._drop(task)
            if isinstance(update, Failed) and not task.plan_only:
                show_warning(update.message)

    def _show_part(self, task: Task, part: Part) -> None:
        if self.controller.state.phase == "stopping":
            return
        layer = self._layers.get(task)
        if layer is None:
            self._layers[task] = self._add_result(task, part)
        else:
            layer.refresh(thumbnail=False, highlight=False, extent=False)

    def _add_result(self, task: Task, part: Part | Result) -> Labels:
        request = task.request
        settings = part.origin.layer_settings(f"{request.images[0].name} {request.model.name}")
        layer = self._viewer.add_labels(
            part.labels_shown, colormap=label_colours(part.origin.scheme), **settings
        )
        layer.editable = False  # the engine writes to its array
        return layer

    def _show_result(self, task: Task, result: Result) -> None:
        layer = self._layers.pop(task, None)
        if layer is None:
            layer = self._add_result(task, result)
        layer.data = result.labels_shown
        channels = dict(
            zip(
                task.request.model.channels,
                (image.name for image in task.request.images),
                strict=True,
            )
        )
        layer.metadata = {
            **layer.metadata,
            METADATA_KEY: result.origin,
            CHANNELS_KEY: channels,
        }
        layer.editable = True
        if result.doubt_shown is not None:
            data, settings, _ = doubt_layer(
                result.doubt_shown, result.origin, f"{layer.name} doubt"
            )
            self._viewer.add_image(data, **settings)
            self._viewer.layers.selection = {layer}

    def _drop(self, task: Task) -> None:
        """Take the part of a result away that will not become whole."""
        layer = self._layers.pop(task, None)
        if layer is not None and layer in self._viewer.layers:
            self._is_dropping = True
            try:
                self._viewer.layers.remove(layer)
            finally:
                self._is_dropping = False

    def _gone(self) -> None:
        """The dock was closed: what it was at goes with it."""
        self.controller.close()
        self.region.let_go()
        if self._activity is not None:
            self._activity.close()
        with suppress(RuntimeError, ValueError):  # where the viewer goes too
            for task in list(self._layers):
                self._drop(task)

    # ---- state

    def _look(self) -> None:
        if self._is_looking:  # moving napari's bar lets events through
            return
        self._is_looking = True
        try:
            self.controller.look()
        finally:
            self._is_looking = False

    def _state_changed(self, state: RunState) -> None:
        running = state.is_busy and state.kind == "run"
        self.run_button.setEnabled(not running and self._image(0) is not None)
        self.stop_button.setEnabled(running and state.phase != "stopping")
        self.plan_text.setText(plan_in_words(state))
        self.bar.setVisible(running)
        if running:
            self.bar.setRange(0, state.total)
            self.bar.setValue(state.done)
            self._say(going_on(state))
            if self._activity is not None:
                self._activity.show(state.done, state.total, state.seconds_left)
        elif not state.is_busy:
            self._timer.stop()
            if self._activity is not None:
                self._activity.close()
                self._activity = None
            self._run_on = ()
            if state.message or state.phase != "idle":
                self._say(state.message, trouble=state.phase == "failed")

    def _say(self, message: str, *, trouble: bool = False) -> None:
        colour = "color: #d08a2c;" if trouble else ""
        self.message.setStyleSheet(colour)
        self.message.setText(message)


def _text() -> QLabel:
    label = QLabel()
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Minimum)
    return label


def _corners_mm(shapes: Shapes, points: Any) -> Any:  # noqa: ANN401 - arrays
    return np.array([shapes.data_to_world(point) for point in points])
