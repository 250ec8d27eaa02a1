"""What the dock says: of a model, of a plan, of a run that goes on."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medseg_napari._controller import RunState
    from medseg_napari._models import FoundModel

__all__ = [
    "dice_in_words",
    "going_on",
    "ml_in_words",
    "model_in_words",
    "plan_in_words",
    "time_in_words",
]


def model_in_words(model: FoundModel) -> str:
    """Labels with their colours, training data and licence, as rich text."""
    card = model.card
    labels = ", ".join(
        f'<span style="color: rgb{label.rgb}">&#9632;</span>&nbsp;{escape(label.name)}'
        for label in card.scheme().labels
    )
    cases = card.training.training_cases
    return (
        f"{labels}<br>trained on {cases} case{'' if cases == 1 else 's'} of "
        f"{escape(card.training.dataset)}; {escape(card.licence)}"
    )


def plan_in_words(state: RunState) -> str:
    """What a run would take; empty while that is not known."""
    if state.plan is None:
        return "Planning..." if state.phase == "loading" and state.kind == "plan" else ""
    from medseg.inference.memory import in_words  # noqa: PLC0415 - loaded where there is a plan

    plan = state.plan
    vram = f", {in_words(plan.vram_bytes)} on the GPU" if plan.vram_bytes else ""
    windows = f"{plan.windows} window{'' if plan.windows == 1 else 's'}"
    return (
        f"{in_words(plan.ram_bytes)} of memory at the peak{vram}; {windows}, "
        f"about {time_in_words(max(1.0, plan.seconds))}"
    )


def going_on(state: RunState) -> str:
    """How far a run is."""
    if state.phase == "loading":
        return "Loading and planning..."
    if state.phase == "stopping":
        return "Stopping..."
    left = state.seconds_left
    rest = "" if left is None else f", about {time_in_words(left)} left"
    if not state.total:
        return "Running..."
    return f"{state.stage}: {state.done} of {state.total}{rest}"


def time_in_words(seconds: float) -> str:
    """Seconds for people.

    >>> time_in_words(7.4), time_in_words(200)
    ('7 s', '3 min 20 s')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def ml_in_words(ml: float, *, signed: bool = False) -> str:
    """A volume with two decimals; what these would show as nothing, with its first two digits.

    A single voxel of a fine grid is less than a hundredth of a millilitre, and is still something.

    >>> ml_in_words(12.3456), ml_in_words(0.000412), ml_in_words(0.0), ml_in_words(2, signed=True)
    ('12.35', '0.00041', '0.00', '+2.00')
    """
    decimals = 2
    if 0 < abs(ml) < 0.01:
        decimals = min(9, 1 - math.floor(math.log10(abs(ml))))
    return f"{ml:{'+' if signed else ''}.{decimals}f}"


def dice_in_words(dice: float) -> str:
    """A Dice with three decimals, or as many as it takes to tell it from 1.

    >>> dice_in_words(0.87651), dice_in_words(0.99998), dice_in_words(1.0)
    ('0.877', '0.99998', '1.000')
    """
    decimals = 3
    while decimals < 9 and dice < 1 and round(dice, decimals) == 1:
        decimals += 1
    return f"{dice:.{decimals}f}"
