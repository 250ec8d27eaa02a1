"""`medseg data`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg import NOTICE
from medseg.errors import ConfigError
from pipelines.commands.console import Json, answering, data_app, print_json

if TYPE_CHECKING:
    from medseg.data.findings import DatasetReport

_ROOT = typer.Argument(metavar="DIR", help="Dataset folder, or a CSV or YAML list of paths.")
_LAYOUT = typer.Option(
    help="auto, msd, nnunet, synapse, transunet, acdc, brats, list or dicom; auto looks."
)
_SCHEME = typer.Option(help="Label scheme, see `medseg data schemes`, or a file with one.")


@data_app.command("check")
@answering
def data_check(
    folder: Annotated[Path, _ROOT],
    layout: Annotated[str, _LAYOUT] = "auto",
    scheme: Annotated[str | None, _SCHEME] = None,
    split: Annotated[
        str | None,
        typer.Option(help="A published split, 5-fold, or a split file; default: the dataset's."),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, help="Which fold, counted from 0.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Cases read at a time; default: one per core.")
    ] = None,
    show_folders: Annotated[
        bool,
        typer.Option(
            "--show-folders",
            help="Name the folders of DICOM cases, which may name persons.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Open every case of a dataset and list what is wrong or odd.

    Exit code 1 if there are errors, 0 if there are only hints.
    """
    from medseg.data.findings import check_dataset  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415

    with console_listener() as progress, until_interrupted(progress) as listener:
        report = check_dataset(
            folder,
            layout=layout,
            scheme=scheme,
            split=split,
            fold=fold,
            jobs=jobs,
            listener=listener,
        )
    folders = _folders(folder, report) if show_folders else {}
    if as_json:
        print_json(_report(report) | ({"folders": folders} if show_folders else {}))
    else:
        _print_report(report)
        if folders:
            from pipelines.tables import print_table  # noqa: PLC0415

            print_table(["case", "folder"], [list(row) for row in folders.items()])
    if report.errors:
        raise typer.Exit(1)


@data_app.command("phantom")
@answering
def data_phantom(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="synapse, transunet, acdc, brats, brats2021, brats2024, msd or nnunet.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to be made.")],
    cases: Annotated[int, typer.Option(min=1, help="How many patients.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other patients.")] = 0,
    size: Annotated[str, typer.Option(help="small (for tests) or standard.")] = "standard",
    as_json: Json = False,
) -> None:
    """Write a made dataset in the layout of a public one: no patients, no licence to ask for."""
    from medseg.data.phantoms import write_phantom  # noqa: PLC0415
    from pipelines.interrupt import until_interrupted  # noqa: PLC0415
    from pipelines.progress import console_listener  # noqa: PLC0415

    with console_listener() as progress, until_interrupted(progress) as listener:
        write_phantom(kind, out, cases=cases, seed=seed, size=size, listener=listener)
    if as_json:
        print_json({"phantom": {"kind": kind, "cases": cases, "seed": seed, "folder": str(out)}})
    else:
        typer.echo(f"{cases} made patients ({kind}) in {out}")


@data_app.command("split")
@answering
def data_split(
    folder: Annotated[Path, _ROOT],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to be written.")],
    layout: Annotated[str, _LAYOUT] = "auto",
    scheme: Annotated[str | None, _SCHEME] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other folds.")] = 0,
    as_json: Json = False,
) -> None:
    """Write five folds, by patient, as a split file for `data.split` and for nnU-Net."""
    from medseg.data.layouts import list_cases  # noqa: PLC0415
    from medseg.data.splits import draw_folds, save_folds  # noqa: PLC0415

    if out.exists():
        raise ConfigError(
            str(out),
            expected="a name that is still free",
            found="an existing file",
            remedy="runs may share it: move it away or choose another name",
            code="output-exists",
        )
    listing = list_cases(folder, layout, scheme)
    listing.check_complete()
    held_out = listing.parts.get("test", ())
    folds = draw_folds(listing.cases, seed, str(folder), held_out=held_out)
    save_folds(out, folds)
    if as_json:
        counts = [len(fold.validation) for fold in folds]
        print_json({"folds": {"file": str(out), "seed": seed, "validation_cases": counts}})
        return
    sizes = ", ".join(str(len(fold.validation)) for fold in folds)
    typer.echo(f"five folds of {sizes} validation cases in {out}")


