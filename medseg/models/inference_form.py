"""A network rewritten for inference: the same answer from fewer passes over memory.

Works on any network in eval mode, ours or not, by the classes of ``torch.nn`` that it is built of:

- InstanceNorm and GroupNorm become :class:`~medseg.ops.norm.InstanceNorm` and
  :class:`~medseg.ops.norm.GroupNorm`, which keep the channels-last layout.
- A ReLU or LeakyReLU that alone reads the result of such a normalisation is done in the same pass,
  and a normalisation that alone reads the result of a convolution writes over it.
- BatchNorm that alone reads the result of a convolution is folded into its weights.
- Conv3d becomes :class:`~medseg.ops.small_conv.SmallConv3d`, which is faster on small images.
- Weights and images are laid out channels-last, and weights converted once if a number type is
  asked for.

Who reads what is seen in a symbolic trace (``torch.fx``) of the network or, where it cannot be
traced, of the largest parts of it that can. The trace is evidence only: every module keeps its
class and its own ``forward``, and only the parts that hang in it are exchanged, so that control
flow which depends on the image stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medseg.errors import ConfigError
from medseg.models.network import arrange_weights
from medseg.ops.norm import GroupNorm, InstanceNorm
from medseg.ops.small_conv import SmallConv3d

__all__ = ["InferenceForm", "converted", "deviation", "to_inference_form"]

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

# exact classes: what a subclass does with them is not known
_CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d, SmallConv3d}
_TRANSPOSED = {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_INSTANCE_NORMS = {nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d}
_GROUP_NORMS = {nn.GroupNorm, GroupNorm}
# give their input itself in eval mode
_PASSING = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d}


class InferenceForm(nn.Module):
    """A rewritten network and the number type that it computes in.

    Args:
        network: Rewritten, in eval mode; of the class it had before.
        dtype: Type inside the network, or None to leave types, and autocast, to the caller.
        channels_last: Whether images are laid out channels-last before they go in.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype | None, *, channels_last: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.channels_last = channels_last
        self.eval()

    def forward(self, x_bcs: Tensor) -> Any:  # noqa: ANN401 - whatever the network gives
        """What the network gives for ``x_bcs``.

        Args:
            x_bcs: Image of any floating-point type.
        """
        if self.channels_last and x_bcs.ndim in _LAYOUTS:
            # not contiguous(): it leaves an image of one channel with the strides that it has, from
            # which the first convolution would go on in the other layout
            x_bcs = x_bcs.to(memory_format=_LAYOUTS[x_bcs.ndim])
        if self.dtype is None:
            return self.network(x_bcs)
        # the weights have this type already; autocast is for the operations that need float32, and
        # for the types of what a network makes up itself
        with torch.autocast(x_bcs.device.type, dtype=self.dtype):
            return self.network(x_bcs)


def to_inference_form(
    network: nn.Module, dtype: torch.dtype | None = None, *, channels_last: bool = True
) -> InferenceForm:
    """A copy of a network that gives the same answer faster, for use without gradient.

    Weights are copied, since layout and type differ and some are folded; the network given is not
    touched, and can be let go. The copy answers in eval mode only.

    In float32 the answer is the same up to rounding. In a narrower type it differs from the float32
    answer as that of the original under autocast does: normalisations keep their weights and sums
    in float32. See :func:`deviation`.

    Args:
        network: In eval mode.
        dtype: bfloat16 or float16, to convert the weights of convolutions and linear layers once
            and to run under autocast; None leaves types and autocast as they are.
        channels_last: Whether weights and images are laid out channels-last, or contiguously.

    Returns:
        The rewritten copy, without gradient, on the device of ``network``.

    Raises:
        ConfigError: If the network is in training mode, or the type is not one of those.
    """
    if any(module.training for module in network.modules()):
        raise ConfigError(
            "inference form",
            expected="a network in eval mode",
            found="one in training mode",
            remedy="call eval() on it first",
            code="inference-training",
        )
    _check_dtype(dtype)
    # a holder, so that a network that is one layer can be exchanged as well
    form = InferenceForm(copy.deepcopy(network), None, channels_last=channels_last)
    form.requires_grad_(requires_grad=False)
    for region in list(_traced_regions(form.network, _places(form))):
        _exchange(form, region.exchanges())
    # in what could not be traced, one for one; what is left here, others may read as well
    norms = [
        module for module in form.modules() if type(module) in {*_INSTANCE_NORMS, nn.GroupNorm}
    ]
    _exchange(form, {norm: _own_norm(norm) for norm in norms if _has_own_form(norm)})
    convs = [module for module in form.modules() if SmallConv3d.fits(module)]
    _exchange(form, {conv: SmallConv3d.of(conv) for conv in convs})
    return converted(form, dtype, channels_last=channels_last)


