"""Every layout on a phantom of it, on what is broken in it, and on real data where it is there."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from medseg.core import Grid, Volume
from medseg.data.case import read_labelled
from medseg.data.datalist import read_datalist
from medseg.data.layouts import LAYOUTS, detect_layout, list_cases
from medseg.data.layouts.brats import brats_scheme_of
from medseg.data.schemes import SCHEMES
from medseg.errors import ConfigError, FormatError
from medseg.io.writing import write_volume

KIND_OF = {"brats": "brats"} | {
    kind: kind for kind in ("msd", "nnunet", "synapse", "transunet", "acdc")
}
KIND_OF |= {"brats2021": "brats", "brats2024": "brats"}


def read_all(listing):
    return [read_labelled(case, listing.channels, listing.scheme) for case in listing.cases]


def problem(root, **options):
    listing = list_cases(root, **options)
    assert len(listing.problems) == 1
    return listing.problems[0]


@pytest.mark.parametrize(("kind", "layout"), KIND_OF.items())
def test_a_folder_tells_its_layout_and_every_case_of_it_is_read(phantom, kind, layout):
    listing = list_cases(phantom(kind))
    assert listing.layout == layout == detect_layout(phantom(kind))
    assert not listing.problems
    assert [case.id for case in listing.cases] == sorted(case.id for case in listing.cases)
    found = set()
    for volume, labels in read_all(listing):
        assert volume.channels == listing.channels
        assert volume.grid.shape_ijk == labels.grid.shape_ijk
        found |= set(np.unique(labels.data_ijk).tolist())
    assert found == {0, *listing.scheme.values}


def test_an_unknown_layout_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"one of acdc, .*nearest: nnunet.*found 'nnunett'"):
        list_cases(tmp_path, "nnunett")


def test_a_folder_of_no_layout_and_one_of_two_are_refused(tmp_path, copy):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"in one of the layouts msd, nnunet.*none that is known"):
        detect_layout(tmp_path / "empty")
    with pytest.raises(ConfigError, match="a dataset folder, found no such folder"):
        detect_layout(tmp_path / "absent")
    root = copy("synapse")
    shutil.copytree(copy("acdc") / "training", root / "training")
    with pytest.raises(ConfigError, match="found what could be synapse or acdc; name its layout"):
        detect_layout(root)
    assert list_cases(root, "acdc").layout == "acdc"


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"msd", "nnunet", "list", "dicom"}))
def test_a_named_layout_without_a_case_is_refused(tmp_path, layout):
    with pytest.raises(ConfigError, match=f"at least one labelled case in the layout '{layout}'"):
        read_datalist(tmp_path, layout=layout)


def test_an_empty_or_unknown_folder_is_named_with_what_it_looks_like(copy, tmp_path):
    root = copy("acdc")
    words = r"acdc.*: expected .* 'synapse', found none, but what looks like acdc; name that layout"
    with pytest.raises(ConfigError, match=words) as caught:
        list_cases(root, "synapse")
    assert (caught.value.code, caught.value.where) == ("dataset-empty", str(root))
    (tmp_path / "downloads").mkdir()
    shutil.copytree(root, tmp_path / "downloads" / "Hearts")
    with pytest.raises(ConfigError, match="give its folder 'Hearts', which looks like acdc"):
        list_cases(tmp_path / "downloads")


# Synapse and TransUNet


def test_synapse_is_read_with_thirteen_organs_or_in_either_order_of_eight(phantom):
    root = phantom("synapse")
    all_labels, transunet, cascade = (
        read_all(list_cases(root, scheme=name))[0][1] for name in (None, "transunet-8", "cascade-8")
    )
    assert all_labels.scheme is SCHEMES["btcv-13"]
    for eight in (transunet, cascade):
        for label in eight.scheme.labels:
            number = next(one.value for one in all_labels.scheme.labels if one.name == label.name)
            same = (all_labels.data_ijk == number) == (eight.data_ijk == label.value)
            assert same.all(), label.name
        assert sum(eight.volumes_ml().values()) < sum(all_labels.volumes_ml().values())


def test_synapse_is_found_as_the_challenge_packs_it_and_under_its_other_folder_names(
    phantom, tmp_path
):
    source = phantom("synapse")
    packed = tmp_path / "packed" / "RawData" / "Training"
    averaged = tmp_path / "averaged"
    shutil.copytree(source, packed)
    shutil.copytree(source / "img", averaged / "averaged-training-images")
    shutil.copytree(source / "label", averaged / "averaged-training-labels")
    ids = [case.id for case in list_cases(source).cases]
    for root in (tmp_path / "packed", averaged):
        assert [case.id for case in list_cases(root).cases] == ids


def test_a_scan_without_labels_is_named(copy):
    root = copy("synapse")
    (root / "label" / "label0005.nii.gz").unlink()
    assert problem(root).error.code == "label-missing"
    with pytest.raises(ConfigError, match="case case0005: expected a label map of that number"):
        read_datalist(root)


def test_labels_without_a_scan_are_named(copy):
    root = copy("synapse")
    (root / "img" / "img0005.nii.gz").unlink()
    assert problem(root).error.code == "modality-missing"
    with pytest.raises(ConfigError, match="case case0005: expected a scan of that number in img"):
        read_datalist(root)


def test_a_scheme_with_other_structures_is_refused(phantom):
    with pytest.raises(ConfigError, match="expected structures of 'btcv-13', found 'left ventric"):
        list_cases(phantom("synapse"), scheme="acdc")


def test_transunet_slices_become_the_volume_they_were_cut_from(phantom, tmp_path):
    raw = {case.id: case for case in list_cases(phantom("synapse"), scheme="transunet-8").cases}
    listing = list_cases(phantom("transunet"))
    assert listing.parts == {
        "train": ("case0005", "case0006"),
        "validation": ("case0001",),
    }
    for case in listing.cases:
        volume, labels = read_labelled(case, listing.channels, listing.scheme)
        scan, original = read_labelled(raw[case.id], ("CT",), listing.scheme)
        turned = original.data_ijk[:, ::-1]  # stored LAS, the slices LPS
        assert np.array_equal(labels.data_ijk, turned)
        shown = (np.clip(scan.data_cijk[0, :, ::-1], -125, 275) + 125) / 400
        assert np.allclose(volume.data_cijk[0], shown, atol=1e-6)


def test_a_missing_slice_makes_its_case_unusable(copy):
    for name in ("case0005_slice007.npz", "case0005_slice019.npz"):
        root = copy("transunet")
        (root / "train_npz" / name).unlink()
        assert problem(root).error.code == "slice-missing"
        with pytest.raises(ConfigError, match=f"case case0005: expected the file train_npz/{name}"):
            read_datalist(root)
        shutil.rmtree(root)


def test_a_gap_is_found_without_lists_and_lists_choose_the_cases(copy):
    root = copy("transunet")
    (root / "lists_Synapse" / "test_vol.txt").write_text("case0001\ncase0002\n")
    assert problem(root).case == "case0002"
    shutil.rmtree(root / "lists_Synapse")
    (root / "train_npz" / "case0006_slice003.npz").unlink()
    assert "case0006_slice003" in str(problem(root).error)


def test_a_scan_in_both_parts_of_transunets_data_is_a_leak(copy):
    root = copy("transunet")
    shutil.rmtree(root / "lists_Synapse")
    shutil.copy(root / "test_vol_h5" / "case0001.npy.h5", root / "test_vol_h5" / "case0005.npy.h5")
    with pytest.raises(ConfigError, match="either among the training slices or among the test"):
        read_datalist(root)


# ACDC


def test_acdc_lists_both_phases_of_a_patient_as_two_cases_of_one_patient(phantom):
    listing = list_cases(phantom("acdc"))
    patients = {case.patient for case in listing.cases}
    assert len(listing.cases) == 2 * len(patients) == 10
    assert all(case.id.startswith(f"{case.patient}_frame") for case in listing.cases)


def test_the_official_test_part_of_acdc_is_held_out(copy):
    root = copy("acdc")
    (root / "testing").mkdir()
    moved = sorted((root / "training").iterdir())[0]
    moved.rename(root / "testing" / moved.name)
    data = read_datalist(root)
    assert {case.patient for case in data.test} == {moved.name}
    assert len(data.train) + len(data.validation) == 8


@pytest.mark.parametrize(
    ("text", "words"), [(None, "an Info.cfg with the lines"), ("ED: 1\n", "found none, or one")]
)
def test_a_patient_without_frame_numbers_is_named(copy, text, words):
    root = copy("acdc")
    path = root / "training" / "patient001" / "Info.cfg"
    path.unlink() if text is None else path.write_text(text)
    assert problem(root).error.code == "acdc-info"
    with pytest.raises(ConfigError, match=f"case patient001: .*{words}"):
        read_datalist(root)


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [("", "modality-missing", "found no image"), ("_gt", "label-missing", "found no label map")],
)
def test_a_missing_frame_is_named(copy, ending, code, words):
    root = copy("acdc")
    (root / "training" / "patient001" / f"patient001_frame01{ending}.nii.gz").unlink()
    assert problem(root).error.code == code
    with pytest.raises(ConfigError, match=f"case patient001_frame01: .*the ED frame .*{words}"):
        read_datalist(root)


# BraTS


@pytest.mark.parametrize(
    ("kind", "scheme", "enhancing"),
    [
        ("brats2021", "brats-2018-2021", 4),
        ("brats", "brats-2023", 3),
        ("brats2024", "brats-2024-gli", 3),
    ],
)
def test_the_label_maps_tell_what_a_four_means(phantom, kind, scheme, enhancing):
    listing = list_cases(phantom(kind))
    assert listing.scheme is SCHEMES[scheme]
    assert listing.channels == ("T1", "T1c", "T2", "FLAIR")
    regions = {region.name: set(region.members) for region in listing.regions}
    assert regions["enhancing tumour"] == {enhancing}
    assert regions["enhancing tumour"] < regions["tumour core"] < regions["whole tumour"]
    for volume, labels in read_all(listing):
        bright = [float(volume.data_cijk[1][labels.data_ijk == v].mean()) for v in (1, 2)]
        assert float(volume.data_cijk[1][labels.data_ijk == enhancing].mean()) > max(bright)


@pytest.mark.parametrize(
    ("values", "hyphenated", "scheme"),
    [
        ({1, 2, 4}, False, "brats-2018-2021"),
        ({1, 2, 3, 4}, False, "brats-2012-2015"),
        ({1, 2, 3}, True, "brats-2023"),
        ({1, 2, 3, 4}, True, "brats-2024-gli"),
        ({1, 2, 3}, False, None),  # 2023's numbers or nnU-Net's, where 1 and 2 are swapped
        ({1, 2, 4}, True, None),  # a cavity, or files of 2021 renamed
        ({1, 2}, True, None),
        ({1, 2}, False, None),
    ],
)
def test_a_scheme_is_told_only_where_no_other_fits(values, hyphenated, scheme):
    assert brats_scheme_of(values, hyphenated=hyphenated) == scheme


def test_label_maps_that_do_not_tell_are_refused_until_the_scheme_is_named(copy):
    root = copy("brats2021")
    for path in sorted(root.rglob("*_t1*")) + sorted(root.rglob("*_t2*")):
        path.rename(
            str(path).replace("_t1ce.", "-t1c.").replace("_t1.", "-t1n.").replace("_t2.", "-t2w.")
        )
    for path in [*root.rglob("*_flair*"), *root.rglob("*_seg*")]:
        path.rename(str(path).replace("_flair.", "-t2f.").replace("_seg.", "-seg."))
    with pytest.raises(
        ConfigError,
        match=r"enhancing tumour from a resection cavity, found the label values \[1, 2, 4\]",
    ):
        list_cases(root)
    assert list_cases(root, scheme="brats-2018-2021").scheme.values == (1, 2, 4)
    with pytest.raises(ConfigError, match="a 4 without a 3 is mostly brats-2018-2021"):
        list_cases(root)
    (note,) = list_cases(root, scheme="brats-2024-gli").notes
    assert "none of the 2 label maps looked into has a 3" in note
    assert "'resection cavity'" in note


@pytest.mark.parametrize(
    ("kind", "named", "words"),
    [
        ("brats", "brats-2018-2021", r"the values \[1, 2, 4\] alone, found 3 in .* brats-2023;"),
        ("brats2021", "brats-2023", "found 4 in case BraTS2021_00000, as in brats-2018-2021;"),
        ("brats2024", "brats-2023", "found 4 in .*, as in brats-2024-gli; name the numbering"),
    ],
)
def test_label_maps_of_another_year_than_the_one_named_are_refused(phantom, kind, named, words):
    with pytest.raises(ConfigError, match=words) as caught:
        list_cases(phantom(kind), scheme=named)
    assert caught.value.code == "scheme-differs"


def test_a_value_that_no_year_has_is_a_fault_of_its_case_alone(copy):
    root = copy("brats")
    path = next(root.rglob("BraTS-GLI-00001-000-seg*"))
    labels = nibabel.load(path)
    values = np.asarray(labels.dataobj).copy()
    values[:2] = 9
    nibabel.save(nibabel.Nifti1Image(values, labels.affine), path)
    listing = list_cases(root, scheme="brats-2023")
    assert (len(listing.cases), listing.notes) == (2, ())
    with pytest.raises(ConfigError, match=r"found 3 in case .* as in brats-2023"):
        list_cases(root, scheme="brats-2018-2021")


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("-t2f", "modality-missing", "the modality FLAIR .a file ending in flair or t2f"),
        ("-seg", "label-missing", "a label map ending in seg"),
    ],
)
def test_an_incomplete_tumour_case_is_named(copy, ending, code, words):
    root = copy("brats")
    name = "BraTS-GLI-00001-000"
    (root / name / f"{name}{ending}.nii.gz").unlink()
    assert problem(root).error.code == code
    with pytest.raises(ConfigError, match=f"case {name}: expected {words}"):
        read_datalist(root)


def test_a_tumour_case_that_lies_in_two_folders_is_not_mixed_together(copy):
    root = copy("brats")
    shutil.copytree(root / "BraTS-GLI-00001-000", root / "again" / "BraTS-GLI-00001-000")
    assert problem(root).error.code == "case-twice"
    with pytest.raises(ConfigError, match="one folder with a case of that name, found two"):
        read_datalist(root)


def test_time_points_of_a_patient_belong_together(copy):
    root = copy("brats")
    first = root / "BraTS-GLI-00000-000"
    later = root / "BraTS-GLI-00000-001"
    later.mkdir()
    for path in first.iterdir():
        shutil.copy(path, later / path.name.replace("-000-", "-001-"))
    patients = [case.patient for case in list_cases(root).cases]
    assert patients == ["BraTS-GLI-00000", "BraTS-GLI-00000", "BraTS-GLI-00001"]


# MSD and nnU-Net


def test_the_channels_of_a_four_dimensional_file_are_read(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    data = np.random.default_rng(0).normal(size=(5, 6, 4, 2)).astype(np.float32)
    labels = np.zeros((5, 6, 4), np.uint8)
    labels[1:3, 2:4, 1:3] = 1
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "imagesTr" / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labelsTr" / f"{name}.nii.gz")
    index = {
        "name": "Prostate",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "gland"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in ("a", "b")
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    listing = list_cases(tmp_path)
    volume, _ = read_all(listing)[0]
    assert volume.channels == ("T2", "ADC")
    assert np.array_equal(volume.data_cijk, np.moveaxis(data, 3, 0))
    assert volume.grid.spacing_mm == (1.0, 2.0, 3.0)


def test_channels_of_one_name_get_a_number(copy):
    root = copy("msd")
    index = json.loads((root / "dataset.json").read_text())
    index["modality"] = {"0": "MRI", "1": "MRI"}
    (root / "dataset.json").write_text(json.dumps(index))
    assert list_cases(root).channels == ("MRI 0", "MRI 1")


def test_a_named_scheme_replaces_the_names_of_an_index(phantom):
    listing = list_cases(phantom("msd"), scheme="msd-hippocampus")
    assert listing.scheme is SCHEMES["msd-hippocampus"]
    assert listing.scheme.by_value(1).name == "anterior hippocampus"


def nnunet(root, **keys):
    index = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**index, **keys}))
    return root


def test_nnunet_regions_and_the_ignore_label_are_understood(copy):
    root = nnunet(
        copy("nnunet"),
        labels={"background": 0, "whole": [1, 2], "front": [1], "ignore": 3},
        regions_class_order=[2, 1],
    )
    listing = list_cases(root)
    assert [(r.name, r.members, r.writes) for r in listing.regions] == [
        ("whole", (1, 2), 2),
        ("front", (1,), 1),
    ]
    assert {label.value: label.name for label in listing.scheme.labels} == {
        1: "front",
        2: "whole, part 2",
    }
    assert {case.ignore_value for case in listing.cases} == {3}
    assert read_datalist(root).ignore_value == 3


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"file_ending": ".png"}, "\"file_ending\" among .*found '.png'"),
        ({"file_ending": None}, '"file_ending" among .*found nothing'),
        ({"labels": {}}, '"labels" as {name: value, ...}, found an empty one'),
        ({"labels": {"background": 0}}, "at least one label beside background"),
        ({"labels": {"a": "x"}}, "integer label values, found a text"),
        ({"labels": {"a": [1, 2], "b": 1}}, '"regions_class_order" with a value for each of 2'),
        (
            {"labels": {"a": [1, 2], "b": 1}, "regions_class_order": [3, 1]},
            r"a value of \(1, 2\) for the region 'a', found 3",
        ),
    ],
)
def test_a_damaged_nnunet_index_is_refused(copy, keys, words):
    with pytest.raises(FormatError, match=words):
        list_cases(nnunet(copy("nnunet"), **keys))


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        ("labelsTr/hippocampus_001.nii.gz", "label-missing", "a label map labelsTr/CASE"),
        (None, "modality-missing", "an image for each of the 2 channels, found none ending in _00"),
    ],
)
def test_an_incomplete_nnunet_case_is_named(copy, file, code, words):
    root = copy("nnunet")
    if file is None:
        nnunet(root, channel_names={"0": "T1", "1": "T2"})
        shutil.copy(
            root / "imagesTr" / "hippocampus_002_0000.nii.gz",
            root / "imagesTr" / "hippocampus_002_0001.nii.gz",
        )
    else:
        (root / file).unlink()
    assert problem(root).error.code == code
    with pytest.raises(ConfigError, match=f"case hippocampus_001: expected {words}"):
        read_datalist(root)


def test_labels_without_any_image_are_an_incomplete_nnunet_case(copy):
    root = copy("nnunet")
    (root / "imagesTr" / "hippocampus_001_0000.nii.gz").unlink()
    assert problem(root).error.code == "modality-missing"
    with pytest.raises(ConfigError, match=r"case hippocampus_001: .*none ending in _0000\.nii\.gz"):
        read_datalist(root)


def test_an_nnunet_dataset_without_its_folders_is_refused(copy):
    root = copy("nnunet")
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(root / folder)
    with pytest.raises(ConfigError, match="at least one labelled case in the layout 'nnunet'"):
        list_cases(root, "nnunet")


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_a_folder_without_its_index_is_refused(tmp_path, layout):
    with pytest.raises(ConfigError, match=r"dataset.json: expected the dataset's index"):
        list_cases(tmp_path, layout)


def test_a_volume_beside_the_layout_is_no_case(copy):
    root = copy("synapse")
    grid = Grid((2, 2, 2), np.eye(4))
    write_volume(Volume(np.zeros((1, 2, 2, 2), np.int16), grid), root / "img" / "notes.nii.gz")
    assert len(list_cases(root).cases) == 4


@pytest.mark.parametrize("kind", ["nnunet", "synapse", "transunet", "acdc", "brats", "msd"])
def test_what_macos_leaves_beside_copied_files_is_no_case(copy, kind):
    root = copy(kind)
    before = [case.id for case in list_cases(root).cases]
    for path in sorted(root.rglob("*")):
        if path.is_file():
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for path in sorted(path for path in root.iterdir() if path.is_dir()):
        (root / f"._{path.name}").mkdir()
    listing = list_cases(root)
    assert ([case.id for case in listing.cases], listing.problems) == (before, ())


def test_slices_of_eight_organs_are_not_read_with_thirteen(phantom):
    with pytest.raises(
        ConfigError, match=r"label values from 1 to 8.*eight organs, found 'btcv-13'"
    ):
        list_cases(phantom("transunet"), scheme="btcv-13")
