"""What the reversible U-Net saves in memory against the same network, and what that costs in time.

Three ways to train one network: ``reversible`` (activations recomputed from outputs), ``stored``
(plain autograd) and ``checkpointed`` (each block recomputed from its kept input). First their
outputs and gradients are compared, then their memory and speed over blocks per level and image
size. Then the question is put as Pendse et al. put it (arXiv 2104.09648): with one memory budget,
how large a volume, how deep and how wide a network can be trained reversible and stored? Budgets
are searched on the meta device, after a check that it counts the same bytes as the processor.

Memory is counted in bytes of live tensors, without the work space of single operations. In the
first table weights and image are left out; a budget has them in, with the gradients of the
weights, but without an optimiser's state.

    python -m benchmarks.reversible
    python -m benchmarks.reversible --blocks 1 2 --edges 16 --repeats 1 --no-picture
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from medseg.models.revunet import RevUNet, RevUNetSettings
from medseg.ops.live_storage import StepMemory, step_memory
from medseg.ops.reversible import Memory
from pipelines.tables import print_table

KINDS: tuple[Memory, ...] = get_args(Memory)
PICTURE = Path("docs/images/reversible_memory.png")
MIB, GIB = 2**20, 2**30
# relative, in float64: rounding of the inverse over eight blocks stays far below
GRADIENTS_AGREE = 1e-10
MOST_BLOCKS = 16
MOST_LEVELS = 8

Extents = tuple[int, int, int]
# 155 slices padded to a multiple of 8
BRATS: Extents = (240, 240, 160)


@dataclass(frozen=True)
class Row:
    """One network, one size, one kind of memory."""

    blocks: int
    edge: int
    memory: Memory
    forward_mib: float
    peak_mib: float
    steps_per_second: float


@dataclass(frozen=True)
class Claim:
    """The most that fits into one budget, by kind of memory."""

    question: str
    blocks: int
    fits: dict[Memory, str]
    ratio: float
    target: float
    at_least: bool = False


def build(settings: RevUNetSettings, memory: Memory, device: str, seed: int = 0) -> RevUNet:
    """A network of one kind of memory; equal weights for equal settings."""
    torch.manual_seed(seed)
    with torch.device(device):
        return RevUNet(settings.model_copy(update={"memory": memory}))


def dense_twin(settings: RevUNetSettings) -> RevUNet:
    """The same skeleton with two dense 3x3x3 convolutions in place of each block, stored.

    Convolution without bias, GroupNorm, ReLU in place; present weights are on the default device.
    """
    network = RevUNet(settings.model_copy(update={"memory": "stored"}))
    for sequences in (network.encoder, network.decoder):
        for level, width in enumerate(settings.widths):
            sequences[level] = nn.Sequential(
                *(
                    layer
                    for _ in range(2 * settings.blocks)
                    for layer in (
                        nn.Conv3d(width, width, 3, padding=1, bias=False),
                        nn.GroupNorm(settings.norm_groups, width),
                        nn.ReLU(inplace=True),
                    )
                )
            )
    return network


def image(settings: RevUNetSettings, extents: Extents, device: str) -> Tensor:
    """A batch of one image; noise, or sizes alone on the meta device."""
    return torch.randn(1, settings.in_channels, *extents, device=device)


def check_agreement(settings: RevUNetSettings, edge: int = 16) -> float:
    """Compare outputs (bit by bit) and gradients of the three kinds in float64.

    Returns:
        The largest deviation of a gradient, relative to that gradient's largest entry.

    Raises:
        RuntimeError: If they do not agree; then no figure below would mean anything.
    """
    x = image(settings, (edge,) * 3, "cpu").double()
    outputs: list[Tensor] = []
    gradients: list[Sequence[Tensor]] = []
    for memory in KINDS:
        network = build(settings, memory, "cpu").double()
        y = network(x)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad(y.square().mean(), list(network.parameters())))
    if not all(torch.equal(outputs[0], other) for other in outputs[1:]):
        raise RuntimeError(f"outputs differ between {', '.join(KINDS)}")
    worst = max(
        float((a - b).abs().max() / b.abs().max())
        for other in (gradients[0], gradients[2])
        for a, b in zip(other, gradients[1], strict=True)
    )
    if not worst <= GRADIENTS_AGREE:
        raise RuntimeError(f"gradients differ by {worst:.1e} between {', '.join(KINDS)}")
    return worst


def measure(settings: RevUNetSettings, edge: int, repeats: int) -> list[Row]:
    """Memory and median speed of the three kinds, in turns, on the processor.

    Raises:
        RuntimeError: If the meta device counts other bytes than the processor.
    """
    extents = (edge,) * 3
    x = image(settings, extents, "cpu")
    networks = {memory: build(settings, memory, "cpu") for memory in KINDS}
    memories = {memory: step_memory(network, x) for memory, network in networks.items()}
    for memory, found in memories.items():
        if on_meta(settings, memory, extents) != found:
            raise RuntimeError(f"the meta device counts other bytes than the processor: {memory}")
    seconds: dict[Memory, list[float]] = {memory: [] for memory in KINDS}
    for _ in range(repeats):
        for memory, network in networks.items():
            network.zero_grad(set_to_none=True)
            start = time.perf_counter()
            network(x).sum().backward()
            seconds[memory].append(time.perf_counter() - start)
    return [
        Row(
            blocks=settings.blocks,
            edge=edge,
            memory=memory,
            forward_mib=memories[memory].forward_bytes / MIB,
            peak_mib=memories[memory].peak_bytes / MIB,
            steps_per_second=1 / statistics.median(seconds[memory]),
        )
        for memory in KINDS
    ]


def on_meta(settings: RevUNetSettings, memory: Memory, extents: Extents) -> StepMemory:
    """Memory of one step, counted without carrying it out."""
    return _counted(settings, memory, extents, "meta")


@cache
def _counted(
    settings: RevUNetSettings, memory: Memory, extents: Extents, device: str
) -> StepMemory:
    return step_memory(_built(settings, memory, device), image(settings, extents, device))


@lru_cache(maxsize=4)
def _built(settings: RevUNetSettings, memory: Memory, device: str) -> RevUNet:
    """Once for all the extents that are tried with it."""
    return build(settings, memory, device)


def training_bytes(
    settings: RevUNetSettings, memory: Memory, extents: Extents, device: str = "meta"
) -> int:
    """Weights, image, activations and all gradients at the peak of one step.

    Args:
        settings: The network.
        memory: Its kind.
        extents: Of the image.
        device: Where the step is counted. Steps of tiny networks are carried out on the processor
            in less time than the meta device takes to count them; the bytes are the same, which
            :func:`measure` checks.
    """
    weights = sum(weight.nbytes for weight in _built(settings, memory, device).parameters())
    peak = _counted(settings, memory, extents, device).peak_bytes
    return weights + image(settings, extents, "meta").nbytes + peak


def largest(fits: Callable[[int], bool], first: int, last: int) -> int:
    """The largest number for which ``fits`` holds, if it holds for all below; ``first`` must."""
    if not fits(first):
        raise RuntimeError("not even the smallest fits into the budget")
    low, step = first, 1
    while low + step <= last and fits(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, last + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def near_cube(number: int, step: int) -> Extents:
    """Cubes and what lies between them, by size: axis after axis grows by one step."""
    whole, longer = divmod(number, 3)
    i, j, k = ((whole + (axis < longer)) * step for axis in range(3))
    return i, j, k


def with_levels(settings: RevUNetSettings, levels: int) -> RevUNetSettings:
    """As many levels, each twice as wide as the finer one."""
    widths = tuple(settings.widths[0] * 2**level for level in range(levels))
    return settings.model_copy(update={"widths": widths})


def with_width(settings: RevUNetSettings, finest: int) -> RevUNetSettings:
    """All widths in proportion to that of the finest level."""
    widths = tuple(finest * width // settings.widths[0] for width in settings.widths)
    return settings.model_copy(update={"widths": widths})


def claims(
    settings: RevUNetSettings,
    edge: int,
    *,
    most_blocks: int = MOST_BLOCKS,
    most_levels: int = MOST_LEVELS,
    device: str = "meta",
) -> tuple[int, list[Claim]]:
    """What fits into the budget that the stored network needs for a cube of ``edge``.

    Args:
        settings: The network that is changed in one respect at a time.
        edge: Voxels; a multiple of 2 to the power of ``most_levels - 1``.
        most_blocks: The search goes no further.
        most_levels: As above.
        device: As :func:`training_bytes` takes it.

    Returns:
        The budget in bytes, and the answers for volume, levels, blocks and width.
    """
    cube = (edge,) * 3
    budget = training_bytes(settings, "stored", cube, device)
    step = 2 ** (len(settings.widths) - 1)
    quantum = 2 * settings.norm_groups

    def fits(memory: Memory, changed: RevUNetSettings, extents: Extents = cube) -> bool:
        return training_bytes(changed, memory, extents, device) <= budget

    volumes: dict[Memory, Extents] = {}
    levels: dict[Memory, int] = {}
    blocks: dict[Memory, int] = {}
    widths: dict[Memory, int] = {}
    for memory in KINDS:
        number = largest(
            lambda n, m=memory: fits(m, settings, near_cube(n, step)),  # type: ignore[misc]
            3 * edge // step,  # fits: no kind needs more than the stored one
            3 * 512,
        )
        volumes[memory] = near_cube(number, step)
        levels[memory] = largest(
            lambda n, m=memory: fits(m, with_levels(settings, n)),  # type: ignore[misc]
            1,
            most_levels,
        )
        blocks[memory] = largest(
            lambda n, m=memory: fits(m, settings.model_copy(update={"blocks": n})),  # type: ignore[misc]
            1,
            most_blocks,
        )
        widths[memory] = quantum * largest(
            lambda n, m=memory: fits(m, with_width(settings, quantum * n)),  # type: ignore[misc]
            1,
            512,
        )
    voxels = {memory: i * j * k for memory, (i, j, k) in volumes.items()}

    def claim(
        question: str, found: dict[Memory, int], target: float, words: dict[Memory, str], most: int
    ) -> Claim:
        return Claim(
            question=question,
            blocks=settings.blocks,
            fits=words,
            ratio=found["reversible"] / found["stored"],
            target=target,
            at_least=found["reversible"] == most,
        )

    def plain(found: dict[Memory, int]) -> dict[Memory, str]:
        return {memory: str(value) for memory, value in found.items()}

    volume_words = {memory: "x".join(map(str, extents)) for memory, extents in volumes.items()}
    return budget, [
        claim("voxels", voxels, 3.0, volume_words, 0),
        claim("levels", levels, 1.25, plain(levels), most_levels),
        claim("blocks per sequence", blocks, 1.25, plain(blocks), most_blocks),
        claim("channels, finest level", widths, 2.0, plain(widths), 0),
    ]


def draw(settings: RevUNetSettings, path: Path) -> None:
    """Peak memory against blocks, voxels and width, counted on the meta device."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and only for the picture

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - as above

    cube = (64, 64, 64)
    two = settings.model_copy(update={"blocks": 2})
    blocks = (1, 2, 4, 8)
    edges = (32, 64, 80, 96, 112, 128)
    finest = (8, 16, 32, 48, 64)
    panels: list[tuple[str, str, list[float], list[tuple[RevUNetSettings, Extents]]]] = [
        (
            "Depth",
            "reversible blocks per sequence",
            [float(n) for n in blocks],
            [(settings.model_copy(update={"blocks": n}), cube) for n in blocks],
        ),
        (
            "Volume",
            "million voxels",
            [edge**3 / 1e6 for edge in edges],
            [(two, (edge,) * 3) for edge in edges],
        ),
        (
            "Width",
            "channels of the finest level",
            [float(width) for width in finest],
            [(with_width(two, width), cube) for width in finest],
        ),
    ]
    notes = (
        "4 levels of 16 to 128 channels, 64³ voxels",
        "16 to 128 channels, 2 blocks",
        "4 levels, 2 blocks, 64³ voxels",
    )
    looks: dict[Memory, dict[str, Any]] = {
        "stored": {"color": "#b2182b", "marker": "s", "linestyle": "-"},
        "checkpointed": {"color": "#7f7f7f", "marker": "^", "linestyle": "--"},
        "reversible": {"color": "#2166ac", "marker": "o", "linestyle": "-"},
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), dpi=150, layout="constrained")
    for axis, (title, label, values, points), note in zip(axes, panels, notes, strict=True):
        for memory, look in looks.items():
            peaks = [training_bytes(*point[:1], memory, point[1]) / GIB for point in points]
            axis.plot(values, peaks, label=memory, markersize=4, **look)
        axis.set_title(f"{title}\n", fontsize=12)
        axis.text(0.5, 1.03, note, transform=axis.transAxes, ha="center", fontsize=9)
        axis.set_xlabel(label)
        axis.set_xticks(values if title != "Volume" else [0, 0.5, 1, 1.5, 2])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("peak memory of a training step [GiB]")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def print_rows(rows: Sequence[Row]) -> None:
    """Memory and speed, with ratios to the stored network."""
    stored = {(row.blocks, row.edge): row for row in rows if row.memory == "stored"}
    print_table(
        ["blocks", "edge", "memory", "kept MiB", "peak MiB", "stored/peak", "steps/s", "speed"],
        [
            [
                str(row.blocks),
                str(row.edge),
                row.memory,
                f"{row.forward_mib:.1f}",
                f"{row.peak_mib:.1f}",
                f"{stored[row.blocks, row.edge].peak_mib / row.peak_mib:.2f}",
                f"{row.steps_per_second:.2f}",
                f"{row.steps_per_second / stored[row.blocks, row.edge].steps_per_second:.2f}",
            ]
            for row in rows
        ],
    )


