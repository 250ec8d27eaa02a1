"""What processes of their own do in tests; a module by itself, since they import it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medseg.errors import ResourceError
from medseg.events import Silent
from medseg.training.settings import parse_settings
from pipelines.train import train, train_from_command


def train_as_one_of(
    rank: int, world: int, contents: dict[str, dict[str, Any]], root: str, folder: str
) -> None:
    """Runs in a group of processes, each gone on with once more; what was seen goes to files."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    try:
        for name, content in contents.items():
            for resume in (False, True):
                result = train(
                    parse_settings(content, where="run.yaml"),
                    run_folder=place / name,
                    data_root=Path(root),
                    resume=resume,
                )
                seen = {"losses": result.losses, "dice": result.dice, "steps": result.steps}
                (place / f"{name}-{resume}-{rank}.json").write_text(json.dumps(seen))
    finally:
        dist.destroy_process_group()


def train_until_the_other_dies(rank: int, content: dict[str, Any], root: str, folder: str) -> None:
    """Rank 1 dies after its second step; rank 0 writes down what it was told."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    class Dies(Silent):
        def advanced(self, stage: str, done: int) -> None:
            if rank == 1 and stage == "training" and done == 2:
                os._exit(1)

    try:
        train(
            parse_settings(content, where="run.yaml"),
            run_folder=Path(folder) / "run",
            data_root=Path(root),
            listener=Dies(),
        )
    except ResourceError as error:
        (Path(folder) / "told.txt").write_text(f"{error.code} {error}")
        os._exit(0)


def train_by_the_command(config: str, root: str, folder: str) -> None:
    """``medseg train CONFIG --resume``, to be killed."""
    torch.set_num_threads(1)
    train_from_command(config, data=Path(root), out=Path(folder), resume=True)


def train_until_stopped(config: str, data: str, folder: str) -> None:
    """The process's exit code tells whether it was interrupted: 130 if so."""
    torch.set_num_threads(1)
    result = train_from_command(config, data=Path(data), out=Path(folder))
    sys.exit(0 if result.finished else 130)
