"""Fine-tuning from the viewer's side, without one: a process that is watched, stopped, failing."""

import os
import signal
import sys
import time
from dataclasses import fields

import psutil
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


class Script(FineTuneRequest):
    """A process that does what a line of Python says."""

    line = ""

    def command(self):
        return [sys.executable, "-c", self.line]


def script(request, line):
    made = Script(*(getattr(request, one.name) for one in fields(request)))
    type(made).line = line
    return made


def test_a_process_that_dies_or_fails_gives_a_message(request_of, models, tmp_path):
    folder = write_tiny_model(tmp_path / "dead" / "tiny")
    model = find_all_models(folder.parent).named("tiny")
    (folder / "weights.safetensors").write_bytes(b"nothing")
    controller = FineTuneController()
    assert not controller.begin(request_of(model=model))
    assert "expected the sha256 on the card" in controller.state.message
    (folder / "weights.safetensors").unlink()
    assert not controller.begin(request_of(model=model))
    assert "found no file that can be read" in controller.state.message

    event = '{"event": "failed", "code": "disk-full", "message": "no room"}'
    assert controller.begin(script(request_of(), f"print('nonsense'); print('{event}')"))
    watch(controller)
    assert (controller.state.phase, controller.state.message) == ("failed", "no room [disk-full]")
    last_words = "import sys; sys.stderr.write('what was wrong\\n'); sys.exit(3)"
    assert controller.begin(script(request_of(), last_words))
    watch(controller)
    assert "ended unexpectedly (exit code 3). what was wrong" in controller.state.message
    assert controller.begin(script(request_of(), 'print(\'{"event": "stopped"}\')'))
    watch(controller)
    assert controller.state.message == "Stopped; nothing was kept"

    assert controller.begin(request_of())
    os.kill(controller.process, signal.SIGKILL)
    watch(controller)
    assert controller.state.phase == "failed"
    assert "(exit code -9), perhaps because memory ran out" in controller.state.message


def test_a_second_stop_ends_it_at_once_and_a_closed_viewer_takes_it_along(request_of):
    controller = FineTuneController()
    deaf = "import time; time.sleep(600)"
    assert controller.begin(script(request_of(), deaf))
    controller.stop()
    controller.stop()
    watch(controller)
    assert controller.state.phase == "stopped"
    assert "Ended at once" in controller.state.message

    assert controller.begin(script(request_of(), "import sys; sys.stdin.read()"))
    process = psutil.Process(controller.process)
    controller.close()
    assert controller.process is None
    psutil.wait_procs([process], timeout=LONG_S)
    assert not process.is_running()


def test_a_training_set_is_described_before_the_start(cases, models):
    tiny = find_all_models(models).named("tiny")
    found = look_into_set(cases)
    assert found == TrainingSet(3, ("near", "far"), ("MRI",))
    assert found.in_words(tiny).startswith("3 cases, of which a fifth (at least one) is held out")
    assert "cannot be told" in TrainingSet(1, ("near", "far"), ("T1",)).in_words(None)
    assert "are not those of the model" in TrainingSet(2, ("liver",), ("T1",)).in_words(tiny)
