"""`medseg plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg import NOTICE
from pipelines.commands.console import Device, Json, Overwrite, answering, app, print_json


@app.command()
@answering
def plan(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Dataset folder, or a CSV or YAML list of paths."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="neunet, revunet, transdae, macmd or qtseg. Default: revunet on a CPU, "
            "neunet on a GPU.",
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option(help="What a training step may take, such as 8GB or 500MB.")
    ] = "8GB",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="YAML file; default: MODEL_DATASET.yaml here."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="auto, msd, nnunet, synapse, transunet, acdc, brats, list or dicom; auto looks."
        ),
    ] = "auto",
    scheme: Annotated[
        str | None, typer.Option(help="Label scheme, see `medseg data schemes`, or a file.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="A published split, 5-fold, or a split file; default: the dataset's."),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, help="Which fold, counted from 0.")] = 0,
    device: Device = "auto",
    spacing: Annotated[
        str | None, typer.Option(help="Target spacing in mm, such as 1x1x2.5.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Patches of a training step.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cases read at a time; default: one per core.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a dataset and write a complete, commented configuration for `medseg train`."""
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.plan import parse_spacing, plan_dataset  # noqa: PLC0415
    from pipelines.predict import parse_bytes  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415

    memory_bytes = parse_bytes(memory, "--memory")
    spacing_mm = None if spacing is None else parse_spacing(spacing)
    with console_listener() as bars, until_interrupted(bars) as listener:
        planned = plan_dataset(
            folder,
            model,
            memory_bytes=memory_bytes,
            out=out,
            layout=layout,
            scheme=scheme,
            split=split,
            fold=fold,
            device=device,
            spacing_mm=spacing_mm,
            batch=batch,
            jobs=jobs,
            overwrite=overwrite,
            listener=listener,
        )
    if as_json:
        print_json({"plan": planned.to_dict()})
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    print_table(["", "plan", "why"], planned.rows())
    for note in planned.plan.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"written: {planned.path} and {planned.fingerprint_path.name}; "
        f"next: medseg train {planned.path}. {NOTICE}"
    )
