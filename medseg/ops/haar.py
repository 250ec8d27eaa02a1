"""One level of the orthonormal Haar wavelet along any set of axes.

Both directions are registered operators, ``torch.ops.medseg.haar_forward`` and ``haar_inverse``;
each is the other's derivative. They make one pass over memory, by Triton on a GPU and by numba on a
CPU, and are plain torch where neither fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import ShapeError
from medseg.ops.checks import check_tensor, spatial_dims, stored_axes
from medseg.ops.kernels.blocks import Direction, block_output
from medseg.ops.kernels.dispatch import Kernel, run, wants_plain
from medseg.ops.kernels.layout import advise_huge_pages

__all__ = ["Haar", "HaarInverse", "haar_forward", "haar_inverse"]

_KERNELS = (
    Kernel("haar (Triton)", "medseg.ops.kernels.triton_haar", "transform", device="cuda"),
    Kernel(
        "haar (numba)",
        "medseg.ops.kernels.numba_blocks",
        "transform",
        device="cpu",
        dtypes=frozenset({torch.float32, torch.float64}),
    ),
)


def haar_forward(x_bcs: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """One orthonormal Haar level along ``axes``.

    Convention:
        Sub-bands are stacked before the channels, last axis of ``axes`` fastest: for two axes
        aa, ad, da, dd; for three aaa, aad, ada, add, daa, dad, dda, ddd. Per axis
        a = (even + odd)/sqrt(2) and d = (even - odd)/sqrt(2), which is PyWavelets' ``haar``.

    Args:
        x_bcs: ``(b, c, *spatial)``, floating; every extent in ``axes`` even.
        axes: Spatial axes of ``x_bcs`` (2 is the first; negative ones count from the end); all of
            them if None. No axis at all, ``()``, is the identity.

    Returns:
        ``(b, 2**len(axes) * c, *spatial)`` with the transformed extents halved; the sum of squares
        is that of ``x_bcs``. Channels-last goes in, channels-last comes out.

    Raises:
        ShapeError: If an axis is not spatial or named twice, an extent in ``axes`` is odd, or
            ``x_bcs`` is no tensor, lacks axes, holds integers or is an empty batch.
    """
    dims = _spatial_axes(x_bcs, axes, "haar_forward", "x_bcs")
    odd = [dim for dim in dims if x_bcs.shape[dim] % 2]
    if odd:
        raise ShapeError(
            "haar_forward",
            expected=f"even extents on axes {tuple(dims)}",
            found=f"shape {tuple(x_bcs.shape)}",
            remedy=f"pad axis {odd[0]} to {x_bcs.shape[odd[0]] + 1}",
            code="haar-odd",
        )
    if not dims:
        return x_bcs
    if wants_plain(x_bcs):
        return _composed_forward(x_bcs, dims)
    bands_bcs: Tensor = torch.ops.medseg.haar_forward(x_bcs, dims)
    return bands_bcs


def haar_inverse(bands_bcs: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Undo :func:`haar_forward` with the same ``axes``.

    Args:
        bands_bcs: ``(b, 2**len(axes) * c, *spatial)``, floating, in the sub-band order of the
            forward transform.
        axes: As given to :func:`haar_forward`.

    Returns:
        ``(b, c, *spatial)`` with the extents in ``axes`` doubled. Channels-last goes in,
        channels-last comes out.

    Raises:
        ShapeError: If an axis is not spatial or named twice, the channels are no multiple of
            ``2**len(axes)``, or ``bands_bcs`` is no tensor, lacks axes, holds integers or is an
            empty batch.
    """
    dims = _spatial_axes(bands_bcs, axes, "haar_inverse", "bands_bcs")
    if bands_bcs.shape[1] % 2 ** len(dims):
        raise ShapeError(
            "haar_inverse",
            expected=f"a multiple of {2 ** len(dims)} channels, one set per sub-band",
            found=f"{bands_bcs.shape[1]} channels",
            remedy="hand in all sub-bands, in the order of haar_forward",
            code="haar-bands",
        )
    if not dims:
        return bands_bcs
    if wants_plain(bands_bcs):
        return _composed_inverse(bands_bcs, dims)
    x_bcs: Tensor = torch.ops.medseg.haar_inverse(bands_bcs, dims)
    return x_bcs


class Haar(nn.Module):
    """:func:`haar_forward` as a module.

    Args:
        axes: Spatial axes of the input; all of them if None.

    Raises:
        ConfigError: If an axis is 0 or 1, no whole number, or named twice.
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.axes = stored_axes("Haar axes", axes, code="haar-axes")

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, c, *spatial)`` to ``(b, 2**len(axes) * c, *halved)``."""
        return haar_forward(x_bcs, self.axes)

    def extra_repr(self) -> str:
        """The axes."""
        return f"axes={self.axes}"


