"""2D networks on volumes: every slice gets its own answer, back in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.models.card import InputSettings, SliceSettings
from medseg.models.network import SegmentationNetwork
from medseg.models.slices import SlicedNetwork


class Flat(SegmentationNetwork):
    """One 3x3 convolution; keeps the shapes that it was given."""

    def __init__(self, channels: int = 1, *, heads: int = 1, multiple: int = 4) -> None:
        super().__init__(
            in_channels=channels,
            out_channels=2,
            size_multiple=(multiple, multiple),
            head_strides=((1, 1), (2, 2))[:heads],
        )
        self.conv = nn.Conv2d(channels, 2, 3, padding=1).double()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x_bchw: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.check_input(x_bchw)
        self.seen.append(tuple(x_bchw.shape))
        logits: Tensor = self.conv(x_bchw)
        if self.training and len(self.head_strides) == 2:
            return logits, F.avg_pool2d(logits, 2)
        return logits


def volume(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_answer_is_that_of_every_slice_for_itself(axis: int, batch: int) -> None:
    flat = Flat()
    sliced = SlicedNetwork(flat, SliceSettings(batch=batch), axis).eval()
    shape = [8, 12, 4]
    shape[axis] = 5
    x = volume(2, 1, *shape)
    y = sliced(x)
    assert y.shape == (2, 2, *shape)
    # convolutions of different batch sizes may add in another order
    expected = torch.stack([flat(one) for one in x.unbind(2 + axis)], dim=2 + axis)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert all(seen[0] <= batch for seen in flat.seen[: -(-10 // batch)])


def test_training_sends_all_slices_through_at_once() -> None:
    flat = Flat()
    SlicedNetwork(flat, SliceSettings(batch=2), 2).train()(volume(2, 1, 4, 4, 7))
    assert flat.seen == [(14, 1, 4, 4)]


def test_neighbours_become_channels_and_the_ends_repeat_themselves() -> None:
    flat = Flat(channels=6)
    sliced = SlicedNetwork(flat, SliceSettings(neighbours=1), 2).eval()
    assert sliced.in_channels == 2
    x = volume(1, 2, 4, 8, 3)
    a, b, c = x.unbind(4)
    expected = [flat(torch.cat(three, 1)) for three in ((a, a, b), (a, b, c), (b, c, c))]
    torch.testing.assert_close(sliced(x), torch.stack(expected, 4), rtol=1e-12, atol=1e-12)


def test_a_slice_is_padded_to_legal_extents_by_its_edge_and_cut_back() -> None:
    flat = Flat(multiple=8)
    x = volume(1, 1, 13, 9, 2)
    y = SlicedNetwork(flat, SliceSettings(), 2).eval()(x)
    assert flat.seen == [(2, 1, 16, 16)]
    # an odd gap leaves one voxel more behind than before; edge values go on
    padded = F.pad(x[..., 0], (3, 4, 1, 2), mode="replicate")
    torch.testing.assert_close(y[..., 0], flat(padded)[:, :, 1:14, 3:12])


def test_logits_come_back_from_the_extents_that_the_network_works_at() -> None:
    flat = Flat()
    nn.init.zeros_(flat.conv.weight)
    with torch.no_grad():
        flat.conv.weight[:, 0, 1, 1] = torch.tensor([1.0, -2.0])
        flat.conv.bias.zero_()
    i, j = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 30), indexing="ij")
    x = (i + 2 * j).double()[None, None, :, :, None].expand(1, 1, 20, 30, 3)
    y = SlicedNetwork(flat, SliceSettings(extents=(40, 60)), 2).eval()(x)
    assert flat.seen == [(3, 1, 40, 60)]
    assert y.shape == (1, 2, 20, 30, 3)
    # a linear image survives linear interpolation there and back away from the border
    torch.testing.assert_close(
        y[0, 0, 2:-2, 2:-2], x[0, 0, 2:-2, 2:-2], rtol=1e-6, atol=1e-6, check_dtype=False
    )
    torch.testing.assert_close(y[:, 1], -2 * y[:, 0])


def test_every_head_is_brought_to_the_lattice_of_the_volume() -> None:
    sliced = SlicedNetwork(Flat(heads=2), SliceSettings(), 0).train()
    heads = sliced(volume(1, 1, 3, 5, 6))
    assert [tuple(head.shape) for head in heads] == [(1, 2, 3, 5, 6)] * 2
    assert sliced.head_strides == ((1, 1, 1), (1, 1, 1))
    assert sliced.deep_supervision_weights == sliced.network.deep_supervision_weights
    assert isinstance(sliced.eval()(volume(1, 1, 3, 5, 6)), Tensor)


def test_gradients_reach_the_weights_and_the_volume() -> None:
    sliced = SlicedNetwork(Flat(channels=3), SliceSettings(neighbours=1, extents=(8, 8)), 1).train()
    x = volume(1, 1, 6, 4, 7).requires_grad_()
    sliced(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    assert all(weight.grad is not None for weight in sliced.parameters())


def test_it_compiles_as_one_graph_and_exports() -> None:
    sliced = SlicedNetwork(
        Flat(channels=3), SliceSettings(neighbours=1, extents=(8, 12), batch=2), 2
    ).eval()
    x = volume(1, 1, 7, 9, 3)
    with torch.no_grad():
        y = sliced(x)
        torch.testing.assert_close(torch.compile(sliced, fullgraph=True, backend="eager")(x), y)
        torch.testing.assert_close(torch.export.export(sliced, (x,)).module()(x), y)


def inputs(spacing: tuple[float, float, float] | None, orientation: str = "RAS") -> InputSettings:
    return InputSettings.model_validate(
        {
            "channels": [{"name": "T1"}],
            "orientation": orientation,
            "spacing_mm": spacing,
            "window_ijk": [8, 8, 8],
        }
    )


@pytest.mark.parametrize(
    ("settings", "grid", "axis"),
    [
        ({}, inputs((1, 1, 5)), 2),
        ({}, inputs((5, 1, 1)), 0),
        ({}, inputs((1, 1, 1), "SAR"), 0),
        ({}, inputs((1, 1, 1), "RSA"), 1),
        ({}, inputs((2, 2, 1), "RAS"), 1),
        ({"axis": "i"}, inputs((1, 1, 5)), 0),
        ({"axis": "k"}, inputs(None), 2),
        ({}, inputs(None, "slices_last"), 2),
    ],
)
def test_the_slice_axis_is_the_thickest_or_the_one_named(settings, grid, axis) -> None:
    assert SliceSettings(**settings).axis_on(grid) == axis


def test_without_a_spacing_the_thickest_axis_is_not_guessed() -> None:
    with pytest.raises(ConfigError, match=r"slices.axis: expected i, j or k.* slices_last"):
        SliceSettings().axis_on(inputs(None))


def test_channels_that_make_no_whole_slices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 3.*found 2D with 4 channels"):
        SlicedNetwork(Flat(channels=4), SliceSettings(neighbours=1), 2)


def test_a_3d_network_or_a_fourth_axis_is_refused() -> None:
    sliced = SlicedNetwork(Flat(), SliceSettings(), 0)
    with pytest.raises(ConfigError, match="found 3D with 1 channels"):
        SlicedNetwork(sliced, SliceSettings(), 0)
    with pytest.raises(ConfigError, match="expected axis 0, 1 or 2, found 3"):
        SlicedNetwork(Flat(), SliceSettings(), 3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1, 1, 4, 4), "found 4 axes"),
        (torch.zeros(1, 2, 4, 4, 4), "expected 1 channels, found 2"),
        (torch.zeros(0, 1, 4, 4, 4), "found an empty batch"),
        (torch.zeros(1, 1, 4, 4, 4, dtype=torch.int16), "found torch.int16"),
        (torch.zeros(1, 1, 4, 0, 4), r"found \(4, 0, 4\)"),
    ],
)
def test_volumes_that_do_not_fit_are_named(x: Tensor, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        SlicedNetwork(Flat(), SliceSettings(), 2)(x)
