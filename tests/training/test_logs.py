"""Table, curves and picture of a run."""

import csv
import importlib.util
import math
import sys

import pytest

from medseg.errors import ConfigError
from medseg.training.curves import Curves, progress_png
from medseg.training.logs import RunLog, read_log


def test_a_log_goes_on_after_a_step_and_forgets_what_came_later(tmp_path):
    with RunLog(tmp_path, ["a"]) as log:
        for step in (1, 2, 3):
            log.trained(step=step, epoch=1, seconds=step, learning_rate=0.1, loss=1 / step)
        log.validated(step=2, epoch=1, seconds=2.5, dice={"a": 0.5}, mean=0.5)
    with RunLog(tmp_path, ["a"], resume_step=2) as log:
        assert log.curves.losses == [(1, 1.0), (2, 0.5)]
        assert log.validations == [
            {"step": 2, "epoch": 1, "seconds": 2.5, "dice_mean": 0.5, "dice_a": 0.5}
        ]
        log.trained(step=3, epoch=2, seconds=9, learning_rate=0.1, loss=math.nan)
        log.epoch_ended()
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == ["1", "2", "2", "3"]
    assert rows[-1]["loss"] == "nan"
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"


def test_a_line_cut_short_is_not_read(tmp_path):
    with RunLog(tmp_path, ["a"]) as log:
        log.trained(step=1, epoch=1, seconds=1, learning_rate=0.1, loss=1.0)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("2,1,2.0,0.1")
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1"]
    with RunLog(tmp_path, ["a"], resume_step=5):
        pass
    with (tmp_path / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize("labels", [["one"], [f"structure number {n} of many" for n in range(20)]])
@pytest.mark.parametrize("steps", [0, 1, 5000])
def test_any_run_can_be_drawn(labels, steps):
    curves = Curves(tuple(labels))
    for step in range(1, steps + 1):
        loss = math.nan if step == 3 else 2 / step
        curves.add_rows([{"step": step, "loss": loss, "learning_rate": 0.1}])
    if steps:
        dice = {f"dice_{name}": 0.5 for name in (*labels, "mean")}
        curves.add_rows([{"step": steps, "epoch": 1, "seconds": 1.0, **dice}])
        curves.add_rows(
            [{"step": steps, "epoch": 1, "seconds": 1.0, **dict.fromkeys(dice, math.nan)}]
        )
    assert progress_png(curves).startswith(b"\x89PNG")


def test_mlflow_that_is_not_installed_is_asked_for_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=r"pip install 'medseg\[mlflow\]'"):
        RunLog(tmp_path, ["a"], mlflow="balls")


@pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs the extra mlflow, absent here"
)
def test_mlflow_gets_the_figures_in_a_store_of_files(tmp_path):
    for step in (1, 2):
        with RunLog(tmp_path, ["a"], mlflow="balls", resume_step=None if step == 1 else 1) as log:
            log.trained(step=step, epoch=1, seconds=1, learning_rate=0.1, loss=1 / step)
    (figures,) = (tmp_path / "mlruns").glob("*/*/metrics/train/loss")
    assert [line.split()[1:] for line in figures.read_text().splitlines()] == [
        ["1.0", "1"],
        ["0.5", "2"],
    ]
