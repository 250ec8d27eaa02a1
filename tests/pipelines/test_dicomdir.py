"""A study that is given by the DICOMDIR of its disc is a case like any other."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.core import Grid
from medseg.io.fingerprint import input_files
from pipelines.cli import app
from pipelines.discovery import expected_bytes, find_cases
from tests.dicom_variants import on_a_disc, zipped
from tests.series import small_series, spoil
from tests.tiny_model import write_tiny_model

GRID = Grid((16, 16, 16), np.diag([-1.0, -1.0, 1.0, 1.0]))


@pytest.fixture
def disc(tmp_path):
    return on_a_disc(small_series(tmp_path / "series", GRID), tmp_path / "DISC 1")


def predict(*arguments):
    words = ["predict", *map(str, arguments), "--precision", "fp32", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (case,) = json.loads(done.stdout)["cases"]
    return case


def test_two_discs_are_two_cases_that_are_called_by_identifiers(disc, tmp_path):
    other = on_a_disc(small_series(tmp_path / "more", GRID), tmp_path / "DISC 2")
    found = find_cases([disc, other], [])
    assert [one.key for one in found] == ["DISC 1/DICOMDIR", "DISC 2/DICOMDIR"]
    assert [one.names for one in found] == [(), ()]
    assert [one.root for one in found] == [disc.parent, other.parent]
    by_input = find_cases([disc], [], naming="input")
    assert by_input[0].names[0] == "DISC_1"
    assert find_cases([], [f"T1={disc}"])[0].names == ()


def test_what_it_will_hold_in_memory_is_told_from_the_files_that_it_lists(disc, tmp_path):
    voxels = 2 * 16**3
    archive = zipped(tmp_path / "series", tmp_path / "s.zip")
    for path in (disc, disc.parent, archive):
        (found,) = find_cases([path], [])
        assert 2 * voxels <= expected_bytes(found.case) <= 2 * voxels + 200_000
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert expected_bytes(find_cases([tmp_path / "bad.zip"], [])[0].case) == 0


def test_it_is_passed_over_when_unchanged_and_done_again_when_a_voxel_changed(disc, tmp_path):
    model, out = write_tiny_model(tmp_path / "model"), tmp_path / "out"
    assert predict(disc, "-m", model, "-o", out)["unchanged"] is False
    assert predict(disc, "-m", model, "-o", out)["unchanged"] is True

    def change(dataset):
        pixels = np.frombuffer(dataset.PixelData, "<i2").copy()
        pixels[5] += 100
        dataset.PixelData = pixels.tobytes()

    spoil(input_files(disc)[3], change)
    assert predict(disc, "-m", model, "-o", out)["unchanged"] is False
