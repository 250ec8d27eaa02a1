"""Which windows an image can be looked at with, and how the mouse changes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.io.scan import Source
from medseg_napari._display import PRESETS, Window, modality_of, sample_of, window_of

__all__ = ["AS_OPENED", "dragged", "unit_of", "window_choices"]

AS_OPENED = "as opened"
"""The window of the header, else that of the modality, else of the percentiles."""

_PERCENTILES = ((0.5, 99.5), (2.0, 98.0), (0.0, 100.0))
_PIXELS = 200.0  # a drag of so many pixels multiplies the width by e or moves by half of it


def window_choices(data: npt.NDArray[Any], source: Source) -> Mapping[str, Window]:
    """Windows by name, the one that an image opens with first.

    CT and PET have those that radiologists use, in HU and SUV; the numbers of MR mean nothing by
    themselves, so that it and all else have percentiles of the voxels.

    Args:
        data: One channel, of any order of axes.
        source: Where it came from.
    """
    choices = {AS_OPENED: window_of(data, source)}
    modality = modality_of(data, source)
    if modality in PRESETS:
        return choices | dict(PRESETS[modality])
    sample = sample_of(data)
    for low, high in _PERCENTILES:
        name = f"{low:g} to {high:g} %" if low else "whole range"
        dark, bright = (float(value) for value in np.percentile(sample, (low, high)))
        if dark < bright:
            choices[name] = Window((dark + bright) / 2, bright - dark)
    return choices


def unit_of(data: npt.NDArray[Any], source: Source) -> str:
    """What the voxels are measured in: ``HU``, ``SUV``, or nothing that has a name."""
    return {"CT": "HU", "PT": "SUV"}.get(modality_of(data, source), "")


def dragged(window: Window, right_px: float, up_px: float) -> Window:
    """The window after a drag of the mouse from where it was pressed.

    To the right it widens, upwards its centre rises; both in proportion to the width, so that the
    same movement does the same to HU, SUV and the numbers of MR. Back where it was pressed, the
    mouse restores the window.

    Args:
        window: As it was when the button was pressed.
        right_px: Pixels to the right since then.
        up_px: Pixels upwards.
    """
    return Window(
        window.centre + window.width * up_px / (2 * _PIXELS),
        window.width * math.exp(right_px / _PIXELS),
    )
