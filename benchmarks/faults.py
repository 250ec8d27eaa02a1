"""A batch run is killed at random moments and goes on: are the results those of one left alone?

Each trial starts the command on the same studies, kills its process (SIGKILL) at a random moment
(within the time that one case takes, after a random number of cases), and gives the same command
again. A run that ended before it was to be killed does not count. Then every file of every case
must equal that of a run nobody disturbed, byte for byte; of a DICOM SEG all elements but dates and
times, of a report all but seconds and memory.

First the command is given once for good studies and broken ones of every kind
(:mod:`benchmarks.broken_studies`): each must end with its one reason code, and all good ones must
be done. A few of the broken ones are among the studies of the runs that are killed too. The script
prints kind, code and sentence of each and fails if anything differs. Folders given with ``--also``
are taken along: of their cases each must be done, or have one code that is no accident.

The command runs in forked copies of one process that has loaded all libraries, so that kills meet
work and not the loading.

    python -m benchmarks.faults [--kills 30] [--cases 6] [--jobs 2] [--seed 0]
        [--also FOLDER ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.batch import EXTENT, write_studies, write_tiny_model
from benchmarks.broken_studies import BROKEN, Broken, write_broken
from medseg.core import Grid, Volume
from medseg.io.dicom_export import write_dicom_series

__all__ = ["differences", "main", "run_trials"]

_TIMES = re.compile(r"(Creation|Content|Series|Contribution)(Date|Time|DateTime)$")
_OF_THE_RUN = re.compile(r"(ledger\.sqlite.*|index.*\.html|cohort.*\.csv)")
_TRIES = 3
"""Runs at most for every one that is to be killed."""
_ACCIDENTS = ("unexpected", "worker-died", "out-of-memory")
_FEW = BROKEN[::8]
"""Broken studies of the runs that are killed."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _voxels() -> npt.NDArray[np.float32]:
    shape = (EXTENT, EXTENT, EXTENT)
    return np.random.default_rng(99).normal(100, 20, shape).astype(np.float32)


