"""Pictures of a segmentation: planes through it, outlined on the image, drawn without a display.

Planes are taken first and converted after, and contrast comes from a sample of the voxels, so that
a picture of a large volume costs little more memory than the volume itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medseg.core import AxisTurn, Label, LabelMap, Volume, axis_turn
from medseg.errors import GeometryError, ShapeError

__all__ = ["HEAT_STOPS", "Scene", "three_plane_png"]

Pixels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PANEL_PX = 300
_MARGIN_PX = 12
_LEGEND_PX = 30
_GAP_PX = 4
_BACK = (18, 18, 20)
_TEXT = (235, 235, 235)
_SAMPLE_VOXELS = 1 << 20
_SURROUND_MM = 12.0

HEAT_STOPS = ((0, (60, 0, 80)), (96, (205, 45, 40)), (176, (250, 150, 20)), (255, (255, 250, 170)))
"""Colours of the heat overlay, at entropies of 0 to 255; between them they are interpolated."""

# name, axis looked along, axis to the right of the picture, axis up, letters left and top
_VIEWS = (
    ("axial", 2, 0, 1, "R", "A"),
    ("coronal", 1, 0, 2, "R", "S"),
    ("sagittal", 0, 1, 2, "A", "S"),
)


def three_plane_png(volume: Volume, labels: LabelMap, *, caption: str) -> bytes:
    """Draw the axial, coronal and sagittal plane that show most of the segmentation.

    Planes are shown as radiologists hang them: the patient's right on the left of the picture, head
    or front up. Pixels are scaled to millimetres, so that thick slices look thick. Oblique images
    are shown along their own axes, named by the nearest anatomical ones.

    Args:
        volume: The image; its first channel is drawn, contrast from its 0.5th to 99.5th percentile.
        labels: On the image's grid.
        caption: One line under the panels; never patient data.

    Returns:
        A PNG file.

    Raises:
        GeometryError: If image and labels have different extents.
    """
    return Scene.of(volume, labels).three_planes(caption)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image and its segmentation, turned to RAS and counted once, ready to be drawn often.

    The arrays are views of those handed in. Build it with :meth:`of`.

    Args:
        data_ijk: ``(i, j, k)`` intensities of the first channel, axes towards R, A, S.
        label_ijk: Labels likewise.
        to_ras: What turned both.
        spacing_mm: Distances of voxels along the turned axes.
        labels: The structures of the scheme.
        counts: Label value to the number of its voxels in every plane across each turned axis.
        voxel_ml: Volume of one voxel.
    """

    data_ijk: npt.NDArray[Any]
    label_ijk: npt.NDArray[Any]
    to_ras: AxisTurn
    spacing_mm: tuple[float, float, float]
    labels: tuple[Label, ...]
    counts: dict[int, tuple[Counts, Counts, Counts]]
    voxel_ml: float

    @classmethod
    def of(cls, volume: Volume, labels: LabelMap) -> Scene:
        """Turn and count; one pass over the labels.

        Raises:
            GeometryError: If image and labels have different extents.
        """
        if volume.grid.shape_ijk != labels.grid.shape_ijk:
            raise GeometryError(
                "picture",
                expected=f"labels on the image's grid of {volume.grid.shape_ijk}",
                found=f"labels of {labels.grid.shape_ijk}",
                remedy="bring the labels to the image's grid first",
                code="grid-shape-differs",
            )
        to_ras = axis_turn(volume.grid, "RAS")
        data_ijk = to_ras.turn_array(volume.data_cijk[0])
        label_ijk = to_ras.turn_array(labels.data_ijk)
        return cls(
            data_ijk,
            label_ijk,
            to_ras,
            to_ras.turn_grid(volume.grid).spacing_mm,
            labels.scheme.labels,
            _plane_counts(label_ijk, labels.scheme.values),
            volume.grid.voxel_volume_mm3 / 1000.0,
        )

    def volume_ml(self, value: int) -> float:
        """Volume of a structure, 0.0 where it is absent."""
        return float(self.counts[value][0].sum()) * self.voxel_ml

    def three_planes(self, caption: str) -> bytes:
        """A PNG file of the three fullest planes, a legend and a caption (never patient data)."""
        totals = [sum(each[axis] for each in self.counts.values()) for axis in range(3)]
        centre = [
            int(np.argmax(total)) if np.any(total) else extent // 2
            for total, extent in zip(totals, self.data_ijk.shape, strict=True)
        ]
        width = 3 * _PANEL_PX + 4 * _MARGIN_PX
        height = _PANEL_PX + 2 * _MARGIN_PX + 2 * _LEGEND_PX
        canvas = Image.new("RGB", (width, height), _BACK)
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(13)
        whole = tuple(slice(0, extent) for extent in self.data_ijk.shape)
        px_per_mm = _PANEL_PX / max(self._extents_mm(whole))
        window = _contrast(self.data_ijk)
        for column, (name, along, across, up, left, top) in enumerate(_VIEWS):
            size = self._size_px(whole, across, up, px_per_mm)
            panel = self._panel(along, centre[along], whole, size, window, line_px=2)
            corner = (_MARGIN_PX + column * (_PANEL_PX + _MARGIN_PX), _MARGIN_PX)
            at = (
                corner[0] + (_PANEL_PX - size[0]) // 2,
                corner[1] + (_PANEL_PX - size[1]) // 2,
            )
            canvas.paste(panel, at)
            _letters(draw, font, corner, at, size, (name, left, top))
        self._legend(draw, font, _PANEL_PX + 2 * _MARGIN_PX, width)
        draw.text((_MARGIN_PX, height - _LEGEND_PX + 4), caption, _TEXT, font)
        stream = io.BytesIO()
        canvas.save(stream, format="PNG", optimize=True)
        return stream.getvalue()

    def structure(self, value: int, panel_px: int = 150) -> bytes:
        """A JPEG file of the three planes through one structure's centroid, cut out round it.

        Contrast comes from the percentiles of what was cut out, so that soft tissue shows. Where
        the structure lies in pieces with nothing in the centroid's plane, the nearest plane that
        shows some of it is taken.

        Args:
            value: A label that has voxels.
            panel_px: Side of each of the three panels.

        Raises:
            GeometryError: If no voxel has the label.
        """
        return self.planes_round((value,), panel_px=panel_px)

    def planes_round(
        self, values: Sequence[int], *, fullest: Sequence[int] = (), panel_px: int = 150
    ) -> bytes:
        """A JPEG file of three planes through several structures, cut out round them.

        Args:
            values: Labels that are drawn, at least one of which has voxels.
            fullest: Where one of these has voxels the planes show most of them, else they go
                through the centroid of ``values``.
            panel_px: Side of each of the three panels.

        Raises:
            GeometryError: If no voxel has any of the labels.
        """
        counts = self._counted(values)
        if not counts[0].any():
            raise GeometryError(
                "picture",
                expected="a structure with at least one voxel",
                found=f"none of label {', '.join(map(str, values))}",
                remedy="draw structures that are present",
                code="structure-absent",
            )
        box = self._box_round(counts)
        most = self._counted(fullest)
        canvas = Image.new("RGB", (3 * panel_px + 2 * _GAP_PX, panel_px), _BACK)
        px_per_mm = panel_px / max(self._extents_mm(box))
        window = _contrast(self.data_ijk[box])
        for column, (_, along, across, up, _, _) in enumerate(_VIEWS):
            size = self._size_px(box, across, up, px_per_mm)
            index = int(most[along].argmax()) if most[along].any() else _middle(counts[along])
            panel = self._panel(along, index, box, size, window, line_px=1, only=values)
            left = column * (panel_px + _GAP_PX)
            canvas.paste(panel, (left + (panel_px - size[0]) // 2, (panel_px - size[1]) // 2))
        return _jpeg(canvas)

    def _counted(self, values: Sequence[int]) -> list[Counts]:
        """Voxels of several labels in every plane across each axis."""
        return [
            np.sum([self.counts[value][axis] for value in values], axis=0, dtype=np.int64)
            if values
            else np.zeros(extent, dtype=np.int64)
            for axis, extent in enumerate(self.data_ijk.shape)
        ]

    def heat_slice(
        self, entropy_ijk: Pixels | None, axis: int, index: int, panel_px: int = 260
    ) -> bytes:
        """A JPEG file of one slice with white outlines and, over it, entropy as heat.

        It is cut out round the segmentation, which its contrast is taken from.

        Args:
            entropy_ijk: ``(i, j, k)`` uint8 on the grid of the image as it was handed in; None
                draws the structures in their colours alone.
            axis: Voxel axis of that grid across which the slice lies.
            index: Index of the slice on that axis.
            panel_px: Longer side of the picture.

        Raises:
            ShapeError: If the entropy has other extents than the image.
        """
        along = self.to_ras.source_axes.index(axis)
        extent = self.data_ijk.shape[along]
        turned = extent - 1 - index if self.to_ras.flipped[along] else index
        turned_entropy = None
        if entropy_ijk is not None:
            turned_entropy = self.to_ras.turn_array(entropy_ijk)
            if turned_entropy.shape != self.data_ijk.shape:
                raise ShapeError(
                    "entropy",
                    expected="the image's extents",
                    found=f"shape {entropy_ijk.shape}",
                    remedy="bring the entropy to the image's grid first",
                    code="entropy-shape",
                )
        whole = [np.ones(extent, dtype=np.int64) for extent in self.data_ijk.shape]
        filled = [np.sum([c[a] for c in self.counts.values()], axis=0) for a in range(3)]
        box = self._box_round(filled if filled[0].any() else whole)
        _, _, across, up, _, _ = next(view for view in _VIEWS if view[1] == along)
        sides_mm = self._extents_mm(box)
        size = self._size_px(box, across, up, panel_px / max(sides_mm[across], sides_mm[up]))
        window = _contrast(self.data_ijk[box])
        return _jpeg(
            self._panel(along, turned, box, size, window, line_px=1, heat_ijk=turned_entropy)
        )

    def view_name(self, axis: int) -> str:
        """Name of the planes across a voxel axis of the grid as handed in, such as ``axial``."""
        along = self.to_ras.source_axes.index(axis)
        return next(view[0] for view in _VIEWS if view[1] == along)

    def _extents_mm(self, box: tuple[slice, ...]) -> list[float]:
        return [(cut.stop - cut.start) * mm for cut, mm in zip(box, self.spacing_mm, strict=True)]

    def _size_px(
        self, box: tuple[slice, ...], across: int, up: int, px_per_mm: float
    ) -> tuple[int, int]:
        sides_mm = self._extents_mm(box)
        return (
            max(1, round(sides_mm[across] * px_per_mm)),
            max(1, round(sides_mm[up] * px_per_mm)),
        )

    def _box_round(self, counts: tuple[Counts, ...] | list[Counts]) -> tuple[slice, ...]:
        """The extent of what was counted, a quarter more (at least 12 mm) on every side."""
        box = []
        for count, step, extent in zip(counts, self.spacing_mm, self.data_ijk.shape, strict=True):
            filled = np.flatnonzero(count)
            first, last = int(filled[0]), int(filled[-1]) + 1
            room = math.ceil(max((last - first) / 4, _SURROUND_MM / step))
            box.append(slice(max(0, first - room), min(extent, last + room)))
        return tuple(box)

    def _panel(
        self,
        along: int,
        index: int,
        box: tuple[slice, ...],
        size: tuple[int, int],
        window: tuple[float, float],
        *,
        line_px: int,
        only: Sequence[int] | None = None,
        heat_ijk: Pixels | None = None,
    ) -> Image.Image:
        low, high = window
        data = _plane(self.data_ijk, along, index, box).astype(np.float32)
        data = np.nan_to_num(data, nan=low, posinf=high, neginf=low)
        shade = np.clip((data - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        grey = Image.fromarray(shade).resize(size, Image.Resampling.BICUBIC)
        pixels = np.repeat(np.asarray(grey)[..., None], 3, axis=2).astype(np.float32)
        mask = _plane(self.label_ijk, along, index, box).astype(np.int32)
        if only is not None:
            mask[~np.isin(mask, only)] = 0
        present = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        colours = np.zeros((max(label.value for label in self.labels) + 1, 3), dtype=np.float32)
        for label in self.labels:
            colours[label.value] = label.rgb
        inside, edge = present != 0, _edges(present, line_px)
        if heat_ijk is None:
            pixels[inside] = 0.75 * pixels[inside] + 0.25 * colours[present[inside]]
        else:
            shares = _plane(heat_ijk, along, index, box)
            heat = np.asarray(Image.fromarray(shares).resize(size, Image.Resampling.BILINEAR))
            opaque = np.minimum(heat[..., None] / 160.0, 0.85).astype(np.float32)
            pixels = pixels * (1 - opaque) + _heat_colours()[heat] * opaque
        pixels[edge] = colours[present[edge]] if heat_ijk is None else _TEXT
        return Image.fromarray(pixels.astype(np.uint8))

    def _legend(self, draw: ImageDraw.ImageDraw, font: Font, top_px: int, width_px: int) -> None:
        """One line of structures: all, else the largest and how many more have voxels."""
        texts = {
            label: f"{label.name}  {self.volume_ml(label.value):.2f} ml" for label in self.labels
        }
        rooms = {label: 44 + draw.textlength(text, font) for label, text in texts.items()}
        order = list(texts)
        if _MARGIN_PX + sum(rooms.values()) - 24 > width_px - _MARGIN_PX:
            order = [label for label in order if self.counts[label.value][0].any()] or order
            order.sort(key=lambda label: -self.volume_ml(label.value))
        at, top = float(_MARGIN_PX), top_px + 6
        for number, label in enumerate(order):
            left_out = f"… and {len(order) - number - 1} more"
            tail = draw.textlength(left_out, font) if number + 1 < len(order) else -24
            if at + rooms[label] + tail > width_px - _MARGIN_PX:
                draw.text((at, top), f"… and {len(order) - number} more", _TEXT, font)
                return
            draw.rectangle((at, top + 2, at + 12, top + 14), fill=label.rgb)
            draw.text((at + 20, top), texts[label], _TEXT, font)
            at += rooms[label]


def _contrast(data_ijk: npt.NDArray[Any]) -> tuple[float, float]:
    """0.5th and 99.5th percentile of at most about a million finite voxels, evenly spread."""
    steps = [1, 1, 1]
    while (
        math.prod(-(-n // s) for n, s in zip(data_ijk.shape, steps, strict=True)) > _SAMPLE_VOXELS
    ):
        left = [n / s for n, s in zip(data_ijk.shape, steps, strict=True)]
        steps[left.index(max(left))] += 1
    sample = data_ijk[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [0.5, 99.5])
    return float(low), float(high)


def _plane_counts(
    label_ijk: npt.NDArray[Any], values: tuple[int, ...]
) -> dict[int, tuple[Counts, Counts, Counts]]:
    outer = int(np.argmax(np.abs(label_ijk.strides)))
    turned = np.moveaxis(label_ijk, outer, 0)
    _, rows, columns = turned.shape
    number = len(values)
    place = np.zeros(max(values) + 1, dtype=np.int64)
    place[list(values)] = np.arange(number)
    counts = [np.zeros((number, extent), dtype=np.int64) for extent in turned.shape]
    for index, plane in enumerate(turned):
        row, column = np.nonzero(plane)
        if row.size:
            which = place[plane[row, column]]
            counts[0][:, index] = np.bincount(which, minlength=number)
            for count, at, extent in ((counts[1], row, rows), (counts[2], column, columns)):
                both = np.bincount(which * extent + at, minlength=number * extent)
                np.add(count, both.reshape(number, extent), out=count)
    counts.insert(outer, counts.pop(0))
    return {value: (counts[0][n], counts[1][n], counts[2][n]) for n, value in enumerate(values)}


def _middle(count: Counts) -> int:
    """Index of the centroid, or the nearest one at which anything was counted."""
    centroid = float(np.arange(count.size) @ count) / float(count.sum())
    filled = np.flatnonzero(count)
    return int(filled[np.argmin(np.abs(filled - centroid))])


def _plane(
    array_ijk: npt.NDArray[Any], along: int, index: int, box: tuple[slice, ...]
) -> npt.NDArray[Any]:
    """One plane as it is shown: R or A on the left, A or S on top."""
    place: list[slice | int] = list(box)
    place[along] = index
    return np.ascontiguousarray(np.flip(array_ijk[tuple(place)].T, axis=(0, 1)))


def _edges(present: npt.NDArray[Any], line_px: int) -> npt.NDArray[np.bool_]:
    """Pixels of a label that have another label, or none, within ``line_px`` across or down."""
    padded = np.pad(present, line_px)
    inner = (slice(line_px, -line_px),) * 2
    edge = np.zeros(present.shape, dtype=bool)
    for shift in (*range(-line_px, 0), *range(1, line_px + 1)):
        for axis in (0, 1):
            edge |= np.roll(padded, shift, axis=axis)[inner] != present
    return np.asarray(edge & (present != 0))


def _heat_colours() -> npt.NDArray[np.float32]:
    stops = [stop for stop, _ in HEAT_STOPS]
    levels = [np.interp(np.arange(256), stops, [rgb[n] for _, rgb in HEAT_STOPS]) for n in range(3)]
    return np.stack(levels, axis=1).astype(np.float32)


def _letters(
    draw: ImageDraw.ImageDraw,
    font: Font,
    corner: tuple[int, int],
    at: tuple[int, int],
    size: tuple[int, int],
    texts: tuple[str, str, str],
) -> None:
    """Name and letters of a panel, inside it where it is large enough, else beside it."""
    name, left, top = texts
    line = 18
    low, narrow = size[1] < 4 * line, size[0] < 4 * line
    under = at[1] + size[1] + (4 if low else -line)
    for text, place in (
        (left, (at[0] + (-14 if narrow else 4), at[1] + size[1] // 2 - 8)),
        (top, (at[0] + size[0] // 2 - 4, at[1] + (-line if low else 2))),
        (name, (corner[0] + 4 if narrow else at[0] + 4, under)),
    ):
        draw.text(place, text, _TEXT, font, stroke_width=2, stroke_fill=_BACK)


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85, subsampling=0, optimize=True)
    return stream.getvalue()
