"""What the doctor found, each in plain words with a code and a remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from medseg.errors import MedsegError
from medseg.io.notes import Note

__all__ = ["Finding", "State", "finding_of_error", "finding_of_note"]

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Args:
        topic: What it is.
        state: ``ok``, ``note`` (works, worth knowing) or ``problem``.
        text: What was found.
        code: Short stable name, listed in the table of codes; empty where all is well.
        remedy: What to do; empty where nothing needs to be done.
    """

    topic: str
    state: State
    text: str
    code: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what is empty is null."""
        return {key: value or None for key, value in asdict(self).items()}


def finding_of_error(topic: str, error: MedsegError, state: State = "problem") -> Finding:
    """An error without the path, which the user has just given."""
    text = f"expected {error.expected}, found {error.found}"
    return Finding(topic, state, text, error.code, error.remedy)


def finding_of_note(topic: str, note: str) -> Finding | None:
    """A note of a reader; None for one that tells only how a file was read."""
    if not isinstance(note, Note):
        return None
    return Finding(topic, "note", str(note), note.code, note.remedy)
