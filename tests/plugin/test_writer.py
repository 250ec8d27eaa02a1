from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, Label, LabelScheme
from medseg.errors import MedsegError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import read_seg
from medseg.io.nifti import read_nifti_labels
from medseg.io.writing import write_volume
from medseg_napari._origin import LayerOrigin, origin_of
from medseg_napari._reader import read_layers
from medseg_napari._writer import (
    NotSavedError,
    write_labels,
    write_labels_on_image,
    write_rtstruct,
    write_rtstruct_on_image,
)
from tests.grids import marked
from tests.plugin.sources import geometry_bytes, noise_volume, oblique_grid, write_nifti_image

PLACEMENT = ("scale", "translate", "units", "axis_labels")


def drawn_on(image_layer, *, value=1, dtype=np.uint8):
    """What napari's New Labels button makes of an image layer, with one voxel painted."""
    data, image_settings, _ = image_layer
    labels = np.zeros(data.shape, dtype=dtype)
    labels[tuple(extent // 2 for extent in data.shape)] = value
    return labels, {key: image_settings[key] for key in PLACEMENT} | {"metadata": {}}, "labels"


@pytest.fixture
def image(tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid())
    return read_layers(str(tmp_path / "image.nii.gz"))[0]


@pytest.fixture
def series(tmp_path):
    write_dicom_series(noise_volume(oblique_grid()), tmp_path / "series", modality="MR")
    return read_layers(str(tmp_path / "series"))[0]


@settings(max_examples=25, deadline=None)
@given(case=marked(smallest=2), suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
def test_a_voxel_painted_in_the_viewer_is_saved_where_it_was_seen(tmp_path_factory, case, suffix):
    grid, voxel = case
    folder = tmp_path_factory.mktemp("case")
    write_volume(noise_volume(grid), folder / f"image{suffix}")
    [image_layer] = read_layers(str(folder / f"image{suffix}"))
    marks = np.zeros(grid.shape_ijk, dtype=np.uint8)
    marks[voxel] = 1
    labels, meta, kind = drawn_on(image_layer, value=0)
    labels[...] = origin_of(image_layer[1]).shown_array(marks)
    [written] = write_labels_on_image(
        str(folder / "out.nii.gz"), [image_layer, (labels, meta, kind)]
    )
    result = nib.load(written)
    [found] = np.argwhere(np.asarray(result.dataobj) == 1)
    apart = nib.affines.apply_affine(result.affine, found) - grid.world_from_voxel(voxel)
    assert np.linalg.norm(apart) < 0.01


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_on_a_nifti_image_carry_its_geometry_bit_for_bit(tmp_path, version, suffix):
    write_nifti_image(tmp_path / "image.nii", oblique_grid(), version=version)
    [image_layer] = read_layers(str(tmp_path / "image.nii"))
    [written] = write_labels_on_image(
        str(tmp_path / f"out{suffix}"), [drawn_on(image_layer), image_layer]
    )
    assert geometry_bytes(written) == geometry_bytes(tmp_path / "image.nii")
    assert nib.load(written).get_data_dtype() == np.uint8


def test_a_label_file_edited_and_saved_differs_in_that_voxel_alone(tmp_path):
    before = np.zeros((8, 9, 10), dtype=np.uint8)
    before[2:5, 3:6, 4:8] = 2
    image = nib.Nifti1Image(before, oblique_grid().affine_ras)
    image.set_qform(oblique_grid().affine_ras, code=1)
    nib.save(image, tmp_path / "labels.nii.gz")
    [(data, meta, _)] = read_layers(str(tmp_path / "labels.nii.gz"))
    edited = origin_of(meta).original_array(data)
    edited[6, 7, 8] = 1
    [written] = write_labels(str(tmp_path / "edited.nii.gz"), data, meta)
    before[6, 7, 8] = 1
    np.testing.assert_array_equal(np.asarray(nib.load(written).dataobj), before)
    assert geometry_bytes(Path(written)) == geometry_bytes(tmp_path / "labels.nii.gz")


def test_labels_on_a_dicom_series_become_a_seg_that_is_said_to_be_manual(tmp_path, series):
    labels, meta, kind = drawn_on(series, value=3)
    [written] = write_labels_on_image(str(tmp_path / "out.dcm"), [series, (labels, meta, kind)])
    origin = origin_of(series[1])
    scheme = LabelScheme.plain("labels", {3: "label 3"})
    found = read_seg(Path(written), scheme, origin.grid)
    np.testing.assert_array_equal(origin.shown_array(found.data_ijk), labels)
    [segment] = pydicom.dcmread(written).SegmentSequence
    assert segment.SegmentAlgorithmType == "MANUAL"
    assert "SegmentAlgorithmName" not in segment


def test_labels_from_a_file_saved_on_a_dicom_series_are_said_to_be_semiautomatic(tmp_path, series):
    labels, meta, kind = drawn_on(series)
    [nifti] = write_labels_on_image(str(tmp_path / "out.nii"), [series, (labels, meta, kind)])
    [layer] = read_layers(nifti)
    assert layer[2] == "labels"
    layer[0][0, 0, 0] = 2
    [written] = write_labels_on_image(str(tmp_path / "out.dcm"), [series, layer])
    origin = origin_of(series[1])
    scheme = LabelScheme.plain("labels", {1: "label 1", 2: "label 2"})
    found = read_seg(Path(written), scheme, origin.grid)
    labels[0, 0, 0] = 2
    np.testing.assert_array_equal(origin.shown_array(found.data_ijk), labels)
    types = [segment.SegmentAlgorithmType for segment in pydicom.dcmread(written).SegmentSequence]
    assert types == ["SEMIAUTOMATIC", "MANUAL"]  # of the file, and new


def test_labels_on_a_dicom_series_can_be_saved_as_nifti_too(tmp_path, series):
    [written] = write_labels_on_image(str(tmp_path / "out.nii.gz"), [series, drawn_on(series)])
    found = read_nifti_labels(Path(written), LabelScheme.plain("labels", {1: "label 1"}))
    assert found.grid.distance_mm(origin_of(series[1]).grid) < 0.01


def test_a_known_scheme_names_the_segments_and_unknown_values_get_plain_names(tmp_path, series):
    known = LabelScheme("organs", (Label(1, "liver", (200, 80, 60)),))
    labels, meta, _ = drawn_on(series)
    labels[0, 0, 0] = 5
    origin = origin_of(series[1])
    meta["metadata"] = {"medseg": LayerOrigin.of(origin.grid, origin.source, scheme=known)}
    [written] = write_labels(str(tmp_path / "out.dcm"), labels, meta)
    names = [segment.SegmentLabel for segment in pydicom.dcmread(written).SegmentSequence]
    assert names == ["liver", "label 5"]


def test_an_empty_labels_layer_is_saved_as_an_empty_map(tmp_path, image):
    [written] = write_labels_on_image(
        str(tmp_path / "out.nii.gz"), [image, drawn_on(image, value=0)]
    )
    assert not np.asarray(nib.load(written).dataobj).any()


def test_values_above_255_are_saved_in_two_bytes(tmp_path, image):
    drawn = drawn_on(image, value=1021, dtype=np.int64)
    [written] = write_labels_on_image(str(tmp_path / "out.nii.gz"), [image, drawn])
    assert nib.load(written).get_data_dtype() == np.uint16
    assert np.asarray(nib.load(written).dataobj).max() == 1021


def test_a_name_without_an_ending_gets_one(tmp_path, image):
    written = write_labels_on_image(str(tmp_path / "out"), [image, drawn_on(image)])
    assert written == [str(tmp_path / "out.nii.gz")]


def test_an_existing_file_is_not_replaced_under_a_name_that_was_not_given(tmp_path, image):
    (tmp_path / "out.nii.gz").write_bytes(b"mine")
    with pytest.raises(NotSavedError, match="a name that is still free, found an existing file"):
        write_labels_on_image(str(tmp_path / "out"), [image, drawn_on(image)])
    assert (tmp_path / "out.nii.gz").read_bytes() == b"mine"


def refused(tmp_path, code, words, writer, *arguments, name="out.nii.gz"):
    with pytest.raises(NotSavedError, match=words) as caught:
        writer(str(tmp_path / name), *arguments)
    assert caught.value.code == code
    assert isinstance(caught.value.__cause__, MedsegError)
    assert not isinstance(caught.value, ValueError)  # which the plugin manager would swallow
    assert not list(tmp_path.glob("*out*"))


def test_labels_drawn_on_the_only_open_image_are_saved_on_its_grid(tmp_path, image):
    labels, meta, _ = drawn_on(image)
    [written] = write_labels(str(tmp_path / "out.nii.gz"), labels, meta)
    assert geometry_bytes(written) == geometry_bytes(tmp_path / "image.nii.gz")
    shown = origin_of(image[1]).shown_array(np.asarray(nib.load(written).dataobj))
    np.testing.assert_array_equal(shown, labels)


def test_labels_that_could_lie_on_two_images_are_refused_with_what_to_do(tmp_path, image):
    write_nifti_image(tmp_path / "other.nii.gz", oblique_grid())
    other = read_layers(str(tmp_path / "other.nii.gz"))[0]
    labels, meta, _ = drawn_on(image)
    words = "a layer that carries no grid of its own; select the labels together with the image"
    refused(tmp_path, "layer-origin", words, write_labels, labels, meta)
    assert other is not None


def test_labels_beside_every_image_are_refused(tmp_path, image):
    labels, meta, _ = drawn_on(image)
    moved = meta | {"translate": np.add(meta["translate"], (0, 0, 1))}
    refused(tmp_path, "layer-origin", "no grid of its own", write_labels, labels, moved)


@pytest.mark.parametrize("name", ["out.dcm", "out_rtstruct.dcm"])
def test_a_structure_set_is_written_by_its_name_or_its_writer(tmp_path, series, name):
    labels, meta, kind = drawn_on(series)
    labels[1:4, 1:4, 1:4] = 1
    layers = [series, (labels, meta, kind)]
    writer = write_labels_on_image if "rtstruct" in name else write_rtstruct_on_image
    [written] = writer(str(tmp_path / name), layers)
    assert pydicom.dcmread(written).Modality == "RTSTRUCT"
    [alone] = write_rtstruct(str(tmp_path / "alone.dcm"), labels, meta)
    assert pydicom.dcmread(alone).Modality == "RTSTRUCT"


def test_a_structure_set_has_no_other_ending(tmp_path, series):
    labels, meta, _ = drawn_on(series)
    words = "a name that ends in .dcm, found the ending .gz"
    refused(tmp_path, "output-suffix", words, write_rtstruct, labels, meta)


def test_an_image_from_elsewhere_lends_no_grid(tmp_path, image):
    data, meta, kind = image
    stranger = (data, meta | {"metadata": {}}, kind)
    words = "an image layer that carries no grid of its own; open the image with medseg"
    refused(tmp_path, "layer-origin", words, write_labels_on_image, [stranger, drawn_on(image)])


def test_labels_of_another_shape_are_refused(tmp_path, image):
    labels, meta, kind = drawn_on(image)
    words = r"expected a labels layer of shape \(5, 6, 7\), that of its image, found shape \(4, "
    layers = [image, (labels[1:], meta, kind)]
    refused(tmp_path, "layer-shape", words, write_labels_on_image, layers)


def test_labels_drawn_on_another_image_of_the_same_shape_are_refused(tmp_path, image):
    labels, meta, kind = drawn_on(image)
    moved = meta | {"translate": np.add(meta["translate"], (0, 0, 1))}
    words = "labels that lie on the voxels of the image, found a layer with another translate"
    layers = [image, (labels, moved, kind)]
    refused(tmp_path, "layer-placement", words, write_labels_on_image, layers)


def test_labels_read_from_another_place_are_refused(tmp_path, image):
    labels, meta, kind = drawn_on(image)
    origin = origin_of(image[1])
    affine = np.array(origin.grid.affine_ras)
    affine[0, 3] += 2
    elsewhere = LayerOrigin.of(Grid(origin.grid.shape_ijk, affine), origin.source)
    layers = [image, (labels, meta | {"metadata": {"medseg": elsewhere}}, kind)]
    words = "found voxels up to 2.000 mm away; select the image that the labels were drawn on"
    refused(tmp_path, "layer-placement", words, write_labels_on_image, layers)


@pytest.mark.parametrize("value", [-1, 65536])
def test_values_that_no_label_file_can_hold_are_refused(tmp_path, image, value):
    drawn = drawn_on(image, value=value, dtype=np.int32)
    words = "expected labels from 0 to 65535, found values from .*; renumber the labels"
    refused(tmp_path, "labels-range", words, write_labels_on_image, [image, drawn])


def test_a_seg_needs_a_dicom_series(tmp_path, image):
    words = "expected labels on a DICOM series, which .*; save as .nii.gz"
    layers = [image, drawn_on(image)]
    refused(tmp_path, "seg-source", words, write_labels_on_image, layers, name="out.dcm")


def test_an_unknown_ending_is_refused(tmp_path, image):
    words = "a name that ends in .nii.gz, .nii, .dcm, found the ending .png; rename the output"
    layers = [image, drawn_on(image)]
    refused(tmp_path, "output-suffix", words, write_labels_on_image, layers, name="out.png")


def test_an_unwritable_folder_is_reported(tmp_path, image):
    words = "expected an existing folder, found no such folder"
    layers = [image, drawn_on(image)]
    refused(
        tmp_path, "output-unwritable", words, write_labels_on_image, layers, name="gone/out.nii"
    )
