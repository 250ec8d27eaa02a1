"""Shapes between two slices, by ITK; here because ITK is loaded in this package alone."""

# ruff: noqa: PLC0415 - ITK takes long to load: not before its first use

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medseg.errors import ConfigError, ShapeError

__all__ = ["interpolate_between"]

Mask = npt.NDArray[np.bool_]

_MARGIN_VOX = 4  # room for the shapes that are aligned


def interpolate_between(mask: Mask, axis: int) -> Mask:
    """Fill the slices between the first and the last one by morphological contour interpolation.

    Args:
        mask: Three axes; the first and the last slice across ``axis`` hold a shape, those between
            are not looked at.
        axis: The axis across the slices.

    Returns:
        The mask with all slices filled; the first and the last one are as given. Where ITK finds no
        shape, as between two far-apart ones, a slice stays empty.

    Raises:
        ShapeError: ``interpolation-slices`` if the first or the last slice is empty.
        ConfigError: ``interpolation-missing`` if ITK's module for it is not installed.
    """
    ends = np.moveaxis(mask, axis, 0)[[0, -1]]
    if not all(end.any() for end in ends):
        raise ShapeError(
            "interpolation between slices",
            expected="a shape in the first and in the last slice",
            found="an empty one",
            remedy="draw the structure in both slices",
            code="interpolation-slices",
        )
    import itk

    if not hasattr(itk, "MorphologicalContourInterpolator"):
        raise ConfigError(
            "interpolation between slices",
            expected="ITK's module for it",
            found="none",
            remedy="pip install itk-morphologicalcontourinterpolation",
            code="interpolation-missing",
        )
    drawn = np.zeros_like(np.moveaxis(mask, axis, 0), dtype=np.uint8)
    drawn[[0, -1]] = ends
    padded = np.pad(drawn, ((0, 0), (_MARGIN_VOX, _MARGIN_VOX), (_MARGIN_VOX, _MARGIN_VOX)))
    # ITK's first axis is the array's last
    result = itk.morphological_contour_interpolator(itk.image_from_array(padded), axis=2, label=1)
    inner = slice(_MARGIN_VOX, -_MARGIN_VOX)
    filled = itk.array_from_image(result)[:, inner, inner] != 0
    filled[[0, -1]] = ends
    return np.moveaxis(filled, 0, axis)
