"""A series with labels and its structure set."""

import numpy as np
import pytest

from medseg.core import LabelMap, Volume
from medseg.io.dicom_export import write_dicom_series
from medseg.io.dicom_series import read_dicom_series
from medseg.io.rtstruct import write_rtstruct
from tests.structure_sets import GRID, MODEL, SCHEME, blocks


@pytest.fixture
def rt_case(tmp_path):
    """A series, its scan, labels on it and where the structure set goes."""
    volume = Volume(np.arange(24 * 20 * 6, dtype=np.int16).reshape(1, 24, 20, 6), GRID)
    write_dicom_series(volume, tmp_path / "series", modality="CT")
    scan = read_dicom_series(tmp_path / "series")
    labels = LabelMap(blocks(), scan.volume.grid, SCHEME)
    return scan.source, labels, tmp_path / "rt.dcm"


@pytest.fixture
def rt_file(rt_case):
    source, labels, path = rt_case
    write_rtstruct(labels, path, source, algorithm=MODEL)
    return path
