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

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import FormatError, GeometryError, ResourceError, ShapeError
from medseg.io.nifti import (
    read_nifti,
    read_nifti_labels,
    verify_nifti_labels,
    write_nifti_labels,
)
from medseg.io.nifti_header import GEOMETRY_FIELDS
from medseg.io.scan import ItkSource
from medseg.io.writing import write_volume
from tests.grids import grids, rotation

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCHEME = LabelScheme.plain("parts", {1: "one", 2: "two", 300: "many"})
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation((1.0, 0.1, -0.05, 0.2)) * (0.7, 0.9, 3.0)
OBLIQUE[:3, 3] = (-80.0, 40.0, 12.5)


def noise(shape=(5, 6, 7), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 1000, shape).astype(dtype)


def save(path, data, affine=OBLIQUE, *, kind=nibabel.Nifti1Image, **fields):
    """Write with nibabel, setting header fields behind its back."""
    image = kind(data, affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def save_raw(path, header, data):
    """Write a single file from a header as it stands and raw voxels."""
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    return path


def header_of(data, affine=OBLIQUE, *, endianness="<", kind=nibabel.Nifti1Header):
    header = kind(endianness=endianness)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = header.single_magic
    return header


def labels_on(grid, values=(0, 1, 2)) -> LabelMap:
    data = np.random.default_rng(1).choice(values, grid.shape_ijk)
    return LabelMap(data.astype(np.uint16), grid, SCHEME)


# -- reading: laws and oracles


@settings(max_examples=30, deadline=None)
@given(
    grids(),
    st.sampled_from([np.uint8, np.int16, np.int32, np.float32]),
    st.sampled_from("<>"),
    st.sampled_from([nibabel.Nifti1Header, nibabel.Nifti2Header]),
)
def test_voxels_and_affine_are_those_nibabel_reads(tmp_path_factory, grid, dtype, endianness, kind):
    path = tmp_path_factory.mktemp("nifti") / "a.nii"
    data = noise(grid.shape_ijk, np.dtype(dtype).newbyteorder(endianness))
    save_raw(path, header_of(data, grid.affine_ras, endianness=endianness, kind=kind), data)
    scan = read_nifti(path)
    expected = nibabel.load(path)
    np.testing.assert_array_equal(scan.volume.data_cijk[0], np.asarray(expected.dataobj))
    np.testing.assert_array_equal(scan.volume.grid.affine_ras, expected.affine)
    assert scan.volume.data_cijk.dtype == np.dtype(dtype)
    assert scan.volume.data_cijk.dtype.isnative


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        (0.0, 5.0, np.int16),
        (np.nan, 0.0, np.int16),
        (1.0, 0.0, np.int16),
        (1.0, -1024.0, np.int16),
        (2.0, 7.0, np.int16),
        (100.0, 0.0, np.int32),
        (1e9, 0.0, np.float32),
        (0.5, 0.0, np.float32),
        (2.209, 1.5, np.float32),
    ],
)
def test_scaling_agrees_with_nibabel_and_keeps_integers_where_exact(
    tmp_path, slope, intercept, dtype
):
    data = noise()
    header = header_of(data)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    path = save_raw(tmp_path / "a.nii", header, data)
    voxels = read_nifti(path).volume.data_cijk[0]
    assert voxels.dtype == dtype
    np.testing.assert_allclose(voxels, nibabel.load(path).get_fdata(), rtol=1e-6)


@pytest.mark.parametrize(
    ("stored", "top", "dtype"),
    [
        (np.uint16, 65535, np.uint16),
        (np.uint32, 70000, np.int32),
        (np.uint32, 2**32 - 1, np.float32),
        (np.int64, -5, np.int32),
        (np.float64, 0.5, np.float32),
    ],
)
def test_wide_types_are_narrowed_only_where_exact_or_to_floats(tmp_path, stored, top, dtype):
    data = np.full((2, 2, 2), top, stored)
    path = save_raw(tmp_path / "a.nii", header_of(data), data)
    voxels = read_nifti(path).volume.data_cijk
    assert voxels.dtype == dtype
    assert voxels.max() == np.float32(top)


def test_large_scaled_images_are_worked_in_slabs(tmp_path):
    data = np.arange(2 * 300 * 300 * 50, dtype=np.int32).reshape(2, 300, 300 * 50) % 1000
    header = header_of(data)
    header["scl_slope"], header["scl_inter"] = 0.25, -3.0
    path = save_raw(tmp_path / "a.nii", header, data)
    np.testing.assert_array_equal(read_nifti(path).volume.data_cijk[0], data * 0.25 - 3.0)


