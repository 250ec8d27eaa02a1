"""Damage to files for tests: bytes overwritten, ends cut off; and bounds within which to fail."""

from __future__ import annotations

import signal
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import strategies as st

Damage = tuple[list[tuple[float, bytes]], float]


@st.composite
def damages(draw) -> Damage:
    """Places and bytes to overwrite, and a length to cut to, both as shares of the file."""
    edits = draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=0, max_size=4
        )
    )
    return edits, draw(st.one_of(st.just(1.0), st.floats(0, 1)))


def damaged(content: bytes, damage: Damage) -> bytes:
    """The content with a damage."""
    edits, length = damage
    changed = bytearray(content)
    for share, piece in edits:
        at = int(share * (len(changed) - 1))
        changed[at : at + len(piece)] = piece
    return bytes(changed[: int(length * len(changed))])


class Forms(dict):
    """By name; hypothesis shows what a failing test was given, and bytes tell nobody anything."""

    def __repr__(self) -> str:
        return f"Forms({', '.join(self)})"


@contextmanager
def bounded(most_bytes: int, most_s: float = 30.0) -> Iterator[None]:
    """Fail if the block takes more memory from Python and numpy, or far more time, than it may.

    Time is the process's own, so that a busy machine fails nothing.
    """

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"still at work after {most_s} s")

    in_time = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGVTALRM, late) if in_time else None
    if in_time:
        signal.setitimer(signal.ITIMER_VIRTUAL, most_s)
    tracemalloc.start(1)
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        if in_time:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
    assert peak <= most_bytes, f"{peak} bytes at the peak"
