"""`medseg evaluate` and `medseg compare` from files to files."""

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.data.schemes import SCHEMES
from medseg.errors import ConfigError, FormatError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.dicom_series import read_dicom_series
from medseg.io.reading import read_labels
from medseg.io.rtstruct import write_rtstruct
from medseg.metrics.overlap import dice_by_label
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.summary import Bootstrap
from pipelines import evaluate as evaluating
from pipelines.cli import app
from pipelines.compare import compare_evaluations
from pipelines.evaluate import EvaluationOrder, evaluate, write_evaluation
from pipelines.evaluation_files import read_evaluation
from pipelines.label_sources import LabelSource, chosen_structures
from tests.series import small_series

NAMES = {"background": 0, "organ": 1, "tumour": 2}
SCHEME = LabelScheme.plain("dataset", {1: "organ", 2: "tumour"})


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path, data, shift_mm=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(np.asarray(data, dtype=np.uint8), affine), path)


def organ(seed):
    data = np.zeros((9, 8, 7), dtype=np.uint8)
    data[2:7, 2:6, 1:6] = 1
    data[3 + seed % 2 : 5, 3:5, 2:4] = 2
    return data


@pytest.fixture
def folders(tmp_path):
    """Five references; predictions of four, one of them on a moved grid, and a foreign one."""
    for number in range(5):
        write(tmp_path / "labelsTr" / f"case_{number}.nii.gz", organ(number))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NAMES}))
    predictions = tmp_path / "predictions"
    for number in (0, 1, 2):
        moved = np.roll(organ(number), number, axis=1)
        write(predictions / f"case_{number}_dseg.nii.gz", moved)
        write(predictions / f"case_{number}_uncertainty.nii.gz", moved)
    write(predictions / "case_3_dseg.nii.gz", organ(3), shift_mm=1.25)
    write(predictions / "other_dseg.nii.gz", organ(0))
    return predictions, tmp_path / "labelsTr", tmp_path / "out"


def test_a_folder_is_scored_and_what_is_wrong_is_said(folders):
    predictions, references, out = folders
    result = run("evaluate", predictions, references, "-o", out)
    assert result.exit_code == 1
    assert "case_3: expected prediction and reference on one grid" in result.stderr
    assert "corners up to 1.250 mm apart" in result.stderr
    assert "1 without prediction, scored as the worst: case_4" in result.stdout
    assert "1 prediction without a reference, unused: other" in result.stdout
    assert (result.stdout + result.stderr).count("corners up to 1.250 mm apart") == 1
    table = result.stdout.splitlines()[:5]
    assert [line.split()[0] for line in table[2:]] == ["organ", "tumour", "mean"], "a line each"
    with (out / "cases.csv").open() as stream:
        rows = {(row["case"], row["structure"]): row for row in csv.DictReader(stream)}
    assert "1 with a failed prediction, scored as the worst: case_3" in result.stdout
    assert {case for case, _ in rows} == {f"case_{number}" for number in range(5)}
    for figure in ("dice", "nsd", "hd95_mm", "assd_mm"):
        assert rows["case_3", "organ"][figure] == rows["case_4", "organ"][figure], figure
    for case in ("case_0", "case_1", "case_2"):
        expected = dice_by_label(
            read_labels(predictions / f"{case}_dseg.nii.gz", SCHEME),
            read_labels(references / f"{case}.nii.gz", SCHEME),
        )
        for name, dice in expected.items():
            assert float(rows[case, name]["dice"]) == dice
    assert float(rows["case_4", "organ"]["dice"]) == 0.0
    assert float(rows["case_4", "organ"]["hd95_mm"]) == pytest.approx(
        np.linalg.norm(np.array([9, 8, 7]) * [1.0, 1.5, 2.0])
    )


