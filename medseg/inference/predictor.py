"""Trained models, ready to segment any number of volumes."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn

from medseg.core import AxisTurn, Grid, LabelMap, Lean, Volume, axis_turn
from medseg.data.preparation import ModelImage, check_image, model_shape
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.events import Listener, Silent
from medseg.inference.engine import (
    PROBABILITY_BYTES,
    Outputs,
    Slab,
    StreamingEngine,
    Sweep,
    smallest_axis,
    turned_box,
)
from medseg.inference.memory import (
    DryPass,
    Item,
    MemoryPlan,
    PeakMeter,
    dry_pass,
    in_words,
    measured_vram,
    plan_memory,
    program_bytes,
)
from medseg.inference.numerics import (
    InferenceNumerics,
    choose_inference_numerics,
    inference_threads,
    using_threads,
)
from medseg.inference.post_processing import clean_labels
from medseg.inference.settings import PredictionSettings
from medseg.inference.sweep import TOO_LARGE, Box, Group, is_out_of_memory
from medseg.models.card import InputSettings, ModelCard
from medseg.models.folder import load_model
from medseg.models.inference_form import converted, to_inference_form
from medseg.ops.device import choose_device
from medseg.ops.winners import Decision

__all__ = ["Finished", "Member", "Prediction", "Predictor", "ProbabilitySink", "in_slices"]

ProbabilitySink = Callable[[int, tuple[int, int, int], npt.NDArray[np.float32]], None]
"""Told the axis of sweeping, the first voxel, and the ``(n, i, j, k)`` probabilities of a box of
the image's own grid. Boxes cover the image, and no two have a voxel in common. As a rule each is a
slab across the axis, in rising order; where memory is short, and round a region, it is a part."""

_FREE_SHARE = 0.9
_SEARCH_COARSER = 2.0
_SEARCH_MARGIN_MM = 20.0
_UNTURNED = AxisTurn((0, 1, 2), (False, False, False))


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One trained network of an ensemble, or the only one.

    Args:
        network: In inference form, on the device.
        card: What it expects and answers.
        numerics: Precision and layout that it runs in.
    """

    network: nn.Module
    card: ModelCard
    numerics: InferenceNumerics


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A segmentation and what it took.

    Args:
        labels: On the grid of the image as given.
        entropy_ijk: uint8 on that grid, 255 being the largest entropy there can be; None if not
            wanted.
        plan: What was foretold.
        peak_ram_bytes: Largest memory of the process while it went on.
        peak_vram_bytes: The same on the GPU; None without one.
        windows: Windows there were.
        windows_computed: Those that went through the networks.
        forward_calls: Times that a network was run.
        steps_down: What was given up when memory ran out, in words.
        seconds: Wall-clock time per stage: ``plan``, ``network``, ``post_processing``.
        notes: What a careful reader should know, such as that the image had to be padded.
    """

    labels: LabelMap
    entropy_ijk: npt.NDArray[np.uint8] | None
    plan: MemoryPlan
    peak_ram_bytes: int
    peak_vram_bytes: int | None
    windows: int
    windows_computed: int
    forward_calls: int
    steps_down: tuple[str, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A part of the result that will not change any more, apart from post-processing.

    Args:
        box: First and, exclusive, last voxel on each axis of the image as given.
        labels_ijk: The labels of the whole image, as far as they are there.
    """

    box: Box
    labels_ijk: npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class _Task:
    """One pass over one image."""

    engine: StreamingEngine
    plan: MemoryPlan
    to_frame: AxisTurn
    labels_ijk: npt.NDArray[Any]
    entropy_ijk: npt.NDArray[np.uint8] | None


