"""Headers of the files of a study, read in parallel: images, and what else there is."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from medseg.errors import FormatError, MedsegError
from medseg.io.dicom_files import MOST_RATIO, StudyFile
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.waiting import map_files

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

__all__ = [
    "DERIVED_MODALITIES",
    "IMAGE_CLASSES",
    "IMAGE_MODALITIES",
    "MOSAIC_TAGS",
    "Header",
    "Headers",
    "check_deflated",
    "read_headers",
]

IMAGE_MODALITIES = ("CT", "MR", "PT")
IMAGE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")
)
"""CT, MR and PET images, classic, enhanced and converted: each has rows and pixels."""

DERIVED_MODALITIES = frozenset(
    {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "RWV"}
)
"""Objects, some with rows and columns, that are made from images rather than acquired."""

MOSAIC_TAGS = ((0x0019, 0x0010), (0x0019, 0x100A), (0x0029, 0x0010), (0x0029, 0x1010))
"""Siemens' private creators, number of images in a mosaic, and CSA image header."""

_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
# A data set without a preamble begins with group 0002 or 0008, in either byte order.
_BARE_BEGINNINGS = (b"\x08\x00", b"\x02\x00", b"\x00\x08")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CUT_OFF = -2  # the file ends where pixels would begin
_META_BYTES = 1024  # where the transfer syntax is found
_PART_BYTES = 1 << 20
_PREAMBLE_BYTES = 132  # with the letters DICM
_DICOM_ENDINGS = frozenset({".dcm", ".dicom", ".ima"})
_SMALL_BYTES = 64 << 20
# What is looked at to tell what a file is; an element is decoded, and may fail, only then.
_LOOKED_AT = (
    "BitsStored",
    "FrameOfReferenceUID",
    "HighBit",
    "ImageType",
    "LossyImageCompression",
    "Modality",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "SeriesInstanceUID",
    "SOPClassUID",
    "StudyInstanceUID",
)
# Everything that reading, choosing and derived objects use. Not read: private elements but those
# below, overlays, curves, palettes and device settings, which may take hundreds of kilobytes each.
_KEYWORDS = """
    SpecificCharacterSet ImageType InstanceCreationDate SOPClassUID SOPInstanceUID StudyDate
    SeriesDate AcquisitionDate ContentDate AcquisitionDateTime StudyTime SeriesTime
    AcquisitionTime ContentTime AccessionNumber Modality ConversionType Manufacturer
    InstitutionName ReferringPhysicianName StationName StudyDescription SeriesDescription
    PerformingPhysicianName OperatorsName ManufacturerModelName AnatomicRegionSequence
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex OtherPatientIDs
    PatientAge PatientSize PatientWeight EthnicGroup PatientIdentityRemoved
    DeidentificationMethod DeidentificationMethodCodeSequence ClinicalTrialSponsorName
    ClinicalTrialProtocolID
    ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName ClinicalTrialSubjectID
    ClinicalTrialSubjectReadingID ClinicalTrialTimePointID ClinicalTrialTimePointDescription
    ContrastBolusAgent ContrastBolusAgentSequence ContrastBolusRoute BodyPartExamined
    ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName SliceThickness
    KVP RepetitionTime EchoTime InversionTime ImagingFrequency EchoNumbers
    MagneticFieldStrength SpacingBetweenSlices EchoTrainLength DeviceSerialNumber
    SoftwareVersions ProtocolName TriggerTime ReconstructionDiameter GantryDetectorTilt
    ConvolutionKernel FlipAngle PatientPosition DiffusionBValue DiffusionGradientOrientation
    ComplexImageComponent AcquisitionContrast StudyInstanceUID SeriesInstanceUID StudyID
    SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient
    FrameOfReferenceUID Laterality TemporalPositionIdentifier NumberOfTemporalPositions
    PositionReferenceIndicator SliceLocation SynchronizationFrameOfReferenceUID
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns
    PixelSpacing BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
    PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType LossyImageCompression
    LossyImageCompressionRatio LossyImageCompressionMethod ModalityLUTSequence
    BurnedInAnnotation QualityControlImage SeriesType Units SUVType CountsSource
    DecayCorrection FrameReferenceTime DecayFactor CorrectedImage
    RadiopharmaceuticalInformationSequence DecayCorrected AttenuationCorrected
    DecayCorrectionDateTime SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence
""".split()  # noqa: SIM905 - a list of quoted words would hide them
_PRIVATE = (
    *MOSAIC_TAGS,
    (0x0019, 0x100C),  # Siemens: b-value
    (0x0019, 0x100E),  # Siemens: gradient direction
    (0x2001, 0x0010),
    (0x2001, 0x1003),  # Philips: b-value
    (0x2005, 0x0010),
    (0x2005, 0x0014),
    (0x0043, 0x0010),
    (0x0043, 0x1039),  # GE: b-value, the first of four
    (0x7053, 0x0010),
    (0x7053, 0x1000),  # Philips: SUV scale factor
    *((group, 0x0102) for group in range(0x6000, 0x6020, 2)),  # overlays in spare bits
)


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """The header of one image file.

    Args:
        file: Where it is.
        dataset: Its elements, without pixel data.
        pixel_offset: First byte of the element of the pixel data; -1 where it cannot be sought,
            as in a deflated file.
    """

    file: StudyFile
    dataset: Dataset
    pixel_offset: int

    @property
    def series_uid(self) -> str:
        """Its series; anonymisers may have emptied it."""
        return str(self.dataset.get("SeriesInstanceUID") or "")


