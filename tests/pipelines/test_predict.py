"""`medseg predict` as a user runs it: good cases, every kind of broken one, honest exit codes."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from medseg.core import Grid, LabelScheme, Volume, reorient
from medseg.core.scheme import Code, Label
from medseg.inference.sweep import Group
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import read_seg
from medseg.io.probabilities import read_probabilities
from medseg.io.reading import read_image, read_labels
from medseg.io.rtstruct import read_rtstruct
from medseg.io.segment_names import LabelReading
from medseg.models.card import (
    Channel,
    InputSettings,
    ModelDescription,
    NetworkChoice,
    Training,
)
from medseg.models.folder import load_card, save_model
from medseg.models.table import build_network
from pipelines.cli import app
from pipelines.infer import predict_case
from pipelines.predict import parse_bytes
from tests.forked import command

SCHEME = LabelScheme(
    "test",
    (
        Label(1, "left", (200, 30, 30), concept=Code("5366008", "SCT", "Hippocampus")),
        Label(2, "right", (30, 200, 30)),
    ),
)
NETWORK = {
    "in_channels": 1,
    "out_channels": 3,
    "widths": [4, 8],
    "expansion": 2,
    "norm_groups": 2,
}


def make_model(folder: Path, channels=("image",), window=(16, 16, 16), spacing=None) -> Path:
    torch.manual_seed(3)
    settings = {**NETWORK, "in_channels": len(channels)}
    network = build_network("revunet", settings)
    description = ModelDescription(
        name="untrained",
        version="1",
        description="random weights, for tests",
        network=NetworkChoice(name="revunet", settings=settings),
        inputs=InputSettings(
            channels=tuple(Channel(name=name) for name in channels),
            spacing_mm=spacing,
            window_ijk=window,
        ),
        labels=SCHEME.to_dict(),
        training=Training(
            dataset="none",
            dataset_licence="none",
            training_cases=0,
            validation_cases=0,
            steps=0,
            epochs=0,
            seconds=0,
            seed=3,
            config_sha256="0",
            medseg_version="0",
            torch_version="0",
            monai_version="0",
            finished=True,
        ),
        licence="CC0-1.0",
    )
    save_model(folder, network, description)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def voxels(shape=(20, 22, 18)):
    return np.random.default_rng(5).normal(100, 20, shape).astype(np.float32)


TILT = np.radians(9)
AFFINE = np.array(
    [
        [0, -1.5, 0, 12.5],
        [-1.25 * np.cos(TILT), 0, 2 * np.sin(TILT), -7],
        [1.25 * np.sin(TILT), 0, 2 * np.cos(TILT), 33],
        [0, 0, 0, 1],
    ]
)


def make_nifti(path: Path, data=None, affine=AFFINE) -> Path:
    image = nib.Nifti1Image(voxels() if data is None else data, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nib.save(image, path)
    return path


def results(out: Path) -> list[Path]:
    """The files of cases, without those of the whole run."""
    whole = {"ledger.sqlite", "cohort.csv", "index.html"}
    return sorted(path for path in out.iterdir() if path.name not in whole)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def predict_json(*arguments):
    result = run("predict", *arguments, "--json")
    return result, json.loads(result.stdout)


def test_a_nifti_case_gives_labels_on_its_own_grid(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    result, answer = predict_json(image, "-m", model, "-o", out, "--preview")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in results(out)] == [
        "case_dseg.nii.gz",
        "case_dseg.tsv",
        "case_preview.png",
        "case_report.json",
        "case_statistics.csv",
        "case_statistics.json",
    ]
    source, written = nib.load(image), nib.load(out / "case_dseg.nii.gz")
    assert written.get_data_dtype() == np.uint8
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "pixdim"):
        assert source.header[field].tobytes() == written.header[field].tobytes(), field
    found = np.asarray(written.dataobj)
    counts = {name: int((found == value).sum()) for value, name in ((1, "left"), (2, "right"))}
    assert sum(counts.values()) > 0
    voxel_ml = abs(np.linalg.det(source.affine)) / 1000
    for name, count in counts.items():
        assert answer["cases"][0]["volumes_ml"][name] == pytest.approx(count * voxel_ml, rel=1e-5)
    report = json.loads((out / "case_report.json").read_text())
    assert report["notice"] == "Research software, not a medical device."
    assert str(tmp_path) not in json.dumps(report)
    table = (out / "case_dseg.tsv").read_text().splitlines()
    assert table == ["index\tname\tcolor", "1\tleft\t#C81E1E", "2\tright\t#1EC81E"]


def test_the_labels_do_not_depend_on_how_the_file_stores_its_axes(model, tmp_path):
    make_nifti(tmp_path / "a.nii.gz")
    scan = read_image(tmp_path / "a.nii.gz")
    turned = reorient(scan.volume, "PSL")
    make_nifti(tmp_path / "b.nii.gz", turned.data_cijk[0], turned.grid.affine_ras)
    assert (
        run(
            "predict", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "-m", model, "-o", tmp_path
        ).exit_code
        == 0
    )
    first, second = (read_labels(tmp_path / f"{n}_dseg.nii.gz", SCHEME) for n in "ab")
    back = reorient(second, first.grid.orientation)
    np.testing.assert_array_equal(first.data_ijk, back.data_ijk)
    assert first.grid.distance_mm(back.grid) < 0.01


def test_a_dicom_series_gives_nifti_and_seg_that_agree(model, tmp_path):
    orthonormal = np.diag([-1.5, -1.25, 2.0, 1.0])
    orthonormal[:3, 3] = [20, 30, -40]
    volume = Volume(voxels()[None], Grid((20, 22, 18), orthonormal))
    write_dicom_series(volume, tmp_path / "series", modality="MR")
    out = tmp_path / "out"
    result, answer = predict_json(tmp_path / "series", "-m", model, "-o", out)
    assert result.exit_code == 0, result.stderr
    files = answer["cases"][0]["files"]
    nifti = read_labels(Path(files["nifti"]), SCHEME)
    seg = read_seg(Path(files["dicom_seg"]), SCHEME, nifti.grid)
    np.testing.assert_array_equal(seg.data_ijk, nifti.data_ijk)
    assert int((seg.data_ijk > 0).sum()) > 0
    written = hd.seg.segread(files["dicom_seg"])
    source = pydicom.dcmread(next((tmp_path / "series").iterdir()), stop_before_pixels=True)
    assert written.StudyInstanceUID == source.StudyInstanceUID
    assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert "5366008" in {
        item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in written.SegmentSequence
    }


def test_contours_are_written_where_they_are_wished_for(model, tmp_path):
    volume = Volume(voxels()[None], Grid((20, 22, 18), np.diag([-1.5, -1.25, 2.0, 1.0])))
    write_dicom_series(volume, tmp_path / "series", modality="MR")
    make_nifti(tmp_path / "case.nii.gz")
    paths = (tmp_path / "series", tmp_path / "case.nii.gz")
    result, answer = predict_json(
        *paths, "-m", model, "-o", tmp_path / "out", "--rtstruct", "--names", "input"
    )
    assert result.exit_code == 0, result.stderr
    by_case = {Path(case["files"]["nifti"]).name: case for case in answer["cases"]}
    series, other = by_case["series_dseg.nii.gz"], by_case["case_dseg.nii.gz"]
    nifti = read_labels(Path(series["files"]["nifti"]), SCHEME)
    contours, _ = read_rtstruct(
        Path(series["files"]["rtstruct"]), SCHEME, nifti.grid, LabelReading(allow_gaps=True)
    )
    assert nifti.data_ijk.any()
    np.testing.assert_array_equal(contours.data_ijk, nifti.data_ijk)
    report = json.loads(Path(series["files"]["report"]).read_text())
    assert report["files"]["rtstruct"]["name"] == "series_rtstruct.dcm"
    assert report["settings"]["rtstruct"] is True
    assert "rtstruct" not in other["files"]
    assert "no RT structure set: the image is no DICOM series" in other["notes"]


def test_an_absurd_spacing_is_refused_before_memory_is_asked_for(tmp_path):
    model = make_model(tmp_path / "model", spacing=(1.0, 1.0, 1.0))
    make_nifti(tmp_path / "case.nii.gz", affine=np.diag([2000.0, 2000, 2000, 1]))
    result, answer = predict_json(tmp_path / "case.nii.gz", "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert answer["cases"][0]["code"] == "image-too-large"
    assert "found spacing 2000 x 2000 x 2000 mm" in result.stderr
    assert "check the spacing in the image's header" in result.stderr


def test_channels_are_given_by_name(tmp_path):
    model = make_model(tmp_path / "model", channels=("T1", "FLAIR"))
    first = make_nifti(tmp_path / "t1.nii.gz")
    second = make_nifti(tmp_path / "flair.nii.gz", voxels() * 2)
    good = run(
        "predict", "--channel", f"FLAIR={second}", "--channel", f"T1={first}", "-m", model,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert good.exit_code == 0, good.stderr
    assert (tmp_path / "out" / "flair_dseg.nii.gz").is_file()
    wrong = run("predict", "--channel", f"T2={first}", "-m", model, "-o", tmp_path / "out2")
    assert wrong.exit_code == 2
    assert "expected the model's channels T1, FLAIR, found T2" in wrong.stderr


def _truncated(folder):
    whole = make_nifti(folder / "whole.nii.gz").read_bytes()
    (folder / "whole.nii.gz").unlink()
    (folder / "case.nii.gz").write_bytes(whole[: len(whole) // 2])


def _not_finite(folder):
    data = voxels()
    data[3, 4, 5] = np.nan
    make_nifti(folder / "case.nii.gz", data)


def _labels(folder):
    data = np.zeros((20, 22, 18), np.uint8)
    data[5:9, 5:9, 5:9] = 1
    data[10:12, 5:9, 5:9] = 2
    make_nifti(folder / "case.nii.gz", data)


def _two_orientations(folder):
    one = np.diag([-1.0, -1.0, 2.0, 1.0])
    other = one[:, [1, 0, 2, 3]]
    series = folder / "case"
    square = voxels((20, 20, 18))[None]
    write_dicom_series(Volume(square, Grid((20, 20, 18), one)), series, modality="MR")
    write_dicom_series(Volume(square, Grid((20, 20, 18), other)), folder / "b", modality="MR")
    first = pydicom.dcmread(next(series.iterdir()))
    for number, path in enumerate(sorted((folder / "b").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = first.SeriesInstanceUID
        dataset.StudyInstanceUID = first.StudyInstanceUID
        dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
        dataset.save_as(series / f"other{number}")
    shutil.rmtree(folder / "b")


def _text_folder(folder):
    (folder / "case").mkdir()
    (folder / "case" / "notes.txt").write_text("no images here")


BROKEN = {
    "image-constant": lambda folder: make_nifti(
        folder / "case.nii.gz", np.full((20, 22, 18), 7, np.int16)
    ),
    "file-truncated": _truncated,
    "file-empty": lambda folder: (folder / "case.nii.gz").write_bytes(b""),
    "not-an-image": lambda folder: (folder / "case.nii.gz").write_bytes(
        b"this is not an image " * 9
    ),
    "no-images": _text_folder,
    "voxels-not-finite": _not_finite,
    "image-4d": lambda folder: make_nifti(folder / "case.nii.gz", voxels((20, 22, 18, 3))),
    "image-too-small": lambda folder: make_nifti(folder / "case.nii.gz", voxels((20, 22, 5))),
    "image-one-slice": lambda folder: make_nifti(folder / "case.nii.gz", voxels((20, 22, 1))),
    "label-as-image": _labels,
    "series-ambiguous": _two_orientations,
    "file-missing": lambda folder: None,
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_case_is_named_and_leaves_nothing_while_the_next_is_done(code, model, tmp_path):
    BROKEN[code](tmp_path)
    bad = tmp_path / "case.nii.gz"
    if (tmp_path / "case").is_dir():
        bad = tmp_path / "case"
    good = make_nifti(tmp_path / "good.nii.gz")
    out = tmp_path / "out"
    result, answer = predict_json(bad, good, "-m", model, "-o", out)
    assert result.exit_code == 1
    first, second = answer["cases"]
    assert (first["state"], first["code"]) == ("failed", code)
    assert "expected " in first["message"]
    assert first["message"] in result.stderr
    assert second["state"] == "done"
    assert answer["failed"] == 1
    assert {path.name.split("_")[0] for path in results(out)} == {"good"}


def test_a_text_file_in_gzip_is_not_an_image(model, tmp_path):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(gzip.compress(b"hello " * 200))
    _, answer = predict_json(path, "-m", model, "-o", tmp_path / "out")
    assert answer["cases"][0]["code"] == "not-an-image"


def test_one_image_for_a_two_channel_model_is_told_what_to_do(tmp_path):
    model = make_model(tmp_path / "model", channels=("T1", "FLAIR"))
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "expected 2 channels (T1, FLAIR), found 1" in result.stderr
    assert "channel-count" in result.stdout


def test_an_output_folder_that_cannot_be_is_wrong_usage(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    (tmp_path / "file").write_text("in the way")
    result = run("predict", image, "-m", model, "-o", tmp_path / "file")
    assert result.exit_code == 2
    assert "expected a folder that can be made and written" in result.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_results_are_not_overwritten_unless_asked(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    (tmp_path / "other").mkdir()
    assert run("predict", image, "-m", model, "-o", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "case_dseg.nii.gz").read_bytes()
    other = make_nifti(tmp_path / "other" / "case.nii.gz", voxels() * 2)
    again = run("predict", other, "-m", model, "-o", tmp_path / "out")
    assert again.exit_code == 1
    assert "expected no result of this name yet" in again.stderr
    assert (tmp_path / "out" / "case_dseg.nii.gz").read_bytes() == before
    third = run("predict", image, "-m", model, "-o", tmp_path / "out", "--overwrite")
    assert third.exit_code == 0
    assert (tmp_path / "out" / "case_dseg.nii.gz").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a/x.nii.gz", "b/x.nii.gz"], "expected cases with names that differ, found x"),
        ([], "expected either CASE arguments or --channel NAME=PATH options, found neither"),
        (["x.nii.gz", "--channel", "T1=y.nii.gz"], "found both"),
        (["--channel", "y.nii.gz"], "expected NAME=PATH, every name once"),
        (["x.nii.gz", "--device", "gpu"], "expected one of auto, cpu, cuda, cuda:N"),
        (["x.nii.gz", "--device", "cuda:9"], "expected cuda:9, found"),
        (["x.nii.gz", "--overlap", "1"], "expected a number from 0 to below 1, found 1.0"),
    ],
)
def test_wrong_usage_is_code_two(arguments, words, model, tmp_path):
    result = run("predict", *arguments, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_names_the_nearest(tmp_path):
    result = run("predict", "x.nii.gz", "-m", "reversible_hipocampus", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "nearest: reversible_hippocampus" in result.stderr


def test_changed_weights_are_refused(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", copy, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "expected the sha256 on the card" in result.stderr


def test_a_pickle_in_place_of_weights_is_not_opened(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "weights.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, copy / "model.pt")
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", copy, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "other weight formats are not read" in result.stderr


def test_a_card_with_an_unknown_key_is_refused(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**card, "script": "x"}))
    result = run("predict", "x.nii.gz", "-m", copy, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "script" in result.stderr
    assert load_card(model).name == "untrained"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--probabilities",)])
def test_a_disk_that_fills_up_fails_the_case_and_leaves_no_partial_file(model, tmp_path, options):
    """A real small file system when root, else a limit on the size of files."""
    image = make_nifti(tmp_path / "case.nii.gz", voxels((64, 64, 40)))
    out = tmp_path / "out"
    out.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(out)],
            check=False,
            capture_output=True,
        ).returncode
        == 0
    )

    try:
        done = command(
            *("predict", image, "-m", model, "-o", out, *options),
            largest_file=None if mounted else 4096,
        )
        left = [path.name for path in out.iterdir()]
    finally:
        if mounted:
            subprocess.run(["umount", str(out)], check=True)
    assert done.returncode == 1, done.stderr
    assert "disk-full" in done.stderr
    assert left == []


def test_patient_data_stays_out_of_messages_and_reports(model, tmp_path):
    volume = Volume(voxels()[None], Grid((20, 22, 18), np.diag([-1.0, -1.0, 2.0, 1.0])))
    series = tmp_path / "series"
    write_dicom_series(volume, series, modality="MR")
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = "Planted^Name", "PLANTED-ID"
        dataset.save_as(path)
    out = tmp_path / "out"
    result = run("predict", series, "-m", model, "-o", out, "--preview")
    assert result.exit_code == 0, result.stderr
    texts = [path.read_text() for path in out.iterdir() if path.suffix in (".json", ".tsv")]
    everything = " ".join([result.stdout, result.stderr, *texts])
    assert "lanted" not in everything
    assert "PLANTED" not in everything
    # the SEG belongs to the patient, as DICOM wants it
    assert pydicom.dcmread(next(out.glob("*_dseg.dcm"))).PatientID == "PLANTED-ID"


def test_a_series_without_identifiers_gives_the_nifti_result_and_is_marked_as_incomplete(
    model, tmp_path
):
    volume = Volume(voxels()[None], Grid((20, 22, 18), np.diag([-1.0, -1.0, 2.0, 1.0])))
    series = tmp_path / "series"
    write_dicom_series(volume, series, modality="CT")
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = ""
        dataset.save_as(path)
    result, answer = predict_json(series, "-m", model, "-o", tmp_path / "out", "--rtstruct")
    assert result.exit_code == 1, result.stderr
    (case,) = answer["cases"]
    assert set(case["files"]) == {"nifti", "table", "statistics", "statistics_table", "report"}
    assert (case["state"], case["code"]) == ("incomplete", "dicom-references-missing")
    report = json.loads((tmp_path / "out" / case["files"]["report"]).read_text())
    assert set(report["refused"]) == {"dicom_seg", "rtstruct"}
    told = "no DICOM SEG can refer to this series: it lacks StudyInstanceUID"
    assert told in case["notes"]
    assert told in result.stderr


def test_a_new_run_leaves_nothing_of_the_old_one_beside_it(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    assert run("predict", image, "-m", model, "-o", out, "--preview").exit_code == 0
    assert (out / "case_preview.png").exists()
    (out / "case_dseg.dcm").write_text("of another run")
    assert run("predict", image, "-m", model, "-o", out, "--overwrite").exit_code == 0
    assert [path.name for path in results(out)] == [
        "case_dseg.nii.gz",
        "case_dseg.tsv",
        "case_report.json",
        "case_statistics.csv",
        "case_statistics.json",
    ]


def test_a_file_that_is_there_already_is_not_replaced(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    (out / "case_dseg.tsv").write_text("mine")
    result = run("predict", image, "-m", model, "-o", out)
    assert result.exit_code == 1
    assert "output-exists" in result.stderr
    assert [path.read_text() for path in results(out)] == ["mine"]


def test_names_keep_their_letters_and_links_their_names(model, tmp_path):
    target = make_nifti(tmp_path / "SHA256E-s1234.nii.gz")
    for name in ("größe ä.nii.gz", "größe ö.nii.gz", "sub-01_T1w.nii.gz"):
        (tmp_path / name).symlink_to(target)
    paths = sorted(tmp_path.glob("[gs]*.nii.gz"))
    result = run("predict", *paths, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.tsv")} == {
        "größe_ä_dseg.tsv",
        "größe_ö_dseg.tsv",
        "sub-01_T1w_dseg.tsv",
    }


def test_another_modality_than_the_models_is_noted(model, tmp_path):
    volume = Volume(voxels()[None], Grid((20, 22, 18), np.diag([-1.0, -1.0, 2.0, 1.0])))
    write_dicom_series(volume, tmp_path / "series", modality="CT")
    result = run("predict", tmp_path / "series", "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "the series is CT, the model was trained on MR" in result.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", model, "--dry-run")
    assert result.exit_code == 0, result.stderr
    for part in ("program", "weights", "input", "output", "network at work", "slab of logits"):
        assert part in result.stdout
    assert "predicted peak" in result.stdout
    assert "windows along axis" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii.gz"]
    result, answer = predict_json(image, "-m", model, "--dry-run")
    plan = answer["cases"][0]["plan"]
    assert plan["ram_bytes"] == sum(item["bytes"] for item in plan["items"])


def test_a_dry_run_for_several_devices_plans_for_one_of_them(model, tmp_path):
    image = make_nifti(tmp_path / "a.nii.gz")
    one, several = (
        predict_json(image, "-m", model, "--dry-run", "--device", device)
        for device in ("cpu", "cpu,cpu")
    )
    assert several[0].exit_code == 0, several[0].stderr
    items = [
        [(item["name"], item["place"]) for item in answer["cases"][0]["plan"]["items"]]
        for _, answer in (one, several)
    ]
    assert items[0] == items[1]
    refused = run("predict", image, "-m", model, "--dry-run", "--device", "cpu,nowhere")
    assert refused.exit_code == 2


def test_a_dry_run_names_the_cases_that_cannot_be_planned(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    (tmp_path / "broken.nii").write_bytes(b"no image at all")
    result, answer = predict_json(image, tmp_path / "broken.nii", "-m", model, "--dry-run")
    assert result.exit_code == 1
    assert ["plan" in case for case in answer["cases"]] == [True, False]


def test_everything_that_can_be_asked_for_is_written_and_told(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    out = tmp_path / "out"
    result, answer = predict_json(
        image, "-m", model, "-o", out, "--report", "--preview", "--uncertainty", "--probabilities",
        "--tta", "ik", "--batch", "2", "--blending", "constant", "--post", "left:keep_largest",
        "--post", "*:min_mm3=1", "--precision", "fp32", "--threads", "1", "--max-memory", "20GB",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "case_report.json").read_text())
    assert set(report["files"]) == set(answer["cases"][0]["files"]) - {"report"}
    assert {"page", "preview", "uncertainty", "probabilities", "statistics"} <= set(report["files"])
    for kind in report["files"].values():
        assert (out / kind["name"]).exists()
    settings = report["settings"]
    assert settings["mirror"] == ["i", "k"]
    assert settings["batch"] == 2
    assert settings["post_processing"][0]["label"] == "left"
    assert report["windows"]["forward_calls"] % 4 == 0
    memory = report["memory"]
    assert memory["predicted"]["max_ram_bytes"] == 20_000_000_000
    assert 0.5 < memory["measured_ram_bytes"] / memory["predicted"]["ram_bytes"] < 1.3
    assert report["device"] == "cpu"
    assert set(report["seconds"]) >= {"read", "plan", "network", "write_and_verify", "statistics"}
    assert str(tmp_path) not in json.dumps(report)
    assert str(tmp_path) not in (out / "case_report.html").read_text()
    entropy = nib.load(out / "case_uncertainty.nii.gz")
    assert 0 <= entropy.get_fdata().min() <= entropy.get_fdata().max() <= 1 + 1e-6
    assert entropy.header["srow_x"].tobytes() == nib.load(image).header["srow_x"].tobytes()
    shares = read_probabilities(out / "case_probseg.h5")
    assert shares.names == ("background", "left", "right")
    assert shares.shape_nijk == (3, *nib.load(image).shape)
    csv = (out / "case_statistics.csv").read_text().splitlines()
    assert csv[0].startswith("name,value,voxels,volume_ml")
    assert len(csv) == 3


def test_paths_are_logged_only_when_asked_for(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    assert run("predict", image, "-m", model, "-o", tmp_path, "--log-paths").exit_code == 0
    report = json.loads((tmp_path / "case_report.json").read_text())
    assert report["input"]["paths"] == [str(image)]


def test_models_given_together_are_an_ensemble(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    other = make_model(tmp_path / "other", window=(8, 16, 8))
    result = run("predict", image, "-m", model, "-m", other, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "out" / "case_report.json").read_text())
    assert len(report["ensemble"]) == 2


def test_several_devices_share_the_cases(model, tmp_path):
    cases = [make_nifti(tmp_path / f"case{n}.nii.gz") for n in range(3)]
    (tmp_path / "broken.nii").write_bytes(b"no image at all")
    out = tmp_path / "out"
    result, answer = predict_json(
        *cases, tmp_path / "broken.nii", "-m", model, "-o", out, "--device", "cpu,cpu"
    )
    assert result.exit_code == 1, result.stderr
    states = {case["case"]: case["state"] for case in answer["cases"]}
    assert states == {"case0": "done", "case1": "done", "case2": "done", "broken": "failed"}
    assert sorted(path.name for path in out.glob("*_report.json")) == [
        f"case{n}_report.json" for n in range(3)
    ]
    alone = tmp_path / "alone"
    assert run("predict", cases[0], "-m", model, "-o", alone).exit_code == 0
    found = [nib.load(folder / "case0_dseg.nii.gz").get_fdata() for folder in (out, alone)]
    np.testing.assert_array_equal(*found)


def test_a_limit_below_the_least_fails_the_case_and_says_what_would_do(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    result, answer = predict_json(
        image, "-m", model, "-o", tmp_path / "out", "--max-memory", "50MB"
    )
    assert result.exit_code == 1
    assert answer["cases"][0]["code"] == "memory-limit"
    assert "raise the limit to" in answer["cases"][0]["message"]
    assert results(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-memory", "lots"], "expected an amount of memory, such as 2GB"),
        (["--tta", "ii"], "expected none, model (the axes it was trained with), or axes such as"),
        (["--roi", "1:2,3:4"], "expected first:last on each voxel axis"),
        (["--coarser", "0.5"], "expected a factor from 1 to 8, found 0.5"),
        (["--batch", "0"], "expected 1 to 64 windows at a time, found 0"),
        (["--threads", "0"], "expected at least 1 thread, found 0"),
        (["--post", "lift:keep_largest"], "nearest: left"),
        (["--device", "cpu,gpu"], "expected one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_option_is_code_two_and_a_sentence(model, tmp_path, options, words):
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", model, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_without_a_folder_there_is_nothing_to_write_to(model, tmp_path):
    result = run("predict", make_nifti(tmp_path / "case.nii.gz"), "-m", model)
    assert result.exit_code == 2
    assert "add -o FOLDER" in result.stderr


def test_a_region_outside_one_image_fails_that_case_alone(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    result, answer = predict_json(
        image, "-m", model, "-o", tmp_path / "out", "--roi", "0:5,0:5,0:99"
    )
    assert result.exit_code == 1
    assert answer["cases"][0]["code"] == "roi"


@pytest.mark.slow
def test_the_limit_that_the_refusal_names_is_enough_and_is_kept(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz", voxels((48, 48, 32)))

    # a process of its own starts it: the peak of a child begins with that of who forked it
    launcher = (
        "import os, sys; pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ); "
        "print(os.wait4(pid, 0)[2].ru_maxrss, file=sys.stderr)"
    )
    # refused first, then allowed what the refusal names, in one process whose peak is that of both
    program = (
        "import json, re, sys; from typer.testing import CliRunner; from pipelines.cli import app\n"
        "def predicted(limit):\n"
        "    words = ['predict', *sys.argv[1:], '--json', '--max-memory', limit]\n"
        "    return json.loads(CliRunner().invoke(app, words).stdout)['cases'][0]\n"
        "refused = predicted('100MB')\n"
        "named = re.search(r'raise the limit to ([\\d.]+ \\w+)', refused['message'])[1]\n"
        "print(json.dumps([refused, named, predicted(named.replace(' ', ''))]))"
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-c", launcher, sys.executable, "-c", program),
            *(image, "-m", model, "-o", tmp_path / "out"),
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    peak = int(ran.stderr.splitlines()[-1]) * 1024
    refused, named, done = json.loads(ran.stdout)
    assert refused["code"] == "memory-limit"
    assert done["state"] == "done"
    limit = parse_bytes(named, "--max-memory")
    assert peak <= limit
    memory = done["memory"]
    assert 0.7 < memory["measured_ram_bytes"] / memory["predicted_ram_bytes"] < 1.1


def test_the_plan_of_a_dry_run_is_that_of_the_run(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    options = ("--probabilities", "--uncertainty", "--precision", "fp32")
    _, dry = predict_json(image, "-m", model, "--dry-run", *options)
    assert run("predict", image, "-m", model, "-o", tmp_path, *options).exit_code == 0
    report = json.loads((tmp_path / "case_report.json").read_text())
    plans = dry["cases"][0]["plan"], report["memory"]["predicted"]
    rows = [
        next(item["bytes"] for item in plan["items"] if item["name"] == "row of the result")
        for plan in plans
    ]
    assert rows[0] == rows[1]


def test_mirroring_that_training_did_not_know_is_warned_of(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    _, answer = predict_json(image, "-m", model, "-o", tmp_path / "out", "--tta", "j")
    assert any("not trained with mirroring along j" in note for note in answer["cases"][0]["notes"])


def test_a_run_that_fails_leaves_the_probabilities_that_were_there(model, tmp_path):
    image, out = make_nifti(tmp_path / "a.nii.gz"), tmp_path / "out"
    assert run("predict", image, "-m", model, "-o", out, "--probabilities").exit_code == 0
    before = {path.name: path.read_bytes() for path in results(out)}
    assert "a_probseg.h5" in before
    options = ("--probabilities", "--overwrite", "--max-memory", "1MB")
    result = run("predict", image, "-m", model, "-o", out, *options)
    assert result.exit_code == 1
    assert "memory-limit" in result.stderr
    assert {path.name: path.read_bytes() for path in results(out)} == before


def test_ctrl_c_ends_after_the_window_in_hand_and_keeps_what_is_finished(
    model, tmp_path, monkeypatch
):
    """As a process would see it: the signal comes while the second case is segmented."""
    first, second, third = (make_nifti(tmp_path / f"{n}.nii.gz") for n in "abc")
    out = tmp_path / "out"
    answer = Group.answer

    seen = []

    def interrupting(self, x_bcijk, progress):
        if progress.total > 1 and not any(one is progress for one in seen):
            seen.append(progress)
            if len(seen) == 2:
                while not (out / "a_report.json").exists():
                    time.sleep(0.01)
                signal.raise_signal(signal.SIGINT)
        return answer(self, x_bcijk, progress)

    monkeypatch.setattr(Group, "answer", interrupting)
    options = ("--overlap", "0.5", "--skip", "none")
    result, told = predict_json(first, second, third, "-m", model, "-o", out, *options)
    assert result.exit_code == 130
    assert [case["case"] for case in told["cases"]] == ["a"]
    assert told["not_done"] == ["b", "c"]
    assert all(path.name.startswith("a_") for path in results(out))


def test_an_interrupt_while_results_are_written_leaves_no_part_of_them(
    model, tmp_path, monkeypatch
):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.results.statistics_to_csv", interrupted)
    out = tmp_path / "out"
    result = run("predict", make_nifti(tmp_path / "a.nii.gz"), "-m", model, "-o", out)
    assert result.exit_code == 130
    assert results(out) == []


def test_what_was_left_unfinished_is_named(model, tmp_path, monkeypatch):
    cases = [make_nifti(tmp_path / f"case{n}.nii.gz") for n in range(3)]

    def interrupted(loaded, *arguments, **more):
        if loaded.case.name == "case1":
            raise KeyboardInterrupt
        return predict_case(loaded, *arguments, **more)

    monkeypatch.setattr("pipelines.workbench.predict_case", interrupted)
    result, answer = predict_json(*cases, "-m", model, "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert answer["not_done"] == ["case1", "case2"]


def test_a_whole_axis_may_be_left_open_in_a_region(model, tmp_path):
    image = make_nifti(tmp_path / "case.nii.gz")
    assert run("predict", image, "-m", model, "-o", tmp_path, "--roi", ":,3:,:9").exit_code == 0
    report = json.loads((tmp_path / "case_report.json").read_text())
    assert report["settings"]["roi"] == "0:20,3:22,0:9"
    assert any("only voxels 0:20,3:22,0:9 were looked at" in note for note in report["notes"])
    found = nib.load(tmp_path / "case_dseg.nii.gz").get_fdata()
    assert found.any()
    assert not found[:, :3].any()
    assert not found[:, :, 9:].any()


def test_weights_that_are_not_numbers_are_refused_before_any_case(model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "weights.safetensors")
    name = next(key for key, value in tensors.items() if value.is_floating_point())
    tensors[name].flatten()[0] = float("nan")
    content = save(tensors)
    (broken / "weights.safetensors").write_bytes(content)
    described = json.loads((broken / "model.json").read_text())
    described["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (broken / "model.json").write_text(json.dumps(described))
    image = make_nifti(tmp_path / "case.nii.gz")
    result = run("predict", image, "-m", broken, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"found NaN or infinity in {name}" in result.stderr
