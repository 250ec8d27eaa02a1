"""The slices in an image file: one, the frames of a multi-frame object, or the tiles of a mosaic.

Sources: DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups Module), C.8.13 (Enhanced MR), C.8.15
(Enhanced CT), and A.70 to A.72 (Legacy Converted Enhanced images). A Siemens mosaic tiles the
slices of a volume into one picture whose position is that of the picture's corner; what is known of
it is in the private CSA header, which nibabel reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import FormatError, MedsegError
from medseg.io.dicom_geometry import Plane, number_or, plane_of
from medseg.io.dicom_headers import IMAGE_MODALITIES, Header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Frame", "Mark", "Tile", "flat_header", "frames_of"]

Mark = str | float | tuple[float, ...]
"""A value that may tell slices at one place apart."""

_MULTIFRAME_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.3",  # Enhanced MR Color
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
        "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
    }
)
_MOST_FRAMES = 100_000
# Functional groups and what of them a slice needs at the top level, as classic images have it.
_FLATTENED = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameContentSequence": ("FrameAcquisitionDateTime", "StackID", "TemporalPositionIndex"),
    "MRImageFrameTypeSequence": ("FrameType", "ComplexImageComponent", "AcquisitionContrast"),
    "CTImageFrameTypeSequence": ("FrameType",),
    "PETFrameTypeSequence": ("FrameType",),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRDiffusionSequence": ("DiffusionBValue",),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime",),
    "FrameAnatomySequence": ("AnatomicRegionSequence",),
}
# A group that is kept whole, since it may hold several mappings.
_WHOLE = "RealWorldValueMappingSequence"
# Groups in which an image that was converted keeps what has no other place.
_UNASSIGNED = (
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a slice lies in the picture of a mosaic: its first row and column, and its extents."""

    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One slice of a file.

    Args:
        header: The file.
        index: Frame of the file, from 0.
        name: How messages name it.
        plane: Where it lies; None if that is not known.
        problem: Why it cannot be read.
        marks: What may tell it from another slice at the same place.
        tile: Its part of a mosaic.
    """

    header: Header
    index: int
    name: str
    plane: Plane | None
    problem: MedsegError | None
    marks: Mapping[str, Mark]
    tile: Tile | None = None


def frames_of(header: Header, where: str) -> tuple[Frame, ...]:
    """The slices of a file; one that says why where they cannot be read.

    Args:
        header: An image file.
        where: The study, for messages.
    """
    name = header.file.name
    try:
        return tuple(_frames(header, where, name))
    except MedsegError as problem:
        return (Frame(header, 0, name, None, problem, {}),)
    except Exception as error:  # an element that cannot be decoded
        damaged = FormatError(
            where,
            expected="readable elements in every header",
            found=f"one that is damaged in {name} ({type(error).__name__})",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        )
        return (Frame(header, 0, name, None, damaged, {}),)


def _frames(header: Header, where: str, name: str) -> Iterator[Frame]:
    dataset = header.dataset
    _check_kind(dataset, where, name)
    count = int(number_or(1, dataset, "NumberOfFrames", where, name))
    if "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
        yield from _functional(header, where, name, count)
    elif count > 1 or str(dataset.get("SOPClassUID")) in _MULTIFRAME_CLASSES:
        raise FormatError(
            where,
            expected="functional groups that say where each frame lies",
            found=f"an enhanced or multi-frame object of {count} frames without them",
            remedy="export the series again from its archive, as classic or enhanced CT or MR",
            code="dicom-multiframe",
        )
    elif _is_mosaic(dataset):
        yield from _mosaic(header, where, name)
    else:
        plane = plane_of(dataset, where, name)
        yield Frame(header, 0, name, plane, None, _classic_marks(dataset))


def _check_kind(dataset: Dataset, where: str, name: str) -> None:
    """Refuse what is not a grey CT, MR or PET image."""
    modality = str(dataset.get("Modality") or "none")
    if modality not in IMAGE_MODALITIES:
        raise FormatError(
            where,
            expected="a CT, MR or PET series",
            found=f"modality {modality}",
            remedy="give a CT, MR or PET series, or convert this one to NIfTI",
            code="dicom-modality",
        )
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    samples = int(number_or(1, dataset, "SamplesPerPixel", where, name))
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        raise FormatError(
            where,
            expected="grey images with one number per pixel",
            found=f"a colour image ({photometric}, {samples} samples per pixel)",
            remedy="give the original series instead of a colour-coded one",
            code="dicom-colour",
        )


# Classic images


def _classic_marks(dataset: Dataset) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}

    def number(mark: str, keyword: str) -> None:
        value = _number(dataset, keyword)
        if value is not None:
            marks[mark] = value

    image_type = dataset.get("ImageType")
    if image_type:
        marks["kind"] = "\\".join(str(part) for part in np.atleast_1d(np.asarray(image_type)))
    number("echo_ms", "EchoTime")
    number("inversion_ms", "InversionTime")
    b_value, direction = _diffusion(dataset)
    if b_value is not None:
        marks["b_value"] = b_value
    if direction:
        marks["gradient"] = direction
    number("time", "TemporalPositionIdentifier")
    number("trigger_ms", "TriggerTime")
    number("frame_ms", "FrameReferenceTime")
    number("acquisition", "AcquisitionNumber")
    number("flip_deg", "FlipAngle")
    kernel = dataset.get("ConvolutionKernel")
    if kernel:
        marks["kernel"] = str(kernel)
    clock = _clock(dataset)
    if clock:
        marks["clock"] = clock
    return marks


def _clock(dataset: Dataset) -> str:
    """When a slice was acquired, as text that sorts."""
    whole = str(dataset.get("AcquisitionDateTime") or "")
    if whole:
        return whole
    time = str(dataset.get("AcquisitionTime") or "")
    return f"{dataset.get('AcquisitionDate') or ''}{time}" if time else ""


def _diffusion(dataset: Dataset) -> tuple[float | None, tuple[float, ...]]:
    """The b-value in s/mm2 and the direction, from standard or the makers' private elements."""
    b_value = _number(dataset, "DiffusionBValue")
    direction = _vector(dataset.get("DiffusionGradientOrientation"))
    if b_value is None:
        b_value = _private_number(dataset, 0x0019, "SIEMENS MR HEADER", 0x100C)
    if not direction and _creator(dataset, 0x0019) == "SIEMENS MR HEADER":
        element = dataset.get((0x0019, 0x100E))
        direction = _vector(element.value if element is not None else None)
    if b_value is None:
        b_value = _private_number(dataset, 0x2001, "Philips Imaging DD 001", 0x1003)
    if b_value is None:
        b_value = _private_number(dataset, 0x0043, "GEMS_PARM_01", 0x1039)
        if b_value is not None and b_value >= 1e9:  # a flag that GE adds
            b_value %= 1e9
    return b_value, direction


