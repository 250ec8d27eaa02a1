"""Work on many files, in several threads where waiting for them is what takes the time.

Python's lock lets one thread compute at a time. Where files lie in memory or on a fast disk,
parsing them is nearly all of the work, and threads only hand the lock to each other, which costs
more than it gains. Over a network most of the time is waiting, which threads do together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, thread_time
from typing import TypeVar

__all__ = ["map_files"]

_MOST_THREADS = 16
_LEAST_FOR_A_THREAD = 8
_AT_A_TIME = 16
_WAITING = 0.5

T = TypeVar("T")
R = TypeVar("R")


def map_files(
    work: Callable[[T], R],
    tasks: Sequence[T],
    *,
    threads: int | None = None,
    least: int = _LEAST_FOR_A_THREAD,
) -> list[R]:
    """Do something with each of many files.

    The first ones are done in this thread; as soon as half of the time that some of them took was
    waiting, the rest is shared among threads.

    Args:
        work: What to do; may be called in any thread.
        tasks: What it is called with.
        threads: Most that work at a time; None for as many as are useful.
        least: Tasks that a thread is worth its start for.

    Returns:
        What it returned, in the order of the tasks.

    Raises:
        Exception: The first that ``work`` raised.
    """
    most = min(_MOST_THREADS if threads is None else threads, len(tasks) // least)
    found: list[R] = []
    for start in range(0, len(tasks), _AT_A_TIME):
        began_s, began_cpu_s = perf_counter(), thread_time()
        found += [work(task) for task in tasks[start : start + _AT_A_TIME]]
        took_s, computed_s = perf_counter() - began_s, thread_time() - began_cpu_s
        rest = tasks[start + _AT_A_TIME :]
        if most > 1 and rest and took_s - computed_s > _WAITING * took_s:
            with ThreadPoolExecutor(min(most, len(rest))) as pool:
                return found + list(pool.map(work, rest))
    return found
