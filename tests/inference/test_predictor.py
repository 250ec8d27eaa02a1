"""Models on volumes: settings, ensembles, limits, and what they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core import Grid, LabelScheme, Lean, Volume, axis_turn, reorient
from medseg.errors import ConfigError, FormatError, GeometryError, ResourceError, ShapeError
from medseg.events import Silent
from medseg.inference import predict
from medseg.inference.body import body_mask
from medseg.inference.memory import PeakMeter, in_words
from medseg.inference.numerics import InferenceNumerics
from medseg.inference.predictor import Member, Predictor
from medseg.inference.settings import PredictionSettings
from medseg.io.probabilities import ProbabilityWriter, read_probabilities, scheme_classes
from medseg.models.card import (
    Channel,
    ClipZScore,
    InputSettings,
    LabelCleaning,
    ModelCard,
    NetworkChoice,
    Region,
    Training,
)

SCHEME = LabelScheme.plain("test", {3: "three", 7: "seven"})
NUMERICS = InferenceNumerics("fp32", True, {}, ())


class Brightness(nn.Module):
    """Logits that follow the image: what is right is known without another implementation."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        value = x[:, :1] + self.shift
        return torch.cat([-(value**2), value - 1, -value - 1], dim=1)


def card(inputs=None, **more):
    content = {
        "name": "test",
        "version": "1",
        "description": "none",
        "network": NetworkChoice(name="revunet"),
        "inputs": inputs or inputs_of(),
        "labels": SCHEME.to_dict(),
        "training": Training(
            dataset="none",
            dataset_licence="none",
            training_cases=0,
            validation_cases=0,
            steps=0,
            epochs=0,
            seconds=0,
            seed=0,
            config_sha256="0",
            medseg_version="0",
            torch_version="0",
            monai_version="0",
            finished=True,
        ),
        "licence": "CC0-1.0",
        "weights_sha256": "0" * 64,
        **more,
    }
    return ModelCard(**content)


def inputs_of(window=(6, 6, 6), spacing=None, orientation="RAS", **more):
    return InputSettings(
        channels=(Channel(name="image"),),
        spacing_mm=spacing,
        window_ijk=window,
        orientation=orientation,
        **more,
    )


def predictor(*members, **settings):
    members = members or [(Brightness(), card())]
    return Predictor(
        [Member(network.eval(), one, NUMERICS) for network, one in members],
        PredictionSettings(threads=1, **settings),
    )


def volume(shape=(14, 15, 16), seed=0, affine=None):
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])[:, [1, 0, 2, 3]] if affine is None else affine
    data = np.random.default_rng(seed).normal(0, 100, (1, *shape)).astype(np.int16)
    return Volume(data, Grid(shape, affine))


def by_hand(image, values=(0, 3, 7)):
    x = image.data_cijk[0].astype(np.float64)
    z = (x - x.mean()) / x.std()
    return np.array(values)[np.stack([-(z**2), z - 1, -z - 1]).argmax(0)]


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR", "slices_last"])
def test_labels_lie_where_the_image_is_whatever_the_models_orientation(orientation):
    image = volume()
    model = predictor((Brightness(), card(inputs_of(orientation=orientation))))
    labels = model.predict(image).labels
    assert labels.grid == image.grid
    assert (labels.data_ijk == by_hand(image)).mean() > 0.999


def test_a_volume_stored_in_another_order_gets_the_same_labels():
    image = volume()
    model = predictor()
    first = model.predict(image).labels
    other = model.predict(reorient(image, "PIR")).labels
    np.testing.assert_array_equal(reorient(other, first.grid.orientation).data_ijk, first.data_ijk)


def test_a_leaning_stack_is_segmented_upright_and_its_labels_lean_back():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.0  # each slice one pixel further: nothing is interpolated
    image = volume((14, 15, 16), affine=affine)
    lean = Lean.of(image.grid)
    model = predictor(uncertainty=True)
    result = model.predict(image)
    upright = model.predict(lean.straighten(image))
    assert result.labels.grid == image.grid
    for k in (0, 7, 15):
        np.testing.assert_array_equal(
            result.labels.data_ijk[:, :, k], upright.labels.data_ijk[:, k : k + 15, k]
        )
        np.testing.assert_array_equal(
            result.entropy_ijk[:, :, k], upright.entropy_ijk[:, k : k + 15, k]
        )
    assert any("the stack leans by 26.6 degrees" in note for note in result.notes)
    inside = model.predict(image, roi=((2, 9), (3, 12), (4, 8))).labels.data_ijk
    box = np.zeros(inside.shape, dtype=bool)
    box[2:9, 3:12, 4:8] = True
    assert (inside[~box] == 0).all()
    assert (inside[box] > 0).any()
    assert model.plan(image).ram_bytes > 0
    assert sum(1 for _ in model.slabs(image)) == 1


