"""From a dataset's folder to a run that fits it and the memory that there is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.atomic import write_text
from medseg.data.datalist import read_datalist
from medseg.data.fingerprint import Fingerprint, measure_fingerprint
from medseg.errors import ConfigError, ResourceError, one_of
from medseg.events import Listener, Silent
from medseg.models.table import NETWORKS
from medseg.ops.device import choose_device
from medseg.training.commented_yaml import commented_yaml
from medseg.training.planning import DataChoice, Plan, Planner, run_name
from pipelines.dry_step import DryStep, dry_step

__all__ = ["Planned", "parse_spacing", "plan_dataset", "tried_plan"]

_STAGE = "trying a training step"
_ATTEMPTS = 8
_CLOSER = 0.95


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that has been tried and written.

    Args:
        path: The YAML file.
        fingerprint_path: The fingerprint beside it.
        fingerprint: What the dataset is like.
        plan: The run.
        measured: What one of its training steps takes.
        memory_bytes: What it had to stay within.
        device: Where it was tried.
    """

    path: Path
    fingerprint_path: Path
    fingerprint: Fingerprint
    plan: Plan
    measured: DryStep
    memory_bytes: int
    device: str

    def rows(self) -> list[list[str]]:
        """The table that is printed."""
        settings = self.plan.settings
        inputs, training = settings.inputs, settings.training
        reasons = self.plan.reasons
        network = settings.network
        rows = [
            ["network", network.name, NETWORKS[network.name].title],
            ["cases", str(len(self.fingerprint.cases)), self.fingerprint.split_source],
            ["orientation", inputs.orientation, reasons["inputs.orientation"]],
            [
                "spacing",
                f"{_times(inputs.spacing_mm or ())} mm",
                reasons["inputs.spacing_mm"],
            ],
            ["window", _times(inputs.window_ijk), reasons["inputs.window_ijk"]],
            ["patch", _times(settings.patch_ijk), "what a training step sees"],
        ]
        if network.slices is not None and network.slices.extents is not None:
            rows.append(
                [
                    "slices",
                    _times(network.slices.extents),
                    f"{reasons['network.slices.axis']}, {network.slices.neighbours} neighbours",
                ]
            )
        for key in ("features", "widths"):
            if key in network.settings:
                reason = reasons.get(f"network.settings.{key}", reasons["network.settings"])
                rows.append([key, _times(network.settings[key]), reason])
        patches = training.batch_size * training.samples_per_case
        rows += [
            ["batch", str(patches), reasons["training.batch_size"]],
            [
                "mirrored axes",
                "".join(inputs.mirror_axes) or "none",
                reasons[
                    "training.augmentation.flip_axes"
                    if inputs.mirror_axes
                    else "training.augmentation"
                ],
            ],
            [
                "length",
                f"{training.steps} steps",
                f"{self.measured.seconds:.2f} s for one of them on {self.device}, in fp32 and "
                "without loading; --budget of medseg train replaces the length",
            ],
            [
                "memory",
                f"{self.measured.peak_bytes / 1e9:.2f} GB",
                f"measured on {self.device}; allowed {self.memory_bytes / 1e9:.2f} GB, tensors "
                f"alone {self.plan.estimate_bytes / 1e9:.2f} GB",
            ],
        ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "file": str(self.path),
            "fingerprint": str(self.fingerprint_path),
            "device": self.device,
            "memory_bytes": self.memory_bytes,
            "measured_bytes": self.measured.peak_bytes,
            "estimated_bytes": self.plan.estimate_bytes,
            "step_seconds": self.measured.seconds,
            "notes": list(self.plan.notes),
            "settings": self.plan.content,
        }


