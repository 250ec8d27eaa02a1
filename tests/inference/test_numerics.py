"""The fastest trusted combination for prediction, kept in a file that may not be trusted."""

import json

import pytest
import torch
from torch import nn

from medseg.errors import ConfigError, ShapeError
from medseg.inference import numerics
from medseg.inference.numerics import (
    InferenceNumerics,
    choose_inference_numerics,
    inference_threads,
    using_threads,
)
from medseg.models.table import build_network
from medseg.ops.precision import has_bf16

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bfloat16")


@pytest.fixture(autouse=True)
def one_thread():
    with using_threads(1):
        yield


class Net(nn.Module):
    """Two classes, told apart by the sign of the image, and a record of what it was run on."""

    calls = []  # noqa: RUF012 - shared with the copies that the probe makes

    def __init__(self, spoil=None, least=1, multiple=None, channels=1):
        super().__init__()
        self.mix = nn.Conv3d(channels, 2, 1)
        self.noise = nn.Dropout(0.5)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1))
            self.mix.bias.zero_()
        self.spoil = spoil
        self.least = least
        if multiple is not None:
            self.size_multiple = multiple
        Net.calls = []

    def forward(self, x):
        if min(x.shape[2:]) < self.least:
            raise ValueError("too small for the norms")
        y = self.noise(self.mix(x))
        layout = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        Net.calls.append((tuple(x.shape), y.dtype, layout))
        if y.dtype != torch.float32:
            if self.spoil == "nan":
                y = torch.where(x > 1, float("nan"), y)
            if self.spoil == "sign":
                y = torch.where(x > 1, -y, y)
            if self.spoil == "refuse":
                raise RuntimeError("not implemented for this type")
        return y


def choose(network, precision="auto", shape=(2, 1, 32, 32, 32), store=None, key="k", **more):
    return choose_inference_numerics(network, shape, CPU, precision, store=store, key=key, **more)


def names(chosen):
    return set(chosen.seconds)


def test_auto_takes_the_fastest_of_what_the_processor_can_do():
    chosen = choose(Net(), limit_s=20.0)
    expected = {"fp32, channels last", "fp32, contiguous"}
    assert names(chosen) == expected | ({"bf16, channels last"} if has_bf16(CPU) else set())
    assert chosen.in_words() == min(chosen.seconds, key=chosen.seconds.get)
    assert chosen.notes == ()


def test_what_is_timed_is_what_is_named():
    chosen = choose(Net(channels=3), shape=(2, 3, 32, 32, 32), limit_s=20.0)
    assert {shape[:2] for shape, _, _ in Net.calls} == {(1, 3)}, "one image at a time"
    words = {torch.float32: "fp32", torch.bfloat16: "bf16", True: "channels last"}
    at_last = {
        f"{words[dtype]}, {words.get(last, 'contiguous')}"
        for shape, dtype, last in Net.calls
        if shape[2:] == (32, 32, 32)
    }
    assert at_last == names(chosen), "the full window where time allows"


def test_network_and_random_numbers_stay_as_they_are():
    network = Net().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    strides = network.mix.weight.stride()
    torch.manual_seed(5)
    choose(network)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert network.training
    assert network.mix.weight.stride() == strides
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


@pytest.mark.parametrize(
    ("multiple", "window", "step"),
    [((16, 16, 8), (64, 96, 96), (16, 16, 8)), (None, (64, 96, 96), (8, 8, 8))],
)
def test_reduced_windows_are_legal_and_the_full_one_is_left_out_where_time_is_short(
    multiple, window, step
):
    choose(Net(multiple=multiple), shape=(1, 1, *window), limit_s=0.0)
    extents = {shape[2:] for shape, _, _ in Net.calls}
    assert window not in extents
    assert all(n % s == 0 for one in extents for n, s in zip(one, step, strict=True))


def test_windows_that_a_foreign_network_refuses_are_passed_over():
    chosen = choose(Net(least=48), shape=(1, 1, 64, 96, 96), limit_s=20.0)
    assert min(min(shape[2:]) for shape, _, _ in Net.calls) >= 48
    assert chosen.seconds


