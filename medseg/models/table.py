"""Every network by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from medseg.errors import ConfigError, one_of
from medseg.models.card import InputSettings, NetworkChoice, SliceSettings
from medseg.models.macmd import MACMD, MACMD_PRESETS, MACMDSettings
from medseg.models.network import Extents, SegmentationNetwork
from medseg.models.neunet import NEUNET_PRESETS, NeUNet, NeUNetSettings
from medseg.models.qtseg import QTSEG_PRESETS, QTSeg, QTSegSettings
from medseg.models.revunet import REVUNET_PRESETS, RevUNet, RevUNetSettings
from medseg.models.slices import SlicedNetwork
from medseg.models.transdae import TRANSDAE_PRESETS, TransDAE, TransDAESettings

__all__ = [
    "NETWORKS",
    "Evidence",
    "NetworkEntry",
    "build_network",
    "build_settings",
    "build_volume_network",
]


Evidence = Literal["authors' code", "reconstruction"]


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """One network of the table.

    Args:
        name: Its key.
        title: What its authors call it.
        rank: Number of spatial axes, 2 or 3; a 2D network serves volumes slice by slice.
        settings: The class of its settings.
        network: The class of the network; takes the settings and nothing else.
        summary: One line for listings.
        evidence: What stands behind the code: the authors' released network, whose counts and
            values are tests, or a reconstruction from less than that.
        citation: The paper.
        presets: Complete settings by name; ``base`` is the published size.
        inputs: Extents of one input by preset: where published, the published ones.
    """

    name: str
    title: str
    rank: int
    settings: type[BaseModel]
    network: type[SegmentationNetwork]
    summary: str
    evidence: Evidence
    citation: str
    presets: Mapping[str, BaseModel]
    inputs: Mapping[str, Extents]


_ENTRIES = (
    NetworkEntry(
        name="neunet",
        title="neU-Net",
        rank=3,
        settings=NeUNetSettings,
        network=NeUNet,
        summary="U-Net with a wavelet pyramid of the image and a sub-pixel decoder",
        evidence="authors' code",
        citation="Yang, Xu, Wang, Geng, Li, Xu, Dong: More complex encoder is not all you need. "
        "arXiv 2309.11139, 2023",
        presets=MappingProxyType(NEUNET_PRESETS),
        inputs=MappingProxyType(
            {
                "base": (48, 192, 192),
                "synapse": (48, 192, 192),
                "acdc": (10, 96, 96),
                "brats": (128, 128, 128),
                "small": (64, 64, 64),
                "tiny": (32, 32, 32),
            }
        ),
    ),
    NetworkEntry(
        name="transdae",
        title="TransDAE",
        rank=2,
        settings=TransDAESettings,
        network=TransDAE,
        summary="transformer U-Net with dual attention and inter-scale skips",
        evidence="reconstruction",
        citation="Azad, Adibfar, Fu: TransDAE: Dual Attention Mechanism in a Hierarchical "
        "Transformer for Efficient Medical Image Segmentation. arXiv 2409.02018, 2024",
        presets=MappingProxyType(TRANSDAE_PRESETS),
        inputs=MappingProxyType(
            {
                "base": (224, 224),
                "v1": (224, 224),
                "daeformer": (224, 224),
                "small": (96, 96),
                "tiny": (64, 64),
            }
        ),
    ),
    NetworkEntry(
        name="macmd",
        title="MACMD",
        rank=2,
        settings=MACMDSettings,
        network=MACMD,
        summary="encoder of any timm name, multi-dilated context gates, channel-mix decoder",
        evidence="authors' code",
        citation="Maurya, Liu, Zwiggelaar: MACMD: Multi-dilated Contextual Attention and Channel "
        "Mixer Decoding for Medical Image Segmentation. arXiv 2511.05803, 2025",
        presets=MappingProxyType(MACMD_PRESETS),
        inputs=MappingProxyType(
            {"base": (224, 224), "maxvit": (224, 224), "small": (96, 96), "tiny": (64, 64)}
        ),
    ),
    NetworkEntry(
        name="qtseg",
        title="QTSeg",
        rank=2,
        settings=QTSegSettings,
        network=QTSeg,
        summary="feature pyramid, dual-mix attention, one query token per class",
        evidence="authors' code",
        citation="QTSeg: A Query Token-Based Dual-Mix Attention Framework with Multi-Level "
        "Feature Distribution for Medical Image Segmentation. arXiv 2412.17241, 2024",
        presets=MappingProxyType(QTSEG_PRESETS),
        inputs=MappingProxyType({"base": (512, 512), "small": (96, 96), "tiny": (64, 64)}),
    ),
    NetworkEntry(
        name="revunet",
        title="reversible mobile-bottleneck U-Net",
        rank=3,
        settings=RevUNetSettings,
        network=RevUNet,
        summary="partially reversible U-Net of mobile inverted bottlenecks",
        evidence="reconstruction",
        citation="Pendse, Thangarasa et al.: Memory Efficient 3D U-Net with Reversible Mobile "
        "Inverted Bottlenecks for Brain Tumor Segmentation. BrainLes 2020, arXiv 2104.09648",
        presets=MappingProxyType(REVUNET_PRESETS),
        inputs=MappingProxyType(
            {
                "base": (240, 240, 160),
                "deep": (240, 240, 160),
                "small": (64, 64, 64),
                "tiny": (32, 32, 32),
            }
        ),
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
        presets = f"start from a preset: {', '.join(entry.presets)}"
        rule = first.get("ctx", {}).get("error")
        if isinstance(rule, ConfigError):
            raise ConfigError(
                f"{where}, {rule.where}",
                expected=rule.expected,
                found=rule.found,
                remedy=f"{rule.remedy}, or {presets}",
                code=rule.code,
            ) from error
        raise ConfigError(
            f"{where}, {key}",
            expected=_expectation(first["msg"]),
            found=_found(first),
            remedy=f"correct it, or {presets}",
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


def build_volume_network(choice: NetworkChoice, inputs: InputSettings) -> SegmentationNetwork:
    """A network for volumes with fresh weights, in training mode: 2D ones work slice by slice.

    Args:
        choice: Network, its settings and, for a 2D network, how it is sliced. ``in_channels`` may
            be left out: it is the number of image channels, times the slices that a 2D network sees
            at once.
        inputs: The image channels, and the model's grid, which tells the slice axis.

    Raises:
        ConfigError: As :func:`build_network`; if slicing is asked of a 3D network; if the slice
            axis cannot be told, or ``in_channels`` is given and does not fit.
    """
    is_2d = _entry(choice.name).rank == 2
    slices = choice.slices or SliceSettings()
    seen = 2 * slices.neighbours + 1 if is_2d else 1
    images = len(inputs.channels)
    network = build_network(choice.name, {"in_channels": seen * images, **choice.settings})
    if not is_2d and choice.slices is not None:
        raise ConfigError(
            "network.slices",
            expected=f"null, since the network {choice.name} is three-dimensional",
            found="settings for slices",
            remedy="leave network.slices out, or choose a 2D network",
            code="slices-rank",
        )
    if network.in_channels != seen * images:
        raise ConfigError(
            f"settings of network {choice.name}, in_channels",
            expected=f"{images}, the number of image channels"
            if seen == 1
            else f"{seen * images}: the number of image channels, {images}, times the {seen} "
            "slices seen at once",
            found=str(network.in_channels),
            remedy="leave in_channels out; it follows from the inputs",
            code="network-channels",
        )
    return SlicedNetwork(network, slices, slices.axis_on(inputs)) if is_2d else network


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


def _found(problem: Any) -> str:  # noqa: ANN401 - pydantic's own dictionary
    return "nothing" if problem["type"] == "missing" else repr(problem["input"])


def _expectation(message: str) -> str:
    if message == "Field required":
        return "a value"
    text = message.removeprefix("Input should be ")
    return text[:1].lower() + text[1:]
