"""TransDAE: the counts, shapes, operations and closed forms of the reconstruction, and its laws."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ShapeError
from medseg.models.transdae import (
    TRANSDAE_PRESETS,
    CrossAttentionSkip,
    DualBlock,
    EfficientAttention,
    InterScaleInteraction,
    MapConv2d,
    MixFFN,
    PatchExpand,
    ScaleGathering,
    SpatialReductionAttention,
    TransDAE,
    TransDAESettings,
    TransposedAttention,
    efficient_attention,
)

NARROW = {"dims": (64, 128, 320), "heads": (1, 2, 5)}
IDLE_IN_DAEFORMER = 18_382_864


def settings_of(preset: str, **changes: Any) -> TransDAESettings:
    return TransDAESettings(**{**TRANSDAE_PRESETS[preset].model_dump(), **changes})


def on_meta(preset: str, **changes: Any) -> TransDAE:
    with torch.device("meta"):
        return TransDAE(settings_of(preset, **changes))


def tiny(**changes: Any) -> TransDAE:
    torch.manual_seed(0)
    return TransDAE(settings_of("tiny", **changes))


def two_stages(**changes: Any) -> TransDAE:
    sizes = {"dims": (8, 16), "depths": (1, 1), "decoder_depths": (1,)}
    return tiny(**{**sizes, "heads": (1, 2), "reductions": (2, 1), **changes})


def count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def randomised(module: nn.Module) -> nn.Module:
    """The module in float64 with no weight at its neutral value."""
    torch.manual_seed(0)
    for weight in module.double().parameters():
        nn.init.normal_(weight, std=0.5)
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    ("preset", "changes", "weights"),
    [
        ("base", {}, 40_656_905),
        ("v1", {}, 27_795_033),
        ("daeformer", {}, 29_690_201),
        ("base", NARROW, 10_854_089),
    ],
)
def test_the_reference_numbers_of_weights_are_met(
    preset: str, changes: dict[str, Any], weights: int
) -> None:
    assert count(on_meta(preset, **changes)) == weights


def test_the_weights_do_not_depend_on_the_order_in_a_block() -> None:
    assert {
        count(on_meta("base", order=order))
        for order in ("spatial_first", "channel_first", "parallel")
    } == {40_656_905}


def test_tiny_has_fewer_than_a_million_weights() -> None:
    assert count(on_meta("tiny")) < 1_000_000


@pytest.mark.parametrize(
    ("preset", "blocks"),
    [("base", (1_457_792, 4_136_000, 7_404_032)), ("v1", (408_456, 2_495_688, 6_352_392))],
)
def test_every_component_has_its_reference_number_of_weights(
    preset: str, blocks: tuple[int, ...]
) -> None:
    network = on_meta(preset)
    embeds = [count(stage.embed, stage.embed_norm) for stage in network.encoder]
    assert embeds == [19_200, 369_600, 1_476_096]
    for stage, weights in zip(network.encoder, blocks, strict=True):
        assert [count(block) for block in stage.blocks] == [weights, weights]
    for level, weights in zip(network.decoder, blocks[1::-1], strict=True):
        assert [count(block) for block in level.blocks] == [weights, weights]
    assert [count(level.expand) for level in network.decoder] == [524_800, 205_120]
    assert [count(level.skip) for level in network.decoder] == [434_880, 75_648]
    assert count(network.expand) == 262_400
    assert count(network.head) == 1_161


def idle_norms(*modules: nn.Module) -> int:
    """Weights of the two unused LayerNorms that DAE-Former's code has in every Mix-FFN."""
    ffns = [part for module in modules for part in module.modules() if isinstance(part, MixFFN)]
    return sum(2 * 2 * ffn.depthwise.in_channels for ffn in ffns)


