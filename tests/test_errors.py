import copy
import pickle

import pytest

from medseg.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    MedsegError,
    ResourceError,
    ShapeError,
    one_of,
)

TREE = [
    (ConfigError, ValueError, "config"),
    (GeometryError, ValueError, "geometry"),
    (ShapeError, ValueError, "shape"),
    (FormatError, ValueError, "format"),
    (ResourceError, OSError, "resource"),
]


@pytest.mark.parametrize(("kind", "builtin", "code"), TREE)
def test_every_error_is_ours_and_the_builtin_one_would_guess(kind, builtin, code):
    error = kind("case.nii", expected="a", found="b", remedy="do c")
    assert isinstance(error, MedsegError)
    assert isinstance(error, builtin)
    assert str(error) == "case.nii: expected a, found b; do c"
    assert error.code == code
    assert kind("x", expected="a", found="b", remedy="c", code="special").code == "special"
    assert (error.where, error.expected, error.found, error.remedy) == (
        "case.nii",
        "a",
        "b",
        "do c",
    )


@pytest.mark.parametrize(("kind", "builtin", "code"), TREE)
def test_errors_cross_process_borders(kind, builtin, code):
    error = kind("case.nii", expected="a", found="b", remedy="do c", code="special")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert type(other) is kind
        assert str(other) == str(error)
        assert (other.code, other.where) == ("special", "case.nii")


def test_the_nearest_member_of_a_closed_set_is_named():
    assert one_of("neunt", ["revunet", "neunet"]).endswith("(nearest: neunet)")
    assert one_of("unlike", ["b", "a"]) == "one of a, b"


def test_of_a_long_list_the_nearest_come_first_and_the_rest_is_counted():
    keys = [f"key_{number:02d}" for number in range(30)] + ["learning_rate", "learning_rates"]
    told = one_of("lerning_rate", keys)
    assert told.startswith("one of learning_rate, learning_rates, key_")
    assert told.endswith(" and 26 others (nearest: learning_rate)")
    assert told.count(",") == 5
