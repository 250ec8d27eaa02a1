"""Training runs of seconds on a dataset of tiny cases."""

import csv
import dataclasses
import hashlib
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from medseg.core import Volume
from medseg.data.datalist import read_datalist
from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.nifti import read_nifti
from medseg.io.writing import write_volume
from medseg.models.folder import load_model
from medseg.models.table import NETWORKS, build_network
from medseg.training.checkpoint import load_checkpoint
from medseg.training.settings import load_settings, parse_settings
from pipelines.cli import app
from pipelines.train import read_data, train, train_from_command
from pipelines.training_checks import check_data
from pipelines.training_report import write_training_report
from tests.forked import started
from tests.tiny_dataset import tiny_settings, write_dataset
from tests.training_together import train_until_stopped


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads and wait for them where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("secret_place") / "Balls")


def run(folder, root, content=None, **more):
    settings = parse_settings(content or tiny_settings(), where="run.yaml")
    return train(settings, run_folder=folder, data_root=root, **more)


def rows(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("network", NETWORKS)
def test_two_steps_leave_a_complete_run_folder(tmp_path, root, network):
    result = run(tmp_path / "run", root, tiny_settings(network))
    folder = tmp_path / "run"
    entries = (
        "checkpoints config.yaml log.csv model probe.json progress.png run.json split.json "
        "tensorboard"
    )
    assert sorted(path.name for path in folder.iterdir()) == entries.split()
    assert (result.steps, result.finished, len(result.losses)) == (2, True, 2)
    assert all(math.isfinite(loss) for loss in result.losses)
    assert set(result.dice) == {"near", "far"}
    trained, card = load_model(folder)
    assert card == result.card
    assert card.training.finished
    assert (card.training.steps, card.training.training_cases) == (2, 4)
    assert card.training.dataset_licence == "CC0-1.0"
    assert not trained.training
    assert trained(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
    config = (folder / "config.yaml").read_bytes()
    assert hashlib.sha256(config).hexdigest() == card.training.config_sha256
    record = json.loads((folder / "run.json").read_text())
    assert record["versions"]["torch"] == str(torch.__version__)
    assert record["weights"] == sum(weight.numel() for weight in trained.parameters())
    assert json.loads((folder / "split.json").read_text())["validation"] == ["case_04", "case_05"]


def test_the_resolved_settings_say_all_and_name_no_place_on_the_machine(tmp_path, root):
    run(tmp_path / "run", root)
    resolved = load_settings(tmp_path / "run" / "config.yaml")
    assert resolved.data.root == "Balls"
    assert resolved.network.settings["out_channels"] == 3
    assert resolved.network.settings["blocks"] == 1
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"secret_place" not in content, path.name
            assert str(tmp_path).encode() not in content, path.name


@pytest.mark.parametrize("network", ["revunet", "neunet"])
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path, root, network):
    content = tiny_settings(network, steps=3, augmentation={"rotation_probability": 0.5})
    first = run(tmp_path / "a", root, content)
    torch.rand(7)
    second = run(tmp_path / "b", root, content)
    assert first.losses == second.losses
    assert first.card.weights_sha256 == second.card.weights_sha256
    other = run(tmp_path / "c", root, {**content, "training": {**content["training"], "seed": 1}})
    assert other.losses[0] != first.losses[0]


def test_the_callers_random_numbers_are_left_alone(tmp_path, root):
    torch.manual_seed(3)
    run(tmp_path / "run", root)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("network", ["revunet", "neunet"])
def test_a_short_training_learns_to_find_the_balls(tmp_path, root, network):
    result = run(tmp_path / "run", root, tiny_settings(network, steps=60, learning_rate=0.02))
    assert result.mean_dice > 0.6
    assert sum(result.losses[-5:]) < 0.6 * sum(result.losses[:5])
    assert result.card.training.validation_dice == pytest.approx(result.dice, abs=1e-4)


def test_epochs_are_passes_over_all_cases(tmp_path, root):
    result = run(tmp_path / "run", root, tiny_settings(steps=None, epochs=3))
    assert (result.epochs, result.steps) == (3, 6)


def test_bfloat16_trains_with_weights_and_losses_in_float32(tmp_path, root):
    result = run(tmp_path / "run", root, tiny_settings("neunet", precision="bf16"))
    assert result.numerics.precision == "bf16"
    trained, _ = load_model(tmp_path / "run")
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


def test_auto_measures_and_writes_down_what_it_measured(tmp_path, root):
    content = tiny_settings(precision="auto", channels_last="auto")
    result = run(tmp_path / "run", root, content)
    probe = json.loads((tmp_path / "run" / "probe.json").read_text())
    fastest = min(probe["measured"], key=lambda one: one["seconds_per_step"])
    assert probe["chosen"]["precision"] == fastest["precision"] == result.numerics.precision
    assert len(probe["measured"]) >= 2


def test_sgd_is_the_other_optimizer(tmp_path, root):
    result = run(tmp_path / "run", root, tiny_settings(optimizer="sgd", gradient_clip=1.0))
    state = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert state.optimizer["param_groups"][0]["nesterov"] is True
    assert result.finished


def test_the_log_has_a_row_per_step_and_per_validation_in_table_and_curves(tmp_path, root):
    content = tiny_settings(steps=4, validate_every=1, validation_cases=1, validation_share=1.0)
    result = run(tmp_path / "run", root, content)
    table = rows(tmp_path / "run")
    steps = [row for row in table if row["loss"]]
    judged = [row for row in table if row["dice_mean"]]
    assert [int(row["step"]) for row in steps] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in steps] == list(result.losses)
    assert float(steps[0]["learning_rate"]) == 0.01
    assert [int(row["step"]) for row in judged] == [2, 4], "after the first epoch and at the end"
    assert float(judged[-1]["dice_near"]) == result.dice["near"]
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1, 2, 3, 4]
    last = curves.Scalars("validation/dice_mean")[-1]
    assert last.value == pytest.approx(result.mean_dice, abs=1e-6)