def test_trailing_extents_of_one_are_dropped_and_a_plane_is_one_slice(tmp_path):
    data = noise((4, 5, 6, 1, 1))
    path = save_raw(tmp_path / "a.nii", header_of(data), data)
    assert read_nifti(path).volume.grid.shape_ijk == (4, 5, 6)
    plane = noise((4, 5))
    path = save_raw(tmp_path / "b.nii", header_of(plane), plane)
    assert read_nifti(path).volume.grid.shape_ijk == (4, 5, 1)


def test_one_volume_of_a_series_is_read_by_its_index(tmp_path):
    data = noise((3, 4, 5, 6))
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, data)
        for index in (0, 5):
            np.testing.assert_array_equal(
                read_nifti(path, time_index=index).volume.data_cijk[0], data[..., index]
            )
        with pytest.raises(ShapeError, match="a time index from 0 to 5, found 6") as caught:
            read_nifti(path, time_index=6)
        assert caught.value.code == "time-index"
    path = save(tmp_path / "b.nii", noise((3, 4, 5)))
    assert read_nifti(path, time_index=0).volume.grid.shape_ijk == (3, 4, 5)
    with pytest.raises(ShapeError, match="from 0 to 0, found 1"):
        read_nifti(path, time_index=1)


@pytest.mark.parametrize("suffix", [".hdr", ".img"])
def test_either_file_of_a_pair_may_be_given(tmp_path, suffix):
    data = noise()
    save(tmp_path / "a.img", data, kind=nibabel.Nifti1Pair)
    scan = read_nifti(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.volume.data_cijk[0], data)


def test_packed_data_beside_an_unpacked_header_are_found(tmp_path):
    data = noise()
    save(tmp_path / "a.img", data, kind=nibabel.Nifti1Pair)
    packed = gzip.compress((tmp_path / "a.img").read_bytes())
    (tmp_path / "a.img").unlink()
    (tmp_path / "a.img.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.hdr").volume.data_cijk[0], data)


# -- reading: which form


def test_the_sform_is_used_before_the_qform_and_a_difference_is_noted(tmp_path):
    data = noise()
    header = header_of(data)
    moved = OBLIQUE.copy()
    moved[0, 3] += 2.0
    header.set_qform(moved, 2)
    scan = read_nifti(save_raw(tmp_path / "a.nii", header, data))
    np.testing.assert_allclose(scan.volume.grid.affine_ras, OBLIQUE, atol=1e-5)
    assert scan.notes == (
        "geometry from the sform (code 1)",
        "the unused qform differs by up to 2.00 mm",
    )


def test_the_qform_is_used_where_the_sform_is_unset(tmp_path):
    data = noise()
    header = header_of(data)
    header["sform_code"] = 0
    header["qform_code"] = 3
    path = save_raw(tmp_path / "a.nii", header, data)
    scan = read_nifti(path)
    assert scan.notes == ("geometry from the qform (code 3)",)
    assert (scan.source.sform_code, scan.source.qform_code) == (0, 3)
    np.testing.assert_allclose(scan.volume.grid.affine_ras, nibabel.load(path).affine)


def test_without_any_form_the_axes_are_nibabels_and_that_is_noted(tmp_path):
    data = noise()
    header = header_of(data)
    header["sform_code"] = header["qform_code"] = 0
    path = save_raw(tmp_path / "a.nii", header, data)
    scan = read_nifti(path)
    assert "neither sform nor qform is set" in scan.notes[0]
    np.testing.assert_array_equal(scan.volume.grid.affine_ras, nibabel.load(path).affine)


def test_a_qfac_of_zero_counts_as_one(tmp_path):
    data = noise()
    header = header_of(data)
    header["sform_code"] = 0
    header["pixdim"][0] = 0
    grid = read_nifti(save_raw(tmp_path / "a.nii", header, data)).volume.grid
    np.testing.assert_allclose(grid.affine_ras, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quatern_b": 3.0}, "a quaternion longer than 1"),
        ({"qoffset_x": np.nan}, "a qform with NaN or infinity"),
    ],
)
def test_a_broken_qform_is_noted_if_unused_and_refused_if_needed(tmp_path, fields, words):
    data = noise()
    header = header_of(data)
    for name, value in fields.items():
        header[name] = value
    scan = read_nifti(save_raw(tmp_path / "a.nii", header, data))
    assert scan.notes[1] == f"the unused qform is invalid: {words}"
    header["sform_code"] = 0
    with pytest.raises(GeometryError, match=words) as caught:
        read_nifti(save_raw(tmp_path / "a.nii", header, data))
    assert caught.value.code == "affine-invalid"


