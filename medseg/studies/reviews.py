"""What people said of the results of a batch run: accepted, corrected, rejected.

Reviews lie in the ledger. None is ever changed: a later one of the same case counts instead, so
that the ledger tells the whole course. A review belongs to one result, known by the SHA-256 of its
label file; if the case is done again and comes out differently, the review is of an earlier result.

Two people may review at once. Who writes says which review was seen last; if there is a later one
the writing is refused, so that nobody's word is replaced unseen.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from medseg.errors import ConfigError
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import Output

__all__ = [
    "REVIEW_STATES",
    "Review",
    "ReviewState",
    "add_review",
    "change_mark",
    "latest_review",
    "latest_reviews",
    "result_sha256",
    "result_sums",
    "review_counts",
    "review_history",
]

ReviewState = Literal["open", "accepted", "corrected", "rejected"]
REVIEW_STATES: tuple[ReviewState, ...] = ("open", "accepted", "corrected", "rejected")
"""``open`` takes an earlier word back."""

_COLUMNS = '"case", revision, state, at, result, note, seconds, effort, file, sha256'
_RESULT = "nifti"


@dataclass(frozen=True, slots=True)
class Review:
    """One word on one case.

    Args:
        case: Number of the case.
        revision: Its place among the reviews of the case, from 1.
        state: What was said.
        at_s: When, in seconds since 1970.
        result_sha256: Of the label file that was looked at; empty where there was none.
        note: What the reviewer wrote. It may say anything, so nothing shows it unasked.
        seconds: How long the case was open for it; None if that is not known.
        effort: Plain JSON types; what was changed, structure by structure. None if nothing was.
        file: Name of the corrected label file below the output folder; empty if there is none.
        sha256: Of that file.
    """

    case: int
    revision: int
    state: ReviewState
    at_s: float
    result_sha256: str
    note: str = ""
    seconds: float | None = None
    effort: Mapping[str, Any] | None = None
    file: str = ""
    sha256: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the result it belongs to is not to be replaced by a later run unasked."""
        return self.state in ("accepted", "corrected")

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice over the structures, the model's result against the corrected one."""
        labels = [] if self.effort is None else self.effort.get("labels", [])
        found = [
            float(label["dice"])
            for label in labels
            if isinstance(label, Mapping) and isinstance(label.get("dice"), int | float)
        ]
        return fmean(found) if found else None

    def in_words(self, result: str) -> str:
        """The state for a table, which says if it is not of the result that is there.

        Args:
            result: SHA-256 of the label file that is recorded now.
        """
        if self.state == "open":
            return ""
        return self.state if self.result_sha256 == result else f"{self.state}, of an earlier result"


def add_review(
    ledger: Ledger,
    case: int,
    state: ReviewState,
    *,
    after: int,
    result: str,
    note: str = "",
    seconds: float | None = None,
    effort: Mapping[str, Any] | None = None,
    file: str = "",
    sha256: str = "",
    publish: Callable[[], None] | None = None,
) -> Review:
    """Enter a review, in one transaction.

    Args:
        ledger: Opened for writing.
        case: Number of the case.
        state: What is said.
        after: Revision of the review that was seen last; 0 if there was none.
        result: SHA-256 of the label file that was looked at; empty if there was none.
        note: As in :class:`Review`.
        seconds: As there.
        effort: As there.
        file: As there.
        sha256: As there.
        publish: Gives files that were made under other names their own; called once nothing can
            refuse the review any more.

    Raises:
        ConfigError: ``review-conflict`` if somebody else reviewed the case meanwhile;
            ``review-result-changed`` if it was done again meanwhile, or has no result to accept.
        MedsegError: As the methods of :class:`~medseg.studies.ledger.Ledger`.
    """
    with ledger.writing() as db:
        last = _last_revision(db, case)
        if last != after:
            raise ConfigError(
                f"case {_name(db, case)}",
                expected="no other review since the case was opened",
                found="one that was entered meanwhile, perhaps by another viewer",
                remedy="look at it in the list, then mark the case again",
                code="review-conflict",
            )
        query = 'SELECT sha256 FROM outputs WHERE "case" = ? AND kind = ?'
        there = db.execute(query, (case, _RESULT)).fetchone()
        now = there[0] if there else ""
        if now != result or (not now and state in ("accepted", "corrected")):
            raise ConfigError(
                f"case {_name(db, case)}",
                expected="the result that was opened",
                found="another one, made meanwhile" if now else "no result",
                remedy="open the case again",
                code="review-result-changed",
            )
        review = Review(
            case, last + 1, state, time.time(), result, note, seconds, effort, file, sha256
        )
        db.execute(
            f"INSERT INTO reviews ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(case, review.revision, state, review.at_s, result, note, seconds),
                *(None if effort is None else json.dumps(effort, allow_nan=False), file, sha256),
            ),
        )
        if publish is not None:
            publish()
    return review


