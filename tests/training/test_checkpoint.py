"""The state of a run on disk."""

import pytest
import torch

from medseg.errors import ConfigError, FormatError
from medseg.events import Silent
from medseg.training.checkpoint import (
    BestWeights,
    Checkpoint,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from medseg.training.watch import Watch


def state(step=3):
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        config_sha256="0" * 64,
        network=network.state_dict(),
        averaged={},
        optimizer=optimizer.state_dict(),
        scaler={},
        rng={"cpu": torch.get_rng_state()},
        seed=1,
        epoch=2,
        step=step,
        step_of_epoch=1,
        seconds=1.5,
        budget_s=None,
        progress=0.25,
        skipped=0,
        watch=Watch().to_dict(),
        history=[{"step": 2, "dice_mean": 0.5}],
    )


def test_a_checkpoint_comes_back_whole(tmp_path):
    saved = state()
    save_checkpoint(tmp_path / "checkpoints", saved)
    loaded = load_checkpoint(tmp_path / "checkpoints")
    for name, tensor in saved.network.items():
        assert torch.equal(loaded.network[name], tensor)
    moments = loaded.optimizer["state"][0]["exp_avg"]
    assert torch.equal(moments, saved.optimizer["state"][0]["exp_avg"])
    assert torch.equal(loaded.rng["cpu"], saved.rng["cpu"])
    assert (loaded.step, loaded.epoch, loaded.progress) == (3, 2, 0.25)
    assert loaded.history == saved.history


def test_the_checkpoint_before_is_kept_and_taken_if_the_last_is_lost(tmp_path):
    for step in (1, 2):
        last = save_checkpoint(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert load_checkpoint(tmp_path).step == 2
    last.unlink()
    assert load_checkpoint(tmp_path).step == 1


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder with last\.pt, found none"):
        load_checkpoint(tmp_path)


class Payload:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content", [{"format": "other"}, {}, {"format": "medseg-checkpoint/2"}, Payload(), [1]]
)
def test_other_content_is_refused_and_code_is_not_run(tmp_path, content, capsys):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(FormatError, match="a checkpoint of format medseg-checkpoint/2"):
        load_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, state())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="damaged"):
        load_checkpoint(tmp_path)


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_the_checkpoint_before_is_taken_if_the_last_is_damaged(tmp_path, damage):
    for step in (1, 2):
        last = save_checkpoint(tmp_path, state(step))
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        half = slice(len(content) // 4, 3 * len(content) // 4)
        content[half] = bytes(byte ^ 1 for byte in content[half])
    elif damage == "other":
        torch.save({"format": "other"}, last)
        content = last.read_bytes()
    last.write_bytes({"cut": content[:300], "empty": b""}.get(damage, bytes(content)))
    notes = Notes()
    assert load_checkpoint(tmp_path, notes).step == 1
    assert notes.notes == ["last.pt cannot be used; going on from previous.pt"]


def test_two_damaged_checkpoints_are_refused(tmp_path):
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(FormatError, match=r"previous\.pt: expected a checkpoint of format"):
        load_checkpoint(tmp_path)


def test_the_best_weights_come_back_or_are_told_to_be_missing(tmp_path):
    assert load_best(tmp_path) is None
    save_best(tmp_path / "new", BestWeights("0" * 64, {"w": torch.ones(2)}, 7, 0.5))
    best = load_best(tmp_path / "new")
    assert (best.step, best.dice, best.network["w"].tolist()) == (7, 0.5, [1.0, 1.0])
    torch.save({"format": "medseg-best-weights/1"}, tmp_path / "new" / "best.pt")
    with pytest.raises(FormatError, match=r"best\.pt: expected a checkpoint of format"):
        load_best(tmp_path / "new")
