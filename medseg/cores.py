"""How many processor cores there are to work with."""

import os


def usable_cores() -> int:
    """Cores that this process may use, at least one.

    A scheduler of a cluster, a container or ``taskset`` may leave it fewer than the machine has;
    where the system does not tell (macOS, Windows), those of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
