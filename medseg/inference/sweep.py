"""Windows swept along one axis: logits come out row by row, and rows that are done are let go.

A row is all of the lattice across the axis of sweeping. Windows are run layer by layer, a layer
being those that begin at one row. Once a layer is done, every row before the next layer's first can
change no more: it is divided by the sum of its weights, handed on, and its memory is used again.
So the rows of one window's depth are in memory, and never more.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg.core import AxisTurn
from medseg.data.preparation import ModelImage
from medseg.errors import FormatError
from medseg.events import Cancelled, Listener
from medseg.inference.transfer import DoubleBuffer
from medseg.inference.windows import blending_weights, window_starts
from medseg.ops.sums import add_weighted, finish

__all__ = [
    "ROWS_AT_A_TIME",
    "STAGE",
    "TOO_LARGE",
    "Box",
    "Group",
    "OutOfRange",
    "OutOfSteps",
    "Progress",
    "RowStream",
    "Steps",
    "count_windows",
    "is_out_of_memory",
    "other_axes",
]

STAGE = "windows"

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and, exclusive, last voxel on each of three axes."""

TOO_LARGE = "logits summed in float32, as they are too large for float16"
"""The step that is taken back."""

ROWS_AT_A_TIME = 8
"""Rows of the image that are prepared together."""

_BACKGROUND_LOGIT = 10.0
"""Logit of the background, and minus that of every region, where no window was computed."""


class OutOfSteps(Exception):  # noqa: N818 - a state, turned into an error by the engine
    """Memory ran out, and only a smaller slab can help."""


class OutOfRange(Exception):  # noqa: N818 - as above
    """A sum of logits is more than float16 can hold."""


