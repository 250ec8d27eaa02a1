import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread

from medseg import NOTICE
from medseg.core import Code, Grid, Label, LabelMap, LabelScheme, Volume
from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import Algorithm
from medseg.io.dicom_series import read_dicom_series
from medseg.io.nifti import read_nifti
from medseg.io.rtstruct import check_rtstruct, write_rtstruct
from medseg.io.rtstruct_reading import Contour, Roi, read_structure_set
from medseg.io.rtstruct_voxels import read_roi_scheme, read_rtstruct, roi_mask
from tests.grids import grids
from tests.series import ramp, small_series, spoil, spoil_all

MODEL = Algorithm("test model", "1.2")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
SCHEME = LabelScheme(
    "organs",
    (
        Label(1, "Liver", (153, 76, 51), ANATOMY, Code("10200004", "SCT", "Liver")),
        Label(2, "Größe \\ left", (10, 200, 30)),
        Label(300, "läsion", (0, 0, 0)),
    ),
)
GRID = Grid((24, 20, 6), np.diag([-1.5, -1.25, 2.0, 1.0]))
DATA = "07_dicom_ct_rtstruct"


def blocks(grid=GRID):
    """Two structures, one with a hole and one in that hole, one at the border of the image."""
    data = np.zeros(grid.shape_ijk, dtype=np.uint16)
    data[4:16, 3:15, 1:5] = 1
    data[8:12, 7:11, 1:5] = 0
    data[9:11, 8:10, 2:4] = 300
    data[20:, 16:, 0:2] = 2
    return data


@pytest.fixture
def case(tmp_path):
    """A series, its scan, labels on it and where the structure set goes."""
    volume = Volume(np.arange(24 * 20 * 6, dtype=np.int16).reshape(1, 24, 20, 6), GRID)
    write_dicom_series(volume, tmp_path / "series", modality="CT")
    scan = read_dicom_series(tmp_path / "series")
    labels = LabelMap(blocks(), scan.volume.grid, SCHEME)
    return scan.source, labels, tmp_path / "rt.dcm"


@pytest.fixture
def written(case):
    source, labels, path = case
    write_rtstruct(labels, path, source, algorithm=MODEL)
    return path


def contour_of(path, roi=0, contour=0):
    return dcmread(path).ROIContourSequence[roi].ContourSequence[contour]


def box_roi(lows, name="box", **changes):
    """A square in each plane, given by its lowest corner in world mm."""
    steps = np.array([[0, 0, 0], [6, 0, 0], [6, 5, 0], [0, 5, 0]], dtype=float)
    contours = tuple(Contour(np.array(low, dtype=float) + steps) for low in lows)
    values = {"number": 1, "rgb": None, "interpreted_type": "", "generation_algorithm": ""}
    values |= {"concept": None, "frame_of_reference": "1.2", "contours": contours}
    return Roi(name=name, **(values | changes))


# Laws


