"""nnU-Net's own trainer, run by the Python of an environment that holds it.

What both benchmarks against it share: its raw layout from a folder of the Decathlon's, its plan,
preparation and trainer for the full resolution, and a process whose loaders do not outlive it.
What is trained and noted then is the benchmark's own, in a few lines that follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_ANSWER = "nnunet_answer.json"
_ERROR_WORDS = 2000

# arguments: folder of everything, threads, loading processes, then the benchmark's own in JSON.
# before_preparing(plans, job) changes the plan; train(trainer, job) returns what is noted.
_SCRIPT = """
import json, os, sys, time
from pathlib import Path
place, threads, job = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[4])
for name in ("raw", "preprocessed", "results"):
    os.environ["nnUNet_" + name] = str(place / name)
os.environ["nnUNet_n_proc_DA"] = sys.argv[3]
os.environ["nnUNet_compile"] = "f"
os.environ["nnUNet_def_n_proc"] = sys.argv[2]
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints, plan_experiments, preprocess)

#PARTS#

if __name__ == "__main__":
    torch.set_num_threads(threads)
    extract_fingerprints([1], num_processes=threads, check_dataset_integrity=False, verbose=False)
    plan_experiments([1])
    base = next((place / "preprocessed").iterdir())
    plans = json.loads((base / "nnUNetPlans.json").read_text())
    before_preparing(plans["configurations"]["3d_fullres"], base, job)
    (base / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess([1], "nnUNetPlans", ("3d_fullres",), (threads,), False)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, json.loads((base / "dataset.json").read_text()),
                            device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    answer = train(trainer, job)
    answer["weights"] = sum(weight.numel() for weight in trainer.network.parameters())
    (place / "nnunet_answer.json").write_text(json.dumps(answer))
    os._exit(0)  # its loaders would wait for their processes
"""


def run_nnunet(
    python: Path, data: Path, place: Path, *, parts: str, job: dict[str, Any], workers: int = 2
) -> dict[str, Any]:
    """Plan, prepare and train with nnU-Net on as many threads as PyTorch has here.

    Args:
        python: Of an environment with nnunetv2.
        data: Dataset of one channel in the Decathlon's layout.
        place: An empty folder for what nnU-Net writes; its words are in ``nnunet_said.txt``.
        parts: Python text that defines ``before_preparing(plan, base, job)``, which may change
            the plan and write into ``base``, the folder of prepared cases, and
            ``train(trainer, job)``, whose dictionary is the answer.
        job: Handed to both; JSON.
        workers: Processes with which nnU-Net loads.

    Returns:
        The answer, and ``weights``, the number of trained parameters.

    Raises:
        SystemExit: If it ends without an answer, after its last words.
    """
    write_nnunet_raw(data, place / "raw" / "Dataset001_Benchmark")
    for name in ("preprocessed", "results"):
        (place / name).mkdir(exist_ok=True)
    script = place / "nnunet_side.py"
    script.write_text(_SCRIPT.replace("#PARTS#", parts), encoding="utf-8")
    said = place / "nnunet_said.txt"
    threads = str(torch.get_num_threads())
    with said.open("w", encoding="utf-8") as words:
        running = subprocess.Popen(
            [str(python), str(script), str(place), threads, str(workers), json.dumps(job)],
            stdout=words,
            stderr=words,
            env={**os.environ, "PYTHONPATH": ""},
            start_new_session=True,
        )
        try:
            running.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # its loaders go on without it
    answer = place / _ANSWER
    if not answer.is_file():
        print(said.read_text(encoding="utf-8")[-_ERROR_WORDS:], file=sys.stderr)
        raise SystemExit(f"nnU-Net did not train: it ended with {running.returncode}")
    content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return content


def write_nnunet_raw(data: Path, raw: Path) -> None:
    """The dataset in nnU-Net's own layout: the same files under other names."""
    index = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for entry in index["training"]:
        name = Path(entry["label"]).name.removesuffix(".nii.gz")
        shutil.copyfile(data / entry["image"], raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copyfile(data / entry["label"], raw / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {name: int(value) for value, name in index["labels"].items()},
        "numTraining": len(index["training"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