@dataclass(slots=True)
class Steps:
    """What can be given up when memory runs out, and what was.

    Args:
        batch: Windows per forward call.
        half: Whether rows are summed in float16.
        place: Where rows are kept: the network's device or the CPU.
        taken: What was given up, in words, for the record.
        may_half: Whether float16 can hold the sums, as far as is known.
    """

    batch: int
    half: bool
    place: torch.device
    taken: list[str] = field(default_factory=list)
    may_half: bool = True

    def down(self) -> bool:
        """Give up one thing more; False if nothing is left but a smaller slab."""
        if self.batch > 1:
            self.batch //= 2
            self.taken.append(f"{self.batch} windows at a time")
        elif self.may_half and not self.half:
            self.half = True
            self.taken.append("logits summed in float16")
        elif self.place.type != "cpu":
            self.place = torch.device("cpu")
            self.taken.append("logits summed on the CPU")
        else:
            return False
        return True

    def widen(self) -> None:
        """Sum in float32 from now on: float16 has turned out too narrow for these logits."""
        self.half = self.may_half = False
        self.taken.append(TOO_LARGE)

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the sums."""
        return torch.float16 if self.half else torch.float32


@dataclass(slots=True)
class Progress:
    """Windows done, over all streams of a run.

    Args:
        listener: Told of every batch.
        total: Windows there are to do.
        done: Windows done or left out.
        computed: Windows that went through a network.
        calls: Forward calls of networks.
    """

    listener: Listener
    total: int
    done: int = 0
    computed: int = 0
    calls: int = 0

    def advance(self, windows: int) -> None:
        """Count windows and tell the listener."""
        self.done += windows
        self.listener.advanced(STAGE, min(self.done, self.total))


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Networks that see the same windows of the same prepared image; their logits are averaged.

    Args:
        networks: In eval mode on ``device``; ``(b, c, i, j, k)`` to ``(b, n, i, j, k)`` logits.
        image: What they see.
        window_ijk: Extents of one window on the axes of the image's grid.
        overlap: Least share of the window that neighbours have in common; one, or one per axis.
        blending: How much a voxel of a window counts: by a Gaussian round the centre, or all alike.
        mirror_axes: Axes (0 to 2, of the networks' orientation) to mirror the window along, in all
            combinations, for test-time augmentation.
        device: Where the networks are.
        channels_last: Whether windows are handed over in the channels-last layout.
        overlapping: Whether channels are regions, none of which is background.
        skip_constant: Whether windows of one single value in every channel are left out.
        wanted: ``(i, j, k)`` bool on a lattice over the same box of space, however coarse, or None.
            Windows that hold no part of it are left out.
    """

    networks: tuple[nn.Module, ...]
    image: ModelImage
    window_ijk: tuple[int, int, int]
    overlap: float | tuple[float, ...] = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is an immutable value
    channels_last: bool = True
    overlapping: bool = False
    skip_constant: bool = False
    wanted: npt.NDArray[np.bool_] | None = None

    def mirrorings(self) -> list[tuple[int, ...]]:
        """Every combination of the axes to mirror, the empty one first."""
        combinations: list[tuple[int, ...]] = [()]
        for axis in self.mirror_axes:
            combinations += [(*chosen, axis) for chosen in combinations]
        return combinations

    def arranged(self, x_bcijk: Tensor) -> Tensor:
        """A batch of windows in the layout that the networks run in."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return x_bcijk.to(memory_format=layout)

    def answer(self, x_bcijk: Tensor, progress: Progress) -> Tensor:
        """Mean logits of all networks and mirrorings.

        The image itself is mirrored, so that whatever a network derives from it is derived again.

        Args:
            x_bcijk: Windows on the device, channels-last.
            progress: Its listener is asked before each forward call whether to stop.

        Returns:
            ``(b, n, i, j, k)`` in the type that the networks answer in; float32 for a mean.

        Raises:
            Cancelled: If the listener asked to stop.
        """
        total: Tensor | None = None
        mirrorings = self.mirrorings()
        turn = self.image.to_orientation
        if not turn.is_identity:
            x_bcijk = self.arranged(_turned(x_bcijk, turn))
        for network in self.networks:
            for axes in mirrorings:
                if progress.listener.cancelled():
                    raise Cancelled
                dims = [2 + axis for axis in axes]
                seen = x_bcijk.flip(dims) if dims else x_bcijk
                logits: Tensor = network(seen)
                progress.calls += 1
                if len(self.networks) * len(mirrorings) == 1:
                    return _turned(logits, turn.inverse())
                logits = (logits.flip(dims) if dims else logits).float()
                total = logits if total is None else total.add_(logits)
        assert total is not None  # noqa: S101 - there is always at least one network
        return _turned(total.div_(len(self.networks) * len(mirrorings)), turn.inverse())


class RowStream:
    """Rows of mean logits, in rising order along one axis.

    Args:
        group: Networks and their windows.
        classes: Channels of their logits.
        axis: The axis of sweeping.
        box: Part of the model's lattice that windows are spread over; at least the window's extents
            where the image has them. What a window reaches beyond the image is zero.
        rows: Part of the model's lattice that is wanted, inside the box.
        steps: Batch, number type and place of the sums; shared, and changed when memory runs out.
        progress: Told of windows.
    """

    def __init__(
        self,
        group: Group,
        classes: int,
        axis: int,
        box: Box,
        rows: Box,
        steps: Steps,
        progress: Progress,
    ) -> None:
        self.group = group
        self.axis = axis
        self.rows = rows
        self._b, self._c = other_axes(axis)
        self._steps = steps
        self._progress = progress
        self._layers = list(_layers(group, axis, box, rows))
        self._weights_abc = blending_weights(group.window_ijk, group.blending).permute(
            axis, self._b, self._c
        )
        self._sums: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}
        self._spare: list[Tensor] = []
        self._spare_totals: list[Tensor] = []
        self._spare_mean: Tensor | None = None
        self._buffer: DoubleBuffer | None = None
        self._unseen = _unseen_logits(classes, group.overlapping)
        self._input: _InputRows | None = None
        self._next_layer = 0
        self._next_row = rows[axis][0]
        self._classes = classes

    @property
    def final(self) -> int:
        """Rows before this one are done: giving them takes no network."""
        if self._next_layer == len(self._layers):
            return self.rows[self.axis][1]
        return max(self.rows[self.axis][0], self._layers[self._next_layer].start)

    def next_row(self) -> Tensor:
        """The next row.

        Returns:
            ``(b, c, n)`` float32 logits; give it back with :meth:`release`.

        Raises:
            OutOfSteps: If memory ran out; the stream is of no further use.
            OutOfRange: If a sum has overflowed float16; likewise.
            Cancelled: If the listener asked to stop.
            FormatError: ``network-not-finite``.
        """
        while self._next_row >= self.final:
            self._run_layer()
        row = self._next_row
        self._next_row += 1
        return self._finished(row)

    def release(self, row_bcn: Tensor) -> None:
        """Take back the memory of a row that is not needed any more."""
        if row_bcn.dtype == self._steps.dtype:
            self._spare.append(row_bcn)
        else:  # one is enough: rows are finished one at a time
            self._spare_mean = row_bcn

    def _run_layer(self) -> None:
        layer = self._layers[self._next_layer]
        pending = list(layer.starts)
        while pending:
            if self._progress.listener.cancelled():
                raise Cancelled
            try:
                self._run_some(pending)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._give_up_something()
        self._next_layer += 1

    def _run_some(self, pending: list[tuple[int, int, int]]) -> None:
        """Run the next windows; each is taken from ``pending`` when it is in the sums."""
        group = self.group
        batch: list[tuple[int, int, int]] = []
        windows: list[Tensor] = []
        for start in tuple(pending):
            if len(batch) == self._steps.batch:
                break
            x_cijk = None if self._outside(start) else self._window(start)
            if x_cijk is None or (group.skip_constant and _is_constant(x_cijk)):
                pending.remove(start)
                self._progress.advance(1)
                continue
            batch.append(start)
            windows.append(x_cijk)
        if not batch:
            return
        x_bcijk = torch.stack(windows) if len(windows) > 1 else windows[0][None]
        del windows
        x_bcijk = group.arranged(self._moved(x_bcijk))
        answer_bnijk = group.answer(x_bcijk, self._progress)
        del x_bcijk
        if self._buffer is not None:
            self._buffer.done()
        for start, answer_nijk in zip(batch, answer_bnijk, strict=True):
            self._add(start, answer_nijk)
            pending.remove(start)
        self._progress.computed += len(batch)
        self._progress.advance(len(batch))

    def _moved(self, x_bcijk: Tensor) -> Tensor:
        if self.group.device.type != "cuda":
            return x_bcijk.to(self.group.device)
        if self._buffer is None:
            self._buffer = DoubleBuffer(self.group.device)
        return self._buffer.bring(x_bcijk)

    def _window(self, start: tuple[int, int, int]) -> Tensor:
        if self._input is None:
            span = [(min(s), max(s)) for s in zip(*self._starts(), strict=True)]
            self._input = _InputRows(self.group, self.axis, span)
        return self._input.window(start)

    def _starts(self) -> list[tuple[int, int, int]]:
        return [start for layer in self._layers for start in layer.starts]

    def _outside(self, start: tuple[int, int, int]) -> bool:
        wanted = self.group.wanted
        if wanted is None:
            return False
        cut = []
        for first, length, extent, have in zip(
            start, self.group.window_ijk, self.group.image.grid.shape_ijk, wanted.shape, strict=True
        ):
            # whole voxels of the mask that the window touches
            low = max(0, first) * have // extent
            high = -(-min(extent, first + length) * have // extent)
            cut.append(slice(low, max(high, low + 1)))
        return not bool(wanted[tuple(cut)].any())

    def _add(self, start: tuple[int, int, int], answer_nijk: Tensor) -> None:
        axis, b, c = self.axis, self._b, self._c
        cut = []
        for a in (axis, b, c):
            low = max(start[a], self.rows[a][0])
            high = min(start[a] + self.group.window_ijk[a], self.rows[a][1])
            cut.append((low, high))
        inner = tuple(
            slice(low - start[a], high - start[a])
            for a, (low, high) in zip((axis, b, c), cut, strict=True)
        )
        rows = range(*cut[0])
        for row in rows:
            self._make_room(row)  # before anything is summed: memory may run out here
        add_weighted(
            [self._sums[row] for row in rows],
            [self._totals[row] for row in rows],
            answer_nijk.permute(1 + axis, 1 + b, 1 + c, 0)[inner],
            self._weights_abc[inner],
            (cut[1][0] - self.rows[b][0], cut[2][0] - self.rows[c][0]),
        )

    def _make_room(self, row: int) -> None:
        if row in self._sums:
            return
        shape = tuple(self.rows[a][1] - self.rows[a][0] for a in (self._b, self._c))
        kind = self._steps.dtype, self._steps.place
        while self._spare:
            spare = self._spare.pop()
            if (spare.dtype, spare.device) == kind:
                self._sums[row] = _zeroed(spare)
                break
        else:
            self._sums[row] = _zeros((*shape, self._classes), *kind)
        while self._spare_totals:
            spare = self._spare_totals.pop()
            if spare.device == kind[1]:
                self._totals[row] = _zeroed(spare)
                break
        else:
            self._totals[row] = _zeros(shape, torch.float32, kind[1])

    def _give_up_something(self) -> None:
        self._spare.clear()
        self._spare_totals.clear()
        self._spare_mean = None
        self._buffer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._steps.may_half and not self._steps.half:
            self._steps.may_half = all(_fits_float16(row) for row in self._sums.values())
        if not self._steps.down():
            self._sums.clear()
            self._totals.clear()
            self._input = None
            raise OutOfSteps
        # row by row, so that little is held twice
        for row, total in self._totals.items():
            self._sums[row] = self._sums[row].to(self._steps.place, self._steps.dtype)
            self._totals[row] = total.to(self._steps.place)

    def _finished(self, row: int) -> Tensor:
        if row not in self._sums:
            self._make_room(row)
        sums, totals = self._sums.pop(row), self._totals.pop(row)
        if sums.dtype == torch.float32:
            mean = sums
        else:
            spare, self._spare_mean = self._spare_mean, None
            if spare is None or spare.device != sums.device:
                spare = torch.empty_like(sums, dtype=torch.float32)
            mean = spare.copy_(sums)
            self._spare.append(sums)
        if not finish(mean, totals, self._unseen):
            if sums.dtype == torch.float16:  # in float32 it will show whose fault it is
                raise OutOfRange
            raise FormatError(
                "network",
                expected="finite logits",
                found="NaN or infinity",
                remedy="check the image for NaN, and predict with precision fp32; if that "
                "fails too, the model is damaged",
                code="network-not-finite",
            )
        self._spare_totals.append(totals)
        return mean


@dataclass(frozen=True, slots=True)
class _Layer:
    start: int
    starts: tuple[tuple[int, int, int], ...]


def _layers(group: Group, axis: int, box: Box, rows: Box) -> Iterator[_Layer]:
    """Windows over ``box`` that reach into ``rows``, layer by layer in rising order."""
    window = group.window_ijk
    extents = [stop - start for start, stop in box]
    padded = [max(extent, length) for extent, length in zip(extents, window, strict=True)]
    corner = [
        start - (whole - extent) // 2
        for (start, _), whole, extent in zip(box, padded, extents, strict=True)
    ]
    found: dict[int, list[tuple[int, int, int]]] = {}
    for offset in window_starts(padded, window, group.overlap):
        i, j, k = (low + step for low, step in zip(corner, offset, strict=True))
        start = (i, j, k)
        if all(
            first < high and first + length > low
            for first, length, (low, high) in zip(start, window, rows, strict=True)
        ):
            found.setdefault(start[axis], []).append(start)
    for first in sorted(found):
        yield _Layer(first, tuple(found[first]))


class _InputRows:
    """The rows of the prepared image that the present layer needs; older ones are let go.

    Args:
        group: Image and window.
        axis: The axis of sweeping.
        span: Least and largest start of a window on each axis.
    """

    def __init__(self, group: Group, axis: int, span: Sequence[tuple[int, int]]) -> None:
        self._image = group.image
        self._window = group.window_ijk
        self._axis = axis
        self._low = [low for low, _ in span]
        high = [high + length for (_, high), length in zip(span, group.window_ijk, strict=True)]
        shape = group.image.grid.shape_ijk
        self._inside = [
            (max(0, a), min(b, n)) for a, b, n in zip(self._low, high, shape, strict=True)
        ]
        self._rows: dict[int, Tensor] = {}

    def window(self, start: tuple[int, int, int]) -> Tensor:
        """``(c, *window)`` float32, zero beyond the image."""
        axis = self._axis
        b, c = other_axes(axis)
        first, length = start[axis], self._window[axis]
        low, high = max(first, self._inside[axis][0]), min(first + length, self._inside[axis][1])
        for row in [row for row in self._rows if row < low]:
            del self._rows[row]
        self._fill(low, high)
        x_cijk = torch.zeros((self._image.channels, *self._window))
        x_acbc = x_cijk.permute(1 + axis, 0, 1 + b, 1 + c)
        source, target = [], []
        for a in (b, c):
            begin, end = self._inside[a]
            here = (max(begin, start[a]), min(end, start[a] + self._window[a]))
            source.append(slice(here[0] - begin, here[1] - begin))
            target.append(slice(here[0] - start[a], here[1] - start[a]))
        for row in range(low, high):
            x_acbc[row - first][(slice(None), *target)] = self._rows[row][(slice(None), *source)]
        return x_cijk

    def _fill(self, low: int, high: int) -> None:
        missing = [row for row in range(low, high) if row not in self._rows]
        if not missing:
            return
        begin, end = missing[0], missing[-1] + 1
        while begin < end:  # a few at a time: resampling needs several copies
            stop = min(begin + ROWS_AT_A_TIME, end)
            corners: list[tuple[int, int]] = list(self._inside)
            corners[self._axis] = (begin, stop)
            box_cijk = self._image.box([a for a, _ in corners], [z for _, z in corners])
            for row, x_cbc in enumerate(box_cijk.movedim(1 + self._axis, 0), start=begin):
                self._rows[row] = x_cbc.contiguous()
            begin = stop


def count_windows(group: Group, axis: int, box: Box, rows: Box) -> int:
    """Number of windows over ``box`` that reach into ``rows`` (see :class:`RowStream`)."""
    return sum(len(layer.starts) for layer in _layers(group, axis, box, rows))


def other_axes(axis: int) -> tuple[int, int]:
    """The two axes beside ``axis``, in rising order."""
    b, c = (other for other in range(3) if other != axis)
    return b, c


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's CPU allocator has no type for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _turned(x_bcijk: Tensor, turn: AxisTurn) -> Tensor:
    """The last three axes turned."""
    if turn.is_identity:
        return x_bcijk
    x_bcijk = x_bcijk.permute(0, 1, *(2 + source for source in turn.source_axes))
    return x_bcijk.flip([2 + axis for axis, flipped in enumerate(turn.flipped) if flipped])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, place: torch.device) -> Tensor:
    if place.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=place)
    # not torch's own: its threads would wait for each other over every small row
    return torch.from_numpy(np.zeros(shape, np.float16 if dtype == torch.float16 else np.float32))


def _zeroed(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        x.numpy().fill(0)
        return x
    return x.zero_()


def _fits_float16(x: Tensor) -> bool:
    """Whether numbers that go on growing as they did are within float16's range, with room left."""
    return float(x.abs().amax()) < torch.finfo(torch.float16).max / 8


def _is_constant(x_cijk: Tensor) -> bool:
    flat = x_cijk.flatten(1)
    return bool((flat.amin(dim=1) == flat.amax(dim=1)).all())


def _unseen_logits(classes: int, overlapping: bool) -> Tensor:
    logits = torch.full((classes,), -_BACKGROUND_LOGIT)
    if not overlapping:
        logits[0] = _BACKGROUND_LOGIT
    return logits
