"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg.models.card import ModelCard

__all__ = ["counted", "print_card", "print_table"]

_WIDEST = 100_000


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header; cells are plain text, never markup."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        # piped output is not folded to the width of a terminal that is not there
        console = Console(width=_WIDEST)
    console.print(table)


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "error"), counted(2, "error")
    ('1 error', '2 errors')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_card(card: ModelCard) -> None:
    """Print a model card for people."""
    inputs, training = card.inputs, card.training
    spacing = "as the image" if inputs.spacing_mm is None else f"{inputs.spacing_mm} mm"
    rows = [
        ["name", f"{card.name} {card.version}"],
        ["about", card.description],
        ["network", f"{card.network.name} {card.network.settings}"],
        [
            "channels",
            ", ".join(f"{channel.name} ({channel.modality})" for channel in inputs.channels),
        ],
        ["input", f"axes {inputs.orientation}, spacing {spacing}, window {inputs.window_ijk}"],
    ]
    slices = card.network.slices
    if slices is not None:
        extents = "as they are" if slices.extents is None else f"resampled to {slices.extents}"
        rows.append(
            [
                "slices",
                f"across {slices.axis}, {slices.neighbours} neighbours on either side, {extents}, "
                f"{slices.batch} at a time",
            ]
        )
    for label in card.scheme().labels:
        concept = label.concept
        coded = f"{concept.scheme} {concept.value} {concept.meaning}" if concept else "no code"
        rows.append([f"label {label.value}", f"{label.name} ({coded})"])
    rows += [
        [
            "trained on",
            f"{training.dataset} ({training.dataset_licence}), {training.training_cases} cases, "
            f"{training.steps} steps in {training.seconds:.0f} s, seed {training.seed}",
        ],
        [
            "validation Dice",
            ", ".join(f"{name} {value:.3f}" for name, value in training.validation_dice.items())
            or "not measured",
        ],
        ["licence", card.licence],
        ["weights sha256", card.weights_sha256],
        ["intended use", card.intended_use],
    ]
    print_table(["", ""], rows)
