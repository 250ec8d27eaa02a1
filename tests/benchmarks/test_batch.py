"""The measurement of batch runs runs, and checks that both sides agree."""

import json
import time

import pytest
from typer.testing import CliRunner

from benchmarks import batch
from pipelines.cli import app


def here(words):
    """The command in this process: that it is started in one of its own is tested below."""
    clock = time.perf_counter()
    done = CliRunner().invoke(app, ["predict", *words])
    assert done.exit_code == 0, done.output
    return time.perf_counter() - clock


def test_it_measures_batch_and_loop(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures.json"
    words = ["--cases", "3", "--loop", "1", "--limit", "60", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["batch", *words])
    monkeypatch.setattr(batch, "_command", here)
    batch.main()
    told = json.loads(figures.read_text())
    assert told["cases"] == 3
    assert 0 < told["inference_share"] < 1
    assert 0 < told["overhead_seconds"] < told["work_seconds"]
    assert told["batch_cases_per_minute"] == pytest.approx(180 / told["batch_seconds"])
    assert "cases per minute" in capsys.readouterr().out


def test_an_overhead_that_is_not_below_the_limit_is_a_failure(monkeypatch, capsys):
    slow = batch.Figures(2, 60.0, 2.0, 50.0, 0.9, 0.3, 5.0, 1, 1.0, 2.0)
    monkeypatch.setattr(batch, "measure", lambda *arguments: slow)
    monkeypatch.setattr("sys.argv", ["batch"])
    with pytest.raises(SystemExit, match="1"):
        batch.main()
    assert "all else takes 0.300 s per case, NOT BELOW 0.3 s" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["batch", "--limit", "0.4"])
    batch.main()
    assert "below 0.4 s" in capsys.readouterr().out


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="medseg predict failed"):
        batch._command(["nothing", "-m", "nowhere", "-o", str(tmp_path)])
