"""Names of structures as BIDS allows them in the names of files.

Source: Brain Imaging Data Structure 1.10, "Filenames": the value of an entity, such as
``label-LeftKidney``, has letters and digits only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["bids_names"]


def bids_names(names: Sequence[str]) -> list[str]:
    """Names of letters and digits, each once also where case does not count."""
    taken: set[str] = set()
    result = []
    for number, name in enumerate(names):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        words = "".join(one if one.isalnum() else " " for one in plain).split()
        label = "".join(word[0].upper() + word[1:] for word in words) or f"Class{number}"
        while label.casefold() in taken:
            label = f"{label}x{number}"
        taken.add(label.casefold())
        result.append(label)
    return result
