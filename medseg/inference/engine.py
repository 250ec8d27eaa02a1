"""The streaming engine: labels on the image's own grid, slab by slab, in bounded memory.

Windows are swept along one axis of the image. Rows of logits that no later window can change are
interpolated to the image's lattice, turned into labels and let go, so that the logits of a whole
volume never exist. What is finished stays finished: where memory runs out, the engine gives up
speed or precision step by step and goes on from where it was.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.core import AxisTurn
from medseg.errors import ResourceError
from medseg.events import Listener
from medseg.inference.sweep import (
    STAGE,
    Box,
    Group,
    OutOfRange,
    OutOfSteps,
    Progress,
    RowStream,
    Steps,
    count_windows,
    other_axes,
)
from medseg.ops.resample import AxisTaps
from medseg.ops.winners import Decision, Row, decide_probabilities, decide_row

__all__ = [
    "MOST_STRIPS",
    "PROBABILITY_BYTES",
    "Outputs",
    "Slab",
    "StreamingEngine",
    "Sweep",
    "smallest_axis",
    "turned_box",
]

MOST_STRIPS = 64
"""Most parts that an image is cut into where memory is short."""

PROBABILITY_BYTES = 1 << 26
"""Probabilities that a slab may hold before it is handed on."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """How an image is gone through.

    Args:
        axis: The axis of sweeping, on the image's turned grid.
        batch: Windows per forward call.
        half: Whether logits are summed in float16.
        place: Where they are summed.
        strips: Number of parts that the image is cut into across another axis; with more than one,
            windows on the cuts are computed for both sides.
    """

    axis: int
    batch: int = 1
    half: bool = False
    place: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is an immutable value
    strips: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Arrays that the engine fills, ``(i, j, k)`` on the image's turned grid; views are welcome.

    Args:
        labels: uint8 or uint16, zero to begin with.
        entropy: uint8, or None if not wanted.
    """

    labels: npt.NDArray[np.unsignedinteger]
    entropy: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """A part of the result that is finished.

    Args:
        box: First and, exclusive, last voxel on each axis of the turned grid.
        axis: The axis that slabs follow each other along.
        probabilities: ``(n, i, j, k)`` float32 of the box, if wanted.
    """

    box: Box
    axis: int
    probabilities: npt.NDArray[np.float32] | None


