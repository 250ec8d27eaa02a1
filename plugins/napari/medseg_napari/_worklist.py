"""The cases of a batch run as a list of work: sorted, filtered, judged. Free of Qt."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from medseg.atomic import write_text
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.io.label_table import label_table
from medseg.io.scan import DicomSource
from medseg.studies.doubt import Doubt, read_doubt
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_file import LEDGER_NAME
from medseg.studies.ledger_rows import CaseRow
from medseg.studies.reviews import (
    Review,
    ReviewState,
    add_review,
    change_mark,
    latest_reviews,
    result_sums,
)
from medseg_napari._send import Parcel

if TYPE_CHECKING:
    from medseg_napari._worklist_case import OpenedCase

__all__ = [
    "CORRECTED",
    "FILTERS",
    "Column",
    "Filter",
    "Judgement",
    "WorkCase",
    "WorkList",
    "is_batch_folder",
]

CORRECTED = "corrected"
"""Folder of corrected results beside those of the run."""

_OLD_S = 3600.0

Column = Literal["case", "state", "review", "doubt"]
Filter = Literal["all", "to review", "reviewed", "accepted", "corrected", "rejected", "no result"]
FILTERS: tuple[Filter, ...] = (
    *("all", "to review", "reviewed", "accepted", "corrected", "rejected", "no result"),
)


@dataclass(frozen=True, slots=True)
class WorkCase:
    """One case of the list.

    Args:
        row: As the ledger has it.
        result: SHA-256 of its label file; empty if it has none.
        doubt: How doubtful it is; None where no uncertainty was asked for.
        review: The last word on it.
    """

    row: CaseRow
    result: str
    doubt: Doubt | None
    review: Review | None

    @property
    def number(self) -> int:
        """Of the case in the ledger."""
        return self.row.number

    @property
    def has_result(self) -> bool:
        """Whether there is something to judge."""
        return bool(self.result) and self.row.state in ("done", "incomplete")

    @property
    def is_reviewed(self) -> bool:
        """Whether somebody judged the result that is there."""
        review = self.review
        return review is not None and review.state != "open" and review.result_sha256 == self.result

    @property
    def revision(self) -> int:
        """Of the last review; 0 if there is none."""
        return 0 if self.review is None else self.review.revision

    @property
    def review_text(self) -> str:
        """The last word on it, and whether that was of an earlier result."""
        return "" if self.review is None else self.review.in_words(self.result)

    @property
    def reason(self) -> str:
        """Why it failed or lacks a result; empty if it does not."""
        return self.row.message or self.row.code or ""


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What is said of a case that was opened.

    Args:
        state: The word.
        labels_shown: What its layer holds, along I, P, L; None if that is gone.
        note: What the reviewer wrote.
        seconds: Time of work, if an editor has measured it.
        edited: What an editor knows of how labels came about, see
            :func:`medseg_napari._provenance.segment_types`.
    """

    state: ReviewState
    labels_shown: npt.NDArray[Any] | None = None
    note: str = ""
    seconds: float | None = None
    edited: Any = None


def is_batch_folder(folder: Path) -> bool:
    """Whether a folder is the output of a batch run."""
    return (folder / LEDGER_NAME).is_file()


