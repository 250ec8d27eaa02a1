"""The fastest of the combinations that the device allows, found by measuring."""

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError
from medseg.training.losses import LossOptions, build_loss
from medseg.training.precision import Numerics, choose_numerics, has_bf16

CPU = torch.device("cpu")


def choose(precision="auto", channels_last="auto", **more):
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv3d(4, 2, 1))
    loss = build_loss(((1, 1, 1),), (1.0,), LossOptions())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    numerics, measured = choose_numerics(
        network,
        loss,
        input_shape=(1, 1, 8, 8, 8),
        device=CPU,
        precision=precision,
        channels_last=channels_last,
        **more,
    )
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1)), "the caller's random numbers are left alone"
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    return numerics, measured


def test_the_fastest_of_all_combinations_is_chosen():
    numerics, measured = choose()
    assert len(measured) == (4 if has_bf16(CPU) else 2)
    assert len({(one.precision, one.channels_last) for one in measured}) == len(measured)
    best = min(measured, key=lambda one: one.seconds_per_step)
    assert (numerics.precision, numerics.channels_last) == (best.precision, best.channels_last)
    assert measured[0].to_dict()["precision"] == "fp32"


def test_a_setting_leaves_fewer_combinations_and_both_leave_nothing_to_measure():
    numerics, measured = choose(precision="bf16")
    assert numerics.precision == "bf16"
    assert {one.channels_last for one in measured} == {True, False}
    assert choose(precision="fp32", channels_last=False) == (Numerics("fp32", False), ())


def test_no_further_combination_is_begun_after_the_limit():
    _, measured = choose(limit_s=0.0)
    assert [(one.precision, one.channels_last) for one in measured] == [("fp32", True)]


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="one of auto, bf16, fp32 on a CPU"):
        choose(precision="fp16")


@pytest.mark.parametrize("channels_last", [True, False])
def test_an_image_of_one_channel_goes_on_in_the_chosen_layout(channels_last):
    """Its strides may be called either layout's; convolutions go by them."""
    chosen = Numerics("fp32", channels_last=channels_last)
    network = chosen.arrange_network(nn.Conv3d(1, 4, 3))
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    for x in (torch.randn(2, 1, 6, 6, 6), torch.randn(2, 6, 6, 6, 1).permute(0, 4, 1, 2, 3)):
        assert network(chosen.arrange(x)).is_contiguous(memory_format=layout)


def test_numerics_arrange_tensors_and_networks():
    x = torch.randn(2, 3, 4, 4, 4)
    last = Numerics("bf16", channels_last=True)
    assert last.arrange(x).is_contiguous(memory_format=torch.channels_last_3d)
    network = last.arrange_network(nn.Conv3d(3, 4, 3))
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    with last.autocast(CPU):
        assert network(x).dtype == torch.bfloat16
    with Numerics("fp32", channels_last=False).autocast(CPU):
        assert network(x).dtype == torch.float32
    assert last.in_words() == "bf16, channels last"
