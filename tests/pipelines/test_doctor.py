"""`medseg doctor PATH` says what a prediction would make of images: words, codes, remedies."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.core import Grid, Volume
from medseg.events import Silent
from medseg.io.notes import Note, of_channel
from medseg.io.writing import write_volume
from pipelines import preflight
from pipelines.cli import app
from pipelines.discovery import find_cases
from pipelines.findings import finding_of_note
from pipelines.preflight import Examination, case_verdicts
from tests.dicom_variants import on_a_disc, setting, tilted_series, zipped
from tests.series import small_series, spoil_all
from tests.test_documents import codes_in_document
from tests.tiny_model import write_tiny_model

PROCESSES_FOR = preflight._processes_for
GRID = Grid((16, 16, 16), np.diag([-1.0, -1.0, 1.0, 1.0]))
PATIENT = {"PatientName": "DOE^JOHN", "PatientID": "4711", "SeriesDescription": "t1 DOE"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """Nothing about the machine, and one process: both have tests of their own and take seconds."""
    monkeypatch.setattr("pipelines.doctor.examine", list)
    monkeypatch.setattr(preflight, "_processes_for", lambda cases: 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Good and broken images of every kind, as a folder that somebody wants segmented."""
    root = tmp_path_factory.mktemp("work") / "JOHN DOE"
    root.mkdir()
    for name in ("whole", "gap", "pixels", "header"):
        small_series(root / name, GRID)
        spoil_all(root / name, setting(**PATIENT))
    (root / "gap" / "00007.dcm").unlink()
    victim = root / "pixels" / "00003.dcm"
    victim.write_bytes(victim.read_bytes()[:-100])
    (root / "header" / "00009.dcm").write_bytes((root / "header" / "00001.dcm").read_bytes()[:150])
    tilted_series(root / "tilt", GRID, (0.0, 0.3, 0.0))
    disc = root / "disc"
    on_a_disc(root / "whole", disc)
    zipped(root / "whole", root / "study.zip")
    (root / "broken.zip").write_bytes(b"PK\3\4 no zip")
    data = np.random.default_rng(0).normal(100, 20, (1, 16, 16, 16)).astype(np.int16)
    write_volume(Volume(data, GRID), root / "good.nii.gz")
    write_volume(Volume(np.full_like(data, 7), GRID), root / "constant.nii.gz")
    write_volume(Volume(data[..., :1], Grid((16, 16, 1), GRID.affine_ras)), root / "slice.nii.gz")
    (root / "cut.nii.gz").write_bytes((root / "good.nii.gz").read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def verdicts(*arguments, code=0):
    content = json.loads(run(*arguments, "--json", code=code).stdout)
    return {one["case"]: one for one in content["cases"]}, content["counts"]


def codes(verdict, state="problem"):
    return [one["code"] for one in verdict["findings"] if one["state"] == state]


def test_what_is_refused_is_what_a_prediction_refuses_with_the_same_code(study, model, tmp_path):
    found, counts = verdicts(study, "-m", model, code=1)
    told = [codes(found[name])[:1] for name in sorted(found)]
    out = tmp_path / "out"
    words = ["predict", str(study), "-m", str(model), "-o", str(out), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, done.output
    predicted = json.loads(done.stdout)["cases"]
    refused = sorted(case["code"] for case in predicted if case["state"] == "failed")
    assert refused == sorted(code for codes in told for code in codes)
    assert refused == [
        "dicom-pixels",
        "dicom-unreadable",
        "file-truncated",
        "image-constant",
        "image-one-slice",
        "slice-gap",
        "zip-damaged",
    ]
    assert counts["refused"] == 7
    assert counts["ready"] + counts["notes"] == len(predicted) - 7


def test_every_finding_has_a_documented_code_and_a_remedy(study, model):
    for options in ((), ("-m", model), ("-m", model, "--headers")):
        found, _ = verdicts(study, *options, code=1)
        for verdict in found.values():
            for finding in verdict["findings"]:
                assert finding["code"] in codes_in_document()
                assert len(finding["remedy"]) > 10
                assert len(finding["text"]) > 10


def test_a_summary_comes_first_then_tables_without_the_patient(study, model):
    done = run(study, "-m", model, code=1)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"12 cases: \d ready, \d ready with notes, 7 would be refused.*", lines[0])
    assert lines[1].split()[:3] == ["case", "kind", "volumes"]
    assert "a gap of 2.000 mm" in done.stdout
    assert not any(word in done.output for word in ("DOE", "JOHN", "4711", "1.2.826", str(study)))
    named = run(study, "--log-phi", code=1)
    assert str(study / "gap") in named.stdout


def test_without_a_model_every_volume_is_looked_at(tmp_path):
    root = tmp_path / "study"
    root.mkdir()
    for number in (1, 2, 3):
        small_series(root / str(number), GRID, series_number=number)
    (root / "2" / "00002.dcm").unlink()
    archive = zipped(root, tmp_path / "study.zip")
    found, counts = verdicts(archive)
    (verdict,) = found.values()
    assert verdict["volumes"] == 3
    noted = [code for code in codes(verdict, "note") if code != "identity-empty"]
    assert noted == ["studies-several", "series-ambiguous", "slice-gap"]
    assert "3 volumes, of which 2 can be read" in verdict["findings"][1]["text"]
    assert counts == {"ready": 0, "notes": 1, "refused": 0}
    gaps, _ = verdicts(archive, "--allow-gaps")
    assert "slice-gap-filled" in codes(gaps["study 1"], "note")
    (root / "1").rename(tmp_path / "kept")
    shutil.rmtree(root / "3")
    found, _ = verdicts(root, code=1)
    assert codes(found["study 1"]) == ["slice-gap"]


def test_the_series_that_a_model_would_be_given_is_told_or_why_there_is_none(tmp_path):
    root = tmp_path / "study"
    root.mkdir()
    for number, words in ((1, "t2_tse"), (2, "t1_se"), (3, "t1_se")):
        small_series(root / str(number), GRID, series_number=number)
        shared = {"FrameOfReferenceUID": "1.2.3", "StudyInstanceUID": "1.2.4"}
        spoil_all(root / str(number), setting(SeriesDescription=words, **shared))
    channels = {"channels": [{"name": "T1", "modality": "MR"}, {"name": "T2", "modality": "MR"}]}
    model = write_tiny_model(tmp_path / "model", inputs=channels)
    found, _ = verdicts(root, "-m", model, code=1)
    assert codes(found["study 1"]) == ["series-ambiguous"]
    found, _ = verdicts(root, "-m", model, "--series", "T1=2")
    assert found["study 1"]["given"] == {"T1": 2, "T2": 1}
    assert found["study 1"]["shape_ijk"] == [16, 16, 16]
    (root / "2" / "00002.dcm").unlink()
    # that one cannot be read does not say that the other was meant
    found, _ = verdicts(root, "-m", model, code=1)
    assert "series-ambiguous" in codes(found["study 1"])
    found, _ = verdicts(root, "-m", model, "--series", "T1=3")
    assert found["study 1"]["given"] == {"T1": 3, "T2": 1}
    topics = {one["topic"]: one["code"] for one in found["study 1"]["findings"]}
    assert topics["volume 2"] == "slice-gap"


def test_slices_of_one_series_in_several_folders_are_refused_and_copies_noted(tmp_path):
    root = tmp_path / "disc"
    (root / "DIR001").mkdir(parents=True)
    small_series(root / "DIR000", GRID)
    for path in sorted((root / "DIR000").iterdir())[8:]:
        path.rename(root / "DIR001" / path.name)
    small_series(root / "other", GRID)
    found, counts = verdicts(root, code=1)
    assert [name for name, one in found.items() if codes(one) == ["series-split"]] == [
        "study 1",
        "study 2",
    ]
    assert "8 here and 8 in study 2" in found["study 1"]["findings"][-1]["text"]
    assert counts["refused"] == 2
    found, counts = verdicts(root / "DIR000", root / "DIR001", code=1)
    assert counts["refused"] == 2
    shutil.rmtree(root / "DIR001")
    shutil.copytree(root / "DIR000", root / "copy")
    found, counts = verdicts(root)
    shared = [name for name, one in found.items() if "series-shared" in codes(one, "note")]
    assert shared == ["study 1", "study 2"]
    assert "lie here and in study 2, as copies" in found["study 1"]["findings"][-1]["text"]


def test_headers_alone_do_not_tell_of_pixels_but_of_all_else(study, model):
    found, counts = verdicts(study, "-m", model, "--headers", code=1)
    assert counts["refused"] == 6
    told = {code for verdict in found.values() for code in codes(verdict)}
    assert "dicom-pixels" not in told
    assert {"slice-gap", "dicom-unreadable", "image-one-slice"} <= told


def test_a_directory_of_a_disc_is_a_case(study):
    found, _ = verdicts(study / "disc" / "DICOMDIR")
    assert found["study 1"]["kind"] == "DICOMDIR"
    assert found["study 1"]["shape_ijk"] == [16, 16, 16]


def test_several_processes_find_what_one_does(study, monkeypatch):
    cases = find_cases([study], [])
    alone = list(case_verdicts(cases, Examination(), Silent()))
    monkeypatch.setattr(preflight, "_processes_for", lambda cases: 2)
    shared = list(case_verdicts(cases, Examination(), Silent()))
    in_order = [sorted(found, key=lambda verdict: verdict.number) for found in (shared, alone)]
    assert in_order[0] == in_order[1]


def test_processes_are_as_many_as_cases_and_memory_are_good_for(study, monkeypatch):
    cases = find_cases([study], [])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert PROCESSES_FOR(cases) == len(cases) // 4
    assert PROCESSES_FOR(cases[:4]) == 1
    monkeypatch.setattr(preflight, "_SHARE_OF_MEMORY", 1e-12)
    assert PROCESSES_FOR(cases) == 1


def test_many_findings_are_counted_by_code(study, monkeypatch):
    monkeypatch.setattr("pipelines.commands.doctor._MOST_LINES", 3)
    done = run(study, code=1)
    header = done.stdout.splitlines()[1].split()
    assert header[:3] == ["times", "code", "cases"]
    (gap,) = [line for line in done.stdout.splitlines() if "slice-gap" in line]
    assert gap.split()[:5] == ["1", "problem", "slice-gap", "study", "5"]
    assert "--json tells of every case" in done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(["none.nii"], "file-missing"), (["--headers"], "usage"), ([".", "--series", "1"], "usage")],
)
def test_what_cannot_be_asked_is_wrong_usage(words, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"[{code}]" in run(*words, code=2).stderr


def test_an_empty_folder_and_a_foreign_file_are_problems(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    found, _ = verdicts(tmp_path / "empty", tmp_path / "notes.txt", code=1)
    assert {code for one in found.values() for code in codes(one)} == {
        "no-images",
        "format-unknown",
    }


def test_a_note_is_its_sentence_and_keeps_its_code():
    note = of_channel("T1", Note("it leans", code="stack-leans", remedy="nothing to do"))
    assert note == "T1: it leans"
    assert json.dumps(note) == '"T1: it leans"'
    finding = finding_of_note("image", note)
    assert (finding.code, finding.state) == ("stack-leans", "note")
    assert finding_of_note("image", "geometry from the sform (code 1)") is None


@pytest.mark.shared_data
def test_all_real_dicom_at_once_is_looked_at_and_nobody_is_named(shared_data):
    folders = ("06_*", "07_*", "08_*", "09_*", "12_*")
    paths = [path for folder in folders for path in sorted(shared_data.glob(folder))]
    done = run(*paths, "--headers", "--json", code=1)
    content = json.loads(done.stdout)
    states = {one["state"] for one in content["cases"]}
    assert states == {"ready", "notes", "refused"}
    assert all(
        one["code"] in codes_in_document() for c in content["cases"] for one in c["findings"]
    )
    assert not any(one["code"] == "unexpected" for c in content["cases"] for one in c["findings"])
    for case in content["cases"]:
        assert Path(case["case"]).name == case["case"]
