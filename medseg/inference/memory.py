"""How much memory a prediction will take, known before it starts, and how much it took.

The plan adds up what the engine will hold at its worst moment. Arrays are counted; what cannot be
counted, the network's own working memory, is measured by running it once on one batch of windows.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil
import torch

from medseg.errors import ResourceError
from medseg.events import Silent
from medseg.inference.engine import MOST_STRIPS, PROBABILITY_BYTES, StreamingEngine, Sweep
from medseg.inference.sweep import ROWS_AT_A_TIME, Group, Progress, other_axes
from medseg.inference.transfer import SLOTS
from medseg.ops.resample import axis_taps
from medseg.ops.sums import add_weighted, finish
from medseg.ops.winners import Decision, decide_row

__all__ = [
    "DryPass",
    "Item",
    "MemoryPlan",
    "PeakMeter",
    "dry_pass",
    "in_words",
    "measured_vram",
    "plan_memory",
    "program_bytes",
]

Place = Literal["ram", "vram"]

_SLACK_BYTES = 24 << 20
"""What Python objects and allocators take beside the arrays."""

_WRITING_BYTES = 96 << 20
"""What statistics, pictures and the libraries of file formats take after the windows."""

_MOST_OF_LOADING = 1 << 27
_WRITER_BYTES = 1 << 25
"""Probabilities that the writer gathers before it compresses them."""

_SCATTER = 1.08
"""The program's own memory differs from run to run: the limit named to the user allows for it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is held at the worst moment.

    Args:
        name: What it is.
        place: RAM, or memory of the GPU.
        bytes: How much.
    """

    name: str
    place: Place
    bytes: int


@dataclass(frozen=True, slots=True)
class DryPass:
    """What one batch of windows costs.

    Args:
        batch: Windows in it.
        ram_bytes: Memory that the process grew by at most.
        vram_bytes: The same on the GPU.
        seconds: Time of one forward call of every network and mirroring.
        classes: Channels of the answer.
    """

    batch: int
    ram_bytes: int
    vram_bytes: int
    seconds: float
    classes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a prediction will hold, and how it will go about it.

    Args:
        items: Everything held at the worst moment.
        sweep: How the image will be gone through.
        windows: Windows over all groups of networks.
        seconds: What they will take by the dry pass, skipped windows not counted.
        max_ram_bytes: The limit that was asked for, or None.
        max_vram_bytes: The same for the GPU.
    """

    items: tuple[Item, ...]
    sweep: Sweep
    windows: int
    seconds: float
    max_ram_bytes: int | None = None
    max_vram_bytes: int | None = None

    @property
    def ram_bytes(self) -> int:
        """Predicted peak of the process's memory."""
        return sum(item.bytes for item in self.items if item.place == "ram")

    @property
    def vram_bytes(self) -> int:
        """Predicted peak of the GPU's memory."""
        return sum(item.bytes for item in self.items if item.place == "vram")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the manifest and ``--json``."""
        return {
            "ram_bytes": self.ram_bytes,
            "vram_bytes": self.vram_bytes,
            "items": [
                {"name": item.name, "place": item.place, "bytes": item.bytes} for item in self.items
            ],
            "sweep_axis": "ijk"[self.sweep.axis],
            "window_batch": self.sweep.batch,
            "sums": "float16" if self.sweep.half else "float32",
            "sums_on": str(self.sweep.place),
            "strips": self.sweep.strips,
            "windows": self.windows,
            "seconds_estimated": round(self.seconds, 2),
            "max_ram_bytes": self.max_ram_bytes,
            "max_vram_bytes": self.max_vram_bytes,
        }


def dry_pass(group: Group, batch: int) -> DryPass:
    """Run every network of a group once on a batch of windows of noise.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: If not even that fits.
    """
    device = group.device
    on_gpu = device.type == "cuda"
    generator = torch.Generator().manual_seed(0)
    x_bcijk = torch.randn((batch, group.image.channels, *group.window_ijk), generator=generator)
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    x_bcijk = group.arranged(x_bcijk.to(device))
    _load_kernels()
    before = psutil.Process().memory_info().rss
    with PeakMeter() as meter, torch.inference_mode():
        began = time.perf_counter()
        answer = group.answer(x_bcijk, Progress(Silent(), 1))
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        classes = int(answer.shape[1])
    vram = torch.cuda.max_memory_allocated(device) - held if on_gpu else 0
    return DryPass(batch, max(0, meter.peak_bytes - before), vram, seconds, classes)


def _load_kernels() -> None:
    """Bring in what the first window would: it belongs to the program, not to the window."""
    logits_bcn, place = torch.zeros((2, 2, 2)), torch.ones((2, 2))
    finish(logits_bcn, place, torch.zeros(2))
    add_weighted([logits_bcn], [place], torch.zeros((1, 2, 2, 2)), torch.ones((1, 2, 2)), (0, 0))
    decide_row(logits_bcn, axis_taps(2, 3), axis_taps(2, 2), Decision((0, 1)))


def plan_memory(
    engine: StreamingEngine,
    passes: Sequence[DryPass],
    *,
    held: Sequence[Item],
    max_ram_bytes: int | None,
    max_vram_bytes: int | None,
) -> MemoryPlan:
    """The fastest way through the image that keeps to the limits.

    Tried in this order: the batch and the place of the engine's own sweep; fewer windows at a time;
    sums in float16; sums on the CPU; the image in 2, 4, ... 64 strips.

    Args:
        engine: Groups, decision and the sweep that is preferred.
        passes: One per group, of the sweep's batch.
        held: What is in memory all the time: the process, weights, input, output.
        max_ram_bytes: Limit for the process, or None.
        max_vram_bytes: Limit for the GPU, or None.

    Raises:
        ResourceError: ``memory-limit`` if nothing fits; it says what would.
    """
    least: MemoryPlan | None = None
    for sweep in _ways(engine.sweep):
        working = _items(engine, passes, sweep)
        items = (*held, *working, _reserve(held, working))
        plan = MemoryPlan(items, sweep, 0, 0.0, max_ram_bytes, max_vram_bytes)
        if _fits(plan):
            return _timed(engine, passes, plan)
        if least is None or (plan.vram_bytes, plan.ram_bytes) < (least.vram_bytes, least.ram_bytes):
            least = plan
    assert least is not None  # noqa: S101 - there is always at least one way
    short_of_ram = max_ram_bytes is not None and least.ram_bytes > max_ram_bytes
    name, limit, need = (
        ("--max-memory", max_ram_bytes, least.ram_bytes)
        if short_of_ram
        else ("--max-vram", max_vram_bytes, least.vram_bytes)
    )
    largest = max(
        (item for item in least.items if (item.place == "ram") == short_of_ram),
        key=lambda item: item.bytes,
    )
    raise ResourceError(
        name,
        expected=f"at least about {in_words(need)}, what this image and model need at the least",
        found=in_words(limit or 0),
        remedy=f"raise the limit to {in_words(int(_SCATTER * need), up=True)}; the largest part is "
        f"{largest.name} with {in_words(largest.bytes)}",
        code="memory-limit",
    )


def in_words(count: int, *, up: bool = False) -> str:
    """Bytes for people.

    >>> in_words(3 * 2**29)
    '1.50 GiB'
    """
    if count < 2**20:
        return f"{count} bytes"
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    value = count / unit
    digits = 2 if name == "GiB" else 0
    if up:
        value = math.ceil(value * 10**digits) / 10**digits
    return f"{value:.{digits}f} {name}"


def _ways(preferred: Sweep) -> Iterator[Sweep]:
    sweep = preferred
    yield sweep
    while sweep.batch > 1:
        sweep = replace(sweep, batch=sweep.batch // 2)
        yield sweep
    if not sweep.half:
        sweep = replace(sweep, half=True)
        yield sweep
    if sweep.place.type != "cpu":
        sweep = replace(sweep, place=torch.device("cpu"))
        yield sweep
    while sweep.strips < MOST_STRIPS:
        sweep = replace(sweep, strips=2 * sweep.strips)
        yield sweep


def _items(engine: StreamingEngine, passes: Sequence[DryPass], sweep: Sweep) -> list[Item]:
    items: list[Item] = []
    work_ram = work_vram = 0
    sums_at: Place = "ram" if sweep.place.type == "cpu" else "vram"
    sums = prepared = moving = 0
    for group, dry in zip(engine.groups, passes, strict=True):
        share = sweep.batch / dry.batch
        # a batch's answers become float32 one window at a time
        answer = 4 * dry.classes * math.prod(group.window_ijk)
        on_gpu = group.device.type == "cuda"
        work_ram = max(work_ram, int(dry.ram_bytes * share) + (0 if on_gpu else answer))
        work_vram = max(work_vram, int(dry.vram_bytes * share) + (answer if on_gpu else 0))
        sums += _sums_bytes(engine, group, dry, sweep)
        prepared += _prepared_bytes(engine, group, sweep)
        if on_gpu:
            slots = SLOTS * sweep.batch * group.image.channels * math.prod(group.window_ijk)
            moving += 4 * slots
    items.append(Item("network at work", "ram", work_ram))
    if work_vram:
        items.append(Item("network at work", "vram", work_vram))
    if moving:
        items.append(Item("windows on their way", "ram", moving))
        items.append(Item("windows on their way", "vram", moving))
    items.append(Item("slab of logits", sums_at, sums))
    items.append(Item("slab of input", "ram", prepared))
    items.append(Item("row of the result", "ram", _row_bytes(engine, passes, sweep)))
    return items


def _reserve(held: Sequence[Item], working: Sequence[Item]) -> Item:
    """What is kept free, and what writing takes beyond the windows' memory, given back by then."""
    labels = sum(item.bytes for item in held if item.name == "output")
    # a written file is read back and compared
    writing = 2 * labels + _WRITING_BYTES
    windows = sum(item.bytes for item in working if item.place == "ram")
    return Item("writing and reserve", "ram", max(_SLACK_BYTES, writing - windows))


