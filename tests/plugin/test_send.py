import csv
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core import Grid, LabelScheme, Volume
from medseg.data.layouts.msd import list_msd
from medseg.data.layouts.nnunet import list_nnunet
from medseg.errors import ConfigError, FormatError, GeometryError, ResourceError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import read_seg
from medseg_napari._origin import LayerOrigin, origin_of
from medseg_napari._provenance import Beginning
from medseg_napari._reader import read_layers
from medseg_napari._send import Parcel
from medseg_napari._training_set import TrainingCase, add_case
from medseg_napari._words import dice_in_words, ml_in_words
from tests.plugin.sources import noise_volume, oblique_grid, write_nifti_image

SCHEME = LabelScheme.plain("organs", {2: "liver", 5: "spleen", 9: "tumour"})


def by_model(image, *, seconds=None, edited=None):
    """A result of a model on an image layer, of which one voxel was then taken and one drawn."""
    _, settings, _ = image
    grid, source = origin_of(settings).grid, origin_of(settings).source
    labels = np.zeros(grid.shape_ijk, dtype=np.uint8)
    labels[1:4, 1:4, 1:3], labels[4:6, 3:5, 2:4] = 2, 5
    beginning = Beginning.by_model(labels, "organs", "4", weights_sha256="abc", seconds=3.0)
    origin = LayerOrigin.of(grid, source, scheme=SCHEME, beginning=beginning)
    corrected = labels.copy()
    corrected[1, 1, 1] = 0
    corrected[0, 0, 0] = 9
    return Parcel("result", origin.shown_array(corrected), origin, edited, seconds), corrected


@pytest.fixture
def image(tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid())
    return read_layers(str(tmp_path / "image.nii.gz"))[0]


@pytest.fixture
def series(tmp_path):
    write_dicom_series(noise_volume(oblique_grid()), tmp_path / "series", modality="MR")
    return read_layers(str(tmp_path / "series"))[0]


def test_a_seg_tells_of_each_segment_whether_model_or_person_made_it(series, tmp_path):
    parcel, corrected = by_model(series)
    types = parcel.save(tmp_path / "out.dcm")
    assert types == {2: "SEMIAUTOMATIC", 5: "AUTOMATIC", 9: "MANUAL"}
    segments = pydicom.dcmread(tmp_path / "out.dcm").SegmentSequence
    assert [(one.SegmentLabel, one.SegmentAlgorithmType) for one in segments] == [
        ("liver", "SEMIAUTOMATIC"),
        ("spleen", "AUTOMATIC"),
        ("tumour", "MANUAL"),
    ]
    assert segments[0].SegmentAlgorithmName == "medseg organs"
    assert "SegmentAlgorithmName" not in segments[2]
    found = read_seg(tmp_path / "out.dcm", SCHEME, parcel.origin.grid)
    np.testing.assert_array_equal(found.data_ijk, corrected)


def test_a_structure_set_tells_it_too(series, tmp_path):
    parcel, _ = by_model(series)
    parcel.save(tmp_path / "out.dcm", rtstruct=True)
    rois = pydicom.dcmread(tmp_path / "out.dcm").StructureSetROISequence
    assert [one.ROIGenerationAlgorithm for one in rois] == ["SEMIAUTOMATIC", "AUTOMATIC", "MANUAL"]


def test_what_an_editor_knows_better_is_taken(series, tmp_path):
    parcel, _ = by_model(series, edited={2: "MANUAL"})
    assert parcel.save(tmp_path / "out.dcm")[2] == "MANUAL"


def test_names_and_colours_lie_beside_a_nifti_file_and_open_with_it_again(image, tmp_path):
    parcel, _ = by_model(image)
    parcel.save(tmp_path / "out.nii.gz")
    [(_, settings, kind)] = read_layers(str(tmp_path / "out.nii.gz"))
    assert (kind, origin_of(settings).scheme.labels) == ("labels", SCHEME.labels)
    (tmp_path / "other.tsv").write_text("participant\tage\n")
    parcel.save(tmp_path / "other.nii.gz")
    assert (tmp_path / "other.tsv").read_text() == "participant\tage\n"