@settings(max_examples=15, deadline=None)
@given(grids(smallest=2), st.data())
def test_labels_come_back_equal_on_any_oblique_grid(grid, data):
    values = data.draw(arrays(np.uint16, grid.shape_ijk, elements=st.sampled_from([0, 1, 1, 300])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dicom_series(ramp(grid), folder / "s", modality="MR")
        scan = read_dicom_series(folder / "s")
        steps = np.indices(grid.shape_ijk).reshape(3, -1).T
        # the series may run the other way along K
        there = np.rint(scan.volume.grid.voxel_from_world(grid.world_from_voxel(steps))).astype(int)
        on_series = np.zeros(grid.shape_ijk, dtype=np.uint16)
        on_series[tuple(there.T)] = values[tuple(steps.T)]
        labels = LabelMap(on_series, scan.volume.grid, SCHEME)
        write_rtstruct(labels, folder / "rt.dcm", scan.source, algorithm=MODEL)
        frame = str(scan.source.datasets[0].FrameOfReferenceUID)
        found, _ = read_rtstruct(
            folder / "rt.dcm", SCHEME, grid, frame_of_reference=frame, allow_gaps=True
        )
        assert np.array_equal(found.data_ijk, values)


@settings(max_examples=20, deadline=None)
@given(grids(smallest=4), st.integers(0, 2), st.floats(-0.04, 0.04))
def test_contours_across_any_axis_of_the_grid_are_filled(grid, axis, off):
    contours = []
    wanted = np.zeros(grid.shape_ijk, dtype=bool)
    for place in range(1, grid.shape_ijk[axis]):
        corners = np.array([[0.6, 0.6], [2.4, 0.6], [2.4, 3.4], [0.6, 3.4]])
        points = np.insert(corners, axis, place + off, axis=1)
        contours.append(Contour(grid.world_from_voxel(points)))
        np.moveaxis(wanted, axis, 0)[place, 1:3, 1:4] = True
    mask, notes = roi_mask(box_roi([], contours=tuple(contours)), grid)
    assert np.array_equal(mask, wanted)
    assert notes == []


@settings(max_examples=15, deadline=None)
@given(grids(smallest=5, largest=9))
def test_contours_oblique_to_the_grid_enclose_what_lies_between_their_planes(grid):
    # squares of 40 mm in planes 2 mm apart, across a direction far from the axes of the grid
    across = grid.direction_ras @ np.array([0.5, 0.6, np.sqrt(1 - 0.61)])
    first = np.cross(across, grid.direction_ras[:, 0])
    first /= np.linalg.norm(first)
    second = np.cross(across, first)
    middle = grid.world_from_voxel((np.array(grid.shape_ijk) - 1) / 2.0)
    corners = 20.0 * np.array([-first - second, first - second, first + second, second - first])
    heights = np.arange(-2, 3) * 2.0
    contours = tuple(Contour(middle + corners + height * across) for height in heights)
    mask, _ = roi_mask(box_roi([], contours=contours), grid)
    steps = np.indices(grid.shape_ijk).reshape(3, -1).T
    offsets = grid.world_from_voxel(steps) - middle
    inside = (np.abs(offsets @ np.stack([first, second]).T) < 20.0).all(axis=1)
    inside &= np.abs(offsets @ across) < 5.0
    sure = (np.abs(np.abs(offsets @ np.stack([first, second, across]).T) - [20, 20, 5]) > 0.01).all(
        axis=1
    )
    assert np.array_equal(mask.ravel()[sure], inside[sure])


# Outsiders


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("patient", "file", "least"),
    [("pat_1", "DCM_RS_00060.dcm", 0.999), ("pat_2", "DCM_RS_00041.dcm", 0.999)],
)
def test_contours_of_cerr_are_filled_as_plastimatch_fills_them(shared_data, patient, file, least):
    root = shared_data / DATA
    scan = read_dicom_series(root / patient)
    frame = str(scan.source.datasets[0].FrameOfReferenceUID)
    path = root / patient / file
    scheme = read_roi_scheme(path)
    labels, notes = read_rtstruct(path, scheme, scan.volume.grid, frame_of_reference=frame)
    (roi,) = read_structure_set(path).rois
    assert (roi.name, roi.rgb, roi.interpreted_type) == ("GTV-1", (0, 230, 0), "")
    assert notes == ()
    oracle = read_nifti(root / "oracle_plastimatch_masks" / f"{patient}_GTV-1.nii.gz").volume
    there = oracle.grid.world_from_voxel(np.argwhere(oracle.data_cijk[0] > 0))
    voxels = np.rint(labels.grid.voxel_from_world(there)).astype(int)
    expected = np.zeros(labels.grid.shape_ijk, dtype=bool)
    expected[tuple(voxels.T)] = True
    common = np.count_nonzero(expected & (labels.data_ijk == 1))
    dice = 2.0 * common / (expected.sum() + np.count_nonzero(labels.data_ijk))
    assert dice >= least


@pytest.mark.shared_data
def test_a_real_structure_survives_being_written_and_read(shared_data, tmp_path):
    folder = shared_data / DATA / "pat_2"
    scan = read_dicom_series(folder)
    scheme = read_roi_scheme(folder / "DCM_RS_00041.dcm")
    labels, _ = read_rtstruct(folder / "DCM_RS_00041.dcm", scheme, scan.volume.grid)
    write_rtstruct(labels, tmp_path / "rt.dcm", scan.source, algorithm=MODEL)
    again, notes = read_rtstruct(tmp_path / "rt.dcm", scheme, scan.volume.grid)
    assert np.array_equal(again.data_ijk, labels.data_ijk)
    assert notes == ()


@pytest.mark.shared_data
def test_structures_of_mim_on_a_part_of_their_series_are_read_and_the_rest_is_named(
    shared_data, tmp_path
):
    for number in (1, 2):
        shutil.copy(shared_data / DATA / "rt_utils_mim" / f"ct_{number}.dcm", tmp_path)
    scan = read_dicom_series(tmp_path)
    path = shared_data / DATA / "rt_utils_mim" / "mim_rtstruct_4roi.dcm"
    frame = str(scan.source.datasets[0].FrameOfReferenceUID)
    labels, notes = read_rtstruct(
        path, read_roi_scheme(path), scan.volume.grid, frame_of_reference=frame
    )
    # every contour of this file is in the plane of an image, the third image is not there
    structures = read_structure_set(path)
    assert [roi.generation_algorithm for roi in structures.rois] == ["MANUAL"] * 4
    assert [note for note in notes if "outside the image" in note] == [
        f"ROI-{number}: 1 contour outside the image left out" for number in range(1, 5)
    ]
    for value, roi in enumerate(structures.rois, start=1):
        for contour in roi.contours:
            k = grid_slice(scan.volume.grid, contour.points_ras)
            if k not in (0, 1):
                continue
            x, y = contour.points_ras[:, 0], contour.points_ras[:, 1]
            area = 0.5 * abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
            step = scan.volume.grid.spacing_mm
            found = np.count_nonzero(labels.data_ijk[:, :, k] == value) * step[0] * step[1]
            assert found == pytest.approx(area, rel=0.05)


def grid_slice(grid, points_ras):
    return round(float(grid.voxel_from_world(points_ras)[:, 2].mean()))


@pytest.mark.shared_data
def test_a_structure_set_that_names_another_frame_of_reference_is_refused(shared_data, tmp_path):
    folder = shared_data / DATA / "rt_utils_mim"
    shutil.copy(folder / "ct_1.dcm", tmp_path)
    header = dcmread(folder / "ct_1.dcm", stop_before_pixels=True)
    scheme = LabelScheme.plain("one", {1: "ROI-1"})
    with pytest.raises(GeometryError, match="in the frame of reference of the image") as refused:
        read_rtstruct(
            folder / "rt.dcm", scheme, GRID, frame_of_reference=str(header.FrameOfReferenceUID)
        )
    assert refused.value.code == "rtstruct-frame-differs"


@pytest.mark.shared_data
def test_what_is_no_structure_set_is_refused(shared_data):
    folder = shared_data / "09_dicom_edge_cases" / "pydicom_single"
    for name in ("rtdose.dcm", "CT_small.dcm", "zipMR.gz"):
        with pytest.raises(FormatError, match="an RT structure set with its ROIs"):
            read_structure_set(folder / name)


def test_dciodvfy_finds_no_error(written):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's package dicom3tools, which is not installed here")
    told = subprocess.run(["dciodvfy", str(written)], capture_output=True, text=True, check=False)
    assert "RTStructureSet" in told.stderr
    assert "Error" not in told.stdout + told.stderr


# What is written


def test_the_structure_set_says_what_it_was_made_from_and_how(case, written):
    source, _, _ = case
    rt, header = dcmread(written), source.datasets[0]
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert rt.get(name) == header.get(name), name
    assert rt.SeriesInstanceUID != header.SeriesInstanceUID
    assert rt.Modality == "RTSTRUCT"
    assert rt.ApprovalStatus == "UNAPPROVED"
    assert NOTICE in rt.StructureSetDescription
    assert "Rows" not in rt
    (frame,) = rt.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == header.FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    listed = [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence]
    assert listed == [one.SOPInstanceUID for one in source.datasets]
    for drawn in rt.ROIContourSequence:
        for contour in drawn.ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            (image,) = contour.ContourImageSequence
            k = listed.index(image.ReferencedSOPInstanceUID)
            assert np.allclose(points[:, 2], source.datasets[k].ImagePositionPatient[2], atol=1e-3)
            assert contour.NumberOfContourPoints == len(points)
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
    structures = read_structure_set(written)
    assert [(roi.number, roi.name, roi.rgb) for roi in structures.rois] == [
        (1, "Liver", (153, 76, 51)),
        (2, "Größe / left", (10, 200, 30)),
        (3, "läsion", (0, 0, 0)),
    ]
    assert [roi.interpreted_type for roi in structures.rois] == ["ORGAN", "", ""]
    assert structures.rois[0].concept == Code("10200004", "SCT", "Liver")
    assert {roi.generation_algorithm for roi in structures.rois} == {"AUTOMATIC"}
    assert rt.StructureSetROISequence[0].ROIGenerationDescription == "test model 1.2"
    assert structures.series == (str(header.SeriesInstanceUID),)
    # one contour a slice although there is a hole
    assert len(structures.rois[0].contours) == 4


def test_identifiers_come_of_the_content(case, tmp_path):
    source, labels, _ = case
    uids = []
    for name, model, data in (
        ("a", MODEL, labels),
        ("b", MODEL, labels),
        ("c", Algorithm("test model", "1.3"), labels),
        ("d", MODEL, LabelMap(np.roll(labels.data_ijk, 1, axis=1), labels.grid, SCHEME)),
    ):
        write_rtstruct(data, tmp_path / name, source, algorithm=model)
        rt = dcmread(tmp_path / name)
        uids.append((rt.SOPInstanceUID, rt.SeriesInstanceUID))
    assert uids[0] == uids[1]
    assert len({uid for pair in uids for uid in pair}) == 6


def test_types_and_provenance_are_as_asked(case):
    source, labels, path = case
    write_rtstruct(
        labels,
        path,
        source,
        algorithm=None,
        algorithm_type="MANUAL",
        label="Plan A",
        interpreted_types={"läsion": "GTV"},
    )
    structures = read_structure_set(path)
    assert structures.label == "Plan A"
    assert [roi.interpreted_type for roi in structures.rois] == ["ORGAN", "", "GTV"]
    assert {roi.generation_algorithm for roi in structures.rois} == {"MANUAL"}
    assert "ROIGenerationDescription" not in dcmread(path).StructureSetROISequence[0]


def test_nothing_found_becomes_regions_without_contours(case):
    source, labels, path = case
    empty = LabelMap(np.zeros_like(labels.data_ijk), labels.grid, SCHEME)
    write_rtstruct(empty, path, source, algorithm=MODEL)
    structures = read_structure_set(path)
    assert [len(roi.contours) for roi in structures.rois] == [0, 0, 0]
    found, notes = read_rtstruct(path, SCHEME, labels.grid)
    assert not found.data_ijk.any()
    assert "Liver: without contours" in notes
    with pytest.raises(FormatError, match="a structure set with closed contours, found none"):
        read_roi_scheme(path)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"label": "a label of 17 chars"}, "rtstruct-label"),
        ({"label": " "}, "rtstruct-label"),
        ({"interpreted_types": {"Liver": "ORGANN"}}, "rtstruct-type"),
        ({"interpreted_types": {"Livr": "ORGAN"}}, "rtstruct-type"),
        ({"algorithm_type": "MANUAL"}, "algorithm-type"),
    ],
)
def test_what_cannot_be_said_is_refused_before_anything_is_written(case, options, code):
    source, labels, path = case
    with pytest.raises(ConfigError) as refused:
        write_rtstruct(labels, path, source, algorithm=MODEL, **options)
    assert refused.value.code == code
    assert not path.exists()


