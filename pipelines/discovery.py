"""Which cases a command means: files, folders of a DICOM series, or folders that hold many."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.errors import ConfigError
from medseg.io.dicom_files import is_dicomdir, is_study_file
from medseg.io.dicom_folders import looks_like_dicom, study_uid
from medseg.io.fingerprint import input_files
from medseg.io.reading import IMAGE_SUFFIXES
from pipelines.infer import Case, case_name, make_cases
from pipelines.result_names import is_result_name

__all__ = ["Found", "Naming", "expected_bytes", "find_cases"]

Naming = Literal["auto", "input", "id"]
"""What results are called: after image files but by identifier for DICOM; after the input; by
identifier."""

_TRIED_FILES = 16
_PACKED = 4
_MOST_DEFLATED = 1040  # a file that says more is cut off: its last bytes are no length
_DICOM = 2


@dataclass(frozen=True, slots=True)
class Found:
    """A case of a command.

    Args:
        key: What tells it from others for good: its place below the folder that was given.
        names: Stems that its results may have, the best first; none for the identifier.
        case: Its name, for as long as no ledger gave it another, and its paths.
        root: The folder that was given, or that of the file that was.
    """

    key: str
    names: tuple[str, ...]
    case: Case
    root: Path


def find_cases(
    paths: Sequence[Path],
    channels: Sequence[str],
    *,
    naming: Naming = "auto",
    out: Path | None = None,
    by_study: bool = False,
) -> list[Found]:
    """The cases of the command line, in order.

    A file is a case, a zip too. A folder with DICOM files directly in it is one. Any other folder
    stands for the image files and the DICOM folders below it; if there are none, for itself. Hidden
    files, the output folder, and what is called like a result are passed over.

    Args:
        paths: Files and folders.
        channels: ``NAME=PATH``, for one case of several channels.
        naming: What results are called.
        out: The output folder.
        by_study: Whether the DICOM folders of one study are one case, the folder that holds them
            and no others, as a model of several channels needs it.

    Raises:
        ConfigError: As :func:`~pipelines.infer.make_cases`.
    """
    if bool(paths) == bool(channels) or channels:
        return [_of_channels(case, naming) for case in make_cases(paths, channels)]
    found = [one for path in paths for one in _below(path, naming, out, by_study)]
    times = Counter(one.key for one in found)
    twice = sorted({one.case.name for one in found if times[one.key] > 1})
    if twice:
        raise ConfigError(
            "medseg predict",
            expected="cases with names that differ",
            found=f"{', '.join(twice)} more than once",
            remedy="predict them into separate output folders, or give the folder above them all",
            code="cases",
        )
    return found


def expected_bytes(case: Case) -> int:
    """About what the voxels of a case will take in memory, from the sizes of its files alone."""
    return sum(_expected(path) for path in case.channels.values())


def _of_channels(case: Case, naming: Naming) -> Found:
    key = ",".join(f"{name}={path.name}" for name, path in sorted(case.channels.items()))
    first = next(iter(case.channels.values()))
    names = (
        ()
        if naming == "id" or (naming == "auto" and (first.is_dir() or is_study_file(first)))
        else (case.name,)
    )
    return Found(key, names, case, first.parent)


def _below(path: Path, naming: Naming, out: Path | None, by_study: bool) -> Iterator[Found]:
    here = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its own name
    if not path.is_dir():
        # every disc calls its directory alike
        above = (here.parent.name,) if is_dicomdir(path) and here.parent.name else ()
        yield _found("/".join((*above, here.name)), path, (*above, here.name), path.parent, naming)
        return
    images = list(_images(path, out))
    if by_study:
        images = _studies(images)
    for image in images or [path]:
        parts = (here.name, *image.relative_to(path).parts)
        yield _found("/".join(parts), image, parts[1:] or parts, path, naming)


def _found(key: str, path: Path, parts: Sequence[str], root: Path, naming: Naming) -> Found:
    name = case_name(path.absolute().parent if is_dicomdir(path) else path)
    folders = [re.sub(r"[^\w.-]+", "_", part).strip("._") for part in parts[:-1]]
    names: tuple[str, ...] = (name, "_".join([*filter(None, folders), name]))
    if naming == "id" or (naming == "auto" and (path.is_dir() or is_study_file(path))):
        names = ()
    return Found(key, names, Case(name, {"": path}), root)


def _images(folder: Path, out: Path | None, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Image files and DICOM folders below a folder, in order of path."""
    here = folder.resolve()
    if here in above or (out is not None and here == out.resolve() and above):
        return  # a link that leads in a circle, or results
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        yield folder  # reading it tells what is wrong
        return
    files = [
        entry
        for entry in entries
        if entry.is_file() and not _is_image(entry) and not is_result_name(entry.name)
    ]
    # pictures and notes may come first or last
    if any(map(looks_like_dicom, (*files[:_TRIED_FILES], *files[_TRIED_FILES:][-_TRIED_FILES:]))):
        yield folder
        return
    for entry in entries:
        if entry.is_dir():
            yield from _images(entry, out, (*above, here))
        elif _is_image(entry):
            yield entry


def _studies(images: Sequence[Path]) -> list[Path]:
    """The same, with the folder of a study in place of the folders of its series."""
    studies = {path: study_uid(path) for path in images if path.is_dir()}
    together: dict[Path, Path] = {}
    for uid in {uid for uid in studies.values() if uid}:
        own = [path for path, other in studies.items() if other == uid]
        above = Path(os.path.commonpath(own))
        if all(other == uid for path, other in studies.items() if path.is_relative_to(above)):
            together |= dict.fromkeys(own, above)
    return list(dict.fromkeys(together.get(path, path) for path in images))


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(".zip"):
        return True
    if not name.endswith(IMAGE_SUFFIXES) or name.endswith((".img", ".img.gz")):
        return False
    return not is_result_name(name)


def _expected(path: Path) -> int:
    try:
        if path.is_dir() or is_dicomdir(path):
            return _DICOM * sum(one.stat().st_size for one in input_files(path))
        if not path.is_file():
            return 0
        if path.suffix.lower() == ".zip":
            return _DICOM * _unpacked_bytes(path)
        size = path.stat().st_size
        if not path.name.lower().endswith(".gz"):
            return size
        with path.open("rb") as stream:
            stream.seek(-4, os.SEEK_END)
            unpacked = int.from_bytes(stream.read(4), "little")  # RFC 1952: modulo 2**32
    except OSError:
        return 0
    return unpacked if size <= unpacked <= _MOST_DEFLATED * size else _PACKED * size


def _unpacked_bytes(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return 0  # reading it tells what is wrong
