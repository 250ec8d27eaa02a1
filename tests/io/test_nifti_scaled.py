import gzip
import itertools
import subprocess
import sys
import textwrap

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid
from medseg.errors import FormatError, GeometryError, ResourceError, ShapeError
from medseg.io import nifti
from medseg.io.nifti import read_nifti, write_nifti_scaled
from medseg.io.nifti_header import GEOMETRY_FIELDS
from medseg.io.scan import ItkSource
from tests.grids import grids, rotation

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation((1.0, 0.1, -0.05, 0.2)) * (0.7, 0.9, 3.0)
OBLIQUE[:3, 3] = (-80.0, 40.0, 12.5)
GRID = Grid((5, 6, 7), OBLIQUE)
SLOPE = 1.0 / 255.0


def quantised(shape=GRID.shape_ijk) -> np.ndarray:
    """Every value from 0 to 255 in turn, in no simple order."""
    return (np.arange(np.prod(shape)) * 37 % 256).astype(np.uint8).reshape(shape)


def image_on(path, grid, *, kind=nibabel.Nifti1Header, endianness="<", codes=(1, 1)):
    """An image file whose header is written field by field, read by ours."""
    header = kind(endianness=endianness)
    header.set_data_dtype(np.int16)
    header.set_data_shape(grid.shape_ijk)
    header.set_sform(grid.affine_ras)
    header.set_qform(grid.affine_ras)
    header["sform_code"], header["qform_code"] = codes
    header["pixdim"][4] = 2.5
    header["descrip"] = b"DOE JOHN"
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = header.single_magic
    voxels = np.zeros(grid.shape_ijk, header.get_data_dtype())
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes())
    return header, read_nifti(path)


@settings(max_examples=25, deadline=None)
@given(
    grids(),
    st.sampled_from("<>"),
    st.sampled_from([nibabel.Nifti1Header, nibabel.Nifti2Header]),
    st.sampled_from(list(itertools.product((0, 1, 2), (0, 1, 4)))),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_viewers_see_0_to_1_with_the_sources_geometry_fields_bit_for_bit(
    tmp_path_factory, grid, endianness, kind, codes, suffix
):
    folder = tmp_path_factory.mktemp("nifti")
    header, scan = image_on(
        folder / "image.nii", grid, kind=kind, endianness=endianness, codes=codes
    )
    data = quantised(grid.shape_ijk)
    target = folder / f"entropy{suffix}"
    write_nifti_scaled(data, scan.volume.grid, target, SLOPE, scan.source)
    back = nibabel.load(target)
    np.testing.assert_array_equal(np.asarray(back.dataobj.get_unscaled()), data)
    np.testing.assert_allclose(back.get_fdata(), data / 255.0, rtol=1e-7)
    content = target.read_bytes()
    content = gzip.decompress(content) if suffix == ".nii.gz" else content
    written = kind(content[: kind.sizeof_hdr], check=False)
    assert written["scl_slope"] == written["scl_slope"].dtype.type(SLOPE)
    assert written["scl_inter"] == 0
    assert written.get_data_dtype() == np.uint8
    for name in GEOMETRY_FIELDS:
        assert written[name].tobytes() == header[name].tobytes(), name
    assert b"DOE" not in content
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(["image.nii", target.name])


@pytest.mark.parametrize("source", [None, ItkSource])
def test_simpleitk_sees_the_same_values_in_the_same_place(tmp_path, source):
    path = tmp_path / "entropy.nii.gz"
    data = quantised()
    write_nifti_scaled(data, GRID, path, SLOPE, source and source(tmp_path / "image.mha"))
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(image).transpose(2, 1, 0), data / 255.0, rtol=1e-6
    )
    for voxel in ([0, 0, 0], [4, 5, 6]):
        there = np.array([-1, -1, 1]) * image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(there, GRID.world_from_voxel(voxel), atol=0.01)


def test_our_own_reader_gives_the_scaled_values(tmp_path):
    write_nifti_scaled(quantised(), GRID, tmp_path / "a.nii", SLOPE, None)
    voxels = read_nifti(tmp_path / "a.nii").volume.data_cijk[0]
    np.testing.assert_allclose(voxels, quantised() / 255.0, rtol=1e-6)


