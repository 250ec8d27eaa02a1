"""Opening the SQLite file of a study ledger: made, checked or refused, with the right journal.

A ledger is a SQLite database with an application id and a schema version of its own. On a local
disk it keeps a write-ahead log (WAL), which readers and one writer share without waiting. WAL needs
memory that all its processes share, so it cannot work between two machines: on a network share
the ledger keeps SQLite's rollback journal instead, which needs nothing but locks on the file. A
share without such locks is found out by trying one, and refused with the way round it: a ledger on
a local disk.

Source: https://www.sqlite.org/wal.html, section 1; https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError

__all__ = ["LEDGER_NAME", "connect", "is_network_folder", "ledger_errors"]

LEDGER_NAME = "ledger.sqlite"
"""Name of the ledger in an output folder."""

SCHEMA_VERSION = 2
_WITHOUT_REVIEWS = 1  # brought up to date as soon as it is opened for writing
_APPLICATION = 0x4D536564  # "MSed"; in the header of the file, where file(1) finds it
_MAGIC = b"SQLite format 3\0"
_BUSY_S = 60.0
_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
        *("glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "smb2"),
        *("smb3", "smbfs", "virtiofs", "wekafs"),
    }
)
_LOCKS_STAY_HERE = frozenset({"nolock", "local_lock=all", "local_lock=posix", "nobrl"})

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE settings (hash TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE workers (
    token TEXT PRIMARY KEY, run TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    born REAL NOT NULL, began REAL NOT NULL, beat INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE cases (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    channels TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'running', 'done', 'incomplete', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    code TEXT, message TEXT, seconds REAL, ended REAL,
    stamp TEXT, fingerprint TEXT, settings TEXT, details TEXT, worker TEXT,
    turn INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX cases_by_state ON cases (state);
CREATE INDEX cases_by_worker ON cases (worker) WHERE worker IS NOT NULL;
CREATE TABLE wanted (
    run TEXT NOT NULL, "case" INTEGER NOT NULL, channels TEXT NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run, "case")
) WITHOUT ROWID;
CREATE INDEX wanted_free ON wanted (run, "case") WHERE taken = 0;
CREATE TABLE outputs (
    "case" INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, PRIMARY KEY ("case", kind)
) WITHOUT ROWID;
CREATE TABLE volumes (
    "case" INTEGER NOT NULL, place INTEGER NOT NULL, structure TEXT NOT NULL, ml REAL NOT NULL,
    PRIMARY KEY ("case", place)
) WITHOUT ROWID;
CREATE TABLE thumbnails ("case" INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
"""

_REVIEWS = """
CREATE TABLE reviews (
    "case" INTEGER NOT NULL, revision INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'accepted', 'corrected', 'rejected')),
    at REAL NOT NULL, result TEXT NOT NULL, note TEXT NOT NULL, seconds REAL, effort TEXT,
    file TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY ("case", revision)
) WITHOUT ROWID;
"""


def connect(
    path: Path, *, create: bool = False, read_only: bool = False, salt: bytes | None = None
) -> sqlite3.Connection:
    """Open a ledger, making it first if it is absent and may be made.

    Args:
        path: The file.
        create: Whether an absent one is made.
        read_only: Whether it is only looked at, which works in a folder without write permission.
        salt: What identifiers of a new ledger are made with; random if None.

    Raises:
        ConfigError: ``ledger-missing`` if it is absent and may not be made.
        FormatError: ``ledger-foreign``, ``ledger-damaged`` or ``ledger-version``.
        ResourceError: ``ledger-lock`` where the folder cannot lock files, ``ledger-unreachable``,
            ``ledger-busy``, ``disk-full`` or ``output-unwritable``.
    """
    if not path.exists() and not create:
        raise ConfigError(
            str(path),
            expected="the ledger of a batch run",
            found="none",
            remedy="give the output folder of `medseg predict`, or --ledger FILE as it was given",
            code="ledger-missing",
        )
    _check_beginning(path)
    with ledger_errors(path):
        if create:
            check_locks(path.parent)
        if not path.exists():
            _put_away_log(path)
            _make(path, secrets.token_bytes(32) if salt is None else salt)
        connection = sqlite3.connect(
            _address(path, read_only),
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            version = _check_content(connection, path)
            if not read_only:
                if version == _WITHOUT_REVIEWS:
                    _add_reviews(connection)
                _choose_journal(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _address(path: Path, read_only: bool) -> str:
    address = path.absolute().as_uri()
    if not read_only:
        return f"{address}?mode=rw"
    # a log that was folded in needs no files beside it, which could not be made here
    folded = not path.with_name(f"{path.name}-wal").exists()
    alone = folded and not os.access(path.parent, os.W_OK)
    return f"{address}?mode=ro{'&immutable=1' if alone else ''}"


@contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ours; its messages name no values of ours, but are not clear."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(path, error) from error
    except OSError as error:
        if isinstance(error, MedsegError):
            raise
        raise ResourceError(
            str(path),
            expected="a ledger that can be read and written",
            found=error.strerror or type(error).__name__,
            remedy="check the folder; on a share, that it is still mounted",
            code="ledger-unreachable",
        ) from error


def _ours(path: Path, error: sqlite3.Error) -> MedsegError:
    kind = getattr(error, "sqlite_errorcode", None) or 0
    base = kind & 0xFF
    if base in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path)
    table: dict[int, tuple[str, str, str, str]] = {
        sqlite3.SQLITE_FULL: (
            "free space for the ledger",
            "a full disk",
            "free some space and run the same command again",
            "disk-full",
        ),
        sqlite3.SQLITE_READONLY: (
            "a ledger that can be written",
            "a read-only one",
            "make the folder writable, or give --ledger FILE",
            "output-unwritable",
        ),
        sqlite3.SQLITE_BUSY: (
            "the ledger to be free within a minute",
            "another process that keeps it locked",
            "see what else works on this folder; shards on several machines go better with a "
            "ledger each: --ledger FILE",
            "ledger-busy",
        ),
        sqlite3.SQLITE_PROTOCOL: _NO_LOCKS,
    }
    if base == sqlite3.SQLITE_IOERR and "LOCK" in (getattr(error, "sqlite_errorname", "") or ""):
        table[base] = _NO_LOCKS
    expected, found, remedy, code = table.get(
        base,
        (
            "a ledger that can be read and written",
            getattr(error, "sqlite_errorname", None) or type(error).__name__,
            "check the folder; on a share, that it is still mounted",
            "ledger-unreachable",
        ),
    )
    return ResourceError(str(path), expected=expected, found=found, remedy=remedy, code=code)


_NO_LOCKS = (
    "a folder whose files can be locked",
    "one where locks fail, as on some network shares",
    "keep the ledger on a local disk: --ledger FILE, one for every shard; results may stay there",
    "ledger-lock",
)


def check_locks(folder: Path) -> None:
    """Try to lock a file of a folder.

    Raises:
        ResourceError: ``ledger-lock`` if that fails.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on Windows, where SQLite has its own locks
    except ImportError:
        return
    options = _mount(folder)[1]
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return  # it cannot be written at all, which is told elsewhere
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _LOCKS_STAY_HERE & options:
            raise OSError
    except OSError as error:
        expected, found, remedy, code = _NO_LOCKS
        raise ResourceError(
            str(folder), expected=expected, found=found, remedy=remedy, code=code
        ) from error
    finally:
        os.close(descriptor)
        with suppress(OSError):
            probe.unlink()


def is_network_folder(folder: Path) -> bool:
    """Whether a folder lies on a file system that other machines may have mounted too."""
    return _mount(folder)[0] in _NETWORK


def _mount(folder: Path) -> tuple[str, frozenset[str]]:
    """Type and options of the file system of a folder; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", frozenset()
    wanted = folder.absolute().resolve()
    best: tuple[int, str, frozenset[str]] = (-1, "", frozenset())
    for line in lines:
        _, place, kind, options, *_ = line.split(" ")
        root = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place))
        if wanted.is_relative_to(root) and len(root.parts) > best[0]:
            best = (len(root.parts), kind, frozenset(options.split(",")))
    return best[1], best[2]


