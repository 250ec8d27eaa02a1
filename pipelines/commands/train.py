"""`medseg train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg import NOTICE
from pipelines.commands.console import Json, answering, app, print_json


@app.command()
@answering
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file or the name of a shipped one.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder; default: the one in the configuration.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Run folder; default: runs/CONFIG.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock time to train, such as 90s, 10m or 2h.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the configuration's seed.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Overrides the configuration's device.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the run folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a network as one YAML file says; the run folder holds the model at every moment."""
    from pipelines.train import train_from_command  # noqa: PLC0415

    result = train_from_command(
        config, data=data, out=out, budget=budget, seed=seed, device=device, overwrite=overwrite
    )
    if as_json:
        print_json(
            {
                "run_folder": str(result.run_folder),
                "finished": result.finished,
                "steps": result.steps,
                "seconds": {
                    "reading": result.reading_s,
                    "training": result.training_s,
                    "validation": result.validation_s,
                },
                "numerics": result.numerics.in_words(),
                "validation_dice": result.dice,
                "model": str(result.run_folder / "model"),
            }
        )
    else:
        if result.dice:
            from pipelines.tables import print_table  # noqa: PLC0415

            rows = [[name, f"{value:.4f}"] for name, value in result.dice.items()]
            print_table(
                ["structure", "validation Dice"], [*rows, ["mean", f"{result.mean_dice:.4f}"]]
            )
        state = "finished" if result.finished else "interrupted, usable"
        typer.echo(
            f"{state}: {result.steps} steps in {result.training_s:.0f} s, "
            f"{result.numerics.in_words()}; run folder {result.run_folder}. {NOTICE}"
        )
    if not result.finished:
        raise typer.Exit(130)