@pytest.mark.parametrize("roi", [None, ((2, 9), (3, 12), (4, 8))])
@pytest.mark.parametrize("per_slice_mm", [(0.0, 1.0), (0.41, -0.73)])
def test_probabilities_of_a_leaning_stack_are_those_of_the_nearest_upright_voxels(
    roi, per_slice_mm
):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:2, 2] = per_slice_mm
    image = volume((14, 15, 16), affine=affine)
    lean, model = Lean.of(image.grid), predictor()
    found = np.full((3, *image.grid.shape_ijk), np.nan, np.float32)
    times = np.zeros(image.grid.shape_ijk, int)
    order = []

    def take(axis, corner, part):
        place = tuple(
            slice(first, first + extent)
            for first, extent in zip(corner, part.shape[1:], strict=True)
        )
        found[:, *place] = part
        times[place] += 1
        order.append((axis, corner[2]))

    labels = model.predict(image, roi=roi, on_probabilities=take).labels.data_ijk
    assert (times == 1).all()
    if roi is None:
        assert order == sorted(order)
    upright = np.zeros((3, *lean.upright.shape_ijk), np.float32)

    def upright_take(axis, corner, part):
        place = tuple(
            slice(first, first + extent)
            for first, extent in zip(corner, part.shape[1:], strict=True)
        )
        upright[:, *place] = part

    model.predict(lean.straighten(image), on_probabilities=upright_take)
    box = roi or tuple((0, extent) for extent in image.grid.shape_ijk)
    inside = np.zeros(image.grid.shape_ijk, dtype=bool)
    inside[tuple(slice(*span) for span in box)] = True
    for i, j, k in np.argwhere(inside)[::37]:
        world = image.grid.world_from_voxel(np.array([[i, j, k]], float))
        ui, uj, uk = np.rint(lean.upright.voxel_from_world(world))[0].astype(int)
        np.testing.assert_allclose(found[:, i, j, k], upright[:, ui, uj, uk], atol=1e-6)
    assert {0, 3} <= set(np.unique(labels))
    assert (labels[inside] == np.array([0, 3, 7])[found.argmax(0)][inside]).mean() > 0.999
    assert (found[0][~inside] == 1).all()


def test_slabs_come_as_they_are_finished_in_voxels_of_the_image():
    image = volume((8, 8, 40), affine=np.diag([1.0, 1.0, -1.0, 1.0]))
    model = predictor()
    covered = np.zeros(image.grid.shape_ijk, int)
    threads = torch.get_num_threads()
    slabs = model.slabs(image)
    expected = by_hand(image)
    while True:
        try:
            part = next(slabs)
        except StopIteration as end:
            result = end.value
            break
        box = tuple(slice(*span) for span in part.box)
        assert not torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == threads
        covered[box] += 1
        assert (part.labels_ijk[box] == expected[box]).mean() > 0.99
    assert (covered == 1).all()
    np.testing.assert_array_equal(result.labels.data_ijk, part.labels_ijk)


def test_the_plan_is_what_the_run_reports_and_the_peak_is_near_it():
    image = volume((60, 60, 60))
    model = predictor()
    plan = model.plan(image)
    result = model.predict(image)
    assert plan.windows == result.windows == result.plan.windows
    assert [item.name for item in plan.items][:4] == ["program", "weights", "input", "output"]
    assert plan.ram_bytes == sum(item.bytes for item in plan.items)
    assert 0.5 * plan.ram_bytes < result.peak_ram_bytes < 1.3 * plan.ram_bytes
    json.dumps(plan.to_dict())


