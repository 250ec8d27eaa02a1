"""Dice and cross-entropy on classes or on overlapping regions, over one head or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.data.prepared import IGNORED_CLASS
from medseg.errors import ConfigError

__all__ = [
    "IGNORED_CLASS",
    "DeepSupervisionLoss",
    "LossOptions",
    "OverlapLoss",
    "build_loss",
    "region_masks",
    "strided_target",
]


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What is summed, and over what.

    Args:
        dice_weight: Factor of the Dice term.
        cross_entropy_weight: Factor of the cross-entropy term.
        batch_dice: Dice over all images of the batch as if they were one; else per image.
        background: Whether the background class has a part in Dice; regions have no background.
        smooth: Added to numerator and denominator of Dice.
        regions: Class indices that each output channel is made of; None for one channel per class.
        ignoring: Whether targets hold :data:`IGNORED_CLASS`.
    """

    dice_weight: float = 1.0
    cross_entropy_weight: float = 1.0
    batch_dice: bool = False
    background: bool = True
    smooth: float = 1e-5
    regions: tuple[tuple[int, ...], ...] | None = None
    ignoring: bool = False


def build_loss(
    head_strides: Sequence[Sequence[int]], head_weights: Sequence[float], options: LossOptions
) -> DeepSupervisionLoss:
    """The loss of a network's heads.

    Args:
        head_strides: Strides of each head relative to the input.
        head_weights: Weight of each head; a head of weight 0 is not looked at.
        options: Of the criterion on each head.
    """
    return DeepSupervisionLoss(OverlapLoss(options), head_strides, head_weights)


