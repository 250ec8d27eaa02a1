"""SEG of other software and of every type, read back into labels; overlaps; places of their own."""

import copy
import zlib

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from medseg.core import Code, Grid, Label, LabelMap, LabelScheme
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError
from medseg.io.dicom_labels import read_dicom_labels, read_label_scheme
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.dicom_seg_labels import (
    read_seg,
    read_seg_labels,
    read_segment_scheme,
    segment_fractions,
    segment_mask,
)
from medseg.io.dicom_seg_places import own_grid
from medseg.io.dicom_seg_reading import open_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.segment_names import LabelReading
from tests.series import AXIAL, small_series, spoil

GRID = Grid((16, 12, 5), AXIAL.affine_ras)
NAMES = LabelScheme.plain("boxes", {1: "large", 2: "small", 5: "tiny"})
MODEL = Algorithm("test", "1")
RAS = np.array([-1.0, -1.0, 1.0])


def boxes():
    """Masks of three structures, each of which lies within the one before."""
    masks = np.zeros((3, *GRID.shape_ijk), dtype=bool)
    masks[0, 1:14, 1:11, :] = True
    masks[1, 3:9, 3:9, 1:4] = True
    masks[2, 4:6, 4:6, 2] = True
    return masks


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return read_dicom_series(small_series(tmp_path_factory.mktemp("seg") / "s", GRID))


def by_highdicom(path, source, masks, kind="BINARY", names=("large", "small", "tiny"), **options):
    """A SEG of masks that may overlap, as highdicom writes it."""
    concept = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=concept,
            segmented_property_type=concept,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, 1)
    ]
    with quiet_dicom():  # it warns of names of patients
        seg = hd.seg.Segmentation(
            source_images=list(source.datasets),
            pixel_array=np.ascontiguousarray(masks.transpose(3, 2, 1, 0)),
            segmentation_type=kind,
            segment_descriptions=descriptions,
            series_instance_uid=hd.UID(),
            series_number=2,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="m",
            manufacturer_model_name="m",
            software_versions="1",
            device_serial_number="1",
            **options,
        )
    seg.save_as(path)
    return path


# Laws


