"""Reading other people's DICOM without a stream of complaints.

Files from the field hold values that the standard does not allow, such as decimal strings of 20
characters. pydicom and highdicom report each of them through ``warnings`` and ``logging``, and the
reports quote the values, which may be a patient's name. What matters to the geometry and the voxels
is checked by ``medseg.io`` itself, so that those reports are held back here and nowhere else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_dicom"]

_LOGGERS = ("pydicom", "highdicom")


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Hold back the warnings and log lines of pydicom and highdicom within the block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
