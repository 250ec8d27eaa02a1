"""What one case is like: geometry, intensities and label counts, several cases at a time."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.core import LabelScheme
from medseg.core.labelmap import label_counts
from medseg.cores import usable_cores
from medseg.data.case import Case, read_labelled
from medseg.errors import MedsegError, ResourceError
from medseg.events import Cancelled, Listener

__all__ = ["CaseFacts", "default_jobs", "each_case", "measure_case", "measure_cases"]

FactT = TypeVar("FactT")

_MOST_JOBS = 8
_SAMPLE = 200_000
_PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """One case that could be read.

    Args:
        id: The case.
        shape_ijk: Extents as stored.
        spacing_mm: Distance between voxel centres along I, J, K.
        orientation: Nearest anatomical code, such as ``LPS``.
        image_sha256: Hash of the intensities of all channels, whatever file they lie in.
        percentiles: For each channel the 0.5th, 50th and 99.5th percentile of its voxels.
        voxels: Label value to number of voxels, background and absent ones left out.
        voxel_ml: Volume of a voxel.
    """

    id: str
    shape_ijk: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    image_sha256: str
    percentiles: tuple[tuple[float, float, float], ...]
    voxels: dict[int, int]
    voxel_ml: float


def measure_case(case: Case, channels: Sequence[str], scheme: LabelScheme) -> CaseFacts:
    """Read a case and measure it.

    Raises:
        MedsegError: As :func:`~medseg.data.case.read_labelled`.
    """
    volume, labels = read_labelled(case, channels, scheme)
    counts = label_counts(labels.data_ijk)
    grid = volume.grid
    return CaseFacts(
        id=case.id,
        shape_ijk=grid.shape_ijk,
        spacing_mm=grid.spacing_mm,
        orientation=grid.orientation,
        image_sha256=_hash(volume.data_cijk),
        percentiles=tuple(_percentiles(channel) for channel in volume.data_cijk),
        voxels={int(value): int(counts[value]) for value in np.flatnonzero(counts) if value},
        voxel_ml=grid.voxel_volume_mm3 / 1000.0,
    )


def default_jobs(cases: int) -> int:
    """How many processes read cases where nobody said: one per core, at most 8 and the cases."""
    return max(1, min(usable_cores(), _MOST_JOBS, cases))


def measure_cases(
    cases: Sequence[Case],
    channels: Sequence[str],
    scheme: LabelScheme,
    *,
    jobs: int,
    listener: Listener,
) -> Iterator[tuple[Case, CaseFacts | MedsegError]]:
    """Measure every case, several at a time; what cannot be read is an error, not the end.

    A process that is killed (for memory, most often) fails the cases that were in flight; the
    others go on in new processes.

    Args:
        cases: Which.
        channels: The dataset's channels.
        scheme: The dataset's label scheme.
        jobs: How many processes; 1 reads in this one.
        listener: Progress and cancelling.

    Yields:
        Case and facts, as they come.

    Raises:
        Cancelled: If the listener asked to stop.
    """
    yield from each_case(
        partial(measure_case, channels=tuple(channels), scheme=scheme),
        cases,
        jobs=jobs,
        listener=listener,
        stage="checking cases",
    )


def each_case(
    work: Callable[[Case], FactT],
    cases: Sequence[Case],
    *,
    jobs: int,
    listener: Listener,
    stage: str,
) -> Iterator[tuple[Case, FactT | MedsegError]]:
    """Do something with every case, several at a time, as :func:`measure_cases` does.

    Args:
        work: Of one case; must be picklable where there are several jobs.
        cases: Which.
        jobs: How many processes; 1 works in this one.
        listener: Progress and cancelling.
        stage: What the listener is told that this is.

    Yields:
        Case and result, or what went wrong with it, as they come.

    Raises:
        Cancelled: If the listener asked to stop.
    """
    listener.started(stage, len(cases))
    attempt = partial(_attempted, work)
    results = map(attempt, cases) if jobs == 1 else _in_processes(attempt, cases, jobs, listener)
    for done, result in enumerate(results, start=1):
        yield result
        listener.advanced(stage, done)
        if listener.cancelled():
            raise Cancelled


def _attempted(work: Callable[[Case], FactT], case: Case) -> tuple[Case, FactT | MedsegError]:
    try:
        return case, work(case)
    except MedsegError as error:
        return case, error
    except MemoryError:
        return case, _out_of_memory(case)


def _in_processes(
    attempt: Callable[[Case], tuple[Case, FactT | MedsegError]],
    cases: Sequence[Case],
    jobs: int,
    listener: Listener,
) -> Iterator[tuple[Case, FactT | MedsegError]]:
    left = list(cases)
    while left:
        with ProcessPoolExecutor(jobs, _context(), _ignore_interrupts) as pool:
            waiting: dict[Future[Any], Case] = {}
            try:
                while left or waiting:
                    while left and len(waiting) < 2 * jobs:
                        case = left.pop(0)
                        waiting[pool.submit(attempt, case)] = case
                    ready, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in ready:
                        result = future.result()
                        del waiting[future]
                        yield result
                    if listener.cancelled():
                        pool.shutdown(cancel_futures=True)
                        raise Cancelled
            except BrokenProcessPool:
                for case in waiting.values():
                    yield case, _out_of_memory(case)


def _context() -> BaseContext:
    """Processes that inherit nothing from this one, whose threads a plain fork would lose."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["medseg.data.facts", "medseg.io.nifti"])
    return context


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which lets cases in flight finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _out_of_memory(case: Case) -> ResourceError:
    return ResourceError(
        f"case {case.id}",
        expected="memory enough to read it",
        found="that memory ran out, or that its process was killed",
        remedy="use fewer jobs, --jobs 1",
        code="out-of-memory",
    )


def _hash(data_cijk: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(str(data_cijk.shape).encode())
    for channel in data_cijk:
        for k in range(channel.shape[2]):  # in one order and type, however it is stored
            digest.update(np.ascontiguousarray(channel[:, :, k], dtype=np.float32).data)
    return digest.hexdigest()


def _percentiles(channel_ijk: npt.NDArray[Any]) -> tuple[float, float, float]:
    flat = channel_ijk.ravel(order="K")
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    low, middle, high = np.percentile(sample.astype(np.float32), _PERCENTILES)
    return float(low), float(middle), float(high)