def test_a_limit_makes_the_plan_smaller():
    class Many(Brightness):
        def forward(self, x):
            few = super().forward(x)
            return torch.cat([few, few[:, :1].expand(-1, 57, -1, -1, -1) - 50], dim=1)

    scheme = LabelScheme.plain("many", {n: f"label {n}" for n in range(1, 60)})
    many = card(inputs_of((32, 32, 32), overlap=0.0), labels=scheme.to_dict())
    image = volume((200, 200, 200))
    free = predictor((Many(), many))
    plan = free.plan(image)
    sums = next(item.bytes for item in plan.items if item.name == "slab of logits")
    assert sums > 100 << 20
    limited = predictor((Many(), many), max_ram_bytes=plan.ram_bytes - sums // 4)
    tight = limited.plan(image)
    assert tight.sweep.half
    assert tight.sweep.strips == 1
    assert tight.ram_bytes <= plan.ram_bytes - sums // 4
    narrow = predictor((Many(), many), max_ram_bytes=plan.ram_bytes - int(sums * 0.6))
    assert narrow.plan(image).sweep.strips > 1


def test_a_limit_below_the_least_says_what_would_do():
    with pytest.raises(
        ResourceError, match=r"--max-memory: expected at least .*raise the limit to"
    ):
        predictor(max_ram_bytes=1000).predict(volume())


def test_folds_are_averaged_and_every_network_runs_once_per_window():
    networks = Brightness(0.5), Brightness(-0.5)
    model = predictor(*[(network, card()) for network in networks])
    result = model.predict(volume())
    counted = [network.calls for network in networks]
    assert counted[0] == counted[1] == result.windows + 1  # and the dry pass
    assert result.forward_calls == 2 * result.windows


def test_unlike_models_are_averaged_on_the_image():
    image = volume()
    other = card(inputs_of((5, 7, 6), orientation="LPI"))
    result = predictor((Brightness(), card()), (Brightness(), other)).predict(image)
    assert (result.labels.data_ijk == by_hand(image)).mean() > 0.995


def test_models_of_other_labels_are_no_ensemble():
    other = card(labels=LabelScheme.plain("test", {3: "three", 8: "eight"}).to_dict())
    with pytest.raises(ConfigError, match="expected the labels and regions of test") as caught:
        predictor((Brightness(), card()), (Brightness(), other))
    assert caught.value.code == "ensemble-labels"


def test_regions_overwrite_each_other_in_their_order():
    class Nested(nn.Module):
        def forward(self, x):
            return torch.cat([x + 1, x - 1], dim=1)

    nested = card(
        regions=(
            Region(name="whole", members=(3, 7), writes=3),
            Region(name="core", members=(7,), writes=7),
        )
    )
    image = volume()
    found = predictor((Nested(), nested)).predict(image).labels.data_ijk
    x = image.data_cijk[0].astype(float)
    z = (x - x.mean()) / x.std()
    expected = np.where(z > 1, 7, np.where(z > -1, 3, 0))
    assert (found == expected).mean() > 0.999


def test_probabilities_come_in_rising_order_and_cover_the_image():
    image = volume((10, 12, 30), affine=np.diag([1.0, -1.0, -1.0, 1.0]))
    slabs = []
    model = predictor(uncertainty=True)
    result = model.predict(
        image, on_probabilities=lambda axis, corner, p: slabs.append((axis, corner, p))
    )
    axis = slabs[0][0]
    assert [corner[axis] for _, corner, _ in slabs] == list(
        np.cumsum([0, *[p.shape[1 + axis] for _, _, p in slabs]])[:-1]
    )
    whole = np.concatenate([p for _, _, p in slabs], axis=1 + axis)
    assert whole.shape == (3, *image.grid.shape_ijk)
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array([0, 3, 7])[whole.argmax(0)], result.labels.data_ijk)
    entropy = -(whole * np.log(np.maximum(whole, 1e-30))).sum(0) / np.log(3)
    assert np.abs(result.entropy_ijk / 255 - entropy).max() < 0.01


def test_outside_a_region_of_interest_probabilities_are_those_of_background():
    image, boxes = volume((20, 20, 20)), Boxes((20, 20, 20))
    roi = ((4, 12), (5, 15), (2, 18))
    result = predictor().predict(image, roi=roi, on_probabilities=boxes)
    whole = boxes.whole()
    inside = np.zeros((20, 20, 20), bool)
    inside[tuple(slice(*span) for span in roi)] = True
    assert (whole[0][~inside] == 1).all()
    assert not result.labels.data_ijk[~inside].any()
    assert result.labels.data_ijk[inside].any()


