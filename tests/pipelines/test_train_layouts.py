"""A run on a dataset in its own layout, and what is refused before it begins."""

import json

import nibabel as nib
import numpy as np
import pytest

from medseg.data.phantoms import write_phantom
from medseg.data.schemes import SCHEMES
from medseg.errors import ConfigError, GeometryError
from medseg.training.settings import parse_settings
from pipelines.train import train
from tests.tiny_dataset import tiny_settings


def settings_for(scheme, **data):
    content = tiny_settings(steps=1, validation_cases=1)
    content["labels"] = SCHEMES[scheme].to_dict()
    content["data"] = {"root": "data/phantom", **data}
    content["inputs"]["spacing_mm"] = None
    content["inputs"]["window_ijk"] = [16, 16, 8]
    return parse_settings(content, where="test")


def test_a_network_trains_on_hearts_with_a_published_split(tmp_path):
    write_phantom("acdc", tmp_path / "acdc", cases=3, size="small")
    settings = settings_for("acdc", layout="acdc", split="acdc-70-10-20")
    train(settings, run_folder=tmp_path / "run", data_root=tmp_path / "acdc")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert {part: {name[:10] for name in names} for part, names in split.items()} == {
        "train": {"patient001"},
        "validation": {"patient019"},
        "test": {"patient002"},
    }
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["labels"] == SCHEMES["acdc"].to_dict(), "the scheme is stored with the model"


def test_labels_in_another_order_are_refused_before_training(tmp_path):
    write_phantom("transunet", tmp_path / "synapse", cases=2, size="small")
    with pytest.raises(ConfigError, match="expected 1 to be 'aorta', as in 'transunet-8'"):
        train(
            settings_for("cascade-8"), run_folder=tmp_path / "run", data_root=tmp_path / "synapse"
        )


def test_a_configuration_must_say_what_scaled_intensities_stand_for(tmp_path):
    write_phantom("transunet", tmp_path / "synapse", cases=2, size="small")
    words = r"scaled_hu: expected \[-125, 275\], the Hounsfield units that 0 and 1 stand for"
    with pytest.raises(ConfigError, match=words):
        train(
            settings_for("transunet-8"),
            run_folder=tmp_path / "run",
            data_root=tmp_path / "synapse",
        )


def test_an_ignore_label_must_be_named_and_is_then_left_out(tmp_path):
    root = tmp_path / "set"
    write_phantom("nnunet", root, cases=2, size="small")
    index = json.loads((root / "dataset.json").read_text())
    index["labels"]["ignore"] = 3
    (root / "dataset.json").write_text(json.dumps(index))
    settings = settings_for("msd-hippocampus")
    with pytest.raises(ConfigError, match=r"expected 3, the ignore label of .*, found null"):
        train(settings, run_folder=tmp_path / "run", data_root=root)
    for path in (root / "labelsTr").iterdir():  # half of every case is not annotated
        labels = nib.load(path)
        values = np.asarray(labels.dataobj)
        values[values.shape[0] // 2 :] = 3
        nib.save(nib.Nifti1Image(values, labels.affine, labels.header), path)
    named = settings.model_copy(update={"ignore_value": 3})
    assert train(named, run_folder=tmp_path / "run", data_root=root).steps == 1


def test_a_window_that_prediction_would_refuse_is_refused_before_the_first_step(tmp_path):
    write_phantom("acdc", tmp_path / "acdc", cases=3, size="small")
    settings = settings_for("acdc", layout="acdc")
    large = settings.inputs.model_copy(update={"window_ijk": (16, 16, 32)})
    settings = settings.model_copy(update={"inputs": large})
    words = r"validation case patient\d+_frame\d+: expected at least half of .* choose a smaller"
    with pytest.raises(GeometryError, match=words):
        train(settings, run_folder=tmp_path / "run", data_root=tmp_path / "acdc")
    assert not (tmp_path / "run" / "log.csv").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"layout": "acdcc"}, "data.layout: expected 'auto', 'msd', 'nnunet'"),
        ({"layuot": "acdc"}, "data.layuot: .*nearest: layout.*did you mean layout"),
        ({"fold": -1}, "data.fold: expected greater than or equal to 0"),
    ],
)
def test_a_misspelt_key_or_layout_is_named(data, words):
    with pytest.raises(ConfigError, match=words):
        settings_for("acdc", **data)
