"""Shapes between two slices: convex, growing, the same along every axis."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from medseg.errors import ConfigError, ShapeError
from medseg.io.contour_interpolation import interpolate_between


def two_squares():
    mask = np.zeros((6, 16, 18), dtype=bool)
    mask[0, 4:9, 5:10] = True
    mask[5, 2:14, 3:15] = True
    mask[2, 0, 0] = True  # between the ends nothing is looked at
    return mask


def test_shapes_in_between_grow_from_one_end_to_the_other_along_every_axis():
    mask = two_squares()
    filled = interpolate_between(mask, 0)
    areas = filled.sum(axis=(1, 2)).tolist()
    assert areas == sorted(areas)
    assert areas[0] == 25
    assert areas[-1] == 144
    assert areas[1] < areas[-2]
    assert not filled[2, 0, 0]
    assert not (filled & ~mask[-1]).any()
    for axis in (1, 2):
        turned = interpolate_between(np.moveaxis(mask, 0, axis), axis)
        other = np.moveaxis(turned, axis, 0)
        assert 2 * (other & filled).sum() >= 0.97 * (other.sum() + filled.sum())


def test_an_empty_end_is_refused():
    mask = two_squares()
    mask[5] = False
    with pytest.raises(ShapeError, match="a shape in the first and in the last slice"):
        interpolate_between(mask, 0)


def test_a_missing_module_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "itk", SimpleNamespace())
    with pytest.raises(ConfigError, match="pip install itk-morphologicalcontourinterpolation"):
        interpolate_between(two_squares(), 0)
