"""The files of a folder or zip from elsewhere, judged before one of them is read."""

from __future__ import annotations

import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from medseg.errors import ConfigError, FormatError
from medseg.models.card import CARD_NAME

__all__ = [
    "MOST_BYTES",
    "MOST_FILES",
    "MOST_RATIO",
    "MOST_TEXT_BYTES",
    "TEXTS",
    "Entry",
    "list_source",
    "reading",
    "refuse",
    "shown",
]

MOST_BYTES = 8 << 30
MOST_FILES = 1000
MOST_RATIO = 200
MOST_TEXT_BYTES = 4 << 20
_SMALL_BYTES = 1 << 20  # a text of zeros and blanks may well shrink to nothing
TEXTS = (".md", ".txt", ".rst")
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file of the source."""

    name: PurePosixPath
    size: int
    opened: Callable[[], IO[bytes]]


@contextmanager
def list_source(source: Path) -> Iterator[tuple[Entry, ...]]:
    """The files of a model folder, of a run folder's model, or of a zip; readable in the block.

    Raises:
        ConfigError: If there is no such source, or it cannot be read.
        FormatError: If it is a damaged zip, or holds links, special files, paths that lead
            elsewhere, names that are there twice, or more files or bytes than a model has.
    """
    with _opened(source) as archive:
        try:
            entries = tuple(_listed(archive, source) if archive else _walked(source))
        except OSError as error:
            raise _unreadable(source) from error
        _check_amount(entries, source)
        yield entries


@contextmanager
def reading(entry: Entry, source: Path) -> Iterator[IO[bytes]]:
    """Open one of the files of a source.

    Raises:
        ConfigError: If it cannot be read.
        FormatError: If it is damaged.
    """
    try:
        opened = entry.opened()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(source) from error
    except OSError as error:
        raise _unreadable(source) from error
    try:
        with opened as content:
            yield content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise _damaged(source) from error


def refuse(source: Path, name: str, *, expected: str, found: str, code: str) -> NoReturn:
    """Raise the error of a file that a source must not hold."""
    raise FormatError(
        f"{source}: {shown(name)}",
        expected=expected,
        found=found,
        remedy="nothing was taken from it; ask its makers for a plain model folder",
        code=code,
    )


def shown(text: str) -> str:
    """A name or text, shortened, in quotes."""
    return repr(text if len(text) <= 40 else text[:40] + "...")


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile | None]:
    if source.is_dir():
        yield None
        return
    if not source.is_file():
        raise ConfigError(
            str(source),
            expected="a model folder or a zip of one",
            found="no such file or folder" if not source.exists() else "neither",
            remedy="correct the path",
            code="bundle-missing",
        )
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(source) from error
    except OSError as error:
        raise _unreadable(source) from error
    with archive:
        yield archive


def _damaged(source: Path) -> FormatError:
    return FormatError(
        str(source),
        expected="a whole zip file",
        found="one that is cut off or damaged, or something else",
        remedy="copy or download it again",
        code="bundle-zip",
    )


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _unreadable(source: Path) -> ConfigError:
    return ConfigError(
        str(source),
        expected="a model that can be read",
        found="no permission, or a disk that fails",
        remedy="check its permissions, or copy it again",
        code="input-unreadable",
    )


def _listed(archive: zipfile.ZipFile, source: Path) -> Iterator[Entry]:
    """The files of a zip, each judged by what the archive says of it."""
    folders: set[str] = set()
    files: set[str] = set()
    packed = 0
    for info in archive.infolist()[: 2 * MOST_FILES]:  # more are too many in any case
        name = _checked_name(info.orig_filename, source)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            refuse(source, str(name), expected="files", found="a link", code="bundle-link")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 0x1:
            refuse(
                source,
                str(name),
                expected="plain files",
                found="an encrypted one" if info.flag_bits & 0x1 else "a device, pipe or socket",
                code="bundle-special",
            )
        is_folder = info.is_dir() or kind == stat.S_IFDIR
        same = _folded(name)
        above = {_folded(parent) for parent in name.parents} - {"."}
        if same in files or (same in folders and not is_folder) or above & files:
            refuse(
                source,
                str(name),
                expected="every name once, whatever the case of its letters",
                found="one that is there twice",
                code="bundle-duplicate",
            )
        folders |= above | ({same} if is_folder else set())
        if is_folder:
            continue
        files.add(same)
        packed += info.compress_size
        if info.file_size > max(_SMALL_BYTES, MOST_RATIO * info.compress_size):
            refuse(
                source,
                str(name),
                expected=f"at most {MOST_RATIO} bytes for each compressed one",
                found=f"{info.file_size} bytes in {info.compress_size}",
                code="bundle-ratio",
            )
        yield Entry(name, info.file_size, partial(archive.open, info))
    if packed > source.stat().st_size:
        refuse(
            source,
            source.name,
            expected="files that lie one after the other",
            found="files that share their compressed bytes",
            code="bundle-ratio",
        )


def _checked_name(name: str, source: Path) -> PurePosixPath:
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        refuse(
            source,
            name,
            expected="paths relative to the model",
            found="an absolute one",
            code="bundle-path-absolute",
        )
    parts = name.replace("\\", "/").removesuffix("/").split("/")
    if ".." in parts:
        refuse(
            source,
            name,
            expected="paths inside the model",
            found="one that leads out of it",
            code="bundle-path-parent",
        )
    if "\\" in name or any(part in ("", ".") or not part.isprintable() for part in parts):
        refuse(
            source,
            name,
            expected="paths of printable names with / between",
            found="another one",
            code="bundle-path",
        )
    return PurePosixPath(*parts)


def _folded(name: PurePosixPath) -> str:
    """Alike for names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _walked(source: Path) -> Iterator[Entry]:
    """The files of a folder; no link is followed."""
    inner = source / "model"  # of a run folder
    root = inner if (inner / CARD_NAME).is_file() and not inner.is_symlink() else source
    waiting, seen = [root], 0
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            seen += 1
            if seen > 2 * MOST_FILES:
                return  # too many in any case
            name = PurePosixPath(path.relative_to(root).as_posix())
            state = path.lstat()
            if stat.S_ISLNK(state.st_mode):
                refuse(source, str(name), expected="files", found="a link", code="bundle-link")
            if stat.S_ISDIR(state.st_mode):
                waiting.append(path)
            elif stat.S_ISREG(state.st_mode):
                yield Entry(name, state.st_size, partial(_open, path))
            else:
                refuse(
                    source,
                    str(name),
                    expected="plain files",
                    found="a device, pipe or socket",
                    code="bundle-special",
                )


def _check_amount(entries: Sequence[Entry], source: Path) -> None:
    if len(entries) > MOST_FILES:
        refuse(
            source,
            source.name,
            expected=f"at most {MOST_FILES} files",
            found="more",
            code="bundle-files",
        )
    total = sum(entry.size for entry in entries)
    if total > MOST_BYTES:
        refuse(
            source,
            source.name,
            expected=f"at most {MOST_BYTES >> 30} GiB",
            found=f"{total} bytes",
            code="bundle-size",
        )
    for entry in entries:
        text = entry.name.suffix in (".json", *TEXTS)
        if text and entry.size > MOST_TEXT_BYTES:
            refuse(
                source,
                str(entry.name),
                expected=f"texts of at most {MOST_TEXT_BYTES >> 20} MiB",
                found=f"{entry.size} bytes",
                code="bundle-size",
            )
