"""Tables of labels as BIDS derivatives have them: what is written is read, oddities are told."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from medseg.core import Label, LabelScheme
from medseg.errors import FormatError
from medseg.io.label_table import label_table, read_label_table

NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12
).filter(lambda name: name == name.strip())


@given(
    names=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_what_is_written_is_read(tmp_path_factory, names, colour):
    labels = tuple(Label(3 * n + 1, name, colour) for n, name in enumerate(names))
    path = tmp_path_factory.mktemp("table") / "dseg.tsv"
    path.write_text(label_table(LabelScheme("a", labels)), encoding="utf-8")
    assert read_label_table(path, "a").labels == labels


def table(tmp_path, text):
    path = tmp_path / "case_dseg.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_of_other_programs(tmp_path):
    path = table(
        tmp_path,
        '\ufeffname\tabbreviation\tindex\n"quoted"\tq\t2\nbackground\tb\t0\nspleen\ts\t7\n',
    )
    found = read_label_table(path, "theirs")
    assert [(one.value, one.name) for one in found.labels] == [(2, '"quoted"'), (7, "spleen")]
    # without colours each gets one
    assert len({one.rgb for one in found.labels}) == 2


def test_abbreviations_have_a_column(tmp_path):
    scheme = LabelScheme("a", (Label(2, "left kidney", (1, 2, 255)),))
    text = label_table(scheme, {2: "LK"})
    assert text == "index\tname\tcolor\tabbreviation\n2\tleft kidney\t#0102FF\tLK\n"
    assert read_label_table(table(tmp_path, text), "a") == scheme


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("participant\tage\n1\t50\n", "a file without 'index'"),
        ("index\tlabel\n1\tspleen\n", "a file without 'name'"),
        ("index\tname\nfirst\tspleen\n", "a file with other content"),
        ("index\tname\n1\tspleen\n1\tliver\n", "1"),
        ("index\tname\tcolor\n1\tspleen\t#GGGGGG\n", "a file with other content"),
        ("index\tname\n1\n", "0 characters"),
    ],
    ids=["another table", "no names", "no number", "twice", "no colour", "no name"],
)
def test_what_is_no_table_of_labels_is_told(tmp_path, text, found):
    with pytest.raises(FormatError) as refused:
        read_label_table(table(tmp_path, text), "a")
    assert refused.value.code == "label-table"
    assert found in refused.value.found


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        read_label_table(tmp_path / "none.tsv", "a")
