"""The work list without a window: order, opening only what is proven, words in the ledger."""

import json
import os
import sqlite3
import time
from contextlib import closing

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError, ResourceError
from medseg.studies.ledger import Ledger
from medseg.studies.reviews import review_history
from medseg_napari._models import find_all_models
from medseg_napari._send import CHANNELS_KEY
from medseg_napari._worklist import Judgement, WorkList, is_batch_folder
from medseg_napari._worklist_case import open_case
from tests.plugin.batches import copied, make_batch, write_image


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return make_batch(tmp_path_factory.mktemp("batch"))


@pytest.fixture
def out(batch, tmp_path):
    return copied(batch, tmp_path)


@pytest.fixture
def work(out):
    opened = WorkList(out)
    yield opened
    opened.close()


def named(work, name):
    return next(case for case in work.cases if case.row.name == name)


def names(cases):
    return [case.row.name for case in cases]


def opened(work, name):
    return open_case(work, named(work, name))


def labels_of(case):
    return case.layers[case.labels_at][0].copy()


def edited(case):
    """The labels with one voxel more."""
    labels = labels_of(case)
    value = next(label.value for label in case.origin.scheme.labels)
    place = tuple(np.argwhere(labels != value)[0])
    labels[place] = value
    return labels


def set_doubts(out, **doubts):
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        for name, entropy in doubts.items():
            details = {} if entropy is None else {
                "doubt": {"mean_entropy": entropy, "structure": "far"}
            }  # fmt: skip
            db.execute("UPDATE cases SET details = ? WHERE name = ?", (json.dumps(details), name))
        db.execute("DELETE FROM outputs WHERE kind = 'uncertainty'")
        db.commit()


def test_cases_are_sorted_filtered_and_gone_through_by_doubt(out):
    assert is_batch_folder(out)
    assert not is_batch_folder(out.parent)
    set_doubts(out, a=0.2, b=0.6, c=None)
    work = WorkList(out)
    try:
        assert names(work.shown()) == ["a", "b", "broken", "c"]
        assert names(work.shown("doubt", descending=True)) == ["b", "a", "broken", "c"]
        assert names(work.shown("doubt")) == ["a", "b", "broken", "c"]
        assert names(work.shown("state", descending=True))[0] == "broken"
        assert names(work.shown(only="no result")) == ["broken"]
        assert named(work, "broken").row.code == "file-empty"
        assert names(work.shown(text="FILE-EMPTY")) == ["broken"]
        assert names(work.by_doubt()) == ["b", "a", "c"]
        first = work.next_case(None)
        assert first.row.name == "b"
        assert work.next_case(first.number).row.name == "a"
        assert work.next_case(named(work, "c").number).row.name == "b"  # round to the beginning
        assert work.next_case(named(work, "a").number, -1).row.name == "b"
        assert work.next_case(first.number, -1) is None
        work.judge(opened(work, "b"), Judgement("rejected", note="  motion "))
        assert work.next_case(None).row.name == "a"
        assert names(work.shown(only="rejected")) == names(work.shown(only="reviewed")) == ["b"]
        assert names(work.shown(only="to review")) == ["a", "c"]
        assert work.progress() == (1, 3)
        assert named(work, "b").review.note == "motion"
    finally:
        work.close()


def test_the_doubt_comes_from_the_ledger_or_the_report_of_an_older_one(out, work):
    found = {case.row.name: case.doubt for case in work.cases}
    assert found["broken"] is None
    assert all(0 < found[name].entropy <= 1 for name in "abc")
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        db.execute("UPDATE cases SET details = '{}'")
        db.commit()
    assert work.has_changed()
    work.refresh()
    assert {case.row.name: case.doubt for case in work.cases} == found


