"""Sub-pixel shuffle: inverse, torch's own in 2D, and a worked case."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.ops.kernels.dispatch import forced
from medseg.ops.subpixel import (
    DepthToSpace,
    SpaceToDepth,
    SubPixelConv,
    activate_and_shuffle,
    depth_to_space,
    icnr_,
    space_to_depth,
)


@st.composite
def shuffles(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    factors = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    spatial = [draw(st.integers(1, 3)) for _ in factors]
    channels = draw(st.integers(1, 3))
    for factor in factors:
        channels *= factor
    count = 2 * channels
    for extent in spatial:
        count *= extent
    x = torch.arange(count, dtype=torch.float32).reshape(2, channels, *spatial)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]
    return x.to(memory_format=layout) if draw(st.booleans()) else x, factors


@pytest.fixture(params=["fast", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    with forced(request.param):
        yield


# the path is one for all examples
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=shuffles())
def test_space_to_depth_undoes_depth_to_space(path: None, case: tuple[Tensor, list[int]]) -> None:
    x, factors = case
    assert torch.equal(space_to_depth(depth_to_space(x, factors), factors), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("factor", [2, 3])
def test_equal_factors_in_2d_are_torchs_pixel_shuffle(
    path: None, factor: int, layout: torch.memory_format
) -> None:
    x = torch.randn(2, 36, 3, 5).to(memory_format=layout)
    shuffled = F.pixel_shuffle(x, factor)
    assert torch.equal(depth_to_space(x, (factor, factor)), shuffled)
    assert torch.equal(space_to_depth(shuffled, (factor, factor)), x)


def test_in_plane_factors_in_3d_are_torchs_pixel_shuffle_slice_by_slice() -> None:
    x = torch.randn(1, 8, 4, 3, 5)
    slices = [F.pixel_shuffle(x[:, :, n], 2) for n in range(4)]
    assert torch.equal(depth_to_space(x, (1, 2, 2)), torch.stack(slices, dim=2))


def test_sixteen_channels_become_two_cubes_read_row_by_row() -> None:
    x = torch.arange(16.0).reshape(1, 16, 1, 1, 1)
    cubes = depth_to_space(x, (2, 2, 2))
    assert cubes.shape == (1, 2, 2, 2, 2)
    assert cubes[0, 0].flatten().tolist() == list(range(8))
    assert cubes[0, 1].flatten().tolist() == list(range(8, 16))


def test_channels_last_stays_channels_last(path: None) -> None:
    x = torch.randn(2, 16, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    shuffled = depth_to_space(x, (2, 2, 2))
    assert space_to_depth(shuffled, (2, 2, 2)).stride() == x.stride()
    assert shuffled.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(shuffled, depth_to_space(x.contiguous(), (2, 2, 2)))
    assert depth_to_space(x.contiguous(), (2, 2, 2)).is_contiguous()


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="a multiple of 8 channels"):
        depth_to_space(torch.zeros(1, 12, 2, 2, 2), (2, 2, 2))


@pytest.mark.parametrize("factors", [(2, 2), (2, 2, 0)])
def test_factors_that_do_not_fit_the_rank_are_refused(factors: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="3 positive integers, one per spatial axis"):
        depth_to_space(torch.zeros(1, 8, 2, 2, 2), factors)


def test_extents_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"extents that are multiples of \(2, 2\)"):
        space_to_depth(torch.zeros(1, 1, 4, 5), (2, 2))


@pytest.mark.parametrize("factors", [(2, 2, 1), (3, 1, 2)])
def test_first_and_second_derivatives_of_the_shuffles_pass_the_numerical_check(
    path: None, factors: tuple[int, ...]
) -> None:
    deep = torch.randn(1, 12, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    dense = torch.randn(1, 1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    for function, leaf in ((depth_to_space, deep), (space_to_depth, dense)):
        assert torch.autograd.gradcheck(lambda t, f=function: f(t, factors), (leaf,))
        assert torch.autograd.gradgradcheck(lambda t, f=function: f(t, factors).square(), (leaf,))


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "leaky_relu"])
def test_activation_and_shuffle_pass_the_numerical_check_twice(path: None, activation: str) -> None:
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(1, 8, 3).requires_grad_()

    def apply(t: Tensor) -> Tensor:
        return activate_and_shuffle(t, (2,), activation, 0.3)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(apply, (x,))
    assert torch.autograd.gradgradcheck(lambda t: apply(t).square(), (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("factors", [(2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize(
    ("activation", "torchs"),
    [
        ("identity", lambda x: x),
        ("tanh", torch.tanh),
        ("relu", F.relu),
        ("leaky_relu", lambda x: F.leaky_relu(x, 0.2)),
    ],
)
def test_activation_and_shuffle_are_one_after_the_other(
    path: None, activation, torchs, factors: tuple[int, ...], layout: torch.memory_format
) -> None:
    x = torch.randn(2, 24, 2, 3, 4).to(memory_format=layout).requires_grad_()
    fused = activate_and_shuffle(x, factors, activation, 0.2)
    apart = depth_to_space(torchs(x), factors)
    assert fused.stride() == apart.stride()
    torch.testing.assert_close(fused, apart)
    dy = torch.randn(fused.shape)
    torch.testing.assert_close(torch.autograd.grad(fused, x, dy), torch.autograd.grad(apart, x, dy))


def test_activation_and_shuffle_leave_their_input_alone(path: None) -> None:
    x = torch.randn(1, 4, 2, 2)
    before = x.clone()
    for activation in ("tanh", "relu", "leaky_relu"):
        activate_and_shuffle(x, (2, 2), activation)
        activate_and_shuffle(x, (1, 1), activation)
    assert torch.equal(x, before)


def test_modules_do_what_the_functions_do() -> None:
    x = torch.randn(1, 4, 2, 6)
    assert torch.equal(DepthToSpace((1, 2))(x), depth_to_space(x, (1, 2)))
    assert torch.equal(SpaceToDepth([2, 3])(x), space_to_depth(x, (2, 3)))
    assert repr(DepthToSpace([1, 2])) == "DepthToSpace(factors=(1, 2))"
    assert repr(SpaceToDepth([1, 2])) == "SpaceToDepth(factors=(1, 2))"


@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (2, 2, 2), (1, 3, 2)])
def test_icnr_starts_as_convolution_and_nearest_neighbour_upsampling(
    factors: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    block = SubPixelConv(3, 5, factors, icnr=True).double()
    each = torch.Size(factors).numel()
    plain: nn.Module = {2: nn.Conv2d, 3: nn.Conv3d}[len(factors)](3, 5, 3, padding=1).double()
    plain.load_state_dict({k: v[::each] for k, v in block.project.state_dict().items()})
    x = torch.randn(2, 3, *(4, 3, 5)[: len(factors)], dtype=torch.float64)
    nearest = F.interpolate(plain(x), scale_factor=factors, mode="nearest")
    torch.testing.assert_close(block(x), nearest)
    # and without it, neighbours differ
    assert (SubPixelConv(3, 5, factors).double()(x) - nearest).abs().max() > 0.1


def test_icnr_takes_a_convolution_without_bias_and_refuses_outputs_that_do_not_divide() -> None:
    conv = nn.Conv2d(1, 8, 3, bias=False)
    icnr_(conv, 4)
    assert torch.equal(conv.weight[0], conv.weight[3])
    assert not torch.equal(conv.weight[3], conv.weight[4])
    with pytest.raises(ShapeError, match="a multiple of 3 output channels, found 8"):
        icnr_(conv, 3)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_sub_pixel_convolution_is_convolution_activation_and_shuffle(rank: int) -> None:
    block = SubPixelConv(2, 3, (2,) * rank, kernel=1, activation="leaky_relu", negative_slope=0.1)
    x = torch.randn(1, 2, *(3, 4, 5)[:rank])
    expected = depth_to_space(F.leaky_relu(block.project(x), 0.1), (2,) * rank)
    torch.testing.assert_close(block(x), expected)
    assert "activation='leaky_relu'" in repr(block)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": (2,)}, r"two or three positive integers.*found \(2,\)"),
        ({"factors": (2, 0)}, r"two or three positive integers.*found \(2, 0\)"),
        ({"kernel": 2}, "an odd extent.*found 2"),
        ({"activation": "tanhh"}, r"nearest: tanh.*found 'tanhh'"),
        ({"activation": "leaky_relu", "negative_slope": -0.1}, "zero or more, found -0.1"),
    ],
)
def test_a_sub_pixel_convolution_that_cannot_be_meant_is_refused(changes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SubPixelConv(**({"channels_in": 1, "channels_out": 1, "factors": (2, 2)} | changes))


def test_weights_on_another_device_are_told_by_name() -> None:
    block = SubPixelConv(1, 1, (2, 2)).to("meta")
    with pytest.raises(ShapeError, match="SubPixelConv: x_bcs: expected a tensor on meta"):
        block(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("function", [depth_to_space, space_to_depth, activate_and_shuffle])
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(0, 4, 2, 6), "found an empty batch"),
        (torch.zeros(4, 6), r"the axes \(batch, channel, \*spatial\), found shape \(4, 6\)"),
        (np.zeros((1, 4, 2, 6)), "expected a torch tensor, found an object of type ndarray"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    function: Callable[..., Tensor], x: Any, words: str
) -> None:
    with pytest.raises(ShapeError, match=rf"{function.__name__}: x_bcs: .*{words}"):
        function(x, (2, 2))


def test_integers_are_shuffled_but_not_activated() -> None:
    labels = torch.arange(16).reshape(1, 4, 2, 2)
    assert depth_to_space(labels, (2, 2))[0, 0, :2, :2].flatten().tolist() == [0, 4, 8, 12]
    with pytest.raises(ShapeError, match=r"x_bcs: expected a floating tensor, found torch\.int64"):
        activate_and_shuffle(labels, (2, 2))


def test_the_registered_operators_stand_on_their_own_with_factors_of_one(path: None) -> None:
    x = torch.randn(1, 2, 2, 3)
    assert torch.equal(torch.ops.medseg.depth_to_space(x, [1, 1]), x)
    assert torch.equal(torch.ops.medseg.space_to_depth(x, [1, 1]), x)
    assert torch.equal(torch.ops.medseg.activate_and_shuffle(x, [1, 1], "relu", 0.0), x.relu())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            torch.zeros(1, 3, 4, 4),
            r"expected 4 channels on 2 spatial axes, found shape \(1, 3, 4, 4\)",
        ),
        (torch.zeros(1, 4, 4, 4, 4), "expected 4 channels on 2 spatial axes"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.int32), "x_bcs: expected a floating tensor"),
        (
            torch.zeros(1, 4, 4, 4, dtype=torch.float64),
            "expected a tensor of torch.float32, as the weights are, found torch.float64",
        ),
        (torch.zeros(0, 4, 4, 4), "SubPixelConv: x_bcs: .*found an empty batch"),
        (None, "expected a torch tensor, found an object of type NoneType"),
    ],
)
def test_a_layer_refuses_what_its_convolution_cannot_take(x: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        SubPixelConv(4, 8, (2, 2))(x)


def test_under_autocast_a_layer_takes_other_types_than_that_of_its_weights() -> None:
    layer, x = SubPixelConv(4, 8, (2, 2)), torch.randn(1, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x.bfloat16()), layer(x))


def test_a_layer_without_channels_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="channels: expected one or more in and out, found 0 and 8"
    ):
        SubPixelConv(0, 8, (2, 2))


@pytest.mark.parametrize("factors", [2, (2.0, 2.0), "22"])
def test_factors_that_are_no_list_of_integers_are_named(factors: Any) -> None:
    with pytest.raises(ShapeError, match="depth_to_space: factors: expected 2 positive integers"):
        depth_to_space(torch.zeros(1, 4, 2, 2), factors)
