"""The side of the training benchmark that needs no other environment."""

import json
import sys

import pytest
import torch

from benchmarks import nnunet, training


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_steps_are_timed_and_the_missing_peer_is_said_to_be_missing(tmp_path, monkeypatch, capsys):
    pytest.importorskip(
        "dynamic_network_architectures", reason="needs the extra benchmarks, absent here"
    )
    out = tmp_path / "figures.json"
    words = ["training", "--quick", "--steps", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    training.main()
    printed = capsys.readouterr().out
    assert "nnU-Net was not measured: name an environment with nnunetv2" in printed
    figures = json.loads(out.read_text())["medseg"]
    assert len(figures["seconds"]) == 2
    assert all(second > 0 for second in figures["seconds"])


def test_the_network_of_both_sides_has_the_heads_that_it_says():
    pytest.importorskip(
        "dynamic_network_architectures", reason="needs the extra benchmarks, absent here"
    )
    network = training.PlainConv(training.QUICK, 3).train()
    heads = network(torch.zeros(1, 1, 16, 16, 16))
    heads = heads if isinstance(heads, tuple) else (heads,)
    assert len(heads) == len(network.head_strides)
    assert network.eval()(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_both_sides_train_one_network():
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet",
        reason="needs the extra benchmarks, absent here",
    )
    job = training.QUICK
    ours = training.PlainConv(job, 3).train()
    theirs = unet.PlainConvUNet(
        1,
        len(job.widths),
        job.widths,
        torch.nn.Conv3d,
        job.kernels,
        job.strides,
        (2,) * len(job.widths),
        3,
        (2,) * (len(job.widths) - 1),
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    theirs.load_state_dict(ours.network.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    answers = ours(x), theirs(x)
    heads = [list(found) if isinstance(found, list | tuple) else [found] for found in answers]
    assert len(heads[0]) == len(heads[1])
    for one, other in zip(*heads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_the_other_side_is_given_the_same_cases_under_its_own_names(tmp_path):
    data = training.made_cases(tmp_path / "made", (12, 12, 12), cases=2)
    raw = tmp_path / "raw"
    nnunet.write_nnunet_raw(data, raw)
    assert sorted(path.name for path in (raw / "imagesTr").iterdir()) == [
        "case_00_0000.nii.gz",
        "case_01_0000.nii.gz",
    ]
    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "box": 1}
    ours = (data / "labelsTr" / "case_01.nii.gz").read_bytes()
    assert (raw / "labelsTr" / "case_01.nii.gz").read_bytes() == ours
