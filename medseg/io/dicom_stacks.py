"""The slices of a series, separated into stacks: by orientation, and by what differs at one place.

A series may hold several volumes: the planes of a localizer, echoes, b-values, directions, phases
of a heart beat, magnitudes and phases, time points. A stack is what may become one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.io.dicom_frames import Frame, Mark
from medseg.io.dicom_geometry import COSINE_TOLERANCE, SAME_POSITION_MM, Plane

__all__ = ["Split", "split_frames"]

# In this order: what a sequence is made to vary comes before what varies with it.
_MARKS = {
    "stack": "stack",
    "kind": "image type",
    "echo_ms": "echo time",
    "inversion_ms": "inversion time",
    "b_value": "b-value",
    "gradient": "gradient direction",
    "time": "time point",
    "trigger_ms": "trigger time",
    "frame_ms": "frame reference time",
    "acquisition": "acquisition",
    "flip_deg": "flip angle",
    "kernel": "kernel",
    "clock": "acquisition time",
}
_UNITS = {
    "echo_ms": " ms",
    "inversion_ms": " ms",
    "trigger_ms": " ms",
    "frame_ms": " ms",
    "b_value": " s/mm2",
    "flip_deg": " degrees",
}
# Marks that order slices in time, so that the first at each place make the first volume.
_CLOCKS = ("trigger_ms", "clock")


@dataclass(frozen=True, slots=True)
class Split:
    """What sets a stack apart from the others of its series.

    Args:
        by: Names of what was separated by, such as ``orientation`` or ``b-value``.
        words: The values of this stack, such as ``b-value 1000 s/mm2``.
    """

    by: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def further(self, by: str, words: str) -> Split:
        """This split, and one more."""
        return Split((*self.by, by), (*self.words, words))


def split_frames(frames: Sequence[Frame]) -> list[tuple[tuple[Frame, ...], Split]]:
    """Separate the slices of one series into stacks.

    First by frame of reference, matrix, pixel spacing and orientation. Where slices of what remains
    lie at one place, they are separated by the first property that tells all of them apart, or
    groups of them within which the next one does: image type, echo time, inversion time, b-value,
    gradient direction, time point, trigger time, ... A property is taken only if the volumes it
    makes together hold as many slices at a place as there are, so that one which varies along the
    stack is not. Trigger and acquisition times that differ a little from slice to slice order the
    slices at each place, if there are equally many at all.

    What nothing tells apart stays together; reading refuses it.

    Args:
        frames: Of one series, with their planes.

    Returns:
        Stacks in the order of their values, each with what sets it apart.
    """
    found: list[tuple[tuple[Frame, ...], Split]] = []
    bins = _alike(frames)
    for number, group in enumerate(bins, 1):
        split = Split()
        if len(bins) > 1:
            by = _what_differs([one[0] for one in bins])
            split = split.further(by, f"{by} {number} of {len(bins)}")
        found += _separate(group, split)
    return found


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames of one frame of reference, matrix, spacing and orientation each."""
    bins: list[tuple[Plane, str, list[Frame]]] = []
    for frame in frames:
        plane, reference = frame.plane, _reference(frame)
        if plane is None:
            continue
        for other, their_reference, group in bins:
            if reference == their_reference and _same_lie(plane, other):
                group.append(frame)
                break
        else:
            bins.append((plane, reference, [frame]))
    return [group for _, _, group in bins]


def _reference(frame: Frame) -> str:
    return str(frame.header.dataset.get("FrameOfReferenceUID") or "")


def _same_lie(one: Plane, other: Plane) -> bool:
    apart_mm = float(np.abs(one.spacing_mm - other.spacing_mm).max()) * max(one.rows, one.columns)
    return (
        (one.rows, one.columns) == (other.rows, other.columns)
        and float(np.abs(one.cosines - other.cosines).max()) <= COSINE_TOLERANCE
        and apart_mm <= SAME_POSITION_MM
    )


def _what_differs(firsts: Sequence[Frame]) -> str:
    planes = [frame.plane for frame in firsts if frame.plane is not None]
    if len({_reference(frame) for frame in firsts}) > 1:
        return "frame of reference"
    if len({(plane.columns, plane.rows) for plane in planes}) > 1:
        return "matrix"
    turned = [float(np.abs(plane.cosines - planes[0].cosines).max()) for plane in planes]
    return "orientation" if max(turned) > COSINE_TOLERANCE else "pixel spacing"


def _separate(frames: Sequence[Frame], split: Split) -> list[tuple[tuple[Frame, ...], Split]]:
    places = _places(frames)
    most = int(np.bincount(places).max())
    if most == 1:
        return [(tuple(frames), split)]
    for mark, by in _MARKS.items():
        groups = _by_mark(frames, mark)
        if 1 < len(groups) <= most:
            counts = [int(np.bincount(_places(group)).max()) for group in groups.values()]
            if sum(counts) == most:
                return [
                    stack
                    for value, group in groups.items()
                    for stack in _separate(group, split.further(by, _in_words(mark, by, value)))
                ]
    return _by_clock(frames, places, most, split) or [(tuple(frames), split)]


def _places(frames: Sequence[Frame]) -> np.ndarray:
    """Number of the position of each frame along the normal, from 0."""
    planes = [frame.plane for frame in frames if frame.plane is not None]
    heights = np.array([plane.position_lps @ planes[0].normal for plane in planes])
    order = np.argsort(heights, kind="stable")
    numbers = np.concatenate([[0], np.cumsum(np.diff(heights[order]) > SAME_POSITION_MM)])
    places = np.empty(len(planes), dtype=np.int64)
    places[order] = numbers
    return places


def _by_mark(frames: Sequence[Frame], mark: str) -> dict[Mark | None, list[Frame]]:
    groups: dict[Mark | None, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(frame.marks.get(mark), []).append(frame)
    return dict(sorted(groups.items(), key=lambda item: _sorting(item[0])))


def _sorting(value: Mark | None) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    return (1, value, "") if isinstance(value, float | int) else (2, 0.0, str(value))


def _in_words(mark: str, by: str, value: Mark | None) -> str:
    if value is None:
        return f"{by} none"
    if isinstance(value, float | int):
        return f"{by} {value:g}{_UNITS.get(mark, '')}"
    if isinstance(value, tuple):
        return f"{by} ({', '.join(f'{part:.2f}' for part in value)})"
    # a clock's text is a date of the patient, and an image type may be long
    return f"{by} {value[:40]}" if mark in ("kind", "stack", "kernel") else by


def _by_clock(
    frames: Sequence[Frame], places: np.ndarray, most: int, split: Split
) -> list[tuple[tuple[Frame, ...], Split]]:
    """Volumes by rank in time at each place; nothing where times are missing or equal."""
    if not (np.bincount(places) == most).all():
        return []
    for mark in _CLOCKS:
        values = [frame.marks.get(mark) for frame in frames]
        if any(value is None for value in values):
            continue
        order = sorted(range(len(frames)), key=lambda n: (places[n], _sorting(values[n])))
        ordered = [frames[n] for n in order]
        distinct = len({(places[n], values[n]) for n in order}) == len(frames)
        if distinct:
            return [
                (
                    tuple(ordered[rank::most]),
                    split.further("time point", f"time point {rank + 1} of {most}"),
                )
                for rank in range(most)
            ]
    return []
