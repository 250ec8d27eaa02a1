"""Real series against dcm2niix, which read them before us, and against SimpleITK."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own documentation's name

from medseg.core import Grid
from medseg.errors import MedsegError
from medseg.io.dicom_series import read_dicom_series, read_stack
from medseg.io.dicom_study import read_study

pytestmark = pytest.mark.shared_data

_EDGES = "09_dicom_edge_cases"
_NOISE = f"{_EDGES}/dicom2nifti_real_headers_noise_pixels"
SAME = (
    "04_totalsegmentator_ct_mr/ct_dicom_j2k",
    "06_dicom_mr_brain_tumour_progression/PGBM-003/11-T1post-18670",
    "06_dicom_mr_brain_tumour_progression/PGBM-003/26401-T1prereg-52906",
    "06_dicom_mr_brain_tumour_progression/PGBM-003/36468-FLAIRreg-58706",
    "06_dicom_mr_brain_tumour_progression/PGBM-003/37830-T2reg-78532",
    "06_dicom_mr_brain_tumour_progression/hippocrop/study1_13_HCropVolume",
    "06_dicom_mr_brain_tumour_progression/hippocrop/study2_14_HCropVolume",
    "06_dicom_mr_brain_tumour_progression/hippocrop/study3_11_HCropVolume",
    "07_dicom_ct_rtstruct/pat_1",
    "07_dicom_ct_rtstruct/pat_2",
    "07_dicom_ct_rtstruct/rt_utils_mim",
    "07_dicom_ct_rtstruct/rt_utils_oblique_series",
    "08_dicom_seg/dcmqi/23x38x3/image",
    "08_dicom_seg/dcmqi/23x38x3/multiframe",
    "08_dicom_seg/dcmqi/ct-3slice",
    f"{_EDGES}/ct_torchio_17slices_iop_flipped",
    f"{_NOISE}/mr_enhanced_siemens",
    f"{_NOISE}/mr_nonisotropic_pixels_rescale",
    f"{_NOISE}/mr_philips_coronal",
    f"{_NOISE}/mr_sag_j2k",
    f"{_NOISE}/mr_sag_jpeg_lossless",
    f"{_NOISE}/mr_sag_rle",
    f"{_NOISE}/mr_sag_uncompressed",
    f"{_EDGES}/prostatex/ProstateX-0000_ADC",
    f"{_EDGES}/prostatex/ProstateX-0001_t2localizer_3planes",
)
# What dcm2niix does otherwise, and why we do not.
DIFFERENT = {
    f"{_NOISE}/mr_enhanced_philips": (
        "same place; dcm2niix undoes Philips' private scale slope (2005,100E), "
        "we stay with the standard's RescaleSlope"
    ),
    f"{_NOISE}/mr_single_slice": (
        "dicom-tag-missing: dcm2niix makes a lone slice of unsaid thickness 1 mm thick"
    ),
    f"{_NOISE}/rgb_secondary_capture": "dicom-colour: dcm2niix writes RGB",
    f"{_EDGES}/mr_9_transfer_syntaxes": (
        "nine copies of one mosaic in nine syntaxes: dcm2niix writes seven, as it cannot decode "
        "JPEG-LS; we read each alone, and together refuse them as a 4-D series"
    ),
}
OTHERS = {
    "06_dicom_mr_brain_tumour_progression": "series-ambiguous",
    "07_dicom_ct_rtstruct": "series-ambiguous",
    "08_dicom_seg/dcmqi/23x38x3/seg": "no-images",
    "08_dicom_seg/dcmqi_pet_sr": "no-images",
    f"{_EDGES}/mr_9_transfer_syntaxes": "series-4d",
    f"{_EDGES}/prostatex/ProstateX-0001_t2localizer_3planes": "slice-orientation",
    f"{_EDGES}/pydicom_single": "dicom-unreadable",
    f"{_EDGES}/wado_ct_transfer_syntaxes": "slice-duplicate",
    f"{_NOISE}/ground_truth": "no-images",
    f"{_NOISE}/mr_single_slice": "dicom-tag-missing",
    f"{_NOISE}/rgb_secondary_capture": "dicom-colour",
}


@pytest.fixture(scope="module")
def oracle(shared_data):
    return json.loads((shared_data / "expected_geometry_dcm2niix.json").read_text())


def apart_mm(grid, expected):
    """Distance of corners as sets, since dcm2niix flips rows; its affine has five decimals."""
    there = Grid(tuple(expected["shape"]), np.array(expected["affine"]))
    if sorted(grid.shape_ijk) != sorted(there.shape_ijk):
        return float("inf")
    gaps = np.linalg.norm(grid.corners_ras()[:, None] - there.corners_ras()[None], axis=-1)
    bijective = sorted(gaps.argmin(axis=0)) == list(range(8))
    return gaps.min(axis=0).max() if bijective else float("inf")


def allowed_mm(expected):
    return 0.01 + 0.5e-5 * (1 + sum(expected["shape"])) * np.sqrt(3)


def statistics(volume):
    data = volume.data_cijk
    return np.array([data.min(), data.max(), data.mean(dtype=np.float64)], dtype=np.float64)


def expected_statistics(expected):
    return np.array([expected["min"], expected["max"], expected["mean"]])


def test_every_series_that_dcm2niix_converted_is_in_one_of_the_tables(oracle):
    assert set(oracle) == {*SAME, *DIFFERENT}
    assert not set(SAME) & set(DIFFERENT)


@pytest.mark.parametrize("name", SAME)
def test_place_and_intensities_agree_with_dcm2niix(shared_data, oracle, name):
    study = read_study(shared_data / name)
    volumes = [read_stack(stack, study).volume for stack in study.stacks]
    assert len(volumes) == len(oracle[name]["volumes"])
    for expected in oracle[name]["volumes"]:
        gaps = [apart_mm(volume.grid, expected) for volume in volumes]
        assert min(gaps) < allowed_mm(expected)
        found = statistics(volumes[int(np.argmin(gaps))])
        scale = max(1.0, abs(expected["max"]))
        assert np.abs(found - expected_statistics(expected)).max() < 1e-5 * scale


def test_philips_intensities_differ_from_dcm2niix_by_its_private_scale_alone(shared_data, oracle):
    name = f"{_NOISE}/mr_enhanced_philips"
    (expected,) = oracle[name]["volumes"]
    volume = read_dicom_series(shared_data / name).volume
    assert apart_mm(volume.grid, expected) < allowed_mm(expected)
    ratio = expected_statistics(expected)[1:] / statistics(volume)[1:]
    rescale_slope, scale_slope = 4.25885225885225, 0.0002765719254966825  # in the file
    assert ratio == pytest.approx([1 / (rescale_slope * scale_slope)] * 2, rel=1e-4)


def test_a_mosaic_lies_where_dcm2niix_puts_it_in_every_transfer_syntax(
    shared_data, oracle, tmp_path
):
    name = f"{_EDGES}/mr_9_transfer_syntaxes"
    expected = oracle[name]["volumes"][0]
    data = []
    for path in sorted((shared_data / name).iterdir()):
        folder = tmp_path / path.stem
        folder.mkdir()
        shutil.copy(path, folder)
        volume = read_dicom_series(folder).volume
        assert apart_mm(volume.grid, expected) < allowed_mm(expected)
        data.append(volume.data_cijk)
    assert len(data) == 9
    assert all(np.array_equal(other, data[0]) for other in data)
    found = (float(data[0].min()), float(data[0].max()), float(data[0].mean(dtype=np.float64)))
    assert found == pytest.approx(expected_statistics(expected), abs=0.01)


@pytest.mark.parametrize(("name", "code"), OTHERS.items())
def test_what_cannot_be_read_rightly_is_refused(shared_data, name, code):
    with pytest.raises(MedsegError) as caught:
        read_dicom_series(shared_data / name)
    assert caught.value.code == code


# Decoding JPEG 2000 takes GDCM long; it takes one frame for one file.
_ITK_READS = [
    name
    for name in SAME
    if not any(word in name for word in ("04_", "n_j2k", "multiframe", "enhanced", "localizer"))
]


@pytest.mark.parametrize("name", _ITK_READS)
def test_every_voxel_agrees_with_simpleitk(shared_data, name):
    folder = shared_data / name
    scan = read_dicom_series(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    last = np.array(image.GetSize()) - 1
    to_ras = np.array([-1.0, -1.0, 1.0])
    ends = [
        np.array(image.TransformIndexToPhysicalPoint(e)) * to_ras
        for e in ([0, 0, 0], last.tolist())
    ]
    places = scan.volume.grid.voxel_from_world(ends)
    assert np.allclose(places, np.rint(places), atol=0.01)
    theirs = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert places[0, :2] == pytest.approx([0, 0], abs=0.01)
    if places[0, 2] > places[1, 2]:
        theirs = theirs[:, :, ::-1]
    assert np.allclose(scan.volume.data_cijk[0], theirs, atol=1e-5)
