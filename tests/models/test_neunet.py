"""neU-Net: published counts, shapes, operations and golden values, and its own laws."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medseg.errors import ShapeError
from medseg.models.neunet import NEUNET_PRESETS, ConvUnit, NeUNet, NeUNetSettings, SubPixel

PATCHES = {
    "synapse": (1, 1, 48, 192, 192),
    "acdc": (1, 1, 10, 96, 96),
    "brats": (1, 4, 128, 128, 128),
}


def on_meta(preset: str, **changes: Any) -> NeUNet:
    settings = NeUNetSettings(**{**NEUNET_PRESETS[preset].model_dump(), **changes})
    with torch.device("meta"):
        return NeUNet(settings)


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(
    ("preset", "changes", "weights"),
    [
        ("synapse", {}, 181_132_838),
        ("synapse", {"out_channels": 9}, 181_128_813),
        ("acdc", {}, 161_276_852),
        ("brats", {}, 204_062_863),
        ("synapse", {"wavelets": False}, 177_667_622),
        ("synapse", {"wavelets": False, "out_channels": 9}, 177_663_597),
        ("acdc", {"wavelets": False}, 157_862_324),
        ("brats", {"wavelets": False}, 200_297_839),
        ("synapse", {"hidden_width": "c"}, 106_957_286),
        ("synapse", {"hidden_width": "c*r/2"}, 280_298_406),
    ],
)
def test_the_reference_numbers_of_weights_are_met(
    preset: str, changes: dict[str, Any], weights: int
) -> None:
    assert count(on_meta(preset, **changes)) == weights


MODULES = {
    "synapse": {
        "wavelets": [960, 7_104, 28_032, 56_064],
        "encoder": [9_696, 221_568, 885_504, 3_540_480, 7_190_400, 5_531_520],
        "upsampling": [47_720_320, 60_992_128, 30_541_312, 7_635_712, 1_466_624],
        "decoder": [8_296_320, 5_309_952, 1_327_872, 332_160, 27_840],
        "segment": [4_494, 3_598, 1_806, 910, 462],
    },
    "acdc": {
        "wavelets": [960, 7_104, 14_208, 56_064],
        "encoder": [9_696, 74_112, 885_504, 3_540_480, 7_190_400, 5_531_520],
        "upsampling": [47_720_320, 43_296_384, 30_541_312, 5_865_984, 1_466_624],
        "decoder": [8_296_320, 5_309_952, 1_327_872, 110_976, 27_840],
        "segment": [1_284, 1_028, 516, 260, 132],
    },
    "brats": {
        "wavelets": [3_552, 55_488, 110_976, 221_952],
        "encoder": [31_296, 221_568, 885_504, 3_540_480, 7_190_400, 5_531_520],
        "upsampling": [69_840_000, 60_992_128, 30_541_312, 7_635_712, 1_909_120],
        "decoder": [8_296_320, 5_309_952, 1_327_872, 332_160, 83_136],
        "segment": [963, 771, 387, 195, 99],
    },
}
TOTALS = {
    "synapse": (92_160, 17_471_328, 148_356_096),
    "acdc": (78_336, 17_310_048, 128_890_624),
    "brats": (391_968, 17_792_736, 170_918_272),
}


@pytest.mark.parametrize("preset", MODULES)
def test_every_module_has_its_reference_number_of_weights(preset: str) -> None:
    network = on_meta(preset)
    assert len(list(network.parameters())) == 134
    assert len(network.state_dict()) == 134
    found = {
        name: [count(part) for part in network.get_submodule(name).children()]
        for name in MODULES[preset]
    }
    assert found == MODULES[preset]
    waves, encoder, shuffles = TOTALS[preset]
    assert sum(found["wavelets"]) == waves
    assert sum(found["wavelets"]) + sum(found["encoder"]) == encoder
    assert sum(found["upsampling"]) == shuffles


@pytest.mark.parametrize(
    ("c", "f", "r"), [(320, 320, (1, 2, 2)), (64, 32, (2, 2, 2)), (5, 3, (1, 1, 2))]
)
def test_the_closed_form_counts_a_sub_pixel_block(c: int, f: int, r: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        block = SubPixel(c, f, r, "2c")
    product = math.prod(r)
    assert count(block) == 250 * c**2 + 2 * c + 54 * c * f * product + f * product


def giga_macs(network: NeUNet, x: Tensor, *, all_heads: bool) -> float:
    total = 0

    def add(conv: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        total += y[0, 0].numel() * y.shape[0] * conv.weight.numel()

    hooks = [
        module.register_forward_hook(add)
        for module in network.modules()
        if isinstance(module, nn.Conv3d)
    ]
    network.heads(x) if all_heads else network.eval()(x)
    for hook in hooks:
        hook.remove()
    return total / 1e9


@pytest.mark.parametrize(
    ("preset", "all_heads", "single", "plain_encoder"),
    [
        ("synapse", 1861.145, 1860.621, 1809.930),
        ("acdc", 129.696, 129.686, 126.604),
        ("brats", 1439.002, 1438.936, 1386.229),
    ],
)
def test_multiply_adds_of_one_patch_are_the_reference_ones(
    preset: str, all_heads: float, single: float, plain_encoder: float
) -> None:
    x = torch.empty(PATCHES[preset], device="meta")
    network = on_meta(preset)
    assert giga_macs(network, x, all_heads=True) == pytest.approx(all_heads, abs=6e-4)
    assert giga_macs(network, x, all_heads=False) == pytest.approx(single, abs=6e-4)
    without = on_meta(preset, wavelets=False)
    assert giga_macs(without, x, all_heads=True) == pytest.approx(plain_encoder, abs=6e-4)


SHAPES = {
    "synapse": {
        "pyramid": [(1, 48, 192, 192), (4, 48, 96, 96), (8, 24, 48, 48), (8, 12, 24, 24)],
        "wavelets": [(32, 48, 192, 192), (64, 48, 96, 96), (128, 24, 48, 48), (256, 12, 24, 24)],
        "encoder": [
            (32, 48, 192, 192),
            (64, 48, 96, 96),
            (128, 24, 48, 48),
            (256, 12, 24, 24),
            (320, 6, 12, 12),
            (320, 6, 6, 6),
        ],
        "hidden": [640, 640, 512, 256, 128],
        "unshuffled": [1280, 2048, 1024, 512, 128],
        "decoder": [
            (320, 6, 12, 12),
            (256, 12, 24, 24),
            (128, 24, 48, 48),
            (64, 48, 96, 96),
            (32, 48, 192, 192),
        ],
    },
    "acdc": {
        "pyramid": [(1, 10, 96, 96), (4, 10, 48, 48), (4, 10, 24, 24), (8, 5, 12, 12)],
        "wavelets": [(32, 10, 96, 96), (64, 10, 48, 48), (128, 10, 24, 24), (256, 5, 12, 12)],
        "encoder": [
            (32, 10, 96, 96),
            (64, 10, 48, 48),
            (128, 10, 24, 24),
            (256, 5, 12, 12),
            (320, 5, 6, 6),
            (320, 5, 3, 3),
        ],
        "hidden": [640, 640, 512, 256, 128],
        "unshuffled": [1280, 1024, 1024, 256, 128],
        "decoder": [
            (320, 5, 6, 6),
            (256, 5, 12, 12),
            (128, 10, 24, 24),
            (64, 10, 48, 48),
            (32, 10, 96, 96),
        ],
    },
}


@pytest.mark.parametrize("preset", SHAPES)
def test_every_stage_has_its_reference_shape(preset: str) -> None:
    network = on_meta(preset)
    x = torch.empty(PATCHES[preset], device="meta")
    seen: dict[str, list[Any]] = {"wavelets": [], "encoder": [], "upsampling": [], "decoder": []}
    for name, shapes in seen.items():
        for part in network.get_submodule(name).children():
            part.register_forward_hook(lambda _m, _i, y, s=shapes: s.append(tuple(y.shape[1:])))
    heads = network.heads(x)
    expected = SHAPES[preset]
    assert [tuple(bands.shape[1:]) for bands in network.wavelet_pyramid(x)] == expected["pyramid"]
    assert seen["wavelets"] == expected["wavelets"]
    assert seen["encoder"] == expected["encoder"]
    assert seen["upsampling"] == seen["decoder"] == expected["decoder"]
    blocks = list(network.upsampling)
    assert [block.widen.out_channels for block in blocks] == expected["hidden"]
    assert [block.project.out_channels for block in blocks] == expected["unshuffled"]
    classes = network.out_channels
    grids = [(classes, *shape[1:]) for shape in reversed(expected["decoder"])]
    assert [tuple(head.shape[1:]) for head in heads] == grids
    for head, stride in zip(heads, network.head_strides, strict=True):
        assert tuple(a * b for a, b in zip(head.shape[2:], stride, strict=True)) == x.shape[2:]


def reference_noise(count_: int, k: int, first: int = 0) -> Tensor:
    j = torch.arange(first, first + count_, dtype=torch.int64)
    drawn = j.mul_(1_103_515_245).add_(12_345 + 7_919 * k).bitwise_and_(2**31 - 1)  # modulo 2^31
    return drawn.double().div_(2**31).sub_(0.5)


def fill_with_reference_noise(network: NeUNet) -> None:
    """Weights of the golden forward pass: wavelets, encoder, decoder, shuffles, heads."""
    owners = [
        (module, name)
        for module in network.modules()
        for name, _ in module.named_parameters(recurse=False)
    ]
    assert len(owners) == 134
    with torch.no_grad():
        for k, (module, name) in enumerate(owners):
            weight = getattr(module, name)
            mean, scale = 0.0, 0.1
            if name != "bias" and isinstance(module, nn.Conv3d):
                scale = math.sqrt(12) * math.sqrt(2 / weight[0].numel())
            elif name != "bias":
                mean, scale = 1.0, 0.2
            first = 0
            for piece in weight.view(-1).split(2**17):  # stays in the processor's cache
                piece.copy_(reference_noise(len(piece), k, first).mul_(scale).add_(mean))
                first += len(piece)


GOLDEN = {
    "synapse": (
        (1, 1, 16, 64, 64),
        [65539.020, 65539.016, 7840.352, 282.941],
        [
            (-0.059252, 1.038388, -5.26507, 4.00107, 0.063491, -0.001643, -1.66673),
            (-0.026511, 0.525882, -2.69244, 2.65239, -0.054091, -0.202594, 0.047526),
            (-0.006575, 0.847841, -4.47084, 4.28823, 0.194000, 0.638919, 1.86827),
            (0.024308, 0.941795, -3.96163, 3.82662, 0.828014, -0.037151, -0.805048),
            (-0.005194, 2.330989, -5.51024, 5.84501, -0.845036, -2.150339, -3.283685),
        ],
    ),
    "acdc": (
        (1, 1, 10, 64, 64),
        [40958.786, 40958.783, 4901.983, 426.528],
        [
            (-0.201347, 1.056817, -4.97231, 3.78619, 0.165524, 0.027053, -0.740536),
            (0.016962, 0.866156, -4.24657, 4.98036, 0.116141, -0.245079, -0.881796),
            (-0.050914, 0.782811, -3.44490, 4.00500, 0.246473, 0.107862, 1.243927),
            (0.063399, 1.012886, -4.03507, 4.62565, 0.770678, -1.155575, -0.567753),
            (0.064798, 3.025001, -9.61033, 10.37634, 1.345155, -0.547236, -0.117323),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", GOLDEN)
def test_the_golden_forward_pass_is_reproduced(preset: str) -> None:
    shape, energies, rows = GOLDEN[preset]
    network = on_meta(preset).to_empty(device="cpu")  # every weight is filled
    fill_with_reference_noise(network)
    x = (reference_noise(math.prod(shape), 999) * math.sqrt(12)).float().reshape(shape)
    pyramid = network.wavelet_pyramid(x)
    found = [float(bands.double().square().sum()) for bands in pyramid]
    assert found == pytest.approx(energies, rel=1e-7, abs=1e-3)  # the reference summed in float32
    with torch.inference_mode():
        heads = network.eval().heads(x)
    for head, row in zip(heads, rows, strict=True):
        middle = (0, 1, *(extent // 2 for extent in head.shape[2:]))
        values = (
            head.mean(),
            head.std(),
            head.min(),
            head.max(),
            head[0, 0, 0, 0, 0],
            head[0, -1, -1, -1, -1],
            head[middle],
        )
        assert [float(value) for value in values] == pytest.approx(row, abs=1e-4)


def test_normalisation_is_torchs_instance_norm() -> None:
    torch.manual_seed(0)
    unit = ConvUnit(2, 6, (3, 3, 3), (2, 1, 1)).double()
    nn.init.normal_(unit.norm.weight)
    nn.init.normal_(unit.norm.bias)
    x = torch.randn(2, 2, 6, 5, 4, dtype=torch.float64)
    oracle = nn.InstanceNorm3d(6, affine=True).double()
    oracle.load_state_dict(unit.norm.state_dict())
    expected = nn.functional.leaky_relu(oracle(unit.conv(x)), 0.01)
    torch.testing.assert_close(unit(x), expected)


def tiny(**changes: Any) -> NeUNet:
    torch.manual_seed(0)
    values = {**NEUNET_PRESETS["tiny"].model_dump(), "features": (4, 8, 8), **changes}
    return NeUNet(NeUNetSettings(**values))


def test_fresh_weights_are_kaiming_with_zero_biases() -> None:
    network = NeUNet(NEUNET_PRESETS["tiny"])
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            assert not module.bias.any()
            if module.weight.numel() > 5000:
                wanted = math.sqrt(2 / (1 + 0.01**2) / module.weight[0].numel())
                assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.05)


def test_training_gives_all_heads_and_eval_the_finest() -> None:
    network = tiny(features=(4, 8, 8))
    x = torch.randn(2, 1, 8, 12, 8)
    heads = network.train()(x)
    assert [tuple(head.shape) for head in heads] == [(2, 2, 8, 12, 8), (2, 2, 4, 6, 4)]
    single = network.eval()(x)
    assert torch.equal(single, heads[0])
    assert torch.equal(network(x), single)
    for head, again in zip(heads, network.heads(x), strict=True):
        assert torch.equal(head, again)
    assert torch.equal(tiny(deep_supervision=False).train()(x), single)


def test_deep_supervision_weights_halve_and_end_with_zero() -> None:
    weights = on_meta("synapse").deep_supervision_weights
    assert weights == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))


@pytest.mark.parametrize(
    ("preset", "multiple", "strides"),
    [
        ("synapse", (8, 32, 32), [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16)]),
        ("acdc", (2, 32, 32), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (2, 16, 16)]),
        ("brats", (32, 32, 32), [(2**n, 2**n, 2**n) for n in range(5)]),
    ],
)
def test_legal_extents_and_head_strides_follow_from_the_strides(
    preset: str, multiple: tuple[int, ...], strides: list[tuple[int, ...]]
) -> None:
    network = on_meta(preset)
    assert network.size_multiple == multiple
    assert list(network.head_strides) == strides


def test_every_weight_learns_from_the_finest_head_but_the_other_heads() -> None:
    network = tiny()
    network(torch.randn(1, 1, 8, 8, 8))[0].square().mean().backward()
    idle = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert idle == {"segment.0.weight", "segment.0.bias"}


def test_channels_last_and_bfloat16_autocast_give_nearly_the_same() -> None:
    network = tiny().eval()
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.inference_mode():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x)
        network.to(memory_format=torch.channels_last_3d)
        x_last = x.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(network(x_last), expected, rtol=1e-4, atol=1e-4)
    assert (low.float() - expected).abs().mean() < 0.05 * expected.std()


def test_a_flipped_image_gets_its_own_wavelet_coefficients() -> None:
    network = tiny(
        features=(4, 4, 4, 4),
        kernels=((3, 3, 3),) * 4,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    )
    x = torch.randn(1, 1, 8, 8, 8, dtype=torch.float64)
    bands = network.wavelet_pyramid(x)[1]
    flipped = network.wavelet_pyramid(x.flip(4))[1]
    # the detail along the flipped axis (every odd band) changes its sign
    sign = torch.tensor([1, -1] * 4, dtype=torch.float64).reshape(1, 8, 1, 1, 1)
    torch.testing.assert_close(flipped, sign * bands.flip(4))


def test_strides_along_one_axis_or_another_pair_are_possible() -> None:
    network = tiny(
        features=(4, 4, 4, 4),
        kernels=((3, 3, 3),) * 4,
        strides=((1, 1, 1), (1, 1, 2), (2, 1, 2), (1, 1, 1)),
    ).eval()
    x = torch.randn(1, 1, 4, 3, 8)
    assert [bands.shape[1] for bands in network.wavelet_pyramid(x)] == [1, 2]
    assert network(x).shape == (1, 2, 4, 3, 8)


def test_illegal_extents_and_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"nearest legal extents, \(8, 64, 32\)"):
        on_meta("synapse")(torch.empty(1, 1, 11, 48, 40, device="meta"))
    with pytest.raises(ShapeError, match="NeUNet input: expected 4 channels, found 1"):
        on_meta("brats")(torch.empty(1, 1, 32, 32, 32, device="meta"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernels": ((3, 3, 3),)}, "kernels: expected one entry per stage, 3 as in features"),
        ({"kernels": ((3, 3, 2),) * 3}, "kernels: expected odd extents"),
        ({"strides": ((2, 2, 2),) * 3}, r"strides: expected \(1, 1, 1\) first"),
        ({"strides": ((1, 1, 1), (1, 1, 3), (1, 1, 1))}, "strides: expected 1 and 2 only"),
    ],
)
def test_stages_that_do_not_fit_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        tiny(**changes)
