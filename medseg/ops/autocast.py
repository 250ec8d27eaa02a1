"""Whether autocast is on, and a way out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocasts", "without_autocast"]

# asked once: torch.compile of PyTorch 2.11 cannot look into the question
_KINDS = frozenset(
    kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)
)


def autocasts(device_type: str) -> bool:
    """Whether operations on such a device run under autocast here."""
    return device_type in _KINDS and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which operations keep the types that they are given.

    Nothing at all where autocast is off, so that an exported graph holds no region for it.
    """
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else nullcontext()
