"""Stopping in the middle of a network, not only between windows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from medseg.events import Cancelled

__all__ = ["stopping_between_layers"]


@contextmanager
def stopping_between_layers(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let every network of this thread stop before its next layer once the user wants to.

    A window of a large network takes many seconds on a CPU. Whoever waits for the end of a run, as
    a viewer does, asks between layers. Measuring and planning, which run networks too, stop
    likewise. Networks of other threads are left alone.

    Args:
        cancelled: Whether the user wants to stop; asked before each layer, so it must be quick.

    Raises:
        Cancelled: From inside the network.
    """
    own = threading.get_ident()

    def look(module: nn.Module, arguments: Any) -> None:  # noqa: ANN401, ARG001 - torch's signature
        if threading.get_ident() == own and cancelled():
            raise Cancelled

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
