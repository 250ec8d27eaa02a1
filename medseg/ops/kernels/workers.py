"""Threads for kernels that release the interpreter lock."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch

__all__ = ["in_slabs"]

_MIN_WORK = 1 << 16
_SLABS_PER_THREAD = 4

_jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
_helpers = 0
_lock = threading.Lock()


def in_slabs(work: Callable[[int, int], object], count: int, size: int) -> None:
    """Run ``work(first, last)`` over slabs of ``range(count)`` in torch's number of threads.

    The calling thread takes part. Threads take slab after slab, so that one that the system holds
    up holds up no more than its slab.

    Args:
        work: Handles the indices ``first <= n < last``; must release the lock to gain from this.
        count: Number of indices.
        size: Number of elements in all; a thread gets 65,536 or more.
    """
    threads = max(1, min(torch.get_num_threads(), count, size // _MIN_WORK))
    if threads == 1:
        work(0, count)
        return
    slabs = min(count, _SLABS_PER_THREAD * threads)
    turns = itertools.count()
    tickets = [None] * (threads - 1)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def take_turns() -> None:
        # next() of a counter is one step under the interpreter lock, as is pop() of a list
        while (turn := next(turns)) < slabs:
            work(count * turn // slabs, count * (turn + 1) // slabs)

    def helps() -> None:
        try:
            tickets.pop()
        except IndexError:
            # too late: the job is done
            return
        try:
            take_turns()
        except BaseException as problem:
            ended.put(problem)
        else:
            ended.put(None)

    # a future per helper costs more than the queue itself
    _start_helpers(threads - 1)
    for _ in range(threads - 1):
        _jobs.put(helps)
    try:
        take_turns()
    finally:
        # memory must outlive every slab, also after an error; who has not begun need not
        waiting = threads - 1
        while tickets:
            try:
                tickets.pop()
            except IndexError:
                break
            waiting -= 1
        problems = [ended.get() for _ in range(waiting)]
    for problem in problems:
        if problem is not None:
            raise problem


def _start_helpers(count: int) -> None:
    global _helpers  # noqa: PLW0603 - they live as long as the process
    if _helpers >= count:
        return
    with _lock:
        while _helpers < count:
            name = f"medseg-kernel-{_helpers}"
            threading.Thread(target=_help, args=(_jobs,), name=name, daemon=True).start()
            _helpers += 1


def _help(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()


def _forget_helpers() -> None:
    global _jobs, _helpers, _lock
    _jobs, _helpers, _lock = SimpleQueue(), 0, threading.Lock()


# threads do not survive a fork, and a job for threads that are gone would wait for ever
os.register_at_fork(after_in_child=_forget_helpers)
