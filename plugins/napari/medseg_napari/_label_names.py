"""Names and colours of labels in a table beside their file, as BIDS derivatives have it. No Qt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from medseg.atomic import write_text
from medseg.core import Label, LabelScheme
from medseg.core.scheme import spread_colour
from medseg.errors import FormatError, MedsegError
from medseg_napari._layers import plain_scheme, whole_values

__all__ = ["label_table", "names_beside", "read_label_table", "write_names_beside"]

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def read_label_table(path: Path, name: str) -> LabelScheme:
    """Read BIDS derivatives' ``dseg.tsv``: index, name and, where it is there, colour.

    Args:
        path: The table.
        name: Of the scheme.

    Raises:
        FormatError: ``worklist-result-changed`` if it cannot be read.
        ConfigError: As :class:`~medseg.core.LabelScheme`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        columns = lines[0].split("\t")
        labels = []
        for number, line in enumerate(lines[1:]):
            row = dict(zip(columns, line.split("\t"), strict=False))
            colour = row.get("color", "").removeprefix("#")
            rgb = bytes.fromhex(colour) if len(colour) == 6 else bytes(spread_colour(number))
            if int(row["index"]):  # other programs list the background
                labels.append(Label(int(row["index"]), row["name"], (rgb[0], rgb[1], rgb[2])))
        return LabelScheme(name, tuple(labels))
    except (OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, MedsegError):
            raise
        raise FormatError(
            str(path),
            expected="the table of labels beside the result",
            found="none that can be read",
            remedy="run the same `medseg predict` again, which makes it anew",
            code="worklist-result-changed",
        ) from error


def names_beside(path: Path, data: npt.NDArray[Any]) -> LabelScheme | None:
    """Names and colours from the table called as a label file is; None where there is none.

    Args:
        path: The label file, such as ``CASE_dseg.nii.gz``; the table is ``CASE_dseg.tsv``.
        data: Its voxels; values that the table does not name get plain names.
    """
    table = _table_of(path)
    if not table.is_file():
        return None
    try:
        scheme = read_label_table(table, "labels")
        values = whole_values(data)
        plain = plain_scheme(values).labels
        new = tuple(one for one in plain if one.value in values and one.value not in scheme.values)
        return LabelScheme(scheme.name, scheme.labels + new)
    except MedsegError:  # a table of something else
        return None


def label_table(scheme: LabelScheme) -> str:
    """The table as a text."""
    rows = [f"{one.value}\t{one.name}\t#{bytes(one.rgb).hex().upper()}" for one in scheme.labels]
    return "\n".join(["index\tname\tcolor", *rows]) + "\n"


def write_names_beside(path: Path, scheme: LabelScheme) -> Path | None:
    """Write the names and colours of a label file that cannot hold them itself.

    Args:
        path: The label file.
        scheme: Its labels.

    Returns:
        The table; None where nothing has a name, or a table of something else is called so.

    Raises:
        ResourceError: If it cannot be written.
    """
    table = _table_of(path)
    if table.exists():
        try:
            read_label_table(table, "labels")
        except MedsegError:
            return None
    elif all(one.name == f"label {one.value}" for one in scheme.labels):
        return None
    write_text(table, label_table(scheme))
    return table


def _table_of(path: Path) -> Path:
    lower = path.name.lower()
    stem = next((path.name[: -len(end)] for end in _SUFFIXES if lower.endswith(end)), path.stem)
    return path.with_name(f"{stem}.tsv")
