"""The running mean of the weights."""

import pytest
import torch
from torch import nn

from medseg.training.ema import AveragedWeights


def network(value):
    block = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(block[0].weight, value)
    return block


def test_the_mean_worked_on_paper_with_its_quick_start():
    net = network(0.0)
    mean = AveragedWeights(net, 0.15)
    nn.init.constant_(net[0].weight, 1.0)
    mean.update(net)  # the share of the old is 1/10, below the decay
    assert mean.network[0].weight.item() == pytest.approx(0.9)
    nn.init.constant_(net[0].weight, 2.0)
    mean.update(net)  # 2/11 would be above the decay of 0.15
    assert mean.network[0].weight.item() == pytest.approx(0.15 * 0.9 + 0.85 * 2.0)
    assert net[0].weight.item() == 2.0, "the network itself stays"


def test_batch_statistics_are_averaged_and_counters_copied():
    net = network(1.0)
    mean = AveragedWeights(net, 0.9)
    net(torch.full((4, 1), 10.0) + torch.arange(4.0)[:, None])
    mean.update(net)
    assert int(mean.network[1].num_batches_tracked) == 1
    expected = 0.9 * float(net[1].running_mean)
    assert float(mean.network[1].running_mean) == pytest.approx(expected)


def test_a_constant_network_is_its_own_mean():
    net = network(3.0)
    mean = AveragedWeights(net, 0.99)
    for _ in range(5):
        mean.update(net)
    assert torch.equal(mean.network[0].weight, net[0].weight)


def test_its_state_goes_on_as_if_there_had_been_no_break():
    net, through = network(0.0), AveragedWeights(network(0.0), 0.5)
    for step in range(6):
        nn.init.constant_(net[0].weight, float(step))
        through.update(net)
        again = AveragedWeights(net, 0.5)
        again.load_state_dict({k: v.clone() for k, v in through.state_dict().items()})
        through = again
    plain = AveragedWeights(network(0.0), 0.5)
    for step in range(6):
        nn.init.constant_(net[0].weight, float(step))
        plain.update(net)
    assert torch.equal(plain.network[0].weight, through.network[0].weight)
