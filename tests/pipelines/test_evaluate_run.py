"""`medseg evaluate RUN`: the cases that a training held out, of any layout of datasets."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.core import LabelMap, Volume
from medseg.data.case import read_labelled
from medseg.data.phantoms import write_phantom
from medseg.data.schemes import SCHEMES
from medseg.errors import FormatError
from medseg.inference.predictor import Predictor
from medseg.io.reading import read_labels
from medseg.metrics.overlap import dice_by_label
from medseg.models.card import load_card
from medseg.training.settings import parse_settings
from pipelines.cli import app
from pipelines.folds import train_folds
from pipelines.train import read_data, train
from tests.tiny_dataset import tiny_settings, write_dataset


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def trained_on(layout, scheme, place, **changes):
    content = tiny_settings(steps=1, validation_cases=1)
    content["labels"] = SCHEMES[scheme].to_dict()
    content["data"] = {"root": "data/phantom", "layout": layout}
    content["inputs"] |= {"spacing_mm": None, "window_ijk": [16, 16, 8]}
    if layout == "transunet":
        content["inputs"]["channels"] = [
            {"name": "CT", "modality": "CT", "scaled_hu": [-125, 275]},
        ]
    settings = parse_settings(content | changes, where="test")
    train(settings, run_folder=place / "run", data_root=place / "data")
    return settings


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    place = tmp_path_factory.mktemp("balls")
    write_dataset(place / "data")
    settings = parse_settings(tiny_settings(steps=12, learning_rate=0.02), where="test")
    train(settings, run_folder=place / "run", data_root=place / "data")
    return place


def test_the_held_out_cases_are_segmented_as_by_the_predictor_and_scored(balls, tmp_path):
    answer = run("evaluate", balls / "run", "--data", balls / "data", "-o", tmp_path, "--json")
    assert answer.exit_code == 0, answer.output
    summary = json.loads(answer.stdout)
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == [
        "case_04_dseg.nii.gz",
        "case_05_dseg.nii.gz",
    ]
    settings = parse_settings(tiny_settings(), where="test")
    predictor = Predictor.load(balls / "run", device="cpu")
    means = []
    for case in read_data(settings, balls / "data").validation:
        image, truth = read_labelled(case, ["T1"], settings.scheme())
        found = predictor.predict(image).labels
        kept = read_labels(tmp_path / "predictions" / f"{case.id}_dseg.nii.gz", settings.scheme())
        np.testing.assert_array_equal(kept.data_ijk, found.data_ijk)
        means.append(dice_by_label(found, truth)["near"])
    assert means[0] > 0, "a model that finds nothing would show nothing"
    assert summary["results"]["near"]["dice"]["mean"] == pytest.approx(np.mean(means))
    page = (tmp_path / "report.html").read_text()
    assert "model balls" in page


def test_other_parts_cases_and_a_second_call_are_chosen_or_refused_in_words(balls, tmp_path):
    words = ["evaluate", balls / "run", "--data", balls / "data", "-o", tmp_path / "out"]
    answer = run(*words, "--part", "train", "--cases", "case_01")
    assert answer.exit_code == 0, answer.output
    assert "1 case of the part train" in answer.stdout
    assert [path.name for path in (tmp_path / "out" / "references").iterdir()] == [
        "case_01_dseg.nii.gz"
    ]
    refused = run(*words)
    assert (refused.exit_code, "earlier" in refused.stderr) == (2, True)
    for more, found in (
        (["--part", "tset"], "'tset'"),
        (["--part", "test"], "expected cases under 'test' in its split, found none"),
        (["--cases", "case_01"], "expected names of cases under 'validation', found also case_01"),
        (["--labels", "x.yaml"], "found --labels or --model"),
        (["--images", "x"], "found --images"),
    ):
        refused = run(*words, *more, "--overwrite")
        assert refused.exit_code == 2, more
        assert found in refused.stderr


def test_one_path_that_is_no_run_or_two_with_a_runs_options_are_misuse(balls, tmp_path):
    answer = run("evaluate", balls / "data" / "labelsTr", "-o", tmp_path / "out")
    assert answer.exit_code == 2
    assert "one path that is no run folder" in answer.stderr
    labels = balls / "data" / "labelsTr"
    answer = run("evaluate", labels, labels, "-o", tmp_path / "out", "--part", "test")
    assert answer.exit_code == 2
    assert "found REFERENCES too" in answer.stderr


def test_all_folds_are_judged_together_each_case_by_the_one_that_held_it_out(balls, tmp_path):
    folder = tmp_path / "cv"
    settings = parse_settings(tiny_settings(steps=3, learning_rate=0.02), where="test")
    train_folds(settings, [0, 2], count=3, folder=folder, data_root=balls / "data")
    folds = json.loads((folder / "folds.json").read_text())["folds"]
    answer = run("evaluate", folder, "--data", balls / "data", "-o", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    assert "4 cases of the part validation of 2 folds" in answer.stdout
    assert "not trained, their cases are not judged: fold 1" in answer.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cases"]["scored"] == 4
    for fold in (0, 2):
        for case in folds[fold]:
            made = nib.load(tmp_path / "out" / "predictions" / f"{case}_dseg.nii.gz")
            kept = nib.load(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz")
            np.testing.assert_array_equal(made.get_fdata(), kept.get_fdata())
            assert made.get_fdata().any(), "empty answers would be equal whoever gave them"
    words = ["evaluate", folder, "--data", balls / "data", "-o", tmp_path / "one"]
    for more, found in (
        (["--part", "train"], "found 'train'; leave it out, or evaluate one of the folds"),
        (["--cases", folds[1][0]], f"found also {folds[1][0]}"),
    ):
        refused = run(*words, *more)
        assert (refused.exit_code, found in refused.stderr) == (2, True)
    answer = run(*words, "--cases", folds[2][0])
    assert answer.exit_code == 0, answer.output
    assert [one.name for one in (tmp_path / "one" / "predictions").iterdir()] == [
        f"{folds[2][0]}_dseg.nii.gz"
    ]


def test_folds_of_which_none_is_trained_are_told(tmp_path):
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "folds.json").write_text(json.dumps({"folds": [["a"], ["b"]]}))
    answer = run("evaluate", tmp_path / "cv", "-o", tmp_path / "out")
    assert answer.exit_code == 2
    assert "expected a fold that has been trained, found none" in answer.stderr


def test_another_dataset_than_the_runs_and_a_damaged_split_are_told(balls, tmp_path):
    other = write_dataset(tmp_path / "other", cases=5)
    answer = run("evaluate", balls / "run", "--data", other, "-o", tmp_path / "out")
    assert answer.exit_code == 2
    assert "expected the cases that the run's split names under 'validation'" in answer.stderr
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text((balls / "run" / "config.yaml").read_text())
    (run_folder / "split.json").write_text("[1, 2")
    answer = run("evaluate", run_folder, "--data", balls / "data", "-o", tmp_path / "out")
    assert answer.exit_code == 2
    assert "the lists of cases that the training wrote" in answer.stderr


def test_a_case_that_cannot_be_read_fails_by_itself(balls, tmp_path):
    data = tmp_path / "data"
    write_dataset(data)
    (data / "labelsTr" / "case_05.nii.gz").write_bytes(b"no image")
    answer = run("evaluate", balls / "run", "--data", data, "-o", tmp_path / "out")
    assert answer.exit_code == 1
    assert "error: case_05: " in answer.stderr
    assert str(data) not in answer.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (failed,) = summary["cases"]["failed"]
    assert (failed["case"], failed["scored_as"]) == ("case_05", None), "it has no reference"
    assert summary["cases"]["references"] == 2


def test_a_case_that_cannot_be_segmented_is_scored_as_one_without_prediction(
    balls, tmp_path, monkeypatch
):
    told = Predictor.predict
    seen = []

    def predict(self, volume, *arguments, **named):
        seen.append(volume)
        if len(seen) == 2:
            raise FormatError(
                "image", expected="one that fits", found="another", remedy="none", code="test"
            )
        return told(self, volume, *arguments, **named)

    monkeypatch.setattr(Predictor, "predict", predict)
    words = ["evaluate", balls / "run", "--data", balls / "data", "-o", tmp_path]
    answer = run(*words)
    assert answer.exit_code == 1
    assert "error: case_05: expected one that fits" in answer.stderr
    assert "1 with a failed prediction, scored as the worst: case_05" in answer.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"]["missing"] == []
    assert (summary["cases"]["references"], summary["cases"]["scored"]) == (2, 1)
    assert [each["scored_as"] for each in summary["cases"]["failed"]] == ["worst"]
    assert summary["results"]["near"]["dice"]["cases"] == 2
    assert summary["results"]["near"]["dice"]["worst_case"] == "case_05"


def test_an_earlier_prediction_is_not_scored_where_the_new_one_fails(balls, tmp_path, monkeypatch):
    words = ("evaluate", balls / "run", "--data", balls / "data", "-o", tmp_path)
    assert run(*words).exit_code == 0
    predict = Predictor.predict

    def second_fails(predictor, volume, *more, **options):
        if not (tmp_path / "predictions" / "case_04_dseg.nii.gz").exists():
            return predict(predictor, volume, *more, **options)
        raise MemoryError

    monkeypatch.setattr(Predictor, "predict", second_fails)
    again = run(*words, "--overwrite")
    assert again.exit_code == 1
    assert "case_05: memory ran out" in again.stderr
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["case_04_dseg.nii.gz"]
    results = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert results["near"]["dice"]["worst_case"] == "case_05"


def test_hearts_of_the_test_part_are_taken_without_being_asked_for(tmp_path):
    write_phantom("acdc", tmp_path / "data", cases=3, size="small")
    trained_on(
        "acdc", "acdc", tmp_path, data={"root": "x", "layout": "acdc", "split": "acdc-70-10-20"}
    )
    answer = run("evaluate", tmp_path / "run", "--data", tmp_path / "data", "-o", tmp_path / "out")
    assert answer.exit_code == 0, answer.output
    assert "2 cases of the part test" in answer.stdout
    names = {path.name[:10] for path in (tmp_path / "out" / "references").iterdir()}
    assert names == {"patient002"}


def test_stacks_of_transunets_preprocessing_are_scored_by_its_protocol(tmp_path):
    write_phantom("transunet", tmp_path / "data", cases=2, size="small")
    settings = trained_on("transunet", "transunet-8", tmp_path)
    answer = run(
        *("evaluate", tmp_path / "run", "--data", tmp_path / "data", "-o", tmp_path / "out"),
        *("--protocol", "transunet"),
    )
    assert answer.exit_code == 0, answer.output
    (case,) = read_data(settings, tmp_path / "data").validation
    _, truth = read_labelled(case, ["CT"], settings.scheme())
    kept = read_labels(
        tmp_path / "out" / "references" / f"{case.id}_dseg.nii.gz", settings.scheme()
    )
    assert isinstance(kept, LabelMap)
    np.testing.assert_array_equal(kept.data_ijk, truth.data_ijk)


def test_a_model_of_scaled_ct_takes_hounsfield_units_and_says_so(tmp_path):
    write_phantom("transunet", tmp_path / "data", cases=2, size="small")
    settings = trained_on("transunet", "transunet-8", tmp_path)
    card = load_card(tmp_path / "run")
    assert card.inputs.channels[0].scaled_hu == (-125, 275)
    (case,) = read_data(settings, tmp_path / "data").validation
    scaled, _ = read_labelled(case, ["CT"], settings.scheme())
    in_hu = Volume(400.0 * scaled.data_cijk - 125.0, scaled.grid, scaled.channels)
    predictor = Predictor.load(tmp_path / "run", device="cpu")
    one, other = predictor.predict(scaled), predictor.predict(in_hu)
    assert np.mean(one.labels.data_ijk != other.labels.data_ijk) < 1e-3
    assert len(np.unique(one.labels.data_ijk)) > 1, "an empty answer would show nothing"
    assert any("from -125 to 275 were brought to 0 to 1" in note for note in other.notes)
    assert not any("brought to 0 to 1" in note for note in one.notes)


def test_what_nobody_judged_counts_in_nothing(tmp_path):
    root = tmp_path / "data"
    write_phantom("nnunet", root, cases=2, size="small")
    index = json.loads((root / "dataset.json").read_text())
    index["labels"]["ignore"] = 3
    (root / "dataset.json").write_text(json.dumps(index))
    for path in (root / "labelsTr").iterdir():
        labels = nib.load(path)
        values = np.asarray(labels.dataobj).copy()
        values[values.shape[0] // 2 :] = 3
        nib.save(nib.Nifti1Image(values, labels.affine, labels.header), path)
    trained_on("nnunet", "msd-hippocampus", tmp_path, ignore_value=3)
    answer = run("evaluate", tmp_path / "run", "--data", root, "-o", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["settings"]["ignore_value"] == 3
