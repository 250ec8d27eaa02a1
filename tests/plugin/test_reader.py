from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core import Grid, Volume
from medseg.errors import FormatError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.scan import DicomSource, ItkSource, NiftiSource, Scan
from medseg.io.writing import write_volume
from medseg_napari._layers import image_layers
from medseg_napari._origin import origin_of
from medseg_napari._reader import get_reader, read_layers
from medseg_napari._sample_data import hippocampus
from tests.plugin.sources import noise, noise_volume, oblique_grid, write_nifti_image


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.nrrd", "a.mha"])
def test_volume_files_are_taken_without_being_opened(name):
    assert get_reader(f"/nowhere/{name}") is read_layers


@pytest.mark.parametrize("name", ["a.gz", "a.png", "a.dcm", "nowhere"])
def test_other_files_are_declined(name):
    assert get_reader(f"/nowhere/{name}") is None


def test_lists_of_files_to_stack_are_declined():
    assert get_reader(["a.nii", "b.nii"]) is None


def test_a_folder_is_taken_if_it_holds_dicom_at_any_depth(tmp_path):
    (tmp_path / "notes.txt").write_text("short")
    assert get_reader(str(tmp_path)) is None
    (tmp_path / "study" / "series").mkdir(parents=True)
    (tmp_path / "study" / "series" / "000001").write_bytes(bytes(128) + b"DICM")
    assert get_reader(str(tmp_path)) is read_layers


def test_a_folder_with_a_link_to_nowhere_is_declined_quietly(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert get_reader(str(tmp_path)) is None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_an_image_becomes_one_layer_named_after_its_file(tmp_path, suffix):
    grid = oblique_grid()
    path = tmp_path / f"case.01{suffix}"
    write_volume(noise_volume(grid), path)
    [(data, settings, kind)] = read_layers(str(path))
    origin = origin_of(settings)
    assert (kind, settings["name"]) == ("image", "case.01")
    assert origin.grid.distance_mm(grid) < 0.01
    assert origin.is_oblique
    assert isinstance(origin.source, NiftiSource if "nii" in suffix else ItkSource)
    np.testing.assert_array_equal(origin.original_array(data), noise(grid.shape_ijk))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.uint8, np.uint8),
        (np.int16, np.uint8),
        (np.float32, np.uint8),
    ],
)
def test_a_label_map_becomes_a_labels_layer_of_bytes(tmp_path, stored, expected):
    labels = np.zeros((8, 9, 10), dtype=stored)
    labels[2:5, 3:6, 4:8] = 3
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, oblique_grid().affine_ras), path)
    [(data, settings, kind)] = read_layers(str(path))
    assert (kind, data.dtype, settings["name"]) == ("labels", expected, "labels")
    assert data.flags.writeable
    np.testing.assert_array_equal(origin_of(settings).original_array(data), labels)


def test_a_label_map_with_large_values_takes_two_bytes(tmp_path):
    labels = np.zeros((8, 9, 10), dtype=np.int32)
    labels[2:5, 3:6, 4:8] = 1021
    path = tmp_path / "labels.nrrd"
    write_volume(Volume(labels[None], Grid((8, 9, 10), np.eye(4))), path)
    [(data, _, kind)] = read_layers(str(path))
    assert (kind, data.dtype, data.max()) == ("labels", np.uint16, 1021)


def test_labels_of_a_file_are_called_as_the_table_beside_it_says(tmp_path):
    labels = np.zeros((8, 9, 10), dtype=np.uint8)
    labels[2:5, 3:6, 4:8], labels[6:8, 3:6, 4:8] = 2, 7
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "case_dseg.nii.gz")
    table = tmp_path / "case_dseg.tsv"
    table.write_text("index\tname\tcolor\n0\tbackground\t#000000\n2\tliver\t#C81E1E\n")
    [(data, settings, _)] = read_layers(str(tmp_path / "case_dseg.nii.gz"))
    found = origin_of(settings).scheme
    assert [(one.value, one.name) for one in found.labels] == [(2, "liver"), (7, "label 7")]
    assert found.by_value(2).rgb == (200, 30, 30)
    assert settings["colormap"][2] == (200 / 255, 30 / 255, 30 / 255, 1.0)
    assert data.any()
    table.write_text("participant\tage\n1\t50\n")  # a table of something else
    [(_, settings, _)] = read_layers(str(tmp_path / "case_dseg.nii.gz"))
    assert origin_of(settings).scheme is None


