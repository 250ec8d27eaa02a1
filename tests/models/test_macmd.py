"""MACMD: reference counts, shapes, operations and golden values, and the laws of its parts."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.models.macmd import (
    MACMD,
    MACMD_PRESETS,
    ChannelAttention,
    ChannelMix,
    ContextGate,
    CrossChannelMix,
    DilatedSum,
    EnhancedAttention,
    Fusion,
    GrowTo,
    MACMDSettings,
    PoolingModulation,
    SpatialAttention,
    UpStep,
    shifted_quarters,
)

B2_CHANNELS = (64, 128, 320, 512)


def on_meta(**changes: Any) -> MACMD:
    with torch.device("meta"):
        return MACMD(MACMDSettings(**changes))


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def unused_norms(channels: tuple[int, ...]) -> int:
    """Weights of the LayerNorms that the reference's four decoder steps own and never use."""
    c1, c2, c3, c4 = channels
    return 2 * (c4 + 2 * c3 + 2 * c2 + 2 * c1)


def growth(channels: tuple[int, ...]) -> int:
    """Weights of the three blocks of APM that the reference makes anew in every call."""
    return 3 * (channels[0] ** 2 + 13 * channels[0])


def as_in_the_reference(ours: int, channels: tuple[int, ...]) -> int:
    return ours + unused_norms(channels) - growth(channels)


def decoder(network: MACMD) -> int:
    return count(network) - count(network.stem, network.encoder, network.segment)


@pytest.mark.parametrize(
    ("encoder", "encoder_weights", "weights"),
    [
        ("pvt_v2_b0", 3_409_760, {9: 5_887_680, 4: 5_887_025, 1: 5_886_632}),
        ("pvt_v2_b1", 13_496_000, {9: 23_248_936}),
        ("pvt_v2_b2", 24_849_856, {9: 34_602_792, 4: 34_601_657, 1: 34_600_976}),
        ("pvt_v2_b3", 44_725_696, {9: 54_478_632}),
        ("pvt_v2_b4", 62_043_072, {9: 71_796_008}),
        ("pvt_v2_b5", 81_443_008, {9: 91_195_944}),
    ],
)
def test_the_reference_numbers_of_weights_are_met(
    encoder: str, encoder_weights: int, weights: dict[int, int]
) -> None:
    for classes, wanted in weights.items():
        network = on_meta(encoder=encoder, out_channels=classes)
        assert count(network.encoder) == encoder_weights
        assert as_in_the_reference(count(network), network.encoder.channels) == wanted


def test_a_resnet50_has_the_reference_number_of_weights_but_its_classifier() -> None:
    network = on_meta(encoder="resnet50")
    channels = network.encoder.channels
    assert channels == (256, 512, 1024, 2048)
    classifier = 2048 * 1000 + 1000
    assert as_in_the_reference(count(network), channels) + classifier == 171_013_824


def test_the_parts_of_pvt_b2_have_their_reference_numbers_of_weights() -> None:
    features = on_meta().encoder.features
    parts = dict(features.named_children())
    stages = [parts[f"stages_{n}"] for n in range(4)]
    embeddings = [parts["patch_embed"], *(stage.downsample for stage in stages[1:])]
    assert [count(part) for part in embeddings] == [9_600, 74_112, 369_600, 1_476_096]
    blocks = [count(stage.blocks) for stage in stages]
    assert blocks == [1_051_392, 2_410_496, 9_937_920, 9_518_592]
    assert [count(stage.norm) for stage in stages] == [128, 256, 640, 1_024]
    assert [len(stage.blocks) for stage in stages] == [3, 4, 6, 3]