def converted(
    form: InferenceForm, dtype: torch.dtype | None, *, channels_last: bool
) -> InferenceForm:
    """An inference form in another number type and layout; takes the one given over.

    Args:
        form: In its network's own type.
        dtype: As :func:`to_inference_form` has it.
        channels_last: As there.

    Raises:
        ConfigError: If the type is not one of those.
    """
    _check_dtype(dtype)
    form = InferenceForm(form.network, dtype, channels_last=channels_last)
    if dtype is not None:
        for module in form.modules():
            if type(module) in {*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear}:
                module.to(dtype)
    arrange_weights(form, channels_last=channels_last)
    return form.requires_grad_(requires_grad=False)


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ConfigError(
            "inference form",
            expected="bfloat16, float16 or None as number type",
            found=str(dtype),
            remedy="leave it out to keep the network's own",
            code="inference-dtype",
        )


def deviation(network: nn.Module, form: nn.Module, x_bcs: Tensor) -> float:
    """How far the answers of two networks are apart on one image.

    Args:
        network: In eval mode.
        form: What :func:`to_inference_form` made of it.
        x_bcs: An image that both take.

    Returns:
        The largest difference of logits over the standard deviation of the first network's, for
        the worst head if there are several. Not a number where one of them gives such.
    """
    with torch.inference_mode():
        wanted, found = network(x_bcs), form(x_bcs)
    if isinstance(wanted, Tensor):
        wanted, found = [wanted], [found]
    shares = [
        (other.double() - one.double()).abs().max() / one.double().std()
        for one, other in zip(wanted, found, strict=True)
    ]
    return float(torch.stack(shares).max())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, GroupNorm | InstanceNorm) or super().is_leaf_module(
            m, module_qualified_name
        )


