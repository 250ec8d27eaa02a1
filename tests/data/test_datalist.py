"""Dataset folders in the Decathlon layout, and how their cases are divided."""

import json

import pytest

from medseg.core import LabelScheme
from medseg.data.datalist import read_datalist
from medseg.errors import ConfigError, FormatError
from tests.tiny_dataset import write_dataset

FIRST = {"image": "imagesTr/case_00.nii.gz", "label": "labelsTr/case_00.nii.gz"}


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "Balls")


def change(root, **keys):
    index = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**index, **keys}))


def ids(cases):
    return [case.id for case in cases]


def test_a_dataset_is_read_with_its_own_split(root):
    data = read_datalist(root)
    assert (data.name, data.licence, data.channels) == ("Balls", "CC0-1.0", ("MRI",))
    assert data.labels == {1: "near", 2: "far"}
    assert ids(data.train) == ["case_00", "case_01", "case_02", "case_03"]
    assert ids(data.validation) == ["case_04", "case_05"]
    assert data.train[0].images == (root / "imagesTr" / "case_00.nii.gz",)
    assert data.train[0].label == root / "labelsTr" / "case_00.nii.gz"
    assert data.split_source == "the file split.json"
    assert data.split() == json.loads((root / "split.json").read_text())


def test_labels_may_be_written_name_first(root):
    change(root, labels={"background": 0, "near": 1, "far": 2})
    assert read_datalist(root).labels == {1: "near", 2: "far"}


def test_a_named_split_wins_over_the_datasets_own(root, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"train": ["case_05"], "validation": ["case_00"]}))
    data = read_datalist(root, split=str(other))
    assert (ids(data.train), ids(data.validation)) == (["case_05"], ["case_00"])


@pytest.mark.parametrize("fraction", [0.01, 0.34, 0.5])
def test_a_drawn_split_holds_every_case_once_and_follows_its_seed(root, fraction):
    (root / "split.json").unlink()
    drawn = [read_datalist(root, validation_fraction=fraction, seed=seed) for seed in (3, 3, 4, 5)]
    for data in drawn:
        everything = ids(data.train) + ids(data.validation)
        assert sorted(everything) == [f"case_{n:02d}" for n in range(6)]
        assert len(data.validation) == max(1, round(6 * fraction))
    assert drawn[0].split() == drawn[1].split()
    assert len({str(data.split()) for data in drawn}) > 1
    assert "drawn with seed 3" in drawn[0].split_source


def test_the_fingerprint_changes_with_any_file_and_not_with_the_folder(root, tmp_path):
    before = read_datalist(root).sha256
    moved = root.rename(tmp_path / "elsewhere")
    assert read_datalist(moved).sha256 == before
    with (moved / "labelsTr" / "case_03.nii.gz").open("ab") as file:
        file.write(b"x")
    assert read_datalist(moved).sha256 != before


def test_a_case_in_both_parts_is_refused(root):
    (root / "split.json").write_text(
        json.dumps({"train": ["case_00", "case_01"], "validation": ["case_01"]})
    )
    with pytest.raises(ConfigError, match=r"no case in both train and validation.*'case_01'"):
        read_datalist(root)


def test_an_unknown_case_in_the_split_is_refused_with_the_nearest_one(root):
    (root / "split.json").write_text(json.dumps({"train": ["case_O1"], "validation": ["case_02"]}))
    with pytest.raises(ConfigError, match=r"nearest: case_0\d.*'case_O1' under 'train'"):
        read_datalist(root)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"train": ["case_00"]}, '"validation" as a list of case ids, found nothing'),
        ({"train": [], "validation": ["case_00"]}, '"train" as a list.*an empty one'),
        ({"train": ["case_00"] * 2, "validation": ["case_01"]}, "a case twice"),
        ([], "a JSON object"),
    ],
)
def test_a_damaged_split_is_refused(root, split, words):
    (root / "split.json").write_text(json.dumps(split))
    with pytest.raises(FormatError, match=words):
        read_datalist(root)


