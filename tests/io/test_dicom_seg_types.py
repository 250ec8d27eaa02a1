"""SEG of every type, of classic and multi-frame sources, as outsiders see it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.core import Grid, LabelMap
from medseg.errors import ConfigError, FormatError, GeometryError
from medseg.io.dicom_seg import (
    check_fractional_seg,
    check_seg,
    read_seg,
    write_fractional_seg,
    write_seg,
)
from medseg.io.dicom_seg_frames import check_length
from medseg.io.dicom_seg_labels import read_seg_labels, segment_fractions, segment_mask
from medseg.io.dicom_seg_reading import open_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.probabilities import (
    ProbabilityClass,
    ProbabilityWriter,
    read_probabilities,
    scheme_classes,
)
from medseg.io.segment_names import LabelReading
from tests.dicom_variants import enhanced
from tests.series import AXIAL, small_series, spoil, spoil_all
from tests.structure_sets import MODEL, SCHEME

GRID = Grid((16, 12, 5), AXIAL.affine_ras)
KINDS = ("BINARY", "LABELMAP", "FRACTIONAL")


def sources(tmp_path, form):
    """A series as classic slices, as enhanced MR, or converted to it by highdicom."""
    if form == "classic":
        return read_dicom_series(small_series(tmp_path / "s", GRID))
    folder = small_series(tmp_path / "s", GRID, modality="MR" if form == "enhanced" else "CT")
    (tmp_path / "e").mkdir()
    if form == "enhanced":
        enhanced(folder, tmp_path / "e" / "1")
    else:
        slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        for one in slices:  # what its converter wants to find
            one.PatientName = "ANONYMOUS^"
            one.BodyPartExamined, one.FrameLaterality = "HEAD", "U"
            one.AcquisitionDate = one.AcquisitionTime = None
            one.BurnedInAnnotation, one.VolumetricProperties = "NO", "VOLUME"
        converted = hd.legacy.LegacyConvertedEnhancedCTImage(
            slices,
            series_instance_uid=hd.UID(),
            series_number=7,
            sop_instance_uid=hd.UID(),
            instance_number=1,
        )
        converted.save_as(tmp_path / "e" / "1")
    return read_dicom_series(tmp_path / "e")


def labels_on(scan, seed=0):
    """Two structures and one of a value beyond eight bits; none in the second slice."""
    chance = np.random.default_rng(seed)
    data = chance.choice([0, 0, 0, 1, 2, 300], scan.volume.grid.shape_ijk).astype(np.uint16)
    data[:, :, 1] = 0
    third = data[:, :, 2:3]  # a series may have two slices only
    third[third == 2] = 0
    return LabelMap(data, scan.volume.grid, SCHEME)


def fractions_on(scan, path, encoding="uint8", classes=None):
    """A file of probabilities, each voxel's classes in some other proportion."""
    chance = np.random.default_rng(1)
    classes = classes or scheme_classes(SCHEME)
    shares = chance.random((len(classes), *scan.volume.grid.shape_ijk)).astype(np.float32) ** 6
    shares[1:, :, :, 1] = 0
    shares /= shares.sum(axis=0)
    with ProbabilityWriter(path, scan.volume.grid, classes, encoding=encoding) as writer:
        writer.write_slab(2, 0, shares)
    return read_probabilities(path)


def written(tmp_path, scan, kind, **options):
    """The path of a SEG, and for every segment its name and ``(i, j, k)`` what it must hold."""
    path = tmp_path / "seg.dcm"
    if kind == "FRACTIONAL":
        probabilities = fractions_on(scan, tmp_path / "c_probseg.h5")
        write_fractional_seg(probabilities, SCHEME, path, scan.source, algorithm=MODEL, **options)
        return path, [
            (label.name.replace("\\", "/"), probabilities.read_stored(number))
            for number, label in enumerate(SCHEME.labels, 1)
        ]
    labels = labels_on(scan)
    write_seg(labels, path, scan.source, algorithm=MODEL, seg_type=kind, **options)
    return path, [
        (label.name.replace("\\", "/"), (labels.data_ijk == label.value).astype(np.uint8))
        for label in SCHEME.labels
    ]


# Outsiders


