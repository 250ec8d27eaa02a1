import itertools
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from medseg.core import Grid, Volume
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_pixels import rescaled
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_series import read_dicom_series
from tests.grids import marked
from tests.series import ramp, small_series, spoil, spoil_all


def setting(**tags):
    def change(dataset):
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)

    return change


def shifting(index_to_shift_mm):
    """Move a slice in the patient system by a function of its number."""

    def change(dataset):
        shift = index_to_shift_mm(int(dataset.InstanceNumber) - 1)
        position = np.array(dataset.ImagePositionPatient, dtype=float) + shift
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in position]

    return change


# Laws


@settings(max_examples=25, deadline=None)
@given(marked(), st.randoms(use_true_random=False))
def test_a_marked_voxel_stays_in_its_place_through_a_shuffled_series(case, chance):
    grid, voxel = case
    data = np.zeros((1, *grid.shape_ijk), dtype=np.int16)
    data[(0, *voxel)] = 1000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "series"
        write_dicom_series(Volume(data, grid), folder, modality="CT", random_names=True)
        numbers = list(range(1, grid.shape_ijk[2] + 1))
        chance.shuffle(numbers)
        for path, number in zip(sorted(folder.iterdir()), numbers, strict=True):
            spoil(path, setting(InstanceNumber=number))
        volume = read_dicom_series(folder).volume
    (found,) = np.argwhere(volume.data_cijk[0] == 1000)
    distance = np.linalg.norm(volume.grid.world_from_voxel(found) - grid.world_from_voxel(voxel))
    assert distance < 0.01
    assert np.linalg.det(volume.grid.affine_ras[:3, :3]) > 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, -1.0, 0.5, 3.0]), st.integers(-40000, 40000)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32]),
)
def test_rescaling_gives_each_slice_its_own_line_and_keeps_integers(rescales, dtype):
    limits = np.iinfo(dtype)
    stored = np.array([[limits.min, 0], [7, limits.max]], dtype=dtype)
    lines = [(slope, float(intercept)) for slope, intercept in rescales]
    volume = rescaled([stored] * len(lines), lines)
    expected = np.stack([stored.astype(np.float64) * s + b for s, b in lines])
    if volume.dtype == np.float32:
        assert np.allclose(volume, expected, rtol=1e-6)
        assert any(s == 0.5 for s, _ in lines) or np.abs(expected).max() > 2**31 - 1
    else:
        assert np.array_equal(volume, expected)
        assert (volume.dtype == np.int16) == (expected.min() >= -(2**15) and expected.max() < 2**15)


# Outsiders


@pytest.mark.shared_data
def test_all_transfer_syntaxes_of_one_slice_give_the_same_voxels(shared_data, tmp_path):
    single = shared_data / "09_dicom_edge_cases" / "pydicom_single"
    with quiet_dicom():
        plain = pydicom.dcmread(single / "MR_small.dcm").pixel_array
    names = sorted(path.name for path in single.glob("MR_small*.dcm"))
    assert len(names) >= 7
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(single / name, folder / "1")
        scan = read_dicom_series(folder)
        assert np.array_equal(scan.volume.data_cijk[0, :, :, 0].T, plain), name
        assert "one slice only: its extent across the slice is SliceThickness, 0.8 mm" in scan.notes


@pytest.mark.shared_data
def test_a_ct_slice_reads_the_same_in_every_lossless_transfer_syntax(shared_data, tmp_path):
    files = sorted((shared_data / "09_dicom_edge_cases/wado_ct_transfer_syntaxes").glob("CTI*"))
    reference = None
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(path, folder)
        data = read_dicom_series(folder).volume.data_cijk.astype(np.float64)
        reference = data if reference is None else reference
        if "Process2_4" in path.name:  # lossy, of 12 bits
            assert np.abs(data - reference)[reference > -1000].mean() < 5
        else:
            assert np.array_equal(data, reference), path.name
    assert len(files) == 5


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "code"),
    {
        "MR_truncated.dcm": "dicom-pixels",
        "emri_small_RLE.dcm": "dicom-multiframe",
        "image_dfl.dcm": "dicom-modality",
        "liver_1frame.dcm": "no-images",
        "rtdose.dcm": "no-images",
        "meta_missing_tsyntax.dcm": "dicom-unreadable",
        "zipMR.gz": "no-images",
    }.items(),
)
def test_single_files_that_are_no_series_are_refused(shared_data, tmp_path, name, code):
    shutil.copy(shared_data / "09_dicom_edge_cases" / "pydicom_single" / name, tmp_path)
    with pytest.raises(FormatError) as caught:
        read_dicom_series(tmp_path)
    assert caught.value.code == code


