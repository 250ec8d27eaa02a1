"""Reading other people's DICOM without a stream of complaints.

Files from the field hold values that the standard does not allow, such as decimal strings of 20
characters. pydicom and highdicom report each of them through ``warnings`` and ``logging``, and the
reports quote the values, which may be a patient's name. What matters to the geometry and the voxels
is checked by ``medseg.io`` itself, so that those reports are held back here and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_dicom"]

_LOGGERS = ("pydicom", "highdicom")


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Hold back the warnings and log lines of pydicom and highdicom within the block.

    Blocks may lie within each other and in several threads at once: what is held back belongs to
    the process, so the first block begins it and the last one ends it.
    """
    _HELD.begin()
    try:
        yield
    finally:
        _HELD.end()


class _Held:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._levels: dict[str, int] = {}
        self._warnings = warnings.catch_warnings()

    def begin(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks > 1:
                return
            self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            warnings.simplefilter("ignore")

    def end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks:
                return
            self._warnings.__exit__(None, None, None)
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)


_HELD = _Held()
