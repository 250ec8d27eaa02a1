"""What ten minutes of training on this machine come to on the hippocampus cases.

    python -m benchmarks.train_hippocampus --data FOLDER [--budget 10m] [CONFIG ...]

The run folders are kept under ``--out``. Validation Dice is over all validation cases, which take
no part in training and choose nothing: the weights judged are the last ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medseg.errors import MedsegError
from pipelines.tables import print_table
from pipelines.train import TrainResult, train_from_command

CONFIGS = ("reversible_hippocampus", "neunet_hippocampus")


def main() -> None:
    """Parse the arguments, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/Task04_Hippocampus"))
    parser.add_argument("--budget", default="10m", help="for each training")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--overwrite", action="store_true", help="replace earlier runs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    arguments = parser.parse_args()
    results: dict[str, TrainResult] = {}
    try:
        for config in arguments.configs:
            results[config] = train_from_command(
                config,
                data=arguments.data,
                out=arguments.out / Path(config).stem,
                budget=arguments.budget,
                overwrite=arguments.overwrite,
            )
    except MedsegError as error:
        parser.error(str(error))
    print_table(
        [
            "configuration",
            "weights",
            "numerics",
            "steps",
            "training s",
            "structure",
            "validation Dice",
        ],
        [
            [
                config if name == "mean" else "",
                f"{result.weights / 1e6:.2f} M" if name == "mean" else "",
                result.numerics.in_words() if name == "mean" else "",
                str(result.steps) if name == "mean" else "",
                f"{result.training_s:.0f}" if name == "mean" else "",
                name,
                f"{value:.4f}",
            ]
            for config, result in results.items()
            for name, value in {"mean": result.mean_dice, **result.dice}.items()
        ],
    )
    if arguments.json:
        content = {
            config: {
                "mean_dice": result.mean_dice,
                "dice": result.dice,
                "steps": result.steps,
                "training_s": result.training_s,
                "reading_s": result.reading_s,
                "finished": result.finished,
            }
            for config, result in results.items()
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
