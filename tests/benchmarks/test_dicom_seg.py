"""The benchmark of SEG: the case is what it says, the sides agree, and disagreement is found."""

import numpy as np
import pytest

from benchmarks import dicom_seg
from benchmarks.dicom_seg import Figure
from medseg.core import LabelMap
from medseg.io import dicom_seg as module
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg import Algorithm, write_seg


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    dicom_seg.make_case(folder, 6, 4, 24)
    return folder


def test_every_structure_is_there(folder):
    labels = np.load(folder / "labels.npy")
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    assert labels.shape == (24, 24, 6)


@pytest.mark.parametrize("side", dicom_seg.SIDES)
def test_a_side_writes_verifies_and_is_timed(folder, tmp_path, side, monkeypatch):

    monkeypatch.setattr(module, "check_seg", module.check_seg)  # put back afterwards
    path = tmp_path / "seg.dcm"
    found = dicom_seg._run(folder, side, "BINARY", True, path)
    assert found["write_s"] > 0
    assert found["verify_s"] > 0
    assert found["bytes"] == path.stat().st_size
    _, labels = dicom_seg._read_case(folder)
    assert dicom_seg.disagreement(path, labels) == ""


def test_each_side_reads_the_other(folder, tmp_path):
    scan, labels = dicom_seg._read_case(folder)
    paths = {side: tmp_path / side for side in dicom_seg.SIDES}
    dicom_seg._by_medseg(paths["medseg"], scan, labels, "LABELMAP", False)
    with quiet_dicom():
        dicom_seg._by_highdicom(paths["highdicom"], scan, labels, "LABELMAP", False)
    dicom_seg._check_agreement(folder, paths, "LABELMAP")
    changed = labels.data_ijk.copy()
    changed[0, 0, 0] = 3
    other = LabelMap(changed, labels.grid, labels.scheme)
    write_seg(other, paths["medseg"], scan.source, algorithm=Algorithm("x", "1"))
    assert dicom_seg.disagreement(paths["medseg"], labels) == "1 voxels that differ"
    with pytest.raises(SystemExit, match="1 voxels that differ"):
        dicom_seg._check_agreement(folder, paths, "BINARY")


def test_the_table_tells_ratios(capsys):
    figures = [
        Figure("medseg", "BINARY", (1.0, 3.0, 2.0), (1.0, 1.0, 1.0), 10**6, (10**7,) * 3),
        Figure("highdicom", "BINARY", (4.0, 4.0, 4.0), (5.0, 5.0, 5.0), 10**6, (10**8,) * 3),
    ]
    dicom_seg.print_figures(figures, "many")
    printed = capsys.readouterr().out
    assert (
        "medseg     write    2.00 s  verify    1.00 s  file     1.0 MB  peak      10 MB" in printed
    )
    assert printed.rstrip().endswith("3.00")
