import copy
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom import dcmread

from medseg import NOTICE
from medseg.core import Code, Grid, LabelMap, LabelScheme, Volume
from medseg.errors import ConfigError, FormatError, GeometryError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import Algorithm
from medseg.io.dicom_series import read_dicom_series
from medseg.io.nifti import read_nifti
from medseg.io.rtstruct import check_rtstruct, write_rtstruct
from medseg.io.rtstruct_labels import read_roi_scheme, read_rtstruct
from medseg.io.rtstruct_reading import Contour, read_structure_set
from medseg.io.rtstruct_voxels import roi_mask
from medseg.io.segment_names import LabelReading
from tests.dicom_variants import tilted_series
from tests.grids import grids, rotation
from tests.series import AXIAL, ramp, small_series, spoil, spoil_all
from tests.structure_sets import GRID, MODEL, SCHEME, box_roi

DATA = "07_dicom_ct_rtstruct"


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
            folder / "rt.dcm", SCHEME, grid, LabelReading(frame_of_reference=frame, allow_gaps=True)
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
    labels, notes = read_rtstruct(
        path, scheme, scan.volume.grid, LabelReading(frame_of_reference=frame)
    )
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
@pytest.mark.parametrize(
    "series",
    [
        "09_dicom_edge_cases/prostatex/ProstateX-0000_ADC",
        "09_dicom_edge_cases/ct_torchio_17slices_iop_flipped",
        "08_dicom_seg/dcmqi/ct-3slice",
    ],
)
def test_labels_on_real_series_come_back(shared_data, tmp_path, series):
    scan = read_dicom_series(shared_data / series)
    brightness = scan.volume.data_cijk[0]
    labels = np.zeros(brightness.shape, dtype=np.uint8)
    labels[brightness > np.quantile(brightness, 0.7)] = 1
    labels[: labels.shape[0] // 3, : labels.shape[1] // 3] = 2
    labels[48:] = labels[:, 48:] = 0
    scheme = LabelScheme.plain("two", {1: "bright", 2: "corner"})
    write_rtstruct(
        LabelMap(labels, scan.volume.grid, scheme), tmp_path / "rt", scan.source, algorithm=MODEL
    )
    found, _ = read_rtstruct(tmp_path / "rt", scheme, scan.volume.grid)
    assert np.array_equal(found.data_ijk, labels)


@pytest.mark.shared_data
def test_references_to_images_that_are_wrong_or_missing_do_not_matter(shared_data):
    folder = shared_data / DATA / "rt_utils_mim"
    right, *wrong = (
        read_structure_set(folder / f"{name}.dcm")
        for name in ("mim_rtstruct_4roi", "invalid_reference_rt", "non_existent_reference_rt")
    )
    for structures in wrong:
        for one, other in zip(right.rois, structures.rois, strict=True):
            for first, second in zip(one.contours, other.contours, strict=True):
                assert np.array_equal(first.points_ras, second.points_ras)
    assert wrong[1].series == ()


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
        path, read_roi_scheme(path), scan.volume.grid, LabelReading(frame_of_reference=frame)
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
            folder / "rt.dcm",
            scheme,
            GRID,
            LabelReading(frame_of_reference=str(header.FrameOfReferenceUID)),
        )
    assert refused.value.code == "rtstruct-frame-differs"


@pytest.mark.shared_data
def test_what_is_no_structure_set_is_refused(shared_data):
    folder = shared_data / "09_dicom_edge_cases" / "pydicom_single"
    for name, found in (("rtdose.dcm", "another"), ("CT_small.dcm", "another"), ("zipMR.gz", "")):
        with pytest.raises(FormatError, match=f"an RT structure set with its ROIs, found {found}"):
            read_structure_set(folder / name)
    structures = read_structure_set(folder / "rtstruct.dcm")  # without the preamble
    assert [roi.name for roi in structures.rois]


def test_dciodvfy_finds_no_error(rt_file):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's package dicom3tools, which is not installed here")
    told = subprocess.run(["dciodvfy", str(rt_file)], capture_output=True, text=True, check=False)
    assert "RTStructureSet" in told.stderr
    assert "Error" not in told.stdout + told.stderr


