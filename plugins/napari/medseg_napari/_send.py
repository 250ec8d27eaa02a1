"""Sending a corrected layer back: files, a report of the effort, a case to train on. Free of Qt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.atomic import write_text
from medseg.core import LabelMap, Volume
from medseg_napari._effort import EffortReport, effort_report
from medseg_napari._origin import LayerOrigin
from medseg_napari._provenance import segment_types
from medseg_napari._training_set import Added, Layout, TrainingCase, add_case
from medseg_napari._writer import labels_to_save, save_labels

if TYPE_CHECKING:
    from medseg.io.dicom_seg import AlgorithmType

__all__ = ["CHANNELS_KEY", "SECONDS_KEY", "Parcel"]

CHANNELS_KEY = "medseg_channels"
"""Where a result's metadata keeps channel name to the name of the image layer it was made of."""

SECONDS_KEY = "medseg_edit_seconds"
"""Where an editor leaves, in a layer's metadata, the seconds of work on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """One labels layer, ready to be sent.

    Args:
        name: Of the layer.
        labels_shown: What it holds, along I, P, L.
        origin: Its own, or that of the image that it was drawn on.
        edited: What an editor knows of how labels came about.
        seconds: Time of editing, if an editor has measured it.
    """

    name: str
    labels_shown: npt.NDArray[Any]
    origin: LayerOrigin
    edited: Mapping[int, AlgorithmType] | None = None
    seconds: float | None = None

    def label_map(self) -> LabelMap:
        """The labels on the grid of their image.

        Raises:
            MedsegError: As :func:`~medseg_napari._writer.labels_to_save`.
        """
        return labels_to_save(self.name, self.labels_shown, self.origin, self.origin.scheme)

    def effort(self) -> EffortReport:
        """What became of the labels since they came."""
        labels = self.label_map()
        return effort_report(
            self.origin.shown_array(labels.data_ijk),
            self.origin,
            labels.scheme,
            edited=self.edited,
            seconds=self.seconds,
        )

    def save(self, target: Path, *, rtstruct: bool = False) -> dict[int, AlgorithmType]:
        """Write the labels, verified.

        Args:
            target: Ends in ``.nii.gz``, ``.nii`` or ``.dcm``.
            rtstruct: Whether ``.dcm`` means an RT structure set.

        Returns:
            How each label that is present came about, as a DICOM file says it.

        Raises:
            MedsegError: As :func:`~medseg_napari._writer.save_labels`.
        """
        labels = self.label_map()
        types = segment_types(labels.data_ijk, self.origin.beginning, self.edited)
        save_labels(
            labels,
            target,
            self.origin,
            types=types,
            beginning=self.origin.beginning,
            rtstruct=rtstruct,
        )
        return types

    def save_report(self, target: Path) -> EffortReport:
        """Write the report of the effort, as JSON or, by the ending ``.csv``, as a table.

        Raises:
            ResourceError: If the file cannot be written.
        """
        report = self.effort()
        as_csv = target.suffix.lower() == ".csv"
        write_text(target, report.to_csv() if as_csv else report.to_json())
        return report

    def add_to_training_set(
        self, folder: Path, images_shown: Mapping[str, npt.NDArray[Any]], *, layout: Layout
    ) -> Added:
        """Make it a case of a dataset.

        Args:
            folder: Of the dataset.
            images_shown: Channel name to voxels along I, P, L, on the grid of the labels.
            layout: For a new dataset.

        Raises:
            MedsegError: As :func:`~medseg_napari._training_set.add_case`.
        """
        labels = self.label_map()
        images = {
            name: Volume(self.origin.original_array(np.asarray(data))[None], self.origin.grid)
            for name, data in images_shown.items()
        }
        report = self.effort().to_dict()
        return add_case(
            folder, TrainingCase(images, labels, self.origin.source, report), layout=layout
        )