class Predictor:
    """One model, or several as an ensemble; build once, use for many volumes.

    Members whose inputs are prepared alike (the folds of one training) see the same windows, and
    their logits are averaged. Others have their probabilities averaged on the image's own grid.

    Args:
        members: At least one; all with the same labels.
        settings: How predictions are made.
        device: Where the networks are.

    Attributes:
        elsewhere: Asked before each plan what the process holds of other images, and what it will
            hold of them at most while this one is worked on, both in bytes; None for nothing.

    Raises:
        ConfigError: ``ensemble-labels`` if the members' labels differ.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: PredictionSettings | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.members = tuple(members)
        self.settings = settings or PredictionSettings()
        self.device = device or torch.device("cpu")
        self.card = self.members[0].card
        _check_labels_alike([member.card for member in self.members])
        self.elsewhere: Callable[[], tuple[int, int]] | None = None
        self._passes: dict[tuple[int, int, tuple[int, ...]], DryPass] = {}

    @classmethod
    def load(
        cls,
        folder: Path | Sequence[Path],
        settings: PredictionSettings | None = None,
        *,
        device: str = "auto",
        store: Path | None = None,
    ) -> Predictor:
        """Load model folders onto a device.

        Args:
            folder: A model folder, or a run folder that holds one; several for an ensemble.
            settings: How predictions are made.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            store: File that keeps measured choices of precision between runs; None keeps nothing.

        Raises:
            ConfigError: If a folder or the device cannot be used, or the models' labels differ.
            FormatError: If weights are damaged.
        """
        settings = settings or PredictionSettings()
        folders = [folder] if isinstance(folder, Path) else list(folder)
        if not folders:
            raise ConfigError(
                "model",
                expected="at least one model folder",
                found="none",
                remedy="name a model",
                code="model-missing",
            )
        place = choose_device(device)
        with using_threads(_threads(settings)):
            members = [_loaded(one, settings, place, store) for one in folders]
        return cls(members, settings, place)

    @property
    def threads(self) -> int:
        """CPU threads that the networks run with."""
        return _threads(self.settings)

    def plan(
        self, volume: Volume, *, roi: Box | None = None, probabilities: bool = False
    ) -> MemoryPlan:
        """What predicting a volume will hold in memory, and how it will go about it.

        The networks run once on a window, if they have not yet.

        Args:
            volume: The image.
            roi: Box of voxels to look at.
            probabilities: Whether they will be asked for.

        Raises:
            As :meth:`predict`, before any work on the image.
        """
        lean = Lean.of(volume.grid)
        if roi is not None:
            roi = _checked(roi, volume.grid)
        if lean is not None:
            roi = None if roi is None else lean.upright_box(roi)
            volume = lean.straighten(volume)
        self._check_image(volume)
        with using_threads(_threads(self.settings)), torch.inference_mode():
            return self._task(volume, roi, probabilities, leaning=lean is not None).plan

    def _check_image(self, volume: Volume) -> list[str]:
        """Refuse an image that does not fit the members; what is to be noted of one that does."""
        notes: list[str] = []
        for member in self.members:
            notes += check_image(volume, member.card.inputs, coarser=self.settings.coarser)
        return notes

    def predict(
        self,
        volume: Volume,
        listener: Listener | None = None,
        *,
        roi: Box | None = None,
        on_probabilities: ProbabilitySink | None = None,
    ) -> Prediction:
        """Segment one volume.

        Args:
            volume: The image.
            listener: Told of progress; asked between windows whether to stop.
            roi: Box of voxels to look at; the rest is background.
            on_probabilities: Gets the probabilities, slab by slab, if given.

        Raises:
            ShapeError: If the number of channels is not the model's.
            GeometryError: If the image is a single slice or far smaller than the model's window.
            ResourceError: If memory does not suffice: told before the work begins where it can be.
            FormatError: ``network-not-finite``.
            Cancelled: If the listener asked to stop.
        """
        return _last(self.slabs(volume, listener, roi=roi, on_probabilities=on_probabilities))

    def slabs(
        self,
        volume: Volume,
        listener: Listener | None = None,
        *,
        roi: Box | None = None,
        on_probabilities: ProbabilitySink | None = None,
    ) -> Generator[Finished, None, Prediction]:
        """As :meth:`predict`, yielding after each finished slab.

        A stack that leans by more than 0.5 degrees, as those of a tilted gantry do, is set upright
        for the network, and its labels and probabilities are leant back: each voxel gets those of
        the upright voxel nearest to it. It comes as one slab.

        Returns:
            The prediction, as the generator's value.
        """
        lean = Lean.of(volume.grid)
        if lean is not None:
            leant = self._leaning(volume, lean, listener, roi, on_probabilities)
            whole = [(0, extent) for extent in volume.grid.shape_ijk]
            yield Finished((whole[0], whole[1], whole[2]), leant.labels.data_ijk)
            return leant
        slabs = self._in_turns(self._slabs(volume, listener or Silent(), roi, on_probabilities))
        return (yield from slabs)

    def _in_turns(
        self, slabs: Generator[Finished, None, Prediction]
    ) -> Generator[Finished, None, Prediction]:
        """The same slabs, with this process's threads as settings want them while they are made."""
        try:
            while True:
                with using_threads(_threads(self.settings)):  # left while the caller has its turn
                    try:
                        part = next(slabs)
                    except StopIteration as finished:
                        prediction: Prediction = finished.value
                        return prediction
                yield part
        finally:
            slabs.close()

    def _leaning(
        self,
        volume: Volume,
        lean: Lean,
        listener: Listener | None,
        roi: Box | None,
        on_probabilities: ProbabilitySink | None,
    ) -> Prediction:
        box = None if roi is None else _checked(roi, volume.grid)
        sink = None
        if on_probabilities is not None:
            sink = _LeaningSink(lean, on_probabilities, box, self.card.regions is not None)
        slabs = self._slabs(
            lean.straighten(volume),
            listener or Silent(),
            None if box is None else lean.upright_box(box),
            sink,
            leaning=True,
        )
        upright = _last(self._in_turns(slabs))
        labels = lean.lean_back(upright.labels)
        if box is not None:
            inside = np.zeros(labels.data_ijk.shape, dtype=bool)
            inside[tuple(slice(*span) for span in box)] = True
            labels = LabelMap(np.where(inside, labels.data_ijk, 0), labels.grid, labels.scheme)
        entropy = upright.entropy_ijk
        return replace(
            upright,
            labels=labels,
            entropy_ijk=None if entropy is None else lean.lean_array_back(entropy),
            notes=(
                f"the stack leans by {volume.grid.shear_deg:.1f} degrees: it was set upright for "
                "the network and the labels leant back",
                *upright.notes,
            ),
        )

    def _slabs(
        self,
        volume: Volume,
        listener: Listener,
        roi: Box | None,
        on_probabilities: ProbabilitySink | None,
        *,
        leaning: bool = False,
    ) -> Generator[Finished, None, Prediction]:
        settings = self.settings
        clock = time.perf_counter()
        notes: list[str] = []
        with PeakMeter() as meter, measured_vram(self.device) as vram:
            notes += self._check_image(volume)
            for member in self.members:
                notes += member.numerics.notes
            try:
                if roi is not None:
                    roi = _checked(roi, volume.grid)
                    notes.append(f"only voxels {in_slices(roi)} were looked at")
                    if settings.find_region:
                        notes.append("no region was searched for, since one was given")
                elif settings.find_region:
                    roi, found = self._search(volume, listener)
                    notes += found
                notes += self._mirror_notes()
                task = self._task(volume, roi, on_probabilities is not None, leaning=leaning)
                planned_at = time.perf_counter()
                feed = _ProbabilityFeed(task, volume.grid, on_probabilities, roi)
                outputs = Outputs(
                    task.to_frame.turn_array(task.labels_ijk),
                    None
                    if task.entropy_ijk is None
                    else task.to_frame.turn_array(task.entropy_ijk),
                )
                back = task.to_frame.inverse()
                for slab in task.engine.run(outputs, listener):
                    feed.take(slab)
                    frame_shape = task.to_frame.turn_grid(volume.grid).shape_ijk
                    yield Finished(turned_box(slab.box, back, frame_shape), task.labels_ijk)
                feed.finish()
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, MedsegError) or not is_out_of_memory(error):
                    raise
                raise _out_of_memory(self.device) from error
            networked_at = time.perf_counter()
            labels = LabelMap(task.labels_ijk, volume.grid, self.card.scheme())
            cleaning = settings.post_processing
            if cleaning is None:
                cleaning = self.card.post_processing
            if cleaning:
                labels, changes = clean_labels(labels, cleaning, listener)
                notes += changes
            peak = meter.look()
        engine = task.engine
        notes += [
            f"went on with {step}" if step == TOO_LARGE else f"memory ran out, went on with {step}"
            for step in engine.steps_taken
        ]
        return Prediction(
            labels=labels,
            entropy_ijk=task.entropy_ijk,
            plan=task.plan,
            peak_ram_bytes=peak,
            peak_vram_bytes=vram[0] if vram else None,
            windows=engine.windows,
            windows_computed=engine.windows_computed,
            forward_calls=engine.forward_calls,
            steps_down=tuple(engine.steps_taken),
            seconds={
                "plan": planned_at - clock,
                "network": networked_at - planned_at,
                "post_processing": time.perf_counter() - networked_at,
            },
            notes=tuple(dict.fromkeys(notes)),
        )

    def _task(
        self, volume: Volume, roi: Box | None, probabilities: bool, *, leaning: bool = False
    ) -> _Task:
        settings = self.settings
        for member in self.members:
            _check_size(volume, member.card, settings)
        sets = _alike([member.card.inputs for member in self.members])
        # probabilities come in the order of the image's own axes, and several groups must agree
        plain_frame = len(sets) > 1 or probabilities
        to_frame = (
            _UNTURNED if plain_frame else axis_turn(volume.grid, self.card.inputs.orientation)
        )
        wanted = self._body(volume, to_frame)
        groups = [self._group(volume, to_frame, numbers, wanted) for numbers in sets]
        decision = Decision(
            values=self.card.class_values,
            overlapping=self.card.regions is not None,
            entropy=settings.uncertainty,
            probabilities=probabilities,
        )
        # whole slices are leant back as they are; parts of them would not follow on each other
        axis = 2 if leaning and probabilities else smallest_axis(groups)
        engine = StreamingEngine(
            groups,
            decision,
            Sweep(axis, settings.batch, place=self.device),
            None if roi is None else turned_box(roi, to_frame, volume.grid.shape_ijk),
        )
        passes = self._dry_passes(groups, sets)
        engine.sweep = replace(engine.sweep, batch=passes[0].batch)
        kind = np.uint8 if max(self.card.scheme().values) <= 255 else np.uint16
        order = _memory_order(volume)
        shape = volume.grid.shape_ijk
        labels_ijk = np.zeros(shape, dtype=kind, order=order)
        entropy_ijk = np.zeros(shape, dtype=np.uint8, order=order) if settings.uncertainty else None
        plan = self._planned(engine, passes, volume, [labels_ijk, entropy_ijk])
        engine.sweep = plan.sweep
        return _Task(engine, plan, to_frame, labels_ijk, entropy_ijk)

    def _planned(
        self,
        engine: StreamingEngine,
        passes: Sequence[DryPass],
        volume: Volume,
        outputs: Sequence[npt.NDArray[Any] | None],
    ) -> MemoryPlan:
        settings = self.settings
        on_gpu = self.device.type == "cuda"
        weights = sum(
            tensor.nbytes
            for member in self.members
            for tensor in (*member.network.parameters(), *member.network.buffers())
        )
        image = volume.data_cijk.nbytes
        resident = program_bytes()
        others, most_others = self.elsewhere() if self.elsewhere else (0, 0)
        program = max(0, resident - image - others - (0 if on_gpu else weights))
        held = [
            Item("program", "ram", program),
            Item("weights", "vram" if on_gpu else "ram", weights),
            Item("input", "ram", image),
            Item("output", "ram", sum(array.nbytes for array in outputs if array is not None)),
        ]
        if most_others:
            held.append(Item("cases read ahead or being written", "ram", most_others))
        max_ram, max_vram = settings.max_ram_bytes, settings.max_vram_bytes
        if max_ram is None:
            max_ram = resident + int(_FREE_SHARE * psutil.virtual_memory().available)
        if max_vram is None and on_gpu:
            free, _ = torch.cuda.mem_get_info(self.device)
            max_vram = int(_FREE_SHARE * (free + torch.cuda.memory_reserved(self.device)))
        try:
            plan = plan_memory(
                engine, passes, held=held, max_ram_bytes=max_ram, max_vram_bytes=max_vram
            )
        except ResourceError as error:
            if settings.max_ram_bytes is not None or settings.max_vram_bytes is not None:
                raise
            raise _too_large(volume.grid, engine.groups[0].image.grid.shape_ijk, error) from error
        return replace(
            plan, max_ram_bytes=settings.max_ram_bytes, max_vram_bytes=settings.max_vram_bytes
        )

    def _group(
        self,
        volume: Volume,
        to_frame: AxisTurn,
        numbers: Sequence[int],
        wanted: npt.NDArray[np.bool_] | None,
    ) -> Group:
        settings = self.settings
        members = [self.members[number] for number in numbers]
        inputs = members[0].card.inputs
        image = ModelImage(volume, inputs, coarser=settings.coarser, frame=to_frame)
        axes = inputs.mirror_axes if settings.mirror == "model" else settings.mirror
        return Group(
            networks=tuple(member.network for member in members),
            image=image,
            window_ijk=image.in_frame(inputs.window_ijk),
            overlap=inputs.overlap if settings.overlap is None else settings.overlap,
            blending=settings.blending,
            mirror_axes=tuple("ijk".index(axis) for axis in axes),
            device=self.device,
            channels_last=members[0].numerics.channels_last,
            overlapping=self.card.regions is not None,
            skip_constant=settings.skip != "none",
            wanted=wanted,
        )

    def _dry_passes(self, groups: Sequence[Group], sets: Sequence[Sequence[int]]) -> list[DryPass]:
        batch = self.settings.batch
        while True:
            try:
                return [
                    self._dry_pass(group, numbers[0], batch)
                    for group, numbers in zip(groups, sets, strict=True)
                ]
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if batch == 1:
                    raise _out_of_memory(self.device) from error
                batch //= 2

    def _dry_pass(self, group: Group, number: int, batch: int) -> DryPass:
        key = number, batch, group.mirror_axes
        if key not in self._passes:
            with torch.inference_mode():
                self._passes[key] = dry_pass(group, batch)
        return self._passes[key]

    def _body(self, volume: Volume, to_frame: AxisTurn) -> npt.NDArray[np.bool_] | None:
        if self.settings.skip != "body":
            return None
        from medseg.inference.body import body_mask  # noqa: PLC0415 - imports scipy.ndimage

        is_ct = self.card.inputs.channels[0].modality == "CT"
        turned: npt.NDArray[np.bool_] = to_frame.turn_array(body_mask(volume, is_ct=is_ct))
        return turned

    def _search(self, volume: Volume, listener: Listener) -> tuple[Box | None, list[str]]:
        """The box round everything that a rough pass finds, with a margin."""
        rough = Predictor(
            self.members,
            self.settings.model_copy(
                update={
                    "coarser": self.settings.coarser * _SEARCH_COARSER,
                    "find_region": False,
                    "overlap": 0.25,
                    "mirror": (),
                    "uncertainty": False,
                    "post_processing": (),
                }
            ),
            self.device,
        )
        rough._passes = self._passes
        try:
            rough._check_image(volume)
        except MedsegError:
            return None, ["too small for a rough pass: the whole image was predicted"]
        labels_ijk = rough.predict(volume, listener).labels.data_ijk
        spans = []
        for axis, (extent, step) in enumerate(
            zip(volume.grid.shape_ijk, volume.grid.spacing_mm, strict=True)
        ):
            others = tuple(other for other in range(3) if other != axis)
            there = np.flatnonzero(labels_ijk.any(axis=others))
            if there.size == 0:
                return None, ["the rough pass found nothing: the whole image was predicted"]
            margin = math.ceil(_SEARCH_MARGIN_MM / step)
            spans.append((max(0, int(there[0]) - margin), min(extent, int(there[-1]) + 1 + margin)))
        box = (spans[0], spans[1], spans[2])
        return box, [
            f"looked closely at voxels {in_slices(box)} only, where a rough pass found something"
        ]

    def _mirror_notes(self) -> list[str]:
        """A warning where a model is mirrored along axes that its training did not mirror."""
        if self.settings.mirror == "model":
            return []
        strange = sorted(
            {
                axis
                for member in self.members
                for axis in set(self.settings.mirror) - set(member.card.inputs.mirror_axes)
            }
        )
        if not strange:
            return []
        return [
            f"the model was not trained with mirroring along {', '.join(strange)}: "
            "test-time augmentation there can ruin the result"
        ]


