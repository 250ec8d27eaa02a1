"""A ledger that is gone: what the reports prove is taken over, nothing else is touched."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.io.dicom_export import write_dicom_series
from medseg.io.nifti import write_nifti_volume
from medseg.studies.ledger import Ledger
from pipelines import workbench
from pipelines.cli import app
from pipelines.earlier import proven_ending
from tests.tiny_model import tiny_volume, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_nifti_volume(tiny_volume(1), folder / "a.nii.gz")
    write_nifti_volume(tiny_volume(2), folder / "b.nii")
    series = tiny_volume(3, np.diag([-1.0, -1.0, 1.0, 1.0]))
    write_dicom_series(series, folder / "Doe", modality="MR")
    return folder


def predict(*arguments, code=0):
    words = ["predict", *map(str, arguments), "--json", "--precision", "fp32", "--threads", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout), done.stderr


def lose(out):
    for path in out.glob("ledger.sqlite*"):
        path.unlink()


def contents(out):
    """All results; what a run tells of itself changes."""
    return {
        path.name: path.read_bytes()
        for path in out.iterdir()
        if not path.name.startswith(("ledger", "cohort", "index"))
    }


def refuse(*arguments, **more):
    raise AssertionError("computed again")


def test_proven_cases_are_not_computed_again_also_where_names_come_from_a_new_salt(
    model, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    first, _ = predict(data, "-m", model, "-o", out)
    before = contents(out)
    lose(out)
    with monkeypatch.context() as patch:
        patch.setattr(workbench, "predict_case", refuse)
        again, told = predict(data, "-m", model, "-o", out)
    assert "the folder has results, but no ledger" in told
    assert contents(out) == before
    assert [case["case"] for case in again["cases"]] == [case["case"] for case in first["cases"]]
    for old, new in zip(first["cases"], again["cases"], strict=True):
        assert new["state"] == "done"
        assert new["unchanged"]
        assert new["files"] == old["files"]
        assert new["volumes_ml"] == pytest.approx(old["volumes_ml"], abs=1e-4)
        assert "taken over by its report" in new["notes"]
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        assert {row.attempts for row in ledger.rows()} == {0}
    # known again, they are skipped as ever, and done again if they change
    _, told = predict(data, "-m", model, "-o", out)
    assert "no ledger" not in told
    write_nifti_volume(tiny_volume(9), data / "b.nii")
    answer, _ = predict(data, "-m", model, "-o", out)
    assert [case["case"] for case in answer["cases"] if not case["unchanged"]] == ["b"]


def test_what_reports_do_not_prove_is_left_alone_and_named(model, data, tmp_path):
    out = tmp_path / "out"
    first, _ = predict(data, "-m", model, "-o", out)
    (series,) = (case["case"] for case in first["cases"] if case["case"].startswith("case-"))
    lose(out)
    (out / "a_dseg.nii.gz").write_bytes(b"a day of work")
    write_nifti_volume(tiny_volume(9), data / "b.nii")
    (out / f"{series}_dseg.tsv").unlink()
    before = contents(out)
    answer, _ = predict(data, "-m", model, "-o", out, code=1)
    found = {case["case"]: case for case in answer["cases"]}
    for name, why in (("a", "was changed after it was made"), ("b", "is of another image")):
        assert found[name]["code"] == "output-exists"
        assert f"that the ledger does not know, found one that {why}" in found[name]["message"]
    # the series is done under its new name, its broken old results stay
    (new,) = (name for name in found if name.startswith("case-"))
    assert (new != series, found[new]["state"]) == (True, "done")
    assert before.items() <= contents(out).items()
    answer, _ = predict(data, "-m", model, "-o", out, "--overwrite")
    assert {case["state"] for case in answer["cases"]} == {"done"}


def test_a_damaged_ledger_is_named_and_the_remedy_works(model, data, tmp_path, monkeypatch):
    out, path = tmp_path / "out", tmp_path / "out" / "ledger.sqlite"
    predict(data, "-m", model, "-o", out)
    before, whole = contents(out), path.read_bytes()
    damages = {
        "ledger-damaged": whole[: len(whole) // 2],
        "ledger-foreign": b"",
        "ledger-version": whole[:60] + (99).to_bytes(4, "big") + whole[64:],
    }
    for code, content in damages.items():
        path.write_bytes(content)
        answer, _ = predict(data, "-m", model, "-o", out, code=1)
        assert answer["error"]["code"] == code
        assert path.read_bytes() == content
        if code != "ledger-version":
            assert "move it away and run the same command again" in answer["error"]["message"]
    path.rename(tmp_path / "moved away")
    monkeypatch.setattr(workbench, "predict_case", refuse)
    answer, _ = predict(data, "-m", model, "-o", out)
    assert {case["state"] for case in answer["cases"]} == {"done"}
    assert contents(out) == before


def test_every_reason_why_results_prove_nothing_is_told(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    report = out / "b_report.json"
    whole = json.loads(report.read_text(encoding="utf-8"))
    proof = whole["proof"]

    def told(**changes):
        report.write_text(json.dumps(whole | changes), encoding="utf-8")
        return proven_ending(
            "b",
            out,
            fingerprint=proof["input_sha256"],
            settings=proof["settings_sha256"],
            stamp="s",
        )

    assert told().state == "done"
    assert told(proof=None) == "has a report without proof, of another release or of a single case"
    assert told(proof={**proof, "input_sha256": "0"}) == "is of another image"
    assert told(proof={**proof, "settings_sha256": "0"}) == (
        "was made with other models, options or another release"
    )
    assert told(refused={"dicom_seg": {}}) == "lacks a result that was refused"
    assert told(files={}) == "was changed after it was made"
    outside = {"nifti": {"name": "../x", "sha256": "0"}, "../y": {"sha256": "0"}}
    assert told(files=outside) == "was changed after it was made"
    (out / "b_preview.png").write_bytes(b"mine")
    assert told() == "lies beside files that its report does not name"
    report.write_bytes(b"[]")
    assert (
        proven_ending("b", out, fingerprint="", settings="", stamp="")
        == "has no report that can be read"
    )
