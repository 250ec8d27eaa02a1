"""`medseg studies status`, `retry` and `report`: verbs over the ledger of a batch run.

They load no model and read no image, so they answer at once, also while a run is at work.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.errors import ConfigError
from pipelines.commands.console import Json, answering, print_json

if TYPE_CHECKING:
    from medseg.studies.ledger import Ledger

__all__ = ["add_ledger_verbs"]

Out = Annotated[Path, typer.Argument(help="Output folder of `medseg predict`.")]
LedgerFile = Annotated[
    Path | None,
    typer.Option("--ledger", help="File of the ledger, if it is not in that folder."),
]


def add_ledger_verbs(group: typer.Typer) -> None:
    """Add the verbs to a group of commands."""
    group.command()(status)
    group.command()(retry)
    group.command()(report)


@answering
def status(
    out: Out,
    ledger: LedgerFile = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="List the cases that failed or are incomplete.")
    ] = False,
    where: Annotated[
        bool,
        typer.Option(
            "--log-phi",
            help="With --failed: name the images, which the ledger knows; with --reviewed: show "
            "what reviewers noted.",
        ),
    ] = False,
    reviewed: Annotated[
        bool,
        typer.Option("--reviewed", help="List the cases that were accepted, corrected, rejected."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell how far a batch run is: cases by state and review, reasons of failure, processes."""
    from pipelines.tables import print_table  # noqa: PLC0415

    with _opened(out, ledger, read_only=True) as opened:
        content = _status(opened)
        bad = [row for row in opened.rows() if row.state in ("failed", "incomplete")]
        judged = _reviews(opened, notes=where) if reviewed else []
    if as_json:
        cases = [
            {
                "case": row.name,
                "id": row.id,
                "state": row.state,
                "code": row.code,
                "message": row.message,
                "attempts": row.attempts,
                **({"images": row.channels} if where else {}),
            }
            for row in bad
        ]
        print_json(
            {
                **content,
                **({"cases": cases} if failed else {}),
                **({"reviewed": judged} if reviewed else {}),
            }
        )
        return
    print_table(["state", "cases"], [[state, str(n)] for state, n in content["states"].items()])
    if content["codes"]:
        print_table(["reason", "cases"], [[code, str(n)] for code, n in content["codes"].items()])
    if any(count for state, count in content["reviews"].items() if state != "not reviewed"):
        print_table(["review", "cases"], [[one, str(n)] for one, n in content["reviews"].items()])
    if judged:
        _print_reviews(judged, notes=where)
    if failed and bad:
        print_table(
            ["case", "state", "reason", *(["images"] if where else [])],
            [
                [
                    *(row.name, row.state, row.message or row.code or ""),
                    *([", ".join(row.channels.values())] if where else []),
                ]
                for row in bad
            ],
        )
    alive = content["processes"]
    typer.echo(
        f"{alive} process{'' if alive == 1 else 'es'} at work; "
        f"{content['seconds_per_case']:.1f} s per case so far."
        if content["seconds_per_case"] is not None
        else f"{alive} process{'' if alive == 1 else 'es'} at work."
    )


@answering
def retry(
    out: Out,
    ledger: LedgerFile = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Name or identifier of a case, done or not.")
    ] = None,
    code: Annotated[
        list[str] | None, typer.Option(help="Reason of failure, such as out-of-memory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Have cases done again by the next `medseg predict` with the same command.

    Without --case and --code: all that failed or are incomplete, and those at which processes died.
    """
    with _opened(out, ledger, read_only=False) as opened:
        rows = list(opened.rows())
        known = {name for row in rows for name in (row.name, row.id)}
        strangers = sorted(set(case or ()) - known)
        if strangers:
            raise ConfigError(
                "--case",
                expected="names or identifiers of cases in the ledger",
                found=f"also {', '.join(strangers[:5])}",
                remedy="see `medseg studies status --failed`, or cohort.csv",
                code="cases",
            )
        count = opened.retry(names=case or (), codes=code or ())
    if as_json:
        print_json({"sent_back": count})
    else:
        typer.echo(f"{count} case{'' if count == 1 else 's'} sent back; run the command again.")


@answering
def report(out: Out, ledger: LedgerFile = None, as_json: Json = False) -> None:
    """Write cohort.csv and index.html from the ledger as it is now."""
    from pipelines.cohort import write_cohort  # noqa: PLC0415

    with _opened(out, ledger, read_only=True) as opened:
        write_cohort(opened, out)
    if as_json:
        print_json({"files": [str(out / "cohort.csv"), str(out / "index.html")]})
        return
    typer.echo(f"wrote {out / 'cohort.csv'} and {out / 'index.html'}")


def _opened(out: Path, ledger: Path | None, *, read_only: bool) -> Ledger:
    from medseg.studies.ledger import Ledger  # noqa: PLC0415
    from medseg.studies.ledger_file import LEDGER_NAME  # noqa: PLC0415

    return Ledger.open(ledger or out / LEDGER_NAME, read_only=read_only)


def _reviews(ledger: Ledger, *, notes: bool) -> list[dict[str, Any]]:
    """The last word on every case that has one; notes may say anything, so only on request."""
    from medseg.studies.reviews import latest_reviews, result_sums  # noqa: PLC0415

    reviews, sums = latest_reviews(ledger), result_sums(ledger)
    found = []
    for row in ledger.rows():
        review = reviews.get(row.number)
        if review is None or review.state == "open":
            continue
        at = datetime.fromtimestamp(review.at_s, tz=UTC)
        dice = review.mean_dice
        found.append(
            {
                "case": row.name,
                "review": review.state,
                "of_the_present_result": review.result_sha256 == sums.get(row.number, ""),
                "at": at.isoformat(timespec="seconds"),
                "seconds": None if review.seconds is None else round(review.seconds, 1),
                "mean_dice": None if dice is None else round(dice, 4),
                "file": review.file or None,
                **({"note": review.note} if notes else {}),
            }
        )
    return found


def _print_reviews(judged: list[dict[str, Any]], *, notes: bool) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    print_table(
        ["case", "review", "at (UTC)", "Dice", "file", *(["note"] if notes else [])],
        [
            [
                one["case"],
                one["review"]
                if one["of_the_present_result"]
                else f"{one['review']}, of an earlier result",
                one["at"].removesuffix("+00:00"),
                "" if one["mean_dice"] is None else f"{one['mean_dice']:.4f}",
                one["file"] or "",
                *([one["note"]] if notes else []),
            ]
            for one in judged
        ],
    )


def _status(ledger: Ledger) -> dict[str, Any]:
    from medseg.studies.liveness import Watch  # noqa: PLC0415
    from medseg.studies.reviews import review_counts  # noqa: PLC0415

    watch = Watch()
    alive = {
        process
        for token, process, beat in ledger.workers()
        if not watch.is_dead(token, process, beat)
    }
    seconds = [
        row.seconds
        for row in ledger.rows()
        if row.seconds is not None and row.state in ("done", "incomplete")
    ]
    return {
        "states": dict(ledger.counts()),
        "codes": ledger.codes(),
        "reviews": review_counts(ledger),
        "processes": len(alive),
        "seconds_per_case": sum(seconds) / len(seconds) if seconds else None,
    }
