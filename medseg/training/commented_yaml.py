"""Settings as YAML for people: in blocks, with a comment behind each value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["commented_yaml"]

_INDENT = "  "
_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./ ;()+-]*[A-Za-z0-9_.;()+-]|[A-Za-z]")


def commented_yaml(
    content: Mapping[str, Any],
    comments: Mapping[str, str],
    *,
    header: Sequence[str] = (),
) -> str:
    """YAML whose parsed content equals ``content``.

    Mappings and lists of mappings become blocks; what fits in a line is written in one.

    Args:
        content: Plain JSON types.
        comments: Path of a key, such as ``inputs.spacing_mm``, to what is said behind its value;
            behind a block it stands in the line of its key. Line breaks become spaces.
        header: Comment lines at the top.
    """
    lines = [f"# {line}".rstrip() for line in header]
    if header:
        lines.append("")
    for number, (key, value) in enumerate(content.items()):
        is_block = isinstance(value, Mapping) and bool(value)
        if number and (is_block or lines[-1].startswith(_INDENT)):
            lines.append("")
        lines += _entry(key, value, "", key, comments)
    return "\n".join(lines) + "\n"


def _entry(
    key: str,
    value: Any,  # noqa: ANN401 - plain JSON types
    indent: str,
    path: str,
    comments: Mapping[str, str],
) -> list[str]:
    comment = _told(comments, path)
    ending = f"  # {comment}" if comment else ""
    start = f"{indent}{_scalar(key)}:"
    if isinstance(value, Mapping) and value:
        block = [f"{start}{ending}"]
        for name, inner in value.items():
            block += _entry(str(name), inner, indent + _INDENT, f"{path}.{name}", comments)
        return block
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and one for one in value):
        block = [f"{start}{ending}"]
        for number, one in enumerate(value):
            inner_lines: list[str] = []
            for name, inner in one.items():
                place = f"{path}.{number}.{name}"
                simple = not isinstance(inner, Mapping)
                inner_lines += (
                    _entry(str(name), inner, indent + 2 * _INDENT, place, comments)
                    if simple
                    else _flat(str(name), inner, indent + 2 * _INDENT, place, comments)
                )
            first, *rest = inner_lines
            block += [f"{indent}{_INDENT}- {first.lstrip()}", *rest]
        return block
    return [f"{start} {_flow(value)}{ending}"]


def _told(comments: Mapping[str, str], path: str) -> str:
    printable = (mark if mark.isprintable() else " " for mark in comments.get(path, ""))
    return " ".join("".join(printable).split())


def _flat(
    key: str,
    value: Mapping[str, Any],
    indent: str,
    path: str,
    comments: Mapping[str, str],
) -> list[str]:
    """A mapping within a list: in one line if it fits."""
    comment = _told(comments, path)
    line = f"{indent}{_scalar(key)}: {_flow(value)}"
    if len(line) > _WIDTH:
        return _entry(key, value, indent, path, comments)
    return [f"{line}  # {comment}" if comment else line]


def _flow(value: Any) -> str:  # noqa: ANN401 - plain JSON types
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:  # noqa: ANN401 - a text, a number, a truth value or None
    if not isinstance(value, str):
        return _number(value)
    if value.isascii() and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    quoted = yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True)
    return quoted.removesuffix("\n")


def _number(value: float | bool | None) -> str:
    return yaml.safe_dump(value).removesuffix("\n").removesuffix("\n...")
