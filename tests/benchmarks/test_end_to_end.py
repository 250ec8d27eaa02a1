"""The benchmark from file to file: labels come back on the image's grid, and stages are told."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import end_to_end
from benchmarks.sliding_window import QUICK, build_dynunet
from medseg.io.reading import read_image, read_labels

JOB = replace(QUICK, extents=(16, 16, 24))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_runs_from_file_to_file_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)  # as where it is not installed
    figures, weights = tmp_path / "figures.json", tmp_path / "weights.pt"
    words = ["--quick", "--repeats", "1", "--json", str(figures), "--weights", str(weights)]
    monkeypatch.setattr("sys.argv", ["end_to_end", *words])
    end_to_end.main()
    rows = {row["side"]: row for row in json.loads(figures.read_text())}
    assert list(rows) == ["medseg fp32, cubic", "medseg auto, cubic", "medseg auto, linear"]
    assert all(row["seconds"] > 0 and row["stages"]["network"] > 0 for row in rows.values())
    assert rows["medseg fp32, cubic"]["dice_to_first"] == [1, 1]
    assert min(rows["medseg auto, cubic"]["dice_to_first"]) > 0.9
    printed = capsys.readouterr()
    assert "nnU-Net was left out" in printed.out
    assert "24x36x60 at 1 mm, 16x24x40 at 1.5 mm" in printed.out
    # a second run reads the weights
    monkeypatch.setattr("sys.argv", ["end_to_end", *words, "--extents", "16x16x16"])
    end_to_end.main()
    assert "trained" not in capsys.readouterr().out


def test_the_made_ct_is_finer_than_the_network_by_the_spacing(tmp_path):
    path = tmp_path / "made.nii.gz"
    labels = end_to_end.made_ct(JOB, path)
    volume = read_image(path).volume
    assert volume.grid.shape_ijk == labels.shape == (24, 24, 36)
    assert volume.grid.spacing_mm == pytest.approx((1, 1, 1))
    assert volume.data_cijk.dtype == np.int16
    assert set(np.unique(labels)) == {0, 1, 2}


def test_a_clocked_function_is_the_same_and_its_seconds_are_added():
    stages = {"thinking": 1.0}
    run = end_to_end.clocked("thinking", lambda a, *, b: a + b, stages)
    assert run(1, b=2) == 3
    assert stages["thinking"] > 1.0


@pytest.mark.filterwarnings("ignore")  # of nnU-Net and what it imports
def test_nnunets_own_code_gives_the_labels_that_ours_gives(tmp_path):
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    torch.manual_seed(0)
    network = build_dynunet(JOB)
    end_to_end.train(network, replace(JOB, training_crop=(32, 32, 32)))
    image = tmp_path / "made_0000.nii.gz"
    end_to_end.made_ct(JOB, image)
    card = end_to_end.card_for(JOB, "cubic")
    labels = []
    theirs = end_to_end.nnunet_side(network, JOB)
    assert theirs is not None
    for side in (theirs, end_to_end.our_side(network, card, "fp32")):
        stages, path = side(image, tmp_path)
        assert all(seconds >= 0 for seconds in stages.values())
        labels.append(read_labels(path, card.scheme()).data_ijk)
    assert (labels[0] == labels[1]).mean() > 0.9
