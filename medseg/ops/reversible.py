"""Additive coupling whose activations are recomputed from the output in the backward pass.

A block works on the two halves of the channels,

    y1 = x1 + F(x2),   y2 = x2 + G(y1),

and is undone by ``x2 = y2 - G(y1)``, ``x1 = y1 - F(x2)`` (Gomez et al., "The Reversible Residual
Network", NeurIPS 2017). A whole sequence of blocks keeps its output and nothing else, whatever its
length. The backward pass costs one more evaluation of F and G: the value computed for the gradient
is the one that the inverse subtracts.

The inverse is exact in real numbers only. The stream (``x``, ``y`` and the additions) therefore
stays in float32 at least, whatever type F and G compute in: under autocast that which it chooses,
else that of their weights. A sequence should be kept to some four blocks;
:func:`reconstruction_error` measures the drift. Sums of bfloat16 values are mostly exact in
float32, so that a stream of such values drifts less than one that uses all bits of float32, whose
rounding can move a branch's input to the next bfloat16 value. Convolutions that round their factors
to fewer bits, as TF32 on NVIDIA devices does by default, let it grow;
``torch.backends.cudnn.conv.fp32_precision = "ieee"`` keeps them in float32.

Compilation: ``torch.compile`` leaves the graph at a reversible sequence that trains and takes it up
after. F and G can be compiled each for itself with ``branch.compile()``. Without gradient there is
no break, and ``torch.export`` gets the plain additions whether gradients are on or off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

from medseg.errors import ConfigError, ShapeError, one_of
from medseg.ops.checks import check_tensor

__all__ = [
    "AdditiveCoupling",
    "Memory",
    "ReversibleSequence",
    "check_reconstruction",
    "inverse",
    "reconstruction_error",
]

Memory = Literal["reversible", "stored", "checkpointed"]

_HALVES = (torch.float16, torch.bfloat16)

# generator state of the CPU, and of the stream's device where that is another one
_RandomState = tuple[Tensor, Tensor | None]


class AdditiveCoupling(nn.Module):
    """The two functions of one block; each maps half the channels onto as many.

    Whatever the type of the stream, F and G get their inputs in the type of their weights where
    that is bfloat16 or float16.

    Args:
        f: Applied to the second half, added to the first.
        g: Applied to the new first half, added to the second.

    Raises:
        ConfigError: If ``f`` or ``g`` keeps running statistics: both run twice per step, so the
            statistics would be updated twice.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        for branch in (f, g):
            for module in branch.modules():
                if isinstance(module, _BatchNorm) or (
                    isinstance(module, _InstanceNorm) and module.track_running_stats
                ):
                    raise ConfigError(
                        "reversible block",
                        expected="normalisation without running statistics",
                        found=type(module).__name__,
                        remedy="use GroupNorm, or InstanceNorm without running statistics",
                        code="reversible-statistics",
                    )
        self.f = f
        self.g = g

    @property
    def branches(self) -> tuple[nn.Module, nn.Module]:
        """F and G in the order in which they are applied."""
        return self.f, self.g

    def forward(
        self,
        x1_bcs: Tensor,
        x2_bcs: Tensor,
        states: list[_RandomState] | None = None,
        where: str = "reversible block",
    ) -> tuple[Tensor, Tensor]:
        """``y1`` and ``y2`` of ``x1`` and ``x2``, with whatever autograd mode is on.

        Args:
            x1_bcs: First half of the channels.
            x2_bcs: Second half.
            states: Takes the generator state before each branch, if given.
            where: What messages call the block.

        Raises:
            ShapeError: If a branch cannot take its half, or gives another shape.
            ConfigError: If a branch changes its input in place.
        """
        y1_bcs = x1_bcs + _value(self.f, x2_bcs, states, f"{where}, f")
        return y1_bcs, x2_bcs + _value(self.g, y1_bcs, states, f"{where}, g")


