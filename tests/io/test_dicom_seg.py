import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset

from medseg import NOTICE, __version__
from medseg.core import Code, Grid, Label, LabelMap, LabelScheme
from medseg.errors import ConfigError, FormatError, GeometryError, ResourceError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_identity import missing_references
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg import Algorithm, check_seg, read_seg, write_seg
from medseg.io.dicom_series import read_dicom_series
from tests.dicom_variants import shifted
from tests.grids import grids
from tests.series import AXIAL, ramp, small_series, spoil, spoil_all

MODEL = Algorithm("test model", "1.2")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
HIPPOCAMPUS = Code("5366008", "SCT", "Hippocampus")
SCHEME = LabelScheme(
    "hippocampus and more",
    (
        Label(
            1,
            "Anterior hippocampus",
            (230, 60, 60),
            ANATOMY,
            HIPPOCAMPUS,
            Code("255549009", "SCT", "Anterior"),
        ),
        Label(
            2,
            "Posterior hippocampus",
            (60, 60, 230),
            ANATOMY,
            HIPPOCAMPUS,
            Code("255551008", "SCT", "Posterior"),
        ),
        Label(7, "Größe \\ left", (10, 200, 30)),
        Label(300, "läsion", (0, 0, 0)),
    ),
)


def read_and_label(folder, seed=0, values=(0, 0, 1, 2, 7)):
    scan = read_dicom_series(folder)
    chance = np.random.default_rng(seed)
    data = chance.choice(values, scan.volume.grid.shape_ijk).astype(np.uint16)
    return scan, LabelMap(data, scan.volume.grid, SCHEME)


@pytest.fixture
def case(tmp_path):
    """A small series, its scan, labels on it and where the SEG goes."""
    scan, labels = read_and_label(small_series(tmp_path / "series"))
    return scan.source, labels, tmp_path / "seg.dcm"


# Laws


