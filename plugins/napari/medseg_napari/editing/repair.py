"""Fast repair from a click or from scribbles: region growing, geodesic fill, random walker.

All of them work in a box round the click or the scribbles, so that their memory does not grow with
the image. Geodesic paths and the random walker come from scikit-image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.segmentation import random_walker

from medseg.errors import ConfigError, ResourceError
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    Mask,
    Spacing,
    box_of,
    check_inside,
    widened,
)
from medseg_napari.editing.brush import check_length
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import FREE, Rules, check_image
from medseg_napari.editing.scribbles import INSIDE, OUTSIDE, Scribbles

__all__ = ["geodesic_fill", "grow_region", "intensities_around", "walk_randomly"]

ImageArray = npt.NDArray[Any]

MOST_WALKED_VOXELS = 2_000_000
"""The random walker takes some 300 bytes a voxel."""

MOST_GEODESIC_VOXELS = 16_000_000
"""Paths take some 40 bytes a voxel."""

_QUIET = 1e-3  # the cost of a millimetre without any edge, against one noise level of edge


def grow_region(
    labels: LabelArray,
    value: int,
    seed: Sequence[int],
    *,
    image: ImageArray,
    spacing_mm: Spacing,
    reach_mm: float,
    low: float | None = None,
    high: float | None = None,
    sample_mm: float = 3.0,
    deviations: float = 2.5,
    rules: Rules = FREE,
) -> Change:
    """Give a label to the region of like intensities, connected over faces, round a voxel.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label to give.
        seed: The voxel to start from.
        image: Intensities on the grid of the labels.
        spacing_mm: Of the voxels.
        reach_mm: The region does not go further from the seed than this.
        low: Lowest intensity; None takes mean minus ``deviations`` standard deviations of the
            voxels round the seed.
        high: Highest intensity; None takes mean plus as much.
        sample_mm: Radius of the ball round the seed that intensities are sampled in.
        deviations: See ``low``.
        rules: What may be changed. What may not is not grown through.

    Raises:
        ConfigError: ``label-locked``, ``edit-length``; ``edit-range`` if the seed's own intensity
            is out of range.
        ShapeError: ``edit-outside``, ``edit-image``.
    """
    rules = rules.also_over(value)
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    check_image(image, labels)
    check_inside(seed, labels.shape)
    check_length("reach", reach_mm)
    check_length("sample", sample_mm)
    at = np.asarray(seed, dtype=int)
    if low is None or high is None:
        least, most = intensities_around(
            image, seed, spacing_mm=spacing_mm, sample_mm=sample_mm, deviations=deviations
        )
        low = least if low is None else low
        high = most if high is None else high
        low, high = min(low, float(image[tuple(at)])), max(high, float(image[tuple(at)]))
    box, inside = _ball_at(at, reach_mm, spacing_mm, labels.shape)
    part = image[box]
    inside &= (part >= low) & (part <= high)
    rules.restrict(inside, labels[box], box)
    start = tuple(int(place - span.start) for place, span in zip(at, box, strict=True))
    if not low <= float(image[tuple(at)]) <= high:
        raise ConfigError(
            "region growing",
            expected=f"a start with an intensity from {low:g} to {high:g}",
            found=f"{float(image[tuple(at)]):g}",
            remedy="start elsewhere or widen the range",
            code="edit-range",
        )
    if inside[start]:
        numbers, _ = ndimage.label(inside)
        builder.put(box, numbers == numbers[start], value)
    return builder.done("grow region")


def intensities_around(
    image: ImageArray,
    seed: Sequence[int],
    *,
    spacing_mm: Spacing,
    sample_mm: float = 3.0,
    deviations: float = 2.5,
) -> tuple[float, float]:
    """The range of the intensities round a voxel: mean plus and minus some standard deviations.

    Args:
        image: ``(i, p, l)``.
        seed: The voxel.
        spacing_mm: Of the voxels.
        sample_mm: Radius of the ball that is sampled.
        deviations: How many standard deviations.

    Raises:
        ShapeError: ``edit-outside``.
        ConfigError: ``edit-length``.
    """
    check_inside(seed, image.shape)
    check_length("sample", sample_mm)
    near, ball = _ball_at(np.asarray(seed, dtype=int), sample_mm, spacing_mm, image.shape)
    sample = image[near][ball].astype(np.float64)
    spread = deviations * float(sample.std())
    return float(sample.mean()) - spread, float(sample.mean()) + spread


def geodesic_fill(
    labels: LabelArray,
    value: int,
    scribbles: Scribbles,
    *,
    image: ImageArray,
    margin_mm: float = 10.0,
    smooth_mm: float = 0.0,
    edge_weight: float = 1.0,
    rules: Rules = FREE,
) -> Change:
    """Divide the surroundings of scribbles by which of them is nearer, edges making ways long.

    A way costs its length in millimetres times the strength of the edges along it, measured
    against the typical difference of neighbouring voxels. Voxels nearer to a scribble inside than
    to one outside get the label; those nearer to one outside lose it. The faces of the box count as
    outside where no scribble says otherwise and the image goes on behind them.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label of what is inside.
        scribbles: At least one stroke inside.
        image: Intensities on the grid of the labels.
        margin_mm: How far round the scribbles is looked.
        smooth_mm: Standard deviation of a Gaussian that quiets noise before edges are measured.
        edge_weight: How much edges count against length.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked``, ``scribbles-missing``, ``edit-length``.
        ShapeError: ``edit-image``.
        ResourceError: ``scribbles-wide`` if the box is too large.
    """
    builder, box, marks = _prepared(
        labels, value, scribbles, image, margin_mm, rules, MOST_GEODESIC_VOXELS
    )
    spacing_mm = scribbles.spacing_mm
    intensities = image[box].astype(np.float32)
    if smooth_mm > 0:
        intensities = ndimage.gaussian_filter(intensities, smooth_mm / np.asarray(spacing_mm))
    costs = _QUIET + edge_weight * _edges(intensities)
    inside = _way_costs(costs, spacing_mm, marks == INSIDE)
    outside = _way_costs(costs, spacing_mm, marks == OUTSIDE)
    _divide(builder, labels, box, inside < outside, value)
    return builder.done("geodesic fill")


def walk_randomly(
    labels: LabelArray,
    value: int,
    scribbles: Scribbles,
    *,
    image: ImageArray,
    margin_mm: float = 10.0,
    beta: float = 130.0,
    rules: Rules = FREE,
) -> Change:
    """Divide the surroundings of scribbles by where a random walker would first arrive.

    Grady, "Random walks for image segmentation", IEEE PAMI 28(11), 2006, in scikit-image's form:
    steps across edges are unlikely. Voxels from which a scribble inside is reached first get the
    label; the others lose it. As for :func:`geodesic_fill`, the faces of the box count as outside.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label of what is inside.
        scribbles: At least one stroke inside.
        image: Intensities on the grid of the labels.
        margin_mm: How far round the scribbles is looked.
        beta: How unlikely steps across edges are.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked``, ``scribbles-missing``, ``edit-length``.
        ShapeError: ``edit-image``.
        ResourceError: ``scribbles-wide`` if the box is too large.
    """
    builder, box, marks = _prepared(
        labels, value, scribbles, image, margin_mm, rules, MOST_WALKED_VOXELS
    )
    intensities = image[box].astype(np.float64)
    low, high = np.percentile(intensities, (0.5, 99.5))
    scaled = np.clip((intensities - low) / max(float(high - low), 1e-12), 0.0, 1.0)
    with warnings.catch_warnings():
        # it recommends another solver, which needs a further package
        warnings.filterwarnings("ignore", category=UserWarning, module="skimage")
        divided = random_walker(
            scaled, marks.astype(np.int32), beta=beta, mode="cg_j", spacing=scribbles.spacing_mm
        )
    _divide(builder, labels, box, divided == INSIDE, value)
    return builder.done("random walker")


def _prepared(
    labels: LabelArray,
    value: int,
    scribbles: Scribbles,
    image: ImageArray,
    margin_mm: float,
    rules: Rules,
    most_voxels: int,
) -> tuple[ChangeBuilder, Box, npt.NDArray[np.uint8]]:
    builder = ChangeBuilder(labels, rules.also_over(value))
    rules.check_target(value)
    check_image(image, labels)
    check_length("margin", margin_mm)
    box = scribbles.around(margin_mm)
    size = math.prod(part.stop - part.start for part in box)
    if size > most_voxels:
        raise ResourceError(
            "scribbles",
            expected=f"surroundings of at most {most_voxels} voxels",
            found=f"{size} voxels",
            remedy="choose a smaller margin, or repair part by part",
            code="scribbles-wide",
        )
    marks = scribbles.drawn(box)
    for axis, part in enumerate(box):
        ends = np.moveaxis(marks, axis, 0)
        for index, more in ((0, part.start > 0), (-1, part.stop < labels.shape[axis])):
            if more:
                face = ends[index]
                face[face == 0] = OUTSIDE
    return builder, box, marks


def _divide(builder: ChangeBuilder, labels: LabelArray, box: Box, inside: Mask, value: int) -> None:
    builder.put(box, inside, value)
    lost = (labels[box] == value) & ~inside
    if lost.any():
        builder.put(box, lost, 0)


def _edges(intensities: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Differences to neighbours, in units of the median of those that are not zero."""
    strength = np.zeros(intensities.shape, dtype=np.float64)
    for axis, extent in enumerate(intensities.shape):
        if extent > 1:
            step = np.abs(np.diff(intensities, axis=axis))
            before, after = [slice(None)] * 3, [slice(None)] * 3
            before[axis], after[axis] = slice(None, -1), slice(1, None)
            for side in (before, after):
                np.maximum(strength[tuple(side)], step, out=strength[tuple(side)])
    typical = strength[strength > 0]
    return strength / float(np.median(typical)) if typical.size else strength


def _way_costs(
    costs: npt.NDArray[np.float64], spacing_mm: Spacing, starts: Mask
) -> npt.NDArray[np.float64]:
    """Cost of the cheapest way from the nearest start to every voxel; infinite without a start."""
    if not starts.any():
        return np.full(costs.shape, np.inf)
    ways = MCP_Geometric(costs, sampling=spacing_mm)
    found, _ = ways.find_costs(np.argwhere(starts).tolist())
    return np.asarray(found)


def _ball_at(
    at: npt.NDArray[np.int_], radius_mm: float, spacing_mm: Spacing, shape: Sequence[int]
) -> tuple[Box, Mask]:
    reach = [math.floor(radius_mm / step * (1 + 1e-9)) for step in spacing_mm]
    box = widened(box_of(at.tolist(), (at + 1).tolist()), reach, shape)
    i, p, l = (  # noqa: E741 - the axes' names
        (axis - place) * step
        for axis, place, step in zip(np.ogrid[box], at, spacing_mm, strict=True)
    )
    ball: Mask = i * i + p * p + l * l <= radius_mm**2 * (1 + 1e-9)
    return box, ball
