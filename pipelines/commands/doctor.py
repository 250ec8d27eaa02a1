"""`medseg doctor`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg import NOTICE
from medseg.errors import ConfigError
from pipelines.commands.console import Json, answering, app, print_json

if TYPE_CHECKING:
    from pipelines.findings import Finding
    from pipelines.preflight import Verdict

_MOST_LINES = 50
"""Cases, or findings, that are printed one by one."""

_MOST_NAMED = 3


@app.command()
@answering
def doctor(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH...]",
            help="Images that are to be segmented, as for `medseg predict`: files, DICOM studies "
            "(folders, zips, a DICOMDIR), or folders with any number of these below them.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="Also tell whether the images fit this model and which series it would be given; "
            "several times for an ensemble.",
        ),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(help="Series of a DICOM study, as for `medseg predict`; needs -m."),
    ] = None,
    by_study: Annotated[bool, typer.Option("--by-study", help="As for `medseg predict`.")] = False,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="As for `medseg predict`.")
    ] = False,
    headers: Annotated[
        bool,
        typer.Option(
            "--headers",
            help="Look at the headers of DICOM studies alone: faster, but damaged pixels are not "
            "found.",
        ),
    ] = False,
    log_phi: Annotated[
        bool,
        typer.Option("--log-phi", "--log-paths", help="Name cases by their paths."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what this machine can do, and what a prediction would make of images.

    Every finding has a code, which docs/errors.md explains, and a remedy. Nothing is written, and
    nothing of a patient is printed. Ends with 1 if there is a problem.
    """
    from pipelines.doctor import examine  # noqa: PLC0415

    if not paths and (model or series or by_study or allow_gaps or headers):
        raise ConfigError(
            "medseg doctor",
            expected="images to look at",
            found="none",
            remedy="give their file or folder, or leave the other options out",
            code="usage",
        )
    verdicts = _verdicts(
        paths or [], model or [], series or [], by_study, allow_gaps, headers, log_phi
    )
    findings = examine()
    if as_json:
        content: dict[str, object] = {"findings": [finding.to_dict() for finding in findings]}
        if paths:
            counts = Counter(verdict.state for verdict in verdicts)
            content["cases"] = [verdict.to_dict() for verdict in verdicts]
            content["counts"] = {state: counts[state] for state in ("ready", "notes", "refused")}
        print_json(content)
    elif paths:
        _print_verdicts(verdicts, findings)
    else:
        _print_machine(findings)
    bad = any(finding.state == "problem" for finding in findings)
    if bad or any(verdict.state == "refused" for verdict in verdicts):
        raise typer.Exit(1)


def _verdicts(
    paths: Sequence[Path],
    models: Sequence[str],
    series: Sequence[str],
    by_study: bool,
    allow_gaps: bool,
    headers: bool,
    log_phi: bool,
) -> list[Verdict]:
    """What was found of every case, in the order of cases."""
    if not paths:
        return []
    from medseg.models.card import load_card  # noqa: PLC0415
    from medseg.models.zoo import find_members  # noqa: PLC0415
    from medseg.studies.inputs import series_choices  # noqa: PLC0415
    from pipelines.discovery import find_cases  # noqa: PLC0415
    from pipelines.infer import Picking  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.preflight import (  # noqa: PLC0415
        Examination,
        case_verdicts,
        check_there,
        with_shared_series,
    )
    from pipelines.progress import console_listener  # noqa: PLC0415

    cards = tuple(load_card(folder) for name in models for folder in find_members(name))
    if series and not cards:
        raise ConfigError(
            "--series",
            expected="a model whose channels are given series",
            found="none",
            remedy="add -m MODEL",
            code="usage",
        )
    check_there(paths)
    channels = cards[0].inputs.channels if cards else []
    picking = Picking(tuple(sorted(series_choices(series, channels).items())), allow_gaps)
    cases = find_cases(paths, [], by_study=by_study or len(channels) > 1)
    examination = Examination(cards, picking, headers, log_phi)
    with console_listener() as bars, until_interrupted(bars) as listener:
        return with_shared_series(list(case_verdicts(cases, examination, listener)))


def _print_machine(findings: Sequence[Finding]) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    typer.echo(f"This machine: {_health(findings)}")
    print_table(
        ["", "topic", "found", "code", "remedy"],
        [[one.state, one.topic, one.text, one.code, one.remedy] for one in findings],
    )
    typer.echo(NOTICE)


def _health(findings: Sequence[Finding]) -> str:
    from pipelines.tables import counted  # noqa: PLC0415

    counts = Counter(finding.state for finding in findings)
    told = [counted(counts[state], state) for state in ("problem", "note") if counts[state]]
    return ", ".join(told) or "all is well"


def _print_verdicts(verdicts: Sequence[Verdict], machine: Sequence[Finding]) -> None:
    from pipelines.tables import counted, print_table  # noqa: PLC0415

    states = Counter(verdict.state for verdict in verdicts)
    typer.echo(
        f"{counted(len(verdicts), 'case')}: {states['ready']} ready, {states['notes']} ready with "
        f"notes, {states['refused']} would be refused. This machine: {_health(machine)}"
    )
    if len(verdicts) <= _MOST_LINES:
        print_table(
            ["case", "kind", "volumes", "voxels", "spacing mm", "given", "state"],
            [_row(verdict) for verdict in verdicts],
        )
    problems = [one for one in machine if one.state == "problem"]
    rows = [["this machine", one.topic, *_told(one)] for one in problems]
    each = [
        [verdict.name, finding.topic, *_told(finding)]
        for verdict in verdicts
        for finding in verdict.findings
    ]
    if len(rows) + len(each) <= _MOST_LINES:
        if rows or each:
            print_table(["case", "about", "", "code", "found", "remedy"], [*rows, *each])
    else:
        groups: dict[tuple[str, str], list[list[str]]] = defaultdict(list)
        for row in [*rows, *each]:
            groups[row[2], row[3]].append(row)
        print_table(
            ["times", "", "code", "cases", "found, for example", "remedy"],
            [
                [str(len(group)), state, code, _few(group), *group[0][4:]]
                for (state, code), group in sorted(groups.items())
            ],
        )
        typer.echo("--json tells of every case")
    typer.echo(NOTICE)


def _few(group: Sequence[Sequence[str]]) -> str:
    """The first cases of a group of findings, by name."""
    names = list(dict.fromkeys(row[0] for row in group))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _told(finding: Finding) -> list[str]:
    return [finding.state, finding.code, finding.text, finding.remedy]


def _row(verdict: Verdict) -> list[str]:
    shape, spacing = verdict.shape_ijk, verdict.spacing_mm
    return [
        verdict.name,
        verdict.kind,
        "" if verdict.volumes is None else str(verdict.volumes),
        "" if shape is None else " x ".join(map(str, shape)),
        "" if spacing is None else " x ".join(f"{step:.4g}" for step in spacing),
        ", ".join(f"{channel}: {number}" for channel, number in verdict.given),
        verdict.state,
    ]
