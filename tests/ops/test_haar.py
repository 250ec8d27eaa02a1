"""Haar wavelet: laws, PyWavelets, and numbers worked on paper."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medseg.errors import ConfigError, ShapeError
from medseg.ops.haar import Haar, HaarInverse, haar_forward, haar_inverse
from medseg.ops.kernels.dispatch import forced

SIZES = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@st.composite
def tensors_and_axes(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    halves = draw(SIZES)
    rank = len(halves)
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *(2 * half for half in halves))
    axes = draw(st.permutations(range(2, 2 + rank)))[: draw(st.integers(0, rank))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(shape, generator=generator, dtype=torch.float64), axes


@pytest.fixture(params=["fast", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    with forced(request.param):
        yield


# the path is one for all examples
each_path = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@each_path
@given(case=tensors_and_axes())
def test_the_inverse_gives_the_input_back(path: None, case: tuple[Tensor, list[int]]) -> None:
    x, axes = case
    torch.testing.assert_close(haar_inverse(haar_forward(x, axes), axes), x, rtol=0, atol=1e-14)


@each_path
@given(case=tensors_and_axes())
def test_the_transform_keeps_the_sum_of_squares(path: None, case: tuple[Tensor, list[int]]) -> None:
    x, axes = case
    assert haar_forward(x, axes).square().sum().item() == pytest.approx(x.square().sum().item())


@each_path
@given(case=tensors_and_axes())
def test_sub_bands_are_those_of_pywavelets_in_band_major_order(
    path: None, case: tuple[Tensor, list[int]]
) -> None:
    x, axes = case
    letters = [
        f"{n:0{len(axes)}b}".replace("0", "a").replace("1", "d") for n in range(2 ** len(axes))
    ]
    if axes:
        oracle = pywt.dwtn(x.numpy(), "haar", axes=axes)
        expected = np.concatenate([oracle[band] for band in letters], axis=1)
    else:
        expected = x.numpy()
    np.testing.assert_allclose(haar_forward(x, axes).numpy(), expected, atol=1e-13)


def test_float32_agrees_with_pywavelets_to_rounding() -> None:
    x = torch.randn(1, 2, 8, 6, 4, generator=torch.Generator().manual_seed(1))
    bands = haar_forward(x, (2, 3, 4))
    assert bands.dtype == torch.float32
    oracle = pywt.dwtn(x.numpy(), "haar", axes=(2, 3, 4))
    np.testing.assert_allclose(bands[:, 2:4].numpy(), oracle["aad"], atol=1e-6)


def test_a_cube_of_one_to_eight_has_the_coefficients_worked_on_paper() -> None:
    cube = torch.arange(1, 9, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    bands = haar_forward(cube, (2, 3, 4)).flatten()
    expected = [12.727922, -1.414214, -2.828427, 0, -5.656854, 0, 0, 0]
    assert bands.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_square_of_one_to_four_has_the_coefficients_worked_on_paper() -> None:
    square = torch.arange(1, 5, dtype=torch.float64).reshape(1, 1, 2, 2)
    assert haar_forward(square, (-2, -1)).flatten().tolist() == [5, -1, -2, 0]


def _energies(bands: Tensor) -> list[float]:
    return bands.square().sum(dim=(0, 2, 3, 4)).tolist()


def _sine(*shape: int) -> Tensor:
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.013 * n).reshape(1, 1, *shape)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        (
            (16, 64, 64),
            [
                ((), [32749.9702]),
                ((3, 4), [27393.3986, 1.1593, 5355.1842, 0.2259]),
                (
                    (2, 3, 4),
                    [77.7714, 0.0134, 95.4157, 0.0158, 12461.4236, 2.0691, 14754.1483, 2.5385],
                ),
                ((2, 3, 4), [0.6685, 0.0004, 75.0633, 0.0517, 0.0169, 0.0, 1.9692, 0.0013]),
            ],
        ),
        (
            (10, 32, 32),
            [
                ((3, 4), [4886.6389, 0.2077, 218.9864, 0.0092]),
                ((3, 4), [4081.9376, 0.6961, 803.8702, 0.1347]),
                (
                    (2, 3, 4),
                    [1717.5943, 1.0182, 1814.6078, 1.4, 230.3011, 0.1777, 316.6504, 0.1877],
                ),
            ],
        ),
    ],
    ids=["synapse strides", "acdc strides"],
)
def test_energies_of_a_sine_are_the_reference_ones(
    shape: tuple[int, ...], levels: list[tuple[tuple[int, ...], list[float]]]
) -> None:
    smooth = _sine(*shape)
    for axes, expected in levels:
        bands = haar_forward(smooth, axes)
        assert _energies(bands) == pytest.approx(expected, rel=1e-6, abs=6e-5)
        smooth = bands[:, :1]


@pytest.mark.parametrize("axes", [(2,), (4, 2), (2, 3, 4)])
def test_first_and_second_derivatives_pass_the_numerical_check(
    path: None, axes: tuple[int, ...]
) -> None:
    # squared, so that there is a second derivative
    x = torch.randn(1, 1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    bands = torch.randn(1, 8, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    for function, leaf in ((haar_forward, x), (haar_inverse, bands)):
        assert torch.autograd.gradcheck(lambda t, f=function: f(t, axes), (leaf,))
        assert torch.autograd.gradgradcheck(lambda t, f=function: f(t, axes).square(), (leaf,))


def test_the_gradient_of_the_transform_is_the_inverse_of_the_gradient(path: None) -> None:
    x = torch.randn(2, 3, 4, 6, 2, dtype=torch.float64, requires_grad=True)
    d_bands = torch.randn(2, 24, 2, 3, 1, dtype=torch.float64)
    (dx,) = torch.autograd.grad(haar_forward(x, (2, 3, 4)), x, d_bands)
    assert torch.equal(dx, haar_inverse(d_bands, (2, 3, 4)))


def test_modules_do_what_the_functions_do() -> None:
    x = torch.randn(1, 2, 4, 6)
    assert torch.equal(Haar((2, 3))(x), haar_forward(x, (2, 3)))
    assert torch.equal(HaarInverse([3])(x), haar_inverse(x, (3,)))
    assert repr(Haar([2])) == "Haar(axes=(2,))"
    assert repr(HaarInverse([2])) == "HaarInverse(axes=(2,))"


def test_no_axes_leave_the_tensor_as_it_is() -> None:
    x = torch.randn(1, 2, 3)
    assert haar_forward(x, ()) is x
    assert haar_inverse(x, ()) is x
    assert torch.equal(torch.ops.medseg.haar_forward(x, []), x)
    assert torch.equal(torch.ops.medseg.haar_inverse(x, []), x)


@pytest.mark.parametrize("function", [haar_forward, haar_inverse])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 4, 4, 6), r"found an empty batch of shape \(0, 4, 4, 6\)"),
        (torch.zeros(4, 6), r"the axes \(batch, channel, \*spatial\), found shape \(4, 6\)"),
        (np.zeros((1, 4, 4, 6)), "a torch tensor, found an object of type ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    function: Callable[..., Tensor], x: Any, words: str
) -> None:
    with pytest.raises(ShapeError, match=rf"{function.__name__}: \w+: expected .*{words}"):
        function(x, (2, 3))


@pytest.mark.parametrize("function", [haar_forward, haar_inverse])
def test_integers_are_refused_with_the_way_out(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"a floating tensor, found torch.int64; call float\(\)"):
        function(torch.zeros(1, 4, 4, 4, dtype=torch.int64), (2, 3))


def test_an_odd_extent_is_refused_with_the_size_to_pad_to() -> None:
    with pytest.raises(ShapeError, match=r"even extents on axes \(2, 3\).*pad axis 3 to 6"):
        haar_forward(torch.zeros(1, 1, 4, 5), (2, 3))


@pytest.mark.parametrize("axes", [(1,), (2, 2), (2, -2), (4,), (2.0,), "ij", 2.0, ("2",)])
def test_axes_that_are_not_spatial_or_come_twice_are_refused(axes: Any) -> None:
    with pytest.raises(ShapeError, match=r"haar_forward axes: expected different .* axes, 2 to 3"):
        haar_forward(torch.zeros(1, 1, 4, 4), axes)


def test_the_only_spatial_axis_is_named() -> None:
    with pytest.raises(ShapeError, match=r"expected the only spatial axis, 2, found \(3,\)"):
        haar_forward(torch.zeros(1, 1, 4), (3,))


def test_all_spatial_axes_are_taken_where_none_are_named() -> None:
    x = torch.randn(1, 2, 4, 6)
    assert torch.equal(haar_forward(x), haar_forward(x, (2, 3)))
    assert torch.equal(HaarInverse()(Haar(None)(x)), haar_inverse(haar_forward(x)))


@pytest.mark.parametrize("module", [Haar, HaarInverse])
@pytest.mark.parametrize("axes", [(1,), (0, 2), (2, 2), (2.0,), "ij"])
def test_a_module_refuses_axes_that_cannot_be_spatial_when_it_is_built(
    module: Callable[..., object], axes: Any
) -> None:
    with pytest.raises(ConfigError, match=r"axes: expected different spatial axes: 2 or more, or"):
        module(axes)


def test_an_incomplete_set_of_bands_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"a multiple of 4 channels.*found 6 channels"):
        haar_inverse(torch.zeros(1, 6, 2, 2), (2, 3))
