"""Memory that a step gave back is kept for the next one, and no longer than training takes."""

import json
import subprocess
import sys

import pytest
import torch

from medseg.training.heap import freed_memory_kept

# in a process of its own: what others freed before plays a part
_STEPS = """
import json, resource, sys
from contextlib import nullcontext
import torch
from medseg.training.heap import freed_memory_kept

def step():
    # like the maps of a network: all there at once, then all freed; 60 MB
    return len([torch.ones(250_000) for _ in range(60)])

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

# a first large block, after which the library no longer maps blocks one by one
torch.ones(7_000_000)
context = freed_memory_kept(torch.device("cpu")) if sys.argv[1] == "kept" else nullcontext()
with context:
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    within = held()
print(json.dumps({"faults": faults, "within": within, "after": held()}))
"""


def figures(how: str) -> dict[str, int]:
    answer = subprocess.run(
        [sys.executable, "-c", _STEPS, how], capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_the_pages_of_a_step_are_there_for_the_next_and_go_back_at_the_end():
    plain, kept = figures("plain"), figures("kept")
    assert plain["faults"] > 5 * 50_000_000 / 2 / 4096, plain
    assert kept["faults"] < plain["faults"] / 20, (plain, kept)
    assert kept["within"] - kept["after"] > 30_000_000, kept


def test_other_devices_and_errors_pass_through():
    with freed_memory_kept(torch.device("cuda")):
        pass
    with pytest.raises(ValueError, match="mine"), freed_memory_kept(torch.device("cpu")):
        raise ValueError("mine")
