"""Standardised uptake values (body weight) of PET images.

Source: QIBA, FDG-PET/CT SUV Technical Committee, "Vendor-neutral pseudo-code for SUV calculation"
(happy path, and Philips' private scale factor), with DICOM PS3.3 C.8.9 (PET modules), and for the
Enhanced PET object C.8.22 (its modules) and C.7.6.16.2.11 (Real World Value Mapping). Where a value
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

__all__ = ["real_world_rescales", "suv_factor"]

_PHILIPS_CREATOR = "Philips PET Private Group"
_MOST_HALF_LIVES = 20.0
_ENHANCED_CLASS = "1.2.840.10008.5.1.4.1.1.130"
_ACTIVITY_UNITS = frozenset({"Bq/ml"})
_SUV_UNITS = frozenset({"g/ml{SUVbw}", "{SUVbw}g/ml"})
# Nobody is given less than 0.01 or more than 100000 MBq: a dose beyond is in another unit.
_LEAST_DOSE_BQ, _MOST_DOSE_BQ = 1e4, 1e11


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
    if _is_enhanced(first):
        return _enhanced(headers, where)
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
    dose_bq = _dose_bq(tracer, 1.0, where)
    how = str(first.get("DecayCorrection") or "").upper()
    if how == "ADMIN":
        return weight_g / dose_bq, "PET values are SUV by body weight, decay corrected to injection"
    if how != "START":
        raise _refused(where, "DecayCorrection (0054,1102) START or ADMIN", how or "none")
    half_life_s = _positive(tracer, "RadionuclideHalfLife", "(0018,1075)", where)
    elapsed_s = (_scan_start(headers, where) - _injection(first, tracer, where)).total_seconds()
    if elapsed_s < 0 and not tracer.get("RadiopharmaceuticalStartDateTime"):
        elapsed_s += timedelta(days=1).total_seconds()  # injected before midnight
    return _decayed(weight_g, dose_bq, half_life_s, elapsed_s, where)


def _decayed(
    weight_g: float, dose_bq: float, half_life_s: float, elapsed_s: float, where: str
) -> tuple[float, str]:
    if not 0 <= elapsed_s <= _MOST_HALF_LIVES * half_life_s:
        raise _refused(where, "a scan soon after the injection", f"{elapsed_s / 60:.0f} min after")
    left_bq = dose_bq * 2.0 ** (-elapsed_s / half_life_s)
    return weight_g / left_bq, (
        f"PET values are SUV by body weight, decay corrected over {elapsed_s / 60:.0f} min"
    )


def real_world_rescales(
    headers: Sequence[Dataset], where: str
) -> tuple[tuple[float, float], ...] | None:
    """Slope and intercept from stored values to quantities, for an Enhanced PET object.

    Its rescale slope leads to no unit that is known; the mapping to becquerels per ml, or to SUV,
    is the one to apply, and to stored values.

    Args:
        headers: Of all slices, with their functional groups at the top level.
        where: The study, for messages.

    Returns:
        Of each slice; None for other objects, whose rescaling is their quantity.

    Raises:
        FormatError: ``pet-suv`` without such a mapping for every frame, or with different ones.
    """
    if not _is_enhanced(headers[0]):
        return None
    mappings = [_mapping(header, where) for header in headers]
    if len({unit for unit, _, _ in mappings}) > 1:
        raise _refused(where, "one unit for all frames", "several")
    return tuple((slope, intercept) for _, slope, intercept in mappings)


def _is_enhanced(header: Dataset) -> bool:
    return str(header.get("SOPClassUID") or "") == _ENHANCED_CLASS


def _mapping(header: Dataset, where: str) -> tuple[str, float, float]:
    """The kind of unit, slope and intercept of a frame's mapping, SUV first."""
    found: dict[str, tuple[str, float, float]] = {}
    for item in header.get("RealWorldValueMappingSequence") or []:
        codes = item.get("MeasurementUnitsCodeSequence") or []
        unit = str(codes[0].get("CodeValue") or "") if codes else ""
        kind = "SUV" if unit in _SUV_UNITS else "activity" if unit in _ACTIVITY_UNITS else ""
        slope = _real(item, "RealWorldValueSlope")
        intercept = _real(item, "RealWorldValueIntercept")
        if kind and slope > 0 and math.isfinite(intercept):
            found.setdefault(kind, (kind, slope, intercept))
    if not found:
        raise _refused(
            where, "a real world value mapping (0040,9096) to Bq/ml or g/ml{SUVbw}", "none"
        )
    return found.get("SUV") or found["activity"]


def _real(item: Dataset, keyword: str) -> float:
    """A finite number, or NaN where there is a table in its place or nothing that can be read."""
    try:
        value = float(item.get(keyword))
    except Exception:  # absent, or an element that cannot be decoded
        return math.nan
    return value if math.isfinite(value) else math.nan


def _enhanced(headers: Sequence[Dataset], where: str) -> tuple[float, str]:
    """What real world values of an Enhanced PET object are multiplied by."""
    first = headers[0]
    if _mapping(first, where)[0] == "SUV":
        return 1.0, "PET values are SUV by body weight as mapped"
    for keyword, tag, name in (
        ("AttenuationCorrected", "(0018,9759)", "attenuation"),
        ("DecayCorrected", "(0018,9758)", "decay"),
    ):
        if str(first.get(keyword) or "").upper() != "YES":
            raise _refused(where, f"{keyword} {tag} YES", f"no correction of {name}")
    weight_g = _positive(first, "PatientWeight", "(0010,1030)", where) * 1000.0
    tracer = _tracer(first, where)
    dose_bq = _dose_bq(tracer, 1e6, where)  # of this object it is in megabecquerels
    half_life_s = _positive(tracer, "RadionuclideHalfLife", "(0018,1075)", where)
    injected, corrected_to = (
        _moment(whole[:8], whole[8:], tag, where)
        for whole, tag in (
            (
                str(tracer.get("RadiopharmaceuticalStartDateTime") or ""),
                "RadiopharmaceuticalStartDateTime (0018,1078)",
            ),
            (
                str(first.get("DecayCorrectionDateTime") or ""),
                "DecayCorrectionDateTime (0018,9701)",
            ),
        )
    )
    elapsed_s = (corrected_to - injected).total_seconds()
    return _decayed(weight_g, dose_bq, half_life_s, elapsed_s, where)


def _dose_bq(tracer: Dataset, unit_bq: float, where: str) -> float:
    """The injected dose; one that nobody is given is in another unit than the standard says."""
    dose_bq = unit_bq * _positive(tracer, "RadionuclideTotalDose", "(0018,1074)", where)
    if not _LEAST_DOSE_BQ <= dose_bq <= _MOST_DOSE_BQ:
        unit = "becquerels" if unit_bq == 1.0 else "megabecquerels"
        raise _refused(
            where,
            f"a dose in {unit} in RadionuclideTotalDose (0018,1074)",
            f"{dose_bq / unit_bq:g}, which would be another unit",
        )
    return dose_bq


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
    return min(series, *(_acquired(header, where) for header in headers))


def _acquired(header: Dataset, where: str) -> datetime:
    """When a slice was acquired; frames of a converted object have date and time in one."""
    date, time = (str(header.get(f"Acquisition{part}") or "") for part in ("Date", "Time"))
    if not time:
        whole = str(header.get("FrameAcquisitionDateTime") or "")
        date, time = whole[:8], whole[8:]
    return _moment(date, time, "AcquisitionTime (0008,0032)", where)


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
