"""The dock that sends corrected labels back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from medseg import NOTICE
from medseg.errors import MedsegError
from medseg.io.scan import DicomSource
from medseg_napari._edit_session import is_scribbles, labels_were_saved
from medseg_napari._layer_boxes import fill, index_of, narrow_box
from medseg_napari._origin import LayerOrigin, origin_of
from medseg_napari._send import CHANNELS_KEY, SECONDS_KEY, Parcel
from medseg_napari._training_set import Layout
from medseg_napari._words import dice_in_words, ml_in_words, time_in_words
from medseg_napari._worker import Listening
from medseg_napari._writer import EDITED_KEY, image_below

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

    from medseg_napari._effort import EffortReport

__all__ = ["SendDock"]

_COLUMNS = ("structure", "made", "ml", "+ ml", "- ml", "Dice")
_LEAST_WIDTH = 400  # of which the table shows all columns
_KINDS = {"AUTOMATIC": "model", "SEMIAUTOMATIC": "corrected", "MANUAL": "by hand", "": "gone"}
_SAME_GRID_MM = 0.01
_REFRESH_AFTER_MS = 800


class SendDock(QWidget):  # type: ignore[misc] # Qt is untyped here
    """Save labels with their provenance, report the effort, add the case to a training set.

    Args:
        napari_viewer: The viewer.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self._viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self._watched: Labels | None = None
        self.layer_box = narrow_box()
        self.layer_box.currentIndexChanged.connect(self._layer_changed)
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(list(_COLUMNS))
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        self.save_button = QPushButton("Save labels...")
        self.save_button.setToolTip("DICOM SEG, RT structure set or NIfTI, on the original grid")
        self.save_button.clicked.connect(self._ask_and_save)
        self.report_button = QPushButton("Save report...")
        self.report_button.clicked.connect(self._ask_and_report)
        self.layout_box = narrow_box()
        self.layout_box.addItem("nnU-Net", "nnunet")
        self.layout_box.addItem("MSD", "msd")
        self.layout_box.setToolTip("Layout of a new folder; one with cases keeps its own")
        self.train_button = QPushButton("Add to training set...")
        self.train_button.clicked.connect(self._ask_and_add)
        self.message = QLabel()
        self.message.setWordWrap(True)
        self._arrange()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_REFRESH_AFTER_MS)
        self._timer.timeout.connect(self.refresh)
        self._listening = Listening(self, self._unwatch)
        events = self._viewer.layers.events
        self._listening.to(events.inserted, self._layers_changed)
        self._listening.to(events.removed, self._layers_changed)
        self._listening.to(self._viewer.layers.selection.events.active, self._active_changed)
        self._layers_changed()

    def _arrange(self) -> None:
        form = QFormLayout()
        form.addRow("labels", self.layer_box)
        saving = QHBoxLayout()
        saving.addWidget(self.save_button)
        saving.addWidget(self.report_button)
        training = QHBoxLayout()
        training.addWidget(self.train_button, 1)
        training.addWidget(self.layout_box)
        notice = QLabel(NOTICE)
        notice.setWordWrap(True)
        layout = QVBoxLayout()
        layout.addLayout(form)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.summary)
        layout.addLayout(saving)
        layout.addLayout(training)
        layout.addWidget(self.message)
        layout.addWidget(notice)
        self.setLayout(layout)
        self.setMinimumWidth(_LEAST_WIDTH)

    # ---- layers

    def _layers_changed(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
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

    def _active_changed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        found = index_of(self.layer_box, event.value)
        if found >= 0:
            self.layer_box.setCurrentIndex(found)

    def _layer_changed(self) -> None:
        layer = self.layer
        self._unwatch()
        self._watched = layer
        if layer is not None:
            for name in ("labels_update", "data", "paint"):
                getattr(layer.events, name).connect(self._edited)
        self.refresh()

    def _unwatch(self) -> None:
        if self._watched is not None:
            for name in ("labels_update", "data", "paint"):
                getattr(self._watched.events, name).disconnect(self._edited)
            self._watched = None

    def _edited(self, event: Any = None) -> None:  # noqa: ANN401, ARG002 - napari's
        self._timer.start()

    @property
    def layer(self) -> Labels | None:
        """The labels that are chosen."""
        layer = self.layer_box.currentData()
        return layer if layer is not None and layer in self._viewer.layers else None

    def parcel(self) -> Parcel | None:
        """What would be sent; None where the labels lie on no image of ours."""
        layer = self.layer
        origin = None if layer is None else _origin_below(layer)
        if layer is None or origin is None:
            return None
        return Parcel(
            layer.name,
            layer.data,
            origin,
            layer.metadata.get(EDITED_KEY),
            layer.metadata.get(SECONDS_KEY),
        )

    def images(self, parcel: Parcel) -> dict[str, Image]:
        """The images that the labels belong to, by channel."""
        layer = self.layer
        named = {} if layer is None else layer.metadata.get(CHANNELS_KEY) or {}
        if named and all(name in self._viewer.layers for name in named.values()):
            return {channel: self._viewer.layers[name] for channel, name in named.items()}
        alike = [one for one in self._viewer.layers if _is_image_on(one, parcel.origin)]
        drawn_on = [one for one in alike if _source_of(one) is parcel.origin.source]
        if len(alike) > 1 and len(drawn_on) == 1:
            alike = drawn_on
        if len(alike) == 1:
            return {_modality(alike[0]): alike[0]}
        return {one.name: one for one in alike}

    # ---- what is shown

    def refresh(self) -> None:
        """Compare the labels with what they were."""
        parcel = self.parcel()
        for button in (self.save_button, self.report_button, self.train_button):
            button.setEnabled(parcel is not None)
        self.table.setRowCount(0)
        if parcel is None:
            self.summary.setText(
                "" if self.layer is None else "These labels lie on no image opened with medseg."
            )
            return
        try:
            report = parcel.effort()
        except MedsegError as error:
            self.summary.setText(str(error))
            return
        for row, label in enumerate(report.labels):
            self.table.insertRow(row)
            cells = (
                label.name,
                _KINDS[label.kind],
                ml_in_words(label.after_ml),
                ml_in_words(label.added_ml),
                ml_in_words(label.removed_ml),
                "" if label.dice is None else dice_in_words(label.dice),
            )
            for column, text in enumerate(cells):
                self.table.setItem(row, column, QTableWidgetItem(text))
        self.summary.setText(_summary(report))

    def _tell(self, message: str, *, trouble: bool = False) -> None:
        self.message.setStyleSheet("color: #d08a2c;" if trouble else "")
        self.message.setText(message)

    def _attempt(self, action: Callable[[Parcel], str]) -> bool:
        """Do something with the parcel and say how it ended; the viewer lives on."""
        parcel = self.parcel()
        if parcel is None:
            self._tell("Choose labels on an image opened with medseg first", trouble=True)
            return False
        try:
            self._tell(action(parcel))
        except MedsegError as error:
            self._tell(str(error), trouble=True)
            return False
        except Exception as error:
            self._tell(f"Unexpected {type(error).__name__}; please report it", trouble=True)
            return False
        return True

    # ---- actions

    def save(self, target: Path, *, rtstruct: bool = False) -> bool:
        """Save the labels; whether they were."""

        def action(parcel: Parcel) -> str:
            types = parcel.save(target, rtstruct=rtstruct)
            labels_were_saved(parcel.labels_shown)
            kinds = ", ".join(
                f"{sum(one == kind for one in types.values())} {words}"
                for kind, words in _KINDS.items()
                if kind in types.values()
            )
            return f"Saved and verified: {target.name} ({kinds or 'no structure'})"

        return self._attempt(action)

    def save_report(self, target: Path) -> bool:
        """Save the report of the effort; whether it was."""

        def action(parcel: Parcel) -> str:
            parcel.save_report(target)
            return f"Saved: {target.name}"

        return self._attempt(action)

    def add_to_training_set(self, folder: Path) -> bool:
        """Add the case to a dataset; whether it was."""
        layout: Layout = self.layout_box.currentData()

        def action(parcel: Parcel) -> str:
            images = {channel: one.data for channel, one in self.images(parcel).items()}
            added = parcel.add_to_training_set(folder, images, layout=layout)
            verb = "replaced" if added.replaced else "added"
            cases = f"{added.cases} case{'' if added.cases == 1 else 's'}"
            return f"{added.name} {verb}; {folder.name} holds {cases}"

        return self._attempt(action)

    def _ask_and_save(self) -> None:
        parcel = self.parcel()
        dicom = parcel is not None and isinstance(parcel.origin.source, DicomSource)
        filters = "NIfTI (*.nii.gz *.nii)"
        if dicom:
            filters = f"DICOM SEG (*.dcm);;RT structure set (*.dcm);;{filters}"
        path, chosen = QFileDialog.getSaveFileName(self, "Save labels", "", filters)
        if path:
            ending = ".nii.gz" if chosen.startswith("NIfTI") else ".dcm"
            target = self._named(path, ending, (".nii", ".nii.gz", ".dcm"))
            if target is not None:
                self.save(target, rtstruct=chosen.startswith("RT"))

    def _ask_and_report(self) -> None:
        path, chosen = QFileDialog.getSaveFileName(
            self, "Save report", "", "JSON (*.json);;CSV (*.csv)"
        )
        if path:
            ending = ".csv" if chosen.startswith("CSV") else ".json"
            target = self._named(path, ending, (".json", ".csv"))
            if target is not None:
                self.save_report(target)

    def _named(self, path: str, ending: str, known: tuple[str, ...]) -> Path | None:
        """What a dialog gave, with an ending; None, and a word about it, where that is taken."""
        if path.lower().endswith(known):
            return Path(path)
        target = Path(path + ending)
        if target.exists():  # the dialog asked about the name without the ending
            words = f"{target.name} is there already; choose it by its full name to replace it"
            self._tell(f"{words}. Nothing was saved", trouble=True)
            return None
        return target

    def _ask_and_add(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the training set")
        if folder:
            self.add_to_training_set(Path(folder))


def _origin_below(layer: Labels) -> LayerOrigin | None:
    settings = {
        "metadata": layer.metadata,
        "scale": layer.scale,
        "translate": layer.translate,
    }
    return origin_of(settings) or image_below(layer.data, settings)


def _is_image_on(layer: Layer, origin: LayerOrigin) -> bool:
    if not isinstance(layer, Image):
        return False
    own = origin_of({"metadata": layer.metadata})
    return (
        own is not None
        and own.grid.shape_ijk == origin.grid.shape_ijk
        and own.grid.distance_mm(origin.grid) <= _SAME_GRID_MM
    )


def _source_of(layer: Layer) -> object:
    origin = origin_of({"metadata": layer.metadata})
    return None if origin is None else origin.source


def _modality(layer: Image) -> str:
    from medseg_napari._display import modality_of  # noqa: PLC0415

    origin = origin_of({"metadata": layer.metadata})
    assert origin is not None  # noqa: S101 - only such layers are listed
    return modality_of(layer.data, origin.source) or "image"


def _summary(report: EffortReport) -> str:
    known = [words for words in report.made_by or () if words != "not recorded"]
    made = f"made by {' '.join(known)}" if known else ""
    if report.seconds is None:
        return made
    took = f"{time_in_words(report.seconds)} {report.seconds_mean.replace('editing', 'of editing')}"
    return f"{made}; {took}" if made else took
