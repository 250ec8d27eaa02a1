"""A dataset of a few tiny cases in the Decathlon layout, and settings that train on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core import Grid, Volume
from medseg.io.writing import write_volume

SHAPE = (14, 16, 12)


def write_dataset(root: Path, *, cases: int = 6, seed: int = 0) -> Path:
    """Two bright balls in noise per case, labelled 1 and 2; a split of all but two cases."""
    rng = np.random.default_rng(seed)
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    names = [f"case_{number:02d}" for number in range(cases)]
    for name in names:
        image, labels = _balls(rng)
        grid = Grid(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]))
        write_volume(Volume(image[None], grid), root / "imagesTr" / f"{name}.nii.gz")
        write_volume(Volume(labels[None], grid), root / "labelsTr" / f"{name}.nii.gz")
    index = {
        "name": "Balls",
        "licence": "CC0-1.0",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "near", "2": "far"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(index))
    (root / "split.json").write_text(json.dumps({"train": names[:-2], "validation": names[-2:]}))
    return root


def _balls(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    labels = np.zeros(SHAPE, np.uint8)
    for value, centre in ((1, (4.0, 5.0, 6.0)), (2, (9.0, 11.0, 6.0))):
        shifted = np.asarray(centre) + rng.uniform(-1, 1, 3)
        labels[np.linalg.norm(places - shifted, axis=-1) < 3] = value
    image = rng.normal(100.0, 10.0, SHAPE) + 60.0 * labels
    return image.astype(np.float32), labels


def tiny_settings(network: str = "revunet", **training: Any) -> dict[str, Any]:
    """A complete run as parsed YAML; keywords replace keys under ``training``."""
    networks = {
        "revunet": {"widths": [8, 16], "expansion": 2, "norm_groups": 4},
        "neunet": {
            "features": [8, 8, 8],
            "kernels": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "hidden_width": "c",
        },
    }
    return {
        "name": "balls",
        "description": "Two balls.",
        "licence": "CC0-1.0",
        "intended_use": "Tests.",
        "data": {"root": "data/Balls"},
        "labels": {
            "name": "balls",
            "labels": [
                {"value": 1, "name": "near", "rgb": [255, 0, 0]},
                {"value": 2, "name": "far", "rgb": [0, 255, 0]},
            ],
        },
        "inputs": {
            "channels": [{"name": "T1", "modality": "MR"}],
            "spacing_mm": [1.0, 1.0, 1.0],
            "window_ijk": [16, 16, 12],
        },
        "network": {"name": network, "settings": networks.get(network, {"preset": "tiny"})},
        "training": {
            "steps": 2,
            "batch_size": 2,
            "learning_rate": 0.01,
            "precision": "fp32",
            "channels_last": True,
            "device": "cpu",
            **training,
        },
    }
