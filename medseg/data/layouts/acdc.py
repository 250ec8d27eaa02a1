"""ACDC cardiac cine MR as it is downloaded: one folder a patient, two labelled frames each.

``patientNNN/Info.cfg`` says which frames are end-diastole and end-systole; the images are
``patientNNN_frameFF.nii.gz`` with the label maps ``..._gt.nii.gz``. The official test part lies in
``testing`` beside ``training`` and is then held out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from medseg.data.case import Case
from medseg.data.layouts.listing import Listing, Problem, case_problem
from medseg.data.schemes import SCHEMES, find_scheme
from medseg.errors import MedsegError

__all__ = ["is_acdc", "list_acdc", "read_frames"]

_PATIENT = re.compile(r"patient\d{3}")
_SUFFIXES = (".nii.gz", ".nii")


def is_acdc(root: Path) -> bool:
    """Whether the folder, or its ``training``, holds patients' folders with ``Info.cfg``."""
    return any((folder / "Info.cfg").is_file() for folder, _ in _patients(root))


def list_acdc(root: Path, scheme: str | None = None) -> Listing:
    """List end-diastole and end-systole of every patient.

    Args:
        root: The folder with the patients, or the one above ``training`` and ``testing``.
        scheme: Name of another scheme for the same values; None takes ``acdc``.

    Raises:
        ConfigError: ``scheme-unknown``.
    """
    wanted = find_scheme(scheme or "acdc")
    cases: list[Case] = []
    problems: list[Problem] = []
    held_out: list[str] = []
    for folder, is_test in _patients(root):
        found, missing = _frames(folder)
        cases += found
        problems += missing
        if is_test:
            held_out += [case.id for case in found]
    return Listing(
        layout="acdc",
        name="ACDC",
        licence="for research; see the challenge's terms",
        channels=("cine MR",),
        scheme=wanted,
        is_named=wanted.name in SCHEMES,
        cases=tuple(sorted(cases, key=lambda case: case.id)),
        problems=tuple(problems),
        parts={"test": tuple(held_out)} if held_out and len(held_out) < len(cases) else {},
    )


def read_frames(path: Path) -> dict[str, int]:
    """The numbers of end-diastole and end-systole in ``Info.cfg``.

    Raises:
        MedsegError: ``acdc-info`` if the file is missing or does not say them.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    frames = {name: re.search(rf"^\s*{name}\s*:\s*(\d+)\s*$", text, re.M) for name in ("ED", "ES")}
    numbers = {name: int(match[1]) for name, match in frames.items() if match}
    if len(numbers) < 2:
        raise _info_problem(path.parent.name).error
    return numbers


def _info_problem(patient: str) -> Problem:
    return case_problem(
        patient,
        expected="an Info.cfg with the lines ED: and ES:",
        found="none, or one without them",
        remedy="restore the patient's Info.cfg from the download",
        code="acdc-info",
    )


def _patients(root: Path) -> Iterator[tuple[Path, bool]]:
    """Patients' folders in order of name, and whether they are of the official test part."""
    for within in ("", "training", "testing"):
        folder = root / within
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_dir() and _PATIENT.fullmatch(path.name):
                    yield path, within == "testing"


def _frames(folder: Path) -> tuple[list[Case], list[Problem]]:
    try:
        numbers = read_frames(folder / "Info.cfg")
    except MedsegError as error:
        return [], [Problem(folder.name, error)]
    cases, problems = [], []
    for phase, number in numbers.items():
        name = f"{folder.name}_frame{number:02d}"
        image, label = (_existing(folder, stem) for stem in (name, f"{name}_gt"))
        if image is None or label is None:
            problems.append(
                case_problem(
                    name,
                    expected=f"the {phase} frame and its label map ending in _gt",
                    found="no image" if image is None else "no label map",
                    remedy="complete the patient's folder or take it out",
                    code="modality-missing" if image is None else "label-missing",
                )
            )
        else:
            cases.append(Case(name, (image,), label, patient=folder.name))
    return cases, problems


def _existing(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