def _creator(dataset: Dataset, group: int) -> str:
    element = dataset.get((group, 0x0010))
    return str(element.value).strip() if element is not None else ""


def _private_number(dataset: Dataset, group: int, creator: str, element: int) -> float | None:
    if _creator(dataset, group) != creator:
        return None
    found = dataset.get((group, element))
    if found is None:
        return None
    value = found.value
    if isinstance(value, bytes):  # implicit VR does not say what private elements are
        try:
            value = value.decode("ascii").strip(" \0").split("\\")
        except UnicodeDecodeError:
            return None
    listed = np.atleast_1d(np.asarray(value)).tolist()
    return _finite(listed[0]) if listed else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    listed = np.atleast_1d(np.asarray(value)).tolist()
    return _finite(listed[0]) if listed else None


def _finite(value: Any) -> float | None:  # noqa: ANN401 - whatever an element holds
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return round(number, 4) if math.isfinite(number) else None


def _vector(value: object) -> tuple[float, ...]:
    if value is None or isinstance(value, bytes | str):
        return ()
    numbers = [_finite(item) for item in np.atleast_1d(np.asarray(value)).tolist()]
    return tuple(number for number in numbers if number is not None)


# Multi-frame objects


def _functional(header: Header, where: str, name: str, count: int) -> Iterator[Frame]:
    dataset = header.dataset
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count < 1 or count > _MOST_FRAMES or (len(each) != count and (each or count > 1)):
        raise FormatError(
            where,
            expected=f"functional groups for each of {count} frames of {name}",
            found=f"{len(each)}",
            remedy="export the series again from its archive",
            code="dicom-multiframe",
        )
    for index in range(count):
        this = f"frame {index + 1} of {name}"
        groups = _Groups(shared[0] if shared else None, each[index] if each else None)
        tags = groups.flattened()
        for keyword in ("Rows", "Columns"):
            tags[keyword] = dataset.get(keyword)
        plane = plane_of(_Tags(tags), where, this)
        yield Frame(header, index, this, plane, None, _functional_marks(groups, tags))


