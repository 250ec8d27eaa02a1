"""What is scored: labels, or regions made of several."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from medseg.core import LabelScheme
from medseg.errors import ConfigError, one_of

__all__ = ["BRATS_REGIONS", "Structure", "brats_regions", "label_structures"]


@dataclass(frozen=True, slots=True)
class Structure:
    """One thing that is scored; valid once built.

    Args:
        name: Short name for people.
        members: Label values it is made of; several make a region such as the whole tumour.
    """

    name: str
    members: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.members or min(self.members) < 1:
            raise ConfigError(
                f"structure {self.name!r}",
                expected="a name, and label values from 1",
                found=f"values {list(self.members)}",
                remedy="write for example whole=1,2,4; 0 is background",
                code="structure",
            )


BRATS_REGIONS: dict[str, tuple[Structure, ...]] = {
    "brats-2018": (
        Structure("WT", (1, 2, 4)),
        Structure("TC", (1, 4)),
        Structure("ET", (4,)),
    ),
    "brats-2023": (
        Structure("WT", (1, 2, 3)),
        Structure("TC", (1, 3)),
        Structure("ET", (3,)),
    ),
    "brats-2024-gli": (
        Structure("WT", (1, 2, 3)),
        Structure("TC", (1, 3)),
        Structure("ET", (3,)),
        Structure("RC", (4,)),
    ),
}
"""Whole tumour, tumour core, enhancing tumour and resection cavity by the challenge's year.

Until 2022 label 4 is enhancing tumour and 3 is not used; from 2023 on 3 is enhancing tumour; in the
post-treatment glioma task of 2024 label 4 is the resection cavity.
"""


def label_structures(scheme: LabelScheme, ignored: int | None = None) -> tuple[Structure, ...]:
    """Every label of a scheme by itself, but for the ignored one."""
    return tuple(
        Structure(label.name, (label.value,)) for label in scheme.labels if label.value != ignored
    )


def brats_regions(name: str, present: Collection[int]) -> tuple[str, tuple[Structure, ...]]:
    """The regions of a BraTS challenge, told apart by the labels where only ``brats`` is given.

    Args:
        name: A key of :data:`BRATS_REGIONS`, or ``brats``.
        present: Label values that occur in any of the references.

    Returns:
        The key and its regions.

    Raises:
        ConfigError: If there is no such key, or the labels fit none or more than one.
    """
    if name in BRATS_REGIONS:
        return name, BRATS_REGIONS[name]
    if name != "brats":
        raise ConfigError(
            "regions",
            expected=one_of(name, ["brats", "model", *BRATS_REGIONS]) + ", or NAME=VALUE,VALUE",
            found=repr(name),
            remedy="name a known set, or write every region such as whole=1,2,4",
            code="regions-unknown",
        )
    values = set(present) - {0}
    if values <= {1, 2, 3, 4} and values & {3, 4}:
        key = {(False, True): "brats-2018", (True, False): "brats-2023"}.get(
            (3 in values, 4 in values), "brats-2024-gli"
        )
        return key, BRATS_REGIONS[key]
    raise ConfigError(
        "regions brats",
        expected="labels 1, 2, 4 (until 2022), 1 to 3 (from 2023) or 1 to 4 (treated, 2024)",
        found=f"labels {sorted(values)} in all references together",
        remedy=f"name one of {', '.join(BRATS_REGIONS)}",
        code="regions-unclear",
    )


def check_names(structures: Iterable[Structure]) -> None:
    """Check that no two structures share a name.

    Raises:
        ConfigError: If some do.
    """
    names = [structure.name for structure in structures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ConfigError(
            "structures",
            expected="at least one structure, each with a name of its own",
            found=f"{', '.join(twice)} more than once" if twice else "none",
            remedy="rename or remove one",
            code="structure",
        )