class HaarInverse(nn.Module):
    """:func:`haar_inverse` as a module.

    Args:
        axes: As given to :class:`Haar`.

    Raises:
        ConfigError: As :class:`Haar`.
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.axes = stored_axes("HaarInverse axes", axes, code="haar-axes")

    def forward(self, bands_bcs: Tensor) -> Tensor:
        """``(b, 2**len(axes) * c, *spatial)`` to ``(b, c, *doubled)``."""
        return haar_inverse(bands_bcs, self.axes)

    def extra_repr(self) -> str:
        """The axes."""
        return f"axes={self.axes}"


# torch.library.custom_op would import the compiler at the first call: a second for nothing
torch.library.define(
    "medseg::haar_forward",
    "(Tensor x_bcs, SymInt[] axes) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::haar_inverse",
    "(Tensor bands_bcs, SymInt[] axes) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("medseg::haar_forward", "default")
def _forward(x_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    return run(_KERNELS, _passes, x_bcs, axes, "forward") if axes else x_bcs.clone()


@torch.library.impl("medseg::haar_inverse", "default")
def _inverse(bands_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    return run(_KERNELS, _passes, bands_bcs, axes, "inverse") if axes else bands_bcs.clone()


@torch.library.register_fake("medseg::haar_forward")  # type: ignore[untyped-decorator]
def _(x_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    return block_output(x_bcs, axes, "forward")


@torch.library.register_fake("medseg::haar_inverse")  # type: ignore[untyped-decorator]
def _(bands_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    return block_output(bands_bcs, axes, "inverse")


def _keep_axes(ctx: Any, inputs: tuple[Tensor, Sequence[int]], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.axes = inputs[1]


# the matrix is orthogonal: its transpose, which gradients need, is its inverse
def _forward_backward(ctx: Any, d_bands: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return torch.ops.medseg.haar_inverse(d_bands, ctx.axes), None


def _inverse_backward(ctx: Any, dx_bcs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return torch.ops.medseg.haar_forward(dx_bcs, ctx.axes), None


torch.library.register_autograd("medseg::haar_forward", _forward_backward, setup_context=_keep_axes)
torch.library.register_autograd("medseg::haar_inverse", _inverse_backward, setup_context=_keep_axes)


def _passes(x_bcs: Tensor, axes: Sequence[int], direction: Direction) -> Tensor:
    """Plain torch: one pass per axis, each into memory of its own, then the scaling."""
    y_bcs = x_bcs
    for axis in reversed(axes) if direction == "forward" else axes:
        x_bcs, y_bcs = y_bcs, advise_huge_pages(block_output(y_bcs, [axis], direction))
        halves = torch.unflatten(x_bcs if direction == "inverse" else y_bcs, 1, (2, -1)).unbind(1)
        pairs = _neighbours(x_bcs if direction == "forward" else y_bcs, axis)
        sources, targets = (pairs, halves) if direction == "forward" else (halves, pairs)
        torch.add(*sources, out=targets[0])
        torch.sub(*sources, out=targets[1])
    # one scaling for all axes: for two axes the factor is exactly 1/2
    return y_bcs.mul_(0.5 ** (len(axes) / 2))


def _composed_forward(x_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    """Of operations with derivatives of their own, all known to ONNX."""
    bands: Tensor = x_bcs * 0.5 ** (len(axes) / 2)
    for axis in reversed(axes):
        even, odd = _neighbours(bands, axis)
        bands = torch.cat((even + odd, even - odd), dim=1)
    return bands


def _composed_inverse(bands_bcs: Tensor, axes: Sequence[int]) -> Tensor:
    x_bcs: Tensor = bands_bcs * 0.5 ** (len(axes) / 2)
    for axis in axes:
        smooth, detail = x_bcs.chunk(2, dim=1)
        pairs = torch.stack((smooth + detail, smooth - detail), dim=axis + 1)
        x_bcs = pairs.flatten(axis, axis + 1)
    return x_bcs


def _neighbours(x_bcs: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    even, odd = torch.unflatten(x_bcs, axis, (x_bcs.shape[axis] // 2, 2)).unbind(axis + 1)
    return even, odd


def _spatial_axes(
    x_bcs: Tensor, axes: Sequence[int] | None, where: str, argument: str
) -> list[int]:
    check_tensor(f"{where}: {argument}", x_bcs)
    if not (x_bcs.is_floating_point() or x_bcs.is_complex()):
        raise ShapeError(
            f"{where}: {argument}",
            expected="a floating tensor",
            found=str(x_bcs.dtype),
            remedy="call float() on it first; the sub-bands of integers are fractions",
            code="haar-type",
        )
    return spatial_dims(f"{where} axes", x_bcs, axes, code="haar-axes")
