"""Functional groups of a SEG: where each frame lies, what it shows, what it was made from.

Source: DICOM PS3.3 C.7.6.16.2 and C.8.20.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from medseg.core.grid import FloatArray
from medseg.errors import FormatError
from medseg.io.dicom_quiet import quiet_dicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

__all__ = ["Frames", "Reference", "incomplete", "read_frames", "read_references"]

_MOST_FRAMES = 1_000_000
_MOST_MM = 1e7
_PLANE_POSITION, _PLANE_ORIENTATION, _PIXEL_MEASURES = 0x00209113, 0x00209116, 0x00289110
_SEGMENT_IDENTIFICATION, _DERIVATION_IMAGE = 0x0062000A, 0x00089124
_Part = TypeVar("_Part")

Reference = tuple[str, int | None]
"""SOPInstanceUID of an image, and the number of its frame, from 1, where it has several."""


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Where the frames of a file lie and what they show.

    Args:
        segments: ``(n,)`` number of the segment; 0 in a LABELMAP.
        positions_lps: ``(n, 3)`` centre of the first pixel.
        cosines: ``(n, 6)`` along a row, then along a column.
        spacings_mm: ``(n, 2)`` distance between rows, then between columns.
    """

    segments: npt.NDArray[np.int64]
    positions_lps: FloatArray
    cosines: FloatArray
    spacings_mm: FloatArray


class _Once:
    """Functional groups parsed once: frames repeat those of their slice or segment byte for byte.

    pydicom leaves a sequence of known length as bytes until it is asked for.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes | int], Any] = {}

    def __call__(self, group: Dataset, tag: BaseTag, parse: Callable[[Dataset], _Part]) -> _Part:
        content = group.get_item(tag).value
        # a sequence that was parsed stays where it is while its dataset is held
        key = (tag, content if isinstance(content, bytes) else id(content))
        if key not in self._known:
            items = group[tag].value
            found = self._known[key] = parse(items[0] if len(items) else _nothing())
            self._known[tag, id(items)] = found
        return cast(_Part, self._known[key])


def _tag(number: int) -> BaseTag:
    """As pydicom looks it up: it makes one of every plain number, each time anew."""
    from pydicom.tag import Tag  # noqa: PLC0415 - loaded by whoever asks

    return Tag(number)


def _nothing() -> Dataset:
    from pydicom.dataset import Dataset  # noqa: PLC0415 - loaded by whoever asks

    return Dataset()


def _numbers(group: Dataset, keyword: str) -> tuple[float, ...]:
    return tuple(float(value) for value in group[keyword].value)


def _segment_number(group: Dataset) -> int:
    return int(group.ReferencedSegmentNumber)


def _references(group: Dataset) -> tuple[Reference, ...]:
    found: list[Reference] = []
    for image in group.get("SourceImageSequence") or []:
        frames = image.get("ReferencedFrameNumber")
        uid = str(image.ReferencedSOPInstanceUID)
        if frames is None:
            found.append((uid, None))
        else:
            found += [(uid, int(frame)) for frame in np.atleast_1d(np.asarray(frames)).tolist()]
    return tuple(found)


def read_references(dataset: Dataset, where: str) -> list[tuple[Reference, ...]]:
    """The images that each frame says it was derived from.

    Raises:
        FormatError: ``seg-frames``.
    """
    once = _Once()
    try:
        with quiet_dicom():
            groups = dataset.PerFrameFunctionalGroupsSequence
            shared = dataset.SharedFunctionalGroupsSequence[0]
            found, tag = [], _tag(_DERIVATION_IMAGE)
            for group in groups:
                holder = group if tag in group else shared
                found.append(once(holder, tag, _references) if tag in holder else ())
            return found
    except Exception as error:  # a reference without its UID, a number that is none
        raise FormatError(
            where,
            expected="references to source images that can be read",
            found="one that cannot",
            remedy="export the segmentation again from its source",
            code="seg-frames",
        ) from error


def read_frames(dataset: Dataset, where: str, *, of_segments: bool) -> tuple[Frames, float | None]:
    """Where the frames lie, and the distance between slices where it is said.

    Args:
        dataset: The SEG.
        where: How messages name it.
        of_segments: Whether each frame says which segment it shows.

    Raises:
        FormatError: ``seg-frames``.
    """
    once = _Once()
    segments, positions, cosines, spacings = [], [], [], []
    try:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        each = dataset.PerFrameFunctionalGroupsSequence
        count = int(dataset.get("NumberOfFrames") or len(each))
        if not 1 <= count <= _MOST_FRAMES or len(each) != count:
            raise ValueError(count)

        def of(frame: Dataset, tag: BaseTag, parse: Callable[[Dataset], _Part]) -> _Part:
            return once(frame if tag in frame else shared, tag, parse)

        tags = (_SEGMENT_IDENTIFICATION, _PLANE_POSITION, _PLANE_ORIENTATION, _PIXEL_MEASURES)
        segment_tag, position_tag, orientation_tag, measures_tag = map(_tag, tags)
        position = partial(_numbers, keyword="ImagePositionPatient")
        orientation = partial(_numbers, keyword="ImageOrientationPatient")
        spacing = partial(_numbers, keyword="PixelSpacing")
        for frame in each:
            segments.append(of(frame, segment_tag, _segment_number) if of_segments else 0)
            positions.append(of(frame, position_tag, position))
            cosines.append(of(frame, orientation_tag, orientation))
            spacings.append(of(frame, measures_tag, spacing))
        frames = Frames(
            np.array(segments, dtype=np.int64),
            np.array(positions, dtype=np.float64).reshape(count, 3),
            np.array(cosines, dtype=np.float64).reshape(count, 6),
            np.array(spacings, dtype=np.float64).reshape(count, 2),
        )
        measures = each[0] if _PIXEL_MEASURES in each[0] else shared
        step = measures[_PIXEL_MEASURES][0].get("SpacingBetweenSlices")
    except Exception as error:  # a missing functional group, or values of another length
        raise incomplete(where, "a frame without them") from error
    numbers = (frames.positions_lps, frames.cosines, frames.spacings_mm)
    # written so that NaN fails too
    if not all((np.abs(part) < _MOST_MM).all() for part in numbers):
        raise incomplete(where, "a frame beyond every patient")
    if not (frames.spacings_mm > 0).all():
        raise incomplete(where, "a frame whose pixels have no extent")
    try:
        step_mm = float(step) if step else None
    except (TypeError, ValueError):
        step_mm = None
    return frames, step_mm if step_mm and 0 < step_mm < _MOST_MM else None


def incomplete(where: str, found: str) -> FormatError:
    """The refusal of frames that do not say what they must."""
    return FormatError(
        where,
        expected="segment, position, orientation and spacing of every frame",
        found=found,
        remedy="export the segmentation again from its source",
        code="seg-frames",
    )
