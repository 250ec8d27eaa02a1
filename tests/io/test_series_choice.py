import numpy as np
import pytest
from pydicom.uid import generate_uid

from medseg.core import Grid
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.io.dicom_series import read_dicom_series
from medseg.io.dicom_study import read_study
from medseg.io.series_choice import SeriesRule, chosen_stack, known_rules, match_series
from tests.dicom_variants import setting
from tests.series import AXIAL, small_series, spoil, spoil_all

FRAME = "1.2.826.0.1.3680043.8.498.1"


def study_of(folder, series):
    """A study folder: sub-folder name to the tags of its series, all in one frame of reference."""
    folder.mkdir(exist_ok=True)
    for number, (name, tags) in enumerate(series.items(), 1):
        small_series(folder / name, Grid((3, 3, 2), AXIAL.affine_ras), series_number=number)
        spoil_all(folder / name, setting(**{"FrameOfReferenceUID": FRAME, **tags}))
    return read_study(folder)


BRAIN = {
    "a": {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "b": {"SeriesDescription": "t2_tse_tra"},
    "c": {"SeriesDescription": "t1_mprage_tra", "ContrastBolusAgent": "Gd"},
    "d": {"SeriesDescription": "t1_mprage_tra"},
    "e": {"SeriesDescription": "t2_tirm_tra_dark-fluid"},
    "f": {"SeriesDescription": "ep2d_diff_ADC"},
    "g": {"SeriesDescription": "ep2d_diff_trace"},
}
FOUR = ("T1", "T1c", "T2", "FLAIR")


def numbers(study, channels, **wanted):
    rules = {channel: known_rules(channel, "MR") for channel in channels}
    found = match_series(study, rules, wanted=wanted)
    return {channel: stack.number for channel, stack in found.items()}


def test_channels_find_their_series_by_name_and_contrast(tmp_path):
    study = study_of(tmp_path / "s", BRAIN)
    assert numbers(study, FOUR) == {"T1": 4, "T1c": 3, "T2": 2, "FLAIR": 5}
    assert numbers(study, ("ADC", "DWI")) == {"ADC": 6, "DWI": 7}


@pytest.mark.parametrize(
    "words",
    [
        ("T1", "T1 post", "T2", "FLAIR"),
        ("t1_se", "t1_se_gd", "t2w", "t2_flair"),
        ("SPGR", "SPGR +C", "AX T2", "AX FLAIR"),
        ("T1pre_reg", "T1post", "T2_reg", "FLAIR_reg"),
        ("t1n", "t1c", "t2w", "t2f flair"),
        ("T1W", "T1CE", "T2W", "FLAIR"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_series_are_matched_by_common_descriptions(tmp_path, words, seed):
    order = np.random.default_rng(seed).permutation(4)
    series = {str(n): {"SeriesDescription": words[index]} for n, index in enumerate(order)}
    found = numbers(study_of(tmp_path / "s", series), FOUR)
    assert [found[channel] for channel in FOUR] == [int(n) + 1 for n in np.argsort(order)]


@pytest.mark.shared_data
def test_the_channels_of_a_real_study_are_matched(shared_data):
    study = read_study(shared_data / "06_dicom_mr_brain_tumour_progression" / "PGBM-003")
    assert numbers(study, FOUR) == {"T1": 2, "T1c": 1, "T2": 4, "FLAIR": 3}


def test_ambiguity_lists_the_candidates_and_no_description(tmp_path):
    study = study_of(
        tmp_path / "s", {"a": {"SeriesDescription": "t1 DOE"}, "b": {"SeriesDescription": "t1 se"}}
    )
    with pytest.raises(MedsegError) as caught:
        numbers(study, ("T1",))
    assert caught.value.code == "series-ambiguous"
    assert str(caught.value).endswith(
        "expected one series for channel T1, found 2 series: 1: MR of 2 images (series 1); "
        "2: MR of 2 images (series 2); choose one with --series; `medseg studies list` shows them"
    )
    assert numbers(study, ("T1",), T1="2") == {"T1": 2}


def test_what_is_ambiguous_for_one_channel_is_settled_by_another(tmp_path):
    series = {"a": {"SeriesDescription": "one"}, "b": {"SeriesDescription": "two"}}
    study = study_of(tmp_path / "s", series)
    rules = {"A": [SeriesRule()], "B": [SeriesRule(description="two")]}
    found = match_series(study, rules)
    assert (found["A"].number, found["B"].number) == (1, 2)
    with pytest.raises(MedsegError, match=r"2: MR of 2 images \(series 2\) for both A and B"):
        match_series(study, rules, wanted={"A": "2"})


def test_a_channel_without_a_series_is_named(tmp_path):
    study = study_of(tmp_path / "s", {"a": {"SeriesDescription": "t1"}})
    with pytest.raises(MedsegError, match="a series for channel FLAIR, found none that fits") as c:
        numbers(study, ("T1", "FLAIR"))
    assert c.value.code == "series-none"


@pytest.mark.parametrize("other", ["1.2.3", ""])
def test_series_in_other_frames_of_reference_are_refused(tmp_path, other):
    study = study_of(
        tmp_path / "s",
        {
            "a": {"SeriesDescription": "t1"},
            "b": {"SeriesDescription": "t2", "FrameOfReferenceUID": other},
        },
    )
    with pytest.raises(MedsegError, match="in the frame of reference of channel T1, found") as c:
        numbers(study, ("T1", "T2"))
    assert c.value.code == "channels-frames-differ"


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (SeriesRule(modality="MR"), True),
        (SeriesRule(modality="CT"), False),
        (SeriesRule(description="T1.*TRA"), True),
        (SeriesRule(description="^tra"), False),
        (SeriesRule(exclude="tra"), False),
        (SeriesRule(body_part="brain|head"), True),
        (SeriesRule(min_thickness_mm=3), False),
        (SeriesRule(max_thickness_mm=3), True),
        (SeriesRule(orientation="axial"), True),
        (SeriesRule(orientation="sagittal"), False),
        (SeriesRule(contrast=False), True),
        (SeriesRule(contrast=True), False),
        (SeriesRule(b_values=(0, 100)), True),
        (SeriesRule(b_values=(100, 1000)), False),
    ],
)
def test_every_part_of_a_rule_counts(tmp_path, rule, fits):
    tags = {
        "SeriesDescription": "t1_tse_tra",
        "BodyPartExamined": "HEAD",
        "SliceThickness": "2",
        "DiffusionBValue": 50.0,
    }
    (stack,) = study_of(tmp_path / "s", {"a": tags}).stacks
    assert rule.fits(stack) is fits


def test_a_user_chooses_by_number_identifier_or_description(tmp_path):
    study = study_of(tmp_path / "s", BRAIN)
    uid = study.stacks[2].series_uid
    assert chosen_stack(study, "5").number == 5
    assert chosen_stack(study, uid).number == 3
    assert chosen_stack(study, "dark.fluid").number == 5
    for wanted in ("0", "8", generate_uid(), "nothing like it"):
        with pytest.raises(ConfigError, match="a number up to 7, a SeriesInstanceUID or") as caught:
            chosen_stack(study, wanted)
        assert caught.value.code == "series-unknown"
        assert uid not in str(caught.value)
    with pytest.raises(ConfigError, match="an expression that cannot be read") as caught:
        chosen_stack(study, "t1 (")
    assert caught.value.code == "series-pattern"
    with pytest.raises(MedsegError, match="one that is called so, found 2 series: 3: MR"):
        chosen_stack(study, "t1")
    scan = read_dicom_series(tmp_path / "s", series="t2_tse")
    assert str(scan.source.datasets[0].SeriesDescription) == "t2_tse_tra"
    with pytest.raises(ConfigError, match="the model's channels T1, found T9") as caught:
        match_series(study, {"T1": [SeriesRule()]}, wanted={"T9": "1"})
    assert caught.value.code == "channel-names"


def test_the_only_fitting_series_shows_its_own_problem(tmp_path):
    study_of(tmp_path / "s", {"a": {"SeriesDescription": "t1"}, "b": {"SeriesDescription": "t2"}})
    spoil_all(tmp_path / "s" / "a", setting(PixelSpacing=[0, 1]))
    with pytest.raises(MedsegError) as caught:
        numbers(read_study(tmp_path / "s"), ("T1",))
    assert caught.value.code == "dicom-tag-invalid"


def test_a_series_that_broke_is_not_answered_with_another(tmp_path):
    folder = tmp_path / "s"
    study_of(folder, {"a": {"SeriesDescription": "t1"}, "b": {"SeriesDescription": "t1"}})
    for path in sorted((folder / "a").iterdir()):  # the same slices again, at the same places
        again = folder / "a" / f"again{path.name}"
        spoil(path, setting(SOPInstanceUID=generate_uid()), again)
    with pytest.raises(FormatError, match="found 2 series: 1: MR of 4 images") as caught:
        numbers(read_study(folder), ("T1",))
    assert caught.value.code == "series-ambiguous"
    # a picture without a place in the patient is of another kind
    for path in (folder / "a").iterdir():
        spoil(path, lambda one: delattr(one, "ImageOrientationPatient"))
    assert numbers(read_study(folder), ("T1",)) == {"T1": 2}
