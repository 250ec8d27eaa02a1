"""Every network by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from medseg.errors import ConfigError, one_of
from medseg.models.network import SegmentationNetwork
from medseg.models.neunet import NEUNET_PRESETS, NeUNet, NeUNetSettings
from medseg.models.revunet import REVUNET_PRESETS, RevUNet, RevUNetSettings

__all__ = ["NETWORKS", "NetworkEntry", "build_network", "build_settings"]


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network of the table.

    Args:
        name: Its key.
        settings: The class of its settings.
        network: The class of the network; takes the settings and nothing else.
        summary: One line for listings.
        presets: Complete settings by name.
    """

    name: str
    settings: type[BaseModel]
    network: type[SegmentationNetwork]
    summary: str
    presets: Mapping[str, BaseModel]


_ENTRIES = (
    NetworkEntry(
        "revunet",
        RevUNetSettings,
        RevUNet,
        "partially reversible U-Net of mobile bottlenecks (reconstruction after arXiv 2104.09648)",
        MappingProxyType(REVUNET_PRESETS),
    ),
    NetworkEntry(
        "neunet",
        NeUNetSettings,
        NeUNet,
        "U-Net with a wavelet pyramid of the image and a sub-pixel decoder (arXiv 2309.11139)",
        MappingProxyType(NEUNET_PRESETS),
    ),
)

NETWORKS: Mapping[str, NetworkEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def build_settings(name: str, mapping: Mapping[str, Any]) -> BaseModel:
    """Complete settings of a network from what a user wrote.

    Args:
        name: Key of :data:`NETWORKS`.
        mapping: Settings by name. The key ``preset`` names settings to start from; everything else
            replaces what the preset says.

    Raises:
        ConfigError: If the network, the preset or a setting does not exist, or a value is wrong.
    """
    entry = _entry(name)
    where = f"settings of network {name}"
    given = dict(mapping)
    if "preset" in given:
        chosen = str(given.pop("preset"))
        if chosen not in entry.presets:
            raise ConfigError(
                where,
                expected=f"preset to be {one_of(chosen, entry.presets)}",
                found=repr(chosen),
                remedy="choose one of them, or leave the preset out and give every setting",
                code="network-preset",
            )
        given = {**entry.presets[chosen].model_dump(), **given}
    fields = entry.settings.model_fields
    for key in given:
        if key not in fields:
            raise ConfigError(
                where,
                expected=one_of(str(key), [*fields, "preset"]),
                found=repr(key),
                remedy="correct the name of the setting",
                code="network-setting",
            )
    try:
        return entry.settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{where}, {key}" if key else where,
            expected=_lower(first["msg"]),
            found=repr(first["input"]) if key and first["type"] != "missing" else "otherwise",
            remedy=f"correct it or start from a preset: {', '.join(entry.presets)}",
            code="network-value",
        ) from error


def build_network(name: str, settings: Mapping[str, Any] | BaseModel) -> SegmentationNetwork:
    """A network with fresh weights, in training mode.

    Args:
        name: Key of :data:`NETWORKS`.
        settings: The network's own settings, or what :func:`build_settings` takes.

    Raises:
        ConfigError: As :func:`build_settings`, or if the settings are another network's.
    """
    entry = _entry(name)
    if not isinstance(settings, BaseModel):
        settings = build_settings(name, settings)
    if not isinstance(settings, entry.settings):
        raise ConfigError(
            f"network {name}",
            expected=entry.settings.__name__,
            found=type(settings).__name__,
            remedy="hand in the settings of this network",
            code="network-settings-class",
        )
    build: Any = entry.network
    network: SegmentationNetwork = build(settings)
    return network


def _entry(name: str) -> NetworkEntry:
    if name not in NETWORKS:
        raise ConfigError(
            "network",
            expected=one_of(name, NETWORKS),
            found=repr(name),
            remedy="choose one of them",
            code="network-name",
        )
    return NETWORKS[name]


def _lower(message: str) -> str:
    text = message.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
