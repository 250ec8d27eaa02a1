"""The files of a study: a folder with all below it, the files a DICOMDIR lists, or a zip.

A zip is never unpacked: its members are read where they are, so that nothing of a patient is left
on the disk, and are judged by the directory of the zip before one of them is.

Messages name a file by its place in the order of names, since file names are often made of
identifiers or of the patient's name.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from medseg.errors import FormatError, MedsegError, ResourceError
from medseg.io.dicom_quiet import quiet_dicom

__all__ = [
    "MOST_BYTES",
    "MOST_FILES",
    "MOST_MEMBER_BYTES",
    "MOST_RATIO",
    "StudyFile",
    "files_below",
    "is_dicomdir",
    "is_study_file",
    "list_study",
]

MOST_FILES = 200_000
MOST_BYTES = 64 << 30
MOST_MEMBER_BYTES = 4 << 30
MOST_RATIO = 200
"""Limits of a zip: entries, bytes unpacked, those of one entry, and how many times it may grow."""

_SMALL_BYTES = 1 << 20  # empty slices may well shrink to nothing
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_DRIVE = re.compile(r"^[A-Za-z]:")
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_UNDEFINED = 0xFFFFFFFF


class _Bounded(io.BufferedReader):
    """A file that is asked for no more than it has: what is asked for is allocated first.

    The length of a damaged element can be 4 GiB in a file of a few bytes.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._bytes = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file."""
        if size is not None and size > _SMALL_BYTES:
            size = min(size, max(0, self._bytes - self.tell()))
        return super().read(size)


@dataclass(frozen=True, slots=True, eq=False)
class StudyFile:
    """One file that may be DICOM.

    Args:
        path: The file, or the zip it lies in.
        place: Place in the order of names, from 0.
        archive: The opened zip.
        member: The entry of the zip.
    """

    path: Path
    place: int
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"file {self.place + 1} in name order"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its folders and its own name; those within the zip if it lies in one."""
        if self.member is not None:
            return PurePosixPath(self.member.filename.replace("\\", "/")).parts
        return self.path.parts

    @property
    def size(self) -> int:
        """Its bytes; 0 if they cannot be told."""
        if self.member is not None:
            return self.member.file_size
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @contextmanager
    def opened(self, where: str) -> Iterator[BinaryIO]:
        """Open it to be read and sought in.

        Raises:
            ResourceError: ``input-unreadable``.
            FormatError: ``zip-damaged``.
        """
        try:
            if self.archive is not None and self.member is not None:
                with io.BytesIO(self.archive.read(self.member)) as content:
                    yield content
            else:
                with _Bounded(self.path.open("rb", buffering=0)) as stream:
                    yield stream
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            if self.archive is None:
                raise
            raise _refused_zip(
                where, "whole entries", f"{self.name} damaged", code="zip-damaged"
            ) from error
        except MedsegError:
            raise
        except OSError as error:
            raise ResourceError(
                where,
                expected="files that can be opened",
                found=f"{self.name}: {error.strerror or type(error).__name__}",
                remedy="check the permissions and the disk",
                code="input-unreadable",
            ) from error

    def beginning(self, where: str, count: int) -> bytes:
        """The first bytes.

        Raises:
            MedsegError: As :meth:`opened`.
        """
        if self.archive is None or self.member is None:
            with self.opened(where) as stream:
                return stream.read(count)
        try:
            with self.archive.open(self.member) as stream:
                return stream.read(count)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise _refused_zip(
                where, "whole entries", f"{self.name} damaged", code="zip-damaged"
            ) from error


def is_study_file(path: Path) -> bool:
    """Whether a file is named as a zip or a DICOMDIR, both of which stand for a study."""
    return path.suffix.lower() == ".zip" or is_dicomdir(path)


def is_dicomdir(path: Path) -> bool:
    """Whether a file is named as the directory of a disc is."""
    return path.name.upper() == "DICOMDIR"


