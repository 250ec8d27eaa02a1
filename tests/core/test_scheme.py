import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Code, Label, LabelScheme
from medseg.errors import ConfigError

NAMES = st.text("abcdefghij ", min_size=1, max_size=12)
CODES = st.none() | st.builds(Code, NAMES, st.just("SCT"), NAMES)
RGB = st.tuples(*(st.integers(0, 255) for _ in range(3)))
LABELS = st.builds(Label, st.integers(1, 65535), NAMES, RGB, CODES, CODES, CODES)
SCHEMES = st.builds(
    LabelScheme,
    NAMES,
    st.lists(LABELS, min_size=1, max_size=5, unique_by=(lambda a: a.value, lambda a: a.name)).map(
        tuple
    ),
)
LIVER = Label(1, "liver", (200, 80, 60), concept=Code("10200004", "SCT", "Liver"))


@settings(max_examples=40, deadline=None)
@given(SCHEMES)
def test_a_scheme_survives_json(scheme):
    assert LabelScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


@settings(max_examples=40, deadline=None)
@given(SCHEMES)
def test_labels_are_in_rising_order_and_found_by_value(scheme):
    assert list(scheme.values) == sorted(scheme.values)
    assert all(scheme.by_value(label.value) is label for label in scheme.labels)


def test_a_plain_scheme_leaves_background_out_and_gives_colours_apart():
    scheme = LabelScheme.plain("many", {value: f"part {value}" for value in range(20)})
    assert scheme.values == tuple(range(1, 20))
    assert len({label.rgb for label in scheme.labels}) == 19


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, "a", (0, 0, 0)), "a value from 1 to 65535"),
        ((65536, "a", (0, 0, 0)), "a value from 1 to 65535"),
        ((1, "", (0, 0, 0)), "a name of 1 to 64 characters"),
        ((1, "a" * 65, (0, 0, 0)), "a name of 1 to 64 characters"),
        ((1, "a", (0, 0)), "three colour levels"),
        ((1, "a", (0, 0, 256)), "three colour levels"),
    ],
)
def test_labels_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Label(*arguments)
    assert caught.value.code == "label-scheme"


@pytest.mark.parametrize(
    "arguments", [("", "SCT", "Liver"), ("1", "S" * 17, "Liver"), ("1", "SCT", "L" * 65)]
)
def test_codes_longer_than_dicom_takes_are_refused(arguments):
    with pytest.raises(ConfigError, match=r"1 to \d+ characters"):
        Code(*arguments)


@pytest.mark.parametrize(
    "labels",
    [
        (),
        (LIVER, Label(1, "spleen", (0, 0, 0))),
        (LIVER, Label(2, "liver", (0, 0, 0))),
    ],
)
def test_schemes_that_are_empty_or_repeat_themselves_are_refused(labels):
    with pytest.raises(ConfigError, match="every value and name once"):
        LabelScheme("organs", labels)


def test_an_unknown_value_is_refused():
    with pytest.raises(ConfigError, match=r"one of the values \[1\], found 2") as caught:
        LabelScheme("organs", (LIVER,)).by_value(2)
    assert caught.value.code == "label-unknown"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "a mapping with labels, name"),
        ({"name": "a"}, r"missing \['labels'\]"),
        ({"name": "a", "labels": 3}, "a list under 'labels'"),
        ({"name": "a", "labels": [{"value": 1, "name": "b"}]}, r"missing \['rgb'\]"),
        (
            {"name": "a", "labels": [{"value": 1, "name": "b", "rgb": [0, 0, 0], "colour": 1}]},
            r"unknown \['colour'\]",
        ),
        (
            {"name": "a", "labels": [{"value": "one", "name": "b", "rgb": [0, 0, 0]}]},
            "an integer value",
        ),
        ({"name": "a", "labels": [{"value": 1, "name": "b", "rgb": 7}]}, "rgb of three integers"),
        (
            {
                "name": "a",
                "labels": [{"value": 1, "name": "b", "rgb": [0, 0, 0], "concept": {"value": "1"}}],
            },
            "missing",
        ),
    ],
)
def test_schemes_written_wrongly_are_refused(content, words):
    with pytest.raises(ConfigError, match=words) as caught:
        LabelScheme.from_dict(content)
    assert caught.value.code == "label-scheme"