def test_the_checkpoint_holds_what_a_continuation_needs(tmp_path, root):
    content = tiny_settings(steps=3, seed=4)
    result = run(tmp_path / "run", root, content)
    state = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert (state.step, state.epoch, state.step_of_epoch, state.seed) == (3, 2, 1, 4)
    assert state.progress == 1.0
    trained, _ = load_model(tmp_path / "run")
    for name, weight in trained.state_dict().items():
        assert torch.equal(state.network[name], weight)
    assert all("exp_avg_sq" in moments for moments in state.optimizer["state"].values())
    assert {group["lr"] for group in state.optimizer["param_groups"]} == {0.0}
    assert state.rng["cpu"].dtype == torch.uint8
    assert result.steps == 3


def test_a_budget_ends_the_training_in_time_with_the_rate_near_zero(tmp_path, root):
    result = run(tmp_path / "run", root, tiny_settings(steps=1), budget_s=3.0)
    assert result.finished
    assert result.steps > 1, "the budget replaces the steps"
    assert 1.5 < result.training_s <= 6, "the last step alone may be late, on a busy machine"
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert rates[0] > 0.009
    assert rates[-1] < 0.2 * rates[0]
    assert rates == sorted(rates, reverse=True)
    seconds = json.loads((tmp_path / "run" / "run.json").read_text())["seconds"]
    assert seconds["budget"] == 3.0
    assert seconds["reading"] > 0


class Stops(Silent):
    """Asks to stop after some steps of a stage."""

    def __init__(self, stage, after):
        self.stage = stage
        self.after = after
        self.stopped = False
        self.heard = []

    def advanced(self, stage, done):
        self.heard.append(stage)
        self.stopped |= stage == self.stage and done >= self.after

    def cancelled(self):
        return self.stopped


def test_a_wish_to_stop_ends_after_the_step_with_a_usable_run(tmp_path, root):
    listener = Stops("training", 2)
    result = run(tmp_path / "run", root, tiny_settings(steps=100), listener=listener)
    assert (result.finished, result.steps) == (False, 2)
    assert math.isnan(result.mean_dice)
    assert "validation" not in listener.heard
    trained, card = load_model(tmp_path / "run")
    assert not card.training.finished
    assert card.training.steps == 2
    state = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert state.step == 2
    assert torch.equal(state.network["stem.weight"], trained.stem.weight)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False


def test_an_interrupted_run_has_a_picture_and_a_report_that_says_so(tmp_path, root):
    content = tiny_settings(steps=100)
    result = run(tmp_path / "run", root, content, listener=Stops("training", 2))
    assert (tmp_path / "run" / "progress.png").read_bytes()[:4] == b"\x89PNG"
    settings = parse_settings(content, where="run.yaml")
    page = write_training_report(result, settings, read_data(settings, root)).read_text()
    assert "This run was interrupted after step 2" in page
    assert "<h2>Course</h2>" in page
    assert "Validation Dice by" not in page
    assert "Worst and best" not in page


