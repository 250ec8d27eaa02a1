"""Harmless peculiarities of an image: sentences for the log that also have a code and a remedy."""

from __future__ import annotations

from typing import Self

__all__ = ["Note", "of_channel"]


class Note(str):
    """A sentence about an image that was read in spite of something worth knowing.

    It is the sentence itself wherever text is wanted, as in logs and reports.

    Args:
        text: The sentence.
        code: Short kebab-case name, stable across releases.
        remedy: What the reader can do about it.
    """

    __slots__ = ("code", "remedy")

    code: str
    remedy: str

    def __new__(  # noqa: D102 - see the class
        cls, text: str, *, code: str = "", remedy: str = ""
    ) -> Self:
        note = super().__new__(cls, text)
        note.code, note.remedy = code, remedy
        return note


def of_channel(name: str, note: str) -> str:
    """The same note, with the name of a channel in front."""
    text = f"{name}: {note}"
    return Note(text, code=note.code, remedy=note.remedy) if isinstance(note, Note) else text
