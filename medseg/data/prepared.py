"""Labelled cases as training takes them: normalised, on the model's grid, in memory or a file."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import medseg
from medseg.core import LabelMap, LabelScheme, Volume, orientation, spacing
from medseg.data import case as case_reading
from medseg.data import preparation
from medseg.data.case import Case, read_labelled
from medseg.data.chunked import ChunkedFile, write_chunked
from medseg.data.preparation import ModelImage, prepare_labels
from medseg.errors import FormatError
from medseg.models.card import InputSettings
from medseg.ops import resample
from medseg.ops.kernels import numba_labels

__all__ = [
    "IGNORED_CLASS",
    "MOST_VOXELS",
    "MemoryCase",
    "Preparation",
    "PreparedCase",
    "StoredCase",
    "save_prepared",
]

MOST_VOXELS = 10_000
"""Places kept of each structure for oversampling, drawn evenly; the figure is nnU-Net's."""

IGNORED_CLASS = 255
"""Class index of voxels that nobody annotated."""

_FORMAT = 1

Labels = npt.NDArray[Any]
"""uint8, or int16 where there are more than 255 structures."""

Places = tuple[npt.NDArray[np.int32], ...]


class PreparedCase(Protocol):
    """A case from which boxes are read."""

    @property
    def id(self) -> str:
        """The case's id."""
        ...

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """Extents on the model's grid."""
        ...

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of that grid."""
        ...

    @property
    def places(self) -> Places:
        """Per structure or region ``(n, 3)`` voxels of it.

        At most :data:`MOST_VOXELS`, drawn evenly from all; none where the case does not hold it.
        """
        ...

    def box(
        self, start: Sequence[int], stop: Sequence[int]
    ) -> tuple[npt.NDArray[np.float32], Labels]:
        """A box inside the case.

        Returns:
            ``(c, i, j, k)`` intensities and ``(i, j, k)`` class indices; not to be written to.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MemoryCase:
    """A :class:`PreparedCase` whose arrays are in memory.

    Args:
        id: The case's id.
        image_cijk: Normalised intensities.
        labels_ijk: Class indices.
        spacing_mm: Of the grid.
        places: See :class:`PreparedCase`.
        about: What was found out about intensities and labels, in plain JSON types.
    """

    id: str
    image_cijk: npt.NDArray[np.float32]
    labels_ijk: Labels
    spacing_mm: tuple[float, float, float]
    places: Places
    about: dict[str, Any]

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """Extents on the model's grid."""
        i, j, k = self.labels_ijk.shape
        return i, j, k

    @property
    def bytes(self) -> int:
        """What the arrays take."""
        return self.image_cijk.nbytes + self.labels_ijk.nbytes

    def box(
        self, start: Sequence[int], stop: Sequence[int]
    ) -> tuple[npt.NDArray[np.float32], Labels]:
        """See :meth:`PreparedCase.box`."""
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return self.image_cijk[(slice(None), *cut)], self.labels_ijk[cut]


