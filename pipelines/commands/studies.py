"""`medseg studies list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.errors import MedsegError
from pipelines.commands.console import Json, answering, print_json, studies_app

if TYPE_CHECKING:
    from medseg.io.dicom_study import Stack, Study

_HEADINGS = [
    "no",
    "series",
    "modality",
    "description",
    "volume",
    "images",
    "matrix",
    "spacing mm",
    "thick mm",
    "orientation",
    "contrast",
    "state",
]


@studies_app.command("list")
@answering
def list_series(
    path: Annotated[Path, typer.Argument(help="A study: a folder, a zip or a DICOMDIR.")],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Also tell which series this model would be given."),
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Count slices that are missing as no problem.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the series of a DICOM study, from headers alone.

    The number in front is what `--series` takes. Nothing of the patient is shown: words of a
    description that are also in the patient's attributes are left out.
    """
    from medseg.io.dicom_study import read_study  # noqa: PLC0415 - pulls in pydicom

    study = read_study(path, allow_gaps=allow_gaps)
    chosen = _chosen(study, model) if model is not None else None
    if as_json:
        print_json(
            {
                "series": [
                    {**_as_json(stack), "study": number}
                    for number, stack in zip(_study_numbers(study), study.stacks, strict=True)
                ],
                "studies": len({stack.study_uid for stack in study.stacks}),
                "other_objects": study.others,
                "unreadable_files": len(study.unreadable),
                **({} if chosen is None else {"chosen": chosen}),
            }
        )
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    of_study = _study_numbers(study)
    if len(set(of_study)) == 1:
        print_table(_HEADINGS, [_row(stack) for stack in study.stacks])
    else:
        rows = [
            [str(number), *_row(one)] for number, one in zip(of_study, study.stacks, strict=True)
        ]
        print_table(["study", *_HEADINGS], rows)
        typer.echo(
            f"{len(set(of_study))} studies lie here; numbers for --series are those of the table "
            "of one case alone"
        )
    if study.others:
        listed = ", ".join(f"{count} {kind}" for kind, count in study.others.items())
        typer.echo(f"beside the images: {listed}")
    for error in study.unreadable:
        typer.echo(f"cannot be read: {error.found} [{error.code}]")
    for stack in study.stacks:
        if stack.problem is not None:
            typer.echo(f"{stack.number}: {_in_words(stack.problem)}")
    if chosen is not None:
        for channel, number in chosen.items():
            typer.echo(f"{channel}: series number {number} of this list")


def _study_numbers(study: Study) -> list[int]:
    """For every stack the number of its study, counted from 1 in the order of the table."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(stack.study_uid, len(numbers) + 1) for stack in study.stacks]


def _chosen(study: Study, model: str) -> dict[str, int]:
    """Channel of a model to the number of the stack that it would be given."""
    from medseg.io.series_choice import match_series  # noqa: PLC0415
    from medseg.models.card import load_card  # noqa: PLC0415
    from medseg.models.zoo import find_model  # noqa: PLC0415
    from medseg.studies.inputs import series_rules  # noqa: PLC0415

    channels = load_card(find_model(model)).inputs.channels
    found = match_series(study, series_rules(channels))
    return {channel: stack.number for channel, stack in found.items()}


def _row(stack: Stack) -> list[str]:
    spacing, thickness = stack.spacing_mm, stack.thickness_mm
    state = "localizer" if stack.is_localizer else "ok"
    return [
        str(stack.number),
        "" if stack.series_number is None else str(stack.series_number),
        stack.modality,
        stack.description,
        ", ".join(stack.split.words),
        str(stack.images),
        "" if stack.matrix is None else f"{stack.matrix[0]} x {stack.matrix[1]}",
        "" if spacing is None else " x ".join(f"{step:.4g}" for step in spacing),
        "" if thickness is None else f"{thickness:g}",
        stack.orientation,
        "yes" if stack.contrast else "",
        state if stack.problem is None else stack.problem.code,
    ]


def _as_json(stack: Stack) -> dict[str, Any]:
    problem: MedsegError | None = stack.problem
    return {
        "number": stack.number,
        "series_number": stack.series_number,
        "modality": stack.modality,
        "description": stack.description,
        "body_part": stack.body_part,
        "volume": list(stack.split.words),
        "images": stack.images,
        "matrix": None if stack.matrix is None else list(stack.matrix),
        "spacing_mm": None if stack.spacing_mm is None else list(stack.spacing_mm),
        "thickness_mm": stack.thickness_mm,
        "orientation": stack.orientation,
        "contrast": stack.contrast,
        "b_value": stack.b_value,
        "echo_ms": stack.echo_ms,
        "localizer": stack.is_localizer,
        "problem": None if problem is None else problem.code,
        "problem_text": None if problem is None else _in_words(problem),
    }


def _in_words(problem: MedsegError) -> str:
    """A problem without the path, which the user has just given."""
    return f"expected {problem.expected}, found {problem.found}; {problem.remedy}"
