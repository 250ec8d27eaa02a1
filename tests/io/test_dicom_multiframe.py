"""Multi-frame objects of PET and of tilted gantries, made here; figures are worked by hand."""

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedPETImage
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medseg.core import LabelMap, LabelScheme
from medseg.errors import FormatError
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg import Algorithm
from medseg.io.dicom_series import read_dicom_series
from medseg.io.rtstruct import write_rtstruct
from medseg.io.rtstruct_labels import read_rtstruct
from tests.dicom_variants import enhanced, setting, tilted_series
from tests.io.test_dicom_suv import pet
from tests.series import AXIAL, ramp, small_series, spoil_all

ENHANCED_PET = "1.2.840.10008.5.1.4.1.1.130"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SLOPE, INTERCEPT = 2.5, 10.0
LEFT = 370e6 * 2 ** (-3600 / 6588)


def mapping(unit, slope=SLOPE, intercept=INTERCEPT):
    item, code = Dataset(), Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = 0, 1000
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
    item.MeasurementUnitsCodeSequence = [code]
    return item


@pytest.fixture
def enhanced_pet(tmp_path):
    """70 kg; 370 MBq of F-18 an hour before the moment that decay is corrected to."""

    def make(mappings=("Bq/ml",), **changes):
        folder = small_series(tmp_path / "classic")
        target = tmp_path / "enhanced" / "1"
        target.parent.mkdir()
        whole = enhanced(folder, target, class_uid=ENHANCED_PET)
        whole.Modality, whole.PatientWeight = "PT", "70"
        whole.DecayCorrected = whole.AttenuationCorrected = "YES"
        whole.DecayCorrectionDateTime = "20200102120000"
        tracer = Dataset()
        tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "370", "6588"
        tracer.RadiopharmaceuticalStartDateTime = "20200102110000.00"
        whole.RadiopharmaceuticalInformationSequence = [tracer]
        for frame in whole.PerFrameFunctionalGroupsSequence:
            frame.RealWorldValueMappingSequence = [mapping(unit) for unit in mappings]
        for keyword, value in changes.items():
            owner = tracer if keyword.startswith("Radio") else whole
            if value is None:
                delattr(owner, keyword)
            else:
                setattr(owner, keyword, value)
        with quiet_dicom():
            whole.save_as(target)
        return target.parent

    return make


@pytest.mark.parametrize(
    ("mappings", "factor", "words"),
    [
        (("Bq/ml",), 70000 / LEFT, "decay corrected over 60 min"),
        (("g/ml{SUVbw}",), 1.0, "as mapped"),
        (("{counts}", "Bq/ml", "g/ml{SUVbw}"), 1.0, "as mapped"),
    ],
)
def test_an_enhanced_pet_object_is_read_by_its_real_world_values(
    enhanced_pet, mappings, factor, words
):
    scan = read_dicom_series(enhanced_pet(mappings))
    expected = (ramp().data_cijk * SLOPE + INTERCEPT) * factor
    np.testing.assert_allclose(scan.volume.data_cijk, expected, rtol=1e-6)
    assert any(words in note for note in scan.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mappings": ("{counts}",)}, "a real world value mapping .* found none"),
        ({"AttenuationCorrected": "NO"}, "AttenuationCorrected .* no correction of attenuation"),
        ({"DecayCorrected": None}, "DecayCorrected .* no correction of decay"),
        ({"DecayCorrectionDateTime": None}, r"DecayCorrectionDateTime \(0018,9701\)"),
        ({"RadiopharmaceuticalStartDateTime": None}, r"RadiopharmaceuticalStartDateTime \(0018"),
        ({"RadionuclideTotalDose": "370000000"}, "a dose in megabecquerels .* 3.7e.08, which"),
        ({"PatientWeight": None}, "PatientWeight"),
        ({"DecayCorrectionDateTime": "20200102100000"}, "soon after the injection"),
    ],
)
def test_what_suv_of_an_enhanced_object_needs_is_named(enhanced_pet, changes, words):
    with pytest.raises(FormatError, match=words) as caught:
        read_dicom_series(enhanced_pet(**changes))
    assert caught.value.code == "pet-suv"


def test_a_dose_that_nobody_is_given_is_in_another_unit(tmp_path):
    folder = pet(tmp_path / "pet", RadionuclideTotalDose="370")
    with pytest.raises(FormatError, match=r"a dose in becquerels .* found 370, which"):
        read_dicom_series(folder)


def legacy(kind, folder, target):
    with quiet_dicom():
        made = kind(
            [dcmread(path) for path in sorted(folder.iterdir())],
            series_instance_uid=generate_uid(),
            series_number=9,
            sop_instance_uid=generate_uid(),
            instance_number=1,
        )
        target.mkdir()
        made.save_as(target / "1")
    return target


def test_pet_that_was_converted_from_classic_has_the_suv_of_the_classic(tmp_path):
    folder = pet(tmp_path / "pet", AccessionNumber="1", StudyDate="20200102", StudyTime="110000")
    spoil_all(folder, setting(SOPClassUID="1.2.840.10008.5.1.4.1.1.128", PatientName="A^B"))
    classic = read_dicom_series(folder)
    converted = read_dicom_series(
        legacy(LegacyConvertedEnhancedPETImage, folder, tmp_path / "legacy")
    )
    np.testing.assert_allclose(converted.volume.data_cijk, classic.volume.data_cijk, rtol=1e-6)
    assert converted.volume.grid.distance_mm(classic.volume.grid) < 1e-4
    assert any("decay corrected over 60 min" in note for note in converted.notes)


@pytest.mark.parametrize("form", ["enhanced", "converted"])
def test_a_tilted_multi_frame_object_lies_as_its_slices_do_and_so_do_its_contours(tmp_path, form):
    folder = tilted_series(tmp_path / "classic", AXIAL, (0.0, 0.7, 0.0), modality="CT")
    spoil_all(folder, setting(PatientName="A^B", StudyDate="20200102", StudyTime="110000"))
    classic = read_dicom_series(folder)
    if form == "enhanced":
        (tmp_path / "multi").mkdir()
        enhanced(folder, tmp_path / "multi" / "1", class_uid=ENHANCED_CT)
    else:
        legacy(LegacyConvertedEnhancedCTImage, folder, tmp_path / "multi")
    scan = read_dicom_series(tmp_path / "multi")
    assert scan.volume.grid.distance_mm(classic.volume.grid) < 1e-4
    assert scan.volume.grid.shear_deg > 19
    assert any("gantry tilt" in note for note in scan.notes)
    data = np.zeros(AXIAL.shape_ijk, np.uint8)
    data[1:4, 2:4, 1:3] = 1
    labels = LabelMap(data, scan.volume.grid, LabelScheme.plain("s", {1: "part"}))
    path = tmp_path / "rt.dcm"
    write_rtstruct(labels, path, scan.source, algorithm=Algorithm("test", "1"))
    found, _ = read_rtstruct(path, labels.scheme, classic.volume.grid)
    assert np.array_equal(found.data_ijk, data)
    (roi,) = dcmread(path).ROIContourSequence
    numbers = {
        int(contour.ContourImageSequence[0].ReferencedFrameNumber)
        for contour in roi.ContourSequence
    }
    assert numbers == {scan.source.frame_numbers[k] for k in (1, 2)}
