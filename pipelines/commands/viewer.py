"""``medseg napari``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import ConfigError
from pipelines.commands.console import answering, app

__all__ = ["napari"]

_INSTALL = 'pip install "medseg[napari]"'


class Sample(StrEnum):
    """What can be opened without any file."""

    HIPPOCAMPUS = "hippocampus"
    CT = "ct"
    HEART = "heart"


@app.command()
@answering
def napari(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Images, label files, folders or zips of DICOM studies; or the output folder of "
            "a batch run, whose cases are then listed."
        ),
    ] = None,
    sample: Annotated[
        Sample | None, typer.Option(help="Open a sample: an MR, a made CT or a made heart.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="A folder of yours with models, beside the packaged ones.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="Ledger of the batch run, if it is not in its output folder."),
    ] = None,
) -> None:
    """Start the viewer with medseg's docks: run models, correct their output, send it back."""
    if importlib.util.find_spec("napari") is None:
        raise ConfigError(
            "medseg napari",
            expected="the viewer, which is an extra of the package",
            found="none installed",
            remedy=_INSTALL,
            code="napari-missing",
        )
    for path in (*(paths or []), *(one for one in (models, ledger) if one is not None)):
        if not path.exists():
            raise ConfigError(
                str(path),
                expected="a file or folder",
                found="nothing of that name",
                remedy="check the path",
                code="file-missing",
            )
    arguments = [str(path.resolve()) for path in paths or []]
    arguments += [] if sample is None else ["--sample", sample.value]
    arguments += [] if models is None else ["--models", str(models.resolve())]
    arguments += [] if ledger is None else ["--ledger", str(ledger.resolve())]
    # in a process of its own: the command line never loads a viewer
    done = subprocess.run(  # noqa: S603 - this interpreter and paths that exist
        [sys.executable, "-m", "medseg_napari", *arguments], check=False
    )
    if done.returncode:
        raise typer.Exit(1)
