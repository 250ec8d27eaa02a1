"""Figures of structures: NumPy and SimpleITK, laws, spheres and boxes whose area is known."""

import csv
import io
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme, Volume, reorient
from medseg.errors import GeometryError
from medseg.metrics import statistics
from medseg.metrics.statistics import (
    label_statistics,
    statistics_to_csv,
    statistics_to_json,
)
from tests.grids import grids, rotation

SETTINGS = settings(max_examples=40, deadline=None)
SCHEME = LabelScheme.plain("test", {1: "liver", 2: "left kidney", 300: "spleen"})
TYPES = ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"]


@st.composite
def cases(draw, *, sheared=False, dtype=None) -> tuple[LabelMap, Volume]:
    grid = draw(grids(sheared=sheared, largest=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.05, 0.4, 1.0]))
    data = rng.choice([1, 2, 300], size=grid.shape_ijk) * (rng.random(grid.shape_ijk) < share)
    kind = np.dtype(dtype or draw(st.sampled_from(TYPES)))
    if kind.kind == "f":
        image = rng.normal(100.0, 30.0, (2, *grid.shape_ijk))
    else:
        image = rng.integers(
            np.iinfo(kind).min, np.iinfo(kind).max, (2, *grid.shape_ijk), endpoint=True
        )
    return (
        LabelMap(data.astype(np.uint16), grid, SCHEME),
        Volume(image.astype(kind), grid, ("T1", "FLAIR")),
    )


def mask_on(mask, affine) -> LabelMap:
    array = np.asarray(mask).astype(np.uint8)
    return LabelMap(array, Grid(array.shape, affine), LabelScheme.plain("one", {1: "shape"}))


def spaced(spacing) -> np.ndarray:
    return np.diag([*spacing, 1.0])


@SETTINGS
@given(cases(sheared=True))
def test_counts_places_and_intensities_agree_with_numpy(case):
    labels, image = case
    for label, entry in zip(SCHEME.labels, label_statistics(labels, image), strict=True):
        inside = labels.data_ijk == label.value
        assert (entry.name, entry.value) == (label.name, label.value)
        assert entry.voxels == inside.sum()
        if not entry.voxels:
            continue
        where = np.argwhere(inside)
        determinant = abs(np.linalg.det(labels.grid.affine_ras[:3, :3]))
        assert entry.volume_ml == pytest.approx(len(where) * determinant / 1000)
        np.testing.assert_allclose(entry.centroid_ijk, where.mean(axis=0))
        places = labels.grid.world_from_voxel(where)
        np.testing.assert_allclose(entry.centroid_ras_mm, places.mean(axis=0), atol=1e-9)
        assert entry.box_start_ijk == tuple(where.min(axis=0))
        assert entry.box_stop_ijk == tuple(where.max(axis=0) + 1)
        for channel, intensities in enumerate(entry.intensities):
            values = image.data_cijk[channel][inside].astype(np.float64)
            assert intensities.channel == image.channels[channel]
            assert intensities.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
            assert intensities.std == pytest.approx(values.std(), rel=1e-9, abs=1e-6)
            assert intensities.median == np.median(values)
            assert (intensities.minimum, intensities.maximum) == (values.min(), values.max())


