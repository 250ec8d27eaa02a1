"""How much in doubt a whole case is, as one figure by which cases can be put in order.

Where ``medseg predict --uncertainty`` was asked for, the report of a case has the mean entropy over
the voxels of every structure. The doubt of the case is the largest of them: a small structure that
is hardly found counts as much as a large organ that is. A case in which nothing was found has the
entropy of its most doubtful slice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

__all__ = ["DOUBT_DETAIL", "Doubt", "doubt_of_report", "read_doubt"]

DOUBT_DETAIL = "doubt"
"""Where the details of a case in the ledger keep it."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """The most doubtful structure of a case.

    Args:
        entropy: Its mean entropy, 0 (sure) to 1 (every class equally likely).
        structure: Its name; ``background`` where nothing was found.
    """

    entropy: float
    structure: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"mean_entropy": self.entropy, "structure": self.structure}

    @classmethod
    def of_details(cls, details: Mapping[str, Any]) -> Doubt | None:
        """As :meth:`to_dict` gave it, under :data:`DOUBT_DETAIL`; None if it is not there."""
        found = details.get(DOUBT_DETAIL)
        if not isinstance(found, Mapping):
            return None
        entropy = found.get("mean_entropy")
        if not _is_share(entropy):
            return None
        return cls(float(entropy), str(found.get("structure")))


def doubt_of_report(report: Mapping[str, Any]) -> Doubt | None:
    """The doubt of a case by the content of its ``CASE_report.json``.

    Returns:
        None where no uncertainty was asked for.
    """
    content = report.get("uncertainty")
    if not isinstance(content, Mapping):
        return None
    means = content.get("mean_entropy")
    found = [
        Doubt(float(entropy), str(name))
        for name, entropy in (means.items() if isinstance(means, Mapping) else ())
        if _is_share(entropy)
    ]
    slices = content.get("doubtful_slices")
    if not found and isinstance(slices, list):
        found = [
            Doubt(float(one["mean_entropy"]), str(one.get("label")))
            for one in slices
            if isinstance(one, Mapping) and _is_share(one.get("mean_entropy"))
        ]
    return max(found, key=lambda doubt: doubt.entropy, default=None)


def read_doubt(report: Path) -> Doubt | None:
    """The doubt of a case by its report; None if that has none or cannot be read."""
    try:
        content = json.loads(report.read_bytes())
    except (OSError, ValueError):
        return None
    return doubt_of_report(content) if isinstance(content, dict) else None


def _is_share(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
