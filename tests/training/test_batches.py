"""Batches of steps, in their order, from any step on."""

import pytest
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset

from medseg.training.batches import StepBatches
from medseg.training.cases import DrawSampler


class Numbers(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, draw):
        index, seed, _ = draw
        if index == 99:
            raise ValueError
        return {"case": index, "seed": seed}


def batches(*, accumulate=1, ahead=2, part=0, parts=1, batch_size=2):
    sampler = DrawSampler(7, 5, part=part, parts=parts, batch_size=batch_size)
    loader = DataLoader(
        Numbers(), batch_size=batch_size // parts, sampler=sampler, drop_last=True, num_workers=0
    )
    return StepBatches(loader, accumulate=accumulate, ahead=ahead)


def drawn(stream, epochs):
    found = []
    for _ in range(epochs):
        for step in stream:
            found.append([batch["seed"].tolist() for batch in step])
    stream.close()
    return found


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_preparing_ahead_changes_nothing_in_what_is_drawn(accumulate):
    plain = drawn(batches(accumulate=accumulate, ahead=0), 3)
    assert len(plain) == 3 * (3 // accumulate)
    assert all(len(step) == accumulate for step in plain)
    assert drawn(batches(accumulate=accumulate, ahead=3), 3) == plain


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_goes_on_at_any_step(step, accumulate):
    whole = drawn(batches(accumulate=accumulate), 8)
    later = batches(accumulate=accumulate)
    later.start_at(step)
    rest = drawn(later, 8 - step // len(later))
    assert rest == whole[step:]


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_of_several_processes_are_the_batches_of_one(parts):
    whole = drawn(batches(batch_size=4), 2)
    shares = [drawn(batches(batch_size=4, part=n, parts=parts), 2) for n in range(parts)]
    together = [
        [[seed for share in step for seed in share[0]]] for step in zip(*shares, strict=True)
    ]
    assert together == whole


def test_what_goes_wrong_in_the_thread_is_met_by_whoever_draws():
    stream = batches()
    stream.loader.sampler.count = 200  # draws a case that does not exist
    with pytest.raises(ValueError):  # noqa: PT011 - the data set's own
        drawn(stream, 3)
    stream.close()


def test_closing_ends_the_thread_at_once_even_if_nobody_drew():
    stream = batches()
    next(iter(stream))
    thread = stream._thread
    stream.close()
    assert not thread.is_alive()


def test_fewer_batches_than_a_step_wants_make_one_step():
    assert len(batches(accumulate=50)) == 1
    assert [len(step) for step in drawn(batches(accumulate=50), 1)] == [3]
    assert torch.is_tensor(next(iter(batches(ahead=0)))[0]["case"])
