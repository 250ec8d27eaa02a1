"""Prepared cases, and the order and randomness in which patches are drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, list_data_collate
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from medseg.data.case import Case
from medseg.data.prepared import PreparedCase
from medseg.data.preparing import CachePlan, prepare_cases
from medseg.events import Listener
from medseg.training.transforms import RandPatch, ReadCase

__all__ = ["DrawSampler", "PreparedCases", "SeededCases", "cache_cases", "training_loader"]

_SEED_LIMIT = 2**32

Draw = tuple[int, int, tuple[bool, ...]]
"""Number of the case, seed of its patches, and which of them hold a structure for sure."""


class PreparedCases(Dataset[Any]):
    """Prepared cases with the transforms that make samples of them.

    Args:
        cases: In memory or in files.
        transform: Of ``{"case": PreparedCase, "forced": truth values}``.
    """

    def __init__(self, cases: Sequence[PreparedCase], transform: Compose) -> None:
        self.cases = tuple(cases)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - as the transforms give
        return self.drawn(index, (False,) * self._samples())

    def drawn(self, index: int, forced: tuple[bool, ...]) -> Any:  # noqa: ANN401 - as above
        """A sample of one case; its patches hold a structure where ``forced`` says so."""
        return self.transform({"case": self.cases[index], "forced": forced})

    def _samples(self) -> int:
        first = self.transform.transforms[0]
        return first.samples if isinstance(first, RandPatch) else 1


def cache_cases(
    cases: Sequence[Case],
    read: ReadCase,
    transforms: Compose,
    listener: Listener,
    *,
    stage: str,
    plan: CachePlan | None = None,
) -> PreparedCases:
    """Prepare all cases once.

    Args:
        cases: To be read.
        read: How they are prepared.
        transforms: Applied whenever one is taken.
        listener: Told of every case under ``stage``.
        stage: What to call it.
        plan: Where they are kept; in memory if None.

    Raises:
        Cancelled: If the listener asked to stop; asked after every case.
        MedsegError: As :func:`~medseg.data.preparing.prepare_cases`.
    """
    prepared = prepare_cases(
        cases, read.preparation, listener, stage=stage, plan=plan or CachePlan()
    )
    return PreparedCases(prepared, transforms)


class DrawSampler(Sampler[Draw]):
    """Shuffled case numbers, each with the seed of its patches and those that hold a structure.

    Order and seeds follow from the run's seed, the epoch and the place in it alone: a run can be
    repeated, and continued at any step, whatever drew random numbers meanwhile and however many
    processes prepare the patches.

    Where several processes train together, each gets its part of every batch: the batches of all
    of them together are those of one process alone. What does not fill a batch is then left out.

    Patches that hold a structure for sure are dealt out evenly: among any ``n`` patches in a row
    there are ``n * foreground_share`` of them, rounded up or down. So every batch has its share,
    and over all batches it is exact; nnU-Net rounds it in every batch.

    Args:
        count: Number of cases.
        seed: Seed of the run.
        part: Number of this process.
        parts: Number of processes.
        batch_size: Cases of a batch over all processes; of no consequence for one process.
        samples: Patches of each draw of a case.
        foreground_share: Share of the patches that hold a structure for sure.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        part: int = 0,
        parts: int = 1,
        batch_size: int = 1,
        samples: int = 1,
        foreground_share: float = 0.0,
    ) -> None:
        self.count = count
        self.seed = seed
        self.part = part
        self.parts = parts
        self.batch_size = batch_size
        self.samples = samples
        self.foreground_share = Fraction(foreground_share).limit_denominator(10_000)
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        if self.parts == 1:
            return self.count
        return self.count // self.batch_size * (self.batch_size // self.parts)

    def __iter__(self) -> Iterator[Draw]:
        entropy = (self.seed % _SEED_LIMIT, self.epoch)
        first = self.epoch * self.count * self.samples
        self.epoch += 1
        source = np.random.default_rng(entropy)
        order = source.permutation(self.count)
        seeds = source.integers(_SEED_LIMIT, size=self.count)
        forced = [
            tuple(
                self._forced(first + place * self.samples + sample)
                for sample in range(self.samples)
            )
            for place in range(self.count)
        ]
        draws = list(zip(order.tolist(), seeds.tolist(), forced, strict=True))
        if self.parts > 1:
            share = self.batch_size // self.parts
            draws = [
                draw
                for first in range(0, self.count - self.batch_size + 1, self.batch_size)
                for draw in draws[first + self.part * share : first + (self.part + 1) * share]
            ]
        skip, self.skip = self.skip, 0
        yield from draws[skip:]

    def _forced(self, number: int) -> bool:
        share = self.foreground_share
        return (number + 1) * share // 1 > number * share // 1


class SeededCases(Dataset[Any]):
    """Patches of prepared cases, drawn as :class:`DrawSampler` says.

    Args:
        cached: Cases with their transforms.
    """

    def __init__(self, cached: PreparedCases) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, draw: Draw) -> Any:  # noqa: ANN401 - as the transforms give
        index, seed, forced = draw
        self.cached.transform.set_random_state(seed=seed)
        threads = torch.get_num_threads()
        # patches are small: what several threads gain is less than what they wait for each other as
        # soon as anything else runs on the machine (30 times as long was measured under load)
        torch.set_num_threads(1)
        try:
            return self.cached.drawn(index, forced)
        finally:
            torch.set_num_threads(threads)


def training_loader(
    cached: PreparedCases,
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
    patch = cached.transform.transforms[0]
    return DataLoader(
        SeededCases(cached),
        batch_size=share,
        sampler=DrawSampler(
            len(cached),
            seed,
            part=part,
            parts=parts,
            batch_size=batch_size,
            samples=patch.samples,
            foreground_share=patch.foreground_share,
        ),
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