@dataclass(slots=True)
class StreamingEngine:
    """Runs groups of networks over one image.

    With one group, logits are interpolated to the image's lattice and decided there. With several,
    their probabilities on the image's lattice are averaged first: networks of different kind agree
    in what a probability means, not in the scale of their logits.

    Args:
        groups: Each with its own lattice; all images are turned alike.
        decision: What becomes of the logits.
        sweep: How the image is gone through.
        roi: Part of the image's turned grid to look at, or None for all of it; the rest stays 0.
    """

    groups: Sequence[Group]
    decision: Decision
    sweep: Sweep
    roi: Box | None = None
    steps_taken: list[str] = field(default_factory=list)
    windows: int = 0
    windows_computed: int = 0
    forward_calls: int = 0

    def run(self, outputs: Outputs, listener: Listener) -> Iterator[Slab]:
        """Fill the outputs, yielding after each slab.

        Raises:
            Cancelled: If the listener asked to stop.
            ResourceError: ``out-of-memory`` if memory ran out and nothing was left to give up.
            FormatError: ``network-not-finite``.
        """
        slabs = self._run(outputs, listener)
        while True:
            with torch.inference_mode():  # left while the caller has its turn
                slab = next(slabs, None)
            if slab is None:
                return
            yield slab

    def _run(self, outputs: Outputs, listener: Listener) -> Iterator[Slab]:
        axis = self.sweep.axis
        across = self.strip_axis(axis)
        regions = deque(_strips(self._whole(), across, self.sweep.strips))
        steps = Steps(self.sweep.batch, self.sweep.half, self.sweep.place)
        total = sum(self._count(region) for region in regions)
        progress = Progress(listener, total)
        self.windows = total
        listener.started(STAGE, total)
        while regions:
            region = regions.popleft()
            done = region[axis][0]
            try:
                for slab in self._run_region(region, outputs, steps, progress):
                    done = slab.box[axis][1]
                    yield slab
            except (OutOfSteps, OutOfRange) as error:
                rest = [_from_row(region, axis, done), *regions]
                halved = [half for part in rest for half in _strips(part, across, 2)]
                can_halve = len(rest) < len(halved) <= MOST_STRIPS
                if isinstance(error, OutOfRange):
                    steps.widen()
                elif not can_halve:
                    raise _no_memory() from error
                # float32 takes twice the memory of float16, and strips give it back
                regions = deque(halved if can_halve else rest)
                if can_halve:
                    steps.taken.append(f"{len(halved)} strips of the image")
                progress.total = progress.done + sum(self._count(part) for part in regions)
                listener.started(STAGE, progress.total)
                progress.advance(0)
            finally:
                self.steps_taken = list(steps.taken)
                self.windows_computed = progress.computed
                self.forward_calls = progress.calls
        self.windows = progress.total

    def _run_region(
        self, region: Box, outputs: Outputs, steps: Steps, progress: Progress
    ) -> Iterator[Slab]:
        axis, classes = self.sweep.axis, len(self.decision.values)
        planes = [
            _Planes(group, classes, axis, self._box(group), region, steps, progress)
            for group in self.groups
        ]
        first, last = region[axis]
        begun = first
        kept: list[npt.NDArray[np.float32]] = []
        for place in range(first, last):
            full = len(kept) > 0 and sum(row.nbytes for row in kept) >= PROBABILITY_BYTES
            if place > begun and (full or not all(plane.is_ready(place) for plane in planes)):
                yield _slab(region, axis, begun, place, kept)
                begun, kept = place, []
            row = self._decide(planes, place)
            cut = [slice(*region[a]) for a in range(3)]
            cut[axis] = slice(place, place + 1)
            where = tuple(cut)
            outputs.labels[where] = np.expand_dims(row.labels, axis)
            if outputs.entropy is not None and row.entropy is not None:
                outputs.entropy[where] = np.expand_dims(row.entropy, axis)
            if row.probabilities is not None:
                kept.append(row.probabilities)
        yield _slab(region, axis, begun, last, kept)

    def _decide(self, planes: Sequence[_Planes], place: int) -> Row:
        if len(planes) == 1:
            plane = planes[0]
            return decide_row(plane.logits(place), plane.taps_b, plane.taps_c, self.decision)
        shares = Decision(self.decision.values, self.decision.overlapping, probabilities=True)
        mean: Tensor | None = None
        for plane in planes:
            row = decide_row(plane.logits(place), plane.taps_b, plane.taps_c, shares)
            assert row.probabilities is not None  # noqa: S101 - they were asked for
            part = torch.from_numpy(row.probabilities)
            mean = part if mean is None else mean.add_(part)
        assert mean is not None  # noqa: S101 - there is always at least one group
        return decide_probabilities(mean.div_(len(planes)), self.decision)

    def count(self, group: Group, sweep: Sweep) -> int:
        """Windows that a group goes through in such a sweep."""
        return sum(
            count_windows(group, sweep.axis, self._box(group), _on_model(group, strip))
            for strip in _strips(self._whole(), self.strip_axis(sweep.axis), sweep.strips)
        )

    def strip_axis(self, axis: int) -> int:
        """The axis that strips lie side by side on, in a sweep along ``axis``.

        It is that of the other two which holds more windows, so that fewer lie on the cuts.
        """
        group = self.groups[0]
        extents = self.model_extents(group)
        return max(other_axes(axis), key=lambda other: extents[other] / group.window_ijk[other])

    def model_extents(self, group: Group) -> tuple[int, int, int]:
        """Extents on a group's lattice of the part of the image that is looked at."""
        i, j, k = (last - first for first, last in self._box(group))
        return i, j, k

    def image_extents(self) -> tuple[int, int, int]:
        """Extents of the part of the image that is looked at."""
        i, j, k = (last - first for first, last in self._whole())
        return i, j, k

    def _whole(self) -> Box:
        return self.roi or _all_of(self.groups[0].image.turned_grid.shape_ijk)

    def _count(self, region: Box) -> int:
        return sum(
            count_windows(group, self.sweep.axis, self._box(group), _on_model(group, region))
            for group in self.groups
        )

    def _box(self, group: Group) -> Box:
        """Part of the model's lattice that windows are spread over."""
        shape = group.image.grid.shape_ijk
        if self.roi is None:
            return _all_of(shape)
        grown = [
            _grown(span, length, extent)
            for span, length, extent in zip(
                _on_model(group, self.roi), group.window_ijk, shape, strict=True
            )
        ]
        return grown[0], grown[1], grown[2]


