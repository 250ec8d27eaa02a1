"""Presets, the choice between space and slices, and sides that mirroring would swap."""

import pytest
from pydicom.sr.codedict import codes

from medseg.core import Code, Label, LabelScheme
from medseg.core.orientation import SLICES_LAST
from medseg.errors import ConfigError
from medseg.training.augmentation import (
    PRESETS,
    AugmentationSettings,
    check_flips,
    check_mirror_axes,
    left_right_axis,
    mirrored_classes,
    preset,
    spatial_plan,
)
from medseg.training.settings import parse_settings
from tests.tiny_dataset import tiny_settings

NNUNET = preset("nnunet")


def test_the_preset_nnunet_has_the_figures_of_nnunets_trainer():
    found = NNUNET.model_dump()
    expected = {
        "rotation_probability": 0.2,
        "rotation_deg": 30,
        "rotation_in_plane_deg": 180,
        "rotation_elongated_deg": 15,
        "scaling_probability": 0.2,
        "scaling": (0.7, 1.4),
        "noise_probability": 0.1,
        "noise_std": (0, 0.1),
        "blur_probability": 0.2,
        "blur_channel_probability": 0.5,
        "blur_sigma_vox": (0.5, 1),
        "brightness_probability": 0.15,
        "brightness": (0.75, 1.25),
        "contrast_probability": 0.15,
        "contrast": (0.75, 1.25),
        "low_resolution_probability": 0.25,
        "low_resolution_channel_probability": 0.5,
        "low_resolution_zoom": (0.5, 1),
        "gamma_inverted_probability": 0.1,
        "gamma_probability": 0.3,
        "gamma": (0.7, 1.5),
        "flip_probability": 0.5,
        "flip_axes": (0, 1, 2),
    }
    assert {key: found[key] for key in expected} == expected


def test_a_preset_named_in_a_run_is_written_out_in_full():
    run = parse_settings(tiny_settings(augmentation="light"), where="run.yaml")
    assert run.training.augmentation == PRESETS["light"]
    written = run.to_yaml()
    assert all(f"\n    {key}:" in written for key in AugmentationSettings.model_fields)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"one of light, nnunet, none \(nearest: nnunet\)"):
        preset("nnunett")


def test_settings_are_checked_when_some_are_replaced():
    assert NNUNET.replaced(gamma=(0.9, 1.1)).gamma == (0.9, 1.1)
    with pytest.raises(ValueError, match="the smaller number first"):
        NNUNET.replaced(gamma=(1.1, 0.9))


@pytest.mark.parametrize(
    ("patch", "spacing", "across", "limits"),
    [
        ((128, 128, 128), (1, 1, 1), None, (30, 30, 30)),
        ((96, 96, 32), (1, 1, 1), None, (30, 30, 30)),  # three times is not more than three times
        ((96, 96, 31), (1, 1, 1), 2, (0, 0, 180)),
        ((96, 96, 64), (1, 1, 3.5), 2, (0, 0, 180)),
        ((20, 256, 224), (9, 1, 1), 0, (180, 0, 0)),
        ((1, 96, 128), (5, 1, 1), 0, (180, 0, 0)),
        ((96, 1, 160), (1, 1, 1), 1, (0, 15, 0)),
        ((1, 1, 64), (1, 1, 1), 0, (0, 0, 0)),
    ],
)
def test_thick_slices_flat_patches_and_single_slices_are_turned_in_plane(
    patch, spacing, across, limits
):
    plan = spatial_plan(NNUNET, patch, spacing)
    assert (plan.across, plan.limits_deg) == (across, limits)


def test_dummy_2d_can_be_forced_and_forbidden():
    assert spatial_plan(NNUNET.replaced(dummy_2d="always"), (64,) * 3, (1, 1.2, 1)).across == 1
    assert spatial_plan(NNUNET.replaced(dummy_2d="never"), (9, 90, 90), (9, 1, 1)).across is None