def test_the_summary_holds_rules_counts_and_means(folders):
    predictions, references, out = folders
    printed = run("evaluate", predictions, references, "-o", out, "--json", "--tolerance-mm", "1")
    summary = json.loads((out / "summary.json").read_text())
    assert json.loads(printed.stdout)["results"] == summary["results"]
    assert summary["settings"]["tolerance_mm"] == 1.0
    assert summary["labels_from"] == "dataset.json of the references"
    assert "image's diagonal" in summary["policy"]["prediction missing"]
    assert summary["structures"] == {"organ": [1], "tumour": [2]}
    assert summary["cases"]["missing"] == ["case_4"]
    (failed,) = summary["cases"]["failed"]
    assert (failed["case"], failed["code"]) == ("case_3", "grids-differ")
    assert failed["scored_as"] == "worst"
    assert summary["policy"]["prediction failed"].startswith("as a missing one: the worst value")
    assert summary["cases"]["references"] == 5
    assert summary["cases"]["scored"] == 3
    saved = read_evaluation(out)
    dice = saved.values_csm[:, :, 0]
    entry = summary["results"]["organ"]["dice"]
    assert entry["mean"] == pytest.approx(dice[:, 0].mean())
    assert entry["worst_case"] in ("case_3", "case_4")
    assert entry["interval"][0] <= entry["mean"] <= entry["interval"][1]
    assert summary["mean"]["dice"]["mean"] == pytest.approx(dice.mean())
    assert str(out.parent) not in (out / "summary.json").read_text()


def test_a_damaged_prediction_counts_as_none_and_a_damaged_reference_leaves_the_means(folders):
    predictions, references, _ = folders
    whole, _, _ = evaluate(EvaluationOrder(predictions, references))
    (predictions / "case_1_dseg.nii.gz").unlink()
    without, _, _ = evaluate(EvaluationOrder(predictions, references))
    (predictions / "case_1_dseg.nii.gz").write_bytes(b"no image")
    damaged, _, _ = evaluate(EvaluationOrder(predictions, references))
    assert np.array_equal(damaged.values_csm(), without.values_csm(), equal_nan=True)
    assert damaged.values_csm()[:, 0, 0].mean() < whole.values_csm()[:, 0, 0].mean()
    assert [each.case for each in damaged.failed] == ["case_1", "case_3"]
    assert damaged.missing == ("case_4",)
    (references / "case_1.nii.gz").write_bytes(b"no image")
    settings = EvaluationSettings(missing="leave-out")
    lost, _, _ = evaluate(EvaluationOrder(predictions, references, settings))
    assert "case_1" not in lost.scores
    counts = lost.summary()["cases"]
    assert (counts["references"], counts["scored"]) == (5, 2)
    how = {each["case"]: each["scored_as"] for each in counts["failed"]}
    assert how == {"case_1": None, "case_3": "leave-out"}
    assert np.isnan(lost.values_csm()[list(lost.scores).index("case_3")]).all()


def test_an_evaluation_without_any_usable_prediction_is_refused(tmp_path):
    write(tmp_path / "mine.nii.gz", organ(0), shift_mm=1.25)
    write(tmp_path / "truth.nii.gz", organ(0))
    answer = run(
        "evaluate", tmp_path / "mine.nii.gz", tmp_path / "truth.nii.gz", "-o", tmp_path / "out"
    )
    assert answer.exit_code == 1
    assert "expected at least one case that can be scored, found 1 failure" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_the_page_has_pictures_and_loads_nothing(folders):
    predictions, references, out = folders
    write(out.parent / "images" / "case_1_0000.nii.gz", np.arange(504).reshape(9, 8, 7) % 251)
    run("evaluate", predictions, references, "-o", out, "--images", out.parent / "images")
    page = (out / "report.html").read_text()
    assert page.count("<img src=") == 4, "case_0 is perfect"
    assert "http:" not in page
    assert "https:" not in page
    assert "case_2, tumour: Dice" in page
    worst = page[page.index("Worst cases") :]
    assert worst.index("case_4: no prediction") < worst.index("<img src=")
    assert worst.index("case_3: prediction failed [grids-differ]") < worst.index("<img src=")
    assert "case_0, organ: Dice" not in page


def test_perfect_cases_are_not_shown_as_the_worst(tmp_path):
    write(tmp_path / "mine.nii.gz", organ(0))
    out = tmp_path / "out"
    path = tmp_path / "mine.nii.gz"
    assert run("evaluate", path, path, "-o", out).exit_code == 0
    page = (out / "report.html").read_text()
    assert "<img" not in page
    assert "Worst cases" not in page


