"""What is scored: labels, or regions made of several."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from medseg.core import LabelScheme
from medseg.errors import ConfigError, one_of

__all__ = ["BRATS_REGIONS", "Structure", "brats_regions", "check_names", "label_structures"]


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


def _tumour(
    whole: tuple[int, ...], core: tuple[int, ...], enhancing: int, cavity: int | None = None
) -> tuple[Structure, ...]:
    regions = (
        Structure("whole tumour", whole),
        Structure("tumour core", core),
        Structure("enhancing tumour", (enhancing,)),
    )
    return regions if cavity is None else (*regions, Structure("resection cavity", (cavity,)))


BRATS_REGIONS: dict[str, tuple[Structure, ...]] = {
    "brats-2012-2015": _tumour((1, 2, 3, 4), (1, 3, 4), 4),
    "brats-2018-2021": _tumour((1, 2, 4), (1, 4), 4),
    "brats-2023": _tumour((1, 2, 3), (1, 3), 3),
    "brats-2024-gli": _tumour((1, 2, 3), (1, 3), 3, 4),
    "brats-nnunet-137": _tumour((1, 2, 3), (2, 3), 3),
}
"""Whole tumour, tumour core and enhancing tumour by the numbering of the challenge's year.

Label 4 is enhancing tumour until 2021 and 3 from 2023 on; in the post-treatment task of 2024 label
4 is the resection cavity, which belongs to none of the three. nnU-Net's Dataset137 has an order of
its own.
"""


def label_structures(scheme: LabelScheme, ignored: int | None = None) -> tuple[Structure, ...]:
    """Every label of a scheme by itself, but for the ignored one."""
    return tuple(
        Structure(label.name, (label.value,)) for label in scheme.labels if label.value != ignored
    )


def brats_regions(name: str, present: Collection[int]) -> tuple[str, tuple[Structure, ...]]:
    """The regions of a BraTS challenge; ``brats`` alone is taken where the labels leave no doubt.

    Labels 1, 2 and 4 occur together without 3 in one numbering only. 1 to 3 may be that of 2023 or
    nnU-Net's, 1 to 4 that of 2012 or of 2024: those must be named.

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
    if values == {1, 2, 4}:
        return "brats-2018-2021", BRATS_REGIONS["brats-2018-2021"]
    raise ConfigError(
        "regions brats",
        expected="labels 1, 2 and 4, which only the numbering of 2018 to 2021 has, or label names "
        "or files' names that tell the year",
        found=f"labels {sorted(values)} in all references together, which more than one has",
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
