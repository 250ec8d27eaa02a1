"""What is asked of every network of the table, whatever is inside it."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.models.card import InputSettings, NetworkChoice
from medseg.models.network import SegmentationNetwork, arrange_weights
from medseg.models.slices import SlicedNetwork
from medseg.models.table import NETWORKS, build_network, build_volume_network
from tests.ddp_worker import train_in_step
from tests.forked import in_two_processes

NAMES = sorted(NETWORKS)
EVERY = pytest.mark.parametrize("name", NAMES)


def build(name: str, *, channels: int = 1, classes: int = 3) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(name, {"preset": "tiny", "in_channels": channels, "out_channels": classes})


def legal(network: SegmentationNetwork, *times: int) -> tuple[int, ...]:
    """Extents that are ``times`` the least legal ones, axis by axis; the last one goes on."""
    factors = [*times, *[times[-1]] * network.rank][: network.rank]
    return tuple(step * n for step, n in zip(network.size_multiple, factors, strict=True))


def image(network: SegmentationNetwork, *times: int, batch: int = 2, seed: int = 1) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(batch, network.in_channels, *legal(network, *times), generator=noise)


def heads_of(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def loss_of(answer: Tensor | tuple[Tensor, ...]) -> Tensor:
    losses = [
        F.cross_entropy(head.float(), torch.zeros_like(head[:, 0], dtype=torch.int64))
        for head in heads_of(answer)
    ]
    return torch.stack(losses).sum()


@EVERY
def test_the_table_tells_the_rank(name: str) -> None:
    entry = NETWORKS[name]
    network = build(name)
    assert network.rank == entry.rank
    assert {"tiny", "small", "base"} <= set(entry.presets) == set(entry.inputs)
    with torch.device("meta"):
        for preset, extents in entry.inputs.items():
            built = build_network(name, {"preset": preset})
            assert built.nearest_legal_extents(extents) == extents


@EVERY
def test_legal_extents_of_any_shape_give_logits_on_the_same_lattice(name: str) -> None:
    network = build(name).eval()
    with torch.no_grad():
        for times in [(2, 3, 1), (1, 2, 2), (2, 1, 1), (2, 3, 1)]:
            x = image(network, *times, batch=1)
            y = network(x)
            assert isinstance(y, Tensor)
            assert y.shape == (1, 3, *x.shape[2:])
            assert y.isfinite().all()


@EVERY
def test_training_heads_have_the_strides_that_they_announce(name: str) -> None:
    network = build(name).train()
    x = image(network, 2)
    heads = heads_of(network(x))
    assert len(heads) == len(network.head_strides) == len(network.deep_supervision_weights)
    assert sum(network.deep_supervision_weights) == pytest.approx(1)
    for head, strides in zip(heads, network.head_strides, strict=True):
        grid = tuple(n // step for n, step in zip(x.shape[2:], strides, strict=True))
        assert head.shape == (2, 3, *grid)


@EVERY
def test_other_extents_are_refused_with_the_nearest_legal_ones(name: str) -> None:
    network = build(name)
    for axis in range(network.rank):
        extents = list(legal(network, 2))
        right = tuple(extents)
        extents[axis] += 1
        with pytest.raises(ShapeError, match=r"nearest legal extents, \(") as caught:
            network(torch.zeros(1, 1, *extents))
        assert str(right) in str(caught.value)


@EVERY
def test_what_is_no_image_for_it_is_refused_by_name(name: str) -> None:
    network = build(name, channels=2)
    extents = legal(network, 2)
    for x, words in [
        (torch.zeros(*extents), f"found {network.rank} axes; add the batch and channel axes"),
        (torch.zeros(1, 2, 1, *extents), f"expected {network.rank + 2} axes"),
        (torch.zeros(1, 3, *extents), "expected 2 channels, found 3"),
        (torch.zeros(0, 2, *extents), "found an empty batch"),
        (np.zeros((1, 2, *extents), np.float32), "found an object of type ndarray"),
        (torch.zeros(1, 2, *extents, dtype=torch.int32), "found torch.int32"),
        (torch.zeros(1, 2, *extents).double(), "expected an image of torch.float32.*float64"),
        (torch.zeros(1, 2, *extents, device="meta"), "expected an image on cpu.*found one on meta"),
    ]:
        with pytest.raises(ShapeError, match=words):
            network(x)


@EVERY
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_taken(name: str, channels: int) -> None:
    network = build(name, channels=channels).train()
    x = image(network, 2)
    x.requires_grad_()
    loss_of(network(x)).backward()
    assert x.grad is not None
    # every channel of the image counts
    assert (x.grad.abs().amax(dim=(0, *range(2, x.ndim))) > 0).all()


@EVERY
def test_every_weight_gets_a_gradient_and_the_image_stays_as_it_is(name: str) -> None:
    network = build(name).train()
    x = image(network, 2)
    before = x.clone()
    loss_of(network(x)).backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@EVERY
def test_eval_mode_repeats_itself_bit_for_bit(name: str) -> None:
    network = build(name).eval()
    x = image(network, 2)
    with torch.no_grad():
        first = network(x)
        network(image(network, 1, seed=5))
        torch.testing.assert_close(network(x), first, rtol=0, atol=0)
        # no image of a batch looks at another
        alone = torch.cat([network(one[None]) for one in x])
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-4)


@EVERY
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_lower_precision_stays_near_and_trains(name: str, kind: torch.dtype) -> None:
    network = build(name)
    x = image(network, 2)
    with torch.no_grad():
        exact = network.eval()(x)
    with torch.autocast("cpu", dtype=kind):
        with torch.no_grad():
            rough = network(x).float()
        loss = loss_of(network.train()(x))
    loss.backward()
    scale = exact.std()
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < (0.1 if kind is torch.bfloat16 else 0.02) * scale
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters()
    )


@EVERY
def test_channels_last_gives_the_same_answer(name: str) -> None:
    network = build(name).eval()
    layout = torch.channels_last if network.rank == 2 else torch.channels_last_3d
    x = image(network, 2)
    with torch.no_grad():
        expected = network(x)
        arrange_weights(network, channels_last=True)
        found = network(x.contiguous(memory_format=layout))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@EVERY
def test_double_precision_works_throughout(name: str) -> None:
    network = build(name).eval()
    x = image(network, 2)
    with torch.no_grad():
        single = network(x)
        double = copy.deepcopy(network).double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@EVERY
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_whole_module_in_half_precision_stays_near_and_trains(
    name: str, kind: torch.dtype
) -> None:
    network = build(name).eval()
    x = image(network, 2)
    half = copy.deepcopy(network).to(kind)
    with torch.no_grad():
        exact, rough = network(x), half(x.to(kind))
    assert rough.dtype == kind
    tolerance = 0.1 if kind is torch.bfloat16 else 0.02
    assert (rough.float() - exact).abs().mean() < tolerance * exact.std()
    loss_of(half.train()(x.to(kind))).backward()
    for key, weight in half.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.dtype == kind
        assert weight.grad.isfinite().all(), key


@EVERY
def test_weights_survive_saving(name: str) -> None:
    network = build(name).train()
    network(image(network, 2))
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    stream.seek(0)
    torch.manual_seed(7)
    again = build_network(name, network.settings)
    again.load_state_dict(torch.load(stream, weights_only=True))
    x = image(network, 2)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), network.eval()(x), rtol=0, atol=0)


@EVERY
def test_prediction_compiles_as_one_graph(name: str) -> None:
    # what autograd makes of the graph is asked for below, but not of revunet
    backend = "aot_eager" if name == "revunet" else "eager"
    network = build(name).eval()
    x = image(network, 2)
    with torch.no_grad():
        expected = network(x)
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


# the sequences of revunet invert themselves in a function that autograd alone understands
@pytest.mark.parametrize("name", [name for name in NAMES if name != "revunet"])
def test_training_compiles_as_one_graph(name: str) -> None:
    # what autograd makes of the graph takes long to trace; macmd and qtseg have no function of
    # ours with a backward that the other two do not have
    backend = "aot_eager" if name in ("neunet", "transdae") else "eager"
    network = build(name).train()
    plain = copy.deepcopy(network)
    x = image(network, 2)
    torch.manual_seed(3)
    loss_of(plain(x)).backward()
    torch.manual_seed(3)
    loss_of(torch.compile(network, fullgraph=True, backend=backend)(x)).backward()
    _same_gradients(network, plain)


# dynamo looks at .grad of every tensor where it resumes after the sequence
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_revunet_trains_compiled_around_its_sequences() -> None:
    network = build("revunet").train()
    plain = copy.deepcopy(network)
    x = image(network, 2)
    loss_of(plain(x)).backward()
    loss_of(torch.compile(network, backend="aot_eager")(x)).backward()
    _same_gradients(network, plain)


# that of qtseg is exported with free extents, by a test of its own
@pytest.mark.parametrize("name", [name for name in NAMES if name != "qtseg"])
def test_it_exports_as_a_graph_and_onnx_runtime_gives_the_same_logits(
    name: str, tmp_path: Path
) -> None:
    network = build(name).eval()
    x = image(network, 2)
    path = tmp_path / "network.onnx"
    with torch.no_grad():
        expected = network(x)
        # made with other numbers than those it is tried on
        program = torch.export.export(network, (torch.zeros_like(x),))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings(), torch.no_grad():
        # the exporter warns of its own use of things that torch and onnxscript deprecate
        warnings.simplefilter("ignore")
        # operators of ours turn into ONNX's own only where its exporter traces the network itself
        traced = (network, (x,)) if name == "neunet" else (program,)
        # without its optimiser ONNX Runtime does not take the convolutions of revunet
        optimize = name == "revunet"
        torch.onnx.export(*traced, f=path, dynamo=True, verbose=False, optimize=optimize)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_two_processes_train_every_network_in_step(tmp_path: Path) -> None:
    """DistributedDataParallel without find_unused_parameters, two steps, on two processes."""
    in_two_processes(train_in_step, 2, NAMES, str(tmp_path / "meeting"), str(tmp_path))
    for name in NAMES:
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert ranks[0]["images"].ne(ranks[1]["images"]).any()
        for key, gradient in ranks[0]["gradients"].items():
            torch.testing.assert_close(gradient, ranks[1]["gradients"][key], rtol=0, atol=0)


def _same_gradients(network: nn.Module, other: nn.Module) -> None:
    pairs: Any = zip(network.parameters(), other.parameters(), strict=True)
    largest = max(float(weight.grad.abs().max()) for weight in other.parameters())
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4 * largest)


DATASETS = {
    "synapse": (["CT"], [0.76, 0.76, 3.0], "RAS", 14),
    "acdc": (["MR"], None, "slices_last", 4),
    "brats": (["T1", "T1ce", "T2", "FLAIR"], [1.0, 1.0, 1.0], "RAS", 4),
}


@EVERY
@pytest.mark.parametrize("dataset", DATASETS)
def test_it_serves_the_volumes_of_every_benchmark(name: str, dataset: str) -> None:
    """One interface, whatever the rank, the channels and the thickness of the slices."""
    channels, spacing, orientation, classes = DATASETS[dataset]
    inputs = InputSettings.model_validate(
        {
            "channels": [{"name": channel} for channel in channels],
            "spacing_mm": spacing,
            "orientation": orientation,
            "window_ijk": [32, 32, 32],
        }
    )
    settings = {"preset": "tiny", "in_channels": len(channels), "out_channels": classes}
    network = build_volume_network(NetworkChoice(name=name, settings=settings), inputs)
    x = torch.randn(1, len(channels), *network.nearest_legal_extents((20, 33, 7)))
    for head in heads_of(network.train()(x)):
        assert head.shape[:2] == (1, classes)
    with torch.no_grad():
        assert network.eval()(x).shape == (1, classes, *x.shape[2:])
    if NETWORKS[name].rank == 2:
        assert isinstance(network, SlicedNetwork)
        assert network.axis == 2


@pytest.mark.parametrize("name", [name for name in NAMES if NETWORKS[name].rank == 2])
def test_neighbouring_slices_need_as_many_channels(name: str) -> None:
    inputs = InputSettings.model_validate(
        {"channels": [{"name": "CT"}], "spacing_mm": [1, 1, 3], "window_ijk": [32, 32, 8]}
    )
    choice = {"name": name, "slices": {"neighbours": 2}}
    with pytest.raises(
        ConfigError, match=r"in_channels: expected 5: the number of .*, 1, times the 5 slices"
    ):
        build_volume_network(
            NetworkChoice(**choice, settings={"preset": "tiny", "in_channels": 10}), inputs
        )
    network = build_volume_network(
        NetworkChoice(**choice, settings={"preset": "tiny", "in_channels": 5}), inputs
    )
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, 20, 33, 4)).shape[2:] == (20, 33, 4)


def test_a_3d_network_is_not_sliced() -> None:
    inputs = InputSettings.model_validate(
        {"channels": [{"name": "CT"}], "spacing_mm": None, "window_ijk": [32, 32, 8]}
    )
    choice = NetworkChoice(name="neunet", settings={"preset": "tiny"}, slices={"axis": "k"})
    with pytest.raises(ConfigError, match="the network neunet is three-dimensional"):
        build_volume_network(choice, inputs)
