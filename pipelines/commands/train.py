"""`medseg train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg import NOTICE
from medseg.errors import ConfigError
from pipelines.commands.console import Json, answering, app, print_json

if TYPE_CHECKING:
    from pipelines.train_result import TrainResult

_FOLDS = 5


@app.command()
@answering
def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file or the name of a shipped one; with --resume also a run folder.",
        ),
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
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Begin with the weights of this model: a folder or a packaged one's name. Same "
            "network, channels and labels.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in the run folder, if one was begun."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the run folder.")
    ] = False,
    cross_validate: Annotated[
        bool,
        typer.Option("--cv", help="Cross-validation: all folds, one after another."),
    ] = False,
    folds: Annotated[
        str | None, typer.Option("--folds", help="Only these folds, such as 0-4 or 0,2.")
    ] = None,
    fold: Annotated[int | None, typer.Option("--fold", min=0, help="Only this fold.")] = None,
    fold_count: Annotated[
        int, typer.Option("--fold-count", min=2, help="Number of folds of the division.")
    ] = _FOLDS,
    as_json: Json = False,
) -> None:
    """Train a network as one YAML file says; the run folder holds the model at every moment."""
    if resume and overwrite:
        raise ConfigError(
            "--resume",
            expected="either --resume or --overwrite",
            found="both",
            remedy="leave one out",
            code="usage",
        )
    if (fold is not None) + (folds is not None) + cross_validate > 1:
        raise ConfigError(
            "--cv",
            expected="one of --cv, --folds and --fold",
            found="several",
            remedy="leave the others out",
            code="usage",
        )
    wanted = str(fold) if fold is not None else folds
    if start is not None and (cross_validate or wanted is not None):
        raise ConfigError(
            "--from",
            expected="a single training",
            found="folds",
            remedy="write training.start_model into the configuration",
            code="usage",
        )
    if cross_validate or wanted is not None:
        _cross_validate(
            config,
            wanted,
            fold_count,
            (data, out, budget, seed, device, resume, overwrite),
            as_json=as_json,
        )
        return
    from pipelines.torchrun import is_first_process  # noqa: PLC0415
    from pipelines.train import train_from_command  # noqa: PLC0415

    result = train_from_command(
        config,
        data=data,
        out=out,
        budget=budget,
        seed=seed,
        device=device,
        overwrite=overwrite,
        resume=resume,
        start=start,
    )
    if is_first_process():
        _print_result(result, as_json=as_json)
    if not result.finished:
        raise typer.Exit(130)
    if not result.steps:
        raise typer.Exit(1)


def _print_result(result: TrainResult, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "run_folder": str(result.run_folder),
                "finished": result.finished,
                "finished_before": result.finished_before,
                "steps": result.steps,
                "steps_left_out": result.skipped,
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
        return
    if result.dice:
        from pipelines.tables import print_table  # noqa: PLC0415

        rows = [[name, f"{value:.4f}"] for name, value in result.dice.items()]
        print_table(["structure", "validation Dice"], [*rows, ["mean", f"{result.mean_dice:.4f}"]])
    if result.finished_before:
        typer.echo(
            f"finished before, nothing was changed: {result.steps} steps in "
            f"{result.training_s:.0f} s, run folder {result.run_folder}. To train for longer, give "
            "a larger --budget or, if steps or epochs end the run, a configuration with more of "
            f"them. {NOTICE}"
        )
        return
    state = "finished" if result.finished else "interrupted, usable; go on with --resume"
    if result.finished and not result.steps:
        state = "untrained, since no step fitted into the budget; --resume takes a larger --budget"
    typer.echo(
        f"{state}: {result.steps} steps in {result.training_s:.0f} s, "
        f"{result.numerics.in_words()}; run folder {result.run_folder}. {NOTICE}"
    )


def _cross_validate(
    config: str,
    wanted: str | None,
    count: int,
    options: tuple[Path | None, Path | None, str | None, int | None, str | None, bool, bool],
    *,
    as_json: bool,
) -> None:
    from pipelines.folds import (  # noqa: PLC0415
        SUMMARY_NAME,
        cross_validate_from_command,
        summarised,
    )
    from pipelines.tables import print_table  # noqa: PLC0415
    from pipelines.torchrun import is_first_process  # noqa: PLC0415

    data, out, budget, seed, device, resume, overwrite = options
    folder, scores = cross_validate_from_command(
        config,
        wanted,
        count=count,
        data=data,
        out=out,
        budget=budget,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
    )
    if not is_first_process():
        return
    means = {f"fold {one.fold}": summarised(one.dice) for one in scores}
    every = {case: dice for one in scores for case, dice in one.dice.items()}
    means["all"] = summarised(every)
    if as_json:
        print_json({"run_folder": str(folder), "held_out_cases": len(every), "dice": means})
        return
    names = list(means["all"])
    print_table(
        ["Dice of held-out cases", *names],
        [[row, *(f"{dice[name]:.4f}" for name in names)] for row, dice in means.items()],
    )
    typer.echo(f"{len(every)} held-out cases; summary in {folder / SUMMARY_NAME}. {NOTICE}")
