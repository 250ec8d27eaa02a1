"""The sliding window: laws, then MONAI as the outsider."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import nn

from medseg.core import Grid, Volume
from medseg.data.preparation import prepare
from medseg.errors import ShapeError
from medseg.events import Cancelled, Silent
from medseg.inference.engine import PlainEngine, sliding_window_logits
from medseg.inference.windows import gaussian_weights, window_starts
from medseg.models.card import Channel, InputSettings

CPU = torch.device("cpu")


def logits_of(network, x, window, overlap=0.5, batch=2, listener=None):
    with torch.inference_mode():
        return sliding_window_logits(
            network,
            x,
            window,
            overlap=overlap,
            batch=batch,
            device=CPU,
            autocast=None,
            listener=listener or Silent(),
        )


def pointwise(channels=1, classes=3):
    torch.manual_seed(0)
    return nn.Conv3d(channels, classes, 1).eval()


def local():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 3, 1)).eval()


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=3),
    st.floats(0, 0.9),
)
def test_windows_cover_everything_and_stay_inside(axes, overlap):
    window = [length for length, _ in axes]
    shape = [length + room for length, room in axes]
    covered = np.zeros(shape, dtype=bool)
    for start in window_starts(shape, window, overlap):
        box = tuple(slice(a, a + w) for a, w in zip(start, window, strict=True))
        assert covered[box].shape == tuple(window)
        covered[box] = True
    assert covered.all()


@given(st.integers(4, 20), st.integers(0, 60), st.floats(0, 0.8))
def test_neighbouring_windows_share_the_overlap_asked_for(length, room, overlap):
    starts = [start for (start,) in window_starts([length + room], [length], overlap)]
    steps = np.diff(starts)
    assert (steps <= max(1, np.ceil(length * (1 - overlap)))).all()


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ShapeError, match="expected extents of at least the window's"):
        window_starts([4, 9, 9], [5, 5, 5], 0.5)


def test_weights_peak_in_the_middle_and_never_vanish():
    weights = gaussian_weights((7, 9, 16))
    assert weights.max() == weights[3, 4, 7] == 1
    assert weights.min() >= 1e-4
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14)),
    st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)),
    st.floats(0, 0.75),
    st.integers(1, 5),
)
def test_a_network_without_context_answers_as_if_there_were_no_windows(
    shape, window, overlap, batch
):
    network = pointwise()
    x = torch.randn(1, *shape)
    with torch.inference_mode():
        expected = network(x[None])[0]
    found = logits_of(network, x, window, overlap, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_agrees_with_monai_where_the_window_positions_coincide():
    network, window = local(), (8, 8, 8)
    x = torch.randn(1, 24, 16, 32)
    with torch.inference_mode():
        expected = sliding_window_inference(
            x[None], window, 2, network, overlap=0.5, roi_weight_map=gaussian_weights(window)
        )[0]
    torch.testing.assert_close(logits_of(network, x, window), expected, atol=1e-5, rtol=1e-5)


def test_weights_agree_with_monai_above_its_floor():
    theirs = compute_importance_map((16, 12, 10), mode="gaussian", sigma_scale=0.125)
    above = theirs > 1e-3
    ours = gaussian_weights((16, 12, 10))
    torch.testing.assert_close(ours[above], theirs[above] / theirs.max(), atol=1e-6, rtol=1e-4)


def test_the_batch_of_windows_does_not_change_the_answer():
    network, x = local(), torch.randn(1, 20, 20, 20)
    one = logits_of(network, x, (8, 8, 8), batch=1)
    torch.testing.assert_close(logits_of(network, x, (8, 8, 8), batch=7), one)


class _Recorder(Silent):
    def __init__(self, stop_after=None):
        self.done = []
        self.total = 0
        self.stop_after = stop_after

    def started(self, stage, total):
        assert stage == "windows"
        self.total = total

    def advanced(self, stage, done):
        self.done.append(done)

    def cancelled(self):
        return self.stop_after is not None and len(self.done) >= self.stop_after


def test_every_batch_is_reported():
    listener = _Recorder()
    logits_of(pointwise(), torch.randn(1, 16, 8, 8), (8, 8, 8), batch=2, listener=listener)
    assert (listener.total, listener.done) == (3, [2, 3])


def test_cancelling_stops_within_one_batch():
    listener = _Recorder(stop_after=2)
    with pytest.raises(Cancelled):
        logits_of(pointwise(), torch.randn(1, 32, 8, 8), (8, 8, 8), batch=1, listener=listener)
    assert listener.done == [1, 2]


def test_classes_come_back_on_the_turned_source_grid():
    """A network that thresholds must give back the threshold of the image itself."""

    class Threshold(nn.Module):
        def forward(self, x_bcijk):
            return torch.cat([-x_bcijk, x_bcijk], dim=1)

    affine = np.diag([-2.0, 1.0, 3.0, 1.0])[:, [1, 0, 2, 3]]
    data = np.random.default_rng(0).normal(size=(1, 11, 12, 13)).astype(np.float32)
    inputs = InputSettings(channels=(Channel(name="image"),), spacing_mm=None, window_ijk=(8, 8, 8))
    prepared = prepare(Volume(data, Grid((11, 12, 13), affine)), inputs)
    classes = PlainEngine((8, 8, 8)).classes(Threshold(), prepared, Silent())
    assert classes.dtype == np.uint8
    back = prepared.to_model.inverse().turn_array(classes)
    np.testing.assert_array_equal(back, data[0] > data.mean())
