"""Segments of one object that came about in different ways."""

import numpy as np
import pydicom
import pytest

from medseg.core import LabelMap, LabelScheme
from medseg.errors import ConfigError
from medseg.io.dicom_seg import Algorithm, write_fractional_seg, write_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.dicom_study import read_study
from medseg.io.dicom_thumbnail import thumbnail
from medseg.io.label_object import read_label_object
from medseg.io.probabilities import ProbabilityWriter, read_probabilities, scheme_classes
from medseg.io.rtstruct import write_rtstruct
from tests.series import AXIAL, ramp, small_series

MODEL = Algorithm("medseg liver", "3")
SCHEME = LabelScheme.plain("s", {1: "by model", 2: "corrected", 3: "by hand"})
TYPES = {1: "AUTOMATIC", 2: "SEMIAUTOMATIC", 3: "MANUAL"}


@pytest.fixture
def labelled(tmp_path):
    scan = read_dicom_series(small_series(tmp_path / "series"))
    data = np.zeros(AXIAL.shape_ijk, np.uint8)
    data[0:2, 0:2, 0:2], data[3:5, 0:2, 1:3], data[0:2, 3:5, 1:4] = 1, 2, 3
    return scan, LabelMap(data, scan.volume.grid, SCHEME), tmp_path / "out.dcm"


def write_kind(kind, labels, path, source, types):
    """A SEG of any type; a FRACTIONAL one of probabilities that are 1 where the labels are."""
    if kind != "FRACTIONAL":
        options = {"algorithm": MODEL, "algorithm_type": types, "seg_type": kind}
        write_seg(labels, path, source, **options)
        return
    shares = np.stack([labels.data_ijk == value for value in (0, *TYPES)]).astype(np.float32)
    file = path.with_name("c_probseg.h5")
    with ProbabilityWriter(file, labels.grid, scheme_classes(SCHEME), encoding="uint8") as writer:
        writer.write_slab(2, 0, shares)
    probabilities = read_probabilities(file)
    write_fractional_seg(probabilities, SCHEME, path, source, algorithm=MODEL, algorithm_type=types)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_each_segment_of_a_seg_says_how_it_came_about(labelled, kind):
    scan, labels, path = labelled
    write_kind(kind, labels, path, scan.source, TYPES)
    assert pydicom.dcmread(path).SegmentationType == kind
    segments = [one for one in pydicom.dcmread(path).SegmentSequence if one.SegmentNumber]
    assert [one.SegmentAlgorithmType for one in segments] == list(TYPES.values())
    assert [one.get("SegmentAlgorithmName") for one in segments] == [MODEL.name, MODEL.name, None]
    found = read_label_object(path)
    assert list(found.types) == [label.name for label in SCHEME.labels]  # no background
    assert list(found.names) == list(found.types)
    assert list(found.types.values()) == list(TYPES.values())
    assert found.algorithm == (MODEL.name, MODEL.version)


def test_each_roi_of_a_structure_set_says_how_it_came_about(labelled):
    scan, labels, path = labelled
    write_rtstruct(labels, path, scan.source, algorithm=MODEL, algorithm_type=TYPES)
    rois = pydicom.dcmread(path).StructureSetROISequence
    assert [one.ROIGenerationAlgorithm for one in rois] == list(TYPES.values())
    assert [one.get("ROIGenerationDescription") for one in rois] == ["medseg liver 3"] * 2 + [None]


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_a_label_without_a_type_is_refused_in_every_type_of_seg(labelled, kind):
    scan, labels, path = labelled
    with pytest.raises(ConfigError, match=r"for label 3 one of .*, found nothing"):
        write_kind(kind, labels, path, scan.source, {1: "AUTOMATIC", 2: "AUTOMATIC"})
    assert not path.exists()


