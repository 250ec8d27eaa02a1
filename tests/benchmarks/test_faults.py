"""The fault campaign in small: one kill, and proof that it would notice a difference."""

import csv
import json
import os

import pytest

from benchmarks import faults
from benchmarks.broken_studies import BROKEN
from benchmarks.faults import differences
from tests.forked import program


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_equals_one_left_alone(tmp_path):
    words = ["--kills", "1", "--cases", "2", "--seed", "1", "--json", str(tmp_path / "told.json")]
    done = program("benchmarks.faults", *words)
    assert done.returncode == 0, (done.stdout, done.stderr)
    content = json.loads((tmp_path / "told.json").read_text())
    assert sum(trial["killed"] for trial in content["trials"]) == 1
    assert len({row["kind"] for row in content["broken"]}) == len(BROKEN) >= 28
    assert all(row["code"] == row["expected"] for row in content["broken"])
    assert not any(str(tmp_path) in row["sentence"] for row in content["broken"])
    assert "broken ones named in every one" in done.stdout


def folder(path, state="done", seconds="1.0", labels=b"labels", voxels=5):
    path.mkdir()
    (path / "a_dseg.nii.gz").write_bytes(labels)
    report = {"seconds": seconds, "memory": {}, "files": {"dicom_seg": seconds}, "voxels": voxels}
    (path / "a_report.json").write_text(json.dumps(report))
    with (path / "cohort.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "state", "seconds", "attempts"])
        table.writerow(["a", state, seconds, "1"])
    (path / "ledger.sqlite").write_bytes(os.urandom(8))
    return path


def test_the_comparison_passes_over_seconds_and_nothing_else(tmp_path):
    one = folder(tmp_path / "one")
    assert differences(one, folder(tmp_path / "slower", seconds="2.0")) == []
    assert differences(one, folder(tmp_path / "labels", labels=b"other")) == ["a_dseg.nii.gz"]
    assert differences(one, folder(tmp_path / "voxels", voxels=6)) == ["a_report.json"]
    assert differences(one, folder(tmp_path / "state", state="failed")) == ["cohort.csv"]
    more = folder(tmp_path / "more")
    (more / ".0123456789abcdef.tmp.nii.gz").write_bytes(b"")
    assert differences(one, more) == [".0123456789abcdef.tmp.nii.gz"]


def told(path, rows):
    path.mkdir()
    with (path / "cohort.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "state", "code", "message", "seconds", "attempts"])
        table.writerows([*row, "a sentence", "1.0", "1"] for row in rows)
    return path


def test_a_wrong_code_a_good_case_left_and_an_accident_are_noticed(tmp_path):
    good = [("study00000", "done", ""), ("series", "done", "")]
    broken = [(one.case, "failed", one.code) for one in BROKEN]
    table = faults._check_states(told(tmp_path / "whole", [*good, *broken]), 1, BROKEN)
    assert [row["code"] for row in table] == [one.code for one in BROKEN]
    wrong = [(BROKEN[0].case, "failed", "units"), *broken[1:]]
    with pytest.raises(RuntimeError, match=BROKEN[0].kind):
        faults._check_states(told(tmp_path / "code", [*good, *wrong]), 1, BROKEN)
    with pytest.raises(RuntimeError, match=r"not done: .'series'"):
        faults._check_states(told(tmp_path / "left", [good[0], *broken]), 1, BROKEN)
    more = [*good, *broken, ("theirs", "failed", "unexpected")]
    with pytest.raises(RuntimeError, match=r"ended by accident: .'theirs'"):
        faults._check_states(told(tmp_path / "odd", more), 1, BROKEN)
    known = [*good, *broken, ("theirs", "failed", "slice-gap")]
    with pytest.raises(RuntimeError, match=f"{len(BROKEN) + 3} cases"):
        faults._check_states(told(tmp_path / "theirs", known), 1, BROKEN)
    with pytest.raises(RuntimeError, match=r"taken along that ended by accident: .'theirs'"):
        faults._ended(told(tmp_path / "strange", more))
    assert faults._ended(told(tmp_path / "named", known))["slice-gap"] >= 1
