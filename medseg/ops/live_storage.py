"""Counts the bytes of the tensors that are alive, and their peak, while a block of code runs.

Every operation that torch runs is seen, with its result, and a storage counts from the operation
that made it until it is freed. Nothing depends on an allocator, so the figures are the same on
every machine. On the meta device, where tensors have sizes but no memory, they are those of a real
device as long as the operations are the same: a network too large for the machine can be measured.

Not counted is what an operation needs inside itself (the work space of a convolution) and what an
allocator loses by rounding and fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveStorage", "StepMemory", "step_memory"]


class LiveStorage(TorchDispatchMode):
    """Context in which every storage that an operation returns counts until it is freed.

    Two tensors that share a storage count once, and a view counts as what it is a view of.

    Args:
        known: Tensors that were there before, such as weights and inputs; they do not count.

    Attributes:
        live_bytes: At this moment.
        peak_bytes: The largest that ``live_bytes`` has been.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

        def freed(_: object) -> None:
            self._seen.discard(key)
            del self._watches[key]
            self.live_bytes -= size

        self._watches[key] = weakref.ref(storage, freed)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one forward and backward pass, weights and input not counted.

    Attributes:
        forward_bytes: Alive after the forward pass: what it keeps for the backward pass, and the
            network's output.
        peak_bytes: The most that was alive at any time; at the end this holds the gradients of the
            weights.
    """

    forward_bytes: int
    peak_bytes: int


def step_memory(network: nn.Module, x_bcs: Tensor) -> StepMemory:
    """Measure one training step without its optimiser; the loss is the sum of all outputs.

    Args:
        network: On the device of the input, which may be meta. Its gradients are dropped, before
            and after.
        x_bcs: The network's input.
    """
    network.zero_grad(set_to_none=True)
    with LiveStorage([x_bcs, *network.parameters(), *network.buffers()]) as storage:
        outputs = tree_leaves(network(x_bcs))
        forward_bytes = storage.live_bytes
        loss = torch.stack([output.sum() for output in outputs]).sum()
        del outputs
        loss.backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    return StepMemory(forward_bytes=forward_bytes, peak_bytes=storage.peak_bytes)
