"""Label schemes by name."""

import json

import numpy as np
import pytest
import yaml
from pydicom.sr._concepts_dict import concepts

from medseg.core import LabelScheme
from medseg.data.datalist import read_datalist
from medseg.data.schemes import BRATS_SCHEMES, REGIONS, SCHEMES, find_scheme, recode_by_name
from medseg.errors import ConfigError, FormatError


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_every_scheme_survives_json(scheme):
    assert LabelScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


@pytest.mark.parametrize("name", ["transunet-8", "cascade-8", "emcad-8"])
def test_each_order_of_eight_organs_holds_the_same_organs(name):
    names = {label.name for label in SCHEMES[name].labels}
    assert names == {label.name for label in SCHEMES["transunet-8"].labels}
    assert names < {label.name for label in SCHEMES["btcv-13"].labels}


def test_the_orders_of_organs_are_those_that_were_published():
    # the numbers of BTCV that become 1 to 8
    for name, raw in (
        ("transunet-8", (8, 4, 3, 2, 6, 11, 1, 7)),
        ("cascade-8", (1, 2, 3, 4, 6, 7, 8, 11)),
        ("emcad-8", (1, 2, 3, 4, 11, 6, 7, 8)),
    ):
        pairs = dict(recode_by_name(SCHEMES["btcv-13"], SCHEMES[name]))
        assert {pairs[value]: value for value in raw} == dict(enumerate(raw, start=1))
        assert all(pairs[value] == 0 for value in set(range(14)) - set(raw))


def test_recoding_there_and_back_keeps_the_eight_organs():
    there = dict(recode_by_name(SCHEMES["transunet-8"], SCHEMES["cascade-8"]))
    back = dict(recode_by_name(SCHEMES["cascade-8"], SCHEMES["transunet-8"]))
    assert [back[there[value]] for value in range(9)] == list(range(9))
    assert recode_by_name(SCHEMES["acdc"], SCHEMES["acdc"]) == ()


@pytest.mark.parametrize("name", BRATS_SCHEMES)
def test_the_regions_of_tumours_are_nested_and_write_back_the_labels(name):
    scheme, regions = SCHEMES[name], REGIONS[name]
    whole, core, enhancing = (set(region.members) for region in regions[:3])
    assert enhancing < core < whole <= set(scheme.values)
    meaning = {label.value: label.name for label in scheme.labels}
    assert meaning[regions[2].writes] == "enhancing tumour"
    assert all(meaning[value] != "oedema" for value in core)
    assert meaning[regions[0].writes] == "oedema"
    if name != "brats-2012-2015":  # there two labels make the core that does not enhance
        labels = np.arange(5)[np.isin(np.arange(5), (0, *scheme.values))]
        written = np.zeros_like(labels)
        for region in regions:
            written[np.isin(labels, region.members)] = region.writes
        assert np.array_equal(written, labels)


def test_nnunets_numbers_of_2021_swap_oedema_and_necrosis():
    ours, theirs = (
        {label.value: label.name for label in SCHEMES[name].labels}
        for name in ("brats-2023", "brats-nnunet-137")
    )
    assert (theirs[1], theirs[2], theirs[3]) == (ours[2], ours[1], ours[3])


def test_a_scheme_is_found_by_name_or_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    for content in (
        SCHEMES["acdc"].to_dict(),
        {"data": {}, "labels": SCHEMES["acdc"].to_dict()},  # a run's file
    ):
        path.write_text(yaml.safe_dump(content))
        assert find_scheme(str(path)) == SCHEMES["acdc"]
    with pytest.raises(ConfigError, match=r"nearest: transunet-8.*found 'transunet8'"):
        find_scheme("transunet8")
    path.write_text("[")
    with pytest.raises(FormatError, match="a label scheme as YAML or JSON"):
        find_scheme(str(path))


def test_a_scheme_of_other_structures_cannot_be_recoded():
    with pytest.raises(ConfigError, match="structures of 'acdc', found 'aorta'"):
        recode_by_name(SCHEMES["acdc"], SCHEMES["transunet-8"])


def test_a_models_labels_in_another_order_than_the_datasets_are_refused(phantom):
    data = read_datalist(phantom("transunet"))
    data.check_scheme(SCHEMES["transunet-8"])
    with pytest.raises(
        ConfigError, match="expected 1 to be 'aorta', as in 'transunet-8', found 's"
    ):
        data.check_scheme(SCHEMES["cascade-8"])


def test_codes_mean_what_dicom_says_they_mean():
    """Against the concepts of DICOM PS3.16 as pydicom lists them."""
    known: dict[str, str] = {}
    for entries in concepts["SCT"].values():
        for code, (meaning, _) in entries.items():
            known.setdefault(code, meaning.lower())
    unknown = set()
    for scheme in SCHEMES.values():
        for label in scheme.labels:
            for code in (label.concept, label.modifier):
                if code is None:
                    continue
                if code.value not in known:
                    unknown.add((code.value, code.meaning))
                    continue
                stem = code.meaning.split()[-1].lower()
                # the dictionary has some by their adjective: Endo-esophageal, Endo-renal
                words = {"kidney": "renal", "esophagus": "esophag", "hippocampus": "hippocamp"}
                assert words.get(stem, stem) in known[code.value], (label.name, known[code.value])
    assert unknown == {("74281007", "Myocardium")}  # not among the context groups


SHORT = {1: "Anterior", 2: "Posterior"}


@pytest.mark.parametrize(
    "content",
    [
        SHORT,
        {0: "background", **SHORT},
        {str(value): name for value, name in SHORT.items()},
        {"labels": SHORT},
        {"name": "mine", "labels": SHORT},
        {"labels": [{"value": value, "name": name} for value, name in SHORT.items()]},
    ],
)
def test_a_file_may_name_labels_in_short(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert find_scheme(str(path)) == LabelScheme.plain("mine", SHORT)


def test_a_missing_colour_is_filled_in_and_a_given_one_kept(tmp_path):
    path = tmp_path / "mine.yaml"
    labels = [{"value": 1, "name": "a", "rgb": [1, 2, 3]}, {"value": 2, "name": "b"}]
    path.write_text(yaml.safe_dump({"name": "two", "labels": labels}))
    first, second = find_scheme(str(path)).labels
    assert first.rgb == (1, 2, 3) != second.rgb


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{Anterior: 1}", r"mine\.yaml, label 1: expected a name, found a number"),
        ("{1: a, x: b}", r"mine\.yaml, label 2: expected an integer value"),
        ("{1: a, 70000: b}", r"mine\.yaml, label 2: expected a value from 1 to 65535"),
        ("labels: [{value: 1, name: a, colour: red}]", r"mine\.yaml, label 1: .*unknown.*colour"),
        ("labels: [a]", r"mine\.yaml, label 1: expected a mapping with"),
        ("{1: a, 2: a}", r"mine\.yaml: expected at least one label, every value and name once"),
        ("3", r"mine\.yaml: expected {value: name}, or a label scheme"),
    ],
)
def test_what_is_wrong_with_a_file_of_labels_is_told_with_its_place(tmp_path, content, words):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        find_scheme(str(tmp_path / "mine.yaml"))
    assert caught.value.code == "label-scheme"
