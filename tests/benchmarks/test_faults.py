"""The fault campaign in small: two kills, and proof that it would notice a difference."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.broken_studies import BROKEN
from benchmarks.faults import differences

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_equals_one_left_alone(tmp_path):
    words = ["--kills", "2", "--cases", "2", "--seed", "1", "--json", str(tmp_path / "told.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["trials"]) == 2
    assert any(trial["killed"] for trial in told["trials"])
    assert len({row["kind"] for row in told["broken"]}) == len(BROKEN) >= 28
    assert all(row["code"] == row["expected"] for row in told["broken"])
    assert not any(str(tmp_path) in row["sentence"] for row in told["broken"])
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
