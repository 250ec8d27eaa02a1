"""The processes that train together, or the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.errors import ConfigError, MedsegError, ResourceError

__all__ = ["Ranks"]

ValueT = TypeVar("ValueT")


class Ranks:
    """Who this process is among those that train together, and how they agree.

    Rank 0 decides, judges and writes; the others follow. All ranks must call the same methods in
    the same order. A process alone needs no initialised group.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    def share_of(self, batch_size: int) -> int:
        """Images of a batch that each process takes.

        Raises:
            ConfigError: If they cannot be shared evenly.
        """
        if batch_size % self.count:
            raise ConfigError(
                "training.batch_size",
                expected=f"a multiple of {self.count}, the number of processes that share a batch",
                found=str(batch_size),
                remedy="change it, or start another number of processes",
                code="batch-processes",
            )
        return batch_size // self.count

    def told(self, value: ValueT) -> ValueT:
        """What rank 0 has, on every rank: plain values only."""
        if self.alone:
            return value
        with _together():
            values = [value]
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def by_first(self, work: Callable[[], ValueT]) -> ValueT:
        """What rank 0 makes of some work, on every rank; the others wait.

        Raises:
            MedsegError: On every rank, if rank 0 meets one.
        """
        if self.alone:
            return work()
        outcome: tuple[ValueT | None, MedsegError | None] = (None, None)
        if self.first:
            try:
                outcome = (work(), None)
            except MedsegError as error:
                outcome = (None, error)
        value, refusal = self.told(outcome)
        if refusal is not None:
            raise refusal
        return value  # type: ignore[return-value]  # what the work gave, None or not

    def numbers(self, values: Sequence[float]) -> list[float]:
        """Numbers of rank 0 on every rank; quicker than :meth:`told`."""
        if self.alone:
            return list(values)
        with _together():
            tensor = torch.tensor(values, dtype=torch.float64)
            dist.broadcast(tensor, src=0)
        return [float(value) for value in tensor]

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over the ranks; not finite if one is not."""
        if self.alone:
            return value
        with _together():
            total = value.detach().clone()
            dist.all_reduce(total)
        return total / self.count

    def gathered(self, value: Any) -> list[Any]:  # noqa: ANN401 - plain values of any type
        """One value of every rank, in their order."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(values, value)
        return values

    def with_common_statistics(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with batch normalisation over the batch of all ranks.

        Raises:
            ConfigError: On a CPU, which PyTorch's ``SyncBatchNorm`` does not run on.
        """
        if self.alone:
            return network
        if device.type != "cuda":
            raise ConfigError(
                "training.sync_batch_norm",
                expected="false on a CPU",
                found="true",
                remedy="train on GPUs, or take the statistics of each process's part of the batch",
                code="sync-batch-norm",
            )
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted

    def parallel(self, network: nn.Module, *, every_weight_used: bool) -> nn.Module:
        """The network as the ranks train it in step; itself where there is one process.

        Args:
            network: On its device, the same weights on every rank.
            every_weight_used: Whether each step's loss depends on every weight.
        """
        if self.alone:
            return network
        with _together():
            return DistributedDataParallel(network, find_unused_parameters=not every_weight_used)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the failure of another process, met inside a step, into one sentence."""
        if self.alone:
            yield
            return
        with _together():
            yield


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except MedsegError:
        raise
    except RuntimeError as error:
        words = str(error).lower()
        if not any(word in words for word in ("peer", "connection", "gloo", "nccl", "timed out")):
            raise
        raise ResourceError(
            "training",
            expected="all processes to go on to the end",
            found="one that died or lost its connection",
            remedy="look at its own message, then go on from the last checkpoint with --resume",
            code="process-lost",
        ) from error
