"""Plans are pure: laws over all of them, nnU-Net's published plans, and cases on paper."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import LabelScheme
from medseg.data.fingerprint import CaseGrid, ChannelFacts, ClassFacts, Fingerprint
from medseg.data.layouts.transunet import SCALED_HU
from medseg.errors import ConfigError, ResourceError
from medseg.models.card import ClipZScore, ZScore
from medseg.models.table import NETWORKS
from medseg.training.augmentation import PRESETS
from medseg.training.commented_yaml import commented_yaml
from medseg.training.plan_candidates import candidates, sizes_of
from medseg.training.plan_geometry import choose_geometry, pooling_stages, shared_levels
from medseg.training.planning import DataChoice, Planner
from medseg.training.settings import load_settings
from pipelines.training_checks import complete_settings

DATA = DataChoice("data/Made")


def fingerprint(
    shapes: Sequence[tuple[int, int, int]] = ((36, 50, 35),) * 40,
    spacings_mm: Sequence[tuple[float, float, float]] = ((1.0, 1.0, 1.0),) * 40,
    *,
    labels: dict[int, str] | None = None,
    modality: str = "MR",
    nonzero: float = 1.0,
    share: float = 0.05,
) -> Fingerprint:
    scheme = LabelScheme.plain("made", labels or {1: "ball", 2: "rod"})
    cases = tuple(
        CaseGrid(f"case_{number:02d}", shape, spacing, nonzero)
        for number, (shape, spacing) in enumerate(zip(shapes, spacings_mm, strict=True))
    )
    voxels = int(share * sum(prod(case.shape_ras) for case in cases) / len(scheme.labels))
    return Fingerprint(
        dataset="Made",
        layout="msd",
        licence="CC0-1.0",
        sha256="0",
        split_source="all of them",
        labels=scheme.to_dict(),
        regions=(),
        ignore_value=None,
        samples_per_case=10,
        seed=0,
        cases=cases,
        channels=(ChannelFacts("image", modality, 10.0, 4.0, -5.0, 9.0, 30.0),),
        classes=tuple(
            ClassFacts(one.value, one.name, len(cases), voxels, 1.0, 1.0, 1.0)
            for one in scheme.labels
        ),
    )


def planner(facts: Fingerprint, network: str = "neunet", place: str = "cpu", **more) -> Planner:
    made = Planner(facts, network, place, DATA, **more)
    # the law of memory is about the choice; what a network takes is measured elsewhere
    made.estimate = lambda position: 1000 + 4 * made.candidates[position].worked_voxels
    return made


# --- geometry ----------------------------------------------------------------------------


def test_axes_are_pooled_as_in_the_published_plans_of_nnu_net() -> None:
    """Strides and kernels of the released Synapse and BraTS plans (slices last here)."""
    synapse = pooling_stages((192, 192, 48), (0.75781, 0.75781, 3.0), 5)
    assert [stage.stride for stage in synapse] == [
        (1, 1, 1),
        (2, 2, 1),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 1),
    ]
    assert [stage.kernel for stage in synapse] == [(3, 3, 1), *[(3, 3, 3)] * 5]
    brats = pooling_stages((128, 128, 128), (1.0, 1.0, 1.0), 5)
    assert [stage.stride for stage in brats] == [(1, 1, 1), *[(2, 2, 2)] * 5]
    acdc = pooling_stages((96, 96, 10), (1.52344, 1.52344, 6.35), 5)
    assert [stage.stride for stage in acdc][:4] == [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert [stage.kernel for stage in acdc][:3] == [(3, 3, 1), (3, 3, 1), (3, 3, 3)]


@given(
    window=st.tuples(*[st.integers(1, 200)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 12)] * 3),
)
def test_no_axis_is_pooled_while_it_is_twice_as_coarse_as_the_finest_that_can_be(
    window, spacing
) -> None:
    extents, steps = list(window), list(spacing)
    for stage in pooling_stages(window, spacing, 5)[1:]:
        able = [n for n in range(3) if extents[n] >= 8]
        for axis in range(3):
            if stage.stride[axis] == 2:
                assert axis in able
                assert steps[axis] < 2 * min(steps[n] for n in able)
                extents[axis] /= 2
                steps[axis] *= 2


def test_the_spacing_is_the_median_and_finer_across_thick_slices() -> None:
    spacings = [(1.0, 1.0, 4.0 + number) for number in range(11)]
    thick = choose_geometry(fingerprint([(200, 200, 20)] * 11, spacings))
    assert thick.spacing_mm == (1.0, 1.0, 5.0)  # the 10th percentile of 4 to 14
    assert thick.thick_axis == 2
    deep = choose_geometry(fingerprint([(200, 200, 90)] * 11, spacings))
    assert deep.spacing_mm == (1.0, 1.0, 9.0)  # slices are thick, but as many as voxels are wide
    even = choose_geometry(fingerprint([(40, 40, 40)] * 3, [(1.0, 2.0, 1.5)] * 3))
    assert (even.spacing_mm, even.thick_axis) == ((1.0, 2.0, 1.5), None)
    asked = choose_geometry(fingerprint([(40, 40, 40)] * 3, [(1.0, 2.0, 1.5)] * 3), (2, 2, 3))
    assert asked.median_ijk == (20, 40, 20)


def test_slices_come_last_where_they_lie_across_different_axes() -> None:
    mixed = choose_geometry(
        fingerprint([(8, 90, 90), (90, 8, 90)] * 2, [(8.0, 1.0, 1.0), (1.0, 8.0, 1.0)] * 2)
    )
    assert mixed.orientation == "slices_last"
    assert mixed.spacing_mm == (1.0, 1.0, 8.0)
    alike = choose_geometry(fingerprint([(8, 90, 90)] * 2, [(8.0, 1.0, 1.0)] * 2))
    assert (alike.orientation, alike.thick_axis) == ("RAS", 0)


# --- candidates --------------------------------------------------------------------------

SHAPES = st.tuples(*[st.integers(6, 160)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 2.5, 6.0])] * 3)
NAMES = st.sampled_from(["neunet", "revunet", "qtseg"])
PLACES = st.sampled_from(["cpu", "cuda"])


@settings(max_examples=25, deadline=None)
@given(SHAPES, SPACINGS, NAMES, PLACES)
def test_windows_and_batches_only_ever_grow_and_none_is_larger_than_legal(
    shape, spacing, name, place
) -> None:
    geometry = choose_geometry(fingerprint([shape] * 12, [spacing] * 12))
    found = candidates(geometry, name, place, cases=12)
    assert found
    for less, more in pairwise(found):
        assert less.worked_voxels < more.worked_voxels
        assert all(a <= b for a, b in zip(less.patch_ijk, more.patch_ijk, strict=True))
    for one in found:
        assert one.batch >= 2
        for extent, least in zip(one.window_ijk, geometry.least_ijk, strict=True):
            # below half of a window an image is refused, and the smallest may not have been seen
            assert 1 <= extent <= max(1.5 * least, 8)
        if one.batch > 2:
            assert one.batch * prod(one.patch_ijk) <= 0.05 * geometry.voxels
    if NETWORKS[name].rank == 3:
        smallest = prod(found[0].window_ijk)
        assert prod(found[-1].window_ijk) <= max(sizes_of(place).window_voxels, smallest)


def test_a_window_is_as_long_in_all_directions_until_the_case_ends() -> None:
    geometry = choose_geometry(fingerprint([(200, 200, 40)] * 12, [(1.0, 1.0, 2.0)] * 12))
    windows = [one.window_ijk for one in candidates(geometry, "neunet", "cuda", cases=12)]
    for i, j, k in windows:
        if k < 40:  # not yet the whole case: in millimetres no side sticks out by two multiples
            assert max(i, j) - 2 * k <= 2 * 32


def test_the_hippocampus_gets_the_window_that_nnu_net_gives_it() -> None:
    facts = fingerprint([(36, 50, 35)] * 160, [(1.0, 1.0, 1.0)] * 160)
    best = planner(facts).plan(1e12).settings
    assert best.inputs.window_ijk == (40, 56, 40)
    assert best.network.settings["strides"] == [[1, 1, 1], *[[2, 2, 2]] * 3]


def test_thick_slices_stay_unpooled_until_voxels_are_cubes() -> None:
    facts = fingerprint([(220, 240, 9)] * 20, [(1.5, 1.5, 10.0)] * 20)
    settings_ = planner(facts, place="cuda").plan(1e12).settings
    across = [stride[2] for stride in settings_.network.settings["strides"]]
    assert across[:3] == [1, 1, 1]
    assert settings_.inputs.thick_slices == "nearest"
    assert settings_.training.augmentation.dummy_2d == "always"
    assert shared_levels((160, 160, 12), 2, 5) == 3
    note = planner(facts, "revunet").plan(1e12).notes[0]
    assert note == "revunet halves all axes alike; the thick slices allow it 3 levels"


@pytest.mark.parametrize(
    ("facts", "network", "reason"),
    [
        (fingerprint(), "qtseg", "turn within slices: the network is 2D"),
        (
            fingerprint([(220, 240, 9)] * 20, [(1.5, 1.5, 10.0)] * 20),
            "neunet",
            "turn within slices: slices are thick, 10 mm where voxels are 1.5 mm wide",
        ),
        (
            fingerprint([(96, 96, 16)] * 20, [(1.0, 1.0, 1.0)] * 20),
            "neunet",
            "turn within slices: the patch is flat, 16 voxels to ",
        ),
        (fingerprint(), "neunet", "turn in space: neither slices nor patch are more than three "),
    ],
)
def test_the_reason_for_turns_within_slices_is_the_one_that_held(facts, network, reason) -> None:
    plan = planner(facts, network).plan(1e12)
    assert plan.reasons["training.augmentation.dummy_2d"].startswith(reason)
    turned = plan.settings.training.augmentation.dummy_2d
    assert turned == ("never" if reason.startswith("turn in space") else "always")


def test_a_place_of_the_dataset_is_called_what_it_is() -> None:
    for root, words in (("data/Made", "from the current directory"), ("/data", "a place on this")):
        made = Planner(fingerprint(), "neunet", "cpu", replace(DATA, root=root))
        made.estimate = lambda position: 1000
        assert made.plan(1e12).reasons["data.root"].startswith(words)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SPACINGS, NAMES, PLACES, st.floats(1e4, 1e9), st.floats(1, 50))
def test_more_memory_never_gives_a_smaller_window_or_batch(
    shape, spacing, name, place, memory, factor
) -> None:
    made = planner(fingerprint([shape] * 12, [spacing] * 12), name, place)
    least = made.estimate(0)
    less, more = made.plan(least + memory), made.plan(least + factor * memory)
    a, b = made.candidates[less.position], made.candidates[more.position]
    assert prod(a.window_ijk) <= prod(b.window_ijk)
    assert a.worked_voxels <= b.worked_voxels
    assert less.estimate_bytes <= least + memory
    top = less.position == len(made.candidates) - 1
    assert top or made.estimate(less.position + 1) > least + memory


def test_where_nothing_fits_the_error_says_what_would() -> None:
    made = planner(fingerprint())
    with pytest.raises(ResourceError, match=r"expected at least 0\.01 GB for the smallest step"):
        made.plan(10)
    with pytest.raises(ResourceError, match=r"plan a coarser --spacing or a smaller --batch"):
        made.plan(1e12, below=0)
    with pytest.raises(ConfigError, match=r"network: expected one of macmd, neunet"):
        Planner(fingerprint(), "nonet", "cpu", DATA)


# --- the rest of a run -------------------------------------------------------------------


def test_ct_is_clipped_at_the_percentiles_of_its_structures_and_mr_is_not() -> None:
    (ct,) = planner(fingerprint(modality="CT")).plan(1e12).settings.inputs.channels
    assert ct.normalisation == ClipZScore(lower=-5.0, upper=30.0, mean=10.0, std=4.0)
    for nonzero, only in ((1.0, False), (0.76, False), (0.5, True)):
        (mr,) = planner(fingerprint(nonzero=nonzero)).plan(1e12).settings.inputs.channels
        assert mr.normalisation == ZScore(nonzero_only=only)
    (ct,) = planner(fingerprint(modality="CT", nonzero=0.5)).plan(1e12).settings.inputs.channels
    assert isinstance(ct.normalisation, ClipZScore)


def test_the_plan_says_what_transunets_zero_and_one_stand_for_and_of_others_nothing() -> None:
    facts = fingerprint(modality="CT")
    plan = planner(replace(facts, layout="transunet")).plan(1e12)
    (channel,) = plan.settings.inputs.channels
    assert channel.scaled_hu == SCALED_HU == (-125.0, 275.0)
    assert "TransUNet's preprocessing" in plan.reasons["inputs.channels.0.scaled_hu"]
    written = yaml.safe_load(commented_yaml(plan.content, plan.reasons))
    assert written["inputs"]["channels"][0]["scaled_hu"] == [-125.0, 275.0]
    other = planner(facts).plan(1e12)
    assert other.settings.inputs.channels[0].scaled_hu is None
    assert "inputs.channels.0.scaled_hu" not in other.reasons


@pytest.mark.parametrize(
    ("labels", "axes"),
    [
        ({1: "liver", 2: "spleen"}, (0, 1, 2)),
        ({1: "left kidney", 2: "right kidney"}, (1, 2)),
        ({1: "left kidney"}, (1, 2)),
        ({1: "Anterior hippocampus", 2: "Posterior hippocampus"}, (0, 2)),
        ({1: "upper jaw left", 2: "lower jaw left"}, (1,)),
        ({1: "inferior vena cava"}, (0, 1, 2)),
        ({1: "left ventricle", 2: "right ventricle"}, (0, 1, 2)),
    ],
)
def test_no_axis_is_mirrored_between_structures_that_only_a_side_tells_apart(labels, axes) -> None:
    settings_ = planner(fingerprint(labels=labels), place="cuda").plan(1e12).settings
    augmentation = settings_.training.augmentation
    assert (augmentation.flip_axes, augmentation.flip_probability) == (axes, 0.5)
    assert settings_.inputs.mirror_axes == tuple("ijk"[axis] for axis in axes)


def test_the_few_steps_of_a_cpu_are_not_spent_on_mirrored_and_strongly_turned_cases() -> None:
    settings_ = planner(fingerprint(labels={1: "left kidney"})).plan(1e12).settings
    augmentation = settings_.training.augmentation
    assert augmentation.flip_probability == 0
    assert augmentation.flip_axes == (1, 2), "who turns it on gets the axes that may be mirrored"
    assert settings_.inputs.mirror_axes == ()
    light = PRESETS["light"].replaced(dummy_2d=augmentation.dummy_2d, flip_axes=(1, 2))
    assert augmentation == light


@pytest.mark.parametrize(("share", "forced"), [(0.0005, 0.67), (0.005, 0.5), (0.05, 0.33)])
def test_rare_structures_are_asked_for_more_often(share, forced) -> None:
    plan = planner(fingerprint([(90, 90, 90)] * 3, [(1.0, 1.0, 1.0)] * 3, share=share)).plan(1e12)
    assert plan.settings.training.foreground_share == forced


def test_one_case_gives_several_patches_of_itself() -> None:
    training = planner(fingerprint([(64, 64, 64)], [(1.0, 1.0, 1.0)])).plan(1e12).settings.training
    assert (training.batch_size, training.samples_per_case) == (1, 2)


def test_a_structure_that_no_case_shows_is_noted() -> None:
    facts = fingerprint()
    first, second = facts.classes
    without = replace(facts, classes=(first, replace(second, cases=0, voxels=0)))
    assert planner(without).plan(1e12).notes == (
        "no training case shows 'rod': it cannot be learned",
    )


def test_files_that_have_lost_their_voxel_size_are_suspected() -> None:
    lost = planner(fingerprint([(220, 240, 9)] * 4, [(1.0, 1.0, 1.0)] * 4)).plan(1e12)
    assert "the files may have lost the voxel size" in lost.notes[0]
    for spacing in ((1.0, 1.0, 8.0), (1.5, 1.5, 1.5)):
        assert not planner(fingerprint([(220, 240, 9)] * 4, [spacing] * 4)).plan(1e12).notes


def test_regions_become_the_outputs() -> None:
    region = {"name": "all", "members": [1, 2], "writes": 1}
    facts = replace(fingerprint(), regions=(region,))
    plan = planner(facts).plan(1e12)
    assert plan.settings.regions is not None
    assert complete_settings(plan.settings).network.settings["out_channels"] == 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_the_plan_of_every_network_is_a_complete_run_as_written(name, place, tmp_path) -> None:
    plan = planner(fingerprint(), name, place).plan(1e12)
    path = tmp_path / "plan.yaml"
    path.write_text(commented_yaml(plan.content, plan.reasons))
    assert complete_settings(load_settings(path)) == complete_settings(plan.settings)
    assert plan.settings.name == f"{name}_made"


def test_the_estimate_counts_the_tensors_of_a_step() -> None:
    made = Planner(fingerprint([(16, 16, 16)] * 4, [(1.0, 1.0, 1.0)] * 4), "revunet", "cpu", DATA)
    top = len(made.candidates) - 1
    voxels = made.candidates[top].worked_voxels
    # at least the image, the logits of three classes and their gradient, in float32
    assert made.estimate(top) > 4 * voxels * (1 + 2 * 3)
    assert made.estimate(0) <= made.estimate(top)
    assert np.isfinite(made.plan(1e9).estimate_bytes)
