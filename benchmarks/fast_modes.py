"""What each fast mode costs in Dice and brings in time, with a shipped model on real cases.

The cases are those that the model's training kept for validation: experts labelled them, no weight
was fitted to them, and they are not test cases. Every mode segments every case; modes take turns
within a case, and the least time of the repeats counts. The Dice of a mode is set against that of
the full mode on the same cases.

These images are hardly larger than the model's window. So there is a made one as well: the first
two of the cases inside an ellipsoid of noise with air round it, larger in every direction. It shows
what searching first and skipping windows save; its Dice is against the full mode's own labels.

    python -m benchmarks.fast_modes [--data FOLDER] [--cases N] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from medseg.core import Grid, LabelMap, Volume, axis_turn, turn
from medseg.data.preparation import ModelImage
from medseg.errors import MedsegError
from medseg.events import Silent
from medseg.inference.engine import Outputs, StreamingEngine, Sweep, smallest_axis
from medseg.inference.predictor import Predictor
from medseg.inference.settings import PredictionSettings
from medseg.inference.sweep import Group
from medseg.io.reading import read_image, read_labels
from medseg.metrics.overlap import dice_by_label
from medseg.models.zoo import find_model
from medseg.ops.winners import Decision
from pipelines.tables import print_table

MODEL = "reversible_hippocampus"
DATA = Path("data/Task04_Hippocampus")
FULL = "full: overlap 0.5, fp32"
HALF_SUMS = "sums in float16"

CHANGES: Mapping[str, Mapping[str, object]] = {
    FULL: {},
    "overlap 0.25": {"overlap": 0.25},
    "coarser 1.25": {"coarser": 1.25},
    "coarser 1.5": {"coarser": 1.5},
    "coarser 2": {"coarser": 2.0},
    "find region": {"find_region": True},
    "skip constant": {"skip": "constant"},
    "skip body": {"skip": "body"},
    "bf16": {"precision": "bf16"},
    "tta ijk": {"mirror": ("i", "j", "k")},
    HALF_SUMS: {},
}
MODES: Mapping[str, PredictionSettings] = {
    name: PredictionSettings.model_validate(
        {"precision": "fp32", "overlap": 0.5, "skip": "none", **changed}
    )
    for name, changed in CHANGES.items()
}
"""The full mode, and others that differ from it in one thing each."""

FIELD = (160, 192, 160)
"""Extents of the made image, 1 mm."""


@dataclass(frozen=True)
class Case:
    """An image and what is known of it."""

    name: str
    volume: Volume
    expert: LabelMap


@dataclass(frozen=True)
class Row:
    """One mode over all cases: seconds, windows computed, Dice per structure.

    ``refused`` says what could not be done; ``notes`` is what a prediction said of itself that the
    full mode's did not.
    """

    mode: str
    seconds: float
    windows: int
    dice: dict[str, float]
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def mean_dice(self) -> float:
        """Over structures."""
        return statistics.fmean(self.dice.values()) if self.dice else math.nan


@dataclass(frozen=True)
class Answer:
    """One prediction."""

    labels: LabelMap
    seconds: float
    windows: int
    notes: tuple[str, ...] = ()


def held_back(data: Path, count: int) -> list[Case]:
    """Cases that the model's training kept for validation and that the folder has labels for.

    Raises:
        SystemExit: If there are none; it says what is missing.
    """
    folder = find_model(MODEL)
    split = json.loads((folder / "run" / "split.json").read_text())
    names = [f"{name}.nii.gz" for name in split["validation"] if name not in split["train"]]
    there = [name for name in names if (data / "labelsTr" / name).is_file()]
    if not there:
        sys.exit(
            f"left out: {data} holds none of the {len(names)} cases that the training of {MODEL} "
            "kept for validation; put the Decathlon's Task04_Hippocampus there or name it in --data"
        )
    scheme = Predictor.load(folder, MODES[FULL], device="cpu").card.scheme()
    return [
        Case(
            name.removesuffix(".nii.gz"),
            read_image(data / "imagesTr" / name).volume,
            read_labels(data / "labelsTr" / name, scheme),
        )
        for name in there[:count]
    ]


def made_case(cases: Sequence[Case], extents: tuple[int, int, int] = FIELD) -> Case:
    """The first two cases in a larger field: an ellipsoid of noise, and air outside of it.

    The noise has the mean and the deviation of the first case, and air is its least value.
    """
    axes = [np.linspace(-1, 1, extent) for extent in extents]
    places = np.meshgrid(*axes, indexing="ij")
    inside = sum(place**2 for place in places) < 0.9
    first = cases[0].volume.data_cijk[0]
    noise = np.random.default_rng(0).normal(first.mean(), first.std() / 4, extents)
    field = np.where(inside, noise, first.min()).astype(np.float32)
    labels = np.zeros(extents, dtype=np.uint8)
    for number, case in enumerate(cases[:2]):
        turned = axis_turn(case.volume.grid, "RAS")
        image = turned.turn_array(case.volume.data_cijk[0])
        expert = turned.turn_array(case.expert.data_ijk)
        # one on either side of the middle plane
        centre = (extents[0] * (1 + 2 * number) // 4, extents[1] // 2, extents[2] // 2)
        low = [middle - have // 2 for middle, have in zip(centre, image.shape, strict=True)]
        cut = tuple(slice(a, a + have) for a, have in zip(low, image.shape, strict=True))
        field[cut] = image - image.mean() + first.mean()
        labels[cut] = expert
    grid = Grid(extents, np.eye(4))
    return Case("made", Volume(field[None], grid), LabelMap(labels, grid, cases[0].expert.scheme))


def summed_in_half(predictor: Predictor, volume: Volume) -> Answer:
    """As the predictor does, but logits are summed in float16, which it does where memory is short.

    Meant for one member without post-processing.
    """
    (member,) = predictor.members
    inputs, settings = member.card.inputs, predictor.settings
    began = time.perf_counter()
    image = ModelImage(volume, inputs)
    group = Group(
        (member.network,),
        image,
        inputs.window_ijk,
        overlap=inputs.overlap if settings.overlap is None else settings.overlap,
        channels_last=member.numerics.channels_last,
    )
    engine = StreamingEngine(
        [group], Decision(member.card.class_values), Sweep(smallest_axis([group]), half=True)
    )
    turned = turn(volume, image.to_model)
    labels_ijk = np.zeros(turned.grid.shape_ijk, dtype=np.uint8)
    for _ in engine.run(Outputs(labels_ijk), Silent()):
        pass
    labels = turn(LabelMap(labels_ijk, turned.grid, member.card.scheme()), image.to_model.inverse())
    return Answer(labels, time.perf_counter() - began, engine.windows_computed)


def predict(mode: str, predictor: Predictor, volume: Volume) -> Answer:
    """One mode on one volume, from voxels to labels on the image's own grid."""
    if mode == HALF_SUMS:
        return summed_in_half(predictor, volume)
    began = time.perf_counter()
    prediction = predictor.predict(volume)
    seconds = time.perf_counter() - began
    return Answer(prediction.labels, seconds, prediction.windows_computed, prediction.notes)


