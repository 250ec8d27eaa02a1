"""Results that lie in the output folder although the ledger does not know them.

A ledger may be lost: deleted, damaged, left behind on another disk. The report of every case keeps
the fingerprint of the image, the hash of models and options, and the SHA-256 of every other file of
the case. If all of them are as they were, the case is proven and need not be done again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medseg.studies.doubt import DOUBT_DETAIL, doubt_of_report
from medseg.studies.ledger_rows import Ending, Output
from pipelines.result_names import RESULTS, earlier_results, result_name

__all__ = ["file_sha256", "find_reports", "has_reports", "proven_ending"]

_NAMED_BY_IDENTIFIER = re.compile(r"case-[0-9a-f]{12,}")
_REPORT = RESULTS["report"]


def proven_ending(
    name: str, out: Path, *, fingerprint: str, settings: str, stamp: str
) -> Ending | str:
    """How a case ended whose results are there, told by its report.

    Args:
        name: Stem of the results.
        out: Their folder.
        fingerprint: Of the image as it is now.
        settings: Hash of models and options as they are now.
        stamp: Sizes and times of the image's files.

    Returns:
        The ending; or, in words that follow "one that", why the results do not prove it.
    """
    path = out / f"{name}{_REPORT}"
    report = _read(path)
    if report is None:
        return "has no report that can be read"
    outputs = _unchanged(name, out, report.get("files"))
    why = _unfit(report, fingerprint, settings)
    if why or outputs is None:
        return why or "was changed after it was made"
    outputs.append(Output("report", path.name, path.stat().st_size, file_sha256(path)))
    if {one.name for one in earlier_results(name, out)} != {one.name for one in outputs}:
        return "lies beside files that its report does not name"
    stages = _numbers(report.get("seconds"))
    notes = report.get("notes")
    doubt = doubt_of_report(report)
    return Ending(
        "done",
        sum(stages.values()),
        stamp=stamp,
        fingerprint=fingerprint,
        outputs=outputs,
        volumes_ml=_numbers(report.get("volumes_ml")),
        details={
            "notes": [*(notes if isinstance(notes, list) else ()), "taken over by its report"],
            "stages": stages,
            **({} if doubt is None else {DOUBT_DETAIL: doubt.to_dict()}),
        },
    )


def _unfit(report: Mapping[str, Any], fingerprint: str, settings: str) -> str | None:
    """Why a report is not of this image and these settings; None if it is."""
    proof = report.get("proof")
    if not isinstance(proof, Mapping):
        return "has a report without proof, of another release or of a single case"
    if proof.get("input_sha256") != fingerprint:
        return "is of another image"
    if proof.get("settings_sha256") != settings:
        return "was made with other models, options or another release"
    return "lacks a result that was refused" if report.get("refused") else None


def _unchanged(name: str, out: Path, files: object) -> list[Output] | None:
    """The files that a report names, if they are all as it has them."""
    outputs: list[Output] = []
    for kind, entry in files.items() if isinstance(files, Mapping) else ():
        file = result_name(name, kind)
        recorded = entry.get("sha256") if isinstance(entry, Mapping) else None
        if file is None or not (path := out / file).is_file() or file_sha256(path) != recorded:
            return None
        outputs.append(Output(kind, path.name, path.stat().st_size, recorded))
    return outputs or None


def find_reports(out: Path, known: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Fingerprint of an image to names of results, of those that are called by an identifier.

    The identifiers of a new ledger are others, so that such results are found by their image alone.

    Args:
        out: Folder of the results.
        known: Names that the ledger knows, which are passed over.
    """
    found: dict[str, tuple[str, ...]] = {}
    with suppress(OSError):
        for path in sorted(out.glob(f"case-*{_REPORT}")):
            name = path.name.removesuffix(_REPORT)
            if name in known or not _NAMED_BY_IDENTIFIER.fullmatch(name):
                continue
            proof = (_read(path) or {}).get("proof")
            image = proof.get("input_sha256") if isinstance(proof, Mapping) else None
            if isinstance(image, str):
                found[image] = (*found.get(image, ()), name)
    return found


def has_reports(out: Path) -> bool:
    """Whether results of some case lie in a folder."""
    try:
        return next(out.glob(f"*{_REPORT}"), None) is not None
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _numbers(content: object) -> dict[str, float]:
    if not isinstance(content, Mapping):
        return {}
    return {
        str(name): float(value) for name, value in content.items() if isinstance(value, int | float)
    }