def test_regions_ignored_labels_and_chosen_cases(folders):
    predictions, references, out = folders
    words = ["--regions", "whole=organ,tumour", "--regions", "core=2", "--cases", "case_0,case_1"]
    assert run("evaluate", predictions, references, "-o", out, *words).exit_code == 0
    assert read_evaluation(out).structures == ("whole", "core")
    assert read_evaluation(out).cases == ("case_0", "case_1")
    result = run(
        "evaluate", predictions, references, "-o", out, "--overwrite", "--ignore-label", "tumour",
        "--missing", "leave-out", "--protocol", "transunet",
    )  # fmt: skip
    assert "hd95_voxels" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"] == {
        "missing": "leave-out",
        "ignore_value": 2,
        "grid_tolerance_mm": 0.01,
        "protocol": "transunet",
        "unit": "voxels",
        "surface": "medpy",
        "both_empty": "dice 0, distance 0",
        "only_reference": "dice 0, distance 0",
        "only_prediction": "dice 1, distance 0",
    }
    assert "in neither map: Dice 0, distance 0" in summary["policy"]["protocol"]
    saved = read_evaluation(out)
    assert saved.structures == ("organ",)
    assert np.isnan(saved.values_csm[saved.cases.index("case_4")]).all()


def test_two_files_are_one_case_and_labels_need_no_name(tmp_path):
    write(tmp_path / "mine.nii.gz", organ(0))
    write(tmp_path / "truth.nii.gz", organ(1))
    words = [
        "evaluate",
        tmp_path / "mine.nii.gz",
        tmp_path / "truth.nii.gz",
        "-o",
        tmp_path / "out",
    ]
    assert run(*words).exit_code == 0
    assert read_evaluation(tmp_path / "out").structures == ("label 1", "label 2")
    assert run(*words).exit_code == 2
    assert "add --overwrite" in run(*words).stderr
    assert run(*words, "--overwrite", "--ignore-label", "2").exit_code == 0
    assert read_evaluation(tmp_path / "out").structures == ("label 1",)


def test_labels_are_named_by_a_known_scheme(tmp_path):
    write(tmp_path / "mine.nii.gz", organ(0))
    write(tmp_path / "truth.nii.gz", organ(1))
    words = ["evaluate", tmp_path / "mine.nii.gz", tmp_path / "truth.nii.gz"]
    answer = run(*words, "-o", tmp_path / "out", "--labels", "msd-hippocampus")
    assert answer.exit_code == 0, answer.output
    assert read_evaluation(tmp_path / "out").structures == (
        "anterior hippocampus",
        "posterior hippocampus",
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["labels_from"] == "scheme msd-hippocampus"
    refused = run(*words, "-o", tmp_path / "other", "--labels", "msd-hippocampos")
    assert refused.exit_code == 2
    assert "nearest: msd-hippocampus" in refused.stderr
    refused = run(*words, "-o", tmp_path / "other", "--labels", "none.yaml")
    assert "expected a label scheme, a dataset.json or a dseg.tsv" in refused.stderr


def test_brats_regions_are_told_from_the_references(tmp_path):
    data = organ(0)
    data[2, 2, 1] = 4
    for kind in ("predictions/a_dseg.nii.gz", "truth/a/a_seg.nii.gz", "truth/a/a_t1.nii.gz"):
        write(tmp_path / kind, data)
    words = ["evaluate", tmp_path / "predictions", tmp_path / "truth", "-o", tmp_path / "out"]
    result = run(*words, "--regions", "brats")
    assert result.exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["structures_from"] == "brats-2018-2021"
    assert summary["structures"]["enhancing tumour"] == [4]


def named(*names):
    return LabelSource("a file", LabelScheme.plain("mine", dict(enumerate(names, start=1))))


@pytest.mark.parametrize(
    ("source", "files", "present", "numbering"),
    [
        (named("NCR", "ED", "ET"), (), {1, 2, 3}, "brats-2023"),
        (named("ED", "NCR/NET", "ET"), (), {1, 2, 3}, "brats-nnunet-137"),
        (
            named("Non-enhancing tumor core", "Surrounding non-enhancing FLAIR", "Enhancing"),
            (),
            {1, 2},
            "brats-2023",
        ),
        (
            named("necrosis", "edema", "non-enhancing tumor", "enhancing tumor"),
            (),
            {1, 2, 3, 4},
            "brats-2012-2015",
        ),
        (named("NCR", "SNFH", "ET", "RC"), (), {1, 3, 4}, "brats-2024-gli"),
        (named("1", "2", "3"), ("BraTS-GLI-00000-000-seg.nii.gz",), {1, 2, 3}, "brats-2023"),
        (named("1", "2", "3", "4"), ("BraTS-GLI-0-0-seg.nii.gz",), {3, 4}, "brats-2024-gli"),
        (named("1", "2", "3", "4"), ("BraTS2021_0_seg.nii.gz",), {1, 4}, "brats-2018-2021"),
    ],
)
def test_the_year_of_brats_is_told_by_names_of_labels_or_files(source, files, present, numbering):
    paths = [Path(name) for name in files]
    assert chosen_structures(source, ["brats"], None, present, paths)[0] == numbering
    every = {label.name: label.value for label in SCHEMES[numbering].labels}
    regions = chosen_structures(source, [numbering], None, present, paths)[1]
    assert regions[2].members == (every["enhancing tumour"],)


@pytest.mark.parametrize("names", [("mine_seg.nii.gz",), ("BraTS_1-seg.nii", "BraTS_2_seg.nii")])
def test_the_year_of_brats_is_not_guessed(names):
    with pytest.raises(ConfigError, match=r"or label names or files' names that tell the year"):
        chosen_structures(
            named("a", "b", "c"), ["brats"], None, {1, 2, 3}, [Path(name) for name in names]
        )


def test_a_dicom_seg_is_read_on_the_references_grid(tmp_path):
    grid = Grid((12, 11, 6), np.diag([-1.5, -1.25, 2.0, 1.0]))
    scan = read_dicom_series(small_series(tmp_path / "series", grid))
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[3:8, 3:8, 1:5] = 1
    data[4:6, 4:6, 2:4] = 2
    truth = LabelMap(data, scan.volume.grid, SCHEME)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "truth").mkdir()
    seg = tmp_path / "predictions" / "case_dseg.dcm"
    write_seg(truth, seg, scan.source, algorithm=Algorithm("test", "1"))
    nib.save(nib.Nifti1Image(data, scan.volume.grid.affine_ras), tmp_path / "truth" / "case.nii.gz")
    (tmp_path / "truth" / "dataset.json").write_text(json.dumps({"labels": NAMES}))
    index = tmp_path / "truth" / "dataset.json"
    found, _, _ = evaluate(EvaluationOrder(tmp_path / "predictions", tmp_path / "truth"))
    assert [each.values["dice"] for each in found.scores["case"]] == [1.0, 1.0]
    order = EvaluationOrder(tmp_path / "truth", tmp_path / "predictions", labels=index)
    back, _, _ = evaluate(order)
    assert [each.values["dice"] for each in back.scores["case"]] == [1.0, 1.0]
    with pytest.raises(
        FormatError, match="found 1 failure, the first: case, reference: expected at"
    ):
        evaluate(EvaluationOrder(seg, seg, labels=index))


