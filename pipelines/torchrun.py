"""Several processes that `torchrun` starts, each with the same command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from medseg.ops.device import choose_device

__all__ = ["processes_together"]

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
        ConfigError: If there is no such device.
    """
    place = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield place
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE
    )
    try:
        yield place
    finally:
        dist.destroy_process_group()