@settings(max_examples=20, deadline=None)
@given(grids(smallest=3), st.data())
def test_labels_come_back_equal_on_the_grid_they_were_made_for(grid, data):
    values = data.draw(arrays(np.uint16, grid.shape_ijk, elements=st.sampled_from([0, 1, 2, 300])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dicom_series(ramp(grid), folder / "s", modality="CT", random_names=True)
        scan = read_dicom_series(folder / "s")
        # The series may run the other way along K; the labels are looked up in the world.
        steps = np.indices(grid.shape_ijk).reshape(3, -1).T
        there = np.rint(scan.volume.grid.voxel_from_world(grid.world_from_voxel(steps))).astype(int)
        on_series = np.zeros(grid.shape_ijk, dtype=np.uint16)
        on_series[tuple(there.T)] = values[tuple(steps.T)]
        labels = LabelMap(on_series, scan.volume.grid, SCHEME)
        write_seg(labels, folder / "seg.dcm", scan.source, algorithm=MODEL)
        assert np.array_equal(read_seg(folder / "seg.dcm", SCHEME, grid).data_ijk, values)
        _check_with_highdicom(folder / "seg.dcm", labels)


@settings(max_examples=15, deadline=None)
@given(grids(smallest=3), st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 99))
def test_labels_of_a_tilted_stack_come_back_to_the_place_of_every_slice(grid, across, down, seed):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dicom_series(ramp(grid), folder / "s", modality="CT")
        first = pydicom.dcmread(folder / "s" / "00001.dcm")
        cosines = np.array(first.ImageOrientationPatient, dtype=float)
        lean_mm = grid.spacing_mm[2] * (across * cosines[:3] + down * cosines[3:])
        for path in (folder / "s").iterdir():
            spoil(path, shifted(lambda k: k * lean_mm))
        scan, labels = read_and_label(folder / "s", seed, values=(0, 1, 2))
        write_seg(labels, folder / "seg.dcm", scan.source, algorithm=MODEL)
        found = read_seg(folder / "seg.dcm", SCHEME, scan.volume.grid)
        assert np.array_equal(found.data_ijk, labels.data_ijk)
        # the file's own frames, each at the position of its slice
        seg = pydicom.dcmread(folder / "seg.dcm")
        positions = {
            tuple(np.round(np.array(d.ImagePositionPatient, dtype=float), 4))
            for d in scan.source.datasets
        }
        for frame in seg.PerFrameFunctionalGroupsSequence:
            place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            assert tuple(np.round(place, 4)) in positions


def test_labels_of_a_resampled_gap_lie_on_the_resampled_slices(tmp_path):
    folder = small_series(tmp_path / "s", Grid((6, 5, 7), AXIAL.affine_ras))
    (folder / "00004.dcm").unlink()
    scan = read_dicom_series(folder, allow_gaps=True)
    data = np.arange(6 * 5 * 7).reshape(6, 5, 7) % 3
    labels = LabelMap(data.astype(np.uint16), scan.volume.grid, SCHEME)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    found = read_seg(tmp_path / "seg.dcm", SCHEME, scan.volume.grid)
    assert np.array_equal(found.data_ijk, labels.data_ijk)


def _check_with_highdicom(path, labels):
    """Compare world positions of all foreground voxels with what highdicom makes of the file."""
    seg = hd.seg.segread(path)
    present = [value for value in SCHEME.values if (labels.data_ijk == value).any()]
    volume = seg.get_volume(combine_segments=True)
    indices = np.argwhere(volume.array > 0)
    values = np.array([0, *(present or SCHEME.values)])[volume.array[tuple(indices.T)]]
    world_lps = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    voxels = labels.grid.voxel_from_world(world_lps * [-1.0, -1.0, 1.0])
    nearest = np.rint(voxels).astype(int)
    assert len(indices) == np.count_nonzero(labels.data_ijk)
    if len(indices):
        gaps = labels.grid.world_from_voxel(voxels) - labels.grid.world_from_voxel(nearest)
        assert np.abs(gaps).max() < 0.01
        assert np.array_equal(labels.data_ijk[tuple(nearest.T)], values)


# Outsiders


def test_highdicom_reads_codes_colours_and_the_algorithm(case):
    source, labels, path = case
    write_seg(labels, path, source, algorithm=MODEL)
    seg = hd.seg.segread(path)
    assert seg.segmentation_type == hd.seg.SegmentationTypeValues.BINARY
    assert seg.number_of_segments == 3
    first = seg.get_segment_description(1)
    assert first.segment_label == "Anterior hippocampus"
    assert first.segmented_property_category == hd.sr.CodedConcept(*_code(ANATOMY))
    assert first.segmented_property_type == hd.sr.CodedConcept(*_code(HIPPOCAMPUS))
    concept = first.SegmentedPropertyTypeCodeSequence[0]
    modifier = concept.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (modifier.CodeValue, modifier.CodeMeaning) == ("255549009", "Anterior")
    assert first.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    (algorithm,) = first.algorithm_identification
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("test model", "1.2")
    levels = hd.color.CIELabColor.from_dicom_value(first.RecommendedDisplayCIELabValue).to_rgb()
    assert np.abs(np.array(levels) - (230, 60, 60)).max() <= 2
    private = seg.get_segment_description(3)
    assert private.segment_label == "Größe / left"
    assert private.segmented_property_category == hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    assert private.segmented_property_type.scheme_designator == "99MEDSEG"
    assert private.segmented_property_type.value == "gr-e-left"


@pytest.mark.parametrize("known", [True, False])
def test_how_identity_was_removed_is_said_as_in_the_source_or_not_at_all(case, known):
    source, labels, path = case
    for header in source.datasets:
        del header.DeidentificationMethod
        if known:
            header.DeidentificationMethod = ["a tool", "described at length elsewhere: " + 30 * "x"]
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
            code.CodeMeaning = "Basic Application Confidentiality Profile"
            code.add_new((0x0099, 0x0010), "LO", "private")
            header.DeidentificationMethodCodeSequence = [code]
    write_seg(labels, path, source, algorithm=MODEL)
    seg = pydicom.dcmread(path)
    if not known:
        assert not any("dentification" in element.keyword for element in seg)
        assert "PatientIdentityRemoved" not in seg
        return
    assert seg.PatientIdentityRemoved == "YES"
    assert seg.DeidentificationMethod == source.datasets[0].DeidentificationMethod
    (code,) = seg.DeidentificationMethodCodeSequence
    assert [element.value for element in code] == [
        "113100",
        "DCM",
        "Basic Application Confidentiality Profile",
    ]


def _code(code):
    return code.value, code.scheme, code.meaning


def test_the_object_belongs_to_the_study_of_its_source_and_refers_to_every_slice(case):
    source, labels, path = case
    write_seg(labels, path, source, algorithm=MODEL)
    seg, first = pydicom.dcmread(path), source.datasets[0]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
        assert seg[keyword].value == first[keyword].value
    assert seg.SeriesInstanceUID != first.SeriesInstanceUID
    assert seg.SeriesNumber == 1001
    assert (seg.Manufacturer, seg.SoftwareVersions) == ("medseg", __version__)
    assert seg.ContentDescription == NOTICE
    assert seg.SeriesDescription == "test model segmentation"
    assert seg.PatientIdentityRemoved == "YES"
    assert not seg.ContentCreatorName
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    named = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
    assert named == [header.SOPInstanceUID for header in source.datasets]
    own = {
        header.SOPInstanceUID: [float(x) for x in header.ImagePositionPatient]
        for header in source.datasets
    }
    assert len(seg.PerFrameFunctionalGroupsSequence) == 3 * len(own)
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert [float(x) for x in position] == own[image.ReferencedSOPInstanceUID]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "06_dicom_mr_brain_tumour_progression/PGBM-003/11-T1post-18670",
        "06_dicom_mr_brain_tumour_progression/hippocrop/study1_13_HCropVolume",
        "07_dicom_ct_rtstruct/pat_2",
        "08_dicom_seg/dcmqi/ct-3slice",
        "09_dicom_edge_cases/ct_torchio_17slices_iop_flipped",
        "09_dicom_edge_cases/prostatex/ProstateX-0000_ADC",
    ],
)
def test_segmentations_of_real_series_lie_where_highdicom_sees_them(shared_data, tmp_path, name):
    scan = read_dicom_series(shared_data / name)
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[3:9, 5:20, 1:] = 1
    data[12:14, 2, :2] = 7
    labels = LabelMap(data, scan.volume.grid, SCHEME)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    _check_with_highdicom(tmp_path / "seg.dcm", labels)


