"""What an image is, as one hash: of its headers and its pixel data, wherever it lies.

A fingerprint is the same for the same content and tells any change of it:

* a NIfTI, NRRD or MetaImage file: SHA-256 of the decompressed file, so that compressing it again
  or giving it another name changes nothing;
* a header with its voxels in a second file (``.hdr`` and ``.img``, ``.nhdr``, ``.mhd``): of both,
  one after the other;
* a folder of a DICOM series: of the sorted SHA-256 sums of its files, so that neither their names
  nor their order matter. Hidden files and folders and the clutter of operating systems do not
  count, nor are they read (:func:`~medseg.io.dicom_files.files_below`);
* a DICOMDIR: of the files that it lists, as if they lay in a folder by themselves;
* a zip: of its bytes;
* several channels: of name and fingerprint of each, in order of name.

What cannot be decompressed, or leads nowhere, is hashed as it lies: a broken file has a fingerprint
too, which changes when it is mended.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from medseg.errors import MedsegError
from medseg.io.checks import unreadable
from medseg.io.dicom_files import files_below, is_dicomdir, list_study
from medseg.io.itk_formats import itk_data_file
from medseg.io.nifti import file_pair

__all__ = ["fingerprint", "input_files", "stamp"]

_CHUNK_BYTES = 1 << 20
_NIFTI_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")


def input_files(path: Path) -> list[Path]:
    """Every file that an image is made of, in order of name; none if there is nothing.

    Args:
        path: An image file, the folder of a DICOM series, or a DICOMDIR. Of one that is damaged or
            lists files that are not there, all files below its folder are taken.
    """
    if path.is_dir():
        return sorted(_files_below(path))
    if not path.is_file() and path.exists():
        return []  # a pipe or a device: whoever opens it waits for ever
    if path.is_file() and is_dicomdir(path):
        return _listed_files(path)
    name = path.name.lower()
    if name.endswith(_NIFTI_PAIR):
        return [one for one in dict.fromkeys(file_pair(path)) if one.is_file()]
    if name.endswith(_ITK):
        try:
            data = itk_data_file(path)
        except (MedsegError, OSError, ValueError):
            data = path  # the reader tells what is wrong with it
        # None: voxels in several files beside the header
        parts = (path, data) if data is not None else sorted(_files_below(path.parent))
        return [one for one in dict.fromkeys(parts) if one.is_file()]
    return [path] if path.is_file() else []


def fingerprint(channels: Mapping[str, Path]) -> str:
    """SHA-256 of headers and pixel data, in hexadecimal.

    Args:
        channels: Channel name to file or folder; one empty name for an image given as one path.

    Raises:
        ResourceError: ``input-unreadable`` if a file cannot be read.
    """
    if len(channels) == 1:
        (path,) = channels.values()
        return _of_image(path)
    whole = hashlib.sha256(b"channels")
    for name, path in sorted(channels.items()):
        whole.update(f"\n{len(name.encode())} {name} {_of_image(path)}".encode())
    return whole.hexdigest()


def stamp(channels: Mapping[str, Path]) -> str:
    """Sizes and times of change of all files, as one hash: cheap, and proof of nothing.

    Raises:
        ResourceError: ``input-unreadable`` if a file cannot be looked at.
    """
    whole = hashlib.sha256()
    for name, root in sorted(channels.items()):
        for path in input_files(root):
            try:
                state = path.stat()
            except OSError as error:
                raise unreadable(path, error) from error
            whole.update(f"{name}\0{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return whole.hexdigest()


def _listed_files(directory: Path) -> list[Path]:
    try:
        return sorted(file.path for file in list_study(directory))
    except MedsegError:  # the reader tells what is wrong with it
        return sorted(_files_below(directory.parent))


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder, strict=False) if path.is_file())


def _of_image(path: Path) -> str:
    files = input_files(path)
    try:
        if path.is_dir() or is_dicomdir(path):
            sums = sorted(_sha256(one, unpack=False) for one in files)
            return hashlib.sha256("\n".join(["dicom", *sums]).encode()).hexdigest()
        if len(files) == 1:
            return _sha256(files[0], unpack=True)
        return hashlib.sha256(
            "\n".join(["parts", *(_sha256(one, unpack=True) for one in files)]).encode()
        ).hexdigest()
    except OSError as error:
        if isinstance(error, MedsegError):
            raise
        raise unreadable(path, error) from error


def _sha256(path: Path, *, unpack: bool) -> str:
    if unpack and path.name.lower().endswith(".gz"):
        whole = hashlib.sha256()
        try:
            with gzip.open(path) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    whole.update(chunk)
            return whole.hexdigest()
        except (EOFError, gzip.BadGzipFile, zlib.error):
            pass  # broken: as it lies
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
