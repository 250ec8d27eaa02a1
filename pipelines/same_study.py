"""Which cases of a run are of one study: a series of it may lie in several of their folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from medseg.io.dicom_files import is_study_file
from medseg.io.dicom_folders import study_uid
from medseg.io.dicom_quiet import quiet_dicom

__all__ = ["SameStudy", "same_study"]

_THREADS = 16


@dataclass(frozen=True, slots=True)
class SameStudy:
    """Groups of cases of one study; picklable.

    Args:
        groups: Name and path of each case, in groups of at least two.
    """

    groups: tuple[tuple[tuple[str, Path], ...], ...] = ()
    _place: Mapping[Path, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        place = {path: number for number, one in enumerate(self.groups) for _, path in one}
        object.__setattr__(self, "_place", place)

    def beside(self, path: Path) -> dict[str, Path]:
        """The other cases of the study that a path is a case of, by name."""
        number = self._place.get(path)
        if number is None:
            return {}
        return {name: other for name, other in self.groups[number] if other != path}


def same_study(cases: Iterable[tuple[str, Path]]) -> SameStudy:
    """Find the cases of one study, by the first file of each.

    Args:
        cases: Name and path of each case that was given as one path.
    """
    studies = [one for one in cases if one[1].is_dir() or is_study_file(one[1])]
    if len(studies) < 2:
        return SameStudy()
    with quiet_dicom(), ThreadPoolExecutor(min(_THREADS, len(studies))) as pool:
        found = list(pool.map(study_uid, [path for _, path in studies]))
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for uid, one in zip(found, studies, strict=True):
        if uid:
            groups[uid].append(one)
    return SameStudy(tuple(tuple(group) for group in groups.values() if len(group) > 1))
