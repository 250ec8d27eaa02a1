"""The whole way by the command line: phantom, check, plan, train, evaluate, for every network."""

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
import yaml
from typer.testing import CliRunner

from medseg.data.datalist import read_datalist
from medseg.models.card import load_card
from medseg.models.table import NETWORKS, build_network
from pipelines.cli import app

PARTS = ("train", "validation", "test")
PLANNED_FOR = {"synapse": "qtseg", "acdc": "neunet", "brats": "revunet"}
"""The network whose plan is trained as it is; the others take its place at their least size."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answer_to(*words: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=sorted(PLANNED_FOR))
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / request.param
    answer_to("data", "phantom", request.param, "--cases", 3, "--size", "small", "-o", folder)
    return folder


def test_a_phantom_is_a_dataset_without_errors(dataset: Path) -> None:
    checked = answer_to("data", "check", dataset, "--jobs", 1)  # errors end it with exit code 1
    assert checked["layout"] == dataset.name
    assert len(checked["cases"]) == sum(len(checked["split"][part]) for part in PARTS)


@pytest.fixture(scope="module")
def plan(dataset: Path) -> dict:
    """As planned, but for one step, and numerics that are not measured first."""
    path = dataset.parent / f"{dataset.name}.yaml"
    options = ("--memory", "800MB", "--device", "cpu", "--jobs", 1, "-o", path)
    planned = answer_to("plan", dataset, "--model", PLANNED_FOR[dataset.name], *options)["plan"]
    assert planned["measured_bytes"] <= 800e6
    settings = yaml.safe_load(path.read_text())
    settings["training"] |= {"steps": 1, "precision": "fp32", "channels_last": False}
    return settings


def with_network(plan: dict, name: str) -> dict:
    """A plan for another network, of its least size and on the least windows."""
    if plan["network"]["name"] == name:
        return plan
    entry = NETWORKS[name]
    extents = build_network(name, {"preset": "tiny"}).nearest_legal_extents(
        (32, 32, 8)[: entry.rank]
    )
    network = {"name": name, "settings": {"preset": "tiny"}}
    window = [*extents]
    if entry.rank == 2:
        network["slices"] = {"axis": "k", "batch": 16, "neighbours": 0, "extents": [*extents]}
        window = [32, 32, 4]
    training = plan["training"] | {"patch_ijk": window, "batch_size": 2}
    return plan | {
        "inputs": plan["inputs"] | {"window_ijk": window},
        "network": network,
        "training": training,
    }


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_trained_and_its_held_out_cases_are_scored(
    name: str, dataset: Path, plan: dict, tmp_path: Path
) -> None:
    config, run, out = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "scores"
    config.write_text(yaml.safe_dump(with_network(plan, name)))
    trained = answer_to("train", config, "--data", dataset, "-o", run)
    assert trained["steps"] == 1

    scored = answer_to("evaluate", run, "--data", dataset, "-o", out)
    cases = read_datalist(dataset)
    held_out = cases.test or cases.validation
    assert scored["cases"] == {
        "references": len(held_out),
        "scored": len(held_out),
        "missing": [],
        "failed": [],
        "foreign_predictions": [],
    }
    card = load_card(run / "model")
    assert card.network.name == name
    assert card.scheme().to_dict() == cases.scheme.to_dict()
    structures = [each.name for each in card.regions or card.scheme().labels]
    assert list(scored["results"]) == structures
    if dataset.name == "brats":
        assert structures == ["whole tumour", "tumour core", "enhancing tumour"]
    for case in held_out:
        predicted = nib.load(out / "predictions" / f"{case.id}_dseg.nii.gz")
        truth = nib.load(case.label)
        assert predicted.shape == truth.shape
        assert (run / "report.html").is_file()