@dataclass(frozen=True, slots=True, eq=False)
class Headers:
    """What the files of a study are.

    Args:
        images: Headers of images in the order of names.
        others: Kind of DICOM object without an image to how many there are.
        unreadable: Errors of files that say they are DICOM but cannot be read, and of files
            without content that are called like the images beside them.
        files: How many files there are in all.
    """

    images: tuple[Header, ...]
    others: dict[str, int]
    unreadable: tuple[MedsegError, ...]
    files: int


def read_headers(files: Sequence[StudyFile], where: str, *, threads: int | None = None) -> Headers:
    """Read the headers of files and sort them by what they are; no pixel data are read.

    Args:
        files: Of a study; files that are no DICOM are passed over.
        where: The study, for messages.
        threads: Most files that are read at a time; None for as many as are useful.

    Raises:
        ResourceError: ``input-unreadable``.
        FormatError: ``zip-damaged``.
    """
    with quiet_dicom():
        from pydicom.tag import Tag  # noqa: PLC0415 - loaded only where DICOM is read

        # made once: pydicom would look up a hundred keywords for every file
        keys = [Tag(key) for key in (*_KEYWORDS, *_PRIVATE)]

        def read(file: StudyFile) -> Header | FormatError | _Hollow | None:
            return _read_header(file, where, keys)

        found = map_files(read, files, threads=threads)
        images: list[Header] = []
        others: Counter[str] = Counter()
        unreadable: list[MedsegError] = []
        hollow: list[_Hollow] = []
        for one in found:
            if isinstance(one, FormatError):
                unreadable.append(one)
            elif isinstance(one, _Hollow):
                hollow.append(one)
            elif one is not None:
                kind = _derived_kind(one.dataset)
                if kind:
                    others[kind] += 1
                else:
                    images.append(one)
    kinds = {_kind_of_name(header.file) for header in images}
    unreadable += [
        _unreadable(one.file, where, one.found)
        for one in hollow
        if _kind_of_name(one.file) in kinds
    ]
    return Headers(tuple(images), dict(sorted(others.items())), tuple(unreadable), len(files))


@dataclass(frozen=True, slots=True, eq=False)
class _Hollow:
    """A file whose content was lost: a copy that was broken off, a link that leads nowhere.

    Beside images of such a name it was one of them. Nothing else tells if it was the last slice.
    """

    file: StudyFile
    found: str


def _kind_of_name(file: StudyFile) -> tuple[tuple[str, ...], str]:
    """Folder, and ending where it is made of letters: numbers and parts of a UID are none."""
    ending = PurePosixPath(file.parts[-1]).suffix.lower()
    return file.parts[:-1], ending if ending[1:].isalpha() else ""


