"""A SEG that was written, read back and compared: labels, place in the world, references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from medseg.core import LabelMap, LabelScheme
from medseg.errors import FormatError, GeometryError
from medseg.io.dicom_identity import instance_uid
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_groups import Reference
from medseg.io.dicom_seg_labels import labels_of
from medseg.io.dicom_seg_places import placed_blocks
from medseg.io.dicom_seg_reading import SegFile, open_seg
from medseg.io.scan import DicomSource
from medseg.io.segment_names import class_labels, segment_label

if TYPE_CHECKING:
    from medseg.io.probabilities import ProbabilityFile

__all__ = ["check_fractional_seg", "check_seg"]

_TOLERANCE_MM = 0.01
_REMEDY = "report this; nothing was written"
_Found = TypeVar("_Found")


def check_seg(path: Path, labels: LabelMap, source: DicomSource, *, where: str) -> None:
    """Read a BINARY or LABELMAP SEG back and compare it with the label map it should hold.

    Positions, orientations and spacings are those of the file's own functional groups, mapped
    through world coordinates; they must meet the grid within 0.01 mm, plus what the source slices
    themselves deviate from their grid.

    Args:
        path: The SEG.
        labels: What it should hold.
        source: The series it should lie on.
        where: How messages name it.

    Raises:
        FormatError: If labels differ (``verify-labels``), or a frame refers to another image than
            that in whose place it lies (``verify-references``).
        GeometryError: If the place or the frame of reference differs (``verify-geometry``).
    """
    tolerance = _TOLERANCE_MM + _unevenness_mm(source)
    seg = _mapped(where, lambda: open_seg(path, where))
    found, _ = _mapped(
        where, lambda: labels_of(seg, labels.scheme, labels.grid, tolerance_mm=tolerance)
    )
    differing = int(np.count_nonzero(found.data_ijk != labels.data_ijk))
    if differing:
        raise _differs(where, "the labels that were written", f"{differing} voxels that differ")
    _check_frames(seg, source, tolerance)


def check_fractional_seg(
    path: Path,
    probabilities: ProbabilityFile,
    scheme: LabelScheme,
    source: DicomSource,
    *,
    where: str,
) -> None:
    """Read a FRACTIONAL SEG back and compare it with the probabilities it should hold.

    Args:
        path: The SEG.
        probabilities: What it should hold, to half a step of 1/255.
        scheme: The labels of the model.
        source: The series it should lie on.
        where: How messages name it.

    Raises:
        MedsegError: As :func:`check_seg`.
    """
    tolerance = _TOLERANCE_MM + _unevenness_mm(source)
    seg = _mapped(where, lambda: open_seg(path, where))
    wanted = class_labels(probabilities.classes, scheme, str(probabilities.path))
    names = [segment_label(label) for _, label in wanted]
    if seg.kind != "FRACTIONAL" or [segment.label for segment in seg.segments] != names:
        raise _differs(where, f"{len(names)} FRACTIONAL segments", "others")
    found_kji = np.zeros(probabilities.grid.shape_ijk[::-1], dtype=np.float32)
    for segment, (which, _) in zip(seg.segments, wanted, strict=True):

        def read(number: int = segment.number) -> None:
            blocks = placed_blocks(seg, probabilities.grid, found_kji, tolerance, [number])
            for block, target in blocks:
                target[:] = block.pixels

        found_kji[:] = 0
        _mapped(where, read)
        expected_kji = probabilities.read_class(which).transpose(2, 1, 0)
        apart = float(np.abs(found_kji / np.float32(seg.maximum) - expected_kji).max())
        if apart > 0.5001 / seg.maximum:
            raise _differs(
                where, "the probabilities that were written", f"a difference of {apart:.3f}"
            )
    _check_frames(seg, source, tolerance)


def _mapped(where: str, read: Callable[[], _Found]) -> _Found:
    """What was read; errors as those of a file that is not what was written."""
    try:
        return read()
    except GeometryError as error:
        raise GeometryError(
            where,
            expected=error.expected,
            found=error.found,
            remedy=_REMEDY,
            code="verify-geometry",
        ) from error
    except FormatError as error:
        raise _differs(where, error.expected, error.found) from error


def _check_frames(seg: SegFile, source: DicomSource, tolerance_mm: float) -> None:
    """Frame of reference, and the image that each frame refers to."""
    if seg.frame_of_reference != str(source.datasets[0].FrameOfReferenceUID):
        raise GeometryError(
            seg.where,
            expected="the frame of reference of the source",
            found="another one",
            remedy=_REMEDY,
            code="verify-geometry",
        )
    numbers = source.frame_numbers
    with quiet_dicom():
        own = np.array([ds.ImagePositionPatient for ds in source.datasets], dtype=np.float64)
        uids = [instance_uid(header) for header in source.datasets]
    wanted: list[tuple[Reference, ...]] = [
        () if k in source.made_up_k else ((uid, numbers[k] if numbers is not None else None),)
        for k, uid in enumerate(uids)
    ]
    # frames repeat the places of slices: each is looked for once
    places, which = np.unique(seg.frames.positions_lps, axis=0, return_inverse=True)
    nearest = [int(np.linalg.norm(own - place, axis=1).argmin()) for place in places]
    apart_mm = np.linalg.norm(own[nearest] - places, axis=1).max()
    if apart_mm > tolerance_mm:
        raise GeometryError(
            seg.where,
            expected=f"frames in the places of slices within {tolerance_mm:.3f} mm",
            found=f"one {apart_mm:.3f} mm away",
            remedy=_REMEDY,
            code="verify-geometry",
        )
    references = _mapped(seg.where, seg.references)
    for found, place in zip(references, which.ravel().tolist(), strict=True):
        if found != wanted[nearest[place]]:
            raise FormatError(
                seg.where,
                expected="every frame to refer to the image that lies where it does",
                found="a frame that refers to another",
                remedy=_REMEDY,
                code="verify-references",
            )


def _differs(where: str, expected: str, found: str) -> FormatError:
    return FormatError(where, expected=expected, found=found, remedy=_REMEDY, code="verify-labels")


def _unevenness_mm(source: DicomSource) -> float:
    """How far the slices' own positions are from where the affine puts them, at most."""
    own = np.array([ds.ImagePositionPatient for ds in source.datasets], dtype=np.float64)
    steps = np.arange(len(own), dtype=np.float64)[:, None]
    lattice = source.affine_lps[:3, 3] + steps * source.affine_lps[:3, 2]
    return float(np.linalg.norm(own - lattice, axis=1).max())
