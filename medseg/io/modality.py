"""What kind of scanner made a DICOM file."""

from __future__ import annotations

from pathlib import Path

from medseg.io.dicom_quiet import quiet_dicom

__all__ = ["modality_of_file"]


def modality_of_file(path: Path) -> str:
    """DICOM's Modality (0008,0060) of a file, such as ``CT``; empty where it cannot be told."""
    from pydicom import dcmread  # noqa: PLC0415 - costs half a second

    try:
        with quiet_dicom():
            header = dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
            return str(header.get("Modality") or "")
    except Exception:  # a damaged header fails in many ways; reading the case tells
        return ""