def files_below(folder: Path, *, strict: bool = True) -> Iterator[Path]:
    """Every file below a folder that may belong to an image, in no order.

    Links are followed, those to folders too; one that leads in a circle, or to what is below the
    folder anyway, is not. A link that leads nowhere is among the files: something is missing there.
    Hidden files and folders, and the clutter of operating systems, are passed over.

    Args:
        folder: Where to look.
        strict: Whether a folder that cannot be looked into is an error.

    Raises:
        OSError: If strict, and there is such a folder.
    """

    def refuse(error: OSError) -> None:
        if strict:
            raise error

    root = folder.resolve()
    seen = {root}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = [one for one in folders if not one.startswith(".")]
        for one in tuple(folders):
            real = Path(here, one).resolve()
            again = real.is_relative_to(root) or root.is_relative_to(real)
            if real in seen or (again and Path(here, one).is_symlink()):
                folders.remove(one)
            seen.add(real)
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or name.lower() in _CLUTTER:
                continue
            if path.is_file() or (path.is_symlink() and not path.exists()):
                yield path


def list_study(path: Path) -> tuple[StudyFile, ...]:
    """The files of a study in the order of names.

    Args:
        path: A folder, a zip, or a DICOMDIR, of which the files it lists are taken and no others.
            Of a folder with a DICOMDIR in it all files are taken, but those it lists must be there.

    Raises:
        ResourceError: ``input-unreadable``.
        FormatError: ``file-missing``, ``not-a-folder`` for another file; ``zip-damaged``,
            ``zip-path``, ``zip-link``, ``zip-encrypted``, ``zip-method``, ``zip-files``,
            ``zip-size``, ``zip-ratio``; ``dicomdir-damaged``, ``dicomdir-path``,
            ``dicomdir-incomplete``.
    """
    where = str(path)
    try:
        if path.is_dir():
            paths = sorted(files_below(path))
            _check_whole_disc(path, where)
            return tuple(StudyFile(file, place) for place, file in enumerate(paths))
        if path.is_file():
            if path.suffix.lower() == ".zip":
                return _zipped(path, where)
            if is_dicomdir(path):
                return _directory(path, where)
        exists = path.exists()
    except OSError as error:
        raise ResourceError(
            where,
            expected="a study that can be read",
            found=error.strerror or type(error).__name__,
            remedy="check the permissions and the disk",
            code="input-unreadable",
        ) from error
    raise FormatError(
        where,
        expected="a folder with one DICOM series",
        found="a file" if exists else "nothing of that name",
        remedy="give the folder that holds the slices, a DICOMDIR or a zip",
        code="not-a-folder" if exists else "file-missing",
    )


def _zipped(path: Path, where: str) -> tuple[StudyFile, ...]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise _refused_zip(
            where, "a whole zip file", "one that is cut off or damaged", code="zip-damaged"
        ) from error
    members = sorted(
        (member for member in archive.infolist() if not member.is_dir()),
        key=lambda member: PurePosixPath(member.filename).parts,
    )
    try:
        _check_members(members, path.stat().st_size, where)
    except FormatError:
        archive.close()
        raise
    return tuple(StudyFile(path, place, archive, member) for place, member in enumerate(members))


def _check_members(members: Sequence[zipfile.ZipInfo], size: int, where: str) -> None:
    if len(members) > MOST_FILES:
        raise _refused_zip(
            where, f"at most {MOST_FILES} files", f"{len(members)}", code="zip-files"
        )
    if (total := sum(member.file_size for member in members)) > MOST_BYTES:
        found = f"{total / 2**30:.1f} GiB when unpacked"
        raise _refused_zip(where, f"at most {MOST_BYTES >> 30} GiB", found, code="zip-size")
    for place, member in enumerate(members):
        name, this = member.filename, f"file {place + 1} in name order"
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or ".." in parts or _DRIVE.match(name) or "\0" in name:
            raise _refused_zip(
                where, "files within the zip", f"{this} leads elsewhere", code="zip-path"
            )
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            found = f"{this} is a link or a special file"
            raise _refused_zip(where, "plain files", found, code="zip-link")
        if member.flag_bits & 0x1:
            raise _refused_zip(
                where, "files without a password", f"{this} has one", code="zip-encrypted"
            )
        if member.compress_type not in _METHODS:
            found = f"{this} packed by method {member.compress_type}"
            raise _refused_zip(where, "files stored or deflated", found, code="zip-method")
        if member.file_size > MOST_MEMBER_BYTES:
            found = f"{this} of {member.file_size / 2**30:.1f} GiB"
            raise _refused_zip(
                where, f"files of at most {MOST_MEMBER_BYTES >> 30} GiB", found, code="zip-size"
            )
        allowed = max(_SMALL_BYTES, MOST_RATIO * member.compress_size)
        if member.file_size > allowed:
            found = f"{this} unpacks to more"
            raise _refused_zip(
                where, f"at most {MOST_RATIO} times the size", found, code="zip-ratio"
            )
    # entries may share bytes, so that each by itself looks harmless
    if total > max(len(members) * _SMALL_BYTES, MOST_RATIO * size):
        found = f"{total / 2**20:.0f} MiB in {size / 2**20:.1f} MiB"
        raise _refused_zip(where, f"at most {MOST_RATIO} times the size", found, code="zip-ratio")


