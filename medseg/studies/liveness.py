"""Whether a process that noted itself somewhere still lives, on this machine or on another.

On one machine the process table tells. A process id means nothing on another machine, or in
another container, and clocks of machines differ: there a process counts as dead once a counter that
it should keep raising has stood still for a while by the clock of who looks.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["BEAT_EVERY_S", "Self", "Watch", "this_process"]

BEAT_EVERY_S = 10.0
"""How often a living process raises its counter."""

_STILL_S = 6 * BEAT_EVERY_S


@dataclass(frozen=True, slots=True)
class Self:
    """What tells a process from all others.

    Args:
        host: Hash of machine, boot and container; the name of the machine does not leave it.
        pid: Its number there.
        born: When it started, by that machine's clock, in seconds.
    """

    host: str
    pid: int
    born: float


def this_process() -> Self:
    """This process."""
    return Self(_host(), os.getpid(), psutil.Process().create_time())


@functools.cache
def _host() -> str:
    parts = [socket.gethostname()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        parts += [boot.read_text(encoding="ascii").strip(), str(namespace.stat().st_ino)]
    except OSError:  # not Linux
        parts.append(f"{psutil.boot_time():.0f}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Watch:
    """Remembers when it saw which counter, for processes of other machines.

    Args:
        still_s: How long a counter must stand still.
    """

    still_s: float = _STILL_S
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def is_dead(self, token: str, process: Self, beat: int) -> bool:
        """Whether a process is known to be dead.

        Args:
            token: Name of the process where it noted itself.
            process: What it noted.
            beat: Its counter now.
        """
        if process.host == _host():
            try:
                there = psutil.Process(process.pid)
                # one that ended but was not asked about by its parent has a number still
                ended = there.status() == psutil.STATUS_ZOMBIE
                return bool(ended or abs(there.create_time() - process.born) > 1.0)
            except psutil.NoSuchProcess:
                return True
            except psutil.Error:
                return False
        now = time.monotonic()
        seen = self._seen.get(token)
        if seen is None or seen[0] != beat:
            self._seen[token] = (beat, now)
            return False
        return now - seen[1] > self.still_s
