"""Probabilities of every class, streamed to one compressed HDF5 file and read back in parts.

The file holds one dataset, ``probabilities``, of shape ``(n, i, j, k)`` on the grid of the image.
It is written slab by slab and read by class and box; neither side ever holds the volume. What its
attributes mean is in ``docs/probabilities.md``.

Convention:
    A chunk holds one class and is :data:`CHUNK_BYTES` at most. Along the axis of the slabs it is as
    thick as the buffer (:data:`BUFFER_BYTES`) allows for one row of chunks of all classes, but
    at most 16 voxels; across it is nearly square. Each chunk is compressed once, when its row is
    complete, and carries a Fletcher-32 checksum; the HDF5 1.10 layout adds one to the metadata.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from medseg import NOTICE, __version__
from medseg.atomic import atomic_path
from medseg.core import Grid, LabelScheme
from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError, ShapeError, one_of
from medseg.io.bids_names import bids_names
from medseg.io.checks import check_file, checked_grid, damaged, truncated, unreadable
from medseg.io.nifti import write_nifti_scaled
from medseg.io.scan import Source

__all__ = [
    "BUFFER_BYTES",
    "CHUNK_BYTES",
    "Compression",
    "Encoding",
    "ProbabilityClass",
    "ProbabilityFile",
    "ProbabilityWriter",
    "buffer_bytes",
    "chunk_extents",
    "probabilities_to_nifti",
    "read_probabilities",
    "scheme_classes",
]

CHUNK_BYTES = 1 << 20
"""Most bytes in one chunk before compression."""

BUFFER_BYTES = 32 << 20
"""Most bytes that wait for their row of chunks, unless one plane of all classes is more."""

Encoding = Literal["uint8", "float16"]
Compression = Literal["gzip", "lzf"]
Box = tuple[slice, slice, slice]
_Spans = tuple[tuple[int, int], ...]
_Read = TypeVar("_Read")

_BLOCK_BYTES = 4 << 20  # what is rounded at a time
_THICKEST = 16
_DATASET = "probabilities"
_FORMAT = "medseg-probabilities"
_FORMAT_VERSION = 1
_AXES = "class i j k"
_SCALES = {"uint8": 1.0 / 255.0, "float16": 1.0}
_SLACK = 1e-3  # what half-precision sums of probabilities may exceed 0 and 1 by
_GZIP_LEVEL = 1
_SUFFIX = ".h5"


@dataclass(frozen=True, slots=True)
class ProbabilityClass:
    """What one channel of the probabilities is about.

    Args:
        value: The label value that the class writes; 0 is background.
        name: Short name for people.
        rgb: Display colour, three integers 0 to 255.
    """

    value: int
    name: str
    rgb: tuple[int, int, int]


def scheme_classes(scheme: LabelScheme) -> tuple[ProbabilityClass, ...]:
    """The classes of a softmax network: background first, then the labels in rising order."""
    return (
        ProbabilityClass(0, "background", (0, 0, 0)),
        *(ProbabilityClass(label.value, label.name, label.rgb) for label in scheme.labels),
    )


def chunk_extents(
    class_count: int, shape_ijk: tuple[int, int, int], axis: int, encoding: Encoding
) -> tuple[int, int, int, int]:
    """Extents ``(1, i, j, k)`` of a chunk for slabs that come along ``axis``.

    Args:
        class_count: Number of classes, ``n``.
        shape_ijk: Extents of the volume.
        axis: 0, 1 or 2 for I, J, K.
        encoding: How a probability is stored.
    """
    itemsize = np.dtype(encoding).itemsize
    across = [extent for other, extent in enumerate(shape_ijk) if other != axis]
    plane_bytes = class_count * math.prod(across) * itemsize
    thickness = max(1, min(_THICKEST, shape_ijk[axis], BUFFER_BYTES // plane_bytes))
    room = CHUNK_BYTES // (thickness * itemsize)
    short = min(*across, math.isqrt(room))
    long = room // short
    extents = [_even(extent, short if extent == min(across) else long) for extent in across]
    extents.insert(axis, thickness)
    return (1, extents[0], extents[1], extents[2])


def buffer_bytes(
    class_count: int, shape_ijk: tuple[int, int, int], axis: int, encoding: Encoding
) -> int:
    """Bytes that a writer holds until a row of chunks is complete, for a memory plan.

    Beyond these it needs twice 4 MiB, or two float32 planes of one class if they are more, and one
    row of chunks of one class.

    Args:
        class_count: Number of classes, ``n``.
        shape_ijk: Extents of the volume.
        axis: 0, 1 or 2 for I, J, K: along which slabs come.
        encoding: How a probability is stored.
    """
    thickness = chunk_extents(class_count, shape_ijk, axis, encoding)[1 + axis]
    across = math.prod(shape_ijk) // shape_ijk[axis]
    return class_count * thickness * across * np.dtype(encoding).itemsize


class ProbabilityWriter:
    """Streams probabilities to an HDF5 file that is either whole or absent.

    Use it as a context manager. The file gets its name when the block ends without an error and
    every voxel was written; after any error or interrupt nothing is left.

    Args:
        path: The file to be made, ``CASE_probseg.h5``; its folder must exist.
        grid: The grid of the image.
        classes: What each channel is about, ``n`` of them.
        model_name: Name of the model, kept in the file; None for none.
        model_sha256: Hash of its weights, kept in the file; None for none.
        encoding: ``uint8`` (p = value / 255, off by at most 1/510) or ``float16``.
        compression: ``gzip``, which every HDF5 library reads, or ``lzf``, which h5py alone does.

    Raises:
        FormatError: ``output-suffix`` if the name does not end in ``.h5``.
        ConfigError: ``probability-encoding`` or ``probability-classes``.
        ResourceError: As the block is entered or left, ``output-unwritable`` or ``disk-full``.
        ShapeError: As the block is left, ``slabs-missing``.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        classes: Sequence[ProbabilityClass],
        *,
        model_name: str | None = None,
        model_sha256: str | None = None,
        encoding: Encoding = "uint8",
        compression: Compression = "gzip",
    ) -> None:
        if path.suffix != _SUFFIX:
            raise FormatError(
                str(path),
                expected=f"a name that ends in {_SUFFIX}",
                found=f"the ending {path.suffix or 'none'}",
                remedy="rename the output",
                code="output-suffix",
            )
        for choice, choices in ((encoding, _SCALES), (compression, ("gzip", "lzf"))):
            if choice not in choices:
                raise ConfigError(
                    str(path),
                    expected=one_of(choice, choices),
                    found=repr(choice),
                    remedy="choose how probabilities are stored",
                    code="probability-encoding",
                )
        if not classes:
            raise ConfigError(
                str(path),
                expected="at least one class",
                found="none",
                remedy="name the channels of the probabilities",
                code="probability-classes",
            )
        self.path = path
        self.grid = grid
        self.classes = tuple(classes)
        self.encoding = encoding
        self.compression = compression
        self._model = {"model_name": model_name, "model_sha256": model_sha256}
        self._stack = ExitStack()
        self._raw: _GuardedFile | None = None
        self._file: Any = None
        self._dataset: Any = None
        self._axis = 0
        self._runs: list[_Spans] = []  # boxes written or buffered; the last one may grow
        self._buffered = 0
        self._row_nijk: npt.NDArray[Any] = np.empty((0, 0, 0, 0), dtype=encoding)

    def __enter__(self) -> Self:
        """Make the temporary file."""
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            stack.enter_context(self._opened(temporary))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file and give it its name, or remove it."""
        self._stack.__exit__(kind, error, trace)

    def write_slab(
        self, axis: int, first: int, probabilities_nijk: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Take the next slab.

        Args:
            axis: 0, 1 or 2 for I, J, K; the same for all slabs of a file.
            first: Index along ``axis`` of the slab's first plane: where the last slab ended.
            probabilities_nijk: ``(n, i, j, k)``, floats from 0 to 1, up to 0.001 of rounding aside,
                which is clipped. The extent along ``axis`` is the thickness, 1 or more; the others
                are the volume's.

        Raises:
            ShapeError: ``slab-shape``, or ``slab-order`` if a plane is left out or comes twice.
            FormatError: ``probability-values`` if one is NaN or outside 0 to 1.
            OSError: If the disk refuses; a ResourceError is made of it as the block is left.
        """
        extents = list(self.grid.shape_ijk)
        if axis in (0, 1, 2):
            position = self._runs[-1][axis][1] if self._runs else 0
            if self._dataset is not None and axis != self._axis:
                raise self._order_error(f"slabs along axis {self._axis}, as before", f"axis {axis}")
            if first != position:
                raise self._order_error(
                    f"a slab that begins at plane {position}", f"one that begins at {first}"
                )
            extents[axis] -= first
        corner = [0, 0, 0]
        if axis in (0, 1, 2):
            corner[axis] = first
        self._check_shape(axis, extents, probabilities_nijk)
        self.write_box(axis, (corner[0], corner[1], corner[2]), probabilities_nijk)

    def write_box(
        self,
        axis: int,
        corner_ijk: tuple[int, int, int],
        probabilities_nijk: npt.NDArray[np.floating[Any]],
    ) -> None:
        """Take a box of the volume, for when memory is too short for whole planes.

        Boxes may come in any order, but chunks are compressed once only where boxes that are alike
        across ``axis`` follow each other along it and end where chunks end.

        Args:
            axis: 0, 1 or 2 for I, J, K; the same for all boxes of a file.
            corner_ijk: The box's first voxel.
            probabilities_nijk: As for :meth:`write_slab`, of any extents that lie in the volume.

        Raises:
            ShapeError: ``slab-shape``, or ``slab-order`` if a voxel comes twice.
            FormatError, OSError: As :meth:`write_slab`.
        """
        if self._raw is None:
            raise ShapeError(
                str(self.path),
                expected="slabs inside the block of the writer",
                found="a slab outside of it",
                remedy="write them under `with ProbabilityWriter(...)`",
                code="slab-order",
            )
        if axis not in (0, 1, 2) or (self._dataset is not None and axis != self._axis):
            known = "0, 1 or 2" if self._dataset is None else f"{self._axis}, as before"
            raise self._order_error(f"slabs along axis {known}", f"axis {axis}")
        room = [
            extent - first if 0 <= first < extent else 0
            for first, extent in zip(corner_ijk, self.grid.shape_ijk, strict=True)
        ]
        self._check_shape(None, room, probabilities_nijk)
        spans = tuple(
            (first, first + extent)
            for first, extent in zip(corner_ijk, probabilities_nijk.shape[1:], strict=True)
        )
        if any(_overlap(spans, run) for run in self._runs):
            raise self._order_error("every voxel once", "a box with voxels that were there before")
        if self._dataset is None:
            self._axis = axis
            self._dataset = self._make_dataset()
        self._begin_or_go_on(self._raw, spans)
        thickness = self._row_nijk.shape[1 + axis]
        before = (slice(None),) * axis
        plane_bytes = (
            4 * math.prod(probabilities_nijk.shape[1:]) // probabilities_nijk.shape[1 + axis]
        )
        at, end, first = 0, probabilities_nijk.shape[1 + axis], corner_ijk[axis]
        while at < end:
            # up to where a chunk ends
            left = thickness - (first + at) % thickness
            count = min(left, end - at, max(1, _BLOCK_BYTES // plane_bytes))
            here = (*before, slice(at, at + count))
            there = (*before, slice(self._buffered, self._buffered + count))
            for number, volume_ijk in enumerate(probabilities_nijk):
                self._row_nijk[number][there] = self._encoded(volume_ijk[here], first + at)
            self._buffered += count
            at += count
            self._runs[-1] = _with_end(self._runs[-1], axis, first + at)
            if count == left or first + at == self.grid.shape_ijk[axis]:
                self._flush_row(self._raw)

    def _begin_or_go_on(self, raw: _GuardedFile, spans: _Spans) -> None:
        """Let the last run grow by a box that follows it; else begin another with its own row."""
        axis = self._axis
        begin = spans[axis][0]
        if self._runs:
            run = self._runs[-1]
            alike = all(run[other] == spans[other] for other in range(3) if other != axis)
            if alike and run[axis][1] == begin:
                return
            self._flush_row(raw)
        self._runs.append(_with_end(spans, axis, begin))
        row = [len(self.classes), *(last - first for first, last in spans)]
        row[1 + axis] = self._dataset.chunks[1 + axis]
        self._row_nijk = np.empty(row, dtype=self.encoding)

    def _check_shape(
        self, axis: int | None, room: Sequence[int], slab: npt.NDArray[np.floating[Any]]
    ) -> None:
        """Refuse other than floats of all classes that fill ``room``, or part of it along ``axis``;
        without an axis, along each.
        """  # noqa: D205 - one sentence
        wanted = [
            f"1 to {extent}" if axis in (None, place) else str(extent)
            for place, extent in enumerate(room)
        ]
        fits = (
            slab.ndim == 4
            and slab.shape[0] == len(self.classes)
            and all(
                1 <= extent <= most if axis in (None, place) else extent == most
                for place, (extent, most) in enumerate(zip(slab.shape[1:], room, strict=True))
            )
        )
        if not fits or slab.dtype.kind != "f":
            raise ShapeError(
                str(self.path),
                expected=f"floats of shape ({', '.join([str(len(self.classes)), *wanted])})",
                found=f"type {slab.dtype} of shape {slab.shape}",
                remedy="give the probabilities of all classes on the grid of the image",
                code="slab-shape",
            )

    def _order_error(self, expected: str, found: str) -> ShapeError:
        return ShapeError(
            str(self.path),
            expected=expected,
            found=found,
            remedy="write every plane once, in order, along one axis",
            code="slab-order",
        )

    def _encoded(self, block_ijk: npt.NDArray[np.floating[Any]], first: int) -> npt.NDArray[Any]:
        lowest, highest = float(block_ijk.min()), float(block_ijk.max())
        if not (lowest >= -_SLACK and highest <= 1.0 + _SLACK):  # a NaN fails both
            raise FormatError(
                str(self.path),
                expected="probabilities from 0 to 1",
                found=f"{lowest:g} to {highest:g} in planes from {first}",
                remedy="give the softmax or sigmoid of the network's answer, if that is finite",
                code="probability-values",
            )
        clipped = np.clip(block_ijk, 0.0, 1.0, dtype=np.float32)
        if self.encoding == "uint8":
            clipped *= 255.0
            np.rint(clipped, out=clipped)
        stored: npt.NDArray[Any] = clipped.astype(self.encoding)
        return stored

    def _make_dataset(self) -> Any:  # noqa: ANN401 - h5py is untyped
        count, shape_ijk = len(self.classes), self.grid.shape_ijk
        chunks = chunk_extents(count, shape_ijk, self._axis, self.encoding)
        dataset = self._file.create_dataset(
            _DATASET,
            shape=(count, *shape_ijk),
            dtype=np.dtype(self.encoding).newbyteorder("<"),
            chunks=chunks,
            compression=self.compression,
            compression_opts=_GZIP_LEVEL if self.compression == "gzip" else None,
            shuffle=True,
            fletcher32=True,
        )
        for name, value in self._attributes().items():
            dataset.attrs[name] = value
        return dataset

    def _attributes(self) -> dict[str, Any]:
        stated = {name: text for name, text in self._model.items() if text}
        return {
            "format": _text([_FORMAT])[0],
            "format_version": np.int32(_FORMAT_VERSION),
            "axes": _text([_AXES])[0],
            "scale": np.float64(_SCALES[self.encoding]),
            "affine_ras": self.grid.affine_ras,
            "spacing_mm": np.asarray(self.grid.spacing_mm),
            "label_values": np.asarray([one.value for one in self.classes], dtype=np.int32),
            "label_names": _text([one.name for one in self.classes]),
            "label_rgb": np.asarray([one.rgb for one in self.classes], dtype=np.uint8),
            **{name: _text([text])[0] for name, text in stated.items()},
            "medseg_version": _text([__version__])[0],
            "notice": _text([NOTICE])[0],
        }

    def _flush_row(self, raw: _GuardedFile) -> None:
        if not self._buffered:
            return
        spans = self._runs[-1]
        end = spans[self._axis][1]
        where = [slice(*span) for span in spans]
        where[self._axis] = slice(end - self._buffered, end)
        before = (slice(None),) * self._axis
        for number, row_ijk in enumerate(self._row_nijk):
            self._dataset[(number, *where)] = row_ijk[(*before, slice(self._buffered))]
            raw.check()
        self._buffered = 0

    @contextmanager
    def _opened(self, temporary: Path) -> Iterator[None]:
        with _GuardedFile(str(temporary), "x+") as raw:
            # no chunk cache: a row is written whole, and is not read again
            self._file = h5py.File(raw, "w", libver=("v110", "v110"), rdcc_nbytes=0)
            self._raw = raw
            try:
                yield
                self._check_complete(raw)
            except BaseException as error:
                raw.failure = raw.failure or error
                raise
            finally:
                self._raw, self._dataset = None, None
                with suppress(OSError, RuntimeError) if raw.failure else nullcontext():
                    self._file.close()
            raw.check()

    def _check_complete(self, raw: _GuardedFile) -> None:
        if self._dataset is not None:
            self._flush_row(raw)
        done = sum(math.prod(last - first for first, last in run) for run in self._runs)
        whole = math.prod(self.grid.shape_ijk)
        if done < whole:
            plane = whole // self.grid.shape_ijk[self._axis]
            raise ShapeError(
                str(self.path),
                expected="slabs that fill the volume",
                found=(
                    f"{done // plane} of {self.grid.shape_ijk[self._axis]} planes"
                    if done % plane == 0
                    else f"{done} of {whole} voxels"
                )
                if done
                else "none",
                remedy="write the rest, or leave the block by the error that stopped the run",
                code="slabs-missing",
            )


def _overlap(one: _Spans, other: _Spans) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def _with_end(spans: _Spans, axis: int, end: int) -> _Spans:
    return (*spans[:axis], (spans[axis][0], end), *spans[axis + 1 :])


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilityFile:
    """A file of probabilities that was looked into, but not read; see :func:`read_probabilities`.

    It holds no open file, so it may be kept, and handed to other threads and processes.

    Args:
        path: The file.
        grid: Where the voxels are.
        classes: What each channel is about, ``n`` of them.
        encoding: How a probability is stored.
        scale: Stored value to probability.
        chunk_nijk: Extents of the parts that are decompressed as a whole.
        model_name: Name of the model, None if the file does not say.
        model_sha256: Hash of its weights, None if the file does not say.
        medseg_version: What wrote it.
    """

    path: Path
    grid: Grid
    classes: tuple[ProbabilityClass, ...]
    encoding: Encoding
    scale: float
    chunk_nijk: tuple[int, int, int, int]
    model_name: str | None
    model_sha256: str | None
    medseg_version: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the channels."""
        return tuple(one.name for one in self.classes)

    @property
    def shape_nijk(self) -> tuple[int, int, int, int]:
        """Number of classes and extents of the volume."""
        return (len(self.classes), *self.grid.shape_ijk)

    def read_class(self, which: int | str, box_ijk: Box | None = None) -> npt.NDArray[np.float32]:
        """The probabilities of one class, ``(i, j, k)``.

        Args:
            which: Number of the channel from 0, or the name of the class.
            box_ijk: Three slices without a step; None for the whole volume.

        Raises:
            ConfigError: ``probability-class`` if there is no such class, or two of that name.
            ShapeError: ``probability-box`` if a slice has a step.
            FormatError: ``file-damaged`` or ``file-truncated``.
            ResourceError: ``file-missing`` or ``input-unreadable``.
        """
        return self._decoded(self.read_stored(which, box_ijk))

    def read_box(self, box_ijk: Box) -> npt.NDArray[np.float32]:
        """The probabilities of all classes in a box, ``(n, i, j, k)``.

        Args:
            box_ijk: Three slices without a step.

        Raises:
            MedsegError: As :meth:`read_class`.
        """
        return self._decoded(self._read((slice(None), *self._checked(box_ijk))))

    def read_stored(self, which: int | str, box_ijk: Box | None = None) -> npt.NDArray[Any]:
        """As :meth:`read_class`, but the stored uint8 or float16 values, not yet scaled."""
        return self._read((self._number(which), *self._checked(box_ijk)))

    def _decoded(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = stored.astype(np.float32)
        values *= np.float32(self.scale)
        return values

    def _number(self, which: int | str) -> int:
        numbers = [which] if isinstance(which, int) else []
        if isinstance(which, str):
            numbers = [number for number, name in enumerate(self.names) if name == which]
        if len(numbers) == 1 and 0 <= numbers[0] < len(self.classes):
            return numbers[0]
        raise ConfigError(
            str(self.path),
            expected=one_of(str(which), self.names) + f", or 0 to {len(self.classes) - 1}",
            found=f"{which!r}" + (f", {len(numbers)} times" if len(numbers) > 1 else ""),
            remedy="name a class of the file, or give its number",
            code="probability-class",
        )

    def _checked(self, box_ijk: Box | None) -> Box:
        box = box_ijk or (slice(None), slice(None), slice(None))
        if len(box) == 3 and all(part.step in (None, 1) for part in box):
            return box
        raise ShapeError(
            str(self.path),
            expected="three slices without a step",
            found=f"{box}",
            remedy="read the box and thin it out afterwards",
            code="probability-box",
        )

    def _read(self, selection: tuple[int | slice, ...]) -> npt.NDArray[Any]:
        return _with_file(self.path, lambda file: np.asarray(file[_DATASET][selection]))


def read_probabilities(path: Path) -> ProbabilityFile:
    """Look into a file of :class:`ProbabilityWriter`; voxels are read later, by class and box.

    Raises:
        ResourceError: ``file-missing`` or ``input-unreadable``.
        FormatError: ``file-empty``, ``file-truncated``, ``file-damaged``; ``probabilities-format``
            if it is another kind of file, or of a later version.
        GeometryError: ``affine-invalid`` or ``affine-sheared``.
    """
    check_file(path)
    return _with_file(path, lambda file: _described(path, file))


def probabilities_to_nifti(
    path: Path, out_folder: Path, *, source: Source | None = None
) -> tuple[Path, ...]:
    """Write one NIfTI file per class, named as BIDS names probabilities.

    ``CASE_probseg.h5`` becomes ``CASE_label-NAME_probseg.nii.gz``, where NAME is the class's name
    without what BIDS does not allow (``left kidney``: ``LeftKidney``). Values of 8 bits stay so,
    with ``scl_slope`` 1/255; float16 becomes float32. One class is in memory at a time.

    Args:
        path: A file of :class:`ProbabilityWriter`.
        out_folder: An existing folder; none of the files may be in it.
        source: The image, whose geometry fields are then repeated bit for bit; None writes the
            grid of the probabilities.

    Returns:
        The files in the order of the classes. After an error none of them is left.

    Raises:
        ResourceError: ``output-exists``, ``output-unwritable``, ``disk-full``.
        MedsegError: As :func:`read_probabilities` and
            :func:`~medseg.io.nifti.write_nifti_scaled`.
    """
    file = read_probabilities(path)
    stem = path.name.removesuffix(_SUFFIX).removesuffix("_probseg")
    targets = [
        out_folder / f"{stem}_label-{name}_probseg.nii.gz" for name in bids_names(file.names)
    ]
    for target in targets:
        if target.exists():
            raise ResourceError(
                str(target),
                expected="a name that is still free",
                found="an existing file",
                remedy="move it away or choose another folder",
                code="output-exists",
            )
    try:
        for number, target in enumerate(targets):
            stored_ijk = file.read_stored(number)
            write_nifti_scaled(stored_ijk, file.grid, target, file.scale, source)
    except BaseException:
        for target in targets:
            target.unlink(missing_ok=True)
        raise
    return tuple(targets)


class _GuardedFile(io.FileIO):
    """A file that never refuses: it keeps the first failure and then takes writes to nowhere.

    HDF5 cannot close a file that it could not write, and the process may crash as it ends. So HDF5
    is let to end in peace; whoever called it asks for the failure afterwards.
    """

    failure: BaseException | None = None

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def write(self, content: Any, /) -> int:  # noqa: ANN401 - any buffer
        """Write all of the content; a disk that is almost full takes a part first."""
        left = memoryview(content).cast("B")
        count = left.nbytes
        try:
            while self.failure is None and left:
                left = left[super().write(left) :]
        except BaseException as error:  # an interrupt must not reach HDF5 either
            self.failure = error
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length of the file."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except BaseException as error:
            self.failure = error
        return size or 0


def _even(extent: int, largest: int) -> int:
    """The extent of parts, at most ``largest``, that cut ``extent`` most evenly."""
    return math.ceil(extent / math.ceil(extent / largest))


def _text(words: Sequence[str]) -> npt.NDArray[Any]:
    """Strings of fixed length: HDF5 keeps those of any length outside of its checksums."""
    encoded = [word.encode("utf-8") for word in words]
    kind = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
    return np.array(encoded, dtype=kind)


def _with_file(path: Path, action: Callable[[Any], _Read]) -> _Read:
    """Open a file, do something with it and say in our words what went wrong."""
    try:
        with path.open("rb"):  # for the system's own reason, which HDF5 wraps
            pass
        with h5py.File(str(path), "r", locking=False) as file:
            return action(file)
    except FileNotFoundError:
        check_file(path)
        raise
    except MedsegError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from error
        if not h5py.is_hdf5(str(path)):
            raise _not_ours(path, "other content") from error
        if "truncated" in str(error):
            raise truncated(path, "an HDF5 file of the length that it states") from error
        raise damaged(path, "intact HDF5 content", "content that cannot be decoded") from error


def _not_ours(path: Path, found: str) -> FormatError:
    return FormatError(
        str(path),
        expected=f"an HDF5 file of probabilities, version {_FORMAT_VERSION}",
        found=found,
        remedy="give a *_probseg.h5 file that medseg wrote",
        code="probabilities-format",
    )


def _described(path: Path, file: Any) -> ProbabilityFile:  # noqa: ANN401 - h5py is untyped
    if _DATASET not in file or "format" not in file[_DATASET].attrs:
        raise _not_ours(path, "another HDF5 file")
    dataset = file[_DATASET]
    attributes = dict(dataset.attrs)
    version = int(attributes["format_version"])
    if _read_text(attributes["format"]) != _FORMAT or version != _FORMAT_VERSION:
        raise _not_ours(path, f"version {version}")
    if dataset.ndim != 4 or dataset.dtype.name not in _SCALES:
        raise _not_ours(path, f"type {dataset.dtype} of shape {dataset.shape}")
    encoding: Encoding = "uint8" if dataset.dtype.name == "uint8" else "float16"
    columns = (attributes[name] for name in ("label_values", "label_names", "label_rgb"))
    classes = tuple(
        ProbabilityClass(int(value), _read_text(name), (int(rgb[0]), int(rgb[1]), int(rgb[2])))
        for value, name, rgb in zip(*columns, strict=True)
    )
    if len(classes) != dataset.shape[0]:
        raise _not_ours(path, f"{len(classes)} names for {dataset.shape[0]} classes")
    grid, _ = checked_grid(
        str(path), tuple(dataset.shape[1:]), attributes["affine_ras"], sheared=True
    )
    return ProbabilityFile(
        path=path,
        grid=grid,
        classes=classes,
        encoding=encoding,
        scale=float(attributes["scale"]),
        chunk_nijk=tuple(dataset.chunks),
        model_name=_read_text(attributes.get("model_name", b"")) or None,
        model_sha256=_read_text(attributes.get("model_sha256", b"")) or None,
        medseg_version=_read_text(attributes["medseg_version"]),
    )


def _read_text(stored: bytes) -> str:
    return bytes(stored).decode("utf-8")
