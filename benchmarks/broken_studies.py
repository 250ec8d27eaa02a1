"""Studies that are broken, each in another way, and the one reason code that each must end with.

All are made here, small, from one series and one volume. What hospitals hand on is in them: slices
that were lost, doubled or cut off on the way, tags that an anonymiser took, objects that are no
images, archives that were damaged or tampered with, headers of research formats that cannot be.
"""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Label, LabelMap, LabelScheme, Volume
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.nifti import write_nifti_volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["BROKEN", "Broken", "write_broken"]

_SHAPE = (34, 32, 12)  # JPEG 2000 does not take less in a plane
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_RLE = "1.2.840.10008.1.2.5"
_JPEG_LS = "1.2.840.10008.1.2.4.80"
_JPEG_2000 = "1.2.840.10008.1.2.4.90"

Change = Callable[["Dataset"], object]


@dataclass(frozen=True, slots=True)
class Broken:
    """One kind of broken study.

    Args:
        kind: What is wrong with it, in words.
        name: Of the file or folder; its stem is the case.
        code: How the case must end.
        make: Makes it, from the folder of a whole series.
    """

    kind: str
    name: str
    code: str
    make: Callable[[Path, Path], object]

    @property
    def case(self) -> str:
        """What the run calls it, with ``--names input``."""
        return self.name.partition(".")[0]


def write_broken(folder: Path, kinds: Sequence[Broken]) -> None:
    """Write one study of every kind that is given."""
    with tempfile.TemporaryDirectory() as scratch, quiet_dicom():
        whole = Path(scratch) / "whole"
        grid = Grid(_SHAPE, _LPS)
        write_dicom_series(Volume(_voxels().astype(np.int16)[None], grid), whole, modality="MR")
        for number, broken in enumerate(kinds):
            if Path(broken.name).suffix in ("", ".zip"):
                own = _set(StudyInstanceUID=f"2.25.{number}", SeriesInstanceUID=f"2.25.{number}.1")
                for file in whole.iterdir():  # else they would be parts of one study
                    _change(file, own)
            broken.make(folder / broken.name, whole)


def _voxels() -> npt.NDArray[np.float32]:
    return np.random.default_rng(99).normal(100, 20, _SHAPE).astype(np.float32)


# Files of research formats


def _nifti(path: Path, data: npt.NDArray[Any]) -> None:
    i, j, k = data.shape
    write_nifti_volume(Volume(data[None], Grid((i, j, k), np.eye(4))), path)


def _image(change: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]) -> Any:  # noqa: ANN401
    """Makes a NIfTI file of voxels that were changed."""
    return lambda path, _whole: _nifti(path, change(_voxels()))


def _header(data: npt.NDArray[Any], *edits: tuple[int, str, Any]) -> Any:  # noqa: ANN401
    """Makes an uncompressed NIfTI file with bytes of its header overwritten.

    Source: the layout of nifti1.h: 40 dim, 70 datatype, 76 pixdim, 123 xyzt_units, 280 sform.
    """

    def make(path: Path, _whole: Path) -> None:
        _nifti(path, data)
        content = bytearray(path.read_bytes())
        for at, layout, value in edits:
            values = value if isinstance(value, tuple) else (value,)
            struct.pack_into(layout, content, at, *values)
        path.write_bytes(content)

    return make