def itk_image(labels: LabelMap) -> sitk.Image:
    image = sitk.GetImageFromArray(labels.data_ijk.transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(labels.grid.spacing_mm)
    image.SetOrigin((lps @ labels.grid.origin_ras).tolist())
    image.SetDirection((lps @ labels.grid.direction_ras).ravel().tolist())
    return image


@SETTINGS
@given(cases(dtype="int16"))
def test_figures_agree_with_simpleitk(case):
    labels, image = case
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(itk_image(labels))
    intensity = sitk.LabelIntensityStatisticsImageFilter()
    first = sitk.GetImageFromArray(image.data_cijk[0].transpose(2, 1, 0))
    first.CopyInformation(itk_image(labels))
    intensity.Execute(itk_image(labels), first)
    entries = label_statistics(labels, image)
    assert set(shape.GetLabels()) == {entry.value for entry in entries if entry.voxels}
    for entry in entries:
        if not entry.voxels:
            continue
        assert entry.voxels == shape.GetNumberOfPixels(entry.value)
        assert entry.volume_ml == pytest.approx(shape.GetPhysicalSize(entry.value) / 1000)
        x, y, z = shape.GetCentroid(entry.value)
        assert entry.centroid_ras_mm == pytest.approx((-x, -y, z), abs=1e-6)
        box = shape.GetBoundingBox(entry.value)
        assert entry.box_start_ijk == box[:3]
        assert np.subtract(entry.box_stop_ijk, entry.box_start_ijk).tolist() == list(box[3:])
        mask = (labels.data_ijk == entry.value).astype(np.uint8)
        connected = sitk.ConnectedComponent(sitk.GetImageFromArray(mask), True)
        assert entry.pieces == sitk.GetArrayFromImage(connected).max()
        ours = entry.intensities[0]
        assert ours.mean == pytest.approx(intensity.GetMean(entry.value))
        assert ours.minimum == intensity.GetMinimum(entry.value)
        assert ours.maximum == intensity.GetMaximum(entry.value)
        if entry.voxels > 1:  # ITK divides by n - 1
            n = entry.voxels
            theirs = intensity.GetStandardDeviation(entry.value) * math.sqrt((n - 1) / n)
            assert ours.std == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_surface_agrees_with_simpleitk_where_voxels_are_cubes(seed):
    rng = np.random.default_rng(seed)
    noise = sitk.GetImageFromArray(rng.normal(size=(24, 30, 28)))
    mask = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 2.0)) > 0
    labels = mask_on(mask, spaced((0.8, 0.8, 0.8)))
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(itk_image(labels))
    (entry,) = label_statistics(labels)
    # both count the same crossings; the weights of the directions differ in the third digit
    assert entry.surface_mm2 == pytest.approx(shape.GetPerimeter(1), rel=0.01)


def ellipsoid(affine, shape, metric) -> LabelMap:
    grid = Grid(shape, affine)
    steps = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = (np.array(shape) - 1) / 2 + [0.1, -0.2, 0.3]
    offsets = grid.world_from_voxel(steps) - grid.world_from_voxel(centre)
    return mask_on(np.einsum("...a,ab,...b", offsets, metric, offsets) <= 1.0, affine)


SHEARED = np.eye(4)
SHEARED[:3, :3] = rotation((0.9, 0.2, -0.3, 0.1)) @ [[0.9, 0.3, 0.2], [0, 0.9, 0.3], [0, 0, 1.5]]


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        (spaced((1.0, 1.0, 1.0)), (30, 30, 30)),
        (spaced((0.7, 0.7, 1.5)), (44, 44, 24)),
        (spaced((1.0, 1.0, 3.0)), (30, 30, 14)),
        (spaced((0.5, 0.5, 5.0)), (60, 60, 10)),
        (SHEARED, (50, 50, 32)),
    ],
    ids=["cubes", "CT", "thick", "very thick", "sheared"],
)
def test_the_surface_of_a_sphere_of_12_mm_is_right_within_2_percent(affine, shape):
    (entry,) = label_statistics(ellipsoid(affine, shape, np.eye(3) / 12.0**2))
    assert not entry.touches_border
    assert entry.surface_mm2 == pytest.approx(4 * math.pi * 12.0**2, rel=0.02)
    assert entry.volume_ml == pytest.approx(4 / 3 * math.pi * 12.0**3 / 1000, rel=0.02)


@pytest.mark.parametrize(
    ("spacing", "shape"), [((1.0, 1.0, 1.0), (40, 60, 30)), ((1.0, 1.0, 3.0), (40, 60, 20))]
)
def test_a_box_along_the_axes_comes_out_small_by_6_to_13_percent(spacing, shape):
    box = np.pad(np.ones(shape), 2)
    a, b, c = np.multiply(shape, spacing)
    (entry,) = label_statistics(mask_on(box, spaced(spacing)))
    assert 0.87 < entry.surface_mm2 / (2 * (a * b + a * c + b * c)) < 0.94


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.5), (1.0, 1.0, 3.0)])
def test_a_plate_at_any_tilt_is_right_within_7_percent_and_on_average_within_2(spacing):
    ratios = []
    for seed in range(6):
        turn = rotation(np.random.default_rng(seed).normal(size=4))
        metric = turn @ np.diag(np.array([30.0, 30.0, 5.0]) ** -2) @ turn.T
        affine = spaced(spacing)
        shape = tuple(int(70 / step) for step in spacing)
        (entry,) = label_statistics(ellipsoid(affine, shape, metric))
        eccentricity = math.sqrt(1 - (5 / 30) ** 2)  # area of an oblate spheroid
        area = (
            2
            * math.pi
            * 30**2
            * (1 + (1 - eccentricity**2) / eccentricity * math.atanh(eccentricity))
        )
        ratios.append(entry.surface_mm2 / area)
    assert max(abs(ratio - 1) for ratio in ratios) < 0.07
    assert abs(np.mean(ratios) - 1) < 0.03


