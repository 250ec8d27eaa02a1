"""What a prediction would make of images, told before one is begun.

Cases are found as ``medseg predict`` finds them and read by the same functions, so that what is
refused here is refused there, for the same reason and with the same code.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from medseg.cores import usable_cores
from medseg.errors import ConfigError, MedsegError
from medseg.events import Cancelled, Listener
from medseg.io.checks import check_finite
from medseg.io.dicom_files import is_dicomdir, is_study_file
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.label_like import check_is_image
from medseg.io.reading import read_image
from medseg.io.scan import Scan
from medseg.models.card import ModelCard
from medseg.studies.devices import Place, run_on_devices
from medseg.studies.inputs import choose_stacks, modality_notes
from medseg.studies.runner import Outcome, run_cases
from pipelines.discovery import Found, expected_bytes
from pipelines.findings import Finding, finding_of_error, finding_of_note
from pipelines.infer import Picking, check_contrast, read_scan
from pipelines.redaction import without_paths
from pipelines.same_study import same_study

if TYPE_CHECKING:
    from medseg.io.dicom_study import Stack, Study

__all__ = ["Examination", "Verdict", "case_verdicts", "check_there", "with_shared_series"]

_FEW_CASES = 4
"""Cases for which a further process is worth the second that it takes to start."""

_MOST_PROCESSES = 16
_SHARE_OF_MEMORY = 0.25
_HELD = 2
"""How many times its voxels a case takes while it is read."""

_CALLED = {
    "zip": (".zip",),
    "NIfTI": (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"),
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
}


@dataclass(frozen=True, slots=True)
class Examination:
    """How cases are looked at; picklable.

    Args:
        cards: Of the model, or of the members of an ensemble; empty if none was named.
        picking: What is taken of DICOM studies.
        headers: Whether the pixels of DICOM studies are left alone.
        paths: Whether cases are named by their paths.
    """

    cards: tuple[ModelCard, ...] = ()
    picking: Picking = field(default_factory=Picking)
    headers: bool = False
    paths: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one case.

    Args:
        number: Place among the cases, from 1.
        name: What the case is called: image files by their name, DICOM by its number.
        kind: ``DICOM folder``, ``DICOMDIR``, ``zip``, ``NIfTI``, ``NRRD``, ``MetaImage`` or, where
            the ending is none of these, ``file``.
        volumes: Volumes of a DICOM study; None for a file.
        given: Channel of the model to the number of the volume that it would be given.
        shape_ijk: Extents of the image; None where no one image was read.
        spacing_mm: Its spacing.
        findings: Notes and problems.
        series: Hashes of the series of a study, to find those that lie in several cases.
    """

    number: int
    name: str
    kind: str
    volumes: int | None = None
    given: tuple[tuple[str, int], ...] = ()
    shape_ijk: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    findings: tuple[Finding, ...] = ()
    series: frozenset[str] = frozenset()

    @property
    def state(self) -> Literal["ready", "notes", "refused"]:
        """Whether a prediction would refuse it."""
        states = {finding.state for finding in self.findings}
        return "refused" if "problem" in states else "notes" if "note" in states else "ready"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number,
            "case": self.name,
            "kind": self.kind,
            "state": self.state,
            "volumes": self.volumes,
            "given": dict(self.given),
            "shape_ijk": self.shape_ijk,
            "spacing_mm": self.spacing_mm,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check_there(paths: Sequence[Path]) -> None:
    """Refuse a path of nothing.

    Raises:
        ConfigError: ``file-missing``.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(
                str(path),
                expected="a file or folder",
                found="nothing of that name",
                remedy="check the path",
                code="file-missing",
            )


def case_verdicts(
    cases: Sequence[Found], examination: Examination, listener: Listener
) -> Iterator[Verdict]:
    """Look at every case, in several processes where there are many.

    Args:
        cases: As ``find_cases`` found them.
        examination: How they are looked at.
        listener: Told of progress; asked whether to stop.

    Yields:
        One verdict per case, in the order in which they are known.

    Raises:
        Cancelled: If the listener asked to stop.
    """
    numbered = list(enumerate(_beside_each_other(cases, examination), 1))
    listener.started("cases", len(numbered))
    outcomes: Iterator[Outcome[tuple[int, Found], Verdict]]
    processes = _processes_for(cases)
    if processes == 1:
        outcomes = run_cases(numbered, partial(_examine, examination, None))
    else:
        outcomes = run_on_devices(
            numbered,
            ["cpu"] * processes,
            partial(_worker, examination),
            threads=processes,
            listener=_Quiet(listener),
        )
    with contextlib.closing(outcomes):  # type: ignore[type-var]
        for done, outcome in enumerate(outcomes, 1):
            listener.advanced("cases", done)
            yield outcome.result or _failed(examination, outcome)
            if listener.cancelled():
                raise Cancelled


def _beside_each_other(cases: Sequence[Found], examination: Examination) -> list[Found]:
    """The same, each with the other cases of its study."""
    named = [
        (_blank(number, found, examination).name, path)
        for number, found in enumerate(cases, 1)
        for path in found.case.channels.values()
    ]
    together = same_study(named)
    told = []
    for found in cases:
        (path,) = found.case.channels.values()
        told.append(replace(found, case=replace(found.case, beside=together.beside(path))))
    return told


def with_shared_series(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same in the order of cases, with a note where files of one series lie in several.

    Those that are parts of one volume are refused already; what is left are copies, and other
    volumes of the series, each of which would be segmented.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    ordered = sorted(verdicts, key=lambda verdict: verdict.number)
    names = {verdict.number: verdict.name for verdict in ordered}
    for verdict in ordered:
        for series in verdict.series:
            holders[series].append(verdict.number)
    told = []
    for verdict in ordered:
        sharing = {number for series in verdict.series for number in holders[series]}
        others = sorted(sharing - {verdict.number})
        if not others or any(finding.code == "series-split" for finding in verdict.findings):
            told.append(verdict)
            continue
        few = ", ".join(names[number] for number in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        finding = Finding(
            "study",
            "note",
            f"files of one series lie here and in {few}{more}, as copies or as other volumes of "
            "it: each would be segmented",
            "series-shared",
            "remove the copies if one result is enough",
        )
        told.append(replace(verdict, findings=(*verdict.findings, finding)))
    return told


class _Quiet:
    """Passes on the wish to stop and nothing of what workers tell."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def started(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advanced(self, stage: str, done: int) -> None:
        """Ignore it."""

    def measured(self, name: str, value: float) -> None:
        """Ignore it."""

    def noted(self, message: str) -> None:
        """Ignore it."""

    def cancelled(self) -> bool:
        """Ask the listener."""
        return self._listener.cancelled()