def test_half_precision_is_stored_as_float32(tmp_path):
    data = np.random.default_rng(0).random(GRID.shape_ijk).astype(np.float16)
    write_nifti_scaled(data, GRID, tmp_path / "a.nii.gz", 1.0, None)
    back = nibabel.load(tmp_path / "a.nii.gz")
    assert back.get_data_dtype() == np.float32
    np.testing.assert_array_equal(back.get_fdata(), data)


def test_equal_voxels_make_equal_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti_scaled(quantised(), GRID, tmp_path / name, SLOPE, None)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("data", "slope", "words", "code"),
    [
        (quantised().astype(np.int16), SLOPE, "uint8 or float16, found type int16", "write-type"),
        (quantised((5, 6, 8)), SLOPE, r"shape \(5, 6, 7\), found shape \(5, 6, 8\)", "write-shape"),
        (quantised(), 0.0, "slope above 0, found 0", "write-slope"),
        (quantised(), -SLOPE, "slope above 0, found -0.00392", "write-slope"),
        (quantised(), np.nan, "slope above 0, found nan", "write-slope"),
        (quantised(), np.inf, "slope above 0, found inf", "write-slope"),
        (quantised(), 1e-50, "slope above 0, found 1e-50", "write-slope"),
    ],
)
def test_what_cannot_be_scaled_is_refused(tmp_path, data, slope, words, code):
    with pytest.raises(ShapeError, match=words) as caught:
        write_nifti_scaled(data, GRID, tmp_path / "a.nii.gz", slope, None)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_other_endings_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"found the ending .nrrd") as caught:
        write_nifti_scaled(quantised(), GRID, tmp_path / "a.nrrd", SLOPE, None)
    assert caught.value.code == "output-suffix"
    with pytest.raises(ResourceError, match="no such folder"):
        write_nifti_scaled(quantised(), GRID, tmp_path / "absent" / "a.nii", SLOPE, None)


def test_voxels_off_the_grid_of_the_source_are_refused_and_leave_nothing(tmp_path):
    _, scan = image_on(tmp_path / "a.nii", GRID)
    moved = OBLIQUE.copy()
    moved[2, 3] += 0.02
    with pytest.raises(GeometryError, match=r"the result where the image was, .* 0.020 mm") as c:
        write_nifti_scaled(
            quantised(), Grid((5, 6, 7), moved), tmp_path / "b.nii.gz", SLOPE, scan.source
        )
    assert (c.value.code, c.value.where) == ("verify-geometry", str(tmp_path / "b.nii.gz"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize(
    ("at", "code"),
    [
        (-1, "verify-voxels"),  # the last voxel
        (112, "verify-voxels"),  # the lowest bit of scl_slope
        (256, "verify-geometry"),  # the lowest bit of quatern_b: with an sform, no corner sees it
        (None, "verify-voxels"),  # a byte too many
    ],
)
def test_a_file_that_the_disk_changed_is_not_given_its_name(tmp_path, monkeypatch, at, code):
    _, scan = image_on(tmp_path / "a.nii", GRID)
    write_file = nifti._write_file

    def write_and_damage(path, header, data_ijk):
        write_file(path, header, data_ijk)
        content = bytearray(path.read_bytes())
        if at is None:
            content.append(0)
        else:
            content[at] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(nifti, "_write_file", write_and_damage)
    with pytest.raises((FormatError, GeometryError), match="on reading back") as caught:
        write_nifti_scaled(quantised(), GRID, tmp_path / "b.nii", SLOPE, scan.source)
    assert caught.value.code == code
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]


def test_a_file_cut_off_in_writing_leaves_nothing(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from medseg.core import Grid
        from medseg.errors import ResourceError
        from medseg.io.nifti import write_nifti_scaled
        data = np.random.default_rng(0).integers(0, 256, (60, 60, 60)).astype(np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_nifti_scaled(data, Grid(data.shape, np.eye(4)), Path(sys.argv[1]), 0.5, None)
        except ResourceError as error:
            sys.exit(error.code)
    """)
    for name in ("a.nii", "a.nii.gz"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.strip()) == (1, "disk-full")
    assert list(tmp_path.iterdir()) == []
