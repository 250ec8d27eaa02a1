"""Prepared cases in memory and on disk: the same, found again, and made again when damaged."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.core import Grid, LabelScheme, Volume
from medseg.data import prepared as prepared_module
from medseg.data.datalist import Case, read_datalist
from medseg.data.prepared import IGNORED_CLASS, MOST_VOXELS, Preparation, StoredCase, save_prepared
from medseg.data.preparing import CachePlan, prepare_cases
from medseg.errors import FormatError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.writing import write_volume
from medseg.models.card import Channel, InputSettings
from tests.tiny_dataset import SHAPE, write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEME = LabelScheme.plain("balls", {1: "near", 2: "far"})
INPUTS = InputSettings(
    channels=(Channel(name="T1"),), spacing_mm=(1.0, 1.0, 1.0), window_ijk=(8, 8, 8)
)
PREPARE = Preparation(INPUTS, SCHEME)


class Hearing(Silent):
    def __init__(self, stop_after=None):
        self.notes, self.done, self.stop_after = [], 0, stop_after

    def noted(self, message):
        self.notes.append(message)

    def advanced(self, stage, done):
        self.done = done

    def cancelled(self):
        return self.stop_after is not None and self.done >= self.stop_after


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "Balls")


@pytest.fixture(scope="module")
def cases(root):
    return read_datalist(root).train


def prepared(cases, plan, listener=None, prepare=PREPARE):
    return prepare_cases(cases, prepare, listener or Hearing(), stage="preparing", plan=plan)


def same(one, other):
    assert one.id == other.id
    assert one.spacing_mm == other.spacing_mm
    assert one.about["voxels"] == other.about["voxels"]
    for a, b in zip(one.box((0, 0, 0), one.shape_ijk), other.box((0, 0, 0), SHAPE), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for a, b in zip(one.places, other.places, strict=True):
        np.testing.assert_array_equal(a, b)


def test_memory_disk_and_other_processes_give_the_same(cases, tmp_path):
    held = prepared(cases, CachePlan())
    stored = prepared(cases, CachePlan("disk", tmp_path / "a", processes=1))
    elsewhere = prepared(cases, CachePlan("disk", tmp_path / "b", processes=2))
    for one, other, third in zip(held, stored, elsewhere, strict=True):
        assert isinstance(other, StoredCase)
        same(one, other)
        same(one, third)
        same(one, other.in_memory())
        assert one.bytes <= other.bytes
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == len(cases)
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all(case.id not in name for case in cases for name in names)


def test_properties_are_those_of_the_arrays(cases):
    (one,) = prepared(cases[:1], CachePlan())
    labels = one.labels_ijk
    assert one.about["voxels"] == [int((labels == value).sum()) for value in (1, 2)]
    for value, places in zip((1, 2), one.places, strict=True):
        assert np.all(labels[tuple(places.T)] == value)
        assert len(places) == one.about["voxels"][value - 1]
    found = one.about["intensities"][0]
    assert found["mean"] == pytest.approx(0, abs=1e-5)
    assert found["std"] == pytest.approx(1, abs=1e-3)
    assert found["max"] == one.image_cijk.max()
    assert one.about["source_shape_ijk"] == list(SHAPE)


def test_places_of_large_structures_are_an_even_draw_and_regions_have_their_own():
    labels = np.ones((40, 40, 40), np.uint8)
    labels[0] = 2
    counts, (ones, both) = prepared_module._places(labels, [(1,), (1, 2)])
    assert counts == [39 * 1600, 40 * 1600]
    assert len(ones) == len(both) == MOST_VOXELS
    assert len(np.unique(both, axis=0)) == MOST_VOXELS
    np.testing.assert_allclose(both.mean(0), 19.5, atol=0.5)
    assert 150 < (labels[tuple(both.T)] == 2).sum() < 350


def test_voxels_that_nobody_judged_become_their_class_and_no_place(cases, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :3] = (1, 9, 9)
    write_volume(Volume(labels[None], Grid(SHAPE, np.eye(4))), tmp_path / "l.nii.gz")
    case = Case("ignoring", cases[0].images, tmp_path / "l.nii.gz")
    one = Preparation(INPUTS, SCHEME, ignore_value=9)(case)
    assert one.labels_ijk[0, 0, :4].tolist() == [1, IGNORED_CLASS, IGNORED_CLASS, 0]
    assert [len(places) for places in one.places] == [1, 0]
    regions = Preparation(INPUTS, SCHEME, ignore_value=9, regions=((1, 2),))(case)
    assert [len(places) for places in regions.places] == [1]


def test_the_key_follows_what_decides_the_content_and_nothing_else(cases, tmp_path, monkeypatch):
    image = tmp_path / "image.nii.gz"
    image.write_bytes(cases[0].images[0].read_bytes())
    case = replace(cases[0], images=(image,))
    key = PREPARE.key(case)
    assert key == PREPARE.key(case)

    def with_inputs(**changes):
        return replace(PREPARE, inputs=INPUTS.model_copy(update=changes)).key(case)

    assert with_inputs(window_ijk=(16, 16, 16)) == key
    assert with_inputs(overlap=0.25) == key
    others = {
        with_inputs(spacing_mm=(1.0, 1.0, 2.0)),
        with_inputs(orientation="LAS"),
        with_inputs(interpolation="cubic"),
        replace(PREPARE, ignore_value=5).key(case),
        replace(PREPARE, regions=((1, 2),)).key(case),
        replace(PREPARE, scheme=LabelScheme.plain("x", {1: "a"})).key(case),
        PREPARE.key(cases[1]),
    }
    os.utime(image, ns=(1, 1))
    others.add(PREPARE.key(case))
    monkeypatch.setattr(prepared_module, "_code_version", lambda: "other code")
    others.add(PREPARE.key(case))
    assert len(others) == 9
    assert key not in others


def test_a_second_run_reads_no_image(cases, tmp_path, monkeypatch):
    plan = CachePlan("disk", tmp_path, processes=1)
    first = prepared(cases, plan)
    monkeypatch.setattr(Preparation, "_read", None)
    hearing = Hearing()
    for one, other in zip(first, prepared(cases, plan, hearing), strict=True):
        same(one.in_memory(), other)
    assert hearing.done == len(cases)
    # auto takes from files what is there, into memory
    for one, other in zip(first, prepared(cases, replace(plan, where="auto")), strict=True):
        same(other, one)


def test_a_damaged_file_is_named_and_made_again(cases, tmp_path):
    plan = CachePlan("disk", tmp_path, processes=1)
    first = prepared(cases, plan)
    path = first[1].file.path
    good = path.read_bytes()
    for bad in (good[:-5], good[:200] + b"\0" + good[201:], b"", b"nothing of the kind" * 9):
        path.write_bytes(bad)
        hearing = Hearing()
        again = prepared(cases, plan, hearing)
        (note,) = hearing.notes
        assert note.startswith(f"case {cases[1].id}: {path.name} holds ")
        assert note.endswith("; it is made again")
        same(again[1].in_memory(), first[1])
        assert path.read_bytes() == good


def test_a_file_under_anothers_name_is_not_taken(cases, tmp_path):
    one = PREPARE(cases[0])
    save_prepared(one, tmp_path / "a.prepared", "key")
    assert StoredCase(tmp_path / "a.prepared", "x", "key").id == "x"
    with pytest.raises(FormatError, match="the prepared case that its name says, found another"):
        StoredCase(tmp_path / "a.prepared", "x", "other key")


def test_what_does_not_fit_memory_goes_to_disk(cases, tmp_path):
    one = PREPARE(cases[0]).bytes
    hearing = Hearing()
    plan = CachePlan("auto", tmp_path / "all", processes=1, limit_bytes=2 * one)
    for stored, held in zip(
        prepared(cases, plan, hearing), prepared(cases, CachePlan()), strict=True
    ):
        assert isinstance(stored, StoredCase)
        same(held, stored)
    assert "kept on disk" in hearing.notes[0]
    roomy = replace(plan, folder=tmp_path / "none", limit_bytes=100 * one)
    assert not any(isinstance(case, StoredCase) for case in prepared(cases, roomy))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_preparing_can_be_stopped_after_any_case_and_goes_on_there(cases, tmp_path, where):
    hearing = Hearing(stop_after=2)
    plan = CachePlan(where, tmp_path, processes=1)
    with pytest.raises(Cancelled):
        prepared(cases, plan, hearing)
    assert hearing.done == 2
    if where == "disk":
        finished = len(list(tmp_path.glob("*.prepared")))
        assert 2 <= finished <= 3
        assert len(prepared(cases, plan)) == len(cases)


def test_an_error_in_another_process_arrives_as_it_was_raised(cases, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(cases[0].label.read_bytes()[:60])
    bad = [*cases[:3], Case("broken", cases[3].images, broken)]
    with pytest.raises(FormatError, match=r"broken\.nii\.gz: expected"):
        prepared(bad, CachePlan("disk", tmp_path / "c", processes=2))


def test_a_killed_process_is_told_as_such(cases, tmp_path):
    plan = CachePlan("disk", tmp_path, processes=2)
    with pytest.raises(ResourceError, match="processes that come to their end, found one that was"):
        prepared(cases, plan, prepare=Deadly(INPUTS, SCHEME))


class Deadly(Preparation):
    def __call__(self, case):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_refused(cases, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="a folder that can be written"):
        prepared(cases, CachePlan("disk", tmp_path / "file" / "in"))


def test_a_plan_without_a_folder_names_no_file():
    with pytest.raises(ValueError, match="a plan without a folder"):
        CachePlan("disk").path("key")


KILLED = """
import sys, time
from pathlib import Path
from medseg.data import prepared
from medseg.data.datalist import read_datalist
from tests.data.test_preparing import PREPARE, Hearing
from medseg.data.preparing import CachePlan, prepare_cases
from medseg.data import chunked
old = chunked._codec
def slow():
    time.sleep(0.15)
    return old()
chunked._codec = slow
prepare_cases(read_datalist(Path(sys.argv[1])).train, PREPARE, Hearing(), stage="p",
              plan=CachePlan("disk", Path(sys.argv[2]), processes=1))
"""


def test_a_run_killed_at_any_moment_is_continued(root, cases, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", KILLED, str(root), str(tmp_path)]
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.prepared")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.prepared")}
    assert 1 <= len(left) < len(cases)
    # what the kill cut short carries another name and is cleared once it is old
    stale = tmp_path / ".0123456789abcdef.tmp.prepared"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    hearing = Hearing()
    again = prepared(cases, CachePlan("disk", tmp_path, processes=1), hearing)
    assert hearing.notes == []
    assert not stale.exists()
    assert all(path.stat().st_mtime_ns == before for path, before in left.items())
    for one, other in zip(prepared(cases, CachePlan()), again, strict=True):
        same(one, other)
