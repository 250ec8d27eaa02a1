"""The image encoder of QTSeg: layers 0 to 21 of YOLOv8, which are its backbone and its neck.

The layout is that of YOLOv8 without the detection head; QTSeg (arXiv 2412.17241) takes it over in
the smallest width. The code here is written from the description of the layers. No pretrained
weights come with it; :func:`load_yolo_weights` reads those that a user has.

Layers keep YOLOv8's numbers: ``layers.4`` is layer 4. Numbers without an entry are those layers
that only resize or concatenate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import FormatError
from medseg.models.state_file import of_another_kind, read_state

__all__ = ["SPPF", "C2f", "ConvUnit", "YoloEncoder", "load_yolo_weights"]

_HEAD = 22
_KEY = re.compile(r"(?:(?:model\.)+|(?:conv|c2f|sppf)_)(\d+)\.(.+)")
_SHOWN = 3


class ConvUnit(nn.Module):
    """Convolution without bias, batch normalisation, SiLU.

    The padding is half of the kernel, so that an odd kernel keeps the lattice at stride 1.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel: Extent along both axes.
        stride: Of the convolution.
        eps: Of the batch normalisation.
        momentum: Of its running statistics.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        stride: int = 1,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out, eps=eps, momentum=momentum)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels_in, h, w)`` to ``(b, channels_out, *strided)``."""
        return F.silu(self.bn(self.conv(x_bchw)))


class Bottleneck(nn.Module):
    """Two 3x3 units, with the input added if asked for.

    Args:
        channels: Of input and output.
        residual: Whether the input is added.
        eps: See :class:`ConvUnit`.
        momentum: See :class:`ConvUnit`.
    """

    def __init__(self, channels: int, residual: bool, *, eps: float, momentum: float) -> None:
        super().__init__()
        self.cv1 = ConvUnit(channels, channels, 3, eps=eps, momentum=momentum)
        self.cv2 = ConvUnit(channels, channels, 3, eps=eps, momentum=momentum)
        self.residual = residual

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Same shape out as in."""
        y_bchw: Tensor = self.cv2(self.cv1(x_bchw))
        return x_bchw + y_bchw if self.residual else y_bchw