def test_contours_are_read_on_the_references_grid(tmp_path):
    scan = read_dicom_series(
        small_series(tmp_path / "series", Grid((12, 11, 6), np.diag([-1.5, -1.25, 2.0, 1.0])))
    )
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[3:8, 3:8, 1:5] = 1
    data[4:6, 4:6, 2:4] = 2
    truth = LabelMap(data, scan.volume.grid, SCHEME)
    for name in ("predictions", "truth"):
        (tmp_path / name).mkdir()
    path = tmp_path / "predictions" / "case_rtstruct.dcm"
    write_rtstruct(truth, path, scan.source, algorithm=Algorithm("test", "1"))
    nib.save(nib.Nifti1Image(data, scan.volume.grid.affine_ras), tmp_path / "truth" / "case.nii.gz")
    (tmp_path / "truth" / "dataset.json").write_text(json.dumps({"labels": NAMES}))
    found, _, _ = evaluate(EvaluationOrder(tmp_path / "predictions", tmp_path / "truth"))
    assert [each.values["dice"] for each in found.scores["case"]] == [1.0, 1.0]


def test_processes_give_what_one_process_gives(folders):
    predictions, references, _ = folders
    alone, _, _ = evaluate(EvaluationOrder(predictions, references, jobs=1))
    spread, _, _ = evaluate(EvaluationOrder(predictions, references, jobs=2))
    assert np.array_equal(alone.values_csm(), spread.values_csm(), equal_nan=True)
    assert alone.failed == spread.failed


def test_a_killed_process_is_an_error_in_words():
    with pytest.raises(ResourceError, match="use fewer processes with --jobs"):
        list(evaluating._by_processes(os._exit, [1, 2], 2))


