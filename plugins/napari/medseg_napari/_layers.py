"""From what medseg reads to napari's layer tuples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import LabelMap, LabelScheme
from medseg.core.labelmap import present_values
from medseg.io.labels import labels_from_voxels
from medseg.io.scan import Scan
from medseg_napari._display import display_settings
from medseg_napari._origin import LayerOrigin, keep_in_mind
from medseg_napari._provenance import Beginning

__all__ = [
    "DOUBT_KEY",
    "LayerData",
    "doubt_layer",
    "image_layers",
    "label_colours",
    "labels_layer",
    "layer_of_labels",
    "plain_scheme",
    "whole_values",
]

DOUBT_KEY = "medseg_doubt"
"""Where a map of the doubt keeps the origin of the result that it belongs to."""

LayerData = tuple[npt.NDArray[Any], dict[str, Any], str]
"""Array, settings, and ``image`` or ``labels``."""


def image_layers(scan: Scan, name: str) -> list[LayerData]:
    """One image layer per channel, without copying voxels that are in the machine's byte order.

    Brightness is that of the header or of the modality, see :mod:`medseg_napari._display`.
    """
    origin = keep_in_mind(LayerOrigin.of(scan.volume.grid, scan.source, notes=scan.notes))
    channels = scan.volume.channels
    layers: list[LayerData] = []
    for channel, data_ijk in zip(channels, scan.volume.data_cijk, strict=True):
        title = name if len(channels) == 1 else f"{name} {channel}"
        shown = origin.shown_array(_drawable(data_ijk))
        settings = origin.layer_settings(title) | display_settings(shown, scan.source)
        layers.append((shown, settings, "image"))
    return layers


def labels_layer(
    scan: Scan, name: str, where: str, *, scheme: LabelScheme | None = None
) -> LayerData:
    """A labels layer of type uint8 or uint16, in a copy that can be painted on.

    Args:
        scan: A label map read as an image.
        name: Of the layer.
        where: Named in errors.
        scheme: Names and colours, where known.

    Raises:
        FormatError: ``labels-not-integer`` or ``labels-range``.
        ShapeError: ``labelmap-values`` if a voxel is not in the scheme.
    """
    labels = _as_labels(scan, scheme, where)
    origin = LayerOrigin.of(
        scan.volume.grid,
        scan.source,
        scheme=scheme,
        notes=scan.notes,
        beginning=Beginning.opened(labels.data_ijk),
    )
    return layer_of_labels(labels.data_ijk, origin, name)


def layer_of_labels(data_ijk: npt.NDArray[Any], origin: LayerOrigin, name: str) -> LayerData:
    """A labels layer in the colours of its scheme; a copy where the axes had to be turned.

    Args:
        data_ijk: uint8 or uint16 on the grid of the origin, and the layer's own from now on.
        origin: With the scheme, where names and colours are known.
        name: Of the layer.
    """
    settings = origin.layer_settings(name)
    if origin.scheme is not None:
        settings["colormap"] = label_colours(origin.scheme)
    return np.ascontiguousarray(origin.shown_array(data_ijk)), settings, "labels"


def doubt_layer(doubt_shown: npt.NDArray[np.uint8], origin: LayerOrigin, name: str) -> LayerData:
    """A map of the doubt over the image: clear where the model is sure, bright where it is not.

    Args:
        doubt_shown: Along I, P, L; 255 is the largest entropy there can be.
        origin: Of the result.
        name: Of the layer.
    """
    settings = origin.layer_settings(name)
    settings["metadata"] = {DOUBT_KEY: origin}  # no image to segment
    settings |= {"contrast_limits": (0.0, 255.0), "colormap": "inferno", "blending": "additive"}
    return doubt_shown, settings, "image"


def plain_scheme(values: list[int]) -> LabelScheme:
    """A scheme for integers of which nothing is known; background may be among them."""
    names = {value: f"label {value}" for value in values if value}
    return LabelScheme.plain("labels", names or {1: "label 1"})


def _as_labels(scan: Scan, scheme: LabelScheme | None, where: str) -> LabelMap:
    if scheme is None:
        scheme = plain_scheme(whole_values(scan.volume.data_cijk[0]))
    return labels_from_voxels(scan.volume, scheme, where)


def whole_values(data: Any) -> list[int]:  # noqa: ANN401 - numpy's, or a lazy array of a layer
    """Which whole numbers from 0 to 65535, as labels may be, an array of any type holds."""
    if data.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return present_values(np.asarray(data))
    seen: set[int] = set()
    slowest = int(np.argmax(np.abs(data.strides))) if isinstance(data, np.ndarray) else 0
    for plane in np.moveaxis(data, slowest, 0):
        values = np.unique(np.asarray(plane))
        whole = (values >= 0) & (values <= 65535) & (values == np.rint(values))
        seen.update(int(value) for value in values[whole])
    return sorted(seen)


def label_colours(
    scheme: LabelScheme | None,
) -> dict[int | None, tuple[float, float, float, float]]:
    """Label colours as napari takes them; 0 is clear and unknown values are white."""
    colours: dict[int | None, tuple[float, float, float, float]] = {
        None: (1.0, 1.0, 1.0, 1.0),
        0: (0.0, 0.0, 0.0, 0.0),
    }
    for label in () if scheme is None else scheme.labels:
        red, green, blue = (level / 255 for level in label.rgb)
        colours[label.value] = (red, green, blue, 1.0)
    return colours


def _drawable(data_ijk: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in a type that the graphics library takes."""
    dtype = data_ijk.dtype.newbyteorder("=")
    return data_ijk.astype(np.float32 if dtype == np.float16 else dtype, copy=False)
