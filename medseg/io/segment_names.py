"""Segments and regions of interest against labels: names, codes, and what is done where they clash.

SEG and RTSTRUCT are read into label maps by the same rules.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medseg.core import Code, Label, LabelScheme
from medseg.errors import FormatError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from medseg.io.probabilities import ProbabilityClass

__all__ = [
    "STRICT",
    "LabelReading",
    "Overlaps",
    "Unknown",
    "class_labels",
    "code_of",
    "concept_of",
    "likely_meant",
    "plain_name",
    "segment_label",
]

Overlaps = Literal["refuse", "smaller", "order"]
"""Voxels of several structures: refused; of the one with fewer voxels; of the label with the higher
value."""

Unknown = Literal["refuse", "leave"]
"""Structures that the scheme does not list: refused; or left out, unless it is likely that one is
meant by a label that the file lacks."""


@dataclass(frozen=True, slots=True)
class LabelReading:
    """How a SEG or an RTSTRUCT is read as a label map.

    Args:
        frame_of_reference: UID of the image's frame of reference, which must be that of the
            structures where both are said; None where it is not known.
        overlaps: What becomes of voxels in several structures.
        unknown: What becomes of structures that the scheme does not list.
        threshold: The least fraction that counts as inside, of a FRACTIONAL SEG.
        allow_gaps: Of an RTSTRUCT, whether contours on every second slice or fewer are taken, as in
            :func:`~medseg.io.rtstruct_voxels.roi_mask`.
    """

    frame_of_reference: str | None = None
    overlaps: Overlaps = "refuse"
    unknown: Unknown = "refuse"
    threshold: float = 0.5
    allow_gaps: bool = False


STRICT = LabelReading()
"""Whatever is in doubt is refused."""

_PRIVATE_SCHEME = "99MEDSEG"
_NEAR_NAME = 0.85


def code_of(sequence: list[Dataset] | None) -> Code | None:
    """The first code of a sequence, or None where it is absent or incomplete."""
    if not sequence:
        return None
    item = sequence[0]
    value = str(item.get("CodeValue") or item.get("LongCodeValue") or "")
    scheme, meaning = (
        str(item.get(name) or "") for name in ("CodingSchemeDesignator", "CodeMeaning")
    )
    return Code(value, scheme, meaning[:64]) if value and scheme and meaning else None


def concept_of(label: Label) -> Code:
    """The coded concept of a label; a private one made from its name where it has none."""
    if label.concept:
        return label.concept
    slug = re.sub(r"[^a-z0-9]+", "-", label.name.lower()).strip("-") or f"label-{label.value}"
    return Code(slug, _PRIVATE_SCHEME, segment_label(label))


def segment_label(label: Label) -> str:
    """The name as a DICOM long string, where a backslash would begin a second value."""
    return label.name.replace("\\", "/").strip() or f"label {label.value}"


def class_labels(
    classes: Sequence[ProbabilityClass], scheme: LabelScheme, where: str
) -> list[tuple[int, Label]]:
    """Channel and label of every class of probabilities but the background.

    A class that is not named as the label that it writes, as a region of several labels is, gets
    none of the codes of that label.

    Raises:
        FormatError: ``probability-classes`` if there is none.
    """
    known = {label.value: label for label in scheme.labels}
    found = []
    for which, one in enumerate(classes):
        if one.value == 0:
            continue
        label = known.get(one.value)
        if label is None or label.name != one.name:
            label = Label(one.value, one.name, one.rgb)
        found.append((which, label))
    if not found:
        raise FormatError(
            where,
            expected="probabilities of a class beside the background",
            found="none",
            remedy="take the file of the model that was meant",
            code="probability-classes",
        )
    return found


def plain_name(name: str) -> str:
    """A name without what does not count in matching: capitals, spaces, underscores."""
    return "".join(name.replace("_", " ").casefold().split())


def likely_meant(name: str, label: str) -> bool:
    """Whether two names are almost the same, and differ neither in their side nor in a number."""
    first, second = plain_name(name), plain_name(label)
    if re.findall(r"\d+", first) != re.findall(r"\d+", second):
        return False
    for end in (slice(-1, None), slice(1)):
        rest = slice(-1) if end.start else slice(1, None)
        if {first[end], second[end]} == {"l", "r"} and first[rest] == second[rest]:
            return False
    return difflib.SequenceMatcher(None, first, second).ratio() >= _NEAR_NAME
