"""Weights from files of other projects: tensors by name, and never code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medseg.errors import ConfigError, FormatError

__all__ = ["of_another_kind", "read_state", "weight_path"]

_STATE = "a state dict: tensors by name and nothing else"
_EXPORT = "export it with torch.save(model.float().state_dict(), 'encoder.pth')"
_WRAPPERS = ("module.", "_orig_mod.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file, on the CPU.

    A state dict may stand alone or under ``state_dict`` or ``model``, as checkpoints have it. Of
    pickles only tensors are read. What data-parallel and compiled modules write before every name
    (``module.``, ``_orig_mod.``) is taken off.

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
            expected=f"a name that ends in one of {', '.join(readers)}",
            found=repr(path.suffix) if path.suffix else "a name without an ending",
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
        if _may_hold_code(path, error):
            raise FormatError(
                where,
                expected=_STATE,
                found="a pickle that holds more than tensors",
                remedy="whole pickled models can run code and are not opened; where the file comes "
                f"from, {_EXPORT}",
                code="weights-format",
            ) from error
        raise FormatError(
            where,
            expected="a whole file of weights",
            found="one that is damaged, or something else under that name",
            remedy="copy or download it again",
            code="weights-format",
        ) from error
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
    return _unwrapped(content)


def weight_path(source: object) -> Path:
    """The path that a caller gave for a file of weights.

    Args:
        source: A path, as a string or an object.

    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(source, str | os.PathLike):
        return Path(source)
    raise ConfigError(
        "encoder weights",
        expected="the path of a file",
        found=f"an object of type {type(source).__name__}",
        remedy="leave the call out to begin with random weights",
        code="weights-missing",
    )


def of_another_kind(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Mapping[str, str]
) -> list[str]:
    """Tensors of a file that hold integers for floating weights, or the other way round.

    Copied into a network they would be rounded without a word. Precision does not count: half
    types are taken for float32.

    Args:
        given: What the file holds.
        wanted: The network's tensors.
        names: Name in the network by name in the file, of those tensors that are to be copied.

    Returns:
        One phrase each, such as ``stem.weight torch.int32 for torch.float32``.
    """
    return [
        f"{source} {given[source].dtype} for {wanted[own].dtype}"
        for source, own in names.items()
        if given[source].is_floating_point() != wanted[own].is_floating_point()
        or given[source].is_complex() != wanted[own].is_complex()
    ]


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = list(state)
    while prefix := next(
        (one for one in _WRAPPERS if names and all(name.startswith(one) for name in names)), ""
    ):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _may_hold_code(path: Path, error: Exception) -> bool:
    """Whether a whole pickle was refused for what is in it, not for being cut or no pickle."""
    if path.suffix == ".safetensors" or not isinstance(error, pickle.UnpicklingError):
        return False
    with path.open("rb") as file:
        # the mark of pickles since protocol 2; torch's newer files are archives
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _load_tensors(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds; checked after
    return torch.load(path, map_location="cpu", weights_only=True)


def _no_state(where: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected=_STATE,
        found=found,
        remedy=_EXPORT,
        code="weights-format",
    )