def region_masks(target_b1ijk: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Class indices to one mask per region.

    Args:
        target_b1ijk: ``(b, 1, i, j, k)`` class indices, :data:`IGNORED_CLASS` among them or not.
        regions: Class indices of each region.

    Returns:
        ``(b, n, i, j, k)`` bool; ignored voxels are in no region.
    """
    members = [
        torch.isin(target_b1ijk, torch.tensor(classes, device=target_b1ijk.device))
        for classes in regions
    ]
    return torch.cat(members, dim=1)


class OverlapLoss(nn.Module):
    """Soft Dice plus cross-entropy: softmax over classes, or a sigmoid for each region.

    Dice of a channel is ``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)``, the mean over channels
    and images of which is the Dice term: the form of Milletari et al. (V-Net, 2016) with plain
    instead of squared sums, as in MONAI's ``DiceLoss`` and, with ``batch_dice`` and without
    background, in nnU-Net's. Cross-entropy, or binary cross-entropy for regions, is the mean over
    voxels (and regions) of an image, then over images.

    Ignored voxels are left out of all sums. Since means are taken image by image, each image
    counts alike however many of its voxels are judged, and the loss of a batch is the mean of the
    losses of its parts (of equal size), which accumulation and several processes rely on.
    nnU-Net divides by the judged voxels of the batch instead. ``batch_dice`` is the exception: in
    several processes its sums are taken over all of them, accumulated batches each have their own.

    Args:
        options: What is summed.
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, logits_bnijk: Tensor, target_b1ijk: Tensor) -> Tensor:
        """The loss of one head.

        Args:
            logits_bnijk: float32.
            target_b1ijk: Class indices.
        """
        options = self.options
        judged_b1v = (
            (target_b1ijk != IGNORED_CLASS).flatten(2).to(logits_bnijk.dtype)
            if options.ignoring
            else None
        )
        if options.regions is None:
            dice, entropy = self._of_classes(logits_bnijk, target_b1ijk, judged_b1v)
        else:
            dice, entropy = self._of_regions(logits_bnijk, target_b1ijk, judged_b1v)
        return options.dice_weight * dice + options.cross_entropy_weight * entropy

    def _of_classes(
        self, logits_bnijk: Tensor, target_b1ijk: Tensor, judged_b1v: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        log_bnv = torch.log_softmax(logits_bnijk.flatten(2), dim=1)
        target_b1v = target_b1ijk.flatten(2).long()
        if judged_b1v is not None:
            target_b1v = target_b1v.masked_fill(judged_b1v == 0, 0)
        entropy = -_mean_over(log_bnv.gather(1, target_b1v), judged_b1v)
        probability_bnv = log_bnv.exp()
        first = 0 if self.options.background else 1
        mine = [
            (target_b1v[:, 0] == index).to(log_bnv.dtype)
            for index in range(first, log_bnv.shape[1])
        ]
        return self._dice(probability_bnv[:, first:], torch.stack(mine, 1), judged_b1v), entropy

    def _of_regions(
        self, logits_bnijk: Tensor, target_b1ijk: Tensor, judged_b1v: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits_bnv = logits_bnijk.flatten(2)
        target_bnv = region_masks(target_b1ijk, self.options.regions or ()).flatten(2)
        target_bnv = target_bnv.to(logits_bnv.dtype)
        entropy_bnv = F.binary_cross_entropy_with_logits(logits_bnv, target_bnv, reduction="none")
        entropy = _mean_over(entropy_bnv, judged_b1v)
        return self._dice(logits_bnv.sigmoid(), target_bnv, judged_b1v), entropy

    def _dice(self, probability_bnv: Tensor, target_bnv: Tensor, judged: Tensor | None) -> Tensor:
        if judged is not None:
            probability_bnv, target_bnv = probability_bnv * judged, target_bnv * judged
        sums_sbn = torch.stack(
            [
                (probability_bnv * target_bnv).sum(-1),
                probability_bnv.sum(-1) + target_bnv.sum(-1),
            ]
        )
        if self.options.batch_dice:
            sums_sbn = _over_processes(sums_sbn.sum(1, keepdim=True))
        both, total = sums_sbn
        smooth = self.options.smooth
        # where neither has a voxel and nothing is smoothed there is no error
        safe = total.clamp_min(torch.finfo(total.dtype).tiny) if smooth == 0 else total + smooth
        dice = torch.where(total + smooth > 0, (2 * both + smooth) / safe, 1.0)
        return 1 - dice.mean()


def _mean_over(value_bnv: Tensor, judged_b1v: Tensor | None) -> Tensor:
    """Mean over voxels and channels of an image, then over images."""
    if judged_b1v is None:
        return value_bnv.mean()
    judged_b = judged_b1v.sum((1, 2)) * value_bnv.shape[1]
    return ((value_bnv * judged_b1v).sum((1, 2)) / judged_b.clamp_min(1)).mean()


def _over_processes(sums: Tensor) -> Tensor:
    """The sums of all processes; gradients flow back through the sum."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return sums
    total: Tensor = torch.distributed.nn.functional.all_reduce(sums)  # type: ignore[no-untyped-call]
    return total


def strided_target(target_b1ijk: Tensor, stride: Sequence[int]) -> Tensor:
    """Every ``stride``-th voxel from the first on: nearest downsampling without interpolation."""
    i, j, k = stride
    return target_b1ijk[:, :, ::i, ::j, ::k]


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one criterion over a network's heads.

    Args:
        criterion: Of logits ``(b, n, i, j, k)`` and class indices ``(b, 1, i, j, k)``.
        head_strides: Strides of each head relative to the input.
        head_weights: Weight of each head.

    Raises:
        ConfigError: If the numbers of strides and weights differ.
    """

    def __init__(
        self,
        criterion: nn.Module,
        head_strides: Sequence[Sequence[int]],
        head_weights: Sequence[float],
    ) -> None:
        super().__init__()
        if len(head_strides) != len(head_weights):
            raise ConfigError(
                "deep supervision",
                expected=f"one weight for each of {len(head_strides)} heads",
                found=f"{len(head_weights)}",
                remedy="correct the network's deep_supervision_weights",
                code="heads",
            )
        self.criterion = criterion
        self.head_strides = [tuple(stride) for stride in head_strides]
        self.head_weights = [float(weight) for weight in head_weights]

    def forward(self, logits: Tensor | Sequence[Tensor], target_b1ijk: Tensor) -> Tensor:
        """The loss in float32.

        Args:
            logits: One tensor is the finest head alone, with weight 1; several are the heads, fine
                to coarse.
            target_b1ijk: Class indices on the input's grid.

        Raises:
            ConfigError: If there are more or fewer heads than weights.
        """
        if isinstance(logits, Tensor):
            finest: Tensor = self.criterion(logits.float(), target_b1ijk)
            return finest
        if len(logits) != len(self.head_weights):
            raise ConfigError(
                "deep supervision",
                expected=f"{len(self.head_weights)} heads",
                found=f"{len(logits)}",
                remedy="give the loss the strides and weights of this network",
                code="heads",
            )
        total = target_b1ijk.new_zeros((), dtype=logits[0].float().dtype)
        for head, stride, weight in zip(logits, self.head_strides, self.head_weights, strict=True):
            if weight > 0:
                total = total + weight * self.criterion(
                    head.float(), strided_target(target_b1ijk, stride)
                )
        return total
