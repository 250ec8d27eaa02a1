"""The benchmark of fast modes runs every mode on held-back cases and on a made image."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import fast_modes
from benchmarks.fast_modes import FULL, HALF_SUMS, MODES
from medseg.errors import ResourceError
from medseg.inference.predictor import Predictor
from medseg.models.zoo import find_model

SAMPLES = Path("medseg/resources/samples/hippocampus")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The shipped samples, which the model's training held back, in the dataset's layout."""
    folder = tmp_path_factory.mktemp("hippocampus")
    for ours, theirs in (("images", "imagesTr"), ("labels", "labelsTr")):
        shutil.copytree(SAMPLES / ours, folder / theirs)
    return folder


@pytest.fixture(scope="module")
def cases(data):
    return fast_modes.held_back(data, 40)


def test_every_mode_is_measured_and_those_that_change_nothing_lose_nothing(
    data, tmp_path, monkeypatch, capsys
):
    figures = tmp_path / "figures.json"
    # four windows beside each other, of 40 x 56 x 40 voxels; three where they overlap less
    words = ["--data", str(data), "--cases", "1", "--repeats", "1", "--field", "88", "56", "40"]
    # those that cost most, and those that are like another one, are left to the benchmark itself
    left = ("tta ijk", "coarser 1.25", "coarser 1.5", "skip constant", "bf16")
    chosen = [mode for mode in MODES if mode not in left]
    words += ["--modes", *chosen, "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["fast_modes", *words])
    fast_modes.main()
    found = json.loads(figures.read_text())
    real = {row["mode"]: row for row in found["real"]}
    assert list(real) == chosen
    assert all(score > 0.8 for score in real[FULL]["dice"].values())
    for mode in ("skip body", HALF_SUMS):
        for name, score in real[mode]["dice"].items():
            assert score == pytest.approx(real[FULL]["dice"][name], abs=0.01), mode
    made = {row["mode"]: row for row in found["made"]}
    assert all(score == 1 for score in made[FULL]["dice"].values())
    assert made["overlap 0.25"]["windows"] < made[FULL]["windows"]
    assert "made image, 88x56x40" in capsys.readouterr().out


def test_without_the_data_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fast_modes", "--data", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match=r"absent holds none of the 40 cases"):
        fast_modes.main()


def test_no_case_was_trained_on(cases):
    split = json.loads((find_model(fast_modes.MODEL) / "run" / "split.json").read_text())
    assert len(cases) == 2
    assert not {case.name for case in cases} & set(split["train"])


def test_the_made_image_holds_both_cases_and_their_labels(cases):
    made = fast_modes.made_case(cases, (128, 96, 80))
    counts = [int(np.count_nonzero(case.expert.data_ijk)) for case in cases]
    assert np.count_nonzero(made.expert.data_ijk) == sum(counts)
    assert np.count_nonzero(made.expert.data_ijk[:64]) == counts[0]
    corner, middle = made.volume.data_cijk[0, 0, 0, 0], made.volume.data_cijk[0, 64, 48, 40]
    assert corner == cases[0].volume.data_cijk.min()
    assert middle > corner


def test_a_mode_that_refuses_a_case_is_named_without_figures(cases, monkeypatch, capsys):
    cases = cases[:1]
    predictors = {
        mode: Predictor.load(find_model(fast_modes.MODEL), MODES[mode], device="cpu")
        for mode in (FULL, "skip body")
    }

    def refused(volume):
        raise ResourceError("image", expected="less", found="more", remedy="wait", code="full")

    monkeypatch.setattr(predictors["skip body"], "predict", refused)
    rows = fast_modes.compare(predictors, cases, 1)
    assert rows[1].refused == f"{cases[0].name}: full"
    assert math.isnan(rows[1].mean_dice)
    fast_modes.print_rows("cases", rows)
    assert f"{cases[0].name}: full" in capsys.readouterr().out


def test_means_leave_out_cases_without_the_structure():
    scores = [{"a": 0.5, "b": math.nan}, {"a": 0.7, "b": math.nan}, {"a": math.nan, "b": math.nan}]
    assert fast_modes.mean_scores(scores) == {"a": pytest.approx(0.6)}
