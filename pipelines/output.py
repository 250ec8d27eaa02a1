"""The folder that results go to."""

from __future__ import annotations

import secrets
from pathlib import Path

from medseg.atomic import write_bytes
from medseg.errors import ResourceError
from medseg.io.checks import relocated

__all__ = ["prepare_output"]


def prepare_output(folder: Path) -> None:
    """Make the output folder and prove that it can be written.

    Raises:
        ResourceError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            str(folder),
            expected="a folder that can be made and written",
            found=error.strerror or type(error).__name__,
            remedy="choose another output folder",
            code="output-unwritable",
        ) from error
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        write_bytes(probe, b"")
    except ResourceError as error:
        raise relocated(error, str(folder)) from error
    probe.unlink(missing_ok=True)
