"""Milliseconds to draw an augmented patch, and a picture of some.

Patches of a made case in memory are drawn with each preset, with one thread, as the processes that
load data do; beside them nnU-Net's own transforms with the same probabilities, on patches cut out
as large as its loader cuts them, where ``nnunetv2`` is installed. Both sides draw as many
patches, and the mean over all counts, since most of the time goes into the few that are turned.

    python -m benchmarks.augmentation [--quick] [--picture FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.core import LabelScheme
from medseg.data.prepared import MemoryCase
from medseg.models.card import Channel, InputSettings
from medseg.training.augmentation import PRESETS, AugmentationSettings
from medseg.training.batch import IMAGE, LABEL
from medseg.training.transforms import ReadCase, plain_tensors, training_transforms
from pipelines.tables import print_table

PICTURE = Path("docs/images/augmentation.png")
EDGES = (64, 128)
MARGIN = 1.4
"""Of the case over the patch, and of what nnU-Net cuts out before it turns."""


@dataclass(frozen=True)
class Row:
    """One way to draw patches of one extent."""

    side: str
    edge: int
    milliseconds: float


def made_case(edge: int) -> MemoryCase:
    """Ellipsoids with texture, two classes."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij"))
    labels = np.zeros((edge,) * 3, np.uint8)
    for value, centre, radii in (
        (1, (0.1, -0.1, 0.0), (0.6, 0.45, 0.5)),
        (2, (-0.2, 0.25, 0.1), (0.25, 0.18, 0.3)),
    ):
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True))
        labels[inside < 1] = value
    stripes = 0.25 * np.sin(18 * grid[0]) * np.sin(14 * grid[1] + 9 * grid[2])
    image = np.array([-0.9, 0.5, 1.4])[labels] + stripes + rng.normal(0, 0.08, labels.shape)
    places = tuple(
        np.argwhere(labels == value)[:: max(1, int((labels == value).sum()) // 10_000)].astype(
            np.int32
        )
        for value in (1, 2)
    )
    return MemoryCase("made", image[None].astype(np.float32), labels, (1.0, 1.0, 1.0), places, {})


def our_draw(
    case: MemoryCase, edge: int, settings: AugmentationSettings
) -> Callable[[int], dict[str, Any]]:
    """Draw one patch by its seed."""
    inputs = InputSettings(
        channels=(Channel(name="made"),), spacing_mm=(1.0, 1.0, 1.0), window_ijk=(edge,) * 3
    )
    transform = training_transforms(
        ReadCase(inputs, LabelScheme.plain("made", {1: "one", 2: "two"})),
        (edge,) * 3,
        samples_per_case=1,
        foreground_share=0.33,
        augmentation=settings,
    )

    def draw(seed: int) -> dict[str, Any]:
        transform.set_random_state(seed=seed)
        drawn: dict[str, Any] = transform({"case": case, "forced": (seed % 3 == 0,)})
        return drawn

    return draw


def nnunet_draw(case: MemoryCase, edge: int) -> Callable[[int], dict[str, Any]] | None:
    """nnU-Net's training transforms, or None if it is not installed."""
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of paths that are not set
            trainer: Any = importlib.import_module(
                "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
            ).nnUNetTrainer
    except ModuleNotFoundError as error:
        print(f"nnU-Net is left out: {error}; pip install nnunetv2", file=sys.stderr)
        return None
    angle = np.deg2rad(30)
    transform = trainer.get_training_transforms(
        (edge,) * 3, (-angle, angle), None, (0, 1, 2), do_dummy_2d_data_aug=False
    )
    image, labels = torch.from_numpy(case.image_cijk), torch.from_numpy(case.labels_ijk)[None]

    def draw(seed: int) -> dict[str, Any]:
        np.random.seed(seed)  # noqa: NPY002 - what it draws from
        torch.manual_seed(seed)
        drawn: dict[str, Any] = transform(image=image.clone(), segmentation=labels.to(torch.int16))
        return drawn

    return draw


def measure(edge: int, draws: int) -> list[Row]:
    """All sides on one made case."""
    case = made_case(round(MARGIN * edge))
    sides: dict[str, Callable[[int], Any] | None] = {
        f"medseg {name}": our_draw(case, edge, settings) for name, settings in PRESETS.items()
    }
    sides["nnU-Net"] = nnunet_draw(case, edge)
    rows = []
    for name, draw in sides.items():
        if draw is None:
            continue
        draw(0)  # what is compiled or looked up once
        began = time.perf_counter()
        for seed in range(draws):
            draw(seed)
        rows.append(Row(name, edge, 1000 * (time.perf_counter() - began) / draws))
    return rows


def draw_picture(path: Path) -> None:
    """The middle slice of a patch, changed by one setting after the other, then by all."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and only for the picture

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - as above

    edge = 64
    case = made_case(round(MARGIN * edge))
    full = PRESETS["nnunet"]
    fields = AugmentationSettings.model_fields
    quiet = full.replaced(
        **{
            key: float(key.endswith("channel_probability"))
            for key in fields
            if key.endswith("_probability")
        }
    )
    columns = {
        "as it is": quiet,
        "rotation, scaling": quiet.replaced(rotation_probability=1.0, scaling_probability=1.0),
        "noise": quiet.replaced(noise_probability=1.0, noise_std=(0.1, 0.1)),
        "blur": quiet.replaced(blur_probability=1.0),
        "brightness": quiet.replaced(brightness_probability=1.0),
        "contrast": quiet.replaced(contrast_probability=1.0),
        "low resolution": quiet.replaced(low_resolution_probability=1.0),
        "gamma": quiet.replaced(gamma_probability=1.0),
        "inverted gamma": quiet.replaced(gamma_inverted_probability=1.0),
        "mirroring": quiet.replaced(flip_probability=0.7),
        "all of nnunet": full,
    }
    rows = 3
    figure, axes = plt.subplots(
        rows, len(columns), figsize=(1.5 * len(columns), 1.6 * rows), dpi=110, layout="constrained"
    )
    for column, (title, settings) in enumerate(columns.items()):
        draw = our_draw(case, edge, settings)
        for row in range(rows):
            patch = draw(3 * row + 3)
            axis = axes[row, column]
            middle = edge // 2
            axis.imshow(patch[IMAGE][0, :, :, middle].numpy(), cmap="gray", vmin=-2, vmax=2.5)
            axis.contour(
                patch[LABEL][0, :, :, middle].numpy(),
                levels=[0.5, 1.5],
                colors="tab:orange",
                linewidths=0.8,
            )
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Parse the arguments, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small patches, few of them")
    parser.add_argument("--draws", type=int, default=60, help="patches of each side")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="draw patches here")
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--no-timing", action="store_true", help="the picture alone")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with plain_tensors():
        rows = []
        if not arguments.no_timing:
            for edge in (24,) if arguments.quick else EDGES:
                rows += measure(edge, 5 if arguments.quick else arguments.draws)
            print_table(
                ["side", "patch", "ms a patch"],
                [[row.side, f"{row.edge}^3", f"{row.milliseconds:.1f}"] for row in rows],
            )
        if not arguments.no_picture:
            draw_picture(arguments.picture)
            print(f"drawn in {arguments.picture}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
