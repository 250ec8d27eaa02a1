"""What is measured of a dataset is what was put into it."""

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.core import Grid, LabelScheme, Volume
from medseg.data.case import Case
from medseg.data.datalist import DataList, read_datalist
from medseg.data.fingerprint import (
    CaseGrid,
    Fingerprint,
    load_fingerprint,
    measure_fingerprint,
)
from medseg.data.phantoms import write_phantom
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.events import Cancelled, Silent
from medseg.io.writing import write_volume
from medseg.models.card import Region

# voxel axes I, J, K point to S, L, A, so that extents must be put in order
AFFINE = np.array([[0, -2.0, 0, 0], [0, 0, 1.5, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])


def write_case(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> Case:
    paths = (folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz")
    grid = Grid(labels.shape, AFFINE)
    write_volume(Volume(image[None], grid), paths[0])
    write_volume(Volume(labels[None], grid), paths[1])
    return Case(name, paths[:1], paths[1])


def datalist(cases: list[Case], channel: str = "T1", **more) -> DataList:
    scheme = LabelScheme.plain("made", {1: "ball", 2: "rare"})
    given = {"validation": (), "split_source": "all", "sha256": "0", **more}
    return DataList("Made", "CC0", (channel,), scheme, tuple(cases), **given)


@pytest.fixture
def made(tmp_path: Path) -> DataList:
    """Two cases worked out on paper: 12 and 24 voxels of label 1, 4 of label 2 in the second."""
    cases = []
    for number, count in ((0, 12), (1, 24)):
        image = np.zeros((4, 6, 10), np.float32)
        labels = np.zeros(image.shape, np.uint8)
        image[:2] = 7.25  # half of the image is not zero
        labels[0].flat[:count] = 1
        image[0].flat[:count] = np.arange(count) + 100.5
        if number:
            labels[1].flat[:4] = 2
        cases.append(write_case(tmp_path, f"case_{number}", image, labels))
    return datalist(cases)


def test_counts_volumes_grids_and_intensities_are_those_worked_out_on_paper(made: DataList) -> None:
    found = measure_fingerprint(made, jobs=1)
    assert found.cases == (
        CaseGrid("case_0", (6, 10, 4), (2.0, 1.5, 5.0), 0.5),
        CaseGrid("case_1", (6, 10, 4), (2.0, 1.5, 5.0), 0.5),
    )
    ball, rare = found.classes
    assert (ball.cases, ball.voxels, rare.cases, rare.voxels) == (2, 36, 1, 4)
    # a voxel is 15 mm3
    assert (ball.least_ml, ball.median_ml, ball.greatest_ml) == pytest.approx((0.18, 0.27, 0.36))
    values = np.array([*range(100, 112), *range(100, 124)], np.float64) + 0.5
    values = np.append(values, [7.25] * 4)
    (channel,) = found.channels
    assert channel.mean == pytest.approx(values.mean())
    assert channel.std == pytest.approx(values.std())
    assert channel.median == np.median(values)
    assert channel.percentile_99_5 == pytest.approx(np.percentile(values, 99.5))
    assert found.foreground_share == pytest.approx(40 / 480)
    assert found.voxels == 480
    assert channel.modality == "MR"


def test_the_thickest_axis_comes_last_where_slices_shall(made: DataList) -> None:
    found = measure_fingerprint(made, jobs=1)
    assert found.shapes("RAS").tolist() == [[6, 10, 4]] * 2
    sagittal = CaseGrid("c", (4, 6, 10), (5.0, 2.0, 1.5), 1.0)
    assert sagittal.on_axes("slices_last") == ((6, 10, 4), (2.0, 1.5, 5.0))
    even = CaseGrid("c", (4, 6, 10), (5.0, 5.0, 1.5), 1.0)
    assert even.on_axes("slices_last") == ((4, 6, 10), (5.0, 5.0, 1.5))


def test_neither_the_number_of_jobs_nor_the_order_of_cases_changes_anything(
    made: DataList,
) -> None:
    one = measure_fingerprint(made, jobs=1, samples_per_case=5, seed=3)
    turned = datalist(list(reversed(made.train)))
    assert measure_fingerprint(turned, jobs=2, samples_per_case=5, seed=3) == one
    other = measure_fingerprint(made, jobs=1, samples_per_case=5, seed=4)
    assert other.channels != one.channels
    assert other.classes == one.classes


def test_a_fingerprint_survives_json(made: DataList, tmp_path: Path) -> None:
    regions = (Region(name="all", members=(1, 2), writes=1),)
    found = measure_fingerprint(datalist(list(made.train), regions=regions), jobs=1)
    path = tmp_path / "fingerprint.json"
    path.write_text(json.dumps(found.to_dict()))
    assert load_fingerprint(path) == found
    assert found.region_settings == regions
    for spoilt in ({}, {**found.to_dict(), "format": "x"}, {**found.to_dict(), "cases": [{}]}):
        with pytest.raises(FormatError, match="a fingerprint of the format medseg-fingerprint/1"):
            Fingerprint.from_dict(spoilt)
    path.write_text("[")
    with pytest.raises(FormatError, match=r"measure it again with `medseg plan`"):
        load_fingerprint(path)


def test_voxels_that_nobody_judged_are_no_structure(tmp_path: Path) -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0], labels[1] = 1, 9
    image = np.where(labels == 9, 1000.5, 1.5).astype(np.float32)
    case = write_case(tmp_path, "case", image, labels)
    judged = Case(case.id, case.images, case.label, ignore_value=9)
    found = measure_fingerprint(datalist([judged]), jobs=1)
    assert found.channels[0].percentile_99_5 == 1.5
    assert found.ignore_value == 9
    assert [one.voxels for one in found.classes] == [16, 0]


@pytest.mark.parametrize(
    ("channel", "least", "modality"),
    [
        ("CT", 0, "CT"),
        ("cine MR", 0, "MR"),
        ("t1ce", 0, "MR"),
        ("FLAIR", 0, "MR"),
        ("PET", 0, "PT"),
        ("image", 0, "OT"),
        ("image", -1000, "CT"),
        ("activity", 0, "OT"),
    ],
)
def test_the_modality_is_told_by_name_and_else_by_air(
    tmp_path: Path, channel: str, least: float, modality: str
) -> None:
    image = np.linspace(40.5, 60.5, 64, dtype=np.float32).reshape(4, 4, 4)
    image[0, 0, 0] = least
    labels = np.ones(image.shape, np.uint8)
    case = write_case(tmp_path, "case", image, labels)
    found = measure_fingerprint(datalist([case], channel), jobs=1)
    assert found.channels[0].modality == modality


def test_what_is_wrong_with_a_case_is_told_with_its_name(made: DataList, tmp_path: Path) -> None:
    for case in made.train:
        case.label.write_bytes(b"no image")
    with pytest.raises(MedsegError, match=r"case_0.*1 further cases cannot be used either"):
        measure_fingerprint(made, jobs=1)


def test_a_dataset_of_background_alone_is_refused(tmp_path: Path) -> None:
    image = np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(4, 4, 4)
    case = write_case(tmp_path, "case", image, np.zeros(image.shape, np.uint8))
    with pytest.raises(ConfigError, match="expected a structure in at least one training case"):
        measure_fingerprint(datalist([case]), jobs=1)


def test_measuring_stops_when_the_listener_asks(made: DataList) -> None:
    class Impatient(Silent):
        def __init__(self) -> None:
            self.done = 0

        def advanced(self, stage: str, done: int) -> None:
            assert stage == "measuring cases"
            self.done = done

        def cancelled(self) -> bool:
            return self.done >= 1

    with pytest.raises(Cancelled):
        measure_fingerprint(made, jobs=1, listener=Impatient())


@pytest.mark.parametrize(
    ("kind", "modalities"),
    [("brats", ["MR"] * 4), ("synapse", ["CT"]), ("acdc", ["MR"]), ("transunet", ["CT"])],
)
def test_phantoms_of_public_datasets_are_measured(
    tmp_path: Path, kind: str, modalities: list[str]
) -> None:
    write_phantom(kind, tmp_path / "set", cases=6, size="small")
    found = measure_fingerprint(read_datalist(tmp_path / "set"), jobs=1)
    assert [channel.modality for channel in found.channels] == modalities
    assert bool(found.regions) == (kind == "brats")
    if kind == "brats":  # skull-stripped
        assert found.nonzero_share < 0.75
    if kind == "acdc":
        spacings_mm = found.spacings_mm("slices_last")
        assert (spacings_mm[:, 2] > 2 * spacings_mm[:, :2].max(axis=1)).all()
