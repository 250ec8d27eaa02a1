"""QTSeg: published counts, shapes, operations and golden values, its loader, and its own laws."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.errors import ConfigError, FormatError, ShapeError
from medseg.models.qtseg import (
    QTSEG_PRESETS,
    Attention,
    ChannelAttention,
    PositionMap,
    QTSeg,
    QTSegSettings,
    SpatialGate,
    TokenMLPs,
)
from medseg.models.yolo_encoder import YoloEncoder


def on_meta(**changes: Any) -> QTSeg:
    with torch.device("meta"):
        return QTSeg(QTSegSettings(**changes))


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def tiny(**changes: Any) -> QTSeg:
    torch.manual_seed(0)
    return QTSeg(QTSegSettings(**{**QTSEG_PRESETS["tiny"].model_dump(), **changes}))


def awake(network: QTSeg) -> QTSeg:
    """The same network with channel attentions that do something."""
    for module in network.modules():
        if isinstance(module, ChannelAttention):
            nn.init.constant_(module.gamma, 0.3)
    return network


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({"out_channels": 1}, 8_996_354),
        ({}, 9_214_850),
        ({"out_channels": 3}, 9_433_346),
        ({"out_channels": 4}, 9_651_842),
        ({"out_channels": 9}, 10_744_322),
        ({"out_channels": 14}, 11_836_802),
        ({"in_channels": 1}, 9_214_562),
    ],
)
def test_the_reference_numbers_of_weights_are_met(changes: dict[str, int], weights: int) -> None:
    network = on_meta(**changes)
    assert count(network) == weights
    if "in_channels" not in changes:
        assert weights == 8_777_858 + 218_496 * network.out_channels


ENCODER = {
    "0": 464,
    "1": 4_672,
    "2": 7_360,
    "3": 18_560,
    "4": 49_664,
    "5": 73_984,
    "6": 197_632,
    "7": 295_424,
    "8": 460_288,
    "9": 164_608,
    "12": 148_224,
    "15": 37_248,
    "16": 36_992,
    "18": 123_648,
    "19": 147_712,
    "21": 493_056,
}
BRIDGE = {
    "fine": [2_112, 8_224, 65_568],
    "middle": [18_496, 8_320, 32_832],
    "coarse": [36_992, 73_856, 33_024],
}


def test_every_layer_of_encoder_and_bridge_has_its_reference_number_of_weights() -> None:
    network = on_meta()
    layers = {name: count(layer) for name, layer in network.encoder.layers.items()}
    assert layers == ENCODER
    assert count(network.encoder) == 2_259_536 == 3_157_200 - 897_664
    bridge = {name: [count(unit) for unit in part] for name, part in _parts(network.bridge)}
    assert bridge == BRIDGE
    assert count(network.bridge) == 279_424


def _parts(module: nn.Module) -> list[tuple[str, Any]]:
    return list(module.named_children())


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_every_part_of_the_decoder_has_its_reference_number_of_weights(tokens: int) -> None:
    decoder = on_meta(out_channels=tokens).decoder
    assert decoder.tokens.numel() == tokens * 256
    stages = [count(stage) for stage in decoder.stages]
    assert stages == [4_473_641, 1_286_022, 298_147]
    mlps = [count(part) for part in decoder.token_mlps]
    assert mlps == [164_480 * tokens, 41_280 * tokens, 12_480 * tokens]
    growth = [count(part) for part in decoder.growth]
    assert growth == [131_456, 32_960, 16_672]
    assert count(decoder) == sum(stages) + sum(mlps) + sum(growth) + tokens * 256
    if tokens == 2:
        assert count(decoder) == 6_675_890


def test_every_part_of_a_dual_mix_block_has_its_reference_number_of_weights() -> None:
    expected = {256: (131_712, 512, 1_050_880), 128: (33_088, 256, 526_464)}
    expected[64] = (8_352, 128, 264_256)
    totals = {256: 1_447_139, 128: 626_339, 64: 289_667}
    depths = {256: 3, 128: 2, 64: 1}
    for width, stage in zip(expected, on_meta().decoder.stages, strict=True):
        attention, norm, mlp = expected[width]
        assert len(stage.blocks) == depths[width]
        assert (count(stage.attention), count(stage.norm)) == (attention, norm)
        for block in stage.blocks:
            assert {name: count(part) for name, part in block.named_children()} == {
                "spatial": 98,
                "channel": 1,
                "read_spatial": attention,
                "read_channel": attention,
                "norm_read": norm,
                "mlp": mlp,
                "norm_mlp": norm,
                "write": attention,
            }
            assert count(block) == totals[width]


def test_position_matrices_are_stored_but_not_learned() -> None:
    network = tiny()
    names = [name for name in network.state_dict() if name.endswith("gaussian")]
    assert names == [f"decoder.positions.{stage}.gaussian" for stage in range(3)]
    assert not set(names) & {name for name, _ in network.named_parameters()}
    other = QTSeg(network.settings)
    assert not torch.equal(
        other.decoder.positions[0].gaussian, network.decoder.positions[0].gaussian
    )
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 32, 64)
    with torch.inference_mode():
        assert torch.equal(other.eval()(x), network.eval()(x))


@pytest.mark.parametrize(
    ("preset", "weights"), [("base", 9_214_850), ("small", 1_754_330), ("tiny", 274_109)]
)
def test_presets_have_the_documented_numbers_of_weights(preset: str, weights: int) -> None:
    assert count(on_meta(**QTSEG_PRESETS[preset].model_dump())) == weights


def test_every_map_has_its_reference_shape() -> None:
    network = on_meta(out_channels=3)
    x = torch.empty(2, 3, 512, 512, device="meta")
    expected = [(2, 64, 64, 64), (2, 128, 32, 32), (2, 256, 16, 16)]
    maps = network.encoder(x)
    assert [tuple(one.shape) for one in maps] == expected
    bridged = network.bridge(maps)
    assert [tuple(one.shape) for one in bridged] == expected
    seen: dict[str, list[Any]] = {"stages": [], "growth": []}
    for name, shapes in seen.items():
        for part in network.decoder.get_submodule(name).children():
            part.register_forward_hook(lambda _m, _i, y, s=shapes: s.append(y))
    low = network.decoder(bridged)
    tokens = [tuple(tokens.shape) for tokens, _ in seen["stages"]]
    assert tokens == [(2, 3, 256), (2, 3, 128), (2, 3, 64)]
    grown = [tuple(one.shape) for one in seen["growth"]]
    assert grown == [(2, 128, 32, 32), (2, 64, 64, 64), (2, 64, 256, 256)]
    assert tuple(low.shape) == (2, 3, 256, 256)
    assert tuple(network(x).shape) == (2, 3, 512, 512)


# fvcore traces with torch.jit, which warns that it is deprecated
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("extent", "giga"), [(224, 0.5022), (256, 0.6526), (512, 2.577555)])
def test_operations_by_fvcore_are_the_reference_ones(extent: int, giga: float) -> None:
    fvcore = pytest.importorskip("fvcore.nn")

    def products(inputs: list[Any], outputs: list[Any]) -> int:
        b, heads, q, e = inputs[0].type().sizes()
        return 2 * b * heads * q * e * inputs[1].type().sizes()[2]

    def scores_and_means(inputs: list[Any], outputs: list[Any]) -> int:
        b, heads, q, e = inputs[0].type().sizes()
        return b * heads * q * (inputs[1].type().sizes()[2] + e)

    network = QTSeg(QTSEG_PRESETS["base"]).eval()
    x = torch.zeros(1, 3, extent, extent)
    attention = "aten::scaled_dot_product_attention"
    flops = fvcore.FlopCountAnalysis(network, x).set_op_handle(attention, products)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # The reference writes the layer norm of the growing maps by hand, which fvcore does not count
    # (it counts 5 for each value of ours), and its position maps are matrix products.
    at_8, at_16, at_32 = ((extent // stride) ** 2 for stride in (8, 16, 32))
    by_hand = 5 * (128 * at_16 + 64 * at_8 + 32 * 4 * at_8 + 64 * 16 * at_8)
    positions = 256 * at_32 + 128 * at_16 + 64 * at_8
    total = flops.total() - by_hand + positions
    assert total / 1e9 == pytest.approx(giga, abs=5e-5)
    if extent == 512:
        assert total == 2_577_554_560
        parts = flops.by_module()
        assert parts["encoder"] / 1e9 == pytest.approx(1.6544, abs=5e-5)
        assert parts["bridge"] / 1e9 == pytest.approx(0.1068, abs=5e-5)
        decoder = parts["decoder"] - by_hand + positions
        assert decoder / 1e9 == pytest.approx(0.8142, abs=5e-5)
        values = fvcore.ActivationCountAnalysis(network, x)
        values.set_op_handle(attention, scores_and_means)
        values.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert total + values.total() + positions // 2 == 2_595_588_736


def reference_noise(*shape: int) -> Tensor:
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    u = torch.sin(12.9898 * i) * 43758.5453
    return (2 * (u - u.floor()) - 1).reshape(shape)


@torch.no_grad()
def fill_with_reference_noise(network: nn.Module) -> None:
    def matrix(weight: Tensor) -> None:
        weight.copy_(reference_noise(*weight.shape) * 2.6 / math.sqrt(weight[0].numel()))

    def vector(weight: Tensor) -> None:
        weight.copy_(0.05 * torch.cos(0.9 * torch.arange(len(weight), dtype=torch.float64)))

    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.ParameterList):  # one matrix or vector per token
                for one in weight:
                    matrix(one) if one.ndim > 1 else vector(one)
            elif weight.ndim > 1:
                matrix(weight)
            elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and name == "weight":
                j = torch.arange(len(weight), dtype=torch.float64)
                weight.copy_(1 + 0.1 * torch.sin(0.5 * j))
            else:
                vector(weight)
        if isinstance(module, nn.BatchNorm2d):
            j = torch.arange(module.num_features, dtype=torch.float64)
            module.running_mean.copy_(0.02 * torch.sin(0.3 * j))
            module.running_var.copy_(1 + 0.1 * torch.cos(0.2 * j))
        elif isinstance(module, PositionMap):
            module.gaussian.copy_(reference_noise(*module.gaussian.shape))


def fingerprint(x: Tensor) -> list[float]:
    flat = x.detach().flatten()
    middle = flat[len(flat) // 2]
    return [float(v) for v in (flat.mean(), flat.std(correction=0), flat[0], middle, flat[-1])]


def record(seen: dict[str, Tensor], network: QTSeg) -> None:
    """Note what encoder layers, stages and decoder give; pixels as ``(b, d, n)``."""

    def note(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, y: seen.__setitem__(name, y))

    for index in ("0", "2", "9"):
        note(f"layer {index}", network.encoder.layers[index])
    for stage, module in zip((2, 1, 0), network.decoder.stages, strict=True):
        note(f"stage {stage}", module)
    for stage, module in zip((2, 1, 0), network.decoder.positions, strict=True):
        note(f"PE s{stage}", module)
    note("encoder", network.encoder)
    note("bridge", network.bridge)
    note("low", network.decoder)


@pytest.fixture(scope="module")
def filled() -> QTSeg:
    network = QTSeg(QTSegSettings(out_channels=3)).double().eval()
    fill_with_reference_noise(network)
    return network


WHOLE = {
    "layer 0": "1.565988652e-01 4.685706574e-01 3.333866430e-01 5.352422160e-02 3.277498033e-01",
    "layer 2": "9.380307316e-02 3.225524574e-01 2.077814105e-01 1.886745570e-02 5.214833017e-03",
    "layer 9": "1.559050843e-03 3.864324972e-02 4.877830545e-02 8.598139474e-02 -4.083360446e-02",
    "S0": "2.708152018e-03 6.565232522e-02 1.786201453e-02 3.955385983e-02 8.532993425e-03",
    "S1": "3.265414161e-03 3.094649272e-02 2.768169432e-02 1.472148372e-02 -4.774483504e-02",
    "S2": "-5.401951901e-05 2.842956107e-02 2.052659617e-02 1.847662438e-02 -6.349105530e-02",
    "F0": "5.316303139e-03 4.363318180e-02 5.234039058e-02 7.342463628e-02 3.080935850e-02",
    "PE s2": "2.242970872e-02 7.067509520e-01 -9.329665993e-01 3.599629490e-01 2.830098315e-01",
    "PE s0": "4.507226055e-02 7.056688255e-01 5.596610874e-01 -8.287215861e-01 8.238032847e-01",
    "tokens s2": "2.172011186e-03 1.002084826 2.597413624 2.592974569 5.371605428e-01",
    "tokens s0": "6.350891454e-03 0.9998881979 -6.882910587e-01 -6.494011465e-01 -7.948089032e-01",
    "low": "9.919126042e-01 6.563903896 5.446781618 6.815092220 8.937280125",
    "logits": "9.919126042e-01 3.533248008 5.446781618 6.815092220 8.937280125",
}


def test_the_golden_forward_pass_is_reproduced(filled: QTSeg) -> None:
    network = copy.deepcopy(filled)
    assert ((1 + reference_noise(5)) / 2).tolist() == pytest.approx(
        [0.9216903898, 0.0572181694, 0.5582225886, 0.3737337143, 0.4534795163], abs=1e-10
    )
    x = reference_noise(2, 3, 64, 64)
    assert fingerprint(x)[:2] == pytest.approx([-9.036721817e-04, 5.752915656e-01], rel=1e-9)
    seen: dict[str, Any] = {}
    record(seen, network)
    logits = network(x)
    assert tuple(seen["low"].shape) == (2, 3, 32, 32)
    found = {name: value for name, value in seen.items() if name in WHOLE}
    found |= {f"S{level}": one for level, one in enumerate(seen["encoder"])}
    found |= {"F0": seen["bridge"][0], "logits": logits}
    # ours are rows of pixels, the reference's are maps with the channels first
    found |= {name: seen[name].T for name in ("PE s2", "PE s0")}
    found |= {f"tokens s{stage}": seen[f"stage {stage}"][0] for stage in (2, 0)}
    for name, row in WHOLE.items():
        expected = [float(value) for value in row.split()]
        assert fingerprint(found[name]) == pytest.approx(expected, rel=1e-8, abs=1e-11), name


PARTS = {
    "F0": "1.873458852e-01 5.352763011e-01 -1.726984998e-01 2.340860259e-01 1.359440054",
    "F1": "1.786224242e-01 5.385351046e-01 -1.416460452e-01 2.277592217e-01 -2.004898373e-01",
    "F2": "1.476590165e-01 4.581219708e-01 -1.416460452e-01 2.277592217e-01 -1.699825562e-01",
    "tokens s2": "2.056975094e-03 9.977626814e-01 3.453195493 1.955890525 4.416019880e-03",
    "pixels s2": "-1.480299200e-02 4.966241576 5.175811551 -9.505872051e-02 1.993494717e-01",
    "tokens s1": "1.055435326e-04 1.001457562 -2.629896742e-01 9.301246922e-01 -1.147770161",
    "pixels s1": "2.271212064e-01 3.354067620 -4.736699588e-01 9.433839689e-02 3.732535344",
    "tokens s0": "6.595946041e-03 1.005364392 -1.961946467 -2.454903054e-01 -1.465543118",
    "pixels s0": "6.412015729e-01 2.778224742 -4.381121068 -2.413610875 -3.311281216",
    "low": "2.229308365 9.386063667 -1.731678841 1.340568604e+01 1.045008701e+01",
}


def test_the_golden_bridge_and_decoder_are_reproduced(filled: QTSeg) -> None:
    network = copy.deepcopy(filled)
    seen: dict[str, Any] = {}
    record(seen, network)
    maps = tuple(
        reference_noise(*shape) for shape in ((2, 64, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2))
    )
    found = {f"F{level}": one for level, one in enumerate(network.bridge(maps))}
    found["low"] = network.decoder(maps)
    for stage in range(3):
        tokens, pixels = seen[f"stage {stage}"]
        found |= {f"tokens s{stage}": tokens, f"pixels s{stage}": pixels.mT}
    for name, row in PARTS.items():
        expected = [float(value) for value in row.split()]
        assert fingerprint(found[name]) == pytest.approx(expected, rel=1e-8, abs=1e-11), name


def test_logits_are_the_low_resolution_products_doubled(filled: QTSeg) -> None:
    x = reference_noise(1, 3, 64, 96)
    with torch.inference_mode():
        low = filled.decoder(filled.bridge(filled.encoder(x)))
        expected = F.interpolate(low, size=(64, 96), mode="bilinear", align_corners=False)
        assert torch.equal(filled(x), expected)


def test_channel_attention_is_that_of_the_row_maximum_minus_the_gram_matrix() -> None:
    torch.manual_seed(0)
    part = ChannelAttention().double()
    maps = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    pixels = maps.flatten(2).mT
    assert torch.equal(part(pixels), pixels)  # gamma starts at 0
    nn.init.constant_(part.gamma, 0.7)
    rows = maps.flatten(2)
    gram = rows @ rows.mT
    weights = torch.softmax(gram.amax(-1, keepdim=True) - gram, dim=-1)
    expected = 0.7 * (weights @ rows) + rows
    torch.testing.assert_close(part(pixels).mT, expected)


def test_channel_attention_is_exact_under_autocast_where_float16_would_overflow() -> None:
    torch.manual_seed(0)
    part = ChannelAttention()
    nn.init.ones_(part.gamma)
    pixels = 10 * torch.randn(1, 4096, 8)
    gram = pixels.mT @ pixels
    assert gram.max() > torch.finfo(torch.float16).max
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(part(pixels), part.eval()(pixels))
            low = part(pixels.to(dtype))
        assert low.dtype == dtype
        with torch.no_grad():
            assert torch.equal(low, part(pixels.to(dtype).float()).to(dtype))


def test_spatial_gate_weighs_pixels_by_the_mean_and_maximum_of_their_channels() -> None:
    torch.manual_seed(0)
    part = SpatialGate().double()
    maps = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    summary = torch.cat((maps.mean(1, keepdim=True), maps.max(1, keepdim=True).values), dim=1)
    expected = maps * torch.sigmoid(F.conv2d(summary, part.conv.weight, padding=3)) + maps
    found = part(maps.flatten(2).mT, (3, 5))
    torch.testing.assert_close(found.mT.reshape(2, 6, 3, 5), expected)


def test_attention_is_the_softmax_of_scaled_products_head_by_head() -> None:
    torch.manual_seed(0)
    part = Attention(32, 4).double()
    query = torch.randn(2, 3, 32, dtype=torch.float64)
    key, value = torch.randn(2, 2, 7, 32, dtype=torch.float64)
    q, k, v = part.query(query), part.key(key), part.value(value)
    heads = []
    for e in (slice(4 * n, 4 * n + 4) for n in range(4)):
        weights = torch.softmax(q[..., e] @ k[..., e].mT / math.sqrt(4), dim=-1)
        heads.append(weights @ v[..., e])
    torch.testing.assert_close(part(query, key, value), part.out(torch.cat(heads, dim=-1)))


def test_token_mlps_are_one_plain_mlp_per_token() -> None:
    torch.manual_seed(0)
    part = TokenMLPs(3, 8, 4).double()
    tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    found = part(tokens)
    for n in range(3):
        y = tokens[:, n]
        for layer in range(3):
            y = F.linear(y, part.weights[layer][n], part.biases[layer][n])
            y = y.relu() if layer < 2 else y
        torch.testing.assert_close(found[:, n], y)
    for parameter in TokenMLPs(4, 64, 64).parameters():  # as nn.Linear
        assert parameter.abs().max() <= 1 / 8
        assert float(parameter.detach().std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.15)


def test_position_maps_hold_sines_then_cosines_of_random_frequencies() -> None:
    torch.manual_seed(0)
    part = PositionMap(64)
    h, w = 5, 7
    x = (torch.arange(w) + 0.5) / w
    y = (torch.arange(h) + 0.5) / h
    centres = 2 * torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) - 1
    phase = 2 * math.pi * centres @ part.gaussian
    expected = torch.cat((phase.sin(), phase.cos()), dim=-1).reshape(h * w, 64)
    torch.testing.assert_close(part(h, w), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(part(h, w), part.requires_grad_(False)(h, w))
        assert part(h, w).dtype == torch.float32
    coarse = copy.deepcopy(part).half()
    fine = copy.deepcopy(coarse).float()
    assert torch.equal(coarse(h, w), fine(h, w).half())
    assert float(PositionMap(4096).gaussian.std()) == pytest.approx(1, abs=0.05)


def test_a_change_of_the_order_of_tokens_changes_the_order_of_logits() -> None:
    network = awake(tiny(out_channels=3)).double().eval()
    x = torch.randn(1, 1, 64, 32, dtype=torch.float64)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        expected = network(x)[:, order]
        network.decoder.tokens.copy_(network.decoder.tokens[order])
        for weight in network.decoder.token_mlps.parameters():
            weight.copy_(weight[order])
        torch.testing.assert_close(network(x), expected)


def test_extents_are_free_multiples_of_32() -> None:
    network = tiny().eval()
    with torch.inference_mode():
        for h, w in ((64, 96), (32, 32), (96, 64), (32, 160)):
            assert network(torch.randn(1, 1, h, w)).shape == (1, 2, h, w)
    assert network.size_multiple == (32, 32)
    assert network.head_strides == ((1, 1),)
    assert network.rank == 2


@pytest.mark.parametrize(("extent", "nearest"), [(80, 96), (100, 96), (112, 128), (8, 32)])
def test_other_extents_are_refused(extent: int, nearest: int) -> None:
    with pytest.raises(ShapeError, match=rf"nearest legal extents, \({nearest}, 64\)"):
        on_meta()(torch.empty(1, 3, extent, 64, device="meta"))


def test_training_on_a_single_pixel_at_stride_32_is_refused() -> None:
    network = tiny()
    x = torch.randn(1, 1, 32, 32)
    with pytest.raises(ShapeError, match="two pixels or more at stride 32") as caught:
        network(x)
    assert caught.value.code == "network-batch"
    assert network(torch.cat((x, x))).shape == (2, 2, 32, 32)
    assert network(torch.cat((x, x), dim=3)).shape == (1, 2, 32, 64)
    assert network.eval()(x).shape == (1, 2, 32, 32)


def test_every_weight_of_the_published_network_learns() -> None:
    torch.manual_seed(0)
    network = QTSeg(QTSEG_PRESETS["base"])
    F.cross_entropy(network(torch.randn(2, 3, 64, 64)), torch.randint(2, (2, 64, 64))).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        if name.endswith("key.bias"):
            # the same for all keys, so no softmax sees it: what is left is rounding
            key_weight = network.get_parameter(name.removesuffix("bias") + "weight")
            assert weight.grad.abs().max() <= 1e-4 * key_weight.grad.abs().max(), name
        else:
            assert weight.grad.any(), name


def test_a_fresh_channel_attention_learns_its_gamma() -> None:
    network = tiny()
    network(torch.randn(1, 1, 64, 64)).square().mean().backward()
    gammas = [part.gamma for part in network.modules() if isinstance(part, ChannelAttention)]
    assert len(gammas) == 3
    assert all(gamma == 0 and gamma.grad != 0 for gamma in gammas)


def test_a_frozen_encoder_keeps_its_weights_but_not_its_statistics() -> None:
    network = on_meta()
    network.freeze_encoder()
    assert sum(w.numel() for w in network.parameters() if w.requires_grad) == 6_955_314
    network.unfreeze_encoder()
    assert sum(w.numel() for w in network.parameters() if w.requires_grad) == 9_214_850
    small = tiny()
    small.freeze_encoder()
    before = small.encoder.layers["0"].bn.running_mean.clone()
    small(torch.randn(2, 1, 32, 64)).square().mean().backward()
    assert all(weight.grad is None for weight in small.encoder.parameters())
    assert all(weight.grad is not None for weight in small.decoder.parameters())
    assert not torch.equal(small.encoder.layers["0"].bn.running_mean, before)


def test_eval_is_deterministic_and_tolerates_low_precision_and_channels_last() -> None:
    network = awake(tiny()).eval()
    x = torch.randn(2, 1, 64, 96)
    with torch.inference_mode():
        expected = network(x)
        assert torch.equal(network(x), expected)
        for dtype, limit in ((torch.bfloat16, 0.03), (torch.float16, 0.005)):
            with torch.autocast("cpu", dtype):
                low = network(x)
            assert (low.float() - expected).abs().mean() < limit * expected.std()
            whole = copy.deepcopy(network).to(dtype)(x.to(dtype))
            assert whole.dtype == dtype
            assert (whole.float() - expected).abs().mean() < limit * expected.std()
        last = network.to(memory_format=torch.channels_last)
        found = last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_exported_program_and_an_onnx_file_take_other_extents(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = awake(tiny(depths=(1, 1, 1, 1))).eval()
    h, w = (torch.export.Dim(axis, min=2, max=64) for axis in "hw")
    shapes = ({2: 32 * h, 3: 32 * w},)
    program = torch.export.export(network, (torch.randn(3, 1, 64, 96),), dynamic_shapes=shapes)
    path = tmp_path / "qtseg.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False, optimize=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 1, 128, 64)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(program.module()(x), expected)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, r"heads: expected a number that divides 2 \* base_width = 32"),
        ({"depths": (1, 2, 2)}, "Field required"),
        ({"mask_depths": (1, 0, 3)}, "greater than or equal to 1"),
        ({"norm_eps": 0}, "greater than 0"),
        ({"width": 16}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_fit_no_network_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        QTSegSettings(**changes)


def test_normalisation_settings_reach_every_batch_normalisation() -> None:
    network = on_meta(norm_eps=1e-3, norm_momentum=0.03)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    strided, chains, pooling, bridge = 7, 6 * 4 + 2 * 6, 2, 9
    assert len(norms) == strided + chains + pooling + bridge
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    reference = next(m for m in on_meta().modules() if isinstance(m, nn.BatchNorm2d))
    assert (reference.eps, reference.momentum) == (1e-5, 0.1)


def test_width_and_depths_follow_the_settings() -> None:
    network = on_meta(base_width=32, depths=(2, 1, 1, 3), neck_depth=2, mask_depths=(2, 1, 1))
    layers = network.encoder.layers
    assert [len(layers[name].m) for name in ("2", "4", "6", "8", "12", "21")] == [2, 1, 1, 3, 2, 2]
    assert [len(stage.blocks) for stage in network.decoder.stages] == [1, 1, 2]
    maps = network.encoder(torch.empty(1, 3, 32, 64, device="meta"))
    assert [tuple(one.shape) for one in maps] == [(1, 128, 4, 8), (1, 256, 2, 4), (1, 512, 1, 2)]


def ultralytics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A YOLOv8 state dict: the same layers under its keys, and part of a detection head."""
    renamed = {f"model.{key.removeprefix('layers.')}": value for key, value in tensors.items()}
    return renamed | {"model.22.dfl.conv.weight": torch.zeros(1, 16, 1, 1)}


