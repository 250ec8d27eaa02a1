"""The work list and the fine-tuning in a real napari window."""

# ruff: noqa: PLC0415 - napari takes seconds to import, and reads NAPARI_CONFIG then

import json

import numpy as np
import pytest

from medseg.studies.ledger import Ledger
from medseg.studies.reviews import latest_reviews
from tests.plugin.batches import copied, make_batch, write_image
from tests.tiny_dataset import write_dataset

pytestmark = pytest.mark.gui

LONG_MS = 180_000  # also where other work leaves little of the machine


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    return make_batch(tmp_path_factory.mktemp("batch"))


@pytest.fixture
def out(batch, tmp_path):
    return copied(batch, tmp_path)


@pytest.fixture
def dock(viewer):
    _, widget = viewer.window.add_plugin_dock_widget("medseg", "Work list")
    widget.ask = pytest.fail
    return widget


def shown(dock):
    return [case.row.name for case in dock.model.cases]


def opened(qtbot, dock):
    qtbot.waitUntil(lambda: not dock.is_opening, timeout=LONG_MS)
    return None if dock.opened is None else dock.opened.case.row.name


def named(dock, name):
    return next(case for case in dock.work.cases if case.row.name == name)


def labels_in(viewer):
    from napari.layers import Labels

    [labels] = [layer for layer in viewer.layers if isinstance(layer, Labels)]
    return labels


def words_in_ledger(out):
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        rows = {row.number: row.name for row in ledger.rows()}
        return {rows[case]: review.state for case, review in latest_reviews(ledger).items()}


def test_cases_are_listed_opened_judged_corrected_and_opened_again(qtbot, viewer, dock, out):
    from qtpy.QtCore import Qt

    assert not dock.accept_button.isEnabled()
    assert "Open the output folder" in dock.message.text()
    assert dock.open_folder(out)
    order = [case.row.name for case in dock.work.by_doubt()]
    assert shown(dock) == [*order, "broken"]  # the most doubtful first
    dock.table.sortByColumn(0, Qt.SortOrder.AscendingOrder)
    assert shown(dock) == ["a", "b", "broken", "c"]
    dock.filter_box.setCurrentText("no result")
    assert shown(dock) == ["broken"]
    dock.open_selected()
    dock._open_row(0)
    assert opened(qtbot, dock) is None
    assert "expected a case with a result" in dock.message.text()
    dock.filter_box.setCurrentText("all")

    dock.next_button.click()
    assert opened(qtbot, dock) == order[0]
    assert len(viewer.layers) == 3
    assert viewer.layers.selection.active is labels_in(viewer)
    dock.note_line.setText("clear")
    dock.next_check.setChecked(True)
    dock.accept_button.click()
    assert words_in_ledger(out) == {order[0]: "accepted"}
    assert opened(qtbot, dock) == order[1]
    assert len(viewer.layers) == 3  # those of the first are gone

    dock.next_check.setChecked(False)
    labels = labels_in(viewer)
    value = 1 if (labels.data == 1).any() else 5
    labels.data_setitem(tuple(np.array([n]) for n in np.argwhere(labels.data == value)[0]), 0)
    dock.accept_button.click()
    assert "expected labels as the model gave them" in dock.message.text()
    answers = []
    dock.ask = lambda question: answers.append(question) or False
    dock.next_button.click()
    assert "were changed and not saved" in answers[0]
    assert opened(qtbot, dock) == order[1]  # it stays
    assert not dock.guard.may_close()  # nor does the window close unasked
    assert len(answers) == 2
    dock.correct_button.click()
    assert f"saved and verified: corrected/{order[1]}_dseg.nii.gz" in dock.message.text()
    kept = labels.data.copy()
    dock.next_button.click()
    assert opened(qtbot, dock) == order[2]
    dock.reject_button.click()
    dock.next_button.click()
    assert "Every result was judged" in dock.message.text()
    assert "3 of 3 results judged" in dock.progress_text.text()
    dock.back_button.click()
    assert opened(qtbot, dock) == order[1]
    np.testing.assert_array_equal(labels_in(viewer).data, kept)
    assert words_in_ledger(out) == {
        **{order[0]: "accepted", order[1]: "corrected"},
        order[2]: "rejected",
    }
    dock.clear_button.click()
    assert words_in_ledger(out)[order[1]] == "open"


def test_labels_that_were_closed_by_hand_are_not_accepted_unseen(qtbot, viewer, dock, out):
    assert dock.open_folder(out)
    dock.next_button.click()
    name = opened(qtbot, dock)
    viewer.layers.remove(labels_in(viewer))
    assert f"The labels of {name} were closed: open the case again" in dock.message.text()
    dock.accept_button.click()
    dock.correct_button.click()
    assert words_in_ledger(out) == {}
    dock.open_button.click()
    assert opened(qtbot, dock) == name
    assert labels_in(viewer).data.any()
    dock.accept_button.click()
    assert words_in_ledger(out) == {name: "accepted"}


