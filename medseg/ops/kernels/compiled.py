"""Compiling with numba, kept on disk for the next process where that can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numba

__all__ = ["Untyped", "compiled"]

# numba has no types
Untyped: TypeAlias = Any


def compiled(signature: Untyped = None, **options: Untyped) -> Callable[[Untyped], Untyped]:
    """A decorator: the function compiled to run without the interpreter lock.

    Args:
        signature: Types to compile for at once; None compiles on first call.
        **options: Of ``numba.njit``.
    """
    types = () if signature is None else (signature,)

    def decorate(function: Untyped) -> Untyped:
        try:
            return numba.njit(*types, nogil=True, cache=True, **options)(function)
        except RuntimeError:
            # no folder for the cache can be written
            return numba.njit(*types, nogil=True, **options)(function)

    return decorate
