"""One table of layouts, and which of them a folder is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from medseg.data.layouts.acdc import is_acdc, list_acdc
from medseg.data.layouts.brats import is_brats, list_brats
from medseg.data.layouts.dicom import is_dicom, list_dicom
from medseg.data.layouts.listing import Listing, refuse
from medseg.data.layouts.msd import is_msd, list_msd
from medseg.data.layouts.nnunet import is_nnunet, list_nnunet
from medseg.data.layouts.paths import find_lists, is_list, list_paths
from medseg.data.layouts.synapse import is_synapse, list_synapse
from medseg.data.layouts.transunet import is_transunet, list_transunet
from medseg.errors import one_of

__all__ = ["LAYOUTS", "Layout", "detect_layout", "list_cases"]

_FOLDERS = 50


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which datasets lie on disk.

    Args:
        recognises: Whether a folder (or file) looks like it; opens no image.
        cases: Lists its cases; the second argument is the name of a label scheme or None.
        about: What it is, for tables.
    """

    recognises: Callable[[Path], bool]
    cases: Callable[[Path, str | None], Listing]
    about: str


LAYOUTS: Mapping[str, Layout] = {
    "msd": Layout(is_msd, list_msd, "Medical Segmentation Decathlon: dataset.json lists the files"),
    "nnunet": Layout(is_nnunet, list_nnunet, "nnU-Net raw: imagesTr/CASE_0000, labelsTr/CASE"),
    "synapse": Layout(is_synapse, list_synapse, "BTCV / Synapse: img/imgNNNN, label/labelNNNN"),
    "transunet": Layout(
        is_transunet, list_transunet, "TransUNet's Synapse: train_npz slices, test_vol_h5 volumes"
    ),
    "acdc": Layout(is_acdc, list_acdc, "ACDC: patientNNN with Info.cfg, ED and ES frames"),
    "brats": Layout(is_brats, list_brats, "BraTS: one folder a case, four modalities and seg"),
    "list": Layout(is_list, list_paths, "a CSV or YAML file that lists paths"),
    "dicom": Layout(is_dicom, list_dicom, "one folder a case with a DICOM series and its SEG"),
}
"""Layout name to what reads it."""


def detect_layout(root: Path) -> str:
    """The name of the one layout that a folder has.

    DICOM is looked for only where nothing else fits, since it means opening files.

    Raises:
        ConfigError: ``dataset-missing`` if there is nothing of that name, ``layout-unknown`` if no
            layout fits, ``layout-ambiguous`` if several do.
    """
    if not root.exists():
        refuse(
            root,
            expected="a dataset folder",
            found="no such folder",
            remedy="give the folder of the dataset, with --data or as data.root",
            code="dataset-missing",
        )
    found = _looked_for(root) or [name for name in ("dicom",) if LAYOUTS[name].recognises(root)]
    if len(found) != 1:
        _refuse_detection(root, found)
    return found[0]


def _refuse_detection(root: Path, found: Sequence[str]) -> NoReturn:
    refuse(
        root,
        expected=f"a dataset in one of the layouts {', '.join(LAYOUTS)}",
        found=f"what could be {' or '.join(found)}" if found else "none that is known",
        remedy="name its layout, with --layout or as data.layout"
        if found
        else _below(root)
        or "give the folder that holds the cases, or list their paths in a CSV file",
        code="layout-ambiguous" if found else "layout-unknown",
    )


def list_cases(root: Path, layout: str = "auto", scheme: str | None = None) -> Listing:
    """List the labelled cases of a dataset.

    Args:
        root: Its folder, or the file of a list of paths.
        layout: A member of :data:`LAYOUTS`, or ``auto``.
        scheme: Name of a label scheme (:func:`~medseg.data.schemes.find_scheme`) where the dataset
            does not say it, or another than its own is wanted.

    Raises:
        ConfigError: ``layout-unknown`` and those of :func:`detect_layout`; ``dataset-empty``; see
            each layout.
        FormatError: If an index file is damaged.
    """
    if layout != "auto" and layout not in LAYOUTS:
        refuse(
            "layout",
            expected=f"auto or {one_of(layout, LAYOUTS)}",
            found=repr(layout),
            remedy="correct it, or leave it out",
            code="layout-unknown",
        )
    chosen = detect_layout(root) if layout == "auto" else layout
    if not root.exists() or not (root.is_dir() or chosen == "list"):
        refuse(
            root,
            expected="a dataset folder",
            found="a file" if root.exists() else "no such folder",
            remedy="give the folder of the dataset, with --data or as data.root",
            code="dataset-missing",
        )
    listing = LAYOUTS[chosen].cases(root, scheme)
    if not listing.cases and not listing.problems:
        _refuse_empty(root, chosen)
    return listing


def _refuse_empty(root: Path, layout: str) -> NoReturn:
    others = [name for name in _looked_for(root) if name != layout]
    refuse(
        root,
        expected=f"at least one labelled case in the layout {layout!r}",
        found=f"none, but what looks like {' or '.join(others)}" if others else "none",
        remedy="name that layout, with --layout or as data.layout"
        if others
        else _below(root) or "check the folder, or name another layout",
        code="dataset-empty",
    )


def _looked_for(root: Path) -> list[str]:
    """The layouts that a folder looks like; DICOM, which means opening files, is left out."""
    return [name for name, one in LAYOUTS.items() if name != "dicom" and one.recognises(root)]


def _below(root: Path) -> str:
    """A remedy that names a list of paths or a folder within, if one looks like a dataset."""
    lists = find_lists(root) if root.is_dir() else ()
    if lists:
        return f"give its file {lists[0]!r}, which looks like a list of paths"
    entries = sorted(root.iterdir()) if root.is_dir() else []
    folders = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    for folder in folders[:_FOLDERS]:
        found = _looked_for(folder)
        if found:
            return f"give its folder {folder.name!r}, which looks like {' or '.join(found)}"
    return ""
