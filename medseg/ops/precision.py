"""The number types that networks compute in, and what a device makes of them.

Training and inference choose between them by measuring; both stand on these few facts.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

__all__ = ["LOWER_PRECISIONS", "Precision", "autocast_to", "has_bf16"]

Precision = Literal["fp32", "bf16", "fp16"]

LOWER_PRECISIONS: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in; float32, which needs none, is not here."""


def autocast_to(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context to run a network in; weights stay as they are.

    Args:
        precision: Of the operations that autocast lowers; fp32 switches autocast off.
        device: Where the network is.
    """
    dtype = LOWER_PRECISIONS.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    False for devices other than CPU and CUDA, of which torch does not tell.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16"))