def _processes_for(cases: Sequence[Found]) -> int:
    """As many as the cores, the cases and the memory are good for."""
    most = min(usable_cores(), len(cases) // _FEW_CASES, _MOST_PROCESSES)
    if most < 2:
        return 1
    largest = _HELD * max(expected_bytes(found.case) for found in cases)
    room = _SHARE_OF_MEMORY * psutil.virtual_memory().available
    return max(1, min(most, int(room / max(1, largest))))


class _Worker:
    def __init__(self, examination: Examination, place: Place) -> None:
        self._examination = examination
        self._threads = place.threads

    def __call__(self, case: tuple[int, Found], _listener: Listener, /) -> Verdict:
        return _examine(self._examination, self._threads, case)


def _worker(examination: Examination, place: Place) -> _Worker:
    return _Worker(examination, place)


def _examine(examination: Examination, threads: int | None, case: tuple[int, Found]) -> Verdict:
    number, found = case
    (path,) = found.case.channels.values()
    blank = _blank(number, found, examination)
    with quiet_dicom():
        if path.is_dir() or is_study_file(path):
            verdict = _study(blank, found, examination, threads)
        else:
            verdict = _file(blank, found, examination)
    return _shown(verdict, found, examination)


def _blank(number: int, found: Found, examination: Examination) -> Verdict:
    (path,) = found.case.channels.values()
    if path.is_dir():
        kind = "DICOM folder"
    elif is_dicomdir(path):
        kind = "DICOMDIR"
    else:
        name = path.name.lower()
        kind = next((kind for kind, ends in _CALLED.items() if name.endswith(ends)), "file")
    name = found.names[0] if found.names else f"study {number}"
    return Verdict(number, str(path) if examination.paths else name, kind)


def _shown(verdict: Verdict, found: Found, examination: Examination) -> Verdict:
    """Without what texts may say of the paths."""
    if examination.paths:
        return verdict
    channels = found.case.channels
    findings = tuple(
        replace(finding, text=without_paths(finding.text, verdict.name, channels))
        for finding in verdict.findings
    )
    return replace(verdict, findings=findings)


def _failed(examination: Examination, outcome: Outcome[tuple[int, Found], Verdict]) -> Verdict:
    """A case at which the process died, or with an error that nobody thought of."""
    number, found = outcome.case
    blank = _blank(number, found, examination)
    remedy = "try it by itself; if it fails again, leave it out and report it"
    finding = Finding(
        "image", "problem", outcome.message or "", outcome.code or "unexpected", remedy
    )
    return _shown(replace(blank, findings=(finding,)), found, examination)


# Files


def _file(blank: Verdict, found: Found, examination: Examination) -> Verdict:
    (path,) = found.case.channels.values()
    try:
        if examination.cards:
            scan = read_scan(found.case, examination.cards[0], examination.picking)
        else:
            scan = read_image(path)
            check_contrast(found.case, scan)
        told = [*_notes(scan.notes), *_fit(scan, examination)]
    except MedsegError as error:
        return replace(blank, findings=(finding_of_error("image", error),))
    return replace(_with_grid(blank, scan), findings=tuple(told))


def _with_grid(blank: Verdict, scan: Scan) -> Verdict:
    grid = scan.volume.grid
    return replace(blank, shape_ijk=grid.shape_ijk, spacing_mm=grid.spacing_mm)


def _notes(notes: Sequence[str], topic: str = "image") -> list[Finding]:
    found = (finding_of_note(topic, note) for note in notes)
    return [finding for finding in found if finding is not None]


def _fit(scan: Scan, examination: Examination) -> list[Finding]:
    """What the models say to an image.

    Raises:
        MedsegError: If it does not fit.
    """
    if not examination.cards:
        return []
    from medseg.data.preparation import check_image  # noqa: PLC0415 - loads torch

    notes = list(modality_notes(scan, examination.cards[0]))
    for card in examination.cards:
        notes += check_image(scan.volume, card.inputs)
    return _notes(tuple(dict.fromkeys(notes)))


# Studies


def _study(blank: Verdict, found: Found, examination: Examination, threads: int | None) -> Verdict:
    from medseg.io.dicom_study import read_study  # noqa: PLC0415 - pulls in pydicom

    (path,) = found.case.channels.values()
    gaps = examination.picking.allow_gaps
    try:
        study = read_study(path, allow_gaps=gaps, threads=threads)
    except MedsegError as error:
        return replace(blank, findings=(finding_of_error("study", error),))
    series = frozenset(hashlib.sha256(uid.encode()).hexdigest() for uid in study.series if uid)
    verdict = replace(blank, volumes=len(study.stacks), series=series)
    unreadable = tuple(finding_of_error("study", error) for error in study.unreadable)
    if unreadable:
        return replace(verdict, findings=unreadable)
    several = _several(study)
    if examination.cards:
        return _given(replace(verdict, findings=several), study, found, examination, threads)
    return _any_of(replace(verdict, findings=several), study, found, examination, threads)


def _several(study: Study) -> tuple[Finding, ...]:
    studies = len({stack.study_uid for stack in study.stacks})
    if studies < 2:
        return ()
    text = f"{studies} studies lie here, and are taken for one"
    remedy = "give the folder of each study by itself"
    return (Finding("study", "note", text, "studies-several", remedy),)


def _given(
    verdict: Verdict, study: Study, found: Found, examination: Examination, threads: int | None
) -> Verdict:
    """What the model would be given, and why not."""
    findings = list(verdict.findings)
    card, picking = examination.cards[0], examination.picking
    chosen: dict[str, Stack] = {}
    try:
        chosen = choose_stacks(study, card, series=dict(picking.series), beside=found.case.beside)
        verdict = _with_stack(verdict, chosen)
        if examination.headers:
            findings += _headers_alone(study, chosen, examination)
        else:
            scan = read_scan(found.case, card, picking, study=study, threads=threads)
            findings += [*_notes(scan.notes), *_fit(scan, examination)]
    except MedsegError as error:
        findings.append(finding_of_error("study", error))
    taken = {stack.number for stack in chosen.values()}
    told = {finding.code for finding in findings if finding.state == "problem"}
    for stack in study.stacks:
        problem = stack.problem
        if problem is not None and stack.number not in taken and problem.code not in told:
            findings.append(finding_of_error(f"volume {stack.number}", problem, "note"))
    return replace(verdict, findings=tuple(findings))


def _with_stack(verdict: Verdict, chosen: dict[str, Stack]) -> Verdict:
    given = tuple((name, stack.number) for name, stack in chosen.items())
    grid = next(iter(chosen.values())).grid
    if grid is None:
        return replace(verdict, given=given)
    return replace(verdict, given=given, shape_ijk=grid.shape_ijk, spacing_mm=grid.spacing_mm)


def _headers_alone(
    study: Study, chosen: dict[str, Stack], examination: Examination
) -> list[Finding]:
    from medseg.data.preparation import check_grid  # noqa: PLC0415 - loads torch
    from medseg.io.dicom_series import check_stack  # noqa: PLC0415 - pulls in pydicom

    notes = [note for stack in chosen.values() for note in check_stack(stack, study)]
    grid = next(iter(chosen.values())).grid
    for card in examination.cards:
        if grid is not None:
            notes += check_grid(grid, card.inputs)
    return _notes(tuple(dict.fromkeys(notes)))


def _any_of(
    verdict: Verdict, study: Study, found: Found, examination: Examination, threads: int | None
) -> Verdict:
    """Every volume of a study, since any may be what a model wants; one must be whole."""
    findings: list[Finding] = []
    whole: list[Stack] = []
    for stack in study.stacks:
        topic = f"volume {stack.number}" if len(study.stacks) > 1 else "image"
        try:
            notes = _look_at(stack, study, found, examination, threads)
        except MedsegError as error:
            findings.append(finding_of_error(topic, error, "note"))
        else:
            whole.append(stack)
            findings += _notes(notes, topic)
    if not whole:
        findings = [replace(finding, state="problem") for finding in findings]
    elif len(study.stacks) == 1:
        verdict = replace(_with_stack(verdict, {"": whole[0]}), given=())
    else:
        text = f"{len(study.stacks)} volumes, of which {len(whole)} can be read"
        remedy = "see with -m MODEL which one a model would be given, or choose with --series"
        findings.insert(0, Finding("study", "note", text, "series-ambiguous", remedy))
    return replace(verdict, findings=(*verdict.findings, *findings))


def _look_at(
    stack: Stack, study: Study, found: Found, examination: Examination, threads: int | None
) -> tuple[str, ...]:
    from medseg.io.dicom_parts import check_whole  # noqa: PLC0415 - pulls in pydicom
    from medseg.io.dicom_series import check_stack, read_stack  # noqa: PLC0415

    if stack.problem is None or not study.unreadable:
        check_whole([stack], study, found.case.beside)
    if examination.headers:
        return check_stack(stack, study)
    scan = read_stack(stack, study, threads=threads)
    check_finite(scan.volume.data_cijk, str(study.path))
    check_is_image(scan.volume, str(study.path))
    check_contrast(found.case, scan)
    return scan.notes
