"""Exported models: medseg's own folder, and a bundle that stock MONAI runs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from safetensors.torch import load_file
from typer.testing import CliRunner

from medseg.core import Grid, Volume
from medseg.inference import predict
from medseg.models.card import Channel, ClipZScore, parse_card
from medseg.models.folder import load_model
from medseg.models.incoming import first_expression
from pipelines.bundle import export_model
from pipelines.bundle_configs import _intensities, check_expressible, inference_config
from pipelines.cli import app
from tests.tiny_dataset import write_dataset
from tests.tiny_model import tiny_description, write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
ZSCORE = {"kind": "zscore"}
NONZERO = {"kind": "zscore", "nonzero_only": True}
CT = {"kind": "clip_zscore", "lower": -100.0, "upper": 250.0, "mean": 40.0, "std": 60.0}
pytestmark = [
    # MONAI says so whenever it reads a configuration; these are ours
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    # a reader of MONAI's that is not used here
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]
UNCHANGED = {"kind": "unchanged"}
ON_MODELS_GRID = np.diag([1.0, 1.0, 1.0, 1.0])


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def channels(*kinds):
    return [
        {"name": f"C{n}", "modality": "MR", "normalisation": kind} for n, kind in enumerate(kinds)
    ]


def write_image(path: Path, shape, affine=ON_MODELS_GRID, seed=5) -> Path:
    rng = np.random.default_rng(seed)
    voxels = rng.normal(60, 80, shape).astype(np.float32)
    voxels[:2] = 0
    image = nib.Nifti1Image(voxels, affine)
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)
    return path


def voxels_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def run_bundle(bundle: Path, images: Path, out: Path, config="inference") -> None:
    """As the command line does, without another process."""
    monai.bundle.run(
        config_file=str(bundle / "configs" / f"{config}.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(out),
        device="$torch.device('cpu')",
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    source = write_tiny_model(folder / "tiny")
    result = run("models", "export", source, "-o", folder / "bundle", "--authors", "A. Author")
    assert result.exit_code == 0, result.stderr
    return folder / "bundle"


def test_stock_monai_runs_the_folder_and_finds_what_medseg_predict_finds(exported, tmp_path):
    image = write_image(tmp_path / "images" / "case.nii.gz", (24, 16, 24))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "monai.bundle", "run"),
            *("--config_file", "configs/inference.json", "--bundle_root", "."),
            *("--dataset_dir", str(image.parent), "--output_dir", str(tmp_path / "monai")),
        ],
        cwd=exported,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    result = run("predict", image, "-m", exported, "-o", tmp_path / "medseg", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    theirs = nib.load(tmp_path / "monai" / "case_dseg.nii.gz")
    ours = nib.load(tmp_path / "medseg" / "case_dseg.nii.gz")
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-5)
    assert theirs.get_data_dtype() == np.uint8
    labels = np.asarray(theirs.dataobj)
    assert set(np.unique(labels)) == {0, 1, 5}
    # four windows, which both sides place alike at these extents
    assert (labels == np.asarray(ours.dataobj)).mean() > 0.999


REGIONS = [
    {"name": "whole", "members": [1, 5], "writes": 1},
    {"name": "core", "members": [5], "writes": 5},
]
SLICED = {
    "name": "transdae",
    "settings": {"preset": "tiny", "out_channels": 3},
    "slices": {"axis": "k", "neighbours": 1, "extents": [64, 64], "batch": 8},
}


def two_outputs() -> dict:
    network = tiny_description().network.model_dump()
    return {**network, "settings": {**network["settings"], "out_channels": 2}}


CASES = {
    "z-score": {},
    "z-score of what is not zero": {"inputs": {"channels": channels(NONZERO)}},
    "window of a CT": {"inputs": {"channels": channels(CT)}},
    "two channels alike": {"inputs": {"channels": channels(ZSCORE, ZSCORE)}},
    "three channels, each its own": {"inputs": {"channels": channels(CT, NONZERO, UNCHANGED)}},
    "other axes": {"inputs": {"orientation": "SPL"}},
    "each image's spacing": {"inputs": {"spacing_mm": None}},
    "regions": {"regions": REGIONS, "network": two_outputs()},
    "largest pieces": {"post_processing": [{"label": "*", "keep_largest": True}]},
    "largest piece of one": {"post_processing": [{"label": "far", "keep_largest": True}]},
    "slices": {"network": SLICED},
}


@pytest.mark.parametrize("case", CASES)
def test_on_an_image_in_one_window_the_labels_are_those_of_medseg(case, tmp_path, capfd):
    source = write_tiny_model(tmp_path / "tiny", **CASES[case])
    card = export_model(str(source), tmp_path / "bundle")
    count = len(card.inputs.channels)
    shape = (16, 13, 15)
    affine = np.array([[0, -1.0, 0, 12], [-1.0, 0, 0, 7], [0, 0, 1.0, 33], [0, 0, 0, 1]])
    if card.inputs.spacing_mm is None:
        affine[:3, 2] *= 2.5
    names = ["case.nii.gz"] if count == 1 else [f"case_{n:04d}.nii.gz" for n in range(count)]
    images = [
        write_image(tmp_path / "images" / name, shape, affine, seed=n)
        for n, name in enumerate(names)
    ]
    run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "out")
    data = np.stack([voxels_of(image) for image in images])
    volume = Volume(data, Grid(shape, affine), tuple(c.name for c in card.inputs.channels))
    settings = None
    ours = predict(volume, tmp_path / "bundle", settings=settings, device="cpu").data_ijk
    (written,) = (tmp_path / "out").iterdir()
    theirs = voxels_of(written)
    assert len(np.unique(ours)) > 1
    assert (theirs == ours).mean() > 0.999, case


def test_on_another_grid_the_labels_differ_at_edges_alone(tmp_path):
    """The shipped model on its sample, brought to other voxels by whom neither side knows."""
    from scipy import ndimage  # noqa: PLC0415 - for this test alone

    samples = REPOSITORY / "medseg" / "resources" / "samples" / "hippocampus" / "images"
    sample = nib.load(samples / "hippocampus_034.nii.gz")
    voxels = np.asarray(sample.dataobj, dtype=np.float32)
    coarse = ndimage.zoom(voxels, (1 / 1.3, 1.0, 1.2), order=1)
    steps = [old / new for old, new in zip(voxels.shape, coarse.shape, strict=True)]
    affine = np.diag([*steps, 1.0])
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(coarse, affine), tmp_path / "images" / "case.nii.gz")
    export_model("reversible_hippocampus", tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", tmp_path / "images", tmp_path / "out")
    theirs = voxels_of(tmp_path / "out" / "case_dseg.nii.gz")
    ours = predict(coarse, tmp_path / "bundle", affine_ras=affine, device="cpu").data_ijk
    assert (theirs == ours).mean() > 0.99
    for value in (1, 2):
        both = ((theirs == value) & (ours == value)).sum()
        assert 2 * both / ((theirs == value).sum() + (ours == value).sum()) > 0.93


def test_the_folder_is_medsegs_own_and_loads(exported):
    network, card = load_model(exported)
    state = torch.load(exported / "models" / "model.pt", map_location="cpu", weights_only=True)
    ours = load_file(exported / "weights.safetensors")
    assert state.keys() == ours.keys()
    assert all(state[name].equal(ours[name]) for name in ours)
    network.load_state_dict(state, strict=True)
    assert "## Use" in (exported / "docs" / "README.md").read_text()
    assert f"Licence of the weights: {card.licence}" in (exported / "LICENSE").read_text()


def test_the_metadata_have_the_keys_of_monais_schema(exported):
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())
    required = {
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *(
            "required_packages_version",
            "task",
            "description",
            "authors",
            "copyright",
        ),
        *("data_source", "intended_use", "network_data_format"),
    }
    assert required <= metadata.keys()
    assert metadata["authors"] == "A. Author"
    inputs = metadata["network_data_format"]["inputs"]["image"]
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert (inputs["format"], outputs["format"]) == ("magnitude", "labels")
    assert inputs["channel_def"] == {"0": "T1"}
    assert outputs["channel_def"] == {"0": "background", "1": "near", "2": "far"}
    parser = ConfigParser()
    parser.read_meta(metadata)
    io_info = monai.bundle.scripts._get_net_io_info(parser)
    assert io_info == (1, (16, 16, 16), torch.float32, 3, torch.float32)
    assert first_expression(metadata) is None


@pytest.mark.parametrize("kind", ["inference", "train"])
def test_the_configurations_have_the_properties_that_monais_tools_ask_for(exported, kind, tmp_path):
    configs = exported / "configs"
    data = write_dataset(tmp_path / "data", cases=2)
    workflow = ConfigWorkflow(
        config_file=str(configs / f"{kind}.json"),
        workflow_type=kind,
        bundle_root=str(exported),
        dataset_dir=str(data / "imagesTr" if kind == "inference" else data),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


BALLS = {
    "name": "balls",
    "labels": [
        {"value": 1, "name": "near", "rgb": [255, 0, 0]},
        {"value": 2, "name": "far", "rgb": [0, 255, 0]},
    ],
}
DEEP = {
    "name": "neunet",
    "settings": {
        "out_channels": 3,
        "features": [4, 4, 4],
        "kernels": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "hidden_width": "c",
    },
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": DEEP},
        {
            "network": two_outputs(),
            "regions": [
                {"name": "both", "members": [1, 2], "writes": 1},
                {"name": "far", "members": [2], "writes": 2},
            ],
        },
    ],
    ids=["classes", "deep supervision", "regions"],
)
def test_monai_trains_on_from_the_weights(tmp_path, changes):
    source = write_tiny_model(tmp_path / "tiny", labels=BALLS, **changes)
    export_model(str(source), tmp_path / "bundle")
    data = write_dataset(tmp_path / "data", cases=2)
    config = tmp_path / "bundle" / "configs" / "train.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "max_epochs": 1}))
    run_bundle(tmp_path / "bundle", data, tmp_path / "out", config="train")
    trained = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    before = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    state = trained.get("model", trained)
    assert state.keys() == before.keys()
    assert any(not tensor.equal(before[name]) for name, tensor in state.items())
    moved = max(float((state[name] - before[name]).abs().max()) for name in before)
    assert moved < 0.01  # it went on from there


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": {"orientation": "slices_last"}}, "inputs.orientation slices_last"),
        ({"inputs": {"interpolation": "cubic"}}, "inputs.interpolation cubic"),
        ({"inputs": {"thick_slices": "nearest"}}, "inputs.thick_slices nearest"),
        ({"post_processing": [{"closing_mm": 2}]}, "post_processing of '*' with closing"),
        ({"post_processing": [{"label": "far", "fill_holes": True}]}, "post_processing of 'far'"),
        ({"post_processing": [{"min_mm3": 5}]}, "post_processing of '*'"),
    ],
)
def test_what_monais_transforms_do_not_describe_is_refused(tmp_path, changes, words):
    source = write_tiny_model(tmp_path / "tiny", **changes)
    result = run("models", "export", source, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert f"found {words}" in result.stderr
    assert "[bundle-inexpressible]" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_bounds_that_json_does_not_know_are_refused(tmp_path):
    source = write_tiny_model(tmp_path / "tiny", inputs={"channels": channels(CT)})
    card = source / "model.json"
    card.write_text(card.read_text().replace('"lower": -100.0', '"lower": -Infinity'))
    result = run("models", "export", source, "-o", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "found a normalisation without finite bounds" in result.stderr


def test_a_model_of_scaled_ct_takes_hounsfield_units_in_monai() -> None:
    how = ClipZScore(lower=0, upper=1, mean=0.5, std=0.5)
    channel = Channel(name="CT", modality="CT", normalisation=how, scaled_hu=(-125, 275))
    first, second = _intensities((channel,))
    assert (first["a_min"], first["a_max"], first["b_min"], first["b_max"]) == (-125, 275, 0, 1)
    assert (second["a_min"], second["a_max"], second["b_min"], second["b_max"]) == (0, 1, -1, 1)


def test_what_only_matters_for_resampling_is_no_hindrance_without_it():
    description = tiny_description(
        inputs={"spacing_mm": None, "interpolation": "cubic", "thick_slices": "nearest"}
    )
    card = parse_card(
        json.dumps({**description.model_dump(), "weights_sha256": 64 * "0"}).encode(), where="card"
    )
    check_expressible(card)
    steps = [step["_target_"] for step in inference_config(card)["preprocessing"]["transforms"]]
    assert "Spacingd" not in steps


def test_texts_that_monai_would_evaluate_are_refused(tmp_path):
    evil = "$__import__('os').getpid()"
    source = write_tiny_model(tmp_path / "tiny", description=evil)
    result = run("models", "export", source, "-o", tmp_path / "bundle")
    assert "expected texts that do not begin with $, @ or %" in result.stderr
    assert "[bundle-expression]" in result.stderr
    source = write_tiny_model(tmp_path / "tiny")
    result = run("models", "export", source, "-o", tmp_path / "bundle", "--authors", evil)
    assert result.exit_code == 2
    assert "origin: expected texts that do not begin with" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_zip_goes_out_and_comes_in_again(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("licence.txt").write_text("All of it.")
    options = ("--copyright", "Copyright 2026 A. Author", "--licence-file", "licence.txt")
    result = run("models", "export", exported, "-o", "out/tiny.zip", *options)
    assert result.exit_code == 0, result.stderr
    assert "says 'not stated' where --authors would tell" in result.stderr
    with zipfile.ZipFile("out/tiny.zip") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"tiny"}
        assert archive.testzip() is None
    result = run("models", "export", exported, "-o", "out/tiny.zip")
    assert result.exit_code == 2
    assert "replace it with --overwrite [output-exists]" in result.stderr
    assert run("models", "export", exported, "-o", "out/tiny.zip", "--overwrite", *options)

    result = run("models", "import", "out/tiny.zip", "--name", "mine", "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["imported"] == "models/mine"
    assert "models/model.pt" in answer["left_out"]
    assert Path("models/mine/LICENSE").read_text().endswith("All of it.")
    listed = json.loads(run("models", "list", "models", "--json").stdout)
    assert "models/mine" in listed["models"]
    image = write_image(tmp_path / "images" / "case.nii.gz", (16, 16, 16))
    result = run("predict", image, "-m", "models/mine", "-o", "labels", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert run("models", "export", "models/mine", "-o", "again").exit_code == 0

    result = run("models", "import", "out/tiny.zip")
    assert result.stdout.splitlines()[0] == "tiny 1 in models/tiny"
    assert "left out: configs/inference.json" in result.stdout
    result = run("models", "import", "absent.zip", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "bundle-missing"
    result = run("models", "import", "out/tiny.zip")
    assert result.exit_code == 2, "the target is there"
    assert "[output-exists]" in result.stderr
    Path("damaged.zip").write_bytes(Path("out/tiny.zip").read_bytes()[:5000])
    result = run("models", "import", "damaged.zip", "-o", "models/damaged")
    assert result.exit_code == 1, "the file is damaged"
    assert "[bundle-zip]" in result.stderr


def test_exports_replace_nothing_but_models(exported, tmp_path):
    for name, words in (("bundle", "give --overwrite"), ("a.zip", "found a folder")):
        (tmp_path / name).mkdir()
        result = run("models", "export", exported, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert words in result.stderr
    (tmp_path / "bundle" / "thesis.txt").touch()
    result = run("models", "export", exported, "-o", tmp_path / "bundle", "--overwrite")
    assert "it holds files but no model.json, so it is left alone" in result.stderr
    (tmp_path / "bundle" / "thesis.txt").unlink()
    result = run("models", "export", exported, "-o", tmp_path / "bundle", "--overwrite")
    assert result.exit_code == 0, result.stderr


def test_a_licence_that_cannot_be_read_is_refused(exported, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    for name, words in (("absent", "found no such file"), ("latin.txt", "cannot be read")):
        options = ("--licence-file", tmp_path / name)
        result = run("models", "export", exported, "-o", tmp_path / "bundle", *options)
        assert result.exit_code == 2
        assert words in result.stderr
        assert "[bundle-licence]" in result.stderr