def plan_dataset(
    root: Path,
    network: str | None,
    *,
    memory_bytes: int,
    out: Path | None = None,
    layout: str = "auto",
    scheme: str | None = None,
    split: str | None = None,
    fold: int = 0,
    device: str = "auto",
    spacing_mm: tuple[float, float, float] | None = None,
    batch: int | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Planned:
    """Measure a dataset, plan a run, try one of its steps and write it down.

    What is tried is the largest candidate by the estimate; while its step takes more than it may,
    the next smaller one is tried that should fit.

    Args:
        root: The dataset's folder, or the file of a list of paths.
        network: Name of the network; None takes the one that learns most in a given time, revunet
            on a CPU, and neunet on a GPU.
        memory_bytes: What a training step may take, on the device where it runs.
        out: The YAML file; None for ``<network>_<dataset>.yaml`` in the current directory. The
            fingerprint is written beside it.
        layout: As :func:`~medseg.data.datalist.read_datalist`.
        scheme: As there.
        split: As there.
        fold: As there.
        device: Where the run will train.
        spacing_mm: Instead of the spacing that the fingerprint tells.
        batch: Instead of the batch that memory allows.
        jobs: How many processes read cases; None chooses.
        overwrite: Whether files of an earlier plan are replaced.
        listener: Progress and cancelling.

    Raises:
        ConfigError: If the dataset, the network or an option cannot be used, or a file is there.
        ResourceError: ``plan-memory`` if nothing fits, ``out-of-memory``.
        MedsegError: What is wrong with a training case.
        Cancelled: If the listener asked to stop; nothing is written.
    """
    hearer = listener or Silent()
    place = choose_device(device)
    network = network or ("revunet" if place.type == "cpu" else "neunet")
    named = network.lower() if network.lower() in NETWORKS else network
    if named not in NETWORKS:
        raise ConfigError(
            "--model",
            expected=one_of(network, NETWORKS),
            found=repr(network),
            remedy="choose one of them",
            code="network-name",
        )
    if out is not None:
        _check_free((out, _beside(out)), overwrite=overwrite)
    data = read_datalist(root, layout=layout, scheme=scheme, split=split, fold=fold)
    path = out or Path(f"{run_name(f'{named}_{data.name}')}.yaml")
    choice = DataChoice(str(root), layout, scheme, split, fold, run_name(path.stem))
    _check_free((path, _beside(path)), overwrite=overwrite)
    fingerprint = measure_fingerprint(data, jobs=jobs, listener=hearer)
    planner = Planner(
        fingerprint,
        named,
        "cuda" if place.type == "cuda" else "cpu",
        choice,
        spacing_mm=spacing_mm,
        batch=batch,
    )
    plan, measured = tried_plan(planner, memory_bytes, str(place), hearer)
    comments = dict(plan.reasons)
    comments["training"] = (
        f"one step takes {measured.peak_bytes / 1e9:.2f} GB, measured on {place.type} in fp32"
    )
    header = (
        f"{NETWORKS[named].title} on {fingerprint.dataset}, planned by medseg plan for "
        f"{memory_bytes / 1e9:.2f} GB on {place.type}.",
        "Complete and yours to edit: a run takes nothing from anywhere else.",
        f"    medseg train {path.name}",
        *plan.notes,
    )
    text = commented_yaml(plan.content, comments, header=header)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(_beside(path), json.dumps(fingerprint.to_dict(), indent=1) + "\n")
    write_text(path, text)
    return Planned(path, _beside(path), fingerprint, plan, measured, memory_bytes, str(place))


Step = Callable[[dict[str, Any], str, Listener], DryStep | None]


def tried_plan(
    planner: Planner,
    memory_bytes: int,
    device: str,
    listener: Listener,
    step: Step = dry_step,
) -> tuple[Plan, DryStep]:
    """The largest plan whose step, made for real, stays within an amount of memory.

    Args:
        planner: Of the dataset and network.
        memory_bytes: The amount.
        device: Where the step is made.
        listener: Progress and cancelling.
        step: Makes it.

    Raises:
        ResourceError: ``plan-memory`` if nothing fits.
        Cancelled: If the listener asked to stop.
    """
    # how many steps must be tried is not known before: no share of them is told
    listener.started(_STAGE, 1)
    plan = planner.plan(memory_bytes)
    for _ in range(_ATTEMPTS):
        content = plan.settings.model_dump(mode="json")
        measured = step(content, device, listener)
        if measured is not None and measured.peak_bytes <= memory_bytes:
            listener.advanced(_STAGE, 1)
            return plan, measured
        took = 2.0 * memory_bytes if measured is None else float(measured.peak_bytes)
        listener.noted(
            f"window {plan.settings.inputs.window_ijk}, batch {plan.settings.training.batch_size}: "
            + ("memory ran out" if measured is None else f"{took / 1e9:.2f} GB, more than allowed")
        )
        if plan.position == 0:
            planner.refuse(memory_bytes, took)
        # what a step takes beside its tensors stays; the tensors must give the rest
        wanted = min(
            plan.estimate_bytes * memory_bytes / took,
            plan.estimate_bytes - (took - memory_bytes),
        )
        least = planner.estimate(0)
        plan = planner.plan(max(_CLOSER * wanted, float(least)), below=plan.position)
    raise ResourceError(
        f"--memory {memory_bytes / 1e9:.2f} GB",
        expected="a training step that stays within it",
        found=f"more, after {_ATTEMPTS} ever smaller ones",
        remedy="give more memory, or plan a coarser --spacing",
        code="plan-memory",
    )


def parse_spacing(text: str) -> tuple[float, float, float]:
    """``1x1x3`` or ``1,1,3`` in millimetres.

    Raises:
        ConfigError: ``spacing`` if it is neither.

    >>> parse_spacing("1x1x2.5")
    (1.0, 1.0, 2.5)
    """
    parts = re.split(r"[x,]", text.strip())
    try:
        i_mm, j_mm, k_mm = (float(part) for part in parts)
    except ValueError:
        i_mm, j_mm, k_mm = 0.0, 0.0, 0.0
    if not all(0 < step < 1000 for step in (i_mm, j_mm, k_mm)):
        raise ConfigError(
            "--spacing",
            expected="three numbers of millimetres, such as 1x1x2.5",
            found=repr(text),
            remedy="give one for each axis of the plan's orientation, with x between",
            code="spacing",
        )
    return i_mm, j_mm, k_mm


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}_fingerprint.json")


def _check_free(paths: tuple[Path, ...], *, overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise ConfigError(
                str(path),
                expected="a name that is still free",
                found="an existing file",
                remedy="choose another folder or name with --out, or replace it with --overwrite",
                code="output-exists",
            )


def _times(extents: Any) -> str:  # noqa: ANN401 - numbers of any kind
    return " x ".join(f"{extent:g}" for extent in extents)
