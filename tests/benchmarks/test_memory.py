"""The benchmark of memory measures processes of their own and says what does not hold."""

import json
from dataclasses import replace

import numpy as np
import psutil
import pytest

from benchmarks import memory
from benchmarks.memory import MIB, Found, Job, Row

JOB = Job(classes=5, edge=32, depth=48, window=16)


def row(job=JOB, *, peak=1000 * MIB, predicted=1000 * MIB, equal=None, beside=None):
    if beside is not None:
        peak = beside + job.held_bytes
        predicted = peak
    return Row(job, Found(peak, 1.0, predicted, peak, "k", "float32", 1, 8), None, equal)


def test_both_sides_run_in_processes_of_their_own_and_agree():
    found = memory.measure(JOB)
    assert found.ours.windows == 3 * 3 * 4
    assert found.ours.sums == "float32"
    # a process with torch holds more than this, and both tell of themselves alone
    assert 100 * MIB < found.ours.peak_bytes < 4096 * MIB
    assert found.ours.own_peak_bytes <= found.ours.peak_bytes
    assert found.monai is not None
    assert 100 * MIB < found.monai.peak_bytes < 4096 * MIB
    assert found.equal_voxels > 0.9999


def test_a_side_that_fails_is_told_with_its_last_words(tmp_path):
    too_little = replace(JOB, limit_bytes=1)
    with pytest.raises(RuntimeError, match=r"the largest part is program"):
        memory.in_process("medseg", too_little, tmp_path / "labels.npy")


def test_the_peak_is_at_least_what_is_held_now():
    held = np.ones(64 * MIB, dtype=np.uint8)
    assert memory.peak_bytes() >= psutil.Process().memory_info().rss - MIB
    assert held.all()


def test_predictions_off_the_plan_broken_limits_and_other_labels_are_told():
    assert memory.failures([row(peak=1020 * MIB), row(equal=0.99995)]) == []
    for wrong, words in [
        (row(predicted=900 * MIB), "measured 1.11 times the predicted"),
        (row(predicted=1450 * MIB), "measured 0.69 times the predicted"),
        (row(replace(JOB, limit_bytes=999 * MIB)), "limited to"),
        (row(equal=0.9997), "99.97% of the voxels as MONAI"),
        (row(Job(14, 512, 800), peak=3 << 30, predicted=3 << 30), "3.00 GiB, to be below 2.50"),
    ]:
        (told,) = memory.failures([row(), wrong])
        assert words in told


def test_growth_is_looked_for_where_volumes_are_swept_alike():
    def at(depth, beside, **changes):
        return row(Job(14, 256, depth, **changes), beside=beside)

    # flatter than wide: less, and growing
    assert memory.growth([at(100, 500), at(200, 800), at(400, 1000), at(800, 1010)]) == []
    (told,) = memory.growth([at(400, 1000 * MIB), at(800, 1200 * MIB)])
    assert (
        told == "14 classes, plane 256: 1200 MiB beside input and output at 800 slices, 1000 at 400"
    )
    (told,) = memory.growth([at(100, 1100 * MIB), at(400, 1000 * MIB)])
    assert "at 100 slices" in told
    # under a limit the sweep is another one; nothing is deep enough
    assert memory.growth([at(400, 1000), at(800, 2000, limit_bytes=1)]) == []
    assert memory.growth([at(100, 1000), at(200, 2000)]) == []


def test_an_fp32_accumulator_of_the_large_volume_needs_what_the_issue_says():
    job = Job(14, 512, 800)
    assert job.sums_bytes / memory.GIB == pytest.approx(10.9, abs=0.05)
    assert job.held_bytes == 512 * 512 * 800 * 3


def test_limits_leave_less_than_the_sums_take():
    slab = 4 * 5 * 16 * 32 * 32
    peak = 10 * slab
    assert [job.limit_bytes for job in memory.limited(row(peak=peak, predicted=peak))] == [
        peak - slab // 4,
        peak - 9 * slab // 16,
    ]


def test_made_volumes_are_stored_like_nifti_and_vary():
    volume = memory.made_volume(JOB)
    assert volume.dtype == np.int16
    assert volume.flags.f_contiguous
    assert volume.shape == (32, 32, 48)
    assert volume[:, :, 0].std() > 100
    assert not np.array_equal(volume[:, :, 0], volume[:, :, 1])


def test_the_command_prints_draws_and_fails_where_something_does_not_hold(
    tmp_path, monkeypatch, capsys
):
    peaks = {"medseg": 1000 * MIB, "MONAI": 2000 * MIB}

    def told(side, job, labels):
        np.save(labels, np.zeros(job.shape, dtype=np.uint8))
        predicted = (1000 if side == "medseg" else 0) * MIB
        return Found(peaks[side], 1.0, predicted, peaks[side], "k", "float32", 1, 8)

    monkeypatch.setattr(memory, "in_process", told)
    monkeypatch.setattr(memory, "limited", lambda row: [])
    picture, figures = tmp_path / "deep" / "memory.png", tmp_path / "memory.json"
    words = ["memory", "--quick", "--picture", str(picture), "--json", str(figures)]
    monkeypatch.setattr("sys.argv", words)
    memory.main()
    assert "measured/predicted 1.00 to 1.00" in capsys.readouterr().out
    assert 5_000 < picture.stat().st_size < 200_000
    assert len(json.loads(figures.read_text())) == 2
    peaks["medseg"] = 1200 * MIB
    with pytest.raises(SystemExit, match=r"measured 1\.20 times the predicted peak"):
        memory.main()
    monkeypatch.setattr("sys.argv", [*words, "--max-depth", "128", "--no-picture", "--no-peer"])
    peaks["medseg"] = 1000 * MIB
    capsys.readouterr()
    memory.main()
    assert "128x128x192" not in capsys.readouterr().out
