"""Cases on several worker processes: none is lost, and no process is left."""

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.studies import devices
from medseg.studies.devices import run_on_devices
from tests.studies.device_workers import (
    build,
    build_nothing,
    build_once,
    build_slowly,
    build_wrongly,
    die_while_building,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# A busy machine may be slow to end a process. What does not end by itself works for a minute, and
# in the tests that measure, nobody is killed before ten minutes are over.
PROMPTLY_S = 30
PATIENCE_S = 600


class Recorder(Silent):
    """Keeps what it hears; cancels once a line of that text was noted."""

    def __init__(self, cancel_at=None):
        self.heard = []
        self.cancel_at = cancel_at

    def started(self, stage, total):
        self.heard.append(("started", stage, total))

    def advanced(self, stage, done):
        self.heard.append(("advanced", stage, done))

    def measured(self, name, value):
        self.heard.append(("measured", name, value))

    def noted(self, message):
        self.heard.append(("noted", message))

    def cancelled(self):
        return self.cancel_at is not None and ("noted", self.cancel_at) in self.heard


def run(cases, devices, build=build, threads=2, listener=None):
    with closing(
        run_on_devices(cases, devices, build, threads=threads, listener=listener or Silent())
    ) as outcomes:
        return list(outcomes)


@pytest.fixture(autouse=True)
def no_orphan():
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [
        child
        for child in set(psutil.Process().children(recursive=True)) - before
        # one such process serves all others for as long as this one lives
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    assert left == []


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(devices, "_CANCEL_GRACE_S", PATIENCE_S)
    monkeypatch.setattr(devices, "_END_GRACE_S", PATIENCE_S)


def test_each_worker_builds_once_and_takes_cases_when_it_is_free(tmp_path):
    cases = [("wait for", "made-*", 6), *[("make", f"made-{n}") for n in range(6)]]
    outcomes = run(cases, ["cpu", "cpu"], functools.partial(build, folder=tmp_path))
    assert sorted(map(str, cases)) == sorted(str(one.case) for one in outcomes)
    assert all(one.done for one in outcomes)
    assert outcomes[-1].case == cases[0], "outcomes come in the order of completion"
    assert len({one.result for one in outcomes[:-1]}) == 1, "the free worker did all others"
    assert len(list(tmp_path.glob("built-*"))) == 2, "one build per worker"
    assert outcomes[-1].seconds >= max(one.seconds for one in outcomes[:-1])


def test_places_name_the_device_and_share_the_threads():
    cases = [("place",)] * 8
    places = {one.result for one in run(cases, ["cpu", "cpu"], threads=5)}
    assert {place.threads for place in places} == {2}
    assert {place.device for place in places} == {"cpu"}
    assert {place.name for place in places} <= {"cpu #1", "cpu #2"}
    (alone,) = run([("place",)], ["cpu", "cpu"], threads=5)
    assert (alone.result.threads, alone.result.name) == (5, "cpu"), "no worker without a case"


def test_a_failure_in_a_worker_is_an_outcome_and_the_worker_goes_on():
    refused, unsent, fine = run([("refuse",), ("unpicklable",), ("pid",)], ["cpu"])
    assert (refused.code, refused.message) == (
        "no",
        "x.nii: expected an image, found text; look",
    )
    assert unsent.code == "unexpected"
    assert fine.done


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_ends_only_its_case_and_is_replaced(number):
    listener = Recorder()
    first, dead, last = run([("pid",), ("die", number), ("pid",)], ["cpu"], listener=listener)
    assert first.done
    assert last.done
    assert first.result != last.result, "another process"
    assert (dead.case, dead.code, dead.result) == (("die", number), "worker-died", None)
    assert f"the worker on cpu was ended by {signal.Signals(number).name}" in dead.message
    assert any("it is replaced" in heard[1] for heard in listener.heard)


def test_a_worker_killed_from_outside_hands_the_rest_to_the_others():
    with closing(
        run_on_devices(
            [("pid",)] * 6,
            ["cpu", "cpu"],
            build,
            threads=2,
            listener=Silent(),
        )
    ) as outcomes:
        first = next(outcomes)
        os.kill(first.result, signal.SIGKILL)
        rest = list(outcomes)
    assert len(rest) == 5
    # idle or at work when it was hit: at most the case it had is lost
    assert [one.code for one in rest if not one.done] in ([], ["worker-died"])


def test_a_worker_is_replaced_once_and_cases_without_worker_are_outcomes_too():
    cases = [("die", signal.SIGKILL), ("die", signal.SIGKILL), ("pid",), ("pid",)]
    outcomes = run(cases, ["cpu"])
    assert [one.code for one in outcomes] == ["worker-died"] * 4
    assert [one.case for one in outcomes] == cases
    assert outcomes[-1].message == "no worker was left for this case"


def test_workers_that_die_while_building_lose_no_case():
    outcomes = run([("pid",), ("pid",)], ["cpu"], die_while_building)
    assert [(one.case, one.code) for one in outcomes] == [(("pid",), "worker-died")] * 2


def test_an_error_of_building_is_raised_as_it_was():
    with pytest.raises(ConfigError, match="device: expected a GPU, found cpu; none"):
        run([("pid",)] * 3, ["cpu", "cpu"], build_nothing)
    with pytest.raises(ResourceError, match="an unexpected ZeroDivisionError") as caught:
        run([("pid",)], ["cpu"], build_wrongly)
    assert "Jane" not in str(caught.value)


def test_a_replacement_that_cannot_be_built_ends_no_other_worker(tmp_path):
    listener = Recorder()
    outcomes = run(
        [("die", signal.SIGKILL), ("pid",)],
        ["cpu"],
        functools.partial(build_once, folder=tmp_path),
        listener=listener,
    )
    assert [one.code for one in outcomes] == ["worker-died", "worker-died"]
    assert any("could not be replaced: device: expected a GPU" in one[1] for one in listener.heard)


def test_events_reach_the_one_listener_with_the_name_of_the_worker():
    alone = Recorder()
    run([("windows",)], ["cpu"], listener=alone)
    assert alone.heard == [
        ("started", "windows", 2),
        ("advanced", "windows", 1),
        ("measured", "seconds", 0.5),
        ("noted", "padded"),
        ("advanced", "windows", 2),
    ]
    both = Recorder()
    run([("windows",)] * 6, ["cpu", "cpu"], listener=both)
    assert len(both.heard) == 30
    stages = {heard[1] for heard in both.heard if heard[0] == "advanced"}
    assert stages <= {"cpu #1: windows", "cpu #2: windows"}
    assert stages


@pytest.mark.usefixtures("patience")
def test_cancelling_reaches_the_workers_and_what_was_finished_is_kept(tmp_path):
    listener = Recorder(cancel_at="at work")
    outcomes = run_on_devices(
        [("pid",), ("until cancelled",), ("pid",)],
        ["cpu"],
        functools.partial(build, folder=tmp_path),
        threads=1,
        listener=listener,
    )
    assert next(outcomes).done
    began = time.monotonic()
    with pytest.raises(Cancelled):
        next(outcomes)
    assert time.monotonic() - began < PROMPTLY_S
    assert len(list(tmp_path.glob("cleaned-*"))) == 1


@pytest.mark.usefixtures("patience")
def test_cancelling_does_not_wait_for_workers_that_are_being_built(tmp_path):
    class AtOnce(Silent):
        def cancelled(self):
            return len(list(tmp_path.glob("building-*"))) == 2

    began = time.monotonic()
    with pytest.raises(Cancelled):
        run(
            [("pid",), ("pid",)],
            ["cpu", "cpu"],
            functools.partial(build_slowly, folder=tmp_path),
            listener=AtOnce(),
        )
    assert time.monotonic() - began < PROMPTLY_S, "building takes a minute"


def test_cases_are_taken_as_workers_become_free():
    taken = []

    def cases():
        for n in range(10):
            taken.append(n)
            yield ("pid", n)

    with closing(run_on_devices(cases(), ["cpu"], build, threads=1, listener=Silent())) as outcomes:
        next(outcomes)
        assert len(taken) <= 2
        assert len(list(outcomes)) == 9


@pytest.mark.usefixtures("patience")
def test_closing_the_iterator_ends_workers_that_do_not_listen_and_lets_them_clean_up(tmp_path):
    outcomes = run_on_devices(
        [("deaf",), ("wait for", "at-work-*", 1)],
        ["cpu", "cpu"],
        functools.partial(build, folder=tmp_path),
        threads=1,
        listener=Silent(),
    )
    assert next(outcomes).case[0] == "wait for"
    began = time.monotonic()
    outcomes.close()
    assert time.monotonic() - began < PROMPTLY_S
    assert len(list(tmp_path.glob("cleaned-*"))) == 1


SCRIPT = """
import functools, pathlib, sys
from medseg.events import Silent
from medseg.studies import devices
from tests.studies.device_workers import build

devices._END_GRACE_S = 600

class Loud(Silent):
    def noted(self, message):
        print(message, flush=True)

if __name__ == "__main__":
    verb, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    try:
        for outcome in devices.run_on_devices(
            [(verb,)] * 3, ["cpu", "cpu"],
            functools.partial(build, folder=folder), threads=2, listener=Loud(),
        ):
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.fixture
def study(tmp_path):
    """Starts a script that runs one kind of case on two workers, in a session of its own."""
    script = tmp_path / "study.py"
    script.write_text(SCRIPT)
    started = []

    def start(verb):
        started.append(
            subprocess.Popen(
                [sys.executable, str(script), verb, str(tmp_path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                start_new_session=True,
            )
        )
        lines = {started[0].stdout.readline(), started[0].stdout.readline()}
        assert lines == {"cpu #1: at work\n", "cpu #2: at work\n"}
        return started[0], psutil.Process(started[0].pid).children(recursive=True)

    yield start
    for one in started:
        one.kill()
        one.communicate()


def all_end(processes, within_s):
    ends = time.monotonic() + within_s
    while any(runs(one) for one in processes):
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def runs(process):
    # who has lost its parent may wait for ever to be buried
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interrupt_from_the_terminal_ends_all_promptly_and_quietly(study, tmp_path):
    parent, workers = study("deaf")
    for _ in range(3):  # Python drops an interrupt that comes while a destructor runs
        time.sleep(0.5)
        began = time.monotonic()
        os.killpg(parent.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            told, complaints = parent.communicate(timeout=20)
            break
    assert time.monotonic() - began < PROMPTLY_S
    assert told == "interrupted\n"
    assert complaints == ""
    assert len(list(tmp_path.glob("cleaned-*"))) == 2
    assert all_end(workers, within_s=PROMPTLY_S)


def test_workers_of_a_killed_parent_end_by_themselves(study, tmp_path):
    parent, workers = study("until cancelled")
    parent.kill()
    assert all_end(workers, within_s=PROMPTLY_S)
    assert len(list(tmp_path.glob("cleaned-*"))) == 2


@pytest.mark.parametrize(
    ("devices", "threads", "words"),
    [
        ([], 1, "devices: expected at least one"),
        (["cpu"], 0, "threads: expected at least 1, found 0"),
    ],
)
def test_senseless_numbers_are_refused_at_once(devices, threads, words):
    with pytest.raises(ConfigError, match=words):
        run_on_devices([("pid",)], devices, build, threads=threads, listener=Silent())


def test_no_case_starts_no_worker():
    assert run([], ["cpu"], die_while_building) == []


def test_the_module_does_not_load_torch():
    code = "import sys, medseg.studies.devices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
