"""Two processes train as one does."""

import json
import socket

import pytest
import torch

from medseg.errors import ConfigError, ResourceError
from medseg.training.ranks import Ranks
from medseg.training.settings import parse_settings
from pipelines.torchrun import is_first_process, processes_together
from pipelines.train import train
from tests.forked import in_two_processes, started
from tests.tiny_dataset import tiny_settings, write_dataset
from tests.training_together import train_as_one_of, train_until_the_other_dies


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "Balls")


RUNS = {
    "revunet": {"steps": 4, "batch_dice": True, "ema_decay": 0.9},
    "neunet": {"steps": 3, "accumulate": 2, "gradient_clip": 0.5, "optimizer": "sgd"},
}


@pytest.fixture(scope="module")
def together(tmp_path_factory, root):
    """What two processes saw, run by run; they are started once, since that takes longest."""
    folder = tmp_path_factory.mktemp("together")
    contents = {name: tiny_settings(name, **options) for name, options in RUNS.items()}
    in_two_processes(train_as_one_of, 2, contents, str(root), str(folder))
    return folder


def seen(folder, name, resume):
    return [json.loads((folder / f"{name}-{resume}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one_with_the_same_batch(tmp_path, root, together, name):
    content = tiny_settings(name, **RUNS[name])
    alone = train(
        parse_settings(content, where="run.yaml"), run_folder=tmp_path / "alone", data_root=root
    )
    first, second = seen(together, name, False)
    assert first == second, "both saw the same figures"
    assert first["losses"] == pytest.approx(alone.losses, rel=2e-4)
    assert first["dice"] == pytest.approx(alone.dice, abs=0.02)
    record = json.loads((together / name / "run.json").read_text())
    assert record["processes"] == 2
    again = seen(together, name, True)
    assert again[0] == again[1]
    assert again[0]["losses"] == [], "the run was over"
    assert again[0]["dice"] == pytest.approx(first["dice"], abs=1e-4)


@pytest.mark.slow
def test_a_process_that_dies_is_told_by_the_other_and_the_run_goes_on_later(tmp_path, root):
    content = tiny_settings(steps=50, checkpoint_every_s=0.0)
    processes = [
        started(train_until_the_other_dies, rank, content, str(root), str(tmp_path))
        for rank in (0, 1)
    ]
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 1]
    told = (tmp_path / "told.txt").read_text()
    assert told.startswith("process-lost training: expected all processes to go on")
    content["training"]["steps"] = 50
    rest = train(
        parse_settings(content, where="run.yaml"),
        run_folder=tmp_path / "run",
        data_root=root,
        resume=True,
    )
    assert rest.finished
    assert rest.steps == 50
    # a slow machine may have written no checkpoint but the first
    assert 0 < len(rest.losses) <= 50


class Three(Ranks):
    def __init__(self):
        self.rank, self.count = 0, 3


def test_a_batch_that_cannot_be_shared_is_refused():
    assert Three().share_of(6) == 2
    with pytest.raises(ConfigError, match="a multiple of 3, the number of processes"):
        Three().share_of(4)


def test_common_batch_statistics_need_gpus():
    with pytest.raises(ConfigError, match=r"training\.sync_batch_norm: expected false on a CPU"):
        Three().with_common_statistics(torch.nn.BatchNorm3d(2), torch.device("cpu"))
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(2))
    converted = Three().with_common_statistics(network, torch.device("cuda"))
    assert isinstance(converted[0], torch.nn.SyncBatchNorm)
    assert Ranks().with_common_statistics(network, torch.device("cpu")) is network


def environment(monkeypatch, **values):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name in values:
            monkeypatch.setenv(name, values[name])
        else:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no usable RANK, LOCAL_RANK, MASTER_PORT, MASTER_A"),
        ({"WORLD_SIZE": "all"}, "WORLD_SIZE=all and no usable WORLD_SIZE, RANK"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"},
            "no usable MASTER_PORT; start the processes by torchrun, or unset WORLD_SIZE",
        ),
    ],
)
def test_an_environment_of_half_a_group_of_processes_is_refused(monkeypatch, values, words):
    environment(monkeypatch, **values)
    with pytest.raises(ConfigError, match=words) as caught, processes_together("cpu"):
        pass
    assert caught.value.code == "processes"


def test_processes_that_cannot_meet_say_so(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        environment(monkeypatch, **values, MASTER_PORT=str(taken.getsockname()[1]))
        words = "to meet the others at MASTER_ADDR"
        with pytest.raises(ResourceError, match=words) as caught, processes_together("cpu"):
            pass
    assert caught.value.code == "processes-apart"


def test_of_several_processes_the_first_prints_the_result(monkeypatch):
    environment(monkeypatch)
    assert is_first_process()
    others = {"LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    environment(monkeypatch, WORLD_SIZE="2", RANK="1", **others)
    assert not is_first_process()
    environment(monkeypatch, WORLD_SIZE="2", RANK="0", **others)
    assert is_first_process()
