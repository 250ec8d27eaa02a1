"""Comments and layout never change what is read back."""

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.training.commented_yaml import commented_yaml

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(content=st.dictionaries(TEXT, VALUE, max_size=4), comment=TEXT)
def test_what_is_written_reads_back_equal_whatever_the_comments_say(content, comment) -> None:
    comments = dict.fromkeys(content, comment)
    text = commented_yaml(content, comments, header=["A header."])
    assert (yaml.safe_load(text) or {}) == content


def test_blocks_lists_and_comments_lie_where_people_expect_them() -> None:
    content = {
        "name": "x",
        "inputs": {"window": [1, 2], "channels": [{"name": "CT", "n": {"a": 1}}]},
    }
    comments = {"inputs": "about all", "inputs.window": "why\nso", "inputs.channels.0.name": "c"}
    assert commented_yaml(content, comments, header=["head"]) == (
        "# head\n\nname: x\n\ninputs:  # about all\n  window: [1, 2]  # why so\n  channels:\n"
        "    - name: CT  # c\n      n: {a: 1}\n"
    )
