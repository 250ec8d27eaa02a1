"""The command line. Results go to stdout, logs and progress to stderr.

Exit codes: 0 all well, 1 some cases failed, 2 wrong usage, 130 interrupted. Heavy packages are
imported inside the commands that need them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from medseg import NOTICE, __version__
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled

if TYPE_CHECKING:
    from medseg.inference.memory import MemoryPlan
    from medseg.models.card import ModelCard
    from medseg.studies.runner import Outcome
    from pipelines.infer import Case, CaseResult

__all__ = ["app", "main"]

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="medseg",
    help=f"Medical image segmentation on the original grid, verified on the way back. {NOTICE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(
    name="models", help="Trained models and the networks that can be trained.", no_args_is_help=True
)
app.add_typer(models_app)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]


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


def main() -> None:
    """Entry point of the console script."""
    app()


def _stop(error: MedsegError, as_json: bool) -> NoReturn:
    if as_json:
        _print_json({"error": {"code": error.code, "message": str(error)}})
    typer.echo(f"error: {error} [{error.code}]", err=True)
    wrong_usage = isinstance(error, ConfigError) or error.code == "output-unwritable"
    raise typer.Exit(2 if wrong_usage else 1) from error


def _answering(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors of the library into one sentence and the agreed exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except MedsegError as error:
            _stop(error, bool(kwargs.get("as_json")))
        except (KeyboardInterrupt, Cancelled) as interrupt:
            typer.echo("interrupted; what was finished is kept", err=True)
            raise typer.Exit(130) from interrupt

    return run


def _print_json(content: dict[str, Any]) -> None:
    whole = _without_nan({"notice": NOTICE, "medseg": __version__, **content})
    typer.echo(json.dumps(whole, indent=2, allow_nan=False))


def _without_nan(content: Any) -> Any:  # noqa: ANN401 - plain JSON types
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


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


@app.command()
@_answering
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
        _print_json(
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


@app.command()
@_answering
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
        wishes=Wishes(preview, report, probabilities, log_paths),
        roi=roi,
    )
    if dry_run:
        _print_plans(list(plans(order, todo)), as_json)
        return
    outcomes: list[Outcome[Case, CaseResult]] = []
    interrupted = False
    with console_listener() as listener:
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
        _print_json(
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
        _print_json(
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


@app.command()
@_answering
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
        _print_json(
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


@models_app.command("list")
@_answering
def models_list(
    folder: Annotated[
        Path | None, typer.Argument(help="Look for model and run folders here too.")
    ] = None,
    networks: Annotated[
        bool, typer.Option("--networks", help="List the networks that can be trained instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the shipped models and those in FOLDER."""
    from medseg.models.zoo import cards, find_models, shipped_models  # noqa: PLC0415

    if networks:
        _list_networks(as_json)
        return

    found, broken = cards(shipped_models())
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(
                str(folder),
                expected="a folder that holds model folders",
                found="no such folder",
                remedy="leave it out to list the shipped models",
                code="folder-missing",
            )
        more, broken_more = cards(find_models(folder))
        found |= {str(folder / name): card for name, card in more.items()}
        broken += broken_more
    if as_json:
        _print_json(
            {
                "models": {name: card.model_dump() for name, card in found.items()},
                "broken": [str(error) for error in broken],
            }
        )
    else:
        _print_models(found)
        typer.echo("The networks that can be trained: medseg models list --networks")
    for error in broken:
        typer.echo(f"error: {error} [{error.code}]", err=True)
    if broken:
        raise typer.Exit(1)


def _print_models(found: dict[str, ModelCard]) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    rows = []
    for name, card in found.items():
        dice = card.training.validation_dice
        mean = f"{sum(dice.values()) / len(dice):.3f}" if dice else "-"
        labels = ", ".join(label.name for label in card.scheme().labels)
        rows.append([name, card.version, card.network.name, labels, mean, card.licence])
    print_table(["model", "version", "network", "labels", "validation Dice", "licence"], rows)


def _list_networks(as_json: bool) -> None:
    from medseg.models.table import NETWORKS  # noqa: PLC0415
    from pipelines.networks import network_page  # noqa: PLC0415 - pulls in torch

    pages = [network_page(name) for name in NETWORKS]
    if as_json:
        _print_json(
            {
                "networks": {
                    page.name: {
                        **page.to_dict(),
                        "presets": {
                            preset: settings.model_dump(mode="json")
                            for preset, settings in NETWORKS[page.name].presets.items()
                        },
                    }
                    for page in pages
                }
            }
        )
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    print_table(
        ["network", "axes", "weights", "GMAC", "at input", "evidence", "presets", "about"],
        [page.row() for page in pages],
    )


@models_app.command("show")
@_answering
def models_show(
    name: Annotated[
        str, typer.Argument(help="A shipped model, a model or run folder, or a network.")
    ],
    preset: Annotated[
        str | None, typer.Option(help="Size of the network; `base` is the published one.")
    ] = None,
    extents: Annotated[
        str | None,
        typer.Option(help="Input of the network, such as 128x128x96; default: the published one."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one step of the network.")] = 1,
    as_json: Json = False,
) -> None:
    """Show a trained model's card, or what a network is and costs.

    For a model: input, labels, origin, licence. For a network: weights, multiplications, legal
    extents, memory for prediction and training at an input, what its code is based on.
    """
    from medseg.models.card import load_card  # noqa: PLC0415
    from medseg.models.zoo import find_model, shipped_models  # noqa: PLC0415

    if name in shipped_models() or Path(name).is_dir():
        for option, value in (("--preset", preset), ("--extents", extents)):
            if value is not None:
                raise ConfigError(
                    option,
                    expected="the name of a network before it",
                    found=f"the trained model {name!r}",
                    remedy="leave it out, or see `medseg models list --networks`",
                    code="usage",
                )
        card = load_card(find_model(name))
        if as_json:
            _print_json({"model": card.model_dump()})
            return
        from pipelines.tables import print_card  # noqa: PLC0415

        print_card(card)
        return
    from pipelines.networks import network_page  # noqa: PLC0415 - pulls in torch

    page = network_page(name, preset=preset, extents=extents, batch=batch)
    if as_json:
        _print_json({"network": page.to_dict()})
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    print_table(["", page.title], page.lines())


@app.command()
@_answering
def doctor(as_json: Json = False) -> None:
    """Tell what this machine can do, and what is wrong with the installation."""
    from pipelines.doctor import examine  # noqa: PLC0415

    findings = examine()
    if as_json:
        _print_json(
            {
                "findings": [
                    {"topic": finding.topic, "state": finding.state, "text": finding.text}
                    for finding in findings
                ]
            }
        )
    else:
        from pipelines.tables import print_table  # noqa: PLC0415

        print_table(
            ["", "topic", "found"],
            [[finding.state, finding.topic, finding.text] for finding in findings],
        )
        typer.echo(NOTICE)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
