"""Lists of paths, folders of DICOM, and every layout on real data where that is there."""

import json
import shutil

import numpy as np
import pytest
import yaml

from medseg.core import LabelScheme
from medseg.data.case import read_labelled
from medseg.data.datalist import read_datalist
from medseg.data.findings import check_dataset
from medseg.data.layouts import list_cases
from medseg.data.layouts.acdc import read_frames
from medseg.data.schemes import SCHEMES
from medseg.errors import ConfigError, FormatError, GeometryError
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.dicom_seg_labels import read_segment_scheme
from medseg.io.dicom_series import read_dicom_series
from medseg.io.modality import modality_of_file
from medseg.io.rtstruct import write_rtstruct
from medseg.io.segment_names import segment_label
from tests.data.test_layouts import problem
from tests.io.test_dicom_seg import read_and_label
from tests.series import small_series, spoil, spoil_all

# A list of paths


def write_list(folder, rows, heading="id,patient,image,label,split"):
    path = folder / "cases.csv"
    path.write_text("\n".join([heading, *rows]) + "\n")
    return path


@pytest.fixture
def listed(copy):
    root = copy("msd")
    (root / "dataset.json").unlink()
    (root / "labels.yaml").write_text(yaml.safe_dump(SCHEMES["msd-hippocampus"].to_dict()))
    return root


def rows(count=4):
    return [
        f"c{n},p{n // 3},imagesTr/hippocampus_{n:03d}.nii.gz,labelsTr/hippocampus_{n:03d}.nii.gz,"
        + ("validation" if n >= 3 else "train")
        for n in range(1, count + 1)
    ]


def test_a_csv_lists_cases_with_patient_and_split(listed):
    data = read_datalist(write_list(listed, rows()))
    assert [case.id for case in data.train] == ["c1", "c2"]
    assert [case.id for case in data.validation] == ["c3", "c4"]
    assert data.split_source == "the dataset's own division"
    assert data.train[0].patient == "p0"
    assert data.scheme == SCHEMES["msd-hippocampus"]
    read_labelled(data.train[0], data.channels, data.scheme)
    assert read_datalist(listed).split() == data.split(), "the folder will do as well"


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_of_a_spreadsheet_with_other_separators_lists_the_same(listed, mark):
    expected = list_cases(write_list(listed, rows()))
    (listed / "labels.yaml").unlink()
    path = listed / "cases.csv"
    path.write_text(path.read_text().replace(",", mark))
    listing = list_cases(path, scheme="msd-hippocampus")
    assert listing.cases == expected.cases
    assert listing.channels == ("image",)


def test_a_folder_with_a_list_of_another_name_is_told_that_name(listed):
    shutil.move(write_list(listed, rows()), listed / "list.csv")
    (listed / "scores.csv").write_text("case,dice\na,0.5\n")
    for name in ("imagesTr", "labelsTr"):  # as if of Synapse
        (listed / name).rename(listed / f"my {name}")
    with pytest.raises(ConfigError, match=r"give its file 'list\.csv', which looks like a list"):
        list_cases(listed)
    (listed / "list.csv").rename(listed / "table.txt")
    (listed / "list.yaml").write_text("name: mine\ncases:\n- {images: a, label: b}\n")
    with pytest.raises(ConfigError, match=r"give its file 'list\.yaml'"):
        list_cases(listed)


def test_a_yaml_list_without_channels_has_one(listed):
    path = listed / "mine.yaml"
    case = {
        "images": "imagesTr/hippocampus_001.nii.gz",
        "label": "labelsTr/hippocampus_001.nii.gz",
    }
    path.write_text(yaml.safe_dump({"labels": {1: "front", 2: "back"}, "cases": [case]}))
    listing = list_cases(path)
    assert (listing.channels, len(listing.cases)) == (("image",), 1)


def test_a_yaml_list_says_the_same_with_its_labels_inside(listed):
    content = {
        "name": "mine",
        "licence": "CC0-1.0",
        "channels": ["T1"],
        "labels": {1: "front", 2: "back"},
        "cases": [
            {
                "images": f"imagesTr/hippocampus_{n:03d}.nii.gz",
                "label": str(listed / f"labelsTr/hippocampus_{n:03d}.nii.gz"),
            }
            for n in (1, 2)
        ],
    }
    path = listed / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    listing = list_cases(path)
    assert (listing.name, listing.licence, listing.channels) == ("mine", "CC0-1.0", ("T1",))
    assert [case.id for case in listing.cases] == ["hippocampus_001", "hippocampus_002"]
    path.write_text(yaml.safe_dump({**content, "labels": "msd-hippocampus"}))
    assert list_cases(path).scheme is SCHEMES["msd-hippocampus"]
    path.write_text(yaml.safe_dump({**content, "labels": SCHEMES["acdc"].to_dict()}))
    assert list_cases(path).scheme == SCHEMES["acdc"]


