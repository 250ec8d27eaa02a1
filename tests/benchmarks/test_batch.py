"""The measurement of batch runs runs, and checks that both sides agree."""

import json

import pytest

from benchmarks import batch


@pytest.mark.slow
def test_it_measures_batch_and_loop(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures.json"
    words = ["--cases", "3", "--loop", "1", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["batch", *words])
    batch.main()
    told = json.loads(figures.read_text())
    assert told["cases"] == 3
    assert 0 < told["inference_share"] < 1
    assert 0 < told["overhead_seconds"] < told["work_seconds"]
    assert told["batch_cases_per_minute"] == pytest.approx(180 / told["batch_seconds"])
    assert "cases per minute" in capsys.readouterr().out


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="medseg predict failed"):
        batch._command(["nothing", "-m", "nowhere", "-o", str(tmp_path)])
