"""`medseg predict`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg import NOTICE
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled
from pipelines.commands.console import Json, Overwrite, answering, app, print_json

if TYPE_CHECKING:
    from medseg.inference.memory import MemoryPlan
    from medseg.inference.predictor import Predictor
    from medseg.studies.ledger_rows import CaseRow
    from medseg.studies.runner import Outcome
    from pipelines.batch import Batch
    from pipelines.cluster import Cluster
    from pipelines.infer import Case
    from pipelines.predict import Order


_MOST_LINES = 50
"""Cases that are printed one by one."""


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


class Names(StrEnum):
    """What results are called."""

    AUTO = "auto"
    INPUT = "input"
    ID = "id"


class SegKind(StrEnum):
    """Types of a DICOM SEG."""

    BINARY = "binary"
    LABELMAP = "labelmap"
    FRACTIONAL = "fractional"


class Executor(StrEnum):
    """Where the cases are done."""

    LOCAL = "local"
    RAY = "ray"


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
            metavar="CASE...",
            help="NIfTI, NRRD or MetaImage files, DICOM studies (folders, zips), or folders with "
            "any number of these below them.",
        ),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH, once per channel of a multi-channel model."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            help="Series of a DICOM study: a number of `medseg studies list`, a SeriesInstanceUID, "
            "or a regular expression on the description; CHANNEL=CHOICE for several channels."
        ),
    ] = None,
    by_study: Annotated[
        bool,
        typer.Option(
            "--by-study",
            help="Take the DICOM folders of one study for one case, as for a model of several "
            "channels, instead of each for itself.",
        ),
    ] = False,
    allow_gaps: Annotated[
        bool,
        typer.Option(
            "--allow-gaps", help="Resample slices that are not evenly apart, instead of refusing."
        ),
    ] = False,
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
    seg_type: Annotated[
        SegKind,
        typer.Option(
            help="Type of the DICOM SEG: binary, labelmap (few viewers know it yet), or fractional "
            "(needs --probabilities)."
        ),
    ] = SegKind.BINARY,
    omit_empty_frames: Annotated[
        bool,
        typer.Option(
            "--omit-empty-frames",
            help="Leave out frames without foreground: smaller, but some viewers want them all.",
        ),
    ] = False,
    one_file_per_class: Annotated[
        bool,
        typer.Option(
            "--one-file-per-class",
            help="Also write CASE_label-NAME_mask.nii.gz for every structure.",
        ),
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Also write an HTML report.")] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Also draw a three-plane PNG.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(help="Cases that are read, and that are written, at a time.")
    ] = 1,
    executor: Annotated[
        Executor,
        typer.Option(help="Where the cases are done: on this machine, or on a Ray cluster."),
    ] = Executor.LOCAL,
    ray_address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the cluster's head; auto: that of RAY_ADDRESS, else the cluster "
            "that this machine belongs to."
        ),
    ] = "auto",
    shard: Annotated[
        str | None, typer.Option(help="Do one part of the cases here, such as 2/8.")
    ] = None,
    names: Annotated[
        Names,
        typer.Option(
            help="What results are called: auto (image files by their name, DICOM by a salted "
            "identifier), input (all by their file or folder), or id (all by the identifier)."
        ),
    ] = Names.AUTO,
    ledger: Annotated[
        Path | None,
        typer.Option(help="File of the ledger, if it shall not lie in the folder for the results."),
    ] = None,
    trust_times: Annotated[
        bool,
        typer.Option(
            "--trust-times",
            help="Take images whose files have their size and time still for unchanged.",
        ),
    ] = False,
    log_phi: Annotated[
        bool,
        typer.Option(
            "--log-phi",
            "--log-paths",
            help="Name the input files in messages, reports and the ledger's messages.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the memory plan; segment nothing.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment images; results lie on the original grid and are re-read before success is told.

    For each case: CASE_dseg.nii.gz, CASE_dseg.tsv, CASE_statistics.csv and .json, CASE_report.json
    and, for a DICOM series, CASE_dseg.dcm (DICOM SEG; a fractional one is CASE_probseg.dcm).
    For all: ledger.sqlite, which tells what is done, cohort.csv and index.html. The same command
    goes on where it was stopped.
    """
    from medseg.models.card import load_card  # noqa: PLC0415
    from medseg.models.zoo import find_members  # noqa: PLC0415

    inputs = load_card(find_members(model[0])[0]).inputs  # or refused, before torch is loaded
    from pipelines.batch import open_batch  # noqa: PLC0415
    from pipelines.discovery import find_cases  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.predict import make_order, plans  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415
    from pipelines.results import Wishes  # noqa: PLC0415

    todo = find_cases(
        cases or [],
        channel or [],
        naming=names.value,
        out=out,
        by_study=by_study or len(inputs.channels) > 1,
    )
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
        wishes=Wishes(
            preview,
            report,
            probabilities,
            log_phi,
            rtstruct,
            seg_type.value,
            omit_empty_frames,
            one_file_per_class,
        ),
        roi=roi,
        jobs=jobs,
        shard=shard,
        ledger=ledger,
        trust_times=trust_times,
        series=series or [],
        allow_gaps=allow_gaps,
    )
    if dry_run:
        _print_plans(list(plans(order, [found.case for found in todo])), as_json, log_phi)
        return
    interrupted, stopped = False, None
    # the first Ctrl-C ends the run after the window, or the file, in hand
    with _placed(order, executor, ray_address) as (order, place), open_batch(order, todo) as study:
        with console_listener() as bars, until_interrupted(bars, or_terminated=True) as listener:
            try:
                study.run(place, listener)
            except (KeyboardInterrupt, Cancelled):
                interrupted = True
            except MedsegError as error:
                stopped = error
        _tell(study, order.out, as_json, interrupted, stopped)