def test_a_case_opens_with_its_image_labels_doubt_and_the_word_of_its_model(batch, work):
    models = find_all_models(batch.parent / "models")
    case = open_case(work, named(work, "a"), models)
    image, labels, doubt = case.layers
    assert [kind for _, _, kind in case.layers] == ["image", "labels", "image"]
    assert [settings["name"] for _, settings, _ in case.layers] == ["a", "a result", "a doubt"]
    assert image[0].shape == labels[0].shape == doubt[0].shape
    np.testing.assert_array_equal(
        case.origin.original_array(labels[0]), nib.load(work.out / "a_dseg.nii.gz").dataobj
    )
    entropy = np.asarray(nib.load(work.out / "a_uncertainty.nii.gz").dataobj)
    shown = case.origin.original_array(doubt[0])
    assert shown.dtype == np.uint8
    np.testing.assert_allclose(shown / 255, entropy, atol=1e-6)
    assert [label.name for label in case.origin.scheme.labels] == ["near", "far"]
    assert case.origin.scheme.by_value(1).rgb == (200, 30, 30)
    assert case.origin.beginning.algorithm == ("medseg tiny", "1")
    assert len(case.origin.beginning.weights_sha256) == 64
    assert labels[1]["metadata"][CHANNELS_KEY] == {"T1": "a"}
    assert not case.is_unsaved(labels[0])
    assert case.is_unsaved(edited(case))


def test_accepting_is_entered_and_refused_for_labels_that_were_changed(out, work):
    case = opened(work, "a")
    with pytest.raises(ConfigError, match="expected labels as the model gave them") as refused:
        work.judge(case, Judgement("accepted", edited(case)))
    assert refused.value.code == "review-edited"
    now = work.judge(case, Judgement("accepted", labels_of(case), seconds=4.0))
    assert (now.review_text, now.revision, now.review.seconds) == ("accepted", 1, 4.0)
    work.judge(case, Judgement("open", labels_of(case)))
    assert not named(work, "a").is_reviewed
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        assert [one.state for one in review_history(ledger, now.number)] == ["accepted", "open"]


def test_a_correction_is_saved_beside_the_result_and_opens_again(out, work):
    before = {path.name: path.read_bytes() for path in out.iterdir() if "_dseg" in path.name}
    case = opened(work, "a")
    with pytest.raises(ConfigError, match="found the same ones; mark the case accepted") as refused:
        work.judge(case, Judgement("corrected", labels_of(case)))
    assert refused.value.code == "review-unchanged"
    with pytest.raises(ConfigError, match="found no layer of the case any more"):
        work.judge(case, Judgement("corrected"))
    labels = edited(case)
    now = work.judge(case, Judgement("corrected", labels, note="apex"))
    assert not case.is_unsaved(labels)
    assert now.review.file == "corrected/a_dseg.nii.gz"
    saved = np.asarray(nib.load(out / now.review.file).dataobj)
    np.testing.assert_array_equal(saved, case.origin.original_array(labels))
    assert {path.name for path in (out / "corrected").iterdir()} == {
        *("a_dseg.nii.gz", "a_dseg.tsv", "a_effort.json")
    }
    effort = json.loads((out / "corrected" / "a_effort.json").read_text(encoding="utf-8"))
    assert effort["model"]["name"] == "medseg tiny"
    assert 0.9 < now.review.mean_dice < 1
    assert sum(label["added_ml"] for label in now.review.effort["labels"]) > 0
    # what a later run looks at is as it was
    assert before == {
        path.name: path.read_bytes() for path in out.iterdir() if "_dseg" in path.name
    }
    again = opened(work, "a")
    np.testing.assert_array_equal(labels_of(again), labels)
    assert again.layers[1][1]["name"] == "a corrected"
    assert again.differs_from_model(labels)
    # one more voxel: the effort still counts from the model
    work.judge(again, Judgement("corrected", edited(again)))
    added = sum(one["added_ml"] for one in named(work, "a").review.effort["labels"])
    assert added > sum(one["added_ml"] for one in now.review.effort["labels"])
    (out / now.review.file).write_bytes(b"gone")
    third = opened(work, "a")
    assert any("is not there as it was saved" in note for note in third.notes)
    assert third.layers[1][1]["name"] == "a result"


