"""`medseg doctor`."""

from __future__ import annotations

import typer

from medseg import NOTICE
from pipelines.commands.console import Json, answering, app, print_json


@app.command()
@answering
def doctor(as_json: Json = False) -> None:
    """Tell what this machine can do, and what is wrong with the installation."""
    from pipelines.doctor import examine  # noqa: PLC0415

    findings = examine()
    if as_json:
        print_json(
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
