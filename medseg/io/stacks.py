"""Files that hold image and labels together, as TransUNet's preprocessing left them.

A slice is an ``.npz`` file with the arrays ``image`` and ``label``, both ``(rows, columns)``; a
volume is an HDF5 file with the same names and ``(slices, rows, columns)``. Neither says where it
lies in the patient or how large a voxel is.

Convention:
    I runs along the columns, J along the rows and K along the slices. The grid is one of voxels of
    1 mm, with columns to the patient's left, rows to the back and slices to the head, as CT images
    are shown. That is a convention of ours: the files do not say.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import FormatError
from medseg.io.checks import check_file, check_finite, damaged
from medseg.io.labels import labels_from_voxels

__all__ = ["read_slices", "read_stack", "write_slice", "write_stack"]

_LEFT_BACK_HEAD = np.diag([-1.0, -1.0, 1.0, 1.0])
_NAMES = ("image", "label")


def read_slices(
    paths: Sequence[Path], scheme: LabelScheme, *, channel: str = "image"
) -> tuple[Volume, LabelMap]:
    """Read the ``.npz`` slices of one case and stack them.

    Args:
        paths: The slices from the feet to the head.
        scheme: What the labels mean.
        channel: Name of the image's channel.

    Raises:
        FormatError: ``stack-arrays`` if a file lacks an array or its slices differ in shape,
            ``file-damaged``, ``voxels-not-finite``, ``labels-not-integer``, ``labels-range``.
        ShapeError: ``labelmap-values``.
        ResourceError: If a file is missing or cannot be read.
    """
    pairs = [_read_npz(path) for path in paths]
    for path, (image, _) in zip(paths, pairs, strict=True):
        if image.shape != pairs[0][0].shape:
            raise _wrong(path, f"a slice of {pairs[0][0].shape} as the first", f"{image.shape}")
    images, labels = (np.stack([pair[part] for pair in pairs]) for part in (0, 1))
    return _labelled(images, labels, scheme, channel, str(paths[0]))


def read_stack(
    path: Path, scheme: LabelScheme, *, channel: str = "image"
) -> tuple[Volume, LabelMap]:
    """Read a ``.npy.h5`` volume.

    Raises:
        MedsegError: As :func:`read_slices`.
    """
    import h5py  # noqa: PLC0415

    check_file(path)
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: np.asarray(file[name]) for name in _NAMES if name in file}
    except (OSError, RuntimeError) as error:
        raise damaged(path, "an intact HDF5 file", "one that cannot be read") from error
    image, label = _checked(path, arrays, rank=3)
    return _labelled(image, label, scheme, channel, str(path))


def write_slice(path: Path, image_rc: npt.NDArray[Any], label_rc: npt.NDArray[Any]) -> None:
    """Write one slice as :func:`read_slices` reads it, to a path that does not exist yet."""
    np.savez_compressed(path, image=image_rc, label=label_rc)


def write_stack(path: Path, image_src: npt.NDArray[Any], label_src: npt.NDArray[Any]) -> None:
    """Write one volume as :func:`read_stack` reads it, to a path that does not exist yet."""
    import h5py  # noqa: PLC0415

    with h5py.File(path, "w", track_order=False) as file:
        for name, array in zip(_NAMES, (image_src, label_src), strict=True):
            file.create_dataset(
                name, data=array, compression="gzip", compression_opts=4, track_times=False
            )


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    check_file(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES if name in file}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise damaged(
            path, "an intact archive of plain arrays", "one that cannot be read"
        ) from error
    return _checked(path, arrays, rank=2)


def _checked(
    path: Path, arrays: dict[str, npt.NDArray[Any]], rank: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise _wrong(path, "the arrays 'image' and 'label'", f"no {missing[0]!r}")
    image, label = (arrays[name] for name in _NAMES)
    if image.ndim != rank or image.shape != label.shape:
        raise _wrong(
            path,
            f"image and label of one shape with {rank} axes",
            f"{image.shape} and {label.shape}",
        )
    if image.dtype.kind not in "iuf" or label.dtype.kind not in "iuf":
        raise _wrong(path, "numbers", f"types {image.dtype} and {label.dtype}")
    return image, label


def _labelled(
    image_src: npt.NDArray[Any],
    label_src: npt.NDArray[Any],
    scheme: LabelScheme,
    channel: str,
    where: str,
) -> tuple[Volume, LabelMap]:
    image_ijk = image_src.transpose(2, 1, 0)
    if image_ijk.dtype.itemsize > 4:
        image_ijk = image_ijk.astype(np.float32)
    grid = Grid(image_ijk.shape, _LEFT_BACK_HEAD)
    check_finite(image_ijk, where)
    stored = Volume(label_src.transpose(2, 1, 0)[None], grid)
    check_finite(stored.data_cijk, where)
    return Volume(image_ijk[None], grid, (channel,)), labels_from_voxels(stored, scheme, where)


def _wrong(path: Path, expected: str, found: str) -> FormatError:
    return FormatError(
        str(path),
        expected=expected,
        found=found,
        remedy="make the file again from its source",
        code="stack-arrays",
    )