def test_dicom_needs_a_series(image, tmp_path):
    parcel, _ = by_model(image)
    with pytest.raises(FormatError, match="labels on a DICOM series"):
        parcel.save(tmp_path / "out.dcm")


def test_the_report_says_what_became_of_each_structure(image):
    parcel, _ = by_model(image, seconds=12.0)
    report = parcel.effort()
    voxel_ml = 0.9 * 1.1 * 2.5 / 1000
    liver, spleen, tumour = report.labels
    assert (liver.name, liver.kind, spleen.kind, tumour.kind) == (
        *("liver", "SEMIAUTOMATIC"),
        *("AUTOMATIC", "MANUAL"),
    )
    assert liver.removed_ml == pytest.approx(voxel_ml)
    assert liver.added_ml == 0
    assert liver.dice == pytest.approx(2 * 17 / (18 + 17))
    assert spleen.dice == 1
    assert (tumour.before_ml, tumour.dice) == (0, 0)
    assert tumour.added_ml == pytest.approx(voxel_ml)
    assert report.made_by == ("medseg organs", "4")
    assert (report.seconds, report.seconds_mean) == (12.0, "editing")


def test_without_an_editor_the_time_is_that_since_the_labels_came(image):
    report = by_model(image)[0].effort()
    assert report.seconds_mean == "since the labels came"
    assert 0 <= report.seconds < 600


def test_a_structure_that_was_erased_is_in_the_report(image):
    parcel, _ = by_model(image)
    parcel.labels_shown[parcel.labels_shown == 5] = 0
    spleen = parcel.effort().labels[1]
    assert (spleen.name, spleen.kind, spleen.after_ml, spleen.dice) == ("spleen", "", 0, 0)


