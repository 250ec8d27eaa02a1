"""Where measured choices of precision are kept between runs.

Whoever predicts with the same file, the command line or a viewer, computes in the same precision
and gets the same voxels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["choices_path"]


def choices_path(environ: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """The file in the user's cache folder.

    Args:
        environ: The environment's variables.
        platform: As ``sys.platform``.

    >>> choices_path({"XDG_CACHE_HOME": "/cache"}, platform="linux").as_posix()
    '/cache/medseg/numerics.json'
    """
    if platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path.home())
    elif platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "medseg" / "numerics.json"
