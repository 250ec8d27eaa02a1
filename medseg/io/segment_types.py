"""How each segment of one object came about: one way for all, or one for each label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medseg.errors import ConfigError, one_of

if TYPE_CHECKING:
    from medseg.io.dicom_seg import Algorithm, AlgorithmType

__all__ = ["made_by", "types_in_words", "types_of_segments"]

_TYPES = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")


def types_of_segments(
    values: Sequence[int],
    algorithm: Algorithm | None,
    given: AlgorithmType | Mapping[int, AlgorithmType],
) -> dict[int, AlgorithmType]:
    """Label value to its type, for the segments of an object.

    Where types differ from label to label, an algorithm is that of the labels that are not MANUAL.

    Args:
        values: Labels that become segments.
        algorithm: What made them.
        given: One type for all, or one for each.

    Raises:
        ConfigError: ``algorithm-type`` if types and algorithm contradict each other, or a label has
            none.
    """
    from medseg.io.dicom_seg import check_provenance  # noqa: PLC0415 - which imports this module

    if isinstance(given, str):
        check_provenance(algorithm, given)
        return dict.fromkeys(values, given)
    types: dict[int, AlgorithmType] = {}
    for value in values:
        kind = given.get(value)
        if kind not in _TYPES:
            raise ConfigError(
                "segmentation provenance",
                expected=f"for label {value} {one_of(str(kind), _TYPES)}",
                found="nothing" if kind is None else repr(kind),
                remedy="say for each label that is present how it came about",
                code="algorithm-type",
            )
        check_provenance(None if kind == "MANUAL" else algorithm, kind)
        types[value] = kind
    return types


def made_by(algorithm: Algorithm | None, types: Mapping[int, AlgorithmType]) -> str:
    """Who made an object, for its description."""
    kinds = set(types.values())
    if algorithm is not None and kinds != {"MANUAL"}:
        return algorithm.name
    return kinds.pop().capitalize() if len(kinds) == 1 else "Edited"


def types_in_words(given: AlgorithmType | Mapping[int, AlgorithmType]) -> str:
    """What tells one provenance from another, for identifiers that are made from content."""
    if isinstance(given, str):
        return given
    return json.dumps({str(value): kind for value, kind in sorted(given.items())})