def _read_header(
    file: StudyFile, where: str, keys: list[BaseTag]
) -> Header | FormatError | _Hollow | None:
    """The header of a DICOM file, None for any other file, an error for a damaged one."""
    if file.member is None and not file.path.exists():
        return _Hollow(file, ", a link that leads nowhere")
    beginning = file.beginning(where, _META_BYTES)
    marked = beginning[128:_PREAMBLE_BYTES] == b"DICM"
    if not marked and not beginning.startswith(_BARE_BEGINNINGS):
        return _stranger(file, where, beginning)
    with file.opened(where) as stream:
        try:
            if marked and _DEFLATED in beginning:
                check_deflated(stream, _SMALL_BYTES)
            dataset, offset = _parsed(stream, marked, keys)
            for keyword in _LOOKED_AT:
                dataset.get(keyword)
            class_uid = dataset.get("SOPClassUID") or dataset.file_meta.get(
                "MediaStorageSOPClassUID"
            )
        except OSError:
            raise
        except Exception:  # a damaged header fails in many ways
            return _unreadable(file, where) if marked else None
    if offset == _CUT_OFF and str(class_uid) in IMAGE_CLASSES and "Rows" not in dataset:
        return _unreadable(file, where)
    if class_uid:
        return Header(file, dataset, offset)
    return _unreadable(file, where) if marked else None


def _stranger(file: StudyFile, where: str, beginning: bytes) -> FormatError | _Hollow | None:
    """What a file that does not begin as DICOM was, by its name and what is left of it."""
    if file.parts[-1].startswith("."):
        return None
    if not any(beginning):
        return _Hollow(file, " without content")
    if len(beginning) < _PREAMBLE_BYTES:
        return _Hollow(file, " cut off")
    if _kind_of_name(file)[1] in _DICOM_ENDINGS:
        return _unreadable(file, where, ", called DICOM, with other content")
    return None


def check_deflated(stream: BinaryIO, small_bytes: int) -> None:
    """Unpack a deflated data set part by part, and stop where it grows beyond reason.

    Source: DICOM PS3.5 A.5; the meta information before it is not deflated and begins with its own
    length.

    Args:
        stream: The file, at its beginning, where it is left.
        small_bytes: What it may grow to, however small it is.

    Raises:
        ValueError: If it does, or cannot be unpacked.
    """
    head = stream.read(144)
    stream.seek(144 + int.from_bytes(head[140:144], "little"))
    unpacker, size, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while part := stream.read(_PART_BYTES):
        size += len(part)
        while part and not unpacker.eof:
            unpacked += len(unpacker.decompress(part, _PART_BYTES))
            part = unpacker.unconsumed_tail
        if unpacked > max(MOST_RATIO * size, small_bytes):
            raise ValueError(unpacked)
    stream.seek(0)


def _parsed(stream: BinaryIO, marked: bool, keys: list[BaseTag]) -> tuple[Dataset, int]:
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read

    dataset = dcmread(stream, stop_before_pixels=True, force=not marked, specific_tags=keys)
    offset = stream.tell()
    element = stream.read(4)
    if element in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        return dataset, offset
    return dataset, -1 if element else _CUT_OFF


def _unreadable(
    file: StudyFile, where: str, found: str = " cut off or damaged in its header"
) -> FormatError:
    return FormatError(
        where,
        expected="whole DICOM files",
        found=f"{file.name}{found}",
        remedy="copy the series again from its source, or take the file away if it is none of it",
        code="dicom-unreadable",
    )


def _derived_kind(dataset: Dataset) -> str:
    """A short name of what an object is if it is no acquired image, else nothing."""
    class_uid = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID"))
    if class_uid == _DICOMDIR_CLASS:
        return "DICOMDIR"
    modality = str(dataset.get("Modality") or "")
    if modality in DERIVED_MODALITIES:
        return modality
    if "Rows" not in dataset and modality not in IMAGE_MODALITIES:
        return modality or "object without image"
    return ""
