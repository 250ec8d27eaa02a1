"""The one exception tree of medseg.

::

    MedsegError
    ├── ConfigError    (ValueError)  settings, arguments, model folders
    ├── GeometryError  (ValueError)  grids, affines, slice positions
    ├── ShapeError     (ValueError)  extents that an operation cannot take
    ├── FormatError    (ValueError)  a file's content is damaged, unsupported or not what it claims
    └── ResourceError  (OSError)     disk, permission, memory, device

Every message has one shape, ``where: expected X, found Y; remedy``, and every error carries a short
stable ``code`` for tables and scripts. Messages never hold patient data: no tag values that
identify a person, no UIDs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "FormatError",
    "GeometryError",
    "MedsegError",
    "ResourceError",
    "ShapeError",
    "kind_of",
    "one_of",
    "why_unreadable",
]


# longer lists are cut to so many members
_LISTED, _SHOWN = 12, 6


class MedsegError(Exception):
    """Base of every error that medseg raises on purpose.

    Args:
        where: The file, setting or argument concerned.
        expected: What would have been right.
        found: What was there instead.
        remedy: What the reader can do about it.
        code: Short kebab-case name of the failure, stable across releases.
    """

    default_code = "error"

    def __init__(
        self, where: str, *, expected: str, found: str, remedy: str, code: str | None = None
    ) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; {remedy}")
        self.where = where
        self.expected = expected
        self.found = found
        self.remedy = remedy
        self.code = code or self.default_code

    def __reduce__(self) -> tuple[object, ...]:
        # An error must cross to another process whole; the default would call the class with the
        # message alone.
        arguments = (self.where, self.expected, self.found, self.remedy, self.code)
        return _rebuilt, (type(self), arguments)

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}; {self.remedy}"


def _rebuilt(kind: type[MedsegError], arguments: tuple[str, str, str, str, str]) -> MedsegError:
    where, expected, found, remedy, code = arguments
    return kind(where, expected=expected, found=found, remedy=remedy, code=code)


class ConfigError(MedsegError, ValueError):
    """A setting, an argument or a model folder that cannot be meant as written."""

    default_code = "config"


class GeometryError(MedsegError, ValueError):
    """Positions in space that disagree, are missing or cannot be right."""

    default_code = "geometry"


class ShapeError(MedsegError, ValueError):
    """Extents that an operation or a network cannot take."""

    default_code = "shape"


class FormatError(MedsegError, ValueError):
    """A file that is damaged, unsupported or not what its name says."""

    default_code = "format"


class ResourceError(MedsegError, OSError):
    """The machine did not give what was needed: disk space, permission, memory, a device."""

    default_code = "resource"


def why_unreadable(error: Exception) -> str:
    """Describe in a ``found`` clause why a file could not be read or understood.

    >>> why_unreadable(FileNotFoundError())
    'no such file or folder'
    >>> why_unreadable(KeyError("dice"))
    "a file without 'dice'"
    """
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file or folder"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError):
        return "a file that cannot be read"
    if isinstance(error, KeyError) and error.args:
        return f"a file without {error.args[0]!r}"
    return "a file with other content"


def one_of(choice: str, choices: Iterable[str]) -> str:
    """Describe a closed set for an ``expected`` clause, nearest member first named.

    Args:
        choice: What the user wrote.
        choices: The members that exist.

    Returns:
        Text such as ``one of neunet, revunet (nearest: revunet)``. Of a long list the members that
        come nearest, nearest first, and how many more there are.

    >>> one_of("revunett", ["neunet", "revunet"])
    'one of neunet, revunet (nearest: revunet)'
    """
    members = sorted(choices)
    near = difflib.get_close_matches(choice, members, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    if len(members) > _LISTED:
        likeness = difflib.SequenceMatcher(b=choice)

        def unlike(member: str) -> float:
            likeness.set_seq1(member)
            return -likeness.ratio()

        nearest = sorted(members, key=unlike)[:_SHOWN]
        return f"one of {', '.join(nearest)} and {len(members) - _SHOWN} others{hint}"
    return f"one of {', '.join(members)}{hint}"


_KINDS = {
    "bool": "yes or no",
    "dict": "a mapping",
    "float": "a number",
    "int": "a number",
    "list": "a list",
    "str": "a text",
    "tuple": "a list",
}


def kind_of(value: object) -> str:
    """What kind of value stands in a file of settings where another was expected.

    >>> kind_of(3), kind_of([3]), kind_of({}), kind_of(None)
    ('a number', 'a list', 'an empty one', 'nothing')
    """
    if value is None:
        return "nothing"
    if value in ({}, [], ()):
        return "an empty one"
    name = type(value).__name__
    return _KINDS.get(name, f"an object of type {name}")
