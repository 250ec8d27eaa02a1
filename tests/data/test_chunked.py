"""Arrays in chunks: what is read is what was written, and damage never passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data import chunked
from medseg.data.chunked import ChunkedFile, write_chunked
from medseg.errors import FormatError, ResourceError


def made(seed=0, shape=(2, 40, 33, 70)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "a.prepared"
    labels = (made(1, (40, 33, 70)) > 0).astype(np.uint8)
    places = np.argwhere(labels)[:50].astype(np.int32)
    arrays = {"image": made(), "labels": labels, "places": places, "none": places[:0]}
    write_chunked(path, arrays, {"id": 7})
    return path, arrays


def test_whole_arrays_come_back_as_they_were(kept):
    path, arrays = kept
    file = ChunkedFile(path)
    assert file.about == {"id": 7}
    for name, array in arrays.items():
        found = file.whole(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert file.stored_bytes == sum(array.nbytes for array in arrays.values())
    file.check()


@settings(max_examples=60, deadline=None)
@given(
    start=st.tuples(st.integers(0, 39), st.integers(0, 32), st.integers(0, 69)),
    extents=st.tuples(st.integers(1, 40), st.integers(1, 33), st.integers(1, 70)),
)
def test_any_box_is_the_slice_of_the_array(kept, start, extents):
    path, arrays = kept
    stop = [min(a + n, size) for a, n, size in zip(start, extents, (40, 33, 70), strict=True)]
    cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    file = ChunkedFile(path)
    np.testing.assert_array_equal(file.box("image", start, stop), arrays["image"][(..., *cut)])
    np.testing.assert_array_equal(file.box("labels", start, stop), arrays["labels"][cut])


def test_a_box_reads_its_chunks_and_no_others(kept, monkeypatch):
    file, read = ChunkedFile(kept[0]), []
    monkeypatch.setattr(
        ChunkedFile,
        "_data",
        lambda self, f, entry, old=ChunkedFile._data: read.append(entry) or old(self, f, entry),
    )
    file.box("image", (0, 0, 0), (32, 32, 32))
    assert len(read) == 1
    file.box("image", (31, 31, 31), (33, 33, 33))
    assert len(read) == 1 + 8


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.prepared"
    write_chunked(path, {"image": made(0, (1, 5, 6, 7))}, {})
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(FormatError, match=r"a file of prepared data as it was written, found"):
            ChunkedFile(path).check()


def test_a_short_file_another_kind_and_none_are_refused(tmp_path):
    path = tmp_path / "a.prepared"
    write_chunked(path, {"image": made(0, (1, 5, 6, 7))}, {})
    good = path.read_bytes()
    for content, words in (
        (good[:-1], "found a file that was cut short"),
        (good[:20], "found another kind of file or a part of one"),
        (b"x" * 100, "found another kind of file"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=words):
            ChunkedFile(path)
    with pytest.raises(FormatError, match="found no file that can be read"):
        ChunkedFile(tmp_path / "absent.prepared")


def test_a_chunk_that_is_no_longer_there_is_found_when_it_is_read(kept, tmp_path):
    path = tmp_path / "a.prepared"
    path.write_bytes(kept[0].read_bytes())
    file = ChunkedFile(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="found a file that was cut short"):
        file.whole("image")


def test_nothing_is_left_where_the_folder_is_missing(tmp_path):
    with pytest.raises(ResourceError, match="an existing folder"):
        write_chunked(tmp_path / "absent" / "a.prepared", {"image": made()}, {})


def test_chunks_are_cubes_of_the_documented_extent():
    assert len(chunked._boxes((2, 64, 32, 33))) == 2 * 1 * 2
    assert chunked.CHUNK_VOX == 32
