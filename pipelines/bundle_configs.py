"""The configurations of a MONAI bundle, from a model's card.

The transforms, the sliding window and the engines are MONAI's. Of medseg only the network is named
(``_target_``), so medseg must be installed where the bundle runs. The rules of the format are those
of the MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html: a text
that begins with ``$`` is evaluated as Python, one with ``@`` or ``%`` is a reference. Hence
:func:`check_plain`: nothing that a card says may become one.
"""

from __future__ import annotations

import math
from typing import Any

from medseg.core import SLICES_LAST
from medseg.errors import ConfigError
from medseg.models.card import (
    Channel,
    ClipZScore,
    ModelCard,
    Region,
    SliceSettings,
    Unchanged,
    ZScore,
)
from medseg.models.incoming import first_expression
from medseg.models.table import NETWORKS, build_settings

__all__ = ["check_expressible", "check_plain", "inference_config", "train_config"]

Config = dict[str, Any]

_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


def check_expressible(card: ModelCard) -> None:
    """Refuse models whose input or output MONAI's transforms do not describe.

    Raises:
        ConfigError: ``bundle-inexpressible``.
    """
    inputs = card.inputs
    resampled = inputs.spacing_mm is not None
    other = [
        f"post_processing of {step.label!r} with closing, filling of holes or a least volume"
        for step in card.post_processing
        if step.closing_mm or step.fill_holes or step.min_mm3
    ]
    bounds = [
        bound
        for channel in inputs.channels
        if isinstance(how := channel.normalisation, ClipZScore)
        for bound in (how.lower, how.upper, how.mean, how.std)
    ]
    reasons = {
        f"inputs.orientation {SLICES_LAST}, which depends on each image": (
            inputs.orientation == SLICES_LAST
        ),
        "inputs.interpolation cubic": resampled and inputs.interpolation == "cubic",
        "inputs.thick_slices nearest, which depends on each image": (
            resampled and inputs.thick_slices == "nearest"
        ),
        "a normalisation without finite bounds": not all(map(math.isfinite, bounds)),
        **dict.fromkeys(other, True),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"model {card.name}",
                expected="inputs and post-processing that MONAI's transforms describe",
                found=reason,
                remedy="hand on the model folder itself, which medseg reads as it is",
                code="bundle-inexpressible",
            )


def check_plain(content: object, where: str) -> None:
    """Refuse data with a text that MONAI would evaluate or resolve.

    Raises:
        ConfigError: ``bundle-expression``.
    """
    found = first_expression(content)
    if found is not None:
        raise ConfigError(
            where,
            expected="texts that do not begin with $, @ or %, which MONAI evaluates",
            found=found,
            remedy="reword it",
            code="bundle-expression",
        )


