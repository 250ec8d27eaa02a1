"""What the training cases of a dataset are like, in a few numbers that a run is planned from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.core import SLICES_LAST, LabelScheme, axis_turn
from medseg.core.labelmap import label_counts
from medseg.data.case import Case, read_labelled
from medseg.data.datalist import DataList
from medseg.data.facts import default_jobs, each_case
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.events import Listener, Silent
from medseg.io.checks import relocated
from medseg.models.card import Region

__all__ = [
    "SAMPLES_PER_CASE",
    "CaseGrid",
    "ChannelFacts",
    "ClassFacts",
    "Fingerprint",
    "load_fingerprint",
    "measure_fingerprint",
]

FORMAT = "medseg-fingerprint/1"

SAMPLES_PER_CASE = 10_000
"""Voxels of structures whose intensities are drawn from each case, as in nnU-Net."""

Modality = Literal["MR", "CT", "PT", "OT"]

_MODALITIES: Mapping[Modality, str] = {
    "CT": r"\b(ct|cbct|hu)\b",
    "PT": r"\b(pt|pet|suv)\b",
    "MR": r"\b(mr|mri|t1|t1c|t1ce|t1w|t1n|t1gd|t2|t2w|t2f|flair|adc|dwi|cine|pd)\b",
}
_AIR_HU = -500.0


@dataclass(frozen=True, slots=True)
class CaseGrid:
    """The grid of one case, its axes turned nearest to R, A, S.

    Args:
        id: The case.
        shape_ras: Extents.
        spacing_mm_ras: Distances between voxel centres.
        nonzero_share: Share of the voxels that are not zero in every channel at once.
    """

    id: str
    shape_ras: tuple[int, int, int]
    spacing_mm_ras: tuple[float, float, float]
    nonzero_share: float

    def on_axes(self, orientation: str) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Extents and spacing on the axes of an orientation, RAS or ``slices_last``.

        As :func:`~medseg.core.orientation.axis_turn` has it, the thickest axis comes last where one
        is thickest by more than 1 %.
        """
        order = [0, 1, 2]
        if orientation == SLICES_LAST:
            most = max(self.spacing_mm_ras)
            thick = [axis for axis in order if self.spacing_mm_ras[axis] > 0.99 * most]
            if len(thick) == 1:
                order = [axis for axis in order if axis != thick[0]] + thick
        i, j, k = order
        return (
            (self.shape_ras[i], self.shape_ras[j], self.shape_ras[k]),
            (self.spacing_mm_ras[i], self.spacing_mm_ras[j], self.spacing_mm_ras[k]),
        )


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """Intensities of one channel in the voxels of structures, over all cases alike.

    Args:
        name: The channel.
        modality: DICOM's word, from the channel's name or, where that says nothing, its values.
        mean: Of the drawn voxels.
        std: Their standard deviation.
        percentile_00_5: 0.5 % of them lie below.
        median: Half of them lie below.
        percentile_99_5: 99.5 % of them lie below.
    """

    name: str
    modality: Modality
    mean: float
    std: float
    percentile_00_5: float
    median: float
    percentile_99_5: float


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """One structure.

    Args:
        value: Its label value.
        name: Its name.
        cases: How many training cases show it.
        voxels: Its voxels in all of them.
        median_ml: Middle volume in the cases that show it; 0 if none does.
        least_ml: Smallest of them.
        greatest_ml: Largest of them.
    """

    value: int
    name: str
    cases: int
    voxels: int
    median_ml: float
    least_ml: float
    greatest_ml: float


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Training cases in numbers; JSON by :meth:`to_dict`, back by :meth:`from_dict`.

    Args:
        dataset: Name of the dataset.
        layout: How it lies on disk.
        licence: As it states it.
        sha256: Hash over path and size of its files, see
            :class:`~medseg.data.datalist.DataList`.
        split_source: Which rule chose the training cases, in words.
        labels: The label scheme as plain values.
        regions: Overlapping regions that are trained in place of the labels; may be empty.
        ignore_value: Label value of voxels that nobody judged; None if there are none.
        samples_per_case: Most voxels whose intensities were drawn from a case.
        seed: Of that draw.
        cases: The training cases in order of id.
        channels: In the dataset's order.
        classes: In rising order of value.
    """

    dataset: str
    layout: str
    licence: str
    sha256: str
    split_source: str
    labels: dict[str, Any]
    regions: tuple[dict[str, Any], ...]
    ignore_value: int | None
    samples_per_case: int
    seed: int
    cases: tuple[CaseGrid, ...]
    channels: tuple[ChannelFacts, ...]
    classes: tuple[ClassFacts, ...]

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme as a value."""
        return LabelScheme.from_dict(self.labels)

    @property
    def region_settings(self) -> tuple[Region, ...] | None:
        """The regions as settings have them; None without regions."""
        return tuple(Region.model_validate(region) for region in self.regions) or None

    @property
    def voxels(self) -> int:
        """Voxels of all training cases as stored."""
        return sum(int(np.prod(case.shape_ras, dtype=np.int64)) for case in self.cases)

    @property
    def foreground_share(self) -> float:
        """Share of these that belong to a structure."""
        return sum(one.voxels for one in self.classes) / self.voxels

    @property
    def nonzero_share(self) -> float:
        """Middle share of the voxels of a case that are not zero in every channel."""
        return float(np.median([case.nonzero_share for case in self.cases]))

    def shapes(self, orientation: str) -> npt.NDArray[np.int64]:
        """``(cases, 3)`` extents on the axes of an orientation, RAS or ``slices_last``."""
        return np.array([case.on_axes(orientation)[0] for case in self.cases], dtype=np.int64)

    def spacings_mm(self, orientation: str) -> npt.NDArray[np.float64]:
        """``(cases, 3)`` spacings on the axes of an orientation, RAS or ``slices_last``."""
        return np.array([case.on_axes(orientation)[1] for case in self.cases], dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "fingerprint") -> Fingerprint:
        """What :meth:`to_dict` gave.

        Raises:
            FormatError: ``fingerprint`` if it is something else.
        """
        try:
            given = dict(content)
            if given.pop("format") != FORMAT or set(given) != {one.name for one in fields(cls)}:
                raise ValueError
            LabelScheme.from_dict(given["labels"])
            return cls(
                **{
                    **given,
                    "regions": tuple(
                        Region.model_validate(one).model_dump(mode="json")
                        for one in given["regions"]
                    ),
                    "cases": tuple(
                        CaseGrid(
                            one["id"],
                            _three(one["shape_ras"], int),
                            _three(one["spacing_mm_ras"], float),
                            float(one["nonzero_share"]),
                        )
                        for one in given["cases"]
                    ),
                    "channels": tuple(ChannelFacts(**one) for one in given["channels"]),
                    "classes": tuple(ClassFacts(**one) for one in given["classes"]),
                }
            )
        except (KeyError, TypeError, ValueError, MedsegError) as error:
            raise FormatError(
                where,
                expected=f"a fingerprint of the format {FORMAT}",
                found="something else",
                remedy="measure it again with `medseg plan`",
                code="fingerprint",
            ) from error


