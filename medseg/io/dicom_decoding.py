"""Frames of a DICOM file, decoded here or in processes of their own.

The decoders of JPEG, JPEG-LS and JPEG 2000 hold Python's lock for as long as they work, so that
threads decode one frame after the other. Large series are therefore shared among processes that do
nothing else. They are plain children that talk through their standard input and output: unlike
those of ``multiprocessing`` they do not import the caller's script again, so that no guard is
needed there, and workers of ``multiprocessing`` may start them. What a child crashes on, as some
decoders do on damaged data, is an error of that file and not the end of this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from medseg.cores import usable_cores

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["HOLDING_THE_LOCK", "Decoders", "Undecodable", "decode_frames", "decoders_for"]

HOLDING_THE_LOCK = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # JPEG baseline
        "1.2.840.10008.1.2.4.51",  # JPEG extended
        "1.2.840.10008.1.2.4.57",  # JPEG lossless
        "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
    }
)
"""Transfer syntaxes whose decoders hold Python's lock."""

_WORTH_PIXELS = 16 << 20
"""Pixels from which on processes save more than their start takes."""

_MOST_PROCESSES = 8
_HELLO = "ready"
_PIXELS_PER_PROCESS = 2 << 20
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from medseg.io.dicom_decoding import serve; serve()"
)

_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70))
_ENDED = frozenset((*_JPEG, *_JPEG_LS))
_END = b"\xff\xd9"
_END_WITHIN = 16
_STRICT = dict.fromkeys(_JPEG_LS, "pyjpegls")
"""Transfer syntax to the one decoder that refuses what is damaged; others would be tried after it
and make pixels up."""

Why = Literal["file", "missing", "pixels", "layout"]


class Undecodable(Exception):  # noqa: N818 - becomes an error where its file has a name
    """Frames that cannot be had.

    Args:
        why: ``file`` if it cannot be parsed, ``missing`` without pixel data, ``pixels`` if they are
            damaged, ``layout`` if they are no single integers.
        position: Which of the frames that were asked for, from 0.
    """

    def __init__(self, why: Why, position: int = 0) -> None:
        super().__init__(why, position)
        self.why = why
        self.position = position


def decode_frames(
    stream: BinaryIO, shape: tuple[int, int], indices: Sequence[int]
) -> list[npt.NDArray[Any]]:
    """Decode frames of one file.

    Args:
        stream: The file.
        shape: Rows and columns that its header tells.
        indices: Frames wanted, from 0.

    Returns:
        ``(rows, columns)`` integers as stored, for each frame.

    Raises:
        Undecodable: If they cannot be had.
        OSError: If the file cannot be read.
    """
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read
    from pydicom.pixels import pixel_array  # noqa: PLC0415

    try:
        dataset = dcmread(stream, force=True)
    except OSError:
        raise
    except Exception as error:  # the header was fine, so that it is the rest of the file
        raise Undecodable("file") from error
    if "PixelData" not in dataset:
        raise Undecodable("missing")
    several = int(dataset.get("NumberOfFrames") or 1) > 1
    frames = []
    for position, index in enumerate(indices):
        try:
            _name_transfer_syntax(dataset)
            _check_end(dataset, index)
            data = np.asarray(
                pixel_array(
                    dataset,
                    index=index if several else None,
                    correct_unused_bits=False,
                    decoding_plugin=_STRICT.get(dataset.file_meta.TransferSyntaxUID, ""),
                )
            )
        except BaseException as error:  # decoders fail in many ways, all of them the file's content
            # a panic of a decoder in Rust is no Exception
            if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
                raise
            raise Undecodable("pixels", position) from error
        if data.shape != shape or data.dtype.kind not in "iu":
            raise Undecodable("layout", position)
        frames.append(data)
    return frames


def _check_end(dataset: Dataset, index: int) -> None:
    """See that a JPEG or JPEG-LS stream has its end: decoders make pixels up for what is cut off.

    Source: ITU-T T.81 B.1.1.3 and T.87 C.1 (EOI, FFD9); bytes of zero may follow (DICOM PS3.5 A.4).

    Raises:
        ValueError: If it has not.
    """
    if dataset.file_meta.TransferSyntaxUID not in _ENDED:
        return
    from pydicom.encaps import get_frame  # noqa: PLC0415 - pydicom is loaded by the reader already

    frame = get_frame(
        dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames") or 1)
    )
    if _END not in frame[-_END_WITHIN:]:
        raise ValueError(len(frame))