def test_a_list_without_the_meaning_of_its_labels_is_refused(listed):
    (listed / "labels.yaml").unlink()
    path = write_list(listed, rows())
    with pytest.raises(ConfigError, match=r"labels.yaml beside it.*name a scheme with --scheme"):
        list_cases(path)
    assert list_cases(path, scheme="msd-hippocampus").is_named


def test_the_labels_of_a_list_may_be_given_in_short(listed):
    path = write_list(listed, rows())
    (listed / "labels.yaml").write_text("{1: Anterior, 2: Posterior}\n")
    listing = list_cases(path)
    assert listing.scheme == LabelScheme.plain("labels", {1: "Anterior", 2: "Posterior"})
    (listed / "labels.yaml").write_text("labels:\n- {value: 1}\n")
    with pytest.raises(ConfigError, match=r"labels\.yaml, label 1: .*missing \['name'\]"):
        list_cases(path)


def test_a_line_without_a_name_or_a_file_is_named_by_its_number(listed):
    path = write_list(listed, [*rows()[:1], ",,,,", "c3,,,labelsTr/hippocampus_003.nii.gz,"])
    told = {problem.case: str(problem.error) for problem in list_cases(path).problems}
    assert set(told) == {"of line 3", "c3"}
    assert told["of line 3"].startswith("case of line 3: expected an image for each of the 1")
    (listed / "mine.yaml").write_text(
        "channels: [a]\nlabels: {1: ball}\ncases:\n- {id: a, images: [], label: }\n"
        f"- {{images: [{rows()[0].split(',')[2]}], label: }}\n"
    )
    told = {p.case: str(p.error) for p in list_cases(listed / "mine.yaml").problems}
    assert told["of entry 2"] == (
        "case of entry 2: expected an existing label map, found no path of one; correct the list "
        "or complete the dataset"
    )


@pytest.mark.parametrize(
    ("lines", "heading", "words"),
    [
        ([], "image,label", "no line beside the heading"),
        (["a,b"], "picture,label", 'the columns "image" .*found picture, label'),
        (["a,b,c"], "image,label,pateint", "nearest: patient.*found 'pateint'"),
        (rows()[:1] * 2, None, "every case once, found 'c1' again"),
        ([rows()[0].replace("train", "trian")], None, "nearest: train.*found 'trian'"),
    ],
)
def test_a_damaged_csv_is_refused(listed, lines, heading, words):
    path = write_list(listed, lines, **({} if heading is None else {"heading": heading}))
    with pytest.raises(FormatError, match=words):
        list_cases(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "plain YAML"),
        ("[]", "a mapping with channels, labels and cases, found an empty one"),
        ("{chanels: [a]}", "nearest: channels.*the key 'chanels'"),
        ("{channels: [], cases: []}", '"channels" as a list of names'),
        ("{channels: [a], cases: []}", '"cases" as a list'),
        ("{channels: [a], cases: [1]}", "cases with images and label, found a number"),
        ("{channels: [a], cases: [{images: a, label: b, lable: c}]}", "the key 'lable'"),
        ("{channels: [a], labels: [1], cases: [{images: a, label: b}]}", '"labels" as {value'),
    ],
)
def test_a_damaged_yaml_list_is_refused(tmp_path, content, words):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(FormatError, match=words):
        list_cases(path)


def test_text_that_is_no_list_is_refused(tmp_path):
    (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="a CSV file with a heading"):
        list_cases(tmp_path)
    (tmp_path / "cases.csv").unlink()
    with pytest.raises(ConfigError, match="a CSV or YAML file, or a folder with"):
        list_cases(tmp_path, "list")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("imagesTr/hippocampus_001.nii.gz", ""), "modality-missing"),
        (("labelsTr/hippocampus_001", "labelsTr/none"), "label-missing"),
        (("imagesTr/hippocampus_001", "imagesTr/none"), "dataset-file-missing"),
    ],
)
def test_an_incomplete_line_names_its_case(listed, change, code):
    path = write_list(listed, [rows()[0].replace(*change), *rows()[1:]])
    assert (problem(path).case, problem(path).error.code) == ("c1", code)


