"""The streaming engine against the plain form, and both against MONAI."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from torch import nn

from medseg.core import AxisTurn, Grid, Volume
from medseg.data.preparation import ModelImage
from medseg.errors import FormatError, ResourceError, ShapeError
from medseg.events import Cancelled, Silent
from medseg.inference.engine import Outputs, StreamingEngine, Sweep, smallest_axis, turned_box
from medseg.inference.plain import plain_labels, sliding_window_logits
from medseg.inference.sweep import TOO_LARGE, Group, Progress
from medseg.inference.windows import blending_weights, gaussian_weights, window_starts
from medseg.models.card import Channel, InputSettings
from medseg.ops.winners import Decision

ORIENTATIONS = ["RAS", "LPS", "SAR", "PIL", "ASL", "IRP"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Local(nn.Module):
    """A small network that sees its neighbourhood; counts its calls and may fail."""

    def __init__(self, channels=1, classes=3, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Conv3d(channels, 4, 3, padding=1)
        self.head = nn.Conv3d(4, classes, 1)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        self.calls = 0
        self.fail_at = ()
        self.error = MemoryError
        self.eval()

    def forward(self, x_bcijk):
        self.calls += 1
        if self.calls in self.fail_at:
            raise self.error("injected: not enough memory: you tried to allocate memory")
        return self.head(torch.tanh(self.inner(x_bcijk)))


def image_of(
    shape, orientation="RAS", spacing=None, channels=1, seed=0, window=(6, 6, 6), **inputs
):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])[:, [1, 0, 2, 3]]
    data = np.random.default_rng(seed).normal(0, 200, (channels, *shape)).astype(np.int16)
    names = tuple(f"c{n}" for n in range(channels))
    settings_ = InputSettings(
        channels=tuple(Channel(name=name) for name in names),
        orientation=orientation,
        spacing_mm=spacing,
        window_ijk=window,
        **inputs,
    )
    return ModelImage(Volume(data, Grid(shape, affine), names), settings_)


def run(groups, decision, sweep, listener=None, roi=None):
    shape = groups[0].image.turned_grid.shape_ijk
    outputs = Outputs(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
    engine = StreamingEngine(groups, decision, sweep, roi)
    slabs = list(engine.run(outputs, listener or Silent()))
    return outputs, slabs, engine


extents = st.tuples(*[st.integers(1, 14)] * 3)
# of the image that the network sees: few enough windows, and also such as are larger than it
shares = st.tuples(*[st.floats(0.3, 1.3)] * 3)
spacings = st.one_of(st.none(), st.tuples(*[st.floats(0.6, 3.5)] * 3))


def window_of(image, share):
    """A window of so large a share of the image, axis by axis."""
    return tuple(
        max(2, round(n * part)) for n, part in zip(image.grid.shape_ijk, share, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=extents,
    share=shares,
    spacing=spacings,
    overlap=st.floats(0, 0.75),
    orientation=st.sampled_from(ORIENTATIONS),
    blending=st.sampled_from(["gaussian", "constant"]),
    axis=st.integers(0, 2),
    strips=st.integers(1, 4),
    batch=st.integers(1, 3),
    overlapping=st.booleans(),
    mirror=st.sampled_from([(), (0,), (0, 2)]),
    thick=st.sampled_from(["interpolate", "nearest"]),
)
def test_labels_are_those_of_the_plain_form(
    shape, share, spacing, overlap, orientation, blending, axis, strips, batch, overlapping,
    mirror, thick,
):  # fmt: skip
    image = image_of(shape, orientation, spacing, thick_slices=thick)
    window = window_of(image, share)
    # one window at a time where strips change which windows are joined
    batch = batch if strips == 1 else 1
    group = Group(
        (Local(),), image, window, overlap, blending, mirror_axes=mirror, overlapping=overlapping
    )
    values = (1, 5, 7) if overlapping else (0, 5, 7)
    expected = plain_labels(group, values, axis=axis, batch=batch)
    found, slabs, _ = run([group], Decision(values, overlapping), Sweep(axis, batch, strips=strips))
    np.testing.assert_array_equal(found.labels, expected)
    covered = np.zeros(image.turned_grid.shape_ijk, int)
    for slab in slabs:
        covered[tuple(slice(*span) for span in slab.box)] += 1
    assert (covered == 1).all()


@settings(max_examples=15, deadline=None)
@given(shape=st.tuples(*[st.integers(8, 24)] * 3), seed=st.integers(0, 5))
def test_labels_are_those_of_monais_inferer_where_window_positions_coincide(shape, seed):
    shape = tuple(extent // 8 * 8 for extent in shape)
    image, network = image_of(shape, seed=seed), Local(seed=seed)
    with torch.inference_mode():
        logits = sliding_window_inference(
            image.whole()[None], (8, 8, 8), 2, network, 0.5,
            roi_weight_map=gaussian_weights((8, 8, 8)),
        )[0]  # fmt: skip
    found, _, _ = run([Group((network,), image, (8, 8, 8))], Decision((0, 1, 2)), Sweep(2))
    best, second = logits.topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.labels[clear], logits.argmax(0).numpy()[clear])


@pytest.mark.parametrize(("dtype", "agreement"), [(torch.bfloat16, 0.98), (torch.float16, 0.995)])
def test_lower_precision_agrees_as_stated(dtype, agreement):
    image = image_of((20, 22, 24), spacing=(1.3, 1.2, 1.7))
    network = Local()

    class Lower(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", dtype=dtype):
                return network(x)

    full, _, _ = run([Group((network,), image, (8, 8, 8))], Decision((0, 1, 2)), Sweep(0))
    low, _, _ = run([Group((Lower(),), image, (8, 8, 8))], Decision((0, 1, 2)), Sweep(0))
    assert (full.labels == low.labels).mean() > agreement


def test_sums_in_float16_agree_as_stated():
    image = image_of((20, 22, 24), spacing=(1.3, 1.2, 1.7))
    group = Group((Local(),), image, (8, 8, 8))
    full, _, _ = run([group], Decision((0, 1, 2)), Sweep(0))
    half, _, _ = run([group], Decision((0, 1, 2)), Sweep(0, half=True))
    assert (full.labels == half.labels).mean() > 0.998


def test_probabilities_and_entropy_are_those_of_the_interpolated_logits():
    image = image_of((12, 13, 14), "LPS", (1.2, 1.7, 2.3))
    group = Group((Local(),), image, (6, 6, 6))
    with torch.inference_mode():
        logits = sliding_window_logits(group, image.whole())[None]
    logits = logits.clone()
    shares = torch.nn.functional.interpolate(
        logits, image.turned_grid.shape_ijk, mode="trilinear", align_corners=False
    ).softmax(1)[0]
    # interpolating three to more voxels needs no averaging: torch's is the same
    assert all(a <= b for a, b in zip(image.grid.shape_ijk, (12, 13, 14), strict=True))
    outputs, slabs, _ = run(
        [group], Decision((0, 1, 2), entropy=True, probabilities=True), Sweep(1)
    )
    found = np.zeros((3, *image.turned_grid.shape_ijk), np.float32)
    for slab in slabs:
        found[(slice(None), *(slice(*span) for span in slab.box))] = slab.probabilities
    np.testing.assert_allclose(found, shares.numpy(), atol=2e-5)
    entropy = -(found * np.log(np.maximum(found, 1e-30))).sum(0) / np.log(3)
    assert np.abs(outputs.entropy / 255 - entropy).max() < 0.5 / 255 + 1e-3


def test_an_ensemble_of_unlike_models_averages_probabilities():
    shape = (12, 14, 16)
    one = Group((Local(seed=1),), image_of(shape, spacing=(1.4, 1.4, 1.4)), (6, 6, 6))
    two = Group((Local(seed=2),), image_of(shape, spacing=(1.1, 2.0, 2.0)), (8, 6, 4))
    decision = Decision((0, 1, 2), probabilities=True)
    alone = []
    for group in (one, two):
        _, slabs, _ = run([group], decision, Sweep(0))
        alone.append(np.concatenate([slab.probabilities for slab in slabs], axis=1))
    outputs, slabs, _ = run([one, two], decision, Sweep(0))
    found = np.concatenate([slab.probabilities for slab in slabs], axis=1)
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(outputs.labels, found.argmax(0))


def test_an_ensemble_of_folds_averages_logits():
    image = image_of((10, 12, 14))
    networks = (Local(seed=1), Local(seed=2))
    group = Group(networks, image, (6, 6, 6))
    with torch.inference_mode():
        x = torch.randn(1, 1, 6, 6, 6)
        mean = (networks[0](x) + networks[1](x)) / 2
        torch.testing.assert_close(group.answer(x, Progress(Silent(), 1)), mean)
    found, _, engine = run([group], Decision((0, 1, 2)), Sweep(0))
    np.testing.assert_array_equal(found.labels, plain_labels(group, (0, 1, 2)))
    assert engine.forward_calls == 2 * engine.windows


def test_mirroring_mirrors_the_image_itself():
    """What a network derives from its input, here a difference, is derived again."""

    class Slope(nn.Module):
        def forward(self, x):
            rise = x - x.roll(1, dims=2)
            return torch.cat([-rise, rise], dim=1)

    image = image_of((6, 6, 6))
    x = torch.randn(1, 1, 6, 6, 6)
    plain = Group((Slope(),), image, (6, 6, 6)).answer(x, Progress(Silent(), 1))
    both = Group((Slope(),), image, (6, 6, 6), mirror_axes=(0,)).answer(x, Progress(Silent(), 1))
    flipped = Slope()(x.flip(2)).flip(2)
    torch.testing.assert_close(both, (plain + flipped) / 2)
    assert not torch.allclose(plain, flipped)


def test_a_network_trained_in_another_orientation_sees_its_own():
    shape = (11, 12, 13)
    window = (4, 6, 8)
    upright = image_of(shape, "SAR")
    group = Group((Local(),), upright, window)
    alone, _, _ = run([group], Decision((0, 1, 2)), Sweep(0))
    volume_frame = AxisTurn((0, 1, 2), (False, False, False))
    affine = np.diag([1.0, 1.5, 2.0, 1.0])[:, [1, 0, 2, 3]]
    data = np.random.default_rng(0).normal(0, 200, (1, *shape)).astype(np.int16)
    inputs = InputSettings(
        channels=(Channel(name="c0"),), orientation="SAR", spacing_mm=None, window_ijk=window
    )
    framed = ModelImage(Volume(data, Grid(shape, affine), ("c0",)), inputs, frame=volume_frame)
    other = Group((Local(),), framed, framed.in_frame(window))
    found, _, _ = run([other], Decision((0, 1, 2)), Sweep(0))
    back = upright.to_model.inverse().turn_array(alone.labels)
    # windows are spread from the other end where an axis is flipped: a rounded corner may move
    assert (back == found.labels).mean() > 0.97


class Recorder(Silent):
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


def test_every_window_is_reported_and_slabs_come_before_the_end():
    image, recorder = image_of((8, 8, 32)), Recorder()
    group = Group((Local(),), image, (8, 8, 8))
    outputs = Outputs(np.zeros((8, 8, 32), np.uint8))
    engine = StreamingEngine([group], Decision((0, 1, 2)), Sweep(2))
    seen = [(slab.box[2], len(recorder.done)) for slab in engine.run(outputs, recorder)]
    assert recorder.total == 7
    assert recorder.done == list(range(1, 8))
    assert seen[0] == ((0, 4), 1)
    assert [done for _, done in seen] == list(range(1, 8))


def test_cancelling_stops_within_one_window():
    network = Local()
    group = Group((network,), image_of((8, 8, 32)), (8, 8, 8))
    with pytest.raises(Cancelled):
        run([group], Decision((0, 1, 2)), Sweep(2), Recorder(stop_after=2))
    assert network.calls == 2


def test_cancelling_stops_between_mirrorings_too():
    network, recorder = Local(), Recorder()
    recorder.cancelled = lambda: network.calls >= 3
    group = Group((network,), image_of((8, 8, 32)), (8, 8, 8), mirror_axes=(0, 1, 2))
    with pytest.raises(Cancelled):
        run([group], Decision((0, 1, 2)), Sweep(2), recorder)
    assert network.calls == 3


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, torch.OutOfMemoryError])
def test_finished_windows_are_kept_when_memory_runs_out(error):
    """At window k the batch is halved, then sums go to float16; no window is computed twice."""
    network = Local()
    network.fail_at, network.error = (3, 4), error
    image = image_of((8, 8, 64))
    group = Group((network,), image, (8, 8, 8))
    found, _, engine = run([group], Decision((0, 1, 2)), Sweep(2, batch=2))
    assert engine.windows == 15
    assert network.calls == 15 + 2  # a layer holds one window here; two calls failed
    assert engine.windows_computed == 15
    assert engine.steps_taken == ["1 windows at a time", "logits summed in float16"]
    assert (found.labels == plain_labels(group, (0, 1, 2), axis=2)).mean() > 0.99


def test_without_anything_left_but_the_slab_finished_slabs_are_kept():
    network = Local()
    network.fail_at = (9, 10)
    image = image_of((24, 8, 64))
    group = Group((network,), image, (8, 8, 8))
    sweep = Sweep(2)
    calls = 5 * 15  # five windows across j, fifteen layers
    found, slabs, engine = run([group], Decision((0, 1, 2)), sweep)
    assert engine.steps_taken == ["logits summed in float16", "2 strips of the image"]
    # the first slab was done after five windows; layers from the second on are run in two strips
    assert slabs[0].box == ((0, 8), (0, 24), (0, 4))
    assert network.calls < 2 + 8 + 14 * 6 + 15
    assert network.calls > calls
    expected = plain_labels(group, (0, 1, 2), axis=2)
    np.testing.assert_array_equal(found.labels[..., :4], expected[..., :4])
    assert (found.labels == expected).mean() > 0.99


class Large(Local):
    """Logits that float32 holds and float16 does not."""

    def forward(self, x_bcijk):
        return 1e5 * super().forward(x_bcijk)


def test_logits_too_large_for_float16_go_on_in_float32_when_memory_runs_out():
    network = Large()
    network.fail_at = (3,)
    group = Group((network,), image_of((16, 8, 64)), (8, 8, 8))
    found, _, engine = run([group], Decision((0, 1, 2)), Sweep(2))
    # float16 is not even tried: what is summed already would not fit
    assert engine.steps_taken == ["2 strips of the image"]
    np.testing.assert_array_equal(found.labels, plain_labels(group, (0, 1, 2), axis=2))


def test_sums_that_overflow_float16_on_the_way_are_done_again_in_float32():
    network = Large()
    image = image_of((16, 8, 64))
    group = Group((network,), image, (8, 8, 8))
    found, _, engine = run([group], Decision((0, 1, 2)), Sweep(2, half=True))
    assert engine.steps_taken == [TOO_LARGE, "2 strips of the image"]
    np.testing.assert_array_equal(found.labels, plain_labels(group, (0, 1, 2), axis=2))


def test_an_image_too_narrow_for_strips_is_done_again_whole():
    group = Group((Large(),), image_of((1, 1, 32)), (8, 8, 8))
    found, _, engine = run([group], Decision((0, 1, 2)), Sweep(2, half=True))
    assert engine.steps_taken == [TOO_LARGE]
    np.testing.assert_array_equal(found.labels, plain_labels(group, (0, 1, 2), axis=2))


def test_when_nothing_helps_the_error_says_so():
    network = Local()
    network.fail_at = range(1, 10_000)
    group = Group((network,), image_of((8, 8, 16)), (8, 8, 8))
    with pytest.raises(ResourceError, match="none left, after everything that can be given up was"):
        run([group], Decision((0, 1, 2)), Sweep(2))


def test_an_error_that_is_not_about_memory_passes_through():
    network = Local()
    network.fail_at, network.error = (1,), ValueError
    with pytest.raises(ValueError, match="injected"):
        run([Group((network,), image_of((8, 8, 8)), (8, 8, 8))], Decision((0, 1, 2)), Sweep(0))


def test_a_network_that_answers_nan_fails_by_name():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.cat([x, x * float("nan")], dim=1)

    group = Group((Broken(),), image_of((8, 8, 8)), (8, 8, 8))
    with pytest.raises(FormatError, match="found NaN or infinity") as caught:
        run([group], Decision((0, 1)), Sweep(0))
    assert caught.value.code == "network-not-finite"


def half_empty(shape=(8, 8, 40)):
    data = np.zeros((1, *shape), np.int16)
    data[..., 24:] = np.random.default_rng(0).integers(100, 900, (1, *shape[:2], shape[2] - 24))
    inputs = InputSettings(channels=(Channel(name="c"),), spacing_mm=None, window_ijk=(8, 8, 8))
    return ModelImage(Volume(data, Grid(shape, np.eye(4))), inputs)


def test_constant_windows_are_not_computed_and_nothing_else_changes():
    network = Local()
    image = half_empty()
    everything = Group((network,), image, (8, 8, 8))
    skipping = Group((network,), image, (8, 8, 8), skip_constant=True)
    full, _, _ = run([everything], Decision((0, 1, 2)), Sweep(2))
    network.calls = 0
    found, _, engine = run([skipping], Decision((0, 1, 2), entropy=True), Sweep(2))
    assert network.calls == engine.windows_computed == engine.windows - 5
    inside = np.abs(image._data_cijk[0]) > 0
    np.testing.assert_array_equal(found.labels[inside], full.labels[inside])
    assert (found.labels[..., :20] == 0).all()
    assert (found.entropy[..., :16] == 0).all()


def test_windows_outside_a_mask_are_not_computed_and_labels_inside_stay():
    network = Local()
    image = image_of((16, 16, 16), window=(8, 8, 8))
    coarse = np.zeros((4, 4, 4), bool)
    coarse[2, 2, 2] = True
    full, _, _ = run([Group((network,), image, (8, 8, 8))], Decision((0, 1, 2)), Sweep(0))
    found, _, engine = run(
        [Group((network,), image, (8, 8, 8), wanted=coarse)], Decision((0, 1, 2)), Sweep(0)
    )
    assert engine.windows == 27
    assert engine.windows_computed == 8
    inside = tuple([slice(8, 12)] * 3)
    np.testing.assert_array_equal(found.labels[inside], full.labels[inside])


def test_an_image_of_one_value_alone_is_background():
    data = np.full((1, 9, 9, 9), 40, np.int16)
    inputs = InputSettings(channels=(Channel(name="c"),), spacing_mm=None, window_ijk=(6, 6, 6))
    image = ModelImage(Volume(data, Grid((9, 9, 9), np.eye(4))), inputs)
    found, _, engine = run(
        [Group((Local(),), image, (6, 6, 6), skip_constant=True)], Decision((0, 1, 2)), Sweep(0)
    )
    assert engine.windows_computed == 0
    assert not found.labels.any()


def test_a_region_of_interest_is_all_that_is_labelled():
    image = image_of((20, 20, 20), spacing=(1.5, 1.5, 1.5))
    group = Group((Local(),), image, (6, 6, 6))
    roi = ((5, 12), (0, 9), (8, 20))
    found, slabs, engine = run([group], Decision((1, 2, 3)), Sweep(1), roi=roi)
    inside = np.zeros((20, 20, 20), bool)
    inside[tuple(slice(*span) for span in roi)] = True
    assert (found.labels[inside] > 0).all()
    assert not found.labels[~inside].any()
    whole, _, all_of = run([group], Decision((1, 2, 3)), Sweep(1))
    assert engine.windows < all_of.windows
    assert (whole.labels[inside] == found.labels[inside]).mean() > 0.8
    assert slabs[-1].box[1] == (slabs[-1].box[1][0], 9)


def test_the_axis_is_that_of_the_smallest_slab():
    image = image_of((40, 10, 12))
    assert smallest_axis([Group((Local(),), image, (6, 6, 6))]) == int(
        np.argmax(image.turned_grid.shape_ijk)
    )


@given(st.sampled_from(ORIENTATIONS), st.data())
def test_a_box_is_turned_as_its_voxels_are(orientation, data):
    shape = (5, 6, 7)
    image = image_of(shape, orientation)
    box = tuple(
        tuple(sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
    )
    marked = np.zeros(shape, bool)
    marked[tuple(slice(*span) for span in box)] = True
    turned = np.zeros(image.turned_grid.shape_ijk, bool)
    turned[tuple(slice(*span) for span in turned_box(box, image.to_model, shape))] = True
    np.testing.assert_array_equal(image.to_model.turn_array(marked), turned)


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


def test_a_window_larger_than_the_lattice_is_refused():
    with pytest.raises(ShapeError, match="expected extents of at least the window's"):
        window_starts([4, 9, 9], [5, 5, 5], 0.5)


def test_weights_peak_in_the_middle_and_never_vanish():
    weights = gaussian_weights((7, 9, 15))
    assert weights.max() == weights[3, 4, 7] == 1
    assert weights.min() >= 1e-3
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))
    assert (blending_weights((7, 9, 16), "constant") == 1).all()


@pytest.mark.parametrize("window", [(16, 12, 10), (7, 9, 15), (64, 2, 1)])
def test_weights_are_those_of_monai(window):
    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(gaussian_weights(window), theirs, atol=1e-6, rtol=1e-4)


def test_the_plain_form_agrees_with_monai_where_the_window_positions_coincide():
    network, window = Local(), (8, 8, 8)
    image = image_of((24, 16, 32))
    x = image.whole()
    with torch.inference_mode():
        expected = sliding_window_inference(
            x[None], window, 2, network, overlap=0.5, roi_weight_map=gaussian_weights(window)
        )[0]
        found = sliding_window_logits(Group((network,), image, window), x, batch=2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(extents, shares, st.floats(0, 0.75), st.integers(1, 5))
def test_a_network_without_context_answers_as_if_there_were_no_windows(
    shape, share, overlap, batch
):
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 1).eval()
    image = image_of(shape)
    with torch.inference_mode():
        expected = network(image.whole()[None])[0]
        group = Group((network,), image, window_of(image, share), overlap)
        found = sliding_window_logits(group, image.whole(), batch=batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
