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
from medseg.models.card import NetworkChoice, SliceSettings
from medseg.models.network import SegmentationNetwork
from medseg.models.table import NETWORKS, build_settings
from medseg.training.settings import RunSettings

__all__ = ["check_data", "check_extents", "check_foreground", "complete_settings", "load_encoder"]


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
