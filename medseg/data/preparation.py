"""From an image on its own grid to what a network takes; shared by training and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.core import (
    AxisTurn,
    Grid,
    LabelMap,
    Lean,
    Volume,
    axis_turn,
    respace_grid,
    respace_shape,
    turn,
)
from medseg.errors import FormatError, GeometryError, ShapeError
from medseg.io.notes import Note
from medseg.models.card import Channel, ClipZScore, InputSettings, Unchanged
from medseg.ops.resample import AxisTaps, axis_taps, resize, resize_labels

__all__ = [
    "THICK_RATIO",
    "ModelImage",
    "check_channels",
    "check_extent",
    "check_fills",
    "check_grid",
    "check_image",
    "model_shape",
    "prepare_labels",
    "thick_axis",
]

THICK_RATIO = 3.0
"""Spacing of the thickest axis over that of the finest beyond which slices count as thick.

The figure is nnU-Net's (Isensee et al., Nature Methods 2021)."""

_PART_VOXELS = 1 << 22
_ROUNDING = 1e-3
# a range of intensities wider than this is not one of images scaled to 0 to 1
_LEAST_HU = 20.0


@dataclass(frozen=True, slots=True)
class _Scaling:
    """``(x - shift) / scale`` after clipping; what equals ``kept`` becomes 0."""

    lower: float
    upper: float
    shift: float
    scale: float
    kept: float | None = None


class ModelImage:
    """An image as a network sees it, worked out box by box from the voxels as they were stored.

    Order: axes are turned to the model's orientation, each channel is normalised on the voxels as
    they were acquired, then resampled (averaging where voxels get larger). No copy of the whole
    volume is made, in floats or otherwise; a box has the same bits whatever box it is asked for in.

    Args:
        volume: The image.
        inputs: What the model expects.
        coarser: Factor on the model's spacing, for fast and rough passes; with a model that keeps
            each image's spacing, on that one.
        frame: Turn of the source axes to use instead of the model's orientation, so that images for
            several models have their axes alike; :attr:`to_orientation` is then left to be done.

    Attributes:
        grid: The model's orientation and spacing over the image's box.
        turned_grid: The source grid, turned to the model's orientation.
        source_grid: The grid of the image as read.
        to_model: Source axes to the axes of :attr:`grid`.
        to_orientation: The turn that brings a box of :attr:`grid` to the model's orientation.

    Raises:
        ShapeError: If the number of channels is not the model's.
    """

    def __init__(
        self,
        volume: Volume,
        inputs: InputSettings,
        *,
        coarser: float = 1.0,
        frame: AxisTurn | None = None,
    ) -> None:
        check_channels(volume, inputs)
        oriented = axis_turn(volume.grid, inputs.orientation)
        self.to_model: AxisTurn = frame or oriented
        self.to_orientation: AxisTurn = oriented.after(self.to_model.inverse())
        turned = turn(volume, self.to_model)
        self._data_cijk: npt.NDArray[Any] = turned.data_cijk
        self.source_grid: Grid = volume.grid
        self.turned_grid: Grid = turned.grid
        upright = model_shape(oriented.turn_grid(volume.grid), inputs, coarser=coarser)
        shape = self.in_frame(upright)
        self.grid: Grid = respace_grid(turned.grid, shape)
        kinds: list[str] = [inputs.interpolation] * 3
        thick = thick_axis(turned.grid, self.grid, inputs)
        if thick is not None:
            kinds[thick] = "nearest"
        self._to_grid = tuple(
            axis_taps(old, new, kind)  # type: ignore[arg-type]
            for old, new, kind in zip(turned.grid.shape_ijk, shape, kinds, strict=True)
        )
        self.to_image: tuple[AxisTaps, ...] = tuple(
            axis_taps(new, old, "nearest" if axis == thick else "linear")
            for axis, (old, new) in enumerate(zip(turned.grid.shape_ijk, shape, strict=True))
        )
        self._scalings = tuple(
            _scaling(data_ijk, channel)
            for data_ijk, channel in zip(turned.data_cijk, inputs.channels, strict=True)
        )

    def in_frame(self, upright: tuple[int, int, int]) -> tuple[int, int, int]:
        """Three numbers along the axes of the model's orientation, along those of :attr:`grid`."""
        i, j, k = (upright[source] for source in self.to_orientation.inverse().source_axes)
        return i, j, k

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self._scalings)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Bytes between neighbours along I, J, K of the turned image, without sign."""
        i, j, k = (abs(step) for step in self._data_cijk.strides[1:])
        return i, j, k

    def box(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """A box of the image on the model's grid.

        Args:
            start: First voxel on each axis of :attr:`grid`.
            stop: One beyond the last.

        Returns:
            ``(c, i, j, k)`` float32 on the CPU, a tensor of its own.
        """
        taps = [
            axis_taps_.part(first, last)
            for axis_taps_, first, last in zip(self._to_grid, start, stop, strict=True)
        ]
        cut = tuple(
            slice(*axis_taps_.sources(first, last))
            for axis_taps_, first, last in zip(self._to_grid, start, stop, strict=True)
        )
        shape = tuple(last - first for first, last in zip(start, stop, strict=True))
        result = torch.empty((self.channels, *shape))
        for channel, scaling in enumerate(self._scalings):
            x_ijk = _scaled(self._data_cijk[channel][cut], scaling)
            result[channel] = resize(x_ijk[None], taps)[0]
        return result

    def whole(self) -> Tensor:
        """The whole image on the model's grid, ``(c, i, j, k)`` float32."""
        return self.box((0, 0, 0), self.grid.shape_ijk)


