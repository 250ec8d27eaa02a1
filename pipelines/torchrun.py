"""Several processes that `torchrun` starts, each with the same command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from medseg.errors import ConfigError, ResourceError
from medseg.ops.device import choose_device

__all__ = ["is_first_process", "processes_together"]

# the others wait while the first process reads, validates and writes
_PATIENCE = timedelta(hours=2)


@contextmanager
def processes_together(device: str) -> Iterator[torch.device]:
    """Join the processes that were started together, for the length of the block.

    Args:
        device: As the settings name it; on a machine with several GPUs each process takes its own.

    Yields:
        The device of this process.

    Raises:
        ConfigError: If there is no such device, or ``processes`` if the environment speaks of
            several processes and does not say how they meet.
        ResourceError: ``processes-apart`` if they do not find each other.
    """
    place = choose_device(device)
    if _started_together() < 2 or dist.is_initialized():
        yield place
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE
        )
    except (ValueError, RuntimeError) as error:
        raise ResourceError(
            "processes",
            expected="to meet the others at MASTER_ADDR and MASTER_PORT",
            found=str(error).splitlines()[0],
            remedy="start all of them by one torchrun command on each machine, with a free port",
            code="processes-apart",
        ) from error
    try:
        yield place
    finally:
        dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process prints the result: the only one, or rank 0 of several."""
    return _started_together() < 2 or os.environ["RANK"] == "0"


def _started_together() -> int:
    """How many processes torchrun started; 1 without it.

    Raises:
        ConfigError: ``processes``.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return 1
    numbers = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    wrong = [name for name in numbers if not os.environ.get(name, "").isdecimal()]
    wrong += [name for name in ("MASTER_ADDR",) if not os.environ.get(name)]
    if wrong:
        raise ConfigError(
            "environment",
            expected="all of WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun "
            "sets them, or no WORLD_SIZE",
            found=f"WORLD_SIZE={count} and no usable {', '.join(wrong)}",
            remedy="start the processes by torchrun, or unset WORLD_SIZE to train in one",
            code="processes",
        )
    return int(count)
