"""Where two label maps differ, as an image layer: labels could be sent or edited by mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COLOURS", "DIFFERENCE_KEY", "difference_settings"]

DIFFERENCE_KEY = "medseg_difference"
"""In the metadata of such a layer."""

COLOURS = {1: (0.15, 0.85, 0.95), 2: (0.95, 0.25, 0.75), 3: (0.98, 0.85, 0.2)}
"""Only in the first map, only in the second, in both with different labels."""


def difference_settings(name: str, like: Any) -> dict[str, Any]:  # noqa: ANN401 - napari's
    """Settings of the image layer, drawn where the labels are.

    Args:
        name: Of the layer.
        like: The labels layer.
    """
    from napari.utils import Colormap  # noqa: PLC0415 - with napari

    colours: npt.NDArray[np.float64] = np.array(
        [(0, 0, 0, 0), *((*COLOURS[code], 1.0) for code in sorted(COLOURS))]
    )
    return {
        "name": name,
        "scale": like.scale,
        "translate": like.translate,
        "rotate": like.rotate,
        "shear": like.shear,
        "affine": like.affine,
        "units": like.units,
        "axis_labels": like.axis_labels,
        "metadata": {DIFFERENCE_KEY: True},
        "contrast_limits": (0.0, 3.0),
        "colormap": Colormap(
            colours,
            name="medseg difference",
            controls=[0.0, 1 / 6, 0.5, 5 / 6, 1.0],
            interpolation="zero",
        ),
        "blending": "translucent",
        "opacity": 0.8,
    }
