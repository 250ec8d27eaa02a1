"""Arrays in compressed chunks, in one file each, from which a box is read without the rest.

Layout: eight bytes that name the format, the chunks one after the other, an index in JSON, and a
tail with the index's place, length and checksum. Each chunk is compressed by Blosc (LZ4 over
shuffled bytes) and has its own CRC-32, checked whenever it is read. Nothing in a file is executed.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numcodecs
import numpy as np
import numpy.typing as npt

from medseg.atomic import atomic_path
from medseg.errors import FormatError

__all__ = ["CHUNK_VOX", "ChunkedFile", "write_chunked"]

CHUNK_VOX = 32
"""Extent of a chunk on each spatial axis."""

_MAGIC = b"MSEGCHK1"
_TAIL = struct.Struct("<QQL8s")
_KINDS = ("float32", "uint8", "int16", "int32")


def write_chunked(
    path: Path, arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]
) -> None:
    """Write arrays into one file, which is whole or absent.

    Args:
        path: The file; its folder must exist.
        arrays: Up to four axes each; the last three are cut into chunks, an axis before them is
            not. An array of fewer axes is one chunk.
        about: Plain JSON types, kept beside the arrays.

    Raises:
        ResourceError: If the file cannot be written.
    """
    codec = _codec()
    index: dict[str, Any] = {"about": dict(about), "arrays": {}}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC)
        place = len(_MAGIC)
        for name, array in arrays.items():
            entries = []
            for box in _boxes(array.shape):
                raw = np.ascontiguousarray(array[box])
                data = bytes(codec.encode(raw)) if raw.size else b""
                file.write(data)
                entries.append([place, len(data), zlib.crc32(data)])
                place += len(data)
            index["arrays"][name] = {
                "shape": list(array.shape),
                "kind": array.dtype.name,
                "chunks": entries,
            }
        content = json.dumps(index, separators=(",", ":")).encode()
        file.write(content)
        file.write(_TAIL.pack(place, len(content), zlib.crc32(content), _MAGIC))
        file.flush()


class ChunkedFile:
    """A file of :func:`write_chunked`.

    It is open only while something is read, so that thousands of cases need no more descriptors
    than one, and threads and forked processes may share an object.

    Args:
        path: The file.

    Attributes:
        about: What was kept beside the arrays.

    Raises:
        FormatError: If the file is missing, cut short or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            size = os.fstat(file.fileno()).st_size
            if size < len(_MAGIC) + _TAIL.size or self._bytes(file, 0, len(_MAGIC)) != _MAGIC:
                self._refuse("another kind of file or a part of one")
            tail = self._bytes(file, size - _TAIL.size, _TAIL.size)
            place, length, checksum, magic = _TAIL.unpack(tail)
            if magic != _MAGIC or place + length + _TAIL.size != size:
                self._refuse("a file that was cut short")
            content = self._bytes(file, place, length)
        if zlib.crc32(content) != checksum:
            self._refuse("an index that does not match its checksum")
        index = json.loads(content)
        self.about: dict[str, Any] = index["about"]
        self._arrays: dict[str, Any] = index["arrays"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Extents of an array."""
        return tuple(self._arrays[name]["shape"])

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays once decompressed."""
        return sum(
            math.prod(one["shape"]) * np.dtype(one["kind"]).itemsize
            for one in self._arrays.values()
        )

    def check(self) -> None:
        """Compare every chunk with its checksum; nothing is decompressed.

        Raises:
            FormatError: If one differs.
        """
        with self._open() as file:
            for array in self._arrays.values():
                for entry in array["chunks"]:
                    self._data(file, entry)

    def whole(self, name: str) -> npt.NDArray[Any]:
        """An array as it was written."""
        shape = self.shape(name)
        return self.box(name, (0,) * len(shape[-3:]), shape[-3:])

    def box(self, name: str, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[Any]:
        """A box of an array; only the chunks that it meets are read.

        Args:
            name: Which array.
            start: First voxel on each of the last three axes.
            stop: One beyond the last, inside the array.

        Returns:
            An array of its own; an axis before the last three is whole.

        Raises:
            FormatError: If a chunk does not match its checksum.
        """
        entry = self._arrays[name]
        shape, kind = tuple(entry["shape"]), np.dtype(entry["kind"])
        codec, lead = _codec(), shape[:-3] if len(shape) > 3 else ()
        spatial = shape[len(lead) :]
        counts = [max(1, math.ceil(extent / _chunk(spatial))) for extent in spatial]
        result = np.empty((*lead, *(b - a for a, b in zip(start, stop, strict=True))), dtype=kind)
        if result.size == 0:
            return result
        edge = _chunk(spatial)
        spans = [range(a // edge, (b - 1) // edge + 1) for a, b in zip(start, stop, strict=True)]
        with self._open() as file:
            for chunk in itertools.product(*spans):
                number = 0
                for count, one in zip(counts, chunk, strict=True):
                    number = number * count + one
                first = [one * edge for one in chunk]
                last = [min(f + edge, extent) for f, extent in zip(first, spatial, strict=True)]
                raw = self._raw(file, codec, entry["chunks"][number])
                extents = (*lead, *(b - a for a, b in zip(first, last, strict=True)))
                block = np.frombuffer(raw, dtype=kind).reshape(extents)
                low = [max(a, f) for a, f in zip(start, first, strict=True)]
                high = [min(b, s) for b, s in zip(stop, last, strict=True)]
                result[_slices(low, high, start)] = block[_slices(low, high, first)]
        return result

    def _open(self) -> io.FileIO:
        try:
            return io.FileIO(self.path)
        except OSError:
            self._refuse("no file that can be read")

    def _raw(self, file: io.FileIO, codec: Any, entry: Sequence[int]) -> Any:  # noqa: ANN401
        try:
            return codec.decode(self._data(file, entry))
        except RuntimeError:
            self._refuse("a chunk that cannot be decompressed")

    def _data(self, file: io.FileIO, entry: Sequence[int]) -> bytes:
        place, length, checksum = entry
        data = self._bytes(file, place, length)
        if zlib.crc32(data) != checksum:
            self._refuse("a chunk that does not match its checksum")
        return data

    def _bytes(self, file: io.FileIO, place: int, length: int) -> bytes:
        parts, wanted = [], length
        file.seek(place)
        while wanted > 0:
            part = file.read(wanted)
            if not part:
                self._refuse("a file that was cut short")
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    def _refuse(self, found: str) -> NoReturn:
        raise FormatError(
            str(self.path),
            expected="a file of prepared data as it was written",
            found=found,
            remedy="delete it; it is made again from the images",
            code="cache-damaged",
        )


def _codec() -> Any:  # noqa: ANN401 - numcodecs has no types
    return numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)


def _slices(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True)))


def _chunk(spatial: Sequence[int]) -> int:
    """Extent of the chunks; an array of less than three axes is one chunk."""
    return CHUNK_VOX if len(spatial) == 3 else max(1, *spatial)


def _boxes(shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
    spatial = shape[-3:]
    edge = _chunk(spatial)
    starts = [range(0, max(1, extent), edge) for extent in spatial]
    return [
        (..., *(slice(start, start + edge) for start in box)) for box in itertools.product(*starts)
    ]
