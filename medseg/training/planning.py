"""A complete run, planned from a dataset's fingerprint, a network and an amount of memory."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from medseg.core import LabelScheme
from medseg.data.fingerprint import ChannelFacts, Fingerprint
from medseg.data.layouts.transunet import SCALED_HU
from medseg.errors import ConfigError, ResourceError, one_of
from medseg.models.card import InputSettings, NetworkChoice
from medseg.models.estimate import training_bytes
from medseg.models.table import NETWORKS, build_volume_network
from medseg.training.augmentation import PRESETS, left_right_axis, mirrored_classes
from medseg.training.plan_candidates import (
    DATA_SHARE,
    LEAST_BATCH,
    Candidate,
    Place,
    candidates,
)
from medseg.training.plan_geometry import Geometry, choose_geometry
from medseg.training.settings import RunSettings, parse_settings

__all__ = ["DataChoice", "Plan", "Planner", "Reasons", "run_name"]

Reasons = dict[str, str]
"""Path of a setting, such as ``inputs.spacing_mm``, to why it has its value."""

STRIPPED_SHARE = 0.75
"""Largest share of voxels that are not zero in images that count as skull-stripped; nnU-Net crops
such images to what is not zero and takes their moments there."""

_STEPS = {("cpu", 3): 4000, ("cpu", 2): 4000, ("cuda", 3): 250_000, ("cuda", 2): 40_000}
_VALIDATIONS = 50
_RATES = {"neunet": 3e-3, "revunet": 3e-3, "transdae": 1e-3, "macmd": 1e-3, "qtseg": 1e-3}
_OPPOSITES = (("anterior", "posterior"), ("superior", "inferior"), ("upper", "lower"))
_FLAT = 3
_FORCED = ((0.001, 0.67), (0.01, 0.5), (1.0, 0.33))


@dataclass(frozen=True, slots=True)
class DataChoice:
    """What the user said of the dataset; written down as it is.

    Args:
        root: Its folder.
        layout: How it lies on disk; ``auto`` writes what the fingerprint found.
        scheme: Name of a label scheme; None for the dataset's own.
        split: Which division; None for the dataset's own or a draw.
        fold: Which of several.
        name: Of the run; None takes network and dataset.
    """

    root: str
    layout: str = "auto"
    scheme: str | None = None
    split: str | None = None
    fold: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A run and why it is so.

    Args:
        settings: Complete.
        content: The same as plain values to be written: what follows from other settings is left
            out.
        reasons: Why, by setting.
        position: Place of its candidate among all of the planner's.
        estimate_bytes: Memory of one training step: tensors that are alive at its peak.
        notes: What the user should know beside the settings.
    """

    settings: RunSettings
    content: dict[str, Any]
    reasons: Reasons
    position: int
    estimate_bytes: int
    notes: tuple[str, ...]