def test_daeformer_as_released_is_ours_and_its_idle_weights() -> None:
    network = on_meta("daeformer")
    coarse, fine = network.decoder
    with torch.device("meta"):
        # the decoder's first step owns a whole level of 512 channels and uses its expansion alone
        idle_level = nn.ModuleList(
            [nn.Linear(512, 512), CrossAttentionSkip(512, network.settings)]
            + [DualBlock(2, network.settings) for _ in range(2)]
        )
    block_counts = [
        count(stage.blocks[0]) + idle_norms(stage.blocks[0]) for stage in network.encoder
    ]
    assert block_counts == [412_552, 2_505_928, 6_368_776]
    encoder = count(network.encoder) + idle_norms(network.encoder)
    second = count(coarse.expand, idle_level) + idle_norms(idle_level)
    first = count(coarse) - count(coarse.expand) + idle_norms(coarse) + count(fine.expand)
    last = count(fine, network.expand, network.head) - count(fine.expand) + idle_norms(fine)
    assert [encoder, second, first, last] == [20_441_328, 18_810_384, 7_373_776, 1_447_577]
    assert encoder + second + first + last == 48_073_065
    idle = count(idle_level) + idle_norms(network, idle_level)
    assert idle == IDLE_IN_DAEFORMER
    assert count(network) + idle == 48_073_065


@pytest.mark.parametrize("c", [8, 24, 128])
def test_closed_forms_count_the_weights_of_each_part(c: int) -> None:
    settings = TransDAESettings(dims=(c, 2 * c), depths=(1, 1), decoder_depths=(1,), block="v1")
    with torch.device("meta"):
        assert count(EfficientAttention(c, 1)) == 4 * c**2 + 4 * c
        assert count(SpatialReductionAttention(c, 2, 1)) == 4 * c**2 + 4 * c
        for r in (2, 8):
            reduced = 4 * c**2 + 4 * c + r**2 * c**2 + c + 2 * c
            assert count(SpatialReductionAttention(c, 2, r)) == reduced
        assert count(TransposedAttention(c, 8)) == 4 * c**2 + c + 8
        assert count(MixFFN(c, 4 * c, "mix_skip")) == 8 * c**2 + 53 * c
        assert count(MixFFN(c, 4 * c, "mix")) == 8 * c**2 + 45 * c
        block = DualBlock(0, settings)
        assert count(*(m for m in block.modules() if isinstance(m, nn.LayerNorm))) == (
            8 * c + 2 * 8 * c  # the block's four, and one in each Mix-FFN
        )
        isim = InterScaleInteraction(c, settings)
        assert count(isim) == 4 * c**2 + 79 * c
        assert isim.local.weight[0].numel() + isim.distant.weight[0].numel() == 74
        added = settings.model_copy(update={"isim_fusion": "add"})
        assert count(InterScaleInteraction(c, added)) == 3 * c**2 + 79 * c
        gate = settings.model_copy(update={"isim_output": "gate"})
        assert count(InterScaleInteraction(c, gate)) == 3 * c**2 + 78 * c


def giga_macs(network: TransDAE, side: int = 224) -> float:
    """Multiply-adds of convolutions and matrix products; not of norms, softmax and sums."""
    x = torch.empty(1, network.in_channels, side, side, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("preset", "changes", "giga"),
    [("base", {}, 18.79), ("v1", {}, 19.21), ("base", NARROW, 4.44)],
)
def test_multiply_adds_of_one_image_are_the_reference_ones(
    preset: str, changes: dict[str, Any], giga: float
) -> None:
    assert round(giga_macs(on_meta(preset, **changes)), 2) == giga


def test_daeformer_as_released_computes_the_first_layer_of_each_ffn_twice() -> None:
    network = on_meta("daeformer")
    ffns = [part for part in network.modules() if isinstance(part, MixFFN)]
    twice = 0

    def add(widen: nn.Module, _: Any, y_bhwc: Tensor) -> None:
        nonlocal twice
        twice += widen.weight.numel() * y_bhwc.shape[1] * y_bhwc.shape[2]

    for ffn in ffns:
        ffn.widen.register_forward_hook(add)
    once = giga_macs(network)
    assert round(once + twice / 1e9, 2) == 27.64