def test_an_unused_qform_without_voxel_sizes_is_noted(tmp_path):
    data = noise()
    header = header_of(data)
    header["pixdim"][2] = 0.0
    scan = read_nifti(save_raw(tmp_path / "a.nii", header, data))
    assert "cannot be inverted" in scan.notes[1]


def test_a_singular_sform_is_refused_under_the_name_of_the_file(tmp_path):
    data = noise()
    header = header_of(data)
    header["srow_x"] = header["srow_y"]
    path = save_raw(tmp_path / "a.nii", header, data)
    with pytest.raises(GeometryError, match="in one plane") as caught:
        read_nifti(path)
    assert (caught.value.where, caught.value.code) == (str(path), "affine-invalid")


@pytest.mark.parametrize(("degrees", "accepted"), [(0.02, True), (0.4, True), (0.7, False)])
def test_shear_is_read_up_to_half_a_degree(tmp_path, degrees, accepted):
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.radians(degrees))
    path = save(tmp_path / "a.nii", noise(), affine)
    if not accepted:
        with pytest.raises(GeometryError, match=r"axes 0.70 degrees off") as caught:
            read_nifti(path)
        assert caught.value.code == "affine-sheared"
        return
    scan = read_nifti(path)
    assert scan.volume.grid.shear_deg == pytest.approx(degrees, abs=1e-4)
    assert any("kept so" in note for note in scan.notes) == (degrees > 0.05)


@pytest.mark.parametrize(("code", "unit"), [(1, "metres"), (3, "micrometres")])
def test_other_units_than_millimetres_are_refused(tmp_path, code, unit):
    path = save(tmp_path / "a.nii", noise(), xyzt_units=code)
    with pytest.raises(GeometryError, match=f"found {unit}") as caught:
        read_nifti(path)
    assert caught.value.code == "units"


# -- reading: refusals


def test_a_series_and_a_vector_image_are_refused(tmp_path):
    with pytest.raises(FormatError, match="a series or several channels; split it") as caught:
        read_nifti(save(tmp_path / "a.nii.gz", noise((3, 4, 5, 2))))
    assert caught.value.code == "image-4d"
    with pytest.raises(FormatError, match="a vector or tensor image") as caught:
        read_nifti(save(tmp_path / "b.nii.gz", noise((3, 4, 5, 1, 3))), time_index=0)
    assert caught.value.code == "image-4d"


@pytest.mark.parametrize(
    ("datatype", "words", "code"),
    [
        (128, "colour voxels", "voxels-colour"),
        (2304, "colour voxels", "voxels-colour"),
        (32, "complex voxels", "voxels-complex"),
        (1, "data type code 1", "voxel-type"),
        (9999, "data type code 9999", "voxel-type"),
    ],
)
def test_voxels_that_are_no_intensity_are_refused(tmp_path, datatype, words, code):
    data = noise()
    header = header_of(data)
    header["datatype"] = datatype
    with pytest.raises(FormatError, match=words) as caught:
        read_nifti(save_raw(tmp_path / "a.nii", header, data))
    assert caught.value.code == code


