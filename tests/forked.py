"""Processes that start at once: forked from one server that has imported what trainings need.

A fresh interpreter takes longer to import torch and MONAI than the tiny trainings of the tests take
to run. They are processes of their own all the same: they can be killed, and meet over gloo.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch.multiprocessing

_METHOD = "forkserver"
_IMPORTED = ["pipelines.train", "medseg.models.table"]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context(_METHOD)
    context.set_forkserver_preload(_IMPORTED)
    return context


def started(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process that runs a function of an importable module."""
    process = _context().Process(target=target, args=arguments)
    process.start()
    return process


def in_two_processes(target: Callable[..., None], *arguments: Any) -> None:
    """Call ``target(rank, *arguments)`` in two processes and wait; an error of one is raised."""
    _context()
    torch.multiprocessing.start_processes(target, args=arguments, nprocs=2, start_method=_METHOD)
