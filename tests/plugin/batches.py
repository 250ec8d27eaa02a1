"""The output folder of a small batch run, made once by the command itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from medseg.core import Volume
from medseg.io.nifti import write_nifti_volume
from medseg.studies.ledger import Ledger
from pipelines.cli import app
from tests.plugin.sources import oblique_grid
from tests.tiny_model import write_tiny_model

SHAPE = (20, 18, 17)
NAMES = ("a", "b", "c")


def write_image(path: Path, seed: int) -> None:
    voxels = np.random.default_rng(seed).normal(100, 20, SHAPE).astype(np.int16)
    write_nifti_volume(Volume(voxels[None], oblique_grid(SHAPE)), path)


def make_batch(folder: Path) -> Path:
    """Three images, of which the last is broken, segmented with a map of the doubt."""
    model = write_tiny_model(folder / "models" / "tiny")
    data = folder / "data"
    data.mkdir()
    for seed, name in enumerate(NAMES):
        write_image(data / f"{name}.nii", seed)
    (data / "broken.nii").write_bytes(b"")
    out = folder / "out"
    words = ["predict", data, "-m", model, "-o", out, "--uncertainty", "--json"]
    done = CliRunner().invoke(app, [*map(str, words), "--precision", "fp32"])
    assert done.exit_code == 1, (done.stderr, done.exception)
    return out


def copied(out: Path, to: Path) -> Path:
    """The folder once more, with images of its own, so that anything can be done to them."""
    shutil.copytree(out.parent / "data", to / "data")
    shutil.copytree(out, to / "out")
    with Ledger.open(to / "out" / "ledger.sqlite") as ledger, ledger.writing() as db:
        for number, channels in db.execute("SELECT number, channels FROM cases").fetchall():
            moved = {"": str(to / "data" / Path(json.loads(channels)[""]).name)}
            db.execute(
                "UPDATE cases SET channels = ? WHERE number = ?", (json.dumps(moved), number)
            )
    return to / "out"
