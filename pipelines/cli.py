"""The command line. Results go to stdout, logs and progress to stderr.

Exit codes: 0 all well, 1 some cases failed, 2 wrong usage, 130 interrupted. Heavy packages are
imported inside the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from medseg import NOTICE, __version__
from pipelines.commands import (
    data,
    demo,
    doctor,
    ensemble,
    evaluate,
    finetune,
    models,
    plan,
    predict,
    studies,
    train,
    viewer,
)
from pipelines.commands.console import app, studies_app
from pipelines.commands.studies_ledger import add_ledger_verbs

__all__ = ["app", "main"]

COMMANDS = (
    *(data, demo, doctor, ensemble, evaluate, finetune, models, plan, predict, studies, train),
    viewer,
)
"""Modules whose import adds their command to the application."""

add_ledger_verbs(studies_app)


def main() -> None:
    """Entry point of the console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medseg {__version__}. {NOTICE}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    del version


if __name__ == "__main__":
    main()