def in_slices(box: Box) -> str:
    """A box as ``--roi`` takes it.

    >>> in_slices(((10, 60), (0, 50), (5, 25)))
    '10:60,0:50,5:25'
    """
    return ",".join(f"{first}:{last}" for first, last in box)


class _ProbabilityFeed:
    """Hands probabilities on box by box, then background for what was not looked at.

    Args:
        task: Its slabs are on the image's own axes.
        grid: Of the image.
        sink: Where they go, or None.
        roi: What is looked at, or None for everything.
    """

    def __init__(
        self, task: _Task, grid: Grid, sink: ProbabilitySink | None, roi: Box | None
    ) -> None:
        self._sink = sink
        self._decision = task.engine.decision
        self._axis = task.engine.sweep.axis
        i, j, k = grid.shape_ijk
        self._whole: Box = (0, i), (0, j), (0, k)
        self._seen = roi or self._whole

    def take(self, slab: Slab) -> None:
        """Pass a slab on."""
        if self._sink is not None and slab.probabilities is not None:
            self._sink(self._axis, _corner(slab.box), slab.probabilities)

    def finish(self) -> None:
        """Fill what is left, a few planes at a time."""
        if self._sink is None:
            return
        for box in _around(self._seen, self._whole):
            classes, plane = len(self._decision.values), math.prod(b - a for a, b in box)
            extent = box[self._axis][1] - box[self._axis][0]
            planes = max(1, PROBABILITY_BYTES * extent // max(1, 4 * classes * plane))
            for first in range(*box[self._axis], planes):
                part = list(box)
                part[self._axis] = first, min(first + planes, box[self._axis][1])
                self._sink(self._axis, _corner(part), self._background(part))

    def _background(self, box: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        extents = [last - first for first, last in box]
        values_nijk = np.zeros((len(self._decision.values), *extents), dtype=np.float32)
        if not self._decision.overlapping:
            values_nijk[0] = 1.0
        return values_nijk


class _LeaningSink:
    """Hands the probabilities of an upright volume on as those of the stack that leans.

    Args:
        lean: How the two lie.
        sink: Where they go.
        box: Voxels of the stack that are looked at, or None for all; the rest is background.
        overlapping: Whether the background is no class of its own.
    """

    def __init__(
        self, lean: Lean, sink: ProbabilitySink, box: Box | None, overlapping: bool
    ) -> None:
        self._lean = lean
        self._sink = sink
        self._box = box
        self._overlapping = overlapping

    def __call__(
        self, axis: int, corner_ijk: tuple[int, int, int], values_nijk: npt.NDArray[np.float32]
    ) -> None:
        for at in range(values_nijk.shape[3]):
            k = corner_ijk[2] + at
            spans, parts = [], []
            for first, offset, extent, most in zip(
                corner_ijk,
                self._lean.nearest_ij(k),
                values_nijk.shape[1:3],
                self._lean.grid.shape_ijk,
                strict=False,
            ):
                low, high = max(0, first - offset), min(most, first - offset + extent)
                spans.append((low, high))
                parts.append(slice(low + offset - first, high + offset - first))
            if all(low < high for low, high in spans):
                piece = values_nijk[:, parts[0], parts[1], at : at + 1]
                corner = spans[0][0], spans[1][0], k
                self._sink(axis, corner, self._within(piece, corner))

    def _within(
        self, piece_nijk: npt.NDArray[np.float32], corner_ijk: tuple[int, int, int]
    ) -> npt.NDArray[np.float32]:
        if self._box is None:
            return piece_nijk
        kept = np.zeros_like(piece_nijk)
        if not self._overlapping:
            kept[0] = 1.0
        inside = tuple(
            slice(max(0, low - first), max(0, high - first))
            for first, (low, high) in zip(corner_ijk, self._box, strict=True)
        )
        kept[:, *inside] = piece_nijk[:, *inside]
        return kept


def _last(slabs: Generator[Finished, None, Prediction]) -> Prediction:
    """What comes of all slabs."""
    while True:
        try:
            next(slabs)
        except StopIteration as finished:
            prediction: Prediction = finished.value
            return prediction


def _corner(box: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
    i, j, k = (first for first, _ in box)
    return i, j, k


def _around(inner: Box, outer: Box) -> list[Box]:
    """Boxes that make up ``outer`` without ``inner``."""
    found: list[Box] = []
    rest = list(outer)
    for axis in range(3):
        (low, high), (first, last) = outer[axis], inner[axis]
        for span in ((low, first), (last, high)):
            if span[0] < span[1]:
                part = [*rest]
                part[axis] = span
                found.append((part[0], part[1], part[2]))
        rest[axis] = inner[axis]
    return found


def _loaded(
    folder: Path, settings: PredictionSettings, device: torch.device, store: Path | None
) -> Member:
    network, card = load_model(folder)
    network = network.to(device)
    form = to_inference_form(network)
    numerics = choose_inference_numerics(
        form,
        (1, len(card.inputs.channels), *card.inputs.window_ijk),
        device,
        settings.precision,
        store=store,
        key=f"{card.weights_sha256} {card.inputs.window_ijk}",
        regions=card.regions is not None,
    )
    if numerics.autocast_dtype is not None or not numerics.channels_last:
        form = converted(form, numerics.autocast_dtype, channels_last=numerics.channels_last)
    return Member(form, card, numerics)


def _threads(settings: PredictionSettings) -> int:
    cores = settings.threads or torch.get_num_threads()
    return inference_threads(cores, responsive=settings.responsive)


def _alike(inputs: Sequence[InputSettings]) -> list[list[int]]:
    """Numbers of the members whose inputs are prepared alike, group by group."""
    sets: list[list[int]] = []
    for number, one in enumerate(inputs):
        for numbers in sets:
            if inputs[numbers[0]] == one:
                numbers.append(number)
                break
        else:
            sets.append([number])
    return sets


def _names(card: ModelCard) -> list[tuple[int, str]]:
    return [(label.value, label.name) for label in card.scheme().labels]


def _check_labels_alike(cards: Sequence[ModelCard]) -> None:
    first = cards[0]
    for card in cards[1:]:
        names = [
            [(label.value, label.name) for label in one.scheme().labels] for one in (first, card)
        ]
        if names[0] != names[1] or first.regions != card.regions:
            raise ConfigError(
                f"model {card.name}",
                expected=f"the labels and regions of {first.name}, as their answers are averaged",
                found="others",
                remedy="predict with models of one label scheme, or one after the other",
                code="ensemble-labels",
            )


def _check_size(volume: Volume, card: ModelCard, settings: PredictionSettings) -> None:
    """Refuse an image whose header makes it absurdly large at the model's spacing.

    Raises:
        ResourceError: If not even the narrowest slab could be held.
    """
    inputs = card.inputs
    turned = axis_turn(volume.grid, inputs.orientation).turn_grid(volume.grid)
    shape = model_shape(turned, inputs, coarser=settings.coarser)
    least = min(
        2 * len(card.class_values) * window * math.prod(shape) // extent // 64
        for window, extent in zip(inputs.window_ijk, shape, strict=True)
    )
    free = psutil.virtual_memory().available
    if least > free or max(shape) > 1 << 24:
        raise _too_large(volume.grid, shape)


def _too_large(
    grid: Grid, shape: tuple[int, int, int], cause: ResourceError | None = None
) -> ResourceError:
    spacing = " x ".join(f"{step:g}" for step in grid.spacing_mm)
    free = psutil.virtual_memory().available
    return ResourceError(
        "image",
        expected=f"one that fits into the {in_words(free)} of memory that are free"
        + ("" if cause is None else f" ({cause.expected} in all)"),
        found=f"spacing {spacing} mm that makes {shape} voxels at the model's spacing",
        remedy="check the spacing in the image's header, crop the image, or use a machine with "
        "more memory",
        code="image-too-large",
    )


def _checked(roi: Any, grid: Grid) -> Box:  # noqa: ANN401 - whatever the caller gave
    """A region as three spans of whole numbers within the image.

    Raises:
        ConfigError: ``roi`` if it is something else.
    """
    whole = in_slices(tuple((0, extent) for extent in grid.shape_ijk))  # type: ignore[arg-type]
    try:
        spans = [(operator.index(first), operator.index(last)) for first, last in roi]
    except (TypeError, ValueError):
        spans = []
    fits = len(spans) == 3 and all(
        0 <= first < last <= extent
        for (first, last), extent in zip(spans, grid.shape_ijk, strict=True)
    )
    if not fits:
        raise ConfigError(
            "region of interest",
            expected=f"first < last on three axes, within the image's extents {whole}",
            found=in_slices((spans[0], spans[1], spans[2])) if len(spans) == 3 else repr(roi),
            remedy="give voxels of the image, counted from 0, the last one exclusive",
            code="roi",
        )
    return spans[0], spans[1], spans[2]


def _memory_order(volume: Volume) -> Any:  # noqa: ANN401 - numpy's literal
    """``F`` if the image's first axis is the fastest, as NIfTI's is, so that slabs lie together."""
    strides = np.abs(volume.data_cijk.strides[1:])
    return "F" if strides[0] < strides[2] else "C"


def _out_of_memory(device: torch.device) -> ResourceError:
    return ResourceError(
        "segmentation",
        expected="enough memory for one window of the network",
        found=f"none left on {device}",
        remedy="close other programs, or use another device or a smaller model",
        code="out-of-memory",
    )
