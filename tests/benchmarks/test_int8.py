"""The benchmark of integers: its arithmetic against torch's, and a run of all its paths."""

import json
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks import int8
from benchmarks.int8 import EagerConv, OneDnnConv, Scale


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rounded_convolution(conv: nn.Conv3d, x: Tensor, scale: Scale) -> Tensor:
    """The same integers, multiplied as double-precision numbers."""
    steps = conv.weight.abs().amax(dim=(1, 2, 3, 4)).view(-1, 1, 1, 1, 1) / 127
    weight = (conv.weight / steps).round() * steps
    image = ((x / scale.step).round() + scale.zero).clamp(0, 255) - scale.zero
    padding = (conv.padding[0],) * 3
    return torch.conv3d(
        (image * scale.step).double(), weight.double(), conv.bias.double(), conv.stride, padding
    ).float()


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_vnni"),
    reason="without VNNI the products of bytes are summed in 16 bits, which saturate",
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_integer_convolutions_are_those_of_the_rounded_numbers(kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv3d(9, 12, kernel, stride, padding=kernel // 2).requires_grad_(False)
    x = torch.randn(1, 9, 6, 7, 8).to(memory_format=torch.channels_last_3d)
    scale = Scale.of(float(x.min()), float(x.max()))
    wanted = rounded_convolution(conv, x, scale)
    output = Scale.of(float(wanted.min()), float(wanted.max()))
    # a result of 8 bits is off by half a step; bfloat16 keeps 8 digits
    torch.testing.assert_close(
        EagerConv(conv, scale, output)(x), wanted, rtol=0, atol=0.51 * output.step
    )
    found = OneDnnConv(conv, scale)(x.bfloat16().float())
    again = rounded_convolution(conv, x.bfloat16().float(), scale)
    torch.testing.assert_close(found.float(), again, rtol=2**-8, atol=1e-3)


def test_a_scale_holds_its_range_and_zero():
    scale = Scale.of(-1, 1.55)
    assert scale.step == pytest.approx(0.01)
    assert scale.zero == 100
    assert Scale.of(0.5, 2.55).zero == 0
    assert Scale.of(-2.55, -1).zero == 255


def test_first_last_and_grouped_convolutions_are_left_as_they_are():
    layers = [nn.Conv3d(1, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 8, 1, groups=8)]
    network = nn.Sequential(*layers, nn.Conv3d(8, 16, 1), nn.Conv3d(16, 16, 1))
    assert list(int8.observed(network, [torch.randn(1, 1, 2, 2, 2)])) == ["1", "3"]


def test_a_network_without_such_a_convolution_says_so():
    with pytest.raises(int8.CannotRunError, match="no convolution that integers"):
        int8.exchanged(nn.Identity(), {}, nn.Identity)


@pytest.mark.slow
def test_it_runs_every_path_and_says_why_one_does_not(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, "torchao", None)
    figures = tmp_path / "figures.json"
    words = ["--quick", "--repeats", "1", "--steps", "4", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["int8", *words, "dynunet"])
    int8.main()
    rows = {row["path"]: row for row in json.loads(figures.read_text())}
    assert set(int8.PATHS) - set(rows) == {"PT2E inductor int8"}
    assert rows[int8.FP32]["equal_voxels"] == 1 == rows["ONNX Runtime fp32"]["equal_voxels"]
    assert all(len(row["seconds"]) == 1 and row["seconds"][0] > 0 for row in rows.values())
    assert all(row["equal_voxels"] > 0.8 for row in rows.values())
    printed = capsys.readouterr().out
    assert "PT2E inductor int8 does not run: " in printed
    assert "pip install torchao" in printed
    assert "ONNX Runtime QLinearConv" in printed
    assert "13 integer convolutions" in printed