def test_one_type_said_of_each_label_is_one_type_for_all(labelled):
    scan, labels, path = labelled
    found = set()
    for types in ("AUTOMATIC", dict.fromkeys(TYPES, "AUTOMATIC")):
        write_seg(labels, path, scan.source, algorithm=MODEL, algorithm_type=types)
        found.add(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID))
    assert len(found) == 1


@pytest.mark.parametrize("write", [write_seg, write_rtstruct])
def test_other_types_make_another_instance_of_the_same_labels(labelled, write):
    scan, labels, path = labelled
    found = set()
    for types in (TYPES, TYPES | {1: "SEMIAUTOMATIC"}, "AUTOMATIC"):
        write(labels, path, scan.source, algorithm=MODEL, algorithm_type=types)
        found.add(str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID))
    assert len(found) == 3


def test_labels_that_are_all_by_hand_name_no_algorithm(labelled):
    scan, labels, path = labelled
    by_hand = dict.fromkeys(TYPES, "MANUAL")
    write_seg(labels, path, scan.source, algorithm=None, algorithm_type=by_hand)
    assert pydicom.dcmread(path).SeriesDescription == "Manual segmentation"


def test_an_empty_map_needs_no_types(labelled):
    scan, labels, path = labelled
    empty = labels.on_grid(np.zeros_like(labels.data_ijk), labels.grid)
    write_seg(empty, path, scan.source, algorithm=None, algorithm_type={})
    kinds = {one.SegmentAlgorithmType for one in pydicom.dcmread(path).SegmentSequence}
    assert kinds == {"MANUAL"}


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ({1: "AUTOMATIC", 2: "AUTOMATIC"}, "for label 3 one of .*, found nothing"),
        (TYPES | {2: "GUESSED"}, "for label 2 one of .*, found 'GUESSED'"),
    ],
)
def test_a_label_without_a_type_is_refused(labelled, types, words):
    scan, labels, path = labelled
    with pytest.raises(ConfigError, match=words):
        write_seg(labels, path, scan.source, algorithm=MODEL, algorithm_type=types)


def test_an_automatic_segment_needs_its_algorithm(labelled):
    scan, labels, path = labelled
    with pytest.raises(ConfigError, match="a named algorithm for segments of type AUTOMATIC"):
        write_seg(labels, path, scan.source, algorithm=None, algorithm_type=TYPES)


@pytest.mark.parametrize(("write", "kind"), [(write_seg, "SEG"), (write_rtstruct, "RTSTRUCT")])
def test_what_was_written_is_told_again(labelled, write, kind):
    scan, labels, path = labelled
    write(labels, path, scan.source, algorithm=MODEL, algorithm_type=TYPES)
    found = read_label_object(path)
    assert found.kind == kind
    assert found.types == {
        "by model": "AUTOMATIC",
        "corrected": "SEMIAUTOMATIC",
        "by hand": "MANUAL",
    }
    assert found.series_uids == (str(scan.source.datasets[0].SeriesInstanceUID),)
    assert found.algorithm == (("medseg liver", "3") if kind == "SEG" else None)


def test_images_and_other_files_are_no_label_objects(labelled, tmp_path):
    (tmp_path / "text.dcm").write_text("nothing")
    (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\x01" * 40)
    for path in (tmp_path / "text.dcm", tmp_path / "broken.dcm", tmp_path / "series" / "00001.dcm"):
        assert read_label_object(path) is None


def test_a_thumbnail_is_the_middle_slice_in_its_form(tmp_path):
    study = read_study(small_series(tmp_path / "series"))
    picture = thumbnail(study.stacks[0], study, side=36)
    rows, columns = picture.shape
    assert (rows, columns) == (round(36 * 5 * 1.25 / 9.0), 36)  # 5 rows of 1.25, 6 columns of 1.5
    data = ramp().data_cijk[0]
    first, last = picture[rows // 2, 3], picture[rows // 2, -3]
    assert (first < last) == (data[0, 2, 2] < data[-1, 2, 2])
