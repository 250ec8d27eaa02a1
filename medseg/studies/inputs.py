"""The image of one case as a model is to see it, from whatever the case was given as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Volume
from medseg.errors import ConfigError, MedsegError
from medseg.io.checks import check_finite
from medseg.io.dicom_files import is_study_file
from medseg.io.label_like import check_is_image
from medseg.io.notes import Note, of_channel
from medseg.io.reading import read_image
from medseg.io.scan import DicomSource, Scan
from medseg.io.series_choice import SeriesRule, known_rules
from medseg.models.card import Channel, ModelCard

if TYPE_CHECKING:
    from medseg.io.dicom_study import Stack, Study

__all__ = [
    "choose_stacks",
    "joined_channels",
    "modality_notes",
    "read_case_image",
    "series_choices",
    "series_rules",
]

_SAME_GRID_MM = 0.01


def read_case_image(
    path: Path,
    card: ModelCard,
    *,
    series: Mapping[str, str] | None = None,
    allow_gaps: bool = False,
    threads: int | None = None,
    study: Study | None = None,
    beside: Mapping[str, Path] | None = None,
) -> Scan:
    """Read what a model is to see of one case that was given as one path.

    A NIfTI, NRRD or MetaImage file is read as it is. Of a DICOM study (a folder, a zip, a DICOMDIR)
    one series is chosen for every channel: the only one there is for a model of one channel without
    rules, else by the rules on the card, or by the modality and well-known names of channels.
    Channels on other grids are interpolated linearly onto that of the first; they must share its
    frame of reference.

    Args:
        path: A file, or a study.
        card: What the model expects.
        series: Channel name to what the user says, as for
            :func:`~medseg.io.series_choice.chosen_stack`; an empty name is the only channel.
        allow_gaps: Resample slices that are not evenly apart instead of refusing them.
        threads: Files that are read at a time; None for as many as are useful.
        study: What lies at ``path``, if it was looked at before, with the same ``allow_gaps``.
        beside: Where further slices of a series may lie, by the name that a message may give it.

    Returns:
        The channels in the model's order and, as source, the series of the first one, whose grid
        they are on.

    Raises:
        ConfigError: ``series-unknown``, ``series-pattern``, ``channel-names``, ``series-file``.
        FormatError: ``series-ambiguous``, ``series-none``, ``series-split``, and as
            :func:`~medseg.io.dicom_series.read_dicom_series`.
        GeometryError: ``channels-frames-differ``, and as there.
        MedsegError: As :func:`~medseg.io.reading.read_image`.
    """
    if not path.is_dir() and not is_study_file(path):
        if series:
            raise ConfigError(
                "--series",
                expected="a DICOM study to choose from",
                found="an image file",
                remedy="leave --series out, or give the folder, the zip or the DICOMDIR",
                code="series-file",
            )
        return read_image(path)
    from medseg.io.dicom_series import read_stack  # noqa: PLC0415 - pulls in pydicom
    from medseg.io.dicom_study import read_study  # noqa: PLC0415

    if study is None:
        study = read_study(path, allow_gaps=allow_gaps, threads=threads)
    stacks = choose_stacks(study, card, series=series, beside=beside)
    scans = {name: read_stack(stack, study, threads=threads) for name, stack in stacks.items()}
    for scan in scans.values():
        check_finite(scan.volume.data_cijk, str(path))
        check_is_image(scan.volume, str(path))
    return joined_channels(scans)


def choose_stacks(
    study: Study,
    card: ModelCard,
    *,
    series: Mapping[str, str] | None = None,
    beside: Mapping[str, Path] | None = None,
) -> dict[str, Stack]:
    """The volume of a study that each channel of a model is given, from headers alone.

    Args:
        study: What there is.
        card: What the model expects.
        series: As for :func:`read_case_image`.
        beside: As there.

    Raises:
        MedsegError: As :func:`read_case_image`; first of all for a file that cannot be read, and
            then the problem of a stack that was chosen.
    """
    from medseg.io.dicom_parts import check_whole  # noqa: PLC0415 - pulls in pydicom

    try:
        chosen = _chosen(study, card, series)
    except MedsegError:
        if beside and not study.unreadable:  # what seems to be a gap may lie there
            check_whole(study.stacks, study, beside)
        raise
    if beside:
        check_whole(chosen.values(), study, beside)
    return chosen


def _chosen(study: Study, card: ModelCard, series: Mapping[str, str] | None) -> dict[str, Stack]:
    from medseg.io.series_choice import match_series  # noqa: PLC0415 - pulls in pydicom

    channels = card.inputs.channels
    if study.unreadable:
        raise study.unreadable[0]
    wanted = dict(series or {})
    if "" in wanted and len(channels) == 1:
        wanted = {channels[0].name: wanted[""], **{k: v for k, v in wanted.items() if k}}
    lone = len(channels) == 1 and channels[0].series is None and len(study.stacks) == 1
    if not lone or wanted:
        return match_series(study, series_rules(channels), wanted=wanted)
    if study.stacks[0].problem is not None:
        raise study.stacks[0].problem
    return {channels[0].name: study.stacks[0]}


def series_choices(options: Sequence[str], channels: Sequence[Channel]) -> dict[str, str]:
    """What ``--series`` options say, for :func:`read_case_image`.

    Args:
        options: ``CHANNEL=CHOICE`` with a channel of the model, or a choice alone for its only one.
            What stands before a sign of equality counts as a channel only if it is one.
        channels: Of the model.

    Raises:
        ConfigError: ``channel-names`` for a choice without its channel, or two for one.

    >>> series_choices(["T1=3", "FLAIR=tirm"], [Channel(name="T1"), Channel(name="FLAIR")])
    {'T1': '3', 'FLAIR': 'tirm'}
    """
    names = [channel.name for channel in channels]
    found: dict[str, str] = {}
    for option in options:
        name, sign, choice = option.partition("=")
        if not sign or name not in names:
            name, choice = names[0] if len(names) == 1 else "", option
        if not name or not choice or name in found:
            raise ConfigError(
                "--series",
                expected=f"one choice for each of the model's channels {', '.join(names)}",
                found=f"{option!r}",
                remedy="write for example --series T1=3 --series FLAIR=5",
                code="channel-names",
            )
        found[name] = choice
    return found


def series_rules(channels: Sequence[Channel]) -> dict[str, tuple[SeriesRule, ...]]:
    """Channel name to the rules of its series, the narrowest first.

    A card's own rules stand alone. Without them a channel is known by its name, if it is one of the
    field's, and its modality; the only channel of a model else by its modality alone.
    """
    found: dict[str, tuple[SeriesRule, ...]] = {}
    for channel in channels:
        modality = None if channel.modality == "OT" else channel.modality
        if channel.series is not None:
            found[channel.name] = (SeriesRule(modality=modality, **dict(channel.series)),)
        else:
            plain = (SeriesRule(modality=modality),) if len(channels) == 1 else ()
            found[channel.name] = (*known_rules(channel.name, modality), *plain)
    return found


def modality_notes(scan: Scan, card: ModelCard) -> tuple[str, ...]:
    """What a DICOM series says of itself against what the model was trained on."""
    if not isinstance(scan.source, DicomSource):
        return ()
    series = str(scan.source.datasets[0].get("Modality") or "")
    model = {channel.modality for channel in card.inputs.channels}
    if series in model:
        return ()
    return (
        Note(
            f"the series is {series}, the model was trained on {', '.join(sorted(model))}: "
            "the result cannot be trusted",
            code="modality-differs",
            remedy="use a model for this modality",
        ),
    )


def joined_channels(scans: Mapping[str, Scan]) -> Scan:
    """One scan of several, on the grid and with the source of the first.

    Args:
        scans: Channel name to its scan. Those on other grids are interpolated linearly; whether
            their positions can be compared is for the caller to know.
    """
    first = next(iter(scans.values()))
    if len(scans) == 1:
        return first
    grid = first.volume.grid
    notes: list[str] = []
    parts: list[npt.NDArray[Any]] = []
    for name, scan in scans.items():
        notes += [of_channel(name, note) for note in scan.notes]
        part = scan.volume
        if part.grid.shape_ijk != grid.shape_ijk or part.grid.distance_mm(grid) > _SAME_GRID_MM:
            parts.append(_resampled(part, grid))
            told = f"{name}: interpolated onto the grid of {next(iter(scans))}"
            remedy = "nothing needs to be done"
            notes.append(Note(told, code="channel-resampled", remedy=remedy))
        else:
            parts.append(part.data_cijk[0])
    dtype = np.result_type(*(part.dtype for part in parts))
    if dtype.itemsize > 4:  # mixed integers and floats would double
        dtype = np.dtype(np.float32)
    data = np.empty((len(parts), *grid.shape_ijk), dtype=dtype)
    for index, one in enumerate(parts):
        data[index] = one
    return Scan(Volume(data, grid, tuple(scans)), first.source, tuple(notes))


def _resampled(volume: Volume, grid: Grid) -> npt.NDArray[np.float32]:
    """One channel, interpolated linearly; its least value lies beyond it."""
    from scipy import ndimage  # noqa: PLC0415 - only where grids differ

    data = volume.data_cijk[0]
    affine = np.linalg.inv(volume.grid.affine_ras) @ grid.affine_ras
    resampled: npt.NDArray[np.float32] = ndimage.affine_transform(
        data,
        affine[:3, :3],
        affine[:3, 3],
        output_shape=grid.shape_ijk,
        output=np.float32,
        order=1,
        mode="constant",
        cval=float(data.min()),
    )
    return resampled
