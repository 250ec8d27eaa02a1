"""A drop-in for MONAI's sliding-window inferer that never holds classes times volume.

Apart from the rest of the package, so that MONAI is imported only by those who use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils.type_conversion import convert_to_dst_type
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from medseg.core import Grid, Volume
from medseg.data.preparation import ModelImage
from medseg.errors import ConfigError, ShapeError
from medseg.events import Listener, Silent
from medseg.inference.engine import Outputs, StreamingEngine, Sweep, smallest_axis
from medseg.inference.sweep import Group
from medseg.models.card import Channel, InputSettings, Unchanged
from medseg.ops.winners import Decision

__all__ = ["BoundedSlidingWindowInferer"]

_NUMPYS = {
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float32,
    torch.float64,
}
"""Types that the engine reads as they are."""

_EXPECTED = {
    "mode": "gaussian or constant",
    "overlap": "a share from 0 to below 1, or three of them",
    "sw_batch_size": "at least 1 window",
    "padding_mode": "constant, since images smaller than the window are padded with zeros",
    "cval": "0, since images smaller than the window are padded with zeros",
    "mirror_axes": "different axes of 0, 1 and 2",
}


class BoundedSlidingWindowInferer(Inferer):  # type: ignore[misc]  # MONAI has no types
    """Labels instead of logits: ``(b, c, i, j, k)`` image to ``(b, 1, i, j, k)`` label indices.

    It stands where :class:`monai.inferers.SlidingWindowInferer` and the argmax after it stand: in
    ``SupervisedEvaluator(inferer=...)``, or called by hand. The logits of the whole volume never
    exist; where memory runs out it steps down as the command line does.

    Differences from MONAI's: what comes back are labels (uint8; int32 beyond 256 classes); windows
    are spread evenly instead of at a fixed interval; images smaller than the window are padded with
    zeros. Of MONAI's arguments, those that tell how its sums of logits are held or cached have no
    counterpart here, nor have other paddings.

    Args:
        roi_size: Extents of one window; one number for all axes. An extent of None, 0 or less is
            the image's.
        sw_batch_size: Windows per forward call.
        overlap: Least share of the window that neighbours have in common; one, or one per axis.
        mode: ``gaussian`` or ``constant`` weights.
        padding_mode: ``constant`` alone.
        cval: 0 alone.
        sw_device: Where the windows are computed; None for where the input is.
        device: Where the labels go; None for where the input is.
        progress: Whether to show a bar on stderr.
        mirror_axes: Axes, 0 to 2, to mirror along, in all combinations.
        half: Whether logits are summed in float16; float32 if they turn out too large for that.
        regions: Whether channels are overlapping regions: each voxel gets 1 plus the number of the
            last region whose logit is above 0, or 0.
        channels_last: Whether windows are handed over in the channels-last layout.

    Raises:
        ConfigError: If an argument is none of these.
    """

    def __init__(
        self,
        roi_size: Sequence[int | None] | int,
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: Literal["gaussian", "constant"] = "constant",
        *,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        mirror_axes: Sequence[int] = (),
        half: bool = False,
        regions: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        extents = (roi_size,) * 3 if roi_size is None or isinstance(roi_size, int) else roi_size
        if len(extents) != 3 or not all(
            extent is None or isinstance(extent, int) for extent in extents
        ):
            raise ConfigError(
                "roi_size",
                expected="a whole number, or three: the window's extents along i, j, k",
                found=str(roi_size),
                remedy="None or -1 stands for the image's extent",
                code="window-extents",
            )
        overlaps = (overlap,) * 3 if isinstance(overlap, float | int) else tuple(overlap)
        known = {
            "mode": mode in ("gaussian", "constant"),
            "overlap": len(overlaps) == 3 and all(0 <= share < 1 for share in overlaps),
            "sw_batch_size": sw_batch_size >= 1,
            "padding_mode": str(padding_mode).lower() in ("constant", "pytorchpadmode.constant"),
            "cval": cval == 0,
            "mirror_axes": len({*mirror_axes} & {0, 1, 2}) == len(mirror_axes),
        }
        given = {
            "mode": mode,
            "overlap": overlap,
            "sw_batch_size": sw_batch_size,
            "padding_mode": padding_mode,
            "cval": cval,
            "mirror_axes": mirror_axes,
        }
        if wrong := [name for name, fits in known.items() if not fits]:
            raise ConfigError(
                f"BoundedSlidingWindowInferer, {wrong[0]}",
                expected=_EXPECTED[wrong[0]],
                found=repr(given[wrong[0]]),
                remedy="correct it, or leave it out",
                code="config-value",
            )
        self.roi_size = tuple(extents)
        self.sw_batch_size = sw_batch_size
        self.overlap = overlaps
        self.mode = mode
        self.mirror_axes = tuple(mirror_axes)
        self.sw_device = None if sw_device is None else torch.device(sw_device)
        self.device = None if device is None else torch.device(device)
        self.progress = progress
        self.half = half
        self.regions = regions
        self.channels_last = channels_last

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object
    ) -> Tensor:
        """Segment a batch of images.

        Args:
            inputs: ``(b, c, i, j, k)`` of any real type. The network gets windows of that type if
                it is a floating one, else float32.
            network: ``(b, c, *roi_size)`` to ``(b, n, *roi_size)`` logits; called with ``args`` and
                ``kwargs`` too.
            *args: Handed to the network.
            **kwargs: Handed to the network.

        Returns:
            ``(b, 1, i, j, k)`` label indices; a ``MetaTensor`` with the same metadata where
            ``inputs`` is one.

        Raises:
            ShapeError: If ``inputs`` has not five axes or is complex, or the network gives anything
                but one tensor.
            FormatError: ``network-not-finite``.
            ResourceError: ``out-of-memory``.
        """
        if inputs.ndim != 5 or inputs.is_complex():
            raise ShapeError(
                "inputs",
                expected="real numbers on five axes: batch, channel, i, j, k",
                found=f"{inputs.ndim} axes of {inputs.dtype}",
                remedy="add the batch and channel axes",
                code="network-rank",
            )
        called = _Called(network, args, kwargs, inputs.dtype)
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        found = [self._shown(image_cijk, called) for image_cijk in images]
        labels = (
            torch.stack(found)
            if found
            else torch.zeros((0, 1, *inputs.shape[2:]), dtype=torch.uint8)
        )
        labels = labels.to(self.device or inputs.device)
        if isinstance(inputs, MetaTensor):
            with_meta: Tensor = convert_to_dst_type(
                labels, inputs, dtype=labels.dtype, device=labels.device
            )[0]
            return with_meta
        return labels

    def _shown(self, image_cijk: Tensor, network: nn.Module) -> Tensor:
        if not self.progress:
            return self._labels(image_cijk, network, Silent())
        with _Bar() as bar:
            return self._labels(image_cijk, network, bar)

    def _labels(self, image_cijk: Tensor, network: nn.Module, listener: Listener) -> Tensor:
        device = self.sw_device or image_cijk.device
        if image_cijk.dtype == torch.bool:
            image_cijk = image_cijk.to(torch.uint8)
        elif image_cijk.dtype not in _NUMPYS:
            image_cijk = image_cijk.to(torch.float32)
        data_cijk = image_cijk.detach().cpu().numpy()
        names = tuple(f"channel {number}" for number in range(len(data_cijk)))
        channels = tuple(Channel(name=name, normalisation=Unchanged()) for name in names)
        i, j, k = (
            extent if wanted is None or wanted < 1 else wanted
            for wanted, extent in zip(self.roi_size, data_cijk.shape[1:], strict=True)
        )
        settings = InputSettings(channels=channels, spacing_mm=None, window_ijk=(i, j, k))
        grid = Grid(data_cijk.shape[1:], np.eye(4))
        group = Group(
            networks=(network,),
            image=ModelImage(Volume(data_cijk, grid, names), settings),
            window_ijk=(i, j, k),
            overlap=self.overlap,
            blending=self.mode,
            mirror_axes=self.mirror_axes,
            device=device,
            channels_last=self.channels_last,
            overlapping=self.regions,
        )
        classes = _classes(group)
        values = tuple(range(1, classes + 1)) if self.regions else tuple(range(classes))
        kind = np.uint8 if max(values) <= 255 else np.uint16
        labels_ijk = np.zeros(grid.shape_ijk, dtype=kind)
        sweep = Sweep(smallest_axis([group]), self.sw_batch_size, self.half, device)
        engine = StreamingEngine([group], Decision(values, overlapping=self.regions), sweep)
        for _ in engine.run(Outputs(labels_ijk), listener):
            pass
        if kind is np.uint16:  # torch can do little with unsigned 16 bits
            labels_ijk = labels_ijk.astype(np.int32)
        return torch.from_numpy(labels_ijk)[None]


def _classes(group: Group) -> int:
    """Channels of the answer, by one window of zeros."""
    with torch.inference_mode():
        x_bcijk = torch.zeros((1, group.image.channels, *group.window_ijk), device=group.device)
        return int(group.networks[0](group.arranged(x_bcijk)).shape[1])


class _Bar(Silent):
    """Windows on stderr."""

    def __init__(self) -> None:
        self._bars = Progress(console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, stage: str, total: int) -> None:
        """A bar of so many windows; memory that ran out may change their number."""
        if self._task is None:
            self._task = self._bars.add_task(stage)
        self._bars.update(self._task, total=total)

    def advanced(self, stage: str, done: int) -> None:  # noqa: ARG002 - there is one stage
        """Windows done in all."""
        if self._task is not None:
            self._bars.update(self._task, completed=done)


class _Called(nn.Module):
    """A network with further arguments, which gets windows in the type of the image."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._call = network
        self._args = args
        self._kwargs = kwargs
        self._dtype = dtype if dtype.is_floating_point else torch.float32

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """Logits."""
        answer = self._call(x_bcijk.to(self._dtype), *self._args, **self._kwargs)
        if not isinstance(answer, Tensor):
            raise ShapeError(
                "network",
                expected="one tensor of logits",
                found=f"a {type(answer).__name__}",
                remedy="wrap the network so that it gives the output that counts",
                code="network-output",
            )
        return answer
