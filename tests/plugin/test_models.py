import json

import pytest

from medseg_napari._models import find_all_models, model_events, remember_model, user_models
from tests.tiny_model import write_tiny_model


@pytest.fixture
def folder(tmp_path):
    write_tiny_model(tmp_path / "models" / "mine")
    return tmp_path / "models"


def test_packaged_models_come_first_and_then_those_of_a_folder(folder):
    found = find_all_models(folder)
    assert [(one.name, one.packaged) for one in found.models] == [
        ("reversible_hippocampus", True),
        ("mine", False),
    ]
    assert found.problems == ()
    assert found.named("mine").channels == ("T1",)
    assert found.named("gone") is None


@pytest.mark.parametrize("folder", [None, "gone"])
def test_without_a_folder_the_packaged_ones_are_left(tmp_path, folder):
    found = find_all_models(None if folder is None else tmp_path / folder)
    assert [one.packaged for one in found.models] == [True]


def test_a_model_folder_itself_can_be_chosen(folder):
    assert find_all_models(folder / "mine").named("mine") is not None


def test_the_folder_of_a_training_run_is_a_model(tmp_path):
    write_tiny_model(tmp_path / "runs" / "first" / "model")
    assert find_all_models(tmp_path / "runs").named("first").card.name == "tiny"


def test_an_ensemble_is_one_entry(folder):
    write_tiny_model(folder / "other")
    both = folder / "both"
    both.mkdir()
    (both / "ensemble.json").write_text(json.dumps({"models": ["../mine", "../other"]}))
    model = find_all_models(folder).named("both")
    assert len(model.folders) == 2
    assert model.title == "both 1, 2 networks"


def test_a_folder_that_is_called_as_a_packaged_model_keeps_both(folder):
    (folder / "mine").rename(folder / "reversible_hippocampus")
    names = [one.name for one in find_all_models(folder).models]
    assert names == ["reversible_hippocampus", "reversible_hippocampus (models)"]


def test_a_damaged_card_is_told_and_the_others_are_listed(folder):
    (folder / "broken").mkdir()
    (folder / "broken" / "model.json").write_text("{}")
    found = find_all_models(folder)
    assert [one.name for one in found.models] == ["reversible_hippocampus", "mine"]
    [problem] = found.problems
    assert "expected a model card" in problem


def test_the_users_folder_lies_among_the_data_of_the_user():
    assert user_models().parts[-2:] == ("medseg", "models")


def test_a_model_that_was_made_here_is_listed_wherever_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_napari._models._made_here", [])
    told = []
    model_events.added.connect(told.append)
    made = write_tiny_model(tmp_path / "elsewhere" / "new")
    try:
        remember_model(made)
        remember_model(made)
    finally:
        model_events.added.disconnect(told.append)
    assert told == [made, made]
    for place in (folder, None, made.parent):  # there once, also where it lies in the folder
        names = [one.name for one in find_all_models(place).models]
        assert names.count("new") == 1
