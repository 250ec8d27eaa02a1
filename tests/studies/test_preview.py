"""The picture shows the right planes, the right way round."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from medseg.core import Grid, Label, LabelMap, LabelScheme, Volume, axis_turn, reorient
from medseg.errors import GeometryError, ShapeError
from medseg.studies.preview import Scene, three_plane_png
from tests.grids import rotation

RED = (250, 10, 10)
SCHEME = LabelScheme("test", (Label(1, "cube", RED),))


def scene():
    """A cube at the patient's right, front and top of an otherwise dark box."""
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[14:18, 14:18, 14:18] = 1
    grid = Grid((20, 20, 20), np.eye(4))
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    return Volume(image, grid), LabelMap(labels, grid, SCHEME)


def picture(volume, labels):
    content = three_plane_png(volume, labels, caption="caption")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def reddish(pixels):
    return (pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)


def test_right_and_front_and_top_are_left_and_up():
    red = reddish(picture(*scene()))
    for column in range(3):
        left = 12 + column * 312
        rows, columns = np.nonzero(red[12:312, left : left + 300])
        assert rows.size > 50
        assert rows.mean() < 120
        assert columns.mean() < 120


def test_the_orientation_of_the_file_does_not_change_the_picture():
    volume, labels = scene()
    turned = picture(reorient(volume, "PSL"), reorient(labels, "PSL"))
    np.testing.assert_array_equal(turned, picture(volume, labels))


