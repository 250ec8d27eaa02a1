"""Every transform against a law or an outsider; patches against the place they came from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import AdjustContrast
from scipy import ndimage

from medseg.core import LabelScheme
from medseg.data.prepared import MemoryCase
from medseg.errors import ConfigError
from medseg.models.card import Channel, InputSettings, ZScore
from medseg.training.augmentation import PRESETS, AugmentationSettings, preset
from medseg.training.transforms import (
    IMAGE,
    LABEL,
    RandBlur,
    RandBrightness,
    RandContrast,
    RandGamma,
    RandLowResolution,
    RandMirror,
    RandNoise,
    RandPatch,
    ReadCase,
    plain_tensors,
    training_transforms,
)

NNUNET = preset("nnunet")
ONLY_PLACES = AugmentationSettings(rotation_probability=1.0, scaling_probability=1.0)


@pytest.fixture(autouse=True)
def without_meta():
    with plain_tensors():
        yield


def made_case(shape=(20, 22, 18), *, spacing=(1.0, 1.0, 1.0), image=None, labels=None):
    if labels is None:
        labels = np.zeros(shape, np.uint8)
        labels[4:9, 5:12, 6:12] = 1
        labels[12:15, 12:16, 8:13] = 2
    x = labels[None].astype(np.float32) if image is None else image
    places = tuple(np.argwhere(labels == value).astype(np.int32) for value in (1, 2))
    return MemoryCase("made", x, labels, spacing, places, {})


def patches(case, augmentation, *, patch=(12, 12, 12), count=20, forced=False, seed=0, zero=()):
    draw = RandPatch(
        patch, samples=1, foreground_share=0, augmentation=augmentation, zero_channels=zero
    )
    draw.set_random_state(seed=seed)
    return [draw({"case": case, "forced": (forced,)}) for _ in range(count)]


def test_an_unturned_patch_is_a_copy_of_its_place_and_zeros_beyond_the_image():
    numbered = np.arange(1, 20 * 22 * 18 + 1, dtype=np.float32).reshape(1, 20, 22, 18)
    padded = np.pad(numbered, [(0, 0)] + [(12, 12)] * 3)
    case = made_case(image=numbered)
    reaching = AugmentationSettings(foreground_reach=0.5)
    starts = set()
    for one in patches(case, reaching, forced=True, count=40):
        found = one[IMAGE].numpy()
        assert not np.shares_memory(found, numbered)
        inside = np.argwhere(found > 0)[0]
        start = np.argwhere(padded == found[tuple(inside)])[0] - inside
        _, i, j, k = start
        np.testing.assert_array_equal(found, padded[:, i : i + 12, j : j + 12, k : k + 12])
        starts.add((i, j, k))
    assert min(min(start) for start in starts) < 12, "some begin before the case"


def test_turned_image_and_labels_are_the_same_thing():
    """An image that equals its label map still does, up to the half voxel of interpolation."""
    for one in patches(made_case(), ONLY_PLACES, count=30):
        x, label = one[IMAGE][0], one[LABEL][0]
        inner = (x == 1) | (x == 0) | (x == 2)
        assert torch.equal(x[inner].round().to(torch.uint8), label[inner])
        two_classes = made_case(labels=(made_case().labels_ijk > 0).astype(np.uint8))
    for one in patches(two_classes, ONLY_PLACES, count=30):
        x, label = one[IMAGE][0], one[LABEL][0]
        clear = (x - 0.5).abs() > 1e-4
        assert torch.equal((x > 0.5)[clear], (label == 1)[clear])


def test_a_turned_patch_is_what_scipy_makes_of_the_whole_case():
    """No border is made up: voxels beyond the unturned patch come from the case."""
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.normal(size=(30, 32, 28)), 1.5).astype(np.float32)
    case = made_case((30, 32, 28), image=smooth[None], spacing=(1.0, 1.5, 2.0))
    draw = RandPatch((14, 12, 10), samples=1, foreground_share=0, augmentation=ONLY_PLACES)
    for seed in range(6):
        draw.set_random_state(seed=seed)
        found = draw({"case": case, "forced": (False,)})[IMAGE][0].numpy()
        draw.set_random_state(seed=seed)
        start, _ = draw._start(case, forced=False)
        linear = draw._linear((30.0,) * 3, None, case.spacing_mm)
        half = (np.array((14, 12, 10)) - 1) / 2
        offset = start + half - linear @ half
        expected = ndimage.affine_transform(
            smooth, linear, offset, (14, 12, 10), order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
        in_mm = np.diag([1.0, 1.5, 2.0]) @ linear @ np.diag([1 / 1.0, 1 / 1.5, 1 / 2.0])
        gram = in_mm.T @ in_mm
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(3), atol=1e-9)
        assert 0.7 <= np.sqrt(gram[0, 0]) <= 1.4


def test_thick_slices_are_never_mixed():
    """Every slice holds its number: a patch of whole numbers has kept its slices apart."""
    image = np.broadcast_to(np.arange(1, 11, dtype=np.float32), (1, 64, 64, 10))
    labels = np.zeros((64, 64, 10), np.uint8)
    labels[30:34, 30:34, 2:8] = 1
    case = made_case(image=image, labels=labels, spacing=(1.0, 1.0, 6.0))
    strong = AugmentationSettings(
        rotation_probability=1.0,
        scaling_probability=1.0,
        blur_probability=1.0,
        blur_channel_probability=1.0,
        low_resolution_probability=1.0,
        low_resolution_channel_probability=1.0,
    )
    read = reader(spacing=(1.0, 1.0, 6.0))
    transform = training_transforms(
        read, (10, 10, 6), samples_per_case=1, foreground_share=0, augmentation=strong
    )
    for seed in range(20):
        transform.set_random_state(seed=seed)
        x = transform({"case": case, "forced": (True,)})[IMAGE][0]
        middle = x[3:7, 3:7].reshape(16, 6)
        centre = middle.mean(0)
        assert torch.allclose(middle, centre.expand(16, 6), atol=1e-4)
        assert torch.allclose(centre, centre.round(), atol=1e-4)
        assert torch.equal(centre.round().diff(), torch.ones(5))


def test_a_structure_that_was_asked_for_is_in_the_patch_however_it_is_turned():
    labels = np.zeros((20, 22, 18), np.uint8)
    labels[0:2, 20:22, 0:2] = 1  # in a corner
    case = made_case(labels=labels)
    for augmentation in (AugmentationSettings(), ONLY_PLACES, NNUNET):
        for one in patches(case, augmentation, forced=True, count=40):
            assert one[LABEL].any()


def test_structures_are_drawn_alike_however_large_they_are():
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[:15], labels[28, 28, 28] = 1, 2
    found = patches(
        made_case(labels=labels), AugmentationSettings(), forced=True, count=400, patch=(8, 8, 8)
    )
    share = np.mean([bool((one[LABEL] == 2).any()) for one in found])
    assert 0.42 < share < 0.58


def test_a_case_without_structures_gives_patches_from_anywhere():
    case = made_case(labels=np.zeros((20, 22, 18), np.uint8))
    assert len(patches(case, AugmentationSettings(), forced=True)) == 20


def test_a_small_case_lies_in_the_middle_as_prediction_has_it():
    case = made_case((6, 7, 8), labels=np.ones((6, 7, 8), np.uint8))
    (one,) = patches(case, AugmentationSettings(), count=1)
    assert torch.equal(one[LABEL][0, 3:9, 2:9, 2:10], torch.ones(6, 7, 8, dtype=torch.uint8))
    assert int(one[LABEL].sum()) == 6 * 7 * 8


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), spacing=st.sampled_from([(1, 1, 1), (1, 1, 5), (3, 1, 2)]))
def test_patches_have_their_extents_and_only_labels_of_the_case(seed, spacing):
    with plain_tensors():
        case = made_case(spacing=spacing)
        for one in patches(case, NNUNET, seed=seed, count=3, forced=bool(seed % 2)):
            assert one[IMAGE].shape == (1, 12, 12, 12)
            assert one[LABEL].shape == (1, 12, 12, 12)
            assert bool(torch.isfinite(one[IMAGE]).all())
            assert set(one[LABEL].unique().tolist()) <= {0, 1, 2}


def sample(seed=0, channels=2, shape=(10, 11, 12), across=None):
    source = torch.Generator().manual_seed(seed)
    return {IMAGE: torch.randn((channels, *shape), generator=source) + 1, "across": across}


INTENSITY = {
    "noise": lambda p: RandNoise(p, (0.05, 0.1)),
    "blur": lambda p: RandBlur(p, 1.0, (0.5, 1.0)),
    "brightness": lambda p: RandBrightness(p, 1.0, (0.75, 1.25)),
    "contrast": lambda p: RandContrast(p, 1.0, (0.75, 1.25)),
    "low resolution": lambda p: RandLowResolution(p, 1.0, (0.5, 0.8)),
    "gamma": lambda p: RandGamma(p, 1.0, (0.7, 1.5)),
    "inverted gamma": lambda p: RandGamma(p, 1.0, (0.7, 1.5), inverted=True),
    "mirror": lambda p: RandMirror(p, (1,)),
}


def applied(transform, seed, **more):
    transform.set_random_state(seed=seed)
    item = {LABEL: torch.zeros(1, 10, 11, 12, dtype=torch.uint8), **sample(**more)}
    return transform(item)[IMAGE]


@pytest.mark.parametrize("name", INTENSITY)
def test_transforms_happen_as_often_as_asked_and_follow_their_seed(name):
    before = sample()[IMAGE]
    assert torch.equal(applied(INTENSITY[name](0.0), 1), before)
    changed = [not torch.equal(applied(INTENSITY[name](0.3), n), before) for n in range(400)]
    assert 0.22 < np.mean(changed) < 0.38  # three and a half standard errors
    always = INTENSITY[name](1.0)
    assert torch.equal(applied(always, 5), applied(INTENSITY[name](1.0), 5))
    if name != "mirror":
        assert not torch.equal(applied(always, 5), applied(always, 6))


NEUTRAL = {
    "noise": RandNoise(1.0, (0.0, 0.0)),
    "blur": RandBlur(1.0, 1.0, (1e-3, 1e-3)),
    "brightness": RandBrightness(1.0, 1.0, (1.0, 1.0)),
    "contrast": RandContrast(1.0, 1.0, (1.0, 1.0)),
    "low resolution": RandLowResolution(1.0, 1.0, (1.0, 1.0)),
    "gamma": RandGamma(1.0, 1.0, (1.0, 1.0)),
    "inverted gamma": RandGamma(1.0, 1.0, (1.0, 1.0), inverted=True),
    "mirror": RandMirror(1.0, ()),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_no_strength_nothing_changes(name):
    torch.testing.assert_close(applied(NEUTRAL[name], 3), sample()[IMAGE], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["blur", "brightness", "contrast", "low resolution", "gamma"])
def test_channels_are_changed_apart(name):
    alike = sample()[IMAGE][:1].expand(2, -1, -1, -1)
    transform = INTENSITY[name](1.0)
    transform.set_random_state(seed=2)
    both = transform({IMAGE: alike.clone()})[IMAGE]
    assert not torch.equal(both[0], both[1])


def test_a_channel_probability_leaves_channels_out():
    transform = RandBlur(1.0, 0.5, (0.5, 1.0))
    before = sample()[IMAGE]
    share = np.mean(
        [
            [not torch.equal(x, y) for x, y in zip(applied(transform, n), before, strict=True)]
            for n in range(200)
        ]
    )
    assert 0.4 < share < 0.6


def test_noise_has_the_deviation_that_was_drawn_and_is_one_for_all_channels():
    transform = RandNoise(1.0, (0.08, 0.08))
    before = sample(shape=(30, 30, 30))[IMAGE]
    after = applied(transform, 0, shape=(30, 30, 30))
    assert (after - before).std(dim=(1, 2, 3)).tolist() == pytest.approx([0.08] * 2, rel=0.03)
    assert abs(float((after - before).mean())) < 0.002


def test_blur_is_scipys_gaussian_and_leaves_the_rim_of_an_even_image_alone():
    transform = RandBlur(1.0, 1.0, (0.8, 0.8))
    before = sample()[IMAGE][0].numpy()
    after = applied(transform, 0)[0].numpy()
    # radius 3 for this width
    expected = ndimage.gaussian_filter(before, 0.8, mode="nearest", truncate=3 / 0.8)
    np.testing.assert_allclose(after, expected, atol=1e-5)
    even = transform({IMAGE: torch.ones(1, 5, 6, 7)})[IMAGE]
    torch.testing.assert_close(even, torch.ones(1, 5, 6, 7))


def test_contrast_keeps_mean_direction_and_range():
    transform = RandContrast(1.0, 1.0, (1.25, 1.25))
    before, after = sample()[IMAGE], applied(transform, 0)
    for x, y in zip(before, after, strict=True):
        assert float(y.max()) <= float(x.max())
        assert float(y.min()) >= float(x.min())
        stretched = ((x - x.mean()) * 1.25 + x.mean()).clamp(x.min(), x.max())
        torch.testing.assert_close(y, stretched)


def test_gamma_is_monais_with_mean_and_deviation_kept():
    before = sample()[IMAGE]
    for inverted in (False, True):
        after = applied(RandGamma(1.0, 1.0, (1.3, 1.3), inverted=inverted), 0)
        for x, y in zip(before, after, strict=True):
            expected = AdjustContrast(1.3, invert_image=inverted, retain_stats=True)(x)
            torch.testing.assert_close(y, expected)
            assert float(y.mean()) == pytest.approx(float(x.mean()), abs=1e-4)
            assert float(y.std()) == pytest.approx(float(x.std()), rel=1e-3)


def test_gamma_leaves_an_even_image_alone():
    even = torch.full((1, 4, 4, 4), 2.0)
    assert torch.equal(RandGamma(1.0, 1.0, (0.7, 1.5))({IMAGE: even.clone()})[IMAGE], even)


def test_low_resolution_at_half_keeps_every_second_voxel_of_a_step():
    ramp = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 12, 12).clone()
    transform = RandLowResolution(1.0, 1.0, (0.5, 0.5))
    after = transform({IMAGE: ramp.clone()})[IMAGE]
    assert after.shape == ramp.shape
    # nearest takes one of two neighbours, linear interpolation is exact on a ramp but at its ends
    difference = (after - ramp)[0, 2:-2]
    torch.testing.assert_close(difference, difference.mean().expand_as(difference))
    flat = torch.rand(1, 12, 12, 12)
    thick = RandLowResolution(1.0, 1.0, (0.5, 0.5))({IMAGE: flat.clone(), "across": 2})[IMAGE]
    for k in range(12):
        alone = RandLowResolution(1.0, 1.0, (0.5, 0.5))(
            {IMAGE: flat[..., k : k + 1].clone(), "across": 2}
        )[IMAGE]
        torch.testing.assert_close(thick[..., k : k + 1], alone)


def test_factors_are_below_and_above_one_equally_often():
    transform = RandGamma(1.0, 1.0, (0.7, 1.5))
    transform.set_random_state(seed=0)
    drawn = np.array([transform.factor() for _ in range(2000)])
    assert 0.7 <= drawn.min() < 0.72
    assert 1.48 < drawn.max() <= 1.5
    assert 0.46 < (drawn < 1).mean() < 0.54


def test_mirroring_mirrors_both_and_twice_is_none():
    item = {IMAGE: torch.rand(2, 4, 5, 6), LABEL: torch.randint(0, 3, (1, 4, 5, 6))}
    once = RandMirror(1.0, (0, 2))(item)
    assert torch.equal(once[IMAGE], item[IMAGE].flip(1, 3))
    assert torch.equal(once[LABEL], item[LABEL].flip(1, 3))
    twice = RandMirror(1.0, (0, 2))(once)
    assert torch.equal(twice[IMAGE], item[IMAGE])


def test_left_and_right_change_places_with_the_left_right_axis_alone():
    label = torch.tensor([1, 2, 3, 255], dtype=torch.uint8).reshape(1, 4, 1, 1)
    item = {IMAGE: label.float(), LABEL: label}
    for axes, expected in (
        ((0,), [255, 3, 1, 2]),
        ((1,), [1, 2, 3, 255]),
        ((0, 1), [255, 3, 1, 2]),
    ):
        transform = RandMirror(1.0, axes, left_right=0, swapped={1: 2, 2: 1})
        found = transform(item)[LABEL]
        assert found.flatten().tolist() == expected
        assert found.dtype == torch.uint8


def reader(channels=("T1",), *, nonzero=False, names=None, spacing=(1.0, 1.0, 1.0)):
    inputs = InputSettings(
        channels=tuple(
            Channel(name=name, normalisation=ZScore(nonzero_only=nonzero)) for name in channels
        ),
        spacing_mm=spacing,
        window_ijk=(12, 12, 12),
    )
    return ReadCase(inputs, LabelScheme.plain("made", names or {1: "one", 2: "two"}))


def test_zeros_of_skull_stripped_images_stay_zero():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 20, 22, 18)).astype(np.float32)
    image[:, :, 11:] = 0
    strong = NNUNET.replaced(
        noise_probability=1.0, gamma_probability=1.0, rotation_probability=0, scaling_probability=0
    )
    transform = training_transforms(
        reader(nonzero=True),
        (16, 16, 16),
        samples_per_case=1,
        foreground_share=0,
        augmentation=strong.replaced(flip_probability=0.0),
    )
    transform.set_random_state(seed=0)
    found = transform({"case": made_case(image=image), "forced": (False,)})
    assert set(found) == {IMAGE, LABEL, "id"}
    zero = found[IMAGE] == 0
    assert zero.float().mean() > 0.2
    assert bool((zero == zero[:, :1, :, :1]).all()), "whole planes of zeros, and nothing else"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_draw_patches_that_depend_on_the_seed_alone(name):
    transform = training_transforms(
        reader(), (12, 12, 12), samples_per_case=2, foreground_share=0.5, augmentation=PRESETS[name]
    )
    drawn = []
    for seed in (1, 2, 1):
        transform.set_random_state(seed=seed)
        drawn.append(transform({"case": made_case(), "forced": (True, False)}))
    assert all(torch.equal(a[IMAGE], b[IMAGE]) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert any(not torch.equal(a[IMAGE], b[IMAGE]) for a, b in zip(*drawn[:2], strict=True))


def test_training_refuses_that_prediction_mirrors_what_it_does_not():
    inputs = reader().inputs.model_copy(update={"mirror_axes": ("j",)})
    read = ReadCase(inputs, LabelScheme.plain("made", {1: "one"}))
    with pytest.raises(ConfigError, match=r"inputs.mirror_axes: .*training mirrors: i, k"):
        training_transforms(
            read,
            (12, 12, 12),
            samples_per_case=1,
            foreground_share=0,
            augmentation=NNUNET.replaced(flip_axes=(0, 2)),
        )


def test_training_refuses_to_mirror_sides():
    read = reader(names={1: "left kidney", 2: "right kidney"})
    with pytest.raises(ConfigError, match="no axis between left and right"):
        training_transforms(
            read, (12, 12, 12), samples_per_case=1, foreground_share=0, augmentation=NNUNET
        )
