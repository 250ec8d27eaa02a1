"""A trained model handed on: a model folder that is a MONAI bundle too."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import medseg
from medseg.atomic import atomic_folder, atomic_path, check_replaceable
from medseg.errors import ConfigError, ResourceError
from medseg.models.card import CARD_NAME, ModelCard, Training, model_folder
from medseg.models.folder import WEIGHTS_NAME, load_model
from medseg.models.table import NETWORKS
from medseg.models.zoo import find_model
from pipelines.bundle_configs import (
    check_expressible,
    check_plain,
    inference_config,
    train_config,
)

__all__ = ["Origin", "export_model", "origin_from_options"]

_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
_FIRE = "0.7.0"  # MONAI's command line stands on it, medseg does not
_NOT_STATED = "not stated"
_STORED = (".safetensors", ".pt")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a bundle tells of its makers and no card holds.

    Args:
        authors: Names.
        copyright_notice: Such as ``Copyright 2026 A. Author``.
        licence_text: Full text of the licence that the card names; None leaves it at the name.
    """

    authors: str = _NOT_STATED
    copyright_notice: str = _NOT_STATED
    licence_text: str | None = None


def origin_from_options(
    authors: str | None, copyright_notice: str | None, licence_file: Path | None
) -> Origin:
    """What the command line says of a model's makers.

    Raises:
        ConfigError: If the licence's text cannot be read.
    """
    text = None
    if licence_file is not None:
        try:
            text = licence_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "--licence-file",
                expected="a text file in UTF-8",
                found="no such file" if not licence_file.exists() else "one that cannot be read",
                remedy="correct the path",
                code="bundle-licence",
            ) from error
    return Origin(authors or _NOT_STATED, copyright_notice or _NOT_STATED, text)


def export_model(
    source: str, out: Path, *, origin: Origin | None = None, overwrite: bool = False
) -> ModelCard:
    """Write a model as a folder or a zip that both medseg and MONAI can run.

    ``model.json`` and ``weights.safetensors`` are medseg's, taken over as they are. For MONAI there
    are ``configs/``, the weights once more as ``models/model.pt`` (a state dict, tensors alone),
    ``docs/README.md`` and ``LICENSE``.

    Args:
        source: A run folder, a model folder or the name of a shipped model.
        out: Folder to be made, or a zip file if its name ends in ``.zip``.
        origin: What the card does not say.
        overwrite: Whether an earlier export, or a model folder, of that name is replaced.

    Returns:
        The model's card.

    Raises:
        ConfigError: If there is no such model, its card is wrong, it cannot be expressed
            (``bundle-inexpressible``), or a text could be taken for an expression.
        FormatError: If its weights are damaged.
        ResourceError: If ``out`` exists or cannot be written.
    """
    folder = model_folder(find_model(source))
    network, card = load_model(folder)
    check_expressible(card)
    told = origin or Origin()
    check_plain(card.model_dump(mode="json"), f"model {card.name}")
    check_plain([told.authors, told.copyright_notice], "origin")
    files = {
        CARD_NAME: (folder / CARD_NAME).read_bytes(),
        WEIGHTS_NAME: (folder / WEIGHTS_NAME).read_bytes(),
        "configs/metadata.json": _json(_metadata(card, told)),
        "configs/inference.json": _json(inference_config(card)),
        "configs/train.json": _json(train_config(card)),
        "models/model.pt": _state(network),
        "docs/README.md": _readme(card, told).encode("utf-8"),
        "LICENSE": _licence(card, told).encode("utf-8"),
    }
    if out.suffix.lower() == ".zip":
        _write_zip(out, card.name, files, overwrite=overwrite)
        return card
    check_replaceable(out, CARD_NAME, overwrite=overwrite)
    with atomic_folder(out, replace=overwrite, parents=True) as made:
        for name, content in files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_bytes(content)
    return card