def prepare_labels(labels: LabelMap, inputs: InputSettings) -> Tensor:
    """Turn and resample a label map to the model's grid.

    Returns:
        ``(i, j, k)`` int32 label values.
    """
    turned = turn(labels, axis_turn(labels.grid, inputs.orientation))
    shape = model_shape(turned.grid, inputs)
    thick = thick_axis(turned.grid, respace_grid(turned.grid, shape), inputs)
    taps = [
        axis_taps(old, new, "nearest" if axis == thick else "linear")
        for axis, (old, new) in enumerate(zip(turned.grid.shape_ijk, shape, strict=True))
    ]
    return resize_labels(torch.from_numpy(turned.data_ijk.astype(np.int32)), taps)


def model_shape(
    turned_grid: Grid, inputs: InputSettings, *, coarser: float = 1.0
) -> tuple[int, int, int]:
    """Extents of an image on the model's grid.

    Args:
        turned_grid: The image's grid, turned to the model's orientation.
        inputs: The model's spacing.
        coarser: Factor on it.
    """
    if inputs.spacing_mm is None and coarser == 1.0:
        return turned_grid.shape_ijk
    i_mm, j_mm, k_mm = inputs.spacing_mm or turned_grid.spacing_mm
    return respace_shape(turned_grid, (i_mm * coarser, j_mm * coarser, k_mm * coarser))


def thick_axis(turned_grid: Grid, grid: Grid, inputs: InputSettings) -> int | None:
    """The axis across which slices are too thick to interpolate, if the model treats them apart.

    As in nnU-Net it is looked for on the image's grid first, then on the model's.

    Args:
        turned_grid: The image's grid, turned to the model's orientation.
        grid: The model's grid.
        inputs: Whether ``thick_slices`` is "nearest".
    """
    if inputs.thick_slices == "interpolate":
        return None
    for spacing in (turned_grid.spacing_mm, grid.spacing_mm):
        if max(spacing) > THICK_RATIO * min(spacing):
            return spacing.index(max(spacing))
    return None


def check_channels(volume: Volume, inputs: InputSettings) -> None:
    """Refuse an image whose number of channels is not the model's.

    Raises:
        ShapeError: If the numbers differ.
    """
    have, want = len(volume.channels), len(inputs.channels)
    if have != want:
        names = ", ".join(channel.name for channel in inputs.channels)
        raise ShapeError(
            "image",
            expected=f"{want} channel{'s' if want > 1 else ''} ({names})",
            found=f"{have}",
            remedy=(
                "give one file per channel, as in --channel T1=a.nii.gz --channel T2=b.nii.gz"
                if want > 1
                else "give a single image"
            ),
            code="channel-count",
        )


