"""What a training of so many minutes on this machine comes to, judged on cases it has not seen.

Rows, each with the wall-clock budget of its training:

- ``reversible``, ``neunet``, ``transdae``, ``macmd``, ``qtseg``: the five networks on the
  hippocampus cases of the Decathlon, ten minutes each.
- ``nnunet``: nnU-Net's own trainer on the same cases for the same ten minutes.
- ``best``: the network named by ``--best``, thirty minutes.
- ``headneck``: seven organs in head-and-neck CT, twenty minutes.
- ``acdc``: the heart in thick slices, twenty minutes.

The folder of a dataset holds it in its own layout; its ``split.json``, or the split that its
configuration draws, says which cases are held out. Those take no part in training and choose
nothing: the weights judged are the last ones. Every held-out case is segmented by the exported
model, as a user would, and compared with its truth on the grid of the image: mean Dice and HD95 of
each structure over the cases that hold it.

What nnU-Net does: it plans and prepares the cases by itself and trains ``3d_fullres`` with its
loader and augmentation. Its own schedule counts epochs; here the rate falls by its exponent with
the share of the budget that is spent, so that it comes to its end. Its validation predicts with
mirroring, ours without.

A row is kept in a folder below ``--out`` and not measured again unless ``--overwrite`` is given, so
that the rows can be run one by one; the table shows every row that is there.

    python -m benchmarks.accuracy [ROW ...] [--hippocampus FOLDER] [--headneck FOLDER]
        [--acdc FOLDER] [--best CONFIG] [--nnunet-python PYTHON] [--out FOLDER] [--overwrite]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.nnunet import run_nnunet
from medseg.atomic import write_text
from medseg.core import LabelMap, LabelScheme
from medseg.data.case import Case, read_labelled
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.io.reading import read_labels
from medseg.metrics.case import measure_case
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import label_structures
from medseg.training.schedule import parse_duration
from medseg.training.settings import RunSettings, load_settings
from pipelines.run_folder import CONFIG_NAME
from pipelines.shipped import find_config
from pipelines.tables import print_table
from pipelines.train import read_data, train_from_command

FILE = "accuracy.json"


@dataclass(frozen=True)
class Row:
    """A training to be made.

    Args:
        config: Of medseg; for nnU-Net that which names the cases and labels.
        data: Which of the datasets.
        budget: Wall-clock time of the training.
    """

    config: str
    data: str
    budget: str


ROWS = {
    "reversible": Row("reversible_hippocampus", "hippocampus", "10m"),
    "neunet": Row("neunet_hippocampus", "hippocampus", "10m"),
    "transdae": Row("transdae_hippocampus", "hippocampus", "10m"),
    "macmd": Row("macmd_hippocampus", "hippocampus", "10m"),
    "qtseg": Row("qtseg_hippocampus", "hippocampus", "10m"),
    "nnunet": Row("neunet_hippocampus", "hippocampus", "10m"),
    "best": Row("neunet_hippocampus", "hippocampus", "30m"),
    "headneck": Row("revunet_headneck", "headneck", "20m"),
    "acdc": Row("revunet_acdc_cpu", "acdc", "20m"),
}


@dataclass(frozen=True)
class Result:
    """What a row came to.

    Args:
        trainer: In a few words.
        weights: Trained parameters.
        numerics: Precision and layout.
        steps: Steps made.
        training_s: Seconds that they took.
        cases: Held-out cases.
        dice: Structure to mean Dice.
        hd95_mm: Structure to mean HD95.
    """

    trainer: str
    weights: int
    numerics: str
    steps: int
    training_s: float
    cases: int
    dice: dict[str, float]
    hd95_mm: dict[str, float]


# nnU-Net's side: the same cases are held out, and its validation's predictions are judged
_PARTS = """
def before_preparing(plan, base, job):
    (base / "splits_final.json").write_text(json.dumps(job["split"]))

def train(trainer, job):
    steps, rate, budget_s = 0, trainer.initial_lr, job["budget_s"]
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < budget_s:
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate * (1 - spent / budget_s) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
    spent = time.perf_counter() - began
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()
    with torch.no_grad():
        trainer.perform_actual_validation(False)
    plan = trainer.configuration_manager
    return {
        "steps": steps, "seconds": spent, "batch": plan.batch_size,
        "patch": [int(n) for n in plan.patch_size],
        "predictions": str(Path(trainer.output_folder) / "validation")}
