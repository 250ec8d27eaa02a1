"""A run that was broken off goes on as if it had not been."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from medseg.errors import ConfigError, FormatError
from medseg.events import Cancelled, Silent
from medseg.models.folder import load_model
from medseg.training.checkpoint import load_checkpoint
from medseg.training.settings import parse_settings
from pipelines.cli import app
from pipelines.train import train, train_from_command
from tests.forked import started
from tests.tiny_dataset import tiny_settings, write_dataset
from tests.training_together import train_by_the_command

REPOSITORY = Path(__file__).resolve().parents[2]


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


def losses(folder):
    with (folder / "log.csv").open() as file:
        return [
            (int(row["step"]), row["loss"], row["learning_rate"])
            for row in csv.DictReader(file)
            if row["loss"]
        ]


class Stops(Silent):
    """Asks to stop after some steps of training in this part of the run."""

    def __init__(self, after):
        self.left = after
        self.notes = []

    def advanced(self, stage, done):
        self.left -= stage == "training"

    def cancelled(self):
        return self.left <= 0

    def noted(self, message):
        self.notes.append(message)


MANY = {
    "steps": 9,
    "ema_decay": 0.8,
    "accumulate": 2,
    "batch_size": 1,
    "warmup": 0.3,
    "gradient_clip": 1.0,
    "validate_every": 1,
    "validation_share": 1.0,
    "validation_cases": 1,
    "augmentation": {"rotation_probability": 0.5, "noise_probability": 0.5},
}


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("revunet", MANY),
        ("neunet", {"steps": 7, "optimizer": "sgd", "precision": "bf16"}),
        ("transdae", {"steps": 5}),  # draws random numbers, for its dropped paths
    ],
)
def test_a_run_broken_off_in_an_epoch_has_the_losses_and_weights_of_one_that_was_not(
    tmp_path, root, network, options
):
    content = tiny_settings(network, **options)
    whole = run(tmp_path / "whole", root, content)
    broken = tmp_path / "broken"
    for after in (3, 1):
        part = run(broken, root, content, listener=Stops(after), resume=after == 1)
        assert not part.finished
    last = run(broken, root, content, resume=True)
    assert last.finished
    assert losses(broken) == losses(tmp_path / "whole")
    assert len(last.losses) == options["steps"] - 4
    assert last.card.weights_sha256 == whole.card.weights_sha256
    assert last.dice == whole.dice
    curves = EventAccumulator(str(broken / "tensorboard")).Reload()
    steps = [event.step for event in curves.Scalars("train/loss")]
    assert steps == list(range(1, options["steps"] + 1))


def test_rows_and_files_behind_the_checkpoint_are_dropped(tmp_path, root):
    content = tiny_settings(steps=4)
    folder = tmp_path / "run"
    run(folder, root, content, listener=Stops(2))
    with (folder / "log.csv").open("a") as log:
        log.write("3,2,0.1,0.01,0.5,,,\n4,2,0.2,0.0")  # a crash, in the middle of a line
    (folder / "checkpoints" / ".0123456789abcdef.tmp.pt").write_bytes(b"half")
    run(folder, root, content, resume=True)
    assert [step for step, *_ in losses(folder)] == [1, 2, 3, 4]
    whole = run(tmp_path / "whole", root, content)
    assert [float(loss) for _, loss, _ in losses(folder)] == list(whole.losses)
    assert not list(folder.rglob(".*.tmp*"))


def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, root):
    content = tiny_settings(steps=6, checkpoint_every_s=0.0)
    whole = run(tmp_path / "whole", root, content)
    folder = tmp_path / "run"
    run(folder, root, content, listener=Stops(4))
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    listener = Stops(100)
    run(folder, root, content, listener=listener, resume=True)
    assert "last.pt cannot be used; going on from previous.pt" in listener.notes
    assert [float(loss) for _, loss, _ in losses(folder)] == list(whole.losses)


def held(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("budget_s", [None, 2.0])
def test_a_run_that_is_over_is_left_as_it_is(tmp_path, root, budget_s):
    folder = tmp_path / "run"
    first = run(folder, root, tiny_settings(steps=2), budget_s=budget_s)
    before = held(folder)
    again = run(folder, tmp_path / "gone", tiny_settings(steps=2), resume=True)
    assert held(folder) == before
    assert (again.finished, again.finished_before, again.losses) == (True, True, ())
    assert (again.steps, again.card) == (first.steps, first.card)
    assert again.dice == pytest.approx(first.dice, abs=1e-4)
    assert {case: set(dice) for case, dice in again.per_case.items()} == {
        case: set(dice) for case, dice in first.per_case.items()
    }


def test_the_command_says_that_a_run_is_over_and_how_to_go_on(tmp_path, root):
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.safe_dump(tiny_settings()))
    words = ["train", str(config), "--data", str(root), "-o", str(tmp_path / "run")]
    assert CliRunner().invoke(app, words).exit_code == 0
    before = held(tmp_path / "run")
    over = CliRunner().invoke(app, ["train", str(tmp_path / "run"), "--resume"])
    assert (over.exit_code, held(tmp_path / "run")) == (0, before)
    assert "finished before, nothing was changed: 2 steps" in over.stdout
    assert "give a larger --budget" in over.stdout


def test_a_run_that_is_over_goes_on_if_it_shall_be_longer(tmp_path, root):
    folder = tmp_path / "run"
    run(folder, root, tiny_settings(steps=2))
    longer = run(folder, root, tiny_settings(steps=5), resume=True)
    assert (longer.steps, len(longer.losses), longer.finished_before) == (5, 3, False)
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["steps"] == 5
    named = run(folder, root, tiny_settings(steps=5), resume=True)
    assert (named.steps, named.finished_before) == (5, True)
    with pytest.raises(ConfigError, match=r"training\.steps: expected 5, as the run was begun"):
        run(folder, root, tiny_settings(steps=3), resume=True)


def test_a_run_with_a_budget_goes_on_if_it_gets_a_larger_one(tmp_path, root):
    folder = tmp_path / "run"
    first = run(folder, root, tiny_settings(), budget_s=1.0)
    longer = run(folder, root, tiny_settings(), budget_s=2.0, resume=True)
    assert longer.steps == first.steps + len(longer.losses) > first.steps
    assert load_checkpoint(folder / "checkpoints").budget_s == 2.0
    assert run(folder, root, tiny_settings(), resume=True).finished_before


def test_a_budget_that_is_used_up_makes_no_further_step_where_the_judging_was_broken_off(
    tmp_path, root
):
    folder = tmp_path / "run"
    first = run(folder, root, tiny_settings(), budget_s=2.0)
    record = json.loads((folder / "run.json").read_text())
    record["validation_dice"] = record["validation_dice_per_case"] = None
    (folder / "run.json").write_text(json.dumps(record))
    again = run(folder, root, tiny_settings(), resume=True)
    assert (again.losses, again.steps, again.dice) == ((), first.steps, first.dice)


def test_a_run_that_was_not_begun_is_begun(tmp_path, root):
    assert run(tmp_path / "run", root, tiny_settings(), resume=True).finished


def test_a_run_killed_before_its_first_step_begins_it(tmp_path, root):
    folder = tmp_path / "run"
    whole = run(folder, root, tiny_settings())
    shutil.rmtree(folder / "checkpoints")
    assert run(folder, root, tiny_settings(), resume=True).losses == whole.losses
    (folder / "config.yaml").unlink()
    for entry in folder.iterdir():
        if entry.name != "split.json":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert run(folder, root, tiny_settings(), resume=True).losses == whole.losses


def test_a_budget_goes_on_with_the_time_that_is_left(tmp_path, root):
    folder = tmp_path / "run"
    part = run(folder, root, tiny_settings(), budget_s=4.0, listener=Stops(3))
    spent = load_checkpoint(folder / "checkpoints").seconds
    assert 0 < spent <= part.training_s
    with pytest.raises(ConfigError, match=r"budget: expected at least 4 s, as the run was beg"):
        run(folder, root, tiny_settings(), budget_s=3.0, resume=True)
    rest = run(folder, root, tiny_settings(), resume=True)
    assert rest.finished
    assert 3.0 < rest.training_s < 4.5, "of both parts together"
    rates = [float(rate) for *_, rate in losses(folder)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.3 * rates[0]


def test_steps_that_end_a_run_are_not_replaced_by_a_budget_later(tmp_path, root):
    run(tmp_path / "run", root, tiny_settings(steps=5), listener=Stops(1))
    with pytest.raises(ConfigError, match="expected no budget, since steps end the run"):
        run(tmp_path / "run", root, tiny_settings(steps=5), budget_s=5.0, resume=True)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("broken") / "run"
    run(folder, root, tiny_settings(steps=5), listener=Stops(2))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"batch_size": 3},
            r"training\.batch_size: expected 2, as the run was begun with, found 3",
        ),
        ({"optimizer": "sgd"}, r"training\.optimizer: expected 'adamw'"),
        (
            {"augmentation": {"noise_std": [0, 0.5]}},
            r"training\.augmentation\.noise_std: expected \[0\.0, 0\.1\]",
        ),
    ],
)
def test_other_settings_are_refused_by_the_first_key_that_differs(broken, root, changes, words):
    with pytest.raises(ConfigError, match=words):
        run(broken, root, tiny_settings(**{"steps": 5, **changes}), resume=True)


def test_a_run_that_met_nan_goes_on_from_its_last_good_checkpoint_at_another_rate(tmp_path, root):
    content = tiny_settings(steps=8, learning_rate=1e30, bad_steps_in_a_row=2, optimizer="sgd")
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"a finite loss.*go on from the last good .* --resume"):
        run(folder, root, content)
    good = load_checkpoint(folder / "checkpoints", Silent()).step
    lower = content | {"training": content["training"] | {"learning_rate": 0.01}}
    hearer = Stops(after=100)
    result = run(folder, root, lower, resume=True, listener=hearer)
    assert (result.finished, result.steps, result.skipped) == (True, 8, 0)
    assert result.steps - good == len(result.losses)
    assert "training.learning_rate is 0.01 from here on, was 1e+30" in hearer.notes
    kept = yaml.safe_load((folder / "config.yaml").read_text())["training"]
    assert kept["learning_rate"] == 0.01
    # the run folder is known by its new settings from now on
    assert run(folder, root, lower, resume=True).finished_before


def test_a_precision_named_for_the_rest_of_a_run_is_taken(tmp_path, broken, root):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    content = tiny_settings(steps=5)
    content["training"]["precision"] = "bf16"
    assert run(folder, root, content, resume=True).numerics.precision == "bf16"


def test_another_network_is_refused(broken, root):
    with pytest.raises(ConfigError, match=r"network\.name: expected 'revunet'.*found 'neunet'"):
        run(broken, root, tiny_settings("neunet", steps=5), resume=True)
    content = tiny_settings(steps=5)
    content["network"]["settings"]["widths"] = [8, 32]
    with pytest.raises(ConfigError, match=r"network\.settings\.widths: expected \[8, 16\]"):
        run(broken, root, content, resume=True)


def test_the_checkpoint_of_another_run_is_refused(tmp_path, broken, root):
    other = tmp_path / "other"
    run(other, root, tiny_settings(steps=5, seed=3), listener=Stops(1))
    mixed = tmp_path / "mixed"
    shutil.copytree(broken, mixed)
    shutil.copytree(other / "checkpoints", mixed / "checkpoints", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"a checkpoint of the run, the settings in whose"):
        run(mixed, root, tiny_settings(steps=5), resume=True)


def test_weights_that_do_not_fit_the_network_are_refused(tmp_path, broken, root):
    folder = tmp_path / "run"
    shutil.copytree(broken, folder)
    for name in ("last.pt", "previous.pt"):
        content = torch.load(folder / "checkpoints" / name, weights_only=True)
        content["network"].pop("stem.weight")
        torch.save(content, folder / "checkpoints" / name)
    with pytest.raises(FormatError, match="the weights and optimiser of the run's network"):
        run(folder, root, tiny_settings(steps=5), resume=True)


def test_other_cases_are_refused(tmp_path, broken):
    more = write_dataset(tmp_path / "Balls", cases=7)
    with pytest.raises(ConfigError, match="the cases that the run was begun with under 'train'"):
        run(broken, more, tiny_settings(steps=5), resume=True)


def test_a_folder_of_something_else_is_refused(tmp_path, root):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"a run folder with config\.yaml, found a folder without"
    ):
        run(tmp_path, root, tiny_settings(), resume=True)


def test_the_command_goes_on_with_a_run_named_by_its_folder(tmp_path, root, monkeypatch):
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(steps=4)))
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "runs" / "balls", root, tiny_settings(steps=4), listener=Stops(2))
    result = train_from_command("runs/balls", data=root, device="cpu", resume=True)
    assert result.finished
    assert len(result.losses) == 2


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ((), "runs/nothing: expected the folder of a run, with config.yaml, or a configuration"),
        ((), "found no such folder; correct the path"),
        (("notes.txt",), "found one without config.yaml; correct the path"),
        (("folds.json",), "found a folder of folds; go on with the folds by medseg train CONFIG"),
    ],
)
def test_a_folder_that_is_no_run_is_told_so(tmp_path, monkeypatch, made, words):
    monkeypatch.chdir(tmp_path)
    for name in made:
        (tmp_path / "runs" / "nothing").mkdir(parents=True)
        (tmp_path / "runs" / "nothing" / name).write_text("{}")
    result = CliRunner().invoke(app, ["train", "runs/nothing", "--resume"])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "[resume-folder]" in result.stderr
    assert "one of " not in result.stderr, "no list of configurations"


def test_a_run_named_by_its_folder_says_that_it_does_not_know_where_the_data_lie(broken, root):
    begun = (broken / "config.yaml").read_text()
    assert yaml.safe_load(begun)["data"]["root"] == "Balls"
    assert str(root.parent) not in begun
    lost = CliRunner().invoke(app, ["train", str(broken), "--resume"])
    assert lost.exit_code == 2
    words = "found no folder 'Balls' here; a run keeps the name of the dataset's folder and no path"
    assert words in lost.stderr
    assert "name it with --data FOLDER [dataset-missing]" in lost.stderr


def test_a_wish_to_stop_while_reading_leaves_the_run_as_it_was(broken, root):
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}

    class Now(Silent):
        def cancelled(self):
            return True

    with pytest.raises(Cancelled):
        run(broken, root, tiny_settings(steps=5), listener=Now(), resume=True)
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_losses_of_one_that_was_not(tmp_path, root):
    steps = 30
    content = tiny_settings(steps=steps, checkpoint_every_s=0.0, batch_size=1)
    config = tmp_path / "balls.yaml"
    config.write_text(yaml.safe_dump(content))
    folder = tmp_path / "run"
    killed = 0
    for least in (0, 12):
        process = started(train_by_the_command, str(config), str(root), str(folder))
        try:
            deadline = time.monotonic() + 90
            while process.is_alive() and time.monotonic() < deadline:
                if least == 0 and (folder / "checkpoints").exists():
                    break  # while the first checkpoint is written
                if least and (folder / "log.csv").exists() and len(losses(folder)) > least:
                    break
                time.sleep(0.01)
            assert process.is_alive(), f"it ended with {process.exitcode}"
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        finally:
            process.kill()
            process.join()
    assert killed == 2
    last = run(folder, root, content, resume=True)
    assert last.finished
    whole = run(tmp_path / "whole", root, content)
    assert [float(loss) for _, loss, _ in losses(folder)] == list(whole.losses)
    assert last.card.weights_sha256 == whole.card.weights_sha256
    load_model(folder)
