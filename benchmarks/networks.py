"""What one forward pass and one training step of every network cost at its published size.

Each network runs in float32 with the contiguous layout and in bfloat16 with channels-last, on the
same image. Their logits are compared first. neU-Net then runs against the two networks that it
would replace, at the same patch, channels and strides: MONAI's DynUNet and nnU-Net's PlainConvUNet.

    python -m benchmarks.networks [--preset base|small|...] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.models.estimate import count_macs
from medseg.models.network import SegmentationNetwork, arrange_weights
from medseg.models.neunet import NeUNetSettings
from medseg.models.table import NETWORKS, build_network, build_settings
from pipelines.tables import print_table

TOLERANCE = 0.25
"""Largest mean deviation of bfloat16 logits, in standard deviations of the float32 ones.

The weights are random: the deviation is that of eight bits through all layers."""


@dataclass(frozen=True)
class Row:
    """Seconds of one variant of one network, medians."""

    network: str
    variant: str
    extents: tuple[int, ...]
    weights: int
    macs: int
    forward_s: float
    step_s: float
    deviation: float


@dataclass(frozen=True)
class Variant:
    """Number type and layout."""

    name: str
    autocast: torch.dtype | None
    channels_last: bool

    def image(self, x_bcs: Tensor) -> Tensor:
        """The image in this layout."""
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        layout = layouts[x_bcs.ndim] if self.channels_last else torch.contiguous_format
        return x_bcs.contiguous(memory_format=layout)

    def context(self) -> torch.autocast:
        """The number type inside the network."""
        return torch.autocast("cpu", dtype=self.autocast, enabled=self.autocast is not None)


VARIANTS = (
    Variant("fp32", None, channels_last=False),
    Variant("bf16 channels last", torch.bfloat16, channels_last=True),
)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall-clock time of ``work`` after one run that is not counted.

    Long work is repeated less often: no further run begins after ten seconds.
    """
    work()
    taken: list[float] = []
    while not taken or (len(taken) < repeats and sum(taken) < 10):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def training_step(network: nn.Module, x_bcs: Tensor, variant: Variant) -> None:
    """Forward, cross-entropy on every head, backward."""
    network.zero_grad(set_to_none=True)
    with variant.context():
        answer: Any = network(x_bcs)
        heads = list(answer) if isinstance(answer, tuple | list) else [answer]
        losses = [
            F.cross_entropy(head.float(), torch.zeros_like(head[:, 0], dtype=torch.int64))
            for head in heads
        ]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def predicted(network: nn.Module, x_bcs: Tensor, variant: Variant) -> Tensor:
    """Logits of the finest head in float32."""
    with torch.inference_mode(), variant.context():
        answer: Any = network(x_bcs)
        finest: Tensor = answer[0] if isinstance(answer, tuple | list) else answer
        return finest.float()


def measure(
    name: str, network: nn.Module, extents: tuple[int, ...], channels: int, repeats: int
) -> list[Row]:
    """Both variants of one network on the same image.

    Raises:
        SystemExit: If their logits do not agree.
    """
    torch.manual_seed(0)
    image = torch.randn(1, channels, *extents)
    macs = count_macs(network, image.shape)
    weights = sum(weight.numel() for weight in network.parameters())
    expected = predicted(network.eval(), image, VARIANTS[0])
    rows: list[Row] = []
    for variant in VARIANTS:
        arrange_weights(network, channels_last=variant.channels_last)
        x_bcs = variant.image(image)
        network.eval()
        found = predicted(network, x_bcs, variant)
        deviation = float((found - expected).abs().mean() / expected.std())
        if not deviation < TOLERANCE:
            sys.exit(f"{name}, {variant.name}: logits deviate by {deviation:.2g} deviations")
        forward_s = seconds(partial(predicted, network, x_bcs, variant), repeats)
        network.train()
        step_s = seconds(partial(training_step, network, x_bcs, variant), repeats)
        rows.append(Row(name, variant.name, extents, weights, macs, forward_s, step_s, deviation))
        print(f"  {name}, {variant.name}: {forward_s:.2f} s, {step_s:.2f} s", file=sys.stderr)
        network.zero_grad(set_to_none=True)
        gc.collect()
    return rows


