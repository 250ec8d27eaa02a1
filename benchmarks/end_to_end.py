"""From a NIfTI file to labels in a NIfTI file on the same grid: medseg and nnU-Net, one network.

The image is a made CT at 1 mm; the network, MONAI's DynUNet trained here on made volumes, works at
1.5 mm. nnU-Net reads, crops, normalises, resamples, predicts, resamples the logits back and writes
with its own code (``nnUNetPredictor.predict_from_files_sequential``, which starts no processes),
told by a plan that describes this network; without mirroring, as medseg. medseg reads, predicts,
writes, reads back what it wrote, and makes statistics and a report, as ``medseg predict`` does.
Both have the network in memory. They take turns, and the least time of each stage counts; a first
run is told apart, in which medseg also tries one window to know the memory that the network takes.

The labels of the two cannot be equal: nnU-Net interpolates with cubic splines between the voxels,
medseg averages over the larger voxel with cubic convolution, and the made image is full of stripes.

Where ``nnunetv2`` is not installed its side is left out.

    python -m benchmarks.end_to_end [--quick] [--weights FILE] [--repeats N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.memory import made_card
from benchmarks.sliding_window import QUICK, Job, dice, made_volume, trained
from medseg.core import Grid, Volume
from medseg.events import Silent
from medseg.inference.numerics import choose_inference_numerics
from medseg.inference.predictor import Member, Predictor
from medseg.io.nifti import write_nifti_volume
from medseg.io.reading import read_labels
from medseg.models.card import Channel, ClipZScore, InputSettings, ModelCard
from medseg.models.inference_form import to_inference_form
from medseg.models.network import arrange_weights
from pipelines.infer import Case, segment_case
from pipelines.tables import print_table

SPACING_MM = 1.5
"""Of the network; the image has 1 mm."""

CLIP_HU, SCALE_HU = 6000.0, 1000.0
Stages = dict[str, float]
Labels = npt.NDArray[Any]
Side = Callable[[Path, Path], tuple[Stages, Path]]
"""Segments a file into a folder; gives seconds per stage, and the file with the labels."""


@dataclass(frozen=True)
class Row:
    """One side: least seconds per stage, and of a whole run; Dice against the made labels."""

    side: str
    stages: Stages
    seconds: float
    first_seconds: float
    dice: tuple[float, ...]
    dice_to_first: tuple[float, ...]


def made_ct(job: Job, path: Path) -> Labels:
    """Write a made CT at 1 mm whose extents at the network's spacing are the job's.

    Returns:
        ``(i, j, k)`` the labels it was made from, at 1 mm.
    """
    x_cijk, labels_ijk = made_volume(job, job.extents, torch.Generator().manual_seed(1))
    shape = tuple(round(extent * SPACING_MM) for extent in job.extents)
    fine = F.interpolate(x_cijk[None], size=shape, mode="trilinear", align_corners=False)[0]
    stored = np.asfortranarray((fine[0] * SCALE_HU).round().to(torch.int16).numpy())
    i, j, k = shape
    write_nifti_volume(Volume(stored[None], Grid((i, j, k), np.eye(4))), path)
    nearest = F.interpolate(labels_ijk[None, None].float(), size=shape, mode="nearest-exact")
    found: Labels = nearest[0, 0].to(torch.uint8).numpy()
    return found


def card_for(job: Job, interpolation: Literal["linear", "cubic"]) -> ModelCard:
    """What the network expects."""
    scaling = ClipZScore(lower=-CLIP_HU, upper=CLIP_HU, mean=0, std=SCALE_HU)
    inputs = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=scaling),),
        spacing_mm=(SPACING_MM,) * 3,
        window_ijk=job.window,
        overlap=job.overlap,
        interpolation=interpolation,
    )
    return made_card(inputs, job.classes)


def our_side(network: nn.Module, card: ModelCard, precision: Literal["auto", "fp32"]) -> Side:
    """``medseg predict`` after loading."""
    form = to_inference_form(network)
    shape = (1, 1, *card.inputs.window_ijk)
    numerics = choose_inference_numerics(
        form, shape, torch.device("cpu"), precision, store=None, key=""
    )
    if numerics.autocast_dtype is not None:
        form = to_inference_form(network, numerics.autocast_dtype)
    arrange_weights(form, channels_last=numerics.channels_last)
    predictor = Predictor([Member(form, card, numerics)])

    def run(image: Path, out: Path) -> tuple[Stages, Path]:
        case = Case("made", {"": image})
        result = segment_case(case, predictor, out, listener=Silent(), overwrite=True)
        return result.seconds, result.files["nifti"]

    return run


def nnunet_side(network: nn.Module, job: Job) -> Side | None:
    """nnU-Net's predictor on files, or None if it is not installed."""
    os.environ.setdefault("nnUNet_def_n_proc", str(torch.get_num_threads()))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it speaks of paths that are not set
            inference: Any = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
            handling = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
            preparing = importlib.import_module(
                "nnunetv2.preprocessing.preprocessors.default_preprocessor"
            )
    except ModuleNotFoundError as error:
        print(f"nnU-Net is left out: {error}; pip install nnunetv2", file=sys.stderr)
        return None
    resampling = "resample_data_or_seg_to_shape"
    separate = {"order_z": 0, "force_separate_z": None}
    plans: Any = handling.PlansManager(
        {
            "image_reader_writer": "SimpleITKIO",
            # files are read as k, j, i; the network was trained on i, j, k
            "transpose_forward": [2, 1, 0],
            "transpose_backward": [2, 1, 0],
            "foreground_intensity_properties_per_channel": {
                "0": {
                    "mean": 0.0,
                    "std": SCALE_HU,
                    "percentile_00_5": -CLIP_HU,
                    "percentile_99_5": CLIP_HU,
                }
            },
            "configurations": {
                "3d": {
                    "preprocessor_name": "DefaultPreprocessor",
                    "patch_size": list(job.window),
                    "spacing": [SPACING_MM] * 3,
                    "normalization_schemes": ["CTNormalization"],
                    "use_mask_for_norm": [False],
                    "resampling_fn_data": resampling,
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **separate},
                    "resampling_fn_seg": resampling,
                    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **separate},
                    "resampling_fn_probabilities": resampling,
                    "resampling_fn_probabilities_kwargs": {
                        "is_seg": False,
                        "order": 1,
                        **separate,
                    },
                    # the network is handed over, so its description may be empty
                    "architecture": {},
                }
            },
        }
    )
    predictor: Any = inference.nnUNetPredictor(
        tile_step_size=1 - job.overlap,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    names = {"background": 0, **{f"class {n}": n for n in range(1, job.classes)}}
    predictor.manual_initialization(
        copy.deepcopy(network),
        plans,
        plans.get_configuration("3d"),
        [network.state_dict()],
        {"labels": names, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}},
        "none",
        None,
    )
    stages: Stages = {}
    # its own functions, each with a clock round it
    preparer: Any = preparing.DefaultPreprocessor
    preparer.run_case = clocked("read, normalise, resample", preparer.run_case, stages)
    predictor.predict_logits_from_preprocessed_data = clocked(
        "network", predictor.predict_logits_from_preprocessed_data, stages
    )
    inference.export_prediction_from_logits = clocked(
        "resample logits, argmax, write", inference.export_prediction_from_logits, stages
    )

    def run(image: Path, out: Path) -> tuple[Stages, Path]:
        stages.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            predictor.predict_from_files_sequential([[str(image)]], [str(out / "nnunet")])
        return dict(stages), out / "nnunet.nii.gz"

    return run


