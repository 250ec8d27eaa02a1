"""What a check of a dataset finds, case by case and between cases."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.core import LabelScheme, Volume
from medseg.data.facts import default_jobs, measure_cases
from medseg.data.findings import check_dataset
from medseg.data.layouts import list_cases
from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.nifti import read_nifti
from medseg.io.writing import write_volume


@pytest.fixture
def root(phantom, tmp_path):
    return shutil.copytree(phantom("msd"), tmp_path / "msd")


def check(root, **options):
    return check_dataset(root, jobs=1, **options)


def found(report):
    return {(finding.code, finding.case) for finding in report.findings}


def change(path, alter, affine=None):
    volume = read_nifti(path).volume
    grid = volume.grid
    if affine is not None:
        grid = type(grid)(grid.shape_ijk, affine(np.array(grid.affine_ras)))
    path.unlink()
    write_volume(Volume(alter(np.array(volume.data_cijk)), grid), path)


def label(root, number):
    return root / "labelsTr" / f"hippocampus_{number:03d}.nii.gz"


def image(root, number):
    return root / "imagesTr" / f"hippocampus_{number:03d}.nii.gz"


@pytest.mark.parametrize("kind", ["synapse", "transunet", "acdc", "brats", "brats2024", "msd"])
def test_nothing_is_wrong_with_a_phantom(phantom, kind):
    report = check(phantom(kind))
    assert report.findings == ()
    assert len(report.facts) == len(report.listing.cases)


def test_a_shifted_label_map_is_an_error_with_its_distance(root):
    def shifted(affine):
        affine[0, 3] += 2.0
        return affine

    change(label(root, 2), lambda data: data, shifted)
    report = check(root)
    assert found(report) == {("label-grid-differs", "hippocampus_002")}
    assert "corners 2.00 mm apart" in report.findings[0].what
    assert report.errors == 1
    assert str(root) not in report.findings[0].what


def test_values_outside_the_scheme_and_unreadable_files_are_errors(root):
    change(label(root, 1), lambda data: data * 3)
    image(root, 3).write_bytes(image(root, 3).read_bytes()[:200])
    report = check(root)
    assert found(report) == {
        ("labelmap-values", "hippocampus_001"),
        ("file-truncated", "hippocampus_003"),
    }
    assert [finding.is_error for finding in report.findings] == [True, True]
    assert len(report.facts) == 3


def test_an_empty_label_map_and_a_constant_image_are_hints(root):
    change(label(root, 1), np.zeros_like)
    change(image(root, 2), lambda data: np.full_like(data, 7.5))
    report = check(root)
    assert found(report) == {
        ("foreground-empty", "hippocampus_001"),
        ("image-constant", "hippocampus_002"),
    }
    assert report.errors == 0


def test_a_structure_that_no_case_has_is_a_hint(root):
    for number in range(1, 6):
        change(label(root, number), lambda data: np.minimum(data, 1))
    assert found(check(root)) == {("structure-absent", "")}


def test_label_maps_of_background_alone_are_an_error_of_the_dataset(root):
    split = root / "split.json"
    names = [f"hippocampus_{number:03d}" for number in range(1, 6)]
    split.write_text(json.dumps({"train": names[:3], "validation": names[3:]}))
    for number in (1, 2, 3):
        change(label(root, number), np.zeros_like)

    def errors():
        return [one for one in check(root).findings if one.is_error]

    (training,) = errors()
    assert (training.case, training.code) == ("", "foreground-empty")
    assert training.what == "no training case has a voxel of any structure"
    for number in (4, 5):
        change(label(root, number), np.zeros_like)
    assert [one.what for one in errors()] == ["no case has a voxel of any structure"]
    split.unlink()
    assert [one.what for one in errors()] == ["no case has a voxel of any structure"]


def test_a_structure_of_validation_cases_alone_is_a_hint(root):
    names = [f"hippocampus_{number:03d}" for number in range(1, 6)]
    split = {"train": names[:3], "validation": names[3:]}
    (root / "split.json").write_text(json.dumps(split))
    for number in (1, 2, 3):
        change(label(root, number), lambda data: np.minimum(data, 1))
    (finding,) = check(root).findings
    assert (finding.code, finding.is_error) == ("structure-absent", False)
    assert finding.what == "no training case has a voxel of 'Posterior' (2)"


def test_the_same_image_twice_is_a_leak_only_across_parts(root):
    shutil.copy(image(root, 1), image(root, 2))
    shutil.copy(label(root, 1), label(root, 2))
    split = root / "split.json"
    rest = '"hippocampus_003", "hippocampus_004", "hippocampus_005"'
    split.write_text(f'{{"train": ["hippocampus_001", {rest}], "validation": ["hippocampus_002"]}}')
    report = check(root)
    assert found(report) == {("split-leak", "hippocampus_002")}
    assert report.errors == 1
    one_side = '"hippocampus_001", "hippocampus_002"'
    split.write_text(f'{{"train": [{one_side}], "validation": [{rest}]}}')
    report = check(root)
    assert found(report) == {("image-duplicate", "hippocampus_002")}
    assert report.errors == 0


def test_an_image_copied_into_another_file_format_is_still_the_same(root):
    data = read_nifti(image(root, 1)).volume
    image(root, 2).unlink()
    index = (
        (root / "dataset.json")
        .read_text()
        .replace("./imagesTr/hippocampus_002.nii.gz", "./imagesTr/hippocampus_002.nrrd")
    )
    (root / "dataset.json").write_text(index)
    write_volume(data, root / "imagesTr" / "hippocampus_002.nrrd")
    shutil.copy(label(root, 1), label(root, 2))
    codes = {code for code, _ in found(check(root))}
    assert codes & {"split-leak", "image-duplicate"}


def test_a_split_that_cannot_be_used_is_an_error_and_an_unused_case_a_hint(root):
    (root / "split.json").write_text('{"train": ["hippocampus_001"], "validation": ["none"]}')
    report = check(root)
    assert found(report) == {("split-unknown-case", "")}
    assert report.split is None
    (root / "split.json").write_text(
        '{"train": ["hippocampus_001", "none"], "validation": ["hippocampus_001"]}'
    )
    assert found(check(root)) == {("split-unknown-case", ""), ("split-leak", "")}
    (root / "split.json").write_text(
        '{"train": ["hippocampus_001"], "validation": ["hippocampus_002"]}'
    )
    report = check(root)
    assert found(report) == {("case-unused", "")}
    assert "3 cases in no part" in report.findings[0].what


def test_an_incomplete_case_is_an_error_unless_a_split_file_leaves_it_out(root):
    image(root, 5).unlink()
    report = check(root)
    assert found(report) == {("dataset-file-missing", "hippocampus_005")}
    assert report.errors == 1
    names = ", ".join(f'"hippocampus_00{number}"' for number in (1, 2, 3))
    (root / "split.json").write_text(f'{{"train": [{names}], "validation": ["hippocampus_004"]}}')
    assert check(root).errors == 0


def test_odd_spacings_and_orientations_are_hints(root):
    def coarser(affine):
        affine[:3, :3] *= 3.0
        return affine

    def mirrored(affine):
        affine[0] *= -1.0
        return affine

    for path in (image(root, 1), label(root, 1)):
        change(path, lambda data: data, coarser)
    for path in (image(root, 2), label(root, 2)):
        change(path, lambda data: data, mirrored)
    report = check(root)
    assert found(report) == {("spacing-outlier", "hippocampus_001"), ("orientations-differ", "")}
    assert report.errors == 0


def test_a_ct_that_was_not_rescaled_is_a_hint(phantom, tmp_path):
    root = shutil.copytree(phantom("synapse"), tmp_path / "synapse")
    change(root / "img" / "img0005.nii.gz", lambda data: data + np.int16(1024))
    assert found(check(root)) == {("intensity-outlier", "case0005")}


def test_mr_in_quite_other_units_is_a_hint_only_when_off_by_thousands(root):
    change(image(root, 1), lambda data: data * 50)
    assert found(check(root)) == set()
    change(image(root, 1), lambda data: data * 1e5)
    assert found(check(root)) == {("intensity-outlier", "hippocampus_001")}


def test_organs_read_in_anothers_order_are_suspected(phantom):
    for name in ("cascade-8", "emcad-8"):
        report = check(phantom("transunet"), scheme=name)
        assert ("label-order", "") in found(report)


def test_a_dataset_without_a_case_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one labelled case"):
        check(tmp_path, layout="brats")


def test_several_processes_find_what_one_finds(root):
    change(label(root, 1), np.zeros_like)
    image(root, 3).write_bytes(b"")
    assert found(check_dataset(root, jobs=2)) == found(check(root))


def test_a_check_can_be_stopped(root):
    class Stops(Silent):
        def cancelled(self):
            return True

    for jobs in (1, 2):
        with pytest.raises(Cancelled):
            check_dataset(root, jobs=jobs, listener=Stops())


def test_a_killed_process_fails_the_cases_it_had_and_no_others(root):
    listing = list_cases(root)
    deadly = replace(listing.cases[0], id="deadly", images=(KillsItsReader(root / "x"),))
    results = dict(
        measure_cases(
            (deadly, *listing.cases),
            listing.channels,
            listing.scheme,
            jobs=2,
            listener=Silent(),
        )
    )
    assert len(results) == 6
    assert isinstance(results[deadly], ResourceError)
    assert results[deadly].code == "out-of-memory"
    assert default_jobs(3) <= 3


class KillsItsReader(type(Path())):
    """A path whose reader is killed, as by a kernel that ran out of memory."""

    @property
    def name(self):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().name


def test_a_scheme_with_gaps_is_counted_by_value(phantom):
    report = check(phantom("brats2021"))
    assert set(report.facts[0].voxels) <= {1, 2, 4}
    assert isinstance(report.listing.scheme, LabelScheme)