def test_plastimatch_fills_what_is_written_with_the_same_voxels(tmp_path):
    if shutil.which("plastimatch") is None:
        pytest.skip("needs plastimatch, of Debian's package of that name, not installed here")
    turned = GRID.affine_ras.copy()
    turned[:3, :3] = rotation((1.0, 0.1, -0.15, 0.2)) @ turned[:3, :3]
    chance = np.random.default_rng(3)
    values = chance.integers(0, 100, (1, *GRID.shape_ijk)).astype(np.int16)
    folder = tmp_path / "series"
    write_dicom_series(Volume(values, Grid(GRID.shape_ijk, turned)), folder, modality="CT")
    scan = read_dicom_series(folder)
    data = (chance.random(GRID.shape_ijk) < 0.9).astype(np.uint8)  # full of holes
    data[6:9, 6:9] = 2
    scheme = LabelScheme.plain("two", {1: "sponge", 2: "bar"})
    labels = LabelMap(data, scan.volume.grid, scheme)
    write_rtstruct(labels, tmp_path / "rt.dcm", scan.source, algorithm=MODEL)
    words = ["plastimatch", "convert", "--input", "rt.dcm", "--referenced-ct", "series"]
    words += ["--output-prefix", "out", "--prefix-format", "nii.gz"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    for value, name in ((1, "sponge"), (2, "bar")):
        filled = read_nifti(tmp_path / "out" / f"{name}.nii.gz").volume
        there = filled.grid.world_from_voxel(np.argwhere(filled.data_cijk[0] > 0))
        voxels = np.rint(labels.grid.voxel_from_world(there)).astype(int)
        found = np.zeros(data.shape, dtype=bool)
        found[tuple(voxels.T)] = True
        assert np.array_equal(found, data == value)


# What is written


def test_the_structure_set_says_what_it_was_made_from_and_how(rt_case, rt_file):
    source, _, _ = rt_case
    rt, header = dcmread(rt_file), source.datasets[0]
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
    structures = read_structure_set(rt_file)
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


def test_identifiers_come_of_the_content(rt_case, tmp_path):
    source, labels, _ = rt_case
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


def test_types_and_provenance_are_as_asked(rt_case):
    source, labels, path = rt_case
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


def test_contours_refer_to_frames_and_not_to_slices_that_no_image_holds(rt_case):
    source, labels, path = rt_case
    headers = [copy.deepcopy(header) for header in source.datasets]
    for header in headers:
        header.SOPInstanceUID = headers[0].SOPInstanceUID
    framed = replace(
        source, datasets=tuple(headers), frame_numbers=(6, 5, 4, 3, 2, 1), made_up_k=frozenset({2})
    )
    write_rtstruct(labels, path, framed, algorithm=MODEL)
    rt = dcmread(path)
    study = rt.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    (image,) = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert image.ReferencedSOPInstanceUID == headers[0].SOPInstanceUID
    liver = rt.ROIContourSequence[0].ContourSequence
    referred = [one.get("ContourImageSequence") for one in liver]
    assert [each and each[0].ReferencedFrameNumber for each in referred] == [5, None, 3, 2]


def test_contours_of_a_tilted_stack_lie_in_the_planes_of_its_images(tmp_path):
    scan = read_dicom_series(tilted_series(tmp_path / "series", AXIAL, (0, 0.7, 0)))
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[1:4, 1:4] = 1
    data[2, 2, 1] = 0
    scheme = LabelScheme.plain("one", {1: "block"})
    labels = LabelMap(data, scan.volume.grid, scheme)
    write_rtstruct(labels, tmp_path / "rt.dcm", scan.source, algorithm=MODEL)
    found, _ = read_rtstruct(tmp_path / "rt.dcm", scheme, scan.volume.grid)
    assert np.array_equal(found.data_ijk, data)
    (roi,) = read_structure_set(tmp_path / "rt.dcm").rois
    first, last = roi.contours[0].points_ras, roi.contours[-1].points_ras
    # of slices 3 apart, each 0.7 mm further to the back
    assert np.allclose(last.mean(axis=0) - first.mean(axis=0), [0, -3 * 0.7, 3 * 2.0], atol=1e-3)


def test_nothing_found_becomes_regions_without_contours(rt_case):
    source, labels, path = rt_case
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
def test_what_cannot_be_said_is_refused_before_anything_is_written(rt_case, options, code):
    source, labels, path = rt_case
    with pytest.raises(ConfigError) as refused:
        write_rtstruct(labels, path, source, algorithm=MODEL, **options)
    assert refused.value.code == code
    assert not path.exists()


def test_labels_of_another_grid_are_refused(rt_case):
    source, labels, path = rt_case
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


def test_a_structure_that_came_out_otherwise_is_told(rt_case, rt_file):
    source, labels, _ = rt_case
    data = labels.data_ijk.copy()
    data[4, 3, 1] = 0
    check_rtstruct(rt_file, LabelMap(data, labels.grid, SCHEME), source, where="it")
    few = np.zeros_like(data)
    few[5:7, 4:6, 2] = 2
    few_labels = LabelMap(few, labels.grid, SCHEME)
    write_rtstruct(few_labels, rt_file, source, algorithm=MODEL)
    one_less = few.copy()
    one_less[5, 4, 2] = 0
    # a Dice of 0.86, but the surfaces of so small a structure are near each other
    check_rtstruct(rt_file, LabelMap(one_less, labels.grid, SCHEME), source, where="it")
    far = LabelMap(np.roll(few, 3, axis=0), labels.grid, SCHEME)
    with pytest.raises(FormatError, match=r"found a Dice of 0\.000 and surfaces 3\.75 mm") as told:
        check_rtstruct(rt_file, far, source, where="it")
    assert told.value.code == "verify-labels"
    with pytest.raises(FormatError, match="contours of 3 structures, found of 1"):
        check_rtstruct(rt_file, labels, source, where="it")


def test_another_frame_of_reference_or_a_damaged_file_is_told(rt_case, rt_file):
    source, labels, _ = rt_case

    def change(rt):
        for roi in rt.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "1.2.3"

    spoil(rt_file, change)
    with pytest.raises(GeometryError, match="the frame of reference of the source") as told:
        check_rtstruct(rt_file, labels, source, where="it")
    assert told.value.code == "verify-geometry"
    rt_file.write_bytes(rt_file.read_bytes()[:700])
    with pytest.raises(FormatError) as told:
        check_rtstruct(rt_file, labels, source, where="it")
    assert told.value.code == "verify-labels"


def test_a_file_that_does_not_pass_never_appears(rt_case, monkeypatch):
    source, labels, path = rt_case
    monkeypatch.setattr("medseg.io.rtstruct.trace_mask", lambda mask: [np.eye(3, 2) * 0.1])
    with pytest.raises(FormatError, match="Dice of at least"):
        write_rtstruct(labels, path, source, algorithm=MODEL)
    assert [one.name for one in path.parent.iterdir()] == ["series"]
