"""Preparing many cases: in memory where they fit, else in files that the next run finds again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Literal, TypeVar

import psutil

from medseg.cores import usable_cores
from medseg.data.datalist import Case
from medseg.data.prepared import MemoryCase, Preparation, PreparedCase, StoredCase, save_prepared
from medseg.errors import FormatError, ResourceError
from medseg.events import Cancelled, Listener

__all__ = ["SUFFIX", "CachePlan", "prepare_cases"]

SUFFIX = ".prepared"

ResultT = TypeVar("ResultT")

_FREE_SHARE = 0.5
_STALE_S = 3600.0
_CASES_PER_PROCESS = 4


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Where prepared cases are kept.

    Args:
        where: ``memory``; ``disk``: one file per case in ``folder``; ``auto``: in memory until they
            take ``limit_bytes``, then all on disk.
        folder: For the files; None allows memory alone.
        processes: How many prepare cases at a time; None for one per core, where there are enough
            cases to be worth their start.
        limit_bytes: For ``auto``; None for half of the memory that is free.
    """

    where: Literal["auto", "memory", "disk"] = "memory"
    folder: Path | None = None
    processes: int | None = None
    limit_bytes: int | None = None

    def path(self, key: str) -> Path:
        """The file of a case."""
        if self.folder is None:
            raise ValueError("a plan without a folder keeps no files")
        return self.folder / f"{key[:32]}{SUFFIX}"


def prepare_cases(
    cases: Sequence[Case],
    prepare: Preparation,
    listener: Listener,
    *,
    stage: str,
    plan: CachePlan,
) -> tuple[PreparedCase, ...]:
    """Prepare all cases, taking those from files that are there already.

    Files are written whole or not at all, so a run killed at any moment is continued by the next
    one. Every file is compared with its checksums before it is used; a damaged one is named to the
    listener and made again.

    Args:
        cases: To be read.
        prepare: How.
        listener: Told of every case under ``stage``.
        stage: What to call it.
        plan: Where they are kept.

    Returns:
        One per case, in their order.

    Raises:
        Cancelled: If the listener asked to stop; asked after every case.
        ResourceError: If a file cannot be written, or a process was killed.
        MedsegError: What reading or preparing a case raised.
    """
    listener.started(stage, len(cases))
    on_disk = plan.where == "disk" and plan.folder is not None
    if not on_disk:
        limit = _limit(plan)
        held = _in_memory(cases, prepare, listener, stage, plan, limit)
        if held is not None:
            return held
        listener.noted(f"the prepared cases take more than {limit / 2**30:.1f} GiB: kept on disk")
    return _on_disk(cases, prepare, listener, stage, plan)


def _limit(plan: CachePlan) -> float:
    if plan.where == "memory" or plan.folder is None:
        return float("inf")
    if plan.limit_bytes is not None:
        return plan.limit_bytes
    return _FREE_SHARE * float(psutil.virtual_memory().available)


def _in_memory(
    cases: Sequence[Case],
    prepare: Preparation,
    listener: Listener,
    stage: str,
    plan: CachePlan,
    limit: float,
) -> tuple[PreparedCase, ...] | None:
    """All cases in memory, or None if they do not fit."""

    def one(case: Case) -> MemoryCase:
        if plan.folder is None:
            return prepare(case)
        key = prepare.key(case)
        stored = _open(plan.path(key), case, key, listener)
        return prepare(case) if stored is None else stored.in_memory()

    held: dict[int, MemoryCase] = {}
    total = 0
    with ThreadPoolExecutor(max_workers=_processes(plan, len(cases))) as pool:
        for number, prepared in _completed(pool, [(one, case) for case in cases]):
            held[number] = prepared
            total += prepared.bytes
            if total > limit:
                for place, keep in held.items():
                    _save(keep, cases[place], prepare, plan)
                return None
            listener.advanced(stage, len(held))
            if listener.cancelled():
                raise Cancelled
    return tuple(held[number] for number in range(len(cases)))


