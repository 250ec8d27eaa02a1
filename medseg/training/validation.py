"""Dice on held-out cases, on the model's grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.metrics import compute_dice
from torch import Tensor, nn
from torch.utils.data import Subset

from medseg.events import Cancelled, Listener
from medseg.models.card import InputSettings
from medseg.training.batch import IMAGE, LABEL
from medseg.training.cases import PreparedCases
from medseg.training.losses import IGNORED_CLASS, region_masks
from medseg.training.precision import Numerics

__all__ = ["Scores", "Validator", "spread"]

STAGE_VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class Scores:
    """What a validation found.

    Args:
        dice: Structure to its Dice, a mean over the cases that hold it; NaN where none does.
        mean: Mean over the structures that have a Dice.
        cases: Number of cases judged.
        seconds: Time it took.
        per_case: Case id to the Dice of each structure there, NaN where the case does not hold it.
    """

    dice: dict[str, float]
    mean: float
    cases: int
    seconds: float
    per_case: dict[str, dict[str, float]] = field(default_factory=dict)


class Validator:
    """Judges a network on cached cases with the windows, overlap and weights of prediction.

    Labels are compared on the model's grid. Results that matter are judged on the grid of the image
    by the evaluation of predictions; this is the figure to watch a run by.

    Args:
        cached: The held-out cases.
        inputs: Window and overlap.
        names: Names of the structures, in the order of the classes from 1 on, or of the regions.
        device: Where the network is.
        numerics: Precision and layout.
        regions: Class indices of each region, whose channels are on where the logit is above 0;
            None for classes, of which the largest logit wins.
    """

    def __init__(
        self,
        cached: PreparedCases,
        inputs: InputSettings,
        names: Sequence[str],
        device: torch.device,
        numerics: Numerics,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.cached = cached
        self.regions = regions
        self.names = tuple(names)
        self.device = device
        self.inferer = _Windows(inputs, device, numerics)

    def score(self, network: nn.Module, listener: Listener, *, limit: int | None = None) -> Scores:
        """Judge the network.

        Args:
            network: Left in train mode or eval mode as it came.
            listener: Told of every case under the stage ``validation``.
            limit: Number of cases, spread evenly over all; None for all.

        Raises:
            Cancelled: If the listener asked to stop; asked after every case.
        """
        began = time.monotonic()
        chosen = spread(len(self.cached), limit)
        loader = DataLoader(
            Subset(self.cached, chosen),
            batch_size=1,
            num_workers=0,
            # one of its own: the loader then leaves alone the numbers that training draws
            generator=torch.Generator(),
        )
        ids: list[str] = []
        found: list[Tensor] = []
        was_training = network.training
        evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=loader,
            network=network,
            inferer=self.inferer,
            prepare_batch=_prepare_batch,
            decollate=False,
        )
        stopped = False

        def judged(engine: Engine) -> None:
            nonlocal stopped
            output = engine.state.output
            found.append(self._dice(output["pred"], output["label"]))
            ids.extend(engine.state.batch["id"])
            listener.advanced(STAGE_VALIDATION, engine.state.iteration)
            if listener.cancelled() and engine.state.iteration < len(chosen):
                stopped = True
                engine.terminate()

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, judged)
        listener.started(STAGE_VALIDATION, len(chosen))
        evaluator.run()
        network.train(was_training)
        if stopped:
            raise Cancelled
        per_case = torch.cat(found)
        per_label = torch.nanmean(per_case.double(), dim=0)
        return Scores(
            dice=dict(zip(self.names, per_label.tolist(), strict=True)),
            mean=float(torch.nanmean(per_label)),
            cases=len(chosen),
            seconds=time.monotonic() - began,
            per_case={
                case: dict(zip(self.names, row, strict=True))
                for case, row in zip(ids, per_case.tolist(), strict=True)
            },
        )

    def _dice(self, logits_bnijk: Tensor, target_b1ijk: Tensor) -> Tensor:
        """``(b, n)`` Dice of structures or regions; voxels that nobody judged are left out."""
        judged = target_b1ijk != IGNORED_CLASS
        # MONAI's function and not its metric, which would wait for all processes of a training
        if self.regions is None:
            found = logits_bnijk.argmax(dim=1, keepdim=True) * judged
            truth = target_b1ijk.long() * judged
        else:
            found = ((logits_bnijk > 0) & judged).float()
            truth = region_masks(target_b1ijk, self.regions).float()
        dice: Tensor = compute_dice(
            found,
            truth,
            include_background=self.regions is not None,
            num_classes=None if self.regions is not None else len(self.names) + 1,
        )
        return dice


def spread(count: int, limit: int | None) -> list[int]:
    """At most ``limit`` of ``count`` indices, evenly spread and always the same.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def _prepare_batch(
    batch: dict[str, Tensor], device: torch.device, non_blocking: bool, **_: object
) -> tuple[Tensor, Tensor]:
    return (
        batch[IMAGE].to(device, non_blocking=non_blocking),
        batch[LABEL].to(device, non_blocking=non_blocking),
    )


class _Windows(SlidingWindowInferer):  # type: ignore[misc]  # MONAI has no types
    """Gaussian-weighted windows in the run's precision and layout, summed in float32."""

    def __init__(self, inputs: InputSettings, device: torch.device, numerics: Numerics) -> None:
        super().__init__(
            roi_size=inputs.window_ijk, sw_batch_size=1, overlap=inputs.overlap, mode="gaussian"
        )
        self._run_device = device
        self._numerics = numerics

    def __call__(self, inputs: Tensor, network: nn.Module, *_: object, **__: object) -> Tensor:
        def forward(x_bcijk: Tensor) -> Tensor:
            with self._numerics.autocast(self._run_device):
                logits: Tensor = network(self._numerics.arrange(x_bcijk))
            return logits.float()

        answer: Tensor = super().__call__(inputs, forward)
        return answer