class ReversibleSequence(nn.Module):
    """Reversible blocks one after the other, under one node of the autograd graph.

    All kinds of memory share their weights' names and give the same forward values bit for bit.
    Double backward is not possible in the reversible kind, and its output must not be changed in
    place (autograd notices and says so).

    Args:
        blocks: At least one.
        memory: ``reversible`` recomputes activations from the output. ``stored`` is plain autograd.
            ``checkpointed`` keeps the input of every block and recomputes from there
            (``torch.utils.checkpoint``, not reentrant): no rounding in an inverse, and memory that
            grows by the stream with every block.
        random: Whether a branch draws random numbers, so that the generator states must be kept
            for the second evaluation. None looks for dropout modules.

    Raises:
        ConfigError: If there is no block, or no such kind of memory.
    """

    def __init__(
        self,
        blocks: Sequence[AdditiveCoupling],
        *,
        memory: Memory = "reversible",
        random: bool | None = None,
    ) -> None:
        super().__init__()
        if not blocks:
            raise ConfigError(
                "reversible sequence",
                expected="at least one block",
                found="none",
                remedy="leave the sequence out instead",
                code="reversible-empty",
            )
        if memory not in get_args(Memory):
            raise ConfigError(
                "reversible sequence",
                expected=f"memory to be {one_of(memory, get_args(Memory))}",
                found=repr(memory),
                remedy="choose one of them",
                code="reversible-memory",
            )
        self.blocks = nn.ModuleList(blocks)
        self.memory = memory
        self.random = random

    @property
    def couplings(self) -> tuple[AdditiveCoupling, ...]:
        """The blocks, first applied first."""
        return tuple(cast(AdditiveCoupling, block) for block in self.blocks)

    def forward(self, x_bcs: Tensor) -> Tensor:
        """Apply all blocks.

        Args:
            x_bcs: ``(b, c, *spatial)``, ``c`` even; half precision is widened to float32.

        Returns:
            As ``x_bcs``, in float32 or wider, in the same memory format.

        Raises:
            ShapeError: If ``x_bcs`` is no floating tensor, is an empty batch, has an odd number of
                channels or lies on another device than the weights; or if a branch cannot take
                its half or gives another shape. The message names the block and the branch.
            ConfigError: If a branch changes its input in place.
        """
        x_bcs = _stream(self, x_bcs)
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            if self.memory == "reversible":
                y_bcs: Tensor = _recomputed(self, x_bcs)
                return y_bcs
            if self.memory == "checkpointed":
                return self._checkpointed(x_bcs)
        return self.run(x_bcs, None)

    def run(self, x_bcs: Tensor, states: list[_RandomState] | None) -> Tensor:
        """Apply all blocks with whatever autograd mode is on.

        Args:
            x_bcs: The stream.
            states: Takes the generator state before each branch, if given.
        """
        x1, x2 = x_bcs.chunk(2, dim=1)
        for n, block in enumerate(self.couplings):
            x1, x2 = block(x1, x2, states, _block_name(n))
        return torch.cat((x1, x2), dim=1)

    def _checkpointed(self, x_bcs: Tensor) -> Tensor:
        x1, x2 = x_bcs.chunk(2, dim=1)
        for n, block in enumerate(self.couplings):
            x1, x2 = checkpoint(
                block,
                x1,
                x2,
                None,
                _block_name(n),
                use_reentrant=False,
                preserve_rng_state=self.draws_random_numbers(),
            )
        return torch.cat((x1, x2), dim=1)

    def draws_random_numbers(self) -> bool:
        """Whether a second evaluation needs the generator states of the first."""
        if self.random is not None:
            return self.random
        return any(
            isinstance(module, _DropoutNd) and module.training and module.p > 0
            for module in self.modules()
        )


def inverse(sequence: ReversibleSequence, y_bcs: Tensor) -> Tensor:
    """The input that a sequence made ``y_bcs`` of, without gradient.

    Exact up to rounding, and only for a sequence that draws no random numbers (eval mode).

    Args:
        sequence: Applied in its present mode.
        y_bcs: ``(b, c, *spatial)``.

    Raises:
        ShapeError: As :meth:`ReversibleSequence.forward`.
        ConfigError: If the sequence draws random numbers, or changes its input in place.
    """
    if sequence.draws_random_numbers():
        raise ConfigError(
            "inverse",
            expected="a sequence that draws no random numbers",
            found="active dropout",
            remedy="call eval() on the network first",
            code="reversible-random",
        )
    return _inverse(sequence, _stream(sequence, y_bcs), None)


