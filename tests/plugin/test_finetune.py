"""Fine-tuning from the viewer's side, without one: a real process, watched, stopped, and failing."""

import json
import time

import pytest

from medseg.errors import ConfigError
from medseg.models.card import load_card
from medseg_napari._finetune import (
    FineTuneController,
    FineTuneRequest,
    TrainingSet,
    check_request,
    free_name,
    look_into_set,
    usable_cores,
)
from medseg_napari._models import FoundModel, find_all_models
from tests.tiny_dataset import write_dataset
from tests.tiny_model import write_tiny_model

LONG_S = 240.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny").parent


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("data") / "corrected", cases=3)
    (root / "split.json").unlink()
    return root


@pytest.fixture
def request_of(models, cases, tmp_path):
    def made(**changes):
        model = find_all_models(models).named("tiny")
        plain = {
            "model": model,
            "data": cases,
            "out": tmp_path / "tiny-tuned",
            "minutes": 1.0,
            "threads": 1,
            "device": "cpu",
            "steps": 2,
        }
        return FineTuneRequest(**{**plain, **changes})

    return made


def watch(controller, until=lambda state: not state.is_busy):
    began = time.monotonic()
    seen = []
    while not until(controller.state):
        assert time.monotonic() - began < LONG_S, controller.state
        controller.look()
        seen.append(controller.state)
        time.sleep(0.02)
    return seen


def test_a_tiny_model_is_tuned_in_a_process_and_compared_with_the_old_one(request_of, models):
    told = []
    controller = FineTuneController(told.append)
    request = request_of()
    assert controller.begin(request)
    assert not controller.begin(request)  # one at a time
    seen = watch(controller)
    state = controller.state
    assert state.phase == "done", state.message
    assert {"starting", "running"} <= {one.phase for one in seen}
    stages = {one.stage for one in told}
    assert {"reading cases", "comparing with the old model"} <= stages
    assert any(one.loss is not None for one in told)
    assert state.run_folder == request.out
    assert "tiny-tuned: 2 steps in" in state.message
    assert [row.structure for row in state.dice][:2] == ["near", "far"]
    record = json.loads((request.out / "finetune.json").read_text(encoding="utf-8"))
    assert state.held_out == tuple(case["case"] for case in record["held_out"])
    for row in state.dice[:2]:
        assert record["dice"][row.structure]["before"] == pytest.approx(row.before, abs=1e-4)
    new = load_card(request.out)
    old = load_card(models / "tiny")
    assert new.training.started_from.weights_sha256 == old.weights_sha256 != new.weights_sha256
    assert controller.wait(1)


def test_a_stop_ends_it_cleanly_and_keeps_the_model_so_far(request_of):
    controller = FineTuneController()
    assert controller.begin(request_of(steps=1_000_000))
    watch(controller, lambda state: state.loss is not None)
    controller.stop()
    assert controller.state.phase == "stopping"
    watch(controller)
    state = controller.state
    assert state.phase == "stopped", state.message
    assert "Stopped; the model so far is kept" in state.message
    assert load_card(state.run_folder).training.finished is False
    controller.stop()  # nothing is going on any more
    assert controller.state is state


def test_what_cannot_be_begun_is_told_without_a_process(request_of, models, cases, tmp_path):
    tiny = find_all_models(models).named("tiny")
    ensemble = FoundModel("both", (*tiny.folders, *tiny.folders), tiny.card)
    with pytest.raises(ConfigError, match="expected a model of one network, found an ensemble"):
        check_request(request_of(model=ensemble))
    labels = {"name": "x", "labels": [
        {"value": 1, "name": "liver", "rgb": [1, 2, 3]},
        {"value": 2, "name": "spleen", "rgb": [1, 2, 4]},
    ]}  # fmt: skip
    write_tiny_model(tmp_path / "others" / "organs", labels=labels)
    organs = find_all_models(tmp_path / "others").named("organs")
    with pytest.raises(ConfigError, match="liver, spleen, found near, far") as refused:
        check_request(request_of(model=organs))
    assert refused.value.code == "finetune-labels"
    (tmp_path / "tiny-tuned").mkdir()
    (tmp_path / "tiny-tuned" / "x").write_bytes(b"")
    with pytest.raises(ConfigError, match="expected a name that is free"):
        check_request(request_of())
    assert free_name(tiny, tmp_path) == "tiny-tuned-2"
    controller = FineTuneController()
    assert not controller.begin(request_of(data=tmp_path / "gone"))
    assert controller.state.phase == "failed"
    assert "gone" in controller.state.message
    controller.look()
    controller.stop()
    controller.close()


def test_a_process_that_dies_or_fails_gives_a_message(request_of, models, tmp_path):
    folder = write_tiny_model(tmp_path / "dead" / "tiny")
    model = find_all_models(folder.parent).named("tiny")
    (folder / "weights.safetensors").write_bytes(b"nothing")
    controller = FineTuneController()
    assert controller.begin(request_of(model=model))
    watch(controller)
    assert controller.state.phase == "failed"
    assert "[weights-hash]" in controller.state.message
    assert not (tmp_path / "tiny-tuned").exists()

    assert controller.begin(request_of())
    controller._process.kill()
    watch(controller)
    assert controller.state.phase == "failed"
    assert "ended unexpectedly (exit code -9), perhaps because memory" in controller.state.message


def test_a_training_set_is_described_before_the_start(cases, models):
    tiny = find_all_models(models).named("tiny")
    found = look_into_set(cases)
    assert found == TrainingSet(3, ("near", "far"), ("MRI",))
    assert found.in_words(tiny).startswith("3 cases, of which a fifth (at least one) is held out")
    assert "cannot be told" in TrainingSet(1, ("near", "far"), ("T1",)).in_words(None)
    assert "are not those of the model" in TrainingSet(2, ("liver",), ("T1",)).in_words(tiny)
    assert usable_cores() >= 1