def _check_beginning(path: Path) -> None:
    """Refuse what is no SQLite file before SQLite is let near it."""
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResourceError(
            str(path),
            expected="a ledger that can be read",
            found=error.strerror or type(error).__name__,
            remedy="check its permissions",
            code="ledger-unreachable",
        ) from error
    if head != _MAGIC:
        raise _foreign(path, "an empty file" if not head else "another kind of file")


def _check_content(connection: sqlite3.Connection, path: Path) -> int:
    """Refuse what cannot be used; the version of the rest."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION:
        raise _foreign(path, "the database of another program")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (_WITHOUT_REVIEWS, SCHEMA_VERSION):
        raise FormatError(
            str(path),
            expected=f"a ledger of version {SCHEMA_VERSION}",
            found=f"version {version}",
            remedy="use the medseg that wrote it, or another output folder",
            code="ledger-version",
        )
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise _damaged(path)
    return int(version)


def _add_reviews(connection: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier release up to date; what it holds stays as it is."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # another process may have been first
        if connection.execute("PRAGMA user_version").fetchone() == (_WITHOUT_REVIEWS,):
            connection.execute(_REVIEWS)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


_MOVE_IT = (
    "it was left as it is: move it away and run the same command again, which takes over the "
    "results whose reports prove them"
)


def _foreign(path: Path, found: str) -> FormatError:
    return FormatError(
        str(path),
        expected="a ledger that medseg wrote",
        found=found,
        remedy=f"{_MOVE_IT}, or choose another output folder",
        code="ledger-foreign",
    )


def _damaged(path: Path) -> FormatError:
    return FormatError(
        str(path),
        expected="a whole ledger",
        found="a damaged one",
        remedy=_MOVE_IT,
        code="ledger-damaged",
    )


def _put_away_log(path: Path) -> None:
    """Keep the log of a ledger that is gone from being folded into a new one of its name."""
    for ending in ("-wal", "-journal", "-shm"):
        log = path.with_name(f"{path.name}{ending}")
        # asked in this order: the log of a ledger that is just being made is never seen without it
        if log.exists() and not path.exists():
            log.replace(path.with_name(f"lost-{secrets.token_hex(4)}-{log.name}"))


def _make(path: Path, salt: bytes) -> None:
    """A new ledger, whole under its name or absent; another process may be first."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.executescript(f"BEGIN;{_SCHEMA}{_REVIEWS}COMMIT;")
            _choose_journal(connection, path)  # kept in the file, so nobody has to change it later
            connection.executemany(
                "INSERT INTO facts VALUES (?, ?)",
                [("salt", salt), ("made", time.time()), ("turn", 0)],
            )
        try:
            os.link(temporary, path)  # unlike a rename it never replaces another's ledger
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not path.exists():
                temporary.rename(path)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                temporary.with_name(f"{temporary.name}{ending}").unlink()


def _choose_journal(connection: sqlite3.Connection, path: Path) -> None:
    if is_network_folder(path.parent):
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA synchronous = FULL")
        return
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    # a commit that a power cut takes back is a case to be done again, never a broken file
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