def run_trials(
    folder: Path, *, kills: int, cases: int, jobs: int, seed: int, also: Sequence[Path] = ()
) -> dict[str, Any]:
    """Run undisturbed once, then killed and continued, and compare.

    Returns:
        What happened: ``trials`` (one mapping each), ``undisturbed_seconds``, ``broken`` (kind,
        code and sentence of each), ``compared`` (how files of every trial were compared, and how
        many of each kind).

    Raises:
        RuntimeError: If a result differs, a case has another state or code than it should, or most
            runs end before they are killed.
    """
    _load_libraries()
    model = write_tiny_model(folder / "model")
    options = ["--precision", "fp32", "--device", "cpu", "--threads", "1", "--names", "input"]
    options += ["--preview", "--jobs", str(jobs)]
    own = ["-m", str(model), *options]
    series = Volume(_voxels()[None], Grid((EXTENT,) * 3, _LPS))
    for data, kinds in ((folder / "all", BROKEN), (folder / "data", _FEW)):
        write_studies(data, cases)
        write_dicom_series(series, data / "series", modality="MR")
        write_broken(data, kinds)
    _finish([str(folder / "all"), *own], folder / "told")
    broken = _check_states(folder / "told", cases, BROKEN)
    strangers = _strangers([*map(str, also), *options], folder) if also else {}
    words = [str(folder / "data"), *own]
    whole = folder / "undisturbed"
    clock = time.perf_counter()
    _finish(words, whole)
    took = time.perf_counter() - clock
    few = _check_states(whole, cases, _FEW)
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    trials: list[dict[str, Any]] = []
    for number in itertools.count():
        killed = sum(trial["killed"] for trial in trials)
        if killed == kills:
            break
        if number >= _TRIES * kills:
            raise RuntimeError(f"only {killed} of {number} runs were killed before they ended")
        out = folder / f"trial{number}"
        after = chance.randrange(cases + 1)
        moment = chance.uniform(0, took / (cases + 1))
        was_killed = _kill(words, out, after, moment)
        done = sum(1 for _ in out.glob("*_report.json")) if out.exists() else 0
        left = sum(1 for path in out.iterdir() if ".tmp" in path.name) if out.exists() else 0
        _finish(words, out)
        found = differences(whole, out)
        if found or _check_states(out, cases, _FEW) != few:
            raise RuntimeError(f"killed with {done} cases done, results differ: {found[:5]}")
        trials.append({"killed": was_killed, "done": done, "half_written": left})
    compared = Counter(_way(path) for path in whole.iterdir() if _way(path) is not None)
    return {
        "trials": trials,
        "undisturbed_seconds": took,
        "broken": broken,
        "also": strangers,
        "compared": dict(compared),
    }


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that only one of two output folders has, or that differ where they may not."""
    names = [
        {path.name for path in folder.iterdir() if not _OF_THE_RUN.fullmatch(path.name)}
        for folder in (one, other)
    ]
    differing = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        if _comparable(one / name) != _comparable(other / name):
            differing.append(name)
    if _cohort(one) != _cohort(other):
        differing.append("cohort.csv")
    return differing


def _way(path: Path) -> str | None:
    """How a result is compared; None if it is not one of a case."""
    if _OF_THE_RUN.fullmatch(path.name):
        return None
    if path.name.endswith("_report.json"):
        return "all but seconds and memory"
    return "all but dates and times" if path.suffix == ".dcm" else "byte for byte"


def _comparable(path: Path) -> Any:  # noqa: ANN401 - only compared
    if path.is_dir():
        return {one.name: _comparable(one) for one in path.iterdir()}
    content = path.read_bytes()
    if path.name.endswith("_report.json"):
        report = json.loads(content)
        for name in ("seconds", "memory"):
            del report[name]
        # the SEG carries times, so its hash differs; it is compared itself
        report["files"].pop("dicom_seg", None)
        return report
    if path.suffix == ".dcm":
        return _without_times(content)
    return content


def _without_times(content: bytes) -> Any:  # noqa: ANN401 - only compared
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.datadict import keyword_for_tag  # noqa: PLC0415

    def plain(elements: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for tag, element in elements.items():
            if _TIMES.search(keyword_for_tag(tag) or ""):
                continue
            items = element.get("Value", []) if element["vr"] == "SQ" else None
            kept[tag] = element if items is None else [plain(item) for item in items]
        return kept

    dataset = dcmread(io.BytesIO(content))
    return plain(dataset.to_json_dict()), plain(dataset.file_meta.to_json_dict())


def _cohort(folder: Path) -> list[dict[str, str]]:
    with (folder / "cohort.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        del row["seconds"], row["attempts"]
    return rows


def _check_states(out: Path, cases: int, kinds: Sequence[Broken]) -> list[dict[str, str]]:
    """Kind, code and sentence of every broken study, if all cases ended as they must."""
    rows = {row["case"]: row for row in _cohort(out)}
    table = []
    for broken in kinds:
        row = rows.get(broken.case, {"state": "not a case", "code": "", "message": ""})
        table.append(
            {
                "kind": broken.kind,
                "expected": broken.code,
                "state": row["state"],
                "code": row["code"],
                "sentence": row["message"],
            }
        )
    wrong = [row for row in table if (row["state"], row["code"]) != ("failed", row["expected"])]
    if wrong:
        raise RuntimeError(f"broken studies that did not end as they must: {wrong}")
    left = [name for name in _good(cases) if rows.get(name, {}).get("state") != "done"]
    if left:
        raise RuntimeError(f"good cases that are not done: {left}")
    accidents = _accidents(rows.values())
    if accidents or len(rows) != len(kinds) + cases + 1:
        raise RuntimeError(f"{len(rows)} cases, of which ended by accident: {accidents}")
    return table


def _accidents(rows: Iterable[dict[str, str]]) -> list[str]:
    return [
        row["case"]
        for row in rows
        if row["state"] not in ("done", "incomplete", "failed") or row["code"] in _ACCIDENTS
    ]


def _good(cases: int) -> list[str]:
    return [*(f"study{number:05d}" for number in range(cases)), "series"]


def _strangers(words: Sequence[str], folder: Path) -> dict[str, int]:
    """Run the cases that are taken along."""
    # they are of any size: fewer windows of coarser voxels
    model = write_tiny_model(folder / "coarse", spacing_mm=3.0, window_ijk=(16, 16, 8))
    _finish([*words, "-m", str(model)], folder / "also", codes=(0, 1))
    return _ended(folder / "also")


def _ended(out: Path) -> dict[str, int]:
    """How many of the cases that were taken along ended how."""
    rows = _cohort(out)
    if accidents := _accidents(rows):
        raise RuntimeError(f"cases taken along that ended by accident: {accidents}")
    return dict(sorted(Counter(row["code"] or row["state"] for row in rows).items()))


def _load_libraries() -> None:
    import highdicom  # noqa: F401, PLC0415
    import SimpleITK  # noqa: F401, PLC0415
    import torch  # noqa: PLC0415

    import medseg.studies.preview  # noqa: F401, PLC0415
    import pipelines.cli  # noqa: PLC0415
    import pipelines.cohort  # noqa: PLC0415
    import pipelines.share  # noqa: F401, PLC0415

    torch.set_num_threads(1)  # threads do not live on in a fork


def _command(words: Sequence[str], out: Path) -> None:
    """In the forked process: the command, silent."""
    from pipelines.cli import app  # noqa: PLC0415

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 1
    with suppress(SystemExit):
        code = app(["predict", *words, "-o", str(out)], standalone_mode=False) or 0
    os._exit(int(code))


def _start(words: Sequence[str], out: Path) -> Any:  # noqa: ANN401 - a process of multiprocessing
    process = multiprocessing.get_context("fork").Process(target=_command, args=(words, out))
    process.start()
    return process


def _finish(words: Sequence[str], out: Path, codes: Sequence[int] = (1,)) -> None:
    """Run to the end; some cases are broken, unless other exit codes are right too."""
    with closing(_start(words, out)) as process:
        process.join()
        if process.exitcode not in codes:
            raise RuntimeError(f"expected exit code {codes}, found {process.exitcode}")


def _kill(words: Sequence[str], out: Path, cases: int, seconds: float) -> bool:
    with closing(_start(words, out)) as process:
        while process.exitcode is None and len(list(out.glob("*_report.json"))) < cases:
            process.join(0.002)
        process.join(seconds)
        was_alive = process.exitcode is None
        if was_alive:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        return was_alive


def main() -> None:
    """Run the campaign and print what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--also", type=Path, nargs="+", default=[])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from pipelines.tables import print_table  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        try:
            told = run_trials(
                Path(folder),
                kills=arguments.kills,
                cases=arguments.cases,
                jobs=arguments.jobs,
                seed=arguments.seed,
                also=arguments.also,
            )
        except RuntimeError as error:
            print(f"failed: {error}")
            sys.exit(1)
    for trial in told["trials"]:
        print(
            f"{'killed' if trial['killed'] else 'ended before it was killed'} with "
            f"{trial['done']} cases done and {trial['half_written']} files half written: the same "
            "results after going on"
        )
    print_table(
        ["broken study", "code", "sentence"],
        [[row["kind"], row["code"], row["sentence"]] for row in told["broken"]],
    )
    for code, count in told["also"].items():
        print(f"taken along: {count} {code}")
    killed = sum(trial["killed"] for trial in told["trials"])
    ways = ", ".join(f"{count} {way}" for way, count in sorted(told["compared"].items()))
    print(f"files compared in every trial: {ways}")
    print(
        f"{killed} of {len(told['trials'])} runs were killed at work; {arguments.cases + 1} good "
        f"cases done and {len(told['broken'])} broken ones named in every one"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