def reconstruction_error(sequence: ReversibleSequence, x_bcs: Tensor) -> float:
    """How far forward and inverse miss the input: largest deviation over largest magnitude.

    Dropout is replayed, so this works in training mode, and under the caller's autocast.

    Args:
        sequence: Applied in its present mode.
        x_bcs: ``(b, c, *spatial)``.

    Raises:
        ShapeError: As :meth:`ReversibleSequence.forward`.
    """
    x_bcs = _stream(sequence, x_bcs)
    states: list[_RandomState] | None = [] if sequence.draws_random_numbers() else None
    with torch.no_grad():
        y_bcs = sequence.run(x_bcs, states)
        rebuilt = _inverse(sequence, y_bcs, states)
        scale = x_bcs.abs().max().clamp_min(torch.finfo(x_bcs.dtype).tiny)
        return float((rebuilt - x_bcs).abs().max() / scale)


def check_reconstruction(
    sequence: ReversibleSequence,
    x_bcs: Tensor,
    tolerance: float = 1e-3,
    *,
    where: str = "reversible sequence",
) -> None:
    """Debug check against drift (Behrmann et al., AISTATS 2021: couplings can lose invertibility).

    Args:
        sequence: Applied in its present mode.
        x_bcs: ``(b, c, *spatial)``, as it comes in training.
        tolerance: Largest relative error that is let pass.
        where: What the message calls the sequence.

    Raises:
        ConfigError: If :func:`reconstruction_error` is above ``tolerance`` or not a number.
    """
    error = reconstruction_error(sequence, x_bcs)
    if not error <= tolerance:
        raise ConfigError(
            where,
            expected=f"a relative reconstruction error of at most {tolerance:.1e}",
            found=f"{error:.1e}",
            remedy="set memory to checkpointed, or use fewer blocks or a wider number type",
            code="reversible-drift",
        )