def test_every_part_of_the_decoder_has_its_reference_number_of_weights() -> None:
    network = on_meta()
    assert count(network.stem) == 12
    assert [count(gate) for gate in network.gates] == [37_315, 148_355, 923_843, 2_362_883]
    assert count(network.bottleneck) == 4_757_602
    assert count(*list(network.bottleneck)[:6]) == 4_724_736
    assert count(network.bottleneck[6]) == 32_768
    assert count(network.bottleneck[7]) == 98
    pooling = network.pooling
    assert count(pooling) - count(pooling.growth) == 70_801
    assert count(pooling.projections) == 66_048
    assert count(pooling.score) == 529
    assert count(pooling.modulation) == 4_224
    assert [count(part) for part in pooling.growth] == [0, 4_928, 4_928, 4_928]
    mixing = network.mixing
    assert count(mixing) == 252_096
    parts = (mixing.lead_in, mixing.lead_out, mixing.norm, mixing.mix)
    assert [count(part) for part in parts] == [32_960, 33_280, 384, 185_472]
    assert [count(up) for up in network.ups] == [470_144, 546_176, 103_808, 31_424]
    owned = [count(up) + 2 * up[0].in_channels for up in network.ups]
    assert owned == [471_168, 547_456, 104_320, 31_680]
    assert count(network.fusion) == 43_362
    assert [count(head) for head in network.segment] == [297, 585, 1_161]
    assert count(on_meta(out_channels=1).segment) == 227
    assert unused_norms(B2_CHANNELS) == 3_072
    assert growth(B2_CHANNELS) == 14_784
    assert decoder(network) == 9_762_593
    assert as_in_the_reference(decoder(network), B2_CHANNELS) == 9_750_881
    assert count(network) == 34_614_504


@pytest.mark.parametrize(
    ("encoder", "channels", "weights"),
    [
        ("pvt_v2_b0", (32, 64, 160, 256), 2_476_729),
        ("pvt_v2_b1", B2_CHANNELS, 9_750_881),
        ("maxvit_tiny_tf_224", (64, 128, 256, 512), 9_198_433),
        ("convnext_tiny", (96, 192, 384, 768), 20_588_553),
    ],
)
def test_the_decoder_follows_the_widths_of_the_encoder(
    encoder: str, channels: tuple[int, ...], weights: int
) -> None:
    network = on_meta(encoder=encoder)
    assert network.encoder.channels == channels
    assert as_in_the_reference(decoder(network), channels) == weights


@pytest.mark.parametrize("c", [16, 48])
def test_closed_forms_count_the_parts(c: int) -> None:
    with torch.device("meta"):
        assert count(DilatedSum(c)) == 9 * c**2 + 4 * c
        assert count(ContextGate(c)) == 9 * c**2 + 7 * c + 3
        assert count(EnhancedAttention(c)) == 18 * c**2 + 12 * c + c**2 // 8 + 98
        assert count(ChannelAttention(c)) == c**2 // 8
        assert count(GrowTo(c, 4)) == c**2 + 13 * c
        assert count(ChannelMix(c)) == 5 * c**2 + 6 * c
        o = 3 * c
        assert count(UpStep(c, o)) == c**2 + 85 * c + c * o + 2 * o
        levels = (c, 2 * c, 4 * c, 8 * c)
        pooling = PoolingModulation(levels)
        registered = sum(level * c + 2 * c for level in levels)
        registered += c**2 // 8 + c // 8 + c // 8 + 1 + c**2 + 2 * c
        assert count(pooling) == registered + growth(levels)
        e, three = 3 * c, levels[:3]
        mixing = sum(three) * c + 3 * c + sum(three) * c + sum(three) + 2 * e + 5 * e**2 + 6 * e
        assert count(CrossChannelMix(three, 0.05)) == mixing
        assert count(Fusion(c)) == 6 * c**2 + 4 * c + c**2 // 2 + 98 + 4 * c**2


def test_the_presets_are_what_they_are_said_to_be() -> None:
    with torch.device("meta"):
        networks = {name: MACMD(settings) for name, settings in MACMD_PRESETS.items()}
    assert count(networks["base"]) == 34_614_504
    published = MACMD_PRESETS["base"]
    assert (published.in_channels, published.out_channels) == (1, 9)
    assert (published.drop_path, published.mix_drop_path) == (0.1, 0.05)
    assert count(networks["tiny"]) < 1_500_000
    multiples = {name: network.size_multiple for name, network in networks.items()}
    assert multiples.pop("maxvit") == (224, 224)
    assert set(multiples.values()) == {(32, 32)}