def test_a_wish_to_stop_while_reading_leaves_no_run_folder(tmp_path, root):
    with pytest.raises(Cancelled):
        run(tmp_path / "run", root, listener=Stops("reading training cases", 1))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_stops_a_process_after_its_step_with_a_usable_run(tmp_path, root):
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(steps=10**6)))
    folder = tmp_path / "run"
    process = started(train_until_stopped, str(config), str(root), str(folder))
    try:
        deadline = time.monotonic() + 300
        while not (folder / "log.csv").exists() or len(rows(folder)) < 2:
            assert process.is_alive(), process.exitcode
            assert time.monotonic() < deadline, "no step was made in five minutes"
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        process.join(120)
        assert process.exitcode == 130
    finally:
        process.kill()
        process.join()
    _, card = load_model(folder)
    assert not card.training.finished
    assert card.training.steps == load_checkpoint(folder / "checkpoints").step >= 2
    assert (folder / "progress.png").is_file()
    assert f"interrupted after step {card.training.steps}" in (folder / "report.html").read_text()


def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(tmp_path, root):
    with pytest.raises(ConfigError, match=r"a finite loss.*lower training\.learning_rate"):
        run(tmp_path / "run", root, tiny_settings(steps=50, learning_rate=1e30))
    state = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert all(bool(torch.isfinite(weight).all()) for weight in state.network.values())
    _, card = load_model(tmp_path / "run")
    assert not card.training.finished


def test_an_earlier_run_is_not_overwritten_unless_asked_and_strangers_stay(tmp_path, root):
    folder = tmp_path / "run"
    run(folder, root)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"an absent or empty run folder.*--overwrite"):
        run(folder, root)
    (folder / "checkpoints" / "previous.pt").write_bytes(b"old")
    result = run(folder, root, tiny_settings(steps=1), overwrite=True)
    assert len(rows(folder)) == 2
    assert load_checkpoint(folder / "checkpoints").step == result.steps == 1
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path, root):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="a run folder, found a file"):
        run(tmp_path / "run", root)


def changed(section, **keys):
    content = tiny_settings()
    content[section] = {**content[section], **keys}
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            changed("inputs", window_ijk=[9, 8, 8]),
            r"inputs.window_ijk: expected multiples of \(2, 2, 2\).*nearest is \(10, 8, 8\)",
        ),
        (changed("training", patch_ijk=[8, 8, 7]), "training.patch_ijk: expected multiples of"),
        (
            changed("network", settings={"out_channels": 5}),
            "network.settings.out_channels: expected 3, after the inputs and labels, found 5",
        ),
        (changed("network", settings={"wdiths": [8]}), "wdiths"),
        (
            changed("inputs", channels=[{"name": "T1"}, {"name": "T2"}]),
            "inputs.channels: expected the 1 channels of the dataset 'Balls', found 2",
        ),
        (
            changed("labels", labels=[{"value": 1, "name": "near", "rgb": [255, 0, 0]}]),
            "label scheme 'balls': expected the values",
        ),
    ],
)
def test_settings_that_do_not_fit_network_or_dataset_are_refused(tmp_path, root, content, words):
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "run", root, content)
    assert not (tmp_path / "run").exists()


def test_channels_in_another_order_than_the_datasets_are_refused(root):
    settings = parse_settings(
        changed("inputs", channels=[{"name": "flair"}, {"name": "T1"}]), where="x"
    )
    data = dataclasses.replace(read_datalist(root), channels=("T1", "FLAIR"))
    with pytest.raises(ConfigError, match="order of the dataset 'Balls': T1, FLAIR, found flair"):
        check_data(settings, data)
    check_data(settings, dataclasses.replace(data, channels=("FLAIR", "T1")))
    check_data(settings, dataclasses.replace(data, channels=("T2", "T1")))  # other names


def test_the_command_overrides_seed_and_device_and_writes_them_down(tmp_path, root, monkeypatch):
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.safe_dump(tiny_settings()))
    monkeypatch.chdir(tmp_path)
    result = train_from_command(str(config), data=root, seed=9, device="cpu")
    assert result.run_folder == Path("runs/balls")
    assert load_settings(tmp_path / "runs" / "balls" / "config.yaml").training.seed == 9
    with pytest.raises(ConfigError, match=r"training\.device: expected 'auto', 'cpu', 'cuda' or"):
        train_from_command(str(config), data=root, device="tpu", overwrite=True)


