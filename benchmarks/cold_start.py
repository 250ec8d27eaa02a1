"""How long a user waits before the first window of a tiny case, and for what.

``medseg predict`` segments a shipped sample with a shipped model in a process of its own; the clock
starts before the process does and is read when the command line's own progress tells of the first
window. Beside it, in turns, runs ``python -c "import monai"``, which tools built on MONAI begin
with. The first run of all, with empty caches, is told apart from later ones: it compiles kernels
and measures which precision is fastest.

Where the seconds go is told by ``python -X importtime``, run once and summed over packages; noting
every import makes that run slower than the others.

    python -m benchmarks.cold_start [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# only the standard library above: this file is imported by the process that is measured

MODEL = "reversible_hippocampus"
SAMPLE = Path("medseg/resources/samples/hippocampus/images/hippocampus_034.nii.gz")
SMALLEST_S = 0.05
"""Packages that take less are not listed."""

STAGES = ("interpreter", "command line", "prepared", "first window", "end")
"""Marks of a run: Python answers; arguments can be read; the first window begins; it is done; all
is written."""

_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)$")


@dataclass(frozen=True)
class Run:
    """Seconds from the start of the process to each mark, and the stages that its report tells."""

    marks: Mapping[str, float]
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Share:
    """Seconds that the modules of one package took to import, without what they import in turn."""

    package: str
    seconds: float
    modules: int


def segment(words: Sequence[str], marks_file: Path) -> None:
    """Be ``medseg`` and keep the marks; runs in the measured process.

    The command line's listener is told of windows as ever, and notes the time on the way.
    """
    marks = {"interpreter": time.monotonic()}
    from pipelines import cli  # noqa: PLC0415 - time is running
    from pipelines.progress import ConsoleListener  # noqa: PLC0415 - as above

    begin, go_on = ConsoleListener.started, ConsoleListener.advanced

    def started(listener: ConsoleListener, stage: str, total: int) -> None:
        if stage == "windows":
            marks.setdefault("prepared", time.monotonic())
        begin(listener, stage, total)

    def advanced(listener: ConsoleListener, stage: str, done: int) -> None:
        if stage == "windows":
            marks.setdefault("first window", time.monotonic())
        go_on(listener, stage, done)

    for name, method in (("started", started), ("advanced", advanced)):
        setattr(ConsoleListener, name, method)
    marks["command line"] = time.monotonic()
    try:
        sys.argv = ["medseg", *words]
        cli.main()
    finally:
        marks["end"] = time.monotonic()
        marks_file.write_text(json.dumps(marks))


def run_once(cache: Path, *options: str) -> tuple[Run, str]:
    """One process from its start to its end.

    Args:
        cache: Folder for what is kept between runs.
        options: For the interpreter.

    Returns:
        What was measured, and what the process wrote to stderr.

    Raises:
        RuntimeError: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, marks_file = Path(folder) / "out", Path(folder) / "marks.json"
        words = [sys.executable, *options, "-m", "benchmarks.cold_start", str(marks_file)]
        words += ["predict", "--model", MODEL, "--out", str(out), "--device", "cpu", str(SAMPLE)]
        places = {"XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": str(cache / "numba")}
        began = time.monotonic()
        done = subprocess.run(
            words, env={**os.environ, **places}, capture_output=True, text=True, check=False
        )
        if done.returncode or not marks_file.exists():
            raise RuntimeError(f"medseg predict failed: {done.stderr.strip()[-2000:]}")
        marks = json.loads(marks_file.read_text())
        (report,) = out.glob("*_report.json")
        stages = json.loads(report.read_text())["seconds"]
    return Run({name: marks[name] - began for name in STAGES}, stages), done.stderr


def import_monai() -> float:
    """Seconds that a process takes which imports MONAI and ends."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import monai"], check=True, capture_output=True)
    return time.monotonic() - began


def shares(text: str) -> list[Share]:
    """Sum the lines of ``-X importtime`` over top-level packages, the slowest first."""
    seconds: dict[str, float] = defaultdict(float)
    modules: dict[str, int] = defaultdict(int)
    for line in text.splitlines():
        found = _IMPORT.match(line)
        if found:
            package = found[4].partition(".")[0]
            seconds[package] += int(found[1]) / 1e6
            modules[package] += 1
    listed = [Share(package, spent, modules[package]) for package, spent in seconds.items()]
    return sorted(listed, key=lambda share: -share.seconds)


def median(runs: Sequence[Run], mark: str) -> float:
    """Of the seconds from the start to a mark."""
    return statistics.median(run.marks[mark] for run in runs)


def print_figures(first: Run, later: Sequence[Run], monai_s: Sequence[float]) -> None:
    """A line per mark, then the ratio."""
    from pipelines.tables import print_table  # noqa: PLC0415 - see the top of this file

    words = {
        "interpreter": "Python answers",
        "command line": "the command line is read",
        "prepared": "model loaded, case read and planned; the first window begins",
        "first window": "the first window is done",
        "end": "labels, statistics and report are written and read back",
    }
    print_table(
        ["seconds after the start", "first run of all", "later, median", "least"],
        [
            [
                text,
                f"{first.marks[mark]:.2f}",
                f"{median(later, mark):.2f}",
                f"{min(run.marks[mark] for run in later):.2f}",
            ]
            for mark, text in words.items()
        ],
    )
    names = list(first.stages)
    print_table(
        ["stage in the report", "first run of all", "later, median"],
        [
            [
                name,
                f"{first.stages[name]:.2f}",
                f"{statistics.median(run.stages[name] for run in later):.2f}",
            ]
            for name in names
        ],
    )
    ours, theirs = median(later, "prepared"), statistics.median(monai_s)
    print(
        f"import monai alone: {theirs:.2f} s (least {min(monai_s):.2f}); medseg's first window "
        f"begins after {ours:.2f} s, {ours / theirs:.2f} times that"
    )


def print_shares(listed: Sequence[Share]) -> None:
    """The packages that take the longest to import."""
    from pipelines.tables import print_table  # noqa: PLC0415 - see the top of this file

    total = sum(share.seconds for share in listed)
    print_table(
        ["imported", "s", "modules", "share"],
        [
            [
                share.package,
                f"{share.seconds:.2f}",
                str(share.modules),
                f"{share.seconds / total:.0%}",
            ]
            for share in listed
            if share.seconds >= SMALLEST_S
        ]
        + [["all", f"{total:.2f}", str(sum(share.modules for share in listed)), "100%"]],
    )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="later runs, and imports of MONAI")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        first, _ = run_once(cache)
        later, monai_s = [], []
        for _ in range(arguments.repeats):
            later.append(run_once(cache)[0])
            monai_s.append(import_monai())
        listed = shares(run_once(cache, "-X", "importtime")[1])
    if any(share.package == "monai" for share in listed):
        sys.exit("medseg predict imports MONAI")
    print_figures(first, later, monai_s)
    print_shares(listed)
    if arguments.json:
        content = {
            "first": asdict(first),
            "later": [asdict(run) for run in later],
            "monai_s": monai_s,
            "imports": [asdict(share) for share in listed],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    # the measured process gets a file for its marks, then the words of medseg
    if len(sys.argv) > 2 and sys.argv[2] == "predict":
        segment(sys.argv[2:], Path(sys.argv[1]))
    else:
        main()
