"""A tiny untrained model, cards that differ in one thing or another, and images for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.core import Grid, Volume
from medseg.models.card import ModelDescription
from medseg.models.folder import save_model
from medseg.models.table import build_volume_network


def tiny_description(**changes: Any) -> ModelDescription:
    """Keywords replace keys of the card; those of ``inputs`` are merged into it."""
    inputs = {
        "channels": [{"name": "T1", "modality": "MR"}],
        "spacing_mm": [1.0, 1.0, 1.0],
        "window_ijk": [16, 16, 16],
        **changes.pop("inputs", {}),
    }
    card = {
        "name": "tiny",
        "version": "1",
        "description": "random weights, for tests",
        "network": {
            "name": "revunet",
            "settings": {"out_channels": 3, "widths": [4, 8], "expansion": 2, "norm_groups": 2},
        },
        "inputs": inputs,
        "labels": {
            "name": "test",
            "labels": [
                {"value": 1, "name": "near", "rgb": [200, 30, 30]},
                {"value": 5, "name": "far", "rgb": [30, 200, 30]},
            ],
        },
        "training": {
            "dataset": "none",
            "dataset_licence": "none",
            "training_cases": 0,
            "validation_cases": 0,
            "steps": 0,
            "epochs": 0,
            "seconds": 0,
            "seed": 3,
            "config_sha256": "0",
            "medseg_version": "0",
            "torch_version": "0",
            "monai_version": "0",
            "finished": True,
        },
        "licence": "CC0-1.0",
        **changes,
    }
    return ModelDescription.model_validate(card)


def write_tiny_model(folder: Path, **changes: Any) -> Path:
    """Untrained weights that do not depend on the order of tests."""
    description = tiny_description(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_volume_network(description.network, description.inputs)
    save_model(folder, network, description)
    return folder


def tiny_volume(seed: int, affine: np.ndarray | None = None) -> Volume:
    """An image of noise that fills one window of the model."""
    shape = (16, 16, 16)
    data = np.random.default_rng(seed).normal(100, 20, shape).astype(np.int16)
    return Volume(data[None], Grid(shape, np.eye(4) if affine is None else affine))
