"""A picture of a segmentation: three planes through it, outlined on the image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from medseg.core import LabelMap, Volume, reorient

__all__ = ["three_plane_png"]

Pixels = npt.NDArray[np.uint8]

_PANEL_PX = 300
_MARGIN_PX = 12
_LEGEND_PX = 30
_BACK = (18, 18, 20)
_TEXT = (235, 235, 235)


def three_plane_png(volume: Volume, labels: LabelMap, *, caption: str) -> bytes:
    """Draw the axial, coronal and sagittal plane that show most of the segmentation.

    Planes are shown as radiologists hang them: the patient's right on the left of the picture, head
    or front up. Pixels are scaled to millimetres, so that thick slices look thick.

    Args:
        volume: The image; its first channel is drawn, contrast from its 0.5th to 99.5th percentile.
        labels: On the image's grid.
        caption: One line under the panels; never patient data.

    Returns:
        A PNG file.
    """
    image = reorient(volume, "RAS")
    label_ijk = reorient(labels, "RAS").data_ijk
    data_ijk = image.data_cijk[0]
    low, high = np.percentile(data_ijk, [0.5, 99.5])
    grey_ijk = np.clip((data_ijk - low) / max(float(high - low), 1e-6) * 255, 0, 255)
    centre = _fullest_planes(label_ijk)
    spacing = image.grid.spacing_mm
    extents_mm = [extent * step for extent, step in zip(data_ijk.shape, spacing, strict=True)]
    px_per_mm = _PANEL_PX / max(extents_mm)
    colours = {label.value: label.rgb for label in labels.scheme.labels}

    # (name, axis looked along, axis to the right of the picture, axis up, letters left and top)
    views = (
        ("axial", 2, 0, 1, "R", "A"),
        ("coronal", 1, 0, 2, "R", "S"),
        ("sagittal", 0, 1, 2, "A", "S"),
    )
    width = 3 * _PANEL_PX + 4 * _MARGIN_PX
    height = _PANEL_PX + 2 * _MARGIN_PX + 2 * _LEGEND_PX
    canvas = Image.new("RGB", (width, height), _BACK)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for column, (name, along, across, up, left, top) in enumerate(views):
        # both in-plane axes are flipped: R and A lie on the left, A and S on top
        plane = np.flip(np.take(grey_ijk, centre[along], axis=along).T, axis=(0, 1))
        mask = np.flip(np.take(label_ijk, centre[along], axis=along).T, axis=(0, 1))
        size = (
            max(1, round(extents_mm[across] * px_per_mm)),
            max(1, round(extents_mm[up] * px_per_mm)),
        )
        panel = _panel(plane, mask, size, colours)
        corner = (
            _MARGIN_PX + column * (_PANEL_PX + _MARGIN_PX) + (_PANEL_PX - size[0]) // 2,
            _MARGIN_PX + (_PANEL_PX - size[1]) // 2,
        )
        canvas.paste(panel, corner)
        draw.text((corner[0] + 4, corner[1] + size[1] // 2 - 8), left, _TEXT, font)
        draw.text((corner[0] + size[0] // 2 - 4, corner[1] + 2), top, _TEXT, font)
        draw.text((corner[0] + 4, corner[1] + size[1] - 18), name, _TEXT, font)
    _legend(draw, labels, font, _PANEL_PX + 2 * _MARGIN_PX, width)
    draw.text((_MARGIN_PX, height - _LEGEND_PX + 4), caption, _TEXT, font)
    stream = io.BytesIO()
    canvas.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _fullest_planes(label_ijk: npt.NDArray[Any]) -> tuple[int, int, int]:
    inside = label_ijk != 0
    planes: list[int] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        counts = inside.sum(axis=others)
        planes.append(int(counts.argmax()) if counts.any() else label_ijk.shape[axis] // 2)
    return planes[0], planes[1], planes[2]


def _panel(
    plane: npt.NDArray[Any],
    mask: npt.NDArray[Any],
    size: tuple[int, int],
    colours: dict[int, tuple[int, int, int]],
) -> Image.Image:
    grey = Image.fromarray(plane.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.repeat(np.asarray(grey)[..., None], 3, axis=2).astype(np.float32)
    present = np.asarray(
        Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    )
    for value, rgb in colours.items():
        inside = present == value
        edge = inside & ~_eroded(inside)
        colour = np.array(rgb, dtype=np.float32)
        pixels[inside] = 0.75 * pixels[inside] + 0.25 * colour
        pixels[edge] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def _eroded(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(inside, 2)
    core = padded[2:-2, 2:-2].copy()
    for shift in (-2, -1, 1, 2):
        core &= np.roll(padded, shift, axis=0)[2:-2, 2:-2]
        core &= np.roll(padded, shift, axis=1)[2:-2, 2:-2]
    return core


def _legend(
    draw: ImageDraw.ImageDraw,
    labels: LabelMap,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top_px: int,
    width_px: int,
) -> None:
    at = float(_MARGIN_PX)
    volumes_ml = labels.volumes_ml()
    for label in labels.scheme.labels:
        text = f"{label.name}  {volumes_ml[label.name]:.2f} ml"
        room = 20 + draw.textlength(text, font) + 24
        if at + room > width_px:
            draw.text((at, top_px + 6), "...", _TEXT, font)
            return
        draw.rectangle((at, top_px + 8, at + 12, top_px + 20), fill=label.rgb)
        draw.text((at + 20, top_px + 6), text, _TEXT, font)
        at += room