# DICOM


@pytest.fixture
def archive(tmp_path):
    """Two cases, each a series with a SEG beside it."""
    for number in (1, 2):
        folder = tmp_path / "archive" / f"case {number}"
        folder.mkdir(parents=True)
        small_series(folder / "series", patient_id=f"SECRET{number}")
        scan, labels = read_and_label(folder / "series", seed=number)
        write_seg(labels, folder / "seg.dcm", scan.source, algorithm=Algorithm("test", "1"))
    return tmp_path / "archive"


def test_dicom_series_are_read_with_the_segmentations_drawn_on_them(archive):
    listing = list_cases(archive)
    assert listing.layout == "dicom"
    assert len({case.patient for case in listing.cases}) == 2
    names = {label.name for label in listing.scheme.labels}
    assert {"Anterior hippocampus", "Posterior hippocampus"} <= names
    by_label = {label.name: label for label in listing.scheme.labels}
    assert by_label["Anterior hippocampus"].concept.value == "5366008"
    for case in listing.cases:
        volume, labels = read_labelled(case, listing.channels, listing.scheme)
        scan = read_dicom_series(case.images[0])
        assert np.array_equal(volume.data_cijk, scan.volume.data_cijk)
        seed = int(case.images[0].parent.name[-1])
        _, original = read_and_label(case.images[0], seed=seed)
        for name in names:
            scheme = original.scheme
            wanted = next(one.value for one in scheme.labels if segment_label(one) == name)
            found = labels.data_ijk == by_label[name].value
            assert np.array_equal(found, original.data_ijk == wanted)


def test_the_channel_of_dicom_series_is_called_after_their_modality(archive):
    assert list_cases(archive).channels == ("MR",)
    spoil_all(archive / "case 1" / "series", lambda header: setattr(header, "Modality", "CT"))
    assert list_cases(archive).channels == ("image",)
    spoil_all(archive / "case 2" / "series", lambda header: setattr(header, "Modality", "CT"))
    assert list_cases(archive).channels == ("CT",)
    assert modality_of_file(archive / "nothing.dcm") == ""


def test_a_segmentation_without_its_series_is_named(archive):
    shutil.rmtree(archive / "case 1" / "series")
    found = problem(archive).error
    assert found.code == "no-images"
    assert "the image series that the SEG was drawn on, found none; add the series" in str(found)


def test_nothing_that_names_a_person_is_in_ids_or_messages(archive):
    (archive / "case 2" / "seg.dcm").unlink()
    listing = list_cases(archive)
    told = [listing.cases[0].id, listing.cases[0].patient, str(listing.problems[0].error)]
    assert not any("SECRET" in text or "case 2" in text for text in told)
    assert listing.problems[0].error.code == "label-missing"


def test_a_second_segmentation_or_series_is_not_guessed_between(archive):
    shutil.copy(archive / "case 1" / "seg.dcm", archive / "case 1" / "seg2.dcm")
    assert problem(archive).error.code == "seg-ambiguous"
    (archive / "case 1" / "seg2.dcm").unlink()
    small_series(archive / "case 1" / "series" / "other")
    assert problem(archive).error.code == "series-ambiguous"
    shutil.move(archive / "case 1" / "series" / "other", archive / "case 1" / "other")
    assert len(list_cases(archive).cases) == 2, "the SEG says which"


def test_a_damaged_segmentation_is_named(archive):
    def change(seg):
        del seg.SegmentSequence

    spoil(archive / "case 1" / "seg.dcm", change)
    assert problem(archive).error.code == "seg-unreadable"
    with pytest.raises(FormatError, match="a DICOM SEG, found a file that is missing"):
        read_segment_scheme(archive / "case 1" / "seg.dcm")


@pytest.fixture
def contoured(archive):
    """The archive with an RTSTRUCT in place of the SEG of its second case."""
    folder = archive / "case 2"
    (folder / "seg.dcm").unlink()
    scan, labels = read_and_label(folder / "series", seed=2)
    write_rtstruct(labels, folder / "rt.dcm", scan.source, algorithm=Algorithm("test", "1"))
    return archive


