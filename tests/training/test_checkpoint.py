"""The state of a run on disk."""

import pytest
import torch

from medseg.errors import ConfigError, FormatError
from medseg.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def state(step=3):
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler={},
        rng={"cpu": torch.get_rng_state()},
        seed=1,
        epoch=2,
        step=step,
        step_of_epoch=1,
        seconds=1.5,
        progress=0.25,
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
    "content", [{"format": "other"}, {}, {"format": "medseg-checkpoint/1"}, Payload(), [1]]
)
def test_other_content_is_refused_and_code_is_not_run(tmp_path, content, capsys):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(FormatError, match="a checkpoint of format medseg-checkpoint/1"):
        load_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, state())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match="damaged"):
        load_checkpoint(tmp_path)
