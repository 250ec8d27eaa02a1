"""Medical images and label maps as napari layers."""

# ruff: noqa: PLC0415 - the libraries of a format take long to import: not before its first file

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from medseg.errors import FormatError
from medseg.io.reading import read_image
from medseg.io.scan import Scan
from medseg_napari._layers import LayerData, image_layers, labels_layer

__all__ = ["get_reader", "read_layers"]

_FILE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")

Reader = Callable[[str], list[LayerData]]

_MOST_FILES_LOOKED_AT = 64
_DICOM_MAGIC_AT = 128


def get_reader(path: str | list[str]) -> Reader | None:
    """The reader for a path, or None where medseg is not concerned.

    Files are judged by their ending, folders by whether one of the first files in them is DICOM;
    no image is opened. A list of paths, which is napari's way to ask for one stacked layer, is left
    to others.
    """
    if isinstance(path, list):
        return None
    location = Path(path)
    if location.is_dir():
        return read_layers if _holds_dicom(location) else None
    return read_layers if location.name.lower().endswith(_FILE_SUFFIXES) else None


def read_layers(path: str) -> list[LayerData]:
    """Read a file or a folder with one DICOM series.

    Returns:
        One image layer per channel, or one labels layer (uint8 or uint16) if the content is a label
        map. Each carries its :class:`~medseg_napari._origin.LayerOrigin`.

    Raises:
        MedsegError: As :func:`medseg.io.reading.read_image`; napari shows the sentence.
    """
    location = Path(path)
    name = _layer_name(location)
    try:
        scan = read_image(location)
    except FormatError as error:
        if error.code != "label-as-image":
            raise
        return [labels_layer(_read_as_it_is(location), name, path)]
    return image_layers(scan, name)


def _read_as_it_is(location: Path) -> Scan:
    """Read without asking whether it is an image or a label map."""
    if location.is_dir():
        from medseg.io.dicom_series import read_dicom_series

        return read_dicom_series(location)
    if location.name.lower().endswith((".nii", ".nii.gz")):
        from medseg.io.nifti import read_nifti

        return read_nifti(location)
    from medseg.io.itk_formats import read_itk

    return read_itk(location)


def _layer_name(location: Path) -> str:
    lower = location.name.lower()
    for suffix in _FILE_SUFFIXES:
        if lower.endswith(suffix):
            return location.name[: -len(suffix)] or location.name
    return location.name


def _holds_dicom(folder: Path) -> bool:
    return any(_is_dicom(path) for path in _first_files(folder))


def _first_files(folder: Path) -> Iterator[Path]:
    looked_at = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name
            looked_at += 1
            if looked_at >= _MOST_FILES_LOOKED_AT:
                return


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.seek(_DICOM_MAGIC_AT)
            return stream.read(4) == b"DICM"
    except OSError:  # a pipe, a broken link or a file of someone else: not for us to report
        return False
