"""A small pool of threads for kernels that release the interpreter lock."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["in_slabs"]

_MIN_WORK = 1 << 16
_SLABS_PER_THREAD = 4

_pools: dict[int, ThreadPoolExecutor] = {}
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

    def take_turns() -> None:
        # next() of a counter is one step under the interpreter lock
        while (turn := next(turns)) < slabs:
            work(count * turn // slabs, count * (turn + 1) // slabs)

    others = [_pool(threads - 1).submit(take_turns) for _ in range(threads - 1)]
    try:
        take_turns()
    finally:
        # memory must outlive every slab, also after an error; who has not begun need not
        for other in others:
            if not other.cancel():
                other.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="medseg-kernel")
        return _pools[threads]


def _forget_pools() -> None:
    global _lock  # noqa: PLW0603 - a fork copies it as it is, perhaps locked
    _lock = threading.Lock()
    _pools.clear()


# threads do not survive a fork, and a pool without its threads would wait for ever
os.register_at_fork(after_in_child=_forget_pools)
