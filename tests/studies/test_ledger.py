"""The ledger: whole after any death, shared by processes, refused in one sentence when it cannot be
trusted."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from medseg.errors import ConfigError, FormatError, ResourceError
from medseg.studies import ledger_file
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import Ending, Entry, Output, shard_of
from medseg.studies.liveness import Self, Watch, this_process

REPOSITORY = Path(__file__).resolve().parents[2]


def entry(number, *names):
    return Entry(f"data/{number}.nii.gz", names or (str(number),), {"": f"/data/{number}.nii.gz"})


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite", create=True, salt=b"salt") as opened:
        yield opened


def begun(ledger, *entries):
    rows = ledger.register(entries)
    run = ledger.begin_run([(row.number, row.channels) for row in rows], "s1", "{}")
    return run, ledger.enlist(run)


DONE = Ending(
    "done",
    1.5,
    stamp="t",
    fingerprint="f",
    outputs=[Output("nifti", "1_dseg.nii.gz", 3, "abc")],
    volumes_ml={"right": 2.0, "left": 1.0},
    details={"notes": ["n"]},
    thumbnail=b"jpeg",
)


def test_a_case_goes_from_waiting_to_done_with_all_that_proves_it(ledger):
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    assert (row.state, row.name, channels) == ("waiting", "1", {"": "/data/1.nii.gz"})
    ledger.begin(row.number, token, channels)
    assert ledger.counts(run)["running"] == 1
    assert ledger.finish(row.number, token, "s1", DONE)
    row = ledger.row(row.number)
    assert (row.state, row.attempts, row.settings, row.fingerprint) == ("done", 1, "s1", "f")
    assert ledger.outputs(row.number) == [Output("nifti", "1_dseg.nii.gz", 3, "abc")]
    assert list(ledger.volumes_ml(row.number).items()) == [("right", 2.0), ("left", 1.0)]
    assert ledger.structures() == ["right", "left"]
    assert ledger.thumbnail(row.number) == b"jpeg"
    assert row.details == {"notes": ["n"]}
    assert ledger.claim(run, token) is None
    ledger.dismiss(token)
    ledger.end_run(run)
    assert ledger.workers() == []


def test_beginning_again_takes_back_the_proof_and_giving_back_leaves_it_waiting(ledger):
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    ledger.begin(row.number, token, channels)
    ledger.finish(row.number, token, "s1", DONE)
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    assert (row.settings, len(ledger.outputs(row.number))) == ("s1", 1)
    ledger.begin(row.number, token, channels)
    assert ledger.row(row.number).settings is None
    ledger.announce(row.number, {"nifti": "1_dseg.nii.gz", "table": "1_dseg.tsv"})
    assert [one.sha256 for one in ledger.outputs(row.number)] == ["", ""]
    ledger.release(row.number, token)
    assert ledger.row(row.number).state == "waiting"


def test_a_complete_case_that_was_only_looked_at_keeps_its_state(ledger):
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    ledger.begin(row.number, token, channels)
    ledger.finish(row.number, token, "s1", DONE)
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    ledger.release(row.number, token)
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    ledger.confirm(row.number, token, "t2", {"": "/moved/1.nii.gz"})
    row = ledger.row(row.number)
    assert (row.state, row.stamp, row.channels[""]) == ("done", "t2", "/moved/1.nii.gz")


def test_names_are_the_best_that_are_free_and_are_kept(ledger):
    first, second, third = ledger.register(
        [entry(1, "T1"), entry(2, "t1", "two_T1"), entry(3, "T1")]
    )
    assert (first.name, second.name) == ("T1", "two_T1")
    assert third.name == f"case-{third.id}"
    (again,) = ledger.register([entry(2, "other")])
    assert (again.name, again.number) == ("two_T1", second.number)
    by_itself = Entry("2.nii.gz", ("other",), second.channels)
    assert ledger.register([by_itself, entry(2)]) == [again, again]


def test_identifiers_depend_on_the_salt_and_not_on_the_order(tmp_path):
    found = []
    for number, salt in enumerate((b"a", b"a", b"b", None)):
        with Ledger.open(tmp_path / str(number), create=True, salt=salt) as ledger:
            ledger.register([entry(9)] if number == 1 else [])
            found.append(ledger.register([entry(1)])[0].id)
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_every_case_is_in_one_shard_and_shards_are_alike_in_size():
    shards = [shard_of(f"data/{number}.nii.gz", 8) for number in range(4000)]
    assert set(shards) == set(range(1, 9))
    assert all(400 < shards.count(shard) < 600 for shard in range(1, 9))


def test_a_case_is_handed_out_once_and_one_that_killed_comes_last(ledger):
    run, token = begun(ledger, entry(1), entry(2), entry(3))
    first, channels = ledger.claim(run, token)
    ledger.begin(first.number, token, channels)
    with ledger.writing() as db:  # as if the process had died
        db.execute("UPDATE workers SET born = born - 100")
    assert ledger.recover(Watch()) == 1
    assert (ledger.row(1).state, ledger.row(1).deaths) == ("waiting", 1)
    run, token = begun(ledger, entry(1), entry(2), entry(3))
    order = [ledger.claim(run, token)[0].number for _ in range(3)]
    assert order == [2, 3, 1]
    assert ledger.claim(run, token) is None


def test_who_was_taken_for_dead_can_no_longer_finish(ledger):
    run, token = begun(ledger, entry(1))
    row, channels = ledger.claim(run, token)
    ledger.begin(row.number, token, channels)
    ledger.dismiss(token)
    assert not ledger.finish(row.number, token, "s1", DONE)
    assert ledger.row(row.number).state == "waiting"
    assert ledger.outputs(row.number) == []


def test_cases_of_two_runs_wait_for_each_other(ledger):
    run, token = begun(ledger, entry(1))
    other_run, other = begun(ledger, entry(1), entry(2))
    row, channels = ledger.claim(run, token)
    assert ledger.claim(other_run, other)[0].number == 2
    assert ledger.claim(other_run, other) is None
    assert ledger.has_left(other_run)
    before = ledger.now()
    ledger.begin(row.number, token, channels)
    ledger.finish(row.number, token, "s1", DONE)
    row, _ = ledger.claim(other_run, other)
    assert (row.number, row.turn > before) == (1, True)


def test_retry_sends_back_what_failed_or_what_is_named(ledger):
    run, token = begun(ledger, *(entry(number) for number in range(1, 5)))
    endings = [
        DONE,
        Ending("failed", 1, "a"),
        Ending("failed", 1, "b"),
        Ending("incomplete", 1, "c"),
    ]
    for ending in endings:
        row, channels = ledger.claim(run, token)
        ledger.begin(row.number, token, channels)
        ledger.finish(row.number, token, "s1", ending)
    assert ledger.codes() == {"a": 1, "b": 1, "c": 1}
    assert ledger.retry(codes=["a"]) == 1
    assert ledger.counts() == {
        "waiting": 1, "running": 0, "done": 1, "incomplete": 1, "failed": 1,
    }  # fmt: skip
    assert ledger.retry(names=["1"]) == 1
    assert ledger.row(1).settings is None
    assert ledger.retry() == 2
    assert ledger.codes() == {}


HOLD = """
import sys, time
from pathlib import Path
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import Ending, Entry, Output
ledger = Ledger.open(Path(sys.argv[1]), create=True)
number = 0
while True:
    number += 1
    rows = ledger.register([Entry(f"{number}-{n}", (), {"": "x"}) for n in range(5)])
    run = ledger.begin_run([(row.number, row.channels) for row in rows], "s", "{}")
    token = ledger.enlist(run)
    for _ in rows:
        row, channels = ledger.claim(run, token)
        ledger.begin(row.number, token, channels)
        print(number, flush=True)
        ending = Ending("done", 1.0, outputs=[Output("a", "b", 1, "c")])
        ledger.finish(row.number, token, "s", ending)
    ledger.end_run(run)
    ledger.dismiss(token)
