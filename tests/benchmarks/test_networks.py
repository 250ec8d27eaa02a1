"""The benchmark of networks runs, checks that answers agree, and prints ratios."""

import json

import pytest
import torch
from torch import Tensor, nn

from benchmarks import networks
from medseg.models.neunet import NEUNET_PRESETS


def test_it_times_a_network_and_writes_its_figures(tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    words = ["qtseg", "--preset", "small", "--extents", "64x64", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["networks", *words, "--json", str(path)])
    networks.main()
    rows = json.loads(path.read_text())
    assert [row["variant"] for row in rows] == ["fp32", "bf16 channels last"]
    assert all(row["forward_s"] > 0 and row["step_s"] > 0 for row in rows)
    assert rows[0]["deviation"] < 1e-5 < rows[1]["deviation"] < networks.TOLERANCE
    assert "speed-up over fp32" in capsys.readouterr().out


def test_an_answer_that_disagrees_stops_it():
    class Unstable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y + torch.rand_like(y)

    with pytest.raises(SystemExit, match="logits deviate by"):
        networks.measure("unstable", Unstable(), (8, 8), 1, 1)


def test_the_peers_have_the_published_number_of_weights():
    """Plain nnU-Net at the configurations of neU-Net, counted by the authors' own network."""
    with torch.device("meta"):
        counts = {"synapse": 30_713_158, "acdc": 30_012_884, "brats": 31_198_991}
        for preset, weights in counts.items():
            nnunet = networks.peers(NEUNET_PRESETS[preset])["nnU-Net PlainConvUNet"]
            assert sum(weight.numel() for weight in nnunet.parameters()) == weights
