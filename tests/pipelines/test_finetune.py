"""Training on from a model: only where its weights mean the same; old and new compared honestly."""

import json
import math
import os
import sys
import threading

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.core import LabelMap
from medseg.errors import ConfigError
from medseg.events import Silent
from medseg.inference.predictor import Predictor
from medseg.io.reading import read_image
from medseg.metrics.overlap import dice_by_label
from medseg.models.card import load_card
from medseg.models.folder import load_model
from medseg.training.settings import parse_settings
from pipelines.cli import app
from pipelines.event_lines import EventLines, call_when_closed
from pipelines.finetune import corrected_cases, finetune, tuned_settings
from pipelines.train import complete_settings, train
from pipelines.training_checks import check_start, load_start
from tests.tiny_dataset import tiny_settings, write_dataset
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("models") / "tiny", post_processing=[{"keep_largest": True}]
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("data") / "corrected", cases=3)
    (root / "split.json").unlink()
    return root


def settings_like_the_model(model, **training):
    content = tiny_settings(start_model=str(model), **training)
    content["network"]["settings"] = {"widths": [4, 8], "expansion": 2, "norm_groups": 2}
    content["inputs"]["window_ijk"] = [16, 16, 16]
    return content


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done


def test_training_begins_with_the_weights_of_the_model_and_says_so(model, cases, tmp_path):
    content = settings_like_the_model(model, steps=1, learning_rate=1e-12)
    settings = parse_settings(content, where="test")
    result = train(settings, run_folder=tmp_path / "run", data_root=cases)
    trained, card = load_model(tmp_path / "run")
    begun, old = load_model(model)
    for name, weights in begun.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weights, atol=1e-6, rtol=0)
    assert card.training.started_from.weights_sha256 == old.weights_sha256
    assert (card.training.started_from.name, card.training.started_from.version) == ("tiny", "1")
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["started_from"]["weights_sha256"] == old.weights_sha256
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "start_model: tiny\n" in config
    assert str(model.parent) not in config
    # going on keeps the word of where it began
    content["training"]["steps"] = 2
    longer = parse_settings(content, where="test")
    result = train(longer, run_folder=tmp_path / "run", data_root=cases, resume=True)
    assert result.steps == 2
    assert load_card(tmp_path / "run").training.started_from == card.training.started_from


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"network": {"widths": [4, 16]}},
            r"expected network.settings.widths 4, 16, as in the run",
        ),
        ({"channel": "T2"}, "expected channels T2, as in the run .*, found T1"),
        ({"label": "middle"}, "expected labels near, middle, as in the run .*, found near, far"),
        ({"name": "neunet"}, "expected network neunet, as in the run .*, found revunet"),
        ({"regions": True}, "expected regions both, as in the run .*, found none"),
    ],
)
def test_a_model_whose_weights_mean_something_else_is_refused(model, change, words):
    content = settings_like_the_model(model)
    if "name" in change:
        content["network"] = tiny_settings("neunet")["network"]
    content["network"]["settings"] |= change.get("network", {})
    content["inputs"]["channels"][0]["name"] = change.get("channel", "T1")
    content["labels"]["labels"][1]["name"] = change.get("label", "far")
    if "regions" in change:
        content["regions"] = [{"name": "both", "members": [1, 2], "writes": 1}]
    settings = complete_settings(parse_settings(content, where="test"))
    with pytest.raises(ConfigError, match=words) as refused:
        check_start(settings, load_card(model))
    assert refused.value.code == "start-model"


def test_weights_come_from_one_place_and_by_default_from_none(model):
    content = settings_like_the_model(model, encoder_weights="x.pt")
    with pytest.raises(ConfigError, match="weights to begin with from start_model or encoder"):
        parse_settings(content, where="test")
    plain = parse_settings(tiny_settings(), where="test")
    assert load_start(plain, torch.nn.Identity(), Silent()) is None
    assert "start_model" not in plain.to_yaml()


def test_the_command_takes_the_model_of_a_single_training(model, tmp_path):
    refused = run("train", "reversible_hippocampus", "--from", model, "--cv", code=2)
    assert "expected a single training, found folds" in refused.stderr
    refused = run("train", "reversible_hippocampus", "--from", "nobody", "-o", tmp_path / "x",
                  "--data", tmp_path, code=2)  # fmt: skip
    assert "[model-missing]" in refused.stderr


