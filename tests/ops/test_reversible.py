"""Reversible sequences: inversion, gradients, and what could silently go wrong in either."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ConfigError, ShapeError
from medseg.models.revunet import MobileBottleneck, RevUNetSettings
from medseg.ops.live_storage import LiveStorage
from medseg.ops.reversible import (
    AdditiveCoupling,
    ReversibleSequence,
    check_reconstruction,
    inverse,
    reconstruction_error,
)


def bottlenecks(
    blocks: int, channels: int = 4, expansion: int = 2, activation: str = "silu"
) -> ReversibleSequence:
    choice = RevUNetSettings.model_validate(
        {"expansion": expansion, "activation": activation, "norm_groups": 1}
    )
    half = channels // 2
    return ReversibleSequence(
        [
            AdditiveCoupling(MobileBottleneck(half, choice), MobileBottleneck(half, choice))
            for _ in range(blocks)
        ]
    )


def with_dropout(blocks: int) -> ReversibleSequence:
    def branch() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Dropout(0.4), nn.Conv2d(4, 2, 1))

    return ReversibleSequence([AdditiveCoupling(branch(), branch()) for _ in range(blocks)])


def gradients(
    sequence: ReversibleSequence, x: Tensor, memory: str, seed: int = 3
) -> tuple[Tensor, list[Tensor]]:
    """Output, then the gradients of the input and of all weights."""
    sequence.memory = memory  # type: ignore[assignment]
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    y = sequence(x)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y.detach(), list(torch.autograd.grad(y, [x, *sequence.parameters()], dy))


def worst_relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(ours, theirs, strict=True)
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99), st.sampled_from(["relu", "relu6", "silu"]))
def test_the_inverse_gives_the_input_back(blocks: int, seed: int, activation: str) -> None:
    torch.manual_seed(seed)
    sequence = bottlenecks(blocks, channels=8, activation=activation).double()
    x = torch.randn(1, 8, 4, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert (inverse(sequence, sequence(x)) - x).abs().max() <= 1e-13
    assert reconstruction_error(sequence, x) <= 1e-13


def test_four_blocks_in_float32_reconstruct_within_two_millionths() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(4, channels=32, expansion=4, activation="relu6")
    assert reconstruction_error(sequence, torch.randn(1, 32, 8, 8, 8)) <= 2e-6


def test_additions_of_bfloat16_values_in_a_float32_stream_are_undone_exactly() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(4, channels=32, expansion=4, activation="relu")
    x = torch.randn(1, 32, 12, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        # eight bits each: what float32 adds it can take away again
        assert reconstruction_error(sequence, x.bfloat16()) <= 1e-6
        # a stream of 24 bits is rounded, and now and then that rounds a branch's input elsewhere
        assert 1e-6 < reconstruction_error(sequence, x) < 5e-2


class Coarse(nn.Module):
    """A linear branch whose factors keep 10 bits, as those of TF32 do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.tensor(-(2**13), dtype=torch.int32)  # 23 bits of float32 less 13
        return self.conv((x.view(torch.int32) & keep).view(torch.float32))


def test_factors_of_ten_bits_let_the_drift_grow_and_the_check_measures_it() -> None:
    torch.manual_seed(0)
    fine, coarse = (
        ReversibleSequence([AdditiveCoupling(make(), make()) for _ in range(4)])
        for make in (lambda: nn.Conv1d(8, 8, 3, padding=1), Coarse)
    )
    x = torch.randn(1, 16, 64)
    assert reconstruction_error(fine, x) <= 2e-6
    assert 1e-5 < reconstruction_error(coarse, x) < 1e-2


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(0, 99))
def test_values_are_equal_and_gradients_agree_with_plain_autograd(blocks: int, seed: int) -> None:
    torch.manual_seed(seed)
    sequence = bottlenecks(blocks, channels=8).double()
    x = torch.randn(2, 8, 4, 3, 4, dtype=torch.float64)
    y_reversible, ours = gradients(sequence, x, "reversible")
    y_stored, theirs = gradients(sequence, x, "stored")
    y_checkpointed, exact = gradients(sequence, x, "checkpointed")
    assert torch.equal(y_reversible, y_stored)
    assert torch.equal(y_checkpointed, y_stored)
    assert worst_relative(ours, theirs) <= 1e-12
    assert all(itertools.starmap(torch.equal, zip(exact, theirs, strict=True)))