@settings(max_examples=12, deadline=None)
@given(
    values=arrays(np.uint16, GRID.shape_ijk, elements=st.sampled_from([0, 0, 1, 2, 5])),
    kind=st.sampled_from(["BINARY", "LABELMAP"]),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_frames_does_not_count(scan, tmp_path_factory, values, kind, order):
    path = tmp_path_factory.mktemp("order") / "seg.dcm"
    labels = LabelMap(values, scan.volume.grid, NAMES)
    write_seg(labels, path, scan.source, algorithm=MODEL, seg_type=kind, omit_empty_frames=True)

    def shuffle(seg):
        pixels = np.atleast_3d(seg.pixel_array).reshape(-1, seg.Rows, seg.Columns)
        places = list(range(len(pixels)))
        order.shuffle(places)
        groups = seg.PerFrameFunctionalGroupsSequence
        seg.PerFrameFunctionalGroupsSequence = [groups[place] for place in places]
        pixels = pixels[places]
        if kind == "BINARY":
            packed = np.packbits(pixels.ravel().astype(bool), bitorder="little").tobytes()
        else:
            packed = pixels.astype(f"<u{seg.BitsAllocated // 8}").tobytes()
        seg.PixelData = packed + bytes(len(packed) % 2)

    spoil(path, shuffle)
    assert np.array_equal(read_seg(path, NAMES, scan.volume.grid).data_ijk, values)


@settings(max_examples=12, deadline=None)
@given(
    masks=arrays(bool, (3, *GRID.shape_ijk)),
    omit=st.booleans(),
    kind=st.sampled_from(["BINARY", "FRACTIONAL"]),
)
def test_no_voxel_of_overlapping_segments_is_lost(scan, tmp_path_factory, masks, omit, kind):
    masks[:, 0, 0, 0] = True
    path = tmp_path_factory.mktemp("overlap") / "seg.dcm"
    by_highdicom(path, scan.source, masks, kind, omit_empty_frames=omit)
    seg = open_seg(path)
    for number in (1, 2, 3):
        assert np.array_equal(segment_mask(seg, number, GRID), masks[number - 1])
        assert np.array_equal(segment_fractions(seg, number, GRID), masks[number - 1])
    # the highest label on top, or the one with the fewest voxels; refused where one is hidden
    values = np.array([1, 2, 5])
    for overlaps in ("order", "smaller"):
        order = [0, 1, 2]
        if overlaps == "smaller":
            order.sort(key=lambda one: (-int(masks[one].sum()), values[one]))
        wanted = np.zeros(GRID.shape_ijk, dtype=int)
        for one in order:
            wanted[masks[one]] = values[one]
        if set(np.unique(wanted)) >= {1, 2, 5}:
            found, _ = read_seg_labels(path, NAMES, GRID, LabelReading(overlaps=overlaps))
            assert np.array_equal(found.data_ijk, wanted)
        else:
            with pytest.raises(FormatError, match="wholly under others") as caught:
                read_seg_labels(path, NAMES, GRID, LabelReading(overlaps=overlaps))
            assert caught.value.code == "seg-hidden"


# Other software


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "name", "nrrd", "wanted"),
    [
        ("ct-3slice", "liver.dcm", "liver_seg.nrrd", 1),
        ("23x38x3/image", "23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd", 1),
        ("23x38x3/multiframe", "23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd", 1),
    ],
)
def test_what_dcmqi_wrote_is_what_it_was_made_from(shared_data, folder, name, nrrd, wanted):
    base = shared_data / "08_dicom_seg" / "dcmqi"
    grid = read_dicom_series(base / folder).volume.grid
    scheme = read_label_scheme(base / name)
    assert [label.name for label in scheme.labels] == ["Liver"]
    labels = read_seg(base / name, scheme, grid)
    image = sitk.ReadImage(str(base / nrrd))
    volume = sitk.GetArrayFromImage(image)
    indices = np.argwhere(volume == wanted)[:, ::-1]
    assert len(indices) > 20
    places = [image.TransformIndexToPhysicalPoint([int(i) for i in one]) for one in indices]
    voxels = np.rint(grid.voxel_from_world(np.array(places) * RAS)).astype(int)
    assert (labels.data_ijk[tuple(voxels.T)] == 1).all()
    assert np.count_nonzero(labels.data_ijk) == len(indices)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "highdicom/seg_image_ct_binary.dcm",
        "highdicom/seg_image_ct_binary_fractional.dcm",
        "highdicom/seg_image_ct_binary_single_frame.dcm",
        "dcmqi_pet_sr/seg.dcm",
        "dcmqi/liver.dcm",
    ],
)
def test_without_its_image_a_file_is_read_on_its_own_grid_as_highdicom_does(shared_data, name):
    path = shared_data / "08_dicom_seg" / name
    seg = open_seg(path)
    grid = own_grid(seg)
    labels = read_seg(path, read_segment_scheme(path), grid)
    other = hd.seg.segread(path)
    if int(other.NumberOfFrames) == 1:
        assert np.array_equal(labels.data_ijk[:, :, 0].T, other.pixel_array)
        return
    volume = other.get_volume(combine_segments=True)
    indices = np.argwhere(volume.array)
    places = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    voxels = grid.voxel_from_world(places * RAS)
    assert np.abs(voxels - np.rint(voxels)).max() < 0.01
    assert labels.data_ijk[tuple(np.rint(voxels).astype(int).T)].all()
    assert np.count_nonzero(labels.data_ijk) == len(indices) > 0


@pytest.mark.shared_data
def test_overlapping_segments_of_highdicom_are_refused_or_read_apart(shared_data):
    path = shared_data / "08_dicom_seg" / "highdicom" / "seg_image_ct_binary_overlap.dcm"
    seg = open_seg(path)
    grid, scheme = own_grid(seg), read_segment_scheme(path)
    with pytest.raises(FormatError, match=r"in 'second segment' and 'first segment'; say") as c:
        read_seg(path, scheme, grid)
    assert c.value.code == "seg-overlap"
    volume = hd.seg.segread(path).get_volume()
    for number in (1, 2):
        mask = segment_mask(seg, number, grid)
        assert mask.sum() == volume.array[..., number - 1].sum() > 0
    labels, notes = read_seg_labels(path, scheme, grid, LabelReading(overlaps="order"))
    assert np.array_equal(labels.data_ijk == 2, segment_mask(seg, 2, grid))
    (note,) = notes
    both = segment_mask(seg, 1, grid) & segment_mask(seg, 2, grid)
    assert note == f"second segment lies on top of first segment in {both.sum()} voxels"


