"""A real napari window: what the reader gives must open, what is painted must be saved."""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

import nibabel as nib
import numpy as np
import pytest

from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_series import read_dicom_series
from medseg_napari._origin import origin_of
from medseg_napari._writer import NotSavedError
from tests.plugin.sources import geometry_bytes, noise_volume, oblique_grid, write_nifti_image

pytestmark = pytest.mark.gui


def new_labels(viewer, image):
    """What the New Labels button does."""
    viewer.layers.selection.active = image
    viewer._new_labels()
    return viewer.layers[-1]


def painted(viewer, label, colour):
    """``(row, column)`` of the middle of what has a colour on the canvas, in pixels."""
    shot = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    places = np.argwhere((np.abs(shot - colour) < 40).all(axis=-1))
    assert len(places), f"label {label} is not on the canvas"
    return places.mean(axis=0)


def test_the_sample_opens_with_the_anterior_part_above_the_posterior(viewer):
    image, labels = viewer.open_sample("medseg", "hippocampus")
    assert (image._type_string, labels._type_string) == ("image", "labels")
    assert image.data.shape == labels.data.shape
    both = [set(np.unique(plane)) >= {1, 2} for plane in labels.data]
    viewer.dims.set_current_step(0, both.index(True))
    image.visible = False
    labels.opacity = 1.0
    front, back = (painted(viewer, 1, (230, 159, 0)), painted(viewer, 2, (86, 180, 233)))
    assert front[0] < back[0]


def test_the_patients_right_is_on_the_left_of_the_canvas_and_the_front_is_up(viewer, tmp_path):
    grid = oblique_grid((20, 20, 20))
    data = np.zeros(grid.shape_ijk, dtype=np.uint8)
    ends = grid.world_from_voxel(np.argwhere(data == 0)).reshape(*grid.shape_ijk, 3)
    middle = grid.world_from_voxel((9.5, 9.5, 9.5))
    data[ends[..., 0] > middle[0] + 4] = 1  # right
    data[(ends[..., 1] > middle[1] + 6) & (data == 0)] = 2  # front
    nib.save(nib.Nifti1Image(data, grid.affine_ras), tmp_path / "ends.nii.gz")
    [layer] = viewer.open(str(tmp_path / "ends.nii.gz"), plugin="medseg")
    layer.opacity = 1.0
    layer.colormap = {None: "black", 0: "black", 1: (0, 1, 0), 2: (1, 0, 0)}
    viewer.dims.set_current_step(0, 10)
    height, width = viewer.screenshot(flash=False).shape[:2]
    assert painted(viewer, 1, (0, 255, 0))[1] < width / 2
    assert painted(viewer, 2, (255, 0, 0))[0] < height / 2


def test_labels_painted_on_an_image_are_saved_on_its_grid(viewer, tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid())
    [image] = viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")
    labels = new_labels(viewer, image)
    labels.paint((2, 3, 3), 4)
    viewer.layers.selection = {image, labels}
    [written] = viewer.layers.save(str(tmp_path / "out.nii.gz"), selected=True, plugin="medseg")
    assert geometry_bytes(written) == geometry_bytes(tmp_path / "image.nii.gz")
    saved = np.asarray(nib.load(written).dataobj)
    np.testing.assert_array_equal(
        origin_of(image._get_base_state()).shown_array(saved), labels.data
    )
    assert saved.any()


def test_an_opened_label_file_is_edited_and_saved_alone(viewer, tmp_path):
    before = np.zeros((12, 13, 14), dtype=np.uint8)
    before[3:9, 3:9, 3:9] = 1
    nib.save(nib.Nifti1Image(before, oblique_grid().affine_ras), tmp_path / "labels.nii.gz")
    [layer] = viewer.open(str(tmp_path / "labels.nii.gz"), plugin="medseg")
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 2)
    [written] = layer.save(str(tmp_path / "out.nii"), plugin="medseg")
    saved = np.asarray(nib.load(written).dataobj)
    assert int((saved != before).sum()) == 1
    assert saved.max() == 2


def test_a_refusal_to_save_reaches_the_user(viewer, tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid())
    [image] = viewer.open(str(tmp_path / "image.nii.gz"), plugin="medseg")
    labels = new_labels(viewer, image)
    with pytest.raises(NotSavedError, match="select the labels together with the image"):
        labels.save(str(tmp_path / "out.nii.gz"), plugin="medseg")


def test_a_dicom_folder_opens_in_three_dimensions_and_an_image_turns_into_labels(viewer, tmp_path):
    volume = noise_volume(oblique_grid())
    write_dicom_series(volume, tmp_path / "series", modality="MR", random_names=True)
    [image] = viewer.open(str(tmp_path / "series"), plugin="medseg")
    viewer.dims.ndisplay = 3
    assert viewer.screenshot(flash=False).any()
    viewer.dims.ndisplay = 2
    image.projection_mode = "none"  # the one that labels have too
    viewer.layers.selection.active = image
    from napari.layers._layer_actions import _convert_to_labels

    _convert_to_labels(viewer.layers)
    [written] = viewer.layers[0].save(str(tmp_path / "out.nii.gz"), plugin="medseg")
    saved = np.asarray(nib.load(written).dataobj)
    read = read_dicom_series(tmp_path / "series").volume.data_cijk[0]
    np.testing.assert_array_equal(saved, read)