def test_contours_are_labels_as_segments_are(archive, contoured):
    expected = [label.name for label in list_cases(archive).scheme.labels]
    listing = list_cases(contoured)
    assert [label.name for label in listing.scheme.labels] == expected
    case = next(case for case in listing.cases if case.label.name == "rt.dcm")
    _, labels = read_labelled(case, listing.channels, listing.scheme)
    _, original = read_and_label(case.images[0], seed=2)
    by_name = {segment_label(label): label.value for label in listing.scheme.labels}
    for label in original.scheme.labels:
        if (original.data_ijk == label.value).any():
            wanted = by_name[segment_label(label)]
            assert np.array_equal(labels.data_ijk == wanted, original.data_ijk == label.value)
    report = check_dataset(contoured, jobs=1)
    assert [one.what for one in report.findings if one.code == "dataset-note"] == [
        "labels of 1 of 2 cases are contours (RTSTRUCT): a voxel in several ROIs is given to the "
        "smallest"
    ]


def test_a_list_names_the_regions_that_are_meant(contoured):
    folder = contoured / "case 2"
    _, original = read_and_label(folder / "series", seed=2)
    content = {
        "channels": ["MR"],
        "labels": {4: "posterior hippocampus"},
        "cases": [{"id": "a", "images": str(folder / "series"), "label": str(folder / "rt.dcm")}],
    }
    (folder / "cases.yaml").write_text(yaml.safe_dump(content))
    listing = list_cases(folder / "cases.yaml")
    _, labels = read_labelled(listing.cases[0], listing.channels, listing.scheme)
    assert np.array_equal(labels.data_ijk == 4, original.data_ijk == 2)
    content["labels"] = {1: "posterior hippocampi"}
    (folder / "cases.yaml").write_text(yaml.safe_dump(content))
    listing = list_cases(folder / "cases.yaml")
    with pytest.raises(FormatError, match=r"nearest|posterior hippocampi"):
        read_labelled(listing.cases[0], listing.channels, listing.scheme)


def test_names_of_regions_are_one_label_whatever_their_capitals(contoured):
    def change(rt):
        for roi in rt.StructureSetROISequence:
            roi.ROIName = str(roi.ROIName).upper().replace(" ", "_")

    before = list_cases(contoured).scheme
    spoil(contoured / "case 2" / "rt.dcm", change)
    listing = list_cases(contoured)
    assert [label.name for label in listing.scheme.labels] == [x.name for x in before.labels]
    for case in listing.cases:
        read_labelled(case, listing.channels, listing.scheme)


def test_contours_in_another_frame_of_reference_are_refused(contoured):
    def change(rt):
        for roi in rt.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "1.2.3"

    spoil(contoured / "case 2" / "rt.dcm", change)
    listing = list_cases(contoured)
    case = next(case for case in listing.cases if case.label.name == "rt.dcm")
    with pytest.raises(GeometryError, match="in the frame of reference of the image"):
        read_labelled(case, listing.channels, listing.scheme)


def test_a_damaged_structure_set_and_one_beside_a_seg(contoured):
    shutil.copy(contoured / "case 2" / "rt.dcm", contoured / "case 1" / "rt.dcm")
    names = {case.label.name for case in list_cases(contoured).cases}
    assert names == {"seg.dcm", "rt.dcm"}, "a SEG is taken before contours"

    def change(rt):
        del rt.ROIContourSequence

    spoil(contoured / "case 2" / "rt.dcm", change)
    assert problem(contoured).error.code == "rtstruct-empty"


def test_of_several_structure_sets_the_one_drawn_on_the_series_is_taken(contoured):
    def change(rt):
        frame = rt.ReferencedFrameOfReferenceSequence[0]
        series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
        series.SeriesInstanceUID = "1.2.3"

    folder = contoured / "case 2"
    spoil(folder / "rt.dcm", change, folder / "another.dcm")
    assert {case.label.name for case in list_cases(contoured).cases} == {"seg.dcm", "rt.dcm"}
    shutil.copy(folder / "rt.dcm", folder / "third.dcm")
    assert problem(contoured).error.code == "rtstruct-ambiguous"


# Real data


@pytest.mark.shared_data
def test_real_patients_of_acdc_are_read_in_both_phases(shared_data):
    listing = list_cases(shared_data / "02_acdc")
    assert (listing.layout, len(listing.cases), listing.problems) == ("acdc", 30, ())
    case = listing.cases[0]
    frames = read_frames(case.label.parent / "Info.cfg")
    assert case.id == f"{case.patient}_frame{frames['ED']:02d}"
    _, labels = read_labelled(case, listing.channels, listing.scheme)
    assert set(np.unique(labels.data_ijk)) == {0, 1, 2, 3}