def load_fingerprint(path: Path) -> Fingerprint:
    """Read ``fingerprint.json``.

    Raises:
        FormatError: ``fingerprint`` if it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        content = {}
    return Fingerprint.from_dict(content if isinstance(content, dict) else {}, str(path))


def measure_fingerprint(
    data: DataList,
    *,
    jobs: int | None = None,
    seed: int = 0,
    samples_per_case: int = SAMPLES_PER_CASE,
    listener: Listener | None = None,
) -> Fingerprint:
    """Open every training case and measure it, several at a time.

    Nothing is learned of cases that validate or test. The draw of each case follows from its id and
    the seed, so that the result does not depend on the number of jobs.

    Args:
        data: The dataset, divided.
        jobs: How many processes read; None chooses.
        seed: Of the draw of voxels.
        samples_per_case: Most voxels drawn from each case.
        listener: Progress and cancelling.

    Raises:
        MedsegError: What is wrong with a case, named; ``foreground-empty`` if no training case
            shows a structure.
        Cancelled: If the listener asked to stop.
    """
    cases = sorted(data.train, key=lambda case: case.id)
    work = partial(
        _measure,
        channels=data.channels,
        scheme=data.scheme,
        ignore_value=data.ignore_value,
        seed=seed,
        most=samples_per_case,
    )
    found: dict[str, _Facts] = {}
    broken: dict[str, MedsegError] = {}
    for case, facts in each_case(
        work,
        cases,
        jobs=jobs or default_jobs(len(cases)),
        listener=listener or Silent(),
        stage="measuring cases",
    ):
        if isinstance(facts, MedsegError):
            broken[case.id] = facts
        else:
            found[case.id] = facts
    if broken:
        _refuse(broken)
    facts_in_order = [found[case.id] for case in cases]
    samples_nc = np.concatenate([facts.samples_nc for facts in facts_in_order])
    if len(samples_nc) == 0:
        raise ConfigError(
            f"dataset {data.name!r}",
            expected="a structure in at least one training case",
            found="label maps of background alone",
            remedy="check that the label maps are the right ones, with `medseg data check`",
            code="foreground-empty",
        )
    return Fingerprint(
        dataset=data.name,
        layout=data.layout,
        licence=data.licence,
        sha256=data.sha256,
        split_source=data.split_source,
        labels=data.scheme.to_dict(),
        regions=tuple(region.model_dump(mode="json") for region in data.regions),
        ignore_value=data.ignore_value,
        samples_per_case=samples_per_case,
        seed=seed,
        cases=tuple(facts.grid for facts in facts_in_order),
        channels=tuple(
            _channel(name, samples_nc[:, number], [facts.lows[number] for facts in facts_in_order])
            for number, name in enumerate(data.channels)
        ),
        classes=tuple(
            _class(label.value, label.name, facts_in_order) for label in data.scheme.labels
        ),
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """Of one case: its grid, drawn intensities ``(n, c)``, the least value of each channel, and
    label value to voxels and volume of a voxel.
    """  # noqa: D205 - one sentence

    grid: CaseGrid
    samples_nc: npt.NDArray[np.float32]
    lows: tuple[float, ...]
    voxels: dict[int, int]
    voxel_ml: float


def _measure(
    case: Case,
    *,
    channels: Sequence[str],
    scheme: LabelScheme,
    ignore_value: int | None,
    seed: int,
    most: int,
) -> _Facts:
    volume, labels = read_labelled(case, channels, scheme, ignore_value)
    upright = axis_turn(volume.grid, "RAS").turn_grid(volume.grid)
    counts = label_counts(labels.data_ijk)
    voxels = {value: int(counts[value]) for value in scheme.values if counts[value]}
    inside = labels.data_ijk != 0
    if ignore_value is not None:
        inside &= labels.data_ijk != ignore_value
    places = np.flatnonzero(inside)
    if len(places) > most:
        digest = hashlib.sha256(f"{seed} {case.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        places = np.sort(rng.choice(places, most, replace=False))
    at = np.unravel_index(places, inside.shape)
    samples_nc = np.stack([channel[at].astype(np.float32) for channel in volume.data_cijk], axis=-1)
    nonzero = np.zeros(inside.shape, dtype=bool)
    for channel in volume.data_cijk:
        nonzero |= channel != 0
    return _Facts(
        grid=CaseGrid(
            case.id,
            upright.shape_ijk,
            upright.spacing_mm,
            float(nonzero.mean()),
        ),
        samples_nc=samples_nc,
        lows=tuple(float(channel.min()) for channel in volume.data_cijk),
        voxels=voxels,
        voxel_ml=volume.grid.voxel_volume_mm3 / 1000.0,
    )


def _channel(name: str, values: npt.NDArray[np.float32], lows: Sequence[float]) -> ChannelFacts:
    low, middle, high = np.percentile(values.astype(np.float64), (0.5, 50.0, 99.5))
    return ChannelFacts(
        name=name,
        modality=_modality(name, lows),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        percentile_00_5=float(low),
        median=float(middle),
        percentile_99_5=float(high),
    )


def _modality(name: str, lows: Sequence[float]) -> Modality:
    words = re.sub(r"[^a-z0-9]+", " ", name.lower())
    for modality, pattern in _MODALITIES.items():
        if re.search(pattern, words):
            return modality
    return "CT" if float(np.median(lows)) < _AIR_HU else "OT"


def _class(value: int, name: str, cases: Sequence[_Facts]) -> ClassFacts:
    shown = [facts for facts in cases if value in facts.voxels]
    volumes_ml = [facts.voxels[value] * facts.voxel_ml for facts in shown] or [0.0]
    return ClassFacts(
        value=value,
        name=name,
        cases=len(shown),
        voxels=sum(facts.voxels[value] for facts in shown),
        median_ml=float(np.median(volumes_ml)),
        least_ml=min(volumes_ml),
        greatest_ml=max(volumes_ml),
    )


def _refuse(broken: Mapping[str, MedsegError]) -> None:
    name = min(broken)
    error = broken[name]
    more = len(broken) - 1
    others = f" ({more} further cases cannot be used either: see `medseg data check`)"
    told = relocated(
        error, f"case {name}: {error.where}" if name not in error.where else error.where
    )
    if more:
        told = type(told)(
            told.where,
            expected=told.expected,
            found=told.found,
            remedy=told.remedy + others,
            code=told.code,
        )
    raise told from error


def _three(values: Sequence[Any], kind: type) -> Any:  # noqa: ANN401 - ints or floats
    i, j, k = (kind(value) for value in values)
    return i, j, k
