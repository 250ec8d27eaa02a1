"""Cases in memory, and the order and randomness in which patches are drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.transforms import Compose, RandomizableTrait
from torch.utils.data import Dataset, Sampler

from medseg.data.case import Case
from medseg.events import Cancelled, Listener
from medseg.training.transforms import ReadCase

__all__ = ["DrawSampler", "SeededCases", "cache_cases", "training_loader"]

_SEED_LIMIT = 2**32


def cache_cases(
    cases: Sequence[Case], read: ReadCase, transforms: Compose, listener: Listener, *, stage: str
) -> CacheDataset:
    """Read all cases once and keep what the fixed transforms made of them.

    The cache is filled here and not by MONAI, so that errors arrive as they were raised and the
    listener can stop between two cases.

    Args:
        cases: To be read.
        read: The first of ``transforms``.
        transforms: Applied to a case; those before the first random one are applied here.
        listener: Told of every case under ``stage``.
        stage: What to call it.

    Raises:
        Cancelled: If the listener asked to stop; asked after every case.
        MedsegError: What reading or preparing a case raised.
    """
    listener.started(stage, len(cases))
    first_random = transforms.get_index_of_first(lambda one: isinstance(one, RandomizableTrait))
    kept = []
    for done, case in enumerate(cases, start=1):
        kept.append(transforms(read(case), start=1, end=first_random))
        listener.advanced(stage, done)
        if listener.cancelled():
            raise Cancelled
    return CacheDataset(data=list(cases), transform=transforms, runtime_cache=kept, progress=False)


class DrawSampler(Sampler[tuple[int, int]]):
    """Shuffled case numbers, each with the seed of its patch.

    Order and seeds follow from the run's seed, the epoch and the place in it alone: a run can be
    repeated, and continued at any step, whatever drew random numbers meanwhile and however many
    processes prepare the patches.

    Where several processes train together, each gets its part of every batch: the batches of all
    of them together are those of one process alone. What does not fill a batch is then left out.

    Args:
        count: Number of cases.
        seed: Seed of the run.
        part: Number of this process.
        parts: Number of processes.
        batch_size: Cases of a batch over all processes; of no consequence for one process.
    """

    def __init__(
        self, count: int, seed: int, *, part: int = 0, parts: int = 1, batch_size: int = 1
    ) -> None:
        self.count = count
        self.seed = seed
        self.part = part
        self.parts = parts
        self.batch_size = batch_size
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        if self.parts == 1:
            return self.count
        return self.count // self.batch_size * (self.batch_size // self.parts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        entropy = (self.seed % _SEED_LIMIT, self.epoch)
        self.epoch += 1
        source = np.random.default_rng(entropy)
        order = source.permutation(self.count)
        seeds = source.integers(_SEED_LIMIT, size=self.count)
        draws = list(zip(order.tolist(), seeds.tolist(), strict=True))
        if self.parts > 1:
            share = self.batch_size // self.parts
            draws = [
                draw
                for first in range(0, self.count - self.batch_size + 1, self.batch_size)
                for draw in draws[first + self.part * share : first + (self.part + 1) * share]
            ]
        skip, self.skip = self.skip, 0
        yield from draws[skip:]


class SeededCases(Dataset[Any]):
    """Patches of cached cases, drawn with the seed that comes with the case number.

    Args:
        cached: Cases with their transforms.
    """

    def __init__(self, cached: CacheDataset) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, draw: tuple[int, int]) -> Any:  # noqa: ANN401 - as the transforms give
        index, seed = draw
        self.cached.transform.set_random_state(seed=seed)
        threads = torch.get_num_threads()
        # patches are small: what several threads gain is less than what they wait for each other as
        # soon as anything else runs on the machine (30 times as long was measured under load)
        torch.set_num_threads(1)
        try:
            return self.cached[index]
        finally:
            torch.set_num_threads(threads)


def training_loader(
    cached: CacheDataset,
    *,
    batch_size: int,
    seed: int,
    workers: int,
    device: torch.device,
    part: int = 0,
    parts: int = 1,
) -> DataLoader:
    """Batches of patches of all cases, newly shuffled in every epoch.

    A short last batch is left out where there is a full one. Of ``parts`` processes, number
    ``part`` gets its share of each batch.
    """
    share = batch_size // parts
    return DataLoader(
        SeededCases(cached),
        batch_size=share,
        sampler=DrawSampler(len(cached), seed, part=part, parts=parts, batch_size=batch_size),
        drop_last=len(cached) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_interrupt if workers else None,
        collate_fn=list_data_collate,
        pin_memory=device.type == "cuda",
        # one of its own: the loader then leaves alone the numbers that the network draws
        generator=torch.Generator().manual_seed(seed % _SEED_LIMIT),
    )


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the main one decides when to stop."""
    import signal  # noqa: PLC0415 - runs in a worker process alone

    signal.signal(signal.SIGINT, signal.SIG_IGN)
