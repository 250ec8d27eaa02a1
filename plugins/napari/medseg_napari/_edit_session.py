"""The layers that are being corrected: beginning, what saving needs to know, and the end. No Qt.

A layer stays in correction, with its effort and its autosave, until it is closed: whether another
layer is corrected meanwhile, or the dock is closed, makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from psygnal import Signal

from medseg.core.labelmap import label_counts
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg_napari._origin import METADATA_KEY, LayerOrigin, origin_of
from medseg_napari._provenance import Beginning
from medseg_napari._send import SECONDS_KEY
from medseg_napari._writer import EDITED_KEY, image_below
from medseg_napari.editing.autosave import Autosave, Recoverable, recoverable, source_key
from medseg_napari.editing.binding import identity_of, start_editing, unwrapped
from medseg_napari.editing.change import Change
from medseg_napari.editing.scribbles import Scribbles

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType

__all__ = [
    "SCRIBBLES_KEY",
    "Correction",
    "Lost",
    "correct",
    "correct_lost",
    "correction_of",
    "is_scribbles",
    "labels_were_saved",
    "lost",
    "origin_under",
    "unsaved",
]

SCRIBBLES_KEY = "medseg_scribbles"
"""Marks a layer, in its metadata, as one of scribbles and not of labels."""

SCRIBBLE_COLOURS = {None: (1, 1, 1, 1), 0: (0, 0, 0, 0), 1: (0.2, 1, 0.3, 1), 2: (1, 0.2, 0.2, 1)}

_corrections: list[Correction] = []


def is_scribbles(layer: Any) -> bool:  # noqa: ANN401 - napari's
    """Whether a layer was made for scribbles."""
    return SCRIBBLES_KEY in layer.metadata


def origin_under(layer: Any) -> LayerOrigin | None:  # noqa: ANN401 - napari's
    """The origin of labels, or of the only image of ours that they lie on."""
    settings = {"metadata": layer.metadata, "scale": layer.scale, "translate": layer.translate}
    own = origin_of(settings)
    if own is not None or not isinstance(layer.data, np.ndarray):
        return own
    return image_below(layer.data, settings)


class Correction:
    """One layer that is being corrected.

    Args:
        viewer: napari's, which holds the layer.
        layer: Labels.

    Raises:
        FormatError: ``edit-array`` if the layer cannot be edited.
        ConfigError: ``edit-busy`` while a model still writes to it.

    Attributes:
        trouble: Why nothing is saved in the background; empty where it is.
        recoverable: What earlier processes had not saved of the same image, newest first.
        scribbles_layer: Where scribbles are drawn; None until there are some.
    """

    closed = Signal()
    """The layer was taken out of the viewer, or the correction ended."""

    def __init__(self, viewer: Any, layer: Any) -> None:  # noqa: ANN401 - napari's
        self.viewer = unwrapped(viewer)
        self.layer = unwrapped(layer)
        if not self.layer.editable:
            raise ConfigError(
                self.layer.name,
                expected="labels that can be edited",
                found="a result that a model still writes to",
                remedy="wait until the model is done, or stop it",
                code="edit-busy",
            )
        origin = origin_under(self.layer)
        beginning = None if origin is None else origin.beginning
        self.trouble = ""
        made = "MANUAL" if beginning is None else beginning.others
        try:
            self.editing = start_editing(self.layer, made=made, image_origin=origin)
        except ResourceError as error:  # an edit that is not kept safe is better than none
            self.trouble = str(error)
            self.editing = start_editing(self.layer, made=made, autosave=False, image_origin=origin)
        self.controller = self.editing.controller
        if origin is not None and origin_of({"metadata": self.layer.metadata}) is None:
            # a new layer on the image: it knows where it lies from now on, and the labels' names
            self.layer.metadata[METADATA_KEY] = replace(origin, scheme=self.controller.scheme)
        self._beginning = beginning
        self._at_first: frozenset[int] = frozenset()
        if beginning is not None:
            counts = label_counts(beginning.labels.labels())
            self._at_first = frozenset(np.flatnonzero(counts).tolist())
        self._drawn_anew: set[int] = set()
        self.scribbles_layer: Any = None
        self.recoverable = self._find_recoverable()
        self.controller.changed.connect(self._on_change)
        self.controller.chosen.connect(self._on_chosen)
        self.viewer.layers.events.removed.connect(self._on_removed)
        self.controller.effort.acted(self.controller.active)
        _corrections.append(self)

    def _find_recoverable(self) -> list[Recoverable]:
        saver = self.editing.autosave
        if saver is None:
            return []
        shape = self.controller.labels.shape
        return [one for one in recoverable(saver.key) if one.header.shape == shape]

    def close(self) -> None:
        """End the correction; the layer stays as it is, and an autosave of what is unsaved too."""
        if self not in _corrections:
            return
        _corrections.remove(self)
        self.viewer.layers.events.removed.disconnect(self._on_removed)
        self.controller.changed.disconnect(self._on_change)
        self.controller.chosen.disconnect(self._on_chosen)
        self.editing.close()
        self.closed.emit()

    def _on_removed(self, event: Any) -> None:  # noqa: ANN401 - napari's
        if event.value is self.layer:
            self.close()
        elif event.value is self.scribbles_layer:
            self.scribbles_layer = None

    # ---- what saving needs to know

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self in _corrections

    @property
    def autosave(self) -> Autosave | None:
        """What keeps the edits safe."""
        return self.editing.autosave

    def _on_change(self, change: Change, forward: bool) -> None:
        """Leave with the layer how its labels came about, and the time that it took."""
        counts = self.controller.labels_table.counts
        gave: dict[int, int] = {}
        for (before, after), voxels in change.moved.items():
            source = before if forward else after
            target = after if forward else before
            gave[target] = gave.get(target, 0) + voxels
            if forward and source in self._at_first and not counts[source]:
                self._drawn_anew.add(source)
        if not forward:  # what was all gone is back
            self._drawn_anew -= {value for value, voxels in gave.items() if counts[value] == voxels}
        self.publish()

    def publish(self) -> None:
        """Write the two entries of the layer's metadata that Send it back reads."""
        self.layer.metadata[EDITED_KEY] = self.made()
        self.layer.metadata[SECONDS_KEY] = self.controller.effort.seconds

    def made(self) -> dict[int, AlgorithmType]:
        """How the labels that were edited came about, as DICOM names it for a segment.

        A label that was erased as a whole and drawn anew is MANUAL, though some of its voxels may
        be where the model had them.
        """
        types: dict[int, AlgorithmType] = {}
        for value in self.controller.scheme.values:
            work = self.controller.effort.of(value)
            if not (work.added_voxels or work.removed_voxels):
                continue
            by_hand = (
                self._beginning is None
                or value not in self._at_first
                or value in self._drawn_anew
                or self._beginning.type_of(value) == "MANUAL"
            )
            types[value] = "MANUAL" if by_hand else "SEMIAUTOMATIC"
        return types

    def recover(self, autosaved: Recoverable) -> None:
        """Put back what an earlier process had not saved, as one undo step.

        Raises:
            MedsegError: As :meth:`~medseg_napari.editing.binding.LayerEditing.recover`.
        """
        self.editing.recover(autosaved)
        self.recoverable.remove(autosaved)
        if self._beginning is None:
            self._begin_with_recovered()
        self.publish()

    def _begin_with_recovered(self) -> None:
        """Say how labels came about that were put back into an empty layer, which does not know.

        Those of which every voxel was drawn are MANUAL. What made the others is not recorded.
        """
        origin = origin_under(self.layer)
        if origin is None:
            return
        controller, counts = self.controller, self.controller.labels_table.counts
        work = {value: controller.effort.of(value) for value in controller.scheme.values}
        types: dict[int, AlgorithmType] = {
            value: "MANUAL"
            for value, one in work.items()
            if counts[value] == one.added_voxels - one.removed_voxels
        }
        labels = origin.original_array(controller.labels)
        self._beginning = Beginning.opened(labels, types=types)
        self._at_first = frozenset(np.flatnonzero(counts).tolist())
        self.layer.metadata[METADATA_KEY] = replace(
            origin, scheme=controller.scheme, beginning=self._beginning
        )

    def discard(self, autosaved: Recoverable) -> None:
        """Delete an autosave of an earlier process."""
        autosaved.discard()
        self.recoverable.remove(autosaved)

    # ---- where the viewer is

    def shown_slice(self) -> tuple[int, int] | None:
        """Axis across the slice that is shown, and its number; None in three dimensions."""
        dims = self.viewer.dims
        first = dims.ndim - 3
        hidden = [axis - first for axis in dims.not_displayed if axis >= first]
        if len(hidden) != 1:
            return None
        [axis] = hidden
        at = self.layer.world_to_data(dims.point)[-3:]
        return axis, int(np.floor(at[axis] + 0.5))

    def show_slice(self, axis: int, index: int) -> None:
        """Move the viewer to a slice of the layer."""
        at = np.zeros(3)
        at[axis] = index
        world = self.layer.data_to_world(at)
        self.viewer.dims.set_point(axis + self.viewer.dims.ndim - 3, world[axis])

    def pointer_vox(self) -> tuple[int, ...] | None:
        """The voxel under the mouse; None beside the image."""
        at = np.floor(np.asarray(self.layer.world_to_data(self.viewer.cursor.position)) + 0.5)
        inside = ((at[-3:] >= 0) & (at[-3:] < self.controller.labels.shape)).all()
        return tuple(int(place) for place in at[-3:]) if inside else None

    # ---- scribbles

    def show_scribbles(self) -> Any:  # noqa: ANN401 - napari's
        """The layer that scribbles are drawn in; made if there is none."""
        if self.scribbles_layer is None:
            active = self.viewer.layers.selection.active
            self.scribbles_layer = unwrapped(
                self.viewer.add_labels(
                    np.zeros(self.controller.labels.shape, dtype=np.uint8),
                    name=f"{self.layer.name} scribbles",
                    scale=self.layer.scale,
                    translate=self.layer.translate,
                    units=self.layer.units,
                    axis_labels=self.layer.axis_labels,
                    colormap=SCRIBBLE_COLOURS,
                    opacity=1.0,
                    metadata={SCRIBBLES_KEY: True},
                )
            )
            self.viewer.layers.selection.active = active
        return self.scribbles_layer

    def drawn_scribbles(self) -> Scribbles:
        """All scribbles, whichever tool drew them."""
        found = Scribbles(self.controller.scribbles.shape, self.controller.spacing_mm)
        if self.scribbles_layer is not None:
            found.add_layer(self.scribbles_layer.data)
        return found

    def clear_scribbles(self) -> None:
        """Take all scribbles away."""
        self.controller.scribbles.clear()
        if self.scribbles_layer is not None:
            self.scribbles_layer.data[:] = 0
            self.scribbles_layer.refresh()

    def _on_chosen(self, name: str) -> None:
        """Strokes go into the layer of scribbles, where they are seen and can be erased."""
        if name != "scribbles":
            return
        layer = self.show_scribbles()
        for box, mask, mark in self.controller.scribbles:
            layer.data[box][mask] = mark
        self.controller.scribbles.clear()
        layer.refresh(thumbnail=False, highlight=False, extent=False)


