"""Settings of augmentation, their presets, and what follows from them for one patch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from medseg.core import SLICES_LAST, Label, LabelScheme
from medseg.errors import ConfigError, one_of

__all__ = [
    "PRESETS",
    "AugmentationSettings",
    "SpatialPlan",
    "check_flips",
    "check_mirror_axes",
    "left_right_axis",
    "mirrored_classes",
    "preset",
    "spatial_plan",
]

ANISOTROPY = 3.0
"""Ratio of extents or spacings beyond which patches are turned within their slices alone."""

ELONGATION = 1.5
"""Ratio of a slice's sides beyond which it is not turned all the way round."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Angle = Annotated[float, Field(ge=0, le=180)]


class AugmentationSettings(BaseModel):
    """Random changes of a training patch, in the order of their application.

    Probabilities are per patch, and 0 leaves a change out; those called ``_channel_probability``
    are per channel of a patch that was chosen. Ranges are least and largest; factors whose range
    holds 1 are drawn below and above 1 equally often.

    Places: ``rotation_deg`` is the largest angle about each of the three axes.
    ``rotation_in_plane_deg`` replaces it where turning is within slices: where ``dummy_2d`` is
    "always", or "auto" and one spacing or extent is more than three times another; and in patches
    of one slice, unless one of its sides is more than 1.5 times the other: there
    ``rotation_elongated_deg`` holds. ``scaling`` is the factor on what the patch shows: 1.4 makes
    structures smaller. Rotation and scaling are one interpolation, linear for intensities and, as
    ``label_interpolation`` says, linear (largest membership) or nearest for labels.
    ``foreground_reach`` is how far, in extents of the patch, a patch that is centred on a structure
    may reach beyond the image.

    Intensities: ``noise_std`` is in standard deviations of the normalised image;
    ``blur_sigma_vox`` is drawn for every axis; ``brightness`` multiplies; ``contrast`` multiplies
    the distance from the mean, clipped to the range before; ``low_resolution_zoom`` takes voxels
    away and interpolates them back; ``gamma`` is the exponent, of the image or, where
    ``gamma_inverted_probability`` has it, of its negative, and mean and deviation are put back.

    ``flip_axes`` are mirrored with ``flip_probability`` each. ``flip_laterality`` decides where the
    left-right axis is among them and structures have a side: refuse the settings, swap the classes
    of left and right, or allow it with the classes as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dummy_2d: Literal["auto", "always", "never"] = "auto"
    rotation_probability: Share = 0.0
    rotation_deg: Angle = 30.0
    rotation_in_plane_deg: Angle = 180.0
    rotation_elongated_deg: Angle = 15.0
    scaling_probability: Share = 0.0
    scaling: tuple[Positive, Positive] = (0.7, 1.4)
    label_interpolation: Literal["linear", "nearest"] = "linear"
    foreground_reach: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    noise_probability: Share = 0.0
    noise_std: tuple[NotNegative, NotNegative] = (0.0, 0.1)
    blur_probability: Share = 0.0
    blur_channel_probability: Share = 0.5
    blur_sigma_vox: tuple[Positive, Positive] = (0.5, 1.0)
    brightness_probability: Share = 0.0
    brightness: tuple[Positive, Positive] = (0.75, 1.25)
    contrast_probability: Share = 0.0
    contrast: tuple[Positive, Positive] = (0.75, 1.25)
    low_resolution_probability: Share = 0.0
    low_resolution_channel_probability: Share = 0.5
    low_resolution_zoom: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] = (0.5, 1.0)
    gamma_inverted_probability: Share = 0.0
    gamma_probability: Share = 0.0
    gamma: tuple[Positive, Positive] = (0.7, 1.5)
    flip_probability: Share = 0.0
    flip_axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    flip_laterality: Literal["refuse", "swap", "allow"] = "refuse"

    @field_validator(
        "scaling",
        "noise_std",
        "blur_sigma_vox",
        "brightness",
        "contrast",
        "low_resolution_zoom",
        "gamma",
    )
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smaller number first")
        return value

    @field_validator("flip_axes")
    @classmethod
    def _once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("every axis once")
        return value

    def replaced(self, **changes: object) -> Self:
        """The same with other values for some settings, checked."""
        return self.model_validate({**self.model_dump(), **changes})


PRESETS: dict[str, AugmentationSettings] = {
    "none": AugmentationSettings(),
    "light": AugmentationSettings(
        rotation_probability=0.2,
        rotation_deg=10.0,
        rotation_in_plane_deg=10.0,
        rotation_elongated_deg=10.0,
        scaling_probability=0.2,
        scaling=(0.9, 1.1),
        noise_probability=0.1,
        noise_std=(0.0, 0.1),
        brightness_probability=0.2,
        brightness=(0.9, 1.1),
        gamma_probability=0.2,
        gamma=(0.8, 1.25),
    ),
    "nnunet": AugmentationSettings(
        rotation_probability=0.2,
        scaling_probability=0.2,
        foreground_reach=0.25,
        noise_probability=0.1,
        blur_probability=0.2,
        brightness_probability=0.15,
        contrast_probability=0.15,
        low_resolution_probability=0.25,
        gamma_inverted_probability=0.1,
        gamma_probability=0.3,
        flip_probability=0.5,
    ),
}
"""Named settings; ``nnunet`` has the probabilities and ranges of nnU-Net v2's default trainer
(Isensee et al., Nature Methods 2021, and version 2 of the program)."""


def preset(name: str) -> AugmentationSettings:
    """The settings of a name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(
            "training.augmentation",
            expected=one_of(name, PRESETS),
            found=repr(name),
            remedy="name one of them, or write the settings out",
            code="augmentation-preset",
        )
    return PRESETS[name]


