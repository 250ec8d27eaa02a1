"""How an image lies on its own grid and how napari shows it; the way there and back.

Convention:
    napari draws the last two axes of an array, the second last downwards and the last to the right,
    and puts a slider on the first. Arrays are therefore turned so that their axes point to I, P, L:
    axial slices stand as on a light box, front up and the patient's right on the left of the
    screen, with the slider running from the head to the feet; the other two views have the head up.
    Axes I, P, L in this order are right-handed, as are napari's in three dimensions (towards the
    viewer, down, right), so that the 3-D view is no mirror image. Layer coordinates are millimetres
    along I, P, L.

    A turn swaps and flips whole axes. No voxel is interpolated, and saving undoes it exactly.
    Oblique grids are drawn along their own axes, as acquired, with the middle of the image in its
    true place; the true affine is in :class:`LayerOrigin`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import AxisTurn, Grid, LabelScheme, axis_turn
from medseg.core.grid import FloatArray
from medseg.io.scan import Source

if TYPE_CHECKING:
    from medseg_napari._provenance import Beginning

__all__ = ["METADATA_KEY", "OBLIQUE_DEG", "LayerOrigin", "keep_in_mind", "open_images", "origin_of"]

METADATA_KEY = "medseg"
"""Where a layer's metadata keeps its :class:`LayerOrigin`."""

OBLIQUE_DEG = 0.5
"""Voxel axes further than this from the patient's axes make a grid oblique."""

_SHOWN_AS = "IPL"

_open_images: weakref.WeakSet[LayerOrigin] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LayerOrigin:
    """Where a layer comes from: what saving on the original grid needs.

    Args:
        grid: The grid as read.
        turn: From the voxel axes as read to those shown.
        source: The file or series.
        scheme: What the integers of a labels layer mean, where known.
        notes: Harmless peculiarities that the reader reports.
        beginning: The labels as they came from a model or a file; None for images.
    """

    grid: Grid
    turn: AxisTurn
    source: Source
    scheme: LabelScheme | None = None
    notes: tuple[str, ...] = ()
    beginning: Beginning | None = None

    @classmethod
    def of(
        cls,
        grid: Grid,
        source: Source,
        *,
        scheme: LabelScheme | None = None,
        notes: tuple[str, ...] = (),
        beginning: Beginning | None = None,
    ) -> LayerOrigin:
        """The origin of an image on ``grid``, turned for display."""
        return cls(grid, axis_turn(grid, _SHOWN_AS), source, scheme, notes, beginning)

    @property
    def shown_grid(self) -> Grid:
        """The grid of the array that napari holds; its axes point nearest to I, P, L."""
        return self.turn.turn_grid(self.grid)

    @property
    def oblique_deg(self) -> float:
        """Largest angle between a voxel axis and the patient axis it runs along."""
        along = np.diag(self.shown_grid.direction_ras[[2, 1, 0]])  # rows R, A, S -> S, A, R
        return float(np.degrees(np.arccos(np.clip(np.abs(along), 0.0, 1.0))).max())

    @property
    def is_oblique(self) -> bool:
        """Whether napari's axes deviate from the patient's by more than rounding."""
        return self.oblique_deg > OBLIQUE_DEG

    def shown_array(self, data_ijk: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of voxels ``(i, j, k)`` as read, turned to the axes I, P, L that napari draws."""
        return self.turn.turn_array(data_ijk)

    def original_array(self, data_shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of what napari holds (axes I, P, L), turned back to ``(i, j, k)`` as read."""
        return self.turn.inverse().turn_array(data_shown)

    def original_box(
        self, box_shown: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """A box of voxels along I, P, L, first and exclusive last, on the axes as read."""
        back = self.turn.inverse()
        spans = []
        for source, flipped in zip(back.source_axes, back.flipped, strict=True):
            first, last = box_shown[source]
            extent = self.shown_grid.shape_ijk[source]
            spans.append((extent - last, extent - first) if flipped else (first, last))
        return spans[0], spans[1], spans[2]

    def placement(self) -> tuple[FloatArray, FloatArray]:
        """Layer scale and translation.

        Returns:
            ``scale``, the spacing in mm, and ``translate``, the position of the first voxel, both
            ``(3,)`` along I, P, L. The middle of the image is in its true place.
        """
        shown = self.shown_grid
        scale_mm = np.asarray(shown.spacing_mm)
        middle_vox = (np.asarray(shown.shape_ijk) - 1) / 2
        right, front, head = shown.world_from_voxel(middle_vox)
        return scale_mm, np.array([-head, -front, -right]) - scale_mm * middle_vox

    def layer_settings(self, name: str) -> dict[str, Any]:
        """What napari needs to add a layer of this origin."""
        scale_mm, translate_mm = self.placement()
        return {
            "name": name,
            "scale": scale_mm,
            "translate": translate_mm,
            "units": ("mm", "mm", "mm"),
            "axis_labels": ("axial", "coronal", "sagittal"),
            "metadata": {METADATA_KEY: self},
        }


def origin_of(layer_settings: Mapping[str, Any]) -> LayerOrigin | None:
    """The origin that medseg left on a layer, or None for layers from elsewhere."""
    found = (layer_settings.get("metadata") or {}).get(METADATA_KEY)
    return found if isinstance(found, LayerOrigin) else None


def keep_in_mind(origin: LayerOrigin) -> LayerOrigin:
    """Remember an image for as long as a layer holds its origin; the same origin."""
    _open_images.add(origin)
    return origin


def open_images() -> tuple[LayerOrigin, ...]:
    """Origins of the images that are open: in napari's window, or in this process without one."""
    napari = sys.modules.get("napari")
    viewer = napari.current_viewer() if napari is not None else None
    if viewer is None:
        return tuple(_open_images)
    found = (origin_of({"metadata": layer.metadata}) for layer in viewer.layers)
    return tuple(origin for origin in found if origin is not None and origin in _open_images)
