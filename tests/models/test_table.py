"""The table of networks: every entry works, every mistake is named."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.errors import ConfigError
from medseg.models.card import InputSettings, NetworkChoice, SliceSettings
from medseg.models.network import SegmentationNetwork, halving_weights
from medseg.models.neunet import NEUNET_PRESETS
from medseg.models.revunet import RevUNet, RevUNetSettings
from medseg.models.table import NETWORKS, build_network, build_settings, build_volume_network

ENTRIES = [(name, preset) for name, entry in NETWORKS.items() for preset in entry.presets]


@pytest.mark.parametrize(("name", "preset"), ENTRIES)
def test_every_preset_builds_the_interface_that_all_networks_have(name: str, preset: str) -> None:
    with torch.device("meta"):
        network = build_network(name, {"preset": preset, "in_channels": 2, "out_channels": 5})
    assert isinstance(network, SegmentationNetwork)
    extents = tuple(2 * step for step in network.size_multiple)
    x = torch.empty(1, 2, *extents, device="meta")
    answers = network.train()(x)
    heads = answers if isinstance(answers, tuple) else (answers,)
    assert len(heads) == len(network.head_strides) == len(network.deep_supervision_weights)
    assert heads[0].shape == (1, 5, *extents)
    assert network.eval()(x).shape == heads[0].shape
    assert sum(network.deep_supervision_weights) == pytest.approx(1)


@pytest.mark.parametrize(("name", "preset"), ENTRIES)
def test_settings_survive_json(name: str, preset: str) -> None:
    entry = NETWORKS[name]
    settings = entry.presets[preset]
    again = entry.settings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert build_settings(name, settings.model_dump(mode="json")) == settings


def test_the_table_holds_the_five_networks() -> None:
    assert set(NETWORKS) == {"neunet", "transdae", "macmd", "qtseg", "revunet"}
    assert all(name == entry.name and entry.summary for name, entry in NETWORKS.items())


def test_overrides_replace_what_the_preset_says() -> None:
    settings = build_settings("revunet", {"preset": "small", "blocks": 3})
    assert settings == RevUNetSettings(expansion=2, blocks=3)
    assert build_settings("neunet", {"preset": "acdc"}) == NEUNET_PRESETS["acdc"]


def test_a_network_is_built_from_settings_as_they_are() -> None:
    settings = RevUNetSettings(widths=(8,))
    network = build_network("revunet", settings)
    assert isinstance(network, RevUNet)
    assert network.settings is settings


@pytest.mark.parametrize(
    ("name", "mapping", "words"),
    [
        ("revunett", {}, r"expected one of .*\(nearest: revunet\), found 'revunett'"),
        ("revunet", {"preset": "smal"}, r"\(nearest: small\), found 'smal'"),
        ("revunet", {"width": [8]}, r"\(nearest: widths\), found 'width'"),
        ("revunet", {"blocks": 0}, r"revunet, blocks: expected .*greater than or equal to 1"),
        ("revunet", {"activation": "elu"}, r"activation: expected .*'relu'.*found 'elu'"),
        (
            "revunet",
            {"widths": [12]},
            r"revunet, widths: expected multiples of 2 \* norm_groups = 8, found \[12\]; ",
        ),
        (
            "revunet",
            {"preset": "tiny", "norm_groups": 5},
            r"widths: expected multiples of 2 \* norm_groups = 10, found \[8, 16, 32\]; ",
        ),
        (
            "qtseg",
            {"preset": "tiny", "heads": 7},
            r"qtseg, heads: expected a number that divides 2 \* base_width = 8, .* found 7; ",
        ),
        (
            "transdae",
            {"preset": "tiny", "reductions": [8, 4]},
            r"transdae, reductions: expected one entry per stage, 3 as in dims, found \[8, 4\]; ",
        ),
        (
            "neunet",
            {"preset": "tiny", "strides": [[1, 1, 1]]},
            r"neunet, strides: expected one entry per stage, 3 .*, found \[\(1, 1, 1\)\]; ",
        ),
        ("neunet", {}, r"neunet, features: expected a value, found nothing"),
    ],
)
def test_mistakes_in_settings_are_named(name: str, mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_network(name, mapping)


INPUTS = InputSettings.model_validate(
    {
        "channels": [{"name": "T1"}, {"name": "T2"}],
        "spacing_mm": [1, 1, 5],
        "window_ijk": [32, 32, 8],
    }
)


@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        (name, neighbours)
        for name, entry in NETWORKS.items()
        for neighbours in ([None] if entry.rank == 3 else [None, 0, 1])
    ],
)
def test_channels_left_out_follow_from_the_inputs(name: str, neighbours: int | None) -> None:
    if NETWORKS[name].rank == 3 and neighbours is not None:
        pytest.skip("a 3D network is not sliced")
    slices = None if neighbours is None else SliceSettings(neighbours=neighbours)
    choice = NetworkChoice(name=name, settings={"preset": "tiny"}, slices=slices)
    network = build_volume_network(choice, INPUTS).eval()
    assert network.in_channels == 2
    with torch.no_grad():
        extents = network.nearest_legal_extents((8, 8, 3))
        assert network(torch.zeros(1, 2, *extents)).shape[2:] == extents
    given = {"preset": "tiny", "in_channels": 2 * (2 * (neighbours or 0) + 1)}
    build_volume_network(NetworkChoice(name=name, settings=given, slices=slices), INPUTS)


@pytest.mark.parametrize("name", ["revunet", "qtseg"])
def test_channels_that_contradict_the_inputs_are_refused(name: str) -> None:
    choice = NetworkChoice(name=name, settings={"preset": "tiny", "in_channels": 4})
    words = "in_channels: expected 2, the number of image .*found 4; leave in_channels out"
    with pytest.raises(ConfigError, match=words):
        build_volume_network(choice, INPUTS)


def test_the_documented_calls_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "networks.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    for example in examples:
        exec(example, names)  # noqa: S102 - our own page
    assert names["volume_network"].network.in_channels == 3
    assert names["logits"].shape == (1, 3, 40, 33, 7)


def test_a_citation_has_the_title_of_the_paper() -> None:
    assert "Channel Mixer Decoding for Medical Image Segmentation" in NETWORKS["macmd"].citation


def test_settings_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected NeUNetSettings, found RevUNetSettings"):
        build_network("neunet", RevUNetSettings())


@pytest.mark.parametrize("heads", range(1, 8))
def test_halving_weights_sum_to_one_and_halve(heads: int) -> None:
    weights = halving_weights(heads)
    assert len(weights) == heads
    assert sum(weights) == pytest.approx(1)
    if heads > 1:
        assert weights[-1] == 0
        for fine, coarse in pairwise(weights[:-1]):
            assert fine == pytest.approx(2 * coarse)