class Planner:
    """Plans of one dataset and network; every answer follows from the arguments alone.

    Args:
        fingerprint: Of the training cases.
        network: Name of the network.
        place: Where it trains.
        data: What is written down of the dataset.
        spacing_mm: To be used instead of what the fingerprint tells.
        batch: To be used instead of what memory allows.

    Attributes:
        geometry: Axes and spacing.
        candidates: From the least to the largest, see
            :func:`~medseg.training.plan_candidates.candidates`.

    Raises:
        ConfigError: ``network-name`` if there is no such network.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        network: str,
        place: Place,
        data: DataChoice,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        batch: int | None = None,
    ) -> None:
        if network not in NETWORKS:
            raise ConfigError(
                "network",
                expected=one_of(network, NETWORKS),
                found=repr(network),
                remedy="choose one of them",
                code="network-name",
            )
        self.fingerprint = fingerprint
        self.network = network
        self.place: Place = place
        self.data = data
        self.geometry: Geometry = choose_geometry(fingerprint, spacing_mm)
        self._batch_given = batch is not None
        self.candidates: Sequence[Candidate] = candidates(
            self.geometry,
            network,
            place,
            channels=len(fingerprint.channels),
            cases=len(fingerprint.cases),
            batch=batch,
        )
        self.estimate: Callable[[int], int] = cache(self._estimate)

    def plan(self, memory_bytes: float, *, below: int | None = None) -> Plan:
        """The largest candidate whose training step stays within an amount of memory.

        Memory grows along the candidates, nearly as the voxels of a step do, so that few of them
        are looked at.

        Args:
            memory_bytes: The amount, for the tensors of one training step.
            below: Position that the answer must lie below.

        Raises:
            ResourceError: ``plan-memory`` if not even the least candidate does; it says how much
                that one takes.
        """
        top = (len(self.candidates) if below is None else below) - 1
        if top < 0 or self.estimate(0) > memory_bytes:
            self.refuse(memory_bytes, self.estimate(0))
        if self.estimate(top) <= memory_bytes:
            return self._composed(top)
        low, high = 0, top
        while high - low > 1:
            middle = self._between(low, high, memory_bytes)
            if self.estimate(middle) <= memory_bytes:
                low = middle
            else:
                high = middle
        return self._composed(low)

    def _between(self, low: int, high: int, memory_bytes: float) -> int:
        """The position within two, exclusive, at which memory would end were it linear."""
        voxels = [candidate.worked_voxels for candidate in self.candidates]
        span = self.estimate(high) - self.estimate(low)
        wanted = voxels[low] + (voxels[high] - voxels[low]) * (
            (memory_bytes - self.estimate(low)) / span
        )
        found = bisect.bisect_right(voxels, wanted) - 1
        return min(max(found, low + 1), high - 1)

    def refuse(self, memory_bytes: float, least_bytes: float) -> None:
        """Say that nothing fits, and what would.

        Raises:
            ResourceError: ``plan-memory``.
        """
        wanted = least_bytes * 1.1
        raise ResourceError(
            f"--memory {memory_bytes / 1e9:.2f} GB",
            expected=f"at least {max(wanted, 1e7) / 1e9:.2f} GB for the smallest step of "
            f"{self.network} on this dataset",
            found="less",
            remedy="give that much, plan a coarser --spacing or a smaller --batch, or choose a "
            "lighter network",
            code="plan-memory",
        )

    def _inputs(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "channels": [
                {
                    "name": channel.name[:32],
                    "modality": channel.modality,
                    "normalisation": self._normalisation(channel)[0],
                    **({"scaled_hu": list(SCALED_HU)} if self._is_scaled else {}),
                }
                for channel in self.fingerprint.channels
            ],
            "orientation": self.geometry.orientation,
            "spacing_mm": list(self.geometry.spacing_mm),
            "window_ijk": list(candidate.window_ijk),
            "overlap": 0.5,
            "interpolation": "linear",
            "thick_slices": "interpolate" if self.geometry.thick_axis is None else "nearest",
            "mirror_axes": ["ijk"[axis] for axis in self._flips()[0]] if self._is_long else [],
        }

    @property
    def _is_scaled(self) -> bool:
        return self.fingerprint.layout == "transunet"

    def _estimate(self, position: int) -> int:
        candidate = self.candidates[position]
        regions = self.fingerprint.region_settings
        out = len(regions) if regions else 1 + len(self.fingerprint.scheme.values)
        choice = candidate.network
        whole = NetworkChoice(
            name=choice.name,
            settings={**choice.settings, "out_channels": out},
            slices=choice.slices,
        )
        inputs = InputSettings.model_validate(self._inputs(candidate))
        with torch.device("meta"):
            network = build_volume_network(whole, inputs)
        shape = (candidate.batch, network.in_channels, *candidate.patch_ijk)
        return training_bytes(network, shape)

    def _normalisation(self, channel: ChannelFacts) -> tuple[dict[str, Any], str]:
        if channel.modality == "CT":
            return {
                "kind": "clip_zscore",
                "lower": round(channel.percentile_00_5, 4),
                "upper": round(max(channel.percentile_99_5, channel.percentile_00_5 + 1e-3), 4),
                "mean": round(channel.mean, 4),
                "std": round(max(channel.std, 1e-3), 4),
            }, "0.5th and 99.5th percentile, mean and deviation in the structures, as nnU-Net"
        if channel.modality == "MR" and self.fingerprint.nonzero_share < STRIPPED_SHARE:
            share = 100 * self.fingerprint.nonzero_share
            return {
                "kind": "zscore",
                "nonzero_only": True,
            }, f"{share:.0f} % of the voxels are not zero: skull-stripped, as nnU-Net"
        return {"kind": "zscore", "nonzero_only": False}, "of each image; MR has no fixed scale"

    def _flips(self) -> tuple[tuple[int, ...], str]:
        """Axes that may be mirrored, and what keeps the others from it."""
        scheme, orientation = self.fingerprint.scheme, self.geometry.orientation
        axis = left_right_axis(orientation)
        sided = [scheme.labels[number - 1].name for number in mirrored_classes(scheme)]
        if sided and axis is None:
            return (), f"none: {sided[0]!r} has a side, and the left-right axis differs"
        barred = {axis: sided[0]} if sided and axis is not None else {}
        for letters, pair in zip(("AP", "SI", "SI"), _OPPOSITES, strict=True):
            name = _has_opposite(scheme, pair)
            if name and axis is None:
                return (), f"none: {name!r} has an opposite, and its axis differs"
            if name:
                along = next(n for n, letter in enumerate(orientation) if letter in letters)
                barred[along] = name
        if not barred:
            return (0, 1, 2), "all: no structure has a side"
        named = ", ".join(f"{'ijk'[n]} ({name!r} has a side)" for n, name in barred.items())
        return tuple(n for n in range(3) if n not in barred), f"without {named}"

    def _composed(self, position: int) -> Plan:
        candidate = self.candidates[position]
        facts, geometry = self.fingerprint, self.geometry
        inputs = self._inputs(candidate)
        network: dict[str, Any] = {
            "name": candidate.network.name,
            "settings": candidate.network.settings,
        }
        if candidate.network.slices is not None:
            network["slices"] = candidate.network.slices.model_dump(mode="json")
        channels_out: dict[str, Any] = {
            "out_channels": len(facts.regions) or 1 + len(facts.scheme.values)
        }
        given: dict[str, Any] = {
            "name": run_name(self.data.name or f"{self.network}_{facts.dataset}"),
            "version": "1",
            "description": f"{', '.join(one.name for one in facts.classes)} in "
            f"{', '.join(channel.name for channel in facts.channels)}; planned from "
            f"{len(facts.cases)} training cases of {facts.dataset}.",
            "licence": facts.licence or "unknown",
            "intended_use": "Research software, not a medical device.",
            "data": {
                "layout": facts.layout if self.data.layout == "auto" else self.data.layout,
                "root": self.data.root,
                "scheme": self.data.scheme,
                "split": self.data.split,
                "fold": self.data.fold,
            },
            "labels": facts.labels,
            "regions": list(facts.regions) or None,
            "ignore_value": facts.ignore_value,
            "inputs": inputs,
            "network": network,
            "training": self._training(candidate),
        }
        settings = parse_settings(
            {**given, "network": {**network, "settings": {**network["settings"], **channels_out}}},
            where="plan",
        )
        dumped = settings.model_dump(mode="json")
        # the channels follow from inputs and labels
        dumped["network"]["settings"] = network["settings"]
        order = [*given, *(key for key in dumped if key not in given)]
        return Plan(
            settings=settings,
            content={key: dumped[key] for key in order},
            reasons=self._reasons(candidate, geometry),
            position=position,
            estimate_bytes=self.estimate(position),
            notes=self._notes(candidate),
        )

    def _training(self, candidate: Candidate) -> dict[str, Any]:
        cases = len(self.fingerprint.cases)
        steps = _STEPS[self.place, NETWORKS[self.network].rank]
        axes, _ = self._flips()
        augmentation = PRESETS["nnunet" if self._is_long else "light"].replaced(
            dummy_2d="always" if self._flatness(candidate) else "never",
            flip_axes=axes,
            flip_probability=0.5 if axes and self._is_long else 0.0,
        )
        # an epoch takes each case once; where there are fewer cases than patches, several of each
        samples = -(-candidate.batch // cases)
        batch = -(-candidate.batch // samples)
        return {
            "epochs": None,
            "steps": steps,
            "batch_size": batch,
            "samples_per_case": samples,
            "patch_ijk": list(candidate.patch_ijk),
            "optimizer": "adamw",
            "learning_rate": _RATES[self.network],
            "weight_decay": 0.01,
            "warmup": 0.03,
            "batch_dice": self._is_part(candidate),
            "foreground_share": self._forced(),
            "gradient_clip": 12.0,
            "device": "cpu" if self.place == "cpu" else "auto",
            "workers": 0 if self.place == "cpu" else 8,
            "validate_every": max(1, round(steps / max(1, cases // batch) / _VALIDATIONS)),
            "augmentation": augmentation.model_dump(mode="json"),
        }

    @property
    def _is_long(self) -> bool:
        """Whether training is long enough to learn every case mirrored and turned all ways."""
        return self.place == "cuda"

    def _flatness(self, candidate: Candidate) -> str:
        """Why patches are turned within slices alone; empty if they are turned in space."""
        patch, spacing_mm = candidate.patch_ijk, self.geometry.spacing_mm
        if NETWORKS[self.network].rank == 2:
            return "the network is 2D"
        if self.geometry.thick_axis is not None:
            return (
                f"slices are thick, {max(spacing_mm):.3g} mm where voxels are "
                f"{min(spacing_mm):.3g} mm wide"
            )
        if max(patch) > _FLAT * min(patch):
            return f"the patch is flat, {min(patch)} voxels to {max(patch)}"
        return ""

    def _is_part(self, candidate: Candidate) -> bool:
        """Whether a patch shows less than a quarter of a middle case."""
        voxels, whole = 1, 1
        for extent, median in zip(candidate.patch_ijk, self.geometry.median_ijk, strict=True):
            voxels, whole = voxels * extent, whole * median
        return 4 * voxels < whole

    def _forced(self) -> float:
        share = self.fingerprint.foreground_share
        return next(forced for limit, forced in _FORCED if share <= limit)

    def _notes(self, candidate: Candidate) -> tuple[str, ...]:
        notes = [
            f"no training case shows {one.name!r}: it cannot be learned"
            for one in self.fingerprint.classes
            if one.cases == 0
        ]
        shortest, *others = sorted(self.geometry.median_ijk)
        if (self.fingerprint.spacings_mm("RAS") == 1.0).all() and 3 * shortest < min(others):
            notes.append(
                "every case says 1 mm on every axis and has few slices: the files may have lost "
                "the voxel size; then set spacing_mm to null, or repair the headers and plan again"
            )
        if self.network == "revunet" and self.geometry.thick_axis is not None:
            notes.append(
                "revunet halves all axes alike; the thick slices allow it "
                f"{len(candidate.network.settings['widths'])} levels"
            )
        return tuple(notes)

    def _reasons(self, candidate: Candidate, geometry: Geometry) -> Reasons:
        facts = self.fingerprint
        share = 100 * facts.foreground_share
        median = " x ".join(str(extent) for extent in geometry.median_ijk)
        data_share = 100 * candidate.batch * _voxels(candidate.patch_ijk) / geometry.voxels
        flips = self._flips()[1]
        planes = NETWORKS[self.network].rank == 2
        reasons = {
            "licence": "of the weights; this is what the dataset says",
            "data.root": (
                "a place on this machine"
                if Path(self.data.root).is_absolute()
                else "from the current directory"
            )
            + "; --data replaces it",
            "data.split": f"this plan was made of: {facts.split_source}",
            "labels": "as the dataset names them",
            "regions": "overlapping; trained in place of the labels",
            "ignore_value": "voxels that nobody judged",
            "inputs.orientation": geometry.orientation_reason,
            "inputs.spacing_mm": geometry.spacing_reason,
            "inputs.window_ijk": f"middle case {median}"
            + (
                "; a 2D network takes slices of any extents"
                if planes
                else "; equal in mm as far as that and memory allow, legal for the network"
            ),
            "inputs.interpolation": "or cubic; both average where voxels get larger",
            "inputs.thick_slices": "as nnU-Net where slices are more than three times as thick as "
            "wide"
            if geometry.thick_axis is not None
            else "no slices are more than three times as thick as wide",
            "inputs.mirror_axes": "those that training mirrors"
            if self._is_long
            else "training mirrors none",
            "network.settings": "as large as the published network"
            if self.place == "cuda"
            else "for a CPU; a plan for a GPU is larger",
            "network.slices.axis": "across the thick slices"
            if geometry.thick_axis is not None
            else "axial",
            "network.slices.neighbours": "2.5D: one channel and thin slices"
            if candidate.network.slices and candidate.network.slices.neighbours
            else "2D",
            "network.slices.extents": "legal for the network, in the slice's proportions",
            "training.steps": "ours; --budget replaces it",
            "training.batch_size": "as asked for"
            if self._batch_given
            else f"patches are {data_share:.2g} % of the data; more than {LEAST_BATCH} only up to "
            f"{100 * DATA_SHARE:.0f} %",
            "training.samples_per_case": "patches of a case in a batch",
            "training.optimizer": "ours, as the shipped configurations",
            "training.learning_rate": "ours, as the shipped configurations",
            "training.batch_dice": "a patch shows less than a quarter of a case"
            if self._is_part(candidate)
            else "a patch shows a good part of a case",
            "training.foreground_share": f"structures fill {share:.2g} % of the voxels; nnU-Net "
            "has 0.33",
            "training.gradient_clip": "as nnU-Net",
            "training.precision": "measured when training begins",
            "training.channels_last": "measured too",
            "training.device": "where this was planned for",
            "training.augmentation": "nnU-Net's probabilities, spelled out"
            if self._is_long
            else "the preset light: a CPU makes too few steps for that of nnU-Net, named nnunet",
            "training.augmentation.dummy_2d": f"turn within slices: {flatness}"
            if (flatness := self._flatness(candidate))
            else "turn in space: neither slices nor patch are more than three times as long one "
            "way as another",
            "training.augmentation.flip_axes": flips
            if self._is_long
            else f"not mirrored, but where flip_probability is raised: {flips}",
        }
        if "widths" in candidate.network.settings:
            reasons["network.settings.widths"] = (
                f"{len(candidate.network.settings['widths'])} levels: the coarsest map keeps 4 "
                "voxels (2 across thick slices)"
            )
        if "strides" in candidate.network.settings:
            reasons["network.settings.strides"] = "an axis is halved once its spacing is the finest"
            reasons["network.settings.kernels"] = "1 across slices as long as they are thick"
        for number, channel in enumerate(facts.channels):
            place = f"inputs.channels.{number}.normalisation"
            reasons[place] = self._normalisation(channel)[1]
            if self._is_scaled:
                place = f"inputs.channels.{number}.scaled_hu"
                reasons[place] = "what 0 and 1 stand for in TransUNet's preprocessing"
        return reasons


def _voxels(patch: Sequence[int]) -> int:
    i, j, k = patch
    return i * j * k


def _has_opposite(scheme: LabelScheme, pair: tuple[str, str]) -> str | None:
    """The first structure that is told from another by one word of the pair alone."""
    names = {tuple(re.findall(r"[a-z0-9]+", label.name.lower())): label for label in scheme.labels}
    for words, label in names.items():
        if pair[0] in words and tuple(pair[1] if w == pair[0] else w for w in words) in names:
            return label.name
    return None


def run_name(text: str) -> str:
    """A text as the name of a run may be."""
    return re.sub(r"[^a-z0-9_.-]+", "_", text.lower()).strip("_.-")[:64] or "run"