def test_a_window_that_the_network_refuses_is_told_as_the_network_tells_it():
    network = build_network(
        "neunet", {"preset": "tiny", "in_channels": 1, "out_channels": 2}
    ).eval()
    with pytest.raises(ShapeError, match="nearest legal extents"):
        choose(network, shape=(1, 1, 7, 7, 7))


@needs_bf16
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_bf16_that_answers_nan_is_never_taken(precision):
    chosen = choose(Net("nan"), precision)
    assert chosen.precision == "fp32"
    assert names(chosen) == {"fp32, channels last", "fp32, contiguous"}
    assert chosen.notes == ("bf16 makes this network answer NaN or infinity; fp32 is used",)


@needs_bf16
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_bf16_that_the_network_cannot_run_in_is_not_taken(precision):
    chosen = choose(Net("refuse"), precision)
    assert chosen.precision == "fp32"
    assert "does not run on this device with this network" in chosen.notes[0]


@needs_bf16
def test_bf16_with_other_labels_is_taken_only_if_it_was_asked_for():
    by_itself = choose(Net("sign"))
    assert by_itself.precision == "fp32"
    assert "of the voxels the label of fp32; fp32 is used" in by_itself.notes[0]
    # about one voxel in six of a normal distribution lies above 1
    assert 80 < float(by_itself.notes[0].split("only ")[1].split(" %")[0]) < 88
    asked = choose(Net("sign"), "bf16")
    assert asked.precision == "bf16"
    assert "on made noise, bf16 gives 8" in asked.notes[0]


@needs_bf16
def test_regions_are_compared_channel_by_channel():
    class OneRegion(Net):
        def forward(self, x):
            y = super().forward(x)
            # the larger channel stays the larger one, and both change sides
            return y if y.dtype == torch.float32 else y.float() + 100

    assert choose(OneRegion()).notes == ()
    assert "label of fp32; fp32 is used" in choose(OneRegion(), regions=True).notes[0]


def test_a_network_without_an_answer_in_fp32_is_left_to_the_engine():
    network = Net()
    with torch.no_grad():
        network.mix.bias.fill_(float("nan"))
    assert choose(network).notes == ()


def test_one_precision_leaves_the_layouts_to_be_chosen():
    assert names(choose(Net(), "fp32", limit_s=20.0)) == {"fp32, channels last", "fp32, contiguous"}
    Net.calls = []
    chosen = choose(Net(), "bf16", limit_s=20.0)
    assert chosen.precision == "bf16"
    assert names(chosen) == {"bf16, channels last", "bf16, contiguous"}


def test_bf16_on_a_processor_without_it_is_not_tried_and_if_asked_for_noted(monkeypatch):
    monkeypatch.setattr(numerics, "has_bf16", lambda device: False)
    assert names(choose(Net(), limit_s=20.0)) == {"fp32, channels last", "fp32, contiguous"}
    assert "torch imitates it" in choose(Net(), "bf16").notes[0]
    assert choose(Net(), "fp32").notes == ()


def test_what_cannot_be_asked_for_is_named():
    with pytest.raises(ConfigError, match=r"one of auto, bf16, fp32.* on a CPU, found 'fp16'"):
        choose(Net(), "fp16")
    with pytest.raises(ConfigError, match=r"nearest: bf16"):
        choose(Net(), "bf61")