def correct(viewer: Any, layer: Any) -> Correction:  # noqa: ANN401 - napari's
    """Begin to correct a layer, or go on with it.

    Raises:
        MedsegError: As :class:`Correction`.
    """
    return correction_of(layer) or Correction(viewer, layer)


def correction_of(layer: Any) -> Correction | None:  # noqa: ANN401 - napari's
    """The correction of a layer that is going on."""
    found = unwrapped(layer)
    return next((one for one in _corrections if one.layer is found), None)


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """Corrections that are in no file and not in the viewer, of something that is.

    Args:
        layer: The image that they were made on, or the labels of a file that were corrected.
        autosaved: Where they are.
    """

    layer: Any
    autosaved: Recoverable


def lost(viewer: Any) -> list[Lost]:  # noqa: ANN401 - napari's
    """What was not saved of the images and labels that are open, and is not being corrected."""
    autosaved = recoverable()
    if not autosaved:
        return []
    savers = [one.autosave for one in _corrections]
    known = {saver.key for saver in savers if saver is not None}
    found: list[Lost] = []
    layers = sorted(unwrapped(viewer).layers, key=lambda layer: isinstance(layer, Labels))
    for layer in layers:  # images first: labels made on them are known by them
        origin = origin_of({"metadata": layer.metadata})
        if origin is None:
            continue
        key = source_key(identity_of(origin))
        of_it = [one for one in autosaved if one.header.key == key]
        fitting = [one for one in of_it if one.header.shape == layer.data.shape]
        if fitting and key not in known:
            known.add(key)
            found.append(Lost(unwrapped(layer), fitting[0]))
    return found


