"""Labels layers as what can be compared: voxels, grid, names; and how the labels came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.core import Grid, LabelScheme
from medseg.errors import ShapeError
from medseg.metrics.case import check_one_grid
from medseg_napari._origin import LayerOrigin, origin_of
from medseg_napari.viewing.comparison import Side

__all__ = ["Chosen", "check_same_grid", "drawn_grid", "scheme_of"]

_TOLERANCE_MM = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A labels layer that takes part in a comparison.

    Args:
        layer: napari's labels layer.
        as_it_came: Whether the labels are meant as they came from a model or a file, before they
            were edited.
    """

    layer: Any
    as_it_came: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.layer.name} as it came" if self.as_it_came else str(self.layer.name)

    @property
    def origin(self) -> LayerOrigin | None:
        """What medseg left on the layer."""
        return origin_of({"metadata": self.layer.metadata})

    def maker(self, grid: Grid) -> Callable[[], Side]:
        """What makes the side, in any thread: labels as they came are decompressed for it."""
        name, data, scheme, origin = self.name, self.layer.data, self.scheme, self.origin

        def make() -> Side:
            if not self.as_it_came or origin is None or origin.beginning is None:
                return Side(name, data, grid, scheme)
            came = origin.shown_array(origin.beginning.labels.labels())
            return Side(name, came, grid, scheme)

        return make

    @property
    def scheme(self) -> LabelScheme | None:
        """Names and colours, where known."""
        return scheme_of(self.layer)


def scheme_of(layer: Any) -> LabelScheme | None:  # noqa: ANN401 - napari's
    """The names of a layer's labels, where known."""
    origin = origin_of({"metadata": layer.metadata})
    return None if origin is None else origin.scheme


def check_same_grid(first: Chosen, second: Chosen) -> tuple[Grid, Grid]:
    """The grids of two layers, which must be one.

    Where both were opened with medseg it is their true grids that count; else how napari draws
    them, as New Labels takes over from an image.

    Raises:
        GeometryError: ``grid-shape-differs`` or ``grids-differ``.
        ShapeError: ``labelmap-shape`` if a layer has not three axes.
    """
    for one in (first, second):
        if one.layer.data.ndim != 3:
            raise ShapeError(
                one.name,
                expected="labels with three axes",
                found=f"{one.layer.data.ndim}",
                remedy="choose labels on a volume",
                code="labelmap-shape",
            )
    origins = [one.origin for one in (first, second)]
    if all(origin is not None for origin in origins):
        grids = [origin.shown_grid for origin in origins if origin is not None]
    else:
        grids = [drawn_grid(one.layer) for one in (first, second)]
    check_one_grid(grids[0], grids[1], _TOLERANCE_MM)
    return grids[0], grids[1]


def drawn_grid(layer: Any) -> Grid:  # noqa: ANN401 - napari's
    """The grid on which napari draws a layer whose axes are I, P, L."""
    start = np.asarray(layer.data_to_world((0.0, 0.0, 0.0)))
    steps = [np.asarray(layer.data_to_world(one)) - start for one in np.eye(3)]
    affine = np.eye(4)
    # world axes I, P, L against R, A, S
    affine[:3, :3] = -np.stack(steps, axis=1)[::-1]
    affine[:3, 3] = -start[::-1]
    return Grid(tuple(int(extent) for extent in layer.data.shape), affine)  # type: ignore[arg-type]