def test_the_listener_can_stop(folders):
    class Stopping(Silent):
        def cancelled(self):
            return True

    with pytest.raises(Cancelled):
        evaluate(EvaluationOrder(*folders[:2]), Stopping())


def test_options_that_cannot_be_meant(folders):
    predictions, references, out = folders

    def refused(*words):
        result = run("evaluate", predictions, references, "-o", out, *words)
        assert result.exit_code == 2
        return result.stderr

    assert "--surface: expected 'elements', 'monai' or 'medpy'" in refused("--surface", "skin")
    assert "found 'two'" in refused("--tolerance-mm", "two")
    assert "expected structures of organ, tumour, found liver" in refused(
        "--tolerance-mm", "liver=2"
    )
    assert "expected one source of labels" in refused("--labels", "a", "--model", "b")
    assert "nearest: tumour" in refused("--ignore-label", "tumor")
    assert "found 'whole=9'" in refused("--regions", "whole=9")
    assert "found none in dataset.json" in refused("--regions", "model")
    assert "also case_9" in refused("--cases", "case_9")
    assert "no such folder" in refused("--images", out / "none")
    assert "FILE.json:PART" in refused("--cases", "none.json:part")


def test_references_without_a_label_are_refused(tmp_path):
    write(tmp_path / "case_0.nii.gz", np.zeros((2, 2, 2)))
    path = tmp_path / "case_0.nii.gz"
    with pytest.raises(ConfigError, match="found background alone in every reference"):
        evaluate(EvaluationOrder(path, path))


def compared(folders, **second):
    predictions, references, out = folders
    for name, settings in (("a", {}), ("b", second)):
        order = EvaluationOrder(predictions, references, EvaluationSettings(**settings))
        found, pairing, scheme = evaluate(order)
        write_evaluation(found, pairing, scheme, out.parent / name)
    return out.parent / "a", out.parent / "b"


def test_two_runs_are_compared_case_by_case(folders):
    predictions, references, out = folders
    better = out.parent / "better"
    for number in range(3):
        write(better / f"case_{number}.nii.gz", organ(number))
    write(better / "case_3.nii.gz", organ(3))
    run("evaluate", predictions, references, "-o", out.parent / "a")
    for folder in (references, better):
        write(folder / "case_9.nii.gz", organ(9))
    run("evaluate", better, references, "-o", out.parent / "b")
    words = ["compare", out.parent / "a", out.parent / "b"]
    printed = json.loads(run(*words, "--json", "--metrics", "dice").stdout)
    dice = printed["differences"]
    assert {row["metric"] for row in dice} == {"dice"}
    assert dice[0]["cases"] == 5
    assert dice[0]["second_better"] == 3, "of case_1, case_2 and case_3, which failed in A"
    assert dice[0]["difference"] > 0
    assert printed["only_in_second"] == ["case_9"]
    table = run(*words)
    assert "only in B, not compared: case_9" in table.stdout
    assert "Wilcoxon" in table.stdout
    assert run(*words, "--metrics", "dise").exit_code == 2


def test_evaluations_by_other_rules_or_of_other_cases_are_not_compared(folders):
    first, second = compared(folders, tolerance_mm=1.0)
    with pytest.raises(ConfigError, match="found others: tolerance_mm"):
        compare_evaluations(first, second, Bootstrap())
    text = (first / "cases.csv").read_text().replace("case_", "other_")
    (second / "cases.csv").write_text(text)
    (second / "summary.json").write_text((first / "summary.json").read_text())
    with pytest.raises(ConfigError, match="found none of them"):
        compare_evaluations(first, second, Bootstrap())
    with pytest.raises(
        ConfigError, match=r"`medseg evaluate` wrote, with.*, found no such file or folder;"
    ):
        compare_evaluations(first, second / "none", Bootstrap())


@pytest.mark.shared_data
def test_experts_labels_of_a_real_set_are_perfect_against_themselves(shared_data, tmp_path):
    labels = shared_data / "01_msd_hippocampus" / "labelsTr"
    result = run("evaluate", labels, labels, "-o", tmp_path, "--cases", "hippocampus_001")
    assert result.exit_code == 0
    saved = read_evaluation(tmp_path)
    assert saved.structures == ("Anterior", "Posterior")
    names = [name for name, _ in saved.metrics]
    assert (saved.values_csm[:, :, names.index("dice")] == 1.0).all()
    assert (saved.values_csm[:, :, names.index("hd_mm")] == 0.0).all()