def test_every_stage_has_its_reference_shape() -> None:
    network = on_meta("base")
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda _m, _i, y, name=name: seen.__setitem__(name, tuple(y.shape[1:]))
        )
    logits = network(torch.empty(1, 1, 224, 224, device="meta"))
    expected = {
        "encoder.0": (56, 56, 128),
        "encoder.1": (28, 28, 320),
        "encoder.2": (14, 14, 512),
        "decoder.0.expand": (28, 28, 256),
        "decoder.0.project": (28, 28, 320),
        "decoder.0.skip": (28, 28, 320),
        "decoder.0": (28, 28, 320),
        "decoder.1.expand": (56, 56, 160),
        "decoder.1.project": (56, 56, 128),
        "decoder.1.skip": (56, 56, 128),
        "decoder.1": (56, 56, 128),
        "expand": (224, 224, 128),
    }
    assert {name: seen[name] for name in expected} == expected
    assert logits.shape == (1, 9, 224, 224)
    # 49 keys and values in every block, whatever the stage
    reduced = {shape[:2] for name, shape in seen.items() if name.endswith(".reduce")}
    assert reduced == {(7, 7)}


def dense_map(q_nd: Tensor, k_nd: Tensor) -> Tensor:
    return q_nd.softmax(1) @ k_nd.softmax(0).T


def test_the_implied_attention_map_of_efficient_attention_has_rows_of_sum_one() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 12, 5, dtype=torch.float64)
    identity = torch.eye(12, dtype=torch.float64)[None, None]
    implied = efficient_attention(q, k, identity)[0, 0]
    torch.testing.assert_close(implied, dense_map(q[0, 0], k[0, 0]), rtol=0, atol=1e-15)
    torch.testing.assert_close(implied.sum(1), torch.ones(12, dtype=torch.float64))
    constant = torch.tensor([3.0, -7.0], dtype=torch.float64).expand(1, 1, 12, 2)
    torch.testing.assert_close(efficient_attention(q, k, constant), constant)


@pytest.mark.parametrize("heads", [1, 3])
def test_efficient_attention_is_its_quadratic_closed_form(heads: int) -> None:
    attention = randomised(EfficientAttention(6, heads))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    tokens = x.reshape(2, 15, 6)
    q, k, v = (layer(tokens) for layer in (attention.query, attention.key, attention.value))
    width = 6 // heads
    mixed = torch.empty_like(v)
    for image in range(2):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = dense_map(q[image, :, part], k[image, :, part])
            mixed[image, :, part] = weights @ v[image, :, part]
    expected = attention.project(mixed).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-14)