@pytest.mark.shared_data
def test_a_real_tumour_case_tells_its_scheme(shared_data, tmp_path):
    name = "BraTS-GLI-00000-000"
    (tmp_path / name).symlink_to(shared_data / "05_brats_multimodal" / name)
    listing = list_cases(tmp_path)
    assert listing.scheme.name == "brats-2023"
    volume, labels = read_labelled(listing.cases[0], listing.channels, listing.scheme)
    assert volume.data_cijk.shape == (4, 240, 240, 155)
    enhancing = labels.data_ijk == 3
    with_contrast = volume.data_cijk[1]
    assert with_contrast[enhancing].mean() > with_contrast[labels.data_ijk == 2].mean()


@pytest.mark.shared_data
def test_the_head_and_neck_set_is_read_although_a_part_of_it_is_absent(shared_data):
    data = read_datalist(shared_data / "03_openkbp_headneck_ct")
    assert (len(data.train), len(data.validation), data.channels) == (20, 4, ("CT",))
    volume, labels = read_labelled(data.validation[0], data.channels, data.scheme)
    assert volume.grid.orientation == "PLI"
    assert len(np.unique(labels.data_ijk)) == 8


@pytest.mark.shared_data
def test_a_real_segmentation_of_another_writer_is_read_on_its_series(shared_data, tmp_path):
    source = shared_data / "08_dicom_seg" / "dcmqi"
    shutil.copytree(source / "ct-3slice", tmp_path / "a" / "ct")
    shutil.copy(source / "liver.dcm", tmp_path / "a" / "liver.dcm")
    listing = list_cases(tmp_path)
    assert [label.name for label in listing.scheme.labels] == ["Liver"]
    assert listing.scheme.labels[0].concept.meaning == "Liver"
    volume, labels = read_labelled(listing.cases[0], listing.channels, listing.scheme)
    inside = volume.data_cijk[0][labels.data_ijk == 1]
    assert inside.size > 1000
    assert 0 < inside.mean() < 200, "soft tissue"


@pytest.mark.shared_data
def test_series_with_rtstructs_of_another_writer_are_cases(shared_data, tmp_path):
    for patient in ("pat_1", "pat_2"):
        shutil.copytree(shared_data / "07_dicom_ct_rtstruct" / patient, tmp_path / patient)
    listing = list_cases(tmp_path)
    assert (len(listing.cases), listing.problems) == (2, ())
    assert [label.name for label in listing.scheme.labels] == ["GTV-1"]
    assert "2 of 2 cases are contours" in listing.notes[0]
    millilitres = set()
    for case in listing.cases:
        volume, labels = read_labelled(case, listing.channels, listing.scheme)
        assert labels.grid == volume.grid
        millilitres.add(round(labels.volumes_ml()["GTV-1"], 1))
    # the volumes that plastimatch finds for these contours
    assert millilitres == {358.7, 6.5}


@pytest.mark.shared_data
def test_several_structure_sets_of_one_series_are_not_guessed_between(shared_data, tmp_path):
    folder = shared_data / "07_dicom_ct_rtstruct" / "rt_utils_mim"
    shutil.copytree(folder, tmp_path / "a")
    assert problem(tmp_path).error.code == "rtstruct-ambiguous"
    with pytest.raises(ConfigError, match="one RTSTRUCT that refers to a series of the folder"):
        read_datalist(tmp_path)


@pytest.mark.shared_data
def test_totalsegmentators_volumes_are_read_from_a_list(shared_data, tmp_path):
    source = shared_data / "04_totalsegmentator_ct_mr" / "nifti"
    names = json.loads((source.parent / "class_map.json").read_text())
    table = next(part for part in names.values() if len(part) == 117)
    content = {
        "channels": ["CT"],
        "labels": {int(value): name for value, name in table.items()},
        "cases": [
            {
                "id": "a",
                "images": str(source / "example_ct_sm.nii.gz"),
                "label": str(source / "example_seg.nii.gz"),
            },
        ],
    }
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(content))
    listing = list_cases(tmp_path)
    _, labels = read_labelled(listing.cases[0], listing.channels, listing.scheme)
    assert len(np.unique(labels.data_ijk)) == 42
