"""Standardised uptake values (body weight) of PET images.

Source: QIBA, FDG-PET/CT SUV Technical Committee, "Vendor-neutral pseudo-code for SUV calculation"
(happy path, and Philips' private scale factor), with DICOM PS3.3 C.8.9 (PET modules). Where a value
is missing the series is refused: becquerels read as SUV would be wrong by a factor of thousands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from medseg.errors import FormatError
from medseg.io.dicom_geometry import number_or

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["suv_factor"]

_PHILIPS_CREATOR = "Philips PET Private Group"
_MOST_HALF_LIVES = 20.0


def suv_factor(headers: Sequence[Dataset], where: str) -> tuple[float, str]:
    """What rescaled PET values are multiplied by to become SUV by body weight, in g/ml.

    Args:
        headers: Of all slices, as classic images have them.
        where: The study, for messages.

    Returns:
        The factor, and a note on where it comes from.

    Raises:
        FormatError: ``pet-suv`` with what is missing.
    """
    first = headers[0]
    units = {str(header.get("Units") or "").upper() for header in headers}
    if len(units) > 1:
        raise _refused(where, "one Units (0054,1001) for all slices", f"{len(units)} of them")
    (unit,) = units
    if unit == "GML":
        kind = str(first.get("SUVType") or "BW").upper()
        if kind != "BW":
            raise _refused(where, "SUV by body weight, SUVType (0054,1006) BW", f"SUVType {kind}")
        return 1.0, "PET values are SUV by body weight as stored"
    if unit == "CNTS":
        return _philips(first, where)
    if unit != "BQML":
        raise _refused(where, "Units (0054,1001) BQML, GML or CNTS", unit or "none")
    corrected = first.get("CorrectedImage") or []
    listed = {
        str(part).upper() for part in ([corrected] if isinstance(corrected, str) else corrected)
    }
    for needed, name in (("ATTN", "attenuation"), ("DECY", "decay")):
        if needed not in listed:
            raise _refused(
                where, f"{needed} in CorrectedImage (0028,0051)", f"no correction of {name}"
            )
    weight_g = _positive(first, "PatientWeight", "(0010,1030)", where) * 1000.0
    tracer = _tracer(first, where)
    dose_bq = _positive(tracer, "RadionuclideTotalDose", "(0018,1074)", where)
    how = str(first.get("DecayCorrection") or "").upper()
    if how == "ADMIN":
        return weight_g / dose_bq, "PET values are SUV by body weight, decay corrected to injection"
    if how != "START":
        raise _refused(where, "DecayCorrection (0054,1102) START or ADMIN", how or "none")
    half_life_s = _positive(tracer, "RadionuclideHalfLife", "(0018,1075)", where)
    elapsed_s = (_scan_start(headers, where) - _injection(first, tracer, where)).total_seconds()
    if elapsed_s < 0 and not tracer.get("RadiopharmaceuticalStartDateTime"):
        elapsed_s += timedelta(days=1).total_seconds()  # injected before midnight
    if not 0 <= elapsed_s <= _MOST_HALF_LIVES * half_life_s:
        raise _refused(where, "a scan soon after the injection", f"{elapsed_s / 60:.0f} min after")
    left_bq = dose_bq * 2.0 ** (-elapsed_s / half_life_s)
    return weight_g / left_bq, (
        f"PET values are SUV by body weight, decay corrected over {elapsed_s / 60:.0f} min"
    )


def _philips(first: Dataset, where: str) -> tuple[float, str]:
    creator, element = first.get((0x7053, 0x0010)), first.get((0x7053, 0x1000))
    if creator is not None and str(creator.value).strip() == _PHILIPS_CREATOR and element:
        try:
            value = element.value
            text = value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value
            factor = float(text)
        except Exception:  # an element that cannot be decoded fails in many ways
            factor = 0.0
        if math.isfinite(factor) and factor > 0:
            return factor, "PET values are SUV by body weight, by Philips' scale factor"
    raise _refused(
        where, "Philips' SUV scale factor (7053,1000) of an image in counts", "none above 0"
    )


def _tracer(first: Dataset, where: str) -> Dataset:
    items = first.get("RadiopharmaceuticalInformationSequence") or []
    if not items:
        raise _refused(where, "RadiopharmaceuticalInformationSequence (0054,0016)", "none")
    return items[0]


def _positive(header: Dataset, keyword: str, tag: str, where: str) -> float:
    value = number_or(0.0, header, keyword, where)
    if value <= 0:
        raise _refused(where, f"{keyword} {tag} above 0", f"{value:g}" if value else "none")
    return value


def _injection(first: Dataset, tracer: Dataset, where: str) -> datetime:
    whole = str(tracer.get("RadiopharmaceuticalStartDateTime") or "")
    if whole:
        return _moment(whole[:8], whole[8:], "RadiopharmaceuticalStartDateTime (0018,1078)", where)
    return _moment(
        str(first.get("SeriesDate") or ""),
        str(tracer.get("RadiopharmaceuticalStartTime") or ""),
        "RadiopharmaceuticalStartTime (0018,1072)",
        where,
    )


def _scan_start(headers: Sequence[Dataset], where: str) -> datetime:
    """SeriesTime, or the first acquisition where a later processing gave the series its time."""
    first = headers[0]
    series = _moment(
        str(first.get("SeriesDate") or ""),
        str(first.get("SeriesTime") or ""),
        "SeriesTime (0008,0031)",
        where,
    )
    acquired = min(
        _moment(
            str(header.get("AcquisitionDate") or ""),
            str(header.get("AcquisitionTime") or ""),
            "AcquisitionTime (0008,0032)",
            where,
        )
        for header in headers
    )
    return min(series, acquired)


def _moment(date: str, time: str, tag: str, where: str) -> datetime:
    digits = time.replace(":", "").split("+")[0].split("-")[0]
    whole, _, fraction = digits.partition(".")
    try:
        if len(whole) < 4:
            raise ValueError(whole)  # hours and minutes at least
        moment = datetime.strptime(date.replace(".", "") + whole.ljust(6, "0"), "%Y%m%d%H%M%S")
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError as error:
        raise _refused(where, f"a date and {tag}", "none that can be read") from error


def _refused(where: str, expected: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected=f"{expected}, to compute SUV",
        found=found,
        remedy="export the PET series again with all its elements",
        code="pet-suv",
    )
