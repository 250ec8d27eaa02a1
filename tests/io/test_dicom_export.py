import errno

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.atomic import atomic_folder
from medseg.core import Grid, Volume
from medseg.errors import ConfigError, FormatError, GeometryError, ResourceError, ShapeError
from medseg.io.dicom_export import check_dicom_series, write_dicom_series
from medseg.io.dicom_series import read_dicom_series
from tests.series import AXIAL, ramp, small_series

CUBE = Grid((3, 2, 2), np.diag([-1.0, -1.0, 1.0, 1.0]))


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.float32, (1, 3, 2, 2), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(["CT", "MR"]),
)
def test_fractions_come_back_within_half_a_step_of_65535(tmp_path_factory, data, modality):
    folder = tmp_path_factory.mktemp("export") / "s"
    write_dicom_series(Volume(data, CUBE), folder, modality=modality)
    found = read_dicom_series(folder).volume.data_cijk
    step = (float(data.max()) - float(data.min())) / 65535
    assert np.abs(found.astype(np.float64) - data).max() <= 0.51 * step + 1e-6 * np.abs(data).max()


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    ("low", "high", "signed"), [(-1024, 3071, 1), (0, 65535, 0), (-32768, 32767, 1), (0, 255, 1)]
)
def test_integers_of_16_bits_are_stored_as_they_are(tmp_path, modality, low, high, signed):
    data = np.full((1, 3, 2, 2), low, dtype=np.int32)
    data[0, 1, 1, 1] = high
    write_dicom_series(Volume(data, CUBE), tmp_path / "s", modality=modality)
    dataset = pydicom.dcmread(tmp_path / "s" / "00001.dcm")
    assert dataset.PixelRepresentation == signed
    assert ("RescaleSlope" in dataset) == (modality == "CT")
    assert np.array_equal(read_dicom_series(tmp_path / "s").volume.data_cijk, data)


def test_integers_beyond_16_bits_are_rescaled(tmp_path):
    data = np.array([0, 10, 100000, 5, 7, 9], dtype=np.int32).reshape(1, 3, 2, 1)
    grid = Grid((3, 2, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    write_dicom_series(Volume(data, grid), tmp_path / "s", modality="MR")
    found = read_dicom_series(tmp_path / "s").volume.data_cijk
    assert np.abs(found - data).max() <= 100000 / 65535


def test_left_handed_grids_keep_every_voxel_in_its_place(tmp_path):
    grid = Grid((6, 5, 4), np.diag([-1.5, -1.25, -2.0, 1.0]))
    write_dicom_series(ramp(grid), tmp_path / "s", modality="MR")
    found = read_dicom_series(tmp_path / "s").volume
    assert np.array_equal(found.data_cijk[..., ::-1], ramp(grid).data_cijk)
    assert found.grid.world_from_voxel([0, 0, 3]) == pytest.approx([0, 0, 0], abs=1e-9)


def test_the_series_is_anonymous_complete_and_named_as_asked(tmp_path):
    small_series(tmp_path / "s", random_names=True, patient_id="P1", series_number=4)
    paths = sorted((tmp_path / "s").iterdir())
    assert all(len(path.name) == 16 and not path.suffix for path in paths)
    headers = [pydicom.dcmread(path) for path in paths]
    assert len({header.SOPInstanceUID for header in headers}) == 4
    assert len({header.SeriesInstanceUID for header in headers}) == 1
    for header in headers:
        assert (header.PatientID, header.PatientIdentityRemoved) == ("P1", "YES")
        assert (header.SeriesNumber, header.Modality) == (4, "MR")
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID


@pytest.mark.parametrize(
    ("volume", "options", "error", "code", "words"),
    [
        (ramp(), {"modality": "PT"}, ConfigError, "dicom-modality", "one of CT, MR"),
        (
            Volume(np.zeros((2, 3, 2, 2)), CUBE, ("a", "b")),
            {},
            ShapeError,
            "dicom-channels",
            "one channel for one series, found 2 channels",
        ),
        (
            Volume(np.full((1, 3, 2, 2), np.nan), CUBE),
            {},
            FormatError,
            "voxels-not-finite",
            "finite values, found NaN or infinity",
        ),
        (
            Volume(
                np.zeros((1, 3, 2, 2)),
                Grid((3, 2, 2), np.eye(4) + np.eye(4)[0][:, None] * np.eye(4)[1] * 0.1),
            ),
            {},
            GeometryError,
            "affine-sheared",
            "right angles, found a shear of 5.711 degrees",
        ),
    ],
)
def test_volumes_that_make_no_series_are_refused(tmp_path, volume, options, error, code, words):
    with pytest.raises(error, match=words) as caught:
        write_dicom_series(volume, tmp_path / "s", **{"modality": "MR", **options})
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_does_not_hold_the_volume_is_found_out(tmp_path):
    folder = small_series(tmp_path / "s")
    check_dicom_series(folder, ramp(), 1.0, "out")
    other = Volume(ramp().data_cijk + 1, AXIAL)
    with pytest.raises(FormatError, match="within 0, found a difference of 1 on read") as caught:
        check_dicom_series(folder, other, 1.0, "out")
    assert caught.value.code == "verify-values"
    moved = np.array(AXIAL.affine_ras)
    moved[1, 3] = 0.02
    with pytest.raises(GeometryError, match=r"within 0\.01 mm, found another one") as caught:
        check_dicom_series(folder, ramp(Grid(AXIAL.shape_ijk, moved)), 1.0, "out")
    assert caught.value.code == "verify-geometry"


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    with pytest.raises(ResourceError, match="a name that is still free, found an exist") as caught:
        write_dicom_series(ramp(), tmp_path / "s", modality="MR")
    assert caught.value.code == "output-exists"
    with pytest.raises(ResourceError, match="expected an existing folder"):
        write_dicom_series(ramp(), tmp_path / "absent" / "s", modality="MR")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "full"),
        KeyboardInterrupt(),
        GeometryError("a", expected="b", found="c", remedy="d"),
    ],
)
def test_a_failure_within_the_block_leaves_no_folder(tmp_path, failure):
    caught = ResourceError if isinstance(failure, OSError) else type(failure)

    def fill():
        with atomic_folder(tmp_path / "s") as temporary:
            (temporary / "half").write_text("half")
            raise failure

    with pytest.raises(caught):
        fill()
    assert list(tmp_path.iterdir()) == []
