"""The Triton kernels of the wavelets against plain torch; interpreted where there is no GPU."""

import pytest
import torch
from torch import Tensor

from medseg.ops.kernels.dispatch import forced
from medseg.ops.wavelet import dwt, idwt, wavedec, waverec
from medseg.ops.wavelet_filters import MODES, Mode, filter_bank
from medseg.ops.wavelet_level import level_forward, level_transposed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).to(DEVICE)


def _agree(x: Tensor, wavelet: str, mode: Mode, dims: list[int]) -> None:
    bank = filter_bank(wavelet)
    extents = [x.shape[dim] for dim in dims]
    with forced("torch"):
        bands = level_forward(x, bank.dec_lo, bank.dec_hi, mode, dims)
        weights = torch.randn_like(bands)
        back = level_transposed(weights, bank.dec_lo, bank.dec_hi, mode, dims, extents)
    with forced("triton"):
        ours = level_forward(x, bank.dec_lo, bank.dec_hi, mode, dims)
        ours_back = level_transposed(weights, bank.dec_lo, bank.dec_hi, mode, dims, extents)
    assert ours.stride() == bands.stride()
    assert ours_back.stride() == back.stride()
    torch.testing.assert_close(ours, bands)
    torch.testing.assert_close(ours_back, back)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wavelet", ["haar", "db3", "bior4.4"])
def test_kernel_and_plain_torch_agree_on_short_and_odd_signals(wavelet: str, mode: Mode) -> None:
    for extent in (1, 2, 5, 8, 17):
        if extent > 1 or mode not in {"reflect", "antireflect"}:
            _agree(_random(1, 2, extent, seed=extent), wavelet, mode, [2])


@pytest.mark.parametrize("mode", ["symmetric", "antireflect", "periodization"])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((2, 3, 9, 10), [2, 3]), ((1, 2, 5, 6, 7), [2, 3, 4]), ((1, 2, 5, 6, 7), [4, 2])],
)
def test_kernel_and_plain_torch_agree_on_several_axes(
    shape: tuple[int, ...], dims: list[int], mode: Mode
) -> None:
    # points of the grid that fill no whole number of blocks
    _agree(_random(*shape), "db2", mode, dims)


def test_inputs_need_not_be_contiguous() -> None:
    x = _random(2, 6, 10, 9)
    for strided in (
        x.mT,
        x[:, ::2, 1:, ::2],
        x.to(memory_format=torch.channels_last),
        x[:, :1].expand(-1, 3, -1, -1),
    ):
        _agree(strided, "db2", "reflect", [2, 3])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)],
)
def test_every_type_of_number_is_summed_in_float32_at_least(
    dtype: torch.dtype, tolerance: float
) -> None:
    x = _random(1, 2, 9, 8).to(dtype)
    with forced("triton"):
        bands = dwt(x, "db2", "symmetric")
        back = idwt(bands, "db2", "symmetric", extents=(9, 8))
    assert bands.dtype == back.dtype == dtype
    expected = dwt(x.double(), "db2", "symmetric")
    torch.testing.assert_close(bands.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(back.double(), x.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["zero", "smooth", "periodization"])
def test_first_and_second_derivatives_go_through_the_kernels(mode: Mode) -> None:
    x = _random(1, 1, 5, 2).requires_grad_()
    found = []
    for path in ("torch", "triton"):
        with forced(path):
            y = idwt(dwt(x, "db2", mode).tanh(), "db2", mode, extents=(5, 2))
            (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            found.append((first, *torch.autograd.grad(first.square().sum(), x)))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_kernels_pass_torch_s_check_of_derivatives() -> None:
    x = _random(1, 1, 5).requires_grad_()
    with forced("triton"):
        assert torch.autograd.gradcheck(lambda t: dwt(t, "db2", "antireflect"), (x,))


def test_several_levels_come_back_through_the_kernels() -> None:
    x = _random(1, 2, 21, 22, dtype=torch.float32)
    with forced("triton"):
        coefficients = wavedec(x, "bior2.2", "symmetric", 2)
        back = waverec(coefficients, "bior2.2", "symmetric", extents=(21, 22))
    for ours, plain in zip(coefficients, wavedec(x, "bior2.2", "symmetric", 2), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
