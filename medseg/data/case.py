"""One labelled case of a dataset, and the one way to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Label, LabelMap, LabelScheme, Volume
from medseg.errors import ConfigError, GeometryError, MedsegError, ShapeError
from medseg.io.checks import relocated
from medseg.io.dicom_folders import is_dicom_file
from medseg.io.label_like import check_is_image
from medseg.io.reading import IMAGE_SUFFIXES, read_channels, read_image, read_labels
from medseg.io.scan import Scan

__all__ = [
    "GRID_TOLERANCE_DEG",
    "GRID_TOLERANCE_MM",
    "IGNORED",
    "Case",
    "check_same_grid",
    "read_labelled",
    "with_ignored",
]

GRID_TOLERANCE_MM = 0.1
"""Largest distance between a corner voxel of an image and that of its label map."""

GRID_TOLERANCE_DEG = 0.1
"""Largest angle between a voxel axis of an image and that of its label map."""

IGNORED = "ignored"
"""Name of the label that marks voxels nobody annotated (nnU-Net's ignore label)."""

_SLICE_SUFFIX = ".npz"
_STACK_SUFFIX = ".npy.h5"


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled case: where its files are, and whom it shows.

    Args:
        id: Unique within the dataset.
        images: Where the channels are: one file (or folder of a DICOM series) per channel in the
            order of the dataset's channels; or a single four-dimensional NIfTI file with all of
            them; or the ``.npz`` slices of TransUNet's preprocessing in their order; or its
            ``.npy.h5`` volume. The last two hold the labels as well.
        label: The expert's label map; the first of ``images`` where these hold the labels.
        patient: Whom the case shows. Cases of one patient never lie on both sides of a split. The
            case's own id if the layout cannot tell.
        recode: Label value on disk to label value of the dataset's scheme, 0 for background. Empty
            if both are the same; else a value that it does not list is refused.
        ignore_value: The label value of voxels that nobody annotated; None if there are none.
    """

    id: str
    images: tuple[Path, ...]
    label: Path
    patient: str = ""
    recode: tuple[tuple[int, int], ...] = ()
    ignore_value: int | None = None

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file or folder of the case once, images first."""
        return tuple(dict.fromkeys((*self.images, self.label)))


def read_labelled(
    case: Case, channels: Sequence[str], scheme: LabelScheme, ignore_value: int | None = None
) -> tuple[Volume, LabelMap]:
    """Read image and label map of a case, and check that they lie on one grid.

    Args:
        case: Where they are.
        channels: Names of the dataset's channels, in its order.
        scheme: What the label values mean after :attr:`Case.recode`.
        ignore_value: Label value of voxels to be ignored, where the dataset itself names none.

    Returns:
        The image with these channel names, and the label map. Where the case has voxels to be
        ignored, the map's scheme lists one label more, called :data:`IGNORED`.

    Raises:
        GeometryError: ``label-grid-differs``, see :func:`check_same_grid`.
        ShapeError: ``labelmap-values`` if a label is not in the scheme, ``channel-count`` if a
            four-dimensional file holds another number of channels.
        MedsegError: As the readers of the formats.
    """
    ignored = ignore_value if case.ignore_value is None else case.ignore_value
    final = with_ignored(scheme, ignored)
    stored = LabelScheme.plain("stored", _names(case.recode)) if case.recode else final
    first = case.images[0]
    if first.name.lower().endswith((_SLICE_SUFFIX, _STACK_SUFFIX)):
        from medseg.io.stacks import read_slices, read_stack  # noqa: PLC0415

        if first.name.lower().endswith(_SLICE_SUFFIX):
            volume, labels = read_slices(case.images, stored, channel=channels[0])
        else:
            volume, labels = read_stack(first, stored, channel=channels[0])
    else:
        scan = _read_scan(case, channels)
        volume = scan.volume
        labels = _read_label_map(case.label, stored, scan)
    check_same_grid(volume.grid, labels.grid, str(case.label))
    if case.recode:
        labels = _recoded(labels, case, final)
    return volume, labels


def check_same_grid(image: Grid, label: Grid, where: str) -> None:
    """Check that a label map lies on the grid of its image.

    Shapes must be equal, every voxel axis must point the same way within
    :data:`GRID_TOLERANCE_DEG`, and corner voxels must meet within :data:`GRID_TOLERANCE_MM`, so
    that the rounding of a header is no error and a shifted or turned map always is.

    Raises:
        GeometryError: ``label-grid-differs``; the sentence holds the worst distance and angle.
    """
    expected = "the label map on the grid of its image"
    if image.shape_ijk != label.shape_ijk:
        found = f"extents {label.shape_ijk}, the image has {image.shape_ijk}"
    else:
        apart_mm = image.distance_mm(label)
        cosines = (image.direction_ras * label.direction_ras).sum(axis=0)
        sines = np.linalg.norm(np.cross(image.direction_ras.T, label.direction_ras.T), axis=1)
        turned_deg = np.degrees(np.arctan2(sines, cosines))
        worst = int(np.argmax(turned_deg))
        if apart_mm <= GRID_TOLERANCE_MM and turned_deg[worst] <= GRID_TOLERANCE_DEG:
            return
        expected += f" within {GRID_TOLERANCE_MM:g} mm and {GRID_TOLERANCE_DEG:g} degrees"
        found = f"corners {apart_mm:.2f} mm apart"
        if turned_deg[worst] > GRID_TOLERANCE_DEG:
            found += f" and axis {'IJK'[worst]} turned by {turned_deg[worst]:.2f} degrees"
    raise GeometryError(
        where,
        expected=expected,
        found=found,
        remedy="resample the label map to the image's grid first",
        code="label-grid-differs",
    )


def with_ignored(scheme: LabelScheme, ignore_value: int | None) -> LabelScheme:
    """The scheme with one label more for voxels that nobody annotated.

    Raises:
        ConfigError: If the value means a structure already.
    """
    if ignore_value is None:
        return scheme
    if ignore_value in scheme.values:
        raise ConfigError(
            f"label scheme {scheme.name!r}",
            expected=f"the value {ignore_value} of the ignore label to mean nothing else",
            found=f"the structure {scheme.by_value(ignore_value).name!r}",
            remedy="leave the ignore label out of the scheme",
            code="dataset-labels",
        )
    return LabelScheme(scheme.name, (*scheme.labels, Label(ignore_value, IGNORED, (128, 128, 128))))


def _read_scan(case: Case, channels: Sequence[str]) -> Scan:
    if len(case.images) == 1 and len(channels) > 1:
        from medseg.io.nifti import read_nifti_channels  # noqa: PLC0415

        scan = read_nifti_channels(case.images[0], channels)
        check_is_image(scan.volume, str(case.images[0]))
        return scan
    if len(case.images) != len(channels):
        raise ShapeError(
            f"case {case.id}",
            expected=f"one image for each of the {len(channels)} channels",
            found=f"{len(case.images)}",
            remedy="complete the case or take it out of the dataset",
            code="channel-count",
        )
    if len(channels) == 1:
        scan = read_image(case.images[0])
        return replace(
            scan, volume=Volume(scan.volume.data_cijk, scan.volume.grid, tuple(channels))
        )
    return read_channels(dict(zip(channels, case.images, strict=True)))


def _read_label_map(path: Path, scheme: LabelScheme, scan: Scan) -> LabelMap:
    if not path.name.lower().endswith(IMAGE_SUFFIXES) and is_dicom_file(path):
        from medseg.io.dicom_labels import read_dicom_labels  # noqa: PLC0415

        return read_dicom_labels(path, scheme, scan.volume.grid, scan.source)
    return read_labels(path, scheme)


def _names(recode: Sequence[tuple[int, int]]) -> dict[int, str]:
    return {stored: f"value {stored}" for stored, _ in recode if stored != 0}


def _recoded(labels: LabelMap, case: Case, scheme: LabelScheme) -> LabelMap:
    values: npt.NDArray[Any] = labels.data_ijk
    kind = np.uint8 if max(wanted for _, wanted in case.recode) <= 255 else np.uint16
    table = np.zeros(max(stored for stored, _ in case.recode) + 1, dtype=kind)
    for stored, wanted in case.recode:
        table[stored] = wanted
    try:
        return LabelMap(table[values], labels.grid, scheme)
    except MedsegError as error:
        raise relocated(error, str(case.label)) from error