@contextmanager
def _placed(
    order: Order, executor: Executor, address: str
) -> Iterator[tuple[Order, Predictor | Sequence[str] | Cluster]]:
    """Where an order is carried out, and the order as it is understood there."""
    if executor is Executor.LOCAL:
        from pipelines.batch import place_of  # noqa: PLC0415

        yield order, place_of(order)
        return
    from pipelines.cluster import check_device, connected  # noqa: PLC0415

    check_device(order.device)
    # the processes of a cluster have another working folder
    models = tuple(folder.absolute() for folder in order.models)
    with connected(address) as cluster:
        yield replace(order, out=order.out.absolute(), models=models), cluster


def _print_plans(outcomes: list[Outcome[Case, MemoryPlan]], as_json: bool, log_paths: bool) -> None:
    from pipelines.redaction import message_of  # noqa: PLC0415

    def told(outcome: Outcome[Case, MemoryPlan]) -> str:
        case, text = outcome.case, outcome.message or ""
        return message_of(text, case.name, case.channels, log_paths=log_paths)

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
                        "message": told(outcome),
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
        typer.echo(f"{outcome.case.name}: {told(outcome)} [{outcome.code}]", err=True)
    if failed:
        raise typer.Exit(1)


def _tell(
    batch: Batch, out: Path, as_json: bool, interrupted: bool, stopped: MedsegError | None
) -> None:
    """Write cohort and index, print how the cases ended, and leave with an honest code."""
    from pipelines.cohort import write_cohort  # noqa: PLC0415

    order = batch.job.order
    rows = batch.rows()
    ended = [row for row in rows if row.state in ("done", "incomplete", "failed")]
    unfinished = [row.name for row in rows if row.state in ("waiting", "running")]
    failed = sum(row.state == "failed" for row in ended)
    incomplete = sum(row.state == "incomplete" for row in ended)
    try:
        if stopped is not None and stopped.code == "output-vanished":
            raise stopped  # nothing is written to what may lie in its place
        write_cohort(batch.ledger, out, order.shard if order.ledger else None)
    except MedsegError as error:
        stopped = stopped or error
    if as_json:
        print_json(
            {
                "cases": [_row_json(batch, row, out) for row in ended],
                "failed": failed,
                "incomplete": incomplete,
                "interrupted": interrupted,
                "not_done": unfinished,
                **(
                    {"error": {"code": stopped.code, "message": str(stopped)}}
                    if stopped is not None
                    else {}
                ),
            }
        )
    else:
        _print_rows(batch, ended, unfinished, out)
    if stopped is not None:
        typer.echo(f"error: {stopped} [{stopped.code}]", err=True)
    if interrupted:
        typer.echo("interrupted; what was finished is kept", err=True)
        raise typer.Exit(130)
    if failed or incomplete or unfinished or stopped is not None:
        raise typer.Exit(1)


def _row_json(batch: Batch, row: CaseRow, out: Path) -> dict[str, Any]:
    content: dict[str, Any] = {
        "case": row.name,
        "state": row.state,
        "seconds": round(row.seconds or 0.0, 3),
        "unchanged": row.turn <= batch.job.since,
    }
    if row.code is not None:
        content |= {"code": row.code, "message": row.message}
    if row.state == "failed":
        return content
    outputs = {output.kind: str(out / output.name) for output in batch.ledger.outputs(row.number)}
    return {
        **content,
        "volumes_ml": batch.ledger.volumes_ml(row.number),
        "files": outputs,
        "memory": {
            "predicted_ram_bytes": row.details.get("predicted_ram_bytes"),
            "measured_ram_bytes": row.details.get("measured_ram_bytes"),
        },
        "notes": row.details.get("notes", []),
    }


def _print_rows(batch: Batch, ended: list[CaseRow], unfinished: list[str], out: Path) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    if len(ended) + len(unfinished) > _MOST_LINES:
        groups: Counter[tuple[str, str]] = Counter((row.state, row.code or "") for row in ended)
        groups["not finished", ""] += len(unfinished)
        lines = [[state, code, str(count)] for (state, code), count in groups.items() if count]
        print_table(["state", "code", "cases"], sorted(lines))
    else:
        lines = []
        for row in ended:
            if row.state == "failed":
                text = f"failed: {row.code}"
            else:
                volumes = batch.ledger.volumes_ml(row.number)
                text = ", ".join(f"{name} {ml:.2f} ml" for name, ml in volumes.items())
            if row.state == "incomplete":
                text += f"; incomplete: {row.code}"
            took = "as before" if row.turn <= batch.job.since else f"{row.seconds:.1f} s"
            lines.append([row.name, text, took])
        lines += [[name, "not finished", ""] for name in unfinished]
        print_table(["case", "result", "time"], lines)
    done = sum(row.state == "done" for row in ended)
    every = len(ended) + len(unfinished)
    typer.echo(f"{done} of {every} cases segmented and verified in {out}. {NOTICE}")
    if any(row.state in ("failed", "incomplete") for row in ended):
        ledger = batch.job.order.ledger
        words = ["medseg", "studies", "status", str(out), "--failed", "--log-phi"]
        words += ["--ledger", str(ledger)] if ledger else []
        typer.echo(f"why, and which images these are: {shlex.join(words)}", err=True)
