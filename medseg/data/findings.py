"""A look at a whole dataset before anything is trained on it: what is wrong, and what is odd.

Errors would stop a training or make its results worthless; hints are worth a look and may be right.
Findings name cases, never files, and hold no patient data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from medseg.data.datalist import divide
from medseg.data.facts import CaseFacts, default_jobs, measure_cases
from medseg.data.layouts import Listing, list_cases
from medseg.data.splits import PARTS, Split, SplitError
from medseg.errors import MedsegError
from medseg.events import Listener, Silent

__all__ = ["DatasetReport", "Finding", "check_dataset", "compare_facts"]

_SPACING_RATIO = 2.0
_RANGE_RATIO = 4.0
_CT_SHIFT_HU = 300.0
_FEW = 4  # outliers are told from a middle only where there are more cases
# larger organ first, in all who have both: where sums over the dataset say otherwise, the labels
# are most likely numbered in another order
_LARGER = (
    ("liver", "spleen"),
    ("liver", "aorta"),
    ("liver", "stomach"),
    ("spleen", "aorta"),
    ("spleen", "gallbladder"),
    ("right kidney", "gallbladder"),
    ("stomach", "gallbladder"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Args:
        case: The case concerned; empty if it is the whole dataset.
        code: Short kebab-case name, as in ``docs/errors.md`` and ``docs/datasets.md``.
        what: What was found.
        remedy: What can be done.
        is_error: Whether it would stop or spoil a training; else it is a hint.
    """

    case: str
    code: str
    what: str
    remedy: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """The outcome of a check.

    Args:
        listing: What the dataset is.
        split: How its cases were divided; None if they could not be.
        facts: What the readable cases are like, in order of id.
        findings: Errors first, then hints, each in order of case.
    """

    listing: Listing
    split: Split | None
    facts: tuple[CaseFacts, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Number of findings that would stop or spoil a training."""
        return sum(finding.is_error for finding in self.findings)


def check_dataset(
    root: Path,
    *,
    layout: str = "auto",
    scheme: str | None = None,
    split: str | None = None,
    fold: int = 0,
    jobs: int | None = None,
    listener: Listener | None = None,
) -> DatasetReport:
    """Open every case of a dataset and compare them.

    Args:
        root: The dataset's folder, or the file of a list.
        layout: A member of :data:`~medseg.data.layouts.LAYOUTS`, or ``auto``.
        scheme: Name of a label scheme, where the dataset's own is not meant.
        split: As :func:`~medseg.data.datalist.read_datalist`.
        fold: As there.
        jobs: How many processes read; None chooses.
        listener: Progress and cancelling.

    Raises:
        ConfigError: If the folder is no dataset of a known layout.
        FormatError: If its index is damaged.
        Cancelled: If the listener asked to stop.
    """
    listing = list_cases(root, layout, scheme)
    if not listing.cases and not listing.problems:
        listing.check_complete()
    division: Split | None = None
    found: list[Finding] = []
    try:
        # an incomplete case is told below; whether the others can be divided is worth knowing too
        division = divide(root, listing, split, fold=fold, keep=False)
    except MedsegError as error:
        told = [problem.error for problem in listing.problems]
        faults = error.faults if isinstance(error, SplitError) else (error,)
        found += [_finding("", fault) for fault in faults if not any(fault is one for one in told)]
    # a division that was made in spite of them leaves the incomplete cases out
    found += [
        replace(_finding(problem.case, problem.error), is_error=division is None)
        for problem in listing.problems
    ]
    found += [
        Finding("", "dataset-note", note, "nothing, if that is meant", is_error=False)
        for note in listing.notes
    ]
    facts: list[CaseFacts] = []
    for case, result in measure_cases(
        listing.cases,
        listing.channels,
        listing.scheme,
        jobs=jobs or default_jobs(len(listing.cases)),
        listener=listener or Silent(),
    ):
        if isinstance(result, MedsegError):
            found.append(_finding(case.id, result))
        else:
            facts.append(result)
    facts.sort(key=lambda fact: fact.id)
    found += compare_facts(listing, facts, division)
    found.sort(key=lambda finding: (not finding.is_error, finding.case, finding.code))
    return DatasetReport(listing, division, tuple(facts), tuple(found))


def compare_facts(
    listing: Listing, facts: Sequence[CaseFacts], division: Split | None
) -> list[Finding]:
    """Everything that shows only when cases are held against each other."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _duplicates(facts, division),
        lambda: _unused(facts, division),
        lambda: _foreground(listing, facts, division),
        lambda: _label_order(listing, facts),
        lambda: _spacings(facts),
        lambda: _orientations(facts),
        lambda: _intensities(listing, facts),
    )
    return [finding for look in looks for finding in look()]


def _finding(case: str, error: MedsegError) -> Finding:
    return Finding(
        case,
        error.code,
        f"expected {error.expected}, found {error.found}",
        error.remedy,
        is_error=True,
    )


def _duplicates(facts: Sequence[CaseFacts], division: Split | None) -> Iterator[Finding]:
    parts = {name: part for part in PARTS for name in getattr(division, part)} if division else {}
    alike: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        alike[fact.image_sha256].append(fact.id)
    for names in alike.values():
        places = {parts.get(name) for name in names} - {None}
        for name in names[1:]:
            if len(places) > 1:
                yield Finding(
                    name,
                    "split-leak",
                    f"the same image as {names[0]}, in another part of the split",
                    "remove one of them: a leak makes the validation worthless",
                    is_error=True,
                )
            else:
                yield Finding(
                    name,
                    "image-duplicate",
                    f"the same image as {names[0]}",
                    "remove one of them, unless it is meant to count twice",
                    is_error=False,
                )


