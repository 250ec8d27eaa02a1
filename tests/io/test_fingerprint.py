"""A fingerprint is of headers and pixel data: nothing else changes it, any change of them does."""

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import ResourceError
from medseg.io.fingerprint import fingerprint, input_files, stamp
from tests.dicom_variants import on_a_disc
from tests.series import small_series


def image():
    return sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))


def of(path):
    return fingerprint({"": path})


def test_compressing_again_or_renaming_changes_nothing(tmp_path):
    sitk.WriteImage(image(), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content, 1, mtime=5))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content, 9, mtime=9))
    assert of(tmp_path / "a.nii") == of(tmp_path / "b.nii.gz") == of(tmp_path / "c.nii.gz")


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.hdr", "a.mha", "a.mhd", "a.nrrd", "a.nhdr"]
)
def test_any_change_of_header_or_voxels_is_told(name, tmp_path):
    sitk.WriteImage(image(), tmp_path / name)
    before = of(tmp_path / name)
    other = image()
    other[1, 1, 1] = -7
    sitk.WriteImage(other, tmp_path / name)
    changed = of(tmp_path / name)
    other.SetSpacing((1, 1, 3))
    sitk.WriteImage(other, tmp_path / name)
    assert len({before, changed, of(tmp_path / name)}) == 3
    parts = {"a.hdr": 2, "a.mhd": 2, "a.nhdr": 2}
    assert len(input_files(tmp_path / name)) == parts.get(name, 1)


def test_names_and_order_of_the_slices_do_not_matter_but_their_content_does(tmp_path):
    series = small_series(tmp_path / "series")
    before = of(series)
    for number, path in enumerate(sorted(series.iterdir(), reverse=True)):
        path.rename(series / f"{number}")
    (series / ".DS_Store").write_bytes(b"x")
    (series / "Thumbs.db").write_bytes(b"x")
    assert of(series) == before
    (series / "0").write_bytes((series / "0").read_bytes()[:-2] + b"\1\1")
    changed = of(series)
    assert changed != before
    (series / "1").unlink()
    assert of(series) not in (before, changed)


def test_channels_are_told_apart_by_name(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        sitk.WriteImage(image() * value, tmp_path / f"{name}.nii")
    one, other = tmp_path / "a.nii", tmp_path / "b.nii"
    assert fingerprint({"T1": one, "T2": other}) == fingerprint({"T2": other, "T1": one})
    assert fingerprint({"T1": one, "T2": other}) != fingerprint({"T1": other, "T2": one})


def test_broken_and_missing_images_have_a_fingerprint_that_changes_when_mended(tmp_path):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(image(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken = of(path)
    path.write_bytes(b"")
    empty = of(path)
    path.unlink()
    missing = of(path)
    path.write_bytes(whole)
    assert len({broken, empty, missing, of(path)}) == 4
    (tmp_path / "b.nhdr").write_text("NRRD0004\ndata file: none.raw\n")
    assert input_files(tmp_path / "b.nhdr") == [tmp_path / "b.nhdr"]
    (tmp_path / "b.nhdr").write_text("NRRD0004\ndata file: LIST\na\n\n")
    assert set(input_files(tmp_path / "b.nhdr")) == {tmp_path / "b.nhdr", path}


def test_a_stamp_tells_size_and_time_without_reading(tmp_path):
    path = tmp_path / "a.nii"
    sitk.WriteImage(image(), path)
    before = stamp({"": path})
    copy = shutil.copy2(path, tmp_path / "b.nii")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert stamp({"": path}) != before
    assert stamp({"": copy}) != before


def test_a_file_that_cannot_be_read_is_refused():
    memory = Path("/proc/self/mem")  # a file that is there and gives an error from its first byte
    with pytest.raises(ResourceError, match="expected a readable file"):
        of(memory)


def test_a_dicomdir_has_the_fingerprint_of_the_files_that_it_lists(tmp_path):
    series = small_series(tmp_path / "series")
    disc = on_a_disc(series, tmp_path / "disc")
    before = of(disc)
    assert len(input_files(disc)) == 4
    assert disc not in input_files(disc)
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in input_files(disc):
        shutil.copy(path, alone / path.name)
    assert of(alone) == before
    moved = (tmp_path / "disc").rename(tmp_path / "other") / "DICOMDIR"
    (moved.parent / "readme").write_bytes(b"for people")
    assert of(moved) == before
    victim = input_files(moved)[2]
    content = victim.read_bytes()
    victim.write_bytes(content[:-2] + b"\1\1")
    changed = of(moved)
    stamped = stamp({"": moved})
    victim.unlink()
    missing = of(moved)
    assert stamp({"": moved}) != stamped
    victim.write_bytes(content)
    assert len({before, changed, missing}) == 3
    assert of(moved) == before
    moved.write_bytes(moved.read_bytes()[:500])
    assert of(moved) not in (before, changed, missing)
