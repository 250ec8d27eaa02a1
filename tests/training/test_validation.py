"""Dice on held-out cases."""

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core import LabelMap, LabelScheme
from medseg.data.datalist import read_datalist
from medseg.data.preparation import ModelImage
from medseg.events import Cancelled, Silent
from medseg.inference.plain import plain_labels
from medseg.inference.sweep import Group
from medseg.io.reading import read_image, read_labels
from medseg.metrics.overlap import dice_by_label
from medseg.models.card import Channel, InputSettings
from medseg.training.cases import cache_cases
from medseg.training.precision import Numerics
from medseg.training.transforms import ReadCase, plain_tensors, validation_transforms
from medseg.training.validation import Validator, spread
from tests.tiny_dataset import write_dataset

SCHEME = LabelScheme.plain("balls", {1: "near", 2: "far"})
CPU = torch.device("cpu")


def inputs(window=(8, 8, 8)):
    return InputSettings(channels=(Channel(name="T1"),), spacing_mm=None, window_ijk=window)


class Thresholds(nn.Module):
    """Logits by brightness: a segmentation that is right in parts."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.cat([torch.zeros_like(x) + 0.4, self.slope * x, 2 * x - 2.0], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read_datalist(write_dataset(tmp_path_factory.mktemp("data") / "Balls"))


def validator(data, window=(8, 8, 8), names=("near", "far")):
    read = ReadCase(inputs(window), SCHEME)
    cached = cache_cases(data.train, read, validation_transforms(read), Silent(), stage="reading")
    return Validator(cached, inputs(window), names, CPU, Numerics("fp32", channels_last=True))


@pytest.mark.parametrize("window", [(8, 8, 8), (24, 24, 24)])
def test_the_dice_is_that_of_the_prediction_engine(data, window):
    with plain_tensors():
        scores = validator(data, window).score(Thresholds(), Silent())
    expected = []
    for case in data.train:
        image = ModelImage(read_image(case.images[0]).volume, inputs(window))
        winners = plain_labels(Group((Thresholds().eval(),), image, window), (0, 1, 2))
        result = LabelMap(winners.astype(np.uint8), image.grid, SCHEME)
        expected.append(dice_by_label(result, read_labels(case.label, SCHEME)))
    for name in ("near", "far"):
        mean = np.mean([dice[name] for dice in expected])
        assert 0.1 < mean < 0.99
        assert scores.dice[name] == pytest.approx(mean, abs=1e-6)
    assert scores.mean == pytest.approx(np.mean(list(scores.dice.values())))
    assert scores.cases == 4


def test_the_network_comes_back_in_the_mode_it_came_in(data):
    with plain_tensors():
        judge = validator(data)
        for training in (True, False):
            network = Thresholds().train(training)
            judge.score(network, Silent(), limit=1)
            assert network.training is training


def test_a_structure_that_no_case_holds_has_no_dice_and_no_part_in_the_mean(data):
    scheme = LabelScheme.plain("more", {1: "near", 2: "far", 3: "absent"})
    read = ReadCase(inputs(), scheme)
    with plain_tensors():
        cached = cache_cases(
            data.train, read, validation_transforms(read), Silent(), stage="reading"
        )
        judge = Validator(
            cached, inputs(), ("near", "far", "absent"), CPU, Numerics("fp32", channels_last=False)
        )
        scores = judge.score(nn.Sequential(Thresholds(), Widen()), Silent())
    assert np.isnan(scores.dice["absent"])
    assert scores.mean == pytest.approx((scores.dice["near"] + scores.dice["far"]) / 2)


class Widen(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.full_like(x[:, :1], -1e3)], dim=1)


class StopsAtOnce(Silent):
    def cancelled(self):
        return True


def test_a_validation_can_be_stopped(data):
    with plain_tensors(), pytest.raises(Cancelled):
        validator(data).score(Thresholds(), StopsAtOnce())


@pytest.mark.parametrize(("count", "limit"), [(1, 1), (5, 9), (40, 8), (7, 3), (3, None)])
def test_a_limit_spreads_over_all_cases(count, limit):
    chosen = spread(count, limit)
    assert len(chosen) == min(count, limit or count)
    assert chosen == sorted(set(chosen))
    assert all(0 <= index < count for index in chosen)
    gaps = np.diff(chosen)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
