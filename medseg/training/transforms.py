"""From a prepared case to a training patch: MONAI dict transforms with nnU-Net's ranges.

MONAI's own transforms are used, or are what is derived from, except where they would cost more than
the network's step or change something else: see each class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta
from monai.transforms import (
    AdjustContrast,
    Compose,
    Randomizable,
    RandomizableTransform,
    Transform,
)
from torch import Tensor
from torch.nn import functional as F

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.prepared import Preparation, PreparedCase
from medseg.models.card import InputSettings, ZScore
from medseg.ops.affine_sample import affine_sample
from medseg.training.augmentation import (
    AugmentationSettings,
    check_flips,
    check_mirror_axes,
    left_right_axis,
    mirrored_classes,
    spatial_plan,
)
from medseg.training.batch import IMAGE, LABEL

__all__ = [
    "RandBlur",
    "RandBrightness",
    "RandContrast",
    "RandGamma",
    "RandLowResolution",
    "RandMirror",
    "RandNoise",
    "RandPatch",
    "ReadCase",
    "plain_tensors",
    "training_transforms",
    "validation_transforms",
]

_CASE = "case"
_FORCED = "forced"
_ACROSS = "across"
_ZEROS = "zeros"

Sample = dict[str, Any]


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
        ignore_value: See :class:`~medseg.data.prepared.Preparation`.
        regions: See there.
    """

    def __init__(
        self,
        inputs: InputSettings,
        scheme: LabelScheme,
        ignore_value: int | None = None,
        regions: Sequence[Sequence[int]] = (),
    ) -> None:
        self.inputs = inputs
        self.scheme = scheme
        self.preparation = Preparation(
            inputs, scheme, ignore_value, tuple(tuple(region) for region in regions)
        )

    def __call__(self, case: Case) -> Sample:
        """Read one case.

        Returns:
            ``image``: ``(c, i, j, k)`` float32; ``label``: ``(1, i, j, k)`` uint8 class indices, or
            int16 where there are more than 255 structures; ``id``: the case's id.

        Raises:
            MedsegError: As :class:`~medseg.data.prepared.Preparation`.
        """
        return _whole(self.preparation(case))


def _whole(case: PreparedCase) -> Sample:
    x_cijk, labels_ijk = case.box((0, 0, 0), case.shape_ijk)
    return {
        IMAGE: torch.from_numpy(x_cijk),
        LABEL: torch.from_numpy(labels_ijk)[None],
        "id": case.id,
    }


class WholeCase(Transform):  # type: ignore[misc]  # MONAI has no types
    """A prepared case as tensors."""

    def __call__(self, sample: Mapping[str, Any]) -> Sample:
        """``{"case": PreparedCase}`` to what :class:`ReadCase` gives."""
        return _whole(sample[_CASE])


def validation_transforms(_read: ReadCase) -> Compose:
    """Whole cases on the model's grid."""
    return Compose([WholeCase()])


