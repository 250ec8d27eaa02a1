"""Everything that decides a training run, in one complete YAML file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medseg.core import LabelScheme
from medseg.errors import ConfigError, MedsegError, kind_of, one_of
from medseg.models.card import InputSettings, NetworkChoice, Region
from medseg.training.augmentation import PRESETS, AugmentationSettings

__all__ = [
    "AugmentationSettings",
    "DataSettings",
    "RunSettings",
    "TrainingSettings",
    "load_settings",
    "parse_settings",
]

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(_Frozen):
    """Where the cases are and how they are divided.

    ``layout`` of "auto" looks at the folder. ``root`` is relative to the current directory.
    ``scheme`` names the label scheme where the dataset does not say it or another is wanted.

    ``split`` is the name of a published split, ``5-fold``, or a split file; None takes the
    dataset's own, or draws ``validation_fraction`` of the patients with ``seed``. ``fold`` chooses
    among several.
    """

    layout: Literal[
        "auto", "msd", "nnunet", "synapse", "transunet", "acdc", "brats", "list", "dicom"
    ] = "auto"
    root: Annotated[str, Field(min_length=1)]
    scheme: Annotated[str, Field(min_length=1)] | None = None
    split: str | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: int = 0


class TrainingSettings(_Frozen):
    """How the weights are found.

    The length is ``epochs`` or ``steps``, one of the two; a wall-clock budget given to the run
    replaces both. ``patch_ijk`` of None trains on patches of the model's window.

    ``warmup`` is the share of the run over which the rate rises linearly; then it falls as
    ``(1 - progress) ** poly_exponent``. ``foreground_share`` of the patches hold a voxel of a
    structure for sure, all structures of a case being drawn alike. ``precision`` and
    ``channels_last`` of "auto" are measured on the machine.

    Prepared cases are kept in memory, on disk in ``cache_folder`` (None: the folder ``prepared``
    beside the run folder), or with a ``cache`` of "auto" in memory as long as half of what is free
    holds them. ``preparation_processes`` prepare them, None for one per core. ``augmentation`` may
    also be the name of a preset, which the run writes out in full.

    Between epochs, every ``validate_every`` epochs, ``validation_cases`` cases are judged, as long
    as that takes no more than ``validation_share`` of the time.

    ``batch_size`` images make a batch, however many processes share it, and ``accumulate`` batches
    a step. Dice is taken per image, or with ``batch_dice`` over all images of a batch at once;
    without ``dice_background`` the background class has no part in it; ``dice_smooth`` is added to
    numerator and denominator. ``ema_decay`` keeps a running mean of the weights, which is then what
    is validated and exported.

    A step whose loss or gradient is not finite is left out. Training stops after
    ``bad_steps_in_a_row`` of them, or once more than that and more than ``bad_step_share`` of all
    steps were left out.

    With ``patience``, training ends early after that many validations in between without a better
    running mean of Dice (0.9 of the mean before and 0.1 of the new Dice). ``export`` says which
    weights become the model: the last, or those of the best such mean. ``checkpoint_every_s`` is
    the least time between two checkpoints; where writing one takes long, they come further apart.

    ``prefetch`` steps are made ready ahead by a thread, and their batches by ``workers`` processes
    if there are any; "auto" is two steps, and none where the network computes on all cores, from
    which the thread would only take one. ``sync_batch_norm`` takes the statistics of batch
    normalisation over all processes (GPU).
    ``mlflow`` also logs to a local MLflow store in the run folder.

    ``encoder_weights`` is what a network with a pretrained encoder begins with: a file, relative to
    the current directory, or "timm" for those that timm lists, fetched on this request alone. None
    begins with random weights.

    ``start_model`` is a trained model, a folder or the name of a packaged one, whose weights
    training begins with; it must have the same network, channels and classes.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count
    accumulate: Count = 1
    samples_per_case: Count = 1
    patch_ijk: tuple[Count, Count, Count] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive
    weight_decay: NotNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    poly_exponent: NotNegative = 0.9
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dice_weight: NotNegative = 1.0
    cross_entropy_weight: NotNegative = 1.0
    batch_dice: bool = False
    dice_background: bool = True
    dice_smooth: NotNegative = 1e-5
    foreground_share: Share = 0.5
    gradient_clip: Positive | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    bad_steps_in_a_row: Count = 10
    bad_step_share: Share = 0.01
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    prefetch: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    sync_batch_norm: bool = False
    cache: Literal["auto", "memory", "disk"] = "auto"
    cache_folder: Annotated[str, Field(min_length=1)] | None = None
    preparation_processes: Count | None = None
    validate_every: Count = 10
    validation_cases: Count = 8
    validation_share: Share = 0.05
    patience: Count | None = None
    export: Literal["last", "best"] = "last"
    checkpoint_every_s: NotNegative = 20.0
    mlflow: bool = False
    seed: int = 0
    encoder_weights: Annotated[str, Field(min_length=1)] | None = None
    start_model: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, exclude_if=lambda model: model is None
    )
    augmentation: AugmentationSettings = AugmentationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, and null for the other")
        if self.dice_weight + self.cross_entropy_weight == 0:
            raise ValueError("dice_weight and cross_entropy_weight cannot both be 0")
        if self.start_model is not None and self.encoder_weights is not None:
            raise ValueError("weights to begin with from start_model or encoder_weights, not both")
        return self

    @field_validator("augmentation", mode="before")
    @classmethod
    def _preset_named(cls, value: Any) -> Any:  # noqa: ANN401 - parsed YAML
        if not isinstance(value, str):
            return value
        if value not in PRESETS:
            raise ValueError(f"one of the presets {', '.join(sorted(PRESETS))}, or settings")
        return PRESETS[value]

    @field_validator("device")
    @classmethod
    def _device_named(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("'auto', 'cpu', 'cuda' or 'cuda:N'")
        return value


class RunSettings(_Frozen):
    """One training run, complete: nothing is inherited from elsewhere.

    ``labels`` holds a label scheme as plain values; ``licence`` is that of the weights. With
    ``regions`` the network has one channel per region instead of one per class, each with a sigmoid
    of its own, and regions may overlap. Voxels of ``ignore_value`` in the label maps, which is no
    label of the scheme, count neither in the loss nor in the validation.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    version: Annotated[str, Field(min_length=1)] = "1"
    description: Annotated[str, Field(min_length=1)]
    data: DataSettings
    labels: dict[str, Any]
    regions: Annotated[tuple[Region, ...], Field(min_length=1)] | None = None
    ignore_value: Annotated[int, Field(ge=1, le=65535)] | None = None
    inputs: InputSettings
    network: NetworkChoice
    training: TrainingSettings
    licence: Annotated[str, Field(min_length=1)]
    intended_use: Annotated[str, Field(min_length=1)]

    @field_validator("labels")
    @classmethod
    def _labels_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        return LabelScheme.from_dict(value).to_dict()

    @model_validator(mode="after")
    def _values_known(self) -> Self:
        values = self.scheme().values
        for region in self.regions or ():
            if strangers := sorted(set(region.members) - set(values)):
                raise ValueError(f"labels with the values {strangers} of region {region.name!r}")
        names = [region.name for region in self.regions or ()]
        if len(set(names)) < len(names):
            raise ValueError("every region under a name of its own")
        if self.ignore_value in values:
            raise ValueError(f"an ignore_value that is no label, labels lists {self.ignore_value}")
        if self.ignore_value is not None and len(values) > 254:
            raise ValueError("at most 254 labels beside an ignore_value")
        return self

    def scheme(self) -> LabelScheme:
        """The label scheme as a value."""
        return LabelScheme.from_dict(self.labels)

    @property
    def target_names(self) -> tuple[str, ...]:
        """What Dice is told of: the regions, or the structures without background."""
        if self.regions is not None:
            return tuple(region.name for region in self.regions)
        return tuple(label.name for label in self.scheme().labels)

    @property
    def region_classes(self) -> tuple[tuple[int, ...], ...] | None:
        """Class indices that each region is made of; None without regions."""
        if self.regions is None:
            return None
        values = self.scheme().values
        return tuple(
            tuple(sorted(values.index(value) + 1 for value in region.members))
            for region in self.regions
        )

    @property
    def patch_ijk(self) -> tuple[int, int, int]:
        """Extents of one training patch."""
        return self.training.patch_ijk or self.inputs.window_ijk

    def to_yaml(self) -> str:
        """The settings as YAML that :func:`load_settings` reads back to an equal value."""
        content = self.model_dump(mode="json")
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def load_settings(path: Path) -> RunSettings:
    """Read and check a run's YAML file.

    Raises:
        ConfigError: If the file is missing, is no YAML mapping, or a key is missing, unknown or of
            the wrong kind; the message names the key by its path, such as ``training.batch_size``.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            str(path),
            expected="a configuration file",
            found="none that can be read",
            remedy="give the path of a YAML file or the name of a shipped configuration",
            code="config-missing",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            str(path),
            expected="plain YAML",
            found=f"text that cannot be parsed{line}",
            remedy="repair the file; tags that build objects are not read",
            code="config-yaml",
        ) from error
    return parse_settings(content, where=str(path))


