"""The table of labels beside a label file: ``CASE_dseg.tsv`` of BIDS derivatives.

Source: Brain Imaging Data Structure 1.10, "Imaging derivatives", on discrete segmentations: the
columns ``index`` and ``name``, and where they are known ``color`` (``#RRGGBB``) and
``abbreviation``; values are parted by tabs and never quoted.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from medseg.core import Label, LabelScheme
from medseg.core.scheme import spread_colour
from medseg.errors import FormatError, MedsegError, why_unreadable

__all__ = ["label_table", "read_label_table"]


def read_label_table(path: Path, name: str) -> LabelScheme:
    """The labels that a table names.

    Args:
        path: The table. The background, which some programs list, is left out; a label without a
            colour gets one of its own.
        name: What the scheme is called.

    Raises:
        FormatError: ``label-table`` if it cannot be read or is a table of something else.
    """
    labels: list[Label] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows):
            value, colour = int(row["index"]), row.get("color") or ""
            if value:
                labels.append(Label(value, row["name"] or "", _rgb(colour, number)))
        return LabelScheme(name, tuple(labels))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            str(path),
            expected="a table of labels with the columns index and name",
            found=f"{error.where}: {error.found}"
            if isinstance(error, MedsegError)
            else why_unreadable(error),
            remedy="write it as the dseg.tsv of BIDS derivatives: parted by tabs, a label a line",
            code="label-table",
        ) from error


def label_table(scheme: LabelScheme, abbreviations: Mapping[int, str] | None = None) -> str:
    """The table as a text.

    Args:
        scheme: Its labels.
        abbreviations: Label value to a short name, for a column of these.
    """
    header = ["index", "name", "color"] + (["abbreviation"] if abbreviations is not None else [])
    rows = [header]
    for label in scheme.labels:
        row = [str(label.value), label.name, f"#{bytes(label.rgb).hex().upper()}"]
        rows.append(row if abbreviations is None else [*row, abbreviations[label.value]])
    return "".join("\t".join(row) + "\n" for row in rows)


def _rgb(colour: str, number: int) -> tuple[int, int, int]:
    digits = colour.strip().removeprefix("#")
    if len(digits) != 6:
        return spread_colour(number)
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue
