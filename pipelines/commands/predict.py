"""`medseg predict`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg import NOTICE
from medseg.errors import ConfigError
from medseg.events import Cancelled
from pipelines.commands.console import Json, Overwrite, answering, app, print_json

if TYPE_CHECKING:
    from medseg.inference.memory import MemoryPlan
    from medseg.studies.runner import Outcome
    from pipelines.infer import Case, CaseResult


class Precision(StrEnum):
    """Arithmetic inside the network."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Blending(StrEnum):
    """Weight of the voxels of a window."""

    GAUSSIAN = "gaussian"
    CONSTANT = "constant"


class Skip(StrEnum):
    """Windows that are not computed."""

    CONSTANT = "constant"
    BODY = "body"
    NONE = "none"


@app.command()
@answering
def predict(
    model: Annotated[
        list[str],
        typer.Option(
            "-m",
            "--model",
            help="A shipped model's name, or a model or run folder (./NAME if both exist). Give it "
            "several times for an ensemble.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for the results; not needed with --dry-run."),
    ] = None,
    cases: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CASE...", help="NIfTI, NRRD or MetaImage files, or folders of a DICOM series."
        ),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH, once per channel of a multi-channel model."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:N or mps; several such as cuda:0,cuda:1 share the cases."
        ),
    ] = "auto",
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic inside the network; auto takes the fastest that agrees."),
    ] = Precision.AUTO,
    overlap: Annotated[
        float | None, typer.Option(help="Window overlap, 0 to below 1; default: the model's.")
    ] = None,
    blending: Annotated[
        Blending, typer.Option(help="Weight of the voxels of a window.")
    ] = Blending.GAUSSIAN,
    batch: Annotated[int, typer.Option(help="Windows per forward call.")] = 1,
    tta: Annotated[
        str,
        typer.Option(
            help="Mirroring: none; model (the axes training mirrored); or axes such as ij."
        ),
    ] = "none",
    skip: Annotated[Skip, typer.Option(help="Windows that are not computed.")] = Skip.CONSTANT,
    coarser: Annotated[
        float, typer.Option(help="Predict at so many times the model's spacing: faster, rougher.")
    ] = 1.0,
    find_region: Annotated[
        bool,
        typer.Option("--find-region", help="Search roughly first, then look only where it found."),
    ] = False,
    roi: Annotated[
        str | None, typer.Option(help="Voxels to look at, such as 10:30,0:40,5:25 or :,:,10:20.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Limit for this process's memory, such as 2GB.")
    ] = None,
    max_vram: Annotated[
        str | None, typer.Option(help="Limit for the memory on the GPU, such as 6GB.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    post: Annotated[
        list[str] | None,
        typer.Option(
            help="Post-processing such as liver:keep_largest,min_mm3=50 or *:fill_holes, or none; "
            "default: the model's own."
        ),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write the entropy and rank doubtful slices.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write an HDF5 file of probabilities.")
    ] = False,
    rtstruct: Annotated[
        bool,
        typer.Option("--rtstruct", help="Also write contours (RTSTRUCT) for a DICOM series."),
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Also write an HTML report.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Also draw a three-plane PNG.")
    ] = False,
    log_paths: Annotated[
        bool, typer.Option("--log-paths", help="Name the input files in the JSON report.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the memory plan; segment nothing.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment images; results lie on the original grid and are re-read before success is told.

    For each case: CASE_dseg.nii.gz, CASE_dseg.tsv, CASE_statistics.csv and .json, CASE_report.json
    and, for a DICOM series, CASE_dseg.dcm (DICOM SEG).
    """
    from pipelines.infer import make_cases  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.predict import make_order, plans, predictions  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415
    from pipelines.results import Wishes  # noqa: PLC0415

    todo = make_cases(cases or [], channel or [])
    if out is None and not dry_run:
        raise ConfigError(
            "--out",
            expected="a folder for the results",
            found="none",
            remedy="add -o FOLDER, or --dry-run to see the memory plan alone",
            code="usage",
        )
    order = make_order(
        model,
        {
            "precision": precision.value,
            "batch": batch,
            "overlap": overlap,
            "blending": blending.value,
            "mirror": tta,
            "skip": skip.value,
            "coarser": coarser,
            "find_region": find_region,
            "uncertainty": uncertainty,
            "max_ram_bytes": max_memory,
            "max_vram_bytes": max_vram,
            "post_processing": post,
            "threads": threads,
        },
        device=device,
        out=out or Path(),
        overwrite=overwrite,
        wishes=Wishes(preview, report, probabilities, log_paths, rtstruct),
        roi=roi,
    )
    if dry_run:
        _print_plans(list(plans(order, todo)), as_json)
        return
    outcomes: list[Outcome[Case, CaseResult]] = []
    interrupted = False
    # the first Ctrl-C ends the run after the window, or the file, in hand
    with console_listener() as bars, until_interrupted(bars) as listener:
        try:
            for outcome in predictions(order, todo, listener):
                outcomes.append(outcome)
                if outcome.result is not None:
                    for note in outcome.result.notes:
                        listener.noted(f"{outcome.case.name}: {note}")
                else:
                    listener.noted(f"{outcome.case.name}: {outcome.message} [{outcome.code}]")
        except (KeyboardInterrupt, Cancelled):
            interrupted = True
    failed = sum(not outcome.done for outcome in outcomes)
    ended = {outcome.case.name for outcome in outcomes}
    unfinished = [case.name for case in todo if case.name not in ended]
    if as_json:
        print_json(
            {
                "cases": [_outcome_json(outcome) for outcome in outcomes],
                "failed": failed,
                "interrupted": interrupted,
                "not_done": unfinished,
            }
        )
    else:
        _print_outcomes(outcomes, unfinished, order.out)
    if interrupted:
        typer.echo("interrupted; what was finished is kept", err=True)
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _print_plans(outcomes: list[Outcome[Case, MemoryPlan]], as_json: bool) -> None:
    failed = [outcome for outcome in outcomes if outcome.result is None]
    if as_json:
        print_json(
            {
                "cases": [
                    {"case": outcome.case.name, "plan": outcome.result.to_dict()}
                    if outcome.result is not None
                    else {
                        "case": outcome.case.name,
                        "code": outcome.code,
                        "message": outcome.message,
                    }
                    for outcome in outcomes
                ],
                "failed": len(failed),
            }
        )
    else:
        from pipelines.predict import plan_rows  # noqa: PLC0415
        from pipelines.tables import print_table  # noqa: PLC0415

        for outcome in outcomes:
            plan = outcome.result
            if plan is None:
                continue
            print_table([outcome.case.name, "in", "held at the peak"], plan_rows(plan))
            typer.echo(
                f"{plan.windows} window{'' if plan.windows == 1 else 's'} "
                f"along axis {'ijk'[plan.sweep.axis]}, "
                f"{plan.sweep.batch} at a time, summed in "
                f"{'float16' if plan.sweep.half else 'float32'} on {plan.sweep.place}"
                + (f", in {plan.sweep.strips} strips" if plan.sweep.strips > 1 else "")
                + f"; about {plan.seconds:.0f} s"
            )
    for outcome in failed:
        typer.echo(f"{outcome.case.name}: {outcome.message} [{outcome.code}]", err=True)
    if failed:
        raise typer.Exit(1)


def _outcome_json(outcome: Outcome[Case, CaseResult]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "case": outcome.case.name,
        "state": "done" if outcome.done else "failed",
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.result is None:
        return {**content, "code": outcome.code, "message": outcome.message}
    result = outcome.result
    return {
        **content,
        "volumes_ml": result.volumes_ml,
        "files": {kind: str(path) for kind, path in result.files.items()},
        "memory": {
            "predicted_ram_bytes": result.predicted_ram_bytes,
            "measured_ram_bytes": result.peak_ram_bytes,
        },
        "notes": list(result.notes),
    }


def _print_outcomes(
    outcomes: list[Outcome[Case, CaseResult]], unfinished: list[str], out: Path
) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    rows = []
    for outcome in outcomes:
        if outcome.result is None:
            text = f"failed: {outcome.code}"
        else:
            text = ", ".join(f"{n} {ml:.2f} ml" for n, ml in outcome.result.volumes_ml.items())
        rows.append([outcome.case.name, text, f"{outcome.seconds:.1f} s"])
    rows += [[name, "not finished", ""] for name in unfinished]
    print_table(["case", "result", "time"], rows)
    done = sum(outcome.done for outcome in outcomes)
    typer.echo(f"{done} of {len(rows)} cases segmented and verified in {out}. {NOTICE}")
