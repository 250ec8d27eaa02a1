"""Planted names, identifiers and paths must not be in a byte that is printed or written.

Two files may hold them: the ledger, which keeps the mapping, and the DICOM SEG, which belongs to
the patient. The SEG may hold the patient's data, but no path.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medseg.core import Grid, Volume
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.nifti import write_nifti_volume
from pipelines.cli import app
from pipelines.redaction import message_of, without_paths
from tests.tiny_model import write_tiny_model

PATIENT = ["Kanarienvogel", "KV-4711", "19010203", "Zeisig", "ACC-77", "Haus am See"]
PATHS = ["CanaryFolder", "CanaryRoot", "canary_broken", "CanaryGap", "canary.nii"]


def plant(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.iterdir())):
        with quiet_dicom():
            dataset = pydicom.dcmread(path)
            dataset.PatientName, dataset.PatientID = "Kanarienvogel^Karl", "KV-4711"
            dataset.PatientBirthDate = "19010203"
            dataset.ReferringPhysicianName = "Zeisig^Zoe"
            dataset.AccessionNumber = "ACC-77"
            dataset.InstitutionName = "Haus am See"
            dataset.StudyDescription = "Kanarienvogel Karl, KV-4711"
            dataset.PatientComments = "Kanarienvogel " * 3
            # values that libraries complain about, and quote
            dataset.add_new("PatientAge", "AS", "Kanarienvogel")
            dataset.save_as(folder / f"Kanarienvogel^KV-4711.{number:03d}.CanaryFolder.ima")
        path.unlink()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("work") / "CanaryRoot Kanarienvogel"
    data = np.random.default_rng(1).normal(100, 20, (1, 16, 16, 16)).astype(np.int16)
    grid = Grid((16, 16, 16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    for name in ("CanaryFolder KV-4711", "CanaryGap KV-4711"):
        (root / name).parent.mkdir(exist_ok=True)
        write_dicom_series(Volume(data, grid), root / name, modality="MR")
        plant(root / name)
    sorted((root / "CanaryGap KV-4711").iterdir())[7].unlink()
    write_nifti_volume(Volume(data, grid), root / "canary.nii")
    (root / "canary_broken.nii.gz").write_bytes(b"Kanarienvogel")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def everything(out: Path) -> dict[str, bytes]:
    """All that a run left, and the names of it; PNG and HTML too."""
    found = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {**found, "names": "\n".join(found).encode()}


def test_nothing_of_a_patient_or_a_path_leaves_the_ledger(study, model, tmp_path, caplog):
    out = tmp_path / "out"
    caplog.set_level(logging.DEBUG)
    options = ("--preview", "--report", "--uncertainty", "--probabilities", "--names", "id")
    done = [
        CliRunner().invoke(app, ["predict", str(study), "-m", str(model), "-o", str(out), *words])
        for words in (options, (*options, "--json"))
    ]
    done.append(CliRunner().invoke(app, ["studies", "status", str(out), "--failed"]))
    assert [one.exit_code for one in done] == [1, 1, 0]
    answer = json.loads(done[1].stdout)
    codes = sorted(case.get("code", "done") for case in answer["cases"])
    assert codes == ["done", "done", "not-an-image", "slice-gap"]
    printed = [text for one in done for text in (one.stdout, one.stderr)]
    written = everything(out)
    assert any(name.endswith("_dseg.dcm") for name in written)
    ledger = written.pop("ledger.sqlite")
    assert b"CanaryFolder" in ledger  # the mapping stays there
    for canary in (*PATIENT, *PATHS):
        for text in (*printed, caplog.text):
            assert canary not in text, canary
        for name, content in written.items():
            if name.endswith("_dseg.dcm") and canary in PATIENT:
                continue
            assert canary.encode() not in content, (canary, name)


def test_what_is_opted_in_is_there(study, model, tmp_path):
    out = tmp_path / "out"
    words = ["predict", str(study / "canary_broken.nii.gz"), "-m", str(model), "-o", str(out)]
    done = CliRunner().invoke(app, [*words, "--log-phi"])
    assert str(study / "canary_broken.nii.gz") in done.stderr
    assert "CanaryRoot" in (out / "cohort.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{path}: expected an image, found text; x", "case-1: expected an image, found text; x"),
        ("{path}/Doe, J/1: 2.ima: expected a, found b; c", "case-1: expected a, found b; c"),
        ("cannot open {path}/Doe.ima now", "cannot open case-1 now"),
        ("expected a series, found Jane_Doe-12", "expected a series, found case-1"),
        ("a series of Jane_Doe-123", "a series of Jane_Doe-123"),
    ],
)
def test_a_case_is_named_in_the_place_of_its_paths(text, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = Path("in") / "Jane_Doe-12"
    for path in (relative, relative.absolute()):
        assert without_paths(text.format(path=path), "case-1", {"": path}) == shown
    both = without_paths(f"{relative}: bad", "case-1", {"T1": relative, "T2": Path("in/other")})
    assert both == "case-1, channel T1: bad"


def test_common_words_stay_where_a_folder_is_called_by_one():
    text = "give the folder of the DICOM series"
    assert without_paths(text, "case-1", {"": Path("in/series")}) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("case-1: expected x, found y; z", "expected x, found y; z"),
        ("case-1, channel T1: expected x", "channel T1: expected x"),
        ("case-1_dseg.dcm: expected x", "dseg.dcm: expected x"),
        ("case-1_label-a_mask.nii.gz: expected x", "label-a_mask.nii.gz: expected x"),
        ("case-10: expected x", "case-10: expected x"),
        ("other_dseg.dcm: expected x", "other_dseg.dcm: expected x"),
        ("case-1_dseg.dcm was moved", "case-1_dseg.dcm was moved"),
    ],
)
def test_a_message_beside_the_name_of_its_case_does_not_begin_with_it(text, shown):
    assert message_of(text, "case-1", {"": Path("in/Doe")}, log_paths=False) == shown