@pytest.mark.shared_data
def test_a_segmentation_of_another_program_is_read(shared_data):
    folder = shared_data / "08_dicom_seg" / "dcmqi"
    grid = read_dicom_series(folder / "ct-3slice").volume.grid
    liver = LabelScheme(
        "liver", (Label(3, "some name", (1, 2, 3), concept=Code("T-62000", "SRT", "Liver")),)
    )
    found = read_seg(folder / "liver.dcm", liver, grid)
    volume = hd.seg.segread(folder / "liver.dcm").get_volume(combine_segments=True)
    indices = np.argwhere(volume.array > 0)
    world = (indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
    voxels = np.rint(grid.voxel_from_world(world)).astype(int)
    assert len(voxels) == np.count_nonzero(found.data_ijk) > 1000
    assert (found.data_ijk[tuple(voxels.T)] == 3).all()


# Worked cases


@pytest.mark.parametrize("omit", [False, True])
def test_frames_without_foreground_are_kept_or_left_out(case, omit):
    source, labels, path = case
    data = np.zeros(labels.grid.shape_ijk, dtype=np.uint8)
    data[1, 2, 3] = data[2, 2, 3] = 1
    data[4, 4, 0] = 2
    sparse = LabelMap(data, labels.grid, SCHEME)
    write_seg(sparse, path, source, algorithm=MODEL, omit_empty_frames=omit)
    assert pydicom.dcmread(path).NumberOfFrames == (2 if omit else 8)
    assert np.array_equal(read_seg(path, SCHEME, labels.grid).data_ijk, data)


@pytest.mark.parametrize(("omit", "frames"), [(False, 16), (True, 4)])
def test_nothing_found_is_a_valid_object_with_every_segment_empty(case, omit, frames):
    source, labels, path = case
    empty = LabelMap(np.zeros(labels.grid.shape_ijk, dtype=np.uint8), labels.grid, SCHEME)
    write_seg(empty, path, source, algorithm=MODEL, omit_empty_frames=omit)
    seg = hd.seg.segread(path)
    assert (seg.number_of_segments, int(seg.NumberOfFrames)) == (4, frames)
    assert not read_seg(path, SCHEME, labels.grid).data_ijk.any()


def test_labels_are_read_onto_flipped_and_turned_grids(case):
    source, labels, path = case
    write_seg(labels, path, source, algorithm=MODEL)
    affine = np.array(labels.grid.affine_ras)
    turned = affine[:, [2, 0, 1, 3]]
    turned[:3, 3] += turned[:3, 0] * 3
    turned[:3, 0] *= -1
    found = read_seg(path, SCHEME, Grid((4, 6, 5), turned))
    assert np.array_equal(found.data_ijk, labels.data_ijk.transpose(2, 0, 1)[::-1])


def test_what_the_source_lacks_stays_empty_and_what_it_has_is_kept(tmp_path):
    folder = small_series(tmp_path / "series")

    def change(dataset):
        for keyword in ("PatientID", "StudyID", "AccessionNumber", "StudyTime"):
            delattr(dataset, keyword)
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jörg"
        dataset.PatientSex = "X"
        dataset.PatientAge = "forty"
        dataset.StudyDate = "2001.02.03x"

    spoil_all(folder, change)
    scan, labels = read_and_label(folder)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    empty = ("PatientID", "StudyID", "AccessionNumber", "StudyTime", "PatientSex", "StudyDate")
    for keyword in (*empty, "PatientBirthDate", "ReferringPhysicianName"):
        assert keyword in seg
        assert not seg[keyword].value
    assert seg.PatientName == "Müller^Jörg"
    assert "PatientAge" not in seg
    (note,) = [note for note in scan.notes if "a DICOM SEG has them empty" in note]
    assert all(keyword in note for keyword in empty)
    assert "Müller" not in note


def test_class_and_instance_may_be_named_by_the_file_meta_information_alone(tmp_path):
    folder = small_series(tmp_path / "series")
    spoil_all(folder, lambda d: (setattr(d, "SOPClassUID", ""), setattr(d, "SOPInstanceUID", "")))
    scan, labels = read_and_label(folder)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    (series,) = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence
    named = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
    assert named == [h.file_meta.MediaStorageSOPInstanceUID for h in scan.source.datasets]


def test_slices_a_little_out_of_place_keep_their_own_positions(tmp_path):
    folder = small_series(tmp_path / "series")

    def lift(dataset):
        dataset.ImagePositionPatient[2] += 0.06

    spoil(folder / "00002.dcm", lift)
    scan, labels = read_and_label(folder)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    assert np.array_equal(
        read_seg(tmp_path / "seg.dcm", SCHEME, labels.grid).data_ijk, labels.data_ijk
    )


def test_nothing_of_the_patient_is_warned_about_or_logged(case, caplog):
    source, labels, path = case
    for header in source.datasets:
        header.PatientName = "DOE JOHN"  # highdicom warns about names without a caret
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        write_seg(labels, path, source, algorithm=MODEL)
    assert caught == []
    assert caplog.records == []


def test_frames_of_a_few_pixels_follow_each_other_without_filling(tmp_path):
    grid = Grid((3, 2, 5), np.diag([-1.0, -1.0, 1.0, 1.0]))
    scan, labels = read_and_label(small_series(tmp_path / "series", grid))
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    values = [value for value in SCHEME.values if (labels.data_ijk == value).any()]
    frames = [value == labels.data_ijk[:, :, k].T for value in values for k in range(5)]
    assert np.array_equal(bits[: 6 * len(frames)].reshape(-1, 2, 3), frames)
    assert len(seg.PixelData) == 2 * -(-6 * len(frames) // 16)
    found = read_seg(tmp_path / "seg.dcm", SCHEME, grid)
    assert np.array_equal(found.data_ijk, labels.data_ijk)


# Refusals


@pytest.mark.parametrize("text", ["", "x" * 65, "a\\b"])
def test_algorithms_need_a_name_and_a_version_that_dicom_can_hold(text):
    with pytest.raises(ConfigError, match="1 to 64 characters without a backslash"):
        Algorithm(text, "1")
    with pytest.raises(ConfigError, match="algorithm version"):
        Algorithm("model", text)


@pytest.mark.parametrize(
    ("keyword", "code"),
    [
        ("FrameOfReferenceUID", "frame-of-reference-missing"),
        ("StudyInstanceUID", "dicom-references-missing"),
        ("SeriesInstanceUID", "dicom-references-missing"),
    ],
)
def test_a_series_without_identifiers_cannot_be_referred_to(tmp_path, keyword, code):
    folder = small_series(tmp_path / "series")
    spoil_all(folder, lambda dataset: delattr(dataset, keyword))
    scan, labels = read_and_label(folder)
    assert missing_references(scan.source.datasets) == (keyword,)
    assert f"no DICOM SEG can refer to this series: it lacks {keyword}" in scan.notes
    with pytest.raises(FormatError, match=f"expected a series with {keyword}, which") as caught:
        write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series"]


def test_labels_on_another_grid_are_refused(case):
    source, labels, path = case
    smaller = LabelMap(labels.data_ijk[:-1], Grid((5, 5, 4), labels.grid.affine_ras), SCHEME)
    with pytest.raises(GeometryError, match=r"labels of shape \(6, 5, 4\), like the ser") as caught:
        write_seg(smaller, path, source, algorithm=MODEL)
    assert caught.value.code == "seg-grid-differs"
    affine = np.array(labels.grid.affine_ras)
    affine[0, 3] += 0.02
    moved = labels.on_grid(labels.data_ijk, Grid(labels.grid.shape_ijk, affine))
    with pytest.raises(GeometryError, match=r"found a corner 0\.020 mm away; bring") as caught:
        write_seg(moved, path, source, algorithm=MODEL)
    assert caught.value.code == "seg-grid-differs"


def test_headers_that_highdicom_refuses_are_named_without_their_values(case):
    source, labels, path = case
    with quiet_dicom():
        for header in source.datasets:
            header.SOPClassUID = "1.2.3.4711"  # a class that no one knows
    with pytest.raises(FormatError, match=r"something that highdicom refuses \(\w+\)") as caught:
        write_seg(labels, path, source, algorithm=MODEL)
    assert caught.value.code == "seg-build"
    assert "4711" not in str(caught.value)
    assert not path.exists()


def test_a_folder_that_is_absent_is_a_resource_error(case):
    source, labels, path = case
    with pytest.raises(ResourceError, match="expected an existing folder"):
        write_seg(labels, path.parent / "absent" / "seg.dcm", source, algorithm=MODEL)


def _flip_a_pixel(seg):
    content = bytearray(seg.PixelData)
    content[0] ^= 1
    seg.PixelData = bytes(content)


def _move(seg):
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[0] += 0.02


def _move_far(seg):
    for group in seg.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[0] += 15


def _turn(seg):
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def _stretch(seg):
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [1.25, 1.51]


def _rename(seg):
    seg.SegmentSequence[0].SegmentLabel = "stranger"
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "1"


def _overlap(seg):
    seg.PixelData = b"\xff" * len(seg.PixelData)


def _orphan(seg):
    del seg.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence


def _shorten(seg):
    seg.PixelData = seg.PixelData[:10]


def _declare(**tags):
    def change(seg):
        for keyword, value in tags.items():
            setattr(seg, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (_flip_a_pixel, "verify-labels", "the labels that were written, found 1 voxels that"),
        (_move, "verify-geometry", "within 0.010 mm, found a pixel 0.020 mm away; report this"),
        (_move_far, "verify-geometry", "pixels beside or outside of it"),
        (_turn, "verify-geometry", "pixels"),
        (_stretch, "verify-geometry", "a pixel 0.050 mm away"),
        (_declare(FrameOfReferenceUID="1.2.3"), "verify-geometry", "the frame of reference of the"),
        (_rename, "verify-labels", r"segment 1 \('stranger'\) that it does not list; report this"),
    ],
)
def test_a_file_that_does_not_hold_what_was_written_is_found_out(case, change, code, words):
    source, labels, path = case
    data = np.zeros(labels.grid.shape_ijk, dtype=np.uint8)
    data[2, 2, 2] = 1
    labels = LabelMap(data, labels.grid, SCHEME)
    write_seg(labels, path, source, algorithm=MODEL)
    check_seg(path, labels, source, where="result")
    spoil(path, change)
    with pytest.raises((FormatError, GeometryError), match=words) as caught:
        check_seg(path, labels, source, where="result")
    assert (caught.value.code, caught.value.where) == (code, "result")
    assert isinstance(caught.value, GeometryError) == (code == "verify-geometry")


def test_a_failed_verification_leaves_no_file(case):
    source, labels, path = case
    for header in source.datasets:
        # The header moves after reading: what is written no longer lies on the grid.
        header.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    with pytest.raises(GeometryError, match="report this; nothing was written") as caught:
        write_seg(labels, path, source, algorithm=MODEL)
    assert caught.value.code == "verify-geometry"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["series"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (
            _rename,
            "seg-segment-unknown",
            "of the scheme 'hippocampus and more', one of .* segment 1",
        ),
        (_overlap, "seg-overlap", "found voxels in 'Posterior hippocampus' and 'Anterior hippoc"),
        (_orphan, "seg-frames", "found a frame without them"),
        (_shorten, "seg-unreadable", "12 frames of 30 pixels, found 10 bytes of pixel data"),
        (_move_far, "seg-grid-differs", "found pixels beside or outside of it; read it on"),
        (
            _declare(SegmentationType="FRACTIONAL"),
            "seg-type",
            "found type FRACTIONAL in 1 bits; con",
        ),
        (_declare(SegmentationType="VECTOR"), "seg-type", "found no known type; convert"),
        (_declare(PixelRepresentation=1), "seg-type", "found pixels that are not one unsigned"),
        (_declare(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), "seg-type", "found another DICOM obj"),
    ],
)
def test_segmentations_that_are_no_label_map_are_refused(case, change, code, words):
    source, labels, path = case
    write_seg(labels, path, source, algorithm=MODEL)
    spoil(path, change)
    with pytest.raises((FormatError, GeometryError), match=words) as caught:
        read_seg(path, SCHEME, labels.grid)
    assert caught.value.code == code


@pytest.mark.parametrize("content", [None, b"", b"text", b"\0" * 128 + b"DICM\x02\x00"])
def test_what_is_no_dicom_is_no_segmentation(tmp_path, content):
    path = tmp_path / "seg.dcm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError, match="found a file that is missing, damaged or no DI") as c:
        read_seg(path, SCHEME, ramp().grid)
    assert c.value.code == "seg-unreadable"


def test_an_earlier_result_survives_a_failed_one(case):
    source, labels, path = case
    write_seg(labels, path, source, algorithm=MODEL)
    before = path.read_bytes()
    shutil.copy(path, path.with_name("kept.dcm"))
    for header in source.datasets:
        header.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    with pytest.raises(GeometryError, match="nothing was written"):
        write_seg(labels, path, source, algorithm=MODEL)
    assert path.read_bytes() == before
