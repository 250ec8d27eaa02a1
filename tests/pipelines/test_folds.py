"""Cross-validation, and the choice that is made on it."""

import dataclasses
import gc
import json
import math
import shutil
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medseg.core import LabelMap, Volume
from medseg.errors import ConfigError, FormatError
from medseg.events import Cancelled, Silent
from medseg.io.reading import read_labels
from medseg.io.writing import write_volume
from medseg.metrics.overlap import dice_by_label
from medseg.models.folder import load_model
from medseg.models.zoo import find_members
from medseg.training.settings import parse_settings
from pipelines import ensemble
from pipelines.cli import app
from pipelines.ensemble import choose_ensemble
from pipelines.folds import (
    Folds,
    draw_folds,
    held_out_pair,
    load_scores,
    parse_folds,
    summarised,
    train_folds,
)
from tests.tiny_dataset import tiny_settings, write_dataset


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "Balls")


def names_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def configuration(steps):
    return parse_settings(tiny_settings(steps=steps, learning_rate=0.02), where="run.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, root):
    """Two configurations of three folds on one division: one hardly trained, one a bit longer."""
    place = tmp_path_factory.mktemp("runs")
    for name, steps in (("short", 1), ("long", 12)):
        if name == "long":
            (place / "long").mkdir()
            shutil.copy(place / "short" / "folds.json", place / "long" / "folds.json")
        train_folds(configuration(steps), None, count=3, folder=place / name, data_root=root)
    return place


@given(st.dictionaries(st.text("abcdef", min_size=1), st.sampled_from("pqrst"), min_size=6))
def test_every_case_is_held_out_once_and_no_patient_is_torn_apart(patients):
    count = len(set(patients.values()))
    if count < 2:
        return
    folds = draw_folds(patients, 2, seed=0).held_out
    assert sorted(case for fold in folds for case in fold) == sorted(patients)
    first, second = ({patients[case] for case in fold} for fold in folds)
    assert first.isdisjoint(second)
    assert abs(len(first) - len(second)) <= 1
    assert draw_folds(dict(reversed(patients.items())), 2, seed=0).held_out == tuple(
        tuple(sorted(fold)) for fold in folds
    )


@pytest.mark.parametrize("count", [1, 4])
def test_a_number_of_folds_that_makes_no_sense_is_refused(count):
    with pytest.raises(
        ConfigError, match=f"from 2 folds to 3, the number of patients, found {count}"
    ):
        draw_folds({name: name for name in "abc"}, count, 0)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-4", (0, 1, 2, 3, 4)), ("3", (3,)), ("2,0", (0, 2))]
)
def test_fold_numbers_are_read(text, numbers):
    assert parse_folds(text, 5) == numbers


@pytest.mark.parametrize("text", ["5", "a", "", "3-1", "0-5", "-1"])
def test_fold_numbers_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="numbers from 0 to 4, such as 0-4 or 0,2"):
        parse_folds(text, 5)


def test_each_fold_predicts_on_the_images_grid_what_it_never_saw(trained, root):
    division = Folds.load(trained / "long").held_out
    assert sorted(name for fold in division for name in fold) == [f"case_{n:02d}" for n in range(6)]
    scheme = configuration(1).scheme()
    every = {}
    for number, held_out in enumerate(division):
        run = trained / "long" / f"fold_{number}"
        split = json.loads((run / "split.json").read_text())
        assert split["validation"] == list(held_out)
        assert set(split["train"]).isdisjoint(held_out)
        for name in held_out:
            result = read_labels(run / "validation" / f"{name}.nii.gz", scheme)
            truth = read_labels(root / "labelsTr" / f"{name}.nii.gz", scheme)
            assert result.grid.distance_mm(truth.grid) < 1e-3
            every[name] = dice_by_label(result, truth)
        scores = load_scores(run)
        assert sorted(scores) == list(held_out)
        for name in held_out:
            assert scores[name] == pytest.approx(every[name], abs=1e-6)
    summary = json.loads((trained / "long" / "cv.json").read_text())
    assert summary["cases"] == 6
    assert summary["dice"] == pytest.approx(summarised(every), abs=1e-6)
    assert set(summary["folds"]) == {"0", "1", "2"}


def test_folds_that_are_done_are_left_alone_and_one_that_was_broken_off_goes_on(tmp_path, root):
    class Stops(Silent):
        """After the second step of the second fold."""

        steps = 0

        def advanced(self, stage, done):
            self.steps += stage == "training"

        def cancelled(self):
            return self.steps >= 5

    content = configuration(3)
    with pytest.raises(Cancelled):
        train_folds(content, (0, 1), count=3, folder=tmp_path, data_root=root, listener=Stops())
    first = (tmp_path / "fold_0" / "model" / "weights.safetensors").stat().st_mtime_ns
    trained = []
    train_folds(
        content,
        (0, 1),
        count=3,
        folder=tmp_path,
        data_root=root,
        resume=True,
        on_fold=lambda fold, result: trained.append((fold, len(result.losses))),
    )
    assert trained == [(1, 1)], "one step was missing"
    assert (tmp_path / "fold_0" / "model" / "weights.safetensors").stat().st_mtime_ns == first
    assert set(json.loads((tmp_path / "cv.json").read_text())["folds"]) == {"0", "1"}
    with pytest.raises(ConfigError, match=r"3 folds with predictions.*found no finished fold 2"):
        choose_ensemble([tmp_path], data_root=root, out=tmp_path)