@pytest.mark.shared_data
def test_fractions_of_highdicom_are_read_as_stored(shared_data):
    path = shared_data / "08_dicom_seg" / "highdicom" / "seg_image_ct_true_fractional.dcm"
    seg = open_seg(path)
    found = segment_fractions(seg, 1, own_grid(seg))
    stored = hd.seg.segread(path).pixel_array
    assert set(np.unique(found * 255).round(3).tolist()) == set(np.unique(stored).tolist())
    assert np.isclose(found.sum() * 255, stored.sum())
    mask = segment_mask(seg, 1, own_grid(seg))
    assert mask.sum() == np.count_nonzero(stored >= 127.5)


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_compressed_segmentations_are_read(scan, tmp_path, kind):
    masks = boxes()
    masks[0] &= ~masks[1]
    masks[1] &= ~masks[2]
    path = by_highdicom(
        tmp_path / "seg.dcm", scan.source, masks, kind, transfer_syntax_uid=RLELossless
    )
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == RLELossless
    wanted = masks[0] + 2 * masks[1] + 5 * masks[2]
    assert np.array_equal(read_seg(path, NAMES, GRID).data_ijk, wanted)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_deflated_segmentations_are_read(scan, tmp_path, kind):
    path = tmp_path / "seg.dcm"
    labels = LabelMap(boxes()[0].astype(np.uint8), scan.volume.grid, NAMES)
    write_seg(labels, path, scan.source, algorithm=MODEL, seg_type=kind)

    def deflate(seg):
        seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    spoil(path, deflate)
    assert path.read_bytes().count(b"1.2.840.10008.1.2.1.99") == 1
    assert np.array_equal(read_seg(path, NAMES, GRID).data_ijk, labels.data_ijk)


# Rules


def test_a_voxel_in_several_segments_goes_where_it_is_told_and_is_counted(scan, tmp_path):
    masks = boxes()
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, masks)
    with pytest.raises(FormatError, match="voxels in 'small' and 'large'; say which shall") as c:
        read_seg(path, NAMES, GRID)
    assert c.value.code == "seg-overlap"
    wanted = np.where(masks[2], 5, np.where(masks[1], 2, masks[0]))
    for overlaps in ("smaller", "order"):
        labels, notes = read_seg_labels(path, NAMES, GRID, LabelReading(overlaps=overlaps))
        assert np.array_equal(labels.data_ijk, wanted)
        assert f"small lies on top of large in {masks[1].sum()} voxels" in notes
    turned = LabelScheme.plain("boxes", {9: "large", 2: "small", 5: "tiny"})
    with pytest.raises(FormatError, match="found 'small' wholly under others") as c:
        read_seg_labels(path, turned, GRID, LabelReading(overlaps="order"))
    assert c.value.code == "seg-hidden"
    again = read_dicom_labels(path, turned, GRID, scan.source)  # as datasets and evaluations do
    assert np.array_equal(again.data_ijk, np.where(wanted == 1, 9, wanted))


def test_segments_that_the_scheme_does_not_list_are_refused_or_left_out(scan, tmp_path):
    masks = boxes()
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, masks, names=("Large ", "mouse", "ant"))
    scheme = LabelScheme.plain("x", {1: "large"})
    with pytest.raises(FormatError, match=r"'x', one of large, found segment 2 \('mouse'\)") as c:
        read_seg(path, scheme, GRID)
    assert c.value.code == "seg-segment-unknown"
    labels, notes = read_seg_labels(path, scheme, GRID, LabelReading(unknown="leave"))
    assert np.array_equal(labels.data_ijk, masks[0])
    assert notes == ("segments that the labels do not list are left out: mouse, ant",)
    for names in ({1: "large", 2: "mousse"}, {3: "cat"}):  # likely meant; nothing fits
        with pytest.raises(FormatError, match="segments of the scheme"):
            read_seg_labels(
                path, LabelScheme.plain("x", names), GRID, LabelReading(unknown="leave")
            )


def test_segments_of_one_label_are_taken_together_and_named(scan, tmp_path):
    path = by_highdicom(tmp_path / "s.dcm", scan.source, boxes(), names=("a", "lesion", "Lesion"))
    scheme = LabelScheme.plain("x", {1: "a", 4: "lesion"})
    labels, notes = read_seg_labels(path, scheme, GRID, LabelReading(overlaps="smaller"))
    assert np.array_equal(labels.data_ijk == 4, boxes()[1])
    assert "2 segments are taken together as lesion" in notes


def test_names_that_occur_twice_are_told_apart_in_a_scheme(scan, tmp_path):
    path = by_highdicom(tmp_path / "s.dcm", scan.source, boxes(), names=("a", "x", "x"))
    scheme = read_segment_scheme(path)
    assert [label.name for label in scheme.labels] == ["a", "x (segment 2)", "x (segment 3)"]