class Boxes:
    """Takes probabilities, and holds every voxel to coming once."""

    def __init__(self, shape, classes=3):
        self.values = np.full((classes, *shape), np.nan, np.float32)
        self.axes = set()

    def __call__(self, axis, corner, probabilities):
        self.axes.add(axis)
        cut = tuple(
            slice(first, first + extent)
            for first, extent in zip(corner, probabilities.shape[1:], strict=True)
        )
        assert np.isnan(self.values[(slice(None), *cut)]).all()
        self.values[(slice(None), *cut)] = probabilities

    def whole(self):
        assert not np.isnan(self.values).any()
        assert len(self.axes) == 1
        return self.values


def test_probabilities_come_also_where_memory_is_short_and_where_it_runs_out(tmp_path):
    class Greedy(Brightness):
        def forward(self, x):
            self.calls += 1
            if self.calls in (9, 10):
                raise MemoryError
            return super().forward(x)

    image = volume((12, 20, 30))
    free, strips, ran_out = (Boxes(image.grid.shape_ijk) for _ in range(3))
    predictor().predict(image, on_probabilities=free)
    narrow = predictor()
    narrow_task = narrow._task

    def in_strips(*args, **options):
        task = narrow_task(*args, **options)
        task.engine.sweep = replace(task.engine.sweep, strips=3)
        return task

    narrow._task = in_strips
    narrow.predict(image, on_probabilities=strips)
    np.testing.assert_allclose(strips.whole(), free.whole(), atol=1e-6)
    path = tmp_path / "case_probseg.h5"
    classes = scheme_classes(SCHEME)
    with ProbabilityWriter(path, image.grid, classes, encoding="float16") as writer:

        def both(axis, corner, probabilities):
            ran_out(axis, corner, probabilities)
            writer.write_box(axis, corner, probabilities)

        result = predictor((Greedy(), card())).predict(image, on_probabilities=both)
    assert result.steps_down[-1] == "2 strips of the image"
    np.testing.assert_allclose(ran_out.whole(), free.whole(), atol=2e-3)  # summed in float16
    written = read_probabilities(path)
    for number in range(3):
        np.testing.assert_allclose(
            written.read_class(number), ran_out.whole()[number], atol=1e-3, err_msg=str(number)
        )


@pytest.mark.parametrize(
    "roi",
    [
        ((0, 0), (0, 5), (0, 5)),
        ((0, 5), (0, 5), (0, 17)),
        ((0, 2), (0, 1)),
        ((0.5, 2), (0, 5), (0, 5)),
        "0:2",
    ],
)
def test_a_region_outside_the_image_is_refused(roi):
    with pytest.raises(ConfigError, match="first < last on three axes, within the image's") as info:
        predictor().predict(volume(), roi=roi)
    assert info.value.code == "roi"


def test_of_a_region_given_and_one_to_be_found_the_given_one_counts():
    result = predictor(find_region=True).predict(volume(), roi=((2, 12), (2, 12), (2, 12)))
    assert any("no region was searched for" in note for note in result.notes)


def test_what_a_coarser_spacing_makes_smaller_than_half_a_window_is_refused():
    image = volume((14, 15, 16))  # at factor 6 it is 2 x 3 x 3 voxels, the window 6
    for act in (predictor(coarser=6.0).predict, predictor(coarser=6.0).plan):
        with pytest.raises(GeometryError, match="at least half of the model's window") as caught:
            act(image)
        assert caught.value.code == "image-too-small"


def test_a_rough_pass_without_mirroring_does_not_stand_for_one_with_it():
    network = Brightness()
    image = volume((30, 30, 30))
    mirrored = predictor((network, card()), find_region=True, mirror=("i", "j"))
    mirrored.predict(image)
    axes = {axes for _, _, axes in mirrored._passes}
    assert axes == {(), (0, 1)}


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, float("nan"))])
def test_a_spacing_that_is_none_is_named(spacing):
    with pytest.raises(ConfigError, match="three distances above 0") as caught:
        predict(np.ones((9, 9, 9)), predictor(), spacing_mm=spacing)
    assert caught.value.where == "spacing_mm"


def test_voxels_that_float32_cannot_hold_are_the_images_fault():
    data = np.random.default_rng(0).normal(0, 1, (9, 9, 9))
    data[0, 0, 0] = 1e300
    with pytest.raises(FormatError, match=r"found values up to 1e\+300") as caught:
        predict(data, predictor(), spacing_mm=(1, 1, 1))
    assert caught.value.code == "voxels-not-finite"


