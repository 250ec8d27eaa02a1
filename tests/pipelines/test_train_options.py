"""Regions, unjudged voxels, averaged and best weights, early stop, bad steps, the report."""

import csv
import json
import math
import os
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from medseg.core import LabelScheme, Volume
from medseg.errors import ConfigError
from medseg.events import Silent
from medseg.inference.predictor import Predictor
from medseg.io.reading import read_image, read_labels
from medseg.io.writing import write_volume
from medseg.metrics.overlap import dice_by_label
from medseg.models.folder import load_model
from medseg.training.checkpoint import load_best, load_checkpoint
from medseg.training.ranks import Ranks
from medseg.training.settings import parse_settings
from pipelines.cli import app
from pipelines.train import train, train_from_command
from pipelines.training_cases import _workers, steps_ahead
from tests.tiny_dataset import tiny_settings, write_dataset

REGIONS = [
    {"name": "both", "members": [1, 2], "writes": 1},
    {"name": "core", "members": [2], "writes": 2},
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "Balls")


def run(folder, root, content, **more):
    return train(
        parse_settings(content, where="run.yaml"), run_folder=folder, data_root=root, **more
    )


@pytest.fixture(scope="module")
def of_regions(tmp_path_factory, root):
    content = {**tiny_settings(steps=60, learning_rate=0.02), "regions": REGIONS}
    return run(tmp_path_factory.mktemp("regions") / "run", root, content)


def test_a_network_of_regions_learns_them_and_its_card_says_how_to_write_them(of_regions, root):
    assert set(of_regions.dice) == {"both", "core"}
    assert of_regions.mean_dice > 0.5
    network, card = load_model(of_regions.run_folder)
    assert [region.name for region in card.regions] == ["both", "core"]
    assert network(torch.zeros(1, 1, 8, 8, 8)).shape[1] == 2
    assert card.class_values == (1, 2)


def test_regions_are_predicted_as_labels_again(of_regions, root):
    predictor = Predictor.load(of_regions.run_folder, device="cpu")
    volume = read_image(root / "imagesTr" / "case_04.nii.gz").volume
    labels = predictor.predict(volume).labels
    assert set(np.unique(labels.data_ijk)) <= {0, 1, 2}
    assert dice_by_label(labels, labels)["near"] == 1.0
    assert int((labels.data_ijk > 0).sum()) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"regions": [{"name": "a", "members": [7], "writes": 7}]}, r"values \[7\] of region 'a'"),
        ({"regions": [REGIONS[0], REGIONS[0]]}, "every region under a name of its own"),
        ({"regions": []}, "at least 1 item"),
        ({"ignore_value": 2}, "an ignore_value that is no label, labels lists 2"),
        ({"regions": [{"name": "a", "members": [1], "writes": 2}]}, "writes must be one of"),
    ],
)
def test_regions_and_ignored_values_that_cannot_be_meant_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        parse_settings({**tiny_settings(), **change}, where="run.yaml")


def with_slab(root, value):
    """The dataset with a slab of one value over the whole of "near"."""
    scheme = LabelScheme.plain("balls", {1: "near", 2: "far"})
    for path in sorted((root / "labelsTr").iterdir()):
        labels = read_labels(path, scheme)
        data = labels.data_ijk.astype(np.uint8)
        data[:, :8] = value
        write_volume(Volume(data[None], labels.grid), path)
    index = json.loads((root / "dataset.json").read_text())
    index["labels"]["3"] = "ignore"
    (root / "dataset.json").write_text(json.dumps(index))
    return root


def test_voxels_that_nobody_judged_teach_nothing(tmp_path):
    """The slab that nobody judged hides "near": it is never learnt, and has no Dice."""
    root = with_slab(write_dataset(tmp_path / "Balls"), 3)
    content = {**tiny_settings(steps=40, learning_rate=0.02), "ignore_value": 3}
    result = run(tmp_path / "run", root, content)
    assert all(math.isfinite(loss) for loss in result.losses)
    assert result.dice["far"] > 0.4
    assert math.isnan(result.dice["near"]) or result.dice["near"] == 0.0
    _, card = load_model(tmp_path / "run")
    assert card.scheme().values == (1, 2), "the value is no structure of the model"


def test_a_dataset_whose_ignored_value_is_not_declared_is_refused(tmp_path):
    root = with_slab(write_dataset(tmp_path / "Balls"), 3)
    with pytest.raises(ConfigError, match=r"expected the values \[1, 2, 3\] of the dataset"):
        run(tmp_path / "run", root, tiny_settings())


def test_averaged_weights_are_judged_and_exported(tmp_path, root):
    content = tiny_settings(steps=4, ema_decay=0.5)
    result = run(tmp_path / "run", root, content)
    state = load_checkpoint(tmp_path / "run" / "checkpoints")
    network, card = load_model(tmp_path / "run")
    assert card.training.averaged
    assert torch.equal(network.stem.weight, state.averaged["stem.weight"])
    assert not torch.equal(network.stem.weight, state.network["stem.weight"])
    plain = run(tmp_path / "plain", root, tiny_settings(steps=4))
    assert result.losses == plain.losses, "training itself is not changed"
    assert not plain.card.training.averaged


JUDGED = {"validate_every": 1, "validation_share": 1.0, "validation_cases": 2}


