"""What is behind the dock *See it*: windows, comparison, doubt, surfaces. No viewer."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.errors import GeometryError, ShapeError
from medseg.io.scan import ItkSource
from medseg.metrics.case import measure_case
from medseg.metrics.overlap import dice_by_label
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import label_structures
from medseg_napari._cross import cross_lines
from medseg_napari._display import PRESETS, Window
from medseg_napari._edit_keys import KEYS as EDIT_KEYS
from medseg_napari._letters import sides_of
from medseg_napari._origin import METADATA_KEY, LayerOrigin
from medseg_napari._provenance import Beginning
from medseg_napari.editing.boxes import box_of
from medseg_napari.editing.change import Change, Piece
from medseg_napari.editing.history import atoms_of
from medseg_napari.viewing.comparing import CompareController, steps
from medseg_napari.viewing.comparison import Comparison, Side, match_labels
from medseg_napari.viewing.doubt import DoubtWalk, by_difference, by_doubt, spot_of
from medseg_napari.viewing.edits import box_of_step
from medseg_napari.viewing.keys import KEYS
from medseg_napari.viewing.sides import Chosen, check_same_grid, drawn_grid
from medseg_napari.viewing.surfaces import joined, label_surface, label_surfaces
from medseg_napari.viewing.windows import AS_OPENED, dragged, unit_of, window_choices
from tests.plugin.sources import oblique_grid

SOURCE = ItkSource(Path("made"))
GRID = Grid((6, 5, 4), np.diag([2.0, 1.0, 0.5, 1.0]))
SCHEME = LabelScheme.plain("three", {1: "liver", 2: "spleen", 7: "lesion"})


def read_all(first, second):
    comparison = Comparison(first, second)
    list(comparison.update())
    return comparison


def random_labels(seed, shape=GRID.shape_ijk, values=(0, 0, 1, 2, 7), dtype=np.uint8):
    return np.random.default_rng(seed).choice(np.array(values, dtype), size=shape)


def side(data, scheme=SCHEME, grid=GRID, name="a"):
    return Side(name, data, grid, scheme)


# ---- windows


def test_ct_has_the_windows_of_radiology_in_hu():
    ct = np.linspace(-1024, 2000, 1000).reshape(10, 10, 10)
    choices = window_choices(ct, SOURCE)
    assert choices["soft tissue"].limits == (-160, 240)
    assert choices["lung"].limits == (-1350, 150)
    assert {*PRESETS["CT"], AS_OPENED} == {*choices}
    assert unit_of(ct, SOURCE) == "HU"


def test_mr_has_percentiles_of_its_voxels():
    mr = np.random.default_rng(0).normal(500, 100, (20, 20, 20)).astype(np.float32)
    choices = window_choices(mr, SOURCE)
    for name, percents in (("2 to 98 %", (2, 98)), ("whole range", (0, 100))):
        np.testing.assert_allclose(choices[name].limits, np.percentile(mr, percents), rtol=1e-5)
    assert unit_of(mr, SOURCE) == ""


def test_an_image_of_one_value_can_be_looked_at():
    assert [*window_choices(np.ones((3, 3, 3)), SOURCE)] == [AS_OPENED]


@given(st.floats(-1000, 1000), st.floats(0.1, 5000), st.floats(-900, 900), st.floats(-900, 900))
def test_a_drag_widens_raises_scales_with_the_image_and_can_be_taken_back(centre, width, right, up):
    window = Window(centre, width)
    after = dragged(window, right, up)
    assert after.width > 0
    assert (after.width > width) == (right > 0) or math.isclose(after.width, width)
    assert (after.centre > centre) == (up > 0) or math.isclose(
        after.centre, centre, abs_tol=1e-6 * width
    )
    scaled = dragged(Window(10 * centre, 10 * width), right, up)
    assert scaled.width == pytest.approx(10 * after.width)
    assert scaled.centre == pytest.approx(10 * after.centre, abs=1e-6 * width)
    assert dragged(window, 0, 0) == window


# ---- comparison


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_dice_and_volumes_are_those_of_the_evaluation(one, other):
    first, second = random_labels(one), random_labels(other, values=(0, 1, 7))
    comparison = read_all(side(first), side(second))
    maps = LabelMap(first, GRID, SCHEME), LabelMap(second, GRID, SCHEME)
    expected = dice_by_label(*maps)
    scores = measure_case(*maps, label_structures(SCHEME), EvaluationSettings())
    for found, score in zip(comparison.agreements(), scores, strict=True):
        assert found.label.name == score.structure
        np.testing.assert_equal(found.dice, expected[score.structure])
        assert found.first_ml == pytest.approx(score.prediction_ml)
        assert found.second_ml == pytest.approx(score.reference_ml)
        assert found.difference_ml == pytest.approx(score.values["volume_error_ml"])


def test_hd95_is_that_of_the_evaluation():
    first = np.zeros((12, 12, 12), np.uint8)
    first[2:8, 3:9, 2:7] = 1
    second = np.roll(first, 2, axis=2)
    second[0, 0, 0] = 2
    grid = Grid(first.shape, np.diag([2.0, 1.0, 0.5, 1.0]))
    comparison = read_all(side(first, grid=grid), side(second, grid=grid))
    maps = LabelMap(first, grid, SCHEME), LabelMap(second, grid, SCHEME)
    score = measure_case(*maps, label_structures(SCHEME)[:1], EvaluationSettings())[0]
    found = {label.name: mm for label, mm in comparison.hd95_mm().items()}
    assert found == {"liver": score.values["hd95_mm"]}
    assert found["liver"] == 1.0  # two voxels of half a millimetre
    nothing = read_all(side(first, grid=grid), side(np.zeros_like(first), grid=grid))
    assert nothing.hd95_mm() == {}


def test_a_difference_on_paper():
    first = np.array([[[0, 1, 1, 2]]], np.uint8)
    second = np.array([[[1, 0, 1, 1]]], np.uint8)
    grid = Grid((1, 1, 4), np.eye(4))
    comparison = read_all(side(first, grid=grid), side(second, grid=grid))
    # only in the second, only in the first, the same, spleen for liver
    assert comparison.difference.tolist() == [[[2, 1, 0, 3]]]
    liver, spleen, lesion = comparison.agreements()
    assert liver.dice == pytest.approx(2 * 1 / (2 + 3))
    assert liver.difference_ml == pytest.approx(-0.001)
    assert (spleen.dice, spleen.first_ml) == (0.0, pytest.approx(0.001))
    assert math.isnan(lesion.dice)
    assert [comparison.differing(axis).tolist() for axis in range(3)] == [[3], [3], [1, 1, 0, 1]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_reading_the_edited_slices_is_as_good_as_reading_all(seed, data):
    first, second = random_labels(seed), random_labels(seed + 1)
    comparison = read_all(side(first), side(second))
    for _ in range(3):
        low = [data.draw(st.integers(0, extent - 1)) for extent in first.shape]
        high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, first.shape, strict=True)]
        box = box_of(low, high)
        first[box] = data.draw(st.sampled_from((0, 1, 2, 7)))
        list(comparison.update(range(box[0].start, box[0].stop)))
    anew = read_all(side(first), side(second))
    assert [str(one) for one in comparison.agreements()] == [
        str(one) for one in anew.agreements()
    ]  # as text, where NaN equals NaN
    np.testing.assert_array_equal(comparison.difference, anew.difference)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        np.testing.assert_array_equal(
            comparison.differing(axis), np.count_nonzero(first != second, axis=others)
        )


def test_labels_belong_together_by_name_and_by_value_where_a_name_is_plain():
    renumbered = LabelScheme.plain("seg", {1: "Spleen", 2: "liver", 3: "other"})
    found = match_labels(SCHEME, renumbered)
    assert [(one.name, one.first, one.second) for one in found] == [
        ("liver", 1, 2),
        ("spleen", 2, 1),
        ("lesion", 7, None),
        ("other", None, 3),
    ]
    nameless = LabelScheme.plain("nifti", {1: "label 1", 7: "label 7", 9: "label 9"})
    for schemes in ((SCHEME, nameless), (nameless, SCHEME)):
        pairs = {(one.name, one.first or one.second) for one in match_labels(*schemes)}
        assert pairs == {("liver", 1), ("spleen", 2), ("lesion", 7), ("label 9", 9)}
    stolen = LabelScheme.plain("seg", {1: "label 1", 2: "liver"})
    assert [(one.first, one.second) for one in match_labels(SCHEME, stolen)][:2] == [
        (1, 2),
        (2, None),
    ]


def test_a_renumbered_map_agrees_with_itself():
    first = random_labels(3)
    renumbered = np.array([0, 5, 3, 0, 0, 0, 0, 1], np.uint16)[first]
    other = LabelScheme.plain("seg", {5: "liver", 3: "spleen", 1: "lesion"})
    comparison = read_all(side(first), side(renumbered, other))
    assert [one.dice for one in comparison.agreements()] == [1.0, 1.0, 1.0]
    assert not comparison.difference.any()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_any_integers_are_compared(dtype):
    first, second = random_labels(5), random_labels(6)
    expected = read_all(side(first), side(second)).agreements()
    found = read_all(side(first.astype(dtype)), side(second.astype(dtype), None)).agreements()
    assert [one.dice for one in found] == [one.dice for one in expected]
    wild = first.astype(np.int64)
    wild[0, 0, 0], wild[0, 0, 1] = -4, 1 << 40
    assert read_all(side(wild), side(second)).is_outdated


def test_a_label_that_comes_up_asks_for_a_new_comparison():
    first, second = random_labels(1), random_labels(2)
    comparison = read_all(side(first), side(second))
    assert not comparison.is_outdated
    first[0, 0, 0] = 99
    list(comparison.update([0]))
    assert comparison.is_outdated
    anew = read_all(side(first), side(second))
    assert anew.agreements()[-1].label.name == "label 99"
    assert not anew.is_outdated


def test_maps_on_other_grids_are_refused():
    data = random_labels(1)
    shifted = np.diag([2.0, 1.0, 0.5, 1.0])
    shifted[0, 3] = 0.5
    with pytest.raises(GeometryError, match=r"corners up to 0\.500 mm apart"):
        Comparison(side(data), side(data, grid=Grid(GRID.shape_ijk, shifted)))
    with pytest.raises(GeometryError, match=r"found shape \(6, 5, 3\)"):
        Comparison(side(data), side(data[..., :3], grid=Grid((6, 5, 3), np.eye(4))))


# ---- layers


def layer_of(data, grid=None, name="layer", *, scheme=SCHEME, beginning=None):
    """What a labels layer is to the comparison, without napari."""
    grid = grid or Grid(data.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))
    origin = LayerOrigin.of(grid, SOURCE, scheme=scheme, beginning=beginning)
    scale, translate = origin.placement()
    return SimpleNamespace(
        data=data,
        name=name,
        metadata={METADATA_KEY: origin},
        data_to_world=lambda at: np.asarray(at) * scale + translate,
    )


def test_a_layer_is_drawn_where_its_grid_lies():
    grid = Grid((4, 5, 6), np.diag([-2.0, -1.0, 3.0, 1.0]))
    origin = LayerOrigin.of(grid, SOURCE)
    layer = layer_of(np.zeros(origin.shown_grid.shape_ijk, np.uint8), grid)
    assert drawn_grid(layer).distance_mm(origin.shown_grid) < 1e-9


def test_an_oblique_layer_and_labels_drawn_on_it_lie_on_one_grid():
    shown = LayerOrigin.of(oblique_grid((7, 6, 5)), SOURCE).shown_grid.shape_ijk
    opened = layer_of(np.zeros(shown, np.uint8), oblique_grid((7, 6, 5)))
    drawn = layer_of(np.zeros(shown, np.uint8), oblique_grid((7, 6, 5)))
    drawn.metadata = {}
    first, second = check_same_grid(Chosen(opened), Chosen(drawn))
    assert first.distance_mm(second) < 1e-9
    flat = SimpleNamespace(data=np.zeros((3, 3), np.uint8), name="flat", metadata={})
    with pytest.raises(ShapeError, match="expected labels with three axes, found 2"):
        check_same_grid(Chosen(opened), Chosen(flat))


def run(controller):
    task = controller.begin()
    return [controller.take(update) for update in steps(task)][-1]


def dice_of(controller, pair):
    return {row.name: row.agreements[pair].dice for row in controller.rows()}


def test_model_corrected_and_reference_are_kept_up_to_date_by_edits():
    came = random_labels(1)
    edited = layer_of(came.copy(), name="edited")
    origin = edited.metadata[METADATA_KEY]
    as_read = Beginning.opened(np.ascontiguousarray(origin.original_array(came)))
    edited = layer_of(came.copy(), name="edited", beginning=as_read)
    reference = layer_of(random_labels(2), name="reference")
    controller = CompareController()
    assert controller.choose(
        {
            "corrected": Chosen(edited),
            "model": Chosen(edited, as_it_came=True),
            "reference": Chosen(reference),
        }
    )
    assert len(controller.pairs) == 3
    assert run(controller)
    assert not controller.is_due
    assert set(dice_of(controller, ("corrected", "model")).values()) == {1.0}
    edited.data[2:4] = reference.data[2:4]
    controller.mark("corrected", box_of((2, 0, 0), (4, 5, 4)))
    assert controller.is_due
    assert run(controller)
    maps = [LabelMap(data, GRID, SCHEME) for data in (edited.data, came, reference.data)]
    assert dice_of(controller, ("corrected", "reference")) == dice_by_label(maps[0], maps[2])
    assert dice_of(controller, ("corrected", "model")) == dice_by_label(maps[0], maps[1])
    assert dice_of(controller, ("model", "reference")) == dice_by_label(maps[1], maps[2])
    # a label that nobody knew, then other voxels altogether
    edited.data[0, 0, 0] = 55
    controller.mark("corrected", None)
    assert run(controller)
    assert controller.is_due
    assert run(controller)
    assert "label 55" in dice_of(controller, ("corrected", "reference"))
    edited.data = reference.data
    controller.mark("corrected", None)
    assert run(controller)
    assert set(dice_of(controller, ("corrected", "reference")).values()) == {1.0}


def test_what_comes_late_from_an_earlier_choice_is_not_taken():
    first, second = (layer_of(random_labels(seed), name=str(seed)) for seed in (1, 2))
    controller = CompareController()
    controller.choose({"corrected": Chosen(first), "reference": Chosen(second)})
    task = controller.begin()
    controller.choose({"corrected": Chosen(second), "reference": Chosen(second)})
    assert not any(controller.take(update) for update in steps(task))
    assert controller.rows() == ()


def test_a_choice_on_two_grids_is_told_in_a_sentence():
    first = layer_of(random_labels(1))
    second = layer_of(random_labels(1)[..., :3])
    controller = CompareController()
    assert not controller.choose({"corrected": Chosen(first), "reference": Chosen(second)})
    assert "compare images that lie on one grid" in controller.message
    assert not controller.is_due
    assert not controller.choose({"corrected": Chosen(first), "reference": None})
    assert controller.message == ""


# ---- edits


def test_an_undo_step_is_read_as_the_box_of_its_changes():
    places = (np.array([3, 1]), np.array([2, 2]), np.array([0, 4]))
    assert box_of_step([(places, np.zeros(2), 1)]) == box_of((1, 2, 0), (4, 3, 5))
    masked = SimpleNamespace(slice_key=box_of((5, 5, 5), (6, 7, 8)))
    assert box_of_step([masked, (places, 0, 1)]) == box_of((1, 2, 0), (6, 7, 8))
    mask = np.ones((1, 2, 2), dtype=bool)
    piece = Piece.of(box_of((4, 0, 1), (5, 2, 3)), mask, np.zeros((1, 2, 2), np.uint8), 1)
    atoms = atoms_of(Change((piece,), "paint"), lambda: np.zeros((6, 5, 4), np.uint8))
    assert box_of_step(atoms) == box_of((4, 0, 1), (5, 2, 3))
    assert box_of_step([]) == (slice(0, 0),) * 3
    assert box_of_step([((np.array([-1]),) * 3, 0, 1)]) is None
    assert box_of_step(["something else"]) is None


# ---- doubt


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_with_most_doubt_comes_first_and_the_walk_goes_down_and_back(axis):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[5:35, 5:35, 5:35] = 1
    labels[30:35] *= 2
    doubt = np.zeros(labels.shape, np.uint8)
    grid = Grid(labels.shape, np.eye(4))
    for level, index in ((90, 10), (250, 20), (170, 33)):
        np.moveaxis(doubt, axis, 0)[index, 10:20, 10:20] = level
    found = by_doubt(doubt, grid, Side("labels", labels, grid, SCHEME), axis)
    assert [(one.axis, one.index) for one in found] == [(axis, 20), (axis, 33), (axis, 10)]
    assert "liver" in found[0].words
    assert ("spleen" in found[1].words) == (axis == 0)
    assert [one.index for one in by_doubt(doubt, grid, None, axis)] == [20, 33, 10]
    walk = DoubtWalk()
    assert walk.step(1) is None
    walk.begin(found)
    assert [walk.step(1).index for _ in range(4)] == [20, 33, 10, 10]
    assert [walk.step(-1).index for _ in range(3)] == [33, 20, 20]
    walk.begin(found)
    assert walk.step(-1).index == 10


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_doubt_slices_are_ranked_by_how_much_two_maps_differ(axis):
    first = np.zeros((30, 30, 30), np.uint8)
    first[4:26, 4:26, 4:26] = 1
    second = first.copy()
    for width, index in ((2, 6), (9, 14), (5, 22)):
        np.moveaxis(second, axis, 0)[index, 10 : 10 + width, 10:20] = 0
    grid = Grid(first.shape, np.eye(4))
    found = by_difference(read_all(side(first, grid=grid), side(second, grid=grid)), axis)
    assert [(one.axis, one.index) for one in found] == [(axis, 14), (axis, 22), (axis, 6)]
    assert found[0].words == "0.09 ml differ"
    assert by_difference(read_all(side(first, grid=grid), side(first, grid=grid)), axis) == ()


def test_the_spot_to_look_at_is_where_most_is():
    plane = np.zeros((50, 60), np.uint8)
    plane[3, 3] = 255
    plane[30:35, 40:45] = 200
    assert spot_of(plane, (1.0, 1.0)) == (32, 42)
    assert spot_of(np.zeros((4, 4)), (1.0, 1.0)) is None


# ---- surfaces


def ball(shape, centre, radius_mm, spacing):
    at = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    squares = [((a - c) * mm) ** 2 for a, c, mm in zip(at, centre, spacing, strict=True)]
    return (sum(squares) <= radius_mm**2).astype(np.uint8)


def area_and_volume(vertices, faces):
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    cross = np.cross(b - a, c - a)
    return np.linalg.norm(cross, axis=1).sum() / 2, abs(np.einsum("ij,ij->", a, cross)) / 6


@pytest.mark.parametrize(
    ("spacing", "most_cells"),
    [((1.0, 1.0, 1.0), 1 << 21), ((2.0, 0.5, 1.0), 1 << 21), ((1.0, 1.0, 1.0), 2000)],
)
def test_a_ball_has_the_area_and_volume_of_a_ball_in_millimetres(spacing, most_cells):
    shape = tuple(round(40 / mm) for mm in spacing)
    centre = [(n - 1) / 2 + 0.2 for n in shape]
    radius = 14.0
    labels = ball(shape, centre, radius, spacing) * np.uint8(7)
    surface = label_surface(labels, 7, spacing, most_cells)
    area, volume = area_and_volume(surface.vertices_mm, surface.faces)
    assert area == pytest.approx(4 * math.pi * radius**2, rel=0.08)
    assert volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.05)
    middle = np.array(centre) * spacing
    away = np.linalg.norm(surface.vertices_mm - middle, axis=1)
    cell_mm = max(c * mm for c, mm in zip(surface.cell_vox, spacing, strict=True))
    assert np.abs(away - radius).max() < cell_mm
    assert (most_cells == 2000) == (surface.cell_vox != (1, 1, 1))


def test_a_single_voxel_and_a_thin_sheet_have_a_surface_and_no_voxel_none():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    labels[7, 1:8, 1:8] = 2
    labels[0, 0, 0] = 3  # at the border of the image
    found = {one.value: one for one in label_surfaces(labels, [1, 2, 3, 4], (1.0, 1.0, 1.0))}
    assert set(found) == {1, 2, 3}
    np.testing.assert_allclose(found[1].vertices_mm.mean(axis=0), (4, 4, 4), atol=1e-5)
    np.testing.assert_allclose(found[2].vertices_mm.mean(axis=0), (7, 4, 4), atol=0.05)
    np.testing.assert_allclose(found[3].vertices_mm.mean(axis=0), (0, 0, 0), atol=1e-5)


def test_joined_surfaces_keep_their_triangles_and_colours():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:4, 1:4, 1:4], labels[5:8, 5:8, 5:8] = 1, 2
    surfaces = list(label_surfaces(labels, [1, 2], (1.0, 1.0, 1.0)))
    mesh = joined(surfaces, [(1, 0, 0), (0, 0, 1, 0.5)])
    areas = [area_and_volume(one.vertices_mm, one.faces)[0] for one in surfaces]
    assert area_and_volume(mesh.vertices_mm, mesh.faces)[0] == pytest.approx(sum(areas))
    first = len(surfaces[0].vertices_mm)
    assert {tuple(colour) for colour in mesh.colours[:first]} == {(1, 0, 0, 1)}
    assert {tuple(colour) for colour in mesh.colours[first:]} == {(0, 0, 1, 1)}
    assert joined([], []) is None


# ---- the cursor


def test_the_cursor_is_two_lines_through_the_point_with_a_gap():
    lines = cross_lines((5.0, 10.0, 20.0), [(0, 10), (0, 20), (0, 40)], (0, 2))
    assert lines.shape == (8, 2)
    # of vispy: to the right first
    upright, level = lines[:4], lines[4:]
    assert set(upright[:, 0]) == {20.0}
    assert (upright[:, 1].min(), upright[:, 1].max()) == (0.0, 10.0)
    assert set(level[:, 1]) == {5.0}
    assert not ((np.abs(level[:, 0] - 20.0) < 0.1) & (np.abs(level[:, 1] - 5.0) < 0.1)).any()
    assert cross_lines((5.0, 10.0, 20.0), [(0, 10), (0, 20), (0, 40)], (0, 1, 2)).shape == (12, 3)


def test_the_letters_are_those_of_a_light_box():
    assert sides_of((1, 2)) == ("A", "P", "R", "L")
    assert sides_of((0, 2)) == ("H", "F", "R", "L")
    assert sides_of((0, 1)) == ("H", "F", "A", "P")


# ---- keys


def test_no_key_to_look_with_is_one_to_correct_with():
    assert not {key.press for key in KEYS} & {press for press, _ in EDIT_KEYS.values()}


def test_the_page_lists_every_key():
    page = (Path(__file__).parents[2] / "docs" / "napari-viewing.md").read_text(encoding="utf-8")
    listed = {
        one.strip()
        for line in page.split("## Keys")[1].splitlines()
        if line.startswith("| ")
        for one in line.split("|")[1].split(",")
    }
    assert listed - {"press", "---"} == {key.press for key in KEYS}
