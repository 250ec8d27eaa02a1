import copy
import shutil
import stat
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medseg.core import Grid
from medseg.errors import FormatError, MedsegError
from medseg.io import dicom_files
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_series import read_dicom_series, read_stack
from medseg.io.dicom_study import read_study
from medseg.io.fingerprint import input_files
from medseg.io.reading import read_image
from tests.dicom_variants import (
    enhanced,
    on_a_disc,
    setting,
    several_volumes,
    shifted,
    tilted_series,
    zipped,
)
from tests.series import AXIAL, ramp, small_series, spoil, spoil_all

# Where the files lie


@pytest.mark.parametrize("form", ["zip", "disc", "nested"])
def test_a_study_reads_the_same_from_a_zip_a_disc_and_nested_folders(tmp_path, form):
    folder = small_series(tmp_path / "s", Grid((6, 5, 20), AXIAL.affine_ras))
    plain = read_dicom_series(folder)
    if form == "zip":
        path = zipped(folder, tmp_path / "study.ZIP")
    elif form == "disc":
        path = on_a_disc(folder, tmp_path / "disc")
        (path.parent / "stray").write_bytes(b"not listed")
    else:
        path = tmp_path / "deep"
        for number, file in enumerate(sorted(folder.iterdir())):
            target = path / str(number % 3) / f"{number}"
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    for scan in (read_dicom_series(path, threads=5), read_image(path)):
        assert scan.volume.grid == plain.volume.grid
        assert np.array_equal(scan.volume.data_cijk, plain.volume.data_cijk)
        assert scan.source.folder == path
        assert len(scan.source.datasets) == 20


def _entry(name, content=b"x", **attributes):
    entry = zipfile.ZipInfo(name)
    for key, value in attributes.items():
        setattr(entry, key, value)
    return entry, content


BAD_ZIPS = {
    "zip-path": (_entry("../1"), "files within the zip, found file 1 in name order leads"),
    "zip-link": (
        _entry("a", external_attr=(stat.S_IFLNK | 0o777) << 16),
        "plain files, found file 1 in name order is a link",
    ),
    "zip-method": (
        _entry("a", bytes(100), compress_type=zipfile.ZIP_LZMA),
        "files stored or deflated, found file 1 in name order packed by method 14",
    ),
    "zip-ratio": (
        _entry("a", bytes(3 << 20), compress_type=zipfile.ZIP_DEFLATED),
        "at most 200 times the size, found file 1 in name order unpacks to more",
    ),
}


@pytest.mark.parametrize(("code", "case"), BAD_ZIPS.items(), ids=list(BAD_ZIPS))
def test_dangerous_zips_are_refused_before_one_entry_is_read(tmp_path, code, case):
    (entry, content), words = case
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, content)
    with pytest.raises(FormatError, match=words) as caught:
        read_study(tmp_path / "a.zip")
    assert caught.value.code == code


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """Each entry is within the limits; a hundred of them are one and the same."""
    path = tmp_path / "a.zip"
    content = np.random.default_rng(0).integers(0, 2, 3 << 20).astype(np.uint8).tobytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1", content)
        for number in range(400):
            twin = copy.copy(archive.filelist[0])
            twin.filename = f"{number:03d}"
            archive.filelist.append(twin)
    with pytest.raises(FormatError, match="at most 200 times the size, found 1203 MiB") as caught:
        read_study(path)
    assert caught.value.code == "zip-ratio"


@pytest.mark.parametrize("name", ["/etc/1", "C:\\1", "a\\..\\..\\1"])
def test_absolute_and_foreign_paths_in_a_zip_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(FormatError) as caught:
        read_study(tmp_path / "a.zip")
    assert caught.value.code == "zip-path"


