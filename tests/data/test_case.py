"""One door for a labelled case: what it checks, and what it makes of stored values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.core import Grid, LabelScheme, Volume
from medseg.data.case import (
    GRID_TOLERANCE_DEG,
    GRID_TOLERANCE_MM,
    IGNORED,
    Case,
    check_same_grid,
    read_labelled,
    with_ignored,
)
from medseg.errors import ConfigError, FormatError, GeometryError, ShapeError
from medseg.io.nifti import read_nifti_channels
from medseg.io.stacks import read_slices, read_stack, write_slice, write_stack
from medseg.io.writing import write_volume

SHAPE = (4, 5, 6)
GRID = Grid(SHAPE, np.diag([1.0, 1.0, 2.0, 1.0]))
SCHEME = LabelScheme.plain("two", {1: "one", 2: "two"})


@pytest.fixture
def files(tmp_path):
    """A noise image, and a label map with the values 0 to 3 of which 3 is not in the scheme."""
    image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 2, :3] = (1, 2, 3)
    write_volume(Volume(image[None], GRID), tmp_path / "image.nii.gz")
    write_volume(Volume(labels[None], GRID), tmp_path / "label.nii.gz")
    return (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz"


def turned(degrees):
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Grid(SHAPE, turn @ GRID.affine_ras)


def test_a_value_outside_the_scheme_is_refused_and_a_recoded_or_ignored_one_is_not(files):
    images, label = files
    with pytest.raises(ShapeError, match=r"only 0 and the values \[1, 2\], found also \[3\]"):
        read_labelled(Case("c", images, label), ("T1",), SCHEME)
    recoded = Case("c", images, label, recode=((0, 0), (1, 2), (2, 0), (3, 1)))
    _, labels = read_labelled(recoded, ("T1",), SCHEME)
    assert labels.data_ijk[1, 2, :4].tolist() == [2, 0, 1, 0]
    assert labels.scheme is SCHEME
    for case, given_value in (
        (Case("c", images, label, ignore_value=3), None),
        (Case("c", images, label), 3),
    ):
        _, labels = read_labelled(case, ("T1",), SCHEME, given_value)
        assert labels.scheme.by_value(3).name == IGNORED
        assert labels.data_ijk[1, 2, :4].tolist() == [1, 2, 3, 0]


def test_a_stored_value_that_the_recoding_does_not_list_is_refused(files):
    images, label = files
    with pytest.raises(ShapeError, match=r"label.nii.gz: expected only 0 and the values \[1, 2\]"):
        read_labelled(Case("c", images, label, recode=((0, 0), (1, 2), (2, 1))), ("T1",), SCHEME)
    bad = Case("c", images, label, recode=((0, 0), (1, 9), (2, 1), (3, 0)))
    with pytest.raises(ShapeError, match=r"label.nii.gz: .*found also \[9\]"):
        read_labelled(bad, ("T1",), SCHEME)


def test_an_ignore_value_that_means_a_structure_is_refused():
    assert with_ignored(SCHEME, None) is SCHEME
    with pytest.raises(ConfigError, match="the value 2 of the ignore label to mean nothing else"):
        with_ignored(SCHEME, 2)


def test_channels_and_images_must_be_as_many(files):
    images, label = files
    with pytest.raises(ShapeError, match="case c: expected one image for each of the 3 channels"):
        read_labelled(Case("c", images * 2, label), ("a", "b", "c"), SCHEME)
    with pytest.raises(ShapeError, match=r"2 channels \(a, b\) along the fourth axis, found 1"):
        read_labelled(Case("c", images, label), ("a", "b"), SCHEME)
    assert read_nifti_channels(images[0], ("a",)).volume.data_cijk.shape == (1, *SHAPE)


def test_a_case_without_a_patient_is_its_own_patient(files):
    images, label = files
    assert Case("c", images, label).patient == "c"
    assert Case("c", images, label).files == (*images, label)
    assert Case("c", images, images[0]).files == images


@given(st.floats(0, 2 * GRID_TOLERANCE_MM), st.integers(0, 2))
def test_a_label_map_may_be_shifted_by_the_tolerance_and_no_more(shift_mm, axis):
    affine = np.array(GRID.affine_ras)
    affine[axis, 3] += shift_mm
    if shift_mm <= GRID_TOLERANCE_MM:
        check_same_grid(GRID, Grid(SHAPE, affine), "x")
    elif shift_mm > GRID_TOLERANCE_MM + 1e-9:
        with pytest.raises(GeometryError, match=f"corners {shift_mm:.2f} mm apart"):
            check_same_grid(GRID, Grid(SHAPE, affine), "x")


def test_a_turned_label_map_is_refused_with_the_axis_and_the_angle():
    check_same_grid(GRID, turned(0.5 * GRID_TOLERANCE_DEG), "x")
    with pytest.raises(GeometryError, match=r"x: .*0\.1 mm and 0\.1 deg.* turned by 0\.50 degrees"):
        check_same_grid(GRID, turned(0.5), "x")
    # so small an image that its corners hardly move: the angle alone tells
    tiny = Grid((2, 2, 2), GRID.affine_ras)
    with pytest.raises(GeometryError, match=r"corners 0\.01 mm apart and axis . turned by 0\.30"):
        check_same_grid(tiny, Grid((2, 2, 2), turned(0.3).affine_ras), "x")


def test_a_mirrored_label_map_is_turned_by_half_a_turn():
    affine = GRID.affine_ras @ np.diag([-1.0, 1.0, 1.0, 1.0])
    with pytest.raises(GeometryError, match=r"axis I turned by 180\.00 degrees"):
        check_same_grid(GRID, Grid(SHAPE, affine), "x")


# Slices and volumes that hold both


@settings(deadline=None, max_examples=20)
@given(arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)), st.integers(0, 2))
def test_slices_and_a_volume_of_the_same_arrays_are_the_same_case(tmp_path_factory, image, value):
    folder = tmp_path_factory.mktemp("stack")
    label = np.where(image > 0.5, value, 0).astype(np.uint8)
    write_stack(folder / "case.npy.h5", image, label)
    paths = [folder / f"case_slice{n:03d}.npz" for n in range(3)]
    for path, image_rc, label_rc in zip(paths, image, label, strict=True):
        write_slice(path, image_rc, label_rc)
    for volume, labels in (
        read_stack(folder / "case.npy.h5", SCHEME),
        read_slices(paths, SCHEME),
    ):
        # I along the columns, J along the rows, K along the slices
        assert np.array_equal(volume.data_cijk[0], image.transpose(2, 1, 0))
        assert np.array_equal(labels.data_ijk, label.transpose(2, 1, 0))
        assert volume.grid.orientation == "LPS"


@pytest.mark.parametrize(
    ("arrays_", "words"),
    [
        ({"image": np.zeros((2, 2))}, "no 'label'"),
        ({"image": np.zeros((2, 2)), "label": np.zeros((2, 3))}, r"\(2, 2\) and \(2, 3\)"),
        ({"image": np.zeros(2), "label": np.zeros(2)}, "one shape with 2 axes"),
        ({"image": np.zeros((2, 2)), "label": np.full((2, 2), "a")}, "expected numbers, found"),
    ],
)
def test_a_slice_without_what_it_must_hold_is_refused(tmp_path, arrays_, words):
    np.savez(tmp_path / "a.npz", **arrays_)
    with pytest.raises(FormatError, match=words):
        read_slices([tmp_path / "a.npz"], SCHEME)


def test_slices_of_two_shapes_and_damaged_files_are_refused(tmp_path):
    for name, shape in (("a", (2, 2)), ("b", (2, 3))):
        write_slice(tmp_path / f"{name}.npz", np.zeros(shape), np.zeros(shape, np.uint8))
    with pytest.raises(FormatError, match=r"b.npz: expected a slice of \(2, 2\) as the first"):
        read_slices([tmp_path / "a.npz", tmp_path / "b.npz"], SCHEME)
    for name, read in (("c.npz", lambda path: read_slices([path], SCHEME)), ("d.npy.h5", None)):
        path = tmp_path / name
        path.write_bytes(b"PK\x03\x04 no archive")
        with pytest.raises(FormatError, match="an intact"):
            read(path) if read else read_stack(path, SCHEME)


def test_a_slice_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.array([{}], dtype=object), label=np.zeros((2, 2)))
    with pytest.raises(FormatError, match="an intact archive of plain arrays"):
        read_slices([tmp_path / "a.npz"], SCHEME)