def print_dense(settings: RevUNetSettings, blocks: Sequence[int], edge: int) -> None:
    """The baseline that is another network: dense convolutions of equal widths."""
    table = []
    for count in blocks:
        changed = settings.model_copy(update={"blocks": count})
        with torch.device("meta"):
            dense = dense_twin(changed)
        memory = step_memory(dense, image(changed, (edge,) * 3, "meta"))
        ours = on_meta(changed, "reversible", (edge,) * 3)
        table.append(
            [
                str(count),
                f"{sum(weight.numel() for weight in dense.parameters()):,}",
                f"{memory.peak_bytes / MIB:.1f}",
                f"{ours.peak_bytes / MIB:.1f}",
                f"{memory.peak_bytes / ours.peak_bytes:.2f}",
            ]
        )
    print_table(["blocks", "dense weights", "dense peak MiB", "reversible MiB", "ratio"], table)


def print_claims(found: Sequence[Claim]) -> None:
    """What fits, and whether the ratio is what the paper says."""
    print_table(
        ["blocks", "largest", *KINDS, "reversible/stored", "paper", "reached"],
        [
            [
                str(claim.blocks),
                claim.question,
                *(claim.fits[memory] for memory in KINDS),
                f"{'at least ' if claim.at_least else ''}{claim.ratio:.2f}",
                f"{claim.target:.2f}",
                "yes" if claim.ratio >= claim.target else "no",
            ]
            for claim in found
        ],
    )