def _with_nan(data: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    data[3, 4, 5] = np.nan
    return data


def _labels(_data: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    data = np.zeros(_SHAPE, dtype=np.uint8)
    data[5:9, 5:9, 5:9], data[10:12, 5:9, 5:9] = 1, 2
    return data


def _cut(path: Path, _whole: Path) -> None:
    _nifti(path, _voxels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _wrong_checksum(path: Path, _whole: Path) -> None:
    _nifti(path, _voxels())
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF
    path.write_bytes(content)


def _text(path: Path, _whole: Path) -> None:
    path.write_bytes(gzip.compress(b"text " * 99))


def _pdf(path: Path, _whole: Path) -> None:
    path.write_bytes(b"%PDF-1.7\n" + b"report " * 99)


def _nrrd(*lines: str, share: float = 1) -> Any:  # noqa: ANN401
    """Makes a NRRD file with such lines in its header."""

    def make(path: Path, _whole: Path) -> None:
        i, j, k = _SHAPE
        header = ["NRRD0004", "type: int16", "encoding: raw", "endian: little", *lines]
        if not any(line.startswith("dimension") for line in lines):
            header += ["dimension: 3", f"sizes: {i} {j} {k}"]
        data = _voxels().astype("<i2").tobytes()[: int(share * 2 * _voxels().size)]
        path.write_bytes("\n".join([*header, "", ""]).encode() + data)

    return make


_SPACE = (
    "space: left-posterior-superior",
    "space directions: (1,0,0) (0,1,0) (0,0,1)",
    "space origin: (0,0,0)",
)


def _link_to_itself(path: Path, _whole: Path) -> None:
    path.symlink_to(path.name)


def _pipe(path: Path, _whole: Path) -> None:
    os.mkfifo(path)


# Series


def _series(*changes: Change, only: Iterable[int] | None = None) -> Any:  # noqa: ANN401
    """Makes a series of which all slices, or some by their place, were changed."""

    def make(path: Path, whole: Path) -> None:
        shutil.copytree(whole, path)
        for place, file in enumerate(sorted(path.iterdir())):
            if only is None or place in only:
                _change(file, *changes)

    return make


def _change(file: Path, *changes: Change) -> None:
    from pydicom import dcmread  # noqa: PLC0415 - loaded with its first file

    dataset = dcmread(file)
    for change in changes:
        change(dataset)
    dataset.save_as(file)


def _set(**elements: object) -> Change:
    def change(dataset: Dataset) -> None:
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)

    return change


def _without(*keywords: str) -> Change:
    def change(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return change


def _moved(mm_of_place: Callable[[int], tuple[float, float, float]]) -> Change:
    def change(dataset: Dataset) -> None:
        shift = mm_of_place(int(dataset.InstanceNumber) - 1)
        place = np.array(dataset.ImagePositionPatient, float) + shift
        dataset.ImagePositionPatient = [f"{value:.4f}" for value in place]

    return change


def _renewed(dataset: Dataset) -> None:
    from pydicom.uid import generate_uid  # noqa: PLC0415

    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()


def _of_class(class_uid: str, modality: str) -> Change:
    def change(dataset: Dataset) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = class_uid
        dataset.Modality = modality

    return change


def _missing(path: Path, whole: Path) -> None:
    shutil.copytree(whole, path)
    sorted(path.iterdir())[5].unlink()


def _doubled(*changes: Change, every: bool = False) -> Any:  # noqa: ANN401
    """Makes a series with one slice, or all, twice: again with another identity and change."""

    def make(path: Path, whole: Path) -> None:
        shutil.copytree(whole, path)
        for place, file in enumerate(sorted(whole.iterdir())):
            if every or place == 5:
                again = path / f"again{file.name}"
                shutil.copy(file, again)
                _change(again, _renewed, *changes)

    return make


def _noise(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, "<i2")[::-1]
    dataset.PixelData = pixels.tobytes()


def _half_file(path: Path, whole: Path) -> None:
    shutil.copytree(whole, path)
    file = sorted(path.iterdir())[5]
    file.write_bytes(file.read_bytes()[: file.stat().st_size - 100])


def _header_cut(path: Path, whole: Path) -> None:
    shutil.copytree(whole, path)
    file = sorted(path.iterdir())[5]
    file.write_bytes(file.read_bytes()[:600])


def _compressed(syntax: str) -> Any:  # noqa: ANN401
    """Makes a series that is compressed, with the stream of one slice overwritten."""

    def make(path: Path, whole: Path) -> None:
        def packed(dataset: Dataset) -> None:
            dataset.compress(syntax, generate_instance_uid=False)

        def spoilt(dataset: Dataset) -> None:
            content = bytearray(dataset.PixelData)
            # past the offset table and the header of the fragment
            content[32:-16] = b"\xff\xd9\x00\x01" * (len(content[32:-16]) // 4 + 1)
            dataset.PixelData = bytes(content[: len(dataset.PixelData)])

        _series(packed)(path, whole)
        _change(sorted(path.iterdir())[5], spoilt)

    return make


def _other_syntax(path: Path, whole: Path) -> None:
    shutil.copytree(whole, path)
    for file in path.iterdir():
        content = file.read_bytes()
        file.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))


def _fewer_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-64]


def _three_planes(path: Path, whole: Path) -> None:
    """A localizer: a slice of each orientation."""
    path.mkdir()
    directions = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])
    for direction, file in zip(directions, sorted(whole.iterdir()), strict=False):
        shutil.copy(file, path)
        kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        _change(
            path / file.name,
            _set(ImageOrientationPatient=direction, ImageType=kind, ImagePositionPatient=[0, 0, 0]),
        )


