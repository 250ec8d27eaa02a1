"""Which implementation of an operator runs: a fast kernel where one fits, else plain torch.

An operator lists its kernels and hands in its plain torch form::

    _KERNELS = (
        Kernel("haar (Triton)", "medseg.ops.kernels.triton_haar", "transform", device="cuda"),
        Kernel("haar (numba)", "medseg.ops.kernels.numba_blocks", "transform", device="cpu",
               dtypes=frozenset({torch.float32, torch.float64})),
    )
    y_bcs = run(_KERNELS, plain, x_bcs, axes)

Modules of kernels are imported on first use. A kernel that fails to import or to build is given up
with one warning, and plain torch does its work for the rest of the process.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Concatenate, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from medseg.errors import ConfigError, one_of

__all__ = ["Kernel", "Path", "forced", "is_taken", "run", "wants_plain"]

Path = Literal["auto", "fast", "torch", "triton"]
P = ParamSpec("P")
R = TypeVar("R")

_PATHS = ("auto", "fast", "torch", "triton")
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

# process-wide, not per context: autograd runs backward passes in threads of its own
_path: Path = "auto"
_given_up: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Kernel:
    """A fast implementation, told by name so that nothing is imported before its first use.

    Attributes:
        name: For warnings, such as ``haar (numba)``; unique.
        module: Where it is.
        function: Its name there; called with the operator's arguments, gives the new tensor.
        device: Kind of device whose tensors it takes; ``cuda`` marks a Triton kernel.
        dtypes: Types it takes.
        max_rank: Largest number of axes it takes, batch and channel included.
    """

    name: str
    module: str
    function: str
    device: Literal["cpu", "cuda"]
    dtypes: frozenset[torch.dtype] = _FLOATS
    max_rank: int = 5

    def takes(self, x: Tensor) -> bool:
        """Whether it is the kernel for such a tensor on the path that is switched on."""
        if x.dtype not in self.dtypes or x.ndim > self.max_rank or not x.numel():
            return False
        if _path == "triton":
            return self.device == "cuda"
        return self.device == x.device.type


def run(
    kernels: Sequence[Kernel],
    plain: Callable[Concatenate[Tensor, P], R],
    x: Tensor,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Apply the first kernel that takes ``x``, or the plain form if none does.

    Args:
        kernels: In order of preference.
        plain: The operator in plain torch; gives the same numbers up to rounding, in a tensor of
            the same strides.
        x: First argument of kernel and plain form; decides which of them it is.
        *args: The rest.
        **kwargs: The rest by name.

    Returns:
        What the operator gives: a new tensor, or several.

    Warns:
        RuntimeWarning: Once per kernel that fails where the plain form does not.
    """
    if _path == "torch":
        return plain(x, *args, **kwargs)
    for kernel in kernels:
        if not kernel.takes(x) or kernel.name in _given_up:
            continue
        try:
            fast = cast(
                Callable[Concatenate[Tensor, P], R], _loaded(kernel.module, kernel.function)
            )
            return fast(x, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:
            if _path != "auto":
                raise
            # raises in its turn if the trouble was not the kernel's
            result = plain(x, *args, **kwargs)
            _give_up(kernel, problem)
            return result
    return plain(x, *args, **kwargs)


def is_taken(kernels: Sequence[Kernel], x: Tensor) -> bool:
    """Whether :func:`run` would try a kernel rather than the plain form.

    Args:
        kernels: As there.
        x: As there.
    """
    return _path != "torch" and any(
        kernel.takes(x) and kernel.name not in _given_up for kernel in kernels
    )


@contextmanager
def forced(path: Path) -> Iterator[None]:
    """Switch the path of the whole process; for tests and benchmarks.

    Args:
        path: ``torch`` uses no kernel; ``fast`` uses kernels as ``auto`` does but lets their errors
            through; ``triton`` uses Triton kernels for CPU tensors as well, which needs its
            interpreter.

    Raises:
        ConfigError: If there is no such path.
    """
    global _path  # noqa: PLW0603 - see the comment at its definition
    if path not in _PATHS:
        raise ConfigError(
            "path",
            expected=one_of(path, _PATHS),
            found=repr(path),
            remedy="leave the choice to auto",
            code="kernel-path",
        )
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def wants_plain(x: Tensor) -> bool:
    """Whether the plain torch form must stand in for a registered operator.

    So in an export to ONNX, which knows no foreign operators, under the transforms of
    ``torch.func``, and for forward-mode derivatives.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    dual = torch.autograd.forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


@cache
def _loaded(module: str, function: str) -> Callable[..., object]:
    return cast(Callable[..., object], getattr(importlib.import_module(module), function))


def _give_up(kernel: Kernel, problem: Exception) -> None:
    with _lock:
        if kernel.name in _given_up:
            return
        _given_up.add(kernel.name)
    # the first line: compilers add pages
    reason = (str(problem).splitlines() or [""])[0]
    warnings.warn(
        f"the kernel {kernel.name} failed ({type(problem).__name__}: {reason}); plain torch is "
        "used instead: same results, only slower",
        RuntimeWarning,
        stacklevel=3,
    )
