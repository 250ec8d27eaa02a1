"""Whether slices that belong to a volume lie somewhere else: in the folder of another case.

Archives and discs hand a series on in several folders, of so many files each, or a folder per
slice. Each of them by itself looks like a whole, smaller volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from medseg.errors import FormatError, MedsegError
from medseg.io.dicom_files import StudyFile, list_study
from medseg.io.dicom_headers import Header, read_headers
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_study import Stack, Study, stacks_of
from medseg.io.waiting import map_files

__all__ = ["check_whole"]

_MOST_NAMED = 3
_PREAMBLE_BYTES = 132
_KEPT_FOLDERS = 1024


def check_whole(stacks: Iterable[Stack], study: Study, beside: Mapping[str, Path]) -> None:
    """Refuse a volume of which further slices lie elsewhere.

    A copy of the same slices is no further slice, and neither is another time point or echo of the
    series: what the series would be with all its files is what counts.

    Args:
        stacks: Volumes of the study.
        study: What lies in one place.
        beside: Other places where slices may lie, by the name that a message may give them.

    Raises:
        FormatError: ``series-split``.
    """
    for stack in stacks:
        uid = stack.series_uid
        holders = [
            (name, path)
            for name, path in beside.items()
            if uid and uid in _series(path, _changed(path))
        ]
        if holders:
            _check_stack(stack, study, dict(holders))


def _check_stack(stack: Stack, study: Study, holders: Mapping[str, Path]) -> None:
    uid, where = stack.series_uid, str(study.path)
    frames = [frame for one in study.series[uid] for frame in one.frames]
    here = {id(frame.header): frame.header for frame in frames}
    known = {str(header.dataset.get("SOPInstanceUID") or "") for header in here.values()}
    further: dict[int, str] = {}
    others: list[Header] = []
    for name, path in holders.items():
        try:
            headers = read_headers(list_study(path), where).images
        except MedsegError:  # what is wrong there is told of the case it is wrong with
            continue
        for header in headers:
            instance = str(header.dataset.get("SOPInstanceUID") or "")
            if header.series_uid == uid and instance not in known:
                known.add(instance)
                further[id(header)] = name
                others.append(header)
    if not others:
        return
    own = {(id(frame.header), frame.index) for frame in stack.frames}
    with quiet_dicom():
        whole = stacks_of([*here.values(), *others], where, 0, allow_gaps=True)
    for one in whole:
        if not any((id(frame.header), frame.index) in own for frame in one.frames):
            continue
        elsewhere = [further[id(f.header)] for f in one.frames if id(f.header) in further]
        if elsewhere:
            raise _split(where, len(own), elsewhere)


def _split(where: str, here: int, elsewhere: list[str]) -> FormatError:
    names = sorted(set(elsewhere))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return FormatError(
        where,
        expected="all slices of a volume in one case",
        found=f"{here} here and {len(elsewhere)} in {', '.join(names[:_MOST_NAMED])}{more}",
        remedy="add --by-study, which takes the folders of a study for one case, or put the "
        "slices into one folder",
        code="series-split",
    )


def _changed(path: Path) -> int:
    """When a folder got or lost an entry, or a file was written to, last."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(_KEPT_FOLDERS)
def _series(path: Path, changed: int) -> frozenset[str]:  # noqa: ARG001 - another key, once changed
    """Every SeriesInstanceUID below a path; what cannot be read has none."""
    try:
        files = list_study(path)
    except MedsegError:
        return frozenset()
    with quiet_dicom():
        return frozenset(uid for uid in map_files(_series_of, files) if uid)


def _series_of(file: StudyFile) -> str:
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read

    try:
        if file.beginning("", _PREAMBLE_BYTES)[128:] != b"DICM":
            return ""
        with file.opened("") as stream:
            tags = ["SeriesInstanceUID"]
            header = dcmread(stream, stop_before_pixels=True, specific_tags=tags)
        return str(header.get("SeriesInstanceUID") or "")
    except Exception:  # a damaged header fails in many ways; its own case tells
        return ""