def _write_zip(out: Path, name: str, files: dict[str, bytes], *, overwrite: bool) -> None:
    """One folder in the zip, as MONAI's own bundles have it."""
    if out.is_dir() or (out.exists() and not overwrite):
        raise ResourceError(
            str(out),
            expected="a name that is still free",
            found="a folder" if out.is_dir() else "an existing file",
            remedy="choose another name" if out.is_dir() else "replace it with --overwrite",
            code="output-exists",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for inner, content in files.items():
            # weights hardly shrink
            packed = zipfile.ZIP_STORED if inner.endswith(_STORED) else zipfile.ZIP_DEFLATED
            archive.writestr(f"{name}/{inner}", content, packed)


def _state(network: nn.Module) -> bytes:
    """Tensors by name, which ``torch.load(..., weights_only=True)`` reads."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("utf-8")


def _metadata(card: ModelCard, told: Origin) -> dict[str, Any]:
    """``configs/metadata.json`` with the keys of MONAI's schema."""
    inputs, training = card.inputs, card.training
    modalities = sorted({channel.modality for channel in inputs.channels})
    channels = {str(n): channel.name for n, channel in enumerate(inputs.channels)}
    if card.regions is None:
        names = {label.value: label.name for label in card.scheme().labels}
        outputs = ["background", *(names[value] for value in card.class_values[1:])]
    else:
        outputs = [region.name for region in card.regions]
    structures = ", ".join(label.name for label in card.scheme().labels)
    shape = list(inputs.window_ijk)
    dice = training.validation_dice
    content: dict[str, Any] = {
        "schema": _SCHEMA,
        "name": card.name,
        "version": card.version,
        "changelog": {card.version: "exported from medseg"},
        "monai_version": _release("monai"),
        "pytorch_version": _release("torch"),
        "numpy_version": _release("numpy"),
        "required_packages_version": {
            "fire": _FIRE,
            "medseg": medseg.__version__,
            "nibabel": _release("nibabel"),
            "pytorch-ignite": _release("pytorch-ignite"),
        },
        "supported_apps": {},
        "task": f"Segmentation of {structures}",
        "description": card.description,
        "authors": told.authors,
        "copyright": told.copyright_notice,
        "data_source": f"{training.dataset} ({training.dataset_licence})",
        "data_type": "NIfTI",
        "image_classes": f"{len(channels)} channels: {', '.join(channels.values())}",
        "label_classes": structures,
        "pred_classes": f"{len(outputs)} channels: {', '.join(outputs)}",
        "intended_use": card.intended_use,
        "references": [NETWORKS[card.network.name].citation],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if modalities == ["CT"] else "magnitude",
                    "modality": ", ".join(modalities),
                    "num_channels": len(channels),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": channels,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "labels" if card.regions is None else "classes",
                    "modality": "n/a",
                    "num_channels": len(outputs),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(n): name for n, name in enumerate(outputs)},
                }
            },
        },
    }
    if dice:
        content["eval_metrics"] = {"mean_dice": sum(dice.values()) / len(dice)}
    return content


def _release(package: str) -> str:
    """Its version, without what tells the build apart."""
    return version(package).partition("+")[0]


def _begun_with(training: Training) -> str:
    start = training.started_from
    return "" if start is None else f", from the weights of {start.name} {start.version}"


def _readme(card: ModelCard, told: Origin) -> str:
    inputs, training = card.inputs, card.training
    spacing = (
        "that of each image"
        if inputs.spacing_mm is None
        else " x ".join(f"{step:g}" for step in inputs.spacing_mm) + " mm"
    )
    several = len(inputs.channels) > 1
    files = "`CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... (channels in the order above)"
    lines = [
        f"# {card.name} {card.version}",
        "",
        card.description,
        "",
        f"Intended use: {card.intended_use}",
        "",
        "## Input and output",
        "",
        "| channel | modality |",
        "|---|---|",
        *(f"| {channel.name} | {channel.modality} |" for channel in inputs.channels),
        "",
        f"Axes {inputs.orientation}, spacing {spacing}, windows of {inputs.window_ijk} voxels.",
        "",
        "| label | structure |",
        "|---|---|",
        *(f"| {label.value} | {label.name} |" for label in card.scheme().labels),
        "",
        "## Origin",
        "",
        f"Trained on {training.dataset} ({training.dataset_licence}), {training.training_cases} "
        f"cases, {training.steps} steps{_begun_with(training)}.",
        "",
        f"Network: {card.network.name} ({NETWORKS[card.network.name].citation}).",
        "",
        f"Authors: {told.authors}. Copyright: {told.copyright_notice}. Licence: {card.licence}.",
    ]
    if training.validation_dice:
        lines += [
            "",
            f"| structure | Dice of {training.validation_cases} validation cases |",
            "|---|---|",
            *(f"| {name} | {value:.3f} |" for name, value in training.validation_dice.items()),
        ]
    lines += [
        "",
        "## Use",
        "",
        "With medseg, from the original image to labels on its grid:",
        "",
        "    medseg predict IMAGE.nii.gz -m THIS_FOLDER -o OUT",
        "",
        "With MONAI, where medseg (the network is its) and fire are installed, for every "
        f"{files if several else '`CASE.nii.gz`'} of a folder:",
        "",
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . \\",
        "        --dataset_dir FOLDER --output_dir OUT",
        "",
        "On an image that lies on the model's grid and fits into one window, both give the same "
        "labels. On others they differ in voxels where classes are almost alike: MONAI places the "
        "windows of larger images at a fixed distance, medseg spreads them evenly; and each "
        "resamples in its own way. MONAI holds the logits of the whole image in memory.",
        "",
        "`configs/train.json` goes on from these weights with images in `imagesTr/` and labels "
        "`labelsTr/CASE.nii.gz` of a `--dataset_dir`. It is a plain recipe, not the training that "
        "made the model.",
        "",
    ]
    return "\n".join(lines)


def _licence(card: ModelCard, told: Origin) -> str:
    head = (
        f"{card.name} {card.version}\nCopyright: {told.copyright_notice}\n"
        f"Licence of the weights: {card.licence}\n"
        f"Trained on: {card.training.dataset} ({card.training.dataset_licence})\n"
    )
    return head if told.licence_text is None else f"{head}\n{told.licence_text}"