class StoredCase:
    """A :class:`PreparedCase` in a file; a box reads the chunks that it meets.

    Args:
        path: A file of :func:`save_prepared`.
        case_id: The case's id, which the file does not hold.
        key: What :meth:`Preparation.key` gave; None takes any file.

    Raises:
        FormatError: If the file is damaged or holds something else.
    """

    def __init__(self, path: Path, case_id: str, key: str | None = None) -> None:
        self.id = case_id
        self.file = ChunkedFile(path)
        self.about: dict[str, Any] = self.file.about
        if key is not None and self.about.get("key") != key:
            raise FormatError(
                str(path),
                expected="the prepared case that its name says",
                found="another one",
                remedy="delete it; it is made again from the images",
                code="cache-damaged",
            )
        i, j, k = self.file.shape("labels")
        self.shape_ijk: tuple[int, int, int] = (i, j, k)
        self.spacing_mm: tuple[float, float, float] = tuple(self.about["spacing_mm"])
        self.places: Places = tuple(
            self.file.whole(f"places {number}") for number in range(self.about["structures"])
        )

    @property
    def bytes(self) -> int:
        """What the arrays would take in memory."""
        return self.file.stored_bytes

    def box(
        self, start: Sequence[int], stop: Sequence[int]
    ) -> tuple[npt.NDArray[np.float32], Labels]:
        """See :meth:`PreparedCase.box`."""
        return self.file.box("image", start, stop), self.file.box("labels", start, stop)

    def in_memory(self) -> MemoryCase:
        """The same with its arrays in memory, every chunk checked."""
        image_cijk, labels_ijk = self.box((0, 0, 0), self.shape_ijk)
        return MemoryCase(self.id, image_cijk, labels_ijk, self.spacing_mm, self.places, self.about)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a case becomes what training takes, just as prediction prepares an image.

    Args:
        inputs: Orientation, spacing and normalisation.
        scheme: What the label values mean; value number ``n`` becomes class ``n``.
        ignore_value: Label value of voxels that nobody annotated, not in the scheme; becomes
            :data:`IGNORED_CLASS`.
        regions: Class indices of each region whose voxels are listed for oversampling; empty lists
            those of every structure.
    """

    inputs: InputSettings
    scheme: LabelScheme
    ignore_value: int | None = None
    regions: tuple[tuple[int, ...], ...] = ()

    def __call__(self, case: Case) -> MemoryCase:
        """Read and prepare one case.

        Raises:
            GeometryError: If the channels or the label map lie on different grids.
            MedsegError: As the readers of the formats.
        """
        volume, labels = self._read(case)
        image = ModelImage(volume, self.inputs)
        x_cijk = image.whole().numpy()
        labels_ijk = self._classes(prepare_labels(labels, self.inputs).numpy())
        groups = self.regions or tuple((number + 1,) for number in range(len(self.scheme.values)))
        counts, places = _places(labels_ijk, groups)
        about = {
            "intensities": [_statistics(channel) for channel in x_cijk],
            "voxels": counts,
            "source_shape_ijk": list(volume.grid.shape_ijk),
            "source_spacing_mm": [float(step) for step in volume.grid.spacing_mm],
        }
        i_mm, j_mm, k_mm = (float(step) for step in image.grid.spacing_mm)
        return MemoryCase(case.id, x_cijk, labels_ijk, (i_mm, j_mm, k_mm), places, about)

    def key(self, case: Case) -> str:
        """A name for what the case becomes: settings, files (name, size, time) and code decide it.

        Window, overlap and mirroring of the inputs have no part in it, nor have the rules by which
        series are chosen.
        """
        left_out = {"window_ijk": True, "overlap": True, "mirror_axes": True}
        inputs = self.inputs.model_dump(
            mode="json", exclude={**left_out, "channels": {"__all__": {"series"}}}
        )
        files = []
        for path in case.files:
            stat = path.stat()
            files.append([path.name, stat.st_size, stat.st_mtime_ns])
        content = {
            "inputs": inputs,
            "values": list(self.scheme.values),
            "ignored": self.ignore_value if case.ignore_value is None else case.ignore_value,
            "recode": [list(pair) for pair in case.recode],
            "regions": [list(region) for region in self.regions],
            "files": files,
            "code": _code_version(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _read(self, case: Case) -> tuple[Volume, LabelMap]:
        names = [channel.name for channel in self.inputs.channels]
        return read_labelled(case, names, self.scheme, self.ignore_value)

    def _classes(self, values_ijk: npt.NDArray[np.int32]) -> Labels:
        values, ignored = self.scheme.values, self.ignore_value
        table: Labels = np.zeros(
            max(*values, ignored or 0) + 1, np.uint8 if len(values) <= 255 else np.int16
        )
        for index, value in enumerate(values, start=1):
            table[value] = index
        if ignored is not None:
            table[ignored] = IGNORED_CLASS
        return table[values_ijk]


def save_prepared(case: MemoryCase, path: Path, key: str) -> None:
    """Write a prepared case into one file, which is whole or absent.

    Raises:
        ResourceError: If the file cannot be written.
    """
    arrays: dict[str, npt.NDArray[Any]] = {"image": case.image_cijk, "labels": case.labels_ijk}
    arrays |= {f"places {number}": one for number, one in enumerate(case.places)}
    about = {
        **case.about,
        "key": key,
        "spacing_mm": list(case.spacing_mm),
        "structures": len(case.places),
        "medseg": medseg.__version__,
    }
    write_chunked(path, arrays, about)


def _places(
    labels_ijk: Labels, groups: Sequence[Sequence[int]]
) -> tuple[list[int], tuple[npt.NDArray[np.int32], ...]]:
    """Number of voxels of each group of classes, and evenly drawn places of them."""
    foreground = np.flatnonzero(labels_ijk)
    classes = labels_ijk.reshape(-1)[foreground]
    # the same places whenever the case is prepared
    draw = np.random.default_rng(0)
    counts, found = [], []
    for group in groups:
        members = foreground[np.isin(classes, group)]
        counts.append(int(members.size))
        if members.size > MOST_VOXELS:
            members = np.sort(draw.choice(members, MOST_VOXELS, replace=False, shuffle=False))
        places = np.stack(np.unravel_index(members, labels_ijk.shape), axis=1)
        found.append(np.ascontiguousarray(places, dtype=np.int32))
    return counts, tuple(found)


def _statistics(x_ijk: npt.NDArray[np.float32]) -> dict[str, float]:
    return {
        "mean": float(x_ijk.mean(dtype=np.float64)),
        "std": float(x_ijk.std(dtype=np.float64)),
        "min": float(x_ijk.min()),
        "max": float(x_ijk.max()),
    }


@functools.cache
def _code_version() -> str:
    """A digest of the code that decides what a prepared case holds."""
    digest = hashlib.sha256(f"{_FORMAT} {medseg.__version__}".encode())
    for module in (case_reading, preparation, resample, numba_labels, orientation, spacing):
        digest.update(inspect.getsource(module).encode())
    digest.update(inspect.getsource(Preparation).encode())
    return digest.hexdigest()