@pytest.mark.shared_data
def test_a_file_without_preamble_is_read_like_any_other(shared_data, tmp_path):
    single = shared_data / "09_dicom_edge_cases" / "pydicom_single" / "MR_small_implicit.dcm"
    spoil(single, lambda dataset: None, tmp_path / "with")
    reference = read_dicom_series(tmp_path).volume.data_cijk
    with quiet_dicom():
        dataset = pydicom.dcmread(single)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.preamble = None
        bare = tmp_path / "bare"
        bare.mkdir()
        dataset.save_as(bare / "0", implicit_vr=True, little_endian=True)
    assert (bare / "0").read_bytes()[:2] == b"\x08\x00"
    assert np.array_equal(read_dicom_series(bare).volume.data_cijk, reference)


# Worked cases


def test_order_names_nesting_and_strangers_do_not_matter(tmp_path):
    plain = read_dicom_series(small_series(tmp_path / "plain"))
    mixed = small_series(tmp_path / "mixed")
    (mixed / "deep" / "er").mkdir(parents=True)
    (mixed / "00003.dcm").rename(mixed / "deep" / "er" / "a picture.jpg")
    (mixed / "00001.dcm").rename(mixed / "zz")
    (mixed / "readme.txt").write_text("not an image")
    (mixed / "empty.log").touch()
    (mixed / ".empty").touch()
    report = setting(
        Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", SeriesInstanceUID="1.2.3"
    )
    spoil(mixed / "00002.dcm", report, mixed / "report")
    scan = read_dicom_series(mixed)
    assert scan.volume.grid == plain.volume.grid
    assert np.array_equal(scan.volume.data_cijk, plain.volume.data_cijk)
    assert "passed over DICOM objects that are not images: 1 SR" in scan.notes
    assert scan.volume.channels == ("image",)
    assert scan.source.folder == mixed
    heights = [float(header.ImagePositionPatient[2]) for header in scan.source.datasets]
    assert heights == [0.0, 2.0, 4.0, 6.0]
    assert all("PixelData" not in header for header in scan.source.datasets)


def test_pixel_spacing_names_the_distance_between_rows_first(tmp_path):
    folder = small_series(tmp_path / "s")
    spacing = pydicom.dcmread(folder / "00001.dcm").PixelSpacing
    assert list(spacing) == [1.25, 1.5]
    assert read_dicom_series(folder).volume.grid.spacing_mm == (1.5, 1.25, 2.0)


def test_slice_thickness_plays_no_part(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, setting(SliceThickness="3.2", SpacingBetweenSlices="99"))
    assert read_dicom_series(folder).volume.grid.spacing_mm[2] == 2.0


def test_signed_pixels_without_sign_extension_are_extended(tmp_path):
    folder = small_series(tmp_path / "s")

    def cut(dataset):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = np.frombuffer(dataset.PixelData, dtype="<u2") & 0x0FFF
        dataset.PixelData = stored.astype("<u2").tobytes()

    spoil_all(folder, cut)
    assert np.array_equal(read_dicom_series(folder).volume.data_cijk, ramp().data_cijk)


def _twelve_bit_unsigned(high_bits):
    def change(dataset):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
        stored = np.full(30, 100, dtype="<u2")
        stored[7] |= high_bits
        dataset.PixelData = stored.tobytes()

    return change


def test_unsigned_values_beyond_their_bits_are_refused(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, _twelve_bit_unsigned(0xF000))
    with pytest.raises(FormatError, match="values above 12 bits in file 1 in name order") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "dicom-pixels"


def test_an_overlay_in_spare_bits_is_cleared(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, _twelve_bit_unsigned(0x8000))
    spoil_all(folder, lambda dataset: dataset.add_new((0x6000, 0x0102), "US", 15))
    assert (read_dicom_series(folder).volume.data_cijk == 100).all()