def test_voxels_without_a_value_are_counted_and_refused(tmp_path):
    data = noise(dtype=np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    with pytest.raises(FormatError, match="3 of 210 voxels that are NaN or infinite") as caught:
        read_nifti(save(tmp_path / "a.nii", data))
    assert caught.value.code == "voxels-not-finite"
    with pytest.raises(FormatError, match="range of 32-bit floats"):
        read_nifti(save(tmp_path / "b.nii", np.full((2, 2, 2), 1e300)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResourceError, match="an existing file, found nothing") as caught:
        read_nifti(tmp_path / "absent.nii.gz")
    assert caught.value.code == "file-missing"


def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path):
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(ResourceError, match="a readable file") as caught:
        read_nifti(tmp_path / "a.nii")
    assert caught.value.code == "input-unreadable"


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(FormatError, match="an empty file") as caught:
        read_nifti(tmp_path / "a.nii.gz")
    assert caught.value.code == "file-empty"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_text_is_not_an_image(tmp_path, name):
    (tmp_path / name).write_text("patient list\n" * 100)
    with pytest.raises(FormatError, match=r"expected (gzip-comp|a NIfTI)") as caught:
        read_nifti(tmp_path / name)
    assert caught.value.code == "not-an-image"


def test_packed_text_is_not_an_image(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"patient list\n" * 100))
    with pytest.raises(FormatError, match="a NIfTI header") as caught:
        read_nifti(tmp_path / "a.nii.gz")
    assert caught.value.code == "not-an-image"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_file_cut_off_anywhere_is_truncated(tmp_path, name, kept):
    path = save(tmp_path / name, noise((20, 20, 20)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(FormatError, match="a transfer was probably cut off") as caught:
        read_nifti(path)
    assert caught.value.code == "file-truncated"


@pytest.mark.parametrize("kept", [4, 100, 347])
def test_a_header_cut_off_is_truncated(tmp_path, kept):
    data = noise()
    path = save_raw(tmp_path / "a.nii", header_of(data), data)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        FormatError, match=r"a NIfTI header of 348 bytes, found \d+ bytes"
    ) as caught:
        read_nifti(path)
    assert caught.value.code == "file-truncated"
    other = tmp_path / "b.nii"
    save_raw(other, header_of(data, kind=nibabel.Nifti2Header), data)
    other.write_bytes(other.read_bytes()[:400])
    with pytest.raises(FormatError, match="a NIfTI header of 540 bytes, found 400"):
        read_nifti(other)


def test_a_packed_file_that_holds_too_little_is_truncated(tmp_path):
    data = noise()
    whole = save_raw(tmp_path / "a.nii", header_of(data), data).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:-10]))
    with pytest.raises(FormatError, match="420 bytes of voxels, found 410 bytes") as caught:
        read_nifti(tmp_path / "a.nii.gz")
    assert caught.value.code == "file-truncated"


@pytest.mark.parametrize("at", [0.5, 1.0])
def test_a_flipped_bit_in_a_packed_file_is_found(tmp_path, at):
    """At the end of the file the checksum itself is hit, after all voxels are there."""
    path = save(tmp_path / "a.nii.gz", noise((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * at), len(content) - 5)] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"intact gzip stream|complete gzip stream") as caught:
        read_nifti(path)
    assert caught.value.code in ("file-damaged", "file-truncated")