def test_efficient_attention_moves_with_a_permutation_of_the_tokens() -> None:
    attention = randomised(EfficientAttention(4, 1))
    x = torch.randn(1, 1, 9, 4, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(attention(x[:, :, order]), attention(x)[:, :, order])


@pytest.mark.parametrize("autocast", [True, False])
def test_efficient_attention_of_many_equal_keys_keeps_the_mean_in_float16(autocast: bool) -> None:
    torch.manual_seed(0)
    # in float16 each weight, 1 / 196608, would be rounded down by 0.4 percent
    tokens = 3 * 2**16
    q = torch.randn(1, 1, tokens, 2)
    k = torch.zeros_like(q)
    v = 100 + torch.randn(1, 1, tokens, 2)
    if not autocast:
        q, k, v = q.half(), k.half(), v.half()
    exact = efficient_attention(q.double(), k.double(), v.double())
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        low = efficient_attention(q, k, v)
    assert low.dtype == torch.float16
    assert float((low.double() / exact - 1).abs().max()) < 2 * torch.finfo(torch.float16).eps


def test_unreduced_spatial_attention_is_torchs_multi_head_attention() -> None:
    attention = randomised(SpatialReductionAttention(8, 2, 1))
    oracle = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat((attention.query.weight, attention.key_value.weight)),
            "in_proj_bias": torch.cat((attention.query.bias, attention.key_value.bias)),
            "out_proj.weight": attention.project.weight,
            "out_proj.bias": attention.project.bias,
        }
    )
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    tokens = x.reshape(2, 12, 8)
    expected = oracle(tokens, tokens, tokens, need_weights=False)[0].reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_spatial_reduction_attention_is_its_closed_form() -> None:
    attention = randomised(SpatialReductionAttention(6, 3, 2))
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    conv, norm = attention.reduce
    windows = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2)[0]
    reduced = (conv.weight.reshape(6, -1) @ windows).T + conv.bias
    assert reduced.shape == (6, 6)
    keys, values = attention.key_value(norm(reduced)).split(6, dim=1)
    queries = attention.query(x.reshape(24, 6))
    heads = []
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(2)).softmax(1)
        heads.append(weights @ values[:, part])
    expected = attention.project(torch.cat(heads, dim=1)).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_transposed_attention_is_its_closed_form() -> None:
    attention = randomised(TransposedAttention(16, 8))
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    # (b, heads, c / heads, n), as the source writes it
    q, k, v = (
        attention.query_key_value(x)
        .reshape(2, 15, 3, 8, 2)
        .permute(2, 0, 3, 4, 1)
        .contiguous()
        .unbind()
    )
    gram = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    mixed = (attention.temperature * gram).softmax(dim=-1) @ v
    expected = attention.project(mixed.permute(0, 3, 1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected)


def test_transposed_attention_starts_with_factors_of_one_and_takes_zeros() -> None:
    torch.manual_seed(0)
    attention = TransposedAttention(16, 8)
    assert torch.equal(attention.temperature, torch.ones(8, 1, 1))
    x = torch.zeros(1, 2, 2, 16, requires_grad=True)
    y = attention(x)
    y.sum().backward()
    assert torch.equal(y, attention.project.bias.expand(y.shape))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_transposed_attention_of_large_features_does_not_overflow_under_autocast() -> None:
    torch.manual_seed(0)
    attention = TransposedAttention(8, 2)
    x = 100 * torch.randn(1, 64, 64, 8)
    with torch.no_grad():
        expected = attention(x)
        with torch.autocast("cpu", torch.float16):
            low = attention(x)
    assert float((low.float() - expected).std()) < 0.01 * float(expected.std())


@pytest.mark.parametrize("kind", ["mix_skip", "mix"])
def test_the_mix_ffn_is_its_closed_form(kind: Any) -> None:
    ffn = randomised(MixFFN(3, 12, kind))
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    h = x @ ffn.widen.weight.T + ffn.widen.bias
    padded = F.pad(h, (0, 0, 1, 1, 1, 1))
    mixed = ffn.depthwise.bias.clone()
    for row in range(3):
        for column in range(3):
            taps = ffn.depthwise.weight[:, 0, row, column]
            mixed = mixed + taps * padded[:, row : row + 4, column : column + 5]
    if kind == "mix_skip":
        y = mixed + h
        centred = y - y.mean(-1, keepdim=True)
        deviation = (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        mixed = centred / deviation * ffn.norm.weight + ffn.norm.bias
    gelu = mixed * (1 + torch.erf(mixed / math.sqrt(2))) / 2
    expected = gelu @ ffn.narrow.weight.T + ffn.narrow.bias
    torch.testing.assert_close(ffn(x), expected)


@pytest.mark.parametrize("block_kind", ["r", "v1"])
@pytest.mark.parametrize("order", ["spatial_first", "channel_first", "parallel"])
def test_a_dual_block_follows_its_order(block_kind: Any, order: Any) -> None:
    settings = settings_of("tiny", block=block_kind, order=order)
    block = randomised(DualBlock(0, settings))
    kinds = (SpatialReductionAttention, EfficientAttention)
    if block_kind == "v1":
        kinds = (EfficientAttention, TransposedAttention)
    assert isinstance(block.spatial[1], kinds[0])
    assert isinstance(block.channel[1], kinds[1])
    x = torch.randn(1, 8, 8, 16, dtype=torch.float64)
    spatial, spatial_ffn = block.spatial, block.spatial_ffn
    channel, channel_ffn = block.channel, block.channel_ffn
    if order == "spatial_first":
        y = x + spatial(x)
        y = y + spatial_ffn(y)
        y = y + channel(y)
        y = y + channel_ffn(y)
    elif order == "channel_first":
        y = x + channel(x)
        y = y + channel_ffn(y)
        y = y + spatial(y)
        y = y + spatial_ffn(y)
    else:
        y = x + spatial(x) + channel(x)
        y = y + spatial_ffn(y) + channel_ffn(y)
    torch.testing.assert_close(block(x), y)
    norms = [part[0] for part in (spatial, spatial_ffn, channel, channel_ffn)]
    assert all(isinstance(norm, nn.LayerNorm) for norm in norms)


@pytest.mark.parametrize("factor", [2, 4])
def test_patch_expanding_puts_sub_positions_before_channels(factor: int) -> None:
    expand = randomised(PatchExpand(6, 3, factor))
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    wide = x @ expand.widen.weight.T
    grown = torch.empty(2, 2 * factor, 5 * factor, 3, dtype=torch.float64)
    for row in range(factor):
        for column in range(factor):
            first = (row * factor + column) * 3
            grown[:, row::factor, column::factor] = wide[..., first : first + 3]
    torch.testing.assert_close(expand(x), expand.norm(grown))
    shuffled = F.pixel_shuffle(wide.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    assert not torch.allclose(expand(x), expand.norm(shuffled))


def isim(**changes: Any) -> InterScaleInteraction:
    return randomised(InterScaleInteraction(2, settings_of("tiny", **changes)))


@pytest.mark.parametrize(
    ("changes", "side", "overlap"),
    [({}, 23, 4), ({"isim_kernel": 35, "isim_dilation": 5}, 39, 4), ({"isim_dilation": 1}, 21, 1)],
)
def test_the_gate_sees_a_square_without_gaps(
    changes: dict[str, Any], side: int, overlap: int
) -> None:
    part = isim(**changes)
    for conv in (part.local, part.distant):
        nn.init.ones_(conv.weight)
        nn.init.zeros_(conv.bias)
    impulse = torch.zeros(1, 51, 51, 2, dtype=torch.float64)
    impulse[0, 25, 25, 0] = 1
    hits = part.distant(part.local(impulse))[0]
    assert not hits[..., 1].any()
    rows, columns = hits[..., 0].nonzero().T
    edges = (25 - side // 2, 25 + side // 2)
    assert (int(rows.min()), int(rows.max())) == edges
    assert (int(columns.min()), int(columns.max())) == edges
    assert len(rows) == side**2
    assert float(hits.max()) == overlap


def test_the_large_kernel_is_decomposed_into_five_and_seven() -> None:
    part = isim()
    assert part.local.kernel_size == (5, 5)
    assert part.distant.kernel_size == (7, 7)
    assert part.distant.dilation == (3, 3)
    assert part.distant.padding == (9, 9)


@pytest.mark.parametrize("fusion", ["concat", "add"])
@pytest.mark.parametrize("output", ["full", "gate"])
def test_the_inter_scale_module_is_its_closed_form(fusion: str, output: str) -> None:
    part = isim(isim_fusion=fusion, isim_output=output)
    e, d = torch.randn(2, 1, 6, 7, 2, dtype=torch.float64)
    p1 = part.fuse.weight
    mixed = e @ p1[:, :2].T + d @ p1[:, 2:].T if fusion == "concat" else (e + d) @ p1.T
    z = F.gelu(mixed + part.fuse.bias)
    y = z.permute(0, 3, 1, 2)
    y = F.conv2d(y, part.local.weight, part.local.bias, padding=2, groups=2)
    y = F.conv2d(y, part.distant.weight, part.distant.bias, padding=9, dilation=3, groups=2)
    gate = part.gate(y.permute(0, 2, 3, 1))
    expected = d + e * gate if output == "gate" else part.output(z * gate) + e + d
    torch.testing.assert_close(part(e, d), expected)


def test_gathering_projects_and_resamples_the_other_scales() -> None:
    gathering = randomised(ScaleGathering((2, 3, 4), 1))
    assert count(gathering) == (2 * 3 + 3) + (4 * 3 + 3)
    fine, own, coarse = (
        torch.randn(1, 16 // 2**s, 24 // 2**s, 2 + s, dtype=torch.float64) for s in range(3)
    )
    pooled = fine.reshape(1, 8, 2, 12, 2, 2).mean(dim=(2, 4))
    grown = F.interpolate(coarse.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    expected = (
        own + gathering.project["0"](pooled) + gathering.project["2"](grown.permute(0, 2, 3, 1))
    )
    torch.testing.assert_close(gathering((fine, own, coarse)), expected)


def test_all_scales_reach_every_level_only_if_the_settings_say_so() -> None:
    alone, together = tiny(), tiny(isim_scales="all")
    dims = (16, 32, 64)
    extra = sum(a * b + b for b in dims[:2] for a in dims if a != b)
    assert count(together) == count(alone) + extra
    together(torch.randn(1, 1, 32, 64)).sum().backward()
    assert all(weight.grad.any() for weight in together.parameters())


def test_cross_attention_of_the_baseline_is_its_closed_form() -> None:
    part = randomised(CrossAttentionSkip(4, settings_of("tiny")))
    e, d = torch.randn(2, 1, 3, 5, 4, dtype=torch.float64)
    keys, values = part.norm(e).reshape(15, 4), part.norm(d).reshape(15, 4)
    context = keys.softmax(0).T @ values
    mixed = (keys.softmax(1) @ context).reshape(1, 3, 5, 4)
    tx = part.widen_norm(part.widen(mixed)) + torch.cat((d, e), dim=3)
    norm, ffn = part.ffn
    assert ffn.depthwise.in_channels == 16
    torch.testing.assert_close(part(e, d), part.narrow(tx + ffn(norm(tx))))


def test_one_channel_gives_what_three_equal_ones_give() -> None:
    one, three = tiny().eval(), tiny(in_channels=3).eval()
    three.load_state_dict(one.state_dict())
    x = torch.randn(1, 1, 32, 64)
    with torch.inference_mode():
        assert torch.equal(one(x), three(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(("channels", "embedded"), [(1, 3), (2, 2), (3, 3), (5, 5)])
def test_the_patch_embedding_takes_the_channels_of_the_image(channels: int, embedded: int) -> None:
    network = on_meta("tiny", in_channels=channels)
    assert network.encoder[0].embed.in_channels == embedded
    x = torch.empty(2, channels, 32, 64, device="meta")
    assert network(x).shape == (2, 2, 32, 64)


@pytest.mark.parametrize(
    ("preset", "changes", "multiple"),
    [
        ("base", {}, 32),
        ("v1", {}, 16),
        ("daeformer", {}, 16),
        ("small", {}, 32),
        ("tiny", {}, 32),
        ("tiny", {"reductions": (4, 2, 1)}, 16),
        ("tiny", {"reductions": (4, 2, 2)}, 32),
        ("tiny", {"reductions": (3, 2, 1)}, 48),
    ],
)
def test_legal_extents_hold_whole_reduction_windows(
    preset: str, changes: dict[str, Any], multiple: int
) -> None:
    network = on_meta(preset, **changes)
    assert network.size_multiple == (multiple, multiple)
    assert network.head_strides == ((1, 1),)
    x = torch.empty(1, 1, multiple, 3 * multiple, device="meta")
    leftovers = []
    for module in network.modules():
        if isinstance(module, MapConv2d) and module.stride == module.kernel_size:
            module.register_forward_pre_hook(
                lambda m, args: leftovers.extend(n % m.stride[0] for n in args[0].shape[1:3])
            )
    assert network(x).shape == (1, network.out_channels, multiple, 3 * multiple)
    assert not any(leftovers)


def test_other_extents_are_refused_with_the_nearest_legal_ones() -> None:
    network = on_meta("tiny")
    with pytest.raises(ShapeError, match=r"multiples of \(32, 32\), found \(48, 80\).*\(64, 96\)"):
        network(torch.empty(1, 1, 48, 80, device="meta"))
    with pytest.raises(ShapeError, match="expected 1 channels, found 3"):
        network(torch.empty(1, 3, 64, 64, device="meta"))


def test_stages_may_be_two_or_four() -> None:
    two = two_stages()
    assert two.size_multiple == (8, 8)
    assert two(torch.randn(1, 1, 8, 24)).shape == (1, 2, 8, 24)
    four = tiny(
        isim_scales="all",
        dims=(8, 8, 16, 16),
        depths=(1, 2, 1, 1),
        decoder_depths=(2, 1, 1),
        heads=(1, 1, 2, 2),
        reductions=(8, 4, 2, 1),
    )
    assert [len(level.blocks) for level in four.decoder] == [1, 1, 2]
    assert four(torch.randn(1, 1, 32, 64)).shape == (1, 2, 32, 64)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "v1": {"block": "v1"},
    "daeformer": {"block": "v1", "skip": "scca"},
    "scca": {"skip": "scca", "ffn": "mix"},
    "parallel": {"order": "parallel", "isim_output": "gate", "isim_scales": "all"},
    "channel first": {"order": "channel_first", "isim_fusion": "add", "efficient_heads": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_learns(variant: str) -> None:
    network = tiny(**VARIANTS[variant]).train()
    target = torch.randint(0, 2, (2, 64, 32))
    F.cross_entropy(network(torch.randn(2, 1, 64, 32)), target).backward()
    idle = [
        name
        for name, weight in network.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert idle == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_eval_is_repeatable_and_an_image_does_not_see_its_batch(variant: str) -> None:
    network = tiny(**VARIANTS[variant]).eval()
    x = torch.randn(2, 1, 32, 64)
    before = x.clone()
    with torch.inference_mode():
        both = network(x)
        network(torch.randn(1, 1, 64, 64))
        assert torch.equal(network(x), both)
        torch.testing.assert_close(network(x[:1]), both[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_double_and_channels_last_give_nearly_the_same(variant: str) -> None:
    network = tiny(**VARIANTS[variant]).eval()
    x = torch.randn(1, 1, 32, 64)
    with torch.inference_mode():
        expected = network(x)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                low = network(x)
            assert (low.float() - expected).abs().mean() < 0.05 * expected.std()
        last = network.to(memory_format=torch.channels_last)
        x_last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x_last), expected, rtol=1e-4, atol=1e-4)
        double = network.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-3)


# the default variant is compiled and exported with every other network
@pytest.mark.parametrize("variant", ["daeformer", "parallel"])
def test_the_network_is_one_graph_for_compile_and_export(variant: str) -> None:
    network = two_stages(**VARIANTS[variant]).eval()
    x = torch.randn(1, 1, 16, 32)
    with torch.no_grad():
        expected = network(x)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(network, (x,)).module()
        torch.testing.assert_close(exported(x), expected)


def test_the_decoder_starts_from_xavier_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    network = TransDAE(settings_of("tiny"))
    plain = [
        module
        for part in (network.decoder, network.expand, network.head)
        for module in part.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    for module in plain:
        assert module.bias is None or not module.bias.any()
        if module.weight.numel() > 2000:
            fan_in, fan_out = module.weight[0].numel(), module.weight[:, 0].numel()
            wanted = math.sqrt(2 / (fan_in + fan_out))
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.1)
    for module in network.encoder.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert module.bias.any()
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)


def test_a_map_convolution_is_torchs_and_copies_nothing() -> None:
    torch.manual_seed(0)
    conv = MapConv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 5, 7, 4)
    y = conv(x)
    expected = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1)
    assert torch.equal(y, expected.permute(0, 2, 3, 1))
    assert y.is_contiguous()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (1, 1)}, r"depths: expected one entry per stage, 3 as in dims, found \[1, 1\]"),
        ({"heads": (1, 2, 4, 4)}, "heads: expected one entry per stage, 3"),
        ({"reductions": (8,)}, r"reductions: expected one entry per stage, 3 .*found \[8\]"),
        ({"decoder_depths": (1, 1, 1)}, "decoder_depths: expected one entry per decoder level, 2"),
        ({"dims": (16, 32, 63), "heads": (1, 1, 1)}, "dims: expected even numbers after the first"),
        ({"heads": (1, 3, 4)}, "heads: expected .*3 heads do not divide 32 channels"),
        ({"efficient_heads": 5}, "efficient_heads: .*5 heads do not divide 16 .*found 5"),
        ({"block": "v1", "dims": (12, 32, 64)}, "transposed_heads: .*8 heads do not divide 12"),
        (
            {"isim_kernel": 24},
            "isim_kernel: expected an odd number once divided by isim_dilation = 3",
        ),
        ({"block": "r2"}, "'r' or 'v1'"),
        ({"dims": (16,)}, "at least 2 items"),
        ({"dim": (16,)}, "Extra inputs are not permitted"),
        ({"in_channels": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings_of("tiny", **changes)


def test_settings_of_the_other_block_are_not_asked_for() -> None:
    settings = TransDAESettings(dims=(8, 16), depths=(1, 1), decoder_depths=(1,), block="v1")
    assert settings.strides == (4, 8)
    with torch.device("meta"):
        assert TransDAE(settings).size_multiple == (8, 8)
