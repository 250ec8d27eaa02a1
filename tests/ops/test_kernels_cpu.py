"""The numba kernels against plain torch: layouts, remainders, threads, and the cache folder."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from threading import Barrier, current_thread

import pytest
import torch
from torch import Tensor

from medseg.ops.haar import haar_forward, haar_inverse
from medseg.ops.kernels.blocks import merged
from medseg.ops.kernels.dispatch import forced
from medseg.ops.kernels.layout import advise_huge_pages
from medseg.ops.kernels.workers import in_slabs
from medseg.ops.subpixel import depth_to_space, space_to_depth


def both(function, *arguments) -> tuple[Tensor, Tensor]:
    with forced("fast"):
        fast = function(*arguments)
    with forced("torch"):
        return fast, function(*arguments)


# widths on either side of the vectors of 4 and 16 numbers
WIDTHS = [1, 3, 4, 5, 15, 16, 17, 22, 37]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_haar_of_every_width_agrees_with_plain_torch(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 2, 4, 2, 2 * width, dtype=dtype)
    for axes in ((4,), (2,), (2, 3), (4, 3), (2, 3, 4), (4, 2, 3)):
        torch.testing.assert_close(*both(haar_forward, x, axes))
        torch.testing.assert_close(*both(haar_inverse, x.repeat(1, 4, 1, 1, 1), axes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_shuffles_of_every_width_agree_with_plain_torch(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, 8, 2, 4, 2 * width, dtype=dtype)
    for factors in ((2, 2, 2), (1, 2, 2), (1, 1, 2), (2, 1, 1)):
        assert torch.equal(*both(depth_to_space, x, factors))
        assert torch.equal(*both(space_to_depth, x, factors))


@pytest.mark.parametrize("channels", [2, 4, 16, 21])
def test_channels_last_goes_in_and_comes_out(channels: int) -> None:
    x = torch.randn(2, 8 * channels, 4, 2, 6).to(memory_format=torch.channels_last_3d)
    for function, rest in (
        (haar_forward, (2, 3, 4)),
        (haar_inverse, (4, 2)),
        (depth_to_space, (2, 2, 2)),
        (space_to_depth, (1, 2, 2)),
    ):
        fast, plain = both(function, x, rest)
        assert fast.is_contiguous(memory_format=torch.channels_last_3d)
        assert fast.stride() == plain.stride()
        torch.testing.assert_close(fast, plain)
        torch.testing.assert_close(fast, function(x.contiguous(), rest))


def test_any_strides_are_read_as_they_are() -> None:
    whole = torch.randn(3, 5, 6, 8, 20)
    for x in (
        whole[:, 1:3],
        whole[::2, :, :, ::2, 4:],
        whole.transpose(2, 4),
        whole[:1, :1, :1].expand(2, 3, 4, 8, 20),
        whole.flip(3)[..., ::5],
    ):
        torch.testing.assert_close(*both(haar_forward, x, (2, 3, 4)))
        torch.testing.assert_close(*both(space_to_depth, x, (1, 2, 2)))


def test_lazily_negated_numbers_are_not_read_raw() -> None:
    x = torch.randn(1, 1, 4, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(haar_forward(x, (2, 3)), haar_forward(x.clone(), (2, 3)))


def test_types_without_a_kernel_go_through_plain_torch() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        x = torch.randn(1, 2, 4, 6, dtype=dtype)
        assert torch.equal(*both(haar_forward, x, (2, 3)))
    labels = torch.arange(64).reshape(1, 4, 4, 4)
    assert torch.equal(space_to_depth(depth_to_space(labels, (2, 2)), (2, 2)), labels)


def test_a_grid_keeps_what_does_not_run_through() -> None:
    # rows of 4 in memory of rows of 5: nothing to merge; an axis of one element is left out
    assert merged([3, 1, 4], [5, 99, 1], [4, 7, 1]) == [(3, 4), (5, 1), (4, 1)]
    assert merged([1, 1], [3, 3], [2, 2]) == [(1,), (1,), (1,)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [2, 7, 1000])
def test_slabs_cover_every_index_once(two_threads: None, count: int) -> None:
    slabs: list[tuple[int, int]] = []
    in_slabs(lambda first, last: slabs.append((first, last)), count, 1 << 20)
    slabs.sort()
    assert len(slabs) == min(count, 8)
    assert (slabs[0][0], slabs[-1][1]) == (0, count)
    assert all(one[1] == next_one[0] for one, next_one in pairwise(slabs))


def test_two_slabs_are_worked_on_at_the_same_time(two_threads: None) -> None:
    # a barrier lets nobody through before both are there
    meeting = Barrier(2, timeout=30)
    in_slabs(lambda first, last: meeting.wait(), 2, 1 << 20)


def test_little_work_stays_in_the_calling_thread(two_threads: None) -> None:
    names: list[str] = []
    in_slabs(lambda first, last: names.append(current_thread().name), 100, 1 << 16)
    assert names == [current_thread().name]


@pytest.mark.parametrize("wrong", ["mine", "the other's"])
def test_an_error_in_one_slab_is_told_after_the_other_has_ended(
    two_threads: None, wrong: str
) -> None:
    meeting, ended = Barrier(2, timeout=30), []
    caller = current_thread()

    def work(first: int, last: int) -> None:
        meeting.wait()
        if (current_thread() is caller) == (wrong == "mine"):
            raise ValueError("slab")
        time.sleep(0.1)
        ended.append(first)

    with pytest.raises(ValueError, match="slab"):
        in_slabs(work, 2, 1 << 20)
    assert len(ended) == 1


def test_a_job_inside_a_job_does_not_wait_for_helpers_that_are_busy(two_threads: None) -> None:
    found: list[tuple[int, int]] = []
    meeting = Barrier(2, timeout=30)

    def work(first: int, last: int) -> None:
        # both threads are at work now: nobody is left to help with what follows
        meeting.wait()
        in_slabs(lambda *inner: found.append(inner), 3, 1 << 20)

    in_slabs(work, 2, 1 << 20)
    assert sorted(found) == [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]


def test_many_threads_may_transform_at_once(two_threads: None) -> None:
    x = torch.randn(8, 1, 64, 64, 64)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: haar_forward(row[None], (2, 3, 4)), x))
    torch.testing.assert_close(torch.cat(found), haar_forward(x, (2, 3, 4)))


def _slabs_of_a_child(sender: Connection) -> None:
    found: list[int] = []
    in_slabs(lambda first, last: found.append(last), 2, 1 << 20)
    sender.send(sorted(found))


# the child does nothing but this
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(two_threads: None) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    in_slabs(lambda first, last: None, 2, 1 << 20)
    child = multiprocessing.get_context("fork").Process(target=_slabs_of_a_child, args=(sender,))
    child.start()
    try:
        assert receiver.poll(30)
        assert receiver.recv() == [1, 2]
    finally:
        child.kill()
        child.join()


def test_large_results_are_right_on_large_pages() -> None:
    x = torch.randn(1, 1, 160, 240, 256)
    bands = haar_forward(x, (3, 4))
    torch.testing.assert_close(haar_inverse(bands, (3, 4)), x)
    small = torch.empty(8)
    assert advise_huge_pages(small) is small


def test_without_a_folder_to_write_the_kernel_is_compiled_without_cache() -> None:
    code = (
        "import torch\n"
        "from medseg.ops.haar import haar_forward\n"
        "from medseg.ops.kernels.dispatch import forced\n"
        "with forced('fast'):\n"
        "    print(haar_forward(torch.ones(1, 1, 2, 2), (2, 3)).flatten().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
        # a place that the package is not in is the only one allowed
        env={**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"},
    )
    assert done.stdout.strip() == "[2.0, 0.0, 0.0, 0.0]"