def test_a_header_that_asks_for_exabytes_is_refused_at_once(tmp_path):
    data = noise()
    header = header_of(data)
    header["dim"][1:4] = 32767
    for name in ("a.nii", "a.nii.gz"):
        path = save_raw(tmp_path / name, header, data)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(FormatError, match="bytes of voxels") as caught:
            read_nifti(path)
        assert caught.value.code == "file-truncated"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 0, 5, 5, 1, 1, 1, 1]}, "1 to 7 extents"),
        ({"dim": [3, -4, 5, 5, 1, 1, 1, 1]}, "1 to 7 extents"),
        ({"vox_offset": 0}, "voxels that begin at byte 352"),
        ({"vox_offset": np.nan}, "voxels that begin at byte 352"),
        ({"scl_slope": 2.0, "scl_inter": np.inf}, "a finite scl_inter"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(tmp_path, fields, words):
    data = noise()
    header = header_of(data)
    for name, value in fields.items():
        header[name] = value
    with pytest.raises(FormatError, match=words) as caught:
        read_nifti(save_raw(tmp_path / "a.nii", header, data))
    assert caught.value.code == "header-invalid"


def test_an_analyze_header_is_refused(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(noise(), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(FormatError, match="does not tell left from right") as caught:
        read_nifti(tmp_path / "a.img")
    assert caught.value.code == "analyze-header"


def test_a_header_without_its_data_is_refused(tmp_path):
    save(tmp_path / "a.img", noise(), kind=nibabel.Nifti1Pair)
    (tmp_path / "a.img").unlink()
    with pytest.raises(FormatError, match="keep header and data files together") as caught:
        read_nifti(tmp_path / "a.hdr")
    assert caught.value.code == "image-data-missing"
    (tmp_path / "a.img").mkdir()
    with pytest.raises(ResourceError, match="a readable file") as unreadable:
        read_nifti(tmp_path / "a.hdr")
    assert unreadable.value.code == "input-unreadable"
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    with pytest.raises(FormatError, match=r"the header of an .hdr/.img pair") as caught:
        read_nifti(tmp_path / "b.nii")
    assert caught.value.code == "not-an-image"


# -- writing


@settings(max_examples=25, deadline=None)
@given(
    grids(),
    st.sampled_from("<>"),
    st.sampled_from([nibabel.Nifti1Header, nibabel.Nifti2Header]),
    st.sampled_from(list(itertools.product((0, 1, 2), (0, 1, 4)))),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_labels_come_back_with_the_sources_geometry_fields_bit_for_bit(
    tmp_path_factory, grid, endianness, kind, codes, suffix
):
    folder = tmp_path_factory.mktemp("nifti")
    data = noise((*grid.shape_ijk, 1), np.dtype(np.int16).newbyteorder(endianness))
    header = header_of(data, grid.affine_ras, endianness=endianness, kind=kind)
    header["sform_code"], header["qform_code"] = codes
    header["pixdim"][4] = 2.5
    header["descrip"] = b"DOE JOHN"
    scan = read_nifti(save_raw(folder / "image.nii", header, data))
    labels = labels_on(scan.volume.grid)
    target = folder / f"labels{suffix}"
    write_nifti_labels(labels, target, scan.source)
    back = nibabel.load(target)
    np.testing.assert_array_equal(np.asarray(back.dataobj), labels.data_ijk)
    assert back.get_data_dtype() == np.uint8
    content = target.read_bytes()
    content = gzip.decompress(content) if suffix == ".nii.gz" else content
    written = kind(content[: kind.sizeof_hdr], check=False)
    for name in GEOMETRY_FIELDS:
        assert written[name].tobytes() == header[name].tobytes(), name
    assert written["dim"][:4].tolist() == [3, *grid.shape_ijk]
    assert b"DOE" not in content
    assert read_nifti_labels(target, SCHEME).grid == scan.volume.grid
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(["image.nii", target.name])


@settings(max_examples=25, deadline=None)
@given(grids())
def test_labels_of_another_source_are_where_simpleitk_expects_them(tmp_path_factory, grid):
    path = tmp_path_factory.mktemp("nifti") / "labels.nii.gz"
    labels = labels_on(grid)
    write_nifti_labels(labels, path, ItkSource(path))
    header = nibabel.load(path).header
    assert int(header["sform_code"]) == 1
    assert header.get_xyzt_units()[0] == "mm"
    if int(header["qform_code"]):  # left out where 32-bit quaternions are too coarse
        assert Grid(grid.shape_ijk, header.get_qform()).distance_mm(grid) <= 0.01
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), labels.data_ijk)
    last = [extent - 1 for extent in grid.shape_ijk]
    for voxel in ([0, 0, 0], last):
        there = RAS_FROM_LPS[:3, :3] @ image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(there, grid.world_from_voxel(voxel), atol=0.01)


def test_a_result_for_a_plane_is_a_plane(tmp_path):
    plane = noise((4, 5))
    header = header_of(plane)
    header["sform_code"] = header["qform_code"] = 0
    scan = read_nifti(save_raw(tmp_path / "a.nii", header, plane))
    write_nifti_labels(labels_on(scan.volume.grid), tmp_path / "b.nii", scan.source)
    assert nibabel.load(tmp_path / "b.nii").shape == (4, 5)


def test_labels_above_255_are_written_with_16_bits(tmp_path):
    labels = labels_on(Grid((4, 5, 6), OBLIQUE), values=(0, 300))
    write_nifti_labels(labels, tmp_path / "a.nii.gz", ItkSource(tmp_path))
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert header.get_data_dtype() == np.uint16
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    back = read_nifti_labels(tmp_path / "a.nii.gz", SCHEME)
    np.testing.assert_array_equal(back.data_ijk, labels.data_ijk)


def test_equal_labels_make_equal_bytes(tmp_path):
    labels = labels_on(Grid((4, 5, 6), OBLIQUE))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti_labels(labels, tmp_path / name, ItkSource(tmp_path))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_slight_shear_leaves_only_the_sform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.008
    labels = labels_on(Grid((4, 50, 6), affine))
    write_nifti_labels(labels, tmp_path / "a.nii", ItkSource(tmp_path))
    header = nibabel.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)


def test_labels_off_the_grid_of_their_source_are_refused_and_leave_nothing(tmp_path):
    scan = read_nifti(save(tmp_path / "a.nii", noise()))
    moved = OBLIQUE.copy()
    moved[2, 3] += 0.02
    labels = labels_on(Grid((5, 6, 7), moved))
    with pytest.raises(GeometryError, match=r"a corner voxel 0.020 mm away") as caught:
        write_nifti_labels(labels, tmp_path / "b.nii.gz", scan.source)
    assert (caught.value.code, caught.value.where) == (
        "verify-geometry",
        str(tmp_path / "b.nii.gz"),
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.nii"]


def test_verification_sees_other_labels_and_other_headers(tmp_path):
    scan = read_nifti(save(tmp_path / "a.nii", noise()))
    labels = labels_on(scan.volume.grid)
    path = tmp_path / "b.nii"
    write_nifti_labels(labels, path, scan.source)
    verify_nifti_labels(path, labels, scan.source)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="other voxels on reading back") as caught:
        verify_nifti_labels(path, labels, scan.source)
    assert caught.value.code == "verify-labels"
    content[-1] ^= 1
    content[256] ^= 1  # the lowest bit of quatern_b: no sform, no corner sees it
    path.write_bytes(content)
    with pytest.raises(GeometryError, match="another quatern_b in the header") as caught:
        verify_nifti_labels(path, labels, scan.source)
    assert caught.value.code == "verify-geometry"
    path.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=r"result.nii: expected 210 bytes") as caught:
        verify_nifti_labels(path, labels, scan.source, named=tmp_path / "result.nii")
    assert caught.value.code == "file-truncated"