def inference_config(card: ModelCard) -> Config:
    """``configs/inference.json``: every image of a folder, labels on its own grid."""
    values = card.class_values
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": _DEVICE,
        "datalist": "$[{'image': image} for image in " + _images(card, "@dataset_dir") + "]",
        "network_def": _network(card),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(card)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": _inferer(card),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                *_decision(card),
                *_cleaning(card),
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "dseg",
                    "output_dtype": "$torch.uint8" if max(values) <= 255 else "$torch.int32",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "handlers": [_weights()],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def train_config(card: ModelCard) -> Config:
    """``configs/train.json``: goes on from the model's weights with MONAI's own trainer.

    A plain recipe for fine-tuning, not the training that made the model: no augmentation but
    crops, and validation is left to whoever uses it.
    """
    labels_of = "@dataset_dir + '/labelsTr/' + "
    named = "(image[0] if isinstance(image, list) else image)"
    ending = "'_0000.nii.gz'" if len(card.inputs.channels) > 1 else "'.nii.gz'"
    name = f"os.path.basename({named})[: -len({ending})] + '.nii.gz'"
    images = _images(card, "@dataset_dir + '/imagesTr'")
    window = list(card.inputs.window_ijk)
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/dataset'",
        "output_dir": "$@bundle_root + '/train'",
        "device": _DEVICE,
        "max_epochs": 50,
        "learning_rate": 0.0001,
        "datalist": f"$[{{'image': image, 'label': {labels_of}{name}}} for image in {images}]",
        "network_def": _network(card),
        "network": "$@network_def.to(@device)",
        "loss": {
            "_target_": "DeepSupervisionLoss",
            "loss": {
                "_target_": "DiceCELoss",
                "to_onehot_y": card.regions is None,
                "softmax": card.regions is None,
                "sigmoid": card.regions is not None,
            },
            "weights": "$list(@network_def.deep_supervision_weights)",
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
        },
        "train": {
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    *_preprocessing(card, with_labels=True),
                    {"_target_": "SpatialPadd", "keys": ["image", "label"], "spatial_size": window},
                    {
                        "_target_": "RandCropByPosNegLabeld",
                        "keys": ["image", "label"],
                        "label_key": "label",
                        "spatial_size": window,
                        "num_samples": 1,
                    },
                    _targets(card),
                ],
            },
            "dataset": {
                "_target_": "Dataset",
                "data": "@datalist",
                "transform": "@train#preprocessing",
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@train#dataset",
                "batch_size": 1,
                "shuffle": True,
                "num_workers": 0,
            },
            "inferer": {"_target_": "SimpleInferer"},
            "handlers": [
                _weights(),
                {
                    "_target_": "StatsHandler",
                    "tag_name": "train_loss",
                    "output_transform": "$lambda output: output['loss'].item()",
                },
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@output_dir",
                    "save_dict": {"model": "@network"},
                    "save_final": True,
                    "final_filename": "model.pt",
                },
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@max_epochs",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
                "decollate": False,
            },
        },
        "run": ["$@train#trainer.run()"],
    }


def _network(card: ModelCard) -> Config:
    """The network as :func:`~medseg.models.table.build_volume_network` builds it, in plain JSON."""
    choice, inputs = card.network, card.inputs
    slices = choice.slices or SliceSettings()
    is_2d = NETWORKS[choice.name].rank == 2
    seen = 2 * slices.neighbours + 1 if is_2d else 1
    settings = build_settings(
        choice.name, {"in_channels": seen * len(inputs.channels), **choice.settings}
    )
    network: Config = {
        "_target_": "medseg.models.table.build_network",
        "name": choice.name,
        "settings": settings.model_dump(mode="json"),
    }
    if not is_2d:
        return network
    return {
        "_target_": "medseg.models.slices.SlicedNetwork",
        "network": network,
        "settings": {
            "_target_": "medseg.models.card.SliceSettings",
            **slices.model_dump(mode="json"),
        },
        "axis": slices.axis_on(inputs),
    }


def _images(card: ModelCard, folder: str) -> str:
    """An expression for the list of cases in a folder: one path each, or one for each channel."""
    count = len(card.inputs.channels)
    if count == 1:
        return f"sorted(glob.glob({folder} + '/*.nii.gz'))"
    first = f"sorted(glob.glob({folder} + '/*_0000.nii.gz'))"
    channels = f"[first[: -len('_0000.nii.gz')] + f'_{{n:04d}}.nii.gz' for n in range({count})]"
    return f"[{channels} for first in {first}]"


def _preprocessing(card: ModelCard, *, with_labels: bool = False) -> list[Config]:
    """Intensities first, on the voxels as they were acquired, then the grid: as medseg does."""
    inputs = card.inputs
    keys = ["image", "label"] if with_labels else ["image"]
    steps: list[Config] = [
        {"_target_": "LoadImaged", "keys": keys, "reader": "NibabelReader", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "EnsureTyped", "keys": keys, "dtype": "$torch.float32"},
        *_intensities(inputs.channels),
        {"_target_": "Orientationd", "keys": keys, "axcodes": inputs.orientation, "labels": None},
    ]
    if inputs.spacing_mm is not None:
        steps.append(
            {
                "_target_": "Spacingd",
                "keys": keys,
                "pixdim": list(inputs.spacing_mm),
                "mode": ["bilinear", "nearest"] if with_labels else ["bilinear"],
                "padding_mode": "border",
                "scale_extent": True,
                "align_corners": True,
            }
        )
    return steps


