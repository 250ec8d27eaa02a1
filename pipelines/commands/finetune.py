"""`medseg finetune`."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg import NOTICE
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled
from pipelines.commands.console import Device, Json, Overwrite, answering, app, print_json

if TYPE_CHECKING:
    from medseg.events import Listener
    from pipelines.finetune import FineTuned

_NICE = 5


@app.command()
@answering
def finetune(
    model: Annotated[
        str, typer.Argument(help="A model folder, a run folder, or the name of a packaged model.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of corrected cases: nnU-Net's or MSD layout.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder of the new model.")],
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock time to train, such as 90s, 10m or 2h.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to train, where there is no budget.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the new model; default: that of the old, with -tuned.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the CPU; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    events: Annotated[
        bool,
        typer.Option(
            "--events",
            help="For programs that start this one: a JSON object on each line of stdout tells "
            "how far it is; standard input that is closed stops it as Ctrl-C does; low priority.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model on with corrected cases, and compare old and new on cases held out."""
    if budget is not None and steps is not None:
        raise ConfigError(
            "--budget",
            expected="either --budget or --steps",
            found="both",
            remedy="leave one out",
            code="usage",
        )
    wishes: dict[str, Any] = {
        "budget": budget,
        "steps": steps,
        "name": name,
        "threads": threads,
        "seed": seed,
        "device": device,
        "overwrite": overwrite,
    }
    if events:
        _with_events(model, data, out, wishes)
        return
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415 - loads nothing heavy
    from pipelines.progress import console_listener  # noqa: PLC0415

    with console_listener() as bars, until_interrupted(bars) as listener:
        tuned = _finetune(model, data, out, listener, wishes)
    if as_json:
        print_json(_content(tuned))
    else:
        _print(tuned, model)
    if not tuned.result.finished:
        raise typer.Exit(130)


def _finetune(
    model: str, data: Path, out: Path, listener: Listener, wishes: dict[str, Any]
) -> FineTuned:
    import torch  # noqa: PLC0415 - takes seconds

    from medseg.training.schedule import parse_duration  # noqa: PLC0415
    from pipelines.finetune import finetune as run  # noqa: PLC0415

    budget, threads = wishes.pop("budget"), wishes["threads"]
    if threads is not None:
        torch.set_num_threads(threads)
    budget_s = None if budget is None else parse_duration(budget)
    return run(model, data, out, listener, budget_s=budget_s, **wishes)


def _with_events(model: str, data: Path, out: Path, wishes: dict[str, Any]) -> None:
    """Tell the program that started this one everything, how it ended too."""
    from pipelines.event_lines import EventLines, call_when_closed  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415

    with suppress(OSError, AttributeError):
        os.nice(_NICE)
    lines = EventLines()
    try:
        with until_interrupted(lines, or_terminated=True) as listener:
            call_when_closed(listener.interrupt)
            tuned = _finetune(model, data, out, listener, wishes)
    except MedsegError as error:
        lines.write("failed", code=error.code, message=str(error))
        raise typer.Exit(1) from error
    except (Cancelled, KeyboardInterrupt) as interrupt:
        lines.write("stopped")
        raise typer.Exit(130) from interrupt
    except MemoryError as error:
        lines.write("failed", code="out-of-memory", message="memory ran out")
        raise typer.Exit(1) from error
    except Exception as error:  # its text could hold what a file holds
        words = f"unexpected {type(error).__name__}; please report it"
        lines.write("failed", code="unexpected", message=words)
        raise typer.Exit(1) from error
    lines.write("finished", **_content(tuned))
    if not tuned.result.finished:
        raise typer.Exit(130)


def _content(tuned: FineTuned) -> dict[str, Any]:
    comparison = tuned.comparison
    return {
        "run_folder": str(tuned.result.run_folder),
        "model": tuned.card.name,
        "finished": tuned.result.finished,
        "steps": tuned.result.steps,
        "training_s": tuned.result.training_s,
        "held_out": list(tuned.held_out),
        "note": tuned.note,
        "dice": None
        if comparison is None
        else [
            {"structure": name, "before": _finite(before), "after": _finite(after)}
            for name, before, after in comparison.rows()
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(tuned: FineTuned, model: str) -> None:
    if tuned.comparison is not None:
        from pipelines.tables import print_table  # noqa: PLC0415

        rows = [
            [name, f"{before:.4f}", f"{after:.4f}"]
            for name, before, after in tuned.comparison.rows()
        ]
        print_table(["Dice on cases held out", model, tuned.card.name], rows)
    if tuned.note:
        typer.echo(f"note: {tuned.note}")
    result = tuned.result
    state = "finished" if result.finished else "interrupted, usable"
    typer.echo(
        f"{state}: {result.steps} steps in {result.training_s:.0f} s, new model {tuned.card.name} "
        f"in {result.run_folder}; {model} is what it was. {NOTICE}"
    )