def test_padding_beyond_the_bits_keeps_its_value_and_is_noted(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, _twelve_bit_unsigned(0xF000))
    spoil_all(folder, lambda dataset: dataset.add_new("PixelPaddingValue", "US", 0xF000 | 100))
    scan = read_dicom_series(folder)
    assert "the series declares a padding value; padding voxels keep it" in scan.notes
    assert sorted(np.unique(scan.volume.data_cijk)) == [100, 0xF000 | 100]


def test_a_high_bit_that_is_not_the_top_of_the_stored_bits_is_refused(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, setting(BitsStored=12, HighBit=15))
    with pytest.raises(FormatError, match="found 12 bits with the highest at 15 in file 1") as c:
        read_dicom_series(folder)
    assert c.value.code == "dicom-pixels"


def test_each_slice_has_its_own_rescaling(tmp_path):
    folder = small_series(tmp_path / "s", modality="CT")
    spoil(folder / "00002.dcm", setting(RescaleSlope="2", RescaleIntercept="-1000"))
    data = read_dicom_series(folder).volume.data_cijk
    expected = ramp().data_cijk.copy()
    expected[..., 1] = expected[..., 1] * 2 - 1000
    assert data.dtype == np.int16
    assert np.array_equal(data, expected)


def test_peculiarities_are_noted(tmp_path):
    folder = small_series(tmp_path / "s", modality="CT")

    def change(dataset):
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.LossyImageCompression = "01"
        del dataset.PatientBirthDate
        del dataset.SeriesInstanceUID

    spoil_all(folder, change)
    notes = " / ".join(read_dicom_series(folder).notes)
    assert "CT without rescale tags" in notes
    assert "MONOCHROME1 concerns display only" in notes
    assert "compressed with losses" in notes
    assert "no DICOM SEG can refer to this series: it lacks SeriesInstanceUID" in notes


def test_small_unevenness_and_lean_are_kept_and_noted(tmp_path):
    uneven = small_series(tmp_path / "uneven")
    spoil_all(uneven, shifting(lambda k: [0, 0, 0.05 if k == 1 else 0]))
    notes = read_dicom_series(uneven).notes
    assert "slice positions deviate by up to 0.050 mm from even spacing" in notes
    leaning = small_series(tmp_path / "leaning")
    spoil_all(leaning, shifting(lambda k: [0, 0.01 * k, 0]))
    scan = read_dicom_series(leaning)
    assert "the stack leans by 0.29 degrees; the affine carries it" in scan.notes
    assert scan.volume.grid.affine_ras[:3, 2] == pytest.approx([0, -0.01, 2])


def test_warnings_and_log_lines_of_pydicom_are_held_back(tmp_path, caplog):
    folder = small_series(tmp_path / "s")
    # 17 characters: more than a decimal string may have, but readable.
    spoil_all(
        folder,
        lambda d: d.add(pydicom.DataElement(0x00200032, "DS", d.ImagePositionPatient)),
    )
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"ANONYMOUS", b"DOE\x9f JOHN"))
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        read_dicom_series(folder)
    assert caught == []
    assert caplog.records == []
    assert logging.getLogger("pydicom").level != logging.CRITICAL + 1


# Refusals


def _remove(folder):
    (folder / "00003.dcm").unlink()


def _copy(folder):
    spoil(folder / "00002.dcm", setting(SOPInstanceUID=generate_uid()), folder / "again")


def _copy_all(folder):
    for path in sorted(folder.iterdir()):
        shutil.copy(path, folder / f"b{path.name}")


def _second_series(folder):
    (folder / "other").mkdir()
    tags = {"SeriesInstanceUID": generate_uid(), "SeriesNumber": 7}
    spoil(folder / "00001.dcm", setting(**tags, SeriesDescription="DOE JOHN"), folder / "other/1")


def _first(**tags):
    return lambda folder: spoil(folder / "00001.dcm", setting(**tags))


def _every(**tags):
    return lambda folder: spoil_all(folder, setting(**tags))


def _without(keyword):
    return lambda folder: spoil(folder / "00002.dcm", lambda d: delattr(d, keyword))


def _cut(size):
    def change(folder):
        whole = (folder / "00002.dcm").read_bytes()
        (folder / "00002.dcm").write_bytes(whole[:size])

    return change


