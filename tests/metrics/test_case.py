"""All figures of a case: against single functions and libraries, the rules for what is empty."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medpy.metric import binary as medpy
from monai.metrics import compute_dice, compute_iou

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.errors import ConfigError, GeometryError
from medseg.metrics.case import image_diagonal_mm, measure_case
from medseg.metrics.overlap import dice_by_label
from medseg.metrics.settings import EvaluationSettings, metrics_of
from medseg.metrics.structures import (
    BRATS_REGIONS,
    Structure,
    brats_regions,
    check_names,
    label_structures,
)
from medseg.metrics.surface import surface_distances
from tests.grids import grids, rotation

SCHEME = LabelScheme.plain("test", {1: "one", 2: "two", 3: "three"})
EACH = label_structures(SCHEME)
quick = settings(max_examples=12, deadline=None)
maps = arrays(np.uint8, (5, 4, 3), elements=st.integers(0, 3))


def label_map(data, affine=None):
    data = np.asarray(data, dtype=np.uint8)
    data = data.reshape(-1, 1, 1) if data.ndim == 1 else data
    return LabelMap(data, Grid(data.shape, np.eye(4) if affine is None else affine), SCHEME)


def measured(prediction, reference, structures=EACH, affine=None, **rules):
    ours = None if prediction is None else label_map(prediction, affine)
    found = measure_case(
        ours, label_map(reference, affine), structures, EvaluationSettings(**rules)
    )
    return {each.structure: each for each in found}


@quick
@given(maps, maps)
def test_overlaps_of_all_labels_are_monais(ours, theirs):
    found = measured(ours, theirs)
    one_hot = [
        torch.stack([torch.from_numpy(data == value) for value in (1, 2, 3)])[None].float()
        for data in (ours, theirs)
    ]
    dice = compute_dice(*one_hot, include_background=True, ignore_empty=False)[0]
    iou = compute_iou(*one_hot, include_background=True, ignore_empty=False)[0]
    by_label = dice_by_label(label_map(ours), label_map(theirs))
    for number, structure in enumerate(EACH):
        values = found[structure.name].values
        assert values["dice"] == pytest.approx(by_label[structure.name], nan_ok=True)
        if found[structure.name].state != "neither":
            assert values["dice"] == pytest.approx(float(dice[number]))
            assert values["iou"] == pytest.approx(float(iou[number]))


@quick
@given(maps, maps, grids(smallest=1, largest=1))
def test_surfaces_in_cropped_boxes_are_those_of_the_whole_masks(ours, theirs, grid):
    found = measured(ours, theirs, affine=grid.affine_ras, tolerance_mm=1.5)
    for structure in EACH:
        if found[structure.name].state == "both":
            values = found[structure.name].values
            masks = [np.isin(data, structure.members) for data in (ours, theirs)]
            alone = surface_distances(*masks, grid.affine_ras[:3, :3])
            assert values["hd_mm"] == pytest.approx(alone.hausdorff_mm())
            assert values["assd_mm"] == pytest.approx(alone.mean_mm())
            assert values["nsd"] == pytest.approx(alone.surface_dice(1.5))


@quick
@given(maps, maps)
def test_memory_order_and_type_change_nothing(ours, theirs):
    plain = measured(ours, theirs)
    other = measure_case(
        LabelMap(np.asfortranarray(ours), Grid(ours.shape, np.eye(4)), SCHEME),
        LabelMap(theirs.astype(np.uint16, order="F"), Grid(theirs.shape, np.eye(4)), SCHEME),
        EACH,
        EvaluationSettings(),
    )
    for each in other:
        assert each.values == pytest.approx(plain[each.structure].values, nan_ok=True)


def test_where_the_patient_lies_changes_nothing():
    generator = np.random.default_rng(0)
    ours, theirs = generator.integers(0, 4, (2, 6, 5, 4))
    scale = np.diag([0.8, 1.2, 3.0])
    upright, oblique = np.eye(4), np.eye(4)
    upright[:3, :3] = scale
    oblique[:3, :3] = rotation((0.8, 0.3, 0.4, -0.2)) @ scale
    oblique[:3, 3] = (12.0, -30.0, 99.0)
    for name, each in measured(ours, theirs, affine=oblique).items():
        assert each.values == pytest.approx(measured(ours, theirs, affine=upright)[name].values)


def test_volumes_and_their_errors_worked_on_paper():
    affine = np.diag([1.0, 2.0, 5.0, 1.0])  # 10 mm3 a voxel
    found = measured([1, 1, 1, 0], [1, 1, 0, 0], affine=affine)["one"]
    assert (found.prediction_ml, found.reference_ml) == pytest.approx((0.03, 0.02))
    assert found.values["volume_error_ml"] == pytest.approx(0.01)
    assert found.values["volume_error_percent"] == pytest.approx(50.0)
    false_alarm = measured([1, 0], [0, 0], affine=affine)["one"].values
    assert math.isnan(false_alarm["volume_error_percent"])


def test_a_region_is_the_union_of_its_members():
    ours, theirs = [1, 2, 3, 0, 2], [2, 1, 0, 0, 2]
    region = measured(ours, theirs, [Structure("any", (1, 2))])["any"].values
    merged = measured([1, 1, 0, 0, 1], [1, 1, 0, 0, 1])["one"].values
    assert region == merged


def test_ignored_voxels_count_in_nothing():
    ours, theirs = [1, 1, 1, 2, 2], [1, 1, 3, 3, 2]
    found = measured(ours, theirs, EACH[:2], ignore_value=3)
    assert found["one"].values["dice"] == 1.0
    assert found["one"].values["hd_mm"] == 0.0
    assert found["two"].values["dice"] == 1.0
    assert found["two"].values["lesion_f1"] == 1.0
    assert measured(ours, theirs, EACH[:2])["one"].values["dice"] < 1.0


def test_a_structure_in_neither_is_left_out_or_perfect():
    values = measured([1, 0], [1, 0])["two"].values
    assert all(math.isnan(value) for value in values.values())
    perfect = measured([1, 0], [1, 0], both_empty="perfect")["two"].values
    assert (perfect["dice"], perfect["nsd"], perfect["hd95_mm"], perfect["lesion_f1"]) == (
        1,
        1,
        0,
        1,
    )


@pytest.mark.parametrize("pair", [([0, 0, 0], [1, 0, 0]), ([1, 0, 0], [0, 0, 0])])
def test_a_structure_in_one_of_both_has_dice_0_and_the_diagonal_as_distance(pair):
    values = measured(*pair)["one"].values
    assert (values["dice"], values["iou"], values["nsd"], values["lesion_f1"]) == (0, 0, 0, 0)
    assert values["hd95_mm"] == values["assd_mm"] == pytest.approx(math.sqrt(3 * 3 + 1 + 1))
    left_out = measured(*pair, one_empty="leave-out")["one"].values
    assert (left_out["dice"], left_out["nsd"]) == (0.0, 0.0)
    assert math.isnan(left_out["hd95_mm"])


@quick
@given(maps, maps, grids(smallest=1, largest=1))
def test_no_distance_is_longer_than_the_diagonal(ours, theirs, grid):
    diagonal_mm = image_diagonal_mm(Grid(ours.shape, grid.affine_ras))
    for each in measured(ours, theirs, affine=grid.affine_ras).values():
        if each.state == "both":
            assert each.values["hd_mm"] <= diagonal_mm


def test_a_missing_prediction_gets_the_worst_of_everything():
    found = measured(None, [1, 0, 0])
    for each in found.values():
        assert each.state == "no prediction"
        for metric in metrics_of(EvaluationSettings()):
            if metric.better == "higher":
                assert each.values[metric.name] == 0.0
            if metric.better == "lower":
                assert each.values[metric.name] == pytest.approx(math.sqrt(11))
    assert found["one"].values["volume_error_percent"] == -100.0
    assert math.isnan(found["two"].values["volume_error_percent"])
    left_out = measured(None, [1, 0, 0], missing="leave-out")["one"].values
    assert all(math.isnan(value) for value in left_out.values())


def test_the_transunet_protocol_is_medpy_in_voxels_with_its_rules_for_what_is_empty():
    generator = np.random.default_rng(1)
    ours, theirs = generator.integers(0, 2, (2, 6, 5, 4))
    ours[0, 0, 0], theirs[5, 4, 3] = 2, 3  # one predicted, one missed
    affine = np.diag([0.5, 0.7, 5.0, 1.0])
    found = measured(ours, theirs, affine=affine, protocol="transunet")
    assert found["one"].values == pytest.approx(
        {
            "dice": medpy.dc(ours == 1, theirs == 1),
            "hd95_voxels": medpy.hd95(ours == 1, theirs == 1),
        }
    )
    assert found["two"].values == {"dice": 1.0, "hd95_voxels": 0.0}
    assert found["three"].values == {"dice": 0.0, "hd95_voxels": 0.0}
    neither = measured([1, 0], [1, 0], protocol="transunet")["two"].values
    assert neither == {"dice": 0.0, "hd95_voxels": 0.0}
    missing = measured(None, [1, 0, 0], protocol="transunet")["one"].values
    assert missing == {"dice": 0.0, "hd95_voxels": pytest.approx(math.sqrt(11))}


def test_the_neunet_protocol_leaves_out_what_the_reference_lacks():
    ours, theirs = [1, 1, 0, 2, 0, 0], [0, 1, 1, 0, 0, 3]
    found = measured(ours, theirs, affine=np.diag([3.0, 1, 1, 1]), protocol="neunet")
    assert found["one"].values == {"dice": 0.5, "hd95_voxels": pytest.approx(0.95)}
    assert all(math.isnan(value) for value in found["two"].values.values())
    assert found["three"].values["dice"] == 0.0
    assert math.isnan(found["three"].values["hd95_voxels"])


def test_maps_on_two_grids_are_refused_with_their_distance():
    moved = np.eye(4)
    moved[0, 3] = 0.75
    with pytest.raises(GeometryError, match=r"corners up to 0\.750 mm apart"):
        measure_case(label_map([1], moved), label_map([1]), EACH, EvaluationSettings())
    loose = EvaluationSettings(grid_tolerance_mm=1.0)
    assert measure_case(label_map([1], moved), label_map([1]), EACH, loose)[0].values["dice"] == 1.0
    with pytest.raises(GeometryError, match="expected shape"):
        measure_case(label_map([1, 1]), label_map([1]), EACH, EvaluationSettings())


def test_every_structure_may_have_a_tolerance_of_its_own():
    rules = {"tolerance_mm": 0.5, "tolerances_mm": {"two": 3.0}}
    found = measured([1, 0, 2, 0], [0, 1, 0, 2], **rules)
    assert found["one"].values["nsd"] < found["two"].values["nsd"] == 1.0


def test_brats_regions_are_taken_where_the_labels_leave_no_doubt():
    key, regions = brats_regions("brats", {0, 1, 2, 4})
    assert key == "brats-2018-2021"
    assert {region.name: region.members for region in regions}["tumour core"] == (1, 4)
    assert brats_regions("brats-2024-gli", {1})[1] == BRATS_REGIONS["brats-2024-gli"]
    for unclear in ({1, 2, 3}, {1, 2, 3, 4}, {1, 2}):
        with pytest.raises(ConfigError, match="more than one has"):
            brats_regions("brats", unclear)
    with pytest.raises(ConfigError, match="nearest: brats-2023"):
        brats_regions("brats-2022", {1})


def test_structures_need_names_and_values():
    with pytest.raises(ConfigError, match="expected a name, and label values from 1"):
        Structure("background", (0,))
    with pytest.raises(ConfigError, match="twice more than once"):
        check_names([Structure("twice", (1,)), Structure("twice", (2,))])
    with pytest.raises(ConfigError, match="found none"):
        check_names([])