def parse_settings(content: object, *, where: str) -> RunSettings:
    """Check parsed YAML.

    Args:
        content: What the file held.
        where: The file as the user gave it, for messages.

    Raises:
        ConfigError: As :func:`load_settings`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(
            where,
            expected="a mapping of settings",
            found="an empty file" if content is None else kind_of(content),
            remedy="start from one of the shipped configurations",
            code="config-yaml",
        )
    try:
        return RunSettings.model_validate(content)
    except ValidationError as error:
        raise _config_error(where, error) from error


def _config_error(where: str, error: ValidationError) -> ConfigError:
    # a misspelt key is both missing and unknown, and the unknown one tells what was meant
    wrong = error.errors()
    first = next((one for one in wrong if one["type"] == "extra_forbidden"), wrong[0])
    key = ".".join(str(part) for part in first["loc"])
    place = f"{where}: {key}" if key else where
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, MedsegError):
        return ConfigError(
            place, expected=cause.expected, found=cause.found, remedy=cause.remedy, code=cause.code
        )
    more = len(error.errors()) - 1
    remedy = "correct it" if more == 0 else f"correct it ({more} further keys are wrong as well)"
    if first["type"] == "extra_forbidden":
        known = _known_keys(RunSettings, first["loc"][:-1])
        name = str(first["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return ConfigError(
            place,
            expected=one_of(name, known) if known else "no further key",
            found="an unknown key",
            remedy=f"did you mean {near[0]}?" if near else "take it out",
            code="config-unknown-key",
        )
    if first["type"] == "missing":
        return ConfigError(
            place,
            expected="a value",
            found="nothing",
            remedy="add the key; every run's file is complete",
            code="config-missing-key",
        )
    return ConfigError(
        place,
        expected=_expectation(first["msg"]),
        found=_shown(first["input"]),
        remedy=remedy,
        code="config-value",
    )


def _expectation(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return text[:1].lower() + text[1:]


def _shown(value: object) -> str:
    if isinstance(value, BaseModel | Mapping):
        return "these keys"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Field names of the model that a path of keys leads to; empty if it leads to none."""
    current: type[BaseModel] | None = model
    for part in path:
        if current is None or part not in current.model_fields:
            # list positions and the tags of a union keep the members found so far
            continue
        current = _model_within(current.model_fields[str(part)].annotation)
    return sorted(current.model_fields) if current is not None else []


def _model_within(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a type expression
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_within(argument)
        if found is not None:
            return found
    return None