def test_a_model_is_tuned_and_compared_with_the_old_one_on_a_case_held_out(model, cases, tmp_path):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    out = tmp_path / "models" / "tuned"
    words = ("--steps", 2, "--threads", 1, "--device", "cpu", "--json")
    answer = json.loads(run("finetune", model, "--data", cases, "-o", out, *words).stdout)
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}
    assert (answer["finished"], answer["steps"], answer["model"]) == (True, 2, "tiny-tuned")
    assert not (out / "prepared").exists()
    card, old = load_card(out), load_card(model)
    assert card.labels == old.labels  # the values of the model, not those of the training set
    assert (card.inputs, card.post_processing) == (old.inputs, old.post_processing)
    assert card.training.started_from.weights_sha256 == old.weights_sha256
    assert (card.training.training_cases, card.training.validation_cases) == (2, 1)

    record = json.loads((out / "finetune.json").read_text(encoding="utf-8"))
    [held_out] = [case["case"] for case in record["held_out"]]
    assert answer["held_out"] == [held_out]
    run("models", "export", out, "-o", tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
    assert "2 cases, 2 steps, from the weights of tiny 1." in readme
    assert held_out not in {case["case"] for case in record["learnt"]}
    # the figures are those of the two models, found another way
    image = read_image(cases / "imagesTr" / f"{held_out}.nii.gz").volume
    rows = (out / "comparison.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "case,structure,dice_before,dice_after"
    told = {row.split(",")[1]: row.split(",")[2:] for row in rows[1:]}
    for place, folder in enumerate((model, out)):
        result = Predictor.load(folder, device="cpu").predict(image).labels
        reference = recoded_truth(cases, held_out, old.scheme())
        dice = dice_by_label(result, reference)
        for name, value in dice.items():
            assert float(told[name][place]) == pytest.approx(value, abs=1e-4)
    assert [row["structure"] for row in answer["dice"]] == ["near", "far", "mean"]


def recoded_truth(cases, name, scheme):
    data = np.asarray(nib.load(cases / "labelsTr" / f"{name}.nii.gz").dataobj).astype(np.uint8)
    data[data == 2] = 5
    grid = read_image(cases / "imagesTr" / f"{name}.nii.gz").volume.grid
    return LabelMap(data, grid, scheme)


def test_with_one_case_it_is_said_that_nothing_can_be_validated(model, tmp_path):
    root = write_dataset(tmp_path / "one", cases=2)
    (root / "split.json").unlink()
    index = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    index["training"] = index["training"][:1]
    (root / "dataset.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "comparison.csv").write_text("of an earlier run", encoding="utf-8")
    how = {"steps": 1, "device": "cpu", "threads": 1, "overwrite": True}
    tuned = finetune(str(model), root, tmp_path / "run", Silent(), **how)
    assert not (tmp_path / "run" / "comparison.csv").exists()
    assert tuned.comparison is None
    assert "one case alone, which is learnt from" in tuned.note
    assert tuned.result.steps == 1
    record = json.loads((tmp_path / "run" / "finetune.json").read_text(encoding="utf-8"))
    assert (record["dice"], record["held_out"]) == (None, [])


def test_a_time_too_short_for_a_step_is_said_to_be(model, cases, tmp_path):
    out = tmp_path / "run"
    tuned = finetune(str(model), cases, out, Silent(), budget_s=1e-6, device="cpu", threads=1)
    assert tuned.result.steps == 0
    assert tuned.comparison is None
    assert "not one step fitted into the time" in tuned.note


def test_what_was_learnt_from_is_never_held_out_later(model, cases):
    card = load_card(model)
    plan = corrected_cases(cases, card)
    [held_out] = plan.data.validation
    learnt = frozenset(plan.prints[case.id] for case in plan.data.train)
    again = corrected_cases(cases, card, learnt)
    assert [case.id for case in again.data.validation] == [held_out.id]
    nothing = corrected_cases(cases, card, frozenset(plan.prints.values()))
    assert nothing.data.validation == ()
    assert "has learnt from all of these cases before" in nothing.note


def test_the_settings_are_those_of_the_card(model, cases, tmp_path):
    flipped = write_tiny_model(tmp_path / "flipped", inputs={"mirror_axes": ["i", "k"]})
    card = load_card(flipped)
    plan = corrected_cases(cases, card)
    settings = tuned_settings(card, plan.data, flipped, cases, tmp_path / "run", name="mine")
    assert (settings.inputs, settings.labels, settings.name) == (card.inputs, card.labels, "mine")
    augmentation = settings.training.augmentation
    assert (augmentation.flip_axes, augmentation.flip_probability) == ((0, 2), 0.5)
    assert settings.training.start_model == str(flipped)


def test_cases_of_other_labels_or_channels_are_refused_before_anything_is_written(cases, tmp_path):
    labels = {"name": "x", "labels": [{"value": 1, "name": "liver", "rgb": [1, 2, 3]}]}
    liver = write_tiny_model(
        tmp_path / "liver",
        labels=labels,
        network={
            "name": "revunet",
            "settings": {"out_channels": 2, "widths": [4, 8], "expansion": 2, "norm_groups": 2},
        },
    )
    refused = run("finetune", liver, "--data", cases, "-o", tmp_path / "run", code=2)
    assert "expected the labels of the model tiny: liver, found near, far ('far' is not known" in (
        refused.stderr
    )
    assert "[finetune-labels]" in refused.stderr
    channels = [{"name": "T1", "modality": "MR"}, {"name": "T2", "modality": "MR"}]
    two = write_tiny_model(
        tmp_path / "two",
        inputs={"channels": channels},
        network={
            "name": "revunet",
            "settings": {
                "in_channels": 2,
                "out_channels": 3,
                "widths": [4, 8],
                "expansion": 2,
                "norm_groups": 2,
            },
        },
    )
    refused = run("finetune", two, "--data", cases, "-o", tmp_path / "run", code=2)
    assert "expected the channels of the model tiny: T1, T2" in refused.stderr
    refused = run("finetune", two, "--data", cases, "-o", tmp_path, "--steps", 1, "--budget", "1m",
                  code=2)  # fmt: skip
    assert "expected either --budget or --steps" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_how_it_ended_is_told_to_the_program_that_started_it(model, cases, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.event_lines.call_when_closed", lambda wish: None)
    monkeypatch.setattr("os.nice", lambda by: 0)  # this process is the one of all tests
    words = ("finetune", model, "--data", cases, "-o", tmp_path / "run", "--events", "--steps", 1)
    (tmp_path / "run").write_bytes(b"in the way")
    told = run(*words, "--device", "cpu", code=1).stdout.splitlines()
    last = json.loads(told[-1])
    assert (last["event"], last["code"]) == ("failed", "run-folder-exists")
    (tmp_path / "run").unlink()
    monkeypatch.setattr("pipelines.event_lines.call_when_closed", lambda wish: wish())
    told = run(*words, "--device", "cpu", code=130).stdout.splitlines()
    assert json.loads(told[-1]) == {"event": "stopped"}
    assert not (tmp_path / "run").exists()


def test_progress_is_told_in_lines_and_closed_input_is_a_wish_to_stop(capsys, monkeypatch):
    lines = EventLines()
    lines.started("steps", 3)
    for done in (1, 2, 3):  # too fast for every step to be told
        lines.advanced("steps", done)
    lines.measured("dice", math.nan)
    lines.noted("a note")
    assert not lines.cancelled()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == {"event": "started", "stage": "steps", "total": 3}
    assert told[-3] == {"event": "advanced", "stage": "steps", "done": 3}
    assert len(told) < 7
    assert told[-2:] == [
        {"event": "measured", "name": "dice", "value": None},
        {"event": "noted", "message": "a note"},
    ]
    gone = open(os.devnull, "w")  # noqa: PTH123, SIM115
    gone.close()
    monkeypatch.setattr(sys, "stdout", gone)
    lines.noted("nobody listens")  # and nothing happens

    reader, writer = os.pipe()
    before = os.dup(0)
    os.dup2(reader, 0)
    wishes = threading.Event()
    try:
        call_when_closed(wishes.set)
        os.write(writer, b"not yet")
        assert not wishes.wait(0.05)
        os.close(writer)
        assert wishes.wait(10)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reader)
