"""One YAML file per run: complete, closed, and refused by the name of the wrong key."""

import pytest
import yaml
from pydicom.sr.codedict import codes

from medseg.errors import ConfigError
from medseg.models.table import build_volume_network
from medseg.training.settings import RunSettings, load_settings, parse_settings
from pipelines.shipped import find_config, shipped_configs
from pipelines.train import complete_settings
from tests.tiny_dataset import tiny_settings


def changed(path, value, *, delete=False):
    content = tiny_settings()
    *folders, last = path.split(".")
    place = content
    for folder in folders:
        place = place[int(folder) if folder.isdigit() else folder]
    if delete:
        del place[last]
    else:
        place[last] = value
    return content


def test_a_misspelt_key_is_named_although_the_right_one_is_missing_then():
    content = tiny_settings()
    content["training"]["learning_rat"] = content["training"].pop("learning_rate")
    with pytest.raises(ConfigError, match="did you mean learning_rate") as caught:
        parse_settings(content, where="run.yaml")
    assert caught.value.where == "run.yaml: training.learning_rat"
    assert caught.value.code == "config-unknown-key"


def test_settings_survive_their_own_yaml():
    settings = parse_settings(tiny_settings(), where="run.yaml")
    assert parse_settings(yaml.safe_load(settings.to_yaml()), where="again") == settings


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("training.batch_size", "two", "training.batch_size: expected a valid integer"),
        ("training.batch_size", 0, "training.batch_size: expected greater than or equal to 1"),
        ("training.learning_rate", float("nan"), "training.learning_rate: expected a finite"),
        ("training.optimizer", "adam", "training.optimizer: expected 'adamw' or 'sgd'"),
        ("training.epochs", 3, "training: expected give either epochs or steps"),
        ("training.steps", None, "training: expected give either epochs or steps"),
        ("training.batchsize", 2, "training.batchsize: .*did you mean batch_size"),
        ("inputs.channels.0.nam", "T1", "did you mean name"),
        ("inputs.orientation", "RRS", "inputs.orientation: expected orientation needs one"),
        ("data.validation_fraction", 1.0, "data.validation_fraction: expected less than 1"),
        ("name", "Two Words", "name: expected string should match"),
        ("labels.labels", [], "labels: expected at least one label"),
        ("labels.colour", 1, "labels: expected one of labels, name"),
        ("completely_new", 1, "completely_new: expected one of"),
    ],
)
def test_a_wrong_key_is_refused_by_its_path(path, value, words):
    with pytest.raises(ConfigError, match=words):
        parse_settings(changed(path, value), where="run.yaml")


@pytest.mark.parametrize("key", ["name", "training.batch_size", "licence", "inputs.window_ijk"])
def test_a_missing_key_is_refused(key):
    with pytest.raises(ConfigError, match=f"run.yaml: {key}: expected a value, found nothing"):
        parse_settings(changed(key, None, delete=True), where="run.yaml")


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ({"dice_weight": 0.0, "cross_entropy_weight": 0.0}, None, "cannot both be 0"),
        (
            {"augmentation": {"gamma": [2.0, 1.0]}},
            None,
            "augmentation.gamma: .*smaller number first",
        ),
        ({"augmentation": {"flip_axes": [1, 1]}}, None, "augmentation.flip_axes: .*axis once"),
        ({"augmentation": "nnunett"}, None, "one of the presets light, nnunet, none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section, value, words):
    with pytest.raises(ConfigError, match=words):
        parse_settings(tiny_settings(**section), where="run.yaml")


def test_a_file_that_is_absent_damaged_or_builds_objects_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    with pytest.raises(ConfigError, match="a configuration file, found none"):
        load_settings(path)
    path.write_text("name: [1, 2")
    with pytest.raises(ConfigError, match="plain YAML, found text that cannot be parsed at line 1"):
        load_settings(path)
    path.write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="plain YAML"):
        load_settings(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="a mapping of settings, found an empty file"):
        load_settings(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="found a list"):
        load_settings(path)


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_run_is_complete_and_its_window_fits_its_network(name):
    path = find_config(name)
    settings = load_settings(path)
    assert settings.name == name == path.stem
    assert set(yaml.safe_load(path.read_text())) == set(RunSettings.model_fields)
    written = yaml.safe_load(path.read_text())["training"]
    assert set(written) == set(type(settings.training).model_fields), "a shipped run says it all"
    completed = complete_settings(settings)
    # nothing is left to defaults that a later version might change
    derived = {"in_channels", "out_channels"}
    assert set(settings.network.settings) == set(completed.network.settings) - derived
    network = build_volume_network(completed.network, settings.inputs)
    for extents in (settings.inputs.window_ijk, settings.patch_ijk):
        assert network.nearest_legal_extents(extents) == extents


def test_the_codes_of_the_hippocampus_scheme_are_those_of_snomed():
    for label in load_settings(find_config("reversible_hippocampus")).scheme().labels:
        assert label.category.value == codes.SCT.AnatomicalStructure.value
        assert label.concept.value == codes.SCT.Hippocampus.value
        side = label.name.split()[0].capitalize()
        assert label.modifier.value == getattr(codes.SCT, side).value


def test_shipped_runs_are_found_by_name_and_others_by_path(tmp_path):
    assert {"neunet_hippocampus", "reversible_hippocampus"} <= set(shipped_configs())
    mine = tmp_path / "mine.yaml"
    mine.write_text("")
    assert find_config(str(mine)) == mine
    with pytest.raises(ConfigError, match="nearest: reversible_hippocampus"):
        find_config("reversible_hipocampus")
