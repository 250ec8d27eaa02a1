"""Which cases train, which validate and which are kept for the test; always whole patients.

Published splits are here by name. A split file is ``{"train": [...], "validation": [...]}`` with
case ids, and ``"test"`` if wanted; a file of folds is a list of these (nnU-Net's
``splits_final.json``, where ``"val"`` stands for ``"validation"``).
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.atomic import write_text
from medseg.data.case import Case
from medseg.data.layouts.listing import Problem, damaged, parsed_json, refuse
from medseg.errors import ConfigError, MedsegError, kind_of

__all__ = [
    "FOLDS",
    "PARTS",
    "PUBLISHED",
    "Split",
    "SplitError",
    "check_single",
    "draw_folds",
    "draw_split",
    "holds_split",
    "published_split",
    "read_split_file",
    "save_folds",
]

PARTS = ("train", "validation", "test")
FOLDS = "5-fold"
_COUNT = 5
_FEW_NAMES = 3


@dataclass(frozen=True, slots=True)
class Split:
    """Case ids by part.

    Args:
        train: Cases to learn from.
        validation: Cases to choose by.
        test: Cases that nothing is chosen by; empty if none are kept.
        source: Which rule divided them, in words.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()
    source: str = ""


class SplitError(ConfigError):
    """A split with several faults: the words are those of the first.

    Attributes:
        faults: All of them.
    """

    faults: tuple[MedsegError, ...] = ()

    @classmethod
    def of(cls, faults: Sequence[MedsegError]) -> SplitError:
        """The error of several."""
        first = faults[0]
        error = cls(
            first.where,
            expected=first.expected,
            found=f"{first.found} (and {len(faults) - 1} more)",
            remedy=f"{first.remedy}; `medseg data check` lists what else is wrong with the split",
            code=first.code,
        )
        error.faults = tuple(faults)
        return error


@dataclass(frozen=True, slots=True)
class _Published:
    about: str
    pattern: re.Pattern[str]
    validation: frozenset[int]
    test: frozenset[int]
    all: frozenset[int]


def _numbers(text: str) -> frozenset[int]:
    return frozenset(int(number) for number in text.split())


_SYNAPSE_TEST = _numbers("1 2 3 4 8 22 25 29 32 35 36 38")
_ACDC_TEST = _numbers("2 3 8 9 12 14 17 24 42 48 49 53 55 64 67 79 81 88 92 95")
_ACDC_PATIENTS = frozenset(range(1, 101))
_SCAN = re.compile(r"(?:case|img|image)_?(\d{4})")
_PATIENT = re.compile(r"patient(\d{3})(?:_frame\d+)?")

PUBLISHED: Mapping[str, _Published] = {
    "transunet": _Published(
        "Synapse, 18 scans to train and the 12 that results are reported on (no validation part)",
        _SCAN,
        _SYNAPSE_TEST,
        frozenset(),
        _SYNAPSE_TEST | _numbers("5 6 7 9 10 21 23 24 26 27 28 30 31 33 34 37 39 40"),
    ),
    "acdc-70-10-20": _Published(
        "ACDC, 70 patients to train, 10 to validate, 20 to test, as TransUNet's descendants do",
        _PATIENT,
        _numbers("19 21 29 33 41 50 61 71 76 80"),
        _ACDC_TEST,
        _ACDC_PATIENTS,
    ),
    "acdc-nnformer": _Published(
        "ACDC, 70 / 10 / 20 with the same test part and nnFormer's validation part",
        _PATIENT,
        _numbers("89 90 91 93 94 96 97 98 99 100"),
        _ACDC_TEST,
        _ACDC_PATIENTS,
    ),
}
"""Splits that papers report on, by name."""


def published_split(name: str, cases: Sequence[Case], where: str) -> Split:
    """Divide the cases that are there as a paper did.

    Cases that the paper did not use are in no part.

    Raises:
        ConfigError: ``split-empty`` if a part would be empty.
    """
    published = PUBLISHED[name]
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case in cases:
        match = published.pattern.fullmatch(case.id)
        number = int(match[1]) if match else None
        if number is None or number not in published.all:
            continue
        if number in published.test:
            part = "test"
        else:
            part = "validation" if number in published.validation else "train"
        parts[part].append(case.id)
    if not parts["train"] or not parts["validation"]:
        refuse(
            where,
            expected=f"cases of both parts of the split {name!r}",
            found=f"{len(parts['train'])} to train and {len(parts['validation'])} to validate",
            remedy="complete the dataset, or choose another split",
            code="split-empty",
        )
    train, validation, test = (tuple(parts[part]) for part in PARTS)
    return Split(train, validation, test, f"the published split {name}")