def _intensities(channels: tuple[Channel, ...]) -> list[Config]:
    kinds = {(channel.normalisation, channel.scaled_hu) for channel in channels}
    if len(kinds) == 1:
        return _prepared("image", channels[0])
    keys = [f"image_{number}" for number in range(len(channels))]
    apart: Config = {
        "_target_": "SplitDimd",
        "keys": "image",
        "output_postfixes": [str(number) for number in range(len(channels))],
        "dim": 0,
        "keepdim": True,
    }
    each = [
        step
        for key, channel in zip(keys, channels, strict=True)
        for step in _prepared(key, channel)
    ]
    together: list[Config] = [
        {"_target_": "ConcatItemsd", "keys": keys, "name": "image", "dim": 0},
        {"_target_": "DeleteItemsd", "keys": keys},
    ]
    return [apart, *each, *together]


def _prepared(key: str, channel: Channel) -> list[Config]:
    """The channel's intensities; MONAI's transforms take CT in Hounsfield units alone."""
    steps = _normalised(key, channel.normalisation)
    if channel.scaled_hu is None:
        return steps
    lower, upper = channel.scaled_hu
    scaled: Config = {
        "_target_": "ScaleIntensityRanged",
        "keys": key,
        "a_min": lower,
        "a_max": upper,
        "b_min": 0.0,
        "b_max": 1.0,
        "clip": True,
    }
    return [scaled, *steps]


def _normalised(key: str, how: ZScore | ClipZScore | Unchanged) -> list[Config]:
    if isinstance(how, Unchanged):
        return []
    if isinstance(how, ZScore):
        return [
            {
                "_target_": "NormalizeIntensityd",
                "keys": key,
                "nonzero": how.nonzero_only,
                "channel_wise": True,
            }
        ]
    return [
        {
            "_target_": "ScaleIntensityRanged",
            "keys": key,
            "a_min": how.lower,
            "a_max": how.upper,
            "b_min": (how.lower - how.mean) / how.std,
            "b_max": (how.upper - how.mean) / how.std,
            "clip": True,
        }
    ]


def _inferer(card: ModelCard) -> Config:
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(card.inputs.window_ijk),
        "sw_batch_size": 1,
        "overlap": card.inputs.overlap,
        "mode": "gaussian",
        "padding_mode": "constant",
    }


def _decision(card: ModelCard) -> list[Config]:
    """Logits ``(n, i, j, k)`` to label values ``(1, i, j, k)``."""
    values = list(card.class_values)
    if card.regions is None:
        steps: list[Config] = [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]
        numbers = list(range(len(values)))
    else:
        # the last region whose probability is above one half: a logit above 0
        last = (
            "$lambda x: ((x > 0) * torch.arange(1, x.shape[0] + 1, device=x.device)"
            ".reshape(-1, 1, 1, 1)).amax(dim=0, keepdim=True)"
        )
        steps = [{"_target_": "Lambdad", "keys": "pred", "func": last}]
        numbers, values = list(range(len(values) + 1)), [0, *values]
    if numbers != values:
        steps.append(
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": numbers,
                "target_labels": values,
            }
        )
    return steps


def _cleaning(card: ModelCard) -> list[Config]:
    by_name = {label.name: label.value for label in card.scheme().labels}
    steps = []
    for step in card.post_processing:
        if step.keep_largest:
            values = sorted(by_name.values()) if step.label == "*" else [by_name[step.label]]
            steps.append(
                {
                    "_target_": "KeepLargestConnectedComponentd",
                    "keys": "pred",
                    "applied_labels": values,
                    "is_onehot": False,
                    "independent": True,
                    "connectivity": 3,
                }
            )
    return steps


def _targets(card: ModelCard) -> Config:
    """Label values to what the loss is told: numbers of channels, or one mask for each region."""
    if card.regions is not None:
        return {"_target_": "Lambdad", "keys": "label", "func": _masks(card.regions)}
    values = list(card.class_values)
    return {
        "_target_": "MapLabelValued",
        "keys": "label",
        "orig_labels": values,
        "target_labels": list(range(len(values))),
    }


def _masks(regions: tuple[Region, ...]) -> str:
    members = [list(region.members) for region in regions]
    return (
        "$lambda x: torch.cat([torch.isin(x, torch.tensor(values, dtype=x.dtype)) "
        f"for values in {members}]).float()"
    )


def _weights() -> Config:
    return {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }
