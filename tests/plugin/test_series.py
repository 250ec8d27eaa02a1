import gc
import shutil
import zipfile

import numpy as np
import pydicom
import pytest

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import FormatError, MedsegError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import Algorithm, read_seg, write_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.rtstruct import write_rtstruct
from medseg_napari._origin import origin_of
from medseg_napari._reader import get_reader, read_layers
from medseg_napari._series import default_choice, look_into, open_entries, thumbnail_of
from medseg_napari._writer import write_labels
from tests.plugin.sources import noise_volume, oblique_grid
from tests.series import spoil_all

SCHEME = LabelScheme.plain("organs", {1: "liver", 2: "spleen"})
MODEL = Algorithm("medseg liver", "2")
TYPES = {1: "AUTOMATIC", 2: "MANUAL"}


@pytest.fixture(autouse=True)
def nothing_open():
    """Images of other tests must not lend their series."""
    gc.collect()


@pytest.fixture
def study(tmp_path):
    """Two series of one study."""
    root = tmp_path / "study"
    root.mkdir()
    for number, (name, shape) in enumerate({"T1 sag": (12, 11, 10), "T2": (9, 9, 6)}.items(), 1):
        folder = root / f"s{number}"
        write_dicom_series(
            noise_volume(oblique_grid(shape)), folder, modality="MR", series_number=number
        )
        spoil_all(folder, lambda header, name=name: setattr(header, "SeriesDescription", name))
    return root


def labels_on(scan):
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[1:5, 1:5, 1:4], data[6:9, 5:8, 3:6] = 1, 2
    return LabelMap(data, scan.volume.grid, SCHEME)


def write_objects(series, folder):
    """A SEG and an RT structure set of the same labels; the labels."""
    scan = read_dicom_series(series)
    labels = labels_on(scan)
    write_seg(labels, folder / "seg.dcm", scan.source, algorithm=MODEL, algorithm_type=TYPES)
    write_rtstruct(labels, folder / "rt.dcm", scan.source, algorithm=MODEL, algorithm_type=TYPES)
    return labels


def test_a_study_is_listed_with_what_tells_its_series_apart(study):
    contents = look_into(study)
    assert [entry.title for entry in contents.series] == ["1: MR T1 sag", "2: MR T2"]
    assert "12 x 11 x 10 voxels, 0.9 x 1.1 x 2.5 mm" in contents.series[0].details
    assert all(entry.is_readable for entry in contents.series)
    assert thumbnail_of(contents.series[0], contents).shape == (96, 86)
    assert default_choice(contents) == contents.series


def test_a_series_that_cannot_be_read_says_why_and_is_not_chosen(study):
    (study / "s1" / "00004.dcm").unlink()
    contents = look_into(study)
    assert contents.series[0].details.startswith("cannot be read: ")
    assert default_choice(contents) == contents.series[1:]
    with pytest.raises(MedsegError):
        open_entries(contents.series[:1], contents, "study")