def draw_split(
    cases: Sequence[Case], fraction: float, seed: int, where: str, *, held_out: Collection[str] = ()
) -> Split:
    """Draw a share of the patients for validation.

    Args:
        cases: Every case.
        fraction: Share of the patients.
        seed: Of the draw.
        where: Named in errors.
        held_out: Ids of cases that are kept for the test.

    Raises:
        ConfigError: ``split-empty`` if nothing would be left to train on.
    """
    patients = _patients([case for case in cases if case.id not in held_out])
    held = max(1, round(fraction * len(patients)))
    if held >= len(patients):
        refuse(
            where,
            expected="at least one case to train and one to validate",
            found=f"{len(patients)} in all, {held} of them held out"
            if len(patients) > 1
            else f"cases of {len(patients)} patient"
            if len(cases) > 1
            else f"{len(patients)} in all",
            remedy="add cases, lower data.validation_fraction or give a split file"
            if len(patients) > 1
            else "add cases of at least one more patient: what was learnt from one cannot be "
            "judged by the same",
            code="split-empty",
        )
    drawn = set(random.Random(seed).sample(sorted(patients), held))  # noqa: S311 - no secret
    one_each = len(patients) == sum(map(len, patients.values()))
    return Split(
        _ids(patients, set(patients) - drawn),
        _ids(patients, drawn),
        tuple(sorted(held_out)),
        f"{held} of {len(patients)} {'cases' if one_each else 'patients'} drawn with seed {seed}",
    )


def draw_folds(
    cases: Sequence[Case], seed: int, where: str, *, held_out: Collection[str] = ()
) -> tuple[Split, ...]:
    """Five divisions in which every patient validates once.

    Raises:
        ConfigError: ``split-empty`` if there are fewer than five patients.
    """
    patients = _patients([case for case in cases if case.id not in held_out])
    if len(patients) < _COUNT:
        refuse(
            where,
            expected=f"at least {_COUNT} patients for {_COUNT} folds",
            found=f"{len(patients)}",
            remedy="add cases, or let data.validation_fraction draw a split",
            code="split-empty",
        )
    order = sorted(patients)
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    return tuple(
        Split(
            _ids(patients, set(order) - set(order[fold::_COUNT])),
            _ids(patients, set(order[fold::_COUNT])),
            tuple(sorted(held_out)),
            f"fold {fold} of {_COUNT} drawn with seed {seed}",
        )
        for fold in range(_COUNT)
    )