def main() -> None:
    """Parse the arguments, compare, measure, search, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--edges", type=int, nargs="+", default=[24, 32], help="voxels, times 8")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--budget-blocks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--budget-edge", type=int, default=128, help="a multiple of 128")
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    base = RevUNetSettings.model_validate(
        {"activation": arguments.activation, "expansion": arguments.expansion}
    )
    print(
        f"widths {base.widths}, expansion {base.expansion}, {base.activation}, float32, "
        f"batch 1, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )

    rows: list[Row] = []
    for blocks in arguments.blocks:
        settings = base.model_copy(update={"blocks": blocks})
        worst = check_agreement(settings)
        print(f"{blocks} blocks: outputs bit-equal, gradients within {worst:.1e} in float64")
        for edge in arguments.edges:
            rows.extend(measure(settings, edge, arguments.repeats))
    if rows:
        print_rows(rows)
        print("edge in voxels; memory without weights and image; ratios to stored")
        print(f"meta device and processor: the same bytes in all {len(rows)} rows")
        print_dense(base, arguments.blocks, arguments.edges[-1])
        print("dense: another network, two 3x3x3 convolutions in place of each block, stored")

    found: list[Claim] = []
    for blocks in arguments.budget_blocks:
        settings = base.model_copy(update={"blocks": blocks})
        budget, answers = claims(settings, arguments.budget_edge)
        print(
            f"budget, {blocks} blocks: {budget / GIB:.2f} GiB, what stored needs for an edge of "
            f"{arguments.budget_edge}; weights, image and gradients counted in"
        )
        needs = {memory: training_bytes(settings, memory, BRATS) / GIB for memory in KINDS}
        words = ", ".join(f"{memory} {gib:.2f} GiB" for memory, gib in needs.items())
        print(f"a padded BraTS volume, {' x '.join(map(str, BRATS))}, needs: {words}")
        found.extend(answers)
    if found:
        print_claims(found)
    if not arguments.no_picture:
        draw(base, arguments.picture)
        print(f"picture: {arguments.picture}")
    if arguments.json:
        figures = {"rows": [asdict(r) for r in rows], "claims": [asdict(c) for c in found]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
