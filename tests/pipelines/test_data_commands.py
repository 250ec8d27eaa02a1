"""`medseg data`: phantom, check, split, schemes."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medseg.core import LabelMap, LabelScheme
from medseg.data.datalist import read_datalist
from medseg.data.phantoms import write_phantom
from medseg.data.schemes import SCHEMES
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.reading import read_image
from pipelines.cli import app
from tests.series import small_series


def run(*arguments):
    return CliRunner().invoke(app, ["data", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def acdc(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "acdc"
    result = run("phantom", "acdc", "--cases", 5, "-o", out, "--size", "small", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    assert "5 made patients (acdc)" in result.stdout
    return out


def test_a_phantom_is_checked_in_words_and_in_json(acdc):
    words = run("check", acdc, "--jobs", 1)
    assert words.exit_code == 0, words.stderr
    assert "10 of 10 cases can be used" in words.stdout
    assert "0 errors, 0 hints" in words.stdout
    answer = run("check", acdc, "--json", "--jobs", 1, "--split", "acdc-70-10-20")
    content = json.loads(answer.stdout)
    assert content["layout"] == "acdc"
    assert len(content["split"]["test"]) == 2
    assert content["findings"] == []
    assert content["cases"][0]["volumes_ml"]["left ventricle"] > 10
    assert str(acdc) not in answer.stdout


def test_an_error_is_exit_code_1_and_wrong_usage_2(acdc, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["patient001_frame01"], "validation": ["none"]}))
    bad = run("check", acdc, "--split", split, "--jobs", 1)
    assert bad.exit_code == 1
    assert "split-unknown-case" in bad.stdout
    answer = json.loads(run("check", acdc, "--split", split, "--jobs", 1, "--json").stdout)
    assert answer["findings"][0]["severity"] == "error"
    assert answer["split"] is None
    absent = run("check", tmp_path / "absent")
    assert absent.exit_code == 2
    assert "dataset-missing" in absent.stderr
    unknown = run("phantom", "hearts", "-o", tmp_path / "x")
    assert unknown.exit_code == 2
    assert "[phantom]" in unknown.stderr


def test_folds_are_written_once(acdc, tmp_path):
    out = tmp_path / "folds.json"
    result = run("split", acdc, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "five folds of 2, 2, 2, 2, 2" in result.stdout
    data = read_datalist(acdc, split=str(out), fold=4)
    assert len(data.validation) == 2
    answer = json.loads(run("split", acdc, "-o", tmp_path / "more.json", "--json").stdout)
    assert answer["folds"]["validation_cases"] == [2, 2, 2, 2, 2]
    assert (tmp_path / "more.json").read_text() == out.read_text()
    again = run("split", acdc, "-o", out)
    assert again.exit_code == 2
    assert "a name that is still free" in again.stderr


def test_a_scheme_is_printed_as_a_configuration_takes_it():
    table = run("schemes")
    assert all(name in table.stdout for name in SCHEMES)
    labels = yaml.safe_load(run("schemes", "transunet-8").stdout)["labels"]
    assert LabelScheme.from_dict(labels) == SCHEMES["transunet-8"]
    labels = json.loads(run("schemes", "acdc", "--json").stdout)["labels"]
    assert LabelScheme.from_dict(labels) == SCHEMES["acdc"]
    assert set(json.loads(run("schemes", "--json").stdout)["schemes"]) == set(SCHEMES)
    assert run("schemes", "acdcc").exit_code == 2


def test_phantom_in_json(tmp_path):
    result = run("phantom", "msd", "--cases", 1, "-o", tmp_path / "m", "--size", "small", "--json")
    assert json.loads(result.stdout)["phantom"]["cases"] == 1


def test_layouts_splits_and_phantoms_are_listed():
    words, answer = run("layouts"), json.loads(run("layouts", "--json").stdout)
    assert {"brats", "dicom"} <= set(answer["layouts"])
    assert set(answer["splits"]) == {"transunet", "acdc-70-10-20", "acdc-nnformer"}
    assert all(name in words.stdout for table in ("layouts", "phantoms") for name in answer[table])


def test_the_line_of_the_split_says_which_cases_cannot_be_used(tmp_path):
    root = tmp_path / "msd"
    write_phantom("msd", root, cases=4, size="small")
    names = [f"hippocampus_{number:03d}" for number in range(1, 5)]
    (root / "split.json").write_text(json.dumps({"train": names[:3], "validation": names[3:]}))
    for name in names[:2]:
        (root / "imagesTr" / f"{name}.nii.gz").write_bytes(b"")
    result = run("check", root, "--jobs", 1)
    assert result.exit_code == 1
    assert "3 to train (2 with errors), 1 to validate: " in result.stdout


def test_folders_of_dicom_cases_are_shown_on_request_alone(tmp_path):
    root = tmp_path / "archive"
    for name in ("Mueller", "Meier"):
        (root / name).mkdir(parents=True)
        small_series(root / name / "series", patient_id=name)
    scan = read_image(root / "Mueller" / "series")
    data = np.zeros(scan.volume.grid.shape_ijk, np.uint8)
    data[1, 1, 1] = 1
    labels = LabelMap(data, scan.volume.grid, LabelScheme.plain("one", {1: "ball"}))
    write_seg(labels, root / "Mueller" / "seg.dcm", scan.source, algorithm=Algorithm("test", "1"))
    hidden = run("check", root, "--jobs", 1)
    assert hidden.exit_code == 1
    assert "folder 1 of 2" in hidden.stdout
    assert "layout dicom, channels MR, labels dicom: 1 of 2 cases" in hidden.stdout
    assert "Mueller" not in hidden.stdout
    assert "Meier" not in hidden.stdout
    shown = run("check", root, "--jobs", 1, "--show-folders")
    assert "Meier" in shown.stdout
    answer = json.loads(run("check", root, "--jobs", 1, "--show-folders", "--json").stdout)
    (case,) = [case["case"] for case in answer["cases"]]
    assert answer["folders"] == {"folder 1 of 2": "Meier", case: "Mueller/series"}
    assert "folders" not in json.loads(run("check", root, "--jobs", 1, "--json").stdout)


def test_other_layouts_have_no_folders_to_show(acdc):
    answer = json.loads(run("check", acdc, "--jobs", 1, "--show-folders", "--json").stdout)
    assert answer["folders"] == {}
