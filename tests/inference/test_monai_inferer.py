"""The drop-in inside MONAI's own evaluator, against MONAI's inferer."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
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
    with pytest.raises(ConfigError, match="a whole number, or three"):
        BoundedSlidingWindowInferer((8, 8))
    with pytest.raises(ConfigError, match="a share from 0 to below 1"):
        BoundedSlidingWindowInferer((8, 8, 8), overlap=1)
    with pytest.raises(ShapeError, match="on five axes"):
        BoundedSlidingWindowInferer((8, 8, 8))(torch.zeros(1, 8, 8, 8), network())


def test_integers_are_taken_as_they_are():
    x = torch.randint(-1000, 1000, (1, 1, 10, 10, 10), dtype=torch.int16)
    model = network()
    found = BoundedSlidingWindowInferer((6, 6, 6))(x, model)
    as_floats = BoundedSlidingWindowInferer((6, 6, 6))(x.float(), model)
    np.testing.assert_array_equal(found.numpy(), as_floats.numpy())


def test_metadata_of_the_image_comes_back_with_the_labels():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    x = MetaTensor(torch.randn(1, 1, 9, 9, 9), affine=affine, meta={"filename_or_obj": "case"})
    found = BoundedSlidingWindowInferer((6, 6, 6))(x, network())
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, affine)
    assert found.meta["filename_or_obj"] == "case"
    assert found.dtype == torch.uint8
    plain = BoundedSlidingWindowInferer((6, 6, 6))(x.as_tensor(), network())
    assert type(plain) is torch.Tensor
    assert torch.equal(found.as_tensor(), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_windows_come_in_the_type_of_the_image(dtype):
    seen = set()

    def answer(x):
        seen.add(x.dtype)
        return torch.cat([x, 1 - x], dim=1).float()

    x = torch.randn(1, 1, 9, 9, 9).to(dtype)
    found = BoundedSlidingWindowInferer((6, 6, 6))(x, answer)
    assert seen == {dtype}
    assert (found == (x < 0.5)).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16])
def test_integers_and_truth_values_come_as_float32(dtype):
    x = (torch.randn(1, 1, 9, 9, 9) > 0).to(dtype)
    found = BoundedSlidingWindowInferer((6, 6, 6))(x, lambda y: torch.cat([y, 1 - y], dim=1))
    assert torch.equal(found, 1 - x.to(torch.uint8))


@pytest.mark.parametrize("roi_size", [8, (8, 8, 8)])
def test_one_number_is_the_extent_of_every_axis(roi_size):
    x = torch.randn(1, 1, 12, 12, 12)
    whole = BoundedSlidingWindowInferer((8, 8, 8))(x, network())
    assert torch.equal(BoundedSlidingWindowInferer(roi_size)(x, network()), whole)


@pytest.mark.parametrize("missing", [None, -1, 0])
def test_an_extent_left_open_is_the_images(missing):
    x, shapes = torch.randn(1, 1, 12, 10, 8), set()

    def answer(y):
        shapes.add(tuple(y.shape[2:]))
        return torch.cat([y, -y], dim=1)

    BoundedSlidingWindowInferer((6, missing, missing))(x, answer)
    assert shapes == {(6, 10, 8)}


def test_overlap_may_differ_between_axes():
    calls = []

    def answer(x):
        calls.append(None)
        return torch.cat([x, -x], dim=1)

    x = torch.randn(1, 1, 16, 16, 16)
    BoundedSlidingWindowInferer((8, 8, 8), overlap=(0.5, 0.0, 0.0))(x, answer)
    assert len(calls) - 1 == 3 * 2 * 2  # one more asks for the number of classes


def test_no_image_gives_no_labels():
    found = BoundedSlidingWindowInferer((6, 6, 6))(torch.zeros(0, 1, 9, 8, 7), network())
    assert found.shape == (0, 1, 9, 8, 7)


def test_a_network_of_several_answers_is_told_to_give_one():
    with pytest.raises(ShapeError, match="found a list") as caught:
        BoundedSlidingWindowInferer((6, 6, 6))(torch.randn(1, 1, 9, 9, 9), lambda x: [x, x])
    assert caught.value.code == "network-output"


def test_progress_is_shown_on_stderr(capfd):
    BoundedSlidingWindowInferer((6, 6, 6), progress=True)(torch.randn(1, 1, 9, 9, 9), network())
    printed = capfd.readouterr()
    assert "windows" in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mirror_axes": (5,)}, "different axes of 0, 1 and 2"),
        ({"mirror_axes": (0, 0)}, "different axes of 0, 1 and 2"),
        ({"overlap": (0.5, 0.5)}, "a share from 0 to below 1"),
        ({"padding_mode": "reflect"}, "constant"),
        ({"cval": 1.0}, "expected 0"),
        ({"sw_batch_size": 0}, "at least 1 window"),
    ],
)
def test_what_it_cannot_do_is_refused_when_it_is_built(given, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        BoundedSlidingWindowInferer((6, 6, 6), **given)
    assert next(iter(given)) in caught.value.where