def _shift(index_to_shift_mm):
    return lambda folder: spoil_all(folder, shifting(index_to_shift_mm))


def _not_a_number(folder):
    path = folder / "00001.dcm"
    content = path.read_bytes()
    assert content.count(b"1.25\\1.5") == 1
    path.write_bytes(content.replace(b"1.25\\1.5", b"one\\five"))


REFUSALS = {
    "series-ambiguous": (
        _second_series,
        r"expected one series, found 2 series: 1: MR of 4 images \(series 1\); "
        r"2: MR of 1 image \(series 7\); choose one with --series",
    ),
    "dicom-multiframe": (_first(NumberOfFrames=3), "an enhanced or multi-frame object of 3 frames"),
    "dicom-mosaic": (_every(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "found a Siemens mosaic"),
    "dicom-colour": (_every(PhotometricInterpretation="PALETTE COLOR"), "a colour image"),
    "dicom-modality": (_every(Modality="US"), "a CT, MR or PET series, found modality US"),
    "dicom-lookup-table": (
        _first(ModalityLUTSequence=[]),
        "found a lookup table in file 1 in name order",
    ),
    "slice-gap": (_remove, "apart, as most of them are, found a gap of 4.000 mm between"),
    "slice-duplicate": (_copy, "found 2 slices at position 2 of 4"),
    "series-4d": (_copy_all, r"found 2 slices at each of 4 positions \(a 4-D series\)"),
    "slice-tilt": (_shift(lambda k: [0, 4 * k, 0]), r"a stack that leans by 63\.43 degrees; sep"),
    "slice-shift": (
        _shift(lambda k: [3 if k == 1 else 0, 0, 0]),
        "position 2 of 4 shifted sideways by 3.000 mm",
    ),
    "slice-orientation": (
        _first(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        "found 3 of 4 slices turned against the others",
    ),
    "slice-shape": (_first(Rows=3), "found 2 different ones .columns x rows.: 6 x 3, 6 x 5"),
    "slice-frame": (_first(FrameOfReferenceUID="1.2.3"), "found 2 of them, whose positions cannot"),
    "dicom-unreadable": (_cut(140), "found file 2 in name order cut off or damaged in its header"),
    "dicom-pixels": (_cut(-20), "found pixel data of file 2 in name order that cannot be decoded"),
}


@pytest.mark.parametrize(("code", "case"), REFUSALS.items(), ids=list(REFUSALS))
def test_what_cannot_be_read_rightly_is_refused_with_its_own_code(tmp_path, code, case):
    change, words = case
    folder = small_series(tmp_path / "s")
    change(folder)
    with pytest.raises((FormatError, GeometryError), match=words) as caught:
        read_dicom_series(folder)
    assert caught.value.code == code
    assert caught.value.where == str(folder)
    assert isinstance(caught.value, GeometryError) == (code.startswith("slice") or "4d" in code)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (_without("ImageOrientationPatient"), "dicom-tag-missing", r"ImageOrientationPatient \(00"),
        (_without("ImagePositionPatient"), "dicom-tag-missing", r"Position.* file 2 in name order"),
        (_without("PixelSpacing"), "dicom-tag-missing", r"PixelSpacing \(0028,0030\) in every"),
        (_without("PixelData"), "dicom-pixels", "found no pixel data in file 2 in name order"),
        (_without("Rows"), "dicom-tag-missing", r"the tag Rows \(0028,0010\)"),
        (_first(PixelSpacing=[0, 1]), "dicom-tag-invalid", "two positive numbers in PixelSpacing"),
        (_first(PixelSpacing="1"), "dicom-tag-invalid", "2 finite numbers .* found 1 in file 1"),
        (_first(PixelSpacing=[1.3, 1.5]), "slice-shape", "put the far edge 0.300 mm apart"),
        (_first(Rows=0), "dicom-tag-invalid", "a matrix of at least one pixel in Rows"),
        (
            _first(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
            "dicom-tag-invalid",
            "two unit vectors at right angles in ImageOrientationPatient",
        ),
        (
            _first(RescaleSlope="0"),
            "dicom-tag-invalid",
            r"RescaleSlope \(0028,1053\) that is not z",
        ),
        (_not_a_number, "dicom-tag-invalid", "2 numbers in PixelSpacing .* something else in file"),
        (_every(BitsAllocated=8), "dicom-pixels", "pixel"),
        (_every(SamplesPerPixel=3), "dicom-colour", "3 samples per pixel"),
    ],
)
def test_missing_and_impossible_tags_are_named(tmp_path, change, code, words):
    folder = small_series(tmp_path / "s")
    change(folder)
    with pytest.raises((FormatError, GeometryError), match=words) as caught:
        read_dicom_series(folder)
    assert caught.value.code == code


def test_many_series_are_not_all_listed(tmp_path):
    folder = small_series(tmp_path / "s", Grid((2, 2, 11), np.eye(4)))
    spoil_all(folder, lambda d: setattr(d, "SeriesInstanceUID", generate_uid()))
    with pytest.raises(FormatError, match=r"found 11 series: .* and 3 more; choose one"):
        read_dicom_series(folder)


def test_pixels_of_another_layout_are_refused(tmp_path):
    folder = small_series(tmp_path / "s")

    def to_float(dataset):
        values = np.zeros(30, dtype="<f4")
        del dataset.PixelData
        dataset.FloatPixelData = values.tobytes()

    spoil_all(folder, to_float)
    with pytest.raises(FormatError, match="found no pixel data in file 1") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "dicom-pixels"


@pytest.mark.parametrize("tag", ["SpacingBetweenSlices", "SliceThickness", None])
def test_one_slice_takes_its_extent_from_a_tag_or_is_refused(tmp_path, tag):
    folder = small_series(tmp_path / "s", Grid((6, 5, 1), np.diag([-1.0, -1.0, 3.5, 1.0])))
    for keyword in {"SpacingBetweenSlices", "SliceThickness"} - {tag}:
        spoil_all(folder, lambda d, keyword=keyword: delattr(d, keyword))
    if tag:
        scan = read_dicom_series(folder)
        assert scan.volume.grid.spacing_mm[2] == 3.5
        assert any(tag in note for note in scan.notes)
    else:
        with pytest.raises(FormatError, match="of a lone slice, found neither; give") as caught:
            read_dicom_series(folder)
        assert caught.value.code == "dicom-tag-missing"


def test_folders_without_a_series_are_refused(tmp_path):
    with pytest.raises(FormatError, match="found nothing of that name") as caught:
        read_dicom_series(tmp_path / "absent")
    assert caught.value.code == "file-missing"
    with pytest.raises(
        FormatError, match="no DICOM image among 0 files; give the folder"
    ) as caught:
        read_dicom_series(tmp_path)
    assert caught.value.code == "no-images"
    (tmp_path / "note").write_text("nothing")
    with pytest.raises(FormatError, match="no DICOM image among 1 file;"):
        read_dicom_series(tmp_path)
    with pytest.raises(FormatError, match=r"expected a folder .* found a file; give") as caught:
        read_dicom_series(tmp_path / "note")
    assert caught.value.code == "not-a-folder"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_is_a_resource_error(tmp_path):
    folder = small_series(tmp_path / "s")
    # The first page of a process is mapped nowhere, so that reading it is an I/O error.
    (folder / "disk").symlink_to("/proc/self/mem")
    with pytest.raises(ResourceError, match="found file 5 in name order: Input/output") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "input-unreadable"


def test_no_tag_value_that_may_identify_enters_a_message(tmp_path):
    secret = {"PatientName": "DOE^JOHN", "PatientID": "4711", "SeriesDescription": "DOE JOHN"}
    messages = []
    for number, (change, _) in enumerate(REFUSALS.values()):
        folder = small_series(tmp_path / f"s{number}")
        spoil_all(folder, setting(**secret))
        uids = {
            str(getattr(pydicom.dcmread(path, stop_before_pixels=True), keyword))
            for path, keyword in itertools.product(
                folder.iterdir(), ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
            )
        }
        change(folder)
        with pytest.raises(MedsegError) as caught:
            read_dicom_series(folder)
        messages.append(str(caught.value).replace(str(tmp_path), ""))
        assert not any(uid in messages[-1] for uid in uids)
    assert not any(word in text for text in messages for word in ("DOE", "JOHN", "4711"))
