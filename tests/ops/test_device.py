"""Devices by name."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medseg.errors import ConfigError
from medseg.ops.device import check_convolutions, choose_device, choose_devices
from medseg.ops.precision import has_bf16

CPU = torch.device("cpu")


@pytest.fixture
def fresh_answers():
    check_convolutions.cache_clear()
    yield
    check_convolutions.cache_clear()


@pytest.fixture
def apple_gpu(monkeypatch, fresh_answers):
    """Torch claims an Apple GPU and, built without one, refuses every operation on it."""
    if torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class Convolutions(TorchDispatchMode):
    """Changes what convolutions do, as a device without them would."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "conv" in str(function):
            return self.answer(function, args, kwargs or {})
        return function(*args, **(kwargs or {}))


def test_auto_takes_a_gpu_if_there_is_one():
    gpu = "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else gpu)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_missing_is_told_with_what_there_is():
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=rf"expected {name}, found \d+ CUDA devices"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", ""])
def test_an_unknown_name_lists_what_can_be_asked_for(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    with pytest.raises(ConfigError, match="expected one of auto, cpu, cuda, cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cpu:0", "cuda:", "cuda:-1", "cuda:²", "mps:0", "cuda:0:0"])
def test_only_cuda_takes_a_number(name):
    with pytest.raises(ConfigError, match="leave it out to have it chosen"):
        choose_device(name)


def test_an_apple_gpu_that_is_missing_is_told():
    if torch.backends.mps.is_available():
        pytest.skip("this machine has an Apple GPU")
    with pytest.raises(ConfigError, match="on this machine, found 'mps', which needs an Apple GPU"):
        choose_device("mps")


@pytest.mark.usefixtures("apple_gpu")
def test_an_apple_gpu_without_3d_convolutions_is_refused_and_not_chosen():
    with pytest.raises(ConfigError, match="device mps: expected a device that runs 3D") as caught:
        choose_device("mps")
    # torch said NotImplementedError, so its switch would help
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in caught.value.remedy
    assert choose_device("auto") == CPU


@pytest.mark.usefixtures("fresh_answers")
def test_a_device_that_refuses_convolutions_for_good_is_not_offered_the_switch():
    def refuse(function, args, kwargs):
        raise RuntimeError("ConvTranspose 3D is not supported")

    with Convolutions(refuse), pytest.raises(ConfigError) as caught:
        check_convolutions(CPU)
    assert caught.value.remedy == "use --device cpu, or update torch and the system"


@pytest.mark.usefixtures("fresh_answers")
def test_a_device_that_convolves_wrongly_is_refused():
    def doubled(function, args, kwargs):
        return function(*args, **kwargs) * 2

    with Convolutions(doubled), pytest.raises(ConfigError, match="found a wrong result"):
        check_convolutions(CPU)


@pytest.mark.usefixtures("fresh_answers")
def test_convolutions_that_torch_moves_to_the_cpu_are_noted():
    def moved(function, args, kwargs):
        warnings.warn("not supported and will fall back to run on the CPU", stacklevel=1)
        return function(*args, **kwargs)

    with Convolutions(moved):
        (note,) = check_convolutions(CPU)
    assert "torch runs them on the CPU, which is slow" in note
    assert check_convolutions(CPU) == (note,), "torch warns once, the note stays"


@pytest.mark.usefixtures("fresh_answers")
def test_a_device_that_convolves_needs_no_note():
    assert check_convolutions(CPU) == ()


def test_a_list_names_one_device_for_each_worker():
    assert choose_devices("cpu") == [CPU]
    assert choose_devices("cpu, cpu") == [CPU, CPU]
    assert choose_devices("auto") == [choose_device("auto")]


@pytest.mark.parametrize("names", ["", "cpu,", "cpu,,cpu", "cpu;cpu"])
def test_a_list_with_a_hole_is_refused(names):
    with pytest.raises(ConfigError, match="expected one of auto, cpu"):
        choose_devices(names)


def test_a_gpu_stands_in_a_list_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_devices("cuda:0,cuda:1") == gpus
    assert choose_devices("cuda,cuda:1,cpu") == [*gpus, CPU]
    assert choose_devices("cuda") == [torch.device("cuda")]
    for names in ("cuda:0,cuda:0", "cuda,cpu,cuda:0"):
        with pytest.raises(ConfigError, match=r"each GPU once.*found cuda:0 more than once"):
            choose_devices(names)


def test_no_precision_is_promised_for_devices_that_torch_does_not_tell_about():
    assert has_bf16(torch.device("mps")) is False
    assert has_bf16(torch.device("meta")) is False