def test_two_blocks_pass_the_numerical_gradient_check_for_input_and_weights() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2, channels=4).double()
    names = [name for name, _ in sequence.named_parameters()]
    x = torch.randn(1, 4, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def apply(x_bcijk: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(
            sequence, dict(zip(names, weights, strict=True)), (x_bcijk,)
        )

    weights = [weight.detach().requires_grad_() for weight in sequence.parameters()]
    assert torch.autograd.gradcheck(apply, (x, *weights))


def test_weights_learn_even_if_the_input_needs_no_gradient() -> None:
    sequence = bottlenecks(2)
    y = sequence(torch.randn(1, 4, 4, 4, 4))
    assert y.requires_grad
    found = torch.autograd.grad(y.square().sum(), list(sequence.parameters()))
    assert all(gradient is not None for gradient in found)
    assert all(weight.grad is None for weight in sequence.parameters())


def test_frozen_weights_get_no_gradient_and_the_others_the_right_one() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2).double()
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64)
    sequence.blocks[0].requires_grad_(requires_grad=False)
    grads = []
    for memory in ("reversible", "stored"):
        sequence.memory = memory  # type: ignore[assignment]
        sequence.zero_grad()
        sequence(x).square().sum().backward()
        grads.append([weight.grad for weight in sequence.blocks[1].parameters()])
        assert all(weight.grad is None for weight in sequence.blocks[0].parameters())
    assert worst_relative(*grads) <= 1e-12


def test_weight_hooks_run_once_per_step() -> None:
    sequence = bottlenecks(1)
    weight = next(sequence.parameters())
    calls: list[Tensor] = []
    weight.register_hook(calls.append)
    sequence(torch.randn(1, 4, 4, 4, 4)).sum().backward()
    assert len(calls) == 1


def test_gradients_accumulate_over_two_steps() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(1).double()
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64)
    _, once = gradients(sequence, x, "reversible")
    for _ in range(2):
        y = sequence(x)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    twice = [weight.grad for weight in sequence.parameters()]
    assert worst_relative(twice, [2 * gradient for gradient in once[1:]]) <= 1e-12


def test_dropout_is_replayed_so_that_gradients_match_the_stored_twin() -> None:
    torch.manual_seed(0)
    sequence = with_dropout(3).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    y_reversible, ours = gradients(sequence, x, "reversible", seed=7)
    y_stored, theirs = gradients(sequence, x, "stored", seed=7)
    y_checkpointed, exact = gradients(sequence, x, "checkpointed", seed=7)
    assert torch.equal(y_reversible, y_stored)
    assert torch.equal(y_checkpointed, y_stored)
    assert worst_relative(ours, theirs) <= 1e-12
    assert worst_relative(exact, theirs) <= 1e-12
    assert reconstruction_error(sequence, x) <= 1e-13


def test_the_replay_leaves_the_callers_generator_alone() -> None:
    sequence = with_dropout(2)
    y = sequence(torch.randn(1, 4, 6, 6))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    y.sum().backward()
    assert torch.equal(torch.rand(3), expected)


def test_randomness_that_is_no_dropout_module_can_be_declared() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * torch.rand_like(x))

    torch.manual_seed(0)
    block = AdditiveCoupling(Noisy(), Noisy()).double()
    sequence = ReversibleSequence([block], random=True)
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    _, ours = gradients(sequence, x, "reversible")
    _, theirs = gradients(sequence, x, "stored")
    assert worst_relative(ours, theirs) <= 1e-12


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_under_autocast_the_stream_stays_float32_and_gradients_match(low: torch.dtype) -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(4, channels=16, expansion=4)
    x = torch.randn(1, 16, 6, 6, 6)
    grads = {}
    for memory in ("reversible", "stored"):
        sequence.memory = memory  # type: ignore[assignment]
        sequence.zero_grad()
        with torch.autocast("cpu", low):
            y = sequence(x.to(low))
        assert y.dtype == torch.float32
        y.square().mean().backward()  # autocast is off here
        grads[memory] = [weight.grad for weight in sequence.parameters()]
    flat = {name: torch.cat([g.flatten() for g in found]) for name, found in grads.items()}
    difference = (flat["reversible"] - flat["stored"]).norm() / flat["stored"].norm()
    assert difference < 1e-2