def test_a_fold_that_has_not_predicted_all_its_cases_is_not_finished(tmp_path, trained, root):
    shutil.copytree(trained / "short", tmp_path / "short")
    next((tmp_path / "short" / "fold_0" / "validation").glob("*.nii.gz")).unlink()
    with pytest.raises(ConfigError, match="no finished fold 0; train the rest with") as caught:
        choose_ensemble([tmp_path / "short"], data_root=root, out=tmp_path)
    assert caught.value.code == "folds-missing"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", "{", "run.json: expected the file as the training wrote it, found"),
        ("run.json", "[]", "found a file without 'finished'"),
        ("split.json", "{}", "split.json: .*found a file without 'train'"),
    ],
)
def test_a_damaged_file_of_a_fold_is_named(tmp_path, trained, root, name, text, words):
    shutil.copytree(trained / "short", tmp_path / "short")
    (tmp_path / "short" / "fold_0" / name).write_text(text)
    count = len(json.loads((tmp_path / "short" / "folds.json").read_text())["folds"])
    options = {"count": count, "folder": tmp_path / "short", "data_root": root, "resume": True}
    with pytest.raises(FormatError, match=words) as caught:
        train_folds(configuration(3), (0,), **options)
    assert caught.value.code == "run-file"


def test_a_division_of_other_cases_or_folds_is_refused(tmp_path, trained, root):
    shutil.copy(trained / "short" / "folds.json", tmp_path / "folds.json")
    with pytest.raises(ConfigError, match="2 folds of the dataset's 6 cases, found 3 folds of 6"):
        train_folds(configuration(1), None, count=2, folder=tmp_path, data_root=root)
    (tmp_path / "folds.json").write_text('{"folds": [["a"], ["a"]]}')
    with pytest.raises(FormatError, match="every case in one fold"):
        Folds.load(tmp_path)
    with pytest.raises(ConfigError, match=r"a folder of folds with folds\.json, found none"):
        Folds.load(tmp_path / "elsewhere")


def test_the_better_configuration_or_average_is_chosen_and_written_down(tmp_path, trained, root):
    runs = [trained / "short", trained / "long"]
    choice = choose_ensemble(runs, data_root=root, out=tmp_path, device="cpu")
    assert [trial.members for trial in choice.trials] == [
        ("short",),
        ("long",),
        ("short", "long"),
    ]
    means = [trial.dice["mean"] for trial in choice.trials]
    best = choice.trials[int(np.argmax(means))]
    assert tuple(member.name for member in choice.members) == best.members
    summary = json.loads((trained / "long" / "cv.json").read_text())["dice"]
    assert choice.trials[1].dice == pytest.approx(summary, abs=1e-6)
    content = json.loads((tmp_path / "ensemble.json").read_text())
    assert len(content["models"]) == 3 * len(best.members)
    for model in content["models"]:
        _, card = load_model((tmp_path / model).resolve())
        assert card.post_processing == choice.post_processing
    members = find_members(str(tmp_path))
    assert [folder.resolve() for folder in members] == [m.resolve() for m in choice.models]


def test_label_maps_are_let_go_case_by_case(tmp_path, trained, root, monkeypatch):
    """Those of all cases of a dataset of CTs would not fit the memory."""
    maps = []

    def counted(*details):
        gc.collect()
        # those of the case before at most
        assert len([alive for alive in maps if alive() is not None]) <= 2
        pair = held_out_pair(*details)
        maps.extend(weakref.ref(one.data_ijk) for one in pair)
        return pair

    monkeypatch.setattr(ensemble, "held_out_pair", counted)
    runs = [shutil.copytree(trained / name, tmp_path / name) for name in ("short", "long")]
    before = names_below(tmp_path)
    choose_ensemble(runs, data_root=root, out=tmp_path, device="cpu")
    # each configuration, their average, and the best one once more
    assert len(maps) == 2 * 4 * 6
    # averages leave nothing
    assert names_below(tmp_path) == before | {"ensemble.json"}


def test_a_choice_that_is_stopped_leaves_nothing(tmp_path, trained, root):
    runs = [shutil.copytree(trained / name, tmp_path / name) for name in ("short", "long")]
    before = names_below(tmp_path)
    listener = Silent()
    stages = []
    listener.started = lambda stage, total: stages.append(stage)
    listener.cancelled = lambda: len(stages) == 3
    with pytest.raises(Cancelled):
        choose_ensemble(runs, data_root=root, out=tmp_path / "new", listener=listener)
    assert stages[-1] == "held-out cases of short + long"
    assert names_below(tmp_path) == before


