"""Weights from files of other projects: tensors by name, and never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medseg.errors import FormatError, one_of

__all__ = ["read_state"]


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, on the CPU.

    A state dict may stand alone or under ``state_dict`` or ``model``, as checkpoints have it. Of
    pickles only tensors are read.

    Args:
        path: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` or ``.tar`` as ``torch.save`` writes.

    Raises:
        FormatError: If the file is missing, of another kind, damaged, or holds anything but
            finite tensors. The message names the file without its folder.
    """
    where = f"weights {path.name}"
    readers = {
        ".safetensors": load_file,
        ".pth": _load_tensors,
        ".pt": _load_tensors,
        ".bin": _load_tensors,
        ".tar": _load_tensors,
    }
    if path.suffix not in readers:
        raise FormatError(
            where,
            expected=f"a name that ends in {one_of(path.suffix, readers)}",
            found=repr(path.suffix),
            remedy="hand in the file as it was released",
            code="weights-suffix",
        )
    if not path.is_file():
        raise FormatError(
            where,
            expected="a file of weights",
            found="no such file",
            remedy="correct the path, or leave it out to begin with random weights",
            code="weights-missing",
        )
    try:
        content = readers[path.suffix](path)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        found = "a file that is damaged or holds more than tensors"
        raise _no_state(where, found) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise _no_state(where, f"an object of type {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _no_state(where, f"{type(tensor).__name__} at {name!r}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise FormatError(
                where,
                expected="finite numbers",
                found=f"NaN or infinity in {name}",
                remedy="use weights of a training that did not diverge",
                code="weights-not-finite",
            )
    return dict(content)


def _load_tensors(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds; checked after
    return torch.load(path, map_location="cpu", weights_only=True)


def _no_state(where: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected="a state dict: tensors by name and nothing else",
        found=found,
        remedy="whole pickled models can run code and are not opened; where the file comes from, "
        "export it with torch.save(model.float().state_dict(), 'encoder.pth')",
        code="weights-format",
    )
