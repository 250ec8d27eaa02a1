"""PET in standardised uptake values; figures are worked by hand."""

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.errors import FormatError
from medseg.io.dicom_series import read_dicom_series
from tests.series import AXIAL, ramp, small_series, spoil_all


def pet(folder, grid=AXIAL, **changes):
    """70 kg, 370 MBq of F-18 an hour (0.54648 half-lives) before the scan."""

    def change(dataset):
        dataset.Modality = "PT"
        dataset.Units = "BQML"
        dataset.CorrectedImage = ["ATTN", "DECY", "SCAT"]
        dataset.DecayCorrection = "START"
        dataset.PatientWeight = "70"
        dataset.SeriesDate = dataset.AcquisitionDate = "20200102"
        dataset.SeriesTime = dataset.AcquisitionTime = "120000.00"
        tracer = Dataset()
        tracer.RadionuclideTotalDose = "370000000"
        tracer.RadionuclideHalfLife = "6588"
        tracer.RadiopharmaceuticalStartTime = "110000"
        dataset.RadiopharmaceuticalInformationSequence = [tracer]
        for keyword, value in changes.items():
            owner = tracer if keyword.startswith("Radio") else dataset
            if value is None:
                delattr(owner, keyword)
            else:
                setattr(owner, keyword, value)

    small_series(folder, grid)
    spoil_all(folder, change)
    return folder


LEFT = 370e6 * 2 ** (-3600 / 6588)


@pytest.mark.parametrize(
    ("changes", "factor", "words"),
    [
        ({}, 70000 / LEFT, "decay corrected over 60 min"),
        ({"DecayCorrection": "ADMIN"}, 70000 / 370e6, "decay corrected to injection"),
        ({"Units": "GML"}, 1.0, "as stored"),
        # a derived series is made later than the scan
        ({"SeriesTime": "180000"}, 70000 / LEFT, "over 60 min"),
        # the day before, as the whole date and time say or as the clock shows
        (
            {"RadiopharmaceuticalStartDateTime": "20200101233000"},
            70000 / (370e6 * 2 ** (-45000 / 6588)),
            "over 750 min",
        ),
        (
            {"RadiopharmaceuticalStartTime": "233000", "SeriesTime": "003000",
             "AcquisitionTime": "003000"},
            70000 / LEFT,
            "over 60 min",
        ),
    ],
)  # fmt: skip
def test_values_become_suv_by_body_weight(tmp_path, changes, factor, words):
    scan = read_dicom_series(pet(tmp_path / "s", **changes))
    assert scan.volume.data_cijk.dtype == np.float32
    assert np.allclose(scan.volume.data_cijk, ramp().data_cijk * factor, rtol=1e-6)
    assert any(words in note for note in scan.notes)


def test_counts_take_philips_private_factor(tmp_path):
    folder = pet(tmp_path / "s", Units="CNTS")

    def change(dataset):
        dataset.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
        dataset.add_new((0x7053, 0x1000), "DS", "0.00025")

    spoil_all(folder, change)
    data = read_dicom_series(folder).volume.data_cijk
    assert np.allclose(data, ramp().data_cijk * 0.00025, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Units": None}, r"Units \(0054,1001\) BQML, GML or CNTS, to compute SUV, found none"),
        ({"Units": "PROPCPS"}, "found PROPCPS"),
        ({"Units": "CNTS"}, r"Philips' SUV scale factor \(7053,1000\)"),
        ({"Units": "GML", "SUVType": "LBM"}, r"SUVType \(0054,1006\) BW.*found SUVType LBM"),
        ({"CorrectedImage": ["DECY"]}, "found no correction of attenuation"),
        ({"CorrectedImage": None}, "ATTN in CorrectedImage"),
        ({"PatientWeight": None}, r"PatientWeight \(0010,1030\) above 0, to .*found none"),
        ({"PatientWeight": "0"}, r"PatientWeight \(0010,1030\) above 0"),
        ({"RadionuclideTotalDose": None}, r"RadionuclideTotalDose \(0018,1074\)"),
        ({"RadionuclideHalfLife": None}, r"RadionuclideHalfLife \(0018,1075\)"),
        ({"DecayCorrection": "NONE"}, r"DecayCorrection \(0054,1102\) START or ADMIN.*NONE"),
        ({"SeriesTime": None}, r"a date and SeriesTime \(0008,0031\)"),
        ({"AcquisitionTime": "12"}, r"a date and AcquisitionTime \(0008,0032\)"),
        ({"RadiopharmaceuticalStartDateTime": "20200102"}, "found none that can be read"),
        ({"RadiopharmaceuticalStartTime": "x"}, r"RadiopharmaceuticalStartTime \(0018,1072\)"),
        ({"RadiopharmaceuticalStartDateTime": "20190101000000"}, "a scan soon after the injection"),
        ({"RadiopharmaceuticalInformationSequence": []}, "InformationSequence .*found none"),
    ],
)  # fmt: skip
def test_without_what_suv_needs_the_series_is_refused(tmp_path, changes, words):
    folder = pet(tmp_path / "s")
    if "RadiopharmaceuticalInformationSequence" in changes:
        spoil_all(folder, lambda d: setattr(d, "RadiopharmaceuticalInformationSequence", []))
    else:
        folder = pet(tmp_path / "t", **changes)
    with pytest.raises(FormatError, match=words) as caught:
        read_dicom_series(folder)
    assert caught.value.code == "pet-suv"


def test_units_that_differ_between_slices_are_refused(tmp_path):
    folder = pet(tmp_path / "s")
    spoil_all(folder, lambda d: setattr(d, "Units", "GML" if d.InstanceNumber == 1 else "BQML"))
    with pytest.raises(FormatError, match=r"one Units .0054,1001. for all slices"):
        read_dicom_series(folder)