def _on_disk(
    cases: Sequence[Case], prepare: Preparation, listener: Listener, stage: str, plan: CachePlan
) -> tuple[PreparedCase, ...]:
    folder = plan.folder
    if folder is None:
        raise ValueError("a plan without a folder keeps no files")
    _make_folder(folder)
    keys = [prepare.key(case) for case in cases]
    ready: dict[int, StoredCase] = {}
    for number, (case, key) in enumerate(zip(cases, keys, strict=True)):
        stored = _open(plan.path(key), case, key, listener)
        if stored is not None:
            ready[number] = stored
            listener.advanced(stage, len(ready))
        if listener.cancelled():
            raise Cancelled
    missing = [number for number in range(len(cases)) if number not in ready]
    jobs = [(_Maker(prepare, plan), cases[number]) for number in missing]
    workers = _processes(plan, len(missing))
    pool: Executor = (
        ThreadPoolExecutor(1)
        if workers == 1
        else ProcessPoolExecutor(workers, _context(), initializer=_worker)
    )
    try:
        for place, path in _completed(pool, jobs):
            number = missing[place]
            ready[number] = StoredCase(path, cases[number].id, keys[number])
            listener.advanced(stage, len(ready))
            if listener.cancelled():
                raise Cancelled
    except BrokenProcessPool as error:
        raise ResourceError(
            "preparing cases",
            expected="processes that come to their end",
            found="one that was killed, most likely for want of memory",
            remedy="lower training.preparation_processes; what is finished is kept",
            code="preparation-killed",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(ready[number] for number in range(len(cases)))


@dataclass(frozen=True, slots=True)
class _Maker:
    """Prepares a case and writes its file; crosses to another process."""

    prepare: Preparation
    plan: CachePlan

    def __call__(self, case: Case) -> Path:
        return _save(self.prepare(case), case, self.prepare, self.plan)


def _save(prepared: MemoryCase, case: Case, prepare: Preparation, plan: CachePlan) -> Path:
    key = prepare.key(case)
    path = plan.path(key)
    _make_folder(path.parent)
    save_prepared(prepared, path, key)
    return path


def _open(path: Path, case: Case, key: str, listener: Listener) -> StoredCase | None:
    """The file of a case, checked; None if it is absent or was damaged."""
    if not path.is_file():
        return None
    try:
        stored = StoredCase(path, case.id, key)
        stored.file.check()
    except FormatError as error:
        listener.noted(f"case {case.id}: {path.name} holds {error.found}; it is made again")
        with suppress(OSError):
            path.unlink()
        return None
    return stored


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # what a killed run left behind; one that still runs has touched its own files lately
        for path in folder.glob(f".*.tmp{SUFFIX}"):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(
            str(folder),
            expected="a folder that can be written",
            found=error.strerror or type(error).__name__,
            remedy="choose another one as training.cache_folder, or set training.cache to memory",
            code="output-unwritable",
        ) from error


def _processes(plan: CachePlan, count: int) -> int:
    if plan.processes is not None:
        return max(1, min(plan.processes, count))
    return max(1, min(usable_cores(), count // _CASES_PER_PROCESS))


def _completed(
    pool: Executor, jobs: Sequence[tuple[Callable[[Case], ResultT], Case]]
) -> Iterator[tuple[int, ResultT]]:
    """Results as they come, with the number of their job; few wait in memory at a time."""
    waiting: dict[Future[ResultT], int] = {}
    numbered = iter(enumerate(jobs))
    ahead = 2 * getattr(pool, "_max_workers", 1)
    try:
        while True:
            while len(waiting) < ahead and (job := next(numbered, None)) is not None:
                number, (make, case) = job
                waiting[pool.submit(make, case)] = number
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()


def _context() -> BaseContext:
    """Processes that begin clean, of threads and of a GPU, after one import for all of them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["medseg.data.prepared"])
    return context


def _worker() -> None:
    """Ctrl-C reaches all processes of a terminal; the main one decides when to stop.

    One thread each: the processes share the cores.
    """
    import torch  # noqa: PLC0415 - runs in a process of its own alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
