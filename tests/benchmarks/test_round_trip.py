"""Labels lie where they were put after SEG and RTSTRUCT, on series of any orientation."""

from dataclasses import astuple

import numpy as np
import pytest

from benchmarks import round_trip
from benchmarks.round_trip import MOST_MM, Truth, random_truth, worst_of


def test_labels_of_random_oriented_series_come_back_within_a_hundredth_of_a_millimetre():
    worst, each = worst_of(24, seed=20)
    assert max(astuple(worst)) <= MOST_MM
    kinds = {word for truth, _ in each for word in truth.kind.split(", ")}
    assert kinds == {"oblique", "along the axes", "feet first", "flipped", "tilted"}


def test_truths_are_what_they_are_called():
    for seed in range(50):
        truth = random_truth(np.random.default_rng(seed))
        across, down, step = (v / np.linalg.norm(v) for v in truth.affine_lps[:3, :3].T)
        assert abs(across @ down) < 1e-12
        upright = np.cross(across, down) @ step
        assert upright > np.cos(np.radians(30.001))
        assert ("tilted" in truth.kind) == (upright < np.cos(np.radians(0.9)))
        along = np.abs(across).max() > 1 - 1e-12
        assert along == ("along the axes" in truth.kind)


def test_a_displaced_lost_or_doubled_voxel_is_told():
    truth = Truth(np.diag([2.0, 1.0, 3.0, 1.0]), (4, 4, 4), "")
    wanted = np.zeros((4, 4, 4), np.uint8)
    wanted[1, 2, 3] = wanted[2, 2, 3] = 1
    right = np.array([[2.0, 2.0, 9.0], [4.0, 2.0, 9.0]])
    assert round_trip._apart_mm(truth, wanted, 1, right) == 0
    moved = round_trip._apart_mm(truth, wanted, 1, right + np.array([0.0, 0.5, 0.0]))
    assert moved == pytest.approx(0.5)
    assert round_trip._apart_mm(truth, wanted, 1, right[:1]) == np.inf
    assert round_trip._apart_mm(truth, wanted, 1, right[[0, 0]]) == np.inf
    assert round_trip._apart_mm(truth, wanted, 2, right[:0]) == 0


def test_the_command_prints_the_worst_and_fails_where_it_is_too_much(capsys, monkeypatch):
    round_trip.main(["--series", "2", "--seed", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 series: ")
    assert [line.split("worst")[0].strip() for line in lines[1:]] == [
        "SEG",
        "SEG, by pydicom",
        "RTSTRUCT",
        "RTSTRUCT, by pydicom",
    ]
    monkeypatch.setattr(round_trip, "MOST_MM", -1.0)
    with pytest.raises(SystemExit, match="above"):
        round_trip.main(["--series", "1"])
