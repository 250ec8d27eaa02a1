"""The benchmark of DICOM readers: the series is what it says, and disagreement is found."""

import numpy as np
import pytest

from benchmarks import dicom
from benchmarks.dicom import SYNTAXES, Figure, disagreement
from medseg.core import Grid
from medseg.io.dicom_series import read_dicom_series
from tests.series import AXIAL, small_series


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_longer_series_is_made_and_the_readers_agree_on_it(tmp_path, syntax):
    grid = Grid((32, 32, 4), AXIAL.affine_ras)
    source = small_series(tmp_path / "source", grid, modality="CT")
    dicom.make_series(source, tmp_path / "long", 9, SYNTAXES[syntax])
    scan = read_dicom_series(tmp_path / "long")
    assert scan.volume.grid.shape_ijk == (32, 32, 9)
    slices = scan.volume.data_cijk[0].transpose(2, 0, 1).reshape(9, -1)
    assert len(np.unique(slices, axis=0)) == 9
    syntaxes = {str(one.file_meta.TransferSyntaxUID) for one in scan.source.datasets}
    assert syntaxes == {SYNTAXES[syntax]}
    assert (
        disagreement(dicom.read_medseg(tmp_path / "long"), dicom.read_simpleitk(tmp_path / "long"))
        == ""
    )


def test_other_places_and_voxels_are_found():
    data = np.arange(24).reshape(2, 3, 4)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    flipped = np.diag([1.0, 2.0, -3.0, 1.0])
    flipped[2, 3] = 9.0
    assert disagreement((data, affine), (data[:, :, ::-1], flipped)) == ""
    turned = affine[:, [1, 0, 2, 3]]
    assert disagreement((data, affine), (data.transpose(1, 0, 2), turned)) == ""
    assert "voxels that differ" in disagreement((data, affine), (data + 1, affine))
    moved = affine.copy()
    moved[0, 3] = 0.5
    assert "0.500 mm" in disagreement((data, affine), (data, moved))
    moved[0, 3] = 1.0
    assert disagreement((data, affine), (data, moved)) == "another corner"
    assert "shape" in disagreement((data, affine), (data[:, :, :2], affine))


def test_the_table_tells_ratios_and_what_cannot_be_read(capsys):
    figures = [
        Figure("medseg", "RLE", (1.0, 3.0, 2.0)),
        Figure("slow", "RLE", (5.0, 4.0, 4.0)),
        Figure("none", "RLE", (), "RuntimeError"),
    ]
    dicom.print_figures(figures, (512, 512, 300), 3)
    printed = capsys.readouterr().out
    assert printed.startswith("300 slices of 512 x 512, ")
    assert "slow                    4.00 s    2.00" in printed
    assert "none                 cannot read it (RuntimeError)" in printed
