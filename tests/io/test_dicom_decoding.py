"""Processes that decode give what decoding here gives, and survive what kills one of them."""

import io
import os
import signal

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from medseg.core import Grid
from medseg.errors import FormatError
from medseg.io import dicom_decoding, dicom_series
from medseg.io.dicom_decoding import Decoders, Undecodable, decode_frames, decoders_for
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_series import read_dicom_series
from tests.dicom_variants import zipped
from tests.series import AXIAL, ramp, small_series, spoil

GRID = Grid((40, 36, 8), AXIAL.affine_ras)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = small_series(tmp_path_factory.mktemp("j2k") / "series", GRID)
    for path in folder.iterdir():
        spoil(path, lambda d: d.compress(JPEG2000Lossless, generate_instance_uid=False))
    return folder


@pytest.fixture(scope="module")
def decoders():
    processes = Decoders(2)
    yield processes
    processes.close()


@pytest.fixture
def always(monkeypatch):
    """Processes whatever the machine and the size of the series."""
    monkeypatch.setattr(dicom_decoding, "_WORTH_PIXELS", 1)
    monkeypatch.setattr(dicom_decoding, "_PIXELS_PER_PROCESS", 1)
    monkeypatch.setattr(dicom_decoding, "usable_cores", lambda: 2)


def test_a_process_decodes_a_path_and_bytes_alike(series, decoders):
    path = min(series.iterdir())
    with path.open("rb") as stream:
        (here,) = decode_frames(stream, (36, 40), [0])
    for content in (path, path.read_bytes()):
        (there,) = decoders.decode(content, (36, 40), [0])
        assert there.dtype == here.dtype
        assert np.array_equal(there, here)


def test_why_there_are_no_frames_crosses_the_border(series, decoders, tmp_path):
    path = min(series.iterdir())
    with pytest.raises(Undecodable) as caught:
        decoders.decode(path, (36, 41), [0])
    assert (caught.value.why, caught.value.position) == ("layout", 0)
    spoil(path, lambda d: delattr(d, "PixelData"), tmp_path / "none.dcm")
    with pytest.raises(Undecodable) as caught:
        decoders.decode(tmp_path / "none.dcm", (36, 40), [0])
    assert caught.value.why == "missing"
    with pytest.raises(FileNotFoundError):
        decoders.decode(tmp_path / "nothing.dcm", (36, 40), [0])


def test_a_process_that_dies_is_an_error_of_the_file_and_is_replaced(series):
    processes = Decoders(1)
    try:
        path = min(series.iterdir())
        processes.decode(path, (36, 40), [0])
        os.kill(processes._all[0].process.pid, signal.SIGKILL)
        with pytest.raises(Undecodable) as caught:
            processes.decode(path, (36, 40), [0])
        assert caught.value.why == "pixels"
        assert len(processes.decode(path, (36, 40), [0])) == 1
    finally:
        processes.close()


def test_where_no_process_can_live_the_frames_are_decoded_here(series, monkeypatch):
    monkeypatch.setattr(dicom_decoding, "_START", "raise SystemExit(1)")
    processes = Decoders(1)
    try:
        for _ in range(2):
            assert len(processes.decode(min(series.iterdir()), (36, 40), [0])) == 1
    finally:
        processes.close()


def test_small_series_and_single_threads_are_decoded_here():
    for pixels, frames, threads in ((1 << 10, 8, None), (1 << 28, 1, None), (1 << 28, 300, 1)):
        with decoders_for(pixels, frames, threads) as processes:
            assert processes is None


@pytest.mark.usefixtures("always")
def test_a_series_a_zip_and_a_damaged_slice_read_as_without_processes(series, tmp_path):
    expected = ramp(GRID).data_cijk
    for path in (series, zipped(series, tmp_path / "s.zip")):
        assert np.array_equal(read_dicom_series(path).volume.data_cijk, expected)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in series.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    victim = damaged / "00003.dcm"
    with quiet_dicom():
        element = dcmread(victim)["PixelData"]
    content = victim.read_bytes()
    start = content.index(element.value[8:40])
    victim.write_bytes(content[: start + 8] + bytes(40) + content[start + 48 :])
    with pytest.raises(FormatError, match="file 3 in name order that cannot be decoded") as caught:
        read_dicom_series(damaged)
    assert caught.value.code == "dicom-pixels"


@pytest.mark.usefixtures("always")
def test_frames_of_one_file_are_shared_among_processes(series, tmp_path, monkeypatch):
    """The parts of a file are those of its frames, in order, and no more than memory holds."""
    frames = dicom_series.read_study(series).stacks[0].frames

    class Three:
        count = 3

    numbers = list(range(8))
    assert dicom_series._parts(numbers, frames, None) == [numbers]
    assert dicom_series._parts(numbers, frames, Three) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    monkeypatch.setattr(dicom_series, "_MOST_HELD_BYTES", frames[0].header.file.size)
    assert dicom_series._parts(numbers, frames, Three) == [numbers]


def compressed(series, folder, syntax):
    """A series in a transfer syntax; JPEG by Pillow, since pydicom writes none."""
    folder.mkdir()
    for path in sorted(series.iterdir()):
        dataset = dcmread(path)
        if syntax == JPEGBaseline8Bit:
            pixels = (dataset.pixel_array % 256).astype(np.uint8)
            packed = io.BytesIO()
            Image.fromarray(pixels).save(packed, "JPEG")
            dataset.BitsAllocated = dataset.BitsStored = 8
            dataset.HighBit, dataset.PixelRepresentation = 7, 0
            dataset.PixelData = encapsulate([packed.getvalue()])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        else:
            dataset.decompress()
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(folder / path.name)
    return folder


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless, RLELossless]
)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_stream_that_is_cut_off_is_refused_and_never_filled_up(series, tmp_path, syntax, share):
    folder = compressed(series, tmp_path / "packed", syntax)
    whole = read_dicom_series(folder).volume.data_cijk
    assert whole.shape == (1, 40, 36, 8)
    path = sorted(folder.iterdir())[3]
    dataset = dcmread(path)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(share * len(frame))]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(FormatError, match="file 4 in name order that cannot be decoded") as caught:
        read_dicom_series(folder)
    assert caught.value.code == "dicom-pixels"


def test_bytes_after_the_end_of_a_stream_do_no_harm(series, tmp_path):
    folder = compressed(series, tmp_path / "packed", JPEGLSLossless)
    before = read_dicom_series(folder).volume.data_cijk
    for path in folder.iterdir():
        dataset = dcmread(path)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame + bytes(4)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    assert np.array_equal(read_dicom_series(folder).volume.data_cijk, before)
