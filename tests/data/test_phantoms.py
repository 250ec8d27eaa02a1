"""Phantoms: the same for a seed, in the layouts they claim, and sensible."""

import hashlib

import numpy as np
import pytest

from medseg.data.case import read_labelled
from medseg.data.layouts import list_cases
from medseg.data.phantoms import KINDS, write_phantom
from medseg.errors import ConfigError, ResourceError
from medseg.events import Cancelled, Silent


def contents(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_files_and_another_seed_others(kind, tmp_path):
    for name, cases, seed in (("a", 2, 0), ("b", 1, 0), ("c", 1, 1)):
        write_phantom(kind, tmp_path / name, cases=cases, seed=seed, size="small")
    more, fewer, other = (contents(tmp_path / name) for name in "abc")
    images = {path for path in fewer if path.endswith((".nii.gz", ".npz", ".h5"))}
    assert {path: fewer[path] for path in images} == {path: more[path] for path in images}
    assert all(other.get(path) != fewer[path] for path in images)


def first(root, **options):
    listing = list_cases(root, **options)
    volume, labels = read_labelled(listing.cases[0], listing.channels, listing.scheme)
    return listing, volume, labels


def mean(volume, labels, name, channel=0):
    value = next(label.value for label in labels.scheme.labels if label.name == name)
    return float(volume.data_cijk[channel][labels.data_ijk == value].mean())


def centre(labels, name):
    value = next(label.value for label in labels.scheme.labels if label.name == name)
    places = np.argwhere(labels.data_ijk == value).mean(axis=0)
    return labels.grid.world_from_voxel(places)


def test_organs_have_their_hounsfield_units_and_their_places(phantom):
    _, volume, labels = first(phantom("synapse"))
    for name, low, high in (
        ("liver", 80, 130),
        ("spleen", 95, 145),
        ("aorta", 100, 190),
        ("gallbladder", -20, 45),
    ):
        assert low < mean(volume, labels, name) < high, name
    assert centre(labels, "liver")[0] > 20, "to the patient's right"
    assert centre(labels, "spleen")[0] < -20
    assert centre(labels, "right kidney")[0] > 20
    assert centre(labels, "left kidney")[0] < -20
    volumes = labels.volumes_ml()
    assert volumes["liver"] > volumes["spleen"] > volumes["gallbladder"]
    assert volume.data_cijk.min() < -900, "air"


def test_the_heart_contracts_between_the_phases_and_its_muscle_does_not_vanish(phantom):
    listing = list_cases(phantom("acdc"))
    for diastole, systole in zip(listing.cases[::2], listing.cases[1::2], strict=True):
        assert diastole.patient == systole.patient
        (before, at_end), (after, in_systole) = (
            read_labelled(case, listing.channels, listing.scheme) for case in (diastole, systole)
        )
        assert before.grid == after.grid
        assert max(before.grid.spacing_mm) > 2.5 * min(before.grid.spacing_mm), "thick slices"
        one, two = at_end.volumes_ml(), in_systole.volumes_ml()
        ejected = 1 - two["left ventricle"] / one["left ventricle"]
        assert 0.35 < ejected < 0.8
        assert 0.5 < two["myocardium"] / one["myocardium"] < 1.5
        assert two["right ventricle"] < one["right ventricle"]
        assert centre(at_end, "right ventricle")[0] > centre(at_end, "left ventricle")[0]


def test_a_tumour_shows_in_each_modality_as_it_should(phantom):
    _, volume, labels = first(phantom("brats"))
    brain = volume.data_cijk[1] > 0
    assert np.array_equal(brain, volume.data_cijk[3] > 0), "one mask for all modalities"
    assert not labels.data_ijk[~brain].any()
    names = [label.name for label in labels.scheme.labels]
    with_contrast = {name: mean(volume, labels, name, 1) for name in names}
    assert max(with_contrast, key=with_contrast.get) == "enhancing tumour"
    healthy = brain & (labels.data_ijk == 0)
    flair = volume.data_cijk[3]
    assert mean(volume, labels, "oedema", 3) > 1.3 * flair[healthy].mean()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "synaps"}, r"phantom kind: expected .*nearest: synapse.*found 'synaps'"),
        ({"size": "huge"}, "phantom size: expected one of small, standard"),
        ({"cases": 31}, "1 to 30 cases, as many as synapse numbers, found 31"),
        ({"cases": 0}, "found 0"),
    ],
)
def test_a_phantom_that_cannot_be_made_is_refused(tmp_path, arguments, words):
    wanted = {"kind": "synapse", "cases": 1, "size": "small", **arguments}
    with pytest.raises(ConfigError, match=words):
        write_phantom(wanted.pop("kind"), tmp_path / "out", **wanted)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_made_is_left(tmp_path):
    class StopsAfterOne(Silent):
        done = 0

        def advanced(self, stage, done):
            self.done = done

        def cancelled(self):
            return self.done >= 1

    with pytest.raises(Cancelled):
        write_phantom("msd", tmp_path / "a", cases=3, size="small", listener=StopsAfterOne())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(ResourceError, match="a name that is still free"):
        write_phantom("msd", tmp_path / "a", cases=1, size="small")
