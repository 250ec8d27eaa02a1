"""How bright an image is shown: the window of its header, else one that suits its modality.

Window centre and width are DICOM's (0028,1050) and (0028,1051), in units of the rescaled voxels
(PS3.3 C.11.2.1.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.io.scan import DicomSource, Source

__all__ = ["PRESETS", "Window", "display_settings", "modality_of", "sample_of", "window_of"]

_SAMPLES = 1 << 20
_LEAST_AIR, _MOST_AIR = -4000.0, -900.0  # what CT has around the patient, padding included


@dataclass(frozen=True, slots=True)
class Window:
    """A range of intensities that is spread over the greys.

    Args:
        centre: Its middle.
        width: Its length, above 0.
    """

    centre: float
    width: float

    @property
    def limits(self) -> tuple[float, float]:
        """Least and largest intensity."""
        return self.centre - self.width / 2, self.centre + self.width / 2


PRESETS: Mapping[str, Mapping[str, Window]] = {
    "CT": {
        "soft tissue": Window(40, 400),
        "lung": Window(-600, 1500),
        "bone": Window(400, 1800),
        "brain": Window(40, 80),
        "liver": Window(60, 160),
        "vessels": Window(300, 600),
    },
    "PT": {"SUV 0 to 7": Window(3.5, 7), "SUV 0 to 15": Window(7.5, 15)},
}
"""Modality to the windows that radiologists use for it; the first is the one to begin with."""


def display_settings(data: npt.NDArray[Any], source: Source) -> dict[str, Any]:
    """Contrast limits and colours of an image layer.

    Args:
        data: One channel, of any order of axes.
        source: Where it came from.
    """
    modality = modality_of(data, source)
    low, high = window_of(data, source).limits
    settings: dict[str, Any] = {"contrast_limits": (low, high)}
    if modality == "PT":
        settings["colormap"] = "gray_r"  # uptake is dark, as on paper
    return settings


def modality_of(data: npt.NDArray[Any], source: Source) -> str:
    """DICOM's modality; ``CT`` for voxels of other formats that reach down to air, else empty."""
    if isinstance(source, DicomSource):
        return str(source.datasets[0].get("Modality") or "")
    least = float(sample_of(data).min())
    return "CT" if _LEAST_AIR <= least <= _MOST_AIR else ""


def window_of(data: npt.NDArray[Any], source: Source) -> Window:
    """The window to begin with.

    It is the header's, where voxels are in the header's units; else the preset of the modality;
    else from the darkest to nearly the brightest voxels.
    """
    modality = modality_of(data, source)
    if isinstance(source, DicomSource) and modality != "PT":  # PET was turned into SUV
        told = _of_header(source)
        if told is not None:
            return told
    if modality in PRESETS:
        return next(iter(PRESETS[modality].values()))
    sample = sample_of(data)
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if not low < high:
        low, high = float(sample.min()), float(sample.max())
    if not low < high:
        high = low + 1.0
    return Window((low + high) / 2, high - low)


def _of_header(source: DicomSource) -> Window | None:
    """The window of the middle slice: of several values the first."""
    header = source.datasets[len(source.datasets) // 2]
    try:
        centre, width = (
            float(np.atleast_1d(np.asarray(header.get(name), dtype=np.float64))[0])
            for name in ("WindowCenter", "WindowWidth")
        )
    except Exception:  # absent, empty or no number
        return None
    usable = math.isfinite(centre) and math.isfinite(width) and width >= 1
    return Window(centre, width) if usable else None


def sample_of(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Finite voxels, about a million of them at the most, spread over the image."""
    step = max(1, math.ceil((data.size / _SAMPLES) ** (1 / max(1, data.ndim))))
    values = data[(slice(step // 2, None, step),) * data.ndim]
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return values if values.size else np.zeros(1)
