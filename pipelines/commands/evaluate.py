"""`medseg evaluate` and `medseg compare`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg import NOTICE
from medseg.errors import ConfigError
from pipelines.commands.console import Device, Json, Overwrite, answering, app, print_json

if TYPE_CHECKING:
    from medseg.metrics.settings import EvaluationSettings
    from medseg.metrics.summary import MetricSummary
    from pipelines.compare import Comparison
    from pipelines.evaluate import ImageOf
    from pipelines.evaluation_files import Evaluation

Draws = Annotated[int, typer.Option(min=100, help="Bootstrap draws of the 95 % intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")]


@app.command()
@answering
def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS", help="Folder of predicted label maps, or one; or a run folder."
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Argument(
            metavar="REFERENCES",
            help="Folder of expert label maps, or one; not with a run folder.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for tables and the page.")],
    part: Annotated[
        str | None,
        typer.Option(
            help="With a run folder: validation, test or train. Default: test if there is one."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With a run folder: where its dataset lies.")
    ] = None,
    device: Device = "auto",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Name or file of a label scheme, dataset.json or dseg.tsv; "
            "default: beside REFERENCES."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Take labels and regions of a model.")
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            help="labels, model, brats or one of its years, or NAME=LABEL,LABEL (repeatable)."
        ),
    ] = None,
    tolerance_mm: Annotated[
        list[str] | None,
        typer.Option(help="Of the surface Dice; NAME=MM for one structure (repeatable). 2 mm."),
    ] = None,
    surface: Annotated[
        str, typer.Option(help="Convention of distances: elements, monai or medpy.")
    ] = "elements",
    both_empty: Annotated[
        str, typer.Option(help="Structure in neither map: leave-out or perfect.")
    ] = "leave-out",
    one_empty: Annotated[
        str, typer.Option(help="Distances of a structure in one map: worst or leave-out.")
    ] = "worst",
    missing: Annotated[
        str, typer.Option(help="Case without a usable prediction: worst or leave-out.")
    ] = "worst",
    ignore_label: Annotated[
        str | None, typer.Option(help="Label (name or value) whose voxels count in nothing.")
    ] = None,
    lesions: Annotated[
        bool, typer.Option("--lesions/--no-lesions", help="Count connected pieces as lesions.")
    ] = True,
    lesion_connectivity: Annotated[
        int, typer.Option(help="Neighbours of a voxel: 6, 18 or 26.")
    ] = 26,
    lesion_iou: Annotated[
        float, typer.Option(min=0, max=1, help="Least overlap (IoU) of a matched lesion.")
    ] = 0.1,
    protocol: Annotated[
        str | None,
        typer.Option(help="Published evaluation to follow, in voxels: transunet or neunet."),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(help="Only these: NAME,NAME, a file of names, or split.json:PART."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images, drawn behind the worst cases.")
    ] = None,
    grid_tolerance_mm: Annotated[
        float, typer.Option(min=0, help="How far corners of two grids may lie apart.")
    ] = 0.01,
    draws: Draws = 2000,
    seed: Seed = 0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: one, or as many as cores if it takes long."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score predicted label maps against references: overlap, surfaces, volumes, lesions.

    Files are paired by name without endings such as _dseg or _gt. A run folder alone stands for the
    cases that it held out: its model segments them first; of a folder of folds, each case the fold
    that held it out. Exit code 1 if a case failed.
    """
    from medseg.metrics.summary import Bootstrap  # noqa: PLC0415
    from pipelines.evaluate import (  # noqa: PLC0415
        EvaluationOrder,
        check_free,
        check_images,
        problems,
        write_evaluation,
    )
    from pipelines.evaluate import evaluate as run  # noqa: PLC0415
    from pipelines.label_sources import case_list  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415
    from pipelines.tables import counted  # noqa: PLC0415

    _check_sides(predictions, references, labels or model, images, part, data)
    check_free(out, overwrite)
    check_images(images)
    overall, by_structure = _tolerances(tolerance_mm or [])
    settings = _settings(
        tolerance_mm=overall,
        tolerances_mm=by_structure,
        surface=surface,
        both_empty=both_empty,
        one_empty=one_empty,
        missing=missing,
        lesions=lesions,
        lesion_connectivity=lesion_connectivity,
        lesion_iou=lesion_iou,
        grid_tolerance_mm=grid_tolerance_mm,
        protocol=protocol,
    )
    order = EvaluationOrder(
        predictions,
        references or predictions,
        settings,
        labels=labels,
        model=model,
        regions=tuple(regions or ()),
        ignore_label=ignore_label,
        only=None if cases is None else tuple(case_list(cases)),
        bootstrap=Bootstrap(draws, seed),
        jobs=jobs,
    )
    shown: Path | ImageOf | None = images
    judged = None
    with console_listener() as listener:
        if references is None:
            from pipelines.evaluate_run import evaluate_run  # noqa: PLC0415 - torch

            judged = evaluate_run(
                order, out, listener, part=part, data=data, device=device, overwrite=overwrite
            )
            evaluation, pairing, scheme = judged.evaluation, judged.pairing, judged.scheme
            shown = judged.cases.image
        else:
            evaluation, pairing, scheme = run(order, listener)
    files = write_evaluation(evaluation, pairing, scheme, out, images=shown, overwrite=overwrite)
    if as_json:
        print_json(evaluation.summary() | {"files": {k: str(path) for k, path in files.items()}})
    else:
        _print_evaluation(evaluation)
        # failed cases are told on stderr
        for sentence in problems(evaluation, failures=False):
            typer.echo(sentence)
        scored = counted(len(evaluation.scores), "case")
        if judged is not None:
            scored += f" of the part {judged.cases.part}"
        typer.echo(f"{scored}; tables and page in {out}. {NOTICE}")
    for each in evaluation.failed:
        typer.echo(f"error: {each.message} [{each.code}]", err=True)
    if evaluation.failed:
        raise typer.Exit(1)


