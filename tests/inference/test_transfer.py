"""Windows on their way to a GPU: what is planned for them, and that each arrives as it was sent."""

import numpy as np
import pytest
import torch

from medseg.core import Grid, Volume
from medseg.data.preparation import ModelImage
from medseg.inference.engine import StreamingEngine, Sweep
from medseg.inference.memory import DryPass, Item, plan_memory
from medseg.inference.sweep import Group
from medseg.inference.transfer import SLOTS, DoubleBuffer
from medseg.models.card import Channel, InputSettings
from medseg.ops.winners import Decision

MIB = 2**20
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def engine_on(device, *, batch):
    inputs = InputSettings(
        channels=(Channel(name="a"), Channel(name="b")), spacing_mm=None, window_ijk=(16, 16, 16)
    )
    data = np.zeros((2, 32, 32, 32), np.int16)
    data[:, 0, 0, 0] = 1
    image = ModelImage(Volume(data, Grid((32, 32, 32), np.eye(4)), ("a", "b")), inputs)
    group = Group((torch.nn.Identity(),), image, (16, 16, 16), device=torch.device(device))
    sweep = Sweep(0, batch, place=torch.device(device))
    return StreamingEngine([group], Decision(values=(0, 1, 2)), sweep)


def planned(engine, *, vram=50 * MIB, limit=None):
    passes = [DryPass(engine.sweep.batch, 10 * MIB, vram, 0.1, 3)]
    held = [Item("program", "ram", 100 * MIB)]
    return plan_memory(engine, passes, held=held, max_ram_bytes=None, max_vram_bytes=limit)


def named(plan, name):
    return {item.place: item.bytes for item in plan.items if item.name == name}


def test_both_buffers_are_planned_on_both_sides_of_a_gpu():
    plan = planned(engine_on("cuda", batch=4))
    one_batch = 4 * 2 * 16**3 * 4  # windows, channels, voxels, float32
    assert named(plan, "windows on their way") == dict.fromkeys(("ram", "vram"), SLOTS * one_batch)
    assert named(plan, "slab of logits").keys() == {"vram"}


def test_without_a_gpu_no_window_is_copied_anywhere():
    assert named(planned(engine_on("cpu", batch=4)), "windows on their way") == {}


def test_a_limit_on_the_gpu_takes_fewer_windows_then_float16_then_sums_on_the_cpu():
    engine = engine_on("cuda", batch=4)
    free = planned(engine)
    assert (free.sweep.batch, free.sweep.half, free.sweep.place.type) == (4, False, "cuda")
    fewer = planned(engine, limit=free.vram_bytes - MIB)
    assert (fewer.sweep.batch, fewer.sweep.half) == (2, False)
    # 50 MiB were measured for four windows: one takes a quarter, its answer and its way there
    least = planned(engine, limit=int(12.65 * MIB))
    assert (least.sweep.batch, least.sweep.half, least.sweep.place.type) == (1, True, "cpu")


@needs_cuda
def test_every_batch_arrives_as_it_was_sent_however_far_the_host_runs_ahead():
    device = torch.device("cuda")
    buffer = DoubleBuffer(device)
    x_bcijk = torch.empty((2, 1, 32, 32, 32))
    weights = torch.randn((512, 512), device=device)
    sums = []
    for number in range(20):
        x_bcijk.fill_(number)  # the same memory each time, as a caller may do
        count = 1 if number == 19 else 2  # the last batch is a short one
        there = buffer.bring(x_bcijk[:count])
        for _ in range(10):  # work that the copies run beside
            weights = torch.tanh(weights @ weights)
        sums.append(there.sum())
        buffer.done()
    found = torch.stack(sums).tolist()
    assert found[:19] == [2 * 32**3 * number for number in range(19)]
    assert found[19] == 19 * 32**3


@needs_cuda
def test_buffers_are_made_anew_for_windows_of_another_shape():
    buffer = DoubleBuffer(torch.device("cuda"))
    for shape in [(1, 1, 8, 8, 8), (3, 1, 8, 8, 8), (1, 2, 4, 4, 4)]:
        x_bcijk = torch.randn(shape)
        for _ in range(SLOTS + 1):
            there = buffer.bring(x_bcijk).clone()
            buffer.done()
            assert torch.equal(there.cpu(), x_bcijk)
