"""Autosave in the background, and recovery after a crash.

Every write to the labels is put into a journal within a fraction of a second: some hundred bytes
for a step of the brush. When a journal has grown long, the labels are saved whole and a new one is
begun. See :mod:`medseg_napari.editing.session_file` for the files.

They lie in napari's data folder and can be read by their owner alone. A source is known by a keyed
hash of its identity; the key is made once per installation, so that nobody else can find out from
the folder which images were edited.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import platformdirs
import psutil
from psygnal import Signal

from medseg import atomic
from medseg.core import LabelScheme
from medseg.errors import MedsegError, ResourceError
from medseg_napari.editing.boxes import LabelArray
from medseg_napari.editing.change import Change
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.session_file import (
    Entry,
    SessionHeader,
    is_whole,
    read_base,
    read_journal,
    write_base,
    write_entry,
)

__all__ = ["Autosave", "Recoverable", "Recovered", "recoverable", "recovery_folder", "source_key"]

_KEY_FILE = "key"

_left_here: set[Path] = set()
"""Autosaves of this process whose labels were closed without being saved."""


def recovery_folder() -> Path:
    """Where autosaves lie: a folder of medseg in napari's data folder."""
    return Path(platformdirs.user_data_dir("napari", False)) / "medseg" / "recovery"


def source_key(identity: str, folder: Path | None = None) -> str:
    """The name under which a source is known in the recovery folder.

    Args:
        identity: What tells the source from others, such as its series' UID.
        folder: The recovery folder; None for the user's.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    place = _made(folder or recovery_folder())
    try:
        secret = (place / _KEY_FILE).read_bytes()
    except FileNotFoundError:
        atomic.write_bytes(place / _KEY_FILE, secrets.token_bytes(32))
        secret = (place / _KEY_FILE).read_bytes()
    return hmac.new(secret, identity.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """What an autosave held.

    Args:
        labels: ``(i, p, l)``, exactly as they were when the process ended.
        scheme: The label table, where it was known.
        effort: Counters for :meth:`~medseg_napari.editing.effort.Effort.restore`, where known.
    """

    labels: LabelArray
    scheme: LabelScheme | None
    effort: dict[str, object] | None


@dataclass(frozen=True, slots=True, eq=False)
class Recoverable:
    """An autosave of a process that ended without saving.

    Args:
        folder: Its files.
        header: What they are of.
        changed_s: When it was last written to, in seconds since 1970.
        nbytes: Size of its files.
    """

    folder: Path
    header: SessionHeader
    changed_s: float
    nbytes: int

    def load(self) -> Recovered:
        """Read the labels; the files stay until :meth:`discard`.

        Raises:
            FormatError: ``recovery-damaged``.
        """
        number = self.header.generation
        labels = read_base(self.folder / f"base-{number}.bin", self.header)
        scheme, effort, _ = read_journal(self.folder / f"journal-{number}.bin", labels)
        return Recovered(labels, scheme, effort)

    def discard(self) -> None:
        """Delete its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def recoverable(key: str | None = None, folder: Path | None = None) -> list[Recoverable]:
    """The autosaves of processes that are no more, and of labels that were closed, newest first.

    Args:
        key: Those of one source alone, see :func:`source_key`.
        folder: The recovery folder; None for the user's.
    """
    found = [
        one
        for one in _sessions(folder or recovery_folder())
        if key in (None, one.header.key) and (one.folder in _left_here or not _runs(one.header))
    ]
    return sorted(found, key=lambda one: one.changed_s, reverse=True)


def _sessions(folder: Path) -> Iterator[Recoverable]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for place in sorted(folder.iterdir()):
            if not is_whole(place):
                continue
            with contextlib.suppress(OSError, MedsegError):  # it was deleted meanwhile
                files = [entry.stat() for entry in place.iterdir()]
                changed_s = max(file.st_mtime for file in files)
                size = sum(file.st_size for file in files)
                yield Recoverable(place, SessionHeader.read(place), changed_s, size)


def _runs(header: SessionHeader) -> bool:
    try:
        process = psutil.Process(header.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - header.started_s) < 1.0)
    except psutil.Error:
        return False


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            "autosave",
            expected="a data folder that can be written to",
            found=error.strerror or type(error).__name__,
            remedy="make the folder writable; until then nothing is saved automatically",
            code="output-unwritable",
        ) from error
    return folder


