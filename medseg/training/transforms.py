"""From a case on disk to a training patch, as MONAI dict transforms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    FgBgToIndicesd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    SpatialPadd,
    Transform,
)
from torch import Tensor

from medseg.core import LabelScheme
from medseg.data.case import Case, read_labelled
from medseg.data.preparation import ModelImage, prepare_labels
from medseg.models.card import InputSettings
from medseg.training.losses import IGNORED_CLASS
from medseg.training.settings import AugmentationSettings

__all__ = [
    "IMAGE",
    "LABEL",
    "ReadCase",
    "plain_tensors",
    "training_transforms",
    "validation_transforms",
]

IMAGE = "image"
LABEL = "label"


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI's transforms give plain tensors inside the block.

    Patches need no affine, and carrying one costs more time than most of the transforms.
    """
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class ReadCase(Transform):  # type: ignore[misc]  # MONAI has no types
    """Read a case and bring it onto the model's grid, just as prediction does.

    Args:
        inputs: Orientation, spacing and normalisation.
        scheme: What the label values mean; value number ``n`` becomes class ``n``.
        ignore_value: Label value of voxels that nobody judged, not in the scheme; becomes
            :data:`~medseg.training.losses.IGNORED_CLASS`.
    """

    def __init__(
        self, inputs: InputSettings, scheme: LabelScheme, ignore_value: int | None = None
    ) -> None:
        self.inputs = inputs
        self.scheme = scheme
        self.ignore_value = ignore_value

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read one case.

        Returns:
            ``image``: ``(c, i, j, k)`` float32; ``label``: ``(1, i, j, k)`` uint8 class indices, or
            int16 where there are more than 255 structures; ``id``: the case's id.

        Raises:
            FormatError: If a file is damaged.
            GeometryError: If the channels or the label map lie on different grids.
            MedsegError: As :func:`~medseg.data.case.read_labelled`.
        """
        names = [channel.name for channel in self.inputs.channels]
        volume, labels = read_labelled(case, names, self.scheme, self.ignore_value)
        x_cijk = ModelImage(volume, self.inputs).whole()
        values_ijk = prepare_labels(labels, self.inputs)
        return {IMAGE: x_cijk, LABEL: self._classes(values_ijk)[None], "id": case.id}

    def _classes(self, values_ijk: Tensor) -> Tensor:
        values, ignored = self.scheme.values, self.ignore_value
        kind = torch.uint8 if len(values) <= 255 else torch.int16
        table = torch.zeros(max(*values, ignored or 0) + 1, dtype=kind)
        for index, value in enumerate(values, start=1):
            table[value] = index
        if ignored is not None:
            table[ignored] = IGNORED_CLASS
        return table[values_ijk.long()]


def validation_transforms(read: ReadCase) -> Compose:
    """Whole cases on the model's grid."""
    return Compose([read])


def training_transforms(
    read: ReadCase,
    patch_ijk: Sequence[int],
    *,
    samples_per_case: int,
    foreground_share: float,
    augmentation: AugmentationSettings,
) -> Compose:
    """Patches of a case: all that is fixed comes first and is cached, all that is random last.

    A case smaller than the patch is padded with zeros, the mean of a normalised image, half on each
    side, as prediction does it.
    """
    both = [IMAGE, LABEL]
    fixed = [
        read,
        SpatialPadd(both, patch_ijk, mode="constant"),
        FgBgToIndicesd([LABEL]),
    ]
    crop = RandCropByPosNegLabeld(
        both,
        label_key=LABEL,
        spatial_size=patch_ijk,
        pos=foreground_share,
        neg=1.0 - foreground_share,
        num_samples=samples_per_case,
        fg_indices_key=f"{LABEL}_fg_indices",
        bg_indices_key=f"{LABEL}_bg_indices",
    )
    return Compose([*fixed, crop, *_augmentations(augmentation)])


def _augmentations(settings: AugmentationSettings) -> list[Transform]:
    both = [IMAGE, LABEL]
    chosen: list[Transform] = []
    if settings.flip_probability > 0:
        chosen += [
            RandFlipd(both, prob=settings.flip_probability, spatial_axis=axis)
            for axis in settings.flip_axes
        ]
    if settings.affine_probability > 0:
        chosen.append(
            RandAffined(
                both,
                prob=settings.affine_probability,
                rotate_range=(math.radians(settings.affine_rotation_deg),) * 3,
                scale_range=(settings.affine_scale,) * 3,
                mode=("bilinear", "nearest"),
                # image and labels are continued alike, so no patch shows an edge that has no label
                padding_mode="border",
            )
        )
    if settings.contrast_probability > 0:
        chosen.append(
            RandAdjustContrastd(
                [IMAGE],
                prob=settings.contrast_probability,
                gamma=settings.contrast_gamma,
                retain_stats=True,
            )
        )
    if settings.intensity_probability > 0:
        chosen.append(
            RandScaleIntensityd(
                [IMAGE],
                factors=settings.intensity_scale,
                prob=settings.intensity_probability,
            )
        )
    if settings.noise_probability > 0:
        chosen.append(
            RandGaussianNoised([IMAGE], prob=settings.noise_probability, std=settings.noise_std)
        )
    return chosen