def test_the_report_is_saved_as_json_or_as_a_table(image, tmp_path):
    parcel, _ = by_model(image)
    parcel.save_report(tmp_path / "effort.json")
    content = json.loads((tmp_path / "effort.json").read_text())
    assert content["model"] == {"name": "medseg organs", "version": "4", "weights_sha256": "abc"}
    assert "not a medical device" in content["notice"]
    parcel.save_report(tmp_path / "effort.csv")
    rows = list(csv.DictReader((tmp_path / "effort.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["liver", "spleen", "tumour"]
    assert float(rows[1]["dice"]) == 1


def test_a_single_voxel_of_a_fine_grid_is_not_told_as_nothing(tmp_path):
    fine = Grid((64, 64, 64), np.diag([0.05, 0.05, 0.05, 1.0]))
    write_nifti_image(tmp_path / "fine.nii.gz", fine)
    settings = read_layers(str(tmp_path / "fine.nii.gz"))[0][1]
    grid, source = origin_of(settings).grid, origin_of(settings).source
    labels = np.full(grid.shape_ijk, 2, dtype=np.uint8)
    beginning = Beginning.by_model(labels, "organs", "4", weights_sha256="abc", seconds=3.0)
    origin = LayerOrigin.of(grid, source, scheme=SCHEME, beginning=beginning)
    corrected = labels.copy()
    corrected[1, 1, 1] = 0
    parcel = Parcel("result", origin.shown_array(corrected), origin)
    parcel.save_report(tmp_path / "effort.json")
    [liver] = json.loads((tmp_path / "effort.json").read_text())["labels"]
    assert liver["removed_ml"] == pytest.approx(0.05**3 / 1000, rel=0.01)
    assert liver["dice"] < 1
    assert ml_in_words(liver["removed_ml"]) == "0.00000012"
    assert dice_in_words(liver["dice"]) != "1.000"


@given(st.floats(1e-7, 1e5))
def test_a_volume_in_words_is_off_by_less_than_a_twentieth_or_five_microlitres(ml):
    told = float(ml_in_words(ml))
    assert told > 0
    assert told == pytest.approx(ml, rel=0.05, abs=0.005 if ml >= 0.01 else 0.0)


# Training sets


def add(parcel, image, folder, layout="nnunet", channel="T1"):
    return parcel.add_to_training_set(folder, {channel: image[0]}, layout=layout)


def stored(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(("layout", "listing"), [("nnunet", list_nnunet), ("msd", list_msd)])
def test_a_corrected_case_becomes_one_of_a_dataset(image, tmp_path, layout, listing):
    parcel, corrected = by_model(image)
    folder = tmp_path / "set"
    added = add(parcel, image, folder, layout)
    assert (added.name, added.cases, added.replaced) == ("case_0001", 1, False)
    found = listing(folder)
    assert found.problems == ()
    assert found.channels == ("T1",)
    [case] = found.cases
    number = {label.name: label.value for label in found.scheme.labels}
    assert list(number) == ["liver", "spleen", "tumour"]
    labels = stored(case.label)
    for value, name in ((2, "liver"), (5, "spleen"), (9, "tumour")):
        np.testing.assert_array_equal(labels == number[name], corrected == value)
    np.testing.assert_array_equal(
        stored(case.images[0]), origin_of(image[1]).original_array(image[0])
    )
    assert nib.load(case.images[0]).affine == pytest.approx(nib.load(case.label).affine)


def test_values_of_nnunet_are_consecutive_and_those_of_msd_are_kept(image, tmp_path):
    parcel, _ = by_model(image)
    add(parcel, image, tmp_path / "nnunet")
    add(parcel, image, tmp_path / "msd", "msd")
    index = json.loads((tmp_path / "nnunet" / "dataset.json").read_text())
    assert index["labels"] == {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}
    index = json.loads((tmp_path / "msd" / "dataset.json").read_text())
    assert index["labels"] == {"0": "background", "2": "liver", "5": "spleen", "9": "tumour"}


def other_image(tmp_path):
    write_nifti_image(tmp_path / "other.nii.gz", oblique_grid((8, 7, 6)))
    return read_layers(str(tmp_path / "other.nii.gz"))[0]


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_a_second_image_is_a_second_case_and_the_same_one_takes_its_place(image, tmp_path, layout):
    folder = tmp_path / "set"
    parcel, _ = by_model(image)
    add(parcel, image, folder, layout)
    other = other_image(tmp_path)
    assert add(by_model(other)[0], other, folder, layout).name == "case_0002"
    parcel.labels_shown[...] = 0
    again = add(parcel, image, folder, layout)
    assert (again.name, again.cases, again.replaced) == ("case_0001", 2, True)
    assert not stored(folder / "labelsTr" / "case_0001.nii.gz").any()
    assert stored(folder / "labelsTr" / "case_0002.nii.gz").any()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 2


def test_how_a_case_came_about_lies_beside_it_without_names_or_paths(image, tmp_path):
    parcel, _ = by_model(image, seconds=5.0)
    add(parcel, image, tmp_path / "set")
    text = (tmp_path / "set" / "provenance" / "case_0001.json").read_text()
    record = json.loads(text)
    assert record["model"]["name"] == "medseg organs"
    assert [one["kind"] for one in record["labels"]] == ["SEMIAUTOMATIC", "AUTOMATIC", "MANUAL"]
    assert len(record["image_sha256"]) == 64
    assert str(tmp_path) not in text
    assert "image.nii" not in text


def test_a_dataset_of_other_channels_refuses_the_case(image, tmp_path):
    parcel, _ = by_model(image)
    add(parcel, image, tmp_path / "set")
    other = other_image(tmp_path)
    with pytest.raises(ConfigError, match="the channels of the dataset, T1, found CT") as caught:
        add(by_model(other)[0], other, tmp_path / "set", channel="CT")
    assert caught.value.code == "training-set-channels"


@pytest.mark.parametrize(
    ("first", "then", "fits"),
    [("T1", "image", True), ("image", "T1", True), ("T1", "MR", True), ("CT", "MR", False)],
)
def test_the_only_image_is_the_only_channel_unless_its_modality_is_another(
    image, tmp_path, first, then, fits
):
    add(by_model(image)[0], image, tmp_path / "set", channel=first)
    other = other_image(tmp_path)
    if fits:
        assert add(by_model(other)[0], other, tmp_path / "set", channel=then).cases == 2
        index = json.loads((tmp_path / "set" / "dataset.json").read_text())
        assert index["channel_names"] == {"0": first}
    else:
        with pytest.raises(ConfigError, match="the channels of the dataset"):
            add(by_model(other)[0], other, tmp_path / "set", channel=then)


def test_the_msd_layout_takes_one_channel(image, tmp_path):
    parcel, _ = by_model(image)
    both = {"T1": image[0], "FLAIR": image[0]}
    with pytest.raises(ConfigError, match="choose nnU-Net's layout"):
        parcel.add_to_training_set(tmp_path / "set", both, layout="msd")
    assert parcel.add_to_training_set(tmp_path / "set", both, layout="nnunet").cases == 1
    assert len(list_nnunet(tmp_path / "set").cases[0].images) == 2


def test_a_structure_that_the_dataset_does_not_have_is_refused(image, tmp_path):
    parcel, _ = by_model(image)
    add(parcel, image, tmp_path / "set")
    scheme = LabelScheme.plain("organs", {2: "liver", 5: "spleen", 9: "cyst"})
    origin = LayerOrigin.of(parcel.origin.grid, parcel.origin.source, scheme=scheme)
    stranger = Parcel("result", parcel.labels_shown, origin)
    with pytest.raises(ConfigError, match="liver, spleen, tumour, found 'cyst'") as caught:
        add(stranger, image, tmp_path / "set")
    assert caught.value.code == "training-set-labels"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found other files"),
        ("no json", "an index that cannot be understood"),
        (
            '{"channel_names": {"0": "T1"}, "labels": {"x": [1, 2]}, "file_ending": ".nii.gz"}',
            "reg",
        ),
    ],
)
def test_a_folder_with_something_else_is_left_alone(image, tmp_path, content, words):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / ("notes.txt" if content is None else "dataset.json")).write_text(content or "mine")
    with pytest.raises(FormatError, match=words) as caught:
        add(by_model(image)[0], image, folder)
    assert caught.value.code == "training-set-folder"
    assert len(list(folder.iterdir())) == 1


def test_images_of_another_grid_are_refused(image, tmp_path):
    parcel, _ = by_model(image)
    wrong = Volume(np.zeros((1, 4, 4, 4), np.int16), Grid((4, 4, 4), np.eye(4)))
    case = TrainingCase({"T1": wrong}, parcel.label_map(), parcel.origin.source, {})
    with pytest.raises(GeometryError, match="expected the grid of the labels"):
        add_case(tmp_path / "set", case)


def test_a_folder_that_cannot_be_made_is_told_and_nothing_is_left(image, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((FormatError, ResourceError)):
        add(by_model(image)[0], image, tmp_path / "file")
    with pytest.raises(ResourceError, match="a folder that can be written to"):
        add(by_model(image)[0], image, tmp_path / "file" / "set")


def test_an_image_that_cannot_be_written_leaves_no_case(image, tmp_path):
    parcel, _ = by_model(image)
    data = image[0].astype(np.int64)  # 64 bits, which are refused
    with pytest.raises(Exception, match="integers of at most 32 bits"):
        parcel.add_to_training_set(tmp_path / "set", {"T1": data}, layout="nnunet")
    assert not [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert add(parcel, image, tmp_path / "set").name == "case_0001"  # once the cause is gone
