"""What this machine and this installation can do, in plain words."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from medseg import __version__
from medseg.cores import usable_cores
from medseg.errors import MedsegError
from medseg.models.zoo import shipped_models
from pipelines.findings import Finding, finding_of_error

__all__ = ["examine"]

_LEAST_MEMORY_BYTES = 2 << 30


def examine() -> list[Finding]:
    """Look at Python, packages, processor, GPU, memory, decoders, models and the disk."""
    return [
        _python(),
        Finding("medseg", "ok", __version__),
        *_packages(),
        *_torch(),
        _memory(),
        *_decoders(),
        *_models(),
        _free_space(),
        _napari(),
    ]


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", text)


def _packages() -> list[Finding]:
    findings = []
    for name in ("torch", "monai", "nibabel", "simpleitk", "itk", "pydicom", "highdicom", "h5py"):
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            remedy = "run pip install medseg again"
            findings.append(Finding(name, "problem", "not installed", "package-missing", remedy))
    return findings


def _torch() -> list[Finding]:
    try:
        import torch  # noqa: PLC0415 - costs seconds
    except ImportError as error:
        text = f"it cannot be imported ({type(error).__name__})"
        return [Finding("torch import", "problem", text, "package-broken", "install torch again")]
    cores = usable_cores()
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
        text = "none that torch can use; the CPU does the work"
        remedy = "nothing needs to be done; for a GPU install its driver and torch for CUDA"
        findings.append(Finding("GPU", "note", text, "gpu-none", remedy))
    return findings


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available >= _LEAST_MEMORY_BYTES:
        return Finding("memory", "ok", text)
    remedy = "close other programs; see with --dry-run what an image needs"
    return Finding("memory", "note", text, "memory-low", remedy)


def _decoders() -> list[Finding]:
    from medseg.io.decoders import decodable_transfer_syntaxes  # noqa: PLC0415 - pulls in pydicom

    found = decodable_transfer_syntaxes()
    missing = [name for name, able in found.items() if not able]
    if missing:
        text = f"none for {', '.join(missing)}"
        remedy = "run pip install pylibjpeg[all] pyjpegls"
        return [Finding("DICOM decoders", "problem", text, "decoder-missing", remedy)]
    return [Finding("DICOM decoders", "ok", f"all {len(found)} transfer syntaxes can be read")]


def _models() -> list[Finding]:
    from medseg.models.folder import load_model  # noqa: PLC0415 - pulls in torch

    findings = []
    for name, folder in shipped_models().items():
        try:
            load_model(folder)
        except MedsegError as error:
            findings.append(finding_of_error(f"model {name}", error))
        else:
            findings.append(Finding(f"model {name}", "ok", "weights fit their sha256"))
    if not findings:
        remedy = "run pip install medseg again"
        findings.append(
            Finding("models", "problem", "no shipped model found", "model-missing", remedy)
        )
    return findings


def _free_space() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 1:
        text = f"{free:.1f} GiB free in the current folder"
        return Finding("disk", "problem", text, "disk-low", "free some space")
    return Finding("disk", "ok", f"{free:.0f} GiB free in the current folder")


def _napari() -> Finding:
    try:
        return Finding("napari", "ok", version("napari"))
    except PackageNotFoundError:
        remedy = 'pip install "medseg[napari]" adds the viewer, if it is wanted'
        return Finding("napari", "note", "not installed", "viewer-missing", remedy)