def _unused(facts: Sequence[CaseFacts], division: Split | None) -> Iterator[Finding]:
    if division is None:
        return
    used = {name for part in PARTS for name in getattr(division, part)}
    left = [fact.id for fact in facts if fact.id not in used]
    if left:
        yield Finding(
            "",
            "case-unused",
            f"{len(left)} cases in no part of the split, such as {left[0]}",
            "nothing, if that is meant",
            is_error=False,
        )


def _foreground(
    listing: Listing, facts: Sequence[CaseFacts], division: Split | None
) -> Iterator[Finding]:
    values = listing.scheme.values
    empty = {fact.id for fact in facts if not any(value in fact.voxels for value in values)}
    for name in sorted(empty):
        yield Finding(
            name,
            "foreground-empty",
            "no voxel of any structure",
            "check the label map; a case without structures teaches background alone",
            is_error=False,
        )
    training = [fact for fact in facts if division is not None and fact.id in division.train]
    for some, of in ((facts, "case"), (training, "training case")):
        if some and all(fact.id in empty for fact in some):
            yield Finding(
                "",
                "foreground-empty",
                f"no {of} has a voxel of any structure",
                "check that the label maps and the label scheme are the right ones: nothing can be "
                "learned",
                is_error=True,
            )
            break
    for label in listing.scheme.labels if facts else ():
        if not any(label.value in fact.voxels for fact in facts):
            of = "case"
        elif training and not any(label.value in fact.voxels for fact in training):
            of = "training case"
        else:
            continue
        yield Finding(
            "",
            "structure-absent",
            f"no {of} has a voxel of {label.name!r} ({label.value})",
            "take it out of the labels, or check that the label scheme is the right one"
            if of == "case"
            else "divide the cases in another way, or take it out of the labels",
            is_error=False,
        )


def _label_order(listing: Listing, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    values = {label.name: label.value for label in listing.scheme.labels}
    for larger, smaller in _LARGER:
        if larger not in values or smaller not in values:
            continue
        pairs = [
            (fact.voxels[values[larger]], fact.voxels[values[smaller]])
            for fact in facts
            if {values[larger], values[smaller]} <= set(fact.voxels)
        ]
        if pairs and sum(2 * (first < second) for first, second in pairs) > len(pairs):
            yield Finding(
                "",
                "label-order",
                f"{larger} ({values[larger]}) is smaller than {smaller} ({values[smaller]}) in "
                "most cases",
                f"check that the organs are numbered as in {listing.scheme.name}; other groups' "
                "files number them in another order",
                is_error=False,
            )
            return


def _spacings(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    if len(facts) < _FEW:
        return
    ordered = [sorted(fact.spacing_mm) for fact in facts]
    middle = [median(spacing[axis] for spacing in ordered) for axis in range(3)]
    for fact, spacing in zip(facts, ordered, strict=True):
        ratios = [max(have / want, want / have) for have, want in zip(spacing, middle, strict=True)]
        if max(ratios) > _SPACING_RATIO:
            yield Finding(
                fact.id,
                "spacing-outlier",
                f"voxels of {_millimetres(fact.spacing_mm)}, most cases about "
                f"{_millimetres(middle)} (sorted)",
                "check the header; if it is right, the case is resampled like any other",
                is_error=False,
            )


def _orientations(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    counts: Mapping[str, list[str]] = defaultdict(list)
    for fact in facts:
        counts[fact.orientation].append(fact.id)
    if len(counts) > 1:
        told = ", ".join(f"{code} ({len(names)})" for code, names in sorted(counts.items()))
        yield Finding(
            "",
            "orientations-differ",
            f"cases are stored in several orientations: {told}",
            "nothing, if headers are right: cases are turned to the model's orientation",
            is_error=False,
        )


def _intensities(listing: Listing, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    for number, channel in enumerate(listing.channels):
        rows = [(fact, *fact.percentiles[number]) for fact in facts]
        for fact, low, _, high in rows:
            if high <= low:
                yield Finding(
                    fact.id,
                    "image-constant",
                    f"(nearly) the same value in every voxel of {channel}",
                    "export the image again, or take the case out",
                    is_error=False,
                )
        if len(rows) < _FEW:
            continue
        is_ct = median(low for _, low, _, _ in rows) < -500
        middle_range = median(high - low for _, low, _, high in rows)
        middle_low = median(low for _, low, _, _ in rows)
        for fact, low, _, high in rows:
            if high <= low or middle_range <= 0:
                continue
            if is_ct and abs(low - middle_low) > _CT_SHIFT_HU:
                what = f"{channel} begins at {low:.0f}, most cases at {middle_low:.0f}"
            elif is_ct and abs(math.log((high - low) / middle_range)) > math.log(_RANGE_RATIO):
                what = f"{channel} spans {high - low:.4g}, most cases {middle_range:.4g}"
            elif abs(math.log10((high - low) / middle_range)) > 3:
                # units of MR are arbitrary: only what is off by thousands is worth a line
                what = f"{channel} spans {high - low:.4g}, most cases {middle_range:.4g}"
            else:
                continue
            yield Finding(
                fact.id,
                "intensity-outlier",
                what,
                "check the rescaling of the image",
                is_error=False,
            )


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:.3g}" for step in spacing) + " mm"
