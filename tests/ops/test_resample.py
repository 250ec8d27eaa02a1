"""Linear interpolation against torch and Pillow, and the laws it must keep."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from medseg.ops.resample import (
    apply_taps,
    axis_taps,
    resize,
    resize_labels,
)

extents = st.integers(1, 12)


def resize_linear(x, shape, smooth=True):
    olds = x.shape[1:]
    return resize(x, [axis_taps(a, b, smooth=smooth) for a, b in zip(olds, shape, strict=True)])


@settings(deadline=None)
@given(extents, extents, st.booleans())
def test_rows_are_weights_that_sum_to_one(old, new, smooth):
    taps = axis_taps(old, new, smooth=smooth)
    assert (taps.old, taps.new) == (old, new)
    assert (taps.weights >= 0).all()
    np.testing.assert_allclose(taps.weights.sum(1), 1, atol=1e-6)
    # nothing is taken from beyond the axis
    places = taps.firsts[:, None] + np.arange(taps.weights.shape[1])
    assert (taps.weights[(places < 0) | (places >= old)] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.tuples(extents, extents, extents), st.tuples(extents, extents, extents))
def test_plain_interpolation_agrees_with_torch(old, new):
    x = torch.randn(2, *old, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x[None], size=new, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_linear(x, new, smooth=False), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 30))
def test_smooth_interpolation_agrees_with_pillow(old, new):
    row = np.random.default_rng(old).normal(size=(1, old)).astype(np.float32)
    resized = Image.fromarray(row).resize((new, 1), Image.Resampling.BILINEAR)
    ours = resize_linear(torch.from_numpy(row), (new,), smooth=True)
    np.testing.assert_allclose(ours.numpy(), np.asarray(resized), atol=1e-5)


def test_a_ramp_keeps_its_world_positions():
    # voxel centres 0..7 resampled to 4: new centres lie at 0.5, 2.5, 4.5, 6.5
    ramp = torch.arange(8.0)[None]
    assert resize_linear(ramp, (4,), smooth=False).tolist() == [[0.5, 2.5, 4.5, 6.5]]


def test_labels_that_need_no_resizing_come_back_untouched():
    labels = torch.tensor([[0, 2], [1, 2]])
    assert resize_labels(labels, [axis_taps(2, 2)] * 2) is labels


def test_a_block_of_labels_grows_in_place():
    labels = torch.zeros(4, 4, 4, dtype=torch.int32)
    labels[1:3, 1:3, 1:3] = 5
    grown = resize_labels(labels, [axis_taps(4, 8)] * 3)
    expected = torch.zeros(8, 8, 8, dtype=torch.int32)
    expected[2:6, 2:6, 2:6] = 5
    # linear membership rounds off the eight corners of the cube (0.75 ** 3 < 0.5), nothing else
    corners = (grown != expected).nonzero().tolist()
    assert sorted(corners) == [[i, j, k] for i in (2, 5) for j in (2, 5) for k in (2, 5)]
    assert set(torch.unique(grown).tolist()) == {0, 5}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    new=st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16)),
    turned=st.booleans(),
)
def test_labels_resized_in_one_pass_are_those_of_one_value_at_a_time(seed, new, turned):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, 4, (5, 8, 7)).astype(np.int32) * 300)
    if turned:
        labels = labels.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    taps = [axis_taps(old, n) for old, n in zip((5, 8, 7), new, strict=True)]
    found = resize_labels(labels, taps)
    # the general way, which other types take
    expected = resize_labels(labels.to(torch.int64), taps)
    assert found.dtype == torch.int32
    members = torch.stack(
        [resize((labels == v).float()[None], taps)[0] for v in (0, 300, 600, 900)]
    )
    top = members.sort(dim=0).values
    clear = (top[-1] - top[-2]) > 4e-6
    assert torch.equal(found[clear], expected.to(torch.int32)[clear])
    if clear.all():
        assert torch.equal(found, expected.to(torch.int32))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(1, 30))
def test_cubic_interpolation_with_fewer_samples_agrees_with_pillow(old, new):
    assume(new < old)  # Pillow drops what lies beyond the edge even where it interpolates
    row = np.random.default_rng(old).normal(size=(1, old)).astype(np.float32)
    resized = Image.fromarray(row).resize((new, 1), Image.Resampling.BICUBIC)
    ours = apply_taps(torch.from_numpy(row), 1, axis_taps(old, new, "cubic"))
    np.testing.assert_allclose(ours.numpy(), np.asarray(resized), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 20), st.integers(4, 40))
def test_cubic_interpolation_keeps_a_ramp_away_from_the_edges(old, new):
    # cubic convolution carries a ramp over exactly
    ramp = torch.arange(float(old))[None]
    ours = apply_taps(ramp, 1, axis_taps(old, new, "cubic", smooth=False))[0]
    centres = (torch.arange(new) + 0.5) * old / new - 0.5
    inner = (centres >= 1) & (centres <= old - 2)
    torch.testing.assert_close(ours[inner], centres[inner], atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(extents, extents)
def test_the_nearest_sample_is_that_of_torch(old, new):
    row = torch.arange(float(old))[None]
    expected = F.interpolate(row[None], size=new, mode="nearest-exact")[0]
    ours = apply_taps(row, 1, axis_taps(old, new, "nearest"))
    # halfway between two samples either is as near
    assert ((ours - expected).abs() <= 1).all()
    centres = (torch.arange(new) + 0.5) * old / new - 0.5
    clear = ((centres % 1) - 0.5).abs() > 1e-3
    assert torch.equal(ours[:, clear], expected[:, clear])


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.booleans(),
    st.data(),
)
def test_a_part_of_an_axis_has_the_bits_it_has_in_the_whole(old, new, kind, smooth, data):
    taps = axis_taps(old, new, kind, smooth=smooth)
    start = data.draw(st.integers(0, new - 1))
    stop = data.draw(st.integers(start + 1, new))
    x = torch.randn(3, old, 5, generator=torch.Generator().manual_seed(new))
    whole = apply_taps(x, 1, taps)
    first, last = taps.sources(start, stop)
    assert torch.equal(
        apply_taps(x[:, first:last], 1, taps.part(start, stop)), whole[:, start:stop]
    )
    assert taps.ready(start, last) >= stop
    assert taps.ready(0, old) == new
    assert taps.ready(start, first) == start