def latest_reviews(ledger: Ledger) -> dict[int, Review]:
    """Number of a case to its last review, for all that have one."""
    if not _has_table(ledger):
        return {}
    query = f'SELECT {_COLUMNS} FROM reviews ORDER BY "case", revision'
    return {review.case: review for review in map(_review, ledger.read(query))}


def latest_review(ledger: Ledger, case: int) -> Review | None:
    """The last review of a case; None if there is none."""
    history = review_history(ledger, case)
    return history[-1] if history else None


def review_history(ledger: Ledger, case: int) -> list[Review]:
    """All reviews of a case in their order."""
    if not _has_table(ledger):
        return []
    query = f'SELECT {_COLUMNS} FROM reviews WHERE "case" = ? ORDER BY revision'
    return [_review(row) for row in ledger.read(query, (case,))]


def review_counts(ledger: Ledger) -> dict[str, int]:
    """Number of cases by their last review; ``not reviewed`` are those with a result and none."""
    reviews = latest_reviews(ledger)
    sums = result_sums(ledger)
    counts: dict[str, int] = {"not reviewed": 0, "accepted": 0, "corrected": 0, "rejected": 0}
    for row in ledger.rows():
        review = reviews.get(row.number)
        if review is not None and review.state != "open":
            counts[review.state] += 1
        elif row.number in sums and row.state in ("done", "incomplete"):
            counts["not reviewed"] += 1
    return counts


def result_sums(ledger: Ledger) -> dict[int, str]:
    """Number of a case to the SHA-256 of its label file, for all that have one."""
    query = "SELECT \"case\", sha256 FROM outputs WHERE kind = ? AND sha256 <> ''"
    return dict(ledger.read(query, (_RESULT,)))


def result_sha256(outputs: Sequence[Output]) -> str:
    """That of the label file among the files of a case; empty if there is none."""
    return next((one.sha256 for one in outputs if one.kind == _RESULT), "")


def change_mark(ledger: Ledger) -> int:
    """A number that changes whenever another connection has written to the ledger."""
    return int(ledger.read("PRAGMA data_version")[0][0])


def _has_table(ledger: Ledger) -> bool:
    """An older ledger that is only looked at has none."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'reviews'"
    return bool(ledger.read(query))


def _last_revision(db: sqlite3.Connection, case: int) -> int:
    query = 'SELECT coalesce(max(revision), 0) FROM reviews WHERE "case" = ?'
    return int(db.execute(query, (case,)).fetchone()[0])


def _name(db: sqlite3.Connection, case: int) -> str:
    found = db.execute("SELECT name FROM cases WHERE number = ?", (case,)).fetchone()
    return str(found[0]) if found else str(case)


def _review(row: Sequence[Any]) -> Review:
    case, revision, state, at_s, result, note, seconds, effort, file, sha256 = row
    content = None if effort is None else json.loads(effort)
    return Review(case, revision, state, at_s, result, note, seconds, content, file, sha256)
