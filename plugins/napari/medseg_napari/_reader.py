"""Medical images and label maps as napari layers."""

# ruff: noqa: PLC0415 - the libraries of a format take long to import: not before its first file

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from medseg.io.dicom_files import is_study_file
from medseg.io.label_like import looks_like_labels
from medseg.io.reading import read_image_or_labels
from medseg_napari._badge import show_badges_of_current_viewer
from medseg_napari._label_names import names_beside
from medseg_napari._layers import LayerData, image_layers, labels_layer

__all__ = ["get_reader", "read_layers"]

_FILE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_DICOM_FILES = (".dcm", ".dicom")
_NOTHING: list[LayerData] = [(None,)]  # type: ignore[list-item] # napari's word for no layer

Reader = Callable[[str], list[LayerData]]

_MOST_FILES_LOOKED_AT = 64
_DICOM_MAGIC_AT = 128


def get_reader(path: str | list[str]) -> Reader | None:
    """The reader for a path, or None where medseg is not concerned.

    Files are judged by their ending and not opened: where napari has asked for medseg, a sentence
    that says what is wrong with one is better than none. Folders are judged by whether one of the
    first files in them is DICOM. A list of paths, which is napari's way to ask for one stacked
    layer, is left to others.
    """
    if isinstance(path, list):
        return None
    location = Path(path)
    lower = location.name.lower()
    if location.is_dir():
        return read_layers if _holds_dicom(location) else None
    if lower.endswith((".zip", *_DICOM_FILES)):
        return read_layers if location.is_file() else None
    return read_layers if lower.endswith(_FILE_SUFFIXES) else None


def read_layers(path: str) -> list[LayerData]:
    """Read an image file, a DICOM study, or a DICOM object with labels.

    Of a study with several series the user chooses, in a list with pictures, where napari has a
    window; else every series that can be read is opened, but for localizers.

    Returns:
        One image layer per channel, or one labels layer (uint8 or uint16) if the content is a label
        map; a SEG or RT structure set brings its series where that is not open yet. Each carries
        its :class:`~medseg_napari._origin.LayerOrigin`.

    Raises:
        MedsegError: As :func:`medseg.io.reading.read_image`; napari shows the sentence.
    """
    layers = _read(Path(path))
    show_badges_of_current_viewer()
    return layers


def _read(location: Path) -> list[LayerData]:
    name = _layer_name(location)
    if location.is_dir() or is_study_file(location):
        return _read_study(location, name)
    if location.name.lower().endswith(_DICOM_FILES):
        from medseg_napari._series import open_label_file, open_series_of

        layers = open_series_of(location)
        return open_label_file(location) if layers is None else layers or _NOTHING
    scan = read_image_or_labels(location)
    if any(looks_like_labels(channel) for channel in scan.volume.data_cijk):
        scheme = names_beside(location, scan.volume.data_cijk[0])
        return [labels_layer(scan, name, str(location), scheme=scheme)]
    return image_layers(scan, name)


def _read_study(location: Path, name: str) -> list[LayerData]:
    from medseg_napari import _series

    contents = _series.look_into(location)
    if contents.study.unreadable:
        raise contents.study.unreadable[0]
    if len(contents.series) + len(contents.labels) == 1:
        return _series.open_entries(contents.series, contents, name)
    if _can_ask():
        from medseg_napari._chooser import ask

        chosen = ask(contents)
        return _series.open_entries(chosen, contents, name) if chosen else _NOTHING
    able = _series.default_choice(contents)
    return _series.open_entries(able or contents.series[:1], contents, name)


def _can_ask() -> bool:
    """Whether napari has a window, and this is its thread."""
    napari = sys.modules.get("napari")
    return (
        napari is not None
        and threading.current_thread() is threading.main_thread()
        and napari.current_viewer() is not None
    )


def _layer_name(location: Path) -> str:
    lower = location.name.lower()
    for suffix in (*_FILE_SUFFIXES, ".zip"):
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