def test_other_endings_are_refused_for_output(tmp_path):
    labels = labels_on(Grid((4, 5, 6), OBLIQUE))
    with pytest.raises(FormatError, match=r"ends in .nii or .nii.gz, found the ending .nrrd") as c:
        write_nifti_labels(labels, tmp_path / "a.nrrd", ItkSource(tmp_path))
    assert c.value.code == "output-suffix"


def test_an_unwritable_folder_is_named(tmp_path):
    labels = labels_on(Grid((4, 5, 6), OBLIQUE))
    with pytest.raises(ResourceError, match="no such folder"):
        write_nifti_labels(labels, tmp_path / "absent" / "a.nii.gz", ItkSource(tmp_path))


def test_a_file_cut_off_in_writing_leaves_nothing(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from medseg.core import Grid, LabelMap, LabelScheme
        from medseg.errors import ResourceError
        from medseg.io.nifti import write_nifti_labels
        from medseg.io.scan import ItkSource
        target = Path(sys.argv[1])
        data = np.random.default_rng(0).integers(0, 2, (60, 60, 60)).astype(np.uint8)
        labels = LabelMap(data, Grid(data.shape, np.eye(4)), LabelScheme.plain("s", {1: "a"}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_nifti_labels(labels, target, ItkSource(target))
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


# -- labels


def test_labels_stored_as_floats_are_accepted_if_whole(tmp_path):
    data = np.array([0.0, 1.0, 2.0, 300.0]).reshape(4, 1, 1)
    labels = read_nifti_labels(save(tmp_path / "a.nii", data), SCHEME)
    assert labels.data_ijk.dtype == np.uint16
    assert labels.data_ijk.ravel().tolist() == [0, 1, 2, 300]


@pytest.mark.parametrize(
    ("values", "error", "words", "code"),
    [
        ([0.0, 0.5], FormatError, "1 of 2 voxels in between", "labels-not-integer"),
        ([0.0, -1.0], FormatError, "values from -1 to 0", "labels-range"),
        ([0.0, 70000.0], FormatError, "values from 0 to 70000", "labels-range"),
        ([0.0, 7.0], ShapeError, r"also \[7\]", "labelmap-values"),
    ],
)
def test_voxels_that_are_no_labels_are_refused(tmp_path, values, error, words, code):
    path = save(tmp_path / "a.nii", np.array(values, np.float32).reshape(2, 1, 1))
    with pytest.raises(error, match=words) as caught:
        read_nifti_labels(path, SCHEME)
    assert (caught.value.code, caught.value.where) == (code, str(path))


# -- real files

REFUSED = {
    "d2n_rgba.nii.gz": "voxels-colour",
    "img4d_11f.nii.gz": "image-4d",
    "nibabel_example4d.nii.gz": "image-4d",
    "nibabel_example_nifti2.nii.gz": "image-4d",
    "nibabel_functional.nii": "image-4d",
    "pcasl.nii.gz": "image-4d",
    "sct_fmri_tsnr_nan.nii.gz": "voxels-not-finite",
    "seg4d_11f.nii.gz": "image-4d",
    "tensor_rgb.nii.gz": "image-4d",
}
READ = [
    "CT_AVM.nii.gz",
    "fmri_pitch.nii.gz",
    "nibabel_anatomical_oblique.nii",
    "papaya_bigendian_float_zstat1.nii.gz",
    "papaya_bigendian_int16_659labels.nii.gz",
    "t1_chunk.nii.gz",
    "t2_chunk.nii.gz",
]


@pytest.mark.shared_data
def test_every_edge_case_is_in_one_of_the_two_tables(shared_data):
    folder = shared_data / "10_nifti_edge_cases"
    names = {entry.name for entry in folder.iterdir() if ".nii" in entry.name}
    assert names == {*READ, *REFUSED}


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "code"), REFUSED.items())
def test_edge_cases_that_are_no_single_image_are_refused(shared_data, name, code):
    with pytest.raises(FormatError) as caught:
        read_nifti(shared_data / "10_nifti_edge_cases" / name)
    assert caught.value.code == code


@pytest.mark.shared_data
@pytest.mark.parametrize("name", READ)
def test_edge_cases_agree_with_nibabel_and_simpleitk(shared_data, tmp_path, name):
    path = shared_data / "10_nifti_edge_cases" / name
    scan = read_nifti(path)
    expected = nibabel.load(path)
    np.testing.assert_allclose(
        scan.volume.data_cijk[0], np.squeeze(np.asarray(expected.dataobj)), rtol=1e-6
    )
    grid = scan.volume.grid
    np.testing.assert_allclose(grid.affine_ras, expected.affine, atol=1e-6)
    image = sitk.ReadImage(str(path))
    padding = [0] * (image.GetDimension() - 3)
    for voxel in itertools.product(*((0, extent - 1) for extent in grid.shape_ijk)):
        there = image.TransformIndexToPhysicalPoint([*voxel, *padding])[:3]
        np.testing.assert_allclose(
            RAS_FROM_LPS[:3, :3] @ there, grid.world_from_voxel(voxel), atol=0.01
        )
    write_nifti_labels(labels_on(grid), tmp_path / "labels.nii.gz", scan.source)
    np.testing.assert_allclose(
        nibabel.load(tmp_path / "labels.nii.gz").affine, expected.affine, atol=1e-6
    )


@pytest.mark.shared_data
def test_volumes_of_a_real_series_are_those_nibabel_reads(shared_data):
    path = shared_data / "10_nifti_edge_cases" / "nibabel_functional.nii"
    scan = read_nifti(path, time_index=7)
    np.testing.assert_allclose(
        scan.volume.data_cijk[0], nibabel.load(path).get_fdata()[..., 7], rtol=1e-6
    )


def test_a_small_rotation_is_written_as_exactly_as_a_large_one(tmp_path):
    """Near half a turn the quaternion loses digits; the sform keeps the place."""
    for quaternion in ((1e-4, 1.0, 0.0, 0.0), (1.0, 1e-4, 0.0, 0.0)):
        affine = np.eye(4)
        affine[:3, :3] = rotation(quaternion)
        grid = Grid((200, 200, 200), affine)
        data = np.zeros((1, *grid.shape_ijk), np.uint8)
        write_volume(Volume(data, grid), tmp_path / "a.nii")
        assert read_nifti(tmp_path / "a.nii").volume.grid.distance_mm(grid) < 0.01


def heart(path, sform, pixdim, *, qform_code=0):
    """A file whose sform and pixdim are set apart from each other, which nibabel would not do."""
    data = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(data, np.asarray(sform, float))
    image.set_sform(sform, code=2)
    image.set_qform(sform if qform_code else None, code=qform_code)
    image.header["pixdim"][1:4] = pixdim
    nibabel.save(image, path)
    stored = nibabel.Nifti1Header(path.read_bytes()[:348], check=False)
    np.testing.assert_array_equal(stored["pixdim"][1:4], np.float32(pixdim))
    assert (int(stored["sform_code"]), int(stored["qform_code"])) == (2, qform_code)
    return path


SIZES_MM = (1.25, 1.5, 10.0)
SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1.0, 1.0), repeat=3)
]


