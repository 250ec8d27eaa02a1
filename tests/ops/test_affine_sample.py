"""Sampling along an affine lattice: torch and the per-class argmax as outsiders."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medseg.ops.affine_sample import affine_sample


def made(seed, shape=(7, 9, 8), channels=2, classes=5):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    return image, rng.integers(0, classes, shape).astype(np.uint8)


def drawn_affine(seed):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.eye(3) + rng.normal(0, 0.3, (3, 3)), rng.normal(0, 2, (3, 1))], 1)


def by_torch(x_cijk, affine, shape):
    """grid_sample at the same places; its grid counts from -1 to 1, last axis first."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    old = places @ affine[:, :3].T + affine[:, 3]
    extents = np.asarray(x_cijk.shape[1:])
    grid = torch.from_numpy((2 * old + 1) / extents - 1).flip(-1)
    x = torch.from_numpy(x_cijk).double()
    return F.grid_sample(x[None], grid[None], align_corners=False)[0].numpy()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_intensities_are_those_of_torchs_grid_sample(seed):
    image, labels = made(seed)
    affine = drawn_affine(seed)
    found, _ = affine_sample(image, labels, affine, (6, 5, 7), smooth_labels=True)
    np.testing.assert_allclose(found, by_torch(image, affine, (6, 5, 7)), atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from([np.uint8, np.int16]))
def test_smooth_labels_are_the_argmax_of_interpolated_indicators(seed, kind):
    image, labels = made(seed)
    affine = drawn_affine(seed)
    _, found = affine_sample(image, labels.astype(kind), affine, (6, 5, 7), smooth_labels=True)
    assert found.dtype == kind
    members = np.stack([labels == value for value in range(5)]).astype(np.float32)
    shares = by_torch(members, affine, (6, 5, 7))
    shares[0] += 1 - shares.sum(0)  # beyond the volume lies background
    top = np.sort(shares, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], shares.argmax(0)[clear])


def test_nearest_labels_are_those_of_torchs_nearest():
    image, labels = made(3)
    affine = drawn_affine(3)
    _, found = affine_sample(image, labels, affine, (6, 5, 7), smooth_labels=False)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (6, 5, 7)), indexing="ij"), -1)
    old = np.floor(places @ affine[:, :3].T + affine[:, 3] + 0.5).astype(int)
    inside = ((old >= 0) & (old < labels.shape)).all(-1)
    expected = np.zeros((6, 5, 7), np.uint8)
    expected[inside] = labels[tuple(old[inside].T)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("smooth", [True, False])
def test_the_identity_changes_no_bit_and_beyond_the_volume_lie_zeros(smooth):
    image, labels = made(1)
    identity = np.eye(3, 4)
    found, new = affine_sample(image, labels, identity, (9, 9, 9), smooth_labels=smooth)
    np.testing.assert_array_equal(found[:, :7, :9, :8], image)
    np.testing.assert_array_equal(new[:7, :9, :8], labels)
    assert not found[:, 7:].any()
    assert not new[:, :, 8:].any()


def test_on_a_tie_the_smaller_label_wins():
    image, labels = np.zeros((1, 2, 1, 1), np.float32), np.array([[[3]], [[2]]], np.uint8)
    half = np.eye(3, 4)
    half[0, 3] = 0.5
    _, new = affine_sample(image, labels, half, (1, 1, 1), smooth_labels=True)
    assert new.item() == 2


def test_a_quarter_turn_worked_on_paper():
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    turn = np.array([[0.0, 1, 0, 0], [-1.0, 0, 0, 1], [0, 0, 1.0, 0]])
    found, _ = affine_sample(image, image[0].astype(np.uint8), turn, (2, 2, 1), smooth_labels=False)
    # new (0, 0) lies at old (0, 1), new (0, 1) at old (1, 1)
    assert found[0, :, :, 0].tolist() == [[1, 3], [0, 2]]
    assert math.isclose(np.linalg.det(turn[:, :3]), 1)
