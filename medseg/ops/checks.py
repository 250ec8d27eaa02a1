"""What every operator asks of a tensor and of the axes that it is to work on."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

from torch import Tensor

from medseg.errors import ConfigError, ShapeError

__all__ = ["check_tensor", "spatial_dims", "stored_axes"]


def check_tensor(where: str, x_bcs: object) -> None:
    """Refuse what is no batch of images.

    Args:
        where: What the message calls the argument.
        x_bcs: To be ``(b, c, *spatial)`` with an image, a channel and a spatial axis at least.

    Raises:
        ShapeError: If it is no tensor, lacks axes, or is an empty batch.
    """
    if not isinstance(x_bcs, Tensor):
        raise ShapeError(
            where,
            expected="a torch tensor",
            found=f"an object of type {type(x_bcs).__name__}",
            remedy="convert it, an array for instance with torch.from_numpy",
            code="tensor-type",
        )
    if x_bcs.ndim < 3:
        raise ShapeError(
            where,
            expected="the axes (batch, channel, *spatial)",
            found=f"shape {tuple(x_bcs.shape)}",
            remedy="add the missing ones, for instance with x[None, None]",
            code="tensor-rank",
        )
    if x_bcs.shape[0] < 1 or x_bcs.shape[1] < 1:
        raise ShapeError(
            where,
            expected="at least one image and one channel",
            found=f"an empty batch of shape {tuple(x_bcs.shape)}",
            remedy="leave the call out when there is nothing to work on",
            code="tensor-batch",
        )


def spatial_dims(where: str, x_bcs: Tensor, axes: Iterable[int] | None, *, code: str) -> list[int]:
    """Axes counted from the front.

    Args:
        where: What the message calls the argument.
        x_bcs: Checked by :func:`check_tensor`.
        axes: Different spatial axes, or one by itself; 2 is the first, negative ones count from the
            end. None takes all of them.
        code: Of the error.

    Raises:
        ShapeError: If one is no whole number, not spatial, or named twice.
    """
    rank = x_bcs.ndim
    if axes is None:
        return list(range(2, rank))
    whole = _whole(axes)
    dims = [axis + rank if axis < 0 else axis for axis in whole or ()]
    if (
        whole is None
        or any(not 2 <= dim < rank for dim in dims)
        or any(dim in dims[:n] for n, dim in enumerate(dims))
    ):
        raise ShapeError(
            where,
            expected="the only spatial axis, 2"
            if rank == 3
            else f"different spatial axes, 2 to {rank - 1}",
            found=_listed(axes),
            remedy="axes 0 and 1 are batch and channel; negative axes count from the end",
            code=code,
        )
    return dims


def stored_axes(where: str, axes: Iterable[int] | None, *, code: str) -> tuple[int, ...] | None:
    """Axes that a module keeps for tensors whose rank it does not know yet.

    Args:
        where: What the message calls the argument.
        axes: As for :func:`spatial_dims`.
        code: Of the error.

    Raises:
        ConfigError: If one is no whole number, is 0 or 1, or is named twice.
    """
    if axes is None:
        return None
    whole = _whole(axes)
    if whole is None or any(axis in (0, 1) for axis in whole) or len(set(whole)) != len(whole):
        raise ConfigError(
            where,
            expected="different spatial axes: 2 or more, or negative ones",
            found=_listed(axes),
            remedy="axes 0 and 1 are batch and channel; negative axes count from the end",
            code=code,
        )
    return tuple(whole)


def _whole(axes: object) -> list[int] | None:
    given: Iterable[Any] = axes if isinstance(axes, Iterable) else (axes,)
    try:
        return [index(axis) for axis in given]
    except TypeError:
        return None


def _listed(axes: object) -> str:
    if isinstance(axes, Iterable) and not isinstance(axes, str):
        return str(tuple(axes))
    return repr(axes)
