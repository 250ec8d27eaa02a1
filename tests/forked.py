"""Processes that start at once: forked from one server that has imported what trainings need.

A fresh interpreter takes longer to import torch and MONAI than the tiny trainings of the tests take
to run. They are processes of their own all the same: they can be killed, and meet over gloo.
"""

import importlib
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
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


@dataclass(frozen=True)
class Ended:
    """How a command ended: what ``subprocess.run`` tells of one."""

    returncode: int
    stdout: str
    stderr: str


def command(*words: object, largest_file: int | None = None) -> Ended:
    """Run ``medseg`` with these words in a process that starts at once, and wait for its end.

    Args:
        *words: Of the command line, after ``medseg``.
        largest_file: Bytes that a file may have, a limit of the system's on that process.
    """
    return program("pipelines.cli", *words, largest_file=largest_file)


def program(module: str, *words: object, largest_file: int | None = None) -> Ended:
    """The same for the ``main`` of a module."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [str(word) for word in words]
        process = started(_main, module, texts, folder, str(Path.cwd()), largest_file)
        process.join()
        told = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("1", "2")]
    assert process.exitcode is not None
    return Ended(process.exitcode, *told)


def _main(module: str, words: list[str], folder: str, here: str, largest_file: int | None) -> None:
    os.chdir(here)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        file = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = [module, *words]
    torch.set_num_threads(1)
    importlib.import_module(module).main()
