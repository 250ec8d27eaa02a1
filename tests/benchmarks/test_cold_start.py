"""The benchmark of the cold start: its marks rise, and imports are summed by package."""

import subprocess
import sys

import pytest

from benchmarks import cold_start
from benchmarks.cold_start import STAGES, Run, Share


def test_a_run_gives_rising_marks_and_the_stages_of_the_report(tmp_path, capsys):
    run, _ = cold_start.run_once(tmp_path)
    seconds = [run.marks[mark] for mark in STAGES]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert run.stages["network"] <= run.marks["end"]
    cold_start.print_figures(run, [run], [run.marks["prepared"] / 2])
    assert "2.00 times that" in capsys.readouterr().out


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cold_start, "MODEL", "no_such_model")
    with pytest.raises(RuntimeError, match="no_such_model"):
        cold_start.run_once(tmp_path)


def test_imports_are_summed_over_packages_slowest_first():
    text = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   json.decoder
import time:   2000000 |    2000100 | json
a line of the program
import time:   3000000 |    3000000 |     torch._C"""
    assert cold_start.shares(text) == [Share("torch", 3.0, 1), Share("json", 2.0001, 2)]


def test_lines_of_this_python_are_understood():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import json"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {share.package: share.modules for share in cold_start.shares(done.stderr)}
    assert modules["json"] >= 3


def test_the_command_prints_both_tables_and_refuses_monai(tmp_path, monkeypatch, capsys):
    run = Run(dict.fromkeys(STAGES, 2.0), {"read": 0.5})
    lines = ["import time: 400000 | 400000 | torch"]
    monkeypatch.setattr(cold_start, "run_once", lambda cache, *options: (run, "\n".join(lines)))
    monkeypatch.setattr(cold_start, "import_monai", lambda: 4.0)
    figures = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["cold_start", "--repeats", "2", "--json", str(figures)])
    cold_start.main()
    printed = capsys.readouterr().out
    assert "0.50 times that" in printed
    assert "torch" in printed
    assert figures.exists()
    lines.append("import time: 1 | 1 | monai.utils")
    with pytest.raises(SystemExit, match="imports MONAI"):
        cold_start.main()
