"""Figures of each structure of a label map: volume, place, surface, intensities."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, sparse
from scipy.sparse import csgraph

from medseg.core import Grid, LabelMap, Volume
from medseg.errors import GeometryError

__all__ = [
    "IntensityStatistics",
    "LabelStatistics",
    "label_statistics",
    "statistics_to_csv",
    "statistics_to_json",
]

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
Extents = tuple[int, int, int]

_SLAB_VOXELS = 1 << 22
_PART_VALUES = 1 << 18
_FACES = ("i_first", "i_last", "j_first", "j_last", "k_first", "k_last")
_POINTS = {
    "centroid_ras_mm": ("centroid", "ras", "_mm"),
    "centroid_ijk": ("centroid", "ijk", ""),
    "box_start_ijk": ("box_start", "ijk", ""),
    "box_stop_ijk": ("box_stop", "ijk", ""),
}


@dataclass(frozen=True, slots=True)
class IntensityStatistics:
    """Intensities of one channel inside one structure, in the image's own unit.

    Args:
        channel: Name of the channel.
        mean: Arithmetic mean.
        std: Standard deviation of the structure's voxels themselves (divided by n, not n - 1).
        median: Exact median; the mean of the middle two where their number is even.
        minimum: Smallest value.
        maximum: Largest value.

    All five are None where the structure has no voxel, or where a voxel of it is NaN or infinite.
    """

    channel: str
    mean: float | None
    std: float | None
    median: float | None
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """What is measured of one structure.

    Of an absent structure voxels, volume and pieces are 0, which is true; it has no surface, place
    or intensity, and those are None.

    Args:
        name: Name of the structure.
        value: Its integer in the label map.
        voxels: Number of voxels.
        volume_ml: Voxels times the volume of one (the determinant of the affine, so that sheared
            grids are right), in millilitres.
        pieces: Number of connected pieces; voxels that share a corner are connected.
        surface_mm2: Surface area in square millimetres, see :func:`label_statistics`.
        centroid_ras_mm: Mean of the voxel centres, RAS+ millimetres.
        centroid_ijk: The same in voxel coordinates.
        box_start_ijk: First voxel of the bounding box on each axis.
        box_stop_ijk: One past its last voxel.
        border_faces: Faces of the image that the structure touches, of ``i_first``, ``i_last``,
            ``j_first``, ``j_last``, ``k_first`` and ``k_last``.
        intensities: One entry per channel of the image; empty where no image was given.
    """

    name: str
    value: int
    voxels: int
    volume_ml: float
    pieces: int
    surface_mm2: float | None
    centroid_ras_mm: Triple | None
    centroid_ijk: Triple | None
    box_start_ijk: Extents | None
    box_stop_ijk: Extents | None
    border_faces: tuple[str, ...]
    intensities: tuple[IntensityStatistics, ...]

    @property
    def touches_border(self) -> bool:
        """Whether a voxel lies at the edge of the image, so that the structure may be cut off."""
        return bool(self.border_faces)


def label_statistics(labels: LabelMap, image: Volume | None = None) -> list[LabelStatistics]:
    """Measure every structure of the scheme, present or not.

    Surface:
        Crofton's formula: a surface is half as large as it is cut, on average over all directions,
        by parallel lines of unit density. Lines run along the 13 directions of a voxel's 26
        neighbours, taken through the affine. ITK weighs these directions as if voxels were cubes;
        here the weights are those, none negative and their sum 1, for which the areas of planes of
        every orientation come out most evenly (least squares) on the grid at hand, so that thick
        slices and shear count. The figure is right on average over orientations, hence for rounded
        shapes; flat faces along the voxel axes come out several percent small. A structure that
        leaves the image is closed at the image's edge.

    Memory:
        Bounding boxes are worked through in slabs of about four million voxels. Integer images of
        up to 16 bits are counted in a histogram; of other types the structure's own values are
        gathered, in the image's type.

    Args:
        labels: The structures.
        image: Intensities on the same grid within 0.01 mm, or None.

    Returns:
        One entry per label of the scheme, in rising order of value.

    Raises:
        GeometryError: If image and labels lie on different grids.
    """
    if image is not None:
        _check_same_grid(image.grid, labels.grid)
    weights = _direction_weights(labels.grid)
    boxes = ndimage.find_objects(labels.data_ijk, max_label=max(labels.scheme.values))
    return [
        _measured(labels, label.name, label.value, boxes[label.value - 1], image, weights)
        for label in labels.scheme.labels
    ]


def statistics_to_json(statistics: Sequence[LabelStatistics]) -> list[dict[str, object]]:
    """Plain JSON types, one dict per structure, units in the names of the keys.

    Intensities stand under ``mean_<channel>``, ``std_<channel>``, ``median_<channel>``,
    ``minimum_<channel>`` and ``maximum_<channel>``; a channel name that occurs again gets ``_2``,
    ``_3`` and so on. What does not exist is None.
    """
    return [_plain(entry) for entry in statistics]


def statistics_to_csv(statistics: Sequence[LabelStatistics]) -> str:
    """The same figures as a table: a header line, one line per structure, comma-separated.

    Points and boxes have one column per axis, border faces are joined by spaces, and what does not
    exist is an empty field.
    """
    rows = [_flat(entry) for entry in statistics_to_json(statistics)]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _check_same_grid(image: Grid, labels: Grid) -> None:
    gap = image.distance_mm(labels)
    if gap > 0.01:
        raise GeometryError(
            "label statistics",
            expected="image and labels on one grid, corners within 0.01 mm",
            found=f"corners up to {gap:.3f} mm apart",
            remedy="resample the labels to the image's grid first",
            code="grids-differ",
        )


def _measured(
    labels: LabelMap,
    name: str,
    value: int,
    box: tuple[slice, ...] | None,
    image: Volume | None,
    weights: dict[Extents, float],
) -> LabelStatistics:
    channels = image.channels if image is not None else ()
    if box is None:
        absent = tuple(
            IntensityStatistics(channel, None, None, None, None, None) for channel in channels
        )
        return LabelStatistics(name, value, 0, 0.0, 0, None, None, None, None, None, (), absent)
    grid = labels.grid
    data = labels.data_ijk[box]
    start = np.array([part.start for part in box])
    voxels, centre, surface, pieces = _shape(data, value, weights)
    centroid = centre + start
    intensities = tuple(
        _intensities(channel, image.data_cijk[number][box], data, value)
        for number, channel in enumerate(channels)
        if image is not None
    )
    ends = itertools.chain.from_iterable(
        (part.start == 0, part.stop == extent)
        for part, extent in zip(box, grid.shape_ijk, strict=True)
    )
    return LabelStatistics(
        name=name,
        value=value,
        voxels=voxels,
        volume_ml=voxels * grid.voxel_volume_mm3 / 1000.0,
        pieces=pieces,
        surface_mm2=surface,
        centroid_ras_mm=_triple(grid.world_from_voxel(centroid)),
        centroid_ijk=_triple(centroid),
        box_start_ijk=(box[0].start, box[1].start, box[2].start),
        box_stop_ijk=(box[0].stop, box[1].stop, box[2].stop),
        border_faces=tuple(face for face, touched in zip(_FACES, ends, strict=True) if touched),
        intensities=intensities,
    )


def _triple(point: Floats) -> Triple:
    return float(point[0]), float(point[1]), float(point[2])


def _shape(
    data: npt.NDArray[Any], value: int, weights: dict[Extents, float]
) -> tuple[int, Floats, float, int]:
    """Voxels, centroid within the box, surface in mm2 and pieces of ``data == value``."""
    crossings = dict.fromkeys(weights, 0)
    counts = [np.zeros(extent, dtype=np.int64) for extent in data.shape]
    joins: list[npt.NDArray[np.int64]] = []
    pieces_so_far = 0
    last_plane: npt.NDArray[np.int64] | None = None
    for first, block in _slabs(data, value):
        for direction in weights:
            crossings[direction] += _crossings(block, direction)
        inner = block[1:, 1:-1, 1:-1]
        planes = slice(first, min(first + len(inner), data.shape[0]))
        per_plane = np.count_nonzero(inner, axis=(1, 2))
        counts[0][planes] += per_plane[: planes.stop - planes.start]
        counts[1] += np.count_nonzero(inner, axis=(0, 2))
        counts[2] += np.count_nonzero(inner, axis=(0, 1))
        # a slab repeats the last plane of the one before, and so tells which pieces go on
        numbered, found = ndimage.label(block, np.ones((3, 3, 3)), output=np.int32)
        if last_plane is not None:
            shared = block[0]
            pairs = np.stack([last_plane[shared], numbered[0][shared] - 1 + pieces_so_far])
            joins.append(np.unique(pairs, axis=1))
        last_plane = numbered[-1].astype(np.int64) - 1 + pieces_so_far
        pieces_so_far += found
    voxels = int(counts[0].sum())
    centre = np.array([np.arange(len(count)) @ count / voxels for count in counts])
    surface = sum(weights[direction] * crossings[direction] for direction in weights)
    return voxels, centre, float(surface), _distinct(pieces_so_far, joins)


def _slabs(data: npt.NDArray[Any], value: int) -> Iterator[tuple[int, Mask]]:
    """The mask in slabs along its first axis, as if a layer of background lay round it.

    Yields:
        Index of the slab's first plane, and the slab with one more plane before it (that of the
        slab before) and one voxel of background round each plane.
    """
    extent = data.shape[0]
    plane = (data.shape[1] + 2, data.shape[2] + 2)
    thickness = max(1, _SLAB_VOXELS // (plane[0] * plane[1]))
    for first in range(0, extent + 1, thickness):
        stop = min(first + thickness, extent + 1)
        block = np.zeros((stop - first + 1, *plane), dtype=bool)
        source = slice(max(first - 1, 0), min(stop, extent))
        offset = source.start - first + 1
        target = block[offset : offset + source.stop - source.start, 1:-1, 1:-1]
        np.equal(data[source], value, out=target)
        yield first, block


def _crossings(block: Mask, direction: Extents) -> int:
    """How often lines along ``direction`` pass from inside to outside or back."""
    # A line's step within a plane belongs to that plane, a step to the next plane to the later.
    near = [slice(0, -1) if direction[0] else slice(1, None)]
    far = [slice(1, None)]
    for step, extent in zip(direction[1:], block.shape[1:], strict=True):
        near.append(slice(max(-step, 0), extent - max(step, 0)))
        far.append(slice(max(step, 0), extent - max(-step, 0)))
    return int(np.count_nonzero(block[tuple(near)] != block[tuple(far)]))


def _distinct(pieces: int, joins: list[npt.NDArray[np.int64]]) -> int:
    if not joins:
        return pieces
    one, other = np.concatenate(joins, axis=1)
    graph = sparse.coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(pieces, pieces))
    return int(csgraph.connected_components(graph, directed=False)[0])


def _direction_weights(grid: Grid) -> dict[Extents, float]:
    """Square millimetres of surface for each crossing, by direction of the line.

    Lines along a lattice vector v stand in a density of ``|v| / voxel volume`` per unit of area,
    so that one crossing is ``2 * weight * volume / |v|`` of surface.
    """
    directions = [
        (i, j, k) for i, j, k in itertools.product((-1, 0, 1), repeat=3) if (i, j, k) > (0, 0, 0)
    ]
    steps_mm = np.array(directions) @ grid.affine_ras[:3, :3].T
    lengths_mm = np.linalg.norm(steps_mm, axis=1)
    normals = _normals(1000)
    # A plane of unit area and that normal is cut this often, times two, per line direction.
    areas = 2.0 * np.abs(normals @ (steps_mm / lengths_mm[:, None]).T)
    heavy = 100.0 * np.sqrt(len(normals))  # the last equation asks for a sum of 1
    weights, _ = optimize.nnls(
        np.vstack([areas, np.full(len(directions), heavy)]),
        np.append(np.ones(len(normals)), heavy),
    )
    each = 2.0 * weights / weights.sum() * grid.voxel_volume_mm3 / lengths_mm
    return {
        direction: float(area)
        for direction, area in zip(directions, each, strict=True)
        if area > 0.0
    }


def _normals(number: int) -> Floats:
    """``(number, 3)`` unit vectors spread evenly over a half sphere (golden-angle spiral)."""
    step = np.arange(number) + 0.5
    height = 1.0 - step / number
    angle = step * math.pi * (3.0 - math.sqrt(5.0))
    radius = np.sqrt(1.0 - height * height)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def _intensities(
    channel: str, intensities: npt.NDArray[Any], data: npt.NDArray[Any], value: int
) -> IntensityStatistics:
    if intensities.dtype.kind in "iu" and intensities.dtype.itemsize <= 2:
        return _from_histogram(channel, intensities, data, value)
    return _from_values(channel, intensities[data == value])


def _from_histogram(
    channel: str, intensities: npt.NDArray[Any], data: npt.NDArray[Any], value: int
) -> IntensityStatistics:
    limits = np.iinfo(intensities.dtype)
    counts = np.zeros(int(limits.max) - int(limits.min) + 1, dtype=np.int64)
    thickness = max(1, _SLAB_VOXELS // (data.shape[1] * data.shape[2]))
    for first in range(0, data.shape[0], thickness):
        planes = slice(first, first + thickness)
        inside = intensities[planes][data[planes] == value].astype(np.int64) - int(limits.min)
        counts += np.bincount(inside, minlength=len(counts))
    present = np.flatnonzero(counts)
    levels, numbers = (present + int(limits.min)).astype(np.float64), counts[present]
    total = int(numbers.sum())
    mean = float(levels @ numbers) / total
    up_to = np.cumsum(numbers)
    middle = levels[np.searchsorted(up_to, [(total - 1) // 2 + 1, total // 2 + 1])]
    return IntensityStatistics(
        channel,
        mean=mean,
        std=math.sqrt(float(np.square(levels - mean) @ numbers) / total),
        median=float(middle.mean()),
        minimum=float(levels[0]),
        maximum=float(levels[-1]),
    )


def _from_values(channel: str, inside: npt.NDArray[Any]) -> IntensityStatistics:
    lowest, highest = float(inside.min()), float(inside.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return IntensityStatistics(channel, None, None, None, None, None)
    parts = range(0, len(inside), _PART_VALUES)
    mean = math.fsum(float(inside[at : at + _PART_VALUES].sum(dtype=np.float64)) for at in parts)
    mean /= len(inside)
    squares = math.fsum(
        float(np.square(inside[at : at + _PART_VALUES].astype(np.float64) - mean).sum())
        for at in parts
    )
    low, high = (len(inside) - 1) // 2, len(inside) // 2
    inside.partition((low, high))
    return IntensityStatistics(
        channel,
        mean=mean,
        std=math.sqrt(squares / len(inside)),
        median=(float(inside[low]) + float(inside[high])) / 2.0,
        minimum=lowest,
        maximum=highest,
    )


def _plain(entry: LabelStatistics) -> dict[str, object]:
    content: dict[str, object] = {
        "name": entry.name,
        "value": entry.value,
        "voxels": entry.voxels,
        "volume_ml": entry.volume_ml,
        "pieces": entry.pieces,
        "surface_mm2": entry.surface_mm2,
    }
    for key, point in (
        ("centroid_ras_mm", entry.centroid_ras_mm),
        ("centroid_ijk", entry.centroid_ijk),
        ("box_start_ijk", entry.box_start_ijk),
        ("box_stop_ijk", entry.box_stop_ijk),
    ):
        content[key] = None if point is None else list(point)
    content["touches_border"] = entry.touches_border
    content["border_faces"] = list(entry.border_faces)
    for number, channel in enumerate(entry.intensities):
        earlier = sum(other.channel == channel.channel for other in entry.intensities[:number])
        name = f"{channel.channel}_{earlier + 1}" if earlier else channel.channel
        content[f"mean_{name}"] = channel.mean
        content[f"std_{name}"] = channel.std
        content[f"median_{name}"] = channel.median
        content[f"minimum_{name}"] = channel.minimum
        content[f"maximum_{name}"] = channel.maximum
    return content


def _flat(content: dict[str, object]) -> dict[str, object]:
    row: dict[str, object] = {}
    for key, figure in content.items():
        if key == "border_faces":
            row[key] = " ".join(figure) if isinstance(figure, list) else ""
        elif key in _POINTS:
            stem, axes, unit = _POINTS[key]
            point = figure if isinstance(figure, list) else [None] * 3
            for axis, coordinate in zip(axes, point, strict=True):
                row[f"{stem}_{axis}{unit}"] = coordinate
        else:
            row[key] = figure
    return row