def _two_series(path: Path, whole: Path) -> None:
    from pydicom.uid import generate_uid  # noqa: PLC0415

    shutil.copytree(whole, path / "one")
    _series(_set(SeriesInstanceUID=generate_uid(), SeriesNumber=2), _renewed)(path / "two", whole)
    for file in (path / "one").iterdir():
        file.rename(path / file.name)
    (path / "one").rmdir()


def _segmentation(path: Path, whole: Path) -> None:
    from medseg.io.dicom_seg import Algorithm, write_seg  # noqa: PLC0415 - pulls in highdicom
    from medseg.io.dicom_series import read_dicom_series  # noqa: PLC0415
    from medseg.io.scan import DicomSource  # noqa: PLC0415

    scan = read_dicom_series(whole)
    if not isinstance(scan.source, DicomSource):
        raise TypeError(type(scan.source))
    data = np.zeros(scan.volume.grid.shape_ijk, dtype=np.uint8)
    data[5:9, 5:9, 5:9] = 1
    scheme = LabelScheme("made", (Label(1, "near", (200, 30, 30)),))
    path.mkdir()
    labels = LabelMap(data, scan.volume.grid, scheme)
    write_seg(labels, path / "seg.dcm", scan.source, algorithm=Algorithm("made", "1"))


def _frames_without_place(path: Path, whole: Path) -> None:
    """A multi-frame object of an old kind, which does not say where its frames lie."""
    from pydicom import dcmread  # noqa: PLC0415

    path.mkdir()
    slices = [dcmread(file) for file in sorted(whole.iterdir())]
    first = slices[0]
    first.PixelData = b"".join(one.PixelData for one in slices)
    first.NumberOfFrames = len(slices)
    first.save_as(path / "frames.dcm")


def _half_of_a_series(part: slice) -> Any:  # noqa: ANN401
    def make(path: Path, whole: Path) -> None:
        path.mkdir()
        for file in sorted(whole.iterdir())[part]:
            shutil.copy(file, path)
            _change(path / file.name, _set(StudyInstanceUID="2.25.6", SeriesInstanceUID="2.25.61"))

    return make


# Archives and discs


def _zip(
    *, method: int = zipfile.ZIP_DEFLATED, name: str = "{}", mode: int = 0, more: bytes = b""
) -> Any:  # noqa: ANN401
    """Makes a zip of a series, of which one entry is not as it should be."""

    def make(path: Path, whole: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for place, file in enumerate(sorted(whole.iterdir())):
                spoilt = place == 5
                entry = zipfile.ZipInfo(name.format(file.name) if spoilt else file.name)
                entry.external_attr = (mode if spoilt else 0) << 16
                entry.compress_type = method if spoilt else zipfile.ZIP_DEFLATED
                archive.writestr(entry, file.read_bytes() + (more if spoilt else b""))

    return make


def _half_zip(path: Path, whole: Path) -> None:
    _zip()(path, whole)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _spoilt_zip(path: Path, whole: Path) -> None:
    """The directory at the end is whole; what it tells of is not."""
    _zip()(path, whole)
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)


def _locked_zip(path: Path, whole: Path) -> None:
    """Flagged as encrypted, in the directory of the zip."""
    _zip()(path, whole)
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)


def _disc(path: Path, whole: Path, change: Callable[[Path], object]) -> None:
    from pydicom import dcmread  # noqa: PLC0415
    from pydicom.fileset import FileSet  # noqa: PLC0415

    files = FileSet()
    for file in sorted(whole.iterdir()):
        dataset = dcmread(file)
        dataset.StudyID = "1"  # a DICOMDIR names it
        files.add(dataset)
    files.write(path)
    # it leaves its temporary folder to the garbage collector, with a warning
    del files
    gc.collect()
    change(path)