def training_transforms(
    read: ReadCase,
    patch_ijk: Sequence[int],
    *,
    samples_per_case: int,
    foreground_share: float,
    augmentation: AugmentationSettings,
) -> Compose:
    """Augmented patches of a prepared case.

    Args:
        read: How the cases were prepared; its inputs and scheme decide what may be mirrored.
        patch_ijk: Extents of a patch.
        samples_per_case: Patches of each draw of a case.
        foreground_share: Share of the patches that hold a structure for sure; the sampler deals
            them out, see :class:`~medseg.training.cases.DrawSampler`.
        augmentation: What is changed at random.

    Raises:
        ConfigError: If mirroring would teach left for right, or prediction would mirror what
            training does not.
    """
    inputs = read.inputs
    check_flips(augmentation, read.scheme, inputs.orientation)
    check_mirror_axes(augmentation, read.scheme, inputs.orientation, inputs.mirror_axes)
    i, j, k = patch_ijk
    chosen: list[Transform] = [
        RandPatch(
            (i, j, k),
            samples=samples_per_case,
            foreground_share=foreground_share,
            augmentation=augmentation,
            zero_channels=[
                number
                for number, channel in enumerate(read.inputs.channels)
                if isinstance(channel.normalisation, ZScore) and channel.normalisation.nonzero_only
            ],
        )
    ]
    a = augmentation
    if a.noise_probability > 0:
        chosen.append(RandNoise(a.noise_probability, a.noise_std))
    if a.blur_probability > 0:
        chosen.append(RandBlur(a.blur_probability, a.blur_channel_probability, a.blur_sigma_vox))
    if a.brightness_probability > 0:
        chosen.append(RandBrightness(a.brightness_probability, 1.0, a.brightness))
    if a.contrast_probability > 0:
        chosen.append(RandContrast(a.contrast_probability, 1.0, a.contrast))
    if a.low_resolution_probability > 0:
        chosen.append(
            RandLowResolution(
                a.low_resolution_probability,
                a.low_resolution_channel_probability,
                a.low_resolution_zoom,
            )
        )
    if a.gamma_inverted_probability > 0:
        chosen.append(RandGamma(a.gamma_inverted_probability, 1.0, a.gamma, inverted=True))
    if a.gamma_probability > 0:
        chosen.append(RandGamma(a.gamma_probability, 1.0, a.gamma))
    chosen.append(Settle())
    if a.flip_probability > 0 and a.flip_axes:
        swaps = a.flip_laterality == "swap"
        pairs = mirrored_classes(read.scheme) if swaps else {}
        chosen.append(
            RandMirror(
                a.flip_probability,
                a.flip_axes,
                left_right=left_right_axis(read.inputs.orientation),
                swapped={one: other for one, other in pairs.items() if other is not None},
            )
        )
    return Compose(chosen)


