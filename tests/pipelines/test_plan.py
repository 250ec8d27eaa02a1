"""From a dataset's folder to a file that trains, through the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from medseg.data.datalist import read_datalist
from medseg.data.fingerprint import load_fingerprint
from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.training.planning import Planner
from medseg.training.settings import load_settings
from pipelines import plan as plan_module
from pipelines.cli import app
from pipelines.dry_step import DryStep, dry_step
from pipelines.plan import parse_spacing, plan_dataset
from pipelines.train import train
from pipelines.training_checks import check_data
from tests.tiny_dataset import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset and the plan of a reversible network for it."""
    folder = tmp_path_factory.mktemp("planned")
    write_dataset(folder / "Balls")
    command = ["plan", str(folder / "Balls"), "--model", "revunet", "--memory", "1GB"]
    command += ["--device", "cpu", "--jobs", "1", "--out", str(folder / "mine.yaml"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    (folder / "answer.json").write_text(done.stdout)
    return folder


def test_a_plan_trains_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    settings = load_settings(folder / "mine.yaml")
    assert settings.name == "mine"
    assert settings.inputs.spacing_mm == (1.0, 1.0, 1.0)
    assert settings.training.batch_size == 2
    # only the length is changed: two steps do for a test
    short = settings.training.model_copy(update={"steps": 2})
    result = train(settings.model_copy(update={"training": short}), run_folder=tmp_path / "run")
    assert result.steps == 2
    assert result.finished


def test_the_answer_and_the_file_hold_what_was_measured(folder: Path) -> None:
    answer = json.loads((folder / "answer.json").read_text())["plan"]
    text = (folder / "mine.yaml").read_text()
    assert answer["settings"] == yaml.safe_load(text)
    assert answer["estimated_bytes"] > 0
    assert 0 < answer["measured_bytes"] <= answer["memory_bytes"] == 10**9
    assert f"{answer['measured_bytes'] / 1e9:.2f} GB, measured on cpu in fp32" in text
    facts = load_fingerprint(folder / "mine_fingerprint.json")
    assert len(facts.cases) == 4  # the two that validate have no part in it


def test_what_a_dry_step_needs_is_there_without_monai() -> None:
    """Its process is a new one for every window that is tried: seconds each."""
    names = ("medseg.training.step", "medseg.training.losses", "medseg.models.table")
    words = (
        f"import sys, {', '.join(names)}, pipelines.training_checks; print('monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_overwritten_unasked(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected a name that is still free") as caught:
        plan_dataset(folder / "Balls", "revunet", memory_bytes=10**9, out=folder / "mine.yaml")
    assert caught.value.code == "output-exists"
    (folder / "mine.yaml").rename(folder / "other.yaml")
    try:  # the fingerprint alone is enough to stop
        with pytest.raises(ConfigError, match=r"fingerprint\.json.*or replace it with --overwrite"):
            plan_dataset(folder / "Balls", "revunet", memory_bytes=10**9, out=folder / "mine.yaml")
    finally:
        (folder / "other.yaml").rename(folder / "mine.yaml")


def test_a_step_that_takes_too_much_is_made_smaller_until_it_fits(folder: Path) -> None:
    facts = load_fingerprint(folder / "mine_fingerprint.json")
    planner = Planner(facts, "revunet", "cpu", plan_module.DataChoice("data/Balls"))
    tried: list[int] = []

    def step(content: dict, device: str, listener: Silent) -> DryStep | None:
        """Twice the tensors, and nothing at all for the largest: memory ran out."""
        assert device == "cpu"
        window = content["inputs"]["window_ijk"]
        tried.append(window[0] * window[1] * window[2])
        if len(tried) == 1:
            return None
        position = [list(one.window_ijk) for one in planner.candidates].index(window)
        return DryStep(2 * planner.estimate(position), 1.0)

    limit = int(1.5 * planner.estimate(len(planner.candidates) - 1))
    plan, measured = plan_module.tried_plan(planner, limit, "cpu", Silent(), step)
    assert measured.peak_bytes <= limit
    assert len(tried) >= 2
    assert tried == sorted(tried, reverse=True)
    assert plan.estimate_bytes * 2 == measured.peak_bytes
    with pytest.raises(ResourceError, match="for the smallest step of revunet"):
        plan_module.tried_plan(
            planner,
            planner.estimate(0),
            "cpu",
            Silent(),
            lambda content, device, listener: DryStep(3 * planner.estimate(0), 1.0),
        )


def test_a_dry_step_stops_when_the_listener_asks(folder: Path) -> None:
    class Impatient(Silent):
        def cancelled(self) -> bool:
            return True

    content = load_settings(folder / "mine.yaml").model_dump(mode="json")
    with pytest.raises(Cancelled):
        dry_step(content, "cpu", Impatient())


@pytest.mark.parametrize("text", ["1x1", "1x1x0", "a,b,c", "1x1x1e9", "1x1xnan"])
def test_a_spacing_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--spacing: expected three numbers of millimetres"):
        parse_spacing(text)


def test_options_that_cannot_be_meant_are_refused_before_any_case_is_read(folder: Path) -> None:
    for options, words in (
        (["--memory", "much"], "expected an amount of memory"),
        (["--model", "nonet"], "--model: expected one of macmd, neunet"),
        (["--spacing", "1x1"], "three numbers of millimetres"),
    ):
        done = CliRunner().invoke(app, ["plan", str(folder / "Balls"), *options])
        assert done.exit_code == 2
        assert words in done.stderr


@pytest.mark.parametrize(("place", "network"), [("cpu", "revunet"), ("cuda", "neunet")])
def test_without_a_model_the_network_is_chosen_by_the_device(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, network: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "choose_device", lambda device: torch.device(place))

    def tried(planner: Planner, memory_bytes: int, device: str, listener: Silent) -> object:
        assert device == place
        return planner.plan(memory_bytes), DryStep(10**8, 0.5)

    monkeypatch.setattr(plan_module, "tried_plan", tried)
    command = ["plan", str(folder / "Balls"), "--memory", "4GB", "--jobs", "1", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)["plan"]
    assert answer["settings"]["network"]["name"] == network
    assert answer["file"] == f"{network}_balls.yaml"
    assert load_settings(Path(answer["file"])).network.name == network


def test_an_ignore_label_of_the_dataset_must_be_that_of_the_settings(folder: Path) -> None:
    settings = load_settings(folder / "mine.yaml")
    data = read_datalist(folder / "Balls")
    judged = replace(data, train=tuple(replace(case, ignore_value=9) for case in data.train))
    with pytest.raises(ConfigError, match="expected 9, the ignore label of the dataset") as caught:
        check_data(settings, judged)
    assert caught.value.code == "dataset-ignored"
    check_data(settings.model_copy(update={"ignore_value": 9}), judged)