def test_a_saved_correction_counts_as_saved_for_the_tools_too(qtbot, viewer, dock, out):
    from medseg_napari._edit_session import correct, unsaved

    assert dock.open_folder(out)
    dock.open(named(dock, "a"))
    assert opened(qtbot, dock) == "a"
    correction = correct(viewer, labels_in(viewer))
    controller = correction.controller
    at_vox = np.argwhere(controller.labels)[0]
    controller.active = int(controller.labels[tuple(at_vox)])
    controller.tool = "eraser"
    controller.press(at_vox, 0)
    controller.end_stroke()
    assert unsaved(viewer) == [correction]
    asked = []
    dock.guard.ask = lambda corrections: asked.append(corrections) or "cancel"
    assert not dock.guard.may_close()  # by the guard, and once: dock.ask would fail the test
    assert asked == [[correction]]
    dock.correct_button.click()
    assert words_in_ledger(out) == {"a": "corrected"}
    assert unsaved(viewer) == []
    assert dock.guard.may_close()
    dock.open(named(dock, "b"))
    assert opened(qtbot, dock) == "b"
    dock.open(named(dock, "a"))
    assert opened(qtbot, dock) == "a"
    again = correct(viewer, labels_in(viewer))
    assert again.recoverable == []


def test_what_a_second_viewer_said_is_seen_and_not_replaced_unseen(qtbot, viewer, dock, out):
    from medseg_napari._worklist import Judgement, WorkList
    from medseg_napari._worklist_case import open_case

    assert dock.open_folder(out)
    dock.open(named(dock, "a"))
    assert opened(qtbot, dock) == "a"
    other = WorkList(out)
    try:
        theirs = open_case(other, next(case for case in other.cases if case.row.name == "a"))
        other.judge(theirs, Judgement("rejected"))
    finally:
        other.close()
    qtbot.waitUntil(lambda: named(dock, "a").review_text == "rejected", timeout=LONG_MS)
    assert not dock.judge("accepted")
    assert "It is now: rejected" in dock.message.text()
    assert words_in_ledger(out) == {"a": "rejected"}
    assert dock.judge("accepted")  # now it was seen
    assert words_in_ledger(out) == {"a": "accepted"}


def test_an_image_that_changed_or_a_dead_ledger_gives_a_message(qtbot, viewer, dock, out):
    assert dock.open_folder(out)
    write_image(out.parent / "data" / "a.nii", 77)
    dock.open(named(dock, "a"))
    assert opened(qtbot, dock) is None
    assert "its content has changed" in dock.message.text()
    assert list(viewer.layers) == []
    assert not dock.open_folder(out.parent)
    assert "expected the ledger of a batch run, found none" in dock.message.text()
    (out / "ledger2.sqlite").write_bytes(b"hello " * 99)
    assert not dock.open_folder(out, out / "ledger2.sqlite")
    dock.open(named(dock, "b"))
    assert opened(qtbot, dock) == "b"  # the list that was open still is


def test_the_start_opens_a_batch_folder_in_the_work_list(qtbot, out, monkeypatch, tmp_path):
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "settings.yaml"))
    from medseg_napari._start import open_viewer

    viewer = open_viewer([out])
    try:
        docks = viewer.window._wrapped_dock_widgets
        [dock] = [one for title, one in docks.items() if "Work list" in title]
        widget = dock.inner_widget()
        assert len(shown(widget)) == 4
        qtbot.waitUntil(lambda: not dock.visibleRegion().isEmpty(), timeout=LONG_MS)
        assert list(viewer.layers) == []
    finally:
        viewer.close()


def test_a_model_is_tuned_beside_the_viewer_and_appears_in_both_lists(
    qtbot, viewer, batch, tmp_path, monkeypatch
):
    monkeypatch.setattr("medseg_napari._models._made_here", [])
    root = write_dataset(tmp_path / "set", cases=2)
    (root / "split.json").unlink()
    run = viewer.window.add_plugin_dock_widget("medseg", "Run a model")[1]
    dock = viewer.window.add_plugin_dock_widget("medseg", "Fine-tune")[1]
    dock.start_button.click()
    assert "Choose the training set first" in dock.message.text()
    run.look_for_models(batch.parent / "models")
    dock.look_for_models(batch.parent / "models")
    dock.choose_model("tiny")
    dock.choose_data(root)
    assert "2 cases" in dock.about_data.text()
    dock.choose_target(tmp_path / "made")
    dock.threads_box.setValue(1)
    dock.device_box.setCurrentText("cpu")
    dock.name_line.setText("No Name")
    dock.start()
    assert "The name may have small letters" in dock.message.text()
    dock.name_line.setText("tuned-here")
    dock.steps = 1
    dock.start_button.click()
    assert dock.stop_button.isEnabled()
    qtbot.waitUntil(lambda: not dock.controller.state.is_busy, timeout=LONG_MS)
    assert dock.controller.state.phase == "done", dock.message.text()
    assert [dock.table.item(row, 0).text() for row in range(3)] == ["near", "far", "mean"]
    record = json.loads((tmp_path / "made/tuned-here/finetune.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in record["held_out"]] == list(dock.controller.state.held_out)
    assert dock.compared.text().endswith(f"held out: {record['held_out'][0]['case']}")
    for row, name in enumerate(("near", "far")):
        shown_dice = [dock.table.item(row, column).text() for column in (1, 2)]
        told = record["dice"][name]
        assert shown_dice == [f"{told['before']:.4f}", f"{told['after']:.4f}"]
    for other in (run, dock):
        other.choose_model("tuned-here")
        assert other.model.name == "tuned-here"
    dock.setParent(None)
    dock.deleteLater()
    qtbot.wait(50)
    viewer.layers.clear()