def test_an_empty_segmentation_is_drawn_too():
    volume, labels = scene()
    empty = LabelMap(np.zeros_like(labels.data_ijk), labels.grid, SCHEME)
    pixels = picture(volume, empty)
    assert not reddish(pixels[:320]).any()
    assert reddish(pixels[320:]).any()  # the legend


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def balls(shape=(40, 40, 40), spacing=(1.0, 1.0, 1.0)):
    """Two boxes, red and green, in noise."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[4:12, 4:12, 4:12] = 1
    labels[25:37, 25:37, 25:37] = 2
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    scheme = LabelScheme("test", (Label(1, "red", RED), Label(2, "green", (10, 250, 10))))
    image = np.random.default_rng(0).integers(-50, 50, size=(1, *shape)).astype(np.int16)
    return Volume(image, grid), LabelMap(labels, grid, scheme)


def greenish(pixels):
    return (pixels[..., 1] > 180) & (pixels[..., 0] < 90) & (pixels[..., 2] < 90)


def test_a_structure_is_drawn_alone_in_all_three_planes():
    volume, labels = balls()
    pixels = opened(Scene.of(volume, labels).structure(1, panel_px=100))
    assert pixels.shape == (100, 308, 3)
    for left in (0, 104, 208):
        panel = pixels[:, left : left + 100]
        rows, columns = np.nonzero((panel[..., 0] > 180) & (panel[..., 1] < 90))
        # the cube is cut out with 4 voxels before it and 12 after: seen from the front, low right
        assert 40 < rows.mean() < 80
        assert 40 < columns.mean() < 80
    assert not greenish(pixels).any()


def test_a_structure_in_two_pieces_is_shown_where_there_is_some_of_it():
    volume, labels = balls()
    labels.data_ijk[labels.data_ijk == 2] = 1
    labels.data_ijk[12:25, 12:25, 12:25] = 0  # nothing at the centroid
    pixels = opened(Scene.of(volume, labels).structure(1))
    for left in (0, 154, 308):
        panel = pixels[:, left : left + 150]
        assert ((panel[..., 0] > 180) & (panel[..., 1] < 90)).sum() > 20


def test_a_structure_without_voxels_is_refused():
    volume, labels = scene()
    empty = LabelMap(np.zeros_like(labels.data_ijk), labels.grid, SCHEME)
    with pytest.raises(GeometryError, match="a structure with at least one voxel"):
        Scene.of(volume, empty).structure(1)


def test_heat_lies_where_the_entropy_is_whatever_the_orientation():
    volume, labels = balls()
    entropy = np.zeros(labels.data_ijk.shape, dtype=np.uint8)
    entropy[28:34, 28:34, 30] = 255
    plain = Scene.of(volume, labels)
    assert plain.view_name(2) == "axial"
    hot = opened(plain.heat_slice(entropy, 2, 30))
    calm = opened(plain.heat_slice(np.zeros_like(entropy), 2, 30))
    rows, columns = np.nonzero(np.abs(hot - calm).sum(axis=2) > 120)
    # the right front quarter of the patient is the upper left quarter of the picture
    assert rows.size > 100
    assert rows.max() < hot.shape[0] / 2
    assert columns.max() < hot.shape[1] / 2
    for code in ("PSL", "LIA"):
        turn = axis_turn(volume.grid, code)
        turned = Scene.of(reorient(volume, code), reorient(labels, code))
        axis = turn.source_axes.index(2)
        index = 39 - 30 if turn.flipped[axis] else 30
        assert turned.view_name(axis) == "axial"
        again = opened(turned.heat_slice(turn.turn_array(entropy), axis, index))
        np.testing.assert_array_equal(again, hot)


def test_a_slice_without_entropy_shows_the_structures():
    volume, labels = balls()
    pixels = opened(Scene.of(volume, labels).heat_slice(None, 2, 30))
    assert greenish(pixels).any()


def test_entropy_of_another_image_is_refused():
    volume, labels = balls()
    with pytest.raises(ShapeError, match="bring the entropy to the image's grid first"):
        Scene.of(volume, labels).heat_slice(np.zeros((3, 3, 3), np.uint8), 2, 1)


def test_labels_of_other_extents_are_refused():
    volume, _ = scene()
    other = LabelMap(np.zeros((5, 5, 5), np.uint8), Grid((5, 5, 5), np.eye(4)), SCHEME)
    with pytest.raises(GeometryError, match="labels on the image's grid"):
        three_plane_png(volume, other, caption="")


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((40, 40, 1), (0.3, 0.3, 10.0)), ((1, 40, 30), (5.0, 1.0, 1.0)), ((60, 60, 4), (0.3, 0.3, 9))],
)
def test_single_and_thick_slices_are_drawn_in_millimetres(shape, spacing):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[tuple(slice(n // 4, n - n // 4) for n in shape)] = 1
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    volume = Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), grid)
    drawn = Scene.of(volume, LabelMap(labels, grid, SCHEME))
    assert reddish(opened(drawn.three_planes(""))[:312]).any()
    pixels = opened(drawn.heat_slice(np.zeros(shape, np.uint8), 2, 0))
    sides_mm = np.multiply(shape, spacing)
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(sides_mm[0] / sides_mm[1], rel=0.05)


def test_oblique_images_are_drawn_along_their_own_axes():
    volume, labels = scene()
    turn = rotation((1.0, 0.05, -0.04, 0.08))
    affine = np.eye(4)
    affine[:3, :3] = turn
    grid = Grid(volume.grid.shape_ijk, affine)
    oblique = picture(volume.on_grid(volume.data_cijk, grid), labels.on_grid(labels.data_ijk, grid))
    np.testing.assert_array_equal(oblique, picture(volume, labels))


def test_voxels_that_are_no_numbers_do_not_spoil_the_contrast():
    volume, labels = scene()
    spoilt = volume.data_cijk.copy()
    spoilt[0, 0, :3] = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)[:, None]
    pixels = picture(Volume(spoilt, volume.grid), labels)
    assert pixels[12:312, 12:312].std() > 30
    nothing = Volume(np.full_like(spoilt, np.nan), volume.grid)
    assert reddish(picture(nothing, labels)).any()


def test_a_legend_of_many_structures_ends_inside_the_picture_with_the_largest_first():
    shape = (130, 20, 20)
    labels = np.zeros(shape, dtype=np.uint8)
    for value in range(1, 118):
        labels[value, 5:10, 5:10] = value
    labels[119:130] = 117  # the largest
    grid = Grid(shape, np.eye(4))
    names = {value: f"structure number {value}" for value in range(1, 118)}
    scheme = LabelScheme.plain("many", names)
    volume = Volume(np.random.default_rng(0).normal(size=(1, *shape)), grid)
    pixels = picture(volume, LabelMap(labels, grid, scheme))
    legend = pixels[324:354]
    assert (legend[:, -12:] == legend[0, -1]).all()
    assert (legend[:, -300:] != legend[0, -1]).any()
    np.testing.assert_array_equal(legend[14, 18], scheme.by_value(117).rgb)


def test_memory_stays_below_a_float_copy_of_the_image():
    shape = (256, 256, 160)
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 2000, size=(1, *shape), dtype=np.int16)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[60:200, 60:200, 20:140] = 1
    grid = Grid(shape, np.diag([-0.8, -0.8, 1.5, 1.0]))
    volume, label_map = Volume(image, grid), LabelMap(labels, grid, SCHEME)
    tracemalloc.start()
    drawn = Scene.of(volume, label_map)
    drawn.three_planes("")
    drawn.structure(1)
    drawn.heat_slice(labels, 2, 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes  # half of a float32 copy
