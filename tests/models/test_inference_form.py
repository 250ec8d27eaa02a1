"""The inference form gives the answers of the network that it was made of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from benchmarks.networks import peers
from medseg.errors import ConfigError
from medseg.models.inference_form import InferenceForm, deviation, to_inference_form
from medseg.models.neunet import NEUNET_PRESETS
from medseg.models.table import NETWORKS, build_network, build_settings
from medseg.ops.norm import GroupNorm, InstanceNorm
from medseg.ops.precision import has_bf16

HALF = 2.0
"""Largest deviation of the bfloat16 form, over that of the original under autocast."""


def seeded(network: nn.Module) -> nn.Module:
    """With statistics and affine weights that an untrained network does not have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.InstanceNorm3d | nn.GroupNorm) and module.affine:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def dynunet(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    network = DynUNet(
        3,
        1,
        9,
        kernel_size=[3] * 4,
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2] * 3,
        filters=[8, 16, 32, 64],
        **settings,
    )
    return seeded(network)


def foreign(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "PlainConvUNet":
        return seeded(peers(NEUNET_PRESETS["tiny"])["nnU-Net PlainConvUNet"])
    return dynunet(
        **{
            "DynUNet": {},
            "DynUNet residual": {"res_block": True},
            "DynUNet with heads": {"deep_supervision": True},
            "DynUNet with dropout": {"dropout": 0.2, "norm_name": "instance"},
            "DynUNet with BatchNorm": {"norm_name": "batch"},
        }[name]
    )


FOREIGN = [
    "PlainConvUNet",
    "DynUNet",
    "DynUNet residual",
    "DynUNet with heads",
    "DynUNet with dropout",
    "DynUNet with BatchNorm",
]


def volume() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 1, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)


def own(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    settings = build_settings(name, {"preset": "tiny"})
    network = seeded(build_network(name, settings))
    return network, torch.randn(1, settings.in_channels, *NETWORKS[name].inputs["tiny"])


class UnderAutocast(nn.Module):
    """The original as it is run without the form."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(x)


def parts(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_answer_the_same_in_float32(name: str) -> None:
    network, x = own(name)
    assert deviation(network, to_inference_form(network), x) < 1e-4


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_networks_answer_the_same_in_float32(name: str) -> None:
    network = foreign(name)
    assert deviation(network, to_inference_form(network), volume()) < 1e-4


# the others are made of the same parts
@pytest.mark.parametrize("name", [*NETWORKS, "PlainConvUNet", "DynUNet with heads"])
def test_bfloat16_is_as_close_as_autocast_was(name: str) -> None:
    network, x = own(name) if name in NETWORKS else (foreign(name), volume())
    if x.dim() == 5:  # processors without bfloat16 take long
        x = x[..., :16]
    form = to_inference_form(network, torch.bfloat16)
    found = deviation(network, form, x)
    assert found < HALF * deviation(network, UnderAutocast(network), x) < 0.5
    with torch.inference_mode():
        answer = form(x)
    assert (answer if isinstance(answer, Tensor) else answer[0]).dtype == torch.bfloat16


def test_each_pair_of_a_dynunet_becomes_one_pass_in_place() -> None:
    form = to_inference_form(dynunet())
    norms = [module for module in form.modules() if isinstance(module, InstanceNorm)]
    assert [norm.negative_slope for norm in norms] == [0.01] * 14
    assert all(norm.inplace for norm in norms)
    assert parts(form, nn.LeakyReLU) == parts(form, nn.InstanceNorm3d) == 0
    assert type(form.network) is DynUNet


@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_keep_one_layout_from_the_image_on(channels_last: bool) -> None:
    """An image of one channel has both layouts, and convolutions take it for contiguous."""
    dtype = torch.bfloat16 if has_bf16(torch.device("cpu")) else None
    form = to_inference_form(dynunet(), dtype, channels_last=channels_last)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    seen: list[bool] = []

    def look(module: nn.Module, arguments: tuple[Tensor]) -> None:
        seen.append(arguments[0].is_contiguous(memory_format=layout))

    for module in form.modules():
        if isinstance(module, InstanceNorm):
            module.register_forward_pre_hook(look)
    with torch.inference_mode():
        form(
            torch.randn(2, 1, 32, 32, 32)
        )  # of a small single image torch 2.14 makes contiguous maps
    assert seen == [True] * 14


def test_an_activation_that_a_sum_uses_as_well_stays() -> None:
    network = foreign("DynUNet residual")
    form = to_inference_form(network)
    # four residual blocks share theirs between a normalisation and the sum
    assert parts(form, nn.LeakyReLU) == 4
    assert parts(form, nn.InstanceNorm3d) == 0


def test_batch_norm_is_folded_away() -> None:
    form = to_inference_form(foreign("DynUNet with BatchNorm"))
    assert parts(form, nn.BatchNorm3d) == 0
    for name, most in (("qtseg", 3), ("macmd", 6)):
        network, _ = own(name)
        # those that are left do not follow a convolution alone
        assert parts(to_inference_form(network), nn.BatchNorm2d) <= most


def test_the_original_is_left_as_it_was_and_owns_its_weights() -> None:
    network = dynunet()
    before = copy.deepcopy(network.state_dict())
    form = to_inference_form(network, torch.bfloat16)
    with torch.no_grad():
        for weight in form.parameters():
            weight.zero_()
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(weight.requires_grad for weight in network.parameters())
    assert not any(weight.requires_grad for weight in form.parameters())
    assert parts(network, nn.LeakyReLU) == 7


def test_heads_that_a_forward_keeps_are_no_stand_ins() -> None:
    network = dynunet(deep_supervision=True)
    form = to_inference_form(network)
    assert all(type(head) is Tensor for head in form.network.heads)


def test_only_norms_keep_float32_weights() -> None:
    form = to_inference_form(dynunet(), torch.bfloat16)
    for module in form.modules():
        kind = torch.float32 if isinstance(module, InstanceNorm) else torch.bfloat16
        assert all(weight.dtype == kind for weight in module.parameters(recurse=False))


class Block(nn.Module):
    """Convolution, normalisation, activation, in ways that forbid the one or other exchange."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv3d(2, 8, 3, padding=1)
        self.norm = nn.InstanceNorm3d(8, affine=True)
        self.act = nn.LeakyReLU(0.2)
        self.other = nn.Conv3d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        normed = self.norm(y)
        if self.way == "plain":
            return self.act(normed)
        if self.way == "conv read twice":
            return self.act(normed) + y
        if self.way == "norm read twice":
            return self.act(normed) + normed
        if self.way == "activation elsewhere":
            return self.act(self.other(self.act(normed)))
        if self.way == "norm used twice":
            return self.norm(self.other(self.act(normed)))
        if self.way == "changed before":
            z = self.conv(x)
            z += x.mean()
            return self.act(self.norm(z)) + self.act(normed)
        if self.way == "weights read":
            return self.act(normed) * self.norm.weight.sum()
        # cannot be traced
        return self.act(normed) if float(x.mean()) > -100 else x


@pytest.mark.parametrize(
    ("way", "fused", "inplace"),
    [
        ("plain", True, True),
        ("conv read twice", True, False),
        ("norm read twice", False, True),
        ("activation elsewhere", False, True),
        ("norm used twice", False, True),
        ("changed before", True, False),
        ("weights read", False, False),
        ("depends on values", False, False),
    ],
)
def test_only_what_is_certain_is_exchanged(way: str, fused: bool, inplace: bool) -> None:
    torch.manual_seed(0)
    network = seeded(Block(way))
    x = torch.randn(1, 2, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    form = to_inference_form(network)
    norm = form.network.norm
    assert isinstance(norm, InstanceNorm)
    assert (norm.negative_slope != 1, norm.inplace) == (fused, inplace)
    assert isinstance(form.network.act, nn.Identity) == fused
    assert deviation(network, form, x) < 1e-4


def test_a_hook_keeps_the_module_that_it_is_on() -> None:
    network = seeded(Block("plain"))
    seen: list[float] = []
    network.act.register_forward_hook(lambda module, args, y: seen.append(float(args[0].min())))
    form = to_inference_form(network)
    form(torch.randn(1, 2, 16, 16, 16))
    assert len(seen) == 1
    assert seen[0] < -1


def test_shared_parts_stay_shared_and_a_single_layer_is_taken() -> None:
    norm = seeded(nn.InstanceNorm2d(16, affine=True))
    form = to_inference_form(norm)
    x = torch.randn(2, 16, 20, 20)
    torch.testing.assert_close(form(x), norm(x), atol=1e-4, rtol=0)
    shared = nn.Sequential(nn.Conv2d(16, 16, 1), norm, nn.Conv2d(16, 16, 1), norm).eval()
    form = to_inference_form(shared)
    assert form.network[1] is form.network[3]
    assert deviation(shared, form, x) < 1e-4


def test_running_statistics_of_instance_norm_are_left_to_pytorch() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True))
    form = to_inference_form(network.eval())
    assert isinstance(form.network[1], nn.InstanceNorm2d)


