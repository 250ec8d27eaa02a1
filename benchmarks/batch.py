"""Many small studies: one batch run, and the one-case command called in a loop.

Studies are made NIfTI files of 32 x 32 x 32 voxels, the network is untrained and tiny: what is
measured is all but the network. Told are cases per minute of the whole command, from its start to
its end; the seconds per case that the network does not take, after the models are loaded; and the
share of that time that the network does take. The loop starts the command once per case, on some of
the cases; its labels must be those of the batch. The script fails if the seconds per case that the
network does not take reach a limit.

    python -m benchmarks.batch [--cases 200] [--loop 5] [--jobs 1] [--limit 0.3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medseg.core import Grid, Volume
from medseg.io.nifti import write_nifti_volume
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_file import LEDGER_NAME

__all__ = ["Figures", "main", "measure", "write_studies", "write_tiny_model"]

EXTENT = 32


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Args:
        cases: Studies of the batch run.
        batch_seconds: Of the whole command.
        batch_cases_per_minute: The same as a rate.
        work_seconds: From the first case that was begun to the end of the last.
        inference_share: Share of those that the network takes.
        overhead_seconds: Per case, what the network does not take of them.
        again_seconds: Of the whole command once more, when all is done: every hash is looked at.
        loop_cases: Studies that the one-case command was called for.
        loop_cases_per_minute: Its rate.
        times_faster: Rate of the batch by that of the loop.
    """

    cases: int
    batch_seconds: float
    batch_cases_per_minute: float
    work_seconds: float
    inference_share: float
    overhead_seconds: float
    again_seconds: float
    loop_cases: int
    loop_cases_per_minute: float
    times_faster: float


def write_tiny_model(
    folder: Path,
    spacing_mm: float = 1.0,
    window_ijk: tuple[int, int, int] = (EXTENT // 2, EXTENT // 2, EXTENT // 2),
) -> Path:
    """A model folder with untrained weights, the same every time."""
    import torch  # noqa: PLC0415 - the command that is measured loads it in a process of its own

    from medseg.models.card import ModelDescription  # noqa: PLC0415
    from medseg.models.folder import save_model  # noqa: PLC0415
    from medseg.models.table import build_volume_network  # noqa: PLC0415

    network = {"out_channels": 3, "widths": [4, 8], "expansion": 2, "norm_groups": 2}
    training: dict[str, object] = dict.fromkeys(
        ("dataset", "dataset_licence", "config_sha256", "medseg_version", "torch_version"), "none"
    )
    training |= dict.fromkeys(
        ("training_cases", "validation_cases", "steps", "epochs", "seconds", "seed"), 0
    )
    description = ModelDescription.model_validate(
        {
            "name": "tiny",
            "version": "1",
            "description": "Untrained, for a benchmark.",
            "network": {"name": "revunet", "settings": network},
            "inputs": {
                "channels": [{"name": "T1", "modality": "MR"}],
                "spacing_mm": [spacing_mm] * 3,
                "window_ijk": list(window_ijk),
            },
            "labels": {
                "name": "made",
                "labels": [
                    {"value": 1, "name": "near", "rgb": [200, 30, 30]},
                    {"value": 2, "name": "far", "rgb": [30, 200, 30]},
                ],
            },
            "training": {**training, "monai_version": "none", "finished": True},
            "licence": "CC0-1.0",
        }
    )
    torch.manual_seed(3)
    save_model(folder, build_volume_network(description.network, description.inputs), description)
    return folder


def write_studies(folder: Path, count: int) -> None:
    """Made images, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random = np.random.default_rng(number)
        data = random.normal(100, 20, (1, EXTENT, EXTENT, EXTENT)).astype(np.int16)
        grid = Grid((EXTENT, EXTENT, EXTENT), np.eye(4))
        write_nifti_volume(Volume(data, grid), folder / f"study{number:05d}.nii.gz")


def measure(cases: int, loop: int, jobs: int, folder: Path) -> Figures:
    """Run both sides in a folder.

    Raises:
        RuntimeError: If a command fails, or labels of the two sides differ.
    """
    data, model = folder / "data", write_tiny_model(folder / "model")
    write_studies(data, cases)
    batch = folder / "batch"
    options = ("-m", str(model), "--precision", "fp32", "--device", "cpu", "--threads", "1")
    words = (str(data), *options, "-o", str(batch), "--jobs", str(jobs))
    batch_seconds = _command(words)
    with Ledger.open(batch / LEDGER_NAME, read_only=True) as ledger:
        rows = list(ledger.rows())
    ends = [(row.ended or 0.0, row.seconds or 0.0) for row in rows]
    work_seconds = max(end for end, _ in ends) - min(end - took for end, took in ends)
    network = sum(row.details["stages"]["network"] for row in rows)
    again_seconds = _command(words)
    looped = sorted(data.iterdir())[:loop]
    loop_seconds = sum(
        _command((str(path), *options, "-o", str(folder / "loop"))) for path in looped
    )
    for path in looped:
        name = f"{path.name.removesuffix('.nii.gz')}_dseg.nii.gz"
        if (folder / "loop" / name).read_bytes() != (batch / name).read_bytes():
            raise RuntimeError(f"labels of {name} differ between batch and loop")
    rate = 60 * cases / batch_seconds
    loop_rate = 60 * len(looped) / loop_seconds
    return Figures(
        cases=cases,
        batch_seconds=batch_seconds,
        batch_cases_per_minute=rate,
        work_seconds=work_seconds,
        inference_share=network / work_seconds,
        overhead_seconds=(work_seconds - network) / cases,
        again_seconds=again_seconds,
        loop_cases=len(looped),
        loop_cases_per_minute=loop_rate,
        times_faster=rate / loop_rate,
    )


def _command(words: Sequence[str]) -> float:
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "predict", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"medseg predict failed: {done.stderr[-2000:]}")
    return time.perf_counter() - clock


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--loop", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.3, help="seconds per case")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.cases, arguments.loop, arguments.jobs, Path(folder))
    print(f"batch of {figures.cases}: {figures.batch_cases_per_minute:.1f} cases per minute")
    print(f"  the network takes {100 * figures.inference_share:.0f} % of the time at work")
    within = figures.overhead_seconds < arguments.limit
    print(
        f"  all else takes {figures.overhead_seconds:.3f} s per case, "
        f"{'below' if within else 'NOT BELOW'} {arguments.limit:g} s"
    )
    print(f"  the same command again, all proven complete: {figures.again_seconds:.1f} s")
    print(
        f"one command per case, for {figures.loop_cases} of them: "
        f"{figures.loop_cases_per_minute:.1f} cases per minute"
    )
    print(f"the batch is {figures.times_faster:.1f} times as fast")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    if not within:
        sys.exit(1)


if __name__ == "__main__":
    main()