def test_labels_of_another_grid_are_refused(case):
    source, labels, path = case
    moved = labels.grid.affine_ras.copy()
    moved[0, 3] += 0.5
    for grid, found in ((Grid(labels.grid.shape_ijk, moved), "0.500 mm away"), (None, "shape")):
        data = labels.data_ijk if grid else labels.data_ijk[1:]
        shifted = LabelMap(data, grid or Grid(data.shape, moved), SCHEME)
        with pytest.raises(GeometryError, match=found) as refused:
            write_rtstruct(shifted, path, source, algorithm=MODEL)
        assert refused.value.code == "rtstruct-grid-differs"


def test_a_series_without_frame_of_reference_is_refused(tmp_path):
    folder = small_series(tmp_path / "series")

    def change(header):
        del header.FrameOfReferenceUID

    spoil_all(folder, change)
    scan = read_dicom_series(folder)
    labels = LabelMap(np.ones(scan.volume.grid.shape_ijk, np.uint8), scan.volume.grid, SCHEME)
    with pytest.raises(FormatError, match="which an RT structure set must repeat"):
        write_rtstruct(labels, tmp_path / "rt.dcm", scan.source, algorithm=MODEL)


# Reading back


def test_a_structure_that_came_out_otherwise_is_told(case, written):
    source, labels, _ = case
    data = labels.data_ijk.copy()
    data[4, 3, 1] = 0
    check_rtstruct(written, LabelMap(data, labels.grid, SCHEME), source, where="it")
    few = np.zeros_like(data)
    few[5:7, 4:6, 2] = 2
    few_labels = LabelMap(few, labels.grid, SCHEME)
    write_rtstruct(few_labels, written, source, algorithm=MODEL)
    one_less = few.copy()
    one_less[5, 4, 2] = 0
    # a Dice of 0.86, but the surfaces of so small a structure are near each other
    check_rtstruct(written, LabelMap(one_less, labels.grid, SCHEME), source, where="it")
    far = LabelMap(np.roll(few, 3, axis=0), labels.grid, SCHEME)
    with pytest.raises(FormatError, match=r"found a Dice of 0\.000 and surfaces 3\.75 mm") as told:
        check_rtstruct(written, far, source, where="it")
    assert told.value.code == "verify-labels"
    with pytest.raises(FormatError, match="contours of 3 structures, found of 1"):
        check_rtstruct(written, labels, source, where="it")


