"""Damaged SEG files: read, or refused by an error of ours; never a crash, never much memory."""

import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.errors import MedsegError
from medseg.io.dicom_labels import read_label_scheme
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.dicom_seg_labels import read_seg_labels, segment_fractions
from medseg.io.dicom_seg_places import own_grid
from medseg.io.dicom_seg_reading import open_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.segment_names import LabelReading
from tests.io.test_dicom_fuzz import Forms, damaged, damages
from tests.series import AXIAL, small_series, spoil

GRID = Grid((16, 12, 3), AXIAL.affine_ras)
SCHEME = LabelScheme.plain("two", {1: "one", 2: "two"})


def read_or_refuse(path):
    """Labels of the scheme on the grid, or an error of ours, whichever way it is read."""
    try:
        labels, _ = read_seg_labels(
            path, SCHEME, GRID, LabelReading(overlaps="order", unknown="leave")
        )
        assert labels.grid == GRID
    except MedsegError:
        pass
    try:
        read_label_scheme(path)
        seg = open_seg(path)
        seg.references()
        grid = own_grid(seg)
        assert np.isfinite(grid.affine_ras).all()
        if np.prod(grid.shape_ijk) < 1 << 20:
            found = segment_fractions(seg, seg.segments[0].number, grid)
            assert found.min() >= 0
            assert found.max() <= 1
    except MedsegError:
        pass


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Bytes of SEG files in several types and encodings."""
    folder = tmp_path_factory.mktemp("fuzz")
    scan = read_dicom_series(small_series(folder / "s", GRID))
    data = np.arange(np.prod(GRID.shape_ijk)).reshape(GRID.shape_ijk) % 3
    labels = LabelMap(data.astype(np.uint8), scan.volume.grid, SCHEME)
    found = Forms()
    for kind in ("BINARY", "LABELMAP"):
        path = folder / kind
        write_seg(labels, path, scan.source, algorithm=Algorithm("m", "1"), seg_type=kind)
        found[kind] = path.read_bytes()

    def implicit(seg):
        seg.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        seg._is_implicit_VR = True

    def deflate(seg):
        seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    with quiet_dicom():
        dataset = pydicom.dcmread(folder / "BINARY")
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(folder / "implicit", implicit_vr=True, little_endian=True)
        spoil(folder / "LABELMAP", deflate, folder / "deflated")
        dataset = pydicom.dcmread(folder / "LABELMAP")
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(folder / "RLE")
    for name in ("implicit", "deflated", "RLE"):
        found[name] = (folder / name).read_bytes()
    for content in found.values():
        (folder / "x").write_bytes(content)
        labels_again, _ = read_seg_labels(folder / "x", SCHEME, GRID)
        assert np.array_equal(labels_again.data_ijk, data)
    return found


@pytest.mark.parametrize("form", ["BINARY", "LABELMAP", "implicit", "deflated", "RLE"])
@settings(max_examples=40, deadline=None)
@given(damage=damages())
def test_a_damaged_segmentation_is_read_or_refused(forms, form, damage):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "seg.dcm"
        path.write_bytes(damaged(forms[form], damage))
        read_or_refuse(path)


_ELEMENTS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
    "SegmentNumber",
    "ReferencedSegmentNumber",
    "ReferencedFrameNumber",
    "MaximumFractionalValue",
    "PixelPaddingValue",
    "SegmentationType",
    "SegmentLabel",
    "CodeValue",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SegmentSequence",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
    "SegmentedPropertyTypeCodeSequence",
    "DerivationImageSequence",
    "PlanePositionSequence",
    "PixelMeasuresSequence",
)
_VALUES = st.one_of(
    st.none(),
    st.integers(0, 65535),
    st.sampled_from(
        ["", "nan", "inf", "1e308", "-1", "FRACTIONAL", "LABELMAP", "1\\2", "1\\2\\3\\4\\5\\6"]
    ),
)


@pytest.mark.parametrize("form", ["BINARY", "LABELMAP"])
@settings(max_examples=60, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(_ELEMENTS), _VALUES, min_size=1, max_size=3),
    everywhere=st.booleans(),
)
def test_impossible_elements_are_read_or_refused(forms, form, changes, everywhere):
    with tempfile.TemporaryDirectory() as temporary, quiet_dicom():
        path = Path(temporary) / "seg.dcm"
        path.write_bytes(forms[form])
        dataset = pydicom.dcmread(path)
        left = dict(changes)

        def change(holder, element):
            value = changes.get(element.keyword)
            if element.keyword not in changes or (element.keyword not in left and not everywhere):
                return
            left.pop(element.keyword, None)
            number = element.VR in ("US", "UL")
            if element.VR == "SQ":
                element.value = []
            elif number != isinstance(value, str):
                element._value = value if value is None or number else str(value)

        dataset.walk(change)
        try:
            dataset.save_as(path)
        except (TypeError, ValueError, AttributeError, OverflowError):
            return  # no file can say so
        read_or_refuse(path)


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=400))
def test_arbitrary_bytes_are_refused(content):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "seg.dcm"
        path.write_bytes(bytes(128) + b"DICM" + content)
        with pytest.raises(MedsegError):
            open_seg(path)
        read_or_refuse(path)
