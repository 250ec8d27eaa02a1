"""DICOM studies through the command: which folders are one case, and which series it is given."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.core import Grid
from medseg.io.reading import read_image
from pipelines.cli import app
from pipelines.discovery import find_cases
from tests.dicom_variants import setting, zipped
from tests.series import small_series, spoil_all
from tests.tiny_model import write_tiny_model

GRID = Grid((18, 17, 16), np.diag([-1.0, -1.0, 1.0, 1.0]))


def predict(*arguments, code=0):
    words = ["predict", *arguments, "--json", "--precision", "fp32"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout)


def write_study(folder, uid):
    folder.mkdir(parents=True)
    for number, words in ((1, "t2_tse"), (2, "t1_se")):
        small_series(folder / words, GRID, series_number=number)
        tags = {"SeriesDescription": words, "StudyInstanceUID": uid, "FrameOfReferenceUID": uid}
        spoil_all(folder / words, setting(**tags))
    return folder


@pytest.fixture
def root(tmp_path):
    for number in (1, 2):
        write_study(tmp_path / "root" / f"visit{number}", f"1.2.826.0.1.3680043.8.498.{number}")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    channels = [{"name": name, "modality": "MR"} for name in ("T1", "T2")]
    return (
        write_tiny_model(folder / "one"),
        write_tiny_model(folder / "two", inputs={"channels": channels}),
    )


def test_the_folders_of_a_study_are_one_case_for_a_model_of_several_channels(root):
    together = [found.case.channels[""] for found in find_cases([root], [], by_study=True)]
    assert together == [root / "visit1", root / "visit2"]
    apart = [found.case.channels[""] for found in find_cases([root], [])]
    assert len(apart) == 4


def test_a_folder_that_holds_another_study_too_stays_apart(root):
    other = write_study(root.parent / "other", "1.2.826.0.1.3680043.8.498.9")
    (other / "t1_se").rename(root / "visit1" / "strange")
    found = [one.case.channels[""] for one in find_cases([root], [], by_study=True)]
    assert found[-1] == root / "visit2"
    assert len(found) == 4


def test_both_channels_of_every_study_are_found_and_segmented(root, models, tmp_path):
    answer = predict(root, "-m", models[1], "-o", tmp_path / "out")
    assert [case["state"] for case in answer["cases"]] == ["done", "done"]
    assert len(list((tmp_path / "out").glob("*_dseg.dcm"))) == 2


def test_a_zip_is_a_case_and_series_are_chosen_by_number(root, models, tmp_path):
    packed = zipped(root / "visit1", tmp_path / "DOE^JOHN.zip")
    out = tmp_path / "out"
    by_name = predict(packed, "-m", models[0], "-o", out)
    assert [case["state"] for case in by_name["cases"]] == ["done"]
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*_dseg.nii.gz")}
    chosen = predict(packed, "-m", models[0], "-o", out, "--series", "1")
    assert [case["state"] for case in chosen["cases"]] == ["done"]
    again = {path.name: path.stat().st_mtime_ns for path in out.glob("*_dseg.nii.gz")}
    assert again.keys() == written.keys()
    assert all(again[name] > written[name] for name in written), "another series, another result"
    assert not [path for path in out.iterdir() if "DOE" in path.name]


def test_a_choice_for_a_channel_that_the_model_lacks_is_refused_at_once(root, models, tmp_path):
    words = ["predict", root, "-m", models[1], "-o", tmp_path / "out", "--series", "2"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2
    assert "one choice for each of the model's channels T1, T2" in done.stderr


def test_gaps_are_refused_unless_allowed(root, models, tmp_path):
    next((root / "visit1" / "t1_se").glob("*4.dcm")).unlink()
    series = root / "visit1" / "t1_se"
    refused = predict(series, "-m", models[0], "-o", tmp_path / "out", code=1)
    assert [case["code"] for case in refused["cases"]] == ["slice-gap"]
    answer = predict(series, "-m", models[0], "-o", tmp_path / "out", "--allow-gaps")
    assert [case["state"] for case in answer["cases"]] == ["done"]


def test_a_series_in_two_folders_is_refused_or_joined_and_never_segmented_by_halves(
    models, tmp_path
):
    (tmp_path / "study").mkdir()
    series = small_series(tmp_path / "study" / "DOE1", GRID)
    other = tmp_path / "study" / "DOE2"
    other.mkdir()
    for path in sorted(series.iterdir())[:8]:
        path.rename(other / path.name)
    words = [tmp_path / "study", "-m", models[0], "-o", tmp_path / "out"]
    refused = predict(*words, code=1)["cases"]
    names = [case["case"] for case in refused]
    assert [case["code"] for case in refused] == ["series-split"] * 2
    assert [
        f"8 here and 8 in {name}; add --by-study" in case["message"]
        for case, name in zip(refused, reversed(names), strict=True)
    ] == [True, True]
    assert "DOE" not in json.dumps(refused)
    answer = predict(*words, "--by-study")["cases"]
    assert [case["state"] for case in answer] == ["done"]
    (labels,) = (tmp_path / "out").glob("*_dseg.nii.gz")
    assert nib.load(labels).shape == GRID.shape_ijk


def test_dicom_without_preamble_and_behind_many_pictures_is_found(tmp_path):
    (tmp_path / "root").mkdir()
    bare = small_series(tmp_path / "root" / "bare", GRID)
    for path in bare.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    late = small_series(tmp_path / "root" / "late", GRID)
    for number in range(20):
        (late / f"{number:05}.aaa.jpg").write_bytes(b"\xff\xd8\xff picture")
        (late / f"0{number:05}.jpg").write_bytes(b"\xff\xd8\xff picture")
    (tmp_path / "root" / "notes").mkdir()
    (tmp_path / "root" / "notes" / "a.txt").write_text("no image")
    (tmp_path / "root" / "results").mkdir()
    shutil.copy(sorted(late.glob("*.dcm"))[0], tmp_path / "root" / "results" / "a_dseg.dcm")
    found = [one.case.channels[""] for one in find_cases([tmp_path / "root"], [])]
    assert found == [bare, late], "and no results of an earlier run"
    assert read_image(bare).volume.grid.shape_ijk == GRID.shape_ijk