def _check_sides(
    predictions: Path,
    references: Path | None,
    labels: object,
    images: Path | None,
    part: str | None,
    data: Path | None,
) -> None:
    """Two folders, or a run by itself; options of the one do not go with the other."""
    if references is not None:
        superfluous = [name for name, given in (("--part", part), ("--data", data)) if given]
        if not superfluous:
            return
        expected, found = "a run folder alone with --part and --data", "REFERENCES too"
    else:
        # asked here, before torch is loaded
        if not any((predictions / name).is_file() for name in ("config.yaml", "folds.json")):
            raise ConfigError(
                "medseg evaluate",
                expected="PREDICTIONS and REFERENCES, or the folder of a training run or of folds",
                found="one path that is no run folder",
                remedy="add the folder of the experts' label maps",
                code="usage",
            )
        superfluous = [
            name for name, given in (("--labels or --model", labels), ("--images", images)) if given
        ]
        if not superfluous:
            return
        expected, found = "a run folder alone, which has labels and images", superfluous[0]
    raise ConfigError(
        "medseg evaluate",
        expected=expected,
        found=found,
        remedy="leave one of both out",
        code="usage",
    )


@app.command()
@answering
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="EVALUATION_A", help="Folder of `medseg evaluate`.")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="EVALUATION_B", help="Another one, of the same cases.")
    ],
    metrics: Annotated[
        str | None, typer.Option(help="Only these figures, such as dice,hd95_mm.")
    ] = None,
    draws: Draws = 2000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare two evaluations case by case: mean difference with interval, Wilcoxon test."""
    from medseg.metrics.summary import Bootstrap  # noqa: PLC0415
    from pipelines.compare import compare_evaluations  # noqa: PLC0415

    wanted = None if metrics is None else [name.strip() for name in metrics.split(",")]
    comparison = compare_evaluations(first, second, Bootstrap(draws, seed), wanted)
    if as_json:
        print_json(comparison.to_dict())
        return
    _print_comparison(comparison)


def _settings(**content: object) -> EvaluationSettings:
    from pydantic import ValidationError  # noqa: PLC0415

    from medseg.metrics.settings import EvaluationSettings  # noqa: PLC0415

    try:
        return EvaluationSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "--" + str(first["loc"][0]).replace("_", "-"),
            expected=str(first["msg"]).removeprefix("Input should be "),
            found=str(first["input"]),
            remedy="see `medseg evaluate --help`",
            code="config-value",
        ) from error


def _tolerances(texts: list[str]) -> tuple[float, dict[str, float]]:
    """``2`` or ``NAME=1.5``, each any number of times."""
    overall, by_structure = 2.0, {}
    for text in texts:
        name, equals, figure = text.rpartition("=")
        try:
            value = float(figure)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0) or (equals and not name):
            raise ConfigError(
                "--tolerance-mm",
                expected="millimetres, or NAME=MILLIMETRES",
                found=repr(text),
                remedy="write for example --tolerance-mm 2 --tolerance-mm liver=3",
                code="config-value",
            )
        if equals:
            by_structure[name] = value
        else:
            overall = value
    return overall, by_structure


def _print_evaluation(evaluation: Evaluation) -> None:
    from pipelines.tables import print_table  # noqa: PLC0415

    found = {(entry.structure, entry.metric): entry for entry in evaluation.summaries()}
    shown = [metric.name for metric in evaluation.metrics if metric.name not in ("hd_mm", "iou")]
    names = [structure.name for structure in evaluation.structures]
    rows = [
        [name or "mean", *(_cell(found[name, metric]) for metric in shown)]
        for name in (*names, None)
    ]
    print_table(["structure", *shown], rows)


def _cell(entry: MetricSummary) -> str:
    if not math.isfinite(entry.mean):
        return "-"
    if entry.interval is None:
        return _figure(entry.mean)
    return (
        f"{_figure(entry.mean)} ({_figure(entry.interval.low)} to {_figure(entry.interval.high)})"
    )


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _print_comparison(comparison: Comparison) -> None:
    from pipelines.tables import counted, print_table  # noqa: PLC0415

    rows = []
    for each in comparison.differences:
        if not each.cases:
            continue
        ends = each.interval
        interval = "-" if ends is None else f"{ends.low:+.4g} to {ends.high:+.4g}"
        rows.append(
            [
                each.structure,
                each.metric,
                str(each.cases),
                f"{each.mean_first:.4g}",
                f"{each.mean_second:.4g}",
                f"{each.difference:+.4g}",
                interval,
                f"{each.second_better} / {each.second_worse}",
                f"{each.p_value:.3g}",
                f"{each.p_holm:.3g}",
            ]
        )
    header = ["structure", "metric", "cases", "A", "B", "B - A", "95 %", "B better / worse"]
    print_table([*header, "p", "p (Holm)"], rows)
    for which, names in (("A", comparison.only_first), ("B", comparison.only_second)):
        if names:
            typer.echo(f"only in {which}, not compared: {', '.join(names)}")
    typer.echo(
        f"{counted(len(comparison.shared), 'case')} in both. Wilcoxon signed-rank test, "
        "two-sided; volume errors by their size."
    )
