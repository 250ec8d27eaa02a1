"""What a network costs, found out without running it: weights, multiplications, memory.

The network is built and run on the meta device, where tensors have shapes and no numbers. Memory is
therefore that of the tensors that autograd and the network keep, exactly; workspaces of the
libraries below, and the allocator's slack, come on top.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.models.network import SegmentationNetwork
from medseg.ops.live_storage import LiveStorage, step_memory

__all__ = ["Footprint", "count_macs", "measure_footprint", "training_bytes"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Cost of one network at one input, in float32.

    Args:
        weights: Number of weights.
        macs: Multiply-accumulate operations of convolutions and matrix products in one prediction.
        weights_bytes: Weights and buffers.
        prediction_bytes: Largest sum of live tensors during one prediction, weights and image
            included.
        training_bytes: The same for forward and backward of one step, with the weights' gradients
            and two further values per weight, which AdamW keeps.
    """

    weights: int
    macs: int
    weights_bytes: int
    prediction_bytes: int
    training_bytes: int


def count_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulate operations of one prediction; convolutions and matrix products count.

    Args:
        network: On any device and in any mode; left as it is.
        shape: ``(b, c, *spatial)``.
    """
    # the counter hooks into modules whose input wants a gradient; nothing does here
    meta = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        meta(torch.empty(tuple(shape), device="meta"))
    return int(counter.get_total_flops()) // 2


def training_bytes(network: SegmentationNetwork, shape: Sequence[int]) -> int:
    """:attr:`Footprint.training_bytes` alone, in a fraction of the time.

    Args:
        network: On any device and in any mode; left as it is.
        shape: ``(b, c, *spatial)``, legal for the network.

    Raises:
        ShapeError: If the network does not take that shape.
    """
    meta = copy.deepcopy(network).to("meta").train()
    return _training_bytes(meta, torch.empty(tuple(shape), device="meta"))


def _training_bytes(meta: SegmentationNetwork, x_bcs: torch.Tensor) -> int:
    resident = sum(tensor.nbytes for tensor in (*meta.parameters(), *meta.buffers(), x_bcs))
    learned = sum(weight.nbytes for weight in meta.parameters() if weight.requires_grad)
    # the gradients of the weights are among the live tensors already
    return resident + step_memory(meta, x_bcs).peak_bytes + 2 * learned


def measure_footprint(network: SegmentationNetwork, shape: Sequence[int]) -> Footprint:
    """Weights, multiplications and memory of a network at one input.

    Args:
        network: On any device and in any mode; left as it is.
        shape: ``(b, c, *spatial)``, legal for the network.

    Raises:
        ShapeError: If the network does not take that shape.
    """
    meta = copy.deepcopy(network).to("meta")
    kept = [*meta.parameters(), *meta.buffers()]
    weights_bytes = sum(tensor.nbytes for tensor in kept)
    x_bcs = torch.empty(tuple(shape), device="meta")
    learned = [weight for weight in meta.parameters() if weight.requires_grad]
    # the counter hooks into modules whose input wants a gradient; nothing does here
    meta.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), LiveStorage([*kept, x_bcs]) as predicting, counter:
        meta.eval()(x_bcs)
    for weight in learned:
        weight.requires_grad_(True)
    resident = weights_bytes + x_bcs.nbytes
    return Footprint(
        weights=sum(weight.numel() for weight in meta.parameters()),
        macs=int(counter.get_total_flops()) // 2,
        weights_bytes=weights_bytes,
        prediction_bytes=resident + predicting.peak_bytes,
        training_bytes=_training_bytes(meta.train(), x_bcs),
    )