class _Recomputed(torch.autograd.Function):
    """Saves the sequence's output; weights are explicit inputs, so their gradients are results.

    (Calling ``backward`` inside would fill ``.grad`` behind autograd's back and give nothing at all
    when the input needs no gradient.)
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        sequence: ReversibleSequence,
        x_bcs: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        device_type = x_bcs.device.type
        ctx.sequence = sequence
        ctx.autocast = _autocast_state(device_type)
        ctx.states = [] if sequence.draws_random_numbers() else None
        with _autocast(ctx.autocast):
            # detached, as views of a tensor with gradient confuse torch's module hooks in here
            y_bcs = sequence.run(x_bcs.detach(), ctx.states)
        ctx.save_for_backward(y_bcs, *weights)
        return y_bcs

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        dy_bcs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # a result without graph would silently drop second-order terms
            raise ConfigError(
                "reversible sequence",
                expected="first derivatives only",
                found="create_graph=True",
                remedy="set memory to stored or checkpointed for higher derivatives",
                code="reversible-double-backward",
            )
        sequence: ReversibleSequence = ctx.sequence
        states: list[_RandomState] = list(ctx.states or ())
        y_bcs, *weights = ctx.saved_tensors
        y1, y2 = y_bcs.chunk(2, dim=1)
        dy1, dy2 = dy_bcs.chunk(2, dim=1)
        del y_bcs, dy_bcs
        # the output goes half by half as it is undone, unless the caller keeps the graph; not in
        # torch's documents, and without it a little more memory is used
        if hasattr(ctx, "maybe_clear_saved_tensors"):
            ctx.maybe_clear_saved_tensors()
        gradients: list[Tensor | None] = []
        with _autocast(ctx.autocast):
            for block in reversed(sequence.couplings):
                # values and old halves are let go before the gradients are taken, where the peak
                # of memory is
                of_g = _Evaluated(block.g, weights, y1, states)
                y2 = y2 - of_g.take_value()
                dy1 = dy1 + of_g.take_gradients(dy2)
                of_f = _Evaluated(block.f, weights, y2, states)
                y1 = y1 - of_f.take_value()
                dy2 = dy2 + of_f.take_gradients(dy1)
                gradients = [*of_f.gradients, *of_g.gradients, *gradients]
        dx_bcs = torch.cat((dy1, dy2), dim=1) if ctx.needs_input_grad[1] else None
        return (None, dx_bcs, *gradients)


class _Evaluated:
    """One evaluation of a branch, used for the inverse first and for the gradients then.

    Args:
        branch: F or G.
        weights: Those of the sequence up to this branch; its own are taken off the end.
        source: What the branch was applied to.
        states: Generators to replay, if any; the last is taken off.
    """

    def __init__(
        self,
        branch: nn.Module,
        weights: list[Tensor],
        source: Tensor,
        states: list[_RandomState],
    ) -> None:
        names = [name for name, _ in branch.named_parameters()]
        first = len(weights) - len(names)
        # stand-ins, so that hooks on the weights run for the outer graph only
        self._weights = [
            weight.detach().requires_grad_(weight.requires_grad) for weight in weights[first:]
        ]
        del weights[first:]
        self._leaf = source.detach().requires_grad_()
        with torch.enable_grad(), _replayed(states.pop() if states else None, source.device):
            value: Tensor = functional_call(
                branch,
                dict(zip(names, self._weights, strict=True)),
                # no leaf itself: torch's module hooks cannot follow one through autograd.grad
                (_suited(branch, self._leaf.view_as(self._leaf)),),
            )
            # the edge keeps the graph; the value itself is of no use to the gradients
            self._edge = get_gradient_edge(value)
        self._value = value.detach()
        self._dtype = value.dtype
        self.gradients: list[Tensor | None] = []

    def take_value(self) -> Tensor:
        """What the branch gave; let go here."""
        value = self._value
        del self._value
        return value

    def take_gradients(self, d_value: Tensor) -> Tensor:
        """Gradient of the source; those of the weights go to ``gradients``. The graph is freed."""
        learned = [weight for weight in self._weights if weight.requires_grad]
        d_source, *found = torch.autograd.grad(
            self._edge,
            [self._leaf, *learned],
            d_value.to(self._dtype),
            allow_unused=True,
            materialize_grads=True,
        )
        left = iter(found)
        self.gradients = [next(left) if weight.requires_grad else None for weight in self._weights]
        del self._edge, self._leaf, self._weights
        return d_source


def _inverse(
    sequence: ReversibleSequence, y_bcs: Tensor, states: list[_RandomState] | None
) -> Tensor:
    left = list(states or ())
    y1, y2 = y_bcs.chunk(2, dim=1)
    with torch.no_grad():
        for n, block in reversed(list(enumerate(sequence.couplings))):
            with _replayed(left.pop() if left else None, y_bcs.device):
                y2 = y2 - _value(block.g, y1, None, f"{_block_name(n)}, g")
            with _replayed(left.pop() if left else None, y_bcs.device):
                y1 = y1 - _value(block.f, y2, None, f"{_block_name(n)}, f")
        return torch.cat((y1, y2), dim=1)


_outside_graphs: Callable[[ReversibleSequence, Tensor], Tensor] | None = None


def _recomputed(sequence: ReversibleSequence, x_bcs: Tensor) -> Tensor:
    global _outside_graphs  # noqa: PLW0603 - made on first use: it takes a second to import
    if _outside_graphs is None:
        _outside_graphs = torch.compiler.disable(  # type: ignore[no-untyped-call]
            _recompute,
            reason="a reversible sequence trains outside compiled graphs; compile its branches "
            "instead",
        )
    return _outside_graphs(sequence, x_bcs)


def _recompute(sequence: ReversibleSequence, x_bcs: Tensor) -> Tensor:
    weights = [
        weight
        for block in sequence.couplings
        for branch in block.branches
        for weight in branch.parameters()
    ]
    return cast(Tensor, _Recomputed.apply(sequence, x_bcs, *weights))


def _stream(sequence: ReversibleSequence, x_bcs: Tensor) -> Tensor:
    check_tensor("reversible sequence", x_bcs)
    if x_bcs.shape[1] % 2:
        raise ShapeError(
            "reversible sequence",
            expected="an even number of channels, split into two halves",
            found=str(x_bcs.shape[1]),
            remedy="choose even widths",
            code="reversible-odd",
        )
    if not x_bcs.is_floating_point():
        raise ShapeError(
            "reversible sequence",
            expected="a floating tensor",
            found=str(x_bcs.dtype),
            remedy="call float() on it first",
            code="reversible-type",
        )
    for weight in sequence.parameters():
        if weight.device != x_bcs.device:
            raise ShapeError(
                "reversible sequence",
                expected=f"a tensor on {weight.device}, where the weights are",
                found=str(x_bcs.device),
                remedy="move one of them with to()",
                code="reversible-device",
            )
        break
    return x_bcs.float() if x_bcs.dtype in _HALVES else x_bcs


def _block_name(n: int) -> str:
    return f"reversible block {n}"


def _suited(branch: nn.Module, x_bcs: Tensor) -> Tensor:
    """The input of a branch, rounded to half precision where the weights are."""
    for weight in branch.parameters():
        if weight.is_floating_point():
            return x_bcs.to(weight.dtype) if weight.dtype in _HALVES else x_bcs
    return x_bcs


def _value(
    branch: nn.Module, x_bcs: Tensor, states: list[_RandomState] | None, where: str
) -> Tensor:
    if states is not None:
        states.append(_random_state(x_bcs.device))
    source_bcs = _suited(branch, x_bcs)
    if torch.compiler.is_compiling():
        # versions cannot be traced; a graph without gradient is functional anyway
        value = cast(Tensor, branch(source_bcs))
        _check_value(value, x_bcs, where)
        return value
    version = None if source_bcs.is_inference() else source_bcs._version
    try:
        value = cast(Tensor, branch(source_bcs))
    except RuntimeError as error:
        misfit = _misfit(branch, source_bcs)
        if misfit is None:
            raise
        expected, found = misfit
        raise ShapeError(
            where,
            expected=expected,
            found=found,
            remedy="hand in what the branch was built for; the channels are halved between f and g",
            code="reversible-shape",
        ) from error
    if version is not None and source_bcs._version != version:
        raise ConfigError(
            where,
            expected="branches that leave their input as it is",
            found="a first operation that works in place",
            remedy="set inplace=False on it",
            code="reversible-inplace",
        )
    _check_value(value, x_bcs, where)
    return value


def _check_value(value: object, x_bcs: Tensor, where: str) -> None:
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != tuple(x_bcs.shape):
        # a shape that broadcasts would be added without a word
        raise ShapeError(
            where,
            expected=f"a result of the shape of its input, {tuple(x_bcs.shape)}",
            found=str(shape),
            remedy="pad its convolutions, and let it give as many channels as it takes",
            code="reversible-shape",
        )


def _misfit(branch: nn.Module, x_bcs: Tensor) -> tuple[str, str] | None:
    """What the first layer of a failed branch expects and what it got; None if they agree."""
    for module in branch.modules():
        if isinstance(module, _ConvNd):
            channels, rank = module.in_channels, len(module.kernel_size)
        elif isinstance(module, nn.GroupNorm):
            channels, rank = module.num_channels, x_bcs.ndim - 2
        else:
            continue
        if x_bcs.ndim != rank + 2:
            return f"{rank} spatial axes", f"shape {tuple(x_bcs.shape)}"
        if x_bcs.shape[1] != channels:
            return f"{channels} channels in each half", str(x_bcs.shape[1])
        if module.weight is not None and x_bcs.dtype != module.weight.dtype:
            return f"a tensor of {module.weight.dtype}, as the weights are", str(x_bcs.dtype)
        return None
    return None


def _random_state(device: torch.device) -> _RandomState:
    own = None
    if device.type != "cpu":
        own = torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), own


def _autocast_state(device_type: str) -> dict[str, Any] | None:
    if not torch.amp.is_autocast_available(device_type):
        return None
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
        # a weight's cast made in the forward pass has no graph: backward must not find it again
        "cache_enabled": False,
    }


def _autocast(state: dict[str, Any] | None) -> AbstractContextManager[object]:
    return nullcontext() if state is None else torch.autocast(**state)


@contextmanager
def _replayed(state: _RandomState | None, device: torch.device) -> Iterator[None]:
    """Generators as they were at ``state``, and afterwards as they are now."""
    if state is None:
        yield
        return
    now = _random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(now, device)


def _set_random_state(state: _RandomState, device: torch.device) -> None:
    host, own = state
    torch.set_rng_state(host)
    if own is not None:
        torch.get_device_module(device).set_rng_state(own, device)
