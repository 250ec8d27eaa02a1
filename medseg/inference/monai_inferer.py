"""A drop-in for MONAI's sliding-window inferer that never holds classes times volume.

Apart from the rest of the package, so that MONAI is imported only by those who use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medseg.core import Grid, Volume
from medseg.data.preparation import ModelImage
from medseg.errors import ConfigError, ShapeError
from medseg.events import Silent
from medseg.inference.engine import Outputs, StreamingEngine, Sweep, smallest_axis
from medseg.inference.sweep import Group
from medseg.models.card import Channel, InputSettings, Unchanged
from medseg.ops.winners import Decision

__all__ = ["BoundedSlidingWindowInferer"]


class BoundedSlidingWindowInferer(Inferer):  # type: ignore[misc]  # MONAI has no types
    """Labels instead of logits: ``(b, c, i, j, k)`` image to ``(b, 1, i, j, k)`` label indices.

    It stands where :class:`monai.inferers.SlidingWindowInferer` and the argmax after it stand: in
    ``SupervisedEvaluator(inferer=...)``, or called by hand. The logits of the whole volume never
    exist; where memory runs out it steps down as the command line does.

    Differences from MONAI's: what comes back are labels (uint8; int32 beyond 256 classes), on the
    CPU; windows are spread evenly instead of at a fixed interval; images smaller than the window
    are padded with zeros. Networks with several outputs must give the one that counts.

    Args:
        roi_size: Extents of one window.
        sw_batch_size: Windows per forward call.
        overlap: Least share of the window that neighbours have in common.
        mode: ``gaussian`` or ``constant`` weights.
        mirror_axes: Axes, 0 to 2, to mirror along, in all combinations.
        sw_device: Where the windows are computed; None for where the input is.
        half: Whether logits are summed in float16.
        regions: Whether channels are overlapping regions: each voxel gets 1 plus the number of the
            last region whose logit is above 0, or 0.
        channels_last: Whether windows are handed over in the channels-last layout.

    Raises:
        ConfigError: If the window has not three extents, or ``mode`` or ``overlap`` is unknown.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float = 0.25,
        mode: Literal["gaussian", "constant"] = "constant",
        *,
        mirror_axes: Sequence[int] = (),
        sw_device: torch.device | str | None = None,
        half: bool = False,
        regions: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if len(roi_size) != 3 or min(roi_size) < 1:
            raise ConfigError(
                "roi_size",
                expected="three extents of at least 1",
                found=str(tuple(roi_size)),
                remedy="give the window's extents along i, j, k",
                code="window-extents",
            )
        if mode not in ("gaussian", "constant") or not 0 <= overlap < 1 or sw_batch_size < 1:
            raise ConfigError(
                "BoundedSlidingWindowInferer",
                expected="mode gaussian or constant, overlap from 0 to below 1, a batch above 0",
                found=f"mode {mode!r}, overlap {overlap}, sw_batch_size {sw_batch_size}",
                remedy="correct what is out of range",
                code="config-value",
            )
        i, j, k = (int(extent) for extent in roi_size)
        self.roi_size = (i, j, k)
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = mode
        self.mirror_axes = tuple(mirror_axes)
        self.sw_device = None if sw_device is None else torch.device(sw_device)
        self.half = half
        self.regions = regions
        self.channels_last = channels_last

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object
    ) -> Tensor:
        """Segment a batch of images.

        Args:
            inputs: ``(b, c, i, j, k)`` of any real type.
            network: ``(b, c, *roi_size)`` to ``(b, n, *roi_size)`` logits; called with ``args`` and
                ``kwargs`` too.
            *args: Handed to the network.
            **kwargs: Handed to the network.

        Returns:
            ``(b, 1, i, j, k)`` label indices on the CPU.

        Raises:
            ShapeError: If ``inputs`` has not five axes.
            FormatError: ``network-not-finite``.
            ResourceError: ``out-of-memory``.
        """
        if inputs.ndim != 5:
            raise ShapeError(
                "inputs",
                expected="five axes: batch, channel, i, j, k",
                found=f"{inputs.ndim} axes",
                remedy="add the batch and channel axes",
                code="network-rank",
            )
        called = _Called(network, args, kwargs)
        return torch.stack([self._labels(image_cijk, called) for image_cijk in inputs])

    def _labels(self, image_cijk: Tensor, network: nn.Module) -> Tensor:
        device = self.sw_device or image_cijk.device
        data_cijk = image_cijk.detach().cpu().numpy()
        names = tuple(f"channel {number}" for number in range(len(data_cijk)))
        channels = tuple(Channel(name=name, normalisation=Unchanged()) for name in names)
        settings = InputSettings(channels=channels, spacing_mm=None, window_ijk=self.roi_size)
        grid = Grid(data_cijk.shape[1:], np.eye(4))
        group = Group(
            networks=(network,),
            image=ModelImage(Volume(data_cijk, grid, names), settings),
            window_ijk=self.roi_size,
            overlap=self.overlap,
            blending=self.mode,
            mirror_axes=self.mirror_axes,
            device=device,
            channels_last=self.channels_last,
            overlapping=self.regions,
        )
        classes = self._classes(group)
        values = tuple(range(1, classes + 1)) if self.regions else tuple(range(classes))
        kind = np.uint8 if max(values) <= 255 else np.uint16
        labels_ijk = np.zeros(grid.shape_ijk, dtype=kind)
        sweep = Sweep(smallest_axis([group]), self.sw_batch_size, self.half, device)
        engine = StreamingEngine([group], Decision(values, overlapping=self.regions), sweep)
        for _ in engine.run(Outputs(labels_ijk), Silent()):
            pass
        if kind is np.uint16:  # torch can do little with unsigned 16 bits
            labels_ijk = labels_ijk.astype(np.int32)
        return torch.from_numpy(labels_ijk)[None]

    def _classes(self, group: Group) -> int:
        """Channels of the answer, by one window of zeros."""
        with torch.inference_mode():
            x_bcijk = torch.zeros((1, group.image.channels, *self.roi_size), device=group.device)
            return int(group.networks[0](group.arranged(x_bcijk)).shape[1])


class _Called(nn.Module):
    """A network with further arguments."""

    def __init__(
        self, network: Callable[..., Tensor], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        super().__init__()
        self._call = network
        self._args = args
        self._kwargs = kwargs

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """Logits."""
        return self._call(x_bcijk, *self._args, **self._kwargs)
