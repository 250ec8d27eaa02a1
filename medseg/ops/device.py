"""Which device does the work."""

from __future__ import annotations

import torch

from medseg.errors import ConfigError, one_of

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes the first GPU there is, else the CPU.

    Raises:
        ConfigError: If the name is unknown or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(
            "device",
            expected=one_of(name, ["auto", "cpu", "cuda", "cuda:N"]),
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
    return torch.device(name)
