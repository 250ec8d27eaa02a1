"""Damaged DICOM files and zips: read, or refused by an error of ours; never a crash."""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless, RLELossless

from medseg.core import Grid
from medseg.errors import MedsegError
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_series import read_dicom_series
from tests.damage import Forms, bounded, damaged, damages
from tests.dicom_variants import zipped
from tests.series import AXIAL, small_series

MOST_BYTES = 64 << 20
SMALL = Grid((32, 32, 2), AXIAL.affine_ras)


def read_or_refuse(path):
    """A series has finite voxels on its grid, or the reader says what is wrong."""
    with bounded(MOST_BYTES):
        try:
            volume = read_dicom_series(path, threads=1).volume
        except MedsegError:
            return
    assert np.isfinite(volume.grid.affine_ras).all()


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Bytes of slices in several encodings, and of a zip."""
    folder = tmp_path_factory.mktemp("fuzz")
    plain = small_series(folder / "plain", SMALL)
    found = Forms(plain=[path.read_bytes() for path in sorted(plain.iterdir())])
    with quiet_dicom():
        for name, syntax in (("rle", RLELossless), ("j2k", JPEG2000Lossless)):
            (folder / name).mkdir()
            for path in sorted(plain.iterdir()):
                dataset = pydicom.dcmread(path)
                dataset.compress(syntax, generate_instance_uid=False)
                dataset.save_as(folder / name / path.name)
            found[name] = [path.read_bytes() for path in sorted((folder / name).iterdir())]
        (folder / "implicit").mkdir()
        for path in sorted(plain.iterdir()):
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            dataset.save_as(folder / "implicit" / path.name, implicit_vr=True, little_endian=True)
        found["implicit"] = [p.read_bytes() for p in sorted((folder / "implicit").iterdir())]
    found["zip"] = [zipped(plain, folder / "s.zip").read_bytes()]
    return found


@pytest.mark.parametrize("form", ["plain", "implicit", "rle", "j2k"])
@settings(max_examples=60, deadline=None)
@given(damage=damages())
def test_a_damaged_slice_is_read_or_refused(forms, form, damage):
    with tempfile.TemporaryDirectory() as temporary:
        first, second = forms[form]
        (Path(temporary) / "1").write_bytes(first)
        (Path(temporary) / "2").write_bytes(damaged(second, damage))
        read_or_refuse(Path(temporary))


@settings(max_examples=80, deadline=None)
@given(damage=damages())
def test_a_damaged_zip_is_read_or_refused(forms, damage):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "s.zip"
        path.write_bytes(damaged(forms["zip"][0], damage))
        read_or_refuse(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=600), marked=st.booleans())
def test_arbitrary_bytes_are_refused(content, marked):
    with tempfile.TemporaryDirectory() as temporary:
        head = bytes(128) + b"DICM" if marked else b"\x08\x00"
        (Path(temporary) / "1").write_bytes(head + content)
        read_or_refuse(Path(temporary))


# what headers can say of numbers, in every element that reading looks at
_ELEMENTS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "SliceThickness",
    "PixelPaddingValue",
    "InstanceNumber",
    "SeriesNumber",
    "ImageType",
    "EchoTime",
    "PhotometricInterpretation",
)
_VALUES = st.one_of(
    st.none(),
    st.integers(0, 65535),
    st.sampled_from(["", "nan", "inf", "1e308", "-1", "text", "1\\2", "1\\2\\3\\4\\5\\6"]),
)


@settings(max_examples=80, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(_ELEMENTS), _VALUES, min_size=1, max_size=3),
    everywhere=st.booleans(),
)
def test_impossible_elements_are_read_or_refused(forms, changes, everywhere):
    with tempfile.TemporaryDirectory() as temporary, quiet_dicom():
        for number, content in enumerate(forms["plain"]):
            path = Path(temporary) / str(number)
            path.write_bytes(content)
            if number and not everywhere:
                continue
            dataset = pydicom.dcmread(path)
            for keyword, value in changes.items():
                kind = pydicom.datadict.dictionary_VR(keyword)
                kind = "US" if kind.startswith("US") else kind
                if (kind == "US") == isinstance(value, str):
                    continue
                dataset.add(pydicom.DataElement(keyword, kind, None))
                dataset[keyword]._value = value if value is None or kind == "US" else str(value)
            try:
                dataset.save_as(path)
            except (TypeError, ValueError, AttributeError):
                path.write_bytes(content)  # no file can say so
        read_or_refuse(Path(temporary))


_NAMES = st.one_of(
    st.sampled_from(["1", "a/2", "DICOMDIR", "x.zip", "__MACOSX/._1", ".hidden", "Größe", "a//b"]),
    st.text(min_size=1, max_size=12),
)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(
        st.tuples(
            _NAMES,
            st.sampled_from(["slice", "zeros", "text", "empty", "zip"]),
            st.sampled_from([0, 8, 12, 14]),
            st.sampled_from([0, 0, 0o100644 << 16, 0o120777 << 16, 0o020666 << 16]),
            st.sampled_from([0, 0, 0x1, 0x800]),
        ),
        max_size=6,
    ),
    damage=st.one_of(st.just(([], 1.0)), damages()),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_of_anything_are_read_or_refused(forms, entries, damage):
    contents = {
        "slice": forms["plain"][0],
        "zeros": bytes(2 << 20),
        "text": b"no image",
        "empty": b"",
        "zip": forms["zip"][0],
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "s.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, kind, method, attributes, flags in entries:
                entry = zipfile.ZipInfo(name)
                entry.compress_type, entry.external_attr = method, attributes
                try:
                    archive.writestr(entry, contents[kind])
                except (UnicodeEncodeError, ValueError):
                    continue  # no zip can say so
                archive.filelist[-1].flag_bits |= flags
        path.write_bytes(damaged(path.read_bytes(), damage))
        read_or_refuse(path)


def test_a_zip_that_says_less_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1", bytes(1 << 20))
    content = path.read_bytes()
    lied = content.replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lied != content
    path.write_bytes(lied)
    with pytest.raises(MedsegError) as caught:
        read_dicom_series(path)
    assert caught.value.code in ("zip-damaged", "no-images")
