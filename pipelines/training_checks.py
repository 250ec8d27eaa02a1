"""Settings, network and dataset of a run: completed, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from medseg.core import LabelScheme
from medseg.data.datalist import DataList
from medseg.data.layouts.transunet import SCALED_HU
from medseg.data.prepared import PreparedCase
from medseg.errors import ConfigError
from medseg.events import Listener
from medseg.models.card import ModelCard, NetworkChoice, SliceSettings, StartModel
from medseg.models.folder import load_model
from medseg.models.network import SegmentationNetwork
from medseg.models.table import NETWORKS, build_settings
from medseg.models.zoo import find_model
from medseg.training.settings import RunSettings

__all__ = [
    "check_data",
    "check_extents",
    "check_foreground",
    "check_start",
    "complete_settings",
    "load_encoder",
    "load_start",
]

# what decides how a network computes, and not what; or follows from channels and labels
_MANNER = {"memory", "in_channels", "out_channels"}


def complete_settings(settings: RunSettings) -> RunSettings:
    """The same with every setting of the network spelled out.

    Channels in and out follow from the inputs and labels; given as well, they must agree.
    """
    name, given = settings.network.name, dict(settings.network.settings)
    slices = settings.network.slices
    if slices is None and name in NETWORKS and NETWORKS[name].rank == 2:
        slices = SliceSettings()
    seen = 1 if slices is None else 2 * slices.neighbours + 1
    derived = {
        "in_channels": seen * len(settings.inputs.channels),
        "out_channels": 1 + len(settings.scheme().values)
        if settings.regions is None
        else len(settings.regions),
    }
    for key, value in derived.items():
        if given.get(key, value) != value:
            raise ConfigError(
                f"network.settings.{key}",
                expected=f"{value}, after the inputs and labels",
                found=str(given[key]),
                remedy="take it out: it follows from them",
                code="network-channels",
            )
    complete = build_settings(name, {**given, **derived})
    choice = NetworkChoice(name=name, settings=complete.model_dump(mode="json"), slices=slices)
    return settings.model_copy(update={"network": choice})


def check_foreground(
    cases: Sequence[PreparedCase], names: Sequence[str], dataset: str, listener: Listener
) -> None:
    """Refuse training cases of background alone, and note each structure that none of them shows.

    Args:
        cases: Prepared to train.
        names: Structures or regions, in the order of the cases' places.
        dataset: The name of the dataset, for the message.
        listener: Told of the structures.

    Raises:
        ConfigError: ``foreground-empty``.
    """
    shown = [any(len(case.places[number]) for case in cases) for number in range(len(names))]
    if not any(shown):
        raise ConfigError(
            f"dataset {dataset!r}",
            expected="a structure in at least one training case",
            found="label maps of background alone",
            remedy="check that the label maps are the right ones, with `medseg data check`",
            code="foreground-empty",
        )
    for name, is_shown in zip(names, shown, strict=True):
        if not is_shown:
            listener.noted(f"no training case shows {name!r}: the network cannot learn it")


def check_data(settings: RunSettings, data: DataList) -> None:
    """Refuse a dataset whose labels, channels or units are not those of the settings."""
    if data.ignore_value not in (None, settings.ignore_value):
        raise ConfigError(
            "ignore_value",
            expected=f"{data.ignore_value}, the ignore label of the dataset {data.name!r}",
            found="null" if settings.ignore_value is None else str(settings.ignore_value),
            remedy="set it, so that voxels nobody annotated count neither as background nor as "
            "a structure",
            code="dataset-ignored",
        )
    if settings.ignore_value is not None:
        judged = [one for one in data.scheme.labels if one.value != settings.ignore_value]
        scheme = LabelScheme(data.scheme.name, tuple(judged))
        dataclasses.replace(data, scheme=scheme).check_scheme(settings.scheme())
    else:
        data.check_scheme(settings.scheme())
    if len(data.channels) != len(settings.inputs.channels):
        raise ConfigError(
            "inputs.channels",
            expected=f"the {len(data.channels)} channels of the dataset {data.name!r}",
            found=str(len(settings.inputs.channels)),
            remedy="list the dataset's channels in its order",
            code="dataset-channels",
        )
    given = [channel.name for channel in settings.inputs.channels]
    ours, theirs = ([name.casefold() for name in names] for names in (given, data.channels))
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise ConfigError(
            "inputs.channels",
            expected=f"the channels in the order of the dataset {data.name!r}: "
            f"{', '.join(data.channels)}",
            found=", ".join(given),
            remedy="list them in that order: they are taken by their place, not by their name",
            code="dataset-channels",
        )
    if data.layout == "transunet" and settings.inputs.channels[0].scaled_hu is None:
        low, high = SCALED_HU
        raise ConfigError(
            "inputs.channels.0.scaled_hu",
            expected=f"[{low:g}, {high:g}], the Hounsfield units that 0 and 1 stand for in the "
            f"dataset {data.name!r}",
            found="nothing, so that the images would be taken for Hounsfield units",
            remedy="add it, with a normalisation of 0 to 1 such as {kind: unchanged}",
            code="intensity-units",
        )


def check_extents(settings: RunSettings, network: SegmentationNetwork) -> None:
    """Refuse windows and patches that the network cannot take."""
    places: Sequence[tuple[str, tuple[int, int, int]]] = (
        ("inputs.window_ijk", settings.inputs.window_ijk),
        ("training.patch_ijk", settings.patch_ijk),
    )
    for place, extents in places:
        nearest = network.nearest_legal_extents(extents)
        if extents != nearest:
            raise ConfigError(
                place,
                expected=f"multiples of {network.size_multiple} for the network "
                f"{settings.network.name}",
                found=str(extents),
                remedy=f"the nearest is {nearest}",
                code="window-extents",
            )


def load_encoder(settings: RunSettings, network: SegmentationNetwork, listener: Listener) -> None:
    """Begin with an encoder that others have trained, if the settings ask for it."""
    source = settings.training.encoder_weights
    if source is None:
        return
    if source == "timm":
        network.load_encoder_weights("timm")
        listener.noted("the encoder begins with the weights that timm lists")
        return
    network.load_encoder_weights(Path(source))
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    listener.noted(f"the encoder begins with {Path(source).name}, sha256 {digest[:12]}")


def load_start(
    settings: RunSettings, network: SegmentationNetwork, listener: Listener
) -> StartModel | None:
    """Begin with the weights of a trained model, if the settings ask for it.

    Returns:
        Which model that was; None if none was asked for.

    Raises:
        ConfigError: ``start-model`` if its network, channels or classes are others; and as
            :func:`medseg.models.zoo.find_model`.
        FormatError: As :func:`medseg.models.folder.load_model`.
    """
    source = settings.training.start_model
    if source is None:
        return None
    trained, card = load_model(find_model(source))
    check_start(settings, card)
    network.load_state_dict(trained.state_dict())
    listener.noted(
        f"training begins with the weights of {card.name} {card.version}, "
        f"sha256 {card.weights_sha256[:12]}"
    )
    if (card.inputs.spacing_mm, card.inputs.orientation) != (
        settings.inputs.spacing_mm,
        settings.inputs.orientation,
    ):
        listener.noted("its images had another spacing or orientation than those of this run")
    return StartModel(name=card.name, version=card.version, weights_sha256=card.weights_sha256)


def check_start(settings: RunSettings, card: ModelCard) -> None:
    """Refuse to begin with a model that means something else by its weights.

    Args:
        settings: Of the run, complete.
        card: Of the model.

    Raises:
        ConfigError: ``start-model``.
    """
    ours, theirs = settings.network, card.network
    given = build_settings(theirs.name, theirs.settings).model_dump(mode="json")
    differing = [
        key
        for key, value in ours.settings.items()
        if key not in _MANNER and theirs.name == ours.name and given.get(key) != value
    ]
    comparisons: list[tuple[str, object, object]] = [("network", ours.name, theirs.name)]
    comparisons += [(f"network.settings.{key}", ours.settings[key], given.get(key))
                    for key in differing]  # fmt: skip
    comparisons += [
        (
            "channels",
            [channel.name for channel in settings.inputs.channels],
            [channel.name for channel in card.inputs.channels],
        ),
        (
            "labels",
            [label.name for label in settings.scheme().labels],
            [label.name for label in card.scheme().labels],
        ),
        (
            "regions",
            [region.name for region in settings.regions or ()],
            [region.name for region in card.regions or ()],
        ),
    ]
    for place, wanted, found in comparisons:
        if wanted != found:
            raise ConfigError(
                f"model {card.name}",
                expected=f"{place} {_listed(wanted)}, as in the run that is to begin with it",
                found=_listed(found),
                remedy="begin with a model of the same network, channels and labels, or without",
                code="start-model",
            )


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
