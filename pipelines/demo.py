"""The first ten seconds: two real cases, one as NIfTI and one as DICOM, segmented and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medseg.atomic import scratch_folder, write_text
from medseg.errors import FormatError
from medseg.events import Listener
from medseg.inference.predictor import Predictor
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import read_seg
from medseg.io.reading import read_image, read_labels
from medseg.metrics.overlap import dice_by_label
from medseg.models.zoo import find_model
from pipelines.infer import Case, CaseResult, prepare_output, segment_case
from pipelines.results import Wishes

__all__ = ["DEMO_MODEL", "SAMPLES", "DemoCase", "run_demo"]

DEMO_MODEL = "reversible_hippocampus"
SAMPLES = Path(__file__).resolve().parent.parent / "medseg" / "resources" / "samples"


@dataclass(frozen=True, slots=True)
class DemoCase:
    """One segmented sample and how near it came to the expert.

    Args:
        result: Files, volumes and times.
        source: What was read: ``NIfTI`` or ``DICOM series``.
        dice: Dice against the expert's labels, by structure.
    """

    result: CaseResult
    source: str
    dice: dict[str, float]


def run_demo(out: Path, *, device: str, listener: Listener) -> list[DemoCase]:
    """Segment the shipped samples.

    The first is read from its NIfTI file. The second is written out as a DICOM series first and
    read from there; its segmentation comes back as DICOM SEG and NIfTI, and the Dice printed is
    that of the SEG, read back through world coordinates.

    Args:
        out: Where the results go; earlier results of the demo there are replaced.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        listener: Told of progress.

    Raises:
        MedsegError: If something is wrong with the installation or the folder.
    """
    folder = SAMPLES / "hippocampus"
    images = sorted((folder / "images").glob("*.nii.gz"))
    if len(images) != 2:
        raise FormatError(
            "medseg demo",
            expected="the two sample cases that ship with the package",
            found=f"{len(images)} sample files",
            remedy="install medseg again",
            code="installation",
        )
    prepare_output(out)
    predictor = Predictor.load(find_model(DEMO_MODEL), device=device)
    scheme = predictor.card.scheme()
    cases: list[DemoCase] = []
    for image_path, as_dicom in zip(images, (False, True), strict=True):
        expert = read_labels(folder / "labels" / image_path.name, scheme)
        name = image_path.name.removesuffix(".nii.gz")
        if not as_dicom:
            result = _segment(Case(name, {"": image_path}), predictor, out, listener)
            found = read_labels(result.files["nifti"], scheme)
        else:
            with scratch_folder(out) as temporary:
                series = temporary / "series"
                write_dicom_series(read_image(image_path).volume, series, modality="MR")
                result = _segment(Case(name, {"": series}), predictor, out, listener)
            found = read_seg(result.files["dicom_seg"], scheme, expert.grid)
        cases.append(
            DemoCase(result, "DICOM series" if as_dicom else "NIfTI", dice_by_label(found, expert))
        )
    write_text(out / "ATTRIBUTION.md", (folder / "LICENSE.md").read_text(encoding="utf-8"))
    return cases


def _segment(case: Case, predictor: Predictor, out: Path, listener: Listener) -> CaseResult:
    return segment_case(
        case, predictor, out, listener=listener, overwrite=True, wishes=Wishes(preview=True)
    )