class _Tags(dict[str, Any]):
    """Values by keyword, looked up as those of a dataset are."""

    def __init__(self, elements: Mapping[str, Any]) -> None:
        super().__init__(
            {
                keyword: getattr(element, "value", element)
                for keyword, element in elements.items()
                if element is not None
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Functional groups of one frame: its own, and those that all frames share."""

    shared: Dataset | None
    own: Dataset | None

    def group(self, sequence: str) -> Dataset | None:
        for groups in (self.own, self.shared):
            if groups is not None and (items := groups.get(sequence)):
                return items[0]
        return None

    def flattened(self) -> dict[str, Any]:
        """Elements by keyword, as a classic image would have them at the top level."""
        found: dict[str, Any] = {}
        for sequence, keywords in _FLATTENED.items():
            group = self.group(sequence)
            if group is not None:
                found.update({word: group[word] for word in keywords if word in group})
        for groups in (self.shared, self.own):
            if groups is not None and groups.get(_WHOLE):
                found[_WHOLE] = groups[_WHOLE]
        return found

    def unassigned(self) -> Iterator[Any]:
        """Elements of a converted image that have no place among its functional groups."""
        for sequence in _UNASSIGNED:
            group = self.group(sequence)
            if group is not None:
                yield from group


def _functional_marks(groups: _Groups, elements: Mapping[str, Any]) -> dict[str, Mark]:
    tags = _Tags(elements)
    marks: dict[str, Mark] = {}
    kind = [
        *(str(part) for part in np.atleast_1d(np.asarray(tags.get("FrameType") or []))),
        str(tags.get("ComplexImageComponent") or ""),
    ]
    marks["kind"] = "\\".join(kind)
    for mark, keyword in (
        ("echo_ms", "EffectiveEchoTime"),
        ("b_value", "DiffusionBValue"),
        ("time", "TemporalPositionIndex"),
        ("trigger_ms", "NominalCardiacTriggerDelayTime"),
    ):
        value = _finite(tags.get(keyword))
        if value is not None:
            marks[mark] = value
    diffusion = groups.group("MRDiffusionSequence")
    if diffusion is not None:
        for item in diffusion.get("DiffusionGradientDirectionSequence") or []:
            marks["gradient"] = _vector(item.get("DiffusionGradientOrientation"))
    if tags.get("StackID"):
        marks["stack"] = str(tags["StackID"])
    if tags.get("FrameAcquisitionDateTime"):
        marks["clock"] = str(tags["FrameAcquisitionDateTime"])
    return marks


def flat_header(frame: Frame) -> Dataset:
    """The header of a slice as a classic image would have it, identifiers being the file's.

    A classic file's own header is returned as it is. The frame of a multi-frame object gets a copy
    with its functional groups at the top level, a tile of a mosaic one with its own place.
    """
    dataset = frame.header.dataset
    functional = "PerFrameFunctionalGroupsSequence" in dataset or (
        "SharedFunctionalGroupsSequence" in dataset
    )
    if (not functional and frame.tile is None) or frame.plane is None:
        return dataset
    from pydicom.dataset import Dataset  # noqa: PLC0415 - loaded where DICOM is read
    from pydicom.valuerep import DSfloat  # noqa: PLC0415

    flat = Dataset()
    flat.file_meta = dataset.file_meta
    left_out = {0x52009229, 0x52009230, 0x00280008}  # shared and own groups, NumberOfFrames
    for tag in dataset.keys():  # noqa: SIM118 - a dataset yields its elements
        if int(tag) not in left_out:
            flat[tag] = dataset.get_item(tag)
    if functional:
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        each = dataset.get("PerFrameFunctionalGroupsSequence") or []
        groups = _Groups(shared[0] if shared else None, each[frame.index] if each else None)
        for element in groups.unassigned():
            if element.tag not in flat:
                flat[element.tag] = element
        for element in groups.flattened().values():
            flat[element.tag] = element
    else:
        # new elements: those of the file are shared with its header
        flat.add_new("Rows", "US", frame.plane.rows)
        flat.add_new("Columns", "US", frame.plane.columns)
        place = [DSfloat(value, auto_format=True) for value in frame.plane.position_lps]
        flat.add_new("ImagePositionPatient", "DS", place)
    return flat


# Mosaics


def _is_mosaic(dataset: Dataset) -> bool:
    image_type = np.atleast_1d(np.asarray(dataset.get("ImageType") or []))
    return "MOSAIC" in [str(item).upper() for item in image_type]


def _mosaic(header: Header, where: str, name: str) -> Iterator[Frame]:
    dataset = header.dataset
    count, normal = _csa(dataset)
    whole = plane_of(dataset, where, name)
    side = math.isqrt(count - 1) + 1 if count > 0 else 0
    step = next(
        (
            size
            for keyword in ("SpacingBetweenSlices", "SliceThickness")
            if (size := abs(number_or(0.0, dataset, keyword, where, name))) > 0
        ),
        0.0,
    )
    fits = side > 0 and whole.rows % side == 0 and whole.columns % side == 0
    upright = normal is not None and abs(abs(float(normal @ whole.normal)) - 1.0) < 1e-3
    if not fits or not upright or normal is None or step == 0:
        raise FormatError(
            where,
            expected="a mosaic with the number of its slices, their direction and their distance",
            found=f"a Siemens mosaic without them in {name}",
            remedy="export the series with its private elements, or convert it to NIfTI with "
            "dcm2niix",
            code="dicom-mosaic",
        )
    rows, columns = whole.rows // side, whole.columns // side
    across, down = whole.cosines[:3] * whole.spacing_mm[1], whole.cosines[3:] * whole.spacing_mm[0]
    # the picture's position is that of a slice as large as the picture, about the same centre
    first = whole.position_lps + across * (whole.columns - columns) / 2
    first = first + down * (whole.rows - rows) / 2
    marks = _classic_marks(dataset)
    for index in range(count):
        this = f"slice {index + 1} of the mosaic in {name}"
        tile = Tile(index // side * rows, index % side * columns, rows, columns)
        position = first + index * step * normal
        plane = Plane(position, whole.cosines, whole.spacing_mm, columns, rows, this)
        yield Frame(header, 0, this, plane, None, marks, tile)


def _csa(dataset: Dataset) -> tuple[int, np.ndarray | None]:
    """How many slices a mosaic has, and their direction, from the CSA image header."""
    from nibabel.nicom import csareader  # noqa: PLC0415 - loaded where a mosaic is read

    count = 0
    element = dataset.get((0x0019, 0x100A))
    if element is not None and _creator(dataset, 0x0019) == "SIEMENS MR HEADER":
        value = element.value
        value = int.from_bytes(value, "little") if isinstance(value, bytes) else value
        count = int(_finite(value) or 0)
    element = dataset.get((0x0029, 0x1010))
    if element is None or _creator(dataset, 0x0029) != "SIEMENS CSA HEADER":
        return count, None
    try:
        csa = csareader.read(bytes(element.value))
        normal = csareader.get_slice_normal(csa)
        count = int(csareader.get_n_mosaic(csa) or count)
    except Exception:  # private and often damaged
        return count, None
    return count, None if normal is None else np.asarray(normal, dtype=np.float64)
