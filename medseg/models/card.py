"""The typed metadata of a trained model: what it eats, what it answers, where it comes from.

Reading a card needs no torch, so that listing models is quick.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from medseg.core import SLICES_LAST, LabelScheme
from medseg.errors import ConfigError

__all__ = [
    "CARD_NAME",
    "Channel",
    "ClipZScore",
    "InputSettings",
    "LabelCleaning",
    "ModelCard",
    "ModelDescription",
    "NetworkChoice",
    "Normalisation",
    "Region",
    "SeriesRules",
    "SliceSettings",
    "Training",
    "Unchanged",
    "ZScore",
    "load_card",
    "model_folder",
    "parse_card",
]

CARD_NAME = "model.json"

Positive = Annotated[float, Field(gt=0)]
Extent = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ZScore(_Frozen):
    """Subtract the image's mean and divide by its standard deviation.

    With ``nonzero_only`` both are taken over voxels that are not zero, and zeros stay zero (the
    usual treatment of skull-stripped MR).
    """

    kind: Literal["zscore"] = "zscore"
    nonzero_only: bool = False


class ClipZScore(_Frozen):
    """Clip to fixed bounds, then subtract a fixed mean and divide by a fixed deviation (CT)."""

    kind: Literal["clip_zscore"] = "clip_zscore"
    lower: float
    upper: float
    mean: float
    std: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower >= self.upper:
            raise ValueError("lower must be below upper")
        return self


class Unchanged(_Frozen):
    """Leave intensities as they are: the image was normalised by whoever hands it over."""

    kind: Literal["unchanged"] = "unchanged"


Normalisation = Annotated[ZScore | ClipZScore | Unchanged, Field(discriminator="kind")]


Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class SeriesRules(_Frozen):
    """Which DICOM series of a study a channel is; what is None does not matter.

    ``description`` and ``exclude`` are regular expressions, searched in the series description (the
    protocol's name where there is none) without regard to case; ``body_part`` is one on the body
    part. Thickness is that of the slices. ``contrast`` is whether a contrast agent is recorded,
    ``b_values`` the least and the largest b-value in s/mm2.
    """

    description: Pattern | None = None
    exclude: Pattern | None = None
    body_part: Pattern | None = None
    min_thickness_mm: Positive | None = None
    max_thickness_mm: Positive | None = None
    orientation: Literal["axial", "coronal", "sagittal"] | None = None
    contrast: bool | None = None
    b_values: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None

    @field_validator("description", "exclude", "body_part")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error.msg}") from error
        return value


class Channel(_Frozen):
    """One input channel.

    ``name`` is what the user matches (``T1``, ``FLAIR``, ``CT``); ``modality`` is DICOM's
    (0008,0060). ``series`` tells which series of a DICOM study it is; without it the modality and,
    for several channels, names that the field knows (T1, T1c, T2, FLAIR, ADC, DWI) do.

    ``scaled_hu`` are the Hounsfield units that the images trained on held as 0 and 1, with what
    lies beyond cut off, as in TransUNet's preprocessing (-125 and 275). An image in Hounsfield
    units is brought to that before ``normalisation``; one within 0 to 1 is taken as it is.
    """

    name: Annotated[str, Field(min_length=1, max_length=32)]
    modality: Literal["MR", "CT", "PT", "OT"] = "MR"
    normalisation: Normalisation = ZScore()
    scaled_hu: tuple[float, float] | None = Field(
        default=None, exclude_if=lambda bounds: bounds is None
    )
    series: SeriesRules | None = Field(default=None, exclude_if=lambda rules: rules is None)

    @field_validator("scaled_hu")
    @classmethod
    def _bounds_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("the lower bound first, such as [-125, 275]")
        return value


class InputSettings(_Frozen):
    """How an image is brought before the network; training and prediction share it.

    ``orientation`` is three letters or ``slices_last`` (see
    :func:`~medseg.core.orientation.axis_turn`). ``spacing_mm`` of None keeps each image's own
    spacing. ``window_ijk`` is the extent of one network input in voxels of the model's grid.

    ``interpolation`` is how intensities are brought to that grid: linear, or cubic convolution;
    where voxels get larger both average over the voxel. With ``thick_slices`` of "nearest", the
    axis of an image whose spacing is more than three times that of the finest one is treated as
    nnU-Net does: intensities and logits are interpolated within the slices, and taken from the
    nearest slice across them. ``mirror_axes`` are the axes that training mirrored, hence those that
    test-time augmentation may mirror.
    """

    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]
    orientation: str = "RAS"
    spacing_mm: tuple[Positive, Positive, Positive] | None
    window_ijk: tuple[Extent, Extent, Extent]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    interpolation: Literal["linear", "cubic"] = "linear"
    thick_slices: Literal["interpolate", "nearest"] = "interpolate"
    mirror_axes: tuple[Literal["i", "j", "k"], ...] = ()

    @field_validator("orientation")
    @classmethod
    def _three_axes(cls, value: str) -> str:
        if value == SLICES_LAST:
            return value
        axes = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
        if sorted(axes.get(letter, -1) for letter in value) != [0, 1, 2]:
            raise ValueError(
                f"orientation needs one letter each of R/L, A/P and S/I, such as RAS, "
                f"or {SLICES_LAST}"
            )
        return value


class SliceSettings(_Frozen):
    """How a 2D network serves volumes.

    ``axis`` is the axis of the model's grid across which the slices lie; "thickest" takes that of
    the largest spacing. ``batch`` slices are predicted at a time. ``neighbours`` slices on either
    side join as channels (2.5D). ``extents`` is what each slice is resampled to before the network;
    None keeps the grid and pads to the network's legal extents.
    """

    axis: Literal["thickest", "i", "j", "k"] = "thickest"
    batch: Extent = 16
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    extents: tuple[Extent, Extent] | None = None

    def axis_on(self, inputs: InputSettings) -> int:
        """The slice axis, 0 to 2, on the grid that ``inputs`` describes.

        Where two spacings are equally thick, the head-foot axis is taken if it is one of them, else
        the last axis.

        Raises:
            ConfigError: If the thickest axis is wanted and every image keeps its own spacing.
        """
        if self.axis != "thickest":
            return "ijk".index(self.axis)
        if inputs.orientation == SLICES_LAST:
            return 2
        if inputs.spacing_mm is None:
            raise ConfigError(
                "network.slices.axis",
                expected="i, j or k, since inputs.spacing_mm is null and every image keeps its own",
                found="thickest",
                remedy=f"name the axis, or set inputs.orientation to {SLICES_LAST}",
                code="slices-axis",
            )
        thickest = max(inputs.spacing_mm)
        thick = [axis for axis in range(3) if inputs.spacing_mm[axis] > 0.99 * thickest]
        return next((axis for axis in thick if inputs.orientation[axis] in "SI"), thick[-1])


class NetworkChoice(_Frozen):
    """A name of :data:`medseg.models.table.NETWORKS` and that network's own settings.

    ``slices`` tells how a 2D network serves volumes; None means the defaults of
    :class:`SliceSettings` there, and nothing for a 3D network.
    """

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    slices: SliceSettings | None = None


class Region(_Frozen):
    """One output channel of a network whose channels may overlap, such as BraTS' whole tumour.

    ``members`` are the label values that the region is made of. Where the channel's probability
    (sigmoid) is above one half, the voxel gets ``writes``; regions are written in their order, so
    that a later one overwrites an earlier one.
    """

    name: Annotated[str, Field(min_length=1)]
    members: Annotated[tuple[int, ...], Field(min_length=1)]
    writes: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _writes_a_member(self) -> Self:
        if self.writes not in self.members:
            raise ValueError("writes must be one of members")
        return self


class LabelCleaning(_Frozen):
    """What is done to one structure after the network, in the order of the fields.

    ``label`` is the structure's name, or ``*`` for every one. Millimetres are measured in the
    patient, whatever the voxels are. ``closing_mm`` closes gaps up to twice that radius without
    taking voxels from other structures; ``fill_holes`` fills what is enclosed in three dimensions.
    ``keep_largest`` keeps one connected piece (26 neighbours), ``min_mm3`` removes smaller pieces.
    """

    label: Annotated[str, Field(min_length=1)] = "*"
    closing_mm: Annotated[float, Field(ge=0, le=40)] = 0.0
    fill_holes: bool = False
    keep_largest: bool = False
    min_mm3: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class StartModel(_Frozen):
    """The model whose weights a training began with."""

    name: str
    version: str
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Training(_Frozen):
    """Where the weights come from.

    ``weights`` says which of the run's weights these are: the last ones, or those that validated
    best, after ``weights_step`` steps. ``averaged`` weights are a running mean over the steps.
    ``started_from`` is the model whose weights training began with, if it was one.
    """

    dataset: str
    dataset_licence: str
    training_cases: Annotated[int, Field(ge=0)]
    validation_cases: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    seed: int
    validation_dice: dict[str, float] = Field(default_factory=dict)
    config_sha256: str
    medseg_version: str
    torch_version: str
    monai_version: str
    finished: bool
    weights: Literal["last", "best"] = "last"
    weights_step: Annotated[int, Field(ge=0)] | None = None
    averaged: bool = False
    started_from: StartModel | None = Field(default=None, exclude_if=lambda model: model is None)


class ModelDescription(_Frozen):
    """What is known of a model apart from its weights' hash.

    ``labels`` holds a :class:`~medseg.core.LabelScheme` as plain JSON; :meth:`scheme` builds it.
    Output channel ``n`` of the network is label ``class_values[n]``; channel 0 is background. With
    ``regions`` the channels are those regions instead, and none is background.
    ``post_processing`` is what the model's makers found to help, applied unless the user says
    otherwise.
    """

    format: Literal["medseg-model/1"] = "medseg-model/1"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    version: str
    description: str
    network: NetworkChoice
    inputs: InputSettings
    labels: dict[str, Any]
    regions: tuple[Region, ...] | None = None
    post_processing: tuple[LabelCleaning, ...] = ()
    training: Training
    licence: str
    intended_use: str = "Research software, not a medical device."

    @field_validator("labels")
    @classmethod
    def _labels_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        return LabelScheme.from_dict(value).to_dict()

    @model_validator(mode="after")
    def _names_and_values_listed(self) -> Self:
        scheme = self.scheme()
        names = {label.name for label in scheme.labels}
        for cleaning in self.post_processing:
            if cleaning.label not in names | {"*"}:
                raise ValueError(f"post_processing names {cleaning.label!r}, labels does not")
        for region in self.regions or ():
            if strangers := set(region.members) - set(scheme.values):
                raise ValueError(f"region {region.name!r} has values {strangers} that no label has")
        return self

    def scheme(self) -> LabelScheme:
        """The label scheme as a value."""
        return LabelScheme.from_dict(self.labels)

    @property
    def class_values(self) -> tuple[int, ...]:
        """Label value of each output channel, background first; that of each region, if any."""
        if self.regions is not None:
            return tuple(region.writes for region in self.regions)
        return (0, *self.scheme().values)


class ModelCard(ModelDescription):
    """Everything beside the weights; ``model.json`` of a model folder."""

    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def load_card(folder: Path) -> ModelCard:
    """Read and check ``model.json``.

    Args:
        folder: A model folder, or a run folder that holds one under ``model``.

    Raises:
        ConfigError: If there is no card, or it does not follow the schema.
    """
    path = model_folder(folder) / CARD_NAME
    return parse_card(path.read_bytes(), where=str(path))


def parse_card(content: bytes, *, where: str) -> ModelCard:
    """Check the content of a ``model.json``.

    Args:
        content: JSON.
        where: The file, for messages.

    Raises:
        ConfigError: If it does not follow the schema.
    """
    try:
        return ModelCard.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            where,
            expected="a model card of format medseg-model/1",
            found=f"{key}: {first['msg']}",
            remedy="export the model again with this version of medseg",
            code="model-card",
        ) from error


def model_folder(folder: Path) -> Path:
    """The folder that holds the card: ``folder`` itself or its ``model`` subfolder.

    Raises:
        ConfigError: If neither holds one.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / CARD_NAME).is_file():
            return candidate
    raise ConfigError(
        str(folder),
        expected=f"a model folder with {CARD_NAME} and its weights",
        found="a folder without them" if folder.is_dir() else "no such folder",
        remedy="give a folder made by `medseg train`, or a name from `medseg models list`",
        code="model-missing",
    )
