"""What this machine and this installation can do, in plain words."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from medseg import __version__
from medseg.errors import MedsegError
from medseg.models.zoo import shipped_models

__all__ = ["Finding", "examine"]

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Args:
        topic: What it is.
        state: ``ok``, ``note`` (works, worth knowing) or ``problem``.
        text: What was found and, for a problem, what to do.
    """

    topic: str
    state: State
    text: str


def examine() -> list[Finding]:
    """Look at Python, packages, processor, GPU, decoders, models and the disk."""
    return [
        _python(),
        Finding("medseg", "ok", __version__),
        *_packages(),
        *_torch(),
        *_decoders(),
        *_models(),
        _free_space(),
        _napari(),
    ]


def _python() -> Finding:
    fits = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(
        "Python", "ok" if fits else "problem", text if fits else f"{text}; install 3.11 or newer"
    )


def _packages() -> list[Finding]:
    findings = []
    for name in ("torch", "monai", "nibabel", "simpleitk", "itk", "pydicom", "highdicom"):
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "problem", "not installed; run pip install medseg again"))
    return findings


def _torch() -> list[Finding]:
    try:
        import torch  # noqa: PLC0415 - costs seconds
    except ImportError as error:
        return [Finding("torch import", "problem", f"fails ({type(error).__name__}); reinstall it")]
    cores = os.cpu_count() or 1
    findings = [
        Finding(
            "processor",
            "ok",
            f"{cores} cores, {torch.get_num_threads()} torch threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
        )
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            text = f"{properties.name}, {memory:.1f} GiB"
            findings.append(Finding(f"cuda:{index}", "ok", text))
    else:
        findings.append(Finding("GPU", "note", "none that torch can use; the CPU does the work"))
    return findings


def _decoders() -> list[Finding]:
    from medseg.io.decoders import decodable_transfer_syntaxes  # noqa: PLC0415 - pulls in pydicom

    found = decodable_transfer_syntaxes()
    missing = [name for name, able in found.items() if not able]
    if missing:
        return [
            Finding(
                "DICOM decoders",
                "problem",
                f"none for {', '.join(missing)}; run pip install pylibjpeg[all]",
            )
        ]
    return [Finding("DICOM decoders", "ok", f"all {len(found)} transfer syntaxes can be read")]


def _models() -> list[Finding]:
    from medseg.models.folder import load_model  # noqa: PLC0415 - pulls in torch

    findings = []
    for name, folder in shipped_models().items():
        try:
            load_model(folder)
        except MedsegError as error:
            findings.append(Finding(f"model {name}", "problem", str(error)))
        else:
            findings.append(Finding(f"model {name}", "ok", "weights fit their sha256"))
    if not findings:
        text = "no shipped model found; run pip install medseg again"
        findings.append(Finding("models", "problem", text))
    return findings


def _free_space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 1:
        return Finding("disk", "problem", f"{free:.1f} GiB free here; free some space")
    return Finding("disk", "ok", f"{free:.0f} GiB free in the current folder")


def _napari() -> Finding:
    try:
        return Finding("napari", "ok", version("napari"))
    except PackageNotFoundError:
        text = 'not installed; pip install "medseg[napari]" adds the viewer'
        return Finding("napari", "note", text)
