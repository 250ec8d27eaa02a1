import numpy as np
import pydicom
import pytest

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import ConfigError
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_seg import Algorithm, write_seg
from medseg.io.dicom_series import read_dicom_series

NET = Algorithm("net", "1")


@pytest.fixture
def source(tmp_path):
    noise = np.random.default_rng(0).integers(0, 100, (1, 5, 4, 3)).astype(np.int16)
    write_dicom_series(Volume(noise, Grid((5, 4, 3), np.eye(4))), tmp_path / "mr", modality="MR")
    return read_dicom_series(tmp_path / "mr")


def written(tmp_path, source, algorithm, kind):
    labels = np.zeros((5, 4, 3), dtype=np.uint8)
    labels[1, 1, 1] = 1
    scheme = LabelScheme.plain("labels", {1: "liver"})
    path = tmp_path / "out.dcm"
    write_seg(
        LabelMap(labels, source.volume.grid, scheme),
        path,
        source.source,
        algorithm=algorithm,
        algorithm_type=kind,
    )
    return pydicom.dcmread(path)


@pytest.mark.parametrize(
    ("algorithm", "kind", "name", "family"),
    [
        (NET, "AUTOMATIC", "net", "Artificial Intelligence"),
        (NET, "SEMIAUTOMATIC", "net", "Artificial Intelligence"),
        (None, "SEMIAUTOMATIC", "not recorded", "Manual Processing"),
        (None, "MANUAL", None, None),
    ],
)
def test_segments_say_how_they_were_made(tmp_path, source, algorithm, kind, name, family):
    [segment] = written(tmp_path, source, algorithm, kind).SegmentSequence
    assert segment.SegmentAlgorithmType == kind
    assert segment.get("SegmentAlgorithmName") == name
    identifications = segment.get("SegmentationAlgorithmIdentificationSequence", [])
    families = [item.AlgorithmFamilyCodeSequence[0].CodeMeaning for item in identifications]
    assert families == ([family] if family else [])


@pytest.mark.parametrize(
    ("algorithm", "kind", "words"),
    [
        (
            None,
            "AUTOMATIC",
            "expected a named algorithm for segments of type AUTOMATIC, found none",
        ),
        (NET, "MANUAL", "expected no algorithm for segments of type MANUAL, found an algorithm"),
    ],
)
def test_contradicting_provenance_is_refused(tmp_path, source, algorithm, kind, words):
    with pytest.raises(ConfigError, match=words) as caught:
        written(tmp_path, source, algorithm, kind)
    assert caught.value.code == "algorithm-type"
    assert not (tmp_path / "out.dcm").exists()
