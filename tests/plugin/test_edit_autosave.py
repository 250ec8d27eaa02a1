"""What was drawn is there after a crash, exactly; nothing else is kept, and nobody is named."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import LabelScheme
from medseg.errors import FormatError, ResourceError
from medseg_napari.editing import autosave as autosaving
from medseg_napari.editing import boxes, brush
from medseg_napari.editing.autosave import Autosave, recoverable, recovery_folder, source_key
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.history import ArrayLayer
from tests.plugin.label_maps import label_maps
from tests.plugin.test_edit_controller import SPACING, act, actions, editor

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def ended(monkeypatch):
    """Sessions of this process count as those of one that is no more."""
    monkeypatch.setattr(autosaving, "_runs", lambda header: False)


@settings(max_examples=25)
@given(label_maps(), st.lists(actions, min_size=1, max_size=6), st.sampled_from([1, 2000, 1 << 20]))
def test_what_is_recovered_is_what_was_there(tmp_path_factory, labels, row, journal_bytes):
    folder = tmp_path_factory.mktemp("recovery")
    _, controller = editor(labels)
    saver = Autosave(controller, "key", folder=folder, journal_bytes=journal_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "PART_VOXELS", 100)
        patch.setattr(autosaving, "_runs", lambda header: False)
        wrote = False
        for action, value in row:
            act(controller, action, value)
            assert saver.flush()
            found = recoverable("key", folder)
            wrote = wrote or bool(found)
            if wrote:
                [one] = found
                recovered = one.load()
                np.testing.assert_array_equal(recovered.labels, labels)
                assert recovered.labels.dtype == labels.dtype
                assert recovered.scheme == controller.scheme
        assert wrote == (saver.folder.exists())
        saver.saved()
        assert recoverable("key", folder) == []


def paint(controller, place, value=1):
    controller.run(brush.paint, value, place, size_mm=3, spacing_mm=SPACING)


def session(tmp_path, **given):
    labels = np.zeros((12, 20, 24), dtype=np.uint8)
    _, controller = editor(labels)
    return labels, controller, Autosave(controller, "key", folder=tmp_path, **given)


def test_nothing_is_written_before_the_first_edit_and_nothing_stays_after_saving(tmp_path, ended):
    labels, controller, saver = session(tmp_path)
    assert list(tmp_path.iterdir()) == []
    paint(controller, (2, 2, 2))
    saver.flush()
    assert len(recoverable(folder=tmp_path)) == 1
    saver.saved()
    controller.saved()
    assert list(tmp_path.iterdir()) == []
    paint(controller, (8, 8, 8))
    saver.flush()
    [one] = recoverable("key", tmp_path)
    np.testing.assert_array_equal(one.load().labels, labels)
    assert recoverable("another key", tmp_path) == []
    controller.saved()
    saver.close()
    assert list(tmp_path.iterdir()) == []


def test_unsaved_labels_stay_when_the_viewer_closes(tmp_path, ended):
    _, controller, saver = session(tmp_path)
    paint(controller, (2, 2, 2))
    saver.close()
    paint(controller, (8, 8, 8))
    [one] = recoverable("key", tmp_path)
    assert one.load().labels.sum() > 0
    assert one.load().labels[8, 8, 8] == 0
    one.discard()
    assert recoverable("key", tmp_path) == []


def test_a_stroke_in_progress_is_saved_too(tmp_path, ended):
    labels, controller, saver = session(tmp_path)
    controller.tool = "brush"
    controller.press((6, 3, 3), 0)
    controller.drag((6, 9, 9))
    saver.flush()
    np.testing.assert_array_equal(recoverable("key", tmp_path)[0].load().labels, labels)
    controller.cancel_stroke()
    saver.flush()
    assert not recoverable("key", tmp_path)[0].load().labels.any()
    saver.saved()


def test_the_label_table_and_the_effort_are_recovered(tmp_path, ended):
    _, controller, saver = session(tmp_path)
    controller.add_label("cyst")
    paint(controller, (2, 2, 2), 5)
    saver.flush()
    recovered = recoverable("key", tmp_path)[0].load()
    assert recovered.scheme.by_value(5).name == "cyst"
    _, other = editor(np.zeros((12, 20, 24), dtype=np.uint8))
    other.replace_labels(recovered.labels, recovered.scheme, name="recover")
    other.effort.restore(recovered.effort)
    assert other.effort.of(5) == controller.effort.of(5)
    assert other.modified
    saver.saved()


def test_sessions_of_running_processes_are_not_offered(tmp_path):
    _, controller, saver = session(tmp_path)
    paint(controller, (2, 2, 2))
    saver.flush()
    assert recoverable(folder=tmp_path) == []
    saver.saved()


CRASH = """
import os, signal, sys
from pathlib import Path
import numpy as np
from medseg.core import LabelScheme
from medseg_napari.editing import brush
from medseg_napari.editing.autosave import Autosave
from medseg_napari.editing.controller import EditController
from medseg_napari.editing.history import ArrayLayer