class C2f(nn.Module):
    """A chain of bottlenecks on half of the channels, every link of which is kept.

    A 1x1 unit gives two halves; the second feeds the chain. Both halves and the output of every
    bottleneck are concatenated and mixed by another 1x1 unit.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output; even.
        depth: Number of bottlenecks.
        residual: Whether a bottleneck adds its input.
        eps: See :class:`ConvUnit`.
        momentum: See :class:`ConvUnit`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        depth: int,
        residual: bool,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        half = channels_out // 2
        self.cv1 = ConvUnit(channels_in, 2 * half, 1, eps=eps, momentum=momentum)
        self.cv2 = ConvUnit((2 + depth) * half, channels_out, 1, eps=eps, momentum=momentum)
        self.m = nn.ModuleList(
            Bottleneck(half, residual, eps=eps, momentum=momentum) for _ in range(depth)
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(b, channels_in, h, w)`` to ``(b, channels_out, h, w)``."""
        parts = list(self.cv1(x_bchw).chunk(2, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        y_bchw: Tensor = self.cv2(torch.cat(parts, dim=1))
        return y_bchw


class SPPF(nn.Module):
    """Max-pooling over growing windows: three 5x5 pools in a row, all kept and mixed.

    Args:
        channels: Of input and output; even.
        eps: See :class:`ConvUnit`.
        momentum: See :class:`ConvUnit`.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.cv1 = ConvUnit(channels, channels // 2, 1, eps=eps, momentum=momentum)
        self.cv2 = ConvUnit(2 * channels, channels, 1, eps=eps, momentum=momentum)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Same shape out as in."""
        parts = [self.cv1(x_bchw)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        y_bchw: Tensor = self.cv2(torch.cat(parts, dim=1))
        return y_bchw


class YoloEncoder(nn.Module):
    """Backbone and neck: an image to maps at strides 8, 16 and 32.

    Args:
        in_channels: Channels of the image.
        base_width: ``n``, the channels of layer 0; the maps have ``4n``, ``8n`` and ``16n``. The
            widths 16 and 32 are YOLOv8's ``n`` and ``s``.
        depths: Bottlenecks of layers 2, 4, 6 and 8.
        neck_depth: Bottlenecks of layers 12, 15, 18 and 21.
        eps: Of every batch normalisation.
        momentum: Of every batch normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        base_width: int,
        depths: tuple[int, int, int, int] = (1, 2, 2, 1),
        neck_depth: int = 1,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        n = base_width

        def down(channels_in: int, channels_out: int) -> ConvUnit:
            return ConvUnit(channels_in, channels_out, 3, 2, eps=eps, momentum=momentum)

        def chain(channels: int, depth: int) -> C2f:
            return C2f(channels, channels, depth, True, eps=eps, momentum=momentum)

        def merge(channels_in: int, channels_out: int) -> C2f:
            return C2f(channels_in, channels_out, neck_depth, False, eps=eps, momentum=momentum)

        self.layers = nn.ModuleDict(
            {
                "0": down(in_channels, n),
                "1": down(n, 2 * n),
                "2": chain(2 * n, depths[0]),
                "3": down(2 * n, 4 * n),
                "4": chain(4 * n, depths[1]),
                "5": down(4 * n, 8 * n),
                "6": chain(8 * n, depths[2]),
                "7": down(8 * n, 16 * n),
                "8": chain(16 * n, depths[3]),
                "9": SPPF(16 * n, eps=eps, momentum=momentum),
                "12": merge(24 * n, 8 * n),
                "15": merge(12 * n, 4 * n),
                "16": down(4 * n, 4 * n),
                "18": merge(12 * n, 8 * n),
                "19": down(8 * n, 8 * n),
                "21": merge(24 * n, 16 * n),
            }
        )

    def forward(self, x_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at strides 8, 16 and 32 of an image whose extents are multiples of 32.

        Returns:
            ``(b, 4n, h/8, w/8)``, ``(b, 8n, h/16, w/16)``, ``(b, 16n, h/32, w/32)``.
        """
        layer = self.layers
        at_8 = layer["4"](layer["3"](layer["2"](layer["1"](layer["0"](x_bchw)))))
        at_16 = layer["6"](layer["5"](at_8))
        at_32 = layer["9"](layer["8"](layer["7"](at_16)))
        mid = layer["12"](torch.cat((_doubled(at_32), at_16), dim=1))
        fine = layer["15"](torch.cat((_doubled(mid), at_8), dim=1))
        mid = layer["18"](torch.cat((layer["16"](fine), mid), dim=1))
        coarse = layer["21"](torch.cat((layer["19"](mid), at_32), dim=1))
        return fine, mid, coarse


def load_yolo_weights(encoder: YoloEncoder, path: Path) -> None:
    """Fill an encoder from a YOLOv8 or fpn-nano state dict; nothing changes if it does not fit.

    Keys are ``model.{i}.<rest>``, as in a state dict of Ultralytics' YOLOv8, or
    ``{conv|c2f|sppf}_{i}.<rest>``, with ``i`` the number of the layer. The detection head, layer
    22, is left out. Batch counters (``num_batches_tracked``) may be absent.

    A state dict does not say which eps its batch normalisation ran with. Ultralytics uses 1e-3.

    Args:
        encoder: Of the width, depths and image channels of the file.
        path: A ``.safetensors`` file, or a ``.pt`` or ``.pth`` file with a state dict alone. Code
            in a pickle is never run.

    Raises:
        FormatError: If the file is missing, damaged or no state dict, if a weight is missing,
            unknown, of another shape or an integer where a fraction is expected.
    """
    tensors = read_state(path)
    sources = _layer_keys(tensors, path)
    wanted = encoder.state_dict()
    missing = [
        key for key in wanted if key not in sources and not key.endswith("num_batches_tracked")
    ]
    unknown = [source for key, source in sources.items() if key not in wanted]
    misfits = [
        f"{source} {tuple(tensors[source].shape)} for {tuple(wanted[key].shape)}"
        for key, source in sources.items()
        if key in wanted and tensors[source].shape != wanted[key].shape
    ]
    known = {source: key for key, source in sources.items() if key in wanted}
    for found, kind in (
        (of_another_kind(tensors, wanted, known), "other types of numbers"),
        (misfits, "other shapes"),
        (missing, "nothing for"),
        (unknown, "unknown keys"),
    ):
        if found:
            stem = wanted["layers.0.conv.weight"]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise FormatError(
                f"weights {path.name}",
                expected=f"YOLOv8 layers 0 to 21 of width {stem.shape[0]} "
                f"for {stem.shape[1]} image channels",
                found=f"{kind} {', '.join(found[:_SHOWN])}{more}",
                remedy="use weights of this width and of as many image channels; the network's "
                "base_width, depths and in_channels say what it expects",
                code="weights-mismatch",
            )
    given = {key: tensors[source] for key, source in sources.items()}
    encoder.load_state_dict({**wanted, **given})


def _doubled(x_bchw: Tensor) -> Tensor:
    return F.interpolate(x_bchw, scale_factor=2.0, mode="nearest")


def _layer_keys(tensors: Mapping[str, Tensor], path: Path) -> dict[str, str]:
    """Keys of the encoder, each with the key that the file has for it."""
    sources: dict[str, str] = {}
    for key in tensors:
        match = _KEY.fullmatch(key)
        if match is None:
            raise FormatError(
                f"weights {path.name}",
                expected="keys such as model.0.conv.weight or conv_0.conv.weight",
                found=key,
                remedy="export the state dict of the YOLOv8 model or of the encoder alone",
                code="weights-mismatch",
            )
        if int(match[1]) != _HEAD:
            sources[f"layers.{match[1]}.{match[2]}"] = key
    return sources