def test_zips_with_passwords_too_much_in_them_or_damage_are_refused(tmp_path, monkeypatch):
    path = zipped(small_series(tmp_path / "s"), tmp_path / "a.zip")
    whole = path.read_bytes()

    def code(content=whole):
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            read_dicom_series(path)
        return caught.value.code

    local, central = whole.index(b"PK\3\4"), whole.index(b"PK\1\2")
    locked = bytearray(whole)
    locked[local + 6] |= 1
    locked[central + 8] |= 1
    assert code(bytes(locked)) == "zip-encrypted"
    assert code(whole[: len(whole) // 2]) == "zip-damaged"
    assert code(whole[:200] + b"\xff" * 60 + whole[260:]) == "zip-damaged"
    monkeypatch.setattr(dicom_files, "MOST_FILES", 3)
    assert code() == "zip-files"
    monkeypatch.setattr(dicom_files, "MOST_FILES", 4)
    monkeypatch.setattr(dicom_files, "MOST_BYTES", 1000)
    assert code() == "zip-size"


def test_a_deflated_file_that_swells_beyond_reason_is_not_unpacked(tmp_path):
    folder = small_series(tmp_path / "s")

    def deflate(dataset):
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    spoil_all(folder, deflate)
    assert np.array_equal(read_dicom_series(folder).volume.data_cijk, ramp().data_cijk)
    whole = (folder / "00002.dcm").read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
    (folder / "00002.dcm").write_bytes(whole[:start] + bomb)
    with pytest.raises(FormatError, match="file 2 in name order cut off or damaged") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "dicom-unreadable"


def test_a_dicomdir_that_leads_nowhere_or_elsewhere_is_refused(tmp_path):
    directory = on_a_disc(small_series(tmp_path / "s"), tmp_path / "disc")

    def code():
        with pytest.raises(FormatError) as caught:
            read_study(directory)
        return caught.value.code

    whole = directory.read_bytes()
    images = [path for path in directory.parent.rglob("*") if path.is_file() and path != directory]
    lower = images[0].with_name(images[0].name.lower())
    images[0].rename(lower)
    assert len(read_study(directory).stacks[0].frames) == 4
    lower.unlink()
    assert code() == "dicomdir-incomplete"
    with quiet_dicom():
        changed = pydicom.dcmread(directory)
        for record in changed.DirectoryRecordSequence:
            if "ReferencedFileID" in record:
                record.ReferencedFileID = ["..", "s", "00001.dcm"]
        changed.save_as(directory)
    assert code() == "dicomdir-path"
    directory.write_bytes(whole[: len(whole) // 2])
    assert code() == "dicomdir-damaged"
    directory.write_bytes((tmp_path / "s" / "00001.dcm").read_bytes())
    assert code() == "dicomdir-damaged"


def test_another_single_file_is_no_study(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(FormatError, match="found a file; give the folder") as caught:
        read_study(tmp_path / "a.dcm")
    assert caught.value.code == "not-a-folder"


def test_an_unreadable_file_is_counted_and_stops_the_reading(tmp_path):
    folder = small_series(tmp_path / "s")
    (folder / "zz").write_bytes((folder / "00001.dcm").read_bytes()[:150])
    study = read_study(folder)
    assert [error.code for error in study.unreadable] == ["dicom-unreadable"]
    assert study.stacks[0].problem is None
    with pytest.raises(FormatError, match="file 5 in name order cut off"):
        read_dicom_series(folder, series="1")


# What sets volumes of one series apart


def _private(group, creator, element, kind, value):
    def change(dataset):
        dataset.add_new((group, 0x0010), "LO", creator)
        dataset.add_new((group, element), kind, value)

    return change


SPLITS = {
    "echo time 10 ms": [setting(EchoTime=10), setting(EchoTime=20)],
    "inversion time none": [setting(), setting(InversionTime=900)],
    "b-value 0 s/mm2": [setting(DiffusionBValue=b) for b in (0.0, 500.0, 1000.0)],
    "b-value 50 s/mm2": [
        _private(0x0019, "SIEMENS MR HEADER", 0x100C, "IS", b) for b in ("50", "800")
    ],
    "b-value 100 s/mm2": [
        _private(0x0043, "GEMS_PARM_01", 0x1039, "IS", [1000000000 + b, 8, 0, 0])
        for b in (100, 700)
    ],
    "b-value 300 s/mm2": [
        _private(0x2001, "Philips Imaging DD 001", 0x1003, "FL", b) for b in (300.0, 600.0)
    ],
    "gradient direction (0.00, 1.00, 0.00)": [
        setting(DiffusionBValue=1000.0, DiffusionGradientOrientation=g)
        for g in ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    ],
    "time point 1": [setting(TemporalPositionIdentifier=n) for n in (1, 2, 3)],
    "trigger time 0 ms": [setting(TriggerTime=t) for t in (0, 40, 80)],
    "acquisition 3": [setting(AcquisitionNumber=n) for n in (3, 4)],
    "image type ORIGINAL\\PRIMARY\\M": [
        setting(ImageType=["ORIGINAL", "PRIMARY", kind]) for kind in ("M", "P")
    ],
    "flip angle 5 degrees": [setting(FlipAngle=a) for a in (5, 15)],
}


@pytest.mark.parametrize(("words", "changes"), SPLITS.items(), ids=list(SPLITS))
def test_volumes_of_one_series_are_told_apart(tmp_path, words, changes):
    folder = several_volumes(tmp_path / "s", changes)
    study = read_study(folder)
    assert len(study.stacks) == len(changes)
    assert study.stacks[0].split.words == (words,)
    assert words in study.stacks[0].words()
    for number, stack in enumerate(study.stacks):
        assert stack.siblings == len(changes)
        scan = read_stack(stack, study)
        assert np.array_equal(scan.volume.data_cijk, ramp().data_cijk + 1000 * number)
        assert f"one of {len(changes)} volumes of its series was read" in scan.notes
        again = read_dicom_series(folder, series=str(number + 1))
        assert np.array_equal(again.volume.data_cijk, scan.volume.data_cijk)
    with pytest.raises(MedsegError, match="a 4-D series") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "series-4d"


def test_directions_within_a_b_value_are_told_apart(tmp_path):
    changes = [setting(DiffusionBValue=0.0)] + [
        setting(DiffusionBValue=700.0, DiffusionGradientOrientation=g)
        for g in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    ]
    stacks = read_study(several_volumes(tmp_path / "s", changes)).stacks
    assert [stack.images for stack in stacks] == [4, 4, 4]
    assert [stack.b_value for stack in stacks] == [0.0, 700.0, 700.0]
    assert stacks[1].split.words == (
        "b-value 700 s/mm2",
        "gradient direction (0.00, 1.00, 0.00)",
    )


def test_trigger_times_that_drift_from_slice_to_slice_order_the_phases(tmp_path):
    def at(phase):
        def change(dataset):
            dataset.TriggerTime = 40 * phase + 0.5 * (int(dataset.InstanceNumber) % 100)

        return change

    study = read_study(several_volumes(tmp_path / "s", [at(phase) for phase in range(3)]))
    assert [stack.split.words for stack in study.stacks] == [
        (f"time point {n} of 3",) for n in (1, 2, 3)
    ]
    for number, stack in enumerate(study.stacks):
        data = read_stack(stack, study).volume.data_cijk
        assert np.array_equal(data, ramp().data_cijk + 1000 * number)


def test_a_property_that_varies_along_the_stack_does_not_split_it(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, lambda d: setattr(d, "EchoTime", 10 + int(d.InstanceNumber) % 2))
    (stack,) = read_study(folder).stacks
    assert stack.images == 4
    assert stack.split.words == ()


def test_nothing_that_tells_apart_is_made_up(tmp_path):
    folder = several_volumes(tmp_path / "s", [setting(), setting()])
    (stack,) = read_study(folder).stacks
    assert stack.problem is not None
    assert stack.problem.code == "series-4d"


def test_the_planes_of_a_localizer_are_stacks_of_their_own(tmp_path):
    folder = small_series(tmp_path / "s")
    for path in sorted(folder.iterdir())[2:]:
        spoil(path, setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]))
    spoil_all(folder, setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    first, second = read_study(folder).stacks
    assert (first.orientation, second.orientation) == ("axial", "sagittal")
    assert first.split.words == ("orientation 1 of 2",)
    assert first.is_localizer
    assert second.is_localizer


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": 3}, "matrix 1 of 2"),
        ({"PixelSpacing": [1.3, 1.5]}, "pixel spacing 1 of 2"),
        ({"FrameOfReferenceUID": "1.2.3"}, "frame of reference 1 of 2"),
    ],
)
def test_slices_that_cannot_be_stacked_are_separated(tmp_path, tags, words):
    folder = small_series(tmp_path / "s")
    spoil(folder / "00004.dcm", setting(**tags))
    stacks = read_study(folder).stacks
    assert [stack.images for stack in stacks] == [3, 1]
    assert stacks[0].split.words == (words,)


def test_one_damaged_slice_is_a_problem_of_every_volume_of_its_series(tmp_path):
    folder = several_volumes(tmp_path / "s", [setting(EchoTime=10), setting(EchoTime=20)])
    spoil(folder / "v1_00002.dcm", lambda dataset: delattr(dataset, "ImagePositionPatient"))
    study = read_study(folder)
    assert [stack.problem.code for stack in study.stacks] == ["dicom-tag-missing"] * 2
    with pytest.raises(FormatError, match="ImagePositionPatient"):
        read_dicom_series(folder, series="1")


# What a stack tells of itself


def test_what_is_needed_to_choose_is_read_from_headers(tmp_path):
    folder = small_series(tmp_path / "s")
    tags = {
        "SeriesDescription": "t1 tse DOE tra 4711",
        "PatientName": "Doe^John",
        "PatientID": "4711",
        "BodyPartExamined": "BRAIN",
        "ContrastBolusAgent": "Gadovist",
        "SliceThickness": "1.5",
        "EchoTime": "12",
        "ProtocolName": "head John",
    }
    spoil_all(folder, setting(**tags))
    (stack,) = read_study(folder).stacks
    assert stack.description == "t1 tse ... tra ..."
    assert stack.protocol == "head ..."
    assert (stack.modality, stack.series_number, stack.images) == ("MR", 1, 4)
    assert (stack.body_part, stack.contrast, stack.thickness_mm) == ("BRAIN", True, 1.5)
    assert (stack.matrix, stack.echo_ms, stack.b_value) == ((6, 5), 12.0, None)
    assert stack.spacing_mm == pytest.approx((1.5, 1.25, 2.0))
    assert stack.grid == read_stack(stack, read_study(folder)).volume.grid
    spoil_all(folder, setting(ContrastBolusAgent="NONE"))
    assert not read_study(folder).stacks[0].contrast


# Multi-frame objects


def test_an_enhanced_object_gives_each_frame_its_place_and_its_rescaling(tmp_path):
    folder = small_series(tmp_path / "s")
    (tmp_path / "e").mkdir()
    enhanced(folder, tmp_path / "e" / "1")
    scan = read_dicom_series(tmp_path / "e")
    assert scan.volume.grid == read_dicom_series(folder).volume.grid
    slopes = np.array([4, 3, 2, 1])
    assert np.array_equal(scan.volume.data_cijk, ramp().data_cijk * slopes - (slopes - 1))
    assert scan.source.frame_numbers == (4, 3, 2, 1)
    heights = [float(header.ImagePositionPatient[2]) for header in scan.source.datasets]
    assert heights == [0.0, 2.0, 4.0, 6.0]
    assert all("NumberOfFrames" not in header for header in scan.source.datasets)


def test_frames_of_several_echoes_are_volumes_of_their_own(tmp_path):
    folder = small_series(tmp_path / "s")
    (tmp_path / "e").mkdir()
    for number in range(2):
        whole = enhanced(folder, tmp_path / "e" / f"{number}", "1.2.3.4")
        for frame in whole.PerFrameFunctionalGroupsSequence:
            echo = Dataset()
            echo.EffectiveEchoTime = 10.0 * (number + 1)
            frame.MREchoSequence = [echo]
        whole.save_as(tmp_path / "e" / f"{number}")
    stacks = read_study(tmp_path / "e").stacks
    assert [stack.split.words for stack in stacks] == [
        ("echo time 10 ms",),
        ("echo time 20 ms",),
    ]


@pytest.mark.parametrize("change", ["too few", "none", "without place"])
def test_frames_of_which_nothing_says_where_they_lie_are_refused(tmp_path, change):
    folder = small_series(tmp_path / "s")
    (tmp_path / "e").mkdir()
    whole = enhanced(folder, tmp_path / "e" / "1")
    if change == "too few":
        del whole.PerFrameFunctionalGroupsSequence[-1]
    elif change == "none":
        del whole.PerFrameFunctionalGroupsSequence, whole.SharedFunctionalGroupsSequence
    else:
        del whole.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    whole.save_as(tmp_path / "e" / "1")
    words, code = {
        "too few": ("functional groups for each of 4 frames .* found 3", "dicom-multiframe"),
        "none": ("object of 4 frames without them", "dicom-multiframe"),
        "without place": ("found frame 3 of file 1 in name order without it", "dicom-tag-missing"),
    }[change]
    with pytest.raises(FormatError, match=words) as caught:
        read_dicom_series(tmp_path / "e")
    assert caught.value.code == code


# Tilt and gaps


def test_a_tilted_stack_keeps_its_shear_and_every_voxel_its_place(tmp_path):
    folder = tilted_series(tmp_path / "s", AXIAL, (0, 0.7, 0))
    scan = read_dicom_series(folder)
    assert scan.volume.grid.affine_ras[:3, 2] == pytest.approx([0, -0.7, 2])
    assert any("leans by 19.29 degrees (gantry tilt)" in note for note in scan.notes)
    assert np.array_equal(scan.volume.data_cijk, ramp().data_cijk)


def test_a_missing_slice_is_made_up_only_if_allowed(tmp_path):
    grid = Grid((6, 5, 7), AXIAL.affine_ras)
    folder = small_series(tmp_path / "s", grid)
    (folder / "00003.dcm").unlink()
    study = read_study(folder)
    assert study.stacks[0].problem.code == "slice-gap"
    scan = read_dicom_series(folder, allow_gaps=True)
    whole = ramp(grid).data_cijk
    assert scan.volume.grid.distance_mm(grid) < 1e-6
    made = np.rint((whole[..., 1].astype(float) + whole[..., 3]) / 2)
    assert np.array_equal(scan.volume.data_cijk[..., 2], made)
    others = [0, 1, 3, 4, 5, 6]
    assert np.array_equal(scan.volume.data_cijk[..., others], whole[..., others])
    assert scan.source.made_up_k == {2}
    heights = [float(header.ImagePositionPatient[2]) for header in scan.source.datasets]
    assert heights == pytest.approx([0, 2, 4, 6, 8, 10, 12])
    assert any("6 slices that are not evenly apart" in note for note in scan.notes)


def test_slices_between_the_places_of_the_lattice_are_interpolated(tmp_path):
    grid = Grid((3, 3, 5), np.diag([-1.0, -1.0, 2.0, 1.0]))
    folder = small_series(tmp_path / "s", grid)
    # 0, 2, 4, 7 and 8 mm: what lies at 7 is between the places 6 and 8
    spoil_all(folder, shifted(lambda k: [0, 0, {3: 1.0}.get(k, 0.0)]))
    scan = read_dicom_series(folder, allow_gaps=True)
    whole = ramp(grid).data_cijk.astype(float)
    assert scan.source.made_up_k == {3}
    expected = np.rint(whole[..., 2] / 3 + whole[..., 3] * 2 / 3)
    assert np.array_equal(scan.volume.data_cijk[..., 3], expected)


def test_a_hole_that_is_mostly_missing_is_not_filled(tmp_path):
    folder = small_series(tmp_path / "s")
    spoil_all(folder, shifted(lambda k: [0, 0, 500.0 if k == 3 else 0.0]))
    with pytest.raises(MedsegError, match="gaps that 10 times as many slices can fill") as caught:
        read_dicom_series(folder, allow_gaps=True)
    assert caught.value.code == "slice-gap"


def test_a_copy_of_a_disc_without_some_of_its_files_is_refused_as_a_folder_too(tmp_path):
    disc = on_a_disc(small_series(tmp_path / "s"), tmp_path / "disc").parent
    files = sorted(file for file in disc.rglob("*") if file.is_file() and file.name != "DICOMDIR")
    assert read_dicom_series(disc).volume.grid.shape_ijk[2] == len(files)
    files[-1].unlink()  # at an end, where no gap tells
    with pytest.raises(FormatError, match="found 1 of 4 that are absent; copy the whole disc") as e:
        read_dicom_series(disc)
    assert e.value.code == "dicomdir-incomplete"
    moved = disc / "elsewhere"
    moved.mkdir()
    for file in files[:-1]:
        file.rename(moved / file.name)
    assert read_dicom_series(disc).volume.grid.shape_ijk[2] == 3, "of another copy altogether"


def test_a_slice_that_is_cut_off_in_its_header_is_no_series_of_its_own(tmp_path):
    folder = small_series(tmp_path / "s")
    path = sorted(folder.iterdir())[2]
    content = path.read_bytes()
    seen = set()
    for length in range(400, len(content) - 240, 24):
        path.write_bytes(content[:length])
        with pytest.raises(MedsegError) as caught:
            read_dicom_series(folder)
        seen.add(caught.value.code)
    assert "series-ambiguous" not in seen
    assert "dicom-unreadable" in seen


@pytest.mark.parametrize("ending", [".dcm", "", ".17"])
@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("empty", "found file 4 in name order without content"),
        ("zeros", "found file 4 in name order without content"),
        ("beginning", "found file 4 in name order cut off"),
        ("nowhere", "found file 4 in name order, a link that leads nowhere"),
    ],
)
def test_a_last_slice_whose_content_was_lost_is_missed(tmp_path, ending, lost, words):
    # nothing else tells of it: the slices before it are a whole, shorter volume
    folder = small_series(tmp_path / "s")
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"{path.stem}{ending}")
    last = folder / f"00004{ending}"
    size = last.stat().st_size
    last.unlink()
    if lost == "nowhere":
        last.symlink_to(tmp_path / "absent")
    else:
        last.write_bytes({"empty": b"", "zeros": bytes(size), "beginning": b"\x01" * 100}[lost])
    study = read_study(folder)
    assert [error.code for error in study.unreadable] == ["dicom-unreadable"]
    with pytest.raises(FormatError, match=words) as caught:
        read_dicom_series(folder)
    assert caught.value.code == "dicom-unreadable"


