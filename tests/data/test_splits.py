"""Divisions by patient: published ones, five folds, files, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.case import Case
from medseg.data.datalist import folds_path, read_datalist
from medseg.data.splits import (
    PUBLISHED,
    SplitError,
    draw_folds,
    draw_split,
    published_split,
    read_split_file,
    save_folds,
)
from medseg.errors import ConfigError


def cases_of(names, patients=None):
    patients = patients or names
    return [
        Case(name, (Path(name),), Path(name), patient)
        for name, patient in zip(names, patients, strict=True)
    ]


many = st.lists(st.integers(0, 12), min_size=6, max_size=30).filter(lambda p: len(set(p)) >= 5)


@given(many, st.integers(0, 5))
def test_no_patient_is_on_both_sides_of_a_drawn_split_or_fold(patients, seed):
    names = [f"c{number:02d}" for number in range(len(patients))]
    cases = cases_of(names, [f"p{patient}" for patient in patients])
    owner = {case.id: case.patient for case in cases}
    folds = draw_folds(cases, seed, "x")
    for split in (draw_split(cases, 0.3, seed, "x"), *folds):
        assert sorted((*split.train, *split.validation)) == names
        assert {owner[n] for n in split.train}.isdisjoint(owner[n] for n in split.validation)
    assert sorted(name for fold in folds for name in fold.validation) == names
    sizes = [len({owner[name] for name in fold.validation}) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    assert draw_folds(cases, seed, "x") == folds


def test_the_published_split_of_synapse_is_eighteen_and_twelve():
    # the thirty scans of the challenge: 1 to 10 and 21 to 40
    names = [f"case{number:04d}" for number in (*range(1, 11), *range(21, 41))]
    split = published_split("transunet", cases_of(names), "x")
    assert [int(name[4:]) for name in split.train] == [
        5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40,
    ]  # fmt: skip
    assert len(split.validation) == 12
    assert split.test == ()
    other = published_split("transunet", cases_of([n.replace("case", "img") for n in names]), "x")
    assert [n[3:] for n in other.train] == [n[4:] for n in split.train]


@pytest.mark.parametrize("name", ["acdc-70-10-20", "acdc-nnformer"])
def test_the_published_splits_of_acdc_are_seventy_ten_and_twenty_patients(name):
    patients = [f"patient{number:03d}" for number in range(1, 151)]
    names = [f"{patient}_frame{frame:02d}" for patient in patients for frame in (1, 12)]
    split = published_split(name, cases_of(names), "x")
    sizes = [len({n.split("_")[0] for n in part}) for part in (split.train, split.validation)]
    assert sizes == [70, 10]
    assert len(split.test) == 40
    assert not any("patient101" in n for n in (*split.train, *split.validation, *split.test))


def test_a_published_split_of_which_a_part_is_absent_is_refused(phantom):
    with pytest.raises(ConfigError, match="cases of both parts of the split 'transunet', found 0"):
        read_datalist(phantom("acdc"), split="transunet")


def test_published_splits_divide_phantoms(phantom):
    data = read_datalist(phantom("synapse"), split="transunet")
    assert [case.id for case in data.validation] == ["case0001", "case0002"]
    data = read_datalist(phantom("acdc"), split="acdc-70-10-20")
    assert {case.patient for case in data.test} == {"patient002"}
    assert {case.patient for case in data.validation} == {"patient019", "patient021"}
    assert set(data.split()) == {"train", "validation", "test"}
    assert PUBLISHED["acdc-70-10-20"].test == PUBLISHED["acdc-nnformer"].test


def copied(phantom, tmp_path):
    return shutil.copytree(phantom("acdc"), tmp_path / "acdc")


def test_five_folds_are_written_once_and_then_shared(phantom, tmp_path):
    root = copied(phantom, tmp_path)
    first = read_datalist(root, split="5-fold", fold=2, seed=7)
    path = folds_path(root, 7)
    folds = json.loads(path.read_text())
    assert len(folds) == 5
    assert sorted(folds[2]["val"]) == sorted(first.split()["validation"])
    before = path.stat().st_mtime_ns
    again = read_datalist(root, split="5-fold", fold=2, seed=7)
    assert again.split() == first.split()
    assert path.stat().st_mtime_ns == before
    by_name = read_datalist(root, split=path.name, fold=2)
    assert by_name.split() == first.split(), "a file of folds is a split file, as nnU-Net's is"


def test_folds_that_no_longer_fit_the_dataset_are_refused(phantom, tmp_path):
    root = copied(phantom, tmp_path)
    path = folds_path(root, 0)
    read_datalist(root, split="5-fold")
    content = json.loads(path.read_text())
    content[0]["train"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="every case of the dataset in a part, found 1 in none"):
        read_datalist(root, split="5-fold")
    with pytest.raises(ConfigError, match="expected a fold from 0 to 4, found 5"):
        read_datalist(root, split="5-fold", fold=5)
    path.unlink()
    with pytest.raises(ConfigError, match=r"data\.fold: expected a fold from 0 to 4, found 5"):
        read_datalist(root, split="5-fold", fold=5)


def test_a_fold_of_what_is_no_folds_is_refused_and_not_passed_over(phantom, tmp_path):
    root = copied(phantom, tmp_path)
    with pytest.raises(ConfigError, match="expected 0, since a draw is one division and not folds"):
        read_datalist(root, fold=2)
    drawn = read_datalist(root)
    (root / "split.json").write_text(json.dumps(drawn.split()))
    with pytest.raises(ConfigError, match=r"data\.fold: expected 0, since the file split.json is"):
        read_datalist(root, fold=2)


def test_folds_of_a_folder_that_cannot_be_written_are_drawn_each_time(phantom, tmp_path):
    root = copied(phantom, tmp_path)
    path = folds_path(root, 0)
    path.mkdir()  # nothing can be written there, whoever runs the tests
    first = read_datalist(root, split="5-fold")
    assert read_datalist(root, split="5-fold").split() == first.split()


def test_fewer_patients_than_folds_are_refused(phantom):
    with pytest.raises(ConfigError, match="at least 5 patients for 5 folds, found 4"):
        read_datalist(phantom("synapse"), split="5-fold")


def test_one_case_only_is_refused(phantom):
    cases = read_datalist(phantom("msd")).cases[:1]
    with pytest.raises(ConfigError, match="at least one case to train and one to validate"):
        draw_split(cases, 0.2, 0, "x")


def test_a_patient_on_both_sides_of_a_split_file_is_refused(tmp_path):
    names = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    cases = cases_of(names, ["patient001", "patient001", "patient002"])
    path = tmp_path / "split.json"
    for parts, words in (
        ({"train": names[:1], "validation": names[1:]}, "no patient in both train and validation"),
        (
            {"train": names[:1], "validation": names[2:], "test": names[1:2]},
            "no patient in both train and test",
        ),
    ):
        path.write_text(json.dumps(parts))
        with pytest.raises(ConfigError, match=f"{words}, found the patient of '{names[0]}'"):
            read_split_file(path, cases)


def test_all_that_is_wrong_with_a_split_is_told_with_few_names(tmp_path):
    names = [f"patient{number:03d}_frame{frame}" for number in range(20) for frame in (1, 2)]
    cases = cases_of(names, [name[:10] for name in names])
    path = tmp_path / "split.json"
    strangers = [f"patient9{number:02d}_frame1" for number in range(9)]
    parts = {"train": [*names[:10:2], *strangers], "validation": [names[1], names[3], names[0]]}
    path.write_text(json.dumps(parts))
    with pytest.raises(SplitError, match=r"and 2 more\); .*lists what else is wrong") as caught:
        read_split_file(path, cases)
    told = [str(fault) for fault in caught.value.faults]
    assert [fault.code for fault in caught.value.faults] == [
        "split-unknown-case",
        "split-leak",
        "split-leak",
    ]
    assert "the dataset's 40 cases, such as 'patient000_frame1', 'patient000_frame2'," in told[0]
    assert "'patient902_frame1' and 6 more under 'train'" in told[0]
    assert len(told[0]) < 400
    assert "found 1 in both, such as 'patient000_frame1'" in told[1]
    assert "the patient of 'patient000_frame1' in train and of 'patient000_frame2' in " in told[2]
    assert "validation, and 1 more; keep all cases of a patient in one part" in told[2]


def test_a_json_that_holds_no_split_is_left_alone_and_told(phantom, tmp_path):
    root = copied(phantom, tmp_path)
    (root / "split.json").write_text(json.dumps({"cases": []}))
    data = read_datalist(root)
    assert data.split_source.endswith("split.json in the folder holds no split")


def test_an_unknown_split_names_the_nearest(phantom):
    with pytest.raises(ConfigError, match=r"nearest: acdc-70-10-20.*found no such file"):
        read_datalist(phantom("acdc"), split="acdc-70-20-10")


def test_saved_folds_are_read_back(tmp_path):
    cases = cases_of([f"c{number}" for number in range(7)])
    folds = draw_folds(cases, 3, "x", held_out=["c6"])
    save_folds(tmp_path / "folds.json", folds)
    for number, fold in enumerate(folds):
        read = read_split_file(tmp_path / "folds.json", cases, fold=number)
        assert (read.train, read.validation, read.test) == (
            fold.train,
            fold.validation,
            ("c6",),
        )