def test_backward_inside_the_autocast_block_gives_every_gradient() -> None:
    sequence = bottlenecks(2)
    with torch.autocast("cpu", torch.bfloat16):
        sequence(torch.randn(1, 4, 4, 4, 4)).sum().backward()
    assert all(weight.grad is not None for weight in sequence.parameters())


@pytest.mark.parametrize("memory", ["reversible", "stored"])
def test_channels_last_stays_channels_last_both_ways(memory: str) -> None:
    sequence = bottlenecks(2).to(memory_format=torch.channels_last_3d)
    sequence.memory = memory  # type: ignore[assignment]
    x = torch.randn(2, 4, 4, 6, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    y = sequence(x)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_change_of_the_output_in_place_is_noticed() -> None:
    y = bottlenecks(1)(torch.randn(1, 4, 4, 4, 4))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused_and_possible_with_stored_memory() -> None:
    sequence = bottlenecks(1)
    x = torch.randn(1, 4, 3, 3, 3, requires_grad=True)
    with pytest.raises(ConfigError, match="expected first derivatives only"):
        torch.autograd.grad(sequence(x).sum(), x, create_graph=True)
    sequence.memory = "stored"
    (dx,) = torch.autograd.grad(sequence(x).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert x.grad is not None


def test_a_weight_changed_between_forward_and_backward_is_noticed() -> None:
    sequence = bottlenecks(1)
    y = sequence(torch.randn(1, 4, 3, 3, 3))
    with torch.no_grad():
        next(sequence.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_backward_of_a_graph_that_was_not_kept_is_refused() -> None:
    x = torch.randn(1, 4, 3, 3, 3, requires_grad=True)
    y = bottlenecks(1)(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_a_second_backward_of_a_kept_graph_gives_the_same() -> None:
    sequence = bottlenecks(2)
    y = sequence(torch.randn(1, 4, 4, 4, 4)).square().sum()
    weights = list(sequence.parameters())
    first = torch.autograd.grad(y, weights, retain_graph=True)
    second = torch.autograd.grad(y, weights)
    assert all(itertools.starmap(torch.equal, zip(first, second, strict=True)))


def test_a_sequence_used_twice_gets_the_gradients_of_both_uses() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2).double()
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for memory in ("reversible", "stored"):
        sequence.memory = memory  # type: ignore[assignment]
        once = sequence(x)
        loss = sequence(once).square().sum() + once.sum()
        found.append(list(torch.autograd.grad(loss, [x, *sequence.parameters()])))
    assert worst_relative(*found) <= 1e-12


def test_the_flop_counter_sees_every_evaluation() -> None:
    sequence = bottlenecks(2)
    x = torch.randn(1, 4, 4, 4, 4)
    counts = {}
    for memory in ("reversible", "stored", "checkpointed"):
        sequence.memory = memory  # type: ignore[assignment]
        with FlopCounterMode(display=False) as forward:
            y = sequence(x.requires_grad_())
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        counts[memory] = forward.get_total_flops(), backward.get_total_flops()
    once = counts["stored"][0]
    assert {forward for forward, _ in counts.values()} == {once}
    # one more evaluation of F and G, whichever way they are recomputed
    assert counts["reversible"][1] == counts["stored"][1] + once
    assert counts["checkpointed"][1] == counts["stored"][1] + once


def test_branches_may_be_the_identity() -> None:
    sequence = ReversibleSequence([AdditiveCoupling(nn.Identity(), nn.Identity())])
    x = torch.randn(1, 2, 5, requires_grad=True)
    y = sequence(x)
    x1, x2 = x.detach().chunk(2, dim=1)
    torch.testing.assert_close(y, torch.cat((x1 + x2, x1 + 2 * x2), dim=1))
    (dx,) = torch.autograd.grad(y.sum(), x)
    # y1 + y2 = 2 x1 + 3 x2
    assert torch.equal(dx, torch.tensor([2.0, 3.0]).reshape(1, 2, 1).expand(1, 2, 5))


def nodes_named(root: Any, name: str) -> int:
    found, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
    return sum(name in node.name() for node in found)


@pytest.mark.parametrize("blocks", [1, 5])
def test_a_sequence_is_one_node_of_the_graph_whatever_its_length(blocks: int) -> None:
    y = bottlenecks(blocks)(torch.randn(1, 4, 3, 3, 3))
    assert nodes_named(y.grad_fn, "_Recomputed") == 1
    assert nodes_named(y.grad_fn, "NativeGroupNorm") == 0


def sequence_memory(
    blocks: int, memory: str, x: Tensor, *, keep_graph: bool = False
) -> tuple[int, int]:
    """Bytes after the forward pass, and at the peak without the gradients of the weights."""
    sequence = bottlenecks(blocks, channels=8, expansion=4)
    sequence.memory = memory  # type: ignore[assignment]
    weights = list(sequence.parameters())
    with LiveStorage([x, *weights]) as storage:
        y = sequence(x)
        forward = storage.live_bytes
        dy = torch.ones_like(y)
        node = torch.autograd.graph.get_gradient_edge(y)
        del y
        torch.autograd.backward([node], [dy], retain_graph=keep_graph)
    return forward, storage.peak_bytes - sum(weight.nbytes for weight in weights)


def test_a_sequence_keeps_its_output_alone_and_has_the_same_peak_at_any_length() -> None:
    x = torch.randn(1, 8, 16, 16, 16, requires_grad=True)
    measured = {blocks: sequence_memory(blocks, "reversible", x) for blocks in (1, 2, 4, 8)}
    assert {forward for forward, _ in measured.values()} == {x.nbytes}
    # one block has its peak in its only G, before the undone halves are separate tensors
    assert measured[2][1] == measured[4][1] == measured[8][1]
    assert measured[2][1] <= measured[1][1] + x.nbytes // 2
    stored = [sequence_memory(blocks, "stored", x)[1] for blocks in (1, 8)]
    assert stored[1] > 6 * stored[0]
    checkpointed = [sequence_memory(blocks, "checkpointed", x)[1] for blocks in (1, 8)]
    assert 6 * x.nbytes < checkpointed[1] - checkpointed[0] < 8 * x.nbytes


def test_the_output_is_let_go_while_it_is_undone_unless_the_graph_is_kept() -> None:
    x = torch.randn(1, 8, 16, 16, 16, requires_grad=True)
    freed, kept = (
        sequence_memory(2, "reversible", x, keep_graph=keep)[1] for keep in (False, True)
    )
    assert kept - freed == x.nbytes


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# dynamo reads .grad of every tensor and silences the warning itself, too late for "error"
GRAD_READ = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class BetweenConvolutions(nn.Module):
    def __init__(self, sequence: ReversibleSequence) -> None:
        super().__init__()
        self.first, self.sequence, self.last = nn.Conv3d(4, 4, 1), sequence, nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x)
        stream = self.sequence(stream)
        return self.last(stream)


@GRAD_READ
@pytest.mark.usefixtures("compiler")
def test_a_compiled_network_leaves_its_graph_at_the_sequence_and_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = BetweenConvolutions(bottlenecks(2))
    x = torch.randn(1, 4, 4, 4, 4)
    explained = torch._dynamo.explain(model)(x)
    assert explained.graph_count == 2
    assert any("compile its branches instead" in str(b.reason) for b in explained.break_reasons)
    found = []
    for apply in (model, torch.compile(model, backend="aot_eager")):
        y = apply(x)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), model.parameters())])
    assert worst_relative(*found) <= 1e-5