def save_folds(path: Path, folds: Sequence[Split]) -> None:
    """Write folds so that other runs, and nnU-Net, can use the same.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    content = [
        {"train": list(fold.train), "val": list(fold.validation)}
        | ({"test": list(fold.test)} if fold.test else {})
        for fold in folds
    ]
    write_text(path, json.dumps(content, indent=1) + "\n")


def holds_split(path: Path) -> bool:
    """Whether a JSON file names parts at all; others call quite different files ``split.json``.

    Raises:
        FormatError: ``dataset-index`` if it is no JSON.
    """
    content = _parsed(path)
    return not isinstance(content, Mapping) or bool({"train", "validation", "val"} & set(content))


def read_split_file(
    path: Path,
    cases: Sequence[Case],
    problems: Sequence[Problem] = (),
    *,
    fold: int = 0,
    whole: bool = False,
) -> Split:
    """Read a split or one fold of several, and check it against the dataset.

    Args:
        path: The file.
        cases: Every case of the dataset that is complete.
        problems: Those that are not; only a split that uses one is refused.
        fold: Which division of a file of folds, counted from 0.
        whole: Whether every case must be in some part.

    Raises:
        FormatError: ``dataset-index`` if the file is damaged.
        ConfigError: ``split-fold``, ``split-unknown-case``, ``split-leak``, ``split-incomplete``;
            a :class:`SplitError` where there is more than one fault.
        MedsegError: What is wrong with a case that the split uses.
    """
    broken = {problem.case: problem.error for problem in problems}
    patients = {case.id: case.patient for case in cases}
    known = {case.id for case in cases} | set(broken)
    content = _parsed(path)
    source = f"the file {path.name}"
    if isinstance(content, list):
        if not 0 <= fold < len(content):
            refuse(
                path,
                expected=f"a fold from 0 to {len(content) - 1}",
                found=str(fold),
                remedy="count the folds from 0",
                code="split-fold",
            )
        content, source = content[fold], f"fold {fold} of the file {path.name}"
    else:
        check_single(fold, f"the file {path.name}")
    if not isinstance(content, Mapping):
        damaged(path, expected="a JSON object", found=type(content).__name__)
    parts = {
        "train": _listed(path, "train", content.get("train")),
        "validation": _listed(path, "validation", content.get("validation", content.get("val"))),
        "test": _listed(path, "test", content["test"]) if "test" in content else (),
    }
    faults: list[MedsegError] = [
        *_unknown(path, parts, known),
        *(broken[name] for ids in parts.values() for name in ids if name in broken),
        *_leaks(path, parts, patients),
    ]
    if faults:
        raise faults[0] if len(faults) == 1 else SplitError.of(faults)
    left = sorted({case.id for case in cases} - {name for ids in parts.values() for name in ids})
    if whole and left:
        refuse(
            path,
            expected="every case of the dataset in a part",
            found=f"{len(left)} in none, such as {left[0]!r}",
            remedy="remove the file so that new folds are drawn, or take the cases out",
            code="split-incomplete",
        )
    return Split(parts["train"], parts["validation"], parts["test"], source)


def check_single(fold: int, source: str) -> None:
    """Refuse a fold other than 0 of a rule that makes one division: it would be passed over.

    Raises:
        ConfigError: ``split-fold``.
    """
    if fold:
        refuse(
            "data.fold",
            expected=f"0, since {source} is one division and not folds",
            found=str(fold),
            remedy=f"leave it out, or set data.split to {FOLDS} or to a file of folds",
            code="split-fold",
        )


def _parsed(path: Path) -> Any:  # noqa: ANN401 - parsed JSON
    content = parsed_json(path)
    if content == []:
        damaged(path, expected="a JSON object", found="an empty list")
    return content


def _listed(path: Path, part: str, ids: object) -> tuple[str, ...]:
    if not isinstance(ids, list) or not ids or not all(isinstance(name, str) for name in ids):
        damaged(path, expected=f'"{part}" as a list of case ids', found=kind_of(ids))
    if len(set(ids)) < len(ids):
        damaged(path, expected=f'every case once under "{part}"', found="a case twice")
    return tuple(ids)


def _unknown(
    path: Path, parts: Mapping[str, Sequence[str]], known: Collection[str]
) -> Iterator[ConfigError]:
    examples = ", ".join(repr(name) for name in sorted(known)[:_FEW_NAMES])
    for part, ids in parts.items():
        unknown = [name for name in ids if name not in known]
        if not unknown:
            continue
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        yield ConfigError(
            str(path),
            expected=f"ids of the dataset's {len(known)} cases, such as {examples}"
            + (f" (nearest: {near[0]})" if near else ""),
            found=f"{_few(unknown)} under {part!r}",
            remedy="correct the ids, or take them out",
            code="split-unknown-case",
        )


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_FEW_NAMES])
    more = len(names) - _FEW_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _leaks(
    path: Path, parts: Mapping[str, Sequence[str]], patients: Mapping[str, str]
) -> Iterator[ConfigError]:
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(set(parts[first]) & set(parts[second]))
        if shared:
            yield ConfigError(
                str(path),
                expected=f"no case in both {first} and {second}",
                found=f"{len(shared)} in both, such as {shared[0]!r}",
                remedy="take them out of one part: a leak makes the validation worthless",
                code="split-leak",
            )
        owners = {patients[name]: name for name in parts[first] if name in patients}
        torn = {
            patients[name]: name
            for name in reversed(parts[second])
            if patients.get(name) in owners and name not in shared
        }
        if torn:
            patient, name = list(torn.items())[-1]
            others = f", and {len(torn) - 1} more" if len(torn) > 1 else ""
            yield ConfigError(
                str(path),
                expected=f"no patient in both {first} and {second}",
                found=f"the patient of {owners[patient]!r} in {first} and of {name!r} in {second}"
                f"{others}",
                remedy="keep all cases of a patient in one part",
                code="split-leak",
            )


def _patients(cases: Sequence[Case]) -> dict[str, list[str]]:
    patients: dict[str, list[str]] = {}
    for case in cases:
        patients.setdefault(case.patient, []).append(case.id)
    return patients


def _ids(patients: Mapping[str, Sequence[str]], chosen: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(name for patient in chosen for name in patients[patient]))