def compare(
    predictors: Mapping[str, Predictor],
    cases: Sequence[Case],
    repeats: int,
    *,
    against_full: bool = False,
) -> list[Row]:
    """Every mode on every case, in turns.

    Args:
        predictors: One per mode, the full one first.
        cases: What is segmented.
        repeats: Of each.
        against_full: Whether the full mode's labels are the truth, instead of the expert's.
    """
    seconds = dict.fromkeys(predictors, 0.0)
    windows = dict.fromkeys(predictors, 0)
    scores: dict[str, list[dict[str, float]]] = {mode: [] for mode in predictors}
    notes: dict[str, list[str]] = {mode: [] for mode in predictors}
    refused: dict[str, str] = {}
    for case in cases:
        least = dict.fromkeys(predictors, math.inf)
        answers: dict[str, Answer] = {}
        for _ in range(repeats):
            for mode, predictor in predictors.items():
                if mode in refused:
                    continue
                try:
                    answers[mode] = predict(mode, predictor, case.volume)
                except MedsegError as error:
                    refused[mode] = f"{case.name}: {error.code}"
                    continue
                least[mode] = min(least[mode], answers[mode].seconds)
        truth = answers[FULL].labels if against_full else case.expert
        for mode, answer in answers.items():
            seconds[mode] += least[mode]
            windows[mode] += answer.windows
            scores[mode].append(dice_by_label(answer.labels, truth))
            notes[mode] += [note for note in answer.notes if note not in answers[FULL].notes]
        print(f"  {case.name} done", file=sys.stderr)
    return [
        # a mode that refused a case has no figures that could stand beside the others'
        Row(mode, math.nan, 0, {}, refused[mode])
        if mode in refused
        else Row(
            mode, seconds[mode], windows[mode], mean_scores(scores[mode]), "", tuple(notes[mode])
        )
        for mode in predictors
    ]


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean Dice per structure over the cases that have one."""
    means: dict[str, float] = {}
    for name in scores[0]:
        known = [score[name] for score in scores if not math.isnan(score[name])]
        if known:
            means[name] = statistics.fmean(known)
    return means


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Dice, its difference to the full mode's, seconds and their ratio."""
    full = rows[0]
    table = []
    for row in rows:
        if row.refused:
            table.append([row.mode, row.refused, *["-"] * (len(full.dice) + 4)])
            continue
        table.append(
            [
                row.mode,
                *(f"{row.dice.get(name, math.nan):.4f}" for name in full.dice),
                f"{row.mean_dice:.4f}",
                f"{row.mean_dice - full.mean_dice:+.4f}",
                f"{row.seconds:.2f}",
                f"{full.seconds / row.seconds:.2f}",
                str(row.windows),
            ]
        )
    print_table(
        [
            title,
            *(f"Dice {name}" for name in full.dice),
            "mean",
            "to full",
            "s",
            "faster",
            "windows",
        ],
        table,
    )
    for row in rows:
        for note in dict.fromkeys(row.notes):
            times = row.notes.count(note)
            print(f"{row.mode}: {note}" + (f" ({times} times)" if times > 1 else ""))


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of Task04_Hippocampus")
    parser.add_argument("--cases", type=int, default=40, help="most cases to segment")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each mode on each case")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    parser.add_argument(
        "--field", type=int, nargs=3, default=FIELD, help="extents of the made image"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    cases = held_back(arguments.data, arguments.cases)
    wanted = [mode for mode in MODES if mode == FULL or mode in arguments.modes]
    folder = find_model(MODEL)
    predictors = {mode: Predictor.load(folder, MODES[mode], device="cpu") for mode in wanted}
    for mode, predictor in predictors.items():  # compiles, and measures the network's memory
        with contextlib.suppress(MedsegError):
            predict(mode, predictor, cases[0].volume)
    real = compare(predictors, cases, arguments.repeats)
    print_rows(f"{len(cases)} real cases", real)
    i, j, k = arguments.field
    made = compare(predictors, [made_case(cases, (i, j, k))], arguments.repeats, against_full=True)
    print_rows(f"made image, {i}x{j}x{k}", made)
    print(
        f"{torch.get_num_threads()} threads; the cases are of the model's validation part, Dice of "
        "the made image is against the full mode"
    )
    if arguments.json:
        content = {"real": [asdict(row) for row in real], "made": [asdict(row) for row in made]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