@dataclass(frozen=True, slots=True)
class SpatialPlan:
    """How patches are turned.

    Args:
        across: The axis across slices that are not mixed; None where all three axes are alike.
        limits_deg: Largest angle about each axis.
    """

    across: int | None
    limits_deg: tuple[float, float, float]


def spatial_plan(
    settings: AugmentationSettings, patch_ijk: Sequence[int], spacing_mm: Sequence[float]
) -> SpatialPlan:
    """Decide between turning in space and within slices.

    nnU-Net looks at the extents of the patch alone, having sorted its axes by spacing; here either
    ratio is enough.

    >>> spatial_plan(preset("nnunet"), (160, 160, 40), (0.8, 0.8, 3.0))
    SpatialPlan(across=2, limits_deg=(0.0, 0.0, 180.0))
    """
    single = [axis for axis in range(3) if patch_ijk[axis] == 1]
    if len(single) > 1:
        return SpatialPlan(single[0], (0.0, 0.0, 0.0))
    if single:
        across = single[0]
        sides = sorted(extent for axis, extent in enumerate(patch_ijk) if axis != across)
        elongated = sides[1] > ELONGATION * sides[0]
        angle = settings.rotation_elongated_deg if elongated else settings.rotation_in_plane_deg
        return _in_plane(across, angle)
    thickest = max(range(3), key=lambda axis: (spacing_mm[axis], -patch_ijk[axis]))
    thinnest = min(range(3), key=lambda axis: patch_ijk[axis])
    if settings.dummy_2d == "always":
        return _in_plane(thickest, settings.rotation_in_plane_deg)
    if settings.dummy_2d == "auto":
        if max(spacing_mm) > ANISOTROPY * min(spacing_mm):
            return _in_plane(thickest, settings.rotation_in_plane_deg)
        if max(patch_ijk) > ANISOTROPY * patch_ijk[thinnest]:
            return _in_plane(thinnest, settings.rotation_in_plane_deg)
    return SpatialPlan(None, (settings.rotation_deg,) * 3)


def left_right_axis(orientation: str) -> int | None:
    """Which axis runs between left and right; None where it differs from image to image.

    >>> left_right_axis("PIR")
    2
    """
    if orientation == SLICES_LAST:
        return None
    return next(axis for axis, letter in enumerate(orientation) if letter in "LR")


def mirrored_classes(scheme: LabelScheme) -> dict[int, int | None]:
    """Classes with a side, each with the class of the other side; None where there is none.

    A structure's side is its coded modifier (SNOMED CT left or right), else the word left or right
    in its name. Chambers of the heart have one and are no mirror images: they are left out.

    >>> mirrored_classes(LabelScheme.plain("x", {1: "kidney_left", 2: "liver", 3: "kidney_right"}))
    {1: 3, 3: 1}
    """
    sided = {
        number: found
        for number, label in enumerate(scheme.labels, start=1)
        if (found := _side(label)) is not None
    }
    other = {"left": "right", "right": "left"}
    numbers = {found: number for number, found in sided.items()}
    return {number: numbers.get((other[side], rest)) for number, (side, rest) in sided.items()}