@SETTINGS
@given(cases(sheared=True), st.sampled_from(["LPS", "SAR", "IRP"]))
def test_turning_the_axes_changes_only_what_is_counted_in_voxels(case, code):
    labels, image = case
    here = label_statistics(labels, image)
    there = label_statistics(reorient(labels, code), reorient(image, code))
    for one, other in zip(here, there, strict=True):
        assert (one.voxels, one.pieces) == (other.voxels, other.pieces)
        assert one.volume_ml == pytest.approx(other.volume_ml)
        assert len(one.border_faces) == len(other.border_faces)
        if one.voxels:
            assert one.surface_mm2 == pytest.approx(other.surface_mm2, rel=1e-6)
            assert one.centroid_ras_mm == pytest.approx(other.centroid_ras_mm, abs=1e-6)
            for mine, theirs in zip(one.intensities, other.intensities, strict=True):
                assert mine.median == theirs.median
                assert mine.mean == pytest.approx(theirs.mean, rel=1e-6, abs=1e-6)


@SETTINGS
@given(cases(), st.sampled_from([0.5, 4.0]))
def test_surface_grows_with_the_square_and_volume_with_the_cube_of_the_spacing(case, factor):
    labels, _ = case
    affine = labels.grid.affine_ras @ np.diag([factor, factor, factor, 1.0])
    larger = LabelMap(labels.data_ijk, Grid(labels.grid.shape_ijk, affine), SCHEME)
    for one, other in zip(label_statistics(labels), label_statistics(larger), strict=True):
        assert other.volume_ml == pytest.approx(one.volume_ml * factor**3)
        if one.voxels:
            assert other.surface_mm2 == pytest.approx(one.surface_mm2 * factor**2)


@SETTINGS
@given(cases(), st.sampled_from([1, 150, 300]))
def test_slabs_do_not_show_in_the_figures(case, slab_voxels):
    labels, image = case
    whole = statistics_to_json(label_statistics(labels, image))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_SLAB_VOXELS", slab_voxels)
        parts = statistics_to_json(label_statistics(labels, image))
    assert parts == whole


@pytest.mark.parametrize("where", list(itertools.product((0, 1, 2), repeat=3)), ids=str)
def test_each_face_of_the_image_that_is_touched_is_named(where):
    mask = np.zeros((3, 3, 3))
    mask[where] = 1
    (entry,) = label_statistics(mask_on(mask, np.eye(4)))
    expected = [
        f"{axis}_{'first' if at == 0 else 'last'}"
        for axis, at in zip("ijk", where, strict=True)
        if at != 1
    ]
    assert list(entry.border_faces) == expected
    assert entry.touches_border == bool(expected)


def test_voxels_that_share_a_corner_are_one_piece():
    mask = np.zeros((5, 5, 5))
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = 1
    (entry,) = label_statistics(mask_on(mask, np.eye(4)))
    assert entry.pieces == 2


def test_an_absent_structure_has_counts_of_zero_and_nothing_else():
    grid = Grid((2, 2, 2), np.eye(4))
    labels = LabelMap(np.ones((2, 2, 2), dtype=np.uint8), grid, SCHEME)
    image = Volume(np.zeros((1, 2, 2, 2), dtype=np.int16), grid, ("CT",))
    entry = statistics_to_json(label_statistics(labels, image))[1]
    zeros = {"name": "left kidney", "value": 2, "voxels": 0, "volume_ml": 0.0, "pieces": 0}
    assert {key: entry[key] for key in zeros} == zeros
    assert (entry["touches_border"], entry["border_faces"]) == (False, [])
    rest = set(entry) - set(zeros) - {"touches_border", "border_faces"}
    assert {key for key in rest if entry[key] is not None} == set()
    assert {"mean_CT", "std_CT", "median_CT", "minimum_CT", "maximum_CT"} < rest