@pytest.mark.shared_data
@pytest.mark.slow
def test_a_shipped_run_starts_on_the_real_cases(tmp_path, shared_data):
    result = train_from_command(
        "reversible_hippocampus",
        data=shared_data / "01_msd_hippocampus",
        out=tmp_path / "run",
        budget="4s",
    )
    assert result.card.training.training_cases == 160
    assert result.card.class_values == (0, 1, 2)
    weights = tmp_path / "run" / "model" / "weights.safetensors"
    assert weights.stat().st_size < 2 * 2**20, "the model that ships is small"


def test_a_run_folder_that_cannot_be_made_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="expected a folder that can be made and written"):
        run(tmp_path / "file" / "run", tmp_path / "no dataset", tiny_settings())


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"name": "revunett"}, r"network: .*nearest: revunet"),
        ({"name": "revunet", "settings": {"preset": "tyni"}}, "nearest: tiny"),
        ({"name": "revunet", "settings": {"blcks": 1}}, "nearest: blocks"),
        ({"name": "revunet", "settings": {"blocks": 0}}, "revunet, blocks: expected"),
        ({"name": "macmd", "settings": {"preset": "tiny", "encoder": "resnett50"}}, "resnet50"),
    ],
)
def test_a_network_that_does_not_exist_is_told_before_the_dataset_is_opened(
    tmp_path, network, words
):
    content = {**tiny_settings(), "network": network}
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "run", tmp_path / "no dataset", content)


def test_an_encoder_begins_with_the_weights_of_a_file(tmp_path, root):
    content = tiny_settings("qtseg")
    donor = build_network("qtseg", {"preset": "tiny", "in_channels": 1})
    # what Ultralytics calls model.4.cv1.conv.weight is layer 4 here
    state = {
        f"model.{key.removeprefix('layers.')}": w for key, w in donor.encoder.state_dict().items()
    }
    torch.save(state, tmp_path / "encoder.pt")
    content["training"] |= {"encoder_weights": str(tmp_path / "encoder.pt"), "learning_rate": 1e-12}
    notes = Notes()
    run(tmp_path / "run", root, content, listener=notes)
    trained, _ = load_model(tmp_path / "run")
    weight = trained.network.encoder.state_dict()["layers.4.cv1.conv.weight"]
    torch.testing.assert_close(weight, donor.encoder.state_dict()["layers.4.cv1.conv.weight"])
    assert any("encoder.pt, sha256 " in note for note in notes.notes)
    assert str(tmp_path) not in (tmp_path / "run" / "config.yaml").read_text()


class Notes(Silent):
    """Keeps the lines for the log."""

    def __init__(self):
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


def test_a_network_without_such_an_encoder_refuses_weights_for_it(tmp_path, root):
    content = tiny_settings("revunet", encoder_weights="encoder.pt")
    with pytest.raises(ConfigError, match="no encoder that others have trained"):
        run(tmp_path / "run", root, content)
    assert not (tmp_path / "run").exists()


def with_labels(root, alter):
    for path in (root / "labelsTr").iterdir():
        volume = read_nifti(path).volume
        path.unlink()
        write_volume(Volume(alter(volume.data_cijk), volume.grid), path)
    return root


def test_label_maps_of_background_alone_are_refused_before_the_first_step(tmp_path):
    root = with_labels(write_dataset(tmp_path / "Balls"), np.zeros_like)
    with pytest.raises(ConfigError, match="a structure in at least one training case") as caught:
        run(tmp_path / "run", root)
    assert caught.value.code == "foreground-empty"
    assert not (tmp_path / "run").exists()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_settings()))
    options = ["--data", root, "--out", tmp_path / "run"]
    answer = CliRunner().invoke(app, ["train", *map(str, (tmp_path / "run.yaml", *options))])
    assert answer.exit_code == 2
    assert "[foreground-empty]" in answer.stderr


def test_a_structure_that_no_training_case_shows_is_noted(tmp_path):
    root = with_labels(write_dataset(tmp_path / "Balls"), lambda data: np.minimum(data, 1))
    notes = Notes()
    run(tmp_path / "run", root, listener=notes)
    told = [note for note in notes.notes if note.startswith("no training case")]
    assert told == ["no training case shows 'far': the network cannot learn it"]
