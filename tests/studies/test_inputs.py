import numpy as np
import pytest

from medseg.core import Grid, Volume
from medseg.errors import ConfigError, MedsegError
from medseg.io.scan import DicomSource
from medseg.io.writing import write_volume
from medseg.models.card import ModelCard
from medseg.studies.inputs import read_case_image, series_choices, series_rules
from tests.dicom_variants import setting, zipped
from tests.series import AXIAL, ramp, small_series, spoil_all
from tests.tiny_model import tiny_description

FRAME = "1.2.826.0.1.3680043.8.498.2"


def card(*channels):
    description = tiny_description(inputs={"channels": list(channels)})
    return ModelCard(**description.model_dump(), weights_sha256="0" * 64)


ONE = card({"name": "image", "modality": "MR"})
TWO = card({"name": "T1", "modality": "MR"}, {"name": "T2", "modality": "MR"})


@pytest.fixture
def study(tmp_path):
    """T2 first, T1 second on a finer grid that is a part of the same world."""
    folder = tmp_path / "study"
    folder.mkdir()
    fine = Grid((9, 8, 7), AXIAL.affine_ras @ np.diag([0.5, 0.5, 0.5, 1.0]))
    small_series(folder / "a", AXIAL, series_number=1)
    small_series(folder / "b", fine, series_number=2)
    for name, words in (("a", "t2_tse"), ("b", "t1_se")):
        spoil_all(folder / name, setting(SeriesDescription=words, FrameOfReferenceUID=FRAME))
    return folder


def test_channels_are_brought_onto_the_grid_of_the_first(study):
    scan = read_case_image(study, TWO)
    assert scan.volume.channels == ("T1", "T2")
    assert scan.volume.grid.shape_ijk == (9, 8, 7)
    assert scan.volume.data_cijk.dtype == np.float32
    # the ramp is linear in the voxel, and the grids share their first voxel
    i, j, k = np.indices((9, 8, 7))
    inside = (i <= 10) & (j <= 8) & (k <= 6)
    expected = (i / 2) * 20 + (j / 2) * 4 + k / 2 - 20
    assert np.allclose(scan.volume.data_cijk[1][inside], expected[inside], atol=1e-3)
    assert isinstance(scan.source, DicomSource)
    assert str(scan.source.datasets[0].SeriesDescription) == "t1_se"
    assert "T2: interpolated onto the grid of T1" in scan.notes


def test_a_zip_of_the_study_gives_the_same(study, tmp_path):
    whole = read_case_image(study, TWO)
    packed = read_case_image(zipped(study, tmp_path / "s.zip"), TWO)
    assert np.array_equal(whole.volume.data_cijk, packed.volume.data_cijk)


def test_beyond_a_channel_lies_its_least_value(study):
    scan = read_case_image(study, TWO, series={"T1": "1", "T2": "2"})
    assert scan.volume.grid.shape_ijk == (6, 5, 4)
    assert scan.volume.data_cijk[1].min() == ramp().data_cijk.min()
    assert scan.volume.data_cijk[1][5, 0, 0] == -20  # 7.5 mm out, the fine series ends at 6 mm


def test_one_channel_takes_the_only_series_or_asks(study):
    with pytest.raises(MedsegError, match="one series for channel image, found 2 series"):
        read_case_image(study, ONE)
    chosen = read_case_image(study, ONE, series={"": "t2"})
    assert chosen.volume.grid.shape_ijk == (6, 5, 4)
    alone = read_case_image(study / "a", ONE)
    assert np.array_equal(alone.volume.data_cijk, chosen.volume.data_cijk)
    by_name = read_case_image(study, card({"name": "T1", "modality": "MR"}))
    assert by_name.volume.grid.shape_ijk == (9, 8, 7)


def test_the_rules_on_a_card_choose(study):
    rules = {"description": "T2", "max_thickness_mm": 3}
    model = card({"name": "any", "modality": "MR", "series": rules})
    assert read_case_image(study, model).volume.grid.shape_ijk == (6, 5, 4)
    strict = card({"name": "any", "modality": "MR", "series": {"orientation": "sagittal"}})
    with pytest.raises(MedsegError, match="none that fits the model's rules") as caught:
        read_case_image(study / "a", strict)
    assert caught.value.code == "series-none"


def test_rules_that_cannot_be_read_are_told_with_the_card():
    with pytest.raises(ValueError, match=r"'\(' is no regular expression: missing \)"):
        card({"name": "any", "series": {"description": "("}})
    assert "series" not in TWO.model_dump()["inputs"]["channels"][0]
    (rule,) = series_rules(card({"name": "x", "modality": "OT"}).inputs.channels)["x"][:1]
    assert rule.modality is None


def test_gaps_are_for_the_user_to_allow(study):
    (study / "a" / "00002.dcm").unlink()
    with pytest.raises(MedsegError) as caught:
        read_case_image(study / "a", ONE)
    assert caught.value.code == "slice-gap"
    scan = read_case_image(study / "a", ONE, allow_gaps=True)
    assert scan.volume.grid.shape_ijk == (6, 5, 4)


def test_a_damaged_file_of_the_study_stops_it(study):
    (study / "x").write_bytes((study / "a" / "00001.dcm").read_bytes()[:150])
    with pytest.raises(MedsegError) as caught:
        read_case_image(study, TWO)
    assert caught.value.code == "dicom-unreadable"


def test_an_image_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.nii.gz"
    data = np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32)
    write_volume(Volume(data, AXIAL), path)
    assert np.array_equal(read_case_image(path, ONE).volume.data_cijk, data)
    with pytest.raises(ConfigError, match="a DICOM study to choose from") as caught:
        read_case_image(path, ONE, series={"": "1"})
    assert caught.value.code == "series-file"


@pytest.mark.shared_data
def test_a_real_study_gives_four_channels_on_one_grid(shared_data):
    four = card(*({"name": name, "modality": "MR"} for name in ("T1", "T1c", "T2", "FLAIR")))
    path = shared_data / "06_dicom_mr_brain_tumour_progression" / "PGBM-003"
    scan = read_case_image(path, four)
    assert scan.volume.data_cijk.shape == (4, 280, 320, 22)
    assert [int(channel.max()) for channel in scan.volume.data_cijk] == [1594, 2040, 1391, 1436]


def test_options_name_channels_or_stand_for_the_only_one():
    one, two = ONE.inputs.channels, TWO.inputs.channels
    assert series_choices(["T2=1", "T1=a=b"], two) == {"T2": "1", "T1": "a=b"}
    assert series_choices(["t2=.*"], one) == {"image": "t2=.*"}
    assert series_choices(["image=4"], one) == {"image": "4"}
    for options in (["4"], ["T9=4"], ["T1=1", "T1=2"], ["T1="]):
        with pytest.raises(ConfigError, match="the model's channels T1, T2, found") as caught:
            series_choices(options, two)
        assert caught.value.code == "channel-names"