def test_what_a_rough_pass_finds_is_looked_at_closely():
    data = np.zeros((1, 60, 60, 60), np.float32)
    data[0, 20:26, 30:36, 40:46] = 1000
    image = Volume(data, Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0])))

    class Bright(nn.Module):
        def forward(self, x):
            return torch.cat([1 - x, x - 1, -x - 50], dim=1)

    full = predictor((Bright(), card())).predict(image)
    found = predictor((Bright(), card()), find_region=True).predict(image)
    np.testing.assert_array_equal(found.labels.data_ijk, full.labels.data_ijk)
    assert found.windows < full.windows
    assert any("looked closely at voxels" in note for note in found.notes)


def test_a_coarser_pass_runs_fewer_windows_on_the_same_grid():
    image = volume((40, 40, 40))
    fine, coarse = predictor().predict(image), predictor(coarser=2.0).predict(image)
    assert coarse.labels.grid == image.grid
    assert coarse.windows < fine.windows / 4


def test_post_processing_of_the_model_is_done_unless_told_otherwise():
    data = np.zeros((1, 24, 24, 24), np.float32)
    data[0, 2:10, 2:10, 2:10] = 1000
    data[0, 20:22, 20:22, 20:22] = 1000
    image = Volume(data, Grid((24, 24, 24), np.eye(4)))

    class Bright(nn.Module):
        def forward(self, x):
            return torch.cat([1 - x, x - 1, -x - 50], dim=1)

    cleaned = card(post_processing=(LabelCleaning(label="three", keep_largest=True),))
    kept = predictor((Bright(), cleaned)).predict(image)
    assert not kept.labels.data_ijk[20:22, 20:22, 20:22].any()
    assert any("three" in note for note in kept.notes)
    raw = predictor((Bright(), cleaned), post_processing=()).predict(image)
    assert raw.labels.data_ijk[20:22, 20:22, 20:22].all()


def test_mirroring_takes_the_axes_of_the_model():
    network = Brightness()
    model = predictor((network, card(inputs_of(mirror_axes=("i", "k")))), mirror="model")
    result = model.predict(volume())
    assert result.forward_calls == 4 * result.windows


def test_a_single_slice_a_small_image_and_wrong_channels_are_refused():
    with pytest.raises(GeometryError, match="found a single slice"):
        predictor().predict(volume((8, 8, 1)))
    with pytest.raises(GeometryError, match="at least half of the model's window"):
        predictor((Brightness(), card(inputs_of((20, 20, 20))))).predict(volume((20, 20, 8)))
    two = Volume(np.zeros((2, 8, 8, 8), np.int16), Grid((8, 8, 8), np.eye(4)), ("a", "b"))
    with pytest.raises(ShapeError, match="expected 1 channel"):
        predictor().predict(two)


def test_odd_spacings_are_predicted():
    image = volume((64, 64, 4), affine=np.diag([0.3, 0.3, 10.0, 1.0]))
    model = predictor((Brightness(), card(inputs_of((12, 12, 6), spacing=(1.0, 1.0, 5.0)))))
    result = model.predict(image)
    assert result.labels.grid == image.grid


def test_a_network_that_answers_nan_is_named():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.cat([x, x, x * float("nan")], dim=1)

    with pytest.raises(FormatError, match="NaN"):
        predictor((Broken(), card())).predict(volume())


def test_memory_that_runs_out_is_noted_and_the_result_stands():
    class Greedy(Brightness):
        def forward(self, x):
            if self.calls == 4:
                self.calls += 1
                raise MemoryError
            return super().forward(x)

    image = volume()
    result = predictor((Greedy(), card())).predict(image)
    assert result.steps_down == ("logits summed in float16",)
    assert any("memory ran out, went on with" in note for note in result.notes)
    assert (result.labels.data_ijk == by_hand(image)).mean() > 0.99


def test_the_number_of_threads_is_what_it_was_afterwards():
    before = torch.get_num_threads()
    predictor().predict(volume())
    assert torch.get_num_threads() == before