class _Region:
    """What a trace of one module tells of the calls inside it.

    Args:
        root: The module traced.
        graph: Its trace.
        own: Ids of the modules that hang nowhere but in ``root``.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, own: frozenset[int]) -> None:
        self._called: dict[fx.Node, nn.Module] = {}
        self._calls: dict[nn.Module, list[fx.Node]] = defaultdict(list)
        touched: set[int] = set()
        for node in graph.nodes:
            if node.op == "call_module":
                module = root.get_submodule(str(node.target))
                self._called[node] = module
                self._calls[module].append(node)
            elif node.op == "get_attr":
                # its weights are read by others
                owner, _, _ = str(node.target).rpartition(".")
                touched.add(id(root.get_submodule(owner)))
        hooked = {
            id(part) for part in self._calls if part._forward_hooks or part._forward_pre_hooks
        }
        self._free = own - touched - hooked

    def exchanges(self) -> dict[nn.Module, nn.Module]:
        """Modules to exchange, and by what."""
        chosen: dict[nn.Module, nn.Module] = {}
        for conv, batch_norm in self._folded():
            chosen[conv] = fuse_conv_bn_eval(conv, batch_norm)  # type: ignore[type-var]
            chosen[batch_norm] = nn.Identity()
        activated = self._activated()
        for norm in self._calls:
            if id(norm) not in self._free or not _has_own_form(norm):
                continue
            activation = activated.get(norm)
            slope = _slope(norm) if activation is None else _slope(activation)
            chosen[norm] = _own_norm(norm, slope, inplace=self._alone(norm))
            if activation is not None:
                chosen[activation] = nn.Identity()
        return chosen

    def _folded(self) -> Iterator[tuple[nn.Module, _BatchNorm]]:
        for norm in self._calls:
            if not isinstance(norm, _BatchNorm) or type(norm) not in _BATCH_NORMS:
                continue
            if norm.running_mean is None:
                continue
            convs = {self._part(self._source(node)) for node in self._calls[norm]}
            conv = convs.pop()
            if convs or conv is None or type(conv) not in _CONVOLUTIONS:
                continue
            calls = self._calls[conv]
            alone = all(self._part(self._only_reader(node)) is norm for node in calls)
            if alone and id(norm) in self._free and id(conv) in self._free:
                yield conv, norm

    def _activated(self) -> dict[nn.Module, nn.Module]:
        """The activation of each normalisation that always has the same one and no other reader."""
        found: dict[nn.Module, nn.Module] = {}
        for norm, calls in self._calls.items():
            if id(norm) in self._free and _has_own_form(norm) and _slope(norm) == 1:
                readers = {self._part(self._only_reader(node)) for node in calls}
                reader = readers.pop()
                if not readers and reader is not None and _slope(reader) != 1:
                    found[norm] = reader
        # an activation with another input as well has to stay, and with it what it belongs to
        kept = {
            activation
            for activation in found.values()
            if id(activation) not in self._free
            or any(
                found.get(maker) is not activation if maker is not None else True
                for maker in (self._part(self._source(node)) for node in self._calls[activation])
            )
        }
        return {norm: activation for norm, activation in found.items() if activation not in kept}

    def _alone(self, norm: nn.Module) -> bool:
        """Whether a normalisation always reads what a convolution made for it alone."""
        for call in self._calls[norm]:
            node = self._source(call)
            while node is not None and len(node.users) == 1 and type(self._part(node)) in _PASSING:
                node = self._source(node)
            makes_anew = type(self._part(node)) in _CONVOLUTIONS | _TRANSPOSED
            if node is None or len(node.users) != 1 or not makes_anew:
                return False
        return True

    def _part(self, node: fx.Node | None) -> nn.Module | None:
        return None if node is None else self._called.get(node)

    @staticmethod
    def _source(node: fx.Node) -> fx.Node | None:
        inputs = node.all_input_nodes
        return inputs[0] if len(inputs) == 1 else None

    @staticmethod
    def _only_reader(node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None


def _traced_regions(module: nn.Module, places: Counter[int]) -> Iterator[_Region]:
    """The largest parts of a network that can be traced."""
    kinds = {type(part) for part in module.modules()}
    if not kinds & (_INSTANCE_NORMS | _BATCH_NORMS | _GROUP_NORMS):
        return
    graph = _graph(module)
    if graph is None:
        for child in module.children():
            yield from _traced_regions(child, places)
        return
    inside = _places(module)
    own = {part for part, count in inside.items() if count * places[id(module)] == places[part]}
    yield _Region(module, graph, frozenset(own))


def _graph(module: nn.Module) -> fx.Graph | None:
    # forward runs with stand-ins for tensors, and may keep them: so on a copy, of all but weights
    weights = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        with torch.no_grad():
            return _Tracer().trace(copy.deepcopy(module, weights))
    except Exception:
        # whatever a forward may raise when it is handed no tensor
        return None


def _places(module: nn.Module) -> Counter[int]:
    """In how many places each part hangs, by id."""
    return Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))


def _exchange(root: nn.Module, chosen: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in chosen:
                setattr(parent, name, chosen[child])


def _has_own_form(module: nn.Module) -> bool:
    if type(module) in _GROUP_NORMS:
        return True
    return type(module) in _INSTANCE_NORMS and module.running_mean is None


def _own_norm(
    norm: Any,  # noqa: ANN401 - the classes have nothing else in common
    slope: float = 1.0,
    *,
    inplace: bool = False,
) -> GroupNorm | InstanceNorm:
    own: GroupNorm | InstanceNorm
    if isinstance(norm, nn.GroupNorm):
        own = GroupNorm(
            norm.num_groups,
            norm.num_channels,
            eps=norm.eps,
            negative_slope=slope,
            inplace=inplace,
        ).eval()
        own.affine = norm.affine
    else:
        own = InstanceNorm(
            norm.num_features, eps=norm.eps, affine=False, negative_slope=slope, inplace=inplace
        ).eval()
    own.weight, own.bias = norm.weight, norm.bias
    return own


def _slope(activation: nn.Module | None) -> float:
    """Factor of negative numbers; 1 for what does nothing to them, as far as is known."""
    if isinstance(activation, GroupNorm):
        return activation.negative_slope
    if type(activation) is nn.ReLU:
        return 0.0
    if isinstance(activation, nn.LeakyReLU) and type(activation) is nn.LeakyReLU:
        return activation.negative_slope
    return 1.0