@data_app.command("layouts")
@answering
def data_layouts(as_json: Json = False) -> None:
    """List the layouts that can be read, published splits, and the phantoms that can be made."""
    from medseg.data.layouts import LAYOUTS  # noqa: PLC0415
    from medseg.data.phantoms import KINDS  # noqa: PLC0415
    from medseg.data.splits import PUBLISHED  # noqa: PLC0415

    tables = {
        title: {name: entry.about for name, entry in entries.items()}
        for title, entries in (("layout", LAYOUTS), ("split", PUBLISHED), ("phantom", KINDS))
    }
    if as_json:
        print_json({f"{title}s": entries for title, entries in tables.items()})
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    for title, entries in tables.items():
        print_table([title, "about"], [[name, about] for name, about in entries.items()])


@data_app.command("schemes")
@answering
def data_schemes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one as YAML for a configuration.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the label schemes that are known by name, or print one."""
    from medseg.data.schemes import SCHEMES, find_scheme  # noqa: PLC0415

    if name is not None:
        scheme = find_scheme(name)
        if as_json:
            print_json({"labels": scheme.to_dict()})
        else:
            import yaml  # noqa: PLC0415

            content = {"labels": scheme.to_dict()}
            typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)
        return
    if as_json:
        print_json({"schemes": {key: scheme.to_dict() for key, scheme in SCHEMES.items()}})
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    rows = [
        [key, ", ".join(f"{label.value} {label.name}" for label in scheme.labels)]
        for key, scheme in SCHEMES.items()
    ]
    print_table(["scheme", "labels"], rows)


def _folders(root: Path, report: DatasetReport) -> dict[str, str]:
    """Case to its folder, of datasets whose cases are not called by their files' names."""
    from medseg.data.layouts.dicom import case_folders  # noqa: PLC0415

    if report.listing.layout != "dicom":
        return {}
    unusable = {problem.case for problem in report.listing.problems}
    named = {name: path for name, path in case_folders(root).items() if name in unusable}
    named |= {case.id: case.images[0] for case in report.listing.cases}
    return {
        name: path.relative_to(root).as_posix() if path != root else path.name
        for name, path in named.items()
    }


def _report(report: DatasetReport) -> dict[str, Any]:
    listing, split = report.listing, report.split
    return {
        "layout": listing.layout,
        "channels": list(listing.channels),
        "labels": listing.scheme.to_dict(),
        "split": None
        if split is None
        else {
            "source": split.source,
            "train": list(split.train),
            "validation": list(split.validation),
            "test": list(split.test),
        },
        "cases": [
            {
                "case": fact.id,
                "shape_ijk": list(fact.shape_ijk),
                "spacing_mm": list(fact.spacing_mm),
                "orientation": fact.orientation,
                "percentiles": [list(row) for row in fact.percentiles],
                "volumes_ml": {
                    label.name: fact.voxels.get(label.value, 0) * fact.voxel_ml
                    for label in listing.scheme.labels
                },
            }
            for fact in report.facts
        ],
        "findings": [
            {
                "severity": "error" if finding.is_error else "hint",
                "case": finding.case or None,
                "code": finding.code,
                "what": finding.what,
                "remedy": finding.remedy,
            }
            for finding in report.findings
        ],
    }


def _print_report(report: DatasetReport) -> None:
    from pipelines.tables import counted, print_table  # noqa: PLC0415

    listing, split = report.listing, report.split
    if report.findings:
        rows = [
            [
                "error" if finding.is_error else "hint",
                finding.case or "-",
                finding.code,
                finding.what,
                finding.remedy,
            ]
            for finding in report.findings
        ]
        print_table(["", "case", "code", "what", "what to do"], rows)
    total = len(listing.cases) + len(listing.problems)
    typer.echo(
        f"layout {listing.layout}, channels {', '.join(listing.channels)}, "
        f"labels {listing.scheme.name}: {len(report.facts)} of {total} cases can be used"
    )
    if split is not None:
        usable = {fact.id for fact in report.facts}
        parts = [
            _part(names, usable, use)
            for names, use in (
                (split.train, "train"),
                (split.validation, "validate"),
                (split.test, "test"),
            )
            if names or use != "test"
        ]
        typer.echo(f"{', '.join(parts)}: {split.source}")
    hints = len(report.findings) - report.errors
    typer.echo(f"{counted(report.errors, 'error')}, {counted(hints, 'hint')}. {NOTICE}")


def _part(names: Sequence[str], usable: Collection[str], use: str) -> str:
    """How many cases a part of the split has, and how many of them cannot be used."""
    broken = sum(name not in usable for name in names)
    return f"{len(names)} to {use}" + (f" ({broken} with errors)" if broken else "")
