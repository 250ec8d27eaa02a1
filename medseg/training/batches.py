"""What the steps of a run are made of: batches in their order, made ready ahead of their use."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator

from monai.data import DataLoader

from medseg.training.batch import Batch

__all__ = ["StepBatches"]

_WAIT_S = 0.1


class StepBatches:
    """The batches of each step, epoch after epoch, from any step on.

    One pass over it is one epoch of ``len(self)`` steps. A thread goes through the epochs one after
    another and keeps up to ``ahead`` steps ready, also while the network is validated; which
    batches there are does not depend on it.

    Args:
        loader: Whose sampler is a :class:`~medseg.training.cases.DrawSampler`.
        accumulate: Batches of a step. What an epoch has beyond a multiple of it is left out, unless
            there is no more.
        ahead: Steps kept ready; 0 prepares each when it is asked for.
    """

    def __init__(self, loader: DataLoader, *, accumulate: int = 1, ahead: int = 2) -> None:
        self.loader = loader
        self.accumulate = accumulate
        self.ahead = ahead
        self._stream: Iterator[tuple[Batch, ...]] | None = None
        self._left: int = len(self)
        self._ready: queue.Queue[tuple[Batch, ...] | BaseException] = queue.Queue(max(1, ahead))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return max(1, len(self.loader) // self.accumulate)

    def start_at(self, step: int) -> None:
        """Go on after ``step`` steps; only before the first pass."""
        epoch, done = divmod(step, len(self))
        sampler = self.loader.sampler
        sampler.epoch = epoch
        sampler.skip = done * self.accumulate * self.loader.batch_size
        self._left = len(self) - done

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        if self._stream is None:
            steps = self._steps(self._left)
            self._stream = self._from_thread(steps) if self.ahead else steps
        left, self._left = self._left, len(self)
        yield from itertools.islice(self._stream, left)

    def close(self) -> None:
        """Stop the thread; nothing can be drawn afterwards."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _steps(self, left: int) -> Iterator[tuple[Batch, ...]]:
        while True:
            batches = iter(self.loader)
            for _ in range(left):
                yield tuple(itertools.islice(batches, self.accumulate))
            left = len(self)

    def _from_thread(self, steps: Iterator[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        self._thread = threading.Thread(
            target=self._fill, args=(steps,), name="medseg-batches", daemon=True
        )
        self._thread.start()
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def _fill(self, steps: Iterator[tuple[Batch, ...]]) -> None:
        item: tuple[Batch, ...] | BaseException
        while not self._stopping.is_set():
            try:
                item = next(steps)
            except BaseException as error:
                item = error
            while not self._stopping.is_set():
                try:
                    self._ready.put(item, timeout=_WAIT_S)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
