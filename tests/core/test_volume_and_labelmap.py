import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.core.labelmap import present_values
from medseg.errors import ShapeError

GRID = Grid((2, 3, 4), np.diag([1.0, 2.0, 5.0, 1.0]))
SCHEME = LabelScheme.plain("parts", {1: "front", 3: "back"})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 3]), min_size=24, max_size=24))
def test_volumes_in_ml_add_up_to_what_is_not_background(values):
    labels = LabelMap(np.reshape(np.array(values, np.uint8), (2, 3, 4)), GRID, SCHEME)
    volumes = labels.volumes_ml()
    assert set(volumes) == {"front", "back"}
    assert sum(volumes.values()) == pytest.approx(np.count_nonzero(values) * 10.0 / 1000.0)


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(max_dims=3, max_side=6))
    )
)
def test_the_values_that_are_present_are_those_that_sorting_finds(data):
    for view in (data, np.asfortranarray(data), data[::-1]):
        assert present_values(view) == np.unique(view).tolist()


def test_a_value_that_one_part_of_many_begins_or_ends_with_is_present():
    part = 1 << 20
    for place in (0, part - 1, part, part + 1, 2 * part - 1, 2 * part):
        data = np.zeros(2 * part + 1, np.uint8)
        data[place] = 7
        assert present_values(data) == [0, 7], place
        data[:] = 7
        data[place] = 9
        assert present_values(data) == [7, 9], place
    data[:part], data[part:] = 3, 4
    assert present_values(data) == [3, 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_a_volume_keeps_array_and_type_as_given(dtype):
    data = np.zeros((1, 2, 3, 4), dtype)
    assert Volume(data, GRID).data_cijk is data


def test_data_on_another_grid_keeps_names_and_scheme():
    other = Grid((1, 1, 1), np.eye(4))
    volume = Volume(np.zeros((2, 2, 3, 4)), GRID, ("T1", "T2"))
    assert volume.on_grid(np.zeros((2, 1, 1, 1)), other).channels == ("T1", "T2")
    labels = LabelMap(np.zeros((2, 3, 4), np.uint16), GRID, SCHEME)
    assert labels.on_grid(np.zeros((1, 1, 1), np.uint8), other).scheme is SCHEME


@pytest.mark.parametrize(
    ("data", "channels", "words", "code"),
    [
        (np.zeros((2, 3, 4)), ("a",), "channel axis first", "volume-shape"),
        (np.zeros((1, 4, 3, 2)), ("a",), "array of shape", "volume-shape"),
        (np.zeros((2, 2, 3, 4)), ("a",), "one name for each of 2", "volume-channels"),
        (np.zeros((1, 2, 3, 4), complex), ("a",), "integer or floating", "volume-type"),
        (np.zeros((1, 2, 3, 4), bool), ("a",), "integer or floating", "volume-type"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(data, channels, words, code):
    with pytest.raises(ShapeError, match=words) as caught:
        Volume(data, GRID, channels)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "words", "code"),
    [
        (np.zeros((1, 2, 3, 4), np.uint8), "an array of shape", "labelmap-shape"),
        (np.zeros((2, 3, 5), np.uint8), "an array of shape", "labelmap-shape"),
        (np.zeros((2, 3, 4), np.int16), "type uint8 or uint16", "labelmap-type"),
        (np.full((2, 3, 4), 2, np.uint8), r"also \[2\]", "labelmap-values"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(data, words, code):
    with pytest.raises(ShapeError, match=words) as caught:
        LabelMap(data, GRID, SCHEME)
    assert caught.value.code == code