def peers(settings: NeUNetSettings) -> dict[str, nn.Module]:
    """U-Nets of the same stages, widths, kernels and strides."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet  # noqa: PLC0415
    from monai.networks.nets import DynUNet  # noqa: PLC0415

    features, stages = list(settings.features), len(settings.features)
    nnunet = PlainConvUNet(
        settings.in_channels,
        stages,
        features,
        nn.Conv3d,
        [list(kernel) for kernel in settings.kernels],
        [list(stride) for stride in settings.strides],
        2,
        settings.out_channels,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    dynunet = DynUNet(
        3,
        settings.in_channels,
        settings.out_channels,
        kernel_size=settings.kernels,
        strides=settings.strides,
        upsample_kernel_size=settings.strides[1:],
        filters=features,
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=False,
    )
    return {"nnU-Net PlainConvUNet": nnunet, "MONAI DynUNet": dynunet}


def chosen(
    parser: argparse.ArgumentParser, name: str, preset: str, text: str | None
) -> tuple[Any, SegmentationNetwork, tuple[int, ...]]:
    """Settings, network and input of one row; ends the program if the input is not legal."""
    entry = NETWORKS[name]
    if preset not in entry.presets:
        parser.error(f"{name} has no preset {preset}; it has {', '.join(entry.presets)}")
    settings: Any = build_settings(name, {"preset": preset})
    network = build_network(name, settings)
    extents = tuple(int(part) for part in text.split("x")) if text else entry.inputs[preset]
    if len(extents) != network.rank or extents != network.nearest_legal_extents(extents):
        parser.error(f"{name} takes {network.rank} multiples of {network.size_multiple}")
    return settings, network, extents


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--preset", default="base", help="size; base is the published one")
    parser.add_argument("--extents", help="such as 48x96x96, instead of the published ones")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs at most")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    rows: list[Row] = []
    for name in arguments.networks or NETWORKS:
        settings, network, extents = chosen(parser, name, arguments.preset, arguments.extents)
        rows += measure(name, network, extents, settings.in_channels, arguments.repeats)
        del network
        if name == "neunet":
            for title, peer in peers(settings).items():
                rows += measure(title, peer, extents, settings.in_channels, arguments.repeats)
    fp32 = {row.network: row for row in rows if row.variant == VARIANTS[0].name}
    print_table(
        [
            "network",
            "variant",
            "input",
            "weights",
            "GMAC",
            "forward s",
            "step s",
            "speed-up forward",
            "step",
            "deviation",
        ],
        [
            [
                row.network,
                row.variant,
                "x".join(map(str, row.extents)),
                f"{row.weights:,}",
                f"{row.macs / 1e9:.1f}",
                f"{row.forward_s:.3f}",
                f"{row.step_s:.3f}",
                f"{fp32[row.network].forward_s / row.forward_s:.2f}",
                f"{fp32[row.network].step_s / row.step_s:.2f}",
                f"{row.deviation:.1e}",
            ]
            for row in rows
        ],
    )
    for row in rows:
        if row.network == "neunet":
            for peer_row in rows:
                if peer_row.network not in NETWORKS and peer_row.variant == row.variant:
                    print(
                        f"{row.variant}: neunet takes {row.forward_s / peer_row.forward_s:.2f} "
                        f"times the forward time and {row.step_s / peer_row.step_s:.2f} times the "
                        f"step time of {peer_row.network}, with {row.macs / peer_row.macs:.2f} "
                        "times its multiplications"
                    )
    print(f"batch 1, {torch.get_num_threads()} threads; speed-up over fp32 of the same network")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
