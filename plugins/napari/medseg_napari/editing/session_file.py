"""The files of an autosave: labels in compressed slabs, and a journal of what was written since.

A session is a folder::

    session.json     which base and journal are valid, and what they are of; replaced as a whole
    base-N.bin       the labels at some time, slab by slab
    journal-N.bin    every write since that time, in order

A slab or a journal entry has a length and a checksum before it, so that what was cut off by a crash
is known and left out. Entries name the voxels and their new labels outright; put on the base in
order they give the labels exactly, also where the base was read while the labels were edited.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numcodecs import zstd

from medseg import atomic
from medseg.core import LabelScheme
from medseg.errors import FormatError, MedsegError
from medseg_napari.editing.boxes import LabelArray, box_of, slabs, whole
from medseg_napari.editing.change import Change, Piece

__all__ = ["Entry", "SessionHeader", "read_base", "read_journal", "write_base", "write_entry"]

SESSION = "session.json"
VERSION = 1
_BLOCK = struct.Struct("<4sQI")  # mark, length, CRC-32
_SLAB, _ENTRY = b"slab", b"edit"
_MOST_BLOCK = 1 << 31


@dataclass(frozen=True, slots=True, eq=False)
class SessionHeader:
    """What ``session.json`` holds. Nothing in it names a patient or a file.

    Args:
        key: Keyed hash of the source's identity.
        generation: Number of the valid base and journal.
        shape: Of the labels.
        dtype: ``uint8`` or ``uint16``.
        spacing_mm: Of the voxels.
        created_s: When, in seconds since 1970.
        pid: Of the process that edits.
        started_s: When that process started, since its number may be given again.
    """

    key: str
    generation: int
    shape: tuple[int, int, int]
    dtype: str
    spacing_mm: tuple[float, float, float]
    created_s: float
    pid: int
    started_s: float

    def write(self, folder: Path) -> None:
        """Write it, atomically.

        Raises:
            ResourceError: If the disk is full or the folder cannot be written.
        """
        content = {name: getattr(self, name) for name in self.__slots__}
        atomic.write_text(folder / SESSION, json.dumps({"version": VERSION, **content}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> SessionHeader:
        """Read it.

        Raises:
            FormatError: ``recovery-damaged``.
        """
        try:
            content = json.loads((folder / SESSION).read_text(encoding="utf-8"))
            if content.pop("version") != VERSION:
                raise ValueError
            header = cls(**content)
            shape = tuple(int(extent) for extent in header.shape)
            if len(shape) != 3 or header.dtype not in ("uint8", "uint16") or min(shape) < 1:
                raise ValueError
            spacing = tuple(float(step) for step in header.spacing_mm)
            return cls(
                str(header.key),
                int(header.generation),
                (shape[0], shape[1], shape[2]),
                header.dtype,
                (spacing[0], spacing[1], spacing[2]),
                float(header.created_s),
                int(header.pid),
                float(header.started_s),
            )
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise damaged() from error


def damaged() -> FormatError:
    """The error for an autosave that cannot be read."""
    return FormatError(
        "autosave",
        expected="the files of an editing session",
        found="files that are missing or damaged",
        remedy="it cannot be recovered; discard it",
        code="recovery-damaged",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One line of the journal.

    Args:
        change: What was written; None if only the table or the effort changed.
        forward: Whether it was made or undone.
        scheme: The label table after it, where it is another.
        effort: Counters after it.
    """

    change: Change | None
    forward: bool
    scheme: LabelScheme | None = None
    effort: dict[str, object] | None = None


def write_base(target: Path, labels: LabelArray) -> int:
    """Write labels slab by slab, atomically; they may be edited meanwhile.

    Returns:
        Its size in bytes.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
    """
    with atomic.atomic_path(target) as temporary, temporary.open("wb") as stream:
        for part in slabs(whole(labels.shape)):
            content = np.ascontiguousarray(labels[part])
            _write_block(stream, _SLAB, bytes(zstd.compress(content, 1)))
        return stream.tell()


def read_base(source: Path, header: SessionHeader) -> LabelArray:
    """Read what :func:`write_base` wrote.

    Raises:
        FormatError: ``recovery-damaged``.
    """
    try:
        labels = np.empty(header.shape, dtype=header.dtype)
        flat, filled = labels.reshape(-1), 0  # slabs are runs of whole planes
        with source.open("rb") as stream:
            for block in _blocks(stream, _SLAB):
                content = np.frombuffer(bytes(zstd.decompress(block)), dtype=labels.dtype)
                flat[filled : filled + content.size] = content
                filled += content.size
        if filled != flat.size:
            raise ValueError
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise damaged() from error
    return labels