def test_a_single_voxel_has_no_spread_and_its_own_value():
    grid = Grid((1, 1, 1), np.eye(4))
    labels = LabelMap(np.ones((1, 1, 1), dtype=np.uint8), grid, SCHEME)
    (first, *_) = label_statistics(labels, Volume(np.full((1, 1, 1, 1), -7.5), grid))
    (figures,) = first.intensities
    assert (figures.mean, figures.std, figures.median) == (-7.5, 0.0, -7.5)


@pytest.mark.parametrize("stranger", [np.nan, np.inf, -np.inf])
def test_a_voxel_without_a_value_leaves_the_intensities_open(stranger):
    grid = Grid((2, 1, 1), np.eye(4))
    data = np.array([[1.0, stranger], [1.0, 3.0]], dtype=np.float32).reshape(2, 2, 1, 1)
    labels = LabelMap(np.ones((2, 1, 1), dtype=np.uint8), grid, SCHEME)
    first, second = label_statistics(labels, Volume(data, grid, ("a", "b")))[0].intensities
    assert (first.mean, first.std, first.median, first.minimum, first.maximum) == (None,) * 5
    assert (second.mean, second.std, second.median) == (2.0, 1.0, 2.0)


def test_an_image_on_another_grid_is_refused():
    labels = mask_on(np.ones((2, 2, 2)), np.eye(4))
    image = Volume(np.zeros((1, 2, 2, 2)), Grid((2, 2, 2), spaced((1.0, 1.0, 1.1))))
    with pytest.raises(GeometryError, match=r"corners up to 0.100 mm apart; resample") as caught:
        label_statistics(labels, image)
    assert caught.value.code == "grids-differ"


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_no_wider_copy_of_the_volume_is_made(monkeypatch, dtype):
    monkeypatch.setattr(statistics, "_SLAB_VOXELS", 1 << 16)
    shape = (128, 128, 128)
    labels = mask_on(np.random.default_rng(0).random(shape) < 0.5, np.eye(4))
    image = Volume(np.ones((1, *shape), dtype=dtype), labels.grid)
    tracemalloc.start()
    label_statistics(labels, image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 16-bit images are counted; of float32 the half that is inside is gathered through a mask
    allowed = (1 if dtype == "int16" else 4) * labels.data_ijk.nbytes
    assert peak < allowed + (8 << 20)


def test_json_and_csv_say_the_same():
    grid = Grid((4, 3, 2), spaced((2.0, 1.0, 1.0)))
    data = np.zeros(grid.shape_ijk, dtype=np.uint16)
    data[1:3, 1, :] = 300
    scheme = LabelScheme.plain("test", {1: 'a, "b"', 300: "spleen"})
    image = Volume(np.arange(72, dtype=np.int16).reshape(3, 4, 3, 2), grid, ("CT", "PT", "CT"))
    entries = label_statistics(LabelMap(data, grid, scheme), image)
    content = statistics_to_json(entries)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    absent, spleen = content
    assert spleen["volume_ml"] == pytest.approx(0.008)
    assert spleen["centroid_ras_mm"] == [3.0, 1.0, 0.5]
    assert (spleen["box_start_ijk"], spleen["box_stop_ijk"]) == ([1, 1, 0], [3, 2, 2])
    assert spleen["border_faces"] == ["k_first", "k_last"]
    # voxels 8, 9, 14, 15 of each channel of 24
    assert (spleen["mean_CT"], spleen["mean_PT"], spleen["mean_CT_2"]) == (11.5, 35.5, 59.5)
    text = statistics_to_csv(entries)
    first, second = csv.DictReader(io.StringIO(text))
    assert first["name"] == absent["name"] == 'a, "b"'
    assert (first["voxels"], first["mean_CT"], first["centroid_r_mm"]) == ("0", "", "")
    assert float(second["surface_mm2"]) == spleen["surface_mm2"]
    assert [second[f"centroid_{axis}_mm"] for axis in "ras"] == ["3.0", "1.0", "0.5"]
    assert [second[f"box_stop_{axis}"] for axis in "ijk"] == ["3", "2", "2"]
    assert second["border_faces"] == "k_first k_last"


def test_without_an_image_there_are_no_intensities():
    (entry,) = statistics_to_json(label_statistics(mask_on(np.ones((2, 2, 2)), np.eye(4))))
    assert not [key for key in entry if key.startswith(("mean", "std", "median"))]


def test_no_structures_make_an_empty_table():
    assert statistics_to_csv([]) == ""