def _name_transfer_syntax(dataset: Dataset) -> None:
    """Give a file without that entry the syntax its elements were read with."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        from pydicom.uid import (  # noqa: PLC0415 - pydicom is loaded by the reader already
            ExplicitVRBigEndian,
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
        )

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


@dataclass(slots=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    greeted: bool = False


class Decoders:
    """Processes that decode; any number of threads may ask, and wait for one that is free.

    Args:
        count: How many.

    Raises:
        OSError: If none can be started.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._all: list[_Child] = []
        try:
            for _ in range(count):
                self._free.put(self._start())
        except OSError:
            self.close()
            raise

    def _start(self) -> _Child:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own words
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what decoders say could quote a patient
            start_new_session=True,  # Ctrl-C is for the parent to judge
        )
        child = _Child(process)
        self._all.append(child)
        return child

    def decode(
        self, content: Path | bytes, shape: tuple[int, int], indices: Sequence[int]
    ) -> list[npt.NDArray[Any]]:
        """As :func:`decode_frames`, of a file on the disk or of its bytes.

        Raises:
            Undecodable: As there; a process that dies of a file counts as ``pixels``.
            OSError: As there.
        """
        child = self._free.get()
        try:
            answer = self._asked(child, content, shape, indices)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            began = child.greeted
            self._end(child)
            with contextlib.suppress(OSError):  # a dead one is found to be dead and done without
                child = self._start()
            if began:
                raise Undecodable("pixels") from error
            # it is not the file: no process can live here
            with open_content(content) as stream:
                return decode_frames(stream, shape, indices)
        finally:
            self._free.put(child)
        if isinstance(answer, BaseException):
            raise answer
        frames: list[npt.NDArray[Any]] = answer
        return frames

    def _asked(
        self,
        child: _Child,
        content: Path | bytes,
        shape: tuple[int, int],
        indices: Sequence[int],
    ) -> Any:  # noqa: ANN401 - frames, or what was raised
        source, sink = child.process.stdout, child.process.stdin
        if source is None or sink is None:
            raise EOFError
        if not child.greeted:
            child.greeted = _receive(source) == _HELLO
        asked = content if isinstance(content, bytes) else content.absolute()
        _send(sink, (asked, shape, list(indices)))
        return _receive(source)

    def close(self) -> None:
        """End them all."""
        for child in list(self._all):
            self._end(child)

    def _end(self, child: _Child) -> None:
        with contextlib.suppress(ValueError):  # ended before
            self._all.remove(child)
        child.process.kill()
        for stream in (child.process.stdin, child.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent is of no use any more
                    stream.close()
        child.process.wait()


@contextmanager
def decoders_for(pixels: int, frames: int, threads: int | None = None) -> Iterator[Decoders | None]:
    """Processes for so much work, ended with the block; None where they would not be worth it.

    Args:
        pixels: All that have to be decoded by what holds Python's lock.
        frames: How many frames they are.
        threads: Most that may work at a time; None for as many as there are cores.
    """
    most = min(usable_cores(), _MOST_PROCESSES if threads is None else threads, _MOST_PROCESSES)
    count = min(most, frames, pixels // _PIXELS_PER_PROCESS)
    if count < 2 or pixels < _WORTH_PIXELS or not sys.executable:
        yield None
        return
    try:
        decoders = Decoders(count)
    except OSError:  # where no process can be started, threads do it
        yield None
        return
    try:
        yield decoders
    finally:
        decoders.close()


def _send(stream: IO[bytes], content: object) -> None:
    pickle.dump(content, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:  # noqa: ANN401 - what the other side sent
    return pickle.load(stream)  # noqa: S301 - from our own process


def serve() -> None:
    """Decode what standard input asks for until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = io.StringIO()  # nothing else may speak where answers go
    from medseg.io.dicom_quiet import quiet_dicom  # noqa: PLC0415 - in this process alone

    with quiet_dicom(), contextlib.suppress(EOFError, BrokenPipeError):
        _send(sink, _HELLO)
        while True:
            content, shape, indices = _receive(source)
            answer: object
            try:
                with open_content(content) as stream:
                    answer = decode_frames(stream, shape, indices)
            except (Undecodable, MemoryError, OSError) as error:
                answer = _portable(error)
            except Exception:  # whatever else damaged content does
                answer = Undecodable("pixels")
            _send(sink, answer)


def _portable(error: BaseException) -> BaseException:
    """The same without what it was caused by."""
    if isinstance(error, Undecodable):
        return Undecodable(error.why, error.position)
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror)
    return MemoryError()


@contextmanager
def open_content(content: Path | bytes) -> Iterator[BinaryIO]:
    """A file by its path, or bytes as a file."""
    if isinstance(content, bytes):
        with io.BytesIO(content) as stream:
            yield stream
    else:
        with content.open("rb") as file:
            yield file