def test_localizers_are_left_out_where_nobody_can_be_asked(study):
    spoil_all(study / "s2", lambda h: setattr(h, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    contents = look_into(study)
    assert "localizer" in contents.series[1].details
    assert default_choice(contents) == contents.series[:1]


def test_without_a_window_every_series_is_opened(study):
    layers = read_layers(str(study))
    assert [settings["name"] for _, settings, _ in layers] == ["1: MR T1 sag", "2: MR T2"]


def test_a_zip_opens_like_the_folder_in_it(study, tmp_path):
    shutil.make_archive(str(tmp_path / "case"), "zip", study / "s1")
    path = str(tmp_path / "case.zip")
    assert get_reader(path) is read_layers
    [(data, settings, _)] = read_layers(path)
    assert settings["name"] == "case"
    np.testing.assert_array_equal(data, read_layers(str(study / "s1"))[0][0])


def test_a_zip_without_dicom_is_told_of_by_a_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    for name, words in (("notes.zip", "no DICOM image"), ("broken.zip", "a whole zip file")):
        with pytest.raises(FormatError, match=words):
            get_reader(str(tmp_path / name))(str(tmp_path / name))
    assert get_reader(str(tmp_path / "gone.zip")) is None


def test_structures_are_named_where_the_file_does_not_say_how_they_came_about(study):
    write_objects(study / "s1", study)
    (study / "seg.dcm").unlink()
    header = pydicom.dcmread(study / "rt.dcm")
    for number, roi in enumerate(header.StructureSetROISequence):
        roi.ROIGenerationAlgorithm = ""
        roi.ROIName = f"roi {number}"
    header.StructureSetROISequence.extend(
        pydicom.Dataset() for _ in range(7 - len(header.StructureSetROISequence))
    )
    for roi in header.StructureSetROISequence:
        roi.ROIName = roi.get("ROIName", "more")
    header.save_as(study / "rt.dcm")
    [entry] = look_into(study).labels
    assert "roi 0, roi 1" in entry.details
    assert entry.details.endswith(", 1 more")


def test_segmentations_of_a_folder_are_listed_with_their_series(study):
    labels = write_objects(study / "s1", study)
    contents = look_into(study)
    assert [entry.title for entry in contents.labels] == ["RTSTRUCT rt.dcm", "SEG seg.dcm"]
    assert all(entry.on is contents.series[0] for entry in contents.labels)
    on = f"on {contents.series[0].title}: "
    for entry in contents.labels:
        assert entry.details == on + ", ".join(one.name for one in labels.scheme.labels)
    layers = open_entries(contents.labels[1:], contents, "study")
    assert [kind for *_, kind in layers] == ["image", "labels"]
    data, settings, _ = layers[1]
    np.testing.assert_array_equal(origin_of(settings).original_array(data), labels.data_ijk)


@pytest.mark.parametrize("name", ["seg.dcm", "rt.dcm"])
def test_labels_bring_the_series_they_were_drawn_on(study, name):
    labels = write_objects(study / "s1", study)
    assert get_reader(str(study / name)) is read_layers
    (image, _, kind), (data, settings, labels_kind) = read_layers(str(study / name))
    assert (kind, labels_kind, image.shape) == ("image", "labels", data.shape)
    origin = origin_of(settings)
    np.testing.assert_array_equal(origin.original_array(data), labels.data_ijk)
    assert [label.name for label in origin.scheme.labels] == ["liver", "spleen"]
    assert [origin.beginning.type_of(value) for value in (1, 2)] == ["AUTOMATIC", "MANUAL"]
    assert origin.beginning.algorithm == (("medseg liver", "2") if name == "seg.dcm" else None)


def test_labels_take_the_series_that_is_open_wherever_they_lie(study, tmp_path):
    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    write_objects(study / "s1", elsewhere)
    image = read_layers(str(study / "s1"))
    [(data, settings, kind)] = read_layers(str(elsewhere / "seg.dcm"))
    assert (kind, data.shape) == ("labels", image[0][0].shape)
    assert origin_of(settings).source is origin_of(image[0][1]).source


def test_labels_whose_series_is_nowhere_say_what_to_do(study, tmp_path):
    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    write_objects(study / "s1", elsewhere)
    with pytest.raises(FormatError, match="open the folder of that series first") as caught:
        read_layers(str(elsewhere / "seg.dcm"))
    assert caught.value.code == "label-series-missing"


def test_a_slice_opens_the_series_that_it_belongs_to_and_a_second_one_nothing_more(study):
    (study / "s1" / "notes.txt").write_text("beside it")
    write_objects(study / "s1", study / "s1")
    slices = sorted((study / "s1").glob("0*.dcm"))
    [(data, settings, kind)] = get_reader(str(slices[2]))(str(slices[2]))
    assert (kind, settings["name"]) == ("image", "s1")
    whole = read_dicom_series(study / "s1").volume.data_cijk[0]
    np.testing.assert_array_equal(origin_of(settings).original_array(data), whole)
    assert read_layers(str(slices[0])) == [(None,)]  # napari's word for no layer


def test_a_broken_file_is_told_of_by_a_sentence(tmp_path):
    for name, content in (("a.dcm", bytes(128) + b"DICM" + b"\x07" * 99), ("b.dcm", b"notes")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="expected a DICOM image, a SEG or an RT structure"):
            get_reader(str(tmp_path / name))(str(tmp_path / name))


def test_an_opened_seg_that_is_edited_in_one_voxel_differs_there_and_in_the_type(study, tmp_path):
    labels = write_objects(study / "s1", study)
    _, (data, settings, _) = read_layers(str(study / "seg.dcm"))
    origin_of(settings).original_array(data)[0, 0, 0] = 1
    [written] = write_labels(str(tmp_path / "out.dcm"), data, settings)
    before, after = (pydicom.dcmread(path).SegmentSequence for path in (study / "seg.dcm", written))
    kinds = [[one.SegmentAlgorithmType for one in segments] for segments in (before, after)]
    assert kinds == [["AUTOMATIC", "MANUAL"], ["SEMIAUTOMATIC", "MANUAL"]]
    scan = read_dicom_series(study / "s1")
    again = read_seg(tmp_path / "out.dcm", SCHEME, scan.volume.grid).data_ijk
    assert np.argwhere(again != labels.data_ijk).tolist() == [[0, 0, 0]]


def test_a_series_of_a_mask_in_a_study_becomes_labels(study):
    mask = np.zeros((1, 8, 9, 10), dtype=np.int16)
    mask[0, 2:5, 3:6, 4:8] = 1
    volume = Volume(mask, Grid((8, 9, 10), np.eye(4)))
    write_dicom_series(volume, study / "mask", modality="MR", series_number=3)
    assert [kind for *_, kind in read_layers(str(study))] == ["image", "image", "labels"]