@pytest.mark.parametrize("omit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["classic", "enhanced", "converted"])
def test_highdicom_sees_the_same_voxels_and_the_image_that_each_frame_was_made_from(
    tmp_path, form, kind, omit
):
    scan = sources(tmp_path, form)
    path, wanted = written(tmp_path, scan, kind, omit_empty_frames=omit)
    seg = hd.seg.segread(path)
    assert seg.segmentation_type.value == kind
    numbers = seg.segment_numbers
    assert [seg.get_segment_description(n).segment_label for n in numbers] == [n for n, _ in wanted]
    options = {
        "segment_numbers": numbers,
        "rescale_fractional": False,
        "assert_missing_frames_are_empty": True,
        # highdicom 0.28 takes label maps of 16 bits apart as if they had 8
        "combine_segments": kind == "LABELMAP",
    }
    if form == "classic":
        uids = [header.SOPInstanceUID for header in scan.source.datasets]
        found = seg.get_pixels_by_source_instance(uids, **options)
    else:
        (uid,) = {header.SOPInstanceUID for header in scan.source.datasets}
        frames = list(scan.source.frame_numbers)
        assert sorted(frames) == [1, 2, 3, 4, 5]
        found = seg.get_pixels_by_source_frame(uid, frames, **options)
    for index, (number, (_, volume_ijk)) in enumerate(zip(numbers, wanted, strict=True)):
        seen = found == number if kind == "LABELMAP" else found[..., index]
        assert np.array_equal(seen, volume_ijk.transpose(2, 1, 0))
    per_frame = seg.PerFrameFunctionalGroupsSequence
    slices = len({tuple(f.PlanePositionSequence[0].ImagePositionPatient) for f in per_frame})
    assert slices == (4 if omit else 5)
    assert len(per_frame) == int(seg.NumberOfFrames)


def _program(name):
    """A program beside this Python, or on the path; without it the test is skipped."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} of dcmqi (pip install dcmqi), which is not installed here")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_dcmqi_sees_the_same_voxels_in_the_same_places(tmp_path, form, kind):
    program = _program("segimage2itkimage")
    scan = sources(tmp_path, form)
    path, wanted = written(tmp_path, scan, kind)
    out = tmp_path / "dcmqi"
    out.mkdir()
    options = ["--outputDirectory", out, "--outputType", "nrrd", "--prefix", "x"]
    done = subprocess.run(
        [program, "--inputDICOM", path, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    meta = json.loads((out / "x-meta.json").read_text(encoding="utf-8"))
    assert len(list(out.glob("*.nrrd"))) == len(meta["segmentAttributes"])
    seen = {}
    for number, group in enumerate(meta["segmentAttributes"], 1):
        image = sitk.ReadImage(str(out / f"x-{number}.nrrd"))
        volume = sitk.GetArrayFromImage(image)
        for segment in group:
            value = segment["labelID"]
            seen[segment["SegmentLabel"]] = volume if kind == "FRACTIONAL" else volume == value
        origin = np.array(image.GetOrigin()) * [-1, -1, 1]
        apart = scan.volume.grid.voxel_from_world(origin)
        assert np.allclose(apart, 0, atol=0.01)
        spacing = np.array(image.GetSpacing())
        assert np.allclose(spacing, scan.volume.grid.spacing_mm, atol=0.001)
    for name, volume_ijk in wanted:
        assert np.array_equal(seen[name], volume_ijk.transpose(2, 1, 0)), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_dciodvfy_finds_no_error(tmp_path, form, kind):
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's package dicom3tools, which is not installed here")
    path, _ = written(tmp_path, sources(tmp_path, form), kind)
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in told.stderr.splitlines() if line.startswith("Error")]
    if kind == "LABELMAP":  # of 2024, while Debian's program is of 2022
        errors = [
            line
            for line in errors
            if "Information Object Not found" not in line and "SegmentNumber of 0" not in line
        ]
    assert not errors
    assert "Segmentation" in told.stderr or kind == "LABELMAP"


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["08_dicom_seg/dcmqi/23x38x3/multiframe", "09_dicom_edge_cases/pydicom_single/eCT"]
)
def test_segmentations_of_real_multi_frame_objects_refer_to_their_frames(
    shared_data, tmp_path, name, kind
):
    source = shared_data / name
    if not source.is_dir():
        (tmp_path / "s").mkdir()
        shutil.copy(source.with_name("eCT_Supplemental.dcm"), tmp_path / "s")
        source = tmp_path / "s"
    scan = read_dicom_series(source)
    path, _ = written(tmp_path, scan, kind)
    seg = pydicom.dcmread(path)
    ((uid, image_class),) = {(h.SOPInstanceUID, h.SOPClassUID) for h in scan.source.datasets}
    (instance,) = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == uid
    assert instance.ReferencedSOPClassUID == image_class
    original = pydicom.dcmread(next(source.iterdir()), stop_before_pixels=True)
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        frame = original.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
        own = group.PlanePositionSequence[0].ImagePositionPatient
        assert list(own) == list(frame.PlanePositionSequence[0].ImagePositionPatient)


# Worked cases


@pytest.mark.parametrize("form", ["classic", "enhanced"])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_labels_come_back_equal(tmp_path, form, kind):
    scan = sources(tmp_path, form)
    labels = labels_on(scan)
    path = tmp_path / "seg.dcm"
    write_seg(labels, path, scan.source, algorithm=MODEL, seg_type=kind)
    assert np.array_equal(read_seg(path, SCHEME, labels.grid).data_ijk, labels.data_ijk)


def test_the_numbers_of_a_label_map_are_the_label_values(tmp_path):
    scan = sources(tmp_path, "classic")
    labels = labels_on(scan)
    without = np.where(labels.data_ijk == 300, 0, labels.data_ijk)
    for form, bits in ((labels, 16), (labels.on_grid(without, labels.grid), 8)):
        write_seg(form, tmp_path / "s.dcm", scan.source, algorithm=MODEL, seg_type="LABELMAP")
        seg = pydicom.dcmread(tmp_path / "s.dcm")
        assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
        assert seg.BitsAllocated == bits
        assert np.array_equal(seg.pixel_array, form.data_ijk.transpose(2, 1, 0))


@pytest.mark.parametrize("encoding", ["uint8", "float16"])
def test_fractions_come_back_as_probabilities_and_as_labels_above_a_threshold(tmp_path, encoding):
    scan = sources(tmp_path, "classic")
    file = fractions_on(scan, tmp_path / "c_probseg.h5", encoding)
    path = tmp_path / "seg.dcm"
    write_fractional_seg(file, SCHEME, path, scan.source, algorithm=MODEL)
    seg = open_seg(path)
    assert (seg.kind, seg.maximum) == ("FRACTIONAL", 255)
    for number in (1, 2, 3):
        found = segment_fractions(seg, number, file.grid)
        assert np.abs(found - file.read_class(number)).max() <= 0.501 / 255
        mask = segment_mask(seg, number, file.grid)
        assert np.array_equal(mask, found >= 0.5)
    labels = read_seg(path, SCHEME, file.grid).data_ijk
    for number, label in enumerate(SCHEME.labels, 1):
        assert np.array_equal(labels == label.value, segment_mask(seg, number, file.grid))
    lower, _ = read_seg_labels(
        path, SCHEME, file.grid, LabelReading(threshold=0.2, overlaps="order")
    )
    assert np.count_nonzero(lower.data_ijk) > np.count_nonzero(labels) > 0


def test_a_region_of_several_labels_gets_no_code_of_one_of_them(tmp_path):
    scan = sources(tmp_path, "classic")
    classes = (ProbabilityClass(1, "Liver", (1, 2, 3)), ProbabilityClass(300, "whole", (4, 5, 6)))
    file = fractions_on(scan, tmp_path / "c_probseg.h5", classes=classes)
    path = tmp_path / "seg.dcm"
    write_fractional_seg(file, SCHEME, path, scan.source, algorithm=MODEL, omit_empty_frames=True)
    first, second = pydicom.dcmread(path).SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "SCT"
    assert second.SegmentLabel == "whole"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99MEDSEG"


def test_a_slice_that_was_made_up_refers_to_no_image(tmp_path):
    folder = small_series(tmp_path / "s", Grid((6, 5, 7), AXIAL.affine_ras))
    (folder / "00004.dcm").unlink()
    scan = read_dicom_series(folder, allow_gaps=True)
    labels = LabelMap(np.ones((6, 5, 7), np.uint8), scan.volume.grid, SCHEME)
    write_seg(labels, tmp_path / "seg.dcm", scan.source, algorithm=MODEL)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    counts = [len(g.DerivationImageSequence) for g in seg.PerFrameFunctionalGroupsSequence]
    assert counts == [1, 1, 1, 0, 1, 1, 1]
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6


def test_nothing_found_leaves_one_frame_of_a_label_map(tmp_path):
    scan = sources(tmp_path, "classic")
    empty = LabelMap(np.zeros(GRID.shape_ijk, np.uint8), scan.volume.grid, SCHEME)
    path, options = tmp_path / "seg.dcm", {"algorithm": MODEL, "seg_type": "LABELMAP"}
    write_seg(empty, path, scan.source, omit_empty_frames=True, **options)
    seg = pydicom.dcmread(path)
    assert int(seg.NumberOfFrames) == 1
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [0, 1, 2, 300]


# Refusals


def test_a_type_that_labels_cannot_have_is_refused(tmp_path):
    scan = sources(tmp_path, "classic")
    with pytest.raises(ConfigError, match="one of BINARY, LABELMAP") as caught:
        write_seg(
            labels_on(scan), tmp_path / "x", scan.source, algorithm=MODEL, seg_type="FRACTIONAL"
        )
    assert caught.value.code == "seg-type"


def test_pixels_beyond_what_an_element_holds_are_refused():
    assert check_length(5, 3, 1, 3, "x") == 6  # 45 bits
    with pytest.raises(
        FormatError, match=r"less than 4 GiB .* found 4\.7 GiB in 19200 frames"
    ) as c:
        check_length(512, 512, 8, 19_200, "x")
    assert c.value.code == "seg-too-large"


def test_probabilities_of_the_background_alone_are_refused(tmp_path):
    scan = sources(tmp_path, "classic")
    nothing = (ProbabilityClass(0, "background", (0, 0, 0)),)
    file = fractions_on(scan, tmp_path / "c_probseg.h5", classes=nothing)
    with pytest.raises(FormatError, match="a class beside the background, found none") as caught:
        write_fractional_seg(file, SCHEME, tmp_path / "x", scan.source, algorithm=MODEL)
    assert caught.value.code == "probability-classes"


def test_a_frame_that_refers_to_another_image_is_found_out(tmp_path):
    scan = sources(tmp_path, "enhanced")
    labels = labels_on(scan)
    path = tmp_path / "seg.dcm"
    write_seg(labels, path, scan.source, algorithm=MODEL)

    def mistake(seg):
        group = seg.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence[0]
        group.SourceImageSequence[0].ReferencedFrameNumber = 1

    spoil(path, mistake)
    with pytest.raises(FormatError, match="found a frame that refers to another") as caught:
        check_seg(path, labels, scan.source, where="result")
    assert caught.value.code == "verify-references"


def test_an_empty_frame_beside_its_slice_is_found_out(tmp_path):
    scan = sources(tmp_path, "classic")
    labels = labels_on(scan)
    path = tmp_path / "seg.dcm"
    write_seg(labels, path, scan.source, algorithm=MODEL)

    def move(seg):  # the second slice shows nothing
        place = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
        place.ImagePositionPatient[2] += 0.5

    spoil(path, move)
    with pytest.raises(GeometryError, match=r"in the places of slices .* one 0\.500 mm away") as c:
        check_seg(path, labels, scan.source, where="result")
    assert c.value.code == "verify-geometry"


def _flip(seg):
    content = bytearray(seg.PixelData)
    content[100] ^= 255
    seg.PixelData = bytes(content)


def _rename(seg):
    seg.SegmentSequence[0].SegmentLabel = "another"


@pytest.mark.parametrize(
    ("change", "words"),
    [(_flip, "found a difference of"), (_rename, "3 FRACTIONAL segments, found others")],
)
def test_fractions_that_are_not_what_was_written_are_found_out(tmp_path, change, words):
    scan = sources(tmp_path, "classic")
    path, _ = written(tmp_path, scan, "FRACTIONAL")
    file = read_probabilities(tmp_path / "c_probseg.h5")
    check_fractional_seg(path, file, SCHEME, scan.source, where="result")
    spoil(path, change)
    with pytest.raises(FormatError, match=words) as caught:
        check_fractional_seg(path, file, SCHEME, scan.source, where="result")
    assert caught.value.code == "verify-labels"


def test_probabilities_on_another_grid_are_refused(tmp_path):
    scan = sources(tmp_path, "classic")
    file = fractions_on(scan, tmp_path / "c_probseg.h5")
    folder = small_series(tmp_path / "other", GRID)
    spoil_all(folder, lambda one: one.ImagePositionPatient.__setitem__(0, 5.0))
    other = read_dicom_series(folder).source
    with pytest.raises(GeometryError, match="on the grid of the series") as caught:
        write_fractional_seg(file, SCHEME, tmp_path / "x", other, algorithm=MODEL)
    assert caught.value.code == "seg-grid-differs"
