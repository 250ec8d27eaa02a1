"""The reversible U-Net: counts, parity with its stored twin, memory, and refusals."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch._dynamo
from pydantic import ValidationError
from torch import Tensor

from medseg.errors import ConfigError, ShapeError
from medseg.models.revunet import REVUNET_PRESETS, MobileBottleneck, RevUNet, RevUNetSettings
from medseg.ops.live_storage import step_memory


def count(**settings: Any) -> int:
    with torch.device("meta"):
        network = RevUNet(RevUNetSettings(**settings))
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, 258_179),
        ({"blocks": 2}, 492_739),
        ({"blocks": 4}, 961_859),
        ({"blocks": 2, "expansion": 2}, 259_139),
        ({"blocks": 2, "expansion": 6}, 726_339),
        ({"blocks": 2, "widths": (32, 64, 128, 256)}, 1_724_803),
        ({"blocks": 2, "widths": (16, 32, 64, 128, 256)}, 1_736_259),
    ],
)
def test_the_reference_numbers_of_weights_are_met(settings: dict[str, Any], weights: int) -> None:
    assert count(**settings) == weights


@pytest.mark.parametrize("widths", [(8,), (16, 24), (8, 16, 32), (16, 32, 64, 128, 256)])
@pytest.mark.parametrize(("blocks", "expansion"), [(1, 1), (2, 3), (3, 6)])
def test_the_closed_form_counts_the_weights(
    widths: tuple[int, ...], blocks: int, expansion: int
) -> None:
    t, n = expansion, blocks
    halves = [width // 2 for width in widths]
    bottleneck = sum(2 * t * c * c + 27 * t * c + (4 * t + 2) * c for c in halves)
    steps = sum(2 * a * b + a + b for a, b in pairwise(widths))
    closed = 4 * n * bottleneck + 108 * widths[0] + steps + 3 * widths[0] + 3
    assert count(widths=widths, blocks=n, expansion=t) == closed


@pytest.mark.parametrize(
    ("preset", "weights"),
    [("tiny", 14_787), ("small", 141_379), ("base", 258_179), ("deep", 1_736_259)],
)
def test_presets_have_the_documented_sizes(preset: str, weights: int) -> None:
    assert count(**REVUNET_PRESETS[preset].model_dump()) == weights


def test_a_bottleneck_ends_linearly_and_has_no_residual() -> None:
    block = MobileBottleneck(4, RevUNetSettings())
    torch.nn.init.zeros_(block.project_norm.weight)
    assert torch.equal(block(torch.randn(1, 4, 3, 3, 3)), torch.zeros(1, 4, 3, 3, 3))


def test_levels_have_the_reference_shapes() -> None:
    network = RevUNet(RevUNetSettings()).eval()
    shapes: list[tuple[int, ...]] = []
    for sequence in (*network.encoder, *reversed(network.decoder)):
        sequence.register_forward_hook(lambda _m, _i, y: shapes.append(tuple(y.shape[1:3])))
    with torch.inference_mode():
        assert network(torch.zeros(1, 4, 32, 32, 32)).shape == (1, 3, 32, 32, 32)
    down = [(16, 32), (32, 16), (64, 8), (128, 4)]
    assert shapes == [*down, *reversed(down)]


def twins(dtype: torch.dtype, **settings: Any) -> tuple[RevUNet, RevUNet]:
    torch.manual_seed(0)
    reversible = RevUNet(RevUNetSettings(**settings)).to(dtype)
    stored = RevUNet(RevUNetSettings(**settings, memory="stored")).to(dtype)
    stored.load_state_dict(reversible.state_dict())
    return reversible, stored


def input_and_weight_gradients(network: RevUNet, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.detach().requires_grad_()
    y = network(x)
    return y.detach(), list(torch.autograd.grad(y.square().mean(), [x, *network.parameters()]))


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "leaky_relu"])
@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_the_stored_twin_agrees_in_float64(activation: str, squeeze_excitation: bool) -> None:
    pair = twins(
        torch.float64,
        widths=(8, 16, 32),
        blocks=2,
        activation=activation,
        squeeze_excitation=squeeze_excitation,
    )
    x = torch.randn(1, 4, 8, 12, 8, dtype=torch.float64)
    (y_reversible, ours), (y_stored, theirs) = (input_and_weight_gradients(n, x) for n in pair)
    assert torch.equal(y_reversible, y_stored)
    worst = max((a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs, strict=True))
    assert worst <= 2e-14


def test_the_stored_twin_has_equal_values_in_float32() -> None:
    reversible, stored = twins(torch.float32, blocks=2)
    x = torch.randn(1, 4, 16, 16, 16)
    (y_reversible, ours), (y_stored, theirs) = (
        input_and_weight_gradients(n, x) for n in (reversible, stored)
    )
    assert torch.equal(y_reversible, y_stored)
    assert (ours[0] - theirs[0]).abs().max() <= 1e-4 * theirs[0].abs().max()


def test_bfloat16_gradients_stay_near_those_of_the_stored_twin() -> None:
    reversible, stored = twins(torch.float32, widths=(8, 16), blocks=4)
    x = torch.randn(1, 4, 8, 8, 8)
    found = []
    for network in (reversible, stored):
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x).float().square().mean()
        loss.backward()
        found.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-2 * found[1].norm()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With one thread and few voxels torch takes a convolution that answers contiguously."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("memory", ["reversible", "stored"])
def test_channels_last_gives_the_same_and_stays_so_through_every_sequence(memory: str) -> None:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16, 32), memory=memory))
    x = torch.randn(2, 4, 8, 8, 8)
    expected = network(x)
    network.to(memory_format=torch.channels_last_3d)
    layouts: list[bool] = []
    for sequence in (*network.encoder, *network.decoder):
        sequence.register_forward_hook(
            lambda _m, i, y: layouts.extend(
                t.is_contiguous(memory_format=torch.channels_last_3d) for t in (i[0], y)
            )
        )
    found = network(x.to(memory_format=torch.channels_last_3d))
    assert len(layouts) == 12
    assert all(layouts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_under_bfloat16_autocast_every_inverse_is_exact_up_to_float32_rounding() -> None:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(16, 32), blocks=4))
    with torch.autocast("cpu", torch.bfloat16):
        errors = network.reconstruction_errors(torch.randn(1, 4, 12, 12, 12))
    assert max(errors.values()) <= 1e-6


def test_eval_mode_is_deterministic_and_gives_one_tensor() -> None:
    network = RevUNet(REVUNET_PRESETS["tiny"]).eval()
    x = torch.randn(1, 4, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(network(x), network(x))
    assert torch.equal(network.train()(x), network.eval()(x))


@cache
def live_mib(**settings: Any) -> tuple[float, float]:
    """MiB after the forward pass, and at the peak of forward and backward."""
    with torch.device("meta"):
        network = RevUNet(RevUNetSettings(**settings))
        memory = step_memory(network, torch.zeros(1, 4, 32, 32, 32))
    return memory.forward_bytes / 2**20, memory.peak_bytes / 2**20


@pytest.mark.parametrize("memory", ["reversible", "stored", "checkpointed"])
def test_the_processor_needs_what_the_meta_device_counts(memory: str) -> None:
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = RevUNet(RevUNetSettings(widths=(8, 16, 32), blocks=2, memory=memory))
            found.append(step_memory(network, torch.zeros(1, 4, 16, 24, 8)))
    assert found[0] == found[1]


def test_memory_after_forward_does_not_depend_on_the_number_of_blocks() -> None:
    forward = {live_mib(blocks=blocks)[0] for blocks in (1, 2, 4)}
    assert len(forward) == 1
    assert forward.pop() == pytest.approx(6.7, abs=0.05)


def test_peak_memory_hardly_grows_from_two_blocks_to_four() -> None:
    # few weights, whose gradients are no activations, against many voxels
    two, four = (live_mib(widths=(16, 32), blocks=blocks)[1] for blocks in (2, 4))
    assert four <= 1.02 * two


@pytest.mark.parametrize(
    ("blocks", "activation", "stored_forward", "most_peak"),
    [
        (1, "relu6", 147.4, 41.7),
        (2, "relu6", 288.2, 47.7),
        (1, "relu", 104.9, 36.7),
        (2, "relu", 203.2, 42.7),
    ],
)
def test_memory_is_at_most_that_of_the_reference_measurement(
    blocks: int, activation: str, stored_forward: float, most_peak: float
) -> None:
    ours = live_mib(blocks=blocks, activation=activation)
    twin = live_mib(blocks=blocks, activation=activation, memory="stored")
    assert ours[0] <= 6.7
    assert ours[1] <= most_peak
    # the reference keeps the streams of two blocks separately in its stored form as well
    assert stored_forward * 0.98 <= twin[0] <= stored_forward * 1.001


@pytest.mark.parametrize(
    ("blocks", "activation", "peak_ratio"),
    [(1, "relu", 3.0), (2, "relu", 4.5), (1, "relu6", 3.6), (2, "relu6", 6.1)],
)
def test_the_stored_twin_needs_several_times_the_memory(
    blocks: int, activation: str, peak_ratio: float
) -> None:
    ours = live_mib(blocks=blocks, activation=activation)
    twin = live_mib(blocks=blocks, activation=activation, memory="stored")
    checkpointed = live_mib(blocks=blocks, activation=activation, memory="checkpointed")
    assert twin[1] / ours[1] >= peak_ratio
    assert 1.4 * ours[1] < checkpointed[1] < twin[1] / 2


def test_drift_is_measured_sequence_by_sequence_and_named_when_too_large() -> None:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16), blocks=2))
    x = torch.randn(1, 4, 8, 8, 8)
    errors = network.reconstruction_errors(x)
    assert list(errors) == ["encoder.0", "encoder.1", "decoder.1", "decoder.0"]
    assert all(0 < error <= 2e-6 for error in errors.values())
    network.check_reconstruction(x)
    before = network(x)
    with torch.no_grad():
        for block in network.decoder[1].blocks:
            block.f.project_norm.weight.mul_(1e6)
            block.g.project_norm.weight.mul_(1e6)
    with pytest.raises(ConfigError, match=r"RevUNet decoder\.1: expected a relative recon"):
        network.check_reconstruction(x)
    with torch.no_grad():
        for block in network.decoder[1].blocks:
            block.f.project_norm.weight.div_(1e6)
            block.g.project_norm.weight.div_(1e6)
    # no hook is left behind by the check that failed
    torch.testing.assert_close(network(x), before)
    assert not network.decoder[1]._forward_pre_hooks


@pytest.mark.parametrize("memory", ["stored", "checkpointed"])
def test_every_kind_of_memory_has_the_same_weights_and_values(memory: str) -> None:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16), blocks=2))
    other = RevUNet(RevUNetSettings(widths=(8, 16), blocks=2, memory=memory))
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 4, 8, 8, 8)
    assert torch.equal(network(x), other(x))


# dynamo reads .grad of every tensor and silences the warning itself, too late for "error"
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_training_has_the_same_gradients() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16), expansion=2))
    x = torch.randn(1, 4, 8, 8, 8)
    y, plain = input_and_weight_gradients(network, x)
    compiled_network = torch.compile(network, backend="aot_eager")
    compiled_y = compiled_network(x.requires_grad_())
    compiled = torch.autograd.grad(compiled_y.square().mean(), [x, *network.parameters()])
    torch.testing.assert_close(compiled_y, y)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    torch._dynamo.reset()


def test_extents_given_as_a_view_and_as_a_copy_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    network = RevUNet(RevUNetSettings(widths=(8, 16))).double()
    wide = torch.randn(1, 4, 12, 8, 8, dtype=torch.float64)
    _, view = input_and_weight_gradients(network, wide[:, :, 2:10])
    _, copy = input_and_weight_gradients(network, wide[:, :, 2:10].contiguous())
    for ours, theirs in zip(view, copy, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_extents_that_do_not_halve_evenly_are_refused_with_the_nearest_legal_ones() -> None:
    network = RevUNet(RevUNetSettings())
    assert network.size_multiple == (8, 8, 8)
    with pytest.raises(ShapeError, match=r"nearest legal extents, \(40, 56, 8\)"):
        network(torch.zeros(1, 4, 36, 59, 3))


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ShapeError, match="RevUNet input: expected 4 channels, found 1"):
        RevUNet(REVUNET_PRESETS["tiny"])(torch.zeros(1, 1, 8, 8, 8))


def test_a_tensor_without_batch_axis_is_refused() -> None:
    with pytest.raises(ShapeError, match="expected 5 axes: batch, channel, i, j, k, found 4 axes"):
        RevUNet(REVUNET_PRESETS["tiny"])(torch.zeros(4, 8, 8, 8))


def test_the_head_is_at_full_resolution_and_carries_all_the_weight() -> None:
    network = RevUNet(REVUNET_PRESETS["tiny"])
    assert (network.in_channels, network.out_channels) == (4, 3)
    assert network.head_strides == ((1, 1, 1),)
    assert network.deep_supervision_weights == (1.0,)


@pytest.mark.parametrize("widths", [(15, 32), (12, 32), (4, 8)])
def test_widths_that_cannot_be_split_into_groups_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(
        ValidationError, match=r"widths: expected multiples of 2 \* norm_groups = 8"
    ):
        RevUNetSettings(widths=widths)