@GRAD_READ
@pytest.mark.usefixtures("compiler")
def test_training_in_one_compiled_graph_is_refused_by_the_compiler_with_our_reason() -> None:
    whole = torch.compile(bottlenecks(1), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile its branches instead"):
        whole(torch.randn(1, 4, 4, 4, 4))


@GRAD_READ
@pytest.mark.usefixtures("compiler")
def test_branches_compiled_each_for_itself_are_compiled_once_and_agree() -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2).double()
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64)
    y_plain, plain = gradients(sequence, x, "reversible")
    compilations: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        compilations.append(graph)
        return graph

    for block in sequence.couplings:
        for branch in block.branches:
            branch.compile(backend=backend)
    counts = []
    for _ in range(3):
        y_compiled, compiled = gradients(sequence, x, "reversible")
        counts.append(len(compilations))
        assert torch.equal(y_compiled, y_plain)
        assert worst_relative(compiled, plain) <= 1e-12
    assert counts[0] > 0
    assert counts[0] == counts[2]


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("memory", ["reversible", "stored", "checkpointed"])
def test_without_gradient_a_sequence_compiles_in_one_graph(memory: str) -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2).eval()
    sequence.memory = memory  # type: ignore[assignment]
    x = torch.randn(1, 4, 4, 4, 4)
    whole = torch.compile(sequence, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(x), sequence(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("memory", ["reversible", "checkpointed"])
def test_a_sequence_is_exported_as_plain_additions(memory: str, *, strict: bool) -> None:
    torch.manual_seed(0)
    sequence = bottlenecks(2).eval()
    sequence.memory = memory  # type: ignore[assignment]
    x = torch.randn(1, 4, 4, 4, 4)
    exported = torch.export.export(sequence, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), sequence(x))
    additions = [n for n in exported.graph.nodes if n.target == torch.ops.aten.add.Tensor]
    assert len(additions) == 4


def test_in_inference_mode_nothing_is_saved() -> None:
    sequence = bottlenecks(2)
    x = torch.randn(1, 4, 4, 4, 4)
    with torch.inference_mode():
        assert torch.equal(sequence(x), sequence(x.clone()))
    with torch.no_grad():
        assert sequence(x).grad_fn is None


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm3d(2), nn.InstanceNorm3d(2, track_running_stats=True), nn.SyncBatchNorm(2)]
)
def test_running_statistics_are_refused(norm: nn.Module) -> None:
    with pytest.raises(
        ConfigError, match=f"without running statistics, found {type(norm).__name__}"
    ):
        AdditiveCoupling(nn.Identity(), nn.Sequential(nn.Identity(), norm))


