"""From an image on its own grid to what a network takes; shared by training and prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.core import (
    AxisTurn,
    Grid,
    LabelMap,
    Volume,
    axis_turn,
    respace_grid,
    respace_shape,
    turn,
)
from medseg.errors import GeometryError, ShapeError
from medseg.models.card import ClipZScore, InputSettings, Normalisation
from medseg.ops.resample import resize_labels, resize_linear

__all__ = ["Prepared", "check_channels", "check_extent", "prepare", "prepare_labels"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image on the model's grid, with the way back.

    Args:
        x_cijk: ``(c, i, j, k)`` float32, normalised, on ``grid``.
        grid: The model's orientation and spacing over the image's box.
        turned_grid: The source grid, turned to the model's orientation.
        source_grid: The grid of the image as read.
        to_model: Source axes to model axes.
    """

    x_cijk: Tensor
    grid: Grid
    turned_grid: Grid
    source_grid: Grid
    to_model: AxisTurn


def prepare(volume: Volume, inputs: InputSettings) -> Prepared:
    """Turn, normalise and resample an image.

    Order: axes are turned to ``inputs.orientation``, each channel is normalised on the voxels as
    they were acquired, then resampled linearly (averaging where it gets coarser).

    Raises:
        ShapeError: If the number of channels is not the model's.
    """
    check_channels(volume, inputs)
    to_model = axis_turn(volume.grid, inputs.orientation)
    turned = turn(volume, to_model)
    shape = (
        turned.grid.shape_ijk
        if inputs.spacing_mm is None
        else respace_shape(turned.grid, inputs.spacing_mm)
    )
    channels = [
        resize_linear(_normalised(turned.data_cijk[index], channel.normalisation)[None], shape)
        for index, channel in enumerate(inputs.channels)
    ]
    return Prepared(
        x_cijk=torch.cat(channels),
        grid=respace_grid(turned.grid, shape),
        turned_grid=turned.grid,
        source_grid=volume.grid,
        to_model=to_model,
    )


def prepare_labels(labels: LabelMap, inputs: InputSettings) -> Tensor:
    """Turn and resample a label map to the model's grid.

    Returns:
        ``(i, j, k)`` int32 label values.
    """
    turned = turn(labels, axis_turn(labels.grid, inputs.orientation))
    shape = (
        turned.grid.shape_ijk
        if inputs.spacing_mm is None
        else respace_shape(turned.grid, inputs.spacing_mm)
    )
    return resize_labels(torch.from_numpy(turned.data_ijk.astype(np.int32)), shape)


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


def check_extent(grid: Grid, inputs: InputSettings) -> tuple[str, ...]:
    """Refuse images too small for a model's window to see anything in; note the merely small.

    An image below the window is padded; below half of it on an axis, most of what the network sees
    would be padding, and the answer could not be trusted.

    Args:
        grid: The image's grid, turned to the model's orientation.
        inputs: The model's orientation, spacing and window.

    Returns:
        Notes for the log, empty if the image fills the window.

    Raises:
        GeometryError: If the image is a single slice, or covers less than half of the window on an
            axis.
    """
    shape = grid.shape_ijk if inputs.spacing_mm is None else respace_shape(grid, inputs.spacing_mm)
    if min(grid.shape_ijk) == 1 and min(inputs.window_ijk) > 1:
        raise GeometryError(
            "image",
            expected="a volume, since the model is three-dimensional",
            found="a single slice",
            remedy="give the whole series, not one slice of it",
            code="image-one-slice",
        )
    small = [axis for axis in range(3) if shape[axis] < inputs.window_ijk[axis]]
    if any(2 * shape[axis] < inputs.window_ijk[axis] for axis in small):
        raise GeometryError(
            "image",
            expected=f"at least half of the model's window {inputs.window_ijk} on every axis",
            found=f"{shape} voxels at the model's spacing, axes {inputs.orientation}",
            remedy="give an image that shows more of the anatomy, or use a model with a smaller "
            "window",
            code="image-too-small",
        )
    if small:
        return (
            f"the image ({shape} voxels at the model's spacing) is smaller than the window "
            f"{inputs.window_ijk} and was padded",
        )
    return ()


def _normalised(channel_ijk: np.ndarray, how: Normalisation) -> Tensor:
    # copied even if float32 already: the caller's array must not change
    x_ijk = torch.from_numpy(np.array(channel_ijk, dtype=np.float32))
    if isinstance(how, ClipZScore):
        return x_ijk.clamp_(how.lower, how.upper).sub_(how.mean).div_(how.std)
    counted = x_ijk != 0 if how.nonzero_only else None
    # float64: a 32-bit sum over many large voxels loses digits
    values = (x_ijk if counted is None else x_ijk[counted]).to(torch.float64)
    if values.numel() == 0:
        return x_ijk
    mean, std = float(values.mean()), float(values.std(correction=0))
    normal = x_ijk.sub_(mean).div_(max(std, 1e-8))
    return normal if counted is None else torch.where(counted, normal, 0.0)
