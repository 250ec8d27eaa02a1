"""What is to be run: a model, images of the viewer, options, a region; as the engine takes them."""

# ruff: noqa: PLC0415 - torch takes seconds to import: not before the first run

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import Volume
from medseg.errors import FormatError, GeometryError
from medseg.io.scan import DicomSource, Scan
from medseg_napari._models import FoundModel
from medseg_napari._origin import LayerOrigin

if TYPE_CHECKING:
    from medseg.inference.settings import PredictionSettings

__all__ = ["Box", "ImageInput", "Request", "RunOptions", "region_of_shapes", "scan_of"]

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and, exclusive, last voxel on three axes."""

FAST_COARSER = 1.5
"""How much coarser voxels are for the fast option."""

_SAME_GRID_MM = 0.01
_EDGE_VOX = 1e-3  # a shape on the edge of a voxel does not touch it


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One image of the viewer.

    Args:
        name: Of its layer.
        data_shown: Its voxels along I, P, L.
        origin: Where they come from.
    """

    name: str
    data_shown: npt.NDArray[Any]
    origin: LayerOrigin


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What can be chosen; the defaults are those of ``medseg predict``.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        fast: Voxels 1.5 times as large; less exact and some three times as fast.
        mirrored: Test-time augmentation along the axes that the model was trained to mirror.
        find_region: A rough look over the whole image first, then only where something was found.
        uncertainty: Whether a map of the doubt is wanted.
        max_ram_bytes: Limit for the memory of the whole viewer; None for what is free.
    """

    device: str = "auto"
    fast: bool = False
    mirrored: bool = False
    find_region: bool = False
    uncertainty: bool = False
    max_ram_bytes: int | None = None

    def settings(self) -> PredictionSettings:
        """As the engine takes them; a core is left to the viewer."""
        from medseg.inference.settings import PredictionSettings

        return PredictionSettings(
            coarser=FAST_COARSER if self.fast else 1.0,
            mirror="model" if self.mirrored else (),
            find_region=self.find_region,
            uncertainty=self.uncertainty,
            max_ram_bytes=self.max_ram_bytes,
            responsive=True,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What to run on what.

    Args:
        model: The model.
        images: One for each of its channels, in their order.
        options: How.
        region_shown: Voxels along I, P, L of the first image to look at; None for all.
    """

    model: FoundModel
    images: tuple[ImageInput, ...]
    options: RunOptions = RunOptions()
    region_shown: Box | None = None

    @property
    def origin(self) -> LayerOrigin:
        """Of the first image, on whose grid the result lies."""
        return self.images[0].origin


def scan_of(request: Request) -> Scan:
    """What the model sees, as the command line reads it.

    Raises:
        GeometryError: ``channels-grids-differ``.
        FormatError: ``voxels-not-finite``, ``image-constant``, ``layer-changed``.
    """
    from medseg.inference.api import check_voxels
    from medseg.studies.inputs import joined_channels, modality_notes

    channels = request.model.channels
    scans: dict[str, Scan] = {}
    for channel, image in zip(channels, request.images, strict=True):
        origin = image.origin
        if image.data_shown.shape != origin.shown_grid.shape_ijk:
            raise FormatError(
                image.name,
                expected=f"the {origin.shown_grid.shape_ijk} voxels that were opened",
                found=f"a layer of shape {image.data_shown.shape}",
                remedy="open the image again",
                code="layer-changed",
            )
        data_cijk = origin.original_array(image.data_shown)[None]
        scans[channel] = Scan(Volume(data_cijk, origin.grid), origin.source, origin.notes)
    _check_comparable(request.images)
    scan = joined_channels(scans)
    check_voxels(scan.volume)
    return replace(scan, notes=(*scan.notes, *modality_notes(scan, request.model.card)))


def _check_comparable(images: Sequence[ImageInput]) -> None:
    """Channels on other grids are interpolated only within one frame of reference."""
    first = images[0]
    for image in images[1:]:
        apart_mm = (
            first.origin.grid.distance_mm(image.origin.grid)
            if first.origin.grid.shape_ijk == image.origin.grid.shape_ijk
            else np.inf
        )
        if apart_mm <= _SAME_GRID_MM or _one_frame(first.origin, image.origin):
            continue
        raise GeometryError(
            image.name,
            expected=f"the grid of {first.name}, or a series of its frame of reference",
            found="another one",
            remedy="resample the images onto one grid, or choose images that belong together",
            code="channels-grids-differ",
        )


def _one_frame(one: LayerOrigin, other: LayerOrigin) -> bool:
    frames = [
        str(origin.source.datasets[0].get("FrameOfReferenceUID") or "")
        for origin in (one, other)
        if isinstance(origin.source, DicomSource)
    ]
    return len(frames) == 2 and frames[0] == frames[1] != ""


def region_of_shapes(corners_mm: Sequence[npt.NDArray[Any]], origin: LayerOrigin) -> Box | None:
    """The box of voxels along I, P, L round shapes that were drawn in the viewer.

    An axis along which all shapes lie in one slice is not limited: a rectangle on one axial slice
    reaches from head to feet, two on different slices reach from the one to the other.

    Args:
        corners_mm: For each shape its points ``(n, 3)``, layer coordinates along I, P, L.
        origin: Of the image.

    Returns:
        At least one voxel on each axis, within the image; None if there is no shape.

    Raises:
        GeometryError: ``roi`` if the shapes lie beside the image.
    """
    if not corners_mm:
        return None
    scale, translate = origin.placement()
    points = (np.concatenate([np.asarray(one)[:, -3:] for one in corners_mm]) - translate) / scale
    low, high = points.min(axis=0), points.max(axis=0)
    spans: list[tuple[int, int]] = []
    for axis, extent in enumerate(origin.shown_grid.shape_ijk):
        if high[axis] - low[axis] < 0.5:
            spans.append((0, extent))
            continue
        first = int(np.clip(np.floor(low[axis] + 0.5 + _EDGE_VOX), 0, extent))
        last = int(np.clip(np.ceil(high[axis] + 0.5 - _EDGE_VOX), 0, extent))
        if first >= last:
            raise GeometryError(
                "region of interest",
                expected="shapes that lie on the image",
                found="shapes beside it",
                remedy="draw a rectangle on the image, or take the whole image",
                code="roi",
            )
        spans.append((first, last))
    return spans[0], spans[1], spans[2]
