import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from medseg.core import Grid, LabelScheme
from medseg.errors import FormatError, GeometryError, MedsegError
from medseg.io.rtstruct_labels import read_roi_scheme, read_rtstruct
from medseg.io.rtstruct_reading import Contour, read_structure_set
from medseg.io.rtstruct_voxels import roi_mask
from medseg.io.segment_names import LabelReading
from tests.series import spoil
from tests.structure_sets import SCHEME, box_roi


def contour_of(path, roi=0, contour=0):
    return dcmread(path).ROIContourSequence[roi].ContourSequence[contour]


# What other programs write


def test_points_and_open_contours_are_left_out_with_a_note(rt_file, rt_case):
    def change(rt):
        contours = rt.ROIContourSequence[0].ContourSequence
        contours[0].ContourGeometricType = "POINT"
        contours[1].ContourGeometricType = "OPEN_PLANAR"
        contours[2].ContourData = contours[2].ContourData[:6]

    spoil(rt_file, change)
    roi = read_structure_set(rt_file).rois[0]
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
def test_points_that_are_no_points_are_refused(rt_file, value, found):
    def change(rt):
        rt.ROIContourSequence[0].ContourSequence[0].ContourData = value

    spoil(rt_file, change)
    with pytest.raises(FormatError, match=found) as refused:
        read_structure_set(rt_file)
    assert refused.value.code == "rtstruct-contours"


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.data())
def test_whatever_is_damaged_is_refused_or_read_and_nothing_else(rt_file, rt_case, data):
    content = bytearray(rt_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(132, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    damaged = rt_file.with_name("damaged.dcm")
    damaged.write_bytes(content[: data.draw(st.integers(132, len(content)))])
    with contextlib.suppress(MedsegError):
        read_rtstruct(
            damaged, SCHEME, rt_case[1].grid, LabelReading(overlaps="smaller", unknown="leave")
        )


def test_text_in_place_of_numbers_is_refused(rt_file):
    content = rt_file.read_bytes()
    data = contour_of(rt_file).ContourData
    first = f"{data[0]}\\{data[1]}".encode()
    assert content.count(first) >= 1
    rt_file.write_bytes(content.replace(first, b"x" * len(first), 1))
    with pytest.raises(FormatError, match="text that is no number"):
        read_structure_set(rt_file)


def test_a_set_without_lists_or_with_two_rois_of_one_number_is_refused(rt_file, tmp_path):
    def delete(rt):
        del rt.ROIContourSequence[0].ReferencedROINumber

    def twice(rt):
        rt.StructureSetROISequence[1].ROINumber = 1

    for change in (delete, twice):
        spoil(rt_file, change, tmp_path / "spoilt.dcm")
        with pytest.raises(FormatError) as refused:
            read_structure_set(tmp_path / "spoilt.dcm")
        assert refused.value.code == "rtstruct-unreadable"


def test_what_a_file_does_not_say_stays_open(rt_file):
    def change(rt):
        del rt.RTROIObservationsSequence
        rt.ROIContourSequence[0].ROIDisplayColor = [300, 0, 0]
        rt.ROIContourSequence[2].ReferencedROINumber = 9
        del rt.StructureSetROISequence[1].ROIName
        for roi in rt.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    spoil(rt_file, change)
    structures = read_structure_set(rt_file)
    assert structures.notes == ("1 ROIs with contours but without a name are left out",)
    first, second, third = structures.rois
    assert (first.rgb, first.interpreted_type, first.concept) == (None, "", None)
    assert second.name == "ROI 2"
    assert third.contours == ()
    frame = dcmread(rt_file).ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID
    assert first.frame_of_reference == frame, "the only one that the file lists"


def test_a_slab_and_an_offset_are_respected(rt_file, rt_case):
    def change(rt):
        contour = rt.ROIContourSequence[1].ContourSequence[0]
        contour.ContourSlabThickness = 2.5
        contour.ContourOffsetVector = [0, 0, 4]

    before = read_structure_set(rt_file).rois[1].contours[0]
    spoil(rt_file, change)
    after = read_structure_set(rt_file).rois[1].contours[0]
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


def test_names_match_whatever_their_capitals_and_spaces(rt_file, rt_case):
    renamed = LabelScheme.plain("other", {5: "LIVER", 6: "größe/left", 9: "Läsion "})
    found, _ = read_rtstruct(rt_file, renamed, rt_case[1].grid)
    table = np.zeros(301, dtype=np.uint16)
    table[[1, 2, 300]] = [5, 6, 9]
    assert np.array_equal(found.data_ijk, table[rt_case[1].data_ijk])


def test_a_roi_that_no_label_names_is_refused_with_the_nearest(rt_file, rt_case):
    scheme = LabelScheme.plain("one", {1: "Livers", 2: "Größe / left", 3: "läsion"})
    with pytest.raises(FormatError, match=r"\(nearest: Livers\), found 'Liver'") as refused:
        read_rtstruct(rt_file, scheme, rt_case[1].grid)
    assert refused.value.code == "rtstruct-roi-unknown"
    with pytest.raises(FormatError, match="nearest: Livers"):  # likely meant, so never left out
        read_rtstruct(rt_file, scheme, rt_case[1].grid, LabelReading(unknown="leave"))


def test_rois_can_be_left_out_but_not_all_of_them(rt_file, rt_case):
    found, notes = read_rtstruct(
        rt_file,
        LabelScheme.plain("one", {1: "läsion"}),
        rt_case[1].grid,
        LabelReading(unknown="leave"),
    )
    assert np.array_equal(found.data_ijk == 1, rt_case[1].data_ijk == 300)
    assert notes == ("ROIs that the labels do not list are left out: Liver, Größe / left",)
    with pytest.raises(FormatError, match="found 'Liver'"):
        read_rtstruct(
            rt_file,
            LabelScheme.plain("no", {1: "aorta"}),
            rt_case[1].grid,
            LabelReading(unknown="leave"),
        )


@pytest.mark.parametrize(
    ("label", "is_meant"),
    [
        ("Parotids L", True),
        ("parotid_r", False),
        ("parotid_l 2", False),
        ("submandibular l", False),
    ],
)
def test_another_side_or_number_is_another_structure(rt_file, rt_case, label, is_meant):
    def change(rt):
        rt.StructureSetROISequence[1].ROIName = "Parotid_L"

    spoil(rt_file, change)
    scheme = LabelScheme.plain("two", {1: "Liver", 2: label})
    if is_meant:
        with pytest.raises(FormatError, match="found 'Parotid_L'"):
            read_rtstruct(rt_file, scheme, rt_case[1].grid, LabelReading(unknown="leave"))
    else:
        found, _ = read_rtstruct(rt_file, scheme, rt_case[1].grid, LabelReading(unknown="leave"))
        assert set(np.unique(found.data_ijk)) == {0, 1}


def test_two_rois_for_one_label_are_refused(rt_file, rt_case):
    def change(rt):
        rt.StructureSetROISequence[1].ROIName = "LIVER"

    spoil(rt_file, change)
    for read in (
        lambda: read_rtstruct(rt_file, SCHEME, rt_case[1].grid),
        lambda: read_roi_scheme(rt_file),
    ):
        with pytest.raises(FormatError, match="'Liver' and 'LIVER'") as refused:
            read()
        assert refused.value.code == "rtstruct-roi-twice"


@pytest.fixture
def overlapping(rt_file):
    """The liver without its hole: the lesion lies in it."""

    def change(rt):
        for contour in rt.ROIContourSequence[0].ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            (low, high), z = (points.min(axis=0), points.max(axis=0)), points[0, 2]
            square = [[low[0], low[1], z], [high[0], low[1], z], [high[0], high[1], z]]
            contour.ContourData = [f"{x:.3f}" for x in np.ravel([*square, [low[0], high[1], z]])]

    spoil(rt_file, change)
    return rt_file


def test_overlaps_are_refused_or_settled_as_asked(overlapping, rt_case):
    grid = rt_case[1].grid
    with pytest.raises(FormatError, match="8 voxels in 'Liver' and 'läsion'") as refused:
        read_rtstruct(overlapping, SCHEME, grid)
    assert refused.value.code == "rtstruct-overlap"
    found, notes = read_rtstruct(overlapping, SCHEME, grid, LabelReading(overlaps="smaller"))
    assert np.array_equal(found.data_ijk == 300, rt_case[1].data_ijk == 300)
    assert notes == ("läsion lies on top of Liver in 8 voxels",)
    assert np.array_equal(
        read_rtstruct(overlapping, SCHEME, grid, LabelReading(overlaps="order"))[0].data_ijk,
        found.data_ijk,
    )
    turned = LabelScheme.plain("turned", {1: "läsion", 2: "Größe / left", 3: "Liver"})
    with pytest.raises(FormatError, match="'läsion' wholly under others") as refused:
        read_rtstruct(overlapping, turned, grid, LabelReading(overlaps="order"))
    assert refused.value.code == "rtstruct-hidden"
    masks = {roi.name: roi_mask(roi, grid)[0] for roi in read_structure_set(overlapping).rois}
    assert np.count_nonzero(masks["Liver"] & masks["läsion"]) == 8


def test_contours_far_from_the_image_are_refused(rt_file, rt_case):
    moved = rt_case[1].grid.affine_ras.copy()
    moved[:3, 3] += 300.0
    with pytest.raises(GeometryError, match="contours around voxels of the image") as refused:
        read_rtstruct(rt_file, SCHEME, Grid(rt_case[1].grid.shape_ijk, moved))
    assert refused.value.code == "rtstruct-off-grid"


def test_a_frame_of_reference_that_is_not_said_is_no_reason_to_refuse(rt_file, rt_case):
    def change(rt):
        del rt.ReferencedFrameOfReferenceSequence
        for roi in rt.StructureSetROISequence:
            del roi.ReferencedFrameOfReferenceUID

    spoil(rt_file, change)
    found, _ = read_rtstruct(
        rt_file, SCHEME, rt_case[1].grid, LabelReading(frame_of_reference="1.2.3")
    )
    assert np.array_equal(found.data_ijk, rt_case[1].data_ijk)