def test_instance_norm_without_statistics_is_accepted() -> None:
    AdditiveCoupling(nn.InstanceNorm3d(2), nn.GroupNorm(1, 2))


def test_an_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(ShapeError, match="an even number of channels"):
        bottlenecks(1)(torch.zeros(1, 5, 4, 4, 4))


def test_an_unknown_kind_of_memory_is_refused_and_the_nearest_named() -> None:
    block = AdditiveCoupling(nn.Identity(), nn.Identity())
    with pytest.raises(ConfigError, match=r"nearest: reversible\), found 'reversable'"):
        ReversibleSequence([block], memory="reversable")  # type: ignore[arg-type]


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one block"):
        ReversibleSequence([])


def test_a_branch_that_works_in_place_on_its_input_is_refused() -> None:
    block = AdditiveCoupling(nn.ReLU(inplace=True), nn.Identity())
    with pytest.raises(ConfigError, match=r"block 0, f: .*first operation that works in place"):
        ReversibleSequence([block])(torch.randn(1, 2, 3))


def test_the_public_inverse_refuses_active_dropout() -> None:
    sequence = with_dropout(1)
    with pytest.raises(ConfigError, match=r"found active dropout; call eval\(\)"):
        inverse(sequence, torch.zeros(1, 4, 2, 2))
    sequence.eval()
    x = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(inverse(sequence, sequence(x).detach()), x)