def test_codes_find_a_segment_only_where_one_label_has_them(scan, tmp_path):
    liver = Code("10200004", "SCT", "Liver")
    labels = LabelMap(
        boxes()[0].astype(np.uint8),
        scan.volume.grid,
        LabelScheme("x", (Label(1, "Leber", (1, 2, 3), concept=liver),)),
    )
    path = tmp_path / "seg.dcm"
    write_seg(labels, path, scan.source, algorithm=MODEL)
    old = Code("T-62000", "SRT", "Liver")  # what SNOMED RT called it
    one = LabelScheme("x", (Label(3, "liver", (1, 2, 3), concept=old),))
    assert np.array_equal(read_seg(path, one, GRID).data_ijk, 3 * boxes()[0])
    two = LabelScheme("x", (*one.labels, Label(4, "liver 2", (1, 2, 3), concept=liver)))
    with pytest.raises(FormatError, match=r"found segment 1 \('Leber'\) that it does not list"):
        read_seg(path, two, GRID)


def test_the_frame_of_reference_must_be_that_of_the_image(scan, tmp_path):
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, boxes()[:1], names=("large",))
    own = str(scan.source.datasets[0].FrameOfReferenceUID)
    read_seg_labels(path, NAMES, GRID, LabelReading(frame_of_reference=own))
    with pytest.raises(GeometryError, match="frame of reference of the image, found anoth") as c:
        read_seg_labels(path, NAMES, GRID, LabelReading(frame_of_reference="1.2.3"))
    assert c.value.code == "seg-frame-differs"
    spoil(path, lambda seg: delattr(seg, "FrameOfReferenceUID"))
    read_seg_labels(path, NAMES, GRID, LabelReading(frame_of_reference=own))


def test_a_frame_outside_the_image_counts_only_where_it_holds_something(scan, tmp_path):
    masks = boxes()[1:2]
    path = by_highdicom(
        tmp_path / "seg.dcm", scan.source, masks, names=("small",), omit_empty_frames=False
    )
    middle = np.array(GRID.affine_ras)
    middle[2, 3] += 2.0
    smaller = Grid((16, 12, 3), middle)
    found = read_seg(path, NAMES, smaller)
    assert np.array_equal(found.data_ijk == 2, masks[0][:, :, 1:4])
    with pytest.raises(GeometryError, match="found pixels beside or outside of it") as caught:
        read_seg(path, NAMES, Grid((16, 12, 2), middle))
    assert caught.value.code == "seg-grid-differs"


def test_planes_of_another_orientation_are_read_where_they_lie(scan, tmp_path):
    """Sagittal frames of an axial series, made by hand."""
    masks = boxes()[1:2]
    path = by_highdicom(
        tmp_path / "seg.dcm", scan.source, masks, names=("small",), omit_empty_frames=False
    )
    affine = GRID.affine_ras

    def turn(seg):
        seg.Rows, seg.Columns, seg.NumberOfFrames = 5, 12, 16
        shared = seg.SharedFunctionalGroupsSequence[0]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
        shared.PixelMeasuresSequence[0].PixelSpacing = [2.0, 1.25]
        group = seg.PerFrameFunctionalGroupsSequence[0]
        groups = []
        for i in range(16):
            own = copy.deepcopy(group)
            place = pydicom.Dataset()
            place.ImagePositionPatient = list((affine @ [i, 0, 0, 1])[:3] * RAS)
            own.PlanePositionSequence = [place]
            groups.append(own)
        seg.PerFrameFunctionalGroupsSequence = groups
        planes = masks[0].transpose(0, 2, 1)  # (i, k, j)
        packed = np.packbits(planes.ravel(), bitorder="little").tobytes()
        seg.PixelData = packed + bytes(len(packed) % 2)

    spoil(path, turn)
    assert np.array_equal(read_seg(path, NAMES, GRID).data_ijk == 2, masks[0])
    own = own_grid(open_seg(path))
    assert sorted(own.shape_ijk) == [5, 12, 16]


def test_frames_of_no_common_grid_have_none_of_their_own(scan, tmp_path):
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, boxes())

    def move(seg):
        seg.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = [
            40,
            0,
            4,
        ]

    spoil(path, move)
    with pytest.raises(GeometryError, match="one grid, found frames that are not evenly apa") as c:
        own_grid(open_seg(path))
    assert c.value.code == "seg-grid-differs"

    def scatter(seg):
        seg.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0].ImagePositionPatient = [
            0,
            0,
            90_000,
        ]

    spoil(path, scatter)
    with pytest.raises(GeometryError, match="several orientations, spacings or far apart"):
        own_grid(open_seg(path))


# Refusals


