import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings

from medseg.core import Grid, LabelScheme
from medseg.errors import FormatError, GeometryError, ResourceError
from medseg.io.itk_formats import read_itk, read_itk_labels
from tests.grids import grids

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = [".nrrd", ".nhdr", ".mha", ".mhd"]
NRRD_RAW = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 2 3 4
space directions: (1,0,0) (0,2,0) (0,0,3)
space origin: (5,6,7)
endian: little
encoding: raw
"""


def noise(shape=(7, 6, 5), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)


def save(path: Path, data_kji, grid: Grid | None = None, *, packed=False, vector=False) -> Path:
    image = sitk.GetImageFromArray(data_kji, isVector=vector)
    if grid is not None:
        affine_lps = LPS_FROM_RAS @ grid.affine_ras
        image.SetSpacing(grid.spacing_mm)
        image.SetOrigin(affine_lps[:3, 3].tolist())
        image.SetDirection((affine_lps[:3, :3] / grid.spacing_mm).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


def nrrd(path: Path, *, header=NRRD_RAW, data=None, **replaced: str) -> Path:
    lines = header.splitlines()
    for key, value in replaced.items():
        field = key.replace("_", " ")
        names = [line.partition(":")[0] for line in lines]
        at = names.index(field) if field in names else len(names)
        lines[at : at + 1] = [f"{field}: {value}"] if value else []
    content = np.arange(24, dtype="<i2").tobytes() if data is None else data
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + content)
    return path


@settings(max_examples=25, deadline=None)
@given(grids())
def test_voxels_and_places_are_those_that_simpleitk_wrote(tmp_path_factory, grid):
    folder = tmp_path_factory.mktemp("itk")
    data = noise(grid.shape_ijk[::-1])
    for suffix in SUFFIXES:
        scan = read_itk(save(folder / f"a{suffix}", data, grid, packed=suffix == ".mha"))
        np.testing.assert_array_equal(scan.volume.data_cijk[0], data.transpose(2, 1, 0))
        assert scan.volume.grid.distance_mm(grid) < 1e-6
        assert scan.source.path == folder / f"a{suffix}"
        assert scan.notes == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (np.uint8, np.uint8),
        (np.int8, np.int8),
        (np.uint16, np.uint16),
        (np.int32, np.int32),
        (np.uint32, np.int32),
        (np.int64, np.int32),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_every_voxel_type_keeps_its_values(tmp_path, suffix, packed, stored, kept):
    data = noise(dtype=stored) % 100
    voxels = read_itk(save(tmp_path / f"a{suffix}", data, packed=packed)).volume.data_cijk[0]
    assert voxels.dtype == kept
    np.testing.assert_array_equal(voxels, data.transpose(2, 1, 0))


def test_an_nrrd_in_ras_worked_on_paper(tmp_path):
    grid = read_itk(nrrd(tmp_path / "a.nrrd", space="right-anterior-superior")).volume.grid
    np.testing.assert_allclose(
        grid.affine_ras, [[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]]
    )
    grid = read_itk(nrrd(tmp_path / "b.nrrd")).volume.grid
    assert grid.orientation == "LPS"
    assert grid.origin_ras.tolist() == [-5.0, -6.0, 7.0]


def test_a_trailing_extent_of_one_is_dropped(tmp_path):
    data = noise((1, 4, 5, 6))
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), str(tmp_path / "a.mha"))
    scan = read_itk(tmp_path / "a.mha")
    np.testing.assert_array_equal(scan.volume.data_cijk[0], data[0].transpose(2, 1, 0))


def test_a_metaimage_without_directions_is_lps_with_a_note(tmp_path):
    header = "NDims = 3\nDimSize = 2 3 4\nElementSpacing = 1 2 3\nElementType = MET_SHORT\n"
    content = header.encode() + b"ElementDataFile = LOCAL\n" + np.arange(24, dtype="<i2").tobytes()
    (tmp_path / "a.mha").write_bytes(content)
    scan = read_itk(tmp_path / "a.mha")
    assert scan.volume.grid.orientation == "LPS"
    assert scan.notes == ("the header states no directions: axes taken as L, P, S",)


def test_slices_in_files_of_their_own_are_left_to_itk(tmp_path):
    data = noise((4, 3, 2))
    for k in range(4):
        (tmp_path / f"s{k}.raw").write_bytes(data[k].astype("<i2").tobytes())
    head = "NDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\n"
    (tmp_path / "a.mhd").write_text(head + "ElementDataFile = s%d.raw 0 3 1\n")
    np.testing.assert_array_equal(
        read_itk(tmp_path / "a.mhd").volume.data_cijk[0], data.transpose(2, 1, 0)
    )
    nrrd(tmp_path / "a.nhdr", data=b"", data_file="s%d.raw 0 3 1")
    assert read_itk(tmp_path / "a.nhdr").volume.grid.shape_ijk == (2, 3, 4)


def test_data_after_a_byte_skip_are_left_to_itk(tmp_path):
    nrrd(tmp_path / "a.nrrd", data=b"skip" + np.arange(24, dtype="<i2").tobytes(), byte_skip="4")
    assert read_itk(tmp_path / "a.nrrd").volume.data_cijk.ravel(order="F").tolist() == [*range(24)]


# -- refusals


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"space": "", "space_origin": "", "space_directions": "", "spacings": "1 2 3"}, "none"),
        ({"space": "scanner-xyz"}, "'scanner-xyz'"),
        ({"space": "3D-right-handed"}, "'3d-right-handed'"),
    ],
)
def test_an_nrrd_that_does_not_say_where_left_is_is_refused(tmp_path, fields, found):
    with pytest.raises(GeometryError, match=f"left-posterior-superior, found {found}") as caught:
        read_itk(nrrd(tmp_path / "a.nrrd", **fields))
    assert caught.value.code == "space-unknown"


def test_sheared_axes_are_refused_with_the_angle(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", space_directions="(1,0,0) (0.1,2,0) (0,0,3)")
    with pytest.raises(GeometryError, match=r"axes 2.86 degrees off") as caught:
        read_itk(path)
    assert caught.value.code == "affine-sheared"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_images_of_other_kinds_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cases = [
        (sitk.GetImageFromArray(noise((2, 4, 5, 6)), isVector=False), "extents", "image-4d"),
        (sitk.GetImageFromArray(noise((4, 5))), "2 dimensions", "image-2d"),
        (sitk.GetImageFromArray(noise((4, 5, 6, 3)), isVector=True), "3 numbers", "voxels-vector"),
    ]
    for image, words, code in cases:
        sitk.WriteImage(image, str(path))
        with pytest.raises(FormatError, match=words) as caught:
            read_itk(path)
        assert caught.value.code == code


def test_complex_voxels_are_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.complex64)), str(path))
    with pytest.raises(FormatError, match="complex voxels; take the magnitude") as caught:
        read_itk(path)
    assert caught.value.code == "voxels-complex"


def test_voxels_without_a_value_are_counted_and_refused(tmp_path):
    data = noise(dtype=np.float32)
    data[0, 0, :2] = np.nan
    with pytest.raises(FormatError, match="2 of 210 voxels") as caught:
        read_itk(save(tmp_path / "a.mha", data))
    assert caught.value.code == "voxels-not-finite"


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(ResourceError, match="an existing file") as missing:
        read_itk(tmp_path / "a.mha")
    assert missing.value.code == "file-missing"
    (tmp_path / "a.mha").write_bytes(b"")
    with pytest.raises(FormatError, match="an empty file") as empty:
        read_itk(tmp_path / "a.mha")
    assert empty.value.code == "file-empty"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_is_not_an_image(tmp_path, suffix, capfd):
    (tmp_path / f"a{suffix}").write_text("patient list\n" * 100)
    with pytest.raises(FormatError, match=r"expected an? (NRRD|MetaImage) header") as caught:
        read_itk(tmp_path / f"a{suffix}")
    assert caught.value.code == "not-an-image"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_data_cut_off_are_truncated_and_itk_says_nothing_on_its_own(
    tmp_path, suffix, packed, capfd
):
    save(tmp_path / f"a{suffix}", noise(), packed=packed)
    (data_file,) = (
        entry
        for entry in tmp_path.iterdir()
        if entry.suffix in (".raw", ".zraw", ".gz", ".nrrd", ".mha")
    )
    data_file.write_bytes(data_file.read_bytes()[:-50])
    with pytest.raises(FormatError, match="420 bytes of voxels") as caught:
        read_itk(tmp_path / f"a{suffix}")
    assert caught.value.code == "file-truncated"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_corrupt_compressed_stream_is_found_where_itk_reads_it_as_an_image(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", noise((30, 40, 50)), packed=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for at in range(middle, middle + 50):
        content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(FormatError, match="a broken one or a wrong checksum") as caught:
        read_itk(path)
    assert caught.value.code == "file-damaged"
    assert isinstance(caught.value.__cause__, zlib.error)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_header_without_its_data_is_refused(tmp_path, suffix, capfd):
    save(tmp_path / f"a{suffix}", noise())
    (tmp_path / "a.raw").unlink()
    with pytest.raises(FormatError, match="a second file that the header names") as caught:
        read_itk(tmp_path / f"a{suffix}")
    assert caught.value.code == "image-data-missing"
    assert capfd.readouterr() == ("", "")


def test_what_itk_refuses_is_a_format_error_with_its_cause(tmp_path):
    with pytest.raises(FormatError, match="one that it refuses") as caught:
        read_itk(nrrd(tmp_path / "a.nrrd", encoding="unheard-of"))
    assert caught.value.code == "image-unreadable"
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_reading_leaves_itks_own_warnings_as_they_were(tmp_path):
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    read_itk(save(tmp_path / "a.mha", noise()))
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == before


def test_labels_stored_as_floats_are_accepted_if_whole(tmp_path):
    scheme = LabelScheme.plain("parts", {1: "one", 2: "two"})
    data = (noise() % 3).astype(np.float32)
    labels = read_itk_labels(save(tmp_path / "a.nrrd", data), scheme)
    np.testing.assert_array_equal(labels.data_ijk, data.transpose(2, 1, 0))
    with pytest.raises(FormatError, match="in between") as caught:
        read_itk_labels(save(tmp_path / "b.nrrd", data + 0.5), scheme)
    assert caught.value.code == "labels-not-integer"


# -- real files

REFUSED = {"image10x11x12_unsupported_version.nrrd": "image-unreadable"}


@pytest.mark.shared_data
def test_real_volumes_agree_with_simpleitk_or_are_refused(shared_data, tmp_path):
    seen = []
    for path in sorted((shared_data / "11_nrrd_mha_volumes").iterdir()):
        if path.suffix not in SUFFIXES:
            continue
        seen.append(path.name)
        if path.name in REFUSED:
            with pytest.raises(FormatError) as caught:
                read_itk(path)
            assert caught.value.code == REFUSED[path.name]
            continue
        scan = read_itk(path)
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(
            scan.volume.data_cijk[0], sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
        )
        # The way into RAS is ITK's own here: it writes NIfTI, nibabel reads it.
        sitk.WriteImage(image, str(tmp_path / "a.nii"))
        np.testing.assert_allclose(
            scan.volume.grid.affine_ras, nibabel.load(tmp_path / "a.nii").affine, atol=1e-3
        )
    assert len(seen) == 11
