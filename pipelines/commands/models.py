"""`medseg models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.errors import ConfigError
from pipelines.commands.console import Json, Overwrite, answering, models_app, print_json

if TYPE_CHECKING:
    from medseg.models.card import ModelCard


@models_app.command("list")
@answering
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
        print_json(
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
    from pipelines.networks import network_page, network_row  # noqa: PLC0415 - pulls in torch

    if as_json:
        pages = [network_page(name) for name in NETWORKS]
        print_json(
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
        [network_row(name) for name in NETWORKS],
    )


@models_app.command("show")
@answering
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
            print_json({"model": card.model_dump()})
            return
        from pipelines.tables import print_card  # noqa: PLC0415

        print_card(card)
        return
    from pipelines.networks import network_page  # noqa: PLC0415 - pulls in torch

    page = network_page(name, preset=preset, extents=extents, batch=batch)
    if as_json:
        print_json({"network": page.to_dict()})
        return
    from pipelines.tables import print_table  # noqa: PLC0415

    print_table(["", page.title], page.lines())


@models_app.command("export")
@answering
def models_export(
    run: Annotated[str, typer.Argument(help="A run folder, a model folder or a shipped model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to be made, or FILE.zip.")],
    authors: Annotated[
        str | None, typer.Option(help="Who made the model; the card does not say.")
    ] = None,
    copyright_notice: Annotated[
        str | None, typer.Option("--copyright", help="Such as 'Copyright 2026 A. Author'.")
    ] = None,
    licence_file: Annotated[
        Path | None, typer.Option(help="Text of the licence that the card names, for LICENSE.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Hand a model on: a model folder that is a MONAI bundle too, or a zip of it.

    Stock `python -m monai.bundle run --config_file configs/inference.json` runs it where medseg is
    installed. A model whose input MONAI's transforms cannot express is refused.
    """
    from pipelines.bundle import export_model, origin_from_options  # noqa: PLC0415

    origin = origin_from_options(authors, copyright_notice, licence_file)
    card = export_model(run, out, origin=origin, overwrite=overwrite)
    if as_json:
        print_json({"exported": str(out), "model": card.model_dump()})
        return
    typer.echo(f"{card.name} {card.version} in {out}")
    unsaid = [
        option
        for option, value in (("--authors", authors), ("--copyright", copyright_notice))
        if value is None
    ]
    if unsaid:
        typer.echo(
            f"note: the export says 'not stated' where {' and '.join(unsaid)} would tell whose "
            "model it is; add them with --overwrite before handing it on",
            err=True,
        )


@models_app.command("import")
@answering
def models_import(
    source: Annotated[Path, typer.Argument(help="A model folder, or a zip of one.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to be made; default: models/NAME, here."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Replaces the name on the card.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take in a model from elsewhere; nothing of it is executed.

    Card, weights (safetensors) and texts are taken, after their hash, schema and shapes are
    checked. Pickles and configurations with expressions are left where they are.
    """
    from medseg.models.incoming import import_model  # noqa: PLC0415 - pulls in torch

    taken = import_model(source, out, name=name, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "imported": str(taken.folder),
                "left_out": list(taken.left_out),
                "model": taken.card.model_dump(),
            }
        )
        return
    typer.echo(f"{taken.card.name} {taken.card.version} in {taken.folder}")
    if taken.left_out:
        typer.echo(f"left out: {', '.join(taken.left_out)}")
