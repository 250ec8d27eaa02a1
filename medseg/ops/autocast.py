"""Whether autocast is on, and a way out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocasts", "without_autocast"]


def autocasts(device_type: str) -> bool:
    """Whether operations on such a device run under autocast here."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which operations keep the types that they are given.

    Nothing at all where autocast is off, so that an exported graph holds no region for it.
    """
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext()