def test_drift_above_the_tolerance_is_reported() -> None:
    sequence = bottlenecks(1)
    x = torch.randn(1, 4, 4, 4, 4)
    check_reconstruction(sequence, x)
    with pytest.raises(ConfigError, match=r"error of at most 1\.0e-12"):
        check_reconstruction(sequence, x, tolerance=1e-12)
    explosive = ReversibleSequence([AdditiveCoupling(Scaled(1e12), Scaled(1e12))])
    with pytest.raises(ConfigError, match=r"explosive: .*set memory to checkpointed"):
        check_reconstruction(explosive, x, where="explosive")


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_a_stream_of_integers_is_refused() -> None:
    sequence = ReversibleSequence([AdditiveCoupling(nn.Identity(), nn.Identity())])
    with pytest.raises(ShapeError, match="reversible sequence: expected a floating tensor"):
        sequence(torch.zeros(1, 2, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 4, 4, 4, 4), "found an empty batch"),
        (torch.zeros(4, 4), "the axes .batch, channel"),
        (None, "expected a torch tensor, found an object of type NoneType"),
        (torch.zeros(1, 4, 4, 4, 4, device="meta"), "a tensor on cpu, where the weights are"),
        (torch.zeros(1, 6, 4, 4, 4), "block 0, f: expected 2 channels in each half, found 3"),
        (torch.zeros(1, 4, 4, 4), r"block 0, f: expected 3 spatial axes, found shape \(1, 2, 4, 4"),
        (torch.zeros(1, 4, 4, 4, 4).double(), "block 0, f: expected a tensor of torch.float32"),
    ],
)
@pytest.mark.parametrize("memory", ["reversible", "stored", "checkpointed"])
def test_a_stream_that_does_not_fit_the_weights_is_refused(x: Any, words: str, memory: Any) -> None:
    sequence = bottlenecks(1)
    sequence.memory = memory
    with pytest.raises(ShapeError, match=words):
        sequence(x)
    for call in (inverse, reconstruction_error, check_reconstruction):
        with pytest.raises(ShapeError, match=words.replace(", f:", ", [fg]:")):
            call(sequence, x)


def test_a_branch_that_begins_with_a_norm_is_told_its_channels() -> None:
    sequence = ReversibleSequence([AdditiveCoupling(nn.GroupNorm(2, 4), nn.Identity())])
    with pytest.raises(ShapeError, match="expected 4 channels in each half, found 2"):
        sequence(torch.zeros(1, 4, 4))


@pytest.mark.parametrize(
    ("branch", "found"),
    [
        (nn.Conv2d(4, 4, 3), r"\(1, 4, 4, 4\)"),
        (nn.AdaptiveAvgPool2d(1), r"\(1, 4, 1, 1\)"),  # its sum with the other half broadcasts
        (nn.Conv2d(4, 1, 1), r"\(1, 1, 6, 6\)"),
        (nn.AdaptiveMaxPool2d(6, return_indices=True), "tuple"),
    ],
)
@pytest.mark.parametrize("second", [False, True], ids=["f", "g"])
def test_a_branch_that_changes_the_shape_is_refused_by_name(
    branch: nn.Module, found: str, second: bool
) -> None:
    branches = (nn.Identity(), branch) if second else (branch, nn.Identity())
    plain = AdditiveCoupling(nn.Identity(), nn.Identity())
    sequence = ReversibleSequence([plain, AdditiveCoupling(*branches)])
    where = f"reversible block 1, {'g' if second else 'f'}"
    words = rf"{where}: expected a result of the shape of its input, \(1, 4, 6, 6\), found {found}"
    x = torch.randn(1, 8, 6, 6)
    with pytest.raises(ShapeError, match=words):
        sequence(x)
    with pytest.raises(ShapeError, match=words), torch.no_grad():
        sequence(x)
    with pytest.raises(ShapeError, match=words):
        inverse(sequence, x)


def test_an_error_inside_a_branch_that_fits_is_left_as_it_is() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        ReversibleSequence([AdditiveCoupling(Failing(), Failing())])(torch.zeros(1, 2, 3))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_weights_in_half_precision_work_on_a_stream_in_float32(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = bottlenecks(2)
    x = torch.randn(1, 4, 6, 6, 6)
    expected, wanted = gradients(exact, x, "stored")
    half = bottlenecks(2)
    half.load_state_dict(exact.state_dict())
    half.to(kind)
    stored, _ = gradients(half, x.to(kind), "stored")
    y, found = gradients(half, x.to(kind), "reversible")
    assert y.dtype == torch.float32
    assert torch.equal(y, stored)
    tolerance = 0.1 if kind is torch.bfloat16 else 0.02
    assert (y - expected).abs().mean() < tolerance * expected.std()
    # the gradient of the input keeps its type, those of the weights theirs
    assert {gradient.dtype for gradient in found} == {kind}
    for gradient, other in zip(found, wanted, strict=True):
        assert (gradient.float() - other).norm() < 5 * tolerance * other.norm()
    # a stream in float32 is left in float32
    torch.testing.assert_close(inverse(half, half(x).detach()), x, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=kind):
        assert half(x).dtype == torch.float32