def itk_affine_ras(path):
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return RAS_FROM_LPS @ affine


def test_where_an_sform_of_unit_axes_has_lost_the_voxel_size_pixdim_gives_it_as_in_itk(tmp_path):
    """As in the released ACDC files, in every direction that such an sform can state."""
    for number, axes in enumerate(SIGNED_PERMUTATIONS):
        sform = np.eye(4)
        sform[:3] = np.column_stack([axes, (5.0, -7.0, 11.0)])
        path = heart(tmp_path / f"{number}.nii", sform, SIZES_MM)
        scan = read_nifti(path)
        grid = scan.volume.grid
        assert grid.spacing_mm == SIZES_MM
        np.testing.assert_array_equal(grid.affine_ras[:3, :3], axes * SIZES_MM)
        np.testing.assert_allclose(grid.affine_ras, itk_affine_ras(path), atol=1e-5)
        assert (
            "voxel size from pixdim (1.25 x 1.5 x 10 mm), because the sform has lost it"
            in scan.notes[1]
        )


def test_a_result_for_an_image_of_lost_voxel_size_is_read_on_its_grid_by_everyone(tmp_path):
    path = heart(tmp_path / "heart.nii", np.diag([-1.0, -1.0, 1.0, 1.0]), SIZES_MM)
    scan = read_nifti(path)
    out = tmp_path / "labels.nii.gz"
    write_nifti_labels(labels_on(scan.volume.grid), out, scan.source)
    np.testing.assert_array_equal(
        read_nifti(out).volume.grid.affine_ras, scan.volume.grid.affine_ras
    )
    image, labels = nibabel.load(path), nibabel.load(out)
    np.testing.assert_array_equal(labels.affine, image.affine)
    np.testing.assert_array_equal(itk_affine_ras(out), itk_affine_ras(path))
    for field in GEOMETRY_FIELDS:
        np.testing.assert_array_equal(labels.header[field], image.header[field])


