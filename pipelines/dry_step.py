"""One real training step in a process of its own, to see how much memory it takes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from medseg.errors import ResourceError
from medseg.events import Cancelled, Listener

__all__ = ["DryStep", "dry_step"]

_ASK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class DryStep:
    """What a training step took.

    Args:
        peak_bytes: On a CPU the largest resident memory during two steps less that before the
            network was built; on a GPU the most that torch held at once.
        seconds: Of the second step.
    """

    peak_bytes: int
    seconds: float


def dry_step(content: dict[str, Any], device: str, listener: Listener) -> DryStep | None:
    """Make two training steps on noise, with the run's own network, loss and optimiser.

    The second one holds what the optimiser keeps beside the weights. Cached cases, and batches made
    ready ahead, are no part of the figure.

    Args:
        content: Settings of the run as plain values.
        device: Where, as torch calls it.
        listener: Asked whether to stop.

    Returns:
        The figures; None if memory ran out or the process was killed for it.

    Raises:
        Cancelled: If the listener asked to stop.
        ResourceError: ``dry-step`` if the process could not be started.
    """
    # a fresh process: what this one has loaded and freed would hide the peak
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            future = pool.submit(_step, content, device)
            while not future.done():
                if listener.cancelled():
                    for process in list(getattr(pool, "_processes", {}).values()):
                        process.terminate()
                    raise Cancelled
                _wait(future)
            return future.result()
        except BrokenProcessPool:
            return None
        except OSError as error:
            raise ResourceError(
                "dry step",
                expected="another process",
                found=type(error).__name__,
                remedy="free memory or processes of this machine",
                code="dry-step",
            ) from error


def _wait(future: Any) -> None:  # noqa: ANN401 - a future of any result
    from concurrent.futures import wait  # noqa: PLC0415

    wait([future], timeout=_ASK_EVERY_S)


def _step(content: dict[str, Any], device_name: str) -> DryStep | None:
    """In the child."""
    import time  # noqa: PLC0415

    import psutil  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from medseg.inference.memory import PeakMeter, measured_vram  # noqa: PLC0415
    from medseg.models.table import build_volume_network  # noqa: PLC0415
    from medseg.training.batch import IMAGE, LABEL  # noqa: PLC0415
    from medseg.training.losses import IGNORED_CLASS, LossOptions, build_loss  # noqa: PLC0415
    from medseg.training.precision import Numerics  # noqa: PLC0415
    from medseg.training.settings import parse_settings  # noqa: PLC0415
    from medseg.training.step import Stepper, build_optimizer  # noqa: PLC0415
    from pipelines.training_checks import complete_settings  # noqa: PLC0415

    settings = complete_settings(parse_settings(content, where="plan"))
    training = settings.training
    device = torch.device(device_name)
    # what a device needs for itself, and what networks and optimisers load when they are first
    # used, is there before
    torch.zeros(1, device=device)
    import torch._dynamo  # noqa: PLC0415

    with torch.device("meta"):
        build_volume_network(settings.network, settings.inputs)
    before = psutil.Process().memory_info().rss
    batch = training.batch_size * training.samples_per_case
    try:
        with PeakMeter() as meter, measured_vram(device) as vram:
            network = build_volume_network(settings.network, settings.inputs).to(device)
            loss = build_loss(
                network.head_strides,
                network.deep_supervision_weights,
                LossOptions(
                    dice_weight=training.dice_weight,
                    cross_entropy_weight=training.cross_entropy_weight,
                    batch_dice=training.batch_dice,
                    background=training.dice_background,
                    smooth=training.dice_smooth,
                    regions=settings.region_classes,
                    ignoring=settings.ignore_value is not None,
                ),
            )
            stepper = Stepper(
                network=network,
                loss=loss,
                optimizer=build_optimizer(network, training),
                settings=training,
                # the layout and precision that need most: others are measured when training begins
                numerics=Numerics("fp32", channels_last=True),
                device=device,
            )
            stepper.numerics.arrange_network(network)
            seconds = 0.0
            for seed in range(2):
                noise = torch.Generator().manual_seed(seed)
                shape = (batch, len(settings.inputs.channels), *settings.patch_ijk)
                labels = torch.randint(
                    0,
                    len(settings.scheme().values) + 1,
                    (batch, 1, *settings.patch_ijk),
                    generator=noise,
                    dtype=torch.uint8,
                )
                if settings.ignore_value is not None:
                    labels[:, :, :1] = IGNORED_CLASS
                began = time.perf_counter()
                stepper.make(
                    [{IMAGE: torch.randn(shape, generator=noise), LABEL: labels}],
                    training.learning_rate,
                )
                seconds = time.perf_counter() - began
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:  # how torch says on a CPU that memory ran out
        if "memory" not in str(error):
            raise
        return None
    peak = vram[0] if vram else max(0, meter.peak_bytes - before)
    return DryStep(peak, seconds)