def test_a_dataset_of_one_case_is_told_what_can_help(tmp_path):
    root = write_dataset(tmp_path / "one", cases=2)
    (root / "split.json").unlink()
    index = json.loads((root / "dataset.json").read_text())
    index["training"] = index["training"][:1]
    (root / "dataset.json").write_text(json.dumps(index))
    words = r"found 1 in all; add cases of at least one more patient: what was learnt from one"
    with pytest.raises(ConfigError, match=words):
        read_datalist(root)


def test_a_named_split_that_is_absent_is_refused(root):
    with pytest.raises(ConfigError, match=r"mine\.json: expected a split file"):
        read_datalist(root, split="mine.json")


def test_a_draw_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    root = write_dataset(tmp_path / "few", cases=2)
    (root / "split.json").unlink()
    with pytest.raises(ConfigError, match="at least one case to train and one to validate"):
        read_datalist(root, validation_fraction=0.9)


def test_a_folder_that_is_absent_or_no_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a dataset folder, found no such folder"):
        read_datalist(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"in one of the layouts msd, .*found none that is known"):
        read_datalist(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="found a file"):
        read_datalist(tmp_path / "file", layout="msd")


def test_a_missing_file_is_named(root):
    (root / "imagesTr" / "case_02.nii.gz").unlink()
    with pytest.raises(ConfigError, match=r"the file imagesTr/case_02.nii.gz, listed in dataset"):
        read_datalist(root)


@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/hostname", "a/../../b", "..\\b"])
def test_a_path_out_of_the_folder_is_refused(root, path):
    change(root, training=[{"image": path, "label": "./labelsTr/case_00.nii.gz"}])
    with pytest.raises(ConfigError, match="paths inside the dataset's folder"):
        read_datalist(root)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"modality": None}, '"modality" as'),
        ({"modality": {"T1": 0}}, '"modality" as'),
        ({"labels": []}, '"labels" as .* found an empty one'),
        ({"labels": {"near": "one"}}, "integer label values"),
        ({"labels": {"0": "background"}}, "at least one label beside background"),
        ({"training": {}}, '"training" as a list of cases'),
        ({"training": ["case_00"]}, "cases as .* found a text"),
        ({"training": [{"image": "x", "label": 3}]}, "paths as text, found a number"),
        (
            {
                "modality": {"0": "T1", "1": "T2", "2": "PD"},
                "training": [{**FIRST, "image": [FIRST["image"]] * 2}],
            },
            "one image file for each of the 3 channels",
        ),
        (
            {"training": [FIRST, FIRST]},
            "every case and file once, found 'case_00' again",
        ),
    ],
)
def test_a_damaged_index_is_refused(root, keys, words):
    change(root, **keys)
    with pytest.raises(FormatError, match=words):
        read_datalist(root)


def test_text_that_is_no_json_is_refused(root):
    (root / "dataset.json").write_text("name: Balls")
    with pytest.raises(FormatError, match="text that is not JSON"):
        read_datalist(root)


def test_a_scheme_must_list_the_datasets_labels(root):
    data = read_datalist(root)
    data.check_scheme(LabelScheme.plain("other names", {1: "one", 2: "two"}))
    with pytest.raises(
        ConfigError, match=r"the values \[1, 2\] of the dataset 'Balls', found \[1\]"
    ):
        data.check_scheme(LabelScheme.plain("short", {1: "near"}))


@pytest.mark.shared_data
def test_the_hippocampus_set_has_160_cases_to_train_and_40_to_validate(shared_data):
    data = read_datalist(shared_data / "01_msd_hippocampus")
    assert (len(data.train), len(data.validation)) == (160, 40)
    assert data.labels == {1: "Anterior", 2: "Posterior"}
    assert data.licence.startswith("CC-BY-SA")