"""


def our_result(row: Row, data: Path, budget: str, run: Path) -> Result:
    """Train with medseg and judge its model."""
    trained = train_from_command(row.config, data=data, out=run, budget=budget, overwrite=True)
    if not trained.finished:
        raise SystemExit("the training was interrupted: there is nothing to judge")
    settings = load_settings(run / CONFIG_NAME)
    predictor = Predictor.load(run, device="cpu")
    names = [channel.name for channel in predictor.card.inputs.channels]
    scheme = settings.scheme()

    def pairs() -> Iterable[tuple[LabelMap, LabelMap]]:
        for case in read_data(settings, data).validation:
            volume, truth = read_labelled(case, names, scheme, settings.ignore_value)
            yield predictor.predict(volume).labels, truth

    cases, dice, hd95_mm = judged(pairs(), scheme)
    return Result(
        trainer=f"medseg, {settings.network.name}",
        weights=trained.weights,
        numerics=trained.numerics.in_words(),
        steps=trained.steps,
        training_s=trained.training_s,
        cases=cases,
        dice=dice,
        hd95_mm=hd95_mm,
    )


def their_result(row: Row, data: Path, budget: str, python: Path) -> Result:
    """Train with nnU-Net and judge what it predicts in its validation."""
    settings: RunSettings = load_settings(find_config(row.config))
    cases = read_data(settings, data)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        split = [{"train": _stems(cases.train), "val": _stems(cases.validation)}]
        job = {"split": split, "budget_s": parse_duration(budget)}
        made = run_nnunet(python, data, place, parts=_PARTS, job=job)
        folder = Path(made["predictions"])
        scheme = settings.scheme()

        def pairs() -> Iterable[tuple[LabelMap, LabelMap]]:
            for case, stem in zip(cases.validation, _stems(cases.validation), strict=True):
                _, truth = read_labelled(case, ["T1"], scheme, settings.ignore_value)
                yield read_labels(folder / f"{stem}.nii.gz", scheme), truth

        count, dice, hd95_mm = judged(pairs(), scheme)
    patch = "x".join(str(extent) for extent in made["patch"])
    return Result(
        trainer=f"nnU-Net, batch {made['batch']}, {patch}",
        weights=made["weights"],
        numerics="fp32, contiguous",
        steps=made["steps"],
        training_s=made["seconds"],
        cases=count,
        dice=dice,
        hd95_mm=hd95_mm,
    )


def judged(
    pairs: Iterable[tuple[LabelMap, LabelMap]], scheme: LabelScheme
) -> tuple[int, dict[str, float], dict[str, float]]:
    """Number of cases, and mean Dice and HD95 of each structure over those that hold it."""
    structures = label_structures(scheme)
    settings = EvaluationSettings()
    dice: dict[str, list[float]] = defaultdict(list)
    hd95_mm: dict[str, list[float]] = defaultdict(list)
    count = 0
    for found, truth in pairs:
        count += 1
        for scores in measure_case(found, truth, structures, settings):
            dice[scores.structure].append(scores.values["dice"])
            hd95_mm[scores.structure].append(scores.values["hd95_mm"])
    return count, _means(dice), _means(hd95_mm)


def _means(values: dict[str, list[float]]) -> dict[str, float]:
    means = {}
    for name, numbers in values.items():
        finite = [number for number in numbers if math.isfinite(number)]
        means[name] = statistics.fmean(finite) if finite else math.nan
    return means


def _stems(cases: Iterable[Case]) -> list[str]:
    return [Path(case.label).name.removesuffix(".nii.gz") for case in cases]


def show(results: dict[str, Result]) -> None:
    """Print a line for each structure of each row, the mean first."""
    lines = []
    for name, result in results.items():
        means = {
            "mean": (
                statistics.fmean(result.dice.values()),
                statistics.fmean(result.hd95_mm.values()),
            )
        }
        each = {key: (result.dice[key], result.hd95_mm[key]) for key in result.dice}
        for structure, (dice, hd95_mm) in {**means, **each}.items():
            first = structure == "mean"
            lines.append(
                [
                    name if first else "",
                    result.trainer if first else "",
                    f"{result.weights / 1e6:.2f} M" if first else "",
                    result.numerics if first else "",
                    str(result.steps) if first else "",
                    f"{result.training_s:.0f}" if first else "",
                    str(result.cases) if first else "",
                    structure,
                    f"{dice:.3f}",
                    f"{hd95_mm:.2f}",
                ]
            )
    heads = ["row", "trainer", "weights", "numerics", "steps", "training s", "held out"]
    print_table([*heads, "structure", "Dice", "HD95 mm"], lines)


def main() -> None:
    """Parse the arguments, train what is wanted, print what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; none shows what is there")
    parser.add_argument("--hippocampus", type=Path, default=Path("data/Task04_Hippocampus"))
    parser.add_argument("--headneck", type=Path, default=Path("data/headneck"))
    parser.add_argument("--acdc", type=Path, default=Path("data/ACDC"))
    parser.add_argument("--best", help="configuration of the row best")
    parser.add_argument("--budget", help="instead of each row's own")
    parser.add_argument("--nnunet-python", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--overwrite", action="store_true", help="measure again what is there")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    for name in arguments.rows:
        if name not in ROWS:
            parser.error(f"no row {name}; there are {', '.join(ROWS)}")
    if "nnunet" in arguments.rows and not arguments.nnunet_python:
        parser.error("the row nnunet needs --nnunet-python, an environment with nnunetv2")
    try:
        for name in arguments.rows:
            _measure(name, arguments)
    except MedsegError as error:
        parser.error(str(error))
    results = {}
    for name in ROWS:
        kept = arguments.out / name / FILE
        if kept.is_file():
            results[name] = Result(**json.loads(kept.read_text(encoding="utf-8")))
    show(results)
    if arguments.json:
        content = {name: asdict(result) for name, result in results.items()}
        write_text(arguments.json, json.dumps(content, indent=2) + "\n")


def _measure(name: str, arguments: argparse.Namespace) -> None:
    folder = arguments.out / name
    if (folder / FILE).is_file() and not arguments.overwrite:
        print(f"{name}: measured earlier; --overwrite measures again", file=sys.stderr)
        return
    row = ROWS[name]
    if name == "best" and arguments.best:
        row = Row(arguments.best, row.data, row.budget)
    data = getattr(arguments, row.data)
    budget = arguments.budget or row.budget
    if name == "nnunet":
        result = their_result(row, data, budget, arguments.nnunet_python)
    else:
        if folder.is_dir():
            shutil.rmtree(folder)
        result = our_result(row, data, budget, folder / "run")
    write_text(folder / FILE, json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
