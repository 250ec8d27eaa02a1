"""Which predicted label file belongs to which reference."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ConfigError
from medseg.io.reading import IMAGE_SUFFIXES

__all__ = ["Pairing", "find_label_files", "image_stem", "pair_cases"]

# how label maps are told from what lies beside them, and what a case's name goes without
_ENDING = re.compile(r"[_-](?:dseg|seg|gt|labels?|mask|pred|rtstruct)$", re.IGNORECASE)
_SYNAPSE = re.compile(r"(?:img|label)(\d{4})")
_FIRST_CHANNEL = "_0000"
_DICOM = (".dcm",)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Cases to evaluate.

    Args:
        references: Case to the file with the truth.
        predictions: Case to the predicted file; cases without one are missing.
        foreign: Names of predictions that no reference belongs to.
    """

    references: Mapping[str, Path]
    predictions: Mapping[str, Path]
    foreign: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Cases without a prediction."""
        return tuple(case for case in self.references if case not in self.predictions)


def find_label_files(root: Path) -> dict[str, Path]:
    """Label files of a folder and the folders in it, by case.

    Where any file's name ends in ``_dseg``, ``_seg``, ``_gt``, ``_label``, ``_labels``, ``_mask``,
    ``_pred`` or ``_rtstruct`` (or the same with ``-``), only such files are label maps, and the
    case's name goes without the ending; else all image files are. Hidden files are passed over. A
    DICOM SEG or RTSTRUCT is taken where a case has no other file.

    Args:
        root: A folder, or one file.

    Raises:
        ConfigError: If there is nothing of that name, no label file in it, or two of one case.
    """
    if root.is_file():
        return {_case(root): root}
    if not root.is_dir():
        raise ConfigError(
            str(root),
            expected="a folder of label maps, or one label map",
            found="nothing of that name",
            remedy="check the path",
            code="evaluation-files",
        )
    files = [path for path in sorted(root.rglob("*")) if _could_be_labels(path, root)]
    ended = [path for path in files if _ENDING.search(_stem(path))]
    found: dict[str, Path] = {}
    # files that come with a grid of their own first
    for path in sorted(ended or files, key=lambda path: path.suffix.lower() in _DICOM):
        case = _case(path)
        if case not in found:
            found[case] = path
        elif path.suffix.lower() not in _DICOM:
            raise ConfigError(
                str(root),
                expected="one label map of every case",
                found=f"{found[case].name} and {path.name} of case {case}",
                remedy="evaluate a folder that holds one of them",
                code="cases",
            )
    if not found:
        raise ConfigError(
            str(root),
            expected="label maps in " + ", ".join(IMAGE_SUFFIXES) + " or DICOM SEG",
            found="none",
            remedy="give the folder that holds them",
            code="evaluation-files",
        )
    return dict(sorted(found.items()))


def pair_cases(predictions: Path, references: Path, only: Collection[str] | None = None) -> Pairing:
    """Match predicted label files to references by the names of their cases.

    Two files are a case whatever their names. nnU-Net's ``CASE_0000`` of a prediction made from an
    image's first channel is ``CASE``; Synapse's ``img0001`` and ``label0001`` are one case.

    Args:
        predictions: A folder or a file.
        references: The same kind.
        only: Cases to keep; None keeps all.

    Raises:
        ConfigError: As :func:`find_label_files`; if a folder is set against a file; if ``only``
            names a case that has no reference.
    """
    truths, found = find_label_files(references), find_label_files(predictions)
    if references.is_file() != predictions.is_file():
        raise ConfigError(
            str(predictions),
            expected="two folders, or two files",
            found="one of each",
            remedy="give the same kind for predictions and references",
            code="evaluation-files",
        )
    if references.is_file():
        found = dict(zip(truths, found.values(), strict=True))
    for case in list(found):
        short = case.removesuffix(_FIRST_CHANNEL)
        if case not in truths and short in truths and short not in found:
            found[short] = found.pop(case)
    foreign = tuple(case for case in found if case not in truths)
    if only is not None:
        strangers = sorted(set(only) - set(truths))
        if strangers:
            raise ConfigError(
                "--cases",
                expected="names of cases that have a reference",
                found=f"also {', '.join(strangers[:10])}",
                remedy="correct the list; names go without endings such as _seg.nii.gz",
                code="cases",
            )
        truths = {case: path for case, path in truths.items() if case in only}
    matched = {case: path for case, path in found.items() if case in truths}
    if not matched:
        raise ConfigError(
            str(predictions),
            expected="predictions of the references' cases, such as " + next(iter(truths), "?"),
            found="cases such as " + next(iter(found)),
            remedy="name both files of a case alike, but for endings such as _dseg or _gt",
            code="evaluation-files",
        )
    return Pairing(truths, matched, foreign)


def _could_be_labels(path: Path, root: Path) -> bool:
    if any(part.startswith(".") for part in path.relative_to(root).parts) or not path.is_file():
        return False
    name = path.name.lower()
    if name.endswith((".img", ".img.gz")):  # the data of a header that is listed itself
        return False
    if name.endswith(_DICOM):
        return _ENDING.search(_stem(path)) is not None
    return name.endswith(IMAGE_SUFFIXES)


def image_stem(path: Path) -> str | None:
    """Name of an image file without its ending; None for any other file."""
    name = path.name.lower()
    if name.startswith(".") or not name.endswith(IMAGE_SUFFIXES) or not path.is_file():
        return None
    return _stem(path)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (*IMAGE_SUFFIXES, *_DICOM):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _case(path: Path) -> str:
    name = _ENDING.sub("", _stem(path))
    synapse = _SYNAPSE.fullmatch(name)
    return f"img{synapse[1]}" if synapse else name
