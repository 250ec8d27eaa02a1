"""Which cases a dataset has, and which of them train."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.core import LabelScheme
from medseg.data.case import Case
from medseg.data.layouts import Listing, list_cases
from medseg.data.layouts.listing import refuse
from medseg.data.splits import (
    FOLDS,
    PARTS,
    PUBLISHED,
    Split,
    check_single,
    draw_folds,
    draw_split,
    holds_split,
    published_split,
    read_split_file,
    save_folds,
)
from medseg.errors import ConfigError, ResourceError, one_of
from medseg.models.card import Region

__all__ = ["SPLIT_NAME", "Case", "DataList", "divide", "folds_path", "read_datalist"]

SPLIT_NAME = "split.json"


@dataclass(frozen=True, slots=True)
class DataList:
    """The cases of a dataset, divided; no patient is in two parts.

    Args:
        name: As the dataset calls itself.
        licence: As the dataset states it, ``unknown`` if it does not.
        channels: Channel names.
        scheme: What label values mean once a case has been read.
        train: Cases to learn from.
        validation: Cases to judge by.
        split_source: Which rule divided them, in words.
        sha256: Hash over path and size of every file of all parts.
        test: Cases kept for the end; may be empty.
        layout: How the dataset lies on disk.
        regions: Overlapping regions to train in place of the labels; may be empty.
        is_named: Whether ``scheme`` is a known one, so that a model's names must equal its names.
        notes: Harmless peculiarities worth a line.
    """

    name: str
    licence: str
    channels: tuple[str, ...]
    scheme: LabelScheme
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    split_source: str
    sha256: str
    test: tuple[Case, ...] = ()
    layout: str = "msd"
    regions: tuple[Region, ...] = ()
    is_named: bool = False
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """Label value to name, background left out."""
        return {label.value: label.name for label in self.scheme.labels}

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every case of every part."""
        return (*self.train, *self.validation, *self.test)

    @property
    def ignore_value(self) -> int | None:
        """The label value of voxels that nobody annotated; None if there is none."""
        return next(
            (case.ignore_value for case in self.cases if case.ignore_value is not None), None
        )

    def split(self) -> dict[str, list[str]]:
        """The division as a split file holds it."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: [case.id for case in cases] for part, cases in parts.items() if cases}

    def check_scheme(self, scheme: LabelScheme) -> None:
        """Refuse a label scheme that does not list exactly the dataset's label values.

        Two numberings of the same organs have the same values; where the dataset's scheme is a
        known one, each value must therefore have its name too.

        Raises:
            ConfigError: ``dataset-labels`` if the values differ, ``label-order`` if a known value
                carries the name of another structure.
        """
        if set(scheme.values) != set(self.labels):
            numbered = f", numbered as {self.scheme.name!r}" if self.is_named else ""
            raise ConfigError(
                f"label scheme {scheme.name!r}",
                expected=f"the values {sorted(self.labels)} of the dataset {self.name!r}{numbered}",
                found=f"{list(scheme.values)}",
                remedy=f"take the labels and regions of that numbering (`medseg data schemes "
                f"{self.scheme.name}`), or name another one as data.scheme"
                if self.is_named
                else "list every structure of the dataset once under labels, without background",
                code="dataset-labels",
            )
        for label in scheme.labels if self.is_named else ():
            meant = self.labels[label.value]
            if label.name != meant:
                raise ConfigError(
                    f"label scheme {scheme.name!r}",
                    expected=f"{label.value} to be {meant!r}, as in {self.scheme.name!r}",
                    found=repr(label.name),
                    remedy="take the labels of `medseg data schemes`, or name another scheme as "
                    "data.scheme",
                    code="label-order",
                )


def read_datalist(
    root: Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    scheme: str | None = None,
) -> DataList:
    """List the cases of a dataset and divide them.

    The first of these that applies divides them: what ``split`` names, ``split.json`` in the
    dataset's folder, the dataset's own division, or a draw of ``validation_fraction`` of the
    patients with ``seed``. A case that is incomplete is refused, unless a split file leaves it out.

    Args:
        root: The dataset's folder, or the file of a list of paths.
        layout: A member of :data:`~medseg.data.layouts.LAYOUTS`, or ``auto``.
        split: A published split (:data:`~medseg.data.splits.PUBLISHED`), ``5-fold``, or a split
            file, looked for in the dataset's folder, then from the current directory.
        fold: Which fold of ``5-fold`` or of a file of folds, counted from 0; another than 0 is
            refused where there are no folds.
        validation_fraction: Share of the patients drawn for validation where nothing else divides.
        seed: Seed of that draw, and of the five folds.
        scheme: Name of a label scheme, see :func:`~medseg.data.layouts.list_cases`.

    Raises:
        ConfigError: If the folder or a file is missing, a case is incomplete, the layout or the
            label scheme cannot be told, or the split names unknown cases, leaves a part empty or
            puts one patient in two parts.
        FormatError: If an index file is damaged or lacks what it must hold.
    """
    listing = list_cases(root, layout, scheme)
    chosen = divide(
        root, listing, split, fold=fold, validation_fraction=validation_fraction, seed=seed
    )
    by_id = {case.id: case for case in listing.cases}
    train, validation, test = (
        tuple(by_id[name] for name in getattr(chosen, part)) for part in PARTS
    )
    return DataList(
        name=listing.name,
        licence=listing.licence,
        channels=listing.channels,
        scheme=listing.scheme,
        train=train,
        validation=validation,
        test=test,
        split_source=chosen.source,
        sha256=_fingerprint(root, (*train, *validation, *test)),
        layout=listing.layout,
        regions=listing.regions,
        is_named=listing.is_named,
        notes=listing.notes,
    )


def divide(
    root: Path,
    listing: Listing,
    split: str | None = None,
    *,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    keep: bool = True,
) -> Split:
    """Divide listed cases, by the rules of :func:`read_datalist`.

    The five folds are written to :func:`folds_path` when they are first drawn and read from there
    afterwards, so that runs share them; where the folder cannot be written the same folds are drawn
    each time.

    Args:
        root: As there.
        listing: What was listed.
        split: As there.
        fold: As there.
        validation_fraction: As there.
        seed: As there.
        keep: Whether newly drawn folds are written.

    Raises:
        MedsegError: As :func:`read_datalist`.
    """
    where, cases = str(root), listing.cases
    held_out = listing.parts.get("test", ())
    note = ""
    path = None if split in PUBLISHED or split == FOLDS else _split_path(root, split)
    if path is not None:
        if split is not None or holds_split(path):
            return read_split_file(path, cases, listing.problems, fold=fold)
        note = f"; {path.name} in the folder holds no split"
    listing.check_complete()
    if split != FOLDS:
        check_single(fold, "a draw" if split is None else f"the split {split}")
    if split is not None and split in PUBLISHED:
        return published_split(split, cases, where)
    if split == FOLDS:
        return _shared_fold(root, cases, fold, seed, held_out, keep=keep)
    if {"train", "validation"} <= set(listing.parts):
        train, validation, test = (listing.parts.get(part, ()) for part in PARTS)
        return Split(train, validation, test, f"the dataset's own division{note}")
    drawn = draw_split(cases, validation_fraction, seed, where, held_out=held_out)
    return replace(drawn, source=drawn.source + note)


def folds_path(root: Path, seed: int) -> Path:
    """Where the five folds of a dataset are kept."""
    return _folder(root) / f"folds_5_seed{seed}.json"


def _shared_fold(
    root: Path,
    cases: Sequence[Case],
    fold: int,
    seed: int,
    held_out: Sequence[str],
    *,
    keep: bool,
) -> Split:
    path = folds_path(root, seed)
    if path.is_file():
        return read_split_file(path, cases, fold=fold, whole=True)
    folds = draw_folds(cases, seed, str(root), held_out=held_out)
    if not 0 <= fold < len(folds):
        refuse(
            "data.fold",
            expected=f"a fold from 0 to {len(folds) - 1}",
            found=str(fold),
            remedy="count the folds from 0",
            code="split-fold",
        )
    if keep:
        with suppress(ResourceError):  # a read-only dataset: the same folds are drawn again
            save_folds(path, folds)
    return folds[fold]


def _folder(root: Path) -> Path:
    return root.parent if root.is_file() else root


def _split_path(root: Path, split: str | None) -> Path | None:
    folder = _folder(root)
    if split is None:
        return folder / SPLIT_NAME if (folder / SPLIT_NAME).is_file() else None
    found = next((path for path in (folder / split, Path(split)) if path.is_file()), None)
    if found is None:
        refuse(
            split,
            expected="a split file in the dataset's folder or from the current directory, or "
            + one_of(split, (*PUBLISHED, FOLDS)),
            found="no such file",
            remedy="correct data.split, or leave it out to draw a split",
            code="split-missing",
        )
    return found


def _fingerprint(root: Path, cases: Sequence[Case]) -> str:
    lines = sorted(
        f"{_place(root, file)} {size}"
        for case in cases
        for file, size in _sizes(case.files).items()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sizes(files: Sequence[Path]) -> Mapping[Path, int]:
    sizes: dict[Path, int] = {}
    for file in files:
        below = sorted(file.rglob("*")) if file.is_dir() else [file]
        sizes |= {path: path.stat().st_size for path in below if path.is_file()}
    return sizes


def _place(root: Path, file: Path) -> str:
    """The file's path in the dataset; its name alone where a list points elsewhere."""
    folder = _folder(root)
    return file.relative_to(folder).as_posix() if folder in file.parents else file.name
