"""A run on a Ray cluster: the same results as on one machine, whatever node goes meanwhile.

The cluster has two nodes, which are processes of this machine.
"""

import importlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.faults import differences
from medseg.core import Grid, Volume
from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent
from medseg.io.nifti import write_nifti_volume
from medseg.studies.devices import Place
from pipelines.batch import open_batch, place_of
from pipelines.cli import app
from pipelines.cluster import _slots, check_device, connected
from pipelines.cluster_worker import DeviceWorker, Probe
from pipelines.cohort import write_cohort
from pipelines.discovery import find_cases
from pipelines.predict import make_order
from pipelines.results import Wishes
from tests.tiny_model import write_tiny_model

CASES = 12
SHAPE = (16, 16, 16)
CANARY = "Kanarienvogel"
PLACE = Place("cpu", 1, 1, "device 1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / f"{CANARY}_KV-4711"
    folder.mkdir()
    for number in range(CASES):
        voxels = np.random.default_rng(number).normal(100, 20, (1, *SHAPE)).astype(np.int16)
        write_nifti_volume(Volume(voxels, Grid(SHAPE, np.eye(4))), folder / f"{number}.nii.gz")
    return folder


def ordered(model, out, device="cpu"):
    options = {
        **{"precision": "fp32", "batch": 1, "overlap": None, "blending": "gaussian"},
        **{"mirror": "none", "max_ram_bytes": None, "max_vram_bytes": None},
        **{"post_processing": None, "threads": 1},
    }
    return make_order(
        [str(model)], options, device=device, out=out, overwrite=False, wishes=Wishes(), roi=None
    )


def predict_locally(model, data, out):
    order = ordered(model, out)
    with open_batch(order, find_cases([data], [], naming="id")) as study:
        study.run(place_of(order), Silent())
        return {row.state for row in study.rows()}


class Session:
    """The two nodes, and where they keep their logs."""

    def __init__(self):
        cluster_utils = pytest.importorskip(
            "ray.cluster_utils", reason="needs the extra cluster: pip install 'medseg[cluster]'"
        )
        self.folder = Path(tempfile.mkdtemp(prefix="medseg-ray-"))
        # Ray notes there where a cluster is
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)
        settings = {
            **{"health_check_period_ms": 500, "health_check_failure_threshold": 3},
            # Ray's processes give way to all others by default: beside other tests they starve
            "worker_niceness": 0,
        }
        self.cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={
                **{"num_cpus": 1, "include_dashboard": False, "temp_dir": str(self.folder)},
                "_system_config": settings,
            },
        )
        self.second = self.cluster.add_node(num_cpus=1)

    def kill_second(self):
        """All processes of the node at once, as where a machine loses its power."""
        raylet = psutil.Process(self.second.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        self.cluster.remove_node(self.second, allow_graceful=False)

    def close(self):
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def session():
    root = Path(__file__).resolve().parents[2]  # nodes import what is tested, not what is installed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        opened = Session()
        yield opened
        opened.close()


class Told(Silent):
    """Waits at the first device that is ready until both are, so that both get cases."""

    def __init__(self):
        self.notes, self.done = [], 0

    def noted(self, message):
        self.notes.append(message)
        if message.endswith(" is ready") and len(self.notes) == 1:
            actors = importlib.import_module("ray._private.state").actors
            ends_s = time.monotonic() + 120
            while sum(one["State"] == "ALIVE" for one in actors().values()) < 2:
                assert time.monotonic() < ends_s, actors()
                time.sleep(0.05)

    def advanced(self, stage, done):
        assert stage == "cases"
        self.done = done


class UntilFirst(Told):
    def cancelled(self):
        return self.done > 0


class Killing(Told):
    """Kills the second node while both nodes are at work on cases."""

    def __init__(self, ledger, kill):
        super().__init__()
        self.ledger, self.kill, self.killed = ledger, kill, False

    def advanced(self, stage, done):
        super().advanced(stage, done)
        if self.killed:
            return
        with closing(sqlite3.connect(self.ledger)) as ledger:
            query = "SELECT count(DISTINCT worker) FROM cases WHERE state = 'running'"
            ((at_work,),) = ledger.execute(query).fetchall()
        if at_work == 2:
            self.killed = True
            self.kill()


@pytest.mark.slow
def test_a_run_on_a_cluster_is_interrupted_and_survives_the_loss_of_a_node(
    session, model, data, tmp_path, capsys
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    order = replace(ordered(model, out), salt=b"salt")
    todo = find_cases([data], [], naming="id")
    with open_batch(replace(order, out=whole), todo) as study:
        study.run(place_of(order), Silent())
        write_cohort(study.ledger, whole)
    handler = signal.getsignal(signal.SIGTERM)

    with connected(session.cluster.address) as nodes:
        assert signal.getsignal(signal.SIGTERM) is handler
        jobs = importlib.import_module("ray._private.state").jobs()
        assert [job["Entrypoint"] for job in jobs] == ["medseg predict"]
        with open_batch(order, todo) as study:
            interrupted = UntilFirst()
            with pytest.raises(Cancelled):
                study.run(nodes, interrupted)
            states = [row.state for row in study.rows()]
            assert 0 < states.count("done") < CASES
            assert set(states) == {"done", "waiting"}
        done_before = states.count("done")

        with open_batch(order, todo) as study:
            listener = Killing(out / "ledger.sqlite", session.kill_second)
            study.run(nodes, listener)
            write_cohort(study.ledger, out)
            rows = study.rows()
            assert listener.killed
            assert listener.done == CASES
            assert {row.state for row in rows} == {"done"}
            assert {row.attempts for row in rows} <= {1, 2, 3}
            assert max(row.attempts for row in rows) >= 2
            # every ending has a turn: one for each case, none twice
            assert study.ledger.now() == CASES == len({row.turn for row in rows})
            assert len({row.turn for row in rows if row.turn <= done_before}) == done_before
    assert any(note.endswith("that it had are done again") for note in listener.notes)
    assert capsys.readouterr().out == ""
    # a hidden file that the killed node had half written goes when the next run begins
    with open_batch(order, todo):
        pass
    assert differences(whole, out) == []
    assert [path.name for path in out.iterdir() if ".tmp" in path.name] == []
    logs = [path for path in session.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in logs)
    for path in logs:
        assert CANARY.encode() not in path.read_bytes(), path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_missing_extra_gives_the_command_that_installs_it(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("predict", data, "-m", model, "-o", tmp_path / "out", "--executor", "ray")
    assert done.exit_code == 2
    assert "expected the package ray, found none; install it with: " in done.stderr
    assert "pip install 'medseg[cluster]' [cluster-extra]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_named_before_anything_is_done(model, data, tmp_path):
    pytest.importorskip("ray", reason="needs the extra cluster: pip install 'medseg[cluster]'")
    options = ("--executor", "ray", "--ray-address", "nowhere")
    done = run("predict", data, "-m", model, "-o", tmp_path / "out", *options)
    assert done.exit_code == 1
    assert "expected a Ray cluster that answers, of the same versions" in done.stderr
    assert "[cluster-unreachable]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_device_of_this_machine_alone_is_refused_on_a_cluster():
    for device in ("cuda:1", "cpu,cpu"):
        with pytest.raises(ConfigError, match="expected auto, cpu, cuda with --executor ray"):
            check_device(device)
    for device in ("auto", "cpu", "cuda"):
        check_device(device)


def test_every_gpu_of_a_cluster_is_a_device_and_else_every_node_that_has_cpus(model, tmp_path):
    def slots(device, *resources, threads=None):
        order = ordered(model, tmp_path, device)
        order = replace(order, settings=order.settings.model_copy(update={"threads": threads}))
        nodes = [
            {"NodeID": str(number), "NodeManagerHostname": "host", "Resources": dict(one)}
            for number, one in enumerate(resources)
        ]
        with open_batch(order, []) as study:
            found = _slots(nodes, study.job)
            return [(one.node, one.number, one.device, one.threads, one.cpus) for one in found]

    head, big, small = {}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}
    assert slots("auto", head, big, small) == [
        ("1", 0, "cuda", 8, 1),
        ("1", 1, "cuda", 8, 1),
    ]
    assert slots("auto", head, small, small) == [("1", 0, "cpu", 4, 4), ("2", 0, "cpu", 4, 4)]
    assert slots("cpu", head, big, threads=2) == [("1", 0, "cpu", 2, 2)]
    assert slots("cuda", head, small) == []


@pytest.fixture
def job(model, data, tmp_path):
    order = ordered(model, tmp_path / "out")
    with open_batch(order, find_cases([data / "3.nii.gz"], [])) as study:
        yield study


def test_a_node_that_does_not_see_the_output_folder_says_so(job):
    worker = DeviceWorker(job.job, PLACE, Probe("absent", "x"))
    worker.close()
    error = worker.refused()
    assert isinstance(error, ResourceError)
    assert error.code == "cluster-out-unseen"
    assert "expected the output folder to be the same on device 1, found none" in str(error)
    assert "put it on a file system that every node has mounted" in str(error)


def test_a_node_with_another_release_or_model_says_so(job, tmp_path):
    (tmp_path / "out" / "probe").write_text("x")
    worker = DeviceWorker(replace(job.job, settings="other"), PLACE, Probe("probe", "x"))
    worker.close()
    assert worker.refused().code == "cluster-node-differs"
    assert "expected the release of medseg and the models of the command" in str(worker.refused())


def test_a_device_does_a_case_in_steps_without_a_ledger(job, model, data, tmp_path):
    out = tmp_path / "out"
    (out / "probe").write_text("x")
    worker = DeviceWorker(job.job, PLACE, Probe("probe", "x"))
    try:
        assert worker.refused() is None
        (row,) = job.rows()
        assert worker.check(row, row.channels, [], True, None).kind == "due"
        assert worker.read(row.number, True).kind == "read"
        assert worker.work(row.number).kind == "worked"
        reply = worker.write(row.number)
        assert (reply.kind, reply.ending.state) == ("ended", "done")
        assert {one.name for one in reply.ending.outputs} == {
            path.name for path in out.iterdir() if path.name.startswith("3_")
        }
        # unknown to the ledger, but proven by its report
        assert worker.check(row, row.channels, [], True, None).kind == "earlier"
        outputs = reply.ending.outputs
        broken = replace(row, number=8, name="none")
        assert worker.check(broken, {"": str(tmp_path / "Doe.nii")}, [], True, None).kind == "due"
        ending = worker.read(8, False).ending
        assert (ending.state, ending.code) == ("failed", "file-missing")
        assert ending.message.startswith("expected ")
        worker.stop()
        assert worker.check(replace(row, number=9), row.channels, outputs, True, None).kind == "due"
        assert worker.read(9, False).kind == "cancelled"
    finally:
        worker.close()