def check_extent(grid: Grid, inputs: InputSettings, *, coarser: float = 1.0) -> tuple[str, ...]:
    """Refuse images too small for a model's window to see anything in; note the merely small.

    An image below the window is padded; below half of it on an axis, most of what the network sees
    would be padding, and the answer could not be trusted.

    Args:
        grid: The image's grid, turned to the model's orientation.
        inputs: The model's orientation, spacing and window.
        coarser: Factor on the model's spacing.

    Returns:
        Notes for the log, empty if the image fills the window.

    Raises:
        GeometryError: If the image is a single slice, or covers less than half of the window on an
            axis.
    """
    if min(grid.shape_ijk) == 1 and min(inputs.window_ijk) > 1:
        raise GeometryError(
            "image",
            expected="a volume, since the model is three-dimensional",
            found="a single slice",
            remedy="give the whole series, not one slice of it",
            code="image-one-slice",
        )
    return check_fills(model_shape(grid, inputs, coarser=coarser), inputs)


def check_fills(
    shape_ijk: tuple[int, int, int],
    inputs: InputSettings,
    *,
    where: str = "image",
    remedy: str = "give an image that shows more of the anatomy, or use a model with a smaller "
    "window",
) -> tuple[str, ...]:
    """The same for extents on the model's grid.

    Args:
        shape_ijk: Extents at the model's spacing, along its axes.
        inputs: The model's window.
        where: Named in the error.
        remedy: What can be done about it.

    Returns:
        Notes for the log, empty if the window is filled.

    Raises:
        GeometryError: ``image-too-small``.
    """
    small = [axis for axis in range(3) if shape_ijk[axis] < inputs.window_ijk[axis]]
    if any(2 * shape_ijk[axis] < inputs.window_ijk[axis] for axis in small):
        raise GeometryError(
            where,
            expected=f"at least half of the model's window {inputs.window_ijk} on every axis",
            found=f"{shape_ijk} voxels at the model's spacing, axes {inputs.orientation}",
            remedy=remedy,
            code="image-too-small",
        )
    if small:
        return (
            Note(
                f"the image ({shape_ijk} voxels at the model's spacing) is smaller than the window "
                f"{inputs.window_ijk} and was padded",
                code="image-padded",
                remedy="look at the result near the borders with care",
            ),
        )
    return ()


def check_image(volume: Volume, inputs: InputSettings, *, coarser: float = 1.0) -> tuple[str, ...]:
    """Refuse an image that does not fit a model; note what is worth knowing of one that does.

    Args:
        volume: The image; a stack that leans is judged as it will be when set upright.
        inputs: What the model expects.
        coarser: Factor on the model's spacing.

    Raises:
        ShapeError: As :func:`check_channels`.
        GeometryError: As :func:`check_extent`.
        FormatError: ``intensity-units`` if CT that was scaled to 0 to 1 meets a model of Hounsfield
            units.
    """
    check_channels(volume, inputs)
    notes = check_grid(volume.grid, inputs, coarser=coarser)
    for channel_ijk, channel in zip(volume.data_cijk, inputs.channels, strict=True):
        notes += _check_units(channel_ijk, channel)
    return notes


def check_grid(grid: Grid, inputs: InputSettings, *, coarser: float = 1.0) -> tuple[str, ...]:
    """The same, of the place of an image alone.

    Raises:
        GeometryError: As :func:`check_extent`.
    """
    lean = Lean.of(grid)
    grid = grid if lean is None else lean.upright
    turned = axis_turn(grid, inputs.orientation).turn_grid(grid)
    return check_extent(turned, inputs, coarser=coarser)