def test_of_two_viewers_the_second_is_told_and_replaces_nothing(out, work):
    other = WorkList(out)
    try:
        mine, theirs = opened(work, "a"), opened(other, "a")
        other.judge(theirs, Judgement("corrected", edited(theirs)))
        kept = (out / "corrected" / "a_dseg.nii.gz").read_bytes()
        assert work.has_changed()
        labels = labels_of(mine)
        labels[:] = 0
        with pytest.raises(ConfigError, match="found one that was entered meanwhile") as refused:
            work.judge(mine, Judgement("corrected", labels))
        assert refused.value.code == "review-conflict"
        assert (out / "corrected" / "a_dseg.nii.gz").read_bytes() == kept
        assert not list((out / "corrected").glob(".*"))
        work.refresh()
        assert named(work, "a").review_text == "corrected"
    finally:
        other.close()


def test_what_is_not_as_it_was_segmented_is_not_opened(out, work):
    with pytest.raises(FormatError, match="expected a case with a result, found one that is fail"):
        opened(work, "broken")
    data = out.parent / "data"
    write_image(data / "a.nii", 77)
    with pytest.raises(FormatError, match="expected the image that was segmented") as refused:
        opened(work, "a")
    assert refused.value.code == "worklist-image-changed"
    (data / "b.nii").rename(data / "moved.nii")
    with pytest.raises(ResourceError, match="expected the image where it was") as refused:
        opened(work, "b")
    assert refused.value.code == "worklist-image-missing"
    (out / "c_dseg.nii.gz").write_bytes(b"by hand")
    with pytest.raises(FormatError, match="found one that was changed since") as refused:
        opened(work, "c")
    assert refused.value.code == "worklist-result-changed"
    (out / "c_dseg.nii.gz").unlink()
    with pytest.raises(FormatError, match="found no such file"):
        opened(work, "c")


def test_a_result_on_another_grid_or_without_its_table_is_not_opened(out, work):
    image = nib.load(out / "a_dseg.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), out / "a_dseg.nii.gz")
    import hashlib  # noqa: PLC0415

    sha256 = hashlib.sha256((out / "a_dseg.nii.gz").read_bytes()).hexdigest()
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        db.execute("UPDATE outputs SET sha256 = ? WHERE name = 'a_dseg.nii.gz'", (sha256,))
        db.commit()
    work.refresh()
    with pytest.raises(GeometryError, match="found 1 image on other grids") as refused:
        opened(work, "a")
    assert refused.value.code == "worklist-grid"
    (out / "b_dseg.tsv").write_text("what\n", encoding="utf-8")
    with pytest.raises(MedsegError):
        opened(work, "b")
    (out / "b_dseg.tsv").unlink()
    with pytest.raises(FormatError, match="expected the table of labels beside the result"):
        opened(work, "b")


def test_a_folder_that_cannot_be_written_gives_a_message_and_keeps_nothing(out, work):
    case = opened(work, "a")
    (out / "corrected").write_bytes(b"a file in the way")
    with pytest.raises(ResourceError, match="expected a folder that can be written to"):
        work.judge(case, Judgement("corrected", edited(case)))
    assert named(work, "a").revision == 0


def test_a_ledger_that_cannot_be_written_is_shown_and_says_so(out, monkeypatch):
    whole = Ledger.open

    def guarded(path, **how):
        if not how.get("read_only"):
            words = {"expected": "a", "found": "b", "remedy": "c"}
            raise ResourceError("ledger", code="output-unwritable", **words)
        return whole(path, **how)

    monkeypatch.setattr(Ledger, "open", guarded)
    work = WorkList(out)
    try:
        assert work.is_read_only
        assert len(work.cases) == 4
        with pytest.raises(ResourceError, match="expected a ledger that can be written"):
            work.judge(opened(work, "a"), Judgement("accepted"))
    finally:
        work.close()


def test_what_a_killed_viewer_left_half_written_goes_with_the_next_correction(out, work):
    for name, age in (("old", 7200), ("new", 0)):
        place = out / "corrected" / f".{name}.tmp"
        place.mkdir(parents=True)
        os.utime(place, (time.time() - age,) * 2)
    case = opened(work, "a")
    work.judge(case, Judgement("corrected", edited(case)))
    assert [path.name for path in (out / "corrected").glob(".*")] == [".new.tmp"]