"""


def test_a_killed_process_leaves_a_whole_ledger_and_its_cases_go_back(tmp_path):
    path = tmp_path / "ledger.sqlite"
    for wait in (0.0, 0.03, 0.07):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Ledger.open(path) as ledger:
            held = ledger.counts()["running"]
            assert held <= 1
            ledger.recover(Watch())
            assert ledger.workers() == []
            assert ledger.counts()["running"] == 0
            for row in ledger.rows():
                assert (row.state == "done") == (len(ledger.outputs(row.number)) == 1)


def test_a_process_of_another_machine_is_dead_once_its_counter_stands_still():
    watch, far = Watch(still_s=0.05), Self("elsewhere", os.getpid(), 0.0)
    assert not watch.is_dead("a", far, 1)
    time.sleep(0.06)
    assert not watch.is_dead("a", far, 2)
    time.sleep(0.06)
    assert watch.is_dead("a", far, 2)


def test_a_living_process_is_alive_and_another_of_its_number_is_not():
    me = this_process()
    assert not Watch().is_dead("a", me, 0)
    assert Watch().is_dead("a", Self(me.host, me.pid, me.born - 60), 0)
    assert Watch().is_dead("a", Self(me.host, 2**22 + 1, me.born), 0)


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(ConfigError, match="expected the ledger of a batch run, found none"):
        Ledger.open(path)
    for content, found in ((b"", "an empty file"), (b"hello " * 99, "another kind of file")):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=f"a ledger that medseg wrote, found {found}"):
            Ledger.open(path, create=True)
        assert path.read_bytes() == content
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE things (a)")
        other.commit()
    with pytest.raises(FormatError, match="found the database of another program"):
        Ledger.open(path, create=True)


def test_a_ledger_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path, create=True).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(FormatError, match="expected a ledger of version 2, found version 99"):
        Ledger.open(path)


def test_a_damaged_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, create=True) as ledger:
        ledger.register([entry(number) for number in range(400)])
    content = bytearray(path.read_bytes())
    content[2048 : len(content) - 2048] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    words = "expected a whole ledger, found a damaged one; it was left as it is: move it away and"
    with pytest.raises(FormatError, match=words):
        Ledger.open(path, create=True)
    path.write_bytes(bytes(content[:3000]))
    with pytest.raises(FormatError, match="expected a whole ledger, found a damaged one"):
        Ledger.open(path, create=True)


def test_the_log_of_a_ledger_that_is_gone_is_not_folded_into_a_new_one(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, create=True) as ledger:
        ledger.register([entry(1)])
        shutil.copy(path.with_name("ledger.sqlite-wal"), tmp_path / "kept")
    path.unlink()
    shutil.copy(tmp_path / "kept", path.with_name("ledger.sqlite-wal"))
    with Ledger.open(path, create=True) as ledger:
        assert list(ledger.rows()) == []
        ledger.register([entry(2)])
    with Ledger.open(path) as ledger:
        assert [row.name for row in ledger.rows()] == ["2"]
    (lost,) = tmp_path.glob("lost-*-ledger.sqlite-wal")
    assert lost.read_bytes() == (tmp_path / "kept").read_bytes()


def test_results_are_taken_over_under_their_own_name_unless_another_case_has_it(ledger):
    run, token = begun(ledger, entry(1), entry(2))
    for _ in range(2):
        ledger.claim(run, token)
    before = ledger.now()
    assert ledger.adopt(1, token, "case-old", "s1", DONE, {"": "/x"})
    assert not ledger.adopt(2, token, "case-old", "s1", DONE, {"": "/y"})
    assert not ledger.adopt(2, "nobody", "case-other", "s1", DONE, {"": "/y"})
    row = ledger.row(1)
    assert (row.state, row.name, row.settings, row.fingerprint) == ("done", "case-old", "s1", "f")
    assert (row.attempts, row.turn, ledger.now()) == (0, 0, before)
    assert ledger.outputs(1) == list(DONE.outputs)
    assert ledger.volumes_ml(1) == DONE.volumes_ml
    assert ledger.row(2).name == "2"


def test_a_process_that_is_known_to_have_died_counts_against_the_cases_it_worked_on(ledger):
    run, token = begun(ledger, entry(1), entry(2))
    for _ in range(2):
        row, channels = ledger.claim(run, token)
    ledger.begin(row.number, token, channels)
    ledger.dismiss(token, died=True)
    assert [(row.state, row.deaths) for row in ledger.rows()] == [("waiting", 0), ("waiting", 1)]


def test_a_folder_that_cannot_lock_is_refused_with_the_way_round(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(ResourceError, match=r"found one where locks fail.*--ledger FILE") as caught:
        Ledger.open(tmp_path / "ledger.sqlite", create=True)
    assert caught.value.code == "ledger-lock"
    assert list(tmp_path.iterdir()) == []


def test_locks_that_other_machines_do_not_see_are_none(tmp_path, monkeypatch):
    options = ("nfs", frozenset({"rw", "nolock"}))
    monkeypatch.setattr(ledger_file, "_mount", lambda folder: options)
    with pytest.raises(ResourceError, match="files can be locked"):
        Ledger.open(tmp_path / "ledger.sqlite", create=True)


@pytest.mark.parametrize(("kind", "mode"), [("nfs4", "delete"), ("ext4", "wal")])
def test_the_journal_suits_the_file_system(kind, mode, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_file, "_mount", lambda folder: (kind, frozenset()))
    with Ledger.open(tmp_path / "ledger.sqlite", create=True) as ledger:
        assert ledger.read("PRAGMA journal_mode") == [(mode,)]
        ledger.register([entry(1)])


def test_the_file_system_of_a_folder_is_found(tmp_path):
    assert ledger_file._mount(Path("/proc/self"))[0] == "proc"
    assert not ledger_file.is_network_folder(Path("/proc"))


def test_a_ledger_that_another_process_keeps_locked_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_file, "_BUSY_S", 0.05)
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, create=True) as ledger, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ResourceError, match="found another process that keeps it locked"):
            ledger.register([entry(1)])
        other.rollback()
        ledger.register([entry(1)])


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, create=True) as ledger:
        ledger.register([entry(1)])
        pages = ledger.read("PRAGMA page_count")[0][0]
        ledger.read(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(ResourceError, match="found a full disk") as caught:
            ledger.register([entry(number) for number in range(2, 500)])
        assert caught.value.code == "disk-full"
        assert [row.name for row in ledger.rows()] == ["1"]


def test_a_ledger_can_be_looked_at_where_nothing_can_be_written(tmp_path):
    path = tmp_path / "out" / "ledger.sqlite"
    path.parent.mkdir()
    with Ledger.open(path, create=True) as ledger:
        ledger.register([entry(1)])
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with Ledger.open(path, read_only=True) as ledger:
            assert ledger.counts()["waiting"] == 1
            with pytest.raises(ResourceError, match="found a read-only one"):
                ledger.retry()
    finally:
        path.parent.chmod(0o755)


def _register_many(path, first):
    with Ledger.open(path, create=True) as ledger:
        for number in range(40):
            ledger.register([entry(number, "same", f"name{number}")])
            ledger.register([entry(1000 + first + number)])


def test_several_processes_make_and_fill_one_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_register_many, args=(path, 100 * n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    with Ledger.open(path) as ledger:
        assert len(list(ledger.rows())) == 40 + 3 * 40
        assert len({row.name for row in ledger.rows()}) == 160