def test_a_choice_is_kept_and_found_again(tmp_path):
    store = tmp_path / "cache" / "numerics.json"
    first = choose(Net(), store=store, limit_s=20.0)
    network = Net()
    assert choose(network, store=store) == first
    assert Net.calls == [], "nothing was run"
    choose(network, store=store, key="other weights", limit_s=20.0)
    assert Net.calls != []
    with using_threads(2):
        choose(network, "fp32", store=store, limit_s=20.0)
    choices = json.loads(store.read_text())["choices"]
    assert len(choices) == 3
    assert all(f"torch {torch.__version__}" in key for key in choices)
    assert [key.split(" | ")[3] for key in choices] == ["1 threads", "1 threads", "2 threads"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00 no text",
        b"[1, 2]",
        b'{"format": "another", "choices": {}}',
        b'{"format": "medseg-inference-numerics-1", "choices": {"a": {"precision": "fp8"}}}',
        b" " * (1 << 20) + b"{}",
    ],
)
def test_a_damaged_or_foreign_store_is_ignored_and_rewritten(tmp_path, content):
    store = tmp_path / "numerics.json"
    store.write_bytes(content)
    first = choose(Net(), store=store, limit_s=20.0)
    assert choose(Net(), store=store) == first
    assert Net.calls == []
    assert json.loads(store.read_text())["format"] == "medseg-inference-numerics-1"


def test_a_forged_choice_is_measured_again(tmp_path):
    store = tmp_path / "numerics.json"
    choose(Net(), store=store, limit_s=20.0)
    content = json.loads(store.read_text())
    for choice in content["choices"].values():
        choice["channels_last"] = "yes"
    store.write_text(json.dumps(content))
    choose(Net(), store=store, limit_s=20.0)
    assert Net.calls != []
    (choice,) = json.loads(store.read_text())["choices"].values()
    assert isinstance(choice["channels_last"], bool)


def test_a_store_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").touch()
    assert choose(Net(), store=tmp_path / "file" / "numerics.json").seconds
    (tmp_path / "folder.json").mkdir()
    assert choose(Net(), store=tmp_path / "folder.json").seconds
    assert list(tmp_path.glob(".*.tmp*")) == []


def test_old_choices_make_room_for_new_ones(tmp_path):
    store = tmp_path / "numerics.json"
    some = InferenceNumerics("fp32", True, {"fp32, channels last": 0.1}, ())
    for n in range(numerics._KEPT_CHOICES + 3):
        numerics._write_store(store, f"key {n}", some)
    kept = numerics._read_store(store)
    assert len(kept) == numerics._KEPT_CHOICES
    assert "key 2" not in kept
    assert kept["key 3"].to_numerics() == some


def test_a_probe_that_time_cut_short_is_not_kept(tmp_path):
    store = tmp_path / "numerics.json"
    chosen = choose(Net(), store=store, limit_s=0.0)
    assert len(chosen.seconds) == 1
    assert not store.exists()


def test_numerics_arrange_tensors_and_networks():
    last = InferenceNumerics("bf16", True, {}, ())
    x = torch.randn(1, 3, 4, 4, 4)
    assert last.arrange(x).is_contiguous(memory_format=torch.channels_last_3d)
    network = last.arrange_network(nn.Conv3d(3, 4, 3))
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    with last.autocast(CPU):
        assert network(x).dtype == torch.bfloat16
    plain = InferenceNumerics("fp32", False, {}, ())
    assert plain.arrange(last.arrange(x)).is_contiguous()
    with plain.autocast(CPU):
        assert network(x).dtype == torch.float32
    assert (last.in_words(), plain.autocast_dtype) == ("bf16, channels last", None)


@pytest.mark.parametrize(
    ("total", "responsive", "expected"),
    [(1, True, 1), (2, True, 1), (16, True, 15), (1, False, 1), (16, False, 16)],
)
def test_a_viewer_is_left_one_core(total, responsive, expected):
    assert inference_threads(total, responsive) == expected


def test_no_core_at_all_is_refused():
    with pytest.raises(ConfigError, match="threads: expected at least 1, found 0"):
        inference_threads(0, responsive=True)


@using_threads(3)
def divide_by_zero_with_three_threads():
    return torch.get_num_threads() // (torch.get_num_threads() - 3)


def test_threads_are_as_before_after_an_error_too():
    with using_threads(2):
        with pytest.raises(ZeroDivisionError, match="integer division"):
            divide_by_zero_with_three_threads()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