def _sums_bytes(engine: StreamingEngine, group: Group, dry: DryPass, sweep: Sweep) -> int:
    rows, plane = _rows_and_plane(engine, group, sweep)
    taps = group.image.to_image[sweep.axis]
    wide = taps.weights.shape[1]
    # finished rows that wait to be interpolated, and the one made of them
    floats = (wide + 2 if wide > 1 else 1) * (2 if wide > 1 or sweep.half else 1)
    return plane * (rows * (4 + dry.classes * (2 if sweep.half else 4)) + floats * 4 * dry.classes)


def _prepared_bytes(engine: StreamingEngine, group: Group, sweep: Sweep) -> int:
    rows, plane = _rows_and_plane(engine, group, sweep, reach=True)
    b, c = other_axes(sweep.axis)
    image = group.image
    ratio = image.turned_grid.shape_ijk[sweep.axis] / image.grid.shape_ijk[sweep.axis]
    share = plane / max(1, image.grid.shape_ijk[b] * image.grid.shape_ijk[c])
    acquired = share * image.turned_grid.shape_ijk[b] * image.turned_grid.shape_ijk[c]
    # the rows as acquired, and the copies that resampling makes of them
    some = ROWS_AT_A_TIME * max(1.0, ratio) * max(acquired, plane) * 3
    windows = sweep.batch * math.prod(group.window_ijk)
    return int(4 * image.channels * (rows * plane + 2 * windows) + 4 * some)


