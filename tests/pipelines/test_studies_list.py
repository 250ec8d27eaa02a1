import json

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.dicom_variants import setting
from tests.series import small_series, spoil, spoil_all
from tests.tiny_model import write_tiny_model


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    for number, words in ((1, "t1_se tra DOE"), (2, "t2_tse tra")):
        small_series(folder / str(number), series_number=number)
        tags = {"SeriesDescription": words, "PatientName": "DOE^JOHN", "PatientID": "4711"}
        spoil_all(folder / str(number), setting(**tags))
    (folder / "2" / "00003.dcm").unlink()
    report = setting(Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    spoil(folder / "1" / "00001.dcm", report, folder / "report")
    (folder / "broken").write_bytes((folder / "1" / "00001.dcm").read_bytes()[:150])
    return folder


def test_a_table_shows_what_to_choose_from_and_nothing_of_the_patient(study):
    done = CliRunner().invoke(app, ["studies", "list", str(study)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["study", "no", "series", "modality", "description"]
    assert [line.split()[:3] for line in lines[2:4]] == [["1", "1", "1"], ["2", "2", "2"]]
    assert "2 studies lie here; numbers for --series are those of" in done.stdout
    assert "t1_se tra ..." in lines[2]
    assert lines[2].split()[-1] == "ok"
    assert "slice-gap" in lines[3]
    assert "beside the images: 1 SR" in done.stdout
    assert "cut off or damaged in its header [dicom-unreadable]" in done.stdout
    assert "as most of them are, found a gap of 4.000 mm" in done.stdout
    assert not any(word in done.output for word in ("DOE", "JOHN", "4711"))


def test_json_tells_the_same(study):
    done = CliRunner().invoke(app, ["studies", "list", str(study), "--allow-gaps", "--json"])
    content = json.loads(done.stdout)
    assert [one["number"] for one in content["series"]] == [1, 2]
    assert [one["problem"] for one in content["series"]] == [None, None]
    assert content["series"][0]["spacing_mm"] == pytest.approx([1.5, 1.25, 2.0])
    assert content["other_objects"] == {"SR": 1}
    assert content["unreadable_files"] == 1
    assert content["studies"] == 2
    assert [one["study"] for one in content["series"]] == [1, 2]
    assert not any(word in done.output for word in ("DOE", "JOHN", "4711", "1.2.826"))


def test_the_table_of_one_study_needs_no_number_of_it(study):
    done = CliRunner().invoke(app, ["studies", "list", str(study / "2")])
    assert done.stdout.split()[:2] == ["no", "series"]
    assert "studies lie here" not in done.stdout


def test_the_series_that_a_model_would_be_given_is_told(study, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    done = CliRunner().invoke(app, ["studies", "list", str(study), "-m", str(model)])
    assert "T1: series number 1 of this list" in done.stdout


def test_a_folder_without_images_is_refused(tmp_path):
    done = CliRunner().invoke(app, ["studies", "list", str(tmp_path)])
    assert done.exit_code == 1
    assert "[no-images]" in done.stderr
