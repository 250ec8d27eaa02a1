"""Types of DICOM SEG and files of single structures through the command, and in the ledger."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medseg.core import Grid, LabelScheme
from medseg.errors import ConfigError
from medseg.io.dicom_seg_labels import read_seg, segment_fractions
from medseg.io.dicom_seg_reading import open_seg
from medseg.io.probabilities import read_probabilities
from medseg.io.reading import read_labels
from medseg.studies.ledger import Ledger
from pipelines.cli import app
from pipelines.result_names import is_result_name, mask_names
from pipelines.results import Wishes
from tests.series import small_series
from tests.tiny_model import write_tiny_model

GRID = Grid((18, 17, 16), np.diag([-1.0, -1.0, 1.0, 1.0]))
SCHEME = LabelScheme.plain("test", {1: "near", 5: "far"})
MASKS = ["case_label-Far_mask.nii.gz", "case_label-Near_mask.nii.gz"]


def predict(*arguments, code=0):
    words = ["predict", *arguments, "--json", "--precision", "fp32", "--names", "input"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return json.loads(done.stdout) if code < 2 else done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def series(tmp_path):
    return small_series(tmp_path / "series", GRID)


@pytest.fixture
def image(tmp_path):
    data = np.random.default_rng(5).normal(100, 20, GRID.shape_ijk).astype(np.float32)
    nib.save(nib.Nifti1Image(data, GRID.affine_ras), tmp_path / "case.nii.gz")
    return tmp_path / "case.nii.gz"


def test_a_label_map_is_written_where_it_is_asked_for(model, series, tmp_path):
    out = tmp_path / "out"
    (case,) = predict(
        series, "-m", model, "-o", out, "--seg-type", "labelmap", "--omit-empty-frames"
    )["cases"]
    seg = pydicom.dcmread(case["files"]["dicom_seg"])
    assert seg.SegmentationType == "LABELMAP"
    nifti = read_labels(Path(case["files"]["nifti"]), SCHEME)
    found = read_seg(Path(case["files"]["dicom_seg"]), SCHEME, nifti.grid)
    assert np.array_equal(found.data_ijk, nifti.data_ijk)
    assert nifti.data_ijk.any()
    settings = json.loads(Path(case["files"]["report"]).read_text())["settings"]
    assert (settings["seg_type"], settings["omit_empty_frames"]) == ("labelmap", True)


def test_fractions_are_those_of_the_probabilities(model, series, tmp_path):
    (case,) = predict(
        series, "-m", model, "-o", tmp_path / "out", "--seg-type", "fractional", "--probabilities"
    )["cases"]
    assert "dicom_seg" not in case["files"]
    path = Path(case["files"]["dicom_probseg"])
    assert path.name == "series_probseg.dcm"
    file = read_probabilities(Path(case["files"]["probabilities"]))
    seg = open_seg(path)
    assert [segment.label for segment in seg.segments] == ["near", "far"]
    for number, name in ((1, "near"), (2, "far")):
        found = segment_fractions(seg, number, file.grid)
        assert np.allclose(found, file.read_class(name), atol=1e-6)
        assert found.any()
    # what another run made with other settings is not left beside it
    (again,) = predict(series, "-m", model, "-o", tmp_path / "out")["cases"]
    assert "dicom_seg" in again["files"]
    assert not path.exists()


def test_fractions_without_probabilities_are_wrong_usage(model, series, tmp_path):
    told = predict(series, "-m", model, "-o", tmp_path / "out", "--seg-type", "fractional", code=2)
    assert "expected probabilities, from which its fractions are taken, found none asked" in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="add --probabilities, or choose bin") as caught:
        Wishes(seg_type="fractional")
    assert caught.value.code == "seg-probabilities"


def test_an_image_that_is_no_series_has_no_segmentation_object_and_says_so(model, image, tmp_path):
    (case,) = predict(image, "-m", model, "-o", tmp_path / "out", "--seg-type", "labelmap")["cases"]
    assert "dicom_seg" not in case["files"]
    assert "no DICOM SEG of type labelmap: the image is no DICOM series" in case["notes"]


def test_every_structure_has_a_file_of_its_own_that_the_ledger_knows(model, image, tmp_path):
    out = tmp_path / "out"
    words = [image, "-m", model, "-o", out, "--one-file-per-class"]
    (case,) = predict(*words)["cases"]
    assert sorted(path.name for path in out.glob("*_mask.nii.gz")) == MASKS
    whole = nib.load(case["files"]["nifti"])
    for name, value in (("Near", 1), ("Far", 5)):
        mask = nib.load(case["files"][f"mask_{name}"])
        assert np.array_equal(mask.dataobj, np.asarray(whole.dataobj) == value)
        assert mask.get_data_dtype() == np.uint8
        assert mask.header["srow_x"].tobytes() == whole.header["srow_x"].tobytes()
    table = (out / "case_dseg.tsv").read_text().splitlines()
    assert table[0] == "index\tname\tcolor\tabbreviation"
    assert [row.split("\t")[-1] for row in table[1:]] == ["Near", "Far"]
    report = json.loads((out / "case_report.json").read_text())
    with Ledger.open(out / "ledger.sqlite") as ledger:
        known = {one.name: one.sha256 for one in ledger.outputs(1)}
    for name in MASKS:
        digest = hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert known[name] == digest
        assert digest in {entry["sha256"] for entry in report["files"].values()}
    assert predict(*words)["cases"][0]["unchanged"]
    (out / MASKS[0]).unlink()  # a result that is gone is made again
    (again,) = predict(*words)["cases"]
    assert not again["unchanged"]
    assert (out / MASKS[0]).exists()
    predict(*words[:-1])  # and without the wish none is left
    assert not list(out.glob("*_mask.nii.gz"))


def test_files_of_structures_are_no_input_and_those_of_others_are_kept(model, image, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / MASKS[0]).write_text("mine")
    words = [image, "-m", model, "-o", out, "--one-file-per-class"]
    (case,) = predict(*words, code=1)["cases"]
    assert case["code"] == "output-exists"
    assert (out / MASKS[0]).read_text() == "mine"
    assert is_result_name(MASKS[0].upper())
    assert not is_result_name("case_mask.nii.gz")
    assert list(mask_names("c", LabelScheme.plain("x", {1: "left kidney", 2: "Left-Kidney"}))) == [
        "mask_LeftKidney",
        "mask_LeftKidneyx1",
    ]
