"""What a study ledger tells of cases, and what it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["STATES", "CaseRow", "Ending", "Entry", "Output", "State", "shard_of"]

State = Literal["waiting", "running", "done", "incomplete", "failed"]
STATES: tuple[State, ...] = ("waiting", "running", "done", "incomplete", "failed")
"""``incomplete`` has its segmentation but lacks a result that could not be made, such as a SEG."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A case that is to be in the ledger.

    Args:
        key: What tells it from others for good: its place below the root of the data.
        names: Stems that its results may have, the best first; the identifier if all are taken.
        channels: Channel name to absolute path.
    """

    key: str
    names: tuple[str, ...]
    channels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CaseRow:
    """A case as the ledger has it.

    Args:
        number: Its place in the order of arrival, from 1.
        id: Its salted identifier.
        key: As in :class:`Entry`.
        name: Stem of its results.
        channels: Where its images were when it was last worked on.
        state: How far it is.
        attempts: Times that work on it began.
        deaths: Times in a row that the process died at work on it.
        code: Why it failed or is incomplete.
        message: The same as a sentence.
        seconds: How long the last attempt took.
        ended: When it ended, in seconds since 1970.
        stamp: Sizes and times of its files then.
        fingerprint: Of its images then.
        settings: Hash of the settings then; None if it has to be done again anyway.
        details: Notes, memory and seconds per stage of the last attempt.
        turn: Place in the order in which cases ended.
    """

    number: int
    id: str
    key: str
    name: str
    channels: dict[str, str]
    state: State
    attempts: int
    deaths: int
    code: str | None
    message: str | None
    seconds: float | None
    ended: float | None
    stamp: str | None
    fingerprint: str | None
    settings: str | None
    details: dict[str, Any]
    turn: int


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was made.

    Args:
        kind: What it is, such as ``nifti``.
        name: Its name in the output folder.
        bytes: Its size.
        sha256: Of its content.
    """

    kind: str
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt on a case ended.

    Args:
        state: ``done``, ``incomplete`` or ``failed``.
        seconds: How long it took.
        code: Why, if it is not done.
        message: The same as a sentence, without path or patient data.
        stamp: Sizes and times of the files read.
        fingerprint: Of the images read.
        outputs: What was made.
        volumes_ml: Volume of every structure.
        details: Plain JSON types worth keeping.
        thumbnail: A small JPEG picture.
    """

    state: State
    seconds: float
    code: str | None = None
    message: str | None = None
    stamp: str | None = None
    fingerprint: str | None = None
    outputs: Sequence[Output] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None


def shard_of(key: str, count: int) -> int:
    """Which of ``count`` shards a case belongs to, from 1; the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % count + 1
