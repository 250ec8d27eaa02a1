"""Devices by name."""

import pytest
import torch

from medseg.errors import ConfigError
from medseg.ops.device import choose_device


def test_auto_takes_a_gpu_if_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_missing_is_told_with_what_there_is():
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=rf"expected {name}, found \d+ CUDA devices"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", ""])
def test_an_unknown_name_lists_what_can_be_asked_for(name):
    with pytest.raises(ConfigError, match="expected one of auto, cpu, cuda, cuda:N"):
        choose_device(name)
