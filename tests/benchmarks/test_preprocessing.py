"""The benchmark of preparation: both sides see one CT, and the table says how far they agree."""

import json
import sys

import numpy as np
import pytest

from benchmarks import preprocessing
from benchmarks.preprocessing import STRUCTURES, agreement, made_ct
from medseg.core import LabelScheme
from medseg.io.reading import read_image, read_labels


def test_the_made_ct_has_its_structures_and_spacing(tmp_path):
    image, label = made_ct((40, 36, 20), tmp_path)
    volume = read_image(image).volume
    assert volume.grid.spacing_mm == pytest.approx(preprocessing.SPACING_MM)
    assert volume.data_cijk.min() < -900
    scheme = LabelScheme.plain("made", {n: f"structure {n}" for n in range(1, STRUCTURES + 1)})
    assert len(np.unique(read_labels(label, scheme).data_ijk)) > STRUCTURES // 2


def test_agreement_is_full_with_itself_and_less_with_another(tmp_path):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(8, 8, 8)), rng.integers(0, 5, (8, 8, 8))
    np.savez(tmp_path / "a.npz", x_ijk=x, labels_ijk=labels)
    np.savez(tmp_path / "b.npz", x_ijk=x + 0.5, labels_ijk=np.where(labels == 1, 2, labels))
    assert agreement(tmp_path / "a.npz", tmp_path / "a.npz") == pytest.approx((0, 1, 1))
    distance, correlation, dice = agreement(tmp_path / "b.npz", tmp_path / "a.npz")
    assert (distance, correlation) == pytest.approx((0.5, 1))
    assert dice < 0.8


def test_both_interpolations_of_medseg_are_measured_in_this_process(tmp_path):
    image, label = made_ct((40, 36, 20), tmp_path)
    for side in ("medseg linear", "medseg cubic"):
        found = preprocessing.run_side(side, image, label, tmp_path / f"{side}.npz")
        assert found.shape_ijk == (21, 19, 20)
        assert found.seconds > 0
        assert found.file_bytes > 1000
    distance, correlation, dice = agreement(
        tmp_path / "medseg linear.npz", tmp_path / "medseg cubic.npz"
    )
    assert 0 < distance < 0.2
    assert correlation > 0.98
    assert dice == 1


def test_a_side_that_is_not_installed_says_so_and_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    files = [str(tmp_path / name) for name in ("a", "b", "c")]
    monkeypatch.setattr("sys.argv", ["preprocessing", "--side", "nnU-Net", "--files", *files])
    with pytest.raises(SystemExit) as stopped:
        preprocessing.main()
    assert stopped.value.code == preprocessing.MISSING
    assert "nnU-Net is left out" in capsys.readouterr().err


def test_figures_and_table_come_from_what_was_measured(tmp_path, monkeypatch, capsys):
    def in_process(side, image, label, keep):
        return None if side == "nnU-Net" else preprocessing.run_side(side, image, label, keep)

    monkeypatch.setattr(preprocessing, "in_process", in_process)
    monkeypatch.setattr(preprocessing, "QUICK", (40, 36, 20))
    figures = tmp_path / "figures.json"
    words = ["preprocessing", "--quick", "--repeats", "1", "--json", str(figures)]
    monkeypatch.setattr("sys.argv", words)
    preprocessing.main()
    rows = json.loads(figures.read_text())
    assert [row["side"] for row in rows] == ["medseg linear", "medseg cubic"]
    printed = capsys.readouterr().out
    assert "nnU-Net was left out" in printed
    assert "40x36x20 at (0.8, 0.8, 1.5) mm to 21x19x20" in printed