def _disc_without_a_file(path: Path, whole: Path) -> None:
    def change(disc: Path) -> None:
        next(
            file for file in sorted(disc.rglob("*")) if file.name != "DICOMDIR" and file.is_file()
        ).unlink()

    _disc(path, whole, change)


_MR = "1.2.840.10008.5.1.4.1.1.4"
_PET = "1.2.840.10008.5.1.4.1.1.128"
_US = "1.2.840.10008.5.1.4.1.1.6.1"

BROKEN: tuple[Broken, ...] = (
    Broken(
        "a file of zero bytes", "empty.nii", "file-empty", lambda path, _: path.write_bytes(b"")
    ),
    Broken("a compressed file that is cut off", "cut.nii.gz", "file-truncated", _cut),
    Broken(
        "a compressed file that was damaged", "checksum.nii.gz", "file-damaged", _wrong_checksum
    ),
    Broken("text that is called an image", "text.nii.gz", "not-an-image", _text),
    Broken("a PDF that is called an image", "report.mha", "not-an-image", _pdf),
    Broken(
        "an Analyze header that is called NIfTI",
        "magic.nii",
        "analyze-header",
        _header(_voxels(), (344, "4s", b"\0\0\0\0")),
    ),
    Broken("voxels that are not finite", "nan.nii", "voxels-not-finite", _image(_with_nan)),
    Broken(
        "the same value in every voxel",
        "constant.nii",
        "image-constant",
        _image(lambda data: 0 * data + 7),
    ),
    Broken("a single slice", "slice.nii", "image-one-slice", _image(lambda data: data[:, :, :1])),
    Broken(
        "too few slices for the model",
        "small.nii",
        "image-too-small",
        _image(lambda data: data[:, :, :5]),
    ),
    Broken("a label map", "labels.nii", "label-as-image", _image(_labels)),
    Broken(
        "a series of volumes in one NIfTI",
        "times.nii",
        "image-4d",
        _header(_voxels(), (40, "<5h", (4, 34, 32, 6, 2))),
    ),
    Broken("colour", "colour.nii", "voxels-colour", _header(_voxels(), (70, "<2h", (128, 24)))),
    Broken(
        "complex numbers",
        "complex.nii",
        "voxels-complex",
        _header(_voxels(), (40, "<4h", (3, 34, 32, 6)), (70, "<2h", (32, 64))),
    ),
    Broken(
        "a sheared NIfTI",
        "sheared.nii",
        "affine-sheared",
        _header(_voxels(), (280, "<4f", (1, 0.3, 0, 0))),
    ),
    Broken(
        "an affine without volume",
        "flat.nii",
        "affine-invalid",
        _header(_voxels(), (280, "<4f", (0, 0, 0, 0))),
    ),
    Broken("lengths in metres", "metres.nii", "units", _header(_voxels(), (123, "B", 1))),
    Broken("a NRRD without its space", "nowhere.nrrd", "space-unknown", _nrrd()),
    Broken(
        "a header without its data file",
        "alone.nhdr",
        "image-data-missing",
        _nrrd(*_SPACE, "data file: lost.raw", share=0.5),
    ),
    Broken("a NRRD that is cut off", "short.nrrd", "image-unreadable", _nrrd(*_SPACE, share=0.5)),
    Broken("a link that leads to itself", "loop.nii", "input-unreadable", _link_to_itself),
    Broken("a pipe that is called an image", "pipe.nii", "not-an-image", _pipe),
    Broken("a slice that is missing", "gap", "slice-gap", _missing),
    Broken(
        "slices that are not evenly apart",
        "uneven",
        "slice-gap",
        _series(_moved(lambda k: (0, 0, 0.07 * k * k))),
    ),
    Broken("a slice at the place of another", "doubled", "slice-duplicate", _doubled(_noise)),
    Broken(
        "two volumes that nothing tells apart", "twice", "series-4d", _doubled(_noise, every=True)
    ),
    Broken(
        "a slice that is displaced",
        "shifted",
        "slice-shift",
        _series(_moved(lambda k: (3.0 * (k == 5), 0, 0))),
    ),
    Broken(
        "slices that lean by 70 degrees",
        "leaning",
        "slice-tilt",
        _series(_moved(lambda k: (0, 2.75 * k, 0))),
    ),
    Broken(
        "one slice of another size",
        "sizes",
        "series-ambiguous",
        _series(_set(Rows=16, Columns=68), only=[5]),
    ),
    Broken(
        "one slice turned",
        "turned",
        "series-ambiguous",
        _series(_set(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), only=[5]),
    ),
    Broken(
        "two frames of reference",
        "frames",
        "series-ambiguous",
        _series(_set(FrameOfReferenceUID="2.25.7"), only=range(6)),
    ),
    Broken("a localizer of three planes", "localizer", "series-ambiguous", _three_planes),
    Broken("two series that could be meant", "two", "series-ambiguous", _two_series),
    Broken("no pixel spacing", "spacing", "dicom-tag-missing", _series(_without("PixelSpacing"))),
    Broken(
        "no orientation",
        "orientation",
        "dicom-tag-missing",
        _series(_without("ImageOrientationPatient")),
    ),
    Broken(
        "one slice without position",
        "position",
        "dicom-tag-missing",
        _series(_without("ImagePositionPatient"), only=[5]),
    ),
    Broken(
        "directions that are not at right angles",
        "crooked",
        "dicom-tag-invalid",
        _series(_set(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0])),
    ),
    Broken(
        "a pixel spacing of zero",
        "nothing",
        "dicom-tag-invalid",
        _series(_set(PixelSpacing=[0, 0])),
    ),
    Broken(
        "a rescale slope of zero",
        "slope",
        "dicom-tag-invalid",
        _series(_set(RescaleSlope=0, RescaleIntercept=0)),
    ),
    Broken("a slice that is cut off", "slicecut", "dicom-pixels", _half_file),
    Broken("a slice cut off in its header", "head", "dicom-unreadable", _header_cut),
    Broken(
        "a slice without pixels", "blind", "dicom-pixels", _series(_without("PixelData"), only=[5])
    ),
    Broken(
        "fewer pixels than rows and columns",
        "fewer",
        "dicom-pixels",
        _series(_fewer_pixels, only=[5]),
    ),
    Broken("a damaged RLE stream", "rle", "dicom-pixels", _compressed(_RLE)),
    Broken("a damaged JPEG-LS stream", "jpegls", "dicom-pixels", _compressed(_JPEG_LS)),
    Broken("a damaged JPEG 2000 stream", "jpeg2000", "dicom-pixels", _compressed(_JPEG_2000)),
    Broken("an unknown transfer syntax", "syntax", "dicom-pixels", _other_syntax),
    Broken(
        "colour in DICOM",
        "palette",
        "dicom-colour",
        _series(_set(PhotometricInterpretation="PALETTE COLOR")),
    ),
    Broken("ultrasound", "ultrasound", "dicom-modality", _series(_of_class(_US, "US"))),
    Broken(
        "PET without a patient's weight",
        "pet",
        "pet-suv",
        _series(_of_class(_PET, "PT"), _set(Units="BQML")),
    ),
    Broken("frames without a place", "multiframe", "dicom-multiframe", _frames_without_place),
    Broken("a segmentation instead of images", "segmentation", "no-images", _segmentation),
    Broken("one half of a series", "part1", "series-split", _half_of_a_series(slice(0, 6))),
    Broken(
        "the other half, in another folder",
        "part2",
        "series-split",
        _half_of_a_series(slice(6, 12)),
    ),
    Broken("a zip that is cut off", "half.zip", "zip-damaged", _half_zip),
    Broken("a zip that was damaged", "spoilt.zip", "zip-damaged", _spoilt_zip),
    Broken("a zip with a password", "locked.zip", "zip-encrypted", _locked_zip),
    Broken("a zip with a path that leads elsewhere", "path.zip", "zip-path", _zip(name="../{}")),
    Broken("a zip with a link", "link.zip", "zip-link", _zip(mode=0o120777)),
    Broken(
        "a zip that unpacks to a thousand times its size",
        "bomb.zip",
        "zip-ratio",
        _zip(more=bytes(1 << 22)),
    ),
    Broken(
        "a zip packed in another way", "method.zip", "zip-method", _zip(method=zipfile.ZIP_BZIP2)
    ),
    Broken(
        "a disc of which a file is missing", "disc", "dicomdir-incomplete", _disc_without_a_file
    ),
)
"""Every kind; of the same code only what is broken in other ways."""
