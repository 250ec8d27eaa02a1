"""What a batch is called by, apart from what makes it: a step on noise needs no more.

Loading MONAI, which makes batches, takes seconds.
"""

from __future__ import annotations

from typing import Any

__all__ = ["IMAGE", "LABEL", "Batch"]

Batch = dict[str, Any]
"""Image and label tensors by :data:`IMAGE` and :data:`LABEL`."""

IMAGE = "image"
LABEL = "label"
