"""Every shipped configuration is complete, legal and says where its values are from."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml

from medseg.data.phantoms import write_phantom
from medseg.data.schemes import REGIONS, SCHEMES
from medseg.data.splits import PUBLISHED
from medseg.models.table import NETWORKS, build_volume_network
from medseg.training.augmentation import check_flips, left_right_axis
from medseg.training.settings import load_settings
from pipelines.shipped import shipped_configs
from pipelines.train import read_data
from pipelines.training_checks import check_data, check_extents, complete_settings

CONFIGS = shipped_configs()
RECIPES = [f"{n}_{d}" for n, d in itertools.product(NETWORKS, ("synapse", "acdc", "brats"))]
ON_CPU = ["neunet_headneck", "revunet_headneck", "neunet_acdc_cpu", "revunet_acdc_cpu"]
EVERY = pytest.mark.parametrize("name", CONFIGS)


def test_all_published_recipes_and_the_small_ones_are_there() -> None:
    assert len(RECIPES) == 15
    assert set(RECIPES) | set(ON_CPU) <= set(CONFIGS)


def keys_of(content: object, path: str = "") -> set[str]:
    if isinstance(content, dict):
        return set().union(*(keys_of(one, f"{path}.{key}") for key, one in content.items()))
    return {path}


@EVERY
def test_a_configuration_is_complete_and_its_network_takes_its_windows(name: str) -> None:
    path = CONFIGS[name]
    settings = load_settings(path)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settings.name == name
    # NETWORK_DATASET, but for the packaged model, which keeps the name it was shipped under
    network_name = "revunet" if name == "reversible_hippocampus" else name.split("_", maxsplit=1)[0]
    assert settings.network.name == network_name
    complete = complete_settings(settings)
    with torch.device("meta"):
        network = build_volume_network(complete.network, complete.inputs)
    check_extents(complete, network)
    out = len(settings.regions) if settings.regions else 1 + len(settings.scheme().values)
    assert network.out_channels == out
    follow = {f".network.settings.{key}" for key in ("in_channels", "out_channels")}
    given = keys_of(complete.model_dump(mode="json")) - follow
    # what was added after a configuration was written has a default that changes nothing
    optional = {".regions", ".ignore_value", ".data.scheme", ".data.fold", ".network.slices"}
    assert given - keys_of(written) <= optional


@EVERY
def test_labels_regions_split_and_mirrored_axes_fit_together(name: str) -> None:
    settings = load_settings(CONFIGS[name])
    augmentation = settings.training.augmentation
    check_flips(augmentation, settings.scheme(), settings.inputs.orientation)
    if augmentation.flip_probability:
        mirrored = {"ijk"[axis] for axis in augmentation.flip_axes}
        assert set(settings.inputs.mirror_axes) == mirrored
    else:
        assert not settings.inputs.mirror_axes
    assert all(
        patch <= window
        for patch, window in zip(settings.patch_ijk, settings.inputs.window_ijk, strict=True)
    )
    scheme = settings.data.scheme
    if scheme is not None:
        assert settings.scheme() == SCHEMES[scheme]
        assert settings.regions == (REGIONS.get(scheme) or None)
    if settings.data.split is not None:
        assert settings.data.split in PUBLISHED


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_of_a_recipe_says_where_it_is_from(name: str) -> None:
    section = ""
    for line in CONFIGS[name].read_text(encoding="utf-8").splitlines():
        if re.match(r"[a-z]", line):
            section = line.split(":")[0]
        if section in ("inputs", "network", "training") and re.match(r" {2}[a-z_]+:", line):
            assert re.search(r"# \w", line), line


def test_neunet_recipes_are_those_that_its_authors_released() -> None:
    """The plan table of the released code, read by its axis order (slices first)."""
    published = {
        "synapse": ((48, 192, 192), 2, (3.0, 0.75781, 0.75781), "122 222 222 222 122"),
        "acdc": ((10, 96, 96), 5, (6.35, 1.52344, 1.52344), "122 122 222 122 122"),
        "brats": ((128, 128, 128), 2, (1.0, 1.0, 1.0), "222 222 222 222 222"),
    }
    for dataset, (patch, batch, spacing_mm, strides) in published.items():
        settings = load_settings(CONFIGS[f"neunet_{dataset}"])
        turned = slice(None, None, -1) if dataset == "acdc" else slice(None)
        assert settings.patch_ijk[turned] == patch
        assert settings.training.batch_size == batch
        assert settings.inputs.spacing_mm is not None
        assert settings.inputs.spacing_mm[turned] == spacing_mm
        found = settings.network.settings["strides"][1:]
        assert " ".join("".join(str(n) for n in stride[turned]) for stride in found) == strides
        training = settings.training
        assert (training.optimizer, training.learning_rate, training.momentum) == (
            "sgd",
            0.01,
            0.99,
        )


def test_head_and_neck_is_not_mirrored_between_left_and_right() -> None:
    for name in ("neunet_headneck", "revunet_headneck"):
        settings = load_settings(CONFIGS[name])
        axis = left_right_axis(settings.inputs.orientation)
        assert axis is not None
        # nothing is mirrored as it stands; who turns mirroring on gets the other two axes
        assert axis not in settings.training.augmentation.flip_axes
        assert len(settings.training.augmentation.flip_axes) == 2


def test_configurations_name_no_place_of_the_machine_that_wrote_them() -> None:
    for path in CONFIGS.values():
        root = Path(load_settings(path).data.root)
        assert not root.is_absolute()
        assert root.parts[0] == "data"


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [("synapse", "synapse"), ("synapse", "transunet"), ("acdc", "acdc"), ("brats", "brats2021")],
)
def test_recipes_take_the_dataset_in_its_own_layout(dataset, kind, tmp_path) -> None:
    """Made data stand for the public sets: labels, channels, split and regions must be theirs."""
    write_phantom(kind, tmp_path / "set", cases=4, size="small")
    taken = 0
    for name in [*RECIPES, *ON_CPU]:
        settings = load_settings(CONFIGS[name])
        if settings.data.layout != kind.removesuffix("2021") or dataset not in name:
            continue
        if settings.data.split == "acdc-nnformer":  # few made hearts: none of its validation part
            whole = settings.data.model_copy(update={"split": None})
            settings = settings.model_copy(update={"data": whole})
        data = read_data(settings, tmp_path / "set")
        check_data(settings, data)
        assert data.regions == (settings.regions or ())
        assert [one.name for one in settings.inputs.channels] == list(data.channels)
        taken += 1
    assert taken >= 2