def correct_lost(viewer: Any, what: Lost) -> Correction:  # noqa: ANN401 - napari's
    """Put back what was not saved: into the labels of the file, or a new layer on the image.

    Raises:
        MedsegError: As :meth:`Correction.recover`; then there is no new layer.
    """
    layer, made = what.layer, False
    if not isinstance(layer, Labels):
        origin = origin_of({"metadata": layer.metadata})
        assert origin is not None  # noqa: S101 - nothing else is offered
        content = what.autosaved.load()
        settings = origin.layer_settings(f"{layer.name} restored")
        layer, made = unwrapped(viewer.add_labels(np.zeros_like(content.labels), **settings)), True
    try:
        correction = correct(viewer, layer)
        same = (one for one in correction.recoverable if one.folder == what.autosaved.folder)
        correction.recover(next(same))
    except MedsegError:
        if made:
            viewer.layers.remove(layer)
        raise
    return correction


def labels_were_saved(data_shown: npt.NDArray[Any]) -> None:
    """The labels in an array were written to a file: nothing of them is unsaved."""
    for one in _corrections:
        if one.layer.data is data_shown:
            one.editing.saved()


def unsaved(viewer: Any) -> list[Correction]:  # noqa: ANN401 - napari's
    """Layers of a viewer with edits that are in no file."""
    found = unwrapped(viewer)
    return [one for one in _corrections if one.viewer is found and one.controller.modified]
