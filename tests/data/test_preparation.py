"""Images on their way to a network keep their place in the world."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.data.preparation import ModelImage, check_extent, check_image, prepare_labels
from medseg.errors import FormatError, GeometryError, ShapeError
from medseg.io.reading import read_image, read_labels
from medseg.models.card import Channel, ClipZScore, InputSettings, Unchanged, ZScore

SCHEME = LabelScheme.plain("test", {1: "one", 2: "two"})


def inputs(spacing=None, window=(8, 8, 8), orientation="RAS", channels=None):
    return InputSettings(
        channels=channels or (Channel(name="image"),),
        orientation=orientation,
        spacing_mm=spacing,
        window_ijk=window,
    )


def oblique_grid(shape=(9, 10, 11)):
    angle = 0.3
    turned = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turned @ np.diag([-1.0, 2.0, 1.5])[:, [1, 0, 2]]
    affine[:3, 3] = [10, -20, 30]
    return Grid(shape, affine)


@settings(max_examples=25)
@given(
    st.sampled_from(["RAS", "LPS", "SAR", "PIL", "ASL"]),
    st.tuples(st.integers(0, 8), st.integers(0, 9), st.integers(0, 10)),
)
def test_a_bright_voxel_stays_where_it_is_in_the_world(orientation, voxel):
    data = np.zeros((1, 9, 10, 11), dtype=np.int16)
    data[(0, *voxel)] = 1000
    volume = Volume(data, oblique_grid())
    prepared = ModelImage(volume, inputs(orientation=orientation))
    found = np.unravel_index(int(prepared.whole()[0].argmax()), prepared.grid.shape_ijk)
    np.testing.assert_allclose(
        prepared.grid.world_from_voxel(found), volume.grid.world_from_voxel(voxel), atol=1e-9
    )
    assert prepared.turned_grid.orientation == orientation


def test_a_bright_blob_stays_where_it_is_when_the_spacing_changes():
    index = np.stack(np.meshgrid(*map(np.arange, (30, 24, 20)), indexing="ij"), axis=-1)
    blob = np.exp(-((index - [12.0, 11.0, 9.0]) ** 2).sum(-1) / 8.0).astype(np.float32)
    grid = oblique_grid((30, 24, 20))
    prepared = ModelImage(Volume(blob[None], grid), inputs(spacing=(1.7, 1.3, 2.9)))
    # normalising shifts by a constant: the corner value is what zero became
    weight = (prepared.whole()[0] - prepared.whole()[0, 0, 0, 0]).clamp_min(0).numpy()
    voxels = np.stack(np.meshgrid(*map(np.arange, weight.shape), indexing="ij"), axis=-1)
    centre = (voxels * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    world = prepared.grid.world_from_voxel(centre)
    np.testing.assert_allclose(world, grid.world_from_voxel([12, 11, 9]), atol=0.02)


def test_labels_and_image_land_on_one_grid():
    grid = oblique_grid()
    labels = np.zeros(grid.shape_ijk, dtype=np.uint8)
    labels[2:6, 3:7, 4:8] = 2
    settings_ = inputs(spacing=(1.0, 1.0, 3.0))
    prepared = ModelImage(Volume(labels[None].astype(np.float32), grid), settings_)
    found = prepare_labels(LabelMap(labels, grid, SCHEME), settings_)
    assert tuple(found.shape) == prepared.grid.shape_ijk
    assert set(torch.unique(found).tolist()) == {0, 2}
    bright = prepared.whole()[0] > (prepared.whole()[0].max() + prepared.whole()[0].min()) / 2
    overlap = 2 * int((bright & (found == 2)).sum()) / int(bright.sum() + (found == 2).sum())
    assert overlap > 0.85


def test_zscore_gives_mean_zero_and_deviation_one_even_for_huge_values():
    data = np.random.default_rng(1).normal(1e6, 3e5, (1, 12, 12, 12)).astype(np.float32)
    x = ModelImage(Volume(data, Grid((12, 12, 12), np.eye(4))), inputs()).whole()
    assert abs(float(x.mean())) < 1e-5
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_the_callers_array_is_not_changed():
    data = np.full((1, 8, 8, 8), 7, dtype=np.float32)
    data[0, 0] = 1
    before = data.copy()
    ModelImage(Volume(data, Grid((8, 8, 8), np.eye(4))), inputs())
    np.testing.assert_array_equal(data, before)


def test_zeros_stay_zero_where_only_other_voxels_count():
    data = np.zeros((1, 8, 8, 8), dtype=np.float32)
    data[0, :4] = np.arange(4 * 64).reshape(4, 8, 8) + 1
    channel = Channel(name="T1", normalisation=ZScore(nonzero_only=True))
    x = ModelImage(Volume(data, Grid((8, 8, 8), np.eye(4))), inputs(channels=(channel,))).whole()[0]
    assert (x[4:] == 0).all()
    assert float(x[:4].mean()) == pytest.approx(0, abs=1e-6)
    assert float(x[:4].std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_a_constant_image_becomes_zero_not_nan():
    data = np.full((1, 8, 8, 8), 300, dtype=np.int16)
    x = ModelImage(Volume(data, Grid((8, 8, 8), np.eye(4))), inputs()).whole()
    assert (x == 0).all()


def test_ct_is_clipped_and_scaled_by_fixed_numbers():
    data = np.array([-2000, 0, 100, 4000], dtype=np.int16).reshape(1, 4, 1, 1)
    how = ClipZScore(lower=-1000, upper=1000, mean=100, std=50)
    channel = Channel(name="CT", modality="CT", normalisation=how)
    x = ModelImage(Volume(data, Grid((4, 1, 1), np.eye(4))), inputs(channels=(channel,))).whole()
    assert x.flatten().tolist() == [-22.0, -2.0, 0.0, 18.0]


_HOWS = (
    Unchanged(),
    ClipZScore(lower=0.25, upper=0.9, mean=0.4, std=0.2),
    ZScore(),
    ZScore(nonzero_only=True),
)


@pytest.mark.parametrize("how", _HOWS, ids=lambda how: f"{how.kind}")
def test_ct_scaled_beforehand_and_ct_in_hounsfield_units_become_the_same_input(how):
    inputs = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=how, scaled_hu=(-125, 275)),),
        spacing_mm=None,
        window_ijk=(4, 4, 4),
    )
    hu_ijk = np.random.default_rng(0).integers(-1000, 1500, size=(9, 8, 7)).astype(np.int16)
    # as TransUNet's preprocessing has it
    scaled_ijk = ((np.clip(hu_ijk, -125, 275) + 125.0) / 400.0).astype(np.float32)
    grid = Grid(hu_ijk.shape, np.eye(4))
    from_hu = ModelImage(Volume(hu_ijk[None], grid, ("CT",)), inputs).whole()
    from_scaled = ModelImage(Volume(scaled_ijk[None], grid, ("CT",)), inputs).whole()
    assert float(from_hu.std()) > 0.1
    torch.testing.assert_close(from_hu, from_scaled, rtol=1e-5, atol=1e-5)
    (note,) = check_image(Volume(hu_ijk[None], grid, ("CT",)), inputs)
    assert "from -125 to 275" in note
    assert check_image(Volume(scaled_ijk[None], grid, ("CT",)), inputs) == ()


def test_scaled_ct_is_refused_by_a_model_of_hounsfield_units():
    how = ClipZScore(lower=-900, upper=300, mean=80, std=140)
    inputs = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=how),),
        spacing_mm=None,
        window_ijk=(4, 4, 4),
    )
    scaled = np.linspace(0, 1, 125, dtype=np.float32).reshape(1, 5, 5, 5)
    grid = Grid((5, 5, 5), np.eye(4))
    with pytest.raises(FormatError, match=r"expected Hounsfield units.* CT that somebody scaled"):
        check_image(Volume(scaled, grid, ("CT",)), inputs)
    assert check_image(Volume(400 * scaled - 125, grid, ("CT",)), inputs) == ()
    # water, or nothing at all, everywhere
    assert check_image(Volume(np.zeros_like(scaled), grid, ("CT",)), inputs) == ()


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="the lower bound first"):
        Channel(name="CT", modality="CT", scaled_hu=(275, -125))


def test_a_wrong_number_of_channels_is_told_with_the_remedy():
    volume = Volume(np.zeros((1, 8, 8, 8), np.float32), Grid((8, 8, 8), np.eye(4)))
    two = (Channel(name="T1"), Channel(name="FLAIR"))
    with pytest.raises(
        ShapeError, match=r"expected 2 channels \(T1, FLAIR\), found 1; .*--channel"
    ):
        ModelImage(volume, inputs(channels=two))


def test_one_slice_is_refused():
    with pytest.raises(GeometryError, match="found a single slice") as caught:
        check_extent(Grid((8, 8, 1), np.eye(4)), inputs())
    assert caught.value.code == "image-one-slice"


def test_an_image_below_half_the_window_is_refused():
    with pytest.raises(GeometryError, match="at least half of the model's window") as caught:
        check_extent(Grid((8, 8, 3), np.eye(4)), inputs())
    assert caught.value.code == "image-too-small"


def test_an_image_a_little_smaller_than_the_window_is_noted():
    assert "smaller than the window" in check_extent(Grid((8, 8, 5), np.eye(4)), inputs())[0]
    assert check_extent(Grid((8, 8, 8), np.eye(4)), inputs()) == ()


@pytest.mark.shared_data
def test_the_slices_of_real_cardiac_mr_come_last_with_their_labels(shared_data):
    paths = sorted((shared_data / "02_acdc" / "training").glob("*/*_gt.nii.gz"))[:6]
    assert paths
    hearts = LabelScheme.plain("acdc", {1: "right", 2: "wall", 3: "left"})
    for path in paths:
        labels = read_labels(path, hearts)
        volume = read_image(path.with_name(path.name.replace("_gt", ""))).volume
        ready = ModelImage(volume, inputs(orientation="slices_last"))
        turned = prepare_labels(labels, inputs(orientation="slices_last"))
        assert ready.grid.spacing_mm[2] == pytest.approx(max(volume.grid.spacing_mm))
        assert ready.whole().shape[1:] == turned.shape == ready.grid.shape_ijk
        assert sorted(turned.unique().tolist()) == sorted(np.unique(labels.data_ijk).tolist())
        back = ready.to_model.inverse().turn_array(turned.numpy())
        np.testing.assert_array_equal(back, labels.data_ijk)
