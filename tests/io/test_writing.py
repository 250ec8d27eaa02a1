import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, Volume
from medseg.errors import FormatError, GeometryError, ResourceError, ShapeError
from medseg.io.itk_formats import read_itk, write_itk_volume
from medseg.io.nifti import read_nifti
from medseg.io.writing import verify_volume, write_volume
from tests.grids import marked

READERS = {".nii": read_nifti, ".nii.gz": read_nifti, ".nrrd": read_itk, ".mha": read_itk}
SUFFIXES = sorted(READERS)
GRID = Grid((4, 5, 6), np.diag([1.0, 2.0, 3.0, 1.0]))


def volume(dtype=np.int16) -> Volume:
    data = np.random.default_rng(0).integers(0, 100, (1, 4, 5, 6))
    return Volume(data.astype(dtype), GRID)


@settings(max_examples=30, deadline=None)
@given(marked(), st.sampled_from([np.uint8, np.int16, np.float32]))
def test_a_marked_voxel_keeps_its_place_in_every_format(tmp_path_factory, marking, dtype):
    grid, voxel = marking
    folder = tmp_path_factory.mktemp("formats")
    data = np.zeros((1, *grid.shape_ijk), dtype)
    data[(0, *voxel)] = 99
    for suffix, read in READERS.items():
        path = folder / f"a{suffix}"
        write_volume(Volume(data, grid), path)
        back = read(path).volume
        ((_, *there),) = np.argwhere(back.data_cijk == 99)
        np.testing.assert_allclose(
            back.grid.world_from_voxel(there), grid.world_from_voxel(voxel), atol=0.01
        )
        # SimpleITK finds it at the same place, whichever program the format is from.
        image = sitk.ReadImage(str(path))
        point = image.TransformIndexToPhysicalPoint([int(at) for at in voxel])
        assert image[tuple(int(at) for at in voxel)] == 99
        expected = grid.world_from_voxel(voxel) * (-1, -1, 1)
        np.testing.assert_allclose(point, expected, atol=0.01)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("given_type", "kept"),
    [
        (np.uint8, np.uint8),
        (np.uint16, np.uint16),
        (np.int32, np.int32),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_every_voxel_type_keeps_its_values(tmp_path, suffix, given_type, kept):
    path = tmp_path / f"a{suffix}"
    write_volume(volume(given_type), path)
    back = READERS[suffix](path).volume
    assert back.data_cijk.dtype == kept
    np.testing.assert_array_equal(back.data_cijk, volume().data_cijk)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_nibabel_reads_what_is_written(tmp_path):
    write_volume(volume(), tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume().data_cijk[0])
    np.testing.assert_array_equal(image.affine, GRID.affine_ras)


def test_other_endings_are_refused(tmp_path):
    for name in ("a.mhd", "a.MHA", "a"):
        with pytest.raises(FormatError, match=r"one of .mha, .nii, .nii.gz, .nrrd") as caught:
            write_volume(volume(), tmp_path / name)
        assert caught.value.code == "output-suffix"


def test_several_channels_are_refused(tmp_path):
    two = Volume(np.zeros((2, 4, 5, 6)), GRID, ("a", "b"))
    with pytest.raises(ShapeError, match="a volume of one channel, found 2") as caught:
        write_volume(two, tmp_path / "a.nii")
    assert caught.value.code == "write-channels"


def test_wide_integers_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="at most 32 bits, found type int64") as caught:
        write_volume(volume(np.int64), tmp_path / "a.nii")
    assert caught.value.code == "write-type"


def test_sheared_grids_are_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.1
    sheared = Volume(volume().data_cijk, Grid((4, 5, 6), affine))
    with pytest.raises(GeometryError, match=r"axes 5.71 degrees off") as caught:
        write_volume(sheared, tmp_path / "a.nii")
    assert caught.value.code == "affine-sheared"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_folder_is_named(tmp_path, suffix):
    with pytest.raises(ResourceError, match="no such folder") as caught:
        write_volume(volume(), tmp_path / "absent" / f"a{suffix}")
    assert caught.value.code == "output-unwritable"


def test_positions_too_far_out_for_the_format_are_refused(tmp_path):
    """NIfTI holds 32-bit floats: ten kilometres out they are a millimetre apart."""
    affine = np.eye(4)
    affine[0, 3] = 1e7 + 0.3
    with pytest.raises(GeometryError, match=r"a corner voxel 0.300 mm away") as caught:
        write_volume(Volume(volume().data_cijk, Grid((4, 5, 6), affine)), tmp_path / "a.nii")
    assert caught.value.code == "verify-geometry"
    assert list(tmp_path.iterdir()) == []


def test_floats_that_do_not_survive_are_refused(tmp_path):
    data = np.full((1, 4, 5, 6), np.nan, np.float32)
    with pytest.raises(FormatError, match="NaN or infinite") as caught:
        write_volume(Volume(data, GRID), tmp_path / "a.nii")
    assert caught.value.code == "voxels-not-finite"
    assert caught.value.where == str(tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_verification_sees_other_voxels(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_volume(volume(), path)
    verify_volume(volume(), path)
    other = volume().data_cijk.copy()
    other[0, 1, 2, 3] += 1
    with pytest.raises(FormatError, match="expected the voxels that were written") as caught:
        verify_volume(Volume(other, GRID), path)
    assert caught.value.code == "verify-voxels"


def test_what_itk_does_not_write_is_an_error_with_its_cause(tmp_path):
    with pytest.raises(FormatError, match="an image that ITK can write") as caught:
        write_itk_volume(volume(), tmp_path / "a.unknown")
    assert caught.value.code == "image-unwritable"
    assert isinstance(caught.value.__cause__, RuntimeError)