def clocked(stage: str, function: Callable[..., Any], stages: Stages) -> Callable[..., Any]:
    """The same function; its seconds are added to the stage."""

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - foreign code, passed on
        began = time.perf_counter()
        answer = function(*args, **kwargs)
        stages[stage] = stages.get(stage, 0.0) + time.perf_counter() - began
        return answer

    return run


def measure(sides: Mapping[str, Side], job: Job, repeats: int, *, classes: int) -> list[Row]:
    """Run all sides in turns on one made image."""
    stages: dict[str, list[Stages]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    labels: dict[str, Labels] = {}
    scheme = card_for(job, "linear").scheme()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "made_0000.nii.gz"
        truth = made_ct(job, image)
        for turn in range(repeats):
            for name, side in sides.items():
                out = Path(folder) / name.replace(" ", "_")
                out.mkdir(exist_ok=True)
                began = time.perf_counter()
                spent, path = side(image, out)
                seconds[name].append(time.perf_counter() - began)
                stages[name].append(spent)
                print(f"  {name}, run {turn + 1}: {seconds[name][-1]:.2f} s", file=sys.stderr)
                labels[name] = read_labels(path, scheme).data_ijk
    first = labels[next(iter(sides))]
    return [
        Row(
            name,
            {stage: min(run[stage] for run in stages[name]) for stage in stages[name][0]},
            min(seconds[name]),
            seconds[name][0],
            dice(labels[name], truth, classes),
            dice(labels[name], first, classes),
        )
        for name in sides
    ]


def print_rows(rows: list[Row]) -> None:
    """Stages of every side, then how they compare."""
    for row in rows:
        others = row.seconds - sum(row.stages.values())
        print_table(
            [row.side, "s"],
            [
                *([stage, f"{spent:.2f}"] for stage, spent in row.stages.items()),
                ["anything else", f"{max(0.0, others):.2f}"],
                ["all", f"{row.seconds:.2f}"],
            ],
        )
    first = rows[0]
    print_table(
        [
            "side",
            "first run",
            "least",
            f"{first.side} takes",
            f"Dice to {first.side}: least",
            "mean",
            "to the made labels: mean",
        ],
        [
            [
                row.side,
                f"{row.first_seconds:.2f}",
                f"{row.seconds:.2f}",
                f"{first.seconds / row.seconds:.2f} times as long",
                f"{np.nanmin(row.dice_to_first):.4f}",
                f"{np.nanmean(row.dice_to_first):.4f}",
                f"{np.nanmean(row.dice):.4f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Parse the arguments, trained, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny volume and network")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--extents", help="of the image at the network's spacing, as 96x192x192")
    parser.add_argument("--weights", type=Path, help="read the trained weights here, or keep them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    job = QUICK if arguments.quick else Job()
    if arguments.extents:
        i, j, k = (int(part) for part in arguments.extents.split("x"))
        job = replace(job, extents=(i, j, k))
    network = trained(job, arguments.weights)
    theirs = nnunet_side(network, job)
    sides = {} if theirs is None else {"nnU-Net": theirs}
    sides |= {
        "medseg fp32, cubic": our_side(network, card_for(job, "cubic"), "fp32"),
        "medseg auto, cubic": our_side(network, card_for(job, "cubic"), "auto"),
        "medseg auto, linear": our_side(network, card_for(job, "linear"), "auto"),
    }
    rows = measure(sides, job, arguments.repeats, classes=job.classes)
    print_rows(rows)
    shape = "x".join(str(round(extent * SPACING_MM)) for extent in job.extents)
    print(
        f"{torch.get_num_threads()} threads; {shape} at 1 mm, "
        f"{'x'.join(map(str, job.extents))} at {SPACING_MM} mm"
    )
    if theirs is None:
        print("nnU-Net was left out: it is not installed (pip install nnunetv2)")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if not all(math.isfinite(np.nanmean(row.dice)) for row in rows):
        sys.exit("a side found none of the classes")


if __name__ == "__main__":
    main()
