"""The benchmark of patches draws what training draws, and its picture."""

import json
import sys

from benchmarks import augmentation


def test_every_preset_is_timed_and_patches_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nnunetv2", None)  # as where it is not installed
    figures, picture = tmp_path / "figures.json", tmp_path / "patches.png"
    words = ["augmentation", "--quick", "--json", str(figures), "--picture", str(picture)]
    monkeypatch.setattr("sys.argv", words)
    augmentation.main()
    rows = json.loads(figures.read_text())
    assert [row["side"] for row in rows] == ["medseg none", "medseg light", "medseg nnunet"]
    assert all(row["milliseconds"] > 0 for row in rows)
    assert picture.stat().st_size > 10_000
    assert "nnU-Net is left out" in capsys.readouterr().err
