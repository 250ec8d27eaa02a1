"""The benchmark of accuracy: what it judges, keeps, and says where nnU-Net is not."""

import json
import sys

import numpy as np
import pytest
import yaml

from benchmarks import accuracy
from medseg.core import Grid, LabelMap, LabelScheme
from tests.tiny_dataset import tiny_settings, write_dataset

SCHEME = LabelScheme.plain("two", {1: "one", 2: "other"})


def label_map(values):
    data = np.zeros((10, 4, 4), np.uint8)
    for index, value in values.items():
        data[index] = value
    return LabelMap(data, Grid((10, 4, 4), np.diag([2.0, 1.0, 1.0, 1.0])), SCHEME)


def test_the_means_are_over_the_cases_that_hold_a_structure():
    """First case: planes 1 and 2 against 1 to 3, Dice 4/5, 2 mm apart. Second: equal.

    The other structure is in the second case alone.
    """
    pairs = [
        (label_map({1: 1, 2: 1}), label_map({1: 1, 2: 1, 3: 1})),
        (label_map({5: 1, 7: 2}), label_map({5: 1, 7: 2})),
    ]
    count, dice, hd95_mm = accuracy.judged(pairs, SCHEME)
    assert count == 2
    assert dice == pytest.approx({"one": (0.8 + 1) / 2, "other": 1.0})
    assert hd95_mm == pytest.approx({"one": (2.0 + 0) / 2, "other": 0.0})


def test_a_row_is_trained_judged_kept_and_shown_again(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_settings()))
    data = write_dataset(tmp_path / "data")
    row = accuracy.Row(str(config), "hippocampus", "1s")
    monkeypatch.setattr(accuracy, "ROWS", {"neunet": row})
    words = ["accuracy", "neunet", "--hippocampus", str(data), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    accuracy.main()
    first = capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "neunet" / "accuracy.json").read_text())
    assert kept["cases"] == 2
    assert kept["steps"] >= 1
    assert 0 <= kept["dice"]["near"] <= 1
    assert f"{kept['dice']['near']:.3f}" in first
    accuracy.main()
    again = capsys.readouterr()
    assert "measured earlier" in again.err
    assert again.out == first


def test_nnunets_row_needs_its_environment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy", "nnunet"])
    with pytest.raises(SystemExit) as ended:
        accuracy.main()
    assert ended.value.code == 2
    assert "--nnunet-python" in capsys.readouterr().err