def fpn_nano(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the authors' encoder: a kind and a number per layer."""
    kinds = {"0": "conv", "1": "conv", "3": "conv", "5": "conv", "7": "conv", "9": "sppf"}
    kinds |= {"16": "conv", "19": "conv"}
    renamed = {}
    for key, value in tensors.items():
        _, index, rest = key.split(".", 2)
        renamed[f"{kinds.get(index, 'c2f')}_{index}.{rest}"] = value
    return renamed


def donor() -> dict[str, Tensor]:
    torch.manual_seed(1)
    encoder = YoloEncoder(1, 4)
    for name, buffer in encoder.named_buffers():
        if not name.endswith("num_batches_tracked"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return encoder.state_dict()


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize("rename", [ultralytics, fpn_nano])
def test_encoder_weights_are_read_under_either_kind_of_key(
    tmp_path: Path, ending: str, rename: Any
) -> None:
    tensors = donor()
    network = tiny()
    decoder = copy.deepcopy(network.decoder.state_dict())
    network.load_encoder_weights(write(tmp_path / f"encoder.{ending}", rename(tensors)))
    found = network.encoder.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert all(torch.equal(v, decoder[key]) for key, v in network.decoder.state_dict().items())


def test_half_precision_wrapped_and_counterless_encoder_weights_are_read(tmp_path: Path) -> None:
    tensors = {
        f"model.{key}": value.half()
        for key, value in ultralytics(donor()).items()
        if not key.endswith("num_batches_tracked")
    }
    network = tiny()
    network.load_encoder_weights(write(tmp_path / "half.pt", tensors))
    stem = network.encoder.layers["0"].conv.weight
    assert stem.dtype == torch.float32
    assert torch.equal(stem, tensors["model.model.0.conv.weight"].float())
    assert network.encoder.layers["21"].cv2.bn.num_batches_tracked == 0


def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith("model.21.cv2.")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, r"nothing for layers\.21\.cv2\.conv\.weight, .* and 2 more"),
        (lambda t: t | {"model.9.cv3.weight": torch.zeros(1)}, r"unknown keys model\.9\.cv3"),
        (
            lambda t: t | {"model.0.conv.weight": torch.zeros(16, 3, 3, 3)},
            r"of width 4 for 1 image channels, found other shapes model\.0\.conv\.weight "
            r"\(16, 3, 3, 3\) for \(4, 1, 3, 3\)",
        ),
        (lambda t: t | {"decoder.tokens": torch.zeros(1)}, r"found decoder\.tokens"),
        (
            lambda t: {key: value.int() for key, value in t.items()},
            r"found other types of numbers model\.\d.* torch\.int32 for torch\.float32, ",
        ),
        (
            lambda t: t | {"model.0.bn.num_batches_tracked": torch.tensor(1.5)},
            r"model\.0\.bn\.num_batches_tracked torch\.float32 for torch\.int64; ",
        ),
    ],
)
def test_encoder_weights_that_do_not_fit_are_refused_and_change_nothing(
    tmp_path: Path, change: Any, words: str
) -> None:
    network = tiny()
    before = copy.deepcopy(network.state_dict())
    path = write(tmp_path / "encoder.safetensors", change(ultralytics(donor())))
    with pytest.raises(FormatError, match=words) as caught:
        network.load_encoder_weights(path)
    assert caught.value.code == "weights-mismatch"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_pickled_models_checkpoints_and_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": YoloEncoder(1, 4)}, tmp_path / "whole.pt")
    torch.save({"epoch": 3, "state": donor()}, tmp_path / "checkpoint.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump({"model": Path}, file, protocol=2)
    write(tmp_path / "cut.pt", donor())
    for name in ("cut.pt", "cut.safetensors", "empty.pth"):
        source = (tmp_path / "cut.pt").read_bytes()
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else source[: len(source) // 2])
    words = {
        "whole.pt": r"holds more than tensors; .* torch\.save\(model\.float\(\)\.state_dict\(\)",
        "checkpoint.pt": "found int at 'epoch'",
        "list.pt": "found an object of type list",
        "plain.pt": r"holds more than tensors; whole pickled models can run code",
        "text.pt": "damaged, or something else under that name; copy or download it again",
        "cut.pt": "damaged",
        "cut.safetensors": "damaged",
        "empty.pth": "damaged",
    }
    for name, pattern in words.items():
        with pytest.raises(FormatError, match=pattern) as caught:
            tiny().load_encoder_weights(tmp_path / name)
        assert caught.value.code == "weights-format"
        # advice about code is for files that may hold some
        assert ("run code" in str(caught.value)) is (name in {"whole.pt", "plain.pt"})
    torch.save({key: value * torch.nan for key, value in donor().items()}, tmp_path / "nan.pt")
    with pytest.raises(FormatError, match="found NaN or infinity in"):
        tiny().load_encoder_weights(tmp_path / "nan.pt")
    with pytest.raises(FormatError, match="no such file") as caught:
        tiny().load_encoder_weights(tmp_path / "absent.pt")
    assert caught.value.code == "weights-missing"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_write_before_every_key_is_taken_off(tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + key: value for key, value in ultralytics(donor()).items()}
    network = tiny()
    network.load_encoder_weights(write(tmp_path / "wrapped.pt", tensors))
    found = network.encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in donor().items())
    one_without = {**tensors, "model.0.conv.weight": donor()["layers.0.conv.weight"]}
    with pytest.raises(FormatError, match=r"expected keys such as .* found \w+\."):
        network.load_encoder_weights(write(tmp_path / "mixed.pt", one_without))


@pytest.mark.parametrize("source", [None, 3])
def test_what_is_no_path_is_no_file_of_weights(source: Any) -> None:
    with pytest.raises(ConfigError, match="the path of a file, found an object of type"):
        tiny().load_encoder_weights(source)
