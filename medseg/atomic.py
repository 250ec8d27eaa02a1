"""Files that are either whole or absent.

A file is written under a temporary name in its own folder, flushed to the disk and renamed over the
target. Readers never see half of it, and an interrupted run leaves the previous file as it was.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.errors import MedsegError, ResourceError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_replaceable",
    "scratch_folder",
    "write_bytes",
    "write_text",
]

_REASONS = {
    errno.ENOSPC: ("free space", "a full disk", "free some space or choose another output folder"),
    errno.EDQUOT: ("free quota", "an exhausted quota", "free some space or choose another folder"),
    errno.EFBIG: (
        "room to write",
        "a limit on the size of files",
        "raise it or choose another disk",
    ),
    errno.EROFS: ("a writable folder", "a read-only file system", "choose another output folder"),
    errno.EACCES: ("a writable folder", "no permission to write", "choose another output folder"),
    errno.EPERM: ("a writable folder", "no permission to write", "choose another output folder"),
    errno.ENOENT: ("an existing folder", "no such folder", "make it or choose another"),
    errno.ENOTDIR: ("a folder", "a file in its place", "choose another output folder"),
    errno.EISDIR: ("a file to write", "a folder of that name", "move it or choose another name"),
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _resource_error(target: Path, error: OSError) -> ResourceError:
    expected, found, remedy = _REASONS.get(
        error.errno or 0,
        ("the file to be written", error.strerror or type(error).__name__, "check the disk"),
    )
    code = "disk-full" if error.errno in _FULL else "output-unwritable"
    return ResourceError(str(target), expected=expected, found=found, remedy=remedy, code=code)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Hand out a temporary path whose content becomes ``target`` if the block succeeds.

    The temporary name is ``.<random>.tmp<suffixes of target>``: it keeps the suffixes, since image
    writers choose the format by them, and carries nothing of the target's own name.

    Args:
        target: The file to be made; its folder must exist.

    Yields:
        A path in the same folder, not yet existing. The block writes it by any means.

    Raises:
        ResourceError: If the folder cannot be written or the disk is full.
    """
    suffixes = "".join(target.suffixes[-2:]) if target.name.endswith(".gz") else target.suffix
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{suffixes}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
        _sync_folder(target.parent)
    except MedsegError:
        _discard(temporary)
        raise
    except OSError as error:
        _discard(temporary)
        raise _resource_error(target, error) from error
    except BaseException:
        _discard(temporary)
        raise


def check_replaceable(target: Path, mark: str, *, overwrite: bool) -> None:
    """Refuse to write a folder where something lies that may not be replaced.

    Args:
        target: Folder to be made.
        mark: A file that a folder must hold to be one of those that may be replaced; an empty
            folder may be too.
        overwrite: Whether any may.

    Raises:
        ResourceError: ``output-exists``.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise _exists(target, "move it away, choose another name or give --overwrite")
    if target.is_symlink() or not target.is_dir():
        raise _exists(target, "only a folder can be replaced; choose another name")
    if not (target / mark).is_file() and any(target.iterdir()):
        raise _exists(target, f"it holds files but no {mark}, so it is left alone; move it away")


def _exists(target: Path, remedy: str) -> ResourceError:
    return ResourceError(
        str(target),
        expected="a name that is still free",
        found="an existing folder or file",
        remedy=remedy,
        code="output-exists",
    )


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False, parents: bool = False) -> Iterator[Path]:
    """Hand out an empty temporary folder that becomes ``target`` if the block succeeds.

    Args:
        target: The folder to be made.
        replace: Whether a folder of that name is moved aside and, once the new one has its place,
            removed; else there must be none. See :func:`check_replaceable`.
        parents: Whether folders above it that are missing are made too, and taken away again if the
            block fails; else they must exist.

    Yields:
        A folder beside ``target``. The block fills it with files by any means.

    Raises:
        ResourceError: If ``target`` exists, the parent cannot be written or the disk is full.
    """
    if target.exists() and not replace:
        raise _exists(target, "move it away or choose another name")
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    missing = [folder for folder in target.parents if parents and not folder.exists()]
    try:
        temporary.mkdir(parents=parents)
        yield temporary
        for written in sorted(temporary.rglob("*")):
            if written.is_file():
                descriptor = os.open(written, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        _sync_folder(temporary)
        _take_place(temporary, target)
        _sync_folder(target.parent)
    except MedsegError:
        _discard_folder(temporary, missing)
        raise
    except OSError as error:
        _discard_folder(temporary, missing)
        raise _resource_error(target, error) from error
    except BaseException:
        _discard_folder(temporary, missing)
        raise


@contextmanager
def scratch_folder(inside: Path) -> Iterator[Path]:
    """Hand out an empty folder that is removed, with all that lies in it, when the block ends.

    Args:
        inside: The folder to make it in; it must exist.

    Raises:
        ResourceError: If that cannot be written.
    """
    temporary = inside / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir()
    except OSError as error:
        raise _resource_error(inside, error) from error
    try:
        yield temporary
    finally:
        _discard_folder(temporary, ())


def _take_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    aside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write ``content`` to ``target`` atomically.

    Raises:
        ResourceError: If the folder cannot be written or the disk is full.
    """
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write ``content`` to ``target`` atomically, as UTF-8.

    Raises:
        ResourceError: If the folder cannot be written or the disk is full.
    """
    write_bytes(target, content.encode("utf-8"))


def _discard(temporary: Path) -> None:
    with suppress(OSError):  # where the folder itself is the trouble there is nothing to remove
        temporary.unlink()


def _discard_folder(temporary: Path, made: Sequence[Path]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):  # one that is no longer empty is another's too
        for folder in made:
            folder.rmdir()


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some network file systems cannot open a folder; the rename itself stands
        return
    try:
        os.fsync(descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)
