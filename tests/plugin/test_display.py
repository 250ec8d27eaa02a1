from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.io.scan import DicomSource, ItkSource
from medseg_napari._display import PRESETS, Window, display_settings, modality_of, window_of

FILE = ItkSource(Path("image.nrrd"))


def series(**tags):
    header = Dataset()
    for name, value in tags.items():
        setattr(header, name, value)
    return DicomSource(Path("series"), (header,) * 3, np.eye(4))


def ramp(low, high):
    return np.linspace(low, high, 24**3).reshape(24, 24, 24).astype(np.float32)


def test_the_window_of_the_header_comes_first():
    source = series(Modality="CT", WindowCenter=-600, WindowWidth=1600)
    assert display_settings(ramp(-1000, 1000), source)["contrast_limits"] == (-1400, 200)


def test_of_several_windows_the_first_is_taken():
    source = series(Modality="CT", WindowCenter=[50, 300], WindowWidth=[350, 2000])
    assert window_of(ramp(-1000, 1000), source) == Window(50, 350)


@pytest.mark.parametrize(
    "tags", [{}, {"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 0, "WindowWidth": 0}]
)
def test_a_ct_without_a_window_shows_soft_tissue(tags):
    source = series(Modality="CT", **tags)
    assert window_of(ramp(-1000, 1000), source) == PRESETS["CT"]["soft tissue"] == Window(40, 400)


def test_voxels_of_a_file_that_reach_down_to_air_are_those_of_a_ct():
    assert modality_of(ramp(-1024, 1500), FILE) == "CT"
    assert modality_of(ramp(-200, 1500), FILE) == ""
    assert modality_of(ramp(-30000, 1500), FILE) == ""


def test_pet_is_shown_dark_on_white_in_suv_whatever_its_header_says():
    source = series(Modality="PT", WindowCenter=12000, WindowWidth=24000)
    settings = display_settings(ramp(0, 20), source)
    assert settings == {"contrast_limits": (0, 7), "colormap": "gray_r"}


def test_mr_reaches_from_its_dark_to_nearly_its_brightest_voxels():
    low, high = display_settings(ramp(0, 1000), series(Modality="MR"))["contrast_limits"]
    assert low == pytest.approx(5, abs=1)
    assert high == pytest.approx(995, abs=1)


def test_an_image_that_is_empty_but_for_a_few_voxels_is_seen():
    data = np.zeros((64, 64, 64), dtype=np.int16)
    data[32, 32, 32] = 100
    low, high = display_settings(data, FILE)["contrast_limits"]
    assert low < high


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_has_a_window_of_some_width(value):
    low, high = window_of(np.full((4, 4, 4), value), FILE).limits
    assert low < high


def test_voxels_that_are_no_numbers_do_not_count():
    data = ramp(0, 1000)
    data[:4] = np.nan
    assert np.isfinite(display_settings(data, FILE)["contrast_limits"]).all()
