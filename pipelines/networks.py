"""What `medseg models` tells of a network: origin, legal input, cost."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from medseg.errors import ConfigError, one_of
from medseg.models.estimate import Footprint, count_macs, measure_footprint
from medseg.models.table import NETWORKS, build_network
from medseg.models.zoo import shipped_models

__all__ = ["NetworkPage", "network_page", "network_row"]

_EVIDENCE = {
    "authors' code": "exact to the authors' code: its counts, shapes and values are tests",
    "reconstruction": "a reconstruction: the paper leaves open what the documents list",
}


@dataclass(frozen=True, slots=True)
class NetworkPage:
    """One network at one size and input.

    Args:
        name: Key of the table.
        title: What its authors call it.
        summary: One line.
        evidence: What its code is based on.
        citation: The paper.
        rank: Number of spatial axes.
        preset: Its size.
        presets: All sizes there are.
        shape: ``(b, c, *spatial)`` of the input that the cost is for.
        published_input: Whether that is the preset's own input.
        out_channels: Channels of the logits.
        size_multiple: Legal extents are multiples of this.
        footprint: What it costs.
    """

    name: str
    title: str
    summary: str
    evidence: str
    citation: str
    rank: int
    preset: str
    presets: tuple[str, ...]
    shape: tuple[int, ...]
    published_input: bool
    out_channels: int
    size_multiple: tuple[int, ...]
    footprint: Footprint

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def lines(self) -> list[list[str]]:
        """Name and value of everything."""
        cost = self.footprint
        axes = "3D" if self.rank == 3 else "2D; volumes go through it slice by slice"
        others = ", ".join(name for name in self.presets if name != self.preset)
        source = "" if self.published_input else ", as asked for"
        return [
            ["about", self.summary],
            ["evidence", _EVIDENCE[self.evidence]],
            ["citation", self.citation],
            ["axes", axes],
            ["preset", f"{self.preset} (others: {others})"],
            ["legal extents", f"multiples of {_times(self.size_multiple)}"],
            ["input", f"{_times(self.shape)} (batch, channels, extents){source}"],
            ["output", f"{self.out_channels} channels of logits at the input's extents"],
            ["weights", f"{cost.weights:,} ({_mebibytes(cost.weights_bytes)} in float32)"],
            [
                "multiply-adds",
                f"{cost.macs / 1e9:.3f} G per prediction, of convolutions and matrix products",
            ],
            ["memory to predict", f"{_mebibytes(cost.prediction_bytes)} in float32"],
            ["memory to train", f"{_mebibytes(cost.training_bytes)} in float32 with AdamW"],
            ["", "memory: tensors alive at the peak; work spaces of libraries come on top"],
        ]


@cache
def network_page(
    name: str, *, preset: str | None = None, extents: str | None = None, batch: int = 1
) -> NetworkPage:
    """Build a network without memory and find out what it costs.

    Args:
        name: Key of the table.
        preset: One of its sizes; None takes ``base``.
        extents: Input extents, such as ``128x128x96``; None takes the preset's.
        batch: Images in one step.

    Raises:
        ConfigError: If the network or preset is unknown, or the extents cannot be read or are not
            legal for the network.
    """
    if name.lower() in NETWORKS:
        name = name.lower()
    if name not in NETWORKS:
        raise ConfigError(
            f"model {name!r}",
            expected=f"a model folder, or {one_of(name, [*shipped_models(), *NETWORKS])}",
            found="neither a folder nor a model or network of that name",
            remedy="see `medseg models list` and `medseg models list --networks`",
            code="model-missing",
        )
    entry = NETWORKS[name]
    chosen = preset or "base"
    with torch.device("meta"):
        network = build_network(name, {"preset": chosen})
    spatial = entry.inputs[chosen] if extents is None else _extents(extents, entry.rank)
    if spatial != network.nearest_legal_extents(spatial):
        raise ConfigError(
            "--extents",
            expected=f"multiples of {_times(network.size_multiple)} for {name}",
            found=_times(spatial),
            remedy=f"the nearest are {_times(network.nearest_legal_extents(spatial))}",
            code="network-extents",
        )
    shape = (batch, network.in_channels, *spatial)
    return NetworkPage(
        name=name,
        title=entry.title,
        summary=entry.summary,
        evidence=entry.evidence,
        citation=entry.citation,
        rank=entry.rank,
        preset=chosen,
        presets=tuple(entry.presets),
        shape=shape,
        published_input=extents is None,
        out_channels=network.out_channels,
        size_multiple=network.size_multiple,
        footprint=measure_footprint(network, shape),
    )


def network_row(name: str) -> list[str]:
    """A network's line in a listing; its memory, which takes longest to find out, is not in it.

    Args:
        name: Key of the table.
    """
    entry = NETWORKS[name]
    with torch.device("meta"):
        network = build_network(name, {"preset": "base"})
    shape = (network.in_channels, *entry.inputs["base"])
    return [
        name,
        f"{entry.rank}D",
        f"{sum(weight.numel() for weight in network.parameters()):,}",
        f"{count_macs(network, (1, *shape)) / 1e9:.2f}",
        _times(shape),
        entry.evidence,
        ", ".join(entry.presets),
        entry.summary,
    ]


def _extents(text: str, rank: int) -> tuple[int, ...]:
    parts = re.split(r"[x,]", text.strip())
    if len(parts) != rank or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(
            "--extents",
            expected=f"{rank} numbers, such as {'x'.join(['128'] * rank)}",
            found=repr(text),
            remedy=f"give {rank} of them with x between; the network is {rank}D",
            code="usage",
        )
    return tuple(int(part) for part in parts)


def _times(extents: tuple[int, ...]) -> str:
    return " x ".join(str(extent) for extent in extents)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
