"""The benchmark of sliding windows runs all sides on one network and prints how they agree."""

import json
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import sliding_window
from benchmarks.sliding_window import QUICK
from medseg.ops.precision import has_bf16

BF16 = has_bf16(torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_nnunet(monkeypatch):
    """As where it is not installed; its import alone takes seconds."""
    monkeypatch.setitem(sys.modules, "nnunetv2", None)


def test_it_trains_times_every_side_and_writes_its_figures(
    tmp_path, monkeypatch, capsys, no_nnunet
):
    figures, weights = tmp_path / "figures.json", tmp_path / "weights.pt"
    words = ["--quick", "--repeats", "1", "--json", str(figures), "--weights", str(weights)]
    monkeypatch.setattr("sys.argv", ["sliding_window", *words])
    sliding_window.main()
    rows = {row["side"]: row for row in json.loads(figures.read_text())}
    narrow = ["MONAI bf16 channels last", "medseg bf16"] if BF16 else []
    assert list(rows) == ["MONAI fp32", "medseg fp32", *narrow]
    assert rows["MONAI fp32"]["dice"] == [1, 1]
    assert all(row["equal_voxels"] > 0.95 and row["seconds"][0] > 0 for row in rows.values())
    printed = capsys.readouterr()
    assert "trained 30 steps" in printed.out
    assert "nnU-Net is left out" in printed.err
    # a second run reads the weights
    monkeypatch.setattr("sys.argv", ["sliding_window", *words, "--extents", "16x16x16"])
    sliding_window.main()
    assert "trained" not in capsys.readouterr().out


def test_with_one_window_every_side_gives_the_labels_of_the_network(no_nnunet):
    """No two windows to weigh against each other: what is left is the network alone."""
    torch.manual_seed(0)
    network = sliding_window.build_dynunet(QUICK)
    sliding_window.train(network, QUICK)
    job = sliding_window.Job(**{**vars(QUICK), "extents": QUICK.window})
    rows, _ = sliding_window.measure(network, job, 1)
    agreement = {row.side: row.equal_voxels for row in rows}
    assert agreement["medseg fp32"] == 1
    assert agreement.get("medseg bf16", 1) > 0.98  # left out where the processor lacks it


def test_dice_of_a_case_on_paper():
    one = np.array([0, 1, 1, 1, 2], dtype=np.uint8)
    other = np.array([0, 1, 1, 0, 2], dtype=np.uint8)
    scores = sliding_window.dice(one, other, 4)
    assert scores[:2] == (0.8, 1.0)
    assert math.isnan(scores[2])


def test_made_volumes_hold_every_class_and_repeat():
    first = sliding_window.made_volume(QUICK, (32, 32, 32), torch.Generator().manual_seed(3))
    again = sliding_window.made_volume(QUICK, (32, 32, 32), torch.Generator().manual_seed(3))
    assert torch.equal(first[0], again[0])
    assert set(first[1].unique().tolist()) == set(range(QUICK.classes))
    assert abs(float(first[0].mean())) < 1e-5