def test_labels_out_of_range_are_refused(tmp_path):
    labels = np.zeros((8, 9, 10), dtype=np.int32)
    labels[2:5, 3:6, 4:8] = 70000
    path = tmp_path / "labels.nii"
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    with pytest.raises(FormatError, match="expected labels from 0 to 65535, found values"):
        read_layers(str(path))


def test_every_channel_becomes_a_layer():
    grid = oblique_grid()
    volume = Volume(noise((2, *grid.shape_ijk)), grid, ("T1", "FLAIR"))
    layers = image_layers(Scan(volume, ItkSource(Path("case.nrrd")), ("a note",)), "case")
    assert [settings["name"] for _, settings, _ in layers] == ["case T1", "case FLAIR"]
    for (data, settings, kind), expected in zip(layers, volume.data_cijk, strict=True):
        assert kind == "image"
        assert origin_of(settings).notes == ("a note",)
        np.testing.assert_array_equal(origin_of(settings).original_array(data), expected)


@pytest.mark.parametrize(("stored", "drawn"), [("<f2", "<f4"), (">i2", "<i2"), ("<i2", "<i2")])
def test_types_that_graphics_cannot_take_are_converted(stored, drawn):
    grid = oblique_grid()
    volume = Volume(noise((1, *grid.shape_ijk)).astype(stored), grid)
    [(data, settings, _)] = image_layers(Scan(volume, ItkSource(Path("case.nrrd"))), "case")
    assert data.dtype == np.dtype(drawn)
    assert np.shares_memory(data, volume.data_cijk) == (stored == drawn)
    np.testing.assert_array_equal(origin_of(settings).original_array(data), volume.data_cijk[0])


def test_a_dicom_folder_becomes_an_image_layer_in_its_place(tmp_path):
    volume = noise_volume(oblique_grid())
    write_dicom_series(volume, tmp_path / "series", modality="MR", random_names=True)
    assert get_reader(str(tmp_path / "series")) is read_layers
    [(data, settings, kind)] = read_layers(str(tmp_path / "series"))
    origin = origin_of(settings)
    assert (kind, settings["name"]) == ("image", "series")
    assert isinstance(origin.source, DicomSource)
    voxel = np.argwhere(volume.data_cijk[0] == volume.data_cijk[0].max())[0]
    shown = np.argwhere(data == data.max())[0]
    apart = origin.shown_grid.world_from_voxel(shown) - volume.grid.world_from_voxel(voxel)
    assert np.linalg.norm(apart) < 0.01


def test_a_dicom_series_of_a_mask_becomes_a_labels_layer(tmp_path):
    mask = np.zeros((1, 8, 9, 10), dtype=np.int16)
    mask[0, 2:5, 3:6, 4:8] = 1
    write_dicom_series(Volume(mask, Grid((8, 9, 10), np.eye(4))), tmp_path / "mask", modality="MR")
    [(data, _, kind)] = read_layers(str(tmp_path / "mask"))
    assert (kind, int(data.sum())) == ("labels", 36)


def test_a_broken_file_is_reported_in_our_words(tmp_path):
    path = tmp_path / "empty.nii.gz"
    path.touch()
    with pytest.raises(FormatError, match="expected an image, found an empty file"):
        get_reader(str(path))(str(path))


def test_a_nifti_2_image_opens_like_any_other(tmp_path):
    grid = oblique_grid()
    path = tmp_path / "case.nii"
    write_nifti_image(path, grid, version=2)
    [(data, settings, _)] = read_layers(str(path))
    assert origin_of(settings).source.version == 2
    assert data.shape == origin_of(settings).shown_grid.shape_ijk


def test_the_sample_is_an_image_under_the_labels_of_an_expert():
    (image, settings, kind), (labels, labels_settings, labels_kind) = hippocampus()
    assert (kind, labels_kind) == ("image", "labels")
    assert image.shape == labels.shape
    assert settings["scale"] == pytest.approx(labels_settings["scale"])
    assert settings["translate"] == pytest.approx(labels_settings["translate"])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert [label.name for label in origin_of(labels_settings).scheme.labels] == [
        "anterior hippocampus",
        "posterior hippocampus",
    ]
    front, back = (np.argwhere(labels == value)[:, 1].mean() for value in (1, 2))
    assert front < back  # rows run from the front to the back: anterior above posterior