def test_group_norm_takes_its_activation_along() -> None:
    network = nn.Sequential(
        nn.GroupNorm(4, 4), nn.ReLU(), nn.GroupNorm(2, 4, eps=0.1), nn.LeakyReLU(0.2), nn.Tanh()
    )
    form = to_inference_form(seeded(network))
    kinds = [type(module) for module in form.network]
    assert kinds == [GroupNorm, nn.Identity, GroupNorm, nn.Identity, nn.Tanh]
    assert [form.network[n].negative_slope for n in (0, 2)] == [0, 0.2]
    for x in (torch.randn(2, 4, 48, 48), torch.randn(2, 4, 5, 5)):
        assert deviation(network, form, x) < 1e-4


def test_a_norm_that_has_an_activation_already_takes_no_second_one() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 1), GroupNorm(2, 4, negative_slope=0.5), nn.LeakyReLU(0.1)
    )
    form = to_inference_form(seeded(network))
    kinds = [type(module) for module in form.network]
    assert kinds == [nn.Conv2d, GroupNorm, nn.LeakyReLU]
    assert form.network[1].negative_slope == 0.5
    assert form.network[1].inplace
    assert deviation(network, form, torch.randn(2, 1, 48, 48)) < 1e-4


def test_an_answer_that_is_none_is_seen() -> None:
    one = InferenceForm(nn.Identity(), None)
    x = torch.randn(1, 1, 4, 4)

    class Lost(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) * float("nan")

    assert not deviation(one, Lost(), x) < 1
    assert deviation(one, one, x) == 0


def test_training_mode_and_other_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="network in eval mode"):
        to_inference_form(nn.Conv2d(1, 1, 1))
    with pytest.raises(ConfigError, match="bfloat16, float16 or None"):
        to_inference_form(nn.Conv2d(1, 1, 1).eval(), torch.float64)