folder = Path(sys.argv[1])
labels = np.zeros((20, 64, 64), dtype=np.uint16)
scheme = LabelScheme.plain("organs", {1: "liver", 300: "lesion"})
controller = EditController(ArrayLayer(labels), scheme, (2, 1, 1))
saver = Autosave(controller, "key", folder=folder, journal_bytes=3000)
controller.tool = "brush"
rng = np.random.default_rng(0)
for step in range(40):
    controller.active = (1, 300)[step % 2]
    controller.press(rng.uniform(0, [20, 64, 64]), step % 3)
    controller.drag(rng.uniform(0, [20, 64, 64]))
    controller.end_stroke()
    if step % 5 == 4:
        controller.undo()
saver.flush()
np.save(folder / "expected.npy", labels)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_kill_9_the_labels_are_recovered_exactly(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path)],
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    [one] = recoverable("key", tmp_path)
    recovered = one.load()
    np.testing.assert_array_equal(recovered.labels, np.load(tmp_path / "expected.npy"))
    assert recovered.labels.any()
    assert recovered.scheme == LabelScheme.plain("organs", {1: "liver", 300: "lesion"})


def test_an_entry_that_was_cut_off_is_left_out(tmp_path, ended):
    labels, controller, saver = session(tmp_path)
    paint(controller, (2, 2, 2))
    saver.flush()
    before = labels.copy()
    journal = saver.folder / "journal-1.bin"
    length = journal.stat().st_size
    paint(controller, (8, 8, 8))
    saver.flush()
    content = journal.read_bytes()
    for cut in (length, length + 1, length + 30):
        journal.write_bytes(content[:cut])
        np.testing.assert_array_equal(recoverable("key", tmp_path)[0].load().labels, before)
    journal.write_bytes(content[: length + 30] + b"???" + content[length + 33 :])
    np.testing.assert_array_equal(recoverable("key", tmp_path)[0].load().labels, before)
    saver.saved()


def test_a_damaged_autosave_is_refused_or_not_offered(tmp_path, ended):
    _, controller, saver = session(tmp_path)
    paint(controller, (2, 2, 2))
    saver.flush()
    [one] = recoverable("key", tmp_path)
    base = saver.folder / "base-1.bin"
    content = base.read_bytes()
    base.write_bytes(content[:-1])
    with pytest.raises(FormatError, match="files that are missing or damaged"):
        one.load()
    base.unlink()
    assert recoverable("key", tmp_path) == []
    base.write_bytes(content)
    header = json.loads((saver.folder / "session.json").read_text())
    (saver.folder / "session.json").write_text(json.dumps({**header, "dtype": "object"}))
    assert recoverable("key", tmp_path) == []
    saver.saved()


def test_labels_of_another_array_are_saved_anew(tmp_path, ended):
    layer = ArrayLayer(np.zeros((6, 7, 8), dtype=np.uint8))
    scheme = LabelScheme.plain("organs", {1: "liver"})
    controller = EditController(layer, scheme, SPACING)
    saver = Autosave(controller, "key", folder=tmp_path)
    paint(controller, (2, 2, 2))
    layer.data = np.ones((6, 7, 8), dtype=np.uint8)
    controller.recount()
    saver.flush()
    np.testing.assert_array_equal(recoverable("key", tmp_path)[0].load().labels, layer.data)
    saver.saved()


def test_a_full_disk_is_told_once_and_edits_go_on(tmp_path, ended, monkeypatch):
    labels, controller, saver = session(tmp_path)
    heard = []
    saver.trouble.connect(heard.append)
    real = autosaving.write_base

    def full(target, labels):
        raise ResourceError(
            "x", expected="free space", found="a full disk", remedy="free some", code="disk-full"
        )

    monkeypatch.setattr(autosaving, "write_base", full)
    paint(controller, (2, 2, 2))
    paint(controller, (3, 3, 3))
    saver.flush()
    assert heard == ["x: expected free space, found a full disk; free some"]
    monkeypatch.setattr(autosaving, "write_base", real)
    paint(controller, (8, 8, 8))
    saver.flush()
    recovered = recoverable("key", tmp_path)[0].load()
    np.testing.assert_array_equal(recovered.labels, labels)
    assert recovered.scheme == controller.scheme
    saver.saved()


def test_old_autosaves_go_when_all_together_grow_large(tmp_path, ended):
    folders = []
    for _ in range(3):
        _, controller, saver = session(tmp_path, most_bytes=1)
        paint(controller, (2, 2, 2))
        saver.flush()
        saver.close()
        folders.append(saver.folder)
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_no_file_names_the_source(tmp_path, ended):
    _, controller, _ = session(tmp_path)
    key = source_key("Doe^Jane 1.2.3.4", tmp_path)
    assert key == source_key("Doe^Jane 1.2.3.4", tmp_path)
    assert key != source_key("Doe^Jane 1.2.3.5", tmp_path)
    assert key != source_key("Doe^Jane 1.2.3.4", tmp_path / "other")
    saver = Autosave(controller, key, folder=tmp_path)
    paint(controller, (2, 2, 2))
    saver.flush()
    for path in tmp_path.rglob("*"):
        assert "Doe" not in path.name
        assert path.is_dir() or b"Doe" not in path.read_bytes()
    assert (saver.folder.stat().st_mode & 0o077) == 0
    saver.saved()


def test_autosaves_lie_in_naparis_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert recovery_folder() == tmp_path / "napari" / "medseg" / "recovery"


def test_a_recovery_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a data folder that can be written to"):
        source_key("x", tmp_path / "file" / "recovery")