def write_entry(stream: IO[bytes], entry: Entry) -> None:
    """Append an entry to a journal."""
    blobs: list[bytes] = []

    def blob(content: bytes | None) -> int | None:
        if content is None:
            return None
        blobs.append(content)
        return len(content)

    lines: list[dict[str, Any]] = []
    pieces = entry.change.pieces if entry.change is not None else ()
    for piece in pieces if entry.forward else reversed(pieces):
        values = piece.new if entry.forward else piece.old
        lines.append(
            {
                "start": piece.start,
                "shape": piece.shape,
                "mask": blob(piece.mask),
                "value": values if isinstance(values, int) else None,
                "values": blob(values) if isinstance(values, bytes) else None,
            }
        )
    head: dict[str, Any] = {"pieces": lines}
    if entry.scheme is not None:
        head["scheme"] = entry.scheme.to_dict()
    if entry.effort is not None:
        head["effort"] = entry.effort
    text = json.dumps(head, separators=(",", ":")).encode()
    _write_block(stream, _ENTRY, struct.pack("<I", len(text)) + text + b"".join(blobs))


def read_journal(
    source: Path, labels: LabelArray
) -> tuple[LabelScheme | None, dict[str, object] | None, int]:
    """Put all whole entries of a journal on the base.

    Args:
        source: The journal; one that is missing has no entries.
        labels: The base; changed in place.

    Returns:
        The last label table and the last counters, where there are some, and the number of entries.

    Raises:
        FormatError: ``recovery-damaged`` if an entry is whole but does not fit the labels.
    """
    scheme: LabelScheme | None = None
    effort: dict[str, object] | None = None
    entries = 0
    with contextlib.suppress(FileNotFoundError), source.open("rb") as stream:
        for block in _blocks(stream, _ENTRY):
            try:
                (length,) = struct.unpack_from("<I", block)
                head = json.loads(block[4 : 4 + length])
                _replay(head["pieces"], block[4 + length :], labels)
                if "scheme" in head:
                    scheme = LabelScheme.from_dict(head["scheme"])
                effort = head.get("effort", effort)
            except (ValueError, KeyError, TypeError, RuntimeError, IndexError, struct.error) as e:
                raise damaged() from e
            entries += 1
    return scheme, effort, entries


def _replay(lines: list[dict[str, Any]], blobs: bytes, labels: LabelArray) -> None:
    at = 0

    def taken(length: int | None) -> bytes | None:
        nonlocal at
        if length is None:
            return None
        at += length
        return blobs[at - length : at]

    for line in lines:
        start, shape = (tuple(int(n) for n in line[key]) for key in ("start", "shape"))
        mask, values = taken(line["mask"]), taken(line["values"])
        stored = int(line["value"]) if values is None else values
        piece = Piece(
            (start[0], start[1], start[2]),
            (shape[0], shape[1], shape[2]),
            math.prod(shape),
            mask,
            stored,
            stored,
            labels.dtype,
            (),
        )
        stop = [a + b for a, b in zip(start, shape, strict=True)]
        if any(b > extent for b, extent in zip(stop, labels.shape, strict=True)):
            raise ValueError
        piece.write(labels[box_of(start, stop)], new=True)


def _write_block(stream: IO[bytes], mark: bytes, content: bytes) -> None:
    stream.write(_BLOCK.pack(mark, len(content), zlib.crc32(content)))
    stream.write(content)


def _blocks(stream: IO[bytes], mark: bytes) -> Iterator[bytes]:
    """The blocks of a file up to the first that is cut off or damaged."""
    left = os.fstat(stream.fileno()).st_size
    while left >= _BLOCK.size:
        found, length, checksum = _BLOCK.unpack(stream.read(_BLOCK.size))
        left -= _BLOCK.size
        if found != mark or length > min(left, _MOST_BLOCK):
            return
        content = stream.read(length)
        left -= length
        if zlib.crc32(content) != checksum:
            return
        yield content


def is_whole(folder: Path) -> bool:
    """Whether a folder has a header that can be read and the base that it names."""
    try:
        header = SessionHeader.read(folder)
    except MedsegError:
        return False
    return (folder / f"base-{header.generation}.bin").is_file()