class _Planes:
    """Rows of logits of one group, interpolated to the image's lattice along the axis of sweeping.

    Args:
        region: Part of the image's turned grid that is wanted.
    """

    def __init__(
        self,
        group: Group,
        classes: int,
        axis: int,
        box: Box,
        region: Box,
        steps: Steps,
        progress: Progress,
    ) -> None:
        b, c = other_axes(axis)
        taps = group.image.to_image
        self._stream = RowStream(
            group, classes, axis, box, _on_model(group, region), steps, progress
        )
        self._taps: AxisTaps = taps[axis]
        self.taps_b = taps[b].part(*region[b])
        self.taps_c = taps[c].part(*region[c])
        self._held: dict[int, Tensor] = {}
        self._next, _ = self._taps.sources(region[axis][0], region[axis][0] + 1)

    def is_ready(self, place: int) -> bool:
        """Whether row ``place`` of the image needs no network any more."""
        return self._taps.sources(place, place + 1)[1] <= self._stream.final

    def logits(self, place: int) -> Tensor:
        """``(b, c, n)`` float32 logits of row ``place``, on the model's lattice in b and c."""
        first, last = self._taps.sources(place, place + 1)
        for row in [row for row in self._held if row < first]:
            self._stream.release(self._held.pop(row))
        while self._next < last:
            row_bcn = self._stream.next_row()
            if self._next >= first:
                self._held[self._next] = row_bcn
            else:
                self._stream.release(row_bcn)
            self._next += 1
        if last - first == 1:
            return self._held[first]
        weights = self._taps.weights[place]
        result: Tensor | None = None
        for tap, row in enumerate(range(first, last)):
            part = self._held[row] * float(weights[tap])
            result = part if result is None else result.add_(part)
        assert result is not None  # noqa: S101 - there is always at least one tap
        return result


def smallest_axis(groups: Sequence[Group]) -> int:
    """The axis along which the rows in memory are the fewest numbers.

    Of two alike the one is taken whose rows lie together in the image's memory.
    """

    def live(axis: int) -> int:
        b, c = other_axes(axis)
        return sum(
            min(group.window_ijk[axis], group.image.grid.shape_ijk[axis])
            * group.image.grid.shape_ijk[b]
            * group.image.grid.shape_ijk[c]
            for group in groups
        )

    strides = groups[0].image.strides
    return min(range(3), key=lambda axis: (live(axis), -strides[axis]))


def turned_box(box: Box, turn: AxisTurn, shape: tuple[int, int, int]) -> Box:
    """A box of voxels on the axes that a turn makes.

    Args:
        box: On the axes as they are.
        turn: What is done to them.
        shape: Extents before the turn.
    """
    spans = []
    for source, flipped in zip(turn.source_axes, turn.flipped, strict=True):
        first, last = box[source]
        spans.append((shape[source] - last, shape[source] - first) if flipped else (first, last))
    return spans[0], spans[1], spans[2]


def _on_model(group: Group, region: Box) -> Box:
    """The voxels of the model's lattice that a part of the image's is interpolated from."""
    spans = [
        taps.sources(first, last)
        for taps, (first, last) in zip(group.image.to_image, region, strict=True)
    ]
    return spans[0], spans[1], spans[2]


def _grown(span: tuple[int, int], length: int, extent: int) -> tuple[int, int]:
    """``span`` made at least ``length`` long where the axis has as many voxels."""
    first, last = span
    missing = max(0, min(length, extent) - (last - first))
    first = max(0, first - missing // 2)
    last = min(extent, max(last, first + min(length, extent)))
    return max(0, min(first, last - min(length, extent))), last


def _all_of(shape: Sequence[int]) -> Box:
    i, j, k = shape
    return (0, i), (0, j), (0, k)


def _strips(region: Box, axis: int, count: int) -> list[Box]:
    first, last = region[axis]
    count = max(1, min(count, last - first))
    edges = [first + (last - first) * n // count for n in range(count + 1)]
    strips = []
    for low, high in itertools.pairwise(edges):
        spans = list(region)
        spans[axis] = (low, high)
        strips.append((spans[0], spans[1], spans[2]))
    return strips


def _from_row(region: Box, axis: int, first: int) -> Box:
    spans = list(region)
    spans[axis] = (first, region[axis][1])
    return spans[0], spans[1], spans[2]


def _slab(
    region: Box, axis: int, first: int, last: int, kept: list[npt.NDArray[np.float32]]
) -> Slab:
    spans = list(region)
    spans[axis] = (first, last)
    probabilities = np.stack(kept, axis=1 + axis) if kept else None
    return Slab((spans[0], spans[1], spans[2]), axis, probabilities)


def _no_memory() -> ResourceError:
    return ResourceError(
        "segmentation",
        expected="enough memory for one window of the network and the narrowest slab of logits",
        found="none left, after everything that can be given up was",
        remedy="close other programs, or use another device or a smaller model",
        code="out-of-memory",
    )