def check_flips(settings: AugmentationSettings, scheme: LabelScheme, orientation: str) -> None:
    """Refuse mirroring that would teach left for right.

    Raises:
        ConfigError: If the left-right axis is mirrored, structures have a side, and they are
            neither allowed to keep nor able to change it.
    """
    pairs = mirrored_classes(scheme)
    axis = left_right_axis(orientation)
    crosses = axis is None or axis in settings.flip_axes
    if not settings.flip_probability or not settings.flip_axes or not pairs or not crosses:
        return
    if settings.flip_laterality == "allow":
        return
    names = [scheme.labels[number - 1].name for number in pairs]
    alone = [scheme.labels[number - 1].name for number, other in pairs.items() if other is None]
    if settings.flip_laterality == "refuse":
        raise ConfigError(
            "training.augmentation.flip_axes",
            expected=f"no axis between left and right, since {names[0]!r} has a side",
            found=f"{list(settings.flip_axes)} on axes {orientation}",
            remedy="take the axis out, or set flip_laterality to swap (classes change sides) or "
            "allow",
            code="flip-laterality",
        )
    if axis is None or alone:
        raise ConfigError(
            "training.augmentation.flip_laterality",
            expected="both sides of every structure that has one, and an orientation that names "
            "the left-right axis",
            found=f"{alone[0]!r} alone" if alone else f"orientation {orientation}",
            remedy="take the axis out of flip_axes, or set flip_laterality to allow",
            code="flip-laterality",
        )


def check_mirror_axes(
    settings: AugmentationSettings,
    scheme: LabelScheme,
    orientation: str,
    mirror_axes: Sequence[str],
) -> None:
    """Refuse test-time mirroring, ``inputs.mirror_axes``, of what training never showed.

    Args:
        settings: What training mirrors.
        scheme: What is segmented.
        orientation: Of the axes, such as ``RAS``.
        mirror_axes: Axes, ``i``, ``j`` or ``k``, along which the trained model will be mirrored.

    Raises:
        ConfigError: ``mirror-axes`` if training does not mirror one of them, or if classes change
            sides along it, which test-time mirroring does not undo.
    """
    trained = settings.flip_axes if settings.flip_probability else ()
    strange = [axis for axis in mirror_axes if "ijk".index(axis) not in trained]
    if strange:
        raise ConfigError(
            "inputs.mirror_axes",
            expected="axes that training mirrors: "
            + (", ".join("ijk"[axis] for axis in sorted(trained)) or "none"),
            found=", ".join(strange),
            remedy="take them out, or set training.augmentation.flip_axes and flip_probability",
            code="mirror-axes",
        )
    axis = left_right_axis(orientation)
    swaps = settings.flip_laterality == "swap" and axis is not None and mirrored_classes(scheme)
    if swaps and axis is not None and "ijk"[axis] in mirror_axes:
        raise ConfigError(
            "inputs.mirror_axes",
            expected="no axis between left and right, since flip_laterality is swap: classes that "
            "changed sides in training would be put on the wrong side",
            found="ijk"[axis],
            remedy="take the axis out",
            code="mirror-axes",
        )


def _in_plane(across: int, angle: float) -> SpatialPlan:
    i, j, k = (angle if axis == across else 0.0 for axis in range(3))
    return SpatialPlan(across, (i, j, k))


_SIDES = {"7771000": "left", "24028007": "right"}
_HEART = {"ventricle", "atrium", "ventricular", "atrial", "heart"}


def _side(label: Label) -> tuple[str, str] | None:
    """``(side, the rest of the name)``, or None if the structure has no side."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.name)
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]
    if _HEART.intersection(words) and "lateral" not in words:
        return None
    rest = " ".join(sorted(word for word in words if word not in ("left", "right")))
    if label.modifier is not None and label.modifier.value in _SIDES:
        return _SIDES[label.modifier.value], rest
    named = {"left", "right"}.intersection(words)
    return (named.pop(), rest) if len(named) == 1 else None