def _refused_zip(where: str, expected: str, found: str, *, code: str) -> FormatError:
    return FormatError(
        where,
        expected=expected,
        found=found,
        remedy="export the study again, or give it as a folder",
        code=code,
    )


def _directory(path: Path, where: str) -> tuple[StudyFile, ...]:
    """The files that a DICOMDIR refers to."""
    files = _listed(path, where)
    missing = sum(file is None for file in files)
    if missing:
        raise _refused_directory(
            where, f"{missing} of {len(files)} that are absent", code="dicomdir-incomplete"
        )
    there = sorted({file for file in files if file is not None})
    return tuple(StudyFile(file, place) for place, file in enumerate(there))


def _check_whole_disc(folder: Path, where: str) -> None:
    """Refuse the copy of a disc of which files are missing: nothing else tells of a last slice.

    A DICOMDIR that cannot be read, or of whose files none is there, says nothing of the folder.
    """
    directory = next((file for file in folder.iterdir() if is_dicomdir(file)), None)
    if directory is None or not directory.is_file():
        return
    try:
        files = _listed(directory, where)
    except FormatError:
        return
    missing = sum(file is None for file in files)
    if 0 < missing < len(files):
        raise _refused_directory(
            where, f"{missing} of {len(files)} that are absent", code="dicomdir-incomplete"
        )


def _listed(path: Path, where: str) -> list[Path | None]:
    """The files that a DICOMDIR lists; None for one that is not there.

    Source: DICOM PS3.3 F.3 (Basic Directory) and PS3.10 8.2 (File ID: up to 8 components).
    """
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read

    root = path.parent
    try:
        with quiet_dicom():
            _check_records_whole(path.read_bytes())
            directory = dcmread(path)
            class_uid = str(directory.file_meta.get("MediaStorageSOPClassUID", ""))
            named = [
                record.ReferencedFileID
                for record in directory.get("DirectoryRecordSequence") or []
                if record.get("ReferencedFileID")
            ]
            files = [(one,) if isinstance(one, str) else tuple(map(str, one)) for one in named]
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise _refused_directory(where, "one that is damaged", code="dicomdir-damaged") from error
    if class_uid != _DICOMDIR_CLASS:
        raise _refused_directory(where, "another object", code="dicomdir-damaged")
    found: list[Path | None] = []
    for parts in files:
        if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            raise _refused_directory(where, "a file outside of its folder", code="dicomdir-path")
        file = _on_disk(root, parts)
        if file is not None and not file.resolve().is_relative_to(root.resolve()):
            raise _refused_directory(where, "a file outside of its folder", code="dicomdir-path")
        found.append(file)
    return found


def _check_records_whole(content: bytes) -> None:
    """A cut-off list of records would read as a shorter one.

    Raises:
        ValueError: If there is no list or it goes on beyond the end.
    """
    start = content.index(b"\x04\x00\x20\x12SQ")
    length = int.from_bytes(content[start + 8 : start + 12], "little")
    if length == _UNDEFINED:
        content.index(b"\xfe\xff\xdd\xe0", start)
    elif start + 12 + length > len(content):
        raise ValueError(length)


def _on_disk(root: Path, parts: Sequence[str]) -> Path | None:
    """A file by its components; letters of either case, as copies of discs may have changed it."""
    at = root
    for part in parts:
        step = at / part
        if not step.exists():
            alike = (
                [one for one in at.iterdir() if one.name.upper() == part.upper()]
                if (at.is_dir())
                else []
            )
            if len(alike) != 1:
                return None
            step = alike[0]
        at = step
    return at if at.is_file() else None


def _refused_directory(where: str, found: str, *, code: str) -> FormatError:
    return FormatError(
        where,
        expected="a DICOMDIR and the files that it lists",
        found=found,
        remedy="copy the whole disc; or take its DICOMDIR away and give the folder, if what is "
        "there is all",
        code=code,
    )
