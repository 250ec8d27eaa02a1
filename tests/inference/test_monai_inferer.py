"""The drop-in inside MONAI's own evaluator, against MONAI's inferer."""

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer, SlidingWindowInferer
from torch import nn

from medseg.errors import ConfigError, ShapeError
from medseg.inference.monai_inferer import BoundedSlidingWindowInferer


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv3d(6, classes, 1)).eval()


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_labels_are_those_of_monais_inferer_and_argmax(mode):
    x = torch.randn(2, 1, 24, 16, 32)
    model = network()
    with torch.inference_mode():
        logits = SlidingWindowInferer((8, 8, 8), 2, 0.5, mode)(x, model)
        found = BoundedSlidingWindowInferer((8, 8, 8), 2, 0.5, mode)(x, model)
    assert found.shape == (2, 1, 24, 16, 32)
    best, second = logits.topk(2, dim=1).values.unbind(1)
    clear = best - second > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(found[:, 0][clear], logits.argmax(1)[clear].to(torch.uint8))


def test_it_stands_in_monais_evaluator():
    x = torch.randn(1, 1, 12, 12, 12)
    inferer = BoundedSlidingWindowInferer((8, 8, 8))
    assert isinstance(inferer, Inferer)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": x, "label": torch.zeros(1, 1, 12, 12, 12)}],
        network=network(),
        inferer=inferer,
        decollate=False,
    )
    evaluator.run()
    assert evaluator.state.output["pred"].shape == (1, 1, 12, 12, 12)


def test_regions_are_numbered_in_their_order():
    class Nested(nn.Module):
        def forward(self, x):
            return torch.cat([x, x - 1], dim=1)

    x = torch.randn(1, 1, 9, 9, 9)
    found = BoundedSlidingWindowInferer((6, 6, 6), regions=True)(x, Nested())
    expected = torch.where(x > 1, 2, torch.where(x > 0, 1, 0))
    assert (found == expected).float().mean() > 0.999


def test_further_arguments_reach_the_network():
    def scaled(x, factor, *, shift):
        return torch.cat([torch.zeros_like(x), factor * x + shift], dim=1)

    x = torch.ones(1, 1, 6, 6, 6)
    inferer = BoundedSlidingWindowInferer((6, 6, 6))
    assert (inferer(x, scaled, -1.0, shift=0.5) == 0).all()
    assert (inferer(x, scaled, 1.0, shift=0.5) == 1).all()


def test_more_classes_than_a_byte_holds():
    class Many(nn.Module):
        def forward(self, x):
            logits = torch.zeros(x.shape[0], 300, *x.shape[2:])
            logits[:, 299] = 1
            return logits

    found = BoundedSlidingWindowInferer((4, 4, 4))(torch.randn(1, 1, 4, 4, 4), Many())
    assert found.dtype == torch.int32
    assert (found == 299).all()


def test_wrong_settings_and_inputs_are_refused():
    with pytest.raises(ConfigError, match="three extents of at least 1"):
        BoundedSlidingWindowInferer((8, 8))
    with pytest.raises(ConfigError, match="overlap from 0 to below 1"):
        BoundedSlidingWindowInferer((8, 8, 8), overlap=1)
    with pytest.raises(ShapeError, match="expected five axes"):
        BoundedSlidingWindowInferer((8, 8, 8))(torch.zeros(1, 8, 8, 8), network())


def test_integers_are_taken_as_they_are():
    x = torch.randint(-1000, 1000, (1, 1, 10, 10, 10), dtype=torch.int16)
    model = network()
    found = BoundedSlidingWindowInferer((6, 6, 6))(x, model)
    as_floats = BoundedSlidingWindowInferer((6, 6, 6))(x.float(), model)
    np.testing.assert_array_equal(found.numpy(), as_floats.numpy())