class Autosave:
    """Keeps the labels of a controller safe in the background.

    Nothing is written before the first edit. Trouble with the disk never stops an edit; it is told
    once by :attr:`trouble`, and the next edits try again.

    Args:
        controller: Whose labels.
        key: Of their source, see :func:`source_key`.
        folder: The recovery folder; None for the user's.
        journal_bytes: A journal longer than this is replaced by a new base.
        most_bytes: When a session begins, the oldest autosaves of ended processes are deleted until
            all together take less.
    """

    trouble = Signal(str)
    """Autosaving does not work; the sentence says why. Comes from the background thread."""

    def __init__(
        self,
        controller: EditController,
        key: str,
        *,
        folder: Path | None = None,
        journal_bytes: int = 32 << 20,
        most_bytes: int = 2 << 30,
    ) -> None:
        self._controller = controller
        self._labels = controller.labels
        self._key = key
        self._root = folder or recovery_folder()
        self._folder = self._root / secrets.token_hex(8)
        self._journal_bytes = journal_bytes
        self._most_bytes = most_bytes
        self._jobs: queue.SimpleQueue[Entry | threading.Event | None] = queue.SimpleQueue()
        self._generation = 0
        self._journal: IO[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._told = False
        self._given_up = threading.Event()
        controller.written.connect(self._written)
        controller.changed.connect(self._edited)
        controller.table_changed.connect(self._table_changed)
        controller.replaced.connect(self._replaced)
        self._scheme = controller.scheme

    @property
    def key(self) -> str:
        """The name under which the source is known in the recovery folder."""
        return self._key

    @property
    def folder(self) -> Path:
        """Where its files are, once there are some."""
        return self._folder

    def flush(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything up to now is on the disk; False if it took too long."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._jobs.put(done)
        return done.wait(timeout_s)

    def saved(self) -> None:
        """The labels were saved elsewhere or given up: what is here is deleted."""
        self._given_up.set()
        self._stop()
        self._given_up.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._root / secrets.token_hex(8)
        self._generation = 0

    def close(self) -> None:
        """Stop listening; the files stay, for recovery, if the labels were not saved."""
        self._controller.written.disconnect(self._written)
        self._controller.changed.disconnect(self._edited)
        self._controller.table_changed.disconnect(self._table_changed)
        self._controller.replaced.disconnect(self._replaced)
        if self._controller.modified:
            self._stop()
            _left_here.add(self._folder)
        else:
            self.saved()

    def _written(self, change: Change, forward: bool) -> None:
        self._put(Entry(change, forward))

    def _edited(self) -> None:
        self._put(Entry(None, True, self._other_scheme(), self._controller.effort.to_dict()))

    def _table_changed(self) -> None:
        if self._controller.scheme != self._scheme:
            self._edited()

    def _replaced(self) -> None:
        """Start anew from the array as it is now."""
        self._stop()
        self._edited()

    def _other_scheme(self) -> LabelScheme | None:
        if self._controller.scheme == self._scheme:
            return None
        self._scheme = self._controller.scheme
        return self._scheme

    def _put(self, entry: Entry) -> None:
        if self._thread is None:
            self._labels = self._controller.labels
            entry = replace(entry, scheme=self._controller.scheme)
            self._thread = threading.Thread(target=self._work, name="medseg autosave", daemon=True)
            self._thread.start()
        self._jobs.put(entry)

    def _stop(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # ---- in the background

    def _work(self) -> None:
        known = Entry(None, True)
        while True:
            job = self._jobs.get()
            if job is None:
                return
            if isinstance(job, threading.Event):
                if self._journal is not None:
                    with contextlib.suppress(OSError):  # the next entry meets it again
                        _synced(self._journal)
                job.set()
                continue
            if self._given_up.is_set():
                continue
            known = Entry(None, True, job.scheme or known.scheme, job.effort or known.effort)
            try:
                if self._journal is None:
                    self._begin(known)
                self._append(job, known)
            except (OSError, MedsegError) as error:
                self._abandon(error)

    def _begin(self, known: Entry) -> None:
        """Save the labels whole and start a journal."""
        first = self._generation == 0
        if first:
            _made(self._root)
            self._prune()
            _made(self._folder)
        number = self._generation + 1
        write_base(self._folder / f"base-{number}.bin", self._labels)
        # the journal must be there, with the label table, before the header says that it is valid
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context((self._folder / f"journal-{number}.bin").open("wb"))
            write_entry(journal, known)
            _synced(journal)
            self._header(number).write(self._folder)
            stack.pop_all()
        before, self._journal, self._generation = self._journal, journal, number
        if before is not None:
            before.close()
        for kind in ("base", "journal"):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / f"{kind}-{number - 1}.bin").unlink()

    def _header(self, number: int) -> SessionHeader:
        i, p, l = self._labels.shape  # noqa: E741 - the axes' names
        process = psutil.Process()
        return SessionHeader(
            self._key,
            number,
            (i, p, l),
            str(self._labels.dtype),
            self._controller.spacing_mm,
            time.time(),
            process.pid,
            process.create_time(),
        )

    def _append(self, entry: Entry, known: Entry) -> None:
        journal = self._journal
        assert journal is not None, "a session has begun"  # noqa: S101
        write_entry(journal, entry)
        if self._jobs.empty():
            _synced(journal)
        if journal.tell() > self._journal_bytes:
            _synced(journal)
            self._begin(known)

    def _abandon(self, error: Exception) -> None:
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.close()
            self._journal = None
        if not self._told:
            self._told = True
            self.trouble.emit(
                str(error)
                if isinstance(error, MedsegError)
                else f"autosave: the disk does not take it ({error.strerror or error})"
                if isinstance(error, OSError)
                else str(error)
            )

    def _prune(self) -> None:
        old = recoverable(folder=self._root)
        total = sum(one.nbytes for one in old)
        for one in reversed(old):
            if total < self._most_bytes:
                return
            one.discard()
            total -= one.nbytes


def _synced(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