def published_mixing(part: CrossChannelMix, levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """MSCCM in the order of the reference: projections and their inverses all at stride 4."""

    def resized(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    up = levels[::-1]
    z = torch.cat([p(resized(x, levels[0])) for p, x in zip(part.lead_in, up, strict=True)], dim=1)
    tokens = z.permute(0, 2, 3, 1)
    out = (tokens + part.drop_path(part.norm(part.mix(tokens)))).permute(0, 3, 1, 2)
    pieces = zip(part.lead_out, out.chunk(3, dim=1), up, strict=True)
    return tuple(resized(p(y), like) for p, y, like in pieces)[::-1]


class AsCounted(nn.Module):
    """All heads, MSCCM in the reference's order: the work that the reference was counted at."""

    def __init__(self, network: MACMD) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network.heads(x)


def reference_macs(encoder: str, size: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415 - only these tests need it

    # fvcore counts matrix products, convolutions, norms and bilinear resizing, one operation for a
    # multiply-add; fused attention is unknown to it
    network = MACMD(MACMDSettings(encoder=encoder)).eval()
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    # the reference's blocks of APM are new in every call and so in training mode
    network.pooling.growth.train()
    mixing = network.mixing
    monkeypatch.setattr(mixing, "forward", lambda levels: published_mixing(mixing, levels))
    counted = FlopCountAnalysis(AsCounted(network), torch.zeros(1, 1, size, size))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counted


MAC_WARNINGS = [
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
    "ignore:`torch.jit.trace:DeprecationWarning",
    "ignore:`torch.jit.trace:FutureWarning",
    "ignore::torch.jit.TracerWarning",
]


@pytest.mark.filterwarnings(*MAC_WARNINGS)
@pytest.mark.parametrize(
    ("encoder", "size", "giga"),
    [("pvt_v2_b0", 224, 1.145), ("pvt_v2_b0", 256, 1.511), ("pvt_v2_b2", 256, 8.146)],
)
def test_multiply_adds_are_the_reference_ones(
    encoder: str, size: int, giga: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = reference_macs(encoder, size, monkeypatch)
    assert round(counted.total() / 1e9, 3) == giga


@pytest.mark.filterwarnings(*MAC_WARNINGS)
def test_multiply_adds_of_every_part_are_the_reference_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = reference_macs("pvt_v2_b2", 224, monkeypatch)
    assert round(counted.total() / 1e9, 3) == 6.193
    found = {name: macs / 1e9 for name, macs in counted.by_module().items()}
    expected = {
        "gates.0": 0.116,
        "gates.1": 0.116,
        "gates.2": 0.181,
        "gates.3": 0.116,
        "bottleneck": 0.231,
        "pooling": 0.133,
        "mixing": 0.801,
        "ups.0": 0.023,
        "ups.1": 0.108,
        "ups.2": 0.082,
        "ups.3": 0.100,
        "fusion": 0.130,
    }
    for name, giga in expected.items():
        # one unit of the last printed digit
        assert found[f"network.{name}"] == pytest.approx(giga, abs=1e-3), name
    assert round(found["network.encoder"], 3) == 4.045
    assert round(sum(found[f"network.{name}"] for name in expected), 3) == 2.136


def test_every_stage_has_its_reference_shape() -> None:
    network = on_meta()
    seen: dict[str, Any] = {}
    for name in ("encoder", "mixing", "ups.0", "ups.1", "ups.2", "fusion", "ups.3", "pooling"):
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, y, n=name: seen.__setitem__(
                n, [tuple(t.shape[1:]) for t in (y if isinstance(y, tuple) else (y,))]
            )
        )
    heads: list[tuple[int, ...]] = []
    for head in network.segment:
        head.register_forward_hook(lambda _m, _i, y: heads.append(tuple(y.shape)))
    outputs = network(torch.empty(2, 1, 224, 224, device="meta"))
    maps = [(64, 56, 56), (128, 28, 28), (320, 14, 14), (512, 7, 7)]
    assert seen == {
        "encoder": maps,
        "mixing": maps[:3],
        "pooling": [(64, 56, 56)],
        "ups.0": [(320, 14, 14)],
        "ups.1": [(128, 28, 28)],
        "ups.2": [(64, 56, 56)],
        "fusion": [(128, 56, 56)],
        "ups.3": [(32, 112, 112)],
    }
    assert heads == [(2, 9, 112, 112), (2, 9, 56, 56), (2, 9, 28, 28)]
    assert [tuple(y.shape) for y in outputs] == [(2, 9, 224, 224)] * 3


def reference_noise(size: int) -> Tensor:
    raw = torch.sin(12.9898 * torch.arange(1, size + 1, dtype=torch.float64)) * 43758.5453
    return 2 * (raw - raw.floor()) - 1


def fill_with_reference_noise(network: nn.Module) -> None:
    """Weights of the golden forward pass; a rule of shape and kind, not of order or name."""
    with torch.no_grad():
        for module in network.modules():
            for name, weight in module.named_parameters(recurse=False):
                j = torch.arange(weight.numel(), dtype=torch.float64)
                if weight.ndim >= 2:
                    fan = weight.numel() / weight.shape[0]
                    value = reference_noise(weight.numel()) * 3.0 / math.sqrt(fan)
                elif name == "weight":
                    value = 1 + 0.1 * torch.sin(0.5 * j)
                else:
                    value = 0.05 * torch.cos(0.9 * j)
                weight.copy_(value.reshape(weight.shape))
            for name, buffer in module.named_buffers(recurse=False):
                j = torch.arange(buffer.numel(), dtype=torch.float64)
                if name == "running_mean":
                    buffer.copy_(0.02 * torch.sin(0.3 * j))
                elif name == "running_var":
                    buffer.copy_(1 + 0.1 * torch.cos(0.2 * j))


# mean, population std, first, middle and last element
GOLDEN = {
    ("pvt_v2_b0", 4): """
stem 4.680710186e-01 7.441901654e-01 2.132232139 0 0
x1 -7.883146124e-04 1.010349216 1.032931894 5.631363966e-02 2.296229720e-01
x2 -6.719731630e-03 9.937226932e-01 1.037234386 8.951071624e-01 -4.952041426e-01
x3 8.427922323e-04 1.016889087 -7.580285477e-01 -9.585295824e-01 1.645498461
x4 -9.510616289e-04 1.005759326 1.511216486 2.067572394 -1.954849591e-02
gates.0 8.370275425e-01 1.498080351 0 0 4.140585808e-01
gates.1 7.949644057e-01 1.229765306 2.916819630 3.911702643 8.925065261e-01
gates.2 1.645809239e-01 4.263050191e-01 3.122669049e-02 0 1.373523718e-02
gates.3 3.762112842e-01 6.019652249e-01 0 0 3.682674351e-01
bottleneck 6.351316574e-02 1.042481310e-01 0 0 1.576294465e-02
pooling 3.335218655e-01 7.281207910e-01 5.084741609e-01 4.869736860e-01 -3.830682613e-02
e3 3.108859823e-01 2.849481460 -2.401170359 -2.680014945 -3.575068984
e2 -7.757938399e-02 3.744414948 10.10406522 12.76261372 2.745778901
e1 9.459201004e-01 3.420860173 6.135900993e-01 -1.477588635 2.176810307
ups.0 2.812055104e-02 3.604826392e-02 0 0 0
ups.1 8.826374102e-01 1.285733617 0 0 1.703329197
ups.2 2.368291404 2.638747906 0 0 0
fusion -3.630651237e-05 1.027566678e-02 -1.066109145e-03 -8.472603462e-04 -2.746152108e-09
ups.3 2.525103994e-02 3.967079809e-02 3.044721037e-02 3.084988996e-02 0
segment.0 -4.005379721e-02 1.176612400e-01 1.583142745e-01 1.571276541e-01 -1.915963103e-01
segment.1 -3.391393047 5.091182728 1.553720892e-01 -1.190023198 -11.15825491
segment.2 -2.697320778e-02 2.013997493 -7.843286068e-01 -6.893580438e-01 2.796986840e-01
sigmoid0 4.899989474e-01 2.934316723e-02 5.394961108e-01 5.392012930e-01 4.522469144e-01
sigmoid1 3.211631653e-01 3.630042243e-01 5.387650697e-01 2.332547868e-01 1.425690553e-05
sigmoid2 5.071145440e-01 3.150918805e-01 3.133877229e-01 3.341758948e-01 5.694723507e-01
""",
    ("pvt_v2_b2", 9): """
x1 -7.975835017e-03 1.003448655 9.394941608e-01 1.141560528 1.737489590
x4 -1.475056760e-03 1.000561458 2.634555557e-01 1.526618009e-02 -1.390264660e-01
gates.0 1.011549434 1.545362035 1.165525346 3.743840485e-01 5.738809204e-01
bottleneck 4.645470346e-02 9.313307685e-02 2.214825399e-01 2.233649196e-01 0
pooling 2.750057855e-01 8.965175708e-01 4.126495188e-02 1.764225523e-02 3.682464858e-01
e3 1.623017200e-01 3.791326486 5.677194488e-01 1.778589134 5.821346333
e1 -5.639920233e-01 2.802145815 3.149839200 4.179467653 3.959444168e-01
ups.2 2.046477040 2.811515274 0 0 0
segment.0 -1.285143974e-02 8.049708607e-02 5.590224862e-02 5.308085847e-02 3.369771408e-02
sigmoid0 4.968001884e-01 2.006924907e-02 5.139719238e-01 5.132670997e-01 5.084236314e-01
sigmoid1 6.330975842e-01 4.272855475e-01 2.290287409e-02 6.420029107e-03 4.765496016e-04
sigmoid2 5.403002228e-01 4.041741952e-01 1.136172784e-01 4.480469464e-02 9.901608106e-01
""",
}


def fingerprint(y: Tensor) -> list[float]:
    flat = y.detach().reshape(-1)
    values = (flat.mean(), flat.std(correction=0), flat[0], flat[flat.numel() // 2], flat[-1])
    return [float(value) for value in values]


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda key: key[0])
def golden(request: pytest.FixtureRequest) -> tuple[str, dict[str, list[float]]]:
    """The rows expected, and those found by a forward pass of the filled network."""
    encoder, classes = request.param
    network = MACMD(MACMDSettings(encoder=encoder, out_channels=classes)).double().eval()
    fill_with_reference_noise(network)
    x = reference_noise(2 * 64 * 64).reshape(2, 1, 64, 64)
    found = {"input": fingerprint(x)}
    groups = {"encoder": ("x1", "x2", "x3", "x4"), "mixing": ("e1", "e2", "e3")}
    for name, module in network.named_modules():

        def record(_m: Any, _i: Any, y: Any, n: str = name) -> None:
            for key, tensor in zip(
                groups.get(n, (n,)), y if isinstance(y, tuple) else (y,), strict=False
            ):
                if isinstance(tensor, Tensor):
                    found[key] = fingerprint(tensor)

        module.register_forward_hook(record)
    with torch.inference_mode():
        for n, y in enumerate(network.heads(x)):
            found[f"sigmoid{n}"] = fingerprint(y.sigmoid())
        assert fingerprint(network(x).sigmoid()) == found["sigmoid0"]
    return GOLDEN[request.param], found


def test_the_golden_forward_pass_is_reproduced(
    golden: tuple[str, dict[str, list[float]]],
) -> None:
    table, found = golden
    assert found["input"][:2] == pytest.approx((6.520111663e-03, 5.722327659e-01), rel=1e-9)
    rows = [line.split() for line in table.strip().splitlines()]
    assert len(rows) in (12, 25)
    for name, *values in rows:
        # ten digits are printed; a mean of values near 1 has as many places, not as many digits
        wanted = [float(value) for value in values]
        assert found[name] == pytest.approx(wanted, rel=2e-9, abs=2e-13), name


def tiny(**changes: Any) -> MACMD:
    torch.manual_seed(0)
    return MACMD(MACMD_PRESETS["tiny"].model_copy(update=changes))


def randomised(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, with norms and blends away from their neutral first values."""
    torch.manual_seed(1)
    for name, weight in module.named_parameters():
        if weight.ndim == 1 or "mu" in name:
            nn.init.uniform_(weight, 0.2, 0.9)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return module.double().eval()


def test_chunks_are_summed_along_cyclic_diagonals() -> None:
    part = randomised(DilatedSum(8))
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    branches = [
        F.conv2d(x, b.weight, b.bias, padding=r, dilation=r, groups=4)
        for b, r in zip(part.branches, (1, 2, 3, 5), strict=True)
    ]
    # moving chunk k + j to place k is a roll of the channels
    expected = sum(branch.roll(-2 * j, dims=1) for j, branch in enumerate(branches))
    torch.testing.assert_close(part(x), expected)


def test_every_output_chunk_sees_every_input_chunk_once_per_dilation() -> None:
    part = DilatedSum(4).double()
    x = torch.randn(1, 4, 11, 11, dtype=torch.float64, requires_grad=True)
    for k in range(4):
        (grad,) = torch.autograd.grad(part(x)[0, k, 5, 5], x)
        for j, dilation in enumerate((1, 2, 3, 5)):
            rows = grad[0, (k + j) % 4].abs().sum(dim=1).nonzero().flatten()
            assert rows.tolist() == [5 - dilation, 5, 5 + dilation]


def test_the_gate_scales_the_rectified_context() -> None:
    part = randomised(ContextGate(8))
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    context = F.relu(part.context[1](part.context[0](x)))
    gate = torch.sigmoid(part.gate[1](part.gate[0](context)))
    assert gate.shape == (2, 1, 5, 4)
    torch.testing.assert_close(part(x), context * gate)
    assert (part(x) >= 0).all()


def test_attentions_scale_channels_and_pixels() -> None:
    x = torch.randn(2, 32, 5, 4, dtype=torch.float64)
    channels = ChannelAttention(32).double()
    scale = channels(x) / x
    torch.testing.assert_close(scale, scale[:, :, :1, :1].expand_as(scale))
    pixels = SpatialAttention().double()
    scale = pixels(x) / x
    torch.testing.assert_close(scale, scale[:, :1].expand_as(scale))
    summary = torch.stack((x.mean(dim=1), x.max(dim=1).values), dim=1)
    wanted = torch.sigmoid(F.conv2d(summary, pixels.conv.weight, padding=3))
    torch.testing.assert_close(scale[:, :1], wanted)


def test_pooling_modulation_is_its_formula() -> None:
    part = randomised(PoolingModulation((8, 12, 16, 20)))
    levels = tuple(
        torch.randn(2, c, 16 // 2**n, 24 // 2**n, dtype=torch.float64)
        for n, c in enumerate((8, 12, 16, 20))
    )
    z = []
    for n, level in enumerate(levels):
        projected = F.relu(part.projections[n][1](part.projections[n][0](level)))
        if n:
            near = projected.repeat_interleave(2**n, dim=2).repeat_interleave(2**n, dim=3)
            projected = part.growth[n].smooth(near)
        z.append(projected)
    weights = torch.softmax(torch.stack([part.score(level) for level in z]), dim=0)
    pooled = (weights * torch.stack(z)).sum(dim=0)
    conv, norm = part.modulation[0], part.modulation[1]
    expected = sum(
        torch.sigmoid(norm(conv((level.sigmoid() * pooled) * (pooled.sigmoid() * level)))) * level
        for level in z
    )
    torch.testing.assert_close(part(levels), expected / 4)


def test_growth_keeps_what_it_learned() -> None:
    # the reference made these blocks anew in every call
    network = tiny().eval()
    names = [name for name in network.state_dict() if name.startswith("pooling.growth")]
    assert len(names) == 3 * 9
    x = torch.randn(1, 1, 32, 64)
    assert torch.equal(network(x), network(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_a_shift_takes_the_neighbours_of_one_pixel() -> None:
    z = torch.arange(1.0, 7.0).reshape(1, 2, 3, 1).expand(1, 2, 3, 4)
    left, right, above, below = shifted_quarters(z)[0].unbind(dim=2)
    assert left.tolist() == [[0, 1, 2], [0, 4, 5]]
    assert right.tolist() == [[2, 3, 0], [5, 6, 0]]
    assert above.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert below.tolist() == [[4, 5, 6], [0, 0, 0]]


def test_channel_mixing_is_its_formula() -> None:
    part = randomised(ChannelMix(8))
    z = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    s = shifted_quarters(z)
    key = part.key(z * part.mu_key + s * (1 - part.mu_key))
    receptance = part.receptance(z * part.mu_receptance + s * (1 - part.mu_receptance))
    expected = torch.sigmoid(receptance) * part.value(part.norm(F.relu(key) ** 2))
    torch.testing.assert_close(part(z), expected)
    assert ChannelMix(8).mu_key.flatten().tolist() == [0.5] * 8


def test_channel_mixing_survives_squares_beyond_float16() -> None:
    part = ChannelMix(8).eval()
    z = 2000 * torch.randn(1, 4, 4, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        low = part(z)
        assert part.key(z).abs().max() > 256  # whose square float16 does not hold
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), part(z), rtol=0.05, atol=0.02)


def test_mixing_commutes_with_resizing_as_published() -> None:
    part = randomised(CrossChannelMix((8, 12, 16), 0.05))
    levels = tuple(
        torch.randn(2, c, 16 // 2**n, 24 // 2**n, dtype=torch.float64)
        for n, c in enumerate((8, 12, 16))
    )
    found = part(levels)
    assert [tuple(y.shape) for y in found] == [tuple(x.shape) for x in levels]
    for y, wanted in zip(found, published_mixing(part, levels), strict=True):
        torch.testing.assert_close(y, wanted)


def last_decoder_map(network: MACMD, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    hook = network.ups[3].register_forward_hook(lambda _m, _i, y: kept.append(y))
    network(x)
    hook.remove()
    return kept[0]


def test_training_gives_three_outputs_and_eval_the_first() -> None:
    network = tiny()
    x = torch.randn(2, 1, 32, 64)
    assert [tuple(y.shape) for y in network.train()(x)] == [(2, 2, 32, 64)] * 3
    assert network.head_strides == ((1, 1),) * 3
    assert network.deep_supervision_weights == pytest.approx((1 / 3,) * 3)
    assert math.fsum(network.deep_supervision_weights) == pytest.approx(1)
    single = network.eval()(x)
    assert torch.equal(single, network.heads(x)[0])
    logits = network.segment[0](last_decoder_map(network, x))
    wanted = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(single, wanted)


def test_without_deep_supervision_the_other_heads_do_not_exist() -> None:
    network = tiny(deep_supervision=False)
    assert count(network.segment) == 17 * 2
    assert network.head_strides == ((1, 1),)
    assert network.deep_supervision_weights == (1.0,)
    output = network.train()(torch.randn(2, 1, 32, 32))
    assert output.shape == (2, 2, 32, 32)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_weight_learns(in_channels: int, deep_supervision: bool) -> None:
    network = tiny(in_channels=in_channels, deep_supervision=deep_supervision, out_channels=3)
    outputs = network(torch.randn(2, in_channels, 32, 64))
    target = torch.randint(0, 3, (2, 32, 64))
    outputs = outputs if deep_supervision else (outputs,)
    sum(F.cross_entropy(y, target) for y in outputs).backward()
    assert [n for n, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(("in_channels", "weights"), [(1, 12), (2, 15), (3, 0), (4, 21)])
def test_the_stem_brings_an_image_to_three_channels(in_channels: int, weights: int) -> None:
    network = tiny(in_channels=in_channels).eval()
    assert count(network.stem) == weights
    x = torch.randn(1, in_channels, 32, 32)
    assert network.stem(x).shape == (1, 3, 32, 32)
    assert network(x).shape == (1, 2, 32, 32)


def test_extents_may_change_from_call_to_call() -> None:
    network = tiny().eval()
    with torch.inference_mode():
        first = network(x := torch.randn(1, 1, 32, 64))
        for extents in ((64, 32), (96, 64), (32, 32)):
            assert network(torch.randn(1, 1, *extents)).shape == (1, 2, *extents)
        assert torch.equal(network(x), first)


def test_channels_last_and_autocast_give_nearly_the_same() -> None:
    network = tiny().eval()
    x = torch.randn(1, 1, 32, 64)
    with torch.inference_mode():
        expected = network(x)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                low = network(x)
            assert low.dtype == dtype
            assert (low.float() - expected).abs().mean() < 0.02 * expected.std()
        last = network.to(memory_format=torch.channels_last)
        found = last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_acts_in_training_alone() -> None:
    network = tiny(drop_path=0.5, mix_drop_path=0.5)
    dropped = {m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"}
    assert max(dropped) == 0.5
    assert network.mixing.drop_path.drop_prob == 0.5
    mixing = network.mixing.train()
    levels = tuple(torch.randn(64, c, 8 // n, 8 // n) for c, n in ((24, 1), (32, 2), (48, 4)))
    torch.manual_seed(3)
    one = mixing(levels)[0]
    torch.manual_seed(4)
    assert not torch.equal(mixing(levels)[0], one)
    mixing.eval()
    assert torch.equal(mixing(levels)[0], mixing(levels)[0])


def test_one_image_of_one_coarse_pixel_is_refused_in_training_alone() -> None:
    network = tiny()
    x = torch.randn(1, 1, 32, 32)
    with pytest.raises(ShapeError, match=r"train with a batch of at least 2 or with larger images"):
        network(x)
    assert len(network(x.repeat(2, 1, 1, 1))) == 3
    assert len(network(x.repeat(1, 1, 1, 2))) == 3
    assert network.eval()(x).shape == (1, 2, 32, 32)


def test_illegal_extents_and_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"nearest legal extents, \(32, 64\)"):
        on_meta()(torch.empty(1, 1, 40, 50, device="meta"))
    with pytest.raises(ShapeError, match="MACMD input: expected 3 channels, found 1"):
        on_meta(in_channels=3)(torch.empty(1, 1, 32, 32, device="meta"))


def test_an_encoder_built_for_another_size_has_other_legal_extents() -> None:
    network = on_meta(encoder="maxvit_tiny_tf_224", encoder_image_size=64)
    assert network.size_multiple == (64, 64)
    assert network.nearest_legal_extents((100, 70)) == (128, 64)


@pytest.mark.parametrize("encoder", ["resnet10t", "convnext_atto", "mambaout_femto"])
def test_other_encoders_serve_as_well(encoder: str) -> None:
    network = MACMD(MACMDSettings(encoder=encoder, out_channels=2)).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 1, 32, 64)).isfinite().all()


def test_an_encoder_whose_channels_do_not_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of 4 .* found \(38, 61, 128, 185\)"):
        on_meta(encoder="rexnet_100")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 0}, "greater than or equal to 1"),
        ({"out_channels": 0}, "greater than or equal to 1"),
        ({"encoder": ""}, "at least 1 character"),
        ({"encoder_image_size": 100}, "multiple of 32"),
        ({"drop_path": 1.0}, "less than 1"),
        ({"mix_drop_path": -0.1}, "greater than or equal to 0"),
        ({"final_channels": 0}, "greater than or equal to 1"),
        ({"sigmoid": True}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MACMDSettings(**changes)
