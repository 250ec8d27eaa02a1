"""`medseg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg import NOTICE
from pipelines.commands.console import Device, Json, answering, app, print_json


@app.command()
@answering
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path(
        "medseg-demo"
    ),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Segment two real MR cases that ship with medseg, one of them as DICOM."""
    from pipelines.demo import run_demo  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415

    with console_listener() as listener:
        cases = run_demo(out, device=device, listener=listener)
    if as_json:
        print_json(
            {
                "cases": [
                    {
                        "case": case.result.name,
                        "source": case.source,
                        "dice": case.dice,
                        "volumes_ml": case.result.volumes_ml,
                        "files": {kind: str(path) for kind, path in case.result.files.items()},
                    }
                    for case in cases
                ]
            }
        )
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    rows = [
        [
            case.result.name,
            case.source,
            name,
            f"{case.result.volumes_ml[name]:.2f}",
            f"{dice:.3f}",
        ]
        for case in cases
        for name, dice in case.dice.items()
    ]
    print_table(["case", "read from", "structure", "ml", "Dice to expert"], rows)
    for case in cases:
        for kind, path in case.result.files.items():
            typer.echo(f"{kind:>10}  {path}")
    typer.echo(f"Sample data: see {out / 'ATTRIBUTION.md'}. {NOTICE}")
