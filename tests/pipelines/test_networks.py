"""`medseg models` on networks: published figures, legal extents, mistakes."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from medseg.errors import ConfigError
from medseg.models.estimate import count_macs, measure_footprint
from medseg.models.table import NETWORKS, build_network
from medseg.ops.live_storage import LiveStorage
from pipelines.cli import app
from pipelines.networks import network_page


def test_the_page_of_neunet_shows_the_published_figures():
    result = CliRunner().invoke(app, ["models", "show", "neunet"])
    assert result.exit_code == 0
    for words in (
        "181,132,838",
        "1860.621 G",
        "multiples of 8 x 32 x 32",
        "1 x 1 x 48 x 192 x 192",
        "arXiv 2309.11139",
        "exact to the authors' code",
    ):
        assert words in result.stdout


def test_a_preset_an_input_and_a_batch_can_be_asked_for():
    words = ["models", "show", "neunet", "--preset", "acdc", "--extents", "10x64x96"]
    result = CliRunner().invoke(app, [*words, "--batch", "3", "--json"])
    assert result.exit_code == 0
    page = json.loads(result.stdout)["network"]
    assert page["shape"] == [3, 1, 10, 64, 96]
    assert page["published_input"] is False
    assert page["footprint"]["weights"] == 161_276_852


def test_networks_are_listed_with_weights_and_evidence():
    result = CliRunner().invoke(app, ["models", "list", "--networks", "--json"])
    assert result.exit_code == 0
    networks = json.loads(result.stdout)["networks"]
    assert set(networks) == {"neunet", "transdae", "macmd", "qtseg", "revunet"} == set(NETWORKS)
    assert networks["neunet"]["presets"]["acdc"]["out_channels"] == 4
    for name, page in networks.items():
        assert page["evidence"] in ("authors' code", "reconstruction")
        assert set(page["presets"]) == set(NETWORKS[name].presets)
        assert page["footprint"]["weights"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["neunt"], r"one of .*\(nearest: neunet\)"),
        (["neunet", "--preset", "huge"], "preset to be one of .*found 'huge'"),
        (["neunet", "--extents", "50x100x100"], "the nearest are 48 x 96 x 96"),
        (
            ["neunet", "--extents", "64x64"],
            "expected 3 numbers, such as 128x128x128.*the network is 3D",
        ),
        (["neunet", "--extents", "axbxc"], "expected 3 numbers"),
        (
            ["reversible_hippocampus", "--preset", "tiny"],
            "--preset: expected the name of a network",
        ),
    ],
)
def test_mistakes_are_usage_errors_that_say_what_to_do(words, message):
    result = CliRunner().invoke(app, ["models", "show", *words])
    assert result.exit_code == 2
    assert not result.stdout
    assert re.search(message, result.stderr.replace("\n", " "))


def test_the_page_raises_what_the_command_prints():
    with pytest.raises(ConfigError, match="nearest: revunet"):
        network_page("revune")
    with pytest.raises(ConfigError, match="expected multiples of 4 x 4 x 4"):
        network_page("revunet", preset="tiny", extents="6,8,8")


@pytest.mark.parametrize("name", NETWORKS)
def test_estimated_memory_is_what_real_tensors_take(name):
    network = build_network(name, {"preset": "tiny"})
    extents = tuple(2 * step for step in network.size_multiple)
    x = torch.randn(2, network.in_channels, *extents)
    estimate = measure_footprint(network, x.shape)
    kept = [*network.parameters(), *network.buffers()]
    resident = sum(tensor.nbytes for tensor in kept) + x.nbytes
    assert estimate.weights_bytes == resident - x.nbytes
    with torch.no_grad(), LiveStorage([*kept, x]) as storage:
        network.eval()(x)
    # kernels of the CPU keep a few statistics that those of the meta device do not, or the reverse
    assert estimate.prediction_bytes == pytest.approx(resident + storage.peak_bytes, rel=0.1)
    assert estimate.macs == count_macs(network, x.shape) > 0
    assert estimate.training_bytes > estimate.prediction_bytes
