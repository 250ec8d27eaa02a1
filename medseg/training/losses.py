"""Dice and cross-entropy, over one head or several."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import DiceCELoss
from torch import Tensor, nn

from medseg.errors import ConfigError

__all__ = ["DeepSupervisionLoss", "build_loss", "strided_target"]


def build_loss(
    head_strides: Sequence[Sequence[int]],
    head_weights: Sequence[float],
    *,
    dice_weight: float,
    cross_entropy_weight: float,
) -> DeepSupervisionLoss:
    """The loss of a network's heads: MONAI's Dice plus cross-entropy on softmax outputs each.

    Dice is taken per image over all classes, background included.

    Args:
        head_strides: Strides of each head relative to the input.
        head_weights: Weight of each head; a head of weight 0 is not looked at.
        dice_weight: Factor of the Dice term.
        cross_entropy_weight: Factor of the cross-entropy term.
    """
    criterion = DiceCELoss(
        to_onehot_y=True,
        softmax=True,
        lambda_dice=dice_weight,
        lambda_ce=cross_entropy_weight,
    )
    return DeepSupervisionLoss(criterion, head_strides, head_weights)


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