def judged_steps(folder):
    with (folder / "log.csv").open() as file:
        return [
            (int(row["step"]), float(row["dice_mean"]))
            for row in csv.DictReader(file)
            if row["dice_mean"]
        ]


def test_training_ends_early_where_validation_brings_nothing(tmp_path, root):
    content = tiny_settings(steps=200, learning_rate=1e-12, patience=3, **JUDGED)
    result = run(tmp_path / "run", root, content)
    assert result.finished
    assert result.steps == 8, "one validation to compare with, and three without a better one"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["ended_early"] is True
    again = run(tmp_path / "run", root, content, resume=True)
    assert (again.steps, again.losses) == (8, ())


def test_the_best_weights_are_kept_and_exported_on_demand(tmp_path, root):
    content = tiny_settings(steps=30, learning_rate=0.02, export="best", **JUDGED)
    result = run(tmp_path / "run", root, content)
    best = load_best(tmp_path / "run" / "checkpoints")
    network, card = load_model(tmp_path / "run")
    assert (card.training.weights, card.training.weights_step) == ("best", best.step)
    assert torch.equal(network.stem.weight, best.network["stem.weight"])
    assert (best.step, pytest.approx(best.dice)) in judged_steps(tmp_path / "run")
    assert result.mean_dice == pytest.approx(best.dice, abs=1e-6), "both validation cases"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["exported"] == {"weights": "best", "step": best.step}


def test_without_a_validation_the_last_weights_are_exported(tmp_path, root):
    content = tiny_settings(export="best", validation_share=0.0)
    result = run(tmp_path / "run", root, content)
    assert result.card.training.weights == "last"
    assert result.card.training.weights_step == 2


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


def test_an_image_that_overflows_costs_its_steps_and_is_counted(tmp_path):
    root = write_dataset(tmp_path / "Balls")
    path = root / "imagesTr" / "case_00.nii.gz"
    scan = read_image(path).volume
    huge = scan.data_cijk.copy()
    huge[0, 3, 3, 3] = 3e38
    write_volume(Volume(huge * np.float32(0.5), scan.grid), path)
    content = tiny_settings(steps=6, batch_size=1)
    content["inputs"]["channels"][0]["normalisation"] = {"kind": "unchanged"}
    notes = Notes()
    result = run(tmp_path / "run", root, content, listener=notes)
    assert result.finished
    assert result.skipped >= 1
    assert sum(not math.isfinite(loss) for loss in result.losses) <= result.skipped
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps_left_out"] == result.skipped
    assert any("was left out: its loss or gradient is not finite" in note for note in notes.notes)
    network, _ = load_model(tmp_path / "run")
    assert all(bool(torch.isfinite(weight).all()) for weight in network.state_dict().values())


def test_the_picture_shows_the_run_and_the_report_its_cases_without_loading_anything(
    tmp_path, root
):
    config = tmp_path / "balls.yaml"
    import yaml  # noqa: PLC0415

    config.write_text(yaml.safe_dump(tiny_settings(steps=6, **JUDGED)))
    train_from_command(str(config), data=root, out=tmp_path / "run")
    with Image.open(tmp_path / "run" / "progress.png") as picture:
        assert picture.size == (1000, 750)
        assert len(picture.convert("RGB").getcolors(100_000)) > 20
    page = (tmp_path / "run" / "report.html").read_text()
    for words in ("case_04", "case_05", "near", "far", "Worst and best cases", "default-src"):
        assert words in page
    assert page.count("<img") == 1 + 2 * 2
    assert "http:" not in page
    assert "https:" not in page
    assert str(tmp_path) not in page


def test_a_budget_that_holds_no_step_leaves_an_untrained_model_and_is_no_success(tmp_path, root):
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.safe_dump(tiny_settings()))
    words = ["train", str(config), "--data", str(root), "-o", str(tmp_path / "run")]
    answer = CliRunner().invoke(app, [*words, "--budget", "0.001s"])
    assert answer.exit_code == 1, answer.output
    assert "untrained, since no step fitted into the budget" in answer.stdout


def test_no_more_workers_than_cores_are_started(root, tmp_path):
    cores = len(os.sched_getaffinity(0))
    heard = Silent()
    notes = []
    heard.noted = notes.append
    assert (_workers(cores, heard), notes) == (cores, [])
    assert _workers(cores + 7, heard) == cores
    assert notes == [f"{cores} instead of {cores + 7} training.workers, as many as there are cores"]


@pytest.mark.parametrize(
    ("device", "threads", "processes", "ahead"),
    [("cpu", 0, 1, 0), ("cpu", -1, 1, 2), ("cpu", -1, 2, 0), ("cuda", 0, 1, 2)],
    ids=["all cores", "a core to spare", "two processes on all cores", "GPU"],
)
def test_a_thread_prepares_steps_only_where_it_takes_no_core_from_the_network(
    monkeypatch, device, threads, processes, ahead
):
    cores = 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores + threads)
    ranks = Ranks()
    ranks.count = processes
    assert steps_ahead(torch.device(device), ranks) == ahead


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"precision": "fp16"}, "one of auto, bf16, fp32 on a CPU, found 'fp16'"),
        ({"mlflow": True}, "pip install 'medseg"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_before_anything_is_written(
    tmp_path, root, monkeypatch, option, words
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "run", root, tiny_settings(**option))
    assert not (tmp_path / "run").exists()
