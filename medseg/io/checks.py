"""Checks that every reader makes, so that one failure has one name whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError
from medseg.io.notes import Note

__all__ = [
    "SHEAR_TOLERANCE_DEG",
    "check_file",
    "check_finite",
    "checked_grid",
    "damaged",
    "data_missing",
    "not_an_image",
    "relocated",
    "truncated",
    "unreadable",
]

SHEAR_TOLERANCE_DEG = 0.5
"""Largest deviation from a right angle between voxel axes that is read as it stands."""

_SHEAR_NOTED_DEG = 0.05


def check_file(path: Path) -> None:
    """Check that a file is there, is one, can be opened and holds something.

    Raises:
        ResourceError: ``file-missing`` or ``input-unreadable``.
        FormatError: ``file-empty``; ``not-an-image`` for a pipe, a socket or a device, of which
            reading would wait for ever.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise not_an_image(path, "a plain file", "a pipe, a socket or a device")
        with path.open("rb") as stream:
            if stream.read(1):
                return
    except FileNotFoundError as error:
        raise ResourceError(
            str(path),
            expected="an existing file",
            found="nothing of that name",
            remedy="check the path",
            code="file-missing",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    raise FormatError(
        str(path),
        expected="an image",
        found="an empty file (0 bytes)",
        remedy="copy or export it again",
        code="file-empty",
    )


def unreadable(path: Path, error: OSError) -> ResourceError:
    """The error for a file that the system does not let us read."""
    return ResourceError(
        str(path),
        expected="a readable file",
        found=error.strerror or type(error).__name__,
        remedy="check its permissions and its disk",
        code="input-unreadable",
    )


def not_an_image(path: Path, expected: str, found: str = "other content") -> FormatError:
    """The error for a file whose content is not what its name says."""
    return FormatError(
        str(path),
        expected=expected,
        found=found,
        remedy="check that the file is an image and that its name has the right ending",
        code="not-an-image",
    )


def truncated(path: Path, expected: str, found: str = "the end of the file before") -> FormatError:
    """The error for a file that ends too early."""
    return FormatError(
        str(path),
        expected=expected,
        found=found,
        remedy="copy or export it again; a transfer was probably cut off",
        code="file-truncated",
    )


def damaged(path: Path, expected: str, found: str) -> FormatError:
    """The error for a file of full length whose content is broken."""
    return FormatError(
        str(path),
        expected=expected,
        found=found,
        remedy="copy or export it again",
        code="file-damaged",
    )


def data_missing(path: Path, data_name: str) -> FormatError:
    """The error for a header whose voxels should be in another file that is not there."""
    return FormatError(
        str(path),
        expected=f"its voxels in a second file {data_name}",
        found="no such file",
        remedy="keep header and data files together",
        code="image-data-missing",
    )


def check_finite(array: npt.NDArray[Any], where: str) -> None:
    """Check that no voxel is NaN or infinite.

    Raises:
        FormatError: ``voxels-not-finite``, with the count.
    """
    if array.dtype.kind != "f":
        return
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise FormatError(
            where,
            expected="finite voxels within the range of 32-bit floats",
            found=f"{bad} of {array.size} voxels that are NaN or infinite",
            remedy="replace them first, for example by the value of the background",
            code="voxels-not-finite",
        )


def checked_grid(
    where: str,
    shape_ijk: tuple[int, int, int],
    affine_ras: npt.ArrayLike,
    *,
    sheared: bool = False,
) -> tuple[Grid, tuple[str, ...]]:
    """Build the grid of a file, naming the file in errors, and check its voxel axes.

    Axes up to 0.5 degrees off the right angle (:data:`SHEAR_TOLERANCE_DEG`) are kept as they stand,
    with a note above 0.05 degrees; rounding in headers makes hundredths.

    Args:
        where: The file, for messages.
        shape_ijk: Its extents.
        affine_ras: Its affine.
        sheared: Whether any angle is kept, as label maps of tilted series need.

    Returns:
        The grid, and notes for the log.

    Raises:
        GeometryError: ``affine-invalid``, ``grid-shape`` or ``affine-sheared``.
    """
    try:
        grid = Grid(shape_ijk, np.asarray(affine_ras, dtype=np.float64))
    except MedsegError as error:
        raise relocated(error, where) from error
    shear_deg = grid.shear_deg
    if shear_deg > SHEAR_TOLERANCE_DEG and not sheared:
        raise GeometryError(
            where,
            expected=f"voxel axes at right angles, within {SHEAR_TOLERANCE_DEG:g} degrees",
            found=f"axes {shear_deg:.2f} degrees off",
            remedy="resample the image onto a grid with right angles",
            code="affine-sheared",
        )
    if shear_deg > _SHEAR_NOTED_DEG:
        skewed = f"voxel axes are {shear_deg:.2f} degrees off the right angle; kept so"
        remedy = "nothing needs to be done: results repeat the affine"
        return grid, (Note(skewed, code="axes-skewed", remedy=remedy),)
    return grid, ()


def relocated(error: MedsegError, where: str) -> MedsegError:
    """The same error with another ``where``: a lower layer did not know the file."""
    return type(error)(
        where,
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
        code=error.code,
    )