TILTED = np.eye(4)
TILTED[:3, :3] = rotation((1.0, 0.1, -0.05, 0.2))


@pytest.mark.parametrize(
    ("sform", "pixdim", "qform_code"),
    [
        (np.diag([-1.0, -1.0, 1.0, 1.0]), SIZES_MM, 1),
        (TILTED, SIZES_MM, 0),
        (np.diag([-1.0, -1.0, 1.001, 1.0]), SIZES_MM, 0),
        (np.diag([-2.0, -2.0, 2.0, 1.0]), SIZES_MM, 0),
        (np.eye(4), (np.inf, 1.5, 10.0), 0),
    ],
    ids=["a qform beside it", "oblique", "almost 1 mm", "2 mm", "no size in pixdim"],
)
def test_any_other_sform_that_contradicts_pixdim_stands_with_a_note(
    tmp_path, sform, pixdim, qform_code
):
    path = heart(tmp_path / "a.nii", sform, pixdim, qform_code=qform_code)
    scan = read_nifti(path)
    np.testing.assert_array_equal(scan.volume.grid.affine_ras, np.float32(sform))
    assert any("mm) is not that of the sform" in note for note in scan.notes)


@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (1.0, 1.005, 0.995), (1.0, 0.0, 10.0)])
def test_an_sform_of_unit_axes_stands_where_pixdim_says_the_same_or_nothing(tmp_path, pixdim):
    scan = read_nifti(heart(tmp_path / "a.nii", np.eye(4), pixdim))
    assert scan.volume.grid.spacing_mm == (1, 1, 1)
    assert not any("pixdim" in note for note in scan.notes)


@pytest.mark.shared_data
def test_real_cardiac_mr_is_read_with_the_voxel_size_that_itk_reads(shared_data):
    paths = sorted((shared_data / "02_acdc" / "training").glob("*/*_gt.nii.gz"))
    assert len(paths) == 30
    for path in paths:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        spacing_mm = read_nifti(path).volume.grid.spacing_mm
        np.testing.assert_allclose(spacing_mm, reader.GetSpacing(), rtol=1e-6)
        assert spacing_mm[2] >= 5.0 > spacing_mm[0] > 1.3


def test_a_voxel_size_that_agrees_with_the_sform_is_not_noted(tmp_path):
    path = tmp_path / "head.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([-2, 2, 3, 1.0])), path
    )
    assert not any("pixdim" in note for note in read_nifti(path).notes)


def test_labels_of_a_tilted_series_keep_their_lean_and_are_read_back_with_it(tmp_path):
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[1, 2] = 0.8
    grid = Grid((5, 4, 3), affine)
    scheme = LabelScheme.plain("one", {1: "a"})
    data = np.random.default_rng(0).integers(0, 2, grid.shape_ijk).astype(np.uint8)
    path = tmp_path / "dseg.nii.gz"
    write_nifti_labels(LabelMap(data, grid, scheme), path, ItkSource(tmp_path / "x.nrrd"))
    found = read_nifti_labels(path, scheme)
    assert np.array_equal(found.data_ijk, data)
    assert found.grid.distance_mm(grid) < 1e-4
    assert nibabel.load(path).affine == pytest.approx(affine, abs=1e-5)
    with pytest.raises(GeometryError) as caught:
        read_nifti(path)
    assert caught.value.code == "affine-sheared"
