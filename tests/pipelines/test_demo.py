"""`medseg demo`: real cases, real model, real checks."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.demo import SAMPLES


@pytest.mark.slow
def test_the_demo_segments_both_samples_well(tmp_path):
    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    cases = json.loads(result.stdout)["cases"]
    assert [case["source"] for case in cases] == ["NIfTI", "DICOM series"]
    for case in cases:
        assert min(case["dice"].values()) > 0.8
        assert set(case["files"]) >= {"nifti", "table", "preview", "report"}
        written = nib.load(case["files"]["nifti"])
        expert = nib.load(SAMPLES / "hippocampus" / "labels" / f"{case['case']}.nii.gz")
        assert np.allclose(
            np.abs(written.affine[:3, :3]).sum(0), np.abs(expert.affine[:3, :3]).sum(0)
        )
        with Image.open(case["files"]["preview"]) as picture:
            assert picture.size[0] > 900
    assert "dicom_seg" in cases[1]["files"]
    assert "CC BY-SA 4.0" in (out / "ATTRIBUTION.md").read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_an_unwritable_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "expected a folder that can be made and written" in result.stderr
