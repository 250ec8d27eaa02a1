"""Which device does the work, and whether it can do that work at all."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch.nn import functional as F

from medseg.errors import ConfigError, one_of

__all__ = ["check_convolutions", "choose_device", "choose_devices"]

_KINDS = ("cpu", "cuda", "mps")
_CHOICES = ("auto", "cpu", "cuda", "cuda:N", "mps")


def choose_device(name: str) -> torch.device:
    """The device of that name.

    ``auto`` takes the first NVIDIA (or ROCm) GPU there is, else Apple's GPU where it runs the
    convolutions that volumes need, else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ConfigError: If the name is unknown, the machine has no such device, or the device lacks
            3D convolutions (see :func:`check_convolutions`).
    """
    if name == "auto":
        return _best_device()
    kind, colon, number = name.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdigit()
    if kind not in _KINDS or (colon and not numbered):
        raise ConfigError(
            "device",
            expected=one_of(name, _CHOICES),
            found=repr(name),
            remedy="leave it out to have it chosen",
            code="device-unknown",
        )
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            "device",
            expected=name,
            found=f"{torch.cuda.device_count()} CUDA devices",
            remedy="use --device cpu, or ask `medseg doctor` what the machine has",
            code="device-missing",
        )
    device = torch.device(name)
    if kind == "mps":
        if not torch.backends.mps.is_available():
            others = [choice for choice in _CHOICES if choice != "mps"]
            raise ConfigError(
                "device",
                expected=f"{one_of(name, others)} on this machine",
                found="'mps', which needs an Apple GPU and a torch built for it",
                remedy="use --device auto",
                code="device-missing",
            )
        check_convolutions(device)
    return device


def choose_devices(names: str) -> list[torch.device]:
    """The devices of a list such as ``cuda:0,cuda:1``, one for each worker process.

    The CPU may stand there several times (``cpu,cpu``): its workers share the cores. A GPU may not:
    two processes on one would each plan with all of its memory.

    Args:
        names: Names as :func:`choose_device` takes them, separated by commas.

    Returns:
        At least one device, in the order given; ``cuda`` in a list of several is ``cuda:0``.

    Raises:
        ConfigError: If a name cannot be used, is empty, or names a GPU for the second time.
    """
    parts = [part.strip() for part in names.split(",")]
    devices = [choose_device(part) for part in parts]
    if len(devices) > 1:
        devices = [torch.device("cuda", 0) if str(one) == "cuda" else one for one in devices]
    for place, device in enumerate(devices):
        if device.type != "cpu" and device in devices[:place]:
            raise ConfigError(
                "device",
                expected="each GPU once, as one process works on it",
                found=f"{device} more than once",
                remedy="name every GPU once; only cpu may be repeated",
                code="device-unknown",
            )
    return devices


@cache
def check_convolutions(device: torch.device) -> tuple[str, ...]:
    """Run one tiny 3D convolution and one transposed one on the device.

    Apple's GPU has had them only since some versions of torch and macOS, and torch may be told to
    run on the CPU what is missing. So the operations themselves are asked; asked once per device.

    Args:
        device: One that exists.

    Returns:
        A note for the reader if torch ran one of them on the CPU instead, else nothing.

    Raises:
        ConfigError: If the device cannot run them.
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with torch.inference_mode():
                x_bcijk = torch.ones((1, 1, 2, 2, 2), device=device)
                halved_bcijk = F.conv3d(x_bcijk, x_bcijk, stride=2)
                total = float(F.conv_transpose3d(halved_bcijk, x_bcijk, stride=2).sum())
        except RuntimeError as error:
            # torch says NotImplementedError where its switch for running on the CPU would help
            switch = (
                "set the environment variable PYTORCH_ENABLE_MPS_FALLBACK=1 before starting, "
                "which runs the missing operations slowly on the CPU, or "
                if device.type == "mps" and isinstance(error, NotImplementedError)
                else ""
            )
            raise _cannot_convolve(device, "an error of torch", switch) from error
    if total != 64:
        # eight products summed into one voxel, which is then spread over eight
        raise _cannot_convolve(device, "a wrong result", "")
    if any("fall back" in str(one.message) for one in heard):
        return (f"{device} lacks 3D convolutions; torch runs them on the CPU, which is slow",)
    return ()


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        device = torch.device("mps")
        try:
            usable = not check_convolutions(device)
        except ConfigError:
            usable = False
        if usable:
            return device
    return torch.device("cpu")


def _cannot_convolve(device: torch.device, found: str, switch: str) -> ConfigError:
    return ConfigError(
        f"device {device}",
        expected="a device that runs 3D convolutions and transposed ones",
        found=found,
        remedy=f"{switch}use --device cpu, or update torch and the system",
        code="device-missing",
    )