def _set(**tags):
    def change(seg):
        for keyword, value in tags.items():
            setattr(seg, keyword, value)

    return change


def _frame(**tags):
    def change(seg):
        group = seg.PerFrameFunctionalGroupsSequence[1]
        for keyword, value in tags.items():
            sequence, element = keyword.split("__")
            setattr(group[sequence][0], element, value)

    return change


@pytest.mark.parametrize(
    ("kind", "change", "code", "words"),
    [
        ("BINARY", _set(NumberOfFrames=3), "seg-frames", "a frame without them"),
        (
            "BINARY",
            _frame(PlanePositionSequence__ImagePositionPatient=[1e9, 0, 0]),
            "seg-frames",
            "beyond every patient",
        ),
        (
            "BINARY",
            _frame(SegmentIdentificationSequence__ReferencedSegmentNumber=9),
            "seg-frames",
            "segment that the file does not describe",
        ),
        ("BINARY", _set(Rows=0), "seg-unreadable", "frames of 1 to .* found 0 x 16"),
        ("BINARY", _set(SegmentSequence=[]), "seg-unreadable", "missing, damaged or no DICOM"),
        ("BINARY", _set(PixelData=b"ab"), "seg-unreadable", "found 2 bytes of pixel data"),
        ("LABELMAP", _set(PixelData=b"\x09" * 960), "seg-frames", "found the number 9"),
    ],
)
def test_files_that_contradict_themselves_are_refused(scan, tmp_path, kind, change, code, words):
    masks = boxes()
    masks[0] &= ~masks[1]
    masks[1] &= ~masks[2]
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, masks, kind, omit_empty_frames=False)
    spoil(path, change)
    with pytest.raises(FormatError, match=words) as caught:
        read_seg(path, NAMES, GRID)
    assert caught.value.code == code


def test_pixels_without_extent_are_refused(scan, tmp_path):
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, boxes())

    def flatten(seg):
        seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0, 1]

    spoil(path, flatten)
    with pytest.raises(FormatError, match="a frame whose pixels have no extent") as caught:
        open_seg(path)
    assert caught.value.code == "seg-frames"


def test_damaged_compressed_pixels_and_references_are_refused(scan, tmp_path):
    masks = boxes()[:1]
    path = by_highdicom(
        tmp_path / "s.dcm",
        scan.source,
        masks,
        "FRACTIONAL",
        names=("large",),
        transfer_syntax_uid=RLELossless,
    )
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\xfe\xff\x00\xe0")])
    with pytest.raises(FormatError, match=r"pixel data that cannot be decod|frames of pixel") as c:
        read_seg(path, NAMES, GRID)
    assert c.value.code == "seg-unreadable"
    plain = by_highdicom(tmp_path / "p.dcm", scan.source, masks, names=("large",))

    def nameless(seg):
        group = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        del group.SourceImageSequence[0].ReferencedSOPInstanceUID

    spoil(plain, nameless)
    with pytest.raises(FormatError, match="references to source images that can be read") as c:
        open_seg(plain).references()
    assert c.value.code == "seg-frames"


def test_a_deflated_file_that_grows_beyond_reason_is_refused(tmp_path, monkeypatch, scan):
    path = tmp_path / "seg.dcm"
    labels = LabelMap(np.zeros(GRID.shape_ijk, np.uint8), scan.volume.grid, NAMES)
    write_seg(labels, path, scan.source, algorithm=MODEL)

    def deflate(seg):
        seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    spoil(path, deflate)
    open_seg(path)
    content = path.read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = 80 * block + packer.flush()  # after a full flush a block stands for itself
    path.write_bytes(content[:meta] + bomb)
    with pytest.raises(FormatError, match="missing, damaged or no DICOM"):
        open_seg(path)


def test_a_segment_that_is_not_there_is_refused(scan, tmp_path):
    seg = open_seg(by_highdicom(tmp_path / "seg.dcm", scan.source, boxes()))
    with pytest.raises(FormatError, match="number of a segment, one of 1, 2, 3, found 7") as c:
        segment_mask(seg, 7, GRID)
    assert c.value.code == "seg-segment-unknown"


def test_a_file_that_vanished_after_it_was_opened_is_a_resource_error(scan, tmp_path):
    path = by_highdicom(tmp_path / "seg.dcm", scan.source, boxes())
    seg = open_seg(path)
    path.unlink()
    with pytest.raises(ResourceError, match="a file that can be read") as caught:
        segment_mask(seg, 1, GRID)
    assert caught.value.code == "input-unreadable"
    assert isinstance(caught.value, MedsegError)
