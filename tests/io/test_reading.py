import os
import subprocess
import sys

import numpy as np
import pytest

from medseg.core import Grid, LabelScheme, Volume, reorient
from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError, ResourceError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.fingerprint import input_files
from medseg.io.reading import read_channels, read_image, read_labels
from medseg.io.writing import write_volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SCHEME = LabelScheme.plain("parts", {1: "one", 2: "two"})


def volume(seed=0, *, affine=AFFINE, shape=(4, 5, 6), dtype=np.int16) -> Volume:
    data = np.random.default_rng(seed).integers(0, 1000, (1, *shape)).astype(dtype)
    return Volume(data, Grid(shape, affine))


def labels() -> Volume:
    data = np.zeros((1, 8, 8, 8), np.uint8)
    data[0, 2:4, 2:6, 2:6], data[0, 4:6, 2:6, 2:6] = 1, 2
    return Volume(data, Grid((8, 8, 8), AFFINE))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.nrrd", "a.mha", "a.MHA"])
def test_the_ending_chooses_the_reader(tmp_path, name):
    write_volume(volume(), tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    scan = read_image(tmp_path / name)
    np.testing.assert_array_equal(scan.volume.data_cijk, volume().data_cijk)
    assert scan.source.path == tmp_path / name


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_label_map_is_no_image_but_is_read_as_labels(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_volume(labels(), path)
    with pytest.raises(FormatError, match="looks like a label map: 3 whole values") as caught:
        read_image(path)
    assert (caught.value.code, caught.value.where) == ("label-as-image", str(path))
    np.testing.assert_array_equal(read_labels(path, SCHEME).data_ijk, labels().data_cijk[0])


@pytest.mark.parametrize("read", [read_image, lambda path: read_labels(path, SCHEME)])
def test_what_cannot_be_read_is_refused_by_name(tmp_path, read):
    with pytest.raises(ResourceError, match="an existing file") as caught:
        read(tmp_path / "absent.nii")
    assert caught.value.code == "file-missing"
    (tmp_path / "a.png").write_bytes(b"content")
    with pytest.raises(FormatError, match=r"a file ending in .nii.gz, .nii, .* found .*.png") as c:
        read(tmp_path / "a.png")
    assert c.value.code == "format-unknown"
    (tmp_path / "slice").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "slice.dcm").write_bytes(b"without preamble")
    for name in ("slice", "slice.dcm"):
        with pytest.raises(FormatError, match="found a single DICOM file; give the folder") as c:
            read(tmp_path / name)
        assert c.value.code == "dicom-single-file"


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(MedsegError) as caught:
        read_image(tmp_path)
    assert caught.value.code == "no-images"


def test_a_folder_is_read_as_a_dicom_series(tmp_path):
    image = volume()
    write_dicom_series(image, tmp_path / "series", modality="MR")
    scan = read_image(tmp_path / "series")
    assert scan.source.folder == tmp_path / "series"
    turned = reorient(scan.volume, "RAS")
    np.testing.assert_array_equal(turned.data_cijk, image.data_cijk)
    assert turned.grid.distance_mm(image.grid) < 0.01


def test_channels_are_stacked_in_order_on_the_grid_of_the_first(tmp_path):
    paths = {"FLAIR": tmp_path / "f.nii.gz", "T1": tmp_path / "t.nrrd"}
    for seed, path in enumerate(paths.values()):
        write_volume(volume(seed), path)
    scan = read_channels(paths)
    assert scan.volume.channels == ("FLAIR", "T1")
    assert scan.volume.data_cijk.dtype == np.int16
    for seed in range(2):
        np.testing.assert_array_equal(scan.volume.data_cijk[seed], volume(seed).data_cijk[0])
    assert scan.source.path == paths["FLAIR"]
    assert scan.notes == ("FLAIR: geometry from the sform (code 1)",)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((np.int16, np.float32), np.float32),
        ((np.int32, np.float32), np.float32),
        ((np.uint16, np.int16), np.int32),
        ((np.uint8, np.uint8), np.uint8),
    ],
)
def test_channels_of_several_types_meet_in_one_that_holds_them(tmp_path, types, expected):
    paths = {}
    for index, dtype in enumerate(types):
        paths[f"c{index}"] = tmp_path / f"{index}.nii"
        write_volume(volume(index, dtype=dtype), paths[f"c{index}"])
    assert read_channels(paths).volume.data_cijk.dtype == expected


@pytest.mark.parametrize(("shift_mm", "agree"), [(0.005, True), (0.02, False)])
def test_channels_must_lie_on_one_grid(tmp_path, shift_mm, agree):
    moved = AFFINE.copy()
    moved[1, 3] = shift_mm
    paths = {"T1": tmp_path / "a.nii", "T2": tmp_path / "b.nii"}
    write_volume(volume(), paths["T1"])
    write_volume(volume(1, affine=moved), paths["T2"])
    if agree:
        assert read_channels(paths).volume.grid == Grid((4, 5, 6), AFFINE)
        return
    with pytest.raises(GeometryError, match=r"channel T2 up to 0.020 mm away") as caught:
        read_channels(paths)
    assert (caught.value.code, caught.value.where) == ("channels-grids-differ", str(paths["T2"]))


def test_channels_must_have_one_shape(tmp_path):
    paths = {"T1": tmp_path / "a.nii", "T2": tmp_path / "b.nii"}
    write_volume(volume(), paths["T1"])
    write_volume(volume(shape=(4, 5, 7)), paths["T2"])
    with pytest.raises(GeometryError, match=r"found shape \(4, 5, 7\)") as caught:
        read_channels(paths)
    assert caught.value.code == "channels-grids-differ"


def test_no_channels_are_refused():
    with pytest.raises(ConfigError, match="at least one channel") as caught:
        read_channels({})
    assert caught.value.code == "channels-none"


def test_the_package_and_this_door_load_no_image_library():
    script = (
        "import sys, medseg.io.reading;"
        "print([m for m in ('nibabel', 'SimpleITK', 'pydicom', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.shared_data
def test_real_channels_of_one_patient_are_read_together(shared_data):
    folder = shared_data / "05_brats_multimodal" / "TCGA-DU-7294_autoseg_2mm"
    names = {"T1": "t1", "T1c": "t1c", "T2": "t2", "FLAIR": "fla"}
    scan = read_channels(
        {name: folder / f"TCGA-DU-7294_{stem}_bet.nii.gz" for name, stem in names.items()}
    )
    assert scan.volume.data_cijk.shape == (4, 120, 120, 78)
    assert scan.volume.channels == ("T1", "T1c", "T2", "FLAIR")


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["nibabel_test.mgz", "nibabel_small.mnc"])
def test_formats_of_others_are_refused_with_the_supported_ones(shared_data, name):
    with pytest.raises(FormatError, match="or a folder with a DICOM series") as caught:
        read_image(shared_data / "10_nifti_edge_cases" / name)
    assert caught.value.code == "format-unknown"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mhd", "a.zip"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(FormatError) as caught:
        read_image(path)
    assert caught.value.code == ("not-a-folder" if name == "a.zip" else "not-an-image")
    assert input_files(path) == []
