"""Does bfloat16 with the channels-last layout pay on this machine?

Each shipped configuration is trained three times for the same wall-clock time: in float32 with the
contiguous layout, in bfloat16 with channels-last, and in what ``auto`` measures to be fastest
(its measuring is part of its time). Steps per second say what the numerics are worth, the
validation Dice at the end what those steps are worth.

    python -m benchmarks.train_precision --data FOLDER --budget 2m
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.errors import MedsegError
from medseg.training.schedule import parse_duration
from medseg.training.settings import RunSettings, load_settings
from pipelines.shipped import find_config
from pipelines.tables import print_table
from pipelines.train import train

CONFIGS = ("reversible_hippocampus", "neunet_hippocampus")
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32 contiguous": {"precision": "fp32", "channels_last": False},
    "bf16 channels last": {"precision": "bf16", "channels_last": True},
    "auto": {"precision": "auto", "channels_last": "auto"},
}


@dataclass(frozen=True)
class Row:
    """One training."""

    config: str
    variant: str
    numerics: str
    steps: int
    steps_per_second: float
    mean_dice: float
    dice: dict[str, float]


def measure(config: str, variant: str, data: Path, budget_s: float) -> Row:
    """Train once and throw the run away."""
    settings = load_settings(find_config(config))
    chosen = settings.training.model_copy(update=VARIANTS[variant])
    changed: RunSettings = settings.model_copy(update={"training": chosen})
    with tempfile.TemporaryDirectory() as folder:
        result = train(changed, run_folder=Path(folder) / "run", data_root=data, budget_s=budget_s)
    return Row(
        config=config,
        variant=variant,
        numerics=result.numerics.in_words(),
        steps=result.steps,
        steps_per_second=result.steps / result.training_s,
        mean_dice=result.mean_dice,
        dice=result.dice,
    )


def main() -> None:
    """Parse the arguments, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/Task04_Hippocampus"))
    parser.add_argument("--budget", default="2m", help="for each training")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    arguments = parser.parse_args()
    try:
        budget_s = parse_duration(arguments.budget)
        rows = [
            measure(config, variant, arguments.data, budget_s)
            for config in arguments.configs
            for variant in VARIANTS
        ]
    except MedsegError as error:
        parser.error(str(error))
    baseline = {row.config: row for row in rows if row.variant == "fp32 contiguous"}
    print_table(
        ["configuration", "variant", "numerics", "steps", "steps/s", "ratio", "Dice"],
        [
            [
                row.config,
                row.variant,
                row.numerics,
                str(row.steps),
                f"{row.steps_per_second:.2f}",
                f"{row.steps_per_second / baseline[row.config].steps_per_second:.2f}",
                f"{row.mean_dice:.3f}",
            ]
            for row in rows
        ],
    )
    print(f"{arguments.budget} each, {torch.get_num_threads()} threads; ratio to fp32 contiguous")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
