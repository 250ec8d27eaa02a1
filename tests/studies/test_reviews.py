"""Reviews: appended, never changed, refused where somebody was quicker; older ledgers get them."""

import sqlite3
from contextlib import closing

import pytest

from medseg.errors import ConfigError
from medseg.studies.doubt import Doubt, doubt_of_report, read_doubt
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import Ending, Entry, Output
from medseg.studies.reviews import (
    add_review,
    change_mark,
    latest_review,
    latest_reviews,
    result_sha256,
    review_counts,
    review_history,
)

EFFORT = {"labels": [{"name": "a", "dice": 0.5}, {"name": "b", "dice": 1.0}, {"dice": None}]}


def finish(ledger, number, sha256="abc", state="done"):
    [row] = ledger.register([Entry(f"{number}.nii", (str(number),), {"": f"/{number}.nii"})])
    run = ledger.begin_run([(row.number, row.channels)], "s", "{}")
    token = ledger.enlist(run)
    ledger.claim(run, token)
    ledger.begin(row.number, token, row.channels)
    outputs = [Output("nifti", f"{number}_dseg.nii.gz", 3, sha256)] if state == "done" else []
    ledger.finish(row.number, token, "s", Ending(state, 1.0, outputs=outputs))
    ledger.dismiss(token)
    ledger.end_run(run)
    return row.number


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite", create=True) as opened:
        finish(opened, 1)
        finish(opened, 2, "def")
        finish(opened, 3, state="failed")
        yield opened


def test_every_word_is_kept_and_the_last_one_counts(ledger):
    first = add_review(ledger, 1, "accepted", after=0, result="abc", note="fine", seconds=3.5)
    second = add_review(
        ledger, 1, "corrected", after=1, result="abc", effort=EFFORT, file="corrected/1", sha256="f"
    )
    assert review_history(ledger, 1) == [first, second]
    assert latest_review(ledger, 1) == second
    assert (second.revision, second.mean_dice, second.is_kept) == (2, 0.75, True)
    assert (first.note, first.seconds, first.mean_dice) == ("fine", 3.5, None)
    assert latest_reviews(ledger) == {1: second}
    assert latest_review(ledger, 2) is None
    counts = {"not reviewed": 1, "accepted": 0, "corrected": 1, "rejected": 0}
    assert review_counts(ledger) == counts  # the failed case has nothing to review
    add_review(ledger, 1, "open", after=2, result="abc")
    assert review_counts(ledger) == {**counts, "not reviewed": 2, "corrected": 0}
    assert latest_review(ledger, 1).in_words("abc") == ""


def test_who_has_not_seen_the_last_word_is_refused_and_changes_nothing(ledger, tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as other:
        before = change_mark(ledger)
        theirs = add_review(other, 1, "rejected", after=0, result="abc")
        assert change_mark(ledger) != before
        with pytest.raises(ConfigError, match="case 1: expected no other review since") as refused:
            add_review(ledger, 1, "accepted", after=0, result="abc")
        assert refused.value.code == "review-conflict"
        assert review_history(ledger, 1) == [theirs]
        add_review(ledger, 1, "accepted", after=theirs.revision, result="abc")
    assert latest_review(ledger, 1).state == "accepted"


def test_a_word_on_a_result_that_is_no_longer_there_is_refused(ledger):
    with pytest.raises(ConfigError, match="expected the result that was opened, found another"):
        add_review(ledger, 2, "accepted", after=0, result="abc")
    for state in ("accepted", "corrected"):
        with pytest.raises(ConfigError, match="found no result") as refused:
            add_review(ledger, 3, state, after=0, result="")
        assert refused.value.code == "review-result-changed"
    assert add_review(ledger, 3, "rejected", after=0, result="", note="no scan").state == "rejected"


def test_a_review_of_an_earlier_result_says_so(ledger):
    review = add_review(ledger, 1, "accepted", after=0, result="abc")
    assert finish(ledger, 1, "new") == 1
    assert result_sha256(ledger.outputs(1)) == "new"
    assert review.in_words("abc") == "accepted"
    assert latest_review(ledger, 1).in_words("new") == "accepted, of an earlier result"


def test_a_ledger_of_an_earlier_release_is_read_and_brought_up_to_date(ledger, tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger.close()
    with closing(sqlite3.connect(path)) as db:  # as that release made it
        db.execute("DROP TABLE reviews")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    with Ledger.open(path, read_only=True) as old:
        assert latest_reviews(old) == {}
        assert review_history(old, 1) == []
        assert old.read("PRAGMA user_version") == [(1,)]
    with Ledger.open(path) as new, Ledger.open(path) as second:
        add_review(new, 1, "accepted", after=0, result="abc")
        assert latest_review(second, 1).state == "accepted"
        assert [row.name for row in new.rows()] == ["1", "2", "3"]
        assert new.read("PRAGMA user_version") == [(2,)]


def test_the_doubt_of_a_case_is_that_of_its_most_doubtful_structure(tmp_path):
    report = {"uncertainty": {"mean_entropy": {"liver": 0.1, "lesion": 0.4}, "doubtful_slices": []}}
    doubt = doubt_of_report(report)
    assert doubt == Doubt(0.4, "lesion")
    assert Doubt.of_details({"doubt": doubt.to_dict()}) == doubt
    empty = [{"mean_entropy": 0.2, "label": "background"}, {"mean_entropy": 0.3, "label": "x"}]
    found = doubt_of_report({"uncertainty": {"mean_entropy": {}, "doubtful_slices": empty}})
    assert found == Doubt(0.3, "x")
    for nothing in ({}, {"uncertainty": {}}, {"uncertainty": {"mean_entropy": {"a": 7}}}):
        assert doubt_of_report(nothing) is None
    assert Doubt.of_details({"doubt": {"mean_entropy": None}}) is None
    assert read_doubt(tmp_path / "absent") is None
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    assert read_doubt(tmp_path / "list.json") is None