def test_another_frame_of_reference_or_a_damaged_file_is_told(case, written):
    source, labels, _ = case

    def change(rt):
        for roi in rt.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "1.2.3"

    spoil(written, change)
    with pytest.raises(GeometryError, match="the frame of reference of the source") as told:
        check_rtstruct(written, labels, source, where="it")
    assert told.value.code == "verify-geometry"
    written.write_bytes(written.read_bytes()[:700])
    with pytest.raises(FormatError) as told:
        check_rtstruct(written, labels, source, where="it")
    assert told.value.code == "verify-labels"


def test_a_file_that_does_not_pass_never_appears(case, monkeypatch):
    source, labels, path = case
    monkeypatch.setattr("medseg.io.rtstruct.trace_mask", lambda mask: [np.eye(3, 2) * 0.1])
    with pytest.raises(FormatError, match="Dice of at least"):
        write_rtstruct(labels, path, source, algorithm=MODEL)
    assert [one.name for one in path.parent.iterdir()] == ["series"]


# What other programs write


def test_points_and_open_contours_are_left_out_with_a_note(written, case):
    def change(rt):
        contours = rt.ROIContourSequence[0].ContourSequence
        contours[0].ContourGeometricType = "POINT"
        contours[1].ContourGeometricType = "OPEN_PLANAR"
        contours[2].ContourData = contours[2].ContourData[:6]

    spoil(written, change)
    roi = read_structure_set(written).rois[0]
    assert roi.notes == (
        "Liver: 1 closed contour of fewer than three points left out",
        "Liver: 1 open contour left out",
        "Liver: 1 point left out",
    )
    assert len(roi.contours) == 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["1", "2", "3", "4"], "no multiple of three"),
        (["nan"] * 9, "NaN or infinity"),
        (["1e300"] * 9, "one more than 100 m from the origin"),
    ],
)
def test_points_that_are_no_points_are_refused(written, value, found):
    def change(rt):
        rt.ROIContourSequence[0].ContourSequence[0].ContourData = value

    spoil(written, change)
    with pytest.raises(FormatError, match=found) as refused:
        read_structure_set(written)
    assert refused.value.code == "rtstruct-contours"


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_whatever_is_damaged_is_refused_or_read_and_nothing_else(written, case, data):
    content = bytearray(written.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(132, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    damaged = written.with_name("damaged.dcm")
    damaged.write_bytes(content[: data.draw(st.integers(132, len(content)))])
    with contextlib.suppress(MedsegError):
        read_rtstruct(damaged, SCHEME, case[1].grid, overlaps="smaller", unknown="leave")


def test_text_in_place_of_numbers_is_refused(written):
    content = written.read_bytes()
    data = contour_of(written).ContourData
    first = f"{data[0]}\\{data[1]}".encode()
    assert content.count(first) >= 1
    written.write_bytes(content.replace(first, b"x" * len(first), 1))
    with pytest.raises(FormatError, match="text that is no number"):
        read_structure_set(written)


def test_a_set_without_lists_or_with_two_rois_of_one_number_is_refused(written, tmp_path):
    def delete(rt):
        del rt.ROIContourSequence[0].ReferencedROINumber

    def twice(rt):
        rt.StructureSetROISequence[1].ROINumber = 1

    for change in (delete, twice):
        spoil(written, change, tmp_path / "spoilt.dcm")
        with pytest.raises(FormatError) as refused:
            read_structure_set(tmp_path / "spoilt.dcm")
        assert refused.value.code == "rtstruct-unreadable"


def test_what_a_file_does_not_say_stays_open(written):
    def change(rt):
        del rt.RTROIObservationsSequence
        rt.ROIContourSequence[0].ROIDisplayColor = [300, 0, 0]
        rt.ROIContourSequence[2].ReferencedROINumber = 9
        del rt.StructureSetROISequence[1].ROIName
        for roi in rt.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    spoil(written, change)
    structures = read_structure_set(written)
    assert structures.notes == ("1 ROIs with contours but without a name are left out",)
    first, second, third = structures.rois
    assert (first.rgb, first.interpreted_type, first.concept) == (None, "", None)
    assert second.name == "ROI 2"
    assert third.contours == ()
    frame = dcmread(written).ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    assert first.frame_of_reference == frame, "the only one that the file lists"


def test_a_slab_and_an_offset_are_respected(written, case):
    def change(rt):
        contour = rt.ROIContourSequence[1].ContourSequence[0]
        contour.ContourSlabThickness = 2.5
        contour.ContourOffsetVector = [0, 0, 4]

    before = read_structure_set(written).rois[1].contours[0]
    spoil(written, change)
    after = read_structure_set(written).rois[1].contours[0]
    assert (before.slab_mm, after.slab_mm) == (None, 2.5)
    assert np.allclose(after.points_ras - before.points_ras, [0, 0, 4])


# Contours and slices that do not coincide, worked on paper

BOXES = Grid((10, 10, 8), np.diag([1.0, 1.0, 2.0, 1.0]))


def heights_of(mask):
    return np.flatnonzero(mask.any(axis=(0, 1))).tolist()


def test_contours_between_slices_go_to_the_nearest_and_are_told():
    mask, notes = roi_mask(box_roi([(1.5, 1.5, z + 0.5) for z in (2, 4, 6)]), BOXES)
    assert heights_of(mask) == [1, 2, 3]
    assert notes == [
        "box: 3 contours between slices, up to 0.50 mm from the nearest, which is taken"
    ]
    half_way, _ = roi_mask(box_roi([(1.5, 1.5, z + 1.0) for z in (2, 4, 6)]), BOXES)
    assert heights_of(half_way) == [1, 2, 3], "the slice of the lower index"


def test_of_planes_closer_than_slices_the_nearest_to_each_slice_counts():
    lows = [(1.5 + 0.1 * z, 1.5, z) for z in np.arange(1.2, 8.0, 0.7)]
    mask, notes = roi_mask(box_roi(lows), BOXES)
    assert heights_of(mask) == [1, 2, 3, 4]
    assert {np.count_nonzero(mask[:, :, k]) for k in heights_of(mask)} == {30}
    assert notes[0] == "box: 6 contours left out where planes are closer together than slices"


def test_slices_left_out_are_named_and_a_contour_on_every_second_is_refused():
    mask, notes = roi_mask(box_roi([(1.5, 1.5, 2.0 * k) for k in (1, 2, 4, 5)]), BOXES)
    assert heights_of(mask) == [1, 2, 4, 5]
    assert notes == ["box: slices along K without a contour between others: 3"]
    sheets = box_roi([(1.5, 1.5, 2.0 * k) for k in (1, 3, 5)])
    with pytest.raises(FormatError, match="contours on every 2th slice along K") as refused:
        roi_mask(sheets, BOXES)
    assert refused.value.code == "rtstruct-gaps"
    assert heights_of(roi_mask(sheets, BOXES, allow_gaps=True)[0]) == [1, 3, 5]


def test_contours_outside_the_image_are_counted_and_copies_taken_once():
    lows = [(1.5, 1.5, 2.0 * k) for k in (-1, 0, 0, 1, 8, 9)]
    mask, notes = roi_mask(box_roi(lows), BOXES)
    assert heights_of(mask) == [0, 1]
    assert np.count_nonzero(mask[:, :, 0]) == 30, "not excluded by its copy"
    assert notes == ["box: 3 contours outside the image left out"]


def test_contours_that_overlap_in_part_are_joined_with_a_note():
    mask, notes = roi_mask(box_roi([(0.5, 0.5, 2), (2.5, 2.5, 2)]), BOXES)
    assert np.count_nonzero(mask) == 30 + 30 - 4 * 3
    assert notes == ["box: contours that overlap in part are joined in slice 1"]


def test_a_contour_without_a_centre_inside_is_told():
    tiny = tuple(Contour(0.3 + 0.1 * one.points_ras / 6) for one in box_roi([(0, 0, 0)]).contours)
    mask, notes = roi_mask(box_roi([], contours=tiny), BOXES)
    assert not mask.any()
    assert notes[-1] == "box: no centre of a voxel lies inside its contours"


def test_contours_of_several_orientations_are_refused():
    flat = box_roi([(1.5, 1.5, 2.0)]).contours
    upright = Contour(flat[0].points_ras[:, [0, 2, 1]])
    with pytest.raises(FormatError, match="flat contours in parallel planes") as refused:
        roi_mask(box_roi([], contours=(*flat, upright)), BOXES)
    assert refused.value.code == "rtstruct-planes"


# Names, overlaps and places


def test_names_match_whatever_their_capitals_and_spaces(written, case):
    renamed = LabelScheme.plain("other", {5: "LIVER", 6: "größe/left", 9: "Läsion "})
    found, _ = read_rtstruct(written, renamed, case[1].grid)
    table = np.zeros(301, dtype=np.uint16)
    table[[1, 2, 300]] = [5, 6, 9]
    assert np.array_equal(found.data_ijk, table[case[1].data_ijk])


def test_a_roi_that_no_label_names_is_refused_with_the_nearest(written, case):
    scheme = LabelScheme.plain("one", {1: "Livers", 2: "Größe / left", 3: "läsion"})
    with pytest.raises(FormatError, match=r"\(nearest: Livers\), found 'Liver'") as refused:
        read_rtstruct(written, scheme, case[1].grid)
    assert refused.value.code == "rtstruct-roi-unknown"
    with pytest.raises(FormatError, match="nearest: Livers"):  # likely meant, so never left out
        read_rtstruct(written, scheme, case[1].grid, unknown="leave")


def test_rois_can_be_left_out_but_not_all_of_them(written, case):
    found, notes = read_rtstruct(
        written, LabelScheme.plain("one", {1: "läsion"}), case[1].grid, unknown="leave"
    )
    assert np.array_equal(found.data_ijk == 1, case[1].data_ijk == 300)
    assert notes == ("ROIs that the labels do not list are left out: Liver, Größe / left",)
    with pytest.raises(FormatError, match="found 'Liver'"):
        read_rtstruct(written, LabelScheme.plain("no", {1: "aorta"}), case[1].grid, unknown="leave")


def test_two_rois_for_one_label_are_refused(written, case):
    def change(rt):
        rt.StructureSetROISequence[1].ROIName = "LIVER"

    spoil(written, change)
    for read in (
        lambda: read_rtstruct(written, SCHEME, case[1].grid),
        lambda: read_roi_scheme(written),
    ):
        with pytest.raises(FormatError, match="'Liver' and 'LIVER'") as refused:
            read()
        assert refused.value.code == "rtstruct-roi-twice"


@pytest.fixture
def overlapping(written):
    """The liver without its hole: the lesion lies in it."""

    def change(rt):
        for contour in rt.ROIContourSequence[0].ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            (low, high), z = (points.min(axis=0), points.max(axis=0)), points[0, 2]
            square = [[low[0], low[1], z], [high[0], low[1], z], [high[0], high[1], z]]
            contour.ContourData = [f"{x:.3f}" for x in np.ravel([*square, [low[0], high[1], z]])]

    spoil(written, change)
    return written


def test_overlaps_are_refused_or_settled_as_asked(overlapping, case):
    grid = case[1].grid
    with pytest.raises(FormatError, match="8 voxels in 'Liver' and 'läsion'") as refused:
        read_rtstruct(overlapping, SCHEME, grid)
    assert refused.value.code == "rtstruct-overlap"
    found, notes = read_rtstruct(overlapping, SCHEME, grid, overlaps="smaller")
    assert np.array_equal(found.data_ijk == 300, case[1].data_ijk == 300)
    assert notes == ("läsion lies on top of Liver in 8 voxels",)
    assert np.array_equal(
        read_rtstruct(overlapping, SCHEME, grid, overlaps="order")[0].data_ijk, found.data_ijk
    )
    turned = LabelScheme.plain("turned", {1: "läsion", 2: "Größe / left", 3: "Liver"})
    with pytest.raises(FormatError, match="'läsion' wholly under others") as refused:
        read_rtstruct(overlapping, turned, grid, overlaps="order")
    assert refused.value.code == "rtstruct-hidden"
    masks = {roi.name: roi_mask(roi, grid)[0] for roi in read_structure_set(overlapping).rois}
    assert np.count_nonzero(masks["Liver"] & masks["läsion"]) == 8


def test_contours_far_from_the_image_are_refused(written, case):
    moved = case[1].grid.affine_ras.copy()
    moved[:3, 3] += 300.0
    with pytest.raises(GeometryError, match="contours around voxels of the image") as refused:
        read_rtstruct(written, SCHEME, Grid(case[1].grid.shape_ijk, moved))
    assert refused.value.code == "rtstruct-off-grid"


def test_a_frame_of_reference_that_is_not_said_is_no_reason_to_refuse(written, case):
    def change(rt):
        del rt.ReferencedFrameOfReferenceSequence
        for roi in rt.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    spoil(written, change)
    found, _ = read_rtstruct(written, SCHEME, case[1].grid, frame_of_reference="1.2.3")
    assert np.array_equal(found.data_ijk, case[1].data_ijk)
