"""medseg: medical image segmentation on the original grid, verified on the way back.

Research software, not a medical device. This module exports torch-free names only; networks live in
``medseg.models``, the engine in ``medseg.inference``, training in ``medseg.training``.
"""

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    MedsegError,
    ResourceError,
    ShapeError,
)

__version__ = "0.1.0"

NOTICE = "Research software, not a medical device."

__all__ = [
    "NOTICE",
    "ConfigError",
    "FormatError",
    "GeometryError",
    "Grid",
    "LabelMap",
    "LabelScheme",
    "MedsegError",
    "ResourceError",
    "ShapeError",
    "Volume",
    "__version__",
]
