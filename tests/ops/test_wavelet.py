"""Wavelet transforms: laws, PyWavelets, torch's own checks, and numbers worked on paper."""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.ops import wavelet_level
from medseg.ops.haar import haar_forward, haar_inverse
from medseg.ops.wavelet import (
    Dwt,
    Idwt,
    InverseWaveletPacket,
    Wavedec,
    WaveletPacket,
    Waverec,
    band_names,
    dwt,
    idwt,
    inverse_wavelet_packet,
    named_bands,
    named_coefficients,
    stacked_bands,
    stacked_coefficients,
    wavedec,
    wavelet_packet,
    waverec,
)
from medseg.ops.wavelet_filters import (
    MODES,
    FilterBank,
    Mode,
    coefficient_length,
    continuation,
    filter_bank,
    max_level,
)

WAVELETS = ["haar", "db2", "db4", "sym5", "coif1", "bior1.3", "bior4.4", "rbio2.2"]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
# torch.library.opcheck looks at the gradients of tensors inside a graph
OPCHECK = "ignore:The .grad attribute of a Tensor that is not a leaf"


def _random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _extents_for(mode: Mode, *extents: int) -> list[int]:
    return [n for n in extents if n > 1 or mode not in {"reflect", "antireflect"}]


@pytest.fixture(autouse=True)
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, which these tests use, would all be done by matrices."""
    monkeypatch.setattr(wavelet_level, "_FEW", 0)


@pytest.fixture(params=["slices", "matrices"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, slices: None) -> None:
    """For tests of what the two have to agree on."""
    if request.param == "matrices":
        monkeypatch.setattr(wavelet_level, "_FEW", 1 << 20)


EACH_WAY = pytest.mark.usefixtures("each_way")


# PyWavelets ---------------------------------------------------------------------------------------


@EACH_WAY
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_one_level_is_that_of_pywavelets_both_ways(wavelet: str, mode: Mode) -> None:
    for dtype, tolerance in TOLERANCE.items():
        for extent in _extents_for(mode, 1, 2, 3, 7, 16, 33):
            x = _random(2, 3, extent, dtype=dtype, seed=extent)
            oracle = pywt.dwt(x.numpy(), wavelet, mode)
            bands = dwt(x, wavelet, mode)
            assert bands.dtype == dtype
            np.testing.assert_allclose(bands.numpy(), np.concatenate(oracle, 1), atol=tolerance)
            back = pywt.idwt(*oracle, wavelet, mode)
            np.testing.assert_allclose(idwt(bands, wavelet, mode).numpy(), back, atol=tolerance)


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "smooth"])
def test_every_discrete_wavelet_agrees_with_pywavelets(mode: Mode) -> None:
    x = _random(1, 1, 21)
    for wavelet in pywt.wavelist(kind="discrete"):
        oracle = pywt.dwt(x.numpy(), wavelet, mode)
        bands = dwt(x, wavelet, mode)
        np.testing.assert_allclose(bands.numpy(), np.concatenate(oracle, 1), atol=1e-8)
        back = pywt.idwt(*oracle, wavelet, mode)
        np.testing.assert_allclose(idwt(bands, wavelet, mode).numpy(), back, atol=1e-8)


@EACH_WAY
@pytest.mark.parametrize("mode", ["zero", "antireflect", "periodization"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 2, 9, 8), (2,)),
        ((2, 2, 9, 8), (3, 2)),
        ((1, 2, 7, 6, 5), (2, 3, 4)),
        ((1, 2, 7, 6, 5), (-1, 2)),
        ((1, 2, 7, 6, 5), (3,)),
        ((1, 1, 4, 3, 5, 6), (5, 2, 3)),
    ],
)
def test_any_axes_in_any_order_give_the_bands_of_dwtn(
    shape: tuple[int, ...], axes: tuple[int, ...], mode: Mode
) -> None:
    x = _random(*shape)
    oracle = pywt.dwtn(x.numpy(), "db3", mode, axes=axes)
    bands = named_bands(dwt(x, "db3", mode, axes), len(axes))
    assert list(bands) == sorted(oracle)
    for name, band in bands.items():
        np.testing.assert_allclose(band.numpy(), oracle[name], atol=1e-12)
    back = idwt(stacked_bands(bands), "db3", mode, axes)
    np.testing.assert_allclose(back.numpy(), pywt.idwtn(oracle, "db3", mode, axes), atol=1e-12)


@EACH_WAY
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("wavelet", "level", "shape", "axes"),
    [
        ("db2", 3, (1, 2, 37), (2,)),
        ("bior2.2", 2, (1, 2, 21, 26), (2, 3)),
        ("haar", 2, (1, 1, 9, 8, 7), (2, 3, 4)),
        ("sym3", 2, (1, 1, 5, 23, 22), (4, 3)),
    ],
)
def test_several_levels_are_those_of_wavedecn(
    wavelet: str, level: int, shape: tuple[int, ...], axes: tuple[int, ...], mode: Mode
) -> None:
    x = _random(*shape)
    oracle = pywt.wavedecn(x.numpy(), wavelet, mode, level, axes)
    coefficients = wavedec(x, wavelet, mode, level, axes)
    named = named_coefficients(coefficients, len(axes))
    np.testing.assert_allclose(named[0].numpy(), oracle[0], atol=1e-12)
    for ours, theirs in zip(named[1:], oracle[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name, band in ours.items():
            np.testing.assert_allclose(band.numpy(), theirs[name], atol=1e-12)
    for a, b in zip(stacked_coefficients(named), coefficients, strict=True):
        assert torch.equal(a, b)
    rebuilt = pywt.waverecn(oracle, wavelet, mode, axes)
    ours = waverec(coefficients, wavelet, mode, axes)
    np.testing.assert_allclose(ours.numpy(), rebuilt, atol=1e-12)
    extents = [shape[axis] for axis in axes]
    torch.testing.assert_close(waverec(coefficients, wavelet, mode, axes, extents), x)


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize(
    ("shape", "axes", "level"),
    [((1, 1, 29), (2,), 3), ((1, 1, 13, 12), (2, 3), 2), ((1, 1, 7, 8, 9), (2, 3, 4), 1)],
)
def test_packets_are_those_of_pywavelets_and_can_be_undone(
    shape: tuple[int, ...], axes: tuple[int, ...], level: int, mode: Mode
) -> None:
    x = _random(*shape)
    packets = wavelet_packet(x, "db2", mode, level, axes)
    tree = pywt.WaveletPacketND(x.numpy(), "db2", mode, axes=axes)
    for name, packet in named_bands(packets, len(axes), level).items():
        np.testing.assert_allclose(packet.numpy(), tree[name].data, atol=1e-12)
    extents = [shape[axis] for axis in axes]
    back = inverse_wavelet_packet(packets, "db2", mode, level, axes, extents)
    torch.testing.assert_close(back, x)


def test_packets_along_one_axis_have_the_natural_order_of_pywavelets() -> None:
    x = _random(2, 3, 32)
    tree = pywt.WaveletPacket(x.numpy(), "sym2", "reflect", axis=2)
    nodes = tree.get_level(3, order="natural")
    assert [node.path for node in nodes] == list(band_names(1, 3))
    ours = wavelet_packet(x, "sym2", "reflect", 3)
    theirs = np.concatenate([node.data for node in nodes], axis=1)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


# pywt.pad does not repeat the last sample of an odd signal as pywt.dwt does in periodization
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "periodization"])
def test_the_continuation_of_a_signal_is_that_of_pywavelets(mode: Mode) -> None:
    # of a single sample pywt.pad makes a line through zero; pywt.dwt a constant, as we do
    for extent in (2, 3, 5) if mode == "smooth" else _extents_for(mode, 1, 2, 3, 5):
        x = np.arange(1.0, extent + 1) ** 2
        padded = pywt.pad(x, 9, mode)
        for n, value in enumerate(padded):
            weights = continuation(n - 9, extent, mode)
            assert sum(x[i] * w for i, w in weights.items()) == pytest.approx(value, abs=1e-9)


@given(st.integers(1, 500), st.integers(1, 40))
def test_lengths_and_deepest_levels_are_those_of_pywavelets(extent: int, half: int) -> None:
    taps = 2 * half
    assert max_level([extent + 7, extent], taps) == pywt.dwt_max_level(extent, taps)
    for mode in MODES:
        assert coefficient_length(extent, taps, mode) == pywt.dwt_coeff_len(extent, taps, mode)


# laws ---------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, str, Mode, list[int]]:
    extents = draw(st.lists(st.integers(2, 11), min_size=1, max_size=3))
    dims = draw(st.permutations(range(2, 2 + len(extents))))
    axes = dims[: draw(st.integers(1, len(extents)))]
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *extents)
    x = _random(*shape, seed=draw(st.integers(0, 99)))
    return x, draw(st.sampled_from(WAVELETS)), draw(st.sampled_from(MODES)), axes


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_inverse_gives_the_input_back(case: tuple[Tensor, str, Mode, list[int]]) -> None:
    x, wavelet, mode, axes = case
    bands = dwt(x, wavelet, mode, axes)
    back = idwt(bands, wavelet, mode, axes, [x.shape[axis] for axis in axes])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_the_backward_pass_is_the_transpose(case: tuple[Tensor, str, Mode, list[int]]) -> None:
    x, wavelet, mode, axes = case
    bands = dwt(x.requires_grad_(), wavelet, mode, axes)
    weights = _random(*bands.shape, seed=5)
    (grad,) = torch.autograd.grad(bands, x, weights)
    # <W x, y> = <x, W' y>
    torch.testing.assert_close((bands * weights).sum(), (x * grad).sum(), rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["haar", "db3", "sym4", "coif1"]), st.integers(1, 9), st.integers(1, 9))
def test_an_orthonormal_periodized_transform_keeps_the_sum_of_squares(
    wavelet: str, rows: int, columns: int
) -> None:
    x = _random(1, 2, 2 * rows, 2 * columns)
    energy = dwt(x, wavelet, "periodization").square().sum().item()
    assert energy == pytest.approx(x.square().sum().item())


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in {"reflect", "antireflect"}])
def test_haar_with_even_extents_is_the_haar_operator_in_every_mode(mode: Mode) -> None:
    x = _random(2, 3, 4, 6, 2)
    for axes in [(2, 3, 4), (4, 2), (3,)]:
        bands = dwt(x, "haar", mode, axes)
        torch.testing.assert_close(bands, haar_forward(x, axes))
        torch.testing.assert_close(idwt(bands, "haar", mode, axes), haar_inverse(bands, axes))


def test_a_filter_with_two_vanishing_moments_sees_nothing_of_a_continued_ramp() -> None:
    ramp = (3 + 0.5 * torch.arange(17, dtype=torch.float64)).reshape(1, 1, 17)
    for mode in ("smooth", "antireflect"):
        assert dwt(ramp, "db2", mode)[:, 1].abs().max().item() < 1e-12
    assert dwt(ramp, "db2", "zero")[:, 1].abs().max().item() > 0.1


def test_four_numbers_have_the_coefficients_worked_on_paper() -> None:
    x = torch.tensor([[[1.0, 3.0, 2.0, 6.0]]], dtype=torch.float64)
    approximation, coarse, fine = (part.flatten().tolist() for part in wavedec(x, "haar", level=2))
    root = 2**0.5
    assert fine == pytest.approx([-2 / root, -4 / root])
    assert coarse == pytest.approx([-2.0])
    assert approximation == pytest.approx([6.0])


# memory and types ---------------------------------------------------------------------------------


def test_work_in_small_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _random(2, 3, 8, 7, 5)
    whole = dwt(x, "db3")
    back = idwt(whole, "db3")
    for block, samples in [(1, 1), (100, 2000), (700, 1)]:
        monkeypatch.setattr(wavelet_level, "_BLOCK", block)
        monkeypatch.setattr(wavelet_level, "_SAMPLES", samples)
        torch.testing.assert_close(dwt(x, "db3"), whole)
        torch.testing.assert_close(idwt(whole, "db3"), back)


@EACH_WAY
def test_strides_of_the_input_do_not_count() -> None:
    x = _random(2, 3, 8, 6)
    for laid_out in (x.to(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert torch.equal(dwt(laid_out, "db2"), dwt(x, "db2"))
    bands = dwt(x, "db2")
    strided = torch.stack((bands, bands), dim=-1)[..., 0]
    assert torch.equal(idwt(strided, "db2"), idwt(bands, "db2"))


@EACH_WAY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = _random(1, 2, 9, 11).to(dtype)
    bands = dwt(x, "db4")
    assert bands.dtype == dtype
    assert torch.equal(bands, dwt(x.float(), "db4").to(dtype))
    assert torch.equal(idwt(bands, "db4"), idwt(bands.float(), "db4").to(dtype))


@EACH_WAY
def test_autocast_does_not_round_the_ends() -> None:
    x = _random(1, 1, 20, dtype=torch.float32)
    plain = dwt(x, "db8")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dwt(x, "db8"), plain)


@pytest.mark.parametrize("function", [dwt, idwt, wavedec, wavelet_packet, inverse_wavelet_packet])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 4, 8, 6), r"found an empty batch of shape \(0, 4, 8, 6\)"),
        (torch.zeros(16, 17), r"the axes \(batch, channel, \*spatial\), found shape \(16, 17\)"),
        (np.zeros((1, 4, 8, 6)), "expected a torch tensor, found an object of type ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    function: Callable[..., object], x: Any, words: str
) -> None:
    with pytest.raises(ShapeError, match=f"{function.__name__}: .*{words}"):
        function(x, "db2")


@EACH_WAY
@pytest.mark.parametrize("mode", MODES)
def test_a_filter_longer_than_the_signal_is_taken_as_by_pywavelets(mode: Mode) -> None:
    x = _random(1, 1, 3)
    approximation, detail = pywt.dwt(x.numpy(), "db8", mode)
    bands = dwt(x, "db8", mode)
    expected = np.concatenate((approximation, detail), axis=1)
    np.testing.assert_allclose(bands.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_importing_and_running_load_no_compiler() -> None:
    program = (
        "import sys, torch, medseg.ops.wavelet as w; assert 'pywt' not in sys.modules; "
        "x = torch.ones(1, 1, 8, requires_grad=True); w.dwt(x, 'db2').sum().backward(); "
        "sys.exit(any(m in sys.modules for m in ('torch._dynamo', 'triton', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_axes_are_the_identity() -> None:
    x = _random(1, 2, 3)
    assert torch.equal(dwt(x, "db2", axes=()), x)
    assert torch.equal(idwt(x, "db2", axes=()), x)


# torch's own checks -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_first_and_second_derivatives_are_right_in_every_mode(mode: Mode) -> None:
    # several axes are one after the other; two are enough once
    shapes = {"db2": (5, 2) if mode == "symmetric" else (5,), "bior2.2": (4,)}
    for wavelet, extents in shapes.items():
        x = _random(1, 1, *extents).requires_grad_()
        bands = dwt(x, wavelet, mode).detach().requires_grad_()

        def forward(t: Tensor, wavelet: str = wavelet) -> Tensor:
            return dwt(t, wavelet, mode)

        def inverse(t: Tensor, wavelet: str = wavelet) -> Tensor:
            return idwt(t, wavelet, mode)

        assert torch.autograd.gradcheck(forward, (x,))
        assert torch.autograd.gradcheck(inverse, (bands,))
        assert torch.autograd.gradgradcheck(lambda t: forward(t).square(), (x,))
        assert torch.autograd.gradgradcheck(lambda t: inverse(t).square(), (bands,))


@pytest.mark.filterwarnings(OPCHECK)
@pytest.mark.parametrize("mode", ["symmetric", "periodization"])
def test_the_operators_pass_the_checks_of_torch(mode: Mode) -> None:
    bank = filter_bank("db2")
    x = _random(1, 2, 6, 5).requires_grad_()
    arguments = (bank.dec_lo, bank.dec_hi, mode, [2, 3])
    bands = torch.ops.medseg.dwt(x, *arguments).detach().requires_grad_()
    torch.library.opcheck(torch.ops.medseg.dwt.default, (x, *arguments))
    torch.library.opcheck(torch.ops.medseg.idwt.default, (bands, *arguments, [6, 5]))


class _Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wavedec = Wavedec("db2", "reflect", level=2)
        self.waverec = Waverec("db2", "reflect")
        self.packet = WaveletPacket("bior2.2", level=1, axes=(3,))
        self.unpack = InverseWaveletPacket("bior2.2", level=1, axes=(3,))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        approximation, coarse, fine = self.wavedec(x)
        rebuilt = self.waverec((approximation, coarse, 0.5 * fine), x.shape[2:])
        return rebuilt, self.unpack(2 * self.packet(x), x.shape[3:])


@pytest.fixture(scope="module")
def image() -> Tensor:
    return _random(1, 1, 16, 13, dtype=torch.float32)


def test_the_whole_compiles_into_one_graph(image: Tensor) -> None:
    network = _Everything()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), network(image))


def test_extents_may_stay_open_in_a_compiled_graph(image: Tensor) -> None:
    compiled = torch.compile(Dwt("db2"), fullgraph=True, backend="eager", dynamic=True)
    for x in (image, image[:, :, 3:]):
        torch.testing.assert_close(compiled(x), dwt(x, "db2"))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_holds_the_operators(image: Tensor, strict: bool) -> None:
    network = _Everything()
    program = torch.export.export(network, (image,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    # two levels and one of packets, each way
    assert targets.count("medseg.dwt.default") == targets.count("medseg.idwt.default") == 3
    torch.testing.assert_close(program.module()(image), network(image))


# the exporter's own use of what torch and the standard library deprecate
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_gets_plain_operators_with_the_same_result(image: Tensor) -> None:
    network = _Everything().eval()
    program = torch.onnx.export(network, (image,), dynamo=True, verbose=False)
    assert program is not None
    model = program.model_proto
    assert {node.domain for node in model.graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for ours, theirs in zip(network(image), outputs, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5)


# torch.func scripts its decompositions with the deprecated torch.jit.script
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("mode", MODES)
def test_transforms_of_functions_give_the_matrix_of_a_level(mode: Mode) -> None:
    x = _random(1, 1, 7)
    bank = filter_bank("db2")

    def level(t: Tensor) -> Tensor:
        return dwt(t.reshape(1, 1, 7), bank, mode).flatten()

    by_rows = torch.func.jacrev(level)(x.flatten())
    by_columns = torch.func.jacfwd(level)(x.flatten())
    columns = [level(column) for column in torch.eye(7, dtype=torch.float64)]
    torch.testing.assert_close(by_rows, torch.stack(columns, dim=1))
    torch.testing.assert_close(by_columns, by_rows)
    batch = _random(4, 1, 1, 7)
    back = torch.func.vmap(lambda t: idwt(dwt(t, bank, mode), bank, mode, None, [7]))(batch)
    torch.testing.assert_close(back, batch)


# modules and names --------------------------------------------------------------------------------


def test_modules_do_what_the_functions_do_and_can_be_stored() -> None:
    x = _random(1, 2, 9, 12)
    for module, function in [
        (Dwt("db2", "zero", (3,)), lambda t: dwt(t, "db2", "zero", (3,))),
        (Wavedec("haar"), lambda t: wavedec(t, "haar")),
        (WaveletPacket("haar", level=2), lambda t: wavelet_packet(t, "haar", level=2)),
    ]:
        for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 - our own bytes
            torch.testing.assert_close(twin(x), function(x))
    bands = dwt(x, "db2")
    assert torch.equal(Idwt("db2")(bands, (9, 12)), idwt(bands, "db2", extents=(9, 12)))
    assert repr(Wavedec("db2", level=2)) == "Wavedec('db2', mode='symmetric', axes=None, level=2)"
    assert repr(WaveletPacket("db2")).endswith("level=1)")


def test_filters_of_ones_own_are_taken() -> None:
    taken = pywt.Wavelet("sym4")
    bank = FilterBank("mine", *(tuple(taps) for taps in taken.filter_bank))
    x = _random(1, 1, 20)
    assert torch.equal(dwt(x, bank), dwt(x, "sym4"))
    swapped = (taken.rec_lo, taken.rec_hi, taken.dec_lo, taken.dec_hi)
    # the synthesis filters of an orthonormal wavelet are its analysis filters backwards
    mirrored = FilterBank("other", *(tuple(taps[::-1]) for taps in swapped))
    torch.testing.assert_close(dwt(x, mirrored), dwt(x, "sym4"))


def test_dictionaries_may_come_in_any_order() -> None:
    bands = _random(1, 8, 3, 3)
    named = named_bands(bands, 2)
    assert torch.equal(stacked_bands(dict(reversed(named.items()))), bands)


def test_the_examples_of_the_documentation_give_what_they_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "wavelets.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Tensor] = {}
    for example in examples:
        exec(example, names)  # noqa: S102 - our own page
    assert names["bands"].shape == (1, 16, 21, 18, 15)
    assert named_bands(names["bands"], 3)["aad"].shape == (1, 2, 21, 18, 15)
    torch.testing.assert_close(names["x_again"], names["x_bcijk"], rtol=0, atol=1e-5)
    in_turn = dwt(dwt(names["x_bcijk"], "db2", axes=(4,)), "db2", axes=(3,))
    torch.testing.assert_close(
        in_turn, dwt(names["x_bcijk"], "db2", axes=(3, 4)), rtol=0, atol=1e-5
    )


# refusals -----------------------------------------------------------------------------------------

_X = torch.zeros(1, 1, 16, 16)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: dwt(_X, "db4x"), ConfigError, r"nearest: db4.*found 'db4x'"),
        (lambda: Dwt("bior9.9"), ConfigError, r"a discrete wavelet.*nearest: bior"),
        (lambda: dwt(_X, "mexh"), ConfigError, "a discrete wavelet.*found 'mexh'"),
        (lambda: dwt(_X, "haar", "symetric"), ConfigError, r"mode: .*nearest: symmetric"),
        (lambda: dwt(_X.int(), "haar"), ShapeError, r"dwt: expected a floating.*torch.int32"),
        (lambda: idwt(_X.bool(), "haar"), ShapeError, "idwt: expected a floating tensor"),
        (lambda: dwt(_X, "haar", axes=(1,)), ShapeError, "different spatial axes, 2 to 3"),
        (lambda: dwt(_X, "haar", axes=(2, -2)), ShapeError, "different spatial axes, 2 to 3"),
        (lambda: wavedec(_X, "haar", axes=(4,)), ShapeError, "wavedec axes"),
        (lambda: wavedec(_X, "haar", axes=()), ShapeError, "one spatial axis or more"),
        (lambda: dwt(_X[:, :, :1], "haar", "reflect"), ShapeError, "axis 2: .* 2 or more"),
        (lambda: dwt(_X[..., :0], "haar"), ShapeError, "axis 3: expected an extent of 1 or more"),
        (
            lambda: wavedec(_X, "db2", level=0),
            ConfigError,
            "level: expected 1 or more, a whole number, found 0",
        ),
        (
            lambda: Wavedec("db2", level=0),
            ConfigError,
            "level: expected 1 or more, a whole number, found 0",
        ),
        (lambda: WaveletPacket("db2", level=-1), ConfigError, "level: expected 1 or more"),
        (lambda: wavedec(_X, "db2", level=3), ShapeError, "level: expected at most 2 for db2"),
        (lambda: wavelet_packet(_X, "db4", level=2), ShapeError, "at most 1 .*found 2; take fewer"),
        (lambda: wavedec(_X, "db10"), ShapeError, "at most 0 for db10 .20 taps.*none given"),
        (lambda: idwt(_X, "haar"), ShapeError, "a multiple of 4 channels.*found 1 channels"),
        (
            lambda: idwt(torch.zeros(1, 2, 3), "db4"),
            ShapeError,
            "axis 2: expected 4 coefficients or more for db4, found 3",
        ),
        (
            lambda: idwt(torch.zeros(1, 2, 8), "haar", extents=(14,)),
            ShapeError,
            r"extents: expected \(16,\), or one less",
        ),
        (
            lambda: idwt(torch.zeros(1, 2, 8), "haar", extents=(16, 16)),
            ShapeError,
            r"extents: .*found \(16, 16\)",
        ),
        (lambda: waverec((_X,), "haar"), ShapeError, "an approximation and the details"),
        (
            lambda: waverec((_X, torch.zeros(1, 3, 16, 15)), "haar"),
            ShapeError,
            r"coefficients\[1\]: expected details of shape \(1, 3, 16, 16\) on cpu",
        ),
        (
            lambda: waverec((_X, torch.zeros(1, 3, 16, 16, device="meta")), "haar"),
            ShapeError,
            r"on cpu, found \(1, 3, 16, 16\) on meta",
        ),
        (lambda: inverse_wavelet_packet(_X, "haar", level=0), ConfigError, "level: expected 1"),
        (lambda: dwt(_X, "db2", axes=(2.0,)), ShapeError, r"dwt axes: .*found \(2.0,\)"),
        (lambda: dwt(_X, "db2", axes="ij"), ShapeError, r"dwt axes: .*found 'ij'"),
        (lambda: Dwt("db2", axes=(1,)), ConfigError, "Dwt axes: .* 2 or more, or negative"),
        (
            lambda: dwt(_X, pywt.Wavelet("db2")),
            ConfigError,
            "found an object of type Wavelet; give the name, or a FilterBank of filters",
        ),
        (
            lambda: waverec((_X, np.zeros((1, 3, 16, 16))), "haar"),
            ShapeError,
            r"coefficients\[1\]: expected a torch tensor",
        ),
        (lambda: named_bands(_X.numpy(), 1), ShapeError, "named_bands: expected a torch tensor"),
        (
            lambda: named_coefficients((_X, _X.numpy()), 1),
            ShapeError,
            "named_coefficients: expected a torch tensor",
        ),
        (
            lambda: stacked_bands({"a": _X, "d": _X.numpy()}),
            ShapeError,
            r"bands\['d'\]: expected a torch tensor",
        ),
        (lambda: inverse_wavelet_packet(_X, "haar", level=2), ShapeError, "multiple of 16"),
        (lambda: named_bands(_X, 1), ShapeError, "named_bands: expected a multiple of 2"),
        (lambda: named_coefficients((_X, _X), 2), ShapeError, "a multiple of 3 channels"),
        (lambda: stacked_bands({"aa": _X, "ad": _X}), ConfigError, "every word.*found aa, ad"),
        (lambda: stacked_bands({}), ConfigError, "found none"),
        (lambda: stacked_bands({"a": _X, "d": _X[:, :, 1:]}), ShapeError, "of one shape"),
        (lambda: stacked_coefficients([{}]), ConfigError, r"named\[0\]: expected a tensor first"),
        (lambda: stacked_coefficients([_X, _X]), ConfigError, r"named\[1\]: .*then mappings"),
        (
            lambda: FilterBank("odd", (1.0,), (1.0,), (1.0,), (1.0,)),
            ConfigError,
            "four filters of one even length, found lengths 1, 1, 1, 1",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(
    call: Callable[[], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_fraction_is_no_level() -> None:
    with pytest.raises(ConfigError, match=r"level: expected 1 or more, a whole number, found 1\.5"):
        wavedec(torch.zeros(1, 1, 32), "db2", level=1.5)  # type: ignore[arg-type]


def test_one_axis_may_be_named_by_itself() -> None:
    x = torch.randn(1, 1, 8, 6)
    torch.testing.assert_close(dwt(x, "db2", axes=3), dwt(x, "db2", axes=(3,)))  # type: ignore[arg-type]
