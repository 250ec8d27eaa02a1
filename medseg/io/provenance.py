"""What made a segmentation, as SEG and RTSTRUCT tell it.

Derived objects belong to the study of their source: patient and study are those of the source, and
what it lacks stays empty. Series and instance have identifiers that are made from source, labels
and algorithm: the same result has the same ones whenever it is made, and its dates and times alone
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medseg.errors import ConfigError
from medseg.io.scan import DicomSource

__all__ = ["Algorithm", "AlgorithmType", "check_provenance", "series_number"]

AlgorithmType = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
"""Segment Algorithm Type (0062,0008): made by a program, with a person's help, or by hand."""

_SERIES_NUMBER_STEP = 1000


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What made a segmentation, as its segments will name it.

    Args:
        name: Name of the model, at most 64 characters.
        version: Its version, at most 64 characters.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        for field, text in (("name", self.name), ("version", self.version)):
            if not 1 <= len(text) <= 64 or "\\" in text:
                raise ConfigError(
                    f"algorithm {field}",
                    expected="1 to 64 characters without a backslash",
                    found=f"{len(text)} characters",
                    remedy="shorten it or add it; DICOM allows no more",
                    code="algorithm",
                )


def check_provenance(algorithm: Algorithm | None, algorithm_type: AlgorithmType) -> None:
    """Check that what made a segmentation and how much it did agree.

    Args:
        algorithm: What segmented; None for labels made by hand, or edited after a beginning that is
            not recorded.
        algorithm_type: How much of it a program did.

    Raises:
        ConfigError: ``algorithm-type``.
    """
    needed = {"AUTOMATIC": "a named algorithm", "MANUAL": "no algorithm"}.get(algorithm_type)
    if needed is None or (algorithm is None) == (algorithm_type == "MANUAL"):
        return
    raise ConfigError(
        "segmentation provenance",
        expected=f"{needed} for segments of type {algorithm_type}",
        found="none" if algorithm is None else "an algorithm",
        remedy="say MANUAL for labels made by hand and SEMIAUTOMATIC for corrected ones",
        code="algorithm-type",
    )


def series_number(source: DicomSource) -> int:
    """The number of the source series plus 1000, so that it sorts behind the images."""
    try:
        number = int(source.datasets[0].SeriesNumber)
    except Exception:  # absent or not a number
        number = 0
    return max(number, 0) + _SERIES_NUMBER_STEP
