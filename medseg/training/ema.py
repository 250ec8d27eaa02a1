"""A running mean of the weights beside the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """An exponential moving average over the steps, of parameters and of batch statistics.

    After step ``t`` (from 1), ``mean = d mean + (1 - d) weight`` with ``d`` the smaller of
    ``decay`` and ``t / (t + 9)``: the mean forgets the random start soon. The bound has the form of
    the one in TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``. Counters are copied.

    Args:
        network: What is averaged; stays as it is.
        decay: Above 0 and below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = min(self.decay, self.steps / (self.steps + 9))
        means, news = self.network.state_dict(), network.state_dict()
        floating = [name for name, mean in means.items() if mean.is_floating_point()]
        torch._foreach_lerp_(
            [means[name] for name in floating], [news[name] for name in floating], 1.0 - share
        )
        for name in means.keys() - set(floating):
            means[name].copy_(news[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The means, and under ``""`` the number of steps they took in."""
        return {**self.network.state_dict(), "": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        weights = dict(state)
        self.steps = int(weights.pop(""))
        self.network.load_state_dict(weights)