def test_the_api_takes_arrays_and_volumes():
    image = volume(affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    model = predictor()
    expected = model.predict(image).labels.data_ijk
    assert (predict(image, model).data_ijk == expected).all()
    array = image.data_cijk[0]
    assert (predict(array, model, spacing_mm=(1, 1, 2)).data_ijk == expected).all()
    found = predict(array[None], model, affine_ras=np.diag([1.0, 1, 2, 1]))
    assert (found.data_ijk == expected).all()
    with pytest.raises(ConfigError, match="either spacing_mm or affine_ras"):
        predict(array, model)
    with pytest.raises(ConfigError, match="no spacing or affine beside a Volume"):
        predict(image, model, spacing_mm=(1, 1, 1))
    with pytest.raises(ConfigError, match="with the Predictor alone"):
        predict(image, model, settings=PredictionSettings())


def test_the_body_is_found_with_a_margin_and_the_table_is_not():
    data = np.full((1, 80, 80, 40), -1000, np.int16)
    data[0, 20:60, 20:60, :] = 40
    data[0, 35:45, 35:45, :] = -900  # air inside the body belongs to it
    data[0, 2:78, 78, 5] = 200  # a thin rail
    image = Volume(data, Grid((80, 80, 40), np.diag([3.0, 3.0, 5.0, 1.0])))
    mask = body_mask(image, is_ct=True)
    whole = np.kron(mask, np.ones([-(-80 // mask.shape[0]), -(-80 // mask.shape[1]), 1]))
    assert mask.shape[2] == 40
    centre = tuple(extent // 2 for extent in mask.shape)
    assert mask[centre]
    assert not mask[0, 0].any()
    assert whole.mean() < 0.5


def test_windows_outside_the_body_are_not_computed():
    data = np.full((1, 64, 64, 64), -1000, np.int16)
    noise = np.random.default_rng(0).normal(0, 30, data.shape)
    data[0, 20:40, 20:40, 20:40] = 40
    image = Volume((data + noise).astype(np.int16), Grid((64, 64, 64), np.diag([3.0, 3, 3, 1])))
    how = ClipZScore(lower=-1024, upper=1000, mean=0, std=100)
    ct = InputSettings(
        channels=(Channel(name="CT", modality="CT", normalisation=how),),
        spacing_mm=None,
        window_ijk=(8, 8, 8),
    )
    every = predictor((Brightness(), card(ct)), skip="none").predict(image)
    body = predictor((Brightness(), card(ct)), skip="body").predict(image)
    assert body.windows_computed < every.windows_computed / 2
    inside = np.s_[20:40, 20:40, 20:40]
    np.testing.assert_array_equal(body.labels.data_ijk[inside], every.labels.data_ijk[inside])


def test_the_peak_is_seen_and_given_back_afterwards():
    with PeakMeter() as outer:
        with PeakMeter() as inner:
            block = np.ones(200 << 20, np.uint8)
            block[::4096] = 2
        del block
        with PeakMeter() as later:
            pass
    assert inner.peak_bytes > later.peak_bytes + (150 << 20)
    assert outer.peak_bytes >= inner.peak_bytes


def test_bytes_in_words():
    assert in_words(5 << 20) == "5 MiB"
    assert in_words(3 << 29) == "1.50 GiB"


def test_the_turn_of_a_frame_is_undone():
    image = volume()
    for orientation in ("RAS", "SAR", "PIL"):
        first = axis_turn(image.grid, orientation)
        assert first.inverse().after(first).is_identity


def test_silent_listener_is_enough():
    assert predictor().predict(volume(), Silent()).windows > 0


def test_what_is_no_image_is_refused_by_the_api():
    with pytest.raises(ShapeError, match="numbers along the axes"):
        predict("x.nii.gz", predictor(), spacing_mm=(1, 1, 1))
    with pytest.raises(ShapeError, match="numbers along the axes"):
        predict(np.zeros((4, 4)), predictor(), spacing_mm=(1, 1, 1))
    array = np.random.default_rng(0).normal(size=(8, 8, 8))
    array[1, 2, 3] = np.nan
    with pytest.raises(FormatError, match="finite voxels"):
        predict(array, predictor(), spacing_mm=(1, 1, 1))
    with pytest.raises(FormatError, match="the same value in every voxel"):
        predict(np.ones((8, 8, 8)), predictor(), spacing_mm=(1, 1, 1))
    with pytest.raises(ConfigError, match="neither a folder nor a shipped model"):
        predict(volume(), "no_such_model")
