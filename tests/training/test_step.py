"""One step: accumulation, clipping, and what is left out."""

import copy
import math

import pytest
import torch
from torch import nn

from medseg.models.table import build_network
from medseg.training.losses import LossOptions, build_loss
from medseg.training.precision import Numerics
from medseg.training.settings import TrainingSettings
from medseg.training.step import Stepper, build_optimizer

CPU = torch.device("cpu")


def settings(**keys):
    return TrainingSettings(steps=1, batch_size=2, learning_rate=0.05, **keys)


def stepper(network, loss=None, **keys):
    chosen = settings(**keys)
    return Stepper(
        network=network,
        loss=loss or build_loss(((1, 1, 1),), (1.0,), LossOptions()),
        optimizer=build_optimizer(network, chosen),
        settings=chosen,
        numerics=Numerics("fp32", channels_last=False),
        device=CPU,
    )


def batch(first=0, count=2):
    source = torch.Generator().manual_seed(3)
    images = torch.randn(8, 1, 4, 4, 4, generator=source)[first : first + count]
    labels = torch.randint(0, 3, (8, 1, 4, 4, 4), generator=source)[first : first + count]
    return {"image": images, "label": labels}


def plain_network():
    torch.manual_seed(0)
    settings = {"widths": [8, 16], "expansion": 2, "norm_groups": 4, "out_channels": 3}
    return build_network("revunet", {**settings, "in_channels": 1}).double()


class Net(nn.Sequential):
    """Convolutions with batch statistics."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 1)
        )


def doubled(one):
    return {"image": one["image"].double(), "label": one["label"]}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_make_the_step_of_the_larger_batch(optimizer, parts):
    whole, in_parts = plain_network(), plain_network()
    options = {"optimizer": optimizer, "gradient_clip": 0.5, "weight_decay": 0.01}
    large = stepper(whole, **options).make([doubled(batch(0, 8))], 0.05)
    size = 8 // parts
    pieces = [doubled(batch(n * size, size)) for n in range(parts)]
    small = stepper(in_parts, **options).make(pieces, 0.05)
    assert small.loss == pytest.approx(large.loss, rel=1e-6)
    before = plain_network().state_dict()
    for name, weight in whole.state_dict().items():
        # the loss is taken in float32 whatever the network computes in
        torch.testing.assert_close(in_parts.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(before[name], w) for name, w in whole.state_dict().items())


def test_the_gradient_is_clipped_to_its_norm():
    limit = 1e-3
    net = Net()
    before = copy.deepcopy(net)
    made = stepper(net, optimizer="sgd", momentum=0.0, gradient_clip=limit).make([batch()], 1.0)
    moved = [a - b for a, b in zip(net.parameters(), before.parameters(), strict=True)]
    norm = math.sqrt(sum(step.detach().square().sum().item() for step in moved))
    assert made.made
    assert norm == pytest.approx(limit, rel=1e-3)


class Spoilt(nn.Module):
    """A loss that is, or whose gradient is, not finite in chosen calls."""

    def __init__(self, calls, how):
        super().__init__()
        self.inner = build_loss(((1, 1, 1),), (1.0,), LossOptions())
        self.calls, self.how, self.count = calls, how, 0

    def forward(self, logits, target):
        self.count += 1
        loss = self.inner(logits, target)
        if self.count not in self.calls:
            return loss
        # the root of zero is zero and its slope infinite
        return loss * math.nan if self.how == "loss" else loss + (0 * logits.sum()).sqrt()


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(how):
    net, loss = Net(), Spoilt({2, 4}, how)
    one = stepper(net, loss, ema_decay=0.9)
    assert one.make([batch()], 0.05).made
    before = copy.deepcopy(net.state_dict())
    moments = copy.deepcopy(one.optimizer.state_dict()["state"])
    mean = copy.deepcopy(one.averaged.state_dict())
    assert not one.make([batch(2)], 0.05).made
    assert (one.skipped, one.skipped_in_a_row) == (1, 1)
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, before[name]), name
    for name, weight in one.averaged.state_dict().items():
        assert torch.equal(weight, mean[name]), name
    after = one.optimizer.state_dict()["state"]
    assert torch.equal(after[0]["exp_avg"], moments[0]["exp_avg"])
    assert one.make([batch(2)], 0.05).made
    assert (one.skipped, one.skipped_in_a_row) == (1, 0)


def test_an_image_that_is_not_finite_leaves_the_batch_statistics_as_they_were():
    net = Net()
    one = stepper(net)
    assert one.make([batch()], 0.05).made
    before = copy.deepcopy(net.state_dict())
    bad = batch()
    bad["image"][0, 0, 0, 0, 0] = math.inf
    assert not one.make([batch(), bad], 0.05).made
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    ("bad", "steps", "too_many"),
    [
        ([1, 2], 3, False),
        ([1, 2, 3], 3, True),  # three in a row
        ([1, 3, 5, 7], 8, True),  # more than three, and more than a tenth
        ([1, 3, 5], 8, False),
    ],
)
def test_going_on_makes_no_sense_after_too_many_in_a_row_or_in_all(bad, steps, too_many):
    one = stepper(Net(), Spoilt(set(bad), "loss"), bad_steps_in_a_row=3, bad_step_share=0.1)
    found = []
    for step in range(1, steps + 1):
        one.make([batch()], 0.01)
        found.append(one.too_many_skipped(step))
    assert any(found) == too_many