def _rows_and_plane(
    engine: StreamingEngine, group: Group, sweep: Sweep, *, reach: bool = False
) -> tuple[int, int]:
    """Rows in memory and voxels of one of them, on the model's lattice."""
    cut = engine.strip_axis(sweep.axis)
    (beside,) = {0, 1, 2} - {sweep.axis, cut}
    shape = engine.model_extents(group)
    rows = min(group.window_ijk[sweep.axis], shape[sweep.axis])
    across = -(-shape[cut] // sweep.strips) + (3 if sweep.strips > 1 else 0)
    if reach and sweep.strips > 1:  # windows on the cuts reach beyond their strip
        across += 2 * group.window_ijk[cut]
    return rows, min(across, shape[cut]) * shape[beside]


def _row_bytes(engine: StreamingEngine, passes: Sequence[DryPass], sweep: Sweep) -> int:
    b, c = other_axes(sweep.axis)
    shape = list(engine.image_extents())
    cut = engine.strip_axis(sweep.axis)
    shape[cut] = -(-shape[cut] // sweep.strips)
    plane = shape[b] * shape[c]
    floats = 0
    if engine.decision.probabilities:
        numbers = passes[0].classes * plane
        whole = shape[sweep.axis] * numbers
        # a slab as it grows, and joined; then what waits to be compressed
        floats += 2 * min(4 * whole, max(PROBABILITY_BYTES, 4 * numbers))
        floats += min(whole, _WRITER_BYTES)
    if len(passes) > 1:
        floats += 3 * 4 * plane * passes[0].classes
    return plane * 4 + floats


def _fits(plan: MemoryPlan) -> bool:
    return (plan.max_ram_bytes is None or plan.ram_bytes <= plan.max_ram_bytes) and (
        plan.max_vram_bytes is None or plan.vram_bytes <= plan.max_vram_bytes
    )


def _timed(engine: StreamingEngine, passes: Sequence[DryPass], plan: MemoryPlan) -> MemoryPlan:
    windows, seconds = 0, 0.0
    for group, dry in zip(engine.groups, passes, strict=True):
        count = engine.count(group, plan.sweep)
        windows += count
        seconds += count * dry.seconds / dry.batch
    return replace(plan, windows=windows, seconds=seconds)


@dataclass(slots=True, eq=False)
class PeakMeter:
    """Largest resident memory of the process while the block runs.

    On Linux the kernel keeps the figure, exactly; elsewhere a thread looks every few milliseconds.
    Blocks may lie within each other.

    Attributes:
        peak_bytes: The largest so far.
    """

    peak_bytes: int = 0
    _sampler: _Sampler | None = field(default=None, repr=False)

    def __enter__(self) -> PeakMeter:
        with _lock:
            _note_peak()
            if not _forget_peak():
                self._sampler = _Sampler(self)
            _meters.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            _note_peak()
            _meters.remove(self)
        if self._sampler is not None:
            self._sampler.stop()

    def look(self) -> int:
        """The peak up to now."""
        with _lock:
            _note_peak()
        return self.peak_bytes


_meters: list[PeakMeter] = []
_lock = threading.Lock()
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class _Sampler(threading.Thread):
    def __init__(self, meter: PeakMeter) -> None:
        super().__init__(daemon=True)
        self._meter = meter
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.005):
            self._meter.peak_bytes = max(self._meter.peak_bytes, process.memory_info().rss)

    def stop(self) -> None:
        self._over.set()
        self.join()


def _note_peak() -> None:
    """Hand every open meter what the kernel has seen since it last forgot."""
    if not _meters:
        return
    peak = _kernels_peak() or psutil.Process().memory_info().rss
    for meter in _meters:
        meter.peak_bytes = max(meter.peak_bytes, peak)


def _kernels_peak() -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def program_bytes() -> int:
    """Memory of the process as it is, or as it was while libraries and models were loaded.

    Loading them maps more than stays resident. An earlier peak that lies further above than loading
    explains was something else's, and does not count.
    """
    resident = int(psutil.Process().memory_info().rss)
    peak = _peak_of_loading if _peak_of_loading is not None else _kernels_peak()
    return max(resident, min(peak or 0, resident + _MOST_OF_LOADING))


_peak_of_loading: int | None = None


def _forget_peak() -> bool:
    """Set the kernel's high-water mark back to what is resident now; False if it cannot be."""
    global _peak_of_loading  # noqa: PLW0603 - the kernel's mark is one per process, too
    if _peak_of_loading is None:
        _peak_of_loading = _kernels_peak()
    try:
        with _CLEAR.open("w") as stream:
            stream.write("5")
    except OSError:
        return False
    return _kernels_peak() is not None


@contextmanager
def measured_vram(device: torch.device) -> Iterator[list[int]]:
    """The largest memory that torch held on a GPU while the block runs, as the one entry of a list.

    Empty on other devices.
    """
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found.append(torch.cuda.max_memory_allocated(device))
