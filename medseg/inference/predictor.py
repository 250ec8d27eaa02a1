"""One trained model, ready to segment any number of volumes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from torch import nn

from medseg.core import Grid, LabelMap, Volume, axis_turn, respace_shape
from medseg.data.preparation import check_channels, check_extent, prepare
from medseg.errors import ConfigError, ResourceError
from medseg.events import Listener, Silent
from medseg.inference.engine import Engine, PlainEngine
from medseg.models.card import ModelCard
from medseg.models.folder import load_model
from medseg.models.network import arrange_weights
from medseg.ops.device import choose_device

__all__ = ["PRECISIONS", "Prediction", "Predictor"]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A segmentation and what it took.

    Args:
        labels: On the grid of the image as given.
        seconds: Wall-clock time per stage: ``prepare``, ``network``.
        notes: What a careful reader should know, such as that the image had to be padded.
    """

    labels: LabelMap
    seconds: dict[str, float]
    notes: tuple[str, ...]


class Predictor:
    """A network, its card and an engine; build once, use for many volumes.

    Args:
        network: In eval mode, on the engine's device.
        card: What the network expects and answers.
        engine: Runs the network over windows.
    """

    def __init__(self, network: nn.Module, card: ModelCard, engine: Engine) -> None:
        self.network = network
        self.card = card
        self.engine = engine

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        overlap: float | None = None,
        batch: int = 1,
    ) -> Predictor:
        """Load a model folder onto a device.

        Args:
            folder: A model folder, or a run folder that holds one.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: Arithmetic inside the network.
            overlap: Window overlap, 0 to below 1; None takes the model's own.
            batch: Windows per forward call.

        Raises:
            ConfigError: If the folder, the device or the overlap cannot be used.
            FormatError: If the weights are damaged.
        """
        if overlap is not None and not 0 <= overlap < 1:
            raise ConfigError(
                "overlap",
                expected="a number from 0 to below 1",
                found=str(overlap),
                remedy="use 0.5 for quality or 0.25 for speed",
                code="overlap",
            )
        place = choose_device(device)
        network, card = load_model(folder)
        network = network.to(place)
        arrange_weights(network, channels_last=True)
        engine = PlainEngine(
            window_ijk=card.inputs.window_ijk,
            overlap=card.inputs.overlap if overlap is None else overlap,
            batch=batch,
            device=place,
            autocast=PRECISIONS[precision],
        )
        return cls(network, card, engine)

    def predict(self, volume: Volume, listener: Listener | None = None) -> Prediction:
        """Segment one volume.

        Raises:
            ShapeError: If the number of channels is not the model's.
            GeometryError: If the image is a single slice or far smaller than the model's window.
            ResourceError: If memory does not suffice, told before the work begins.
            Cancelled: If the listener asked to stop.
        """
        clock = time.perf_counter()
        inputs = self.card.inputs
        check_channels(volume, inputs)
        turned_grid = axis_turn(volume.grid, inputs.orientation).turn_grid(volume.grid)
        notes = check_extent(turned_grid, inputs)
        self._check_memory(turned_grid)
        try:
            prepared = prepare(volume, inputs)
            prepared_at = time.perf_counter()
            classes = self.engine.classes(self.network, prepared, listener or Silent())
        except RuntimeError as error:
            # torch's allocator on the CPU has no exception of its own
            if "allocate memory" not in str(error):
                raise
            raise ResourceError(
                "image",
                expected="enough memory for the image and its logits",
                found="none left",
                remedy="crop the image, or use a machine with more memory",
                code="out-of-memory",
            ) from error
        values = np.array(self.card.class_values)
        kind = np.uint8 if values.max() <= 255 else np.uint16
        turned = values.astype(kind)[classes]
        labels = LabelMap(
            np.ascontiguousarray(prepared.to_model.inverse().turn_array(turned)),
            prepared.source_grid,
            self.card.scheme(),
        )
        seconds = {
            "prepare": prepared_at - clock,
            "network": time.perf_counter() - prepared_at,
        }
        return Prediction(labels, seconds, notes)

    def _check_memory(self, turned_grid: Grid) -> None:
        """Refuse what the engine cannot hold: input and logits on the model's grid, in float32.

        A wrong spacing in a header shows here too, as a model grid of absurd size.

        Raises:
            ResourceError: If that is more than the memory that is free.
        """
        inputs = self.card.inputs
        shape = (
            turned_grid.shape_ijk
            if inputs.spacing_mm is None
            else respace_shape(turned_grid, inputs.spacing_mm)
        )
        # input, a padded copy, logits, sum of weights; then two classes on the image's grid
        maps = 2 * len(inputs.channels) + len(self.card.class_values) + 1
        wanted = 4 * (maps * math.prod(shape) + 3 * math.prod(turned_grid.shape_ijk))
        free = psutil.virtual_memory().available
        if wanted > free:
            raise ResourceError(
                "image",
                expected=f"one that fits into the {free / 2**30:.1f} GiB of memory that are free",
                found=f"spacing {_in_mm(turned_grid)} that makes {shape} voxels at the model's "
                f"spacing, which need {wanted / 2**30:.1f} GiB",
                remedy="check the spacing in the image's header, crop the image, or use a machine "
                "with more memory",
                code="image-too-large",
            )


def _in_mm(grid: Grid) -> str:
    return " x ".join(f"{step:g}" for step in grid.spacing_mm) + " mm"
