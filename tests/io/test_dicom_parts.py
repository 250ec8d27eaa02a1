"""A volume of which slices lie in another case is refused; copies and other volumes are none."""

import shutil

import numpy as np
import pytest

from medseg.core import Grid
from medseg.errors import FormatError
from medseg.io.dicom_folders import study_uid
from medseg.io.dicom_parts import check_whole
from medseg.io.dicom_study import read_study
from tests.dicom_variants import setting, several_volumes, zipped
from tests.series import AXIAL, small_series, spoil

GRID = Grid((6, 5, 8), AXIAL.affine_ras)


def moved(files, folder):
    folder.mkdir()
    for file in files:
        file.rename(folder / file.name)
    return folder


@pytest.fixture
def halves(tmp_path):
    first = small_series(tmp_path / "first", GRID)
    return first, moved(sorted(first.iterdir())[5:], tmp_path / "second")


def check(path, **beside):
    study = read_study(path)
    check_whole(study.stacks, study, beside)


def test_each_half_of_a_series_names_the_other(halves):
    first, second = halves
    with pytest.raises(FormatError, match="found 5 here and 3 in case-b; add --by-study") as caught:
        check(first, **{"case-b": second})
    assert caught.value.code == "series-split"
    with pytest.raises(FormatError, match="found 3 here and 5 in case-a"):
        check(second, **{"case-a": first})
    check(first)


def test_a_folder_for_every_slice_is_told_with_a_few_of_their_names(tmp_path):
    series = small_series(tmp_path / "series", GRID)
    files = sorted(series.iterdir())
    others = {f"c{k}": moved([file], tmp_path / f"{k}") for k, file in enumerate(files[:-1])}
    with pytest.raises(FormatError, match="found 1 here and 7 in c0, c1, c2 and 4 more"):
        check(series, **others)


def test_slices_in_a_zip_count_and_damaged_neighbours_do_not(halves, tmp_path):
    first, second = halves
    archive = zipped(second, tmp_path / "rest.zip")
    content = archive.read_bytes()
    with pytest.raises(FormatError, match="3 in the rest"):
        check(first, **{"the rest": archive})
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    spoilt = bytearray(content)
    spoilt[900:1200] = bytes(300)  # within the first entry; the others are whole
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    check(first, cut=tmp_path / "cut.zip", spoilt=tmp_path / "spoilt.zip")


def test_a_copy_is_no_further_slice_and_a_part_of_a_copy_is_refused(tmp_path):
    series = small_series(tmp_path / "series", GRID)
    copy = shutil.copytree(series, tmp_path / "copy")
    check(series, copy=copy)
    check(copy, series=series)
    max(copy.iterdir()).unlink()
    check(series, copy=copy)
    with pytest.raises(FormatError, match="found 7 here and 1 in series"):
        check(copy, series=series)


def test_another_series_and_another_time_point_are_no_further_slices(tmp_path):
    times = [setting(TemporalPositionIdentifier=1), setting(TemporalPositionIdentifier=2)]
    first = several_volumes(tmp_path / "first", times, grid=GRID)
    second = moved(sorted(first.glob("v1_*")), tmp_path / "second")
    other = small_series(tmp_path / "other", GRID)
    check(first, second=second, other=other)
    max(second.iterdir()).rename(first / "stray")
    with pytest.raises(FormatError, match="found 7 here and 1 in first"):
        check(second, first=first)


def test_the_study_of_a_case_is_known_by_its_first_file(halves, tmp_path):
    first, second = halves
    uid = study_uid(first)
    assert uid
    assert study_uid(second) == uid
    assert study_uid(zipped(second, tmp_path / "z.zip")) == uid
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert study_uid(tmp_path / "bad.zip") is None
    (tmp_path / "empty").mkdir()
    assert study_uid(tmp_path / "empty") is None
    for path in first.iterdir():
        spoil(path, setting(StudyInstanceUID=""))
    assert study_uid(first) is None
    assert np.array_equal(study_uid(second), uid)
