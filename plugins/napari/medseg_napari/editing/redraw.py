"""Drawing anew the part of a labels layer that changed, where napari (0.9 and newer) can."""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg_napari.editing.boxes import Box

__all__ = ["redraw_box"]


def redraw_box(layer: Any, box: Box | None) -> None:  # noqa: ANN401 - napari's
    """Draw a part of a labels layer, if it is in view.

    Args:
        layer: napari's labels layer.
        box: What changed; None for anything.
    """
    if box is None or not hasattr(layer, "_accumulate_updated_slice"):
        layer.refresh()
    elif _in_view(layer, box):
        if np.shares_memory(layer.data, layer._slice.image.view):
            layer._accumulate_updated_slice(box)
            layer._partial_labels_refresh()
        else:
            layer.refresh(thumbnail=False, highlight=False, extent=False)


def _in_view(layer: Any, box: Box) -> bool:  # noqa: ANN401 - napari's
    shown = layer._get_pt_not_disp()
    return all(box[axis].start <= at < box[axis].stop for axis, at in shown.items())