class RandPatch(Randomizable, Transform):  # type: ignore[misc]  # MONAI has no types
    """Draw patches of a prepared case, turned and scaled in the one reading of their voxels.

    MONAI crops first and turns the crop, which makes up its corners; here the place is drawn, then
    the turn, and only the voxels that the turned patch covers are read: from a file, no more than
    their chunks. Zeros (background) are only where the image has ended. A patch that is neither
    turned nor scaled is copied, not interpolated. Rotations are rigid in millimetres, not voxels.

    Where a structure is asked for, one of those that the case holds is drawn, each alike, then one
    of its voxels; the patch is centred on it as far as ``foreground_reach`` allows. MONAI's
    ``RandCropByLabelClassesd`` does so on whole images in memory only.

    Args:
        patch_ijk: Extents.
        samples: Patches of each call; the result is a list if more than one.
        foreground_share: Kept for the sampler.
        augmentation: Turns and scales.
        zero_channels: Channels whose zeros mean "no tissue" and stay zero.
    """

    def __init__(
        self,
        patch_ijk: tuple[int, int, int],
        *,
        samples: int,
        foreground_share: float,
        augmentation: AugmentationSettings,
        zero_channels: Sequence[int] = (),
    ) -> None:
        self.patch_ijk = patch_ijk
        self.samples = samples
        self.foreground_share = foreground_share
        self.augmentation = augmentation
        self.zero_channels = tuple(zero_channels)

    def __call__(self, sample: Mapping[str, Any]) -> Sample | list[Sample]:
        """``{"case": PreparedCase, "forced": one truth value per patch}`` to patches."""
        case: PreparedCase = sample[_CASE]
        drawn = [self._patch(case, forced=forced) for forced in sample[_FORCED]]
        return drawn[0] if self.samples == 1 else drawn

    def _patch(self, case: PreparedCase, *, forced: bool) -> Sample:
        start, voxel = self._start(case, forced=forced)
        plan = spatial_plan(self.augmentation, self.patch_ijk, case.spacing_mm)
        linear = self._linear(plan.limits_deg, plan.across, case.spacing_mm)
        x_cijk, labels_ijk = (
            self._copied(case, start)
            if linear is None
            else self._turned(case, start, linear, voxel)
        )
        image = torch.from_numpy(x_cijk)
        result: Sample = {
            IMAGE: image,
            LABEL: torch.from_numpy(labels_ijk)[None],
            "id": case.id,
            _ACROSS: plan.across,
        }
        if self.zero_channels:
            result[_ZEROS] = [(channel, image[channel] == 0) for channel in self.zero_channels]
        return result

    def _start(
        self, case: PreparedCase, *, forced: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """First voxel of the patch before it is turned, and the voxel that it has to hold, if any.

        The patch may begin before the case.
        """
        shape, patch = np.asarray(case.shape_ijk), np.asarray(self.patch_ijk)
        # a case smaller than the patch is in its middle, as prediction has it
        centred = -((patch - shape) // 2)
        low = np.where(shape < patch, centred, 0)
        high = np.where(shape < patch, centred, shape - patch)
        present = [places for places in case.places if len(places)] if forced else []
        if not present:
            drawn = [self.R.randint(a, b + 1) for a, b in zip(low, high, strict=True)]
            return np.array(drawn, dtype=np.int64), None
        places = present[self.R.randint(len(present))]
        voxel = places[self.R.randint(len(places))].astype(np.int64)
        reach = np.floor(self.augmentation.foreground_reach * patch).astype(np.int64)
        return np.clip(voxel - patch // 2, low - reach, high + reach), voxel

    def _linear(
        self, limits_deg: Sequence[float], across: int | None, spacing_mm: Sequence[float]
    ) -> npt.NDArray[np.float64] | None:
        """``(3, 3)`` voxels of the case per voxel of the patch; None where both are the same."""
        settings = self.augmentation
        turns = self.R.rand() < settings.rotation_probability
        scales = self.R.rand() < settings.scaling_probability
        if not turns and not scales:
            return None
        rotation = np.eye(3)
        if turns:
            for axis, limit in enumerate(limits_deg):
                if limit > 0:
                    rotation = rotation @ _rotation(
                        axis, math.radians(self.R.uniform(-limit, limit))
                    )
        factor = self.R.uniform(*settings.scaling) if scales else 1.0
        stretch = np.array([1.0 if axis == across else factor for axis in range(3)])
        step = np.asarray(spacing_mm, dtype=np.float64)
        linear: npt.NDArray[np.float64] = rotation * (step[None] * stretch[None]) / step[:, None]
        return linear

    def _copied(
        self, case: PreparedCase, start: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], Any]:
        stop = start + self.patch_ijk
        low, high = np.maximum(start, 0), np.minimum(stop, case.shape_ijk)
        x_cijk, labels_ijk = case.box(low.tolist(), high.tolist())
        before, after = low - start, stop - high
        if not before.any() and not after.any():
            return np.array(x_cijk, order="C"), np.array(labels_ijk, order="C")
        image = np.zeros((x_cijk.shape[0], *self.patch_ijk), dtype=np.float32)
        labels = np.zeros(self.patch_ijk, dtype=labels_ijk.dtype)
        inside = tuple(
            slice(a, a + extent) for a, extent in zip(before, labels_ijk.shape, strict=True)
        )
        image[(slice(None), *inside)] = x_cijk
        labels[inside] = labels_ijk
        return image, labels

    def _turned(
        self,
        case: PreparedCase,
        start: npt.NDArray[np.int64],
        linear: npt.NDArray[np.float64],
        voxel: npt.NDArray[np.int64] | None,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        half = (np.asarray(self.patch_ijk) - 1) / 2
        middle = start + half
        if voxel is not None:
            # a voxel far from the middle may have been turned out of the patch: follow it
            place = np.linalg.solve(linear, voxel - middle)
            middle = middle + linear @ (place - np.clip(place, -half, half))
        reach = np.abs(linear) @ half
        low = np.clip(np.floor(middle - reach).astype(np.int64), 0, None)
        high = np.minimum(np.ceil(middle + reach).astype(np.int64) + 1, case.shape_ijk)
        low = np.minimum(low, np.asarray(case.shape_ijk) - 1)
        high = np.maximum(high, low + 1)
        x_cijk, labels_ijk = case.box(low.tolist(), high.tolist())
        affine = np.concatenate([linear, (middle - linear @ half - low)[:, None]], axis=1)
        return affine_sample(
            np.ascontiguousarray(x_cijk),
            np.ascontiguousarray(labels_ijk),
            affine,
            self.patch_ijk,
            smooth_labels=self.augmentation.label_interpolation == "linear",
        )


def _rotation(axis: int, angle: float) -> npt.NDArray[np.float64]:
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


class _RandIntensity(RandomizableTransform):  # type: ignore[misc]  # MONAI has no types
    """Changes the image of a patch, in place, with a probability, channel by channel.

    MONAI decides for the whole image at once and changes all channels alike; nnU-Net, and so this,
    draws for every channel.

    Args:
        prob: For a patch.
        channel_prob: For each channel of a chosen patch.
        between: Range of what is drawn.
    """

    def __init__(self, prob: float, channel_prob: float, between: tuple[float, float]) -> None:
        super().__init__(prob)
        self.channel_prob = channel_prob
        self.between = between

    def __call__(self, sample: Sample) -> Sample:
        """Change ``sample["image"]``."""
        self.randomize(None)
        if not self._do_transform:
            return sample
        for x_ijk in sample[IMAGE]:
            if self.channel_prob >= 1 or self.R.rand() < self.channel_prob:
                self.change(x_ijk, sample.get(_ACROSS))
        return sample

    def change(self, x_ijk: Tensor, across: int | None) -> None:
        """Change one channel in place."""
        raise NotImplementedError

    def factor(self) -> float:
        """A number of the range; below and above 1 equally often where the range holds 1."""
        low, high = self.between
        if low < 1 < high:
            return float(self.R.uniform(low, 1) if self.R.rand() < 0.5 else self.R.uniform(1, high))
        return float(self.R.uniform(low, high))


class RandNoise(_RandIntensity):
    """Gaussian noise of one deviation for all channels.

    As MONAI's ``RandGaussianNoised``, but drawn by torch in float32: numpy's doubles take several
    times as long as the rest of the augmentation.
    """

    def __init__(self, prob: float, std: tuple[float, float]) -> None:
        super().__init__(prob, 1.0, std)

    def __call__(self, sample: Sample) -> Sample:
        """Add noise to ``sample["image"]``."""
        self.randomize(None)
        if not self._do_transform:
            return sample
        std = float(self.R.uniform(*self.between))
        source = torch.Generator().manual_seed(int(self.R.randint(2**31 - 1)))
        image: Tensor = sample[IMAGE]
        image.add_(torch.empty_like(image).normal_(generator=source), alpha=std)
        return sample


class RandBlur(_RandIntensity):
    """Gaussian blur, a width for each axis; not across slices that are kept apart.

    Edge values go on beyond the patch. MONAI's ``RandGaussianSmoothd`` takes zeros there, which
    darkens the rim, and is slower.
    """

    def change(self, x_ijk: Tensor, across: int | None) -> None:
        """Blur one channel in place."""
        y_ijk = x_ijk
        for axis in range(3):
            sigma = float(self.R.uniform(*self.between))
            if axis != across and x_ijk.shape[axis] > 1:
                y_ijk = _blurred(y_ijk, axis, sigma)
        x_ijk.copy_(y_ijk)


def _blurred(x_ijk: Tensor, axis: int, sigma: float) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    weights = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(-radius, radius + 1)]
    total, extent = sum(weights), x_ijk.shape[axis]
    ends = [x_ijk.narrow(axis, place, 1) for place in (0, extent - 1)]
    padded = torch.cat([*[ends[0]] * radius, x_ijk, *[ends[1]] * radius], dim=axis)
    y_ijk = padded.narrow(axis, 0, extent) * (weights[0] / total)
    for tap, weight in enumerate(weights[1:], start=1):
        y_ijk.add_(padded.narrow(axis, tap, extent), alpha=weight / total)
    return y_ijk


class RandBrightness(_RandIntensity):
    """Multiply a channel; MONAI's ``RandScaleIntensityd`` channel by channel."""

    def change(self, x_ijk: Tensor, across: int | None) -> None:  # noqa: ARG002 - all axes alike
        """Multiply one channel in place."""
        x_ijk.mul_(self.factor())


class RandContrast(_RandIntensity):
    """Multiply the distance from a channel's mean and clip to the range it had before.

    MONAI has no such transform: its ``RandScaleIntensityFixedMeand`` does not keep the range.
    """

    def change(self, x_ijk: Tensor, across: int | None) -> None:  # noqa: ARG002 - all axes alike
        """Change one channel in place."""
        mean = x_ijk.mean()
        least, most = torch.aminmax(x_ijk)
        x_ijk.sub_(mean).mul_(self.factor()).add_(mean).clamp_(least, most)


class RandLowResolution(_RandIntensity):
    """Take voxels away (nearest) and interpolate them back (linear).

    As MONAI's ``RandSimulateLowResolutiond``, but per channel, and within slices where these are
    kept apart.
    """

    def change(self, x_ijk: Tensor, across: int | None) -> None:
        """Change one channel in place."""
        zoom = float(self.R.uniform(*self.between))
        shape = tuple(x_ijk.shape)
        small = [
            extent if axis == across else max(1, round(zoom * extent))
            for axis, extent in enumerate(shape)
        ]
        if tuple(small) == shape:
            return
        fewer = F.interpolate(x_ijk[None, None], small, mode="nearest-exact")
        x_ijk.copy_(F.interpolate(fewer, shape, mode="trilinear", align_corners=False)[0, 0])


class RandGamma(_RandIntensity):
    """MONAI's ``AdjustContrast`` with mean and deviation put back, channel by channel.

    Args:
        prob: For a patch.
        channel_prob: For each channel.
        between: Range of the exponent.
        inverted: Whether the negative of the image is changed.
    """

    def __init__(
        self,
        prob: float,
        channel_prob: float,
        between: tuple[float, float],
        *,
        inverted: bool = False,
    ) -> None:
        super().__init__(prob, channel_prob, between)
        self.inverted = inverted

    def change(self, x_ijk: Tensor, across: int | None) -> None:  # noqa: ARG002 - all axes alike
        """Change one channel in place."""
        least, most = torch.aminmax(x_ijk)
        exponent = self.factor()
        if float(most - least) < 1e-6:  # nothing to change, and nothing to divide by
            return
        adjust = AdjustContrast(exponent, invert_image=self.inverted, retain_stats=True)
        x_ijk.copy_(adjust(x_ijk))


class Settle(Transform):  # type: ignore[misc]  # MONAI has no types
    """Put the zeros of skull-stripped channels back and drop what only transforms need."""

    def __call__(self, sample: Sample) -> Sample:
        """Leave image, label and id."""
        for channel, zeros in sample.pop(_ZEROS, ()):
            sample[IMAGE][channel].masked_fill_(zeros, 0.0)
        sample.pop(_ACROSS, None)
        return sample


class RandMirror(RandomizableTransform):  # type: ignore[misc]  # MONAI has no types
    """Mirror image and label along each axis with a probability, all axes in one copy.

    MONAI's ``RandFlipd`` per axis, and classes of left and right change places where the left-right
    axis was mirrored.

    Args:
        prob: For each axis.
        axes: Which may be mirrored.
        left_right: The axis between left and right, if there is one.
        swapped: Class to class that changes places with it.
    """

    def __init__(
        self,
        prob: float,
        axes: Sequence[int],
        *,
        left_right: int | None = None,
        swapped: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(prob)
        self.axes = tuple(axes)
        self.left_right = left_right
        self.swapped = dict(swapped or {})

    def __call__(self, sample: Sample) -> Sample:
        """Mirror ``sample["image"]`` and ``sample["label"]``."""
        drawn = [axis for axis in self.axes if self.R.rand() < self.prob]
        if not drawn:
            return sample
        dims = [axis + 1 for axis in drawn]
        image, label = torch.flip(sample[IMAGE], dims), torch.flip(sample[LABEL], dims)
        if self.swapped and self.left_right in drawn:
            table = torch.arange(max(256, max(self.swapped) + 1)).to(label.dtype)
            for one, other in self.swapped.items():
                table[one] = other
            label = table[label.long()]
        return {**sample, IMAGE: image, LABEL: label}
