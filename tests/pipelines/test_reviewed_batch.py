"""A batch run goes on beside reviews: what somebody accepted or corrected is kept until asked."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.core import Grid, Volume
from medseg.io.nifti import write_nifti_volume
from medseg.studies.ledger import Ledger
from medseg.studies.reviews import add_review, latest_review, result_sums
from pipelines.cli import app
from tests.tiny_model import write_tiny_model

SHAPE = (16, 16, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write(folder / f"{name}.nii", number)
    return folder


def write(path, seed):
    voxels = np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.int16)
    write_nifti_volume(Volume(voxels[None], Grid(SHAPE, np.eye(4))), path)


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def predict(*arguments):
    done = run("predict", *arguments, "--json", "--precision", "fp32")
    answer = json.loads(done.stdout)
    return {case["case"] for case in answer["cases"] if not case["unchanged"]}, done.stderr


def judge(out, name, state, **more):
    with Ledger.open(out / "ledger.sqlite") as ledger:
        [row] = [row for row in ledger.rows() if row.name == name]
        last = latest_review(ledger, row.number)
        return add_review(
            ledger,
            row.number,
            state,
            after=0 if last is None else last.revision,
            result=result_sums(ledger)[row.number],
            **more,
        )


def table(out):
    rows = csv.DictReader((out / "cohort.csv").read_text(encoding="utf-8").splitlines())
    return {row["case"]: row for row in rows}


def test_what_was_accepted_or_corrected_is_not_done_again_unless_it_is_sent_back(
    model, data, tmp_path
):
    out = tmp_path / "out"
    assert predict(data, "-m", model, "-o", out, "--uncertainty")[0] == {"a", "b", "c"}
    first = {name: (out / f"{name}_dseg.nii.gz").read_bytes() for name in "abc"}
    judge(out, "a", "accepted")
    kept = out / "corrected" / "b_dseg.nii.gz"
    kept.parent.mkdir()
    kept.write_bytes(b"an hour of work")
    judge(out, "b", "corrected", file="corrected/b_dseg.nii.gz", note="Mrs X", effort={})
    judge(out, "c", "rejected")

    # the same command finds nothing to do, and writes no other table than before
    assert predict(data, "-m", model, "-o", out, "--uncertainty")[0] == set()
    # with other options the rejected case alone is done again
    redone, told = predict(data, "-m", model, "-o", out, "--uncertainty", "--overlap", "0.25")
    assert redone == {"c"}
    assert "a: was accepted in review and is kept as it is" in told
    assert "b: was corrected in review and is kept as it is" in told
    assert (out / "a_dseg.nii.gz").read_bytes() == first["a"]
    assert kept.read_bytes() == b"an hour of work"

    rows = table(out)
    states = {name: row["review"].split(",")[0] for name, row in rows.items()}
    assert states == {"a": "accepted", "b": "corrected", "c": "rejected"}
    assert all(0 < float(row["doubt"]) <= 1 for row in rows.values())
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<th scope=col>review</th>" in page
    assert "Mrs X" not in page + json.dumps(rows)
    status = json.loads(run("studies", "status", out, "--json", "--reviewed").stdout)
    assert status["reviews"] == {"not reviewed": 0, "accepted": 1, "corrected": 1, "rejected": 1}
    assert [one["case"] for one in status["reviewed"]] == ["a", "b", "c"]
    assert "note" not in status["reviewed"][1]
    shown = run("studies", "status", out, "--reviewed").stdout
    assert "corrected/b_dseg.nii.gz" in shown
    assert "Mrs X" not in shown
    assert "Mrs X" in run("studies", "status", out, "--reviewed", "--log-phi").stdout

    # asked for: done again, what was accepted is kept beside it, and its review is of then
    run("studies", "retry", out, "--case", "a")
    assert predict(data, "-m", model, "-o", out, "--uncertainty", "--overlap", "0.25")[0] == {"a"}
    [aside] = (out / "set-aside").iterdir()
    assert aside.read_bytes() == first["a"]


def test_an_accepted_case_is_done_again_where_its_image_or_its_result_is_another_now(
    model, data, tmp_path
):
    out = tmp_path / "out"
    predict(data / "a.nii", data / "b.nii", "-m", model, "-o", out)
    first = (out / "a_dseg.nii.gz").read_bytes()
    judge(out, "a", "accepted")
    judge(out, "b", "accepted")
    write(data / "a.nii", 9)
    (out / "b_dseg.nii.gz").write_bytes(b"by hand")
    redone, _ = predict(data / "a.nii", data / "b.nii", "-m", model, "-o", out)
    assert redone == {"a", "b"}
    assert {path.read_bytes() for path in (out / "set-aside").iterdir()} == {first, b"by hand"}
    assert (out / "a_dseg.nii.gz").read_bytes() != first
    assert table(out)["a"]["review"] == "accepted, of an earlier result"
    assert table(out)["b"]["review"] == "accepted"  # the same result came out again


def test_overwriting_keeps_what_was_accepted_aside(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "a.nii", "-m", model, "-o", out)
    first = (out / "a_dseg.nii.gz").read_bytes()
    judge(out, "a", "accepted")
    assert predict(data / "a.nii", "-m", model, "-o", out, "--overwrite")[0] == {"a"}
    assert [path.read_bytes() for path in (out / "set-aside").iterdir()] == [first]


def test_the_doubt_of_a_case_is_taken_over_with_its_results(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "a.nii", "-m", model, "-o", out, "--uncertainty")
    doubt = table(out)["a"]["doubt"]
    assert doubt
    for path in out.glob("ledger.sqlite*"):
        path.unlink()
    assert predict(data / "a.nii", "-m", model, "-o", out, "--uncertainty")[0] == set()
    assert table(out)["a"]["doubt"] == doubt