def _check_units(channel_ijk: npt.NDArray[Any], channel: Channel) -> tuple[str, ...]:
    """Hounsfield units or CT scaled to 0 to 1: refuse what the model cannot take, note the rest."""
    how, bounds = channel.normalisation, channel.scaled_hu
    if bounds is not None:
        if _is_scaled(channel_ijk):
            return ()
        return (
            Note(
                f"{channel.name}: Hounsfield units from {bounds[0]:g} to {bounds[1]:g} were "
                "brought to 0 to 1, as in the images that the model was trained on",
                code="intensities-scaled",
                remedy="none needed for CT in Hounsfield units",
            ),
        )
    if channel.modality == "CT" and isinstance(how, ClipZScore):
        is_in_hu = how.upper - how.lower > _LEAST_HU
        if is_in_hu and _is_scaled(channel_ijk) and channel_ijk.min() < channel_ijk.max():
            raise FormatError(
                f"channel {channel.name}",
                expected=f"Hounsfield units, which the model cuts off at {how.lower:g} and "
                f"{how.upper:g}",
                found="values from 0 to 1: CT that somebody scaled",
                remedy="give the CT as the scanner left it",
                code="intensity-units",
            )
    return ()


def _is_scaled(channel_ijk: npt.NDArray[Any]) -> bool:
    """Whether every voxel lies within 0 to 1, but for rounding; a few of them mostly tell."""
    return all(
        float(part.min()) >= -_ROUNDING and float(part.max()) <= 1.0 + _ROUNDING
        for part in (channel_ijk[::16, ::16, ::4], *_parts(channel_ijk))
    )


def _scaling(channel_ijk: npt.NDArray[Any], channel: Channel) -> _Scaling:
    """What is done to the voxels as they are stored.

    Where the images trained on were scaled and this one is not, both steps become one: clipped at
    the bounds, ``y = (x - low) / (high - low)`` and then normalised is ``(x - low - width * mean) /
    (width * std)``.
    """
    how, bounds = channel.normalisation, channel.scaled_hu
    low, width = 0.0, 1.0
    lower, upper = -np.inf, np.inf
    if bounds is not None and not _is_scaled(channel_ijk):
        low, width = bounds[0], bounds[1] - bounds[0]
        lower, upper = bounds
    if isinstance(how, Unchanged):
        return _Scaling(lower, upper, low, width)
    if isinstance(how, ClipZScore):
        return _Scaling(
            max(lower, low + width * how.lower),
            min(upper, low + width * how.upper),
            low + width * how.mean,
            width * how.std,
        )
    kept = low if how.nonzero_only else None
    mean, std = _moments(channel_ijk, lower, upper, kept)
    return _Scaling(lower, upper, mean, max(std, 1e-8 * width), kept)


def _moments(
    channel_ijk: npt.NDArray[Any], lower: float, upper: float, kept: float | None
) -> tuple[float, float]:
    """Mean and standard deviation in float64: a 32-bit sum over many voxels loses digits.

    They are those of the voxels cut off at ``lower`` and ``upper``, without those at ``kept``.
    """

    def counted() -> Iterator[npt.NDArray[Any]]:
        for part in _parts(channel_ijk):
            values = part.clip(lower, upper) if np.isfinite(lower) else part
            yield values if kept is None else values[values != kept]

    count, total = 0, 0.0
    for values in counted():
        count += values.size
        total += float(values.sum(dtype=np.float64))
    if count == 0:
        return 0.0 if kept is None else kept, 1.0
    mean, squares = total / count, 0.0
    for values in counted():
        squares += float(np.square(values.astype(np.float64) - mean).sum())
    return mean, float(np.sqrt(squares / count))


def _parts(channel_ijk: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The array in slabs of bounded size, across the axis that memory is slowest in."""
    axis = int(np.argmax(np.abs(channel_ijk.strides)))
    extent = channel_ijk.shape[axis]
    step = max(1, _PART_VOXELS * extent // max(1, channel_ijk.size))
    slowest_first = np.moveaxis(channel_ijk, axis, 0)
    for first in range(0, extent, step):
        yield slowest_first[first : first + step]


def _scaled(stored_ijk: npt.NDArray[Any], scaling: _Scaling) -> Tensor:
    # copied even if float32 already: the caller's array must not change
    x_ijk = torch.from_numpy(np.array(stored_ijk, dtype=np.float32, order="C"))
    if np.isfinite(scaling.lower):
        x_ijk.clamp_(scaling.lower, scaling.upper)
    kept = None if scaling.kept is None else x_ijk == scaling.kept
    x_ijk.sub_(scaling.shift).div_(scaling.scale)
    return x_ijk if kept is None else x_ijk.masked_fill_(kept, 0.0)