def test_a_page_that_was_saved_as_a_slice_is_refused(tmp_path):
    folder = small_series(tmp_path / "s")
    (folder / "00004.dcm").write_text("<html>502 Bad Gateway</html>" * 9)
    with pytest.raises(
        FormatError, match="file 4 in name order, called DICOM, with other content; copy the series"
    ):
        read_dicom_series(folder)


def test_empty_files_that_are_called_otherwise_than_the_slices_do_not_matter(tmp_path):
    folder = small_series(tmp_path / "s")
    (folder / "complete.flag").touch()
    (folder / ".00005.dcm").touch()
    (folder / "deep").mkdir()
    (folder / "deep" / "00005").touch()
    study = read_study(folder)
    assert not study.unreadable
    assert [stack.images for stack in study.stacks] == [4]


def test_links_are_followed_to_slices_once_and_never_in_a_circle(tmp_path):
    real = small_series(tmp_path / "real")
    study = tmp_path / "study"
    study.mkdir()
    (study / "series").symlink_to(real)
    (study / "again").symlink_to(real)
    (study / "itself").symlink_to(study)
    (study / "above").symlink_to(tmp_path)
    (real / "back").symlink_to(study)
    assert [stack.images for stack in read_study(study).stacks] == [4]
    assert len(input_files(study)) == 4  # and what is read is what the fingerprint covers
    assert [stack.images for stack in read_study(real).stacks] == [4]


def test_hidden_files_and_folders_are_neither_read_nor_in_the_fingerprint(tmp_path):
    folder = small_series(tmp_path / "s")
    small_series(folder / ".snapshot")
    shutil.copy(folder / "00001.dcm", folder / ".00001.dcm.Xy7")
    assert [stack.images for stack in read_study(folder).stacks] == [4]
    assert len(input_files(folder)) == 4
