"""Weighted sums: the fast path has the bits of plain torch."""

import pytest
import torch

from medseg.ops.kernels import numba_sums
from medseg.ops.sums import add_weighted, finish


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_has_the_bits_of_torch(dtype, order, threads):
    torch.manual_seed(0)
    answer = torch.randn(5, 24, 26, 28).to(dtype)
    # as a network gives it: channels innermost; then turned to the axis of sweeping
    answer = answer[None].contiguous(memory_format=torch.channels_last_3d)[0]
    answer_abcn = answer.permute(*(1 + axis for axis in order), 0)[1:20, :, 2:]
    weights = torch.rand(24, 26, 28).permute(order)[1:20, :, 2:]
    a, b, c, n = answer_abcn.shape
    sums = [torch.randn(b + 4, c + 3, n) for _ in range(a)]
    totals = [torch.rand(b + 4, c + 3) for _ in range(a)]
    expected = [row.clone() for row in sums]
    expected_totals = [row.clone() for row in totals]
    for row in range(a):
        product = answer_abcn[row].float() * weights[row][..., None]
        expected[row][2 : 2 + b, 1 : 1 + c] += product
        expected_totals[row][2 : 2 + b, 1 : 1 + c] += weights[row]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert numba_sums.takes(answer_abcn, sums[0])
    add_weighted(sums, totals, answer_abcn, weights, (2, 1))
    torch.set_num_threads(before)
    for found, wanted in zip(sums + totals, expected + expected_totals, strict=True):
        assert torch.equal(found, wanted)


def test_sums_in_float16_take_the_plain_path():
    answer = torch.randn(3, 4, 5, 2)
    weights = torch.rand(3, 4, 5)
    sums = [torch.zeros(4, 5, 2, dtype=torch.float16) for _ in range(3)]
    totals = [torch.zeros(4, 5) for _ in range(3)]
    assert not numba_sums.takes(answer, sums[0])
    add_weighted(sums, totals, answer, weights, (0, 0))
    torch.testing.assert_close(
        torch.stack(sums).float(), answer * weights[..., None], atol=2e-3, rtol=2e-3
    )
    assert torch.equal(torch.stack(totals), weights)


def test_finished_sums_are_means_and_unseen_places_get_what_was_said():
    torch.manual_seed(1)
    sums, totals = torch.randn(40, 50, 3), torch.rand(40, 50) + 0.1
    totals[3:5, 7] = 0
    expected = sums / totals[..., None]
    expected[3:5, 7] = torch.tensor([1.0, 2.0, 3.0])
    found = sums.clone()
    assert finish(found, totals, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_told(bad):
    sums = torch.ones(40, 50, 3)
    sums[39, 49, 2] = bad
    assert not finish(sums, torch.ones(40, 50), torch.zeros(3))
