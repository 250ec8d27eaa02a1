"""What made a segmentation, as SEG and RTSTRUCT tell it.

Derived objects belong to the study of their source: patient and study are those of the source, and
what it lacks stays empty. Series and instance have identifiers that are made from source, labels
and algorithm: the same result has the same ones whenever it is made, and its dates and times alone
differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from medseg.errors import ConfigError, one_of
from medseg.io.scan import DicomSource

__all__ = [
    "ALGORITHM_TYPES",
    "Algorithm",
    "AlgorithmType",
    "check_provenance",
    "made_by",
    "series_number",
    "types_in_words",
    "types_of_segments",
]

AlgorithmType = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
"""Segment Algorithm Type (0062,0008): made by a program, with a person's help, or by hand."""

ALGORITHM_TYPES: tuple[AlgorithmType, ...] = get_args(AlgorithmType)

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


def types_of_segments(
    values: Sequence[int],
    algorithm: Algorithm | None,
    given: AlgorithmType | Mapping[int, AlgorithmType],
    *,
    found: bool = True,
) -> dict[int, AlgorithmType]:
    """Label value to its type, for the segments of an object.

    Where types differ from label to label, an algorithm is that of the labels that are not MANUAL.

    Args:
        values: Labels that become segments.
        algorithm: What made them, as for :func:`check_provenance`.
        given: One type for all, or one for each.
        found: Whether they have voxels. Labels that were sought and not found need no type of their
            own: they are MANUAL without an algorithm and SEMIAUTOMATIC with one.

    Raises:
        ConfigError: ``algorithm-type`` if types and algorithm contradict each other, or a label has
            none.
    """
    if not isinstance(given, str) and not found:
        given = "MANUAL" if algorithm is None else "SEMIAUTOMATIC"
    if isinstance(given, str):
        check_provenance(algorithm, given)
        return dict.fromkeys(values, given)
    types: dict[int, AlgorithmType] = {}
    for value in values:
        kind = given.get(value)
        if kind not in ALGORITHM_TYPES:
            raise ConfigError(
                "segmentation provenance",
                expected=f"for label {value} {one_of(str(kind), ALGORITHM_TYPES)}",
                found="nothing" if kind is None else repr(kind),
                remedy="say for each label that is present how it came about",
                code="algorithm-type",
            )
        check_provenance(None if kind == "MANUAL" else algorithm, kind)
        types[value] = kind
    return types


def made_by(algorithm: Algorithm | None, types: Mapping[int, AlgorithmType]) -> str:
    """Who made an object, for its description.

    >>> made_by(None, {1: "MANUAL", 2: "MANUAL"}), made_by(None, {1: "MANUAL", 2: "SEMIAUTOMATIC"})
    ('Manual', 'Edited')
    """
    kinds = set(types.values())
    if algorithm is not None and kinds != {"MANUAL"}:
        return algorithm.name
    return kinds.pop().capitalize() if len(kinds) == 1 else "Edited"


def types_in_words(types: Mapping[int, AlgorithmType]) -> str:
    """What tells one provenance from another, for identifiers that are made from content.

    >>> types_in_words({1: "MANUAL", 2: "MANUAL"})
    'MANUAL'
    """
    kinds = set(types.values())
    if len(kinds) == 1:
        return kinds.pop()
    return json.dumps({str(value): kind for value, kind in sorted(types.items())})


def series_number(source: DicomSource) -> int:
    """The number of the source series plus 1000, so that it sorts behind the images."""
    try:
        number = int(source.datasets[0].SeriesNumber)
    except Exception:  # absent or not a number
        number = 0
    return max(number, 0) + _SERIES_NUMBER_STEP