class WorkList:
    """An open ledger with its cases.

    Args:
        out: Output folder of ``medseg predict``.
        ledger: File of the ledger, if it is not in that folder.

    Raises:
        MedsegError: As :meth:`medseg.studies.ledger.Ledger.open`.
    """

    def __init__(self, out: Path, ledger: Path | None = None) -> None:
        self.out = out
        path = ledger or out / LEDGER_NAME
        self.is_read_only = False
        try:
            self._ledger = Ledger.open(path)
        except ResourceError as error:
            if error.code not in ("output-unwritable", "ledger-unreachable"):
                raise
            self._ledger = Ledger.open(path, read_only=True)
            self.is_read_only = True
        self._doubts: dict[tuple[int, int], Doubt | None] = {}
        self._mark = -1
        self.cases: tuple[WorkCase, ...] = ()
        self.refresh()

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    # ---- the list

    def refresh(self) -> None:
        """Read the ledger anew."""
        self._mark = change_mark(self._ledger)
        sums, reviews = result_sums(self._ledger), latest_reviews(self._ledger)
        query = "SELECT \"case\" FROM outputs WHERE kind = 'uncertainty'"
        measured = {number for (number,) in self._ledger.read(query)}
        self.cases = tuple(
            WorkCase(
                row,
                sums.get(row.number, ""),
                self._doubt(row, reported=row.number in measured),
                reviews.get(row.number),
            )
            for row in self._ledger.rows()
        )

    def has_changed(self) -> bool:
        """Whether another process, such as a second viewer, has written to the ledger since."""
        return change_mark(self._ledger) != self._mark

    def _doubt(self, row: CaseRow, *, reported: bool) -> Doubt | None:
        """As the ledger has it; of an earlier release's from the report of the case."""
        found = Doubt.of_details(row.details)
        if found is not None or not reported:
            return found
        key = row.number, row.turn
        if key not in self._doubts:
            self._doubts[key] = read_doubt(self.out / f"{row.name}_report.json")
        return self._doubts[key]

    def case(self, number: int) -> WorkCase:
        """The case of a number."""
        return next(case for case in self.cases if case.number == number)

    def shown(
        self,
        sort: Column = "case",
        *,
        descending: bool = False,
        only: Filter = "all",
        text: str = "",
    ) -> list[WorkCase]:
        """The cases of the list as it is to be seen.

        Args:
            sort: By what; cases that are alike in it stay in the order of the ledger, and those of
                unknown doubt come last whichever way.
            descending: The other way round.
            only: Which.
            text: What the name, the reason or the review has in it.
        """
        wanted = text.strip().lower()
        found = [case for case in self.cases if _passes(case, only) and wanted in _words_of(case)]
        if sort == "doubt":
            known = [case for case in found if case.doubt is not None]
            known.sort(key=_doubt_of, reverse=descending)
            return [*known, *(case for case in found if case.doubt is None)]
        keys: dict[str, Callable[[WorkCase], Any]] = {
            "case": lambda case: case.row.name.lower(),
            "state": lambda case: case.row.state,
            "review": lambda case: case.review_text,
        }
        return sorted(found, key=keys[sort], reverse=descending)

    def by_doubt(self) -> list[WorkCase]:
        """All cases with a result, the most doubtful first; those of unknown doubt last."""
        return [case for case in self.shown("doubt", descending=True) if case.has_result]

    def next_case(self, current: int | None, step: int = 1) -> WorkCase | None:
        """The next case to be judged.

        Args:
            current: Number of the case that is open; None for none.
            step: 1 for the next less doubtful one that nobody has judged, -1 for the one before in
                the order of doubt, judged or not.

        Returns:
            None if there is none. From the last one it goes on with the first that is left.
        """
        order = self.by_doubt()
        numbers = [case.number for case in order]
        place = numbers.index(current) if current in numbers else None
        if step < 0:
            return order[place - 1] if place else None
        start = 0 if place is None else place + 1
        turn = [*order[start:], *order[:start]]
        return next(
            (case for case in turn if not case.is_reviewed and case.number != current), None
        )

    def progress(self) -> tuple[int, int]:
        """Cases that were judged, and cases with a result."""
        able = [case for case in self.cases if case.has_result]
        return sum(case.is_reviewed for case in able), len(able)

    # ---- judging

    def judge(self, opened: OpenedCase, judgement: Judgement) -> WorkCase:
        """Enter a word on a case, and for a correction write its files first.

        Args:
            opened: The case as it was opened.
            judgement: What is said of it.

        Returns:
            The case as it is now.

        Raises:
            ConfigError: ``review-edited`` if labels that were changed are to be accepted,
                ``review-unchanged`` if labels that were not are to be a correction; and as
                :func:`medseg.studies.reviews.add_review`.
            MedsegError: As writing the labels. Then nothing was entered.
        """
        case = opened.case
        labels = judgement.labels_shown
        is_edited = labels is not None and opened.differs_from_model(labels)
        if judgement.state == "accepted" and is_edited:
            raise ConfigError(
                f"case {case.row.name}",
                expected="labels as the model gave them",
                found="some that were changed",
                remedy="mark the case corrected, which saves them, or undo the changes",
                code="review-edited",
            )
        if judgement.state == "corrected":
            if labels is None or not is_edited:
                raise ConfigError(
                    f"case {case.row.name}",
                    expected="labels that differ from those of the model",
                    found="no layer of the case any more" if labels is None else "the same ones",
                    remedy="open the case again" if labels is None else "mark the case accepted",
                    code="review-unchanged",
                )
            self._enter_correction(opened, case, judgement, labels)
            opened.saved_as(labels)
        else:
            self._enter(opened, case, judgement)
        self.refresh()
        opened.case = self.case(case.number)
        return opened.case

    def _enter(self, opened: OpenedCase, case: WorkCase, judgement: Judgement, **more: Any) -> None:  # noqa: ANN401
        add_review(
            self._ledger,
            case.number,
            judgement.state,
            after=case.revision,
            result=opened.case.result,
            note=judgement.note.strip(),
            seconds=opened.seconds() if judgement.seconds is None else judgement.seconds,
            **more,
        )

    def _enter_correction(
        self,
        opened: OpenedCase,
        case: WorkCase,
        judgement: Judgement,
        labels_shown: npt.NDArray[Any],
    ) -> None:
        """Write the files under names of nobody; they get theirs with the entry in the ledger."""
        seconds = opened.seconds() if judgement.seconds is None else judgement.seconds
        parcel = Parcel(case.row.name, labels_shown, opened.origin, judgement.edited, seconds)
        folder = self.out / CORRECTED
        place = folder / f".{secrets.token_hex(8)}.tmp"
        _remove_leftovers(folder)
        try:
            place.mkdir(parents=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            main = f"{case.row.name}_dseg.nii.gz"
            parcel.save(place / main)
            report = parcel.effort()
            write_text(place / f"{case.row.name}_effort.json", report.to_json())
            write_text(place / f"{case.row.name}_dseg.tsv", label_table(parcel.label_map().scheme))
            if isinstance(opened.origin.source, DicomSource):
                with suppress(MedsegError):  # as in the run: the segmentation itself is there
                    parcel.save(place / f"{case.row.name}_dseg.dcm")
            self._enter(
                opened,
                case,
                judgement,
                effort=report.to_dict(),
                file=f"{CORRECTED}/{main}",
                sha256=_sha256(place / main),
                publish=lambda: _move_all(place, folder),
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _passes(case: WorkCase, only: Filter) -> bool:
    if only == "all":
        return True
    if only == "no result":
        return not case.has_result
    if only == "to review":
        return case.has_result and not case.is_reviewed
    if only == "reviewed":
        return case.is_reviewed
    return case.review is not None and case.review.state == only


def _words_of(case: WorkCase) -> str:
    return "\n".join((case.row.name, case.row.code or "", case.reason, case.review_text)).lower()


def _doubt_of(case: WorkCase) -> float:
    assert case.doubt is not None  # noqa: S101 - only such cases are sorted by it
    return case.doubt.entropy


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _move_all(place: Path, folder: Path) -> None:
    try:
        for path in sorted(place.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _remove_leftovers(folder: Path) -> None:
    """Remove what a viewer that was killed left half written, unless it is at work still."""
    for place in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - place.stat().st_mtime > _OLD_S:
                shutil.rmtree(place, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        str(folder),
        expected="a folder that can be written to",
        found=error.strerror or type(error).__name__,
        remedy="make it writable, or work on a copy of the output folder",
        code="output-unwritable",
    )
