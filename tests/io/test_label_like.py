import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.core import Grid, Volume
from medseg.errors import FormatError
from medseg.io.label_like import check_is_image, looks_like_labels

SHAPE = (20, 20, 20)


def organs() -> np.ndarray:
    """Five boxes with a value each, in a background of zeros."""
    data = np.zeros(SHAPE, np.uint8)
    for value in range(1, 6):
        data[3 * value : 3 * value + 3, 5:12, 5:12] = value
    return data


def test_regions_of_whole_values_are_labels_in_any_type():
    for dtype in (np.uint8, np.int32, np.float32):
        assert looks_like_labels(organs().astype(dtype))
        assert looks_like_labels((organs() > 0).astype(dtype))


def test_labels_larger_than_what_is_looked_at_at_a_time_are_found_and_counted():
    data = np.kron(organs(), np.ones((7, 7, 7), np.uint8))  # 2.7 million voxels: three parts
    assert looks_like_labels(data)
    assert looks_like_labels(data.astype(np.float32).transpose(2, 0, 1))
    with pytest.raises(FormatError, match="6 whole values in uniform regions"):
        check_is_image(Volume(data[None], Grid(data.shape, np.eye(4))), "x.nii")
    numbered = np.where(data, 70_000 + data.astype(np.int32), 0)  # as some tools number
    assert looks_like_labels(numbered)


def test_labels_in_any_memory_order_are_found():
    assert looks_like_labels(np.asfortranarray(organs()))
    assert looks_like_labels(organs().transpose(2, 0, 1)[::-1, ::2])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("noise of few grey levels in a mask", lambda a, r: a * r.integers(1, 30, SHAPE)),
        ("a fraction", lambda a, r: a * 0.5),
        ("a negative value", lambda a, r: a.astype(np.int16) - 1),
        ("many values", lambda a, r: np.arange(a.size).reshape(SHAPE)),
        ("no background", lambda a, r: np.add.outer(np.arange(20), np.zeros((20, 20))) // 4),
        ("one value", lambda a, r: a * 0),
    ],
)
def test_images_are_let_through(name, change):
    assert not looks_like_labels(change(organs(), np.random.default_rng(0))), name


def test_scattered_points_of_several_values_are_no_evidence():
    data = np.zeros(SHAPE)
    data[2, 2, 2], data[9, 9, 9] = 1, 2
    assert not looks_like_labels(data)


def test_one_voxel_that_a_sample_misses_still_counts():
    data = np.zeros((100, 100, 100), np.int16)
    data[20:50] = 1
    assert looks_like_labels(data)
    data[99, 99, 98] = -1
    assert not looks_like_labels(data)


def test_the_channel_that_is_a_label_map_is_refused():
    grid = Grid(SHAPE, np.eye(4))
    image = np.random.default_rng(0).integers(0, 1000, SHAPE)
    check_is_image(Volume(image[np.newaxis], grid), "image.nii")
    with pytest.raises(FormatError, match=r"a.nii: .* a label map: 6 whole values") as caught:
        check_is_image(Volume(np.stack([image, organs()]), grid, ("a", "b")), "a.nii")
    assert caught.value.code == "label-as-image"


LABEL_PATTERNS = {
    "01_msd_hippocampus/labelsTr/*.nii.gz": 200,
    "02_acdc/training/*/*_gt.nii.gz": 30,
    "02_acdc/training/*/*_scribble.nii.gz": 30,
    "03_openkbp_headneck_ct/labelsTr/*.nii.gz": 24,
    "03_openkbp_headneck_ct/targetsTr/*.nii.gz": 24,
    "04_totalsegmentator_ct_mr/multifile_masks/*.nii.gz": 8,
    "04_totalsegmentator_ct_mr/nifti/example_seg*.nii.gz": 3,
    "05_brats_multimodal/*/*[-_]seg.nii.gz": 5,
    "05_brats_multimodal/*/seg_*.nii.gz": 7,
    "11_nrrd_mha_volumes/*_label.nrrd": 2,
    "11_nrrd_mha_volumes/*_mask.mha": 1,
    "13_spinal_cord_sct/*seg*.nii.gz": 7,
}
IMAGE_PATTERNS = {
    "01_msd_hippocampus/imagesTr/*.nii.gz": 200,
    "02_acdc/training/*/*_frame[0-9][0-9].nii.gz": 30,
    "03_openkbp_headneck_ct/imagesTr/*.nii.gz": 24,
    "04_totalsegmentator_ct_mr/nifti/example_[cm]*.nii.gz": 2,
    "05_brats_multimodal/*/*_bet.nii.gz": 4,
    "05_brats_multimodal/*/*-t[12]?.nii.gz": 4,
    "05_brats_multimodal/*/*_flair.nii.gz": 4,
    "05_brats_multimodal/*/*_t1c.nii.gz": 4,
    "10_nifti_edge_cases/CT_AVM.nii.gz": 1,
    "11_nrrd_mha_volumes/*_image.nrrd": 2,
    "11_nrrd_mha_volumes/*_small.mha": 1,
    "12_chaos_ct_dicom_png/*4.nii.gz": 1,
    "13_spinal_cord_sct/t1w.nii.gz": 1,
    "13_spinal_cord_sct/t2.nii.gz": 1,
    "13_spinal_cord_sct/t2_fake_lesion.nii.gz": 1,
    "13_spinal_cord_sct/t2s_uncropped.nii.gz": 1,
}


def load(path):
    if ".nii" in path.name:
        return np.asarray(nibabel.load(path).dataobj)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.shared_data
@pytest.mark.parametrize(("pattern", "count"), LABEL_PATTERNS.items())
def test_real_label_maps_are_found(shared_data, pattern, count):
    paths = sorted(shared_data.glob(pattern))
    assert len(paths) == count
    assert [path.name for path in paths[::5] if not looks_like_labels(load(path))] == []


@pytest.mark.shared_data
@pytest.mark.parametrize(("pattern", "count"), IMAGE_PATTERNS.items())
def test_real_images_are_let_through(shared_data, pattern, count):
    paths = sorted(shared_data.glob(pattern))
    assert len(paths) == count
    assert [path.name for path in paths if looks_like_labels(load(path))] == []