def test_sides_are_found_by_code_and_by_name():
    left = Code("7771000", "SCT", "Left")
    right = Code(codes.SCT.Right.value, "SCT", "Right")
    scheme = LabelScheme(
        "mixed",
        (
            Label(1, "RightParotid", (0, 0, 0)),
            Label(2, "LeftParotid", (0, 0, 0)),
            Label(3, "kidney a", (0, 0, 0), modifier=left),
            Label(4, "kidney  a", (0, 0, 0), modifier=right),
            Label(9, "adrenal gland, left", (0, 0, 0)),
            Label(11, "bright spot", (0, 0, 0)),
            Label(12, "left and right lung", (0, 0, 0)),
        ),
    )
    assert mirrored_classes(scheme) == {1: 2, 2: 1, 3: 4, 4: 3, 5: None}


def test_chambers_of_the_heart_are_no_mirror_images_but_those_of_the_brain_are():
    names = {1: "left ventricle", 2: "right ventricle"}
    assert mirrored_classes(LabelScheme.plain("heart", names)) == {}
    brain = {1: "left lateral ventricle", 2: "right lateral ventricle"}
    assert mirrored_classes(LabelScheme.plain("brain", brain)) == {1: 2, 2: 1}


PAIR = LabelScheme.plain("pair", {1: "left kidney", 2: "right kidney"})
ALONE = LabelScheme.plain("alone", {1: "left kidney"})


def test_mirroring_left_and_right_is_refused_where_structures_have_a_side():
    with pytest.raises(ConfigError, match="no axis between left and right, since 'left kidney'"):
        check_flips(NNUNET, PAIR, "RAS")
    with pytest.raises(ConfigError, match=r"'left kidney' alone"):
        check_flips(NNUNET.replaced(flip_laterality="swap"), ALONE, "RAS")
    with pytest.raises(ConfigError, match="orientation slices_last"):
        check_flips(NNUNET.replaced(flip_laterality="swap"), PAIR, SLICES_LAST)


def test_mirroring_is_accepted_where_it_teaches_nothing_wrong():
    check_flips(NNUNET, LabelScheme.plain("none", {1: "liver"}), "RAS")
    check_flips(NNUNET.replaced(flip_axes=(0, 1)), PAIR, "SPL")
    check_flips(NNUNET.replaced(flip_probability=0.0), PAIR, "RAS")
    check_flips(NNUNET.replaced(flip_laterality="swap"), PAIR, "RAS")
    check_flips(NNUNET.replaced(flip_laterality="allow"), ALONE, "RAS")
    assert left_right_axis("SPL") == 2
    assert left_right_axis(SLICES_LAST) is None


LIVER = LabelScheme.plain("none", {1: "liver"})


def test_prediction_may_mirror_what_training_mirrors_and_less():
    check_mirror_axes(NNUNET, LIVER, "RAS", ("i", "j", "k"))
    check_mirror_axes(NNUNET.replaced(flip_axes=(1, 2)), PAIR, "RAS", ("k",))
    check_mirror_axes(NNUNET.replaced(flip_laterality="swap"), PAIR, "RAS", ("j", "k"))
    check_mirror_axes(NNUNET.replaced(flip_laterality="swap"), LIVER, "RAS", ("i",))
    check_mirror_axes(NNUNET.replaced(flip_laterality="allow"), PAIR, "RAS", ("i",))
    check_mirror_axes(NNUNET.replaced(flip_probability=0.0), LIVER, "RAS", ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flip_axes": (0, 2)}, r"axes that training mirrors: i, k, found j;"),
        ({"flip_probability": 0.0}, r"axes that training mirrors: none, found i, j;"),
        ({"flip_laterality": "swap"}, r"since flip_laterality is swap.* found i"),
    ],
)
def test_prediction_that_would_mirror_what_training_never_showed_is_refused(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_mirror_axes(NNUNET.replaced(**change), PAIR, "RAS", ("i", "j"))
    assert caught.value.code == "mirror-axes"
