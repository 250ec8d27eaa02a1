"""`medseg ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg import NOTICE
from pipelines.commands.console import Device, Json, answering, app, print_json


@app.command()
@answering
def ensemble(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders made by `medseg train --cv`.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder; default: the one in the configuration.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for ensemble.json; default: RUN.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Choose models and post-processing on the cases that cross-validation held out."""
    from medseg.models.zoo import ENSEMBLE_NAME  # noqa: PLC0415
    from pipelines.ensemble import choose_ensemble  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415

    place = out or runs[0]
    with console_listener() as bars, until_interrupted(bars) as listener:
        choice = choose_ensemble(runs, data_root=data, out=place, listener=listener, device=device)
    steps = [step.model_dump(mode="json", exclude_defaults=True) for step in choice.post_processing]
    if as_json:
        print_json(
            {
                "ensemble": str(place / ENSEMBLE_NAME),
                "models": [str(model) for model in choice.models],
                "post_processing": steps,
                "held_out_cases": choice.cases,
                "dice": choice.dice,
                "warnings": list(choice.warnings),
                "compared": [
                    {"runs": list(trial.members), "dice": trial.dice} for trial in choice.trials
                ],
            }
        )
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    names = list(choice.dice)
    rows = [
        [" + ".join(trial.members), *(f"{trial.dice[name]:.4f}" for name in names)]
        for trial in choice.trials
    ]
    chosen = " + ".join(member.name for member in choice.members)
    rows.append([f"{chosen}, post-processed", *(f"{choice.dice[name]:.4f}" for name in names)])
    print_table([f"Dice of {choice.cases} held-out cases", *names], rows)
    for step in steps:
        options = ", ".join(f"{key} {value}" for key, value in step.items() if key != "label")
        typer.echo(f"adopted: {step['label']}: {options}")
    for warning in choice.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{len(choice.models)} models in {place / ENSEMBLE_NAME}. {NOTICE}")
