"""Names and colours of labels in a table beside their file, as BIDS derivatives have it. No Qt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from medseg.atomic import write_text
from medseg.core import LabelScheme
from medseg.errors import MedsegError
from medseg.io.label_table import label_table, read_label_table
from medseg_napari._layers import plain_scheme, whole_values

__all__ = ["names_beside", "write_names_beside"]

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


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
