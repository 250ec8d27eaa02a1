"""`medseg models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.errors import ConfigError
from pipelines.commands.console import Json, answering, models_app, print_json

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
    from pipelines.networks import network_page  # noqa: PLC0415 - pulls in torch

    pages = [network_page(name) for name in NETWORKS]
    if as_json:
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
        [page.row() for page in pages],
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
