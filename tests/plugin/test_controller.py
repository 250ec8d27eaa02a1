"""Runs without a window: the controller, in the thread of the test."""

import threading
from dataclasses import FrozenInstanceError
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from medseg.core import Grid
from medseg.errors import GeometryError
from medseg.inference.store import choices_path
from medseg.io.scan import ItkSource
from medseg_napari._controller import (
    Failed,
    Part,
    Planned,
    Result,
    RunController,
    RunState,
    Stopped,
)
from medseg_napari._models import find_all_models
from medseg_napari._origin import LayerOrigin, origin_of
from medseg_napari._reader import read_layers
from medseg_napari._request import ImageInput, Request, RunOptions, region_of_shapes
from pipelines.cli import app
from tests.grids import grids
from tests.plugin.sources import oblique_grid, write_nifti_image
from tests.tiny_model import write_tiny_model

SHAPE = (30, 25, 22)
TWO_CHANNELS = {"channels": [{"name": "T1"}, {"name": "FLAIR"}]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "tiny")
    write_tiny_model(folder / "two", inputs=TWO_CHANNELS)
    return folder


@pytest.fixture
def model(models):
    return find_all_models(models).named("tiny")


@pytest.fixture
def path(tmp_path):
    write_nifti_image(tmp_path / "image.nii.gz", oblique_grid(SHAPE))
    return tmp_path / "image.nii.gz"


def opened(path):
    [(data, settings, _)] = read_layers(str(path))
    return ImageInput(settings["name"], data, origin_of(settings))


def run(controller, request, **options):
    """All updates of a run, each taken by the controller."""
    task = controller.begin(request, **options)
    updates = []
    for update in controller.steps(task):
        controller.look()
        controller.take(task, update)
        updates.append(update)
    return updates


def kinds(updates):
    """Kinds of updates in order, each once."""
    return list(dict.fromkeys(type(update) for update in updates))


def on_file_grid(result):
    return result.origin.original_array(result.labels_shown)


