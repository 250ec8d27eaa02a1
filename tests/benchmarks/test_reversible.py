"""The benchmark of the reversible network: its baseline, its searches, and the paper's question."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.reversible import (
    check_agreement,
    claims,
    dense_twin,
    largest,
    measure,
    near_cube,
    on_meta,
)
from medseg.models.revunet import RevUNetSettings
from medseg.ops.live_storage import step_memory


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more in waiting than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_three_kinds_agree_before_they_are_measured() -> None:
    settings = RevUNetSettings(widths=(8, 16), blocks=2, expansion=2)
    assert check_agreement(settings, edge=8) <= 1e-12
    rows = measure(settings, 8, repeats=1)
    assert [row.memory for row in rows] == ["reversible", "stored", "checkpointed"]
    assert all(row.steps_per_second > 0 and row.peak_mib > row.forward_mib for row in rows)


@pytest.mark.parametrize(("blocks", "weights"), [(1, 2_375_619), (2, 4_727_619)])
def test_the_dense_baseline_has_the_reference_number_of_weights(blocks: int, weights: int) -> None:
    with torch.device("meta"):
        dense = dense_twin(RevUNetSettings(blocks=blocks))
    assert sum(weight.numel() for weight in dense.parameters()) == weights


def test_a_dense_network_needs_less_at_one_block_per_level_and_more_at_two() -> None:
    peaks, reversible = [], []
    for blocks in (1, 2):
        settings = RevUNetSettings(blocks=blocks)
        with torch.device("meta"):
            x = torch.zeros(1, 4, 64, 64, 64)
            peaks.append(step_memory(dense_twin(settings), x).peak_bytes / 2**23)
        reversible.append(on_meta(settings, "reversible", (64, 64, 64)).peak_bytes / 2**23)
    # the reference's 31.9 and 53.1 MiB at 32 voxels a side, scaled to 64
    assert peaks == [pytest.approx(31.9, rel=0.03), pytest.approx(53.1, rel=0.05)]
    assert peaks[0] < reversible[0]
    assert peaks[1] > reversible[1]


def test_at_one_budget_the_claimed_volume_depth_and_width_are_reached() -> None:
    # small, so that it is quick: weights, which do not scale, weigh more than at real sizes
    settings = RevUNetSettings(widths=(8, 16))
    _, found = claims(settings, 16, most_blocks=4, most_levels=3, device="cpu")
    voxels, levels, blocks, channels = found
    assert voxels.ratio >= 3
    assert (levels.fits["stored"], levels.fits["reversible"]) == ("2", "3")
    assert (blocks.fits["stored"], blocks.fits["reversible"]) == ("1", "4")
    assert channels.ratio >= 2


def test_the_search_finds_the_largest_that_fits() -> None:
    for limit in (3, 4, 7, 8, 9, 40):
        assert largest(lambda n, limit=limit: n <= limit, 3, 40) == limit
    assert largest(lambda _: True, 1, 16) == 16
    with pytest.raises(RuntimeError, match="not even the smallest fits"):
        largest(lambda _: False, 1, 16)


def test_near_cubes_grow_axis_by_axis() -> None:
    assert [near_cube(n, 8) for n in (3, 4, 5, 6)] == [
        (8, 8, 8),
        (16, 8, 8),
        (16, 16, 8),
        (16, 16, 16),
    ]
