"""Batch runs: what is proven is skipped, what changed is done again, nobody's work is replaced."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.errors import ResourceError
from medseg.events import Silent
from medseg.io.dicom_export import write_dicom_series
from medseg.io.nifti import write_nifti_volume
from medseg.studies.ledger import Ledger
from pipelines import workbench
from pipelines.batch import open_batch, place_of
from pipelines.cli import app
from pipelines.discovery import expected_bytes, find_cases
from pipelines.infer import Case
from pipelines.predict import make_order
from pipelines.results import Wishes
from tests.tiny_model import tiny_volume, write_tiny_model

SHAPE = (16, 16, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    write_nifti_volume(tiny_volume(1), folder / "a.nii.gz")
    write_nifti_volume(tiny_volume(2), folder / "b.nii")
    write_nifti_volume(tiny_volume(3), folder / "sub" / "a.nii.gz")
    return folder


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def predict(*arguments, code=0):
    done = run("predict", *arguments, "--json", "--precision", "fp32", code=code)
    return json.loads(done.stdout)


def states(answer):
    return {case["case"]: case["state"] for case in answer["cases"]}


def redone(answer):
    return {case["case"] for case in answer["cases"] if not case["unchanged"]}


def content(out):
    """Files of cases but for reports, which tell seconds and memory."""
    return {
        path.name: path.read_bytes()
        for path in out.iterdir()
        if "_dseg" in path.name or "_statistics" in path.name
    }


def test_a_folder_is_done_once_and_only_what_changed_again(model, data, tmp_path):
    out = tmp_path / "out"
    answer = predict(data, "-m", model, "-o", out)
    assert states(answer) == {"a": "done", "b": "done", "sub_a": "done"}
    assert redone(answer) == {"a", "b", "sub_a"}
    first = content(out)

    assert redone(predict(data, "-m", model, "-o", out)) == set()
    assert content(out) == first

    write_nifti_volume(tiny_volume(9), data / "b.nii")
    assert redone(predict(data, data / "b.nii", "-m", model, "-o", out)) == {"b"}
    assert {name for name in first if content(out)[name] != first[name]} >= {"b_dseg.nii.gz"}

    (out / "a_dseg.tsv").unlink()
    assert redone(predict(data, "-m", model, "-o", out)) == {"a"}
    assert content(out)["a_dseg.tsv"] == first["a_dseg.tsv"]

    answer = predict(data, "-m", model, "-o", out, "--overlap", "0.25")
    assert redone(answer) == {"a", "b", "sub_a"}
    assert (
        redone(predict(data, "-m", model, "-o", out, "--overlap", "0.25", "--threads", 1)) == set()
    )


def test_a_file_that_is_only_touched_or_moved_is_the_same_image(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data, "-m", model, "-o", out)
    os.utime(data / "b.nii", (1, 1))
    moved = tmp_path / "elsewhere" / "data"
    moved.parent.mkdir()
    data.rename(moved)
    assert redone(predict(moved, "-m", model, "-o", out)) == set()
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        assert all(str(moved) in row.channels[""] for row in ledger.rows())


def test_times_can_be_trusted_instead_of_reading_again(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    before = (data / "b.nii").stat()
    write_nifti_volume(tiny_volume(9), data / "b.nii")
    os.utime(data / "b.nii", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert redone(predict(data / "b.nii", "-m", model, "-o", out, "--trust-times")) == set()
    assert redone(predict(data / "b.nii", "-m", model, "-o", out)) == {"b"}


def test_a_result_that_somebody_corrected_is_kept(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    first = (out / "b_dseg.nii.gz").read_bytes()
    (out / "b_dseg.nii.gz").write_bytes(b"a day of work")
    answer = predict(data / "b.nii", "-m", model, "-o", out)
    assert redone(answer) == {"b"}
    assert any("was changed after it was made; it is kept as set-aside/" in note
               for note in answer["cases"][0]["notes"])  # fmt: skip
    assert [path.read_bytes() for path in (out / "set-aside").iterdir()] == [b"a day of work"]
    assert (out / "b_dseg.nii.gz").read_bytes() == first


def test_what_a_run_did_not_make_is_not_replaced_even_after_a_failure(model, data, tmp_path):
    out = tmp_path / "out"
    whole = (data / "b.nii").read_bytes()
    (data / "b.nii").write_bytes(whole[:400])
    assert predict(data / "b.nii", "-m", model, "-o", out, code=1)["cases"][0]["code"]
    (data / "b.nii").write_bytes(whole)
    (out / "b_dseg.nii.gz").write_bytes(b"by hand")
    answer = predict(data / "b.nii", "-m", model, "-o", out, code=1)
    assert answer["cases"][0]["code"] == "output-exists"
    assert (out / "b_dseg.nii.gz").read_bytes() == b"by hand"
    assert states(predict(data / "b.nii", "-m", model, "-o", out, "--overwrite")) == {"b": "done"}


def test_the_line_below_the_table_leads_to_the_image_that_failed(model, tmp_path):
    (tmp_path / "bad.nii").write_bytes(b"")
    out, ledger = tmp_path / "my out", tmp_path / "ledger.sqlite"
    done = run("predict", tmp_path / "bad.nii", "-m", model, "-o", out, "--ledger", ledger, code=1)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("why, and which"))
    shown = json.loads(run(*shlex.split(line.partition(": medseg ")[2]), "--json").stdout)
    assert shown["cases"][0]["images"] == {"": str(tmp_path / "bad.nii")}


def test_a_bad_case_is_named_and_redone_once_it_is_mended(model, data, tmp_path):
    out = tmp_path / "out"
    whole = (data / "a.nii.gz").read_bytes()
    (data / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    (data / "bad.nii").write_bytes(b"")
    answer = predict(data, "-m", model, "-o", out, code=1)
    assert states(answer) == {"a": "failed", "b": "done", "bad": "failed", "sub_a": "done"}
    assert (answer["failed"], answer["not_done"]) == (2, [])
    codes = {case["case"]: case.get("code") for case in answer["cases"]}
    assert (codes["a"], codes["bad"]) == ("file-truncated", "file-empty")
    table = list(csv.DictReader((out / "cohort.csv").read_text(encoding="utf-8").splitlines()))
    assert (table[0]["case"], table[0]["code"]) == ("a", "file-truncated")
    assert float(table[1]["near_ml"]) >= 0
    assert table[0]["near_ml"] == ""
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'value="failed" checked> failed (2)' in page
    assert str(tmp_path) not in page

    shown = run("studies", "status", out, "--failed", "--json").stdout
    status = json.loads(shown)
    assert status["states"]["failed"] == 2
    assert status["codes"] == {"file-empty": 1, "file-truncated": 1}
    assert str(tmp_path) not in shown
    told = json.loads(run("studies", "status", out, "--failed", "--log-phi", "--json").stdout)
    assert told["cases"][0]["images"] == {"": str(data / "a.nii.gz")}

    (data / "a.nii.gz").write_bytes(whole)
    answer = predict(data, "-m", model, "-o", out, code=1)
    assert redone(answer) == {"a", "bad"}
    assert states(answer)["a"] == "done"


def test_retry_sends_cases_back_and_report_writes_the_tables_again(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data, "-m", model, "-o", out)
    assert "1 case sent back" in run("studies", "retry", out, "--case", "b").stdout
    assert redone(predict(data, "-m", model, "-o", out)) == {"b"}
    assert "0 cases sent back" in run("studies", "retry", out).stdout
    wrong = run("studies", "retry", out, "--case", "nobody", code=2)
    assert "expected names or identifiers of cases in the ledger, found also nobody" in wrong.stderr
    (out / "cohort.csv").unlink()
    run("studies", "report", out)
    assert (out / "cohort.csv").read_text(encoding="utf-8").count("done") == 3
    answer = json.loads(run("studies", "report", out, "--json").stdout)
    assert answer["files"] == [str(out / "cohort.csv"), str(out / "index.html")]
    nothing = run("studies", "status", tmp_path, code=2)
    assert "expected the ledger of a batch run, found none" in nothing.stderr


def test_shards_share_the_cases_and_have_the_names_of_the_whole(model, data, tmp_path):
    out = tmp_path / "out"
    whole = predict(data, "-m", model, "-o", tmp_path / "whole")
    parts = [predict(data, "-m", model, "-o", out, "--shard", f"{n}/3") for n in (3, 1, 2)]
    done = [case["case"] for answer in parts for case in answer["cases"]]
    assert sorted(done) == sorted(states(whole))
    assert content(out) == content(tmp_path / "whole")
    for wrong in ("0/3", "4/3", "x"):
        refused = run("predict", data, "-m", model, "-o", out, "--shard", wrong, code=2)
        assert "expected part/parts, such as 1/8 to 8/8" in refused.stderr
    refused = run("predict", data, "-m", model, "-o", out, "--jobs", "0", code=2)
    assert "expected 1 to 64 cases that are read, and written, at a time" in refused.stderr


def test_a_ledger_elsewhere_leaves_none_in_the_folder(model, data, tmp_path):
    out, ledger = tmp_path / "out", tmp_path / "local" / "ledger.sqlite"
    ledger.parent.mkdir()
    options = ("--ledger", ledger, "--shard", "1/1")
    predict(data, "-m", model, "-o", out, *options)
    assert not (out / "ledger.sqlite").exists()
    assert {"cohort-1-of-1.csv", "index-1-of-1.html"} <= {path.name for path in out.iterdir()}
    assert redone(predict(data, "-m", model, "-o", out, *options)) == set()


def test_a_foreign_ledger_stops_the_run_before_it_begins(model, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "ledger.sqlite").write_text("mine")
    answer = predict(data, "-m", model, "-o", out, code=1)
    assert answer["error"]["code"] == "ledger-foreign"
    assert [path.name for path in out.iterdir()] == ["ledger.sqlite"]


def test_several_jobs_at_a_time_give_the_same_results(model, data, tmp_path):
    for number in range(4, 10):
        write_nifti_volume(tiny_volume(number), data / f"{number}.nii.gz")
    one, many = tmp_path / "one", tmp_path / "many"
    predict(data, "-m", model, "-o", one)
    predict(data, "-m", model, "-o", many, "--jobs", 4)
    assert content(one) == content(many)


def full(*arguments, **more):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_the_run_and_leaves_the_rest_for_later(
    model, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("medseg.io.nifti.gzip.GzipFile.write", full)
        answer = predict(data, "-m", model, "-o", out, code=1)
    assert answer["error"]["code"] == "disk-full"
    assert "run the same command again" in answer["error"]["message"]
    assert set(answer["not_done"]) | set(states(answer)) == {"a", "b", "sub_a"}
    assert "failed" not in states(answer).values()
    assert content(out) == {}
    assert states(predict(data, "-m", model, "-o", out)) == dict.fromkeys(
        ("a", "b", "sub_a"), "done"
    )


def test_a_share_that_vanishes_stops_the_run_instead_of_failing_every_case(
    model, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    read_case = workbench.read_case

    def unmounting(case, *rest):
        if case.name == "b":
            data.rename(tmp_path / "away")
        return read_case(case, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(workbench, "read_case", unmounting)
        answer = predict(data, "-m", model, "-o", out, code=1)
    assert answer["error"]["code"] == "input-vanished"
    assert str(tmp_path) not in answer["error"]["message"]
    assert "b" in answer["not_done"]
    (tmp_path / "away").rename(data)
    assert set(states(predict(data, "-m", model, "-o", out)).values()) == {"done"}


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_an_output_folder_that_vanishes_stops_the_run_and_is_not_made_anew(
    left, model, data, tmp_path, monkeypatch
):
    out, away = tmp_path / "out", tmp_path / "away"
    write_case = workbench.write_case
    named = []

    def unmounting(segmented, *rest, **more):
        result = write_case(segmented, *rest, **more)
        named.append(segmented.loaded.case.name)
        if len(named) == 1:
            out.rename(away)
            if left == "an empty folder":  # as where a share was mounted
                out.mkdir()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(workbench, "write_case", unmounting)
        done = run("predict", data, "-m", model, "-o", out, code=1)
    assert "expected the folder for the results to stay where it was" in done.stderr
    assert "run the same command: it goes on where it stopped [output-vanished]" in done.stderr
    assert len(named) == 1
    shutil.rmtree(out, ignore_errors=True)
    away.rename(out)
    assert states(predict(data, "-m", model, "-o", out)) == dict.fromkeys(
        ("a", "b", "sub_a"), "done"
    )


def test_an_output_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    model, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    with monkeypatch.context() as patch:  # root may write where permissions forbid it
        patch.setattr("pipelines.output.write_bytes", read_only)
        refused = run("predict", data, "-m", model, "-o", out, code=2)
    assert f"error: {out}: expected a, found" in refused.stderr  # not the file that was tried
    assert "found a read-only file system" in refused.stderr
    assert "[output-unwritable]" in refused.stderr
    with monkeypatch.context() as patch:  # read-only from the second case on
        write_case = workbench.write_case

        def write(segmented, *rest, **more):
            result = write_case(segmented, *rest, **more)
            patch.setattr("pipelines.output.write_bytes", read_only)
            patch.setattr(workbench, "write_case", read_only)
            return result

        patch.setattr(workbench, "write_case", write)
        answer = predict(data, "-m", model, "-o", out, code=1)
    assert answer["error"]["code"] == "output-unwritable"
    assert "failed" not in states(answer).values()
    assert len(answer["not_done"]) == 1
    assert set(states(predict(data, "-m", model, "-o", out)).values()) == {"done"}


def read_only(*arguments, **more):
    raise ResourceError(
        "out",
        expected="a",
        found="a read-only file system",
        remedy="c",
        code="output-unwritable",
    )


def test_what_is_said_of_a_case_names_it_once(model, data, tmp_path):
    (data / "bad.nii").write_bytes(b"")
    out = tmp_path / "out"
    done = run("predict", data, "-m", model, "-o", out, code=1)
    (line,) = (line for line in done.stderr.splitlines() if "[file-empty]" in line)
    assert line.startswith("bad: expected ")
    table = list(csv.DictReader((out / "cohort.csv").read_text(encoding="utf-8").splitlines()))
    (message,) = (row["message"] for row in table if row["case"] == "bad")
    assert message.startswith("expected ")
    planned = run("predict", data / "bad.nii", "-m", model, "--dry-run", code=1)
    assert planned.stderr.startswith("bad: expected ")
    assert str(tmp_path) not in planned.stderr
    named = run("predict", data / "bad.nii", "-m", model, "--dry-run", "--log-phi", code=1)
    assert named.stderr.startswith(f"bad: {data / 'bad.nii'}: expected ")


def test_an_image_that_changes_while_it_is_read_fails_that_case(model, data, tmp_path, monkeypatch):
    read_case = workbench.read_case

    def changing(case, *rest):
        loaded = read_case(case, *rest)
        os.utime(data / "b.nii", (1, 1))
        return loaded

    monkeypatch.setattr(workbench, "read_case", changing)
    answer = predict(data / "b.nii", "-m", model, "-o", tmp_path / "out", code=1)
    assert answer["cases"][0]["code"] == "input-changed"
    assert answer["cases"][0]["message"].startswith("expected an image that stays as it is")


def test_a_case_that_kills_three_times_is_left_out_until_it_is_sent_back(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    with closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
        ledger.execute("UPDATE cases SET deaths = 3, state = 'waiting', settings = NULL")
        ledger.commit()
    answer = predict(data, "-m", model, "-o", out, code=1)
    assert states(answer) == {"a": "done", "b": "done", "sub_a": "done"} | {"b": "failed"}
    (case,) = (case for case in answer["cases"] if case["state"] == "failed")
    assert case["code"] == "worker-died"
    assert "killed 3 times" in case["message"]
    assert states(predict(data, "-m", model, "-o", out, code=1)).get("b") == "failed"
    run("studies", "retry", out, "--code", "worker-died")
    assert set(states(predict(data, "-m", model, "-o", out)).values()) == {"done"}


def test_what_a_killed_run_left_half_written_is_cleared(model, data, tmp_path):
    out = tmp_path / "out"
    predict(data / "b.nii", "-m", model, "-o", out)
    (out / ".0123456789abcdef.tmp.nii.gz").write_bytes(b"half")
    (out / ".0123456789abcdef.tmp-journal").write_bytes(b"half")
    (out / ".mine.tmp").write_bytes(b"kept")
    predict(data / "b.nii", "-m", model, "-o", out)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".mine.tmp"]


def test_a_seg_that_cannot_be_made_leaves_the_rest_and_marks_the_case(model, tmp_path, monkeypatch):
    series = tmp_path / "Doe"
    write_dicom_series(tiny_volume(1, np.diag([-1.0, -1.0, 1.0, 1.0])), series, modality="MR")

    def refuse(*arguments, **more):
        raise ValueError("Doe, Jane")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("medseg.io.dicom_seg._described", refuse)
        answer = predict(series, "-m", model, "-o", out, code=1)
    (case,) = answer["cases"]
    assert (case["state"], case["code"], answer["incomplete"]) == ("incomplete", "seg-build", 1)
    assert "Doe" not in json.dumps(case)
    assert set(case["files"]) == {"nifti", "table", "statistics", "statistics_table", "report"}
    report = json.loads(Path(case["files"]["report"]).read_text(encoding="utf-8"))
    assert report["refused"]["dicom_seg"]["code"] == "seg-build"
    assert re.fullmatch("case-[0-9a-f]{12}", case["case"])
    answer = predict(series, "-m", model, "-o", out)
    assert redone(answer) == {case["case"]}
    assert "dicom_seg" in answer["cases"][0]["files"]


def test_what_another_run_did_meanwhile_is_not_looked_at_again(model, data, tmp_path, monkeypatch):
    options = {
        **{
            "precision": "fp32",
            "batch": 1,
            "overlap": None,
            "blending": "gaussian",
            "mirror": "none",
        },
        **{"max_ram_bytes": None, "max_vram_bytes": None, "post_processing": None},
    }
    order = make_order(
        [str(model)], options, device="cpu", out=tmp_path / "out", overwrite=False,
        wishes=Wishes(), roi=None,
    )  # fmt: skip
    todo, place = find_cases([data], []), place_of(order)
    with open_batch(order, todo) as first, open_batch(order, todo) as second:
        first.run(place, Silent())
        monkeypatch.setattr(workbench, "stamp", None)
        second.run(place, Silent())
        assert {row.state for row in second.rows()} == {"done"}
        assert {row.attempts for row in second.rows()} == {1}


def test_cases_are_found_below_a_folder_and_named_in_ways(data, tmp_path):
    (data / "DOE^JANE").mkdir()
    write_dicom_series(tiny_volume(1), data / "DOE^JANE" / "T1", modality="MR")
    (data / ".hidden").mkdir()
    shutil.copy(data / "b.nii", data / ".hidden" / "c.nii")
    shutil.copy(data / "b.nii", data / "b_dseg.nii.gz")
    (data / "out").mkdir()
    shutil.copy(data / "b.nii", data / "out" / "d.nii")
    (data / "sub" / "circle").symlink_to(data)
    found = find_cases([data], [], out=data / "out")
    assert [one.key for one in found] == [
        "data/DOE^JANE/T1", "data/a.nii.gz", "data/b.nii", "data/sub/a.nii.gz",
    ]  # fmt: skip
    assert [one.names for one in found] == [(), ("a", "a"), ("b", "b"), ("a", "sub_a")]
    named = find_cases([data], [], naming="input", out=data / "out")
    assert named[0].names == ("T1", "DOE_JANE_T1")
    assert all(one.names == () for one in find_cases([data], [], naming="id"))
    (one,) = find_cases([data / "DOE^JANE" / "T1"], [])
    assert (one.key, one.names) == ("T1", ())
    (tmp_path / "empty").mkdir()
    assert [one.key for one in find_cases([tmp_path / "empty"], [])] == ["empty"]


def test_memory_is_foretold_from_the_sizes_of_files(data):
    voxels = 2 * np.prod(SHAPE)
    for name in ("a.nii.gz", "b.nii"):
        assert voxels <= expected_bytes(Case(name, {"": data / name})) <= voxels + 400
    assert expected_bytes(Case("c", {"": data / "missing.nii"})) == 0


def test_the_plan_counts_the_cases_that_are_in_memory_beside_the_one(model, data):
    item = "cases read ahead or being written"

    def planned(*paths):
        answer = predict(*paths, "-m", model, "--dry-run", "--jobs", 2)
        items = answer["cases"][0]["plan"]["items"]
        return sum(one["bytes"] for one in items if one["name"] == item)

    largest = max(expected_bytes(found.case) for found in find_cases([data], []))
    assert planned(data) == 2 * 2 * largest * 2
    assert planned(data / "b.nii") == 0


def test_a_case_that_fits_only_by_itself_waits_until_it_is(model, data, tmp_path, monkeypatch):
    predict_case, asked = workbench.predict_case, []

    def tight(loaded, predictor, *arguments, **more):
        now, most = predictor.elsewhere()
        asked.append((loaded.case.name, most - now))
        if len(asked) == 1:
            raise ResourceError(
                "--max-memory", expected="a", found="b", remedy="c", code="memory-limit"
            )
        return predict_case(loaded, predictor, *arguments, **more)

    monkeypatch.setattr(workbench, "predict_case", tight)
    answer = predict(data, "-m", model, "-o", tmp_path / "out")
    assert set(states(answer).values()) == {"done"}
    assert asked[0][0] == asked[1][0]  # tried again, and nothing more may come in meanwhile
    assert asked[1][1] == 0