def test_a_structure_that_no_run_finds_is_named_in_a_warning(tmp_path, trained, root):
    runs, data = [trained / "short"], ["--data", str(root), "-o", str(tmp_path)]
    choice = choose_ensemble(runs, data_root=root, out=tmp_path, device="cpu")
    low = {name: value for name, value in choice.dice.items() if name != "mean" and value < 0.3}
    assert low, "one step teaches nothing"
    done = CliRunner().invoke(app, ["ensemble", str(runs[0]), *data])
    assert done.exit_code == 0
    for name, value in low.items():
        assert f"warning: {name!r} has a Dice of {value:.3f} on the held-out cases" in done.stderr
    assert dataclasses.replace(choice, dice={"a": 0.3, "b": math.nan}).warnings == ()


def test_an_ensemble_that_lists_nothing_is_refused(tmp_path):
    for content in ("[]", "{", '{"models": []}', '{"models": [3]}'):
        (tmp_path / "ensemble.json").write_text(content)
        with pytest.raises(ConfigError, match=r"ensemble\.json: expected .*models"):
            find_members(str(tmp_path))


def test_post_processing_is_adopted_where_it_raises_dice_and_nowhere_else(tmp_path, trained, root):
    """Predictions are replaced by the truth, with a speck more of one structure and a gap in the
    other, whose pieces are all true."""
    run = tmp_path / "run"
    shutil.copytree(trained / "short", run)
    scheme = configuration(1).scheme()
    for number, held_out in enumerate(Folds.load(run).held_out):
        for name in held_out:
            truth = read_labels(root / "labelsTr" / f"{name}.nii.gz", scheme)
            data = truth.data_ijk.copy()
            data[0, 0, 0] = 1  # a speck of "near"
            data[:, :, 6][data[:, :, 6] == 2] = 0  # "far" is in two pieces
            made = LabelMap(data, truth.grid, scheme)
            place = run / f"fold_{number}" / "validation" / f"{name}.nii.gz"
            write_volume(Volume(made.data_ijk[None], made.grid), place)
    choice = choose_ensemble([run], data_root=root, out=run)
    assert [step.label for step in choice.post_processing] == ["near"]
    assert choice.post_processing[0].keep_largest or choice.post_processing[0].min_mm3 > 0
    assert choice.dice["near"] == 1.0
    assert choice.dice["far"] == choice.trials[0].dice["far"]
    refused = [step for step, *_, taken in choice.steps if step.label == "far" and taken]
    assert refused == []
    assert len([1 for *_, taken in choice.steps if taken]) == 1
    for number in range(3):
        _, card = load_model(run / f"fold_{number}")
        assert card.post_processing == choice.post_processing


def test_runs_of_other_folds_are_not_mixed(tmp_path, trained, root):
    other = tmp_path / "other"
    shutil.copytree(trained / "short", other)
    division = json.loads((other / "folds.json").read_text())
    division["folds"] = [sorted(fold) for fold in zip(*division["folds"], strict=True)]
    division["folds"].append([])
    division["folds"] = [*division["folds"][:2]]
    (other / "folds.json").write_text(json.dumps(division))
    with pytest.raises(ConfigError, match=r"the folds and labels of .*found other folds"):
        choose_ensemble([trained / "long", other], data_root=root, out=tmp_path)


def test_the_commands_cross_validate_and_choose(tmp_path, root):
    config = tmp_path / "balls.yaml"
    config.write_text(configuration(1).to_yaml())
    place = str(tmp_path / "cv")
    words = ["train", str(config), "--data", str(root), "-o", place, "--fold-count", "2"]
    done = CliRunner().invoke(app, [*words, "--fold", "1", "--json"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*words, "--cv", "--resume", "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert set(content["dice"]) == {"fold 0", "fold 1", "all"}
    assert content["held_out_cases"] == 6
    assert (tmp_path / "cv" / "fold_1" / "report.html").is_file()
    for more in ([], ["--json"]):
        done = CliRunner().invoke(app, ["ensemble", place, "--data", str(root), *more])
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["held_out_cases"] == 6
    done = CliRunner().invoke(app, [*words, "--cv", "--fold", "1"])
    assert done.exit_code == 2
    assert "one of --cv, --folds and --fold" in done.stderr
    done = CliRunner().invoke(app, [*words, "--resume", "--overwrite"])
    assert done.exit_code == 2
    assert "either --resume or --overwrite" in done.stderr


def test_means_leave_out_what_has_no_dice():
    scores = {"a": {"x": math.nan}, "b": {"x": math.nan}}
    assert math.isnan(summarised(scores)["mean"])
