"""The ledger of a study: what every case is, how far it is, and what proves it.

Every step is one transaction, so that a process killed at any moment leaves the ledger as it was
before a step or after it. Any number of processes may work on one ledger: a case is handed to one
of them at a time, and those of a process that died go back (:meth:`Ledger.recover`).

Identifiers of cases are keyed hashes with a random salt that stays in the ledger, as does where
their images lie. Nothing else that is written or printed by default leads from one to the other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from medseg.studies.ledger_file import connect, ledger_errors
from medseg.studies.ledger_rows import STATES, CaseRow, Ending, Entry, Output, State
from medseg.studies.liveness import Self, Watch, this_process

__all__ = ["Ledger"]

_ID_LENGTH = 12
_COLUMNS = (
    "number, id, key, name, channels, state, attempts, deaths, code, message, seconds, ended, "
    "stamp, fingerprint, settings, details, turn"
)


class Ledger:
    """An open ledger; a context manager. Its methods may be called from several threads.

    Every method raises ``ResourceError`` (``ledger-busy``, ``ledger-lock``, ``ledger-unreachable``,
    ``disk-full``, ``output-unwritable``) or ``FormatError`` (``ledger-damaged``) if the file cannot
    be used.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._lock = threading.RLock()
        self.path = path
        (self._salt,) = connection.execute("SELECT value FROM facts WHERE name = 'salt'").fetchone()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        salt: bytes | None = None,
    ) -> Ledger:
        """Open a ledger; see :func:`medseg.studies.ledger_file.connect` for arguments and errors.

        With the same ``salt`` two new ledgers give the same identifiers.
        """
        connection = connect(path, create=create, read_only=read_only, salt=salt)
        with ledger_errors(path):
            return cls(connection, path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the last process to do so folds the log in."""
        with self._lock:
            self._db.close()

    def identify(self, key: str, length: int = _ID_LENGTH) -> str:
        """The salted identifier of a key."""
        return hmac.new(self._salt, key.encode(), hashlib.sha256).hexdigest()[:length]

    # -- cases

    def register(self, entries: Sequence[Entry]) -> list[CaseRow]:
        """Enter the cases that are not there yet; those that are keep their names.

        A case is there if its key is, or if the same paths are under another key, as when a file is
        given by itself that was found in a folder before.

        Returns:
            Their rows, in the order of the entries.
        """
        numbers: list[int] = []
        with self.writing() as db:
            by_key: dict[str, int] = {}
            by_place: dict[str, int] = {}
            taken: set[str] = set()
            query = "SELECT number, key, name, channels FROM cases"
            for number, key, name, channels in db.execute(query):
                by_key[key] = by_place[channels] = number
                taken.add(name.lower())
            for entry in entries:
                place = json.dumps(dict(entry.channels))
                found = by_key.get(entry.key, by_place.get(place))
                if found is None:
                    found = self._enter(db, entry, place, taken)
                by_key[entry.key] = by_place[place] = found
                numbers.append(found)
        return [self.row(number) for number in numbers]

    def _enter(self, db: sqlite3.Connection, entry: Entry, place: str, taken: set[str]) -> int:
        identifier = self.identify(entry.key)
        while db.execute("SELECT 1 FROM cases WHERE id = ?", (identifier,)).fetchone():
            identifier = self.identify(entry.key, len(identifier) + 4)
        last = f"case-{identifier}"
        name = next((one for one in entry.names if one.lower() not in taken), last)
        taken.add(name.lower())
        done = db.execute(
            "INSERT INTO cases (id, key, name, channels) VALUES (?, ?, ?, ?)",
            (identifier, entry.key, name, place),
        )
        assert done.lastrowid is not None  # noqa: S101 - after an insertion
        return done.lastrowid

    def rows(self) -> Iterator[CaseRow]:
        """All cases in order of arrival."""
        yield from map(_row, self.read(f"SELECT {_COLUMNS} FROM cases ORDER BY number"))

    def row(self, number: int) -> CaseRow:
        """The case of a number."""
        (found,) = self.read(f"SELECT {_COLUMNS} FROM cases WHERE number = ?", (number,))
        return _row(found)

    def outputs(self, number: int) -> list[Output]:
        """The files that a case is recorded to have; those only announced have no hash."""
        query = 'SELECT kind, name, bytes, sha256 FROM outputs WHERE "case" = ? ORDER BY kind'
        return [Output(*row) for row in self.read(query, (number,))]

    def volumes_ml(self, number: int) -> dict[str, float]:
        """Volume of every structure of a case, in the order of the labels."""
        query = 'SELECT structure, ml FROM volumes WHERE "case" = ? ORDER BY place'
        return dict(self.read(query, (number,)))

    def structures(self) -> list[str]:
        """Every structure that some case has a volume of, in the order of the labels."""
        query = "SELECT structure FROM volumes GROUP BY structure ORDER BY min(place), structure"
        return [name for (name,) in self.read(query)]

    def thumbnail(self, number: int) -> bytes | None:
        """The small picture of a case."""
        found = self.read('SELECT jpeg FROM thumbnails WHERE "case" = ?', (number,))
        return found[0][0] if found else None

    def counts(self, run: str | None = None) -> dict[State, int]:
        """Number of cases in every state; of those of one run, if it is named."""
        among = 'WHERE number IN (SELECT "case" FROM wanted WHERE run = ?)' if run else ""
        query = f"SELECT state, count(*) FROM cases {among} GROUP BY state"
        found = dict(self.read(query, (run,) if run else ()))
        return {state: found.get(state, 0) for state in STATES}

    def codes(self) -> dict[str, int]:
        """Number of cases for every reason of failure, the most frequent first."""
        query = (
            "SELECT code, count(*) FROM cases WHERE code IS NOT NULL GROUP BY code "
            "ORDER BY count(*) DESC, code"
        )
        return dict(self.read(query))

    # -- runs and their processes

    def begin_run(
        self, cases: Iterable[tuple[int, Mapping[str, str]]], settings: str, content: str
    ) -> str:
        """Note what a run is to do.

        Args:
            cases: Number of each case, and its channels as they were given now.
            settings: Hash of the settings.
            content: What they are, as JSON.

        Returns:
            The name of the run.
        """
        run = secrets.token_hex(8)
        with self.writing() as db:
            db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (settings, content))
            db.executemany(
                'INSERT OR IGNORE INTO wanted (run, "case", channels) VALUES (?, ?, ?)',
                [(run, number, json.dumps(dict(channels))) for number, channels in cases],
            )
        return run

    def end_run(self, run: str) -> None:
        """Forget what a run was to do; what it did stays."""
        with self.writing() as db:
            db.execute("DELETE FROM wanted WHERE run = ?", (run,))

    def enlist(self, run: str) -> str:
        """Note this process as one that works on a run.

        Returns:
            Its token.
        """
        token, me = secrets.token_hex(8), this_process()
        with self.writing() as db:
            db.execute(
                "INSERT INTO workers (token, run, host, pid, born, began) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (token, run, me.host, me.pid, me.born, time.time()),
            )
        return token

    def beat(self, token: str) -> None:
        """Say that a process still lives."""
        with self.writing() as db:
            db.execute("UPDATE workers SET beat = beat + 1 WHERE token = ?", (token,))

    def dismiss(self, token: str, *, died: bool = False) -> None:
        """Strike off a process that ends; what it still holds goes back as it was.

        Args:
            token: The process.
            died: Whether it is known to have died: cases that it worked on count one death more.
        """
        with self.writing() as db:
            _give_back(db, token, died=died)

    def workers(self) -> list[tuple[str, Self, int]]:
        """Token, process and counter of all that are noted."""
        query = "SELECT token, host, pid, born, beat FROM workers ORDER BY began"
        return [
            (token, Self(host, pid, born), beat)
            for token, host, pid, born, beat in self.read(query)
        ]

    def recover(self, watch: Watch) -> int:
        """Strike off the processes that died, and give back what they held.

        A case that was being worked on counts one death more.

        Returns:
            How many had died.
        """
        dead = [one for one in self.workers() if watch.is_dead(*one)]
        if not dead:
            return 0
        with self.writing() as db:
            for token, _, beat in dead:
                still = "SELECT 1 FROM workers WHERE token = ? AND beat = ?"
                if db.execute(still, (token, beat)).fetchone():
                    _give_back(db, token, died=True)
            db.execute("DELETE FROM wanted WHERE run NOT IN (SELECT run FROM workers)")
        return len(dead)

    # -- work

    def now(self) -> int:
        """The turn of the last case that ended: what has a greater one ended after this."""
        ((turn,),) = self.read("SELECT value FROM facts WHERE name = 'turn'")
        return int(turn)

    def claim(self, run: str, token: str) -> tuple[CaseRow, dict[str, str]] | None:
        """Take the next case of a run that no process holds; those with deaths come last.

        Returns:
            The case, and its channels as this run was given them; None if none is free.
        """
        query = (
            f'SELECT w.channels, {_COLUMNS_OF_C} FROM wanted w JOIN cases c ON c.number = w."case" '
            "WHERE w.run = ? AND w.taken = 0 AND c.worker IS NULL AND {} "
            'ORDER BY w."case" LIMIT 1'
        )
        with self.writing() as db:
            for those in ("c.deaths = 0", "c.deaths > 0"):
                found = db.execute(query.format(those), (run,)).fetchone()
                if found:
                    break
            else:
                return None
            row = _row(found[1:])
            db.execute(
                'UPDATE wanted SET taken = 1 WHERE run = ? AND "case" = ?', (run, row.number)
            )
            db.execute("UPDATE cases SET worker = ? WHERE number = ?", (token, row.number))
        return row, json.loads(found[0])

    def has_left(self, run: str) -> bool:
        """Whether a run has cases that it has not taken, those included that other runs hold."""
        query = "SELECT 1 FROM wanted WHERE run = ? AND taken = 0 LIMIT 1"
        return bool(self.read(query, (run,)))

    def begin(self, number: int, token: str, channels: Mapping[str, str]) -> None:
        """Work on a case begins: what was proven of it no longer is."""
        with self.writing() as db:
            db.execute(
                "UPDATE cases SET state = 'running', attempts = attempts + 1, settings = NULL, "
                "channels = ? WHERE number = ? AND worker = ?",
                (json.dumps(dict(channels)), number, token),
            )

    def announce(self, number: int, names: Mapping[str, str]) -> None:
        """Files are about to be written: should the process die, they are known to be its own.

        Args:
            number: The case.
            names: Kind of result to the name of its file.
        """
        with self.writing() as db:
            db.executemany(
                "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, 0, '')",
                [(number, kind, name) for kind, name in names.items()],
            )

    def confirm(self, number: int, token: str, stamp: str, channels: Mapping[str, str]) -> None:
        """A case was found to be complete: it is let go as it is."""
        with self.writing() as db:
            db.execute(
                "UPDATE cases SET worker = NULL, stamp = ?, channels = ?, deaths = 0 "
                "WHERE number = ? AND worker = ?",
                (stamp, json.dumps(dict(channels)), number, token),
            )

    def finish(self, number: int, token: str, settings: str, ending: Ending) -> bool:
        """An attempt ended, well or not.

        Returns:
            Whether it counts: False if the case was given to another process meanwhile, because
            this one was taken for dead.
        """
        with self.writing() as db:
            changed = db.execute(
                "UPDATE cases SET state = ?, code = ?, message = ?, seconds = ?, ended = ?, "
                "stamp = coalesce(?, stamp), fingerprint = coalesce(?, fingerprint), settings = ?, "
                "details = ?, worker = NULL, "
                # those of a case that was refused for them are held against it still
                "deaths = CASE state WHEN 'running' THEN 0 ELSE deaths END, "
                "turn = (SELECT value + 1 FROM facts WHERE name = 'turn') "
                "WHERE number = ? AND worker = ?",
                (
                    *(ending.state, ending.code, ending.message, ending.seconds, time.time()),
                    *(ending.stamp, ending.fingerprint, settings),
                    *(json.dumps(dict(ending.details)), number, token),
                ),
            )
            if not changed.rowcount:
                return False
            db.execute("UPDATE facts SET value = value + 1 WHERE name = 'turn'")
            _keep_results(db, number, ending)
        return True

    def adopt(
        self,
        number: int,
        token: str,
        name: str,
        settings: str,
        ending: Ending,
        channels: Mapping[str, str],
    ) -> bool:
        """Take over results that are there already and were proven: the case is let go as done.

        Args:
            number: The case.
            token: The process that holds it.
            name: Stem of the results, which becomes the name of the case.
            settings: Hash of the settings that they were made with.
            ending: What is known of them.
            channels: Where the images are.

        Returns:
            Whether it was done: False if another case has that name, or another process this case.
        """
        with self.writing() as db:
            taken = "SELECT 1 FROM cases WHERE name = ? AND number <> ?"
            if db.execute(taken, (name, number)).fetchone():
                return False
            changed = db.execute(
                "UPDATE cases SET name = ?, state = ?, code = NULL, message = NULL, seconds = ?, "
                "ended = ?, stamp = ?, fingerprint = ?, settings = ?, details = ?, channels = ?, "
                "deaths = 0, worker = NULL WHERE number = ? AND worker = ?",
                (
                    *(name, ending.state, ending.seconds, time.time(), ending.stamp),
                    *(ending.fingerprint, settings, json.dumps(dict(ending.details))),
                    *(json.dumps(dict(channels)), number, token),
                ),
            )
            if not changed.rowcount:
                return False
            _keep_results(db, number, ending)
        return True

    def release(self, number: int, token: str) -> None:
        """Give back a case that is not done, because the run is to stop."""
        with self.writing() as db:
            db.execute(
                "UPDATE cases SET worker = NULL, "
                "state = CASE state WHEN 'running' THEN 'waiting' ELSE state END "
                "WHERE number = ? AND worker = ?",
                (number, token),
            )

    def retry(self, *, names: Sequence[str] = (), codes: Sequence[str] = ()) -> int:
        """Have cases done again by the next run, whatever was proven or held against them.

        Args:
            names: Those of these names or identifiers.
            codes: Those that ended with one of these codes. With neither, all that failed or are
                incomplete.

        Returns:
            How many there are. Cases at work are left alone.
        """
        chosen = "state IN ('failed', 'incomplete')"
        values: list[str] = []
        if names or codes:
            marks = [",".join("?" * len(some)) for some in (names, names, codes)]
            chosen = f"(name IN ({marks[0]}) OR id IN ({marks[1]}) OR code IN ({marks[2]}))"
            values = [*names, *names, *codes]
        with self.writing() as db:
            changed = db.execute(
                "UPDATE cases SET state = 'waiting', deaths = 0, settings = NULL, "
                f"code = NULL, message = NULL WHERE worker IS NULL AND {chosen}",
                values,
            )
            return changed.rowcount

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all that is done in it, or nothing."""
        with self._lock, ledger_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def read(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of a query."""
        with self._lock, ledger_errors(self.path):
            return self._db.execute(query, values).fetchall()


_COLUMNS_OF_C = ", ".join(f"c.{name}" for name in _COLUMNS.split(", "))


def _give_back(db: sqlite3.Connection, token: str, *, died: bool) -> None:
    held = "SELECT number FROM cases WHERE worker = ?"
    db.execute(
        f'UPDATE wanted SET taken = 0 WHERE "case" IN ({held}) '
        "AND run = (SELECT run FROM workers WHERE token = ?)",
        (token, token),
    )
    db.execute(
        "UPDATE cases SET worker = NULL, deaths = deaths + (? AND state = 'running'), "
        "state = CASE state WHEN 'running' THEN 'waiting' ELSE state END WHERE worker = ?",
        (died, token),
    )
    db.execute("DELETE FROM workers WHERE token = ?", (token,))


def _keep_results(db: sqlite3.Connection, number: int, ending: Ending) -> None:
    for table in ("volumes", "thumbnails"):
        db.execute(f'DELETE FROM {table} WHERE "case" = ?', (number,))
    if ending.state != "failed":  # else an earlier result may still be there
        db.execute('DELETE FROM outputs WHERE "case" = ?', (number,))
    db.executemany(
        "INSERT INTO outputs VALUES (?, ?, ?, ?, ?)",
        [(number, one.kind, one.name, one.bytes, one.sha256) for one in ending.outputs],
    )
    db.executemany(
        "INSERT INTO volumes VALUES (?, ?, ?, ?)",
        [(number, at, *pair) for at, pair in enumerate(ending.volumes_ml.items())],
    )
    if ending.thumbnail is not None:
        db.execute("INSERT INTO thumbnails VALUES (?, ?)", (number, ending.thumbnail))


def _row(values: Sequence[Any]) -> CaseRow:
    row = dict(zip(_COLUMNS.split(", "), values, strict=True))
    row["channels"] = json.loads(row["channels"])
    row["details"] = json.loads(row["details"] or "{}")
    return CaseRow(**row)
