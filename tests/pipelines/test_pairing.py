"""Which files are label maps, of which case, and what their labels mean."""

import json

import pytest

from medseg.core import LabelScheme
from medseg.errors import ConfigError
from pipelines.label_sources import (
    case_list,
    chosen_structures,
    find_labels,
    ignored_value,
    plain_labels,
    read_label_file,
    with_ignored,
)
from pipelines.pairing import find_label_files, pair_cases


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (["a.nii.gz", "b.nrrd", ".c.nii.gz", "notes.txt"], ["a", "b"]),
        (["p1/p1_frame01.nii.gz", "p1/p1_frame01_gt.nii.gz"], ["p1_frame01"]),
        (["x/x-t1n.nii.gz", "x/x-seg.nii.gz"], ["x"]),
        (["a_dseg.nii.gz", "a_uncertainty.nii.gz", "a_dseg.dcm", "b_dseg.dcm"], ["a", "b"]),
        (["label0001.nii.gz", "label0002.nii.gz"], ["img0001", "img0002"]),
        (["a.hdr", "a.img"], ["a"]),
    ],
)
def test_label_files_of_known_layouts(tmp_path, names, cases):
    found = find_label_files(touch(tmp_path, *names))
    assert list(found) == cases
    assert not found[cases[0]].name.endswith(".dcm")


def test_two_files_of_one_case_are_refused(tmp_path):
    touch(tmp_path, "a_seg.nii.gz", "a_gt.nii.gz")
    with pytest.raises(ConfigError, match=r"found a_gt\.nii\.gz and a_seg\.nii\.gz of case a"):
        find_label_files(tmp_path)


def test_folders_without_label_maps_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="found nothing of that name"):
        find_label_files(tmp_path / "none")
    with pytest.raises(ConfigError, match="or DICOM SEG, found none"):
        find_label_files(touch(tmp_path, "a.txt"))


def test_cases_are_paired_by_name(tmp_path):
    truths = touch(tmp_path / "truth", "a_gt.nii.gz", "b_gt.nii.gz", "c_gt.nii.gz")
    found = touch(tmp_path / "found", "a_dseg.nii.gz", "b_0000_dseg.nii.gz", "z_dseg.nii.gz")
    pairing = pair_cases(found, truths)
    assert list(pairing.references) == ["a", "b", "c"]
    assert sorted(pairing.predictions) == ["a", "b"]
    assert (pairing.missing, pairing.foreign) == (("c",), ("z",))
    assert pair_cases(found, truths, ["a"]).missing == ()
    with pytest.raises(ConfigError, match="expected two folders, or two files"):
        pair_cases(found / "a_dseg.nii.gz", truths)
    with pytest.raises(ConfigError, match="found cases such as z"):
        pair_cases(touch(tmp_path / "strange", "z_dseg.nii.gz"), truths)


def test_labels_of_an_msd_index_and_of_nnunets_with_regions(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "tumour"}}))
    assert [label.name for label in read_label_file(path).scheme.labels] == ["liver", "tumour"]
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    path.write_text(json.dumps({"labels": labels}))
    source = read_label_file(path)
    assert {region.name: region.members for region in source.regions} == {
        "whole": (1, 2),
        "core": (2,),
    }
    assert ignored_value(source, None) == 3
    assert chosen_structures(source, [], 3, ())[1] == source.regions
    names = [structure.name for structure in chosen_structures(source, ["labels"], 3, ())[1]]
    assert names == ["label 1", "core"]


def test_labels_of_a_scheme_a_table_and_a_model(tmp_path):
    scheme = LabelScheme.plain("mine", {1: "one", 5: "five"})
    path = tmp_path / "labels.yaml"
    for content in (scheme.to_dict(), {"labels": scheme.to_dict()}):
        path.write_text(json.dumps(content))
        assert read_label_file(path).scheme == scheme
    table = tmp_path / "a_dseg.tsv"
    table.write_text("index\tname\tcolor\n1\tone\t#102030\n5\tfive\t#FFFFFF\n")
    read = find_labels(None, None, tmp_path, tmp_path / "truth")
    assert read.origin == "label table of the predictions"
    assert [label.rgb for label in read.scheme.labels] == [(16, 32, 48), (255, 255, 255)]
    model = find_labels(None, "reversible_hippocampus", tmp_path, tmp_path)
    assert len(model.scheme.labels) == 2
    assert find_labels(None, None, tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize("text", ["[1, 2]", "labels: {one: {}}", "\ttab", "{}"])
def test_files_without_labels_are_refused(tmp_path, text):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"expected a label scheme, a dataset\.json or a dseg"):
        read_label_file(path)


def test_an_ignored_value_can_be_read_but_is_not_scored():
    source = plain_labels([0, 1, 2])
    assert with_ignored(source.scheme, 7).values == (1, 2, 7)
    assert with_ignored(source.scheme, 2) == source.scheme
    structures = chosen_structures(source, [], 2, ())[1]
    assert [structure.members for structure in structures] == [(1,)]


def test_regions_of_a_model_are_taken_by_themselves():
    source = plain_labels([1, 2])
    with_regions = type(source)(
        "model m", source.scheme, chosen_structures(source, ["a=1,2"], None, ())[1]
    )
    assert chosen_structures(with_regions, [], None, ())[0] == "regions of model m"


def test_case_lists_come_as_names_lines_or_a_part_of_a_split(tmp_path):
    assert case_list("a, b") == ["a", "b"]
    (tmp_path / "list.txt").write_text("a\n\nb\n")
    assert case_list(str(tmp_path / "list.txt")) == ["a", "b"]
    (tmp_path / "split.json").write_text(json.dumps({"validation": ["c"]}))
    assert case_list(f"{tmp_path / 'split.json'}:validation") == ["c"]
    with pytest.raises(ConfigError, match="found a file without 'test': "):
        case_list(f"{tmp_path / 'split.json'}:test")