@pytest.fixture
def by_command_line(tmp_path, monkeypatch, models):
    """Predict with ``medseg predict``, measured choices being kept beside the results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def predict(*arguments, model="tiny"):
        out = tmp_path / "out"
        words = ["predict", *map(str, arguments), "-m", str(models / model), "-o", str(out)]
        done = CliRunner().invoke(app, [*words, "--overwrite"])
        assert done.exit_code == 0, done.output
        [written] = out.glob("*_dseg.nii.gz")
        return np.asarray(nib.load(written).dataobj)

    return predict


@pytest.fixture
def controller(tmp_path):
    cache = choices_path({"XDG_CACHE_HOME": str(tmp_path / "cache")}, platform="linux")
    return RunController(store=cache)


@pytest.mark.parametrize("threads", [1, 2])
def test_voxels_are_those_of_the_command_line(by_command_line, controller, model, path, threads):
    expected = by_command_line(path)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # of which the dock leaves one to the viewer
    try:
        *_, result = run(controller, Request(model, (opened(path),)))
    finally:
        torch.set_num_threads(before)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(on_file_grid(result), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RunOptions(fast=True), ["--coarser", "1.5"]),
        (RunOptions(find_region=True), ["--find-region"]),
        (RunOptions(mirrored=True), ["--tta", "model"]),
    ],
)
def test_options_are_those_of_the_command_line(
    by_command_line, controller, model, path, options, words
):
    expected = by_command_line(path, *words)
    *_, result = run(controller, Request(model, (opened(path),), options))
    np.testing.assert_array_equal(on_file_grid(result), expected)


def test_a_region_is_that_of_the_command_line(by_command_line, controller, model, path):
    expected = by_command_line(path, "--roi", "4:20,3:22,2:15")
    image = opened(path)
    inside = np.zeros(SHAPE, dtype=bool)
    inside[4:20, 3:22, 2:15] = True
    places = np.argwhere(image.origin.shown_array(inside))
    box = tuple(zip(places.min(axis=0), places.max(axis=0) + 1, strict=True))
    *_, result = run(controller, Request(model, (image,), region_shown=box))
    np.testing.assert_array_equal(on_file_grid(result), expected)
    assert not on_file_grid(result)[~inside].any()


def test_two_channels_are_those_of_the_command_line(
    by_command_line, controller, models, path, tmp_path
):
    data = np.asarray(nib.load(path).dataobj)[::-1] * 0.5
    nib.save(nib.Nifti1Image(data, oblique_grid(SHAPE).affine_ras), tmp_path / "flair.nii.gz")
    files = (path, tmp_path / "flair.nii.gz")
    words = ("--channel", f"T1={files[0]}", "--channel", f"FLAIR={files[1]}")
    expected = by_command_line(*words, model="two")
    two = find_all_models(models).named("two")
    *_, result = run(controller, Request(two, tuple(map(opened, files))))
    np.testing.assert_array_equal(on_file_grid(result), expected)


def test_a_run_tells_its_plan_then_parts_then_the_result(controller, model, path):
    states = []
    controller._on_change = states.append
    updates = run(controller, Request(model, (opened(path),), RunOptions(uncertainty=True)))
    assert kinds(updates) == [Planned, Part, Result]
    phases = list(dict.fromkeys(state.phase for state in states))
    assert phases == ["loading", "running", "done"]
    assert controller.state.plan.windows > 0
    result = updates[-1]
    assert result.doubt_shown.shape == result.labels_shown.shape
    assert result.doubt_shown.max() > 0
    assert "near" in controller.state.message
    with pytest.raises(FrozenInstanceError):
        controller.state.phase = "idle"


def test_parts_are_the_result_as_far_as_it_is_there(controller, model, path):
    task = controller.begin(Request(model, (opened(path),)))
    shares, arrays = [], set()
    for update in controller.steps(task):
        if isinstance(update, Part):
            arrays.add(update.labels_shown.__array_interface__["data"][0])
            last = update.labels_shown
            shares.append(np.count_nonzero(last))
        elif isinstance(update, Result):
            np.testing.assert_array_equal(update.labels_shown, last)
    assert shares == sorted(shares)
    assert len(shares) > 1
    assert len(arrays) == 1  # no copy of the volume per slab


def test_the_result_tells_what_made_it(controller, model, path):
    *_, result = run(controller, Request(model, (opened(path),)))
    beginning = result.origin.beginning
    assert beginning.algorithm == ("medseg tiny", "1")
    assert beginning.weights_sha256 == model.card.weights_sha256
    assert beginning.type_of(1) == "AUTOMATIC"
    np.testing.assert_array_equal(beginning.labels.labels(), on_file_grid(result))
    assert [label.name for label in result.origin.scheme.labels] == ["near", "far"]
    assert result.origin.source.path == path


def test_a_plan_is_that_of_the_dry_run_and_segments_nothing(controller, model, path):
    updates = run(controller, Request(model, (opened(path),)), plan_only=True)
    assert kinds(updates) == [Planned]
    state = controller.state
    assert (state.phase, state.is_busy) == ("idle", False)
    assert state.plan.ram_bytes > 0
    assert state.plan.seconds > 0


def test_progress_tells_steps_and_time_left(controller, model, path):
    task = controller.begin(Request(model, (opened(path),)))
    seen = []
    for update in controller.steps(task):
        controller.look()
        seen.append((controller.state.done, controller.state.total, controller.state.seconds_left))
        controller.take(task, update)
    done, total, left = zip(*seen, strict=True)
    assert max(total) == controller.state.plan.windows
    assert max(done) == max(total)
    assert any(seconds is not None for seconds in left)


class StopsAfter:
    """A wish to stop that comes up at the n-th question."""

    def __init__(self, questions):
        self.left = questions

    def is_set(self):
        self.left -= 1
        return self.left < 0

    def set(self):
        self.left = 0


@pytest.mark.parametrize("questions", [0, 1, 3, 30, 60])
def test_a_run_can_be_stopped_anywhere_and_then_runs_again(controller, model, path, questions):
    request = Request(model, (opened(path),))
    task = controller.begin(request)
    task._stop = StopsAfter(questions)
    for update in controller.steps(task):
        controller.take(task, update)
    assert isinstance(update, Stopped)
    assert controller.state.phase == "stopped"
    assert controller.state.message == "Stopped; nothing was kept"
    assert isinstance(run(controller, request)[-1], Result)


def test_the_reason_of_a_stop_is_told(controller, model, path):
    task = controller.begin(Request(model, (opened(path),)))
    steps = controller.steps(task)
    controller.take(task, next(steps))
    controller.stop("The image was closed, and the run with it")
    assert controller.state.phase == "stopping"
    for update in steps:
        controller.take(task, update)
    assert controller.state.message == "The image was closed, and the run with it; nothing was kept"


def test_a_stop_within_a_window_is_heard_by_the_next_layer(controller, model, path):
    task = controller.begin(Request(model, (opened(path),)))
    calls = []
    steps = controller.steps(task)
    assert isinstance(next(steps), Planned)

    def count(module, arguments):
        calls.append(module)
        if len(calls) == 4:
            task.stop()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        assert isinstance(list(steps)[-1], Stopped)
    finally:
        hook.remove()
    assert len(calls) <= 5


def test_a_run_takes_the_place_of_a_plan_that_is_being_made(controller, model, path):
    request = Request(model, (opened(path),))
    plan = controller.begin(request, plan_only=True)
    steps = controller.steps(plan)
    assert isinstance(run_in_thread(controller, request, steps), Result)
    assert controller.state.phase == "done"


def run_in_thread(controller, request, first):
    """A run that begins while other steps hold the work, which they then give up."""
    task = controller.begin(request)
    found = []
    thread = threading.Thread(target=lambda: found.extend(controller.steps(task)))
    for update in first:
        assert isinstance(update, Stopped)
    thread.start()
    thread.join()
    for update in found:
        assert controller.take(task, update)
    return found[-1]


def test_what_an_earlier_task_still_says_is_not_heard(controller, model, path):
    request = Request(model, (opened(path),))
    old = controller.begin(request)
    controller.begin(request)
    assert not controller.take(old, Failed("old", "old"))
    assert controller.state.phase == "loading"


def failure(controller, request):
    update = run(controller, request)[-1]
    assert isinstance(update, Failed)
    assert controller.state.phase == "failed"
    assert controller.state.message == f"{update.message} [{update.code}]"
    return update


def test_a_dead_model_file_gives_a_message_and_a_good_one_then_runs(controller, tmp_path, path):
    folder = write_tiny_model(tmp_path / "models" / "mine")
    request = Request(find_all_models(tmp_path / "models").named("mine"), (opened(path),))
    assert isinstance(run(controller, request)[-1], Result)
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    assert failure(controller, request).code == "weights-hash"
    weights.unlink()
    assert failure(controller, request).code == "weights-missing"
    weights.write_bytes(content)
    assert isinstance(run(controller, request)[-1], Result)


def test_a_model_is_loaded_once_for_runs_alike(controller, model, path):
    request = Request(model, (opened(path),))
    run(controller, request)
    predictor = controller._loaded[1]
    run(controller, request)
    assert controller._loaded[1] is predictor
    run(controller, Request(model, request.images, RunOptions(fast=True)))
    assert controller._loaded[1] is not predictor


def test_a_constant_image_is_refused(controller, model, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20)), np.eye(4)), tmp_path / "one.nii")
    data = np.ones((20, 20, 20), np.float32)
    image = ImageInput("one", data, LayerOrigin.of(Grid(data.shape, np.eye(4)), ItkSource(Path())))
    assert failure(controller, Request(model, (image,))).code == "image-constant"


def test_a_layer_whose_voxels_were_exchanged_is_refused(controller, model, path):
    image = opened(path)
    image = ImageInput(image.name, image.data_shown[1:], image.origin)
    found = failure(controller, Request(model, (image,)))
    assert found.code == "layer-changed"
    assert "open the image again" in found.message


def test_channels_that_do_not_lie_on_each_other_are_refused(controller, models, path, tmp_path):
    write_nifti_image(tmp_path / "other.nii.gz", oblique_grid((30, 25, 21)))
    two = find_all_models(models).named("two")
    found = failure(controller, Request(two, (opened(path), opened(tmp_path / "other.nii.gz"))))
    assert found.code == "channels-grids-differ"
    assert "resample the images onto one grid" in found.message


def test_what_nobody_foresaw_becomes_a_message_too(controller, model, path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(controller, "_predictor", broken)
    found = failure(controller, Request(model, (opened(path),)))
    assert found.code == "unexpected"
    assert "Unexpected ZeroDivisionError" in found.message


def test_memory_that_runs_out_becomes_a_message(controller, model, path, monkeypatch):
    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(controller, "_predictor", full)
    found = failure(controller, Request(model, (opened(path),)))
    assert found.code == "out-of-memory"
    assert "close other images" in found.message


def test_a_plan_that_no_longer_holds_is_forgotten_unless_something_is_at_work(controller):
    controller.state = RunState("done", plan=object(), message="2 s")
    controller.forget_plan()
    assert controller.state.plan is None
    assert (controller.state.phase, controller.state.message) == ("done", "2 s")
    controller.state = RunState("running", plan="plan")
    controller.forget_plan()
    assert controller.state.plan == "plan"


# Regions


@given(grids(smallest=3), st.data())
def test_the_region_of_a_box_of_corners_is_that_box(grid, data):
    origin = LayerOrigin.of(grid, ItkSource(Path("image.nrrd")))
    scale, translate = origin.placement()
    spans = []
    for extent in origin.shown_grid.shape_ijk:
        first = data.draw(st.integers(0, extent - 2))
        spans.append((first, data.draw(st.integers(first + 2, extent))))
    low, high = (np.array([span[end] for span in spans]) - 0.5 for end in (0, 1))
    # the outer edges of the outermost voxels
    corners = [translate + scale * low, translate + scale * high]
    assert region_of_shapes([np.array(corners)], origin) == tuple(spans)
    inside = np.zeros(grid.shape_ijk, dtype=bool)
    inside[tuple(slice(*span) for span in origin.original_box(tuple(spans)))] = True
    expected = np.zeros(origin.shown_grid.shape_ijk, dtype=bool)
    expected[tuple(slice(*span) for span in spans)] = True
    np.testing.assert_array_equal(origin.shown_array(inside), expected)


def test_a_rectangle_on_one_slice_reaches_through_all():
    origin = LayerOrigin.of(Grid((10, 12, 14), np.diag([-1, -1, 1, 1.0])), ItkSource(Path()))
    scale, translate = origin.placement()
    rectangle = [[5, 2, 3], [5, 2, 7], [5, 8, 7], [5, 8, 3]]
    corners = translate + scale * np.array(rectangle)
    assert region_of_shapes([corners], origin) == ((0, 14), (2, 9), (3, 8))
    further = corners - [2.0, 0, 0]
    assert region_of_shapes([corners, further], origin) == ((3, 6), (2, 9), (3, 8))


def test_no_shape_is_no_region():
    origin = LayerOrigin.of(Grid((10, 12, 14), np.eye(4)), ItkSource(Path()))
    assert region_of_shapes([], origin) is None


def test_a_region_is_cut_to_the_image_and_refused_beside_it():
    origin = LayerOrigin.of(Grid((10, 12, 14), np.eye(4)), ItkSource(Path()))
    scale, translate = origin.placement()
    wide = translate + scale * np.array([[-9.0, -9, -9], [40, 40, 40]])
    assert region_of_shapes([wide], origin) == ((0, 14), (0, 12), (0, 10))
    with pytest.raises(GeometryError, match="shapes that lie on the image, found shapes beside it"):
        region_of_shapes([wide + 1000], origin)
