"""Messages without the paths of the images they are about.

Paths are often made of names and identifiers of patients. What is printed, logged or written about
a case names it by its case name instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["message_of", "without_paths"]

_SHORTEST_NAME = 3


def message_of(text: str, name: str, channels: Mapping[str, Path], *, log_paths: bool) -> str:
    """A message about a case, to stand beside its name: neither paths nor the name in front.

    Args:
        text: A message.
        name: The case.
        channels: Channel name to file or folder.
        log_paths: Whether paths stay.

    >>> message_of("in/1.nii: expected x, found y; z", "1", {"": Path("in/1.nii")}, log_paths=False)
    'expected x, found y; z'
    >>> message_of("1_dseg.dcm: expected x, found y; z", "1", {}, log_paths=False)
    'dseg.dcm: expected x, found y; z'
    """
    if not log_paths:
        text = without_paths(text, name, channels)
    for before in (f"{name}: ", f"{name}, "):
        text = text.removeprefix(before)
    # one of its results
    return re.sub(rf"^{re.escape(name)}_(?=[\w.-]+: expected )", "", text)


def without_paths(text: str, name: str, channels: Mapping[str, Path]) -> str:
    """Put the name of a case in the place of its paths, and of what lies below them.

    Args:
        text: A message.
        name: The case.
        channels: Channel name to file or folder; one empty name for a case given as one path.

    >>> without_paths("in/Doe/1.dcm: expected x, found y; z", "case-1", {"": Path("in/Doe")})
    'case-1: expected x, found y; z'
    """
    for channel, path in channels.items():
        shown = f"{name}, channel {channel}" if channel else name
        for form in _forms(path):
            pattern = re.escape(form) + r"(?:[/\\].*?(?=: expected )|[/\\][^\s:;,]*)?"
            text = re.sub(pattern, shown.replace("\\", r"\\"), text)
        part = path.name
        # a folder may be called by a common word that a message needs
        if len(part) >= _SHORTEST_NAME and part != name and not part.isalpha():
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", shown.replace("\\", r"\\"), text)
    return text


def _forms(path: Path) -> list[str]:
    """How a path may stand in a message, the longest first."""
    forms = {str(path), os.path.abspath(path), os.path.realpath(path)}  # noqa: PTH100 - as it is
    return sorted((form for form in forms if len(form) >= _SHORTEST_NAME), key=len, reverse=True)
