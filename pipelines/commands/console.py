"""What all commands share: the application, common options, JSON output, errors and exit codes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from medseg import NOTICE, __version__
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled

__all__ = [
    "Device",
    "Json",
    "Overwrite",
    "answering",
    "app",
    "data_app",
    "models_app",
    "print_json",
    "studies_app",
]

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
data_app = typer.Typer(
    name="data", help="Datasets: check one, make a phantom of one.", no_args_is_help=True
)
app.add_typer(data_app)
studies_app = typer.Typer(
    name="studies", help="Many cases: what lies in folders, how far a run is.", no_args_is_help=True
)
app.add_typer(studies_app)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")]


# what was asked for cannot be, although it is the machine or its disk that says so
_ASKED = {"output-exists", "output-unwritable", "plan-memory"}
# work that was begun and failed, although settings made it fail
_FAILED = {"loss-not-finite"}


def stop(error: MedsegError, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": {"code": error.code, "message": str(error)}})
    typer.echo(f"error: {error} [{error.code}]", err=True)
    wrong_usage = isinstance(error, ConfigError) or error.code in _ASKED
    raise typer.Exit(2 if wrong_usage and error.code not in _FAILED else 1) from error


def answering(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors of the library into one sentence and the agreed exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except MedsegError as error:
            stop(error, bool(kwargs.get("as_json")))
        except (KeyboardInterrupt, Cancelled) as interrupt:
            typer.echo("interrupted; what was finished is kept", err=True)
            raise typer.Exit(130) from interrupt

    return run


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object, with what medseg is in front; what is not a number becomes null."""
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
