"""From cases on disk to batches of patches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_obj import get_track_meta

from medseg.core import Grid, LabelScheme, Volume
from medseg.data.datalist import Case, read_datalist
from medseg.data.preparing import CachePlan
from medseg.errors import FormatError, GeometryError
from medseg.events import Cancelled, Silent
from medseg.io.writing import write_volume
from medseg.models.card import Channel, InputSettings
from medseg.training.augmentation import AugmentationSettings
from medseg.training.cases import DrawSampler, cache_cases, training_loader
from medseg.training.transforms import (
    IMAGE,
    LABEL,
    ReadCase,
    plain_tensors,
    training_transforms,
    validation_transforms,
)
from tests.tiny_dataset import SHAPE, write_dataset

SCHEME = LabelScheme.plain("balls", {1: "near", 2: "far"})
INPUTS = InputSettings(
    channels=(Channel(name="T1"),), spacing_mm=(1.0, 1.0, 1.0), window_ijk=(8, 8, 8)
)
STRONG = AugmentationSettings(
    flip_probability=0.5,
    rotation_probability=1.0,
    scaling_probability=1.0,
    noise_probability=1.0,
    blur_probability=1.0,
    brightness_probability=1.0,
    contrast_probability=1.0,
    low_resolution_probability=1.0,
    gamma_inverted_probability=1.0,
    gamma_probability=1.0,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read_datalist(write_dataset(tmp_path_factory.mktemp("data") / "Balls"))


@pytest.fixture(autouse=True)
def without_meta():
    with plain_tensors():
        yield


def loader(data, *, patch=(8, 8, 8), augmentation=STRONG, seed=0, batch_size=2, **more):
    read = ReadCase(INPUTS, SCHEME)
    transforms = training_transforms(
        read,
        patch,
        samples_per_case=more.pop("samples_per_case", 1),
        foreground_share=more.pop("foreground_share", 0.5),
        augmentation=augmentation,
    )
    plan = more.pop("plan", None)
    cached = cache_cases(data.train, read, transforms, Silent(), stage="reading", plan=plan)
    workers = more.pop("workers", 0)
    return training_loader(
        cached, batch_size=batch_size, seed=seed, device=CPU, workers=workers, **more
    )


def test_a_case_is_read_normalised_with_classes_in_place_of_label_values(data):
    scheme = LabelScheme.plain("sparse", {1: "near", 2: "far", 7: "absent"})
    case = ReadCase(INPUTS, scheme)(data.train[0])
    assert case[IMAGE].shape == case[LABEL].shape == (1, *SHAPE)
    assert case[IMAGE].dtype == torch.float32
    assert abs(float(case[IMAGE].mean())) < 1e-5
    assert float(case[IMAGE].std()) == pytest.approx(1.0, abs=1e-3)
    assert case[LABEL].unique().tolist() == [0, 1, 2]
    means = [float(case[IMAGE][case[LABEL] == value].mean()) for value in (0, 1, 2)]
    assert means == sorted(means), "image and labels lie on each other"


def test_class_numbers_follow_the_scheme_where_values_have_gaps(data, tmp_path):
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, 0, :3] = (5, 300, 5)
    grid = Grid(SHAPE, np.eye(4))
    write_volume(Volume(labels[None], grid), tmp_path / "gaps.nii.gz")
    case = Case("gaps", data.train[0].images, tmp_path / "gaps.nii.gz")
    read = ReadCase(INPUTS, LabelScheme.plain("gaps", {5: "five", 300: "three hundred"}))
    assert read(case)[LABEL][0, 0, 0, :4].tolist() == [1, 2, 1, 0]


def test_a_label_map_on_another_grid_is_refused(data, tmp_path):
    shifted = np.eye(4)
    shifted[0, 3] = 2.0
    for shape, affine, words in (
        (SHAPE, shifted, "corners 2.00 mm apart"),
        ((14, 16, 11), np.eye(4), r"extents \(14, 16, 11\)"),
    ):
        path = tmp_path / f"{shape[2]}.nii.gz"
        write_volume(Volume(np.zeros((1, *shape), np.uint8), Grid(shape, affine)), path)
        with pytest.raises(GeometryError, match=f"the label map on the grid of its image.*{words}"):
            ReadCase(INPUTS, SCHEME)(Case("c", data.train[0].images, path))


def test_a_damaged_case_is_refused_in_the_readers_words(data, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(data.train[0].label.read_bytes()[:60])
    read = ReadCase(INPUTS, SCHEME)
    with pytest.raises(FormatError, match=r"broken\.nii\.gz: expected"):
        cache_cases(
            [Case("broken", data.train[0].images, broken)],
            read,
            validation_transforms(read),
            Silent(),
            stage="reading",
        )


class StopsAfter(Silent):
    def __init__(self, cases):
        self.cases = cases
        self.done = 0

    def advanced(self, stage, done):
        self.done = done

    def cancelled(self):
        return self.done >= self.cases


def test_reading_can_be_stopped_after_any_case(data):
    read, listener = ReadCase(INPUTS, SCHEME), StopsAfter(2)
    with pytest.raises(Cancelled):
        cache_cases(data.train, read, validation_transforms(read), listener, stage="reading")
    assert listener.done == 2


def test_patches_have_their_extents_even_where_the_case_is_smaller(data):
    for patch in ((8, 8, 8), (16, 16, 16)):
        batch = next(iter(loader(data, patch=patch, samples_per_case=2)))
        assert batch[IMAGE].shape == batch[LABEL].shape == (4, 1, *patch)
        assert batch[IMAGE].dtype == torch.float32
        assert set(batch[LABEL].unique().tolist()) <= {0, 1, 2}


def test_a_patch_keeps_image_and_labels_together_through_the_affine_and_the_flips(data):
    only_places = AugmentationSettings(flip_probability=0.5, rotation_probability=1.0)
    for batch in loader(data, patch=(16, 16, 16), augmentation=only_places):
        for image, label in zip(batch[IMAGE], batch[LABEL], strict=True):
            assert float(image[label > 0].mean()) > float(image[label == 0].mean()) + 1.0


def test_a_foreground_share_of_one_puts_a_structure_into_every_patch(data):
    for augmentation in (AugmentationSettings(), AugmentationSettings(rotation_probability=1.0)):
        more = {"foreground_share": 1.0, "samples_per_case": 4}
        for batch in loader(data, augmentation=augmentation, **more):
            assert all(bool(label.any()) for label in batch[LABEL])


def drawn(data, **more):
    return [(batch["id"], batch[IMAGE]) for batch in loader(data, **more)]


def test_the_same_seed_draws_the_same_patches_and_another_seed_others(data):
    one, again, other = drawn(data, seed=1), drawn(data, seed=1), drawn(data, seed=2)
    for (ids, images), (same_ids, same_images) in zip(one, again, strict=True):
        assert ids == same_ids
        assert torch.equal(images, same_images)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_what_is_drawn_does_not_depend_on_other_random_numbers(data):
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    torch.manual_seed(1)
    one = drawn(data)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    for (_, images), (_, same) in zip(one, drawn(data), strict=True):
        assert torch.equal(images, same)


def test_processes_and_files_change_nothing_in_what_is_drawn(data, tmp_path):
    one = drawn(data)
    plan = CachePlan("disk", tmp_path, processes=1)
    for other in (drawn(data, workers=2), drawn(data, plan=plan)):
        for (ids, images), (same_ids, same) in zip(one, other, strict=True):
            assert ids == same_ids
            assert torch.equal(images, same)


def test_every_epoch_has_every_case_once_in_a_new_order_with_new_patches():
    sampler = DrawSampler(50, seed=3)
    first, second = list(sampler), list(sampler)
    for epoch in (first, second):
        assert sorted(index for index, _, _ in epoch) == list(range(50))
    assert [index for index, _, _ in first] != [index for index, _, _ in second]
    assert {seed for _, seed, _ in first}.isdisjoint(seed for _, seed, _ in second)
    continued = DrawSampler(50, seed=3)
    continued.epoch = 1
    assert list(continued) == second, "a later epoch needs nothing of the earlier ones"


@given(
    count=st.integers(1, 40),
    samples=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.1, 0.25, 0.33, 0.5, 2 / 3, 1.0]),
    epochs=st.integers(1, 4),
)
def test_the_foreground_share_is_exact_over_any_patches_in_a_row(count, samples, share, epochs):
    sampler = DrawSampler(count, 0, samples=samples, foreground_share=share)
    forced = [one for _ in range(epochs) for _, _, draws in sampler for one in draws]
    assert len(forced) == epochs * count * samples
    sums = np.concatenate([[0], np.cumsum(forced)])
    for length in (1, 2, 7, len(forced)):
        if length <= len(forced):
            found = sums[length:] - sums[:-length]
            assert np.all(np.abs(found - length * share) < 1 + 1e-4 * length)


def test_a_short_last_batch_is_left_out_unless_it_is_the_only_one(data):
    assert [len(batch["id"]) for batch in loader(data, batch_size=3)] == [3]
    assert [len(batch["id"]) for batch in loader(data, batch_size=9)] == [4]


def test_the_cached_case_is_not_changed_by_drawing_from_it(data):
    batches = loader(data)
    cases = batches.dataset.cached.cases
    before = [case.image_cijk.copy() for case in cases]
    for _ in range(3):
        list(batches)
    assert all(
        np.array_equal(old, case.image_cijk) for old, case in zip(before, cases, strict=True)
    )


def test_monais_switch_for_plain_tensors_is_put_back():
    assert get_track_meta() is False, "inside the block of this file's fixture"
    with plain_tensors():
        pass
    assert get_track_meta() is False
