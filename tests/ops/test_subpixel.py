"""Sub-pixel shuffle: inverse, torch's own in 2D, and a worked case."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medseg.errors import ShapeError
from medseg.ops.subpixel import depth_to_space, space_to_depth


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


@settings(max_examples=40, deadline=None)
@given(shuffles())
def test_space_to_depth_undoes_depth_to_space(case: tuple[Tensor, list[int]]) -> None:
    x, factors = case
    assert torch.equal(space_to_depth(depth_to_space(x, factors), factors), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equal_factors_in_2d_are_torchs_pixel_shuffle(layout: torch.memory_format) -> None:
    x = torch.randn(2, 18, 3, 5).to(memory_format=layout)
    assert torch.equal(depth_to_space(x, (3, 3)), F.pixel_shuffle(x, 3))
    assert torch.equal(space_to_depth(F.pixel_shuffle(x, 3), (3, 3)), x)


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


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 16, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    shuffled = depth_to_space(x, (2, 2, 2))
    assert shuffled.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(shuffled, depth_to_space(x.contiguous(), (2, 2, 2)))
    assert depth_to_space(x.contiguous(), (2, 2, 2)).is_contiguous()


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="a multiple of 8 channels"):
        depth_to_space(torch.zeros(1, 12, 2, 2, 2), (2, 2, 2))


@pytest.mark.parametrize("factors", [(2, 2), (2, 2, 0)])
def test_factors_that_do_not_fit_the_rank_are_refused(factors: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="3 positive factors, one per spatial axis"):
        depth_to_space(torch.zeros(1, 8, 2, 2, 2), factors)


def test_extents_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"extents that are multiples of \(2, 2\)"):
        space_to_depth(torch.zeros(1, 1, 4, 5), (2, 2))
